//! Arithmetic: from registers to registers, lane by lane.

use super::{
    float::{self, bits, fma, long_bits},
    rare,
    registers::{LANES, Registers, join},
};
use crate::program::{
    Arith, Bin, Compare, D, LongBin, LongShift, LongTest, LongTri, LongUn, Narrow, Order, Test, Tri, Un, W,
    Widen,
};

/// Executes one operation in the lanes of a mask. Lanes outside of it compute too, and their results are dropped,
/// so nothing here may panic whatever the operands.
#[inline(always)]
pub(super) fn execute<const FUSED: bool>(r: &mut Registers, op: &Arith, mask: u32) {
    match *op {
        Arith::Un(op, d, a) => un(r, op, d, a, mask),
        Arith::Bin(op, d, a, b) => bin(r, op, d, [a, b], mask),
        Arith::Tri(op, d, a, b, c) => tri::<FUSED>(r, op, d, [a, b, c], mask),
        Arith::LongUn(op, d, a) => long_un(r, op, d, a, mask),
        Arith::LongBin(op, d, a, b) => long_bin(r, op, d, [a, b], mask),
        Arith::LongTri(op, d, a, b, c) => long_tri(r, op, d, [a, b, c], mask),
        Arith::LongShift(op, d, a, b) => long_shift(r, op, d, a, b, mask),
        Arith::Widen(op, d, a) => widen(r, op, d, a, mask),
        Arith::Narrow(op, d, a) => narrow(r, op, d, a, mask),
        Arith::WideMul { signed, d, a, b } => wide_product(r, signed, d, [a, b], None, mask),
        Arith::WideMad { signed, d, a, b, c } => wide_product(r, signed, d, [a, b], Some(c), mask),
        Arith::Test(test, ref to, a, b) => {
            let holds = compare(r, test, a, b);
            r.set_test(to, holds, mask);
        }
        Arith::LongTest(test, ref to, a, b) => {
            let holds = long_compare(r, test, a, b);
            r.set_test(to, holds, mask);
        }
        Arith::Select { d, a, b, p } => {
            let p = r.p(p);
            let (a, b) = (*r.w(a), *r.w(b));
            let values = std::array::from_fn(|lane| if p >> lane & 1 == 1 { a[lane] } else { b[lane] });
            r.set_w(d, &values, mask);
        }
        Arith::LongSelect { d, a, b, p } => {
            let p = r.p(p);
            let (a, b) = (*r.d(a), *r.d(b));
            let values = std::array::from_fn(|lane| if p >> lane & 1 == 1 { a[lane] } else { b[lane] });
            r.set_d(d, &values, mask);
        }
        Arith::Lop3 { lut, d, a, b, c } => r.tri(d, [a, b, c], mask, |x, y, z| lop3(lut, x, y, z)),
        Arith::Predicate(logic, d, a, b) => {
            let value = join(logic, r.p(a), r.p(b));
            r.set_p(d, value, mask);
        }
        Arith::PredicateNot(d, a) => {
            let value = !r.p(a);
            r.set_p(d, value, mask);
        }
        Arith::Pack(d, low, high) => {
            let (low, high) = (*r.w(low), *r.w(high));
            let values = std::array::from_fn(|lane| u64::from(low[lane]) | u64::from(high[lane]) << 32);
            r.set_d(d, &values, mask);
        }
        Arith::Pack16(d, low, high) => r.bin(d, [low, high], mask, |x, y| x & 0xffff | y << 16),
        ref other => rare::execute(r, other, mask),
    }
}

/// The lower or upper half of a product.
pub(super) fn product_part(a: u32, b: u32, high: bool, signed: bool) -> u32 {
    let product =
        if signed { (i64::from(a as i32) * i64::from(b as i32)) as u64 } else { u64::from(a) * u64::from(b) };
    (if high { product >> 32 } else { product }) as u32
}

/// Takes a field out; past the top, the sign or zeros.
#[inline(always)]
pub(super) fn extract(a: u64, at: u32, count: u32, width: u32, signed: bool) -> u64 {
    let (at, count) = (at & 0xff, count & 0xff);
    if count == 0 {
        return 0;
    }
    let sign = |bit: u32| signed && a >> bit.min(width - 1) & 1 == 1;
    let filled = sign(at + count - 1);
    let value = if at >= width { 0 } else { a >> at };
    let present = width.saturating_sub(at).min(count);
    let low = if present == 0 { 0 } else { u64::MAX >> (64 - present) };
    let value = if filled { value & low | !low } else { value & low };
    if width == 32 { value & 0xffff_ffff } else { value }
}

