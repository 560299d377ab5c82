//! Gathering: tensors from several givers at once. Nodes are asked first, the nearest before the others; a gateway
//! is asked for what no node has, and beside the nodes when these would take long. Every tensor comes from one giver
//! at a time, so that wrong bytes have one culprit.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, future::join_all, stream::FuturesUnordered};
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{Instant, interval, sleep, sleep_until},
};
use transport::NodeId;

use super::{
    fetch::FetchError,
    mirror::{Held, Mirror, MirrorError},
    pace::Pace,
    source::{Dialler, Source},
};
use crate::{
    message::{Denial, Holder, Part, Parts, Piece, Want},
    model::{Place, Progress},
};

/// Bytes of tensors that a giver is asked for in one go, if one tensor alone has not more.
const JOB_BYTES: u64 = 8 << 20;
/// How often it is looked whether givers are fast enough.
const LOOK: Duration = Duration::from_secs(1);
/// Before it is known how fast a giver is.
const TRIAL: Duration = Duration::from_secs(5);
/// What takes nodes longer than this, others are asked for as well.
const LONG: Duration = Duration::from_secs(60);
/// How often a gateway is asked who else has what.
const SEEK_INTERVAL: Duration = Duration::from_secs(60);
/// First wait for a giver that is busy; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long a gateway may be busy, and a node.
const PATIENCE: Duration = Duration::from_secs(1800);
const NODE_PATIENCE: Duration = Duration::from_secs(5);

/// Nodes whose bytes were wrong. They are not asked again.
pub(super) type Liars = Mutex<HashSet<NodeId>>;
/// Most that are remembered: ids are free.
const MAX_LIARS: usize = 4096;

/// Tensors of one part that one giver is asked for.
#[derive(Debug)]
pub(super) struct Job {
    part: u16,
    pub(super) places: Vec<Place>,
}

impl Job {
    pub(super) fn part(&self) -> u16 {
        self.part
    }

    fn bytes(&self) -> u64 {
        self.places.iter().map(|place| place.range().2).sum()
    }
}

/// Cuts tensors into jobs, in their order.
pub(super) fn jobs(mirror: &Mirror, places: Vec<Place>) -> Vec<Job> {
    let mut jobs: Vec<Job> = Vec::new();
    for place in places {
        let part = mirror.shelf().part(mirror.spot(&place)).unwrap_or(u16::MAX);
        let fits = |job: &&mut Job| job.part == part && job.bytes() + place.range().2 <= JOB_BYTES;
        match jobs.last_mut().filter(fits) {
            Some(job) => job.places.push(place),
            None => jobs.push(Job { part, places: vec![place] }),
        }
    }
    jobs
}

/// Whom to ask for what.
pub(super) struct Lender {
    source: Source,
    /// What it has; everything, if `None`: a gateway.
    parts: Option<BTreeSet<u16>>,
}

impl Lender {
    pub(super) fn gateway(source: Source) -> Self {
        Self { source, parts: None }
    }

    fn has(&self, part: u16) -> bool {
        self.parts.as_ref().is_none_or(|parts| parts.contains(&part))
    }
}

/// A job on its way.
struct Work {
    part: u16,
    bytes: u64,
    since: Instant,
    done: Arc<AtomicU64>,
    /// Ends it.
    enough: Arc<Notify>,
}

impl Work {
    /// Whether what is left would take long.
    fn is_slow(&self) -> bool {
        let (elapsed, done) = (self.since.elapsed(), self.done.load(Ordering::Relaxed));
        elapsed >= TRIAL && takes_long(self.bytes.saturating_sub(done), done, elapsed)
    }
}

/// Whether `left` bytes take long at the rate at which `done` came.
fn takes_long(left: u64, done: u64, elapsed: Duration) -> bool {
    left as f64 * elapsed.as_secs_f64() > done as f64 * LONG.as_secs_f64()
}

