//! The registers of a warp, and operations lane by lane.

use crate::program::{Address, AnyReg, D, Guard, Kernel, Logic, P, TestTo, W};

/// Lanes of a warp.
pub(super) const LANES: usize = 32;

/// What a register holds in each lane.
pub(super) type Words = [u32; LANES];
pub(super) type Doubles = [u64; LANES];

/// The registers of a warp. A predicate is a bit for each lane.
#[derive(Debug, Default)]
pub(super) struct Registers {
    words: Vec<Words>,
    doubles: Vec<Doubles>,
    predicates: Vec<u32>,
    /// The carry flag.
    pub(super) carry: u32,
}

/// The lanes of a mask.
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = left.trailing_zeros() as usize;
        left &= left.wrapping_sub(1);
        (lane < LANES).then_some(lane)
    })
}

impl Registers {
    /// Registers of a kernel, constants set, all others loud.
    pub(super) fn new(kernel: &Kernel) -> Self {
        let mut registers = Self {
            words: vec![[u32::MAX; LANES]; kernel.words as usize],
            doubles: vec![[u64::MAX; LANES]; kernel.doubles as usize],
            predicates: vec![0; kernel.predicates as usize],
            carry: 0,
        };
        for &(W(slot), value) in &kernel.word_constants {
            registers.words[slot as usize] = [value; LANES];
        }
        for &(D(slot), value) in &kernel.double_constants {
            registers.doubles[slot as usize] = [value; LANES];
        }
        for &(P(slot), value) in &kernel.predicate_constants {
            registers.predicates[slot as usize] = if value { u32::MAX } else { 0 };
        }
        registers
    }

    #[inline(always)]
    pub(super) fn w(&self, W(slot): W) -> &Words {
        &self.words[slot as usize]
    }

    #[inline(always)]
    pub(super) fn d(&self, D(slot): D) -> &Doubles {
        &self.doubles[slot as usize]
    }

    #[inline(always)]
    pub(super) fn p(&self, P(slot): P) -> u32 {
        self.predicates[slot as usize]
    }

    /// The lanes where a predicate, or its negation, holds.
    #[inline(always)]
    pub(super) fn guard(&self, guard: Guard) -> u32 {
        let p = self.p(guard.p);
        if guard.negate { !p } else { p }
    }

    #[inline(always)]
    pub(super) fn set_w(&mut self, W(slot): W, values: &Words, mask: u32) {
        let to = &mut self.words[slot as usize];
        if mask == u32::MAX {
            *to = *values;
            return;
        }
        for lane in 0..LANES {
            let taken = (mask >> lane & 1).wrapping_neg();
            to[lane] = to[lane] & !taken | values[lane] & taken;
        }
    }

    #[inline(always)]
    pub(super) fn set_d(&mut self, D(slot): D, values: &Doubles, mask: u32) {
        let to = &mut self.doubles[slot as usize];
        if mask == u32::MAX {
            *to = *values;
            return;
        }
        for lane in 0..LANES {
            let taken = u64::from(mask >> lane & 1).wrapping_neg();
            to[lane] = to[lane] & !taken | values[lane] & taken;
        }
    }

    #[inline(always)]
    pub(super) fn set_p(&mut self, P(slot): P, values: u32, mask: u32) {
        let to = &mut self.predicates[slot as usize];
        *to = *to & !mask | values & mask;
    }

    /// Sets a register in one lane.
    #[inline(always)]
    pub(super) fn set_lane(&mut self, register: AnyReg, lane: usize, value: u64) {
        match register {
            AnyReg::Word(W(slot)) => self.words[slot as usize][lane] = value as u32,
            AnyReg::Double(D(slot)) => self.doubles[slot as usize][lane] = value,
        }
    }

    #[inline(always)]
    pub(super) fn lane(&self, register: AnyReg, lane: usize) -> u64 {
        match register {
            AnyReg::Word(w) => u64::from(self.w(w)[lane]),
            AnyReg::Double(d) => self.d(d)[lane],
        }
    }

    /// The addresses of each lane.
    #[inline(always)]
    pub(super) fn addresses(&self, address: &Address) -> Doubles {
        let offset = address.offset as u64;
        match address.base {
            None => [offset; LANES],
            // 32-bit addresses stay within 32 bits.
            Some(AnyReg::Word(w)) => {
                let from = self.w(w);
                std::array::from_fn(|lane| u64::from(from[lane].wrapping_add(offset as u32)))
            }
            Some(AnyReg::Double(d)) => {
                let from = self.d(d);
                std::array::from_fn(|lane| from[lane].wrapping_add(offset))
            }
        }
    }

