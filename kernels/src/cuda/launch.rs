//! A kernel launch as data.

use bytemuck::Pod;

/// An address on the device.
pub type DevicePtr = u64;

/// Most bytes of a parameter block.
const PARAM_WORDS: usize = 64;

/// The compute capability that PTX was compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Turing (`compute_75`).
    Turing,
    /// Ampere and later (`compute_80`).
    Ampere,
}

impl Level {
    /// What the compiler calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Turing => "compute_75",
            Self::Ampere => "compute_80",
        }
    }

    /// Every level.
    pub const ALL: [Self; 2] = [Self::Turing, Self::Ampere];

    /// The best level for a card of compute capability `major.minor`; none below 7.5.
    pub fn of(major: u32, minor: u32) -> Option<Self> {
        match (major, minor) {
            (8.., _) => Some(Self::Ampere),
            (7, 5..) => Some(Self::Turing),
            _ => None,
        }
    }
}

/// Defines [`Source`] with the PTX of each file in `kernels/cu`.
macro_rules! sources {
    ($($(#[$doc:meta])* $name:ident = $file:literal),+ $(,)?) => {
        /// A source file of kernels.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Source {
            $($(#[$doc])* $name),+
        }

        impl Source {
            /// Every source.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Its name without `.cu`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $file),+
                }
            }

            /// The PTX that was compiled from it.
            pub const fn ptx(self, level: Level) -> &'static str {
                match (self, level) {
                    $(
                        (Self::$name, Level::Turing) => include_str!(concat!("../../cu/ptx/75/", $file, ".ptx")),
                        (Self::$name, Level::Ampere) => include_str!(concat!("../../cu/ptx/80/", $file, ".ptx")),
                    )+
                }
            }
        }
    };
}

sources! {
    /// Attention.
    Attention = "attention",
    /// Moving rows about.
    Copy = "copy",
    /// Drawing tokens.
    Draw = "draw",
    /// Embedding rows.
    Embed = "embed",
    /// Linear layers over many rows.
    Gemm = "gemm",
    /// Heads between their product and attention.
    Heads = "heads",
    /// Linear layers at decoding.
    Linear = "linear",
    /// Norms, rounding, quantising of rows.
    Norm = "norm",
}

/// One launch of one kernel. Grids and blocks are those of CUDA; blocks have one dimension.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Where the kernel is.
    pub source: Source,
    /// Its name.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    params: [u64; PARAM_WORDS],
    length: usize,
}

impl Launch {
    /// A launch whose parameter block is `params`.
    pub fn new<P: Pod>(
        source: Source,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        params: &P,
    ) -> Self {
        let bytes = bytemuck::bytes_of(params);
        let mut block = [0; PARAM_WORDS];
        bytemuck::cast_slice_mut::<u64, u8>(&mut block)[..bytes.len()].copy_from_slice(bytes);
        Self { source, kernel, grid, threads, shared, params: block, length: bytes.len() }
    }

    /// The parameter block.
    pub fn params(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.params)[..self.length]
    }
}
