//! Dolphin beside llama.cpp: the same file, threads and lengths in one run, turn by turn, so that both see
//! the same machine. It must be idle all the same: llama.cpp's threads spin while they wait for one another,
//! and one that is not scheduled holds up the others, which distorts the ratio in our favour.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use engine::model::{Model, ModelConfig, Quantisation};
use indicatif::ProgressBar;
use kernels::cpu::{Cpu, Isa};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::shape::Shape;
use crate::{
    limits::{Probe, integer_peak},
    llamacpp::LlamaCpp,
    machine::{Machine, cores},
    report::{Figure, Report},
    rig::{Rig, kv_position_bytes, stored_as_run},
    stats::{Summary, median},
};

/// What to run.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// Folder of llama-bench and llama-batched-bench
    #[arg(long, value_name = "DIR")]
    pub bin: PathBuf,
    /// GGUF files that both run (`bench make-model` writes some)
    #[arg(long, required = true, num_args = 1.., value_name = "FILE.gguf")]
    pub model: Vec<PathBuf>,
    /// Prompts, contexts and batches
    #[command(flatten)]
    pub shape: Shape,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Prefill,
    Decode { batch: usize },
}

/// One turn of both.
struct Turn {
    llama: Measured,
    ours: Measured,
}

/// A rate, and the limit around it.
struct Measured {
    tokens_per_s: f64,
    /// Bytes per second for decoding, multiply-adds per second for a prefill; the mean of right before and
    /// right after.
    limit: f64,
}

/// All turns of a task.
struct Compared {
    task: Task,
    turns: Vec<Turn>,
}

/// A model, as both run it.
struct Contest {
    rig: Rig<Cpu>,
    llama: LlamaCpp,
    cost: Cost,
    probe: Probe,
}

/// What a token costs.
struct Cost {
    /// Bytes of weights that a decoding step reads.
    weights: u64,
    /// Bytes of K and V that a sequence reads in the middle of a repetition.
    kv: u64,
    /// Multiply-adds of weights for a prompt token.
    multiply_adds: u64,
}

impl CompareArgs {
    /// Runs everything.
    ///
    /// # Errors
    /// If llama.cpp is not there or refuses a model, or if we cannot run one as it is stored.
    pub async fn run(self) -> anyhow::Result<Report> {
        self.shape.check()?;
        LlamaCpp::check(&self.bin)?;
        let threads = self.shape.threads();
        if let Some(load) = Machine::here().load.filter(|load| load + threads as f64 > cores() as f64 + 0.5) {
            eprintln!(
                "warning: the load is {load:.1} before anything runs. llama.cpp's threads spin while they \
                 wait for one another and lose more than ours when others run: the ratios flatter us."
            );
        }
        let (mut figures, mut models) = (Vec::new(), Vec::new());
        for path in &self.model {
            let mut contest = block_in_place(|| self.contest(path, threads))?;
            let mut compared: Vec<Compared> =
                self.tasks().map(|task| Compared { task, turns: Vec::new() }).collect();
            let rounds = compared.len() * self.shape.repetitions;
            let name = path.file_stem().map_or(String::new(), |name| name.to_string_lossy().into_owned());
            let bar = ProgressBar::new(rounds as u64).with_message(name.clone());
            let mut said = Value::Null;
            for _ in 0..self.shape.repetitions {
                for one in &mut compared {
                    let (turn, its) = self.turn(&mut contest, one.task, threads).await?;
                    one.turns.push(turn);
                    said = its;
                    bar.inc(1);
                }
            }
            bar.finish_and_clear();
            figures.extend(compared.iter().flat_map(|one| self.figures(&name, &contest.cost, one)));
            models.push(json!({
                "model": name, "weight_bytes_per_step": contest.cost.weights,
                "kv_bytes_per_sequence_and_step": contest.cost.kv, "llama_cpp": said,
            }));
        }
        let parameters = self.shape.parameters(json!({
            "bin": self.bin, "models": self.model, "isa": Isa::detect().name(),
        }));
        Ok(Report::new("compare-llamacpp", parameters, figures, json!({ "models": models })))
    }

    fn tasks(&self) -> impl Iterator<Item = Task> {
        [Task::Prefill].into_iter().chain(self.shape.batch.iter().map(|&batch| Task::Decode { batch }))
    }

    /// Loads our side and warms it up.
    fn contest(&self, path: &Path, threads: usize) -> anyhow::Result<Contest> {
        let model = Model::open(path).with_context(|| format!("{} cannot be used", path.display()))?;
        if !stored_as_run(&model) {
            let formats: Vec<String> = model.stored_formats().iter().map(ToString::to_string).collect();
            bail!("{} holds {}, which we do not run as it is", path.display(), formats.join(", "));
        }
        let sequences = self.shape.sessions();
        let mut rig = Rig::load(
            Cpu::new(threads, Isa::detect())?,
            &model,
            Quantisation::Q8,
            self.shape.rows,
            self.shape.limits()?,
        )?;
        let bar = ProgressBar::new(sequences as u64).with_message("prompts");
        rig.open(0..sequences, self.shape.reached())?;
        for session in 0..sequences {
            rig.prefill(session, self.shape.context)?;
            bar.inc(1);
        }
        for &batch in &self.shape.batch {
            rig.decode(batch, self.shape.context, 1)?;
        }
        bar.finish_and_clear();
        let llama = LlamaCpp { bin: self.bin.clone(), model: path.to_owned(), threads };
        let cost = Cost::of(&model, self.shape.read());
        Ok(Contest { rig, llama, cost, probe: Probe::new(threads) })
    }

