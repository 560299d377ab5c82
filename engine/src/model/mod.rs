//! Models on disk: what they are, where their tensors lie, and the weights of a layer range.
//!
//! In the order of the work: a [`Model`] is opened (`open`) from [`safetensors`] or [`gguf`] files,
//! whose tensors form a `table`; [`config`] and `family` say what the tensors should be; `plan` lists
//! those of a shard; `read` and `weights` turn their bytes into canonical weights, which `cache`
//! keeps for the next start.

pub mod config;
pub mod gguf;
pub mod safetensors;

mod cache;
mod defaults;
mod demo;
mod error;
mod family;
mod fingerprint;
mod hash;
mod open;
mod opening;
pub(crate) mod partial;
mod plan;
mod read;
mod table;
mod weights;

#[cfg(test)]
pub(crate) mod tests;

use std::{fmt, ops::Range, str::FromStr};

use kernels::{
    backend::{GateUp, Linear, Profile, Qkv, RmsNorm},
    rope::RopeSpec,
    tensor::{Format, WeightMatrix},
};

pub use self::{
    cache::{LIMIT_BYTES, ShardCache, cache_root},
    defaults::{GenerationDefaults, chat_template, parse_generation},
    error::{ModelError, TensorFault},
    hash::{HashReport, ModelHash},
    open::{Model, NUMERICS, Progress},
    opening::{OpenUnit, OpenedSegment},
    table::{Dtype, TensorInfo, TensorTable},
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

/// How the weights of a model are held. Matrices that a GGUF file has as Q4_0, Q4_K or Q6_K stay as they
/// are under [`Quantisation::Q8`] and [`Quantisation::Q4`]: those say what becomes of the others, Q8_0
/// among them.
///
/// Embedding and head stay `q8` under [`Quantisation::Q4`]: an error of the head falls on the logits
/// with nothing after it to absorb it, an error of the embedding passes through every layer, and both
/// are a small part of what is read per token (one row; one matrix beside seven of every layer).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantisation {
    /// `q8` throughout.
    #[default]
    Q8,
    /// `q4` layers, `q8` embedding and head.
    Q4,
    /// Unquantised f32, profile `f32`.
    F32,
}

impl Quantisation {
    /// Format of the matrices of a layer.
    pub const fn layers(self) -> Format {
        match self {
            Quantisation::Q8 => Format::Q8,
            Quantisation::Q4 => Format::Q4,
            Quantisation::F32 => Format::F32,
        }
    }

    /// Format of the embedding and the head.
    pub const fn ends(self) -> Format {
        match self {
            Quantisation::Q8 | Quantisation::Q4 => Format::Q8,
            Quantisation::F32 => Format::F32,
        }
    }

    /// How activations, residual and KV go with it.
    pub const fn profile(self) -> Profile {
        match self {
            Quantisation::Q8 | Quantisation::Q4 => Profile::Quantised,
            Quantisation::F32 => Profile::F32,
        }
    }
}

impl fmt::Display for Quantisation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Quantisation::Q8 => "q8",
            Quantisation::Q4 => "q4",
            Quantisation::F32 => "f32",
        })
    }
}

/// A quantisation was given that there is none of.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a quantisation (q8, q4 or f32)")]
pub struct UnknownQuantisation(String);

impl FromStr for Quantisation {
    type Err = UnknownQuantisation;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "q8" => Ok(Quantisation::Q8),
            "q4" => Ok(Quantisation::Q4),
            "f32" => Ok(Quantisation::F32),
            other => Err(UnknownQuantisation(other.to_owned())),
        }
    }
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

/// A shard's canonical weights. A tied head on the same shard is not stored twice: `head` is then
/// `None` and the embedding serves.
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

/// Whether `name` is a single plain path component, so that it cannot lead out of its directory.
pub(crate) fn plain_name(name: &str) -> bool {
    let odd = |c: char| c.is_control() || matches!(c, '/' | '\\' | ':');
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains(odd)
}
