//! Linear layers on a tile unit, for batches of many rows.
//!
//! A tile unit multiplies sixteen rows of activations by a block of sixteen outputs over one group of K
//! at a time. A packed group is already what it reads: a tile of eight lines, each with four consecutive
//! K of sixteen outputs. Tiles are 32 of K deep, half of what they could be, because each group has its
//! own scales; the vector unit scales and sums the products.

use std::ops::Range;

use super::{
    linear::{Block, CHUNK, Columns, Join, SEGMENT_GROUPS},
    math::silu,
    matrix::{Packed, Q4_LINES, Q8_LINES},
    rows::{Activation, Group},
    simd::{Full, Half, LANES, Line, Op, Simd, load_part},
};
use crate::tensor::GROUP;

/// Rows of a full tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Fewest rows for which the unit is used: below, half of a tile or more would be idle.
const MIN_ROWS: usize = 12;
/// What the unit reads as unsigned weights has this added when `q8` is packed.
const Q8_BIAS: u8 = 128;

/// Products of sixteen rows of activations and sixteen outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Dots(pub(crate) [[i32; LANES]; TILE_ROWS]);

/// A tile unit with three tiles in use: activations, weights and their products.
pub(crate) trait TileUnit {
    /// Shapes the tiles for `rows` activation rows, at most [`TILE_ROWS`]; what they held is lost.
    fn configure(&mut self, rows: usize);
    /// Ends the use of the unit on this thread.
    fn release(&mut self);
    /// Sets the products to zero.
    fn zero(&mut self);
    /// Loads one group of each row; the next row's is `stride` groups further.
    fn load_rows(&mut self, from: &[Group], stride: usize);
    /// Loads a group of sixteen outputs.
    fn load_weights(&mut self, from: &[Line; Q8_LINES]);
    /// Adds signed activations times unsigned weights to the products.
    fn dot(&mut self);
    /// Writes the products of the configured rows.
    fn store(&mut self, to: &mut Dots);
}

impl Columns<'_> {
    /// Whether a tile unit serves these columns.
    pub(crate) fn fit_tiles(&self) -> bool {
        let grouped = |packed: &Packed| match packed {
            Packed::Q8 { bias, .. } => *bias == Q8_BIAS,
            Packed::Q4 { .. } => true,
            Packed::Q4K(_) | Packed::Q6K(_) | Packed::Bf16(_) | Packed::F32(_) => false,
        };
        let fits = |block: Option<&super::linear::Product<'_>>| {
            block.is_none_or(|product| grouped(&product.matrix.packed))
        };
        let passes = self.passes(true);
        self.out.rows().len() >= MIN_ROWS
            && passes.iter().flatten().all(|pass| fits(Some(pass.product)) && fits(pass.values))
    }
}

/// All rows of a range of output columns, on a tile unit.
pub(crate) struct TileColumns<'a, U> {
    pub(crate) columns: Columns<'a>,
    pub(crate) unit: U,
}

impl<U: TileUnit> Op for TileColumns<'_, U> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut unit = Configured { unit: self.unit, rows: 0 };
        let mut y = [[Full([0.0; LANES]); CHUNK]; 2];
        let rows = self.columns.out.rows();
        for start in rows.clone().step_by(CHUNK) {
            let chunk = start..rows.end.min(start + CHUNK);
            for pass in self.columns.passes(true).into_iter().flatten() {
                for index in self.columns.blocks(pass.product) {
                    let (x, first) = (self.columns.x, self.columns.first);
                    let rows = chunk.start + first..chunk.end + first;
                    unit.block(s, Block { product: pass.product, index }, x, rows.clone(), &mut y[0]);
                    if let Some(product) = pass.values {
                        unit.block(s, Block { product, index }, x, rows, &mut y[1]);
                    }
                    for (i, row) in chunk.clone().enumerate() {
                        let mut value = s.load(&y[0][i].0);
                        if let Join::Pair = pass.join {
                            value = s.mul(silu(s, value), s.load(&y[1][i].0));
                        }
                        self.columns.join(s, pass.join, row, index, value);
                    }
                }
            }
        }
        unit.unit.release();
    }
}

