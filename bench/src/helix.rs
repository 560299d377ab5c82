//! The published clusters of Helix (ASPLOS'25): measured times of its GPUs, its clusters and its results.
//! Where the figures come from is said in `bench/data/helix/README.md`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;
use shard_planner::{
    Cluster, Curve, Demand, Model, Node, Objective,
    cluster::{Coordinator, Hop, Profile},
    demand::Limits,
    plan::Stage,
};

const FIGURES: &str = include_str!("../data/helix/figures.json");

/// Mean prompt and reply of the published workload, in tokens.
pub const PROMPT: u32 = 750;
/// See [`PROMPT`].
pub const OUTPUT: u32 = 240;
/// Positions that their limits on a node's sessions allow each, the median over all GPUs and layer counts.
pub const CONTEXT: u32 = 940;

#[derive(Debug, Deserialize)]
struct Figures {
    clusters: BTreeMap<String, ClusterFigures>,
    gpus: BTreeMap<String, BTreeMap<String, Gpu>>,
}

#[derive(Debug, Deserialize)]
struct ClusterFigures {
    nodes: Vec<String>,
    every_link: Option<[f64; 2]>,
    #[serde(default)]
    links: Vec<[f64; 2]>,
    #[serde(default)]
    from_source: Vec<[f64; 2]>,
    #[serde(default)]
    to_sink: Vec<[f64; 2]>,
}

#[derive(Debug, Deserialize)]
struct Gpu {
    decode_ms: Vec<(f64, f64)>,
    prefill_ms: Vec<(f64, f64)>,
    max_layers: usize,
    /// KV blocks of 16 tokens when 1, 2, … layers are held.
    kv_blocks: Vec<u64>,
    max_batch: Vec<u32>,
    max_prompts: usize,
}

/// A row of the published table, decode tokens per second in their simulator.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Cluster file.
    pub cluster: &'static str,
    /// Model.
    pub model: &'static str,
    /// Offline and online, of Helix, SWARM and separate pipelines.
    pub helix: [f64; 2],
    /// See `helix`.
    pub swarm: [f64; 2],
    /// See `helix`.
    pub separate: [f64; 2],
}

/// The table.
pub const ROWS: [Row; 5] = [
    Row {
        cluster: "single24",
        model: "llama1_30b",
        helix: [339.6, 216.7],
        swarm: [151.6, 104.9],
        separate: [309.0, 189.8],
    },
    Row {
        cluster: "single24",
        model: "llama2_70b",
        helix: [252.1, 141.6],
        swarm: [124.7, 69.8],
        separate: [124.3, 84.0],
    },
    Row {
        cluster: "3cluster24",
        model: "llama1_30b",
        helix: [232.7, 183.5],
        swarm: [98.7, 82.1],
        separate: [223.2, 173.8],
    },
    Row {
        cluster: "3cluster24",
        model: "llama2_70b",
        helix: [98.0, 59.3],
        swarm: [51.9, 31.0],
        separate: [61.9, 33.6],
    },
    Row {
        cluster: "cluster42",
        model: "llama2_70b",
        helix: [645.6, 459.8],
        swarm: [473.2, 309.6],
        separate: [219.3, 140.2],
    },
];

/// Placement alone, three regions, 70B, offline: Petals' and SWARM's.
pub const PLACEMENTS: [(&str, f64); 2] = [("Petals", 66.6), ("SWARM", 41.6)];

/// One cluster serving one model, as the planner takes it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The model.
    pub model: Model,
    /// The cluster.
    pub cluster: Cluster,
    /// GPU type of each node.
    pub gpus: Vec<String>,
    /// Most prompts in one batch of the GPU that takes fewest.
    pub prompts: usize,
}

/// A model's shape: layers, hidden size, width of K and V, and of the MLP.
struct Shape {
    layers: usize,
    hidden: u64,
    keys: u64,
    intermediate: u64,
}

impl Shape {
    /// Bytes of a layer's matrices in fp16.
    fn layer_bytes(&self) -> u64 {
        2 * self.hidden * (2 * self.hidden + 2 * self.keys + 3 * self.intermediate)
    }

    /// KV bytes per token of a layer in fp16.
    fn kv_bytes(&self) -> u64 {
        2 * 2 * self.keys
    }
}

fn shape(model: &str) -> Result<Shape> {
    match model {
        "llama1_30b" => Ok(Shape { layers: 60, hidden: 6656, keys: 6656, intermediate: 17920 }),
        "llama2_70b" => Ok(Shape { layers: 80, hidden: 8192, keys: 1024, intermediate: 28672 }),
        other => anyhow::bail!("no published figures of {other}"),
    }
}

