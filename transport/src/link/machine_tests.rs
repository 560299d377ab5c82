//! Two machines and the bytes between them, with no socket and no clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::{LinkError, Machine, SendError, TrySendError, Violation, cost};
use crate::frame::{self, CloseReason, Frame, FrameError, Hello};
use crate::{Fault, Limits};

const MAX_BYTES: u32 = 1000;

fn limits() -> Limits {
    Limits { send_queue_bytes: 5000, ..Limits::default() }.with_max_message_bytes(MAX_BYTES)
}

/// Two machines, joined by two queues of bytes.
struct Pair {
    now: Instant,
    sides: [Machine; 2],
    wires: [VecDeque<u8>; 2],
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        let sides = [0, 1].map(|_| Machine::new(&limits(), now));
        Self { now, sides, wires: Default::default() }
    }

    fn open() -> Self {
        let mut pair = Self::new();
        pair.settle();
        pair
    }

    fn transmit(&mut self, side: usize) {
        let mut batch = Vec::new();
        self.sides[side].poll_transmit(&mut batch);
        self.wires[side].extend(batch.iter().flatten());
    }

    fn deliver(&mut self, from: usize, most: usize) {
        let count = most.min(self.wires[from].len());
        let bytes: Vec<u8> = self.wires[from].drain(..count).collect();
        self.sides[1 - from].receive(&bytes, self.now);
    }

    /// Moves bytes until nobody has anything to say.
    fn settle(&mut self) {
        while self.sides.iter().any(Machine::wants_transmit) || self.wires.iter().any(|w| !w.is_empty()) {
            for side in [0, 1] {
                self.transmit(side);
                self.deliver(side, usize::MAX);
            }
        }
    }
}

fn hello() -> Hello {
    let limits = limits();
    let window_bytes = limits.receive_window_bytes;
    Hello { protocol: super::PROTOCOL, max_message_bytes: MAX_BYTES, window_bytes }
}

/// How a link ends for a peer that sends these frames.
fn end_after(frames: &[Frame]) -> Option<LinkError> {
    let now = Instant::now();
    let mut machine = Machine::new(&limits(), now);
    for frame in frames {
        machine.receive(&frame::encode(frame), now);
    }
    machine.end().cloned()
}

