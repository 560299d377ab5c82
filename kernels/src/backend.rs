//! The seam for compute: the short list of operations every device implements.
//!
//! A decoder layer is five of them: `qkv`, `attention`, `project`, `gate_up`, `project` (the two projections
//! differ in their weights and in what follows). An implementation may fuse inside an operation as it
//! likes, because every operation is defined to the bit.
//!
//! A pass is `begin`, `run` with the operations inside, `end`: what differs from one pass to the next is
//! handed over at its beginning, and nothing comes back before its end, so a device can keep the operations
//! of a pass and repeat them.

use std::ops::Range;

use thiserror::Error;

use crate::{
    reference::{Choice, Edit},
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
    /// The f32 values beside them, for float formats.
    pub float: bool,
}

impl Grouping {
    /// The groups that matrices of `formats` read.
    pub fn of(formats: impl IntoIterator<Item = Format>) -> Self {
        formats.into_iter().fold(Self::default(), |grouping, format| Self {
            narrow: grouping.narrow || !format.is_float() && !format.is_wide(),
            wide: grouping.wide || format.is_wide(),
            float: grouping.float || format.is_float(),
        })
    }

    /// Whether a matrix of `format` finds what it reads.
    pub fn serves(self, format: Format) -> bool {
        match (format.is_float(), format.is_wide()) {
            (true, _) => self.float,
            (_, true) => self.wide,
            _ => self.narrow,
        }
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

/// A fault of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowFault {
    /// The layer it was seen in, as [`Backend::enter`] counts.
    pub layer: usize,
    /// Where in the layer.
    pub operation: Operation,
}

/// The first fault of each row of a batch. Rows do not influence one another, so the other rows
/// of a faulty batch stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    rows: Vec<Option<RowFault>>,
}

impl Faults {
    /// Forgets everything and makes room for `rows` rows.
    pub fn reset(&mut self, rows: usize) {
        self.rows.clear();
        self.rows.resize(rows, None);
    }

    /// Records a fault of `row` unless an earlier one stands there.
    pub fn record(&mut self, row: usize, layer: usize, operation: Operation) {
        self.rows[row].get_or_insert(RowFault { layer, operation });
    }

    /// The first fault of `row`.
    pub fn of(&self, row: usize) -> Option<RowFault> {
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
    /// Of each row, what it is made from: a token for [`Backend::embed`], a row of another buffer for
    /// [`Backend::gather`]. Empty in a pass with neither.
    pub sources: &'a [u32],
}

/// Bounds of the passes that go with one [`Backend::Step`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepShape {
    /// Most rows.
    pub rows: usize,
    /// Most entries of page tables.
    pub pages: usize,
    /// Most positions of a session.
    pub positions: usize,
    /// How activations are held.
    pub profile: Profile,
    /// Heads of the layers, if the passes have any.
    pub attention: Option<AttentionShape>,
    /// Values of a row of logits, if tokens are drawn.
    pub vocabulary: usize,
}

/// What is asked of one row of logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// How its token is drawn.
    pub choice: Choice,
    /// What happens to the logits before, in ascending order of tokens.
    pub edits: Vec<Edit>,
}

/// Which operations a pass consists of. Passes with one step that are equal here issue the same operations
/// on the same buffers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Decoder layers.
    Layers {
        /// Which.
        layers: Range<usize>,
        /// Whether embedding rows go into them.
        embedding: bool,
    },
    /// Norm and logits of some rows.
    Head,
}

/// The step of a device that computes where the caller does.
#[derive(Clone, Debug)]
pub struct HostStep {
    pub(crate) profile: Profile,
    pub(crate) rows: Vec<Row>,
    pub(crate) pages: Vec<u32>,
    pub(crate) sources: Vec<u32>,
    pub(crate) layer: usize,
    pub(crate) faults: Faults,
}

impl HostStep {
    pub(crate) fn new(shape: StepShape) -> Self {
        let (rows, pages, sources) = (Vec::with_capacity(shape.rows), Vec::new(), Vec::new());
        Self { profile: shape.profile, rows, pages, sources, layer: 0, faults: Faults::default() }
    }

    pub(crate) fn begin(&mut self, batch: Batch<'_>) {
        self.rows.clear();
        self.rows.extend_from_slice(batch.rows);
        self.pages.clear();
        self.pages.extend_from_slice(batch.pages);
        self.sources.clear();
        self.sources.extend_from_slice(batch.sources);
        self.faults.reset(batch.rows.len());
    }

