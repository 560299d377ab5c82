//! Super-blocks of 256 values in the bytes of GGUF's Q4_K and Q6_K.

use super::SEGMENT;
use crate::round::{f16_from_f32, f32_from_f16};

/// Bytes of a `q4_k` super-block: f16 d, f16 dmin, 12 bytes of scales and minima, 128 of values.
pub(crate) const Q4K_BYTES: usize = 2 + 2 + 12 + SEGMENT / 2;
/// Bytes of a `q6_k` super-block: low 4 bits, high 2 bits, int8 scales, f16 d.
pub(crate) const Q6K_BYTES: usize = SEGMENT / 2 + SEGMENT / 4 + Q6K_PARTS + 2;
/// Values of a `q4_k` sub-block, which share a scale and a minimum.
pub(crate) const Q4K_PART: usize = 32;
/// Sub-blocks of a `q4_k` super-block.
pub(crate) const Q4K_PARTS: usize = SEGMENT / Q4K_PART;
/// Values of a `q6_k` sub-block, which share a scale.
pub(crate) const Q6K_PART: usize = 16;
/// Sub-blocks of a `q6_k` super-block.
pub(crate) const Q6K_PARTS: usize = SEGMENT / Q6K_PART;

/// A `q4_k` super-block. Byte `32 u + i` of the values holds value `64 u + i` in its low and value
/// `64 u + 32 + i` in its high nibble.
#[derive(Clone, Copy)]
pub(crate) struct Q4K<'a>(pub(crate) &'a [u8; Q4K_BYTES]);

impl<'a> Q4K<'a> {
    /// Scale of the sub-blocks' scales, as bits.
    pub(crate) fn d(self) -> u16 {
        u16::from_le_bytes([self.0[0], self.0[1]])
    }

    /// Scale of the sub-blocks' minima, as bits.
    pub(crate) fn dmin(self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }

    /// The packed scales and minima: bytes 0..4 hold scales 0..4 and bytes 4..8 minima 0..4 in their low
    /// six bits, bytes 8..12 the low nibbles of scales (low) and minima (high) 4..8, whose upper two bits
    /// are the top bits of bytes 0..8.
    pub(crate) fn packed(self) -> &'a [u8] {
        &self.0[4..16]
    }

    /// Scale of sub-block `j`, 0..=63.
    pub(crate) fn scale(self, j: usize) -> u8 {
        let packed = self.packed();
        if j < 4 { packed[j] & 63 } else { packed[j + 4] & 15 | packed[j - 4] >> 6 << 4 }
    }

    /// Minimum of sub-block `j`, 0..=63.
    pub(crate) fn min(self, j: usize) -> u8 {
        let packed = self.packed();
        if j < 4 { packed[j + 4] & 63 } else { packed[j + 4] >> 4 | packed[j] >> 6 << 4 }
    }

    /// Value `k`, 0..=15.
    pub(crate) fn value(self, k: usize) -> u8 {
        let byte = self.0[16 + k / 64 * 32 + k % 32];
        if k % 64 < 32 { byte & 15 } else { byte >> 4 }
    }

    pub(crate) fn is_finite(self) -> bool {
        f32_from_f16(self.d()).is_finite() && f32_from_f16(self.dmin()).is_finite()
    }

    /// The values. Only the difference rounds; the products are exact in f32.
    pub(crate) fn decode(self, out: &mut [f32; SEGMENT]) {
        for (k, out) in out.iter_mut().enumerate() {
            let j = k / Q4K_PART;
            *out = q4k_value(self.d(), self.dmin(), self.scale(j), self.min(j), self.value(k));
        }
    }
}

/// A `q4_k` value from its parts.
pub(crate) fn q4k_value(d: u16, dmin: u16, scale: u8, min: u8, q: u8) -> f32 {
    f32_from_f16(d) * f32::from(scale) * f32::from(q) - f32_from_f16(dmin) * f32::from(min)
}

/// A `q6_k` super-block, in two halves of 128 values. Byte `64 h + i` of the low bits holds value
/// `128 h + i` in its low and `128 h + 64 + i` in its high nibble; byte `32 h + i` of the high bits those of
/// values `128 h + i`, `+ 32`, `+ 64` and `+ 96`, lowest bits first.
#[derive(Clone, Copy)]
pub(crate) struct Q6K<'a>(pub(crate) &'a [u8; Q6K_BYTES]);

impl Q6K<'_> {
    /// Scale of the sub-blocks' scales, as bits.
    pub(crate) fn d(self) -> u16 {
        u16::from_le_bytes([self.0[Q6K_BYTES - 2], self.0[Q6K_BYTES - 1]])
    }

    /// Scale of sub-block `j`.
    pub(crate) fn scale(self, j: usize) -> i8 {
        self.0[SEGMENT / 2 + SEGMENT / 4 + j] as i8
    }

    /// Value `k` plus 32, 0..=63.
    pub(crate) fn biased(self, k: usize) -> u8 {
        let (half, within) = (k / 128, k % 128);
        let low = self.0[64 * half + within % 64] >> (within / 64 * 4) & 15;
        let high = self.0[SEGMENT / 2 + 32 * half + within % 32] >> (within / 32 * 2) & 3;
        low | high << 4
    }

    pub(crate) fn is_finite(self) -> bool {
        f32_from_f16(self.d()).is_finite()
    }

    /// The values. The products are exact in f32.
    pub(crate) fn decode(self, out: &mut [f32; SEGMENT]) {
        for (k, out) in out.iter_mut().enumerate() {
            *out = q6k_value(self.d(), self.scale(k / Q6K_PART), self.biased(k));
        }
    }
}

