//! Which tensors of a described model a node has, and where: what it can give to others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use crate::model::{Model, ModelError, Place, Quantisation, Shard};

/// It is not here.
const ABSENT: u8 = 0;
/// It is in files of which nobody has shown that they are the model's.
const CLAIMED: u8 = 1;
/// It is here, and under the model hash.
const RIGHT: u8 = 2;

/// See the module. Tensors are found by where they are in the described files: number of the file and first byte.
#[derive(Debug)]
pub(super) struct Shelf {
    model: Arc<Model>,
    leaves: Vec<Vec<[u8; 32]>>,
    spots: BTreeMap<(u32, u64), Spot>,
}

#[derive(Debug)]
struct Spot {
    /// Where it is in the files of `model`.
    place: Place,
    /// Which part of the model it belongs to, counted as in [`Parts`](crate::message::Parts).
    part: u16,
    state: AtomicU8,
}

impl Shelf {
    /// An empty shelf for the tensors at `places` of `model`; each comes with its place in the described files.
    pub(super) fn new(
        model: Arc<Model>,
        leaves: Vec<Vec<[u8; 32]>>,
        places: Vec<((u32, u64), Place)>,
    ) -> Self {
        let mut spots = BTreeMap::new();
        for (at, place) in places {
            // The matrix of tied ends is one tensor; it counts as the embedding, which comes first.
            let part = u16::try_from(place.leaf.0).unwrap_or(u16::MAX);
            spots.entry(at).or_insert(Spot { place, part, state: AtomicU8::new(ABSENT) });
        }
        Self { model, leaves, spots }
    }

    /// A shelf with those of the `described` tensors on it that `model`, opened from files of a node's own, has in
    /// the same form. That they are the same is looked at when one is asked for.
    pub(super) fn of_own(&self, model: Arc<Model>, own: Vec<Place>) -> Self {
        let mut own: HashMap<String, Place> =
            own.into_iter().map(|place| (place.name().to_owned(), place)).collect();
        let mut shelf = Self { model, leaves: self.leaves.clone(), spots: BTreeMap::new() };
        for (at, Spot { place, part, .. }) in &self.spots {
            let same = own.remove(place.name()).filter(|found| found.has_form_of(place));
            let state = AtomicU8::new(if same.is_some() { CLAIMED } else { ABSENT });
            shelf
                .spots
                .insert(*at, Spot { place: same.unwrap_or_else(|| place.clone()), part: *part, state });
        }
        shelf
    }

    /// Which part a tensor belongs to.
    pub(super) fn part(&self, at: (u32, u64)) -> Option<u16> {
        Some(self.spots.get(&at)?.part)
    }

    /// A tensor is here, and right.
    pub(super) fn put(&self, at: (u32, u64)) {
        if let Some(spot) = self.spots.get(&at) {
            spot.state.store(RIGHT, Ordering::Release);
        }
    }

    /// Parts of which every tensor is here, rising.
    pub(super) fn parts(&self) -> Vec<u16> {
        let mut parts = BTreeSet::new();
        let mut lacking = BTreeSet::new();
        for Spot { part, state, .. } in self.spots.values() {
            if state.load(Ordering::Acquire) == ABSENT {
                lacking.insert(*part);
            }
            parts.insert(*part);
        }
        parts.difference(&lacking).copied().collect()
    }

    /// Bytes of one tensor, `offset` bytes into a described file; `None` if they are not here. It blocks.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(super) fn read(&self, file: u32, offset: u64, length: u64) -> Result<Option<Vec<u8>>, ModelError> {
        let Some((&(found, start), spot)) = self.spots.range(..=(file, offset)).next_back() else {
            return Ok(None);
        };
        let (own_file, own_start, bytes) = spot.place.range();
        let within = found == file && offset - start < bytes && length <= bytes - (offset - start);
        if !within || !self.is_right(spot)? {
            return Ok(None);
        }
        self.model.file_bytes(own_file, own_start + (offset - start), length).map(Some)
    }

    fn is_right(&self, spot: &Spot) -> Result<bool, ModelError> {
        match spot.state.load(Ordering::Acquire) {
            ABSENT => Ok(false),
            RIGHT => Ok(true),
            _ => {
                let (part, number) = spot.place.leaf;
                let is_right = match self.model.leaf(&spot.place) {
                    Ok(leaf) => self.leaves.get(part).and_then(|part| part.get(number)) == Some(&leaf),
                    Err(ModelError::Tensor { .. }) => false,
                    Err(error) => return Err(error),
                };
                if !is_right {
                    tracing::warn!(
                        tensor = spot.place.name(),
                        "the file here is not the gateway's: it is not given"
                    );
                }
                spot.state.store(if is_right { RIGHT } else { ABSENT }, Ordering::Release);
                Ok(is_right)
            }
        }
    }
}

/// The tensors of a model of which some may be missing.
pub(super) fn own_places(model: &Model, quantisation: Quantisation) -> Vec<Place> {
    let layers = model.config().layers;
    let shard = |layers, embedding, head| Shard { layers, embedding, head };
    let ends = [shard(0..0, true, false), shard(layers..layers, false, true)];
    let units = (0..layers).map(|layer| shard(layer..layer + 1, false, false)).chain(ends);
    units.filter_map(|unit| model.places(&unit, quantisation).ok()).flatten().collect()
}
