//! The swarm as the planner takes it, and what the planner makes of it. Pure: it runs beside the gateway's task.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use shard_planner::{
    Cluster, Curve, Demand, Effort, Model, Node, Report, arrange,
    cluster::{Link, Profile, Rates},
    routes,
};
use transport::NodeId;

use super::LiveCluster;
use crate::message::{KvMemory, Offer};

/// How hard is looked: the answer is wanted in a moment.
const EFFORT: Effort = Effort { states: 2000, moves: 300 };
/// Rows of a step below which its time is that of reading the weights.
const FEW_ROWS: f64 = 8.0;
/// A node that says a pace so near to its profile is as fast as its profile.
const ALIKE: Range<f64> = 0.67..1.5;
/// What a node is taken for of which nothing is known, and none other either.
const UNKNOWN: Rates = Rates { memory_rate: 1e10, flops: 1e11 };
/// More memory than any machine has, and few enough bytes for a file of signed numbers.
const MOST_BYTES: u64 = 1 << 60;
/// Megabits per second taken for links up to so many milliseconds there and back, and for longer ones.
const NEAR: (f64, f64) = (2.0, 1000.0);
const FAR_MBIT: f64 = 50.0;
/// Bytes per second of a megabit per second.
const MBIT: f64 = 125_000.0;

/// A node as the planner is to see it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub id: NodeId,
    /// What it holds, or loads; `None` for one that waits to be told.
    pub held: Option<Range<usize>>,
    /// It serves now.
    pub serves: bool,
    /// It keeps what it holds.
    pub pinned: bool,
    pub offer: Offer,
    /// Bytes of the weights it holds.
    pub weight_bytes: u64,
    /// Nanoseconds that a layer takes it in small steps, since it has said so.
    pub layer_ns: Option<u64>,
    /// Bytes of KV that its stage has, where those are fewer than its sessions could fill.
    pub kv_bytes: Option<u64>,
    /// Most sessions that it takes at once.
    pub sessions: Option<u32>,
}

/// All that a plan depends on.
#[derive(Debug)]
pub(super) struct Sketch {
    pub model: Arc<Model>,
    pub demand: Demand,
    pub nodes: Vec<Seen>,
    /// Round trips between nodes, as they have told.
    pub links: HashMap<(NodeId, NodeId), Duration>,
    /// Bytes per second that links were seen to carry.
    pub rates: HashMap<(NodeId, NodeId), f64>,
    /// Links through the gateway's relay, and the bytes per second that it lets through.
    pub relayed: HashSet<(NodeId, NodeId)>,
    pub relay_bytes_per_s: Option<u64>,
    /// How many times slower nodes (links to themselves) and links are in service than they say.
    pub slower: HashMap<(NodeId, NodeId), f64>,
    /// Round trips from the gateway.
    pub near: HashMap<NodeId, Duration>,
}

/// A way through the swarm, and its part of the requests.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lane {
    pub stages: Vec<(NodeId, Range<usize>)>,
    pub weight: f64,
    /// Seconds per token predicted at full load.
    pub tpot_s: f64,
}

/// What the planner makes of a sketch.
#[derive(Debug)]
pub(super) struct Verdict {
    /// What nodes should load.
    pub loads: Vec<(NodeId, Range<usize>)>,
    /// Nodes that wait to be told and that no plan needs.
    pub idle: Vec<NodeId>,
    /// Ways through what is held now.
    pub lanes: Vec<Lane>,
    /// Tokens per second predicted before and after the loads.
    pub before: f64,
    pub after: f64,
    /// For people.
    pub live: LiveCluster,
}

