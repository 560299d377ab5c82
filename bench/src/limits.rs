//! The machine's limits: read bandwidth of main memory, for a decoding step, which reads every weight
//! once; and the peak of integer multiply-adds, for a prefill, which uses every weight many times.

use std::{hint::black_box, thread, time::Instant};

use kernels::cpu::{Isa, multiply_adds};

/// Bytes that each thread reads; with any number of threads far more than caches hold.
const THREAD_BYTES: usize = 256 << 20;
/// Rounds of multiply-adds that each thread does at once: some 10 ms.
const ROUNDS: u32 = 1 << 21;
/// Passes of a measurement. The fastest counts: others on the machine can only slow one down.
const PASSES: usize = 3;

/// Integer multiply-adds per second that `threads` threads do together, without memory.
pub fn integer_peak(threads: usize) -> f64 {
    let work = || multiply_adds(Isa::detect(), ROUNDS).unwrap_or(0);
    let pass = || {
        let start = Instant::now();
        let done: u64 = thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            work() + others.into_iter().map(|other| other.join().unwrap_or(0)).sum::<u64>()
        });
        done as f64 / start.elapsed().as_secs_f64()
    };
    (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
}

/// Memory to read, touched once so that its pages exist.
#[derive(Debug)]
pub struct Probe {
    parts: Vec<Vec<u64>>,
}

impl Probe {
    /// Memory for `threads` threads, 256 MiB each.
    pub fn new(threads: usize) -> Self {
        Self::with_bytes(threads, THREAD_BYTES)
    }

    fn with_bytes(threads: usize, bytes: usize) -> Self {
        let part = |index| vec![index as u64 + 1; bytes / size_of::<u64>()];
        Self { parts: (0..threads.max(1)).map(part).collect() }
    }

    /// Bytes per second that the threads read together, summing as they go.
    pub fn measure(&self) -> f64 {
        let bytes: usize = self.parts.iter().map(|part| size_of_val(part.as_slice())).sum();
        let pass = || {
            let start = Instant::now();
            thread::scope(|scope| {
                let (mine, others) = self.parts.split_first().expect("there is a part for each thread");
                for part in others {
                    scope.spawn(|| black_box(sum(part)));
                }
                black_box(sum(mine));
            });
            bytes as f64 / start.elapsed().as_secs_f64()
        };
        (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
    }
}

/// Eight sums side by side, so that the additions do not wait for one another.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 8];
    let (lines, rest) = black_box(words).as_chunks::<8>();
    for line in lines {
        for (sum, word) in sums.iter_mut().zip(line) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().chain(rest).fold(0, |total, word| total.wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        let words: Vec<u64> = (0..1003).collect();
        assert_eq!(sum(&words), 1002 * 1003 / 2);
        assert_eq!(sum(&[u64::MAX, 2]), 1);
    }

    #[test]
    fn a_probe_gives_a_rate() {
        assert!(Probe::with_bytes(3, 1 << 12).measure() > 0.0);
        assert_eq!(Probe::with_bytes(0, 1 << 12).parts.len(), 1);
    }

    #[test]
    fn a_peak_is_a_rate() {
        assert!(integer_peak(1) > 0.0);
    }
}
