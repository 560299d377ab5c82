//! NVIDIA cards: the operations of `kernels/cu` and what launches them.

#[cfg(feature = "cuda")]
mod backend;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod driver;
pub mod launch;
#[cfg(feature = "cuda")]
mod memory;
pub mod ops;
#[cfg(feature = "cuda")]
mod step;

#[cfg(feature = "cuda")]
pub use {
    backend::Cuda,
    device::{CardError, CardInfo, cards, driver_version},
};
