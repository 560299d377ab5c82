//! From the JSON of a request to what it asks for; everything the gateway cannot do is refused here.

use serde_json::{Map, Value};

use super::error::{ApiError, type_name};
use super::fields::{Fields, invalid, unsupported, whole, wrong_type};
use super::messages;
use crate::{message::Priority, request::Sampling};

const MAX_STOPS: usize = 4;
const MAX_STOP_BYTES: usize = 512;
const MAX_STOP_TOKENS: usize = 64;
const MAX_LOGIT_BIASES: usize = 1024;
const MAX_TOP_LOGPROBS: i64 = 20;
const MAX_COMPLETION_LOGPROBS: i64 = 5;
const DEFAULT_COMPLETION_TOKENS: u32 = 16;

/// Sampling for requests that do not say, as the model's authors suggest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingDefaults {
    /// 0 is greedy.
    pub temperature: f32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub top_k: u32,
}

impl Default for SamplingDefaults {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0 }
    }
}

/// What a parameter may be for this model at this gateway.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) vocabulary: u32,
    pub(super) max_choices: u32,
    pub(super) defaults: SamplingDefaults,
}

/// What both endpoints share.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Common {
    pub(super) model: String,
    /// Without seed and choice, which differ per reply.
    pub(super) sampling: Sampling,
    pub(super) seed: Option<u64>,
    pub(super) max_tokens: Option<u32>,
    pub(super) stops: Vec<String>,
    pub(super) stop_tokens: Vec<u32>,
    pub(super) ignore_eos: bool,
    pub(super) n: u32,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) priority: Priority,
}

/// A request to `/v1/chat/completions`.
#[derive(Clone, Debug)]
pub(super) struct ChatCall {
    pub(super) common: Common,
    /// Objects, as the template reads them.
    pub(super) messages: Vec<Value>,
    pub(super) documents: Option<Value>,
    pub(super) add_generation_prompt: bool,
    /// Further variables of the template.
    pub(super) template_kwargs: Map<String, Value>,
}

/// One prompt of `/v1/completions`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// A request to `/v1/completions`.
#[derive(Clone, Debug)]
pub(super) struct CompletionCall {
    pub(super) common: Common,
    pub(super) prompts: Vec<Prompt>,
}

pub(super) fn parse_object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => {
            Err(ApiError::InvalidJson { detail: format!("expected an object, got {}", type_name(&other)) })
        }
        Err(error) => Err(ApiError::InvalidJson { detail: error.to_string() }),
    }
}

impl ChatCall {
    pub(super) fn parse(body: &Map<String, Value>, bounds: &Bounds) -> Result<Self, ApiError> {
        let fields = Fields(body);
        let mut common = common(fields, bounds)?;
        refuse_chat_extras(fields)?;
        let limit = i64::from(u32::MAX);
        let longest = fields.integer("max_completion_tokens", 1..=limit)?;
        common.max_tokens = longest.map(clamped).or(common.max_tokens);
        common.sampling.logprobs = chat_logprobs(fields)?;
        let messages = fields.required("messages")?;
        let Some(list) = messages.as_array() else {
            return Err(wrong_type("messages", "an array", messages));
        };
        Ok(Self {
            common,
            messages: messages::parse(list)?,
            documents: fields.array("documents")?.map(|list| Value::Array(list.clone())),
            add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
            template_kwargs: fields.object("chat_template_kwargs")?.cloned().unwrap_or_default(),
        })
    }
}

impl CompletionCall {
    pub(super) fn parse(body: &Map<String, Value>, bounds: &Bounds) -> Result<Self, ApiError> {
        let fields = Fields(body);
        let mut common = common(fields, bounds)?;
        refuse_completion_extras(fields, common.n)?;
        common.max_tokens = common.max_tokens.or(Some(DEFAULT_COMPLETION_TOKENS));
        let logprobs = fields.integer("logprobs", 0..=MAX_COMPLETION_LOGPROBS)?;
        common.sampling.logprobs = logprobs.and_then(|count| u8::try_from(count).ok());
        let prompts = prompts(fields.required("prompt")?, bounds)?;
        let replies = prompts.len() as u64 * u64::from(common.n);
        if replies > u64::from(bounds.max_choices) {
            let reason = format!("{replies} replies were requested, at most {} are made", bounds.max_choices);
            return Err(invalid("prompt", reason));
        }
        Ok(Self { common, prompts })
    }
}

