//! What ties a node's ed25519 key and its account together.

use crate::eip712::{Address, Domain, keccak, padded, word};

const BINDING_TYPE: &str = "NodeBinding(bytes32 node,address account)";
const REGISTRATION_TYPE: &str = "NodeRegistration(address account,bytes32 node,uint32 roles,bytes32 metadata,\
                                 string endpoint,uint256 nonce,uint256 deadline)";

/// The 32 bytes that a node's ed25519 key signs to name its account.
pub fn binding_digest(registry: &Domain, node: &[u8; 32], account: &Address) -> [u8; 32] {
    let parts = [keccak(BINDING_TYPE.as_bytes()), *node, padded(account)];
    registry.digest(&keccak(parts.as_flattened()))
}

/// What an account says of a node of its, when somebody else sends it to the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The account, which signs.
    pub account: Address,
    /// The ed25519 public key.
    pub node: [u8; 32],
    /// Bit set of the roles that the node offers.
    pub roles: u32,
    /// Hash of a description that is kept elsewhere.
    pub metadata: [u8; 32],
    /// Where the node is reached.
    pub endpoint: String,
    /// The account's next nonce in the registry.
    pub nonce: u64,
    /// Until when the signature is good, in seconds since 1970.
    pub deadline: u64,
}

impl Registration {
    /// The digest that the account signs.
    pub fn digest(&self, registry: &Domain) -> [u8; 32] {
        let parts = [
            keccak(REGISTRATION_TYPE.as_bytes()),
            padded(&self.account),
            self.node,
            word(self.roles.into()),
            self.metadata,
            keccak(self.endpoint.as_bytes()),
            word(self.nonce.into()),
            word(self.deadline.into()),
        ];
        registry.digest(&keccak(parts.as_flattened()))
    }
}
