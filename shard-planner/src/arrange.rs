//! What the nodes of a swarm at work should serve next, given what they hold now.
//!
//! What a placement is worth is what its maximum flow's routes are predicted to do. [`replan`](crate::replan())
//! says how few moves would better it; a node that holds nothing yet gets the range that betters it most. What
//! needs no weights to be loaded is free: a node may serve a part of what it holds.

use std::ops::Range;

use crate::{
    cluster::Cluster,
    cover::{Span, cover},
    demand::{Demand, Objective},
    flow::{Flow, through},
    limit::most_tokens_per_s,
    model::Model,
    plan::{Bound, Plan, PlanError, Proof, Stage},
    predict::steady_together,
    problem::Problem,
    replan::{CLEARLY, HORIZON_S, Standing, replan},
    search::Effort,
    solve::shared_sessions,
};

/// What each node holds or serves, by its index.
type Held = [Option<Range<usize>>];

/// What nodes should serve.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrangement {
    /// What each node is to serve, by its index: a part of what it holds, or what it is to load.
    pub serve: Vec<Option<Range<usize>>>,
    /// Nodes that have to load weights for that.
    pub loads: Vec<Load>,
    /// Tokens per second predicted of what stands; 0 where no pipeline does.
    pub before: f64,
    /// Tokens per second predicted once all is loaded.
    pub after: f64,
}

/// A node that has to load weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Index of the node.
    pub node: usize,
    /// What it is to hold.
    pub layers: Range<usize>,
    /// Seconds that it takes, as far as that is known.
    pub seconds: f64,
}

/// Ranges tried for a node that holds nothing.
const MOST_RANGES: usize = 300;
/// Routes that requests are dealt to.
const MOST_ROUTES: usize = 32;

/// What the nodes of `cluster` should serve, where `held` says what each holds now. Nodes whose
/// [`pinned`](crate::Node::pinned) layers are set load nothing.
///
/// # Errors
/// If the input is not sound, or neither what stands nor anything found covers the model.
pub fn arrange(
    model: &Model,
    cluster: &Cluster,
    demand: &Demand,
    held: &Held,
    effort: Effort,
) -> Result<Arrangement, PlanError> {
    let demand = Demand { objective: Objective::Throughput(demand.limits()), ..demand.clone() };
    let problem = Problem::new(model, cluster, &demand)?;
    let swarm = Swarm { problem: &problem, held };
    let before = worth(&problem, held);
    let stay = swarm.seated(held.to_vec());
    let mut best = (swarm.value(&stay), stay);
    let planned = replan(model, cluster, &demand, &swarm.standing(), effort);
    let failed = planned.as_ref().err().cloned();
    if let Ok(planned) = planned {
        let mut serve = held.to_vec();
        for stage in planned.plan.held {
            serve[stage.node] = Some(stage.layers);
        }
        let serve = swarm.seated(serve);
        let enough = if swarm.interrupts(&serve) { CLEARLY } else { 1.0 + 1e-6 };
        if swarm.value(&serve) > best.0 * enough {
            best = (swarm.value(&serve), serve);
        }
    }
    let (value, serve) = best;
    match failed {
        Some(error) if value <= 0.0 => return Err(error),
        _ => {}
    }
    let loads = swarm.loads(&serve).collect();
    Ok(Arrangement { loads, before, after: worth(&problem, &serve), serve })
}

/// The plan of the routes of a placement's maximum flow, each with its part of the requests.
///
/// # Errors
/// If the input is not sound, or nothing covers the model.
pub fn routes(model: &Model, cluster: &Cluster, demand: &Demand, serve: &Held) -> Result<Plan, PlanError> {
    let problem = Problem::new(model, cluster, demand)?;
    let (routes, sessions) = dealt(&problem, through(&problem, serve));
    if routes.is_empty() {
        return Err(crate::shortage::reason(&problem, 1));
    }
    let figures = steady_together(&problem, &routes, sessions);
    let reached: f64 = figures.iter().map(|figures| figures.tokens_per_s).sum();
    let limit = most_tokens_per_s(&problem).max(reached);
    let whole = routes.into_iter().zip(figures);
    let routes = whole.map(|((stages, part), figures)| (stages, (sessions * part) as u64, figures)).collect();
    Plan::new(&problem, routes, Bound { reached, limit, proof: Proof::Capacity })
}

/// The routes of a placement's flow with their parts, and as many sessions as fit.
fn dealt(problem: &Problem, flow: Flow) -> (Vec<(Vec<Stage>, f64)>, f64) {
    let back = |(stages, _): &(Vec<Stage>, f64)| {
        let ends = stages.first().zip(stages.last());
        ends.is_some_and(|(first, last)| problem.cluster.back_s(last.node, first.node).is_finite())
    };
    let mut routes: Vec<_> = flow.routes.into_iter().filter(back).take(MOST_ROUTES).collect();
    loop {
        let whole: f64 = routes.iter().map(|(_, part)| part).sum();
        routes.iter_mut().for_each(|(_, part)| *part /= whole);
        let sessions = shared_sessions(problem, &routes);
        if routes.is_empty() || sessions >= routes.len() as f64 {
            return (routes, sessions);
        }
        routes.pop();
    }
}

