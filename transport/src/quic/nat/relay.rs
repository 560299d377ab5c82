//! What a gateway relays: whole datagrams of QUIC between two nodes that it introduced. Pure.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::bucket::Bucket;
use super::packet::Token;
use super::{RelayStatus, RelayedPair};
use crate::NodeId;

/// Introductions whose token is relayed at once, all together and of one node.
const MAX_CHANNELS: usize = 512;
const MAX_CHANNELS_OF_A_NODE: usize = 64;
/// How long nothing has to pass until one is forgotten. A link is never silent for so long: see
/// [`crate::quic::MAX_KEEP_ALIVE`].
const IDLE: Duration = Duration::from_secs(15);
/// What may pass at once: what the limit lets through in this time, and at least some packets.
const BURST: Duration = Duration::from_millis(250);
const LEAST_BURST_BYTES: f64 = 65_536.0;

#[derive(Debug)]
pub(super) struct Relay {
    bytes_per_s: u64,
    bucket: Bucket,
    channels: HashMap<Token, Channel>,
    relayed_bytes: u64,
    dropped_bytes: u64,
}

#[derive(Debug)]
struct Channel {
    ends: [End; 2],
    bytes: u64,
    used: Instant,
}

/// One of the two nodes of a channel, where the gateway's link to it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) node: NodeId,
    pub(super) address: SocketAddr,
    /// The gateway's own address in that link, if it has several.
    pub(super) via: Option<IpAddr>,
}

impl Relay {
    pub(super) fn new(bytes_per_s: u64, now: Instant) -> Self {
        let rate = bytes_per_s as f64;
        let burst = (rate * BURST.as_secs_f64()).max(LEAST_BURST_BYTES);
        let bucket = Bucket::new(rate, burst, now);
        Self { bytes_per_s, bucket, channels: HashMap::new(), relayed_bytes: 0, dropped_bytes: 0 }
    }

    /// Relays between two nodes from now on, if there is room for one introduction more.
    pub(super) fn open(&mut self, token: Token, ends: [End; 2], now: Instant) -> bool {
        self.channels.retain(|_, channel| channel.is_alive(now));
        let of = |node: NodeId| self.channels.values().filter(|channel| channel.has(node)).count();
        let room = self.channels.len() < MAX_CHANNELS
            && ends.iter().all(|end| of(end.node) < MAX_CHANNELS_OF_A_NODE);
        if self.bytes_per_s == 0 || !room {
            return false;
        }
        self.channels.insert(token, Channel { ends, bytes: 0, used: now });
        true
    }

    /// Where a datagram of `bytes` that came from `from` goes.
    pub(super) fn forward(
        &mut self,
        token: Token,
        from: SocketAddr,
        bytes: usize,
        now: Instant,
    ) -> Option<End> {
        let channel = self.channels.get_mut(&token).filter(|channel| channel.is_alive(now))?;
        let to = match channel.ends {
            [a, b] if a.address == from => b,
            [a, b] if b.address == from => a,
            _ => return None,
        };
        if !self.bucket.take(bytes as f64, now) {
            self.dropped_bytes += bytes as u64;
            return None;
        }
        channel.used = now;
        channel.bytes += bytes as u64;
        self.relayed_bytes += bytes as u64;
        Some(to)
    }

    /// The link to a node is another now, or has another address.
    pub(super) fn moved(&mut self, to: End) {
        for end in self.channels.values_mut().flat_map(|channel| &mut channel.ends) {
            if end.node == to.node {
                *end = to;
            }
        }
    }

    /// The link to a node is over.
    pub(super) fn gone(&mut self, node: NodeId) {
        self.channels.retain(|_, channel| !channel.has(node));
    }

    pub(super) fn status(&self, now: Instant) -> RelayStatus {
        let used = |channel: &&Channel| {
            channel.bytes > 0 && now.saturating_duration_since(channel.used) < Duration::from_secs(2)
        };
        let mut pairs: Vec<RelayedPair> = self
            .channels
            .values()
            .filter(used)
            .map(|channel| RelayedPair { nodes: channel.ends.map(|end| end.node), bytes: channel.bytes })
            .collect();
        pairs.sort_by_key(|pair| pair.nodes);
        let &Self { bytes_per_s, relayed_bytes, dropped_bytes, .. } = self;
        RelayStatus { bytes_per_s, relayed_bytes, dropped_bytes, pairs }
    }
}

impl Channel {
    fn is_alive(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.used) < IDLE
    }

    fn has(&self, node: NodeId) -> bool {
        self.ends.iter().any(|end| end.node == node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(number: u8) -> End {
        End { node: NodeId([number; 32]), address: SocketAddr::from(([10, 0, 0, number], 1)), via: None }
    }

    #[test]
    fn only_the_two_of_a_token_pass_and_only_to_each_other() {
        let now = Instant::now();
        let mut relay = Relay::new(1 << 20, now);
        let token = Token([1; 16]);
        assert!(relay.open(token, [end(1), end(2)], now));
        assert_eq!(relay.forward(token, end(1).address, 1217, now), Some(end(2)));
        assert_eq!(relay.forward(token, end(2).address, 1217, now), Some(end(1)));
        assert_eq!(relay.forward(token, end(3).address, 1217, now), None);
        assert_eq!(relay.forward(Token([2; 16]), end(1).address, 1217, now), None);
        relay.moved(End { node: end(2).node, ..end(9) });
        let to = relay.forward(token, end(1).address, 100, now);
        assert_eq!(to.map(|to| to.address), Some(end(9).address));
        let status = relay.status(now);
        assert_eq!((status.relayed_bytes, status.pairs.len()), (2534, 1));
        assert_eq!(status.pairs[0].nodes, [end(1).node, end(2).node]);
        relay.gone(end(1).node);
        assert_eq!(relay.forward(token, end(9).address, 100, now), None);
        assert!(relay.status(now).pairs.is_empty());
    }

    #[test]
    fn bandwidth_is_bounded_and_what_is_over_is_counted() {
        let start = Instant::now();
        let mut relay = Relay::new(1_000_000, start);
        let token = Token([1; 16]);
        assert!(relay.open(token, [end(1), end(2)], start));
        let mut passed = 0;
        for ms in 0..2000u64 {
            let now = start + Duration::from_millis(ms);
            // 5 MB/s are sent.
            for _ in 0..5 {
                passed += u64::from(relay.forward(token, end(1).address, 1000, now).is_some()) * 1000;
            }
        }
        assert!((2_000_000..2_300_000).contains(&passed), "{passed}");
        let status = relay.status(start);
        assert_eq!((status.relayed_bytes, status.dropped_bytes), (passed, 10_000_000 - passed));
    }

    #[test]
    fn no_bandwidth_is_no_relay_and_pairs_are_bounded() {
        let now = Instant::now();
        assert!(!Relay::new(0, now).open(Token([1; 16]), [end(1), end(2)], now));
        let mut relay = Relay::new(1, now);
        let open =
            |relay: &mut Relay, number: u8, now| relay.open(Token([number; 16]), [end(0), end(1)], now);
        let opened = (0..=255).filter(|number| open(&mut relay, *number, now)).count();
        assert_eq!(opened, MAX_CHANNELS_OF_A_NODE);
        let idle = relay.forward(Token([0; 16]), end(0).address, 1, now + IDLE);
        assert_eq!(idle, None, "also while nobody asks for another");
        assert!(open(&mut relay, 255, now + IDLE), "pairs that nothing passes between are forgotten");
    }
}
