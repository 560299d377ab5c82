//! Floating-point results to the bit: those that Rust's operators leave open, or that are slow without hardware.

/// The NaN that arithmetic on f32 gives.
pub(super) const NAN: u32 = 0x7fff_ffff;
/// That of f16 and bf16.
const HALF_NAN: u32 = 0x7fff;

/// Bits of a result.
#[inline(always)]
pub(super) fn bits(x: f32) -> u32 {
    if x.is_nan() { NAN } else { x.to_bits() }
}

/// Bits of a result.
#[inline(always)]
pub(super) fn long_bits(x: f64) -> u64 {
    if x.is_nan() { 0x7fff_ffff_ffff_ffff } else { x.to_bits() }
}

/// a * b + c, rounded once. With `FUSED` the processor has an instruction for it; otherwise f64 does it: there the
/// product is exact, and a sum that is rounded to odd rounds to the same f32 as the sum itself.
#[inline(always)]
pub(super) fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED {
        return a.mul_add(b, c);
    }
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    let back = sum - product;
    let error = (product - (sum - back)) + (c - back);
    // Not where the sum is exact, infinite or a NaN.
    let inexact = error.abs() > 0.0;
    let bits = sum.to_bits();
    let away = (error > 0.0) == (sum > 0.0);
    let odd = if bits & 1 == 1 || away { bits | 1 } else { bits.wrapping_sub(1) };
    f64::from_bits(if inexact { odd } else { bits }) as f32
}

/// The lesser; of two zeros the negative one; a number rather than a NaN.
#[inline(always)]
pub(super) fn min(a: f32, b: f32) -> u32 {
    let equal = a.to_bits() | b.to_bits();
    let ordered = if a < b {
        a.to_bits()
    } else if b < a {
        b.to_bits()
    } else {
        equal
    };
    if a.is_nan() {
        bits(b)
    } else if b.is_nan() {
        a.to_bits()
    } else {
        ordered
    }
}

/// The greater; of two zeros the positive one; a number rather than a NaN.
#[inline(always)]
pub(super) fn max(a: f32, b: f32) -> u32 {
    let equal = a.to_bits() & b.to_bits();
    let ordered = if a > b {
        a.to_bits()
    } else if b > a {
        b.to_bits()
    } else {
        equal
    };
    if a.is_nan() {
        bits(b)
    } else if b.is_nan() {
        a.to_bits()
    } else {
        ordered
    }
}

/// As [`min`] for f64.
pub(super) fn long_min(a: f64, b: f64) -> u64 {
    if a.is_nan() || b.is_nan() {
        return long_bits(if a.is_nan() { b } else { a });
    }
    if a < b {
        a.to_bits()
    } else if b < a {
        b.to_bits()
    } else {
        a.to_bits() | b.to_bits()
    }
}

/// As [`max`] for f64.
pub(super) fn long_max(a: f64, b: f64) -> u64 {
    if a.is_nan() || b.is_nan() {
        return long_bits(if a.is_nan() { b } else { a });
    }
    if a > b {
        a.to_bits()
    } else if b > a {
        b.to_bits()
    } else {
        a.to_bits() & b.to_bits()
    }
}

/// f16 to f32.
#[inline(always)]
pub(super) fn from_half(half: u32) -> u32 {
    let magnitude = half & 0x7fff;
    // Shifted into place, only the bias is wrong: by 2^112, also for subnormals.
    let scaled = (f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000)).to_bits();
    let special = if magnitude > 0x7c00 { NAN } else { 0x7f80_0000 };
    let value = if magnitude >= 0x7c00 { special } else { scaled };
    if magnitude > 0x7c00 { NAN } else { value | (half & 0x8000) << 16 }
}

/// f32 to f16, to nearest even.
#[inline(always)]
pub(super) fn to_half(x: u32) -> u32 {
    let magnitude = x & 0x7fff_ffff;
    let rounded = magnitude.wrapping_add(0xfff + (magnitude >> 13 & 1));
    let normal = rounded.wrapping_sub(112 << 23) >> 13;
    // Adding 0.5 moves the last bit of a subnormal f16 to the last bit of the sum.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let value = if magnitude >= 0x4780_0000 { 0x7c00 } else { finite };
    if magnitude > 0x7f80_0000 { HALF_NAN } else { value | (x >> 16 & 0x8000) }
}

