//! `/v1/cluster`: the swarm as the planner sees it, by what ways its nodes reach each other, and what the gateway
//! relays between those that find no other.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use transport::quic::nat::RelayStatus;

use super::server::State;
use crate::swarm::{LinkSummary, LiveCluster};

#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    live: &'a LiveCluster,
    paths: &'a [LinkSummary],
    relay: Option<RelayView>,
}

#[derive(Serialize)]
struct RelayView {
    /// The limit; 0 relays nothing.
    bytes_per_s: u64,
    relayed_bytes: u64,
    /// Over the limit.
    dropped_bytes: u64,
    pairs: Vec<PairView>,
}

#[derive(Serialize)]
struct PairView {
    /// The one that dialled, and the other.
    nodes: [String; 2],
    bytes: u64,
}

impl From<RelayStatus> for RelayView {
    fn from(status: RelayStatus) -> Self {
        let RelayStatus { bytes_per_s, relayed_bytes, dropped_bytes, pairs } = status;
        let pair = |pair: transport::quic::nat::RelayedPair| PairView {
            nodes: pair.nodes.map(|node| node.to_string()),
            bytes: pair.bytes,
        };
        Self { bytes_per_s, relayed_bytes, dropped_bytes, pairs: pairs.into_iter().map(pair).collect() }
    }
}

pub(super) async fn cluster(Shared(state): Shared<Arc<State>>) -> Response {
    let (live, paths) = {
        let status = state.swarm.borrow();
        (status.live.clone(), status.links.clone())
    };
    match live {
        Some(live) => {
            let relay = state.config.nat.as_ref().map(|nat| nat.relay().into());
            Json(View { live: &live, paths: &paths, relay }).into_response()
        }
        None => {
            let body = json!({ "error": { "message": "nothing has been planned yet" } });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use transport::{NodeId, quic::nat::RelayedPair};

    use super::*;
    use crate::message::Path;

    /// What is shown beside the cluster does not keep `dolphin plan --gateway` from reading it.
    #[test]
    fn paths_and_relay_stand_beside_the_cluster() {
        let model = shard_planner::Model::uniform("m", 4, 1, 1, 1);
        let live = LiveCluster {
            model,
            node: Vec::new(),
            link: Vec::new(),
            relay_mbit: None,
            plan: None,
            problem: None,
        };
        let link = LinkSummary {
            from: "a".into(),
            to: "b".into(),
            rtt_ms: 1.5,
            path: Path::Punched,
            mbit: Some(80.0),
        };
        let pair = RelayedPair { nodes: [NodeId([1; 32]), NodeId([2; 32])], bytes: 70 };
        let relay = RelayStatus { bytes_per_s: 9, relayed_bytes: 70, dropped_bytes: 3, pairs: vec![pair] };
        let view = View { live: &live, paths: &[link], relay: Some(relay.into()) };
        let text = serde_json::to_string(&view).expect("it is JSON");
        assert_eq!(serde_json::from_str::<LiveCluster>(&text).expect("it is a cluster"), live);
        let shown: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(
            (&shown["paths"][0]["path"], &shown["paths"][0]["mbit"]),
            (&"punched".into(), &80.0.into())
        );
        assert_eq!(shown["relay"]["pairs"][0]["nodes"][1], NodeId([2; 32]).to_string());
        assert_eq!(
            (&shown["relay"]["relayed_bytes"], &shown["relay"]["dropped_bytes"]),
            (&70.into(), &3.into())
        );
    }
}
