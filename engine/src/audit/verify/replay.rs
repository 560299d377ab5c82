//! Runs a session's stages one after another, each over all rows, so that one stage's weights are in memory
//! at a time.

use kernels::backend::{Backend, Profile};

use super::{VerifyError, shard};
use crate::{
    audit::{receipt::Receipt, rows::row_roots},
    local::{StageBudget, load_stage},
    message::{RouteId, Segment, SessionId, decode_rows, encode_rows, row_bytes},
    model::{Model, Progress},
    sampler::Sampler,
    stage::{Input, Prompt, Stage, StepError},
};

/// Rows of one step of a replay.
const ROWS: usize = 256;
const SESSION: SessionId = SessionId(1);
const ROUTE: RouteId = RouteId(1);

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
    profile: Profile,
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
        let profile = receipt.plan.terms.quantisation.profile();
        Self { receipt, model, backend, progress, done: 0, total, rows: Vec::new(), profile }
    }

    /// Replays the next stage, which is number `index`.
    pub(super) fn stage(&mut self, index: usize) -> Result<Replayed, VerifyError> {
        let mut stage = self.load(index)?;
        let input = std::mem::take(&mut self.rows);
        let tokens: Vec<u32> = self.receipt.prompt.iter().chain(&self.receipt.reply).copied().collect();
        let wide = row_bytes(self.model.config().hidden, self.profile);
        let layers = shard(self.receipt, index).layers;
        let last = index + 1 == self.receipt.plan.stages.len();
        let mut replayed = Replayed { roots: Vec::new(), token: None };
        let mut sampler = Sampler::new(self.receipt.plan.sampling.clone(), &self.receipt.prompt);
        let (mut faults, mut short, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let end = self.receipt.rows() as usize;
        for from in (0..end).step_by(ROWS.min(stage.limits().rows)) {
            let to = (from + ROWS.min(stage.limits().rows)).min(end);
            let segment = Segment {
                session: SESSION,
                from: from as u32,
                rows: (to - from) as u32,
                drawn: Vec::new(),
                drafted: 0,
            };
            let segments = [segment];
            stage.reserve(&segments, &mut short);
            let input = match index {
                0 => Input::Tokens(&tokens[from..to]),
                _ => {
                    // A stage before that ended with a fault has no rows for this one.
                    let Some(bytes) = input.get(from * wide..to * wide) else { return Ok(replayed) };
                    decode_rows(bytes, self.profile, &mut rows)
                        .map_err(|_| StepError::Input)
                        .map_err(step)?;
                    Input::Rows(&rows)
                }
            };
            stage.step(layers.clone(), &segments, input, &mut faults)?;
            if !faults.is_empty() {
                return Ok(replayed);
            }
            stage.read_rows(0..to - from, &mut rows).map_err(device)?;
            let bytes = encode_rows(&rows, self.profile);
            replayed.roots.extend(row_roots(&bytes.chunks(wide).collect::<Vec<_>>()));
            if last {
                self.draw(&mut stage, &segments, &mut sampler, &mut replayed)?;
            } else {
                self.rows.extend_from_slice(&bytes);
            }
            self.done += (to - from) as u64 * (layers.len() as u64 + 1);
            (self.progress)(Progress { done: self.done, total: self.total });
        }
        Ok(replayed)
    }

    fn load(&self, index: usize) -> Result<Stage<B>, VerifyError> {
        let positions = self.receipt.rows();
        let budget =
            StageBudget { rows: ROWS, chunk: ROWS, sessions: 1, context: positions, kv_bytes: u64::MAX };
        let quantisation = self.receipt.plan.terms.quantisation;
        let shard = shard(self.receipt, index);
        let stage = load_stage(self.model, &shard, quantisation, &budget, self.backend.clone(), &|_| ());
        let mut stage = stage?;
        stage
            .open(SESSION, ROUTE, positions, Prompt::default())
            .map_err(|error| VerifyError::Room(error.to_string()))?;
        Ok(stage)
    }

    /// Draws from the rows of the last step and compares with what was told.
    fn draw(
        &self,
        stage: &mut Stage<B>,
        segments: &[Segment],
        sampler: &mut Sampler,
        replayed: &mut Replayed,
    ) -> Result<(), VerifyError> {
        let (from, to) = (segments[0].from, segments[0].to());
        let first = self.receipt.plan.prompt_length - 1;
        let rows: Vec<u32> = (from.max(first)..to.max(first)).map(|position| position - from).collect();
        let (mut logits, mut faults) = (Vec::new(), Vec::new());
        let width = stage.vocabulary();
        for rows in rows.chunks(stage.draw_rows()) {
            stage.logits(segments, rows, &mut logits, &mut faults).map_err(device)?;
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

fn step(error: StepError) -> VerifyError {
    VerifyError::Compute(error.into())
}

fn device(error: kernels::backend::BackendError) -> VerifyError {
    VerifyError::Compute(error.into())
}