/// f32 to bf16, to nearest even.
#[inline(always)]
pub(super) fn to_brain(x: u32) -> u32 {
    let rounded = x.wrapping_add(0x7fff + (x >> 16 & 1)) >> 16;
    if x & 0x7fff_ffff > 0x7f80_0000 { HALF_NAN } else { rounded }
}

/// bf16 to f32.
#[inline(always)]
pub(super) fn from_brain(x: u32) -> u32 {
    bits(f32::from_bits(x << 16))
}

/// f64 to f32 so that rounding it again gives what rounding once would: to odd.
pub(super) fn to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    if nearest.is_nan() || f64::from(nearest) == x {
        return nearest;
    }
    // The other neighbour of x, unless this one is odd already.
    let bits = nearest.to_bits();
    let away = f64::from(nearest).abs() > x.abs();
    if bits & 1 == 1 {
        nearest
    } else if away {
        f32::from_bits(bits - 1)
    } else {
        f32::from_bits(bits + 1)
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_half_becomes_the_same_float() {
        for half in 0..=u16::MAX {
            let expected = f16::from_bits(half).to_f32();
            assert_eq!(from_half(u32::from(half)), bits(expected), "{half:#x}");
            let expected = bf16::from_bits(half).to_f32();
            assert_eq!(from_brain(u32::from(half)), bits(expected), "{half:#x}");
        }
    }

    /// Every float near a half, near the middle between two, and a sample of all others.
    #[test]
    fn floats_become_the_nearest_half() {
        let check = |x: u32| {
            let nan = f32::from_bits(x).is_nan();
            let expected = f16::from_f32(f32::from_bits(x)).to_bits();
            assert_eq!(to_half(x), if nan { HALF_NAN } else { u32::from(expected) }, "{x:#x}");
            let expected = bf16::from_f32(f32::from_bits(x)).to_bits();
            assert_eq!(to_brain(x), if nan { HALF_NAN } else { u32::from(expected) }, "{x:#x}");
        };
        for half in 0..0x7c00_u32 {
            let [low, high] = [half, half + 1].map(|half| f32::from_bits(from_half(half)));
            let middle = if high.is_finite() { (low + high) / 2.0 } else { 65520.0 };
            for bits in [low.to_bits(), middle.to_bits()] {
                for x in bits.saturating_sub(2)..=bits + 2 {
                    check(x);
                    check(x | 1 << 31);
                }
            }
        }
        (0..=u32::MAX).step_by(4099).for_each(check);
    }

    fn any_bits() -> impl Strategy<Value = f32> {
        let near = (any::<u32>(), 100_u32..154).prop_map(|(x, e)| x & 0x807f_ffff | e << 23);
        let simple =
            prop::sample::select(vec![0, 1 << 31, 1, 0x7f_ffff, 0x80_0000, 0x7f7f_ffff, 0x7f80_0000]);
        prop_oneof![any::<u32>(), near, simple].prop_map(f32::from_bits)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn fma_rounds_once(a in any_bits(), b in any_bits(), c in any_bits()) {
            prop_assert_eq!(bits(fma::<false>(a, b, c)), bits(a.mul_add(b, c)));
            // Where the product nearly cancels.
            let c = -(a * b);
            prop_assert_eq!(bits(fma::<false>(a, b, c)), bits(a.mul_add(b, c)));
        }

        #[test]
        fn odd_rounding_is_between(x in any::<f64>()) {
            let odd = f64::from(to_odd(x));
            prop_assert!(odd == x || x.is_nan() || to_odd(x).to_bits() & 1 == 1);
        }
    }

    #[test]
    fn least_and_greatest() {
        let nan = f32::from_bits(0xffc0_1234);
        for (a, b, least, greatest) in [
            (1.0, 2.0, 1.0, 2.0),
            (-0.0, 0.0, -0.0, 0.0),
            (0.0, -0.0, -0.0, 0.0),
            (nan, 3.0, 3.0, 3.0),
            (3.0, nan, 3.0, 3.0),
            (f32::NEG_INFINITY, -3.0, f32::NEG_INFINITY, -3.0),
        ] {
            assert_eq!((min(a, b), max(a, b)), (least.to_bits(), f32::to_bits(greatest)), "{a} {b}");
            let (a, b) = (f64::from(a), f64::from(b));
            let expected = (f64::from(least).to_bits(), f64::from(greatest).to_bits());
            assert_eq!((long_min(a, b), long_max(a, b)), expected, "{a} {b}");
        }
        assert_eq!((min(nan, nan), max(nan, nan)), (NAN, NAN));
    }
}
