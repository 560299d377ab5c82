//! An endpoint of the simulated network.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::pipe::{Connection, Incoming, Outgoing, Pipe};
use super::{Inner, Place};
use crate::backlog::{self, AcceptQueue, Backlog};
use crate::link::{self, Opening};
use crate::transport::{AcceptError, BoxFuture, ConnectError, Transport};
use crate::{Limits, Link, LinkError, NodeId, PeerAddress};

/// A node of a [`Network`](super::Network); dial and accept as over QUIC.
#[derive(Debug)]
pub struct Endpoint {
    network: Arc<Inner>,
    place: Place,
    host: Host,
    accepted: AcceptQueue,
    /// Its receivers live in the endpoint's links, which end when it is dropped.
    closing: watch::Sender<bool>,
}

/// What an endpoint brings to each of its links.
#[derive(Clone, Debug)]
struct Host {
    limits: Arc<Limits>,
    slots: Arc<Semaphore>,
}

/// Where incoming peers enter a node.
#[derive(Clone, Debug)]
pub(super) struct Door {
    host: Host,
    backlog: Backlog,
    closing: watch::Receiver<bool>,
}

/// The two directions of a new connection, as one side sees them.
struct Side {
    reads: Arc<Pipe>,
    writes: Arc<Pipe>,
}

impl Side {
    fn start(
        self,
        peer: NodeId,
        host: &Host,
        closing: watch::Receiver<bool>,
        slot: OwnedSemaphorePermit,
    ) -> Opening {
        let incoming = Incoming { pipe: self.reads, healing: None };
        let streams = (incoming, Outgoing(self.writes.clone()));
        link::start(peer, &host.limits, streams, Connection(self.writes), closing, slot)
    }
}

impl Endpoint {
    pub(super) fn new(network: Arc<Inner>, place: Place, limits: Limits) -> (Self, Door) {
        let (backlog, accepted) = backlog::new(limits.max_pending_handshakes);
        let slots = Arc::new(Semaphore::new(limits.max_links));
        let host = Host { limits: Arc::new(limits), slots };
        let closing = watch::Sender::new(false);
        let door = Door { host: host.clone(), backlog, closing: closing.subscribe() };
        (Self { network, place, host, accepted, closing }, door)
    }

    async fn dial(&self, peer: &PeerAddress) -> Result<Link, ConnectError> {
        if *self.closing.borrow() || self.network.is_dead(self.place) {
            return Err(ConnectError::Closed);
        }
        let slot = self.host.slots.clone().try_acquire_owned().map_err(|_| ConnectError::TooManyLinks)?;
        let (there, door) = self.reach(peer.address).await;
        let [out, back] =
            [(self.place, there), (there, self.place)].map(|(a, b)| self.network.conditions(a.id, b.id));
        tokio::time::sleep(out.delay + back.delay).await;
        if there.id != peer.id {
            return Err(ConnectError::WrongPeer { expected: peer.id, found: there.id });
        }
        let [rng_out, rng_back] = self.network.link_randomness();
        let (here_limit, there_limit) =
            (self.host.limits.dead_peer_timeout, door.host.limits.dead_peer_timeout);
        let out = Pipe::new(self.network.clone(), (self.place, there), there_limit, rng_out);
        let back = Pipe::new(self.network.clone(), (there, self.place), here_limit, rng_back);
        door.enter(self.place, Side { reads: out.clone(), writes: back.clone() })?;
        let side = Side { reads: back, writes: out };
        let opening = side.start(peer.id, &self.host, self.closing.subscribe(), slot);
        opening.opened().await.map_err(|error| match error {
            LinkError::PeerLost(cause) => ConnectError::Refused(cause),
            error => ConnectError::Link(error),
        })
    }

    /// Waits until somebody at the address can be reached.
    async fn reach(&self, address: SocketAddr) -> (Place, Door) {
        let mut changes = self.network.changes.subscribe();
        loop {
            if let Some((there, door)) = self.network.host(address)
                && self.network.cut_since(self.place, there).is_none()
            {
                return (there, door);
            }
            // The network outlives this borrow of it, so the channel is open.
            let _ = changes.changed().await;
        }
    }
}

impl Door {
    /// Starts the incoming side of a link.
    fn enter(&self, from: Place, side: Side) -> Result<(), ConnectError> {
        let permits = (self.backlog.admit(), self.host.slots.clone().try_acquire_owned());
        let (Some(pending), Ok(slot)) = permits else {
            return Err(ConnectError::Refused("no room".into()));
        };
        let (backlog, host) = (self.backlog.clone(), self.host.clone());
        let opening = side.start(from.id, &host, self.closing.clone(), slot);
        tokio::spawn(async move {
            let opened = opening.opened().await;
            let link = opened.map_err(|error| AcceptError::Link { from: from.address, error });
            backlog.report(link, pending).await;
        });
        Ok(())
    }
}

impl Transport for Endpoint {
    fn id(&self) -> NodeId {
        self.place.id
    }

    fn local_address(&self) -> SocketAddr {
        self.place.address
    }

    fn connect<'a>(&'a self, peer: &'a PeerAddress) -> BoxFuture<'a, Result<Link, ConnectError>> {
        Box::pin(async move {
            let dial = tokio::time::timeout(self.host.limits.connect_timeout, self.dial(peer));
            dial.await.unwrap_or(Err(ConnectError::TimedOut))
        })
    }

    fn accept(&self) -> BoxFuture<'_, Option<Result<Link, AcceptError>>> {
        Box::pin(self.accepted.next(self.closing.subscribe()))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.network.leave(self.place);
            self.closing.send_replace(true);
            backlog::drained(&self.host.slots, &self.host.limits).await;
        })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.network.leave(self.place);
    }
}
