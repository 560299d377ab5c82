//! What a gateway knows and decides. Pure but for the channels it answers through: events and the
//! time go in, actions come out.

mod holders;
mod opening;
mod planning;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use kernels::backend::PAGE;
use tokio::{sync::mpsc, time::Instant};
use transport::{Identity, NodeId};

use super::{
    SwarmConfig, SwarmStatus,
    admission::{Member, NoRoute, Replies, find_route},
    recording::Recordings,
    sketch::Sketch,
    tabs::{Admission, Fare, Tabs},
    view::look,
};
use crate::{
    message::{
        Close, Draft, Failed, FailedReason, Hop, Join, Message, Pace, RouteId, SessionId, TokenReport, clip,
    },
    payment::purse,
    peers::Notice,
    request::{Event, Failure, Generation, Refusal, Submission},
    speculation::drafter,
};
use holders::Leaves;
use planning::Planning;

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

/// A reply being generated.
#[derive(Debug)]
struct Running {
    route: RouteId,
    hops: Vec<Hop>,
    /// Tokens that may still come.
    left: u32,
    /// Positions that it has come to.
    positions: u32,
    /// Positions that its nodes' pages were promised for.
    reserved: u32,
    /// Tokens drawn.
    drawn: u32,
    deadline: Instant,
    events: mpsc::Sender<Event>,
}

impl Running {
    fn node(&self, stage: usize) -> NodeId {
        NodeId(self.hops[stage].node)
    }

    fn last(&self) -> NodeId {
        self.node(self.hops.len() - 1)
    }

    fn uses(&self, node: NodeId) -> bool {
        self.hops.iter().any(|hop| hop.node == *node.as_bytes())
    }