/// What came of a job.
struct Outcome {
    peer: NodeId,
    job: Job,
    /// Where it came from, if that may be asked again.
    lender: Option<Lender>,
    newcomers: Vec<Lender>,
    result: Result<(), FetchError>,
}

/// Tensors of one shard on their way.
pub(super) struct Gathering<'a> {
    pub(super) mirror: &'a Arc<Mirror>,
    pub(super) held: Arc<Mutex<Held>>,
    pub(super) dialler: &'a Dialler,
    pub(super) liars: &'a Liars,
    pub(super) pace: Mutex<Pace>,
    /// Bytes in a second that may come.
    pub(super) bandwidth: Option<u64>,
    /// Parts that are wanted.
    pub(super) wanted: BTreeSet<u16>,
    /// Counts bytes that came.
    pub(super) fetched: &'a AtomicU64,
    /// Bytes of the shard that are here, and all.
    pub(super) done: AtomicU64,
    pub(super) total: u64,
    pub(super) progress: &'a (dyn Fn(Progress) + Send + Sync),
}

/// Where jobs are.
struct Table<'a> {
    open: Vec<Job>,
    idle: Vec<Lender>,
    /// What the nodes have that are there.
    nodes: HashMap<NodeId, BTreeSet<u16>>,
    /// Nodes that failed.
    left: HashSet<NodeId>,
    works: HashMap<NodeId, Work>,
    working: FuturesUnordered<BoxFuture<'a, Outcome>>,
    /// The nodes alone would take long.
    is_late: bool,
    begun: Instant,
    fetched_before: u64,
    from_nodes: u64,
}

