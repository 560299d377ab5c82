//! Sixteen lanes in two registers: AVX2 with FMA and F16C.

use std::arch::x86_64::*;

use super::simd::{LANES, Line, Op, Simd};

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof, if it holds.
    pub(crate) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn run<O: Op>(s: Avx2, op: O) -> O::Out {
    op.run(s)
}

/// An intrinsic whose instructions `self` proves to be there; pointers come from references to arrays of
/// the width read or written.
macro_rules! vector {
    ($e:expr) => {
        // SAFETY: the receiver is a proof that the CPU has the instructions, and memory is
        // reached only through references to arrays of the vector's width.
        unsafe { $e }
    };
}

/// The same intrinsic on both halves.
macro_rules! halves {
    (|$($x:ident),+| $e:expr) => {
        vector!([{ $(let $x = $x[0];)+ $e }, { $(let $x = $x[1];)+ $e }])
    };
}

impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];
    type P = [__m256i; 2];

    const Q8_BIAS: i32 = 0;
    const REGISTERS: usize = 8;
    const NARROW_SUMS: bool = true;

    fn dispatch<O: Op>(self, op: O) -> O::Out {
        vector!(run(self, op))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        vector!([_mm256_set1_ps(x); 2])
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        vector!([_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr())])
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        vector!({
            _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(to[8..].as_mut_ptr(), x[1]);
        })
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F {
        vector!([
            _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(from[8..].as_ptr().cast())),
        ])
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F {
        let x = vector!([_mm_loadu_si128(from.as_ptr().cast()), _mm_loadu_si128(from[8..].as_ptr().cast())]);
        halves!(|x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x))))
    }
    #[inline(always)]
    fn store_f16(self, x: Self::F, to: &mut [u16; LANES]) {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
        vector!({
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_cvtps_ph::<NEAREST>(x[0]));
            _mm_storeu_si128(to[8..].as_mut_ptr().cast(), _mm256_cvtps_ph::<NEAREST>(x[1]));
        })
    }
    #[inline(always)]
    fn round_bf16(self, x: Self::F) -> Self::F {
        halves!(|x| {
            let u = _mm256_castps_si256(x);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(u), _mm256_set1_epi32(1));
            let up = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(0xffff_0000_u32.cast_signed())))
        })
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(|a, b| _mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(|a, b| _mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(|a, b| _mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(|a, b| _mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        halves!(|a, b, c| _mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn fms(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        halves!(|a, b, c| _mm256_fmsub_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(|a, b| _mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(|a, b| _mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        halves!(|x| _mm256_andnot_ps(_mm256_set1_ps(-0.0), x))
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        halves!(|a, b, x, y| _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
    }
    #[inline(always)]
    fn keep_nan(self, a: Self::F, y: Self::F) -> Self::F {
        halves!(|a, y| _mm256_blendv_ps(y, a, _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a)))
    }
    #[inline(always)]
    fn scale_exp(self, p: Self::F, t: Self::F) -> Self::F {
        halves!(|p, t| {
            let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(t));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent))
        })
    }
    #[inline(always)]
    fn sum_tree(self, x: Self::F) -> f32 {
        vector!({
            let x = _mm256_add_ps(x[0], x[1]);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        })
    }
    #[inline(always)]
    fn max_lane(self, x: Self::F) -> f32 {
        vector!({
            let x = _mm256_max_ps(x[0], x[1]);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        })
    }

    #[inline(always)]
    fn magnitude(self, x: Self::F) -> Self::I {
        let x = self.abs(x);
        halves!(|x| _mm256_castps_si256(x))
    }
    #[inline(always)]
    fn max_u(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(|a, b| _mm256_max_epu32(a, b))
    }
    #[inline(always)]
    fn max_lane_u(self, x: Self::I) -> u32 {
        vector!({
            let x = _mm256_max_epu32(x[0], x[1]);
            let x = _mm_max_epu32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let x = _mm_max_epu32(x, _mm_shuffle_epi32::<0b1110>(x));
            let x = _mm_max_epu32(x, _mm_shuffle_epi32::<0b01>(x));
            _mm_cvtsi128_si32(x).cast_unsigned()
        })
    }
    #[inline(always)]
    fn store_i8(self, x: Self::F, to: &mut [i8; LANES]) -> i32 {
        vector!({
            let (a, b) = (_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1]));
            // Packing works in 128-bit halves; the permutation puts the quarters in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_packs_epi16(low, high));
            let sum = _mm256_add_epi32(a, b);
            let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
            let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b1110>(sum));
            _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32::<0b01>(sum)))
        })
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        vector!([_mm256_set1_epi32(x); 2])
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(|a, b| _mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn to_f32(self, x: Self::I) -> Self::F {
        halves!(|x| _mm256_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn line(self, from: &Line) -> Self::B {
        vector!([_mm256_load_si256(from.0.as_ptr().cast()), _mm256_load_si256(from.0[32..].as_ptr().cast()),])
    }
    #[inline(always)]
    fn nibbles(self, x: Self::B) -> (Self::B, Self::B) {
        let low = halves!(|x| _mm256_and_si256(x, _mm256_set1_epi8(15)));
        let high = halves!(|x| _mm256_and_si256(_mm256_srli_epi16::<4>(x), _mm256_set1_epi8(15)));
        (low, high)
    }
    #[inline(always)]
    fn dot_q8(self, acc: Self::I, w: Self::B, x: i32) -> Self::I {
        // Both magnitudes are at most 127, so a pair of products stays within 16 bits.
        halves!(|acc, w| {
            let signed = _mm256_sign_epi8(_mm256_set1_epi32(x), w);
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), signed);
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
    #[inline(always)]
    fn dot_q4(self, acc: Self::I, w: Self::B, x: i32) -> Self::I {
        halves!(|acc, w| {
            let pairs = _mm256_maddubs_epi16(w, _mm256_set1_epi32(x));
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }

    #[inline(always)]
    fn and(self, x: Self::B, mask: u8) -> Self::B {
        halves!(|x| _mm256_and_si256(x, _mm256_set1_epi8(mask as i8)))
    }
    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        halves!(|a, b| _mm256_or_si256(a, b))
    }
    #[inline(always)]
    fn shl<const N: u32>(self, x: Self::B) -> Self::B {
        halves!(|x| _mm256_sll_epi16(x, _mm_cvtsi32_si128(N as i32)))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, x: Self::B) -> Self::B {
        halves!(|x| _mm256_srl_epi16(x, _mm_cvtsi32_si128(N as i32)))
    }
    #[inline(always)]
    fn splat_p(self) -> Self::P {
        vector!([_mm256_setzero_si256(); 2])
    }
    #[inline(always)]
    fn dot_p(self, acc: Self::P, w: Self::B, x: i32) -> Self::P {
        // Two products a lane of 16 bits: at most 8 * 2 * 15 * 127 = 30480 or 2 * 2 * 63 * 127 = 32004.
        halves!(|acc, w| _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, _mm256_set1_epi32(x))))
    }
    #[inline(always)]
    fn factor<const J: u32>(self, x: Self::B) -> Self::I {
        // The byte goes to the upper half of both 16-bit numbers of its lane, and down again with its sign.
        halves!(|x| {
            let lanes = _mm256_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12);
            let byte = _mm256_add_epi32(lanes, _mm256_set1_epi32(J as i32));
            let index = _mm256_or_si256(_mm256_slli_epi32::<8>(byte), _mm256_slli_epi32::<24>(byte));
            _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(x, index))
        })
    }
    #[inline(always)]
    fn add_scaled(self, acc: Self::I, sums: Self::P, factor: Self::I) -> Self::I {
        halves!(|acc, sums, factor| _mm256_add_epi32(acc, _mm256_madd_epi16(sums, factor)))
    }
    #[inline(always)]
    fn pairs(self, x: Self::B) -> (Self::I, Self::I) {
        let even = halves!(|x| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)));
        (even, halves!(|x| _mm256_srai_epi16::<8>(x)))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: Self::I, pairs: Self::I, x: i32) -> Self::I {
        halves!(|acc, pairs| _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi32(x))))
    }
}
