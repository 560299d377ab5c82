//! Conversions of values and of addresses.

use super::{Decoded, Mods, exactly};
use crate::{
    function::Function,
    machine::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW},
    operand::Operand,
    program::{AnyReg, Arith, Bin, Class, Convert, LongBin, LongUn, Narrow, Op, Round, Type, Un, Widen},
};

pub(super) fn cvt<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    let nearest = mods.take("rn");
    let round = match mods.one_of(&["rni", "rzi", "rmi", "rpi", "rz", "rm", "rp"]) {
        Some("rni") => Some(Round::Nearest),
        Some("rzi" | "rz") => Some(Round::Zero),
        Some("rmi" | "rm") => Some(Round::Down),
        Some(_) => Some(Round::Up),
        None => None,
    };
    let saturate = mods.take("sat");
    let (to, from) = (mods.ty()?, mods.ty()?);
    if matches!(to, Type::F16x2 | Type::BF16x2)
        && from == Type::F32
        && nearest
        && !saturate
        && round.is_none()
    {
        let [d, high, low] = exactly(a)?;
        let op = if to == Type::F16x2 { Bin::PackHalves } else { Bin::PackBrains };
        let op = Arith::Bin(op, f.w(d, 32)?, f.w(high, 32)?, f.w(low, 32)?);
        return Ok((Op::Arith(op), Class::Conversion));
    }
    let [d, x] = exactly(a)?;
    check_rounding(to, from, nearest, round)?;
    let (d, width) = f.at_least(d, to.bits())?;
    let (x, _) = f.at_least(x, from.bits())?;
    let class = if to.is_float() || from.is_float() { Class::Conversion } else { Class::Movement };
    let quick = if width == to.bits() && !saturate { quick(to, from, round, d, x) } else { None };
    let convert = Convert { to, from, round, saturate, width };
    Ok((Op::Arith(quick.unwrap_or(Arith::Convert(convert, d, x))), class))
}

/// Refuses conversions between floats that round in another way than to nearest even, or whose rounding is not said.
fn check_rounding(to: Type, from: Type, nearest: bool, round: Option<Round>) -> Result<(), String> {
    let scalar = |ty| !matches!(ty, Type::F16x2 | Type::BF16x2 | Type::Pred);
    let narrower = to.is_float() && (from.is_integer() || from.bits() > to.bits());
    let whole = from.is_float() && (to.is_integer() || (to == from && round.is_some()));
    let directed = round.is_some_and(|round| round != Round::Nearest);
    if to == Type::F32 && from.is_integer() && directed && !nearest {
        return Ok(());
    }
    let good = scalar(to)
        && scalar(from)
        && nearest == narrower
        && round.is_some() == whole
        && !(to.is_float() && from.is_float() && to != from && to.bits() == from.bits());
    if good { Ok(()) } else { Err(format!("no such conversion of {from:?} to {to:?}")) }
}

/// The conversions that have an instruction of their own.
fn quick(to: Type, from: Type, round: Option<Round>, d: AnyReg, x: AnyReg) -> Option<Arith> {
    use Type::{BF16, F16, F32, S32, U32};
    if to.is_float() && round.is_some() {
        return None;
    }
    let integers = to.is_integer() && from.is_integer();
    Some(match (d, x) {
        (AnyReg::Word(d), AnyReg::Word(x)) => {
            let op = match (to, from, round) {
                (F32, S32, None) => Un::FloatFromSigned,
                (F32, U32, None) => Un::FloatFromUnsigned,
                (F32, F16, None) => Un::FloatFromHalf,
                (F32, BF16, None) => Un::FloatFromBrain,
                (F16, F32, None) => Un::HalfFromFloat,
                (BF16, F32, None) => Un::BrainFromFloat,
                (S32, F32, Some(Round::Nearest)) => Un::NearestFromFloat,
                (S32, F32, Some(Round::Zero)) => Un::TruncatedFromFloat,
                _ if integers => match (to.bits(), from.bits(), from.is_signed()) {
                    (32, 32, _) => Un::Move,
                    (16 | 32, 16, false) | (16, 16 | 32, _) => Un::ZeroExtend16,
                    (32, 16, true) => Un::SignExtend16,
                    (16 | 32, 8, false) => Un::ZeroExtend8,
                    (16, 8, true) => Un::SignExtend8To16,
                    (32, 8, true) => Un::SignExtend8,
                    _ => return None,
                },
                _ => return None,
            };
            Arith::Un(op, d, x)
        }
        (AnyReg::Double(d), AnyReg::Word(x)) if integers => {
            let op = match (from.bits(), from.is_signed()) {
                (32, false) => Widen::Zero,
                (32, true) => Widen::Sign,
                (16, false) => Widen::Zero16,
                (16, true) => Widen::Sign16,
                (8, false) => Widen::Zero8,
                (8, true) => Widen::Sign8,
                _ => return None,
            };
            Arith::Widen(op, d, x)
        }
        (AnyReg::Word(d), AnyReg::Double(x)) if from.bits() == 64 => {
            let op = match (to, from) {
                (F32, Type::S64) => Narrow::FloatFromSigned,
                (F32, Type::U64) => Narrow::FloatFromUnsigned,
                _ if !integers => return None,
                _ if to.bits() == 32 => Narrow::Truncate,
                _ if to.bits() == 16 => Narrow::Truncate16,
                _ => return None,
            };
            Arith::Narrow(op, d, x)
        }
        (AnyReg::Double(d), AnyReg::Double(x)) if integers && from.bits() == 64 => {
            Arith::LongUn(LongUn::Move, d, x)
        }
        _ => return None,
    })
}

/// Between a space's addresses and generic ones.
pub(super) fn cvta<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    let to = mods.take("to");
    let space = mods.one_of(&["global", "const", "shared::cta", "shared", "local", "param"]);
    mods.need("u64")?;
    let [d, x] = exactly(a)?;
    let (d, x) = (f.d(d)?, f.d(x)?);
    let window = match space {
        Some("global" | "const") => 0,
        Some("local") => LOCAL_WINDOW,
        Some("param") => PARAM_WINDOW,
        Some(_) => SHARED_WINDOW,
        None => return Err("a state space expected".to_owned()),
    };
    let op = match window {
        0 => Arith::LongUn(LongUn::Move, d, x),
        _ if to => Arith::LongBin(LongBin::Sub, d, x, f.long_constant(window)),
        _ => Arith::LongBin(LongBin::Add, d, x, f.long_constant(window)),
    };
    Ok((Op::Arith(op), Class::Movement))
}
