//! Linear layers and what follows them (`linear.cu`, `gemm.cu`).
//!
//! Each function gives the launches of one operation of the seam, in order. At decoding that is one launch where all
//! matrices of the operation have one format; more rows, and formats that differ, take the same arithmetic
//! apart.

use bytemuck::{Pod, Zeroable};

use super::{
    heads::{self, Heads},
    norm::{self, Activation, RmsNorm},
    pack::tile_outputs,
};
use crate::{
    cuda::launch::{DevicePtr, Launch, Source},
    tensor::{Format, SEGMENT},
};

/// f32 values of [`Scratch::sums`].
pub const SUMS: usize = 4 << 20;
/// u32 values of [`Scratch::counters`].
pub const COUNTERS: usize = 4096;
/// Warps of a block.
const WARPS: u32 = 8;
/// Dynamic shared memory that a block takes for sums of segments, if one round of its warps needs no more.
const SHARED: u32 = 32 << 10;
/// Most rows after whose product the same launch norms them.
const NORMED_ROWS: u32 = 4;

/// Outputs of a block of `gemm.cu`.
const GEMM_OUTPUTS: u32 = 96;
/// Threads of a block of `gemm.cu`.
const GEMM_THREADS: u32 = 384;
/// Rows of a block of `gemm.cu`.
const GEMM_ROWS: u32 = 128;

/// A packed matrix on the device ([`super::pack`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Its format.
    pub format: Format,
    /// Rows of the canonical matrix.
    pub outputs: u32,
    /// Columns of the canonical matrix.
    pub inputs: u32,
    /// The packed bytes, 256-byte aligned.
    pub data: DevicePtr,
}

/// A matrix with its bias, f32 `[outputs]`, or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Weights.
    pub matrix: Matrix,
    /// Bias.
    pub bias: DevicePtr,
}

/// The step that a launch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// u32: rows in use.
    pub rows: DevicePtr,
    /// u32 `[rows]`: fault words.
    pub faults: DevicePtr,
    /// Rows the launch is sized for: 1, 2, 4, 8, 16, 32, 64 or a multiple of 64. Fewer may be in use, never more.
    /// Activations hold 8 rows at least, and as many as the largest bucket: what lies in the rows that are not in use
    /// is read, and does not matter.
    pub bucket: u32,
    /// The layer that a fault names.
    pub layer: u32,
    /// Multiprocessors of the card.
    pub multiprocessors: u32,
}

impl Step {
    /// Whether a launch over `matrices` takes the kernels for many rows.
    fn prefills(&self, matrices: &[Matrix]) -> bool {
        let tiles: u32 = matrices.iter().map(|matrix| matrix.outputs.div_ceil(GEMM_OUTPUTS)).sum();
        !matrices[0].format.is_float()
            && self.bucket > 64
            && 2 * tiles * self.bucket.div_ceil(GEMM_ROWS) >= self.multiprocessors
    }
}

/// Memory that launches use for themselves; one set for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// f32 `[bucket][widest]`: at least all outputs of q, k and v, and twice those of gate, for a row.
    pub rows: DevicePtr,
    /// f32 [`SUMS`].
    pub sums: DevicePtr,
    /// u32 [`COUNTERS`], zero when allocated; every launch leaves them so.
    pub counters: DevicePtr,
}

/// `out = W x (+ b)`, f32 `[rows][outputs]`; a value that is not finite is a fault of the logits.
pub fn logits(step: &Step, head: &Linear, x: &Activation, out: DevicePtr, scratch: &Scratch) -> Vec<Launch> {
    let mut call = Call::new(step, &[*head], x, scratch);
    call.params.out = out;
    call.params.checked = 1;
    vec![call.launch()]
}

/// What follows a projection.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Then {
    /// Ends the layer: `Some(true)` rounds to bf16 (profile `Quantised`); under both a value that is not finite is a
    /// fault.
    pub finish: Option<bool>,
    /// Norms the rows into an activation.
    pub norm: Option<(RmsNorm, Activation)>,
}

