//! What the first stage of a route runs next: continuous batching at step granularity. Pure: no
//! clock, no I/O; fed with sessions and results, asked for steps.

use std::collections::VecDeque;

use crate::message::{MAX_SEGMENTS, Segment, SessionId};

/// Bounds of a route's steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerLimits {
    /// Most rows of one step.
    pub rows: usize,
    /// Most prompt rows of one session in one step.
    pub chunk: usize,
    /// Most steps on their way at once; one per stage keeps every stage busy.
    pub in_flight: usize,
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

/// One session as the scheduler sees it. Every token before `next` is on its way or processed;
/// `known` holds the prompt, then the drawn tokens that are not yet sent.
#[derive(Debug)]
struct Sequence {
    session: SessionId,
    /// Tokens from position `next` on.
    known: VecDeque<u32>,
    /// Position of the next row.
    next: u32,
    /// A token is being drawn: nothing can be sent until it is known.
    drawing: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    sequences: VecDeque<Sequence>,
    /// Numbers of the steps on their way.
    in_flight: Vec<u64>,
}

impl Scheduler {
    /// An idle scheduler.
    pub fn new(limits: SchedulerLimits) -> Self {
        Self { limits, sequences: VecDeque::new(), in_flight: Vec::new() }
    }

    /// Adds a session with its prompt.
    pub fn open(&mut self, session: SessionId, prompt: Vec<u32>) {
        self.sequences.push_back(Sequence { session, known: prompt.into(), next: 0, drawing: false });
    }

    /// Forgets a session; rows of it that are on their way do no harm.
    pub fn close(&mut self, session: SessionId) {
        self.sequences.retain(|sequence| sequence.session != session);
    }

    /// Whether no session is left.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Takes what became of step `number`: it is over, and each listed session has its next token. A
    /// session that has ended is closed by the caller. A step that is not on its way does nothing.
    pub fn results(&mut self, number: u64, tokens: impl IntoIterator<Item = (SessionId, u32)>) {
        let Some(place) = self.in_flight.iter().position(|&step| step == number) else { return };
        self.in_flight.swap_remove(place);
        for (session, token) in tokens {
            let waiting = self.sequences.iter_mut().find(|s| s.session == session && s.drawing);
            if let Some(sequence) = waiting {
                sequence.drawing = false;
                sequence.known.push_back(token);
            }
        }
    }

    /// The next step, if one can start: single rows of replies first, so that a long prompt does not
    /// hold them up, then prompts in the order of their turn. `number` is one that no step of the route
    /// ever had.
    pub fn next_step(&mut self, number: u64) -> Option<PlannedStep> {
        if self.in_flight.len() >= self.limits.in_flight {
            return None;
        }
        let mut step = PlannedStep { number, segments: Vec::new(), tokens: Vec::new() };
        for decoding in [true, false] {
            for sequence in &mut self.sequences {
                let room = (self.limits.rows - step.tokens.len()).min(self.limits.chunk);
                if room == 0 || step.segments.len() == MAX_SEGMENTS {
                    break;
                }
                if !sequence.drawing && !sequence.known.is_empty() && (sequence.known.len() == 1) == decoding
                {
                    sequence.send(room, &mut step);
                }
            }
        }
        if step.segments.is_empty() {
            return None;
        }
        // Whoever was served first goes last next time.
        self.sequences.rotate_left(1);
        self.in_flight.push(number);
        Some(step)
    }
}

impl Sequence {
    fn send(&mut self, room: usize, step: &mut PlannedStep) {
        let rows = room.min(self.known.len());
        step.tokens.extend(self.known.drain(..rows));
        self.drawing = self.known.is_empty();
        step.segments.push(Segment {
            session: self.session,
            from: self.next,
            rows: rows as u32,
            draw: self.drawing,
        });
        self.next += rows as u32;
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
