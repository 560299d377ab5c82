//! Incoming peers: each shakes hands in a task of its own, within a bound and a time limit.

use std::sync::Arc;

use quinn::Incoming as Attempt;
use rustls::pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::stream::{Connection, Incoming, Outgoing};
use super::tls;
use crate::backlog::{self, AcceptQueue, Backlog};
use crate::link::{self, Link};
use crate::{AcceptError, Limits, NodeId};

struct Acceptor {
    limits: Arc<Limits>,
    slots: Arc<Semaphore>,
    closing: watch::Receiver<bool>,
    backlog: Backlog,
}

/// Starts to accept. The task ends with the endpoint.
pub(super) fn start(
    endpoint: quinn::Endpoint,
    limits: Arc<Limits>,
    slots: Arc<Semaphore>,
    closing: watch::Receiver<bool>,
) -> AcceptQueue {
    let (backlog, queue) = backlog::new(limits.max_pending_handshakes);
    let acceptor = Arc::new(Acceptor { limits, slots, closing, backlog });
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
        let permits = (self.backlog.admit(), self.slots.clone().try_acquire_owned());
        let (Some(pending), Ok(slot)) = permits else {
            tracing::debug!(%from, "refused: no room");
            return attempt.refuse();
        };
        let acceptor = self.clone();
        tokio::spawn(async move {
            let limit = acceptor.limits.connect_timeout;
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
        let (send, recv) = connection.accept_bi().await.map_err(|error| failed(error.to_string()))?;
        let streams = (Incoming(recv), Outgoing(send));
        let closing = self.closing.clone();
        let opening = link::start(peer, &self.limits, streams, Connection(connection), closing, slot);
        opening.opened().await.map_err(|error| AcceptError::Link { from, error })
    }
}

/// The id that the TLS handshake proved.
fn peer_id(connection: &quinn::Connection) -> Option<NodeId> {
    let identity = connection.peer_identity()?;
    let keys = identity.downcast_ref::<Vec<CertificateDer<'static>>>()?;
    tls::id_of_key(keys.first()?)
}
