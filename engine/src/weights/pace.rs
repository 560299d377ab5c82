//! Bytes in a second.

use std::time::Duration;

use tokio::time::Instant;

/// Spreads bytes over time.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes in a second; any number if `None`.
    rate: Option<u64>,
    free: Instant,
}

impl Pace {
    pub(crate) fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.map(|rate| rate.max(1)), free: Instant::now() }
    }

    /// When `bytes` may go: once those before them have had their time.
    pub(crate) fn take(&mut self, bytes: u32, now: Instant) -> Instant {
        let Some(rate) = self.rate else { return now };
        let begin = self.free.max(now);
        self.free = begin + Duration::from_secs_f64(f64::from(bytes) / rate as f64);
        begin
    }
}
