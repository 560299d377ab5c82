//! Hashes of rows. A row's leaf says which model, boundary and position it stands for and nothing of the
//! session, so that what a prompt's prefix hashed to is not hashed again.

use ledger::{eip712::keccak_each, merkle};

use super::plan::Digest;

/// Bytes of a row that are one leaf of its tree: what a dispute opens.
pub const PIECE_BYTES: usize = 512;
/// Positions of a chunk: of what a stage signs at once.
pub const CHUNK: u32 = 64;

const ROW_DOMAIN: &[u8] = b"dolphin/row/1";
const DRAWN_DOMAIN: &[u8] = b"dolphin/drawn/1";
const TOKEN_DOMAIN: &[u8] = b"dolphin/token/1";

/// The root over the pieces of each row, as it travels: little-endian, the last piece filled with zeros.
pub fn row_roots<R: AsRef<[u8]>>(rows: &[R]) -> Vec<[u8; 32]> {
    let runs = rows.chunk_by(|a, b| a.as_ref().len() == b.as_ref().len());
    let roots = runs.flat_map(|run| match run[0].as_ref().len().div_ceil(PIECE_BYTES) {
        0 => vec![[0; 32]; run.len()],
        pieces => merkle::roots(&leaves(run, pieces), pieces),
    });
    roots.collect()
}

/// The root over the pieces of one row.
pub fn row_root(row: &[u8]) -> [u8; 32] {
    merkle::root(&piece_leaves(row)).unwrap_or_default()
}

/// The leaves of the pieces of a row.
pub fn piece_leaves(row: &[u8]) -> Vec<[u8; 32]> {
    leaves(&[row], row.len().div_ceil(PIECE_BYTES))
}

/// The leaves of rows that have so many pieces each.
fn leaves<R: AsRef<[u8]>>(rows: &[R], pieces: usize) -> Vec<[u8; 32]> {
    keccak_each(rows.len() * pieces, |index, leaf| {
        let (row, piece) = (rows[index / pieces].as_ref(), index % pieces);
        let bytes = &row[piece * PIECE_BYTES..];
        leaf.extend_from_slice(&(piece as u32).to_be_bytes());
        leaf.extend_from_slice(&bytes[..bytes.len().min(PIECE_BYTES)]);
        leaf.resize(leaf.len() + PIECE_BYTES.saturating_sub(bytes.len()), 0);
    })
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
    /// The leaves of the rows with these roots, the first of which is at position `from`.
    pub fn rows(&self, from: u32, roots: &[[u8; 32]]) -> Vec<[u8; 32]> {
        self.leaves(ROW_DOMAIN, from, roots, |_| None)
    }

    /// The leaves of rows before the final norm, each with the token that was drawn from it, if one was.
    pub fn drawn(&self, from: u32, roots: &[[u8; 32]], token: impl Fn(u32) -> Option<u32>) -> Vec<[u8; 32]> {
        // No vocabulary has so many tokens.
        self.leaves(DRAWN_DOMAIN, from, roots, |position| Some(token(position).unwrap_or(u32::MAX)))
    }

    fn leaves(
        &self,
        domain: &[u8],
        from: u32,
        roots: &[[u8; 32]],
        rest: impl Fn(u32) -> Option<u32>,
    ) -> Vec<[u8; 32]> {
        keccak_each(roots.len(), |index, leaf| {
            let position = from + index as u32;
            leaf.extend_from_slice(domain);
            leaf.extend_from_slice(&self.model.0);
            leaf.extend_from_slice(&self.layer.to_be_bytes());
            leaf.extend_from_slice(&position.to_be_bytes());
            leaf.extend_from_slice(&roots[index]);
            leaf.extend(rest(position).map(u32::to_be_bytes).into_iter().flatten());
        })
    }
}

/// The leaves of tokens that go into the first stage, the first of them at position `from`.
pub fn token_leaves(model: &Digest, from: u32, tokens: &[u32]) -> Vec<[u8; 32]> {
    keccak_each(tokens.len(), |index, leaf| {
        leaf.extend_from_slice(TOKEN_DOMAIN);
        leaf.extend_from_slice(&model.0);
        leaf.extend_from_slice(&(from + index as u32).to_be_bytes());
        leaf.extend_from_slice(&tokens[index].to_be_bytes());
    })
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
        let roots = [root, row_root(&[1, 2, 4])];
        let mut leaves = [
            at.rows(5, &[root; 2]),
            at.rows(5, &roots[1..]),
            Boundary { layer: 4, ..at }.rows(5, &[root]),
            Boundary { model: Digest([8; 32]), ..at }.rows(5, &[root]),
            at.drawn(5, &[root], |_| None),
            at.drawn(5, &[root], |_| Some(0)),
            at.drawn(5, &[root], |_| Some(1)),
            token_leaves(&MODEL, 5, &[0]),
            token_leaves(&MODEL, 5, &[1]),
        ]
        .concat();
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
        fn rows_side_by_side_have_their_own_roots(
            rows in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1100), 0..20),
        ) {
            let apart: Vec<_> = rows.iter().map(|row| row_root(row)).collect();
            prop_assert_eq!(row_roots(&rows), apart);
        }

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
