//! Payment between a gateway and the nodes that ask for it.
//!
//! A gateway has a **tab** with the paid nodes of a route: one [`ledger::plan::Plan`], one lock on the chain, and
//! one cumulative voucher that pays all of them. [`ledger::tab::Tab`] is its count of what it owes,
//! [`ledger::account::Account`] a node's of what it is owed. Neither task waits for a disk or a chain: the
//! [`purse`] signs, stores and locks for a gateway, the [`till`] checks, stores and collects for a node, each in
//! a task of its own with the [`chain`] behind it and a [`store`] under it. [`embedded`] is the chain of a swarm in one process.

pub mod chain;
pub mod embedded;
pub mod purse;
pub mod settle;
pub mod store;
pub mod till;

use std::time::{SystemTime, UNIX_EPOCH};

use ledger::client::Pod;

/// Seconds since 1970; 0 for a clock before that.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// A signature as it travels, as an array.
fn fixed(signature: &[u8]) -> Option<&[u8; 65]> {
    signature.try_into().ok()
}

/// Text of an amount in wei of POD: `0.000123`.
pub fn pod(wei: u128) -> String {
    Pod(wei).to_string()
}

/// Wei of one POD.
pub const ONE_POD: u128 = 1_000_000_000_000_000_000;