impl Gathering<'_> {
    /// Sees `jobs` through with the gateway's help.
    ///
    /// # Errors
    /// What the gateway had; what is ours.
    pub(super) async fn run(&self, jobs: Vec<Job>, mut gateway: Source) -> Result<(), FetchError> {
        let newcomers = self.seek(&mut gateway).await;
        let mut table = Table {
            open: jobs,
            idle: vec![Lender::gateway(gateway)],
            nodes: HashMap::new(),
            left: HashSet::new(),
            works: HashMap::new(),
            working: FuturesUnordered::new(),
            is_late: false,
            begun: Instant::now(),
            fetched_before: self.fetched.load(Ordering::Relaxed),
            from_nodes: 0,
        };
        table.join(newcomers);
        let (mut look, mut failure) = (interval(LOOK), None);
        loop {
            self.hand_out(&mut table);
            if table.working.is_empty() {
                return if table.open.is_empty() {
                    Ok(())
                } else {
                    Err(failure.unwrap_or(FetchError::Nobody))
                };
            }
            tokio::select! {
                Some(outcome) = table.working.next() => {
                    if let Err(error) = self.settle(&mut table, outcome)? {
                        failure = Some(error);
                    }
                }
                _ = look.tick() => self.hurry(&mut table),
            }
        }
    }

    pub(super) fn progress(&self, more: u64) {
        self.fetched.fetch_add(more, Ordering::Relaxed);
        // What was wrong comes twice.
        let done = (self.done.fetch_add(more, Ordering::Relaxed) + more).min(self.total);
        (self.progress)(Progress { done, total: self.total });
    }

    /// Gives every lender without work some.
    fn hand_out<'a>(&'a self, table: &mut Table<'a>) {
        for lender in std::mem::take(&mut table.idle) {
            let wanted = |job: &Job| {
                let elsewhere = || table.nodes.values().any(|parts| parts.contains(&job.part));
                lender.has(job.part) && (lender.parts.is_some() || table.is_late || !elsewhere())
            };
            let Some(at) = table.open.iter().position(wanted) else {
                table.idle.push(lender);
                continue;
            };
            let job = table.open.remove(at);
            let (done, enough) = (Arc::<AtomicU64>::default(), Arc::<Notify>::default());
            let work = Work {
                part: job.part,
                bytes: job.bytes(),
                since: Instant::now(),
                done: done.clone(),
                enough: enough.clone(),
            };
            table.works.insert(lender.source.peer, work);
            table.working.push(Box::pin(self.work(lender, job, done, enough)));
        }
    }

    /// Goes on after a job: its failure, if it is the gateway's; an error, if it is ours.
    fn settle(&self, table: &mut Table<'_>, outcome: Outcome) -> Result<Result<(), FetchError>, FetchError> {
        let Outcome { peer, mut job, lender, newcomers, result } = outcome;
        let work = table.works.remove(&peer);
        if let Some(work) = work.filter(|_| table.nodes.contains_key(&peer)) {
            table.from_nodes += work.done.load(Ordering::Relaxed);
        }
        let is_left = lender.is_none();
        table.join(newcomers.into_iter().chain(lender).collect());
        let Err(error) = result else { return Ok(Ok(())) };
        if error.is_ours() {
            return Err(error);
        }
        tracing::warn!(%error, "weights did not come");
        let held = self.held();
        job.places.retain(|place| !held.is_verified(place));
        drop(held);
        if !job.places.is_empty() {
            table.open.insert(0, job);
        }
        let is_node = table.nodes.contains_key(&peer);
        if is_node && is_left {
            table.nodes.remove(&peer);
            table.left.insert(peer);
            if error.lasts() {
                let mut liars = self.liars.lock().unwrap_or_else(PoisonError::into_inner);
                if liars.len() < MAX_LIARS {
                    liars.insert(peer);
                }
            }
        }
        Ok(if is_node { Ok(()) } else { Err(error) })
    }

    /// Has others help where nodes are slow.
    fn hurry(&self, table: &mut Table<'_>) {
        let under_way: u64 = (table.works.iter())
            .filter(|(peer, _)| table.nodes.contains_key(peer))
            .map(|(_, work)| work.done.load(Ordering::Relaxed))
            .sum();
        let elapsed = table.begun.elapsed();
        let came = self.fetched.load(Ordering::Relaxed) - table.fetched_before;
        if self.bandwidth.is_some_and(|most| came as f64 > most as f64 / 2.0 * elapsed.as_secs_f64()) {
            // Nobody is slow where no more may come.
            return;
        }
        let left = self.total.saturating_sub(self.done.load(Ordering::Relaxed));
        table.is_late = elapsed >= TRIAL && takes_long(left, table.from_nodes + under_way, elapsed);
        let slow = |(peer, work): &(&NodeId, &Work)| {
            let helped = || table.idle.iter().any(|lender| lender.has(work.part));
            table.nodes.contains_key(*peer) && work.is_slow() && helped()
        };
        if let Some((_, work)) = table.works.iter().find(slow) {
            work.enough.notify_one();
        }
    }

    /// Has a lender do a job.
    async fn work(&self, mut lender: Lender, job: Job, done: Arc<AtomicU64>, enough: Arc<Notify>) -> Outcome {
        let peer = lender.source.peer;
        let result = tokio::select! {
            result = self.fetch(&mut lender.source, &job, &done) => result,
            () = enough.notified() => Err(FetchError::Slow { peer }),
        };
        // After anything else there may be answers under way that nobody waits for.
        let is_usable = matches!(result, Ok(()) | Err(FetchError::Stale { .. }));
        let newcomers = match lender.parts {
            None if is_usable && lender.source.is_due(SEEK_INTERVAL) => self.seek(&mut lender.source).await,
            _ => Vec::new(),
        };
        Outcome { peer, job, lender: is_usable.then_some(lender), newcomers, result }
    }

    /// Finds nodes that have something, and dials them.
    async fn seek(&self, gateway: &mut Source) -> Vec<Lender> {
        let parts = Parts { catalogue: self.mirror.digest(), parts: self.wanted.iter().copied().collect() };
        let holders = match gateway.holders(parts).await {
            Ok(holders) => holders,
            Err(error) => {
                tracing::debug!(%error, "it is not known who else has the weights");
                return Vec::new();
            }
        };
        let liars = self.liars.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = holders.into_iter().filter(|holder| !liars.contains(&NodeId(holder.node)));
        let dial = async |holder: Holder| match self.dialler.node(&holder).await {
            Ok(source) => Some(Lender { source, parts: Some(holder.parts.into_iter().collect()) }),
            Err(error) => {
                tracing::debug!(node = %NodeId(holder.node).short(), %error, "cannot be asked for weights");
                None
            }
        };
        join_all(found.map(dial)).await.into_iter().flatten().collect()
    }

    pub(super) fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches what is missing of a job from one giver.
    async fn fetch(&self, source: &mut Source, job: &Job, done: &AtomicU64) -> Result<(), FetchError> {
        let resumed = self.resumed(job);
        let missing = {
            let held = self.held();
            job.places.iter().map(|place| (place.clone(), held.begun(place))).collect()
        };
        let chunks = self.chunks(missing, source.piece_bytes());
        let here = job.bytes() - chunks.iter().map(|chunk| u64::from(chunk.want.length)).sum::<u64>();
        done.fetch_add(here, Ordering::Relaxed);
        let mut stream = Stream::new(source, &chunks, &self.pace);
        while let Some((chunk, body)) = stream.next().await? {
            let length = body.len() as u64;
            if !self.keep(&chunk.place, (chunk.offset, chunk.last), body).await? {
                let tensor = chunk.place.name().to_owned();
                if resumed.contains(&tensor) {
                    stream.drain().await?;
                    return Err(FetchError::Stale { tensor });
                }
                return Err(FetchError::Wrong { peer: stream.source.peer, tensor });
            }
            done.fetch_add(length, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes bytes of a tensor, `offset` bytes into it; `false` if they are the `last` and it is not the model's.
    pub(super) async fn keep(
        &self,
        place: &Place,
        (offset, last): (u64, bool),
        body: Bytes,
    ) -> Result<bool, FetchError> {
        let (mirror, held, place) = (self.mirror.clone(), self.held.clone(), place.clone());
        let length = body.len() as u64;
        let keep = spawn_blocking(move || keep(&mirror, &held, &place, (offset, last), &body));
        let is_right = keep.await.map_err(|_| FetchError::Died)??;
        if is_right {
            self.progress(length);
        }
        Ok(is_right)
    }

    /// Pieces of tensors, of each of which the first bytes are here.
    fn chunks(&self, places: Vec<(Place, u64)>, piece_bytes: u32) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        for (place, begun) in places {
            let ((file, start), (_, _, bytes)) = (self.mirror.spot(&place), place.range());
            let of = Part::File { catalogue: self.mirror.digest(), file };
            // The last piece shows whether all are right, so it is asked for even if all are here.
            let begun = begun.min(bytes.saturating_sub(1)) / u64::from(piece_bytes);
            for offset in (begun * u64::from(piece_bytes)..bytes).step_by(piece_bytes as usize) {
                let length = u64::from(piece_bytes).min(bytes - offset);
                let want = Want { of, offset: start + offset, length: length as u32 };
                let last = offset + length == bytes;
                chunks.push(Chunk { place: place.clone(), want, offset, last });
            }
        }
        chunks
    }
}

impl Table<'_> {
    /// Takes in lenders: the nearest are asked first, gateways last.
    fn join(&mut self, lenders: Vec<Lender>) {
        for lender in lenders {
            let peer = lender.source.peer;
            let is_idle = self.idle.iter().any(|other| other.source.peer == peer);
            if !is_idle && !self.works.contains_key(&peer) && !self.left.contains(&peer) {
                self.nodes.extend(lender.parts.clone().map(|parts| (peer, parts)));
                self.idle.push(lender);
            }
        }
        let far = Duration::MAX;
        self.idle.sort_by_key(|lender| (lender.parts.is_none(), lender.source.rtt.unwrap_or(far)));
    }
}