/// A unit with the rows it is configured for.
struct Configured<U> {
    unit: U,
    rows: usize,
}

impl<U: TileUnit> Configured<U> {
    /// Sixteen outputs of `rows` of `x` into `y`.
    #[inline(always)]
    fn block<S: Simd>(
        &mut self,
        s: S,
        block: Block<'_>,
        x: &Activation,
        rows: Range<usize>,
        y: &mut [Full; CHUNK],
    ) {
        let groups = block.product.matrix.groups();
        let mut unpacked = [[Line([0; 64]); Q8_LINES]; SEGMENT_GROUPS];
        for first in (0..groups).step_by(SEGMENT_GROUPS) {
            let count = SEGMENT_GROUPS.min(groups - first);
            let at = block.index * groups + first;
            let segment = match &block.product.matrix.packed {
                Packed::Q8 { lines, scales, bias } => {
                    let (lines, _) = lines[at * Q8_LINES..][..count * Q8_LINES].as_chunks();
                    Segment { first, lines, scales: &scales[at..][..count], bias: i32::from(*bias) }
                }
                Packed::Q4 { lines, scales } => {
                    let (lines, _) = lines[at * Q4_LINES..][..count * Q4_LINES].as_chunks();
                    unpack(lines, &mut unpacked);
                    Segment { first, lines: &unpacked[..count], scales: &scales[at..][..count], bias: 8 }
                }
                _ => unreachable!("the unit is asked for grouped weights"),
            };
            for row in rows.clone().step_by(TILE_ROWS) {
                let tile = row..rows.end.min(row + TILE_ROWS);
                self.segment(s, &segment, x, tile, &mut y[row - rows.start..]);
            }
        }
        if let Some(bias) = block.product.bias {
            let bias = load_part(s, &bias[block.index * LANES..]);
            for y in &mut y[..rows.len()] {
                s.store(s.add(s.load(&y.0), bias), &mut y.0);
            }
        }
    }

    /// One segment of K for up to sixteen rows, stored to `y` or added to it.
    #[inline(always)]
    fn segment<S: Simd>(
        &mut self,
        s: S,
        segment: &Segment<'_>,
        x: &Activation,
        rows: Range<usize>,
        y: &mut [Full],
    ) {
        if self.rows != rows.len() {
            self.rows = rows.len();
            self.unit.configure(self.rows);
        }
        let count = segment.lines.len();
        // Lanes of the last row stand in for rows that are not there; what they give is not stored.
        let groups: [&[Group]; TILE_ROWS] =
            std::array::from_fn(|r| &x.groups((rows.start + r).min(rows.end - 1))[segment.first..][..count]);
        let from = &x.groups[rows.start * x.stride() + segment.first..];
        let mut sum = [s.splat(0.0); TILE_ROWS];
        let mut dots = Dots([[0; LANES]; TILE_ROWS]);
        for g in 0..count {
            self.unit.zero();
            self.unit.load_rows(&from[g..], x.stride());
            self.unit.load_weights(&segment.lines[g]);
            self.unit.dot();
            self.unit.store(&mut dots);
            let weight = s.load_f16(&segment.scales[g].0);
            for r in 0..TILE_ROWS {
                let group = &groups[r][g];
                let dot = s.add_i(s.load_i(&dots.0[r]), s.splat_i(-segment.bias * group.sum));
                let scale = s.mul(weight, s.splat(group.scale));
                sum[r] = s.fma(scale, s.to_f32(dot), sum[r]);
            }
        }
        for r in 0..TILE_ROWS {
            if r < rows.len() {
                let y = &mut y[r].0;
                let value = if segment.first == 0 { sum[r] } else { s.add(s.load(y), sum[r]) };
                s.store(value, y);
            }
        }
    }
}

/// Some groups of a block.
struct Segment<'a> {
    /// Index of the first within its row.
    first: usize,
    lines: &'a [[Line; Q8_LINES]],
    scales: &'a [Half],
    /// What packing added to each weight.
    bias: i32,
}

