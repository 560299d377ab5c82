//! What lanes and warps do together, and where they go.

use super::{Decoded, Mods, exactly};
use crate::{
    function::Function,
    operand::Operand,
    program::{
        AtomicOp, Barrier, BarrierMode, Class, Match, Op, Redux, Scope, Shuffle, ShuffleMode, Type, Vote,
        VoteMode,
    },
};

pub(super) fn instruction<'a>(
    f: &mut Function<'a>,
    name: &str,
    mods: &mut Mods<'a>,
    a: &[Operand<'a>],
) -> Decoded {
    match name {
        "bra" => {
            mods.take("uni");
            let [Operand::Name(label)] = a else { return Err("a label expected".to_owned()) };
            f.jump(label);
            Ok((Op::Branch(0), Class::Control))
        }
        "brx" => {
            mods.need("idx")?;
            mods.take("uni");
            let [index, Operand::Name(list)] = a else { return Err("a list of labels expected".to_owned()) };
            f.jump_indexed(list)?;
            Ok((Op::BranchIndexed(Box::default(), f.w(index, 32)?), Class::Control))
        }
        "ret" | "exit" => {
            mods.take("uni");
            exactly::<0>(a)?;
            Ok((Op::Exit, Class::Control))
        }
        "trap" => Ok((Op::Trap, Class::Control)),
        "nanosleep" => {
            mods.need("u32")?;
            let [time] = exactly(a)?;
            f.w(time, 32)?;
            Ok((Op::Nothing, Class::Other))
        }
        "bar" if mods.take("warp") => {
            mods.need("sync")?;
            let [members] = exactly(a)?;
            Ok((Op::SyncWarp(f.w(members, 32)?), Class::Barrier))
        }
        "bar" | "barrier" => barrier(f, mods, a),
        "membar" | "fence" => fence(mods, a),
        "shfl" => shuffle(f, mods, a),
        "vote" => vote(f, mods, a),
        "match" => matching(f, mods, a),
        "redux" => redux(f, mods, a),
        "activemask" => {
            mods.need("b32")?;
            let [d] = exactly(a)?;
            Ok((Op::ActiveMask(f.w(d, 32)?), Class::Shuffle))
        }
        _ => Err("unknown instruction".to_owned()),
    }
}

fn barrier<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    mods.take("cta");
    // All threads of a warp come together, also where `barrier` would not ask for it.
    mods.take("aligned");
    let mode = mods.one_of(&["sync", "arrive", "red"]);
    let (mode, id, count) = match (mode, a) {
        (Some("sync"), [id]) => (BarrierMode::Sync, id, None),
        (Some("sync"), [id, count]) => (BarrierMode::Sync, id, Some(count)),
        (Some("arrive"), [id, count]) => (BarrierMode::Arrive, id, Some(count)),
        (Some("red"), [d, id, rest @ .., p]) if rest.len() < 2 => {
            let guard = f.maybe_not(p)?;
            let mode = match (mods.one_of(&["popc", "and", "or"]), mods.ty()?) {
                (Some("popc"), Type::U32) => BarrierMode::Popc(f.w(d, 32)?, guard),
                (Some("and"), Type::Pred) => BarrierMode::And(f.p(d)?, guard),
                (Some("or"), Type::Pred) => BarrierMode::Or(f.p(d)?, guard),
                _ => return Err("no such reduction".to_owned()),
            };
            (mode, id, rest.first())
        }
        _ => return Err("no such barrier".to_owned()),
    };
    let count = count.map(|count| f.w(count, 32)).transpose()?;
    Ok((Op::Barrier(Barrier { id: f.w(id, 32)?, count, mode }), Class::Barrier))
}

fn fence<'a>(mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    exactly::<0>(a)?;
    let semantics = mods.one_of(&["sc", "acq_rel"]);
    let scope = match mods.one_of(&["cta", "gl", "gpu", "sys"]) {
        Some("cta") => Scope::Block,
        Some(_) => Scope::Device,
        None => return Err(format!("a scope expected after {semantics:?}")),
    };
    Ok((Op::Fence(scope), Class::Barrier))
}

