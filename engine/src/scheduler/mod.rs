//! What the first stage of a route runs next: continuous batching at step granularity. Pure: no I/O;
//! fed with sessions, answers and the time, asked for steps.
//!
//! Sessions that decode are dealt to as many steps as keep the stages busy; prompts fill what a step has
//! left. A session sends known rows, then drafted ones if it has any; the
//! last stage says which draws stand, and whatever was sent after one that does not is sent again.

mod dealing;
mod flows;
mod guess;
mod sequence;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    message::{BlockHash, Draft, Draws, Held, MAX_SEGMENTS, Segment, SessionId},
    speculation::{clock::RingClock, controller::Source},
};
use dealing::Dealing;
use flows::Flows;
pub use guess::{Memories, Owner};
pub use sequence::Opening;
use sequence::Sequence;

/// Fewest prompt rows worth a step of their own, where there are as many.
const LEAST_CHUNK: usize = 32;

/// Bounds of a route's steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerLimits {
    /// Most rows of one step.
    pub rows: usize,
    /// Most prompt rows of a step in which replies wait.
    pub chunk: usize,
    /// Most steps on their way at once.
    pub in_flight: usize,
    /// Stages of the route.
    pub stages: usize,
}

/// A step ready to run: segments and the token of each row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedStep {
    /// Number of the step.
    pub number: u64,
    /// The segments in order.
    pub segments: Vec<Segment>,
    /// Token ids of all rows in order.
    pub tokens: Vec<u32>,
}

/// What became of guesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tokens guessed and sent along.
    pub offered: u64,
    /// How many of them were drawn.
    pub accepted: u64,
}

impl Tally {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self { offered: self.offered + other.offered, accepted: self.accepted + other.accepted }
    }
}

/// A step on its way.
#[derive(Clone, Copy, Debug)]
struct Flight {
    number: u64,
    sent: Instant,
    rows: u32,
    sessions: u32,
    /// Whether it has replies' rows alone, and nothing that waits for an answer before its own.
    regular: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    sequences: VecDeque<Sequence>,
    flows: Flows,
    in_flight: Vec<Flight>,
    /// When a session that waits for pages is tried again, though no other has ended.
    retry: Option<Instant>,
    clock: RingClock,
    /// Shared by the node's routes.
    memories: Arc<Mutex<Memories>>,
    /// When the last answer came.
    answered: Option<Instant>,
    drafted: Tally,
    dealing: Dealing,
}

/// Wait before that, if every session of the route waits for pages (another route has them), and if not.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_BESIDE: Duration = Duration::from_millis(500);

impl Scheduler {
    /// An idle scheduler.
    pub fn new(limits: SchedulerLimits, memories: Arc<Mutex<Memories>>) -> Self {
        Self {
            limits,
            sequences: VecDeque::new(),
            flows: Flows::default(),
            in_flight: Vec::new(),
            retry: None,
            clock: RingClock::new(),
            memories,
            answered: None,
            drafted: Tally::default(),
            dealing: Dealing::new(limits.stages),
        }
    }

    /// Adds a session. Nothing of it is sent before [`Scheduler::opened`].
    pub fn open(&mut self, opening: Opening) {
        self.flows.enter(opening.flow);
        let sequence = Sequence::new(opening, &lock(&self.memories));
        self.sequences.push_back(sequence);
    }

    /// This stage has opened a session and holds its first `positions` positions already.
    pub fn opened(&mut self, session: SessionId, positions: u32) {
        if let Some(sequence) = self.find(session) {
            sequence.opened(positions);
        }
    }

    /// Forgets a session; rows of it that are on their way do no harm. Root and whole blocks of what
    /// every stage has of it.
    pub fn close(&mut self, session: SessionId) -> Vec<BlockHash> {
        let Some(place) = self.sequences.iter().position(|s| s.session == session) else {
            return Vec::new();
        };
        let Some(sequence) = self.sequences.remove(place) else { return Vec::new() };
        self.flows.leave(sequence.flow);
        sequence.remember(&mut lock(&self.memories));
        self.resume();
        sequence.into_blocks()
    }

    /// What became of guesses so far.
    pub fn drafted(&self) -> Tally {
        self.drafted
    }

    /// Whether no session is left.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Takes what became of step `number`. A session that has ended is closed by the caller, and so are those that
    /// are returned: at that position another route had drawn something else. A step that is not on its way does
    /// nothing.
    pub fn results(&mut self, number: u64, draws: &[Draws], now: Instant) -> Vec<(SessionId, u32)> {
        let place = self.in_flight.iter().position(|step| step.number == number);
        let Some(place) = place else { return Vec::new() };
        let flight = self.in_flight.swap_remove(place);
        self.time(&flight, now);
        let decoding = self.sequences.iter().filter(|sequence| sequence.decoding()).count();
        let tokens = draws.iter().map(|draws| draws.tokens.len()).sum();
        self.dealing.answered(tokens, decoding, now);
        let mut contradicted = Vec::new();
        for draws in draws {
            let sequence = self.sequences.iter_mut().find(|sequence| sequence.session == draws.session);
            if let Some(sequence) = sequence {
                let tally = sequence.drawn(number, draws, &self.clock, now);
                self.drafted = self.drafted.plus(tally);
                contradicted.extend(sequence.contradicted.map(|position| (sequence.session, position)));
            }
        }
        contradicted
    }

    /// Takes the time of a step that was answered.
    fn time(&mut self, flight: &Flight, now: Instant) {
        if flight.regular {
            self.clock.observe(flight.rows, flight.sessions, now - flight.sent);
            if let Some(before) = self.answered.filter(|&before| before > flight.sent) {
                self.clock.observe_gap(flight.rows, now - before);
            }
        }
        self.answered = Some(now);
    }

