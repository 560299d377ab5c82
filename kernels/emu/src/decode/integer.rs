//! Integer arithmetic.

use super::{Decoded, Mods, exactly};
use crate::{
    function::Function,
    operand::Operand,
    program::{Arith, Bin, Class, LongBin, LongTri, LongUn, Narrow, Op, Tri, Type, Un},
};

/// Which part of a product.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Low,
    High,
    Wide,
}

pub(super) fn arithmetic<'a>(
    f: &mut Function<'a>,
    name: &str,
    mods: &mut Mods<'a>,
    a: &[Operand<'a>],
) -> Decoded {
    if mods.parts.contains(&"cc") {
        return carry(f, name, mods, a);
    }
    let ty = mods.ty()?;
    if !ty.is_integer() || ty.bits() == 8 {
        return Err(format!("no `{name}` of {ty:?}"));
    }
    let part = match name {
        "mul" | "mad" => part(mods)?,
        _ => Part::Low,
    };
    let op = match (name, a.len()) {
        ("abs" | "neg", 2) => unary(f, name, ty, a)?,
        ("mad", 4) => mad(f, part, ty, a)?,
        ("add" | "sub" | "mul" | "div" | "rem" | "min" | "max", 3) => binary(f, name, part, ty, a)?,
        (_, count) => return Err(format!("no `{name}` of {count} operands")),
    };
    Ok((Op::Arith(op), Class::Integer))
}

fn part(mods: &mut Mods<'_>) -> Result<Part, String> {
    match mods.one_of(&["lo", "hi", "wide"]) {
        Some("lo") => Ok(Part::Low),
        Some("hi") => Ok(Part::High),
        Some(_) => Ok(Part::Wide),
        None => Err("`.lo`, `.hi` or `.wide` expected".to_owned()),
    }
}

fn unary<'a>(f: &mut Function<'a>, name: &str, ty: Type, a: &[Operand<'a>]) -> Result<Arith, String> {
    let [d, x] = exactly(a)?;
    let negate = name == "neg";
    Ok(match ty {
        Type::S64 => {
            let op = if negate { LongUn::Neg } else { LongUn::Abs };
            Arith::LongUn(op, f.d(d)?, f.d(x)?)
        }
        Type::S32 => Arith::Un(if negate { Un::Neg } else { Un::Abs }, f.w(d, 32)?, f.w(x, 32)?),
        Type::S16 => Arith::Un(if negate { Un::Neg16 } else { Un::Abs16 }, f.w(d, 16)?, f.w(x, 16)?),
        _ => return Err(format!("no `{name}` of {ty:?}")),
    })
}

fn binary<'a>(
    f: &mut Function<'a>,
    name: &str,
    part: Part,
    ty: Type,
    a: &[Operand<'a>],
) -> Result<Arith, String> {
    let [d, x, y] = exactly(a)?;
    let bits = ty.bits();
    if part == Part::Wide {
        return match ty {
            Type::S32 | Type::U32 => {
                let signed = ty.is_signed();
                Ok(Arith::WideMul { signed, d: f.d(d)?, a: f.w(x, 32)?, b: f.w(y, 32)? })
            }
            Type::U16 => Ok(Arith::Bin(Bin::Mul, f.w(d, 32)?, f.w(x, 16)?, f.w(y, 16)?)),
            Type::S16 => Ok(Arith::Bin(Bin::MulWideSigned16, f.w(d, 32)?, f.w(x, 16)?, f.w(y, 16)?)),
            _ => Err(format!("no wide product of {ty:?}")),
        };
    }
    let none = || format!("no `{name}` of {ty:?}");
    match bits {
        64 => {
            let op = long(name, part, ty.is_signed()).ok_or_else(none)?;
            Ok(Arith::LongBin(op, f.d(d)?, f.d(x)?, f.d(y)?))
        }
        _ => {
            let op = if bits == 16 { short(name, part, ty) } else { word(name, part, ty.is_signed()) };
            Ok(Arith::Bin(op.ok_or_else(none)?, f.w(d, bits)?, f.w(x, bits)?, f.w(y, bits)?))
        }
    }
}

