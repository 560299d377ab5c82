//! What shows that there is no trace of a stage, so that a dispute over it cannot be tried.

use std::ops::Range;

use kernels::backend::Profile;
use ledger::dispute::Gap;

use super::{
    MOST_POSITIONS, TraceError,
    dispute::{opened_segment, opened_unit},
};
use crate::model::{Model, ModelHash, Quantisation};

/// A stage of a session, up to a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// How weights are held.
    pub quantisation: Quantisation,
    /// The stage's layers.
    pub layers: Range<usize>,
    /// Whether tokens come in.
    pub embedding: bool,
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
    let is_quantised = part.quantisation.profile() == Profile::Quantised;
    let embedding = part.embedding.then_some(None);
    for layer in embedding.into_iter().chain(part.layers.clone().map(Some)) {
        let tensor = if is_quantised { model.untraced(layer, part.quantisation) } else { Some(0) };
        let Some(tensor) = tensor else { continue };
        let mut unit = model.open_unit(layer, part.quantisation)?;
        let missing = || TraceError::Input("there");
        let opened = match is_quantised {
            true => opened_segment(&mut unit, tensor, 0, 0).ok_or_else(missing)?,
            false => Default::default(),
        };
        let index = layer.map_or(0, |layer| layer as u32 + 1);
        let unit = opened_unit(hash, layer, &mut unit).ok_or_else(missing)?;
        return Ok(Some(Gap { unit, index, tensor, opened }));
    }
    Ok(None)
}
