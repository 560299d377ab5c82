//! What this machine can compute on: found, tested against the processor, and measured.

use std::{fmt, time::Instant};

use bytesize::ByteSize;
use kernels::{
    backend::{Backend, BackendError, Batch, Grouping, Linear, Pass, Profile, Row, StepShape},
    cpu::{Cpu, CpuError, Isa},
    tensor::{Format, WeightMatrix},
};
use serde::Serialize;
use thiserror::Error;

use crate::{
    local::{LoadError, StageBudget, load_stage},
    message::{RouteId, Segment, SessionId},
    model::{Model, ModelError, Quantisation, Shard},
    stage::{ComputeError, Input, OpenError, Prompt, Stage},
};

/// Tokens that the test takes through the demo model: two steps of a prompt, then one by one.
const PROMPT: usize = 100;
const TOKENS: usize = 104;
/// Rows of a step of the test.
const ROWS: usize = 64;

/// Shape of the matrix that speed is measured with: 142 MB as `q8`, more than caches hold.
const OUTPUTS: usize = 32768;
const INPUTS: usize = 4096;
/// Rows of the measured prefill.
const BATCH: usize = 256;
/// Products of a measured pass, and passes of which the fastest counts.
const PRODUCTS: usize = 8;
const PASSES: usize = 4;

/// Why the doctor cannot say anything.
#[derive(Debug, Error)]
pub enum DoctorError {
    /// The embedded model cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The stage cannot be made.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The stage refuses the session.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The stage does not compute.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// The device fails.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The processor cannot be used.
    #[error(transparent)]
    Cpu(#[from] CpuError),
}

/// How fast a device is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// Weights read by a product of one row, in 10^9 bytes a second.
    pub read_gb_per_s: f64,
    /// Operations (two for each product of two numbers) of products of many rows, in 10^12 a second.
    pub int8_tops: f64,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Examined {
    /// How `--device` names it.
    pub device: String,
    /// What it is.
    pub name: String,
    /// Compute capability of a card.
    pub capability: Option<String>,
    /// Bytes of a card's memory.
    pub memory_bytes: Option<u64>,
    /// Bytes of it that are free.
    pub free_bytes: Option<u64>,
    /// What the kernels of a card were compiled for.
    pub ptx: Option<String>,
    /// Why it cannot be used.
    pub problem: Option<String>,
    /// How fast it is, if that was measured.
    pub speed: Option<Speed>,
}

/// What the doctor found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The driver's CUDA version.
    pub cuda: Option<String>,
    /// Why there are no cards to look at.
    pub problem: Option<String>,
    /// The processor, then the cards.
    pub devices: Vec<Examined>,
}

/// Looks at everything; `measured` says whether speed is measured, too.
///
/// # Errors
/// If the processor fails the embedded model.
pub fn examine(cpu: &Cpu, measured: bool) -> Result<Report, DoctorError> {
    let expected = every_bit(cpu)?;
    let processor = Examined {
        device: "cpu".to_owned(),
        name: cpu.describe(),
        capability: None,
        memory_bytes: None,
        free_bytes: None,
        ptx: None,
        problem: (every_bit(&Cpu::new(1, Isa::Portable)?)? != expected)
            .then(|| format!("{} does not compute as plain code does", cpu.isa())),
        speed: if measured { Some(speed(cpu)?) } else { None },
    };
    let mut report = Report { cuda: None, problem: None, devices: vec![processor] };
    cards::examine(&expected, measured, &mut report);
    Ok(report)
}

#[cfg(feature = "cuda")]
mod cards {
    use kernels::cuda::{CardInfo, Cuda, cards, driver_version};

    use super::{DoctorError, Examined, Report, Speed, every_bit, speed};

