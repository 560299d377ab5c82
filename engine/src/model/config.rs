//! `config.json` as transformers 4 and 5 write it.

use kernels::rope::{RopeScaling, RopeSpec};
use serde_json::{Map, Value};

use super::{
    ModelConfig,
    error::ModelError,
    family::{FAMILIES, Family, Parts, Windows},
};

/// Largest `config.json` that is read.
pub(crate) const CONFIG_BYTES: u64 = 4 << 20;

const HIDDEN: u64 = 1 << 16;
const INTERMEDIATE: u64 = 1 << 20;
const LAYERS: u64 = 1 << 10;
const HEADS: u64 = 1 << 10;
const HEAD_DIM: u64 = 512;
const VOCABULARY: u64 = 1 << 22;
const POSITIONS: u64 = 1 << 24;

/// A model's shape with what its layers consist of.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) config: ModelConfig,
    pub(crate) parts: Parts,
}

/// Reads `config.json`.
///
/// # Errors
/// [`ModelError::Malformed`] if it is not a JSON object, [`ModelError::Field`] for a value that is
/// missing or out of range, [`ModelError::Unsupported`] for a family, activation or rotary scaling
/// that this build does not have.
pub fn parse(bytes: &[u8]) -> Result<ModelConfig, ModelError> {
    describe(bytes).map(|description| description.config)
}

pub(crate) fn describe(bytes: &[u8]) -> Result<Description, ModelError> {
    let map = object(FILE, bytes)?;
    let fields = Fields { file: FILE, map: &map };
    let name = fields.text("model_type")?.ok_or_else(|| fields.error("model_type", "is missing"))?;
    let family = Family::of_config(name).ok_or_else(|| {
        ModelError::unsupported(FILE, "model family", name, FAMILIES.map(|family| family.name).join(", "))
    })?;
    activation(&fields)?;
    let config = shape(&fields, family)?;
    validate(FILE, &config)?;
    let parts = family.parts(|flag, _| fields.flag(flag, false))?;
    Ok(Description { config, parts })
}

const FILE: &str = "config.json";

fn activation(fields: &Fields<'_>) -> Result<(), ModelError> {
    match fields.text("hidden_act")? {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => Err(ModelError::unsupported(fields.file, "activation", other, "silu")),
    }
}

fn shape(fields: &Fields<'_>, family: &Family) -> Result<ModelConfig, ModelError> {
    let hidden = fields.size("hidden_size", HIDDEN)?;
    let heads = fields.size("num_attention_heads", HEADS)?;
    let kv_heads = fields.integer("num_key_value_heads", 1..=HEADS)?.map_or(heads, |n| n as usize);
    let layers = fields.size("num_hidden_layers", LAYERS)?;
    let head_dim = match fields.integer("head_dim", 1..=HEAD_DIM)? {
        Some(width) => width as usize,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(fields.error("head_dim", "is missing, and the heads do not divide the width")),
    };
    let stated = fields.size("max_position_embeddings", POSITIONS)? as u32;
    let rope = RopeSpec { theta: theta(fields)?, dimensions: head_dim, scaling: scaling(fields, stated)? };
    Ok(ModelConfig {
        family: family.name.to_owned(),
        hidden,
        intermediate: fields.size("intermediate_size", INTERMEDIATE)?,
        layers,
        heads,
        kv_heads,
        head_dim,
        vocabulary: fields.size("vocab_size", VOCABULARY)?,
        norm_eps: fields
            .number("rms_norm_eps", 0.0..=1.0)?
            .ok_or_else(|| fields.error("rms_norm_eps", "is missing"))? as f32,
        max_positions: extended(stated, &rope.scaling),
        rope,
        windows: windows(fields, family, layers)?,
        attention_scale: attention_scale(head_dim),
        embedding_scale: None,
        tied: fields.flag("tie_word_embeddings", false)?,
        bos: fields.tokens("bos_token_id")?.first().copied(),
        eos: fields.tokens("eos_token_id")?,
    })
}

/// f32 of `1 / sqrt(head_dim)`, rounded once.
pub(crate) fn attention_scale(head_dim: usize) -> f32 {
    (1.0 / (head_dim as f64).sqrt()) as f32
}

