//! Cards by their makers' figures, and how fast work that was counted could go on them: estimates, no measurements.

use kernels::cuda::launch::Level;
use ptx_machine::Counts;
use serde::Serialize;

/// Registers, shared memory and spills of every kernel on every card, as `kernels/cu/build --assemble` prints them.
const RESOURCES: &str = include_str!("../../kernels/cu/ptx/resources.txt");

/// Registers of a multiprocessor, on every card.
const REGISTERS: u32 = 64 << 10;
/// Registers that a warp gets come in runs of so many.
const REGISTER_UNIT: u32 = 256;
/// Warp instructions that a multiprocessor issues in a cycle.
const ISSUED: f64 = 4.0;
/// Lanes of a warp.
const LANES: f64 = 32.0;
/// Instructions of a quotient or root that has nothing subnormal about it.
const DIVISION: u64 = 10;

/// A card, by public figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Card {
    /// What it is called.
    pub name: &'static str,
    /// Compute capability, `10 major + minor`.
    pub capability: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Boost clock.
    pub clock_mhz: f64,
    /// Bandwidth of its memory.
    pub memory_gb_s: f64,
    /// Dense products of int8 on the tensor cores, a multiply-add counted as two.
    pub int8_tops: f64,
    /// Who says so.
    pub source: &'static str,
}

/// The cards that estimates are made for.
pub static CARDS: [Card; 5] = [
    Card {
        name: "T4",
        capability: 75,
        multiprocessors: 40,
        clock_mhz: 1590.0,
        memory_gb_s: 320.0,
        int8_tops: 130.0,
        source: "NVIDIA Turing GPU Architecture whitepaper (2018); NVIDIA T4 datasheet",
    },
    Card {
        name: "RTX 3060 12 GB",
        capability: 86,
        multiprocessors: 28,
        clock_mhz: 1777.0,
        memory_gb_s: 360.0,
        int8_tops: 101.9,
        source: "NVIDIA GeForce RTX 3060 specifications; 2048 int8 operations a cycle and multiprocessor as in the \
                 NVIDIA Ampere GA102 whitepaper (2021)",
    },
    Card {
        name: "RTX 3090",
        capability: 86,
        multiprocessors: 82,
        clock_mhz: 1695.0,
        memory_gb_s: 936.0,
        int8_tops: 284.0,
        source: "NVIDIA Ampere GA102 GPU Architecture whitepaper (2021)",
    },
    Card {
        name: "RTX 4090",
        capability: 89,
        multiprocessors: 128,
        clock_mhz: 2520.0,
        memory_gb_s: 1008.0,
        int8_tops: 660.6,
        source: "NVIDIA Ada GPU Architecture whitepaper (2022)",
    },
    Card {
        name: "H200 SXM",
        capability: 90,
        multiprocessors: 132,
        clock_mhz: 1980.0,
        memory_gb_s: 4800.0,
        int8_tops: 1979.0,
        source: "NVIDIA H200 datasheet (2024), its figure with sparsity halved; clock by its 67 TFLOP/s of FP32",
    },
];

/// What a multiprocessor of a compute capability has (CUDA C++ Programming Guide, "Compute Capabilities" and
/// "Arithmetic Instructions").
#[derive(Clone, Copy, Debug)]
struct Multiprocessor {
    threads: u32,
    blocks: u32,
    /// Shared memory of all its blocks, and the most of one.
    shared: u32,
    shared_of_block: u32,
    /// Shared memory that each block loses to the system.
    reserved: u32,
    /// f32 and int32 operations in a cycle.
    floats: f64,
    integers: f64,
}

impl Card {
    const fn multiprocessor(&self) -> Multiprocessor {
        let (threads, blocks, shared, shared_of_block, reserved, floats) = match self.capability {
            75 => (1024, 16, 64, 64, 0, 64.0),
            80 => (2048, 32, 164, 163, 1, 64.0),
            86 => (1536, 16, 100, 99, 1, 128.0),
            89 => (1536, 24, 100, 99, 1, 128.0),
            _ => (2048, 32, 228, 227, 1, 128.0),
        };
        Multiprocessor {
            threads,
            blocks,
            shared: shared << 10,
            shared_of_block: shared_of_block << 10,
            reserved: reserved << 10,
            floats,
            integers: 64.0,
        }
    }

    /// Most shared memory of a block, in bytes.
    pub const fn shared_bytes(&self) -> u32 {
        self.multiprocessor().shared_of_block
    }

    /// The PTX that is made for it.
    pub const fn level(&self) -> Level {
        if self.capability >= 80 { Level::Ampere } else { Level::Turing }
    }

    /// Blocks of a kernel that a multiprocessor holds, and what keeps it from more.
    pub fn blocks(&self, resources: &Resources, threads: u32, dynamic_shared: u32) -> (u32, &'static str) {
        let limits = self.multiprocessor();
        let of_warp = (resources.registers * 32).next_multiple_of(REGISTER_UNIT);
        let shared = (resources.shared + dynamic_shared + limits.reserved).max(1);
        [
            (REGISTERS / of_warp.max(1) / threads.div_ceil(32), "registers"),
            (limits.shared / shared, "shared memory"),
            (limits.threads / threads, "threads"),
            (limits.blocks, "blocks"),
        ]
        .into_iter()
        .min_by_key(|&(blocks, _)| blocks)
        .expect("there are four limits")
    }
}

