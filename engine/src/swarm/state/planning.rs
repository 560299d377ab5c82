//! Who should hold what, and which way requests take: the gateway's side of the planner.
//!
//! Whenever something changes that a plan depends on, and once in a while, a [`Sketch`] of the swarm goes to the
//! planner, beside this task. Its answer tells newcomers what to load, nodes at work to load other layers, and
//! requests which ways to take. A node that is to load is given no new sessions; it is told once its last one is
//! over, so no reply is lost.

use std::{collections::HashMap, ops::Range, sync::Arc, time::Duration};

use kernels::backend::PAGE;
use shard_planner::{Demand, Objective, demand::Limits};
use tokio::time::Instant;
use transport::NodeId;

use super::{Action, Running, State, links::Links, service::Service};
use crate::{
    message::{Ask, Assign, Cannot, Hop, KvMemory, Message, Neighbour, Offer},
    model::Shard,
    swarm::{
        LinkSummary, LiveCluster, MoveSummary, Seat, SwarmConfig,
        admission::{Member, Need, speeds},
        sketch::{Lane, Seen, Sketch, Verdict},
        view::seat,
    },
};

/// Between two plans: what comes together is planned for together.
const PAUSE: Duration = Duration::from_secs(1);
/// After a change: a node's pace takes some steps to show.
const SETTLE: Duration = Duration::from_millis(400);
/// Longest time without a plan.
const INTERVAL: Duration = Duration::from_secs(60);
/// For so long after a move another one has to be worth so much more: what is measured has not settled, and sessions
/// were held up already.
const REST: Duration = Duration::from_secs(60);
const WORTH: f64 = 1.5;
/// How long a node's last sessions are waited for before a move is given up.
const DRAIN: Duration = Duration::from_secs(120);
/// How long layers that a node was told to load count as held before it joins.
const LOADING: Duration = Duration::from_secs(600);
/// How long a node keeps its layers after a move of it failed; it doubles up to [`LONGEST_BAR`].
const FIRST_BAR: Duration = Duration::from_secs(60);
const LONGEST_BAR: Duration = Duration::from_secs(3600);
/// Nodes that may wait to be told, or be loading, at once.
const MAX_COMING: usize = 256;

/// See the module.
#[derive(Debug)]
pub(in crate::swarm) struct Planning {
    model: Arc<shard_planner::Model>,
    /// Something changed that a plan depends on.
    stale: bool,
    /// Since when, once that was seen.
    since: Option<Instant>,
    /// A plan is being made.
    busy: bool,
    last: Option<Instant>,
    /// Nodes that wait to be told what to load.
    asking: HashMap<NodeId, Offer>,
    /// Nodes that were told, and until when they are waited for.
    coming: HashMap<NodeId, Coming>,
    /// Members that are to load other layers.
    moves: HashMap<NodeId, Moving>,
    /// Members whose last move failed.
    barred: HashMap<NodeId, Barred>,
    pub(super) links: Links,
    service: Service,
    lanes: Vec<Lane>,
    live: Option<Arc<LiveCluster>>,
    moved: u64,
    last_moved: Option<Instant>,
    failed: u64,
}

#[derive(Debug)]
struct Coming {
    shard: Shard,
    until: Instant,
    offer: Offer,
}

#[derive(Debug)]
struct Moving {
    shard: Shard,
    until: Instant,
    /// It has been told; before, its sessions end.
    told: bool,
}

#[derive(Debug)]
struct Barred {
    until: Instant,
    wait: Duration,
}

impl Planning {
    pub(super) fn new(config: &SwarmConfig) -> Self {
        Self {
            model: Arc::new(config.model.clone()),
            stale: false,
            since: None,
            busy: false,
            last: None,
            asking: HashMap::new(),
            coming: HashMap::new(),
            moves: HashMap::new(),
            barred: HashMap::new(),
            links: Links::default(),
            service: Service::default(),
            lanes: Vec::new(),
            live: None,
            moved: 0,
            last_moved: None,
            failed: 0,
        }
    }

    /// A plan may have to change.
    pub(super) fn disturb(&mut self) {
        self.stale = true;
    }

    /// A node is out of reach.
    pub(super) fn lost(&mut self, peer: NodeId) {
        self.asking.remove(&peer);
        self.moves.remove(&peer);
        self.links.lost(peer);
        self.stale = true;
    }

