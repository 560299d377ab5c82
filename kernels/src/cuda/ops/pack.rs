//! Weights in the order in which lanes read them.
//!
//! A matrix is cut into tiles of 16 outputs (32 for float formats) and these along K into segments of 256; tiles
//! follow one another, and a tile's segments. Missing outputs and the tail of K are filled with values that
//! leave every sum as it is, down to the sign of a zero.
//!
//! A *fragment* is what a warp gives the tensor cores for 16 outputs and 32 k: 16 bytes for each of 32 lanes. Lane `l`
//! holds output `2 (l / 4)` in its words 0 and 2 and the one after it in words 1 and 3. Words 0 and 1 are k
//! `8 (l % 4) ..+ 4` of the group and words 2 and 3 the next four; in `q6_k`, whose sub-blocks have 16 values, they
//! are `4 (l % 4) ..+ 4` and the same 16 further on. *By halves* means: one entry for each of the outputs
//! 0, 2, .. 14, then for 1, 3, .. 15.
//!
//! | format | a segment of a tile |
//! |---|---|
//! | `q8` | 8 fragments of int8; f16 scales `[16 by halves][8 groups]`: 4352 bytes |
//! | `q4` | 4 pairs of fragments, low nibbles for the even group; a nibble is `q ^ 8`; scales as `q8`: 2304 bytes |
//! | `q4_k` | 4 pairs of fragments of q; `[16 by halves]` the 16 bytes before a super-block's values: 2304 bytes |
//! | `q6_k` | 4 pairs of the low 4 bits of `q ^ 32`; 2 fragments whose bytes hold the high 2 bits of four groups, lowest bits first; int8 scales `[16 by halves][16]`; f16 d `[16 by halves]`: 3360 bytes |
//! | `bf16` | `[32 octets of k][32 outputs][8]`: 16384 bytes |
//! | `f32` | `[64 quartets of k][32 outputs][4]`: 32768 bytes |

use crate::tensor::{
    Format, GROUP, Q4_BYTES, Q8_BYTES, SEGMENT, WeightMatrix,
    kquants::{Q4K, Q4K_BYTES, Q6K, Q6K_BYTES, Q6K_PARTS},
};

/// Bytes of a fragment of one-byte values.
const FRAGMENT: usize = 512;
/// The f16 scale of a group that is not there: any multiple of -0 added to a sum leaves it as it is.
const NO_SCALE: u16 = 0x8000;

/// Outputs of a tile.
pub const fn tile_outputs(format: Format) -> usize {
    if format.is_float() { 32 } else { 16 }
}

/// Bytes of one segment of a tile.
pub const fn segment_bytes(format: Format) -> usize {
    match format {
        Format::Q8 => 8 * FRAGMENT + 16 * 16,
        Format::Q4 | Format::Q4K => 4 * FRAGMENT + 16 * 16,
        Format::Q6K => 6 * FRAGMENT + 16 * 18,
        Format::Bf16 => 32 * SEGMENT * 2,
        Format::F32 => 32 * SEGMENT * 4,
    }
}

/// Bytes of a packed tile of a matrix with `inputs` columns.
pub const fn tile_bytes(format: Format, inputs: usize) -> usize {
    inputs.div_ceil(SEGMENT) * segment_bytes(format)
}

/// Bytes of a packed matrix.
pub const fn packed_bytes(format: Format, outputs: usize, inputs: usize) -> usize {
    outputs.div_ceil(tile_outputs(format)) * tile_bytes(format, inputs)
}

/// Packs tiles `first ..` into `out`, as many as it has room for ([`tile_bytes`] each). Tiles are independent:
/// threads may share a matrix.
///
/// # Panics
/// If `out` is no whole number of tiles or reaches past the matrix.
pub fn pack_tiles(weights: &WeightMatrix, first: usize, out: &mut [u8]) {
    let (format, size) = (weights.format(), tile_bytes(weights.format(), weights.columns()));
    assert!(out.len().is_multiple_of(size), "whole tiles are packed");
    for (i, tile) in out.chunks_exact_mut(size).enumerate() {
        let from = (first + i) * tile_outputs(format);
        assert!(from < weights.rows(), "the matrix has the tile");
        pack_tile(weights, from, tile);
    }
}

