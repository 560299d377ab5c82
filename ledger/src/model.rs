//! What a model hash stands for on the chain.

use crate::{
    eip712::{keccak, word},
    merkle,
};

/// A model's contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Version of the arithmetic, and with it of weight and KV formats.
    pub numerics: u32,
    /// Hash of the tokenizer.
    pub tokenizer: [u8; 32],
    /// Hash of the position encoding's parameters.
    pub rope: [u8; 32],
    /// Roots of the weights: embedding, each layer in order, head with final norm.
    pub layers: Vec<[u8; 32]>,
}

const MODEL_TYPE: &str =
    "Model(uint32 numerics,bytes32 tokenizer,bytes32 rope,uint32 layers,bytes32 layerRoot)";

impl Model {
    /// The model hash; `None` without any layers.
    pub fn hash(&self) -> Option<[u8; 32]> {
        let parts = [
            keccak(MODEL_TYPE.as_bytes()),
            word(self.numerics.into()),
            self.tokenizer,
            self.rope,
            word(self.layers.len() as u128),
            merkle::root(&self.layer_leaves())?,
        ];
        Some(keccak(parts.as_flattened()))
    }

    /// What proves root number `index` of the weights to be the model's; `None` if there is no such root.
    pub fn layer_proof(&self, index: usize) -> Option<Vec<[u8; 32]>> {
        merkle::proof(&self.layer_leaves(), index)
    }

    /// What the root over the roots of weights is taken over.
    pub fn layer_leaves(&self) -> Vec<[u8; 32]> {
        let roots = self.layers.iter().enumerate();
        roots.map(|(index, root)| merkle::leaf(&[word(index as u128), *root])).collect()
    }
}
