//! What a GGUF's metadata says about the model, in the words of [`ModelConfig`].

use std::ops::RangeInclusive;

use kernels::rope::{RopeScaling, RopeSpec};

use super::{Header, Value};
use crate::model::{
    ModelConfig,
    config::{Description, attention_scale, extended, validate},
    error::ModelError,
    family::{FAMILIES, Family, GGUF},
    plan::{Item, Layout, Target},
    table::TensorTable,
    weights::{self, Loaded},
};

const SIZE: RangeInclusive<i64> = 1..=1 << 32;
const TOKEN: RangeInclusive<i64> = 0..=u32::MAX as i64;

/// Typed access to metadata.
pub(super) struct Keys<'a> {
    pub(super) file: &'a str,
    pub(super) header: &'a Header,
}

impl<'a> Keys<'a> {
    fn error(&self, key: &str, reason: impl Into<String>) -> ModelError {
        ModelError::field(self.file, key, reason)
    }

    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.header.metadata.get(key)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.error(key, "must be a text")),
        }
    }

    pub(super) fn flag(&self, key: &str, absent: bool) -> Result<bool, ModelError> {
        match self.value(key) {
            None => Ok(absent),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.error(key, "must be true or false")),
        }
    }

    /// A whole number in `range`. A list counts as a number if all its elements are equal (a model may
    /// state a size for each layer).
    pub(super) fn integer(&self, key: &str, range: RangeInclusive<i64>) -> Result<Option<usize>, ModelError> {
        let number = match self.value(key) {
            None => return Ok(None),
            Some(Value::Integer(number)) => *number,
            Some(Value::Integers(list)) if !list.is_empty() && list.iter().all(|n| *n == list[0]) => list[0],
            Some(_) => return Err(self.error(key, "must be a whole number, the same for all layers")),
        };
        let bounds = || format!("is {number}, but must lie in {}..={}", range.start(), range.end());
        if range.contains(&number) { Ok(Some(number as usize)) } else { Err(self.error(key, bounds())) }
    }

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.integer(key, SIZE)?.ok_or_else(|| self.error(key, "is missing"))
    }

    fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ModelError> {
        let number = match self.value(key) {
            None => return Ok(None),
            Some(Value::Float(number)) => *number,
            Some(Value::Integer(number)) => *number as f64,
            Some(_) => return Err(self.error(key, "must be a number")),
        };
        let bounds = || format!("is {number}, but must lie in {}..={}", range.start(), range.end());
        if range.contains(&number) { Ok(Some(number)) } else { Err(self.error(key, bounds())) }
    }

    pub(super) fn token(&self, key: &str) -> Result<Option<u32>, ModelError> {
        Ok(self.integer(key, TOKEN)?.map(|token| token as u32))
    }
}

/// The layout of a GGUF model. A table of rotary divisors is read from the file.
pub(crate) fn layout(file: &str, header: &Header, table: &TensorTable) -> Result<Layout, ModelError> {
    let keys = Keys { file, header };
    let name = keys.text("general.architecture")?;
    let name = name.ok_or_else(|| keys.error("general.architecture", "is missing"))?;
    let family = Family::of_gguf(name).ok_or_else(|| {
        let supported: Vec<&str> = FAMILIES.iter().filter_map(|family| family.gguf).collect();
        ModelError::unsupported(file, "GGUF architecture", name, supported.join(", "))
    })?;
    if keys.integer(&format!("{name}.expert_count"), 0..=1 << 32)?.is_some_and(|experts| experts > 0) {
        return Err(ModelError::unsupported(file, "MLP of", "several experts", "one dense MLP per layer"));
    }
    let config = shape(&keys, family, name, table)?;
    validate(file, &config)?;
    let has = |part: &str| header.tensors.contains_key(&format!("{}0.{part}.bias", GGUF.layer));
    let parts = family.parts(|_, part| Ok::<_, ModelError>(has(part)))?;
    let description = Description { config, parts };
    Ok(Layout { description, naming: &GGUF, interleaved: family.gguf_interleaved })
}

