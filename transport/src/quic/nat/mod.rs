//! Links between nodes behind routers that translate addresses.
//!
//! Nodes have links to a gateway that can be reached. It tells each where it sees it, and introduces two of them
//! on request: both then send to each other at the same time (`punch`), each from the socket of its endpoint, and
//! the one that asked dials the address at which that worked. Where it does not, QUIC's datagrams go through the
//! gateway (`relay`). In each case the connection is QUIC's between the two, with the identities that it always has.
//!
//! - `note`: what nodes and gateway say to each other, on streams of their link's connection
//! - `packet`: datagrams beside QUIC's; `socket` tells them apart
//! - `client`, `server`: the two sides
//! - `paths`: introductions on a node, and addresses that stand for relayed paths

mod bucket;
mod client;
mod note;
mod packet;
mod paths;
mod punch;
mod quota;
mod relay;
mod server;
mod shorten;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use quinn::{AsyncUdpSocket, Connection, ConnectionError, ReadToEndError};

use super::Side;
use crate::{NodeId, PathKind};
use client::{Client, Introduction};
use note::{MAX_NOTE_BYTES, Note};
pub(super) use paths::is_virtual;
use relay::Relay;
use server::Server;
use socket::{Socket, canonical};

/// Notes on their way at once, each way.
const MAX_NOTES: u32 = 4;
/// How long a note may take.
const NOTE_SENT: Duration = Duration::from_secs(2);

/// Whether the address that others see depends on whom a node sends to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mapping {
    /// Not found out.
    #[default]
    Unknown,
    /// One for all destinations: a cone, or no NAT.
    Independent,
    /// One for each destination: a symmetric NAT.
    Dependent,
}

/// What a node's router lets in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// Not found out.
    #[default]
    Unknown,
    /// Also what comes from ports that were not sent to.
    Open,
    /// Only what comes from an address and port that was sent to.
    Restricted,
}

/// How a node can be reached, as its gateways show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reachability {
    /// Where a gateway sees it.
    pub observed: Option<SocketAddr>,
    /// Whether that is another address than its own.
    pub is_translated: bool,
    /// Whether others see it elsewhere.
    pub mapping: Mapping,
    /// What gets in.
    pub filtering: Filtering,
}

/// What a gateway relays and has relayed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelayStatus {
    /// Most bytes in a second; none is relayed if 0.
    pub bytes_per_s: u64,
    /// Bytes sent on, once each; they were received as well.
    pub relayed_bytes: u64,
    /// Bytes that were over the limit.
    pub dropped_bytes: u64,
    /// Whose they were, of those with traffic in the last seconds.
    pub pairs: Vec<RelayedPair>,
}

/// Two nodes whose link goes through the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayedPair {
    /// The one that dialled, and the other.
    pub nodes: [NodeId; 2],
    /// Bytes sent on between them.
    pub bytes: u64,
}

/// Looks at an endpoint's place in the network, as long as there is one.
#[derive(Clone, Debug)]
pub struct NatView(Weak<Nat>);

impl NatView {
    /// How the endpoint can be reached.
    pub fn reachability(&self) -> Reachability {
        self.0.upgrade().map(|nat| nat.client.reachability(nat.local_address)).unwrap_or_default()
    }

    /// What it relays; nothing, of an endpoint that does not introduce.
    pub fn relay(&self) -> RelayStatus {
        let nat = self.0.upgrade();
        let status = nat.and_then(|nat| nat.socket.relay().map(|relay| relay.status(Instant::now())));
        status.unwrap_or_default()
    }
}

/// What an endpoint has for NATs.
#[derive(Debug)]
pub(super) struct Nat {
    socket: Arc<Socket>,
    local_address: SocketAddr,
    client: Client,
    server: OnceLock<Server>,
}

