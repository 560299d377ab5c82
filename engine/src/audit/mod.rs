//! Proof of what was computed. Arithmetic is exact, so whoever has the weights replays a whole reply on any
//! hardware and compares hashes by equality.
//!
//! In the order of the flow: a session's [`plan`] says who computes what, of which model, prompt and seed;
//! every stage hashes the rows that come in and go out ([`rows`]), and signs them chunk by chunk
//! ([`commitment`], made beside the stage's thread by [`recorder`]); the gateway joins what the stages signed to a
//! [`receipt`] and keeps it ([`store`]); anybody replays the receipt ([`verify`]). [`draw`] says which sessions an
//! [`auditor`] replays, once a beacon is known.
//!
//! On a chain a node keeps what it signed in a [`book`] with what proves it ([`evidence`]); its [`clerk`] posts the
//! roots, does what each case asks for ([`docket`]), and shows evidence to auditors ([`show`]). A disputed result goes
//! to [`court`], word by word of its [`trace`].
//!
//! Of auditors [`duty`] says what they owe, [`watch`] does it, and [`drand`] has the beacon's rounds.

pub mod auditor;
pub mod book;
pub mod clerk;
pub mod commitment;
pub mod court;
pub mod docket;
pub mod drand;
pub mod duty;
pub mod evidence;
pub mod plan;
pub mod receipt;
pub mod recorder;
mod replay;
pub mod rows;
pub mod show;
pub mod store;
pub mod trace;
pub mod verify;
pub mod watch;

pub use ledger::draw;

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod scene;
#[cfg(test)]
mod tests;
