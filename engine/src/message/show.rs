//! Evidence on its way from a node to an auditor.

use bytes::Bytes;
use ledger::{
    client::recover,
    eip712::{Address, keccak},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use transport::NodeId;

use super::{MessageError, check::ensure};

/// Most bytes of one piece of evidence.
pub const MAX_SHOWN_BYTES: usize = 256 << 10;
const SHOW_DOMAIN: &[u8] = b"dolphin/show/1";

/// An auditor asks for what proves a leaf that was drawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Show {
    /// The leaf's case.
    pub case: [u8; 32],
    /// Who asks.
    pub auditor: Address,
    /// The account's signature of [`show_digest`]: 65 bytes.
    pub signature: Vec<u8>,
    /// The first byte wanted.
    pub offset: u64,
}

/// The answer to a [`Show`]. Answers come in the order of the questions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The case.
    pub case: [u8; 32],
    /// The first byte.
    pub offset: u64,
    /// Bytes of the whole, or why there is nothing.
    pub answer: Result<u64, Hidden>,
    /// The bytes, at most [`MAX_SHOWN_BYTES`]; fewer only at the end.
    #[serde(skip)]
    pub body: Bytes,
}

/// Why evidence is not shown.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hidden {
    /// It has no part in audits.
    #[error("the node has no part in audits")]
    Nothing,
    /// The account has not signed for this node and this asker.
    #[error("the request is not signed by the auditor")]
    Unsigned,
    /// The case is none of its own, or the chain has not drawn this auditor for it, as far as it knows by now.
    #[error("the node knows of no such draw")]
    NotDrawn,
    /// It serves others.
    #[error("the node shows as much as it can already")]
    Busy,
    /// Outside of the evidence.
    #[error("there are no such bytes")]
    Range,
    /// Its disk fails, or lost it.
    #[error("the node cannot read it")]
    Disk,
}

impl Hidden {
    /// Whether asking later may bring something.
    pub fn passes(self) -> bool {
        matches!(self, Self::NotDrawn | Self::Busy | Self::Disk)
    }
}

/// What an auditor's account signs so that `node` shows evidence to `peer`. The case says which chain it is on.
pub fn show_digest(case: &[u8; 32], node: NodeId, peer: NodeId) -> [u8; 32] {
    keccak(&[SHOW_DOMAIN, case, node.as_bytes(), peer.as_bytes()].concat())
}

impl Show {
    /// Whether the auditor's account lets `peer` ask `node`.
    pub fn is_signed(&self, node: NodeId, peer: NodeId) -> bool {
        let signature = self.signature.as_slice().try_into().ok();
        let signer = signature.and_then(|signature| recover(&show_digest(&self.case, node, peer), signature));
        signer == Some(self.auditor)
    }

    pub(super) fn check(&self) -> Result<(), MessageError> {
        ensure(self.signature.len() == 65, "a signature of another length")
    }
}

impl Shown {
    /// A refusal.
    pub fn hidden(show: &Show, hidden: Hidden) -> Self {
        Self { case: show.case, offset: show.offset, answer: Err(hidden), body: Bytes::new() }
    }

    pub(super) fn check(&self) -> Result<(), MessageError> {
        let most = if self.answer.is_ok() { MAX_SHOWN_BYTES } else { 0 };
        ensure(self.body.len() <= most, "more bytes than were asked for")
    }
}
