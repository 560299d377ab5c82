//! Replies under way: opened on a route, fed to their clients, ended or broken off.

use kernels::backend::PAGE;
use tokio::{sync::mpsc, time::Instant};
use transport::NodeId;

use super::{Action, State, Waiting, random, resume::Loss};
use crate::{
    audit::store::ReceiptId,
    message::{Close, Draft, Failed, FailedReason, Hop, Message, Open, RouteId, SessionId, TokenReport},
    request::{Event, Failure, Generation, Request, Submission},
    speculation::drafter,
    swarm::tabs::Fare,
};

/// A reply, whatever route it is on.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) request: Request,
    /// Tokens that the client was told, over all routes.
    pub(super) said: Vec<u32>,
    pub(super) deadline: Instant,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) receipt: Option<ReceiptId>,
    /// How it came to break off before.
    pub(super) losses: Vec<Loss>,
}

impl Reply {
    /// Tokens that a route takes in at once, and those that may follow.
    pub(super) fn tokens(&self) -> (u32, u32) {
        let said = self.said.len() as u32;
        (self.request.prompt.len() as u32 + said, self.request.max_tokens.saturating_sub(said))
    }

    /// The channel holds every event a reply can have, so a slow client never blocks and never loses
    /// one; a closed channel is the client's own doing.
    pub(super) fn tell(&self, event: Event) {
        let _ = self.events.try_send(event);
    }
}

/// A reply being generated.
#[derive(Debug)]
pub(super) struct Running {
    reply: Reply,
    route: RouteId,
    pub(super) hops: Vec<Hop>,
    /// Positions that its nodes' pages were promised for.
    reserved: u32,
    /// Tokens of the reply that were drawn on this route, also those that the client had before.
    pub(super) drawn: u32,
    /// When the first of them was.
    pub(super) first: Option<Instant>,
}

impl Running {
    fn node(&self, stage: usize) -> NodeId {
        NodeId(self.hops[stage].node)
    }

    fn last(&self) -> NodeId {
        self.node(self.hops.len() - 1)
    }

    pub(super) fn uses(&self, node: NodeId) -> bool {
        self.hops.iter().any(|hop| hop.node == *node.as_bytes())
    }

    pub(super) fn deadline(&self) -> Instant {
        self.reply.deadline
    }

    /// How often it broke off.
    pub(super) fn losses(&self) -> usize {
        self.reply.losses.len()
    }

    /// Positions that it has come to on this route.
    fn positions(&self) -> u32 {
        self.reply.request.prompt.len() as u32 + self.drawn
    }
}