fn common(fields: Fields, bounds: &Bounds) -> Result<Common, ApiError> {
    let model = fields.required("model")?;
    let Some(model) = model.as_str() else { return Err(wrong_type("model", "a string", model)) };
    refuse_extras(fields)?;
    let options = Map::new();
    let options = Fields(fields.object("stream_options")?.unwrap_or(&options));
    Ok(Common {
        model: model.to_owned(),
        sampling: sampling(fields, bounds)?,
        seed: fields.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned),
        max_tokens: fields.integer("max_tokens", 1..=i64::from(u32::MAX))?.map(clamped),
        stops: stops(fields)?,
        stop_tokens: match fields.array("stop_token_ids")? {
            Some(list) if list.len() > MAX_STOP_TOKENS => {
                return Err(invalid("stop_token_ids", format!("at most {MAX_STOP_TOKENS} are accepted")));
            }
            Some(list) => token_ids("stop_token_ids", list, bounds.vocabulary)?,
            None => Vec::new(),
        },
        ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
        n: fields.integer("n", 1..=i64::from(bounds.max_choices))?.map_or(1, clamped),
        stream: fields.boolean("stream")?.unwrap_or(false),
        include_usage: options.boolean("include_usage")?.unwrap_or(false),
        priority: priority(fields)?,
    })
}

/// OpenAI's service tiers, as shares of a busy pipeline.
fn priority(fields: Fields) -> Result<Priority, ApiError> {
    match fields.string("service_tier")? {
        None | Some("auto" | "default") => Ok(Priority::Normal),
        Some("flex") => Ok(Priority::Low),
        Some("priority") => Ok(Priority::High),
        Some(_) => Err(invalid("service_tier", "expected 'auto', 'default', 'flex' or 'priority'")),
    }
}

fn clamped(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn sampling(fields: Fields, bounds: &Bounds) -> Result<Sampling, ApiError> {
    let defaults = bounds.defaults;
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?;
    let repetition_penalty = fields.number("repetition_penalty", 0.0..=10.0)?.unwrap_or(1.0);
    if repetition_penalty < 0.01 {
        return Err(invalid("repetition_penalty", "expected a value of at least 0.01"));
    }
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(defaults.temperature),
        // Other servers write -1 for "keep all".
        top_k: top_k.map_or(defaults.top_k, |k| u32::try_from(k).unwrap_or(0)),
        top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(defaults.top_p),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
        repetition_penalty,
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        logit_bias: logit_bias(fields, bounds.vocabulary)?,
        ..Sampling::default()
    })
}

fn logit_bias(fields: Fields, vocabulary: u32) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    if map.len() > MAX_LOGIT_BIASES {
        return Err(invalid("logit_bias", format!("at most {MAX_LOGIT_BIASES} entries are accepted")));
    }
    let entry = |(key, value): (&String, &Value)| {
        let token = key.parse::<u32>().ok().filter(|token| *token < vocabulary);
        let token = token.ok_or_else(|| {
            invalid("logit_bias", "keys must be token ids of the model's vocabulary, written in decimal")
        })?;
        let bias = value.as_f64().ok_or_else(|| wrong_type("logit_bias", "a number as each value", value))?;
        if !(-100.0..=100.0).contains(&bias) {
            return Err(invalid("logit_bias", "values must be between -100 and 100"));
        }
        Ok((token, bias as f32))
    };
    map.iter().map(entry).collect()
}

fn stops(fields: Fields) -> Result<Vec<String>, ApiError> {
    let Some(value) = fields.value("stop") else { return Ok(Vec::new()) };
    let list = match value {
        Value::Array(list) if list.len() > MAX_STOPS => {
            return Err(invalid("stop", format!("at most {MAX_STOPS} stop strings are accepted")));
        }
        Value::Array(list) => list.iter().collect(),
        value => vec![value],
    };
    let one = |value: &Value| match value.as_str() {
        None => Err(wrong_type("stop", "a string or an array of strings", value)),
        Some("") => Err(invalid("stop", "a stop string must not be empty")),
        Some(text) if text.len() > MAX_STOP_BYTES => {
            Err(invalid("stop", format!("a stop string may have at most {MAX_STOP_BYTES} bytes")))
        }
        Some(text) => Ok(text.to_owned()),
    };
    list.into_iter().map(one).collect()
}

