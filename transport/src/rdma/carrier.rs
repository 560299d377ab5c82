//! The bytes of a link over a queue pair.
//!
//! Bytes are written into the peer's slots in turn, one write with immediate data per slot; the number in
//! the immediate data is the write's place in the order. Everything else is a send of 9 bytes: a kind and
//! a `u64`. The receiver copies a slot out before anything looks at it: memory that a peer can write may
//! change under whoever reads it.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::agreement::Grant;
use super::flow::{Arrivals, Credit, Turn};
use super::verbs::{Completion, Outcome, QueuePair, Region, Sizes};
use crate::link::{Carrier, CarrierKind, Read, Sink, Source};
use crate::{LinkError, Violation};

/// Slots that a peer may write; a decode message fits into one.
pub(super) const SLOTS: u32 = 16;
pub(super) const SLOT_BYTES: usize = 128 << 10;
/// Control messages under way at once.
const CONTROLS: usize = 16;
const CONTROL_BYTES: usize = 9;
/// Writes are numbered by their place in the order; control messages from here.
const CONTROL_NUMBER: u64 = 1 << 63;
/// How long the last message of a link may take to leave.
const FAREWELL: Duration = Duration::from_millis(500);

/// Of the queue pairs that carry links.
pub(super) const SIZES: Sizes = Sizes {
    sends: SLOTS + CONTROLS as u32,
    // Each slot that is written and each control message of the peer uses one up.
    receives: SLOTS + 2 * CONTROLS as u32,
    receive_bytes: 16,
    staging_bytes: SLOTS as usize * SLOT_BYTES + CONTROLS * CONTROL_BYTES,
};

/// What a control message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    /// So many slots have been taken since the link began.
    Taken(u64),
    /// Answer with the same number.
    Ping(u64),
    Pong(u64),
    /// No more bytes follow.
    Finish,
    /// The carrier ends; whether everything sent was received.
    End(bool),
}

impl Control {
    fn encode(self) -> [u8; CONTROL_BYTES] {
        let (kind, value) = match self {
            Self::Taken(total) => (1, total),
            Self::Ping(stamp) => (2, stamp),
            Self::Pong(stamp) => (3, stamp),
            Self::Finish => (4, 0),
            Self::End(finished) => (5, u64::from(finished)),
        };
        let mut message = [kind; CONTROL_BYTES];
        message[1..].copy_from_slice(&value.to_le_bytes());
        message
    }

    fn parse(message: &[u8]) -> Result<Self, Violation> {
        let unknown = || Violation::Carrier("a control message that is none".into());
        let (&[kind], value) = message.split_first_chunk().ok_or_else(unknown)?;
        let value = u64::from_le_bytes(value.try_into().map_err(|_| unknown())?);
        match (kind, value) {
            (1, total) => Ok(Self::Taken(total)),
            (2, stamp) => Ok(Self::Ping(stamp)),
            (3, stamp) => Ok(Self::Pong(stamp)),
            (4, 0) => Ok(Self::Finish),
            (5, 0 | 1) => Ok(Self::End(value == 1)),
            _ => Err(unknown()),
        }
    }
}

/// Both streams of a link and what they share.
pub(super) struct Shared {
    pair: Arc<QueuePair>,
    /// What the peer may write; closed to it when the link ends.
    slots: Mutex<Option<Region>>,
    peer: Grant,
    dead_peer_timeout: Duration,
    start: Instant,
    state: Mutex<State>,
    /// A slot of the peer, or staging memory, became free.
    room: Notify,
}

struct State {
    credit: Credit,
    arrivals: Arrivals,
    /// Control messages to send, at most one of each kind.
    due: VecDeque<Control>,
    controls_sent: u64,
    controls_done: u64,
    heard: Instant,
    rtt: Option<Duration>,
    /// Pieces that arrived and were not read.
    inbox: VecDeque<Bytes>,
    finished: bool,
    ended: Option<bool>,
}

impl State {
    /// Queues a control message; a newer one of the same kind replaces an older.
    fn say(&mut self, control: Control) {
        let kind = std::mem::discriminant(&control);
        self.due.retain(|due| std::mem::discriminant(due) != kind);
        self.due.push_back(control);
    }
}