    /// When the next plan is due.
    fn due(&self) -> Option<Instant> {
        let rested = self.last.map(|last| last + if self.stale { PAUSE } else { INTERVAL });
        rested.max(self.since.map(|since| since + SETTLE))
    }

    /// When there is something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let due = self.due().filter(|_| !self.busy);
        due.into_iter().chain(self.moves.values().map(|moving| moving.until)).min()
    }

    /// What people see of it.
    pub(super) fn view(&self) -> (Vec<MoveSummary>, [u64; 2], Option<Arc<LiveCluster>>) {
        let summary = |(id, moving): (&NodeId, &Moving)| MoveSummary {
            node: id.to_string(),
            from: moving.shard.layers.start,
            to: moving.shard.layers.end,
            loading: moving.told,
        };
        let mut moves: Vec<MoveSummary> = self.moves.iter().map(summary).collect();
        moves.sort_by(|a, b| a.node.cmp(&b.node));
        (moves, [self.moved, self.failed], self.live.clone())
    }

    /// Links between nodes, as they say.
    pub(super) fn links(&self, now: Instant) -> Vec<LinkSummary> {
        self.links.summary(now)
    }

    fn is_barred(&self, peer: &NodeId, now: Instant) -> bool {
        self.barred.get(peer).is_some_and(|barred| barred.until > now)
    }

    fn bar(&mut self, peer: NodeId, now: Instant) {
        let wait = self.barred.get(&peer).map_or(FIRST_BAR, |barred| (barred.wait * 2).min(LONGEST_BAR));
        self.barred.insert(peer, Barred { until: now + wait, wait });
        self.failed += 1;
        self.stale = true;
    }
}

impl State {
    /// A node asks what to load.
    pub(super) fn asked(&mut self, peer: NodeId, ask: Ask) {
        if let Err(reason) = self.may_join(peer, &ask.fingerprint) {
            return self.refuse(peer, reason);
        }
        let planning = &mut self.planning;
        if planning.asking.len() + planning.coming.len() >= MAX_COMING {
            return self.refuse(peer, "too many nodes are loading; try again later".into());
        }
        planning.coming.remove(&peer);
        planning.asking.insert(peer, ask.offer);
        planning.stale = true;
    }

    /// A member holds what it says it holds: it is new, came back, or has moved.
    pub(super) fn settled(&mut self, peer: NodeId, layers: &Range<usize>) {
        let planning = &mut self.planning;
        planning.coming.remove(&peer);
        planning.stale = true;
        if let Some(moving) = planning.moves.remove(&peer)
            && moving.shard.layers == *layers
        {
            planning.moved += 1;
            planning.barred.remove(&peer);
            tracing::info!(node = %peer.short(), ?layers, "a node has moved");
        }
    }

    /// A node does not hold what it was told to.
    pub(super) fn cannot(&mut self, peer: NodeId, cannot: &Cannot, now: Instant) {
        let reason = &cannot.reason;
        tracing::warn!(node = %peer.short(), layers = ?cannot.shard.layers, %reason, "a node does not move");
        self.keep(peer, now);
    }

    /// Gives up a move.
    fn keep(&mut self, peer: NodeId, now: Instant) {
        self.planning.moves.remove(&peer);
        self.planning.bar(peer, now);
        if let Some(member) = self.members.get_mut(&peer) {
            member.moving = false;
        }
        self.members_changed = true;
        self.admit();
    }

    /// A node says how near others are.
    pub(super) fn near(&mut self, peer: NodeId, near: &[Neighbour], now: Instant) {
        let members = &self.members;
        self.planning.links.told(peer, near, |node| members.contains_key(&node), now);
        self.planning.stale = true;
        self.members_changed = true;
    }

    /// A reply has ended well: its pace shows what the plan is worth.
    pub(super) fn replied(&mut self, running: &Running, now: Instant) {
        let Some(first) = running.first else { return };
        let same = |lane: &&Lane| self.lane_hops(lane, |_| true).is_some_and(|hops| hops == running.hops);
        let Some(lane) = self.planning.lanes.iter().find(same) else { return };
        let nodes: Vec<NodeId> = lane.stages.iter().map(|(node, _)| *node).collect();
        let (pace, tpot_s) = ((running.drawn - 1, now - first), lane.tpot_s);
        if self.planning.service.replied(&nodes, pace, tpot_s, now) {
            self.planning.stale = true;
        }
    }

