//! What commands print for people.

use std::fmt::Write;

use bytesize::ByteSize;
use engine::{
    audit::clerk::ClerkStatus,
    swarm::{NodeSummary, SwarmStatus},
};
use transport::quic::nat::Reachability;

/// The pipeline as a table: who holds what, and on what.
pub(super) fn pipeline(status: &SwarmStatus) -> String {
    let mut out = String::from("  node      layers                 weights     device\n");
    for node in &status.nodes {
        let weights = ByteSize(node.weight_bytes).to_string();
        let _ = writeln!(
            out,
            "  {:<8}  {:<21}  {:<10}  {}",
            &node.id[..8.min(node.id.len())],
            layers(node),
            weights,
            node.device
        );
    }
    out
}

/// How a node's part in audits goes.
pub(super) fn audits(status: &ClerkStatus) -> String {
    let ClerkStatus { posted, committed, cases, opened, bytes, .. } = status;
    if status.model_known == Some(false) {
        return "  audits   nothing is committed to: the chain does not know this model".to_owned();
    }
    let epoch = posted.map_or_else(String::new, |epoch| format!("epoch {epoch} posted, "));
    format!(
        "  audits   {epoch}{committed} chunks committed to, {cases} cases, {opened} leaves opened, {} of evidence",
        ByteSize(*bytes)
    )
}

fn layers(node: &NodeSummary) -> String {
    let mut parts = Vec::new();
    if node.embedding {
        parts.push("embedding".to_owned());
    }
    if node.from < node.to {
        parts.push(format!("{}..{}", node.from, node.to));
    }
    if node.head {
        parts.push("head".to_owned());
    }
    parts.join(" + ")
}

/// What the planner predicts of the ways in force, if it has planned.
pub(super) fn predicted(status: &SwarmStatus) -> String {
    let plan = status.live.as_ref().and_then(|live| live.plan.as_ref());
    plan.map_or_else(String::new, |plan| {
        let (rate, ms, slowest) = (plan.tokens_per_s, plan.tpot_s * 1e3, &plan.bottleneck);
        format!("; predicted when full: {rate:.1} tokens/s, {ms:.1} ms per token, limited by {slowest}")
    })
}

/// Where a node is seen, if that is elsewhere than it is.
pub(super) fn place(place: &Reachability) -> Option<String> {
    let seen = place.observed.filter(|_| place.is_translated)?;
    let (ports, filtering) = (place.mapping, place.filtering);
    Some(format!("  seen at  {seen} (behind NAT; port: {ports}; filtering: {filtering})"))
}

/// A curl line that can be pasted as it stands.
pub(super) fn curl(url: &str, model: &str, key: bool) -> String {
    let key = if key { " \\\n    -H 'Authorization: Bearer YOUR_KEY'" } else { "" };
    let body = serde_json::json!({
        "model": model,
        "stream": true,
        "messages": [{"role": "user", "content": "What is Dolphin?"}],
    });
    format!(
        "  curl -N {url}/v1/chat/completions \\\n    -H 'Content-Type: application/json'{key} \\\n    -d '{body}'"
    )
}
