//! Many short requests of random lengths, some given up half-way, against a swarm in this process: nothing
//! may fail, nothing may stay open, and memory must not grow.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;
use engine::{
    local::{Links, Local},
    model::Quantisation,
    stage::kv::KvUsage,
};
use futures::future::join_all;
use indicatif::ProgressBar;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    client::{Client, Failure, Style},
    machine::cores,
    report::{Figure, Report},
    rig::open_model,
    swarm::Setup,
    workload::Workload,
};

/// Longest session. Requests stay below half of it, so that a full house can only be had with all pages.
const CONTEXT: u32 = 256;
/// Longest prompt of a request.
const PROMPT_TOKENS: usize = 64;
/// Longest reply of a request.
const REPLY_TOKENS: u32 = 48;
/// Longest time of a request.
const TIMEOUT: Duration = Duration::from_secs(120);
/// What sessions get to close after the last request.
const SETTLE: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Args, Clone, Debug)]
pub struct SoakArgs {
    /// Model [default: the embedded demo model]
    #[arg(long, value_name = "DIR|FILE")]
    pub model: Option<PathBuf>,
    /// How its weights are held; a quantised GGUF's as they are
    #[arg(long, default_value = "q8", value_name = "q8|q4|f32")]
    pub quant: Quantisation,
    /// Threads that compute, shared by the nodes [default: one per core]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Nodes that the model is cut over
    #[arg(long, default_value_t = 3)]
    pub nodes: usize,
    /// Requests
    #[arg(long, default_value_t = 10_000)]
    pub requests: usize,
    /// Requests at once
    #[arg(long, default_value_t = 16)]
    pub clients: usize,
    /// Share of the requests whose client goes away before the end
    #[arg(long, default_value_t = 0.2)]
    pub leave: f64,
    /// Requests between two looks at the memory
    #[arg(long, default_value_t = 500)]
    pub every: usize,
    /// Growth of resident memory that is a leak, in MiB, from a fifth of the requests to the end
    #[arg(long, default_value_t = 16.0)]
    pub growth_mib: f64,
    /// Seed of lengths, prompts and leavers
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Soak {
    answered: usize,
    left: usize,
    tokens: u64,
    failures: BTreeMap<String, usize>,
    messages: BTreeMap<String, String>,
    /// Resident MiB after so many requests; empty where the system does not tell.
    memory: Vec<(usize, f64)>,
    elapsed_s: f64,
    /// Replies that the gateway still counts at the end, running or waiting.
    open_requests: usize,
    /// Sessions open at the end, over all nodes.
    open_sessions: usize,
    /// KV pages that are neither free nor kept for later sessions.
    lost_pages: usize,
    /// Most sessions of the greatest length that ran at once afterwards.
    full_house: usize,
    growth_mib: Option<f64>,
}

/// One request's plan, the same for the same seed and number.
struct Plan {
    prompt_tokens: usize,
    max_tokens: u32,
    leave_after: Option<usize>,
}

impl SoakArgs {
    /// Runs everything. Failed requests and leaks are counted, not errors; see [`Soak::verdict`].
    ///
    /// # Errors
    /// If the swarm cannot start.
    pub async fn run(&self) -> anyhow::Result<Soak> {
        let counts = [self.nodes, self.requests, self.clients, self.every];
        ensure!(!counts.contains(&0), "every count must be at least 1");
        ensure!((0.0..=1.0).contains(&self.leave), "--leave is a share between 0 and 1");
        let local = self.setup()?.start().await?;
        let style =
            Style { max_tokens: REPLY_TOKENS, temperature: 0.0, stop_at_eos: false, timeout: TIMEOUT };
        let client = Client::new(&format!("{}/v1", local.front().url()), None, style).await?;
        let mut soak = self.drive(&client).await?;
        soak.settle(&local).await;
        soak.fill(&local, &client, self.rooms()).await;
        local.stop().await;
        Ok(soak)
    }

    fn rooms(&self) -> usize {
        // A stage hears of a session's end after the client, which may ask again in between.
        2 * self.clients
    }

    fn setup(&self) -> anyhow::Result<Setup> {
        Ok(Setup {
            model: Arc::new(open_model(self.model.as_deref())?),
            quantisation: self.quant,
            nodes: self.nodes,
            threads: self.threads.unwrap_or_else(cores),
            clients: self.rooms(),
            sessions: self.rooms(),
            context: CONTEXT,
            timeout: TIMEOUT,
            api_key: None,
            links: Links::loopback(),
            speculation: false,
            receipts: false,
            draft: None,
        })
    }

    fn plan(&self, request: usize) -> Plan {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(request as u64);
        let max_tokens = rng.random_range(1..=REPLY_TOKENS);
        Plan {
            prompt_tokens: rng.random_range(1..=PROMPT_TOKENS),
            max_tokens,
            leave_after: rng.random_bool(self.leave).then(|| rng.random_range(0..max_tokens as usize)),
        }
    }

