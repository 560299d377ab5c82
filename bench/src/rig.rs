//! A stage driven the way a node drives it, without the node.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use engine::{
    message::{RouteId, Segment, SessionId},
    model::ModelConfig,
    stage::{Input, Prompt, Stage},
};
use kernels::cpu::Cpu;
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

/// A stage with sessions `0..n`, driven the way a node drives it.
pub(crate) struct Rig {
    stage: Stage<Metered<Cpu>>,
    pub(crate) meter: Metered<Cpu>,
    layers: usize,
    vocabulary: usize,
    /// Most rows of one step of prefill.
    chunk: usize,
    rng: ChaCha8Rng,
    logits: Vec<f32>,
    /// Those of as many rows as the stage takes at once.
    some_logits: Vec<f32>,
    /// The next token of each session.
    next: Vec<u32>,
}

impl Rig {
    pub(crate) fn new(
        stage: Stage<Metered<Cpu>>,
        meter: Metered<Cpu>,
        config: &ModelConfig,
        chunk: usize,
    ) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(1);
        let (layers, vocabulary) = (config.layers, config.vocabulary);
        let (logits, some_logits, next) = Default::default();
        Self { stage, meter, layers, vocabulary, chunk, rng, logits, some_logits, next }
    }

    pub(crate) fn open(&mut self, sessions: usize, reach: usize) -> anyhow::Result<()> {
        for session in 0..sessions {
            let id = SessionId(session as u128);
            self.stage.open(id, RouteId(0), positions(reach)?, Prompt::default())?;
        }
        self.next = vec![0; sessions];
        Ok(())
    }

    pub(crate) fn close(&mut self, sessions: usize) {
        (0..sessions).for_each(|session| self.stage.close(SessionId(session as u128), &[]));
    }

    /// Takes a random prompt through the model and draws the token after it.
    pub(crate) fn prefill(&mut self, session: usize, length: usize) -> anyhow::Result<()> {
        let prompt: Vec<u32> =
            (0..length).map(|_| self.rng.random_range(0..self.vocabulary as u32)).collect();
        let mut from = 0;
        for tokens in prompt.chunks(self.chunk) {
            let draw = from + tokens.len() == length;
            let id = SessionId(session as u128);
            let segment = Segment {
                session: id,
                from: from as u32,
                rows: tokens.len() as u32,
                drawn: Vec::new(),
                drafted: 0,
            };
            let last = [tokens.len() as u32 - 1];
            self.step(&[segment], tokens, if draw { &last } else { &[] })?;
            from += tokens.len();
        }
        self.next[session] = argmax(&self.logits);
        Ok(())
    }

    /// Decodes greedily from position `from` on, which may lie before the sessions' ends.
    pub(crate) fn decode(&mut self, batch: usize, from: usize, steps: usize) -> anyhow::Result<Duration> {
        let rows: Vec<u32> = (0..batch as u32).collect();
        let mut next = self.next.clone();
        let start = Instant::now();
        for position in from..from + steps {
            let segment = |session: usize| Segment {
                session: SessionId(session as u128),
                from: position as u32,
                rows: 1,
                drawn: Vec::new(),
                drafted: 0,
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
        let (mut faults, mut short) = (Vec::new(), Vec::new());
        self.stage.reserve(segments, &mut short);
        ensure!(short.is_empty(), "too few KV pages");
        self.stage.step(0..self.layers, segments, Input::Tokens(tokens), &mut faults)?;
        self.logits.clear();
        for rows in drawn.chunks(self.stage.draw_rows()) {
            self.stage.logits(segments, rows, &mut self.some_logits, &mut faults);
            self.logits.extend_from_slice(&self.some_logits);
        }
        match faults.first() {
            Some(fault) => bail!("a value of layer {} is not finite ({:?})", fault.layer, fault.operation),
            None => Ok(()),
        }
    }

    /// Time spent in each operation since the last call.
    pub(crate) fn operations(&self) -> [Duration; Timed::ALL.len()] {
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
    use super::*;

    #[test]
    fn the_first_of_the_largest_wins() {
        assert_eq!(argmax(&[1.0, 3.0, 2.0, 3.0]), 1);
        assert_eq!(argmax(&[]), 0);
    }
}
