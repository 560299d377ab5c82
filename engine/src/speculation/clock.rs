//! How long a route takes: from a step's start to its answer by the number of rows, and how soon one
//! step can follow another. Shared by the sessions of a route; pure, told the times.

use std::time::Duration;

/// Observations after which one counts a third.
const MEMORY: f64 = 32.0;

/// Longer steps are prompts; guesses are never so many, and the line need not hold there.
const MOST_ROWS: u32 = 128;

/// Observations before a decision rests on the clock.
const LEAST_WEIGHT: f64 = 2.0;

/// Weight of the slope so far.
const STIFFNESS: f64 = 0.05;

/// Weighted square distance of sizes from their mean from which on a slope is one.
const LEAST_SPREAD: f64 = 0.4;

/// A route's times as its first stage measures them.
#[derive(Clone, Debug)]
pub struct RingClock {
    answer: Line,
    gap: Line,
    /// Mean number of sessions in a step.
    sessions: f64,
}

impl Default for RingClock {
    fn default() -> Self {
        Self::new()
    }
}

impl RingClock {
    /// Of a route that has not been timed.
    pub fn new() -> Self {
        Self { answer: Line::new(0.5), gap: Line::new(0.1), sessions: 1.0 }
    }

    /// Takes the time from sending a step of `rows` rows of `sessions` sessions to its answer. Steps that
    /// carry later windows of a chain are left out: they wait for the window before them.
    pub fn observe(&mut self, rows: u32, sessions: u32, elapsed: Duration) {
        if rows <= MOST_ROWS {
            self.answer.observe(f64::from(rows), elapsed.as_secs_f64());
            self.sessions += (f64::from(sessions.max(1)) - self.sessions) / 16.0;
        }
    }

    /// Takes the time between the answers to two steps that were on their way together, of which the
    /// later one had `rows` rows. Steps sent right after one another tell the most: the least times count.
    pub fn observe_gap(&mut self, rows: u32, elapsed: Duration) {
        if rows <= MOST_ROWS {
            self.gap.observe(f64::from(rows), elapsed.as_secs_f64());
            if !self.gap.sloped {
                // A row takes its time at every stage; how much of it at the slowest is not known yet.
                self.gap.slope = self.answer.slope / 2.0;
            }
        }
    }

    /// Whether enough steps were timed to compare others with.
    pub(super) fn is_settled(&self) -> bool {
        self.answer.weight >= LEAST_WEIGHT
    }

    /// Whether steps of different sizes were timed, so that it is known what a row costs.
    pub(super) fn knows_rows(&self) -> bool {
        self.answer.sloped
    }

    /// Seconds until a step is answered in which every session has a window of `rows` rows, when each has
    /// `windows` of them on their way. That the others do alike is what makes rows dear when many share
    /// the steps: all windows of the others pass while one is answered.
    pub(super) fn answer(&self, rows: usize, windows: usize) -> f64 {
        self.answer.at(self.rows(rows, windows)).max(1e-6)
    }

    /// Seconds between such windows; `None` if so many would only wait for one another.
    pub(super) fn interval(&self, rows: usize, windows: usize) -> Option<f64> {
        let answer = self.answer(rows, windows);
        // At least two steps can be on their way, whatever the route; what that gains is seen by trying.
        let least = if self.gap.is_known() { self.gap.at(self.rows(rows, windows)) } else { answer / 2.0 };
        let interval = answer / windows as f64;
        (windows == 1 || interval * 1.05 >= least).then(|| interval.max(least).min(answer))
    }

    /// Rows of a step.
    fn rows(&self, rows: usize, windows: usize) -> f64 {
        rows as f64 * (1.0 + (self.sessions - 1.0) * windows as f64)
    }
}

/// A line through (rows, seconds), fitted by decaying least squares. Values above the line pull less than
/// values below it, by `above`: what holds a step up is now and then something else.
#[derive(Clone, Copy, Debug)]
struct Line {
    above: f64,
    weight: f64,
    rows: f64,
    seconds: f64,
    /// Weighted sums over the distances from the means.
    rows_squared: f64,
    product: f64,
    /// Seconds per row.
    slope: f64,
    /// Whether sizes ever differed enough to tell it.
    sloped: bool,
}

impl Line {
    fn new(above: f64) -> Self {
        Self {
            above,
            weight: 0.0,
            rows: 0.0,
            seconds: 0.0,
            rows_squared: 0.0,
            product: 0.0,
            slope: 0.0,
            sloped: false,
        }
    }

