//! What comes out: who holds what, which pipelines there are, and what is predicted of them.

use std::{collections::HashMap, ops::Range};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    cluster::ClusterError, demand::DemandError, flow::through, model::ModelError, problem::Problem,
    shortage::KvShortage,
};

/// One stage of a pipeline, or what one node holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// Index of the node.
    pub node: usize,
    /// Its layers.
    pub layers: Range<usize>,
}

/// Nodes in order that cover the model, and their part of the requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pipeline {
    /// Stages from the first layer to the last; no node twice.
    pub stages: Vec<Stage>,
    /// Part of the requests, 0 to 1.
    pub weight: f64,
    /// Most sessions at once.
    pub sessions: u64,
    /// What is predicted of it.
    pub figures: Figures,
}

/// What is predicted of a pipeline, or of all together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Seconds to the first token.
    pub ttft_s: f64,
    /// Seconds per further token of one reply.
    pub tpot_s: f64,
    /// Tokens of all replies per second.
    pub tokens_per_s: f64,
    /// Replies of one step.
    pub batch: f64,
    /// What limits it.
    pub bottleneck: Bottleneck,
}

/// What limits a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bottleneck {
    /// A node's work.
    Node(usize),
    /// Bandwidth of a link.
    Link {
        /// From this node.
        from: usize,
        /// To this one.
        to: usize,
    },
    /// Bandwidth of the relay, over all links that go through it.
    Relay,
}

/// How good any plan could be at most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// What the plan reaches: seconds per token, tokens per second, or price per token.
    pub reached: f64,
    /// What no plan passes; under [`Proof::Partition`], no plan of pipelines with nodes of their own.
    pub limit: f64,
    /// How that is known.
    pub proof: Proof,
}

/// How a bound is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// Every plan was tried or excluded.
    Exhausted,
    /// The best that a search had not excluded when it was cut short.
    SearchBound,
    /// Every node at its best batch, without links, and KV for as many sessions as the memory has.
    Capacity,
    /// The best partition of the nodes into pipelines of their own, found by integer programming, with the model cut
    /// anywhere and links that take their latency alone.
    Partition,
}

impl Bound {
    /// How much better another plan could be at most: 0 for an optimal one.
    pub fn gap(&self) -> f64 {
        let (worse, better) = (self.reached.max(self.limit), self.reached.min(self.limit));
        if better > 0.0 { worse / better - 1.0 } else { f64::INFINITY }
    }
}

/// Who holds which layers, and which pipelines serve which part of the requests.
///
/// Only this crate makes one, and every one is checked: layers covered once and in order, no node twice in a
/// pipeline, memory with KV, links that are up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Format of the weights.
    pub format: String,
    /// Layers of the model.
    pub layers: usize,
    /// What each used node holds.
    pub held: Vec<Stage>,
    /// Pipelines; their weights add up to 1.
    pub pipelines: Vec<Pipeline>,
    /// What is predicted of all.
    pub figures: Figures,
    /// Most tokens per second, prompts between them, that what the nodes hold lets through: its maximum flow.
    pub flow_tokens_per_s: f64,
    /// Price of an hour of the nodes used.
    pub price: f64,
    /// How far it can be from the best.
    pub bound: Bound,
    /// KV that is missing for as many sessions as were asked for.
    pub shortage: Option<KvShortage>,
}

/// Why there is no plan.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum PlanError {
    /// The model is at fault.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The cluster is.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The demand is.
    #[error(transparent)]
    Demand(#[from] DemandError),
    /// Nothing is known of a node's speed.
    #[error("node {node} has neither measured times at {format} nor rates to estimate them from")]
    NoTimes {
        /// Which node.
        node: String,
        /// Format of the weights.
        format: String,
    },
    /// One layer is larger than every node.
    #[error("layer {layer} needs {needed} bytes with KV, and the largest node, {node}, has {memory}")]
    LayerFitsNowhere {
        /// Which layer.
        layer: usize,
        /// Bytes of its weights, ends and KV.
        needed: u64,
        /// The largest node.
        node: String,
        /// Its memory.
        memory: u64,
    },
    /// No node has KV for one layer.
    #[error(
        "{sessions} sessions need {needed} bytes of KV for one layer, and {node}, which has most, has {room}"
    )]
    NoKv {
        /// Sessions that KV was kept for.
        sessions: u64,
        /// Bytes of their KV of one layer.
        needed: u64,
        /// The node with most.
        node: String,
        /// Its bytes for KV.
        room: u64,
    },
    /// All nodes together are too small.
    #[error(
        "the nodes hold {held} of {layers} layers with KV for {sessions} sessions: {missing} bytes are missing; {advice}"
    )]
    TooLarge {
        /// Layers that fit.
        held: usize,
        /// Layers of the model.
        layers: usize,
        /// Sessions that KV was kept for.
        sessions: u64,
        /// Bytes of the layers, ends and KV that do not fit.
        missing: u64,
        /// What would fit.
        advice: String,
    },
    /// A node would be left without a layer.
    #[error("{layers} layers cannot be cut over {nodes} nodes: each needs at least one")]
    TooManyNodes {
        /// Layers of the model.
        layers: usize,
        /// Nodes.
        nodes: usize,
    },
    /// The memory is there, but not where it can be joined.
    #[error("no pipeline can be joined: nothing passes from {from} to {to}")]
    Disconnected {
        /// From this node.
        from: String,
        /// To this one.
        to: String,
    },
    /// No cut keeps the bounds on time.
    #[error("no plan keeps the bounds: the best has {tpot_s:.4} s per token and {ttft_s:.3} s to the first")]
    TooSlow {
        /// Least time per token.
        tpot_s: f64,
        /// Time to the first with it.
        ttft_s: f64,
    },
    /// A plan that breaks a rule.
    #[error("pipeline {pipeline} is not valid: {reason}")]
    Invalid {
        /// Which.
        pipeline: usize,
        /// Which rule.
        reason: String,
    },
}

