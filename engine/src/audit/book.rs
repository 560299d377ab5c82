//! What a node signed and what proves it, on disk from the signature to the end of the last audit of it.
//!
//! A *volume* holds the leaves that are posted together, as one root. One is open; at posting it is sealed, and the
//! next begins. Leaves need what came into their sessions from position 0 on: it is kept once under the root of its
//! chunk, so that sessions with a common prefix share it, in the leaf's volume or in the one before. What is older is
//! copied. A volume goes once its audits and those of the volume after it are over.
//!
//! What cannot be kept is not put in, and so is not committed to: nobody asks a node for what it does not have. The
//! recorder never waits for a disk.

mod volume;
mod writer;

use std::{
    collections::{BTreeMap, HashSet},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use ledger::{
    audit::{Chunk, Tree},
    client::Cursor,
    draw::Rate,
    eip712::Address,
};
use serde::{Deserialize, Serialize};

use super::{
    evidence::{Evidence, EvidenceError, header},
    plan::{Digest, Plan},
    rows::CHUNK,
};
use crate::{
    model::Quantisation,
    payment::{
        now,
        store::{Store, StoreError},
    },
};
use volume::{Contents, Span};
use writer::{Command, Writer};

/// What the recorder says that waits for the disk; past it, it is left out.
const QUEUE: usize = 4096;
const QUEUE_BYTES: usize = 128 << 20;

/// What a book is of, and its bounds.
#[derive(Clone, Debug)]
pub struct BookConfig {
    /// Where it is kept; one process has it at a time.
    pub directory: PathBuf,
    /// Most bytes of what came in.
    pub limit_bytes: u64,
    /// Who posts.
    pub account: Address,
    /// The model whose chunks are kept, once there is one: [`Book::admit`].
    pub model: Arc<OnceLock<Digest>>,
    /// How the weights are held.
    pub quantisation: Quantisation,
    /// Layers of the model.
    pub layers: usize,
    /// How often a fault is planted.
    pub plants: Rate,
}

/// What a stage signed of a session.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The session's plan.
    pub plan: Plan,
    /// Its hash.
    pub hash: Digest,
    /// Number of the stage.
    pub stage: u32,
    /// Whether tokens come in.
    pub tokens: bool,
    /// One past the chunk's last position.
    pub to: u32,
    /// Root of what came in.
    pub in_root: Digest,
    /// Root of the rows that went out, without tokens.
    pub out_root: Digest,
    /// What was signed.
    pub commitment: Digest,
}

/// What the recorder says.
#[derive(Clone, Debug)]
pub enum Entry {
    /// What came into a chunk: rows as they travel, or tokens, little-endian.
    Rows {
        /// The model hash.
        model: Digest,
        /// The root of their leaves.
        root: Digest,
        /// One after another.
        rows: Vec<Bytes>,
    },
    /// A chunk was signed.
    Signed(Box<Signed>),
    /// No more comes of a session.
    Over {
        /// Hash of its plan.
        plan: Digest,
        /// Number of the stage.
        stage: u32,
    },
}

impl Entry {
    /// What it takes while it waits.
    fn bytes(&self) -> usize {
        match self {
            Self::Rows { rows, .. } => rows.iter().map(Bytes::len).sum(),
            Self::Signed(_) | Self::Over { .. } => 0,
        }
    }
}

/// How far a sealed volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Its root was not handed to the chain.
    Sealed,
    /// It was, and may be on the chain or come to be.
    Sent,
    /// It is on the chain.
    Posted {
        /// In which epoch.
        epoch: u32,
    },
    /// All its audits are over.
    Over,
}

/// A sealed volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sealed {
    /// Its number.
    pub volume: u64,
    /// How far it is.
    pub standing: Standing,
    /// Root of its tree.
    pub root: Digest,
    /// How many leaves.
    pub count: u32,
    /// How many of them, the first ones, are of prompts.
    pub prompts: u32,
    /// When it was sealed, in seconds since 1970.
    pub time: u64,
    /// Where to read events from that may be of it.
    pub cursor: Option<Cursor>,
}

/// A leaf as its node knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// What stands in it.
    pub chunk: Chunk,
    /// What its fault is made of, if that was planted.
    pub salt: Option<[u8; 32]>,
}

