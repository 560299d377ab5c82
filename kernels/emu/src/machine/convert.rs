//! Conversions between any two types.

use super::{
    float::{from_brain, from_half, long_bits, to_brain, to_half, to_odd},
    registers::{Registers, lanes},
};
use crate::program::{AnyReg, Convert, Round, Type};

pub(super) fn execute(r: &mut Registers, convert: &Convert, d: AnyReg, a: AnyReg, mask: u32) {
    for lane in lanes(mask) {
        let value = one(convert, r.lane(a, lane));
        r.set_lane(d, lane, value);
    }
}

enum Value {
    Whole(i128),
    Real(f64),
}

/// Converts a value, given and returned as the contents of a register.
fn one(convert: &Convert, from: u64) -> u64 {
    let value = match convert.from {
        Type::F16 => Value::Real(f32::from_bits(from_half(from as u32 & 0xffff)).into()),
        Type::BF16 => Value::Real(f32::from_bits(from_brain(from as u32 & 0xffff)).into()),
        Type::F32 => Value::Real(f32::from_bits(from as u32).into()),
        Type::F64 => Value::Real(f64::from_bits(from)),
        ty => Value::Whole(whole(from, ty)),
    };
    let bits = match (convert.to.is_float(), value) {
        (false, Value::Whole(value)) => {
            let (least, greatest) = range(convert.to);
            if convert.saturate { value.clamp(least, greatest) } else { value }
        }
        (false, Value::Real(value)) => truncated(convert, value),
        (true, value) => i128::from(real(convert, value)),
    };
    // A narrower result is extended to the register.
    let extended = if convert.to.is_integer() { whole(bits as u64, convert.to) } else { bits };
    extended as u64 & u64::MAX >> (64 - convert.width)
}

/// The integer in the low bits.
fn whole(bits: u64, ty: Type) -> i128 {
    let unused = 64 - ty.bits();
    if ty.is_signed() {
        i128::from((bits << unused) as i64 >> unused)
    } else {
        i128::from(bits << unused >> unused)
    }
}

fn range(ty: Type) -> (i128, i128) {
    let bits = ty.bits();
    if ty.is_signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

fn rounded(value: f64, round: Option<Round>) -> f64 {
    match round {
        None => value,
        Some(Round::Nearest) => value.round_ties_even(),
        Some(Round::Zero) => value.trunc(),
        Some(Round::Down) => value.floor(),
        Some(Round::Up) => value.ceil(),
    }
}

/// A float as an integer, as near as its type can hold.
fn truncated(convert: &Convert, value: f64) -> i128 {
    let (least, greatest) = range(convert.to);
    if value.is_nan() {
        let wide = convert.to.bits() == 64 || convert.from == Type::F64;
        return if wide { 1 << (convert.to.bits() - 1) } else { 0 };
    }
    (rounded(value, convert.round) as i128).clamp(least, greatest)
}

/// An integer as f32.
fn single(value: i128, round: Option<Round>) -> f32 {
    let nearest = value as f32;
    let exact = nearest as i128;
    let (down, up) = (nearest.next_down(), nearest.next_up());
    match round {
        None | Some(Round::Nearest) => nearest,
        _ if exact == value => nearest,
        Some(Round::Down) => {
            if exact > value {
                down
            } else {
                nearest
            }
        }
        Some(Round::Up) => {
            if exact < value {
                up
            } else {
                nearest
            }
        }
        Some(Round::Zero) if value > 0 => {
            if exact > value {
                down
            } else {
                nearest
            }
        }
        Some(Round::Zero) => {
            if exact < value {
                up
            } else {
                nearest
            }
        }
    }
}

/// The bits of a float.
fn real(convert: &Convert, value: Value) -> u64 {
    let value = match (value, convert.to) {
        // Straight from the integer, so that it rounds once.
        (Value::Whole(value), Type::F32) => f64::from(single(value, convert.round)),
        (Value::Whole(value), _) => value as f64,
        (Value::Real(value), _) => rounded(value, convert.round),
    };
    let value = match convert.saturate {
        true if value.is_nan() => 0.0,
        // Adding makes a negative zero positive.
        true => value.clamp(0.0, 1.0) + 0.0,
        false => value,
    };
    match convert.to {
        Type::F16 => u64::from(to_half(to_odd(value).to_bits())),
        Type::BF16 => u64::from(to_brain(to_odd(value).to_bits())),
        Type::F32 => u64::from(super::float::bits(value as f32)),
        _ => long_bits(value),
    }
}
