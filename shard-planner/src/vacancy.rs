//! What one more node should hold while there is no whole pipeline to plan with.

use std::ops::Range;

use crate::model::Weights;

/// The range one more node should hold, given what others hold and how fast they are, in parts of the fastest: as much
/// as `fits` it of the first stretch of the layers that the least speed serves. `None`
/// if not even one layer fits there.
pub fn vacancy(
    weights: &Weights,
    held: &[(Range<usize>, f64)],
    fits: impl Fn(&Range<usize>) -> bool,
) -> Option<Range<usize>> {
    let layers = weights.layers.len();
    let speed = |layer: usize| {
        let holders = held.iter().filter(|(range, _)| range.contains(&layer));
        holders.map(|(_, speed)| speed).sum::<f64>()
    };
    let least = (0..layers).map(speed).min_by(f64::total_cmp)?;
    // Sums of equal speeds in another order may differ in their last bits.
    let is_least = |layer: usize| speed(layer) <= least + 1e-9;
    let start = (0..layers).find(|&layer| is_least(layer))?;
    let stretch = (start..layers).take_while(|&layer| is_least(layer)).count();
    (1..=stretch).rev().map(|length| start..start + length).find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(embedding: u64, layers: &[u64], head: u64) -> Weights {
        Weights { format: "q8".to_owned(), embedding, layers: layers.to_vec(), head }
    }

    fn vacancy(weights: &Weights, held: &[(Range<usize>, f64)], budget: u64) -> Option<Range<usize>> {
        super::vacancy(weights, held, |range| weights.of(range) <= budget)
    }

    #[test]
    fn a_new_node_fills_the_gap_first() {
        let model = weights(5, &[10; 6], 5);
        assert_eq!(vacancy(&model, &[], 1000), Some(0..6));
        assert_eq!(vacancy(&model, &[], 36), Some(0..3));
        assert_eq!(vacancy(&model, &[(0..2, 1.0), (4..6, 1.0)], 1000), Some(2..4));
        assert_eq!(vacancy(&model, &[(0..4, 1.0)], 15), Some(4..5));
        assert_eq!(vacancy(&model, &[(0..6, 1.0)], 25), Some(0..2));
        assert_eq!(vacancy(&model, &[], 9), None);
    }

    #[test]
    fn a_new_node_stands_by_the_slowest() {
        let model = weights(0, &[10; 6], 0);
        assert_eq!(vacancy(&model, &[(0..3, 1.0), (3..6, 0.25)], 1000), Some(3..6));
    }
}