#[inline(always)]
fn lop3(lut: u8, x: u32, y: u32, z: u32) -> u32 {
    (0..8_u32).fold(0, |value, i| {
        let term = |word: u32, bit: u32| if i >> bit & 1 == 1 { word } else { !word };
        let chosen = u32::from(lut >> i & 1).wrapping_neg();
        value | term(x, 2) & term(y, 1) & term(z, 0) & chosen
    })
}

#[inline(always)]
fn un(r: &mut Registers, op: Un, d: W, a: W, mask: u32) {
    let low16 = |x: u32| x & 0xffff;
    match op {
        Un::Move => r.un(d, a, mask, |x| x),
        Un::Not => r.un(d, a, mask, |x| !x),
        Un::Not16 => r.un(d, a, mask, |x| low16(!x)),
        Un::Neg => r.un(d, a, mask, u32::wrapping_neg),
        Un::Neg16 => r.un(d, a, mask, |x| low16(x.wrapping_neg())),
        Un::Abs => r.un(d, a, mask, |x| (x as i32).unsigned_abs()),
        Un::Abs16 => r.un(d, a, mask, |x| low16((x as i16).unsigned_abs().into())),
        Un::Clz => r.un(d, a, mask, u32::leading_zeros),
        Un::Popc => r.un(d, a, mask, u32::count_ones),
        Un::Reverse => r.un(d, a, mask, u32::reverse_bits),
        Un::Find { signed, from_top } => r.un(d, a, mask, |x| {
            let x = if signed && x >> 31 == 1 { !x } else { x };
            find(x.leading_zeros(), 32, from_top)
        }),
        Un::FNeg => r.un(d, a, mask, |x| x ^ 1 << 31),
        Un::FAbs => r.un(d, a, mask, |x| x & !(1 << 31)),
        Un::FSqrt => r.un(d, a, mask, |x| bits(f32::from_bits(x).sqrt())),
        Un::FRecip => r.un(d, a, mask, |x| bits(1.0 / f32::from_bits(x))),
        Un::SignExtend8 => r.un(d, a, mask, |x| x as i8 as u32),
        Un::SignExtend16 => r.un(d, a, mask, |x| x as i16 as u32),
        Un::ZeroExtend8 => r.un(d, a, mask, |x| x & 0xff),
        Un::ZeroExtend16 => r.un(d, a, mask, low16),
        Un::SignExtend8To16 => r.un(d, a, mask, |x| low16(x as i8 as u32)),
        Un::FloatFromSigned => r.un(d, a, mask, |x| (x as i32 as f32).to_bits()),
        Un::FloatFromUnsigned => r.un(d, a, mask, |x| (x as f32).to_bits()),
        Un::FloatFromHalf => r.un(d, a, mask, float::from_half),
        Un::FloatFromBrain => r.un(d, a, mask, float::from_brain),
        Un::HalfFromFloat => r.un(d, a, mask, float::to_half),
        Un::BrainFromFloat => r.un(d, a, mask, float::to_brain),
        Un::NearestFromFloat => r.un(d, a, mask, |x| f32::from_bits(x).round_ties_even() as i32 as u32),
        Un::TruncatedFromFloat => r.un(d, a, mask, |x| f32::from_bits(x) as i32 as u32),
    }
}

/// Where the highest bit is; all ones if there is none.
#[inline(always)]
fn find(zeros: u32, width: u32, from_top: bool) -> u32 {
    if zeros == width {
        u32::MAX
    } else if from_top {
        zeros
    } else {
        width - 1 - zeros
    }
}

