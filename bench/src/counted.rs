//! A decoder layer on a card that is the PTX machine: the launches of the CUDA backend over memory of the true shape,
//! and what they do.
//!
//! Counts depend on shapes alone, so weights, rows and pages are one byte repeated: one that is a small positive number
//! in every format.

use std::{
    collections::{HashMap, hash_map::Entry},
    ops::Range,
};

use anyhow::{Context, Result, ensure};
use kernels::{
    backend::{AttentionShape, KvShape, PAGE, Profile},
    cuda::{
        launch::{DevicePtr, Launch, Level, Source},
        ops::{
            attention::{self, Attention, Plan},
            heads::{Heads, KvLayout},
            linear::{self, COUNTERS, Linear, Matrix, SUMS, Scratch, Step, Then},
            norm::{Activation, RmsNorm},
            pack::packed_bytes,
        },
    },
    tensor::{Format, GROUP, SEGMENT},
};
use ptx_machine::{Counts, Memory, Module, Options, run_blocks};

use crate::cards::Card;

/// Most memory of the card.
const CAPACITY: u64 = 16 << 30;
/// Rows from which on a layer prefills.
const PREFILL: usize = 65;
/// Most rows after whose product the same launch norms them.
const NORMED_ROWS: usize = 4;
/// Outputs and rows of a block of `gemm`.
const GEMM_OUTPUTS: usize = 96;
const GEMM_ROWS: usize = 128;
/// Every byte of weights: 17, 1 + 16, 0x1.1p-11 as f16.
const WEIGHTS: u8 = 0x11;
/// Every byte of rows and pages: 60, 0.0115 as f32, 1.06 as f16.
const VALUES: u8 = 0x3c;

/// Widths of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widths {
    /// Of the residual stream.
    pub hidden: usize,
    /// Of the MLP.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Of a head.
    pub head_dim: usize,
}

impl Widths {
    fn queries(&self) -> usize {
        self.heads * self.head_dim
    }

    fn keys(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn attention(&self) -> AttentionShape {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        AttentionShape { heads, kv_heads, head_dim, scale: (head_dim as f32).sqrt().recip(), window: None }
    }
}

/// What a layer is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Format of all its matrices.
    pub format: Format,
    /// Rows. Up to 64 each decodes in a session of its own; more are the first of one prompt.
    pub rows: usize,
    /// Positions of a session that decodes.
    pub context: usize,
}

impl Task {
    /// Whether the rows are of one prompt.
    pub const fn prefills(&self) -> bool {
        self.rows >= PREFILL
    }
}

/// A launch that was counted.
#[derive(Clone, Debug)]
pub struct Counted {
    /// The kernel.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// What it did.
    pub counts: Counts,
}

/// An operation of a layer.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Its name in docs/kernels.md.
    pub name: &'static str,
    /// Bytes that must be moved at least: weights, what comes in, what goes out.
    pub least_bytes: u64,
    /// Its launches in order.
    pub launches: Vec<Counted>,
}

