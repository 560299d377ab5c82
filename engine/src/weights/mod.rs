//! Weights from others: a node without the model's files gets those of its layers from its gateways, over the
//! same links as everything else.
//!
//! A gateway that has the files describes them in a `catalogue` and gives pieces of them (`give`), a bounded
//! number at a time and no faster than it was told. The node keeps what it has fetched in a `mirror`: files as
//! long as the gateway's, in which only the tensors of its layers are written. Every tensor is quantised and
//! hashed as it becomes complete, and counts as fetched only if it is under the model hash (`fetch`). So what
//! was verified is never fetched again, neither after a restart nor for other layers.

mod catalogue;
mod fetch;
mod give;
mod mirror;
mod pace;
mod source;

#[cfg(test)]
mod tests;

pub use fetch::{FetchError, Fetcher};
pub use give::Stock;
pub(crate) use give::{Giver, Taking};
pub use mirror::{Mirror, MirrorError};
pub(crate) use source::Source;
pub use source::{SeekError, Seeker};