/// `h += W x (+ b)`, f32 `[rows][outputs]`, and what follows.
pub fn project(
    step: &Step,
    linear: &Linear,
    x: &Activation,
    h: DevicePtr,
    then: &Then,
    scratch: &Scratch,
) -> Vec<Launch> {
    let mut call = Call::new(step, &[*linear], x, scratch);
    call.params.epilogue = Epilogue::Residual as u32;
    call.params.out = h;
    call.params.checked = then.finish.is_some().into();
    call.params.rounded = then.finish.unwrap_or_default().into();
    let Some((norm, next)) = then.norm else { return vec![call.launch()] };
    if step.bucket <= NORMED_ROWS {
        (call.params.norm, call.params.next) = (norm, next);
        return vec![call.launch()];
    }
    let after = norm::Norm {
        step: step.rows,
        x: h,
        faults: step.faults,
        norm,
        out: next,
        layer: step.layer + call.params.checked,
        zero: 0,
    };
    vec![call.launch(), norm::norm(after, step.bucket)]
}

/// `out = silu(gate x) * (up x)`.
pub fn gate_up(
    step: &Step,
    gate: &Linear,
    up: &Linear,
    x: &Activation,
    out: &Activation,
    scratch: &Scratch,
) -> Vec<Launch> {
    if gate.matrix.format == up.matrix.format && !step.prefills(&[gate.matrix, up.matrix]) {
        let mut call = Call::new(step, &[*gate, *up], x, scratch);
        call.params.epilogue = Epilogue::GateUp as u32;
        call.params.next = *out;
        call.params.out = scratch.rows;
        call.params.width = gate.matrix.outputs;
        return vec![call.launch()];
    }
    let mut launches = Vec::new();
    let apart: &[&[Linear]] =
        if gate.matrix.format == up.matrix.format { &[&[*gate, *up]] } else { &[&[*gate], &[*up]] };
    for (i, linears) in apart.iter().enumerate() {
        let mut call = Call::new(step, linears, x, scratch);
        call.params.out = scratch.rows;
        call.params.width = 2 * gate.matrix.outputs;
        call.params.parts[0].column = i as u32 * gate.matrix.outputs;
        launches.push(call.launch());
    }
    let gated = Gated {
        step: step.rows,
        products: scratch.rows,
        faults: step.faults,
        next: *out,
        layer: step.layer,
        zero: 0,
    };
    let grid = [out.width.div_ceil(SEGMENT as u32).div_ceil(WARPS), step.bucket, 1];
    launches.push(Launch::new(Source::Linear, "gated_rows", grid, WARPS * 32, 0, &gated));
    launches
}

/// q, k and v of each row, and what becomes of them ([`Heads`], which holds the biases too).
pub fn qkv(
    step: &Step,
    matrices: &[Matrix; 3],
    x: &Activation,
    heads: &Heads,
    scratch: &Scratch,
) -> Vec<Launch> {
    let width = matrices.iter().map(|matrix| matrix.outputs).sum();
    let mut launches = Vec::new();
    let mut placed = true;
    for (i, first) in matrices.iter().enumerate() {
        if matrices[..i].iter().any(|other| other.format == first.format) {
            continue;
        }
        let same = |matrix: &&Matrix| matrix.format == first.format;
        let parts: Vec<Linear> =
            matrices.iter().filter(same).map(|&matrix| Linear { matrix, bias: 0 }).collect();
        let mut call = Call::new(step, &parts, x, scratch);
        call.params.out = scratch.rows;
        call.params.width = width;
        let columns = matrices.iter().scan(0, |column, matrix| {
            *column += matrix.outputs;
            Some((*column - matrix.outputs, matrix))
        });
        for (part, (column, _)) in
            call.params.parts.iter_mut().zip(columns.filter(|(_, matrix)| same(matrix)))
        {
            part.column = column;
        }
        placed &= call.place_heads(heads);
        launches.push(call.launch());
    }
    if !placed {
        let place = heads::Place { step: step.rows, products: scratch.rows, heads: *heads };
        launches.push(heads::place(place, step.bucket));
    }
    launches
}