/// Spreads nibbles over bytes.
#[inline(always)]
fn unpack(from: &[[Line; Q4_LINES]], to: &mut [[Line; Q8_LINES]]) {
    for (from, to) in from.iter().zip(to) {
        for (i, from) in from.iter().enumerate() {
            for b in 0..64 {
                to[2 * i].0[b] = from.0[b] & 15;
                to[2 * i + 1].0[b] = from.0[b] >> 4;
            }
        }
    }
}

/// The instructions as their manual defines them, in plain code: what hardware is checked against.
#[derive(Debug)]
pub(crate) struct Emulated {
    /// Rows and bytes of a row of each tile, zero before it is configured.
    shapes: [(usize, usize); 3],
    tiles: [[[u8; 64]; 16]; 3],
}

/// The tiles of [`Emulated`].
const PRODUCTS: usize = 0;
const ROWS: usize = 1;
const WEIGHTS: usize = 2;

impl Emulated {
    pub(crate) fn new() -> Self {
        Self { shapes: [(0, 0); 3], tiles: [[[0; 64]; 16]; 3] }
    }

    /// A load clears what lies outside of the tile's shape.
    fn load<'a>(&mut self, tile: usize, row: impl Fn(usize) -> &'a [u8]) {
        let (rows, bytes) = self.shapes[tile];
        assert!(rows > 0, "the tile is configured");
        self.tiles[tile] = [[0; 64]; 16];
        for (r, to) in self.tiles[tile].iter_mut().take(rows).enumerate() {
            to[..bytes].copy_from_slice(&row(r)[..bytes]);
        }
    }
}

impl TileUnit for Emulated {
    fn configure(&mut self, rows: usize) {
        assert!((1..=TILE_ROWS).contains(&rows), "a tile has 1 to 16 rows");
        self.shapes = [(rows, 4 * LANES), (rows, GROUP), (Q8_LINES, 4 * LANES)];
        self.tiles = [[[0; 64]; 16]; 3];
    }

    fn release(&mut self) {
        *self = Self::new();
    }

    fn zero(&mut self) {
        self.tiles[PRODUCTS] = [[0; 64]; 16];
    }

    fn load_rows(&mut self, from: &[Group], stride: usize) {
        self.load(ROWS, |r| bytemuck::cast_slice(&from[r * stride].q));
    }

    fn load_weights(&mut self, from: &[Line; Q8_LINES]) {
        self.load(WEIGHTS, |r| &from[r].0);
    }

    fn dot(&mut self) {
        let [(rows, bytes), (a_rows, a_bytes), (b_rows, b_bytes)] = self.shapes;
        // Other shapes are an invalid instruction.
        assert!(rows == a_rows && bytes == b_bytes && a_bytes == 4 * b_rows && rows > 0, "the shapes agree");
        let [products, a, b] = &mut self.tiles;
        for (products, a) in products.iter_mut().zip(a).take(rows) {
            for (k, b) in b.iter().enumerate().take(b_rows) {
                for (n, product) in products.as_chunks_mut::<4>().0.iter_mut().enumerate().take(bytes / 4) {
                    let mut sum = i32::from_le_bytes(*product);
                    for i in 0..4 {
                        let signed = i32::from(a[4 * k + i] as i8);
                        sum = sum.wrapping_add(signed * i32::from(b[4 * n + i]));
                    }
                    *product = sum.to_le_bytes();
                }
            }
        }
    }

