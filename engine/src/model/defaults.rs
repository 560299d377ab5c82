//! What stands beside the weights: generation defaults and the chat template.

use serde::Serialize;
use serde_json::Value;

use super::{
    config::{Fields, object},
    error::ModelError,
};

/// How the authors of a model suggest to draw from it (`generation_config.json`).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GenerationDefaults {
    /// Whether to draw at all; `Some(false)` is greedy.
    pub sample: Option<bool>,
    /// Temperature.
    pub temperature: Option<f32>,
    /// Nucleus.
    pub top_p: Option<f32>,
    /// Most likely tokens kept.
    pub top_k: Option<u32>,
    /// Penalty on seen tokens.
    pub repetition_penalty: Option<f32>,
    /// Tokens that end a reply.
    pub eos: Vec<u32>,
}

/// Reads `generation_config.json`.
///
/// # Errors
/// [`ModelError::Malformed`] and [`ModelError::Field`] as for `config.json`.
pub fn parse_generation(bytes: &[u8]) -> Result<GenerationDefaults, ModelError> {
    let file = "generation_config.json";
    let map = object(file, bytes)?;
    let fields = Fields { file, map: &map };
    let number = |name, most| Ok::<_, ModelError>(fields.number(name, 0.0..=most)?.map(|value| value as f32));
    Ok(GenerationDefaults {
        sample: map.contains_key("do_sample").then(|| fields.flag("do_sample", true)).transpose()?,
        temperature: number("temperature", 100.0)?,
        top_p: number("top_p", 1.0)?,
        top_k: fields.integer("top_k", 0..=u64::from(u32::MAX))?.map(|value| value as u32),
        repetition_penalty: number("repetition_penalty", 100.0)?,
        eos: fields.tokens("eos_token_id")?,
    })
}

/// The chat template in `tokenizer_config.json`: a string, or the one called `default` (else the first)
/// of a list of named ones. A file that is no JSON object has none.
pub fn chat_template(tokenizer_config: &[u8]) -> Option<String> {
    let map = object("tokenizer_config.json", tokenizer_config).ok()?;
    match map.get("chat_template")? {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default").or(named.first())?;
            default["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}
