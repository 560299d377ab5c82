//! From an instruction's text to what the machine does.

mod convert;
mod float;
mod integer;
mod logic;
mod memory;
mod tensor;
mod warp;

use crate::{
    function::Function,
    operand::Operand,
    program::{Class, Op, Type},
};

/// An operation and what it counts as, or what is wrong with the text.
type Decoded = Result<(Op, Class), String>;

/// The parts of an instruction's name after the first. Each must be taken by what decodes it.
struct Mods<'a> {
    parts: Vec<&'a str>,
}

impl<'a> Mods<'a> {
    fn take(&mut self, part: &str) -> bool {
        let found = self.parts.iter().position(|&other| other == part);
        found.map(|index| self.parts.remove(index)).is_some()
    }

    /// Takes the first of the parts that is there.
    fn one_of(&mut self, parts: &[&'static str]) -> Option<&'static str> {
        parts.iter().copied().find(|part| self.take(part))
    }

    /// Takes the first type.
    fn ty(&mut self) -> Result<Type, String> {
        let found = self.parts.iter().position(|part| Type::named(part).is_some());
        let part = found.map(|index| self.parts.remove(index));
        part.and_then(Type::named).ok_or_else(|| "a type expected".to_owned())
    }

    /// Takes a part that must be there.
    fn need(&mut self, part: &str) -> Result<(), String> {
        if self.take(part) { Ok(()) } else { Err(format!("`.{part}` expected")) }
    }

    fn finish(self) -> Result<(), String> {
        match self.parts.first() {
            None => Ok(()),
            Some(part) => Err(format!("unknown modifier `.{part}`")),
        }
    }
}

/// The operands, of which there must be `N`.
fn exactly<'o, 'a, const N: usize>(operands: &'o [Operand<'a>]) -> Result<&'o [Operand<'a>; N], String> {
    operands.try_into().map_err(|_| format!("{N} operands expected, not {}", operands.len()))
}

/// Decodes an instruction.
pub(crate) fn instruction<'a>(f: &mut Function<'a>, text: &'a str, operands: &[Operand<'a>]) -> Decoded {
    let mut parts = text.split('.');
    let name = parts.next().unwrap_or_default();
    let mut mods = Mods { parts: parts.collect() };
    let decoded = by_name(f, name, &mut mods, operands)?;
    mods.finish()?;
    Ok(decoded)
}

fn by_name<'a>(f: &mut Function<'a>, name: &str, mods: &mut Mods<'a>, operands: &[Operand<'a>]) -> Decoded {
    match name {
        "add" | "sub" | "mul" | "mad" | "div" | "rem" | "min" | "max" | "abs" | "neg" | "fma" | "sqrt"
        | "rcp" => {
            if mods.parts.last().and_then(|part| Type::named(part)).is_some_and(Type::is_float) {
                float::arithmetic(f, name, mods, operands)
            } else {
                integer::arithmetic(f, name, mods, operands)
            }
        }
        "addc" | "subc" | "madc" => integer::carry(f, name, mods, operands),
        "sad" | "dp4a" | "dp2a" | "prmt" | "shf" | "bfe" | "bfi" | "lop3" | "clz" | "popc" | "brev"
        | "bfind" => integer::bits(f, name, mods, operands),
        "and" | "or" | "xor" | "not" | "shl" | "shr" => logic::bitwise(f, name, mods, operands),
        "mov" => logic::mov(f, mods, operands),
        "setp" => logic::setp(f, mods, operands),
        "set" => logic::set(f, mods, operands),
        "selp" => logic::selp(f, mods, operands),
        "slct" => logic::slct(f, mods, operands),
        "cvt" => convert::cvt(f, mods, operands),
        "cvta" => convert::cvta(f, mods, operands),
        "ld" | "ldu" => memory::load(f, mods, operands),
        "st" => memory::store(f, mods, operands),
        "atom" | "red" => memory::atomic(f, name, mods, operands),
        "cp" => memory::copy(f, mods, operands),
        "prefetch" | "prefetchu" | "discard" | "applypriority" => memory::hint(f, name, mods, operands),
        "mma" => tensor::mma(f, mods, operands),
        "ldmatrix" => tensor::ldmatrix(f, mods, operands),
        "movmatrix" => tensor::movmatrix(f, mods, operands),
        _ => warp::instruction(f, name, mods, operands),
    }
}
