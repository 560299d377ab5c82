//! Sixteen lanes in one register: AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::simd::{LANES, Line, Op, Simd};

/// Proof that the CPU has AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The proof, if it holds.
    pub(crate) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn run<O: Op>(s: Avx512, op: O) -> O::Out {
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

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    type P = __m512i;

    const Q8_BIAS: i32 = 128;
    const REGISTERS: usize = 32;
    const NARROW_SUMS: bool = false;

    fn dispatch<O: Op>(self, op: O) -> O::Out {
        vector!(run(self, op))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        vector!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        vector!(_mm512_loadu_ps(from.as_ptr()))
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        vector!(_mm512_storeu_ps(to.as_mut_ptr(), x))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F {
        vector!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F {
        vector!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    fn store_f16(self, x: Self::F, to: &mut [u16; LANES]) {
        vector!({
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), half);
        })
    }
    #[inline(always)]
    fn round_bf16(self, x: Self::F) -> Self::F {
        vector!({
            let u = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(u), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(0xffff_0000_u32.cast_signed())))
        })
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        vector!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        vector!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        vector!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        vector!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        vector!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn fms(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        vector!(_mm512_fmsub_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        vector!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        vector!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        vector!(_mm512_abs_ps(x))
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        vector!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x))
    }
    #[inline(always)]
    fn keep_nan(self, a: Self::F, y: Self::F) -> Self::F {
        vector!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a), y, a))
    }
    #[inline(always)]
    fn scale_exp(self, p: Self::F, t: Self::F) -> Self::F {
        vector!({
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(t));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent))
        })
    }
    #[inline(always)]
    fn sum_tree(self, x: Self::F) -> f32 {
        vector!({
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        })
    }
    #[inline(always)]
    fn max_lane(self, x: Self::F) -> f32 {
        vector!(_mm512_reduce_max_ps(x))
    }

    #[inline(always)]
    fn magnitude(self, x: Self::F) -> Self::I {
        vector!(_mm512_castps_si512(_mm512_abs_ps(x)))
    }
    #[inline(always)]
    fn max_u(self, a: Self::I, b: Self::I) -> Self::I {
        vector!(_mm512_max_epu32(a, b))
    }
    #[inline(always)]
    fn max_lane_u(self, x: Self::I) -> u32 {
        vector!(_mm512_reduce_max_epu32(x))
    }
    #[inline(always)]
    fn store_i8(self, x: Self::F, to: &mut [i8; LANES]) -> i32 {
        vector!({
            let q = _mm512_cvtps_epi32(x);
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(q));
            _mm512_reduce_add_epi32(q)
        })
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        vector!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        vector!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn to_f32(self, x: Self::I) -> Self::F {
        vector!(_mm512_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn line(self, from: &Line) -> Self::B {
        vector!(_mm512_load_si512(from.0.as_ptr().cast()))
    }
    #[inline(always)]
    fn nibbles(self, x: Self::B) -> (Self::B, Self::B) {
        vector!({
            let low = _mm512_set1_epi8(15);
            (_mm512_and_si512(x, low), _mm512_and_si512(_mm512_srli_epi16::<4>(x), low))
        })
    }
    #[inline(always)]
    fn dot_q8(self, acc: Self::I, w: Self::B, x: i32) -> Self::I {
        vector!(_mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x)))
    }
    #[inline(always)]
    fn dot_q4(self, acc: Self::I, w: Self::B, x: i32) -> Self::I {
        vector!(_mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x)))
    }

    #[inline(always)]
    fn and(self, x: Self::B, mask: u8) -> Self::B {
        vector!(_mm512_and_si512(x, _mm512_set1_epi8(mask as i8)))
    }
    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        vector!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn shl<const N: u32>(self, x: Self::B) -> Self::B {
        vector!(_mm512_slli_epi16::<N>(x))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, x: Self::B) -> Self::B {
        vector!(_mm512_srli_epi16::<N>(x))
    }
    #[inline(always)]
    fn splat_p(self) -> Self::P {
        vector!(_mm512_setzero_si512())
    }
    #[inline(always)]
    fn dot_p(self, acc: Self::P, w: Self::B, x: i32) -> Self::P {
        vector!(_mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x)))
    }
    #[inline(always)]
    fn factor<const J: u32>(self, x: Self::B) -> Self::I {
        vector!(_mm512_srai_epi32::<24>(_mm512_sllv_epi32(x, _mm512_set1_epi32(24 - 8 * J as i32))))
    }
    #[inline(always)]
    fn add_scaled(self, acc: Self::I, sums: Self::P, factor: Self::I) -> Self::I {
        vector!(_mm512_add_epi32(acc, _mm512_mullo_epi32(sums, factor)))
    }
    #[inline(always)]
    fn pairs(self, x: Self::B) -> (Self::I, Self::I) {
        vector!((_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x)), _mm512_srai_epi16::<8>(x)))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: Self::I, pairs: Self::I, x: i32) -> Self::I {
        vector!(_mm512_dpwssd_epi32(acc, pairs, _mm512_set1_epi32(x)))
    }
}