/// YaRN models state the context they were trained on and stretch it by `factor`; the other kinds
/// state the context they reach.
pub(crate) fn extended(stated: u32, scaling: &RopeScaling) -> u32 {
    match scaling {
        RopeScaling::Yarn { factor, original_max_positions, .. } => {
            let reached = f64::from(*original_max_positions) * factor;
            stated.max(reached.min(POSITIONS as f64) as u32)
        }
        _ => stated,
    }
}

/// Checks what is the same for every source of a configuration.
pub(crate) fn validate(file: &str, config: &ModelConfig) -> Result<(), ModelError> {
    let bounded = |field: &str, value: usize, most: u64| {
        if value >= 1 && value as u64 <= most {
            return Ok(());
        }
        Err(ModelError::field(file, field, format!("is {value}, but must lie in 1..={most}")))
    };
    bounded("hidden size", config.hidden, HIDDEN)?;
    bounded("intermediate size", config.intermediate, INTERMEDIATE)?;
    bounded("layers", config.layers, LAYERS)?;
    bounded("attention heads", config.heads, HEADS)?;
    bounded("key and value heads", config.kv_heads, HEADS)?;
    bounded("head width", config.head_dim, HEAD_DIM)?;
    bounded("vocabulary", config.vocabulary, VOCABULARY)?;
    bounded("context", config.max_positions as usize, POSITIONS)?;
    if !config.heads.is_multiple_of(config.kv_heads) {
        let reason =
            format!("is {}, which {} key and value heads do not divide", config.heads, config.kv_heads);
        return Err(ModelError::field(file, "attention heads", reason));
    }
    if !config.head_dim.is_multiple_of(2) {
        let reason = format!("is {}, but rotary pairs need an even number", config.head_dim);
        return Err(ModelError::field(file, "head width", reason));
    }
    if !(config.norm_eps > 0.0 && config.norm_eps <= 1.0) {
        let reason = format!("is {}, but must lie above 0 and at most at 1", config.norm_eps);
        return Err(ModelError::field(file, "norm epsilon", reason));
    }
    let tokens = config.bos.iter().chain(&config.eos);
    if let Some(token) = tokens.copied().find(|&token| token as usize >= config.vocabulary) {
        let reason = format!("{token} is beyond the vocabulary of {}", config.vocabulary);
        return Err(ModelError::field(file, "special token", reason));
    }
    Ok(())
}

fn windows(fields: &Fields<'_>, family: &Family, layers: usize) -> Result<Vec<Option<u32>>, ModelError> {
    let stated = |absent: u32| match fields.map.get("sliding_window") {
        None => Ok::<_, ModelError>(Some(absent)),
        Some(Value::Null) => Ok(None),
        Some(_) => Ok(fields.integer("sliding_window", 1..=POSITIONS)?.map(|window| window as u32)),
    };
    let (window, first) = match family.windows {
        Windows::Never => (None, layers),
        Windows::All { absent } => (stated(absent)?, 0),
        Windows::Upper { absent, first } if fields.flag("use_sliding_window", false)? => {
            let first = fields.integer("max_window_layers", 0..=u64::from(u32::MAX))?.unwrap_or(first);
            (stated(absent)?, first as usize)
        }
        Windows::Upper { .. } => (None, layers),
    };
    match fields.map.get("layer_types") {
        None | Some(Value::Null) => Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect()),
        Some(types) => typed_windows(fields, types, window, layers),
    }
}

fn typed_windows(
    fields: &Fields<'_>,
    types: &Value,
    window: Option<u32>,
    layers: usize,
) -> Result<Vec<Option<u32>>, ModelError> {
    let Some(types) = types.as_array().filter(|types| types.len() == layers) else {
        return Err(fields.error("layer_types", format!("must list {layers} layers")));
    };
    let of = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") if window.is_some() => Ok(window),
        Some("sliding_attention") => {
            Err(fields.error("layer_types", "asks for a sliding window, but none is given"))
        }
        other => Err(ModelError::unsupported(
            fields.file,
            "layer type",
            other.unwrap_or("(not a string)"),
            "full_attention, sliding_attention",
        )),
    };
    types.iter().map(of).collect()
}

