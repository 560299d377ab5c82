//! The seam, on a card.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    device::{Card, CardError, CardInfo},
    driver::{Event, Memory, Stream},
    launch::Launch,
    memory::{Activation, Buffer, GateUp, Kv, Linear, Loader, Norm, Qkv, Rope, Table, narrow},
    ops::{attention, copy, embed, heads, linear, norm},
    step::Step,
};
use crate::{
    backend::{
        self, AttentionShape, Backend, BackendError, Batch, Faults, Grouping, KvShape, Pass, Profile,
        Question, RmsNorm, StepShape, Then,
    },
    rope::RopeTable,
    tensor::WeightMatrix,
};

/// What is left of a card's memory unless somebody says otherwise: the driver takes some for each graph.
const LEAVE_BYTES: usize = 512 << 20;

/// Bytes of a copy whose speed is measured: more than caches hold.
const COPIED_BYTES: usize = 512 << 20;
/// Copies of a pass, and passes of which the fastest counts.
const COPIES: usize = 8;
const COPY_PASSES: usize = 4;

/// A card of this machine. Clones share the card and its kernels; each has a queue of work of its own.
#[derive(Debug)]
pub struct Cuda {
    card: Arc<Card>,
    stream: OnceLock<Stream>,
    /// Most values of a row between a product and what follows it, over the weights loaded so far.
    widest: AtomicUsize,
    loader: Mutex<Option<Loader>>,
    /// Bytes of the card's memory that KV pages leave alone.
    leave_bytes: usize,
}

impl Clone for Cuda {
    fn clone(&self) -> Self {
        Self::on(self.card.clone(), self.leave_bytes)
    }
}

impl Cuda {
    /// Card `index`, with its kernels compiled.
    ///
    /// # Errors
    /// If there is no such card, or it cannot be used.
    pub fn open(index: usize) -> Result<Self, CardError> {
        Ok(Self::on(Arc::new(Card::open(index)?), LEAVE_BYTES))
    }

    fn on(card: Arc<Card>, leave_bytes: usize) -> Self {
        let (stream, widest, loader) = (OnceLock::new(), AtomicUsize::new(0), Mutex::new(None));
        Self { card, stream, widest, loader, leave_bytes }
    }

    /// The same card, but with another bound on how long it may be at work without an answer before it
    /// counts as lost; that of a new one is a minute.
    #[must_use]
    pub fn patient_for(self, patience: Duration) -> Self {
        self.card.context.set_patience(patience);
        self
    }

    /// The same card, of whose memory KV pages leave so many bytes alone.
    #[must_use]
    pub fn leaving(self, leave_bytes: usize) -> Self {
        Self { leave_bytes, ..self }
    }

    /// What the card is.
    pub fn card(&self) -> &CardInfo {
        &self.card.info
    }

    /// Bytes that the card reads and writes in a second, together, when it copies memory: the limit of what
    /// reads every weight once.
    ///
    /// # Errors
    /// If the card has not the memory, or fails.
    pub fn copy_rate(&self) -> Result<f64, BackendError> {
        let context = &self.card.context;
        let bytes = (context.memory()?.0 / 4).min(COPIED_BYTES);
        let [from, to] = ["what is copied", "its copy"].map(|what| Memory::zeroed(context, bytes, what));
        let (from, to, stream) = (from?, to?, self.stream()?);
        let pass = || {
            let start = Instant::now();
            for _ in 0..COPIES {
                stream.copy_within(&to, &from)?;
            }
            let done = Event::new(context)?;
            done.record(stream)?;
            done.wait()?;
            Ok((2 * COPIES * bytes) as f64 / start.elapsed().as_secs_f64())
        };
        // The first wakes the card up.
        pass()?;
        let rates = (0..COPY_PASSES).map(|_| pass()).collect::<Result<Vec<f64>, BackendError>>()?;
        Ok(rates.into_iter().fold(0.0, f64::max))
    }

    fn stream(&self) -> Result<&Stream, BackendError> {
        if let Some(stream) = self.stream.get() {
            return Ok(stream);
        }
        let stream = Stream::new(&self.card.context)?;
        Ok(self.stream.get_or_init(|| stream))
    }