    /// A stage has lost positions of a session: they are sent again. `next` is the number of the next step.
    pub fn held(&mut self, held: &Held, next: u64, now: Instant) {
        if let Some(sequence) = self.find(held.session) {
            sequence.cut(held.positions, held.number, next, held.preempted);
            self.arm(now);
        }
    }

    /// Sets the time at which a session that waits for pages is tried again.
    fn arm(&mut self, now: Instant) {
        let stalled = self.sequences.iter().filter(|sequence| sequence.stalled).count();
        let wait = if stalled == self.sequences.len() { RETRY } else { RETRY_BESIDE };
        self.retry = (stalled > 0).then(|| self.retry.unwrap_or(now + wait).min(now + wait));
    }

    /// When [`Scheduler::next_step`] may have a step without anything happening before.
    pub fn wake(&self) -> Option<Instant> {
        self.sequences.iter().filter_map(Sequence::waits).chain(self.retry).min()
    }

    /// The draft model's guesses at a session's tokens.
    pub fn draft(&mut self, draft: &Draft, now: Instant) {
        if let Some(sequence) = self.find(draft.session) {
            sequence.hear(draft, now);
        }
    }

    /// The next step, if one should start. `number` is one that no step of the route ever had.
    pub fn next_step(&mut self, number: u64, now: Instant) -> Option<PlannedStep> {
        if self.retry.take_if(|at| *at <= now).is_some() {
            self.resume();
            self.arm(now);
        }
        self.sequences.iter_mut().for_each(|sequence| sequence.expire(now));
        if self.in_flight.len() >= self.limits.in_flight {
            return None;
        }
        let mut step = PlannedStep { number, segments: Vec::new(), tokens: Vec::new() };
        let turns = self.turns();
        let decoding = self.sequences.iter().filter(|sequence| sequence.decoding()).count();
        let share = decoding.div_ceil(self.dealing.groups());
        self.replies(&turns, share, &mut step, now);
        let regular = step.segments.iter().all(|segment| segment.drafted < segment.rows);
        let replies = step.segments.len();
        self.prompts(&turns, decoding > 0, &mut step, now);
        if step.segments.is_empty() {
            return None;
        }
        self.in_flight.push(Flight {
            number,
            sent: now,
            rows: step.tokens.len() as u32,
            sessions: replies as u32,
            regular: regular && replies == step.segments.len(),
        });
        Some(step)
    }

    /// Sequences in the order of their turn: the flow that has had the fewest rows first, then whoever
    /// came first.
    fn turns(&self) -> Vec<usize> {
        let mut turns: Vec<usize> = (0..self.sequences.len()).collect();
        turns.sort_by_key(|&index| self.flows.served(self.sequences[index].flow));
        turns
    }

    /// Rows of replies, for `share` sessions. Fewer wait for the others, unless there is nothing to wait
    /// for: sessions that each went their own way would read every weight for one row.
    fn replies(&mut self, turns: &[usize], share: usize, step: &mut PlannedStep, now: Instant) {
        let ready = |sequence: &Sequence| sequence.decoding() && sequence.ready() > 0;
        let waiting = self.sequences.iter().filter(|sequence| ready(sequence)).count();
        let together = waiting >= share || self.in_flight.is_empty();
        let mut guesses = Vec::new();
        let memories = self.memories.clone();
        let memories = lock(&memories);
        for &index in turns {
            let room = self.limits.rows - step.tokens.len();
            if room == 0 || step.segments.len() >= share.min(MAX_SEGMENTS) {
                break;
            }
            let known = usize::from(ready(&self.sequences[index]));
            if known == 1 && !together {
                continue;
            }
            let sequence = &mut self.sequences[index];
            let source = sequence.guess(&self.clock, &memories, room - known, &mut guesses);
            if known == 1 || source.is_some() {
                self.send(index, room, (source.unwrap_or(Source::Model), &guesses), step, now);
            }
        }
    }

    /// Rows of prompts in what room there is.
    fn prompts(&mut self, turns: &[usize], replying: bool, step: &mut PlannedStep, now: Instant) {
        let waiting = |sequence: &Sequence| if sequence.decoding() { 0 } else { sequence.ready() };
        let rows: usize = self.sequences.iter().map(waiting).sum();
        let budget = match replying {
            true => self.limits.chunk,
            false => rows.div_ceil(self.limits.stages).max(LEAST_CHUNK),
        };
        let mut room = budget.min(self.limits.rows - step.tokens.len());
        for &index in turns {
            if room == 0 || step.segments.len() == MAX_SEGMENTS {
                break;
            }
            if waiting(&self.sequences[index]) > 0 {
                room -= self.send(index, room, (Source::Model, &[]), step, now);
            }
        }
    }

    /// Appends rows of a sequence; returns how many.
    fn send(
        &mut self,
        index: usize,
        rows: usize,
        guesses: (Source, &[u32]),
        step: &mut PlannedStep,
        now: Instant,
    ) -> usize {
        let sequence = &mut self.sequences[index];
        let segment = sequence.send(step.number, rows, guesses, &mut step.tokens, now);
        let Some(segment) = segment else { return 0 };
        let rows = segment.rows as usize;
        self.flows.charge(sequence.flow, rows);
        step.segments.push(segment);
        rows
    }

    /// Lets the session that has waited longest for pages go on.
    fn resume(&mut self) {
        if let Some(sequence) = self.sequences.iter_mut().find(|sequence| sequence.stalled) {
            sequence.stalled = false;
        }
    }

    fn find(&mut self, session: SessionId) -> Option<&mut Sequence> {
        self.sequences.iter_mut().find(|sequence| sequence.session == session)
    }
}

fn lock(memories: &Mutex<Memories>) -> MutexGuard<'_, Memories> {
    memories.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
