//! Linear layers over packed weights (section 3).
//!
//! A task owns a range of output columns. It walks its weight blocks once for every [`CHUNK`] activation
//! rows, which then stay in the second-level cache, and a tile of up to six rows by two blocks shares each
//! load of weights and of activations: a decoding step reads every weight byte once, a prompt reads it once per chunk.

use std::ops::Range;

use super::{
    Cpu,
    kquants::{Wide, dot_q4k, dot_q6k},
    math::silu,
    matrix::{Matrix, Packed, Q4_LINES, Q8_LINES},
    parts::{Tiles, Window},
    rows::{Activation, Group},
    simd::{Fetch, Full, Half, LANES, Line, Op, Simd, load_part},
    tiles::TileColumns,
};
use crate::tensor::{GROUP, SEGMENT};

/// Activation rows per pass over the weights.
pub(crate) const CHUNK: usize = 128;
/// Tasks per thread, so that a thread that loses its core does not hold up the rest for long.
const TASKS_PER_THREAD: usize = 8;
/// Multiply-adds worth waking a worker for, about 5 us of one.
const PARALLEL: usize = 1 << 18;
/// Groups of a segment.
pub(crate) const SEGMENT_GROUPS: usize = SEGMENT / GROUP;

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

/// A product of a matrix, or a pair of them, and where it goes.
pub(crate) struct Layer<'a> {
    pub(crate) outcome: Outcome<'a>,
    pub(crate) out: Window<'a>,
}

impl<'a> Layer<'a> {
    /// The matrix with as many columns as `out`.
    fn matrix(&self) -> &'a Matrix {
        let (Outcome::Store(product) | Outcome::Add(product) | Outcome::Gated(product, _)) = self.outcome;
        product.matrix
    }
}

/// Runs `layers` over the rows of `x` that start at `first`, as many as each output has.
pub(crate) fn run<const N: usize>(cpu: &Cpu, layers: [Layer<'_>; N], x: &Activation, first: usize) {
    let (mut blocks, mut work) = (0, 0);
    for layer in &layers {
        let columns = layer.matrix().blocks();
        assert!(columns * LANES <= layer.out.columns().len(), "the output holds every block");
        blocks += columns;
        work += layer.out.rows().len() * columns * LANES * x.width;
    }
    // Tasks of an even number of blocks fill tiles of two.
    let unit = blocks.div_ceil(TASKS_PER_THREAD * cpu.pool().threads()).next_multiple_of(2);
    let outcomes = layers.each_ref().map(|layer| layer.outcome);
    let tiles = layers.map(|layer| {
        let rows = layer.out.rows().len().max(1);
        Tiles::new(layer.out, rows, unit * LANES)
    });
    cpu.pool().split(tiles, work >= PARALLEL, |(layer, out)| {
        let columns = Columns { outcome: outcomes[layer], x, first, out };
        match cpu.proof().tiles() {
            Some(unit) if columns.fit_tiles() => cpu.proof().dispatch(TileColumns { columns, unit }),
            _ => cpu.proof().dispatch(columns),
        }
    });
}

/// All rows of a range of output columns.
pub(crate) struct Columns<'a> {
    pub(crate) outcome: Outcome<'a>,
    pub(crate) x: &'a Activation,
    pub(crate) first: usize,
    pub(crate) out: Window<'a>,
}

/// Sixteen outputs of a product.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) product: &'a Product<'a>,
    pub(crate) index: usize,
}

/// How values join the output.
#[derive(Clone, Copy)]
pub(crate) enum Join {
    /// They replace it.
    Store,
    /// They are added.
    Add,
    /// It holds the gate of these values.
    Gate,
    /// They are gate and values.
    Pair,
}

/// The blocks that come after those of some tiles.
#[derive(Clone, Copy)]
struct Ahead {
    /// How much further they are, or 0 if there are none.
    blocks: usize,
    /// The first row of the tiles.
    first: usize,
    /// The number of rows.
    rows: usize,
}

/// The part of the blocks ahead that a tile fetches: `part` of `whole`.
struct Share {
    blocks: usize,
    part: Range<usize>,
    whole: usize,
}

impl Ahead {
    /// The share of the tile with `rows` rows from `row` on.
    #[inline(always)]
    fn share(self, row: usize, rows: usize) -> Share {
        let start = row - self.first;
        Share { blocks: self.blocks, part: start..start + rows, whole: self.rows }
    }
}

impl Share {
    /// The tile's part of the grid `blocks` past that of `block`.
    #[inline(always)]
    fn of<'a, W: Grouped>(
        &self,
        block: &Block<'a>,
        grid: impl Fn(&Block<'a>) -> Option<Grid<'a, W>>,
    ) -> Grid<'a, W> {
        let ahead = Block { index: block.index + self.blocks, ..*block };
        let Some(grid) = (self.blocks > 0).then(|| grid(&ahead)).flatten() else {
            return Grid { lines: &[], scales: &[] };
        };
        let groups = grid.scales.len();
        let part = self.part.start * groups / self.whole..self.part.end * groups / self.whole;
        Grid { lines: &grid.lines[part.clone()], scales: &grid.scales[part] }
    }
}

