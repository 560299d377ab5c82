//! Stands where RDMA is not built in: endpoints have none, and say so.

use std::net::SocketAddr;

use quinn::{RecvStream, SendStream};

use crate::quic::{Side, stream};
use crate::{Identity, Limits, LinkError, NodeId};

/// What would carry a link that moved.
pub(crate) type Moved = ((stream::Incoming, stream::Outgoing), stream::Connection);

/// The RDMA side of an endpoint: there is none.
#[derive(Debug)]
pub(crate) enum Rack {}

/// Why an endpoint has no RDMA; it uses QUIC.
#[derive(Debug, thiserror::Error)]
#[error("this program is built without RDMA")]
pub(crate) struct NoRack;

impl Rack {
    pub(crate) fn open(_: &Identity, _: SocketAddr) -> Result<Self, NoRack> {
        Err(NoRack)
    }

    pub(crate) fn devices(&self) -> &[String] {
        match *self {}
    }

    pub(crate) async fn upgrade(
        &self,
        _: Side,
        _: (NodeId, &Limits),
        _: &quinn::Connection,
        _: (&mut RecvStream, &mut SendStream),
    ) -> Result<Option<Moved>, LinkError> {
        match *self {}
    }
}
