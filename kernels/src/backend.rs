//! The seam for compute: the short list of operations every device implements.
//!
//! A decoder layer is six of them: `norm`, `qkv`, `attention`, `project`, `norm`, `gate_up`, `project`
//! (the two projections differ in their weights alone). An implementation may fuse inside an
//! operation as it likes, because every operation is defined to the bit.

use std::ops::Range;

use thiserror::Error;

use crate::{
    rope::RopeTable,
    tensor::{Format, WeightMatrix},
};

/// Positions of one KV page, equal to the attention block of the numerics.
pub const PAGE: usize = 64;

/// How activations, residual and KV are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// int8 activations before quantised weights, bf16 residual between layers, f16 KV.
    Quantised,
    /// Unquantised f32 throughout (parity tests, research).
    F32,
}

/// In groups of which sizes an activation is quantised: what the matrices that read it ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Grouping {
    /// Groups of 32, for `q8` and `q4`.
    pub narrow: bool,
    /// Groups of 256, for `q4_k` and `q6_k`.
    pub wide: bool,
}

impl Grouping {
    /// The groups that matrices of `formats` read.
    pub fn of(formats: impl IntoIterator<Item = Format>) -> Self {
        formats.into_iter().fold(Self::default(), |grouping, format| Self {
            narrow: grouping.narrow || !format.is_float() && !format.is_wide(),
            wide: grouping.wide || format.is_wide(),
        })
    }

    /// Whether a matrix of `format` finds what it reads.
    pub fn serves(self, format: Format) -> bool {
        format.is_float() || if format.is_wide() { self.wide } else { self.narrow }
    }
}

/// Where a fault (NaN or infinity) was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// The activation quantiser's largest magnitude.
    Quantise,
    /// The input of a float-weight linear layer.
    FloatLinear,
    /// K or V on its way into the cache.
    KvRound,
    /// A layer's output.
    LayerOutput,
    /// The logits.
    Logits,
}

/// The first fault of each row of a batch. Rows do not influence one another, so the other rows
/// of a faulty batch stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    rows: Vec<Option<Operation>>,
}

impl Faults {
    /// Forgets everything and makes room for `rows` rows.
    pub fn reset(&mut self, rows: usize) {
        self.rows.clear();
        self.rows.resize(rows, None);
    }

    /// Records `operation` for `row` unless an earlier fault stands there.
    pub fn record(&mut self, row: usize, operation: Operation) {
        let slot = &mut self.rows[row];
        if slot.is_none() {
            *slot = Some(operation);
        }
    }

    /// The first fault of `row`.
    pub fn of(&self, row: usize) -> Option<Operation> {
        self.rows[row]
    }

    /// Whether any row is faulty.
    pub fn any(&self) -> bool {
        self.rows.iter().any(Option::is_some)
    }
}

/// One row of a batch: a token at an absolute position of some session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Absolute position of the token in its session.
    pub position: u32,
    /// The session's page table as a range of [`Batch::pages`]; entry `i` of it holds positions
    /// `64 i .. 64 i + 64` and it reaches at least past `position`.
    pub pages: Range<usize>,
}

/// Rows of mixed sessions and positions that pass through a layer together. A session's rows stand
/// in ascending position.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The rows.
    pub rows: &'a [Row],
    /// Page tables of all sessions, one after another.
    pub pages: &'a [u32],
}

/// Root-mean-square norm (section 4).
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    /// Elementwise weight.
    pub weight: Vec<f32>,
    /// Added to the mean square.
    pub eps: f32,
}

/// A matrix with its optional bias.
#[derive(Clone, Debug)]
pub struct Linear<M> {
    /// Weights `[outputs][inputs]`.
    pub weight: M,
    /// Bias `[outputs]`.
    pub bias: Option<Vec<f32>>,
}

/// Query, key and value projections of one layer with what happens to them before the cache.
#[derive(Clone, Debug)]
pub struct Qkv<M> {
    /// Query projection, `[heads * head_dim][hidden]`.
    pub q: Linear<M>,
    /// Key projection, `[kv_heads * head_dim][hidden]`.
    pub k: Linear<M>,
    /// Value projection, `[kv_heads * head_dim][hidden]`.
    pub v: Linear<M>,
    /// Per-head norm of the queries before RoPE (qk-norm).
    pub q_norm: Option<RmsNorm>,
    /// Per-head norm of the keys before RoPE (qk-norm).
    pub k_norm: Option<RmsNorm>,
}

/// Gate and up projections of a gated MLP.
#[derive(Clone, Debug)]
pub struct GateUp<M> {
    /// Gate projection, `[intermediate][hidden]`.
    pub gate: Linear<M>,
    /// Up projection, `[intermediate][hidden]`.
    pub up: Linear<M>,
    /// Activation of the gate.
    pub activation: Gate,
}

/// Activation function of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// `x * sigmoid(x)`.
    Silu,
}

/// Shape and masking of one layer's attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Factor on the queries, a stored f32 constant.
    pub scale: f32,
    /// Sliding window: a query sees itself and the `window - 1` keys before it.
    pub window: Option<u32>,
}

/// Size of a KV store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers held.
    pub layers: usize,
    /// Pages per layer; a page id addresses the same page in every layer.
    pub pages: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// f16 or f32 storage.
    pub profile: Profile,
}