impl Sketch {
    pub(super) fn solve(self) -> Verdict {
        let links = self.measured();
        let names = short_names(self.nodes.iter().map(|node| node.id));
        let nodes: Vec<Node> = self.described(&names);
        let links: Vec<Link> = links
            .into_iter()
            .map(|(from, to, link)| Link { from: names[from].clone(), to: names[to].clone(), ..link })
            .collect();
        let mut verdict = Verdict {
            loads: Vec::new(),
            idle: Vec::new(),
            lanes: Vec::new(),
            before: 0.0,
            after: 0.0,
            live: LiveCluster {
                model: (*self.model).clone(),
                node: nodes,
                link: links,
                relay_mbit: self.relay_mbit(),
                plan: None,
                problem: None,
            },
        };
        if let Err(problem) = self.plan(&mut verdict) {
            verdict.live.problem = Some(problem);
            verdict.idle.extend(self.nodes.iter().filter(|node| node.held.is_none()).map(|node| node.id));
        }
        verdict
    }

    fn plan(&self, verdict: &mut Verdict) -> Result<(), String> {
        let held: Vec<Option<Range<usize>>> = self.nodes.iter().map(|node| node.held.clone()).collect();
        let live = &mut verdict.live;
        let cluster = Cluster::new(live.node.clone(), &live.link)
            .and_then(|cluster| cluster.relaying(live.relay_mbit))
            .map_err(|error| error.to_string())?;
        let arranged = arrange(&self.model, &cluster, &self.demand, &held, EFFORT);
        let mut serve = held.clone();
        if let Ok(arranged) = &arranged {
            let newcomers: Vec<_> = arranged.loads.iter().filter(|load| held[load.node].is_none()).collect();
            // Those that serve go on until a newcomer has what it needs.
            let loads = match newcomers.is_empty() {
                true => arranged.loads.iter().collect(),
                false => newcomers,
            };
            verdict.loads =
                loads.iter().map(|load| (self.nodes[load.node].id, load.layers.clone())).collect();
            (verdict.before, verdict.after) = (arranged.before, arranged.after);
            let waits = |at: &usize| held[*at].is_none() && arranged.serve[*at].is_none();
            verdict.idle = (0..held.len()).filter(waits).map(|at| self.nodes[at].id).collect();
            let settled = arranged.loads.is_empty();
            serve = if settled { arranged.serve.clone() } else { serve };
        }
        let leaves: HashSet<NodeId> = verdict.loads.iter().map(|(id, _)| *id).collect();
        let there = |ranges: Vec<Option<Range<usize>>>| {
            let all = self.nodes.iter().zip(ranges);
            let now = all.map(|(node, range)| range.filter(|_| node.serves && !leaves.contains(&node.id)));
            routes(&self.model, &cluster, &self.demand, &now.collect::<Vec<_>>()).ok()
        };
        // Some may only be on their way: then what is held may serve better than what is meant.
        let rate = |plan: &shard_planner::Plan| plan.figures.tokens_per_s;
        let ways = [there(held), there(serve)].into_iter().flatten();
        if let Some(plan) = ways.max_by(|a, b| rate(a).total_cmp(&rate(b))) {
            let stage =
                |stage: &shard_planner::plan::Stage| (self.nodes[stage.node].id, stage.layers.clone());
            let lane = |pipeline: &shard_planner::plan::Pipeline| Lane {
                stages: pipeline.stages.iter().map(stage).collect(),
                weight: pipeline.weight,
                tpot_s: pipeline.figures.tpot_s,
            };
            verdict.lanes = plan.pipelines.iter().map(lane).collect();
            live.plan = Some(Report::new(&self.model.name, &cluster, &plan));
        }
        arranged.map(|_| ()).map_err(|error| error.to_string())
    }

