//! Norms of rows, rows on their way into a linear layer, the rounding at the end of a layer (`norm.cu`).

use bytemuck::{Pod, Zeroable};

use crate::{
    backend::{Grouping, Profile},
    cuda::launch::{DevicePtr, Launch, Source},
    tensor::{GROUP, SEGMENT},
};

/// Threads of a block, one block a row.
const THREADS: u32 = 256;

/// Rows as the input of linear layers: where each form stands on the device, 0 where it is not wanted. All of it is
/// zero when it is allocated, and what lies past the width of a row stays so. K256 is the width rounded up to 256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Activation {
    /// i8 `[rows][K256]`, in groups of 32.
    pub narrow: DevicePtr,
    /// f32 `[rows][K256 / 32]`.
    pub narrow_scales: DevicePtr,
    /// i8 `[rows][K256]`, in groups of 256.
    pub wide: DevicePtr,
    /// f32 `[rows][K256 / 256]`.
    pub wide_scales: DevicePtr,
    /// f32 `[rows][K256]`.
    pub values: DevicePtr,
    /// Values of a row.
    pub width: u32,
    /// 1 under [`Profile::Quantised`]: a value that is not finite is a fault of the quantiser.
    pub quantised: u32,
}

/// Bytes of each part of an [`Activation`], in the order of its fields; 0 for what is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationBytes {
    /// Of `narrow`.
    pub narrow: usize,
    /// Of `narrow_scales`.
    pub narrow_scales: usize,
    /// Of `wide`.
    pub wide: usize,
    /// Of `wide_scales`.
    pub wide_scales: usize,
    /// Of `values`.
    pub values: usize,
}

impl ActivationBytes {
    /// Of `rows` rows of `width` values. `values` says whether a float-weight layer reads them; under
    /// [`Profile::F32`] they are all there is.
    pub fn new(rows: usize, width: usize, profile: Profile, grouping: Grouping, values: bool) -> Self {
        let padded = rows * width.next_multiple_of(SEGMENT);
        let quantised = profile == Profile::Quantised;
        let part = |wanted: bool, bytes: usize| if wanted { bytes } else { 0 };
        Self {
            narrow: part(quantised && grouping.narrow, padded),
            narrow_scales: part(quantised && grouping.narrow, padded / GROUP * 4),
            wide: part(quantised && grouping.wide, padded),
            wide_scales: part(quantised && grouping.wide, padded / SEGMENT * 4),
            values: part(values || !quantised, padded * 4),
        }
    }
}

/// A root-mean-square norm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct RmsNorm {
    /// f32 `[width]`.
    pub weight: DevicePtr,
    /// Added to the mean square.
    pub eps: f32,
    /// Nothing.
    pub zero: u32,
}

/// Parameters of [`norm`].
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Norm {
    /// u32: rows in use.
    pub step: DevicePtr,
    /// f32 `[rows][width]`.
    pub x: DevicePtr,
    /// u32 `[rows]`.
    pub faults: DevicePtr,
    /// The norm.
    pub norm: RmsNorm,
    /// Where the rows go.
    pub out: Activation,
    /// For faults.
    pub layer: u32,
    /// Nothing.
    pub zero: u32,
}

/// Norms each row into an activation. `rows` is the bucket.
pub fn norm(params: Norm, rows: u32) -> Launch {
    Launch::new(Source::Norm, "norm_rows", [rows, 1, 1], THREADS, 0, &params)
}

/// Parameters of [`quantise`].
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Quantise {
    /// u32: rows in use.
    pub step: DevicePtr,
    /// f32 `[rows][width]`.
    pub x: DevicePtr,
    /// u32 `[rows]`.
    pub faults: DevicePtr,
    /// Where the rows go.
    pub out: Activation,
    /// For faults.
    pub layer: u32,
    /// Nothing.
    pub zero: u32,
}

/// Takes each row into an activation as it is. `rows` is the bucket.
pub fn quantise(params: Quantise, rows: u32) -> Launch {
    Launch::new(Source::Norm, "quantise_rows", [rows, 1, 1], THREADS, 0, &params)
}

/// Parameters of [`finish`].
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Finish {
    /// u32: rows in use.
    pub step: DevicePtr,
    /// f32 `[rows][width]`, rounded in place.
    pub h: DevicePtr,
    /// u32 `[rows]`.
    pub faults: DevicePtr,
    /// Values of a row.
    pub width: u32,
    /// For faults.
    pub layer: u32,
    /// 1: to bf16, under [`Profile::Quantised`].
    pub rounded: u32,
    /// Nothing.
    pub zero: u32,
}

/// Ends a layer: rounds, and records rows that are not finite. `rows` is the bucket.
pub fn finish(params: Finish, rows: u32) -> Launch {
    Launch::new(Source::Norm, "finish_rows", [rows, 1, 1], THREADS, 0, &params)
}
