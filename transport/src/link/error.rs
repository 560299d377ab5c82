//! How links end and sends fail, and who is at fault.

use super::Message;
use crate::frame::{CloseReason, FrameError};

/// Who caused an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nobody: a side closed the link on purpose.
    None,
    /// The peer broke the protocol.
    Peer,
    /// This process.
    Local,
    /// The path, or the peer's machine: one cannot tell them apart from here.
    Network,
}

/// Why a link is over. Every handle of a link reports the same one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The peer closed the link, after everything it had sent.
    #[error("closed by the peer: {0}")]
    ClosedByPeer(CloseReason),
    /// This side closed the link.
    #[error("closed on this side: {0}")]
    ClosedLocally(CloseReason),
    /// This side closed the link, and what it had sent before may not have arrived.
    #[error("closed on this side; the peer did not confirm what was sent before")]
    NotDrained,
    /// The peer broke the link protocol.
    #[error("protocol violation by the peer: {0}")]
    Violation(#[from] Violation),
    /// The peer was silent for the dead-peer timeout.
    #[error("the peer fell silent")]
    TimedOut,
    /// The peer's endpoint vanished without closing the link.
    #[error("the peer is gone without closing the link: {0}")]
    PeerLost(String),
    /// The handshake did not finish in time.
    #[error("the peer did not finish the handshake in time")]
    HandshakeTimedOut,
    /// The endpoint that carried the link was dropped or lost its socket.
    #[error("the local endpoint is gone")]
    EndpointGone,
}

impl LinkError {
    /// Who is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            Self::ClosedByPeer(reason) if reason.code == CloseReason::VIOLATION => Fault::Local,
            Self::ClosedByPeer(_) | Self::ClosedLocally(_) => Fault::None,
            Self::Violation(_) => Fault::Peer,
            Self::TimedOut | Self::PeerLost(_) | Self::HandshakeTimedOut | Self::NotDrained => Fault::Network,
            Self::EndpointGone => Fault::Local,
        }
    }
}

/// How a peer broke the link protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Its bytes are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It began with something other than a hello.
    #[error("the first frame is not a hello")]
    HelloExpected,
    /// It said hello twice.
    #[error("a second hello")]
    HelloRepeated,
    /// It speaks a link protocol this build does not.
    #[error("link protocol {0} is unknown")]
    Protocol(u16),
    /// Its window cannot take its own largest message.
    #[error("a window too small for the largest message")]
    Window,
    /// It sent more than it was granted.
    #[error("{0} bytes beyond the credit granted")]
    CreditExceeded(u64),
    /// It took back credit.
    #[error("credit was taken back")]
    CreditRegressed,
    /// It sent frames after its close.
    #[error("a frame after close")]
    AfterClose,
    /// Its stream ended without a close.
    #[error("the stream ended without a close")]
    EndWithoutClose,
    /// It broke the protocol that carries the link.
    #[error("{0}")]
    Carrier(String),
}

/// Why a message was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The message is over what the peer accepts; the caller is at fault, the link lives.
    #[error("a message of {bytes} bytes is over the peer's limit of {limit_bytes}")]
    TooLarge {
        /// Length of the message.
        bytes: usize,
        /// The peer's limit.
        limit_bytes: u32,
    },
    /// The link is over.
    #[error(transparent)]
    Ended(#[from] LinkError),
}

/// Why a message was not sent at once.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrySendError {
    /// No credit or no room now; the message is handed back.
    #[error("no credit for a message now")]
    Full(Message),
    /// It never can be sent.
    #[error(transparent)]
    Failed(#[from] SendError),
}
