//! A giver as the one who fetches sees it: questions in one channel, answers in another. Before a node serves
//! they go over links for this alone; later over those that the node has.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};
use transport::{CloseReason, Link, NodeId, PathKind, PeerAddress, Transport};

use super::fetch::FetchError;
use crate::{
    message::{Holder, MAX_PIECE_BYTES, Message, MessageError, Parts, Piece, Want},
    node::GatewayAddress,
};

/// Longest wait for one answer of a gateway: a giver with many takers and little bandwidth needs a while.
const SILENCE: Duration = Duration::from_secs(60);
/// The same of a node, which is one of many.
const NODE_SILENCE: Duration = Duration::from_secs(10);
/// Longest wait for a link to one.
const DIAL_TIME: Duration = Duration::from_secs(4);
/// How long a gateway may think about who holds what.
const SEEK_TIME: Duration = Duration::from_secs(5);
/// Pieces of a node are small: what it serves goes over the same line.
const NODE_PIECE_BYTES: u32 = 64 << 10;
/// Errands of all sources that may wait.
const ERRANDS: usize = 64;
/// Answers that may wait for one source.
const ANSWERS: usize = 32;

/// What a giver says.
pub(crate) type Answer = Result<Message, MessageError>;

/// What whoever has the links is asked to do.
#[derive(Debug)]
pub(crate) enum Errand {
    /// Hand on what this peer answers. It is dialled at the address, if one is given and there is no link.
    Begin { peer: NodeId, address: Option<String>, answers: mpsc::Sender<Answer> },
    /// Send.
    Say(NodeId, Message),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Source {
    pub(super) peer: NodeId,
    /// Round trip, if that is known.
    pub(super) rtt: Option<Duration>,
    is_node: bool,
    errands: mpsc::Sender<Errand>,
    answers: mpsc::Receiver<Answer>,
    /// When it was last asked who else has something.
    sought: Option<Instant>,
}

impl Source {
    /// Whether it was last asked longer ago than `interval` who else has something.
    pub(super) fn is_due(&self, interval: Duration) -> bool {
        self.sought.is_none_or(|sought| sought.elapsed() >= interval)
    }

    /// Most bytes that are asked for at once.
    pub(super) fn piece_bytes(&self) -> u32 {
        if self.is_node { NODE_PIECE_BYTES } else { MAX_PIECE_BYTES }
    }

    /// How many pieces may be on their way.
    pub(super) fn window(&self) -> usize {
        if self.is_node { 16 } else { 8 }
    }

    /// Whether it is one of many.
    pub(super) fn is_node(&self) -> bool {
        self.is_node
    }

    async fn say(&self, message: Message) -> Result<(), FetchError> {
        let errand = Errand::Say(self.peer, message);
        self.errands.send(errand).await.map_err(|_| FetchError::Lost { peer: self.peer })
    }

    pub(super) async fn ask(&self, want: Want) -> Result<(), FetchError> {
        self.say(Message::Want(want)).await
    }

    async fn next(&mut self, patience: Duration) -> Result<Message, FetchError> {
        let peer = self.peer;
        match timeout(patience, self.answers.recv()).await {
            Ok(Some(Ok(message))) => Ok(message),
            Ok(Some(Err(_))) => Err(FetchError::Broken { peer, what: "no message at all" }),
            Ok(None) => Err(FetchError::Lost { peer }),
            Err(_) => Err(FetchError::Silent { peer }),
        }
    }

    pub(super) async fn answer(&mut self) -> Result<Piece, FetchError> {
        match self.next(if self.is_node { NODE_SILENCE } else { SILENCE }).await? {
            Message::Piece(piece) => Ok(piece),
            _ => Err(FetchError::Broken { peer: self.peer, what: "something else" }),
        }
    }

