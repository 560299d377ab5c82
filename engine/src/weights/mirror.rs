//! What a node has fetched of a giver's files: files as long as those, of which only the tensors that were
//! verified are believed. A note in the directory names them; it is replaced as a whole, after the bytes that it
//! speaks of are on disk.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    catalogue::{Catalogue, Entry},
    shelf::Shelf,
};
use crate::model::{FETCHED, HashTree, Model, ModelError, ModelHash, Place, Quantisation, Shard, ShardCache};

/// Held by the process that writes.
const LOCK: &str = "lock";
/// Bytes of an unfinished tensor between two notes.
const NOTED_BYTES: u64 = 8 << 20;

/// Why what a giver describes cannot be kept.
#[derive(Debug, Error)]
pub enum MirrorError {
    /// Its description contradicts itself.
    #[error("the description of the model has {0}")]
    Catalogue(&'static str),
    /// Its files are no model that can be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The weights are hashed at another quantisation.
    #[error("the model is served as {theirs}, and this node was to hold it as {ours}")]
    Quantisation {
        /// The giver's.
        theirs: Quantisation,
        /// Ours.
        ours: Quantisation,
    },
    /// The layers have more bytes than this node keeps.
    #[error("the layers have {needed} bytes in the files, and no more than {limit} are to be fetched")]
    TooLarge {
        /// Bytes of the layers.
        needed: u64,
        /// Bytes that may be fetched.
        limit: u64,
    },
    /// The disk here fails.
    #[error("{}: {error}", path.display())]
    Disk {
        /// File or directory.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Mirror {
    directory: PathBuf,
    model: Arc<Model>,
    quantisation: Quantisation,
    digest: [u8; 32],
    tree: HashTree,
    /// The description, and the bytes of each file that it numbers.
    catalogue: (Bytes, Vec<u64>),
    /// Of each of the model's files: its number in the catalogue, and where it is.
    files: Vec<(u32, PathBuf)>,
    /// What is here.
    shelf: Arc<Shelf>,
}

/// Which tensors are here.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Note {
    verified: BTreeSet<String>,
    /// Tensors of which the first so many bytes are here.
    #[serde(default)]
    unfinished: BTreeMap<String, u64>,
}

impl Mirror {
    /// Opens what was fetched before of the model that `catalogue` describes, below `root`; or makes its files,
    /// empty. The description is checked against the model hash that is in it. It blocks.
    ///
    /// # Errors
    /// [`MirrorError`]; [`MirrorError::Disk`] alone is not the giver's fault.
    pub fn open(
        root: &Path,
        catalogue: &[u8],
        ours: Quantisation,
        cache: Option<ShardCache>,
    ) -> Result<Self, MirrorError> {
        let described = Catalogue::read(catalogue).map_err(MirrorError::Catalogue)?;
        if described.quantisation != ours {
            return Err(MirrorError::Quantisation { theirs: described.quantisation, ours });
        }
        let tree = described.tree().ok_or(MirrorError::Catalogue("no layers"))?;
        let digest = *blake3::hash(catalogue).as_bytes();
        let directory = root.join(hex::encode(&digest[..16]));
        let lock = lock(&directory)?;
        prepare(&directory, &described)?;
        drop(lock);
        let model = Model::open_fetched(&directory)?.with_cache(cache);
        if !model.vouches(ours, &tree)? {
            return Err(MirrorError::Catalogue("hashes that do not come to the model hash"));
        }
        let numbers: HashMap<&str, u32> =
            (0..).zip(&described.files).map(|(n, file)| (file.name.as_str(), n)).collect();
        let names = model.file_names();
        let files =
            names.iter().filter_map(|name| Some((*numbers.get(name.as_str())?, directory.join(name))));
        let files: Vec<_> = files.collect();
        if files.len() != names.len() {
            return Err(MirrorError::Catalogue("files that it does not list"));
        }
        let sizes = described.files.iter().map(|file| file.bytes).collect();
        let catalogue = (Bytes::copy_from_slice(catalogue), sizes);
        let places = everything(&model, ours)?.into_iter();
        let places = places.map(|place| ((files[place.range().0].0, place.range().1), place)).collect();
        let model = Arc::new(model);
        let shelf = Arc::new(Shelf::new(model.clone(), tree.tensors.clone(), places));
        Ok(Self { directory, model, quantisation: ours, digest, tree, catalogue, files, shelf })
    }