    /// Does something with the stream. What goes wrong there loses the card, and the end of the pass says so.
    fn queue(&self, work: impl FnOnce(&Stream) -> Result<(), BackendError>) {
        let queued = self.stream().and_then(work);
        debug_assert!(queued.is_ok() || self.card.context.check().is_err(), "a failure is kept");
    }

    /// Launches, unless no row is in use.
    fn launch(&self, step: &Step, launches: impl IntoIterator<Item = Launch>) {
        for launch in launches.into_iter().take_while(|_| step.rows > 0) {
            self.queue(|stream| stream.launch(&self.card.kernels, &launch));
        }
    }

    fn load<T>(&self, load: impl FnOnce(&mut Loader) -> Result<T, BackendError>) -> Result<T, BackendError> {
        let mut loader = self.loader.lock().unwrap_or_else(PoisonError::into_inner);
        if loader.is_none() {
            *loader = Some(Loader::new(&self.card.context)?);
        }
        load(loader.as_mut().expect("made right above"))
    }

    /// Waits until all weights are on the card, and gives back what brought them there.
    fn loaded(&self) -> Result<(), BackendError> {
        let loader = self.loader.lock().unwrap_or_else(PoisonError::into_inner).take();
        loader.map_or(Ok(()), Loader::finish)
    }

    fn widen(&self, values: usize) {
        self.widest.fetch_max(values, Ordering::Relaxed);
    }
}

impl Backend for Cuda {
    type Linear = Linear;
    type Qkv = Qkv;
    type GateUp = GateUp;
    type Norm = Norm;
    type Rope = Rope;
    type Buffer = Buffer;
    type Activation = Activation;
    type Kv = Kv;
    type Step = Step;

    fn describe(&self) -> String {
        let CardInfo { index, name, memory_bytes, .. } = self.card();
        format!("CUDA card {index}, {name}, {:.0} GiB", *memory_bytes as f64 / f64::from(1 << 30))
    }

    fn free_bytes(&self) -> Result<Option<usize>, BackendError> {
        let (free, _) = self.card.context.memory()?;
        Ok(Some(free.saturating_sub(self.leave_bytes)))
    }

    fn load_linear(&self, weights: backend::Linear<WeightMatrix>) -> Result<Linear, BackendError> {
        self.load(|loader| Linear::load(loader, &weights))
    }

    fn load_embedding(&self, weights: WeightMatrix, tied: bool) -> Result<Linear, BackendError> {
        self.load(|loader| Linear::embedding(loader, &weights, tied))
    }

    fn load_qkv(&self, weights: backend::Qkv<WeightMatrix>) -> Result<Qkv, BackendError> {
        let backend::Qkv { q, k, v, q_norm, k_norm } = weights;
        self.widen(q.weight.rows() + k.weight.rows() + v.weight.rows());
        let [q_norm, k_norm] = [q_norm, k_norm].map(|norm| norm.map(|norm| self.load_norm(norm)).transpose());
        let [q, k, v] = [q, k, v].map(|linear| self.load_linear(linear));
        Ok(Qkv { q: q?, k: k?, v: v?, q_norm: q_norm?, k_norm: k_norm? })
    }

    fn load_gate_up(&self, weights: backend::GateUp<WeightMatrix>) -> Result<GateUp, BackendError> {
        self.widen(weights.gate.weight.rows() + weights.up.weight.rows());
        self.load(|loader| GateUp::load(loader, &weights))
    }

    fn load_norm(&self, norm: RmsNorm) -> Result<Norm, BackendError> {
        Norm::load(&self.card.context, &norm)
    }

