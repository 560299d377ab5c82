//! Weights repacked for the vector kernels: sixteen rows side by side, so that one vector carries the
//! same K of sixteen outputs and every byte is read once, in order.

use super::{
    kquants::{Block4, Block6, pack_q4k, pack_q6k},
    memory::{Memory, Slab},
    simd::{Full, Half, LANES, Line},
};
use crate::{
    backend::BackendError,
    round::{f32_from_bf16, f32_from_f16},
    tensor::{Format, GROUP, Q4_BYTES, Q8_BYTES, SEGMENT, WeightMatrix},
};

/// Lines of a `q8` group of sixteen rows; line `i` holds K `4i .. 4i + 4`.
pub(crate) const Q8_LINES: usize = GROUP / 4;
/// Lines of a `q4` group of sixteen rows; line `i` holds K `8i .. 8i + 4` in the low nibbles and
/// `8i + 4 .. 8i + 8` in the high ones.
pub(crate) const Q4_LINES: usize = GROUP / 8;

/// A packed matrix. Rows past the last are zero.
#[derive(Debug)]
pub struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) packed: Packed,
}

/// Blocks of sixteen rows, one after another.
pub(crate) enum Packed {
    /// `lines[block][group][8]`, `scales[block][group]`; each weight plus `bias`.
    Q8 { lines: Slab<Line>, scales: Slab<Half>, bias: u8 },
    /// `lines[block][group][4]`, `scales[block][group]`.
    Q4 { lines: Slab<Line>, scales: Slab<Half> },
    /// `[block][column]`.
    Bf16(Slab<Half>),
    /// `[block][column]`.
    F32(Slab<Full>),
    /// `[block][super-block]`.
    Q4K(Slab<Block4>),
    /// `[block][super-block]`.
    Q6K(Slab<Block6>),
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.format().name())
    }
}

impl Packed {
    pub(crate) fn format(&self) -> Format {
        match self {
            Packed::Q8 { .. } => Format::Q8,
            Packed::Q4 { .. } => Format::Q4,
            Packed::Bf16(_) => Format::Bf16,
            Packed::F32(_) => Format::F32,
            Packed::Q4K(_) => Format::Q4K,
            Packed::Q6K(_) => Format::Q6K,
        }
    }
}

impl Matrix {
    /// Packs canonical weights; `bias` is added to each `q8` weight.
    pub(crate) fn pack(weights: &WeightMatrix, bias: u8, memory: &Memory) -> Result<Self, BackendError> {
        let (rows, columns) = (weights.rows(), weights.columns());
        let blocks = rows.div_ceil(LANES);
        let groups = blocks * columns.div_ceil(GROUP);
        let what = "a weight matrix";
        let packed = match weights.format() {
            Format::Q8 => {
                let mut lines = memory.allocate(groups.checked_mul(Q8_LINES), what)?;
                // Padding rows hold the biased zero as well, so that no kernel sees other values.
                lines.fill(Line([bias; 64]));
                let mut scales = memory.allocate(Some(groups), what)?;
                pack_q8(weights, bias, &mut lines, &mut scales);
                Packed::Q8 { lines, scales, bias }
            }
            Format::Q4 => {
                let mut lines = memory.allocate(groups.checked_mul(Q4_LINES), what)?;
                let mut scales = memory.allocate(Some(groups), what)?;
                pack_q4(weights, &mut lines, &mut scales);
                Packed::Q4 { lines, scales }
            }
            Format::Bf16 => {
                let mut values: Slab<Half> = memory.allocate(blocks.checked_mul(columns), what)?;
                for row in 0..rows {
                    let to = &mut values[row / LANES * columns..][..columns];
                    for (to, from) in to.iter_mut().zip(weights.row(row).chunks_exact(2)) {
                        to.0[row % LANES] = u16::from_le_bytes([from[0], from[1]]);
                    }
                }
                Packed::Bf16(values)
            }
            Format::F32 => {
                let mut values: Slab<Full> = memory.allocate(blocks.checked_mul(columns), what)?;
                for row in 0..rows {
                    let to = &mut values[row / LANES * columns..][..columns];
                    for (to, from) in to.iter_mut().zip(weights.row(row).chunks_exact(4)) {
                        to.0[row % LANES] = f32::from_le_bytes([from[0], from[1], from[2], from[3]]);
                    }
                }
                Packed::F32(values)
            }
            Format::Q4K => {
                let mut packed = memory.allocate(blocks.checked_mul(columns / SEGMENT), what)?;
                pack_q4k(weights, &mut packed);
                Packed::Q4K(packed)
            }
            Format::Q6K => {
                let mut packed = memory.allocate(blocks.checked_mul(columns / SEGMENT), what)?;
                pack_q6k(weights, &mut packed);
                Packed::Q6K(packed)
            }
        };
        Ok(Self { rows, columns, packed })
    }

