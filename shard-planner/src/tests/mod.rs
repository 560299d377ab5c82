//! Laws of whole plans, and clusters as people have them.

mod home;
mod laws;
mod swarm;

use crate::{
    cluster::{Node, Rates},
    model::{Model, Weights},
};

/// A dense model of 70 billion parameters: 80 layers of 8192, eight KV heads of 128.
fn model_70b() -> Model {
    let format = |format: &str, bits: u64| Weights {
        format: format.to_owned(),
        embedding: 32_000 * 8192,
        layers: vec![855_654_400 * bits / 80; 80],
        head: 32_000 * 8192,
    };
    Model {
        kv_bytes: vec![4096; 80],
        weights: vec![format("q8", 85), format("q4", 45)],
        layer_flops: Some(2.0 * 855_654_400.0),
        ..Model::uniform("70b", 1, 1, 1, 16_384)
    }
}

/// A node of so many gigabytes that reads so many gigabytes per second.
fn card(id: &str, memory_gb: f64, read_gb: f64) -> Node {
    let rates = Rates { memory_rate: read_gb * 1e9, flops: read_gb * 5e10 };
    Node { rates: Some(rates), ..Node::new(id, (memory_gb * 1e9) as u64) }
}
