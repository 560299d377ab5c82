//! Links over QUIC: one connection and one bidirectional stream per link.

mod accept;
mod dial;
pub mod nat;
pub(crate) mod stream;
#[cfg(test)]
mod tests;
pub(crate) mod tls;

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Once};
use std::time::Duration;

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig};
use quinn::{AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig};
use quinn::{AsyncUdpSocket, RecvStream, Runtime, SendStream, TransportConfig, VarInt};
use rustls::sign::CertifiedKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::backlog::{self, AcceptQueue};
use crate::limits::{Congestion, LimitsError};
use crate::link::{self, Link, Opening};
use crate::rdma::Rack;
use crate::transport::{AcceptError, BoxFuture, ConnectError, Transport};
use crate::{CarrierKind, Identity, Limits, LinkError, NodeId, PathKind, PeerAddress};
use nat::{Nat, NatView};
use stream::{Connection, GONE, Incoming, Outgoing};

/// What may be in flight before anything was acknowledged: one decode message of a large
/// batch, so that the first steps of a link need one round trip each.
const INITIAL_CONGESTION_BYTES: u64 = 128 << 10;
/// Packets that one acknowledgement answers, as each costs both sides about as much as a packet of data.
const ACK_PACKETS: u32 = 10;
/// However long a peer may be silent: relays and routers forget paths on which nothing passes.
const MAX_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Socket buffers asked of the kernel, which may give less; small ones lose bursts.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Required by the API of QUIC; ids, not names, are verified, and it is not sent.
pub(crate) const SERVER_NAME: &str = "node.invalid";

/// A UDP socket that dials and accepts links.
///
/// Dropping it ends its links at once; [`Endpoint::close`] does so in good order.
#[derive(Debug)]
pub struct Endpoint {
    id: NodeId,
    local_address: SocketAddr,
    key: Arc<CertifiedKey>,
    client_transport: Arc<TransportConfig>,
    quinn: quinn::Endpoint,
    host: Arc<Host>,
    accepted: AcceptQueue,
    closing: watch::Sender<bool>,
}

/// Which end of a connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Dialler,
    Acceptor,
}

/// What an endpoint brings to each of its links.
#[derive(Debug)]
struct Host {
    limits: Limits,
    /// One permit per link that may still be made.
    slots: Arc<Semaphore>,
    rack: Option<Rack>,
    nat: Arc<Nat>,
}

impl Host {
    /// The protocols that this endpoint speaks, best first.
    fn protocols(&self) -> Vec<Vec<u8>> {
        let rdma = self.rack.iter().map(|_| tls::ALPN_RDMA);
        rdma.chain([tls::ALPN]).map(<[u8]>::to_vec).collect()
    }
}

impl Host {
    /// Starts a link on the best carrier that both ends have. `address` is where the peer shook hands.
    async fn start(
        &self,
        (side, path, address): (Side, PathKind, SocketAddr),
        peer: NodeId,
        connection: quinn::Connection,
        (mut send, mut recv): (SendStream, RecvStream),
        (closing, slot): (watch::Receiver<bool>, OwnedSemaphorePermit),
    ) -> Result<Opening, LinkError> {
        if let Some(rack) = &self.rack
            && negotiated(&connection).is_some_and(|protocol| protocol == tls::ALPN_RDMA)
        {
            let whom = (peer, &self.limits);
            let moved = rack.upgrade(side, whom, &connection, (&mut recv, &mut send)).await?;
            if let Some((streams, carrier)) = moved {
                return Ok(link::start(peer, &self.limits, streams, carrier, closing, slot));
            }
        }
        let streams = (Incoming(recv), Outgoing(send));
        self.nat.attach((side, address), peer, &connection);
        let carrier = Connection { quinn: connection, path, nat: self.nat.clone() };
        Ok(link::start(peer, &self.limits, streams, carrier, closing, slot))
    }
}

