//! Where evidence comes from.

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use ledger::{audit::Chunk, client::Key, eip712::Address};
use transport::{NodeId, Transport};

use super::known::Host;
use crate::{
    audit::{
        evidence::Evidence,
        show::{FetchError, fetch},
    },
    node::GatewayAddress,
};

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

/// Nodes over links.
pub struct Nodes {
    /// Makes the links.
    pub transport: Arc<dyn Transport>,
    /// Of the auditor's account, which says to nodes that it was drawn.
    pub key: Key,
}

impl EvidenceSource for Nodes {
    fn fetch(&self, wanted: Wanted, host: Host) -> BoxFuture<'_, Result<Evidence, FetchError>> {
        let fetched = async move {
            let node = GatewayAddress { id: NodeId(host.node), address: host.endpoint };
            fetch(&*self.transport, &node, &self.key, wanted.case, wanted.most_bytes).await
        };
        fetched.boxed()
    }
}
