//! The machines and what lies between them.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::curve::Curve;

/// A machine that can hold layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name, unique in the cluster.
    pub id: String,
    /// Bytes for weights and KV together, or for weights alone if KV has bytes of its own.
    pub memory: u64,
    /// Bytes for KV alone.
    #[serde(default)]
    pub kv_memory: Option<u64>,
    /// Most bytes of weights that it may hold, of what it has for weights and KV together.
    #[serde(default)]
    pub max_weights: Option<u64>,
    /// Most sessions at once.
    #[serde(default)]
    pub max_sessions: Option<u32>,
    /// Measured times, for each format that was measured.
    #[serde(default)]
    pub profiles: Vec<Profile>,
    /// Rates that times are estimated from where none were measured.
    #[serde(default)]
    pub rates: Option<Rates>,
    /// Most layers that it may hold.
    #[serde(default)]
    pub max_layers: Option<usize>,
    /// Layers that it holds and keeps: it may serve a part of them, and no others.
    #[serde(default)]
    pub pinned: Option<Range<usize>>,
    /// Most sequences of one step.
    #[serde(default)]
    pub max_batch: Option<u32>,
    /// Bytes per second at which weights come from its disk.
    #[serde(default)]
    pub disk_rate: Option<f64>,
    /// Bytes per second at which weights come over the network.
    #[serde(default)]
    pub download_rate: Option<f64>,
    /// Price of an hour, in any one currency.
    #[serde(default)]
    pub price: f64,
    /// Chance that it stays for the next hour, 0 to 1.
    #[serde(default = "certain")]
    pub reliability: f64,
    /// Hours of the day (UTC) in which it may be used; empty for all.
    #[serde(default)]
    pub idle: Vec<Hours>,
    /// Where it stands: nodes of one site are near each other.
    #[serde(default)]
    pub site: Option<String>,
}

fn certain() -> f64 {
    1.0
}

/// Measured times of one layer in one format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Format of the weights.
    pub format: String,
    /// Bytes of the layer that was measured; times of others are in proportion.
    pub layer_bytes: u64,
    /// Seconds of a decoding step by its sequences.
    pub decode: Curve,
    /// Seconds of a prompt by its tokens.
    pub prefill: Curve,
}

/// What a device can do, to estimate from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Bytes of weights read per second.
    pub memory_rate: f64,
    /// Floating point operations per second.
    pub flops: f64,
}

/// Hours of the day from `from` up to `to`; over midnight if `to` is less.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hours {
    /// Start, 0 up to 24.
    pub from: f64,
    /// End, 0 up to 24.
    pub to: f64,
}

impl Node {
    /// A node of `memory` bytes that nothing else is known about.
    pub fn new(id: &str, memory: u64) -> Self {
        Self {
            id: id.to_owned(),
            memory,
            kv_memory: None,
            max_weights: None,
            max_sessions: None,
            profiles: Vec::new(),
            rates: None,
            max_layers: None,
            pinned: None,
            max_batch: None,
            disk_rate: None,
            download_rate: None,
            price: 0.0,
            reliability: 1.0,
            idle: Vec::new(),
            site: None,
        }
    }

    /// The same node with measured times.
    pub fn with_profile(mut self, profile: Profile) -> Self {
        self.profiles.push(profile);
        self
    }

    /// Bytes for weights and KV, wherever they may lie.
    pub(crate) fn all_memory(&self) -> u64 {
        self.memory.saturating_add(self.kv_memory.unwrap_or(0))
    }

    /// Whether it may be used at `hour` of the day.
    pub fn is_idle_at(&self, hour: f64) -> bool {
        let within = |hours: &Hours| match hours.from <= hours.to {
            true => hours.from <= hour && hour < hours.to,
            false => hour >= hours.from || hour < hours.to,
        };
        self.idle.is_empty() || self.idle.iter().any(within)
    }

    /// Seconds until `bytes` of weights are loaded, where the rates are known: from its disk if it has them,
    /// else over the network too.
    pub fn load_s(&self, bytes: u64, on_disk: bool) -> f64 {
        let rates = [self.disk_rate, self.download_rate.filter(|_| !on_disk)];
        let slowest = rates.into_iter().flatten().fold(f64::INFINITY, f64::min);
        bytes as f64 / slowest
    }

