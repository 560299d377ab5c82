//! Hashing and signing beside a stage, on a thread of its own: the stage's thread hands over what passed and
//! goes on. What waits is bounded; past it the stage waits.

mod recording;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
};

use bytes::Bytes;
use transport::NodeId;

use super::{
    book::{Book, Entry as Note, Signed},
    commitment::{Committed, Signer},
    plan::{Digest, Plan},
    rows::CHUNK,
};
use crate::message::{BlockHash, Close, Draws, Open, RouteId, Segment, SessionId};
use recording::{Closed, Recording};

/// Events that may wait: a few steps, each of which holds its rows.
const QUEUE: usize = 16;
/// Sessions that are over and wait for the commitments of the stage before.
const MAX_CLOSED: usize = 64;

/// What a node signs with, and where it keeps what proves it.
#[derive(Clone, Debug)]
pub struct Audit {
    /// The key.
    pub signer: Signer,
    /// What is committed to on a chain.
    pub book: Option<Arc<Book>>,
}

/// A session as its recorder sees it.
#[derive(Debug)]
pub struct Place {
    /// The session's plan.
    pub plan: Plan,
    /// Number of this stage.
    pub stage: usize,
    /// The node of the stage before.
    pub previous: Option<NodeId>,
    /// The node of the stage after, and where it listens.
    pub next: Option<(NodeId, String)>,
    /// The gateway.
    pub gateway: NodeId,
}

/// Rows that passed a stage in one step.
#[derive(Debug)]
pub struct Passed {
    /// What was sent here.
    pub given: Vec<Segment>,
    /// The rows of `given` as they came: tokens into the first stage.
    pub input: Bytes,
    /// What was computed: each segment begins where the session's of `given` does, and may be shorter.
    pub kept: Vec<Segment>,
    /// The rows of `kept` as they go.
    pub output: Bytes,
    /// What the last stage drew.
    pub draws: Vec<Draws>,
}

/// What the recorder is told.
#[derive(Debug)]
pub(crate) enum Event {
    Open { session: SessionId, route: RouteId, place: Box<Place>, blocks: Vec<BlockHash> },
    Passed(Passed),
    Close(Close),
    Heard { from: NodeId, committed: Box<Committed> },
}

/// A commitment, and to whom it goes.
#[derive(Debug)]
pub struct Outgoing {
    /// To whom.
    pub to: NodeId,
    /// Where they listen, if it may have to be dialled.
    pub address: Option<String>,
    /// What.
    pub committed: Committed,
}

/// Roots of the rows of 64 positions that sessions which begin alike have in common.
#[derive(Debug)]
struct Block {
    ins: Vec<[u8; 32]>,
    outs: Vec<[u8; 32]>,
}

/// Roots of blocks whose keys and values the stage may hold, by their names.
#[derive(Debug)]
struct Blocks {
    limit: usize,
    clock: u64,
    known: HashMap<(RouteId, BlockHash), (u64, Block)>,
}

impl Blocks {
    fn find(&mut self, key: &(RouteId, BlockHash)) -> Option<&Block> {
        self.clock += 1;
        let (used, block) = self.known.get_mut(key)?;
        *used = self.clock;
        Some(block)
    }

    fn insert(&mut self, key: (RouteId, BlockHash), block: Block) {
        while self.known.len() >= self.limit && !self.known.contains_key(&key) {
            let oldest = self.known.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key);
            let Some(oldest) = oldest else { return };
            self.known.remove(&oldest);
        }
        self.clock += 1;
        self.known.insert(key, (self.clock, block));
    }
}

/// The stage's end of a recorder. Dropping it ends the thread after what it was given.
#[derive(Debug)]
pub struct Recorder {
    events: SyncSender<Event>,
    backlog: Backlog,
}

/// What a recorder still has to sign.
#[derive(Clone, Debug, Default)]
pub struct Backlog(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Events that wait or are being taken.
    events: AtomicUsize,
    /// Sessions that are being recorded.
    sessions: AtomicUsize,
}

impl Backlog {
    /// Whether nothing waits: everything that could be signed is signed and handed to be sent.
    pub fn is_empty(&self) -> bool {
        // In this order: an event is taken off after what came of it was counted.
        self.0.events.load(Ordering::SeqCst) == 0 && self.0.sessions.load(Ordering::SeqCst) == 0
    }
}