/// A `q6_k` value from its parts, the last one plus 32.
pub(crate) fn q6k_value(d: u16, scale: i8, biased: u8) -> f32 {
    f32_from_f16(d) * f32::from(scale) * (f32::from(biased) - 32.0)
}

/// Quantises a super-block; `None` if a scale leaves f16. Each sub-block spans from its least value, or
/// zero if that is less, to its largest in 15 steps; steps and minima are rounded to 6 bits each.
pub(super) fn encode_q4k(values: &[f32; SEGMENT]) -> Option<[u8; Q4K_BYTES]> {
    let (parts, _) = values.as_chunks::<Q4K_PART>();
    let least = |part: &[f32; Q4K_PART]| part.iter().fold(0.0f32, |least, &value| least.min(value));
    let most = |part: &[f32; Q4K_PART]| part.iter().fold(part[0], |most, &value| most.max(value));
    let mut steps = [0.0f32; Q4K_PARTS];
    let mut depths = [0.0f32; Q4K_PARTS];
    for (j, part) in parts.iter().enumerate() {
        depths[j] = -least(part);
        steps[j] = (most(part) + depths[j]) / 15.0;
    }
    let largest = |values: [f32; Q4K_PARTS]| values.into_iter().fold(0.0f32, f32::max);
    let (d, step) = half(largest(steps) / 63.0)?;
    let (dmin, depth) = half(largest(depths) / 63.0)?;
    let scales = steps.map(|value| nearest(value, step, 0.0, 63.0) as u8);
    let mins = depths.map(|value| nearest(value, depth, 0.0, 63.0) as u8);
    let mut bytes = [0; Q4K_BYTES];
    bytes[..2].copy_from_slice(&d.to_le_bytes());
    bytes[2..4].copy_from_slice(&dmin.to_le_bytes());
    for j in 0..4 {
        bytes[4 + j] = scales[j] | scales[j + 4] >> 4 << 6;
        bytes[8 + j] = mins[j] | mins[j + 4] >> 4 << 6;
        bytes[12 + j] = scales[j + 4] & 15 | mins[j + 4] << 4;
    }
    for (j, part) in parts.iter().enumerate() {
        let (scale, min) = (step * f32::from(scales[j]), depth * f32::from(mins[j]));
        for (i, value) in part.iter().enumerate() {
            let q = nearest(value + min, scale, 0.0, 15.0) as u8;
            bytes[16 + j / 2 * Q4K_PART + i] |= q << (j % 2 * 4);
        }
    }
    Some(bytes)
}

/// Quantises a super-block; `None` if the scale leaves f16. In each sub-block the value of largest
/// magnitude (the first of equals) becomes -32; the scales follow from the largest of them (the first of
/// equals), which becomes -128.
pub(super) fn encode_q6k(values: &[f32; SEGMENT]) -> Option<[u8; Q6K_BYTES]> {
    let (parts, _) = values.as_chunks::<Q6K_PART>();
    let mut steps = [0.0f32; Q6K_PARTS];
    for (step, part) in steps.iter_mut().zip(parts) {
        *step = loudest(part) / -32.0;
    }
    let (d, unit) = half(loudest(&steps) / -128.0)?;
    let mut bytes = [0; Q6K_BYTES];
    bytes[Q6K_BYTES - 2..].copy_from_slice(&d.to_le_bytes());
    for (j, part) in parts.iter().enumerate() {
        let scale = nearest(steps[j], unit, -128.0, 127.0) as i8;
        bytes[SEGMENT / 2 + SEGMENT / 4 + j] = scale as u8;
        for (i, value) in part.iter().enumerate() {
            let q = (nearest(*value, unit * f32::from(scale), -32.0, 31.0) + 32.0) as u8;
            let (half, within) = ((j * Q6K_PART + i) / 128, (j * Q6K_PART + i) % 128);
            bytes[64 * half + within % 64] |= (q & 15) << (within / 64 * 4);
            bytes[SEGMENT / 2 + 32 * half + within % 32] |= (q >> 4) << (within / 32 * 2);
        }
    }
    Some(bytes)
}

/// The value of largest magnitude, the first of equals.
fn loudest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |loudest: f32, &value| if value.abs() > loudest.abs() { value } else { loudest })
}

/// Rounded to f16: bits and value; `None` if it leaves f16.
fn half(value: f32) -> Option<(u16, f32)> {
    let bits = f16_from_f32(value);
    let rounded = f32_from_f16(bits);
    rounded.is_finite().then_some((bits, rounded))
}

/// `value / unit` to the nearest integer, ties to even, within bounds; 0 where the unit is 0.
fn nearest(value: f32, unit: f32, least: f32, most: f32) -> f32 {
    if unit == 0.0 { 0.0 } else { (value / unit).round_ties_even().clamp(least, most) }
}