    pub(super) fn examine(expected: &[Vec<u32>], measured: bool, report: &mut Report) {
        let found = driver_version().and_then(|version| {
            report.cuda = Some(format!("{}.{}", version / 1000, version % 1000 / 10));
            cards()
        });
        match found {
            Ok(cards) => report.devices.extend(cards.iter().map(|card| card_of(card, expected, measured))),
            Err(error) => report.problem = Some(error.to_string()),
        }
    }

    fn card_of(card: &CardInfo, expected: &[Vec<u32>], measured: bool) -> Examined {
        // Small enough for whatever is left of the card.
        let tested = Cuda::open(card.index)
            .map(|cuda| cuda.leaving(0))
            .map_err(|error| error.to_string())
            .and_then(|cuda| tested(&cuda, expected, measured).map_err(|error| error.to_string()));
        let (problem, speed) = match tested {
            Ok((true, speed)) => (None, speed),
            Ok((false, speed)) => (Some("it does not compute what the CPU computes".to_owned()), speed),
            Err(problem) => (Some(problem), None),
        };
        Examined {
            device: format!("cuda:{}", card.index),
            name: card.name.clone(),
            capability: Some(format!("{}.{}", card.capability.0, card.capability.1)),
            memory_bytes: Some(card.memory_bytes as u64),
            free_bytes: Some(card.free_bytes as u64),
            ptx: card.level().map(|level| level.name().to_owned()),
            problem,
            speed,
        }
    }

    fn tested(
        cuda: &Cuda,
        expected: &[Vec<u32>],
        measured: bool,
    ) -> Result<(bool, Option<Speed>), DoctorError> {
        let sound = every_bit(cuda)? == expected;
        let speed = if measured { Some(speed(cuda)?) } else { None };
        Ok((sound, speed))
    }
}

#[cfg(not(feature = "cuda"))]
mod cards {
    use super::Report;

    pub(super) fn examine(_expected: &[Vec<u32>], _measured: bool, report: &mut Report) {
        report.problem = Some("this program was built without support for cards".to_owned());
    }
}

/// What a backend makes of the embedded model: the bits of some logits at every quantisation.
fn every_bit<B: Backend + Clone>(backend: &B) -> Result<Vec<Vec<u32>>, DoctorError> {
    let model = Model::demo()?;
    let layers = model.config().layers;
    let shard = Shard { layers: 0..layers, embedding: true, head: true };
    let context = TOKENS as u32;
    let budget = StageBudget { rows: ROWS, chunk: ROWS, sessions: 1, context, kv_bytes: 64 << 20 };
    [Quantisation::Q8, Quantisation::Q4, Quantisation::F32]
        .into_iter()
        .map(|quantisation| {
            let mut stage = load_stage(&model, &shard, quantisation, &budget, backend.clone(), &|_| ())?;
            bits(&mut stage, model.config().vocabulary)
        })
        .collect()
}

/// Logits after each step of a fixed text.
fn bits<B: Backend>(stage: &mut Stage<B>, vocabulary: usize) -> Result<Vec<u32>, DoctorError> {
    let session = SessionId(1);
    stage.open(session, RouteId(1), TOKENS as u32, Prompt::default())?;
    let tokens: Vec<u32> = (0..TOKENS).map(|i| (i * i * 31 + 7) as u32 % vocabulary as u32).collect();
    let ends = (0..PROMPT).step_by(ROWS).skip(1).chain(PROMPT..=TOKENS);
    let (mut from, mut bits) = (0, Vec::new());
    let (mut faults, mut short, mut logits) = (Vec::new(), Vec::new(), Vec::new());
    let layers = stage.shard().layers.clone();
    for to in ends {
        let rows = (to - from) as u32;
        let segments = [Segment { session, from: from as u32, rows, drawn: Vec::new(), drafted: 0 }];
        stage.reserve(&segments, &mut short);
        stage.step(layers.clone(), &segments, Input::Tokens(&tokens[from..to]), &mut faults)?;
        stage.logits(&segments, &[rows - 1], &mut logits, &mut faults)?;
        bits.extend(logits.iter().map(|logit| logit.to_bits()));
        from = to;
    }
    Ok(bits)
}

