//! Replies that broke off because a node was lost, and go on over another route.
//!
//! Arithmetic is exact and a draw depends on its position alone, so another route draws the same tokens. It is
//! given the prompt and what was drawn, computes all of it at once, draws what was drawn again, and goes on; the client
//! is told what it has not heard. A reply tries nodes that it was lost with last, and not for ever.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;
use transport::NodeId;

use super::{
    State,
    replies::{Reply, age_of, session_of},
};
use crate::{
    message::{Hop, SessionId},
    request::{Event, Failure},
    swarm::{
        admission::{Member, Need, NoRoute, find_route},
        tabs::{Admission, Fare},
    },
};

/// How often a reply may break off and go on.
const MAX_LOSSES: usize = 8;
/// How long it waits for a route, at most.
const PATIENCE: Duration = Duration::from_secs(120);
/// Before a node that it was lost with is tried again, for each time it was lost: a link may come back.
const REST: Duration = Duration::from_millis(500);
/// Between two looks for a route, if no node comes meanwhile.
const PAUSE: Duration = Duration::from_millis(250);

/// How a reply broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    /// The node that is out of reach, or does not serve it.
    pub(super) node: NodeId,
    /// Who says so; itself if its own link to the gateway fell.
    pub(super) by: NodeId,
}

/// A reply that waits for another route.
#[derive(Debug)]
pub(super) struct Broken {
    /// The session that it was last.
    session: SessionId,
    reply: Reply,
    failure: Failure,
    since: Instant,
    /// Before that it is not looked at, unless a node comes; `None` as long as it waits for room.
    retry: Option<Instant>,
}

/// What there is for a reply that broke off.
enum Way {
    /// A route, and the positions to promise on it.
    Open(Vec<Hop>, u32, Option<Fare>),
    /// A route without room.
    Full,
    /// No route before then.
    Missing(Instant),
    /// A route that cannot be paid.
    Unpayable,
}

impl Broken {
    fn until(&self) -> Instant {
        self.reply.deadline.min(self.since + PATIENCE)
    }

    /// When something has to be done about it.
    pub(super) fn wakes(&self) -> Instant {
        self.retry.map_or(self.until(), |retry| retry.min(self.until()))
    }

    /// Which nodes to avoid, of those that are `there`: first all that it was lost with, last none. Where two lose
    /// each other, either may be to blame.
    fn avoided(&self, there: impl Fn(&NodeId) -> bool) -> Vec<Vec<NodeId>> {
        let mut losses: HashMap<NodeId, usize> = HashMap::new();
        for Loss { node, by } in &self.reply.losses {
            *losses.entry(*node).or_default() += 1;
            *losses.entry(*by).or_default() += usize::from(by != node);
        }
        losses.retain(|node, _| there(node));
        let most = losses.values().copied().max().unwrap_or(0);
        let worst = losses.iter().filter(|(_, count)| **count == most).map(|(node, _)| *node);
        let mut sets: Vec<Vec<NodeId>> = vec![losses.keys().copied().collect(), worst.collect()];
        let last = self.reply.losses.last().into_iter().flat_map(|loss| [loss.node, loss.by]);
        sets.extend(last.filter(there).map(|node| vec![node]));
        sets.retain(|set| !set.is_empty());
        sets.push(Vec::new());
        sets
    }
}

impl State {
    /// A session cannot go on where it is: its reply is to go on elsewhere.
    pub(super) fn interrupt(&mut self, session: SessionId, failure: Failure, loss: Loss) {
        if self.running.get(&session).is_none_or(|running| running.losses() >= MAX_LOSSES) {
            return self.break_off(session, failure);
        }
        self.recordings.interrupt(session);
        let Some(mut reply) = self.give_back(session, &failure) else { return };
        reply.losses.push(loss);
        let since = Instant::now();
        let place = self.broken.partition_point(|other| other.session < session);
        self.broken.insert(place, Broken { session, reply, failure, since, retry: Some(since) });
    }

