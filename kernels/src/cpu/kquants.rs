//! Super-blocks of sixteen rows side by side (`q4_k`, `q6_k`), and their products with activations that
//! have one scale for 256 values.
//!
//! A block is one run of memory in the order in which it is used, scales included: a decoding step is then a
//! single stream of reads, which is what a core's prefetcher follows best, and of the size of the file's
//! (`q6_k` is padded by one part in a hundred). All that happens inside a super-block is integer arithmetic.

use super::simd::{Full, Half, LANES, Line, Simd};
use crate::{
    reference::constants::QUANTISE_FLOOR,
    tensor::{
        SEGMENT, WeightMatrix,
        kquants::{Q4K, Q4K_PART, Q4K_PARTS, Q6K, Q6K_PART, Q6K_PARTS, q4k_value, q6k_value},
    },
};

/// Lines of a sub-block of `q4_k`: line `i` holds K `8i .. 8i + 4` in the low nibbles and `8i + 4 .. 8i + 8`
/// in the high ones, as `q4` has it.
const Q4K_LINES: usize = Q4K_PART / 8;
/// Words (four consecutive K) of a sub-block of `q6_k`.
const Q6K_WORDS: usize = Q6K_PART / 4;
/// Sub-blocks of `q6_k` whose scales share a line.
const QUARTER: usize = 4;

/// A `q4_k` super-block of sixteen rows.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Block4 {
    /// The twelve bytes of each row's scales and minima, four of them in a line.
    scales: [Line; 3],
    values: [[Line; Q4K_LINES]; Q4K_PARTS],
    d: Half,
    dmin: Half,
}

/// A `q6_k` super-block of sixteen rows. The values have 32 added.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Block6 {
    quarters: [Quarter6; Q6K_PARTS / QUARTER],
    d: Half,
    padding: Half,
}

/// Four sub-blocks of `q6_k`.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Quarter6 {
    /// Byte `j` of each row's four is the scale of sub-block `j`.
    scales: Line,
    parts: [Part6; QUARTER],
}

/// A sub-block of `q6_k`: four words of sixteen rows.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Part6 {
    /// The upper two bits of all words, word 0 lowest.
    high: Line,
    /// Words 0 (low nibbles) and 1, words 2 and 3.
    low: [Line; 2],
}

/// 256 values of an activation row that share a scale.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Wide {
    q: [i8; SEGMENT],
    scale: f32,
    /// Sums of 32, in pairs of 16 bits: (0, 2), (1, 3), (4, 6), (5, 7), as [`Simd::pairs`] has the minima.
    sums: [i32; Q4K_PARTS / 2],
    /// Sums of 16 times -16 in the same order, twice of which undoes the bias of `q6_k`.
    unbias: [i32; Q6K_PARTS / 2],
}

impl Wide {
    /// Four consecutive values.
    #[inline(always)]
    fn word(&self, i: usize) -> i32 {
        let q = &self.q;
        i32::from_ne_bytes([q[4 * i] as u8, q[4 * i + 1] as u8, q[4 * i + 2] as u8, q[4 * i + 3] as u8])
    }
}

/// Numbers of 16 bits in pairs that stand two apart.
#[inline(always)]
fn paired<const N: usize>(values: impl Fn(usize) -> i32) -> [i32; N] {
    let mut pairs = [0; N];
    for (i, pair) in pairs.iter_mut().enumerate() {
        let first = i / 2 * 4 + i % 2;
        *pair = values(first) & 0xffff | values(first + 2) << 16;
    }
    pairs
}

/// `reference::quantise_group` of whole groups of 256; false if a value is not finite.
#[inline(always)]
pub(crate) fn quantise_wide<S: Simd>(s: S, x: &[Full], groups: &mut [Wide]) -> bool {
    let mut finite = true;
    for (x, group) in x.chunks_exact(SEGMENT / LANES).zip(groups) {
        let mut amax = s.splat_i(0);
        for x in x {
            amax = s.max_u(amax, s.magnitude(s.load(&x.0)));
        }
        let amax = s.max_lane_u(amax);
        finite &= amax < 0x7f80_0000;
        if amax < QUANTISE_FLOOR.to_bits() || amax >= 0x7f80_0000 {
            *group = bytemuck::Zeroable::zeroed();
            continue;
        }
        group.scale = f32::from_bits(amax) / 127.0;
        let inverse = s.splat(1.0 / group.scale);
        let (low, high) = (s.splat(-127.0), s.splat(127.0));
        let mut sums = [0; Q6K_PARTS];
        let parts = group.q.as_chunks_mut().0;
        for ((x, q), sum) in x.iter().zip(parts).zip(&mut sums) {
            *sum = s.store_i8(s.min(s.max(s.mul(s.load(&x.0), inverse), low), high), q);
        }
        group.sums = paired(|j| sums[2 * j] + sums[2 * j + 1]);
        group.unbias = paired(|j| -16 * sums[j]);
    }
    finite
}

