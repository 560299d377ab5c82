//! From stored bytes to canonical weights: pieces of some MiB are read in order, decoded and
//! quantised on all cores, and put together per tensor.

use std::{num::NonZero, ops::Range, thread, vec};

use half::{bf16, f16};
use kernels::{
    backend::{Gate, GateUp, Linear, Qkv, RmsNorm},
    tensor::{Format, GROUP, SEGMENT, TensorError, WeightMatrix},
};

use super::{
    LayerWeights, ModelConfig,
    error::{ModelError, TensorFault},
    family::Parts,
    plan::{Item, Target},
    read::{self, ByteRange},
    table::{Dtype, TensorInfo, TensorTable},
};

/// Source bytes read and converted at once (or one row, if that is longer).
const PIECE_BYTES: usize = 4 << 20;
/// Most pieces converted at the same time.
const WORKERS: usize = 16;

/// A tensor in canonical form.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Loaded {
    Matrix(WeightMatrix),
    Vector(Vec<f32>),
}

/// Rows of one item, converted on their own.
struct Piece {
    item: usize,
    rows: Range<usize>,
}

/// Reads and converts the tensors of one unit, in the order of `items`. `seen` is given the source
/// bytes in order.
pub(crate) fn load(
    table: &TensorTable,
    items: &[(Item, &TensorInfo)],
    seen: &mut dyn FnMut(&[u8]),
) -> Result<Vec<Loaded>, ModelError> {
    let (pieces, ranges) = cut(table, items)?;
    let mut outputs: Vec<Vec<u8>> =
        items.iter().map(|(item, _)| Vec::with_capacity(item.target_bytes())).collect();
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(WORKERS);
    let mut batch: Vec<(&Piece, Vec<u8>)> = Vec::with_capacity(workers);
    let mut next = pieces.iter();
    read::stream(&table.files, &ranges, &mut |bytes| {
        seen(&bytes);
        if let Some(piece) = next.next() {
            batch.push((piece, bytes));
        }
        if batch.len() == workers { convert_batch(table, items, &mut batch, &mut outputs) } else { Ok(()) }
    })?;
    convert_batch(table, items, &mut batch, &mut outputs)?;
    items.iter().zip(outputs).map(|((item, info), bytes)| finish(table, item, info, bytes)).collect()
}

fn cut(
    table: &TensorTable,
    items: &[(Item, &TensorInfo)],
) -> Result<(Vec<Piece>, Vec<ByteRange>), ModelError> {
    let (mut pieces, mut ranges) = (Vec::new(), Vec::new());
    for (index, (item, info)) in items.iter().enumerate() {
        let row = info.dtype.row_bytes(item.columns());
        let row = row.filter(|&row| (row as u64).checked_mul(item.rows() as u64) == Some(info.bytes));
        let Some(row) = row else {
            return Err(fail(table, item, info, TensorFault::Size { bytes: info.bytes }));
        };
        let step = (PIECE_BYTES / row.max(1)).max(1);
        for first in (0..item.rows()).step_by(step) {
            let rows = first..(first + step).min(item.rows());
            ranges.push(ByteRange {
                file: info.file,
                offset: info.offset + (first * row) as u64,
                length: rows.len() * row,
            });
            pieces.push(Piece { item: index, rows });
        }
    }
    Ok((pieces, ranges))
}