fn shuffle<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    mods.need("sync")?;
    mods.need("b32")?;
    let mode = match mods.one_of(&["up", "down", "bfly", "idx"]) {
        Some("up") => ShuffleMode::Up,
        Some("down") => ShuffleMode::Down,
        Some("bfly") => ShuffleMode::Butterfly,
        Some(_) => ShuffleMode::Index,
        None => return Err("a mode expected".to_owned()),
    };
    let [d, x, b, c, members] = exactly(a)?;
    let (d, p) = match d {
        Operand::Pair("_", p) => (None, Some(f.p(&Operand::Name(p))?)),
        Operand::Pair(d, p) => (Some(f.w(&Operand::Name(d), 32)?), Some(f.p(&Operand::Name(p))?)),
        _ => (Some(f.w(d, 32)?), None),
    };
    let (a, b, c, members) = (f.w(x, 32)?, f.w(b, 32)?, f.w(c, 32)?, f.w(members, 32)?);
    Ok((Op::Shuffle(Box::new(Shuffle { mode, d, p, a, b, c, members })), Class::Shuffle))
}

fn vote<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    mods.need("sync")?;
    let [d, x, members] = exactly(a)?;
    let mode = match (mods.one_of(&["all", "any", "uni", "ballot"]), mods.ty()?) {
        (Some("all"), Type::Pred) => VoteMode::All(f.p(d)?),
        (Some("any"), Type::Pred) => VoteMode::Any(f.p(d)?),
        (Some("uni"), Type::Pred) => VoteMode::Uniform(f.p(d)?),
        (Some("ballot"), Type::B32) => VoteMode::Ballot(f.w(d, 32)?),
        _ => return Err("no such vote".to_owned()),
    };
    let guard = f.maybe_not(x)?;
    Ok((
        Op::Vote(Vote { mode, a: guard.p, negate: guard.negate, members: f.w(members, 32)? }),
        Class::Shuffle,
    ))
}

fn matching<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    mods.need("sync")?;
    let all = match mods.one_of(&["any", "all"]) {
        Some("any") => false,
        Some(_) => true,
        None => return Err("`.any` or `.all` expected".to_owned()),
    };
    let ty = mods.ty()?;
    if !matches!(ty, Type::B32 | Type::B64) {
        return Err(format!("no `match` of {ty:?}"));
    }
    let [d, x, members] = exactly(a)?;
    let (d, p) = match d {
        Operand::Pair(d, p) if all => (f.w(&Operand::Name(d), 32)?, Some(f.p(&Operand::Name(p))?)),
        _ => (f.w(d, 32)?, None),
    };
    let a = f.any(x, ty.bits())?;
    Ok((Op::Match(Match { all, d, p, a, members: f.w(members, 32)? }), Class::Shuffle))
}

fn redux<'a>(f: &mut Function<'a>, mods: &mut Mods<'a>, a: &[Operand<'a>]) -> Decoded {
    mods.need("sync")?;
    let op = mods.one_of(&["add", "min", "max", "and", "or", "xor"]);
    let op = match (op, mods.ty()?) {
        (Some("add"), Type::U32 | Type::S32) => AtomicOp::Add,
        (Some("min"), Type::S32) => AtomicOp::MinSigned,
        (Some("min"), Type::U32) => AtomicOp::MinUnsigned,
        (Some("max"), Type::S32) => AtomicOp::MaxSigned,
        (Some("max"), Type::U32) => AtomicOp::MaxUnsigned,
        (Some("and"), Type::B32) => AtomicOp::And,
        (Some("or"), Type::B32) => AtomicOp::Or,
        (Some("xor"), Type::B32) => AtomicOp::Xor,
        _ => return Err("no such reduction".to_owned()),
    };
    let [d, x, members] = exactly(a)?;
    Ok((Op::Redux(Redux { op, d: f.w(d, 32)?, a: f.w(x, 32)?, members: f.w(members, 32)? }), Class::Shuffle))
}
