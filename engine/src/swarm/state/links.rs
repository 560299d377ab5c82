//! What nodes say of their links to each other, as far as it is believed.
//!
//! What a link carries is told by the end that it arrives at, and no more is believed than twice what the other end's
//! congestion control lets out: one node alone can make a link look slow, which harms itself, and not fast.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;
use transport::NodeId;

use crate::{
    message::{Neighbour, Path},
    swarm::LinkSummary,
};

/// Measured links that are kept.
const MAX_LINKS: usize = 1 << 14;
/// How long what a link was seen to carry holds. It outlives the link: nodes that are moved meet again.
const KEPT: Duration = Duration::from_secs(3600);
/// Bytes per second that are believed: 64 kbit/s, 100 Gbit/s.
const BELIEVED: (f64, f64) = (8e3, 12.5e9);

/// See the module. Links are by their ends: from, to.
#[derive(Debug, Default)]
pub(super) struct Links {
    near: HashMap<(NodeId, NodeId), Near>,
    carried: HashMap<(NodeId, NodeId), Carried>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Near {
    rtt: Duration,
    path: Path,
}

/// Bytes per second, and when that was so.
#[derive(Clone, Copy, Debug, Default)]
struct Carried {
    /// As they arrived.
    arrived: Option<(f64, Instant)>,
    /// As they were let out at most.
    let_out: Option<(f64, Instant)>,
}

impl Carried {
    fn is_kept(&self, now: Instant) -> bool {
        let times = [self.arrived, self.let_out].into_iter().flatten();
        times.into_iter().any(|(_, at)| now.saturating_duration_since(at) < KEPT)
    }
}

impl Links {
    /// A node's links to members are these; what it said before is over.
    pub(super) fn told(
        &mut self,
        peer: NodeId,
        near: &[Neighbour],
        is_member: impl Fn(NodeId) -> bool,
        now: Instant,
    ) {
        self.near.retain(|(from, _), _| *from != peer);
        self.carried.retain(|_, carried| carried.is_kept(now));
        let known = near.iter().map(|neighbour| (NodeId(neighbour.node), neighbour));
        for (other, neighbour) in known.filter(|(other, _)| is_member(*other) && *other != peer) {
            if self.near.len() < MAX_LINKS {
                let rtt = Duration::from_micros(u64::from(neighbour.rtt_us));
                self.near.insert((peer, other), Near { rtt, path: neighbour.path });
            }
            let rate = |kbit: u32| f64::from(kbit) * 125.0;
            if let Some(inward) = neighbour.inward {
                // Past the first hour of a machine there may be no such time.
                let at = now.checked_sub(Duration::from_secs(u64::from(inward.age_s))).unwrap_or(now);
                self.carry((other, peer), |carried| carried.arrived = Some((rate(inward.kbit), at)));
            }
            if let Some(kbit) = neighbour.outward_kbit {
                self.carry((peer, other), |carried| carried.let_out = Some((rate(kbit), now)));
            }
        }
    }

    fn carry(&mut self, ends: (NodeId, NodeId), note: impl FnOnce(&mut Carried)) {
        if self.carried.len() < MAX_LINKS || self.carried.contains_key(&ends) {
            note(self.carried.entry(ends).or_default());
        }
    }

    /// A node is out of reach.
    pub(super) fn lost(&mut self, peer: NodeId) {
        self.near.retain(|(from, to), _| *from != peer && *to != peer);
    }

    /// Round trip between two nodes, as either of them says.
    pub(super) fn rtt(&self, one: NodeId, other: NodeId) -> Option<Duration> {
        self.near.get(&(one, other)).or_else(|| self.near.get(&(other, one))).map(|near| near.rtt)
    }

    /// Round trips.
    pub(super) fn rtts(&self) -> HashMap<(NodeId, NodeId), Duration> {
        self.near.iter().map(|(ends, near)| (*ends, near.rtt)).collect()
    }

    /// Links that go by way of the gateway's relay, as either end says.
    pub(super) fn relayed(&self) -> impl Iterator<Item = (NodeId, NodeId)> + '_ {
        let relayed = self.near.iter().filter(|(_, near)| near.path == Path::Relayed);
        relayed.flat_map(|(&(from, to), _)| [(from, to), (to, from)])
    }

