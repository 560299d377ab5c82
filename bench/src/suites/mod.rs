//! The suites.

pub mod decode;
pub mod serve;
pub mod transport;
