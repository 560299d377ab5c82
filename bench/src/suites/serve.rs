//! A closed loop of clients that stream replies over HTTP, from a running endpoint or a swarm in this
//! process.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use clap::Args;
use engine::{local::Links, model::Quantisation};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::{
    client::{Client, Failure, Reply, Style},
    machine::cores,
    report::{Figure, Report},
    rig::open_model,
    stats::percentile,
    swarm::Setup,
    workload::Workload,
};

/// What to send, and to whom.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Endpoint to measure, such as http://127.0.0.1:8080/v1 [default: a swarm in this process]
    #[arg(long)]
    pub url: Option<String>,
    /// Key of the endpoint
    #[arg(long, env = "DOLPHIN_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Model of the swarm in this process [default: the embedded demo model]
    #[arg(long, value_name = "DIR|FILE", conflicts_with = "url")]
    pub model: Option<PathBuf>,
    /// How its weights are held; a quantised GGUF's as they are
    #[arg(long, default_value = "q8", value_name = "q8|q4|f32")]
    pub quant: Quantisation,
    /// Nodes it is cut over
    #[arg(long, default_value_t = 1, visible_alias = "stages")]
    pub nodes: usize,
    /// Link the nodes by a simulated network, with these round trips of the whole ring, in ms
    #[arg(long, value_delimiter = ',', value_name = "MS", conflicts_with = "url")]
    pub rtt: Vec<u64>,
    /// Bandwidths of its links, in Mbit/s
    #[arg(long, value_delimiter = ',', default_value = "100,1000", value_name = "MBIT", requires = "rtt")]
    pub bandwidth: Vec<u64>,
    /// Repetitions of each of its settings, which take turns
    #[arg(long, default_value_t = 3, requires = "rtt")]
    pub repetitions: usize,
    /// Threads that compute, shared by its nodes [default: one per core]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Clients; each sends its next request when the last is answered
    #[arg(long, default_value_t = 4)]
    pub clients: usize,
    /// Requests of each client
    #[arg(long, default_value_t = 8)]
    pub requests: usize,
    /// Tokens of a prompt, drawn at random
    #[arg(long, default_value_t = 128)]
    pub prompt_tokens: usize,
    /// Texts to send instead, one on each line
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Tokens of a reply
    #[arg(long, default_value_t = 64)]
    pub max_tokens: u32,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Let replies end before --max-tokens
    #[arg(long)]
    pub stop_at_eos: bool,
    /// Longest session of the swarm in this process, in tokens
    #[arg(long, default_value_t = 4096)]
    pub context: u32,
    /// Longest time of a request, in seconds
    #[arg(long, default_value_t = 600)]
    pub timeout_s: u64,
    /// Seed of the prompts
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Name of the served model.
    pub model: String,
    /// The swarm in this process, if there is one.
    pub swarm: Value,
    /// Replies that ended as they should.
    pub replies: Vec<Reply>,
    /// Failures, counted by kind.
    pub errors: BTreeMap<String, usize>,
    /// What the server said at the first failure of a kind.
    pub messages: BTreeMap<String, String>,
    /// From the first request to the last answer.
    pub elapsed_s: f64,
}

impl ServeArgs {
    /// Sends everything. Failed requests are counted, not errors.
    ///
    /// # Errors
    /// If there is no endpoint to talk to.
    pub async fn run(&self) -> anyhow::Result<Outcome> {
        let workload = self.workload()?;
        let Some(url) = &self.url else {
            let setup = self.setup(Links::loopback())?;
            let local = setup.start().await?;
            let url = format!("{}/v1", local.front().url());
            let outcome = self.drive(&url, &workload).await;
            local.stop().await;
            return Ok(Outcome { swarm: setup.parameters(), ..outcome? });
        };
        self.drive(url, &workload).await
    }

    /// What to send.
    pub(crate) fn workload(&self) -> anyhow::Result<Workload> {
        ensure!(self.clients > 0 && self.requests > 0, "--clients and --requests must be at least 1");
        ensure!(self.prompt_tokens > 0 && self.max_tokens > 0, "prompts and replies need at least 1 token");
        match &self.prompts {
            Some(path) => Workload::from_file(path),
            None => Ok(Workload::Random { tokens: self.prompt_tokens, seed: self.seed }),
        }
    }

    fn style(&self) -> Style {
        Style {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            stop_at_eos: self.stop_at_eos,
            timeout: Duration::from_secs(self.timeout_s),
        }
    }

    /// The loop itself. Which client sends which prompt does not depend on the times.
    pub(crate) async fn drive(&self, url: &str, workload: &Workload) -> anyhow::Result<Outcome> {
        let client = Client::new(url, self.api_key.clone(), self.style()).await?;
        let total = self.clients * self.requests;
        let bar = ProgressBar::new(total as u64);
        let failed = Arc::new(AtomicUsize::new(0));
        let workload = Arc::new(workload.clone());
        let start = Instant::now();
        let clients: Vec<_> = (0..self.clients)
            .map(|index| {
                let (client, workload) = (client.clone(), workload.clone());
                let (bar, failed, requests) = (bar.clone(), failed.clone(), self.requests);
                tokio::spawn(async move {
                    let mut outcomes = Vec::with_capacity(requests);
                    for request in index * requests..(index + 1) * requests {
                        let outcome = client.reply(workload.prompt(request)).await;
                        if outcome.is_err() {
                            let before = failed.fetch_add(1, Ordering::Relaxed);
                            bar.set_message(format!("{} failed", before + 1));
                        }
                        bar.inc(1);
                        outcomes.push(outcome);
                    }
                    outcomes
                })
            })
            .collect();
        let mut outcome = Outcome { model: client.model().to_owned(), ..Outcome::default() };
        for client in clients {
            match client.await {
                Ok(outcomes) => outcomes.into_iter().for_each(|one| outcome.count(one)),
                Err(_) => outcome.count(Err(Failure::new("client: died"))),
            }
        }
        outcome.elapsed_s = start.elapsed().as_secs_f64();
        bar.finish_and_clear();
        Ok(outcome)
    }

