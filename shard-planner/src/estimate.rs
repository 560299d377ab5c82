//! A quick estimate of what a set of nodes can do as one pipeline: layers of equal weight, no ends, and
//! layers in parts. What a search tries thousands of times; what it finds is then cut and predicted exactly.

use crate::problem::Problem;

/// Batches for which times are kept; between them, the next lower is used.
pub(crate) const BATCHES: [f64; 16] =
    [1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 384.0];

/// What is kept of each node.
#[derive(Clone, Debug)]
pub(crate) struct Estimates<'a> {
    problem: &'a Problem<'a>,
    /// Seconds per mean layer by node and batch, prompts included.
    units: Vec<[f64; BATCHES.len()]>,
    /// Bytes for weights, or for both.
    memory: Vec<f64>,
    /// Bytes for KV where it has its own.
    kv_memory: Vec<Option<f64>>,
    most_layers: Vec<f64>,
    layer_bytes: f64,
    session_bytes: f64,
    layers: f64,
    /// What times on links are multiplied with.
    caution: f64,
}

/// A pipeline's estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) tokens_per_s: f64,
    pub(crate) price: f64,
    /// Sessions it was best with: where to begin next time.
    pub(crate) sessions: f64,
}

impl<'a> Estimates<'a> {
    /// Estimates that take links for so many times as slow as they are.
    pub(crate) fn new(problem: &'a Problem<'a>, caution: f64) -> Self {
        let nodes = problem.cluster.nodes();
        let layers = problem.layers();
        let layer_bytes = problem.weights.total() as f64 / layers as f64;
        let mean = |node: usize, (decode, prefill): (f64, f64)| {
            let whole = 0..layers;
            (problem.decode_weight(node, &whole) * decode + problem.prefill_weight(node, &whole) * prefill)
                / layers as f64
        };
        let units = (0..nodes.len()).map(|node| BATCHES.map(|batch| mean(node, problem.unit_s(node, batch))));
        Self {
            units: units.collect(),
            memory: nodes.iter().map(|node| node.memory as f64).collect(),
            kv_memory: nodes.iter().map(|node| node.kv_memory.map(|bytes| bytes as f64)).collect(),
            most_layers: nodes
                .iter()
                .map(|node| {
                    let weights = node.max_weights.map_or(f64::INFINITY, |most| most as f64 / layer_bytes);
                    weights.min(node.max_layers.unwrap_or(layers) as f64).floor()
                })
                .collect(),
            layer_bytes,
            session_bytes: problem.session_bytes(&(0..layers)) as f64 / layers as f64,
            layers: layers as f64,
            caution,
            problem,
        }
    }

    /// Layers that a node holds beside KV for `sessions`.
    pub(crate) fn room(&self, node: usize, sessions: f64) -> f64 {
        // What a node keeps it has room for; how evenly its bytes are spread is no matter.
        if let Some(pinned) = &self.problem.cluster.nodes()[node].pinned {
            let range = pinned.clone();
            return if self.problem.fits(node, &range, sessions as u64) { range.len() as f64 } else { 0.0 };
        }
        if sessions > self.problem.max_sessions(node) as f64 {
            return 0.0;
        }
        let kv = sessions * self.session_bytes;
        let room = match self.kv_memory[node] {
            Some(own) if kv > 0.0 => (self.memory[node] / self.layer_bytes).min(own / kv),
            Some(_) => self.memory[node] / self.layer_bytes,
            None => self.memory[node] / (self.layer_bytes + kv),
        };
        room.floor().min(self.most_layers[node])
    }

    /// Nodes in an order in which they could form a pipeline, with up to `most` sessions; `near` is where to
    /// begin to look for the number of sessions, 0 for anywhere.
    pub(crate) fn of(&self, order: &[usize], most: f64, near: f64) -> Estimate {
        let room = |sessions: f64| order.iter().map(|&node| self.room(node, sessions)).sum::<f64>();
        if order.is_empty() || room(1.0) < self.layers {
            return Estimate::default();
        }
        let ceiling = if room(most) >= self.layers {
            most
        } else {
            let (mut low, mut high) = (1.0, most);
            while high - low > 0.02 * low {
                let middle = f64::midpoint(low, high);
                if room(middle) >= self.layers { low = middle } else { high = middle }
            }
            low
        };
        let way = self.way(order);
        let price = order.iter().map(|&node| self.problem.cluster.nodes()[node].price).sum();
        let fastest = self.by_speed(order);
        let mut best = Estimate { price, ..Estimate::default() };
        let mut sessions = if near > 0.0 { ceiling.min(near * 1.5) } else { ceiling };
        let mut worse = 0;
        while sessions >= 1.0 && worse < 2 {
            let tokens_per_s = self.rate(&fastest, sessions, &way);
            match tokens_per_s > best.tokens_per_s {
                true => (best.tokens_per_s, best.sessions, worse) = (tokens_per_s, sessions, 0),
                false => worse += 1,
            }
            sessions *= 0.75;
        }
        best
    }

