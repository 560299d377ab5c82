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
        AttentionShape, Backend, BackendError, Batch, Faults, GateUp, Grouping, KvShape, Linear, Pass,
        Profile, Qkv, Question, RmsNorm, StepShape, Then,
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
    /// With the norms and the rounding that follow.
    Project,
    GateUp,
    Logits,
    /// Uploads, downloads and gathers.
    Copy,
}

impl Timed {
    /// All of them, in the order of a step.
    pub const ALL: [Self; 8] = [
        Self::Embed,
        Self::Norm,
        Self::Qkv,
        Self::Attention,
        Self::Project,
        Self::GateUp,
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
    type Linear = B::Linear;
    type Qkv = B::Qkv;
    type GateUp = B::GateUp;
    type Norm = B::Norm;
    type Rope = B::Rope;
    type Buffer = B::Buffer;
    type Activation = B::Activation;
    type Kv = B::Kv;
    type Step = B::Step;

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn free_bytes(&self) -> Result<Option<usize>, BackendError> {
        self.inner.free_bytes()
    }

    fn load_linear(&self, weights: Linear<WeightMatrix>) -> Result<B::Linear, BackendError> {
        self.inner.load_linear(weights)
    }

    fn load_embedding(&self, weights: WeightMatrix, tied: bool) -> Result<B::Linear, BackendError> {
        self.inner.load_embedding(weights, tied)
    }

    fn load_qkv(&self, weights: Qkv<WeightMatrix>) -> Result<B::Qkv, BackendError> {
        self.inner.load_qkv(weights)
    }

    fn load_gate_up(&self, weights: GateUp<WeightMatrix>) -> Result<B::GateUp, BackendError> {
        self.inner.load_gate_up(weights)
    }

    fn load_norm(&self, norm: RmsNorm) -> Result<B::Norm, BackendError> {
        self.inner.load_norm(norm)
    }

    fn load_rope(&self, table: RopeTable) -> Result<B::Rope, BackendError> {
        self.inner.load_rope(table)
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

    fn step(&self, shape: StepShape) -> Result<B::Step, BackendError> {
        self.inner.step(shape)
    }

    fn begin(&self, step: &mut B::Step, batch: Batch<'_>) {
        self.inner.begin(step, batch);
    }

    fn upload(&self, values: &[f32], out: &mut B::Buffer) {
        self.time(Timed::Copy, |inner| inner.upload(values, out));
    }

    fn run(&self, step: &mut B::Step, pass: Pass, issue: impl FnOnce(&mut B::Step)) {
        self.inner.run(step, pass, issue);
    }

    fn end<'a>(&self, step: &'a mut B::Step) -> Result<&'a Faults, BackendError> {
        self.inner.end(step)
    }

    fn draws(&self) -> bool {
        self.inner.draws()
    }

    fn draw(&self, logits: &mut B::Buffer, step: &mut B::Step, questions: &[Question]) {
        self.inner.draw(logits, step, questions);
    }

    fn drawn(&self, step: &mut B::Step, tokens: &mut Vec<u32>) -> Result<(), BackendError> {
        self.inner.drawn(step, tokens)
    }

    fn download(&self, buffer: &B::Buffer, rows: Range<usize>, out: &mut [f32]) -> Result<(), BackendError> {
        self.time(Timed::Copy, |inner| inner.download(buffer, rows, out))
    }

    fn enter(&self, step: &mut B::Step, layer: usize) {
        self.inner.enter(step, layer);
    }

    fn gather(&self, from: &B::Buffer, step: &mut B::Step, out: &mut B::Buffer) {
        self.time(Timed::Copy, |inner| inner.gather(from, step, out));
    }

    fn embed(&self, table: &B::Linear, scale: Option<f32>, step: &mut B::Step, out: &mut B::Buffer) {
        self.time(Timed::Embed, |inner| inner.embed(table, scale, step, out));
    }

    fn norm(&self, norm: &B::Norm, x: &B::Buffer, step: &mut B::Step, out: &mut B::Activation) {
        self.time(Timed::Norm, |inner| inner.norm(norm, x, step, out));
    }

    fn qkv(
        &self,
        weights: &B::Qkv,
        shape: &AttentionShape,
        rope: &B::Rope,
        x: &B::Activation,
        layer: usize,
        step: &mut B::Step,
        q: &mut B::Buffer,
        kv: &mut B::Kv,
    ) {
        self.time(Timed::Qkv, |inner| inner.qkv(weights, shape, rope, x, layer, step, q, kv));
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        q: &B::Buffer,
        kv: &B::Kv,
        layer: usize,
        step: &mut B::Step,
        out: &mut B::Activation,
    ) {
        self.time(Timed::Attention, |inner| inner.attention(shape, q, kv, layer, step, out));
    }

    fn project(
        &self,
        linear: &B::Linear,
        x: &B::Activation,
        step: &mut B::Step,
        h: &mut B::Buffer,
        then: Then<'_, B::Norm, B::Activation>,
    ) {
        self.time(Timed::Project, |inner| inner.project(linear, x, step, h, then));
    }

    fn gate_up(&self, weights: &B::GateUp, x: &B::Activation, step: &mut B::Step, out: &mut B::Activation) {
        self.time(Timed::GateUp, |inner| inner.gate_up(weights, x, step, out));
    }

    fn logits(&self, head: &B::Linear, x: &B::Activation, step: &mut B::Step, out: &mut B::Buffer) {
        self.time(Timed::Logits, |inner| inner.logits(head, x, step, out));
    }
}