/// Name of an operation, outputs of its matrices, launches.
type Launches = (&'static str, Vec<usize>, Vec<Launch>);

/// Level, name, shape and parameters of a launch: all that its counts depend on.
type Key = (Level, &'static str, [u32; 3], u32, Vec<u8>);

/// The card's memory, and what was counted so far.
pub struct Rig {
    widths: Widths,
    memory: Memory,
    modules: HashMap<(Source, Level), Module>,
    counted: HashMap<Key, Counts>,
    places: Places,
}

/// Where everything stands.
struct Places {
    weights: DevicePtr,
    norm: DevicePtr,
    /// f32 [rows][hidden].
    h: DevicePtr,
    q: DevicePtr,
    raw: DevicePtr,
    kv: DevicePtr,
    pages: DevicePtr,
    angles: DevicePtr,
    faults: DevicePtr,
    partials: DevicePtr,
    attention_counters: DevicePtr,
    scratch: Scratch,
    /// The largest of the activations: one after the other in it.
    hidden: [DevicePtr; 2],
    inner: [DevicePtr; 2],
    attended: [DevicePtr; 2],
}

impl Rig {
    /// Memory for a layer, for steps of up to `rows` rows and sessions of up to `positions`.
    ///
    /// # Errors
    /// If this machine's memory does not do.
    pub fn new(widths: Widths, rows: usize, positions: usize) -> Result<Self> {
        let mut memory = Memory::new(CAPACITY);
        let Widths { hidden, intermediate, head_dim, .. } = widths;
        let (queries, keys) = (widths.queries(), widths.keys());
        let rows = rows.max(64).next_multiple_of(64);
        let most = Format::Q8;
        let largest = packed_bytes(most, intermediate, hidden).max(packed_bytes(most, hidden, intermediate));
        let largest = largest.max(packed_bytes(most, queries, hidden)).max(packed_bytes(most, keys, hidden));
        let store = KvLayout::of(&KvShape {
            layers: 1,
            pages: positions.div_ceil(PAGE),
            kv_heads: widths.kv_heads,
            head_dim,
            profile: Profile::Quantised,
        });
        let widest = (2 * intermediate).max(queries + 2 * keys);
        let mut filled = |bytes: usize, value: Option<u8>| -> Result<DevicePtr> {
            let address = memory.allocate(bytes as u64)?;
            if let Some(value) = value {
                memory.write(address, &vec![value; bytes])?;
            }
            Ok(address)
        };
        let mut activation = |width: usize| -> Result<[DevicePtr; 2]> {
            let bytes = rows * width.next_multiple_of(SEGMENT);
            Ok([filled(bytes, Some(VALUES))?, filled(bytes / GROUP * 4, Some(VALUES))?])
        };
        let (attended, inner, normed) =
            (activation(queries)?, activation(intermediate)?, activation(hidden)?);
        let places = Places {
            hidden: normed,
            inner,
            attended,
            weights: filled(2 * largest, Some(WEIGHTS))?,
            norm: filled(hidden * 4, Some(VALUES))?,
            h: filled(rows * hidden * 4, Some(VALUES))?,
            q: filled(rows * queries * 4, Some(VALUES))?,
            raw: filled(rows * queries * 4, Some(VALUES))?,
            kv: filled(store.bytes, Some(VALUES))?,
            pages: filled(positions.div_ceil(PAGE) * 4, None)?,
            angles: filled(positions * head_dim * 4, Some(VALUES))?,
            faults: filled(rows * 4, Some(0))?,
            partials: filled(
                64 * widths.heads * (positions.div_ceil(PAGE).max(16) + 1) * (head_dim + 12) * 4,
                None,
            )?,
            attention_counters: filled(rows * (widths.kv_heads + 1) * 4, Some(0))?,
            scratch: Scratch {
                rows: filled(rows * widest * 4, Some(VALUES))?,
                sums: filled(SUMS * 4, None)?,
                counters: filled(COUNTERS * 4, Some(0))?,
            },
        };
        let pages: Vec<u8> = (0..positions.div_ceil(PAGE) as u32).flat_map(u32::to_le_bytes).collect();
        memory.write(places.pages, &pages)?;
        Ok(Self { widths, memory, modules: HashMap::new(), counted: HashMap::new(), places })
    }

    /// Runs a layer as `card` would.
    ///
    /// # Errors
    /// If a kernel traps or finds a fault in its rows.
    pub fn layer(&mut self, card: &Card, task: &Task) -> Result<Vec<Operation>> {
        let words = self.step_words(task)?;
        let launches = self.launches(card, task, words);
        let least = self.least_bytes(task);
        let mut operations = Vec::new();
        for ((name, outputs, launches), least_bytes) in launches.into_iter().zip(least) {
            let counted = launches.iter().map(|launch| self.count(card.level(), task, launch, &outputs));
            operations.push(Operation { name, least_bytes, launches: counted.collect::<Result<_>>()? });
        }
        let mut faults = vec![0; task.rows * 4];
        self.memory.read(self.places.faults, &mut faults)?;
        ensure!(faults.iter().all(|&byte| byte == 0), "the rows are sound");
        Ok(operations)
    }

    /// The number of rows, and position and first page of each: at addresses of their own for each task.
    fn step_words(&mut self, task: &Task) -> Result<[DevicePtr; 2]> {
        let position = |row| if task.prefills() { row } else { task.context - 1 };
        let rows = (0..task.rows).flat_map(|row| [position(row) as u32, 0]).flat_map(u32::to_le_bytes);
        let rows: Vec<u8> = rows.collect();
        let count = [(task.rows as u32).to_le_bytes(), [0; 4], [0; 4], [0; 4]].concat();
        let places = [self.memory.allocate(16)?, self.memory.allocate(rows.len() as u64)?];
        self.memory.write(places[0], &count)?;
        self.memory.write(places[1], &rows)?;
        Ok(places)
    }

    fn activation(&self, task: &Task, places: [DevicePtr; 2], width: usize) -> Activation {
        let [values, scales] = places;
        let empty = Activation { width: width as u32, quantised: 1, ..Activation::default() };
        if task.format.is_wide() {
            Activation { wide: values, wide_scales: scales, ..empty }
        } else {
            Activation { narrow: values, narrow_scales: scales, ..empty }
        }
    }

    /// The launches of a layer, by operation, with the outputs of its matrices.
    fn launches(&self, card: &Card, task: &Task, words: [DevicePtr; 2]) -> [Launches; 5] {
        let Widths { hidden, intermediate, .. } = self.widths;
        let (queries, keys) = (self.widths.queries(), self.widths.keys());
        let places = &self.places;
        let matrix = |outputs: usize, inputs: usize| Matrix {
            format: task.format,
            outputs: outputs as u32,
            inputs: inputs as u32,
            data: places.weights,
        };
        let linear = |outputs, inputs| Linear { matrix: matrix(outputs, inputs), bias: 0 };
        let step = Step {
            rows: words[0],
            faults: places.faults,
            bucket: bucket(task.rows) as u32,
            layer: 0,
            multiprocessors: card.multiprocessors,
        };
        let [x, inner, attended] =
            [(places.hidden, hidden), (places.inner, intermediate), (places.attended, queries)]
                .map(|(places, width)| self.activation(task, places, width));
        let norm = Some((RmsNorm { weight: places.norm, eps: 1e-5, zero: 0 }, x));
        let after = Then { finish: None, norm };
        let end = Then { finish: Some(true), norm };
        let scratch = &places.scratch;
        let projections = [matrix(queries, hidden), matrix(keys, hidden), matrix(keys, hidden)];
        let wide = linear(intermediate, hidden);
        [
            (
                "qkv",
                vec![queries, keys, keys],
                linear::qkv(&step, &projections, &x, &self.heads(words), scratch),
            ),
            ("attention", Vec::new(), vec![self.attention(card, task, words, &attended)]),
            (
                "project (output)",
                vec![hidden],
                linear::project(&step, &linear(hidden, queries), &attended, places.h, &after, scratch),
            ),
            ("gate_up", vec![intermediate; 2], linear::gate_up(&step, &wide, &wide, &x, &inner, scratch)),
            (
                "project (down)",
                vec![hidden],
                linear::project(&step, &linear(hidden, intermediate), &inner, places.h, &end, scratch),
            ),
        ]
    }

    fn heads(&self, words: [DevicePtr; 2]) -> Heads {
        let places = &self.places;
        Heads {
            rows: words[1],
            pages: places.pages,
            faults: places.faults,
            cos: places.angles,
            sin: places.angles,
            q: places.q,
            kv: places.kv,
            heads: self.widths.heads as u32,
            kv_heads: self.widths.kv_heads as u32,
            head_dim: self.widths.head_dim as u32,
            pairs: self.widths.head_dim as u32 / 2,
            ..Heads::default()
        }
    }

    fn attention(&self, card: &Card, task: &Task, words: [DevicePtr; 2], out: &Activation) -> Launch {
        let (shape, places) = (self.widths.attention(), &self.places);
        let rows = bucket(task.rows) as u32;
        let limits =
            attention::Card { multiprocessors: card.multiprocessors, shared_bytes: card.shared_bytes() };
        let plan = if task.prefills() {
            Plan::prefill(&shape, Profile::Quantised, rows, limits)
        } else {
            let context = task.context.next_power_of_two().max(PAGE) as u32;
            Plan::decode(&shape, Profile::Quantised, rows, context, limits)
        };
        plan.launch(Attention {
            step: words[0],
            rows: words[1],
            pages: places.pages,
            faults: places.faults,
            q: places.q,
            kv: places.kv,
            partials: places.partials,
            counters: places.attention_counters,
            raw: places.raw,
            out: *out,
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: shape.head_dim as u32,
            scale: shape.scale,
            ..Attention::default()
        })
    }

    /// What each operation reads and writes at least: every weight, K and V of every session, its rows in and out, once.
    fn least_bytes(&self, task: &Task) -> [u64; 5] {
        let Widths { hidden, intermediate, .. } = self.widths;
        let (queries, keys) = (self.widths.queries(), self.widths.keys());
        let weights = |outputs: usize, inputs: usize| packed_bytes(task.format, outputs, inputs);
        let group = if task.format.is_wide() { SEGMENT } else { GROUP };
        let activation = |width: usize| width + width / group * 4;
        let residual = 2 * 4 * hidden + activation(hidden);
        let positions = if task.prefills() { task.rows } else { task.rows * task.context };
        let bytes = [
            weights(queries, hidden)
                + 2 * weights(keys, hidden)
                + task.rows * (activation(hidden) + 4 * queries + 2 * 2 * keys),
            positions * 2 * 2 * keys + task.rows * (4 * queries + activation(queries)),
            weights(hidden, queries) + task.rows * (activation(queries) + residual),
            2 * weights(intermediate, hidden) + task.rows * (activation(hidden) + activation(intermediate)),
            weights(hidden, intermediate) + task.rows * (activation(intermediate) + residual),
        ];
        bytes.map(|bytes| bytes as u64)
    }

    /// Runs a launch, unless an equal one ran already.
    fn count(&mut self, level: Level, task: &Task, launch: &Launch, outputs: &[usize]) -> Result<Counted> {
        let Launch { kernel, grid, threads, shared, .. } = *launch;
        let key = (level, kernel, grid, shared, launch.params().to_vec());
        let counts = match self.counted.get(&key) {
            Some(counts) => *counts,
            None => {
                let counts = self.run(level, task, launch, outputs)?;
                self.counted.insert(key, counts);
                counts
            }
        };
        Ok(Counted { kernel, grid, threads, shared, counts })
    }

    fn run(&mut self, level: Level, task: &Task, launch: &Launch, outputs: &[usize]) -> Result<Counts> {
        let source = launch.source;
        let module = match self.modules.entry((source, level)) {
            Entry::Occupied(module) => module.into_mut(),
            Entry::Vacant(place) => {
                let module = Module::parse(source.ptx(level)).map_err(|error| anyhow::anyhow!("{error}"))?;
                place.insert(module)
            }
        };
        let of_machine = ptx_machine::Launch {
            kernel: launch.kernel,
            grid: launch.grid,
            block: [launch.threads, 1, 1],
            shared: launch.shared,
            params: launch.params(),
        };
        let mut sum = Counts::default();
        for Part { blocks, times, after } in parts(task, launch, outputs, self.widths.head_dim) {
            match after {
                After::None => {}
                After::Heads => {
                    let word = (self.widths.kv_heads as u32 - 1).to_le_bytes();
                    let words = word.repeat(task.rows * (self.widths.kv_heads + 1));
                    self.memory.write(self.places.attention_counters, &words)?;
                }
                After::Blocks => {
                    let others = launch.grid[0] - 1;
                    self.memory.write(self.places.scratch.counters, &others.to_le_bytes())?;
                }
            }
            let counts = run_blocks(module, &mut self.memory, &of_machine, &Options::default(), blocks);
            let counts = counts.map_err(|trap| anyhow::anyhow!("{trap}")).context(launch.kernel)?;
            sum += counts.times(times);
        }
        if task.prefills() && source == Source::Attention {
            let words = vec![0; task.rows * (self.widths.kv_heads + 1) * 4];
            self.memory.write(self.places.attention_counters, &words)?;
        }
        Ok(sum)
    }
}

/// Rows that launches are sized for.
fn bucket(rows: usize) -> usize {
    if rows <= 64 { rows.next_power_of_two() } else { rows.next_multiple_of(64) }
}

/// Blocks that stand for others.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    blocks: Range<u64>,
    times: u64,
    /// Who is to have been there before: the last one goes on with what needs them all.
    after: After,
}

/// Blocks that have run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    None,
    /// All other KV heads of every row: the last one quantises a row whose groups reach over heads.
    Heads,
    /// All other blocks of a projection: the last one norms.
    Blocks,
}

