//! One stage of a session, computed anew as one prefill.

use kernels::backend::{Backend, Profile};

use super::{plan::PlannedStage, verify::VerifyError};
use crate::{
    local::{StageBudget, load_stage},
    message::{RouteId, Segment, SessionId, decode_rows, encode_rows, row_bytes},
    model::{Model, Quantisation, Shard},
    stage::{ComputeError, Input, Prompt, Stage, StepError},
};

/// Rows of one step of a replay.
const ROWS: usize = 256;
const SESSION: SessionId = SessionId(1);
const ROUTE: RouteId = RouteId(1);

/// What comes into a stage in one step.
#[derive(Clone, Copy)]
pub(super) enum Came<'a> {
    Tokens(&'a [u32]),
    /// Rows as they travel, one after another.
    Rows(&'a [u8]),
}

pub(super) struct StageReplay<B: Backend> {
    stage: Stage<B>,
    shard: Shard,
    quantisation: Quantisation,
    profile: Profile,
    hidden: usize,
    /// Of the last step.
    segment: [Segment; 1],
    /// Rows of the last step, as numbers.
    rows: Vec<f32>,
}

impl<B: Backend + Clone> StageReplay<B> {
    /// Loads a stage for a session of at most `positions` rows.
    pub(super) fn new(
        model: &Model,
        planned: &PlannedStage,
        quantisation: Quantisation,
        positions: u32,
        backend: &B,
    ) -> Result<Self, VerifyError> {
        let budget =
            StageBudget { rows: ROWS, chunk: ROWS, sessions: 1, context: positions, kv_bytes: u64::MAX };
        let shard = planned.shard();
        let stage = load_stage(model, &shard, quantisation, &budget, backend.clone(), &|_| ())?;
        let (profile, hidden) = (quantisation.profile(), model.config().hidden);
        let (segment, rows) = ([segment(0, 0)], Vec::new());
        let mut replay = Self { stage, shard, quantisation, profile, hidden, segment, rows };
        replay.begin(positions)?;
        Ok(replay)
    }

    /// Whether a session of this stage could be computed as it is loaded.
    pub(super) fn serves(&self, planned: &PlannedStage, quantisation: Quantisation, positions: u32) -> bool {
        let loaded = (&self.shard, self.quantisation) == (&planned.shard(), quantisation);
        loaded && positions <= self.stage.limits().positions
    }

    /// Begins another session, of at most `positions` rows.
    pub(super) fn begin(&mut self, positions: u32) -> Result<(), VerifyError> {
        self.stage.close(SESSION, &[]);
        let opened = self.stage.open(SESSION, ROUTE, positions, Prompt::default());
        opened.map(|_| ()).map_err(|error| VerifyError::Room(error.to_string()))
    }

    /// Most rows of a step.
    pub(super) fn rows(&self) -> usize {
        ROWS.min(self.stage.limits().rows)
    }

    /// Bytes of a row as it travels.
    pub(super) fn row_bytes(&self) -> usize {
        row_bytes(self.hidden, self.profile)
    }

    /// Computes the rows from position `from` on, as they travel; `None` if one of them is a fault. Steps follow
    /// one another.
    pub(super) fn step(&mut self, from: u32, came: Came<'_>) -> Result<Option<Vec<u8>>, VerifyError> {
        let rows = match came {
            Came::Tokens(tokens) => tokens.len(),
            Came::Rows(bytes) => bytes.len() / self.row_bytes(),
        };
        self.segment = [segment(from, rows as u32)];
        let (mut short, mut faults) = (Vec::new(), Vec::new());
        self.stage.reserve(&self.segment, &mut short);
        let input = match came {
            Came::Tokens(tokens) => Input::Tokens(tokens),
            Came::Rows(bytes) => {
                decode_rows(bytes, self.profile, &mut self.rows)
                    .map_err(|_| ComputeError::from(StepError::Input))?;
                Input::Rows(&self.rows)
            }
        };
        self.stage.step(self.shard.layers.clone(), &self.segment, input, &mut faults)?;
        if !faults.is_empty() {
            return Ok(None);
        }
        self.stage.read_rows(0..rows, &mut self.rows).map_err(ComputeError::from)?;
        Ok(Some(encode_rows(&self.rows, self.profile)))
    }

    /// The stage after its last step, and the step.
    pub(super) fn last_step(&mut self) -> (&mut Stage<B>, &[Segment]) {
        (&mut self.stage, &self.segment)
    }
}

fn segment(from: u32, rows: u32) -> Segment {
    Segment { session: SESSION, from, rows, drawn: Vec::new(), drafted: 0 }
}
