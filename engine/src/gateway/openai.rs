//! OpenAI's response shapes.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::reply::{FinishReason, Scored, Update};
use crate::{payment::pod, tokenizer::Tokenizer};

/// The two endpoints that generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Completions,
}

/// What every object of one response repeats.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) endpoint: Endpoint,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) fingerprint: String,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) logprobs: bool,
    /// Chunks carry `usage: null` when the last one will carry the usage.
    pub(super) include_usage: bool,
}

impl Shape {
    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }

    fn chunk_object(&self) -> &'static str {
        match self.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completions => "text_completion",
        }
    }

    /// The whole response when nothing is streamed.
    pub(super) fn response(&self, replies: Vec<Update>, usage: Value) -> Value {
        let object = match self.endpoint {
            Endpoint::Chat => "chat.completion",
            Endpoint::Completions => "text_completion",
        };
        let choices = replies.into_iter().enumerate().map(|(index, reply)| self.choice(index, &reply));
        let mut response = self.object(object, choices.collect());
        response["usage"] = usage;
        response
    }

    fn choice(&self, index: usize, reply: &Update) -> Value {
        let logprobs = self.logprobs(&reply.scored);
        let finish_reason = reply.finish.map(FinishReason::name);
        match self.endpoint {
            Endpoint::Chat => json!({
                "index": index,
                "message": { "role": "assistant", "content": reply.text, "refusal": null },
                "logprobs": logprobs,
                "finish_reason": finish_reason,
            }),
            Endpoint::Completions => json!({
                "text": reply.text,
                "index": index,
                "logprobs": logprobs,
                "finish_reason": finish_reason,
            }),
        }
    }

    /// The first chunk of a reply; completions have none.
    pub(super) fn opening(&self, index: usize) -> Option<Value> {
        let delta = json!({ "role": "assistant", "content": "", "refusal": null });
        (self.endpoint == Endpoint::Chat).then(|| self.delta(index, delta, Value::Null, None))
    }

    /// The chunks that carry an update: its text, then its end.
    pub(super) fn chunks(&self, index: usize, update: &Update) -> Vec<Value> {
        let mut chunks = Vec::with_capacity(2);
        if !update.text.is_empty() || !update.scored.is_empty() {
            let logprobs = self.logprobs(&update.scored);
            chunks.push(self.delta(index, json!({ "content": update.text }), logprobs, None));
        }
        if update.finish.is_some() {
            chunks.push(self.delta(index, json!({}), Value::Null, update.finish));
        }
        chunks
    }

    fn delta(&self, index: usize, delta: Value, logprobs: Value, finish: Option<FinishReason>) -> Value {
        let finish = finish.map(FinishReason::name);
        let choice = match self.endpoint {
            Endpoint::Chat => {
                json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish })
            }
            Endpoint::Completions => {
                let text = delta.get("content").and_then(Value::as_str).unwrap_or("");
                json!({ "text": text, "index": index, "logprobs": logprobs, "finish_reason": finish })
            }
        };
        let mut chunk = self.object(self.chunk_object(), vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// The chunk after the last reply, if the caller asked for the usage.
    pub(super) fn usage_chunk(&self, usage: Value) -> Option<Value> {
        let mut chunk = self.object(self.chunk_object(), Vec::new());
        chunk["usage"] = usage;
        self.include_usage.then_some(chunk)
    }

    fn logprobs(&self, scored: &[Scored]) -> Value {
        match (self.logprobs, self.endpoint) {
            (false, _) => Value::Null,
            (true, Endpoint::Chat) => chat_logprobs(&self.tokenizer, scored),
            (true, Endpoint::Completions) => completion_logprobs(&self.tokenizer, scored),
        }
    }
}

/// `cost` is in wei of POD, where somebody asks for pay.
pub(super) fn usage(prompt_tokens: u64, completion_tokens: u64, cost: Option<u128>) -> Value {
    let mut usage = json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    });
    if let Some(wei) = cost {
        // Larger numbers than JavaScript's are text.
        usage["cost"] = json!({ "pod": pod(wei), "wei": wei.to_string() });
    }
    usage
}

/// JSON has no infinity; OpenAI writes -9999 for a token that cannot be drawn.
fn logprob(value: f32) -> Value {
    const IMPOSSIBLE: f64 = -9999.0;
    let value = f64::from(value);
    Value::from(if value.is_finite() { value.max(IMPOSSIBLE) } else { IMPOSSIBLE })
}

fn chat_logprobs(tokenizer: &Tokenizer, scored: &[Scored]) -> Value {
    let entry = |token: u32, value: f32| {
        let bytes = tokenizer.token_bytes(token);
        json!({ "token": String::from_utf8_lossy(&bytes), "logprob": logprob(value), "bytes": bytes })
    };
    let position = |scored: &Scored| {
        let mut position = entry(scored.token, scored.logprobs.chosen);
        let top = scored.logprobs.top.iter().map(|(token, value)| entry(*token, *value));
        position["top_logprobs"] = top.collect();
        position
    };
    json!({ "content": scored.iter().map(position).collect::<Vec<_>>(), "refusal": null })
}

fn completion_logprobs(tokenizer: &Tokenizer, scored: &[Scored]) -> Value {
    let name = |token: u32| token_name(&tokenizer.token_bytes(token));
    let top = |scored: &Scored| {
        let mut map = Map::new();
        for (token, value) in &scored.logprobs.top {
            map.insert(name(*token), logprob(*value));
        }
        map.insert(name(scored.token), logprob(scored.logprobs.chosen));
        Value::Object(map)
    };
    json!({
        "tokens": scored.iter().map(|scored| name(scored.token)).collect::<Vec<_>>(),
        "token_logprobs": scored.iter().map(|scored| logprob(scored.logprobs.chosen)).collect::<Vec<_>>(),
        "top_logprobs": scored.iter().map(top).collect::<Vec<_>>(),
        "text_offset": scored.iter().map(|scored| scored.offset_chars).collect::<Vec<_>>(),
    })
}

/// The text of a token, or OpenAI's `bytes:\x..` for one that ends inside a character.
fn token_name(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}")),
    }
}