    /// Has replies that broke off go on, oldest first. Whether requests may begin, beside those that cannot.
    pub(super) fn resume(&mut self) -> bool {
        let now = Instant::now();
        let mut place = 0;
        while let Some(broken) = self.broken.get(place) {
            if broken.retry.is_some_and(|retry| retry > now) && !self.members_changed {
                place += 1;
                continue;
            }
            match self.way(place, now) {
                Way::Open(hops, reserved, fare) => {
                    let broken = self.broken.remove(place);
                    self.take_up(broken, hops, reserved, fare);
                }
                Way::Full => {
                    self.broken[place].retry = None;
                    return false;
                }
                Way::Missing(until) => {
                    self.broken[place].retry = Some(until);
                    place += 1;
                }
                Way::Unpayable => {
                    let broken = self.broken.remove(place);
                    self.give_up(broken, None);
                }
            }
        }
        true
    }

    fn way(&mut self, place: usize, now: Instant) -> Way {
        let broken = &self.broken[place];
        let tokens = broken.reply.tokens();
        let need = self.replies.need(tokens.0, tokens.1);
        let rested = broken.since + REST * broken.reply.losses.len() as u32;
        let sets = broken.avoided(|node| self.members.contains_key(node));
        for avoided in &sets {
            if avoided.is_empty() && sets.len() > 1 && now < rested {
                return Way::Missing(rested);
            }
            let hops = match self.hops_without(avoided, need) {
                Ok(hops) => hops,
                Err(NoRoute::Full) => return Way::Full,
                Err(NoRoute::Missing(_) | NoRoute::TooLong { .. }) => continue,
            };
            return match self.tabs.admit(&self.members, &hops, tokens) {
                Admission::Go(fare) => Way::Open(hops, need.likely, fare),
                Admission::Wait => Way::Full,
                Admission::Refused(_) => Way::Unpayable,
            };
        }
        Way::Missing(now + PAUSE)
    }

    fn hops_without(&self, avoided: &[NodeId], need: Need) -> Result<Vec<Hop>, NoRoute> {
        let avoids = |hops: &Vec<Hop>| !hops.iter().any(|hop| avoided.contains(&NodeId(hop.node)));
        if let Some(hops) = self.planned_hops(need).filter(avoids) {
            return Ok(hops);
        }
        let others = self.members.iter().filter(|(node, _)| !avoided.contains(node));
        let others: HashMap<NodeId, Member> = others.map(|(node, member)| (*node, member.clone())).collect();
        find_route(&others, &self.config, need)
    }

    /// Opens a session for a reply that broke off, as old as the one before.
    fn take_up(&mut self, broken: Broken, hops: Vec<Hop>, reserved: u32, fare: Option<Fare>) {
        let Broken { session: before, reply, failure, since, .. } = broken;
        let waited_ms = since.elapsed().as_millis() as u64;
        let open = self.opening(session_of(age_of(before)), hops, &reply, fare);
        let session = open.session;
        tracing::warn!(?before, ?session, tokens = reply.said.len(), waited_ms, %failure, "a reply goes on elsewhere");
        self.recordings.begin(&open, reply.request.tenant, reply.receipt.clone());
        self.resumed += 1;
        self.launch(open, reply, reserved, fare);
    }

    /// Tells a client why its reply broke off.
    fn give_up(&mut self, broken: Broken, failure: Option<Failure>) {
        let Broken { reply, failure: lost, .. } = broken;
        reply.tell(Event::Failed(failure.unwrap_or(lost)));
        if let Some(receipt) = &reply.receipt {
            self.recordings.withdraw(receipt);
        }
    }

    /// Gives up replies that have waited long enough.
    pub(super) fn expire_broken(&mut self, now: Instant) {
        let (late, broken): (Vec<Broken>, _) =
            std::mem::take(&mut self.broken).into_iter().partition(|broken| broken.until() <= now);
        self.broken = broken;
        late.into_iter().for_each(|broken| self.give_up(broken, None));
    }

    /// Gives up all.
    pub(super) fn give_all_up(&mut self, failure: &Failure) {
        let all = std::mem::take(&mut self.broken);
        all.into_iter().for_each(|broken| self.give_up(broken, Some(failure.clone())));
    }

    /// The client of a reply that broke off went away.
    pub(super) fn leave(&mut self, session: SessionId) {
        if let Some(place) = self.broken.iter().position(|broken| broken.session == session) {
            let broken = self.broken.remove(place);
            self.give_up(broken, None);
        }
    }
}

#[cfg(test)]
mod tests;