    fn check(&self) -> Result<(), ClusterError> {
        let number = |what, value| ClusterError::Number { node: self.id.clone(), what, value };
        if self.memory == 0 {
            return Err(ClusterError::NoMemory(self.id.clone()));
        }
        if self.max_layers == Some(0) || self.max_batch == Some(0) {
            return Err(number("max_layers or max_batch", 0.0));
        }
        let rates = self.rates.map_or([None; 2], |rates| [Some(rates.memory_rate), Some(rates.flops)]);
        let positive = [
            ("disk_rate", self.disk_rate),
            ("download_rate", self.download_rate),
            ("memory_rate", rates[0]),
            ("flops", rates[1]),
        ];
        for (what, value) in positive {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
                return Err(number(what, value));
            }
        }
        if !(self.price.is_finite() && self.price >= 0.0) {
            return Err(number("price", self.price));
        }
        if !(0.0..=1.0).contains(&self.reliability) {
            return Err(number("reliability", self.reliability));
        }
        let hours = self.idle.iter().flat_map(|hours| [hours.from, hours.to]);
        if let Some(hour) = hours.into_iter().find(|hour| !(0.0..=24.0).contains(hour)) {
            return Err(number("idle hour", hour));
        }
        if self.profiles.iter().any(|profile| profile.layer_bytes == 0) {
            return Err(number("profile.layer_bytes", 0.0));
        }
        match self.profiles.iter().find(|profile| profile.decode.at(1.0) <= 0.0) {
            Some(_) => Err(number("profile.decode at 1", 0.0)),
            None => Ok(()),
        }
    }
}

/// One direction between two nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hop {
    /// Seconds until the first byte arrives: half a round trip.
    pub latency_s: f64,
    /// Bytes per second; 0 where nothing passes.
    pub rate: f64,
    /// Its latency was not measured.
    pub estimated: bool,
    /// Its rate was not measured.
    pub rate_estimated: bool,
    /// It goes through a relay, whose bandwidth all such links share.
    pub relayed: bool,
}

impl Hop {
    /// A measured link.
    pub fn new(latency_s: f64, rate: f64) -> Self {
        Self { latency_s, rate, estimated: false, rate_estimated: false, relayed: false }
    }

    const fn guess(latency_s: f64, rate: f64) -> Self {
        Self { latency_s, rate, estimated: true, rate_estimated: true, relayed: false }
    }

    /// Seconds until `bytes` have arrived.
    pub fn seconds(&self, bytes: f64) -> f64 {
        self.latency_s + bytes / self.rate
    }

    /// Whether anything passes.
    pub fn is_up(&self) -> bool {
        self.rate > 0.0
    }
}

/// A measured link as files say it; what is not said of the way back is taken to be the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// From this node or site.
    pub from: String,
    /// To this node or site.
    pub to: String,
    /// Round trip in milliseconds.
    pub rtt_ms: f64,
    /// Bandwidth in megabits per second; 0 where nothing passes.
    pub mbit: f64,
    /// It was not measured.
    #[serde(default)]
    pub estimated: bool,
    /// Its round trip was measured, and its bandwidth was not.
    #[serde(default)]
    pub mbit_estimated: bool,
    /// It goes through a relay, whose bandwidth all such links share.
    #[serde(default)]
    pub relayed: bool,
}

impl Link {
    /// A measured link.
    pub fn new(from: &str, to: &str, rtt_ms: f64, mbit: f64) -> Self {
        let (from, to) = (from.to_owned(), to.to_owned());
        Self { from, to, rtt_ms, mbit, estimated: false, mbit_estimated: false, relayed: false }
    }
}

/// A coordinator that every token passes on its way from the last stage to the first. Without one, the last
/// stage tells the first directly.
#[derive(Clone, Debug, PartialEq)]
pub struct Coordinator {
    /// From it to each node.
    pub to: Vec<Hop>,
    /// From each node to it.
    pub from: Vec<Hop>,
}

/// Nodes and the links between them, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    nodes: Vec<Node>,
    /// Row by row, from × to.
    hops: Vec<Hop>,
    coordinator: Option<Coordinator>,
    /// Bytes per second that pass the relay, over all links that go through it.
    relay_rate: f64,
}

/// A cluster as files say it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFile {
    /// Nodes.
    #[serde(rename = "node")]
    pub nodes: Vec<Node>,
    /// Measured links between nodes or sites.
    #[serde(rename = "link", default)]
    pub links: Vec<Link>,
    /// Megabits per second that the relay lets through, over all links that go through it.
    #[serde(default)]
    pub relay_mbit: Option<f64>,
}