    fn described(&self, names: &[String]) -> Vec<Node> {
        let weights = &self.model.weights[0];
        let profiles: Vec<Option<Profile>> = self.nodes.iter().map(|node| self.profile(node)).collect();
        let mut known: Vec<&Profile> = profiles.iter().flatten().collect();
        known.sort_by(|a, b| a.decode.at(1.0).total_cmp(&b.decode.at(1.0)));
        // One that nothing is known of is taken to be as fast as those in the middle.
        let middle = known.get(known.len() / 2).map(|profile| (*profile).clone());
        let node = |((seen, profile), name): ((&Seen, &Option<Profile>), &String)| {
            let loaded = seen.held.as_ref().map_or(0, |held| weights.of(held)).max(seen.weight_bytes);
            let profile = profile.clone().or_else(|| middle.clone());
            let lent = seen.offer.weight_bytes.max(loaded).clamp(1, MOST_BYTES);
            let found =
                |said: u64, seen: Option<u64>| seen.map_or(said, |seen| said.min(seen)).min(MOST_BYTES);
            let (memory, kv_memory, max_weights) = match seen.offer.kv {
                KvMemory::Own(bytes) => (lent, Some(found(bytes, seen.kv_bytes)), None),
                KvMemory::Shared(all) => {
                    let all = found(all, seen.kv_bytes.map(|kv| kv.saturating_add(loaded)));
                    (all.max(loaded).max(1), None, Some(lent))
                }
            };
            let slower = self.slower.get(&(seen.id, seen.id)).copied().unwrap_or(1.0);
            let rates = Rates { memory_rate: UNKNOWN.memory_rate / slower, flops: UNKNOWN.flops / slower };
            let scaled = |profile: Profile| Profile {
                decode: profile.decode.scaled(slower),
                prefill: profile.prefill.scaled(slower),
                ..profile
            };
            Node {
                rates: profile.is_none().then_some(rates),
                profiles: profile.map(scaled).into_iter().collect(),
                pinned: seen.held.clone().filter(|_| seen.pinned),
                disk_rate: seen.offer.load_rate.map(|rate| rate as f64),
                kv_memory,
                max_weights,
                max_sessions: seen.sessions.filter(|most| *most > 0),
                ..Node::new(name, memory)
            }
        };
        self.nodes.iter().zip(&profiles).zip(names).map(node).collect()
    }

    /// Times of a node's layers: as it measured, unless service shows otherwise.
    fn profile(&self, node: &Seen) -> Option<Profile> {
        let weights = &self.model.weights[0];
        let layer_bytes = weights.layers.iter().sum::<u64>() / weights.layers.len().max(1) as u64;
        let layer_s = node.layer_ns.map(|ns| ns as f64 / 1e9);
        let measured = node.offer.profile.as_ref().filter(|profile| profile.format == weights.format);
        let Some(measured) = measured else {
            let layer_s = layer_s?;
            // Steps of a few rows take as long as one row, longer ones as much more as they have rows.
            let more = |rows: f64| (rows, layer_s * rows / FEW_ROWS);
            let curve = Curve::new(vec![(1.0, layer_s), (FEW_ROWS, layer_s), more(256.0)]).ok()?;
            let (decode, prefill) = (curve.clone(), curve);
            return Some(Profile { format: weights.format.clone(), layer_bytes, decode, prefill });
        };
        let expected = measured.decode.at(1.0) * layer_bytes as f64 / measured.layer_bytes as f64;
        let factor = layer_s.map_or(1.0, |now| now / expected);
        if ALIKE.contains(&factor) || !factor.is_finite() {
            return Some((**measured).clone());
        }
        let (decode, prefill) = (measured.decode.scaled(factor), measured.prefill.scaled(factor));
        Some(Profile { decode, prefill, ..(**measured).clone() })
    }

    fn relay_mbit(&self) -> Option<f64> {
        self.relay_bytes_per_s.filter(|rate| *rate > 0).map(|rate| rate as f64 / MBIT)
    }