    fn load_rope(&self, table: RopeTable) -> Result<Rope, BackendError> {
        Rope::load(&self.card.context, &table)
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<Buffer, BackendError> {
        Buffer::new(&self.card.context, rows, width)
    }

    fn activation(
        &self,
        rows: usize,
        width: usize,
        profile: Profile,
        grouping: Grouping,
    ) -> Result<Activation, BackendError> {
        Activation::new(&self.card.context, rows, width, profile, grouping)
    }

    fn kv(&self, shape: KvShape) -> Result<Kv, BackendError> {
        Kv::new(&self.card.context, shape)
    }

    fn step(&self, shape: StepShape) -> Result<Step, BackendError> {
        self.loaded()?;
        self.stream()?;
        Step::new(&self.card.context, &self.card.info, shape, self.widest.load(Ordering::Relaxed))
    }

    fn begin(&self, step: &mut Step, batch: Batch<'_>) {
        self.queue(|stream| step.begin(stream, batch));
    }

    fn upload(&self, values: &[f32], out: &mut Buffer) {
        self.queue(|stream| stream.copy_in(&out.memory, bytemuck::cast_slice(values)));
    }

    fn run(&self, step: &mut Step, pass: Pass, issue: impl FnOnce(&mut Step)) {
        if step.rows > 0 {
            self.queue(|stream| stream.replay(step.graph(stream, pass, issue)?));
        }
    }

    fn end<'a>(&self, step: &'a mut Step) -> Result<&'a Faults, BackendError> {
        step.end(self.stream()?)
    }

    fn draws(&self) -> bool {
        true
    }

    fn draw(&self, logits: &mut Buffer, step: &mut Step, questions: &[Question]) {
        if step.rows > 0 {
            self.queue(|stream| {
                let launches = step.draw(stream, logits.address(), questions)?;
                launches.iter().try_for_each(|launch| stream.launch(&self.card.kernels, launch))
            });
        }
    }

    fn drawn(&self, step: &mut Step, tokens: &mut Vec<u32>) -> Result<(), BackendError> {
        step.drawn(self.stream()?, tokens)
    }

    fn download(&self, buffer: &Buffer, rows: Range<usize>, out: &mut [f32]) -> Result<(), BackendError> {
        assert_eq!(out.len(), rows.len() * buffer.width, "the output holds the rows");
        let offset = rows.start * buffer.width * 4;
        self.stream()?.copy_out(&buffer.memory, offset, bytemuck::cast_slice_mut(out))
    }

    fn enter(&self, step: &mut Step, layer: usize) {
        step.layer = narrow(layer);
    }

    fn gather(&self, from: &Buffer, step: &mut Step, out: &mut Buffer) {
        assert_eq!(from.width, out.width, "rows of one width");
        let (width, count) = (narrow(from.width), step.size.bucket);
        let (from, rows, out) = (from.address(), step.sources(), out.address());
        self.launch(step, [copy::gather(copy::Gather { from, rows, out, width, count })]);
    }

    fn embed(&self, table: &Linear, scale: Option<f32>, step: &mut Step, out: &mut Buffer) {
        let Table { format, row_bytes, columns, memory } = table.table();
        assert_eq!(*columns as usize, out.width, "the rows fit the buffer");
        let params = embed::Embed {
            step: step.count(),
            tokens: step.sources(),
            table: memory.address(),
            out: out.address(),
            row_bytes: *row_bytes,
            columns: *columns,
            scale: scale.unwrap_or(1.0),
            scaled: scale.is_some().into(),
            rounded: (step.profile() == Profile::Quantised).into(),
            zero: 0,
        };
        self.launch(step, [embed::embed(params, *format, step.size.bucket)]);
    }

    fn norm(&self, norm: &Norm, x: &Buffer, step: &mut Step, out: &mut Activation) {
        assert_eq!(x.width, out.launched.width as usize, "the norm fits its row");
        let params = norm::Norm {
            step: step.count(),
            x: x.address(),
            faults: step.fault_words(),
            norm: norm.launched(),
            out: out.launched,
            layer: step.layer,
            zero: 0,
        };
        self.launch(step, [norm::norm(params, step.size.bucket)]);
    }

    fn qkv(
        &self,
        weights: &Qkv,
        shape: &AttentionShape,
        rope: &Rope,
        x: &Activation,
        layer: usize,
        step: &mut Step,
        q: &mut Buffer,
        kv: &mut Kv,
    ) {
        let Qkv { q: query, k, v, q_norm, k_norm } = weights;
        assert!(
            kv.shape.kv_heads == shape.kv_heads && kv.shape.head_dim == shape.head_dim,
            "the store fits the layer"
        );
        let [query, k, v] = [query, k, v].map(Linear::product);
        let (cos, sin, pairs) = rope.parts();
        let weight = |norm: &Option<Norm>| norm.as_ref().map_or(0, Norm::weight);
        let eps = |norm: &Option<Norm>| norm.as_ref().map_or(0.0, |norm| norm.eps);
        let heads = heads::Heads {
            rows: step.row_words(),
            pages: step.pages(),
            faults: step.fault_words(),
            q_bias: query.bias,
            k_bias: k.bias,
            v_bias: v.bias,
            q_norm: weight(q_norm),
            k_norm: weight(k_norm),
            cos,
            sin,
            q: q.address(),
            kv: kv.layer(layer),
            heads: narrow(shape.heads),
            kv_heads: narrow(shape.kv_heads),
            head_dim: narrow(shape.head_dim),
            pairs,
            adjacent: 0,
            wide: (kv.shape.profile == Profile::F32).into(),
            layer: step.layer,
            q_eps: eps(q_norm),
            k_eps: eps(k_norm),
            zero: 0,
        };
        let matrices = [query.matrix, k.matrix, v.matrix];
        let (linear, scratch) = step.linear();
        self.launch(step, linear::qkv(&linear, &matrices, &x.launched, &heads, &scratch));
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        q: &Buffer,
        kv: &Kv,
        layer: usize,
        step: &mut Step,
        out: &mut Activation,
    ) {
        assert_eq!(q.width, out.launched.width as usize, "the heads fill the rows");
        let (plan, [partials, counters, raw]) = step.attention(shape);
        let params = attention::Attention {
            step: step.count(),
            rows: step.row_words(),
            pages: step.pages(),
            faults: step.fault_words(),
            q: q.address(),
            kv: kv.layer(layer),
            partials,
            counters,
            raw,
            out: out.launched,
            heads: narrow(shape.heads),
            kv_heads: narrow(shape.kv_heads),
            head_dim: narrow(shape.head_dim),
            window: shape.window.unwrap_or(0),
            scale: shape.scale,
            layer: step.layer,
            ..attention::Attention::default()
        };
        self.launch(step, [plan.launch(params)]);
    }

    fn project(
        &self,
        linear: &Linear,
        x: &Activation,
        step: &mut Step,
        h: &mut Buffer,
        then: Then<'_, Norm, Activation>,
    ) {
        let product = linear.product();
        assert_eq!(product.matrix.outputs as usize, h.width, "the projection fits the residual");
        let rounded = step.profile() == Profile::Quantised;
        let normed = |norm: &Norm, out: &Activation| Some((norm.launched(), out.launched));
        let (next, then) = match then {
            Then::Nothing => (0, linear::Then::default()),
            Then::Norm(norm, out) => (0, linear::Then { finish: None, norm: normed(norm, out) }),
            Then::End => (0, linear::Then { finish: Some(rounded), norm: None }),
            Then::Next(norm, out) => (1, linear::Then { finish: Some(rounded), norm: normed(norm, out) }),
        };
        let (call, scratch) = step.linear();
        self.launch(step, linear::project(&call, &product, &x.launched, h.address(), &then, &scratch));
        step.layer += next;
    }

    fn gate_up(&self, weights: &GateUp, x: &Activation, step: &mut Step, out: &mut Activation) {
        let (gate, up) = (weights.gate.product(), weights.up.product());
        assert_eq!(gate.matrix.outputs, out.launched.width, "the projection fits its output");
        let (call, scratch) = step.linear();
        self.launch(step, linear::gate_up(&call, &gate, &up, &x.launched, &out.launched, &scratch));
    }

    fn logits(&self, head: &Linear, x: &Activation, step: &mut Step, out: &mut Buffer) {
        let head = head.product();
        assert_eq!(head.matrix.outputs as usize, out.width, "the head fits its output");
        let (call, scratch) = step.linear();
        self.launch(step, linear::logits(&call, &head, &x.launched, out.address(), &scratch));
    }
}
