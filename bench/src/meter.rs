//! A backend that keeps count of the time spent in each operation of another.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kernels::{
    backend::{
        AttentionShape, Backend, BackendError, Batch, Faults, GateUp, Grouping, KvShape, Linear, Profile,
        Qkv, RmsNorm,
    },
    rope::RopeTable,
    tensor::WeightMatrix,
};

/// What time is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at kernels::backend::Backend")]
pub enum Timed {
    Embed,
    Norm,
    Qkv,
    Attention,
    Project,
    GateUp,
    Finish,
    Logits,
    /// Uploads, downloads and gathers.
    Copy,
}

impl Timed {
    /// All of them, in the order of a step.
    pub const ALL: [Self; 9] = [
        Self::Embed,
        Self::Norm,
        Self::Qkv,
        Self::Attention,
        Self::Project,
        Self::GateUp,
        Self::Finish,
        Self::Logits,
        Self::Copy,
    ];

    /// Name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Norm => "norm",
            Self::Qkv => "qkv",
            Self::Attention => "attention",
            Self::Project => "project",
            Self::GateUp => "gate_up",
            Self::Finish => "finish",
            Self::Logits => "logits",
            Self::Copy => "copy",
        }
    }
}

/// See the module. Reading the clock costs some 50 ns per operation, of which a step of a model worth
/// measuring has a few hundred.
#[derive(Clone, Debug)]
pub struct Metered<B> {
    inner: B,
    spent_ns: Arc<[AtomicU64; Timed::ALL.len()]>,
}

impl<B> Metered<B> {
    /// Counts for `inner`; clones count together.
    pub fn new(inner: B) -> Self {
        Self { inner, spent_ns: Arc::default() }
    }

    /// Time spent on `operation` since the last call for it.
    pub fn take(&self, operation: Timed) -> Duration {
        Duration::from_nanos(self.spent_ns[operation as usize].swap(0, Ordering::Relaxed))
    }

    fn time<T>(&self, operation: Timed, run: impl FnOnce(&B) -> T) -> T {
        let start = Instant::now();
        let out = run(&self.inner);
        let spent = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.spent_ns[operation as usize].fetch_add(spent, Ordering::Relaxed);
        out
    }
}

impl<B: Backend> Backend for Metered<B> {
    type Matrix = B::Matrix;
    type Buffer = B::Buffer;
    type Activation = B::Activation;
    type Kv = B::Kv;

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn matrix(&self, weights: WeightMatrix) -> Result<B::Matrix, BackendError> {
        self.inner.matrix(weights)
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<B::Buffer, BackendError> {
        self.inner.buffer(rows, width)
    }

    fn activation(
        &self,
        rows: usize,
        width: usize,
        profile: Profile,
        grouping: Grouping,
    ) -> Result<B::Activation, BackendError> {
        self.inner.activation(rows, width, profile, grouping)
    }

    fn kv(&self, shape: KvShape) -> Result<B::Kv, BackendError> {
        self.inner.kv(shape)
    }

    fn upload(&self, values: &[f32], out: &mut B::Buffer) {
        self.time(Timed::Copy, |inner| inner.upload(values, out));
    }

    fn download(&self, buffer: &B::Buffer, rows: Range<usize>, out: &mut [f32]) {
        self.time(Timed::Copy, |inner| inner.download(buffer, rows, out));
    }

    fn gather(&self, from: &B::Buffer, rows: &[u32], out: &mut B::Buffer) {
        self.time(Timed::Copy, |inner| inner.gather(from, rows, out));
    }

    fn embed(
        &self,
        table: &B::Matrix,
        tokens: &[u32],
        scale: Option<f32>,
        profile: Profile,
        out: &mut B::Buffer,
    ) {
        self.time(Timed::Embed, |inner| inner.embed(table, tokens, scale, profile, out));
    }

    fn norm(&self, norm: &RmsNorm, x: &B::Buffer, rows: usize, out: &mut B::Activation, faults: &mut Faults) {
        self.time(Timed::Norm, |inner| inner.norm(norm, x, rows, out, faults));
    }

    fn qkv(
        &self,
        weights: &Qkv<B::Matrix>,
        shape: &AttentionShape,
        rope: &RopeTable,
        x: &B::Activation,
        batch: Batch<'_>,
        layer: usize,
        q: &mut B::Buffer,
        kv: &mut B::Kv,
        faults: &mut Faults,
    ) {
        self.time(Timed::Qkv, |inner| inner.qkv(weights, shape, rope, x, batch, layer, q, kv, faults));
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        q: &B::Buffer,
        kv: &B::Kv,
        batch: Batch<'_>,
        layer: usize,
        out: &mut B::Activation,
        faults: &mut Faults,
    ) {
        self.time(Timed::Attention, |inner| inner.attention(shape, q, kv, batch, layer, out, faults));
    }

    fn project(
        &self,
        linear: &Linear<B::Matrix>,
        x: &B::Activation,
        rows: usize,
        h: &mut B::Buffer,
        faults: &mut Faults,
    ) {
        self.time(Timed::Project, |inner| inner.project(linear, x, rows, h, faults));
    }

    fn gate_up(
        &self,
        weights: &GateUp<B::Matrix>,
        x: &B::Activation,
        rows: usize,
        out: &mut B::Activation,
        faults: &mut Faults,
    ) {
        self.time(Timed::GateUp, |inner| inner.gate_up(weights, x, rows, out, faults));
    }

    fn finish(&self, h: &mut B::Buffer, rows: usize, profile: Profile, faults: &mut Faults) {
        self.time(Timed::Finish, |inner| inner.finish(h, rows, profile, faults));
    }

    fn logits(
        &self,
        head: &Linear<B::Matrix>,
        x: &B::Activation,
        rows: usize,
        out: &mut B::Buffer,
        faults: &mut Faults,
    ) {
        self.time(Timed::Logits, |inner| inner.logits(head, x, rows, out, faults));
    }
}
