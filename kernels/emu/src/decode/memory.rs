//! Loads, stores, atomics and asynchronous copies.

use super::{Decoded, Mods, exactly};
use crate::{
    function::Function,
    operand::Operand,
    program::{Address, AsyncCopy, Atomic, AtomicOp, Class, Extend, Load, Op, Scope, Space, Store, Type},
};

/// Hints about caches, which change no result.
fn take_hints(mods: &mut Mods<'_>) {
    for hint in [
        "ca",
        "cg",
        "cs",
        "cv",
        "lu",
        "wb",
        "wt",
        "L1::evict_normal",
        "L1::evict_unchanged",
        "L1::evict_first",
        "L1::evict_last",
        "L1::no_allocate",
        "L2::64B",
        "L2::128B",
        "L2::256B",
    ] {
        mods.take(hint);
    }
}

fn scope(mods: &mut Mods<'_>) -> Option<Scope> {
    match mods.one_of(&["cta", "gpu", "sys"]) {
        Some("cta") => Some(Scope::Block),
        Some(_) => Some(Scope::Device),
        None => None,
    }
}

fn space(mods: &mut Mods<'_>) -> Space {
    match mods.one_of(&["global", "shared::cta", "shared", "local", "const", "param"]) {
        Some("global") => Space::Global,
        Some("local") => Space::Local,
        Some("const") => Space::Const,
        Some("param") => Space::Param,
        Some(_) => Space::Shared,
        None => Space::Generic,
    }
}

/// What orders an access: `weak` nothing, others make it strong at a scope.
fn strength(mods: &mut Mods<'_>, ordered: &'static str) -> Result<(Option<Scope>, bool), String> {
    match mods.one_of(&["weak", "volatile", "relaxed", ordered]) {
        None | Some("weak") => Ok((None, false)),
        Some("volatile") => Ok((Some(Scope::Device), false)),
        Some(other) => {
            let scope = scope(mods).ok_or_else(|| "a scope expected".to_owned())?;
            Ok((Some(scope), other == ordered))
        }
    }
}

/// The type and number of elements; together at most 16 bytes.
fn elements<'a>(mods: &mut Mods<'a>, operand: &Operand<'a>) -> Result<Type, String> {
    let count = match mods.one_of(&["v2", "v4"]) {
        Some("v2") => 2,
        Some(_) => 4,
        None => 1,
    };
    let ty = mods.ty()?;
    let written = if let Operand::Vector(list) = operand { list.len() } else { 1 };
    if written != count {
        return Err(format!("{count} registers expected, not {written}"));
    }
    if count as u32 * ty.bits() > 128 || ty == Type::Pred {
        return Err(format!("no access to {count} of {ty:?}"));
    }
    Ok(ty)
}

pub(super) fn load<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    let [d, from] = exactly(a)?;
    let (strong, acquire) = strength(mods, "acquire")?;
    let constant = mods.take("nc");
    let space = space(mods);
    take_hints(mods);
    let ty = elements(mods, d)?;
    let (d, width) = f.vector(d, ty.bits())?;
    let extend = match (ty.is_signed() && width > ty.bits(), width) {
        (false, _) => Extend::Zero,
        (true, 16) => Extend::To16,
        (true, 32) => Extend::To32,
        (true, _) => Extend::To64,
    };
    check_base(f, space, from)?;
    let address = f.address(from)?;
    let bytes = (ty.bits() / 8) as u8;
    let load = Load { space, bytes, extend, strong, acquire, constant, d, address };
    Ok((Op::Load(load), if space == Space::Param { Class::Movement } else { Class::Memory }))
}

/// A name of memory may be used in its own space only.
fn check_base<'a>(f: &Function<'a>, space: Space, operand: &Operand<'a>) -> Result<(), String> {
    if let Operand::Address(Some(name), _) = operand
        && let Some(own) = f.space(name)
        && own != space
        && (own, space) != (Space::Const, Space::Global)
    {
        return Err(format!("`{name}` lies in another state space"));
    }
    Ok(())
}

pub(super) fn store<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    let [to, x] = exactly(a)?;
    let (strong, release) = strength(mods, "release")?;
    let space = space(mods);
    take_hints(mods);
    let ty = elements(mods, x)?;
    if matches!(space, Space::Const | Space::Param) {
        return Err("constants cannot be stored to".to_owned());
    }
    check_base(f, space, to)?;
    let (a, _) = f.vector(x, ty.bits())?;
    let store = Store { space, bytes: (ty.bits() / 8) as u8, strong, release, address: f.address(to)?, a };
    Ok((Op::Store(store), Class::Memory))
}

