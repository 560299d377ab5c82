//! The key of an account: secp256k1, kept out of sight.

use std::fmt;

use k256::ecdsa::{RecoveryId, Signature, SigningKey, VerifyingKey};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    eip712::{Address, Domain, keccak},
    voucher::Voucher,
};

/// An account's key. Wiped from memory when it is dropped; neither printed nor serialised.
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
        let address = address_of(secret.verifying_key());
        Ok(Self { secret, address })
    }

    /// A new key from the system's randomness; an error if it has none to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut secret = Zeroizing::new([0; 32]);
        loop {
            getrandom::fill(secret.as_mut())?;
            // All but one in 2^128 are keys.
            if let Ok(key) = Self::from_bytes(&secret) {
                return Ok(key);
            }
        }
    }

    /// The account.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Signs a digest: r, s and 27 or 28, as contracts and wallets take it.
    pub fn sign(&self, digest: &[u8; 32]) -> [u8; 65] {
        let (signature, recovery) = self.sign_parts(digest);
        let mut bytes = [0; 65];
        bytes[..64].copy_from_slice(&signature.to_bytes());
        bytes[64] = 27 + recovery.to_byte();
        bytes
    }

    /// Signs a voucher for the collector's contract and chain.
    pub fn sign_voucher(&self, voucher: &Voucher, collector: &Domain) -> [u8; 65] {
        self.sign(&voucher.digest(collector))
    }

    pub(crate) fn sign_parts(&self, digest: &[u8; 32]) -> (Signature, RecoveryId) {
        self.secret
            .sign_prehash_recoverable(digest)
            .expect("every 32 bytes can be signed: only a zero r or s fails, which nobody can find")
    }

    /// The key's bytes, to be encrypted.
    pub(crate) fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.secret.to_bytes().into())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", super::show_address(&self.address))
    }
}

/// Who signed a digest, if the signature is one. As the contracts: no second form (high s) is taken.
pub fn recover(digest: &[u8; 32], signature: &[u8; 65]) -> Option<Address> {
    let recovery = RecoveryId::from_byte(signature[64].checked_sub(27)?).filter(|id| !id.is_x_reduced())?;
    let signature = Signature::from_slice(&signature[..64]).ok()?;
    if signature.normalize_s().is_some() {
        return None;
    }
    let key = VerifyingKey::recover_from_prehash(digest, &signature, recovery).ok()?;
    Some(address_of(&key))
}

fn address_of(key: &VerifyingKey) -> Address {
    let point = key.to_encoded_point(false);
    *keccak(&point.as_bytes()[1..]).last_chunk().expect("32 bytes end with 20")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The first account that development chains fund; everybody has its key.
    fn known() -> Key {
        let mut secret = [0; 32];
        let digits = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
        hex::decode_to_slice(digits, &mut secret).unwrap();
        Key::from_bytes(&secret).unwrap()
    }

    #[test]
    fn a_key_has_the_address_that_wallets_show() {
        let shown = super::super::show_address(&known().address());
        assert_eq!(shown, "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266");
    }

    #[test]
    fn nothing_prints_a_key() {
        let text = format!("{:?}", known());
        assert!(!text.contains("ac0974") && text.contains("0xf39F"), "{text}");
    }

    #[test]
    fn zero_and_too_large_numbers_are_no_keys() {
        assert_eq!(Key::from_bytes(&[0; 32]).unwrap_err(), BadKey);
        assert_eq!(Key::from_bytes(&[0xff; 32]).unwrap_err(), BadKey);
        assert_ne!(Key::generate().unwrap().address(), Key::generate().unwrap().address());
    }

    proptest! {
        #[test]
        fn the_signer_is_found_and_nobody_else(digest: [u8; 32], other: [u8; 32], byte in 0usize..65) {
            let key = known();
            let signature = key.sign(&digest);
            prop_assert_eq!(recover(&digest, &signature), Some(key.address()));
            prop_assert!(other == digest || recover(&other, &signature) != Some(key.address()));
            let mut broken = signature;
            broken[byte] ^= 1;
            prop_assert_ne!(recover(&digest, &broken), Some(key.address()));
        }

        #[test]
        fn no_signature_is_too_odd(digest: [u8; 32], head: [u8; 32], tail: [u8; 32], v: u8) {
            let mut signature = [v; 65];
            signature[..32].copy_from_slice(&head);
            signature[32..64].copy_from_slice(&tail);
            let _ = recover(&digest, &signature);
        }
    }
}