    fn store(&mut self, to: &mut Dots) {
        let (rows, _) = self.shapes[PRODUCTS];
        for (to, from) in to.0.iter_mut().zip(&self.tiles[PRODUCTS]).take(rows) {
            for (to, from) in to.iter_mut().zip(from.as_chunks().0) {
                *to = i32::from_le_bytes(*from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::{Grouping, Profile},
        cpu::{
            Isa,
            isa::Proof,
            linear::{Outcome, Product},
            matrix::Matrix,
            memory::Memory,
            parts::Window,
        },
        reference,
        tensor::{Format, WeightMatrix},
    };

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.cast_signed() as f32 / 2f32.powi(31)
        };
        (0..count).map(|_| next()).collect()
    }

    /// Rows quantised by the reference.
    fn activation(rows: usize, width: usize) -> Activation {
        let mut x = Activation::new(rows, width, Profile::Quantised, Grouping::of([Format::Q8])).unwrap();
        let stride = x.stride();
        for (row, values) in values(rows * width, 5).chunks(width).enumerate() {
            for (g, values) in values.chunks(GROUP).enumerate() {
                let group = &mut x.groups[row * stride + g];
                group.scale = reference::quantise_group(values, &mut group.q).unwrap();
                group.sum = group.q.iter().map(|&q| i32::from(q)).sum();
            }
        }
        x
    }

    fn expected(weights: &WeightMatrix, x: &Activation, row: usize, output: usize) -> f32 {
        let q: Vec<i8> = x.groups(row).iter().flat_map(|group| group.q).collect();
        let scales: Vec<f32> = x.groups(row).iter().map(|group| group.scale).collect();
        reference::dot(weights, output, &q, &scales)
    }

    #[test]
    fn tiles_equal_the_reference() {
        for format in [Format::Q8, Format::Q4] {
            for (index, (outputs, width)) in [(1, 1), (16, 32), (33, 290), (40, 511)].into_iter().enumerate()
            {
                let matrices = [1, 2].map(|seed| {
                    let values = values(outputs * width, seed + index as u32);
                    WeightMatrix::quantise(format, outputs, width, &values).unwrap()
                });
                let packed = matrices
                    .each_ref()
                    .map(|weights| Matrix::pack(weights, Q8_BIAS, &Memory::default()).unwrap());
                let bias = values(outputs, 9);
                for rows in [12, 16, 17, 47, CHUNK + 13] {
                    check(&matrices, &packed, &bias, rows);
                }
            }
        }
    }

    fn check(matrices: &[WeightMatrix; 2], packed: &[Matrix; 2], bias: &[f32], rows: usize) {
        let (outputs, width) = (packed[0].rows, packed[0].columns);
        let stride = packed[0].blocks() * LANES;
        let x = activation(rows + 1, width);
        let [gate, up] = packed.each_ref().map(|matrix| Product { matrix, bias: Some(bias) });
        let before = 0.75f32;
        for isa in Isa::available() {
            for (kind, outcome) in [Outcome::Store(&gate), Outcome::Add(&gate), Outcome::Gated(&gate, &up)]
                .into_iter()
                .enumerate()
            {
                let mut out = vec![before; rows * stride];
                let columns = Columns { outcome, x: &x, first: 1, out: Window::new(&mut out, stride) };
                assert!(columns.fit_tiles());
                let proof = Proof::of(isa).expect("an available instruction set");
                proof.dispatch(TileColumns { columns, unit: Emulated::new() });
                for row in 0..rows {
                    for output in 0..outputs {
                        let y = expected(&matrices[0], &x, row + 1, output) + bias[output];
                        let y = match kind {
                            0 => y,
                            1 => before + y,
                            _ => {
                                reference::silu(y)
                                    * (expected(&matrices[1], &x, row + 1, output) + bias[output])
                            }
                        };
                        let actual = out[row * stride + output];
                        assert_eq!(y.to_bits(), actual.to_bits(), "{isa}: row {row}, output {output}");
                    }
                }
            }
        }
    }

    #[test]
    fn few_rows_and_float_weights_stay_with_the_vectors() {
        let memory = Memory::default();
        let weights = WeightMatrix::quantise(Format::Bf16, 4, 32, &values(128, 1)).unwrap();
        let floats = Matrix::pack(&weights, Q8_BIAS, &memory).unwrap();
        let weights = WeightMatrix::quantise(Format::Q8, 4, 32, &values(128, 1)).unwrap();
        let (biased, plain) =
            (Matrix::pack(&weights, Q8_BIAS, &memory).unwrap(), Matrix::pack(&weights, 0, &memory).unwrap());
        let x = activation(16, 32);
        for (matrix, rows, fits) in
            [(&biased, 16, true), (&biased, MIN_ROWS - 1, false), (&floats, 16, false), (&plain, 16, false)]
        {
            let mut out = vec![0.0; rows * LANES];
            let product = Product { matrix, bias: None };
            let outcome = Outcome::Store(&product);
            let columns = Columns { outcome, x: &x, first: 0, out: Window::new(&mut out, LANES) };
            assert_eq!(columns.fit_tiles(), fits);
        }
    }
}