    /// Records a fault in the current layer.
    pub(crate) fn fault(&mut self, row: usize, operation: Operation) {
        self.faults.record(row, self.layer, operation);
    }
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

impl<M> Linear<M> {
    /// The same with another matrix.
    pub(crate) fn try_map<N, E>(self, mut map: impl FnMut(M) -> Result<N, E>) -> Result<Linear<N>, E> {
        Ok(Linear { weight: map(self.weight)?, bias: self.bias })
    }
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

impl<M> Qkv<M> {
    /// The same with other matrices.
    pub(crate) fn try_map<N, E>(self, mut map: impl FnMut(M) -> Result<N, E>) -> Result<Qkv<N>, E> {
        let Self { q, k, v, q_norm, k_norm } = self;
        let [q, k, v] = [q.try_map(&mut map)?, k.try_map(&mut map)?, v.try_map(&mut map)?];
        Ok(Qkv { q, k, v, q_norm, k_norm })
    }
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

impl<M> GateUp<M> {
    /// The same with other matrices.
    pub(crate) fn try_map<N, E>(self, mut map: impl FnMut(M) -> Result<N, E>) -> Result<GateUp<N>, E> {
        let (gate, up) = (self.gate.try_map(&mut map)?, self.up.try_map(&mut map)?);
        Ok(GateUp { gate, up, activation: self.activation })
    }
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

/// What follows a projection onto the residual, with norms of type `N` and activations of type `A`.
#[derive(Debug)]
pub enum Then<'a, N, A> {
    /// Nothing.
    Nothing,
    /// A norm of the residual, as [`Backend::norm`].
    Norm(&'a N, &'a mut A),
    /// The layer ends: the residual is rounded to bf16 under [`Profile::Quantised`]; under both profiles
    /// a row that is not finite is a fault.
    End,
    /// The layer ends, and the norm of the next one follows; its faults are of that layer.
    Next(&'a N, &'a mut A),
}

/// What a device could not do.
#[derive(Debug, Error)]
pub enum BackendError {
    /// The device has not the memory. The call had no effect.
    #[error("{what} needs {bytes} bytes, which the device does not have")]
    OutOfMemory {
        /// What was to be allocated.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// The device failed. One that failed in a pass stays so: what it computed is lost.
    #[error("device: {0}")]
    Device(String),
}

/// A device that runs transformer layers to the bit of `exact/1`.
///
/// Shapes are the caller's duty: a mismatch is a bug of ours and panics. Buffers are sized once for
/// the largest batch; how many rows are in use, and which, the step says. Operations may return before they
/// are done; a device that fails says so at the end of the pass.
pub trait Backend: Send + Sync + 'static {
    /// A matrix repacked for the device, with its bias.
    type Linear: Send + Sync;
    /// Query, key and value projections of a layer.
    type Qkv: Send + Sync;
    /// Gate and up projections of a layer.
    type GateUp: Send + Sync;
    /// Weights of a norm.
    type Norm: Send + Sync;
    /// Rotary tables.
    type Rope: Send + Sync;
    /// f32 rows `[rows][width]`.
    type Buffer: Send;
    /// Rows as the input of a linear layer: int8 groups with scales (profile `Quantised`; the f32
    /// values stay beside them where a float-weight layer reads them) or f32.
    type Activation: Send;
    /// Paged K and V of a layer range.
    type Kv: Send;
    /// What differs between passes: rows, page tables, sources and faults.
    type Step: Send;

    /// One phrase for people: instruction set and threads, or card and memory.
    fn describe(&self) -> String;

    /// Bytes that may still be taken of the device's own memory; none if it uses the host's.
    fn free_bytes(&self) -> Result<Option<usize>, BackendError> {
        Ok(None)
    }

    /// Repacks canonical weights.
    fn load_linear(&self, weights: Linear<WeightMatrix>) -> Result<Self::Linear, BackendError>;
    /// Takes over an embedding; `tied` says that it is the head's matrix, too.
    fn load_embedding(&self, weights: WeightMatrix, tied: bool) -> Result<Self::Linear, BackendError>;
    /// Repacks canonical weights.
    fn load_qkv(&self, weights: Qkv<WeightMatrix>) -> Result<Self::Qkv, BackendError>;
    /// Repacks canonical weights.
    fn load_gate_up(&self, weights: GateUp<WeightMatrix>) -> Result<Self::GateUp, BackendError>;
    /// Takes over the weights of a norm.
    fn load_norm(&self, norm: RmsNorm) -> Result<Self::Norm, BackendError>;
    /// Takes over rotary tables.
    fn load_rope(&self, table: RopeTable) -> Result<Self::Rope, BackendError>;
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
    /// Room for passes up to a size.
    fn step(&self, shape: StepShape) -> Result<Self::Step, BackendError>;