fn word(name: &str, part: Part, signed: bool) -> Option<Bin> {
    Some(match (name, part, signed) {
        ("add", ..) => Bin::Add,
        ("sub", ..) => Bin::Sub,
        ("mul", Part::Low, _) => Bin::Mul,
        ("mul", _, true) => Bin::MulHighSigned,
        ("mul", _, false) => Bin::MulHighUnsigned,
        ("div", _, true) => Bin::DivSigned,
        ("div", _, false) => Bin::DivUnsigned,
        ("rem", _, true) => Bin::RemSigned,
        ("rem", _, false) => Bin::RemUnsigned,
        ("min", _, true) => Bin::MinSigned,
        ("min", _, false) => Bin::MinUnsigned,
        ("max", _, true) => Bin::MaxSigned,
        ("max", _, false) => Bin::MaxUnsigned,
        _ => return None,
    })
}

/// Unsigned operands of 16 bits are as good as ones of 32, where the result needs no more.
fn short(name: &str, part: Part, ty: Type) -> Option<Bin> {
    Some(match (name, part, ty.is_signed()) {
        ("add", ..) => Bin::Add16,
        ("sub", ..) => Bin::Sub16,
        ("mul", Part::Low, _) => Bin::Mul16,
        ("div", _, false) => Bin::DivUnsigned16,
        ("rem", _, false) => Bin::RemUnsigned16,
        ("min", _, true) => Bin::MinSigned16,
        ("min", _, false) => Bin::MinUnsigned,
        ("max", _, true) => Bin::MaxSigned16,
        ("max", _, false) => Bin::MaxUnsigned,
        _ => return None,
    })
}

fn long(name: &str, part: Part, signed: bool) -> Option<LongBin> {
    Some(match (name, part, signed) {
        ("add", ..) => LongBin::Add,
        ("sub", ..) => LongBin::Sub,
        ("mul", Part::Low, _) => LongBin::Mul,
        ("mul", _, true) => LongBin::MulHighSigned,
        ("mul", _, false) => LongBin::MulHighUnsigned,
        ("div", _, true) => LongBin::DivSigned,
        ("div", _, false) => LongBin::DivUnsigned,
        ("rem", _, true) => LongBin::RemSigned,
        ("rem", _, false) => LongBin::RemUnsigned,
        ("min", _, true) => LongBin::MinSigned,
        ("min", _, false) => LongBin::MinUnsigned,
        ("max", _, true) => LongBin::MaxSigned,
        ("max", _, false) => LongBin::MaxUnsigned,
        _ => return None,
    })
}

fn mad<'a>(f: &mut Function<'a>, part: Part, ty: Type, a: &[Operand<'a>]) -> Result<Arith, String> {
    let [d, x, y, z] = exactly(a)?;
    let signed = ty.is_signed();
    let bits = ty.bits();
    let op = match (bits, part, signed) {
        (32, Part::Wide, _) => {
            return Ok(Arith::WideMad { signed, d: f.d(d)?, a: f.w(x, 32)?, b: f.w(y, 32)?, c: f.d(z)? });
        }
        (64, Part::Wide, _) => return Err(format!("no wide product of {ty:?}")),
        (64, ..) => {
            let op = match (part, signed) {
                (Part::Low, _) => LongTri::Mad,
                (_, true) => LongTri::MadHighSigned,
                (_, false) => LongTri::MadHighUnsigned,
            };
            return Ok(Arith::LongTri(op, f.d(d)?, f.d(x)?, f.d(y)?, f.d(z)?));
        }
        (16, Part::Wide, _) => {
            let op = if signed { Tri::MadWideSigned16 } else { Tri::Mad };
            return Ok(Arith::Tri(op, f.w(d, 32)?, f.w(x, 16)?, f.w(y, 16)?, f.w(z, 32)?));
        }
        (16, Part::Low, _) => Tri::Mad16,
        (32, Part::Low, _) => Tri::Mad,
        (32, Part::High, true) => Tri::MadHighSigned,
        (32, Part::High, false) => Tri::MadHighUnsigned,
        _ => return Err(format!("no such product of {ty:?}")),
    };
    Ok(Arith::Tri(op, f.w(d, bits)?, f.w(x, bits)?, f.w(y, bits)?, f.w(z, bits)?))
}