/// The whole matrix, packed by this thread.
pub fn pack(weights: &WeightMatrix) -> Vec<u8> {
    let mut out = vec![0; packed_bytes(weights.format(), weights.rows(), weights.columns())];
    pack_tiles(weights, 0, &mut out);
    out
}

fn pack_tile(weights: &WeightMatrix, first: usize, tile: &mut [u8]) {
    let format = weights.format();
    fill(format, tile);
    let rows = first..weights.rows().min(first + tile_outputs(format));
    for (r, row) in rows.enumerate() {
        let segments = weights.row(row).chunks(format.row_bytes(SEGMENT));
        for (bytes, segment) in segments.zip(tile.chunks_exact_mut(segment_bytes(format))) {
            match format {
                Format::Q8 => q8(bytes, r, segment),
                Format::Q4 => q4(bytes, r, segment),
                Format::Q4K => q4k(bytes.try_into().expect("a whole block"), r, segment),
                Format::Q6K => q6k(bytes.try_into().expect("a whole block"), r, segment),
                Format::Bf16 => float::<2>(bytes, r, segment),
                Format::F32 => float::<4>(bytes, r, segment),
            }
        }
    }
}

/// Makes a tile that adds nothing.
fn fill(format: Format, tile: &mut [u8]) {
    tile.fill(0);
    match format {
        Format::Q8 | Format::Q4 => {
            for segment in tile.chunks_exact_mut(segment_bytes(format)) {
                let scales = segment.len() - 16 * 16;
                segment[scales..].as_chunks_mut().0.fill(NO_SCALE.to_le_bytes());
            }
        }
        Format::Bf16 => tile.as_chunks_mut().0.fill([0, 0x80]),
        Format::F32 => tile.as_chunks_mut().0.fill([0, 0, 0, 0x80]),
        Format::Q4K | Format::Q6K => {}
    }
}

/// Where value `k` of a group stands in the fragment of output `r`, where the lane's runs are `STEP` apart.
fn place<const STEP: usize>(r: usize, k: usize) -> usize {
    let (lane, second) = if STEP == 8 { (k / 8, k / 4 % 2) } else { (k % 16 / 4, k / 16) };
    (r / 2 * 4 + lane) * 16 + second * 8 + r % 2 * 4 + k % 4
}

/// Position of output `r` by halves.
fn by_halves(r: usize) -> usize {
    r % 2 * 8 + r / 2
}

fn q8(groups: &[u8], r: usize, segment: &mut [u8]) {
    for (g, group) in groups.chunks_exact(Q8_BYTES).enumerate() {
        for (run, values) in group[2..].as_chunks::<4>().0.iter().enumerate() {
            segment[g * FRAGMENT + place::<8>(r, 4 * run)..][..4].copy_from_slice(values);
        }
        segment[8 * FRAGMENT + by_halves(r) * 16 + 2 * g..][..2].copy_from_slice(&group[..2]);
    }
}

fn q4(groups: &[u8], r: usize, segment: &mut [u8]) {
    for (g, group) in groups.chunks_exact(Q4_BYTES).enumerate() {
        for k in 0..GROUP {
            let q = group[2 + k % 16] >> (k / 16 * 4) & 15;
            segment[g / 2 * FRAGMENT + place::<8>(r, k)] |= (q ^ 8) << (g % 2 * 4);
        }
        segment[4 * FRAGMENT + by_halves(r) * 16 + 2 * g..][..2].copy_from_slice(&group[..2]);
    }
}

fn q4k(block: &[u8; Q4K_BYTES], r: usize, segment: &mut [u8]) {
    for k in 0..SEGMENT {
        let g = k / GROUP;
        segment[g / 2 * FRAGMENT + place::<8>(r, k % GROUP)] |= Q4K(block).value(k) << (g % 2 * 4);
    }
    segment[4 * FRAGMENT + by_halves(r) * 16..][..16].copy_from_slice(&block[..16]);
}

