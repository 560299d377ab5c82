//! Floating-point arithmetic: only what rounds to nearest even, keeps subnormals and is not contracted.

use super::{Decoded, Mods, exactly};
use crate::{
    function::Function,
    operand::Operand,
    program::{Arith, Bin, Class, LongBin, LongTri, LongUn, Op, Tri, Type, Un},
};

pub(super) fn arithmetic<'a>(
    f: &mut Function<'a>,
    name: &str,
    mods: &mut Mods<'a>,
    a: &[Operand<'a>],
) -> Decoded {
    let rounds = matches!(name, "add" | "sub" | "mul" | "div" | "fma" | "sqrt" | "rcp");
    if rounds {
        // Without it the assembler may fuse a product and a sum.
        mods.need("rn")?;
    }
    let op = match mods.ty()? {
        Type::F32 => single(f, name, mods, a)?,
        Type::F64 => double(f, name, mods, a)?,
        other => return Err(format!("no `{name}` of {other:?}")),
    };
    let class = if matches!(name, "div" | "sqrt" | "rcp") { Class::Division } else { Class::Float };
    Ok((Op::Arith(op), class))
}

fn single<'a>(
    f: &mut Function<'a>,
    name: &str,
    mods: &mut Mods<'a>,
    a: &[Operand<'a>],
) -> Result<Arith, String> {
    let unary = match name {
        "neg" => Some(Un::FNeg),
        "abs" => Some(Un::FAbs),
        "sqrt" => Some(Un::FSqrt),
        "rcp" => Some(Un::FRecip),
        _ => None,
    };
    if let Some(op) = unary {
        let [d, x] = exactly(a)?;
        return Ok(Arith::Un(op, f.w(d, 32)?, f.w(x, 32)?));
    }
    if name == "fma" {
        let [d, x, y, z] = exactly(a)?;
        return Ok(Arith::Tri(Tri::Fma, f.w(d, 32)?, f.w(x, 32)?, f.w(y, 32)?, f.w(z, 32)?));
    }
    let op = match name {
        "add" => Bin::FAdd,
        "sub" => Bin::FSub,
        "mul" => Bin::FMul,
        "div" => Bin::FDiv,
        "min" if mods.take("NaN") => Bin::FMinNan,
        "max" if mods.take("NaN") => Bin::FMaxNan,
        "min" => Bin::FMin,
        "max" => Bin::FMax,
        _ => return Err(format!("no `{name}` of f32")),
    };
    let [d, x, y] = exactly(a)?;
    Ok(Arith::Bin(op, f.w(d, 32)?, f.w(x, 32)?, f.w(y, 32)?))
}

fn double<'a>(
    f: &mut Function<'a>,
    name: &str,
    _: &mut Mods<'a>,
    a: &[Operand<'a>],
) -> Result<Arith, String> {
    let unary = match name {
        "neg" => Some(LongUn::FNeg),
        "abs" => Some(LongUn::FAbs),
        "sqrt" => Some(LongUn::FSqrt),
        _ => None,
    };
    if let Some(op) = unary {
        let [d, x] = exactly(a)?;
        return Ok(Arith::LongUn(op, f.d(d)?, f.d(x)?));
    }
    if name == "fma" {
        let [d, x, y, z] = exactly(a)?;
        return Ok(Arith::LongTri(LongTri::Fma, f.d(d)?, f.d(x)?, f.d(y)?, f.d(z)?));
    }
    let op = match name {
        "add" => LongBin::FAdd,
        "sub" => LongBin::FSub,
        "mul" => LongBin::FMul,
        "div" => LongBin::FDiv,
        "min" => LongBin::FMin,
        "max" => LongBin::FMax,
        _ => return Err(format!("no `{name}` of f64")),
    };
    let [d, x, y] = exactly(a)?;
    Ok(Arith::LongBin(op, f.d(d)?, f.d(x)?, f.d(y)?))
}
