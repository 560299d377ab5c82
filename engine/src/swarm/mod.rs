//! The gateway's side of the swarm: who serves what, which request runs where, and what happens when a
//! node goes.

mod admission;
mod recording;
mod sketch;
mod state;
mod tabs;
mod view;

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinHandle, JoinSet},
    time::Instant,
};
use transport::{Identity, NodeId, Transport};

use crate::{
    message::{Denial, Draft, Message, Path, Piece, SessionId},
    payment::{
        purse::{self, Payer, Purse},
        store::StoreError,
    },
    peers::{Notice, PeerEvent, Peers},
    request::Submission,
    speculation::drafter::{Drafter, Drafting},
    weights::{Giver, Stock, Taking},
};
pub use recording::Receipts;
use sketch::Verdict;
use state::{Action, State};

/// Bounds and rules of a swarm.
#[derive(Clone, Debug)]
pub struct SwarmConfig {
    /// Fingerprint of the model at its quantisation.
    pub fingerprint: [u8; 32],
    /// The model as the planner takes it, in the one format that is served.
    pub model: shard_planner::Model,
    /// Longest session in positions.
    pub positions: u32,
    /// Bytes per second that the gateway relays between nodes that find no other way; `None` if it knows no relay.
    pub relay_bytes_per_s: Option<u64>,
    /// Most replies generated at once.
    pub running: usize,
    /// Most requests that wait for their turn.
    pub waiting: usize,
    /// Nodes that may join; everybody if `None`.
    pub allow: Option<HashSet<NodeId>>,
    /// Nodes that alone may hold the embedding and the head, so that no other node sees a token.
    pub private_ends: Option<HashSet<NodeId>>,
    /// Whether replies may be speculated with.
    pub speculation: bool,
    /// What nodes that ask for it are paid with; without it they are refused.
    pub payer: Option<Payer>,
    /// Whether nodes at work may be told to load other layers.
    pub replan: bool,
    /// Receipts for replies, if there are any.
    pub receipts: Option<Receipts>,
    /// The model's files, for nodes that have none; `None` gives nothing away.
    pub weights: Option<Stock>,
}

#[cfg(test)]
impl SwarmConfig {
    /// A swarm of four layers, which anybody may join.
    fn of_tests() -> Self {
        Self {
            fingerprint: [0; 32],
            model: shard_planner::Model::uniform("m", 4, 1, 1, 1),
            positions: 64,
            relay_bytes_per_s: None,
            running: 1,
            waiting: 1,
            allow: None,
            private_ends: None,
            speculation: true,
            payer: None,
            replan: true,
            receipts: None,
            weights: None,
        }
    }
}

/// One node as people see it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct NodeSummary {
    /// Its id.
    pub id: String,
    /// Where it listens.
    pub address: String,
    /// First layer.
    pub from: usize,
    /// One past the last layer.
    pub to: usize,
    /// Holds the embedding.
    pub embedding: bool,
    /// Holds the head.
    pub head: bool,
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// What it computes on.
    pub device: String,
    /// Nanoseconds that a layer takes it in small steps, once it has said so.
    pub layer_ns: Option<u64>,
    /// Parts of the model that it gives to other nodes: layers, and the two ends.
    pub gives: usize,
}

/// One stage of the pipeline that serves.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Seat {
    /// The node's id.
    pub node: String,
    /// First layer.
    pub from: usize,
    /// One past the last layer.
    pub to: usize,
}

/// A node that is to hold other layers.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MoveSummary {
    /// The node's id.
    pub node: String,
    /// First layer that it is to hold.
    pub from: usize,
    /// One past the last.
    pub to: usize,
    /// It is loading them; before, its sessions end.
    pub loading: bool,
}

/// A link between two nodes, as the first of them sees it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LinkSummary {
    /// Its id.
    pub from: String,
    /// The other's.
    pub to: String,
    /// Round trip in milliseconds, with the detour of a relay.
    pub rtt_ms: f64,
    /// The way.
    pub path: Path,
    /// Megabits per second that it was seen to carry, in this direction and not long ago.
    pub mbit: Option<f64>,
}

/// The swarm as the planner sees it: a cluster file with its model, and the plan that is in force.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LiveCluster {
    /// The model in the format that is served.
    pub model: shard_planner::Model,
    /// Nodes that joined or load.
    pub node: Vec<shard_planner::Node>,
    /// Links, measured or marked as estimated: their round trips, and what they carry.
    pub link: Vec<shard_planner::cluster::Link>,
    /// Megabits per second that the gateway relays, over all links that go through it.
    #[serde(default)]
    pub relay_mbit: Option<f64>,
    /// The ways that requests take, if there is one.
    pub plan: Option<shard_planner::Report>,
    /// Why the model is not covered.
    pub problem: Option<String>,
}

