//! How many guesses a request sends with its last known token, and how many windows of them may be on
//! their way unanswered. Pure: no clock, no I/O; fed with what came of each round.
//!
//! A *window* is the rows that a session sends in one step. The first of a chain begins with the last
//! known token; the later ones consist of guesses alone and are sent before the earlier ones are answered.
//! With the probability `a` that a guess is kept, windows of `w` rows, an answer after `T(w)` and a window
//! every `I`, a chain keeps 1/(1-a) tokens in the mean `T(w) + I a^w / (1 - a^w)` until a guess fails and
//! the next chain begins. A window at a time is the case `I = T(w)`: (1 - a^w) / (1 - a) tokens per answer.
//!
//! The estimates only say what pays; that nothing is lost is kept apart from them, by an account: every
//! kept token pays in a small part of a plain round, every window costs the time it took beyond its tokens'
//! plain rounds, and a window goes out only if the account covers the loss of all its guesses.

use std::time::Duration;

use super::clock::RingClock;

/// Most rows of one window.
pub const MOST_ROWS: usize = 64;

/// Most windows of one request on their way.
pub const MOST_WINDOWS: usize = 8;

/// Gain over plain decoding below which guesses are not worth their trouble.
const MARGIN: f64 = 1.03;

/// Plain rounds that a request may lose at once in the beginning, and for every token it has kept.
const ALLOWANCE: f64 = 0.5;
const ALLOWANCE_PER_TOKEN: f64 = 0.03;

/// Plain rounds that a request can have gained and lose again, or be short of.
const MOST_SAVED: f64 = 16.0;

/// Trials after which an observation counts a third.
const MEMORY: f64 = 40.0;

/// Trials that the expectation before any observation counts for.
const PRIOR_TRIALS: f64 = 3.0;

/// Plain rounds until a source is tried again: after the first failure, and at most.
const FIRST_PAUSE: u32 = 8;
const LONGEST_PAUSE: u32 = 256;

/// Most guesses of a trial.
const TRIAL: usize = 4;

/// Where guesses come from. What follows a long agreement is kept more often, so lengths count apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The request's own text, after a context of `matched` tokens.
    Own {
        /// As [`super::lookup::Lookup::propose`] returns it.
        matched: usize,
    },
    /// Other texts of the tenant, likewise.
    Shared {
        /// As [`super::lookup::Shared::propose`] returns it.
        matched: usize,
    },
    /// A draft model.
    Model,
}

/// Classes of sources with an estimate of their own.
const CLASSES: usize = 9;

/// The share of kept guesses that is expected of each class before any is observed.
const PRIORS: [f64; CLASSES] = [0.3, 0.5, 0.7, 0.85, 0.2, 0.4, 0.6, 0.8, 0.6];

/// Bounds of an expectation taken over from another request.
const LEAST_PRIOR: f64 = 0.1;
const MOST_PRIOR: f64 = 0.95;

impl Source {
    fn class(self) -> usize {
        let by_length = |matched: usize| match matched {
            0..4 => 0,
            4..8 => 1,
            8..16 => 2,
            _ => 3,
        };
        match self {
            Source::Own { matched } => by_length(matched),
            Source::Shared { matched } => 4 + by_length(matched),
            Source::Model => 8,
        }
    }
}

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Guesses after the last known token. Later windows of a chain have as many rows as the first, so one
    /// guess more.
    pub draft: usize,
    /// Windows that may be on their way; 1 waits for each answer.
    pub windows: usize,
}

impl Plan {
    /// No guesses.
    pub const PLAIN: Plan = Plan { draft: 0, windows: 1 };
}

/// What came of a window. Of a chain that broke, the window in which it did is the last one to report;
/// the windows after it say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Where its guesses came from; of no account if there were none.
    pub source: Source,
    /// Guesses in it.
    pub offered: usize,
    /// Guesses kept, from the first on.
    pub accepted: usize,
    /// Whether it was sent before the window before it was answered, so that it began with a guess.
    pub chained: bool,
    /// How long the session waited for its guesses when it could have sent without them.
    pub waited: Duration,
}

