//! Signatures of accounts: 65 bytes r, s, v over a digest, as the contracts take them.

use k256::ecdsa::{RecoveryId, Signature, SigningKey, VerifyingKey};
use thiserror::Error;

use crate::eip712::{Address, keccak};

/// An account's key.
#[derive(Clone)]
pub struct Key {
    secret: SigningKey,
    address: Address,
}

/// The bytes are no key.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("these 32 bytes are no secp256k1 key")]
pub struct BadKey;

impl Key {
    /// A key from its 32 bytes.
    pub fn from_bytes(secret: &[u8; 32]) -> Result<Self, BadKey> {
        let secret = SigningKey::from_slice(secret).map_err(|_| BadKey)?;
        let point = secret.verifying_key().to_encoded_point(false);
        let address = *keccak(&point.as_bytes()[1..]).last_chunk().expect("32 bytes end with 20");
        Ok(Self { secret, address })
    }

    /// The account.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Signs a digest: r, s and 27 or 28, as contracts and wallets take it.
    pub fn sign(&self, digest: &[u8; 32]) -> [u8; 65] {
        let signed = self.secret.sign_prehash_recoverable(digest);
        let (signature, recovery) = signed.expect("nobody can find a digest that no key signs");
        let mut bytes = [0; 65];
        bytes[..64].copy_from_slice(&signature.to_bytes());
        bytes[64] = 27 + recovery.to_byte();
        bytes
    }
}

/// Who signed a digest, if the signature is one. As the contracts: no second form (high s) is taken.
pub fn recover(digest: &[u8; 32], signature: &[u8; 65]) -> Option<Address> {
    let recovery = RecoveryId::from_byte(signature[64].checked_sub(27).filter(|v| *v < 2)?)?;
    let signature = Signature::from_slice(&signature[..64]).ok()?;
    if signature.normalize_s().is_some() {
        return None;
    }
    let key = VerifyingKey::recover_from_prehash(digest, &signature, recovery).ok()?;
    Some(*keccak(&key.to_encoded_point(false).as_bytes()[1..]).last_chunk().expect("32 bytes end with 20"))
}
