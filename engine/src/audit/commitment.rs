//! What a stage signs: for each chunk of a session the rows that came in and those that went out.
//!
//! A commitment names the one before it at the same stage, and the one of the stage before for the same
//! positions: whoever signs what came in thereby countersigns what the stage before says it sent. A boundary
//! that is wrong thus has one owner, and nobody can tell two stories.

use ledger::eip712::keccak;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use thiserror::Error;
use transport::{Identity, NodeId};

use super::{plan::Digest, rows::chunk_end};
use crate::message::SessionId;

const COMMITMENT_DOMAIN: &[u8] = b"dolphin/commitment/1";

/// A signature with an ed25519 key. In texts, 128 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.serialize_str(&hex::encode(self.0)),
            false => {
                let mut halves = [[0; 32]; 2];
                halves.as_flattened_mut().copy_from_slice(&self.0);
                halves.serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut bytes = [0; 64];
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            hex::decode_to_slice(text, &mut bytes).map_err(D::Error::custom)?;
        } else {
            bytes.copy_from_slice(<[[u8; 32]; 2]>::deserialize(deserializer)?.as_flattened());
        }
        Ok(Self(bytes))
    }
}

/// Who signs commitments. Today a node signs with the key it is known by on links; keys that a chain can check
/// come in here.
#[derive(Clone, Debug)]
pub struct Signer(Identity);

impl Signer {
    /// Signs with a node's own key.
    pub fn new(identity: Identity) -> Self {
        Self(identity)
    }

    /// Signs 32 bytes.
    pub fn sign(&self, digest: &Digest) -> Signature {
        Signature(self.0.sign(&digest.0))
    }
}

/// Whether `node` signed 32 bytes.
pub fn is_signed(node: &Digest, digest: &Digest, signature: &Signature) -> bool {
    NodeId(node.0).verify(&digest.0, &signature.0)
}

/// A chunk of a session at one stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// First position.
    pub from: u32,
    /// One past the last position.
    pub to: u32,
    /// Root over what came in.
    pub in_root: Digest,
    /// Root over what went out.
    pub out_root: Digest,
    /// The stage's signature over [`Chain::next`].
    pub signature: Signature,
}

/// The commitments of one stage so far.
#[derive(Clone, Debug)]
pub struct Chain {
    plan: Digest,
    stage: u32,
    /// Hash of the last commitment; zeros before the first.
    last: Digest,
    /// Where the next begins.
    next: u32,
}

impl Chain {
    /// Of stage number `stage` of a plan; nothing is committed yet.
    pub fn new(plan: Digest, stage: u32) -> Self {
        Self { plan, stage, last: Digest::default(), next: 0 }
    }

    /// First position that is not committed.
    pub fn position(&self) -> u32 {
        self.next
    }

    /// What is signed for the next chunk. `before` is the same of the stage before, zeros at the first.
    pub fn next(&self, to: u32, in_root: &Digest, out_root: &Digest, before: &Digest) -> Digest {
        let (stage, from, to) = (self.stage.to_be_bytes(), self.next.to_be_bytes(), to.to_be_bytes());
        let parts =
            [COMMITMENT_DOMAIN, &self.plan.0, &stage, &from, &to, &in_root.0, &out_root.0, &self.last.0];
        Digest(keccak(&[&parts.concat()[..], &before.0].concat()))
    }

    /// Adds a chunk whose hash is `hash`.
    pub fn push(&mut self, to: u32, hash: Digest) {
        (self.last, self.next) = (hash, to);
    }
}

/// A chunk on its way to the gateway and to the next stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The session.
    pub session: SessionId,
    /// The commitment of the stage before for the same positions.
    pub before: Digest,
    /// The chunk.
    pub chunk: Chunk,
}

/// Follows what one stage of a session commits to.
#[derive(Clone, Debug)]
pub struct Follower {
    node: Digest,
    chain: Chain,
}

/// Why a commitment is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommitmentError {
    /// It is for other positions than the next.
    #[error("a commitment to other positions than the next 64")]
    Range,
    /// It is not the node's.
    #[error("a commitment without the node's signature")]
    Signature,
}

impl Follower {
    /// Of stage number `stage` of a plan, which `node` signs for.
    pub fn new(plan: Digest, stage: u32, node: Digest) -> Self {
        Self { node, chain: Chain::new(plan, stage) }
    }

    /// First position that is not committed.
    pub fn position(&self) -> u32 {
        self.chain.position()
    }

    /// Takes the next chunk; its hash.
    ///
    /// # Errors
    /// If it does not follow, or the node did not sign it.
    pub fn take(&mut self, chunk: &Chunk, before: &Digest) -> Result<Digest, CommitmentError> {
        let ends = chunk_end(chunk.from, u32::MAX);
        if chunk.from != self.position() || chunk.to <= chunk.from || chunk.to > ends {
            return Err(CommitmentError::Range);
        }
        let hash = self.chain.next(chunk.to, &chunk.in_root, &chunk.out_root, before);
        if !is_signed(&self.node, &hash, &chunk.signature) {
            return Err(CommitmentError::Signature);
        }
        self.chain.push(chunk.to, hash);
        Ok(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(signer: &Signer, chain: &mut Chain, to: u32, before: &Digest) -> Chunk {
        let (from, in_root, out_root) = (chain.position(), Digest([3; 32]), Digest([to as u8; 32]));
        let hash = chain.next(to, &in_root, &out_root, before);
        chain.push(to, hash);
        Chunk { from, to, in_root, out_root, signature: signer.sign(&hash) }
    }

    #[test]
    fn only_the_next_chunk_with_the_right_signature_follows() {
        let identity = Identity::from_secret([1; 32]);
        let (node, plan, before) = (Digest(*identity.id().as_bytes()), Digest([9; 32]), Digest([4; 32]));
        let signer = Signer::new(identity);
        let mut chain = Chain::new(plan, 2);
        let first = chunk(&signer, &mut chain, 64, &before);
        let second = chunk(&signer, &mut chain, 70, &before);
        let mut follower = Follower::new(plan, 2, node);
        assert_eq!(follower.take(&second, &before), Err(CommitmentError::Range));
        for forged in [
            Chunk { out_root: Digest([7; 32]), ..first.clone() },
            Chunk { in_root: Digest([7; 32]), ..first.clone() },
            Chunk { to: 63, ..first.clone() },
        ] {
            assert_eq!(follower.take(&forged, &before), Err(CommitmentError::Signature));
        }
        assert_eq!(follower.take(&first, &Digest([5; 32])), Err(CommitmentError::Signature));
        assert_eq!(Follower::new(plan, 1, node).take(&first, &before), Err(CommitmentError::Signature));
        assert_eq!(follower.take(&Chunk { to: 65, ..first.clone() }, &before), Err(CommitmentError::Range));
        assert!(follower.take(&first, &before).is_ok());
        assert!(follower.take(&second, &before).is_ok());
        assert_eq!(follower.position(), 70);
    }
}
