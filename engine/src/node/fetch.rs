//! A node without the model's files that is told to load other layers: it fetches those that it lacks over its
//! link to the gateway, and loads them then.

use tokio::{sync::mpsc, task::JoinHandle};
use transport::NodeId;

use super::{Desk, reload::Assigned};
use crate::{
    message::{LoadRefusal, Message, Piece, Want, clip},
    model::Shard,
    weights::{FetchError, Source},
};

/// Weights on their way.
#[derive(Debug)]
pub(super) struct Fetching {
    gateway: NodeId,
    shard: Shard,
    asked: mpsc::Receiver<Want>,
    /// Gone once the link is.
    answered: Option<mpsc::Sender<Piece>>,
    task: JoinHandle<Result<(), FetchError>>,
}

/// What comes of it next.
#[derive(Debug)]
pub(super) enum Advance {
    Ask(Want),
    Done(Result<(), LoadRefusal>),
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits for the next question of a fetch under way, or for its end.
pub(super) async fn advanced(fetching: &mut Option<Fetching>) -> Advance {
    let Some(Fetching { asked, task, .. }) = fetching else { return std::future::pending().await };
    tokio::select! {
        biased;
        Some(want) = asked.recv() => Advance::Ask(want),
        outcome = task => Advance::Done(match outcome {
            Ok(outcome) => outcome.map_err(|error| LoadRefusal::Files(clip(&error.to_string()))),
            Err(error) => Err(LoadRefusal::Files(clip(&error.to_string()))),
        }),
    }
}

impl Desk {
    /// Begins to fetch what a gateway has assigned.
    pub(super) fn fetch(&mut self, gateway: NodeId, shard: Shard) {
        let Some(weights) = self.weights.clone() else { return };
        let (mut source, (asked, answered)) = Source::new(gateway);
        let wanted = shard.clone();
        let task = tokio::spawn(async move {
            let mut fetched = 0;
            let outcome = weights.fetch_from(&mut source, &wanted, &mut fetched, &|_| ()).await;
            tracing::info!(layers = ?wanted.layers, fetched, "weights fetched");
            outcome
        });
        self.fetching = Some(Fetching { gateway, shard, asked, answered: Some(answered), task });
    }

    pub(super) fn fetched(&mut self, step: Advance) {
        let Some(fetching) = self.fetching.as_ref() else { return };
        let (gateway, shard) = (fetching.gateway, fetching.shard.clone());
        match step {
            Advance::Ask(want) => self.peers.send(gateway, None, Message::Want(want)),
            Advance::Done(outcome) => {
                self.fetching = None;
                match outcome {
                    Ok(()) => self.assigned = Some(Assigned { gateway, shard }),
                    // One that is gone will tell what to hold when it is back.
                    Err(reason) if self.peers.is_live(gateway) => self.cannot(gateway, shard, reason),
                    Err(reason) => {
                        tracing::warn!(layers = ?shard.layers, %reason, "weights were not fetched")
                    }
                }
            }
        }
    }

    /// Bytes of weights have come.
    pub(super) fn piece(&mut self, peer: NodeId, piece: Piece) {
        // What comes after a fetch has failed was asked for by it.
        let Some(fetching) = self.fetching.as_mut().filter(|fetching| fetching.gateway == peer) else {
            return;
        };
        let full = |answered: &mpsc::Sender<Piece>| {
            matches!(answered.try_send(piece), Err(mpsc::error::TrySendError::Full(_)))
        };
        if fetching.answered.as_ref().is_some_and(full) {
            self.peers.expel(peer, "sends more weights than it was asked for");
        }
    }

    /// There is no link to `peer` any more.
    pub(super) fn giver_lost(&mut self, peer: NodeId) {
        if let Some(fetching) = self.fetching.as_mut().filter(|fetching| fetching.gateway == peer) {
            fetching.answered = None;
        }
    }
}