    #[inline(always)]
    pub(super) fn un(&mut self, d: W, a: W, mask: u32, f: impl Fn(u32) -> u32) {
        let a = *self.w(a);
        let values = std::array::from_fn(|lane| f(a[lane]));
        self.set_w(d, &values, mask);
    }

    #[inline(always)]
    pub(super) fn bin(&mut self, d: W, [a, b]: [W; 2], mask: u32, f: impl Fn(u32, u32) -> u32) {
        let (a, b) = (*self.w(a), *self.w(b));
        let values = std::array::from_fn(|lane| f(a[lane], b[lane]));
        self.set_w(d, &values, mask);
    }

    #[inline(always)]
    pub(super) fn tri(&mut self, d: W, [a, b, c]: [W; 3], mask: u32, f: impl Fn(u32, u32, u32) -> u32) {
        let (a, b, c) = (*self.w(a), *self.w(b), *self.w(c));
        let values = std::array::from_fn(|lane| f(a[lane], b[lane], c[lane]));
        self.set_w(d, &values, mask);
    }

    #[inline(always)]
    pub(super) fn long_un(&mut self, d: D, a: D, mask: u32, f: impl Fn(u64) -> u64) {
        let a = *self.d(a);
        let values = std::array::from_fn(|lane| f(a[lane]));
        self.set_d(d, &values, mask);
    }

    #[inline(always)]
    pub(super) fn long_bin(&mut self, d: D, [a, b]: [D; 2], mask: u32, f: impl Fn(u64, u64) -> u64) {
        let (a, b) = (*self.d(a), *self.d(b));
        let values = std::array::from_fn(|lane| f(a[lane], b[lane]));
        self.set_d(d, &values, mask);
    }

    #[inline(always)]
    pub(super) fn long_tri(&mut self, d: D, [a, b, c]: [D; 3], mask: u32, f: impl Fn(u64, u64, u64) -> u64) {
        let (a, b, c) = (*self.d(a), *self.d(b), *self.d(c));
        let values = std::array::from_fn(|lane| f(a[lane], b[lane], c[lane]));
        self.set_d(d, &values, mask);
    }

    #[inline(always)]
    pub(super) fn widen(&mut self, d: D, a: W, mask: u32, f: impl Fn(u32) -> u64) {
        let a = *self.w(a);
        let values = std::array::from_fn(|lane| f(a[lane]));
        self.set_d(d, &values, mask);
    }

    #[inline(always)]
    pub(super) fn narrow(&mut self, d: W, a: D, mask: u32, f: impl Fn(u64) -> u32) {
        let a = *self.d(a);
        let values = std::array::from_fn(|lane| f(a[lane]));
        self.set_w(d, &values, mask);
    }

    /// The lanes where a relation holds.
    #[inline(always)]
    pub(super) fn where_words(&self, a: W, b: W, f: impl Fn(u32, u32) -> bool) -> u32 {
        let (a, b) = (self.w(a), self.w(b));
        (0..LANES).fold(0, |mask, lane| mask | u32::from(f(a[lane], b[lane])) << lane)
    }

    #[inline(always)]
    pub(super) fn where_doubles(&self, a: D, b: D, f: impl Fn(u64, u64) -> bool) -> u32 {
        let (a, b) = (self.d(a), self.d(b));
        (0..LANES).fold(0, |mask, lane| mask | u32::from(f(a[lane], b[lane])) << lane)
    }

    /// Stores a comparison.
    #[inline(always)]
    pub(super) fn set_test(&mut self, to: &TestTo, holds: u32, mask: u32) {
        let joined = |this: &Self, value: u32| match to.with {
            None => value,
            Some((logic, p, negate)) => join(logic, value, this.guard(Guard { p, negate })),
        };
        let (value, contrary) = (joined(self, holds), joined(self, !holds));
        self.set_p(to.d, value, mask);
        if let Some(p) = to.contrary {
            self.set_p(p, contrary, mask);
        }
    }
}

#[inline(always)]
pub(super) fn join(logic: Logic, a: u32, b: u32) -> u32 {
    match logic {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}
