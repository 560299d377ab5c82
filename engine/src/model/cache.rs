//! Quantised weights on disk, so that a restart neither reads nor quantises a checkpoint again.
//!
//! An entry is a unit (embedding, layer, head). It is named by the hash of its contents' origin:
//! the stored bytes, tensor names, target formats and the version of the numerics. A small index
//! leads from a file that has not changed (path, size, modification time, inode) to that name.
//!
//! Layout of an entry: [`MAGIC`], the 32 bytes of its name, the canonical bytes of the unit's tensors
//! in the order of the plan, and the BLAKE3 hash of all that. Its length follows from the plan, so
//! nothing in it is believed. Entries appear by renaming; a broken one is rebuilt; where writing
//! fails the load goes on without.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use super::{
    error::ModelError,
    open::NUMERICS,
    plan::{Item, Target},
    table::{Storage, TensorInfo, TensorTable},
    weights::{self, Loaded},
};

/// Default bound on the size of the cache.
pub const LIMIT_BYTES: u64 = 64 << 30;

const MAGIC: &[u8; 16] = b"dolphin shard 1\n";
const HASH: usize = blake3::OUT_LEN;
/// Most entries of the index; the older half goes when there are more.
const INDEX_ENTRIES: usize = 1 << 14;

type Hash = [u8; HASH];
type Placed<'a> = [(Item, &'a TensorInfo)];

/// A directory of quantised weights, bounded in size; what was not used longest goes first.
#[derive(Clone, Debug)]
pub struct ShardCache {
    directory: PathBuf,
    limit_bytes: u64,
}

/// Where Dolphin keeps what it can make again: `DOLPHIN_CACHE`, or `dolphin` in `XDG_CACHE_HOME` or
/// `~/.cache`. `None` without a home directory and if `DOLPHIN_CACHE` is `off`.
pub fn cache_root() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    match set("DOLPHIN_CACHE") {
        Some(path) if path == Path::new("off") => None,
        Some(path) => Some(path),
        None => {
            let caches = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
            caches.map(|caches| caches.join("dolphin"))
        }
    }
}

impl ShardCache {
    /// A cache of at most `limit_bytes` in `directory`, which is made when it is first written to.
    pub fn new(directory: impl Into<PathBuf>, limit_bytes: u64) -> Self {
        Self { directory: directory.into(), limit_bytes }
    }

    /// The cache of this user: `shards` in [`cache_root`], bounded by [`LIMIT_BYTES`].
    pub fn of_user() -> Option<Self> {
        cache_root().map(|root| Self::new(root.join("shards"), LIMIT_BYTES))
    }

    /// Loads a unit from the cache, or from its files and leaves it in the cache.
    pub(crate) fn load(
        &self,
        table: &TensorTable,
        items: &Placed<'_>,
        seen: &mut dyn FnMut(&[u8]),
    ) -> Result<Vec<Loaded>, ModelError> {
        let source = source_key(table, items);
        if let Some(name) = source.and_then(|source| self.look_up(&source))
            && let Some(loaded) = self.read(&name, items)
        {
            return Ok(loaded);
        }
        let mut hasher = content_hasher(items);
        let loaded = weights::load(table, items, &mut |bytes| {
            hasher.update(bytes);
            seen(bytes);
        })?;
        let name = *hasher.finalize().as_bytes();
        if let Err(error) = self.write(&name, source.as_ref(), &loaded) {
            tracing::warn!("{}: weights are not cached: {error}", self.directory.display());
        }
        Ok(loaded)
    }

    fn entry(&self, name: &Hash) -> PathBuf {
        self.directory.join(format!("{}.shard", hex::encode(name)))
    }

    fn index(&self) -> PathBuf {
        self.directory.join("index")
    }

    /// The name that the index has for `source`.
    fn look_up(&self, source: &Hash) -> Option<Hash> {
        let bytes = fs::read(self.index().join(hex::encode(source))).ok()?;
        let (name, check) = bytes.split_first_chunk::<HASH>()?;
        (check == blake3::hash(name).as_bytes()).then_some(*name)
    }

