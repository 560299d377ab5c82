//! What the first stage of a route runs next: continuous batching at step granularity. Pure: no I/O;
//! fed with sessions, answers and the time, asked for steps.
//!
//! Sessions that decode are dealt to as many steps as the route has stages, so that every stage has work;
//! prompts fill what a step has left. A session sends known rows, then drafted ones if it has any; the
//! last stage says which draws stand, and whatever was sent after one that does not is sent again.

mod flows;
mod sequence;

use std::{collections::VecDeque, time::Instant};

use crate::message::{BlockHash, Draws, Held, MAX_SEGMENTS, Segment, SessionId};
use flows::Flows;
pub use sequence::{Opening, Verdict};
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
    /// Steps that the decoding sessions are dealt to; one per stage keeps every stage busy.
    pub groups: usize,
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

/// A step on its way.
#[derive(Clone, Copy, Debug)]
struct Flight {
    number: u64,
    rows: u32,
    sent: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    sequences: VecDeque<Sequence>,
    flows: Flows,
    in_flight: Vec<Flight>,
}

impl Scheduler {
    /// An idle scheduler.
    pub fn new(limits: SchedulerLimits) -> Self {
        Self { limits, sequences: VecDeque::new(), flows: Flows::default(), in_flight: Vec::new() }
    }

    /// Adds a session. Nothing of it is sent before [`Scheduler::opened`].
    pub fn open(&mut self, opening: Opening) {
        self.flows.enter(opening.flow);
        self.sequences.push_back(Sequence::new(opening));
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
        self.resume();
        sequence.into_blocks()
    }

    /// Whether no session is left.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Takes what became of step `number`. A session that has ended is closed by the caller. A step that is
    /// not on its way does nothing.
    pub fn results(&mut self, number: u64, draws: &[Draws], now: Instant) {
        let Some(place) = self.in_flight.iter().position(|step| step.number == number) else { return };
        let _flight = self.in_flight.swap_remove(place);
        let _ = now;
        for draws in draws {
            if let Some(sequence) = self.find(draws.session) {
                sequence.drawn(number, draws);
            }
        }
    }

    /// A stage has lost positions of a session: they are sent again. `next` is the number of the next step.
    pub fn held(&mut self, held: &Held, next: u64) {
        if let Some(sequence) = self.find(held.session) {
            sequence.cut(held.positions, held.number, next, held.preempted);
        }
        if self.sequences.iter().all(|sequence| sequence.stalled) {
            self.resume();
        }
    }

    /// Tokens that may follow in a session, the first at `position`.
    pub fn draft(&mut self, session: SessionId, position: u32, tokens: &[u32]) {
        if let Some(sequence) = self.find(session) {
            sequence.extend_draft(position as usize, tokens);
        }
    }