#[inline(always)]
fn bin(r: &mut Registers, op: Bin, d: W, ab: [W; 2], mask: u32) {
    let low16 = |x: u32| x & 0xffff;
    let wide = |x: u32| u64::from(x);
    let f = f32::from_bits;
    match op {
        Bin::Add => r.bin(d, ab, mask, u32::wrapping_add),
        Bin::Sub => r.bin(d, ab, mask, u32::wrapping_sub),
        Bin::Mul => r.bin(d, ab, mask, u32::wrapping_mul),
        Bin::MulHighSigned => r.bin(d, ab, mask, |x, y| product_part(x, y, true, true)),
        Bin::MulHighUnsigned => r.bin(d, ab, mask, |x, y| ((wide(x) * wide(y)) >> 32) as u32),
        Bin::MinSigned => r.bin(d, ab, mask, |x, y| (x as i32).min(y as i32) as u32),
        Bin::MinUnsigned => r.bin(d, ab, mask, Ord::min),
        Bin::MaxSigned => r.bin(d, ab, mask, |x, y| (x as i32).max(y as i32) as u32),
        Bin::MaxUnsigned => r.bin(d, ab, mask, Ord::max),
        Bin::And => r.bin(d, ab, mask, |x, y| x & y),
        Bin::Or => r.bin(d, ab, mask, |x, y| x | y),
        Bin::Xor => r.bin(d, ab, mask, |x, y| x ^ y),
        Bin::ShiftLeft => r.bin(d, ab, mask, |x, y| if y > 31 { 0 } else { x << y }),
        Bin::ShiftRight => r.bin(d, ab, mask, |x, y| if y > 31 { 0 } else { x >> y }),
        Bin::ShiftRightSigned => r.bin(d, ab, mask, |x, y| (x as i32 >> y.min(31)) as u32),
        // Division by zero gives what cards give: all ones.
        Bin::DivSigned => r.bin(d, ab, mask, |x, y| match y {
            0 => u32::MAX,
            y => (x as i32).wrapping_div(y as i32) as u32,
        }),
        Bin::DivUnsigned => r.bin(d, ab, mask, |x, y| x.checked_div(y).unwrap_or(u32::MAX)),
        Bin::RemSigned => r.bin(d, ab, mask, |x, y| match y {
            0 => x,
            y => (x as i32).wrapping_rem(y as i32) as u32,
        }),
        Bin::RemUnsigned => r.bin(d, ab, mask, |x, y| x.checked_rem(y).unwrap_or(x)),
        Bin::Add16 => r.bin(d, ab, mask, |x, y| low16(x.wrapping_add(y))),
        Bin::Sub16 => r.bin(d, ab, mask, |x, y| low16(x.wrapping_sub(y))),
        Bin::Mul16 => r.bin(d, ab, mask, |x, y| low16(x.wrapping_mul(y))),
        Bin::DivUnsigned16 => r.bin(d, ab, mask, |x, y| x.checked_div(y).unwrap_or(0xffff)),
        Bin::RemUnsigned16 => r.bin(d, ab, mask, |x, y| x.checked_rem(y).unwrap_or(x)),
        Bin::MinSigned16 => r.bin(d, ab, mask, |x, y| low16((x as i16).min(y as i16) as u32)),
        Bin::MaxSigned16 => r.bin(d, ab, mask, |x, y| low16((x as i16).max(y as i16) as u32)),
        Bin::ShiftLeft16 => r.bin(d, ab, mask, |x, y| if y > 15 { 0 } else { low16(x << y) }),
        Bin::ShiftRightSigned16 => r.bin(d, ab, mask, |x, y| low16((x as i16 >> y.min(15)) as u32)),
        Bin::MulWideSigned16 => r.bin(d, ab, mask, |x, y| (i32::from(x as i16) * i32::from(y as i16)) as u32),
        Bin::FAdd => r.bin(d, ab, mask, |x, y| bits(f(x) + f(y))),
        Bin::FSub => r.bin(d, ab, mask, |x, y| bits(f(x) - f(y))),
        Bin::FMul => r.bin(d, ab, mask, |x, y| bits(f(x) * f(y))),
        Bin::FDiv => r.bin(d, ab, mask, |x, y| bits(f(x) / f(y))),
        Bin::FMin => r.bin(d, ab, mask, |x, y| float::min(f(x), f(y))),
        Bin::FMax => r.bin(d, ab, mask, |x, y| float::max(f(x), f(y))),
        Bin::FMinNan => r.bin(d, ab, mask, |x, y| nan_or(x, y, float::min(f(x), f(y)))),
        Bin::FMaxNan => r.bin(d, ab, mask, |x, y| nan_or(x, y, float::max(f(x), f(y)))),
        Bin::PackHalves => r.bin(d, ab, mask, |x, y| float::to_half(x) << 16 | float::to_half(y)),
        Bin::PackBrains => r.bin(d, ab, mask, |x, y| float::to_brain(x) << 16 | float::to_brain(y)),
    }
}

