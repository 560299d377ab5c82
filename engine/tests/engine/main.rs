//! What the engine promises, tested from outside: parity with transformers, the same bytes however a
//! model is cut and batched, and a swarm that serves over real links.

mod account;
#[cfg(unix)]
mod audited;
mod bits;
#[cfg(feature = "cuda")]
mod cards;
mod fetching;
mod kquants;
#[cfg(unix)]
mod links;
mod market;
mod moving;
mod pages;
mod parity;
mod payment;
mod planner;
mod process;
mod receipts;
mod resume;
mod sharing;
mod slow;
mod support;
mod swarm;
