//! Into how many steps the decoding sessions are dealt. Stages on machines of their own want one step
//! each, or all but one are idle; stages that share a machine want one step altogether, because every step
//! reads every weight. Which it is shows in the tokens per second, so both are tried.

use std::time::{Duration, Instant};

/// Tokens of each session that a rate is measured over, and the least time.
const ROUNDS: usize = 8;
const LEAST: Duration = Duration::from_millis(50);
/// How much faster the other way must be.
const MARGIN: f64 = 1.05;
/// Measurements until the other way is tried again: at first, and at most.
const FIRST_PAUSE: u32 = 2;
const LONGEST_PAUSE: u32 = 128;

/// A rate being measured.
#[derive(Clone, Copy, Debug)]
struct Measurement {
    since: Instant,
    tokens: usize,
    sessions: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Dealing {
    stages: usize,
    /// The way that is best as far as is known: one step per stage, or one.
    spread: bool,
    /// Tokens per second that it gave last, with this many sessions.
    rate: Option<(f64, usize)>,
    trying: bool,
    /// Measurements until the next try, and how many that was.
    left: u32,
    pause: u32,
    now: Option<Measurement>,
}

impl Dealing {
    pub(super) fn new(stages: usize) -> Self {
        let (left, pause) = (FIRST_PAUSE, FIRST_PAUSE);
        Self { stages, spread: true, rate: None, trying: false, left, pause, now: None }
    }

    /// Steps that the sessions are dealt to.
    pub(super) fn groups(&self) -> usize {
        if self.spread != self.trying { self.stages } else { 1 }
    }

    /// A step was answered with so many tokens while so many sessions decode.
    pub(super) fn answered(&mut self, tokens: usize, sessions: usize, now: Instant) {
        if self.stages < 2 || sessions < 2 {
            self.now = None;
            return;
        }
        let fresh = Measurement { since: now, tokens: 0, sessions };
        let Some(measured) = self.now.as_mut().filter(|measured| measured.sessions == sessions) else {
            self.now = Some(fresh);
            return;
        };
        measured.tokens += tokens;
        let elapsed = now - measured.since;
        if measured.tokens >= ROUNDS * sessions && elapsed >= LEAST {
            let rate = measured.tokens as f64 / elapsed.as_secs_f64();
            self.now = None;
            self.judge(rate, sessions);
        }
    }

    fn judge(&mut self, rate: f64, sessions: usize) {
        if self.trying {
            self.trying = false;
            let better = self.rate.is_some_and(|(other, of)| of == sessions && rate > other * MARGIN);
            if better {
                self.spread = !self.spread;
                self.pause = FIRST_PAUSE;
            } else {
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
            self.left = self.pause;
            self.rate = better.then_some((rate, sessions));
        } else {
            self.rate = Some((rate, sessions));
            self.left = self.left.saturating_sub(1);
            self.trying = self.left == 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share of 600 rounds that were dealt to `want` steps, where a round in as many takes half as long.
    fn share(want: usize) -> f64 {
        let mut dealing = Dealing::new(4);
        let mut now = Instant::now();
        let mut right = 0;
        for _ in 0..600 {
            let groups = dealing.groups();
            let round = Duration::from_millis(if groups == want { 10 } else { 20 });
            right += usize::from(groups == want);
            for _ in 0..groups {
                now += round / groups as u32;
                dealing.answered(8 / groups, 8, now);
            }
        }
        right as f64 / 600.0
    }

    #[test]
    fn the_faster_way_is_found_and_kept() {
        assert!(share(1) > 0.9, "{}", share(1));
        assert!(share(4) > 0.9, "{}", share(4));
    }

    #[test]
    fn one_stage_has_one_way() {
        let mut dealing = Dealing::new(1);
        dealing.answered(100, 8, Instant::now());
        assert_eq!(dealing.groups(), 1);
    }
}
