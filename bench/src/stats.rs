//! Percentiles and summaries of samples.

/// The smallest sample that at least `share` (0 to 1) of the samples do not exceed (nearest rank);
/// `None` without samples.
pub fn percentile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (share.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// The middle of the samples, between the two middle ones of an even number; `None` without samples.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(sorted[sorted.len() / 2 - 1], upper))
}

/// The median of `a` over that of `b`; `None` where one has no samples.
pub fn ratio(a: &[f64], b: &[f64]) -> Option<f64> {
    Some(median(a)? / median(b)?)
}

/// Median and extremes of repeated measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// How many there are.
    pub samples: usize,
}

impl Summary {
    /// `None` without samples.
    pub fn of(samples: &[f64]) -> Option<Self> {
        Some(Self {
            median: median(samples)?,
            min: samples.iter().copied().fold(f64::INFINITY, f64::min),
            max: samples.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            samples: samples.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_at_the_nearest_rank() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (share, expected) in [(0.0, 1.0), (0.5, 50.0), (0.95, 95.0), (0.99, 99.0), (1.0, 100.0)] {
            assert_eq!(percentile(&samples, share), Some(expected), "share {share}");
        }
        assert_eq!(percentile(&[3.0, 1.0, 2.0], 0.5), Some(2.0));
        assert_eq!(percentile(&[3.0, 1.0, 2.0], 0.99), Some(3.0));
        assert_eq!(percentile(&[7.0], 0.01), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn a_percentile_has_its_share_of_samples_at_or_below() {
        let samples: Vec<f64> = (0..57).map(|i| f64::from(i * 31 % 57)).collect();
        for share in [0.01, 0.25, 0.5, 0.9, 0.95, 0.99] {
            let value = percentile(&samples, share).expect("samples");
            let count = |holds: &dyn Fn(f64) -> bool| samples.iter().filter(|&&x| holds(x)).count() as f64;
            assert!(count(&|x| x <= value) >= share * 57.0);
            assert!(count(&|x| x < value) < share * 57.0);
        }
    }

    #[test]
    fn summaries_hold_the_extremes() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]).expect("samples");
        assert_eq!(summary, Summary { median: 2.5, min: 1.0, max: 4.0, samples: 4 });
        assert_eq!(median(&[5.0, 1.0, 2.0]), Some(2.0));
        assert_eq!((ratio(&[5.0, 1.0, 2.0], &[4.0]), ratio(&[1.0], &[])), (Some(0.5), None));
        assert_eq!(Summary::of(&[]), None);
    }
}
