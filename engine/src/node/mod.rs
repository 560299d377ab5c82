//! A node: a stage of the model, its links, and the task that joins them. It dials its gateways, tells
//! them what it holds, and serves whatever routes they send through it.

mod ask;
mod fetch;
mod give;
mod reload;
pub mod state;
pub mod worker;

use std::{collections::HashMap, fmt, str::FromStr, sync::Arc, time::Duration};

use kernels::backend::{Backend, BackendError};
use thiserror::Error;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};
use transport::{NodeId, PathKind, Transport, peer::AddressError};

use crate::{
    audit::recorder::Audit,
    message::{Join, LoadRefusal, Message, Neighbour, Offer, Pace, clip, row_bytes},
    model::Shard,
    payment::{
        store::StoreError,
        till::{self, Payee, Till},
    },
    peers::{Notice, PeerEvent, Peers},
    stage::{Stage, StageLimits},
    weights::{Fetcher, Stock},
};
pub use ask::{AskError, ask};
use fetch::{Fetching, advanced};
use give::{Giving, given};
use reload::{Assigned, Outcome, finished, reported};
pub use reload::{Loader, load_rate};
use state::{Action, State};
pub use worker::StageLoad;
use worker::{Output, Worker};

/// First wait before a gateway is dialled again; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Wait for a gateway's welcome before the node offers itself again.
const WELCOME_WAIT: Duration = Duration::from_secs(2);
/// Longest wait between two dials of a gateway.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How often a node looks how near others are.
const LOOK: Duration = Duration::from_secs(1);

/// Where a gateway is, as people write it: `id@host:port`. The host may be a name; it is resolved at
/// every dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress {
    /// Its node id.
    pub id: NodeId,
    /// `host:port`.
    pub address: String,
}

impl FromStr for GatewayAddress {
    type Err = GatewayAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (id, address) = text.split_once('@').ok_or(GatewayAddressError::Shape)?;
        let port = address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
        if port.is_none_or(|port| port.parse::<u16>().is_err()) {
            return Err(GatewayAddressError::Shape);
        }
        Ok(Self { id: id.parse()?, address: address.to_owned() })
    }
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.address)
    }
}

/// Text that is not a gateway's address.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GatewayAddressError {
    /// Not of the form.
    #[error("expected `id@host:port`, as `dolphin serve` prints it")]
    Shape,
    /// The part before the `@` is no node id.
    #[error(transparent)]
    Id(#[from] AddressError),
}

/// What a node is made of, beside its stage.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Gateways to serve.
    pub gateways: Vec<GatewayAddress>,
    /// Where other nodes reach this one, `host:port`.
    pub advertise: String,
    /// Fingerprint of the model at its quantisation.
    pub fingerprint: [u8; 32],
    /// Most prompt rows of a step in which replies wait.
    pub chunk: usize,
    /// Bytes of weights loaded.
    pub weight_bytes: u64,
    /// What it computes on, for people.
    pub device: String,
    /// What it asks for its work; nothing if `None`.
    pub payee: Option<Payee>,
    /// What it lends.
    pub offer: Offer,
    /// Loads other layers, for a node that may be told to.
    pub loader: Option<Loader>,
    /// What it signs its work with, where a gateway asks for proofs; without, it signs nothing.
    pub audit: Option<Audit>,
    /// Fetches layers that the node is told to load, for one without the model's files.
    pub weights: Option<Fetcher>,
    /// What it gives of the model to other nodes; nothing if `None`.
    pub stock: Option<Stock>,
}

impl NodeConfig {
    /// What a node says of itself that holds `shard`.
    fn join(&self, shard: Shard, limits: &StageLimits) -> Join {
        let mut join = Join {
            fingerprint: self.fingerprint,
            shard,
            address: self.advertise.clone(),
            kv_pages: 0,
            sessions: 0,
            positions: 0,
            rows: 0,
            weight_bytes: self.weight_bytes,
            device: clip(&self.device),
            tariff: self.payee.as_ref().map(Payee::tariff),
            offer: self.offer.clone(),
        };
        join.limit(limits);
        join
    }
}

