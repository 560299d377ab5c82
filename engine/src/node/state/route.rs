//! A pipeline that this node is part of, as one gateway uses it.

use std::collections::HashSet;

use transport::NodeId;

use super::Action;
use crate::{
    message::{Hop, Message, SessionId},
    model::Shard,
    scheduler::Scheduler,
};

#[derive(Debug)]
pub(super) struct Route {
    pub(super) hops: Vec<Hop>,
    pub(super) stage: usize,
    pub(super) gateway: NodeId,
    pub(super) sessions: HashSet<SessionId>,
    /// Present on the first stage.
    pub(super) scheduler: Option<Scheduler>,
}

impl Route {
    pub(super) fn shard(&self) -> &Shard {
        &self.hops[self.stage].shard
    }

    pub(super) fn next(&self) -> Option<&Hop> {
        self.hops.get(self.stage + 1)
    }

    pub(super) fn previous(&self) -> Option<NodeId> {
        self.stage.checked_sub(1).map(|stage| NodeId(self.hops[stage].node))
    }

    pub(super) fn is_last(&self) -> bool {
        self.stage + 1 == self.hops.len()
    }
}

pub(super) fn send_to(hop: &Hop, message: Message) -> Action {
    Action::Send { to: NodeId(hop.node), address: Some(hop.address.clone()), message }
}
