//! One pipeline over all nodes in the order in which they stand.

use std::ops::Range;

use crate::{
    cluster::Cluster,
    demand::Demand,
    limit::most_tokens_per_s,
    model::Model,
    plan::{Bound, Plan, PlanError, Proof, Stage},
    predict::at_least_tpot,
    problem::Problem,
    shortage::reason,
};

/// The plan of one pipeline through every node of `cluster` in its order, each with a layer at least: the one
/// whose slowest stage is quickest, and of those the one whose fullest node is emptiest. Equal nodes get equal
/// parts. Exact: dynamic programming over all cuts.
pub fn plan_line(model: &Model, cluster: &Cluster, demand: &Demand) -> Result<Plan, PlanError> {
    let problem = Problem::new(model, cluster, demand)?;
    let (layers, nodes) = (problem.layers(), cluster.len());
    if nodes > layers {
        return Err(PlanError::TooManyNodes { layers, nodes });
    }
    let sessions = u64::from(demand.concurrency);
    let fits = |node: usize, range: &Range<usize>| problem.fits(node, range, sessions);
    let seconds = |node: usize, range: &Range<usize>| {
        problem.stage_s(&Stage { node, layers: range.clone() }, f64::from(demand.concurrency))
    };
    let fill =
        |node: usize, range: &Range<usize>| problem.bytes(range) as f64 / cluster.nodes()[node].memory as f64;
    let cost = |node: usize, range: &Range<usize>| fits(node, range).then(|| seconds(node, range));
    let (slowest, _) = least(layers, nodes, cost).ok_or_else(|| reason(&problem, sessions))?;
    // Sums in another order may differ in their last bits.
    let quick = slowest * (1.0 + 1e-9);
    let cost = |node: usize, range: &Range<usize>| {
        (fits(node, range) && seconds(node, range) <= quick).then(|| fill(node, range))
    };
    let (_, ranges) = least(layers, nodes, cost).ok_or_else(|| reason(&problem, sessions))?;
    let stages: Vec<Stage> =
        ranges.into_iter().enumerate().map(|(node, layers)| Stage { node, layers }).collect();
    let figures = at_least_tpot(&problem, &stages, sessions as f64);
    let reached = figures.tokens_per_s;
    let limit = most_tokens_per_s(&problem).max(reached);
    Plan::new(&problem, vec![(stages, sessions, figures)], Bound { reached, limit, proof: Proof::Capacity })
}

