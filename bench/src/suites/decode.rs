//! Prefill and decoding of one stage that holds the whole model, without HTTP and links.
//!
//! A decoding step reads every weight once whatever the batch, so its limit is the read bandwidth of
//! main memory, measured before each repetition with as many threads.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use engine::{
    message::{Segment, SessionId},
    model::{Model, ModelConfig, Quantisation, Shard},
    stage::{Input, Stage, StageLimits, kv::pages_for},
};
use indicatif::ProgressBar;
use kernels::{
    backend::{Backend, KvShape, PAGE},
    cpu::{Cpu, Isa},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::{
    bandwidth::Probe,
    machine::cores,
    meter::{Metered, Timed},
    report::{Figure, Report},
    stats::{Summary, median},
};

/// What to run.
#[derive(Args, Clone, Debug)]
pub struct DecodeArgs {
    /// Model [default: the embedded demo model]
    #[arg(long, value_name = "DIR|FILE")]
    pub model: Option<PathBuf>,
    /// How its weights are held
    #[arg(long, default_value = "q8", value_name = "q8|q4|f32")]
    pub quant: Quantisation,
    /// Threads that compute, and that read where bandwidth is measured [default: one per core]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Sessions that decode together
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    pub batch: Vec<usize>,
    /// Tokens of the prompt that is prefilled
    #[arg(long, default_value_t = 512)]
    pub prompt: usize,
    /// Positions that a session has before it decodes
    #[arg(long, default_value_t = 128)]
    pub context: usize,
    /// Tokens that a session decodes in a repetition
    #[arg(long, default_value_t = 32)]
    pub tokens: usize,
    /// Repetitions of each measurement, after one that does not count
    #[arg(long, default_value_t = 5)]
    pub repetitions: usize,
    /// Most rows of one step of prefill
    #[arg(long, default_value_t = 256)]
    pub rows: usize,
}

/// Repetitions at one batch.
struct Decoded {
    batch: usize,
    /// Tokens per second over all sessions.
    rates: Vec<f64>,
    /// Weight bytes per second divided by the bandwidth of the same repetition.
    shares: Vec<f64>,
    /// Seconds of one step spent in each of [`Timed::ALL`].
    operations: Vec<[f64; Timed::ALL.len()]>,
}

impl DecodeArgs {
    /// Runs everything.
    ///
    /// # Errors
    /// If the model cannot be loaded, or a value of it is not finite.
    pub fn run(&self) -> anyhow::Result<Report> {
        let counts = [self.prompt, self.context, self.tokens, self.repetitions, self.rows];
        ensure!(!counts.contains(&0) && !self.batch.contains(&0), "every count must be at least 1");
        ensure!(!self.batch.is_empty(), "--batch needs a number");
        let model = match &self.model {
            Some(path) => Model::open(path).with_context(|| format!("{} cannot be used", path.display()))?,
            None => Model::demo()?,
        };
        let threads = self.threads.unwrap_or_else(cores);
        let mut rig = self.rig(&model, threads)?;
        let probe = Probe::new(threads);
        let weights = Weights::of(&model, self.quant);
        let rounds = (self.batch.len() + 1) * (self.repetitions + 1);
        let bar = ProgressBar::new(rounds as u64).with_message("measuring");
        let mut bandwidth = Vec::new();
        let prefill = self.prefill(&mut rig, &bar)?;
        let mut decoded = Vec::new();
        for &batch in &self.batch {
            decoded.push(self.decode(&mut rig, batch, &weights, &probe, &mut bandwidth, &bar)?);
        }
        bar.finish_and_clear();
        let figures = self.figures(&weights, &bandwidth, &prefill, &decoded);
        let details = json!({
            "model": model.name(), "device": rig.meter.describe(), "weight_bytes_per_step": weights.step,
            "kv_bytes_per_session_and_step": self.kv_bytes(model.config()),
        });
        Ok(Report::new("decode", self.parameters(threads), figures, details))
    }

    fn rig(&self, model: &Model, threads: usize) -> anyhow::Result<Rig> {
        let config = model.config();
        let sessions = self.batch.iter().copied().max().unwrap_or(1);
        let (decoding, prompt) = (positions(self.context + self.tokens)?, positions(self.prompt)?);
        let limits = StageLimits {
            rows: self.rows.max(sessions),
            pages: (sessions * pages_for(decoding)).max(pages_for(prompt)),
            sessions,
            positions: decoding.max(prompt),
        };
        ensure!(limits.positions <= config.max_positions, "the model has {} positions", config.max_positions);
        let shard = Shard { layers: 0..config.layers, embedding: true, head: true };
        let bar = ProgressBar::new(0).with_message("loading");
        let weights = model.load(&shard, self.quant, &|progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        })?;
        bar.finish_and_clear();
        let meter = Metered::new(Cpu::new(threads, Isa::detect())?);
        let stage = Stage::new(meter.clone(), config, &shard, weights, self.quant.profile(), limits)?;
        Ok(Rig::new(stage, meter, config, self.rows))
    }

    /// Prompt tokens per second.
    fn prefill(&self, rig: &mut Rig, bar: &ProgressBar) -> anyhow::Result<Vec<f64>> {
        let mut rates = Vec::new();
        for _ in 0..=self.repetitions {
            rig.open(1, self.prompt)?;
            let start = Instant::now();
            rig.prefill(0, self.prompt)?;
            rates.push(self.prompt as f64 / start.elapsed().as_secs_f64());
            rig.close(1);
            bar.inc(1);
        }
        rates.remove(0);
        Ok(rates)
    }

    fn decode(
        &self,
        rig: &mut Rig,
        batch: usize,
        weights: &Weights,
        probe: &Probe,
        bandwidth: &mut Vec<f64>,
        bar: &ProgressBar,
    ) -> anyhow::Result<Decoded> {
        let mut out = Decoded { batch, rates: Vec::new(), shares: Vec::new(), operations: Vec::new() };
        rig.open(batch, self.context + self.tokens)?;
        for session in 0..batch {
            rig.prefill(session, self.context)?;
        }
        rig.decode(batch, self.context, self.tokens)?;
        bar.inc(1);
        for _ in 0..self.repetitions {
            let limit = probe.measure();
            rig.operations();
            let seconds = rig.decode(batch, self.context, self.tokens)?.as_secs_f64();
            let step = seconds / self.tokens as f64;
            bandwidth.push(limit);
            out.rates.push(batch as f64 / step);
            out.shares.push(weights.step as f64 / step / limit);
            out.operations.push(rig.operations().map(|spent| spent.as_secs_f64() / self.tokens as f64));
            bar.inc(1);
        }
        rig.close(batch);
        Ok(out)
    }

    fn figures(
        &self,
        weights: &Weights,
        bandwidth: &[f64],
        prefill: &[f64],
        decoded: &[Decoded],
    ) -> Vec<Figure> {
        let giga: Vec<f64> = bandwidth.iter().map(|bytes| bytes / 1e9).collect();
        let single = decoded.iter().find(|decoded| decoded.batch == 1);
        let alone = single.and_then(|single| median(&single.rates));
        let summary = Summary::of(prefill);
        let ratio = summary.zip(alone).map(|(prefill, alone)| prefill.median / alone);
        let mut figures = vec![
            Figure::summary("read bandwidth", Summary::of(&giga), "GB/s"),
            Figure::new("weights read per step", Some(weights.step as f64 / 1e6), "MB", 1),
            Figure::summary(format!("prefill of {} tokens", self.prompt), summary, "tokens/s")
                .against("decode at batch 1", ratio),
        ];
        for Decoded { batch, rates, shares, .. } in decoded {
            let name = format!("decode at batch {batch}");
            let figure = Figure::summary(name, Summary::of(rates), "tokens/s");
            figures.push(figure.against("read bandwidth (weights alone)", median(shares)));
            let read: Vec<f64> =
                rates.iter().map(|rate| rate / *batch as f64 * weights.step as f64 / 1e9).collect();
            let figure =
                Figure::summary(format!("weights read at batch {batch}"), Summary::of(&read), "GB/s");
            figures.push(figure.against("read bandwidth", median(shares)));
        }
        for decoded in decoded {
            figures.extend(operations(decoded, weights, median(bandwidth)));
        }
        figures
    }

    /// K and V that one session's row reads in the middle of a repetition.
    fn kv_bytes(&self, config: &ModelConfig) -> usize {
        let shape = KvShape {
            layers: config.layers,
            pages: 0,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            profile: self.quant.profile(),
        };
        shape.page_bytes() / PAGE * (self.context + self.tokens / 2)
    }

    fn parameters(&self, threads: usize) -> Value {
        json!({
            "model": self.model, "quantisation": self.quant, "threads": threads,
            "isa": Isa::detect().name(), "batch": self.batch, "prompt": self.prompt,
            "context": self.context, "tokens": self.tokens, "repetitions": self.repetitions,
            "step_rows": self.rows,
        })
    }
}

