//! Who is paid what. What needs no chain: cumulative [`voucher`]s and the [`plan`]s that divide them, the
//! [`terms`] a plan stands for, what payer and payee keep of one ([`tab`], [`account`]), and every digest that
//! the contracts in `contracts/` compute too. Beside payment, audits: what nodes and auditors commit to
//! ([`audit`]), which of it a [`beacon`] draws and for whom ([`draw`]). What needs a chain: the [`client`] of one
//! that has those contracts, and a chain of one's own ([`embedded`]).

#![forbid(unsafe_code)]

pub mod account;
pub mod audit;
pub mod beacon;
pub mod client;
pub mod dispute;
pub mod draw;
pub mod eip712;
pub mod embedded;
pub mod merkle;
pub mod model;
pub mod node;
pub mod plan;
pub mod rewards;
pub mod tab;
pub mod terms;
pub mod voucher;

/// Parameters of a deployment, as JSON: an example, and what development chains use.
pub const EXAMPLE_PARAMETERS: &str = include_str!("../contracts/script/local.json");