impl Case {
    /// Reads one from the figures. With `separate`, nodes may hold as many layers as their memory allows, as
    /// separate pipelines need; else as many as the publication allows.
    pub fn read(cluster: &str, model: &str, separate: Option<f64>) -> Result<Self> {
        let figures: Figures = serde_json::from_str(FIGURES).context("helix/figures.json")?;
        let of = figures.clusters.get(cluster).with_context(|| format!("no cluster {cluster}"))?;
        let gpus = figures.gpus.get(model).with_context(|| format!("no figures of {model}"))?;
        let shape = shape(model)?;
        let (kv_bytes, layer_bytes) = (shape.kv_bytes(), shape.layer_bytes());
        let mut nodes = Vec::new();
        for (index, name) in of.nodes.iter().enumerate() {
            let gpu = gpus.get(name).with_context(|| format!("no figures of {name}"))?;
            nodes.push(gpu.node(format!("{name}-{index}"), kv_bytes, layer_bytes, separate)?);
        }
        let prompts = of.nodes.iter().filter_map(|name| gpus.get(name)).map(|gpu| gpu.max_prompts).min();
        let (hops, coordinator) = of.hops();
        Ok(Self {
            model: Model::uniform(model, shape.layers, layer_bytes, kv_bytes, 2 * shape.hidden),
            cluster: Cluster::with_hops(nodes, hops, Some(coordinator))?,
            gpus: of.nodes.clone(),
            prompts: prompts.unwrap_or(1),
        })
    }

    /// The workload, as many at once as there is KV for.
    pub fn demand(&self) -> Demand {
        Demand {
            format: "q8".to_owned(),
            prompt: PROMPT,
            output: OUTPUT,
            context: CONTEXT,
            concurrency: 1_000_000,
            objective: Objective::Throughput(Limits::default()),
        }
    }

    /// One pipeline of each GPU type whose nodes hold the model, in equal parts.
    pub fn separate_pipelines(&self) -> Vec<Vec<Stage>> {
        let mut types: Vec<&String> = self.gpus.iter().collect();
        types.sort();
        types.dedup();
        let layers = self.model.layers();
        let bytes = self.model.weights[0].layers[0];
        let pipeline = |gpu: &String| {
            let nodes: Vec<usize> = (0..self.gpus.len()).filter(|&node| self.gpus[node] == *gpu).collect();
            let ends: Vec<usize> = (0..=nodes.len()).map(|at| at * layers / nodes.len()).collect();
            let stage = |(at, &node): (usize, &usize)| Stage { node, layers: ends[at]..ends[at + 1] };
            let stages: Vec<Stage> = nodes.iter().enumerate().map(stage).collect();
            let session = u64::from(CONTEXT) * self.model.kv_bytes[0];
            let holds = |stage: &Stage| {
                self.cluster.nodes()[stage.node].memory >= (bytes + session) * stage.layers.len() as u64
            };
            (nodes.len() <= layers && stages.iter().all(holds)).then_some(stages)
        };
        types.into_iter().filter_map(pipeline).collect()
    }
}

impl Case {
    fn most_layers(&self, node: usize) -> usize {
        self.cluster.nodes()[node].max_layers.unwrap_or(self.model.layers())
    }

    /// Layers that a node takes through per second, by its time for one layer and sixteen sequences.
    fn speed(&self, node: usize) -> f64 {
        self.cluster.nodes()[node].profiles.first().map_or(0.0, |profile| 16.0 / profile.decode.at(16.0))
    }

    /// Placed as SWARM does: stages of equal layers, as many as the smallest node holds, and every node where
    /// the stage's speed is least.
    pub fn swarm(&self) -> Vec<(Vec<Stage>, f64)> {
        let layers = self.model.layers();
        let most = (0..self.gpus.len()).map(|node| self.most_layers(node)).min().unwrap_or(1);
        let stages = layers.div_ceil(most);
        let span = |stage: usize| stage * layers / stages..(stage + 1) * layers / stages;
        let mut held: Vec<(f64, Vec<usize>)> = vec![(0.0, Vec::new()); stages];
        for node in 0..self.gpus.len() {
            if let Some(least) = held.iter_mut().min_by(|a, b| a.0.total_cmp(&b.0)) {
                least.0 += self.speed(node);
                least.1.push(node);
            }
        }
        let spans: Vec<(usize, std::ops::Range<usize>)> = held
            .into_iter()
            .enumerate()
            .flat_map(|(stage, (_, nodes))| nodes.into_iter().map(move |node| (node, span(stage))))
            .collect();
        self.routes(&spans)
    }

