//! A client of an OpenAI-style endpoint that streams one reply at a time and takes the times.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::sse::Parser;

/// How every request of a run is made.
#[derive(Clone, Debug)]
pub struct Style {
    /// Tokens to ask for.
    pub max_tokens: u32,
    /// 0 is greedy.
    pub temperature: f32,
    /// Whether replies may end before `max_tokens`.
    pub stop_at_eos: bool,
    /// Longest time a request may take.
    pub timeout: Duration,
}

/// One reply that ended as it should.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// Tokens of the prompt, as the server counts them.
    pub prompt_tokens: u64,
    /// Tokens drawn, as the server counts them.
    pub tokens: u64,
    /// From sending the request to the first piece of text; `None` for a reply without text.
    pub first_s: Option<f64>,
    /// Between consecutive pieces of text.
    pub gaps_s: Vec<f64>,
    /// From sending the request to the end of the stream.
    pub latency_s: f64,
    /// All of its text.
    pub text: String,
}

/// Why there is no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Few words that are the same for the same reason: failures are counted by them.
    pub kind: String,
    /// What the server said, if it said anything.
    pub message: Option<String>,
}

impl Failure {
    /// A failure of `kind`.
    pub fn new(kind: impl Into<String>) -> Self {
        Self { kind: kind.into(), message: None }
    }

    /// A failure after `kind`, if there is a code, and its message, both from the error of a JSON answer.
    fn told(kind: String, error: &Value) -> Self {
        let kind = match error["code"].as_str() {
            Some(code) => format!("{kind}: {code}"),
            None => kind,
        };
        Self { kind, message: error["message"].as_str().map(str::to_owned) }
    }
}

/// A connection pool to one endpoint.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
    model: String,
    style: Style,
}

impl Client {
    /// Looks up the model that `base` (`http://host:port/v1`) serves.
    ///
    /// # Errors
    /// If the endpoint does not answer or serves nothing.
    pub async fn new(base: &str, key: Option<String>, style: Style) -> anyhow::Result<Self> {
        // A proxy from the environment would be measured as well.
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?;
        let base = base.trim_end_matches('/').to_owned();
        let mut client = Self { http, base, key, model: String::new(), style };
        let request = client.http.get(format!("{}/models", client.base)).timeout(client.style.timeout);
        let answer = client.signed(request).send().await.and_then(reqwest::Response::error_for_status);
        let models: Value = answer
            .with_context(|| format!("{} does not answer", client.base))?
            .json()
            .await
            .with_context(|| format!("{} does not answer in JSON", client.base))?;
        let name = models["data"][0]["id"].as_str();
        client.model = name.with_context(|| format!("{} serves no model", client.base))?.to_owned();
        Ok(client)
    }

    /// Name of the served model.
    pub fn model(&self) -> &str {
        &self.model
    }

    fn signed(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Streams one reply.
    ///
    /// # Errors
    /// [`Failure`], to be counted.
    pub async fn reply(&self, prompt: Value) -> Result<Reply, Failure> {
        let reply = self.ask(prompt, self.style.max_tokens, None).await?;
        reply.ok_or_else(|| Failure::new("client: left"))
    }

    /// Streams one reply of `max_tokens` tokens, and closes the connection after `leave_after` pieces of
    /// text; `None` if it left.
    ///
    /// # Errors
    /// [`Failure`], to be counted.
    pub async fn ask(
        &self,
        prompt: Value,
        max_tokens: u32,
        leave_after: Option<usize>,
    ) -> Result<Option<Reply>, Failure> {
        let body = self.body(prompt, max_tokens);
        match tokio::time::timeout(self.style.timeout, self.stream(&body, leave_after)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::new("timeout")),
        }
    }