    /// The fastest first.
    pub(crate) fn by_speed(&self, order: &[usize]) -> Vec<usize> {
        let mut fastest = order.to_vec();
        fastest.sort_by(|&a, &b| self.units[a][MIDDLE].total_cmp(&self.units[b][MIDDLE]).then(a.cmp(&b)));
        fastest
    }

    /// Seconds on a link for one sequence's part of a step, and its latency.
    pub(crate) fn hop(&self, from: usize, to: usize) -> (f64, f64) {
        let hop = self.problem.cluster.hop(from, to);
        (self.problem.step_bytes(1.0) * self.caution / hop.rate, hop.latency_s)
    }

    /// Links around the pipeline.
    fn way(&self, order: &[usize]) -> Way {
        let cluster = self.problem.cluster;
        let hops = || order.windows(2).map(|pair| cluster.hop(pair[0], pair[1]));
        let back = cluster.back_s(order[order.len() - 1], order[0]);
        let bytes = self.problem.step_bytes(1.0) * self.caution;
        Way {
            latency_s: hops().map(|hop| hop.latency_s).sum::<f64>() + back,
            each_s: hops().map(|hop| bytes / hop.rate).sum(),
            narrowest_s: hops().map(|hop| bytes / hop.rate).fold(0.0, f64::max),
        }
    }

    /// Tokens per second with so many sessions, at the best batch.
    fn rate(&self, fastest: &[usize], sessions: f64, way: &Way) -> f64 {
        let mut shortest = f64::INFINITY;
        let mut worse = 0;
        for (at, &batch) in BATCHES.iter().enumerate() {
            if batch > sessions || worse > 2 {
                break;
            }
            let Some(least) = self.balance(fastest, self.layers, at, sessions) else { break };
            let others = (sessions / batch - 1.0).max(0.0);
            let round = |limit: f64| {
                let (work, slowest) = self.spread(fastest, self.layers, at, sessions, limit);
                let slowest = slowest.max(batch * way.narrowest_s);
                work + way.latency_s + batch * way.each_s + others * slowest
            };
            let here = SLACKS.iter().map(|slack| round(least * slack)).fold(f64::INFINITY, f64::min);
            match here < shortest {
                true => (shortest, worse) = (here, 0),
                false => worse += 1,
            }
        }
        sessions / shortest
    }

    /// Least time that no stage has to pass for the nodes to hold so many layers.
    pub(crate) fn balance(&self, order: &[usize], layers: f64, batch: usize, sessions: f64) -> Option<f64> {
        let unit = |node: usize| self.units[node][batch];
        let held = |limit: f64| -> f64 {
            let held = |&node: &usize| (limit / unit(node)).floor().min(self.room(node, sessions));
            order.iter().map(held).sum()
        };
        let speed: f64 = order.iter().map(|&node| 1.0 / unit(node)).sum();
        let slowest = order.iter().map(|&node| unit(node)).fold(0.0, f64::max);
        let (mut low, mut high) = (0.5 * layers / speed, layers * slowest);
        if held(high) < layers {
            return None;
        }
        while high - low > 0.02 * high {
            let middle = f64::midpoint(low, high);
            if held(middle) >= layers { high = middle } else { low = middle }
        }
        Some(high)
    }

    /// The work of all and of the slowest stage when the fastest nodes take what they can within `limit`.
    pub(crate) fn spread(
        &self,
        fastest: &[usize],
        layers: f64,
        batch: usize,
        sessions: f64,
        limit: f64,
    ) -> (f64, f64) {
        let (mut left, mut work, mut slowest) = (layers, 0.0, 0.0f64);
        for &node in fastest {
            let unit = self.units[node][batch];
            let taken = (limit / unit).floor().min(self.room(node, sessions)).min(left);
            left -= taken;
            work += taken * unit;
            slowest = slowest.max(taken * unit);
        }
        (work, slowest)
    }
}

/// How much longer than the least possible a stage may take, to leave slow nodes with less.
pub(crate) const SLACKS: [f64; 6] = [1.0, 1.2, 1.5, 2.0, 3.0, 8.0];

/// The batch by which nodes are sorted.
const MIDDLE: usize = 5;

/// Links around a pipeline: their latencies, and the seconds per sequence on all and on the narrowest.
struct Way {
    latency_s: f64,
    each_s: f64,
    narrowest_s: f64,
}
