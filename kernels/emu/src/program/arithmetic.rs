//! What is done lane by lane.

use super::{AnyReg, D, P, Type, W};

/// Lane by lane, from registers to registers.
#[derive(Clone, Debug)]
pub(crate) enum Arith {
    Un(Un, W, W),
    Bin(Bin, W, W, W),
    Tri(Tri, W, W, W, W),
    Insert {
        d: W,
        a: W,
        b: W,
        at: W,
        count: W,
    },
    Lop3 {
        lut: u8,
        d: W,
        a: W,
        b: W,
        c: W,
    },
    LongUn(LongUn, D, D),
    LongBin(LongBin, D, D, D),
    LongTri(LongTri, D, D, D, D),
    LongShift(LongShift, D, D, W),
    LongExtract {
        signed: bool,
        d: D,
        a: D,
        at: W,
        count: W,
    },
    LongInsert {
        d: D,
        a: D,
        b: D,
        at: W,
        count: W,
    },
    Widen(Widen, D, W),
    Narrow(Narrow, W, D),
    WideMul {
        signed: bool,
        d: D,
        a: W,
        b: W,
    },
    WideMad {
        signed: bool,
        d: D,
        a: W,
        b: W,
        c: D,
    },
    Test(Test, TestTo, W, W),
    LongTest(LongTest, TestTo, D, D),
    Select {
        d: W,
        a: W,
        b: W,
        p: P,
    },
    LongSelect {
        d: D,
        a: D,
        b: D,
        p: P,
    },
    /// `set`: all ones, or 1.0, where the comparison holds.
    Set {
        test: Test,
        holds: u32,
        d: W,
        a: W,
        b: W,
    },
    /// `slct`: a where c is not negative.
    SelectBySign {
        float: bool,
        d: W,
        a: W,
        b: W,
        c: W,
    },
    Predicate(Logic, P, P, P),
    PredicateNot(P, P),
    /// Addition or, with `subtract`, subtraction with the carry flag.
    Carry {
        subtract: bool,
        take: bool,
        leave: bool,
        d: W,
        a: W,
        b: W,
    },
    LongCarry {
        subtract: bool,
        take: bool,
        leave: bool,
        d: D,
        a: D,
        b: D,
    },
    MadCarry {
        high: bool,
        signed: bool,
        take: bool,
        leave: bool,
        d: W,
        a: W,
        b: W,
        c: W,
    },
    /// The second is the upper half.
    Pack(D, W, W),
    Unpack([Option<W>; 2], D),
    Pack16(W, W, W),
    Unpack16([Option<W>; 2], W),
    PackFour(D, [W; 4]),
    UnpackFour([Option<W>; 4], D),
    Convert(Convert, AnyReg, AnyReg),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Un {
    Move,
    Not,
    Not16,
    Neg,
    Neg16,
    Abs,
    Abs16,
    Clz,
    Popc,
    Reverse,
    /// The place of the highest bit that differs from the sign; or how far it is from the top.
    Find {
        signed: bool,
        from_top: bool,
    },
    FNeg,
    FAbs,
    FSqrt,
    FRecip,
    SignExtend8,
    SignExtend16,
    ZeroExtend8,
    ZeroExtend16,
    /// To 16 bits.
    SignExtend8To16,
    FloatFromSigned,
    FloatFromUnsigned,
    FloatFromHalf,
    FloatFromBrain,
    HalfFromFloat,
    BrainFromFloat,
    /// To s32, round to nearest even or toward zero.
    NearestFromFloat,
    TruncatedFromFloat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bin {
    Add,
    Sub,
    Mul,
    MulHighSigned,
    MulHighUnsigned,
    MinSigned,
    MinUnsigned,
    MaxSigned,
    MaxUnsigned,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
    ShiftRightSigned,
    DivSigned,
    DivUnsigned,
    RemSigned,
    RemUnsigned,
    Add16,
    Sub16,
    Mul16,
    MinSigned16,
    MaxSigned16,
    ShiftLeft16,
    ShiftRightSigned16,
    MulWideSigned16,
    DivUnsigned16,
    RemUnsigned16,
    FAdd,
    FSub,
    FMul,
    FDiv,
    FMin,
    FMax,
    FMinNan,
    FMaxNan,
    /// Two floats, the first to the upper half.
    PackHalves,
    PackBrains,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tri {
    Mad,
    MadHighSigned,
    MadHighUnsigned,
    Mad16,
    MadWideSigned16,
    Fma,
    SadSigned,
    SadUnsigned,
    /// Whether the first, and the second factor is signed.
    Dp4a(bool, bool),
    /// Also whether it takes the upper two bytes of the second.
    Dp2a(bool, bool, bool),
    Permute,
    FunnelLeftClamp,
    FunnelLeftWrap,
    FunnelRightClamp,
    FunnelRightWrap,
    ExtractUnsigned,
    ExtractSigned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LongUn {
    Move,
    Not,
    Neg,
    Abs,
    Reverse,
    FNeg,
    FAbs,
    FSqrt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LongBin {
    Add,
    Sub,
    Mul,
    MulHighSigned,
    MulHighUnsigned,
    MinSigned,
    MinUnsigned,
    MaxSigned,
    MaxUnsigned,
    And,
    Or,
    Xor,
    DivSigned,
    DivUnsigned,
    RemSigned,
    RemUnsigned,
    FAdd,
    FSub,
    FMul,
    FDiv,
    FMin,
    FMax,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LongTri {
    Mad,
    MadHighSigned,
    MadHighUnsigned,
    Fma,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LongShift {
    Left,
    Right,
    RightSigned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Widen {
    Zero,
    Sign,
    Zero16,
    Sign16,
    Zero8,
    Sign8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Narrow {
    Truncate,
    Truncate16,
    Clz,
    Popc,
    Find { signed: bool, from_top: bool },
    FloatFromSigned,
    FloatFromUnsigned,
}

/// Comparison of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    Equal,
    NotEqual,
    Signed(Order),
    Unsigned(Order),
    Signed16(Order),
    Float(Compare),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LongTest {
    Equal,
    NotEqual,
    Signed(Order),
    Unsigned(Order),
    Float(Compare),
}

/// Order of integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

/// Order of floats: without `or_nan`, false where one is NaN; with it, true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    Equal { or_nan: bool },
    NotEqual { or_nan: bool },
    Order { less: Order, or_nan: bool },
    Numbers,
    Nan,
}

/// Where a comparison goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TestTo {
    pub(crate) d: P,
    /// Gets the contrary (of the comparison, then joined as well).
    pub(crate) contrary: Option<P>,
    /// Joined with this predicate, negated or not.
    pub(crate) with: Option<(Logic, P, bool)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

/// A conversion that is not worth its own instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Convert {
    pub(crate) to: Type,
    pub(crate) from: Type,
    /// Of a float to a whole number, or of an integer to f32 in another way than to nearest.
    pub(crate) round: Option<Round>,
    pub(crate) saturate: bool,
    /// Bits of the destination register: a narrower result is extended to it.
    pub(crate) width: u32,
}

/// How a float becomes a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}
