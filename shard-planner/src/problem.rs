//! The inputs made ready: times, bytes and KV of any range of layers on any node.

use std::ops::Range;

use crate::{
    cluster::{Cluster, Node, Profile, Rates},
    curve::Curve,
    demand::Demand,
    model::{Model, Weights},
    plan::{PlanError, Stage},
};

/// A model, a cluster and a demand that have been checked.
#[derive(Clone, Debug)]
pub(crate) struct Problem<'a> {
    pub(crate) model: &'a Model,
    pub(crate) cluster: &'a Cluster,
    pub(crate) demand: &'a Demand,
    pub(crate) weights: &'a Weights,
    /// Sums of layer bytes and KV bytes per token before each layer.
    bytes: Vec<u64>,
    kv: Vec<u64>,
    speeds: Vec<Speed>,
}

/// A node's times for one layer of `layer_bytes`.
#[derive(Clone, Debug)]
struct Speed {
    layer_bytes: f64,
    decode: Curve,
    prefill: Curve,
    /// Seconds of the demand's prompt.
    prompt_s: f64,
}

/// Time that a device takes to start a layer, for estimates.
const LAUNCH_S: f64 = 30e-6;

impl<'a> Problem<'a> {
    pub(crate) fn new(model: &'a Model, cluster: &'a Cluster, demand: &'a Demand) -> Result<Self, PlanError> {
        model.check()?;
        demand.check()?;
        let weights = model.at(&demand.format)?;
        let sums = |values: &[u64]| {
            let before = values.iter().scan(0, |sum, value| {
                *sum += value;
                Some(*sum)
            });
            std::iter::once(0).chain(before).collect::<Vec<u64>>()
        };
        let speeds = cluster.nodes().iter().map(|node| Speed::of(node, model, weights, demand));
        let speeds = speeds.collect::<Result<_, _>>()?;
        let (bytes, kv) = (sums(&weights.layers), sums(&model.kv_bytes));
        Ok(Self { model, cluster, demand, weights, bytes, kv, speeds })
    }

    pub(crate) fn layers(&self) -> usize {
        self.model.layers()
    }

    /// Bytes of a range's weights with the ends that it holds.
    pub(crate) fn bytes(&self, range: &Range<usize>) -> u64 {
        let embedding = if range.start == 0 { self.weights.embedding } else { 0 };
        let head = if range.end == self.layers() { self.weights.head } else { 0 };
        self.bytes[range.end] - self.bytes[range.start] + embedding + head
    }

    /// KV bytes of one session in a range.
    pub(crate) fn session_bytes(&self, range: &Range<usize>) -> u64 {
        (self.kv[range.end] - self.kv[range.start]).saturating_mul(u64::from(self.demand.context))
    }

    /// Bytes that a node has for KV beside the weights of a range; `None` if it cannot hold those.
    pub(crate) fn kv_room(&self, node: usize, range: &Range<usize>) -> Option<u64> {
        let node = &self.cluster.nodes()[node];
        let beyond = |pinned: &Range<usize>| range.start < pinned.start || range.end > pinned.end;
        if node.max_layers.is_some_and(|most| range.len() > most) || node.pinned.as_ref().is_some_and(beyond)
        {
            return None;
        }
        let bytes = self.bytes(range);
        let left =
            node.max_weights.is_none_or(|most| bytes <= most).then_some(node.memory)?.checked_sub(bytes)?;
        Some(node.kv_memory.unwrap_or(left))
    }

    /// Most sessions of a range that a node takes, by its KV and by its own word; `None` if it cannot hold the range.
    pub(crate) fn sessions(&self, node: usize, range: &Range<usize>) -> Option<u64> {
        let kv = self.kv_room(node, range)?.checked_div(self.session_bytes(range)).unwrap_or(u64::MAX);
        Some(kv.min(self.max_sessions(node)))
    }

    /// Most sessions that a node takes, whatever it holds.
    pub(crate) fn max_sessions(&self, node: usize) -> u64 {
        self.cluster.nodes()[node].max_sessions.map_or(u64::MAX, u64::from)
    }

    /// Whether a node holds a range and the KV of `sessions` sessions.
    pub(crate) fn fits(&self, node: usize, range: &Range<usize>, sessions: u64) -> bool {
        self.sessions(node, range).is_some_and(|most| most >= sessions)
    }

    /// Most sequences that a node takes in one step.
    pub(crate) fn max_batch(&self, node: usize) -> f64 {
        self.cluster.nodes()[node].max_batch.map_or(f64::INFINITY, f64::from)
    }

    /// Seconds of a decoding step of `batch` sequences; the head counts as layers of its bytes.
    pub(crate) fn decode_s(&self, node: usize, range: &Range<usize>, batch: f64) -> f64 {
        self.decode_weight(node, range) * self.speeds[node].decode.at(batch)
    }

