//! Sixteen lanes as arrays: every CPU, and the model the vector instructions are tested against.

use super::simd::{LANES, Line, Op, Simd};
use crate::round::{bf16_from_f32, f16_from_f32, f32_from_bf16, f32_from_f16};

/// Needs nothing of the CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|l| f(a[l], b[l]))
}

/// Four products of a row's weights and the activation.
#[inline(always)]
fn dot(acc: [i32; LANES], x: i32, weight: impl Fn(usize) -> i32) -> [i32; LANES] {
    let x = x.to_ne_bytes().map(|byte| i32::from(byte as i8));
    std::array::from_fn(|l| acc[l] + (0..4).map(|i| weight(4 * l + i) * x[i]).sum::<i32>())
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [u8; 64];
    type P = [i32; LANES];

    const Q8_BIAS: i32 = 0;
    const REGISTERS: usize = 8;
    const NARROW_SUMS: bool = false;

    fn dispatch<O: Op>(self, op: O) -> O::Out {
        op.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        *to = x;
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F {
        from.map(f32_from_f16)
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F {
        from.map(f32_from_bf16)
    }
    #[inline(always)]
    fn store_f16(self, x: Self::F, to: &mut [u16; LANES]) {
        *to = x.map(f16_from_f32);
    }
    #[inline(always)]
    fn round_bf16(self, x: Self::F) -> Self::F {
        x.map(|x| f32_from_bf16(bf16_from_f32(x)))
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|l| a[l].mul_add(b[l], c[l]))
    }
    #[inline(always)]
    fn fms(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|l| a[l].mul_add(b[l], -c[l]))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        x.map(f32::abs)
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        std::array::from_fn(|l| if a[l] < b[l] { x[l] } else { y[l] })
    }
    #[inline(always)]
    fn keep_nan(self, a: Self::F, y: Self::F) -> Self::F {
        zip(a, y, |a, y| if a.is_nan() { a } else { y })
    }
    #[inline(always)]
    fn scale_exp(self, p: Self::F, t: Self::F) -> Self::F {
        zip(p, t, |p, t| f32::from_bits(p.to_bits().wrapping_add(t.to_bits() << 23)))
    }
    #[inline(always)]
    fn sum_tree(self, mut x: Self::F) -> f32 {
        for width in [8, 4, 2, 1] {
            for l in 0..width {
                x[l] += x[l + width];
            }
        }
        x[0]
    }
    #[inline(always)]
    fn max_lane(self, x: Self::F) -> f32 {
        x.into_iter().fold(x[0], |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn magnitude(self, x: Self::F) -> Self::I {
        x.map(|x| (x.to_bits() & 0x7fff_ffff) as i32)
    }
    #[inline(always)]
    fn max_u(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|l| a[l].cast_unsigned().max(b[l].cast_unsigned()).cast_signed())
    }
    #[inline(always)]
    fn max_lane_u(self, x: Self::I) -> u32 {
        x.into_iter().fold(0, |max, x| max.max(x.cast_unsigned()))
    }
    #[inline(always)]
    fn store_i8(self, x: Self::F, to: &mut [i8; LANES]) -> i32 {
        *to = x.map(|x| x.round_ties_even() as i8);
        to.iter().map(|&q| i32::from(q)).sum()
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|l| a[l] + b[l])
    }
    #[inline(always)]
    fn to_f32(self, x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    fn line(self, from: &Line) -> Self::B {
        from.0
    }
    #[inline(always)]
    fn nibbles(self, x: Self::B) -> (Self::B, Self::B) {
        (x.map(|byte| byte & 15), x.map(|byte| byte >> 4))
    }
    #[inline(always)]
    fn dot_q8(self, acc: Self::I, w: Self::B, x: i32) -> Self::I {
        dot(acc, x, |i| i32::from(w[i] as i8))
    }
    #[inline(always)]
    fn dot_q4(self, acc: Self::I, w: Self::B, x: i32) -> Self::I {
        dot(acc, x, |i| i32::from(w[i]))
    }

    #[inline(always)]
    fn and(self, x: Self::B, mask: u8) -> Self::B {
        x.map(|byte| byte & mask)
    }
    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn shl<const N: u32>(self, x: Self::B) -> Self::B {
        x.map(|byte| byte << N)
    }
    #[inline(always)]
    fn shr<const N: u32>(self, x: Self::B) -> Self::B {
        x.map(|byte| byte >> N)
    }
    #[inline(always)]
    fn splat_p(self) -> Self::P {
        [0; LANES]
    }
    #[inline(always)]
    fn dot_p(self, acc: Self::P, w: Self::B, x: i32) -> Self::P {
        dot(acc, x, |i| i32::from(w[i]))
    }
    #[inline(always)]
    fn factor<const J: u32>(self, x: Self::B) -> Self::I {
        std::array::from_fn(|l| i32::from(x[4 * l + J as usize] as i8))
    }
    #[inline(always)]
    fn add_scaled(self, acc: Self::I, sums: Self::P, factor: Self::I) -> Self::I {
        std::array::from_fn(|l| acc[l] + sums[l] * factor[l])
    }
    #[inline(always)]
    fn pairs(self, x: Self::B) -> (Self::I, Self::I) {
        let pair = |l: usize, i: usize| {
            i32::from(x[4 * l + i] as i8) & 0xffff | i32::from(x[4 * l + i + 2] as i8) << 16
        };
        (std::array::from_fn(|l| pair(l, 0)), std::array::from_fn(|l| pair(l, 1)))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: Self::I, pairs: Self::I, x: i32) -> Self::I {
        let dot = |a: i32, b: i32| i32::from(a as i16) * i32::from(b as i16) + (a >> 16) * (b >> 16);
        std::array::from_fn(|l| acc[l] + dot(pairs[l], x))
    }
}
