use proptest::prelude::*;

use super::*;
use crate::account::{Account, Meter};

#[test]
fn a_session_has_room_while_credit_and_lock_last() {
    let mut tab = Tab::new(2, 100, 1000, 1, 0);
    assert_eq!(tab.room(76, 1), Err(NoRoom::Prompt { limit: 75 }));
    assert_eq!(tab.room(50, 451), Err(NoRoom::Lock));
    tab.open(50, 10);
    assert_eq!(tab.room(50, 10), Err(NoRoom::Credit));
    tab.answered(50);
    assert_eq!(tab.room(50, 10), Err(NoRoom::Credit), "received, and not paid");
    assert_eq!(tab.sign(), Some(100));
    assert_eq!(tab.sign(), None);
    assert_eq!(tab.room(50, 10), Err(NoRoom::Credit), "signed, and not confirmed");
    tab.confirmed(0, 100, 50);
    assert_eq!(tab.room(50, 10), Ok(()));
}

#[test]
fn what_is_never_received_is_never_paid_and_uses_up_the_credit() {
    let mut tab = Tab::new(1, 100, 10_000, 2, 0);
    tab.open(30, 5);
    tab.abandoned(30);
    tab.close(35);
    assert_eq!((tab.sign(), tab.room(1, 1)), (None, Err(NoRoom::Worn)));
    tab.late(30);
    assert_eq!((tab.sign(), tab.room(1, 1)), (Some(31), Ok(())));
    tab.recounted(1, 61);
    assert_eq!(tab.room(1, 1), Err(NoRoom::Worn), "a stage has served 30 of which nothing came");
}

/// One step of a story with a payer, a payee, and messages between them.
#[derive(Clone, Copy, Debug)]
enum Event {
    Open {
        prompt: u16,
        reply: u8,
    },
    /// The payee computes the next row of a session, and the token reaches the payer.
    Work(usize),
    /// The payer goes away from a session.
    Leave(usize),
    Sign,
    /// The newest voucher that was signed reaches the payee, and its word the payer.
    Deliver,
    PayerDies,
    PayeeDies,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (1u16..120, 1u8..20).prop_map(|(prompt, reply)| Event::Open { prompt, reply }),
        12 => (0usize..8).prop_map(Event::Work),
        1 => (0usize..8).prop_map(Event::Leave),
        3 => Just(Event::Sign),
        3 => Just(Event::Deliver),
        1 => Just(Event::PayerDies),
        1 => Just(Event::PayeeDies),
    ]
}

struct Session {
    meter: Meter,
    prompt: u64,
    reply: u64,
    done: u64,
}

/// Both sides, what survives them, and what an observer counts.
struct Story {
    tab: Tab,
    account: Account,
    sessions: Vec<Session>,
    /// The newest voucher, durable with the payer and with the payee.
    signed: u128,
    held: u128,
    /// Tokens that the payer really received.
    received: u64,
    /// Most of what was worked that the payee forgot in one restart.
    forgotten: u64,
    /// What the payer received and forgot in all restarts, and most in one.
    unsaid: u64,
    most_unsaid: u64,
}

const PRICE: u64 = 7;
const CREDIT: u64 = 200;
const LOCK: u128 = 7 * 3000;

impl Story {
    fn new() -> Self {
        Self {
            tab: Tab::new(PRICE, CREDIT, LOCK, 1, 0),
            account: Account::new(PRICE, CREDIT, LOCK, 0),
            sessions: Vec::new(),
            signed: 0,
            held: 0,
            received: 0,
            forgotten: 0,
            unsaid: 0,
            most_unsaid: 0,
        }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Open { prompt, reply } => {
                let (prompt, reply) = (u64::from(prompt), u64::from(reply));
                if self.tab.room(prompt, reply).is_ok() {
                    self.tab.open(prompt, reply);
                    let meter = Meter::new(prompt as u32);
                    self.sessions.push(Session { meter, prompt, reply, done: 0 });
                }
            }
            Event::Work(which) => self.work(which),
            Event::Leave(which) if which < self.sessions.len() => {
                let session = self.sessions.remove(which);
                if session.done == 0 {
                    self.tab.abandoned(session.prompt);
                    self.tab.close(session.prompt + session.reply);
                } else {
                    self.tab.close(session.reply - session.done);
                }
            }
            Event::Sign => self.signed = self.tab.sign().unwrap_or(self.signed),
            Event::Deliver => {
                self.held = self.held.max(self.signed);
                self.account.pay(self.held);
                self.tab.confirmed(0, self.held, self.account.served());
            }
            Event::PayerDies => {
                self.sessions.clear();
                let unsaid = self.received - self.unsaid - (self.signed / u128::from(PRICE)) as u64;
                self.most_unsaid = self.most_unsaid.max(unsaid);
                self.unsaid += unsaid;
                self.tab = Tab::new(PRICE, CREDIT, LOCK, 1, self.signed);
                self.tab.confirmed(0, self.held, self.account.served());
                self.tab.recounted(0, self.account.served());
            }
            Event::PayeeDies => {
                while !self.sessions.is_empty() {
                    self.happens(Event::Leave(0));
                }
                let before = self.account.served();
                self.account = Account::new(PRICE, CREDIT, LOCK, self.held);
                self.forgotten = self.forgotten.max(before - self.account.served());
                self.tab.recounted(0, self.account.served());
            }
            Event::Leave(_) => {}
        }
    }

    fn work(&mut self, which: usize) {
        let Some(session) = self.sessions.get_mut(which) else { return };
        let (from, to) = match session.done {
            0 => (0, session.prompt as u32),
            done => ((session.prompt + done - 1) as u32, (session.prompt + done) as u32),
        };
        let tokens = session.meter.advance(from, to, 0);
        self.account.serve(tokens).expect("an honest payer never asks for more than the credit");
        if session.done == 0 {
            self.tab.answered(session.prompt);
            self.received += session.prompt;
        }
        self.tab.token();
        session.done += 1;
        self.received += 1;
        if session.done == session.reply {
            self.tab.close(0);
            self.sessions.remove(which);
        }
        if self.tab.presses() {
            self.happens(Event::Sign);
            self.happens(Event::Deliver);
        }
    }
}

proptest! {
    /// Whatever happens in whatever order: the payee is never out by more than its credit, the payer never
    /// signs for more than it received, vouchers never fall, and nobody counts anything twice.
    #[test]
    fn neither_side_loses_more_than_the_credit(events in prop::collection::vec(event(), 0..200)) {
        let mut story = Story::new();
        for event in events {
            let (signed, held) = (story.signed, story.held);
            story.happens(event);
            prop_assert!(story.signed >= signed && story.held >= held, "a total fell");
            prop_assert!(story.signed <= u128::from(story.received) * u128::from(PRICE), "signed too much");
            prop_assert!(story.signed <= LOCK);
            prop_assert!(story.account.unpaid() <= CREDIT);
            let lost = story.forgotten.max(story.most_unsaid);
            prop_assert!(lost <= CREDIT, "a restart lost {lost} tokens");
        }
        // In the end everything that was received and not forgotten is paid, to the wei.
        story.happens(Event::Sign);
        story.happens(Event::Deliver);
        prop_assert_eq!(story.held, u128::from(story.received - story.unsaid) * u128::from(PRICE));
    }
}