    async fn drive(&self, client: &Client) -> anyhow::Result<Soak> {
        let bar = ProgressBar::new(self.requests as u64).with_message("requests");
        let soak = Arc::new(Mutex::new(Soak::default()));
        let next = Arc::new(AtomicUsize::new(0));
        let start = Instant::now();
        let mut clients = JoinSet::new();
        for _ in 0..self.clients {
            let (args, client, soak, next, bar) =
                (self.clone(), client.clone(), soak.clone(), next.clone(), bar.clone());
            clients.spawn(async move {
                loop {
                    let request = next.fetch_add(1, Ordering::Relaxed);
                    if request >= args.requests {
                        return;
                    }
                    let plan = args.plan(request);
                    let workload = Workload::Random { tokens: plan.prompt_tokens, seed: args.seed };
                    let prompt = workload.prompt(request);
                    let outcome = client.ask(prompt, plan.max_tokens, plan.leave_after).await;
                    let outcome = outcome.and_then(|reply| match reply {
                        Some(reply) if reply.tokens != u64::from(plan.max_tokens) => {
                            Err(Failure::new("reply: of another length"))
                        }
                        reply => Ok(reply.map(|reply| reply.tokens)),
                    });
                    soak.lock().expect("nothing panics while it holds the counts").count(outcome, args.every);
                    bar.inc(1);
                }
            });
        }
        clients.join_all().await;
        bar.finish_and_clear();
        let mut soak = Arc::into_inner(soak).context("a client is still running")?.into_inner()?;
        soak.elapsed_s = start.elapsed().as_secs_f64();
        soak.growth_mib = soak.growth();
        Ok(soak)
    }
}

impl Soak {
    fn count(&mut self, outcome: Result<Option<u64>, Failure>, every: usize) {
        match outcome {
            Ok(Some(tokens)) => {
                self.answered += 1;
                self.tokens += tokens;
            }
            Ok(None) => self.left += 1,
            Err(Failure { kind, message }) => {
                if let Some(message) = message {
                    self.messages.entry(kind.clone()).or_insert(message);
                }
                *self.failures.entry(kind).or_default() += 1;
            }
        }
        let done = self.answered + self.left + self.failed();
        if done.is_multiple_of(every) {
            self.memory.extend(resident_mib().map(|mib| (done, mib)));
        }
    }

    fn failed(&self) -> usize {
        self.failures.values().sum()
    }

    /// From a fifth of the looks to the last.
    fn growth(&self) -> Option<f64> {
        let (_, last) = self.memory.last()?;
        Some(last - self.memory[self.memory.len() / 5].1)
    }

    /// Waits until nothing is open, and notes what stays open.
    async fn settle(&mut self, local: &Local) {
        let wait = async {
            let mut status = local.front().status();
            let _ = status.wait_for(|status| status.running + status.waiting == 0).await;
            for node in local.nodes() {
                let _ = node.status().wait_for(|status| status.sessions == 0).await;
                let _ = node.load().wait_for(|load| load.kv.sessions == 0).await;
            }
        };
        let _ = tokio::time::timeout(SETTLE, wait).await;
        let status = local.front().status().borrow().clone();
        self.open_requests = status.running + status.waiting;
        self.open_sessions = local.nodes().iter().map(|node| node.status().borrow().sessions).sum();
        let lost = |kv: KvUsage| kv.pages - kv.free - kv.cached;
        self.lost_pages = local.nodes().iter().map(|node| lost(node.load().borrow().kv)).sum();
    }

    /// Runs as many of the longest sessions at once as there is room for, which takes every slot and every
    /// page of every stage.
    async fn fill(&mut self, local: &Local, client: &Client, rooms: usize) {
        let status = local.front().status();
        let watch = tokio::spawn({
            let mut status = status.clone();
            async move {
                let mut most = 0;
                while status.changed().await.is_ok() {
                    most = most.max(status.borrow_and_update().running);
                    if most >= rooms {
                        break;
                    }
                }
                most
            }
        });
        let workload = Workload::Random { tokens: CONTEXT as usize / 4, seed: 0 };
        let long = (0..rooms).map(|room| client.ask(workload.prompt(room), CONTEXT - CONTEXT / 4, None));
        let failed = join_all(long).await.into_iter().filter_map(Result::err);
        for failure in failed.collect::<Vec<_>>() {
            self.count(Err(failure), usize::MAX);
        }
        let most = tokio::time::timeout(Duration::from_secs(1), watch).await;
        self.full_house = most.ok().and_then(Result::ok).unwrap_or(0);
    }

