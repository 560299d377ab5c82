//! `dolphin inspect`: what a model is and what it takes to hold it.

use std::fmt;

use kernels::rope::RopeScaling;
use serde::Serialize;

use crate::model::{Model, ModelError, Quantisation};

/// What there is to know about a model without reading its weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Name for people.
    pub name: String,
    /// Directory or file; `None` for the embedded model.
    pub path: Option<String>,
    /// Family as in `config.json`.
    pub family: String,
    /// Number of weights.
    pub parameters: u64,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Token ids.
    pub vocabulary: usize,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Longest context.
    pub context: u32,
    /// Sliding window and the number of layers that have it.
    pub window: Option<(u32, usize)>,
    /// Rotary base and scaling in words.
    pub rope: String,
    /// Formats of the stored matrices.
    pub stored_as: Vec<String>,
    /// Size as stored.
    pub stored: Sizes,
    /// Size in memory in each quantisation.
    pub memory: Vec<Memory>,
    /// Tokens of the tokenizer; `None` if there is none.
    pub tokenizer: Option<usize>,
    /// Why the tokenizer cannot be used.
    pub tokenizer_error: Option<String>,
    /// Whether there is a chat template.
    pub chat_template: bool,
}

/// Bytes of a model's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Embedding.
    pub embedding: u64,
    /// The largest layer.
    pub layer: u64,
    /// Final norm and head (for a tied head the norm alone).
    pub head: u64,
    /// Everything, with a tied head once.
    pub total: u64,
}

/// What a model takes in one quantisation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The quantisation.
    pub quantisation: Quantisation,
    /// Weights.
    pub weights: Sizes,
    /// Keys and values of one token over all layers.
    pub kv_bytes_per_token: u64,
    /// What machines compare before they work together, in hexadecimal.
    pub fingerprint: String,
}

impl Inspection {
    /// Inspects an opened model.
    ///
    /// # Errors
    /// [`ModelError::Io`] if the tokenizer's file cannot be read; a tokenizer that is missing or unusable
    /// is part of the answer.
    pub fn of(model: &Model) -> Result<Self, ModelError> {
        let config = model.config();
        let (tokenizer, tokenizer_error) = match model.tokenizer() {
            Ok(tokenizer) => (Some(tokenizer.size()), None),
            Err(error @ ModelError::Io { .. }) => return Err(error),
            Err(error) => (None, Some(error.to_string())),
        };
        let windowed = config.windows.iter().flatten().count();
        Ok(Self {
            name: model.name().to_owned(),
            path: model.path().map(|path| path.display().to_string()),
            family: config.family.clone(),
            parameters: model.parameters(),
            layers: config.layers,
            hidden: config.hidden,
            intermediate: config.intermediate,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            vocabulary: config.vocabulary,
            tied: config.tied,
            context: config.max_positions,
            window: config.windows.iter().flatten().next().map(|&window| (window, windowed)),
            rope: format!("theta {}, {}", config.rope.theta, scaling(&config.rope.scaling)),
            stored_as: model.stored_formats().iter().map(ToString::to_string).collect(),
            stored: stored(model),
            memory: [Quantisation::Q8, Quantisation::Q4, Quantisation::F32]
                .map(|q| memory(model, q))
                .to_vec(),
            tokenizer,
            tokenizer_error,
            chat_template: model.chat_template().is_some(),
        })
    }
}

fn scaling(scaling: &RopeScaling) -> String {
    match scaling {
        RopeScaling::Default => "no scaling".to_owned(),
        RopeScaling::Linear { factor } => format!("linear x{factor}"),
        RopeScaling::Llama3 { factor, original_max_positions, .. } => {
            format!("llama3 x{factor} from {original_max_positions}")
        }
        RopeScaling::Yarn { factor, original_max_positions, .. } => {
            format!("yarn x{factor} from {original_max_positions}")
        }
        RopeScaling::Divisors(divisors) => format!("{} stored divisors", divisors.len()),
    }
}

fn stored(model: &Model) -> Sizes {
    let (embedding, layers, head) = model.stored_bytes();
    let total = embedding + layers.iter().sum::<u64>() + head;
    Sizes { embedding, layer: layers.into_iter().max().unwrap_or(0), head, total }
}

fn memory(model: &Model, quantisation: Quantisation) -> Memory {
    let config = model.config();
    let embedding = model.embedding_bytes(quantisation);
    let layers = model.layer_bytes(quantisation);
    let head = model.head_bytes(quantisation) - if config.tied { embedding } else { 0 };
    let total = embedding + layers.iter().sum::<u64>() + head;
    let element = match quantisation {
        Quantisation::Q8 | Quantisation::Q4 => 2,
        Quantisation::F32 => 4,
    };
    Memory {
        quantisation,
        weights: Sizes { embedding, layer: layers.into_iter().max().unwrap_or(0), head, total },
        kv_bytes_per_token: (config.layers * 2 * config.kv_heads * config.head_dim * element) as u64,
        fingerprint: hex::encode(model.fingerprint(quantisation)),
    }
}