/// Converts the pieces of `batch` on a thread each and appends them to their tensors.
fn convert_batch(
    table: &TensorTable,
    items: &[(Item, &TensorInfo)],
    batch: &mut Vec<(&Piece, Vec<u8>)>,
    outputs: &mut [Vec<u8>],
) -> Result<(), ModelError> {
    let convert = |(piece, bytes): (&Piece, Vec<u8>)| {
        let (item, info) = &items[piece.item];
        (piece.item, convert(item, info.dtype, &piece.rows, bytes))
    };
    let converted: Vec<_> = thread::scope(|scope| {
        let jobs: Vec<_> = batch.drain(..).map(|job| scope.spawn(move || convert(job))).collect();
        jobs.into_iter()
            .map(|job| job.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    for (index, bytes) in converted {
        let (item, info) = &items[index];
        outputs[index].extend(bytes.map_err(|fault| fail(table, item, info, fault))?);
    }
    Ok(())
}

/// Canonical bytes of rows `rows` of a tensor.
fn convert(item: &Item, dtype: Dtype, rows: &Range<usize>, bytes: Vec<u8>) -> Result<Vec<u8>, TensorFault> {
    let format = match item.target {
        Target::Matrix(format) => format,
        Target::Vector => Format::F32,
    };
    if dtype.is_canonical(format) {
        return Ok(bytes);
    }
    let columns = item.columns();
    let values = match dtype {
        Dtype::Q4_K => super_blocks(Format::Q4K, rows.len(), columns, bytes),
        Dtype::Q6_K => super_blocks(Format::Q6K, rows.len(), columns, bytes),
        _ => Ok(decode(dtype, &bytes)),
    };
    let matrix = values.and_then(|values| WeightMatrix::quantise(format, rows.len(), columns, &values));
    matrix.map(|matrix| matrix.bytes().to_vec()).map_err(|error| fault(&error, rows.start))
}

/// Values of rows that are made of super-blocks.
fn super_blocks(
    format: Format,
    rows: usize,
    columns: usize,
    bytes: Vec<u8>,
) -> Result<Vec<f32>, TensorError> {
    let matrix = WeightMatrix::from_bytes(format, rows, columns, bytes)?;
    let mut values = vec![0.0; rows * columns];
    for (row, values) in values.chunks_exact_mut(columns).enumerate() {
        matrix.decode_row(row, values);
    }
    Ok(values)
}

/// Values of stored bytes, but for super-blocks. Grouped formats are read in whole groups.
fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|&word| f16::from_le_bytes(word).to_f32()).collect(),
        Dtype::Bf16 => bytes.as_chunks().0.iter().map(|&word| bf16::from_le_bytes(word).to_f32()).collect(),
        Dtype::Q8_0 => {
            let (groups, _) = bytes.as_chunks::<34>();
            groups.iter().flat_map(q8_group).collect()
        }
        Dtype::Q4_0 => {
            let (groups, _) = bytes.as_chunks::<18>();
            groups.iter().flat_map(q4_group).collect()
        }
        Dtype::Q4_K | Dtype::Q6_K | Dtype::Other(_) => Vec::new(),
    }
}

fn q8_group(group: &[u8; 34]) -> [f32; GROUP] {
    let scale = f16::from_le_bytes([group[0], group[1]]).to_f32();
    std::array::from_fn(|i| f32::from(group[2 + i] as i8) * scale)
}

/// Byte `i` holds value `i` in its low and value `i + 16` in its high nibble.
fn q4_group(group: &[u8; 18]) -> [f32; GROUP] {
    let scale = f16::from_le_bytes([group[0], group[1]]).to_f32();
    std::array::from_fn(|i| {
        let byte = group[2 + i % 16];
        let nibble = if i < 16 { byte & 15 } else { byte >> 4 };
        (f32::from(nibble) - 8.0) * scale
    })
}

fn fault(error: &TensorError, first_row: usize) -> TensorFault {
    match *error {
        TensorError::Shape { .. } => TensorFault::Size { bytes: 0 },
        TensorError::Blocks { columns, .. } => TensorFault::Blocks { columns, block: SEGMENT },
        TensorError::Length { actual, .. } => TensorFault::Size { bytes: actual as u64 },
        TensorError::NonFinite { row, column } => TensorFault::NonFinite { row: first_row + row, column },
        TensorError::OutOfRange { row, column } => TensorFault::OutOfRange { row: first_row + row, column },
    }
}