impl Outcome {
    fn rows(&self) -> usize {
        self.offered + usize::from(!self.chained)
    }

    /// Tokens that were not known before.
    fn kept(&self) -> usize {
        self.accepted + usize::from(!self.chained)
    }
}

/// One request's estimates and account. It forgets, because a text changes.
#[derive(Clone, Debug)]
pub struct Controller {
    classes: [Class; CLASSES],
    /// In plain rounds; what may be lost now.
    account: f64,
    /// Time from a token to the draft model's guesses after it, in seconds.
    draft_delay: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Class {
    kept: f64,
    trials: f64,
    prior: f64,
    /// Plain rounds since the last window with guesses of this class.
    idle: u32,
    /// Plain rounds between trials.
    pause: u32,
}

impl Default for Controller {
    fn default() -> Self {
        Self::new()
    }
}

impl Controller {
    /// For a request that begins.
    pub fn new() -> Self {
        let class = |prior| Class { kept: 0.0, trials: 0.0, prior, idle: 0, pause: FIRST_PAUSE };
        Self { classes: PRIORS.map(class), account: ALLOWANCE, draft_delay: None }
    }

    /// For the next request of the same kind: it expects what this one has seen, but trusts it no more than
    /// the expectation this one began with.
    pub fn successor(&self) -> Self {
        let mut next = Self::new();
        for (class, seen) in next.classes.iter_mut().zip(&self.classes) {
            class.prior = seen.estimate().clamp(LEAST_PRIOR, MOST_PRIOR);
        }
        next.draft_delay = self.draft_delay;
        next
    }

    /// What to send when `source` has `available` guesses after the known tokens, those in windows on
    /// their way included. It is asked again before every window.
    pub fn plan(&self, clock: &RingClock, source: Source, available: usize) -> Plan {
        self.choose(clock, &[(source, available)]).map_or(Plan::PLAIN, |(_, plan)| plan)
    }

