//! The activation quantiser and the dot products of linear layers (sections 2 and 3).

use crate::{
    round::f32_from_bf16,
    tensor::{Format, GROUP, SEGMENT, WeightMatrix, q4_value, scale_of},
};

/// Largest magnitudes below 2^-100 quantise to zero.
pub(crate) const QUANTISE_FLOOR: f32 = f32::from_bits(27 << 23);

/// Quantises up to 32 values into `q` (the rest of which becomes 0) and returns their scale; `None`
/// if one of them is not finite, which is a fault.
pub fn quantise_group(x: &[f32], q: &mut [i8; GROUP]) -> Option<f32> {
    *q = [0; GROUP];
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
        Format::Bf16 | Format::F32 => panic!("float weights have no groups"),
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
        Format::Q8 | Format::Q4 => panic!("grouped weights take quantised activations"),
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
}
