//! A node without the model's files that is told to load other layers: it fetches those that it lacks over the
//! links that it has, and loads them then.

use std::{collections::HashMap, sync::atomic::AtomicU64};

use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::JoinHandle,
};
use transport::{NodeId, PathKind};

use super::{Desk, GatewayAddress, reload::Assigned};
use crate::{
    message::{LoadRefusal, Message, clip},
    model::Shard,
    weights::{Answer, Dialler, Errand, FetchError, Stock},
};

/// Weights on their way.
#[derive(Debug)]
pub(super) struct Fetching {
    /// What is loaded then, and whose word it was; nothing, if only a description is fetched.
    assigned: Option<Assigned>,
    errands: mpsc::Receiver<Errand>,
    givers: HashMap<NodeId, Line>,
    task: JoinHandle<Result<(), FetchError>>,
}

/// Somebody who is asked for weights.
#[derive(Debug)]
struct Line {
    /// Where it is dialled.
    address: Option<String>,
    answers: mpsc::Sender<Answer>,
}

/// What comes of it next.
#[derive(Debug)]
pub(super) enum Advance {
    Run(Errand),
    Done(Result<(), LoadRefusal>),
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits for the next errand of a fetch under way, or for its end.
pub(super) async fn advanced(fetching: &mut Option<Fetching>) -> Advance {
    let Some(Fetching { errands, task, .. }) = fetching else { return std::future::pending().await };
    tokio::select! {
        biased;
        Some(errand) = errands.recv() => Advance::Run(errand),
        outcome = task => Advance::Done(match outcome {
            Ok(outcome) => outcome.map_err(|error| LoadRefusal::Files(clip(&error.to_string()))),
            Err(error) => Err(LoadRefusal::Files(clip(&error.to_string()))),
        }),
    }
}

impl Desk {
    /// Begins to fetch what a gateway has assigned.
    pub(super) fn fetch(&mut self, gateway: NodeId, shard: Shard) {
        let (Some(weights), Some(known)) = (self.weights.clone(), self.gateways.get(&gateway)) else {
            return;
        };
        let address = GatewayAddress { id: gateway, address: known.address.clone() };
        let (dialler, errands) = Dialler::desk();
        let wanted = shard.clone();
        let task = tokio::spawn(async move {
            let fetched = AtomicU64::new(0);
            let outcome = weights.fetch_over(&dialler, &[address], &wanted, &fetched, &|_| ()).await;
            tracing::info!(layers = ?wanted.layers, fetched = fetched.into_inner(), "weights fetched");
            outcome
        });
        let assigned = Some(Assigned { gateway, shard });
        self.fetching = Some(Fetching { assigned, errands, givers: HashMap::new(), task });
    }

    /// Begins to find out which bytes of a gateway's model the node has in files of its own, to give them.
    pub(super) fn describe(&mut self, gateway: NodeId) {
        let stock = self.giving.as_ref().map(|giving| giving.stock().clone()).filter(Stock::is_unknown);
        let (Some(stock), Some(known)) = (stock, self.gateways.get(&gateway)) else { return };
        if self.fetching.is_some() {
            return;
        }
        let address = GatewayAddress { id: gateway, address: known.address.clone() };
        let (dialler, errands) = Dialler::desk();
        let task = tokio::spawn(async move { stock.describe(&dialler, &address).await });
        self.fetching = Some(Fetching { assigned: None, errands, givers: HashMap::new(), task });
    }

    pub(super) fn fetched(&mut self, step: Advance) {
        let Some(fetching) = self.fetching.as_mut() else { return };
        match step {
            Advance::Run(Errand::Begin { peer, address, answers }) => {
                // A gateway is not dialled for this; it is when it is its turn.
                if address.is_some() || self.peers.is_live(peer) {
                    fetching.givers.insert(peer, Line { address, answers });
                }
            }
            Advance::Run(Errand::Say(peer, message)) => {
                if self.peers.path(peer) == Some(PathKind::Relayed) {
                    // It would be the gateway that carries every byte.
                    fetching.givers.remove(&peer);
                }
                if let Some(line) = fetching.givers.get(&peer) {
                    self.peers.send(peer, line.address.as_deref(), message);
                }
            }
            Advance::Done(outcome) => {
                let assigned = fetching.assigned.take();
                self.fetching = None;
                let Some(Assigned { gateway, shard }) = assigned else {
                    if let Err(reason) = outcome {
                        tracing::info!(%reason, "no weights are given to other nodes");
                    }
                    return;
                };
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

    /// A giver answers.
    pub(super) fn answered(&mut self, peer: NodeId, answer: Message) {
        // What comes after a fetch is over was asked for by it.
        let Some(line) = self.fetching.as_ref().and_then(|fetching| fetching.givers.get(&peer)) else {
            return;
        };
        if let Err(TrySendError::Full(_)) = line.answers.try_send(Ok(answer)) {
            self.peers.expel(peer, "sends more weights than it was asked for");
        }
    }

    /// There is no link to `peer` any more.
    pub(super) fn giver_lost(&mut self, peer: NodeId) {
        if let Some(fetching) = self.fetching.as_mut() {
            fetching.givers.remove(&peer);
        }
    }
}
