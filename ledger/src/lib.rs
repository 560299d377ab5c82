//! Who is paid what: cumulative [`voucher`]s and the [`plan`]s that divide them, every digest that the contracts
//! in `contracts/` compute too, and the [`client`] of a chain that has those contracts.

#![forbid(unsafe_code)]

pub mod client;
pub mod eip712;
pub mod embedded;
pub mod merkle;
pub mod model;
pub mod node;
pub mod plan;
pub mod rewards;
pub mod voucher;

/// Parameters of a deployment, as JSON: an example, and what development chains use.
pub const EXAMPLE_PARAMETERS: &str = include_str!("../contracts/script/local.json");
