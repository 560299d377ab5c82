//! Ways to compute a trace wrong, for tests alone.

/// How a trace is wrong.
#[derive(Clone, Copy, Debug)]
pub(in crate::audit) enum Cheat {
    /// Bits of a word are others, and everything after follows from that.
    Flip { slot: u32, operation: u32, position: u32, word: u32, bits: u32 },
    /// A layer's output is its input.
    Skip { slot: u32 },
    /// A layer has the weights of another one.
    Weights { layer: usize, other: usize },
    /// A row has words in pieces that it should not have.
    Longer { slot: u32, operation: u32, position: u32, words: u32 },
    /// A row is missing.
    Missing { slot: u32, operation: u32, position: u32 },
}

impl Cheat {
    /// Whose weights a layer has.
    pub(super) fn weights(&self, at: Option<usize>) -> Option<usize> {
        match *self {
            Self::Weights { layer, other } if at == Some(layer) => Some(other),
            _ => at,
        }
    }

    pub(super) fn spoil(
        &self,
        slot: u32,
        operation: u32,
        position: u32,
        before: Option<&Vec<u32>>,
        row: &mut Vec<u32>,
    ) {
        let at = (slot, operation, position);
        match *self {
            Self::Flip { slot, operation, position, word, bits } if at == (slot, operation, position) => {
                row.resize(row.len().max(word as usize + 1), 0);
                row[word as usize] ^= bits;
            }
            Self::Skip { slot: skipped } if slot == skipped && operation == super::op::OUT => {
                row.clone_from(before.expect("a layer has something before it"));
            }
            Self::Longer { slot, operation, position, words } if at == (slot, operation, position) => {
                row.resize(row.len().next_multiple_of(128), 0);
                row.extend((0..words).map(|n| n + 1));
            }
            Self::Missing { slot, operation, position } if at == (slot, operation, position) => row.clear(),
            _ => {}
        }
    }
}
