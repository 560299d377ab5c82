//! The giver's side: pieces of the model's files, for a bounded number of nodes at a time.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::mpsc, time::Instant};
use transport::NodeId;

use super::{
    catalogue::Catalogue,
    fetch::{FetchError, described},
    mirror::Mirror,
    pace::Pace,
    shelf::{Shelf, own_places},
    source::Dialler,
};
use crate::{
    message::{Denial, MAX_PIECE_BYTES, Part, Parts, Piece, Want},
    model::{HashTree, Model, Quantisation},
    node::GatewayAddress,
};

/// Nodes that a gateway gives weights to at once.
pub(super) const TAKERS: usize = 16;
/// Nodes that a node gives weights to at once.
const NODE_TAKERS: usize = 4;
/// Pieces that one of them may wait for.
pub(super) const OUTSTANDING: u32 = 16;
/// A node that asked for nothing this long leaves its place to others.
const IDLE: Duration = Duration::from_secs(10);
/// Nodes whose share is remembered.
const REMEMBERED: usize = 1024;
/// How often a node may have the whole model at once; it may have it again every day.
const SHARES: u64 = 2;
/// How long a gateway's word holds that a node may be given weights, and how many such nodes are remembered.
const LEAVE: Duration = Duration::from_secs(3600);
const LEAVES: usize = 1024;
/// A node that serves gives this part of the bytes that it gives when it is idle.
const SERVING_PART: u32 = 4;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A model that is given away. Nothing is given before it is known which bytes are under the model hash.
#[derive(Clone, Debug)]
pub struct Stock {
    model: Arc<Model>,
    /// Bytes in a second.
    bandwidth: Option<u64>,
    offered: Arc<OnceLock<Option<Offered>>>,
    given: Arc<AtomicU64>,
    /// How a node describes it that has files of its own: at which quantisation, and where descriptions are kept.
    own: Option<(Quantisation, PathBuf)>,
}

#[derive(Debug)]
struct Offered {
    catalogue: Bytes,
    digest: [u8; 32],
    /// Bytes of each file.
    files: Vec<u64>,
    /// What is here of them; all, if `None`.
    shelf: Option<Arc<Shelf>>,
}

impl Stock {
    /// Files of `model`, given at no more than `bandwidth` bytes in a second over all nodes.
    pub fn new(model: Arc<Model>, bandwidth: Option<u64>) -> Self {
        Self { model, bandwidth, offered: Arc::default(), given: Arc::default(), own: None }
    }

    /// What a node has in files of its own. Which bytes of a gateway's model that are, is known once the gateway has
    /// described it; the description is kept below `directory`.
    pub fn own(model: Arc<Model>, quantisation: Quantisation, directory: PathBuf, bandwidth: u64) -> Self {
        Self { own: Some((quantisation, directory)), ..Self::new(model, Some(bandwidth)) }
    }

    /// Whether it has to be described.
    pub(crate) fn is_unknown(&self) -> bool {
        self.own.is_some() && self.offered.get().is_none()
    }

    /// Finds out which bytes of `gateway`'s model are here.
    ///
    /// # Errors
    /// If the gateway does not describe it, or the description cannot be used.
    pub(crate) async fn describe(
        &self,
        dialler: &Dialler,
        gateway: &GatewayAddress,
    ) -> Result<(), FetchError> {
        let Some((quantisation, directory)) = &self.own else { return Ok(()) };
        let mirror = described(dialler, gateway, directory, *quantisation, None).await?;
        let shelf = mirror.shelf().of_own(self.model.clone(), own_places(&self.model, *quantisation));
        // Described twice it is the same.
        let _ = self.offered.set(Some(Offered::of(&mirror, Arc::new(shelf))));
        Ok(())
    }

    /// What `mirror` has, now and later.
    pub(super) fn of_mirror(mirror: &Mirror, bandwidth: u64) -> Self {
        let stock = Self::new(mirror.model().clone(), Some(bandwidth));
        // Nobody else has it yet.
        let _ = stock.offered.set(Some(Offered::of(mirror, mirror.shelf().clone())));
        stock
    }

