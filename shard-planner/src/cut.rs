//! The cuts of one pipeline whose nodes stand in a given order, for the most tokens per second.

use std::ops::Range;

use crate::{
    estimate::SLACKS,
    plan::{Figures, Stage},
    predict::{keeps, steady},
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
    if most == 0 {
        return None;
    }
    let (sessions, figures) = match at(most) {
        Some(found) => found,
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

/// The best cuts found for nodes in this order with up to `most` sessions. Nodes that get no layer are left
/// out.
///
/// For a number of sessions (which take memory) and a batch, the least time of the slowest stage is found
/// exactly: with a bound on it, each node takes as many layers as it can, and the bound is bisected. From there
/// the bound is loosened, and the fastest nodes take what they can within it: that shortens the way around.
pub(crate) fn cut(problem: &Problem, order: &[usize], most: u64) -> Option<Line> {
    let order = &pins_in_order(problem, order);
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
            if best.as_ref().is_none_or(|best| line.figures.tokens_per_s > best.figures.tokens_per_s) {
                best = Some(line);
                worse = 0;
            }
        }
        sessions = (sessions * 4 / 5).min(sessions - 1);
    }
    best
}

/// The order with nodes that keep their layers in the order of those, in the places that such nodes have.
fn pins_in_order(problem: &Problem, order: &[usize]) -> Vec<usize> {
    let start = |node: usize| problem.cluster.nodes()[node].pinned.as_ref().map(|pinned| pinned.start);
    let mut pinned: Vec<usize> = order.iter().copied().filter(|&node| start(node).is_some()).collect();
    pinned.sort_by_key(|&node| start(node));
    let mut pinned = pinned.into_iter();
    let place = |&node: &usize| start(node).and_then(|_| pinned.next()).unwrap_or(node);
    order.iter().map(place).collect()
}

/// The best cut for a number of sessions and a batch.
fn at_batch(problem: &Problem, order: &[usize], sessions: u64, batch: f64, most: u64) -> Option<Line> {
    let whole = 0..problem.layers();
    let (balanced, least_s) = quickest_slowest(problem, order, &whole, sessions, batch)?;
    let fastest = by_speed(problem, order, batch);
    let loosened =
        SLACKS.iter().filter_map(|slack| spread(problem, order, &whole, &fastest, sessions, least_s * slack));
    let lines = std::iter::once(balanced).chain(loosened).filter_map(|stages| filled(problem, stages, most));
    lines.max_by(|a, b| a.figures.tokens_per_s.total_cmp(&b.figures.tokens_per_s))
}

/// Nodes with their seconds for a mean layer at `batch`, the fastest first.
pub(crate) fn by_speed(problem: &Problem, order: &[usize], batch: f64) -> Vec<(f64, usize)> {
    let whole = 0..problem.layers();
    let layer_s = |node: usize| {
        let (decode, prefill) = problem.unit_s(node, batch);
        let seconds =
            problem.decode_weight(node, &whole) * decode + problem.prefill_weight(node, &whole) * prefill;
        seconds / problem.layers() as f64
    };
    let mut fastest: Vec<(f64, usize)> = order.iter().map(|&node| (layer_s(node), node)).collect();
    fastest.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    fastest
}

/// The cut of `span` in which the fastest nodes take as many layers as they can within `limit` seconds.
pub(crate) fn spread(
    problem: &Problem,
    order: &[usize],
    span: &Range<usize>,
    fastest: &[(f64, usize)],
    sessions: u64,
    limit: f64,
) -> Option<Vec<Stage>> {
    // More than was reckoned for each, where ends or unequal layers leave no room.
    (0..=span.len().min(3)).find_map(|more| {
        let mut left = span.len();
        let mut share = vec![0; problem.cluster.len()];
        for &(layer_s, node) in fastest {
            let room = room(problem, node, span, sessions);
            share[node] = room.min((limit / layer_s) as usize).min(left);
            left -= share[node];
            share[node] += if share[node] > 0 { more } else { 0 };
        }
        fill(problem, order, span, |_, node, range| {
            range.len() <= share[node] && problem.fits(node, range, sessions)
        })
    })
}

/// Layers of `span` that a node holds: from its first, or in its middle, where no end is.
fn room(problem: &Problem, node: usize, span: &Range<usize>, sessions: u64) -> usize {
    let from =
        |start: usize| problem.reach(start, span.end, |range| problem.fits(node, range, sessions)) - start;
    let inside = (span.start + 1).min(span.end - 1);
    from(span.start).max(from(inside))
}

/// Most sessions that the nodes can hold beside the whole model, by filling each as far as it goes.
fn most_sessions(problem: &Problem, order: &[usize], most: u64) -> Option<u64> {
    let whole = 0..problem.layers();
    let holds = |sessions: u64| {
        fill(problem, order, &whole, |_, node, range| problem.fits(node, range, sessions)).is_some()
    };
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

/// Least possible time of the slowest stage for `batch`, and a cut of `span` that has it.
pub(crate) fn quickest_slowest(
    problem: &Problem,
    order: &[usize],
    span: &Range<usize>,
    sessions: u64,
    batch: f64,
) -> Option<(Vec<Stage>, f64)> {
    let units: Vec<(f64, f64)> = order.iter().map(|&node| problem.unit_s(node, batch)).collect();
    let seconds = |(decode, prefill): (f64, f64), node: usize, range: &Range<usize>| {
        problem.decode_weight(node, range) * decode + problem.prefill_weight(node, range) * prefill
    };
    let within = |limit: f64| {
        fill(problem, order, span, |index, node, range| {
            seconds(units[index], node, range) <= limit && problem.fits(node, range, sessions)
        })
    };
    let slowest = order.iter().zip(&units).map(|(&node, &unit)| seconds(unit, node, &(0..problem.layers())));
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

/// Ranges of `span` when each node in turn takes as many layers as `fits` allows.
pub(crate) fn fill(
    problem: &Problem,
    order: &[usize],
    span: &Range<usize>,
    mut fits: impl FnMut(usize, usize, &Range<usize>) -> bool,
) -> Option<Vec<Stage>> {
    let mut stages: Vec<Stage> = Vec::with_capacity(order.len());
    let mut at = span.start;
    for (index, &node) in order.iter().enumerate() {
        if at == span.end {
            break;
        }
        let up = stages.last().is_none_or(|last| problem.cluster.hop(last.node, node).is_up());
        let to = if up { problem.reach(at, span.end, |range| fits(index, node, range)) } else { at };
        if to > at {
            stages.push(Stage { node, layers: at..to });
            at = to;
        }
    }
    (at == span.end).then_some(stages)
}
