//! The whole seam on plain vectors, one row after another.

use std::ops::Range;

use super::{Fold, attend_block, dot, dot_float, dot_wide, quantise_group, rms_norm, rotate, silu};
use crate::{
    backend::{
        AttentionShape, Backend, BackendError, Batch, Faults, Gate, GateUp, Grouping, HostStep, KvShape,
        Linear, Operation, PAGE, Pass, Profile, Qkv, RmsNorm, Row, StepShape, Then,
    },
    rope::RopeTable,
    round::{bf16_from_f32, f16_from_f32, f32_from_bf16, f32_from_f16},
    tensor::{GROUP, SEGMENT, WeightMatrix},
};

/// The scalar backend: slow, and right by definition.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// f32 rows `[rows][width]`.
#[derive(Clone, Debug)]
pub struct Buffer {
    width: usize,
    values: Vec<f32>,
}

impl Buffer {
    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..][..self.width]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.width..][..self.width]
    }
}

/// Rows ready for a linear layer.
#[derive(Clone, Debug)]
pub struct Activation {
    width: usize,
    profile: Profile,
    values: Vec<f32>,
    narrow: Option<Quantised<GROUP>>,
    wide: Option<Quantised<SEGMENT>>,
}

/// Rows in groups of `N`, the last one of a row padded with zeros.
#[derive(Clone, Debug)]
struct Quantised<const N: usize> {
    groups: usize,
    quants: Vec<i8>,
    scales: Vec<f32>,
}

impl<const N: usize> Quantised<N> {
    fn new(rows: usize, width: usize) -> Self {
        let groups = width.div_ceil(N);
        Self { groups, quants: vec![0; rows * groups * N], scales: vec![0.0; rows * groups] }
    }

    /// A faulty group becomes zero.
    fn set(&mut self, row: usize, values: &[f32]) {
        for (i, chunk) in values.chunks(N).enumerate() {
            let g = row * self.groups + i;
            let mut q = [0; N];
            self.scales[g] = quantise_group(chunk, &mut q).unwrap_or(0.0);
            self.quants[g * N..][..N].copy_from_slice(&q);
        }
    }

    fn row(&self, row: usize) -> (&[i8], &[f32]) {
        let (from, to) = (row * self.groups, (row + 1) * self.groups);
        (&self.quants[from * N..to * N], &self.scales[from..to])
    }
}

impl Activation {
    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..][..self.width]
    }

    /// Takes `values` as row `row`, quantising it under [`Profile::Quantised`].
    fn set(&mut self, row: usize, values: &[f32], step: &mut HostStep) {
        self.values[row * self.width..][..self.width].copy_from_slice(values);
        if self.profile == Profile::Quantised && values.iter().any(|value| !value.is_finite()) {
            step.fault(row, Operation::Quantise);
        }
        if let Some(narrow) = &mut self.narrow {
            narrow.set(row, values);
        }
        if let Some(wide) = &mut self.wide {
            wide.set(row, values);
        }
    }
}

