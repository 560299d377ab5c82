//! The giver's side: pieces of the model's files, for a bounded number of nodes at a time.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::mpsc, time::Instant};
use transport::NodeId;

use super::{catalogue::Catalogue, pace::Pace};
use crate::{
    message::{Denial, MAX_PIECE_BYTES, Part, Piece, Want},
    model::{HashTree, Model, Quantisation},
};

/// Nodes that are given weights at once.
pub(super) const TAKERS: usize = 16;
/// Pieces that one of them may wait for.
pub(super) const OUTSTANDING: u32 = 16;
/// A node that asked for nothing this long leaves its place to others.
const IDLE: Duration = Duration::from_secs(10);
/// Nodes whose share is remembered.
const REMEMBERED: usize = 1024;
/// How often a node may have the whole model at once; it may have it again every day.
const SHARES: u64 = 2;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A model that is given away. Nothing is given before the model is hashed.
#[derive(Clone, Debug)]
pub struct Stock {
    model: Arc<Model>,
    /// Bytes in a second.
    bandwidth: Option<u64>,
    offered: Arc<OnceLock<Option<Offered>>>,
}

#[derive(Debug)]
struct Offered {
    catalogue: Bytes,
    digest: [u8; 32],
    /// Bytes of each file.
    files: Vec<u64>,
}

impl Stock {
    /// Files of `model`, given at no more than `bandwidth` bytes in a second over all nodes.
    pub fn new(model: Arc<Model>, bandwidth: Option<u64>) -> Self {
        Self { model, bandwidth, offered: Arc::default() }
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
        Ok(Offered { catalogue: catalogue.into(), digest, files })
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
                let read = self.model.file_bytes(file as usize, offset, length);
                read.map_err(|error| {
                    tracing::warn!(%error, "weights cannot be read");
                    Denial::Disk
                })?
                .into()
            }
        };
        Ok((total, bytes))
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
}

#[derive(Debug)]
struct Taker {
    outstanding: u32,
    /// Bytes it was given, less what time has made good.
    used: u64,
    last: Instant,
}

impl Giver {
    /// Starts to give. Every answer is to be told to [`Giver::given`] when it is sent.
    pub(crate) fn start(stock: Stock) -> (Self, mpsc::Receiver<(NodeId, Piece)>) {
        let (asks, inbox) = mpsc::channel(TAKERS * OUTSTANDING as usize);
        let (outbox, pieces) = mpsc::channel(1);
        tokio::spawn(give(stock.clone(), inbox, outbox));
        (Self { stock, asks, takers: HashMap::new() }, pieces)
    }

    /// A node asks.
    pub(crate) fn wanted(&mut self, peer: NodeId, want: Want, now: Instant) -> Taking {
        let busy = |taker: &Taker| taker.outstanding > 0 || now.duration_since(taker.last) < IDLE;
        let others = self.takers.iter().filter(|(id, taker)| **id != peer && busy(taker)).count();
        if others >= TAKERS {
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
async fn give(stock: Stock, mut asks: mpsc::Receiver<(NodeId, Want)>, pieces: mpsc::Sender<(NodeId, Piece)>) {
    let mut pace = Pace::new(stock.bandwidth);
    while let Some((peer, want)) = asks.recv().await {
        let source = stock.clone();
        let Ok(piece) = tokio::task::spawn_blocking(move || source.read(want)).await else { return };
        tokio::time::sleep_until(pace.take(piece.body.len() as u32, Instant::now())).await;
        if pieces.send((peer, piece)).await.is_err() {
            return;
        }
    }
}