    fn read(&self, name: &Hash, items: &Placed<'_>) -> Option<Vec<Loaded>> {
        let path = self.entry(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!("{}: {error}: the weights are quantised again", path.display());
                return None;
            }
        };
        match read_entry(file, name, items) {
            Ok(loaded) => {
                // The time of the last use decides what goes first; a read-only cache just ages.
                if let Ok(file) = OpenOptions::new().append(true).open(&path) {
                    let _ = file.set_modified(SystemTime::now());
                }
                Some(loaded)
            }
            Err(error) => {
                tracing::warn!("{}: {error}: the weights are quantised again", path.display());
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    fn write(&self, name: &Hash, source: Option<&Hash>, loaded: &[Loaded]) -> io::Result<()> {
        let size = loaded.iter().map(bytes_of).sum::<u64>() + (MAGIC.len() + 2 * HASH) as u64;
        if size > self.limit_bytes {
            return Err(io::Error::other(format!("{size} bytes are more than the cache may hold")));
        }
        fs::create_dir_all(self.index())?;
        self.make_room(size)?;
        let path = self.entry(name);
        if !path.exists() {
            replace(&path, |file| write_entry(file, name, loaded))?;
        }
        let Some(source) = source else { return Ok(()) };
        replace(&self.index().join(hex::encode(source)), |file| {
            file.write_all(name)?;
            file.write_all(blake3::hash(name).as_bytes())
        })
    }

    /// Removes what was not used longest until `size` more bytes fit.
    fn make_room(&self, size: u64) -> io::Result<()> {
        let mut entries = by_age(&self.directory, "shard")?;
        let mut total: u64 = entries.iter().map(|entry| entry.size).sum();
        entries.reverse();
        while total.saturating_add(size) > self.limit_bytes {
            let Some(oldest) = entries.pop() else { break };
            fs::remove_file(&oldest.path)?;
            total -= oldest.size;
        }
        let index = by_age(&self.index(), "")?;
        if index.len() > INDEX_ENTRIES {
            for old in &index[..index.len() / 2] {
                fs::remove_file(&old.path)?;
            }
        }
        Ok(())
    }
}

/// Whether loading these tensors does more than copy them.
pub(crate) fn worthwhile(table: &TensorTable, items: &Placed<'_>) -> bool {
    items.iter().any(|(item, info)| {
        let quantised = match item.target {
            Target::Matrix(format) => {
                format != kernels::tensor::Format::F32 && !info.dtype.is_canonical(format)
            }
            Target::Vector => false,
        };
        quantised && matches!(table.files[info.file], Storage::File(_))
    })
}

struct Entry {
    path: PathBuf,
    size: u64,
    used: SystemTime,
}

/// The files of `directory` with `extension`, oldest first. Abandoned temporary files are removed.
fn by_age(directory: &Path, extension: &str) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // Another process may have removed it meanwhile.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let kind = path.extension().unwrap_or_default();
        if kind == "tmp" && used.elapsed().is_ok_and(|age| age.as_secs() > 24 * 3600) {
            let _ = fs::remove_file(&path);
        } else if metadata.is_file() && kind == extension {
            entries.push(Entry { path, size: metadata.len(), used });
        }
    }
    entries.sort_by_key(|entry| entry.used);
    Ok(entries)
}

