//! How near other nodes are to this one, and how much the links from them carry: told to gateways for their plans.
//!
//! What arrives in service is timed anyway. A link on which nothing did is probed while the node is idle: it asks the
//! other end for so many bytes of nothing, one link after the other.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use transport::{NodeId, PathKind, Throughput};

use super::Desk;
use crate::{
    message::{Carried, MAX_PROBE_BYTES, MAX_STAGES, Message, Neighbour, Padding, Probe},
    peers::Way,
};

/// Bytes of the first probe of a link.
const FIRST_BYTES: u32 = 256 << 10;
/// Longer ones tell more, as long as they take no longer than this.
const PROBE_S: f64 = 0.25;
/// How long a node has to have been idle before it probes.
const IDLE: Duration = Duration::from_secs(2);
/// Until a link is probed again on which nothing was timed since, and one whose other end would not.
const FRESH: Duration = Duration::from_secs(900);
const AGAIN: Duration = Duration::from_secs(60);
/// Longest wait for the bytes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two probes that are answered, whoever asks.
const PAUSE: Duration = Duration::from_secs(1);
/// A measurement that was told of so long ago is told of again when there is a newer one.
const OLD_S: u32 = 600;

/// Links to other nodes.
#[derive(Debug, Default)]
pub(super) struct Near {
    /// As they were last looked at.
    pub(super) links: Vec<(NodeId, PathKind)>,
    /// As gateways were last told of them.
    pub(super) told: Vec<Neighbour>,
    prober: Prober,
}

/// Which link is probed when. Pure.
#[derive(Debug, Default)]
struct Prober {
    idle_since: Option<Instant>,
    /// Who was asked last, and until when the bytes are waited for.
    pending: Option<(NodeId, Instant)>,
    /// When peers were asked, and for how many bytes.
    asked: HashMap<NodeId, (Instant, u32)>,
    given: Option<Instant>,
}

impl Prober {
    /// Whether the node has sessions.
    fn note(&mut self, busy: bool, now: Instant) {
        self.idle_since = (!busy).then(|| self.idle_since.unwrap_or(now));
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.idle_since.is_some_and(|since| now.saturating_duration_since(since) >= IDLE)
    }

    /// Whom to ask for how many bytes now, of the links there are and what was seen to arrive on them.
    fn next(&mut self, links: &[(NodeId, Option<Throughput>)], now: Instant) -> Option<(NodeId, u32)> {
        self.asked.retain(|peer, _| links.iter().any(|(known, _)| known == peer));
        if !self.is_idle(now) || self.pending.is_some_and(|(_, until)| until > now) {
            return None;
        }
        let bytes = |&(peer, seen): &(NodeId, Option<Throughput>)| {
            let fitting = seen.map_or(0.0, |seen| seen.bytes_per_s as f64 * PROBE_S) as u32;
            let fitting = fitting.clamp(FIRST_BYTES, MAX_PROBE_BYTES);
            let fresh = seen.is_some_and(|seen| now.saturating_duration_since(seen.at) < FRESH);
            let due = match self.asked.get(&peer) {
                // The first probe went by before the path had found its pace.
                Some((_, bytes)) if fresh => fitting / 2 > *bytes,
                Some((at, _)) => now.saturating_duration_since(*at) >= AGAIN,
                None => !fresh,
            };
            due.then_some((peer, fitting))
        };
        let (peer, bytes) = links.iter().find_map(bytes)?;
        self.pending = Some((peer, now + PATIENCE));
        self.asked.insert(peer, (now, bytes));
        Some((peer, bytes))
    }

    /// The bytes are there, or the other end would not send any; whether they were asked for.
    fn answered(&mut self, peer: NodeId) -> bool {
        self.pending.take_if(|(asked, _)| *asked == peer).is_some()
    }

    /// How many of `bytes` to send: all, or none now.
    fn give(&mut self, bytes: u32, now: Instant) -> u32 {
        let rested = self.given.is_none_or(|given| now.saturating_duration_since(given) >= PAUSE);
        if !rested || self.idle_since.is_none() {
            return 0;
        }
        self.given = Some(now);
        bytes
    }
}

impl Desk {
    /// Probes a link if it is time, and tells gateways how near the nodes are that this one has links to, when that
    /// has changed much.
    pub(super) fn look(&mut self) {
        let now = tokio::time::Instant::now().into_std();
        let gateways = &self.gateways;
        let mut others: Vec<(NodeId, Way)> =
            self.peers.ways().filter(|(peer, _)| !gateways.contains_key(peer)).collect();
        others.sort_unstable_by_key(|(peer, _)| *peer);
        self.near.links = others.iter().map(|(peer, way)| (*peer, way.path)).collect();
        self.near.prober.note(self.state.sessions() > 0 || self.loading.is_some(), now);
        let seen: Vec<_> = others.iter().map(|(peer, way)| (*peer, way.throughput)).collect();
        if let Some((peer, bytes)) = self.near.prober.next(&seen, now) {
            self.peers.send(peer, None, Message::Probe(Probe { bytes }));
        }
        let near = others.iter().take(MAX_STAGES).map(|(peer, way)| neighbour(*peer, way, now));
        self.tell_near(near.collect());
    }

