//! `dolphin run`: chat in the terminal, over the same endpoint that everybody uses.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use engine::{
    local::{Links, Local, LocalConfig, loopback},
    on_device,
};
use futures::StreamExt;
use serde_json::{Value, json};

use super::options::{GatewayArgs, ModelArgs, StageArgs, byte_bar, follow};

/// Chat in the terminal, with a local model or a running endpoint.
///
/// With a prompt it prints the reply and ends; without one it starts a conversation.
#[derive(Args, Debug)]
pub(super) struct Run {
    /// What to say; `-` reads standard input
    prompt: Option<String>,
    /// Use a running endpoint instead of a local model, such as http://127.0.0.1:8080/v1
    #[arg(long, env = "DOLPHIN_URL", value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// Nodes to cut a local model over
    #[arg(long, env = "DOLPHIN_NODES", default_value_t = 1, value_name = "N")]
    nodes: usize,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of a reply
    #[arg(long, default_value_t = 512, value_name = "N")]
    max_tokens: u32,
    /// 0 is greedy [default: what the model's authors suggest]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Seed, for the same reply again
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print each reply as one line of JSON instead of streaming text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    stage: StageArgs,
}

impl Run {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let local = if self.url.is_none() { Some(self.start().await?) } else { None };
        let base = match (&self.url, &local) {
            (Some(url), _) => url.trim_end_matches('/').to_owned(),
            (None, Some(local)) => format!("{}/v1", local.front().url()),
            (None, None) => bail!("there is no endpoint to talk to"),
        };
        let outcome = tokio::select! {
            outcome = self.converse(&base) => outcome,
            _ = tokio::signal::ctrl_c() => {
                println!();
                Ok(())
            }
        };
        if let Some(local) = local {
            local.stop().await;
        }
        outcome
    }

    async fn start(&self) -> anyhow::Result<Local> {
        let model = Arc::new(self.model.open()?);
        let mut front = self.gateway.front(self.model.quant, self.stage.context)?;
        // The endpoint of a private conversation is nobody else's business.
        front.gateway.listen = loopback();
        front.gateway.api_keys.clear();
        front.gateway.drain_timeout = std::time::Duration::ZERO;
        let budget = self.stage.budget()?;
        let config = LocalConfig {
            nodes: self.nodes.max(1),
            private: false,
            links: Links::loopback(),
            front,
            budget,
            draft: None,
            payees: Vec::new(),
        };
        let bar = byte_bar("loading");
        let device = self.stage.device()?;
        let local = on_device!(device, backend => Local::start(model, backend, config, follow(&bar)).await)?;
        bar.finish_and_clear();
        Ok(local)
    }

    async fn converse(&self, base: &str) -> anyhow::Result<()> {
        let client = Client::new(base, self.gateway.api_keys.first().cloned()).await?;
        let mut messages = Vec::new();
        if let Some(system) = &self.system {
            messages.push(json!({"role": "system", "content": system}));
        }
        match self.prompt.as_deref() {
            Some("-") => {
                let text =
                    tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin())).await??;
                self.turn(&client, &mut messages, text.trim_end()).await
            }
            Some(prompt) => self.turn(&client, &mut messages, prompt).await,
            None => {
                println!("{}; an empty line or Ctrl-D ends.", client.model);
                while let Some(line) = ask_line().await? {
                    self.turn(&client, &mut messages, &line).await?;
                }
                Ok(())
            }
        }
    }

    async fn turn(&self, client: &Client, messages: &mut Vec<Value>, text: &str) -> anyhow::Result<()> {
        messages.push(json!({"role": "user", "content": text}));
        let mut body = json!({
            "model": client.model, "messages": messages, "stream": true, "max_tokens": self.max_tokens,
        });
        if let Some(temperature) = self.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(seed) = self.seed {
            body["seed"] = json!(seed);
        }
        let reply = client.stream(&body, !self.json).await?;
        if self.json {
            println!("{}", json!({"model": client.model, "content": reply}));
        }
        messages.push(json!({"role": "assistant", "content": reply}));
        Ok(())
    }
}

async fn ask_line() -> anyhow::Result<Option<String>> {
    if std::io::stdin().is_terminal() {
        print!("\n> ");
        std::io::stdout().flush()?;
    }
    let read = || {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|_| line.trim().to_owned())
    };
    let line = tokio::task::spawn_blocking(read).await??;
    Ok((!line.is_empty()).then_some(line))
}

struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
    model: String,
}

impl Client {
    async fn new(base: &str, key: Option<String>) -> anyhow::Result<Self> {
        let http = reqwest::Client::new();
        let mut client = Self { http, base: base.to_owned(), key, model: String::new() };
        let models = client.send(client.http.get(format!("{base}/models"))).await?.json::<Value>().await?;
        client.model =
            models["data"][0]["id"].as_str().with_context(|| format!("{base} lists no model"))?.to_owned();
        Ok(client)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<reqwest::Response> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.send().await.with_context(|| format!("{} does not answer", self.base))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.json::<Value>().await.unwrap_or_default();
        bail!("{status}: {}", body["error"]["message"].as_str().unwrap_or("the endpoint refused"))
    }

    /// Streams a reply, to the terminal if `print`, and returns its text.
    async fn stream(&self, body: &Value, print: bool) -> anyhow::Result<String> {
        let response =
            self.send(self.http.post(format!("{}/chat/completions", self.base)).json(body)).await?;
        let mut chunks = response.bytes_stream();
        let (mut pending, mut reply) = (Vec::new(), String::new());
        while let Some(chunk) = chunks.next().await {
            pending.extend_from_slice(&chunk?);
            while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                let Some(data) = line.strip_prefix(b"data: ") else { continue };
                if data.trim_ascii() == b"[DONE]" {
                    continue;
                }
                let event: Value = serde_json::from_slice(data)?;
                if let Some(message) = event["error"]["message"].as_str() {
                    bail!("{message}");
                }
                let piece = event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
                reply.push_str(piece);
                if print {
                    print!("{piece}");
                    std::io::stdout().flush()?;
                }
            }
        }
        if print {
            println!();
        }
        Ok(reply)
    }
}