    /// Asks a gateway who else has these parts.
    pub(super) async fn holders(&mut self, parts: Parts) -> Result<Vec<Holder>, FetchError> {
        self.sought = Some(Instant::now());
        self.say(Message::Seek(parts)).await?;
        match self.next(SEEK_TIME).await? {
            Message::Holders(holders) => Ok(holders),
            _ => Err(FetchError::Broken { peer: self.peer, what: "something else" }),
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

/// Who has the links.
pub(crate) enum Dialler {
    /// They are made for each source, as long as the node does not serve.
    Links { transport: Arc<dyn Transport>, carriers: Mutex<JoinSet<()>> },
    /// The node's own task.
    Desk(mpsc::Sender<Errand>),
}

impl Dialler {
    /// Links for this alone.
    pub(super) fn links(transport: &Arc<dyn Transport>) -> Self {
        Self::Links { transport: transport.clone(), carriers: Mutex::default() }
    }

    /// Those of a node's own task, which carries out the errands.
    pub(crate) fn desk() -> (Self, mpsc::Receiver<Errand>) {
        let (errands, inbox) = mpsc::channel(ERRANDS);
        (Self::Desk(errands), inbox)
    }

    /// A gateway, which a node's own task has a link to.
    pub(super) async fn gateway(&self, gateway: &GatewayAddress) -> Result<Source, SeekError> {
        self.source(gateway.id, &gateway.address, false).await
    }

    /// A node.
    pub(super) async fn node(&self, holder: &Holder) -> Result<Source, SeekError> {
        let (peer, address) = (NodeId(holder.node), &holder.address);
        let dial = timeout(DIAL_TIME, self.source(peer, address, true)).await;
        dial.unwrap_or_else(|_| Err(connect_error(address, "no answer in time")))
    }

    async fn source(&self, peer: NodeId, address: &str, is_node: bool) -> Result<Source, SeekError> {
        let (answered, answers) = mpsc::channel(ANSWERS);
        match self {
            Self::Desk(errands) => {
                let dialled = is_node.then(|| address.to_owned());
                let begin = Errand::Begin { peer, address: dialled, answers: answered };
                let gone = |_| connect_error(address, "the node is stopping");
                errands.send(begin).await.map_err(gone)?;
                Ok(Source { peer, rtt: None, is_node, errands: errands.clone(), answers, sought: None })
            }
            Self::Links { transport, carriers } => {
                let link = dial(transport.as_ref(), peer, address).await?;
                if is_node && link.path() == PathKind::Relayed {
                    // It would be the gateway that carries every byte.
                    return Err(connect_error(address, "there is no way to it but through a gateway"));
                }
                let (rtt, (errands, inbox)) = (link.rtt(), mpsc::channel(ERRANDS));
                let mut carriers = carriers.lock().unwrap_or_else(PoisonError::into_inner);
                carriers.spawn(carry(link, inbox, answered));
                Ok(Source { peer, rtt, is_node, errands, answers, sought: None })
            }
        }
    }

    /// Waits until the links that were made are over: those of the node that serves must be the only ones. No
    /// source may be left.
    pub(super) async fn finish(self) {
        if let Self::Links { carriers, .. } = self {
            carriers.into_inner().unwrap_or_else(PoisonError::into_inner).join_all().await;
        }
    }
}

fn connect_error(address: &str, reason: &str) -> SeekError {
    SeekError::Connect { address: address.to_owned(), reason: reason.to_owned() }
}

async fn dial(transport: &dyn Transport, peer: NodeId, address: &str) -> Result<Link, SeekError> {
    let found = tokio::net::lookup_host(address).await;
    let found = found.map_err(|error| SeekError::Resolve { address: address.to_owned(), error })?;
    let mut error = connect_error(address, "it has no address");
    for place in found {
        match transport.connect(&PeerAddress { id: peer, address: place }).await {
            Ok(link) => return Ok(link),
            Err(reason) => error = connect_error(address, &reason.to_string()),
        }
    }
    Err(error)
}

/// Carries questions and answers until either side is done.
async fn carry(link: Link, mut errands: mpsc::Receiver<Errand>, answers: mpsc::Sender<Answer>) {
    let (sender, mut receiver) = link.split();
    loop {
        tokio::select! {
            errand = errands.recv() => match errand {
                Some(Errand::Say(_, message)) => if sender.send(message.encode()).await.is_err() { break },
                Some(Errand::Begin { .. }) => {}
                None => break,
            },
            received = receiver.recv() => {
                let Ok(bytes) = received else { break };
                let answer = Message::decode(bytes);
                let is_last = answer.is_err();
                // More than was asked for finds no room.
                if answers.try_send(answer).is_err() || is_last {
                    break;
                }
            }
        }
    }
    drop(answers);
    sender.close(CloseReason::new(0, "fetched"));
    sender.closed().await;
}