    /// Placed as Petals does: one node after the other takes as many layers as it holds, where the layers that
    /// it would cover are held by the least speed so far.
    pub fn petals(&self) -> Vec<(Vec<Stage>, f64)> {
        let layers = self.model.layers();
        let mut speeds = vec![0.0; layers];
        let mut spans = Vec::new();
        for node in 0..self.gpus.len() {
            let most = self.most_layers(node).min(layers);
            // Least of the slowest, then of all.
            let key = |&start: &usize| {
                let mut own: Vec<f64> = speeds[start..start + most].to_vec();
                own.sort_by(f64::total_cmp);
                own
            };
            let starts = (0..=layers - most).map(|start| (key(&start), start));
            let best = starts.min_by(|a, b| {
                let order = a.0.iter().zip(&b.0).map(|(a, b)| a.total_cmp(b)).find(|order| order.is_ne());
                order.unwrap_or(a.1.cmp(&b.1))
            });
            let start = best.map_or(0, |(_, start)| start);
            speeds[start..start + most].iter_mut().for_each(|speed| *speed += self.speed(node));
            spans.push((node, start..start + most));
        }
        self.routes(&spans)
    }

    /// Routes over overlapping ranges: at each layer on to the node that is used least for its speed.
    fn routes(&self, spans: &[(usize, std::ops::Range<usize>)]) -> Vec<(Vec<Stage>, f64)> {
        const ROUTES: usize = 48;
        let mut used = vec![0.0; self.gpus.len()];
        let mut routes: Vec<(Vec<Stage>, f64)> = Vec::new();
        for _ in 0..ROUTES {
            let (mut at, mut stages) = (0, Vec::new());
            while at < self.model.layers() {
                let here = spans.iter().filter(|(_, span)| span.contains(&at));
                let Some((node, span)) = here.min_by(|a, b| f64::total_cmp(&used[a.0], &used[b.0])) else {
                    return Vec::new();
                };
                used[*node] += (span.end - at) as f64 / self.speed(*node);
                stages.push(Stage { node: *node, layers: at..span.end });
                at = span.end;
            }
            match routes.iter_mut().find(|(known, _)| *known == stages) {
                Some((_, part)) => *part += 1.0 / ROUTES as f64,
                None => routes.push((stages, 1.0 / ROUTES as f64)),
            }
        }
        routes
    }
}

impl ClusterFigures {
    /// The matrix and the coordinator; a link is the same both ways.
    fn hops(&self) -> (Vec<Hop>, Coordinator) {
        // Milliseconds and megabytes per second.
        let hop = |[latency_ms, rate]: [f64; 2]| Hop::new(latency_ms / 1e3, rate * 1e6);
        let count = self.nodes.len();
        let pair = |a: usize, b: usize| {
            let (a, b) = (a.min(b), a.max(b));
            let before = a * (2 * count - a - 1) / 2;
            self.every_link
                .or_else(|| self.links.get(before + b - a - 1).copied())
                .map_or(Hop::new(0.0, 0.0), hop)
        };
        let own = Hop::new(0.0, 1e12);
        let hops = (0..count * count)
            .map(|at| (at / count, at % count))
            .map(|(from, to)| if from == to { own } else { pair(from, to) });
        let end = |links: &[[f64; 2]], node: usize| {
            self.every_link.or_else(|| links.get(node).copied()).map_or(Hop::new(0.0, 0.0), hop)
        };
        let to = (0..count).map(|node| end(&self.from_source, node)).collect();
        let from = (0..count).map(|node| end(&self.to_sink, node)).collect();
        (hops.collect(), Coordinator { to, from })
    }
}

impl Gpu {
    fn node(&self, id: String, kv_bytes: u64, layer_bytes: u64, separate: Option<f64>) -> Result<Node> {
        let seconds =
            |points: &[(f64, f64)]| Curve::new(points.iter().map(|(n, ms)| (*n, ms / 1e3)).collect());
        let profile = Profile {
            format: "q8".to_owned(),
            layer_bytes,
            decode: seconds(&self.decode_ms)?,
            prefill: seconds(&self.prefill_ms)?,
        };
        // What leaves the published KV at the most layers.
        let most = self.kv_blocks.len() as u64;
        let kv = self.kv_blocks[self.kv_blocks.len() - 1] * 16 * kv_bytes * most;
        let memory = (layer_bytes * most + kv) as f64 * separate.unwrap_or(1.0);
        let mut node = Node::new(&id, memory as u64).with_profile(profile);
        node.max_layers = separate.is_none().then_some(self.max_layers);
        node.max_batch = self.max_batch.iter().max().copied();
        Ok(node)
    }
}
