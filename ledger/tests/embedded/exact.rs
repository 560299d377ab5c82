//! The arithmetic of docs/numerics.md on this processor, written apart from the one that models run on.

/// Bits of a result: every NaN is the same.
pub(crate) fn bits(x: f32) -> u32 {
    if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() }
}

/// e^x in the steps of the definition; above 88 it is no number in particular.
pub(crate) fn exp(x: f32) -> f32 {
    const POLYNOMIAL: [u32; 6] =
        [0x3c09_1d10, 0x3d2a_ac79, 0x3e2a_aa49, 0x3eff_fffe, 0x3f80_0000, 0x3f80_0000];
    if x.is_nan() {
        return f32::NAN;
    }
    if x < -87.0 {
        return 0.0;
    }
    let t = x.mul_add(f32::from_bits(0x3fb8_aa3b), 12_582_912.0);
    let n = t - 12_582_912.0;
    let r = n.mul_add(f32::from_bits(0xb5bf_be8e), n.mul_add(f32::from_bits(0xbf31_7200), x));
    let first = f32::from_bits(0x3ab5_11e8);
    let p = POLYNOMIAL.into_iter().fold(first, |p, c| p.mul_add(r, f32::from_bits(c)));
    f32::from_bits(bits(p).wrapping_add(t.to_bits().wrapping_sub(0x4b40_0000) << 23))
}

pub(crate) fn silu(x: f32) -> f32 {
    let e = exp(-x.abs());
    x * if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

/// The value of binary16's bits, by its definition.
pub(crate) fn from_half(half: u16) -> f32 {
    let sign = if half & 0x8000 == 0 { 1.0 } else { -1.0 };
    let fraction = f64::from(half & 0x3ff);
    let magnitude = match i32::from(half >> 10 & 31) {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        exponent => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    (sign * magnitude) as f32
}

/// The nearest binary16: multiples of the last place of its size are counted in binary64, which holds them all.
pub(crate) fn to_half(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7e00;
    }
    let sign = ((x.to_bits() >> 16) & 0x8000) as u16;
    let magnitude = f64::from(x.abs());
    let mut exponent = 1;
    while exponent < 31 && magnitude >= 2f64.powi(exponent - 14) {
        exponent += 1;
    }
    if exponent == 31 {
        return sign | 0x7c00;
    }
    let count = (magnitude / 2f64.powi(exponent - 25)).round_ties_even() as u16;
    sign | (count + ((exponent as u16 - 1) << 10))
}

/// The nearest bfloat16 as binary32.
pub(crate) fn to_brain(x: f32) -> f32 {
    if !x.is_finite() {
        return x;
    }
    let (low, rest) = (x.to_bits() & 0xffff_0000, x.to_bits() & 0xffff);
    let is_up = rest > 0x8000 || rest == 0x8000 && low & 0x1_0000 != 0;
    f32::from_bits(if is_up { low + 0x1_0000 } else { low })
}

pub(crate) fn to_int8(x: f32) -> i8 {
    x.round_ties_even().clamp(-127.0, 127.0) as i8
}
