//! How fast a device is at one layer of a model, with the kernels that would serve it.

mod kept;

use std::time::{Duration, Instant};

use kernels::backend::{Backend, PAGE};
use shard_planner::{
    Curve,
    cluster::Profile,
    curve::CurveError,
    model::{ModelError as ShapeError, Weights},
};
use thiserror::Error;

use crate::{
    local::{LoadError, StageBudget, load_stage, shard_bytes},
    message::{RouteId, Segment, SessionId, row_bytes},
    model::{Model, Quantisation, Shard},
    stage::{ComputeError, Input, OpenError, Prompt, Stage},
};
pub use kept::{soonest, thorough};

/// How carefully a machine is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    /// All that a plan can use; it takes seconds.
    Thorough,
    /// A first idea, in a moment.
    Glance,
}

/// What is timed.
struct Trials {
    /// Sequences of decoding steps.
    batches: &'static [usize],
    /// Tokens of prompts.
    prompts: &'static [usize],
    /// Positions before a decoding step: some KV to attend to.
    context: usize,
    /// A count is timed until it has taken so long.
    least: Duration,
}

const THOROUGH: Trials = Trials {
    batches: &[1, 2, 4, 8, 16, 32],
    prompts: &[16, 64, 128, 256],
    context: 2 * PAGE,
    least: Duration::from_millis(60),
};
const GLANCE: Trials =
    Trials { batches: &[1, 8], prompts: &[8, 32], context: 16, least: Duration::from_millis(4) };

/// A count is timed no more often than so.
const MOST_RUNS: u32 = 200;

/// Why a machine could not be measured.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// The layer cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The stage takes no session: a bug of ours.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The stage does not compute.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// The clock gave something else than times.
    #[error(transparent)]
    Curve(#[from] CurveError),
}

/// A model as the planner takes it, at every quantisation.
pub fn shape(model: &Model) -> Result<shard_planner::Model, ShapeError> {
    let config = model.config();
    let weights = |quantisation: Quantisation| Weights {
        format: quantisation.to_string(),
        embedding: model.embedding_bytes(quantisation),
        layers: model.layer_bytes(quantisation),
        head: model.head_bytes(quantisation),
    };
    let profile = Quantisation::Q8.profile();
    let unquantised = model.layer_bytes(Quantisation::F32);
    let layer = unquantised.iter().sum::<u64>() as f64 / unquantised.len().max(1) as f64;
    // K and V as f16, as every format but f32 has them.
    let kv = (2 * 2 * config.kv_heads * config.head_dim) as u64;
    let shape = shard_planner::Model {
        name: model.name().to_owned(),
        row_bytes: row_bytes(config.hidden, profile) as u64,
        kv_bytes: vec![kv; config.layers],
        weights: [Quantisation::Q8, Quantisation::Q4, Quantisation::F32].map(weights).to_vec(),
        // Two operations for each of the four-byte weights.
        layer_flops: Some(layer / 2.0),
        experts: None,
    };
    shape.check()?;
    Ok(shape)
}

