//! What a node knows and decides: sessions, routes and the steps of those it heads. Pure: events
//! go in, actions come out; sockets and the device are the business of its surroundings.

mod hold;
mod pay;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex},
    time::Instant,
};

use bytes::Bytes;
use transport::NodeId;

mod route;

use self::pay::Accounts;
use super::worker::{self, Command, Output, Reply};
use crate::{
    audit::{
        commitment::Committed,
        plan::{Terms, prompt_hash},
        recorder::{Outgoing, Place},
    },
    message::{
        BlockHash, Close, Draft, Draws, Failed, FailedReason, Held, MAX_SEGMENTS, Message, Open, Results,
        RouteId, SessionId, Step, TokenReport, clip,
    },
    model::Shard,
    payment::till,
    scheduler::{Memories, Opening, Scheduler, Tally},
};
use route::{Route, send_to};

/// Steps that may wait for this stage, over all routes; honest first stages send far fewer.
const MAX_WAITING_STEPS: usize = 256;
/// Routes without a session that are kept, because steps of theirs may still be on their way.
const MAX_IDLE_ROUTES: usize = 64;
/// Steps at this stage before the first stage of a route adds one: the one that runs, and one to go on
/// with at once. More would only take rows from the steps after them.
const STEPS_AHEAD: usize = 2;

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
    /// Hand a command to the till.
    Till(till::Command),
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
    /// Longest session in positions.
    pub positions: u32,
    /// Most prompt rows of a step in which replies wait.
    pub chunk: usize,
}

/// See the module.
#[derive(Debug)]
pub struct State {
    identity: Identity,
    /// The route of each session.
    sessions: HashMap<SessionId, RouteId>,
    routes: HashMap<RouteId, Route>,
    /// The routes this node is the first stage of, in the order of their turn.
    heads: VecDeque<RouteId>,
    /// Steps handed to the worker and not yet reported.
    waiting: usize,
    /// Those of them that this node is the first stage of.
    own: HashSet<(RouteId, u64)>,
    /// Steps begun on any route, so that each has its own number.
    steps: u64,
    memories: Arc<Mutex<Memories>>,
    /// What became of guesses on routes that are gone.
    drafted: Tally,
    /// Of a node that serves for pay.
    accounts: Option<Accounts>,
    actions: Vec<Action>,
}