impl State {
    pub(super) fn begin(&mut self, waiting: Waiting, hops: Vec<Hop>, reserved: u32, fare: Option<Fare>) {
        let Waiting { submission: Submission { request, reply: answer }, deadline } = waiting;
        let (events, receiver) = mpsc::channel(request.max_tokens as usize + 2);
        self.replies.asked(request.prompt.len() as u32);
        let (said, receipt, losses) = (Vec::new(), None, Vec::new());
        let mut reply = Reply { request, said, deadline, events, receipt, losses };
        // A clock before 1970 makes all sessions equally old.
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_millis() as u64);
        let open = self.opening(session_of(now), hops, &reply, fare);
        reply.receipt = self.recordings.begin(&open, reply.request.tenant, None);
        let (receipt, price) = (reply.receipt.clone(), fare.map_or(0, |fare| fare.price));
        if answer.send(Ok(Generation { events: receiver, receipt, price })).is_err() {
            return self.recordings.forget(open.session);
        }
        self.launch(open, reply, reserved, fare);
    }

    /// Opens a session.
    pub(super) fn launch(&mut self, open: Open, reply: Reply, reserved: u32, fare: Option<Fare>) {
        let (session, route, hops) = (open.session, open.route, open.hops.clone());
        for hop in &hops {
            if let Some(member) = self.members.get_mut(&NodeId(hop.node)) {
                member.reserve(reserved);
            }
        }
        if self.drafts().model {
            self.actions.push(Action::Follow(drafter::Command::open(session, &reply.request)));
        }
        let running = Running { reply, route, hops, reserved, drawn: 0, first: None };
        let (prompt, left) = running.reply.tokens();
        self.tabs.begin(session, fare, prompt, left, running.last());
        self.actions.push(Action::Watch { session, events: running.reply.events.clone() });
        let message = Message::Open(Box::new(open));
        self.actions.push(Action::Send { to: running.node(0), message });
        self.running.insert(session, running);
    }

    /// Sessions over the same stages share a route, and so their steps.
    pub(super) fn route(&mut self, hops: &[Hop]) -> RouteId {
        if let Some((id, _)) = self.routes.iter().find(|(_, known)| known == hops) {
            return *id;
        }
        let id = RouteId(random());
        self.routes.push((id, hops.to_vec()));
        id
    }

    pub(super) fn tokens(&mut self, peer: NodeId, tokens: Vec<TokenReport>, now: Instant) {
        let mut accepted: Vec<(SessionId, Vec<u32>)> = Vec::new();
        for report in tokens {
            let Some(running) = self.running.get_mut(&report.session) else {
                self.tabs.late(peer, report.session);
                continue;
            };
            if running.last() != peer || running.drawn >= running.reply.request.max_tokens {
                let reason = "sent tokens of a session it is not the last stage of, or too many".into();
                return self.actions.push(Action::Expel { peer, reason });
            }
            match accepted.last_mut().filter(|(session, _)| *session == report.session) {
                Some((_, tokens)) => tokens.push(report.token),
                None => accepted.push((report.session, vec![report.token])),
            }
            running.drawn += 1;
            running.first.get_or_insert(now);
            if running.positions() > running.reserved {
                running.reserved += PAGE as u32;
                for hop in &running.hops {
                    if let Some(member) = self.members.get_mut(&NodeId(hop.node)) {
                        member.grow();
                    }
                }
            }
            self.recordings.token(report.session, report.token);
            self.token(report, now);
        }
        if self.drafts().model {
            let told = |(session, tokens)| Action::Follow(drafter::Command::Accepted { session, tokens });
            self.actions.extend(accepted.into_iter().map(told));
        }
        self.admit();
    }

    /// Tells the client of a token, unless it was told before.
    fn token(&mut self, report: TokenReport, now: Instant) {
        let TokenReport { session, token, logprobs, finish } = report;
        let Some(running) = self.running.get_mut(&session) else { return };
        if let Some(&said) = running.reply.said.get(running.drawn as usize - 1) {
            if said != token || finish.is_some() {
                let position = running.positions() - 1;
                self.break_off(session, Failure::Contradicted { position });
            }
            return;
        }
        running.reply.said.push(token);
        running.reply.tell(Event::Token { token, logprobs });
        self.tabs.token(session);
        let Some(finish) = finish else { return };
        running.reply.tell(Event::Finished(finish));
        // The first stage learns of the end by itself, but perhaps after the next session's
        // opening; told by the same link, it frees this one's room before.
        let end = self.recordings.end(session, Some(finish));
        let close = Message::Close(Close { end, ..Close::abrupt(session) });
        self.actions.push(Action::Send { to: running.node(0), message: close });
        self.replies.ended(running.drawn);
        self.tabs.end(session, false);
        if let Some(ended) = self.finish(session) {
            self.replied(&ended, now);
        }
    }

    /// The draft model says how a reply may go on.
    pub(in crate::swarm) fn drafted(&mut self, draft: Draft) {
        if let Some(running) = self.running.get(&draft.session) {
            let to = running.node(0);
            self.actions.push(Action::Send { to, message: Message::Draft(draft) });
        }
    }

    pub(super) fn failed(&mut self, peer: NodeId, failed: Failed) {
        let Some(running) = self.running.get(&failed.session) else { return };
        if !running.uses(peer) {
            let reason = "reported a session it has no part in".into();
            return self.actions.push(Action::Expel { peer, reason });
        }
        // What no node takes from the beginning is not tried on another.
        let accepted = running.drawn > 0 || !running.reply.losses.is_empty();
        let (failure, loss) = match failed.reason {
            FailedReason::Refused(reason) => {
                let loss = accepted.then_some(Loss { node: peer, by: peer });
                (Failure::Refused { node: peer.short(), reason }, loss)
            }
            FailedReason::Fault { position, layer, operation } => {
                (Failure::Fault { position, layer, operation: format!("{operation:?}") }, None)
            }
            FailedReason::Unpaid(unpaid) => {
                self.tabs.recount(peer);
                (Failure::Unpaid { node: peer.short(), unpaid }, None)
            }
            FailedReason::PeerLost { node, reason } => {
                let node = NodeId(node);
                (Failure::NodeLost { node: node.short(), reason }, Some(Loss { node, by: peer }))
            }
            FailedReason::Contradicted { position } => (Failure::Contradicted { position }, None),
        };
        match loss {
            Some(loss) => self.interrupt(failed.session, failure, loss),
            None => self.break_off(failed.session, failure),
        }
        self.admit();
    }

    /// Tells the client that the reply broke off, and every stage to forget it.
    pub(super) fn break_off(&mut self, session: SessionId, failure: Failure) {
        self.recordings.forget(session);
        if let Some(reply) = self.give_back(session, &failure) {
            reply.tell(Event::Failed(failure));
        }
    }

    /// Has every stage forget a session that broke off; the reply.
    pub(super) fn give_back(&mut self, session: SessionId, failure: &Failure) -> Option<Reply> {
        if let (Some(running), Failure::NodeLost { .. }) = (self.running.get(&session), failure) {
            // Steps of the route may be lost, and with them its first stage's count of what is on its way.
            let route = running.route;
            self.routes.retain(|(id, _)| *id != route);
        }
        self.close_everywhere(session, 0);
        self.finish(session).map(|running| running.reply)
    }

    /// Stages pass a close on, but one of them may be the reason for it; so each is told.
    pub(super) fn close_everywhere(&mut self, session: SessionId, end: u32) {
        let Some(running) = self.running.get(&session) else { return };
        for hop in &running.hops {
            let to = NodeId(hop.node);
            if self.members.contains_key(&to) {
                let message = Message::Close(Close { end, ..Close::abrupt(session) });
                self.actions.push(Action::Send { to, message });
            }
        }
    }

    /// A session is over; what it was.
    pub(super) fn finish(&mut self, session: SessionId) -> Option<Running> {
        let running = self.running.remove(&session)?;
        self.tabs.end(session, true);
        if self.drafts().model {
            self.actions.push(Action::Follow(drafter::Command::Close(session)));
        }
        for hop in &running.hops {
            if let Some(member) = self.members.get_mut(&NodeId(hop.node)) {
                member.release(running.reserved);
            }
        }
        Some(running)
    }
}

/// A new session that began at `age`, in milliseconds since 1970.
pub(super) fn session_of(age: u64) -> SessionId {
    SessionId(u128::from(age) << 64 | random() & u128::from(u64::MAX))
}

/// When a session began.
pub(super) fn age_of(session: SessionId) -> u64 {
    (session.0 >> 64) as u64
}
