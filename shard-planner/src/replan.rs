//! What to do when a node joins, leaves or slows: as little as possible.
//!
//! Pipelines whose nodes are all still there go on. One that lost a node is mended where it broke: by a node
//! that is free, by its neighbours taking over, or by other nodes that are free. Only then is it asked whether
//! another plan is so much better that it pays for loading weights while their pipelines stand still.

use std::{collections::HashMap, ops::Range};

use serde::Serialize;

use crate::{
    branches::Routes,
    cluster::Cluster,
    cut::{Line, cut, filled},
    demand::{Demand, Objective},
    limit::most_tokens_per_s,
    model::Model,
    plan::{Bound, Plan, PlanError, Proof, Stage},
    problem::Problem,
    search::{Effort, best_lines, routes},
};

/// A pipeline that stood before, by the names of its nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Nodes and their layers in order.
    pub stages: Vec<(String, Range<usize>)>,
}

/// Weights that a node has to load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Move {
    /// Name of the node.
    pub node: String,
    /// What it is to hold.
    pub layers: Range<usize>,
    /// Bytes that it does not have yet.
    pub bytes: u64,
    /// Seconds until it has them.
    pub seconds: f64,
}

/// A new plan and what it takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replan {
    /// The plan.
    pub plan: Plan,
    /// Weights to load, none for nodes that stay as they are.
    pub moves: Vec<Move>,
    /// Pipelines of the plan that stood before, and go on without interruption.
    pub kept: Vec<usize>,
    /// What was done.
    pub step: Step,
}

/// How far a plan had to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Everything stands as it stood.
    Nothing,
    /// Broken pipelines were mended, others left alone.
    Mended,
    /// A new plan pays for its moves.
    Replaced,
}

/// How long a plan is expected to last, in seconds: what a move costs is weighed against what it brings until
/// then.
pub const HORIZON_S: f64 = 1800.0;
/// A plan has to be so much better to replace one that stands.
pub(crate) const CLEARLY: f64 = 1.05;

/// The plan for what the cluster is now, given what stood.
pub fn replan(
    model: &Model,
    cluster: &Cluster,
    demand: &Demand,
    standing: &[Standing],
    effort: Effort,
) -> Result<Replan, PlanError> {
    // Weighed in tokens, whatever the objective: a pipeline that stands still serves nobody.
    let demand = match demand.objective {
        Objective::Latency => Demand { objective: Objective::Throughput(demand.limits()), ..demand.clone() },
        _ => demand.clone(),
    };
    let problem = Problem::new(model, cluster, &demand)?;
    let before = Before::new(&problem, standing);
    let stayed = before.whole();
    let mended = before.mended(&stayed, effort);
    let recut = before.recut();
    let fresh = best_lines(&problem, effort);
    let value = |lines: &[Line]| lines.iter().map(|line| before.value(line)).sum::<f64>();
    let (stay, mend) = (value(&stayed), value(&mended));
    let (mut best, mut step) = match mend > stay {
        true => (mended, Step::Mended),
        false => (stayed, Step::Nothing),
    };
    for other in [recut, fresh] {
        if value(&other) > value(&best) * CLEARLY {
            (best, step) = (other, Step::Replaced);
        }
    }
    if best.is_empty() {
        return Err(crate::shortage::reason(&problem, 1));
    }
    let kept = (0..best.len()).filter(|&at| before.stood(&best[at].stages)).collect();
    let moves = best.iter().flat_map(|line| &line.stages).filter_map(|stage| before.load(stage)).collect();
    let reached: f64 = best.iter().map(|line| line.figures.tokens_per_s).sum();
    let limit = most_tokens_per_s(&problem).max(reached);
    let chosen: Routes = routes(best);
    let plan = Plan::new(&problem, chosen, Bound { reached, limit, proof: Proof::Capacity })?;
    Ok(Replan { plan, moves, kept, step })
}

/// What stood, in the terms of the cluster that there is now.
struct Before<'a> {
    problem: &'a Problem<'a>,
    /// Stages of each pipeline; `None` for a node that is gone.
    pipelines: Vec<Vec<(Option<usize>, Range<usize>)>>,
    held: HashMap<usize, Range<usize>>,
}