fn q6k(block: &[u8; Q6K_BYTES], r: usize, segment: &mut [u8]) {
    let block = Q6K(block);
    for k in 0..SEGMENT {
        let (g, at) = (k / GROUP, place::<4>(r, k % GROUP));
        let q = block.biased(k) ^ 32;
        segment[g / 2 * FRAGMENT + at] |= (q & 15) << (g % 2 * 4);
        segment[(4 + g / 4) * FRAGMENT + at] |= (q >> 4) << (g % 4 * 2);
    }
    let scales = 6 * FRAGMENT + by_halves(r) * Q6K_PARTS;
    for (j, scale) in segment[scales..][..Q6K_PARTS].iter_mut().enumerate() {
        *scale = block.scale(j) as u8;
    }
    segment[6 * FRAGMENT + 16 * Q6K_PARTS + 2 * by_halves(r)..][..2]
        .copy_from_slice(&block.d().to_le_bytes());
}

/// Values of `N` bytes, 16 bytes of an output together.
fn float<const N: usize>(values: &[u8], r: usize, segment: &mut [u8]) {
    for (chunk, bytes) in values.chunks(16).enumerate() {
        segment[(chunk * 32 + r) * 16..][..bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tensor::kquants::{q4k_value, q6k_value};

    /// Value (`output`, `k`) as a kernel reads it from a packed matrix of `inputs` columns.
    fn value(format: Format, packed: &[u8], inputs: usize, output: usize, k: usize) -> f32 {
        let tile = &packed[output / tile_outputs(format) * tile_bytes(format, inputs)..];
        let s = &tile[k / SEGMENT * segment_bytes(format)..][..segment_bytes(format)];
        let (r, k) = (output % tile_outputs(format), k % SEGMENT);
        let (g, half) = (k / GROUP, by_halves(r));
        let f16 = |at: usize| crate::round::f32_from_f16(u16::from_le_bytes([s[at], s[at + 1]]));
        let nibble = |at: usize| s[g / 2 * FRAGMENT + at] >> (g % 2 * 4) & 15;
        match format {
            Format::Q8 => {
                f32::from(s[g * FRAGMENT + place::<8>(r, k % 32)] as i8)
                    * f16(8 * FRAGMENT + half * 16 + 2 * g)
            }
            Format::Q4 => {
                let q = (nibble(place::<8>(r, k % 32)) << 4) as i8 / 16;
                f32::from(q) * f16(4 * FRAGMENT + half * 16 + 2 * g)
            }
            Format::Q4K => {
                let mut block = [0; Q4K_BYTES];
                block[..16].copy_from_slice(&s[4 * FRAGMENT + half * 16..][..16]);
                let head = Q4K(&block);
                q4k_value(head.d(), head.dmin(), head.scale(g), head.min(g), nibble(place::<8>(r, k % 32)))
            }
            Format::Q6K => {
                let at = place::<4>(r, k % 32);
                let high = s[(4 + g / 4) * FRAGMENT + at] >> (g % 4 * 2) & 3;
                let scale = s[6 * FRAGMENT + half * 16 + k / 16] as i8;
                let d = 6 * FRAGMENT + 256 + 2 * half;
                q6k_value(u16::from_le_bytes([s[d], s[d + 1]]), scale, (nibble(at) | high << 4) ^ 32)
            }
            Format::Bf16 => {
                let at = (k / 8 * 32 + r) * 16 + k % 8 * 2;
                crate::round::f32_from_bf16(u16::from_le_bytes([s[at], s[at + 1]]))
            }
            Format::F32 => {
                let at = (k / 4 * 32 + r) * 16 + k % 4 * 4;
                f32::from_le_bytes(s[at..at + 4].try_into().unwrap())
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn unpacking_gives_the_values(f in 0..Format::ALL.len(), outputs in 1..50_usize, inputs in 1..600_usize, seed: u32) {
            let format = Format::ALL[f];
            let inputs = if format.fits(inputs) { inputs } else { inputs.next_multiple_of(SEGMENT) };
            let scattered = |i: usize| (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) as i32 as f32 / 1e9;
            let values: Vec<f32> = (0..outputs * inputs).map(scattered).collect();
            let weights = WeightMatrix::quantise(format, outputs, inputs, &values).unwrap();
            let packed = pack(&weights);
            prop_assert_eq!(packed.len(), packed_bytes(format, outputs, inputs));
            let mut row = vec![0.0; inputs];
            for output in 0..outputs {
                weights.decode_row(output, &mut row);
                for (k, &expected) in row.iter().enumerate() {
                    prop_assert_eq!(value(format, &packed, inputs, output, k).to_bits(), expected.to_bits());
                }
            }
        }
    }
}