    /// Bytes that were given.
    pub fn given_bytes(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    /// The parts that are given.
    pub(crate) fn parts(&self) -> Option<Parts> {
        let offered = self.offered().ok()?;
        let parts = offered.shelf.as_ref()?.parts();
        Some(Parts { catalogue: offered.digest, parts })
    }

    /// Hashes the model and offers it. It blocks.
    ///
    /// # Errors
    /// As [`Model::hash`]; then nothing is offered.
    pub fn hash(&self, quantisation: Quantisation) -> Result<[u8; 32], crate::model::ModelError> {
        let tree = self.model.hash_tree(quantisation, &|_| ());
        let offered = tree.and_then(|tree| Ok((tree.root.hash, self.offer(quantisation, tree)?)));
        let (hash, offered) = match offered {
            Ok((hash, offered)) => (Ok(hash), Some(offered)),
            Err(error) => (Err(error), None),
        };
        // Hashed twice it is the same.
        let _ = self.offered.set(offered);
        hash
    }

    fn offer(&self, quantisation: Quantisation, tree: HashTree) -> Result<Offered, crate::model::ModelError> {
        let catalogue = Catalogue::of(&self.model, quantisation, tree)?;
        let digest = *blake3::hash(&catalogue).as_bytes();
        let files = self.model.file_heads()?.iter().map(|file| file.bytes).collect();
        Ok(Offered { catalogue: catalogue.into(), digest, files, shelf: None })
    }

    fn offered(&self) -> Result<&Offered, Denial> {
        self.offered.get().ok_or(Denial::NotYet)?.as_ref().ok_or(Denial::Nothing)
    }

    /// Bytes of everything.
    fn bytes(&self) -> Result<u64, Denial> {
        let offered = self.offered()?;
        Ok(offered.files.iter().sum::<u64>() + offered.catalogue.len() as u64)
    }

    /// The answer to a question; it reads from disk.
    pub(super) fn read(&self, want: Want) -> Piece {
        match self.bytes_of(want) {
            Ok((total, body)) => Piece { want, answer: Ok(total), body },
            Err(denial) => Piece::denied(want, denial),
        }
    }

    fn bytes_of(&self, Want { of, offset, length }: Want) -> Result<(u64, Bytes), Denial> {
        let offered = self.offered()?;
        let total = match of {
            Part::Catalogue => offered.catalogue.len() as u64,
            Part::File { catalogue, .. } if catalogue != offered.digest => return Err(Denial::Unknown),
            Part::File { file, .. } => *offered.files.get(file as usize).ok_or(Denial::Range)?,
        };
        if length == 0 || length > MAX_PIECE_BYTES || offset >= total {
            return Err(Denial::Range);
        }
        let length = u64::from(length).min(total - offset);
        let bytes = match of {
            Part::Catalogue => offered.catalogue.slice(offset as usize..(offset + length) as usize),
            Part::File { file, .. } => {
                let read = match &offered.shelf {
                    Some(shelf) => shelf.read(file, offset, length),
                    None => self.model.file_bytes(file as usize, offset, length).map(Some),
                };
                let read = read.map_err(|error| {
                    tracing::warn!(%error, "weights cannot be read");
                    Denial::Disk
                })?;
                read.ok_or(Denial::Missing)?.into()
            }
        };
        Ok((total, bytes))
    }
}

impl Offered {
    fn of(mirror: &Mirror, shelf: Arc<Shelf>) -> Self {
        let (catalogue, files) = mirror.described().clone();
        Self { catalogue, digest: mirror.digest(), files, shelf: Some(shelf) }
    }
}

/// What becomes of a question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taking {
    /// It is answered later.
    Taken,
    /// It is answered now, with a refusal.
    Denied(Piece),
    /// Whoever asks does not keep to the rules.
    Broken,
}

/// Takes questions and never waits. The answers come through a channel.
#[derive(Debug)]
pub(crate) struct Giver {
    stock: Stock,
    asks: mpsc::Sender<(NodeId, Want)>,
    takers: HashMap<NodeId, Taker>,
    /// Most of them at once.
    most: usize,
    /// Who may ask, since when; anybody if `None`.
    leave: Option<HashMap<NodeId, Instant>>,
    serving: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Taker {
    outstanding: u32,
    /// Bytes it was given, less what time has made good.
    used: u64,
    last: Instant,
}

impl Giver {
    /// Starts to give to whoever asks. Every answer is to be told to [`Giver::given`] when it is sent.
    pub(crate) fn start(stock: Stock) -> (Self, mpsc::Receiver<(NodeId, Piece)>) {
        Self::with(stock, TAKERS, None)
    }

    /// Starts to give beside other work, to those that may ask.
    pub(crate) fn beside(stock: Stock) -> (Self, mpsc::Receiver<(NodeId, Piece)>) {
        Self::with(stock, NODE_TAKERS, Some(HashMap::new()))
    }

