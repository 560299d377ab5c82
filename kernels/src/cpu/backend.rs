//! The seam, on the CPU.

use std::{ops::Range, sync::atomic::Ordering};

use super::{
    Cpu,
    attention::{Attend, TASK_ROWS},
    heads::{Heads, PlaceHead},
    kquants::{Wide, quantise_wide},
    kv::{Element, Kv, STAGED_ROWS, Stores, staged_stride},
    linear::{self, Layer, Outcome, Product},
    math::{is_finite, quantise_row, rms_factor},
    matrix::Matrix,
    parts::{Indexed, Runs, Tiles, Window},
    rows::{Activation, Buffer, Group, floats_mut},
    simd::{Full, LANES, Op, Simd, load_part, store_part},
};
use crate::{
    backend::{
        AttentionShape, Backend, BackendError, Batch, Faults, Gate, GateUp, Grouping, HostStep, KvShape,
        Linear, Operation, Pass, Profile, Qkv, RmsNorm, StepShape, Then,
    },
    rope::RopeTable,
    tensor::{GROUP, SEGMENT, WeightMatrix},
};

/// Values worth waking a worker for in a pass over rows.
const PARALLEL: usize = 1 << 15;
/// Multiply-adds worth waking a worker for in attention.
const PARALLEL_ATTENTION: usize = 1 << 16;

impl Cpu {
    fn pack(&self, weights: &WeightMatrix) -> Result<Matrix, BackendError> {
        // The bias is 0 or 128, which is the same byte with either sign.
        Matrix::pack(weights, self.proof().q8_bias() as u8, self.memory())
    }

    /// Whether a pass over so many values is shared out.
    fn shared(&self, rows: usize, width: usize) -> bool {
        rows * width >= PARALLEL
    }

    /// Products with their fault check; `first` is the row of `x` that goes with the first of each output.
    fn products<const N: usize>(
        &self,
        layers: [Layer<'_>; N],
        x: &Activation,
        first: usize,
        mut fault: impl FnMut(usize, Operation),
    ) {
        for Layer { outcome, out } in &layers {
            let pair = match outcome {
                Outcome::Store(product) | Outcome::Add(product) => [product, product],
                Outcome::Gated(gate, up) => [gate, up],
            };
            for Product { matrix, bias } in pair {
                assert_eq!(matrix.columns, x.width, "the activation fits the matrix");
                assert!(bias.is_none_or(|bias| bias.len() == matrix.rows), "one bias for each output");
                let format = matrix.packed.format();
                if format.is_float() {
                    let rows = first..first + out.rows().len();
                    x.faulty_rows(rows).for_each(|row| fault(row, Operation::FloatLinear));
                }
                let served = format.is_float() || x.grouping.serves(format);
                assert!(served, "the activation has the groups that the weights take");
            }
            assert_eq!(pair[0].matrix.rows, pair[1].matrix.rows, "gate and up have one shape");
        }
        linear::run(self, layers, x, first);
    }

    /// Makes the first `rows` rows of `out` the input of a linear layer: fills, pads, checks, quantises.
    fn ready(&self, out: &mut Activation, step: &mut HostStep, fill: impl Fn(usize, &mut [f32]) + Sync) {
        let (rows, width) = (step.rows.len(), out.width);
        let (groups, wide) = (out.stride(), width / SEGMENT);
        let stride = groups * (GROUP / LANES);
        let (parallel, faulty) = (self.shared(rows, width), &out.faulty);
        let filled = |row: usize, values: &mut [Full]| fill(row, &mut floats_mut(values)[..width]);
        let ready = |row: usize, work: Ready<'_>| {
            let finite = self.proof().dispatch(work);
            faulty[row].store(!finite, Ordering::Relaxed);
        };
        let narrow = out.grouping.narrow;
        let values = &mut out.values[..rows * stride];
        if narrow {
            let to = Runs::new(&mut out.groups[..rows * groups], groups);
            let parts = Indexed((Runs::new(values, stride), to));
            self.pool().split(parts, parallel, |(row, (values, to))| {
                filled(row, values);
                ready(row, Ready { values, width, to: Groups::Narrow(to) });
            });
        }
        if out.grouping.wide {
            let to = Runs::new(&mut out.wide[..rows * wide], wide);
            let parts = Indexed((Runs::new(values, stride), to));
            self.pool().split(parts, parallel, |(row, (values, to))| {
                if !narrow {
                    filled(row, values);
                }
                ready(row, Ready { values, width, to: Groups::Wide(to) });
            });
        }
        if !narrow && !out.grouping.wide {
            let parts = Indexed(Runs::new(values, stride));
            self.pool().split(parts, parallel, |(row, values)| {
                filled(row, values);
                ready(row, Ready { values, width, to: Groups::None });
            });
        }
        if out.profile == Profile::Quantised {
            out.faulty_rows(0..rows).for_each(|row| step.fault(row, Operation::Quantise));
        }
    }

