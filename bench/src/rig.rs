//! A stage driven the way a node drives it, without the node.

use std::{
    ops::Range,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use engine::{
    message::{RouteId, Segment, SessionId},
    model::{Dtype, Model, ModelConfig, Quantisation, Shard, ShardWeights},
    stage::{Fault, Input, Prompt, Stage, StageLimits},
};
use indicatif::ProgressBar;
use kernels::{
    backend::{Backend, KvShape, Linear, PAGE},
    tensor::WeightMatrix,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::meter::{Metered, Timed};

/// A count of positions as the engine takes it.
///
/// # Errors
/// If no model has so many.
pub(crate) fn positions(count: usize) -> anyhow::Result<u32> {
    u32::try_from(count).context("no model has so many positions")
}

/// The model at `path`, or the embedded one.
///
/// # Errors
/// If it cannot be used.
pub(crate) fn open_model(path: Option<&Path>) -> anyhow::Result<Model> {
    match path {
        Some(path) => Model::open(path).with_context(|| format!("{} cannot be used", path.display())),
        None => Ok(Model::demo()?),
    }
}

/// Whether a model's matrices are run in the very bytes of its files.
pub(crate) fn stored_as_run(model: &Model) -> bool {
    let (embedding, layers, _) = model.stored_bytes();
    model
        .stored_formats()
        .iter()
        .all(|format| matches!(format, Dtype::Q8_0 | Dtype::Q4_0 | Dtype::Q4_K | Dtype::Q6_K))
        && (embedding, layers)
            == (model.embedding_bytes(Quantisation::Q8), model.layer_bytes(Quantisation::Q8))
}

/// Bytes of K and V that a row reads for each position before it, in all layers.
pub(crate) fn kv_position_bytes(config: &ModelConfig, quantisation: Quantisation) -> usize {
    let shape = KvShape {
        layers: config.layers,
        pages: 0,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        profile: quantisation.profile(),
    };
    shape.page_bytes() / PAGE
}

/// A stage that holds a whole model, driven the way a node drives it.
pub(crate) struct Rig<B: Backend> {
    stage: Stage<Metered<B>>,
    pub(crate) meter: Metered<B>,
    /// Bytes of matrices that a step reads, by what reads them.
    pub(crate) read: [u64; Timed::ALL.len()],
    layers: usize,
    vocabulary: usize,
    /// Most rows of one step of prefill.
    chunk: usize,
    rng: ChaCha8Rng,
    logits: Vec<f32>,
    /// The next token of each session.
    next: Vec<u32>,
}

impl<B: Backend + Clone> Rig<B> {
    /// Loads a model, prompts to be taken in at most `chunk` rows at once.
    pub(crate) fn load(
        backend: B,
        model: &Model,
        quantisation: Quantisation,
        chunk: usize,
        limits: StageLimits,
    ) -> anyhow::Result<Self> {
        let config = model.config();
        ensure!(limits.positions <= config.max_positions, "the model has {} positions", config.max_positions);
        let shard = Shard { layers: 0..config.layers, embedding: true, head: true };
        let bar = ProgressBar::new(0).with_message("loading");
        let weights = model.load(&shard, quantisation, &|progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        })?;
        bar.finish_and_clear();
        let read = read_bytes(&weights);
        let meter = Metered::new(backend);
        let stage = Stage::new(meter.clone(), config, &shard, weights, quantisation.profile(), limits)?;
        let (rng, next) = (ChaCha8Rng::seed_from_u64(1), vec![0; limits.sessions]);
        let (layers, vocabulary) = (config.layers, config.vocabulary);
        Ok(Self { stage, meter, read, layers, vocabulary, chunk, rng, logits: Vec::new(), next })
    }

    /// Opens sessions that may reach `reach` positions.
    pub(crate) fn open(&mut self, sessions: Range<usize>, reach: usize) -> anyhow::Result<()> {
        for session in sessions {
            let id = SessionId(session as u128);
            self.stage.open(id, RouteId(0), positions(reach)?, Prompt::default())?;
        }
        Ok(())
    }

    pub(crate) fn close(&mut self, sessions: Range<usize>) {
        sessions.for_each(|session| self.stage.close(SessionId(session as u128), &[]));
    }

    /// Takes a random prompt through a new session, and gives the prompt tokens per second.
    pub(crate) fn time_prefill(&mut self, session: usize, length: usize) -> anyhow::Result<f64> {
        self.open(session..session + 1, length)?;
        let start = Instant::now();
        self.prefill(session, length)?;
        let rate = length as f64 / start.elapsed().as_secs_f64();
        self.close(session..session + 1);
        Ok(rate)
    }

    /// Takes a random prompt through the model and draws the token after it.
    pub(crate) fn prefill(&mut self, session: usize, length: usize) -> anyhow::Result<()> {
        let vocabulary = self.vocabulary as u32;
        let prompt: Vec<u32> = (0..length).map(|_| self.rng.random_range(0..vocabulary)).collect();
        self.prefill_with(session, &prompt)
    }

    /// The greedy reply of `tokens` tokens to a prompt, by the first session, which must be closed.
    #[cfg(test)]
    pub(crate) fn reply(&mut self, prompt: &[u32], tokens: usize) -> anyhow::Result<Vec<u32>> {
        self.open(0..1, prompt.len() + tokens)?;
        self.prefill_with(0, prompt)?;
        let mut reply = vec![self.next[0]];
        while reply.len() < tokens {
            let from = prompt.len() + reply.len() - 1;
            let segment = segment(0, from, 1);
            self.step(&[segment], &reply[reply.len() - 1..], &[0])?;
            reply.push(argmax(&self.logits));
        }
        self.close(0..1);
        Ok(reply)
    }

    fn prefill_with(&mut self, session: usize, prompt: &[u32]) -> anyhow::Result<()> {
        let mut from = 0;
        for tokens in prompt.chunks(self.chunk) {
            let draw = from + tokens.len() == prompt.len();
            let last = [tokens.len() as u32 - 1];
            self.step(&[segment(session, from, tokens.len())], tokens, if draw { &last } else { &[] })?;
            from += tokens.len();
        }
        self.next[session] = argmax(&self.logits);
        Ok(())
    }

    /// Sessions `0..batch` decode greedily from position `from` on, which may lie before their ends.
    pub(crate) fn decode(&mut self, batch: usize, from: usize, steps: usize) -> anyhow::Result<Duration> {
        let rows: Vec<u32> = (0..batch as u32).collect();
        let mut next = self.next[..batch].to_vec();
        let start = Instant::now();
        for position in from..from + steps {
            let segments: Vec<Segment> = (0..batch).map(|session| segment(session, position, 1)).collect();
            self.step(&segments, &next, &rows)?;
            for (next, logits) in next.iter_mut().zip(self.logits.chunks_exact(self.vocabulary)) {
                *next = argmax(logits);
            }
        }
        Ok(start.elapsed())
    }

    /// One step; the logits of rows `drawn` are in `self.logits` afterwards.
    fn step(&mut self, segments: &[Segment], tokens: &[u32], drawn: &[u32]) -> anyhow::Result<()> {
        let (mut faults, mut short) = (Vec::new(), Vec::new());
        self.stage.reserve(segments, &mut short);
        ensure!(short.is_empty(), "the stage has not the pages for so many sessions");
        self.stage.step(0..self.layers, segments, Input::Tokens(tokens), &mut faults)?;
        if !drawn.is_empty() && faults.is_empty() {
            self.draw(segments, drawn, &mut faults)?;
        }
        match faults.first() {
            Some(fault) => bail!("a value of layer {} is not finite ({:?})", fault.layer, fault.operation),
            None => Ok(()),
        }
    }

    /// Logits of some rows of the last step.
    fn draw(&mut self, segments: &[Segment], rows: &[u32], faults: &mut Vec<Fault>) -> anyhow::Result<()> {
        let mut part = Vec::new();
        self.logits.clear();
        for rows in rows.chunks(self.stage.draw_rows()) {
            self.stage.logits(segments, rows, &mut part, faults)?;
            self.logits.extend_from_slice(&part);
        }
        Ok(())
    }

    /// Time spent in each operation since the last call.
    pub(crate) fn operations(&self) -> [Duration; Timed::ALL.len()] {
        Timed::ALL.map(|operation| self.meter.take(operation))
    }
}

fn segment(session: usize, from: usize, rows: usize) -> Segment {
    let session = SessionId(session as u128);
    Segment { session, from: from as u32, rows: rows as u32, drawn: Vec::new(), drafted: 0 }
}

fn read_bytes(weights: &ShardWeights) -> [u64; Timed::ALL.len()] {
    let bytes = |linear: &Linear<WeightMatrix>| linear.weight.bytes().len() as u64;
    let mut read = [0; Timed::ALL.len()];
    for layer in &weights.layers {
        read[Timed::Qkv as usize] += bytes(&layer.qkv.q) + bytes(&layer.qkv.k) + bytes(&layer.qkv.v);
        read[Timed::Project as usize] += bytes(&layer.output) + bytes(&layer.down);
        read[Timed::GateUp as usize] += bytes(&layer.gate_up.gate) + bytes(&layer.gate_up.up);
    }
    let head = weights.head.as_ref().map(|head| &head.weight).or(weights.embedding.as_ref());
    read[Timed::Logits as usize] = head.map_or(0, |head| head.bytes().len() as u64);
    read
}

/// The lowest id of the largest logit.
fn argmax(logits: &[f32]) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == largest).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_wins() {
        assert_eq!(argmax(&[1.0, 3.0, 2.0, 3.0]), 1);
        assert_eq!(argmax(&[]), 0);
    }
}
