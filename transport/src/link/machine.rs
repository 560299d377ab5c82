//! The link protocol with no socket and no clock.
//!
//! Both sides say hello, then send messages as far as the receiver has granted credit, then
//! say close. Credit counts bytes from the start of the link: every message costs its body
//! plus [`MESSAGE_OVERHEAD_BYTES`], so empty ones are bounded too. A receiver grants again
//! what its application took, once that is a quarter of its window.
//!
//! A side that closes sends what it had queued, then its close, and is done when the peer's
//! close answers: the peer has then received all of it. The side that answers drops what it
//! had queued, because nobody listens any more, and waits for the carrier to end.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::meter::{Meter, Throughput};
use super::{LinkError, LinkStats, Message, SendError, TrySendError, Violation};
use crate::Limits;
use crate::frame::{self, CloseReason, Decoder, Frame, Hello};

/// Version of the link protocol.
pub const PROTOCOL: u16 = 1;
/// Credit a message costs beyond its body; what a queued message occupies beside its bytes.
pub const MESSAGE_OVERHEAD_BYTES: u64 = 64;
/// Messages are handed out for transmission until a batch has this many bytes.
const BATCH_BYTES: usize = 256 * 1024;

/// The credit that a message with a body of `body_bytes` costs.
pub fn cost(body_bytes: usize) -> u64 {
    body_bytes as u64 + MESSAGE_OVERHEAD_BYTES
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waiting for the peer's hello.
    Opening {
        deadline: Instant,
    },
    Open,
    /// A close is queued or sent; `initiated` when this side was first to want it.
    Closing {
        deadline: Instant,
        initiated: bool,
    },
    /// Nothing more will be exchanged; the carrier may go.
    Done,
}

/// One side of a link.
#[derive(Debug)]
pub struct Machine {
    phase: Phase,
    /// First cause of the end; set exactly when the phase is past `Open`.
    end: Option<LinkError>,
    close_timeout: Duration,
    window_bytes: u64,
    send_queue_bytes: u64,

    hello_due: Option<Hello>,
    credit_due: bool,
    close_due: Option<CloseReason>,
    close_sent: bool,
    outbox: VecDeque<Message>,
    outbox_bytes: u64,
    peer: Option<Hello>,
    /// Cost of everything ever queued; never above `credit_bytes`.
    sent_bytes: u64,
    credit_bytes: u64,

    decoder: Decoder,
    close_received: bool,
    inbox: VecDeque<Bytes>,
    received_bytes: u64,
    consumed_bytes: u64,
    granted_bytes: u64,
    stats: LinkStats,
    meter: Meter,
}

impl Machine {
    /// A link about to say hello. `limits` have been validated.
    pub fn new(limits: &Limits, now: Instant) -> Self {
        let window_bytes = limits.receive_window_bytes;
        let hello = Hello { protocol: PROTOCOL, max_message_bytes: limits.max_message_bytes, window_bytes };
        Self {
            phase: Phase::Opening { deadline: now + limits.connect_timeout },
            end: None,
            close_timeout: limits.close_timeout,
            window_bytes,
            send_queue_bytes: limits.send_queue_bytes,
            hello_due: Some(hello),
            credit_due: false,
            close_due: None,
            close_sent: false,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            peer: None,
            sent_bytes: 0,
            credit_bytes: 0,
            decoder: Decoder::new(limits.max_message_bytes),
            close_received: false,
            inbox: VecDeque::new(),
            received_bytes: 0,
            consumed_bytes: 0,
            granted_bytes: window_bytes,
            stats: LinkStats::default(),
            meter: Meter::default(),
        }
    }

    // What the application does.

    /// Queues a message if the peer granted credit for it and there is room.
    pub fn try_send(&mut self, message: Message) -> Result<(), TrySendError> {
        if let Some(end) = &self.end {
            return Err(SendError::Ended(end.clone()).into());
        }
        let Some(peer) = self.peer else { return Err(TrySendError::Full(message)) };
        let (bytes, limit_bytes) = (message.len(), peer.max_message_bytes);
        if bytes > limit_bytes as usize {
            return Err(SendError::TooLarge { bytes, limit_bytes }.into());
        }
        let cost = cost(bytes);
        let room = self.outbox.is_empty() || self.outbox_bytes + cost <= self.send_queue_bytes;
        if !room || self.credit_bytes - self.sent_bytes < cost {
            return Err(TrySendError::Full(message));
        }
        self.sent_bytes += cost;
        self.outbox_bytes += cost;
        self.outbox.push_back(message);
        Ok(())
    }

