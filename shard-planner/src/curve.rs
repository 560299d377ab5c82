//! Measured times as curves.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Seconds as a function of a count (sequences of a step, tokens of a prompt): linear between measured
/// points, flat before the first, and going on at the mean slope of its last half after the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(f64, f64)>", into = "Vec<(f64, f64)>")]
pub struct Curve {
    /// Counts ascend strictly; seconds are finite and not negative; at least one point.
    points: Vec<(f64, f64)>,
    /// Seconds per count past the last point.
    slope: f64,
}

/// Why points are no curve.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum CurveError {
    /// There is no point.
    #[error("a curve needs at least one point")]
    Empty,
    /// A number cannot be what it stands for.
    #[error("({count}, {seconds}) is no measurement: both must be finite and not negative")]
    Number {
        /// Count as given.
        count: f64,
        /// Seconds as given.
        seconds: f64,
    },
    /// Counts do not ascend.
    #[error("the counts of a curve must ascend, and {0} does not")]
    Order(f64),
}

impl Curve {
    /// A curve through `points`, each a count and its seconds.
    pub fn new(points: Vec<(f64, f64)>) -> Result<Self, CurveError> {
        let sound = |x: f64| x.is_finite() && x >= 0.0;
        if let Some(&(count, seconds)) =
            points.iter().find(|(count, seconds)| !sound(*count) || !sound(*seconds))
        {
            return Err(CurveError::Number { count, seconds });
        }
        if let Some(pair) = points.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            return Err(CurveError::Order(pair[1].0));
        }
        if points.is_empty() {
            return Err(CurveError::Empty);
        }
        Ok(Self::sampled(points))
    }

    /// A curve through points that are known to be sound.
    pub(crate) fn sampled(points: Vec<(f64, f64)>) -> Self {
        let ends = points.get(points.len() / 2).zip(points.last()).filter(|(middle, last)| middle.0 < last.0);
        let slope = ends.map_or(0.0, |(middle, last)| (last.1 - middle.1) / (last.0 - middle.0));
        Self { slope: slope.max(0.0), points }
    }

    /// Seconds at `count`.
    pub fn at(&self, count: f64) -> f64 {
        let above = self.points.partition_point(|point| point.0 < count);
        match (above.checked_sub(1).map(|below| self.points[below]), self.points.get(above)) {
            (None, Some(first)) => first.1,
            (Some(below), Some(above)) => {
                below.1 + (above.1 - below.1) * (count - below.0) / (above.0 - below.0)
            }
            (Some(last), None) => last.1 + self.slope * (count - last.0),
            (None, None) => 0.0,
        }
    }

    /// Counts that were measured.
    pub fn counts(&self) -> impl Iterator<Item = f64> + '_ {
        self.points.iter().map(|point| point.0)
    }

    /// The same curve with every time multiplied.
    pub fn scaled(&self, factor: f64) -> Self {
        let points = self.points.iter().map(|(count, seconds)| (*count, seconds * factor)).collect();
        Self { points, slope: self.slope * factor }
    }
}

impl TryFrom<Vec<(f64, f64)>> for Curve {
    type Error = CurveError;

    fn try_from(points: Vec<(f64, f64)>) -> Result<Self, CurveError> {
        Self::new(points)
    }
}

impl From<Curve> for Vec<(f64, f64)> {
    fn from(curve: Curve) -> Self {
        curve.points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_linear_between_points_and_goes_on() {
        let curve = Curve::new(vec![(1.0, 2.0), (3.0, 4.0), (5.0, 8.0)]).unwrap();
        let at = [0.0, 1.0, 2.0, 4.0, 5.0, 7.0].map(|count| curve.at(count));
        assert_eq!(at, [2.0, 2.0, 3.0, 6.0, 8.0, 12.0]);
        assert_eq!(Curve::new(vec![(1.0, 2.0)]).unwrap().at(9.0), 2.0);
    }

    #[test]
    fn what_is_no_measurement_is_refused() {
        assert_eq!(Curve::new(vec![]), Err(CurveError::Empty));
        assert!(matches!(Curve::new(vec![(1.0, f64::NAN)]), Err(CurveError::Number { .. })));
        assert!(matches!(Curve::new(vec![(1.0, -1.0)]), Err(CurveError::Number { .. })));
        assert_eq!(Curve::new(vec![(2.0, 1.0), (2.0, 1.0)]), Err(CurveError::Order(2.0)));
        assert!(serde_json::from_str::<Curve>("[[1, 2], [0, 1]]").is_err());
    }
}