    /// One turn of each, and what llama.cpp says of itself.
    async fn turn(&self, contest: &mut Contest, task: Task, threads: usize) -> anyhow::Result<(Turn, Value)> {
        let Contest { rig, llama, probe, .. } = contest;
        let limit = || match task {
            Task::Prefill => block_in_place(|| integer_peak(threads)),
            Task::Decode { .. } => block_in_place(|| probe.measure()),
        };
        let before = limit();
        let its = match task {
            Task::Prefill => llama.prefill(self.shape.prompt).await?,
            Task::Decode { batch } => llama.decode(batch, self.shape.context, self.shape.tokens).await?,
        };
        let between = limit();
        let ours = block_in_place(|| self.ours(rig, task))?;
        let after = limit();
        let measured = |tokens_per_s, one, other| Measured { tokens_per_s, limit: f64::midpoint(one, other) };
        let turn =
            Turn { llama: measured(its.tokens_per_s, before, between), ours: measured(ours, between, after) };
        Ok((turn, its.said))
    }

    /// Our tokens per second.
    fn ours(&self, rig: &mut Rig<Cpu>, task: Task) -> anyhow::Result<f64> {
        match task {
            // The session after those that decode.
            Task::Prefill => rig.time_prefill(self.shape.sessions(), self.shape.prompt),
            Task::Decode { batch } => {
                let elapsed = rig.decode(batch, self.shape.context, self.shape.tokens)?;
                Ok((batch * self.shape.tokens) as f64 / elapsed.as_secs_f64())
            }
        }
    }

    fn figures(&self, model: &str, cost: &Cost, compared: &Compared) -> [Figure; 4] {
        let (name, limit, unit, scale) = match compared.task {
            Task::Prefill => {
                (format!("prefill of {}", self.shape.prompt), "integer peak", "G multiply-adds/s", 1e9)
            }
            Task::Decode { batch } => (format!("decode at batch {batch}"), "read bandwidth", "GB/s", 1e9),
        };
        let each = |value: &dyn Fn(&Turn) -> f64| compared.turns.iter().map(value).collect::<Vec<f64>>();
        let side = |who: &str, pick: fn(&Turn) -> &Measured| {
            let share = |turn: &Turn| {
                let one = pick(turn);
                one.tokens_per_s * cost.of_token(compared.task) / one.limit
            };
            let rates = Summary::of(&each(&|turn| pick(turn).tokens_per_s));
            Figure::summary(format!("{model}: {name}, {who}"), rates, "tokens/s")
                .against(limit, median(&each(&share)))
        };
        let limits = each(&|turn| f64::midpoint(turn.llama.limit, turn.ours.limit) / scale);
        let ratios = each(&|turn| turn.ours.tokens_per_s / turn.llama.tokens_per_s);
        [
            Figure::summary(format!("{model}: {name}, {limit}"), Summary::of(&limits), unit),
            side("llama.cpp", |turn| &turn.llama),
            side("Dolphin", |turn| &turn.ours),
            Figure::summary(format!("{model}: {name}, Dolphin / llama.cpp"), Summary::of(&ratios), "x"),
        ]
    }
}

impl Cost {
    fn of(model: &Model, positions: usize) -> Self {
        let config = model.config();
        let layers: u64 = model.layer_bytes(Quantisation::Q8).iter().sum();
        Self {
            weights: layers + model.head_bytes(Quantisation::Q8),
            kv: (kv_position_bytes(config, Quantisation::Q8) * positions) as u64,
            multiply_adds: multiply_adds(config),
        }
    }

    /// What a token takes of its task's limit.
    fn of_token(&self, task: Task) -> f64 {
        match task {
            Task::Prefill => self.multiply_adds as f64,
            Task::Decode { batch } => self.weights as f64 / batch as f64 + self.kv as f64,
        }
    }
}

/// Weights of the matrices of all layers.
fn multiply_adds(config: &ModelConfig) -> u64 {
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let layer = config.hidden * (2 * q + 2 * kv + 3 * config.intermediate);
    (config.layers * layer) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_costs_its_share_of_the_step() {
        let cost = Cost { weights: 800, kv: 3, multiply_adds: 70 };
        assert_eq!(cost.of_token(Task::Decode { batch: 8 }), 103.0);
        assert_eq!(cost.of_token(Task::Prefill), 70.0);
        let model = Model::demo().expect("opens");
        let config = model.config();
        let ends = config.vocabulary * config.hidden * if config.tied { 1 } else { 2 };
        let vectors = model.parameters() - multiply_adds(config) - ends as u64;
        assert!(vectors < model.parameters() / 100, "{vectors} weights are in no matrix");
    }
}
