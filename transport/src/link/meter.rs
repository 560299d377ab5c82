//! How much a link carries, seen from where bytes arrive: the second half of each long message, over the time that it
//! took. A message is whole at its sender before its first byte leaves, so that no gap within it is the sender's
//! leisure; its first half is left out because a path that was idle has yet to find its pace.

use std::time::{Duration, Instant};

/// Shorter messages say nothing: they come in a few packets.
const LEAST_BYTES: usize = 256 << 10;
/// What took less is counted as this: clocks and the order in which tasks run are no finer.
const LEAST_TIME: Duration = Duration::from_micros(250);
/// Once so much was timed, the past counts for half.
const MEMORY_BYTES: f64 = (32 << 20) as f64;
/// What was timed before a pause of this length says nothing of a link that is in use again.
const STALE: Duration = Duration::from_secs(600);

/// What a link was seen to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throughput {
    /// Bytes per second.
    pub bytes_per_s: u64,
    /// When that was seen last.
    pub at: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// When half of the message that is arriving was there, and how much of it.
    half: Option<(Instant, usize)>,
    bytes: f64,
    seconds: f64,
    last: Option<Instant>,
}

impl Meter {
    /// `there` of the `length` bytes of a message have arrived.
    pub(super) fn arriving(&mut self, there: usize, length: usize, now: Instant) {
        if length >= LEAST_BYTES && there >= length / 2 {
            self.half.get_or_insert((now, there));
        }
    }

    /// A message of `length` bytes is there.
    pub(super) fn arrived(&mut self, length: usize, now: Instant) {
        // What came in one piece with its own half was waiting to be read.
        let Some((since, before)) = self.half.take().filter(|(since, _)| *since < now) else { return };
        let pause = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        if self.bytes > MEMORY_BYTES || pause > STALE {
            let kept = if pause > STALE { 0.0 } else { 0.5 };
            (self.bytes, self.seconds) = (self.bytes * kept, self.seconds * kept);
        }
        self.bytes += (length - before) as f64;
        self.seconds += now.saturating_duration_since(since).max(LEAST_TIME).as_secs_f64();
        self.last = Some(now);
    }

    /// What was seen so far.
    pub(super) fn throughput(&self) -> Option<Throughput> {
        let at = self.last?;
        Some(Throughput { bytes_per_s: (self.bytes / self.seconds) as u64, at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages of so many bytes that arrive at a rate in pieces, one second apart.
    fn seen(lengths: &[usize], bytes_per_s: f64, piece: usize) -> Option<u64> {
        let mut meter = Meter::default();
        let mut start = Instant::now();
        for &length in lengths {
            let at = |there: usize| start + Duration::from_secs_f64(there as f64 / bytes_per_s);
            for there in (piece..length).step_by(piece) {
                meter.arriving(there, length, at(there));
            }
            meter.arrived(length, at(length));
            start += Duration::from_secs(1);
        }
        meter.throughput().map(|throughput| throughput.bytes_per_s)
    }

    #[test]
    fn long_messages_show_the_rate_and_short_ones_nothing() {
        for rate in [1e5, 1e6, 1e8] {
            let seen = seen(&[1 << 20, 300_000], rate, 1452).expect("they are long enough") as f64;
            assert!((seen / rate - 1.0).abs() < 0.02, "{seen} of {rate}");
        }
        assert_eq!(seen(&[100_000; 9], 1e6, 1452), None);
        // One that comes at once has no second half.
        assert_eq!(seen(&[1 << 20], 1e6, 1 << 20), None);
    }

    #[test]
    fn a_slow_start_does_not_count() {
        let (mut meter, start) = (Meter::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        meter.arriving(1000, 1 << 20, start);
        meter.arriving(1 << 19, 1 << 20, at(900));
        meter.arrived(1 << 20, at(1000));
        let seen = meter.throughput().expect("it was long enough");
        assert_eq!((seen.bytes_per_s, seen.at), (10 << 19, at(1000)));
    }

    #[test]
    fn what_changes_is_found_and_what_is_old_forgotten() {
        let (mut meter, mut now) = (Meter::default(), Instant::now());
        let message = |meter: &mut Meter, now: &mut Instant, ms: u64| {
            meter.arriving(1 << 20, 2 << 20, *now);
            *now += Duration::from_millis(ms);
            meter.arrived(2 << 20, *now);
            meter.throughput().expect("it was long enough").bytes_per_s >> 20
        };
        for _ in 0..40 {
            message(&mut meter, &mut now, 10);
        }
        let slower = (0..100).map(|_| message(&mut meter, &mut now, 100)).last();
        assert!(slower.is_some_and(|rate| (9..12).contains(&rate)), "{slower:?}");
        now += 2 * STALE;
        let fresh = message(&mut meter, &mut now, 1000);
        // The first message after the pause is the only one.
        assert!(fresh < 2, "{fresh}");
    }
}
