//! Moving rows about (`copy.cu`).

use bytemuck::{Pod, Zeroable};

use crate::cuda::launch::{DevicePtr, Launch, Source};

/// Parameters of [`gather`].
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Gather {
    /// f32 `[.][width]`.
    pub from: DevicePtr,
    /// u32 `[count]`: which rows.
    pub rows: DevicePtr,
    /// f32 `[count][width]`.
    pub out: DevicePtr,
    /// Values of a row.
    pub width: u32,
    /// Rows to copy.
    pub count: u32,
}

/// Copies listed rows to the first rows of a buffer.
pub fn gather(params: Gather) -> Launch {
    Launch::new(Source::Copy, "gather", [params.count, 1, 1], 256, 0, &params)
}