/// Packs canonical `q4_k` weights, `blocks[block of rows][super-block]`.
pub(crate) fn pack_q4k(weights: &WeightMatrix, blocks: &mut [Block4]) {
    let across = weights.columns() / SEGMENT;
    for row in 0..weights.rows() {
        let (to, lane) = (&mut blocks[row / LANES * across..][..across], row % LANES);
        for (to, from) in to.iter_mut().zip(weights.row(row).as_chunks().0) {
            let from = Q4K(from);
            (to.d.0[lane], to.dmin.0[lane]) = (from.d(), from.dmin());
            for (line, packed) in to.scales.iter_mut().zip(from.packed().chunks_exact(4)) {
                line.0[4 * lane..][..4].copy_from_slice(packed);
            }
            for k in 0..SEGMENT {
                let (j, within) = (k / Q4K_PART, k % Q4K_PART);
                to.values[j][within / 8].0[4 * lane + k % 4] |= from.value(k) << (k / 4 % 2 * 4);
            }
        }
    }
}

/// Packs canonical `q6_k` weights, `blocks[block of rows][super-block]`.
pub(crate) fn pack_q6k(weights: &WeightMatrix, blocks: &mut [Block6]) {
    let across = weights.columns() / SEGMENT;
    for row in 0..weights.rows() {
        let (first, lane) = (row / LANES * across, row % LANES);
        for (t, from) in weights.row(row).as_chunks().0.iter().enumerate() {
            let (from, to) = (Q6K(from), &mut blocks[first + t]);
            to.d.0[lane] = from.d();
            for j in 0..Q6K_PARTS {
                to.quarters[j / QUARTER].scales.0[4 * lane + j % QUARTER] = from.scale(j) as u8;
            }
            for k in 0..SEGMENT {
                let (j, word) = (k / Q6K_PART, k / 4 % Q6K_WORDS);
                let part = &mut to.quarters[j / QUARTER].parts[j % QUARTER];
                let (byte, q) = (4 * lane + k % 4, from.biased(k));
                part.low[word / 2].0[byte] |= (q & 15) << (word % 2 * 4);
                part.high.0[byte] |= (q >> 4) << (2 * word);
            }
        }
    }
}

impl Block4 {
    /// The values of row `lane`.
    pub(crate) fn decode(&self, lane: usize, out: &mut [f32; SEGMENT]) {
        let mut canonical = [0; 144];
        for (to, line) in canonical[4..16].chunks_exact_mut(4).zip(&self.scales) {
            to.copy_from_slice(&line.0[4 * lane..][..4]);
        }
        let scales = Q4K(&canonical);
        for (k, out) in out.iter_mut().enumerate() {
            let (j, within) = (k / Q4K_PART, k % Q4K_PART);
            let q = self.values[j][within / 8].0[4 * lane + k % 4] >> (k / 4 % 2 * 4) & 15;
            *out = q4k_value(self.d.0[lane], self.dmin.0[lane], scales.scale(j), scales.min(j), q);
        }
    }
}

impl Block6 {
    /// The values of row `lane`.
    pub(crate) fn decode(&self, lane: usize, out: &mut [f32; SEGMENT]) {
        for (k, out) in out.iter_mut().enumerate() {
            let (j, word, byte) = (k / Q6K_PART, k / 4 % Q6K_WORDS, 4 * lane + k % 4);
            let quarter = &self.quarters[j / QUARTER];
            let part = &quarter.parts[j % QUARTER];
            let low = part.low[word / 2].0[byte] >> (word % 2 * 4) & 15;
            let high = part.high.0[byte] >> (2 * word) & 3;
            let scale = quarter.scales.0[4 * lane + j % QUARTER] as i8;
            *out = q6k_value(self.d.0[lane], scale, low | high << 4);
        }
    }
}

/// Sixteen rows of `q4_k` times `R` activation rows.
#[inline(always)]
pub(crate) fn dot_q4k<S: Simd, const R: usize>(s: S, blocks: &[Block4], x: [&[Wide]; R]) -> [S::F; R] {
    for x in &x {
        assert_eq!(x.len(), blocks.len(), "the activation has the row's blocks");
    }
    let mut y = [s.splat(0.0); R];
    for (t, block) in blocks.iter().enumerate() {
        let x = at(&x, t);
        let (a, b, c) = (s.line(&block.scales[0]), s.line(&block.scales[1]), s.line(&block.scales[2]));
        // The layout of `Q4K::packed`, on four bytes of each row at once.
        let scales = [s.and(a, 63), s.or(s.and(c, 15), s.and(s.shr::<2>(a), 48))];
        let mins = [s.and(b, 63), s.or(s.and(s.shr::<4>(c), 15), s.and(s.shr::<2>(b), 48))];
        let mut products = [s.splat_i(0); R];
        let mut minima = [s.splat_i(0); R];
        for half in 0..2 {
            let (even, odd) = s.pairs(mins[half]);
            for r in 0..R {
                minima[r] = s.dot_pairs(minima[r], even, x[r].sums[2 * half]);
                minima[r] = s.dot_pairs(minima[r], odd, x[r].sums[2 * half + 1]);
            }
            let j = 4 * half;
            part_q4k(s, &mut products, &block.values[j], s.factor::<0>(scales[half]), &x, j);
            part_q4k(s, &mut products, &block.values[j + 1], s.factor::<1>(scales[half]), &x, j + 1);
            part_q4k(s, &mut products, &block.values[j + 2], s.factor::<2>(scales[half]), &x, j + 2);
            part_q4k(s, &mut products, &block.values[j + 3], s.factor::<3>(scales[half]), &x, j + 3);
        }
        let (d, dmin) = (s.load_f16(&block.d.0), s.load_f16(&block.dmin.0));
        for r in 0..R {
            let scale = s.splat(x[r].scale);
            let offset = s.mul(s.mul(dmin, scale), s.to_f32(minima[r]));
            let segment = s.fms(s.mul(d, scale), s.to_f32(products[r]), offset);
            y[r] = if t == 0 { segment } else { s.add(y[r], segment) };
        }
    }
    y
}

