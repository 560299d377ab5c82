//! Who is paid what. So far the arithmetic of payment alone: cumulative [`voucher`]s, their EIP-712
//! digests and their division among stages. Contracts, keys and the chain come on top of it.

#![forbid(unsafe_code)]

pub mod voucher;
