//! Which nodes can give parts of the model to others.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;
use transport::NodeId;

use super::{Action, State};
use crate::message::{Holder, MAX_HOLDERS, Message, Parts};

/// How long a node needs not be told again that it may give to another.
const TOLD: Duration = Duration::from_secs(600);
/// Most such pairs that are remembered.
const MAX_PAIRS: usize = 1 << 12;

/// Who was told to give to whom, and when.
#[derive(Debug, Default)]
pub(super) struct Leaves(HashMap<(NodeId, NodeId), Instant>);

impl Leaves {
    /// Whether `holder` is to be told that it may give to `taker`; `None` if there are too many such pairs.
    fn is_new(&mut self, holder: NodeId, taker: NodeId, now: Instant) -> Option<bool> {
        if self.0.get(&(holder, taker)).is_some_and(|told| now.duration_since(*told) < TOLD) {
            return Some(false);
        }
        if self.0.len() >= MAX_PAIRS {
            self.0.retain(|_, told| now.duration_since(*told) < TOLD);
        }
        if self.0.len() >= MAX_PAIRS {
            return None;
        }
        self.0.insert((holder, taker), now);
        Some(true)
    }

    /// A node is gone, and with it what it was told.
    pub(super) fn lost(&mut self, peer: NodeId) {
        self.0.retain(|(holder, _), _| *holder != peer);
    }
}

impl State {
    /// A member says what it can give.
    pub(super) fn shares(&mut self, peer: NodeId, parts: Parts) {
        if let Some(member) = self.members.get_mut(&peer) {
            member.shares = Some(parts);
            self.members_changed = true;
        }
    }

    /// A node asks who can give it these parts. Those that are told of are told of it: the nearest, as far as that
    /// is known.
    pub(super) fn seek(&mut self, peer: NodeId, seek: &Parts, now: Instant) {
        let able = self.members.iter().filter_map(|(id, member)| {
            let shares = member.shares.as_ref().filter(|shares| shares.catalogue == seek.catalogue)?;
            let both = |part: &u16| shares.parts.binary_search(part).is_ok();
            let parts: Vec<u16> = seek.parts.iter().copied().filter(both).collect();
            let address = member.join.address.clone();
            (*id != peer && !parts.is_empty()).then(|| (*id, Holder { node: *id.as_bytes(), address, parts }))
        });
        let mut able: Vec<_> = able.collect();
        // Among equals by chance, so that no few are asked for everything.
        able.sort_by_cached_key(|(id, _)| {
            (self.planning.links.rtt(peer, *id).unwrap_or(Duration::MAX), super::random())
        });
        let mut holders = Vec::new();
        for (id, holder) in able {
            match self.leaves.is_new(id, peer, now) {
                None => break,
                Some(false) => {}
                Some(true) => {
                    self.actions.push(Action::Send { to: id, message: Message::Lend(*peer.as_bytes()) });
                }
            }
            holders.push(holder);
            if holders.len() == MAX_HOLDERS {
                break;
            }
        }
        self.actions.push(Action::Send { to: peer, message: Message::Holders(holders) });
    }
}
