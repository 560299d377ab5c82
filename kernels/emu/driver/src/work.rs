//! What stands in a queue, and doing it.

use std::{sync::Arc, time::Instant};

use ptx_machine::{Fault, MemoryError, Trap};

use crate::{
    boundary::HostAddress,
    code::Code,
    ptx::Program,
    state::{Handle, State},
    stream::{Mark, Recorded},
};

/// A piece of work.
#[derive(Clone)]
pub(crate) enum Work {
    /// Runs a kernel.
    Launch(Launch),
    /// Copies from the host to the card.
    In { to: u64, from: Source },
    /// Copies from the card to the host.
    Out { to: HostAddress, from: u64, bytes: usize },
    /// Copies on the card.
    Copy { to: u64, from: u64, bytes: usize },
    /// Copies between cards.
    Across { to: (usize, u64), from: (usize, u64), bytes: usize },
    /// Repeats a pattern.
    Fill { to: u64, pattern: Pattern, count: usize },
    /// Frees memory.
    Free(u64),
    /// Waits for a point in another stream.
    Wait(Mark),
    /// Takes the time for an event, if this is still its last record.
    Record { event: Handle, mark: Mark },
}

/// Where bytes come from.
#[derive(Clone)]
pub(crate) enum Source {
    /// A copy of pageable memory, taken when the call was made.
    Staged(Arc<[u8]>),
    /// Pinned memory, read when the work runs.
    Pinned { from: HostAddress, bytes: usize },
}

/// One, two or four bytes.
#[derive(Clone, Copy)]
pub(crate) struct Pattern {
    pub(crate) bytes: [u8; 4],
    pub(crate) width: usize,
}

/// A kernel with what it is launched with.
#[derive(Clone)]
pub(crate) struct Launch {
    pub(crate) module: Handle,
    pub(crate) program: Arc<Program>,
    pub(crate) kernel: Arc<str>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
    pub(crate) params: Arc<[u8]>,
    pub(crate) strike: Option<Strike>,
}

/// A failure on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strike {
    Fault,
    Hang,
}

impl State {
    /// Does a piece of work. Its error is the context's from then on.
    pub(crate) fn perform(&mut self, card: usize, work: &Work) -> Result<(), Code> {
        match work {
            Work::Launch(launch) => self.run(card, launch),
            Work::In { to, from } => self.copy_in(card, *to, from),
            Work::Out { to, from, bytes } => self.copy_out(card, *to, *from, *bytes),
            Work::Copy { to, from, bytes } => self.copy((card, *to), (card, *from), *bytes),
            Work::Across { to, from, bytes } => self.copy(*to, *from, *bytes),
            Work::Fill { to, pattern, count } => self.fill(card, *to, *pattern, *count),
            Work::Free(address) => {
                let context = self.context_mut(card)?;
                context.allocations.remove(address);
                context.memory.free(*address).map_err(|error| bad_memory("a free", &error))
            }
            Work::Wait(_) => Ok(()),
            Work::Record { event, mark } => {
                if let Some(event) = self.events.get_mut(event)
                    && event.recorded == Recorded::Queued(*mark)
                {
                    event.at = Some(Instant::now());
                }
                Ok(())
            }
        }
    }

    fn copy_in(&mut self, card: usize, to: u64, from: &Source) -> Result<(), Code> {
        let staged = match from {
            Source::Staged(bytes) => Arc::clone(bytes),
            Source::Pinned { from, bytes } => {
                self.still_pinned(*from, *bytes)?;
                from.read(*bytes)?.into()
            }
        };
        self.tally.bytes_in += staged.len() as u64;
        let memory = &mut self.context_mut(card)?.memory;
        memory.write(to, &staged).map_err(|error| bad_memory("a copy from the host", &error))
    }

    fn copy_out(&mut self, card: usize, to: HostAddress, from: u64, bytes: usize) -> Result<(), Code> {
        let mut copy = vec![0; bytes];
        let memory = &self.context(card)?.memory;
        memory.read(from, &mut copy).map_err(|error| bad_memory("a copy to the host", &error))?;
        self.tally.bytes_out += bytes as u64;
        to.write(&copy)
    }

    fn copy(&mut self, to: (usize, u64), from: (usize, u64), bytes: usize) -> Result<(), Code> {
        let mut copy = vec![0; bytes];
        let memory = &self.context(from.0)?.memory;
        memory.read(from.1, &mut copy).map_err(|error| bad_memory("a copy on the card", &error))?;
        let memory = &mut self.context_mut(to.0)?.memory;
        memory.write(to.1, &copy).map_err(|error| bad_memory("a copy on the card", &error))
    }

    fn fill(&mut self, card: usize, to: u64, pattern: Pattern, count: usize) -> Result<(), Code> {
        const RUN: usize = 1 << 16;
        let filled = pattern.bytes[..pattern.width].repeat(count.min(RUN));
        let memory = &mut self.context_mut(card)?.memory;
        let (mut at, mut left) = (to, count * pattern.width);
        while left > 0 {
            let run = &filled[..left.min(filled.len())];
            memory.write(at, run).map_err(|error| bad_memory("a memset", &error))?;
            at += run.len() as u64;
            left -= run.len();
        }
        Ok(())
    }

    /// A graph may come back to pinned memory that is no more.
    pub(crate) fn still_pinned(&self, address: HostAddress, bytes: usize) -> Result<(), Code> {
        if self.is_pinned(address, bytes) {
            return Ok(());
        }
        eprintln!("stand-in driver: a graph copies {bytes} bytes of host memory that is no longer pinned");
        Err(Code::IllegalAddress)
    }

    fn run(&mut self, card: usize, launch: &Launch) -> Result<(), Code> {
        if !self.modules.contains_key(&launch.module) {
            eprintln!("stand-in driver: kernel `{}` runs after its module was unloaded", launch.kernel);
            return Err(Code::LaunchFailed);
        }
        if launch.strike == Some(Strike::Fault) {
            eprintln!("stand-in driver: kernel `{}` faults, as was asked for", launch.kernel);
            return Err(Code::IllegalAddress);
        }
        let Launch { kernel, grid, block, shared, params, .. } = launch;
        let (grid, block, shared) = (*grid, *block, *shared);
        let machine = ptx_machine::Launch { kernel, grid, block, shared, params };
        let options = self.settings.machine;
        let memory = &mut self.context_mut(card)?.memory;
        match ptx_machine::run(&launch.program.machine, memory, &machine, &options) {
            Ok(_) => Ok(()),
            Err(trap) => {
                eprintln!("stand-in driver: {trap}");
                Err(code_of(&trap))
            }
        }
    }
}

/// What a card would answer.
fn code_of(trap: &Trap) -> Code {
    match trap.fault {
        Fault::OutOfBounds { .. } | Fault::Constant { .. } => Code::IllegalAddress,
        Fault::Misaligned { .. } => Code::MisalignedAddress,
        Fault::Budget(_) => Code::LaunchTimeout,
        _ => Code::LaunchFailed,
    }
}

fn bad_memory(what: &str, error: &MemoryError) -> Code {
    eprintln!("stand-in driver: {what}: {error}");
    Code::IllegalAddress
}
