//! Keccak-256 as the chain has it, of one message, or of many side by side: one in each lane of a vector
//! register. Messages of one length are permuted as often as each other, so eight take little longer than one.

#[cfg(target_arch = "x86_64")]
mod sponge;
#[cfg(target_arch = "x86_64")]
mod x86;

use keccak_asm::Keccak256;

/// Bytes of a digest.
const DIGEST: usize = 32;

/// The hash of one message.
pub fn keccak(bytes: &[u8]) -> [u8; DIGEST] {
    Keccak256::digest(bytes).into()
}

/// The hashes of `count` messages in order. `write` appends the message of each index to what it is given.
/// Neighbours of equal length are hashed side by side.
pub fn keccak_each(count: usize, write: impl FnMut(usize, &mut Vec<u8>)) -> Vec<[u8; DIGEST]> {
    Lanes::detect().each(count, write)
}

/// How many messages are hashed at once, and with what.
#[derive(Clone, Copy, Debug)]
enum Lanes {
    One,
    #[cfg(target_arch = "x86_64")]
    Four(x86::Avx2),
    #[cfg(target_arch = "x86_64")]
    Eight(x86::Avx512),
}

impl Lanes {
    /// The most that this processor has.
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let four = || x86::Avx2::new().map(Self::Four);
            if let Some(lanes) = x86::Avx512::new().map(Self::Eight).or_else(four) {
                return lanes;
            }
        }
        Self::One
    }

    fn count(self) -> usize {
        match self {
            Self::One => 1,
            #[cfg(target_arch = "x86_64")]
            Self::Four(_) => 4,
            #[cfg(target_arch = "x86_64")]
            Self::Eight(_) => 8,
        }
    }

    fn each(self, count: usize, mut write: impl FnMut(usize, &mut Vec<u8>)) -> Vec<[u8; DIGEST]> {
        let mut digests = Vec::with_capacity(count);
        // Messages end to end, all as long as the first, of which there are fewer than lanes.
        let (mut bytes, mut length, mut waiting) = (Vec::new(), 0, 0);
        for index in 0..count {
            let end = bytes.len();
            write(index, &mut bytes);
            let new = bytes.len().saturating_sub(end);
            if waiting > 0 && new != length {
                self.hash(&bytes[..end], length, waiting, &mut digests);
                bytes.drain(..end);
                waiting = 0;
            }
            length = new;
            waiting += 1;
            if waiting == self.count() {
                self.hash(&bytes, length, waiting, &mut digests);
                bytes.clear();
                waiting = 0;
            }
        }
        self.hash(&bytes, length, waiting, &mut digests);
        digests
    }

    /// Hashes `count` messages of `length` bytes that lie end to end; no more than there are lanes.
    fn hash(self, bytes: &[u8], length: usize, count: usize, digests: &mut Vec<[u8; DIGEST]>) {
        let message = |index: usize| &bytes[index * length..][..length];
        match self {
            // Lanes that repeat a message cost as much as the others.
            #[cfg(target_arch = "x86_64")]
            Self::Four(isa) if count > 1 => {
                let lanes = [0, 1, 2, 3].map(|lane| message(if lane < count { lane } else { 0 }));
                digests.extend_from_slice(&isa.hash(&lanes)[..count]);
            }
            #[cfg(target_arch = "x86_64")]
            Self::Eight(isa) if count > 1 => {
                let lanes = [0, 1, 2, 3, 4, 5, 6, 7].map(|lane| message(if lane < count { lane } else { 0 }));
                digests.extend_from_slice(&isa.hash(&lanes)[..count]);
            }
            _ => digests.extend((0..count).map(|index| keccak(message(index)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha3::{Digest as _, Keccak256 as Reference};

    use super::*;

    /// Everything that this processor can hash with.
    fn all() -> Vec<Lanes> {
        #[cfg(target_arch = "x86_64")]
        let wide = [x86::Avx2::new().map(Lanes::Four), x86::Avx512::new().map(Lanes::Eight)];
        #[cfg(not(target_arch = "x86_64"))]
        let wide: [Option<Lanes>; 0] = [];
        std::iter::once(Lanes::One).chain(wide.into_iter().flatten()).collect()
    }

    /// Bytes that differ between messages and within them.
    fn message(index: usize, length: usize) -> impl Iterator<Item = u8> {
        (0..length).map(move |at| (at * 131 + index * 31 + at / 7) as u8)
    }

    fn check(lengths: &[usize]) {
        let expected: Vec<[u8; DIGEST]> = lengths
            .iter()
            .enumerate()
            .map(|(index, &length)| Reference::digest(message(index, length).collect::<Vec<_>>()).into())
            .collect();
        let write = |index: usize, bytes: &mut Vec<u8>| bytes.extend(message(index, lengths[index]));
        for lanes in all() {
            assert_eq!(lanes.each(lengths.len(), write), expected, "{lanes:?} {lengths:?}");
        }
        assert_eq!(keccak_each(lengths.len(), write), expected);
    }

    #[test]
    fn known_answers() {
        let known = [
            ("", "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"),
            ("abc", "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"),
            ("testing", "5f16f4c7f149ac4f9510d9cf8cf384038ad348b3bcdc01915f95de12df9d1b02"),
        ];
        for (text, digest) in known {
            let hex = |hash: [u8; DIGEST]| hash.map(|byte| format!("{byte:02x}")).concat();
            assert_eq!(hex(keccak(text.as_bytes())), digest);
            for lanes in all() {
                for hash in lanes.each(9, |_, bytes| bytes.extend_from_slice(text.as_bytes())) {
                    assert_eq!(hex(hash), digest, "{lanes:?}");
                }
            }
        }
    }

    #[test]
    fn blocks_end_where_they_should() {
        for length in [0, 1, 7, 8, 9, 64, 127, 128, 129, 134, 135, 136, 137, 271, 272, 273, 516, 2000] {
            for count in 0..18 {
                check(&vec![length; count]);
            }
        }
    }

    proptest! {
        #[test]
        fn any_length_and_number(length in 0usize..2000, count in 1usize..18) {
            check(&vec![length; count]);
        }

        #[test]
        fn messages_may_differ_in_length(lengths in prop::collection::vec(130usize..140, 0..40)) {
            check(&lengths);
        }
    }
}
