//! What lies in device memory between operations.

use crate::cuda::launch::DevicePtr;

/// Rows as the input of a linear layer. What is not held has address 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activation {
    /// Values of a row (K).
    pub width: u32,
    /// Whether the profile is `Quantised`: a value that is not finite is then a fault of the quantiser.
    pub quantised: bool,
    /// f32 `[rows][K256]`.
    pub values: DevicePtr,
    /// Groups of 32: int8 `[rows][K256]`, f32 `[rows][K256 / 32]`.
    pub narrow: Quants,
    /// Groups of 256: int8 `[rows][K]`, f32 `[rows][K / 256]`.
    pub wide: Quants,
}

/// Quantised rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quants {
    /// int8 values.
    pub values: DevicePtr,
    /// f32 scales.
    pub scales: DevicePtr,
}

/// The step that a launch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// u32: rows in use.
    pub rows: DevicePtr,
    /// u32 `[rows]`: fault words.
    pub faults: DevicePtr,
    /// Rows the launch is sized for: 1, 2, 4, 8, 16, 32, 64 or a multiple of 64. Buffers hold as many.
    pub bucket: u32,
    /// The layer that a fault names.
    pub layer: u32,
}
