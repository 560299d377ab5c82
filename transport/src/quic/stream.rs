//! The bidirectional stream that carries a link, and what its failures mean.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{ConnectionError, ReadError, RecvStream, SendStream, VarInt, WriteError};

use super::nat::Nat;
use crate::link::{Carrier, CarrierKind, PathKind, Read, Sink, Source};
use crate::{LinkError, Violation};

/// Application close codes. Quinn itself uses 0 for connections that are merely dropped.
pub(super) const FINISHED: VarInt = VarInt::from_u32(1);
pub(super) const GONE: VarInt = VarInt::from_u32(2);

pub(crate) struct Incoming(pub(super) RecvStream);

impl Source for Incoming {
    async fn read(&mut self, pieces: &mut [Bytes]) -> Result<Read, LinkError> {
        match self.0.read_chunks(pieces).await {
            Ok(Some(count)) => Ok(Read::Pieces(count)),
            Ok(None) => Ok(Read::End),
            Err(ReadError::ConnectionLost(ConnectionError::ApplicationClosed(close)))
                if close.error_code == FINISHED =>
            {
                Ok(Read::Finished)
            }
            Err(ReadError::ConnectionLost(error)) => Err(lost(error)),
            Err(ReadError::Reset(_)) => Err(Violation::EndWithoutClose.into()),
            Err(ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected) => {
                Err(LinkError::EndpointGone)
            }
        }
    }
}

pub(crate) struct Outgoing(pub(super) SendStream);

impl Sink for Outgoing {
    async fn write(&mut self, pieces: &mut [Bytes]) -> Result<(), LinkError> {
        match self.0.write_all_chunks(pieces).await {
            Ok(()) => Ok(()),
            Err(WriteError::Stopped(_)) => Err(Violation::Carrier("it stopped the stream".into()).into()),
            // How the connection ended, and what arrived before, is for the reader to say.
            Err(WriteError::ConnectionLost(_)) => std::future::pending().await,
            Err(WriteError::ClosedStream | WriteError::ZeroRttRejected) => Err(LinkError::EndpointGone),
        }
    }

    fn finish(&mut self) {
        // Fails only when the stream is over already.
        let _ = self.0.finish();
    }
}

pub(crate) struct Connection {
    pub(super) quinn: quinn::Connection,
    /// The way by which it was made.
    pub(super) path: PathKind,
    pub(super) nat: Arc<Nat>,
}

impl Carrier for Connection {
    fn kind(&self) -> CarrierKind {
        CarrierKind::Quic
    }

    fn path(&self) -> PathKind {
        // A connection may move.
        self.nat.path_to(self.quinn.remote_address(), self.path)
    }

    fn rtt(&self) -> Option<Duration> {
        Some(self.quinn.rtt())
    }

    fn send_limit(&self) -> Option<u64> {
        let path = self.quinn.stats().path;
        Some((path.cwnd as f64 / path.rtt.max(Duration::from_micros(1)).as_secs_f64()) as u64)
    }

    fn end(&self, finished: bool) {
        self.quinn.close(if finished { FINISHED } else { GONE }, b"");
    }
}

/// Why a connection ended, in a link's terms.
pub(crate) fn lost(error: ConnectionError) -> LinkError {
    match error {
        ConnectionError::TimedOut => LinkError::TimedOut,
        ConnectionError::LocallyClosed | ConnectionError::CidsExhausted => LinkError::EndpointGone,
        ConnectionError::TransportError(error) => Violation::Carrier(error.to_string()).into(),
        ConnectionError::VersionMismatch => Violation::Carrier("no QUIC version in common".into()).into(),
        ConnectionError::ConnectionClosed(close) => LinkError::PeerLost(close.to_string()),
        ConnectionError::ApplicationClosed(_) => LinkError::PeerLost("its endpoint went away".into()),
        ConnectionError::Reset => LinkError::PeerLost("it has forgotten the connection".into()),
    }
}
