//! exp and the roundings over every f32, on every instruction set.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use half::slice::HalfFloatSliceExt;

use super::{
    Isa,
    isa::Proof,
    math::exp,
    simd::{LANES, Op, Simd},
};
use crate::{
    reference,
    round::{bf16_from_f32, f16_from_f32, f32_from_bf16},
};

/// Floats of a task, at consecutive bits.
const SPAN: u64 = 1 << 16;

/// Compares vector and scalar over a span.
struct Span(u64);

impl Op for Span {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut expected = [0f32; LANES];
        let mut actual = [0f32; LANES];
        let mut halves = [0u16; LANES];
        let mut bits = self.0;
        while bits < self.0 + SPAN {
            let mut x = [0f32; LANES];
            for (l, x) in x.iter_mut().enumerate() {
                *x = f32::from_bits(bits as u32 + l as u32);
            }
            let v = s.load(&x);
            // Above 88 exp means nothing.
            if !(x[0] > 88.0 && x[0] <= f32::INFINITY) {
                s.store(exp(s, v), &mut actual);
                for (expected, x) in expected.iter_mut().zip(x) {
                    *expected = reference::exp(x);
                }
                assert!(same(expected, actual, x), "exp near {bits:#010x}");
            }
            s.store(s.round_bf16(v), &mut actual);
            for (expected, x) in expected.iter_mut().zip(x) {
                *expected = f32_from_bf16(bf16_from_f32(x));
            }
            assert!(same(expected, actual, x), "bf16 near {bits:#010x}");
            s.store_f16(v, &mut halves);
            let mut same = true;
            for (half, x) in halves.into_iter().zip(x) {
                same &= half == f16_from_f32(x) || x.is_nan() && half & 0x7fff > 0x7c00;
            }
            assert!(same, "f16 near {bits:#010x}");
            bits += LANES as u64;
        }
    }
}

/// Equal bits, or a NaN of a NaN; what bf16 makes of a NaN is free.
#[inline(always)]
fn same(expected: [f32; LANES], actual: [f32; LANES], x: [f32; LANES]) -> bool {
    let mut same = true;
    for l in 0..LANES {
        same &= expected[l].to_bits() == actual[l].to_bits() || x[l].is_nan();
    }
    same
}

/// Calls `check` for each span that starts at a multiple of `step` spans, on two threads.
fn for_spans(step: u64, check: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let start = next.fetch_add(step * SPAN, Ordering::Relaxed);
            if start > u64::from(u32::MAX) {
                break;
            }
            check(start);
        }
    };
    thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
}

#[test]
fn vectors_round_as_scalars_do() {
    for isa in Isa::available() {
        let proof = Proof::of(isa).expect("an available instruction set");
        // The portable vector is the scalar code sixteen times, and slow without hardware fma.
        let step = if isa == Isa::Portable { 401 } else { 1 };
        for_spans(step, |start| proof.dispatch(Span(start)));
    }
}

/// `half` is an implementation of its own, and uses the CPU's conversion where there is one.
#[test]
fn roundings_agree_with_the_half_crate() {
    for_spans(1, |start| {
        let x: Vec<f32> = (start..start + SPAN).map(|bits| f32::from_bits(bits as u32)).collect();
        let mut f16 = vec![half::f16::ZERO; x.len()];
        f16.convert_from_f32_slice(&x);
        let mut bf16 = vec![half::bf16::ZERO; x.len()];
        bf16.convert_from_f32_slice(&x);
        let mut same = true;
        for ((x, f16), bf16) in x.iter().zip(&f16).zip(&bf16) {
            let equal = f16_from_f32(*x) == f16.to_bits() && bf16_from_f32(*x) == bf16.to_bits();
            same &= equal || x.is_nan();
        }
        assert!(same, "near {start:#010x}");
    });
}

#[test]
fn nan_stays_nan() {
    struct Exp(f32);
    impl Op for Exp {
        type Out = f32;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            s.max_lane(exp(s, s.splat(self.0)))
        }
    }
    for isa in Isa::available() {
        let proof = Proof::of(isa).expect("an available instruction set");
        for bits in [0x7f80_0001, 0x7fc0_0000, 0x7fff_ffff, 0xffc0_0001, 0xffff_ffff] {
            assert!(proof.dispatch(Exp(f32::from_bits(bits))).is_nan(), "{isa}");
        }
    }
}
