//! Moves bytes between a [`Machine`] and what carries it, and wakes the application.

use std::future::{Future, pending};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::{
    CarrierKind, Link, LinkError, LinkStats, Machine, Message, PathKind, SendError, Throughput, TrySendError,
};
use crate::{CloseReason, Limits, NodeId};

/// Pieces read from a carrier in one go.
const READ_PIECES: usize = 64;

/// Reads in a row before the writer and the deadline get their turn, lest a peer that floods
/// the link starves them.
const READS_PER_TURN: u64 = 16;

/// What a carrier read.
pub(crate) enum Read {
    /// The first this many pieces were filled.
    Pieces(usize),
    /// The peer's stream ended.
    End,
    /// The peer ended the carrier and says that it finished the protocol.
    Finished,
}

/// The outgoing byte stream of a carrier.
pub(crate) trait Sink: Send + 'static {
    /// Writes all pieces in order, leaving them empty.
    fn write(&mut self, pieces: &mut [Bytes]) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Ends the stream after what was written.
    fn finish(&mut self);
}

/// The incoming byte stream of a carrier.
pub(crate) trait Source: Send + 'static {
    /// Waits for bytes and fills pieces from the front.
    fn read(&mut self, pieces: &mut [Bytes]) -> impl Future<Output = Result<Read, LinkError>> + Send;
}

/// The connection both streams belong to.
pub(crate) trait Carrier: Send + Sync + 'static {
    /// What it is.
    fn kind(&self) -> CarrierKind;

    /// By what way it goes.
    fn path(&self) -> PathKind {
        PathKind::Direct
    }

    /// Smoothed round trip time.
    fn rtt(&self) -> Option<Duration>;

    /// Bytes per second that congestion control lets out.
    fn send_limit(&self) -> Option<u64> {
        None
    }

    /// Ends both streams now; `finished` tells the peer that all it sent has been received.
    fn end(&self, finished: bool);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Stage {
    Opening,
    Opened,
    Done,
}

/// What the handles and the driver of one link share.
pub(crate) struct Shared {
    peer: NodeId,
    machine: Mutex<Machine>,
    carrier: Box<dyn Carrier>,
    /// Held while waiting for credit, so that senders go in the order they came.
    turn: tokio::sync::Mutex<()>,
    readable: Notify,
    writable: Notify,
    transmit: Notify,
    deadline: Notify,
    stage: watch::Sender<Stage>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer).field("stage", &*self.stage.borrow()).finish()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().expect("the machine does not panic while it is locked")
    }

    /// Applies one event to the machine and wakes whoever it concerns.
    fn apply<R>(&self, event: impl FnOnce(&mut Machine) -> R) -> R {
        let mut machine = self.lock();
        let deadline = machine.deadline();
        let result = event(&mut machine);
        let ended = machine.end().is_some();
        let wakes = [
            (&self.readable, ended || machine.has_message()),
            (&self.writable, true),
            (&self.transmit, machine.wants_transmit()),
            (&self.deadline, deadline != machine.deadline()),
        ];
        let opened = machine.is_opened();
        drop(machine);
        for (notify, wake) in wakes {
            if wake {
                notify.notify_one();
            }
        }
        if opened {
            self.advance(Stage::Opened);
        }
        result
    }

    fn advance(&self, to: Stage) {
        self.stage.send_if_modified(|stage| {
            let later = *stage < to;
            if later {
                *stage = to;
            }
            later
        });
    }

    pub(super) fn peer(&self) -> NodeId {
        self.peer
    }

    pub(super) fn carrier(&self) -> CarrierKind {
        self.carrier.kind()
    }

    pub(super) fn path(&self) -> PathKind {
        self.carrier.path()
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        self.carrier.rtt()
    }

    pub(super) fn throughput(&self) -> Option<Throughput> {
        self.lock().throughput()
    }

    pub(super) fn send_limit(&self) -> Option<u64> {
        self.carrier.send_limit()
    }

    pub(super) fn stats(&self) -> LinkStats {
        self.lock().stats()
    }

    pub(super) fn close(&self, reason: CloseReason) {
        self.apply(|machine| machine.close(reason, Instant::now().into_std()));
    }

    pub(super) fn try_send(&self, message: Message) -> Result<(), TrySendError> {
        match self.turn.try_lock() {
            Ok(_turn) => self.queue(message),
            Err(_) => Err(TrySendError::Full(message)),
        }
    }

    fn queue(&self, message: Message) -> Result<(), TrySendError> {
        let mut machine = self.lock();
        machine.try_send(message)?;
        drop(machine);
        self.transmit.notify_one();
        Ok(())
    }

    pub(super) async fn send(&self, mut message: Message) -> Result<(), SendError> {
        let _turn = self.turn.lock().await;
        loop {
            message = match self.queue(message) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Failed(error)) => return Err(error),
                Err(TrySendError::Full(message)) => message,
            };
            self.writable.notified().await;
        }
    }

    pub(super) fn try_recv(&self) -> Result<Option<Bytes>, LinkError> {
        let mut machine = self.lock();
        match (machine.poll_message(), machine.end()) {
            (Some(message), _) => {
                let grants = machine.wants_transmit();
                drop(machine);
                if grants {
                    self.transmit.notify_one();
                }
                Ok(Some(message))
            }
            (None, Some(end)) => Err(end.clone()),
            (None, None) => Ok(None),
        }
    }

    pub(super) async fn recv(&self) -> Result<Bytes, LinkError> {
        loop {
            if let Some(message) = self.try_recv()? {
                return Ok(message);
            }
            self.readable.notified().await;
        }
    }

    pub(super) async fn closed(&self) -> LinkError {
        self.wait_for(Stage::Done).await;
        self.lock().end().cloned().unwrap_or(LinkError::EndpointGone)
    }

    async fn wait_for(&self, wanted: Stage) {
        // The sender is in `self`, so the channel is open.
        let _ = self.stage.subscribe().wait_for(|stage| *stage >= wanted).await;
    }
}

