//! Who is paid what. So far what needs no chain: cumulative [`voucher`]s and the [`plan`]s that divide them,
//! and every digest that the contracts in `contracts/` compute too. Keys and the chain come on top of it.

#![forbid(unsafe_code)]

pub mod eip712;
pub mod embedded;
pub mod merkle;
pub mod model;
pub mod node;
pub mod plan;
pub mod rewards;
pub mod voucher;
