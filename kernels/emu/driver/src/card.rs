//! The cards that the driver pretends to have.

use std::collections::BTreeMap;

use ptx_machine::Memory;

use crate::{code::Code, state::Handle};

/// What a card is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) capability: (u32, u32),
    limits: Limits,
}

/// What kernels of a compute capability may take (CUDA programming guide, technical specifications), with the
/// rates of one card of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    multiprocessors: u32,
    threads_per_multiprocessor: u32,
    blocks_per_multiprocessor: u32,
    shared_per_multiprocessor: u32,
    shared_per_block: u32,
    l2_bytes: u32,
    clock_khz: u32,
    memory_clock_khz: u32,
    bus_bits: u32,
}

const fn limits(
    [multiprocessors, threads, blocks]: [u32; 3],
    [shared_kib, shared_block_kib, l2_mib]: [u32; 3],
    [clock_khz, memory_clock_khz, bus_bits]: [u32; 3],
) -> Limits {
    Limits {
        multiprocessors,
        threads_per_multiprocessor: threads,
        blocks_per_multiprocessor: blocks,
        shared_per_multiprocessor: shared_kib << 10,
        shared_per_block: shared_block_kib << 10,
        l2_bytes: l2_mib << 20,
        clock_khz,
        memory_clock_khz,
        bus_bits,
    }
}

impl Model {
    /// Bytes of shared memory that a block gets without asking for more.
    pub(crate) const SHARED_DEFAULT: u32 = 48 << 10;

    /// `8.9` or `8.9:Name`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (capability, name) = text.split_once(':').map_or((text, None), |(card, name)| (card, Some(name)));
        let (major, minor) = capability.trim().split_once('.')?;
        let capability = (major.parse().ok()?, minor.parse().ok()?);
        let limits = match capability {
            (6, 1) => limits([28, 2048, 32], [96, 48, 2], [1_582_000, 5_505_000, 352]),
            (7, 0) => limits([80, 2048, 32], [96, 96, 6], [1_380_000, 877_000, 4096]),
            (7, 5) => limits([40, 1024, 16], [64, 64, 4], [1_590_000, 5_001_000, 256]),
            (8, 0) => limits([108, 2048, 32], [164, 163, 40], [1_410_000, 1_215_000, 5120]),
            (8, 6) => limits([82, 1536, 16], [100, 99, 6], [1_695_000, 9_751_000, 384]),
            (8, 9) => limits([128, 1536, 24], [100, 99, 72], [2_520_000, 10_501_000, 384]),
            (9, 0) => limits([132, 2048, 32], [228, 227, 50], [1_980_000, 2_619_000, 5120]),
            (10, 0) => limits([148, 2048, 32], [228, 227, 126], [1_965_000, 3_996_000, 8192]),
            (12, 0) => limits([170, 1536, 24], [100, 99, 96], [2_407_000, 14_001_000, 512]),
            _ => return None,
        };
        let name = name.map_or_else(|| format!("Stand-in {}.{}", capability.0, capability.1), str::to_owned);
        Some(Self { name, capability, limits })
    }

    /// Most bytes of shared memory that a block may ask for.
    pub(crate) fn shared_per_block(&self) -> u32 {
        self.limits.shared_per_block
    }

    /// Bytes of shared memory of a multiprocessor.
    pub(crate) fn shared_per_multiprocessor(&self) -> u32 {
        self.limits.shared_per_multiprocessor
    }

    /// Bytes of shared memory that the system takes of each block's.
    pub(crate) fn shared_reserved(&self) -> u32 {
        if self.capability.0 >= 8 { 1 << 10 } else { 0 }
    }

    /// Most threads that are active at once on a multiprocessor.
    pub(crate) fn threads_per_multiprocessor(&self) -> u32 {
        self.limits.threads_per_multiprocessor
    }

    /// Most blocks that are active at once on a multiprocessor.
    pub(crate) fn blocks_per_multiprocessor(&self) -> u32 {
        self.limits.blocks_per_multiprocessor
    }

    /// A device attribute by its number in the driver's interface.
    pub(crate) fn attribute(&self, number: u32, ordinal: usize) -> Result<u32, Code> {
        let limits = &self.limits;
        Ok(match number {
            1..=3 => 1024,                 // threads of a block; its x; its y
            4 => 64,                       // z of a block
            5 => i32::MAX as u32,          // x of a grid
            6 | 7 => 65535,                // y and z of a grid
            8 => Self::SHARED_DEFAULT,     // shared memory of a block
            9 => 65536,                    // constant memory
            10 => 32,                      // threads of a warp
            11 => i32::MAX as u32,         // pitch
            12 | 82 => 65536,              // registers of a block; of a multiprocessor
            13 => limits.clock_khz,        // clock
            14 => 512,                     // alignment of textures
            15 | 19 | 31 | 41 | 78 => 1, // overlap, mapped memory, concurrent kernels, one address space, priorities
            16 => limits.multiprocessors, // multiprocessors
            17 | 18 | 20 | 32 | 35 => 0, // time limit, integrated, compute mode, ECC, TCC
            33 => 1 + ordinal as u32,    // PCI bus
            34 | 50 => 0,                // PCI device and domain
            36 => limits.memory_clock_khz, // memory clock
            37 => limits.bus_bits,       // memory bus
            38 => limits.l2_bytes,       // L2 cache
            39 => self.threads_per_multiprocessor(),
            40 => 2,                 // copy engines
            75 => self.capability.0, // compute capability
            76 => self.capability.1,
            79 | 80 | 90 | 99 | 115 => 1, // L1 caches, preemption, registered memory, memory pools
            81 => limits.shared_per_multiprocessor,
            83 | 84 | 86 | 88 | 89 | 91 => 0, // managed memory, twin boards, atomics to the host, pageable memory
            95 | 96 => 0,                     // cooperative launches
            97 => limits.shared_per_block,    // shared memory of a block that asks for it
            106 => limits.blocks_per_multiprocessor,
            111 => self.shared_reserved(),
            0 | 151.. => return Err(Code::InvalidValue),
            _ => return Err(Code::NotSupported),
        })
    }
}

/// A card in the machine.
pub(crate) struct Card {
    pub(crate) model: Model,
    pub(crate) memory_bytes: u64,
    pub(crate) lost: bool,
    /// Its primary context while somebody retains it.
    pub(crate) context: Option<Context>,
}

/// A card's primary context.
pub(crate) struct Context {
    pub(crate) handle: Handle,
    /// Who retained it and did not release it yet.
    pub(crate) references: usize,
    /// The failure that every call answers with from now on.
    pub(crate) error: Option<Code>,
    pub(crate) memory: Memory,
    /// What is allocated, by address.
    pub(crate) allocations: BTreeMap<u64, Allocation>,
    /// The default stream.
    pub(crate) stream: Handle,
}

/// A piece of device memory.
pub(crate) struct Allocation {
    pub(crate) bytes: u64,
    /// Whether a free is queued.
    pub(crate) freed: bool,
}

impl Context {
    /// Whether a range lies within one allocation.
    pub(crate) fn holds(&self, address: u64, bytes: u64) -> bool {
        self.allocations.range(..=address).next_back().is_some_and(|(base, allocation)| {
            let offset = address - base;
            offset <= allocation.bytes && bytes <= allocation.bytes - offset
        })
    }
}