fn chat_logprobs(fields: Fields) -> Result<Option<u8>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.and_then(|count| u8::try_from(count).ok()).unwrap_or(0))),
        (false, Some(1..)) => Err(invalid("top_logprobs", "'logprobs' must be true to get them")),
        (false, _) => Ok(None),
    }
}

fn prompts(value: &Value, bounds: &Bounds) -> Result<Vec<Prompt>, ApiError> {
    const EXPECTED: &str = "a string, an array of strings, an array of token ids or an array of those";
    let list = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text.clone())]),
        Value::Array(list) if list.is_empty() => return Err(invalid("prompt", "it must not be empty")),
        Value::Array(list) => list,
        other => return Err(wrong_type("prompt", EXPECTED, other)),
    };
    if list.iter().all(Value::is_number) {
        return Ok(vec![Prompt::Tokens(token_ids("prompt", list, bounds.vocabulary)?)]);
    }
    if list.len() > bounds.max_choices as usize {
        return Err(invalid("prompt", format!("at most {} prompts are accepted", bounds.max_choices)));
    }
    let one = |value: &Value| match value {
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        Value::Array(tokens) => Ok(Prompt::Tokens(token_ids("prompt", tokens, bounds.vocabulary)?)),
        other => Err(wrong_type("prompt", EXPECTED, other)),
    };
    list.iter().map(one).collect()
}

fn token_ids(param: &str, list: &[Value], vocabulary: u32) -> Result<Vec<u32>, ApiError> {
    let one = |value: &Value| {
        let id = whole(value).ok_or_else(|| wrong_type(param, "token ids", value))?;
        let known = u32::try_from(id).ok().filter(|id| *id < vocabulary);
        known.ok_or_else(|| invalid(param, format!("{id} is not a token id of the model")))
    };
    list.iter().map(one).collect()
}

/// Parameters of either endpoint, here or elsewhere, that would change the reply.
fn refuse_extras(fields: Fields) -> Result<(), ApiError> {
    const UNKNOWN_HERE: [&str; 14] = [
        "guided_choice",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "structured_outputs",
        "grammar",
        "json_schema",
        "use_beam_search",
        "min_tokens",
        "bad_words",
        "allowed_token_ids",
        "prompt_logprobs",
        "chat_template",
        "continue_final_message",
    ];
    let set = |name: &&&str| {
        !matches!(fields.value(name), None | Some(Value::Bool(false)))
            && fields.value(name).and_then(Value::as_i64) != Some(0)
    };
    match UNKNOWN_HERE.iter().find(set) {
        Some(name) => Err(unsupported(*name, "this parameter is not available")),
        None => refuse_response_format(fields),
    }
}

fn refuse_response_format(fields: Fields) -> Result<(), ApiError> {
    let Some(format) = fields.object("response_format")? else { return Ok(()) };
    match Fields(format).string("type") {
        Ok(Some("text")) => Ok(()),
        _ => Err(unsupported("response_format", "only the type 'text' is available")),
    }
}

fn refuse_chat_extras(fields: Fields) -> Result<(), ApiError> {
    for (list, choice) in [("tools", "tool_choice"), ("functions", "function_call")] {
        let offered = fields.array(list)?.is_some_and(|tools| !tools.is_empty());
        if offered && fields.value(choice).and_then(Value::as_str) != Some("none") {
            return Err(unsupported(list, format!("the model cannot call them; set '{choice}' to 'none'")));
        }
    }
    if let Some(modalities) = fields.array("modalities")?
        && modalities.iter().any(|modality| modality != "text")
    {
        return Err(unsupported("modalities", "only 'text' is available"));
    }
    match ["audio", "web_search_options"].iter().find(|name| fields.value(name).is_some()) {
        Some(name) => Err(unsupported(*name, "this parameter is not available")),
        None => Ok(()),
    }
}

fn refuse_completion_extras(fields: Fields, n: u32) -> Result<(), ApiError> {
    if fields.boolean("echo")? == Some(true) {
        return Err(unsupported("echo", "the prompt cannot be echoed"));
    }
    if fields.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(unsupported("suffix", "text cannot be inserted"));
    }
    let best_of = fields.integer("best_of", 1..=i64::from(u32::MAX))?;
    if best_of.is_some_and(|best_of| best_of != i64::from(n)) {
        return Err(unsupported("best_of", "it must equal 'n'"));
    }
    Ok(())
}
