//! What guessing ahead gains: one client's replies over a simulated wide-area network, decoded plainly, with
//! guesses from texts, and with a draft model beside them. The replies must be the same.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use clap::Args;
use engine::{
    local::{Links, Local},
    model::{Model, Quantisation},
};
use indicatif::ProgressBar;
use serde_json::json;
use transport::sim::Network;

use crate::{
    client::{Client, Style},
    machine::cores,
    report::{Figure, Report},
    stats::{Summary, median},
    suites::wide::ring,
    swarm::Setup,
    workload::Workload,
};

/// What to run. The model is the embedded one, and so is its draft model.
#[derive(Args, Clone, Debug)]
pub struct SpeculationArgs {
    /// Stages that the model is cut into
    #[arg(long, default_value_t = 4)]
    pub stages: usize,
    /// Round trips of the whole ring, in ms
    #[arg(long, value_delimiter = ',', default_value = "0,100", value_name = "MS")]
    pub rtt: Vec<u64>,
    /// Bandwidth of its links, in Mbit/s
    #[arg(long, default_value_t = 100, value_name = "MBIT")]
    pub bandwidth: u64,
    /// Threads that compute, shared by the stages and the draft model [default: one per core]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Most tokens of a reply
    #[arg(long, default_value_t = 96)]
    pub max_tokens: u32,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Repetitions, each with swarms of its own, so that none knows the replies
    #[arg(long, default_value_t = 5)]
    pub repetitions: usize,
}

/// How replies are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Plain,
    Texts,
    Draft,
}

const WAYS: [(Way, &str); 3] =
    [(Way::Plain, "plain"), (Way::Texts, "guesses from texts"), (Way::Draft, "and a draft model")];

/// One pass over a workload's prompts.
struct Run {
    /// Tokens per second, the prompt's time not counted.
    rate: f64,
    /// Guesses sent along, and how many were right.
    drafted: u64,
    accepted: u64,
    texts: Vec<String>,
}

/// All runs of one workload at one round trip, by way.
struct Case {
    name: String,
    runs: [Vec<Run>; 3],
}

impl SpeculationArgs {
    /// Runs everything.
    ///
    /// # Errors
    /// If a swarm cannot start, a request fails, or guesses changed a reply.
    pub async fn run(&self) -> anyhow::Result<Report> {
        ensure!(self.stages > 0 && self.repetitions > 0, "--stages and --repetitions must be at least 1");
        ensure!(self.max_tokens > 1 && self.bandwidth > 0, "--max-tokens and --bandwidth are too small");
        let (model, draft) = (Arc::new(Model::demo()?), Arc::new(Model::demo_draft()?));
        let workloads = [("copying", Workload::copying()), ("novel", Workload::novel())];
        let rounds = self.repetitions * self.rtt.len() * workloads.len() * WAYS.len();
        let bar = ProgressBar::new(rounds as u64).with_message("replies");
        let mut cases = Vec::new();
        for &rtt in &self.rtt {
            for (name, workload) in &workloads {
                let mut case = Case { name: format!("{name}, RTT {rtt} ms"), runs: Default::default() };
                for _ in 0..self.repetitions {
                    for ((way, _), runs) in WAYS.iter().zip(&mut case.runs) {
                        let setup = self.setup(&model, &draft, *way, rtt);
                        runs.push(self.measure(&setup, workload).await?);
                        bar.inc(1);
                    }
                }
                case.check()?;
                cases.push(case);
            }
        }
        bar.finish_and_clear();
        let parameters = json!({
            "model": model.name(), "draft": draft.name(), "stages": self.stages, "rtt_ms": self.rtt,
            "bandwidth_mbit": self.bandwidth, "max_tokens": self.max_tokens, "temperature": self.temperature,
            "threads": self.threads.unwrap_or_else(cores), "repetitions": self.repetitions,
        });
        let details = json!({ "replies": "the same in every way of decoding" });
        Ok(Report::new("speculation", parameters, cases.iter().flat_map(Case::figures).collect(), details))
    }

    fn setup(&self, model: &Arc<Model>, draft: &Arc<Model>, way: Way, rtt: u64) -> Setup {
        let network = Network::new(1);
        network.set_conditions(ring(rtt, self.bandwidth, self.stages));
        Setup {
            model: model.clone(),
            quantisation: Quantisation::Q8,
            nodes: self.stages,
            threads: self.threads.unwrap_or_else(cores),
            clients: 1,
            sessions: 2,
            context: 512,
            timeout: Duration::from_secs(600),
            api_key: None,
            links: Links::Simulated(network),
            speculation: way != Way::Plain,
            receipts: false,
            draft: (way == Way::Draft).then(|| draft.clone()),
        }
    }

    async fn measure(&self, setup: &Setup, workload: &Workload) -> anyhow::Result<Run> {
        let local = setup.start().await?;
        let run = self.replies(&local, workload).await;
        local.stop().await;
        run
    }

    async fn replies(&self, local: &Local, workload: &Workload) -> anyhow::Result<Run> {
        let style = Style {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            stop_at_eos: true,
            timeout: Duration::from_secs(600),
        };
        let client = Client::new(&format!("{}/v1", local.front().url()), None, style).await?;
        // Links, pages and clock are new at the first request.
        let (mut texts, mut tokens, mut seconds) = (Vec::new(), 0, 0.0);
        for index in std::iter::once(None).chain((0..workload.prompts()).map(Some)) {
            let prompt = index.map_or_else(|| "Hello!".into(), |index| workload.prompt(index));
            let reply = client.reply(prompt).await;
            let reply = reply.map_err(|failure| anyhow::anyhow!("a request failed: {failure:?}"))?;
            if index.is_some() {
                seconds += reply.latency_s - reply.first_s.context("a reply has no text")?;
                tokens += reply.tokens - 1;
                texts.push(reply.text);
            }
        }
        let status = local.nodes()[0].status().borrow().clone();
        let (drafted, accepted) = (status.drafted, status.accepted);
        Ok(Run { rate: tokens as f64 / seconds, drafted, accepted, texts })
    }
}

impl Case {
    /// Guesses change no reply.
    fn check(&self) -> anyhow::Result<()> {
        let mut texts = self.runs.iter().flatten().map(|run| &run.texts);
        let first = texts.next().context("nothing was run")?;
        ensure!(texts.all(|texts| texts == first), "{}: guesses changed a reply", self.name);
        Ok(())
    }

    fn figures(&self) -> Vec<Figure> {
        let plain = &self.runs[0];
        let figure = |(runs, (_, way)): (&Vec<Run>, (Way, &str))| {
            let rates: Vec<f64> = runs.iter().map(|run| run.rate).collect();
            let ratios: Vec<f64> = runs.iter().zip(plain).map(|(run, plain)| run.rate / plain.rate).collect();
            let rate = Figure::summary(format!("{}: {way}", self.name), Summary::of(&rates), "tokens/s")
                .against("plain", median(&ratios));
            let shares: Vec<f64> = (runs.iter().filter(|run| run.drafted > 0))
                .map(|run| 100.0 * run.accepted as f64 / run.drafted as f64)
                .collect();
            let kept =
                Figure::summary(format!("{}: {way}, guesses kept", self.name), Summary::of(&shares), "%");
            if shares.is_empty() { vec![rate] } else { vec![rate, kept] }
        };
        self.runs.iter().zip(WAYS).flat_map(figure).collect()
    }
}
