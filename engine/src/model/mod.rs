//! Models on disk: what they are, where their tensors lie, and the weights of a layer range.

use std::ops::Range;

use kernels::{
    backend::{GateUp, Linear, Qkv, RmsNorm},
    rope::RopeSpec,
    tensor::WeightMatrix,
};
use serde::{Deserialize, Serialize};

/// What a forward pass needs to know of a model; a family is values of this description.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Family name as in `config.json` (`llama`, `mistral`, `qwen2`, `qwen3`).
    pub family: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Token ids.
    pub vocabulary: usize,
    /// Added to the mean square in norms.
    pub norm_eps: f32,
    /// Rotary positions.
    pub rope: RopeSpec,
    /// Longest context.
    pub max_positions: u32,
    /// Sliding window of each layer, if it has one.
    pub windows: Vec<Option<u32>>,
    /// Factor on the queries.
    pub attention_scale: f32,
    /// Factor on embedding rows.
    pub embedding_scale: Option<f32>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Begin-of-sequence token.
    pub bos: Option<u32>,
    /// Tokens that end a reply.
    pub eos: Vec<u32>,
}

/// Part of a model that one node holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Decoder layers, may be empty.
    pub layers: Range<usize>,
    /// Whether the embedding belongs to it.
    pub embedding: bool,
    /// Whether the final norm and the head belong to it.
    pub head: bool,
}

/// One decoder layer in canonical weights.
#[derive(Clone, Debug)]
pub struct LayerWeights<M = WeightMatrix> {
    /// Norm before attention.
    pub attention_norm: RmsNorm,
    /// Query, key, value.
    pub qkv: Qkv<M>,
    /// Output projection.
    pub output: Linear<M>,
    /// Norm before the MLP.
    pub mlp_norm: RmsNorm,
    /// Gate and up.
    pub gate_up: GateUp<M>,
    /// Down projection.
    pub down: Linear<M>,
}

/// A shard's canonical weights. A tied head on the same shard is not stored twice: `head_weight` is
/// then `None` and the embedding serves.
#[derive(Clone, Debug)]
pub struct ShardWeights {
    /// Embedding `[vocabulary][hidden]`.
    pub embedding: Option<WeightMatrix>,
    /// The layers of the range in order.
    pub layers: Vec<LayerWeights>,
    /// Norm before the head.
    pub final_norm: Option<RmsNorm>,
    /// Head `[vocabulary][hidden]`.
    pub head: Option<Linear<WeightMatrix>>,
}
