//! Links over RDMA, where both ends have a device: reliable connected queue pairs beside QUIC.
//!
//! A link begins as a QUIC connection between authenticated nodes. Where both offer RDMA, they make a
//! queue pair ([`verbs`]), prove to each other that their keys belong to it ([`agreement`]), and only then
//! open memory to each other: slots, counted by credit ([`flow`]), that carry the same bytes as the QUIC
//! stream would ([`carrier`]). Where one of them cannot, the QUIC stream carries the link.

mod agreement;
mod carrier;
mod flow;
#[cfg(test)]
mod tests;
#[expect(unsafe_code, reason = "calls of C libraries")]
mod verbs;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Timeout, timeout};

use agreement::{ANSWER_BYTES, GRANT_BYTES, Grant, OFFER_BYTES, PROOF_BYTES, Transcript};
use carrier::{Connection, Incoming, Outgoing, SIZES, SLOT_BYTES, SLOTS, Shared};
use verbs::{Listener, QueuePair, Region, Request};

use crate::peer::IdentityError;
use crate::quic::{Side, stream};
use crate::{Identity, Limits, LinkError, NodeId, Violation};

/// The part of the time for a link in which a connection over the fabric has to be made, lest there be none
/// left for QUIC.
const CONNECT_PART: u32 = 3;
/// Code with which the QUIC connection ends when the link has moved.
const MOVED: VarInt = VarInt::from_u32(3);

type Challenge = [u8; 32];

/// What carries a link that moved.
pub(crate) type Moved = ((Incoming, Outgoing), Connection);

/// The RDMA side of an endpoint.
#[derive(Debug)]
pub(crate) struct Rack {
    identity: Identity,
    address: SocketAddr,
    port: u16,
    devices: Vec<String>,
    /// Dials that were answered and have not connected yet, by the challenge they have to show.
    expected: Arc<Mutex<Expected>>,
    listening: JoinHandle<()>,
}

type Expected = HashMap<Challenge, oneshot::Sender<Request>>;

/// Why an endpoint has no RDMA; it uses QUIC.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoRack {
    #[error("this machine has no RDMA device")]
    NoDevice,
    #[error("RDMA devices cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
}

impl Rack {
    /// Listens for connections of the fabric at the endpoint's address.
    pub(crate) fn open(identity: &Identity, address: SocketAddr) -> Result<Self, NoRack> {
        let devices = verbs::devices();
        if devices.is_empty() {
            return Err(NoRack::NoDevice);
        }
        let at = SocketAddr::new(address.ip(), 0);
        let listener = Listener::bind(at).map_err(|source| NoRack::Listen { address: at, source })?;
        let port = listener.port();
        let expected = Arc::<Mutex<Expected>>::default();
        let listening = tokio::spawn(listen(listener, expected.clone()));
        Ok(Self { identity: identity.clone(), address, port, devices, expected, listening })
    }

    /// The names of the machine's devices.
    pub(crate) fn devices(&self) -> &[String] {
        &self.devices
    }

    fn challenge(&self) -> Result<Challenge, LinkError> {
        let mut challenge = [0; 32];
        // Without randomness there is nothing to build on; QUIC did not get here without it either.
        crate::peer::fill_random(&mut challenge).map_err(|_: IdentityError| LinkError::EndpointGone)?;
        Ok(challenge)
    }