/// Writes a file under a temporary name and renames it, so that it is there whole or not at all.
fn replace(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{unique}.tmp", process::id()));
    let written = File::create(&temporary).and_then(|file| {
        let mut writer = BufWriter::new(file);
        fill(&mut writer)?;
        writer.flush()
    });
    let renamed = written.and_then(|()| fs::rename(&temporary, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed
}

fn bytes_of(loaded: &Loaded) -> u64 {
    match loaded {
        Loaded::Matrix(matrix) => matrix.bytes().len() as u64,
        Loaded::Vector(values) => values.len() as u64 * 4,
    }
}

fn write_entry(file: &mut impl Write, name: &Hash, loaded: &[Loaded]) -> io::Result<()> {
    let mut hasher = blake3::Hasher::new();
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        file.write_all(bytes)
    };
    put(MAGIC)?;
    put(name)?;
    for tensor in loaded {
        match tensor {
            Loaded::Matrix(matrix) => put(matrix.bytes())?,
            Loaded::Vector(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                put(&bytes)?;
            }
        }
    }
    let check = *hasher.finalize().as_bytes();
    file.write_all(&check)
}

fn read_entry(file: File, name: &Hash, items: &Placed<'_>) -> io::Result<Vec<Loaded>> {
    let broken = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let payload: u64 = items.iter().map(|(item, _)| item.target_bytes() as u64).sum();
    if file.metadata()?.len() != payload + (MAGIC.len() + 2 * HASH) as u64 {
        return Err(broken("the entry has the wrong length"));
    }
    let mut reader = BufReader::new(file);
    let mut hasher = blake3::Hasher::new();
    let mut take = |length: usize| {
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes)?;
        hasher.update(&bytes);
        Ok::<_, io::Error>(bytes)
    };
    if take(MAGIC.len())? != MAGIC || take(HASH)? != name {
        return Err(broken("the entry is not what its name says"));
    }
    let mut loaded = Vec::with_capacity(items.len());
    for (item, _) in items {
        let tensor = weights::canonical(item, take(item.target_bytes())?);
        loaded.push(tensor.map_err(|fault| broken(&format!("tensor `{}` {fault}", item.name)))?);
    }
    let mut check = [0; HASH];
    reader.read_exact(&mut check)?;
    if hasher.finalize() != blake3::Hash::from_bytes(check) {
        return Err(broken("the checksum is wrong"));
    }
    Ok(loaded)
}

/// A hash over what the tensors are and become; their stored bytes come after it.
fn content_hasher(items: &Placed<'_>) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new_derive_key("dolphin shard content 1");
    describe(&mut hasher, items);
    hasher
}

fn describe(hasher: &mut blake3::Hasher, items: &Placed<'_>) {
    let mut text = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    text(NUMERICS);
    for (item, info) in items {
        text(&item.name);
        text(&format!("{} {:?} {:?} {:?}", info.dtype, item.shape, item.target, item.interleaved_heads));
    }
}

/// What identifies unchanged source bytes without reading them; `None` if a file cannot be examined.
fn source_key(table: &TensorTable, items: &Placed<'_>) -> Option<Hash> {
    let mut hasher = blake3::Hasher::new_derive_key("dolphin shard source 1");
    describe(&mut hasher, items);
    for (_, info) in items {
        let Storage::File(path) = &table.files[info.file] else { return None };
        let path = path.canonicalize().ok()?;
        let metadata = fs::metadata(&path).ok()?;
        let modified = metadata.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let name = path.as_os_str().as_encoded_bytes();
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name);
        for number in [metadata.len(), inode(&metadata), modified.as_secs(), info.offset, info.bytes] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&modified.subsec_nanos().to_le_bytes());
    }
    Some(*hasher.finalize().as_bytes())
}