/// What is wrong with a cluster.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ClusterError {
    /// There is nothing to plan with.
    #[error("the cluster has no nodes")]
    NoNodes,
    /// Two of one name.
    #[error("node {0} is there twice")]
    Duplicate(String),
    /// A node that can hold nothing.
    #[error("node {0} has no memory")]
    NoMemory(String),
    /// A number that cannot be.
    #[error("node {node}: {what} cannot be {value}")]
    Number {
        /// Which node.
        node: String,
        /// Field.
        what: &'static str,
        /// As given.
        value: f64,
    },
    /// A link of numbers that cannot be.
    #[error("the link from {from} to {to}: {what} cannot be {value}")]
    Link {
        /// From.
        from: String,
        /// To.
        to: String,
        /// Field.
        what: &'static str,
        /// As given.
        value: f64,
    },
    /// A relay that lets nothing through.
    #[error("the relay's bandwidth cannot be {0}")]
    Relay(f64),
    /// A link to nowhere.
    #[error("a link names {0}, which is neither a node nor a site")]
    UnknownEnd(String),
    /// Numbers of hops that do not go with the nodes.
    #[error("{given} hops were given for {nodes} nodes")]
    Hops {
        /// Nodes.
        nodes: usize,
        /// Hops given.
        given: usize,
    },
}

/// Between nodes of one site that were not measured: 1 ms there and back, a gigabit.
const NEAR: Hop = Hop::guess(0.0005, 125e6);
/// Between others: 40 ms there and back, 50 megabits.
const FAR: Hop = Hop::guess(0.02, 6.25e6);

impl ClusterFile {
    /// Checks it, and estimates the links that are missing.
    pub fn into_cluster(self) -> Result<Cluster, ClusterError> {
        Cluster::new(self.nodes, &self.links)?.relaying(self.relay_mbit)
    }
}

impl Cluster {
    /// A cluster of `nodes` with these measured links. A link between nodes counts before one between their
    /// sites, a direction that was measured before the other; what is missing is estimated from the median of
    /// the links that were measured within, or between, sites.
    pub fn new(nodes: Vec<Node>, links: &[Link]) -> Result<Self, ClusterError> {
        check_nodes(&nodes)?;
        let known = Known::new(&nodes, links)?;
        let count = nodes.len();
        let hops = (0..count * count).map(|at| known.hop(at / count, at % count)).collect();
        Ok(Self { nodes, hops, coordinator: None, relay_rate: f64::INFINITY })
    }

    /// The same, where all relayed links together carry no more than `mbit` megabits per second.
    ///
    /// # Errors
    /// If nothing or less passes.
    pub fn relaying(self, mbit: Option<f64>) -> Result<Self, ClusterError> {
        match mbit {
            Some(mbit) if !(mbit.is_finite() && mbit > 0.0) => Err(ClusterError::Relay(mbit)),
            _ => {
                let relay_rate = mbit.map_or(f64::INFINITY, |mbit| mbit * 125_000.0);
                let narrowed = |hop: Hop| match hop.relayed {
                    true => Hop { rate: hop.rate.min(relay_rate), ..hop },
                    false => hop,
                };
                let hops = self.hops.iter().copied().map(narrowed).collect();
                Ok(Self { relay_rate, hops, ..self })
            }
        }
    }

    /// A cluster with its whole matrix of hops, row by row.
    pub fn with_hops(
        nodes: Vec<Node>,
        hops: Vec<Hop>,
        coordinator: Option<Coordinator>,
    ) -> Result<Self, ClusterError> {
        check_nodes(&nodes)?;
        let sized =
            coordinator.as_ref().is_none_or(|c| c.to.len() == nodes.len() && c.from.len() == nodes.len());
        if hops.len() != nodes.len() * nodes.len() || !sized {
            return Err(ClusterError::Hops { nodes: nodes.len(), given: hops.len() });
        }
        for (at, hop) in hops.iter().enumerate() {
            let (from, to) = (&nodes[at / nodes.len()].id, &nodes[at % nodes.len()].id);
            check_link(from, to, hop.latency_s, hop.rate)?;
        }
        for (at, hop) in coordinator.iter().flat_map(|c| c.to.iter().enumerate()) {
            check_link("the coordinator", &nodes[at].id, hop.latency_s, hop.rate)?;
        }
        for (at, hop) in coordinator.iter().flat_map(|c| c.from.iter().enumerate()) {
            check_link(&nodes[at].id, "the coordinator", hop.latency_s, hop.rate)?;
        }
        Ok(Self { nodes, hops, coordinator, relay_rate: f64::INFINITY })
    }

