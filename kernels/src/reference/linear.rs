//! The activation quantiser and the dot products of linear layers (sections 2 and 3).

use crate::{
    round::{f32_from_bf16, f32_from_f16},
    tensor::{
        Format, GROUP, SEGMENT, WeightMatrix,
        kquants::{Q4K, Q4K_PART, Q6K, Q6K_PART},
        q4_value, scale_of,
    },
};

/// Largest magnitudes below 2^-100 quantise to zero.
pub(crate) const QUANTISE_FLOOR: f32 = f32::from_bits(27 << 23);

/// Quantises up to `N` values (a group: 32, or 256 before super-blocks) into `q`, the rest of which becomes
/// 0, and returns their scale; `None` if one of them is not finite, which is a fault.
pub fn quantise_group<const N: usize>(x: &[f32], q: &mut [i8; N]) -> Option<f32> {
    *q = [0; N];
    let amax = x.iter().map(|value| value.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    if amax >= 0x7f80_0000 {
        return None;
    }
    let amax = f32::from_bits(amax);
    if amax < QUANTISE_FLOOR {
        return Some(0.0);
    }
    let scale = amax / 127.0;
    let inverse = 1.0 / scale;
    for (q, value) in q.iter_mut().zip(x) {
        *q = (value * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    Some(scale)
}

/// Row `row` of a `q8` or `q4` matrix times a quantised activation row (`[groups][32]` int8 and one
/// scale per group).
///
/// # Panics
/// If the weights are not grouped or the lengths do not fit.
pub fn dot(weights: &WeightMatrix, row: usize, q: &[i8], scales: &[f32]) -> f32 {
    let groups = weights.columns().div_ceil(GROUP);
    assert!(q.len() == groups * GROUP && scales.len() == groups, "the activation has the row's groups");
    let bytes = weights.row(row);
    let size = weights.format().row_bytes(GROUP);
    let value = |bytes: &[u8], i: usize| match weights.format() {
        Format::Q8 => bytes[i] as i8,
        Format::Q4 => q4_value(bytes, i),
        other => panic!("{other} weights have no groups of 32"),
    };
    let mut y = 0.0;
    for (t, segment) in bytes.chunks(size * (SEGMENT / GROUP)).enumerate() {
        let mut sum = 0.0f32;
        for (i, group) in segment.chunks_exact(size).enumerate() {
            let g = t * (SEGMENT / GROUP) + i;
            let idot: i32 =
                (0..GROUP).map(|i| i32::from(value(&group[2..], i)) * i32::from(q[g * GROUP + i])).sum();
            let scale = scale_of(group) * scales[g];
            sum = scale.mul_add(idot as f32, sum);
        }
        y = if t == 0 { sum } else { y + sum };
    }
    y
}

/// Row `row` of a `q4_k` or `q6_k` matrix times an activation row quantised by 256 values (`[blocks][256]`
/// int8 and one scale per block).
///
/// # Panics
/// If the weights have no super-blocks or the lengths do not fit.
pub fn dot_wide(weights: &WeightMatrix, row: usize, q: &[i8], scales: &[f32]) -> f32 {
    assert!(
        q.len() == weights.columns() && scales.len() * SEGMENT == q.len(),
        "the activation has the row's blocks"
    );
    let bytes = weights.row(row);
    let size = weights.format().row_bytes(SEGMENT);
    let mut y = 0.0;
    for (t, (block, x)) in bytes.chunks_exact(size).zip(q.as_chunks().0).enumerate() {
        let sum = match weights.format() {
            Format::Q4K => segment_q4k(Q4K(block.try_into().expect("a whole block")), x, scales[t]),
            Format::Q6K => segment_q6k(Q6K(block.try_into().expect("a whole block")), x, scales[t]),
            other => panic!("{other} weights have no super-blocks"),
        };
        y = if t == 0 { sum } else { y + sum };
    }
    y
}

/// Sum of `dot` over the sub-blocks of `N` values; it is given each one's index and values.
fn parts<const N: usize>(x: &[i8; SEGMENT], dot: impl Fn(usize, &[i8; N]) -> i32) -> i32 {
    x.as_chunks().0.iter().enumerate().map(|(j, x)| dot(j, x)).sum()
}

fn segment_q4k(block: Q4K<'_>, x: &[i8; SEGMENT], scale: f32) -> f32 {
    let products = parts::<Q4K_PART>(x, |j, x| {
        let value = |i: usize| i32::from(block.value(j * Q4K_PART + i));
        let idot: i32 = x.iter().enumerate().map(|(i, &x)| value(i) * i32::from(x)).sum();
        i32::from(block.scale(j)) * idot
    });
    let minima =
        parts::<Q4K_PART>(x, |j, x| i32::from(block.min(j)) * x.iter().map(|&x| i32::from(x)).sum::<i32>());
    let offset = f32_from_f16(block.dmin()) * scale * minima as f32;
    (f32_from_f16(block.d()) * scale).mul_add(products as f32, -offset)
}

fn segment_q6k(block: Q6K<'_>, x: &[i8; SEGMENT], scale: f32) -> f32 {
    let products = parts::<Q6K_PART>(x, |j, x| {
        let value = |i: usize| i32::from(block.biased(j * Q6K_PART + i)) - 32;
        let idot: i32 = x.iter().enumerate().map(|(i, &x)| value(i) * i32::from(x)).sum();
        i32::from(block.scale(j)) * idot
    });
    f32_from_f16(block.d()) * scale * products as f32
}

/// Row `row` of a `bf16` or `f32` matrix times an activation row (`columns` values).
///
/// # Panics
/// If the weights are grouped or the lengths do not fit.
pub fn dot_float(weights: &WeightMatrix, row: usize, x: &[f32]) -> f32 {
    assert_eq!(x.len(), weights.columns(), "the activation has the row's columns");
    let bytes = weights.row(row);
    let weight = |k: usize| match weights.format() {
        Format::Bf16 => f32_from_bf16(u16::from_le_bytes([bytes[2 * k], bytes[2 * k + 1]])),
        Format::F32 => {
            f32::from_le_bytes([bytes[4 * k], bytes[4 * k + 1], bytes[4 * k + 2], bytes[4 * k + 3]])
        }
        other => panic!("{other} weights take quantised activations"),
    };
    let mut y = 0.0;
    for (t, segment) in x.chunks(SEGMENT).enumerate() {
        let mut sum = 0.0f32;
        for (i, value) in segment.iter().enumerate() {
            sum = weight(t * SEGMENT + i).mul_add(*value, sum);
        }
        y = if t == 0 { sum } else { y + sum };
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiser_at_its_edges() {
        let mut q = [1; GROUP];
        assert_eq!(quantise_group(&[1.0, f32::NAN], &mut q), None);
        assert_eq!(quantise_group(&[f32::NEG_INFINITY], &mut q), None);
        assert_eq!(quantise_group(&[-0.0, QUANTISE_FLOOR / 2.0], &mut q), Some(0.0));
        assert_eq!(q, [0; GROUP]);
        assert_eq!(quantise_group(&[QUANTISE_FLOOR], &mut q), Some(QUANTISE_FLOOR / 127.0));
        assert_eq!(q[0], 127);
        assert_eq!(quantise_group(&[f32::MAX, -f32::MAX, f32::MAX / 254.0], &mut q), Some(f32::MAX / 127.0));
        assert_eq!(q[..2], [127, -127]);
        // Halves go to even.
        assert_eq!(quantise_group(&[127.0, 2.5, 3.5, -0.5], &mut q), Some(1.0));
        assert_eq!(q[..4], [127, 2, 4, 0]);
    }

    #[test]
    fn a_negative_zero_does_not_survive_a_chain() {
        let weights = WeightMatrix::quantise(Format::F32, 1, 1, &[-0.0]).unwrap();
        assert_eq!(dot_float(&weights, 0, &[1.0]).to_bits(), 0);
    }

    #[test]
    fn small_products_by_hand() {
        let values: Vec<f32> = (0..40).map(|i| i as f32 - 20.0).collect();
        let x: Vec<f32> = (0..40).map(|i| (i % 5) as f32).collect();
        let exact: f32 = values.iter().zip(&x).map(|(a, b)| a * b).sum();
        for format in [Format::Bf16, Format::F32] {
            let weights = WeightMatrix::quantise(format, 1, 40, &values).unwrap();
            assert_eq!(dot_float(&weights, 0, &x), exact);
        }
        let weights = WeightMatrix::quantise(Format::Q8, 1, 40, &values).unwrap();
        let (mut q, mut scales) = (Vec::new(), Vec::new());
        for chunk in x.chunks(GROUP) {
            let mut group = [0; GROUP];
            scales.push(quantise_group(chunk, &mut group).unwrap());
            q.extend(group);
        }
        assert!((dot(&weights, 0, &q, &scales) - exact).abs() < 5.0);
    }

    /// From -1 to 1 in steps of 1/500, in no order.
    fn scattered(i: usize) -> f32 {
        ((i * 7919 + i * i * 31) % 1001) as f32 / 500.0 - 1.0
    }

    #[test]
    fn super_blocks_agree_with_plain_arithmetic() {
        let columns = 3 * SEGMENT;
        let values: Vec<f32> = (0..2 * columns).map(|i| scattered(i) * 0.1 + 0.01).collect();
        let x: Vec<f32> = (0..columns).map(|i| scattered(i + 5000) * 3.0).collect();
        let (mut q, mut scales) = (Vec::new(), Vec::new());
        for chunk in x.chunks(SEGMENT) {
            let mut group = [0; SEGMENT];
            scales.push(quantise_group(chunk, &mut group).unwrap());
            q.extend(group);
        }
        for format in [Format::Q4K, Format::Q6K] {
            let weights = WeightMatrix::quantise(format, 2, columns, &values).unwrap();
            let mut decoded = vec![0.0; columns];
            for row in 0..2 {
                weights.decode_row(row, &mut decoded);
                let quantised = (0..columns).map(|k| f64::from(q[k]) * f64::from(scales[k / SEGMENT]));
                let products = decoded.iter().zip(quantised).map(|(w, x)| f64::from(*w) * x);
                let (exact, size) =
                    products.fold((0.0, 0.0), |(sum, size), p: f64| (sum + p, size + p.abs()));
                let actual = f64::from(dot_wide(&weights, row, &q, &scales));
                assert!((actual - exact).abs() < size * 1e-6, "{format}: {actual} instead of {exact}");
            }
        }
    }

    /// The largest sums there can be: past 2^24, where the conversion to f32 rounds.
    #[test]
    fn super_blocks_at_the_ends_of_their_range() {
        let mut block = vec![0xff; 144];
        block[..4].copy_from_slice(&[0x00, 0x3c, 0x00, 0x3c]);
        let weights = WeightMatrix::from_bytes(Format::Q4K, 1, SEGMENT, block).unwrap();
        let (products, minima) = (8 * 63 * 32 * 15 * 127, 8 * 63 * 32 * 127);
        assert_eq!(dot_wide(&weights, 0, &[127; SEGMENT], &[1.0]), products as f32 - minima as f32);
        assert_eq!(dot_wide(&weights, 0, &[-127; SEGMENT], &[1.0]), minima as f32 - products as f32);
        let mut block = vec![0; 192];
        block.extend([0x80; 16]);
        block.extend([0x00, 0x3c]);
        let weights = WeightMatrix::from_bytes(Format::Q6K, 1, SEGMENT, block).unwrap();
        assert_eq!(dot_wide(&weights, 0, &[127; SEGMENT], &[1.0]), (256 * 32 * 128 * 127) as f32);
        assert_eq!(dot_wide(&weights, 0, &[0; SEGMENT], &[0.0]).to_bits(), 0);
    }
}