    /// The description that it was opened with, and the bytes of the files in it.
    pub(super) fn described(&self) -> &(Bytes, Vec<u64>) {
        &self.catalogue
    }

    /// What is here of the model.
    pub(super) fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    /// Name and bytes of a described file.
    pub(super) fn file(&self, number: u32) -> (&str, u64) {
        let path = self.files.iter().find(|file| file.0 == number).map(|file| &file.1);
        let name = path.and_then(|path| path.file_name()).and_then(|name| name.to_str());
        let bytes = self.catalogue.1.get(number as usize).copied();
        (name.unwrap_or_default(), bytes.unwrap_or_default())
    }

    /// Where a tensor is in the described files: number and first byte.
    pub(super) fn spot(&self, place: &Place) -> (u32, u64) {
        (self.number(place), place.range().1)
    }

    /// The model. Only what was fetched of it may be loaded.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The model hash, under which every fetched tensor is.
    pub fn hash(&self) -> [u8; 32] {
        self.tree.root.hash
    }

    /// The same, and what it is made of.
    pub(super) fn model_hash(&self) -> &ModelHash {
        &self.tree.root
    }

    /// Hash of the catalogue.
    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Number of a file in the catalogue.
    pub(super) fn number(&self, place: &Place) -> u32 {
        self.files[place.range().0].0
    }