fn shape(
    keys: &Keys<'_>,
    family: &Family,
    name: &str,
    table: &TensorTable,
) -> Result<ModelConfig, ModelError> {
    let key = |suffix: &str| format!("{name}.{suffix}");
    let hidden = keys.size(&key("embedding_length"))?;
    let heads = keys.size(&key("attention.head_count"))?;
    let head_dim = keys.integer(&key("attention.key_length"), SIZE)?.unwrap_or(hidden / heads);
    // Lists below have an entry per layer, so the number is bounded here already.
    let layers = keys.integer(&key("block_count"), 1..=1 << 10)?;
    let layers = layers.ok_or_else(|| keys.error(&key("block_count"), "is missing"))?;
    let stated = u32::try_from(keys.size(&key("context_length"))?).unwrap_or(u32::MAX);
    for (suffix, what) in
        [("attention.value_length", "values of width"), ("rope.dimension_count", "rotation of")]
    {
        if let Some(width) = keys.integer(&key(suffix), SIZE)?.filter(|&width| width != head_dim) {
            let supported = format!("{head_dim}, the width of a head");
            return Err(ModelError::unsupported(keys.file, what, format!("{width} dimensions"), supported));
        }
    }
    let window = keys.integer(&key("attention.sliding_window"), 0..=1 << 32)?.filter(|&window| window > 0);
    let eps = key("attention.layer_norm_rms_epsilon");
    let eps = keys.number(&eps, 0.0..=1.0)?.ok_or_else(|| keys.error(&eps, "is missing"))?;
    let rope = RopeSpec {
        theta: keys.number(&key("rope.freq_base"), 1.0..=1e12)?.unwrap_or(10_000.0),
        dimensions: head_dim,
        scaling: scaling(keys, name, stated, head_dim, table)?,
    };
    let embedding = format!("{}.weight", GGUF.embedding);
    let vocabulary = keys.header.tensors.get(&embedding).and_then(|info| info.shape.first().copied());
    Ok(ModelConfig {
        family: family.name.to_owned(),
        hidden,
        intermediate: keys.size(&key("feed_forward_length"))?,
        layers,
        heads,
        kv_heads: keys.integer(&key("attention.head_count_kv"), SIZE)?.unwrap_or(heads),
        head_dim,
        vocabulary: vocabulary.ok_or_else(|| keys.error(&embedding, "is missing"))?,
        norm_eps: eps as f32,
        max_positions: extended(stated, &rope.scaling),
        rope,
        windows: vec![window.map(|window| u32::try_from(window).unwrap_or(u32::MAX)); layers],
        attention_scale: attention_scale(head_dim),
        embedding_scale: None,
        tied: !keys.header.tensors.contains_key(&format!("{}.weight", GGUF.head)),
        bos: keys.token("tokenizer.ggml.bos_token_id")?,
        eos: ends(keys)?,
    })
}

/// Tokens that end a text, a turn or a message.
fn ends(keys: &Keys<'_>) -> Result<Vec<u32>, ModelError> {
    let mut ends = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        ends.extend(keys.token(key)?.filter(|token| !ends.contains(token)));
    }
    Ok(ends)
}

fn scaling(
    keys: &Keys<'_>,
    name: &str,
    stated: u32,
    head_dim: usize,
    table: &TensorTable,
) -> Result<RopeScaling, ModelError> {
    const FACTOR: RangeInclusive<f64> = 1.0..=65_536.0;
    let key = |suffix: &str| format!("{name}.rope.scaling.{suffix}");
    let legacy = keys.number(&format!("{name}.rope.scale_linear"), FACTOR)?;
    let factor = keys.number(&key("factor"), FACTOR)?.or(legacy);
    let kind = keys.text(&key("type"))?.unwrap_or(if factor.is_some() { "linear" } else { "none" });
    let given = || factor.ok_or_else(|| keys.error(&key("factor"), "is missing"));
    let divisors = keys.header.tensors.contains_key(DIVISORS);
    match kind {
        "none" if divisors => divisor_table(keys.file, head_dim, table),
        "none" => Ok(RopeScaling::Default),
        _ if divisors => {
            let supported = "one of the two";
            Err(ModelError::unsupported(
                keys.file,
                "rotary scaling",
                format!("{kind} with {DIVISORS}"),
                supported,
            ))
        }
        "linear" => Ok(RopeScaling::Linear { factor: given()? }),
        "yarn" => {
            let factor = given()?;
            let original = keys.integer(&key("original_context_length"), SIZE)?;
            let magnitude = keys.number(&key("attn_factor"), 0.0..=1e6)?;
            Ok(RopeScaling::Yarn {
                factor,
                original_max_positions: original.map_or(stated, |n| u32::try_from(n).unwrap_or(u32::MAX)),
                beta_fast: keys.number(&key("yarn_beta_fast"), 0.0..=1e6)?.unwrap_or(32.0),
                beta_slow: keys.number(&key("yarn_beta_slow"), 0.0..=1e6)?.unwrap_or(1.0),
                attention_factor: magnitude.map(|magnitude| magnitude * (0.1 * libm::log(factor) + 1.0)),
                truncate: true,
            })
        }
        other => Err(ModelError::unsupported(keys.file, "rotary scaling", other, "none, linear, yarn")),
    }
}

/// Tensor of one divisor per rotary pair.
const DIVISORS: &str = "rope_freqs.weight";

fn divisor_table(file: &str, head_dim: usize, table: &TensorTable) -> Result<RopeScaling, ModelError> {
    let shape = vec![head_dim / 2];
    let info = table.checked(DIVISORS, &shape)?;
    let item = Item { name: DIVISORS.to_owned(), shape, target: Target::Vector, interleaved_heads: None };
    match weights::load(table, &[(item, info)], &mut |_| ())?.pop() {
        Some(Loaded::Vector(divisors)) if divisors.iter().all(|&divisor| divisor > 0.0) => {
            Ok(RopeScaling::Divisors(divisors))
        }
        _ => Err(ModelError::field(file, DIVISORS, "must hold numbers above 0")),
    }
}
