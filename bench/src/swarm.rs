//! A swarm in this process, as `dolphin up` runs one.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use engine::{
    front::FrontConfig,
    gateway::GatewayConfig,
    local::{Links, Local, LocalConfig, StageBudget, loopback},
    model::{Model, Progress, Quantisation},
};
use indicatif::ProgressBar;
use kernels::cpu::{Cpu, Isa};
use serde_json::{Value, json};

use crate::client::{Client, Style};

/// KV memory of each node.
const KV_BYTES: u64 = 2 << 30;
/// Most rows of one step, as in `dolphin up`.
const STEP_ROWS: usize = 256;

/// What a swarm is made of.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) model: Arc<Model>,
    pub(crate) quantisation: Quantisation,
    pub(crate) nodes: usize,
    /// Threads that compute, shared by the nodes.
    pub(crate) threads: usize,
    /// Requests at once.
    pub(crate) clients: usize,
    /// Sessions that a stage has room for.
    pub(crate) sessions: usize,
    /// Longest session in tokens.
    pub(crate) context: u32,
    /// Longest time of a request.
    pub(crate) timeout: Duration,
    pub(crate) api_key: Option<String>,
    pub(crate) links: Links,
    /// Whether replies may be speculated with, and the draft model for it.
    pub(crate) speculation: bool,
    pub(crate) receipts: bool,
    pub(crate) draft: Option<Arc<Model>>,
}

impl Setup {
    /// One client at a time, on links of loopback, and nothing beside what a reply needs.
    pub(crate) fn of_one_client(
        model: Arc<Model>,
        quantisation: Quantisation,
        nodes: usize,
        threads: usize,
        context: u32,
    ) -> Self {
        Self {
            model,
            quantisation,
            nodes,
            threads,
            clients: 1,
            sessions: 2,
            context,
            timeout: Duration::from_secs(600),
            api_key: None,
            links: Links::loopback(),
            speculation: false,
            receipts: false,
            draft: None,
        }
    }

    /// Starts it and waits until it serves.
    pub(crate) async fn start(&self) -> anyhow::Result<Local> {
        ensure!(self.nodes > 0, "--nodes must be at least 1");
        let front = FrontConfig {
            gateway: GatewayConfig {
                listen: loopback(),
                api_keys: self.api_key.iter().cloned().collect(),
                max_concurrent: self.clients.max(GatewayConfig::default().max_concurrent),
                request_deadline: self.timeout,
                drain_timeout: Duration::ZERO,
                ..GatewayConfig::default()
            },
            model_name: None,
            quantisation: self.quantisation,
            context: self.context,
            running: self.clients,
            waiting: self.clients,
            allow: None,
            private_ends: None,
            speculation: self.speculation,
            payer: None,
            replan: true,
            receipts: self.receipts,
            weights: None,
        };
        let budget = StageBudget {
            rows: STEP_ROWS,
            chunk: STEP_ROWS,
            sessions: self.sessions,
            context: self.context,
            kv_bytes: KV_BYTES,
        };
        let links = self.links.clone();
        let config = LocalConfig {
            nodes: self.nodes,
            private: false,
            links,
            front,
            budget,
            draft: self.draft.clone(),
            payees: Vec::new(),
        };
        let backend = Cpu::new(self.threads, Isa::detect())?;
        let bar = ProgressBar::new(0).with_message("loading");
        let follow = {
            let bar = bar.clone();
            move |progress: Progress| {
                bar.set_length(progress.total);
                bar.set_position(progress.done);
            }
        };
        let local = Local::start(self.model.clone(), backend, config, follow).await?;
        bar.finish_and_clear();
        Ok(local)
    }

    /// What a report says of it.
    pub(crate) fn parameters(&self) -> Value {
        json!({
            "model": self.model.name(), "quantisation": self.quantisation, "nodes": self.nodes,
            "threads": self.threads, "sessions": self.sessions, "context": self.context, "step_rows": STEP_ROWS, "kv_bytes": KV_BYTES,
        })
    }
}

/// A swarm and its one client.
pub(crate) struct Served {
    pub(crate) local: Local,
    client: Client,
}

impl Served {
    /// Starts the swarm for greedy replies of `max_tokens`.
    pub(crate) async fn start(setup: &Setup, max_tokens: u32) -> anyhow::Result<Self> {
        let local = setup.start().await?;
        let style = Style { max_tokens, temperature: 0.0, stop_at_eos: false, timeout: setup.timeout };
        let client = Client::new(&format!("{}/v1", local.front().url()), None, style).await?;
        Ok(Self { local, client })
    }

    /// Milliseconds of a token of a reply, those up to the first not counted.
    pub(crate) async fn token_ms(&self, prompt: Value) -> anyhow::Result<f64> {
        let reply = self.client.reply(prompt).await;
        let reply = reply.map_err(|failure| anyhow::anyhow!("a request failed: {failure:?}"))?;
        let first = reply.first_s.context("a reply has no text")?;
        Ok((reply.latency_s - first) * 1e3 / (reply.tokens - 1) as f64)
    }
}
