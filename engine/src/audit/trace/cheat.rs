//! Ways to compute a trace wrong, for tests alone.

use crate::model::Model;

/// How a trace is wrong.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cheat {
    /// Bits of a word are others, and everything after follows from that.
    Flip { slot: u32, operation: u32, position: u32, word: u32, bits: u32 },
    /// A layer's output is its input.
    Skip { slot: u32 },
    /// A layer has the weights of another model.
    Weights { layer: usize, model: &'static Model },
    /// A row is longer than it should be.
    Longer { slot: u32, operation: u32, position: u32, words: u32 },
    /// A row is missing.
    Missing { slot: u32, operation: u32, position: u32 },
}

impl Cheat {
    pub(super) fn weights(&self, at: Option<usize>) -> Option<&'static Model> {
        match *self {
            Self::Weights { layer, model } if at == Some(layer) => Some(model),
            _ => None,
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
                row[word as usize] ^= bits;
            }
            Self::Skip { slot: skipped } if slot == skipped && operation == super::op::OUT => {
                row.clone_from(before.expect("a layer has something before it"));
            }
            Self::Longer { slot, operation, position, words } if at == (slot, operation, position) => {
                row.extend((0..words).map(|n| n + 1));
            }
            Self::Missing { slot, operation, position } if at == (slot, operation, position) => row.clear(),
            _ => {}
        }
    }
}
