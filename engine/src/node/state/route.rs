//! A pipeline that this node is part of, as one gateway uses it.

use std::collections::HashSet;

use transport::NodeId;

use super::{Action, State};
use crate::{
    message::{Hop, Message, Open, SessionId},
    model::Shard,
    scheduler::{Scheduler, SchedulerLimits},
};

/// Steps on their way per stage of a route, and at most: prompts keep a long pipeline full of them.
const STEPS_PER_STAGE: usize = 4;
const MAX_STEPS_IN_FLIGHT: usize = 32;
/// Bytes of steps that a stage may have on their way to the next one: less than a link queues.
const MAX_BYTES_IN_FLIGHT: usize = 12 << 20;

#[derive(Debug)]
pub(super) struct Route {
    pub(super) hops: Vec<Hop>,
    pub(super) stage: usize,
    pub(super) gateway: NodeId,
    pub(super) sessions: HashSet<SessionId>,
    /// Present on the first stage.
    pub(super) scheduler: Option<Scheduler>,
}

impl State {
    /// What the first stage of the session's route may have under way.
    pub(super) fn limits(&self, open: &Open) -> SchedulerLimits {
        let rows = self.identity.rows.min(open.rows as usize);
        let affordable = MAX_BYTES_IN_FLIGHT / (rows * self.identity.row_bytes).max(1);
        SchedulerLimits {
            rows,
            chunk: self.identity.chunk.min(rows),
            in_flight: (open.hops.len() * STEPS_PER_STAGE).min(MAX_STEPS_IN_FLIGHT).min(affordable).max(2),
            stages: open.hops.len(),
        }
    }
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
