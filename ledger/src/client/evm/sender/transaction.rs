//! Signed transactions.

use ethers_core::types::{
    Eip1559TransactionRequest, NameOrAddress, Signature, U256, transaction::eip2718::TypedTransaction,
};
use serde::{Deserialize, Serialize};

use crate::client::{
    Key,
    event::hash,
    evm::{calls::Order, fees::Offer},
};

/// A transaction as it was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    #[serde(with = "hash")]
    pub(crate) hash: [u8; 32],
    /// Signed and encoded.
    #[serde(with = "hex::serde")]
    pub(crate) raw: Vec<u8>,
    pub(in crate::client::evm) offer: Offer,
}

/// Signs an order.
pub(in crate::client::evm) fn sign(
    key: &Key,
    chain_id: u64,
    nonce: u64,
    order: &Order,
    gas: u64,
    offer: Offer,
) -> Attempt {
    let request = request(chain_id, nonce, order, gas, offer);
    let (signature, recovery) = key.sign_parts(&request.sighash().0);
    let (r, s) = signature.split_bytes();
    let signature = Signature {
        r: U256::from_big_endian(&r),
        s: U256::from_big_endian(&s),
        v: recovery.to_byte().into(),
    };
    let raw = request.rlp_signed(&signature).to_vec();
    Attempt { hash: crate::eip712::keccak(&raw), raw, offer }
}

/// The bytes of a transaction before it is signed.
pub(in crate::client::evm) fn unsigned(
    chain_id: u64,
    nonce: u64,
    order: &Order,
    gas: u64,
    offer: Offer,
) -> Vec<u8> {
    request(chain_id, nonce, order, gas, offer).rlp().to_vec()
}

fn request(chain_id: u64, nonce: u64, order: &Order, gas: u64, offer: Offer) -> TypedTransaction {
    TypedTransaction::Eip1559(Eip1559TransactionRequest {
        from: None,
        to: order.to.map(NameOrAddress::Address),
        gas: Some(gas.into()),
        value: Some(order.value_wei.into()),
        data: Some(order.data.clone().into()),
        nonce: Some(nonce.into()),
        access_list: Default::default(),
        max_priority_fee_per_gas: Some(offer.tip_wei.into()),
        max_fee_per_gas: Some(offer.max_wei.into()),
        chain_id: Some(chain_id.into()),
    })
}
