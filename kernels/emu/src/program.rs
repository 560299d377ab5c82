//! A kernel as the machine executes it: registers are slots, labels are indices, constants stand in slots of their own.

mod arithmetic;

pub(crate) use arithmetic::{
    Arith, Bin, Compare, Convert, Logic, LongBin, LongShift, LongTest, LongTri, LongUn, Narrow, Order, Round,
    Test, TestTo, Tri, Un, Widen,
};

/// Slot of a register of up to 32 bits. One of 16 bits holds them zero-extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct W(pub(crate) u32);

/// Slot of a register of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct D(pub(crate) u32);

/// Slot of a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct P(pub(crate) u32);

/// A kernel.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    /// Bytes of the parameters.
    pub(crate) params: u32,
    /// Most threads of a block, and the only number of them in each dimension, where the kernel says so.
    pub(crate) max_threads: Option<u32>,
    pub(crate) required_block: Option<[u32; 3]>,
    pub(crate) code: Vec<Inst>,
    pub(crate) words: u32,
    pub(crate) doubles: u32,
    pub(crate) predicates: u32,
    pub(crate) word_constants: Vec<(W, u32)>,
    pub(crate) double_constants: Vec<(D, u64)>,
    pub(crate) predicate_constants: Vec<(P, bool)>,
    pub(crate) specials: Vec<(W, Special)>,
    /// Bytes of static shared memory, to where the dynamic begins.
    pub(crate) shared: u32,
    /// Bytes of a thread's local memory.
    pub(crate) local: u32,
}

/// An instruction.
#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    /// Only lanes where the predicate is `!negate` take part.
    pub(crate) guard: Option<Guard>,
    pub(crate) class: Class,
    /// Line of the text.
    pub(crate) line: u32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    pub(crate) p: P,
    pub(crate) negate: bool,
}

/// What an instruction counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Integer,
    Float,
    Division,
    Conversion,
    Movement,
    Memory,
    Copy,
    Mma,
    Shuffle,
    Barrier,
    Control,
    Other,
}

impl Class {
    pub(crate) const COUNT: usize = 12;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    WarpCount,
    MaskEqual,
    MaskLess,
    MaskLessEqual,
    MaskGreater,
    MaskGreaterEqual,
    DynamicShared,
    TotalShared,
}

/// What is done. Operands read left to right as in PTX.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Arith(Arith),
    Load(Load),
    Store(Store),
    Copy(AsyncCopy),
    CopyCommit,
    /// Waits until at most so many groups are on their way.
    CopyWait(u32),
    /// Waits for all copies, of open groups as well.
    CopyWaitAll,
    Atomic(Box<Atomic>),
    Shuffle(Box<Shuffle>),
    Vote(Vote),
    Match(Match),
    Redux(Redux),
    ActiveMask(W),
    SyncWarp(W),
    Mma(Box<Mma>),
    LoadMatrix(Box<LoadMatrix>),
    MoveMatrix {
        d: W,
        a: W,
    },
    Barrier(Barrier),
    Fence(Scope),
    Branch(u32),
    BranchIndexed(Box<[u32]>, W),
    Exit,
    Trap,
    /// Hints.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnyReg {
    Word(W),
    Double(D),
}

/// The types of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    BF16,
    BF16x2,
    F32,
    F64,
}

impl Type {
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Pred,
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" => Self::B32,
            "b64" => Self::B64,
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "f16x2" => Self::F16x2,
            "bf16" => Self::BF16,
            "bf16x2" => Self::BF16x2,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => return None,
        })
    }

    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Pred => 1,
            Self::B8 | Self::U8 | Self::S8 => 8,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::BF16 => 16,
            Self::B32 | Self::U32 | Self::S32 | Self::F32 | Self::F16x2 | Self::BF16x2 => 32,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 64,
        }
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    pub(crate) fn is_integer(self) -> bool {
        !matches!(self, Self::Pred) && !self.is_float()
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::F16x2 | Self::BF16 | Self::BF16x2 | Self::F32 | Self::F64)
    }
}

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    Param,
}