    /// Runs `check` on each row; where it fails, `operation` is the row's fault.
    fn check(
        &self,
        out: &mut Buffer,
        step: &mut HostStep,
        operation: Operation,
        check: impl Fn(&mut [Full]) -> bool + Sync,
    ) {
        let rows = step.rows.len();
        // A check reads a value in a fraction of the time of a norm.
        let (stride, parallel) = (out.stride(), self.shared(rows, out.width / 8));
        let (values, faulty) = out.checked(rows);
        self.pool().split(Indexed(Runs::new(values, stride)), parallel, |(row, values)| {
            faulty[row].store(!check(values), Ordering::Relaxed);
        });
        for (row, faulty) in faulty.iter().enumerate() {
            if faulty.load(Ordering::Relaxed) {
                step.fault(row, operation);
            }
        }
    }

    /// Ends a layer.
    fn finish(&self, h: &mut Buffer, step: &mut HostStep) {
        let round = step.profile == Profile::Quantised;
        self.check(h, step, Operation::LayerOutput, |values| self.proof().dispatch(Finish { values, round }));
    }

    /// Norms and rotates the heads of a stage of rows and writes its K and V to their pages.
    fn place<E: Element>(
        &self,
        heads: Heads<'_>,
        (q, k): (Window<'_>, Window<'_>),
        (keys, values): (Tiles<'_, E>, Tiles<'_, E>),
    ) {
        let rows = heads.rows.len();
        let (q_width, k_width) = (q.columns().len(), k.columns().len());
        let q = Tiles::new(q, rows, q_width / k_width * heads.head_dim);
        let k = Tiles::new(k, rows, heads.head_dim);
        let parallel = self.shared(rows, q_width + 2 * k_width);
        let parts = Indexed(((q, k), (keys, values)));
        self.pool().split(parts, parallel, |(kv_head, ((q, k), (keys, values)))| {
            self.proof().dispatch(PlaceHead { heads, kv_head, q, k, keys, values });
        });
    }
}

fn product(linear: &Linear<Matrix>) -> Product<'_> {
    Product { matrix: &linear.weight, bias: linear.bias.as_deref() }
}

/// Zeroes the padding of a row and quantises it; whether it is finite.
struct Ready<'a> {
    values: &'a mut [Full],
    width: usize,
    to: Groups<'a>,
}

/// Where the groups of a row go.
enum Groups<'a> {
    None,
    Narrow(&'a mut [Group]),
    Wide(&'a mut [Wide]),
}

impl Op for Ready<'_> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        floats_mut(self.values)[self.width..].fill(0.0);
        match self.to {
            Groups::None => is_finite(s, self.values),
            Groups::Narrow(groups) => quantise_row(s, self.values, groups),
            Groups::Wide(groups) => quantise_wide(s, self.values, groups),
        }
    }
}

/// Norm of one row.
struct Norm<'a> {
    norm: &'a RmsNorm,
    from: &'a [f32],
    to: &'a mut [f32],
}