/// Why a book cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// The file system does not do it.
    #[error("{path}: {error}", path = path.display())]
    File {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What is beside the volumes.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such volume or leaf.
    #[error("there is no such leaf")]
    NoLeaf,
    /// What proves a leaf is not there or not what it was.
    #[error("what proves the leaf is damaged: {0}")]
    Damaged(#[from] EvidenceError),
}

/// What proves a leaf, as [`Evidence::encode`] has it, in pieces.
#[derive(Clone, Debug)]
pub struct Exhibit {
    head: Vec<u8>,
    parts: Vec<(PathBuf, Span)>,
    bytes: u64,
}

/// What the writer and the readers share.
#[derive(Debug, Default)]
struct Shared {
    shelf: Mutex<Shelf>,
    /// Bytes that wait for the writer.
    queued: AtomicUsize,
}

#[derive(Debug, Default)]
struct Shelf {
    volumes: BTreeMap<u64, Contents>,
    sealed: BTreeMap<u64, Sealed>,
    commitments: HashSet<Digest>,
    bytes: u64,
    /// Sessions made before may have been in a volume that is gone; in milliseconds since 1970.
    horizon_ms: u64,
    suspect: Option<(u64, u32)>,
}

/// See the module.
#[derive(Debug)]
pub struct Book {
    config: BookConfig,
    shared: Arc<Shared>,
    store: Store,
    commands: Option<SyncSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn posted(&self, volume: u64) -> Option<&Contents> {
        self.volumes.get(&volume).filter(|_| self.sealed.contains_key(&volume))
    }

    /// Where a blob is that leaves of a volume need.
    fn find(&self, volume: u64, name: &Digest) -> Option<(u64, Span)> {
        let of = |number: u64| Some((number, *self.volumes.get(&number)?.blobs.get(name)?));
        of(volume).or_else(|| of(volume.checked_sub(1)?))
    }
}

/// Records beside the volumes.
#[derive(Serialize, Deserialize)]
enum Record {
    Volume(Sealed),
    Horizon(u64),
    Suspect(u64, u32),
}

fn record_of(volume: u64) -> String {
    format!("volume-{volume}")
}

impl Book {
    /// Opens a book, made on first use, and goes on where it was.
    ///
    /// # Errors
    /// If another process has it, or it cannot be read.
    pub fn open(config: BookConfig) -> Result<Self, BookError> {
        let directory = config.directory.clone();
        let failed = |error| BookError::File { path: directory.clone(), error };
        let store = Store::open(&directory)?;
        let mut shelf = Shelf::default();
        for (_, record) in store.read::<Record>()? {
            match record {
                Record::Volume(sealed) => _ = shelf.sealed.insert(sealed.volume, sealed),
                Record::Horizon(horizon_ms) => shelf.horizon_ms = horizon_ms,
                Record::Suspect(volume, index) => shelf.suspect = Some((volume, index)),
            }
        }
        for number in volume::numbers(&directory).map_err(failed)? {
            let (contents, whole) = volume::read(&directory, number).map_err(failed)?;
            if !whole && shelf.sealed.get(&number).is_none_or(|sealed| sealed.standing == Standing::Sealed) {
                // Nobody was told of it.
                tracing::warn!(number, "a volume of the book is damaged, and given up");
                volume::remove(&directory, number).map_err(failed)?;
                if shelf.sealed.remove(&number).is_some() {
                    store.remove(&record_of(number))?;
                }
                continue;
            }
            shelf.bytes += contents.bytes;
            shelf.commitments.extend(contents.leaves.iter().map(|leaf| leaf.commitment));
            shelf.volumes.insert(number, contents);
        }
        // A volume that was sealed is not written again, whether or not it was posted.
        let last = shelf.volumes.last_key_value().map_or(0, |(number, _)| *number);
        let told = shelf.sealed.last_key_value().map_or(0, |(number, _)| *number + 1);
        let number = last.max(told);
        let shared = Arc::new(Shared { shelf: Mutex::new(shelf), ..Shared::default() });
        let writer = Writer::new(config.clone(), shared.clone(), number).map_err(failed)?;
        let (commands, inbox) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("book".into()).spawn(move || writer.run(&inbox));
        let thread = thread.map_err(failed)?;
        Ok(Self { config, shared, store, commands: Some(commands), thread: Some(thread) })
    }

    /// Puts something in. It never waits; what there is no time for is left out, with what needs it.
    pub fn note(&self, entry: Entry) {
        let Some(commands) = &self.commands else { return };
        let (queued, bytes) = (&self.shared.queued, entry.bytes());
        let room = queued.fetch_add(bytes, Ordering::Relaxed) + bytes <= QUEUE_BYTES;
        if !room || matches!(commands.try_send(Command::Entry(entry)), Err(TrySendError::Full(_))) {
            queued.fetch_sub(bytes, Ordering::Relaxed);
            tracing::debug!("the disk is too slow for the book: a chunk is left out");
        }
    }

    /// Who posts.
    pub fn account(&self) -> Address {
        self.config.account
    }

    /// The model whose chunks are kept.
    pub fn model(&self) -> Option<Digest> {
        self.config.model.get().copied()
    }

    /// Keeps what is computed with this model from now on, unless it keeps that of another.
    pub fn admit(&self, model: Digest) {
        // One that is there stays.
        let _ = self.config.model.set(model);
    }

    /// Bytes of what is kept.
    pub fn bytes(&self) -> u64 {
        self.shared.lock().bytes
    }

    /// Leaves that were not sealed yet.
    pub fn waiting(&self) -> usize {
        let shelf = self.shared.lock();
        let open = shelf.volumes.iter().filter(|(number, _)| !shelf.sealed.contains_key(number));
        open.map(|(_, volume)| volume.leaves.len()).sum()
    }

    /// The sealed volumes, oldest first.
    pub fn sealed(&self) -> Vec<Sealed> {
        self.shared.lock().sealed.values().cloned().collect()
    }

    /// Makes everything durable that was put in so far. It blocks.
    pub fn flush(&self) {
        let (answer, done) = sync_channel(1);
        if self.commands.as_ref().is_some_and(|commands| commands.send(Command::Flush(answer)).is_ok()) {
            let _ = done.recv();
        }
    }

    /// Seals what is open, to be posted; `None` if there is nothing. It blocks.
    ///
    /// # Errors
    /// If that cannot be written down.
    pub fn seal(&self) -> Result<Option<Sealed>, BookError> {
        // One that was closed when the process ended.
        let lost = {
            let shelf = self.shared.lock();
            let last = shelf.volumes.last_key_value().map(|(number, _)| *number);
            let mut closed = shelf.volumes.keys().filter(|number| Some(**number) != last);
            closed.find(|number| !shelf.sealed.contains_key(number)).copied()
        };
        let (answer, done) = sync_channel(1);
        let number = match (lost, &self.commands) {
            (Some(number), _) => Some(number),
            (None, Some(commands)) if commands.send(Command::Seal(answer)).is_ok() => {
                done.recv().ok().flatten()
            }
            _ => None,
        };
        let Some(number) = number else { return Ok(None) };
        let (count, prompts) = {
            let shelf = self.shared.lock();
            let leaves = shelf.volumes.get(&number).map_or(&[][..], |volume| &volume.leaves);
            (leaves.len() as u32, leaves.iter().filter(|leaf| leaf.prompt).count() as u32)
        };
        let tree = self.tree(number);
        let standing = if count == 0 { Standing::Over } else { Standing::Sealed };
        let root = Digest(tree.map(|tree| tree.root()).unwrap_or_default());
        let sealed = Sealed { volume: number, standing, root, count, prompts, time: now(), cursor: None };
        self.set(sealed.clone())?;
        Ok(Some(sealed))
    }

    /// Writes down how far a volume is; it survives a crash then. It blocks.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn set(&self, sealed: Sealed) -> Result<(), BookError> {
        self.store.put(&record_of(sealed.volume), &Record::Volume(sealed.clone()))?;
        self.shared.lock().sealed.insert(sealed.volume, sealed);
        Ok(())
    }

    /// Volume and index of a leaf that a self-test found wrong.
    pub fn suspect(&self) -> Option<(u64, u32)> {
        self.shared.lock().suspect
    }

    /// Remembers that, or forgets it. It blocks.
    ///
    /// # Errors
    /// If it cannot be written down.
    pub fn set_suspect(&self, suspect: Option<(u64, u32)>) -> Result<(), BookError> {
        match suspect {
            Some((volume, index)) => self.store.put("suspect", &Record::Suspect(volume, index))?,
            None => self.store.remove("suspect")?,
        }
        self.shared.lock().suspect = suspect;
        Ok(())
    }

    /// Drops volumes that are over and that no other one needs. It blocks.
    ///
    /// # Errors
    /// If files cannot be removed.
    pub fn clear(&self) -> Result<(), BookError> {
        let path = self.config.directory.clone();
        loop {
            let (oldest, horizon_ms) = {
                let shelf = self.shared.lock();
                let mut first = shelf.sealed.values();
                let over = |sealed: Option<&Sealed>| sealed.is_some_and(|s| s.standing == Standing::Over);
                let (oldest, next) = (first.next(), first.next());
                let Some(oldest) = oldest.filter(|oldest| over(Some(oldest)) && over(next)) else {
                    return Ok(());
                };
                (oldest.clone(), shelf.horizon_ms.max(oldest.time.saturating_mul(1000)))
            };
            // Once it is gone, nothing tells whose sessions were in it.
            self.store.put("horizon", &Record::Horizon(horizon_ms))?;
            self.shared.lock().horizon_ms = horizon_ms;
            let failed = |error| BookError::File { path: path.clone(), error };
            volume::remove(&path, oldest.volume).map_err(failed)?;
            self.store.remove(&record_of(oldest.volume))?;
            let mut shelf = self.shared.lock();
            shelf.sealed.remove(&oldest.volume);
            let Some(contents) = shelf.volumes.remove(&oldest.volume) else { continue };
            shelf.bytes = shelf.bytes.saturating_sub(contents.bytes);
            contents.leaves.iter().for_each(|leaf| _ = shelf.commitments.remove(&leaf.commitment));
        }
    }

    /// The tree over a sealed volume's leaves; `None` without any. It takes a while.
    pub fn tree(&self, volume: u64) -> Option<Tree> {
        let chunks: Vec<Chunk> = {
            let shelf = self.shared.lock();
            let contents = shelf.volumes.get(&volume)?;
            let chunks = (0..contents.leaves.len() as u32).filter_map(|index| contents.posted(index));
            chunks.filter_map(|leaf| contents.chunk(leaf)).map(|(chunk, _)| chunk).collect()
        };
        Tree::new(chunks.iter().map(|chunk| chunk.leaf(&self.config.account)).collect())
    }

    /// Leaf number `index` of a sealed volume, as it was posted.
    pub fn leaf(&self, volume: u64, index: u32) -> Option<Held> {
        let shelf = self.shared.lock();
        let contents = shelf.posted(volume)?;
        let leaf = contents.posted(index)?;
        let (chunk, _) = contents.chunk(leaf)?;
        Some(Held { chunk, salt: leaf.salt.map(|salt| salt.0) })
    }

    /// What proves a leaf. It reads from disk.
    ///
    /// # Errors
    /// If it is not there.
    pub fn exhibit(&self, volume: u64, index: u32) -> Result<Exhibit, BookError> {
        let directory = &self.config.directory;
        let (plan, parts, stage, tokens, to) = {
            let shelf = self.shared.lock();
            let contents = shelf.posted(volume).ok_or(BookError::NoLeaf)?;
            let leaf = contents.posted(index).ok_or(BookError::NoLeaf)?;
            let session = contents.sessions.get(leaf.session as usize).ok_or(BookError::NoLeaf)?;
            let find = |name: &Digest| {
                let (number, span) = shelf.find(volume, name).ok_or(BookError::NoLeaf)?;
                Ok((volume::rows_path(directory, number), span))
            };
            let ins = session.ins.iter().take(leaf.to.div_ceil(CHUNK) as usize);
            let parts = ins.map(find).collect::<Result<Vec<_>, BookError>>()?;
            (find(&session.plan)?, parts, session.stage, session.tokens, leaf.to)
        };
        let failed = |error| BookError::File { path: directory.clone(), error };
        let json = volume::read_span(&plan.0, plan.1).map_err(failed)?;
        let bytes: u64 = parts.iter().map(|(_, (_, length))| u64::from(*length)).sum();
        let head = header(&json, stage, tokens, (bytes / u64::from(to.max(1))) as u32, to);
        Ok(Exhibit { bytes: bytes + head.len() as u64, head, parts })
    }

    /// The same, read and checked against the leaf.
    ///
    /// # Errors
    /// If it is not there, or not what it was.
    pub fn evidence(&self, volume: u64, index: u32) -> Result<Evidence, BookError> {
        let held = self.leaf(volume, index).ok_or(BookError::NoLeaf)?;
        let exhibit = self.exhibit(volume, index)?;
        let failed = |error| BookError::File { path: self.config.directory.clone(), error };
        let bytes = exhibit.read(0, exhibit.bytes()).map_err(failed)?;
        let evidence = Evidence::decode(&bytes)?;
        evidence.check(&held.chunk)?;
        Ok(evidence)
    }
}

impl Drop for Book {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take() {
            // One that panicked has printed why.
            let _ = thread.join();
        }
    }
}

impl Exhibit {
    /// Bytes of the whole.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Some of the bytes; fewer than asked for only at the end.
    ///
    /// # Errors
    /// If files cannot be read.
    pub fn read(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let end = offset.saturating_add(length).min(self.bytes);
        let (mut read, mut at) = (Vec::new(), self.head.len() as u64);
        if offset < at {
            read.extend_from_slice(&self.head[offset as usize..end.min(at) as usize]);
        }
        for (path, (place, size)) in &self.parts {
            let (from, to) = (offset.max(at), end.min(at + u64::from(*size)));
            if from < to {
                read.extend(volume::read_span(path, (place + from - at, (to - from) as u32))?);
            }
            at += u64::from(*size);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