/// Why a node stopped serving or could not start.
#[derive(Debug, Error)]
pub enum NodeError {
    /// A gateway does not want the node.
    #[error("gateway {gateway} refused this node: {reason}")]
    Refused {
        /// Which.
        gateway: String,
        /// Its reason.
        reason: String,
    },
    /// The device failed, and the stage with it.
    #[error("the stage is lost: {0}")]
    Device(#[from] BackendError),
    /// The layers it held could not be loaded again after others had failed to load.
    #[error("the node has no layers left: {0}")]
    Reload(LoadRefusal),
    /// The stage's thread is gone: a bug of ours, printed where it happened.
    #[error("the stage's thread died")]
    StageDied,
    /// What it was paid cannot be kept.
    #[error("the vouchers: {0}")]
    Store(#[from] StoreError),
    /// The operating system gives no thread.
    #[error("the stage's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// How a node is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Gateways that welcomed it and are still there.
    pub gateways: usize,
    /// Sessions open on its stage.
    pub sessions: usize,
    /// Tokens guessed and sent along, on the routes it is the first stage of.
    pub drafted: u64,
    /// How many of them were drawn.
    pub accepted: u64,
    /// Other nodes that it has links to, and by what way, as seen every second.
    pub links: Vec<(NodeId, PathKind)>,
}

/// A running node. Dropping it stops the node in the background; [`Node::stop`] waits for it.
#[derive(Debug)]
pub struct Node {
    id: NodeId,
    status: watch::Receiver<NodeStatus>,
    load: watch::Receiver<StageLoad>,
    settle: Option<till::Caller>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), NodeError>>,
}

impl Node {
    /// Starts to serve `stage` over `transport`.
    pub fn start<B: Backend>(
        stage: Stage<B>,
        transport: Arc<dyn Transport>,
        config: NodeConfig,
    ) -> Result<Self, NodeError> {
        let id = transport.id();
        let limits = *stage.limits();
        let identity = state::Identity {
            id,
            fingerprint: config.fingerprint,
            shard: stage.shard().clone(),
            gateways: config.gateways.iter().map(|gateway| gateway.id).collect(),
            vocabulary: stage.vocabulary(),
            row_bytes: row_bytes(stage.hidden(), stage.profile()),
            rows: limits.rows,
            sessions: limits.sessions,
            positions: limits.positions,
            chunk: config.chunk,
        };
        let join = config.join(stage.shard().clone(), &limits);
        let (state, (till, receipts)) = match config.payee {
            Some(payee) => {
                let (till, receipts) = Till::start(payee, id, config.fingerprint)?;
                (State::new(identity).paid(), (Some(till), receipts))
            }
            None => (State::new(identity), (None, mpsc::channel(1).1)),
        };
        let (report, load) = watch::channel(StageLoad::default());
        let (worker, outputs) = Worker::start(stage, config.audit.clone(), report.clone())?;
        let (peers, events) = Peers::start(transport);
        let (stop, stopping) = watch::channel(false);
        let (publish, status) = watch::channel(NodeStatus::default());
        let settle = till.as_ref().map(Till::caller);
        let desk = Desk {
            state,
            join,
            limits,
            gateways: config.gateways.into_iter().map(|g| (g.id, Gateway::new(g.address))).collect(),
            peers,
            worker: Some(worker),
            outputs: Some(outputs),
            load: report,
            loader: config.loader,
            audit: config.audit,
            assigned: None,
            weights: config.weights,
            fetching: None,
            giving: config.stock.map(Giving::start),
            loading: None,
            till,
            publish,
            told_ns: 0,
            told_near: Vec::new(),
            links: Vec::new(),
        };
        let task = tokio::spawn(desk.run(events, receipts, stopping));
        Ok(Self { id, status, load, settle, stop, task })
    }

    /// The node's id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// How it is doing, now and later.
    pub fn status(&self) -> watch::Receiver<NodeStatus> {
        self.status.clone()
    }

    /// What its stage has done and holds, now and later.
    pub fn load(&self) -> watch::Receiver<StageLoad> {
        self.load.clone()
    }

    /// By which a paid node is asked to collect.
    pub fn settler(&self) -> Option<till::Caller> {
        self.settle.clone()
    }

    /// Runs until every gateway has refused the node, or its stage is gone.
    pub async fn finished(&mut self) -> Result<(), NodeError> {
        (&mut self.task).await.unwrap_or(Err(NodeError::StageDied))
    }