    /// Blocks of sixteen rows.
    pub(crate) fn blocks(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Groups of a row, the last one padded.
    pub(crate) fn groups(&self) -> usize {
        self.columns.div_ceil(GROUP)
    }

    /// Decodes row `row` into `out` (`columns` values).
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns, "the row lies in the matrix");
        let (block, lane) = (row / LANES, row % LANES);
        let group = |k: usize| block * self.groups() + k / GROUP;
        match &self.packed {
            Packed::Q8 { lines, scales, bias } => {
                for (k, out) in out.iter_mut().enumerate() {
                    let line = &lines[group(k) * Q8_LINES + k % GROUP / 4].0;
                    let q = line[4 * lane + k % 4].wrapping_sub(*bias) as i8;
                    *out = f32::from(q) * f32_from_f16(scales[group(k)].0[lane]);
                }
            }
            Packed::Q4 { lines, scales } => {
                for (k, out) in out.iter_mut().enumerate() {
                    let byte = lines[group(k) * Q4_LINES + k % GROUP / 8].0[4 * lane + k % 4];
                    let q = if k % 8 < 4 { byte & 15 } else { byte >> 4 } as i8 - 8;
                    *out = f32::from(q) * f32_from_f16(scales[group(k)].0[lane]);
                }
            }
            Packed::Bf16(values) => {
                for (out, value) in out.iter_mut().zip(&values[block * self.columns..]) {
                    *out = f32_from_bf16(value.0[lane]);
                }
            }
            Packed::F32(values) => {
                for (out, value) in out.iter_mut().zip(&values[block * self.columns..]) {
                    *out = value.0[lane];
                }
            }
            Packed::Q4K(blocks) => {
                let blocks = &blocks[block * (self.columns / SEGMENT)..];
                for (block, out) in blocks.iter().zip(out.as_chunks_mut().0) {
                    block.decode(lane, out);
                }
            }
            Packed::Q6K(blocks) => {
                let blocks = &blocks[block * (self.columns / SEGMENT)..];
                for (block, out) in blocks.iter().zip(out.as_chunks_mut().0) {
                    block.decode(lane, out);
                }
            }
        }
    }
}

fn pack_q8(weights: &WeightMatrix, bias: u8, lines: &mut [Line], scales: &mut [Half]) {
    let groups = weights.columns().div_ceil(GROUP);
    for row in 0..weights.rows() {
        let (first, lane) = (row / LANES * groups, row % LANES);
        for (g, from) in weights.row(row).chunks_exact(Q8_BYTES).enumerate() {
            scales[first + g].0[lane] = u16::from_le_bytes([from[0], from[1]]);
            let lines = &mut lines[(first + g) * Q8_LINES..][..Q8_LINES];
            for (line, from) in lines.iter_mut().zip(from[2..].chunks_exact(4)) {
                for (to, from) in line.0[4 * lane..][..4].iter_mut().zip(from) {
                    *to = from.wrapping_add(bias);
                }
            }
        }
    }
}

fn pack_q4(weights: &WeightMatrix, lines: &mut [Line], scales: &mut [Half]) {
    let groups = weights.columns().div_ceil(GROUP);
    for row in 0..weights.rows() {
        let (first, lane) = (row / LANES * groups, row % LANES);
        for (g, from) in weights.row(row).chunks_exact(Q4_BYTES).enumerate() {
            scales[first + g].0[lane] = u16::from_le_bytes([from[0], from[1]]);
            let nibbles = &from[2..];
            let value = |k: usize| if k < 16 { nibbles[k] & 15 } else { nibbles[k - 16] >> 4 };
            let lines = &mut lines[(first + g) * Q4_LINES..][..Q4_LINES];
            for (i, line) in lines.iter_mut().enumerate() {
                for (j, to) in line.0[4 * lane..][..4].iter_mut().enumerate() {
                    *to = value(8 * i + j) | value(8 * i + 4 + j) << 4;
                }
            }
        }
    }
}
