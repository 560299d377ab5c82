//! Linear layers over packed weights (section 3).
//!
//! A task owns a range of output columns. It walks its weight blocks once for every [`CHUNK`] activation
//! rows, which then stay in the second-level cache, and a tile of up to eight rows shares each load of
//! weights: a decoding step reads every weight byte once, a prompt reads it once per chunk.

use super::{
    Cpu,
    kquants::{dot_q4k, dot_q6k},
    math::silu,
    matrix::{Matrix, Packed, Q4_LINES, Q8_LINES},
    parts::{Tiles, Window},
    rows::{Activation, Group},
    simd::{Full, Half, LANES, Line, Op, Simd, load_part},
};
use crate::tensor::{GROUP, SEGMENT};

/// Activation rows per pass over the weights.
const CHUNK: usize = 128;
/// Tasks per thread, so that a thread that loses its core does not hold up the rest for long.
const TASKS_PER_THREAD: usize = 8;
/// Multiply-adds worth waking a worker for, about 5 us of one.
const PARALLEL: usize = 1 << 18;
/// Groups of a segment.
const SEGMENT_GROUPS: usize = SEGMENT / GROUP;

/// What becomes of the products.
#[derive(Clone, Copy)]
pub(crate) enum Outcome<'a> {
    /// `out = W x (+ b)`.
    Store(&'a Product<'a>),
    /// `out += W x (+ b)`.
    Add(&'a Product<'a>),
    /// `out = silu(gate x) * (up x)`.
    Gated(&'a Product<'a>, &'a Product<'a>),
}

/// A matrix with its bias.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) bias: Option<&'a [f32]>,
}

/// Runs `outcome` for the rows of `x` that start at `first`, as many as `out` has.
pub(crate) fn run(cpu: &Cpu, outcome: Outcome<'_>, x: &Activation, first: usize, out: Window<'_>) {
    let (Outcome::Store(product) | Outcome::Add(product) | Outcome::Gated(product, _)) = outcome;
    let blocks = product.matrix.blocks();
    assert!(blocks * LANES <= out.columns().len(), "the output holds every block");
    let work = out.rows().len() * blocks * LANES * x.width;
    let unit = blocks.div_ceil(TASKS_PER_THREAD * cpu.pool().threads());
    let rows = out.rows().len();
    let tiles = Tiles::new(out, rows.max(1), unit * LANES);
    cpu.pool().split(tiles, work >= PARALLEL, |out| {
        cpu.proof().dispatch(Columns { outcome, x, first, out });
    });
}

/// All rows of a range of output columns.
struct Columns<'a> {
    outcome: Outcome<'a>,
    x: &'a Activation,
    first: usize,
    out: Window<'a>,
}

impl Op for Columns<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (Outcome::Store(product) | Outcome::Add(product) | Outcome::Gated(product, _)) = self.outcome;
        let columns = self.out.columns();
        let blocks = columns.start / LANES..columns.end.div_ceil(LANES).min(product.matrix.blocks());
        let rows = self.out.rows();
        for chunk in rows.clone().step_by(CHUNK) {
            let end = rows.end.min(chunk + CHUNK);
            for block in blocks.clone() {
                let mut row = chunk;
                while row < end {
                    row += match end - row {
                        8.. if S::REGISTERS >= 32 => self.tile::<S, 8>(s, block, row),
                        4.. if S::REGISTERS >= 32 => self.tile::<S, 4>(s, block, row),
                        2.. => self.tile::<S, 2>(s, block, row),
                        _ => self.tile::<S, 1>(s, block, row),
                    }
                }
            }
        }
    }
}

impl Columns<'_> {
    /// Sixteen outputs of `R` rows; returns `R`.
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&mut self, s: S, block: usize, row: usize) -> usize {
        let from = row + self.first;
        let (y, add) = match self.outcome {
            Outcome::Store(product) => (product.tile::<S, R>(s, block, self.x, from), false),
            Outcome::Add(product) => (product.tile::<S, R>(s, block, self.x, from), true),
            Outcome::Gated(gate, up) => {
                let mut y = gate.tile::<S, R>(s, block, self.x, from);
                let up = up.tile::<S, R>(s, block, self.x, from);
                for r in 0..R {
                    y[r] = s.mul(silu(s, y[r]), up[r]);
                }
                (y, false)
            }
        };
        let offset = block * LANES - self.out.columns().start;
        for (r, y) in y.into_iter().enumerate() {
            let out = self.out.row(row + r)[offset..].first_chunk_mut().expect("rows have whole vectors");
            let y = if add { s.add(s.load(out), y) } else { y };
            s.store(y, out);
        }
        R
    }
}

