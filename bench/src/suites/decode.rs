//! Prefill and decoding of one stage that holds the whole model, without HTTP and links.
//!
//! A decoding step reads every weight once whatever the batch, so its limit is the read bandwidth of
//! main memory, measured around each repetition with as many threads.

use std::path::PathBuf;

use clap::Args;
use engine::{
    device::{Device, DeviceChoice},
    model::{Model, Quantisation},
};
use indicatif::ProgressBar;
use kernels::{
    backend::Backend,
    cpu::{Cpu, Isa},
};
use serde_json::{Map, Value, json};

use super::shape::Shape;
use crate::{
    limits::Probe,
    meter::Timed,
    report::{Figure, Report},
    rig::{Rig, kv_position_bytes, open_model},
    stats::{Summary, median},
};

/// What to run.
#[derive(Args, Clone, Debug)]
pub struct DecodeArgs {
    /// Model [default: the embedded demo model]
    #[arg(long, value_name = "DIR|FILE")]
    pub model: Option<PathBuf>,
    /// How its weights are held; a quantised GGUF's as they are
    #[arg(long, default_value = "q8", value_name = "q8|q4|f32")]
    pub quant: Quantisation,
    /// What computes: `cpu`, `cuda`, `cuda:N`, or `auto` for a card if there is one
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: DeviceChoice,
    /// Prompts, contexts and batches
    #[command(flatten)]
    pub shape: Shape,
}

/// Repetitions at one batch.
struct Decoded {
    batch: usize,
    repetitions: Vec<Repetition>,
}

/// One measurement of decoding, with what the machine gave at the same time.
struct Repetition {
    /// Bytes per second, the mean of right before and right after.
    bandwidth: f64,
    /// Seconds of one step.
    step_s: f64,
    /// Seconds of one step spent in each of [`Timed::ALL`].
    spent_s: [f64; Timed::ALL.len()],
}

impl Decoded {
    fn each(&self, value: impl Fn(&Repetition) -> f64) -> Vec<f64> {
        self.repetitions.iter().map(value).collect()
    }

    /// Tokens per second over all sessions.
    fn rates(&self) -> Vec<f64> {
        self.each(|one| self.batch as f64 / one.step_s)
    }
}

impl DecodeArgs {
    /// Runs everything.
    ///
    /// # Errors
    /// If the model cannot be loaded, or a value of it is not finite.
    pub fn run(&self) -> anyhow::Result<Report> {
        self.shape.check()?;
        let threads = self.shape.threads();
        match Device::choose(self.device, Cpu::new(threads, Isa::detect())?)? {
            Device::Cpu(cpu) => {
                let probe = Probe::new(threads);
                self.measure(cpu, true, &|| Ok(probe.measure()))
            }
            Device::Cuda(card) => {
                let limit = card.clone();
                // A card repeats recorded steps, whose operations nobody sees from outside.
                self.measure(card, false, &|| Ok(limit.copy_rate()?))
            }
        }
    }

    /// Everything on one device, and each of its operations alone if these are done when they return; `limit`
    /// measures the bytes that the device can read in a second.
    fn measure<B: Backend + Clone>(
        &self,
        backend: B,
        each: bool,
        limit: &dyn Fn() -> anyhow::Result<f64>,
    ) -> anyhow::Result<Report> {
        let model = open_model(self.model.as_deref())?;
        let mut rig = Rig::load(backend, &model, self.quant, self.shape.rows, self.shape.limits()?)?;
        let weights = Weights::of(&model, self.quant, rig.read);
        let rounds = (self.shape.batch.len() + 1) * (self.shape.repetitions + 1);
        let bar = ProgressBar::new(rounds as u64).with_message("measuring");
        let prefill = self.prefill(&mut rig, &bar)?;
        let mut decoded = Vec::new();
        for &batch in &self.shape.batch {
            decoded.push(self.decode(&mut rig, batch, limit, &bar)?);
        }
        bar.finish_and_clear();
        let mut figures = self.figures(&weights, &prefill, &decoded);
        let mut details = json!({
            "model": model.name(), "device": rig.meter.describe(), "weight_bytes_per_step": weights.step,
            "kv_bytes_per_session_and_step":
                kv_position_bytes(model.config(), self.quant) * self.shape.read(),
        });
        if each {
            figures.extend(decoded.first().into_iter().flat_map(|one| operations(one, &weights)));
            details["operation_ms"] = decoded.iter().map(milliseconds).collect();
        }
        let parameters = self.shape.parameters(json!({
            "model": self.model, "quantisation": self.quant, "device": self.device.to_string(),
            "isa": Isa::detect().name(),
        }));
        Ok(Report::new("decode", parameters, figures, details))
    }

    /// Prompt tokens per second.
    fn prefill(&self, rig: &mut Rig<impl Backend + Clone>, bar: &ProgressBar) -> anyhow::Result<Vec<f64>> {
        let mut rates = Vec::new();
        for _ in 0..=self.shape.repetitions {
            rates.push(rig.time_prefill(0, self.shape.prompt)?);
            bar.inc(1);
        }
        rates.remove(0);
        Ok(rates)
    }

