//! `dolphin plan` and `dolphin profile`: who should hold what, and how fast this machine is.

use std::{
    fs,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use engine::{
    on_device,
    profile::{shape, thorough},
    swarm::LiveCluster,
};
use serde::{Deserialize, Serialize};
use shard_planner::{ClusterFile, Demand, Node, Objective, Report, cluster::Link, demand::Limits, plan};

use super::options::{ModelArgs, StageArgs};

/// Say which machine should hold which layers, and what that would reach.
///
/// The cluster is a TOML or JSON file of `[[node]]`s (id, memory, and a profile as `dolphin profile --json`
/// prints it, or rates to estimate from) and `[[link]]`s (from, to, rtt_ms, mbit; between nodes or sites).
/// Links that are missing are estimated and marked so. A `[model]` table, if there is one, stands for --model.
#[derive(Args, Debug)]
pub(super) struct PlanCommand {
    /// The cluster, as TOML or JSON
    #[arg(value_name = "FILE", required_unless_present = "gateway")]
    cluster: Option<PathBuf>,
    /// Show the plan that a running gateway follows instead, given its URL
    #[arg(long, value_name = "URL", conflicts_with = "cluster")]
    gateway: Option<String>,
    /// Key of that gateway
    #[arg(long, env = "DOLPHIN_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// Write what that gateway knows of its swarm as a cluster file, to plan with
    #[arg(long, value_name = "FILE", requires = "gateway")]
    save: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    /// What is to be best
    #[arg(long, env = "DOLPHIN_OBJECTIVE", default_value = "latency", value_name = "WHAT")]
    objective: ObjectiveChoice,
    /// Replies at once
    #[arg(long, default_value_t = 1, value_name = "N")]
    concurrency: u32,
    /// Tokens of a prompt, on average
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    prompt: u32,
    /// Tokens of a reply, on average
    #[arg(long, default_value_t = 256, value_name = "TOKENS")]
    output: u32,
    /// KV positions kept for a session [default: prompt and reply]
    #[arg(long, value_name = "TOKENS")]
    kv_context: Option<u32>,
    /// Longest time per token in milliseconds
    #[arg(long, value_name = "MS")]
    tpot_ms: Option<f64>,
    /// Longest time to the first token in milliseconds
    #[arg(long, value_name = "MS")]
    ttft_ms: Option<f64>,
    /// Write a picture of the pipelines
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Longest wait for a gateway.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be best.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ObjectiveChoice {
    /// Least time per token
    Latency,
    /// Most tokens per second
    Throughput,
    /// Least price for a token
    Cost,
}

/// A cluster file, perhaps with a model.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    relay_mbit: Option<f64>,
    node: Vec<Node>,
    #[serde(default)]
    link: Vec<Link>,
    model: Option<shard_planner::Model>,
}

impl PlanFile {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)?;
        match path.extension().is_some_and(|extension| extension == "json") {
            true => Ok(serde_json::from_str(&text)?),
            false => Ok(toml::from_str(&text)?),
        }
    }
}

impl PlanFile {
    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = match path.extension().is_some_and(|extension| extension == "json") {
            true => serde_json::to_string_pretty(self)?,
            false => toml::to_string(self)?,
        };
        fs::write(path, text).with_context(|| format!("--save {}", path.display()))
    }
}

impl PlanCommand {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let report = match (&self.gateway, &self.cluster) {
            (Some(url), _) => self.of_gateway(url).await?,
            (None, Some(path)) => self.of_file(path)?,
            (None, None) => bail!("a cluster file or --gateway is needed"),
        };
        if let Some(path) = &self.svg {
            fs::write(path, report.svg()).with_context(|| format!("--svg {}", path.display()))?;
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        let colours = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        write!(out, "{}", painted(&report.to_string(), colours))?;
        Ok(())
    }

    /// The plan that a gateway follows.
    async fn of_gateway(&self, url: &str) -> anyhow::Result<Report> {
        let base = url.trim_end_matches('/').trim_end_matches("/v1");
        let mut request = reqwest::Client::new().get(format!("{base}/v1/cluster")).timeout(PATIENCE);
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key);
        }
        let answer = request.send().await?;
        let (status, body) = (answer.status(), answer.text().await?);
        if !status.is_success() {
            bail!("{base} answers {status}: {body}");
        }
        let live: LiveCluster =
            serde_json::from_str(&body).with_context(|| format!("{base} is no gateway of this version"))?;
        if let Some(path) = &self.save {
            PlanFile {
                relay_mbit: live.relay_mbit,
                node: live.node,
                link: live.link,
                model: Some(live.model),
            }
            .write(path)?;
        }
        let missing = || live.problem.unwrap_or_else(|| "no pipeline stands".into());
        live.plan.with_context(|| format!("{base} has no plan: {}", missing()))
    }

    fn of_file(&self, path: &Path) -> anyhow::Result<Report> {
        let file = PlanFile::read(path).with_context(|| format!("{}", path.display()))?;
        let model = match file.model {
            Some(model) => model,
            None => shape(&self.model.open()?)?,
        };
        let cluster =
            ClusterFile { nodes: file.node, links: file.link, relay_mbit: file.relay_mbit }.into_cluster()?;
        let plan = plan(&model, &cluster, &self.demand())?;
        Ok(Report::new(&model.name, &cluster, &plan))
    }

    fn demand(&self) -> Demand {
        let seconds = |ms: Option<f64>| ms.map(|ms| ms / 1e3);
        let limits = Limits { tpot_s: seconds(self.tpot_ms), ttft_s: seconds(self.ttft_ms) };
        Demand {
            format: self.model.quant.to_string(),
            prompt: self.prompt,
            output: self.output,
            context: self.kv_context.unwrap_or(self.prompt.saturating_add(self.output)),
            concurrency: self.concurrency,
            objective: match self.objective {
                ObjectiveChoice::Latency => Objective::Latency,
                ObjectiveChoice::Throughput => Objective::Throughput(limits),
                ObjectiveChoice::Cost => Objective::Cost(limits),
            },
        }
    }
}

