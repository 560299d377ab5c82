//! Integer products of the tensor cores, and their operands.

use super::{Decoded, Mods, exactly};
use crate::{
    function::Function,
    operand::Operand,
    program::{Class, LoadMatrix, Mma, MmaShape, Op, Type, W},
};

pub(super) fn mma<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    for part in ["sync", "aligned", "row", "col"] {
        mods.need(part)?;
    }
    let shape = match mods.one_of(&["m8n8k16", "m16n8k16", "m16n8k32"]) {
        Some("m8n8k16") => MmaShape::M8N8K16,
        Some("m16n8k16") => MmaShape::M16N8K16,
        Some(_) => MmaShape::M16N8K32,
        None => return Err("a shape of 8-bit products expected".to_owned()),
    };
    let types = [mods.ty()?, mods.ty()?, mods.ty()?, mods.ty()?];
    let bytes = types[1..3].iter().all(|ty| matches!(ty, Type::S8 | Type::U8));
    if types[0] != Type::S32 || types[3] != Type::S32 || !bytes {
        return Err("products of 8-bit integers to s32 expected".to_owned());
    }
    let [d, x, y, z] = exactly(a)?;
    let (d, x, y, z) = match shape {
        MmaShape::M8N8K16 => {
            (upto(f.words::<2>(d)?), upto(f.words::<1>(x)?), f.words::<1>(y)?[0], upto(f.words::<2>(z)?))
        }
        MmaShape::M16N8K16 => (f.words(d)?, upto(f.words::<2>(x)?), f.words::<1>(y)?[0], f.words(z)?),
        MmaShape::M16N8K32 => {
            let b = f.words::<2>(y)?;
            let mma = Mma {
                shape,
                signed: [types[1].is_signed(), types[2].is_signed()],
                d: f.words(d)?,
                a: f.words(x)?,
                b,
                c: f.words(z)?,
            };
            return Ok((Op::Mma(Box::new(mma)), Class::Mma));
        }
    };
    let signed = [types[1].is_signed(), types[2].is_signed()];
    Ok((Op::Mma(Box::new(Mma { shape, signed, d, a: x, b: [y, y], c: z })), Class::Mma))
}

/// Fills up with the last one.
fn upto<const N: usize>(words: [W; N]) -> [W; 4] {
    std::array::from_fn(|i| words[i.min(N - 1)])
}

pub(super) fn ldmatrix<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    for part in ["sync", "aligned", "m8n8", "b16"] {
        mods.need(part)?;
    }
    let transposed = mods.take("trans");
    if !mods.take("shared::cta") {
        mods.need("shared")?;
    }
    let [d, from] = exactly(a)?;
    let (count, d) = match mods.one_of(&["x1", "x2", "x4"]) {
        Some("x1") => (1, upto(f.words::<1>(d)?)),
        Some("x2") => (2, upto(f.words::<2>(d)?)),
        Some(_) => (4, f.words(d)?),
        None => return Err("a number of matrices expected".to_owned()),
    };
    let load = LoadMatrix { count, transposed, d, address: f.address(from)? };
    Ok((Op::LoadMatrix(Box::new(load)), Class::Memory))
}

pub(super) fn movmatrix<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    for part in ["sync", "aligned", "m8n8", "trans", "b16"] {
        mods.need(part)?;
    }
    let [d, x] = exactly(a)?;
    Ok((Op::MoveMatrix { d: f.w(d, 32)?, a: f.w(x, 32)? }, Class::Shuffle))
}