/// The blocks that are run, and for how many each stands. Blocks of linear layers are alike within a matrix: at decoding
/// by groups that meet, at prefill over rows. Those of attention are alike over rows at decoding, over KV heads at
/// prefill; those of other kernels over rows.
fn parts(task: &Task, launch: &Launch, outputs: &[usize], head_dim: usize) -> Vec<Part> {
    let [x, y, z] = launch.grid.map(u64::from);
    let part = |blocks, times| Part { blocks, times, after: After::None };
    match launch.source {
        Source::Linear if !task.prefills() && y * z == 1 => {
            alike_groups(outputs, x, head_dim, task.rows <= NORMED_ROWS)
        }
        Source::Attention if !task.prefills() && task.rows as u64 == z => vec![part(0..x * y, z)],
        _ if !task.prefills() => vec![part(0..x * y * z, 1)],
        Source::Gemm if task.rows.is_multiple_of(GEMM_ROWS) => {
            let part = |(row, times)| part(row * x..row * x + 1, times * x);
            alike_rows(outputs, y).into_iter().map(part).collect()
        }
        Source::Attention if y > 1 => {
            let last = |blocks, times| Part { after: After::Heads, ..part(blocks, times) };
            let tiles = alike_tiles(task.rows, x);
            let tiles = || tiles.iter().cloned();
            let first = tiles().map(|(tiles, times)| part(tiles, times * (y - 1)));
            let at = (y - 1) * x;
            first.chain(tiles().map(|(tiles, times)| last(at + tiles.start..at + tiles.end, times))).collect()
        }
        Source::Norm => vec![part(0..1, x)],
        Source::Heads => vec![part(0..x, y)],
        Source::Linear if launch.kernel == "gated_rows" => vec![part(0..x, y)],
        _ => vec![part(0..x * y * z, 1)],
    }
}

