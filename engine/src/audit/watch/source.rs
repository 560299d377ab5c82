//! Where evidence comes from.

use futures::future::BoxFuture;
use ledger::{audit::Chunk, eip712::Address};
use thiserror::Error;

use super::known::Host;
use crate::audit::evidence::{Evidence, EvidenceError};

/// Why a node's evidence is not there.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The node cannot be reached, or says no.
    #[error("{0}")]
    Node(String),
    /// It sends something else.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
}

/// Which evidence is asked for, of whom.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The case.
    pub case: [u8; 32],
    /// What the node opened.
    pub chunk: Chunk,
    /// Whose leaf it is.
    pub account: Address,
    /// Most bytes that its encoding can have.
    pub most_bytes: usize,
}

/// Nodes, as an auditor reaches them.
pub trait EvidenceSource: Send + Sync {
    /// Asks one node of the account for evidence. What comes need not be right: whoever asks checks it.
    fn fetch(&self, wanted: Wanted, host: Host) -> BoxFuture<'_, Result<Evidence, FetchError>>;
}
