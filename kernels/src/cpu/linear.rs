//! Linear layers over packed weights (section 3).
//!
//! A task owns a range of output columns. It walks its weight blocks once for every [`CHUNK`] activation
//! rows, which then stay in the second-level cache, and a tile of up to six rows by two blocks shares each
//! load of weights and of activations: a decoding step reads every weight byte once, a prompt reads it once per chunk.

use std::ops::Range;

use super::{
    Cpu,
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

/// Sixteen outputs of a product.
#[derive(Clone, Copy)]
struct Block<'a> {
    product: &'a Product<'a>,
    index: usize,
}

/// How the values of a tile's blocks join the output.
#[derive(Clone, Copy)]
enum Join {
    /// They replace it.
    Store,
    /// They are added.
    Add,
    /// It holds the gate of these values.
    Gate,
    /// The tile has two blocks, gate and values.
    Pair,
}

impl Op for Columns<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rows = self.out.rows();
        for start in rows.clone().step_by(CHUNK) {
            self.chunk(s, start..rows.end.min(start + CHUNK));
        }
    }
}

impl Columns<'_> {
    /// All columns of a few rows.
    #[inline(always)]
    fn chunk<S: Simd>(&mut self, s: S, rows: Range<usize>) {
        let columns = self.out.columns();
        let (Outcome::Store(product) | Outcome::Add(product) | Outcome::Gated(product, _)) = self.outcome;
        let end = columns.end.div_ceil(LANES).min(product.matrix.blocks());
        let wide = S::REGISTERS >= 32;
        let mut index = columns.start / LANES;
        while index < end {
            let block = Block { product, index };
            let join = match self.outcome {
                Outcome::Store(_) => Join::Store,
                Outcome::Add(_) => Join::Add,
                Outcome::Gated(gate, product) => {
                    let up = Block { product, index };
                    if wide && gate.matrix.packed.format() == product.matrix.packed.format() {
                        self.rows(s, [block, up], Join::Pair, rows.clone());
                    } else {
                        self.rows(s, [block], Join::Store, rows.clone());
                        self.rows(s, [up], Join::Gate, rows.clone());
                    }
                    index += 1;
                    continue;
                }
            };
            if wide && rows.len() > 1 && index + 1 < end {
                self.rows(s, [block, Block { product, index: index + 1 }], join, rows.clone());
                index += 2;
            } else {
                self.rows(s, [block], join, rows.clone());
                index += 1;
            }
        }
    }

    /// The blocks of a tile for all of `rows`.
    #[inline(always)]
    fn rows<S: Simd, const M: usize>(
        &mut self,
        s: S,
        blocks: [Block<'_>; M],
        join: Join,
        rows: Range<usize>,
    ) {
        let mut row = rows.start;
        while row < rows.end {
            // Six rows fill the registers; what is left is cut evenly, since a single row cannot hide
            // the loads of its weights.
            row += match rows.end - row {
                6 | 9.. if S::REGISTERS >= 32 => self.tile::<S, M, 6>(s, blocks, join, row),
                4 | 7 | 8 if S::REGISTERS >= 32 => self.tile::<S, M, 4>(s, blocks, join, row),
                3 | 5 if S::REGISTERS >= 32 => self.tile::<S, M, 3>(s, blocks, join, row),
                2.. => self.tile::<S, M, 2>(s, blocks, join, row),
                _ => self.tile::<S, M, 1>(s, blocks, join, row),
            }
        }
    }

    /// The blocks of a tile for `R` rows; returns `R`.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const R: usize>(
        &mut self,
        s: S,
        blocks: [Block<'_>; M],
        join: Join,
        row: usize,
    ) -> usize {
        let y = products::<S, M, R>(s, &blocks, self.x, row + self.first);
        let first = self.out.columns().start;
        for r in 0..R {
            let out = self.out.row(row + r);
            for m in 0..M {
                let at = blocks[m].index * LANES - first;
                let out = out[at..].first_chunk_mut().expect("rows have whole vectors");
                let y = match join {
                    Join::Store => y[m][r],
                    Join::Add => s.add(s.load(out), y[m][r]),
                    Join::Gate => s.mul(silu(s, s.load(out)), y[m][r]),
                    Join::Pair => s.mul(silu(s, y[0][r]), y[M - 1][r]),
                };
                s.store(y, out);
            }
        }
        R
    }
}