/// The parts of `count` blocks of a linear layer at decoding. What makes heads or gates meets in groups of as many
/// blocks as make a head or 256 gates; a projection is normed by the last block of all where `normed`.
fn alike_groups(outputs: &[usize], count: u64, head_dim: usize, normed: bool) -> Vec<Part> {
    let part = |blocks, times| Part { blocks, times, after: After::None };
    let all: usize = outputs.iter().sum();
    let of_block = all / count as usize;
    let together = match outputs.len() {
        1 => of_block,
        2 => 2 * SEGMENT,
        _ => head_dim.max(of_block),
    };
    if all != of_block * count as usize || outputs.iter().any(|matrix| !matrix.is_multiple_of(together)) {
        return vec![part(0..count, 1)];
    }
    let group = (together / of_block) as u64;
    match outputs {
        [_] if normed => {
            vec![part(0..1, count - 1), Part { after: After::Blocks, ..part(count - 1..count, 1) }]
        }
        [_] | [_, _] => vec![part(0..group, count / group)],
        _ => {
            let begins = outputs.iter().scan(0, |begin, matrix| {
                *begin += matrix / of_block;
                Some((*begin - matrix / of_block) as u64)
            });
            let matrix =
                |(begin, matrix): (u64, &usize)| part(begin..begin + group, (matrix / together) as u64);
            begins.zip(outputs).map(matrix).collect()
        }
    }
}