fn positions(count: usize) -> anyhow::Result<u32> {
    u32::try_from(count).context("no model has so many positions")
}

/// Time of each operation in a step: beside the bandwidth where it reads weights, else beside the step.
fn operations(decoded: &Decoded, weights: &Weights, bandwidth: Option<f64>) -> Vec<Figure> {
    let batch = decoded.batch;
    let step = median(&decoded.rates).map(|rate| batch as f64 / rate);
    let mut figures = Vec::new();
    for operation in Timed::ALL {
        let seconds: Vec<f64> = decoded.operations.iter().map(|spent| spent[operation as usize]).collect();
        let spent = median(&seconds);
        let milliseconds: Vec<f64> = seconds.iter().map(|seconds| seconds * 1e3).collect();
        let name = format!("{} in a step of batch {batch}", operation.name());
        let figure = Figure::summary(name, Summary::of(&milliseconds), "ms");
        figures.push(match weights.read_by(operation) {
            0 => figure.against("the step", spent.zip(step).map(|(spent, step)| spent / step)),
            bytes => figure.against(
                "read bandwidth",
                spent.zip(bandwidth).map(|(spent, bandwidth)| bytes as f64 / spent / bandwidth),
            ),
        });
    }
    figures
}

/// Bytes of weights that a step reads.
struct Weights {
    /// All of it: layers and head.
    step: u64,
    qkv: u64,
    project: u64,
    gate_up: u64,
    logits: u64,
}