    /// Tries to move a link that begins on the streams of `connection` to RDMA; `None` when it stays.
    /// An error is a peer that broke the exchange, or a connection that ended.
    pub(crate) async fn upgrade(
        &self,
        side: Side,
        (peer, limits): (NodeId, &Limits),
        connection: &quinn::Connection,
        (recv, send): (&mut RecvStream, &mut SendStream),
    ) -> Result<Option<Moved>, LinkError> {
        let patience = limits.connect_timeout / CONNECT_PART;
        let mut exchange = Exchange { rack: self, side, peer, patience, connection, recv, send };
        let Some((pair, transcript)) = exchange.connect().await? else { return Ok(None) };
        let Some((slots, grant)) = exchange.open(&pair, &transcript).await? else { return Ok(None) };
        exchange.leave().await;
        let device = pair.device();
        tracing::info!(peer = %peer.short(), device, "the link moves to RDMA");
        let shared = Shared::new(pair, slots, grant, limits.dead_peer_timeout);
        let streams = (Incoming::new(shared.clone()), Outgoing(shared.clone()));
        Ok(Some((streams, Connection(shared))))
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Hands requests to the dials that they belong to; others are turned away by being dropped.
async fn listen(listener: Listener, expected: Arc<Mutex<Expected>>) {
    loop {
        match listener.next().await {
            Ok(request) => {
                // The device may pad what the peer said.
                let shown = request.private.first_chunk().copied().unwrap_or_default();
                if let Some(waiting) = lock(&expected).remove(&shown) {
                    // Nobody waits any more when the exchange has ended.
                    let _ = waiting.send(request);
                }
            }
            Err(error) => return tracing::warn!(%error, "RDMA connections are not accepted any more"),
        }
    }
}

fn lock(expected: &Mutex<Expected>) -> MutexGuard<'_, Expected> {
    expected.lock().expect("nothing panics while it holds the expected dials")
}

/// A dial that was answered; forgotten when it is dropped.
struct Awaited<'a> {
    expected: &'a Mutex<Expected>,
    challenge: Challenge,
    request: oneshot::Receiver<Request>,
}

impl<'a> Awaited<'a> {
    fn new(expected: &'a Mutex<Expected>, challenge: Challenge) -> Self {
        let (sender, request) = oneshot::channel();
        lock(expected).insert(challenge, sender);
        Self { expected, challenge, request }
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        lock(self.expected).remove(&self.challenge);
    }
}

/// One side of the exchange in which a link moves.
struct Exchange<'a> {
    rack: &'a Rack,
    side: Side,
    peer: NodeId,
    patience: Duration,
    connection: &'a quinn::Connection,
    recv: &'a mut RecvStream,
    send: &'a mut SendStream,
}

impl Exchange<'_> {
    async fn say(&mut self, message: &[u8]) -> Result<(), LinkError> {
        self.send.write_all(message).await.map_err(|error| match error {
            WriteError::ConnectionLost(error) => stream::lost(error),
            error => LinkError::PeerLost(error.to_string()),
        })
    }

    async fn hear<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], LinkError> {
        let mut heard = Heard::new();
        heard.fill(self.recv).await?;
        Ok(heard.bytes)
    }

    /// Connects queue pairs and proves to whom they belong.
    async fn connect(&mut self) -> Result<Option<(Arc<QueuePair>, Transcript)>, LinkError> {
        let ours = self.rack.challenge()?;
        let mut proof = Heard::<PROOF_BYTES>::new();
        let (challenges, made) = match self.side {
            Side::Dialler => {
                self.say(&agreement::offer(&ours)).await?;
                let (port, theirs) = agreement::read_answer(&self.hear::<ANSWER_BYTES>().await?);
                let dialled = dial(self.rack, self.connection.remote_address(), port, theirs);
                ([ours, theirs], proof.unless_declined(self.recv, timeout(self.patience, dialled)).await?)
            }
            Side::Acceptor => {
                let theirs = agreement::read_offer(&self.hear::<OFFER_BYTES>().await?)?;
                let awaited = Awaited::new(&self.rack.expected, ours);
                self.say(&agreement::answer(self.rack.port, &ours)).await?;
                (
                    [theirs, ours],
                    proof.unless_declined(self.recv, timeout(self.patience, accept(awaited))).await?,
                )
            }
        };
        let made = made.and_then(|pair| Ok((pair.numbers()?, pair)));
        let Ok(([here, there], pair)) = made.inspect_err(|error| self.stays(error)) else {
            self.say(&[0; PROOF_BYTES]).await?;
            proof.fill(self.recv).await?;
            return Ok(None);
        };
        let us = self.rack.identity.id();
        let mut secret = [0; 32];
        let label = b"EXPORTER-dolphin-rdma";
        self.connection
            .export_keying_material(&mut secret, label, &[])
            .map_err(|_| LinkError::EndpointGone)?;
        let (dialler, acceptor, pairs) = match self.side {
            Side::Dialler => (us, self.peer, [here, there]),
            Side::Acceptor => (self.peer, us, [there, here]),
        };
        let transcript = Transcript { side: self.side, dialler, acceptor, challenges, secret, pairs };
        self.say(&transcript.proof(&self.rack.identity)).await?;
        proof.fill(self.recv).await?;
        let goes_on = transcript.check_proof(&proof.bytes)?;
        Ok(goes_on.then_some((pair, transcript)))
    }

    /// Opens memory to the proven peer and learns where it opened its own. The dialler speaks first, so
    /// that everything was heard by the time it has the answer.
    async fn open(
        &mut self,
        pair: &Arc<QueuePair>,
        transcript: &Transcript,
    ) -> Result<Option<(Region, Grant)>, LinkError> {
        if self.side == Side::Acceptor {
            let theirs = transcript.check_grant(&self.hear().await?)?;
            let ours = self.expose(pair, transcript).await?;
            return Ok(ours.zip(theirs));
        }
        let ours = self.expose(pair, transcript).await?;
        let theirs = transcript.check_grant(&self.hear().await?)?;
        Ok(ours.zip(theirs))
    }

    async fn expose(
        &mut self,
        pair: &Arc<QueuePair>,
        transcript: &Transcript,
    ) -> Result<Option<Region>, LinkError> {
        let opened = pair.expose(SLOTS as usize * SLOT_BYTES).await;
        let opened = opened.inspect_err(|error| self.stays(error));
        let message = match &opened {
            Ok(region) => {
                let (address, key) = (region.address(), region.remote_key());
                let grant = Grant { address, key, slots: SLOTS, slot_bytes: SLOT_BYTES as u32 };
                transcript.grant(&self.rack.identity, &grant)
            }
            Err(_) => [0; GRANT_BYTES],
        };
        self.say(&message).await?;
        Ok(opened.ok())
    }

    /// Ends the QUIC connection: the dialler once it has heard everything, the acceptor after it.
    async fn leave(&self) {
        match self.side {
            Side::Dialler => self.connection.close(MOVED, b""),
            Side::Acceptor => {
                self.connection.closed().await;
            }
        }
    }

    fn stays(&self, error: &io::Error) {
        tracing::info!(peer = %self.peer.short(), %error, "no RDMA with this peer; the link stays on QUIC");
    }
}