    /// Nodes in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none; a checked cluster has some.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The way from one node to another.
    pub fn hop(&self, from: usize, to: usize) -> Hop {
        self.hops[from * self.nodes.len() + to]
    }

    /// Bytes per second that pass the relay, over all relayed links.
    pub fn relay_rate(&self) -> f64 {
        self.relay_rate
    }

    /// Who stands between the last stage and the first.
    pub fn coordinator(&self) -> Option<&Coordinator> {
        self.coordinator.as_ref()
    }

    /// Seconds until the first stage `first` knows what the last stage `last` drew.
    pub fn back_s(&self, last: usize, first: usize) -> f64 {
        const TOKEN_BYTES: f64 = 8.0;
        match &self.coordinator {
            Some(c) => c.from[last].seconds(TOKEN_BYTES) + c.to[first].seconds(TOKEN_BYTES),
            None if last == first => 0.0,
            None => self.hop(last, first).seconds(TOKEN_BYTES),
        }
    }

    /// The cluster of these nodes alone, in this order.
    pub fn subset(&self, nodes: &[usize]) -> Self {
        let pick = |hops: &[Hop]| nodes.iter().map(|&node| hops[node]).collect();
        let coordinator =
            self.coordinator.as_ref().map(|c| Coordinator { to: pick(&c.to), from: pick(&c.from) });
        let hops = nodes.iter().flat_map(|&from| nodes.iter().map(move |&to| self.hop(from, to))).collect();
        let nodes = nodes.iter().map(|&node| self.nodes[node].clone()).collect();
        Self { nodes, hops, coordinator, relay_rate: self.relay_rate }
    }

    /// The same cluster with a node's measured times multiplied by `factor`, as service has shown.
    pub fn slowed(&self, node: usize, factor: f64) -> Self {
        let mut slower = self.clone();
        let node = &mut slower.nodes[node];
        for profile in &mut node.profiles {
            profile.decode = profile.decode.scaled(factor);
            profile.prefill = profile.prefill.scaled(factor);
        }
        if let Some(rates) = &mut node.rates {
            rates.memory_rate /= factor;
            rates.flops /= factor;
        }
        slower
    }
}

fn check_nodes(nodes: &[Node]) -> Result<(), ClusterError> {
    if nodes.is_empty() {
        return Err(ClusterError::NoNodes);
    }
    let mut names = HashSet::new();
    for node in nodes {
        if !names.insert(&node.id) {
            return Err(ClusterError::Duplicate(node.id.clone()));
        }
        node.check()?;
    }
    Ok(())
}

fn check_link(from: &str, to: &str, latency_s: f64, rate: f64) -> Result<(), ClusterError> {
    let wrong = |what, value| ClusterError::Link { from: from.to_owned(), to: to.to_owned(), what, value };
    if !(latency_s.is_finite() && latency_s >= 0.0) {
        return Err(wrong("latency", latency_s));
    }
    if !(rate.is_finite() && rate >= 0.0) {
        return Err(wrong("bandwidth", rate));
    }
    Ok(())
}

/// What was measured, by node and by site.
struct Known {
    /// Sites of nodes; ends of links are nodes by their index, and after them sites.
    sites: Vec<Option<usize>>,
    measured: HashMap<(usize, usize), Hop>,
    /// Medians of what was measured within and between sites.
    near: Hop,
    far: Hop,
}

impl Known {
    fn new(nodes: &[Node], links: &[Link]) -> Result<Self, ClusterError> {
        let mut ends: HashMap<&str, usize> =
            nodes.iter().enumerate().map(|(at, n)| (n.id.as_str(), at)).collect();
        let mut named: HashMap<&str, usize> = HashMap::new();
        let mut sites = Vec::with_capacity(nodes.len());
        for node in nodes {
            let next = nodes.len() + named.len();
            sites.push(node.site.as_deref().map(|site| *named.entry(site).or_insert(next)));
        }
        for (name, at) in named {
            ends.entry(name).or_insert(at);
        }
        let mut measured = HashMap::new();
        for link in links {
            let end = |name: &String| {
                ends.get(name.as_str()).copied().ok_or_else(|| ClusterError::UnknownEnd(name.clone()))
            };
            let (latency_s, rate) = (link.rtt_ms / 2000.0, link.mbit * 125_000.0);
            let rate_estimated = link.estimated || link.mbit_estimated;
            let hop =
                Hop { latency_s, rate, estimated: link.estimated, rate_estimated, relayed: link.relayed };
            check_link(&link.from, &link.to, hop.latency_s, hop.rate)?;
            measured.insert((end(&link.from)?, end(&link.to)?), hop);
        }
        let place = |end: usize| sites.get(end).copied().unwrap_or(Some(end));
        let (near, far): (Vec<_>, Vec<_>) = measured
            .iter()
            .filter(|(_, hop)| hop.is_up())
            .partition(|((from, to), _)| place(*from) == place(*to));
        let hops = |links: Vec<(&(usize, usize), &Hop)>| links.into_iter().map(|(_, hop)| *hop).collect();
        let (near, far) = (median(hops(near)), median(hops(far)));
        Ok(Self { near: near.unwrap_or(NEAR), far: far.unwrap_or(FAR), sites, measured })
    }

