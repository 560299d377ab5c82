//! Runs a session's stages one after another, each over all rows, so that one stage's weights are in memory
//! at a time.

use kernels::backend::Backend;

use super::VerifyError;
use crate::{
    audit::{
        receipt::Receipt,
        replay::{Came, StageReplay},
        rows::row_roots,
    },
    model::{Model, Progress},
    sampler::Sampler,
    stage::ComputeError,
};

/// What a stage should have done.
pub(super) struct Replayed {
    /// Roots of its output rows; fewer than the session has if one of them is a fault.
    pub(super) roots: Vec<[u8; 32]>,
    /// On the last stage the first token that does not follow from its row: position, what was told, what
    /// follows.
    pub(super) token: Option<(u32, u32, u32)>,
}

pub(super) struct Replay<'a, B> {
    receipt: &'a Receipt,
    model: &'a Model,
    backend: &'a B,
    progress: &'a dyn Fn(Progress),
    done: u64,
    total: u64,
    /// Rows that go into the next stage, as they travel.
    rows: Vec<u8>,
}

impl<'a, B: Backend + Clone> Replay<'a, B> {
    pub(super) fn new(
        receipt: &'a Receipt,
        model: &'a Model,
        backend: &'a B,
        progress: &'a dyn Fn(Progress),
    ) -> Self {
        let stages = receipt.plan.stages.len() as u64;
        let total = u64::from(receipt.rows()) * (model.config().layers as u64 + stages);
        Self { receipt, model, backend, progress, done: 0, total, rows: Vec::new() }
    }

    /// Replays the next stage, which is number `index`.
    pub(super) fn stage(&mut self, index: usize) -> Result<Replayed, VerifyError> {
        let (plan, end) = (&self.receipt.plan, self.receipt.rows());
        let planned = &plan.stages[index];
        let quantisation = plan.terms.quantisation;
        let mut stage = StageReplay::new(self.model, planned, quantisation, end, self.backend)?;
        let input = std::mem::take(&mut self.rows);
        let tokens: Vec<u32> = self.receipt.prompt.iter().chain(&self.receipt.reply).copied().collect();
        let mut replayed = Replayed { roots: Vec::new(), token: None };
        let mut sampler = Sampler::new(plan.sampling.clone(), &self.receipt.prompt);
        let (wide, layers) = (stage.row_bytes(), planned.to - planned.from);
        for from in (0..end).step_by(stage.rows()) {
            let (at, to) = (from as usize, (from as usize + stage.rows()).min(end as usize));
            let input = match index {
                0 => Came::Tokens(&tokens[at..to]),
                // A stage before that ended with a fault has no rows for this one.
                _ => match input.get(at * wide..to * wide) {
                    Some(rows) => Came::Rows(rows),
                    None => return Ok(replayed),
                },
            };
            let Some(bytes) = stage.step(from, input)? else { return Ok(replayed) };
            replayed.roots.extend(row_roots(&bytes.chunks(wide).collect::<Vec<_>>()));
            if planned.head {
                self.draw(&mut stage, &mut sampler, &mut replayed)?;
            } else {
                self.rows.extend_from_slice(&bytes);
            }
            self.done += (to - at) as u64 * (u64::from(layers) + 1);
            (self.progress)(Progress { done: self.done, total: self.total });
        }
        Ok(replayed)
    }

    /// Draws from the rows of the last step and compares with what was told.
    fn draw(
        &self,
        replay: &mut StageReplay<B>,
        sampler: &mut Sampler,
        replayed: &mut Replayed,
    ) -> Result<(), VerifyError> {
        let (stage, segments) = replay.last_step();
        let (from, to) = (segments[0].from, segments[0].to());
        let first = self.receipt.plan.prompt_length - 1;
        let rows: Vec<u32> = (from.max(first)..to.max(first)).map(|position| position - from).collect();
        let (mut logits, mut faults) = (Vec::new(), Vec::new());
        let width = stage.vocabulary();
        for rows in rows.chunks(stage.draw_rows()) {
            stage.logits(segments, rows, &mut logits, &mut faults).map_err(ComputeError::from)?;
            for (row, logits) in rows.iter().zip(logits.chunks_exact_mut(width)) {
                let position = from + row + 1;
                let told = self.receipt.reply[(position - first - 1) as usize];
                let drawn = sampler.peek(logits, position);
                let faulty = faults.iter().any(|fault| fault.position + 1 == position);
                if (drawn != told || faulty) && replayed.token.is_none() {
                    replayed.token = Some((position, told, drawn));
                }
                sampler.accept(told);
            }
        }
        Ok(())
    }
}