/// Paged K and V; each value stands as f32, already rounded to the stored format.
#[derive(Clone, Debug)]
pub struct Kv {
    shape: KvShape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Kv {
    /// Where the head of a position lies in `keys` and `values`.
    fn head(&self, layer: usize, page: u32, kv_head: usize, slot: usize) -> Range<usize> {
        let KvShape { layers, pages, kv_heads, head_dim, .. } = self.shape;
        assert!(layer < layers && (page as usize) < pages, "layer and page lie in the store");
        let head = ((layer * pages + page as usize) * kv_heads + kv_head) * PAGE + slot;
        head * head_dim..(head + 1) * head_dim
    }
}

/// `W x (+ b)` of one row.
fn linear(linear: &Linear<WeightMatrix>, x: &Activation, row: usize, step: &mut HostStep) -> Vec<f32> {
    let weights = &linear.weight;
    assert_eq!(weights.columns(), x.width, "the activation fits the matrix");
    let outputs = 0..weights.rows();
    let mut y: Vec<f32> = if weights.format().is_float() {
        if x.row(row).iter().any(|value| !value.is_finite()) {
            step.fault(row, Operation::FloatLinear);
        }
        outputs.map(|r| dot_float(weights, r, x.row(row))).collect()
    } else if weights.format().is_wide() {
        let (q, scales) = x.wide.as_ref().expect("the activation has groups of 256").row(row);
        outputs.map(|r| dot_wide(weights, r, q, scales)).collect()
    } else {
        let (q, scales) = x.narrow.as_ref().expect("the activation has groups of 32").row(row);
        outputs.map(|r| dot(weights, r, q, scales)).collect()
    };
    if let Some(bias) = &linear.bias {
        assert_eq!(bias.len(), y.len(), "one bias for each output");
        y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
    y
}

fn norm_heads(x: &mut [f32], head_dim: usize, norm: Option<&RmsNorm>) {
    if let Some(norm) = norm {
        x.chunks_mut(head_dim).for_each(|head| rms_norm(head, &norm.weight, norm.eps));
    }
}

/// All query heads of one row.
fn attend(shape: &AttentionShape, q: &[f32], kv: &Kv, step: &HostStep, row: &Row, layer: usize) -> Vec<f32> {
    let AttentionShape { heads, kv_heads, head_dim, scale, window } = *shape;
    let last = row.position as usize;
    let first = window.map_or(0, |window| (last + 1).saturating_sub(window as usize));
    let pages = &step.pages[row.pages.clone()];
    let mut out = Vec::with_capacity(heads * head_dim);
    for (head, q) in q.chunks_exact(head_dim).enumerate() {
        let kv_head = head / (heads / kv_heads);
        let q: Vec<f32> = q.iter().map(|q| q * scale).collect();
        let mut fold: Option<Fold> = None;
        for (block, &page) in pages.iter().enumerate().take(last / PAGE + 1).skip(first / PAGE) {
            let from = first.max(block * PAGE) - block * PAGE;
            let to = last.min(block * PAGE + PAGE - 1) - block * PAGE;
            let place = |slot| kv.head(layer, page, kv_head, slot);
            let keys: Vec<&[f32]> = (from..=to).map(|slot| &kv.keys[place(slot)]).collect();
            let values: Vec<&[f32]> = (from..=to).map(|slot| &kv.values[place(slot)]).collect();
            let part = attend_block(&q, from, &keys, &values);
            match &mut fold {
                None => fold = Some(part),
                Some(fold) => fold.add(&part),
            }
        }
        out.extend(fold.expect("a query sees its own position").finish());
    }
    out
}

/// Ends a layer.
fn finish(h: &mut Buffer, step: &mut HostStep) {
    for row in 0..step.rows.len() {
        for value in h.row_mut(row) {
            let finite = value.is_finite();
            if step.profile == Profile::Quantised {
                *value = f32_from_bf16(bf16_from_f32(*value));
            }
            if !finite || !value.is_finite() {
                step.fault(row, Operation::LayerOutput);
            }
        }
    }
}

impl Backend for Reference {
    type Linear = Linear<WeightMatrix>;
    type Qkv = Qkv<WeightMatrix>;
    type GateUp = GateUp<WeightMatrix>;
    type Norm = RmsNorm;
    type Rope = RopeTable;
    type Buffer = Buffer;
    type Activation = Activation;
    type Kv = Kv;
    type Step = HostStep;

    fn describe(&self) -> String {
        "scalar reference".to_owned()
    }

    fn load_linear(&self, weights: Linear<WeightMatrix>) -> Result<Linear<WeightMatrix>, BackendError> {
        Ok(weights)
    }

    fn load_embedding(
        &self,
        weight: WeightMatrix,
        _tied: bool,
    ) -> Result<Linear<WeightMatrix>, BackendError> {
        self.load_linear(Linear { weight, bias: None })
    }

    fn load_qkv(&self, weights: Qkv<WeightMatrix>) -> Result<Qkv<WeightMatrix>, BackendError> {
        Ok(weights)
    }

    fn load_gate_up(&self, weights: GateUp<WeightMatrix>) -> Result<GateUp<WeightMatrix>, BackendError> {
        Ok(weights)
    }

    fn load_norm(&self, norm: RmsNorm) -> Result<RmsNorm, BackendError> {
        Ok(norm)
    }

    fn load_rope(&self, table: RopeTable) -> Result<RopeTable, BackendError> {
        Ok(table)
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<Buffer, BackendError> {
        Ok(Buffer { width, values: vec![0.0; rows * width] })
    }

    fn activation(
        &self,
        rows: usize,
        width: usize,
        profile: Profile,
        grouping: Grouping,
    ) -> Result<Activation, BackendError> {
        let quantised = profile == Profile::Quantised;
        assert!(!grouping.wide || width.is_multiple_of(SEGMENT), "groups of 256 are whole");
        Ok(Activation {
            width,
            profile,
            values: vec![0.0; rows * width],
            narrow: (quantised && grouping.narrow).then(|| Quantised::new(rows, width)),
            wide: (quantised && grouping.wide).then(|| Quantised::new(rows, width)),
        })
    }

    fn kv(&self, shape: KvShape) -> Result<Kv, BackendError> {
        let size = shape.layers * shape.pages * PAGE * shape.kv_heads * shape.head_dim;
        Ok(Kv { shape, keys: vec![0.0; size], values: vec![0.0; size] })
    }

    fn step(&self, shape: StepShape) -> Result<HostStep, BackendError> {
        Ok(HostStep::new(shape))
    }

    fn begin(&self, step: &mut HostStep, batch: Batch<'_>) {
        step.begin(batch);
    }

    fn upload(&self, values: &[f32], out: &mut Buffer) {
        out.values[..values.len()].copy_from_slice(values);
    }

    fn run(&self, step: &mut HostStep, _pass: Pass, issue: impl FnOnce(&mut HostStep)) {
        issue(step);
    }

    fn end<'a>(&self, step: &'a mut HostStep) -> Result<&'a Faults, BackendError> {
        Ok(&step.faults)
    }

    fn download(&self, buffer: &Buffer, rows: Range<usize>, out: &mut [f32]) -> Result<(), BackendError> {
        out.copy_from_slice(&buffer.values[rows.start * buffer.width..rows.end * buffer.width]);
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

    fn embed(&self, table: &Linear<WeightMatrix>, scale: Option<f32>, step: &mut HostStep, out: &mut Buffer) {
        for (i, &token) in step.sources.iter().enumerate() {
            let row = out.row_mut(i);
            table.weight.decode_row(token as usize, row);
            for value in row {
                if let Some(scale) = scale {
                    *value *= scale;
                }
                if step.profile == Profile::Quantised {
                    *value = f32_from_bf16(bf16_from_f32(*value));
                }
            }
        }
    }

    fn norm(&self, norm: &RmsNorm, x: &Buffer, step: &mut HostStep, out: &mut Activation) {
        for row in 0..step.rows.len() {
            let mut values = x.row(row).to_vec();
            rms_norm(&mut values, &norm.weight, norm.eps);
            out.set(row, &values, step);
        }
    }

    fn qkv(
        &self,
        weights: &Qkv<WeightMatrix>,
        shape: &AttentionShape,
        rope: &RopeTable,
        x: &Activation,
        layer: usize,
        step: &mut HostStep,
        q: &mut Buffer,
        kv: &mut Kv,
    ) {
        for i in 0..step.rows.len() {
            let mut queries = linear(&weights.q, x, i, step);
            let mut keys = linear(&weights.k, x, i, step);
            let values = linear(&weights.v, x, i, step);
            norm_heads(&mut queries, shape.head_dim, weights.q_norm.as_ref());
            norm_heads(&mut keys, shape.head_dim, weights.k_norm.as_ref());
            let position = step.rows[i].position as usize;
            let (cos, sin) = rope.at(position);
            for head in queries.chunks_mut(shape.head_dim).chain(keys.chunks_mut(shape.head_dim)) {
                rotate(head, cos, sin);
            }
            q.row_mut(i).copy_from_slice(&queries);
            let page = step.pages[step.rows[i].pages.clone()][position / PAGE];
            let mut store = |value: f32| {
                let value = match kv.shape.profile {
                    Profile::Quantised => f32_from_f16(f16_from_f32(value)),
                    Profile::F32 => value,
                };
                if !value.is_finite() {
                    step.fault(i, Operation::KvRound);
                }
                value
            };
            keys.iter_mut().for_each(|k| *k = store(*k));
            let values: Vec<f32> = values.into_iter().map(store).collect();
            for kv_head in 0..shape.kv_heads {
                let place = kv.head(layer, page, kv_head, position % PAGE);
                let from = kv_head * shape.head_dim..(kv_head + 1) * shape.head_dim;
                kv.keys[place.clone()].copy_from_slice(&keys[from.clone()]);
                kv.values[place].copy_from_slice(&values[from]);
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
        for i in 0..step.rows.len() {
            let values = attend(shape, q.row(i), kv, step, &step.rows[i], layer);
            out.set(i, &values, step);
        }
    }

    fn project(
        &self,
        weights: &Linear<WeightMatrix>,
        x: &Activation,
        step: &mut HostStep,
        h: &mut Buffer,
        then: Then<'_, RmsNorm, Activation>,
    ) {
        for row in 0..step.rows.len() {
            let y = linear(weights, x, row, step);
            h.row_mut(row).iter_mut().zip(y).for_each(|(h, y)| *h += y);
        }
        match then {
            Then::Nothing => {}
            Then::Norm(norm, out) => self.norm(norm, h, step, out),
            Then::End => finish(h, step),
            Then::Next(norm, out) => {
                finish(h, step);
                self.enter(step, step.layer + 1);
                self.norm(norm, h, step, out);
            }
        }
    }

    fn gate_up(
        &self,
        weights: &GateUp<WeightMatrix>,
        x: &Activation,
        step: &mut HostStep,
        out: &mut Activation,
    ) {
        for row in 0..step.rows.len() {
            let mut gate = linear(&weights.gate, x, row, step);
            let up = linear(&weights.up, x, row, step);
            let Gate::Silu = weights.activation;
            gate.iter_mut().zip(up).for_each(|(g, u)| *g = silu(*g) * u);
            out.set(row, &gate, step);
        }
    }

    fn logits(&self, head: &Linear<WeightMatrix>, x: &Activation, step: &mut HostStep, out: &mut Buffer) {
        for row in 0..step.rows.len() {
            let y = linear(head, x, row, step);
            if y.iter().any(|value| !value.is_finite()) {
                step.fault(row, Operation::Logits);
            }
            out.row_mut(row).copy_from_slice(&y);
        }
    }
}
