//! exp, silu, norms and the quantiser on sixteen lanes.

use super::{
    rows::Group,
    simd::{Full, LANES, Simd, load_part, store_part},
};
use crate::reference::constants::*;

/// `reference::exp` of each lane.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let shift = s.splat(EXP_SHIFT);
    let t = s.fma(x, s.splat(EXP_SCALE), shift);
    let n = s.sub(t, shift);
    let r = s.fma(n, s.splat(EXP_LN2[0]), x);
    let r = s.fma(n, s.splat(EXP_LN2[1]), r);
    let mut p = s.splat(EXP_POLYNOMIAL[0]);
    for c in &EXP_POLYNOMIAL[1..] {
        p = s.fma(p, r, s.splat(*c));
    }
    let e = s.scale_exp(p, t);
    let e = s.select_lt(x, s.splat(EXP_FLOOR), s.splat(0.0), e);
    s.keep_nan(x, e)
}

/// `reference::silu` of each lane.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let e = exp(s, s.sub(zero, s.abs(x)));
    let numerator = s.select_lt(x, zero, e, one);
    s.mul(x, s.div(numerator, s.add(one, e)))
}

/// `reference::sum_of_squares`.
#[inline(always)]
pub(crate) fn sum_of_squares<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut lanes = [s.splat(0.0); 16];
    for chunk in x.chunks(16 * LANES) {
        for (lane, part) in lanes.iter_mut().zip(chunk.chunks(LANES)) {
            let value = load_part(s, part);
            *lane = s.fma(value, value, *lane);
        }
    }
    for width in [8, 4, 2, 1] {
        for l in 0..width {
            lanes[l] = s.add(lanes[l], lanes[l + width]);
        }
    }
    s.sum_tree(lanes[0])
}

/// The factor of the root-mean-square norm of `x`.
#[inline(always)]
pub(crate) fn rms_factor<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_squares(s, x) / x.len() as f32 + eps).sqrt()
}

/// `reference::rms_norm`, in place.
#[inline(always)]
pub(crate) fn rms_norm<S: Simd>(s: S, x: &mut [f32], weight: &[f32], eps: f32) {
    let r = s.splat(rms_factor(s, x, eps));
    for (x, w) in x.chunks_mut(LANES).zip(weight.chunks(LANES)) {
        let y = s.mul(s.mul(load_part(s, x), r), load_part(s, w));
        store_part(s, y, x);
    }
}

/// `reference::quantise_group` of whole, zero-padded groups; false if a value is not finite.
#[inline(always)]
pub(crate) fn quantise_row<S: Simd>(s: S, x: &[Full], groups: &mut [Group]) -> bool {
    let mut finite = true;
    for (x, group) in x.chunks_exact(2).zip(groups) {
        let (a, b) = (s.load(&x[0].0), s.load(&x[1].0));
        let amax = s.max_lane_u(s.max_u(s.magnitude(a), s.magnitude(b)));
        finite &= amax < 0x7f80_0000;
        if amax < QUANTISE_FLOOR.to_bits() || amax >= 0x7f80_0000 {
            *group = Group::ZERO;
            continue;
        }
        group.scale = f32::from_bits(amax) / 127.0;
        let inverse = s.splat(1.0 / group.scale);
        let (low, high) = (s.splat(-127.0), s.splat(127.0));
        let (q, _) = group.q.as_chunks_mut();
        group.sum = 0;
        for (x, q) in [a, b].into_iter().zip(q) {
            group.sum += s.store_i8(s.min(s.max(s.mul(x, inverse), low), high), q);
        }
    }
    finite
}

/// Whether every value is finite.
#[inline(always)]
pub(crate) fn is_finite<S: Simd>(s: S, x: &[Full]) -> bool {
    let mut amax = s.splat_i(0);
    for x in x {
        amax = s.max_u(amax, s.magnitude(s.load(&x.0)));
    }
    s.max_lane_u(amax) < 0x7f80_0000
}