impl Op for Norm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let r = s.splat(rms_factor(s, self.from, self.norm.eps));
        let weights = self.norm.weight.chunks(LANES);
        for ((from, to), weight) in self.from.chunks(LANES).zip(self.to.chunks_mut(LANES)).zip(weights) {
            store_part(s, s.mul(s.mul(load_part(s, from), r), load_part(s, weight)), to);
        }
    }
}

/// Rounds one row to bf16 if asked; whether the result is finite.
struct Finish<'a> {
    values: &'a mut [Full],
    round: bool,
}

impl Op for Finish<'_> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let finite = is_finite(s, self.values);
        if self.round {
            for value in self.values.iter_mut() {
                s.store(s.round_bf16(s.load(&value.0)), &mut value.0);
            }
        }
        finite && is_finite(s, self.values)
    }
}

/// Whether one row is finite.
struct Finite<'a>(&'a [Full]);

impl Op for Finite<'_> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        is_finite(s, self.0)
    }
}

impl Backend for Cpu {
    type Linear = Linear<Matrix>;
    type Qkv = Qkv<Matrix>;
    type GateUp = GateUp<Matrix>;
    type Norm = RmsNorm;
    type Rope = RopeTable;
    type Buffer = Buffer;
    type Activation = Activation;
    type Kv = Kv;
    type Step = HostStep;

    fn describe(&self) -> String {
        let plural = if self.threads() == 1 { "" } else { "s" };
        format!("CPU, {}, {} thread{plural}", self.isa(), self.threads())
    }

    fn load_linear(&self, weights: Linear<WeightMatrix>) -> Result<Linear<Matrix>, BackendError> {
        weights.try_map(|matrix| self.pack(&matrix))
    }

    fn load_embedding(&self, weight: WeightMatrix, _tied: bool) -> Result<Linear<Matrix>, BackendError> {
        self.load_linear(Linear { weight, bias: None })
    }

    fn load_qkv(&self, weights: Qkv<WeightMatrix>) -> Result<Qkv<Matrix>, BackendError> {
        weights.try_map(|matrix| self.pack(&matrix))
    }

    fn load_gate_up(&self, weights: GateUp<WeightMatrix>) -> Result<GateUp<Matrix>, BackendError> {
        weights.try_map(|matrix| self.pack(&matrix))
    }

    fn load_norm(&self, norm: RmsNorm) -> Result<RmsNorm, BackendError> {
        Ok(norm)
    }