    fn is_known(&self) -> bool {
        self.weight > 0.0
    }

    fn at(&self, rows: f64) -> f64 {
        (self.seconds + self.slope * (rows - self.rows)).max(0.0)
    }

    fn observe(&mut self, rows: f64, seconds: f64) {
        let expected = self.at(rows);
        let (weight, seconds) = match self.is_known() {
            true if seconds > expected => (self.above, seconds.min(3.0 * expected.max(0.001))),
            _ => (1.0, seconds),
        };
        let fade = (-1.0 / MEMORY).exp();
        self.weight = self.weight * fade + weight;
        let (off_rows, off_seconds) = (rows - self.rows, seconds - self.seconds);
        let share = weight / self.weight;
        self.rows += share * off_rows;
        self.seconds += share * off_seconds;
        let rest = weight * (1.0 - share);
        self.rows_squared = self.rows_squared * fade + rest * off_rows * off_rows;
        self.product = self.product * fade + rest * off_rows * off_seconds;
        self.sloped |= self.rows_squared >= LEAST_SPREAD;
        if self.sloped {
            // Where sizes hardly differ any more, the slope stays what it was. A row never makes a step
            // shorter, nor costs more than the whole.
            let slope = (self.product + STIFFNESS * self.slope) / (self.rows_squared + STIFFNESS);
            self.slope = slope.clamp(0.0, self.seconds / self.rows.max(1.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(clock: &mut RingClock, rows: u32, seconds: f64) {
        clock.observe(rows, 1, Duration::from_secs_f64(seconds));
    }

    #[test]
    fn a_line_is_found_in_spite_of_stray_times() {
        let mut clock = RingClock::new();
        assert!(!clock.is_settled() && !clock.knows_rows());
        for round in 0..200u32 {
            let rows = 1 + round % 6;
            let stray = if round % 10 == 9 { 1.0 } else { 0.0 };
            seconds(&mut clock, rows, 0.020 + 0.002 * f64::from(rows) + stray);
        }
        assert!(clock.is_settled() && clock.knows_rows());
        for rows in [1, 8] {
            let (found, meant) = (clock.answer(rows, 1), 0.020 + 0.002 * rows as f64);
            assert!((found / meant - 1.0).abs() < 0.35, "{found} s for {rows} rows, {meant} s meant");
        }
    }

    #[test]
    fn a_change_is_followed_and_a_few_steps_of_another_size_tell_the_slope_again() {
        let mut clock = RingClock::new();
        let steps = |clock: &mut RingClock, base: f64, count: u32, sizes: u32| {
            (0..count).for_each(|round| {
                seconds(clock, 1 + round % sizes, base + 0.001 * f64::from(1 + round % sizes))
            });
        };
        steps(&mut clock, 0.010, 40, 4);
        steps(&mut clock, 0.050, 200, 1);
        assert!((clock.answer(1, 1) - 0.051).abs() < 0.001);
        steps(&mut clock, 0.050, 4, 4);
        let row = (clock.answer(5, 1) - clock.answer(1, 1)) / 4.0;
        assert!((row - 0.001).abs() < 0.0005, "{row} s");
    }

    #[test]
    fn windows_follow_one_another_as_the_slowest_stage_allows() {
        let mut clock = RingClock::new();
        (0..40).for_each(|round| seconds(&mut clock, 1 + round % 4, 0.030));
        assert_eq!(clock.interval(1, 3), None, "unknown: two windows at most");
        (0..40).for_each(|_| clock.observe_gap(1, Duration::from_secs_f64(0.010)));
        let close =
            |interval: Option<f64>, meant: f64| interval.is_some_and(|found| (found - meant).abs() < 1e-4);
        assert!(close(clock.interval(1, 1), 0.030));
        assert!(close(clock.interval(1, 2), 0.015));
        assert!(close(clock.interval(1, 3), 0.010));
        assert_eq!(clock.interval(1, 4), None);
    }

    #[test]
    fn no_time_is_no_number() {
        let mut clock = RingClock::new();
        (0..10).for_each(|rows| clock.observe(rows, 0, Duration::ZERO));
        clock.observe_gap(0, Duration::ZERO);
        (0..10).for_each(|rows| clock.observe(rows, u32::MAX, Duration::MAX));
        assert!(clock.answer(1, 1).is_finite() && clock.interval(64, 2).is_none_or(f64::is_finite));
    }
}
