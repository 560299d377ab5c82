//! The suites.

pub mod compare;
pub mod decode;
pub mod serve;
pub mod transport;
