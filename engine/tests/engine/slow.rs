//! A processor that takes longer than it needs, and has room for so many layers.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use kernels::{
    backend::{
        AttentionShape, Backend, BackendError, Batch, Faults, GateUp, Grouping, KvShape, Linear, Pass,
        Profile, Qkv, RmsNorm, StepShape, Then,
    },
    cpu::{Cpu, Isa},
    rope::RopeTable,
    tensor::WeightMatrix,
};

/// Clones share the delay and the room.
#[derive(Clone)]
pub(crate) struct Slow {
    cpu: Cpu,
    layer_us: Arc<AtomicU64>,
    room: Arc<AtomicUsize>,
}

impl Slow {
    /// A processor on which every layer takes so many microseconds longer.
    pub(crate) fn new(layer_us: u64) -> Self {
        let cpu = Cpu::new(1, Isa::detect()).unwrap();
        let room = Arc::new(AtomicUsize::new(usize::MAX));
        Self { cpu, layer_us: Arc::new(AtomicU64::new(layer_us)), room }
    }

    pub(crate) fn set_layer_us(&self, layer_us: u64) {
        self.layer_us.store(layer_us, Ordering::Relaxed);
    }

    /// From now on stages of more layers do not fit.
    pub(crate) fn set_room(&self, layers: usize) {
        self.room.store(layers, Ordering::Relaxed);
    }
}

impl Backend for Slow {
    type Linear = <Cpu as Backend>::Linear;
    type Qkv = <Cpu as Backend>::Qkv;
    type GateUp = <Cpu as Backend>::GateUp;
    type Norm = <Cpu as Backend>::Norm;
    type Rope = <Cpu as Backend>::Rope;
    type Buffer = <Cpu as Backend>::Buffer;
    type Activation = <Cpu as Backend>::Activation;
    type Kv = <Cpu as Backend>::Kv;
    type Step = <Cpu as Backend>::Step;

    fn describe(&self) -> String {
        "a slow processor".into()
    }

    fn load_linear(&self, weights: Linear<WeightMatrix>) -> Result<Self::Linear, BackendError> {
        self.cpu.load_linear(weights)
    }

    fn load_embedding(&self, weights: WeightMatrix, tied: bool) -> Result<Self::Linear, BackendError> {
        self.cpu.load_embedding(weights, tied)
    }

    fn load_qkv(&self, weights: Qkv<WeightMatrix>) -> Result<Self::Qkv, BackendError> {
        self.cpu.load_qkv(weights)
    }

    fn load_gate_up(&self, weights: GateUp<WeightMatrix>) -> Result<Self::GateUp, BackendError> {
        self.cpu.load_gate_up(weights)
    }

    fn load_norm(&self, norm: RmsNorm) -> Result<Self::Norm, BackendError> {
        self.cpu.load_norm(norm)
    }

    fn load_rope(&self, table: RopeTable) -> Result<Self::Rope, BackendError> {
        self.cpu.load_rope(table)
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<Self::Buffer, BackendError> {
        self.cpu.buffer(rows, width)
    }

    fn activation(
        &self,
        rows: usize,
        width: usize,
        profile: Profile,
        grouping: Grouping,
    ) -> Result<Self::Activation, BackendError> {
        self.cpu.activation(rows, width, profile, grouping)
    }

    fn kv(&self, shape: KvShape) -> Result<Self::Kv, BackendError> {
        if shape.layers > self.room.load(Ordering::Relaxed) {
            return Err(BackendError::OutOfMemory { what: "a cache of so many layers", bytes: shape.layers });
        }
        self.cpu.kv(shape)
    }

    fn step(&self, shape: StepShape) -> Result<Self::Step, BackendError> {
        self.cpu.step(shape)
    }

    fn begin(&self, step: &mut Self::Step, batch: Batch<'_>) {
        self.cpu.begin(step, batch);
    }

    fn upload(&self, values: &[f32], out: &mut Self::Buffer) {
        self.cpu.upload(values, out);
    }

    fn run(&self, step: &mut Self::Step, pass: Pass, issue: impl FnOnce(&mut Self::Step)) {
        self.cpu.run(step, pass, issue);
    }

    fn end<'a>(&self, step: &'a mut Self::Step) -> Result<&'a Faults, BackendError> {
        self.cpu.end(step)
    }

    fn download(
        &self,
        buffer: &Self::Buffer,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), BackendError> {
        self.cpu.download(buffer, rows, out)
    }

    fn enter(&self, step: &mut Self::Step, layer: usize) {
        std::thread::sleep(Duration::from_micros(self.layer_us.load(Ordering::Relaxed)));
        self.cpu.enter(step, layer);
    }

    fn gather(&self, from: &Self::Buffer, step: &mut Self::Step, out: &mut Self::Buffer) {
        self.cpu.gather(from, step, out);
    }

    fn embed(&self, table: &Self::Linear, scale: Option<f32>, step: &mut Self::Step, out: &mut Self::Buffer) {
        self.cpu.embed(table, scale, step, out);
    }

    fn norm(&self, norm: &Self::Norm, x: &Self::Buffer, step: &mut Self::Step, out: &mut Self::Activation) {
        self.cpu.norm(norm, x, step, out);
    }

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
    ) {
        self.cpu.qkv(weights, shape, rope, x, layer, step, q, kv);
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        q: &Self::Buffer,
        kv: &Self::Kv,
        layer: usize,
        step: &mut Self::Step,
        out: &mut Self::Activation,
    ) {
        self.cpu.attention(shape, q, kv, layer, step, out);
    }

    fn project(
        &self,
        linear: &Self::Linear,
        x: &Self::Activation,
        step: &mut Self::Step,
        h: &mut Self::Buffer,
        then: Then<'_, Self::Norm, Self::Activation>,
    ) {
        self.cpu.project(linear, x, step, h, then);
    }

    fn gate_up(
        &self,
        weights: &Self::GateUp,
        x: &Self::Activation,
        step: &mut Self::Step,
        out: &mut Self::Activation,
    ) {
        self.cpu.gate_up(weights, x, step, out);
    }

    fn logits(
        &self,
        head: &Self::Linear,
        x: &Self::Activation,
        step: &mut Self::Step,
        out: &mut Self::Buffer,
    ) {
        self.cpu.logits(head, x, step, out);
    }
}