    /// Whether what is missing may soon be held: a node is to load it, or the planner may find one.
    pub(super) fn may_mend(&self) -> bool {
        let planning = &self.planning;
        let movable = || self.members.values().any(|member| member.join.offer.movable);
        let asked = self.config.replan && (planning.stale || planning.busy) && movable();
        asked || !planning.moves.is_empty()
    }

    /// Sees to moves, and asks for a plan if it is time; called after every event.
    pub(in crate::swarm) fn steer(&mut self, now: Instant) {
        self.see_to_moves(now);
        let planning = &mut self.planning;
        planning.coming.retain(|_, coming| coming.until > now);
        planning.barred.retain(|_, barred| barred.until + LONGEST_BAR > now);
        if planning.stale {
            planning.since.get_or_insert(now);
        }
        let asked = planning.stale && !planning.asking.is_empty();
        let due = asked || planning.due().is_some_and(|due| due <= now);
        if planning.busy || !due {
            return;
        }
        (planning.stale, planning.since, planning.last) = (false, None, Some(now));
        let sketch = self.sketch(now);
        if !sketch.nodes.is_empty() {
            self.planning.busy = true;
            self.actions.push(Action::Plan(Box::new(sketch)));
        }
    }

    /// Tells nodes to load whose last session is over, and gives up on those that take too long.
    fn see_to_moves(&mut self, now: Instant) {
        let mut late = Vec::new();
        for (id, moving) in &mut self.planning.moves {
            let idle = self.members.get(id).is_some_and(|member| member.sessions == 0);
            if !moving.told && idle {
                (moving.told, moving.until) = (true, now + LOADING);
                self.members_changed = true;
                let assign = Assign { shard: moving.shard.clone() };
                self.actions.push(Action::Send { to: *id, message: Message::Assign(assign) });
            } else if moving.until <= now {
                late.push(*id);
            }
        }
        for id in late {
            tracing::warn!(node = %id.short(), "a move took too long and is given up");
            self.keep(id, now);
        }
    }

    /// The swarm as the planner takes it.
    fn sketch(&self, now: Instant) -> Sketch {
        let planning = &self.planning;
        // One move at a time: what it brings should be seen before the next.
        let still = !self.config.replan || !planning.moves.is_empty();
        let layers = self.config.model.layers();
        let ends = self.config.private_ends.as_ref();
        let member = |(id, member): (&NodeId, &Member)| {
            let shard = &member.join.shard;
            // Ranges without their ends, and ends alone, are no business of the planner.
            let begins = shard.embedding || shard.layers.start > 0 || ends.is_some();
            let whole = begins && (shard.head || shard.layers.end < layers || ends.is_some());
            // One that asks has begun anew, whether or not its old link is known to be gone.
            if shard.layers.is_empty() || !whole || planning.asking.contains_key(id) {
                return None;
            }
            let barred = planning.is_barred(id, now);
            let moving = planning.moves.get(id);
            let held = moving.map_or(&shard.layers, |moving| &moving.shard.layers).clone();
            Some(Seen {
                id: *id,
                held: Some(held),
                serves: !member.moving,
                pinned: still || barred || !member.join.offer.movable,
                offer: member.join.offer.clone(),
                weight_bytes: if moving.is_some() { 0 } else { member.join.weight_bytes },
                layer_ns: member.layer_ns,
                kv_bytes: self.scarce_kv(member).filter(|_| moving.is_none()),
                sessions: Some(member.join.sessions),
            })
        };
        let absent = |id: NodeId, held: Option<Range<usize>>, offer: &Offer| Seen {
            id,
            pinned: held.is_some(),
            held,
            serves: false,
            offer: offer.clone(),
            weight_bytes: 0,
            layer_ns: None,
            kv_bytes: None,
            sessions: None,
        };
        let mut nodes: Vec<Seen> = self.members.iter().filter_map(member).collect();
        let away = |id: &NodeId| !self.members.contains_key(id);
        let coming = planning.coming.iter().filter(|(id, _)| away(id));
        nodes.extend(coming.map(|(id, c)| absent(*id, Some(c.shard.layers.clone()), &c.offer)));
        nodes.extend(planning.asking.iter().map(|(id, offer)| absent(*id, None, offer)));
        nodes.sort_by_key(|node| node.id);
        Sketch {
            model: planning.model.clone(),
            demand: self.demand(),
            nodes,
            links: planning.links.rtts(),
            rates: planning.links.rates(now),
            relayed: planning.links.relayed().collect(),
            relay_bytes_per_s: self.config.relay_bytes_per_s,
            slower: planning.service.factors(now),
            near: HashMap::new(),
        }
    }

