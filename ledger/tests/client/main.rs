//! The client against whole chains: the embedded one, and anvil where it is installed. Its path is in
//! `DOLPHIN_ANVIL`, or it is in `PATH`; `ledger/contracts/check anvil` runs these with a pinned one.

mod actions;
mod audits;
mod faults;
mod net;
mod proxy;
mod reorganisations;
