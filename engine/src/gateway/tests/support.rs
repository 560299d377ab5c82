//! A byte-level tokenizer, a gateway on a free port, and pipelines that play a script.

use std::collections::HashMap;
use std::future::{Future, pending};
use std::sync::Arc;

use futures::StreamExt;
use reqwest::{Client, Response};
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, watch};

use crate::gateway::{
    ChatTemplate, Gateway, GatewayConfig, Metrics, PipelineStatus, SamplingDefaults, ServedModel, serve,
};
use crate::request::{Event, Finish, Generation, Logprobs, Refusal, Request, Submission, Submitter};
use crate::tokenizer::Tokenizer;

pub(super) const BOS: u32 = 256;
pub(super) const EOS: u32 = 257;
pub(super) const MODEL: &str = "test-model";

/// Token ids 0 to 255 are the bytes; then come `<bos>` and `<eos>`.
pub(super) fn byte_tokenizer() -> Tokenizer {
    let printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    let mut vocabulary = Map::new();
    for byte in 0..=255_u8 {
        let code = if printable(&byte) {
            u32::from(byte)
        } else {
            next += 1;
            next - 1
        };
        vocabulary.insert(char::from_u32(code).unwrap().to_string(), byte.into());
    }
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let description = json!({
        "version": "1.0",
        "added_tokens": [special(BOS, "<bos>"), special(EOS, "<eos>")],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<bos>", "type_id": 0 } },
                       { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<bos>": { "id": "<bos>", "ids": [BOS], "tokens": ["<bos>"] } },
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": [],
        },
    });
    Tokenizer::from_json(description.to_string().as_bytes()).unwrap()
}

pub(super) fn model() -> ServedModel {
    let template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}\
                    {% if add_generation_prompt %}[assistant]{% endif %}";
    ServedModel {
        id: MODEL.to_owned(),
        created: 1_700_000_000,
        fingerprint: "fp_test".to_owned(),
        context: 1000,
        tokenizer: Arc::new(byte_tokenizer()),
        template: ChatTemplate::new(template, [("bos_token", "<bos>"), ("eos_token", "<eos>")]).unwrap(),
        eos_ids: vec![EOS],
        sampling_defaults: SamplingDefaults { temperature: 0.7, top_p: 0.9, top_k: 40 },
    }
}

/// A gateway under test and a client for it.
pub(super) struct Fixture {
    pub(super) gateway: Gateway,
    pub(super) client: Client,
    pub(super) status: watch::Sender<PipelineStatus>,
    pub(super) metrics: Metrics,
}

pub(super) fn config() -> GatewayConfig {
    GatewayConfig { listen: "127.0.0.1:0".parse().unwrap(), ..GatewayConfig::default() }
}

/// Starts a gateway; the test plays the pipeline through the receiver.
pub(super) async fn start(config: GatewayConfig) -> (Fixture, mpsc::Receiver<Submission>) {
    start_until(config, pending()).await
}

