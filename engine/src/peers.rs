//! The rim between a task that owns state and its links: dials, accepts, reads, decodes, sends. One
//! bounded queue of events comes out; nothing here waits for a peer.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    net::lookup_host,
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use transport::{
    CloseReason, Link, LinkReceiver, LinkSender, NodeId, PathKind, PeerAddress, Throughput, Transport,
};

use crate::message::Message;

/// Events that may wait for the owner; past it the readers stop and the peers run out of credit.
const QUEUE: usize = 128;
/// Messages that may wait for one dial.
const DIAL_QUEUE: usize = 1024;
/// Close code: the peer broke the rules of the engine's messages.
const RULES_BROKEN: u32 = 1;
/// Close code: the link is not needed any more.
const DONE: u32 = 2;

/// What happens on the links.
#[derive(Debug)]
pub enum PeerEvent {
    /// A link stands.
    Connected {
        /// The link.
        link: Link,
        /// The address that was dialled; `None` if the peer dialled.
        dialled: Option<String>,
    },
    /// A dial failed.
    DialFailed {
        /// Whom.
        peer: NodeId,
        /// Which attempt.
        dial: u64,
        /// Why.
        reason: String,
    },
    /// A peer said something.
    Message {
        /// Who.
        peer: NodeId,
        /// What.
        message: Message,
    },
    /// A link is over.
    Ended {
        /// With whom.
        peer: NodeId,
        /// Which.
        link: u64,
        /// Why.
        reason: String,
    },
}

/// What the owner has to know of an event once the links are seen to.
#[derive(Debug)]
pub enum Notice {
    /// A peer can be reached.
    Up(NodeId),
    /// A peer said something.
    Message(NodeId, Message),
    /// A peer is out of reach.
    Down(NodeId, String),
}

#[derive(Debug)]
enum Entry {
    Dialling {
        dial: u64,
        address: String,
        waiting: Vec<Message>,
    },
    /// The link in use does not change while both sides hold on to it, so messages stay in order; where
    /// both have dialled, the second link waits as a spare.
    Live {
        line: Line,
        spare: Option<Line>,
    },
}

#[derive(Debug)]
struct Line {
    number: u64,
    sender: LinkSender,
    dialled: Option<String>,
}

/// What is known of a link.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// There and back.
    pub rtt: Duration,
    /// By what way it goes.
    pub path: PathKind,
    /// What it was seen to carry from there to here.
    pub throughput: Option<Throughput>,
    /// Bytes per second that congestion control lets out.
    pub send_limit: Option<u64>,
}

/// See the module.
pub struct Peers {
    transport: Arc<dyn Transport>,
    entries: HashMap<NodeId, Entry>,
    events: mpsc::Sender<PeerEvent>,
    tasks: JoinSet<()>,
    acceptor: AbortHandle,
    /// Numbers links and dials.
    links: u64,
    /// Peers that a send found out of reach; the owner learns of them next.
    unreachable: Vec<(NodeId, String)>,
}

impl Peers {
    /// Starts to accept. The receiver is the owner's; every event goes through [`Peers::settle`].
    pub fn start(transport: Arc<dyn Transport>) -> (Self, mpsc::Receiver<PeerEvent>) {
        let (events, inbox) = mpsc::channel(QUEUE);
        let mut tasks = JoinSet::new();
        let acceptor = tasks.spawn(accept(transport.clone(), events.clone()));
        let entries = HashMap::new();
        (Self { transport, entries, events, tasks, acceptor, links: 0, unreachable: Vec::new() }, inbox)
    }

    /// Sends to a peer: over its link if there is one, else after dialling `address`. It never waits;
    /// a peer that takes nothing is out of reach, which [`Peers::take_unreachable`] tells.
    pub fn send(&mut self, to: NodeId, address: Option<&str>, message: Message) {
        match self.entries.get_mut(&to) {
            Some(Entry::Live { line, .. }) => {
                // A node that came back elsewhere is not at the end of the link to where it was.
                if let (Some(address), Some(dialled)) = (address, &line.dialled)
                    && address != dialled
                {
                    self.close(to);
                    return self.dial(to, address, vec![message]);
                }
                let outcome = line.sender.try_send(to_transport(message));
                if let Err(error) = outcome {
                    self.give_up(to, &format!("it takes no more messages: {error}"));
                }
            }
            Some(Entry::Dialling { waiting, .. }) if waiting.len() >= DIAL_QUEUE => {
                self.give_up(to, "too many messages wait for the link");
            }
            Some(Entry::Dialling { address: dialled, waiting, .. }) => {
                waiting.push(message);
                if let Some(address) = address.filter(|address| *address != dialled.as_str()) {
                    let waiting = std::mem::take(waiting);
                    self.dial(to, address, waiting);
                }
            }
            None => match address {
                Some(address) => self.dial(to, address, vec![message]),
                None => self.unreachable.push((to, "there is no link to it".into())),
            },
        }
    }

