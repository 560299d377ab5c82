//! The link an application holds, whatever carries it.
//!
//! [`Machine`] is the protocol; a driver task moves bytes between it and a carrier; the
//! handles here share it. All queues are bounded by credit: see [`Machine`].

mod driver;
mod error;
mod machine;
#[cfg(test)]
mod machine_tests;
mod meter;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub(crate) use driver::{Carrier, Opening, Read, Sink, Source, start};
pub use error::{Fault, LinkError, SendError, TrySendError, Violation};
pub use machine::{MESSAGE_OVERHEAD_BYTES, Machine, PROTOCOL, cost};
pub use meter::Throughput;

use crate::{CloseReason, NodeId};
use driver::Shared;

/// One message to send: parts that the peer receives joined, and that are not copied here.
#[derive(Clone, Debug, Default)]
pub struct Message {
    parts: Vec<Bytes>,
    bytes: usize,
}

impl Message {
    /// A message of several parts, such as a header and rows.
    pub fn from_parts(parts: impl IntoIterator<Item = Bytes>) -> Self {
        let parts: Vec<Bytes> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        Self { bytes: parts.iter().map(Bytes::len).sum(), parts }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are no bytes; an empty message is a message all the same.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn into_parts(self) -> Vec<Bytes> {
        self.parts
    }
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        Self::from_parts([bytes])
    }
}

impl From<Vec<u8>> for Message {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

/// What carries the bytes of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CarrierKind {
    /// A stream of a QUIC connection.
    Quic,
    /// A queue pair of an RDMA device.
    Rdma,
    /// A path of a simulated network.
    Simulated,
}

impl std::fmt::Display for CarrierKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Quic => "QUIC",
            Self::Rdma => "RDMA",
            Self::Simulated => "simulated",
        })
    }
}

/// By what way two ends of a link reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathKind {
    /// The acceptor was dialled where it says that it is.
    #[default]
    Direct,
    /// Through routers that translate addresses, where the other was found by trying.
    Punched,
    /// Through the gateway: its detour is in the round trip, and its bandwidth is shared.
    Relayed,
}

impl std::fmt::Display for PathKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Punched => "punched",
            Self::Relayed => "relayed",
        })
    }
}

/// What has gone over a link, frame headers and protocol included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Bytes handed to the carrier.
    pub bytes_sent: u64,
    /// Bytes that arrived.
    pub bytes_received: u64,
    /// Messages handed to the carrier.
    pub messages_sent: u64,
    /// Messages that arrived whole.
    pub messages_received: u64,
}

/// A link to an authenticated peer: ordered, reliable, message-preserving.
///
/// Dropping it, or both of its halves, closes the link with [`CloseReason::DROPPED`]; what
/// was sent before is still delivered while the endpoint lives.
#[derive(Debug)]
pub struct Link {
    sender: LinkSender,
    receiver: LinkReceiver,
}

/// Closes the link when the last handle goes.
#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close(CloseReason::new(CloseReason::DROPPED, "every handle was dropped"));
    }
}

/// The sending half; clones share the link, and their messages interleave whole.
#[derive(Clone, Debug)]
pub struct LinkSender {
    handle: Arc<Handle>,
}

/// The receiving half. When it is dropped first, the peer runs out of credit: its messages
/// wait rather than vanish.
#[derive(Debug)]
pub struct LinkReceiver {
    handle: Arc<Handle>,
}

impl Link {
    fn new(shared: Arc<Shared>) -> Self {
        let handle = Arc::new(Handle(shared));
        Self { sender: LinkSender { handle: handle.clone() }, receiver: LinkReceiver { handle } }
    }

    /// The peer, proven by its key.
    pub fn peer(&self) -> NodeId {
        self.sender.peer()
    }

