//! A stage: the layers of a shard on one device, the KV of its sessions, and the step that takes a
//! batch of rows through them. Prefill in chunks and decoding are the same call.

mod forward;
pub mod kv;

use std::{ops::Range, sync::Arc};

use kernels::{
    backend::{
        AttentionShape, Backend, BackendError, Grouping, KvShape, Linear, Profile, RmsNorm, Row, StepShape,
    },
    rope::{RopeError, RopeTable},
    tensor::WeightMatrix,
};
use thiserror::Error;

use crate::{
    message::{BlockHash, FaultOperation, RouteId, Segment, SessionId},
    model::{LayerWeights, ModelConfig, Shard, ShardWeights},
};
pub use kv::{KvUsage, Prompt, Short};
use kv::{Pager, pages_for};

/// Most rows whose logits are computed at once. A row of them is as long as the vocabulary, which makes
/// this the widest buffer of a step by far: 37 MiB for 64 rows of 150,000 tokens.
const MAX_DRAWS: usize = 64;

/// Bounds of a stage, fixed when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageLimits {
    /// Most rows of one step.
    pub rows: usize,
    /// KV pages over all sessions.
    pub pages: usize,
    /// Most sessions at once.
    pub sessions: usize,
    /// Longest session in positions.
    pub positions: u32,
}

/// Why a stage could not be made.
#[derive(Debug, Error)]
pub enum StageError {
    /// The device refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The rotary parameters make no table.
    #[error(transparent)]
    Rope(#[from] RopeError),
}

/// Why a stage does not take a session.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OpenError {
    /// Too many sessions.
    #[error("the stage already serves {limit} sessions")]
    TooManySessions {
        /// The bound.
        limit: usize,
    },
    /// The session is longer than the stage's tables, or than all of its KV.
    #[error("the session can reach {requested} positions, and the stage serves {limit}")]
    TooLong {
        /// Positions asked for.
        requested: u32,
        /// The bound.
        limit: u32,
    },
    /// The session is open already.
    #[error("the session is open already")]
    Exists,
}

/// A step that breaks the rules: its sender is at fault and nothing was computed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StepError {
    /// More rows than a step may have.
    #[error("a step of {rows} rows, where {limit} are allowed")]
    TooManyRows {
        /// Rows of the step.
        rows: usize,
        /// The bound.
        limit: usize,
    },
    /// Rows past what the session can reach, with a gap before them, or without pages.
    #[error("rows {from}..{to} do not follow the session's {held} positions")]
    Positions {
        /// First position.
        from: u32,
        /// One past the last.
        to: u32,
        /// Positions the session has.
        held: u32,
    },
    /// A token id outside the vocabulary.
    #[error("token {token} is outside the vocabulary")]
    Token {
        /// The token.
        token: u32,
    },
    /// Input of the wrong size or kind.
    #[error("the input does not have the size of its rows")]
    Input,
    /// A session that is not open here.
    #[error("the session is not open")]
    Unknown,
}