    /// Dials a peer without a message.
    pub fn connect(&mut self, peer: NodeId, address: &str) {
        if !self.entries.contains_key(&peer) {
            self.dial(peer, address, Vec::new());
        }
    }

    /// Peers that a send found out of reach since the last call.
    pub fn take_unreachable(&mut self) -> Vec<(NodeId, String)> {
        let mut unreachable = std::mem::take(&mut self.unreachable);
        unreachable.sort_by_key(|(peer, _)| *peer);
        unreachable.dedup_by_key(|(peer, _)| *peer);
        unreachable
    }

    /// Ends the links with a peer that broke the rules.
    pub fn expel(&mut self, peer: NodeId, reason: &str) {
        tracing::warn!(peer = %peer.short(), reason, "ending the link: the peer broke the rules");
        if let Some(Entry::Live { line, spare }) = self.entries.get_mut(&peer) {
            end(line, spare.take(), &CloseReason::new(RULES_BROKEN, reason));
        }
    }

    /// Closes the links with a peer after what was sent.
    pub fn close(&mut self, peer: NodeId) {
        if let Some(Entry::Live { line, spare }) = self.entries.remove(&peer) {
            end(&line, spare, &CloseReason::new(DONE, "done"));
        }
    }

    /// Round trips to the peers there are links to.
    pub fn rtts(&self) -> impl Iterator<Item = (NodeId, Duration)> {
        self.ways().map(|(peer, way)| (peer, way.rtt))
    }

    /// The links there are, as far as they know their round trip.
    pub fn ways(&self) -> impl Iterator<Item = (NodeId, Way)> {
        let way = |sender: &LinkSender| {
            let rtt = sender.rtt()?;
            let (path, throughput, send_limit) = (sender.path(), sender.throughput(), sender.send_limit());
            Some(Way { rtt, path, throughput, send_limit })
        };
        self.entries.iter().filter_map(move |(peer, entry)| match entry {
            Entry::Live { line, .. } => way(&line.sender).map(|way| (*peer, way)),
            Entry::Dialling { .. } => None,
        })
    }

    /// By what way the link to the peer goes, if there is one.
    pub fn path(&self, peer: NodeId) -> Option<PathKind> {
        match self.entries.get(&peer)? {
            Entry::Live { line, .. } => Some(line.sender.path()),
            Entry::Dialling { .. } => None,
        }
    }

    /// Whether there is a link to the peer.
    pub fn is_live(&self, peer: NodeId) -> bool {
        matches!(self.entries.get(&peer), Some(Entry::Live { .. }))
    }

    /// Brings the links up to date with an event and says what is left for the owner.
    pub fn settle(&mut self, event: PeerEvent) -> Vec<Notice> {
        match event {
            PeerEvent::Connected { link, dialled } => self.connected(link, dialled),
            PeerEvent::DialFailed { peer, dial: failed, reason } => {
                // An accepted link or a later dial may have come meanwhile; then this one does not matter.
                let current =
                    |entry: &Entry| matches!(entry, Entry::Dialling { dial, .. } if *dial == failed);
                if !self.entries.get(&peer).is_some_and(current) {
                    return Vec::new();
                }
                self.entries.remove(&peer);
                vec![Notice::Down(peer, reason)]
            }
            PeerEvent::Message { peer, message } => vec![Notice::Message(peer, message)],
            PeerEvent::Ended { peer, link, reason } => self.ended(peer, link, reason),
        }
    }

    fn ended(&mut self, peer: NodeId, ended: u64, reason: String) -> Vec<Notice> {
        let Some(Entry::Live { line, spare }) = self.entries.get_mut(&peer) else { return Vec::new() };
        if line.number != ended {
            if spare.as_ref().is_some_and(|spare| spare.number == ended) {
                *spare = None;
            }
            return Vec::new();
        }
        match spare.take() {
            Some(line) => {
                self.entries.insert(peer, Entry::Live { line, spare: None });
                vec![Notice::Down(peer, reason), Notice::Up(peer)]
            }
            None => {
                self.entries.remove(&peer);
                vec![Notice::Down(peer, reason)]
            }
        }
    }

    /// Stops everything: links are drained and closed.
    pub async fn shutdown(mut self) {
        self.acceptor.abort();
        self.transport.close().await;
        self.tasks.shutdown().await;
    }