/// How the swarm is doing.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct SwarmStatus {
    /// The nodes that joined, in the order of their layers.
    pub nodes: Vec<NodeSummary>,
    /// The pipeline that a request would take if all nodes were idle; empty if there is none.
    pub pipeline: Vec<Seat>,
    /// How often that changed: because a node left, came or slowed.
    pub replans: u64,
    /// Nodes that are to load other layers.
    pub moves: Vec<MoveSummary>,
    /// Moves that were done.
    pub moved: u64,
    /// Moves that failed.
    pub moves_failed: u64,
    /// What the planner sees.
    #[serde(skip)]
    pub live: Option<Arc<LiveCluster>>,
    /// Links between nodes.
    pub links: Vec<LinkSummary>,
    /// Part of the model that no node holds; `None` when requests can be served.
    pub missing: Option<String>,
    /// Replies being generated, and those that wait for another route.
    pub running: usize,
    /// How often a reply went on over another route, because a node was lost.
    pub resumed: u64,
    /// Requests waiting.
    pub waiting: usize,
    /// Wei of POD that vouchers were signed for, over all plans that are remembered.
    pub spent: u128,
}

impl SwarmStatus {
    /// Whether a pipeline stands.
    pub fn ready(&self) -> bool {
        !self.nodes.is_empty() && self.missing.is_none()
    }
}

