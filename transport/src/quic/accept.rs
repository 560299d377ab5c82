//! Incoming peers: each shakes hands in a task of its own, within a bound and a time limit.

use std::sync::Arc;

use quinn::Incoming as Attempt;
use rustls::pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{Host, Side, tls};
use crate::backlog::{self, AcceptQueue, Backlog};
use crate::link::Link;
use crate::{AcceptError, NodeId};

struct Acceptor {
    host: Arc<Host>,
    closing: watch::Receiver<bool>,
    backlog: Backlog,
}

/// Starts to accept. The task ends with the endpoint.
pub(super) fn start(
    endpoint: quinn::Endpoint,
    host: Arc<Host>,
    closing: watch::Receiver<bool>,
) -> AcceptQueue {
    let (backlog, queue) = backlog::new(host.limits.max_pending_handshakes);
    let acceptor = Arc::new(Acceptor { host, closing, backlog });
    tokio::spawn(async move {
        while let Some(attempt) = endpoint.accept().await {
            acceptor.admit(attempt);
        }
    });
    queue
}

impl Acceptor {
    fn admit(self: &Arc<Self>, attempt: Attempt) {
        let from = attempt.remote_address();
        // Under load a peer must show that it is where it says before it costs anything.
        if self.backlog.is_busy() && attempt.may_retry() && !attempt.remote_address_validated() {
            // Cannot fail: the attempt may retry.
            let _ = attempt.retry();
            return;
        }
        let permits = (self.backlog.admit(), self.host.slots.clone().try_acquire_owned());
        let (Some(pending), Ok(slot)) = permits else {
            tracing::debug!(%from, "refused: no room");
            return attempt.refuse();
        };
        let acceptor = self.clone();
        tokio::spawn(async move {
            let limit = acceptor.host.limits.connect_timeout;
            let link = tokio::time::timeout(limit, acceptor.shake_hands(attempt, slot)).await;
            let link = link.unwrap_or(Err(AcceptError::TimedOut { from }));
            acceptor.backlog.report(link, pending).await;
        });
    }

    async fn shake_hands(&self, attempt: Attempt, slot: OwnedSemaphorePermit) -> Result<Link, AcceptError> {
        let from = attempt.remote_address();
        let failed = |cause: String| AcceptError::Handshake { from, cause };
        let connecting = attempt.accept().map_err(|error| failed(error.to_string()))?;
        let connection = connecting.await.map_err(|error| failed(error.to_string()))?;
        let peer = peer_id(&connection).ok_or_else(|| failed("the peer showed no node key".into()))?;
        let streams = connection.accept_bi().await.map_err(|error| failed(error.to_string()))?;
        let ends = (self.closing.clone(), slot);
        // Since the handshake was over a packet with a forged sender may have moved the connection elsewhere.
        let path = self.host.nat.kind(peer, from);
        let opening = self.host.start((Side::Acceptor, path, from), peer, connection, streams, ends).await;
        let opening = opening.map_err(|error| AcceptError::Link { from, error })?;
        opening.opened().await.map_err(|error| AcceptError::Link { from, error })
    }
}

/// The id that the TLS handshake proved.
fn peer_id(connection: &quinn::Connection) -> Option<NodeId> {
    let identity = connection.peer_identity()?;
    let keys = identity.downcast_ref::<Vec<CertificateDer<'static>>>()?;
    tls::id_of_key(keys.first()?)
}