/// A message of the peer, of which some may have arrived.
struct Heard<const BYTES: usize> {
    bytes: [u8; BYTES],
    filled: usize,
}

impl<const BYTES: usize> Heard<BYTES> {
    fn new() -> Self {
        Self { bytes: [0; BYTES], filled: 0 }
    }

    /// Waits for the rest. Cancel-safe.
    async fn fill(&mut self, recv: &mut RecvStream) -> Result<(), LinkError> {
        while self.filled < BYTES {
            match recv.read(&mut self.bytes[self.filled..]).await {
                Ok(Some(bytes)) => self.filled += bytes,
                Ok(None) => return Err(Violation::EndWithoutClose.into()),
                Err(ReadError::ConnectionLost(error)) => return Err(stream::lost(error)),
                Err(error) => return Err(LinkError::PeerLost(error.to_string())),
            }
        }
        Ok(())
    }

    /// What comes of `making`, unless the peer's message says meanwhile that it could not.
    async fn unless_declined<T>(
        &mut self,
        recv: &mut RecvStream,
        making: Timeout<impl Future<Output = io::Result<T>>>,
    ) -> Result<io::Result<T>, LinkError> {
        let mut making = pin!(making);
        tokio::select! {
            biased;
            made = &mut making => return Ok(made.unwrap_or_else(|late| Err(late.into()))),
            heard = self.fill(recv) => heard?,
        }
        if self.bytes.starts_with(&[0]) {
            return Ok(Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the peer could not connect")));
        }
        Ok(making.await.unwrap_or_else(|late| Err(late.into())))
    }
}

async fn dial(rack: &Rack, peer: SocketAddr, port: u16, challenge: Challenge) -> io::Result<Arc<QueuePair>> {
    let here = rack.address.ip();
    let from = (!here.is_unspecified()).then_some(SocketAddr::new(here, 0));
    verbs::connect(from, SocketAddr::new(peer.ip(), port), &challenge, SIZES).await
}

async fn accept(mut awaited: Awaited<'_>) -> io::Result<Arc<QueuePair>> {
    let request = (&mut awaited.request).await.map_err(|_| io::ErrorKind::ConnectionAborted)?;
    request.accept(SIZES).await
}
