//! What a cut of the model costs: the time of a token over several stages linked by QUIC on loopback,
//! beside the same layers in one stage, and in one without a node, a gateway and a link.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;
use engine::{
    model::Quantisation,
    stage::{StageLimits, kv::pages_for},
};
use indicatif::ProgressBar;
use kernels::cpu::{Cpu, Isa};
use serde_json::json;
use tokio::task::block_in_place;

use crate::{
    machine::cores,
    report::{Figure, Report},
    rig::{Rig, open_model, positions},
    stats::{Summary, ratio},
    swarm::{Served, Setup},
    workload::Workload,
};

/// What to run.
#[derive(Args, Clone, Debug)]
pub struct HopsArgs {
    /// Model [default: the embedded demo model]
    #[arg(long, value_name = "DIR|FILE")]
    pub model: Option<PathBuf>,
    /// How its weights are held; a quantised GGUF's as they are
    #[arg(long, default_value = "q8", value_name = "q8|q4|f32")]
    pub quant: Quantisation,
    /// Threads that compute, shared by the stages [default: one per core]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Stages that the model is cut into
    #[arg(long, default_value_t = 4)]
    pub stages: usize,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 32)]
    pub prompt_tokens: usize,
    /// Tokens of a reply
    #[arg(long, default_value_t = 128)]
    pub max_tokens: u32,
    /// Replies of each, which take turns
    #[arg(long, default_value_t = 9)]
    pub repetitions: usize,
}

impl HopsArgs {
    /// Runs everything.
    ///
    /// # Errors
    /// If a swarm cannot start, or a request fails.
    pub async fn run(&self) -> anyhow::Result<Report> {
        ensure!(self.stages > 1, "--stages must be at least 2");
        ensure!(self.max_tokens > 1 && self.prompt_tokens > 0, "a reply needs 2 tokens, a prompt 1");
        ensure!(self.repetitions > 0, "--repetitions must be at least 1");
        let model = open_model(self.model.as_deref())?;
        let threads = self.threads.unwrap_or_else(cores);
        let tokens = self.max_tokens as usize;
        let reach = positions(self.prompt_tokens + tokens)?;
        let limits = StageLimits { rows: 256, pages: pages_for(reach), sessions: 1, positions: reach };
        let mut rig = Rig::load(Cpu::new(threads, Isa::detect())?, &model, self.quant, 256, limits)?;
        rig.open(0..1, reach as usize)?;
        let setup = Setup::of_one_client(model.into(), self.quant, 1, threads, reach);
        let one = Served::start(&setup, self.max_tokens).await?;
        let several = Served::start(&Setup { nodes: self.stages, ..setup.clone() }, self.max_tokens).await?;
        let workload = Workload::Random { tokens: self.prompt_tokens, seed: 1 };
        let bar = ProgressBar::new(self.repetitions as u64).with_message("replies");
        let mut times = [const { Vec::new() }; 3];
        for repetition in 0..=self.repetitions {
            let bare = block_in_place(|| {
                rig.prefill(0, self.prompt_tokens)?;
                rig.decode(1, self.prompt_tokens, tokens - 1)
            })?;
            let turn = [
                bare.as_secs_f64() * 1e3 / (tokens - 1) as f64,
                one.token_ms(workload.prompt(repetition)).await?,
                several.token_ms(workload.prompt(repetition)).await?,
            ];
            // The first does not count.
            if repetition > 0 {
                times.iter_mut().zip(turn).for_each(|(times, time)| times.push(time));
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        one.local.stop().await;
        several.local.stop().await;
        let parameters = json!({
            "swarm": setup.parameters(), "stages": self.stages, "prompt_tokens": self.prompt_tokens,
            "max_tokens": self.max_tokens, "repetitions": self.repetitions,
        });
        Ok(Report::new("hops", parameters, self.figures(&times), json!({ "model": setup.model.name() })))
    }

    fn figures(&self, times: &[Vec<f64>; 3]) -> Vec<Figure> {
        let [bare, one, several] = times;
        let less = |a: &[f64], b: &[f64], parts: f64| -> Vec<f64> {
            a.iter().zip(b).map(|(a, b)| (a - b) / parts).collect()
        };
        let node = less(one, bare, 1.0);
        // From stage to stage, and from the last to the first.
        let hop = less(several, one, self.stages as f64);
        let figure = |name: String, times: &[f64]| Figure::summary(name, Summary::of(times), "ms");
        vec![
            figure("a token in a stage alone".into(), bare),
            figure("a token over one node".into(), one).against("a stage alone", ratio(one, bare)),
            figure(format!("a token over {} nodes", self.stages), several)
                .against("one node", ratio(several, one)),
            figure("of it node and gateway".into(), &node).against("a stage alone", ratio(&node, bare)),
            figure("of it each hop".into(), &hop).against("one node", ratio(&hop, one)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::{Cli, Suite};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn hops_are_counted() {
        let command = ["bench", "hops", "--stages", "2", "--max-tokens", "8", "--repetitions", "2"];
        let Suite::Hops(args) = Cli::try_parse_from(command).expect("parses").suite else {
            panic!("another suite")
        };
        let report = args.run().await.expect("runs");
        assert_eq!(report.figures.len(), 5);
        assert!(report.figures[..3].iter().all(|figure| figure.value.is_some_and(|ms| ms > 0.0)));
        assert!(report.figures.iter().all(|figure| figure.samples == 2));
    }
}
