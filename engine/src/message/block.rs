//! Names of token blocks, by which sessions find keys and values they can share.

use kernels::backend::PAGE;
use serde::{Deserialize, Serialize};

/// Stands for the first `64 n` tokens of a session: the hash of the one before it and of the `n`-th 64
/// tokens. Equal hashes mean equal keys and values, so that sessions of one route can share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockHash(pub [u8; 16]);

impl BlockHash {
    /// The hash of no tokens. Sessions with different salts never share.
    pub fn root(salt: &[u8]) -> Self {
        Self::cut(blake3::Hasher::new_derive_key("dolphin kv root 1").update(salt))
    }

    /// The hash of a block after this one.
    pub fn then(self, block: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("dolphin kv block 1");
        hasher.update(&self.0);
        block.iter().for_each(|token| {
            hasher.update(&token.to_le_bytes());
        });
        Self::cut(&hasher)
    }

    /// The root and the hash after each whole block of `tokens`.
    pub fn chain(root: Self, tokens: &[u32]) -> Vec<Self> {
        let mut hashes = vec![root];
        Self::extend(&mut hashes, tokens);
        hashes
    }

    /// Appends the whole blocks of `tokens` that a chain does not have yet. An empty chain stays so.
    pub fn extend(chain: &mut Vec<Self>, tokens: &[u32]) {
        let Some(done) = chain.len().checked_sub(1) else { return };
        for block in tokens.chunks_exact(PAGE).skip(done) {
            chain.push(chain[chain.len() - 1].then(block));
        }
    }

    fn cut(hasher: &blake3::Hasher) -> Self {
        let mut bytes = [0; 16];
        hasher.finalize_xof().fill(&mut bytes);
        Self(bytes)
    }
}