impl<'a> Before<'a> {
    fn new(problem: &'a Problem<'a>, standing: &[Standing]) -> Self {
        let nodes = problem.cluster.nodes();
        let known: HashMap<&str, usize> =
            nodes.iter().enumerate().map(|(at, n)| (n.id.as_str(), at)).collect();
        let stage =
            |(name, layers): &(String, Range<usize>)| (known.get(name.as_str()).copied(), layers.clone());
        let pipelines: Vec<Vec<_>> =
            standing.iter().map(|pipeline| pipeline.stages.iter().map(stage).collect()).collect();
        let mut held: HashMap<usize, Range<usize>> = HashMap::new();
        for (node, layers) in pipelines.iter().flatten() {
            if let Some(node) = node {
                let all = held.entry(*node).or_insert(layers.clone());
                *all = all.start.min(layers.start)..all.end.max(layers.end);
            }
        }
        Self { problem, pipelines, held }
    }

    fn asked(&self) -> u64 {
        u64::from(self.problem.demand.concurrency)
    }

    /// The stages of a pipeline whose nodes are all there.
    fn stages(&self, pipeline: usize) -> Option<Vec<Stage>> {
        let stage = |(node, layers): &(Option<usize>, Range<usize>)| {
            Some(Stage { node: (*node)?, layers: layers.clone() })
        };
        let stages: Vec<Stage> = self.pipelines[pipeline].iter().map(stage).collect::<Option<_>>()?;
        let up = |pair: &[Stage]| self.problem.cluster.hop(pair[0].node, pair[1].node).is_up();
        let begins = stages.first().is_some_and(|first| first.layers.start == 0);
        let follows = stages.windows(2).all(|pair| pair[0].layers.end == pair[1].layers.start);
        let ends = stages.last().is_some_and(|last| last.layers.end == self.problem.layers());
        (begins && follows && ends && stages.windows(2).all(up)).then_some(stages)
    }

    fn whole(&self) -> Vec<Line> {
        let stages = (0..self.pipelines.len()).filter_map(|pipeline| self.stages(pipeline));
        stages.filter_map(|stages| filled(self.problem, stages, self.asked())).collect()
    }

    fn stood(&self, stages: &[Stage]) -> bool {
        (0..self.pipelines.len()).any(|pipeline| self.stages(pipeline).is_some_and(|old| old == stages))
    }

    fn free(&self, lines: &[Line]) -> Vec<usize> {
        let taken =
            |node: &usize| lines.iter().flat_map(|line| &line.stages).any(|stage| stage.node == *node);
        (0..self.problem.cluster.len()).filter(|node| !taken(node)).collect()
    }

    /// The pipelines that stand, with broken ones mended where that is possible.
    fn mended(&self, whole: &[Line], effort: Effort) -> Vec<Line> {
        let mut lines = whole.to_vec();
        for pipeline in 0..self.pipelines.len() {
            if self.stages(pipeline).is_none() {
                let free = self.free(&lines);
                let ways = self.filled_gaps(pipeline, &free);
                let best = ways.into_iter().max_by(|a, b| self.value(a).total_cmp(&self.value(b)));
                lines.extend(best);
            }
        }
        let free = self.free(&lines);
        lines.extend(self.over(&free, effort));
        lines
    }

    /// Pipelines over nodes that are free.
    fn over(&self, free: &[usize], effort: Effort) -> Vec<Line> {
        if free.is_empty() {
            return Vec::new();
        }
        let cluster = self.problem.cluster.subset(free);
        let Ok(problem) = Problem::new(self.problem.model, &cluster, self.problem.demand) else {
            return Vec::new();
        };
        let named = |line: Line| Line {
            stages: line.stages.into_iter().map(|s| Stage { node: free[s.node], ..s }).collect(),
            ..line
        };
        best_lines(&problem, effort).into_iter().map(named).collect()
    }