impl Recorder {
    /// Starts the thread. `pages` are the stage's KV pages: so many blocks are remembered. `emit` is called
    /// from the thread with what is to be sent.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        audit: Audit,
        pages: usize,
        emit: impl Fn(Outgoing) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (events, inbox) = sync_channel(QUEUE);
        let mut desk = Desk::new(audit, pages, emit);
        let backlog = Backlog::default();
        let counts = backlog.0.clone();
        std::thread::Builder::new().name("audit".into()).spawn(move || {
            while let Ok(event) = inbox.recv() {
                desk.take(event);
                counts.sessions.store(desk.sessions.len(), Ordering::SeqCst);
                counts.events.fetch_sub(1, Ordering::SeqCst);
            }
        })?;
        Ok(Self { events, backlog })
    }

    /// What it still has to sign, now and later.
    pub fn backlog(&self) -> Backlog {
        self.backlog.clone()
    }

    /// Hands an event over; waits while too many wait.
    pub(crate) fn tell(&self, event: Event) {
        self.backlog.0.events.fetch_add(1, Ordering::SeqCst);
        // A recorder that died has printed why; its node signs nothing any more.
        let _ = self.events.send(event);
    }
}

impl Place {
    /// Stage number `stage` of an opening; `None` if nothing of it is to be proved.
    pub fn of(open: &Open, stage: usize) -> Option<Box<Self>> {
        let next = open.hops.get(stage + 1).map(|hop| (NodeId(hop.node), hop.address.clone()));
        let previous = stage.checked_sub(1).map(|before| NodeId(open.hops[before].node));
        let gateway = NodeId(open.gateway);
        Some(Box::new(Self { plan: Plan::of(open)?, stage, previous, next, gateway }))
    }
}

/// A session being recorded.
struct Entry {
    route: RouteId,
    place: Place,
    /// Hash of the plan.
    plan: Digest,
    blocks: Vec<BlockHash>,
    recording: Recording,
}

/// The thread's state.
struct Desk<E> {
    audit: Audit,
    blocks: Blocks,
    emit: E,
    /// Threads that hash long prompts: a quarter of the cores, for the others are the stage's.
    threads: usize,
    sessions: HashMap<SessionId, Entry>,
    /// Those that are over, in the order of their ends.
    closed: Vec<SessionId>,
}