    /// Tells the peers and stops.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        // One that ended by itself has told its end.
        if !self.task.is_finished() {
            let _ = self.task.await;
        }
    }
}

impl Join {
    /// Says what a stage can take.
    fn limit(&mut self, limits: &StageLimits) {
        let whole = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        (self.kv_pages, self.sessions) = (whole(limits.pages), whole(limits.sessions));
        (self.positions, self.rows) = (limits.positions, whole(limits.rows));
    }
}

fn now() -> std::time::Instant {
    std::time::Instant::now()
}

struct Gateway {
    address: String,
    /// There is a link, or one is being made; told once when it is gone.
    up: bool,
    welcome: bool,
    wait: Duration,
    redial: Option<Instant>,
}

impl Gateway {
    fn new(address: String) -> Self {
        Self { address, up: false, welcome: false, wait: FIRST_WAIT, redial: Some(Instant::now()) }
    }
}

/// The state of the node's task.
struct Desk {
    state: State,
    join: Join,
    gateways: HashMap<NodeId, Gateway>,
    peers: Peers,
    limits: StageLimits,
    /// The stage; none while other layers are loaded.
    worker: Option<Worker>,
    outputs: Option<mpsc::Receiver<Output>>,
    load: watch::Sender<StageLoad>,
    loader: Option<Loader>,
    audit: Option<Audit>,
    /// What is to be loaded once no session is left.
    assigned: Option<Assigned>,
    weights: Option<Fetcher>,
    /// Weights of what was assigned, on their way.
    fetching: Option<Fetching>,
    giving: Option<Giving>,
    loading: Option<JoinHandle<Outcome>>,
    /// Of a node that serves for pay.
    till: Option<Till>,
    publish: watch::Sender<NodeStatus>,
    /// The pace that gateways were last told.
    told_ns: u64,
    told_near: Vec<Neighbour>,
    /// Links to other nodes, as they were last looked at.
    links: Vec<(NodeId, PathKind)>,
}

