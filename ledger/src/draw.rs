//! Which commitments are audited, and by whom: pure functions of what was signed before and a beacon that came
//! after, as `contracts/src/lib/Draw.sol` has them. Commitments are fixed when the beacon becomes known, so nobody
//! can choose them to be spared.

use crate::eip712::keccak;

const DRAW_DOMAIN: &[u8] = b"dolphin/draw/1";
const AUDITOR_DOMAIN: &[u8] = b"dolphin/auditor/1";

/// A probability in units of 2^-32. Everything about it is integers: all who draw must draw the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u32);

impl Rate {
    /// So many of 2^32.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// How many of 2^32.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// So many of a thousand; a thousand and above is always but for one draw in 2^32.
    pub const fn per_mille(n: u32) -> Self {
        let n = if n < 1000 { n } else { 1000 };
        Self((n as u64 * u32::MAX as u64 / 1000) as u32)
    }

    /// That at least one of `chunks` independent draws hits.
    pub fn over(self, chunks: u32) -> Self {
        // The chance of a miss, by squaring; each product is rounded down.
        const ONE: u64 = 1 << 32;
        let (mut miss, mut power, mut left) = (ONE, ONE - u64::from(self.0), chunks);
        while left > 0 {
            if left & 1 == 1 {
                miss = ((u128::from(miss) * u128::from(power)) >> 32) as u64;
            }
            power = ((u128::from(power) * u128::from(power)) >> 32) as u64;
            left >>= 1;
        }
        Self(u32::try_from(ONE - miss).unwrap_or(u32::MAX))
    }
}

/// What part of a session a commitment is of: prompts are cheap to replay beside what they cost, replies are
/// what is paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Rows of a prompt.
    Prefill,
    /// Rows of a reply.
    Decode,
}

/// How often nodes are audited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// For a node without history, of a chunk of a prompt.
    pub prefill: Rate,
    /// For a node without history, of a chunk of a reply.
    pub decode: Rate,
    /// The share of a rate that is left after a long honest history: one part of so many.
    pub floor: u32,
    /// Audits passed that halve what is above the floor.
    pub half_life: u32,
}

impl Default for Rates {
    fn default() -> Self {
        let (prefill, decode) = (Rate::per_mille(20), Rate::per_mille(50));
        Self { prefill, decode, floor: 10, half_life: 20 }
    }
}

impl Rates {
    /// The rate for a node that has passed `passed` audits since it joined or last failed one.
    pub fn of(&self, work: Work, passed: u32) -> Rate {
        let Rate(fresh) = match work {
            Work::Prefill => self.prefill,
            Work::Decode => self.decode,
        };
        let floor = fresh / self.floor.max(1);
        let halvings = (passed / self.half_life.max(1)).min(31);
        Rate(floor + ((fresh - floor) >> halvings))
    }
}

/// Whether the beacon draws a commitment. `weight` are the chunks it stands for.
pub fn is_drawn(beacon: &[u8; 32], commitment: &[u8; 32], rate: Rate, weight: u32) -> bool {
    let hash = keccak(&[DRAW_DOMAIN, beacon, commitment].concat());
    let draw = hash.first_chunk().map_or(u32::MAX, |bytes| u32::from_be_bytes(*bytes));
    draw < rate.over(weight).0
}

