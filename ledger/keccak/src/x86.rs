//! Four lanes with AVX2, eight with AVX-512.

use std::arch::x86_64::*;

use crate::{
    DIGEST,
    sponge::{self, Isa},
};

/// Proof that the processor has AVX2.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

/// Proof that the processor has AVX-512 F.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

/// An intrinsic whose instructions `self` proves to be there.
macro_rules! vector {
    ($e:expr) => {
        // SAFETY: the receiver is a proof that the processor has the instructions, and none of them reaches
        // memory.
        unsafe { $e }
    };
}

impl Avx2 {
    /// The proof, if it holds.
    pub(crate) fn new() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }

    /// The digests of messages of one length.
    pub(crate) fn hash(self, messages: &[&[u8]; 4]) -> [[u8; DIGEST]; 4] {
        #[target_feature(enable = "avx2")]
        fn enabled(isa: Avx2, messages: &[&[u8]; 4]) -> [[u8; DIGEST]; 4] {
            sponge::hash(isa, messages)
        }
        vector!(enabled(self, messages))
    }
}

impl Avx512 {
    /// The proof, if it holds.
    pub(crate) fn new() -> Option<Self> {
        is_x86_feature_detected!("avx512f").then_some(Self(()))
    }

    /// The digests of messages of one length.
    pub(crate) fn hash(self, messages: &[&[u8]; 8]) -> [[u8; DIGEST]; 8] {
        #[target_feature(enable = "avx512f")]
        fn enabled(isa: Avx512, messages: &[&[u8]; 8]) -> [[u8; DIGEST]; 8] {
            sponge::hash(isa, messages)
        }
        vector!(enabled(self, messages))
    }
}

impl Isa<4> for Avx2 {
    type Word = __m256i;

    #[inline(always)]
    fn pack(self, [a, b, c, d]: [u64; 4]) -> __m256i {
        vector!(_mm256_set_epi64x(d as i64, c as i64, b as i64, a as i64))
    }

    #[inline(always)]
    fn unpack(self, word: __m256i) -> [u64; 4] {
        // SAFETY: both are 32 bytes of which every value is valid.
        unsafe { std::mem::transmute(word) }
    }

    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i) -> __m256i {
        vector!(_mm256_xor_si256(a, b))
    }

    #[inline(always)]
    fn xor3(self, a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        self.xor(self.xor(a, b), c)
    }

    #[inline(always)]
    fn xor_and_not(self, a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        vector!(_mm256_xor_si256(a, _mm256_andnot_si256(b, c)))
    }

    #[inline(always)]
    fn rotate(self, a: __m256i, by: u32) -> __m256i {
        // Known when it is inlined, where these become shifts by immediates.
        vector!({
            let high = _mm256_sll_epi64(a, _mm_cvtsi64_si128(by.into()));
            let low = _mm256_srl_epi64(a, _mm_cvtsi64_si128((64 - by).into()));
            _mm256_or_si256(high, low)
        })
    }
}

impl Isa<8> for Avx512 {
    type Word = __m512i;

    #[inline(always)]
    fn pack(self, words: [u64; 8]) -> __m512i {
        let [a, b, c, d, e, f, g, h] = words.map(|word| word as i64);
        vector!(_mm512_set_epi64(h, g, f, e, d, c, b, a))
    }

    #[inline(always)]
    fn unpack(self, word: __m512i) -> [u64; 8] {
        // SAFETY: both are 64 bytes of which every value is valid.
        unsafe { std::mem::transmute(word) }
    }

    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        vector!(_mm512_xor_si512(a, b))
    }

    #[inline(always)]
    fn xor3(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        vector!(_mm512_ternarylogic_epi64::<0b1001_0110>(a, b, c))
    }

    #[inline(always)]
    fn xor_and_not(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        // Bit 4a + 2b + c of the constant.
        vector!(_mm512_ternarylogic_epi64::<0b1101_0010>(a, b, c))
    }

    #[inline(always)]
    fn rotate(self, a: __m512i, by: u32) -> __m512i {
        // Known when it is inlined, where this becomes a rotation by an immediate.
        vector!(_mm512_rolv_epi64(a, _mm512_set1_epi64(by.into())))
    }
}