impl Desk {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<PeerEvent>,
        mut receipts: mpsc::Receiver<till::Event>,
        mut stopping: watch::Receiver<bool>,
    ) -> Result<(), NodeError> {
        let mut look = tokio::time::interval(LOOK);
        let outcome = loop {
            let redial = self.gateways.values().filter_map(|gateway| gateway.redial).min();
            let wake = self.state.next_wake().map(Instant::from_std);
            tokio::select! {
                biased;
                _ = stopping.changed() => break Ok(()),
                output = reported(&mut self.outputs) => match output {
                    Some(output) => self.state.worked(output, now()),
                    None => break Err(NodeError::StageDied),
                },
                outcome = finished(&mut self.loading) => {
                    if let Err(error) = self.reloaded(outcome) {
                        break Err(error);
                    }
                }
                _ = look.tick() => {
                    self.tell_near();
                    self.tell_shares();
                }
                piece = given(&mut self.giving) => self.give(piece),
                step = advanced(&mut self.fetching) => self.fetched(step),
                Some(event) = events.recv() => {
                    if let Err(error) = self.peers.settle(event).into_iter().try_for_each(|n| self.notice(n)) {
                        break Err(error);
                    }
                }
                Some(receipt) = receipts.recv() => self.state.till(receipt),
                () = tokio::time::sleep_until(redial.unwrap_or_else(Instant::now)), if redial.is_some() => self.redial(),
                () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => self.state.wake(now()),
            }
            self.act();
            self.reload();
            self.tell_pace();
            self.publish();
        };
        self.peers.shutdown().await;
        // A worker or a till that waits to report must not be waited for.
        drop((self.outputs, receipts));
        if let Some(till) = self.till {
            till.stop().await;
        }
        // Joining the thread may wait for a step; the runtime's own threads must not.
        match tokio::task::spawn_blocking(|| self.worker.map_or(Ok(()), Worker::stop)).await {
            Ok(Err(error)) => Err(error.into()),
            _ => outcome,
        }
    }

    fn notice(&mut self, notice: Notice) -> Result<(), NodeError> {
        match notice {
            Notice::Up(peer) => {
                if self.gateways.contains_key(&peer) {
                    self.say_join(peer);
                }
            }
            Notice::Down(peer, reason) => self.lost(peer, &reason),
            Notice::Message(peer, message) => match (self.gateways.get_mut(&peer), message) {
                (Some(gateway), Message::Welcome) => {
                    tracing::info!(gateway = %peer.short(), "joined");
                    gateway.welcome = true;
                    // Somebody new has to be told.
                    self.told_ns = 0;
                    self.told_near.clear();
                    gateway.redial = None;
                    gateway.wait = FIRST_WAIT;
                    self.forget_shares();
                    self.describe(peer);
                }
                (Some(_), Message::Refuse(reason)) => {
                    self.gateways.remove(&peer);
                    tracing::error!(gateway = %peer.short(), reason, "refused by a gateway");
                    if self.gateways.is_empty() {
                        return Err(NodeError::Refused { gateway: peer.short(), reason });
                    }
                }
                (Some(_), Message::Assign(assign)) => self.assigned(peer, assign),
                (Some(_), Message::Lend(node)) => self.lend(NodeId(node)),
                (_, Message::Want(want)) => self.wanted(peer, want),
                (_, answer @ (Message::Piece(_) | Message::Holders(_))) => self.answered(peer, answer),
                (_, message) => self.state.receive(peer, message, now()),
            },
        }
        Ok(())
    }

    fn lost(&mut self, peer: NodeId, reason: &str) {
        self.state.lost(peer, reason);
        self.giver_lost(peer);
        if let Some(gateway) = self.gateways.get_mut(&peer).filter(|gateway| gateway.up) {
            tracing::warn!(gateway = %peer.short(), reason, wait_ms = gateway.wait.as_millis() as u64, "no link to the gateway");
            gateway.up = false;
            gateway.welcome = false;
            gateway.redial = Some(Instant::now() + gateway.wait);
            gateway.wait = (gateway.wait * 2).min(LONGEST_WAIT);
        }
    }

    fn redial(&mut self) {
        let now = Instant::now();
        let mut unwelcomed = Vec::new();
        for (id, gateway) in &mut self.gateways {
            if gateway.redial.is_some_and(|at| at <= now) {
                gateway.redial = None;
                gateway.up = true;
                match self.peers.is_live(*id) {
                    // The welcome may have gone to a link that died with it; joining twice does no harm.
                    true => unwelcomed.push(*id),
                    false => self.peers.connect(*id, &gateway.address),
                }
            }
        }
        for id in unwelcomed {
            self.say_join(id);
        }
    }

    /// Offers the node, and again until it is welcome.
    fn say_join(&mut self, id: NodeId) {
        self.peers.send(id, None, Message::Join(Box::new(self.join.clone())));
        if let Some(gateway) = self.gateways.get_mut(&id) {
            gateway.redial = Some(Instant::now() + WELCOME_WAIT);
        }
    }

    /// Carries out what the state wants, and what follows from it.
    fn act(&mut self) {
        loop {
            let actions = self.state.actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    Action::Send { to, address, message } => self.peers.send(to, address.as_deref(), message),
                    Action::Expel { peer, reason } => self.peers.expel(peer, &reason),
                    // Without a stage nothing is asked of it but to forget.
                    Action::Work(command) => {
                        if let Some(worker) = &self.worker {
                            worker.submit(command);
                        }
                    }
                    Action::Till(command) => {
                        if let Some(till) = &self.till {
                            till.submit(command);
                        }
                    }
                }
            }
            for (peer, reason) in self.peers.take_unreachable() {
                self.lost(peer, &reason);
            }
        }
    }

    /// Tells gateways of a pace that has come to be half or twice what they know: less may be chance.
    fn tell_pace(&mut self) {
        let layer_ns = self.load.borrow().layer_ns;
        let (less, more) = (layer_ns.min(self.told_ns), layer_ns.max(self.told_ns));
        if layer_ns == 0 || more < 2 * less {
            return;
        }
        self.told_ns = layer_ns;
        for id in self.gateways.iter().filter(|(_, gateway)| gateway.welcome).map(|(id, _)| *id) {
            self.peers.send(id, None, Message::Pace(Pace { layer_ns }));
        }
    }

    fn publish(&self) {
        let status = NodeStatus {
            gateways: self.gateways.values().filter(|gateway| gateway.welcome).count(),
            sessions: self.state.sessions(),
            drafted: self.state.drafted().offered,
            accepted: self.state.drafted().accepted,
            links: self.links.clone(),
        };
        self.publish.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }
}