impl Plan {
    /// Makes a plan of pipelines, each with its stages and its most sessions.
    pub(crate) fn new(
        problem: &Problem,
        pipelines: Vec<(Vec<Stage>, u64, Figures)>,
        bound: Bound,
    ) -> Result<Self, PlanError> {
        let pipelines = weighted(pipelines);
        let held = held(&pipelines);
        let mut placement = vec![None; problem.cluster.len()];
        held.iter().for_each(|stage| placement[stage.node] = Some(stage.layers.clone()));
        let price = held.iter().map(|stage| problem.cluster.nodes()[stage.node].price).sum();
        let plan = Self {
            format: problem.weights.format.clone(),
            layers: problem.layers(),
            figures: together(&pipelines),
            flow_tokens_per_s: through(problem, &placement).tokens_per_s,
            held,
            pipelines,
            price,
            bound,
            shortage: None,
        };
        let plan = Self { shortage: KvShortage::of(problem, &plan), ..plan };
        plan.check(problem)?;
        Ok(plan)
    }

    /// The rules: every pipeline covers every layer once, in order, over links that are up, without a node
    /// twice, and every node holds what its pipelines need with KV for all of their sessions.
    fn check(&self, problem: &Problem) -> Result<(), PlanError> {
        let mut needed: HashMap<usize, u64> = HashMap::new();
        for (index, pipeline) in self.pipelines.iter().enumerate() {
            let invalid = |reason: String| PlanError::Invalid { pipeline: index, reason };
            let mut at = 0;
            let mut seen = Vec::new();
            for stage in &pipeline.stages {
                if stage.layers.start != at || stage.layers.is_empty() || seen.contains(&stage.node) {
                    return Err(invalid(format!("node {} with layers {:?}", stage.node, stage.layers)));
                }
                at = stage.layers.end;
                seen.push(stage.node);
                let kv = problem.session_bytes(&stage.layers).saturating_mul(pipeline.sessions);
                *needed.entry(stage.node).or_default() += kv;
            }
            let back =
                seen.first().zip(seen.last()).map(|(first, last)| problem.cluster.back_s(*last, *first));
            if !back.is_some_and(f64::is_finite) {
                return Err(invalid("nothing passes from its last node back to its first".to_owned()));
            }
            if at != self.layers {
                return Err(invalid(format!("it ends at layer {at} of {}", self.layers)));
            }
            if let Some(pair) = seen.windows(2).find(|pair| !problem.cluster.hop(pair[0], pair[1]).is_up()) {
                return Err(invalid(format!("nothing passes from node {} to {}", pair[0], pair[1])));
            }
        }
        for stage in &self.held {
            let node = &problem.cluster.nodes()[stage.node];
            let kv = needed.get(&stage.node).copied().unwrap_or(0);
            if problem.kv_room(stage.node, &stage.layers).is_none_or(|room| kv > room) {
                return Err(PlanError::Invalid {
                    pipeline: 0,
                    reason: format!("node {} is too full, or keeps other layers", node.id),
                });
            }
        }
        Ok(())
    }
}

/// Pipelines weighted by their rates.
pub(crate) fn weighted(pipelines: Vec<(Vec<Stage>, u64, Figures)>) -> Vec<Pipeline> {
    let rate: f64 = pipelines.iter().map(|(.., figures)| figures.tokens_per_s).sum();
    let weigh = |(stages, sessions, figures): (Vec<Stage>, u64, Figures)| {
        let weight = if rate > 0.0 { figures.tokens_per_s / rate } else { 1.0 };
        Pipeline { stages, weight, sessions, figures }
    };
    pipelines.into_iter().map(weigh).collect()
}

/// What each node holds: the hull of its stages.
fn held(pipelines: &[Pipeline]) -> Vec<Stage> {
    let mut held: Vec<Stage> = Vec::new();
    for stage in pipelines.iter().flat_map(|pipeline| &pipeline.stages) {
        match held.iter_mut().find(|known| known.node == stage.node) {
            Some(known) => {
                known.layers =
                    known.layers.start.min(stage.layers.start)..known.layers.end.max(stage.layers.end);
            }
            None => held.push(stage.clone()),
        }
    }
    held.sort_by_key(|stage| stage.node);
    held
}

/// Figures of all pipelines: times by their weights, and the limit of the one that carries most.
fn together(pipelines: &[Pipeline]) -> Figures {
    let mean = |of: fn(&Figures) -> f64| pipelines.iter().map(|p| p.weight * of(&p.figures)).sum();
    let largest = pipelines.iter().max_by(|a, b| a.weight.total_cmp(&b.weight));
    Figures {
        ttft_s: mean(|figures| figures.ttft_s),
        tpot_s: mean(|figures| figures.tpot_s),
        batch: mean(|figures| figures.batch),
        tokens_per_s: pipelines.iter().map(|pipeline| pipeline.figures.tokens_per_s).sum(),
        bottleneck: largest.map_or(Bottleneck::Node(0), |pipeline| pipeline.figures.bottleneck),
    }
}
