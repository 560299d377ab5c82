//! One volume: leaves with everything that proves them, in two files that only grow.
//!
//! `N.rows` holds blobs, one after another: what came into a chunk, or a plan's JSON. `N.log` says what they are, and
//! holds the leaves: records of a length, a checksum and a [`Batch`]. A batch is written once the blobs it speaks of
//! are on disk. So whatever the log says is there; a torn record at its end, and blobs past the last whole one, are
//! cut off.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use ledger::audit::Chunk;
use serde::{Deserialize, Serialize};

use crate::audit::{plan::Digest, rows::CHUNK};

/// Bytes ahead of a record: its length and its checksum.
const FRAME_BYTES: usize = 4 + 8;
/// Longest record.
const MAX_RECORD_BYTES: usize = 64 << 20;

/// Where a blob is: its first byte and its length.
pub(super) type Span = (u64, u32);

/// A stage's part of a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Session {
    /// Hash of the plan, which is the name of its JSON.
    pub(super) plan: Digest,
    pub(super) model: Digest,
    pub(super) stage: u32,
    /// Whether tokens come in.
    pub(super) tokens: bool,
    /// Roots of what came in, chunk by chunk: on disk those before the session's first leaf of the volume.
    pub(super) ins: Vec<Digest>,
}

/// A chunk that was signed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Leaf {
    /// Number of its session in the volume.
    pub(super) session: u32,
    pub(super) to: u32,
    /// Root of what came into this chunk.
    pub(super) in_root: Digest,
    pub(super) commitment: Digest,
    pub(super) in_roots: Digest,
    pub(super) sealed_roots: Digest,
    /// Whether all of it is of a prompt.
    pub(super) prompt: bool,
    /// What a planted fault is made of.
    pub(super) salt: Option<Digest>,
}

/// What becomes durable at once.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Batch {
    /// Bytes of the blobs so far.
    pub(super) bytes: u64,
    pub(super) blobs: Vec<(Digest, Span)>,
    pub(super) sessions: Vec<Session>,
    pub(super) leaves: Vec<Leaf>,
}

/// What a volume holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) blobs: HashMap<Digest, Span>,
    pub(super) sessions: Vec<Session>,
    pub(super) leaves: Vec<Leaf>,
    pub(super) bytes: u64,
    /// Once nothing is added any more.
    order: OnceLock<Vec<u32>>,
}

impl Contents {
    pub(super) fn add(&mut self, batch: Batch) {
        let Batch { bytes, blobs, sessions, leaves } = batch;
        self.bytes = bytes;
        self.blobs.extend(blobs);
        self.sessions.extend(sessions);
        for leaf in &leaves {
            if let Some(session) = self.sessions.get_mut(leaf.session as usize) {
                session.ins.push(leaf.in_root);
            }
        }
        self.leaves.extend(leaves);
    }

    /// Numbers of the leaves as they are posted: those of prompts first. Of a closed volume.
    pub(super) fn order(&self) -> &[u32] {
        self.order.get_or_init(|| {
            let of = |prompt: bool| {
                let leaves = (0..).zip(&self.leaves).filter(move |(_, leaf)| leaf.prompt == prompt);
                leaves.map(|(number, _)| number)
            };
            of(true).chain(of(false)).collect()
        })
    }

    /// Leaf number `index` as it was posted.
    pub(super) fn posted(&self, index: u32) -> Option<&Leaf> {
        self.leaves.get(*self.order().get(index as usize)? as usize)
    }

    /// What stands in a leaf, and its session.
    pub(super) fn chunk(&self, leaf: &Leaf) -> Option<(Chunk, &Session)> {
        let session = self.sessions.get(leaf.session as usize)?;
        let chunk = Chunk {
            model: session.model.0,
            plan: session.plan.0,
            commitment: leaf.commitment.0,
            in_roots: leaf.in_roots.0,
            sealed_roots: leaf.sealed_roots.0,
            stage: session.stage,
            from: leaf.to.saturating_sub(1) / CHUNK * CHUNK,
            to: leaf.to,
        };
        Some((chunk, session))
    }
}

pub(super) fn rows_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number}.rows"))
}

fn log_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number}.log"))
}

