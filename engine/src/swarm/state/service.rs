//! What service says of the plan: nodes tell how fast they are themselves, and two that agree can make a link look as
//! they like. Where replies take many times longer than was predicted, whoever the way has that the ways that keep
//! their word have not is taken to be as much slower, for a while that doubles with each time.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;
use transport::NodeId;

/// Tokens that a reply must have brought, and the time it must have taken, for its pace to mean something.
const TOKENS: u32 = 8;
/// A way keeps its word within so many times the prediction, and so much for each stage beside: predictions are no
/// better where work is little, and machines are busy with other things.
const WITHIN: f64 = 4.0;
const SLACK: Duration = Duration::from_millis(20);
/// How long a way's last reply speaks for it.
const RECENT: Duration = Duration::from_secs(300);
/// How long a doubt holds first, and at most.
const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);
/// Nobody is taken to be slower than so many times.
const MOST: f64 = 1000.0;
/// Ways and doubts that are kept.
const MAX_KEPT: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Service {
    /// The nodes of ways, how many times longer than predicted their last reply took, and whether that is too long.
    ways: HashMap<Vec<NodeId>, (f64, bool, Instant)>,
    /// By both ends of a link; a node is a link to itself.
    doubts: HashMap<(NodeId, NodeId), Doubt>,
}

#[derive(Debug)]
struct Doubt {
    factor: f64,
    until: Instant,
    wait: Duration,
}

impl Service {
    /// A reply over `nodes` brought `tokens` in `took`, where `tpot_s` was predicted for each at full load. Whether
    /// that is a reason to plan anew.
    pub(super) fn replied(
        &mut self,
        nodes: &[NodeId],
        (tokens, took): (u32, Duration),
        tpot_s: f64,
        now: Instant,
    ) -> bool {
        if tokens < TOKENS {
            return false;
        }
        let each_s = took.as_secs_f64() / f64::from(tokens);
        let slow = each_s > WITHIN * tpot_s + SLACK.as_secs_f64() * nodes.len() as f64;
        self.ways.retain(|_, (.., at)| now.saturating_duration_since(*at) < RECENT);
        if self.ways.len() < MAX_KEPT || self.ways.contains_key(nodes) {
            let factor = (each_s / tpot_s.max(1e-6)).min(MOST);
            self.ways.insert(nodes.to_vec(), (factor, slow, now));
        }
        slow && self.doubt(nodes, now)
    }

    /// Blames the nodes of a slow way that are in no good one; if there are none, the links that are in none.
    fn doubt(&mut self, nodes: &[NodeId], now: Instant) -> bool {
        let Some(&(factor, ..)) = self.ways.get(nodes) else { return false };
        let good = || self.ways.iter().filter(|(_, (_, slow, _))| !slow).map(|(way, _)| way);
        let own = |&&node: &&NodeId| !good().any(|way| way.contains(&node));
        let mut parts: Vec<(NodeId, NodeId)> = nodes.iter().filter(own).map(|&node| (node, node)).collect();
        if parts.is_empty() {
            let links = nodes.windows(2).map(|pair| (pair[0], pair[1]));
            let own = |&(from, to): &(NodeId, NodeId)| {
                !good().any(|way| way.windows(2).any(|pair| (pair[0], pair[1]) == (from, to)))
            };
            parts = links.filter(own).collect();
        }
        // What is remembered of those that kept their word since is over.
        self.doubts.retain(|_, doubt| doubt.until + LONGEST > now);
        let mut anew = false;
        for part in parts {
            let before = self.doubts.get(&part).map(|doubt| (doubt.until, doubt.wait));
            if before.is_some_and(|(until, _)| until > now) || self.doubts.len() >= MAX_KEPT {
                continue;
            }
            let wait = before.map_or(FIRST, |(_, wait)| (wait * 2).min(LONGEST));
            tracing::warn!(from = %part.0.short(), to = %part.1.short(), factor, wait_s = wait.as_secs(), "slower in service than it was said to be");
            self.doubts.insert(part, Doubt { factor, until: now + wait, wait });
            anew = true;
        }
        anew
    }

    /// How many times slower than they are said to be nodes and links are taken for.
    pub(super) fn factors(&self, now: Instant) -> HashMap<(NodeId, NodeId), f64> {
        let held = self.doubts.iter().filter(|(_, doubt)| doubt.until > now);
        held.map(|(part, doubt)| (*part, doubt.factor)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> NodeId {
        NodeId([byte; 32])
    }

    /// A reply over these nodes of 100 tokens, each of so many milliseconds, where 10 were predicted.
    fn reply(service: &mut Service, nodes: &[u8], ms: u64, now: Instant) -> bool {
        let nodes: Vec<NodeId> = nodes.iter().copied().map(id).collect();
        service.replied(&nodes, (100, Duration::from_millis(100 * ms)), 0.01, now)
    }

    #[test]
    fn the_node_that_only_the_slow_way_has_is_doubted() {
        let (mut service, now) = (Service::default(), Instant::now());
        assert!(!reply(&mut service, &[1, 2], 60, now));
        assert!(reply(&mut service, &[1, 3], 500, now));
        assert_eq!(service.factors(now), HashMap::from([((id(3), id(3)), 50.0)]));
        // If both have served well elsewhere, it is the link.
        let mut service = Service::default();
        reply(&mut service, &[1, 2], 60, now);
        reply(&mut service, &[4, 3], 60, now);
        assert!(reply(&mut service, &[1, 3], 500, now));
        assert_eq!(service.factors(now), HashMap::from([((id(1), id(3)), 50.0)]));
    }

    #[test]
    fn a_lie_is_tried_again_ever_more_seldom() {
        let (mut service, mut now) = (Service::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..9 {
            reply(&mut service, &[1, 2], 60, now);
            assert!(reply(&mut service, &[1, 3], 500, now) && !reply(&mut service, &[1, 3], 500, now));
            let begun = now;
            while !service.factors(now).is_empty() {
                now += Duration::from_secs(30);
            }
            waits.push((now - begun).as_secs());
        }
        assert_eq!(waits, [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]);
        // An hour after the last one it begins anew.
        now += LONGEST + RECENT;
        reply(&mut service, &[1, 2], 60, now);
        reply(&mut service, &[1, 3], 500, now);
        assert!(service.factors(now + FIRST).is_empty());
    }

    #[test]
    fn short_replies_and_small_work_say_nothing() {
        let (mut service, now) = (Service::default(), Instant::now());
        assert!(!service.replied(&[id(1)], (TOKENS - 1, Duration::from_secs(60)), 0.01, now));
        assert!(!service.replied(&[id(1)], (100, Duration::from_secs(2)), 1e-9, now));
        assert!(service.replied(&[id(1)], (100, Duration::from_secs(3)), 0.0, now));
        assert_eq!(service.factors(now), HashMap::from([((id(1), id(1)), MOST)]));
    }
}