    fn decode(
        &self,
        rig: &mut Rig<impl Backend + Clone>,
        batch: usize,
        limit: &dyn Fn() -> anyhow::Result<f64>,
        bar: &ProgressBar,
    ) -> anyhow::Result<Decoded> {
        let mut repetitions = Vec::new();
        rig.open(0..batch, self.shape.reached())?;
        for session in 0..batch {
            rig.prefill(session, self.shape.context)?;
        }
        rig.decode(batch, self.shape.context, self.shape.tokens)?;
        bar.inc(1);
        let steps = self.shape.tokens as f64;
        for _ in 0..self.shape.repetitions {
            let before = limit()?;
            rig.operations();
            let elapsed = rig.decode(batch, self.shape.context, self.shape.tokens)?;
            let spent_s = rig.operations().map(|spent| spent.as_secs_f64() / steps);
            let bandwidth = f64::midpoint(before, limit()?);
            repetitions.push(Repetition { bandwidth, step_s: elapsed.as_secs_f64() / steps, spent_s });
            bar.inc(1);
        }
        rig.close(0..batch);
        Ok(Decoded { batch, repetitions })
    }

    fn figures(&self, weights: &Weights, prefill: &[f64], decoded: &[Decoded]) -> Vec<Figure> {
        let step = weights.step as f64;
        let bandwidth: Vec<f64> =
            decoded.iter().flat_map(|one| one.each(|one| one.bandwidth / 1e9)).collect();
        let alone = decoded.iter().find(|one| one.batch == 1).and_then(|one| median(&one.rates()));
        let beside = |rate: Option<f64>| rate.zip(alone).map(|(rate, alone)| rate / alone);
        let mut figures = vec![
            Figure::summary("read bandwidth", Summary::of(&bandwidth), "GB/s"),
            Figure::new("weights read per step", Some(step / 1e6), "MB", 1),
            Figure::summary(
                format!("prefill of {} tokens", self.shape.prompt),
                Summary::of(prefill),
                "tokens/s",
            )
            .against("decode at batch 1", beside(median(prefill))),
        ];
        for one in decoded {
            let (batch, rates) = (one.batch, one.rates());
            let share = median(&one.each(|one| step / one.step_s / one.bandwidth));
            let read = one.each(|one| step / one.step_s / 1e9);
            figures.extend([
                Figure::summary(format!("decode at batch {batch}"), Summary::of(&rates), "tokens/s")
                    .against("decode at batch 1", beside(median(&rates))),
                Figure::summary(format!("weights read at batch {batch}"), Summary::of(&read), "GB/s")
                    .against("read bandwidth", share),
            ]);
        }
        figures
    }
}

/// Time of each operation in a step: beside the bandwidth where it reads weights, else beside the step.
fn operations(decoded: &Decoded, weights: &Weights) -> Vec<Figure> {
    let figure = |operation: Timed| {
        let spent = |one: &Repetition| one.spent_s[operation as usize];
        let name = format!("{} in a step of batch {}", operation.name(), decoded.batch);
        let figure = Figure::summary(name, Summary::of(&decoded.each(|one| spent(one) * 1e3)), "ms");
        match weights.read_by(operation) as f64 {
            0.0 => figure.against("the step", median(&decoded.each(|one| spent(one) / one.step_s))),
            bytes => figure
                .against("read bandwidth", median(&decoded.each(|one| bytes / spent(one) / one.bandwidth))),
        }
    };
    Timed::ALL.into_iter().map(figure).collect()
}

/// Median times of all operations at one batch.
fn milliseconds(decoded: &Decoded) -> Value {
    let time = |operation: Timed| {
        let spent = decoded.each(|one| one.spent_s[operation as usize] * 1e3);
        (operation.name().to_owned(), median(&spent).into())
    };
    let mut times: Map<String, Value> = Timed::ALL.into_iter().map(time).collect();
    times.insert("batch".to_owned(), decoded.batch.into());
    times.into()
}

/// Bytes of weights that a step reads.
struct Weights {
    /// All of it: layers and head.
    step: u64,
    /// Of matrices, by what reads them.
    read: [u64; Timed::ALL.len()],
}

impl Weights {
    fn of(model: &Model, quantisation: Quantisation, read: [u64; Timed::ALL.len()]) -> Self {
        let layers: u64 = model.layer_bytes(quantisation).iter().sum();
        Self { step: layers + model.head_bytes(quantisation), read }
    }

    fn read_by(&self, operation: Timed) -> u64 {
        self.read[operation as usize]
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use engine::stage::StageLimits;

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
        let model = Model::demo().expect("opens");
        let limits = StageLimits { rows: 1, pages: 1, sessions: 1, positions: 8 };
        let cpu = Cpu::new(1, Isa::detect()).expect("a CPU");
        let rig = Rig::load(cpu, &model, Quantisation::Q4, 1, limits).expect("loads");
        let weights = Weights::of(&model, Quantisation::Q4, rig.read);
        let norms = weights.step - weights.read.iter().sum::<u64>();
        assert!(norms < weights.step / 100, "{norms} of {} bytes are no matrix", weights.step);
    }
}
