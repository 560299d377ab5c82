//! Into how many steps the decoding sessions are dealt. Stages on machines of their own want one step each, or
//! all but one are idle, and a ring with long links wants more than one; stages that share a machine want few,
//! because every step reads every weight. Which it is shows in the tokens per second, so the numbers beside
//! the present one are tried now and then.

use std::time::{Duration, Instant};

/// Tokens of each session that a rate is measured over, and the least time.
const ROUNDS: usize = 6;
const LEAST: Duration = Duration::from_millis(50);
/// How much faster another number must be.
const MARGIN: f64 = 1.04;
/// Measurements until another number is tried: at first, and at most.
const FIRST_PAUSE: u32 = 1;
const LONGEST_PAUSE: u32 = 64;

/// A rate being measured.
#[derive(Clone, Copy, Debug)]
struct Measurement {
    since: Instant,
    tokens: usize,
    /// Sessions at its beginning.
    sessions: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Dealing {
    stages: usize,
    /// The number that is best as far as is known, and tokens per second that it gave last.
    groups: usize,
    rate: Option<f64>,
    /// The number that is tried instead, and whether the next one to try is larger.
    trial: Option<usize>,
    upwards: bool,
    /// Measurements until the next try, and how many that was.
    left: u32,
    pause: u32,
    now: Option<Measurement>,
}

impl Dealing {
    pub(super) fn new(stages: usize) -> Self {
        let (left, pause) = (FIRST_PAUSE, FIRST_PAUSE);
        let (rate, trial, now) = (None, None, None);
        Self { stages, groups: stages, rate, trial, upwards: false, left, pause, now }
    }

    /// Steps that the sessions are dealt to.
    pub(super) fn groups(&self) -> usize {
        self.trial.unwrap_or(self.groups)
    }

    /// A step was answered with so many tokens while so many sessions decode.
    pub(super) fn answered(&mut self, tokens: usize, sessions: usize, now: Instant) {
        if self.stages < 2 || sessions < 2 {
            self.now = None;
            return;
        }
        let near = |measured: &&mut Measurement| measured.sessions.abs_diff(sessions) * 8 <= sessions;
        let Some(measured) = self.now.as_mut().filter(near) else {
            self.now = Some(Measurement { since: now, tokens: 0, sessions });
            // Rates of other numbers of sessions do not compare.
            self.rate = None;
            return;
        };
        measured.tokens += tokens;
        let elapsed = now - measured.since;
        if measured.tokens >= ROUNDS * sessions && elapsed >= LEAST {
            let rate = measured.tokens as f64 / elapsed.as_secs_f64();
            *measured = Measurement { since: now, tokens: 0, sessions };
            self.judge(rate, sessions);
        }
    }

    fn judge(&mut self, rate: f64, sessions: usize) {
        let Some(tried) = self.trial.take() else {
            self.rate = Some(rate);
            self.left = self.left.saturating_sub(1);
            if self.left == 0 {
                self.trial = Some(self.neighbour(sessions));
            }
            return;
        };
        if self.rate.is_some_and(|usual| rate > usual * MARGIN) {
            // On the same way, and at once.
            (self.groups, self.rate) = (tried, Some(rate));
            self.pause = FIRST_PAUSE;
            self.upwards = self.upwards && tried < self.most(sessions) || tried == 1;
            self.trial = Some(self.neighbour(sessions)).filter(|&next| next != tried);
        } else {
            self.upwards = !self.upwards;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        self.left = self.pause;
    }

    fn most(&self, sessions: usize) -> usize {
        (2 * self.stages).min(sessions)
    }

    /// The number to try next.
    fn neighbour(&mut self, sessions: usize) -> usize {
        let most = self.most(sessions);
        let groups = self.groups.min(most);
        self.upwards = (self.upwards || groups == 1) && groups < most;
        if self.upwards { groups + 1 } else { groups - 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share of 1,200 rounds that were dealt to `want` of four steps; a round takes longer the farther its
    /// number is from that.
    fn share(want: usize) -> f64 {
        let mut dealing = Dealing::new(4);
        let mut now = Instant::now();
        let mut right = 0;
        for _ in 0..1200 {
            let groups = dealing.groups();
            let round = Duration::from_millis(10 + 3 * groups.abs_diff(want) as u64);
            right += usize::from(groups == want);
            for _ in 0..groups {
                now += round / groups as u32;
                dealing.answered(24 / groups, 24, now);
            }
        }
        right as f64 / 1200.0
    }

    #[test]
    fn the_fastest_number_is_found_and_kept() {
        for want in 1..=4 {
            assert!(share(want) > 0.8, "{want}: {}", share(want));
        }
    }

    #[test]
    fn one_stage_has_one_way() {
        let mut dealing = Dealing::new(1);
        (0..100).for_each(|_| dealing.answered(100, 8, Instant::now()));
        assert_eq!(dealing.groups(), 1);
    }
}