/// The rotary settings: `rope_parameters` of transformers 5, `rope_scaling` of transformers 4.
fn rotary<'a>(fields: &Fields<'a>) -> Result<Option<Fields<'a>>, ModelError> {
    for name in ["rope_parameters", "rope_scaling"] {
        match fields.map.get(name) {
            None | Some(Value::Null) => {}
            Some(Value::Object(map)) => return Ok(Some(Fields { file: fields.file, map })),
            Some(_) => return Err(fields.error(name, "is not an object")),
        }
    }
    Ok(None)
}

fn theta(fields: &Fields<'_>) -> Result<f64, ModelError> {
    const RANGE: std::ops::RangeInclusive<f64> = 1.0..=1e12;
    let nested = match rotary(fields)? {
        Some(rotary) => rotary.number("rope_theta", RANGE)?,
        None => None,
    };
    Ok(nested.or(fields.number("rope_theta", RANGE)?).unwrap_or(10_000.0))
}

fn scaling(fields: &Fields<'_>, stated: u32) -> Result<RopeScaling, ModelError> {
    let Some(rotary) = rotary(fields)? else { return Ok(RopeScaling::Default) };
    for holder in [fields, &rotary] {
        if holder.number("partial_rotary_factor", 0.0..=1.0)?.is_some_and(|factor| factor != 1.0) {
            let supported = "whole heads";
            return Err(ModelError::unsupported(fields.file, "rotation of", "part of a head", supported));
        }
    }
    let kind = match rotary.text("rope_type")? {
        Some(kind) => kind,
        None => rotary.text("type")?.unwrap_or("default"),
    };
    let factor =
        || rotary.number("factor", 1.0..=65_536.0)?.ok_or_else(|| rotary.error("factor", "is missing"));
    match kind {
        "default" if rotary.map.values().any(Value::is_object) => {
            let given = "one per layer type";
            Err(ModelError::unsupported(fields.file, "rotary settings", given, "one for all layers"))
        }
        "default" => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: rotary.positive("low_freq_factor")?,
            high_freq_factor: rotary.positive("high_freq_factor")?,
            original_max_positions: rotary.size("original_max_position_embeddings", POSITIONS)? as u32,
        }),
        "yarn" => yarn(&rotary, stated),
        other => Err(ModelError::unsupported(
            fields.file,
            "rotary scaling",
            other,
            "default, linear, llama3, yarn",
        )),
    }
}

fn yarn(rotary: &Fields<'_>, stated: u32) -> Result<RopeScaling, ModelError> {
    let original = rotary
        .integer("original_max_position_embeddings", 1..=POSITIONS)?
        .map_or(stated, |positions| positions as u32);
    let factor = match rotary.number("factor", 1.0..=65_536.0)? {
        Some(factor) => factor,
        None if stated >= original => f64::from(stated) / f64::from(original),
        None => return Err(rotary.error("factor", "is missing")),
    };
    let optional = |name: &str| rotary.number(name, 0.0..=1e6);
    let attention_factor =
        match (optional("attention_factor")?, optional("mscale")?, optional("mscale_all_dim")?) {
            (Some(stated), _, _) => Some(stated),
            (None, Some(numerator), Some(denominator)) if numerator != 0.0 && denominator != 0.0 => {
                Some(yarn_mscale(factor, numerator) / yarn_mscale(factor, denominator))
            }
            _ => None,
        };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_positions: original,
        beta_fast: optional("beta_fast")?.unwrap_or(32.0),
        beta_slow: optional("beta_slow")?.unwrap_or(1.0),
        attention_factor,
        truncate: rotary.flag("truncate", true)?,
    })
}

/// The attention factor of YaRN for one of DeepSeek's two exponents.
fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * libm::log(factor) + 1.0 }
}

/// Parses a JSON object.
pub(crate) fn object(file: &str, bytes: &[u8]) -> Result<Map<String, Value>, ModelError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ModelError::malformed(file, "is not a JSON object")),
        Err(error) => Err(ModelError::malformed(file, format!("is not JSON: {error}"))),
    }
}