    /// Bytes per second that links were seen to carry not long ago.
    pub(super) fn rates(&self, now: Instant) -> HashMap<(NodeId, NodeId), f64> {
        let kept = self.carried.keys().filter_map(|ends| Some((*ends, self.rate(*ends, now)?)));
        kept.collect()
    }

    fn rate(&self, ends: (NodeId, NodeId), now: Instant) -> Option<f64> {
        let fresh = |(rate, at): (f64, Instant)| (now.saturating_duration_since(at) < KEPT).then_some(rate);
        let carried = self.carried.get(&ends)?;
        let let_out = carried.let_out.and_then(fresh).map_or(f64::INFINITY, |rate| 2.0 * rate);
        let (least, most) = BELIEVED;
        Some(carried.arrived.and_then(fresh)?.min(let_out).clamp(least, most))
    }

    /// The links there are, for people.
    pub(super) fn summary(&self, now: Instant) -> Vec<LinkSummary> {
        let summary = |(&(from, to), near): (&(NodeId, NodeId), &Near)| LinkSummary {
            from: from.to_string(),
            to: to.to_string(),
            rtt_ms: near.rtt.as_secs_f64() * 1e3,
            path: near.path,
            mbit: self.rate((from, to), now).map(|rate| rate / 125_000.0),
        };
        let mut links: Vec<LinkSummary> = self.near.iter().map(summary).collect();
        links.sort_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
        links
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message;

    fn id(byte: u8) -> NodeId {
        NodeId([byte; 32])
    }

    fn neighbour(to: u8, inward: Option<(u32, u32)>, outward_kbit: Option<u32>) -> Neighbour {
        Neighbour {
            node: [to; 32],
            rtt_us: 100,
            path: Path::Direct,
            inward: inward.map(|(kbit, age_s)| message::Carried { kbit, age_s }),
            outward_kbit,
        }
    }

    #[test]
    fn links_that_are_gone_and_nodes_that_never_were_are_not_kept() {
        let mut links = Links::default();
        let mut say = |from: u8, to: &[u8]| {
            let near: Vec<_> = to.iter().map(|to| neighbour(*to, None, None)).collect();
            links.told(id(from), &near, |node| node.0[0] < 4, Instant::now());
            let mut ends: Vec<[u8; 2]> = links.near.keys().map(|(a, b)| [a.0[0], b.0[0]]).collect();
            ends.sort_unstable();
            ends
        };
        assert_eq!(say(1, &[2, 3, 9]), [[1, 2], [1, 3]]);
        assert_eq!(say(2, &[1]), [[1, 2], [1, 3], [2, 1]]);
        assert_eq!(say(1, &[3]), [[1, 3], [2, 1]]);
        assert_eq!(say(1, &[]), [[2, 1]]);
    }

    #[test]
    fn rates_are_by_direction_and_outlive_their_link_for_a_while() {
        let (mut links, now) = (Links::default(), Instant::now());
        links.told(id(1), &[neighbour(2, Some((8000, 60)), None)], |_| true, now);
        assert_eq!(links.rates(now), HashMap::from([((id(2), id(1)), 1e6)]));
        links.told(id(1), &[], |_| true, now);
        links.lost(id(2));
        assert_eq!(links.rates(now).len(), 1);
        assert!(links.rates(now + KEPT - Duration::from_secs(60)).is_empty());
        links.told(id(3), &[], |_| true, now + KEPT);
        assert!(links.carried.is_empty());
    }

    #[test]
    fn no_more_is_believed_than_the_other_end_lets_out() {
        let (mut links, now) = (Links::default(), Instant::now());
        let rate = |links: &Links| links.rates(now).get(&(id(2), id(1))).copied();
        links.told(id(1), &[neighbour(2, Some((u32::MAX, 0)), None)], |_| true, now);
        assert_eq!(rate(&links), Some(BELIEVED.1));
        links.told(id(2), &[neighbour(1, None, Some(1000))], |_| true, now);
        assert_eq!(rate(&links), Some(250e3));
        links.told(id(1), &[neighbour(2, Some((0, 0)), None)], |_| true, now);
        assert_eq!(rate(&links), Some(BELIEVED.0));
    }
}
