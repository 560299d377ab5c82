//! Bits, moves, comparisons and selections.

use super::{Decoded, Mods, exactly};
use crate::{
    function::{Function, Reg},
    operand::Operand,
    program::{
        Arith, Bin, Class, Compare, Logic, LongBin, LongShift, LongTest, LongUn, Op, Order, Test, TestTo,
        Type, Un, W,
    },
};

pub(super) fn bitwise<'a>(
    f: &mut Function<'a>,
    name: &str,
    mods: &mut Mods<'a>,
    a: &[Operand<'a>],
) -> Decoded {
    let ty = mods.ty()?;
    let op = match name {
        "not" => not(f, ty, a)?,
        "shl" | "shr" => shift(f, name, ty, a)?,
        _ => {
            let [d, x, y] = exactly(a)?;
            let (word, long, logic) = match name {
                "and" => (Bin::And, LongBin::And, Logic::And),
                "or" => (Bin::Or, LongBin::Or, Logic::Or),
                _ => (Bin::Xor, LongBin::Xor, Logic::Xor),
            };
            match ty {
                Type::Pred => Arith::Predicate(logic, f.p(d)?, f.p(x)?, f.p(y)?),
                Type::B64 => Arith::LongBin(long, f.d(d)?, f.d(x)?, f.d(y)?),
                Type::B16 | Type::B32 => {
                    let bits = ty.bits();
                    Arith::Bin(word, f.w(d, bits)?, f.w(x, bits)?, f.w(y, bits)?)
                }
                _ => return Err(format!("no `{name}` of {ty:?}")),
            }
        }
    };
    Ok((Op::Arith(op), Class::Integer))
}

fn not<'a>(f: &mut Function<'a>, ty: Type, a: &[Operand<'a>]) -> Result<Arith, String> {
    let [d, x] = exactly(a)?;
    Ok(match ty {
        Type::Pred => Arith::PredicateNot(f.p(d)?, f.p(x)?),
        Type::B16 => Arith::Un(Un::Not16, f.w(d, 16)?, f.w(x, 16)?),
        Type::B32 => Arith::Un(Un::Not, f.w(d, 32)?, f.w(x, 32)?),
        Type::B64 => Arith::LongUn(LongUn::Not, f.d(d)?, f.d(x)?),
        _ => return Err(format!("no `not` of {ty:?}")),
    })
}

/// The number of places is always 32 bits wide.
fn shift<'a>(f: &mut Function<'a>, name: &str, ty: Type, a: &[Operand<'a>]) -> Result<Arith, String> {
    let [d, x, y] = exactly(a)?;
    let left = name == "shl";
    let places = f.w(y, 32)?;
    if left && !matches!(ty, Type::B16 | Type::B32 | Type::B64) {
        return Err(format!("no `shl` of {ty:?}"));
    }
    let signed = ty.is_signed();
    Ok(match ty.bits() {
        64 if ty.is_integer() => {
            let op = match (left, signed) {
                (true, _) => LongShift::Left,
                (false, true) => LongShift::RightSigned,
                (false, false) => LongShift::Right,
            };
            Arith::LongShift(op, f.d(d)?, f.d(x)?, places)
        }
        bits @ (16 | 32) if ty.is_integer() => {
            let op = match (left, signed, bits) {
                (true, _, 32) => Bin::ShiftLeft,
                (true, ..) => Bin::ShiftLeft16,
                (false, true, 32) => Bin::ShiftRightSigned,
                (false, true, _) => Bin::ShiftRightSigned16,
                (false, false, _) => Bin::ShiftRight,
            };
            Arith::Bin(op, f.w(d, bits)?, f.w(x, bits)?, places)
        }
        _ => return Err(format!("no `{name}` of {ty:?}")),
    })
}

pub(super) fn mov<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    let ty = mods.ty()?;
    let [d, x] = exactly(a)?;
    let op = match (d, x, ty.bits()) {
        (_, Operand::Vector(parts), bits) => pack(f, d, parts, bits)?,
        (Operand::Vector(parts), _, bits) => unpack(f, parts, x, bits)?,
        (.., 1) => {
            // x or x is x.
            let guard = f.maybe_not(x)?;
            let d = f.p(d)?;
            if guard.negate {
                Arith::PredicateNot(d, guard.p)
            } else {
                Arith::Predicate(Logic::Or, d, guard.p, guard.p)
            }
        }
        (.., 64) => Arith::LongUn(LongUn::Move, f.d(d)?, f.d(x)?),
        (.., 8) => return Err("no `mov` of bytes".to_owned()),
        (.., bits) => Arith::Un(Un::Move, f.w(d, bits)?, f.w(x, bits)?),
    };
    Ok((Op::Arith(op), Class::Movement))
}

