//! The tree over a trace: binary over all indices, a node without anything below it being zero.

use ledger::eip712::{keccak, keccak_each};

/// Words of a piece.
pub const PIECE_WORDS: u32 = 128;
/// Bits of an operation's number.
pub const OPERATION_BITS: u32 = 6;
/// Levels that are revealed at once.
pub const STRIDE: u32 = 4;

/// A hash.
pub type Hash = [u8; 32];

/// A node: its level, from the pieces at 0 up, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// Level.
    pub level: u32,
    /// Number.
    pub index: u64,
}

/// A word of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// 0 for what enters the stage, then its layers.
    pub slot: u32,
    /// Operation.
    pub operation: u32,
    /// Position.
    pub position: u32,
    /// Word of the row.
    pub word: u32,
}

/// Bits of the fields of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depths {
    /// Of the slot.
    pub slots: u32,
    /// Of the position.
    pub positions: u32,
    /// Of the piece.
    pub pieces: u32,
}

/// The least number of bits that number `count` things.
pub fn bits(count: u32) -> u32 {
    count.next_power_of_two().ilog2()
}

impl Depths {
    /// Levels above the pieces.
    pub fn total(self) -> u32 {
        self.slots + OPERATION_BITS + self.positions + self.pieces
    }

    /// The root.
    pub fn root(self) -> Node {
        Node { level: self.total(), index: 0 }
    }

    /// The piece that a word is in.
    pub fn piece(self, place: &Place) -> Node {
        let row = u64::from(place.slot) << OPERATION_BITS | u64::from(place.operation);
        let row = row << self.positions | u64::from(place.position);
        Node { level: 0, index: row << self.pieces | u64::from(place.word / PIECE_WORDS) }
    }

    /// The first word of a piece.
    pub fn place(self, piece: u64) -> Place {
        let field = |from: u32, bits: u32| (piece >> from & ((1 << bits) - 1)) as u32;
        let operations = self.pieces + self.positions;
        Place {
            slot: field(operations + OPERATION_BITS, self.slots),
            operation: field(operations, OPERATION_BITS),
            position: field(self.pieces, self.positions),
            word: field(0, self.pieces) * PIECE_WORDS,
        }
    }
}

/// The bytes of the pieces of a row.
pub fn pieces(row: &[u32]) -> impl Iterator<Item = [u8; 512]> {
    row.chunks(PIECE_WORDS as usize).map(|words| {
        let mut piece = [0; 512];
        for (bytes, word) in piece.as_chunks_mut().0.iter_mut().zip(words) {
            *bytes = word.to_be_bytes();
        }
        piece
    })
}

/// The node above two.
pub fn parent(left: &Hash, right: &Hash) -> Hash {
    if *left == [0; 32] && *right == [0; 32] { [0; 32] } else { keccak([*left, *right].as_flattened()) }
}

/// The nodes `levels` above `nodes`; what is missing at the end is zero.
pub fn raise(mut nodes: Vec<Hash>, levels: u32) -> Vec<Hash> {
    for _ in 0..levels {
        let pair = |pair: &[Hash]| [pair[0], pair.get(1).copied().unwrap_or_default()];
        let pairs: Vec<[Hash; 2]> = nodes.chunks(2).map(pair).collect();
        nodes = keccak_each(pairs.len(), |index, bytes| bytes.extend_from_slice(pairs[index].as_flattened()));
        for (node, pair) in nodes.iter_mut().zip(&pairs) {
            if *pair == [[0; 32]; 2] {
                *node = [0; 32];
            }
        }
    }
    nodes
}

/// The node `levels` above `nodes`, all of which are below it.
pub fn top(nodes: Vec<Hash>, levels: u32) -> Hash {
    raise(nodes, levels).first().copied().unwrap_or_default()
}