/// A byte count for people, three significant digits.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {}", UNITS[unit])
}

fn human_count(count: u64) -> String {
    const UNITS: [(f64, &str); 3] = [(1e9, "B"), (1e6, "M"), (1e3, "k")];
    let found = UNITS.iter().find(|(scale, _)| count as f64 >= *scale);
    found.map_or_else(|| count.to_string(), |(scale, unit)| format!("{:.2} {unit}", count as f64 / scale))
}

impl fmt::Display for Inspection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: String| writeln!(out, "{name:<14}{value}");
        line("model", format!("{} ({})", self.name, self.family))?;
        line("path", self.path.clone().unwrap_or_else(|| "part of the program".to_owned()))?;
        line("parameters", human_count(self.parameters))?;
        line("layers", self.layers.to_string())?;
        line("width", format!("{} (MLP {})", self.hidden, self.intermediate))?;
        line("heads", format!("{} over {} of width {}", self.heads, self.kv_heads, self.head_dim))?;
        line("vocabulary", format!("{}{}", self.vocabulary, if self.tied { ", tied head" } else { "" }))?;
        line("context", self.context.to_string())?;
        if let Some((window, layers)) = self.window {
            line("window", format!("{window} in {layers} layers"))?;
        }
        line("rope", self.rope.clone())?;
        let tokenizer = match (&self.tokenizer, &self.tokenizer_error) {
            (Some(size), _) => format!("{size} tokens"),
            (None, reason) => format!("none ({})", reason.as_deref().unwrap_or("missing")),
        };
        line("tokenizer", tokenizer)?;
        line("chat template", if self.chat_template { "yes" } else { "no" }.to_owned())?;
        writeln!(out)?;
        self.table(out)
    }
}

impl Inspection {
    fn table(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |cells: [String; 6]| {
            let [name, layer, embedding, head, total, kv] = cells;
            writeln!(out, "{name:<12}{layer:>12}{embedding:>12}{head:>12}{total:>12}{kv:>14}")
        };
        row(["", "layer", "embedding", "head", "total", "KV per token"].map(str::to_owned))?;
        let sizes = |name: String, sizes: &Sizes, kv: String| {
            let [layer, embedding, head, total] =
                [sizes.layer, sizes.embedding, sizes.head, sizes.total].map(human_bytes);
            [name, layer, embedding, head, total, kv]
        };
        row(sizes(self.stored_as.join("+"), &self.stored, "as stored".to_owned()))?;
        for memory in &self.memory {
            let kv = human_bytes(memory.kv_bytes_per_token);
            row(sizes(memory.quantisation.to_string(), &memory.weights, kv))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::golden;

    #[test]
    fn sizes_add_up() {
        for name in ["llama", "qwen3", "stories260K"] {
            let inspection = Inspection::of(&Model::open(&golden(name)).expect("opens")).expect("inspects");
            let (stored, f32) = (inspection.stored, &inspection.memory[2].weights);
            assert_eq!(stored.total, inspection.parameters * 4, "{name} is stored in f32");
            assert_eq!(f32.total, stored.total);
            for memory in &inspection.memory {
                let sizes = memory.weights;
                assert_eq!(
                    sizes.total,
                    sizes.embedding + inspection.layers as u64 * sizes.layer + sizes.head
                );
            }
        }
    }

    #[test]
    fn people_and_programs_can_read_it() {
        let inspection =
            Inspection::of(&Model::open(&golden("stories260K")).expect("opens")).expect("inspects");
        let text = inspection.to_string();
        for part in ["stories260K (llama)", "8 over 4 of width 8", "512 tokens", "tied head", "theta 10000"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let json = serde_json::to_value(&inspection).expect("serialises");
        assert_eq!(json["memory"][0]["quantisation"], "q8");
        assert_eq!(json["memory"][0]["kv_bytes_per_token"], 5 * 2 * 4 * 8 * 2);
        let without = Inspection::of(&Model::open(&golden("llama")).expect("opens")).expect("inspects");
        assert!(without.tokenizer.is_none() && without.to_string().contains("no tokenizer.json"));
    }

    #[test]
    fn bytes_are_readable() {
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1024), "1.00 KiB");
        assert_eq!(human_bytes(15 << 20), "15.0 MiB");
        assert_eq!(human_bytes(1000 << 20), "0.98 GiB");
        assert_eq!(human_bytes(140 << 30), "140 GiB");
    }
}