fn pack<'a>(
    f: &mut Function<'a>,
    d: &Operand<'a>,
    parts: &[Operand<'a>],
    bits: u32,
) -> Result<Arith, String> {
    Ok(match (parts, bits) {
        ([low, high], 64) => Arith::Pack(f.d(d)?, f.w(low, 32)?, f.w(high, 32)?),
        ([low, high], 32) => Arith::Pack16(f.w(d, 32)?, f.w(low, 16)?, f.w(high, 16)?),
        ([w, x, y, z], 64) => Arith::PackFour(f.d(d)?, [f.w(w, 16)?, f.w(x, 16)?, f.w(y, 16)?, f.w(z, 16)?]),
        _ => return Err(format!("no `mov` of {} parts to {bits} bits", parts.len())),
    })
}

fn unpack<'a>(
    f: &mut Function<'a>,
    parts: &[Operand<'a>],
    x: &Operand<'a>,
    bits: u32,
) -> Result<Arith, String> {
    let mut part = |operand: &Operand<'a>, bits: u32| -> Result<Option<W>, String> {
        if matches!(operand, Operand::Name("_")) { Ok(None) } else { f.w(operand, bits).map(Some) }
    };
    Ok(match (parts, bits) {
        ([low, high], 64) => {
            let parts = [part(low, 32)?, part(high, 32)?];
            Arith::Unpack(parts, f.d(x)?)
        }
        ([low, high], 32) => {
            let parts = [part(low, 16)?, part(high, 16)?];
            Arith::Unpack16(parts, f.w(x, 32)?)
        }
        ([w, y, z, last], 64) => {
            let parts = [part(w, 16)?, part(y, 16)?, part(z, 16)?, part(last, 16)?];
            Arith::UnpackFour(parts, f.d(x)?)
        }
        _ => return Err(format!("no `mov` of {bits} bits to {} parts", parts.len())),
    })
}

enum Comparison {
    Word(Test),
    Long(LongTest),
}

/// A comparison's name and type.
fn comparison(mods: &mut Mods<'_>) -> Result<(Comparison, Type), String> {
    const NAMES: [&str; 18] = [
        "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu",
        "num", "nan",
    ];
    let name = mods.one_of(&NAMES).ok_or_else(|| "a comparison expected".to_owned())?;
    let ty = mods.ty()?;
    let none = || format!("no comparison `{name}` of {ty:?}");
    let test = match ty {
        Type::F32 => Comparison::Word(Test::Float(float_comparison(name).ok_or_else(none)?)),
        Type::F64 => Comparison::Long(LongTest::Float(float_comparison(name).ok_or_else(none)?)),
        Type::F16 | Type::F16x2 | Type::BF16 | Type::BF16x2 | Type::Pred => return Err(none()),
        _ if ty.bits() == 8 => return Err(none()),
        _ => {
            let long = ty.bits() == 64;
            match name {
                "eq" if long => Comparison::Long(LongTest::Equal),
                "ne" if long => Comparison::Long(LongTest::NotEqual),
                "eq" => Comparison::Word(Test::Equal),
                "ne" => Comparison::Word(Test::NotEqual),
                _ => {
                    let less = integer_order(name, ty).ok_or_else(none)?;
                    match (long, ty.is_signed(), ty.bits()) {
                        (true, true, _) => Comparison::Long(LongTest::Signed(less)),
                        (true, false, _) => Comparison::Long(LongTest::Unsigned(less)),
                        (false, true, 16) => Comparison::Word(Test::Signed16(less)),
                        (false, true, _) => Comparison::Word(Test::Signed(less)),
                        (false, false, _) => Comparison::Word(Test::Unsigned(less)),
                    }
                }
            }
        }
    };
    Ok((test, ty))
}

fn integer_order(name: &str, ty: Type) -> Option<Order> {
    let bits = matches!(ty, Type::B16 | Type::B32 | Type::B64);
    let unsigned = !ty.is_signed() && !bits;
    Some(match name {
        "lt" if !bits => Order::Less,
        "le" if !bits => Order::LessEqual,
        "gt" if !bits => Order::Greater,
        "ge" if !bits => Order::GreaterEqual,
        "lo" if unsigned => Order::Less,
        "ls" if unsigned => Order::LessEqual,
        "hi" if unsigned => Order::Greater,
        "hs" if unsigned => Order::GreaterEqual,
        _ => return None,
    })
}

