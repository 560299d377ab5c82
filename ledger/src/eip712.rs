//! Digests of typed data as EIP-712 has them.

pub use keccak_lanes::{keccak, keccak_each};
use serde::{Deserialize, Serialize};

/// An account or a contract.
pub type Address = [u8; 20];

/// A contract and its chain: part of every digest, so that a signature is worth nothing anywhere else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// EIP-155 id of the chain.
    pub chain_id: u64,
    /// Address of the contract that checks the signature.
    pub contract: Address,
}

const DOMAIN_TYPE: &str =
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)";

impl Domain {
    /// The domain separator.
    pub fn separator(&self) -> [u8; 32] {
        let parts = [
            keccak(DOMAIN_TYPE.as_bytes()),
            keccak(b"Dolphin"),
            keccak(b"1"),
            word(self.chain_id.into()),
            padded(&self.contract),
        ];
        keccak(parts.as_flattened())
    }

    /// The digest to sign: keccak256(0x1901, domain separator, struct hash).
    pub fn digest(&self, struct_hash: &[u8; 32]) -> [u8; 32] {
        let mut message = Vec::from([0x19, 0x01]);
        message.extend_from_slice(&self.separator());
        message.extend_from_slice(struct_hash);
        keccak(&message)
    }
}

/// A number as an ABI word.
pub(crate) fn word(value: u128) -> [u8; 32] {
    let mut word = [0; 32];
    word[16..].copy_from_slice(&value.to_be_bytes());
    word
}

/// An address as an ABI word.
pub(crate) fn padded(address: &Address) -> [u8; 32] {
    let mut word = [0; 32];
    word[12..].copy_from_slice(address);
    word
}