/// Additions and subtractions that take or leave the carry flag.
pub(super) fn carry<'a>(f: &mut Function<'a>, name: &str, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    let leave = mods.take("cc");
    let take = matches!(name, "addc" | "subc" | "madc");
    let multiply = matches!(name, "mad" | "madc");
    let part = if multiply { part(mods)? } else { Part::Low };
    let ty = mods.ty()?;
    let op = match (ty, a.len()) {
        (Type::U32 | Type::S32 | Type::B32, 4) if multiply && part != Part::Wide => {
            let [d, x, y, z] = exactly(a)?;
            Arith::MadCarry {
                high: part == Part::High,
                signed: ty.is_signed(),
                take,
                leave,
                d: f.w(d, 32)?,
                a: f.w(x, 32)?,
                b: f.w(y, 32)?,
                c: f.w(z, 32)?,
            }
        }
        (Type::U32 | Type::S32 | Type::B32, 3) if matches!(name, "add" | "addc" | "sub" | "subc") => {
            let [d, x, y] = exactly(a)?;
            let subtract = name.starts_with("sub");
            Arith::Carry { subtract, take, leave, d: f.w(d, 32)?, a: f.w(x, 32)?, b: f.w(y, 32)? }
        }
        (Type::U64 | Type::S64 | Type::B64, 3) if matches!(name, "add" | "addc" | "sub" | "subc") => {
            let [d, x, y] = exactly(a)?;
            let subtract = name.starts_with("sub");
            Arith::LongCarry { subtract, take, leave, d: f.d(d)?, a: f.d(x)?, b: f.d(y)? }
        }
        _ => return Err(format!("no `{name}` of {ty:?} with the carry flag")),
    };
    Ok((Op::Arith(op), Class::Integer))
}

/// Sums of products of bytes, and what moves bits about.
pub(super) fn bits<'a>(f: &mut Function<'a>, name: &str, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    let op = match name {
        "dp4a" | "dp2a" => dot(f, name, mods, a)?,
        "shf" => funnel(f, mods, a)?,
        "bfe" | "bfi" => field(f, name, mods, a)?,
        "clz" | "popc" | "brev" | "bfind" => count(f, name, mods, a)?,
        "lop3" => {
            mods.need("b32")?;
            let [d, x, y, z, Operand::Number(lut @ 0..=255)] = exactly(a)? else {
                return Err("a table of 8 bits expected".to_owned());
            };
            let lut = *lut as u8;
            Arith::Lop3 { lut, d: f.w(d, 32)?, a: f.w(x, 32)?, b: f.w(y, 32)?, c: f.w(z, 32)? }
        }
        _ => {
            let op = match (name, mods.ty()?) {
                ("prmt", Type::B32) => Tri::Permute,
                ("sad", Type::S32) => Tri::SadSigned,
                ("sad", Type::U32) => Tri::SadUnsigned,
                (_, ty) => return Err(format!("no `{name}` of {ty:?}")),
            };
            let [d, x, y, z] = exactly(a)?;
            Arith::Tri(op, f.w(d, 32)?, f.w(x, 32)?, f.w(y, 32)?, f.w(z, 32)?)
        }
    };
    Ok((Op::Arith(op), Class::Integer))
}

fn dot<'a>(
    f: &mut Function<'a>,
    name: &str,
    mods: &mut Mods<'a>,
    a: &[Operand<'a>],
) -> Result<Arith, String> {
    let half = (name == "dp2a").then(|| part(mods)).transpose()?;
    let signs = [mods.ty()?, mods.ty()?];
    if signs.iter().any(|ty| !matches!(ty, Type::S32 | Type::U32)) {
        return Err("`.s32` or `.u32` expected".to_owned());
    }
    let [first, second] = signs.map(Type::is_signed);
    let op = match half {
        None => Tri::Dp4a(first, second),
        Some(Part::Wide) => return Err("`.lo` or `.hi` expected".to_owned()),
        Some(part) => Tri::Dp2a(first, second, part == Part::High),
    };
    let [d, x, y, z] = exactly(a)?;
    Ok(Arith::Tri(op, f.w(d, 32)?, f.w(x, 32)?, f.w(y, 32)?, f.w(z, 32)?))
}

