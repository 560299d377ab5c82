//! What a placement lets through, whatever routes are laid over it: a maximum flow of tokens.
//!
//! Every node is an edge, as wide as the tokens per second that it does at its best batch of all the layers it
//! holds; every link between nodes that can follow one another is one too. A node that holds more than a route
//! needs of it runs the layers from where the one before ended up to its own end, and is counted as if it ran
//! all of them. The flow falls apart into routes with their parts of the requests.

use std::ops::Range;

use petgraph::{
    algo::dinics,
    graph::{DiGraph, NodeIndex},
};

use crate::{
    cluster::Cluster,
    demand::Demand,
    model::Model,
    plan::{PlanError, Stage},
    problem::Problem,
};

/// The most tokens per second of a placement, and the routes that carry them.
#[derive(Clone, Debug, PartialEq)]
pub struct Flow {
    /// Tokens per second; 0 where the nodes do not hold the whole model.
    pub tokens_per_s: f64,
    /// Routes with their part of the requests, the largest first; the parts add up to 1.
    pub routes: Vec<(Vec<Stage>, f64)>,
}

/// The maximum flow where each node of `cluster` holds what `held` says.
///
/// # Errors
/// If model, cluster or demand are not sound.
pub fn flow(
    model: &Model,
    cluster: &Cluster,
    demand: &Demand,
    held: &[Option<Range<usize>>],
) -> Result<Flow, PlanError> {
    Ok(through(&Problem::new(model, cluster, demand)?, held))
}

/// Units of flow in a token per second: capacities are whole numbers, for which the algorithm is exact.
const UNITS: f64 = 1e6;
/// More than all nodes together let through.
const MOST_UNITS: u64 = 1 << 53;

pub(crate) fn through(problem: &Problem, held: &[Option<Range<usize>>]) -> Flow {
    let network = Network::new(problem, held);
    let (total, flows) = network.solve();
    Flow { tokens_per_s: total as f64 / UNITS, routes: network.routes(held, total, flows) }
}

/// The placement as a directed graph. Vertex 0 is where tokens come from, 1 where they go; node `n` takes them in
/// at `2 + 2n` and gives them out at `3 + 2n`.
struct Network {
    vertices: usize,
    edges: Vec<(usize, usize, u64)>,
}

const SOURCE: usize = 0;
const SINK: usize = 1;

impl Network {
    fn new(problem: &Problem, held: &[Option<Range<usize>>]) -> Self {
        let cluster = problem.cluster;
        let mut edges = Vec::new();
        let per_token = problem.step_bytes(1.0);
        for (node, range) in held.iter().enumerate() {
            let Some(range) = range.as_ref().filter(|range| !range.is_empty()) else { continue };
            let (inside, outside) = (2 + 2 * node, 3 + 2 * node);
            edges.push((inside, outside, units(most_of(problem, node, range))));
            if range.start == 0 {
                edges.push((SOURCE, inside, MOST_UNITS));
            }
            if range.end == problem.layers() {
                edges.push((outside, SINK, MOST_UNITS));
            }
            for (next, after) in held.iter().enumerate() {
                let Some(after) = after else { continue };
                let hop = cluster.hop(node, next);
                if next != node && after.start <= range.end && range.end < after.end && hop.is_up() {
                    edges.push((outside, 2 + 2 * next, units(hop.rate / per_token)));
                }
            }
        }
        Self { vertices: 2 + 2 * held.len(), edges }
    }

    fn solve(&self) -> (u64, Vec<u64>) {
        let mut graph: DiGraph<(), u64> = DiGraph::with_capacity(self.vertices, self.edges.len());
        (0..self.vertices).for_each(|_| {
            graph.add_node(());
        });
        for &(from, to, capacity) in &self.edges {
            graph.add_edge(NodeIndex::new(from), NodeIndex::new(to), capacity);
        }
        dinics(&graph, NodeIndex::new(SOURCE), NodeIndex::new(SINK))
    }