    fn with(
        stock: Stock,
        most: usize,
        leave: Option<HashMap<NodeId, Instant>>,
    ) -> (Self, mpsc::Receiver<(NodeId, Piece)>) {
        let (asks, inbox) = mpsc::channel(most * OUTSTANDING as usize);
        let (outbox, pieces) = mpsc::channel(1);
        let serving = Arc::new(AtomicBool::new(false));
        tokio::spawn(give(stock.clone(), serving.clone(), inbox, outbox));
        (Self { stock, asks, takers: HashMap::new(), most, leave, serving }, pieces)
    }

    /// `peer` may ask from now on.
    pub(crate) fn lend(&mut self, peer: NodeId, now: Instant) {
        let Some(leave) = &mut self.leave else { return };
        leave.retain(|_, since| now.duration_since(*since) < LEAVE);
        if leave.len() < LEAVES || leave.contains_key(&peer) {
            leave.insert(peer, now);
        }
    }

    /// Whether there is other work just now.
    pub(crate) fn serves(&self, serving: bool) {
        self.serving.store(serving, Ordering::Relaxed);
    }

    /// A node asks.
    pub(crate) fn wanted(&mut self, peer: NodeId, want: Want, now: Instant) -> Taking {
        let may = |since: &Instant| now.duration_since(*since) < LEAVE;
        if self.leave.as_ref().is_some_and(|leave| !leave.get(&peer).is_some_and(may)) {
            // The gateway's word may be on its way.
            return Taking::Denied(Piece::denied(want, Denial::NoLeave));
        }
        let busy = |taker: &Taker| taker.outstanding > 0 || now.duration_since(taker.last) < IDLE;
        let others = self.takers.iter().filter(|(id, taker)| **id != peer && busy(taker)).count();
        if others >= self.most {
            return Taking::Denied(Piece::denied(want, Denial::Busy));
        }
        let bytes = match self.stock.bytes() {
            Ok(bytes) => bytes.max(MAX_PIECE_BYTES.into()),
            Err(denial) => return Taking::Denied(Piece::denied(want, denial)),
        };
        self.forget(peer);
        let taker = self.takers.entry(peer).or_insert(Taker { outstanding: 0, used: 0, last: now });
        let back = bytes as f64 * now.duration_since(taker.last).as_secs_f64() / DAY.as_secs_f64();
        (taker.used, taker.last) = (taker.used.saturating_sub(back as u64), now);
        if taker.outstanding >= OUTSTANDING {
            return Taking::Broken;
        }
        let used = taker.used.saturating_add(want.length.into());
        if used > bytes.saturating_mul(SHARES) {
            return Taking::Denied(Piece::denied(want, Denial::Spent));
        }
        match self.asks.try_send((peer, want)) {
            Ok(()) => {
                (taker.used, taker.outstanding) = (used, taker.outstanding + 1);
                Taking::Taken
            }
            Err(_) => Taking::Denied(Piece::denied(want, Denial::Busy)),
        }
    }

    /// An answer is on its way.
    pub(crate) fn given(&mut self, peer: NodeId) {
        if let Some(taker) = self.takers.get_mut(&peer) {
            taker.outstanding = taker.outstanding.saturating_sub(1);
        }
    }

    /// Makes room for one more.
    fn forget(&mut self, peer: NodeId) {
        if self.takers.len() < REMEMBERED || self.takers.contains_key(&peer) {
            return;
        }
        let idle = self.takers.iter().filter(|(_, taker)| taker.outstanding == 0);
        if let Some(oldest) = idle.min_by_key(|(_, taker)| taker.last).map(|(id, _)| *id) {
            self.takers.remove(&oldest);
        }
    }
}

/// Answers in the order of the questions.
async fn give(
    stock: Stock,
    serving: Arc<AtomicBool>,
    mut asks: mpsc::Receiver<(NodeId, Want)>,
    pieces: mpsc::Sender<(NodeId, Piece)>,
) {
    let mut pace = Pace::new(stock.bandwidth);
    while let Some((peer, want)) = asks.recv().await {
        let source = stock.clone();
        let Ok(piece) = tokio::task::spawn_blocking(move || source.read(want)).await else { return };
        let bytes = piece.body.len() as u32;
        let cost = if serving.load(Ordering::Relaxed) { bytes * SERVING_PART } else { bytes };
        tokio::time::sleep_until(pace.take(cost, Instant::now())).await;
        stock.given.fetch_add(bytes.into(), Ordering::Relaxed);
        if pieces.send((peer, piece)).await.is_err() {
            return;
        }
    }
}