impl<E: Fn(Outgoing)> Desk<E> {
    fn new(audit: Audit, pages: usize, emit: E) -> Self {
        let blocks = Blocks { limit: pages.max(1), clock: 0, known: HashMap::new() };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).div_ceil(4);
        Self { audit, blocks, emit, threads, sessions: HashMap::new(), closed: Vec::new() }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Open { session, route, place, blocks } => {
                let recording = Recording::new(&place, self.audit.book.is_some());
                let plan = place.plan.hash();
                self.sessions.insert(session, Entry { route, place: *place, plan, blocks, recording });
            }
            Event::Passed(passed) => self.passed(&passed),
            Event::Close(close) => self.close(&close),
            Event::Heard { from, committed } => self.heard(from, &committed),
        }
    }

    fn passed(&mut self, passed: &Passed) {
        for draws in &passed.draws {
            if let Some(entry) = self.sessions.get_mut(&draws.session) {
                entry.recording.drawn(draws.position, &draws.tokens);
            }
        }
        let (rows_in, rows_out) = (rows_of(&passed.given), rows_of(&passed.kept));
        let (Some(wide_in), Some(wide_out)) =
            (passed.input.len().checked_div(rows_in), passed.output.len().checked_div(rows_out))
        else {
            return;
        };
        let mut first = 0;
        for segment in &passed.kept {
            let at = first;
            first += segment.rows as usize;
            let Some(entry) = self.sessions.get_mut(&segment.session) else { continue };
            let before = passed.given.iter().take_while(|given| given.session != segment.session);
            let before: usize = before.map(|given| given.rows as usize).sum();
            let range = |at: usize, width: usize| at * width..(at + segment.rows as usize) * width;
            let (input, output) = (range(before, wide_in), range(at, wide_out));
            if input.end <= passed.input.len() && output.end <= passed.output.len() {
                entry.recording.pass(segment, passed.input.slice(input), passed.output.slice(output));
            }
            self.settle(segment.session);
        }
    }

    fn close(&mut self, close: &Close) {
        let session = close.session;
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        if close.keep.len() > entry.blocks.len() {
            entry.blocks.clone_from(&close.keep);
        }
        // Blocks that stay for later sessions are right, however this one ended.
        let kept = close.keep.len().saturating_sub(1) as u32 * CHUNK;
        entry.recording.stands(kept);
        if close.end == 0 {
            self.hash(session);
            return self.forget(session);
        }
        entry.recording.end(close.end);
        self.closed.push(session);
        if self.closed.len() > MAX_CLOSED {
            let oldest = self.closed[0];
            self.forget(oldest);
        }
        self.settle(session);
    }

    /// The stage before signed what it sent.
    fn heard(&mut self, from: NodeId, committed: &Committed) {
        let session = committed.session;
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        if entry.place.previous != Some(from) {
            return;
        }
        if let Err(error) = entry.recording.heard(committed) {
            tracing::warn!(peer = %from.short(), %error, "the stage before is not followed any more");
            self.forget(session);
            return;
        }
        self.settle(session);
    }

    /// Hashes what stands, and takes from and leaves to other sessions what they have in common.
    fn hash(&mut self, session: SessionId) {
        let Self { audit, sessions, threads, .. } = self;
        let Some(entry) = sessions.get_mut(&session) else { return };
        let Entry { route, place, blocks, recording, .. } = entry;
        recording.hash(*threads);
        while let Some(missing) = recording.missing() {
            // What the stage did not compute for this session, it found computed for another.
            let name = blocks.get(missing as usize / CHUNK as usize + 1);
            let Some(block) = name.and_then(|name| self.blocks.find(&(*route, *name))) else { break };
            recording.fill(block);
            recording.hash(*threads);
        }
        // Before a session can find the block: what came into it is kept by the time it is asked for.
        while let Some((root, rows)) = recording.next_came() {
            if let (Some(book), Some(rows)) = (&audit.book, rows) {
                book.note(Note::Rows { model: place.plan.terms.model, root, rows });
            }
        }
        while let Some((name, block)) = recording.next_shared(blocks) {
            self.blocks.insert((*route, name), block);
        }
    }

    /// Signs what is complete.
    fn settle(&mut self, session: SessionId) {
        self.hash(session);
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        let Entry { place, plan, recording, .. } = entry;
        loop {
            let closed = match recording.close_chunk(&self.audit.signer) {
                Ok(Some(closed)) => closed,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "the rows of a session are not signed");
                    return self.forget(session);
                }
            };
            if let Some(book) = &self.audit.book {
                commit(book, place, plan, &closed);
            }
            let committed = Committed { session, before: closed.before, chunk: closed.chunk };
            if let Some((to, address)) = &place.next {
                (self.emit)(Outgoing {
                    to: *to,
                    address: Some(address.clone()),
                    committed: committed.clone(),
                });
            }
            (self.emit)(Outgoing { to: place.gateway, address: None, committed });
        }
        if recording.is_done() {
            self.forget(session);
        }
    }

    fn forget(&mut self, session: SessionId) {
        let forgotten = self.sessions.remove(&session);
        if let (Some(book), Some(Entry { place, plan, .. })) = (&self.audit.book, forgotten) {
            book.note(Note::Over { plan, stage: place.stage as u32 });
        }
        self.closed.retain(|closed| *closed != session);
    }
}

/// Puts a signed chunk in the book.
fn commit(book: &Book, place: &Place, plan: &Digest, closed: &Closed) {
    let Closed { chunk, commitment, sent_root, came, .. } = closed;
    let model = place.plan.terms.model;
    if let Some(rows) = came {
        book.note(Note::Rows { model, root: chunk.in_root, rows: rows.clone() });
    }
    book.note(Note::Signed(Box::new(Signed {
        plan: place.plan.clone(),
        hash: *plan,
        stage: place.stage as u32,
        tokens: place.plan.stages[place.stage].embedding,
        to: chunk.to,
        in_root: chunk.in_root,
        out_root: *sent_root,
        commitment: *commitment,
    })));
}

fn rows_of(segments: &[Segment]) -> usize {
    segments.iter().map(|segment| segment.rows as usize).sum()
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;
    use crate::audit::receipt::Receipt;

    const SEED: &[u8] = include_bytes!("../../fuzz/seeds/receipt/short");

    #[test]
    fn what_is_recorded_waits_to_be_signed() {
        let signer = Signer::new(transport::Identity::from_secret([1; 32]));
        let recorder = Recorder::start(Audit { signer, book: None }, 1, |_| ()).expect("starts");
        let backlog = recorder.backlog();
        assert!(backlog.is_empty());
        let plan = Receipt::read(SEED).expect("a receipt").plan;
        let (session, gateway) = (SessionId(1), NodeId(plan.gateway.0));
        let place = Box::new(Place { plan, stage: 0, previous: None, next: None, gateway });
        recorder.tell(Event::Open { session, route: RouteId(1), place, blocks: Vec::new() });
        assert!(!backlog.is_empty(), "from the first moment");
        while backlog.0.events.load(Ordering::SeqCst) > 0 {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(!backlog.is_empty(), "until the session is over");
        recorder.tell(Event::Close(Close::abrupt(session)));
        while !backlog.is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
