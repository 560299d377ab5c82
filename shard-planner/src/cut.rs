//! The cuts of one pipeline whose nodes stand in a given order, for the most tokens per second.

use std::ops::Range;

use crate::{
    demand::Limits,
    estimate::SLACKS,
    plan::{Figures, Stage},
    predict::steady,
    problem::Problem,
};

/// A pipeline with its sessions and what is predicted of it.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) stages: Vec<Stage>,
    pub(crate) sessions: u64,
    pub(crate) figures: Figures,
}

/// The pipeline with as many sessions, up to `most`, as KV and the bounds on time allow.
pub(crate) fn filled(problem: &Problem, stages: Vec<Stage>, most: u64) -> Option<Line> {
    let kv = stages.iter().map(|stage| problem.sessions(stage.node, &stage.layers)).min()??;
    let limits = problem.demand.limits();
    let most = kv.min(most);
    let at = |sessions: u64| {
        let figures = steady(problem, &stages, sessions as f64);
        keeps(&figures, limits).then_some((sessions, figures))
    };
    let (sessions, figures) = match at(most.max(1)).filter(|_| most > 0) {
        Some(found) => found,
        None if most == 0 => return None,
        None => {
            let (mut low, mut high) = (0, most);
            while high - low > 1 {
                let middle = u64::midpoint(low, high);
                match at(middle) {
                    Some(_) => low = middle,
                    None => high = middle,
                }
            }
            at(low).filter(|_| low > 0)?
        }
    };
    Some(Line { stages, sessions, figures })
}

pub(crate) fn keeps(figures: &Figures, limits: Limits) -> bool {
    limits.tpot_s.is_none_or(|most| figures.tpot_s <= most)
        && limits.ttft_s.is_none_or(|most| figures.ttft_s <= most)
}

/// The best cuts found for nodes in this order with up to `most` sessions. Nodes that get no layer are left
/// out.
///
/// For a number of sessions (which take memory) and a batch, the least time of the slowest stage is found
/// exactly: with a bound on it, each node takes as many layers as it can, and the bound is bisected. From there
/// the bound is loosened, and the fastest nodes take what they can within it: that shortens the way around.
pub(crate) fn cut(problem: &Problem, order: &[usize], most: u64) -> Option<Line> {
    let ceiling = most_sessions(problem, order, most)?;
    let mut best: Option<Line> = None;
    let mut sessions = ceiling;
    let mut worse = 0;
    while sessions >= 1 && worse < 3 {
        worse += 1;
        let mut batch = (sessions as f64 / order.len() as f64).max(1.0);
        for _ in 0..2 {
            let Some(line) = at_batch(problem, order, sessions, batch, most) else { break };
            batch = f64::midpoint(batch, line.figures.batch);
            if best.as_ref().is_none_or(|b| line.figures.tokens_per_s > b.figures.tokens_per_s) {
                best = Some(line);
                worse = 0;
            }
        }
        sessions = (sessions * 4 / 5).min(sessions - 1);
    }
    best
}

/// The best cut for a number of sessions and a batch.
fn at_batch(problem: &Problem, order: &[usize], sessions: u64, batch: f64, most: u64) -> Option<Line> {
    let (balanced, least_s) = quickest_slowest(problem, order, sessions, batch)?;
    let whole = 0..problem.layers();
    let layer_s = |node: usize| {
        let (decode, prefill) = problem.unit_s(node, batch);
        let seconds =
            problem.decode_weight(node, &whole) * decode + problem.prefill_weight(node, &whole) * prefill;
        seconds / problem.layers() as f64
    };
    let mut fastest: Vec<(f64, usize)> = order.iter().map(|&node| (layer_s(node), node)).collect();
    fastest.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let loosened =
        SLACKS.iter().filter_map(|slack| spread(problem, order, &fastest, sessions, least_s * slack));
    let lines = std::iter::once(balanced).chain(loosened).filter_map(|stages| filled(problem, stages, most));
    lines.max_by(|a, b| a.figures.tokens_per_s.total_cmp(&b.figures.tokens_per_s))
}

