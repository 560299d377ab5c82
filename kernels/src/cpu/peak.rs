//! The integer dot product from registers and the nearest cache alone: the limit that a prefill is
//! measured against.

use std::hint::black_box;

use super::{
    isa::{Isa, Proof},
    simd::{LANES, Line, Op, Simd},
};

/// Sums that are added to in turn, more than a dot product takes cycles.
const CHAINS: usize = 12;
/// Multiply-adds of one dot product: four in each lane.
const DOT: u64 = 4 * LANES as u64;

/// Does integer multiply-adds on this thread, `rounds` times a few hundred, as fast as `isa` can, and gives
/// their number. `None` if the CPU has not these instructions.
pub fn multiply_adds(isa: Isa, rounds: u32) -> Option<u64> {
    Proof::of(isa)?.dispatch(Chains { rounds });
    Some(u64::from(rounds) * CHAINS as u64 * DOT)
}

struct Chains {
    rounds: u32,
}

impl Op for Chains {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let weights = black_box([Line([1; 64]); CHAINS]);
        let mut sums = [s.splat_i(0); CHAINS];
        for round in 0..self.rounds {
            // Small values that change, so that no product can be taken out of the loop.
            let x = (round & 3).cast_signed() * 0x0101_0101;
            for (sum, line) in sums.iter_mut().zip(&weights) {
                *sum = s.dot_q4(*sum, s.line(line), x);
            }
        }
        let mut out = [0.0; LANES];
        for sum in sums {
            s.store(s.to_f32(sum), &mut out);
            black_box(&out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_of_instructions_counts_the_same() {
        for isa in Isa::available() {
            assert_eq!(multiply_adds(isa, 100), Some(100 * 12 * 64));
        }
    }
}
