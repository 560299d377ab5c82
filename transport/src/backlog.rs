//! Incoming links between their first packet and the application's `accept`, bounded.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::{AcceptError, Limits, Link};

/// One finished handshake, waiting to be taken.
#[derive(Debug)]
struct Accepted {
    link: Result<Link, AcceptError>,
    /// A link that nobody takes counts as a pending handshake.
    _pending: Option<OwnedSemaphorePermit>,
}

/// Where handshakes are admitted and reported.
#[derive(Clone, Debug)]
pub(crate) struct Backlog {
    max_pending: usize,
    pending: Arc<Semaphore>,
    finished: mpsc::Sender<Accepted>,
}

/// Where the application takes them.
#[derive(Debug)]
pub(crate) struct AcceptQueue(Mutex<mpsc::Receiver<Accepted>>);

pub(crate) fn new(max_pending: usize) -> (Backlog, AcceptQueue) {
    // Half of the room is for links, which hold permits; the rest for reports of failure.
    let (finished, accepted) = mpsc::channel(2 * max_pending);
    let pending = Arc::new(Semaphore::new(max_pending));
    (Backlog { max_pending, pending, finished }, AcceptQueue(Mutex::new(accepted)))
}

impl Backlog {
    /// Room for one more handshake, if there is.
    pub(crate) fn admit(&self) -> Option<OwnedSemaphorePermit> {
        self.pending.clone().try_acquire_owned().ok()
    }

    /// Whether at least half of the room is taken.
    pub(crate) fn is_busy(&self) -> bool {
        self.pending.available_permits() <= self.max_pending / 2
    }

    /// Hands over how an admitted handshake ended. Failures beyond the bound are only logged.
    pub(crate) async fn report(&self, link: Result<Link, AcceptError>, pending: OwnedSemaphorePermit) {
        if let Err(error) = &link {
            tracing::debug!(%error, "an incoming peer failed");
            if self.finished.capacity() <= self.max_pending {
                return;
            }
        }
        let pending = link.is_ok().then_some(pending);
        // Fails only when the endpoint is gone, and the link with it.
        let _ = self.finished.send(Accepted { link, _pending: pending }).await;
    }
}

impl AcceptQueue {
    /// The next handshake that ended; `None` once the endpoint closes.
    pub(crate) async fn next(&self, mut closing: watch::Receiver<bool>) -> Option<Result<Link, AcceptError>> {
        let next = async { self.0.lock().await.recv().await };
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => None,
            accepted = next => accepted.map(|accepted| accepted.link),
        }
    }
}

/// Waits until every link has given its slot back, which it does when it has drained or its
/// close timeout has passed.
pub(crate) async fn drained(slots: &Semaphore, limits: &Limits) {
    let all = u32::try_from(limits.max_links).unwrap_or(u32::MAX);
    let patience = limits.close_timeout + Duration::from_millis(100);
    // A link that outlasts its own timeout is ended with the endpoint.
    let _ = tokio::time::timeout(patience, slots.acquire_many(all)).await;
}
