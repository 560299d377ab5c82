//! The whole seam on plain vectors, one row after another.

use std::ops::Range;

use super::{Fold, attend_block, dot, dot_float, dot_wide, quantise_group, rms_norm, rotate, silu};
use crate::{
    backend::{
        AttentionShape, Backend, BackendError, Batch, Faults, Gate, GateUp, Grouping, KvShape, Linear,
        Operation, PAGE, Profile, Qkv, RmsNorm, Row,
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
    fn set(&mut self, row: usize, values: &[f32], faults: &mut Faults) {
        self.values[row * self.width..][..self.width].copy_from_slice(values);
        if self.profile == Profile::Quantised && values.iter().any(|value| !value.is_finite()) {
            faults.record(row, Operation::Quantise);
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
fn linear(linear: &Linear<WeightMatrix>, x: &Activation, row: usize, faults: &mut Faults) -> Vec<f32> {
    let weights = &linear.weight;
    assert_eq!(weights.columns(), x.width, "the activation fits the matrix");
    let outputs = 0..weights.rows();
    let mut y: Vec<f32> = if weights.format().is_float() {
        if x.row(row).iter().any(|value| !value.is_finite()) {
            faults.record(row, Operation::FloatLinear);
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
fn attend(shape: &AttentionShape, q: &[f32], kv: &Kv, batch: Batch<'_>, row: &Row, layer: usize) -> Vec<f32> {
    let AttentionShape { heads, kv_heads, head_dim, scale, window } = *shape;
    let last = row.position as usize;
    let first = window.map_or(0, |window| (last + 1).saturating_sub(window as usize));
    let pages = &batch.pages[row.pages.clone()];
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

impl Backend for Reference {
    type Matrix = WeightMatrix;
    type Buffer = Buffer;
    type Activation = Activation;
    type Kv = Kv;

    fn describe(&self) -> String {
        "scalar reference".to_owned()
    }

    fn matrix(&self, weights: WeightMatrix) -> Result<WeightMatrix, BackendError> {
        Ok(weights)
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

    fn upload(&self, values: &[f32], out: &mut Buffer) {
        out.values[..values.len()].copy_from_slice(values);
    }

    fn download(&self, buffer: &Buffer, rows: Range<usize>, out: &mut [f32]) {
        out.copy_from_slice(&buffer.values[rows.start * buffer.width..rows.end * buffer.width]);
    }

    fn gather(&self, from: &Buffer, rows: &[u32], out: &mut Buffer) {
        for (i, &row) in rows.iter().enumerate() {
            out.row_mut(i).copy_from_slice(from.row(row as usize));
        }
    }

    fn embed(
        &self,
        table: &WeightMatrix,
        tokens: &[u32],
        scale: Option<f32>,
        profile: Profile,
        out: &mut Buffer,
    ) {
        for (i, &token) in tokens.iter().enumerate() {
            let row = out.row_mut(i);
            table.decode_row(token as usize, row);
            for value in row {
                if let Some(scale) = scale {
                    *value *= scale;
                }
                if profile == Profile::Quantised {
                    *value = f32_from_bf16(bf16_from_f32(*value));
                }
            }
        }
    }

    fn norm(&self, norm: &RmsNorm, x: &Buffer, rows: usize, out: &mut Activation, faults: &mut Faults) {
        for row in 0..rows {
            let mut values = x.row(row).to_vec();
            rms_norm(&mut values, &norm.weight, norm.eps);
            out.set(row, &values, faults);
        }
    }

    fn qkv(
        &self,
        weights: &Qkv<WeightMatrix>,
        shape: &AttentionShape,
        rope: &RopeTable,
        x: &Activation,
        batch: Batch<'_>,
        layer: usize,
        q: &mut Buffer,
        kv: &mut Kv,
        faults: &mut Faults,
    ) {
        for (i, row) in batch.rows.iter().enumerate() {
            let mut queries = linear(&weights.q, x, i, faults);
            let mut keys = linear(&weights.k, x, i, faults);
            let values = linear(&weights.v, x, i, faults);
            norm_heads(&mut queries, shape.head_dim, weights.q_norm.as_ref());
            norm_heads(&mut keys, shape.head_dim, weights.k_norm.as_ref());
            let (cos, sin) = rope.at(row.position as usize);
            for head in queries.chunks_mut(shape.head_dim).chain(keys.chunks_mut(shape.head_dim)) {
                rotate(head, cos, sin);
            }
            q.row_mut(i).copy_from_slice(&queries);
            let mut store = |value: f32| {
                let value = match kv.shape.profile {
                    Profile::Quantised => f32_from_f16(f16_from_f32(value)),
                    Profile::F32 => value,
                };
                if !value.is_finite() {
                    faults.record(i, Operation::KvRound);
                }
                value
            };
            keys.iter_mut().for_each(|k| *k = store(*k));
            let values: Vec<f32> = values.into_iter().map(store).collect();
            let page = batch.pages[row.pages.clone()][row.position as usize / PAGE];
            for kv_head in 0..shape.kv_heads {
                let place = kv.head(layer, page, kv_head, row.position as usize % PAGE);
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
        batch: Batch<'_>,
        layer: usize,
        out: &mut Activation,
        faults: &mut Faults,
    ) {
        for (i, row) in batch.rows.iter().enumerate() {
            out.set(i, &attend(shape, q.row(i), kv, batch, row, layer), faults);
        }
    }

    fn project(
        &self,
        weights: &Linear<WeightMatrix>,
        x: &Activation,
        rows: usize,
        h: &mut Buffer,
        faults: &mut Faults,
    ) {
        for row in 0..rows {
            let y = linear(weights, x, row, faults);
            h.row_mut(row).iter_mut().zip(y).for_each(|(h, y)| *h += y);
        }
    }

    fn gate_up(
        &self,
        weights: &GateUp<WeightMatrix>,
        x: &Activation,
        rows: usize,
        out: &mut Activation,
        faults: &mut Faults,
    ) {
        for row in 0..rows {
            let mut gate = linear(&weights.gate, x, row, faults);
            let up = linear(&weights.up, x, row, faults);
            let Gate::Silu = weights.activation;
            gate.iter_mut().zip(up).for_each(|(g, u)| *g = silu(*g) * u);
            out.set(row, &gate, faults);
        }
    }

    fn finish(&self, h: &mut Buffer, rows: usize, profile: Profile, faults: &mut Faults) {
        for row in 0..rows {
            for value in h.row_mut(row) {
                let finite = value.is_finite();
                if profile == Profile::Quantised {
                    *value = f32_from_bf16(bf16_from_f32(*value));
                }
                if !finite || !value.is_finite() {
                    faults.record(row, Operation::LayerOutput);
                }
            }
        }
    }

    fn logits(
        &self,
        head: &Linear<WeightMatrix>,
        x: &Activation,
        rows: usize,
        out: &mut Buffer,
        faults: &mut Faults,
    ) {
        for row in 0..rows {
            let y = linear(head, x, row, faults);
            if y.iter().any(|value| !value.is_finite()) {
                faults.record(row, Operation::Logits);
            }
            out.row_mut(row).copy_from_slice(&y);
        }
    }
}