/// What becomes of the sums (`linear.cuh`).
#[derive(Clone, Copy)]
enum Epilogue {
    Residual = 1,
    GateUp = 2,
    Heads = 3,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
struct Part {
    weights: DevicePtr,
    bias: DevicePtr,
    outputs: u32,
    tile: u32,
    column: u32,
    zero: u32,
}

/// The parameter block of `linear.cuh`, where the fields are explained.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
struct Params {
    x: DevicePtr,
    scales: DevicePtr,
    step: DevicePtr,
    faults: DevicePtr,
    out: DevicePtr,
    sums: DevicePtr,
    counters: DevicePtr,
    parts: [Part; 3],
    norm: RmsNorm,
    next: Activation,
    heads: Heads,
    inputs: u32,
    stride: u32,
    segments: u32,
    tiles: u32,
    warps: u32,
    span: u32,
    share: u32,
    epilogue: u32,
    checked: u32,
    rounded: u32,
    width: u32,
    groups: u32,
    expected: u32,
    layer: u32,
    passes: u32,
    zero: u32,
}

/// Parameters of `gated_rows`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Gated {
    step: DevicePtr,
    products: DevicePtr,
    faults: DevicePtr,
    next: Activation,
    layer: u32,
    zero: u32,
}

/// A launch in the making: products of matrices of one format.
struct Call {
    params: Params,
    format: Format,
    step: Step,
    /// Rows of a block.
    columns: u32,
    prefills: bool,
}

impl Call {
    /// `parts` get consecutive columns of the output.
    fn new(step: &Step, parts: &[Linear], x: &Activation, scratch: &Scratch) -> Self {
        let Matrix { format, inputs, .. } = parts[0].matrix;
        assert_eq!(inputs, x.width, "the activation fits the matrix");
        let (values, scales) = if format.is_float() {
            (x.values, 0)
        } else if format.is_wide() {
            (x.wide, x.wide_scales)
        } else {
            (x.narrow, x.narrow_scales)
        };
        assert_ne!(values, 0, "the activation holds what {format} weights read");
        let mut params = Params {
            x: values,
            scales,
            step: step.rows,
            faults: step.faults,
            sums: scratch.sums,
            counters: scratch.counters,
            inputs,
            stride: inputs.next_multiple_of(SEGMENT as u32),
            segments: inputs.div_ceil(SEGMENT as u32),
            layer: step.layer,
            expected: 1,
            ..Params::default()
        };
        for (part, Linear { matrix, bias }) in params.parts.iter_mut().zip(parts) {
            assert!(matrix.format == format && matrix.inputs == inputs, "matrices of a launch are alike");
            let Matrix { outputs, data: weights, .. } = *matrix;
            *part = Part { weights, bias: *bias, outputs, tile: params.tiles, column: params.width, zero: 0 };
            params.tiles += outputs.div_ceil(tile_outputs(format) as u32);
            params.width += outputs;
        }
        let columns = if format.is_float() { step.bucket.min(8) } else { step.bucket.clamp(8, 64) };
        let columns = if format.is_float() && columns > 1 { 8 } else { columns };
        let prefills = step.prefills(&parts.iter().map(|part| part.matrix).collect::<Vec<_>>());
        Self { params, format, step: *step, columns, prefills }
    }

    fn tile(&self) -> u32 {
        tile_outputs(self.format) as u32
    }

    /// Lets the launch place heads, if its blocks make parts of one head each.
    fn place_heads(&mut self, heads: &Heads) -> bool {
        let block = self.tile() << self.warps();
        let fits = self.columns <= 8 && heads.head_dim.is_multiple_of(block);
        if fits {
            self.params.epilogue = Epilogue::Heads as u32;
            self.params.heads = *heads;
        }
        fits
    }

    /// log2 of the tiles of a block.
    fn warps(&self) -> u32 {
        if self.is(Epilogue::GateUp) {
            (64 / self.tile()).ilog2()
        } else if self.format.is_float() || self.columns == 8 {
            0
        } else {
            1
        }
    }