    /// Links between all nodes: what the nodes have told, else no longer than by way of the gateway, and no wider than
    /// what was seen at their ends.
    fn measured(&self) -> Vec<(usize, usize, Link)> {
        let rtt = |from: &Seen, to: &Seen| {
            let told = |a: NodeId, b: NodeId| self.links.get(&(a, b)).copied();
            let known = told(from.id, to.id).or_else(|| told(to.id, from.id));
            let around = || Some(*self.near.get(&from.id)? + *self.near.get(&to.id)?);
            known.map(|rtt| (rtt, false)).or_else(|| around().map(|rtt| (rtt, true)))
        };
        let lines = self.lines();
        let mut links = Vec::new();
        for (at, from) in self.nodes.iter().enumerate() {
            for (other, to) in self.nodes.iter().enumerate().filter(|(other, _)| *other != at) {
                if let Some((rtt, estimated)) = rtt(from, to) {
                    let ends = (from.id, to.id);
                    let slower = self.slower.get(&ends).copied().unwrap_or(1.0);
                    let relayed = self.relayed.contains(&ends);
                    let rtt_ms = rtt.as_secs_f64() * 1e3;
                    let carried = self.rates.get(&ends).map(|rate| rate / MBIT);
                    let guess = || {
                        let guess = self.guess(ends, rtt_ms, &lines);
                        self.relay_mbit().filter(|_| relayed).map_or(guess, |relay| guess.min(relay))
                    };
                    let mbit = carried.unwrap_or_else(guess) / slower;
                    let mbit_estimated = carried.is_none() || slower > 1.0;
                    let link = Link::new("", "", rtt_ms * slower, mbit);
                    links.push((at, other, Link { estimated, mbit_estimated, relayed, ..link }));
                }
            }
        }
        links
    }

    /// The most that was seen to leave each node, and to reach it, in megabits per second.
    fn lines(&self) -> HashMap<NodeId, [f64; 2]> {
        let mut lines: HashMap<NodeId, [f64; 2]> = HashMap::new();
        for (&(from, to), rate) in &self.rates {
            for (end, way) in [(from, 0), (to, 1)] {
                let known = &mut lines.entry(end).or_default()[way];
                *known = known.max(rate / MBIT);
            }
        }
        lines
    }

    /// Megabits per second of a link that nothing long has passed yet: as its other direction, else as the narrower of
    /// its ends, else by its length.
    fn guess(&self, (from, to): (NodeId, NodeId), rtt_ms: f64, lines: &HashMap<NodeId, [f64; 2]>) -> f64 {
        if let Some(back) = self.rates.get(&(to, from)) {
            return back / MBIT;
        }
        let line = |end: NodeId, way: usize| lines.get(&end).map(|line| line[way]).filter(|mbit| *mbit > 0.0);
        let by_length = if rtt_ms <= NEAR.0 { NEAR.1 } else { FAR_MBIT };
        match (line(from, 0), line(to, 1)) {
            (Some(out), Some(into)) => out.min(into),
            (known, other) => known.or(other).map_or(by_length, |known| known.min(by_length)),
        }
    }
}