#[inline(always)]
fn nan_or(x: u32, y: u32, value: u32) -> u32 {
    if f32::from_bits(x).is_nan() || f32::from_bits(y).is_nan() { float::NAN } else { value }
}

#[inline(always)]
fn tri<const FUSED: bool>(r: &mut Registers, op: Tri, d: W, abc: [W; 3], mask: u32) {
    let low16 = |x: u32| x & 0xffff;
    let f = f32::from_bits;
    match op {
        Tri::Mad => r.tri(d, abc, mask, |x, y, z| x.wrapping_mul(y).wrapping_add(z)),
        Tri::MadHighSigned => r.tri(d, abc, mask, |x, y, z| product_part(x, y, true, true).wrapping_add(z)),
        Tri::MadHighUnsigned => {
            r.tri(d, abc, mask, |x, y, z| product_part(x, y, true, false).wrapping_add(z))
        }
        Tri::Mad16 => r.tri(d, abc, mask, |x, y, z| low16(x.wrapping_mul(y).wrapping_add(z))),
        Tri::MadWideSigned16 => r.tri(d, abc, mask, |x, y, z| {
            (i32::from(x as i16) * i32::from(y as i16)).wrapping_add(z as i32) as u32
        }),
        Tri::Fma => r.tri(d, abc, mask, |x, y, z| bits(fma::<FUSED>(f(x), f(y), f(z)))),
        Tri::SadSigned => r.tri(d, abc, mask, |x, y, z| (x as i32).abs_diff(y as i32).wrapping_add(z)),
        Tri::SadUnsigned => r.tri(d, abc, mask, |x, y, z| x.abs_diff(y).wrapping_add(z)),
        Tri::Dp4a(true, true) => r.tri(d, abc, mask, dp4a::<true, true>),
        Tri::Dp4a(true, false) => r.tri(d, abc, mask, dp4a::<true, false>),
        Tri::Dp4a(false, true) => r.tri(d, abc, mask, dp4a::<false, true>),
        Tri::Dp4a(false, false) => r.tri(d, abc, mask, dp4a::<false, false>),
        Tri::Dp2a(a, b, high) => r.tri(d, abc, mask, |x, y, z| dp2a(a, b, high, x, y, z)),
        Tri::Permute => r.tri(d, abc, mask, permute),
        Tri::FunnelLeftClamp => r.tri(d, abc, mask, |x, y, z| funnel_left(x, y, z.min(32))),
        Tri::FunnelLeftWrap => r.tri(d, abc, mask, |x, y, z| funnel_left(x, y, z & 31)),
        Tri::FunnelRightClamp => r.tri(d, abc, mask, |x, y, z| funnel_right(x, y, z.min(32))),
        Tri::FunnelRightWrap => r.tri(d, abc, mask, |x, y, z| funnel_right(x, y, z & 31)),
        Tri::ExtractUnsigned => r.tri(d, abc, mask, |x, y, z| extract(x.into(), y, z, 32, false) as u32),
        Tri::ExtractSigned => r.tri(d, abc, mask, |x, y, z| extract(x.into(), y, z, 32, true) as u32),
    }
}

#[inline(always)]
fn byte(x: u32, i: u32, signed: bool) -> i32 {
    let byte = (x >> (8 * i)) as u8;
    if signed { i32::from(byte as i8) } else { i32::from(byte) }
}

#[inline(always)]
fn dp4a<const A: bool, const B: bool>(x: u32, y: u32, z: u32) -> u32 {
    (0..4).fold(z as i32, |sum, i| sum.wrapping_add(byte(x, i, A) * byte(y, i, B))) as u32
}

#[inline(always)]
fn dp2a(a: bool, b: bool, high: bool, x: u32, y: u32, z: u32) -> u32 {
    let half = |i: u32| if a { i32::from((x >> (16 * i)) as i16) } else { i32::from((x >> (16 * i)) as u16) };
    let from = if high { 2 } else { 0 };
    (0..2).fold(z as i32, |sum, i| sum.wrapping_add(half(i) * byte(y, from + i, b))) as u32
}

