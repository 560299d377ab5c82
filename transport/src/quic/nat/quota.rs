//! How often nodes are introduced, over all the links that each has. Pure.

use std::collections::HashMap;
use std::time::Instant;

use super::bucket::Bucket;
use crate::NodeId;

/// Introductions a second that a node may ask for, and at once: a route's worth.
const ASKS_PER_S: f64 = 1.0;
const ASKS_AT_ONCE: f64 = 16.0;
/// Introductions a second to a node that others ask for, and at once: what it goes along with, and fewer than it may
/// be relayed in.
const ASKED_PER_S: f64 = 2.0;
const ASKED_AT_ONCE: f64 = 32.0;
/// Nodes that are remembered. They are forgotten once they may ask for as much as one that was never seen.
const MAX_QUOTAS: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Quotas(HashMap<NodeId, Quota>);

#[derive(Debug)]
struct Quota {
    asks: Bucket,
    asked: Bucket,
}

impl Quotas {
    /// Whether `node` may ask for one introduction more.
    pub(super) fn may_ask(&mut self, node: NodeId, now: Instant) -> bool {
        self.of(node, now).asks.take(1.0, now)
    }

    /// Whether `node` may be asked for once more.
    pub(super) fn may_be_asked_for(&mut self, node: NodeId, now: Instant) -> bool {
        self.of(node, now).asked.take(1.0, now)
    }

    fn of(&mut self, node: NodeId, now: Instant) -> &mut Quota {
        if self.0.len() >= MAX_QUOTAS && !self.0.contains_key(&node) {
            self.0.retain(|_, quota| !quota.asks.is_full(now) || !quota.asked.is_full(now));
            // Who has so many keys gains nothing by having one of them forgotten.
            if self.0.len() >= MAX_QUOTAS
                && let Some(any) = self.0.keys().next().copied()
            {
                self.0.remove(&any);
            }
        }
        self.0.entry(node).or_insert_with(|| Quota {
            asks: Bucket::new(ASKS_PER_S, ASKS_AT_ONCE, now),
            asked: Bucket::new(ASKED_PER_S, ASKED_AT_ONCE, now),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn node(number: u32) -> NodeId {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_be_bytes());
        NodeId(id)
    }

    #[test]
    fn asking_and_being_asked_for_are_limited_apart() {
        let (mut quotas, now) = (Quotas::default(), Instant::now());
        let asks = (0..100).filter(|_| quotas.may_ask(node(1), now)).count();
        let asked = (0..100).filter(|_| quotas.may_be_asked_for(node(1), now)).count();
        assert_eq!((asks, asked), (ASKS_AT_ONCE as usize, ASKED_AT_ONCE as usize));
        assert!(quotas.may_ask(node(2), now));
        assert!(quotas.may_ask(node(1), now + Duration::from_secs(2)));
    }

    #[test]
    fn few_nodes_are_remembered_and_those_that_asked_longest() {
        let (mut quotas, now) = (Quotas::default(), Instant::now());
        for number in 0..2 * MAX_QUOTAS as u32 {
            assert!(quotas.may_ask(node(number), now));
            assert!(quotas.0.len() <= MAX_QUOTAS);
        }
        let later = now + Duration::from_secs(60);
        while quotas.may_ask(node(0), later) {}
        assert!(quotas.may_ask(node(1 << 20), later));
        assert!(
            !quotas.may_ask(node(0), later),
            "it is not forgotten for others that have long asked nothing"
        );
    }
}