    /// The flow as routes: always the way whose narrowest edge is widest, until nothing is left. Ranges end
    /// further on with every stage, so no node comes twice and every way ends.
    fn routes(
        &self,
        held: &[Option<Range<usize>>],
        total: u64,
        mut flows: Vec<u64>,
    ) -> Vec<(Vec<Stage>, f64)> {
        let mut order: Vec<usize> = (0..held.len()).filter(|&node| held[node].is_some()).collect();
        order.sort_by_key(|&node| (held[node].as_ref().map_or(0, |range| range.end), node));
        let carrying = self.carrying(&flows);
        let mut routes = Vec::new();
        while let Some((way, width)) = self.widest(&order, &carrying, &flows) {
            let mut at = 0;
            let stages = way.iter().filter_map(|&edge| {
                // A node's own edge leads from an even vertex to the odd one after it.
                let (inside, outside, _) = self.edges[edge];
                let own = inside >= 2 && inside.is_multiple_of(2) && outside == inside + 1;
                let node = own.then(|| (inside - 2) / 2)?;
                let end = held[node].as_ref()?.end;
                let stage = Stage { node, layers: at..end };
                at = end;
                Some(stage)
            });
            routes.push((stages.collect(), width as f64 / total as f64));
            way.iter().for_each(|&edge| flows[edge] -= width);
        }
        routes
    }

    /// Edges that carry anything, in their order, by the vertex they lead from.
    fn carrying(&self, flows: &[u64]) -> Vec<Vec<usize>> {
        let mut carrying = vec![Vec::new(); self.vertices];
        for (edge, &(from, ..)) in self.edges.iter().enumerate().filter(|(edge, _)| flows[*edge] > 0) {
            carrying[from].push(edge);
        }
        carrying
    }

    /// Edges of the widest way through what flows, and its width.
    fn widest(&self, order: &[usize], carrying: &[Vec<usize>], flows: &[u64]) -> Option<(Vec<usize>, u64)> {
        let mut best: Vec<(u64, Option<usize>)> = vec![(0, None); self.vertices];
        best[SOURCE] = (u64::MAX, None);
        let vertices = order.iter().flat_map(|node| [2 + 2 * node, 3 + 2 * node]);
        for vertex in std::iter::once(SOURCE).chain(vertices) {
            for &edge in &carrying[vertex] {
                let to = self.edges[edge].1;
                let width = best[vertex].0.min(flows[edge]);
                if width > best[to].0 {
                    best[to] = (width, Some(edge));
                }
            }
        }
        let mut way = Vec::new();
        let mut at = SINK;
        while let Some(edge) = best[at].1 {
            way.push(edge);
            at = self.edges[edge].0;
        }
        way.reverse();
        (best[SINK].0 > 0).then_some((way, best[SINK].0))
    }
}

/// Tokens per second that a node does of all its layers, at its best batch.
fn most_of(problem: &Problem, node: usize, range: &Range<usize>) -> f64 {
    let Some(sessions) = problem.sessions(node, range) else { return 0.0 };
    let most = (sessions as f64).min(f64::from(problem.demand.concurrency)).min(problem.max_batch(node));
    if most < 1.0 {
        return 0.0;
    }
    let stage = Stage { node, layers: range.clone() };
    // Between measured batches the time is linear, so that tokens per second are most at one of them or an end.
    let measured = problem.batches(node).filter(|&batch| batch > 1.0 && batch < most);
    let rates = measured.chain([1.0, most]).map(|batch| batch / problem.stage_s(&stage, batch));
    rates.fold(0.0, f64::max)
}

