//! Drawing tokens from logits (`draw.cu`).

use bytemuck::{Pod, Zeroable};

use crate::cuda::launch::{DevicePtr, Launch, Source};

/// Logits that one block of the first two kernels takes.
pub const CHUNK: u32 = 4096;

/// Buckets of the histogram of weights: 32 for each power of two up to 2^40, and one for 2^40.
pub const BUCKETS: u32 = 40 * 32 + 1;

/// What is asked of one row: [`Choice`](crate::reference::Choice) as the device reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Choice {
    /// Random bits.
    pub random: u64,
    /// Least weight relative to the largest, in units of 2^-32; 0: no bound.
    pub min_p: u64,
    /// Share of the weight that is kept, in units of 2^-32; from 2^32: all.
    pub top_p: u64,
    /// Below 2^-10: the largest logit.
    pub temperature: f32,
    /// Tokens that are kept; 0: all.
    pub top_k: u32,
    /// First of the row's edits in the list.
    pub first_edit: u32,
    /// How many they are.
    pub edits: u32,
    /// Row of the step that a fault of these logits belongs to.
    pub row: u32,
    /// Nothing.
    pub zero: u32,
}

/// One change of one logit: [`Edit`](crate::reference::Edit) as the device reads it. A row's edits stand in ascending
/// order of tokens, those of one token in the order in which they happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Edit {
    /// Which; one that is no token of the vocabulary is ignored.
    pub token: u32,
    /// 0: `l + value`; 1: `l > 0 ? l / value : l * value`.
    pub repeats: u32,
    /// The operand.
    pub value: f32,
}

/// Parameters of every kernel of the draw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Draw {
    /// u32: rows of logits in use.
    pub count: DevicePtr,
    /// f32 `[rows][vocabulary]`, edited in place.
    pub logits: DevicePtr,
    /// [`Choice`] `[rows]`.
    pub choices: DevicePtr,
    /// [`Edit`]s of all rows.
    pub edits: DevicePtr,
    /// u32 `[rows of the step]`.
    pub faults: DevicePtr,
    /// [`scratch_bytes`], zero when allocated; every launch leaves zero what must be.
    pub scratch: DevicePtr,
    /// u32 `[rows]`: the drawn tokens.
    pub tokens: DevicePtr,
    /// Values of a row.
    pub vocabulary: u32,
    /// Rows that the scratch is for.
    pub rows: u32,
    /// For faults.
    pub layer: u32,
    /// Nothing.
    pub zero: u32,
}

/// Bytes of [`Draw::scratch`] for `rows` rows.
pub const fn scratch_bytes(rows: usize, vocabulary: usize) -> usize {
    let chunks = vocabulary.div_ceil(CHUNK as usize);
    // Per row: sums and counts of the buckets, the chunks' largest, keys and a list of keys and tokens.
    let row = BUCKETS as usize * 12 + 4 + chunks * 8 + 16 + vocabulary.next_multiple_of(4) * 12;
    rows * row.next_multiple_of(16)
}

/// The launches of a draw, in order. If every row is greedy the first one is enough (`greedy`). `rows` is the bucket.
pub fn draw(params: Draw, rows: u32, greedy: bool) -> Vec<Launch> {
    let grid = [params.vocabulary.div_ceil(CHUNK), rows, 1];
    let mut launches = vec![Launch::new(Source::Draw, "draw_largest", grid, 256, 0, &params)];
    if !greedy {
        launches.push(Launch::new(Source::Draw, "draw_weigh", grid, 256, 0, &params));
        launches.push(Launch::new(Source::Draw, "draw_pick", [rows, 1, 1], 512, 0, &params));
    }
    launches
}