    /// The swarm in this process, over `links`.
    pub(crate) fn setup(&self, links: Links) -> anyhow::Result<Setup> {
        Ok(Setup {
            model: Arc::new(open_model(self.model.as_deref())?),
            quantisation: self.quant,
            nodes: self.nodes,
            threads: self.threads.unwrap_or_else(cores),
            clients: self.clients,
            // A stage hears of a session's end after the client, which may ask again in between.
            sessions: 2 * self.clients,
            context: self.context,
            timeout: Duration::from_secs(self.timeout_s),
            api_key: self.api_key.clone(),
            links,
            speculation: false,
            receipts: false,
            draft: None,
        })
    }

    /// Every parameter, and what there is to say of the swarm in this process.
    pub(crate) fn parameters(&self, swarm: &Value) -> Value {
        json!({
            "url": self.url, "swarm": swarm, "clients": self.clients, "requests_per_client": self.requests,
            "prompt_tokens": self.prompts.is_none().then_some(self.prompt_tokens),
            "prompts": self.prompts, "max_tokens": self.max_tokens, "temperature": self.temperature,
            "stop_at_eos": self.stop_at_eos, "timeout_s": self.timeout_s, "seed": self.seed,
        })
    }
}

impl Outcome {
    fn count(&mut self, outcome: Result<Reply, Failure>) {
        match outcome {
            Ok(reply) => self.replies.push(reply),
            Err(Failure { kind, message }) => {
                if let Some(message) = message {
                    self.messages.entry(kind.clone()).or_insert(message);
                }
                *self.errors.entry(kind).or_default() += 1;
            }
        }
    }

    /// Requests that failed.
    pub fn failed(&self) -> usize {
        self.errors.values().sum()
    }

    /// Tokens drawn over all replies.
    pub fn tokens(&self) -> u64 {
        self.replies.iter().map(|reply| reply.tokens).sum()
    }

    /// Times to the first piece of text, in seconds.
    pub fn first_s(&self) -> Vec<f64> {
        self.replies.iter().filter_map(|reply| reply.first_s).collect()
    }

    /// Times between pieces of text, in seconds.
    pub fn gaps_s(&self) -> Vec<f64> {
        self.replies.iter().flat_map(|reply| reply.gaps_s.iter().copied()).collect()
    }

    /// Tokens drawn per second.
    pub fn rate(&self) -> f64 {
        self.tokens() as f64 / self.elapsed_s
    }

    /// The figures.
    pub fn report(&self, args: &ServeArgs) -> Report {
        let (first, gaps) = (self.first_s(), self.gaps_s());
        let latency: Vec<f64> = self.replies.iter().map(|reply| reply.latency_s).collect();
        let prompt_tokens: u64 = self.replies.iter().map(|reply| reply.prompt_tokens).sum();
        let rate = |tokens: u64| (self.elapsed_s > 0.0).then(|| tokens as f64 / self.elapsed_s);
        let output = rate(self.tokens());
        // What the clients would draw together if none of them ever waited for a prompt.
        let unhindered = percentile(&gaps, 0.5).map(|gap| args.clients as f64 / gap);
        let replies = self.replies.len();
        let total = replies + self.failed();
        let mut figures = vec![
            Figure::new("requests answered", Some(replies as f64), "", 1)
                .against("requests", Some(replies as f64 / total as f64)),
            Figure::new("output rate", output, "tokens/s", 1).against(
                "clients / inter-token p50",
                output.zip(unhindered).map(|(output, unhindered)| output / unhindered),
            ),
            Figure::new("prompt rate", rate(prompt_tokens), "tokens/s", 1),
        ];
        figures.extend(quantiles("time to first token", &first));
        figures.extend(quantiles("inter-token time", &gaps));
        figures.extend(quantiles("request latency", &latency));
        let details = json!({
            "model": self.model, "answered": replies, "failed": self.failed(), "errors": self.errors,
            "messages": self.messages,
            "prompt_tokens": prompt_tokens, "output_tokens": self.tokens(), "elapsed_s": self.elapsed_s,
        });
        Report::new("serve", args.parameters(&self.swarm), figures, details)
    }
}

/// p50, p95 and p99 in milliseconds, the tails beside the median.
fn quantiles(name: &str, seconds: &[f64]) -> [Figure; 3] {
    let middle = percentile(seconds, 0.5);
    [50, 95, 99].map(|percent| {
        let value = percentile(seconds, f64::from(percent) / 100.0);
        let figure =
            Figure::new(format!("{name}, p{percent}"), value.map(|value| value * 1e3), "ms", seconds.len());
        if percent == 50 {
            return figure;
        }
        figure.against("p50", value.zip(middle).map(|(value, middle)| value / middle))
    })
}
