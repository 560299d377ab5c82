//! Weights on their way from one that has a model's files to one that has not.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    MAX_LAYERS, MessageError,
    check::{check_text, ensure},
};

/// Most bytes of one piece: what comes after it on the link waits for no more.
pub const MAX_PIECE_BYTES: u32 = 256 << 10;

/// Most nodes named to one that fetches.
pub const MAX_HOLDERS: usize = 16;

/// Parts of a model: 0 is the embedding, 1 the first layer, and after the last layer come final norm and head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// BLAKE3 hash of the catalogue that describes the model's files.
    pub catalogue: [u8; 32],
    /// Rising.
    pub parts: Vec<u16>,
}

/// A node that can give parts of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its id.
    pub node: [u8; 32],
    /// Where it listens, `host:port`.
    pub address: String,
    /// Those that were asked for, rising.
    pub parts: Vec<u16>,
}

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
    /// They are of a tensor that it does not hold.
    #[error("it does not have these bytes")]
    Missing,
    /// No gateway of its own has told it to give to the asker.
    #[error("no gateway has told it to")]
    NoLeave,
}

impl Denial {
    /// Whether asking later may bring something.
    pub fn passes(self) -> bool {
        matches!(self, Self::NotYet | Self::Busy | Self::NoLeave)
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

fn check_parts(parts: &[u16]) -> Result<(), MessageError> {
    let rising = parts.windows(2).all(|pair| pair[0] < pair[1]);
    ensure(rising && parts.last().is_none_or(|last| usize::from(*last) < MAX_LAYERS + 2), "parts of no model")
}

impl Parts {
    pub(super) fn check(&self) -> Result<(), MessageError> {
        check_parts(&self.parts)
    }
}

pub(super) fn check_holders(holders: &[Holder]) -> Result<(), MessageError> {
    ensure(holders.len() <= MAX_HOLDERS, "too many holders")?;
    holders
        .iter()
        .try_for_each(|holder| check_text(&holder.address).and_then(|()| check_parts(&holder.parts)))
}