/// What a kernel takes on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of static shared memory.
    pub shared: u32,
    /// Bytes of registers that are stored and loaded for want of room.
    pub spilled: u32,
}

impl Resources {
    /// Of a kernel on cards of a compute capability; none if nobody assembled it.
    pub fn of(kernel: &str, capability: u32) -> Option<Self> {
        let card = format!("sm_{capability:>3}");
        RESOURCES.lines().find_map(|line| {
            let rest = line.strip_prefix(kernel)?.trim_start().strip_prefix(&card)?;
            let mut numbers = rest.split_whitespace().map_while(|number| number.parse().ok());
            Some(Self { registers: numbers.next()?, shared: numbers.next()?, spilled: numbers.next()? })
        })
    }
}

/// What a launch does.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// As counted.
    pub counts: Counts,
    /// Blocks of the launch.
    pub blocks: u64,
    /// Bytes that memory must move at least for it.
    pub least_bytes: u64,
}

/// What limits a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// The card's memory.
    Memory,
    /// Issue of instructions.
    Issue,
    /// f32 units.
    Float,
    /// int32 units.
    Integer,
    /// Tensor cores.
    Tensor,
    /// Banks of shared memory.
    Shared,
}

impl Unit {
    /// For a table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Issue => "issue",
            Self::Float => "f32",
            Self::Integer => "int32",
            Self::Tensor => "tensor",
            Self::Shared => "shared",
        }
    }
}

/// What a launch takes by public figures if the unit with the most to do is never idle. It knows nothing of latencies, of
/// traffic to the caches or of the gaps between launches, and takes instructions as PTX has them.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Estimate {
    /// Seconds.
    pub seconds: f64,
    /// What takes longest.
    pub bound: Unit,
    /// Seconds of the memory alone.
    pub memory_seconds: f64,
}

impl Estimate {
    /// Of work on a card. What multiprocessors do takes as long as on the one with the most blocks.
    pub fn of(card: &Card, work: &Work) -> Self {
        let Work { counts, blocks, least_bytes } = work;
        let (limits, count) = (card.multiprocessor(), u64::from(card.multiprocessors));
        let busiest = blocks.div_ceil(count) as f64 / (*blocks).max(1) as f64;
        let seconds = |cycles: f64| cycles * busiest / (card.clock_mhz * 1e6);
        let issued =
            counts.instructions().warps - counts.movement.warps + (DIVISION - 1) * counts.division.warps;
        let floats = counts.float.warps + counts.conversion.warps + DIVISION * counts.division.warps;
        let banks = counts.shared_read.cycles + counts.shared_written.cycles;
        let tensor = 2.0 * counts.mma_products as f64 / (card.int8_tops * 1e12);
        let memory_seconds = *least_bytes as f64 / (card.memory_gb_s * 1e9);
        let units = [
            (Unit::Memory, memory_seconds),
            (Unit::Issue, seconds(issued as f64 / ISSUED)),
            (Unit::Float, seconds(floats as f64 * LANES / limits.floats)),
            (Unit::Integer, seconds(counts.integer.warps as f64 * LANES / limits.integers)),
            (Unit::Tensor, tensor * busiest * count as f64),
            (Unit::Shared, seconds(banks as f64)),
        ];
        let longest = units.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let (bound, seconds) = longest.expect("there are units");
        Self { seconds, bound, memory_seconds }
    }

    /// Part of the memory's bandwidth that is used.
    pub fn share(&self) -> f64 {
        self.memory_seconds / self.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static RTX_3090: &Card = &CARDS[2];

    #[test]
    fn blocks_are_bound_by_what_runs_out_first() {
        let kernel = |registers| Resources { registers, shared: 16, spilled: 0 };
        assert_eq!(RTX_3090.blocks(&kernel(128), 256, 0), (2, "registers"));
        assert_eq!(RTX_3090.blocks(&kernel(129), 256, 0), (1, "registers"));
        assert_eq!(RTX_3090.blocks(&kernel(32), 256, 40 << 10), (2, "shared memory"));
        assert_eq!(RTX_3090.blocks(&kernel(32), 256, 0), (6, "threads"));
        assert_eq!(RTX_3090.blocks(&kernel(32), 32, 0), (16, "blocks"));
    }

    #[test]
    fn estimates_react_to_counts() {
        let work = |counts, blocks| Work { counts, blocks, least_bytes: 936_000 };
        let idle = Estimate::of(RTX_3090, &work(Counts::default(), 82));
        assert_eq!((idle.bound, idle.share()), (Unit::Memory, 1.0));
        assert!((idle.seconds - 1e-6).abs() < 1e-12, "936 kB at 936 GB/s");
        let mut counts = Counts::default();
        counts.float.warps = 82 * 4 * 16_950;
        let busy = Estimate::of(RTX_3090, &work(counts, 82));
        assert_eq!(busy.bound, Unit::Float);
        assert!((busy.seconds - 1e-5).abs() < 1e-12, "16 950 cycles at 1695 MHz");
        assert!((busy.share() - 0.1).abs() < 1e-9);
        let uneven = Estimate::of(RTX_3090, &work(counts, 83));
        assert!((uneven.seconds / busy.seconds - 2.0 * 82.0 / 83.0).abs() < 1e-9, "one has two blocks");
        counts.mma_products = 142_000_000_000;
        assert_eq!(Estimate::of(RTX_3090, &work(counts, 82)).bound, Unit::Tensor);
    }
}