/// Numbers of the volumes of a directory, in order.
pub(super) fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u64>().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads a volume, and cuts off what an interrupted write left. `false` if blobs are missing that the log speaks of:
/// no crash does that.
pub(super) fn read(directory: &Path, number: u64) -> io::Result<(Contents, bool)> {
    let path = log_path(directory, number);
    let (mut contents, mut whole) = (Contents::default(), 0);
    let mut log = io::BufReader::new(File::open(&path)?);
    while let Some((batch, bytes)) = read_record(&mut log)? {
        contents.add(batch);
        whole += bytes;
    }
    let rows = OpenOptions::new().create(true).append(true).open(rows_path(directory, number))?;
    let there = rows.metadata()?.len() >= contents.bytes;
    if there {
        rows.set_len(contents.bytes)?;
    }
    OpenOptions::new().write(true).open(&path)?.set_len(whole)?;
    Ok((contents, there))
}

/// The next record and its length; `None` at the end, and where what follows is none.
fn read_record(log: &mut impl Read) -> io::Result<Option<(Batch, u64)>> {
    let mut frame = [0; FRAME_BYTES];
    if !filled(log, &mut frame)? {
        return Ok(None);
    }
    let length = frame.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes)) as usize;
    if length > MAX_RECORD_BYTES {
        return Ok(None);
    }
    let mut payload = vec![0; length];
    if !filled(log, &mut payload)? || frame[4..] != checksum(&payload) {
        return Ok(None);
    }
    let batch = postcard::from_bytes(&payload).ok();
    Ok(batch.map(|batch| (batch, (FRAME_BYTES + length) as u64)))
}

fn filled(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match source.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn checksum(payload: &[u8]) -> [u8; 8] {
    *blake3::hash(payload).as_bytes().first_chunk().unwrap_or(&[0; 8])
}

/// A part of a blob file.
pub(super) fn read_span(path: &Path, (at, length): Span) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = vec![0; length as usize];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn remove(directory: &Path, number: u64) -> io::Result<()> {
    // The log last: without it the volume is none, and blobs alone are nothing.
    let gone = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
    fs::remove_file(rows_path(directory, number)).or_else(gone)?;
    fs::remove_file(log_path(directory, number)).or_else(gone)
}

/// The end of a volume that is written.
#[derive(Debug)]
pub(super) struct Appender {
    rows: File,
    log: File,
    /// Lengths that are durable.
    safe: (u64, u64),
    /// What is not durable yet.
    pub(super) fresh: Batch,
}

impl Appender {
    /// Goes on where `contents` ends.
    pub(super) fn open(directory: &Path, number: u64, contents: &Contents) -> io::Result<Self> {
        let open = |path| OpenOptions::new().create(true).append(true).open(path);
        let (rows, log) = (open(rows_path(directory, number))?, open(log_path(directory, number))?);
        let safe = (contents.bytes, log.metadata()?.len());
        Ok(Self { rows, log, safe, fresh: Batch { bytes: contents.bytes, ..Batch::default() } })
    }

    pub(super) fn put(&mut self, name: Digest, blob: &[u8]) -> io::Result<Span> {
        self.rows.write_all(blob)?;
        let span = (self.fresh.bytes, blob.len() as u32);
        self.fresh.bytes += blob.len() as u64;
        self.fresh.blobs.push((name, span));
        Ok(span)
    }

    /// Bytes of blobs that are not durable yet.
    pub(super) fn waiting(&self) -> u64 {
        self.fresh.bytes - self.safe.0
    }

    /// Makes durable what was added, and hands it out.
    pub(super) fn flush(&mut self) -> io::Result<Batch> {
        let payload = postcard::to_allocvec(&self.fresh).map_err(io::Error::other)?;
        if payload.len() > MAX_RECORD_BYTES {
            return Err(io::Error::other("more at once than a record holds"));
        }
        self.rows.sync_data()?;
        let mut record = (payload.len() as u32).to_le_bytes().to_vec();
        record.extend_from_slice(&checksum(&payload));
        record.extend_from_slice(&payload);
        self.log.write_all(&record)?;
        self.log.sync_data()?;
        self.safe = (self.fresh.bytes, self.safe.1 + record.len() as u64);
        let next = Batch { bytes: self.fresh.bytes, ..Batch::default() };
        Ok(std::mem::replace(&mut self.fresh, next))
    }

    /// Goes back to what is durable, after something could not be written.
    pub(super) fn back(&mut self) -> io::Result<()> {
        self.fresh = Batch { bytes: self.safe.0, ..Batch::default() };
        self.rows.set_len(self.safe.0)?;
        self.log.set_len(self.safe.1)
    }
}