/// Why an endpoint could not be made; the fault is local.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The limits cannot work.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The socket could not be bound.
    #[error("cannot bind {address}: {source}")]
    Socket {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS cannot use the identity.
    #[error("identity: {0}")]
    Identity(#[from] rustls::Error),
    /// There is no tokio runtime with I/O and time around the caller.
    #[error("endpoints need a tokio runtime")]
    Runtime,
}

impl Endpoint {
    /// Opens an endpoint on `address`; port 0 lets the system choose. Call it inside a tokio
    /// runtime.
    pub fn bind(identity: &Identity, address: SocketAddr, limits: Limits) -> Result<Self, BindError> {
        Self::open(identity, address, limits, |host, _| host)
    }

    /// Opens an endpoint as [`Endpoint::bind`] does, whose links move to RDMA where both ends have a device
    /// and are built for it. Without a device it says so and uses QUIC.
    pub fn bind_with_rdma(
        identity: &Identity,
        address: SocketAddr,
        limits: Limits,
    ) -> Result<Self, BindError> {
        Self::open(identity, address, limits, |host, address| match Rack::open(identity, address) {
            Ok(rack) => {
                tracing::info!(devices = rack.devices().join(", "), "links move to RDMA where the peer can");
                Host { rack: Some(rack), ..host }
            }
            Err(reason) => {
                tracing::info!(%reason, "links stay on QUIC");
                host
            }
        })
    }

    fn open(
        identity: &Identity,
        address: SocketAddr,
        limits: Limits,
        equip: impl FnOnce(Host, SocketAddr) -> Host,
    ) -> Result<Self, BindError> {
        limits.validate()?;
        tokio::runtime::Handle::try_current().map_err(|_| BindError::Runtime)?;
        let socket_error = |source| BindError::Socket { address, source };
        let socket = open_socket(address).and_then(|socket| quinn::TokioRuntime.wrap_udp_socket(socket));
        Self::over(socket.map_err(socket_error)?, identity, address, limits, equip)
    }

    fn over(
        socket: Arc<dyn AsyncUdpSocket>,
        identity: &Identity,
        address: SocketAddr,
        limits: Limits,
        equip: impl FnOnce(Host, SocketAddr) -> Host,
    ) -> Result<Self, BindError> {
        let socket_error = |source| BindError::Socket { address, source };
        let local_address = socket.local_addr().map_err(socket_error)?;
        let slots = Arc::new(Semaphore::new(limits.max_links));
        let nat = Arc::new(Nat::new(socket).map_err(socket_error)?);
        let socket = nat.socket();
        let host = Arc::new(equip(Host { limits, slots, rack: None, nat }, local_address));

        let key = tls::certified_key(identity)?;
        let tls = tls::server_config(key.clone(), host.protocols())?;
        let mut server = ServerConfig::with_crypto(Arc::new(tls));
        server
            .transport_config(Arc::new(transport_config(&host.limits, 1)))
            .max_incoming(host.limits.max_pending_handshakes)
            .migration(true);
        let mut config = EndpointConfig::default();
        config.max_udp_payload_size(host.limits.max_mtu_bytes).map_err(|_| LimitsError::Mtu)?;
        // The bit tells its packets from ours.
        config.grease_quic_bit(false);
        let runtime = Arc::new(quinn::TokioRuntime);
        let quinn = quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)
            .map_err(socket_error)?;

        let closing = watch::Sender::new(false);
        let accepted = accept::start(quinn.clone(), host.clone(), closing.subscribe());
        let client_transport = Arc::new(transport_config(&host.limits, 0));
        Ok(Self { id: identity.id(), local_address, key, client_transport, quinn, host, accepted, closing })
    }

    /// Has these peers introduce it to nodes that cannot be dialled at their address, for as long as it has links
    /// to them that it dialled.
    pub fn meet_through(&self, guides: impl IntoIterator<Item = NodeId>) {
        self.host.nat.meet_through(guides);
    }

    /// Tells peers from now on where it sees them, introduces them to each other on request, and relays up to
    /// `relay_bytes_per_s` between those that find no other way; 0 turns that off. Peers that are not in `allow`, if
    /// that is given, get nothing of it. It listens on a second port, the next if that is free; an error if there is
    /// none, or when it is called again.
    pub fn introduce_peers(&self, relay_bytes_per_s: u64, allow: Option<HashSet<NodeId>>) -> io::Result<()> {
        self.host.nat.introduce(relay_bytes_per_s, allow)
    }

    /// Its place in the network, now and later.
    pub fn nat(&self) -> NatView {
        self.host.nat.view()
    }

    /// What its links may be carried by, for people.
    pub fn carriers(&self) -> String {
        match &self.host.rack {
            Some(rack) => format!("QUIC, RDMA on {}", rack.devices().join(", ")),
            None => CarrierKind::Quic.to_string(),
        }
    }
}

impl Transport for Endpoint {
    fn id(&self) -> NodeId {
        self.id
    }

    fn local_address(&self) -> SocketAddr {
        self.local_address
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
            self.closing.send_replace(true);
            backlog::drained(&self.host.slots, &self.host.limits).await;
            self.quinn.close(GONE, b"");
            // The last packets leave; peers that miss them find out by silence.
            let _ = tokio::time::timeout(Duration::from_millis(200), self.quinn.wait_idle()).await;
        })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.quinn.close(GONE, b"");
    }
}

/// The protocol that both ends chose.
fn negotiated(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?;
    data.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}

fn open_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    let options = socket2::SockRef::from(&socket);
    // Where the system refuses outright, what it gives says so as well as where it gives less.
    let _ = options.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = options.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    let given = options.recv_buffer_size()?.min(options.send_buffer_size()?);
    static WARNED: Once = Once::new();
    if given < SOCKET_BUFFER_BYTES {
        WARNED.call_once(|| {
            tracing::warn!(
                given_bytes = given,
                wanted_bytes = SOCKET_BUFFER_BYTES,
                "the system gives sockets small buffers, which lose bursts: raise net.core.rmem_max and \
                 net.core.wmem_max"
            );
        });
    }
    Ok(socket)
}

/// `streams`: how many streams the other side may open.
pub(crate) fn transport_config(limits: &Limits, streams: u8) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(limits.max_mtu_bytes);
    let congestion: Arc<dyn ControllerFactory + Send + Sync> = match limits.congestion {
        Congestion::Cubic => {
            let mut cubic = CubicConfig::default();
            cubic.initial_window(INITIAL_CONGESTION_BYTES);
            Arc::new(cubic)
        }
        Congestion::Bbr => {
            let mut bbr = BbrConfig::default();
            bbr.initial_window(INITIAL_CONGESTION_BYTES);
            Arc::new(bbr)
        }
    };
    // The idle timer restarts with the first packet sent after the last one received, which a
    // silent link sends a keep-alive later: both together are the dead-peer timeout.
    let keep_alive = (limits.dead_peer_timeout / 4).min(MAX_KEEP_ALIVE);
    let idle_ms = (limits.dead_peer_timeout - keep_alive).as_millis();
    let idle = VarInt::from_u32(u32::try_from(idle_ms).unwrap_or(u32::MAX));
    let window = VarInt::from_u32(limits.path_window_bytes());
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_PACKETS));
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(idle)))
        .keep_alive_interval(Some(keep_alive))
        .max_concurrent_bidi_streams(VarInt::from(streams))
        .max_concurrent_uni_streams(VarInt::from(0u8))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(window)
        .receive_window(window)
        .send_window(window.into_inner())
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(congestion);
    config
}
