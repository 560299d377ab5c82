//! Who is paid what. What needs no chain: cumulative [`voucher`]s and the [`plan`]s that divide them, the
//! [`terms`] a plan stands for, what payer and payee keep of one ([`tab`], [`account`]), [`signature`]s, and
//! every digest that the contracts in `contracts/` compute too.

#![forbid(unsafe_code)]

pub mod account;
pub mod eip712;
pub mod merkle;
pub mod model;
pub mod node;
pub mod plan;
pub mod rewards;
pub mod signature;
pub mod tab;
pub mod terms;
pub mod voucher;
