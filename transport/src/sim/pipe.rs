//! One direction of a simulated connection: bytes with times of arrival.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Conditions, Inner, Place};
use crate::LinkError;
use crate::link::{Carrier, CarrierKind, Read, Sink, Source};

/// Unread bytes that a pipe holds before its writer waits, as QUIC's windows do.
const CAPACITY_BYTES: usize = 8 << 20;
/// Bytes travel in segments of at most this, so that messages arrive in pieces.
const SEGMENT_BYTES: usize = 64 << 10;
/// What one loss or one jitter is drawn for.
const PACKET_BYTES: usize = 1452;
/// How often one packet may be lost in a row; the path is cut, not lossy, beyond that.
const MAX_LOSSES: u32 = 20;

pub(super) struct Pipe {
    network: Arc<Inner>,
    from: Place,
    to: Place,
    /// Of the reading side.
    dead_peer_timeout: Duration,
    state: Mutex<State>,
    arrived: Notify,
    room: Notify,
}

struct State {
    rng: ChaCha8Rng,
    segments: VecDeque<(Instant, Bytes)>,
    unread_bytes: usize,
    /// When the path has taken in what was written so far.
    busy_until: Instant,
    last_arrival: Instant,
    finished: Option<Instant>,
    /// When the news arrives that the writer ended the connection, and whether in order.
    ended: Option<(Instant, bool)>,
}

impl Pipe {
    pub(super) fn new(
        network: Arc<Inner>,
        (from, to): (Place, Place),
        dead_peer_timeout: Duration,
        rng: ChaCha8Rng,
    ) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            rng,
            segments: VecDeque::new(),
            unread_bytes: 0,
            busy_until: now,
            last_arrival: now,
            finished: None,
            ended: None,
        };
        let (arrived, room) = (Notify::new(), Notify::new());
        Arc::new(Self { network, from, to, dead_peer_timeout, state: Mutex::new(state), arrived, room })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds a simulated pipe")
    }

    fn conditions(&self) -> Conditions {
        self.network.conditions(self.from.id, self.to.id)
    }

    /// What can be read now; otherwise until when to wait at most.
    fn poll(&self, pieces: &mut [Bytes], healing: &mut Option<Instant>) -> Poll {
        let now = Instant::now();
        if self.network.is_dead(self.to) {
            return Poll::Ready(Err(LinkError::EndpointGone));
        }
        if let Some(since) = self.network.cut_since(self.from, self.to) {
            let death = since + self.dead_peer_timeout;
            // What waits for the end of a cut is sent again when it ends.
            *healing = Some(now);
            return if now >= death {
                Poll::Ready(Err(LinkError::TimedOut))
            } else {
                Poll::Wait(Some(death))
            };
        }
        if healing.take().is_some() {
            self.lock().delay_until(now + self.conditions().delay);
        }
        let mut state = self.lock();
        let state = &mut *state;
        match state.ended {
            Some((at, true)) if at <= now => return Poll::Ready(Ok(Read::Finished)),
            Some((at, false)) if at <= now => {
                return Poll::Ready(Err(LinkError::PeerLost("its endpoint went away".into())));
            }
            _ => {}
        }
        let mut count = 0;
        while count < pieces.len()
            && state.segments.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, segment)) = state.segments.pop_front()
        {
            state.unread_bytes -= segment.len();
            pieces[count] = segment;
            count += 1;
        }
        if count > 0 {
            self.room.notify_one();
            return Poll::Ready(Ok(Read::Pieces(count)));
        }
        if state.segments.is_empty() && state.finished.is_some_and(|at| at <= now) {
            return Poll::Ready(Ok(Read::End));
        }
        let head = state.segments.front().map(|(at, _)| *at).or(state.finished);
        Poll::Wait(head.into_iter().chain(state.ended.map(|(at, _)| at)).min())
    }
}

enum Poll {
    Ready(Result<Read, LinkError>),
    Wait(Option<Instant>),
}

