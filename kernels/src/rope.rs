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

/// Values of one table at most (1 GiB each for cos and sin).
const MAX_VALUES: usize = 1 << 28;

impl RopeTable {
    /// Computes the table for `positions` positions.
    ///
    /// # Errors
    /// If a parameter is out of its range, or the table would be empty or exceed 2^28 values.
    pub fn new(spec: &RopeSpec, positions: usize) -> Result<Self, RopeError> {
        let (frequencies, factor) = frequencies(spec)?;
        let values = positions
            .checked_mul(frequencies.len())
            .filter(|&values| 0 < values && values <= MAX_VALUES)
            .ok_or_else(|| parameter(format!("no table of {positions} positions")))?;
        let (mut cos, mut sin) = (Vec::with_capacity(values), Vec::with_capacity(values));
        for position in 0..positions {
            for frequency in &frequencies {
                let angle = position as f64 * frequency;
                cos.push((libm::cos(angle) * factor) as f32);
                sin.push((libm::sin(angle) * factor) as f32);
            }
        }
        Ok(Self { dimensions: spec.dimensions, positions, cos, sin })
    }

    /// cos and sin of `position`, `[R / 2]` each.
    ///
    /// # Panics
    /// If the table does not reach `position`.
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let pairs = self.dimensions / 2;
        (&self.cos[position * pairs..][..pairs], &self.sin[position * pairs..][..pairs])
    }
}

fn parameter(what: String) -> RopeError {
    RopeError::Parameter(what)
}

/// Refuses a value that is not finite and above `bound`.
fn above(name: &str, value: f64, bound: f64) -> Result<(), RopeError> {
    if value.is_finite() && value > bound {
        return Ok(());
    }
    Err(parameter(format!("{name} is {value}, but must be finite and above {bound}")))
}

/// Radians per position of each pair, and the factor on cos and sin.
fn frequencies(spec: &RopeSpec) -> Result<(Vec<f64>, f64), RopeError> {
    let RopeSpec { theta, dimensions, ref scaling } = *spec;
    above("theta", theta, 0.0)?;
    if dimensions == 0 || dimensions % 2 == 1 || dimensions > MAX_VALUES {
        return Err(parameter(format!("{dimensions} dimensions do not make pairs")));
    }
    let trained: Vec<f64> = (0..dimensions / 2)
        .map(|pair| 1.0 / libm::pow(theta, (2 * pair) as f64 / dimensions as f64))
        .collect();
    let mut attention = 1.0;
    let scaled: Vec<f64> = match *scaling {
        RopeScaling::Default => trained,
        RopeScaling::Linear { factor } => {
            above("factor", factor, 0.0)?;
            trained.iter().map(|frequency| frequency / factor).collect()
        }
        RopeScaling::Llama3 { .. } => llama3(&trained, scaling)?,
        RopeScaling::Yarn { .. } => {
            let (scaled, factor) = yarn(&trained, theta, scaling)?;
            attention = factor;
            scaled
        }
        RopeScaling::Divisors(ref divisors) => {
            if divisors.len() != trained.len() {
                let (given, pairs) = (divisors.len(), trained.len());
                return Err(parameter(format!("{given} divisors for {pairs} pairs")));
            }
            divisors.iter().try_for_each(|&divisor| above("a divisor", f64::from(divisor), 0.0))?;
            trained.iter().zip(divisors).map(|(frequency, &divisor)| frequency / f64::from(divisor)).collect()
        }
    };
    // 2^32 positions of such a pair stay finite in f64.
    if let Some(bad) = scaled.iter().find(|rate| rate.is_nan() || **rate >= 1e290) {
        return Err(parameter(format!("a frequency is {bad}")));
    }
    Ok((scaled, attention))
}

/// transformers' `_compute_llama3_parameters`.
fn llama3(trained: &[f64], scaling: &RopeScaling) -> Result<Vec<f64>, RopeError> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } = *scaling
    else {
        return Ok(trained.to_vec());
    };
    above("factor", factor, 0.0)?;
    above("low_freq_factor", low_freq_factor, 0.0)?;
    above("high_freq_factor", high_freq_factor, low_freq_factor)?;
    above("original_max_positions", f64::from(original_max_positions), 0.0)?;
    let original = f64::from(original_max_positions);
    let scale = |&frequency: &f64| {
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        if wavelength > original / low_freq_factor {
            frequency / factor
        } else if wavelength < original / high_freq_factor {
            frequency
        } else {
            let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    };
    Ok(trained.iter().map(scale).collect())
}

/// transformers' `_compute_yarn_parameters`.
fn yarn(trained: &[f64], theta: f64, scaling: &RopeScaling) -> Result<(Vec<f64>, f64), RopeError> {
    let RopeScaling::Yarn {
        factor,
        original_max_positions,
        beta_fast,
        beta_slow,
        attention_factor,
        truncate,
    } = *scaling
    else {
        return Ok((trained.to_vec(), 1.0));
    };
    // The ramp divides by the logarithm of theta.
    above("theta", theta, 1.0)?;
    above("factor", factor, 0.0)?;
    above("original_max_positions", f64::from(original_max_positions), 0.0)?;
    above("beta_fast", beta_fast, 0.0)?;
    above("beta_slow", beta_slow, 0.0)?;
    let derived = if factor <= 1.0 { 1.0 } else { 0.1 * libm::log(factor) + 1.0 };
    let attention = attention_factor.unwrap_or(derived);
    above("attention_factor", attention, 0.0)?;
    if attention > f64::from(f32::MAX) {
        return Err(parameter(format!("attention_factor is {attention}, beyond f32")));
    }

    let dimensions = 2.0 * trained.len() as f64;
    let turns_to_pair = |turns: f64| {
        let ratio = f64::from(original_max_positions) / (turns * 2.0 * std::f64::consts::PI);
        dimensions * libm::log(ratio) / (2.0 * libm::log(theta))
    };
    let (mut low, mut high) = (turns_to_pair(beta_fast), turns_to_pair(beta_slow));
    if truncate {
        (low, high) = (libm::floor(low), libm::ceil(high));
    }
    low = low.max(0.0);
    high = high.min(dimensions - 1.0);
    if low == high {
        high += 0.001;
    }
    let scale = |(pair, &frequency): (usize, &f64)| {
        let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
        let kept = 1.0 - ramp;
        frequency / factor * (1.0 - kept) + frequency * kept
    };
    Ok((trained.iter().enumerate().map(scale).collect(), attention))
}

#[cfg(test)]
mod tests;