    fn launch(mut self) -> Launch {
        if self.prefills {
            return self.launch_gemm();
        }
        let (gate_up, heads) = (self.is(Epilogue::GateUp), self.is(Epilogue::Heads));
        let (tile, warps) = (self.tile(), self.warps());
        let (outputs, strands) = (tile << warps, WARPS >> warps);
        let params = &mut self.params;
        params.warps = warps;
        params.passes = self.columns.div_ceil(pass(self.format));
        if gate_up {
            params.tiles = 2 * params.parts[0].outputs.div_ceil(32) * (32 / tile);
        }
        let grid = [params.tiles.div_ceil(1 << warps), self.step.bucket.div_ceil(self.columns)];
        (params.expected, params.groups) = if gate_up && params.next.wide != 0 {
            let expected = SEGMENT as u32 / (outputs / 2);
            (expected, grid[1] * grid[0].div_ceil(expected))
        } else if heads {
            (params.heads.head_dim / outputs, grid[1] * (params.width / params.heads.head_dim))
        } else if params.norm.weight != 0 {
            (grid[0] * grid[1], 1)
        } else {
            (1, 0)
        };
        // Floats of a segment's sums.
        let distance = self.columns * (outputs + 4);
        let rounds = (SHARED / (4 * distance)).saturating_sub(1) / strands;
        params.span = (rounds.max(1) * strands).min(params.segments.next_multiple_of(strands));
        let splits = self.split(grid[0] * grid[1], strands, distance);
        let params = &mut self.params;
        let held = if splits > 1 { 0 } else { params.span } + 1;
        let staging = if heads { WARPS * params.heads.head_dim } else { 256 };
        assert!(params.groups as usize <= COUNTERS, "there are counters for every group of blocks");
        let shared = 4 * (held * distance).max(staging);
        let grid = [grid[0], grid[1], splits];
        Launch::new(Source::Linear, kernel(self.format, self.columns), grid, WARPS * 32, shared, params)
    }

    /// The launch by tiles of many rows.
    fn launch_gemm(&self) -> Launch {
        let (name, step, scales, sums) = match self.format {
            Format::Q8 => ("gemm_q8", 1024, 256, 0),
            Format::Q4 => ("gemm_q4", 512, 256, 0),
            Format::Q4K => ("gemm_q4k", 512, 256, 16),
            Format::Q6K => ("gemm_q6k", 1024, 288, 0),
            float => panic!("{float} weights have no products of integers"),
        };
        let row_scales = if self.format.is_wide() { 4 } else { 32 };
        let tiles = GEMM_OUTPUTS / self.tile();
        let stage = tiles * step + GEMM_ROWS * 64;
        let held = 3 * stage + 2 * (tiles * scales + GEMM_ROWS * row_scales) + GEMM_ROWS * sums;
        let shared = held.max(GEMM_THREADS * 20 * 4);
        let outputs = self.params.tiles.div_ceil(tiles);
        let grid = [self.step.bucket.div_ceil(GEMM_ROWS), outputs, 1];
        Launch::new(Source::Gemm, name, grid, GEMM_THREADS, shared, &self.params)
    }

    /// Cuts K where `blocks` do not fill the card; how many blocks share it then.
    fn split(&mut self, blocks: u32, strands: u32, distance: u32) -> u32 {
        let params = &mut self.params;
        params.share = params.segments;
        let sums = blocks as usize * params.segments as usize * distance as usize;
        let counters = (params.groups + blocks) as usize;
        if self.columns > 16 || blocks >= self.step.multiprocessors || sums > SUMS || counters > COUNTERS {
            return 1;
        }
        let wanted = (2 * self.step.multiprocessors / blocks).min(params.segments / strands).max(1);
        params.share = params.segments.div_ceil(wanted).next_multiple_of(strands).min(params.segments);
        params.segments.div_ceil(params.share)
    }

    fn is(&self, epilogue: Epilogue) -> bool {
        self.params.epilogue == epilogue as u32
    }
}

/// Most rows of one pass over a tile's weights: more would not fit the registers.
const fn pass(format: Format) -> u32 {
    match format {
        Format::Q8 | Format::Q4 | Format::Q4K => 32,
        Format::Q6K => 16,
        Format::Bf16 | Format::F32 => 8,
    }
}

/// The kernel for `columns` rows, which takes several passes for more than [`pass`].
fn kernel(format: Format, columns: u32) -> &'static str {
    match (format, columns) {
        (Format::Q8, 8) => "linear_q8_8",
        (Format::Q8, 16) => "linear_q8_16",
        (Format::Q8, _) => "linear_q8_32",
        (Format::Q4, 8) => "linear_q4_8",
        (Format::Q4, 16) => "linear_q4_16",
        (Format::Q4, _) => "linear_q4_32",
        (Format::Q4K, 8) => "linear_q4k_8",
        (Format::Q4K, 16) => "linear_q4k_16",
        (Format::Q4K, _) => "linear_q4k_32",
        (Format::Q6K, 8) => "linear_q6k_8",
        (Format::Q6K, _) => "linear_q6k_16",
        (Format::Bf16, 1) => "linear_bf16_1",
        (Format::Bf16, _) => "linear_bf16_8",
        (Format::F32, 1) => "linear_f32_1",
        (Format::F32, _) => "linear_f32_8",
    }
}