/// The outputs of some blocks, which have one format and width, for `R` rows.
#[inline(always)]
fn products<S: Simd, const M: usize, const R: usize>(
    s: S,
    blocks: &[Block<'_>; M],
    x: &Activation,
    row: usize,
) -> [[S::F; R]; M] {
    const FORMAT: &str = "the blocks of a tile have one format";
    let matrix = blocks[0].product.matrix;
    let (groups, columns) = (matrix.groups(), matrix.columns);
    let mut y = match &matrix.packed {
        Packed::Q8 { .. } => {
            let weights = std::array::from_fn(|m| blocks[m].q8(groups).expect(FORMAT));
            quantised::<S, Q8, M, R>(s, weights, std::array::from_fn(|r| x.groups(row + r)))
        }
        Packed::Q4 { .. } => {
            let weights = std::array::from_fn(|m| blocks[m].q4(groups).expect(FORMAT));
            quantised::<S, Q4, M, R>(s, weights, std::array::from_fn(|r| x.groups(row + r)))
        }
        Packed::Bf16(_) => {
            let weights = std::array::from_fn(|m| blocks[m].bf16(columns).expect(FORMAT));
            float::<S, Half, M, R>(s, weights, std::array::from_fn(|r| &x.row(row + r)[..columns]))
        }
        Packed::F32(_) => {
            let weights = std::array::from_fn(|m| blocks[m].f32(columns).expect(FORMAT));
            float::<S, Full, M, R>(s, weights, std::array::from_fn(|r| &x.row(row + r)[..columns]))
        }
    };
    for m in 0..M {
        if let Some(bias) = blocks[m].product.bias {
            let bias = load_part(s, &bias[blocks[m].index * LANES..]);
            for r in 0..R {
                y[m][r] = s.add(y[m][r], bias);
            }
        }
    }
    y
}

impl<'a> Block<'a> {
    fn q8(&self, groups: usize) -> Option<Grid<'a, Q8>> {
        let Packed::Q8 { lines, scales, .. } = &self.product.matrix.packed else { return None };
        let lines = &lines[self.index * groups * Q8_LINES..][..groups * Q8_LINES];
        Some(Grid { lines: lines.as_chunks().0, scales: &scales[self.index * groups..][..groups] })
    }

    fn q4(&self, groups: usize) -> Option<Grid<'a, Q4>> {
        let Packed::Q4 { lines, scales } = &self.product.matrix.packed else { return None };
        let lines = &lines[self.index * groups * Q4_LINES..][..groups * Q4_LINES];
        Some(Grid { lines: lines.as_chunks().0, scales: &scales[self.index * groups..][..groups] })
    }

    fn bf16(&self, columns: usize) -> Option<&'a [Half]> {
        let Packed::Bf16(values) = &self.product.matrix.packed else { return None };
        Some(&values[self.index * columns..][..columns])
    }

    fn f32(&self, columns: usize) -> Option<&'a [Full]> {
        let Packed::F32(values) = &self.product.matrix.packed else { return None };
        Some(&values[self.index * columns..][..columns])
    }
}

/// The groups of sixteen rows of weights.
struct Grid<'a, W: Grouped> {
    lines: &'a [W::Lines],
    scales: &'a [Half],
}

/// How a group of sixteen rows is stored.
trait Grouped {
    /// Lines of a group.
    type Lines;
    /// What packing added to the weights.
    fn bias<S: Simd>() -> i32;
    /// Adds the products of a group of each block to `acc`, one accumulator for each activation row.
    fn dot<S: Simd, const M: usize, const R: usize>(
        s: S,
        acc: &mut [[S::I; R]; M],
        w: [&Self::Lines; M],
        x: &[&Group; R],
    );
}

struct Q8;

impl Grouped for Q8 {
    type Lines = [Line; Q8_LINES];

    #[inline(always)]
    fn bias<S: Simd>() -> i32 {
        S::Q8_BIAS
    }

