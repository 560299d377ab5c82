//! NVIDIA cards: the operations of `kernels/cu` and what launches them.

pub mod launch;
pub mod ops;
