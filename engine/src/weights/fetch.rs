//! Fetching: which bytes are asked for, how many at a time, and what becomes of answers.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use thiserror::Error;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};
use transport::{NodeId, Transport};

use super::{
    catalogue::CATALOGUE_BYTES,
    mirror::{Held, Mirror, MirrorError},
    pace::Pace,
    source::{SeekError, Seeker, Source},
};
use crate::{
    message::{Denial, MAX_PIECE_BYTES, Part, Piece, Want},
    model::{Model, ModelHash, Place, Progress, Quantisation, Shard, ShardCache},
    node::GatewayAddress,
};

/// Pieces on their way at once.
pub(super) const WINDOW: usize = 8;
/// First wait for a giver that is busy; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long a giver may be busy.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Attempts in a row that may bring nothing.
const ATTEMPTS: u32 = 5;

/// Why weights were not fetched.
#[derive(Debug, Error)]
pub enum FetchError {
    /// No link to the giver.
    #[error(transparent)]
    Seek(#[from] SeekError),
    /// The link to the giver ended.
    #[error("the link to {} ended before all weights had come", peer.short())]
    Lost {
        /// The giver.
        peer: NodeId,
    },
    /// The giver does not answer.
    #[error("{} does not answer when it is asked for weights", peer.short())]
    Silent {
        /// The giver.
        peer: NodeId,
    },
    /// The giver refuses.
    #[error("{} does not give its model, {denial}: name its files with --model, or join another gateway", peer.short())]
    Denied {
        /// The giver.
        peer: NodeId,
        /// Why.
        denial: Denial,
    },
    /// The giver sent something else than was asked for.
    #[error("{} sent {what} instead of the weights that were asked for", peer.short())]
    Broken {
        /// The giver.
        peer: NodeId,
        /// What.
        what: &'static str,
    },
    /// The giver's bytes are not the model's.
    #[error("{} sent wrong bytes: tensor `{tensor}` is not under the model hash", peer.short())]
    Wrong {
        /// The giver.
        peer: NodeId,
        /// Which tensor.
        tensor: String,
    },
    /// Bytes of before were wrong, and are fetched again.
    #[error("tensor `{tensor}`, begun before, is not under the model hash")]
    Stale {
        /// Which tensor.
        tensor: String,
    },
    /// What the giver describes cannot be used.
    #[error("{}: {error}", peer.short())]
    Described {
        /// The giver.
        peer: NodeId,
        /// Why.
        error: Box<MirrorError>,
    },
    /// What was fetched cannot be kept.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// There is nobody to ask.
    #[error("there is no gateway to ask for weights")]
    Nobody,
    /// The thread that writes is gone: a bug of ours, printed where it happened.
    #[error("weights could not be kept: their thread died")]
    Died,
}

impl FetchError {
    /// Whether nobody else could have done better.
    fn is_ours(&self) -> bool {
        matches!(self, Self::Mirror(_) | Self::Died | Self::Nobody)
    }

    /// Whether the same giver would bring the same.
    fn lasts(&self) -> bool {
        match self {
            Self::Wrong { .. } | Self::Described { .. } => true,
            Self::Denied { denial, .. } => !denial.passes(),
            _ => false,
        }
    }
}

/// Fetches the layers of one model.
#[derive(Clone, Debug)]
pub struct Fetcher {
    mirror: Arc<Mirror>,
    /// Most bytes of a shard.
    limit_bytes: u64,
    /// Bytes in a second.
    bandwidth: Option<u64>,
}

/// Bytes of a tensor.
struct Chunk {
    place: Arc<Place>,
    want: Want,
    /// The first of them within the tensor.
    offset: u64,
    /// The tensor ends with them.
    last: bool,
}

impl Fetcher {
    /// Keeps what it fetches of shards of up to `limit_bytes` in `mirror`, at no more than `bandwidth` bytes in a
    /// second.
    pub fn new(mirror: Mirror, limit_bytes: u64, bandwidth: Option<u64>) -> Self {
        Self { mirror: Arc::new(mirror), limit_bytes, bandwidth }
    }

    /// Asks `gateways`, one after the other, which model they serve, and opens its mirror below `root`.
    ///
    /// # Errors
    /// What the last of them had.
    pub async fn describe(
        transport: &Arc<dyn Transport>,
        gateways: &[GatewayAddress],
        root: &Path,
        quantisation: Quantisation,
        cache: Option<ShardCache>,
    ) -> Result<Mirror, FetchError> {
        let mut round = Round::new(gateways);
        loop {
            let gateway = round.next().await?;
            let attempt = async {
                let mut seeker = Seeker::dial(transport, &gateway).await?;
                let catalogue = catalogue(&mut seeker.source).await;
                seeker.close().await;
                let (root, cache, bytes) = (root.to_owned(), cache.clone(), catalogue?);
                let open = spawn_blocking(move || Mirror::open(&root, &bytes, quantisation, cache));
                open.await.map_err(|_| FetchError::Died)?.map_err(|error| match error {
                    MirrorError::Disk { .. } => FetchError::Mirror(error),
                    error => FetchError::Described { peer: gateway.id, error: Box::new(error) },
                })
            };
            match attempt.await {
                Ok(mirror) => return Ok(mirror),
                Err(error) => round.failed(gateway.clone(), error, false)?,
            }
        }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.mirror.model()
    }