#[cfg(unix)]
fn inode(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_metadata: &fs::Metadata) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Model, Quantisation, ShardWeights,
        tests::{golden, load},
    };

    fn cached(directory: &Path, limit_bytes: u64) -> Model {
        let cache = ShardCache::new(directory, limit_bytes);
        Model::open(&golden("llama")).expect("opens").with_cache(Some(cache))
    }

    fn entries(directory: &Path) -> Vec<PathBuf> {
        by_age(directory, "shard").expect("a directory").into_iter().map(|entry| entry.path).collect()
    }

    fn same(a: &ShardWeights, b: &ShardWeights) -> bool {
        a.embedding == b.embedding
            && a.head.as_ref().map(|head| &head.weight) == b.head.as_ref().map(|head| &head.weight)
            && a.final_norm == b.final_norm
            && a.layers.iter().zip(&b.layers).all(|(a, b)| {
                a.qkv.q.weight == b.qkv.q.weight && a.down.weight == b.down.weight && a.mlp_norm == b.mlp_norm
            })
    }

    #[test]
    fn a_second_load_comes_from_the_cache() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let model = cached(directory.path(), LIMIT_BYTES);
        let plain = load(&Model::open(&golden("llama")).expect("opens"), Quantisation::Q4);
        assert!(same(&load(&model, Quantisation::Q4), &plain));
        let written = entries(directory.path());
        assert_eq!(written.len(), 7, "embedding, five layers and the head");
        for _ in 0..2 {
            assert!(same(&load(&model, Quantisation::Q4), &plain));
        }
        assert_eq!(entries(directory.path()).len(), 7);
        load(&model, Quantisation::F32);
        assert_eq!(entries(directory.path()).len(), 7, "f32 is not worth an entry");
        load(&model, Quantisation::Q8);
        assert_eq!(entries(directory.path()).len(), 12, "the ends are q8 in both");
    }

    #[test]
    fn a_hit_reads_no_source_bytes() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let model = cached(directory.path(), LIMIT_BYTES);
        load(&model, Quantisation::Q8);
        let shard = crate::model::Shard { layers: 0..1, embedding: false, head: false };
        let calls = std::cell::Cell::new(0);
        model.load(&shard, Quantisation::Q8, &|_| calls.set(calls.get() + 1)).expect("loads");
        assert_eq!(calls.get(), 1, "one report for the unit instead of one for each piece");
    }

    #[test]
    fn broken_entries_are_rebuilt() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let model = cached(directory.path(), LIMIT_BYTES);
        let plain = load(&model, Quantisation::Q8);
        for (number, path) in entries(directory.path()).into_iter().enumerate() {
            let mut bytes = fs::read(&path).expect("an entry");
            match number {
                0 => bytes.truncate(bytes.len() - 1),
                1 => bytes.clear(),
                2 => bytes.extend([0]),
                _ => {
                    let at = bytes.len() * number / 8;
                    bytes[at] ^= 1;
                }
            }
            fs::write(&path, bytes).expect("an entry");
        }
        assert!(same(&load(&model, Quantisation::Q8), &plain));
        assert!(same(&load(&model, Quantisation::Q8), &plain));
        for index in by_age(&directory.path().join("index"), "").expect("a directory") {
            fs::write(index.path, [7; 64]).expect("an index entry");
        }
        assert!(same(&load(&model, Quantisation::Q8), &plain));
    }

    #[test]
    fn the_cache_keeps_to_its_limit() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let layer = cached(directory.path(), 0).layer_bytes(Quantisation::Q8)[0] + 80;
        let model = cached(directory.path(), 3 * layer);
        load(&model, Quantisation::Q8);
        let total: u64 =
            by_age(directory.path(), "shard").expect("a directory").iter().map(|entry| entry.size).sum();
        assert!(total <= 3 * layer && total > 0, "{total} of {}", 3 * layer);
        let nothing = tempfile::tempdir().expect("temporary directory");
        load(&cached(nothing.path(), 10), Quantisation::Q8);
        assert!(entries(nothing.path()).is_empty());
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let source = tempfile::tempdir().expect("temporary directory");
        for file in ["config.json", "model.safetensors"] {
            fs::copy(golden("llama").join(file), source.path().join(file)).expect("a copy");
        }
        let cache = tempfile::tempdir().expect("temporary directory");
        let open = || {
            let cache = ShardCache::new(cache.path(), LIMIT_BYTES);
            Model::open(source.path()).expect("opens").with_cache(Some(cache))
        };
        let before = load(&open(), Quantisation::Q8);
        let path = source.path().join("model.safetensors");
        let mut bytes = fs::read(&path).expect("a copy");
        let end = bytes.len();
        for at in (end - 4000..end).step_by(4) {
            bytes[at..at + 4].copy_from_slice(&1.5_f32.to_le_bytes());
        }
        fs::write(&path, bytes).expect("a copy");
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        File::options().append(true).open(&path).expect("a copy").set_modified(later).expect("a time");
        let plain = load(&Model::open(source.path()).expect("opens"), Quantisation::Q8);
        let after = load(&open(), Quantisation::Q8);
        assert!(same(&after, &plain) && !same(&after, &before));
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_done_without() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("file");
        fs::write(&file, b"in the way").expect("a file");
        load(&cached(&file.join("shards"), LIMIT_BYTES), Quantisation::Q8);
    }
}