/// Puts a tensor together from its canonical bytes, rows in the order of halved rotary pairs.
fn finish(table: &TensorTable, item: &Item, info: &TensorInfo, bytes: Vec<u8>) -> Result<Loaded, ModelError> {
    let bytes = match item.interleaved_heads {
        Some(heads) => halve_pairs(&bytes, item.shape[0], heads),
        None => bytes,
    };
    canonical(item, bytes).map_err(|fault| fail(table, item, info, fault))
}

/// The tensor of canonical bytes, which are checked.
pub(crate) fn canonical(item: &Item, bytes: Vec<u8>) -> Result<Loaded, TensorFault> {
    match item.target {
        Target::Matrix(format) => WeightMatrix::from_bytes(format, item.rows(), item.columns(), bytes)
            .map(Loaded::Matrix)
            .map_err(|error| fault(&error, 0)),
        Target::Vector => {
            let values = decode(Dtype::F32, &bytes);
            match values.iter().position(|value| !value.is_finite()) {
                Some(column) => Err(TensorFault::NonFinite { row: 0, column }),
                None => Ok(Loaded::Vector(values)),
            }
        }
    }
}

/// GGUF files of the Llama architecture hold the rows of Q and K so that rotary pairs are `(2i, 2i + 1)`;
/// this puts them back to `(i, i + D/2)`. Rows are independent in every format, so bytes are moved.
fn halve_pairs(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let (width, row_bytes) = (rows / heads, bytes.len() / rows);
    let mut halved = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let (head, within) = (row / width, row % width);
        let (half, pair) = (within / (width / 2), within % (width / 2));
        let from = (head * width + 2 * pair + half) * row_bytes;
        halved.extend_from_slice(&bytes[from..from + row_bytes]);
    }
    halved
}

fn fail(table: &TensorTable, item: &Item, info: &TensorInfo, fault: TensorFault) -> ModelError {
    ModelError::tensor(&table.files[info.file].name(), &item.name, fault)
}

/// Hands out loaded tensors in the order of the plan.
pub(crate) struct Tensors(vec::IntoIter<Loaded>);

impl Tensors {
    pub(crate) fn new(loaded: Vec<Loaded>) -> Self {
        Self(loaded.into_iter())
    }

    pub(crate) fn matrix(&mut self) -> WeightMatrix {
        match self.0.next() {
            Some(Loaded::Matrix(matrix)) => matrix,
            other => unreachable!("the plan lists a matrix here, not {other:?}"),
        }
    }

    pub(crate) fn vector(&mut self) -> Vec<f32> {
        match self.0.next() {
            Some(Loaded::Vector(values)) => values,
            other => unreachable!("the plan lists a vector here, not {other:?}"),
        }
    }

    pub(crate) fn norm(&mut self, config: &ModelConfig) -> RmsNorm {
        RmsNorm { weight: self.vector(), eps: config.norm_eps }
    }

    pub(crate) fn linear(&mut self, bias: bool) -> Linear<WeightMatrix> {
        Linear { weight: self.matrix(), bias: bias.then(|| self.vector()) }
    }

    /// A decoder layer; the order is that of [`super::plan::Layout::items`].
    pub(crate) fn layer(&mut self, config: &ModelConfig, parts: Parts) -> LayerWeights {
        LayerWeights {
            attention_norm: self.norm(config),
            qkv: Qkv {
                q: self.linear(parts.qkv_bias),
                k: self.linear(parts.qkv_bias),
                v: self.linear(parts.qkv_bias),
                q_norm: parts.qk_norm.then(|| self.norm(config)),
                k_norm: parts.qk_norm.then(|| self.norm(config)),
            },
            output: self.linear(parts.output_bias),
            mlp_norm: self.norm(config),
            gate_up: GateUp {
                gate: self.linear(parts.mlp_bias),
                up: self.linear(parts.mlp_bias),
                activation: Gate::Silu,
            },
            down: self.linear(parts.mlp_bias),
        }
    }
}