    /// The model's hash.
    pub fn hash(&self) -> ModelHash {
        self.mirror.model_hash().clone()
    }

    /// Fetches what is missing of `shard` from `gateways` over links for this alone, and says how many bytes that
    /// was. One that sends wrong bytes is not asked again.
    ///
    /// # Errors
    /// What the last of them had; what is ours.
    pub async fn fetch(
        &self,
        transport: &Arc<dyn Transport>,
        gateways: &[GatewayAddress],
        shard: &Shard,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<u64, FetchError> {
        let (mut round, mut fetched) = (Round::new(gateways), 0);
        loop {
            let gateway = round.next().await?;
            let before = fetched;
            let attempt = async {
                let mut seeker = Seeker::dial(transport, &gateway).await?;
                let outcome = self.fetch_from(&mut seeker.source, shard, &mut fetched, progress).await;
                seeker.close().await;
                outcome
            };
            match attempt.await {
                Ok(()) => return Ok(fetched),
                Err(error) => round.failed(gateway.clone(), error, fetched > before)?,
            }
        }
    }

    /// Fetches what is missing of `shard` from one giver; `fetched` counts bytes.
    pub(crate) async fn fetch_from(
        &self,
        source: &mut Source,
        shard: &Shard,
        fetched: &mut u64,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), FetchError> {
        let (mirror, wanted, limit) = (self.mirror.clone(), shard.clone(), self.limit_bytes);
        let plan = spawn_blocking(move || {
            let held = mirror.hold()?;
            let (missing, total) = held.missing(&wanted)?;
            if total > limit {
                return Err(MirrorError::TooLarge { needed: total, limit });
            }
            let begun: Vec<u64> = missing.iter().map(|place| held.begun(place)).collect();
            Ok((held, missing, begun, total))
        });
        let (held, missing, begun, total) = plan.await.map_err(|_| FetchError::Died)??;
        let resumed = missing.iter().zip(&begun).find(|(_, begun)| **begun > 0);
        let resumed = resumed.map(|(place, _)| place.name().to_owned());
        let chunks = self.chunks(missing, &begun);
        let left: u64 = chunks.iter().map(|chunk| u64::from(chunk.want.length)).sum();
        let mut done = total - left;
        progress(Progress { done, total });
        let (held, mut stream) = (Arc::new(Mutex::new(held)), Stream::new(source, &chunks, self.bandwidth));
        while let Some((chunk, body)) = stream.next().await? {
            let length = body.len() as u64;
            let (mirror, held, place) = (self.mirror.clone(), held.clone(), chunk.place.clone());
            let (offset, last) = (chunk.offset, chunk.last);
            let keep = spawn_blocking(move || keep(&mirror, &held, &place, (offset, last), &body));
            if !keep.await.map_err(|_| FetchError::Died)?? {
                let tensor = chunk.place.name().to_owned();
                return Err(if resumed.as_ref() == Some(&tensor) {
                    FetchError::Stale { tensor }
                } else {
                    FetchError::Wrong { peer: stream.source.peer, tensor }
                });
            }
            *fetched += length;
            done += length;
            progress(Progress { done, total });
        }
        Ok(())
    }

    /// Pieces of tensors of which the first `begun` bytes are here.
    fn chunks(&self, places: Vec<Place>, begun: &[u64]) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        for (place, &begun) in places.into_iter().zip(begun) {
            let (file, (_, start, bytes)) = (self.mirror.number(&place), place.range());
            let (of, place) = (Part::File { catalogue: self.mirror.digest(), file }, Arc::new(place));
            // The last piece shows whether all are right, so it is asked for even if all are here.
            let begun = begun.min(bytes.saturating_sub(1)) / u64::from(MAX_PIECE_BYTES);
            for offset in (begun * u64::from(MAX_PIECE_BYTES)..bytes).step_by(MAX_PIECE_BYTES as usize) {
                let length = u64::from(MAX_PIECE_BYTES).min(bytes - offset);
                let want = Want { of, offset: start + offset, length: length as u32 };
                let last = offset + length == bytes;
                chunks.push(Chunk { place: place.clone(), want, offset, last });
            }
        }
        chunks
    }
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
    let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
    if !last {
        held.have(place, offset + body.len() as u64)?;
        return Ok(true);
    }
    let right = mirror.is_right(place)?;
    if right {
        held.verified(place)?
    } else {
        held.discard(place)?
    }
    Ok(right)
}

/// Asks for the catalogue.
async fn catalogue(source: &mut Source) -> Result<Vec<u8>, FetchError> {
    let (peer, mut bytes, mut waits) = (source.peer, Vec::new(), Waits::new(source.peer));
    loop {
        let want = Want { of: Part::Catalogue, offset: bytes.len() as u64, length: MAX_PIECE_BYTES };
        source.ask(want).await?;
        let piece = source.answer().await?;
        match answer_to(peer, want, piece)? {
            Ok((total, body)) => {
                let end = bytes.len() as u64 + body.len() as u64;
                if total > CATALOGUE_BYTES || end > total || body.is_empty() {
                    return Err(FetchError::Broken { peer, what: "a description of the wrong length" });
                }
                bytes.extend_from_slice(&body);
                if end == total {
                    return Ok(bytes);
                }
            }
            Err(denial) => waits.wait(denial).await?,
        }
    }
}

/// What a piece says, if it answers `want`.
fn answer_to(peer: NodeId, want: Want, piece: Piece) -> Result<Result<(u64, Bytes), Denial>, FetchError> {
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
    pace: Pace,
    waits: Waits,
}

impl<'a> Stream<'a> {
    fn new(source: &'a mut Source, chunks: &'a [Chunk], bandwidth: Option<u64>) -> Self {
        let waits = Waits::new(source.peer);
        Self { source, chunks, asked: 0, received: 0, pace: Pace::new(bandwidth), waits }
    }