/// A register, if any, plus an offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) base: Option<AnyReg>,
    pub(crate) offset: i64,
}

/// Registers of a load or a store; none where the value is thrown away.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vector {
    pub(crate) count: u8,
    pub(crate) regs: [Option<AnyReg>; 4],
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) space: Space,
    /// Bytes of an element.
    pub(crate) bytes: u8,
    /// How an element becomes as wide as its register.
    pub(crate) extend: Extend,
    /// May race with atomics: `volatile`, `relaxed`, `acquire`.
    pub(crate) strong: Option<Scope>,
    pub(crate) acquire: bool,
    /// The memory must not change while the kernel runs: `nc`.
    pub(crate) constant: bool,
    pub(crate) d: Vector,
    pub(crate) address: Address,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extend {
    Zero,
    To16,
    To32,
    To64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Store {
    pub(crate) space: Space,
    pub(crate) bytes: u8,
    pub(crate) strong: Option<Scope>,
    pub(crate) release: bool,
    pub(crate) address: Address,
    pub(crate) a: Vector,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct AsyncCopy {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) bytes: u8,
    /// Bytes that are read; the others are zeros.
    pub(crate) size: Option<W>,
    /// Reads nothing where it holds.
    pub(crate) ignore: Option<P>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Block,
    Device,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Atomic {
    pub(crate) space: Space,
    pub(crate) op: AtomicOp,
    pub(crate) long: bool,
    pub(crate) scope: Scope,
    pub(crate) acquire: bool,
    pub(crate) release: bool,
    pub(crate) d: Option<AnyReg>,
    pub(crate) address: Address,
    pub(crate) a: AnyReg,
    /// The new value of `cas`.
    pub(crate) b: Option<AnyReg>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    Add,
    MinSigned,
    MinUnsigned,
    MaxSigned,
    MaxUnsigned,
    Increment,
    Decrement,
    And,
    Or,
    Xor,
    Exchange,
    CompareExchange,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Shuffle {
    pub(crate) mode: ShuffleMode,
    pub(crate) d: Option<W>,
    /// Whether the source lane was in range.
    pub(crate) p: Option<P>,
    pub(crate) a: W,
    pub(crate) b: W,
    pub(crate) c: W,
    pub(crate) members: W,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Vote {
    pub(crate) mode: VoteMode,
    pub(crate) a: P,
    pub(crate) negate: bool,
    pub(crate) members: W,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum VoteMode {
    All(P),
    Any(P),
    Uniform(P),
    Ballot(W),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Match {
    /// Whether all agree; otherwise which lanes have the same.
    pub(crate) all: bool,
    pub(crate) d: W,
    pub(crate) p: Option<P>,
    pub(crate) a: AnyReg,
    pub(crate) members: W,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Redux {
    pub(crate) op: AtomicOp,
    pub(crate) d: W,
    pub(crate) a: W,
    pub(crate) members: W,
}

/// An integer tensor core product: D (m x 8) = A (m x k, by rows) * B (k x 8, by columns) + C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mma {
    pub(crate) shape: MmaShape,
    pub(crate) signed: [bool; 2],
    pub(crate) d: [W; 4],
    pub(crate) a: [W; 4],
    pub(crate) b: [W; 2],
    pub(crate) c: [W; 4],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MmaShape {
    M8N8K16,
    M16N8K16,
    M16N8K32,
}

/// 8 x 8 matrices of 16-bit elements from shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadMatrix {
    pub(crate) count: u8,
    pub(crate) transposed: bool,
    pub(crate) d: [W; 4],
    pub(crate) address: Address,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Barrier {
    pub(crate) id: W,
    /// Threads that take part; none for all of the block.
    pub(crate) count: Option<W>,
    pub(crate) mode: BarrierMode,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum BarrierMode {
    Sync,
    Arrive,
    Popc(W, Guard),
    And(P, Guard),
    Or(P, Guard),
}
