//! What a gateway and the nodes of a route agree on beside who is paid: the rest of a tab's plan.

use serde::{Deserialize, Serialize};

use crate::eip712::{keccak, word};

/// The terms of a tab. Prices are the weights of the plan's stages, in wei of POD per token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Fingerprint of the model.
    pub model: [u8; 32],
    /// Tokens that may be served and not be paid.
    pub credit: u64,
    /// Node ids of the plan's stages, in their order.
    pub nodes: Vec<[u8; 32]>,
}

const TERMS_TYPE: &str = "Terms(bytes32 model,uint64 credit,bytes32[] nodes)";

impl Terms {
    /// What the plan has as its terms: EIP-712's hash of the struct.
    pub fn hash(&self) -> [u8; 32] {
        let parts = [
            keccak(TERMS_TYPE.as_bytes()),
            self.model,
            word(self.credit.into()),
            keccak(self.nodes.as_flattened()),
        ];
        keccak(parts.as_flattened())
    }
}