/// Typed and range-checked access to a JSON object. A null counts as absent.
pub(crate) struct Fields<'a> {
    pub(crate) file: &'a str,
    pub(crate) map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn error(&self, name: &str, reason: impl Into<String>) -> ModelError {
        ModelError::field(self.file, name, reason)
    }

    fn value(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// A whole number in `range`.
    pub(crate) fn integer(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, ModelError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let bounds = format!("must be a whole number in {}..={}", range.start(), range.end());
                Err(self.error(name, format!("is {value:.60}, but {bounds}")))
            }
        }
    }

    /// A required whole number from 1 to `most`.
    pub(crate) fn size(&self, name: &str, most: u64) -> Result<usize, ModelError> {
        let value = self.integer(name, 1..=most)?;
        value.map(|value| value as usize).ok_or_else(|| self.error(name, "is missing"))
    }

    /// A number in `range`.
    pub(crate) fn number(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let bounds = format!("must be a number in {}..={}", range.start(), range.end());
                Err(self.error(name, format!("is {value:.60}, but {bounds}")))
            }
        }
    }

    /// A required number above 0.
    fn positive(&self, name: &str) -> Result<f64, ModelError> {
        let value = self.number(name, f64::MIN_POSITIVE..=1e9)?;
        value.ok_or_else(|| self.error(name, "is missing"))
    }

    /// A boolean.
    pub(crate) fn flag(&self, name: &str, absent: bool) -> Result<bool, ModelError> {
        match self.value(name) {
            None => Ok(absent),
            Some(value) => value.as_bool().ok_or_else(|| self.error(name, "must be true or false")),
        }
    }

    /// A string.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>, ModelError> {
        match self.value(name) {
            None => Ok(None),
            Some(value) => match value.as_str() {
                Some(text) => Ok(Some(text)),
                None => Err(self.error(name, "must be a string")),
            },
        }
    }

    /// One token id or a list of them.
    pub(crate) fn tokens(&self, name: &str) -> Result<Vec<u32>, ModelError> {
        let token = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| self.error(name, "must be a token id or a list of token ids"))
        };
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) if list.len() <= 256 => list.iter().map(token).collect(),
            Some(value) => Ok(vec![token(value)?]),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn base() -> Value {
        json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
            "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 100, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 256, "hidden_act": "silu", "eos_token_id": [2, 3], "bos_token_id": 1,
        })
    }

    fn with(changes: Value) -> Result<Description, ModelError> {
        let mut config = base();
        for (key, value) in changes.as_object().expect("an object") {
            config[key] = value.clone();
        }
        describe(config.to_string().as_bytes())
    }

    fn refused(changes: Value) -> String {
        with(changes).expect_err("refused").to_string()
    }

    #[test]
    fn values_out_of_range_are_named() {
        for (key, value) in [
            ("hidden_size", json!(0)),
            ("hidden_size", json!(-1)),
            ("hidden_size", json!("64")),
            ("hidden_size", json!(1_u64 << 40)),
            ("intermediate_size", json!(null)),
            ("vocab_size", json!(1.5)),
            ("num_hidden_layers", json!(1_000_000)),
            ("rms_norm_eps", json!(2)),
            ("rms_norm_eps", json!("small")),
            ("head_dim", json!(1024)),
            ("max_position_embeddings", json!(0)),
            ("eos_token_id", json!("end")),
            ("rope_theta", json!(-1)),
            ("rope_scaling", json!(3)),
            ("layer_types", json!(["full_attention"])),
            ("tie_word_embeddings", json!(1)),
        ] {
            let error = refused(json!({ key: value }));
            assert!(error.contains(key), "{key}: {error}");
        }
        assert!(refused(json!({"head_dim": 15})).contains("even"));
        assert!(refused(json!({"num_key_value_heads": 3})).contains("divide"));
        assert!(refused(json!({"eos_token_id": 100})).contains("beyond the vocabulary"));
        assert!(refused(json!({"rms_norm_eps": 0})).contains("above 0"));
        assert!(refused(json!({"num_attention_heads": 7, "num_key_value_heads": 7})).contains("head_dim"));
    }

    #[test]
    fn what_is_not_supported_is_said_with_what_is() {
        let gemma = refused(json!({"model_type": "gemma3"}));
        assert!(gemma.contains("gemma3") && gemma.contains("llama, mistral, qwen2, qwen3"), "{gemma}");
        assert!(refused(json!({"hidden_act": "gelu"})).contains("silu"));
        let rope = refused(json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}));
        assert!(rope.contains("dynamic") && rope.contains("yarn"), "{rope}");
        assert!(
            refused(json!({"partial_rotary_factor": 0.5, "rope_scaling": {"type": "default"}}))
                .contains("whole heads")
        );
        let nested = json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}});
        assert!(refused(nested).contains("per layer type"));
        let kinds = json!({"layer_types": ["full_attention", "full_attention", "full_attention", "linear_attention"]});
        assert!(refused(kinds).contains("linear_attention"));
    }

    #[test]
    fn families_differ_in_their_parts() {
        let parts = |changes| with(changes).expect("valid").parts;
        let plain = Parts { qkv_bias: false, output_bias: false, mlp_bias: false, qk_norm: false };
        assert_eq!(parts(json!({})), plain);
        assert_eq!(
            parts(json!({"attention_bias": true})),
            Parts { qkv_bias: true, output_bias: true, ..plain }
        );
        assert_eq!(parts(json!({"mlp_bias": true})), Parts { mlp_bias: true, ..plain });
        assert_eq!(parts(json!({"model_type": "mistral", "attention_bias": true})), plain);
        assert_eq!(parts(json!({"model_type": "qwen2"})), Parts { qkv_bias: true, ..plain });
        assert_eq!(parts(json!({"model_type": "qwen3"})), Parts { qk_norm: true, ..plain });
    }

    #[test]
    fn windows_follow_the_family() {
        let windows = |changes| with(changes).expect("valid").config.windows;
        assert_eq!(windows(json!({"sliding_window": 16})), [None; 4], "llama has none");
        assert_eq!(windows(json!({"model_type": "mistral"})), [Some(4096); 4]);
        assert_eq!(windows(json!({"model_type": "mistral", "sliding_window": null})), [None; 4]);
        let qwen = json!({
            "model_type": "qwen2", "sliding_window": 32, "max_window_layers": 3, "use_sliding_window": true
        });
        assert_eq!(windows(qwen), [None, None, None, Some(32)]);
        let typed = json!({
            "model_type": "mistral", "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        });
        assert_eq!(windows(typed), [Some(8), None, Some(8), None]);
    }

    #[test]
    fn yarn_reaches_further_than_the_model_states() {
        let yarn = |scaling: Value| with(json!({"rope_scaling": scaling})).expect("valid").config;
        let scaled = yarn(json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}));
        assert_eq!(scaled.max_positions, 1024);
        let stated = yarn(json!({"rope_type": "yarn", "original_max_position_embeddings": 64}));
        assert_eq!(stated.max_positions, 256);
        assert!(matches!(stated.rope.scaling, RopeScaling::Yarn { factor: 4.0, .. }));
        let deep = yarn(json!({"type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0}));
        assert!(matches!(deep.rope.scaling, RopeScaling::Yarn { attention_factor: Some(1.0), .. }));
    }

    #[test]
    fn ends_of_replies_come_alone_or_in_lists() {
        let ends = |changes| with(changes).expect("valid").config.eos;
        assert_eq!(ends(json!({})), [2, 3]);
        assert_eq!(ends(json!({"eos_token_id": 7})), [7]);
        assert!(ends(json!({"eos_token_id": null})).is_empty());
    }

    proptest! {
        #[test]
        fn any_value_at_any_key_never_panics(
            key in 0_usize..14,
            value in prop_oneof![
                any::<i64>().prop_map(Value::from), any::<f64>().prop_map(Value::from),
                ".{0,8}".prop_map(Value::from), Just(Value::Null), Just(json!([])), Just(json!({})),
                Just(json!([[1], {"a": 2}])), Just(json!({"rope_type": "yarn", "factor": 1e308})),
            ],
        ) {
            let keys = [
                "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps", "max_position_embeddings",
                "rope_scaling", "rope_parameters", "layer_types", "eos_token_id",
            ];
            let _ = with(json!({ keys[key]: value }));
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
