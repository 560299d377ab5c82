//! What lies on a card for as long as a stage does: weights, tables, rows, keys and values.

use std::{num::NonZero, sync::Arc, thread};

use super::{
    driver::{Context, Memory, Pinned, Stream},
    launch::DevicePtr,
    ops::{heads::KvLayout, linear, norm, norm::ActivationBytes, pack},
};
use crate::{
    backend::{self, BackendError, Gate, Grouping, KvShape, Profile},
    rope::RopeTable,
    tensor::{Format, WeightMatrix},
};

/// Bytes of weights that are packed while as many are on their way to the card.
const STAGING_BYTES: usize = 16 << 20;
/// Least rows of an activation: the kernels read so many, in use or not.
const LEAST_ROWS: usize = 8;

/// Rows that launches are sized for when so many are in use: a power of two, or a multiple of 64.
pub(super) fn bucket(rows: usize) -> usize {
    if rows <= 64 { rows.next_power_of_two() } else { rows.next_multiple_of(64) }
}

/// Takes weights to the card: while a piece is on its way, the next one is packed.
#[derive(Debug)]
pub(super) struct Loader {
    context: Arc<Context>,
    stream: Stream,
    staging: Vec<Pinned>,
    staging_bytes: usize,
    next: usize,
}

impl Loader {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, BackendError> {
        let (context, stream) = (context.clone(), Stream::new(context)?);
        Ok(Self { context, stream, staging: Vec::new(), staging_bytes: 0, next: 0 })
    }

    /// Memory of `units` units of `unit` bytes; `fill` makes those from a number on.
    fn load(
        &mut self,
        units: usize,
        unit: usize,
        fill: impl Fn(usize, &mut [u8]) + Sync,
        what: &'static str,
    ) -> Result<Memory, BackendError> {
        let memory = Memory::new(&self.context, units * unit, what)?;
        if self.staging_bytes < unit.max(STAGING_BYTES) {
            self.staging.clear();
            self.staging_bytes = unit.max(STAGING_BYTES);
            for _ in 0..2 {
                self.staging.push(Pinned::new(&self.context, self.staging_bytes, "staging of weights")?);
            }
        }
        let most = self.staging_bytes / unit.max(1);
        for first in (0..units).step_by(most.max(1)) {
            let count = most.min(units - first);
            let staging = &mut self.staging[self.next % 2];
            self.next += 1;
            spread(&mut staging.bytes()?[..count * unit], unit, |index, bytes| fill(first + index, bytes));
            staging.copy_in(&self.stream, 0..count * unit, &memory, first * unit)?;
        }
        Ok(memory)
    }

    /// Waits until everything is there.
    pub(super) fn finish(mut self) -> Result<(), BackendError> {
        self.staging.iter_mut().try_for_each(|staging| staging.bytes().map(|_| ()))
    }
}

/// Fills `bytes` on all cores, each a run of units.
fn spread(bytes: &mut [u8], unit: usize, fill: impl Fn(usize, &mut [u8]) + Sync) {
    let units = bytes.len() / unit.max(1);
    let each = units.div_ceil(thread::available_parallelism().map_or(1, NonZero::get)).max(1);
    thread::scope(|scope| {
        for (index, part) in bytes.chunks_mut(each * unit.max(1)).enumerate() {
            let fill = &fill;
            scope.spawn(move || fill(index * each, part));
        }
    });
}

/// A packed matrix.
#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) matrix: linear::Matrix,
    _memory: Memory,
}

impl Matrix {
    pub(super) fn load(loader: &mut Loader, weights: &WeightMatrix) -> Result<Self, BackendError> {
        let (format, outputs, inputs) = (weights.format(), weights.rows(), weights.columns());
        let tiles = outputs.div_ceil(pack::tile_outputs(format));
        let fill = |first: usize, bytes: &mut [u8]| pack::pack_tiles(weights, first, bytes);
        let memory = loader.load(tiles, pack::tile_bytes(format, inputs), fill, "a weight matrix")?;
        let matrix = linear::Matrix {
            format,
            outputs: narrow(outputs),
            inputs: narrow(inputs),
            data: memory.address(),
        };
        Ok(Self { matrix, _memory: memory })
    }
}

