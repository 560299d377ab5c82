//! The book's thread: puts in what the recorder says, in order. Whatever it cannot keep, it leaves out, with all that
//! follows of the same session: a leaf is there only if everything that proves it is.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{
        Arc, MutexGuard,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError, SyncSender},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use ledger::audit::{plant, roots, seal};

use super::{
    BookConfig, Entry, Shared, Shelf, Signed,
    volume::{Appender, Contents, Leaf, Session, Span, read_span, rows_path},
};
use crate::{
    audit::{
        plan::{Digest, prompt_hash},
        rows::CHUNK,
    },
    payment::now,
};

/// How long what was written may wait to be durable, and how much of it.
const FLUSH_EVERY: Duration = Duration::from_secs(2);
const FLUSH_BYTES: u64 = 64 << 20;
const FLUSH_LEAVES: usize = 4096;
/// Roots of sessions that go on in a new volume.
const FLUSH_ROOTS: usize = 1 << 18;
/// Sessions that are followed at once.
const MAX_SESSIONS: usize = 4096;
/// Most leaves of a volume.
const MAX_LEAVES: usize = 1 << 20;
/// A gateway's clock may be so far ahead.
const AHEAD_S: u64 = 3600;

/// What the thread is told.
pub(super) enum Command {
    Entry(Entry),
    /// Closes the open volume, if there is anything in it, and begins another; answers with its number.
    Seal(SyncSender<Option<u64>>),
    /// Makes everything durable.
    Flush(SyncSender<()>),
}

/// How far a session is.
struct Progress {
    ins: Vec<Digest>,
    outs: Vec<Digest>,
    /// Its place in the open volume.
    place: Option<(u64, u32)>,
    prompt: bool,
    /// Something of it is missing: nothing more of it is put in.
    broken: bool,
    used: u64,
}

pub(super) struct Writer {
    config: BookConfig,
    shared: Arc<Shared>,
    number: u64,
    end: Appender,
    fresh: HashMap<Digest, Span>,
    commitments: HashSet<Digest>,
    /// Sessions and leaves of the open volume, durable or not.
    sizes: (usize, usize),
    /// Roots among the sessions that are not durable.
    roots: usize,
    sessions: HashMap<(Digest, u32), Progress>,
    clock: u64,
    failing: bool,
    full: bool,
    /// Nothing can be written any more.
    lost: bool,
}

impl Writer {
    pub(super) fn new(config: BookConfig, shared: Arc<Shared>, number: u64) -> io::Result<Self> {
        let mut shelf = shared.lock();
        let contents = shelf.volumes.entry(number).or_default();
        let end = Appender::open(&config.directory, number, contents)?;
        let sizes = (contents.sessions.len(), contents.leaves.len());
        drop(shelf);
        Ok(Self {
            config,
            shared,
            number,
            end,
            fresh: HashMap::new(),
            commitments: HashSet::new(),
            sizes,
            roots: 0,
            sessions: HashMap::new(),
            clock: 0,
            failing: false,
            full: false,
            lost: false,
        })
    }

