//! Cutting a model over nodes.

use std::ops::Range;

use thiserror::Error;

/// Bytes a node needs for each unit: embedding, layers in order, head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Costs {
    units: Vec<u64>,
}

impl Costs {
    /// Costs of a model of `layers.len()` layers.
    pub fn new(embedding: u64, layers: &[u64], head: u64) -> Self {
        Self { units: std::iter::once(embedding).chain(layers.iter().copied()).chain([head]).collect() }
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.units.len() - 2
    }

    /// Bytes of a range of layers, with the embedding if it begins the model and the head if it
    /// ends it.
    pub fn of(&self, layers: &Range<usize>) -> u64 {
        let from = if layers.start == 0 { 0 } else { layers.start + 1 };
        let to = if layers.end == self.layers() { self.units.len() } else { layers.end + 1 };
        self.units[from..to].iter().sum()
    }
}

/// Why a model could not be cut.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SplitError {
    /// There are no nodes.
    #[error("there are no nodes to cut the model over")]
    NoNodes,
    /// A node would be left without a layer.
    #[error("{layers} layers cannot be cut over {nodes} nodes: each needs at least one")]
    TooManyNodes {
        /// Layers of the model.
        layers: usize,
        /// Nodes.
        nodes: usize,
    },
    /// The nodes have not the memory in this order.
    #[error("the model needs {needed} bytes, and the nodes' {capacity} bytes do not hold it cut at layers")]
    TooLarge {
        /// Bytes of the model.
        needed: u64,
        /// Bytes of all nodes.
        capacity: u64,
    },
}

/// Cuts the layers into one range per node, in the order of the nodes, so that the fullest node is as
/// little filled as can be (its share of its own capacity). Exact: dynamic programming over all cuts.
pub fn split(costs: &Costs, capacities: &[u64]) -> Result<Vec<Range<usize>>, SplitError> {
    let (layers, nodes) = (costs.layers(), capacities.len());
    if nodes == 0 {
        return Err(SplitError::NoNodes);
    }
    if nodes > layers {
        return Err(SplitError::TooManyNodes { layers, nodes });
    }
    // best[n][end]: least possible fill of the fullest of the first n nodes holding layers 0..end, and
    // where the last of them begins.
    let mut best = vec![vec![(f64::INFINITY, 0usize); layers + 1]; nodes + 1];
    best[0][0] = (0.0, 0);
    for n in 1..=nodes {
        for end in n..=layers - (nodes - n) {
            for start in n - 1..end {
                let bytes = costs.of(&(start..end));
                if bytes > capacities[n - 1] {
                    continue;
                }
                let fill = (bytes as f64 / capacities[n - 1] as f64).max(best[n - 1][start].0);
                if fill < best[n][end].0 {
                    best[n][end] = (fill, start);
                }
            }
        }
    }
    if best[nodes][layers].0.is_infinite() {
        let capacity = capacities.iter().fold(0u64, |sum, &c| sum.saturating_add(c));
        return Err(SplitError::TooLarge { needed: costs.of(&(0..layers)), capacity });
    }
    let mut ranges = Vec::with_capacity(nodes);
    let mut end = layers;
    for n in (1..=nodes).rev() {
        let start = best[n][end].1;
        ranges.push(start..end);
        end = start;
    }
    ranges.reverse();
    Ok(ranges)
}

/// The range one more node of `budget` bytes should hold, given what others hold and how fast they are, in
/// parts of the fastest: as much as fits of the first stretch of the layers that the least speed serves. `None`
/// if not even one layer fits there.
pub fn vacancy(costs: &Costs, held: &[(Range<usize>, f64)], budget: u64) -> Option<Range<usize>> {
    let layers = costs.layers();
    let speed = |layer: usize| {
        let holders = held.iter().filter(|(range, _)| range.contains(&layer));
        holders.map(|(_, speed)| speed).sum::<f64>()
    };
    let least = (0..layers).map(speed).min_by(f64::total_cmp)?;
    // Sums of equal speeds in another order may differ in their last bits.
    let is_least = |layer: usize| speed(layer) <= least + 1e-9;
    let start = (0..layers).find(|&layer| is_least(layer))?;
    let stretch = (start..layers).take_while(|&layer| is_least(layer)).count();
    (1..=stretch).rev().map(|length| start..start + length).find(|range| costs.of(range) <= budget)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_nodes_get_equal_shares() {
        let costs = Costs::new(0, &[10; 6], 0);
        assert_eq!(split(&costs, &[1000; 3]).unwrap(), [0..2, 2..4, 4..6]);
    }

    #[test]
    fn a_large_embedding_shifts_the_cuts() {
        let costs = Costs::new(20, &[10; 6], 0);
        assert_eq!(split(&costs, &[1000; 2]).unwrap(), [0..2, 2..6]);
    }

    #[test]
    fn what_does_not_fit_says_so() {
        let costs = Costs::new(5, &[10; 4], 5);
        assert_eq!(split(&costs, &[20, 20]), Err(SplitError::TooLarge { needed: 50, capacity: 40 }));
        assert_eq!(split(&costs, &[]), Err(SplitError::NoNodes));
        assert_eq!(split(&costs, &[99; 5]), Err(SplitError::TooManyNodes { layers: 4, nodes: 5 }));
    }

    #[test]
    fn a_new_node_fills_the_gap_first() {
        let costs = Costs::new(5, &[10; 6], 5);
        assert_eq!(vacancy(&costs, &[], 1000), Some(0..6));
        assert_eq!(vacancy(&costs, &[], 36), Some(0..3));
        assert_eq!(vacancy(&costs, &[(0..2, 1.0), (4..6, 1.0)], 1000), Some(2..4));
        assert_eq!(vacancy(&costs, &[(0..4, 1.0)], 15), Some(4..5));
        assert_eq!(vacancy(&costs, &[(0..6, 1.0)], 25), Some(0..2));
        assert_eq!(vacancy(&costs, &[], 9), None);
    }

    #[test]
    fn a_new_node_stands_by_the_slowest() {
        let costs = Costs::new(0, &[10; 6], 0);
        assert_eq!(vacancy(&costs, &[(0..3, 1.0), (3..6, 0.25)], 1000), Some(3..6));
    }

    fn brute_force(costs: &Costs, capacities: &[u64], from: usize) -> f64 {
        let Some((&capacity, rest)) = capacities.split_first() else {
            return if from == costs.layers() { 0.0 } else { f64::INFINITY };
        };
        (from + 1..=costs.layers())
            .filter(|&end| costs.of(&(from..end)) <= capacity)
            .map(|end| (costs.of(&(from..end)) as f64 / capacity as f64).max(brute_force(costs, rest, end)))
            .fold(f64::INFINITY, f64::min)
    }

    proptest! {
        #[test]
        fn a_split_is_as_good_as_trying_every_cut(
            layers in prop::collection::vec(1u64..50, 1..9),
            embedding in 0u64..60, head in 0u64..60,
            capacities in prop::collection::vec(20u64..300, 1..5),
        ) {
            let costs = Costs::new(embedding, &layers, head);
            let best = brute_force(&costs, &capacities, 0);
            match split(&costs, &capacities) {
                Ok(ranges) => {
                    prop_assert_eq!(ranges.first().unwrap().start, 0);
                    prop_assert_eq!(ranges.last().unwrap().end, layers.len());
                    prop_assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
                    let fill = ranges.iter().zip(&capacities).map(|(r, &c)| costs.of(r) as f64 / c as f64);
                    prop_assert_eq!(fill.fold(0.0, f64::max), best);
                }
                Err(_) => prop_assert!(best.is_infinite()),
            }
        }
    }
}