    /// The figures.
    pub fn report(&self, args: &SoakArgs) -> Report {
        let count = |name: &str, count: usize| Figure::new(name, Some(count as f64), "", 1);
        let share = |count: usize| Some(count as f64 / args.requests as f64);
        let mut figures = vec![
            count("requests answered", self.answered).against("requests", share(self.answered)),
            count("clients that left", self.left).against("requests", share(self.left)),
            count("failures", self.failed()).against("requests", share(self.failed())),
            Figure::new("requests per second", Some(args.requests as f64 / self.elapsed_s), "1/s", 1),
            Figure::new("output rate", Some(self.tokens as f64 / self.elapsed_s), "tokens/s", 1),
        ];
        let first = self.memory.get(self.memory.len() / 5).map(|(_, mib)| *mib);
        figures.extend(self.memory.iter().map(|&(done, mib)| {
            Figure::new(format!("resident memory after {done}"), Some(mib), "MiB", 1)
                .against("that after a fifth", first.map(|first| mib / first))
        }));
        figures.extend([
            Figure::new("growth of resident memory", self.growth_mib, "MiB", 1)
                .against("the bound", self.growth_mib.map(|growth| growth / args.growth_mib)),
            count("requests open at the end", self.open_requests),
            count("sessions open at the end", self.open_sessions),
            count("KV pages in use at the end", self.lost_pages),
            count("longest sessions at once afterwards", self.full_house)
                .against("the room for them", Some(self.full_house as f64 / args.rooms() as f64)),
        ]);
        let parameters = json!({
            "model": args.model, "nodes": args.nodes, "requests": args.requests, "clients": args.clients,
            "leave": args.leave, "every": args.every, "growth_mib": args.growth_mib, "seed": args.seed,
            "prompt_tokens": PROMPT_TOKENS, "max_tokens": REPLY_TOKENS, "context": CONTEXT,
        });
        let details =
            json!({ "errors": self.failures, "messages": self.messages, "memory_mib": self.memory });
        Report::new("soak", parameters, figures, details)
    }

    /// Whether all is well.
    ///
    /// # Errors
    /// With what is not.
    pub fn verdict(&self, args: &SoakArgs) -> anyhow::Result<()> {
        let (failed, rooms) = (self.failed(), args.rooms());
        ensure!(failed == 0, "{failed} requests failed");
        let (requests, sessions) = (self.open_requests, self.open_sessions);
        ensure!(requests + sessions == 0, "{requests} requests and {sessions} sessions stay open");
        ensure!(self.lost_pages == 0, "{} KV pages stay in use", self.lost_pages);
        let full = self.full_house;
        ensure!(
            full == rooms,
            "only {full} of the longest sessions ran at once, but there is room for {rooms}"
        );
        let growth = self.growth_mib.unwrap_or(0.0);
        ensure!(growth <= args.growth_mib, "resident memory grew by {growth:.1} MiB");
        Ok(())
    }
}

/// Resident memory of this process; `None` where the system does not tell.
fn resident_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Suite};

    fn args(more: &[&str]) -> SoakArgs {
        let cli = Cli::try_parse_from(["bench", "soak"].iter().chain(more)).expect("parses");
        let Suite::Soak(args) = cli.suite else { panic!("another suite") };
        args
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_short_soak_leaves_nothing() {
        let args = args(&["--requests", "40", "--clients", "4", "--every", "10", "--leave", "0.5"]);
        let soak = args.run().await.expect("starts");
        assert_eq!((soak.failures.clone(), soak.answered + soak.left), (BTreeMap::new(), 40));
        assert!(soak.left >= 5, "{} left", soak.left);
        assert_eq!((soak.open_requests, soak.open_sessions, soak.full_house), (0, 0, 8));
        assert_eq!(soak.lost_pages, 0);
        assert_eq!(soak.memory.len(), if resident_mib().is_some() { 4 } else { 0 });
        assert!(soak.report(&args).figures.len() >= 9);
    }

    #[test]
    fn every_fault_is_a_verdict() {
        let args = args(&["--clients", "2"]);
        let well = Soak { full_house: 4, growth_mib: Some(1.0), ..Soak::default() };
        assert!(well.verdict(&args).is_ok());
        let failures = BTreeMap::from([("timeout".to_owned(), 2)]);
        let faults = [
            (Soak { failures, ..well.clone() }, "2 requests failed"),
            (Soak { open_sessions: 3, ..well.clone() }, "0 requests and 3 sessions stay open"),
            (Soak { lost_pages: 2, ..well.clone() }, "2 KV pages stay in use"),
            (Soak { full_house: 3, ..well.clone() }, "only 3 of the longest"),
            (Soak { growth_mib: Some(17.0), ..well }, "grew by 17.0 MiB"),
        ];
        for (soak, said) in faults {
            let error = soak.verdict(&args).expect_err("a fault").to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
