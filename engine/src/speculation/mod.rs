//! Lossless speculation: guesses at a reply's next tokens, sent along with the last known one. The last
//! stage draws at every row and keeps the guesses that equal the draws, so the reply does not change.
//!
//! Guesses come from texts ([`lookup`]) or from a small model ([`drafter`]); the [`controller`] decides
//! how many are worth sending, by what the route's [`clock`] says.

pub mod clock;
pub mod controller;
pub mod drafter;
pub mod lookup;