    pub(super) fn run(mut self, inbox: &Receiver<Command>) {
        let mut flushed = Instant::now();
        loop {
            match inbox.recv_timeout(FLUSH_EVERY.saturating_sub(flushed.elapsed())) {
                Ok(Command::Entry(entry)) => {
                    self.shared.queued.fetch_sub(entry.bytes(), Ordering::Relaxed);
                    self.enter(entry);
                }
                Ok(Command::Seal(answer)) => _ = answer.send(self.seal()),
                Ok(Command::Flush(answer)) => {
                    self.flush();
                    let _ = answer.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.flush(),
            }
            let fresh = &self.end.fresh;
            let full = self.end.waiting() > FLUSH_BYTES
                || fresh.leaves.len() >= FLUSH_LEAVES
                || self.roots >= FLUSH_ROOTS;
            if flushed.elapsed() >= FLUSH_EVERY || full {
                self.flush();
                flushed = Instant::now();
            }
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shared.lock()
    }

    fn enter(&mut self, entry: Entry) {
        if self.lost {
            return;
        }
        match entry {
            Entry::Rows { model, root, rows } => {
                if self.config.model.get() == Some(&model)
                    && !self.near(&root)
                    && let Err(error) = self.put(root, &rows.concat())
                {
                    self.failed(&error);
                }
            }
            Entry::Signed(signed) => self.signed(&signed),
            Entry::Over { plan, stage } => _ = self.sessions.remove(&(plan, stage)),
        }
    }

    /// Whether a blob is where leaves of the open volume may look for it: there, or in the volume before.
    fn near(&self, name: &Digest) -> bool {
        let has = |shelf: &Shelf, number| {
            shelf.volumes.get(&number).is_some_and(|volume| volume.blobs.contains_key(name))
        };
        let before = self.number.checked_sub(1);
        let shelf = self.shelf();
        self.fresh.contains_key(name)
            || has(&shelf, self.number)
            || before.is_some_and(|number| has(&shelf, number))
    }

    /// Sees to it that a blob is near; `false` if it is nowhere.
    fn fetch(&mut self, name: &Digest) -> io::Result<bool> {
        if self.near(name) {
            return Ok(true);
        }
        let far = |(number, volume): (&u64, &Contents)| Some((*number, *volume.blobs.get(name)?));
        let found = self.shelf().volumes.iter().rev().find_map(far);
        let Some((number, span)) = found else { return Ok(false) };
        let blob = read_span(&rows_path(&self.config.directory, number), span)?;
        self.put(*name, &blob)
    }

    /// Writes a blob; `false` if the book has no room for it.
    fn put(&mut self, name: Digest, blob: &[u8]) -> io::Result<bool> {
        let used = self.shelf().bytes + self.end.waiting();
        if used + blob.len() as u64 > self.config.limit_bytes {
            if !std::mem::replace(&mut self.full, true) {
                let limit = self.config.limit_bytes;
                tracing::warn!(
                    limit,
                    "the book is full: what is computed is not committed to until audits are over"
                );
            }
            return Ok(false);
        }
        let span = self.end.put(name, blob)?;
        self.fresh.insert(name, span);
        self.full = false;
        Ok(true)
    }

    fn contents_bytes(&self) -> u64 {
        self.shelf().volumes.get(&self.number).map_or(0, |contents| contents.bytes)
    }

    /// Bytes of a blob that is near.
    fn read(&self, name: &Digest) -> io::Result<Vec<u8>> {
        let at = match self.fresh.get(name) {
            Some(span) => Some((self.number, *span)),
            None => self.shelf().find(self.number, name),
        };
        let (number, span) = at.ok_or(io::ErrorKind::NotFound)?;
        read_span(&rows_path(&self.config.directory, number), span)
    }

    fn signed(&mut self, signed: &Signed) {
        let key = (signed.hash, signed.stage);
        if !self.sessions.contains_key(&key) && self.sessions.len() >= MAX_SESSIONS {
            let oldest = self.sessions.iter().min_by_key(|(_, progress)| progress.used).map(|(key, _)| *key);
            oldest.map(|oldest| self.sessions.remove(&oldest));
        }
        self.clock += 1;
        let mut progress = self.sessions.remove(&key).unwrap_or_else(|| Progress {
            ins: Vec::new(),
            outs: Vec::new(),
            place: None,
            prompt: false,
            broken: !self.is_fit(signed),
            used: 0,
        });
        progress.used = self.clock;
        if !progress.broken {
            match self.add(signed, &mut progress) {
                Ok(kept) => progress.broken = !kept,
                Err(error) => {
                    progress.broken = true;
                    self.failed(&error);
                }
            }
        }
        self.sessions.insert(key, progress);
    }

    /// Whether leaves of a session can be audited at all: of this model, with a plan that others take for one.
    fn is_fit(&self, signed: &Signed) -> bool {
        let plan = &signed.plan;
        let Some(stage) = plan.stages.get(signed.stage as usize) else { return false };
        let made_ms = u128::from_str_radix(&plan.session, 16).map_or(0, |id| (id >> 64) as u64);
        // One that an earlier volume may have had is not put in again: a commitment is opened once.
        let fresh = made_ms > self.shelf().horizon_ms && made_ms / 1000 < now() + AHEAD_S;
        let layers = plan.stages.last().map_or(0, |stage| stage.to as usize);
        fresh
            && plan.check().is_ok()
            && self.config.model.get() == Some(&plan.terms.model)
            && plan.terms.quantisation == self.config.quantisation
            && layers == self.config.layers
            && stage.from < stage.to
    }

    /// Puts a chunk in; `false` if something that proves it is missing.
    fn add(&mut self, signed: &Signed, progress: &mut Progress) -> io::Result<bool> {
        let expected = progress.outs.len() as u32 * CHUNK;
        if signed.to <= expected || signed.to > expected.saturating_add(CHUNK) {
            return Ok(false);
        }
        let known = self.commitments.contains(&signed.commitment)
            || self.shelf().commitments.contains(&signed.commitment);
        if known || self.sizes.1 >= MAX_LEAVES || !self.fetch(&signed.in_root)? {
            return Ok(false);
        }
        progress.ins.push(signed.in_root);
        progress.outs.push(signed.out_root);
        if !progress.prompt && !self.has_prompt(signed, progress)? {
            return Ok(false);
        }
        let Some(session) = self.place(signed, progress)? else { return Ok(false) };
        let planted = self.config.plants.bits() > rand::random::<u32>();
        let salt = planted.then(rand::random::<[u8; 32]>);
        let sent = match &salt {
            Some(salt) => plant(&self.config.account, salt),
            None => roots(progress.outs.iter().map(|root| &root.0)),
        };
        self.end.fresh.leaves.push(Leaf {
            session,
            to: signed.to,
            in_root: signed.in_root,
            commitment: signed.commitment,
            in_roots: Digest(roots(progress.ins.iter().map(|root| &root.0))),
            sealed_roots: Digest(seal(&sent)),
            prompt: signed.to <= signed.plan.prompt_length,
            salt: salt.map(Digest),
        });
        self.commitments.insert(signed.commitment);
        self.sizes.1 += 1;
        Ok(true)
    }

    /// Whether the tokens that came in begin with the plan's prompt, as far as they are there. A gateway that names
    /// the blocks of a prompt falsely has a stage find other tokens computed.
    fn has_prompt(&self, signed: &Signed, progress: &mut Progress) -> io::Result<bool> {
        let (plan, length) = (&signed.plan, signed.plan.prompt_length as usize);
        if !signed.tokens || (signed.to as usize) < length {
            return Ok(true);
        }
        let mut tokens = Vec::new();
        for root in &progress.ins {
            let bytes = self.read(root)?;
            tokens.extend(bytes.as_chunks().0.iter().map(|token| u32::from_le_bytes(*token)));
        }
        progress.prompt = true;
        let prompt = tokens.get(..length);
        Ok(prompt.is_some_and(|prompt| prompt_hash(&plan.terms.salt, prompt) == plan.terms.prompt_hash))
    }

    /// The session's number in the open volume, in which it is put with all that came in before.
    fn place(&mut self, signed: &Signed, progress: &mut Progress) -> io::Result<Option<u32>> {
        if let Some((volume, session)) = progress.place
            && volume == self.number
        {
            return Ok(Some(session));
        }
        let before = progress.ins.split_last().map(|(_, before)| before.to_vec()).unwrap_or_default();
        for root in &before {
            if !self.fetch(root)? {
                return Ok(None);
            }
        }
        if !self.fetch(&signed.hash)? {
            let plan = serde_json::to_vec(&signed.plan).map_err(io::Error::other)?;
            if !self.put(signed.hash, &plan)? {
                return Ok(None);
            }
        }
        let number = self.sizes.0 as u32;
        self.end.fresh.sessions.push(Session {
            plan: signed.hash,
            model: signed.plan.terms.model,
            stage: signed.stage,
            tokens: signed.tokens,
            ins: before,
        });
        self.sizes.0 += 1;
        self.roots += progress.ins.len();
        progress.place = Some((self.number, number));
        Ok(Some(number))
    }

    fn flush(&mut self) {
        self.roots = 0;
        let fresh = &self.end.fresh;
        if fresh.blobs.is_empty() && fresh.leaves.is_empty() {
            return;
        }
        match self.end.flush() {
            Ok(batch) => {
                self.failing = false;
                let commitments = std::mem::take(&mut self.commitments);
                self.fresh.clear();
                let mut shelf = self.shared.lock();
                let before = shelf.volumes.get(&self.number).map_or(0, |volume| volume.bytes);
                shelf.bytes += batch.bytes - before;
                shelf.commitments.extend(commitments);
                shelf.volumes.entry(self.number).or_default().add(batch);
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Something could not be written: what is not durable is given up, and the sessions that run.
    fn failed(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(%error, "what this node computes is not kept for audits, and not committed to");
        }
        self.fresh.clear();
        self.commitments.clear();
        self.sessions.values_mut().for_each(|progress| progress.broken = true);
        if let Err(error) = self.end.back() {
            // Where the next byte would be is not known.
            tracing::error!(%error, "nothing is kept for audits until the next root is posted");
            self.lost = true;
        }
        let shelf = self.shared.lock();
        let sizes =
            shelf.volumes.get(&self.number).map(|volume| (volume.sessions.len(), volume.leaves.len()));
        self.sizes = sizes.unwrap_or_default();
    }

    fn seal(&mut self) -> Option<u64> {
        self.flush();
        let bytes = self.contents_bytes();
        // What could not be made durable is not there.
        let empty = (bytes, self.sizes.1) == (0, 0) && !self.lost;
        if empty || !self.end.fresh.leaves.is_empty() {
            return None;
        }
        let (sealed, next) = (self.number, self.number + 1);
        match Appender::open(&self.config.directory, next, &Contents::default()) {
            Ok(end) => (self.end, self.number, self.sizes, self.lost) = (end, next, (0, 0), false),
            Err(error) => {
                self.failed(&error);
                return None;
            }
        }
        self.shared.lock().volumes.entry(next).or_default();
        Some(sealed)
    }
}

/// Rows as one blob.
trait Concat {
    fn concat(&self) -> Vec<u8>;
}

impl Concat for Vec<Bytes> {
    fn concat(&self) -> Vec<u8> {
        let mut whole = Vec::with_capacity(self.iter().map(Bytes::len).sum());
        self.iter().for_each(|row| whole.extend_from_slice(row));
        whole
    }
}