/// Of `count` rows of blocks of `gemm`, those that are run, and for how many each stands: blocks that lie within one
/// matrix are alike.
fn alike_rows(outputs: &[usize], count: u64) -> Vec<(u64, u64)> {
    let (mut rows, mut end) = (Vec::new(), 0);
    for matrix in outputs {
        let begin = end;
        end += matrix;
        let (first, last) = (begin.div_ceil(GEMM_OUTPUTS) as u64, (end / GEMM_OUTPUTS) as u64);
        if first < last {
            rows.push((first, last - first));
        }
        let straddles = last < count && !end.is_multiple_of(GEMM_OUTPUTS) && last >= first;
        rows.extend(straddles.then_some((last, 1)));
    }
    rows
}

/// Of `count` tiles of rows of attention, those that are run, and for how many each stands. The tiles that end within
/// one key block are a group; each group does as much more than the one before it, so that the middle one of those
/// after the first is their mean.
fn alike_tiles(rows: usize, count: u64) -> Vec<(Range<u64>, u64)> {
    let groups = (rows / PAGE) as u64;
    if !rows.is_multiple_of(2 * PAGE) || !count.is_multiple_of(groups) {
        return vec![(0..count, 1)];
    }
    let (size, middle) = (count / groups, groups / 2);
    vec![(0..size, 1), (middle * size..(middle + 1) * size, groups - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cards::CARDS;

    const SMALL: Widths = Widths { hidden: 256, intermediate: 512, heads: 4, kv_heads: 2, head_dim: 64 };

    fn layer(format: Format, rows: usize) -> Vec<Operation> {
        let mut rig = Rig::new(SMALL, rows, 128).expect("there is memory");
        rig.layer(&CARDS[2], &Task { format, rows, context: 100 }).expect("kernels are sound")
    }

    /// A part stands for the blocks that it is said to stand for.
    #[test]
    fn parts_make_up_the_whole() {
        // So few multiprocessors that K is not split and prompts go by tiles.
        let card = Card { multiprocessors: 4, ..CARDS[2] };
        let tasks = [1, 3, 8, 32, 256].map(|rows| [Format::Q8, Format::Q4K].map(|format| (format, rows)));
        for (format, rows) in tasks.into_iter().flatten() {
            let task = Task { format, rows, context: 100 };
            let mut rig = Rig::new(SMALL, 256, 256).expect("there is memory");
            let words = rig.step_words(&task).expect("there is memory");
            let launches = rig.launches(&card, &task, words);
            let each = launches
                .iter()
                .flat_map(|(_, outputs, launches)| launches.iter().map(move |one| (outputs, one)));
            for (outputs, launch) in each {
                let by_parts = rig.run(Level::Ampere, &task, launch, outputs).expect("a sound kernel");
                let whole = ptx_machine::Launch {
                    kernel: launch.kernel,
                    grid: launch.grid,
                    block: [launch.threads, 1, 1],
                    shared: launch.shared,
                    params: launch.params(),
                };
                let module = &rig.modules[&(launch.source, Level::Ampere)];
                let whole = ptx_machine::run(module, &mut rig.memory, &whole, &Options::default());
                assert_eq!(
                    by_parts,
                    whole.expect("a sound kernel"),
                    "{format}, {rows} rows, {}",
                    launch.kernel
                );
            }
        }
    }

    /// Padded to tiles of 8 rows, every weight meets every row once.
    #[test]
    fn products_are_those_of_the_shapes() {
        let weights = [256 * (256 + 2 * 128), 0, 256 * 256, 2 * 512 * 256, 512 * 256];
        for (format, rows, padded) in
            [(Format::Q8, 1, 8), (Format::Q4, 8, 8), (Format::Q8, 11, 16), (Format::Q4, 32, 32)]
        {
            for (operation, weights) in layer(format, rows).iter().zip(weights) {
                let products: u64 = operation.launches.iter().map(|one| one.counts.mma_products).sum();
                assert_eq!(products, weights * padded, "{format}, {rows} rows, {}", operation.name);
            }
        }
    }

    /// `linear_q8_8`: every tile reads its weights once, and every lane what it needs of scales and of 8 rows.
    #[test]
    fn bytes_are_those_of_the_layouts() {
        let operations = layer(Format::Q8, 1);
        let launch = &operations[3].launches[0];
        assert_eq!((operations[3].name, launch.kernel), ("gate_up", "linear_q8_8"));
        let segments = 2 * 512 / 16;
        let (weights, weight_scales) = (8 * 512, 32 * 2 * 16);
        let (activations, scales) = (8 * 256, 32 * 8 * 2 * 4);
        let row_count = 4 * u64::from(launch.threads * launch.grid[0]);
        let read = segments * (weights + weight_scales + activations + scales) + row_count;
        assert_eq!(launch.counts.global_read.bytes, read);
        assert_eq!(launch.counts.global_written.bytes, 512 + 512 / 32 * 4, "one row of int8 and scales");
        let sectors = 32 * launch.counts.global_read.sectors;
        let least = packed_bytes(Format::Q8, 2 * 512, 256) as u64;
        assert!(sectors > least && sectors < 2 * least, "weights once, and activations");
        let moved = least + 256 + 256 / 32 * 4 + 512 + 512 / 32 * 4;
        assert_eq!(operations[3].least_bytes, moved);
    }
}
