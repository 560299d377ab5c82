//! What a gateway knows and decides. Pure but for the channels it answers through: events and the
//! time go in, actions come out.

mod holders;
mod links;
mod opening;
mod planning;
mod replies;
mod resume;
mod service;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::{sync::mpsc, time::Instant};
use transport::{Identity, NodeId};

use super::{
    SwarmConfig, SwarmStatus,
    admission::{Member, NoRoute, Replies, find_route},
    recording::Recordings,
    sketch::Sketch,
    tabs::{Admission, Tabs},
    view::look,
};
use crate::{
    message::{Hop, Join, Message, Pace, RouteId, SessionId, clip},
    payment::purse,
    peers::Notice,
    request::{Event, Failure, Generation, Refusal, Submission},
    speculation::drafter,
};
use holders::Leaves;
use planning::Planning;
use replies::Running;
use resume::{Broken, Loss};

/// Told to clients that come when everything is taken.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What the state wants done.
#[derive(Debug)]
pub(super) enum Action {
    /// Send a message over the peer's link.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: Message,
    },
    /// End the links with a peer that broke the rules.
    Expel {
        /// Who.
        peer: NodeId,
        /// Why.
        reason: String,
    },
    /// Close the link with a peer after what was sent.
    Dismiss(NodeId),
    /// Ask the planner.
    Plan(Box<Sketch>),
    /// Tell the draft model.
    Follow(drafter::Command),
    /// Hand a command to the purse.
    Purse(purse::Command),
    /// Report when the client of a session goes away.
    Watch {
        /// The session.
        session: SessionId,
        /// Closes when the client does.
        events: mpsc::Sender<Event>,
    },
}

struct Waiting {
    submission: Submission,
    deadline: Instant,
}

/// See the module.
pub(super) struct State {
    identity: Identity,
    config: SwarmConfig,
    /// Whether there is a draft model.
    drafter: bool,
    /// Secret of the names of token blocks: a node cannot tell from a name what the tokens are.
    salt: [u8; 16],
    members: HashMap<NodeId, Member>,
    /// Since the status was last refreshed.
    members_changed: bool,
    planning: Planning,
    leaves: Leaves,
    running: HashMap<SessionId, Running>,
    /// Replies that wait for another route, oldest first.
    broken: Vec<Broken>,
    /// Replies that went on over another route.
    resumed: u64,
    routes: Vec<(RouteId, Vec<Hop>)>,
    waiting: VecDeque<Waiting>,
    replies: Replies,
    recordings: Recordings,
    tabs: Tabs,
    actions: Vec<Action>,
}

impl State {
    /// A swarm without nodes.
    pub(super) fn new(identity: Identity, config: SwarmConfig, drafter: bool) -> Self {
        let recordings = Recordings::new(config.receipts.clone(), identity.clone());
        Self {
            planning: Planning::new(&config),
            identity,
            tabs: Tabs::new(config.payer.clone(), config.fingerprint),
            config,
            recordings,
            drafter,
            salt: random().to_le_bytes(),
            members: HashMap::new(),
            members_changed: true,
            leaves: Leaves::default(),
            running: HashMap::new(),
            broken: Vec::new(),
            resumed: 0,
            routes: Vec::new(),
            waiting: VecDeque::new(),
            replies: Replies::default(),
            actions: Vec::new(),
        }
    }

    /// What is to be done since the last call, in order.
    pub(super) fn actions(&mut self) -> Vec<Action> {
        let mut actions = std::mem::take(&mut self.actions);
        actions.extend(self.tabs.actions());
        actions
    }

    /// Whether nodes have yet to be paid for what was received.
    pub(super) fn owes(&self) -> bool {
        self.tabs.owes()
    }

    /// The purse reports.
    pub(super) fn purse(&mut self, event: purse::Event) {
        self.tabs.purse(event);
        self.admit();
    }

