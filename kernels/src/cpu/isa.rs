//! Which instructions the kernels may use.

use std::fmt;

#[cfg(target_arch = "x86_64")]
use super::{amx::Amx, avx2::Avx2, avx512::Avx512};
use super::{
    portable::Portable,
    simd::{Op, Simd},
    tiles::TileUnit,
};

/// An instruction set the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the compiler targets; slow without hardware fma.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX2 with AVX-VNNI.
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// AVX-512 with the tile unit of AMX-int8.
    Amx,
}

impl Isa {
    /// The fastest that this CPU has.
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// All that this CPU has, slowest first.
    pub fn available() -> Vec<Self> {
        [Self::Portable, Self::Avx2, Self::AvxVnni, Self::Avx512, Self::Amx]
            .into_iter()
            .filter(|&isa| Proof::of(isa).is_some())
            .collect()
    }

    /// The name used on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// That the CPU has the instructions of an [`Isa`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Proof {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2<false>),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(Avx2<true>),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Amx(Avx512, Amx),
}

impl Proof {
    /// The proof, if it holds.
    pub(crate) fn of(isa: Isa) -> Option<Self> {
        match isa {
            Isa::Portable => Some(Self::Portable(Portable)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::new().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Avx2::new().map(Self::AvxVnni),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Avx512::new().map(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Some(Self::Amx(Avx512::new()?, Amx::new()?)),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 | Isa::Amx => None,
        }
    }

    /// What was proved.
    pub(crate) fn isa(self) -> Isa {
        match self {
            Self::Portable(_) => Isa::Portable,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Isa::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(_) => Isa::AvxVnni,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => Isa::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Amx(..) => Isa::Amx,
        }
    }

    /// The tile unit, if there is one.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn tiles(self) -> Option<impl TileUnit> {
        if let Self::Amx(_, amx) = self { Some(amx) } else { None }
    }

    /// The tile unit, if there is one.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn tiles(self) -> Option<impl TileUnit> {
        None::<super::tiles::Emulated>
    }

    /// What packing adds to a `q8` weight, see [`Simd::Q8_BIAS`].
    pub(crate) fn q8_bias(self) -> i32 {
        match self {
            Self::Portable(_) => Portable::Q8_BIAS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Avx2::<false>::Q8_BIAS,
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(_) => Avx2::<true>::Q8_BIAS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) | Self::Amx(..) => Avx512::Q8_BIAS,
        }
    }

    /// Runs `op` compiled for this instruction set.
    pub(crate) fn dispatch<O: Op>(self, op: O) -> O::Out {
        match self {
            Self::Portable(s) => s.dispatch(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(s) => s.dispatch(op),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(s) => s.dispatch(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(s) | Self::Amx(s, _) => s.dispatch(op),
        }
    }
}
