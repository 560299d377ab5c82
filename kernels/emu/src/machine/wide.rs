//! Arithmetic, compiled a second time for processors with wide vectors and a fused multiply-add.

use super::{arith, registers::Registers, tensor};
use crate::program::Arith;

/// How this processor computes.
#[derive(Clone, Copy)]
pub(super) struct Isa(Kind);

#[derive(Clone, Copy)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Isa {
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("popcnt")
        {
            return Self(Kind::Avx2);
        }
        Self(Kind::Portable)
    }

    /// [`arith::execute`].
    #[inline(always)]
    #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "a call of code for wide vectors"))]
    pub(super) fn execute(self, r: &mut Registers, op: &Arith, mask: u32) {
        match self.0 {
            Kind::Portable => arith::execute::<{ cfg!(target_arch = "aarch64") }>(r, op, mask),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: only `detect` makes this variant, where the processor has these features.
            Kind::Avx2 => unsafe { execute_avx2(r, op, mask) },
        }
    }

    /// [`tensor::products`].
    #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "a call of code for wide vectors"))]
    pub(super) fn products(self, a: &tensor::A, b: &tensor::B, rows: usize) -> tensor::Sums {
        match self.0 {
            Kind::Portable => tensor::products(a, b, rows),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: only `detect` makes this variant, where the processor has these features.
            Kind::Avx2 => unsafe { products_avx2(a, b, rows) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,popcnt")]
fn execute_avx2(r: &mut Registers, op: &Arith, mask: u32) {
    arith::execute::<true>(r, op, mask);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,popcnt")]
fn products_avx2(a: &tensor::A, b: &tensor::B, rows: usize) -> tensor::Sums {
    tensor::products(a, b, rows)
}