/// Tokens per second predicted of a placement.
fn worth(problem: &Problem, serve: &Held) -> f64 {
    carried(problem, through(problem, serve))
}

/// Tokens per second predicted of a placement's flow.
fn carried(problem: &Problem, flow: Flow) -> f64 {
    let (routes, sessions) = dealt(problem, flow);
    if routes.is_empty() {
        return 0.0;
    }
    steady_together(problem, &routes, sessions).iter().map(|figures| figures.tokens_per_s).sum()
}

struct Swarm<'a> {
    problem: &'a Problem<'a>,
    held: &'a Held,
}

impl Swarm<'_> {
    /// What stands as pipelines of nodes of their own, and nodes in none of them as pieces.
    fn standing(&self) -> Vec<Standing> {
        let nodes = self.problem.cluster.nodes();
        let layers = self.problem.layers();
        let mut left: Vec<usize> = (0..self.held.len()).filter(|&node| self.held[node].is_some()).collect();
        let mut standing = Vec::new();
        let span = |&node: &usize| {
            let layers = self.held[node].clone().unwrap_or(0..0);
            // Of pipelines as short, the quicker first.
            let load = self.problem.unit_s(node, 1.0).0;
            Span { embedding: layers.start == 0, head: layers.end == self.problem.layers(), layers, load }
        };
        while let Ok(legs) = cover(layers, &left.iter().map(span).collect::<Vec<_>>()) {
            let stages = legs.iter().map(|leg| (nodes[left[leg.span]].id.clone(), leg.layers.clone()));
            standing.push(Standing { stages: stages.collect() });
            let used: Vec<usize> = legs.iter().map(|leg| left[leg.span]).collect();
            left.retain(|node| !used.contains(node));
        }
        let piece = |node: usize| {
            let layers = self.held[node].clone()?;
            Some(Standing { stages: vec![(nodes[node].id.clone(), layers)] })
        };
        standing.extend(left.into_iter().filter_map(piece));
        standing
    }

    /// A placement with a range for each node that has none, as far as that betters it.
    fn seated(&self, mut serve: Vec<Option<Range<usize>>>) -> Vec<Option<Range<usize>>> {
        for node in 0..serve.len() {
            if serve[node].is_some() || self.problem.cluster.nodes()[node].pinned.is_some() {
                continue;
            }
            // Of ranges as good, the one that lets more through, and then the longest.
            let mut best = ((worth(self.problem, &serve) * (1.0 + 1e-6), f64::INFINITY, 0), None);
            for range in self.ranges(node, &serve) {
                serve[node] = Some(range.clone());
                let flow = through(self.problem, &serve);
                let passes = flow.tokens_per_s;
                let merit = (carried(self.problem, flow), passes, range.len());
                if merit > best.0 {
                    best = (merit, Some(range));
                }
            }
            serve[node] = best.1;
        }
        serve
    }

    /// Ranges between the places where others begin or end, and from there as far as memory goes.
    fn ranges(&self, node: usize, serve: &Held) -> Vec<Range<usize>> {
        let layers = self.problem.layers();
        let fits = |range: &Range<usize>| self.problem.fits(node, range, 1);
        let mut cuts: Vec<usize> =
            serve.iter().flatten().flat_map(|range| [range.start, range.end]).collect();
        cuts.extend([0, layers]);
        cuts.sort_unstable();
        cuts.dedup();
        let reach = |&from: &usize| from..self.problem.reach(from, layers, fits);
        let mut ranges: Vec<Range<usize>> = cuts.iter().filter(|&&from| from < layers).map(reach).collect();
        for &to in &cuts {
            let from = (0..to).find(|&from| fits(&(from..to)));
            ranges.extend(from.map(|from| from..to));
            ranges.extend(cuts.iter().filter(|&&from| from < to).map(|&from| from..to));
        }
        ranges.retain(|range| !range.is_empty() && fits(range));
        ranges.sort_unstable_by_key(|range| (range.start, range.end));
        ranges.dedup();
        let step = ranges.len().div_ceil(MOST_RANGES).max(1);
        ranges.into_iter().step_by(step).collect()
    }

    /// Nodes that do not hold what they are to serve. A node reads all that it is to hold: what it held goes first.
    fn loads<'b>(&'b self, serve: &'b Held) -> impl Iterator<Item = Load> + 'b {
        serve.iter().enumerate().filter_map(|(node, range)| {
            let layers = range.clone()?;
            let within = |held: &Range<usize>| held.start <= layers.start && layers.end <= held.end;
            if self.held[node].as_ref().is_some_and(within) {
                return None;
            }
            let bytes = self.problem.bytes(&layers);
            let seconds = self.problem.cluster.nodes()[node].load_s(bytes, true);
            Some(Load { node, layers, seconds })
        })
    }

    /// Whether a node that serves has to load.
    fn interrupts(&self, serve: &Held) -> bool {
        self.loads(serve).any(|load| self.held[load.node].is_some())
    }

    /// Tokens until the horizon: none while a node that served loads.
    fn value(&self, serve: &Held) -> f64 {
        let loads = self.loads(serve).filter(|load| self.held[load.node].is_some());
        let down_s = loads.map(|load| load.seconds).fold(0.0, f64::max);
        worth(self.problem, serve) * (HORIZON_S - down_s).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{Link, Node, Profile},
        curve::Curve,
    };

    const EFFORT: Effort = Effort { states: 2000, moves: 200 };

    fn model() -> Model {
        Model::uniform("m", 12, 1000, 0, 10)
    }

    fn demand() -> Demand {
        Demand::chat("q8", 16, Objective::Latency)
    }

    /// A node with room for so many layers that takes so many milliseconds for each.
    fn node(name: &str, layers: u64, ms: f64) -> Node {
        let decode = Curve::new(vec![(1.0, ms / 1e3), (16.0, ms / 250.0)]).unwrap();
        let prefill = Curve::new(vec![(1.0, ms / 1e3), (256.0, ms / 50.0)]).unwrap();
        let profile = Profile { format: "q8".to_owned(), layer_bytes: 1000, decode, prefill };
        Node { disk_rate: Some(1e4), ..Node::new(name, layers * 1000) }.with_profile(profile)
    }

    fn cluster(nodes: Vec<Node>) -> Cluster {
        let names: Vec<String> = nodes.iter().map(|node| node.id.clone()).collect();
        let pairs = names.iter().flat_map(|from| names.iter().map(move |to| (from.clone(), to.clone())));
        let link = |(from, to): (String, String)| Link::new(&from, &to, 0.2, 1000.0);
        let links: Vec<Link> = pairs.filter(|(from, to)| from != to).map(link).collect();
        Cluster::new(nodes, &links).unwrap()
    }

    fn arranged(nodes: Vec<Node>, held: &Held) -> Arrangement {
        arrange(&model(), &cluster(nodes), &demand(), held, EFFORT).unwrap()
    }

    #[test]
    fn what_is_good_stays() {
        let nodes = vec![node("a", 12, 1.0), node("b", 12, 1.0)];
        let stays = arranged(nodes, &[Some(0..12), Some(0..12)]);
        assert_eq!((stays.loads.len(), stays.before), (0, stays.after));
    }

    #[test]
    fn a_newcomer_relieves_the_one_that_holds_all() {
        let nodes = vec![node("a", 12, 1.0), node("b", 6, 1.0)];
        let next = arranged(nodes, &[Some(0..12), None]);
        let [load] = &next.loads[..] else { panic!("{next:?}") };
        assert_eq!((load.node, load.layers.len()), (1, 6));
        // The first serves a part of what it holds, and loads nothing for it.
        assert_eq!(next.serve[0].clone().unwrap().len(), 6, "{next:?}");
        assert!(next.after > 1.1 * next.before, "{next:?}");
    }

    #[test]
    fn a_node_that_slows_gives_up_layers() {
        let nodes = || vec![node("a", 6, 1.0), node("b", 6, 5.0), node("c", 6, 1.0)];
        let held = [Some(0..4), Some(4..8), Some(8..12)];
        let next = arranged(nodes(), &held);
        assert!(!next.loads.is_empty() && next.loads.iter().all(|load| load.node != 1), "{next:?}");
        assert!(next.after > 1.5 * next.before, "{next:?}");
        // Not those that were given their layers.
        let mut pinned = nodes();
        for (node, held) in pinned.iter_mut().zip(&held) {
            node.pinned.clone_from(held);
        }
        assert!(arranged(pinned, &held).loads.is_empty());
        // Nor where the weights take longer to load than there is time.
        let far = nodes().into_iter().map(|node| Node { disk_rate: Some(1.0), ..node }).collect();
        assert!(arranged(far, &held).loads.is_empty());
    }

    #[test]
    fn a_gap_is_filled_by_a_node_that_has_room() {
        let nodes = vec![node("a", 12, 1.0), node("c", 12, 1.0)];
        let next = arranged(nodes, &[Some(0..4), Some(8..12)]);
        assert_eq!(next.before, 0.0);
        assert!(next.after > 0.0 && !next.loads.is_empty());
    }

    #[test]
    fn what_cannot_be_covered_says_why() {
        let small = cluster(vec![node("a", 4, 1.0)]);
        let error = arrange(&model(), &small, &demand(), &[Some(0..4)], EFFORT).unwrap_err();
        assert!(matches!(error, PlanError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn routes_share_what_overlaps() {
        let nodes = cluster(vec![node("a", 12, 1.0), node("b", 12, 1.0), node("c", 12, 2.0)]);
        let plan = routes(&model(), &nodes, &demand(), &[Some(0..4), Some(4..12), Some(4..12)]).unwrap();
        assert_eq!(plan.pipelines.len(), 2);
        assert!(plan.pipelines[0].weight > 1.5 * plan.pipelines[1].weight, "{plan:?}");
        assert!(plan.flow_tokens_per_s >= plan.figures.tokens_per_s, "{plan:?}");
    }
}