#[inline(always)]
fn permute(x: u32, y: u32, selector: u32) -> u32 {
    let bytes = u64::from(x) | u64::from(y) << 32;
    (0..4).fold(0, |value, i| {
        let choice = selector >> (4 * i) & 15;
        let byte = (bytes >> (8 * (choice & 7))) as u8;
        let sign = (byte as i8 >> 7) as u8;
        value | u32::from(if choice & 8 == 0 { byte } else { sign }) << (8 * i)
    })
}

/// The upper word of high:low, shifted left.
#[inline(always)]
fn funnel_left(low: u32, high: u32, places: u32) -> u32 {
    (((u64::from(high) << 32 | u64::from(low)) << places) >> 32) as u32
}

/// The lower word of high:low, shifted right.
#[inline(always)]
fn funnel_right(low: u32, high: u32, places: u32) -> u32 {
    ((u64::from(high) << 32 | u64::from(low)) >> places) as u32
}

#[inline(always)]
fn long_un(r: &mut Registers, op: LongUn, d: D, a: D, mask: u32) {
    match op {
        LongUn::Move => r.long_un(d, a, mask, |x| x),
        LongUn::Not => r.long_un(d, a, mask, |x| !x),
        LongUn::Neg => r.long_un(d, a, mask, u64::wrapping_neg),
        LongUn::Abs => r.long_un(d, a, mask, |x| (x as i64).unsigned_abs()),
        LongUn::Reverse => r.long_un(d, a, mask, u64::reverse_bits),
        LongUn::FNeg => r.long_un(d, a, mask, |x| x ^ 1 << 63),
        LongUn::FAbs => r.long_un(d, a, mask, |x| x & !(1 << 63)),
        LongUn::FSqrt => r.long_un(d, a, mask, |x| long_bits(f64::from_bits(x).sqrt())),
    }
}

#[inline(always)]
fn long_bin(r: &mut Registers, op: LongBin, d: D, ab: [D; 2], mask: u32) {
    let f = f64::from_bits;
    match op {
        LongBin::Add => r.long_bin(d, ab, mask, u64::wrapping_add),
        LongBin::Sub => r.long_bin(d, ab, mask, u64::wrapping_sub),
        LongBin::Mul => r.long_bin(d, ab, mask, u64::wrapping_mul),
        LongBin::MulHighSigned => r.long_bin(d, ab, mask, |x, y| long_high(x, y, true)),
        LongBin::MulHighUnsigned => r.long_bin(d, ab, mask, |x, y| long_high(x, y, false)),
        LongBin::MinSigned => r.long_bin(d, ab, mask, |x, y| (x as i64).min(y as i64) as u64),
        LongBin::MinUnsigned => r.long_bin(d, ab, mask, Ord::min),
        LongBin::MaxSigned => r.long_bin(d, ab, mask, |x, y| (x as i64).max(y as i64) as u64),
        LongBin::MaxUnsigned => r.long_bin(d, ab, mask, Ord::max),
        LongBin::And => r.long_bin(d, ab, mask, |x, y| x & y),
        LongBin::Or => r.long_bin(d, ab, mask, |x, y| x | y),
        LongBin::Xor => r.long_bin(d, ab, mask, |x, y| x ^ y),
        LongBin::DivSigned => r.long_bin(d, ab, mask, |x, y| match y {
            0 => u64::MAX,
            y => (x as i64).wrapping_div(y as i64) as u64,
        }),
        LongBin::DivUnsigned => r.long_bin(d, ab, mask, |x, y| x.checked_div(y).unwrap_or(u64::MAX)),
        LongBin::RemSigned => r.long_bin(d, ab, mask, |x, y| match y {
            0 => x,
            y => (x as i64).wrapping_rem(y as i64) as u64,
        }),
        LongBin::RemUnsigned => r.long_bin(d, ab, mask, |x, y| x.checked_rem(y).unwrap_or(x)),
        LongBin::FAdd => r.long_bin(d, ab, mask, |x, y| long_bits(f(x) + f(y))),
        LongBin::FSub => r.long_bin(d, ab, mask, |x, y| long_bits(f(x) - f(y))),
        LongBin::FMul => r.long_bin(d, ab, mask, |x, y| long_bits(f(x) * f(y))),
        LongBin::FDiv => r.long_bin(d, ab, mask, |x, y| long_bits(f(x) / f(y))),
        LongBin::FMin => r.long_bin(d, ab, mask, |x, y| float::long_min(f(x), f(y))),
        LongBin::FMax => r.long_bin(d, ab, mask, |x, y| float::long_max(f(x), f(y))),
    }
}