    /// Begins a pass over `batch`: forgets the faults of the one before.
    fn begin(&self, step: &mut Self::Step, batch: Batch<'_>);
    /// Copies `values` (`[n][width]`) into the first rows of `out`, before [`Backend::run`].
    fn upload(&self, values: &[f32], out: &mut Self::Buffer);
    /// Runs the operations that `issue` calls with the step. Whoever runs an equal pass with the same step
    /// must issue the same operations with the same arguments: a device may repeat those of the first time
    /// instead of calling `issue` again.
    fn run(&self, step: &mut Self::Step, pass: Pass, issue: impl FnOnce(&mut Self::Step));
    /// Waits until the pass is done.
    fn end<'a>(&self, step: &'a mut Self::Step) -> Result<&'a Faults, BackendError>;
    /// Whether the device draws tokens; where it does not, the caller reads the logits and draws.
    fn draws(&self) -> bool {
        false
    }
    /// Draws a token from each of the step's rows of `logits`, after [`Backend::run`]; the logits are edited in
    /// place.
    fn draw(&self, _logits: &mut Self::Buffer, _step: &mut Self::Step, _questions: &[Question]) {}
    /// The tokens that were drawn, after [`Backend::end`].
    fn drawn(&self, _step: &mut Self::Step, tokens: &mut Vec<u32>) -> Result<(), BackendError> {
        tokens.clear();
        Ok(())
    }
    /// Copies rows out, `[rows.len()][width]`, after [`Backend::end`].
    fn download(
        &self,
        buffer: &Self::Buffer,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), BackendError>;

    /// Layer of the model (its number of layers for the head) that the faults of what follows belong to.
    fn enter(&self, step: &mut Self::Step, layer: usize);
    /// Copies the rows of `from` that are the step's sources to the first rows of `out`.
    fn gather(&self, from: &Self::Buffer, step: &mut Self::Step, out: &mut Self::Buffer);
    /// Decodes the embedding rows that are the step's sources, times `scale` if given, rounded to bf16 under
    /// `Quantised`.
    fn embed(&self, table: &Self::Linear, scale: Option<f32>, step: &mut Self::Step, out: &mut Self::Buffer);
    /// Norm of each row, ready for a linear layer.
    fn norm(&self, norm: &Self::Norm, x: &Self::Buffer, step: &mut Self::Step, out: &mut Self::Activation);
    /// Projects q, k, v; adds biases; norms heads; rotates q and k; writes k and v of layer `layer` (index
    /// into the store) to their pages; leaves the rotated q in `q` (`[rows][heads * head_dim]`).
    #[expect(clippy::too_many_arguments, reason = "one fused operation of the device")]
    fn qkv(
        &self,
        weights: &Self::Qkv,
        shape: &AttentionShape,
        rope: &Self::Rope,
        x: &Self::Activation,
        layer: usize,
        step: &mut Self::Step,
        q: &mut Self::Buffer,
        kv: &mut Self::Kv,
    );
    /// Attention of every row over its session's pages of layer `layer`, ready for a linear layer
    /// (`[rows][heads * head_dim]`).
    fn attention(
        &self,
        shape: &AttentionShape,
        q: &Self::Buffer,
        kv: &Self::Kv,
        layer: usize,
        step: &mut Self::Step,
        out: &mut Self::Activation,
    );
    /// `h += W x (+ b)`, the output projection of attention and of the MLP, and what follows it.
    fn project(
        &self,
        linear: &Self::Linear,
        x: &Self::Activation,
        step: &mut Self::Step,
        h: &mut Self::Buffer,
        then: Then<'_, Self::Norm, Self::Activation>,
    );
    /// `act(gate x) * (up x)`, ready for a linear layer.
    fn gate_up(
        &self,
        weights: &Self::GateUp,
        x: &Self::Activation,
        step: &mut Self::Step,
        out: &mut Self::Activation,
    );
    /// `W x (+ b)` as f32 logits, `[rows][vocabulary]`.
    fn logits(
        &self,
        head: &Self::Linear,
        x: &Self::Activation,
        step: &mut Self::Step,
        out: &mut Self::Buffer,
    );
}