/// Bytes of a tensor.
struct Chunk {
    place: Place,
    want: Want,
    /// The first of them within the tensor.
    offset: u64,
    /// The tensor ends with them.
    last: bool,
}

/// Writes bytes of a tensor; `false` if the tensor is complete and not the model's.
fn keep(
    mirror: &Mirror,
    held: &Mutex<Held>,
    place: &Place,
    (offset, last): (u64, bool),
    body: &[u8],
) -> Result<bool, MirrorError> {
    mirror.write(place, offset, body)?;
    let held = || held.lock().unwrap_or_else(PoisonError::into_inner);
    if !last {
        held().have(place, offset + body.len() as u64)?;
        return Ok(true);
    }
    let right = mirror.is_right(place)?;
    if right {
        held().verified(place)?
    } else {
        held().discard(place)?
    }
    Ok(right)
}

/// What a piece says, if it answers `want`.
pub(super) fn answer_to(
    peer: NodeId,
    want: Want,
    piece: Piece,
) -> Result<Result<(u64, Bytes), Denial>, FetchError> {
    if piece.want != want {
        return Err(FetchError::Broken { peer, what: "an answer to another question" });
    }
    Ok(piece.answer.map(|total| (total, piece.body)))
}

/// Pieces in order, several on their way.
struct Stream<'a> {
    source: &'a mut Source,
    chunks: &'a [Chunk],
    asked: usize,
    received: usize,
    pace: &'a Mutex<Pace>,
    waits: Waits,
}