impl State {
    /// A node without sessions.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            sessions: HashMap::new(),
            routes: HashMap::new(),
            heads: VecDeque::new(),
            waiting: 0,
            own: HashSet::new(),
            memories: Arc::default(),
            steps: 0,
            drafted: Tally::default(),
            accounts: None,
            actions: Vec::new(),
        }
    }

    /// Sessions open now.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// What became of guesses on the routes this node heads.
    pub fn drafted(&self) -> Tally {
        let schedulers = self.routes.values().filter_map(|route| route.scheduler.as_ref());
        schedulers.map(Scheduler::drafted).fold(self.drafted, Tally::plus)
    }

    /// What is to be done since the last call, in order.
    pub fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// A peer said something.
    pub fn receive(&mut self, from: NodeId, message: Message, now: Instant) {
        match message {
            Message::Open(open) => self.open(from, *open),
            Message::Close(close) => self.close_asked(from, close),
            Message::Step(step) => self.step(from, step),
            Message::Results(results) => self.results(from, results, now),
            Message::Held(held) => self.held(from, &held, now),
            Message::Draft(draft) => self.draft(from, &draft, now),
            Message::Committed(committed) => self.heard(from, committed),
            other => self.money(from, other),
        }
        self.pump(now);
    }

    /// The worker reports.
    pub fn worked(&mut self, output: Output, now: Instant) {
        match output {
            Output::Opened { session, held } => {
                if let Some(scheduler) = self.scheduler_of(session) {
                    scheduler.opened(session, held);
                }
            }
            Output::Rows(step) => {
                let Some(route) = self.reported(&step) else { return };
                if let Some(next) = route.next() {
                    let action = send_to(next, Message::Step(step));
                    self.actions.push(action);
                }
            }
            Output::Drawn { step, draws, reports } => self.drawn(&step, draws, reports, now),
            Output::Held(held) => match self.routes.get(&held.route) {
                Some(route) if route.stage > 0 => {
                    let action = send_to(&route.hops[0], Message::Held(held));
                    self.actions.push(action);
                }
                Some(_) => self.apply_held(&held, now),
                None => {}
            },
            Output::Failed(failed) => self.fail(failed),
            Output::Committed(Outgoing { to, address, committed }) => {
                let message = Message::Committed(Box::new(committed));
                self.actions.push(Action::Send { to, address, message });
            }
            Output::Refused { step, error } => self.refused(&step, &error.to_string(), now),
        }
        self.pump(now);
    }

    /// A step broke the rules; nothing of it was computed.
    fn refused(&mut self, step: &Step, error: &str, now: Instant) {
        let Some(route) = self.reported(step) else { return };
        match route.previous() {
            Some(sender) => {
                self.expel(sender, format!("sent a step that breaks the rules: {error}"));
                self.lost(sender, error);
            }
            // This node made the step, of tokens it was given: those sessions cannot go on.
            None => {
                for segment in &step.segments {
                    let reason = FailedReason::Refused(clip(error));
                    self.fail(Failed { session: segment.session, reason });
                }
                let results = Results { route: step.route, number: step.number, draws: Vec::new() };
                self.apply_results(&results, now);
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
        self.forget_routes(affected);
    }

    fn open(&mut self, from: NodeId, mut open: Open) {
        let stage = match self.check_open(from, &open) {
            Ok(stage) => stage,
            Err(OpenRefused::Forged(reason)) => return self.expel(from, reason.into()),
            Err(OpenRefused::Unservable(reason)) => {
                let failed = Failed { session: open.session, reason };
                let to = NodeId(open.gateway);
                self.actions.push(Action::Send { to, address: None, message: Message::Failed(failed) });
                return;
            }
        };
        let (session, route_id) = (open.session, open.route);
        let gateway = NodeId(open.gateway);
        let limits = self.limits(&open);
        self.forget_idle_routes();
        if stage == 0 && !self.routes.contains_key(&route_id) {
            self.heads.push_back(route_id);
        }
        let route = self.routes.entry(route_id).or_insert_with(|| Route {
            hops: open.hops.clone(),
            stage,
            gateway,
            sessions: HashSet::new(),
            scheduler: (stage == 0).then(|| Scheduler::new(limits, self.memories.clone())),
        });
        route.sessions.insert(session);
        self.sessions.insert(session, route_id);
        if let Some(accounts) = &mut self.accounts {
            accounts.open(session, &open);
        }

        let keep_prompt = open.sampling.repetition_penalty != 1.0 && !route.is_last();
        let prompt = if keep_prompt { open.prompt.clone() } else { std::mem::take(&mut open.prompt) };
        let begun = std::mem::take(&mut open.begun);
        let reply = route.is_last().then(|| Reply {
            sampling: open.sampling.clone(),
            prompt: prompt.clone(),
            stop_tokens: open.stop_tokens.clone(),
            max_tokens: open.max_tokens,
        });
        if let Some(scheduler) = &mut route.scheduler {
            scheduler.open(Opening {
                session,
                prompt,
                begun,
                max_tokens: open.max_tokens,
                blocks: open.blocks.clone(),
                flow: (open.tenant, open.priority),
                owner: (gateway, open.tenant),
                drafts: open.drafts,
            });
        }
        let place = Place::of(&open, stage);
        self.actions.push(Action::Work(Command::Open(worker::Opening {
            session,
            route: route_id,
            positions: open.positions(),
            prompt_length: open.prompt_length,
            blocks: open.blocks.clone(),
            reply,
            place,
        })));
        if let Some(next) = route.next() {
            let action = send_to(next, Message::Open(Box::new(open)));
            self.actions.push(action);
        }
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
        let servable = self.servable(stage, open).map_err(|reason| FailedReason::Refused(clip(&reason)));
        let paid = || self.accounts.as_ref().map_or(Ok(()), |accounts| accounts.check(open));
        servable.and_then(|()| paid()).map_err(OpenRefused::Unservable)?;
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
        let hashed = |terms: &Terms| terms.prompt_hash == prompt_hash(&terms.salt, &open.prompt);
        if stage == 0 && !open.terms.as_ref().is_none_or(hashed) {
            return Err("the prompt is another than the one agreed on".into());
        }
        if self.sessions.len() >= self.identity.sessions {
            return Err(format!("this node already serves {} sessions", self.identity.sessions));
        }
        if open.positions() > self.identity.positions {
            return Err(format!(
                "the session can reach {} positions, and this node serves {}",
                open.positions(),
                self.identity.positions
            ));
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
            self.forget_routes(idle);
        }
    }

    fn forget_routes(&mut self, which: impl Fn(&Route) -> bool) {
        self.routes.retain(|_, route| {
            let forgotten = which(route);
            if let Some(scheduler) = route.scheduler.as_ref().filter(|_| forgotten) {
                self.drafted = self.drafted.plus(scheduler.drafted());
            }
            !forgotten
        });
        self.heads.retain(|route| self.routes.contains_key(route));
    }

    fn close_asked(&mut self, from: NodeId, close: Close) {
        let Some(route) = self.route_of(close.session) else { return };
        if route.gateway == from || route.previous() == Some(from) {
            self.close(close.session, close.keep, close.end);
        }
    }

    /// The route of an open session; a route outlives its sessions.
    fn route_of(&self, session: SessionId) -> Option<&Route> {
        self.routes.get(self.sessions.get(&session)?)
    }

    fn scheduler_of(&mut self, session: SessionId) -> Option<&mut Scheduler> {
        self.routes.get_mut(self.sessions.get(&session)?)?.scheduler.as_mut()
    }

    /// Ends a session here and tells the next stage. What of it may be kept, the first stage knows; the
    /// others are told.
    fn close(&mut self, session: SessionId, keep: Vec<BlockHash>, end: u32) {
        let Some(route) = self.sessions.remove(&session) else { return };
        if let Some(accounts) = &mut self.accounts {
            accounts.close(session);
        }
        let Some(route) = self.routes.get_mut(&route) else { return };
        route.sessions.remove(&session);
        let keep = route.scheduler.as_mut().map_or(keep, |scheduler| scheduler.close(session));
        let close = Close { session, keep, end };
        if let Some(next) = route.next() {
            self.actions.push(send_to(next, Message::Close(close.clone())));
        }
        self.actions.push(Action::Work(Command::Close(close)));
    }

    /// Tells the gateway that a session cannot go on, and ends it here.
    fn fail(&mut self, failed: Failed) {
        let session = failed.session;
        let Some(to) = self.route_of(session).map(|route| route.gateway) else { return };
        let action = Action::Send { to, address: None, message: Message::Failed(failed) };
        self.actions.push(action);
        self.close(session, Vec::new(), 0);
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
        self.count(&step.segments);
        self.actions.push(Action::Work(Command::Step { step, shard }));
    }

    /// Counts a step that the worker is done with.
    fn reported(&mut self, step: &Step) -> Option<&Route> {
        self.waiting = self.waiting.saturating_sub(1);
        self.own.remove(&(step.route, step.number));
        self.routes.get(&step.route)
    }

    fn drawn(&mut self, step: &Step, draws: Vec<Draws>, mut reports: Vec<TokenReport>, now: Instant) {
        let Some(route) = self.reported(step) else { return };
        let (gateway, first, alone) = (route.gateway, route.hops[0].clone(), route.stage == 0);
        while !reports.is_empty() {
            let rest = reports.split_off(reports.len().min(MAX_SEGMENTS));
            let message = Message::Tokens(std::mem::replace(&mut reports, rest));
            self.actions.push(Action::Send { to: gateway, address: None, message });
        }
        let results = Results { route: step.route, number: step.number, draws };
        if alone {
            self.apply_results(&results, now);
        } else {
            self.actions.push(send_to(&first, Message::Results(results)));
        }
    }

    fn results(&mut self, from: NodeId, results: Results, now: Instant) {
        let Some(route) = self.routes.get(&results.route) else { return };
        let last = route.hops.last().map(|hop| NodeId(hop.node));
        if route.stage != 0 || last != Some(from) {
            return self.expel(from, "sent results for a route it is not the last stage of".into());
        }
        let mut tokens = results.draws.iter().flat_map(|draws| &draws.tokens);
        if tokens.any(|&token| token as usize >= self.identity.vocabulary) {
            return self.expel(from, "sent a token outside the vocabulary".into());
        }
        self.apply_results(&results, now);
    }

    fn apply_results(&mut self, results: &Results, now: Instant) {
        let Some(route) = self.routes.get_mut(&results.route) else { return };
        let scheduler = route.scheduler.as_mut();
        let contradicted = scheduler.map(|scheduler| scheduler.results(results.number, &results.draws, now));
        let own = |draws: &&Draws| draws.ended && route.sessions.contains(&draws.session);
        let ended: Vec<&Draws> = results.draws.iter().filter(own).collect();
        for draws in ended {
            // The last token was drawn from the row before it, and has none itself.
            let tokens = draws.position.saturating_add(draws.tokens.len() as u32);
            self.close(draws.session, Vec::new(), tokens.saturating_sub(1));
        }
        for (session, position) in contradicted.into_iter().flatten() {
            self.fail(Failed { session, reason: FailedReason::Contradicted { position } });
        }
    }

    /// A later stage has lost positions of a session.
    fn held(&mut self, from: NodeId, held: &Held, now: Instant) {
        let Some(route) = self.routes.get(&held.route) else { return };
        if route.stage != 0 || !route.hops.iter().any(|hop| NodeId(hop.node) == from) {
            return self.expel(from, "spoke of a route it has no part in".into());
        }
        self.apply_held(held, now);
    }

    fn apply_held(&mut self, held: &Held, now: Instant) {
        let next = self.steps;
        let scheduler = self.routes.get_mut(&held.route).and_then(|route| route.scheduler.as_mut());
        if let Some(scheduler) = scheduler {
            scheduler.held(held, next, now);
        }
    }

    /// A stage signed what it sent here; the session may be over already, and its route forgotten.
    fn heard(&mut self, from: NodeId, committed: Box<Committed>) {
        if self.routes.values().any(|route| route.previous() == Some(from)) {
            self.actions.push(Action::Work(Command::Heard { from, committed }));
        }
    }

    fn draft(&mut self, from: NodeId, draft: &Draft, now: Instant) {
        if self.route_of(draft.session).is_some_and(|route| route.gateway != from) {
            return self.expel(from, "sent a draft for another gateway's session".into());
        }
        if draft.tokens.iter().any(|&token| token as usize >= self.identity.vocabulary) {
            return self.expel(from, "sent a token outside the vocabulary".into());
        }
        if let Some(scheduler) = self.scheduler_of(draft.session) {
            scheduler.draft(draft, now);
        }
    }

    /// When [`State::wake`] has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        let schedulers = self.routes.values().filter_map(|route| route.scheduler.as_ref());
        schedulers.filter(|_| self.own.len() < STEPS_AHEAD).filter_map(Scheduler::wake).min()
    }

    /// The time has come that [`State::next_wake`] told.
    pub fn wake(&mut self, now: Instant) {
        self.pump(now);
    }

    /// Starts the steps that should start on the routes this node heads, in turn.
    fn pump(&mut self, now: Instant) {
        let mut idle = 0;
        while self.own.len() < STEPS_AHEAD && idle < self.heads.len() {
            self.heads.rotate_left(1);
            let Some(&route_id) = self.heads.front() else { return };
            idle = if self.start_step(route_id, now) { 0 } else { idle + 1 };
        }
    }

    fn start_step(&mut self, route_id: RouteId, now: Instant) -> bool {
        let Some(route) = self.routes.get_mut(&route_id) else { return false };
        let shard = route.shard().clone();
        let Some(scheduler) = &mut route.scheduler else { return false };
        let Some(planned) = scheduler.next_step(self.steps, now) else { return false };
        self.own.insert((route_id, self.steps));
        self.steps += 1;
        self.waiting += 1;
        self.count(&planned.segments);
        let body: Bytes = planned.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let step = Step { route: route_id, number: planned.number, segments: planned.segments, body };
        self.actions.push(Action::Work(Command::Step { step, shard }));
        true
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
    Unservable(FailedReason),
}

#[cfg(test)]
mod tests;