/// The cut in which the fastest nodes take as many layers as they can within `limit` seconds.
fn spread(
    problem: &Problem,
    order: &[usize],
    fastest: &[(f64, usize)],
    sessions: u64,
    limit: f64,
) -> Option<Vec<Stage>> {
    let layers = problem.layers();
    let middle = layers / 2;
    // One more than was reckoned for each, where ends or unequal layers leave no room.
    (0..=layers.min(3)).find_map(|more| {
        let mut left = layers;
        let mut share = vec![0; problem.cluster.len()];
        for &(layer_s, node) in fastest {
            let room = problem.reach(middle, |range| problem.fits(node, range, sessions)) - middle;
            // The middle of a short model ends before the node is full.
            let room = if middle + room == layers { layers } else { room };
            let quick = (limit / layer_s).floor() as usize;
            share[node] = room.min(quick).min(left);
            left -= share[node];
            share[node] += if share[node] > 0 { more } else { 0 };
        }
        fill(problem, order, |node, range| range.len() <= share[node] && problem.fits(node, range, sessions))
    })
}

/// Most sessions that the nodes can hold beside the whole model, by filling each as far as it goes.
fn most_sessions(problem: &Problem, order: &[usize], most: u64) -> Option<u64> {
    let holds =
        |sessions: u64| fill(problem, order, |node, range| problem.fits(node, range, sessions)).is_some();
    if !holds(1) {
        return None;
    }
    let (mut low, mut high) = (1, most.max(1));
    if holds(high) {
        return Some(high);
    }
    while high - low > 1 + low / 64 {
        let middle = u64::midpoint(low, high);
        match holds(middle) {
            true => low = middle,
            false => high = middle,
        }
    }
    Some(low)
}

/// Least possible time of the slowest stage for `batch`, and a cut that has it.
pub(crate) fn quickest_slowest(
    problem: &Problem,
    order: &[usize],
    sessions: u64,
    batch: f64,
) -> Option<(Vec<Stage>, f64)> {
    let units: Vec<(f64, f64)> = order.iter().map(|&node| problem.unit_s(node, batch)).collect();
    let within = |limit: f64| {
        fill_at(problem, order, |index, node, range| {
            let (decode, prefill) = units[index];
            let taken =
                problem.decode_weight(node, range) * decode + problem.prefill_weight(node, range) * prefill;
            taken <= limit && problem.fits(node, range, sessions)
        })
    };
    let whole = 0..problem.layers();
    let slowest = order.iter().zip(&units).map(|(&node, (decode, prefill))| {
        problem.decode_weight(node, &whole) * decode + problem.prefill_weight(node, &whole) * prefill
    });
    let high = slowest.fold(0.0, f64::max);
    let (mut low, mut high) = (high * 1e-6, high);
    let mut best = within(high)?;
    while high - low > 1e-3 * high {
        let middle = f64::midpoint(low, high);
        match within(middle) {
            Some(stages) => (best, high) = (stages, middle),
            None => low = middle,
        }
    }
    Some((best, high))
}

/// Ranges when each node in turn takes as many layers as `fits` allows.
pub(crate) fn fill(
    problem: &Problem,
    order: &[usize],
    mut fits: impl FnMut(usize, &Range<usize>) -> bool,
) -> Option<Vec<Stage>> {
    fill_at(problem, order, |_, node, range| fits(node, range))
}

fn fill_at(
    problem: &Problem,
    order: &[usize],
    mut fits: impl FnMut(usize, usize, &Range<usize>) -> bool,
) -> Option<Vec<Stage>> {
    let mut stages: Vec<Stage> = Vec::with_capacity(order.len());
    let mut at = 0;
    for (index, &node) in order.iter().enumerate() {
        if at == problem.layers() {
            break;
        }
        let up = stages.last().is_none_or(|last| problem.cluster.hop(last.node, node).is_up());
        let to = if up { problem.reach(at, |range| fits(index, node, range)) } else { at };
        if to > at {
            stages.push(Stage { node, layers: at..to });
            at = to;
        }
    }
    (at == problem.layers()).then_some(stages)
}
