//! A giver as the one who fetches sees it: questions in one channel, answers in another. Before a node serves
//! they go over a link of their own ([`Seeker`]); later over its link to the gateway.

use std::{sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use transport::{CloseReason, NodeId, PeerAddress, Transport};

use super::fetch::{FetchError, WINDOW};
use crate::{
    message::{Message, Piece, Want},
    node::GatewayAddress,
};

/// Longest wait for one answer: a giver with many takers and little bandwidth needs a while.
const SILENCE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(crate) struct Source {
    pub(super) peer: NodeId,
    asks: mpsc::Sender<Want>,
    answers: mpsc::Receiver<Piece>,
}

/// The other ends of a source's channels.
pub(crate) type Ends = (mpsc::Receiver<Want>, mpsc::Sender<Piece>);

impl Source {
    /// A source and what carries its questions.
    pub(crate) fn new(peer: NodeId) -> (Self, Ends) {
        let (asks, asked) = mpsc::channel(WINDOW);
        let (answered, answers) = mpsc::channel(WINDOW);
        (Self { peer, asks, answers }, (asked, answered))
    }

    pub(super) async fn ask(&self, want: Want) -> Result<(), FetchError> {
        self.asks.send(want).await.map_err(|_| FetchError::Lost { peer: self.peer })
    }

    pub(super) async fn answer(&mut self) -> Result<Piece, FetchError> {
        match timeout(SILENCE, self.answers.recv()).await {
            Ok(Some(piece)) => Ok(piece),
            Ok(None) => Err(FetchError::Lost { peer: self.peer }),
            Err(_) => Err(FetchError::Silent { peer: self.peer }),
        }
    }
}

/// Why a giver cannot be asked.
#[derive(Debug, Error)]
pub enum SeekError {
    /// Its name does not resolve.
    #[error("{address}: {error}")]
    Resolve {
        /// What was to be resolved.
        address: String,
        /// Why it was not.
        error: std::io::Error,
    },
    /// It cannot be reached.
    #[error("{address}: {reason}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
}

/// A link on which nothing but weights is asked for, as long as the node does not serve.
#[derive(Debug)]
pub struct Seeker {
    task: JoinHandle<()>,
    pub(super) source: Source,
}

impl Seeker {
    /// Dials a gateway.
    ///
    /// # Errors
    /// [`SeekError`].
    pub async fn dial(transport: &Arc<dyn Transport>, gateway: &GatewayAddress) -> Result<Self, SeekError> {
        let address = gateway.address.clone();
        let found = tokio::net::lookup_host(&address).await;
        let found = found.map_err(|error| SeekError::Resolve { address: address.clone(), error })?;
        let mut reason = "it has no address".to_owned();
        for place in found {
            match transport.connect(&PeerAddress { id: gateway.id, address: place }).await {
                Ok(link) => {
                    let (source, ends) = Source::new(gateway.id);
                    return Ok(Self { task: tokio::spawn(carry(link, ends)), source });
                }
                Err(error) => reason = error.to_string(),
            }
        }
        Err(SeekError::Connect { address, reason })
    }

    /// Ends the link: the node's own must be the only one.
    pub async fn close(self) {
        let Self { task, source } = self;
        drop(source);
        let _ = task.await;
    }
}

/// Carries questions and answers until either side is done.
async fn carry(link: transport::Link, (mut asked, answered): Ends) {
    let (sender, mut receiver) = link.split();
    loop {
        tokio::select! {
            want = asked.recv() => match want {
                Some(want) => if sender.send(Message::Want(want).encode()).await.is_err() { break },
                None => break,
            },
            received = receiver.recv() => match received.map(Message::decode) {
                // More than was asked for finds no room.
                Ok(Ok(Message::Piece(piece))) => if answered.try_send(piece).is_err() { break },
                _ => break,
            },
        }
    }
    sender.close(CloseReason::new(0, "fetched"));
    let _ = timeout(Duration::from_secs(5), sender.closed()).await;
}