/// The `count` auditors of a commitment, drawn by stake without repetition, of whoever is told by name and stake
/// of the epoch before. Nobody audits what they took part in; the order of `auditors` is part of the draw, so all
/// must agree on it.
pub fn auditors<Name: Copy + PartialEq>(
    beacon: &[u8; 32],
    commitment: &[u8; 32],
    auditors: &[(Name, u64)],
    involved: &[Name],
    count: usize,
) -> Vec<Name> {
    let mut left: Vec<(Name, u64)> =
        (auditors.iter().copied()).filter(|(name, stake)| *stake > 0 && !involved.contains(name)).collect();
    let mut chosen = Vec::new();
    while chosen.len() < count && !left.is_empty() {
        let total: u128 = left.iter().map(|(_, stake)| u128::from(*stake)).sum();
        let number = (chosen.len() as u32).to_be_bytes();
        let hash = keccak(&[AUDITOR_DOMAIN, beacon, commitment, &number].concat());
        let draw = hash.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        // A place below the total, as long as that is below 2^64: stakes are told in units that see to it.
        let mut place = u128::from(draw).saturating_mul(total) >> 64;
        let index = left.iter().position(|(_, stake)| {
            let stake = u128::from(*stake);
            let here = place < stake;
            place = place.saturating_sub(stake);
            here
        });
        let Some(index) = index else { return chosen };
        chosen.push(left.remove(index).0);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(n: u64) -> [u8; 32] {
        keccak(&n.to_be_bytes())
    }

    #[test]
    fn as_many_are_drawn_as_the_rate_says() {
        for (thousandths, weight) in [(10, 1), (50, 1), (50, 4), (500, 1)] {
            let (rate, probability) = (Rate::per_mille(thousandths), f64::from(thousandths) / 1000.0);
            let drawn =
                (0..40_000).filter(|&n| is_drawn(&digest(1), &digest(n), rate, weight)).count() as f64;
            let expected = 40_000.0 * (1.0 - (1.0 - probability).powi(weight as i32));
            assert!((drawn - expected).abs() < 5.0 * expected.sqrt(), "{drawn} of {expected}");
        }
    }

    /// Whoever has many commitments to choose from before the beacon is known gains nothing: under a new
    /// beacon those that were spared under another are drawn as often as any.
    #[test]
    fn grinding_does_not_help() {
        let rate = Rate::per_mille(50);
        let spared: Vec<u64> =
            (0..40_000).filter(|&n| !is_drawn(&digest(900_001), &digest(n), rate, 1)).collect();
        let drawn =
            spared.iter().filter(|&&n| is_drawn(&digest(900_002), &digest(n), rate, 1)).count() as f64;
        let expected = spared.len() as f64 * 0.05;
        assert!((drawn - expected).abs() < 5.0 * expected.sqrt(), "{drawn} of {expected}");
    }

    #[test]
    fn the_ends_of_rates_hold() {
        let (never, always) = (Rate::per_mille(0), Rate::per_mille(1000));
        assert_eq!(
            (Rate::per_mille(u32::MAX), never.over(u32::MAX), always.over(3)),
            (always, never, always)
        );
        assert_eq!(Rate::from_bits(7).bits(), 7);
        assert!((0..1000).all(|n| !is_drawn(&digest(5), &digest(n), never, 100)));
        assert!((0..1000).all(|n| is_drawn(&digest(5), &digest(n), always, 1)));
    }

    #[test]
    fn stake_decides_how_often_one_audits() {
        let all: Vec<(u64, u64)> = (1..=4).map(|n| (n, n * 1000)).collect();
        let mut counts = [0u32; 4];
        for n in 0..20_000 {
            let first = auditors(&digest(7), &digest(n), &all, &[], 1);
            counts[first[0] as usize - 1] += 1;
        }
        for (index, count) in counts.iter().enumerate() {
            let expected = 20_000.0 * (index + 1) as f64 / 10.0;
            assert!((f64::from(*count) - expected).abs() < 5.0 * expected.sqrt(), "{counts:?}");
        }
    }

    proptest! {
        #[test]
        fn auditors_are_others_and_each_is_asked_once(
            stakes in prop::collection::vec(0u64.., 0..9), involved in prop::collection::vec(0usize..9, 0..4),
            count in 0usize..6, beacon: u64, commitment: u64,
        ) {
            let all: Vec<(usize, u64)> = stakes.iter().copied().enumerate().collect();
            let mut chosen = auditors(&digest(beacon), &digest(commitment), &all, &involved, count);
            let able = all.iter().filter(|(name, stake)| *stake > 0 && !involved.contains(name)).count();
            prop_assert_eq!(chosen.len(), count.min(able));
            prop_assert!(chosen.iter().all(|name| !involved.contains(name)));
            chosen.sort_unstable();
            chosen.dedup();
            prop_assert_eq!(chosen.len(), count.min(able));
        }

        #[test]
        fn a_history_only_lowers_the_rate(passed in 0u32..10_000) {
            let rates = Rates::default();
            for work in [Work::Prefill, Work::Decode] {
                prop_assert!(rates.of(work, passed + 1) <= rates.of(work, passed));
                prop_assert!(rates.of(work, passed).0 >= rates.of(work, 0).0 / rates.floor);
            }
            prop_assert!(rates.of(Work::Prefill, passed) <= rates.of(Work::Decode, passed));
        }

        #[test]
        fn a_heavier_commitment_is_drawn_whenever_a_lighter_would_be(beacon: u64, n: u64, weight in 1u32..50) {
            let rate = Rate::per_mille(30);
            if is_drawn(&digest(beacon), &digest(n), rate, weight) {
                prop_assert!(is_drawn(&digest(beacon), &digest(n), rate, weight + 1));
            }
        }
    }
}