    /// What a plan is made for: as many replies as may run at once, of the usual length, each with the KV that it is
    /// promised.
    fn demand(&self) -> Demand {
        let (prompt, output) = self.replies.usual();
        let pages =
            self.replies.need(prompt, u32::MAX).likely.min(self.config.positions).div_ceil(PAGE as u32);
        Demand {
            format: self.config.model.weights[0].format.clone(),
            prompt,
            output,
            context: pages * PAGE as u32,
            concurrency: u32::try_from(self.config.running).unwrap_or(u32::MAX).max(1),
            objective: Objective::Throughput(Limits::default()),
        }
    }

    /// Bytes of KV that a stage turned out to have, if that is less than its sessions could fill.
    fn scarce_kv(&self, member: &Member) -> Option<u64> {
        let join = &member.join;
        let wanted = u64::from(join.sessions) * u64::from(join.positions.div_ceil(PAGE as u32));
        let each: u64 = self.config.model.kv_bytes[join.shard.layers.clone()].iter().sum();
        // The last page did not fit.
        let pages = u64::from(join.kv_pages) + 1;
        (pages <= wanted).then(|| each.saturating_mul(PAGE as u64).saturating_mul(pages))
    }

    /// The planner has answered.
    pub(in crate::swarm) fn planned(&mut self, verdict: Verdict, now: Instant) {
        let Verdict { loads, idle, lanes, before, after, live } = verdict;
        self.planning.busy = false;
        self.members_changed = true;
        if self.planning.lanes != lanes {
            tracing::info!(ways = lanes.len(), "requests take other ways");
            self.planning.lanes = lanes;
        }
        self.planning.live = Some(Arc::new(live));
        let resting = self.planning.last_moved.is_some_and(|last| now < last + REST);
        let slight = resting && before > 0.0 && after < before * WORTH;
        for (id, layers) in loads {
            let shard = self.shard(layers);
            if let Some(offer) = self.planning.asking.remove(&id) {
                self.assign(id, shard, offer, now);
            } else if slight || self.planning.is_barred(&id, now) {
                // Not now; or it refused while the plan was made.
            } else if let Some(member) = self.members.get_mut(&id).filter(|member| !member.moving) {
                let (from, to) = (&member.join.shard.layers, &shard.layers);
                tracing::warn!(node = %id.short(), ?from, ?to, before, after, "replanned: a node loads other layers");
                member.moving = true;
                self.planning.last_moved = Some(now);
                self.planning.moves.insert(id, Moving { shard, until: now + DRAIN, told: false });
            }
        }
        for id in idle {
            if let Some(offer) = self.planning.asking.remove(&id) {
                self.fill(id, offer, now);
            }
        }
        self.admit();
    }

    /// The planner gave no answer: newcomers get one all the same.
    pub(in crate::swarm) fn unplanned(&mut self) {
        self.planning.busy = false;
        let now = Instant::now();
        for (id, offer) in std::mem::take(&mut self.planning.asking) {
            self.fill(id, offer, now);
        }
    }

    /// A newcomer that no pipeline needs, or not yet, stands by where the least speed serves.
    fn fill(&mut self, peer: NodeId, offer: Offer, now: Instant) {
        let others = speeds(&self.members).filter(|(id, ..)| **id != peer);
        let others = others.map(|(_, member, speed)| (member.join.shard.layers.clone(), speed));
        let coming = self.planning.coming.values().map(|coming| (coming.shard.layers.clone(), 1.0));
        let held: Vec<_> = others.chain(coming).collect();
        let fits = |layers: &Range<usize>| self.has_room(&offer, layers);
        match shard_planner::vacancy(&self.config.model.weights[0], &held, fits) {
            Some(layers) => self.assign(peer, self.shard(layers), offer, now),
            None => {
                let Offer { weight_bytes, kv, .. } = offer;
                let reason = format!(
                    "{weight_bytes} bytes for weights and {kv} hold none of the layers that are needed most with a session"
                );
                self.refuse(peer, reason);
            }
        }
    }