/// Times products with one large matrix.
fn speed<B: Backend>(backend: &B) -> Result<Speed, DoctorError> {
    // Scale 1 and small numbers: any matrix is as fast.
    let group: Vec<u8> = [0x00, 0x3c].into_iter().chain(0..32).collect();
    let bytes = group.repeat(OUTPUTS * INPUTS / 32);
    let weight_bytes = bytes.len() as f64;
    let weight = WeightMatrix::from_bytes(Format::Q8, OUTPUTS, INPUTS, bytes)
        .map_err(|error| BackendError::Device(error.to_string()))?;
    let head = backend.load_linear(Linear { weight, bias: None })?;
    let seconds = |rows| fastest(backend, &head, rows);
    let products = PRODUCTS as f64;
    let operations = 2.0 * (BATCH * OUTPUTS * INPUTS) as f64;
    Ok(Speed {
        read_gb_per_s: weight_bytes * products / seconds(1)? / 1e9,
        int8_tops: operations * products / seconds(BATCH)? / 1e12,
    })
}

/// Seconds of the fastest pass of products of so many rows.
fn fastest<B: Backend>(backend: &B, head: &B::Linear, rows: usize) -> Result<f64, DoctorError> {
    let profile = Profile::Quantised;
    let x = backend.activation(rows, INPUTS, profile, Grouping::of([Format::Q8]))?;
    let mut out = backend.buffer(rows, OUTPUTS)?;
    let mut step =
        backend.step(StepShape { rows, pages: 0, positions: 0, profile, attention: None, vocabulary: 0 })?;
    let list: Vec<Row> = (0..rows).map(|_| Row { position: 0, pages: 0..0 }).collect();
    let mut fastest = f64::INFINITY;
    // The first pass does not count: it is recorded, and reads what no cache has yet.
    for pass in 0..=PASSES {
        let start = Instant::now();
        backend.begin(&mut step, Batch { rows: &list, pages: &[], sources: &[] });
        backend.run(&mut step, Pass::Head, |step| {
            for _ in 0..PRODUCTS {
                backend.logits(head, &x, step, &mut out);
            }
        });
        backend.end(&mut step)?;
        if pass > 0 {
            fastest = fastest.min(start.elapsed().as_secs_f64());
        }
    }
    Ok(fastest)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.cuda, &self.problem) {
            (Some(version), _) => writeln!(f, "NVIDIA driver: CUDA {version}")?,
            (None, Some(problem)) => writeln!(f, "no cards: {problem}")?,
            (None, None) => {}
        }
        self.devices.iter().try_for_each(|device| write!(f, "\n{device}"))
    }
}

impl fmt::Display for Examined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.device, self.name)?;
        if let (Some(capability), Some(memory), Some(free)) =
            (&self.capability, self.memory_bytes, self.free_bytes)
        {
            let ptx = self.ptx.as_deref().unwrap_or("none");
            let (memory, free) = (ByteSize(memory), ByteSize(free));
            writeln!(f, "  compute capability {capability}, kernels {ptx}, {memory}, {free} free")?;
        }
        match &self.problem {
            Some(problem) => writeln!(f, "  cannot be used: {problem}")?,
            None => writeln!(f, "  computes the embedded model to the bit")?,
        }
        if let Some(Speed { read_gb_per_s, int8_tops }) = self.speed {
            writeln!(f, "  reads weights at {read_gb_per_s:.0} GB/s, computes {int8_tops:.1} int8 TOP/s")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_sound() {
        let cpu = Cpu::new(1, Isa::detect()).expect("a processor");
        let report = examine(&cpu, false).expect("the embedded model");
        let processor = &report.devices[0];
        assert_eq!((processor.problem.as_deref(), processor.speed), (None, None));
        assert!(report.to_string().contains("to the bit"), "{report}");
        assert!(report.cuda.is_some() || report.problem.is_some());
    }
}