/// What limits a plan in red, where there are colours.
fn painted(text: &str, colours: bool) -> String {
    if !colours {
        return text.to_owned();
    }
    let paint = |line: &str| match line.contains("<- bottleneck") {
        true => format!("\x1b[31m{line}\x1b[0m\n"),
        false => format!("{line}\n"),
    };
    text.lines().map(paint).collect()
}

/// Measure how fast this machine is at a layer of a model, for `dolphin plan`.
///
/// It takes seconds, reads one layer, and is kept: the next time the same machine, model and format are asked
/// about, the answer is there. Leave the machine alone meanwhile.
#[derive(Args, Debug)]
pub(super) struct ProfileCommand {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    stage: StageArgs,
    /// Name of this machine in the plan [default: its host name]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Memory that it lends for weights and KV
    #[arg(long, env = "DOLPHIN_MEMORY", default_value = "4GiB", value_name = "BYTES")]
    memory: ByteSize,
    /// Measure again, whatever is kept
    #[arg(long)]
    fresh: bool,
    /// Print a node as JSON, to be put into a cluster file
    #[arg(long)]
    json: bool,
}

impl ProfileCommand {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let model = self.model.open()?;
        let device = self.stage.device()?;
        let (profile, kept) =
            on_device!(device, backend => thorough(&model, self.model.quant, backend, self.fresh))?;
        let id = self.id.clone().unwrap_or_else(host_name);
        let node = Node::new(&id, self.memory.as_u64()).with_profile(profile.clone());
        if self.json {
            println!("{}", serde_json::to_string(&node)?);
            return Ok(());
        }
        let source = if kept { "measured before" } else { "measured now" };
        println!("{id}, one layer of {} at {} ({source})\n", model.name(), self.model.quant);
        println!("{:>10}  {:>12}  {:>12}", "sequences", "ms", "GB/s");
        for batch in profile.decode.counts() {
            let seconds = profile.decode.at(batch);
            println!(
                "{batch:>10}  {:>12.3}  {:>12.2}",
                seconds * 1e3,
                profile.layer_bytes as f64 / seconds / 1e9
            );
        }
        println!("\n{:>10}  {:>12}  {:>12}", "prompt", "ms", "tokens/s");
        for tokens in profile.prefill.counts() {
            let seconds = profile.prefill.at(tokens);
            println!("{tokens:>10}  {:>12.3}  {:>12.0}", seconds * 1e3, tokens / seconds);
        }
        Ok(())
    }
}

fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "this".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_bring_its_own_model() {
        let text = r#"
            [model]
            name = "tiny"
            row_bytes = 64
            kv_bytes = [4, 4]
            weights = [{ format = "q8", embedding = 10, layers = [100, 100], head = 10 }]

            [[node]]
            id = "a"
            memory = 1000
            rates = { memory_rate = 1e6, flops = 1e9 }

            [[node]]
            id = "b"
            memory = 1000
            [[node.profiles]]
            format = "q8"
            layer_bytes = 100
            decode = [[1, 0.001], [8, 0.002]]
            prefill = [[16, 0.01]]

            [[link]]
            from = "a"
            to = "b"
            rtt_ms = 2
            mbit = 100
        "#;
        let file: PlanFile = toml::from_str(text).expect("it is a cluster");
        let cluster = ClusterFile { nodes: file.node, links: file.link, relay_mbit: None }
            .into_cluster()
            .expect("it is sound");
        let demand = Demand { context: 8, ..Demand::chat("q8", 1, Objective::Latency) };
        let plan = plan(&file.model.expect("it has a model"), &cluster, &demand).expect("there is a plan");
        // The estimated node reads its layers in a tenth of the time.
        assert_eq!(plan.pipelines[0].stages.len(), 1);
    }

    #[test]
    fn colours_are_for_terminals() {
        assert_eq!(painted("a  <- bottleneck\n", false), "a  <- bottleneck\n");
        assert!(painted("a  <- bottleneck\n", true).contains("\x1b[31m"));
    }
}
