//! What every kind of endpoint offers.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use crate::{Link, LinkError, NodeId, PeerAddress};

/// A boxed future: what keeps [`Transport`] usable as `dyn Transport`. Links are made rarely,
/// so the box costs nothing that matters.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An endpoint: it dials peers and accepts them. Dropping it ends all of its links at once,
/// undelivered messages included; [`Transport::close`] does so in good order.
pub trait Transport: Send + Sync + 'static {
    /// The id that peers see.
    fn id(&self) -> NodeId;

    /// Where the endpoint listens.
    fn local_address(&self) -> SocketAddr;

    /// Dials a peer and waits until the link is usable. Cancel-safe: a dropped call leaves no
    /// link behind.
    fn connect<'a>(&'a self, peer: &'a PeerAddress) -> BoxFuture<'a, Result<Link, ConnectError>>;

    /// The next incoming link; an error is one peer's failed attempt, and `None` means that
    /// the endpoint is closed. Cancel-safe.
    fn accept(&self) -> BoxFuture<'_, Option<Result<Link, AcceptError>>>;

    /// Closes every link, waits for their drains (at most the close timeout), and stops.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Why a dial failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Nothing usable answered in time (network, or the peer is not there).
    #[error("no answer in time")]
    TimedOut,
    /// Another node answered: the address is stale, or someone poses as the peer.
    #[error("expected node {expected}, found {found}")]
    WrongPeer {
        /// Whom the address named.
        expected: NodeId,
        /// Whose key answered.
        found: NodeId,
    },
    /// The peer refused the connection, for lack of room or of trust.
    #[error("refused by the peer: {0}")]
    Refused(String),
    /// The connection was made but the link was not.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// As many links as the limits allow are open (local).
    #[error("the limit of open links is reached")]
    TooManyLinks,
    /// This endpoint is closed (local).
    #[error("the endpoint is closed")]
    Closed,
    /// The address cannot be dialled from this endpoint (local).
    #[error("cannot dial: {0}")]
    Address(String),
}

/// Why an incoming peer did not become a link; the endpoint goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// The peer was too slow.
    #[error("{from}: the handshake took too long")]
    TimedOut {
        /// The peer's address.
        from: SocketAddr,
    },
    /// The peer could not prove an id, or the connection failed.
    #[error("{from}: {cause}")]
    Handshake {
        /// The peer's address.
        from: SocketAddr,
        /// What went wrong, for people.
        cause: String,
    },
    /// The link's own handshake failed.
    #[error("{from}: {error}")]
    Link {
        /// The peer's address.
        from: SocketAddr,
        /// How it failed.
        error: LinkError,
    },
}