#[inline(always)]
fn long_high(x: u64, y: u64, signed: bool) -> u64 {
    if signed {
        ((i128::from(x as i64) * i128::from(y as i64)) >> 64) as u64
    } else {
        ((u128::from(x) * u128::from(y)) >> 64) as u64
    }
}

#[inline(always)]
fn long_tri(r: &mut Registers, op: LongTri, d: D, abc: [D; 3], mask: u32) {
    let f = f64::from_bits;
    match op {
        LongTri::Mad => r.long_tri(d, abc, mask, |x, y, z| x.wrapping_mul(y).wrapping_add(z)),
        LongTri::MadHighSigned => r.long_tri(d, abc, mask, |x, y, z| long_high(x, y, true).wrapping_add(z)),
        LongTri::MadHighUnsigned => {
            r.long_tri(d, abc, mask, |x, y, z| long_high(x, y, false).wrapping_add(z))
        }
        LongTri::Fma => r.long_tri(d, abc, mask, |x, y, z| long_bits(f(x).mul_add(f(y), f(z)))),
    }
}

#[inline(always)]
fn long_shift(r: &mut Registers, op: LongShift, d: D, a: D, b: W, mask: u32) {
    let (a, b) = (*r.d(a), *r.w(b));
    let values = match op {
        LongShift::Left => std::array::from_fn(|lane| if b[lane] > 63 { 0 } else { a[lane] << b[lane] }),
        LongShift::Right => std::array::from_fn(|lane| if b[lane] > 63 { 0 } else { a[lane] >> b[lane] }),
        LongShift::RightSigned => std::array::from_fn(|lane| (a[lane] as i64 >> b[lane].min(63)) as u64),
    };
    r.set_d(d, &values, mask);
}

#[inline(always)]
fn widen(r: &mut Registers, op: Widen, d: D, a: W, mask: u32) {
    match op {
        Widen::Zero => r.widen(d, a, mask, u64::from),
        Widen::Sign => r.widen(d, a, mask, |x| x as i32 as u64),
        Widen::Zero16 => r.widen(d, a, mask, |x| u64::from(x as u16)),
        Widen::Sign16 => r.widen(d, a, mask, |x| x as i16 as u64),
        Widen::Zero8 => r.widen(d, a, mask, |x| u64::from(x as u8)),
        Widen::Sign8 => r.widen(d, a, mask, |x| x as i8 as u64),
    }
}

#[inline(always)]
fn narrow(r: &mut Registers, op: Narrow, d: W, a: D, mask: u32) {
    match op {
        Narrow::Truncate => r.narrow(d, a, mask, |x| x as u32),
        Narrow::Truncate16 => r.narrow(d, a, mask, |x| u32::from(x as u16)),
        Narrow::Clz => r.narrow(d, a, mask, u64::leading_zeros),
        Narrow::Popc => r.narrow(d, a, mask, u64::count_ones),
        Narrow::Find { signed, from_top } => r.narrow(d, a, mask, |x| {
            let x = if signed && x >> 63 == 1 { !x } else { x };
            find(x.leading_zeros(), 64, from_top)
        }),
        Narrow::FloatFromSigned => r.narrow(d, a, mask, |x| (x as i64 as f32).to_bits()),
        Narrow::FloatFromUnsigned => r.narrow(d, a, mask, |x| (x as f32).to_bits()),
    }
}

#[inline(always)]
fn wide_product(r: &mut Registers, signed: bool, d: D, [a, b]: [W; 2], c: Option<D>, mask: u32) {
    let (a, b) = (*r.w(a), *r.w(b));
    let mut values: [u64; LANES] = if signed {
        std::array::from_fn(|lane| (i64::from(a[lane] as i32) * i64::from(b[lane] as i32)) as u64)
    } else {
        std::array::from_fn(|lane| u64::from(a[lane]) * u64::from(b[lane]))
    };
    if let Some(c) = c {
        let c = r.d(c);
        values = std::array::from_fn(|lane| values[lane].wrapping_add(c[lane]));
    }
    r.set_d(d, &values, mask);
}

