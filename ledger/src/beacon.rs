//! Public randomness in numbered rounds: drand's scheme `bls-bn254-unchained-on-g1`, as `contracts/src/Beacon.sol`
//! checks it. A round is a BLS signature of its number. A network of one key, made here, has the same form: whoever
//! holds the key knows all rounds beforehand and can change none.

use std::fmt;

use ark_bn254::{Bn254, Fq, Fq2, Fr, G1Affine, G2Affine};
use ark_ec::{AffineRepr, CurveGroup, pairing::Pairing};
use ark_ff::{BigInteger, Field, One, PrimeField, Zero};

use crate::eip712::keccak;

const DST: &[u8] = b"BLS_SIG_BN254G1_XMD:KECCAK-256_SVDW_RO_NUL_";
const SECRET_DOMAIN: &[u8] = b"dolphin/beacon/1";
/// Block of Keccak-256, in bytes.
const BLOCK: usize = 136;

/// When the rounds of a network are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// When round 1 is made, in seconds since 1970.
    pub genesis: u64,
    /// From round to round, in seconds; not zero.
    pub period: u64,
}

impl Clock {
    /// When a round is made, from round 1 on.
    pub fn time_of(&self, round: u64) -> u64 {
        self.genesis.saturating_add(round.saturating_sub(1).saturating_mul(self.period))
    }

    /// The first round that is made after a time.
    pub fn round_after(&self, time: u64) -> u64 {
        time.checked_sub(self.genesis).map_or(1, |passed| passed / self.period.max(1) + 2)
    }
}

/// The secret key of a network of one.
#[derive(Clone)]
pub struct Secret(Fr);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// The key that a seed stands for.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let halves = [0u8, 1].map(|half| keccak(&[SECRET_DOMAIN, seed, &[half]].concat()));
        Self(Fr::from_be_bytes_mod_order(halves.as_flattened()))
    }

    /// The public key, as drand writes it: x and y, each with its imaginary part first.
    pub fn public_key(&self) -> [u8; 128] {
        let point = (G2Affine::generator() * self.0).into_affine();
        let (x, y) = point.xy().unwrap_or_default();
        let mut key = [0; 128];
        for (part, number) in key.chunks_exact_mut(32).zip([x.c1, x.c0, y.c1, y.c0]) {
            part.copy_from_slice(&to_bytes(number));
        }
        key
    }

    /// A round, to be kept to oneself until its time.
    pub fn sign(&self, round: u64) -> [u8; 64] {
        let point = (hash_to_curve(&keccak(&round.to_be_bytes())) * self.0).into_affine();
        let (x, y) = point.xy().unwrap_or_default();
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&to_bytes(x));
        signature[32..].copy_from_slice(&to_bytes(y));
        signature
    }
}

/// Whether a network signed a round. What is no key or no point is none of its.
pub fn is_round(key: &[u8; 128], round: u64, signature: &[u8; 64]) -> bool {
    let mut numbers = [Fq::zero(); 6];
    for (number, bytes) in numbers.iter_mut().zip(signature.chunks(32).chain(key.chunks(32))) {
        match from_bytes(bytes) {
            Some(read) => *number = read,
            None => return false,
        }
    }
    let [x, y, x1, x0, y1, y0] = numbers;
    let signature = G1Affine::new_unchecked(x, y);
    let key = G2Affine::new_unchecked(Fq2::new(x0, x1), Fq2::new(y0, y1));
    let is_key = key.is_on_curve() && key.is_in_correct_subgroup_assuming_on_curve();
    let hash = hash_to_curve(&keccak(&round.to_be_bytes()));
    is_key
        && signature.is_on_curve()
        && Bn254::pairing(signature, G2Affine::generator()) == Bn254::pairing(hash, key)
}

/// RFC 9380 with expand_message_xmd over Keccak-256 and the map of Shallue and van de Woestijne.
fn hash_to_curve(message: &[u8; 32]) -> G1Affine {
    let suffix = [DST, &[DST.len() as u8]].concat();
    let first = keccak(&[&[0; BLOCK][..], message, &[0, 96, 0], &suffix].concat());
    let mut expanded = [[0; 32]; 3];
    let mut last = [0; 32];
    for (number, block) in (1u8..).zip(&mut expanded) {
        let mixed: Vec<u8> = first.iter().zip(last).map(|(a, b)| a ^ b).collect();
        last = keccak(&[&mixed[..], &[number], &suffix].concat());
        *block = last;
    }
    let (one, two) = expanded.as_flattened().split_at(48);
    let map = |bytes| map_to_curve(Fq::from_be_bytes_mod_order(bytes));
    (map(one) + map(two)).into_affine()
}