fn units(tokens_per_s: f64) -> u64 {
    // A cast of what is too large gives the largest number.
    ((tokens_per_s * UNITS) as u64).min(MOST_UNITS / 1024)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        cluster::{Hop, Node, Profile},
        curve::Curve,
        demand::{Limits, Objective},
    };

    const LAYERS: usize = 6;

    fn demand() -> Demand {
        Demand::chat("q8", 1, Objective::Throughput(Limits::default()))
    }

    /// Nodes that take so many milliseconds for a layer, and links of so many bytes per second.
    fn cluster(layer_ms: &[f64], rates: &[f64]) -> Cluster {
        let node = |(at, ms): (usize, &f64)| {
            let decode = Curve::new(vec![(1.0, ms / 1e3)]).unwrap();
            let prefill = Curve::new(vec![(1.0, 0.0)]).unwrap();
            let profile = Profile { format: "q8".to_owned(), layer_bytes: 10, decode, prefill };
            Node::new(&at.to_string(), 1000).with_profile(profile)
        };
        let nodes: Vec<Node> = layer_ms.iter().enumerate().map(node).collect();
        let count = nodes.len();
        let hops = rates.iter().cycle().take(count * count).map(|&rate| Hop::new(0.001, rate)).collect();
        Cluster::with_hops(nodes, hops, None).unwrap()
    }

    fn model() -> Model {
        Model::uniform("m", LAYERS, 10, 0, 10)
    }

    #[test]
    fn two_halves_side_by_side_add_up() {
        let cluster = cluster(&[1.0, 1.0, 2.0], &[1e9]);
        let held = [Some(0..3), Some(3..6), Some(3..6)];
        let flow = flow(&model(), &cluster, &demand(), &held).unwrap();
        // The first does 333 tokens per second, the others 333 and 167.
        assert!((flow.tokens_per_s - 1000.0 / 3.0).abs() < 0.01, "{flow:?}");
        let parts: f64 = flow.routes.iter().map(|(_, part)| part).sum();
        assert!((parts - 1.0).abs() < 1e-9);
    }

    #[test]
    fn what_no_node_holds_lets_nothing_through() {
        let cluster = cluster(&[1.0, 1.0], &[1e9]);
        let flow = flow(&model(), &cluster, &demand(), &[Some(0..3), Some(4..6)]).unwrap();
        assert_eq!((flow.tokens_per_s, flow.routes.len()), (0.0, 0));
    }

    #[test]
    fn a_range_that_overlaps_is_entered_where_the_one_before_ends() {
        let cluster = cluster(&[1.0, 1.0], &[1e9]);
        let flow = flow(&model(), &cluster, &demand(), &[Some(0..4), Some(2..6)]).unwrap();
        let (stages, part) = &flow.routes[0];
        assert_eq!((stages[0].layers.clone(), stages[1].layers.clone(), *part), (0..4, 4..6, 1.0));
    }

    /// Least sum of capacities that parts the source from the sink, over all ways to part the vertices.
    fn least_cut(network: &Network) -> u64 {
        let others = network.vertices - 2;
        let cut = |set: usize| -> u64 {
            let near = |vertex: usize| match vertex {
                SOURCE => true,
                SINK => false,
                other => set >> (other - 2) & 1 == 1,
            };
            network.edges.iter().filter(|(from, to, _)| near(*from) && !near(*to)).map(|edge| edge.2).sum()
        };
        (0..1usize << others).map(cut).min().unwrap()
    }

    proptest! {
        #[test]
        fn it_is_the_least_cut_and_falls_apart_into_routes(
            nodes in prop::collection::vec((0.5f64..5.0, prop::option::weighted(0.9, (0usize..6, 1usize..7))), 1..6),
            rates in prop::collection::vec(prop_oneof![1 => Just(0.0), 5 => 100.0f64..20_000.0], 25),
        ) {
            let held: Vec<Option<Range<usize>>> = nodes
                .iter()
                .map(|(_, range)| range.map(|(from, length)| from..(from + length).min(LAYERS)))
                .collect();
            let layer_ms: Vec<f64> = nodes.iter().map(|(ms, _)| *ms).collect();
            let (model, cluster, demand) = (model(), cluster(&layer_ms, &rates), demand());
            let problem = Problem::new(&model, &cluster, &demand).unwrap();
            let network = Network::new(&problem, &held);
            let (total, flows) = network.solve();
            prop_assert_eq!(total, least_cut(&network));
            for (edge, &flow) in network.edges.iter().zip(&flows) {
                prop_assert!(flow <= edge.2);
            }
            let routes = network.routes(&held, total, flows);
            let parts: f64 = routes.iter().map(|(_, part)| part).sum();
            prop_assert_eq!(routes.is_empty(), total == 0);
            prop_assert!(total == 0 || (parts - 1.0).abs() < 1e-9, "{}", parts);
            let mut carried = vec![0.0; nodes.len()];
            for (stages, part) in &routes {
                let ends: Vec<usize> = stages.iter().map(|stage| stage.layers.end).collect();
                let starts: Vec<usize> = stages.iter().map(|stage| stage.layers.start).collect();
                prop_assert_eq!(starts[0], 0);
                prop_assert_eq!(*ends.last().unwrap(), LAYERS);
                prop_assert_eq!(&starts[1..], &ends[..ends.len() - 1]);
                for stage in stages {
                    let own = held[stage.node].clone().unwrap();
                    prop_assert!(own.start <= stage.layers.start && stage.layers.end == own.end);
                    carried[stage.node] += part * total as f64;
                }
            }
            for (node, carried) in carried.into_iter().enumerate() {
                let most = held[node].as_ref().map_or(0.0, |range| most_of(&problem, node, range) * UNITS);
                prop_assert!(carried <= most * (1.0 + 1e-9) + 1.0);
            }
        }
    }
}