    /// The next message that arrived whole; taking it gives credit back to the peer.
    pub fn poll_message(&mut self) -> Option<Bytes> {
        let message = self.inbox.pop_front()?;
        self.consumed_bytes += cost(message.len());
        let withheld = self.consumed_bytes + self.window_bytes - self.granted_bytes;
        if withheld >= self.window_bytes / 4 && self.end.is_none() {
            self.granted_bytes += withheld;
            self.credit_due = true;
        }
        Some(message)
    }

    /// Ends the link after what is queued; later calls change nothing. Messages that arrived
    /// before can still be taken.
    pub fn close(&mut self, reason: CloseReason, now: Instant) {
        if self.end.is_none() {
            self.end = Some(LinkError::ClosedLocally(reason.clone()));
            self.start_closing(reason, now, true);
        }
    }

    /// Why the link is over, once it is.
    pub fn end(&self) -> Option<&LinkError> {
        self.end.as_ref()
    }

    /// Whether messages have arrived that were not taken.
    pub fn has_message(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Counters so far.
    pub fn stats(&self) -> LinkStats {
        self.stats
    }

    /// What the peer's long messages were seen to arrive at, if there were any.
    pub fn throughput(&self) -> Option<Throughput> {
        self.meter.throughput()
    }

    // What the carrier does.

    /// Takes bytes that arrived in order.
    pub fn receive(&mut self, mut bytes: &[u8], now: Instant) {
        self.stats.bytes_received += bytes.len() as u64;
        while !bytes.is_empty() && self.is_listening() {
            let outcome = match self.decoder.next(&mut bytes) {
                Ok(None) => Ok(()),
                Ok(Some(frame)) => self.receive_frame(frame, now),
                Err(error) => Err(error.into()),
            };
            if let Err(violation) = outcome {
                self.refuse(violation, now);
            }
        }
        if let Some((there, length)) = self.decoder.arriving() {
            self.meter.arriving(there, length, now);
        }
    }

    /// The peer's stream ended.
    pub fn receive_end(&mut self) {
        if !self.close_received && self.is_listening() {
            self.fail(Violation::EndWithoutClose.into());
        }
        self.phase = Phase::Done;
    }

    /// The carrier was ended by a peer that says it finished the protocol. Only while this
    /// side closes can that be true; then it confirms that everything arrived.
    pub fn carrier_ended(&mut self) {
        if self.end.is_none() {
            self.fail(LinkError::PeerLost("it ended the connection".into()));
        }
        self.phase = Phase::Done;
    }

    /// The carrier failed.
    pub fn fail(&mut self, error: LinkError) {
        let draining = matches!(self.phase, Phase::Closing { initiated: true, .. });
        if self.end.is_none() || draining {
            self.end = Some(error);
        }
        self.outbox.clear();
        self.phase = Phase::Done;
    }

    /// When [`Machine::receive_deadline`] wants to be called, if at all.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Opening { deadline } | Phase::Closing { deadline, .. } => Some(deadline),
            Phase::Open | Phase::Done => None,
        }
    }

    /// Time has come to `now`.
    pub fn receive_deadline(&mut self, now: Instant) {
        match self.phase {
            Phase::Opening { deadline } if now >= deadline => self.fail(LinkError::HandshakeTimedOut),
            Phase::Closing { deadline, .. } if now >= deadline => self.fail(LinkError::NotDrained),
            _ => {}
        }
    }

    /// Appends to `batch` the bytes to write next; nothing when there is nothing to say. What
    /// is taken must be written, in order, unless the carrier fails.
    pub fn poll_transmit(&mut self, batch: &mut Vec<Bytes>) {
        let before = batch.len();
        if let Some(hello) = self.hello_due.take() {
            batch.push(frame::encode(&Frame::Hello(hello)));
        }
        if std::mem::take(&mut self.credit_due) {
            batch.push(frame::encode(&Frame::Credit { total_bytes: self.granted_bytes }));
        }
        let mut batch_bytes = 0;
        while batch_bytes < BATCH_BYTES {
            let Some(message) = self.outbox.pop_front() else { break };
            batch_bytes += message.len();
            self.outbox_bytes -= cost(message.len());
            self.stats.messages_sent += 1;
            // No body reaches u32::MAX: it passed the peer's limit.
            let header = frame::message_header(message.len() as u32);
            batch.push(Bytes::copy_from_slice(&header));
            batch.extend(message.into_parts());
        }
        if self.outbox.is_empty()
            && let Some(reason) = self.close_due.take()
        {
            batch.push(frame::encode(&Frame::Close(reason)));
            self.close_sent = true;
        }
        self.stats.bytes_sent += batch[before..].iter().map(|bytes| bytes.len() as u64).sum::<u64>();
    }

    /// Whether [`Machine::poll_transmit`] has something to say.
    pub fn wants_transmit(&self) -> bool {
        self.hello_due.is_some() || self.credit_due || !self.outbox.is_empty() || self.close_due.is_some()
    }

    /// Whether the last byte has been handed out, so that the stream can be finished.
    pub fn is_sent(&self) -> bool {
        self.close_sent
    }

    /// Whether the handshake is over, by success or failure.
    pub fn is_opened(&self) -> bool {
        !matches!(self.phase, Phase::Opening { .. })
    }

    /// Whether the carrier has nothing more to carry.
    pub fn is_done(&self) -> bool {
        match self.phase {
            Phase::Closing { initiated: true, .. } => self.close_sent && self.close_received,
            phase => phase == Phase::Done,
        }
    }

    /// Whether the peer's close has arrived, and with it everything that the peer sent.
    pub fn is_received(&self) -> bool {
        self.close_received
    }

    fn is_listening(&self) -> bool {
        self.phase != Phase::Done && !matches!(self.end, Some(LinkError::Violation(_)))
    }

    fn receive_frame(&mut self, frame: Frame, now: Instant) -> Result<(), Violation> {
        if self.close_received {
            return Err(Violation::AfterClose);
        }
        match frame {
            Frame::Hello(hello) => self.receive_hello(hello),
            _ if self.peer.is_none() => Err(Violation::HelloExpected),
            Frame::Credit { total_bytes } if total_bytes < self.credit_bytes => {
                Err(Violation::CreditRegressed)
            }
            Frame::Credit { total_bytes } => {
                self.credit_bytes = total_bytes;
                Ok(())
            }
            Frame::Message(body) => {
                self.meter.arrived(body.len(), now);
                self.receive_message(body)
            }
            Frame::Close(reason) => {
                self.close_received = true;
                if self.end.is_none() {
                    self.end = Some(LinkError::ClosedByPeer(reason));
                    self.outbox.clear();
                    self.start_closing(CloseReason::new(0, ""), now, false);
                }
                Ok(())
            }
        }
    }

    fn receive_hello(&mut self, hello: Hello) -> Result<(), Violation> {
        if self.peer.is_some() {
            return Err(Violation::HelloRepeated);
        }
        if hello.protocol != PROTOCOL {
            return Err(Violation::Protocol(hello.protocol));
        }
        if hello.window_bytes < 2 * cost(hello.max_message_bytes as usize) {
            return Err(Violation::Window);
        }
        self.peer = Some(hello);
        self.credit_bytes = hello.window_bytes;
        if !self.is_opened() {
            self.phase = Phase::Open;
        }
        Ok(())
    }

    fn receive_message(&mut self, body: Bytes) -> Result<(), Violation> {
        self.received_bytes += cost(body.len());
        if self.received_bytes > self.granted_bytes {
            return Err(Violation::CreditExceeded(self.received_bytes - self.granted_bytes));
        }
        // Past a local close nobody takes messages.
        if self.end.is_none() {
            self.stats.messages_received += 1;
            self.inbox.push_back(body);
        }
        Ok(())
    }

    /// Ends the link over a violation and tells the peer, in case it is only mistaken.
    fn refuse(&mut self, violation: Violation, now: Instant) {
        if self.end.is_some() {
            return self.fail(violation.into());
        }
        let reason = CloseReason::new(CloseReason::VIOLATION, violation.to_string());
        self.end = Some(violation.into());
        self.outbox.clear();
        self.start_closing(reason, now, false);
    }

    fn start_closing(&mut self, reason: CloseReason, now: Instant, initiated: bool) {
        self.close_due = Some(reason);
        self.credit_due = false;
        self.phase = Phase::Closing { deadline: now + self.close_timeout, initiated };
    }
}