    /// Ways to fill the first gap of a pipeline: with each free node, or by its neighbours. More gaps than one
    /// are left to a new pipeline.
    fn filled_gaps(&self, pipeline: usize, free: &[usize]) -> Vec<Line> {
        let stages = &self.pipelines[pipeline];
        let gaps: Vec<usize> = (0..stages.len()).filter(|&at| stages[at].0.is_none()).collect();
        let [gap] = gaps[..] else { return Vec::new() };
        let layers = stages[gap].1.clone();
        let used = |node: &usize| stages.iter().any(|(at, _)| *at == Some(*node));
        let mut ways: Vec<Vec<Stage>> = Vec::new();
        let part = |range: Range<usize>| -> Vec<Stage> {
            let stages = stages[range].iter();
            stages
                .filter_map(|(node, layers)| Some(Stage { node: (*node)?, layers: layers.clone() }))
                .collect()
        };
        let (before, after) = (part(0..gap), part(gap + 1..stages.len()));
        for &node in free.iter().filter(|node| !used(node)) {
            let middle = Stage { node, layers: layers.clone() };
            ways.push([before.clone(), vec![middle], after.clone()].concat());
        }
        for at in layers.start..=layers.end {
            let (mut before, mut after) = (before.clone(), after.clone());
            match (before.last_mut(), after.first_mut()) {
                (Some(last), Some(next)) => {
                    last.layers.end = at;
                    next.layers.start = at;
                }
                (Some(last), None) => last.layers.end = layers.end,
                (None, Some(next)) => next.layers.start = layers.start,
                (None, None) => continue,
            }
            ways.push([before, after].concat());
        }
        let up = |stages: &Vec<Stage>| {
            stages.windows(2).all(|pair| self.problem.cluster.hop(pair[0].node, pair[1].node).is_up())
        };
        ways.into_iter().filter(up).filter_map(|stages| filled(self.problem, stages, self.asked())).collect()
    }

    /// Pipelines over the same nodes in the same order, cut for the speeds of now.
    fn recut(&self) -> Vec<Line> {
        let stages = (0..self.pipelines.len()).filter_map(|pipeline| self.stages(pipeline));
        let order = |stages: Vec<Stage>| stages.into_iter().map(|stage| stage.node).collect::<Vec<_>>();
        stages.filter_map(|stages| cut(self.problem, &order(stages), self.asked())).collect()
    }

    /// What a stage has to load.
    fn load(&self, stage: &Stage) -> Option<Move> {
        let weights = &self.problem.weights.layers;
        let held = self.held.get(&stage.node).cloned().unwrap_or(0..0);
        let new = stage.layers.clone().filter(|layer| !held.contains(layer)).map(|layer| weights[layer]);
        let mut bytes: u64 = new.sum();
        let layers = self.problem.layers();
        bytes += if stage.layers.start == 0 && held.start > 0 { self.problem.weights.embedding } else { 0 };
        bytes += if stage.layers.end == layers && held.end < layers { self.problem.weights.head } else { 0 };
        let node = &self.problem.cluster.nodes()[stage.node];
        let seconds = node.load_s(bytes, false);
        (bytes > 0).then(|| Move { node: node.id.clone(), layers: stage.layers.clone(), bytes, seconds })
    }

    /// Tokens until the horizon: none while a stage loads.
    fn value(&self, line: &Line) -> f64 {
        let loads = line.stages.iter().filter_map(|stage| self.load(stage));
        let down_s = loads.map(|load| load.seconds).fold(0.0, f64::max);
        line.figures.tokens_per_s * (HORIZON_S - down_s).max(0.0)
    }
}

impl Plan {
    /// Its pipelines by the names of their nodes, to replan from later.
    pub fn standing(&self, cluster: &Cluster) -> Vec<Standing> {
        let name = |stage: &Stage| (cluster.nodes()[stage.node].id.clone(), stage.layers.clone());
        let named = |stages: &[Stage]| Standing { stages: stages.iter().map(name).collect() };
        self.pipelines.iter().map(|pipeline| named(&pipeline.stages)).collect()
    }
}