    fn body(&self, prompt: Value, max_tokens: u32) -> Value {
        let mut body = json!({
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": self.style.temperature,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        if !self.style.stop_at_eos {
            // Not of OpenAI's API, but what most servers of open models understand.
            body["ignore_eos"] = true.into();
        }
        body
    }

    async fn stream(&self, body: &Value, leave_after: Option<usize>) -> Result<Option<Reply>, Failure> {
        let start = Instant::now();
        let request = self.http.post(format!("{}/completions", self.base)).json(body);
        let response = self.signed(request).send().await.map_err(|error| unsent(&error))?;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        let mut bytes = response.bytes_stream();
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        let mut progress = Progress::new(start);
        loop {
            if leave_after.is_some_and(|pieces| progress.pieces() >= pieces) {
                return Ok(None);
            }
            let Some(piece) = bytes.next().await else {
                return Err(Failure::new("stream: ended early"));
            };
            let piece = piece.map_err(|_| Failure::new("stream: connection lost"))?;
            parser.push(&piece, &mut events).map_err(|_| Failure::new("stream: an event is too long"))?;
            for event in events.drain(..) {
                if progress.take(&event, Instant::now())? {
                    return progress.reply().map(Some);
                }
            }
        }
    }
}

fn unsent(error: &reqwest::Error) -> Failure {
    Failure::new(if error.is_connect() { "connect" } else { "request: not answered" })
}

async fn refused(response: reqwest::Response) -> Failure {
    let status = response.status().as_u16();
    let body = response.json::<Value>().await.unwrap_or_default();
    Failure::told(format!("http {status}"), &body["error"])
}

/// A reply under way.
struct Progress {
    start: Instant,
    last: Option<Instant>,
    end: Instant,
    first_s: Option<f64>,
    gaps_s: Vec<f64>,
    usage: Option<(u64, u64)>,
    text: String,
}

impl Progress {
    fn new(start: Instant) -> Self {
        Self {
            start,
            last: None,
            end: start,
            first_s: None,
            gaps_s: Vec::new(),
            usage: None,
            text: String::new(),
        }
    }

    /// Pieces of text so far.
    fn pieces(&self) -> usize {
        usize::from(self.first_s.is_some()) + self.gaps_s.len()
    }

    /// Takes an event that arrived at `now`; whether it was the last.
    fn take(&mut self, event: &[u8], now: Instant) -> Result<bool, Failure> {
        self.end = now;
        if event == b"[DONE]" {
            return Ok(true);
        }
        let event: Value =
            serde_json::from_slice(event).map_err(|_| Failure::new("stream: an event is not JSON"))?;
        if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
            return Err(Failure::told("stream".to_owned(), error));
        }
        if let Some(text) = event["choices"][0]["text"].as_str().filter(|text| !text.is_empty()) {
            self.text.push_str(text);
            match self.last.replace(now) {
                None => self.first_s = Some((now - self.start).as_secs_f64()),
                Some(last) => self.gaps_s.push((now - last).as_secs_f64()),
            }
        }
        let count = |field: &str| event["usage"][field].as_u64();
        self.usage = count("prompt_tokens").zip(count("completion_tokens")).or(self.usage);
        Ok(false)
    }

    fn reply(self) -> Result<Reply, Failure> {
        let (prompt_tokens, tokens) = self.usage.ok_or_else(|| Failure::new("stream: no usage"))?;
        Ok(Reply {
            prompt_tokens,
            tokens,
            first_s: self.first_s,
            gaps_s: self.gaps_s,
            latency_s: (self.end - self.start).as_secs_f64(),
            text: self.text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(events: &[Value]) -> Result<Progress, Failure> {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        for (index, event) in (1..).zip(events) {
            let now = start + Duration::from_millis(100 * index);
            assert!(!progress.take(event.to_string().as_bytes(), now)?, "nothing has ended");
        }
        let end = start + Duration::from_millis(100 * (events.len() as u64 + 1));
        assert!(progress.take(b"[DONE]", end)?);
        Ok(progress)
    }

    fn text(text: &str) -> Value {
        json!({ "choices": [{ "text": text }] })
    }

    #[test]
    fn times_are_those_of_text() {
        let usage = json!({ "choices": [], "usage": { "prompt_tokens": 5, "completion_tokens": 4 } });
        let events = [text(""), text("a"), text(""), text("b"), text("c"), usage];
        let reply = follow(&events).and_then(Progress::reply).expect("a whole reply");
        let ms = |seconds: f64| (seconds * 1e3).round();
        assert_eq!((reply.prompt_tokens, reply.tokens), (5, 4));
        assert_eq!(reply.first_s.map(ms), Some(200.0));
        assert_eq!(reply.gaps_s.into_iter().map(ms).collect::<Vec<_>>(), [200.0, 100.0]);
        assert_eq!(ms(reply.latency_s), 700.0);
    }

    #[test]
    fn failures_have_kinds() {
        let broken = json!({ "error": { "code": "pipeline_failed", "message": "node 7 left" } });
        let failure = follow(&[text("a"), broken]).err().expect("a failure");
        assert_eq!(failure.kind, "stream: pipeline_failed");
        assert_eq!(failure.message.as_deref(), Some("node 7 left"));
        let uncounted = follow(&[text("a")]).and_then(Progress::reply);
        assert_eq!(uncounted, Err(Failure::new("stream: no usage")));
        let garbage = Progress::new(Instant::now()).take(b"{", Instant::now());
        assert_eq!(garbage, Err(Failure::new("stream: an event is not JSON")));
    }
}
