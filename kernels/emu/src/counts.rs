//! What a launch did.

use std::ops::AddAssign;

/// Instructions issued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// By warps.
    pub warps: u64,
    /// By lanes that took part.
    pub lanes: u64,
}

/// Traffic to global memory, before any cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Instructions of a warp.
    pub requests: u64,
    /// Bytes that lanes asked for.
    pub bytes: u64,
    /// Aligned runs of 32 bytes that the requests touched: 32 times this over `bytes` is the waste.
    pub sectors: u64,
}

/// Accesses to shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Banks {
    /// Instructions of a warp.
    pub requests: u64,
    /// Bytes that lanes asked for.
    pub bytes: u64,
    /// Cycles that they take in the banks: each serves one word of 4 bytes a cycle.
    pub cycles: u64,
    /// Those of the cycles that a better layout would save.
    pub conflicts: u64,
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Integer arithmetic, comparisons and selections.
    pub integer: Tally,
    /// Sums, products and comparisons of f32, f16 and f64.
    pub float: Tally,
    /// Quotients and roots of floats: some ten to thirty instructions of a card each.
    pub division: Tally,
    /// Conversions to floats, from them and between them.
    pub conversion: Tally,
    /// Moves, integers made wider or narrower, addresses made generic, loads of parameters: what an assembler mostly
    /// does away with.
    pub movement: Tally,
    /// Loads, stores and atomics, but of parameters.
    pub memory: Tally,
    /// Asynchronous copies from global to shared memory.
    pub copy: Tally,
    /// Tensor core products.
    pub mma: Tally,
    /// Shuffles, votes, matches and reductions within a warp.
    pub shuffle: Tally,
    /// Barriers and fences.
    pub barrier: Tally,
    /// Branches and ends.
    pub control: Tally,
    /// Everything else: hints, waits for copies.
    pub other: Tally,
    /// Loads from global memory, asynchronous copies and atomics among them.
    pub global_read: Traffic,
    /// Stores to global memory, atomics among them.
    pub global_written: Traffic,
    /// Loads from shared memory.
    pub shared_read: Banks,
    /// Stores to shared memory, asynchronous copies and atomics among them.
    pub shared_written: Banks,
    /// Multiply-adds of the tensor cores.
    pub mma_products: u64,
}

impl Counts {
    /// Instructions of all classes.
    pub fn instructions(&self) -> Tally {
        let mut all = Tally::default();
        for tally in [
            self.integer,
            self.float,
            self.division,
            self.conversion,
            self.movement,
            self.memory,
            self.copy,
            self.mma,
            self.shuffle,
            self.barrier,
            self.control,
            self.other,
        ] {
            all += tally;
        }
        all
    }

    /// As much work `count` times over.
    #[must_use]
    pub fn times(self, mut count: u64) -> Self {
        let (mut sum, mut power) = (Self::default(), self);
        while count > 0 {
            if count & 1 == 1 {
                sum += power;
            }
            count >>= 1;
            let half = power;
            power += half;
        }
        sum
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.warps += other.warps;
        self.lanes += other.lanes;
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.sectors += other.sectors;
    }
}

impl AddAssign for Banks {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.cycles += other.cycles;
        self.conflicts += other.conflicts;
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.integer += other.integer;
        self.float += other.float;
        self.division += other.division;
        self.conversion += other.conversion;
        self.movement += other.movement;
        self.memory += other.memory;
        self.copy += other.copy;
        self.mma += other.mma;
        self.shuffle += other.shuffle;
        self.barrier += other.barrier;
        self.control += other.control;
        self.other += other.other;
        self.global_read += other.global_read;
        self.global_written += other.global_written;
        self.shared_read += other.shared_read;
        self.shared_written += other.shared_written;
        self.mma_products += other.mma_products;
    }
}