impl State {
    /// When `bytes` that are written now arrive.
    fn arrival(&mut self, bytes: usize, conditions: Conditions) -> Instant {
        let now = Instant::now();
        let start = self.busy_until.max(now);
        let sending = match conditions.bandwidth_bytes_per_s {
            Some(rate) => Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64),
            None => Duration::ZERO,
        };
        self.busy_until = start + sending;
        let packets = bytes.div_ceil(PACKET_BYTES).max(1);
        let losses = (0..packets).map(|_| self.losses(conditions.loss)).max().unwrap_or(0);
        // A loss is noticed a round trip later, and the repetition travels once more.
        let repeat = 2 * conditions.delay + conditions.jitter + Duration::from_millis(1);
        let jitter = conditions.jitter.mul_f64(self.fraction());
        let arrival = self.busy_until + conditions.delay + jitter + repeat * losses;
        self.last_arrival = self.last_arrival.max(arrival);
        self.last_arrival
    }

    fn losses(&mut self, loss: f64) -> u32 {
        if loss <= 0.0 {
            return 0;
        }
        (0..MAX_LOSSES).take_while(|_| self.fraction() < loss).count() as u32
    }

    /// Even in [0, 1).
    fn fraction(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn delay_until(&mut self, time: Instant) {
        let ended = self.ended.as_mut().map(|(at, _)| at);
        let segments = self.segments.iter_mut().map(|(at, _)| at);
        for at in segments.chain(&mut self.finished).chain(ended) {
            *at = (*at).max(time);
        }
        self.last_arrival = self.last_arrival.max(time);
    }
}

pub(super) struct Incoming {
    pub(super) pipe: Arc<Pipe>,
    /// Set while the path is cut.
    pub(super) healing: Option<Instant>,
}

impl Source for Incoming {
    async fn read(&mut self, pieces: &mut [Bytes]) -> Result<Read, LinkError> {
        let mut changes = self.pipe.network.changes.subscribe();
        loop {
            let until = match self.pipe.poll(pieces, &mut self.healing) {
                Poll::Ready(read) => return read,
                Poll::Wait(until) => until,
            };
            let elapsed = async {
                match until {
                    Some(time) => tokio::time::sleep_until(time).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = changes.changed() => {}
                () = self.pipe.arrived.notified() => {}
                () = elapsed => {}
            }
        }
    }
}

pub(super) struct Outgoing(pub(super) Arc<Pipe>);

impl Sink for Outgoing {
    async fn write(&mut self, pieces: &mut [Bytes]) -> Result<(), LinkError> {
        for piece in pieces {
            while !piece.is_empty() {
                while self.0.lock().unread_bytes >= CAPACITY_BYTES {
                    self.0.room.notified().await;
                }
                let segment = piece.split_to(piece.len().min(SEGMENT_BYTES));
                let conditions = self.0.conditions();
                let mut state = self.0.lock();
                let arrival = state.arrival(segment.len(), conditions);
                state.unread_bytes += segment.len();
                state.segments.push_back((arrival, segment));
                drop(state);
                self.0.arrived.notify_one();
            }
        }
        Ok(())
    }

    fn finish(&mut self) {
        let conditions = self.0.conditions();
        let mut state = self.0.lock();
        let arrival = state.arrival(0, conditions);
        state.finished.get_or_insert(arrival);
        drop(state);
        self.0.arrived.notify_one();
    }
}

/// One side's view of a connection: the pipe it writes to.
pub(super) struct Connection(pub(super) Arc<Pipe>);

impl Carrier for Connection {
    fn kind(&self) -> CarrierKind {
        CarrierKind::Simulated
    }

    fn rtt(&self) -> Option<Duration> {
        let Pipe { network, from, to, .. } = &*self.0;
        Some(network.conditions(from.id, to.id).delay + network.conditions(to.id, from.id).delay)
    }

    fn end(&self, finished: bool) {
        if self.0.network.is_dead(self.0.from) {
            return;
        }
        // Like a connection's close it overtakes the bytes still under way.
        let arrival = Instant::now() + self.0.conditions().delay;
        self.0.lock().ended.get_or_insert((arrival, finished));
        self.0.arrived.notify_one();
    }
}
