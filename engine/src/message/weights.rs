//! Weights on their way from one that has a model's files to one that has not.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{MessageError, check::ensure};

/// Most bytes of one piece: what comes after it on the link waits for no more.
pub const MAX_PIECE_BYTES: u32 = 256 << 10;

/// Bytes that a node asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Of what.
    pub of: Part,
    /// The first of them.
    pub offset: u64,
    /// How many, at most [`MAX_PIECE_BYTES`].
    pub length: u32,
}

/// What bytes are asked of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// The description of the model: its hashes, its settings and what stands before its tensors.
    Catalogue,
    /// A file.
    File {
        /// BLAKE3 hash of the catalogue that numbers it.
        catalogue: [u8; 32],
        /// Its number.
        file: u32,
    },
}

/// The answer to a [`Want`]. Answers come in the order of the questions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The question.
    pub want: Want,
    /// Bytes of the whole catalogue or file, or why there is nothing.
    pub answer: Result<u64, Denial>,
    /// The bytes; fewer than asked for only at the end.
    #[serde(skip)]
    pub body: Bytes,
}

/// Why weights are not given.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum Denial {
    /// It has none, or was told to give none.
    #[error("it gives no weights")]
    Nothing,
    /// It still hashes the model.
    #[error("it is still hashing the model")]
    NotYet,
    /// It serves others.
    #[error("it gives weights to as many as it can")]
    Busy,
    /// The catalogue is not the one it goes by.
    #[error("it has other files")]
    Unknown,
    /// Outside of the file, or more than a piece.
    #[error("there are no such bytes")]
    Range,
    /// More than the asker will need in any case.
    #[error("it has given enough to one node")]
    Spent,
    /// Its disk fails.
    #[error("it cannot read its files")]
    Disk,
}

impl Denial {
    /// Whether asking later may bring something.
    pub fn passes(self) -> bool {
        matches!(self, Self::NotYet | Self::Busy)
    }
}

impl Piece {
    /// A refusal of `want`.
    pub fn denied(want: Want, denial: Denial) -> Self {
        Self { want, answer: Err(denial), body: Bytes::new() }
    }

    pub(super) fn check(&self) -> Result<(), MessageError> {
        let most = if self.answer.is_ok() { self.want.length.min(MAX_PIECE_BYTES) } else { 0 };
        ensure(self.body.len() <= most as usize, "more bytes than were asked for")
    }
}
