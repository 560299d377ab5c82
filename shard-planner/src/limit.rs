//! What no plan can pass.

use crate::problem::Problem;

/// An upper bound on tokens per second.
///
/// A node at batch `b` does `b / t(b)` layers of tokens per second, and while it does, `b` sessions are at
/// it. All nodes together cannot do more layers than their sum, nor have more sessions at them than KV has
/// room for beside one copy of the weights, or than are asked for. With a price `λ` on sessions (any price
/// gives a bound, the best is sought) the nodes part: `λ·N + Σ max_b (b/t(b) − λ·b)`.
pub(crate) fn most_tokens_per_s(problem: &Problem) -> f64 {
    let whole = 0..problem.layers();
    let memory: f64 = problem.cluster.nodes().iter().map(|node| node.all_memory() as f64).sum();
    let kv = problem.session_bytes(&whole) as f64;
    let room = if kv > 0.0 { (memory - problem.weights.total() as f64).max(0.0) / kv } else { f64::INFINITY };
    let sessions = room.min(f64::from(problem.demand.concurrency));
    let segments: Vec<Vec<Segment>> =
        (0..problem.cluster.len()).map(|node| segments(problem, node)).collect();
    let bound = |price: f64| {
        let own = |node: &Vec<Segment>| node.iter().map(|segment| segment.most(price)).fold(0.0, f64::max);
        let worked = segments.iter().map(own).sum::<f64>();
        if price > 0.0 { price * sessions + worked } else { worked }
    };
    let top = segments.iter().flatten().map(|segment| 1.0 / segment.from_s).fold(0.0, f64::max);
    // The bound is convex in the price: thirds.
    let (mut low, mut high) = (0.0, top);
    for _ in 0..100 {
        let (a, b) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
        if bound(a) <= bound(b) { high = b } else { low = a }
    }
    bound(f64::midpoint(low, high)).min(bound(0.0))
}

/// Batches between which a node's time for the whole model is linear.
struct Segment {
    from: f64,
    from_s: f64,
    to: f64,
    to_s: f64,
}

impl Segment {
    /// Most of `b/t(b) - price·b`: at an end, or where the derivative is zero.
    fn most(&self, price: f64) -> f64 {
        let slope = if self.to > self.from { (self.to_s - self.from_s) / (self.to - self.from) } else { 0.0 };
        let base = self.from_s - slope * self.from;
        let value = |batch: f64| {
            let seconds = base + slope * batch;
            if seconds > 0.0 { batch / seconds - price * batch } else { 0.0 }
        };
        let turn = ((base / price).sqrt() - base) / slope;
        let inside = if turn > self.from && turn < self.to { value(turn) } else { 0.0 };
        value(self.from).max(value(self.to)).max(inside)
    }
}

fn segments(problem: &Problem, node: usize) -> Vec<Segment> {
    let weight = |layer: &usize| problem.weights.layers[*layer] + problem.model.kv_bytes[*layer];
    let lightest =
        (0..problem.layers()).map(|layer| (weight(&layer), layer)).min().map_or(0, |(_, layer)| layer);
    let memory = problem.cluster.nodes()[node].all_memory();
    let Some(bare) = memory.checked_sub(problem.weights.layers[lightest]) else { return Vec::new() };
    let kv = problem.model.kv_bytes[lightest].saturating_mul(u64::from(problem.demand.context));
    let fit = bare.checked_div(kv).map_or(f64::INFINITY, |sessions| sessions as f64);
    let fit = fit.min(problem.max_sessions(node) as f64);
    let most = fit.min(problem.max_batch(node)).min(f64::from(problem.demand.concurrency));
    if most < 1.0 {
        return Vec::new();
    }
    let share = problem.prefill_weight(node, &(0..problem.layers()));
    let seconds = |batch: f64| {
        let (decode, prefill) = problem.unit_s(node, batch);
        (decode + prefill) * share
    };
    let mut ends: Vec<f64> = problem.batches(node).filter(|&batch| batch > 1.0 && batch < most).collect();
    ends.insert(0, 1.0);
    ends.push(most);
    let between = |pair: &[f64]| Segment {
        from: pair[0],
        from_s: seconds(pair[0]),
        to: pair[1],
        to_s: seconds(pair[1]),
    };
    ends.windows(2).map(between).collect()
}
