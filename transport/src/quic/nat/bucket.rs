//! A token bucket.

use std::time::Instant;

/// Lets through `rate` units a second, and `burst` at once.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    rate: f64,
    burst: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(rate: f64, burst: f64, now: Instant) -> Self {
        Self { rate, burst, level: burst, at: now }
    }

    /// Whether as much may pass as through a new one.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level + passed * self.rate >= self.burst
    }

    /// Whether `units` more may pass now.
    pub(super) fn take(&mut self, units: f64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.rate).min(self.burst);
        self.at = now;
        let passes = units <= self.level;
        if passes {
            self.level -= units;
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Over any stretch no more passes than the burst and what the rate allows.
        #[test]
        fn what_passes_is_bounded(rate in 1.0f64..1e6, burst in 1.0f64..1e6,
                                  asks in prop::collection::vec((0u64..2_000, 0.0f64..1e5), 1..100)) {
            let start = Instant::now();
            let mut bucket = Bucket::new(rate, burst, start);
            let (mut now, mut passed) = (start, 0.0);
            for (wait_ms, units) in asks {
                now += Duration::from_millis(wait_ms);
                if bucket.take(units, now) {
                    passed += units;
                }
                let most = burst + rate * (now - start).as_secs_f64();
                prop_assert!(passed <= most * (1.0 + 1e-9), "{passed} of {most}");
            }
        }
    }

    #[test]
    fn an_empty_bucket_fills_again() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10.0, 2.0, start);
        assert!(bucket.take(1.0, start) && bucket.take(1.0, start) && !bucket.take(1.0, start));
        assert!(bucket.take(1.0, start + Duration::from_millis(101)));
    }
}