    /// See [`LinkSender::send`].
    pub async fn send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.sender.send(message).await
    }

    /// See [`LinkSender::try_send`].
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), TrySendError> {
        self.sender.try_send(message)
    }

    /// See [`LinkReceiver::recv`].
    pub async fn recv(&mut self) -> Result<Bytes, LinkError> {
        self.receiver.recv().await
    }

    /// See [`LinkSender::close`].
    pub fn close(&self, reason: CloseReason) {
        self.sender.close(reason);
    }

    /// See [`LinkSender::closed`].
    pub async fn closed(&self) -> LinkError {
        self.sender.closed().await
    }

    /// What carries the link.
    pub fn carrier(&self) -> CarrierKind {
        self.sender.carrier()
    }

    /// See [`LinkSender::path`].
    pub fn path(&self) -> PathKind {
        self.sender.path()
    }

    /// See [`LinkSender::rtt`].
    pub fn rtt(&self) -> Option<Duration> {
        self.sender.rtt()
    }

    /// See [`LinkSender::stats`].
    pub fn stats(&self) -> LinkStats {
        self.sender.stats()
    }

    /// The two halves, for two tasks.
    pub fn split(self) -> (LinkSender, LinkReceiver) {
        (self.sender, self.receiver)
    }
}

impl LinkSender {
    /// The peer, proven by its key.
    pub fn peer(&self) -> NodeId {
        self.handle.0.peer()
    }

    /// Queues a message, waiting for the peer's credit and for room; first come, first
    /// served. Cancel-safe: a dropped call has sent all of the message or nothing.
    pub async fn send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.handle.0.send(message.into()).await
    }

    /// Queues a message now, or hands it back when it would have to wait.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), TrySendError> {
        self.handle.0.try_send(message.into())
    }

    /// Begins to close the link: nothing more is accepted, what was sent is delivered, then
    /// the peer reads `reason`. Returns at once; [`LinkSender::closed`] waits. Only the first
    /// close counts.
    pub fn close(&self, reason: CloseReason) {
        self.handle.0.close(reason);
    }

    /// Waits until the link is over and nothing more is exchanged, and says why. After a
    /// local close, [`LinkError::ClosedLocally`] means that the peer has everything.
    pub async fn closed(&self) -> LinkError {
        self.handle.0.closed().await
    }

    /// What carries the link.
    pub fn carrier(&self) -> CarrierKind {
        self.handle.0.carrier()
    }

    /// By what way it goes.
    pub fn path(&self) -> PathKind {
        self.handle.0.path()
    }

    /// Smoothed round trip time, where the carrier measures it.
    pub fn rtt(&self) -> Option<Duration> {
        self.handle.0.rtt()
    }

    /// What the peer's long messages were seen to arrive at, if there were any: what the link carries from there to
    /// here.
    pub fn throughput(&self) -> Option<Throughput> {
        self.handle.0.throughput()
    }

    /// Bytes per second that congestion control lets through to the peer now, where the carrier has any. A link that
    /// was idle has not found out yet, so this is no less than what is sent, and may be less than what could be.
    pub fn send_limit(&self) -> Option<u64> {
        self.handle.0.send_limit()
    }

    /// Counters so far.
    pub fn stats(&self) -> LinkStats {
        self.handle.0.stats()
    }
}

impl LinkReceiver {
    /// The peer, proven by its key.
    pub fn peer(&self) -> NodeId {
        self.handle.0.peer()
    }

    /// The next message, in the order the peer sent them. Messages that arrived before the
    /// link ended come first, then the same error again and again. Cancel-safe.
    pub async fn recv(&mut self) -> Result<Bytes, LinkError> {
        self.handle.0.recv().await
    }

    /// The next message if one has arrived; `Ok(None)` when none has.
    pub fn try_recv(&mut self) -> Result<Option<Bytes>, LinkError> {
        self.handle.0.try_recv()
    }

    /// See [`LinkSender::rtt`].
    pub fn rtt(&self) -> Option<Duration> {
        self.handle.0.rtt()
    }

    /// See [`LinkSender::stats`].
    pub fn stats(&self) -> LinkStats {
        self.handle.0.stats()
    }
}
