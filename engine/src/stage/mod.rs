//! A stage: the layers of a shard on one device, the KV of its sessions, and the step that takes a
//! batch of rows through them. Prefill in chunks and decoding are the same call.

mod forward;
pub mod kv;

use std::{collections::HashMap, ops::Range, sync::Arc};

use kernels::{
    backend::{
        AttentionShape, Backend, BackendError, Faults, GateUp, Grouping, KvShape, Linear, Profile, Qkv,
        RmsNorm, Row,
    },
    rope::{RopeError, RopeTable},
    tensor::WeightMatrix,
};
use thiserror::Error;

use crate::{
    message::{FaultOperation, Segment, SessionId},
    model::{LayerWeights, ModelConfig, Shard, ShardWeights},
};
use kv::{NoPages, PagePool};

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
    /// Not enough KV.
    #[error(transparent)]
    NoPages(#[from] NoPages),
    /// Too many sessions.
    #[error("the stage already serves {limit} sessions")]
    TooManySessions {
        /// The bound.
        limit: usize,
    },
    /// The session is longer than the stage's tables.
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
    /// Rows past what the session reserved, or with a gap before them.
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

struct SessionKv {
    pages: Vec<u32>,
    positions: u32,
    held: u32,
}

struct Head<M> {
    norm: RmsNorm,
    weight: Arc<Linear<M>>,
}

/// Buffers of one step, sized once for the largest.
struct Workspace<B: Backend> {
    hidden: B::Buffer,
    normed: B::Activation,
    query: B::Buffer,
    attended: B::Activation,
    gated: B::Activation,
    chosen: B::Buffer,
    chosen_normed: B::Activation,
    logits: Option<B::Buffer>,
    rows: Vec<Row>,
    pages: Vec<u32>,
    faults: Faults,
}

/// See the module. Generic over the device; the forward pass is written once, in `forward.rs`.
pub struct Stage<B: Backend> {
    backend: B,
    config: ModelConfig,
    shard: Shard,
    profile: Profile,
    limits: StageLimits,
    rope: RopeTable,
    shapes: Vec<AttentionShape>,
    layers: Vec<LayerWeights<B::Matrix>>,
    embedding: Option<Arc<Linear<B::Matrix>>>,
    head: Option<Head<B::Matrix>>,
    kv: B::Kv,
    pool: PagePool,
    sessions: HashMap<SessionId, SessionKv>,
    workspace: Workspace<B>,
}

impl<B: Backend> Stage<B> {
    /// Uploads a shard and plans every buffer.
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
        let rope = RopeTable::new(&config.rope, positions as usize)?;
        let groupings = Groupings::of(&weights);
        let Ends { embedding, head } =
            upload_ends(&backend, weights.embedding, weights.final_norm, weights.head)?;
        let layers = weights
            .layers
            .into_iter()
            .map(|layer| upload_layer(&backend, layer))
            .collect::<Result<Vec<_>, BackendError>>()?;
        let shape = |layer: usize| AttentionShape {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            window: config.windows[layer],
        };
        let kv = backend.kv(KvShape {
            layers: layers.len(),
            pages: limits.pages,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            profile,
        })?;
        let workspace = Workspace::plan(&backend, config, &limits, profile, &groupings, head.is_some())?;
        Ok(Self {
            shapes: shard.layers.clone().map(shape).collect(),
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
            pool: PagePool::new(limits.pages),
            sessions: HashMap::new(),
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

    /// Whether a session is open here.
    pub fn is_open(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// Reserves the KV of a session that can reach `positions` positions.
    pub fn open(&mut self, session: SessionId, positions: u32) -> Result<(), OpenError> {
        if positions > self.limits.positions {
            return Err(OpenError::TooLong { requested: positions, limit: self.limits.positions });
        }
        if self.sessions.len() >= self.limits.sessions {
            return Err(OpenError::TooManySessions { limit: self.limits.sessions });
        }
        if self.sessions.contains_key(&session) {
            return Err(OpenError::Exists);
        }
        let pages = self.pool.take(positions)?;
        self.sessions.insert(session, SessionKv { pages, positions, held: 0 });
        Ok(())
    }

    /// Frees what a session holds; a session that is not open is no error.
    pub fn close(&mut self, session: SessionId) {
        if let Some(kv) = self.sessions.remove(&session) {
            self.pool.give(kv.pages);
        }
    }

    /// Takes a batch of rows through `layers` (of the model, within the shard). Afterwards
    /// [`Stage::read_rows`] and [`Stage::logits`] read the outcome; `faults` lists the sessions that
    /// cannot go on, at most one fault per segment.
    pub fn step(
        &mut self,
        layers: Range<usize>,
        segments: &[Segment],
        input: Input<'_>,
        faults: &mut Vec<Fault>,
    ) -> Result<(), StepError> {
        self.check(segments, input)?;
        self.place(segments);
        self.forward(layers, segments, input, faults);
        Ok(())
    }

    /// Output rows of the last step, `[rows.len()][hidden]`.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut Vec<f32>) {
        out.resize(rows.len() * self.config.hidden, 0.0);
        self.backend.download(&self.workspace.hidden, rows, out);
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
        for segment in segments {
            let kv = self.sessions.get(&segment.session).ok_or(StepError::Unknown)?;
            let to = segment.from.saturating_add(segment.rows);
            if segment.from > kv.held || to > kv.positions {
                return Err(StepError::Positions { from: segment.from, to, held: kv.held });
            }
        }
        Ok(())
    }

    /// Lays out rows and page tables of the batch, and moves each session's end to its last row.
    fn place(&mut self, segments: &[Segment]) {
        let Workspace { rows, pages, .. } = &mut self.workspace;
        rows.clear();
        pages.clear();
        for segment in segments {
            let Some(kv) = self.sessions.get_mut(&segment.session) else { continue };
            let table = pages.len()..pages.len() + kv.pages.len();
            pages.extend_from_slice(&kv.pages);
            let to = segment.from + segment.rows;
            rows.extend((segment.from..to).map(|position| Row { position, pages: table.clone() }));
            kv.held = to;
        }
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
        let drawn = rows.min(limits.sessions);
        let attended = config.heads * config.head_dim;
        Ok(Self {
            hidden: backend.buffer(rows, config.hidden)?,
            normed: backend.activation(rows, config.hidden, profile, groupings.normed)?,
            query: backend.buffer(rows, attended)?,
            attended: backend.activation(rows, attended, profile, groupings.attended)?,
            gated: backend.activation(rows, config.intermediate, profile, groupings.gated)?,
            chosen: backend.buffer(drawn, config.hidden)?,
            chosen_normed: backend.activation(drawn, config.hidden, profile, groupings.head)?,
            logits: head.then(|| backend.buffer(drawn, config.vocabulary)).transpose()?,
            rows: Vec::with_capacity(rows),
            pages: Vec::new(),
            faults: Faults::default(),
        })
    }
}

fn upload_linear<B: Backend>(
    backend: &B,
    linear: Linear<WeightMatrix>,
) -> Result<Linear<B::Matrix>, BackendError> {
    Ok(Linear { weight: backend.matrix(linear.weight)?, bias: linear.bias })
}

fn upload_layer<B: Backend>(
    backend: &B,
    layer: LayerWeights,
) -> Result<LayerWeights<B::Matrix>, BackendError> {
    Ok(LayerWeights {
        attention_norm: layer.attention_norm,
        qkv: Qkv {
            q: upload_linear(backend, layer.qkv.q)?,
            k: upload_linear(backend, layer.qkv.k)?,
            v: upload_linear(backend, layer.qkv.v)?,
            q_norm: layer.qkv.q_norm,
            k_norm: layer.qkv.k_norm,
        },
        output: upload_linear(backend, layer.output)?,
        mlp_norm: layer.mlp_norm,
        gate_up: GateUp {
            gate: upload_linear(backend, layer.gate_up.gate)?,
            up: upload_linear(backend, layer.gate_up.up)?,
            activation: layer.gate_up.activation,
        },
        down: upload_linear(backend, layer.down)?,
    })
}

/// What the first and the last stage hold beside layers.
struct Ends<M> {
    embedding: Option<Arc<Linear<M>>>,
    head: Option<Head<M>>,
}

/// A tied head on the stage of its embedding shares the embedding's matrix.
fn upload_ends<B: Backend>(
    backend: &B,
    embedding: Option<WeightMatrix>,
    final_norm: Option<RmsNorm>,
    head: Option<Linear<WeightMatrix>>,
) -> Result<Ends<B::Matrix>, BackendError> {
    let upload = |linear| upload_linear(backend, linear).map(Arc::new);
    let embedding = embedding.map(|weight| upload(Linear { weight, bias: None })).transpose()?;
    let head = match head {
        Some(head) => Some(upload(head)?),
        None => embedding.clone(),
    };
    Ok(Ends { head: final_norm.zip(head).map(|(norm, weight)| Head { norm, weight }), embedding })
}