    async fn next(&mut self) -> Result<Option<(&'a Chunk, Bytes)>, FetchError> {
        while let Some(chunk) = self.chunks.get(self.received) {
            while let Some(next) = self.chunks.get(self.asked).filter(|_| self.asked - self.received < WINDOW)
            {
                sleep_until(self.pace.take(next.want.length, Instant::now())).await;
                self.source.ask(next.want).await?;
                self.asked += 1;
            }
            let piece = self.source.answer().await?;
            let peer = self.source.peer;
            match answer_to(peer, chunk.want, piece)? {
                Ok((_, body)) if body.len() == chunk.want.length as usize => {
                    self.received += 1;
                    self.waits = Waits::new(peer);
                    return Ok(Some((chunk, body)));
                }
                Ok(_) => return Err(FetchError::Broken { peer, what: "a piece of the wrong length" }),
                Err(denial) => {
                    // What was asked for meanwhile has its answers first, and is asked for again.
                    for _ in self.received + 1..self.asked {
                        self.source.answer().await?;
                    }
                    self.asked = self.received;
                    self.waits.wait(denial).await?;
                }
            }
        }
        Ok(None)
    }
}

/// Waiting for a giver that is busy.
struct Waits {
    peer: NodeId,
    next: Duration,
    since: Instant,
}

impl Waits {
    fn new(peer: NodeId) -> Self {
        Self { peer, next: FIRST_WAIT, since: Instant::now() }
    }

    async fn wait(&mut self, denial: Denial) -> Result<(), FetchError> {
        if !denial.passes() || self.since.elapsed() > PATIENCE {
            return Err(FetchError::Denied { peer: self.peer, denial });
        }
        tracing::info!(giver = %self.peer.short(), reason = %denial, "waiting for weights");
        sleep(self.next).await;
        self.next = (self.next * 2).min(LONGEST_WAIT);
        Ok(())
    }
}

/// Whom to ask next.
struct Round {
    candidates: VecDeque<GatewayAddress>,
    failures: u32,
}

impl Round {
    fn new(gateways: &[GatewayAddress]) -> Self {
        Self { candidates: gateways.iter().cloned().collect(), failures: 0 }
    }

    async fn next(&mut self) -> Result<GatewayAddress, FetchError> {
        if self.failures > 0 {
            sleep((FIRST_WAIT * (1 << self.failures.min(8))).min(LONGEST_WAIT)).await;
        }
        self.candidates.pop_front().ok_or(FetchError::Nobody)
    }

    /// Goes on to the next, or gives up with `error`.
    fn failed(
        &mut self,
        gateway: GatewayAddress,
        error: FetchError,
        progressed: bool,
    ) -> Result<(), FetchError> {
        self.failures = if progressed { 1 } else { self.failures + 1 };
        tracing::warn!(%error, "weights were not fetched");
        if !error.lasts() {
            self.candidates.push_back(gateway);
        }
        if error.is_ours() || self.candidates.is_empty() || self.failures >= ATTEMPTS {
            return Err(error);
        }
        Ok(())
    }
}