    fn hop(&self, from: usize, to: usize) -> Hop {
        if from == to {
            return Hop::new(0.0, 1e12);
        }
        let look = |a: usize, b: usize| self.measured.get(&(a, b)).copied();
        let guess = |hop: Hop| Hop { estimated: true, rate_estimated: true, ..hop };
        let either = |a: usize, b: usize| look(a, b).or_else(|| look(b, a).map(guess));
        let (a, b) = (self.sites[from], self.sites[to]);
        let mixed = || b.and_then(|b| either(from, b)).or_else(|| a.and_then(|a| either(a, to)));
        either(from, to)
            .or_else(mixed)
            .or_else(|| a.zip(b).and_then(|(a, b)| either(a, b)))
            .unwrap_or(if a == b { self.near } else { self.far })
    }
}

fn median(mut hops: Vec<Hop>) -> Option<Hop> {
    let middle = hops.len() / 2;
    hops.sort_by(|a, b| a.latency_s.total_cmp(&b.latency_s));
    let latency_s = hops.get(middle)?.latency_s;
    hops.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    Some(Hop::guess(latency_s, hops[middle].rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(from: &str, to: &str, rtt_ms: f64, mbit: f64) -> Link {
        Link::new(from, to, rtt_ms, mbit)
    }

    #[test]
    fn what_was_not_measured_is_estimated_and_marked() {
        let nodes = ["a", "b", "c"].map(|id| Node::new(id, 1)).to_vec();
        let cluster = Cluster::new(nodes, &[link("a", "b", 4.0, 80.0)]).unwrap();
        assert_eq!(cluster.hop(0, 1), Hop::new(0.002, 10e6));
        assert_eq!(cluster.hop(1, 0), Hop::guess(0.002, 10e6));
        assert!(cluster.hop(0, 2).estimated && cluster.hop(0, 2).rate == 10e6);
    }

    #[test]
    fn sites_stand_for_their_nodes() {
        let mut nodes = ["a", "b", "c"].map(|id| Node::new(id, 1)).to_vec();
        for (node, site) in nodes.iter_mut().zip(["x", "x", "y"]) {
            node.site = Some(site.to_owned());
        }
        let cluster = Cluster::new(nodes, &[link("x", "y", 100.0, 8.0)]).unwrap();
        assert_eq!(cluster.hop(1, 2).latency_s, 0.05);
        assert!(cluster.hop(0, 1).rate > cluster.hop(0, 2).rate);
    }

    #[test]
    fn errors_name_the_culprit() {
        let new = |nodes: Vec<Node>, links: &[Link]| Cluster::new(nodes, links).unwrap_err().to_string();
        let node = |id| Node::new(id, 1);
        assert_eq!(new(vec![], &[]), "the cluster has no nodes");
        assert_eq!(new(vec![node("a"), node("a")], &[]), "node a is there twice");
        assert_eq!(new(vec![Node::new("b", 0)], &[]), "node b has no memory");
        let priced = Node { price: f64::NAN, ..node("c") };
        assert_eq!(new(vec![priced], &[]), "node c: price cannot be NaN");
        let two = || vec![node("a"), node("b")];
        assert!(new(two(), &[link("a", "z", 1.0, 1.0)]).contains("names z"));
        assert!(new(two(), &[link("a", "b", f64::NAN, 1.0)]).contains("from a to b: latency"));
    }

    #[test]
    fn an_idle_schedule_may_go_over_midnight() {
        let node = Node { idle: vec![Hours { from: 22.0, to: 6.0 }], ..Node::new("a", 1) };
        assert!(node.is_idle_at(23.0) && node.is_idle_at(3.0) && !node.is_idle_at(12.0));
    }
}