/// A pass over the columns: one product, or a gate and its values side by side.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub(crate) product: &'a Product<'a>,
    pub(crate) values: Option<&'a Product<'a>>,
    pub(crate) join: Join,
}

impl Op for Columns<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rows = self.out.rows();
        // A single row reads fastest in one stream.
        let pairs = S::REGISTERS >= 32 && rows.len() > 1;
        for start in rows.clone().step_by(CHUNK) {
            for pass in self.passes(pairs).into_iter().flatten() {
                self.pass(s, pass, start..rows.end.min(start + CHUNK));
            }
        }
    }
}

impl<'a> Columns<'a> {
    /// What is to be done, gate and values in one pass if `pairs` and they have one format.
    #[inline(always)]
    pub(crate) fn passes(&self, pairs: bool) -> [Option<Pass<'a>>; 2] {
        let single = |product, join| Some(Pass { product, values: None, join });
        match self.outcome {
            Outcome::Store(product) => [single(product, Join::Store), None],
            Outcome::Add(product) => [single(product, Join::Add), None],
            Outcome::Gated(gate, up) if pairs && gate.matrix.packed.format() == up.matrix.packed.format() => {
                [Some(Pass { product: gate, values: Some(up), join: Join::Pair }), None]
            }
            Outcome::Gated(gate, up) => [single(gate, Join::Store), single(up, Join::Gate)],
        }
    }

    /// Blocks of sixteen outputs.
    #[inline(always)]
    pub(crate) fn blocks(&self, product: &Product<'_>) -> Range<usize> {
        let columns = self.out.columns();
        columns.start / LANES..columns.end.div_ceil(LANES).min(product.matrix.blocks())
    }

    /// All columns of a few rows.
    #[inline(always)]
    fn pass<S: Simd>(&mut self, s: S, pass: Pass<'_>, rows: Range<usize>) {
        let Range { start: mut index, end } = self.blocks(pass.product);
        while index < end {
            let block = Block { product: pass.product, index };
            index += 1;
            let second = match pass.values {
                Some(product) => Some(Block { product, ..block }),
                // A single row gains nothing from a second block, and reads faster in one stream.
                None if S::REGISTERS >= 32 && rows.len() > 1 && index < end => {
                    index += 1;
                    Some(Block { index: index - 1, ..block })
                }
                None => None,
            };
            // Several tiles share the blocks: they spread the fetch of the next ones over their time.
            let step = index - block.index;
            let blocks = if rows.len() > 4 && index + step <= end { step } else { 0 };
            let ahead = Ahead { blocks, first: rows.start, rows: rows.len() };
            let mut row = rows.start;
            while row < rows.end {
                let left = rows.end - row;
                row += match second {
                    Some(second) => self.pair(s, [block, second], pass.join, row, left, ahead),
                    None if left >= 2 => self.tile::<S, 1, 2>(s, [block], pass.join, row, ahead),
                    None => self.tile::<S, 1, 1>(s, [block], pass.join, row, ahead),
                };
            }
        }
    }