impl Shared {
    /// The carrier of a link whose both sides have granted each other slots.
    pub(super) fn new(
        pair: Arc<QueuePair>,
        slots: Region,
        peer: Grant,
        dead_peer_timeout: Duration,
    ) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            credit: Credit::new(u64::from(peer.slots), u64::from(SLOTS)),
            arrivals: Arrivals::new(u64::from(SLOTS), SLOT_BYTES),
            due: VecDeque::new(),
            controls_sent: 0,
            controls_done: 0,
            heard: now,
            rtt: None,
            inbox: VecDeque::new(),
            finished: false,
            ended: None,
        };
        Arc::new(Self {
            pair,
            slots: Mutex::new(Some(slots)),
            peer,
            dead_peer_timeout,
            start: now,
            state: Mutex::new(state),
            room: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the state of a carrier")
    }

    /// Takes in what is over, and sends the control messages that follow from it.
    fn pump(&self) -> Result<(), LinkError> {
        let mut state = self.lock();
        while state.inbox.len() < SLOTS as usize
            && let Some(completion) = self.pair.poll().map_err(local)?
        {
            self.apply(&mut state, completion)?;
        }
        if let Some(total) = state.arrivals.due() {
            state.say(Control::Taken(total));
        }
        self.flush(&mut state)
    }

    fn apply(&self, state: &mut State, completion: Completion) -> Result<(), LinkError> {
        let Completion { number, outcome } = completion;
        match outcome {
            Outcome::Sent if number >= CONTROL_NUMBER => state.controls_done += 1,
            Outcome::Sent => {
                state.credit.sent();
                self.room.notify_one();
            }
            Outcome::Written { bytes, immediate } => {
                let slot = state.arrivals.take(immediate, bytes)?;
                let slots = self.slots.lock().expect("nothing panics while it holds the slots");
                let Some(slots) = &*slots else { return Err(LinkError::EndpointGone) };
                state.inbox.push_back(slots.read(slot * SLOT_BYTES, bytes).into());
                self.heard(state, number)?;
            }
            Outcome::Received { bytes } => {
                let control = Control::parse(&self.pair.received(number, bytes))?;
                self.heard(state, number)?;
                self.obey(state, control)?;
            }
            Outcome::Unanswered => return Err(LinkError::TimedOut),
            Outcome::Flushed => return Err(LinkError::PeerLost("its queue pair is gone".into())),
            Outcome::Failed(cause) => return Err(LinkError::PeerLost(cause.into())),
        }
        Ok(())
    }

    fn heard(&self, state: &mut State, receive: u64) -> Result<(), LinkError> {
        state.heard = Instant::now();
        self.pair.receive(receive).map_err(local)
    }

    fn obey(&self, state: &mut State, control: Control) -> Result<(), LinkError> {
        if state.ended.is_some() {
            return Err(Violation::Carrier("a message after the end".into()).into());
        }
        match control {
            Control::Taken(total) => {
                state.credit.taken(total)?;
                self.room.notify_one();
            }
            Control::Ping(stamp) => state.say(Control::Pong(stamp)),
            Control::Pong(stamp) => {
                let now = self.start.elapsed();
                let Some(sample) = now.checked_sub(Duration::from_micros(stamp)) else {
                    return Err(Violation::Carrier("an answer to a question of the future".into()).into());
                };
                state.rtt = Some(state.rtt.map_or(sample, |rtt| (7 * rtt + sample) / 8));
            }
            Control::Finish => state.finished = true,
            Control::End(finished) => state.ended = Some(finished),
        }
        Ok(())
    }

    fn flush(&self, state: &mut State) -> Result<(), LinkError> {
        while state.controls_sent - state.controls_done < CONTROLS as u64
            && let Some(control) = state.due.pop_front()
        {
            let place = (state.controls_sent % CONTROLS as u64) as usize;
            let offset = SLOTS as usize * SLOT_BYTES + place * CONTROL_BYTES;
            let message = control.encode();
            self.pair.staging().write(offset, &message);
            self.pair.send(CONTROL_NUMBER + state.controls_sent, offset, message.len()).map_err(local)?;
            state.controls_sent += 1;
        }
        Ok(())
    }

    /// Waits for the memory of the next write.
    async fn turn(&self) -> Turn {
        loop {
            let turn = self.lock().credit.next();
            match turn {
                Some(turn) => return turn,
                None => self.room.notified().await,
            }
        }
    }

    /// What there is to read, if anything is.
    fn take(&self, pieces: &mut [Bytes]) -> Option<Result<Read, LinkError>> {
        let mut state = self.lock();
        let count = state.inbox.len().min(pieces.len());
        for (piece, arrived) in pieces.iter_mut().zip(state.inbox.drain(..count)) {
            *piece = arrived;
        }
        match (count, state.finished, state.ended) {
            (1.., ..) => Some(Ok(Read::Pieces(count))),
            (0, _, Some(true)) => Some(Ok(Read::Finished)),
            (0, _, Some(false)) => Some(Err(LinkError::PeerLost("its endpoint went away".into()))),
            (0, true, None) => Some(Ok(Read::End)),
            (0, false, None) => None,
        }
    }

    /// Pings the peer; an error when it has been silent for too long.
    fn beat(&self) -> Result<(), LinkError> {
        let mut state = self.lock();
        if state.heard.elapsed() >= self.dead_peer_timeout {
            return Err(LinkError::TimedOut);
        }
        state.say(Control::Ping(self.start.elapsed().as_micros() as u64));
        self.flush(&mut state)
    }

    /// Sends the last message, waits until it has left, and disconnects.
    async fn part(&self, finished: bool) {
        let last = {
            let mut state = self.lock();
            state.due.retain(|due| *due == Control::Finish);
            state.say(Control::End(finished));
            // A failed pair sends nothing more; the peer has the connection manager's word.
            let _ = self.flush(&mut state);
            state.controls_sent
        };
        let sent = async {
            while self.lock().controls_done < last && self.drain().is_ok() {
                if self.pair.woken().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(FAREWELL, sent).await;
        self.pair.disconnect();
    }

    /// Takes in what is over without obeying it, as the link is.
    fn drain(&self) -> io::Result<()> {
        self.pair.arm()?;
        let mut state = self.lock();
        while let Some(Completion { number, outcome }) = self.pair.poll()? {
            match outcome {
                Outcome::Sent if number >= CONTROL_NUMBER => state.controls_done += 1,
                Outcome::Unanswered | Outcome::Flushed | Outcome::Failed(_) => {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                Outcome::Sent | Outcome::Written { .. } | Outcome::Received { .. } => {}
            }
        }
        Ok(())
    }
}

/// Calls of the device that fail without the peer's doing.
fn local(error: io::Error) -> LinkError {
    tracing::warn!(%error, "an RDMA device failed");
    LinkError::EndpointGone
}

pub(crate) struct Incoming {
    pub(super) shared: Arc<Shared>,
    pub(super) beats: tokio::time::Interval,
}

impl Incoming {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let mut beats = tokio::time::interval(shared.dead_peer_timeout / 4);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self { shared, beats }
    }
}

impl Source for Incoming {
    async fn read(&mut self, pieces: &mut [Bytes]) -> Result<Read, LinkError> {
        let shared = &*self.shared;
        loop {
            // What came before a failure is read before it.
            let pumped = shared.pump();
            if let Some(read) = shared.take(pieces) {
                return read;
            }
            pumped?;
            shared.pair.arm().map_err(local)?;
            let pumped = shared.pump();
            if let Some(read) = shared.take(pieces) {
                return read;
            }
            pumped?;
            tokio::select! {
                biased;
                woken = shared.pair.woken() => woken.map_err(local)?,
                cause = shared.pair.disconnected() => {
                    let _ = shared.pump();
                    let lost = Err(LinkError::PeerLost(cause.to_string()));
                    return shared.take(pieces).unwrap_or(lost);
                }
                _ = self.beats.tick() => shared.beat()?,
            }
        }
    }
}

pub(crate) struct Outgoing(pub(super) Arc<Shared>);

impl Sink for Outgoing {
    async fn write(&mut self, pieces: &mut [Bytes]) -> Result<(), LinkError> {
        let shared = &*self.0;
        let most = SLOT_BYTES.min(shared.peer.slot_bytes as usize);
        let mut pieces = pieces.iter_mut().peekable();
        loop {
            while pieces.next_if(|piece| piece.is_empty()).is_some() {}
            if pieces.peek().is_none() {
                return Ok(());
            }
            let turn = shared.turn().await;
            let offset = turn.piece * SLOT_BYTES;
            let mut bytes = 0;
            while bytes < most
                && let Some(piece) = pieces.peek_mut()
            {
                let part = piece.split_to(piece.len().min(most - bytes));
                shared.pair.staging().write(offset + bytes, &part);
                bytes += part.len();
                if piece.is_empty() {
                    pieces.next();
                }
            }
            let to = shared.peer.address + turn.slot * u64::from(shared.peer.slot_bytes);
            let posted =
                shared.pair.write(turn.number, (offset, bytes), (to, shared.peer.key), turn.number as u32);
            if posted.is_err() {
                // A pair that has failed takes nothing; how it failed is for the reader to say.
                return pending().await;
            }
        }
    }

    fn finish(&mut self) {
        let mut state = self.0.lock();
        state.say(Control::Finish);
        // As above.
        let _ = self.0.flush(&mut state);
    }
}

pub(crate) struct Connection(pub(super) Arc<Shared>);

impl Carrier for Connection {
    fn kind(&self) -> CarrierKind {
        CarrierKind::Rdma
    }

    fn rtt(&self) -> Option<Duration> {
        self.0.lock().rtt
    }

    fn end(&self, finished: bool) {
        // From here on the peer's key opens nothing.
        self.0.slots.lock().expect("nothing panics while it holds the slots").take();
        let shared = self.0.clone();
        tokio::spawn(async move { shared.part(finished).await });
    }
}
