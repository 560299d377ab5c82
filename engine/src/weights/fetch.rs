//! Fetching: which model is served, and whom to ask for its weights.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use thiserror::Error;
use tokio::{task::spawn_blocking, time::sleep};
use transport::{NodeId, Transport};

use super::{
    catalogue::CATALOGUE_BYTES,
    gather::{Gathering, Job, Liars, Waits, answer_to, jobs},
    give::Stock,
    mirror::{Mirror, MirrorError},
    pace::Pace,
    source::{Dialler, SeekError, Source},
};
use crate::{
    message::{Denial, MAX_PIECE_BYTES, Part, Want},
    model::{Model, ModelHash, Progress, Quantisation, Shard, ShardCache},
    node::GatewayAddress,
    pull::{PullError, Repository},
};

/// First wait before a gateway is asked again; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
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
    /// Others are asked instead.
    #[error("{} gives weights too slowly", peer.short())]
    Slow {
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
    /// The hub has other files of the same names.
    #[error("the hub has another model: tensor `{tensor}` is not under the model hash")]
    Elsewhere {
        /// Which tensor.
        tensor: String,
    },
    /// The hub does not bring them.
    #[error(transparent)]
    Hub(#[from] PullError),
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
    pub(super) fn is_ours(&self) -> bool {
        matches!(self, Self::Mirror(_) | Self::Died | Self::Nobody)
    }

    /// Whether the same giver would bring the same.
    pub(super) fn lasts(&self) -> bool {
        match self {
            Self::Wrong { .. } | Self::Broken { .. } | Self::Described { .. } => true,
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
    liars: Arc<Liars>,
    /// Has the same files.
    hub: Option<Arc<Repository>>,
}

impl Fetcher {
    /// Keeps what it fetches of shards of up to `limit_bytes` in `mirror`, at no more than `bandwidth` bytes in a
    /// second.
    pub fn new(mirror: Mirror, limit_bytes: u64, bandwidth: Option<u64>) -> Self {
        Self { mirror: Arc::new(mirror), limit_bytes, bandwidth, liars: Arc::default(), hub: None }
    }

    /// Asks `hub`, which may have the same files, before anybody else.
    #[must_use]
    pub fn with_hub(self, hub: Repository) -> Self {
        Self { hub: Some(Arc::new(hub)), ..self }
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
            let dialler = Dialler::links(transport);
            let mirror = described(&dialler, &gateway, root, quantisation, cache.clone()).await;
            dialler.finish().await;
            match mirror {
                Ok(mirror) => return Ok(mirror),
                Err(error) => round.failed(gateway.clone(), error, false)?,
            }
        }
    }

    /// The same for another mirror: whom it has found to lie, it knows.
    #[cfg(test)]
    pub(super) fn elsewhere(self, mirror: Mirror) -> Self {
        Self { mirror: Arc::new(mirror), ..self }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.mirror.model()
    }

    /// The model's hash.
    pub fn hash(&self) -> ModelHash {
        self.mirror.model_hash().clone()
    }

    /// What was fetched, for others: no more than `bandwidth` bytes in a second of it.
    pub fn stock(&self, bandwidth: u64) -> Stock {
        Stock::of_mirror(&self.mirror, bandwidth)
    }

    /// Fetches what is missing of `shard` over links for this alone, and says how many bytes that was: from nodes
    /// that one of the `gateways` names, and from that gateway. Whoever sends wrong bytes is not asked again.
    ///
    /// # Errors
    /// What the last gateway had; what is ours.
    pub async fn fetch(
        &self,
        transport: &Arc<dyn Transport>,
        gateways: &[GatewayAddress],
        shard: &Shard,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<u64, FetchError> {
        let (dialler, fetched) = (Dialler::links(transport), AtomicU64::new(0));
        let outcome = self.fetch_over(&dialler, gateways, shard, &fetched, progress).await;
        dialler.finish().await;
        outcome.map(|()| fetched.into_inner())
    }

    /// The same over any links; `fetched` counts bytes.
    pub(crate) async fn fetch_over(
        &self,
        dialler: &Dialler,
        gateways: &[GatewayAddress],
        shard: &Shard,
        fetched: &AtomicU64,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), FetchError> {
        let mut round = Round::new(gateways);
        loop {
            let gateway = round.next().await?;
            let before = fetched.load(Ordering::Relaxed);
            match self.attempt(dialler, &gateway, shard, fetched, progress).await {
                Ok(()) => return Ok(()),
                Err(error) => round.failed(gateway, error, fetched.load(Ordering::Relaxed) > before)?,
            }
        }
    }

    /// Fetches with the help of one gateway.
    async fn attempt(
        &self,
        dialler: &Dialler,
        gateway: &GatewayAddress,
        shard: &Shard,
        fetched: &AtomicU64,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), FetchError> {
        let (mirror, wanted, limit) = (self.mirror.clone(), shard.clone(), self.limit_bytes);
        let plan = spawn_blocking(move || {
            let held = mirror.hold()?;
            let (missing, total) = held.missing(&wanted)?;
            if total > limit {
                return Err(MirrorError::TooLarge { needed: total, limit });
            }
            let left: u64 = missing.iter().map(|place| place.range().2 - held.begun(place)).sum();
            Ok((held, jobs(&mirror, missing), total - left, total))
        });
        let (held, jobs, done, total) = plan.await.map_err(|_| FetchError::Died)??;
        let gathering = Gathering {
            mirror: &self.mirror,
            held: Arc::new(Mutex::new(held)),
            dialler,
            liars: &self.liars,
            pace: Mutex::new(Pace::new(self.bandwidth)),
            bandwidth: self.bandwidth,
            wanted: jobs.iter().map(Job::part).collect(),
            fetched,
            done: AtomicU64::new(done),
            total,
            progress,
        };
        gathering.progress(0);
        let jobs = match &self.hub {
            Some(hub) => gathering.ask_hub(hub, jobs).await?,
            None => jobs,
        };
        if jobs.is_empty() {
            return Ok(());
        }
        gathering.run(jobs, dialler.gateway(gateway).await?).await
    }
}

/// Asks `gateway` which model it serves, and opens its mirror below `root`.
pub(super) async fn described(
    dialler: &Dialler,
    gateway: &GatewayAddress,
    root: &Path,
    quantisation: Quantisation,
    cache: Option<ShardCache>,
) -> Result<Mirror, FetchError> {
    let bytes = catalogue(&mut dialler.gateway(gateway).await?).await?;
    let root = root.to_owned();
    let open = spawn_blocking(move || Mirror::open(&root, &bytes, quantisation, cache));
    open.await.map_err(|_| FetchError::Died)?.map_err(|error| match error {
        MirrorError::Disk { .. } => FetchError::Mirror(error),
        error => FetchError::Described { peer: gateway.id, error: Box::new(error) },
    })
}

/// Asks for the catalogue.
async fn catalogue(source: &mut Source) -> Result<Vec<u8>, FetchError> {
    let (peer, mut bytes, mut waits) = (source.peer, Vec::new(), Waits::new(source));
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