impl KvShape {
    /// Bytes of one page over all layers, K and V together.
    pub const fn page_bytes(&self) -> usize {
        let element = match self.profile {
            Profile::Quantised => 2,
            Profile::F32 => 4,
        };
        self.layers * 2 * PAGE * self.kv_heads * self.head_dim * element
    }
}

/// What a device could not do. Nothing is lost: the call had no effect.
#[derive(Debug, Error)]
pub enum BackendError {
    /// The device has not the memory.
    #[error("{what} needs {bytes} bytes, which the device does not have")]
    OutOfMemory {
        /// What was to be allocated.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// The device failed.
    #[error("device: {0}")]
    Device(String),
}

/// A device that runs transformer layers to the bit of `exact/1`.
///
/// Shapes are the caller's duty: a mismatch is a bug of ours and panics. Buffers are sized once for
/// the largest batch; every operation takes the number of rows in use.
pub trait Backend: Send + Sync + 'static {
    /// A weight matrix repacked for the device.
    type Matrix: Send + Sync;
    /// f32 rows `[rows][width]`.
    type Buffer: Send;
    /// Rows as the input of a linear layer: int8 groups with scales (profile `Quantised`; the f32
    /// values stay beside them where a float-weight layer reads them) or f32.
    type Activation: Send;
    /// Paged K and V of a layer range.
    type Kv: Send;

    /// One phrase for people: instruction set and threads, or card and memory.
    fn describe(&self) -> String;

    /// Repacks canonical weights.
    fn matrix(&self, weights: WeightMatrix) -> Result<Self::Matrix, BackendError>;
    /// Zeroed f32 rows.
    fn buffer(&self, rows: usize, width: usize) -> Result<Self::Buffer, BackendError>;
    /// Zeroed activation rows, quantised as `grouping` says under `Quantised`. Groups of 256 ask for a width
    /// that is a multiple of 256. Under `Quantised` a value that is not finite is a fault of the quantiser
    /// whatever the grouping.
    fn activation(
        &self,
        rows: usize,
        width: usize,
        profile: Profile,
        grouping: Grouping,
    ) -> Result<Self::Activation, BackendError>;
    /// A KV store with every page free.
    fn kv(&self, shape: KvShape) -> Result<Self::Kv, BackendError>;

    /// Copies `values` (`[n][width]`) into the first rows of `out`.
    fn upload(&self, values: &[f32], out: &mut Self::Buffer);
    /// Copies rows out, `[rows.len()][width]`.
    fn download(&self, buffer: &Self::Buffer, rows: Range<usize>, out: &mut [f32]);
    /// Copies the rows listed in `rows` of `from` to the first rows of `out`.
    fn gather(&self, from: &Self::Buffer, rows: &[u32], out: &mut Self::Buffer);

    /// Decodes embedding rows, times `scale` if given, rounded to bf16 under `Quantised`.
    fn embed(
        &self,
        table: &Self::Matrix,
        tokens: &[u32],
        scale: Option<f32>,
        profile: Profile,
        out: &mut Self::Buffer,
    );
    /// Norm of each row, ready for a linear layer.
    fn norm(
        &self,
        norm: &RmsNorm,
        x: &Self::Buffer,
        rows: usize,
        out: &mut Self::Activation,
        faults: &mut Faults,
    );
    /// Projects q, k, v; adds biases; norms heads; rotates q and k; writes k and v of layer `layer` (index
    /// into the store) to their pages; leaves the rotated q in `q` (`[rows][heads * head_dim]`).
    #[expect(clippy::too_many_arguments, reason = "one fused operation of the device")]
    fn qkv(
        &self,
        weights: &Qkv<Self::Matrix>,
        shape: &AttentionShape,
        rope: &RopeTable,
        x: &Self::Activation,
        batch: Batch<'_>,
        layer: usize,
        q: &mut Self::Buffer,
        kv: &mut Self::Kv,
        faults: &mut Faults,
    );
    /// Attention of every row over its session's pages of layer `layer`, ready for a linear layer
    /// (`[rows][heads * head_dim]`).
    #[expect(clippy::too_many_arguments, reason = "one fused operation of the device")]
    fn attention(
        &self,
        shape: &AttentionShape,
        q: &Self::Buffer,
        kv: &Self::Kv,
        batch: Batch<'_>,
        layer: usize,
        out: &mut Self::Activation,
        faults: &mut Faults,
    );
    /// `h += W x (+ b)`: the output projection of attention and of the MLP.
    fn project(
        &self,
        linear: &Linear<Self::Matrix>,
        x: &Self::Activation,
        rows: usize,
        h: &mut Self::Buffer,
        faults: &mut Faults,
    );
    /// `act(gate x) * (up x)`, ready for a linear layer.
    fn gate_up(
        &self,
        weights: &GateUp<Self::Matrix>,
        x: &Self::Activation,
        rows: usize,
        out: &mut Self::Activation,
        faults: &mut Faults,
    );
    /// Ends a layer: rounds to bf16 under `Quantised`; under both profiles a non-finite row is a fault.
    fn finish(&self, h: &mut Self::Buffer, rows: usize, profile: Profile, faults: &mut Faults);
    /// `W x (+ b)` as f32 logits, `[rows][vocabulary]`.
    fn logits(
        &self,
        head: &Linear<Self::Matrix>,
        x: &Self::Activation,
        rows: usize,
        out: &mut Self::Buffer,
        faults: &mut Faults,
    );
}