/// A number of rows or columns; larger ones than a card can hold are not made.
pub(super) fn narrow(count: usize) -> u32 {
    u32::try_from(count).expect("no matrix has 2^32 rows or columns")
}

/// An optional vector on the card.
fn vector(
    context: &Arc<Context>,
    values: Option<&[f32]>,
    what: &'static str,
) -> Result<Option<Memory>, BackendError> {
    values.map(|values| Memory::holding(context, values, what)).transpose()
}

fn address(memory: Option<&Memory>) -> DevicePtr {
    memory.map_or(0, Memory::address)
}

/// Embedding rows as they are stored.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) format: Format,
    pub(super) row_bytes: u32,
    pub(super) columns: u32,
    pub(super) memory: Memory,
}

/// A matrix with its bias, or an embedding, or both.
#[derive(Debug)]
pub struct Linear {
    weights: Option<Matrix>,
    bias: Option<Memory>,
    table: Option<Table>,
}

impl Linear {
    pub(super) fn load(
        loader: &mut Loader,
        linear: &backend::Linear<WeightMatrix>,
    ) -> Result<Self, BackendError> {
        let bias = vector(&loader.context, linear.bias.as_deref(), "a bias")?;
        Ok(Self { weights: Some(Matrix::load(loader, &linear.weight)?), bias, table: None })
    }

    pub(super) fn embedding(
        loader: &mut Loader,
        weights: &WeightMatrix,
        tied: bool,
    ) -> Result<Self, BackendError> {
        let row_bytes = weights.format().row_bytes(weights.columns());
        let fill = |first: usize, bytes: &mut [u8]| {
            let from = first * row_bytes;
            bytes.copy_from_slice(&weights.bytes()[from..from + bytes.len()]);
        };
        let table = Table {
            format: weights.format(),
            row_bytes: narrow(row_bytes),
            columns: narrow(weights.columns()),
            memory: loader.load(weights.rows(), row_bytes, fill, "the embedding")?,
        };
        let weights = if tied { Some(Matrix::load(loader, weights)?) } else { None };
        Ok(Self { weights, bias: None, table: Some(table) })
    }

    /// The matrix, for a product.
    pub(super) fn product(&self) -> linear::Linear {
        let weights = self.weights.as_ref().expect("an embedding that is no head takes no part in products");
        linear::Linear { matrix: weights.matrix, bias: address(self.bias.as_ref()) }
    }

    /// The rows, for a look at some of them.
    pub(super) fn table(&self) -> &Table {
        self.table.as_ref().expect("rows are read of an embedding alone")
    }
}

/// Query, key and value projections.
#[derive(Debug)]
pub struct Qkv {
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) q_norm: Option<Norm>,
    pub(super) k_norm: Option<Norm>,
}

/// Gate and up projections.
#[derive(Debug)]
pub struct GateUp {
    pub(super) gate: Linear,
    pub(super) up: Linear,
}

impl GateUp {
    pub(super) fn load(
        loader: &mut Loader,
        weights: &backend::GateUp<WeightMatrix>,
    ) -> Result<Self, BackendError> {
        let Gate::Silu = weights.activation;
        Ok(Self { gate: Linear::load(loader, &weights.gate)?, up: Linear::load(loader, &weights.up)? })
    }
}

/// Weights of a norm.
#[derive(Debug)]
pub struct Norm {
    weight: Memory,
    pub(super) eps: f32,
}

impl Norm {
    pub(super) fn load(context: &Arc<Context>, norm: &backend::RmsNorm) -> Result<Self, BackendError> {
        Ok(Self { weight: Memory::holding(context, &norm.weight, "a norm")?, eps: norm.eps })
    }

