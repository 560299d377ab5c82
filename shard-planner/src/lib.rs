//! Who holds which layers, and which nodes form a pipeline. Pure and deterministic: no I/O, no clock.
//!
//! A model is a line of **units**: the embedding, the layers, the head. [`split`] cuts it over nodes,
//! [`vacancy`] says what one more node should hold, and [`cover`] finds a pipeline among nodes that
//! hold overlapping ranges.

#![forbid(unsafe_code)]

mod cover;
mod split;

pub use cover::{Gap, Leg, Span, cover};
pub use split::{Costs, SplitError, split, vacancy};
