//! What accesses to memory cost.

use super::registers::{Doubles, LANES, lanes};
use crate::{Banks, Traffic};

/// Bytes of a sector.
const SECTOR: u64 = 32;

impl Traffic {
    /// An access to `N` bytes in each lane of a mask.
    #[inline(always)]
    pub(super) fn add<const N: usize>(&mut self, addresses: &Doubles, mask: u32) {
        self.requests += 1;
        self.bytes += N as u64 * u64::from(mask.count_ones());
        self.sectors += sectors(addresses, mask);
    }
}

/// How many sectors are touched. No access straddles two.
#[inline(always)]
fn sectors(addresses: &Doubles, mask: u32) -> u64 {
    let (mut count, mut last, mut ascending) = (0, None, true);
    for lane in lanes(mask) {
        let sector = addresses[lane] / SECTOR;
        if last != Some(sector) {
            ascending &= last.is_none_or(|last| last < sector);
            count += 1;
            last = Some(sector);
        }
    }
    if ascending { count } else { distinct(addresses, mask) }
}

#[inline(never)]
fn distinct(addresses: &Doubles, mask: u32) -> u64 {
    let mut sectors = [u64::MAX; LANES];
    lanes(mask).for_each(|lane| sectors[lane] = addresses[lane] / SECTOR);
    sectors.sort_unstable();
    let all = sectors.chunk_by(|a, b| a == b).count() as u64;
    all - u64::from(sectors[LANES - 1] == u64::MAX)
}

impl Banks {
    /// An access to `N` bytes in each lane of a mask: so many lanes at a time as ask for 32 words.
    #[inline(always)]
    pub(super) fn add<const N: usize>(&mut self, addresses: &Doubles, mask: u32) {
        self.requests += 1;
        self.bytes += N as u64 * u64::from(mask.count_ones());
        let at_once = (128 / N.max(4)).min(LANES);
        for first in (0..LANES).step_by(at_once) {
            let part = (u64::from(mask) >> first & ((1 << at_once) - 1)) << first;
            if part != 0 {
                let cycles = cycles::<N>(addresses, part as u32);
                self.cycles += cycles;
                self.conflicts += cycles - 1;
            }
        }
    }
}

/// The most different words that one bank has to give.
#[inline(always)]
fn cycles<const N: usize>(addresses: &Doubles, mask: u32) -> u64 {
    let mut words = [u64::MAX; 32];
    for lane in lanes(mask) {
        for i in 0..N.div_ceil(4) as u64 {
            let word = addresses[lane] / 4 + i;
            let bank = &mut words[(word % 32) as usize];
            if *bank != u64::MAX && *bank != word {
                return conflicting::<N>(addresses, mask);
            }
            *bank = word;
        }
    }
    1
}

#[inline(never)]
fn conflicting<const N: usize>(addresses: &Doubles, mask: u32) -> u64 {
    let mut words: Vec<u64> = Vec::with_capacity(32);
    for lane in lanes(mask) {
        for i in 0..N.div_ceil(4) as u64 {
            let word = addresses[lane] / 4 + i;
            if !words.contains(&word) {
                words.push(word);
            }
        }
    }
    let mut banks = [0; 32];
    words.iter().for_each(|word| banks[(word % 32) as usize] += 1);
    banks.into_iter().max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(step: u64) -> Doubles {
        std::array::from_fn(|lane| lane as u64 * step)
    }

    #[test]
    fn sectors_are_counted_once() {
        let sectors_of = |addresses: &Doubles, mask| {
            let mut traffic = Traffic::default();
            traffic.add::<4>(addresses, mask);
            (traffic.bytes, traffic.sectors)
        };
        assert_eq!(sectors_of(&every(4), u32::MAX), (128, 4));
        assert_eq!(sectors_of(&every(0), u32::MAX), (128, 1));
        assert_eq!(sectors_of(&every(128), u32::MAX), (128, 32));
        assert_eq!(sectors_of(&every(32), 0b1011), (12, 3));
        let mut swapped = every(4);
        swapped.reverse();
        assert_eq!(sectors_of(&swapped, u32::MAX), (128, 4));
        swapped.swap(0, 31);
        assert_eq!(sectors_of(&swapped, 0x0fff_ffff), (112, 4));
    }

    #[test]
    fn banks_serve_a_word_a_cycle() {
        fn cycles_of<const N: usize>(step: u64) -> (u64, u64) {
            let mut banks = Banks::default();
            banks.add::<N>(&every(step), u32::MAX);
            (banks.cycles, banks.conflicts)
        }
        assert_eq!(cycles_of::<4>(4), (1, 0));
        assert_eq!(cycles_of::<4>(0), (1, 0));
        assert_eq!(cycles_of::<1>(1), (1, 0));
        assert_eq!(cycles_of::<4>(8), (2, 1));
        assert_eq!(cycles_of::<4>(128), (32, 31));
        assert_eq!(cycles_of::<4>(132), (1, 0));
        assert_eq!(cycles_of::<8>(8), (2, 0));
        assert_eq!(cycles_of::<16>(16), (4, 0));
        assert_eq!(cycles_of::<16>(32), (8, 4));
        assert_eq!(cycles_of::<16>(128), (32, 28));
    }
}