    pub(super) fn weight(&self) -> DevicePtr {
        self.weight.address()
    }

    pub(super) fn launched(&self) -> norm::RmsNorm {
        norm::RmsNorm { weight: self.weight(), eps: self.eps, zero: 0 }
    }
}

/// Rotary tables.
#[derive(Debug)]
pub struct Rope {
    cos: Memory,
    sin: Memory,
    pairs: u32,
}

impl Rope {
    pub(super) fn load(context: &Arc<Context>, table: &RopeTable) -> Result<Self, BackendError> {
        let what = "the rotary tables";
        Ok(Self {
            cos: Memory::holding(context, &table.cos, what)?,
            sin: Memory::holding(context, &table.sin, what)?,
            pairs: narrow(table.dimensions / 2),
        })
    }

    /// Cosines, sines, pairs.
    pub(super) fn parts(&self) -> (DevicePtr, DevicePtr, u32) {
        (self.cos.address(), self.sin.address(), self.pairs)
    }
}

/// f32 rows.
#[derive(Debug)]
pub struct Buffer {
    pub(super) width: usize,
    pub(super) memory: Memory,
}

impl Buffer {
    pub(super) fn new(context: &Arc<Context>, rows: usize, width: usize) -> Result<Self, BackendError> {
        let what = "a buffer of rows";
        let bytes = bucket(rows).checked_mul(width).and_then(|values| values.checked_mul(4));
        let bytes = bytes.ok_or(BackendError::OutOfMemory { what, bytes: usize::MAX })?;
        Ok(Self { width, memory: Memory::zeroed(context, bytes, what)? })
    }

    pub(super) fn address(&self) -> DevicePtr {
        self.memory.address()
    }
}

/// Rows as the input of a linear layer.
#[derive(Debug)]
pub struct Activation {
    pub(super) launched: norm::Activation,
    _parts: [Option<Memory>; 5],
}

impl Activation {
    pub(super) fn new(
        context: &Arc<Context>,
        rows: usize,
        width: usize,
        profile: Profile,
        grouping: Grouping,
    ) -> Result<Self, BackendError> {
        let rows = bucket(rows).max(LEAST_ROWS);
        let bytes = ActivationBytes::new(rows, width, profile, grouping, grouping.float);
        let part = |bytes: usize| {
            (bytes > 0).then(|| Memory::zeroed(context, bytes, "rows of activations")).transpose()
        };
        let parts = [
            part(bytes.narrow)?,
            part(bytes.narrow_scales)?,
            part(bytes.wide)?,
            part(bytes.wide_scales)?,
            part(bytes.values)?,
        ];
        let [narrow, narrow_scales, wide, wide_scales, values] =
            [0, 1, 2, 3, 4].map(|part: usize| address(parts[part].as_ref()));
        let quantised = (profile == Profile::Quantised).into();
        let width = self::narrow(width);
        let launched =
            norm::Activation { narrow, narrow_scales, wide, wide_scales, values, width, quantised };
        Ok(Self { launched, _parts: parts })
    }
}

/// Paged K and V.
#[derive(Debug)]
pub struct Kv {
    pub(super) shape: KvShape,
    layout: KvLayout,
    memory: Memory,
}

impl Kv {
    pub(super) fn new(context: &Arc<Context>, shape: KvShape) -> Result<Self, BackendError> {
        let layout = KvLayout::of(&shape);
        Ok(Self { shape, layout, memory: Memory::zeroed(context, layout.bytes, "the KV pages")? })
    }

    /// The pages of a layer.
    pub(super) fn layer(&self, layer: usize) -> DevicePtr {
        assert!(layer < self.shape.layers, "the store has the layer");
        self.memory.address() + (layer * self.layout.layer_bytes) as u64
    }
}
