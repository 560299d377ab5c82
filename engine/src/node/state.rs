//! What a node knows and decides: sessions, routes and the steps of those it heads. Pure: events
//! go in, actions come out; sockets and the device are the business of its surroundings.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use transport::NodeId;

use super::worker::{Command, Draws, Output};
use crate::{
    message::{Failed, FailedReason, Hop, Message, Open, Results, RouteId, SessionId, Step, clip},
    model::Shard,
    scheduler::{Scheduler, SchedulerLimits},
};

/// Steps that may wait for this stage, over all routes; honest first stages send far fewer.
const MAX_WAITING_STEPS: usize = 128;
/// Routes without a session that are kept, because steps of theirs may still be on their way.
const MAX_IDLE_ROUTES: usize = 64;
/// Bytes of steps that a stage may have on their way to the next one: less than a link queues.
const MAX_BYTES_IN_FLIGHT: usize = 12 << 20;

/// What the state wants done.
#[derive(Debug)]
pub enum Action {
    /// Send a message, dialling the address first if there is no link.
    Send {
        /// To whom.
        to: NodeId,
        /// Where they listen, if known.
        address: Option<String>,
        /// What.
        message: Message,
    },
    /// Hand a command to the worker.
    Work(Command),
    /// End the links with a peer that broke the rules.
    Expel {
        /// Who.
        peer: NodeId,
        /// Why, for the log and for the peer.
        reason: String,
    },
}

/// What a node is, fixed for its life.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its id.
    pub id: NodeId,
    /// Fingerprint of the model it loaded.
    pub fingerprint: [u8; 32],
    /// What it holds.
    pub shard: Shard,
    /// Gateways it serves.
    pub gateways: HashSet<NodeId>,
    /// Token ids of the model.
    pub vocabulary: usize,
    /// Bytes of one activation row on the wire.
    pub row_bytes: usize,
    /// Most rows of one step.
    pub rows: usize,
    /// Most sessions at once.
    pub sessions: usize,
    /// Most prompt rows of one session in one step.
    pub chunk: usize,
}

#[derive(Debug)]
struct Route {
    hops: Vec<Hop>,
    stage: usize,
    gateway: NodeId,
    sessions: HashSet<SessionId>,
    /// Present on the first stage.
    scheduler: Option<Scheduler>,
}

impl Route {
    fn shard(&self) -> &Shard {
        &self.hops[self.stage].shard
    }

    fn next(&self) -> Option<&Hop> {
        self.hops.get(self.stage + 1)
    }

    fn previous(&self) -> Option<NodeId> {
        self.stage.checked_sub(1).map(|stage| NodeId(self.hops[stage].node))
    }

    fn is_last(&self) -> bool {
        self.stage + 1 == self.hops.len()
    }
}

fn send_to(hop: &Hop, message: Message) -> Action {
    Action::Send { to: NodeId(hop.node), address: Some(hop.address.clone()), message }
}

/// See the module.
#[derive(Debug)]
pub struct State {
    identity: Identity,
    /// The route of each session.
    sessions: HashMap<SessionId, RouteId>,
    routes: HashMap<RouteId, Route>,
    /// Steps handed to the worker and not yet reported.
    waiting: usize,
    /// Steps begun on any route, so that each has its own number.
    steps: u64,
    actions: Vec<Action>,
}