    fn tell_near(&mut self, near: Vec<Neighbour>) {
        let same = |new: &Neighbour| self.near.told.iter().any(|old| is_alike(old, new));
        // As many, so that none is gone either.
        if near.len() == self.near.told.len() && near.iter().all(same) {
            return;
        }
        let welcome: Vec<NodeId> =
            self.gateways.iter().filter(|(_, gateway)| gateway.welcome).map(|(id, _)| *id).collect();
        for id in welcome {
            self.peers.send(id, None, Message::Near(near.clone()));
        }
        self.near.told = near;
    }

    /// Another node asks for bytes of nothing.
    pub(super) fn probed(&mut self, peer: NodeId, probe: Probe) {
        let now = tokio::time::Instant::now().into_std();
        self.near.prober.note(self.state.sessions() > 0 || self.loading.is_some(), now);
        let bytes = self.near.prober.give(probe.bytes, now);
        let padding = Padding { body: vec![0; bytes as usize].into() };
        self.peers.send(peer, None, Message::Padding(padding));
    }

    /// They came.
    pub(super) fn padded(&mut self, peer: NodeId) {
        if !self.near.prober.answered(peer) {
            self.peers.expel(peer, "sent padding that it was not asked for");
        }
    }
}

fn neighbour(peer: NodeId, way: &Way, now: Instant) -> Neighbour {
    let kbit = |bytes_per_s: u64| u32::try_from(bytes_per_s / 125).unwrap_or(u32::MAX);
    let inward = way.throughput.map(|seen| Carried {
        kbit: kbit(seen.bytes_per_s),
        age_s: u32::try_from(now.saturating_duration_since(seen.at).as_secs()).unwrap_or(u32::MAX),
    });
    Neighbour {
        node: *peer.as_bytes(),
        rtt_us: u32::try_from(way.rtt.as_micros()).unwrap_or(u32::MAX),
        path: way.path.into(),
        inward,
        outward_kbit: way.send_limit.map(kbit),
    }
}

/// Whether there is nothing in `new` that is worth telling whoever knows `old`.
fn is_alike(old: &Neighbour, new: &Neighbour) -> bool {
    // Half a millisecond is of no weight, nor is a half more.
    let near = |a: u32, b: u32| a.abs_diff(b) < 500.max(a.min(b) / 2);
    let within = |a: u32, b: u32| a.abs_diff(b) <= a.min(b) / 2;
    let inward = match (old.inward, new.inward) {
        (Some(old), Some(new)) => within(old.kbit, new.kbit) && (old.age_s < OLD_S || new.age_s >= OLD_S),
        (old, new) => old.is_none() == new.is_none(),
    };
    // What goes out is told with what comes in: by itself it changes all the time.
    old.node == new.node && old.path == new.path && near(old.rtt_us, new.rtt_us) && inward
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> NodeId {
        NodeId([byte; 32])
    }

    fn idle(now: Instant) -> Prober {
        Prober { idle_since: Some(now), ..Prober::default() }
    }

    #[test]
    fn idle_nodes_ask_one_after_the_other_and_longer_where_it_is_fast() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut prober = idle(start);
        let again = 6 + AGAIN.as_secs();
        let seen = |bytes_per_s: u64, s: u64| Some(Throughput { bytes_per_s, at: at(s) });
        let unknown = [(id(1), None), (id(2), None)];
        assert_eq!(prober.next(&unknown, at(1)), None, "not yet");
        assert_eq!(prober.next(&unknown, at(3)), Some((id(1), FIRST_BYTES)));
        assert_eq!(prober.next(&unknown, at(4)), None, "one at a time");
        assert!(!prober.answered(id(2)) && prober.answered(id(1)) && !prober.answered(id(1)));
        let fast = [(id(1), seen(100 << 20, 4)), (id(2), None)];
        assert_eq!(prober.next(&fast, at(5)), Some((id(1), MAX_PROBE_BYTES)));
        assert!(prober.answered(id(1)));
        assert_eq!(prober.next(&fast, at(6)), Some((id(2), FIRST_BYTES)));
        // It never answered.
        let slow = [(id(1), seen(100 << 20, 6)), (id(2), None)];
        assert_eq!(prober.next(&slow, at(20)), None);
        assert_eq!(prober.next(&slow, at(again)), Some((id(2), FIRST_BYTES)));
        // What is old is asked for again.
        let old = [(id(1), seen(1000, 6)), (id(2), seen(1000, 2000))];
        assert_eq!(prober.next(&old, at(2000)), Some((id(1), FIRST_BYTES)));
    }

    #[test]
    fn who_serves_neither_asks_nor_gives() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut prober = idle(start);
        assert_eq!((prober.give(9, at(2)), prober.give(9, at(2)), prober.give(9, at(3))), (9, 0, 9));
        prober.note(true, at(3));
        assert_eq!((prober.give(9, at(60)), prober.next(&[(id(1), None)], at(60))), (0, None));
        prober.note(false, at(61));
        assert_eq!((prober.give(9, at(61)), prober.next(&[(id(1), None)], at(61))), (9, None));
    }

    #[test]
    fn gateways_hear_of_what_changed() {
        let at = |kbit: u32, age_s: u32| Neighbour {
            node: [1; 32],
            rtt_us: 1000,
            path: crate::message::Path::Direct,
            inward: Some(Carried { kbit, age_s }),
            outward_kbit: None,
        };
        assert!(is_alike(&at(1000, 0), &at(1400, 50)) && !is_alike(&at(1000, 0), &at(1600, 0)));
        assert!(!is_alike(&at(1000, OLD_S), &at(1000, 1)), "it was measured anew");
        assert!(!is_alike(&Neighbour { inward: None, ..at(1, 0) }, &at(1, 0)));
    }
}
