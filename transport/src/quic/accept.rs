//! Incoming peers: each shakes hands in a task of its own, within a bound and a time limit.

use std::sync::Arc;

use quinn::Incoming as Attempt;
use rustls::pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::stream::{Connection, Incoming, Outgoing};
use super::tls;
use crate::link::{self, Link};
use crate::{AcceptError, Limits, NodeId};

/// One finished handshake, waiting to be taken.
pub(super) struct Accepted {
    pub(super) link: Result<Link, AcceptError>,
    /// A link that nobody takes counts as a pending handshake.
    _pending: Option<OwnedSemaphorePermit>,
}

struct Acceptor {
    limits: Arc<Limits>,
    slots: Arc<Semaphore>,
    closing: watch::Receiver<bool>,
    finished: mpsc::Sender<Accepted>,
}

/// Starts to accept. The task ends with the endpoint.
pub(super) fn start(
    endpoint: quinn::Endpoint,
    limits: Arc<Limits>,
    slots: Arc<Semaphore>,
    closing: watch::Receiver<bool>,
) -> mpsc::Receiver<Accepted> {
    // Half of the room is for links, which hold permits; the rest for reports of failure.
    let (finished, accepted) = mpsc::channel(2 * limits.max_pending_handshakes);
    let pending = Arc::new(Semaphore::new(limits.max_pending_handshakes));
    let acceptor = Arc::new(Acceptor { limits, slots, closing, finished });
    tokio::spawn(async move {
        while let Some(attempt) = endpoint.accept().await {
            acceptor.admit(attempt, &pending);
        }
    });
    accepted
}

impl Acceptor {
    fn admit(self: &Arc<Self>, attempt: Attempt, pending: &Arc<Semaphore>) {
        let from = attempt.remote_address();
        // Under load a peer must show that it is where it says before it costs anything.
        let busy = pending.available_permits() <= self.limits.max_pending_handshakes / 2;
        if busy && attempt.may_retry() && !attempt.remote_address_validated() {
            // Cannot fail: the attempt may retry.
            let _ = attempt.retry();
            return;
        }
        let permits = (pending.clone().try_acquire_owned(), self.slots.clone().try_acquire_owned());
        let (Ok(pending), Ok(slot)) = permits else {
            tracing::debug!(%from, "refused: no room");
            return attempt.refuse();
        };
        let acceptor = self.clone();
        tokio::spawn(async move {
            let limit = acceptor.limits.connect_timeout;
            let link = tokio::time::timeout(limit, acceptor.shake_hands(attempt, slot)).await;
            let link = link.unwrap_or(Err(AcceptError::TimedOut { from }));
            acceptor.report(link, pending).await;
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

    async fn report(&self, link: Result<Link, AcceptError>, pending: OwnedSemaphorePermit) {
        if let Err(error) = &link {
            tracing::debug!(%error, "an incoming peer failed");
            if self.finished.capacity() <= self.limits.max_pending_handshakes {
                return;
            }
        }
        let pending = link.is_ok().then_some(pending);
        // Fails only when the endpoint is gone, and the link with it.
        let _ = self.finished.send(Accepted { link, _pending: pending }).await;
    }
}

/// The id that the TLS handshake proved.
fn peer_id(connection: &quinn::Connection) -> Option<NodeId> {
    let identity = connection.peer_identity()?;
    let keys = identity.downcast_ref::<Vec<CertificateDer<'static>>>()?;
    tls::id_of_key(keys.first()?)
}
