//! Signatures of accounts: 65 bytes r, s, v over a digest, as the contracts take them.

use k256::ecdsa::{RecoveryId, Signature, SigningKey, VerifyingKey};

use crate::eip712::{Address, keccak};

/// Length of a signature.
pub const BYTES: usize = 65;

/// Signs a digest. `None` only for digests that no key can sign, which nobody can find.
pub fn sign(key: &SigningKey, digest: &[u8; 32]) -> Option<[u8; BYTES]> {
    let (signature, recovery) = key.sign_prehash_recoverable(digest).ok()?;
    let mut bytes = [0; BYTES];
    bytes[..64].copy_from_slice(&signature.to_bytes());
    bytes[64] = 27 + recovery.to_byte();
    Some(bytes)
}

/// The account that signed a digest; `None` if nobody did. What the contracts refuse is refused here too:
/// s in the upper half, v other than 27 and 28.
pub fn signer(digest: &[u8; 32], signature: &[u8]) -> Option<Address> {
    let (&v, rs) = signature.split_last()?;
    let recovery = RecoveryId::from_byte(v.checked_sub(27).filter(|v| *v < 2)?)?;
    let signature = Signature::from_slice(rs).ok()?;
    if signature.normalize_s().is_some() {
        return None;
    }
    Some(address(&VerifyingKey::recover_from_prehash(digest, &signature, recovery).ok()?))
}

/// The account of a key.
pub fn address(key: &VerifyingKey) -> Address {
    let point = key.to_encoded_point(false);
    let mut address = [0; 20];
    address.copy_from_slice(&keccak(&point.as_bytes()[1..])[12..]);
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signer_is_found_and_nobody_else() {
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        let digest = [9; 32];
        let signature = sign(&key, &digest).unwrap();
        let account = address(key.verifying_key());
        assert_eq!(signer(&digest, &signature), Some(account));
        assert_ne!(signer(&[8; 32], &signature), Some(account));
        assert_eq!(signer(&digest, &signature[..64]), None);
        assert_eq!(signer(&digest, &[]), None);
        for v in [0, 1, 26, 29, 30] {
            let mut other = signature;
            other[64] = v;
            assert_eq!(signer(&digest, &other), None, "v = {v}");
        }
    }

    /// Whoever sees a signature can make its mirror image, which the contracts do not take.
    #[test]
    fn a_mirrored_signature_is_refused() {
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        let signature = sign(&key, &[9; 32]).unwrap();
        let (r, s) = Signature::from_slice(&signature[..64]).unwrap().split_scalars();
        let mirrored = Signature::from_scalars(r, -s).unwrap();
        let mut bytes = signature;
        bytes[..64].copy_from_slice(&mirrored.to_bytes());
        bytes[64] = 27 + 28 - signature[64];
        assert_eq!(signer(&[9; 32], &bytes), None);
    }
}