    /// Whether a node has memory for these layers and the KV of one session.
    fn has_room(&self, offer: &Offer, layers: &Range<usize>) -> bool {
        let model = &self.config.model;
        let weights = model.weights[0].of(layers);
        let kv = model.kv_bytes[layers.clone()].iter().sum::<u64>() * u64::from(self.demand().context);
        let left = match offer.kv {
            KvMemory::Own(bytes) => bytes,
            KvMemory::Shared(bytes) => bytes.saturating_sub(weights),
        };
        weights <= offer.weight_bytes && kv <= left
    }

    fn assign(&mut self, peer: NodeId, shard: Shard, offer: Offer, now: Instant) {
        let assign = Assign { shard: shard.clone() };
        self.planning.coming.insert(peer, Coming { shard, until: now + LOADING, offer });
        self.planning.stale = true;
        self.actions.push(Action::Send { to: peer, message: Message::Assign(assign) });
    }

    fn shard(&self, layers: Range<usize>) -> Shard {
        let ends = self.config.private_ends.is_none();
        Shard {
            embedding: ends && layers.start == 0,
            head: ends && layers.end == self.config.model.layers(),
            layers,
        }
    }

    /// The stages of a session on the planned ways: the one that has fewest sessions for its part of the
    /// requests, of those that have room. `None` leaves it to whatever else covers the model.
    pub(super) fn planned_hops(&self, need: Need) -> Option<Vec<Hop>> {
        let open = self.planning.lanes.iter().filter_map(|lane| {
            let hops = self.lane_hops(lane, |member| member.has_room(need))?;
            let active = self.running.values().filter(|running| running.hops == hops).count();
            Some(((active + 1) as f64 / lane.weight.max(1e-9), hops))
        });
        open.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, hops)| hops)
    }

    /// The stages of the way that carries most, or of the one that did as long as it carries half of that:
    /// small changes of speed are no change of plan.
    pub(super) fn main_hops(&self, before: &[Seat]) -> Option<Vec<Hop>> {
        let most = self.planning.lanes.first()?.weight;
        let wide = self.planning.lanes.iter().filter(|lane| lane.weight >= most / 2.0);
        let mut ways = wide.filter_map(|lane| self.lane_hops(lane, |_| true)).peekable();
        let first = ways.peek().cloned();
        ways.find(|hops| hops.iter().map(seat).eq(before.iter().cloned())).or(first)
    }

    /// The stages of a way, as long as its nodes are there and hold what it needs.
    fn lane_hops(&self, lane: &Lane, keep: impl Fn(&Member) -> bool) -> Option<Vec<Hop>> {
        let usable = |id: &NodeId| {
            let member = self.members.get(id)?;
            (!member.moving && keep(member)).then_some(member)
        };
        let stage = |(id, layers): &(NodeId, Range<usize>)| {
            let member = usable(id)?;
            let held = &member.join.shard.layers;
            let within = held.start <= layers.start && layers.end <= held.end;
            within.then(|| member.hop(id, self.shard(layers.clone())))
        };
        let mut hops: Vec<Hop> = lane.stages.iter().map(stage).collect::<Option<_>>()?;
        if let Some(ends) = &self.config.private_ends {
            let layers = self.config.model.layers();
            let end = |holds: fn(&Shard) -> bool, shard: Shard| {
                let able = ends.iter().filter_map(|id| Some((id, usable(id)?)));
                let mut able = able.filter(|(_, member)| holds(&member.join.shard));
                able.next().map(|(id, member)| member.hop(id, shard))
            };
            let first = Shard { layers: 0..0, embedding: true, head: false };
            let last = Shard { layers: layers..layers, embedding: false, head: true };
            hops.insert(0, end(|shard| shard.embedding, first)?);
            hops.push(end(|shard| shard.head, last)?);
        }
        Some(hops)
    }
}