impl Nat {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>) -> io::Result<Self> {
        let socket = Arc::new(Socket::new(socket)?);
        let local_address = socket.local_addr()?;
        Ok(Self { socket, local_address, client: Client::new(Instant::now()), server: OnceLock::new() })
    }

    /// What QUIC sends and receives by.
    pub(super) fn socket(&self) -> Arc<dyn AsyncUdpSocket> {
        self.socket.clone()
    }

    pub(super) fn view(self: &Arc<Self>) -> NatView {
        NatView(Arc::downgrade(self))
    }

    /// Has these peers introduce, while there are links to them.
    pub(super) fn meet_through(&self, guides: impl IntoIterator<Item = NodeId>) {
        self.client.want(guides);
    }

    /// Introduces peers to each other from now on, and relays between them: those of `allow`, or all.
    pub(super) fn introduce(&self, relay_bytes_per_s: u64, allow: Option<HashSet<NodeId>>) -> io::Result<()> {
        let again = |_| io::Error::new(io::ErrorKind::AlreadyExists, "it introduces peers already");
        self.server.set(Server::start(self.local_address, allow)?).map_err(again)?;
        self.socket.set_relay(Relay::new(relay_bytes_per_s, Instant::now()));
        Ok(())
    }

    /// By what kind of path a peer came.
    pub(super) fn kind(&self, peer: NodeId, from: SocketAddr) -> PathKind {
        self.socket.paths().kind(peer, canonical(from))
    }

    /// Sees to what is to be said on the connection of a new link.
    /// `address` is where the peer shook hands, which it has thereby shown.
    pub(super) fn attach(
        self: &Arc<Self>,
        (side, address): (Side, SocketAddr),
        peer: NodeId,
        connection: &Connection,
    ) {
        let (nat, connection) = (self.clone(), connection.clone());
        match side {
            _ if is_virtual(address.ip()) => {
                drop(tokio::spawn(shorten::shorten(nat, side, peer, connection)))
            }
            Side::Dialler if self.client.wants(peer) => {
                drop(tokio::spawn(client::follow(nat, peer, connection)))
            }
            Side::Acceptor if self.server.get().is_some_and(|server| server.allows(peer)) => {
                drop(tokio::spawn(server::host(nat, peer, connection, canonical(address))));
            }
            _ => {}
        }
    }

    /// A packet to `address` came to `peer`, and its answer back.
    fn shorten(&self, peer: NodeId, address: SocketAddr) {
        self.socket.paths().shorten(peer, address, Instant::now());
    }

    fn is_short(&self, address: SocketAddr) -> bool {
        self.socket.paths().is_short(address, Instant::now())
    }

    /// By what way what is sent to `address` goes, on a connection that was made by `path`.
    pub(super) fn path_to(&self, address: SocketAddr, path: PathKind) -> PathKind {
        match () {
            () if !is_virtual(address.ip()) => path,
            () if self.is_short(address) => PathKind::Punched,
            () => PathKind::Relayed,
        }
    }

    /// Whether `peer` is to introduce.
    pub(super) fn is_guide(&self, peer: NodeId) -> bool {
        self.client.wants(peer)
    }

    /// Who can introduce `peer`.
    pub(super) fn guides(&self, peer: NodeId) -> Vec<NodeId> {
        self.client.guides(peer)
    }

    /// Has `peer` introduced by `guide`.
    pub(super) async fn ask(&self, guide: NodeId, peer: NodeId) -> Option<Meeting<'_>> {
        let introduction = self.client.ask(guide, peer).await?;
        Some(Meeting { nat: self, introduction })
    }

    /// An address in the family of the socket.
    pub(super) fn native(&self, address: SocketAddr) -> SocketAddr {
        self.socket.native(address)
    }
}

/// A peer to which there may be a way.
pub(super) struct Meeting<'a> {
    nat: &'a Nat,
    introduction: Introduction,
}

impl Meeting<'_> {
    /// Where it can be dialled, once that is found out.
    pub(super) async fn punch(&mut self) -> Option<SocketAddr> {
        self.introduction.punch(self.nat).await
    }

    /// Where it can be dialled through the gateway, if that relays.
    pub(super) fn relayed(&self) -> Option<SocketAddr> {
        self.introduction.relayed()
    }
}

/// The next note of a peer; `Ok(None)` for one that is none, and an error once the connection is over. Not
/// cancel-safe.
async fn read_note(connection: &Connection) -> Result<Option<Note>, ConnectionError> {
    let mut stream = connection.accept_uni().await?;
    match stream.read_to_end(MAX_NOTE_BYTES).await {
        Ok(bytes) => Ok(Note::decode(&bytes)),
        Err(ReadToEndError::TooLong | ReadToEndError::Read(_)) => Ok(None),
    }
}

/// Says something, unless the peer takes it too slowly.
async fn send_note(connection: Connection, note: Note) {
    let send = async {
        let Ok(mut stream) = connection.open_uni().await else { return };
        if stream.write_all(&note.encode()).await.is_ok() {
            // Fails only for a stream that is over.
            let _ = stream.finish();
        }
    };
    if tokio::time::timeout(NOTE_SENT, send).await.is_err() {
        tracing::debug!("a peer takes no notes");
    }
}

impl Mapping {
    fn code(self) -> u8 {
        self as u8
    }

    fn of_code(code: u8) -> Option<Self> {
        [Self::Unknown, Self::Independent, Self::Dependent].into_iter().find(|mapping| mapping.code() == code)
    }
}

impl Filtering {
    fn code(self) -> u8 {
        self as u8
    }

    fn of_code(code: u8) -> Option<Self> {
        [Self::Unknown, Self::Open, Self::Restricted].into_iter().find(|filtering| filtering.code() == code)
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Independent => "the same for all",
            Self::Dependent => "another for each",
        })
    }
}

impl fmt::Display for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Open => "by host or none",
            Self::Restricted => "by port",
        })
    }
}
