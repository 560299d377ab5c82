//! What shows that there is no trace of a stage, so that a dispute over it cannot be tried.

use std::ops::Range;

use kernels::backend::Profile;
use ledger::dispute::Gap;

use super::{MOST_POSITIONS, TraceError, dispute::opened_unit};
use crate::model::{Model, ModelHash, Quantisation};

/// A stage of a session, up to a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// How weights are held.
    pub quantisation: Quantisation,
    /// The stage's layers.
    pub layers: Range<usize>,
    /// Positions.
    pub to: u32,
}

/// What shows that there is no trace of a part; `None` if there is one.
///
/// # Errors
/// If the model's files cannot be read.
pub fn gap(model: &Model, hash: &ModelHash, part: &Part) -> Result<Option<Gap>, TraceError> {
    if part.layers.is_empty() || part.to > MOST_POSITIONS {
        return Ok(Some(Gap::default()));
    }
    if part.layers.end > model.config().layers {
        return Err(TraceError::Input("for layers of the model"));
    }
    if part.quantisation.profile() == Profile::Quantised {
        return Ok(None);
    }
    let layer = part.layers.start;
    let mut unit = model.open_unit(Some(layer), part.quantisation)?;
    let unit = opened_unit(hash, Some(layer), &mut unit).ok_or(TraceError::Input("there"))?;
    Ok(Some(Gap { unit, index: layer as u32 + 1, ..Gap::default() }))
}
