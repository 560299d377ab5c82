//! Proof of what was computed. Arithmetic is exact, so whoever has the weights replays a whole reply on any
//! hardware and compares hashes by equality.
//!
//! In the order of the flow: a session's [`plan`] says who computes what, of which model, prompt and seed;
//! every stage hashes the rows that come in and go out ([`rows`]), and signs them chunk by chunk
//! ([`commitment`], made beside the stage's thread by [`recorder`]), and may keep them for a while
//! ([`retain`]); the gateway joins what the stages signed to a [`receipt`] and keeps it ([`store`]); anybody
//! replays the receipt ([`verify`]). [`draw`] says which sessions an [`auditor`] replays, once a beacon is known.

pub mod auditor;
pub mod commitment;
pub mod court;
pub mod evidence;
pub mod plan;
pub mod receipt;
pub mod recorder;
mod replay;
pub mod retain;
pub mod rows;
pub mod store;
pub mod trace;
pub mod verify;

pub use ledger::draw;

#[cfg(test)]
mod tests;