#[derive(Clone, Debug)]
enum Step {
    Send { side: usize, bytes: usize },
    Take { side: usize },
    Transmit { side: usize },
    Deliver { side: usize, bytes: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let side = || 0usize..2;
    let step = prop_oneof![
        3 => (side(), 0..=MAX_BYTES as usize).prop_map(|(side, bytes)| Step::Send { side, bytes }),
        2 => side().prop_map(|side| Step::Take { side }),
        2 => side().prop_map(|side| Step::Transmit { side }),
        4 => (side(), 1usize..900).prop_map(|(side, bytes)| Step::Deliver { side, bytes }),
    ];
    proptest::collection::vec(step, 0..300)
}

proptest! {
    /// Whatever the order of events and the cutting of bytes: messages arrive whole, in order
    /// and all, credit is never overrun, and both sides drain after a close.
    #[test]
    fn messages_survive_any_schedule(steps in steps(), closer in 0usize..2) {
        let mut pair = Pair::new();
        let mut sent: [VecDeque<Bytes>; 2] = Default::default();
        let mut count = 0u8;
        let take = |machine: &mut Machine, sent: &mut VecDeque<Bytes>| {
            let message = machine.poll_message();
            if message.is_some() {
                assert_eq!(message, sent.pop_front());
            }
            message.is_some()
        };
        for step in steps {
            match step {
                Step::Send { side, bytes } => {
                    count = count.wrapping_add(1);
                    let body = Bytes::from(vec![count; bytes]);
                    match pair.sides[side].try_send(body.clone().into()) {
                        Ok(()) => sent[side].push_back(body),
                        Err(TrySendError::Full(_)) => {}
                        Err(error) => prop_assert!(false, "{error}"),
                    }
                }
                Step::Take { side } => _ = take(&mut pair.sides[side], &mut sent[1 - side]),
                Step::Transmit { side } => pair.transmit(side),
                Step::Deliver { side, bytes } => pair.deliver(side, bytes),
            }
            prop_assert_eq!(pair.sides[0].end(), None);
            prop_assert_eq!(pair.sides[1].end(), None);
            let unread: u64 = sent[0].iter().map(|body| cost(body.len())).sum();
            prop_assert!(unread <= limits().receive_window_bytes);
        }

        let reason = CloseReason::new(4, "enough");
        pair.sides[closer].close(reason.clone(), pair.now);
        pair.settle();
        while take(&mut pair.sides[1 - closer], &mut sent[closer]) {}
        prop_assert!(sent[closer].is_empty(), "a clean close lost messages");
        prop_assert_eq!(pair.sides[closer].end(), Some(&LinkError::ClosedLocally(reason.clone())));
        prop_assert_eq!(pair.sides[1 - closer].end(), Some(&LinkError::ClosedByPeer(reason)));
        prop_assert!(pair.sides[closer].is_done());
    }

    #[test]
    fn a_full_sender_always_gets_credit_again(sizes in proptest::collection::vec(0..=MAX_BYTES as usize, 1..200)) {
        let mut pair = Pair::open();
        let mut received = 0;
        for bytes in &sizes {
            while let Err(TrySendError::Full(_)) = pair.sides[0].try_send(vec![0; *bytes].into()) {
                pair.settle();
                prop_assert!(pair.sides[1].poll_message().is_some(), "no credit and nothing to take");
                received += 1;
                pair.settle();
            }
        }
        pair.settle();
        while pair.sides[1].poll_message().is_some() {
            received += 1;
        }
        prop_assert_eq!(received, sizes.len());
    }

    #[test]
    fn hostile_bytes_end_the_link_and_nothing_else(
        bytes in proptest::collection::vec(any::<u8>(), 1..400),
        cuts in proptest::collection::vec(1usize..50, 1..5),
        greet: bool,
    ) {
        let now = Instant::now();
        let mut machine = Machine::new(&limits(), now);
        if greet {
            machine.receive(&frame::encode(&Frame::Hello(hello())), now);
        }
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            machine.receive(piece, now);
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        machine.receive_end();
        prop_assert!(machine.is_done());
        prop_assert!(machine.end().is_some());
    }
}

#[test]
fn each_violation_is_named_and_blamed_on_the_peer() {
    let violations = [
        (vec![Frame::Credit { total_bytes: 1 }], Violation::HelloExpected),
        (vec![Frame::Hello(hello()); 2], Violation::HelloRepeated),
        (vec![Frame::Hello(Hello { protocol: 77, ..hello() })], Violation::Protocol(77)),
        (vec![Frame::Hello(Hello { window_bytes: 1500, ..hello() })], Violation::Window),
        (vec![Frame::Hello(hello()), Frame::Credit { total_bytes: 9 }], Violation::CreditRegressed),
    ];
    for (frames, violation) in violations {
        let end = end_after(&frames).unwrap();
        assert_eq!(end.fault(), Fault::Peer);
        assert_eq!(end, LinkError::Violation(violation));
    }
    let flood = [vec![Frame::Hello(hello())], vec![Frame::Message(vec![0; 1000].into()); 4]].concat();
    assert_eq!(end_after(&flood), Some(Violation::CreditExceeded(1064).into()));
    let large = [Frame::Hello(hello()), Frame::Message(vec![0; 1001].into())];
    let oversize = FrameError::Oversize { bytes: 1001, limit_bytes: 1000 };
    assert_eq!(end_after(&large), Some(Violation::from(oversize).into()));
}

#[test]
fn the_peer_reads_what_it_did_wrong() {
    let mut pair = Pair::open();
    pair.wires[0].extend(frame::encode(&Frame::Credit { total_bytes: 0 }));
    pair.settle();
    let Some(LinkError::ClosedByPeer(reason)) = pair.sides[0].end() else { panic!() };
    assert_eq!(reason.code, CloseReason::VIOLATION);
    assert!(reason.text.contains("credit"));
}

#[test]
fn a_message_over_the_peers_limit_is_the_callers_fault() {
    let mut pair = Pair::open();
    let outcome = pair.sides[0].try_send(vec![0; 1001].into());
    let too_large = SendError::TooLarge { bytes: 1001, limit_bytes: 1000 };
    assert!(matches!(outcome, Err(TrySendError::Failed(error)) if error == too_large));
    assert_eq!(pair.sides[0].end(), None);
}

#[test]
fn nothing_is_sent_before_the_peers_hello() {
    let mut machine = Machine::new(&limits(), Instant::now());
    assert!(matches!(machine.try_send(vec![1].into()), Err(TrySendError::Full(_))));
}

#[test]
fn a_silent_handshake_times_out() {
    let mut pair = Pair::new();
    let deadline = pair.sides[0].deadline().unwrap();
    assert_eq!(deadline, pair.now + limits().connect_timeout);
    pair.sides[0].receive_deadline(deadline - Duration::from_millis(1));
    assert_eq!(pair.sides[0].end(), None);
    pair.sides[0].receive_deadline(deadline);
    assert_eq!(pair.sides[0].end(), Some(&LinkError::HandshakeTimedOut));
}

#[test]
fn a_close_that_nobody_confirms_says_so() {
    let mut pair = Pair::open();
    pair.sides[0].try_send(vec![1].into()).unwrap();
    pair.sides[0].close(CloseReason::new(0, "bye"), pair.now);
    pair.transmit(0);
    assert!(!pair.sides[0].is_done());
    let deadline = pair.sides[0].deadline().unwrap();
    pair.sides[0].receive_deadline(deadline);
    assert!(pair.sides[0].is_done());
    assert_eq!(pair.sides[0].end(), Some(&LinkError::NotDrained));
}

#[test]
fn both_sides_may_close_at_once() {
    let mut pair = Pair::open();
    for side in [0, 1] {
        pair.sides[side].close(CloseReason::new(side as u32, ""), pair.now);
    }
    pair.settle();
    for side in [0, 1] {
        assert!(pair.sides[side].is_done());
        let reason = CloseReason::new(side as u32, "");
        assert_eq!(pair.sides[side].end(), Some(&LinkError::ClosedLocally(reason)));
    }
}

#[test]
fn the_first_end_is_the_one_reported() {
    let mut pair = Pair::open();
    pair.sides[0].close(CloseReason::new(1, "first"), pair.now);
    pair.sides[0].close(CloseReason::new(2, "second"), pair.now);
    pair.settle();
    pair.sides[1].fail(LinkError::TimedOut);
    let first = CloseReason::new(1, "first");
    assert_eq!(pair.sides[1].end(), Some(&LinkError::ClosedByPeer(first)));
}