/// A running swarm task.
#[derive(Debug)]
pub struct Swarm {
    status: watch::Receiver<SwarmStatus>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Swarm {
    /// Starts to accept nodes over `transport` and requests from `submissions`.
    ///
    /// `identity` is the one of `transport`: the gateway signs what it asks of nodes.
    pub fn start(
        identity: Identity,
        transport: Arc<dyn Transport>,
        config: SwarmConfig,
        drafting: Option<Drafting>,
        submissions: mpsc::Receiver<Submission>,
    ) -> Result<Self, StoreError> {
        let (purse, receipts) = match config.payer.clone().map(Purse::start).transpose()? {
            Some((purse, receipts)) => (Some(purse), receipts),
            None => (None, mpsc::channel(1).1),
        };
        let (peers, events) = Peers::start(transport);
        let (stop, stopping) = watch::channel(false);
        let (publish, status) = watch::channel(SwarmStatus::default());
        let (drafter, drafts) = drafting.map_or_else(
            || (None, mpsc::channel(1).1),
            |Drafting { drafter, drafts }| (Some(drafter), drafts),
        );
        let (giver, pieces) = match config.weights.clone().map(Giver::start) {
            Some((giver, pieces)) => (Some(giver), pieces),
            None => (None, mpsc::channel(1).1),
        };
        let state = State::new(identity, config, drafter.is_some());
        let cancelled = FuturesUnordered::new();
        let desk = Desk { state, peers, publish, drafter, purse, giver, cancelled, planner: JoinSet::new() };
        let inputs = Inputs { events, submissions, drafts, receipts, pieces };
        let task = tokio::spawn(desk.run(inputs, stopping));
        Ok(Self { status, stop, task })
    }

    /// How it is doing, now and later.
    pub fn status(&self) -> watch::Receiver<SwarmStatus> {
        self.status.clone()
    }

    /// Fails what is running, closes the links and stops.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}

type Cancelled = futures::future::BoxFuture<'static, SessionId>;

struct Desk {
    state: State,
    peers: Peers,
    publish: watch::Sender<SwarmStatus>,
    drafter: Option<Drafter>,
    purse: Option<Purse>,
    giver: Option<Giver>,
    /// Resolve when a client goes away.
    cancelled: FuturesUnordered<Cancelled>,
    /// The plan that is being made.
    planner: JoinSet<Verdict>,
}

/// What comes to the task from others.
struct Inputs {
    events: mpsc::Receiver<PeerEvent>,
    submissions: mpsc::Receiver<Submission>,
    drafts: mpsc::Receiver<Draft>,
    receipts: mpsc::Receiver<purse::Event>,
    pieces: mpsc::Receiver<(NodeId, Piece)>,
}

impl Desk {
    async fn run(mut self, inputs: Inputs, mut stopping: watch::Receiver<bool>) {
        let Inputs { mut events, mut submissions, mut drafts, mut receipts, mut pieces } = inputs;
        let mut open = true;
        loop {
            let deadline = self.state.next_deadline();
            tokio::select! {
                _ = stopping.changed() => break,
                Some(event) = events.recv() => {
                    for notice in self.peers.settle(event) {
                        self.notice(notice, Instant::now());
                    }
                }
                submission = submissions.recv(), if open => match submission {
                    Some(submission) => self.state.submit(submission, Instant::now()),
                    None => open = false,
                },
                Some(draft) = drafts.recv() => self.state.drafted(draft),
                Some(receipt) = receipts.recv() => self.state.purse(receipt),
                Some((peer, piece)) = pieces.recv() => self.give(peer, piece),
                Some(verdict) = self.planner.join_next() => self.planned(verdict),
                Some(session) = self.cancelled.next() => self.state.cancelled(session),
                () = tokio::time::sleep_until(deadline.unwrap_or_else(far)), if deadline.is_some() => {
                    self.state.expire(Instant::now());
                }
            }
            self.act();
        }
        self.state.shutdown();
        self.act();
        // What was received until now is signed for, and nodes have it.
        let farewell = async {
            while self.state.owes() {
                tokio::select! {
                    Some(event) = events.recv() => {
                        for notice in self.peers.settle(event) {
                            self.state.notice(notice, Instant::now());
                        }
                    }
                    Some(receipt) = receipts.recv() => self.state.purse(receipt),
                    else => break,
                }
                self.act();
            }
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
        drop((drafts, receipts));
        if let Some(purse) = self.purse.take() {
            purse.stop().await;
        }
        self.peers.shutdown().await;
        if let Some(drafter) = self.drafter {
            // The thread may be in the middle of a step.
            let _ = tokio::task::spawn_blocking(|| drafter.stop()).await;
        }
    }

    /// Weights are seen to here: which of them go where is no decision of the swarm's.
    fn notice(&mut self, notice: Notice, now: Instant) {
        let Notice::Message(peer, Message::Want(want)) = notice else {
            return self.state.notice(notice, now);
        };
        let stranger = !self.state.admits(peer);
        match self.giver.as_mut().filter(|_| !stranger) {
            None => self.peers.send(peer, None, Message::Piece(Piece::denied(want, Denial::Nothing))),
            Some(giver) => match giver.wanted(peer, want, now) {
                Taking::Taken => {}
                Taking::Denied(piece) => self.peers.send(peer, None, Message::Piece(piece)),
                Taking::Broken => self.peers.expel(peer, "asks for more weights at once than it may"),
            },
        }
    }

    fn give(&mut self, peer: NodeId, piece: Piece) {
        if let Some(giver) = &mut self.giver {
            giver.given(peer);
        }
        // Whoever is gone has no use for it.
        if self.peers.is_live(peer) {
            self.peers.send(peer, None, Message::Piece(piece));
        }
    }

    fn planned(&mut self, verdict: Result<Verdict, JoinError>) {
        match verdict {
            Ok(verdict) => self.state.planned(verdict, Instant::now()),
            // A bug of ours; the next change asks it again.
            Err(error) => {
                tracing::error!(%error, "the planner died");
                self.state.unplanned();
            }
        }
    }

    fn act(&mut self) {
        self.state.steer(Instant::now());
        loop {
            let actions = self.state.actions();
            if actions.is_empty() {
                break;
            }
            for action in actions {
                match action {
                    Action::Send { to, message } => self.peers.send(to, None, message),
                    Action::Expel { peer, reason } => self.peers.expel(peer, &reason),
                    Action::Dismiss(peer) => self.peers.close(peer),
                    Action::Purse(command) => {
                        if let Some(purse) = &self.purse {
                            purse.submit(command);
                        }
                    }
                    Action::Plan(mut sketch) => {
                        sketch.near = self.peers.rtts().collect();
                        self.planner.spawn_blocking(move || sketch.solve());
                    }
                    Action::Follow(command) => {
                        if let Some(drafter) = &self.drafter {
                            drafter.submit(command);
                        }
                    }
                    Action::Watch { session, events } => self.cancelled.push(Box::pin(async move {
                        events.closed().await;
                        session
                    })),
                }
            }
            for (peer, reason) in self.peers.take_unreachable() {
                self.state.lost(peer, &reason);
            }
        }
        self.publish.send_if_modified(|status| self.state.refresh(status));
    }
}

/// Longest wait for the last vouchers.
const FAREWELL: Duration = Duration::from_secs(5);

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}