pub(super) async fn start_until(
    config: GatewayConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> (Fixture, mpsc::Receiver<Submission>) {
    let (submitter, submissions) = Submitter::channel(1024);
    let (status, status_seen) =
        watch::channel(PipelineStatus::Serving { nodes: 2, pipeline: Vec::new(), replans: 0 });
    let metrics = Metrics::new().unwrap();
    let (_, swarm) = watch::channel(crate::swarm::SwarmStatus::default());
    let gateway =
        serve(config, model(), submitter, status_seen, swarm, metrics.clone(), shutdown).await.unwrap();
    (Fixture { gateway, client: Client::new(), status, metrics }, submissions)
}

/// Starts a gateway over a pipeline that answers every request with the outcome of `script`.
pub(super) async fn start_scripted(
    config: GatewayConfig,
    script: impl Fn(&Request) -> Result<Vec<Event>, Refusal> + Send + 'static,
) -> Fixture {
    let (fixture, submissions) = start(config).await;
    tokio::spawn(play(submissions, script));
    fixture
}

pub(super) async fn play(
    mut submissions: mpsc::Receiver<Submission>,
    script: impl Fn(&Request) -> Result<Vec<Event>, Refusal>,
) {
    while let Some(Submission { request, reply }) = submissions.recv().await {
        let answer = script(&request).map(|events| {
            let (sender, receiver) = mpsc::channel(4);
            tokio::spawn(async move {
                for event in events {
                    if sender.send(event).await.is_err() {
                        return;
                    }
                }
            });
            Generation { events: receiver, receipt: None, price: 0 }
        });
        let _ = reply.send(answer);
    }
}

impl Fixture {
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.gateway.local_addr)
    }

    pub(super) async fn get(&self, path: &str) -> Response {
        self.client.get(self.url(path)).send().await.unwrap()
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Response {
        self.client.post(self.url(path)).json(body).send().await.unwrap()
    }

    pub(super) async fn chat(&self, extra: Value) -> Response {
        self.post("/v1/chat/completions", &with(json!({ "messages": [user("hi")] }), extra)).await
    }

    pub(super) async fn complete(&self, extra: Value) -> Response {
        self.post("/v1/completions", &with(json!({ "prompt": "hi" }), extra)).await
    }
}

pub(super) fn user(content: &str) -> Value {
    json!({ "role": "user", "content": content })
}

fn with(mut base: Value, extra: Value) -> Value {
    base["model"] = MODEL.into();
    for (key, value) in extra.as_object().unwrap() {
        base[key] = value.clone();
    }
    base
}

/// One token per byte, then the end-of-text token.
pub(super) fn say(text: &str) -> Vec<Event> {
    let mut events: Vec<Event> = text.bytes().map(|byte| token(byte.into())).collect();
    events.extend([token(EOS), Event::Finished(Finish::Stop)]);
    events
}

pub(super) fn token(token: u32) -> Event {
    Event::Token { token, logprobs: None }
}

/// Like [`say`], with log-probabilities: -0.5 for the token, -1.5 for the token after it.
pub(super) fn say_scored(text: &str) -> Vec<Event> {
    let score = |event| match event {
        Event::Token { token, .. } => {
            let top = vec![(token, -0.5), ((token + 1) % 256, -1.5)];
            Event::Token { token, logprobs: Some(Logprobs { chosen: -0.5, top }) }
        }
        event => event,
    };
    say(text).into_iter().map(score).collect()
}

pub(super) async fn json_of(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    (status, response.json().await.unwrap())
}

/// The payloads of a whole stream of server-sent events, comments left out.
pub(super) async fn events_of(response: Response) -> Vec<String> {
    let text = response.text().await.unwrap();
    text.split("\n\n").filter_map(|event| event.strip_prefix("data: ").map(str::to_owned)).collect()
}

/// The chunks before `[DONE]`, which must be there.
pub(super) async fn chunks_of(response: Response) -> Vec<Value> {
    assert_eq!(response.status(), 200);
    let mut events = events_of(response).await;
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

/// The text of each choice in a chat or completion stream.
pub(super) fn texts(chunks: &[Value]) -> HashMap<u64, String> {
    let mut texts: HashMap<u64, String> = HashMap::new();
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let text = choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or("");
        texts.entry(choice["index"].as_u64().unwrap()).or_default().push_str(text);
    }
    texts
}

/// Reads until `count` payloads have come, without waiting for the end of the stream.
pub(super) async fn first_events(response: Response, count: usize) -> (Vec<String>, impl Sized) {
    let mut body = response.bytes_stream();
    let mut text = String::new();
    while text.matches("data: ").count() < count || !text.ends_with("\n\n") {
        text.push_str(std::str::from_utf8(&body.next().await.unwrap().unwrap()).unwrap());
    }
    (text.split("\n\n").filter_map(|event| event.strip_prefix("data: ").map(str::to_owned)).collect(), body)
}
