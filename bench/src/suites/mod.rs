//! The suites.

pub mod compare;
pub mod decode;
pub mod honest;
pub mod hops;
pub mod kernels;
pub mod plan;
pub mod serve;
mod shape;
pub mod soak;
pub mod speculation;
pub mod transport;
pub mod verify;
mod wide;
