//! What the swarm looks like from outside: its nodes, the pipeline that the next request would take if all
//! were idle, and how often that had to change.

use std::collections::HashMap;

use transport::NodeId;

use super::{
    NodeSummary, Seat, SwarmConfig, SwarmStatus,
    admission::{Member, Need, NoRoute, find_route},
};
use crate::message::{Hop, Join};

/// Brings what `status` says of nodes and pipeline up to date, and tells the log of a pipeline that changed.
///
/// `planned` is the way that the planner has most requests take, where it stands.
pub(super) fn look(
    members: &HashMap<NodeId, Member>,
    config: &SwarmConfig,
    planned: Option<Vec<Hop>>,
    status: &mut SwarmStatus,
) {
    let mut nodes: Vec<NodeSummary> = members.iter().map(summary).collect();
    nodes.sort_by(|a, b| (a.from, !a.embedding, a.to, &a.id).cmp(&(b.from, !b.embedding, b.to, &b.id)));
    status.nodes = nodes;
    // What is in use now is no reason to take another way for good.
    let idle: HashMap<NodeId, Member> = members.iter().map(|(id, member)| (*id, member.idle())).collect();
    let found = planned.map_or_else(|| find_route(&idle, config, Need { likely: 1, most: 1 }), Ok);
    let (pipeline, missing) = match found {
        Ok(hops) => (hops.iter().map(seat).collect(), None),
        Err(NoRoute::Missing(gap)) => (Vec::new(), Some(gap.to_string())),
        Err(_) => (Vec::new(), None),
    };
    status.missing = missing;
    if pipeline == status.pipeline {
        return;
    }
    let shown = |seats: &[Seat]| {
        let seat =
            |seat: &Seat| format!("{} {}..{}", &seat.node[..8.min(seat.node.len())], seat.from, seat.to);
        seats.iter().map(seat).collect::<Vec<_>>().join(" > ")
    };
    if !status.pipeline.is_empty() {
        status.replans += 1;
        let (from, to) = (shown(&status.pipeline), shown(&pipeline));
        match &status.missing {
            None => tracing::warn!(from, to, "replanned: another pipeline serves from now on"),
            Some(missing) => tracing::warn!(from, missing, "replanned: no pipeline is left"),
        }
    }
    status.pipeline = pipeline;
}

pub(super) fn seat(hop: &Hop) -> Seat {
    Seat { node: NodeId(hop.node).to_string(), from: hop.shard.layers.start, to: hop.shard.layers.end }
}

fn summary((id, member): (&NodeId, &Member)) -> NodeSummary {
    let Join { shard, address, weight_bytes, device, .. } = &member.join;
    NodeSummary {
        id: id.to_string(),
        address: address.clone(),
        from: shard.layers.start,
        to: shard.layers.end,
        embedding: shard.embedding,
        head: shard.head,
        weight_bytes: *weight_bytes,
        device: device.clone(),
        layer_ns: member.layer_ns,
        gives: member.shares.as_ref().map_or(0, |shares| shares.parts.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{message::Offer, model::Shard};

    fn member(from: usize, to: usize, layer_ns: u64) -> Member {
        let join = Join {
            fingerprint: [0; 32],
            shard: Shard { layers: from..to, embedding: from == 0, head: to == 4 },
            address: "a:1".into(),
            kv_pages: 8,
            sessions: 8,
            positions: 64,
            rows: 8,
            weight_bytes: 1,
            device: String::new(),
            tariff: None,
            offer: Offer::default(),
        };
        Member { layer_ns: Some(layer_ns), ..Member::new(join) }
    }

    #[test]
    fn a_slow_node_is_planned_around_and_a_lost_one_too() {
        let id = |byte: u8| NodeId([byte; 32]);
        let mut members = HashMap::from([
            (id(1), member(0, 2, 100)),
            (id(2), member(2, 4, 100)),
            (id(3), member(2, 4, 150)),
        ]);
        let mut status = SwarmStatus::default();
        let second = |status: &SwarmStatus| status.pipeline[1].node.clone();
        look(&members, &SwarmConfig::of_tests(), None, &mut status);
        assert_eq!((status.replans, second(&status)), (0, id(2).to_string()));
        look(&members, &SwarmConfig::of_tests(), None, &mut status);
        assert_eq!(status.replans, 0);
        // Sessions on it are no reason, slowness is.
        members.get_mut(&id(2)).expect("it joined").reserve(64);
        look(&members, &SwarmConfig::of_tests(), None, &mut status);
        assert_eq!((status.replans, second(&status)), (0, id(2).to_string()));
        members.get_mut(&id(2)).expect("it joined").layer_ns = Some(400);
        look(&members, &SwarmConfig::of_tests(), None, &mut status);
        assert_eq!((status.replans, second(&status)), (1, id(3).to_string()));
        members.remove(&id(3));
        look(&members, &SwarmConfig::of_tests(), None, &mut status);
        assert_eq!((status.replans, second(&status)), (2, id(2).to_string()));
        members.remove(&id(2));
        look(&members, &SwarmConfig::of_tests(), None, &mut status);
        assert_eq!((status.replans, status.missing.as_deref()), (3, Some("layers 2..4")));
    }
}
