//! Weights from others: a node without the model's files gets those of its layers from its gateways and from other
//! nodes, over the same links as everything else.
//!
//! A gateway that has the files describes them in a `catalogue` and gives pieces of them (`give`), a bounded
//! number at a time and no faster than it was told. The node keeps what it has fetched in a `mirror`: files as
//! long as the gateway's, in which only the tensors of its layers are written. Every tensor is quantised and
//! hashed as it becomes complete, and counts as fetched only if it is under the model hash. So what was verified is
//! never fetched again, neither after a restart nor for other layers; it is on a `shelf`, from which the node gives
//! in turn. Whoever fetches asks its gateway for nodes that have something (`fetch`), and has several givers at work
//! at once (`gather`).

mod catalogue;
mod fetch;
mod gather;
mod give;
mod hub;
mod mirror;
mod pace;
mod shelf;
mod source;

#[cfg(test)]
mod tests;

pub use fetch::{FetchError, Fetcher};
pub use give::Stock;
pub(crate) use give::{Giver, Taking};
pub use mirror::{Mirror, MirrorError};
pub(crate) use pace::Pace;
pub use source::SeekError;
pub(crate) use source::{Answer, Dialler, Errand};