/// Times one layer from the middle of `model`: decoding steps of several sequences, and prompts. It blocks.
pub fn measure<B: Backend>(
    model: &Model,
    quantisation: Quantisation,
    backend: B,
    care: Care,
) -> Result<Profile, ProfileError> {
    let Trials { batches, prompts, context, least } = match care {
        Care::Thorough => THOROUGH,
        Care::Glance => GLANCE,
    };
    let middle = model.config().layers / 2;
    let shard = Shard { layers: middle..middle + 1, embedding: false, head: false };
    let (rows, most) = (prompts[prompts.len() - 1], batches[batches.len() - 1]);
    let positions = u32::try_from(rows.max(context + 1)).unwrap_or(u32::MAX);
    let budget = StageBudget { rows, chunk: rows, sessions: most + 1, context: positions, kv_bytes: 1 << 30 };
    let stage = load_stage(model, &shard, quantisation, &budget, backend, &|_| ())?;
    let mut bench = Bench { layers: shard.layers.clone(), rows: Vec::new(), stage, least };
    let longest = bench.stage.limits().positions as usize;
    let context = context.min(longest - 1);
    for session in 0..most {
        bench.open(session, context + 1)?;
        bench.step(&[segment(session, 0, context)])?;
    }
    let mut decode = Vec::new();
    for &batch in batches {
        let segments: Vec<Segment> = (0..batch).map(|session| segment(session, context, 1)).collect();
        decode.push((batch as f64, bench.time(&segments)?));
    }
    let mut prefill = Vec::new();
    bench.open(most, longest)?;
    for &tokens in prompts.iter().filter(|&&tokens| tokens <= longest) {
        prefill.push((tokens as f64, bench.time(&[segment(most, 0, tokens)])?));
    }
    Ok(Profile {
        format: quantisation.to_string(),
        layer_bytes: shard_bytes(model, &shard, quantisation),
        decode: Curve::new(decode)?,
        prefill: Curve::new(prefill)?,
    })
}

struct Bench<B: Backend> {
    stage: Stage<B>,
    layers: std::ops::Range<usize>,
    rows: Vec<f32>,
    least: Duration,
}

impl<B: Backend> Bench<B> {
    fn open(&mut self, session: usize, positions: usize) -> Result<(), OpenError> {
        let positions = u32::try_from(positions).unwrap_or(u32::MAX);
        self.stage.open(SessionId(session as u128), RouteId(0), positions, Prompt::default())?;
        Ok(())
    }

    fn step(&mut self, segments: &[Segment]) -> Result<(), ComputeError> {
        let count: usize = segments.iter().map(|segment| segment.rows as usize).sum();
        // Any finite rows: the time does not depend on the values.
        let values = (0..count * self.stage.hidden()).map(|at| (at % 17) as f32 / 16.0 - 0.5);
        self.rows.clear();
        self.rows.extend(values);
        let (mut short, mut faults) = (Vec::new(), Vec::new());
        self.stage.reserve(segments, &mut short);
        self.stage.step(self.layers.clone(), segments, Input::Rows(&self.rows), &mut faults)
    }

    /// The quickest of several runs, in seconds: what disturbs a run only makes it longer.
    fn time(&mut self, segments: &[Segment]) -> Result<f64, ComputeError> {
        self.step(segments)?;
        let (begun, mut best) = (Instant::now(), f64::INFINITY);
        for _ in 0..MOST_RUNS {
            let start = Instant::now();
            self.step(segments)?;
            best = best.min(start.elapsed().as_secs_f64());
            if begun.elapsed() >= self.least {
                break;
            }
        }
        Ok(best)
    }
}

fn segment(session: usize, from: usize, rows: usize) -> Segment {
    let session = SessionId(session as u128);
    Segment { session, from: from as u32, rows: rows as u32, drawn: Vec::new(), drafted: 0 }
}

#[cfg(test)]
mod tests {
    use kernels::cpu::{Cpu, Isa};

    use super::*;

    #[test]
    fn a_layer_is_timed() {
        let model = Model::demo().expect("the demo model opens");
        let backend = Cpu::new(1, Isa::Portable).expect("one thread starts");
        for care in [Care::Thorough, Care::Glance] {
            let profile = measure(&model, Quantisation::Q8, backend.clone(), care).expect("it is measured");
            assert_eq!(profile.layer_bytes, model.layer_bytes(Quantisation::Q8)[0]);
            assert!(profile.decode.at(1.0) > 0.0 && profile.prefill.at(256.0) > profile.prefill.at(16.0));
        }
    }

    #[test]
    fn the_planner_is_told_what_the_parts_weigh() {
        let model = Model::demo().expect("the demo model opens");
        let shape = shape(&model).expect("it is a model");
        let q4 = shape.at("q4").expect("it has q4");
        assert_eq!(q4.layers, model.layer_bytes(Quantisation::Q4));
        assert_eq!(shape.layers(), model.config().layers);
    }
}