    /// When [`State::expire`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let running = self.running.values().map(Running::deadline);
        let waiting = self.waiting.iter().map(|w| w.deadline);
        let broken = self.broken.iter().map(Broken::wakes);
        let others = self.planning.next_deadline().into_iter().chain(self.recordings.next_deadline());
        running.chain(waiting).chain(broken).chain(others).min()
    }

    /// Brings `status` up to date; whether it changed. The nodes are looked at only when they did:
    /// this is asked after every event.
    pub(super) fn refresh(&mut self, status: &mut SwarmStatus) -> bool {
        let members_changed = std::mem::take(&mut self.members_changed);
        if members_changed {
            look(&self.members, &self.config, self.main_hops(&status.pipeline), status);
            (status.moves, [status.moved, status.moves_failed], status.live) = self.planning.view();
            status.links = self.planning.links(Instant::now());
        }
        let counts = (self.under_way(), self.waiting.len(), self.resumed, self.tabs.spent());
        let counts_changed = counts != (status.running, status.waiting, status.resumed, status.spent);
        (status.running, status.waiting, status.resumed, status.spent) = counts;
        members_changed || counts_changed
    }

    /// Something happened on the links.
    pub(super) fn notice(&mut self, notice: Notice, now: Instant) {
        match notice {
            Notice::Up(_) => {}
            Notice::Down(peer, reason) => self.lost(peer, &reason),
            Notice::Message(peer, message) => match message {
                Message::Ask(ask) => self.asked(peer, ask),
                Message::Join(join) => self.joined(peer, *join),
                Message::Tokens(tokens) if self.members.contains_key(&peer) => self.tokens(peer, tokens, now),
                Message::Pace(pace) if self.members.contains_key(&peer) => self.paced(peer, pace),
                Message::Cannot(cannot) if self.members.contains_key(&peer) => {
                    self.cannot(peer, &cannot, now)
                }
                Message::Near(near) if self.members.contains_key(&peer) => self.near(peer, &near, now),
                Message::Shares(parts) if self.members.contains_key(&peer) => self.shares(peer, parts),
                Message::Seek(seek) if self.admits(peer) => self.seek(peer, &seek, now),
                Message::Failed(failed) if self.members.contains_key(&peer) => self.failed(peer, failed),
                Message::Committed(committed) if self.members.contains_key(&peer) => {
                    if let Err(error) = self.recordings.committed(peer, *committed) {
                        self.actions.push(Action::Expel { peer, reason: error.to_string() });
                    }
                }
                Message::TabAnswer(answer) => {
                    self.tabs.answered(peer, &answer);
                    self.admit();
                }
                Message::Paid(paid) => {
                    self.tabs.paid(peer, paid);
                    self.admit();
                }
                _ => {
                    let reason = "sent what a gateway does not take, or not from it".into();
                    self.actions.push(Action::Expel { peer, reason });
                }
            },
        }
    }

    /// A node is gone: what runs through it goes on over others, or fails.
    pub(super) fn lost(&mut self, peer: NodeId, reason: &str) {
        self.remove(peer, reason);
        self.admit();
    }

    fn remove(&mut self, peer: NodeId, reason: &str) {
        self.planning.lost(peer);
        self.leaves.lost(peer);
        if self.members.remove(&peer).is_none() {
            return;
        }
        self.members_changed = true;
        self.tabs.lost(peer);
        tracing::warn!(node = %peer.short(), reason, "a node left");
        let broken: Vec<SessionId> =
            self.running.iter().filter(|(_, r)| r.uses(peer)).map(|(session, _)| *session).collect();
        for session in broken {
            let failure = Failure::NodeLost { node: peer.short(), reason: reason.to_owned() };
            self.interrupt(session, failure, Loss { node: peer, by: peer });
        }
        self.routes.retain(|(_, hops)| !hops.iter().any(|hop| hop.node == *peer.as_bytes()));
    }

    /// A client asks for a reply.
    pub(super) fn submit(&mut self, submission: Submission, now: Instant) {
        let request = &submission.request;
        let requested = (request.prompt.len() as u32).saturating_add(request.max_tokens);
        if requested > self.config.positions {
            let refusal = Refusal::TooLong { requested, limit: self.config.positions };
            return answer(submission, Err(refusal));
        }
        if let Some(refusal) = self.unsupported(request) {
            return answer(submission, Err(refusal));
        }
        let deadline = now + request.deadline;
        self.waiting.retain(|waiting| !waiting.submission.reply.is_closed());
        self.waiting.push_back(Waiting { submission, deadline });
        self.admit();
        if self.waiting.len() > self.config.waiting
            && let Some(last) = self.waiting.pop_back()
        {
            answer(last.submission, Err(Refusal::Busy { retry_after: RETRY_AFTER }));
        }
    }

    /// The client of a session went away.
    pub(super) fn cancelled(&mut self, session: SessionId) {
        if self.running.contains_key(&session) {
            let end = self.recordings.end(session, None);
            self.close_everywhere(session, end);
            self.finish(session);
        }
        self.leave(session);
        self.admit();
    }

    /// Ends what took too long.
    pub(super) fn expire(&mut self, now: Instant) {
        self.recordings.expire(now);
        let late: Vec<SessionId> =
            self.running.iter().filter(|(_, r)| r.deadline() <= now).map(|(session, _)| *session).collect();
        for session in late {
            self.break_off(session, Failure::Deadline);
        }
        self.expire_broken(now);
        let (late, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|w| w.deadline <= now);
        self.waiting = waiting;
        let late: VecDeque<Waiting> = late;
        for Waiting { submission, .. } in late {
            answer(submission, Err(Refusal::Busy { retry_after: RETRY_AFTER }));
        }
        self.admit();
    }

    /// Fails everything.
    pub(super) fn shutdown(&mut self) {
        let sessions: Vec<SessionId> = self.running.keys().copied().collect();
        for session in sessions {
            self.break_off(session, Failure::Shutdown);
        }
        self.give_all_up(&Failure::Shutdown);
        for Waiting { submission, .. } in std::mem::take(&mut self.waiting) {
            answer(submission, Err(Refusal::Shutdown));
        }
    }

    fn joined(&mut self, peer: NodeId, join: Join) {
        let money = || self.tabs.may_join(peer, &join);
        if let Err(reason) = self.may_join(peer, &join.fingerprint).and_then(|()| money()) {
            return self.refuse(peer, reason);
        }
        if join.shard.layers.end > self.config.model.layers() {
            return self.refuse(peer, format!("the model has {} layers", self.config.model.layers()));
        }
        tracing::info!(node = %peer.short(), layers = ?join.shard.layers, device = join.device, "a node joined");
        self.settled(peer, &join.shard.layers);
        // It is as fast as it was, with whatever layers.
        let layer_ns = self.members.get(&peer).and_then(|member| member.layer_ns);
        self.remove(peer, "it joined anew");
        self.members.insert(peer, Member { layer_ns, ..Member::new(join) });
        self.members_changed = true;
        self.actions.push(Action::Send { to: peer, message: Message::Welcome });
        self.tabs.joined(peer);
        self.admit();
    }

    /// A node says how fast it is now.
    fn paced(&mut self, peer: NodeId, pace: Pace) {
        if let Some(member) = self.members.get_mut(&peer) {
            tracing::info!(node = %peer.short(), layer_ns = pace.layer_ns, before = member.layer_ns, "a node's speed");
            member.layer_ns = Some(pace.layer_ns);
            self.planning.disturb();
            self.members_changed = true;
        }
    }

    /// Whether a node may join, whatever it holds.
    pub(super) fn admits(&self, peer: NodeId) -> bool {
        self.config.allow.as_ref().is_none_or(|allow| allow.contains(&peer))
    }

    fn may_join(&self, peer: NodeId, fingerprint: &[u8; 32]) -> Result<(), String> {
        if !self.admits(peer) {
            return Err("this gateway takes listed nodes only, and this node's id is not on the list".into());
        }
        if *fingerprint != self.config.fingerprint {
            return Err("this gateway serves another model, or the same at another quantisation".into());
        }
        Ok(())
    }

    fn refuse(&mut self, peer: NodeId, reason: String) {
        tracing::warn!(node = %peer.short(), reason, "a node was refused");
        self.actions.push(Action::Send { to: peer, message: Message::Refuse(clip(&reason)) });
        self.actions.push(Action::Dismiss(peer));
    }

    /// Replies that are generated, or are to be again.
    fn under_way(&self) -> usize {
        self.running.len() + self.broken.len()
    }

    /// Starts what waits as long as there is room: first replies that broke off, then requests in their order. One
    /// that must wait makes the later ones wait too, so that a long request is not starved by short ones.
    fn admit(&mut self) {
        if !self.resume() {
            return;
        }
        // Replies that wait for nodes keep their slots; requests are told all the same that the nodes are missing.
        while self.under_way() < self.config.running || !self.broken.is_empty() {
            let Some(next) = self.waiting.front() else { return };
            if next.submission.reply.is_closed() {
                self.waiting.pop_front();
                continue;
            }
            let request = &next.submission.request;
            let tokens = (request.prompt.len() as u32, request.max_tokens);
            let need = self.replies.need(tokens.0, tokens.1);
            let outcome = match self.planned_hops(need) {
                Some(hops) => Ok(hops),
                None => find_route(&self.members, &self.config, need),
            };
            let refusal = match outcome {
                Err(NoRoute::Full) => return,
                Err(NoRoute::Missing(_)) if self.may_mend() => return,
                Err(NoRoute::Missing(gap)) => Refusal::NoPipeline { missing: gap.to_string() },
                Err(NoRoute::TooLong { limit }) => Refusal::TooLong { requested: need.most, limit },
                Ok(_) if self.under_way() >= self.config.running => return,
                Ok(hops) => match self.tabs.admit(&self.members, &hops, tokens) {
                    Admission::Wait => return,
                    Admission::Refused(refusal) => refusal,
                    Admission::Go(fare) => {
                        if let Some(waiting) = self.waiting.pop_front() {
                            self.begin(waiting, hops, need.likely, fare);
                        }
                        continue;
                    }
                },
            };
            if let Some(Waiting { submission, .. }) = self.waiting.pop_front() {
                answer(submission, Err(refusal));
            }
        }
    }
}

fn answer(submission: Submission, outcome: Result<Generation, Refusal>) {
    // A client that no longer waits needs no answer.
    let _ = submission.reply.send(outcome);
}

fn random() -> u128 {
    rand::random()
}
