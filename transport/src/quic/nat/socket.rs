//! The socket of an endpoint: what is QUIC passes; what is ours ([`super::packet`]) is answered, relayed, or handed
//! to QUIC as coming over a relayed path.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::packet::{Packet, RELAY_HEADER_BYTES, is_packet};
use super::paths::{Paths, Way, is_virtual};
use super::relay::Relay;

/// Relayed datagrams that wait for QUIC. They come out of one read of the socket, and go before the next.
const MAX_ARRIVED: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Socket {
    inner: Arc<dyn AsyncUdpSocket>,
    is_v6: bool,
    // QUIC calls into here with locks of its own held: none of these is held while QUIC is called.
    paths: Mutex<Paths>,
    relay: OnceLock<Mutex<Relay>>,
    arrived: Mutex<VecDeque<Arrived>>,
}

#[derive(Debug)]
struct Arrived {
    from: SocketAddr,
    ecn: Option<EcnCodepoint>,
    datagram: Vec<u8>,
}

impl Socket {
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>) -> io::Result<Self> {
        let is_v6 = inner.local_addr()?.is_ipv6();
        let (paths, arrived) = (Mutex::default(), Mutex::default());
        Ok(Self { inner, is_v6, paths, relay: OnceLock::new(), arrived })
    }

    pub(super) fn paths(&self) -> MutexGuard<'_, Paths> {
        self.paths.lock().expect("paths do not panic while they are locked")
    }

    /// Relays from now on. Only the first call counts: there is one [`super::server::Server`].
    pub(super) fn set_relay(&self, relay: Relay) {
        let _ = self.relay.set(Mutex::new(relay));
    }

    pub(super) fn relay(&self) -> Option<MutexGuard<'_, Relay>> {
        self.relay.get().map(|relay| relay.lock().expect("a relay does not panic while it is locked"))
    }

    /// Sends a datagram now or not at all, as networks do.
    pub(super) fn send(&self, to: SocketAddr, datagram: &[u8]) {
        self.send_from(None, to, datagram);
    }

    /// The same from one of this host's addresses.
    pub(super) fn send_from(&self, src_ip: Option<IpAddr>, to: SocketAddr, datagram: &[u8]) {
        let _ = self.transmit((src_ip, to), None, datagram);
    }

    fn transmit(
        &self,
        (src_ip, to): (Option<IpAddr>, SocketAddr),
        ecn: Option<EcnCodepoint>,
        contents: &[u8],
    ) -> io::Result<()> {
        let destination = self.native(to);
        self.inner.try_send(&Transmit { destination, ecn, contents, segment_size: None, src_ip })
    }

    /// An address as sockets of this family, and QUIC over them, write it.
    pub(super) fn native(&self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(ip) if self.is_v6 => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
            _ => address,
        }
    }

    /// Takes what is ours out of what was received; the rest, and how many buffers it fills, stays.
    fn sift(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta], count: usize) -> usize {
        let mut kept = 0;
        for index in 0..count {
            let RecvMeta { len, stride, ecn, .. } = meta[index];
            let from = canonical(meta[index].addr);
            let buffer = &mut bufs[index];
            let (mut at, mut end) = (0, 0);
            while at < len {
                let next = (at + stride.max(1)).min(len);
                if is_packet(&buffer[at..next]) {
                    self.take(from, ecn, &buffer[at..next]);
                } else {
                    if end < at {
                        buffer.copy_within(at..next, end);
                    }
                    end += next - at;
                }
                at = next;
            }
            if end > 0 && !is_virtual(from.ip()) {
                meta[index].len = end;
                bufs.swap(kept, index);
                meta.swap(kept, index);
                kept += 1;
            }
        }
        kept
    }

    fn take(&self, from: SocketAddr, ecn: Option<EcnCodepoint>, datagram: &[u8]) {
        let now = Instant::now();
        match Packet::decode(datagram) {
            Some(Packet::Probe { token, id }) => {
                if self.paths().probed(token, from, now) {
                    self.send(from, &Packet::Answer { token, id }.encode());
                }
            }
            Some(Packet::Answer { token, id }) => self.paths().answered(token, id, from),
            Some(Packet::Relayed { token, datagram: inside }) => {
                let path = self.paths().relayed(token, from, now);
                if let Some(from) = path {
                    self.arrive(Arrived { from, ecn, datagram: inside.to_vec() });
                } else if let Some(to) =
                    self.relay().and_then(|mut relay| relay.forward(token, from, datagram.len(), now))
                {
                    // What the system does not take is lost, as on any path.
                    let _ = self.transmit((to.via, to.address), ecn, datagram);
                }
            }
            Some(Packet::MirrorAnswer { token, seen }) => self.paths().mirrored(token, from, Some(seen)),
            Some(Packet::MirrorPing { token }) => self.paths().mirrored(token, from, None),
            Some(Packet::MirrorAsk { .. }) | None => {}
        }
    }

    fn arrived(&self) -> MutexGuard<'_, VecDeque<Arrived>> {
        self.arrived.lock().expect("nothing panics while it is locked")
    }

    fn arrive(&self, arrived: Arrived) {
        let mut queue = self.arrived();
        if queue.len() < MAX_ARRIVED {
            queue.push_back(arrived);
        }
    }

    /// Hands relayed datagrams to QUIC; how many.
    fn deliver(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut queue = self.arrived();
        let mut filled = 0;
        while filled < bufs.len().min(meta.len()) {
            let Some(Arrived { from, ecn, datagram }) = queue.pop_front() else { break };
            let Some(room) = bufs[filled].get_mut(..datagram.len()) else { continue };
            room.copy_from_slice(&datagram);
            let len = datagram.len();
            meta[filled] = RecvMeta { addr: self.native(from), len, stride: len, ecn, dst_ip: None };
            filled += 1;
        }
        filled
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let to = canonical(transmit.destination);
        if !is_virtual(to.ip()) {
            return self.inner.try_send(transmit);
        }
        let way = self.paths().way(to, Instant::now());
        // A path that is forgotten swallows what is sent, as one that is broken does.
        let Some(Way { token, to, copy }) = way else { return Ok(()) };
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let wrap = |datagram| Packet::Relayed { token, datagram }.encode();
        let contents: Vec<u8> = transmit.contents.chunks(segment).flat_map(wrap).collect();
        let send = |to| {
            let destination = self.native(to);
            let segment_size = transmit.segment_size.map(|size| size + RELAY_HEADER_BYTES);
            let (ecn, contents) = (transmit.ecn, &contents[..]);
            self.inner.try_send(&Transmit { destination, ecn, contents, segment_size, src_ip: None })
        };
        match send(to) {
            // QUIC comes again with all of it.
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        if let Some(copy) = copy {
            let _ = send(copy);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let delivered = self.deliver(bufs, meta);
            if delivered > 0 {
                return Poll::Ready(Ok(delivered));
            }
            let received = ready!(self.inner.poll_recv(cx, bufs, meta))?;
            let kept = self.sift(bufs, meta, received);
            if kept > 0 {
                return Poll::Ready(Ok(kept));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }
}

/// An address as it is compared here: IPv4 is never written as IPv6.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