    fn connected(&mut self, link: Link, dialled: Option<String>) -> Vec<Notice> {
        let peer = link.peer();
        self.links += 1;
        let number = self.links;
        let (sender, receiver) = link.split();
        let line = Line { number, sender, dialled };
        let mut notices = vec![Notice::Up(peer)];
        let waiting = match self.entries.remove(&peer) {
            Some(Entry::Live { line: old, spare }) if line.dialled.is_none() && old.dialled.is_none() => {
                // A peer that dials anew has given up the link it dialled before.
                end(&old, spare, &CloseReason::new(DONE, "there is a newer link"));
                notices.insert(0, Notice::Down(peer, "it came back over a new link".into()));
                self.entries.insert(peer, Entry::Live { line, spare: None });
                Vec::new()
            }
            Some(Entry::Live { line: old, spare }) => {
                if let Some(spare) = spare {
                    spare.sender.close(CloseReason::new(DONE, "there is a newer link"));
                }
                self.entries.insert(peer, Entry::Live { line: old, spare: Some(line) });
                Vec::new()
            }
            Some(Entry::Dialling { waiting, .. }) => {
                self.entries.insert(peer, Entry::Live { line, spare: None });
                waiting
            }
            None => {
                self.entries.insert(peer, Entry::Live { line, spare: None });
                Vec::new()
            }
        };
        self.tasks.spawn(read(receiver, number, self.events.clone()));
        while self.tasks.try_join_next().is_some() {}
        for message in waiting {
            self.send(peer, None, message);
        }
        notices
    }

    fn dial(&mut self, peer: NodeId, address: &str, waiting: Vec<Message>) {
        self.links += 1;
        let (dial, address) = (self.links, address.to_owned());
        self.entries.insert(peer, Entry::Dialling { dial, address: address.clone(), waiting });
        let (transport, events) = (self.transport.clone(), self.events.clone());
        self.tasks.spawn(async move {
            let event = match connect(transport.as_ref(), peer, &address).await {
                Ok(link) => PeerEvent::Connected { link, dialled: Some(address) },
                Err(reason) => PeerEvent::DialFailed { peer, dial, reason },
            };
            let _ = events.send(event).await;
        });
    }

    fn give_up(&mut self, peer: NodeId, reason: &str) {
        if let Some(Entry::Live { line, spare }) = self.entries.remove(&peer) {
            end(&line, spare, &CloseReason::new(RULES_BROKEN, reason));
        }
        self.unreachable.push((peer, reason.to_owned()));
    }
}

/// Hands on what a peer says until the link ends.
async fn read(mut receiver: LinkReceiver, link: u64, events: mpsc::Sender<PeerEvent>) {
    let peer = receiver.peer();
    let reason = loop {
        let message = match receiver.recv().await {
            Ok(bytes) => match Message::decode(bytes) {
                Ok(message) => message,
                Err(error) => break error.to_string(),
            },
            Err(error) => break error.to_string(),
        };
        if events.send(PeerEvent::Message { peer, message }).await.is_err() {
            return;
        }
    };
    // The owner is gone only when it is stopping.
    let _ = events.send(PeerEvent::Ended { peer, link, reason }).await;
}

fn end(line: &Line, spare: Option<Line>, reason: &CloseReason) {
    line.sender.close(reason.clone());
    if let Some(spare) = spare {
        spare.sender.close(reason.clone());
    }
}

async fn accept(transport: Arc<dyn Transport>, events: mpsc::Sender<PeerEvent>) {
    while let Some(attempt) = transport.accept().await {
        match attempt {
            Ok(link) => {
                if events.send(PeerEvent::Connected { link, dialled: None }).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "an incoming link failed"),
        }
    }
}

async fn connect(transport: &dyn Transport, peer: NodeId, address: &str) -> Result<Link, String> {
    let resolved: Vec<SocketAddr> =
        lookup_host(address).await.map_err(|error| format!("{address}: {error}"))?.collect();
    let mut last = format!("{address} has no address");
    for address in resolved {
        match transport.connect(&PeerAddress { id: peer, address }).await {
            Ok(link) => return Ok(link),
            Err(error) => last = format!("{address}: {error}"),
        }
    }
    Err(last)
}

fn to_transport(message: Message) -> transport::Message {
    let head = Bytes::from(message.encode());
    match message {
        Message::Step(step) => transport::Message::from_parts([head, step.body]),
        Message::Piece(piece) => transport::Message::from_parts([head, piece.body]),
        Message::Shown(shown) => transport::Message::from_parts([head, shown.body]),
        Message::Padding(padding) => transport::Message::from_parts([head, padding.body]),
        _ => head.into(),
    }
}