/// The cut of `layers` over `nodes` whose greatest cost is least, and that cost; a cut whose `cost` is `None`
/// cannot be.
fn least(
    layers: usize,
    nodes: usize,
    cost: impl Fn(usize, &Range<usize>) -> Option<f64>,
) -> Option<(f64, Vec<Range<usize>>)> {
    // best[n][end]: least greatest cost of the first n nodes holding layers 0..end, and where the last begins.
    let mut best = vec![vec![(f64::INFINITY, 0usize); layers + 1]; nodes + 1];
    best[0][0] = (0.0, 0);
    for n in 1..=nodes {
        for end in n..=layers - (nodes - n) {
            for start in n - 1..end {
                let before = best[n - 1][start].0;
                if before >= best[n][end].0 {
                    continue;
                }
                let Some(own) = cost(n - 1, &(start..end)) else { continue };
                if own.max(before) < best[n][end].0 {
                    best[n][end] = (own.max(before), start);
                }
            }
        }
    }
    let greatest = best[nodes][layers].0;
    let mut ranges = Vec::with_capacity(nodes);
    let mut end = layers;
    for n in (1..=nodes).rev() {
        let start = best[n][end].1;
        ranges.push(start..end);
        end = start;
    }
    ranges.reverse();
    greatest.is_finite().then_some((greatest, ranges))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        cluster::{Node, Profile},
        curve::Curve,
        demand::Objective,
        model::Weights,
    };

    fn model(embedding: u64, layers: &[u64], head: u64) -> Model {
        let weights = Weights { format: "q8".to_owned(), embedding, layers: layers.to_vec(), head };
        let count = layers.len();
        Model { weights: vec![weights], ..Model::uniform("m", count, 1, 0, 1) }
    }

    fn cluster(nodes: &[(u64, f64)]) -> Cluster {
        let node = |(at, &(memory, layer_s)): (usize, &(u64, f64))| {
            let curve = Curve::new(vec![(1.0, layer_s)]).unwrap();
            let (decode, prefill) = (curve.clone(), curve);
            let profile = Profile { format: "q8".to_owned(), layer_bytes: 10, decode, prefill };
            Node::new(&at.to_string(), memory).with_profile(profile)
        };
        Cluster::new(nodes.iter().enumerate().map(node).collect(), &[]).unwrap()
    }

    fn cut(model: &Model, nodes: &[(u64, f64)]) -> Result<Vec<Range<usize>>, PlanError> {
        let demand = Demand::chat("q8", 1, Objective::Latency);
        let plan = plan_line(model, &cluster(nodes), &demand)?;
        Ok(plan.pipelines[0].stages.iter().map(|stage| stage.layers.clone()).collect())
    }

    #[test]
    fn equal_nodes_get_equal_shares() {
        assert_eq!(cut(&model(0, &[10; 6], 0), &[(1000, 1.0); 3]).unwrap(), [0..2, 2..4, 4..6]);
        let all = cut(&model(0, &[10; 7], 0), &[(1000, 1.0); 5]).unwrap();
        assert_eq!(all.iter().map(Range::len).max(), Some(2));
    }

    #[test]
    fn a_head_takes_time_and_an_embedding_room() {
        assert_eq!(cut(&model(0, &[10; 6], 20), &[(1000, 1.0); 2]).unwrap(), [0..4, 4..6]);
        // Two and three layers, or three and two: the embedding's bytes decide.
        assert_eq!(cut(&model(20, &[10; 5], 0), &[(1000, 1.0); 2]).unwrap(), [0..2, 2..5]);
    }

    #[test]
    fn a_slow_node_gets_less() {
        assert_eq!(cut(&model(0, &[10; 6], 0), &[(1000, 2.0), (1000, 1.0)]).unwrap(), [0..2, 2..6]);
    }

    #[test]
    fn what_does_not_fit_says_so() {
        let error = cut(&model(5, &[10; 4], 5), &[(20, 1.0), (20, 1.0)]).unwrap_err();
        assert!(matches!(error, PlanError::TooLarge { .. }), "{error}");
        let error = cut(&model(0, &[10; 4], 0), &[(99, 1.0); 5]).unwrap_err();
        assert_eq!(error.to_string(), "4 layers cannot be cut over 5 nodes: each needs at least one");
    }

    fn brute_force(model: &Model, nodes: &[(u64, f64)], from: usize) -> f64 {
        let weights = &model.weights[0];
        let Some((&(memory, layer_s), rest)) = nodes.split_first() else {
            return if from == weights.layers.len() { 0.0 } else { f64::INFINITY };
        };
        let head = |end: usize| if end == weights.layers.len() { weights.head } else { 0 };
        let seconds = |end: usize| {
            // A prompt takes as long as a step here, and comes with every 256th; the head not of it.
            let own: u64 = weights.layers[from..end].iter().sum();
            ((own + head(end)) as f64 + own as f64 / 256.0) * layer_s / 10.0
        };
        (from + 1..=weights.layers.len())
            .filter(|&end| weights.of(&(from..end)) <= memory)
            .map(|end| seconds(end).max(brute_force(model, rest, end)))
            .fold(f64::INFINITY, f64::min)
    }

    proptest! {
        #[test]
        fn a_line_is_as_good_as_trying_every_cut(
            layers in prop::collection::vec(1u64..50, 1..9),
            embedding in 0u64..60, head in 0u64..60,
            nodes in prop::collection::vec((20u64..300, 0.5f64..2.0), 1..5),
        ) {
            let model = model(embedding, &layers, head);
            let best = brute_force(&model, &nodes, 0);
            match cut(&model, &nodes) {
                Ok(ranges) => {
                    prop_assert_eq!(ranges.len(), nodes.len());
                    let seconds = ranges.iter().zip(&nodes).map(|(range, (_, layer_s))| {
                        let own: u64 = layers[range.clone()].iter().sum();
                        let head = if range.end == layers.len() { head } else { 0 };
                        ((own + head) as f64 + own as f64 / 256.0) * layer_s / 10.0
                    });
                    let slowest = seconds.fold(0.0, f64::max);
                    prop_assert!((slowest / best - 1.0).abs() < 1e-6, "{slowest} {best}");
                }
                Err(_) => prop_assert!(best.is_infinite()),
            }
        }
    }
}