    /// Seconds of a prompt of `tokens`.
    pub(crate) fn prefill_s(&self, node: usize, range: &Range<usize>, tokens: f64) -> f64 {
        self.prefill_weight(node, range) * self.speeds[node].prefill.at(tokens)
    }

    /// Measured layers that a range counts as while decoding.
    pub(crate) fn decode_weight(&self, node: usize, range: &Range<usize>) -> f64 {
        let head = if range.end == self.layers() { self.weights.head } else { 0 };
        (self.bytes[range.end] - self.bytes[range.start] + head) as f64 / self.speeds[node].layer_bytes
    }

    /// Measured layers that a range counts as for a prompt: the head sees only its last row.
    pub(crate) fn prefill_weight(&self, node: usize, range: &Range<usize>) -> f64 {
        (self.bytes[range.end] - self.bytes[range.start]) as f64 / self.speeds[node].layer_bytes
    }

    /// Seconds per measured layer: of a decoding step, and of the prompts that come with each.
    pub(crate) fn unit_s(&self, node: usize, batch: f64) -> (f64, f64) {
        let speed = &self.speeds[node];
        let prompts = batch / f64::from(self.demand.output);
        (speed.decode.at(batch), prompts * speed.prompt_s)
    }

    /// Batches between which a node's times are linear.
    pub(crate) fn batches(&self, node: usize) -> impl Iterator<Item = f64> + '_ {
        self.speeds[node].decode.counts()
    }

    /// Seconds that a stage works for a step of `batch` sequences, with its part of the prompts: in the
    /// long run one comes for every `output` tokens.
    pub(crate) fn stage_s(&self, stage: &Stage, batch: f64) -> f64 {
        let (decode, prefill) = self.unit_s(stage.node, batch);
        self.decode_weight(stage.node, &stage.layers) * decode
            + self.prefill_weight(stage.node, &stage.layers) * prefill
    }

    /// Bytes of a step of `batch` sequences between two stages, with its part of the prompts.
    pub(crate) fn step_bytes(&self, batch: f64) -> f64 {
        let prompt = f64::from(self.demand.prompt) / f64::from(self.demand.output);
        batch * (1.0 + prompt) * self.model.row_bytes as f64
    }

    /// Bytes of a decoding step alone.
    pub(crate) fn rows_bytes(&self, batch: f64) -> f64 {
        batch * self.model.row_bytes as f64
    }

    /// Furthest layer, up to `end`, that a node reaches from `from` while every range up to there passes `fits`,
    /// which must not hold again for more once it fails.
    pub(crate) fn reach(
        &self,
        from: usize,
        end: usize,
        mut fits: impl FnMut(&Range<usize>) -> bool,
    ) -> usize {
        if fits(&(from..end)) {
            return end;
        }
        let (mut low, mut high) = (from, end);
        while high - low > 1 {
            let middle = usize::midpoint(low, high);
            match fits(&(from..middle)) {
                true => low = middle,
                false => high = middle,
            }
        }
        low
    }
}

impl Speed {
    fn of(node: &Node, model: &Model, weights: &Weights, demand: &Demand) -> Result<Self, PlanError> {
        let whole = |layer_bytes: f64, decode: Curve, prefill: Curve| {
            let prompt_s = prefill.at(f64::from(demand.prompt));
            Self { layer_bytes, decode, prefill, prompt_s }
        };
        if let Some(profile) = node.profiles.iter().find(|profile| profile.format == weights.format) {
            let Profile { layer_bytes, decode, prefill, .. } = profile.clone();
            return Ok(whole(layer_bytes as f64, decode, prefill));
        }
        let Some(rates) = node.rates else {
            return Err(PlanError::NoTimes { node: node.id.clone(), format: weights.format.clone() });
        };
        let (layer_bytes, decode, prefill) = Self::estimated(rates, model, weights);
        Ok(whole(layer_bytes, decode, prefill))
    }

    /// Times of a mean layer from a device's rates: reading weights bounds decoding, arithmetic prompts.
    fn estimated(rates: Rates, model: &Model, weights: &Weights) -> (f64, Curve, Curve) {
        let layer_bytes = weights.layers.iter().sum::<u64>() as f64 / model.layers() as f64;
        let widest = model.weights.iter().map(|weights| weights.layers[0]).max().unwrap_or(0);
        let flops = model.layer_flops.unwrap_or(2.0 * widest as f64);
        let step = |tokens: f64| {
            let read = layer_bytes * model.read_share(tokens) / rates.memory_rate;
            (tokens, LAUNCH_S + read.max(tokens * flops / rates.flops))
        };
        let curve =
            |most: u32| Curve::sampled((0..=most).map(|power| f64::from(1u32 << power)).map(step).collect());
        (layer_bytes, curve(9), curve(13))
    }
}