    /// The channel holds every event a reply can have, so a slow client never blocks and never loses
    /// one; a closed channel is the client's own doing.
    fn tell(&self, event: Event) {
        let _ = self.events.try_send(event);
    }
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
        let running = self.running.values().map(|r| r.deadline);
        let waiting = self.waiting.iter().map(|w| w.deadline);
        let plans = self.planning.next_deadline();
        running.chain(waiting).chain(plans).chain(self.recordings.next_deadline()).min()
    }

    /// Brings `status` up to date; whether it changed. The nodes are looked at only when they did:
    /// this is asked after every event.
    pub(super) fn refresh(&mut self, status: &mut SwarmStatus) -> bool {
        let members_changed = std::mem::take(&mut self.members_changed);
        if members_changed {
            look(&self.members, &self.config, self.main_hops(&status.pipeline), status);
            (status.moves, [status.moved, status.moves_failed], status.live) = self.planning.view();
            status.links = self.planning.links();
        }
        let counts = (self.running.len(), self.waiting.len(), self.tabs.spent());
        let counts_changed = counts != (status.running, status.waiting, status.spent);
        (status.running, status.waiting, status.spent) = counts;
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
                Message::Tokens(tokens) if self.members.contains_key(&peer) => self.tokens(peer, tokens),
                Message::Pace(pace) if self.members.contains_key(&peer) => self.paced(peer, pace),
                Message::Cannot(cannot) if self.members.contains_key(&peer) => {
                    self.cannot(peer, &cannot, now)
                }
                Message::Near(near) if self.members.contains_key(&peer) => self.near(peer, &near),
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

    /// A node is gone: what runs through it fails.
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
            self.break_off(session, failure);
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
            self.admit();
        }
    }

    /// Ends what took too long.
    pub(super) fn expire(&mut self, now: Instant) {
        self.recordings.expire(now);
        let late: Vec<SessionId> =
            self.running.iter().filter(|(_, r)| r.deadline <= now).map(|(session, _)| *session).collect();
        for session in late {
            self.break_off(session, Failure::Deadline);
        }
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

    /// Starts waiting requests in their order as long as there is room. One that must wait makes the
    /// later ones wait too, so that a long request is not starved by short ones.
    fn admit(&mut self) {
        while self.running.len() < self.config.running {
            let Some(next) = self.waiting.front() else { return };
            if next.submission.reply.is_closed() {
                self.waiting.pop_front();
                continue;
            }
            let request = &next.submission.request;
            let need = self.replies.need(request.prompt.len() as u32, request.max_tokens);
            let outcome = match self.planned_hops(need) {
                Some(hops) => Ok(hops),
                None => find_route(&self.members, &self.config, need),
            };
            let refusal = match outcome {
                Err(NoRoute::Full) => return,
                Err(NoRoute::Missing(_)) if self.may_mend() => return,
                Err(NoRoute::Missing(gap)) => Refusal::NoPipeline { missing: gap.to_string() },
                Err(NoRoute::TooLong { limit }) => Refusal::TooLong { requested: need.most, limit },
                Ok(hops) => match self.tabs.admit(&self.members, &hops, request) {
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

    fn begin(&mut self, waiting: Waiting, hops: Vec<Hop>, reserved: u32, fare: Option<Fare>) {
        let session = new_session();
        let route = self.route(&hops);
        let Waiting { submission: Submission { request, reply }, deadline } = waiting;
        let (events, receiver) = mpsc::channel(request.max_tokens as usize + 2);
        let (left, positions) = (request.max_tokens, request.prompt.len() as u32);
        let tenant = request.tenant;
        let price = fare.map_or(0, |fare| fare.price);
        let follow = self.drafts().model.then(|| Action::Follow(drafter::Command::open(session, &request)));
        let open = self.opening(session, route, hops.clone(), request, fare);
        let receipt = self.recordings.begin(&open, tenant);
        if reply.send(Ok(Generation { events: receiver, receipt, price })).is_err() {
            return self.recordings.forget(session);
        }
        for hop in &hops {
            if let Some(member) = self.members.get_mut(&NodeId(hop.node)) {
                member.reserve(reserved);
            }
        }
        self.actions.extend(follow);
        self.tabs.begin(session, fare, positions, left, NodeId(hops[hops.len() - 1].node));
        self.actions.push(Action::Watch { session, events: events.clone() });
        self.actions.push(Action::Send { to: NodeId(hops[0].node), message: Message::Open(Box::new(open)) });
        let running = Running { route, hops, left, positions, reserved, drawn: 0, deadline, events };
        self.running.insert(session, running);
    }

    /// Sessions over the same stages share a route, and so their steps.
    fn route(&mut self, hops: &[Hop]) -> RouteId {
        if let Some((id, _)) = self.routes.iter().find(|(_, known)| known == hops) {
            return *id;
        }
        let id = RouteId(random());
        self.routes.push((id, hops.to_vec()));
        id
    }

    fn tokens(&mut self, peer: NodeId, tokens: Vec<TokenReport>) {
        let mut accepted: Vec<(SessionId, Vec<u32>)> = Vec::new();
        for report in tokens {
            let Some(running) = self.running.get_mut(&report.session) else {
                self.tabs.late(peer, report.session);
                continue;
            };
            if running.last() != peer || running.left == 0 {
                let reason = "sent tokens of a session it is not the last stage of, or too many".into();
                return self.actions.push(Action::Expel { peer, reason });
            }
            running.left -= 1;
            self.tabs.token(report.session);
            match accepted.last_mut().filter(|(session, _)| *session == report.session) {
                Some((_, tokens)) => tokens.push(report.token),
                None => accepted.push((report.session, vec![report.token])),
            }
            running.drawn += 1;
            running.positions += 1;
            if running.positions > running.reserved {
                running.reserved += PAGE as u32;
                for hop in &running.hops {
                    if let Some(member) = self.members.get_mut(&NodeId(hop.node)) {
                        member.grow();
                    }
                }
            }
            self.recordings.token(report.session, report.token);
            running.tell(Event::Token { token: report.token, logprobs: report.logprobs });
            if let Some(finish) = report.finish {
                running.tell(Event::Finished(finish));
                // The first stage learns of the end by itself, but perhaps after the next session's
                // opening; told by the same link, it frees this one's room before.
                let end = self.recordings.end(report.session, Some(finish));
                let close = Message::Close(Close { end, ..Close::abrupt(report.session) });
                self.actions.push(Action::Send { to: running.node(0), message: close });
                self.replies.ended(running.drawn);
                self.tabs.end(report.session, false);
                self.finish(report.session);
            }
        }
        if self.drafts().model {
            let told = |(session, tokens)| Action::Follow(drafter::Command::Accepted { session, tokens });
            self.actions.extend(accepted.into_iter().map(told));
        }
        self.admit();
    }

    /// The draft model says how a reply may go on.
    pub(super) fn drafted(&mut self, draft: Draft) {
        if let Some(running) = self.running.get(&draft.session) {
            let to = running.node(0);
            self.actions.push(Action::Send { to, message: Message::Draft(draft) });
        }
    }

    fn failed(&mut self, peer: NodeId, failed: Failed) {
        let Some(running) = self.running.get(&failed.session) else { return };
        if !running.uses(peer) {
            let reason = "reported a session it has no part in".into();
            return self.actions.push(Action::Expel { peer, reason });
        }
        let failure = match failed.reason {
            FailedReason::Refused(reason) => Failure::Refused { node: peer.short(), reason },
            FailedReason::Fault { position, layer, operation } => {
                Failure::Fault { position, layer, operation: format!("{operation:?}") }
            }
            FailedReason::Unpaid(unpaid) => {
                self.tabs.recount(peer);
                Failure::Unpaid { node: peer.short(), unpaid }
            }
            FailedReason::PeerLost { node, reason } => {
                Failure::NodeLost { node: NodeId(node).short(), reason }
            }
        };
        self.break_off(failed.session, failure);
        self.admit();
    }

    /// Tells the client that the reply broke off, and every stage to forget it.
    fn break_off(&mut self, session: SessionId, failure: Failure) {
        if let Some(running) = self.running.get(&session) {
            let lost = matches!(failure, Failure::NodeLost { .. });
            running.tell(Event::Failed(failure));
            // Steps of the route may be lost, and with them its first stage's count of what is on its way.
            let route = running.route;
            self.routes.retain(|(id, _)| *id != route || !lost);
        }
        self.recordings.forget(session);
        self.close_everywhere(session, 0);
        self.finish(session);
    }

    /// Stages pass a close on, but one of them may be the reason for it; so each is told.
    fn close_everywhere(&mut self, session: SessionId, end: u32) {
        let Some(running) = self.running.get(&session) else { return };
        for hop in &running.hops {
            let to = NodeId(hop.node);
            if self.members.contains_key(&to) {
                let message = Message::Close(Close { end, ..Close::abrupt(session) });
                self.actions.push(Action::Send { to, message });
            }
        }
    }

    fn finish(&mut self, session: SessionId) {
        let Some(running) = self.running.remove(&session) else { return };
        self.tabs.end(session, true);
        if self.drafts().model {
            self.actions.push(Action::Follow(drafter::Command::Close(session)));
        }
        for hop in &running.hops {
            if let Some(member) = self.members.get_mut(&NodeId(hop.node)) {
                member.release(running.reserved);
            }
        }
    }
}

fn answer(submission: Submission, outcome: Result<Generation, Refusal>) {
    // A client that no longer waits needs no answer.
    let _ = submission.reply.send(outcome);
}

fn new_session() -> SessionId {
    // A clock before 1970 makes all sessions equally old.
    let age = std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_millis() as u64);
    SessionId(u128::from(age) << 64 | random() & u128::from(u64::MAX))
}

fn random() -> u128 {
    rand::random()
}