impl Weights {
    fn of(model: &Model, quantisation: Quantisation) -> Self {
        let config = model.config();
        let (hidden, attended) = (config.hidden, config.heads * config.head_dim);
        let rows = |rows: usize, columns: usize| {
            (config.layers * rows * quantisation.layers().row_bytes(columns)) as u64
        };
        let logits = model.head_bytes(quantisation);
        Self {
            step: model.layer_bytes(quantisation).iter().sum::<u64>() + logits,
            qkv: rows(attended + 2 * config.kv_heads * config.head_dim, hidden),
            project: rows(hidden, attended) + rows(hidden, config.intermediate),
            gate_up: rows(2 * config.intermediate, hidden),
            logits,
        }
    }

    fn read_by(&self, operation: Timed) -> u64 {
        match operation {
            Timed::Qkv => self.qkv,
            Timed::Project => self.project,
            Timed::GateUp => self.gate_up,
            Timed::Logits => self.logits,
            _ => 0,
        }
    }
}

/// A stage with sessions `0..n`, driven the way a node drives it.
struct Rig {
    stage: Stage<Metered<Cpu>>,
    meter: Metered<Cpu>,
    layers: usize,
    vocabulary: usize,
    /// Most rows of one step of prefill.
    chunk: usize,
    rng: ChaCha8Rng,
    logits: Vec<f32>,
    /// The next token of each session.
    next: Vec<u32>,
}