impl<'a> Stream<'a> {
    fn new(source: &'a mut Source, chunks: &'a [Chunk], pace: &'a Mutex<Pace>) -> Self {
        let waits = Waits::new(source);
        Self { source, chunks, asked: 0, received: 0, pace, waits }
    }

    async fn next(&mut self) -> Result<Option<(&'a Chunk, Bytes)>, FetchError> {
        let window = self.source.window();
        while let Some(chunk) = self.chunks.get(self.received) {
            while let Some(next) = self.chunks.get(self.asked).filter(|_| self.asked - self.received < window)
            {
                let at = {
                    let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
                    pace.take(next.want.length, Instant::now())
                };
                sleep_until(at).await;
                self.source.ask(next.want).await?;
                self.asked += 1;
            }
            let piece = self.source.answer().await?;
            let peer = self.source.peer;
            match answer_to(peer, chunk.want, piece)? {
                Ok((_, body)) if body.len() == chunk.want.length as usize => {
                    self.received += 1;
                    self.waits = Waits::new(self.source);
                    return Ok(Some((chunk, body)));
                }
                Ok(_) => return Err(FetchError::Broken { peer, what: "a piece of the wrong length" }),
                Err(denial) => {
                    // What was asked for meanwhile has its answers first, and is asked for again.
                    self.received += 1;
                    self.drain().await?;
                    self.received -= 1;
                    self.asked = self.received;
                    self.waits.wait(denial).await?;
                }
            }
        }
        Ok(None)
    }

    /// Takes the answers to what was asked.
    async fn drain(&mut self) -> Result<(), FetchError> {
        for _ in self.received..self.asked {
            self.source.answer().await?;
        }
        Ok(())
    }
}

/// Waiting for a giver that is busy.
pub(super) struct Waits {
    peer: NodeId,
    patience: Duration,
    next: Duration,
    since: Instant,
}

impl Waits {
    pub(super) fn new(source: &Source) -> Self {
        let patience = if source.is_node() { NODE_PATIENCE } else { PATIENCE };
        Self { peer: source.peer, patience, next: FIRST_WAIT, since: Instant::now() }
    }

    pub(super) async fn wait(&mut self, denial: Denial) -> Result<(), FetchError> {
        if !denial.passes() || self.since.elapsed() > self.patience {
            return Err(FetchError::Denied { peer: self.peer, denial });
        }
        tracing::info!(giver = %self.peer.short(), reason = %denial, "waiting for weights");
        sleep(self.next).await;
        self.next = (self.next * 2).min(LONGEST_WAIT);
        Ok(())
    }
}