impl Product<'_> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&self, s: S, block: usize, x: &Activation, row: usize) -> [S::F; R] {
        let (groups, columns) = (self.matrix.groups(), self.matrix.columns);
        let range = block * groups..(block + 1) * groups;
        let y = match &self.matrix.packed {
            Packed::Q8 { lines, scales, .. } => {
                let lines = &lines[range.start * Q8_LINES..range.end * Q8_LINES];
                let x = std::array::from_fn(|r| x.groups(row + r));
                quantised::<S, Q8, R>(s, lines.as_chunks().0, &scales[range], x)
            }
            Packed::Q4 { lines, scales } => {
                let lines = &lines[range.start * Q4_LINES..range.end * Q4_LINES];
                let x = std::array::from_fn(|r| x.groups(row + r));
                quantised::<S, Q4, R>(s, lines.as_chunks().0, &scales[range], x)
            }
            Packed::Bf16(values) => {
                let x = std::array::from_fn(|r| &x.row(row + r)[..columns]);
                float(s, &values[block * columns..][..columns], x)
            }
            Packed::F32(values) => {
                let x = std::array::from_fn(|r| &x.row(row + r)[..columns]);
                float(s, &values[block * columns..][..columns], x)
            }
            Packed::Q4K(blocks) => {
                let wide = columns / SEGMENT;
                let x = std::array::from_fn(|r| x.wide(row + r));
                dot_q4k(s, &blocks[block * wide..][..wide], x)
            }
            Packed::Q6K(blocks) => {
                let wide = columns / SEGMENT;
                let x = std::array::from_fn(|r| x.wide(row + r));
                dot_q6k(s, &blocks[block * wide..][..wide], x)
            }
        };
        let Some(bias) = self.bias else { return y };
        let bias = load_part(s, &bias[block * LANES..]);
        let mut y = y;
        for y in &mut y {
            *y = s.add(*y, bias);
        }
        y
    }
}

/// How a group of sixteen rows is stored.
trait Grouped {
    /// Lines of a group.
    type Lines;
    /// What packing added to the weights.
    fn bias<S: Simd>() -> i32;
    /// Adds the products of the group to `acc`, one accumulator for each activation row.
    fn dot<S: Simd, const R: usize>(s: S, acc: &mut [S::I; R], w: &Self::Lines, x: &[&Group; R]);
}

struct Q8;

impl Grouped for Q8 {
    type Lines = [Line; Q8_LINES];

    #[inline(always)]
    fn bias<S: Simd>() -> i32 {
        S::Q8_BIAS
    }

    #[inline(always)]
    fn dot<S: Simd, const R: usize>(s: S, acc: &mut [S::I; R], w: &Self::Lines, x: &[&Group; R]) {
        for (i, line) in w.iter().enumerate() {
            let w = s.line(line);
            for r in 0..R {
                acc[r] = s.dot_q8(acc[r], w, word(x[r], i));
            }
        }
    }
}

struct Q4;

impl Grouped for Q4 {
    type Lines = [Line; Q4_LINES];

    #[inline(always)]
    fn bias<S: Simd>() -> i32 {
        8
    }

    #[inline(always)]
    fn dot<S: Simd, const R: usize>(s: S, acc: &mut [S::I; R], w: &Self::Lines, x: &[&Group; R]) {
        for (i, line) in w.iter().enumerate() {
            let (low, high) = s.nibbles(s.line(line));
            for r in 0..R {
                acc[r] = s.dot_q4(acc[r], low, word(x[r], 2 * i));
                acc[r] = s.dot_q4(acc[r], high, word(x[r], 2 * i + 1));
            }
        }
    }
}

/// Four consecutive int8 of a group.
#[inline(always)]
fn word(group: &Group, i: usize) -> i32 {
    let q = &group.q;
    i32::from_ne_bytes([q[4 * i] as u8, q[4 * i + 1] as u8, q[4 * i + 2] as u8, q[4 * i + 3] as u8])
}

/// Sixteen rows of weights times `R` activation rows.
#[inline(always)]
fn quantised<S: Simd, W: Grouped, const R: usize>(
    s: S,
    lines: &[W::Lines],
    scales: &[Half],
    x: [&[Group]; R],
) -> [S::F; R] {
    let groups = scales.len();
    let lines = &lines[..groups];
    let x = x.map(|x| &x[..groups]);
    let mut y = [s.splat(0.0); R];
    let mut first = 0;
    while first < groups {
        let mut sum = [s.splat(0.0); R];
        for g in first..groups.min(first + SEGMENT_GROUPS) {
            let x: [&Group; R] = std::array::from_fn(|r| &x[r][g]);
            let mut acc = [s.splat_i(0); R];
            for (acc, x) in acc.iter_mut().zip(x) {
                *acc = s.splat_i(-W::bias::<S>() * x.sum);
            }
            W::dot(s, &mut acc, &lines[g], &x);
            let weight = s.load_f16(&scales[g].0);
            for r in 0..R {
                let scale = s.mul(weight, s.splat(x[r].scale));
                sum[r] = s.fma(scale, s.to_f32(acc[r]), sum[r]);
            }
        }
        for r in 0..R {
            y[r] = if first == 0 { sum[r] } else { s.add(y[r], sum[r]) };
        }
        first += SEGMENT_GROUPS;
    }
    y
}

/// Sixteen float weights of the same column.
trait Column {
    fn load<S: Simd>(&self, s: S) -> S::F;
}

impl Column for Half {
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F {
        s.load_bf16(&self.0)
    }
}

impl Column for Full {
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F {
        s.load(&self.0)
    }
}

/// Sixteen rows of float weights times `R` activation rows.
#[inline(always)]
fn float<S: Simd, W: Column, const R: usize>(s: S, weights: &[W], x: [&[f32]; R]) -> [S::F; R] {
    let columns = weights.len();
    let x = x.map(|x| &x[..columns]);
    let mut y = [s.splat(0.0); R];
    let mut first = 0;
    while first < columns {
        let mut sum = [s.splat(0.0); R];
        for k in first..columns.min(first + SEGMENT) {
            let weight = weights[k].load(s);
            for r in 0..R {
                sum[r] = s.fma(weight, s.splat(x[r][k]), sum[r]);
            }
        }
        for r in 0..R {
            y[r] = if first == 0 { sum[r] } else { s.add(y[r], sum[r]) };
        }
        first += SEGMENT;
    }
    y
}
