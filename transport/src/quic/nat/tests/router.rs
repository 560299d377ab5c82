//! A router that translates addresses, as the socket of an endpoint behind it: real sockets on loopback stand for
//! its ports, and a rule says which it uses and what it lets in.

use std::collections::HashSet;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No router.
    Open,
    FullCone,
    AddressRestricted,
    PortRestricted,
    Symmetric,
}

#[derive(Debug)]
pub(super) struct Router {
    kind: Mutex<Kind>,
    /// Its public host.
    host: Ipv4Addr,
    /// What the endpoint believes to be its address.
    inside: SocketAddr,
    ports: Mutex<Ports>,
}

#[derive(Debug, Default)]
struct Ports {
    /// Hosts that are neither sent to nor heard.
    shut: HashSet<IpAddr>,
    open: Vec<Port>,
    reader: Option<Waker>,
}

#[derive(Debug)]
struct Port {
    socket: UdpSocket,
    /// The same, which needs not be told first that it is writable.
    sender: std::net::UdpSocket,
    /// The only destination of a symmetric NAT's port.
    towards: Option<SocketAddr>,
    contacted: HashSet<SocketAddr>,
    /// What is sent from here has a forged sender: nothing that comes here reaches the endpoint.
    is_forged: bool,
}

impl Router {
    /// `number` tells routers of a test apart.
    pub(super) fn new(kind: Kind, number: u8) -> Arc<Self> {
        let host = Ipv4Addr::new(127, 0, 1, number);
        let mut ports = Ports::default();
        let mut inside = SocketAddr::from(([10, 77, number, 2], 4100));
        if kind == Kind::Open {
            let port = Port::new(host, None);
            inside = port.socket.local_addr().unwrap();
            ports.open.push(port);
        }
        Arc::new(Self { kind: Mutex::new(kind), host, inside, ports: Mutex::new(ports) })
    }

    /// From now on the endpoint's packets seem to come from another host, which does not hear what is sent there
    /// until [`Router::moved`]; its address.
    pub(super) fn forge(&self, number: u8) -> SocketAddr {
        assert_eq!(self.kind(), Kind::Open);
        let port = Port { is_forged: true, ..Port::new(Ipv4Addr::new(127, 0, 2, number), None) };
        let address = port.socket.local_addr().unwrap();
        let mut ports = self.ports.lock().unwrap();
        ports.open.insert(0, port);
        ports.reader.take().into_iter().for_each(Waker::wake);
        address
    }

    /// The endpoint is where its packets come from.
    pub(super) fn moved(&self) {
        self.ports.lock().unwrap().open.iter_mut().for_each(|port| port.is_forged = false);
    }

    fn kind(&self) -> Kind {
        *self.kind.lock().unwrap()
    }

    /// Another router is there, with other ports.
    pub(super) fn replace(&self, kind: Kind) {
        *self.kind.lock().unwrap() = kind;
        self.ports.lock().unwrap().open.clear();
    }

    /// The public host of the router.
    pub(super) fn host(&self) -> IpAddr {
        self.host.into()
    }

    /// Lets nothing through to or from a host.
    pub(super) fn shut(&self, host: IpAddr) {
        self.ports.lock().unwrap().shut.insert(host);
    }

    /// Nothing is shut any more.
    pub(super) fn open_up(&self) {
        self.ports.lock().unwrap().shut.clear();
    }

    fn send(&self, to: SocketAddr, datagram: &[u8]) {
        // There is nothing but loopback.
        if !to.ip().is_loopback() {
            return;
        }
        let towards = (self.kind() == Kind::Symmetric).then_some(to);
        let mut ports = self.ports.lock().unwrap();
        if ports.shut.contains(&to.ip()) {
            return;
        }
        let found = ports.open.iter().position(|port| port.towards == towards);
        let index = found.unwrap_or_else(|| {
            ports.open.push(Port::new(self.host, towards));
            // It has one more to read from.
            ports.reader.take().into_iter().for_each(Waker::wake);
            ports.open.len() - 1
        });
        let port = &mut ports.open[index];
        port.contacted.insert(to);
        let _ = port.sender.send_to(datagram, to);
    }

    fn lets_in(&self, port: &Port, from: SocketAddr) -> bool {
        match self.kind() {
            _ if port.is_forged => false,
            Kind::Open | Kind::FullCone => true,
            Kind::AddressRestricted => port.contacted.iter().any(|to| to.ip() == from.ip()),
            Kind::PortRestricted | Kind::Symmetric => port.contacted.contains(&from),
        }
    }
}

impl Port {
    fn new(host: Ipv4Addr, towards: Option<SocketAddr>) -> Self {
        let socket = std::net::UdpSocket::bind((host, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let sender = socket.try_clone().unwrap();
        let socket = UdpSocket::from_std(socket).unwrap();
        Self { socket, sender, towards, contacted: HashSet::new(), is_forged: false }
    }
}

impl AsyncUdpSocket for Router {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.send(transmit.destination, transmit.contents);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut ports = self.ports.lock().unwrap();
        for port in &ports.open {
            let mut buffer = ReadBuf::new(&mut bufs[0]);
            while let Poll::Ready(received) = port.socket.poll_recv_from(cx, &mut buffer) {
                let len = buffer.filled().len();
                if let Ok(addr) = received
                    && self.lets_in(port, addr)
                    && !ports.shut.contains(&addr.ip())
                {
                    meta[0] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                    return Poll::Ready(Ok(1));
                }
                buffer.clear();
            }
        }
        ports.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.inside)
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