    /// Two blocks for some of the `left` rows from `row` on, how many it returns. Six rows fill the
    /// registers; what is left is cut evenly, since few rows cannot hide the loads of their weights.
    #[inline(always)]
    fn pair<S: Simd>(
        &mut self,
        s: S,
        blocks: [Block<'_>; 2],
        join: Join,
        row: usize,
        left: usize,
        ahead: Ahead,
    ) -> usize {
        match left {
            6 | 7 | 9.. => self.tile::<S, 2, 6>(s, blocks, join, row, ahead),
            4 | 5 | 8 => self.tile::<S, 2, 4>(s, blocks, join, row, ahead),
            2 | 3 => self.tile::<S, 2, 2>(s, blocks, join, row, ahead),
            _ => self.tile::<S, 2, 1>(s, blocks, join, row, ahead),
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
        ahead: Ahead,
    ) -> usize {
        let y = products::<S, M, R>(s, &blocks, self.x, row + self.first, ahead.share(row, R));
        for r in 0..R {
            if let Join::Pair = join {
                let y = s.mul(silu(s, y[0][r]), y[M - 1][r]);
                self.join(s, Join::Store, row + r, blocks[0].index, y);
            } else {
                for m in 0..M {
                    self.join(s, join, row + r, blocks[m].index, y[m][r]);
                }
            }
        }
        R
    }

    /// Sixteen values of `row` join the output.
    #[inline(always)]
    pub(crate) fn join<S: Simd>(&mut self, s: S, join: Join, row: usize, block: usize, y: S::F) {
        let at = block * LANES - self.out.columns().start;
        let out = self.out.row(row)[at..].first_chunk_mut().expect("rows have whole vectors");
        let y = match join {
            Join::Store | Join::Pair => y,
            Join::Add => s.add(s.load(out), y),
            Join::Gate => s.mul(silu(s, s.load(out)), y),
        };
        s.store(y, out);
    }
}

/// The outputs of some blocks, which have one format and width, for `R` rows.
#[inline(always)]
fn products<S: Simd, const M: usize, const R: usize>(
    s: S,
    blocks: &[Block<'_>; M],
    x: &Activation,
    row: usize,
    share: Share,
) -> [[S::F; R]; M] {
    const FORMAT: &str = "the blocks of a tile have one format";
    let matrix = blocks[0].product.matrix;
    let (groups, columns) = (matrix.groups(), matrix.columns);
    let mut y = match &matrix.packed {
        Packed::Q8 { .. } => {
            let weights = std::array::from_fn(|m| blocks[m].q8(groups).expect(FORMAT));
            let ahead = std::array::from_fn(|m| share.of(&blocks[m], |block| block.q8(groups)));
            quantised::<S, Q8, M, R>(s, weights, std::array::from_fn(|r| x.groups(row + r)), ahead)
        }
        Packed::Q4 { .. } => {
            let weights = std::array::from_fn(|m| blocks[m].q4(groups).expect(FORMAT));
            let ahead = std::array::from_fn(|m| share.of(&blocks[m], |block| block.q4(groups)));
            quantised::<S, Q4, M, R>(s, weights, std::array::from_fn(|r| x.groups(row + r)), ahead)
        }
        Packed::Bf16(_) => {
            let weights = std::array::from_fn(|m| blocks[m].bf16(columns).expect(FORMAT));
            float::<S, Half, M, R>(s, weights, std::array::from_fn(|r| &x.row(row + r)[..columns]))
        }
        Packed::F32(_) => {
            let weights = std::array::from_fn(|m| blocks[m].f32(columns).expect(FORMAT));
            float::<S, Full, M, R>(s, weights, std::array::from_fn(|r| &x.row(row + r)[..columns]))
        }
        Packed::Q4K(_) | Packed::Q6K(_) => {
            let x = std::array::from_fn(|r| x.wide(row + r));
            let mut y = [[s.splat(0.0); R]; M];
            for m in 0..M {
                y[m] = blocks[m].kquants(s, columns / SEGMENT, x);
            }
            y
        }
    };
    for m in 0..M {
        if let Some(bias) = blocks[m].product.bias {
            let bias = load_part(s, &bias[blocks[m].index * LANES..]);
            for y in &mut y[m] {
                *y = s.add(*y, bias);
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

    /// The outputs of super-blocks for `R` rows.
    #[inline(always)]
    fn kquants<S: Simd, const R: usize>(&self, s: S, wide: usize, x: [&[Wide]; R]) -> [S::F; R] {
        let at = self.index * wide;
        match &self.product.matrix.packed {
            Packed::Q4K(blocks) => dot_q4k(s, &blocks[at..][..wide], x),
            Packed::Q6K(blocks) => dot_q6k(s, &blocks[at..][..wide], x),
            _ => unreachable!("the blocks of a tile have one format"),
        }
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
            for (line, w) in line.iter_mut().zip(w) {
                *line = s.line(&w[i]);
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
            for (line, w) in line.iter_mut().zip(w) {
                *line = s.nibbles(s.line(&w[i]));
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

/// Blocks of sixteen rows of weights times `R` activation rows; `ahead` is fetched meanwhile.
#[inline(always)]
fn quantised<S: Simd, W: Grouped, const M: usize, const R: usize>(
    s: S,
    weights: [Grid<'_, W>; M],
    x: [&[Group]; R],
    ahead: [Grid<'_, W>; M],
) -> [[S::F; R]; M] {
    let groups = weights[0].scales.len();
    let fetch_lines = ahead.each_ref().map(|grid| Fetch::new(grid.lines, groups));
    let fetch_scales = ahead.each_ref().map(|grid| Fetch::new(grid.scales, groups));
    let lines: [&[W::Lines]; M] = std::array::from_fn(|m| &weights[m].lines[..groups]);
    let scales: [&[Half]; M] = std::array::from_fn(|m| &weights[m].scales[..groups]);
    let x = x.map(|x| &x[..groups]);
    let mut y = [[s.splat(0.0); R]; M];
    let mut first = 0;
    while first < groups {
        let mut sum = [[s.splat(0.0); R]; M];
        for g in first..groups.min(first + SEGMENT_GROUPS) {
            for m in 0..M {
                fetch_lines[m].step(s, g);
                fetch_scales[m].step(s, g);
            }
            let x: [&Group; R] = std::array::from_fn(|r| &x[r][g]);
            let mut acc = [[s.splat_i(0); R]; M];
            for r in 0..R {
                let bias = s.splat_i(-W::bias::<S>() * x[r].sum);
                for acc in &mut acc {
                    acc[r] = bias;
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
