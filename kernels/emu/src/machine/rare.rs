//! Arithmetic that is seldom met.

use super::{
    arith::{compare, extract, product_part},
    convert,
    registers::{LANES, Registers},
};
use crate::program::Arith;

/// What is seldom met, kept out of the way.
#[inline(never)]
pub(super) fn execute(r: &mut Registers, op: &Arith, mask: u32) {
    match *op {
        Arith::Insert { d, a, b, at, count } => {
            let (x, y, at, count) = (*r.w(a), *r.w(b), *r.w(at), *r.w(count));
            let values =
                std::array::from_fn(|i| insert(x[i].into(), y[i].into(), at[i], count[i], 32) as u32);
            r.set_w(d, &values, mask);
        }
        Arith::LongInsert { d, a, b, at, count } => {
            let (x, y, at, count) = (*r.d(a), *r.d(b), *r.w(at), *r.w(count));
            let values = std::array::from_fn(|lane| insert(x[lane], y[lane], at[lane], count[lane], 64));
            r.set_d(d, &values, mask);
        }
        Arith::LongExtract { signed, d, a, at, count } => {
            let (x, at, count) = (*r.d(a), *r.w(at), *r.w(count));
            let values = std::array::from_fn(|lane| extract(x[lane], at[lane], count[lane], 64, signed));
            r.set_d(d, &values, mask);
        }
        Arith::Set { test, holds, d, a, b } => {
            let mask_of = compare(r, test, a, b);
            let values = std::array::from_fn(|lane| if mask_of >> lane & 1 == 1 { holds } else { 0 });
            r.set_w(d, &values, mask);
        }
        Arith::SelectBySign { float, d, a, b, c } => r.tri(d, [a, b, c], mask, |x, y, z| {
            let first = if float { f32::from_bits(z) >= 0.0 } else { z as i32 >= 0 };
            if first { x } else { y }
        }),
        Arith::Unpack(parts, a) => {
            let a = *r.d(a);
            for (i, part) in parts.into_iter().enumerate() {
                if let Some(part) = part {
                    r.set_w(part, &a.map(|x| (x >> (32 * i)) as u32), mask);
                }
            }
        }
        Arith::Unpack16(parts, a) => {
            let a = *r.w(a);
            for (i, part) in parts.into_iter().enumerate() {
                if let Some(part) = part {
                    r.set_w(part, &a.map(|x| x >> (16 * i) & 0xffff), mask);
                }
            }
        }
        Arith::PackFour(d, parts) => {
            let parts = parts.map(|part| *r.w(part));
            let values = std::array::from_fn(|lane| {
                (0..4).fold(0, |value, i| value | u64::from(parts[i][lane] & 0xffff) << (16 * i))
            });
            r.set_d(d, &values, mask);
        }
        Arith::UnpackFour(parts, a) => {
            let a = *r.d(a);
            for (i, part) in parts.into_iter().enumerate() {
                if let Some(part) = part {
                    r.set_w(part, &a.map(|x| (x >> (16 * i)) as u32 & 0xffff), mask);
                }
            }
        }
        Arith::Convert(convert, d, a) => convert::execute(r, &convert, d, a, mask),
        ref other => with_carry(r, other, mask),
    }
}

/// What takes or leaves the carry flag.
fn with_carry(r: &mut Registers, op: &Arith, mask: u32) {
    match *op {
        Arith::Carry { subtract, take, leave, d, a, b } => {
            let (x, y) = (*r.w(a), *r.w(b));
            let wide = |x: u32| u64::from(x);
            let sums =
                |lane: usize| carry(subtract, take, r.carry >> lane & 1, wide(x[lane]), wide(y[lane]), 32);
            let results: [(u64, bool); LANES] = std::array::from_fn(sums);
            r.set_w(d, &results.map(|(value, _)| value as u32), mask);
            leave_carry(r, leave, &results, mask);
        }
        Arith::LongCarry { subtract, take, leave, d, a, b } => {
            let (x, y) = (*r.d(a), *r.d(b));
            let sums = |lane: usize| carry(subtract, take, r.carry >> lane & 1, x[lane], y[lane], 64);
            let results: [(u64, bool); LANES] = std::array::from_fn(sums);
            r.set_d(d, &results.map(|(value, _)| value), mask);
            leave_carry(r, leave, &results, mask);
        }
        Arith::MadCarry { high, signed, take, leave, d, a, b, c } => {
            let (x, y, z) = (*r.w(a), *r.w(b), *r.w(c));
            let part = |lane: usize| product_part(x[lane], y[lane], high, signed);
            let sums = |i: usize| carry(false, take, r.carry >> i & 1, part(i).into(), z[i].into(), 32);
            let results: [(u64, bool); LANES] = std::array::from_fn(sums);
            r.set_w(d, &results.map(|(value, _)| value as u32), mask);
            leave_carry(r, leave, &results, mask);
        }
        _ => {}
    }
}

fn leave_carry(r: &mut Registers, leave: bool, results: &[(u64, bool); LANES], mask: u32) {
    if leave {
        let flags = (0..LANES).fold(0, |flags, lane| flags | u32::from(results[lane].1) << lane);
        r.carry = r.carry & !mask | flags & mask;
    }
}

/// A sum or difference, with what is carried or borrowed.
fn carry(subtract: bool, take: bool, flag: u32, a: u64, b: u64, bits: u32) -> (u64, bool) {
    let flag = u128::from(take && flag == 1);
    let (a, b) = (u128::from(a), u128::from(b));
    let result = if subtract { a.wrapping_sub(b).wrapping_sub(flag) } else { a + b + flag };
    (result as u64, result >> bits & 1 == 1)
}

/// Puts the low bits of a into b.
fn insert(a: u64, b: u64, at: u32, count: u32, width: u32) -> u64 {
    let (at, count) = (at & 0xff, (count & 0xff).min(width));
    if at >= width || count == 0 {
        return b;
    }
    let field = (u64::MAX >> (64 - count)) << at;
    let kept = u64::MAX >> (64 - width);
    (b & !field | (a << at) & field) & kept
}