impl State {
    /// A node without sessions.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            sessions: HashMap::new(),
            routes: HashMap::new(),
            waiting: 0,
            steps: 0,
            actions: Vec::new(),
        }
    }

    /// Sessions open now.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// What is to be done since the last call, in order.
    pub fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// A peer said something.
    pub fn receive(&mut self, from: NodeId, message: Message) {
        match message {
            Message::Open(open) => self.open(from, *open),
            Message::Close(session) => self.close_asked(from, session),
            Message::Step(step) => self.step(from, step),
            Message::Results(results) => self.results(from, results),
            other => self.expel(from, format!("sent a message that is not for a stage: {}", name(&other))),
        }
    }

    /// The worker reports.
    pub fn worked(&mut self, output: Output) {
        match output {
            Output::Rows(step) => {
                let Some(route) = self.reported(&step) else { return };
                if let Some(next) = route.next() {
                    let action = send_to(next, Message::Step(step));
                    self.actions.push(action);
                }
            }
            Output::Drawn { step, tokens } => self.drawn(step, tokens),
            Output::Failed(failed) => self.fail(failed),
            Output::Refused { step, error } => {
                let Some(route) = self.reported(&step) else { return };
                match route.previous() {
                    Some(sender) => {
                        self.expel(sender, format!("sent a step that breaks the rules: {error}"));
                        self.lost(sender, &error.to_string());
                    }
                    // This node made the step, of tokens it was given: those sessions cannot go on.
                    None => {
                        for segment in &step.segments {
                            let reason = FailedReason::Refused(clip(&error.to_string()));
                            self.fail(Failed { session: segment.session, reason });
                        }
                        self.apply_results(Results {
                            route: step.route,
                            number: step.number,
                            tokens: Vec::new(),
                        });
                    }
                }
            }
        }
    }

    /// A peer is out of reach.
    pub fn lost(&mut self, peer: NodeId, reason: &str) {
        let affected =
            |route: &Route| route.gateway == peer || route.hops.iter().any(|hop| NodeId(hop.node) == peer);
        let sessions: Vec<SessionId> =
            self.routes.values().filter(|r| affected(r)).flat_map(|r| r.sessions.iter().copied()).collect();
        for session in sessions {
            let reason = FailedReason::PeerLost { node: *peer.as_bytes(), reason: clip(reason) };
            self.fail(Failed { session, reason });
        }
        self.routes.retain(|_, route| !affected(route));
    }

    fn open(&mut self, from: NodeId, mut open: Open) {
        let stage = match self.check_open(from, &open) {
            Ok(stage) => stage,
            Err(OpenRefused::Forged(reason)) => return self.expel(from, reason.into()),
            Err(OpenRefused::Unservable(reason)) => {
                let failed = Failed { session: open.session, reason: FailedReason::Refused(clip(&reason)) };
                let to = NodeId(open.gateway);
                self.actions.push(Action::Send { to, address: None, message: Message::Failed(failed) });
                return;
            }
        };
        let (session, route_id) = (open.session, open.route);
        let gateway = NodeId(open.gateway);
        let rows = self.identity.rows.min(open.rows as usize);
        let affordable = MAX_BYTES_IN_FLIGHT / (rows * self.identity.row_bytes).max(1);
        let limits = SchedulerLimits {
            rows,
            chunk: self.identity.chunk.min(rows),
            in_flight: open.hops.len().min(affordable).max(2),
        };
        self.forget_idle_routes();
        let route = self.routes.entry(route_id).or_insert_with(|| Route {
            hops: open.hops.clone(),
            stage,
            gateway,
            sessions: HashSet::new(),
            scheduler: (stage == 0).then(|| Scheduler::new(limits)),
        });
        route.sessions.insert(session);
        self.sessions.insert(session, route_id);

        let keep_prompt = open.sampling.repetition_penalty != 1.0 && !route.is_last();
        let prompt = if keep_prompt { open.prompt.clone() } else { std::mem::take(&mut open.prompt) };
        let draws = route.is_last().then(|| Draws {
            sampling: open.sampling.clone(),
            prompt: prompt.clone(),
            stop_tokens: open.stop_tokens.clone(),
            max_tokens: open.max_tokens,
        });
        self.actions.push(Action::Work(Command::Open { session, positions: open.positions(), draws }));
        if let Some(scheduler) = &mut route.scheduler {
            scheduler.open(session, prompt);
        }
        if let Some(next) = route.next() {
            let action = send_to(next, Message::Open(Box::new(open)));
            self.actions.push(action);
        }
        self.pump(route_id);
    }

    /// The stage this node is on the route, or why it does not take the session.
    fn check_open(&self, from: NodeId, open: &Open) -> Result<usize, OpenRefused> {
        let forged = OpenRefused::Forged;
        let stage =
            open.stage_of(self.identity.id.as_bytes()).ok_or(forged("sent a session of other nodes"))?;
        let sender = match stage.checked_sub(1) {
            Some(previous) => open.hops[previous].node,
            None => open.gateway,
        };
        if *from.as_bytes() != sender {
            return Err(forged("sent a session it does not come before this node on"));
        }
        if !self.identity.gateways.contains(&NodeId(open.gateway)) || !open.is_signed() {
            return Err(forged("sent a session that no gateway of this node signed"));
        }
        self.servable(stage, open).map_err(OpenRefused::Unservable)?;
        Ok(stage)
    }

    fn servable(&self, stage: usize, open: &Open) -> Result<(), String> {
        if open.fingerprint != self.identity.fingerprint {
            return Err("the session is for another model or quantisation than this node loaded".into());
        }
        let hop = &open.hops[stage].shard;
        let held = &self.identity.shard;
        let within = hop.layers.start >= held.layers.start && hop.layers.end <= held.layers.end;
        if !(within || hop.layers.is_empty())
            || (hop.embedding && !held.embedding)
            || (hop.head && !held.head)
        {
            return Err(format!("this node does not hold layers {}..{}", hop.layers.start, hop.layers.end));
        }
        let last = stage + 1 == open.hops.len();
        if hop.embedding != (stage == 0) || hop.head != last {
            return Err("the embedding belongs to the first stage and the head to the last".into());
        }
        if stage == 0 && open.prompt.is_empty() {
            return Err("the first stage got no prompt".into());
        }
        if self.sessions.len() >= self.identity.sessions {
            return Err(format!("this node already serves {} sessions", self.identity.sessions));
        }
        if self.sessions.contains_key(&open.session) {
            return Err("the session is open already".into());
        }
        let known = self.routes.get(&open.route);
        if known.is_some_and(|route| route.hops != open.hops || route.gateway.as_bytes() != &open.gateway) {
            return Err("the route is known with other stages".into());
        }
        Ok(())
    }

    /// Makes room among the routes that wait for their last steps.
    fn forget_idle_routes(&mut self) {
        let idle = |route: &Route| route.sessions.is_empty();
        if self.routes.values().filter(|route| idle(route)).count() >= MAX_IDLE_ROUTES {
            self.routes.retain(|_, route| !idle(route));
        }
    }

    fn close_asked(&mut self, from: NodeId, session: SessionId) {
        let Some(route) = self.route_of(session) else { return };
        if route.gateway == from || route.previous() == Some(from) {
            self.close(session);
        }
    }

    /// The route of an open session; a route outlives its sessions.
    fn route_of(&self, session: SessionId) -> Option<&Route> {
        self.routes.get(self.sessions.get(&session)?)
    }

    /// Ends a session here and tells the next stage.
    fn close(&mut self, session: SessionId) {
        let Some(route) = self.sessions.remove(&session) else { return };
        self.actions.push(Action::Work(Command::Close(session)));
        let Some(route) = self.routes.get_mut(&route) else { return };
        route.sessions.remove(&session);
        if let Some(scheduler) = &mut route.scheduler {
            scheduler.close(session);
        }
        if let Some(next) = route.next() {
            let action = send_to(next, Message::Close(session));
            self.actions.push(action);
        }
    }

    /// Tells the gateway that a session cannot go on, and ends it here.
    fn fail(&mut self, failed: Failed) {
        let session = failed.session;
        let Some(to) = self.route_of(session).map(|route| route.gateway) else { return };
        let action = Action::Send { to, address: None, message: Message::Failed(failed) };
        self.actions.push(action);
        self.close(session);
    }

    fn step(&mut self, from: NodeId, step: Step) {
        // A route that is gone was closed while the step was on its way.
        let Some(route) = self.routes.get(&step.route) else { return };
        if route.previous() != Some(from) {
            return self.expel(from, "sent a step for a route it does not come before on".into());
        }
        let foreign = step
            .segments
            .iter()
            .any(|segment| self.sessions.get(&segment.session).is_some_and(|route| *route != step.route));
        let rows = step.rows();
        if foreign || rows > self.identity.rows || step.body.len() != rows * self.identity.row_bytes {
            return self.expel(from, "sent a step of another route's sessions, or of the wrong size".into());
        }
        if self.waiting >= MAX_WAITING_STEPS {
            return self.expel(from, "sent more steps than may wait".into());
        }
        let shard = route.shard().clone();
        self.waiting += 1;
        self.actions.push(Action::Work(Command::Step { step, shard }));
    }

    /// Counts a step that the worker is done with.
    fn reported(&mut self, step: &Step) -> Option<&Route> {
        self.waiting = self.waiting.saturating_sub(1);
        self.routes.get(&step.route)
    }

    fn drawn(&mut self, step: Step, tokens: Vec<crate::message::TokenReport>) {
        let Some(route) = self.reported(&step) else { return };
        let results = Results {
            route: step.route,
            number: step.number,
            tokens: tokens.iter().map(|t| (t.session, t.token, t.finish.is_some())).collect(),
        };
        let (gateway, first, alone) = (route.gateway, route.hops[0].clone(), route.stage == 0);
        if !tokens.is_empty() {
            self.actions.push(Action::Send { to: gateway, address: None, message: Message::Tokens(tokens) });
        }
        if alone {
            self.apply_results(results);
        } else {
            self.actions.push(send_to(&first, Message::Results(results)));
        }
    }

    fn results(&mut self, from: NodeId, results: Results) {
        let Some(route) = self.routes.get(&results.route) else { return };
        let last = route.hops.last().map(|hop| NodeId(hop.node));
        if route.stage != 0 || last != Some(from) {
            return self.expel(from, "sent results for a route it is not the last stage of".into());
        }
        if results.tokens.iter().any(|&(_, token, _)| token as usize >= self.identity.vocabulary) {
            return self.expel(from, "sent a token outside the vocabulary".into());
        }
        self.apply_results(results);
    }

    fn apply_results(&mut self, results: Results) {
        let Some(route) = self.routes.get_mut(&results.route) else { return };
        let own = |(session, ..): &&(SessionId, u32, bool)| route.sessions.contains(session);
        let ended: Vec<SessionId> = results.tokens.iter().filter(own).filter(|t| t.2).map(|t| t.0).collect();
        if let Some(scheduler) = &mut route.scheduler {
            scheduler.results(results.number, results.tokens.iter().filter(|t| !t.2).map(|t| (t.0, t.1)));
        }
        for session in ended {
            self.close(session);
        }
        self.pump(results.route);
    }

    /// Starts every step that can start on a route this node heads.
    fn pump(&mut self, route_id: RouteId) {
        let Some(route) = self.routes.get_mut(&route_id) else { return };
        let shard = route.shard().clone();
        let Some(scheduler) = &mut route.scheduler else { return };
        while let Some(planned) = scheduler.next_step(self.steps) {
            self.steps += 1;
            self.waiting += 1;
            let body: Bytes = planned.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
            let step = Step { route: route_id, number: planned.number, segments: planned.segments, body };
            self.actions.push(Action::Work(Command::Step { step, shard: shard.clone() }));
        }
    }

    fn expel(&mut self, peer: NodeId, reason: String) {
        self.actions.push(Action::Expel { peer, reason });
    }
}

/// Why an opening is not followed.
enum OpenRefused {
    /// Its sender had no business sending it; nobody is told.
    Forged(&'static str),
    /// The gateway asks for what this node does not do.
    Unservable(String),
}

fn name(message: &Message) -> &'static str {
    match message {
        Message::Ask(_) => "Ask",
        Message::Assign(_) => "Assign",
        Message::Join(_) => "Join",
        Message::Welcome => "Welcome",
        Message::Refuse(_) => "Refuse",
        Message::Open(_) => "Open",
        Message::Close(_) => "Close",
        Message::Step(_) => "Step",
        Message::Results(_) => "Results",
        Message::Tokens(_) => "Tokens",
        Message::Failed(_) => "Failed",
    }
}

#[cfg(test)]
mod tests;
