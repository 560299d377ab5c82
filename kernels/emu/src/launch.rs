//! Launching a kernel.

use std::ops::Range;

use crate::{Counts, Memory, Module, Trap, machine};

/// A kernel, its threads and its parameters.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel's name.
    pub kernel: &'a str,
    /// Blocks in each dimension.
    pub grid: [u32; 3],
    /// Threads of a block in each dimension.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The parameters as they lie in the parameter space.
    pub params: &'a [u8],
}

/// How a launch is run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which block and which warp goes first.
    pub order: Order,
    /// When asynchronous copies land.
    pub copies: Copies,
    /// Whether accesses that nothing orders, and reads of global memory that nobody wrote, are errors.
    pub races: bool,
    /// Most instructions, each of a warp; none for no limit.
    pub budget: Option<u64>,
}

/// The order of blocks, and of warps within a block between barriers. No right program's result depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they are counted.
    Ascending,
    /// The last first.
    Descending,
    /// As the seed has it.
    Shuffled(u64),
}

/// When an asynchronous copy's bytes arrive in shared memory. No right program's result depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// When it is issued.
    Eager,
    /// When it is waited for.
    Late,
}

impl Default for Options {
    fn default() -> Self {
        Self { order: Order::Ascending, copies: Copies::Late, races: false, budget: None }
    }
}

/// Runs a launch to its end.
///
/// # Errors
/// A [`Trap`] says what is wrong with the launch or with the kernel. Memory is then as the kernel left it.
pub fn run(
    module: &Module,
    memory: &mut Memory,
    launch: &Launch<'_>,
    options: &Options,
) -> Result<Counts, Trap> {
    machine::run(module, memory, launch, options, None)
}

/// Runs the blocks `part` of a launch, counted with x first, as they run beside the others: what they count is their
/// share of the whole.
///
/// # Errors
/// As [`run`]; if the launch has not so many blocks.
pub fn run_blocks(
    module: &Module,
    memory: &mut Memory,
    launch: &Launch<'_>,
    options: &Options,
    part: Range<u64>,
) -> Result<Counts, Trap> {
    machine::run(module, memory, launch, options, Some(part))
}
