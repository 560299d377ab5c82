//! The same bytes as the reference, fast: sixteen-lane vectors, weights packed for them, a pool of
//! threads.
//!
//! Read in this order: `simd` (the vector), `portable`, `avx2`, `avx512` (its forms), `isa` (which of
//! them this CPU has), `parts` and `pool` (threads), `memory`, `rows` and `matrix` (storage), `math` (exp,
//! norms, the quantiser), `kquants` (super-blocks), `linear`, `tiles` and `amx` (its form for tile units),
//! `heads` (qk-norm, RoPE), `kv`, `attention`, `backend` (the seam). `peak` is for measurements.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod backend;
#[cfg(test)]
mod exhaustive;
mod heads;
mod isa;
mod kquants;
mod kv;
mod linear;
mod math;
mod matrix;
mod memory;
mod parts;
mod peak;
mod pool;
mod portable;
mod rows;
mod simd;
mod tiles;

use std::sync::Arc;

use thiserror::Error;

pub use self::{
    isa::Isa,
    kv::Kv,
    matrix::Matrix,
    peak::multiply_adds,
    rows::{Activation, Buffer},
};
use self::{isa::Proof, memory::Memory, pool::Pool};

/// The CPU as a device. Clones share the threads; stages that share them take turns, one operation at a
/// time.
#[derive(Clone)]
pub struct Cpu {
    inner: Arc<Inner>,
}

struct Inner {
    proof: Proof,
    pool: Pool,
    memory: Memory,
}

/// A CPU backend that cannot be had.
#[derive(Debug, Error)]
pub enum CpuError {
    /// The CPU has not these instructions.
    #[error("this CPU has no {0}")]
    Unavailable(Isa),
    /// No threads at all, or more than any machine has.
    #[error("{0} threads are not between 1 and {max}", max = Cpu::MAX_THREADS)]
    Threads(usize),
    /// The system refused to start a thread.
    #[error("the system starts no thread: {0}")]
    Spawn(#[source] std::io::Error),
}

impl Cpu {
    /// Largest number of threads.
    pub const MAX_THREADS: usize = 1024;

    /// A backend that computes on `threads` threads, the caller's among them.
    pub fn new(threads: usize, isa: Isa) -> Result<Self, CpuError> {
        let proof = Proof::of(isa).ok_or(CpuError::Unavailable(isa))?;
        if !(1..=Self::MAX_THREADS).contains(&threads) {
            return Err(CpuError::Threads(threads));
        }
        let pool = Pool::new(threads).map_err(CpuError::Spawn)?;
        Ok(Self { inner: Arc::new(Inner { proof, pool, memory: Memory::default() }) })
    }

    /// Threads in use, the caller's among them.
    pub fn threads(&self) -> usize {
        self.inner.pool.threads()
    }

    /// Instructions in use.
    pub fn isa(&self) -> Isa {
        self.inner.proof.isa()
    }

    fn proof(&self) -> Proof {
        self.inner.proof
    }

    fn pool(&self) -> &Pool {
        &self.inner.pool
    }

    fn memory(&self) -> &Memory {
        &self.inner.memory
    }
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cpu").field("isa", &self.isa()).field("threads", &self.threads()).finish()
    }
}
