//! Operands as they are written.

use crate::{
    lex::{Tokens, float, integer},
    module::ParseError,
    program::Special,
};

/// An operand as it is written.
#[derive(Clone, Debug)]
pub(crate) enum Operand<'a> {
    Name(&'a str),
    /// `!p`
    Not(&'a str),
    /// `p|q`
    Pair(&'a str, &'a str),
    /// `name+8`
    Sum(&'a str, i64),
    Number(u64),
    Float(u64, u32),
    Vector(Vec<Operand<'a>>),
    /// `[name+8]`, `[8]`
    Address(Option<&'a str>, i64),
}

/// The special register of a name.
pub(crate) fn special(name: &str) -> Option<Special> {
    let (base, dimension) = name.split_once('.').unwrap_or((name, ""));
    let dimension = match dimension {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        "" => None,
        _ => return None,
    };
    Some(match (base, dimension) {
        ("%tid", Some(d)) => Special::Tid(d),
        ("%ntid", Some(d)) => Special::Ntid(d),
        ("%ctaid", Some(d)) => Special::Ctaid(d),
        ("%nctaid", Some(d)) => Special::Nctaid(d),
        ("%laneid", None) => Special::LaneId,
        ("%warpid", None) => Special::WarpId,
        ("%nwarpid", None) => Special::WarpCount,
        ("%lanemask_eq", None) => Special::MaskEqual,
        ("%lanemask_lt", None) => Special::MaskLess,
        ("%lanemask_le", None) => Special::MaskLessEqual,
        ("%lanemask_gt", None) => Special::MaskGreater,
        ("%lanemask_ge", None) => Special::MaskGreaterEqual,
        ("%dynamic_smem_size", None) => Special::DynamicShared,
        ("%total_smem_size", None) => Special::TotalShared,
        _ => return None,
    })
}

/// Operands up to the semicolon.
pub(crate) fn operands<'a>(tokens: &mut Tokens<'a>) -> Result<Vec<Operand<'a>>, ParseError> {
    let mut operands = Vec::new();
    if tokens.take(";") {
        return Ok(operands);
    }
    loop {
        operands.push(operand(tokens)?);
        if !tokens.take(",") {
            tokens.expect(";")?;
            return Ok(operands);
        }
    }
}

fn operand<'a>(tokens: &mut Tokens<'a>) -> Result<Operand<'a>, ParseError> {
    match tokens.peek() {
        "{" => {
            tokens.next();
            let mut list = Vec::new();
            loop {
                list.push(scalar(tokens)?);
                if !tokens.take(",") {
                    tokens.expect("}")?;
                    return Ok(Operand::Vector(list));
                }
            }
        }
        "[" => {
            tokens.next();
            let inside = scalar(tokens)?;
            tokens.expect("]")?;
            match inside {
                Operand::Name(name) => Ok(Operand::Address(Some(name), 0)),
                Operand::Sum(name, offset) => Ok(Operand::Address(Some(name), offset)),
                Operand::Number(address) => Ok(Operand::Address(None, address as i64)),
                _ => Err(tokens.error("an address expected")),
            }
        }
        "!" => {
            tokens.next();
            Ok(Operand::Not(tokens.name()?))
        }
        _ => scalar(tokens),
    }
}

fn scalar<'a>(tokens: &mut Tokens<'a>) -> Result<Operand<'a>, ParseError> {
    let text = tokens.peek();
    if text == "-" || text.starts_with(|c: char| c.is_ascii_digit()) {
        if let Some((bits, width)) = float(text) {
            tokens.next();
            return Ok(Operand::Float(bits, width));
        }
        return Ok(Operand::Number(signed(tokens)? as u64));
    }
    let name = tokens.name()?;
    if tokens.take("|") {
        return Ok(Operand::Pair(name, tokens.name()?));
    }
    if tokens.take("+") {
        return Ok(Operand::Sum(name, signed(tokens)?));
    }
    if tokens.peek() == "-" {
        return Ok(Operand::Sum(name, signed(tokens)?));
    }
    Ok(Operand::Name(name))
}

fn signed(tokens: &mut Tokens<'_>) -> Result<i64, ParseError> {
    let negative = tokens.take("-");
    let value = integer(tokens.peek());
    let value = value.ok_or_else(|| tokens.error(format!("a number expected, not `{}`", tokens.peek())))?;
    tokens.next();
    Ok(if negative { (value as i64).wrapping_neg() } else { value as i64 })
}