/// Group `t` of each row.
#[inline(always)]
fn at<'a, const R: usize>(x: &[&'a [Wide]; R], t: usize) -> [&'a Wide; R] {
    let mut groups = [&x[0][t]; R];
    for r in 1..R {
        groups[r] = &x[r][t];
    }
    groups
}

/// Adds the scaled products of sub-block `j` to `acc`.
#[inline(always)]
fn part_q4k<S: Simd, const R: usize>(
    s: S,
    acc: &mut [S::I; R],
    lines: &[Line; Q4K_LINES],
    factor: S::I,
    x: &[&Wide; R],
    j: usize,
) {
    let mut sums = [s.splat_p(); R];
    for (i, line) in lines.iter().enumerate() {
        let (low, high) = s.nibbles(s.line(line));
        let word = j * (Q4K_PART / 4) + 2 * i;
        for r in 0..R {
            sums[r] = s.dot_p(sums[r], low, x[r].word(word));
            sums[r] = s.dot_p(sums[r], high, x[r].word(word + 1));
        }
    }
    for r in 0..R {
        acc[r] = s.add_scaled(acc[r], sums[r], factor);
    }
}

/// Sixteen rows of `q6_k` times `R` activation rows.
#[inline(always)]
pub(crate) fn dot_q6k<S: Simd, const R: usize>(s: S, blocks: &[Block6], x: [&[Wide]; R]) -> [S::F; R] {
    for x in &x {
        assert_eq!(x.len(), blocks.len(), "the activation has the row's blocks");
    }
    let mut y = [s.splat(0.0); R];
    for (t, block) in blocks.iter().enumerate() {
        let x = at(&x, t);
        let mut products = [s.splat_i(0); R];
        let mut unbias = [s.splat_i(0); R];
        for (quarter, Quarter6 { scales, parts }) in block.quarters.iter().enumerate() {
            let bytes = s.line(scales);
            let (even, odd) = s.pairs(bytes);
            for r in 0..R {
                unbias[r] = s.dot_pairs(unbias[r], even, x[r].unbias[2 * quarter]);
                unbias[r] = s.dot_pairs(unbias[r], odd, x[r].unbias[2 * quarter + 1]);
            }
            let j = QUARTER * quarter;
            part_q6k(s, &mut products, &parts[0], s.factor::<0>(bytes), &x, j);
            part_q6k(s, &mut products, &parts[1], s.factor::<1>(bytes), &x, j + 1);
            part_q6k(s, &mut products, &parts[2], s.factor::<2>(bytes), &x, j + 2);
            part_q6k(s, &mut products, &parts[3], s.factor::<3>(bytes), &x, j + 3);
        }
        let d = s.load_f16(&block.d.0);
        for r in 0..R {
            let sum = s.add_i(products[r], s.add_i(unbias[r], unbias[r]));
            let segment = s.mul(s.mul(d, s.splat(x[r].scale)), s.to_f32(sum));
            y[r] = if t == 0 { segment } else { s.add(y[r], segment) };
        }
    }
    y
}

/// Adds the scaled products of sub-block `j` to `acc`.
#[inline(always)]
fn part_q6k<S: Simd, const R: usize>(
    s: S,
    acc: &mut [S::I; R],
    part: &Part6,
    factor: S::I,
    x: &[&Wide; R],
    j: usize,
) {
    let high = s.line(&part.high);
    let (a, b) = s.nibbles(s.line(&part.low[0]));
    let (c, d) = s.nibbles(s.line(&part.low[1]));
    let a = s.or(a, s.and(s.shl::<4>(high), 48));
    let b = s.or(b, s.and(s.shl::<2>(high), 48));
    let c = s.or(c, s.and(high, 48));
    let d = s.or(d, s.and(s.shr::<2>(high), 48));
    let word = j * Q6K_WORDS;
    for r in 0..R {
        let mut sums = s.dot_p(s.splat_p(), a, x[r].word(word));
        sums = s.dot_p(sums, b, x[r].word(word + 1));
        if S::NARROW_SUMS {
            acc[r] = s.add_scaled(acc[r], sums, factor);
            sums = s.splat_p();
        }
        sums = s.dot_p(sums, c, x[r].word(word + 2));
        sums = s.dot_p(sums, d, x[r].word(word + 3));
        acc[r] = s.add_scaled(acc[r], sums, factor);
    }
}