fn funnel<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Result<Arith, String> {
    mods.need("b32")?;
    let op = match (mods.one_of(&["l", "r"]), mods.one_of(&["clamp", "wrap"])) {
        (Some("l"), Some("clamp")) => Tri::FunnelLeftClamp,
        (Some("l"), Some(_)) => Tri::FunnelLeftWrap,
        (Some(_), Some("clamp")) => Tri::FunnelRightClamp,
        (Some(_), Some(_)) => Tri::FunnelRightWrap,
        _ => return Err("a direction, and `.clamp` or `.wrap`, expected".to_owned()),
    };
    let [d, x, y, z] = exactly(a)?;
    Ok(Arith::Tri(op, f.w(d, 32)?, f.w(x, 32)?, f.w(y, 32)?, f.w(z, 32)?))
}

fn field<'a>(
    f: &mut Function<'a>,
    name: &str,
    mods: &mut Mods<'a>,
    a: &[Operand<'a>],
) -> Result<Arith, String> {
    let ty = mods.ty()?;
    let signed = ty.is_signed();
    match (name, ty) {
        ("bfe", Type::U32 | Type::S32) => {
            let [d, x, y, z] = exactly(a)?;
            let op = if signed { Tri::ExtractSigned } else { Tri::ExtractUnsigned };
            Ok(Arith::Tri(op, f.w(d, 32)?, f.w(x, 32)?, f.w(y, 32)?, f.w(z, 32)?))
        }
        ("bfe", Type::U64 | Type::S64) => {
            let [d, x, y, z] = exactly(a)?;
            Ok(Arith::LongExtract { signed, d: f.d(d)?, a: f.d(x)?, at: f.w(y, 32)?, count: f.w(z, 32)? })
        }
        ("bfi", Type::B32) => {
            let [d, x, y, at, count] = exactly(a)?;
            let (at, count) = (f.w(at, 32)?, f.w(count, 32)?);
            Ok(Arith::Insert { d: f.w(d, 32)?, a: f.w(x, 32)?, b: f.w(y, 32)?, at, count })
        }
        ("bfi", Type::B64) => {
            let [d, x, y, at, count] = exactly(a)?;
            let (at, count) = (f.w(at, 32)?, f.w(count, 32)?);
            Ok(Arith::LongInsert { d: f.d(d)?, a: f.d(x)?, b: f.d(y)?, at, count })
        }
        _ => Err(format!("no `{name}` of {ty:?}")),
    }
}

fn count<'a>(
    f: &mut Function<'a>,
    name: &str,
    mods: &mut Mods<'a>,
    a: &[Operand<'a>],
) -> Result<Arith, String> {
    let [d, x] = exactly(a)?;
    let from_top = name == "bfind" && mods.take("shiftamt");
    let ty = mods.ty()?;
    let signed = ty.is_signed();
    Ok(match (name, ty) {
        ("bfind", Type::U32 | Type::S32) => {
            Arith::Un(Un::Find { signed, from_top }, f.w(d, 32)?, f.w(x, 32)?)
        }
        ("bfind", Type::U64 | Type::S64) => {
            Arith::Narrow(Narrow::Find { signed, from_top }, f.w(d, 32)?, f.d(x)?)
        }
        ("clz", Type::B32) => Arith::Un(Un::Clz, f.w(d, 32)?, f.w(x, 32)?),
        ("popc", Type::B32) => Arith::Un(Un::Popc, f.w(d, 32)?, f.w(x, 32)?),
        ("brev", Type::B32) => Arith::Un(Un::Reverse, f.w(d, 32)?, f.w(x, 32)?),
        ("clz", Type::B64) => Arith::Narrow(Narrow::Clz, f.w(d, 32)?, f.d(x)?),
        ("popc", Type::B64) => Arith::Narrow(Narrow::Popc, f.w(d, 32)?, f.d(x)?),
        ("brev", Type::B64) => Arith::LongUn(LongUn::Reverse, f.d(d)?, f.d(x)?),
        (_, ty) => return Err(format!("no `{name}` of {ty:?}")),
    })
}