pub(super) fn atomic<'a>(
    f: &mut Function<'a>,
    name: &str,
    mods: &mut Mods<'a>,
    a: &[Operand<'a>],
) -> Decoded {
    let (acquire, release) = match mods.one_of(&["relaxed", "acq_rel", "acquire", "release"]) {
        Some("acq_rel") => (true, true),
        Some("acquire") => (true, false),
        Some("release") => (false, true),
        _ => (false, false),
    };
    let scope = scope(mods).unwrap_or(Scope::Device);
    let space = space(mods);
    if matches!(space, Space::Local | Space::Const | Space::Param) {
        return Err("atomics are of global or shared memory".to_owned());
    }
    const NAMES: [&str; 10] = ["add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas"];
    let op = mods.one_of(&NAMES).ok_or_else(|| "an operation expected".to_owned())?;
    let ty = mods.ty()?;
    let bits = ty.bits();
    if !ty.is_integer() || bits < 32 {
        return Err(format!("no atomic `{op}` of {ty:?}"));
    }
    let signed = ty.is_signed();
    let op = match op {
        "add" => AtomicOp::Add,
        "min" if signed => AtomicOp::MinSigned,
        "min" => AtomicOp::MinUnsigned,
        "max" if signed => AtomicOp::MaxSigned,
        "max" => AtomicOp::MaxUnsigned,
        "inc" => AtomicOp::Increment,
        "dec" => AtomicOp::Decrement,
        "and" => AtomicOp::And,
        "or" => AtomicOp::Or,
        "xor" => AtomicOp::Xor,
        "exch" => AtomicOp::Exchange,
        _ => AtomicOp::CompareExchange,
    };
    let (d, rest) = match (name, a) {
        ("red", rest) => (None, rest),
        (_, [Operand::Name("_"), rest @ ..]) => (None, rest),
        (_, [d, rest @ ..]) => (Some(f.any(d, bits)?), rest),
        _ => return Err("operands expected".to_owned()),
    };
    let (to, x, y) = match (op, rest) {
        (AtomicOp::CompareExchange, [to, x, y]) => (to, x, Some(f.any(y, bits)?)),
        (AtomicOp::CompareExchange, _) => return Err("two values expected".to_owned()),
        (_, [to, x]) => (to, x, None),
        _ => return Err("an address and a value expected".to_owned()),
    };
    check_base(f, space, to)?;
    let address: Address = f.address(to)?;
    let a = f.any(x, bits)?;
    let atomic = Atomic { space, op, long: bits == 64, scope, acquire, release, d, address, a, b: y };
    Ok((Op::Atomic(Box::new(atomic)), Class::Memory))
}

/// Asynchronous copies of global to shared memory, and their groups.
pub(super) fn copy<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    mods.need("async")?;
    if mods.take("commit_group") {
        exactly::<0>(a)?;
        return Ok((Op::CopyCommit, Class::Other));
    }
    if mods.take("wait_all") {
        exactly::<0>(a)?;
        return Ok((Op::CopyWaitAll, Class::Other));
    }
    if mods.take("wait_group") {
        let [Operand::Number(pending)] = a else { return Err("a number expected".to_owned()) };
        return Ok((Op::CopyWait(u32::try_from(*pending).unwrap_or(u32::MAX)), Class::Other));
    }
    let past_l1 = mods.take("cg");
    if !past_l1 {
        mods.need("ca")?;
    }
    if !mods.take("shared::cta") {
        mods.need("shared")?;
    }
    mods.need("global")?;
    take_hints(mods);
    let (to, from, bytes, rest) = match a {
        [to, from, Operand::Number(bytes @ (4 | 8 | 16)), rest @ ..] => (to, from, *bytes as u8, rest),
        _ => return Err("a copy of 4, 8 or 16 bytes expected".to_owned()),
    };
    if past_l1 && bytes != 16 {
        return Err("`.cg` copies 16 bytes".to_owned());
    }
    let (mut size, mut ignore) = (None, None);
    match rest {
        [] => {}
        [Operand::Name(name)] if f.is_predicate(name) => ignore = Some(f.p(&Operand::Name(name))?),
        [bytes] => size = Some(f.w(bytes, 32)?),
        _ => return Err("three or four operands expected".to_owned()),
    }
    let copy = AsyncCopy { to: f.address(to)?, from: f.address(from)?, bytes, size, ignore };
    Ok((Op::Copy(copy), Class::Copy))
}

pub(super) fn hint<'a>(f: &mut Function<'a>, name: &str, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    if !name.starts_with("prefetch") {
        return Err("unknown instruction".to_owned());
    }
    let space = space(mods);
    if mods.one_of(&["L1", "L2", "L2::evict_last", "L2::evict_normal"]).is_none() {
        return Err("a cache expected".to_owned());
    }
    let [from] = exactly(a)?;
    check_base(f, space, from)?;
    f.address(from)?;
    Ok((Op::Nothing, Class::Memory))
}
