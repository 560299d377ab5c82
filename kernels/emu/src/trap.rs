//! Why a launch could not be run to its end.

use std::fmt;

use thiserror::Error;

/// A launch that went wrong, and where.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub struct Trap {
    /// What went wrong.
    pub fault: Fault,
    /// The kernel.
    pub kernel: String,
    /// Where, unless the launch itself is at fault.
    pub place: Option<Box<Place>>,
}

/// A thread at an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `%ctaid`.
    pub block: [u32; 3],
    /// `%tid`; the first one where several are concerned.
    pub thread: [u32; 3],
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// The instruction.
    pub text: String,
}

/// What went wrong.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The module has no such kernel.
    #[error("the module has no such kernel")]
    UnknownKernel,
    /// The shape or the parameters are not what the kernel was compiled for.
    #[error("bad launch: {0}")]
    BadLaunch(String),
    /// An access outside of what is allocated.
    #[error("{bytes} bytes at {address:#x} of {space} memory: {nearest}")]
    OutOfBounds {
        /// The state space.
        space: &'static str,
        /// The first byte's address.
        address: u64,
        /// Bytes of the access.
        bytes: u64,
        /// What lies there, or near.
        nearest: String,
    },
    /// An access at an address that is no multiple of its size.
    #[error("{bytes} bytes at {address:#x} of {space} memory are misaligned")]
    Misaligned {
        /// The state space.
        space: &'static str,
        /// The first byte's address.
        address: u64,
        /// Bytes of the access.
        bytes: u64,
    },
    /// A store to memory that cannot be written.
    #[error("{address:#x} is constant")]
    Constant {
        /// The address.
        address: u64,
    },
    /// A read of memory that nobody wrote.
    #[error("{address:#x} of {space} memory was never written")]
    Uninitialised {
        /// The state space.
        space: &'static str,
        /// The first byte's address.
        address: u64,
    },
    /// Two accesses, one of them a write, that nothing orders.
    #[error("race at {address:#x} of {space} memory: this {access} and the {earlier} are not ordered")]
    Race {
        /// The state space.
        space: &'static str,
        /// The address.
        address: u64,
        /// What the thread did: `read`, `write`, `atomic`.
        access: &'static str,
        /// What was done before, and by whom.
        earlier: String,
    },
    /// Threads of a warp at different barriers, or threads that wait for others which cannot come.
    #[error("threads wait that cannot go on: {0}")]
    Deadlock(String),
    /// A barrier, a shuffle or another collective of a warp that is used against its rules.
    #[error("{0}")]
    Collective(String),
    /// More instructions than the launch may take.
    #[error("more than {0} instructions")]
    Budget(u64),
    /// The kernel itself gave up.
    #[error("the kernel executed `trap`")]
    Explicit,
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel `{}`: {}", self.kernel, self.fault)?;
        if let Some(place) = &self.place {
            let Place { block, thread, line, text } = &**place;
            write!(f, " (block {block:?}, thread {thread:?}, PTX line {line}: `{text}`)")?;
        }
        Ok(())
    }
}
