//! Hashes of rows. A row's leaf says which model, boundary and position it stands for and nothing of the
//! session, so that what a prompt's prefix hashed to is not hashed again.

use ledger::{eip712::keccak, merkle};

use super::plan::Digest;

/// Bytes of a row that are one leaf of its tree: what a dispute opens.
pub const PIECE_BYTES: usize = 512;
/// Positions of a chunk: of what a stage signs at once.
pub const CHUNK: u32 = 64;

const ROW_DOMAIN: &[u8] = b"dolphin/row/1";
const DRAWN_DOMAIN: &[u8] = b"dolphin/drawn/1";
const TOKEN_DOMAIN: &[u8] = b"dolphin/token/1";

/// The root over the pieces of a row, as it travels: little-endian, the last piece filled with zeros.
pub fn row_root(row: &[u8]) -> [u8; 32] {
    merkle::root(&piece_leaves(row)).unwrap_or_default()
}

/// The leaves of these pieces.
pub fn piece_leaves(row: &[u8]) -> Vec<[u8; 32]> {
    let mut leaf = [0; 4 + PIECE_BYTES];
    let pieces = row.chunks(PIECE_BYTES).enumerate().map(|(index, piece)| {
        leaf[..4].copy_from_slice(&(index as u32).to_be_bytes());
        leaf[4..][..piece.len()].copy_from_slice(piece);
        leaf[4 + piece.len()..].fill(0);
        keccak(&leaf)
    });
    pieces.collect()
}

/// A place that rows pass, of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// The model hash.
    pub model: Digest,
    /// Layers before it.
    pub layer: u32,
}

impl Boundary {
    /// The leaf of the row at `position`.
    pub fn row(&self, position: u32, root: &[u8; 32]) -> [u8; 32] {
        self.leaf(ROW_DOMAIN, position, root, &[])
    }

    /// The leaf of the row at `position` before the final norm, with the token that was drawn from it, if one
    /// was.
    pub fn drawn(&self, position: u32, root: &[u8; 32], token: Option<u32>) -> [u8; 32] {
        // No vocabulary has so many tokens.
        self.leaf(DRAWN_DOMAIN, position, root, &token.unwrap_or(u32::MAX).to_be_bytes())
    }

    fn leaf(&self, domain: &[u8], position: u32, root: &[u8; 32], rest: &[u8]) -> [u8; 32] {
        let (layer, position) = (self.layer.to_be_bytes(), position.to_be_bytes());
        keccak(&[domain, &self.model.0, &layer, &position, root, rest].concat())
    }
}

/// The leaf of a token that goes into the first stage.
pub fn token_leaf(model: &Digest, position: u32, token: u32) -> [u8; 32] {
    keccak(&[TOKEN_DOMAIN, &model.0, &position.to_be_bytes(), &token.to_be_bytes()].concat())
}

/// The root over the leaves of a chunk, in the order of their positions.
pub fn chunk_root(leaves: &[[u8; 32]]) -> Digest {
    Digest(merkle::root(leaves).unwrap_or_default())
}

/// Where the chunk that holds `position` ends, in a session of `end` rows.
pub fn chunk_end(position: u32, end: u32) -> u32 {
    (position / CHUNK).saturating_add(1).saturating_mul(CHUNK).min(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MODEL: Digest = Digest([7; 32]);

    #[test]
    fn leaves_of_different_things_differ() {
        let at = Boundary { model: MODEL, layer: 3 };
        let root = row_root(&[1, 2, 3]);
        let mut leaves = vec![
            at.row(5, &root),
            at.row(6, &root),
            at.row(5, &row_root(&[1, 2, 4])),
            Boundary { layer: 4, ..at }.row(5, &root),
            Boundary { model: Digest([8; 32]), ..at }.row(5, &root),
            at.drawn(5, &root, None),
            at.drawn(5, &root, Some(0)),
            at.drawn(5, &root, Some(1)),
            token_leaf(&MODEL, 5, 0),
            token_leaf(&MODEL, 5, 1),
        ];
        leaves.sort_unstable();
        leaves.dedup();
        assert_eq!(leaves.len(), 10);
    }

    #[test]
    fn chunks_end_at_multiples_and_at_the_end() {
        assert_eq!([chunk_end(0, 200), chunk_end(63, 200), chunk_end(64, 200)], [64, 64, 128]);
        assert_eq!([chunk_end(128, 200), chunk_end(199, 200)], [192, 200]);
        assert_eq!(chunk_end(u32::MAX, u32::MAX), u32::MAX);
    }

    proptest! {
        #[test]
        fn every_bit_of_a_row_counts(row in prop::collection::vec(any::<u8>(), 1..3000), at: prop::sample::Index, bit in 0u8..8) {
            let mut other = row.clone();
            other[at.index(row.len())] ^= 1 << bit;
            prop_assert_ne!(row_root(&row), row_root(&other));
        }

        /// Trees sort their pairs, so the order has to be in the leaves.
        #[test]
        fn pieces_cannot_change_places(row in prop::collection::vec(any::<u8>(), 1024..=1024)) {
            let swapped = [&row[512..], &row[..512]].concat();
            prop_assume!(swapped != row);
            prop_assert_ne!(row_root(&row), row_root(&swapped));
        }
    }
}