fn float_comparison(name: &str) -> Option<Compare> {
    let order = |less, or_nan| Compare::Order { less, or_nan };
    Some(match name {
        "eq" => Compare::Equal { or_nan: false },
        "equ" => Compare::Equal { or_nan: true },
        "ne" => Compare::NotEqual { or_nan: false },
        "neu" => Compare::NotEqual { or_nan: true },
        "lt" => order(Order::Less, false),
        "ltu" => order(Order::Less, true),
        "le" => order(Order::LessEqual, false),
        "leu" => order(Order::LessEqual, true),
        "gt" => order(Order::Greater, false),
        "gtu" => order(Order::Greater, true),
        "ge" => order(Order::GreaterEqual, false),
        "geu" => order(Order::GreaterEqual, true),
        "num" => Compare::Numbers,
        "nan" => Compare::Nan,
        _ => return None,
    })
}

fn class(ty: Type) -> Class {
    if ty.is_float() { Class::Float } else { Class::Integer }
}

pub(super) fn setp<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    let logic = match mods.one_of(&["and", "or", "xor"]) {
        Some("and") => Some(Logic::And),
        Some("or") => Some(Logic::Or),
        Some(_) => Some(Logic::Xor),
        None => None,
    };
    let (test, ty) = comparison(mods)?;
    let (d, x, y, with) = match (a, logic) {
        ([d, x, y], None) => (d, x, y, None),
        ([d, x, y, z], Some(logic)) => {
            let with = f.maybe_not(z)?;
            (d, x, y, Some((logic, with.p, with.negate)))
        }
        _ => return Err("three operands expected, or four with `.and`, `.or` or `.xor`".to_owned()),
    };
    let (d, contrary) = match d {
        Operand::Pair(d, contrary) => (f.p(&Operand::Name(d))?, Some(f.p(&Operand::Name(contrary))?)),
        _ => (f.p(d)?, None),
    };
    let to = TestTo { d, contrary, with };
    let op = match test {
        Comparison::Word(test) => Arith::Test(test, to, f.w(x, ty.bits())?, f.w(y, ty.bits())?),
        Comparison::Long(test) => Arith::LongTest(test, to, f.d(x)?, f.d(y)?),
    };
    Ok((Op::Arith(op), class(ty)))
}

pub(super) fn set<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    // The result's type comes first, but the comparison takes the first type.
    let at = mods.parts.iter().position(|part| matches!(*part, "u32" | "s32" | "f32"));
    let at = at.ok_or_else(|| "a type of 32 bits expected".to_owned())?;
    let holds = if mods.parts.remove(at) == "f32" { 1f32.to_bits() } else { u32::MAX };
    let (test, ty) = comparison(mods)?;
    let [d, x, y] = exactly(a)?;
    let Comparison::Word(test) = test else { return Err(format!("no `set` of {ty:?}")) };
    let (d, a, b) = (f.w(d, 32)?, f.w(x, ty.bits())?, f.w(y, ty.bits())?);
    Ok((Op::Arith(Arith::Set { test, holds, d, a, b }), class(ty)))
}

pub(super) fn selp<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    let ty = mods.ty()?;
    let [d, x, y, Operand::Name(p)] = exactly(a)? else { return Err("a predicate expected".to_owned()) };
    let Some(Reg::Predicate(p)) = f.find(p) else { return Err("a predicate expected".to_owned()) };
    let op = match ty.bits() {
        64 => Arith::LongSelect { d: f.d(d)?, a: f.d(x)?, b: f.d(y)?, p },
        bits @ (16 | 32) => Arith::Select { d: f.w(d, bits)?, a: f.w(x, bits)?, b: f.w(y, bits)?, p },
        _ => return Err(format!("no `selp` of {ty:?}")),
    };
    Ok((Op::Arith(op), Class::Integer))
}

pub(super) fn slct<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    let (ty, by) = (mods.ty()?, mods.ty()?);
    let [d, x, y, z] = exactly(a)?;
    let float = match by {
        Type::S32 => false,
        Type::F32 => true,
        _ => return Err(format!("no `slct` by {by:?}")),
    };
    if ty.bits() != 32 {
        return Err(format!("no `slct` of {ty:?}"));
    }
    let (d, a, b, c) = (f.w(d, 32)?, f.w(x, 32)?, f.w(y, 32)?, f.w(z, 32)?);
    Ok((Op::Arith(Arith::SelectBySign { float, d, a, b, c }), Class::Integer))
}
