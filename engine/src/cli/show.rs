//! What commands print for people.

use std::fmt::Write;

use bytesize::ByteSize;
use engine::swarm::{NodeSummary, SwarmStatus};

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
