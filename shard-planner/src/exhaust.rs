//! Small clusters: every set of pipelines, tried.

use crate::{
    cut::{Line, filled},
    plan::Stage,
    problem::Problem,
};

/// Most pipelines that are tried.
const MOST: u128 = 60_000;

/// The best set of pipelines of nodes of their own, by `score` of (tokens per second, price) sums; `None`
/// where there are too many to try, or where pipelines would compete for the replies that are asked for.
pub(crate) fn best_set(problem: &Problem, score: impl Fn(f64, f64) -> f64) -> Option<Vec<Line>> {
    let nodes = problem.cluster.len();
    if nodes > 6 || count(nodes, problem.layers()) > MOST {
        return None;
    }
    // For each set of nodes the best pipeline over exactly these.
    let mut alone: Vec<Option<Line>> = vec![None; 1 << nodes];
    try_all(problem, &mut Vec::new(), 0, &mut alone);
    if nodes > 1 && competes(problem, &alone) {
        return None;
    }
    let price = |set: usize| {
        let members = (0..nodes).filter(|node| set >> node & 1 == 1);
        members.map(|node| problem.cluster.nodes()[node].price).sum::<f64>()
    };
    let mut best: (f64, Vec<usize>) = (0.0, Vec::new());
    // Sets of disjoint sets, depth first.
    let mut stack: Vec<(usize, usize, Vec<usize>)> = vec![(0, 1, Vec::new())];
    while let Some((used, from, chosen)) = stack.pop() {
        let rate: f64 =
            chosen.iter().filter_map(|&set| alone[set].as_ref()).map(|l| l.figures.tokens_per_s).sum();
        let value = score(rate, chosen.iter().map(|&set| price(set)).sum());
        if value > best.0 {
            best = (value, chosen.clone());
        }
        for (set, line) in alone.iter().enumerate().skip(from) {
            if set & used == 0 && line.is_some() {
                let mut more = chosen.clone();
                more.push(set);
                stack.push((used | set, set + 1, more));
            }
        }
    }
    let lines: Vec<Line> = best.1.into_iter().filter_map(|set| alone[set].clone()).collect();
    (!lines.is_empty()).then_some(lines)
}

/// Whether all replies asked for could not fill the pipelines, so that they would take them from each other.
fn competes(problem: &Problem, alone: &[Option<Line>]) -> bool {
    let room = alone.iter().flatten().map(|line| line.sessions).max().unwrap_or(0);
    room.saturating_mul(problem.cluster.len() as u64) > u64::from(problem.demand.concurrency)
}

/// Orders of some of `nodes` times cuts of `layers`.
fn count(nodes: usize, layers: usize) -> u128 {
    let mut sum = 0u128;
    let (mut orders, mut cuts) = (1u128, 1u128);
    for stages in 1..=nodes.min(layers) {
        orders *= (nodes - stages + 1) as u128;
        if stages > 1 {
            cuts = cuts * (layers - stages + 1) as u128 / (stages - 1) as u128;
        }
        sum += orders * cuts;
    }
    sum
}

fn try_all(problem: &Problem, stages: &mut Vec<Stage>, at: usize, best: &mut [Option<Line>]) {
    if at == problem.layers() {
        let set = stages.iter().fold(0, |set, stage| set | 1usize << stage.node);
        let line = filled(problem, stages.clone(), u64::from(problem.demand.concurrency));
        let known = best[set].as_ref().map_or(0.0, |line| line.figures.tokens_per_s);
        if let Some(line) = line.filter(|line| line.figures.tokens_per_s > known) {
            best[set] = Some(line);
        }
        return;
    }
    for node in 0..problem.cluster.len() {
        let up = stages.last().is_none_or(|last| problem.cluster.hop(last.node, node).is_up());
        if !up || stages.iter().any(|stage| stage.node == node) {
            continue;
        }
        for to in at + 1..=problem.layers() {
            if !problem.fits(node, &(at..to), 1) {
                continue;
            }
            stages.push(Stage { node, layers: at..to });
            try_all(problem, stages, to, best);
            stages.pop();
        }
    }
}