    #[inline(always)]
    fn dot<S: Simd, const M: usize, const R: usize>(
        s: S,
        acc: &mut [[S::I; R]; M],
        w: [&Self::Lines; M],
        x: &[&Group; R],
    ) {
        for i in 0..Q8_LINES {
            let mut line = [s.line(&w[0][i]); M];
            for m in 1..M {
                line[m] = s.line(&w[m][i]);
            }
            for r in 0..R {
                let x = word(x[r], i);
                for m in 0..M {
                    acc[m][r] = s.dot_q8(acc[m][r], line[m], x);
                }
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
    fn dot<S: Simd, const M: usize, const R: usize>(
        s: S,
        acc: &mut [[S::I; R]; M],
        w: [&Self::Lines; M],
        x: &[&Group; R],
    ) {
        for i in 0..Q4_LINES {
            let mut line = [s.nibbles(s.line(&w[0][i])); M];
            for m in 1..M {
                line[m] = s.nibbles(s.line(&w[m][i]));
            }
            for r in 0..R {
                let (low, high) = (word(x[r], 2 * i), word(x[r], 2 * i + 1));
                for m in 0..M {
                    acc[m][r] = s.dot_q4(acc[m][r], line[m].0, low);
                    acc[m][r] = s.dot_q4(acc[m][r], line[m].1, high);
                }
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

/// Blocks of sixteen rows of weights times `R` activation rows.
#[inline(always)]
fn quantised<S: Simd, W: Grouped, const M: usize, const R: usize>(
    s: S,
    weights: [Grid<'_, W>; M],
    x: [&[Group]; R],
) -> [[S::F; R]; M] {
    let groups = weights[0].scales.len();
    let lines: [&[W::Lines]; M] = std::array::from_fn(|m| &weights[m].lines[..groups]);
    let scales: [&[Half]; M] = std::array::from_fn(|m| &weights[m].scales[..groups]);
    let x = x.map(|x| &x[..groups]);
    let mut y = [[s.splat(0.0); R]; M];
    let mut first = 0;
    while first < groups {
        let mut sum = [[s.splat(0.0); R]; M];
        for g in first..groups.min(first + SEGMENT_GROUPS) {
            let x: [&Group; R] = std::array::from_fn(|r| &x[r][g]);
            let mut acc = [[s.splat_i(0); R]; M];
            for r in 0..R {
                let bias = s.splat_i(-W::bias::<S>() * x[r].sum);
                for m in 0..M {
                    acc[m][r] = bias;
                }
            }
            W::dot(s, &mut acc, std::array::from_fn(|m| &lines[m][g]), &x);
            for m in 0..M {
                let weight = s.load_f16(&scales[m][g].0);
                for r in 0..R {
                    let scale = s.mul(weight, s.splat(x[r].scale));
                    sum[m][r] = s.fma(scale, s.to_f32(acc[m][r]), sum[m][r]);
                }
            }
        }
        for m in 0..M {
            for r in 0..R {
                y[m][r] = if first == 0 { sum[m][r] } else { s.add(y[m][r], sum[m][r]) };
            }
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

/// Blocks of sixteen rows of float weights times `R` activation rows.
#[inline(always)]
fn float<S: Simd, W: Column, const M: usize, const R: usize>(
    s: S,
    weights: [&[W]; M],
    x: [&[f32]; R],
) -> [[S::F; R]; M] {
    let columns = weights[0].len();
    let weights = weights.map(|weights| &weights[..columns]);
    let x = x.map(|x| &x[..columns]);
    let mut y = [[s.splat(0.0); R]; M];
    let mut first = 0;
    while first < columns {
        let mut sum = [[s.splat(0.0); R]; M];
        for k in first..columns.min(first + SEGMENT) {
            let mut weight = [weights[0][k].load(s); M];
            for m in 1..M {
                weight[m] = weights[m][k].load(s);
            }
            for r in 0..R {
                let x = s.splat(x[r][k]);
                for m in 0..M {
                    sum[m][r] = s.fma(weight[m], x, sum[m][r]);
                }
            }
        }
        for m in 0..M {
            for r in 0..R {
                y[m][r] = if first == 0 { sum[m][r] } else { s.add(y[m][r], sum[m][r]) };
            }
        }
        first += SEGMENT;
    }
    y
}
