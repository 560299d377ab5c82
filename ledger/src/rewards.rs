//! Rewards: what each account has earned in all, under one Merkle root.

use crate::{
    eip712::{Address, Domain, padded, word},
    merkle,
};

/// The leaf that says what an account has earned in all, in the token's smallest unit; good for one
/// distributor contract alone.
pub fn leaf(distributor: &Domain, account: &Address, cumulative: u128) -> [u8; 32] {
    let chain = word(distributor.chain_id.into());
    merkle::leaf(&[chain, padded(&distributor.contract), padded(account), word(cumulative)])
}