/// RFC 9380, section 6.6.1, for y^2 = x^3 + 3 and Z = 1.
fn map_to_curve(u: Fq) -> G1Affine {
    let inverse = |number: Fq| number.inverse().unwrap_or(Fq::zero());
    let (one, three) = (Fq::one(), Fq::from(3u8));
    // Of g(Z) = 4: its even root of -12, and -16/3.
    let c3 = (-Fq::from(12u8)).sqrt().map_or(Fq::zero(), |root| if is_odd(&root) { -root } else { root });
    let c4 = -Fq::from(16u8) * inverse(three);
    let quarter = u.square() * Fq::from(4u8);
    let (minus, plus) = (one - quarter, one + quarter);
    let shared = inverse(minus * plus);
    let away = u * minus * shared * c3;
    let half = -inverse(Fq::from(2u8));
    let last = one + c4 * (plus.square() * shared).square();
    // One of the three always has a root.
    for x in [half - away, half + away, last] {
        if let Some(y) = (x.square() * x + three).sqrt() {
            return G1Affine::new_unchecked(x, if is_odd(&y) == is_odd(&u) { y } else { -y });
        }
    }
    G1Affine::identity()
}

fn is_odd(number: &Fq) -> bool {
    number.into_bigint().is_odd()
}

fn to_bytes(number: Fq) -> [u8; 32] {
    let mut bytes = [0; 32];
    let written = number.into_bigint().to_bytes_be();
    bytes[32 - written.len()..].copy_from_slice(&written);
    bytes
}

/// A number below the modulus.
fn from_bytes(bytes: &[u8]) -> Option<Fq> {
    let number = Fq::from_be_bytes_mod_order(bytes);
    (to_bytes(number) == bytes).then_some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    /// Round 513 of drand's network `evmnet`, as published.
    #[test]
    fn a_published_round_is_one() {
        let parameters: serde_json::Value = serde_json::from_str(crate::EXAMPLE_PARAMETERS).unwrap();
        let key = bytes(&parameters["beacon"]["key"].as_str().unwrap()[2..]);
        let signature = bytes(
            "06ded8c05af23042a0caf9b404c6140f9ec64adbaf82f04d5c37153e8412ed58\
             0f827c7d5ac7d02ca0bbd989d07594729bdcde7d6dc1001191c59dc9033d31b2",
        );
        assert!(is_round(&key, 513, &signature));
        assert!(!is_round(&key, 514, &signature));
        let mut other = key;
        other[127] ^= 1;
        assert!(!is_round(&other, 513, &signature));
        assert!(!is_round(&[0xff; 128], 513, &signature));
    }

    #[test]
    fn a_key_of_ones_own_signs_rounds() {
        let secret = Secret::from_seed(&[7; 32]);
        let (key, signature) = (secret.public_key(), secret.sign(9));
        assert!(is_round(&key, 9, &signature));
        assert!(!is_round(&Secret::from_seed(&[8; 32]).public_key(), 9, &signature));
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }

    proptest! {
        #[test]
        fn round_after_is_the_first_after(genesis in 0u64..1 << 40, period in 1u64..1 << 20, time in 0u64..1 << 50) {
            let clock = Clock { genesis, period };
            let round = clock.round_after(time);
            prop_assert!(clock.time_of(round) > time);
            prop_assert!(round == 1 || clock.time_of(round - 1) <= time);
        }

        #[test]
        fn no_other_signature_is_one(flip in 1u8.., place in 0usize..64) {
            let secret = Secret::from_seed(&[7; 32]);
            let mut signature = secret.sign(1);
            signature[place] ^= flip;
            prop_assert!(!is_round(&secret.public_key(), 1, &signature));
        }

        #[test]
        fn what_is_mapped_is_on_the_curve(seed: [u8; 32]) {
            prop_assert!(map_to_curve(Fq::from_be_bytes_mod_order(&seed)).is_on_curve());
        }
    }
}