    /// The next step, if one should start. `number` is one that no step of the route ever had.
    pub fn next_step(&mut self, number: u64, now: Instant) -> Option<PlannedStep> {
        if self.in_flight.len() >= self.limits.in_flight {
            return None;
        }
        let mut step = PlannedStep { number, segments: Vec::new(), tokens: Vec::new() };
        let turns = self.turns();
        let decoding = self.sequences.iter().filter(|sequence| sequence.decoding()).count();
        let share = decoding.div_ceil(self.limits.groups);
        self.replies(&turns, share, &mut step);
        self.prompts(&turns, decoding > 0, &mut step);
        if step.segments.is_empty() {
            return None;
        }
        self.in_flight.push(Flight { number, rows: step.tokens.len() as u32, sent: now });
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
    fn replies(&mut self, turns: &[usize], share: usize, step: &mut PlannedStep) {
        let ready = |sequence: &Sequence| sequence.decoding() && sequence.ready() > 0;
        let waiting = self.sequences.iter().filter(|sequence| ready(sequence)).count();
        if waiting < share && !self.in_flight.is_empty() {
            return;
        }
        for &index in turns {
            let room = self.limits.rows - step.tokens.len();
            if room == 0 || step.segments.len() >= share.min(MAX_SEGMENTS) {
                break;
            }
            if ready(&self.sequences[index]) {
                self.send(index, room, room - 1, step);
            }
        }
    }

    /// Rows of prompts in what room there is.
    fn prompts(&mut self, turns: &[usize], replying: bool, step: &mut PlannedStep) {
        let waiting = |sequence: &Sequence| if sequence.decoding() { 0 } else { sequence.ready() };
        let rows: usize = self.sequences.iter().map(waiting).sum();
        let budget = match replying {
            true => self.limits.chunk,
            false => rows.div_ceil(self.limits.groups).max(LEAST_CHUNK),
        };
        let mut room = budget.min(self.limits.rows - step.tokens.len());
        for &index in turns {
            if room == 0 || step.segments.len() == MAX_SEGMENTS {
                break;
            }
            if waiting(&self.sequences[index]) > 0 {
                room -= self.send(index, room, 0, step);
            }
        }
    }

    /// Appends rows of a sequence; returns how many.
    fn send(&mut self, index: usize, rows: usize, drafted: usize, step: &mut PlannedStep) -> usize {
        let sequence = &mut self.sequences[index];
        let Some(segment) = sequence.send(step.number, rows, drafted, &mut step.tokens) else { return 0 };
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: SchedulerLimits = SchedulerLimits { rows: 8, chunk: 4, in_flight: 2 };

    fn id(n: u128) -> SessionId {
        SessionId(n)
    }

    #[test]
    fn a_prompt_goes_in_chunks_and_draws_from_its_last_row() {
        let mut scheduler = Scheduler::new(LIMITS);
        scheduler.open(id(1), (0..6).collect());
        let first = scheduler.next_step(0).unwrap();
        assert_eq!(first.segments, [Segment { session: id(1), from: 0, rows: 4, draw: false }]);
        assert_eq!(first.tokens, [0, 1, 2, 3]);
        let second = scheduler.next_step(1).unwrap();
        assert_eq!(second.segments, [Segment { session: id(1), from: 4, rows: 2, draw: true }]);
        assert_eq!(scheduler.next_step(2), None, "two steps are on their way");
        scheduler.results(0, []);
        assert_eq!(scheduler.next_step(2), None, "the token is not known yet");
        scheduler.results(7, [(id(1), 41)]);
        assert_eq!(scheduler.next_step(2), None, "no step 7 is on its way");
        scheduler.results(1, [(id(1), 42)]);
        let third = scheduler.next_step(2).unwrap();
        assert_eq!(third.segments, [Segment { session: id(1), from: 6, rows: 1, draw: true }]);
        assert_eq!(third.tokens, [42]);
    }

    #[test]
    fn replies_go_before_prompts() {
        let mut scheduler = Scheduler::new(SchedulerLimits { rows: 4, ..LIMITS });
        scheduler.open(id(1), vec![7]);
        scheduler.next_step(0).unwrap();
        scheduler.open(id(2), (0..9).collect());
        scheduler.results(0, [(id(1), 8)]);
        let step = scheduler.next_step(1).unwrap();
        assert_eq!(
            step.segments.iter().map(|s| (s.session, s.rows)).collect::<Vec<_>>(),
            [(id(1), 1), (id(2), 3)]
        );
    }

    #[test]
    fn a_closed_session_is_sent_no_more_and_late_results_do_no_harm() {
        let mut scheduler = Scheduler::new(LIMITS);
        scheduler.open(id(1), vec![7]);
        scheduler.next_step(0).unwrap();
        scheduler.close(id(1));
        scheduler.results(0, [(id(1), 8)]);
        assert!(scheduler.is_empty());
        assert_eq!(scheduler.next_step(1), None);
    }

    proptest! {
        /// Whatever the limits and the order of arrivals, every session's rows go out once, in order,
        /// and exactly its last known row draws.
        #[test]
        fn every_row_goes_out_once_in_order(
            prompts in prop::collection::vec(1usize..40, 1..8),
            rows in 1usize..20, chunk in 1usize..20, in_flight in 1usize..4, replies in 1u32..6,
        ) {
            let mut scheduler = Scheduler::new(SchedulerLimits { rows, chunk, in_flight });
            for (n, &length) in prompts.iter().enumerate() {
                scheduler.open(id(n as u128), (0..length as u32).collect());
            }
            let mut sent: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
            let mut flying = VecDeque::new();
            let mut number = 0;
            for _ in 0..10_000 {
                while let Some(step) = scheduler.next_step(number) {
                    number += 1;
                    prop_assert!(step.tokens.len() <= rows);
                    flying.push_back(step);
                    prop_assert!(flying.len() <= in_flight);
                }
                let Some(step) = flying.pop_front() else { break };
                let mut offset = 0;
                let mut drawn = Vec::new();
                for s in &step.segments {
                    let n = s.session.0 as usize;
                    prop_assert_eq!(s.from as usize, sent[n].len());
                    prop_assert!(s.rows as usize <= chunk);
                    sent[n].extend(&step.tokens[offset..offset + s.rows as usize]);
                    offset += s.rows as usize;
                    prop_assert_eq!(s.draw, sent[n].len() >= prompts[n]);
                    if s.draw {
                        drawn.push((s.session, sent[n].len() as u32));
                    }
                }
                let ended = |n: &SessionId| sent[n.0 as usize].len() as u32 >= prompts[n.0 as usize] as u32 + replies;
                scheduler.results(step.number, drawn.iter().copied().filter(|(n, _)| !ended(n)));
                for (n, _) in drawn.iter().filter(|(n, _)| ended(n)) {
                    scheduler.close(*n);
                }
            }
            prop_assert!(scheduler.is_empty());
            for (n, rows) in sent.iter().enumerate() {
                prop_assert_eq!(rows, &(0..prompts[n] as u32 + replies).collect::<Vec<_>>());
            }
        }
    }
}