#[inline(always)]
fn less<T: PartialOrd>(less: Order, x: T, y: T) -> bool {
    match less {
        Order::Less => x < y,
        Order::LessEqual => x <= y,
        Order::Greater => x > y,
        Order::GreaterEqual => x >= y,
    }
}

/// The order is looked at once, not in every lane.
macro_rules! by_order {
    ($order:expr, $compare:expr) => {
        match $order {
            Order::Less => $compare(Order::Less),
            Order::LessEqual => $compare(Order::LessEqual),
            Order::Greater => $compare(Order::Greater),
            Order::GreaterEqual => $compare(Order::GreaterEqual),
        }
    };
}

#[inline(always)]
pub(super) fn compare(r: &Registers, test: Test, a: W, b: W) -> u32 {
    match test {
        Test::Equal => r.where_words(a, b, |x, y| x == y),
        Test::NotEqual => r.where_words(a, b, |x, y| x != y),
        Test::Signed(order) => {
            by_order!(order, |order| r.where_words(a, b, |x, y| less(order, x as i32, y as i32)))
        }
        Test::Unsigned(order) => by_order!(order, |order| r.where_words(a, b, |x, y| less(order, x, y))),
        Test::Signed16(order) => {
            by_order!(order, |order| r.where_words(a, b, |x, y| less(order, x as i16, y as i16)))
        }
        Test::Float(test) => {
            let plain = match test {
                Compare::Equal { .. } => r.where_words(a, b, |x, y| f32::from_bits(x) == f32::from_bits(y)),
                Compare::NotEqual { or_nan: false } => {
                    let [less, greater] = [a, b].map(|first| {
                        let second = if first == a { b } else { a };
                        r.where_words(first, second, |x, y| f32::from_bits(x) < f32::from_bits(y))
                    });
                    less | greater
                }
                Compare::NotEqual { or_nan: true } => {
                    r.where_words(a, b, |x, y| f32::from_bits(x) != f32::from_bits(y))
                }
                Compare::Order { less: order, .. } => by_order!(order, |order| r.where_words(
                    a,
                    b,
                    |x, y| less(order, f32::from_bits(x), f32::from_bits(y))
                )),
                Compare::Numbers => !unordered(r, a, b),
                Compare::Nan => unordered(r, a, b),
            };
            if or_nan(test) { plain | unordered(r, a, b) } else { plain }
        }
    }
}

fn or_nan(test: Compare) -> bool {
    matches!(test, Compare::Equal { or_nan: true } | Compare::Order { or_nan: true, .. })
}

#[inline(always)]
fn unordered(r: &Registers, a: W, b: W) -> u32 {
    r.where_words(a, b, |x, y| f32::from_bits(x).is_nan() | f32::from_bits(y).is_nan())
}

#[inline(always)]
fn long_compare(r: &Registers, test: LongTest, a: D, b: D) -> u32 {
    match test {
        LongTest::Equal => r.where_doubles(a, b, |x, y| x == y),
        LongTest::NotEqual => r.where_doubles(a, b, |x, y| x != y),
        LongTest::Signed(order) => {
            by_order!(order, |order| r.where_doubles(a, b, |x, y| less(order, x as i64, y as i64)))
        }
        LongTest::Unsigned(order) => {
            by_order!(order, |order| r.where_doubles(a, b, |x, y| less(order, x, y)))
        }
        LongTest::Float(test) => r.where_doubles(a, b, |x, y| {
            let (x, y) = (f64::from_bits(x), f64::from_bits(y));
            let nan = x.is_nan() || y.is_nan();
            match test {
                Compare::Equal { or_nan } => x == y || or_nan && nan,
                Compare::NotEqual { or_nan } => x != y && (or_nan || !nan),
                Compare::Order { less: order, or_nan } => less(order, x, y) || or_nan && nan,
                Compare::Numbers => !nan,
                Compare::Nan => nan,
            }
        }),
    }
}
