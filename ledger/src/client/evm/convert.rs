//! Between ethers' types and ours.

use ethers_core::types::{H160, H256, U256};

use crate::{client::Pod, eip712::Address};

pub(super) fn to_h160(address: &Address) -> H160 {
    H160(*address)
}

/// A number that a chain gave, as an amount. No token has 2^128 wei; what claims to is cut down to the most.
pub(super) fn to_u128(number: U256) -> u128 {
    u128::try_from(number).unwrap_or(u128::MAX)
}

pub(super) fn to_u64(number: U256) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

pub(super) fn to_pod(number: U256) -> Pod {
    Pod(to_u128(number))
}

/// A number as its 32 bytes, big-endian.
pub(super) fn to_bytes(number: U256) -> [u8; 32] {
    let mut bytes = [0; 32];
    number.to_big_endian(&mut bytes);
    bytes
}

pub(super) fn to_h256(hash: &[u8; 32]) -> H256 {
    H256(*hash)
}