/// The shortest names that tell ids apart: eight digits, unless somebody has made ids that begin alike.
fn short_names(ids: impl Iterator<Item = NodeId> + Clone) -> Vec<String> {
    let short: HashSet<String> = ids.clone().map(|id| id.short()).collect();
    let unique = short.len() == ids.clone().count();
    ids.map(|id| if unique { id.short() } else { id.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use shard_planner::{Objective, demand::Limits};

    use super::*;

    fn id(byte: u8) -> NodeId {
        NodeId([byte; 32])
    }

    fn curve(layer_s: f64) -> Curve {
        Curve::new(vec![(1.0, layer_s), (16.0, layer_s * 2.0)]).expect("it ascends")
    }

    fn seen(byte: u8, held: Option<Range<usize>>) -> Seen {
        let (decode, prefill) = (curve(0.001), curve(0.001));
        let profile = Profile { format: "q8".into(), layer_bytes: 1000, decode, prefill };
        let offer = Offer {
            weight_bytes: 12_000,
            kv: KvMemory::default(),
            movable: true,
            load_rate: Some(10_000),
            profile: Some(Box::new(profile)),
        };
        let serves = held.is_some();
        let (kv_bytes, sessions) = (None, None);
        Seen {
            id: id(byte),
            held,
            serves,
            pinned: false,
            offer,
            weight_bytes: 0,
            layer_ns: None,
            kv_bytes,
            sessions,
        }
    }

    fn sketch(nodes: Vec<Seen>) -> Sketch {
        let near = nodes.iter().map(|node| (node.id, Duration::from_micros(100))).collect();
        Sketch {
            model: Arc::new(Model::uniform("m", 12, 1000, 0, 10)),
            demand: Demand::chat("q8", 16, Objective::Throughput(Limits::default())),
            nodes,
            links: HashMap::new(),
            rates: HashMap::new(),
            relayed: HashSet::new(),
            relay_bytes_per_s: None,
            slower: HashMap::new(),
            near,
        }
    }

    #[test]
    fn a_newcomer_loads_before_others_give_up_anything() {
        let verdict = sketch(vec![seen(1, Some(0..12)), seen(2, None)]).solve();
        assert_eq!(verdict.loads.len(), 1, "{verdict:?}");
        assert_eq!(verdict.loads[0].0, id(2));
        assert_eq!(verdict.lanes.len(), 1);
        assert_eq!(verdict.lanes[0].stages, [(id(1), 0..12)]);
    }

    #[test]
    fn a_node_that_slowed_is_relieved_and_one_that_is_pinned_is_not() {
        let slow = |pinned: bool| {
            let mut nodes = vec![seen(1, Some(0..6)), seen(2, Some(6..12))];
            nodes[0].layer_ns = Some(8_000_000);
            nodes.iter_mut().for_each(|node| node.pinned = pinned);
            sketch(nodes).solve()
        };
        let moved = slow(false);
        assert!(!moved.loads.is_empty() && moved.after > moved.before * 1.05, "{moved:?}");
        let stays = slow(true);
        assert!(stays.loads.is_empty() && stays.lanes.len() == 1, "{stays:?}");
        // A pace within what measuring it again would give is none.
        let mut nodes = vec![seen(1, Some(0..6)), seen(2, Some(6..12))];
        nodes[0].layer_ns = Some(1_300_000);
        assert!(sketch(nodes).solve().loads.is_empty());
    }

    #[test]
    fn what_is_missing_is_said_and_nobody_is_told_to_load() {
        let mut half = seen(1, None);
        half.offer.weight_bytes = 6000;
        let verdict = sketch(vec![half]).solve();
        assert_eq!((verdict.loads.len(), verdict.idle.len()), (0, 1));
        assert!(verdict.live.problem.is_some() && verdict.live.plan.is_none());
    }

    #[test]
    fn links_are_as_told_or_by_way_of_the_gateway_and_marked() {
        let mut sketch = sketch(vec![seen(1, Some(0..12)), seen(2, Some(0..12)), seen(3, Some(0..12))]);
        sketch.links.insert((id(2), id(1)), Duration::from_millis(30));
        let links = sketch.solve().live.link;
        let between = |a: u8, b: u8| {
            let ends = (id(a).short(), id(b).short());
            links
                .iter()
                .find(|link| (&link.from, &link.to) == (&ends.0, &ends.1))
                .expect("it is there")
                .clone()
        };
        assert_eq!((between(1, 2).rtt_ms, between(1, 2).estimated), (30.0, false));
        assert!(between(1, 3).estimated && (between(1, 3).rtt_ms - 0.2).abs() < 1e-9);
    }

    /// The link between two nodes in what people see.
    fn between(sketch: Sketch, a: u8, b: u8) -> Link {
        let ends = (id(a).short(), id(b).short());
        let mut links = sketch.solve().live.link.into_iter();
        links.find(|link| (&link.from, &link.to) == (&ends.0, &ends.1)).expect("it is there")
    }

    #[test]
    fn links_carry_what_was_seen_or_what_their_ends_let_expect() {
        let with = |rates: &[(u8, u8, f64)], a: u8, b: u8| {
            let nodes = [1, 2, 3, 4].map(|node| seen(node, Some(0..12)));
            let mut sketch = sketch(nodes.to_vec());
            sketch.rates = rates.iter().map(|&(a, b, mbit)| ((id(a), id(b)), mbit * MBIT)).collect();
            let link = between(sketch, a, b);
            (link.mbit, link.mbit_estimated)
        };
        assert_eq!(with(&[], 1, 2), (NEAR.1, true));
        assert_eq!(with(&[(1, 2, 70.0)], 1, 2), (70.0, false));
        assert_eq!(with(&[(1, 2, 70.0)], 2, 1), (70.0, true));
        assert_eq!(with(&[(1, 3, 90.0), (1, 4, 60.0), (4, 2, 80.0)], 1, 2), (80.0, true));
        assert_eq!(with(&[(1, 3, 5000.0)], 1, 2), (NEAR.1, true));
    }

    #[test]
    fn relayed_links_are_no_wider_than_the_relay() {
        let mut sketch = sketch(vec![seen(1, Some(0..6)), seen(2, Some(6..12))]);
        sketch.relayed = [(id(1), id(2)), (id(2), id(1))].into();
        sketch.relay_bytes_per_s = Some(4_000_000);
        let verdict = sketch.solve();
        assert_eq!(verdict.live.relay_mbit, Some(32.0));
        let link = &verdict.live.link[0];
        assert!(link.relayed && link.mbit_estimated && (link.mbit - 32.0).abs() < 1e-9, "{link:?}");
        let report = verdict.live.plan.expect("there is a plan");
        let between = report.pipelines[0].stages[0].link.clone().expect("there are two stages");
        assert!(between.relayed && between.mbit_estimated, "{between:?}");
    }

    #[test]
    fn who_is_slower_in_service_than_said_gets_less() {
        let weight = |slower: f64| {
            let mut sketch = sketch(vec![seen(1, Some(0..12)), seen(2, Some(0..12))]);
            sketch.slower.insert((id(2), id(2)), slower);
            let lanes = sketch.solve().lanes;
            lanes.iter().find(|lane| lane.stages[0].0 == id(2)).map_or(0.0, |lane| lane.weight)
        };
        assert!((weight(1.0) - 0.5).abs() < 0.05 && weight(10.0) < 0.15, "{} {}", weight(1.0), weight(10.0));
        let mut sketch = sketch(vec![seen(1, Some(0..12)), seen(2, Some(0..12))]);
        sketch.slower.insert((id(1), id(2)), 4.0);
        let link = between(sketch, 1, 2);
        assert!((link.mbit - NEAR.1 / 4.0).abs() < 1e-9 && link.mbit_estimated, "{link:?}");
    }

    #[test]
    fn nobody_is_given_layers_that_leave_no_kv_for_sessions() {
        // The gap is of 6 layers of 1000 bytes, and a session has 768 positions of 1 byte in each.
        let with = |kv: KvMemory| {
            let mut sketch = sketch(vec![seen(1, Some(0..6)), seen(2, None)]);
            sketch.model = Arc::new(Model::uniform("m", 12, 1000, 1, 10));
            sketch.nodes[0].pinned = true;
            sketch.nodes[1].offer.kv = kv;
            sketch.solve()
        };
        let session = 6 * 768;
        for enough in [KvMemory::Own(session), KvMemory::Shared(6000 + session)] {
            assert_eq!(with(enough).loads, [(id(2), 6..12)], "{enough}");
        }
        for short in [KvMemory::Own(session - 1), KvMemory::Shared(5999 + session)] {
            let verdict = with(short);
            assert_eq!((verdict.loads.len(), verdict.idle.len()), (0, 1), "{short}");
            let problem = verdict.live.problem.expect("nothing serves");
            assert!(problem.contains("KV") && problem.contains("bytes are missing"), "{problem}");
        }
    }

    #[test]
    fn kv_that_is_missing_for_the_replies_that_may_run_is_told() {
        let mut sketch = sketch(vec![seen(1, Some(0..12))]);
        sketch.model = Arc::new(Model::uniform("m", 12, 1000, 1, 10));
        sketch.nodes[0].offer.kv = KvMemory::Own(u64::MAX);
        sketch.nodes[0].kv_bytes = Some(12 * 768 * 4);
        let report = sketch.solve().live.plan.expect("it serves some");
        let shortage = report.shortage.expect("there is KV for four");
        assert_eq!((shortage.sessions, shortage.wanted), (4, 16));
        assert_eq!((shortage.missing, shortage.fitting), (12 * 768 * 12, 192));
    }

    #[test]
    fn ids_made_to_begin_alike_are_told_apart() {
        let mut other = [1; 32];
        other[31] = 2;
        let names = short_names([id(1), NodeId(other)].into_iter());
        assert_ne!(names[0], names[1]);
    }
}