    /// Whether the bytes of a tensor that are here are the model's. It blocks.
    pub(super) fn is_right(&self, place: &Place) -> Result<bool, MirrorError> {
        let (part, number) = place.leaf;
        match self.model.leaf(place) {
            Ok(leaf) => Ok(self.tree.tensors[part][number] == leaf),
            // Values that no model has.
            Err(ModelError::Tensor { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes bytes of a tensor, `offset` bytes into it. It blocks.
    pub(super) fn write(&self, place: &Place, offset: u64, bytes: &[u8]) -> Result<(), MirrorError> {
        let (file, start, _) = place.range();
        let path = &self.files[file].1;
        let opened = File::options().write(true).open(path);
        opened.and_then(|mut file| write_at(&mut file, bytes, start + offset)).map_err(disk(path))
    }

    /// Takes what is fetched as one's own to add to, which waits until no other process does. It blocks.
    pub(super) fn hold(self: &Arc<Self>) -> Result<Held, MirrorError> {
        let lock = lock(&self.directory)?;
        let path = self.directory.join(FETCHED);
        let bytes = fs::read(&path).map_err(disk(&path))?;
        // A note that is no note says that nothing is known of the bytes here.
        let note: Note = serde_json::from_slice(&bytes).unwrap_or_default();
        for place in everything(&self.model, self.quantisation)?
            .iter()
            .filter(|place| note.verified.contains(place.name()))
        {
            self.shelf.put(self.spot(place));
        }
        Ok(Held { mirror: self.clone(), note, _lock: lock })
    }

    fn sync(&self, place: &Place) -> Result<(), MirrorError> {
        let path = &self.files[place.range().0].1;
        File::open(path).and_then(|file| file.sync_data()).map_err(disk(path))
    }
}

/// A mirror that nobody else writes to.
#[derive(Debug)]
pub(super) struct Held {
    mirror: Arc<Mirror>,
    note: Note,
    _lock: File,
}

impl Held {
    /// Tensors of `shard` that are not here, each once, in the order of their places; and bytes of all tensors of
    /// the shard.
    pub(super) fn missing(&self, shard: &Shard) -> Result<(Vec<Place>, u64), MirrorError> {
        let mut places = self.mirror.model.places(shard, self.mirror.quantisation)?;
        let mut seen = BTreeSet::new();
        places.retain(|place| seen.insert(place.name().to_owned()));
        let bytes = places.iter().map(|place| place.range().2).fold(0, u64::saturating_add);
        places.retain(|place| !self.note.verified.contains(place.name()));
        // What was begun is finished first.
        places.sort_by_key(|place| (self.begun(place) == 0, place.range()));
        Ok((places, bytes))
    }

    /// First bytes of a tensor that are here.
    pub(super) fn begun(&self, place: &Place) -> u64 {
        self.note.unfinished.get(place.name()).map_or(0, |bytes| (*bytes).min(place.range().2))
    }

    /// The first `bytes` of a tensor are here. It blocks.
    pub(super) fn have(&mut self, place: &Place, bytes: u64) -> Result<(), MirrorError> {
        if bytes.saturating_sub(self.begun(place)) < NOTED_BYTES {
            return Ok(());
        }
        self.mirror.sync(place)?;
        self.note.unfinished.insert(place.name().to_owned(), bytes);
        self.write()
    }

    /// A tensor is here and right. It blocks.
    pub(super) fn verified(&mut self, place: &Place) -> Result<(), MirrorError> {
        self.mirror.sync(place)?;
        self.note.unfinished.remove(place.name());
        self.note.verified.insert(place.name().to_owned());
        self.write()?;
        self.mirror.shelf.put(self.mirror.spot(place));
        Ok(())
    }

    /// Whether a tensor is here and right.
    pub(super) fn is_verified(&self, place: &Place) -> bool {
        self.note.verified.contains(place.name())
    }

    /// A tensor's bytes are wrong. It blocks.
    pub(super) fn discard(&mut self, place: &Place) -> Result<(), MirrorError> {
        match self.note.unfinished.remove(place.name()) {
            Some(_) => self.write(),
            None => Ok(()),
        }
    }

    fn write(&self) -> Result<(), MirrorError> {
        write_note(&self.mirror.directory, &self.note)
    }
}

/// Every tensor of a model.
fn everything(model: &Model, quantisation: Quantisation) -> Result<Vec<Place>, ModelError> {
    let layers = 0..model.config().layers;
    model.places(&Shard { layers, embedding: true, head: true }, quantisation)
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> MirrorError {
    let path = path.to_owned();
    |error| MirrorError::Disk { path, error }
}

fn write_at(file: &mut File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}

fn lock(directory: &Path) -> Result<File, MirrorError> {
    fs::create_dir_all(directory).map_err(disk(directory))?;
    let path = directory.join(LOCK);
    let file = File::options().create(true).append(true).open(&path).map_err(disk(&path))?;
    file.lock().map_err(disk(&path))?;
    Ok(file)
}

/// Sees to it that every file is there, and the note last: without it the files are made anew.
fn prepare(directory: &Path, catalogue: &Catalogue) -> Result<(), MirrorError> {
    let whole = |file: &Entry| {
        fs::metadata(directory.join(&file.name))
            .is_ok_and(|found| found.is_file() && found.len() == file.bytes)
    };
    if directory.join(FETCHED).is_file() && catalogue.files.iter().all(whole) {
        return Ok(());
    }
    let note = directory.join(FETCHED);
    if note.exists() {
        fs::remove_file(&note).map_err(disk(&note))?;
    }
    let settings = catalogue.settings.as_ref().map(|bytes| ("config.json", bytes.clone()));
    let index = catalogue.index().map(|bytes| ("model.safetensors.index.json", bytes));
    for (name, bytes) in settings.into_iter().chain(index) {
        let path = directory.join(name);
        fs::write(&path, bytes).map_err(disk(&path))?;
    }
    for entry in &catalogue.files {
        let path = directory.join(&entry.name);
        let fill = |mut file: File| {
            file.set_len(entry.bytes)?;
            entry.heads.iter().try_for_each(|(offset, bytes)| write_at(&mut file, bytes, *offset))
        };
        File::create(&path).and_then(fill).map_err(disk(&path))?;
    }
    write_note(directory, &Note::default())
}

fn write_note(directory: &Path, note: &Note) -> Result<(), MirrorError> {
    let (path, fresh) = (directory.join(FETCHED), directory.join("dolphin-fetched.tmp"));
    let bytes = serde_json::to_vec(note).map_err(io::Error::other);
    bytes
        .and_then(|bytes| fs::write(&fresh, bytes))
        .and_then(|()| fs::rename(&fresh, &path))
        .map_err(disk(&path))
}
