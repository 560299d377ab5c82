//! A checkpoint of which only some layers are here: a note beside it says what the rest is, so that
//! all holders of parts have the fingerprint of the whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    Quantisation, config,
    error::ModelError,
    family,
    plan::{Layout, Unit},
    read,
    table::{Absent, Dtype, TensorTable},
};

/// File name of the note.
pub(crate) const NOTE: &str = "dolphin-partial.json";
const NOTE_BYTES: u64 = 64 << 20;

/// Says which part of which checkpoint is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Where it is from.
    pub(crate) repository: String,
    /// Commit.
    pub(crate) revision: String,
    /// Layers that are here.
    pub(crate) layers: Range<usize>,
    /// All tensors of the checkpoint.
    pub(crate) tensors: BTreeMap<String, Stored>,
}

/// Format and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
}

/// Adds what the note in `directory`, if there is one, says about the tensors that are not here.
pub(crate) fn complete(mut table: TensorTable, directory: &Path) -> Result<TensorTable, ModelError> {
    let path = directory.join(NOTE);
    if !path.is_file() {
        return Ok(table);
    }
    let note: Note = serde_json::from_slice(&read::whole(&path, NOTE_BYTES)?)
        .map_err(|error| ModelError::malformed(NOTE, error.to_string()))?;
    for (name, Stored { dtype, shape }) in note.tensors {
        if !table.tensors.contains_key(&name) {
            let file = format!("{} (layers {:?} are here)", note.repository, note.layers);
            table.absent.insert(name, Absent { file, stored: Some((Dtype::named(&dtype), shape)) });
        }
    }
    Ok(table)
}

/// Names and shapes of the tensors that `layers` of the model with this `config.json` consist of; the
/// first layer brings the embedding, the last the final norm and the head.
pub(crate) fn needed(
    config: &[u8],
    layers: &Range<usize>,
) -> Result<BTreeSet<(String, Vec<usize>)>, ModelError> {
    let description = config::describe(config)?;
    let count = description.config.layers;
    let tied = description.config.tied;
    if layers.is_empty() || layers.end > count {
        return Err(ModelError::Layers { start: layers.start, end: layers.end, layers: count });
    }
    let layout = Layout { description, naming: &family::CHECKPOINT, interleaved: false };
    let mut units: Vec<Unit> = layers.clone().map(Unit::Layer).collect();
    let last = layers.end == count;
    units.extend((layers.start == 0 || (last && tied)).then_some(Unit::Embedding));
    units.extend(last.then_some(Unit::FinalNorm));
    units.extend((last && !tied).then_some(Unit::Head));
    let items = units.into_iter().flat_map(|unit| layout.uniform(unit, Quantisation::default()));
    Ok(items.map(|item| (item.name, item.shape)).collect())
}