    fn load_rope(&self, table: RopeTable) -> Result<RopeTable, BackendError> {
        Ok(table)
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<Buffer, BackendError> {
        Buffer::new(rows, width)
    }

    fn activation(
        &self,
        rows: usize,
        width: usize,
        profile: Profile,
        grouping: Grouping,
    ) -> Result<Activation, BackendError> {
        Activation::new(rows, width, profile, grouping)
    }

    fn kv(&self, shape: KvShape) -> Result<Kv, BackendError> {
        Kv::new(shape, self.memory())
    }

    fn step(&self, shape: StepShape) -> Result<HostStep, BackendError> {
        Ok(HostStep::new(shape))
    }

    fn begin(&self, step: &mut HostStep, batch: Batch<'_>) {
        step.begin(batch);
    }

    fn upload(&self, values: &[f32], out: &mut Buffer) {
        for (row, values) in values.chunks_exact(out.width).enumerate() {
            out.row_mut(row).copy_from_slice(values);
        }
    }

    fn run(&self, step: &mut HostStep, _pass: Pass, issue: impl FnOnce(&mut HostStep)) {
        issue(step);
    }

    fn end<'a>(&self, step: &'a mut HostStep) -> Result<&'a Faults, BackendError> {
        Ok(&step.faults)
    }

    fn download(&self, buffer: &Buffer, rows: Range<usize>, out: &mut [f32]) -> Result<(), BackendError> {
        assert_eq!(out.len(), rows.len() * buffer.width, "the output holds the rows");
        for (row, out) in rows.zip(out.chunks_exact_mut(buffer.width)) {
            out.copy_from_slice(buffer.row(row));
        }
        Ok(())
    }

    fn enter(&self, step: &mut HostStep, layer: usize) {
        step.layer = layer;
    }

    fn gather(&self, from: &Buffer, step: &mut HostStep, out: &mut Buffer) {
        for (i, &row) in step.sources.iter().enumerate() {
            out.row_mut(i).copy_from_slice(from.row(row as usize));
        }
    }

    fn embed(&self, table: &Linear<Matrix>, scale: Option<f32>, step: &mut HostStep, out: &mut Buffer) {
        let (stride, width) = (out.stride(), out.width);
        let (tokens, profile) = (&step.sources, step.profile);
        let parallel = self.shared(tokens.len(), width);
        let rows = Indexed(Runs::new(out.first_mut(tokens.len()), stride));
        self.pool().split(rows, parallel, |(row, values)| {
            let (row_values, padding) = floats_mut(values).split_at_mut(width);
            padding.fill(0.0);
            table.weight.decode_row(tokens[row] as usize, row_values);
            if let Some(scale) = scale {
                row_values.iter_mut().for_each(|value| *value *= scale);
            }
            if profile == Profile::Quantised {
                self.proof().dispatch(Finish { values, round: true });
            }
        });
    }

    fn norm(&self, norm: &RmsNorm, x: &Buffer, step: &mut HostStep, out: &mut Activation) {
        assert!(x.width == out.width && norm.weight.len() == x.width, "the norm fits its row");
        self.ready(out, step, |row, to| {
            self.proof().dispatch(Norm { norm, from: x.row(row), to });
        });
    }

    fn qkv(
        &self,
        weights: &Qkv<Matrix>,
        shape: &AttentionShape,
        rope: &RopeTable,
        x: &Activation,
        layer: usize,
        step: &mut HostStep,
        q: &mut Buffer,
        kv: &mut Kv,
    ) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
        assert!(kv.shape.kv_heads == kv_heads && kv.shape.head_dim == head_dim, "the store fits the layer");
        assert!(heads.is_multiple_of(kv_heads), "query heads share KV heads evenly");
        assert!(q.width == heads * head_dim && weights.q.weight.rows == q.width, "q fits its buffer");
        let kv_width = kv_heads * head_dim;
        assert!(weights.k.weight.rows == kv_width && weights.v.weight.rows == kv_width, "k and v fit");
        let (width, q_stride, stride) = (q.width, q.stride(), staged_stride(&kv.shape));
        let products = [product(&weights.q), product(&weights.k), product(&weights.v)];
        let HostStep { rows: all, pages, faults, layer: entered, .. } = step;
        let mut fault = |row, operation| faults.record(row, *entered, operation);
        for first in (0..all.len()).step_by(STAGED_ROWS) {
            let rows = &all[first..all.len().min(first + STAGED_ROWS)];
            let q = &mut q.first_mut(first + rows.len())[first * q_stride..];
            let [k, v] = &mut kv.staged;
            let (k, v) = (&mut k[..rows.len() * stride], &mut v[..rows.len() * stride]);
            let out = [
                Window::new(floats_mut(q), q_stride * LANES),
                Window::new(floats_mut(k), stride * LANES),
                Window::new(floats_mut(v), stride * LANES),
            ];
            let mut outcomes = products.iter().map(Outcome::Store);
            let layers = out.map(|out| {
                let outcome = outcomes.next().expect("one product for each output");
                Layer { outcome, out }
            });
            self.products(layers, x, first, &mut fault);
            let faulty = &kv.faulty[..rows.len()];
            faulty.iter().for_each(|faulty| faulty.store(false, Ordering::Relaxed));
            let heads = Heads {
                head_dim,
                q_norm: weights.q_norm.as_ref(),
                k_norm: weights.k_norm.as_ref(),
                rope,
                rows,
                pages,
                v,
                stride,
                faulty,
            };
            let q = Window::new(floats_mut(q), q_stride * LANES).narrow(width);
            let k = Window::new(floats_mut(k), stride * LANES).narrow(kv_width);
            match &mut kv.stores {
                Stores::Half(store) => self.place(heads, (q, k), store.heads_mut(&kv.shape, layer)),
                Stores::Full(store) => self.place(heads, (q, k), store.heads_mut(&kv.shape, layer)),
            }
            for (row, faulty) in faulty.iter().enumerate() {
                if faulty.load(Ordering::Relaxed) {
                    fault(first + row, Operation::KvRound);
                }
            }
        }
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        q: &Buffer,
        kv: &Kv,
        layer: usize,
        step: &mut HostStep,
        out: &mut Activation,
    ) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
        assert!(kv.shape.kv_heads == kv_heads && kv.shape.head_dim == head_dim, "the store fits the layer");
        assert!(heads.is_multiple_of(kv_heads), "query heads share KV heads evenly");
        assert!(q.width == heads * head_dim && out.width == q.width, "the heads fill the rows");
        let (rows, pages) = (&step.rows, &step.pages);
        let stride = out.stride() * (GROUP / LANES);
        let last = rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(0);
        let parallel = rows.len() * q.width * last >= PARALLEL_ATTENTION;
        let whole = Window::new(floats_mut(&mut out.values[..rows.len() * stride]), stride * LANES);
        let tiles = Tiles::new(whole.narrow(q.width), TASK_ROWS, heads / kv_heads * head_dim);
        self.pool().split(tiles, parallel, |out| {
            self.proof().dispatch(Attend { shape, q, kv, rows, pages, layer, out });
        });
        self.ready(out, step, |_, _| {});
    }

    fn project(
        &self,
        linear: &Linear<Matrix>,
        x: &Activation,
        step: &mut HostStep,
        h: &mut Buffer,
        then: Then<'_, RmsNorm, Activation>,
    ) {
        assert_eq!(linear.weight.rows, h.width, "the projection fits the residual");
        let stride = h.stride() * LANES;
        let out = Window::new(floats_mut(h.first_mut(step.rows.len())), stride);
        let layer = Layer { outcome: Outcome::Add(&product(linear)), out };
        self.products([layer], x, 0, |row, operation| step.fault(row, operation));
        match then {
            Then::Nothing => {}
            Then::Norm(norm, out) => self.norm(norm, h, step, out),
            Then::End => self.finish(h, step),
            Then::Next(norm, out) => {
                self.finish(h, step);
                self.enter(step, step.layer + 1);
                self.norm(norm, h, step, out);
            }
        }
    }

    fn gate_up(&self, weights: &GateUp<Matrix>, x: &Activation, step: &mut HostStep, out: &mut Activation) {
        assert_eq!(weights.gate.weight.rows, out.width, "the projection fits its output");
        let Gate::Silu = weights.activation;
        let stride = out.stride() * (GROUP / LANES);
        let values = &mut out.values[..step.rows.len() * stride];
        let window = Window::new(floats_mut(values), stride * LANES);
        let (gate, up) = (product(&weights.gate), product(&weights.up));
        let layer = Layer { outcome: Outcome::Gated(&gate, &up), out: window };
        self.products([layer], x, 0, |row, operation| step.fault(row, operation));
        self.ready(out, step, |_, _| {});
    }

    fn logits(&self, head: &Linear<Matrix>, x: &Activation, step: &mut HostStep, out: &mut Buffer) {
        assert_eq!(head.weight.rows, out.width, "the head fits its output");
        let stride = out.stride();
        let window = Window::new(floats_mut(out.first_mut(step.rows.len())), stride * LANES);
        let layer = Layer { outcome: Outcome::Store(&product(head)), out: window };
        self.products([layer], x, 0, |row, operation| step.fault(row, operation));
        self.check(out, step, Operation::Logits, |values| self.proof().dispatch(Finite(values)));
    }
}