/// Why a step came to nothing.
#[derive(Debug, Error)]
pub enum ComputeError {
    /// It breaks the rules.
    #[error(transparent)]
    Refused(#[from] StepError),
    /// The device failed: the stage and what it held are lost.
    #[error(transparent)]
    Device(#[from] BackendError),
}

/// Rows on their way into a stage.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Token ids, into a stage with the embedding.
    Tokens(&'a [u32]),
    /// Activation rows `[rows][hidden]`.
    Rows(&'a [f32]),
}

/// A fault of one session in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Index of the segment.
    pub segment: usize,
    /// Position of the row.
    pub position: u32,
    /// Layer of the model; the number of layers stands for the head.
    pub layer: usize,
    /// Where it was seen.
    pub operation: FaultOperation,
}

/// A decoder layer on the device.
struct Layer<B: Backend> {
    shape: AttentionShape,
    attention_norm: B::Norm,
    qkv: B::Qkv,
    output: B::Linear,
    mlp_norm: B::Norm,
    gate_up: B::GateUp,
    down: B::Linear,
}

struct Head<B: Backend> {
    norm: B::Norm,
    weight: Arc<B::Linear>,
}

/// Buffers of one step, sized once for the largest.
struct Workspace<B: Backend> {
    step: B::Step,
    hidden: B::Buffer,
    normed: B::Activation,
    query: B::Buffer,
    attended: B::Activation,
    gated: B::Activation,
    drawing: Option<Drawing<B>>,
    rows: Vec<Row>,
    pages: Vec<u32>,
}

/// Buffers of the rows whose logits are computed.
struct Drawing<B: Backend> {
    step: B::Step,
    hidden: B::Buffer,
    normed: B::Activation,
    logits: B::Buffer,
    rows: Vec<Row>,
}

/// See the module. Generic over the device; the forward pass is written once, in `forward.rs`.
pub struct Stage<B: Backend> {
    backend: B,
    config: ModelConfig,
    shard: Shard,
    profile: Profile,
    limits: StageLimits,
    rope: B::Rope,
    layers: Vec<Layer<B>>,
    embedding: Option<Arc<B::Linear>>,
    head: Option<Head<B>>,
    kv: B::Kv,
    pager: Pager,
    workspace: Workspace<B>,
}

impl<B: Backend> Stage<B> {
    /// Uploads a shard and plans every buffer. A device with memory of its own has as many of the KV pages as
    /// there is room for.
    pub fn new(
        backend: B,
        config: &ModelConfig,
        shard: &Shard,
        weights: ShardWeights,
        profile: Profile,
        limits: StageLimits,
    ) -> Result<Self, StageError> {
        let positions = limits.positions.min(config.max_positions);
        let limits = StageLimits { positions, ..limits };
        let rope = backend.load_rope(RopeTable::new(&config.rope, positions as usize)?)?;
        let groupings = Groupings::of(&weights);
        let Ends { embedding, head } =
            upload_ends(&backend, weights.embedding, weights.final_norm, weights.head)?;
        let windows = &config.windows[shard.layers.clone()];
        let layers = (weights.layers.into_iter().zip(windows))
            .map(|(layer, &window)| upload_layer(&backend, layer, attention_shape(config, window)))
            .collect::<Result<Vec<_>, BackendError>>()?;
        let workspace = Workspace::plan(&backend, config, &limits, profile, &groupings, head.is_some())?;
        let shape = KvShape {
            layers: layers.len(),
            pages: limits.pages,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            profile,
        };
        let limits = StageLimits { pages: affordable(&backend, &shape)?, ..limits };
        let kv = backend.kv(KvShape { pages: limits.pages, ..shape })?;
        Ok(Self {
            backend,
            config: config.clone(),
            shard: shard.clone(),
            profile,
            limits,
            rope,
            layers,
            embedding,
            head,
            kv,
            pager: Pager::new(limits),
            workspace,
        })
    }

    /// What the stage holds.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Width of an activation row.
    pub fn hidden(&self) -> usize {
        self.config.hidden
    }

    /// Token ids of the model.
    pub fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    /// How activations are held, here and on the wire.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// Its bounds.
    pub fn limits(&self) -> &StageLimits {
        &self.limits
    }

    /// Most rows that [`Stage::logits`] takes.
    pub fn draw_rows(&self) -> usize {
        draw_rows(&self.limits)
    }

    /// How the KV is used.
    pub fn usage(&self) -> KvUsage {
        self.pager.usage()
    }

    /// Whether a session is open here.
    pub fn is_open(&self, session: SessionId) -> bool {
        self.pager.is_open(session)
    }

    /// Begins a session that can reach `positions` positions. It gets what earlier sessions of its route
    /// left of its prompt, and no page of its own yet; returns the positions it holds, a multiple of 64
    /// and fewer than the prompt has.
    pub fn open(
        &mut self,
        session: SessionId,
        route: RouteId,
        positions: u32,
        prompt: Prompt<'_>,
    ) -> Result<u32, OpenError> {
        self.pager.open(session, route, positions, prompt)
    }

    /// Frees what a session holds; a session that is not open is no error. `keep` has the session's root
    /// and the hash after each full block of what was verified, prompt and reply: those blocks stay for
    /// later sessions of the route until their pages are needed.
    pub fn close(&mut self, session: SessionId, keep: &[BlockHash]) {
        self.pager.close(session, keep);
    }

    /// Gives the sessions of a step that is to run next the pages for its rows, the oldest session first,
    /// and cuts each back to where its segment begins. When no page is free, blocks that no session uses
    /// go, those used longest ago first, then the pages of the youngest session younger than the one
    /// that asks.
    ///
    /// `short` is replaced: every session that lost its pages, in the step or not, and every one whose
    /// segment cannot run, because positions before it are missing here or because older sessions hold
    /// all pages. The caller takes their segments out of the step. A segment that begins within a block
    /// that is shared is short of that block's positions: the block is not written, and has to be computed
    /// from its start.
    pub fn reserve(&mut self, segments: &[Segment], short: &mut Vec<Short>) {
        self.pager.reserve(segments, short);
    }

    /// Forgets a session's positions from `held` on. Where that cuts a block that is shared, the whole
    /// block is forgotten.
    pub fn truncate(&mut self, session: SessionId, held: u32) {
        self.pager.truncate(session, held);
    }

    /// Takes a batch of rows through `layers` (of the model, within the shard), for which
    /// [`Stage::reserve`] found pages. Afterwards [`Stage::read_rows`] and [`Stage::logits`] read the
    /// outcome; `faults` has the first fault of each segment that has any, and its session holds the
    /// positions before it.
    ///
    /// # Errors
    /// If the step breaks the rules, or the device failed: then nothing that the stage does any more holds.
    pub fn step(
        &mut self,
        layers: Range<usize>,
        segments: &[Segment],
        input: Input<'_>,
        faults: &mut Vec<Fault>,
    ) -> Result<(), ComputeError> {
        self.check(segments, input)?;
        self.place(segments);
        self.forward(layers, segments, input, faults)?;
        for (index, segment) in segments.iter().enumerate() {
            let fault = faults.iter().find(|fault| fault.segment == index);
            let held = fault.map_or(segment.from + segment.rows, |fault| fault.position);
            self.pager.advance(segment.session, held);
        }
        Ok(())
    }

    /// Output rows of the last step, `[rows.len()][hidden]`.
    ///
    /// # Errors
    /// If the device failed.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), BackendError> {
        out.resize(rows.len() * self.config.hidden, 0.0);
        self.backend.download(&self.workspace.hidden, rows, out)
    }

    fn check(&self, segments: &[Segment], input: Input<'_>) -> Result<(), StepError> {
        let rows: usize = segments.iter().map(|s| s.rows as usize).sum();
        if rows > self.limits.rows {
            return Err(StepError::TooManyRows { rows, limit: self.limits.rows });
        }
        match input {
            Input::Tokens(tokens) => {
                let outside = |&&token: &&u32| token as usize >= self.config.vocabulary;
                if let Some(&token) = tokens.iter().find(outside) {
                    return Err(StepError::Token { token });
                }
                if tokens.len() != rows || self.embedding.is_none() {
                    return Err(StepError::Input);
                }
            }
            Input::Rows(values) if values.len() != rows * self.config.hidden => return Err(StepError::Input),
            Input::Rows(_) => {}
        }
        segments.iter().try_for_each(|segment| self.pager.check(segment))
    }

    /// Lays out rows and page tables of the batch.
    fn place(&mut self, segments: &[Segment]) {
        let Workspace { rows, pages, .. } = &mut self.workspace;
        rows.clear();
        pages.clear();
        for segment in segments.iter().filter(|segment| segment.rows > 0) {
            let first = pages.len();
            pages.extend_from_slice(self.pager.table(segment.session));
            let positions = segment.from..segment.from + segment.rows;
            rows.extend(positions.map(|position| Row { position, pages: first..pages.len() }));
        }
    }
}

fn attention_shape(config: &ModelConfig, window: Option<u32>) -> AttentionShape {
    let &ModelConfig { heads, kv_heads, head_dim, attention_scale: scale, .. } = config;
    AttentionShape { heads, kv_heads, head_dim, scale, window }
}

fn draw_rows(limits: &StageLimits) -> usize {
    limits.rows.min(MAX_DRAWS)
}

/// As many of the pages as the device has room for, one at least.
fn affordable<B: Backend>(backend: &B, shape: &KvShape) -> Result<usize, BackendError> {
    let (Some(free), bytes @ 1..) = (backend.free_bytes()?, shape.page_bytes()) else {
        return Ok(shape.pages);
    };
    match shape.pages.min(free / bytes) {
        0 if shape.pages > 0 => Err(BackendError::OutOfMemory { what: "a KV page", bytes }),
        pages => Ok(pages),
    }
}

/// How the activations of a workspace are quantised: as all the matrices that read them ask for.
struct Groupings {
    normed: Grouping,
    attended: Grouping,
    gated: Grouping,
    head: Grouping,
}

impl Groupings {
    fn of(weights: &ShardWeights) -> Self {
        let layers = || weights.layers.iter();
        let format = |linear: &Linear<WeightMatrix>| linear.weight.format();
        let normed = layers().flat_map(|LayerWeights { qkv, gate_up, .. }| {
            [&qkv.q, &qkv.k, &qkv.v, &gate_up.gate, &gate_up.up].map(format)
        });
        let head = weights.head.as_ref().map(format);
        Self {
            normed: Grouping::of(normed),
            attended: Grouping::of(layers().map(|layer| format(&layer.output))),
            gated: Grouping::of(layers().map(|layer| format(&layer.down))),
            head: Grouping::of(head.or(weights.embedding.as_ref().map(WeightMatrix::format))),
        }
    }
}

impl<B: Backend> Workspace<B> {
    fn plan(
        backend: &B,
        config: &ModelConfig,
        limits: &StageLimits,
        profile: Profile,
        groupings: &Groupings,
        head: bool,
    ) -> Result<Self, BackendError> {
        let rows = limits.rows;
        let attended = config.heads * config.head_dim;
        let table = pages_for(limits.positions).min(limits.pages);
        let shape = StepShape {
            rows,
            pages: rows.saturating_mul(table),
            positions: limits.positions as usize,
            profile,
            attention: Some(attention_shape(config, None)),
            vocabulary: 0,
        };
        let drawing =
            head.then(|| Drawing::plan(backend, config, draw_rows(limits), profile, groupings.head));
        Ok(Self {
            step: backend.step(shape)?,
            hidden: backend.buffer(rows, config.hidden)?,
            normed: backend.activation(rows, config.hidden, profile, groupings.normed)?,
            query: backend.buffer(rows, attended)?,
            attended: backend.activation(rows, attended, profile, groupings.attended)?,
            gated: backend.activation(rows, config.intermediate, profile, groupings.gated)?,
            drawing: drawing.transpose()?,
            rows: Vec::with_capacity(rows),
            pages: Vec::new(),
        })
    }
}

impl<B: Backend> Drawing<B> {
    fn plan(
        backend: &B,
        config: &ModelConfig,
        rows: usize,
        profile: Profile,
        grouping: Grouping,
    ) -> Result<Self, BackendError> {
        Ok(Self {
            step: backend.step(StepShape {
                rows,
                pages: 0,
                positions: 0,
                profile,
                attention: None,
                vocabulary: config.vocabulary,
            })?,
            hidden: backend.buffer(rows, config.hidden)?,
            normed: backend.activation(rows, config.hidden, profile, grouping)?,
            logits: backend.buffer(rows, config.vocabulary)?,
            rows: Vec::with_capacity(rows),
        })
    }
}

fn upload_layer<B: Backend>(
    backend: &B,
    layer: LayerWeights,
    shape: AttentionShape,
) -> Result<Layer<B>, BackendError> {
    Ok(Layer {
        shape,
        attention_norm: backend.load_norm(layer.attention_norm)?,
        qkv: backend.load_qkv(layer.qkv)?,
        output: backend.load_linear(layer.output)?,
        mlp_norm: backend.load_norm(layer.mlp_norm)?,
        gate_up: backend.load_gate_up(layer.gate_up)?,
        down: backend.load_linear(layer.down)?,
    })
}

/// What the first and the last stage hold beside layers.
struct Ends<B: Backend> {
    embedding: Option<Arc<B::Linear>>,
    head: Option<Head<B>>,
}

/// A tied head on the stage of its embedding shares the embedding's matrix.
fn upload_ends<B: Backend>(
    backend: &B,
    embedding: Option<WeightMatrix>,
    final_norm: Option<RmsNorm>,
    head: Option<Linear<WeightMatrix>>,
) -> Result<Ends<B>, BackendError> {
    let tied = final_norm.is_some() && head.is_none();
    let embedding = embedding.map(|weights| backend.load_embedding(weights, tied)).transpose()?.map(Arc::new);
    let weight = match head {
        Some(head) => Some(Arc::new(backend.load_linear(head)?)),
        None => embedding.clone(),
    };
    let head = match final_norm.zip(weight) {
        Some((norm, weight)) => Some(Head { norm: backend.load_norm(norm)?, weight }),
        None => None,
    };
    Ok(Ends { embedding, head })
}