    /// Which of several sources to take, by its place, and what to send of its guesses; each comes with how
    /// many it has. `None` is plain decoding.
    pub fn choose(&self, clock: &RingClock, offers: &[(Source, usize)]) -> Option<(usize, Plan)> {
        if !clock.is_settled() {
            return None;
        }
        if !clock.knows_rows() {
            // One guess more or less tells what rows cost.
            let place = offers.iter().position(|&(_, available)| available > 0)?;
            return Some((place, self.trial(clock, 1)?));
        }
        let rated = offers.iter().enumerate().filter_map(|(place, &(source, available))| {
            let (gain, plan) = self.best(clock, self.class(source).estimate(), available)?;
            (gain > MARGIN).then_some((gain, place, plan))
        });
        let best = rated.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, place, plan)| (place, plan));
        best.or_else(|| {
            let due = offers.iter().enumerate().filter(|(_, offer)| self.class(offer.0).is_due());
            due.filter_map(|(place, offer)| Some((place, self.trial(clock, offer.1)?))).next()
        })
    }

    /// How long waiting for the draft model's first guesses pays, if it is about to give `available`;
    /// zero if it does not. Counted from when the session could send.
    pub fn wait(&self, clock: &RingClock, available: usize) -> Duration {
        let Some(delay) = self.draft_delay else { return Duration::ZERO };
        let estimate = self.class(Source::Model).estimate();
        let Some((gain, plan)) = self.best(clock, estimate, available) else { return Duration::ZERO };
        // As long as the round with its wait still gains. Twice the usual delay means that none is coming.
        let longest = clock.answer(plan.draft + 1, plan.windows) * (gain / MARGIN - 1.0);
        let covered = self.account * clock.answer(1, 1);
        if delay > longest.min(covered) {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(longest.min(covered).min(2.0 * delay))
    }

    /// Takes what came of a window; plain rounds count too.
    pub fn observe(&mut self, clock: &RingClock, outcome: &Outcome) {
        if clock.is_settled() {
            let gain = Self::gain(clock, outcome);
            self.account = (self.account + gain).clamp(-MOST_SAVED, MOST_SAVED);
        }
        self.classes.iter_mut().for_each(|class| class.idle += u32::from(outcome.offered == 0));
        if outcome.offered > 0 {
            self.classes[outcome.source.class()].observe(outcome.offered, outcome.accepted);
        }
    }

    /// Plain rounds that a window saved, with what its tokens pay in.
    fn gain(clock: &RingClock, outcome: &Outcome) -> f64 {
        let time = match (outcome.chained, outcome.accepted) {
            (false, _) => clock.answer(outcome.rows(), 1),
            // The time until the chain begins anew is the next window's.
            (true, 0) => 0.0,
            (true, _) => clock.interval(outcome.rows(), 2).unwrap_or(clock.answer(outcome.rows(), 1)),
        };
        let rounds = (time + outcome.waited.as_secs_f64()) / clock.answer(1, 1);
        outcome.kept() as f64 * (1.0 + ALLOWANCE_PER_TOKEN) - rounds
    }

    /// Takes how long after a token the draft model's guesses at its successors came.
    pub fn observe_delay(&mut self, delay: Duration) {
        let seconds = delay.as_secs_f64();
        self.draft_delay = Some(self.draft_delay.map_or(seconds, |mean| mean + (seconds - mean) / 8.0));
    }

    /// The plan with the highest rate among those whose loss the account covers, and its rate over the
    /// plain one.
    fn best(&self, clock: &RingClock, estimate: f64, available: usize) -> Option<(f64, Plan)> {
        let plain = clock.answer(1, 1);
        let mut best: Option<(f64, Plan)> = None;
        let mut all_kept = 1.0;
        for draft in 0..=available.min(MOST_ROWS - 1) {
            let rows = draft + 1;
            all_kept *= estimate;
            if clock.answer(rows, 1) / plain - 1.0 > self.account {
                break;
            }
            let most = (1 + (available - draft) / rows).min(MOST_WINDOWS);
            let least = if draft == 0 { 2 } else { 1 };
            for windows in least..=most {
                let answer = clock.answer(rows, windows);
                let Some(interval) = clock.interval(rows, windows) else { break };
                if windows > 1 && (answer + interval) / plain - 1.0 > self.account {
                    break;
                }
                let time = answer + interval * all_kept / (1.0 - all_kept);
                let gain = plain / (time * (1.0 - estimate));
                // More rows and windows must earn something: they take room from others.
                if best.is_none_or(|(other, _)| gain > other * 1.002) {
                    best = Some((gain, Plan { draft, windows }));
                }
            }
        }
        best
    }

    /// A few guesses to see how they fare, if the account covers them.
    fn trial(&self, clock: &RingClock, available: usize) -> Option<Plan> {
        let plain = clock.answer(1, 1);
        let affordable = |draft: &usize| clock.answer(draft + 1, 1) / plain - 1.0 <= self.account;
        let draft = (1..=available.min(TRIAL)).rev().find(affordable)?;
        Some(Plan { draft, windows: 1 })
    }

    fn class(&self, source: Source) -> &Class {
        &self.classes[source.class()]
    }
}

impl Class {
    /// Probability that the next guess is kept.
    fn estimate(&self) -> f64 {
        let mean = (self.kept + self.prior * PRIOR_TRIALS) / (self.trials + PRIOR_TRIALS);
        mean.min(0.995)
    }

    /// Whether it has gone unused long enough to be tried again.
    fn is_due(&self) -> bool {
        self.idle >= self.pause
    }

    /// Guesses after the first that failed tell nothing.
    fn observe(&mut self, offered: usize, accepted: usize) {
        if self.is_due() {
            // What was seen so long ago counts half.
            self.kept /= 2.0;
            self.trials /= 2.0;
            let failed = accepted * 2 < offered;
            self.pause = if failed { (self.pause * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
        }
        self.idle = 0;
        let trials = (accepted + usize::from(accepted < offered)) as f64;
        let fade = (-trials / MEMORY).exp();
        self.kept = self.kept * fade + accepted as f64;
        self.trials = self.trials * fade + trials;
    }
}

#[cfg(test)]
mod tests;
