//! Where in a model's files the bytes of its tensors are, for those who move them.

use std::collections::HashSet;

use super::{
    Model, ModelError, Quantisation, Shard,
    plan::{Item, Unit},
    read::{self, ByteRange},
    table::{Storage, TensorInfo},
};

/// File in a directory whose files have only those tensors in them that a node has fetched.
pub(crate) const FETCHED: &str = "dolphin-fetched.json";
/// Longest tensor that is part of no layer and counts as a setting: rotary divisors are one.
const SETTING_BYTES: u64 = 64 << 10;

/// A tensor of a shard.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(super) item: Item,
    pub(super) info: TensorInfo,
    /// Which leaf of a hash tree is its own: part and number.
    pub(crate) leaf: (usize, usize),
}

impl Place {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.item.name
    }

    /// Whether its bytes stand for the same values as the same bytes of `other` would.
    pub(crate) fn has_form_of(&self, other: &Self) -> bool {
        let form = |place: &Self| (place.info.dtype, place.info.bytes, place.item.interleaved_heads);
        form(self) == form(other) && self.info.shape == other.info.shape && self.name() == other.name()
    }

    /// File, first byte and bytes.
    pub(crate) fn range(&self) -> (usize, u64, u64) {
        (self.info.file, self.info.offset, self.info.bytes)
    }
}

/// A file, and what of it a model is opened with.
#[derive(Clone, Debug)]
pub(crate) struct FileHead {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// Offsets and bytes.
    pub(crate) heads: Vec<(u64, Vec<u8>)>,
}

impl Model {
    /// The tensors of `shard`.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub(crate) fn places(&self, shard: &Shard, quantisation: Quantisation) -> Result<Vec<Place>, ModelError> {
        let layers = self.config().layers;
        if shard.layers.start > shard.layers.end || shard.layers.end > layers {
            let (start, end) = (shard.layers.start, shard.layers.end);
            return Err(ModelError::Layers { start, end, layers });
        }
        let mut places = Vec::new();
        for unit in self.layout.units_of(shard) {
            let (part, first) = match unit {
                Unit::Embedding => (0, 0),
                Unit::Layer(layer) => (layer + 1, 0),
                Unit::FinalNorm => (layers + 1, 0),
                Unit::Head => (layers + 1, 1),
            };
            let placed = self.layout.placed(unit, quantisation, &self.table)?;
            let place = |(index, (item, info)): (usize, (Item, &TensorInfo))| Place {
                item,
                info: info.clone(),
                leaf: (part, first + index),
            };
            places.extend(placed.into_iter().enumerate().map(place));
        }
        Ok(places)
    }

    /// Whether every tensor of the model is here.
    pub fn is_whole(&self) -> bool {
        let layers = 0..self.config().layers;
        self.places(&Shard { layers, embedding: true, head: true }, Quantisation::default()).is_ok()
    }

    /// The settings file, if the model has one beside its weights.
    pub(crate) fn settings(&self) -> Option<&[u8]> {
        self.settings.as_deref()
    }

    /// The model's files, with everything that it is opened with.
    pub(crate) fn file_heads(&self) -> Result<Vec<FileHead>, ModelError> {
        let layered: HashSet<String> = (self.layout.units().into_iter())
            .flat_map(|unit| self.layout.uniform(unit, Quantisation::default()))
            .map(|item| item.name)
            .collect();
        let mut files = Vec::new();
        for (file, storage) in self.table.files.iter().enumerate() {
            let (name, bytes) = match storage {
                Storage::File(path) => {
                    let size = std::fs::metadata(path).map_err(|error| ModelError::io(path, error))?.len();
                    (storage.name(), size)
                }
                Storage::Embedded(bytes) => ("model.safetensors".to_owned(), bytes.len() as u64),
            };
            let tensors = || self.table.tensors.iter().filter(move |(_, info)| info.file == file);
            let header = tensors().map(|(_, info)| info.offset).min().unwrap_or(bytes);
            let settings =
                tensors().filter(|(name, info)| !layered.contains(*name) && info.bytes <= SETTING_BYTES);
            let ranges = [(0, header)].into_iter().chain(settings.map(|(_, info)| (info.offset, info.bytes)));
            let heads = ranges.map(|(offset, length)| Ok((offset, self.file_bytes(file, offset, length)?)));
            files.push(FileHead { name, bytes, heads: heads.collect::<Result<_, ModelError>>()? });
        }
        Ok(files)
    }

    /// Names of the files that [`Place::range`] counts through.
    pub(crate) fn file_names(&self) -> Vec<String> {
        self.table.files.iter().map(Storage::name).collect()
    }

    /// Bytes of a file of the model, which has to have them.
    pub(crate) fn file_bytes(&self, file: usize, offset: u64, length: u64) -> Result<Vec<u8>, ModelError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        read::range(&self.table.files, ByteRange { file, offset, length })
    }
}