/// A link whose handshake is under way.
pub(crate) struct Opening(Link);

impl Opening {
    /// Waits until the link is usable.
    pub(crate) async fn opened(self) -> Result<Link, LinkError> {
        let shared = &self.0.sender.handle.0;
        shared.wait_for(Stage::Opened).await;
        let end = shared.lock().end().cloned();
        tracing::debug!(peer = %shared.peer.short(), carrier = %shared.carrier(), path = %shared.path(), ?end, "link opened");
        end.map_or(Ok(self.0), Err)
    }
}

/// Starts the driver of a new link. It ends, and gives back `slot`, when the link is done.
/// `closing` becomes true when the endpoint closes and is dropped when the endpoint goes.
pub(crate) fn start(
    peer: NodeId,
    limits: &Limits,
    (source, sink): (impl Source, impl Sink),
    carrier: impl Carrier,
    closing: watch::Receiver<bool>,
    slot: OwnedSemaphorePermit,
) -> Opening {
    let shared = Arc::new(Shared {
        peer,
        machine: Mutex::new(Machine::new(limits, Instant::now().into_std())),
        carrier: Box::new(carrier),
        turn: tokio::sync::Mutex::new(()),
        readable: Notify::new(),
        writable: Notify::new(),
        transmit: Notify::new(),
        deadline: Notify::new(),
        stage: watch::Sender::new(Stage::Opening),
    });
    let link = Link::new(shared.clone());
    tokio::spawn(async move { drive(&shared, source, sink, closing, slot).await });
    Opening(link)
}

async fn drive(
    shared: &Shared,
    source: impl Source,
    sink: impl Sink,
    closing: watch::Receiver<bool>,
    slot: OwnedSemaphorePermit,
) {
    // Each of these returns when the link is done or its carrier has failed. They are pinned
    // here so that the streams outlive the carrier's end: dropping them first could reach the
    // peer as a stream stopped for no reason.
    let reading = pin!(read(shared, source));
    let writing = pin!(write(shared, sink));
    tokio::select! {
        biased;
        () = reading => {}
        () = writing => {}
        () = watch_deadline(shared) => {}
        () = watch_endpoint(shared, closing) => {}
    }
    let (finished, end) = {
        let machine = shared.lock();
        (machine.is_received(), machine.end().cloned())
    };
    shared.carrier.end(finished);
    tracing::debug!(peer = %shared.peer.short(), ?end, "link ended");
    drop(slot);
    shared.advance(Stage::Done);
}

async fn read(shared: &Shared, mut source: impl Source) {
    let mut pieces = [const { Bytes::new() }; READ_PIECES];
    for turn in 1u64.. {
        if shared.lock().is_done() {
            return;
        }
        if turn % READS_PER_TURN == 0 {
            tokio::task::yield_now().await;
        }
        let read = source.read(&mut pieces).await;
        let now = Instant::now().into_std();
        shared.apply(|machine| match read {
            Ok(Read::Pieces(count)) => {
                for piece in &mut pieces[..count] {
                    machine.receive(&std::mem::take(piece), now);
                }
            }
            Ok(Read::End) => machine.receive_end(),
            Ok(Read::Finished) => machine.carrier_ended(),
            Err(error) => machine.fail(error),
        });
    }
}

async fn write(shared: &Shared, mut sink: impl Sink) {
    let mut batch = Vec::new();
    while !shared.lock().is_done() {
        let sent = shared.apply(|machine| {
            machine.poll_transmit(&mut batch);
            machine.is_sent()
        });
        if !batch.is_empty()
            && let Err(error) = sink.write(&mut batch).await
        {
            return shared.apply(|machine| machine.fail(error));
        }
        let idle = batch.is_empty();
        batch.clear();
        if sent {
            sink.finish();
            // The peer's answer, which the reader awaits, is what ends the link.
            return wait_until_done(shared).await;
        }
        if idle {
            shared.transmit.notified().await;
        }
    }
}

async fn wait_until_done(shared: &Shared) {
    while !shared.lock().is_done() {
        shared.transmit.notified().await;
    }
}

async fn watch_deadline(shared: &Shared) {
    while !shared.lock().is_done() {
        let deadline = shared.lock().deadline();
        let elapsed = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shared.deadline.notified() => {}
            () = elapsed => {
                let now = Instant::now().into_std();
                shared.apply(|machine| machine.receive_deadline(now));
            }
        }
    }
}

async fn watch_endpoint(shared: &Shared, mut closing: watch::Receiver<bool>) {
    match closing.wait_for(|closing| *closing).await {
        Ok(_) => {
            shared.close(CloseReason::new(CloseReason::SHUTDOWN, "the endpoint is closing"));
        }
        Err(_) => return shared.apply(|machine| machine.fail(LinkError::EndpointGone)),
    }
    pending().await
}
