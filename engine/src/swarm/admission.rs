//! Which nodes have room for one more session.
//!
//! Most replies end long before their limit, so a session is promised the pages that it is likely to
//! need. When many turn out long, a stage runs out and the youngest session waits: its reply comes later,
//! and is the same.

use std::collections::HashMap;

use kernels::backend::PAGE;
use shard_planner::{Gap, Leg, Span, cover};
use transport::NodeId;

use super::SwarmConfig;
use crate::{
    message::{Hop, Join, Parts},
    model::Shard,
};

/// A node that joined, and what of it is in use.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// What it said when it joined.
    pub join: Join,
    /// KV pages promised to sessions.
    pub pages: u32,
    /// Sessions promised.
    pub sessions: u32,
    /// Nanoseconds that a layer takes it in small steps, since it has said so.
    pub layer_ns: Option<u64>,
    /// It is to load other layers and takes no new sessions.
    pub moving: bool,
    /// What it gives of the model to other nodes.
    pub shares: Option<Parts>,
}

/// Positions of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    /// It will probably not go beyond these.
    pub likely: u32,
    /// It cannot go beyond these.
    pub most: u32,
}

/// How long replies get.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replies {
    /// Moving averages, in tokens: of replies, and of their prompts.
    typical: f64,
    prompt: f64,
}

impl Default for Replies {
    fn default() -> Self {
        Self { typical: 256.0, prompt: 512.0 }
    }
}

impl Replies {
    /// A reply begins.
    pub(super) fn asked(&mut self, prompt: u32) {
        self.prompt += (f64::from(prompt) - self.prompt) / 16.0;
    }

    /// Tokens of the usual prompt and reply.
    pub(super) fn usual(&self) -> (u32, u32) {
        (self.prompt.max(1.0) as u32, self.typical.max(1.0) as u32)
    }

    /// A reply has ended.
    pub(super) fn ended(&mut self, tokens: u32) {
        self.typical += (f64::from(tokens) - self.typical) / 16.0;
    }

    /// What a request needs: twice the usual reply, if it may be as long.
    pub(super) fn need(&self, prompt: u32, max_tokens: u32) -> Need {
        let likely = (2.0 * self.typical) as u32 + PAGE as u32;
        let most = prompt.saturating_add(max_tokens);
        Need { likely: prompt.saturating_add(max_tokens.min(likely)), most }
    }
}

/// Why no route was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoRoute {
    /// Nobody holds a part of the model.
    Missing(Gap),
    /// The nodes that do are full.
    Full,
    /// No pipeline has the KV for a session this long, even when idle.
    TooLong {
        /// Positions the nodes could hold.
        limit: u32,
    },
}

impl Member {
    /// A node without sessions.
    pub(super) fn new(join: Join) -> Self {
        Self { join, pages: 0, sessions: 0, layer_ns: None, moving: false, shares: None }
    }

    /// The node as if nobody used it.
    pub(super) fn idle(&self) -> Self {
        Self { pages: 0, sessions: 0, ..self.clone() }
    }

    fn capacity(&self) -> u32 {
        self.join.positions.min(self.join.kv_pages.saturating_mul(PAGE as u32))
    }

    pub(super) fn has_room(&self, need: Need) -> bool {
        let pages = need.likely.div_ceil(PAGE as u32);
        self.sessions < self.join.sessions
            && pages <= self.join.kv_pages.saturating_sub(self.pages)
            && need.most <= self.capacity()
    }

    /// Promises the room of a session.
    pub(super) fn reserve(&mut self, positions: u32) {
        self.pages = self.pages.saturating_add(positions.div_ceil(PAGE as u32));
        self.sessions += 1;
    }

    /// Takes back what [`Member::reserve`] promised.
    pub(super) fn release(&mut self, positions: u32) {
        self.pages = self.pages.saturating_sub(positions.div_ceil(PAGE as u32));
        self.sessions = self.sessions.saturating_sub(1);
    }

    /// A session that was promised `positions` has come to need one page more.
    pub(super) fn grow(&mut self) {
        self.pages = self.pages.saturating_add(1);
    }

    /// It as a stage that runs `shard`.
    pub(super) fn hop(&self, id: &NodeId, shard: Shard) -> Hop {
        Hop { node: *id.as_bytes(), address: self.join.address.clone(), shard }
    }

    /// `speed` is 1 for the fastest. A node of half the speed counts as if it were full.
    fn span(&self, id: &NodeId, config: &SwarmConfig, speed: f64) -> Span {
        let shard = &self.join.shard;
        let may_hold_ends = config.private_ends.as_ref().is_none_or(|ends| ends.contains(id));
        Span {
            layers: shard.layers.clone(),
            embedding: shard.embedding && may_hold_ends,
            head: shard.head && may_hold_ends,
            load: f64::from(self.sessions) / f64::from(self.join.sessions.max(1)) + 1.0 / speed - 1.0,
        }
    }
}

/// Nodes with their speeds: 1 for the fastest, and for one that has not said how fast it is.
pub(super) fn speeds(members: &HashMap<NodeId, Member>) -> impl Iterator<Item = (&NodeId, &Member, f64)> {
    let fastest = members.values().filter_map(|member| member.layer_ns).min().unwrap_or(1).max(1);
    let speed = move |member: &Member| member.layer_ns.map_or(1.0, |own| fastest as f64 / own.max(1) as f64);
    members.iter().map(move |(id, member)| (id, member, speed(member)))
}

/// Finds the stages for a session.
pub(super) fn find_route(
    members: &HashMap<NodeId, Member>,
    config: &SwarmConfig,
    need: Need,
) -> Result<Vec<Hop>, NoRoute> {
    let select = |keep: &dyn Fn(&Member) -> bool| {
        let mut nodes: Vec<(&NodeId, &Member, f64)> =
            speeds(members).filter(|(_, member, _)| !member.moving && keep(member)).collect();
        nodes.sort_unstable_by_key(|(id, ..)| id.as_bytes());
        let spans: Vec<Span> =
            nodes.iter().map(|(id, member, speed)| member.span(id, config, *speed)).collect();
        cover(config.model.layers(), &spans).map(|legs| hops(&nodes, legs))
    };
    select(&|member| member.has_room(need)).or_else(|_| {
        select(&|_| true).map_err(NoRoute::Missing)?;
        match select(&|member| member.capacity() >= need.most) {
            Ok(_) => Err(NoRoute::Full),
            Err(_) => Err(NoRoute::TooLong { limit: longest(members) }),
        }
    })
}

fn longest(members: &HashMap<NodeId, Member>) -> u32 {
    members.values().map(Member::capacity).max().unwrap_or(0)
}

fn hops(nodes: &[(&NodeId, &Member, f64)], legs: Vec<Leg>) -> Vec<Hop> {
    legs.into_iter()
        .map(|leg| {
            let (id, member, _) = nodes[leg.span];
            member.hop(id, Shard { layers: leg.layers, embedding: leg.embedding, head: leg.head })
        })
        .collect()
}