impl Rig {
    fn new(stage: Stage<Metered<Cpu>>, meter: Metered<Cpu>, config: &ModelConfig, chunk: usize) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(1);
        let (layers, vocabulary) = (config.layers, config.vocabulary);
        Self { stage, meter, layers, vocabulary, chunk, rng, logits: Vec::new(), next: Vec::new() }
    }

    fn open(&mut self, sessions: usize, reach: usize) -> anyhow::Result<()> {
        for session in 0..sessions {
            self.stage.open(SessionId(session as u128), positions(reach)?)?;
        }
        self.next = vec![0; sessions];
        Ok(())
    }

    fn close(&mut self, sessions: usize) {
        (0..sessions).for_each(|session| self.stage.close(SessionId(session as u128)));
    }

    /// Takes a random prompt through the model and draws the token after it.
    fn prefill(&mut self, session: usize, length: usize) -> anyhow::Result<()> {
        let prompt: Vec<u32> =
            (0..length).map(|_| self.rng.random_range(0..self.vocabulary as u32)).collect();
        let mut from = 0;
        for tokens in prompt.chunks(self.chunk) {
            let draw = from + tokens.len() == length;
            let id = SessionId(session as u128);
            let segment = Segment { session: id, from: from as u32, rows: tokens.len() as u32, draw };
            let last = [tokens.len() as u32 - 1];
            self.step(&[segment], tokens, if draw { &last } else { &[] })?;
            from += tokens.len();
        }
        self.next[session] = argmax(&self.logits);
        Ok(())
    }

    /// Decodes greedily from position `from` on, which may lie before the sessions' ends.
    fn decode(&mut self, batch: usize, from: usize, steps: usize) -> anyhow::Result<Duration> {
        let rows: Vec<u32> = (0..batch as u32).collect();
        let mut next = self.next.clone();
        let start = Instant::now();
        for position in from..from + steps {
            let segment = |session: usize| Segment {
                session: SessionId(session as u128),
                from: position as u32,
                rows: 1,
                draw: true,
            };
            let segments: Vec<Segment> = (0..batch).map(segment).collect();
            self.step(&segments, &next, &rows)?;
            for (next, logits) in next.iter_mut().zip(self.logits.chunks_exact(self.vocabulary)) {
                *next = argmax(logits);
            }
        }
        Ok(start.elapsed())
    }

    /// One step; the logits of rows `drawn` are in `self.logits` afterwards.
    fn step(&mut self, segments: &[Segment], tokens: &[u32], drawn: &[u32]) -> anyhow::Result<()> {
        let mut faults = Vec::new();
        self.stage.step(0..self.layers, segments, Input::Tokens(tokens), &mut faults)?;
        if !drawn.is_empty() && faults.is_empty() {
            self.stage.logits(segments, drawn, &mut self.logits, &mut faults);
        }
        match faults.first() {
            Some(fault) => bail!("a value of layer {} is not finite ({:?})", fault.layer, fault.operation),
            None => Ok(()),
        }
    }

    /// Time spent in each operation since the last call.
    fn operations(&self) -> [Duration; Timed::ALL.len()] {
        Timed::ALL.map(|operation| self.meter.take(operation))
    }
}

/// The lowest id of the largest logit.
fn argmax(logits: &[f32]) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == largest).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Suite};

    #[test]
    fn the_demo_model_decodes() {
        let command =
            ["bench", "decode", "--batch", "1,3", "--prompt", "40", "--context", "8", "--tokens", "4"];
        let more = ["--repetitions", "2", "--rows", "16", "--threads", "1"];
        let cli = Cli::try_parse_from(command.into_iter().chain(more)).expect("parses");
        let Suite::Decode(args) = cli.suite else { panic!("another suite") };
        let report = args.run().expect("decodes");
        let figure = |name: &str| report.figures.iter().find(|figure| figure.name == name).expect("there");
        assert_eq!(figure("decode at batch 3").samples, 2);
        assert_eq!(figure("read bandwidth").samples, 4);
        assert!(figure("qkv in a step of batch 1").value.is_some_and(|ms| ms > 0.0));
    }

    #[test]
    fn operations_read_what_a_step_reads() {
        let weights = Weights::of(&Model::demo().expect("opens"), Quantisation::Q4);
        let matrices: u64 = Timed::ALL.iter().map(|&operation| weights.read_by(operation)).sum();
        let norms = weights.step - matrices;
        assert!(norms < weights.step / 100, "{norms} of {} bytes are no matrix", weights.step);
    }

    #[test]
    fn the_first_of_the_largest_wins() {
        assert_eq!(argmax(&[1.0, 3.0, 2.0, 3.0]), 1);
        assert_eq!(argmax(&[]), 0);
    }
}
