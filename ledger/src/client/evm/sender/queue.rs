//! What a sender has sent and has to send: decisions alone, without a wire and without a clock.
//!
//! An order gets a nonce once and keeps it: whatever is sent for it has that nonce, so that a chain takes at most
//! one. It is given another only when the chain shows somebody else's transaction under its nonce. An order that
//! was confirmed is kept for some blocks more, to be sent again if a reorganisation drops it.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use super::transaction::Attempt;
use crate::client::evm::{calls::Order, fees::Fees};

/// Missing nonces below ours that are filled with empty transactions; more are beyond repair.
const MOST_FILLERS: u64 = 16;
/// Transactions that are sent again at once.
const MOST_RESENT: usize = 16;

/// When to do what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// Blocks on top of an order, its own included, until it counts as done.
    pub(super) confirmations: u64,
    /// Blocks on top of an order until it is forgotten.
    pub(super) keep: u64,
    /// From sending to sending again.
    pub(super) resend: Duration,
    /// From sending to offering more.
    pub(super) raise: Duration,
}

/// An order and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) nonce: u64,
    pub(in crate::client::evm) order: Order,
    pub(super) gas: u64,
    /// What was sent for it, the best offer last.
    pub(super) attempts: Vec<Attempt>,
    /// Whether whoever ordered it was told that it is done.
    pub(super) told: bool,
    #[serde(skip)]
    pub(super) included: Option<Inclusion>,
    #[serde(skip)]
    signs: Signs,
}

/// Where a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inclusion {
    pub(super) block: u64,
    pub(super) hash: [u8; 32],
}

/// What nodes have let us know of an entry since we began.
#[derive(Clone, Debug, Default)]
struct Signs {
    /// When the newest attempt was sent last.
    sent_at: Option<Duration>,
    /// When its offer was made.
    offered_at: Option<Duration>,
    /// The offer is not enough, a node says.
    is_underpriced: bool,
    /// The nonce is used, a node says.
    is_used: bool,
    /// Since when the nonce is used and none of the attempts is found.
    missing_since: Option<Duration>,
    /// A node has it, or may have it.
    may_be_known: bool,
}

/// What a chain shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    /// Number of the newest block.
    pub(super) head: u64,
    /// The account's next nonce by that block.
    pub(super) nonce: u64,
    /// Fees of the next block.
    pub(super) fees: Fees,
    /// Time, from any beginning.
    pub(super) now: Duration,
}

/// What is to be done for an entry, by nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Send its newest attempt.
    Send(u64),
    /// Sign and send a better offer.
    Raise(u64),
    /// Find out who used its nonce.
    Investigate(u64),
    /// Use a nonce up that nothing else uses.
    Fill(u64),
    /// Say that it is done.
    Tell(u64),
}

/// What a node says to a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It has it.
    Yes,
    /// It may have it: no answer came.
    Maybe,
    /// Its nonce is used.
    Used,
    /// It offers too little.
    Underpriced,
    /// No, for another reason.
    No,
}

/// All entries, by nonce.
#[derive(Debug)]
pub(super) struct Queue {
    entries: VecDeque<Entry>,
    timing: Timing,
    /// Since when a nonce below ours is missing.
    gap_since: Option<Duration>,
}

impl Queue {
    /// A queue of what an earlier one has left. Any of it may be known to nodes.
    pub(super) fn new(timing: Timing, entries: Vec<Entry>) -> Self {
        let mut entries: VecDeque<Entry> = entries.into();
        entries.make_contiguous().sort_by_key(|entry| entry.nonce);
        for entry in &mut entries {
            entry.signs.may_be_known = true;
        }
        Self { entries, timing, gap_since: None }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(super) fn entry(&self, nonce: u64) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.nonce == nonce)
    }

    fn entry_mut(&mut self, nonce: u64) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.nonce == nonce)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether everybody was told.
    pub(super) fn is_settled(&self) -> bool {
        self.entries.iter().all(|entry| entry.told)
    }

    /// Whether something waits to be included.
    pub(super) fn has_open(&self) -> bool {
        self.entries.iter().any(|entry| entry.included.is_none())
    }

    /// What may still be paid for entries that are not included, in wei.
    pub(super) fn reserved_wei(&self) -> u128 {
        let open = self.entries.iter().filter(|entry| entry.included.is_none());
        open.fold(0, |sum, entry| sum.saturating_add(entry.most_wei()))
    }

    /// The nonce of the next order, where a node says what it knows of.
    pub(super) fn next_nonce(&self, by_node: u64) -> u64 {
        self.entries.back().map_or(by_node, |last| by_node.max(last.nonce.saturating_add(1)))
    }

    /// Takes an order in; its nonce is `next_nonce`, or fills a gap.
    pub(super) fn push(&mut self, nonce: u64, order: Order, gas: u64, attempt: Attempt) {
        let entry = Entry {
            nonce,
            order,
            gas,
            attempts: vec![attempt],
            told: false,
            included: None,
            signs: Signs::default(),
        };
        let place = self.entries.partition_point(|other| other.nonce < nonce);
        self.entries.insert(place, entry);
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, nonce: u64) -> Option<Entry> {
        let place = self.entries.iter().position(|entry| entry.nonce == nonce)?;
        self.entries.remove(place)
    }

    /// Whether an entry can be given up: no node may have it.
    pub(super) fn is_unknown(&self, nonce: u64) -> bool {
        self.entry(nonce).is_some_and(|entry| !entry.signs.may_be_known)
    }

    pub(super) fn is_last(&self, nonce: u64) -> bool {
        self.entries.back().is_some_and(|last| last.nonce == nonce)
    }

    /// A better offer was signed.
    pub(super) fn offered(&mut self, nonce: u64, attempt: Attempt) {
        if let Some(entry) = self.entry_mut(nonce) {
            entry.attempts.push(attempt);
            entry.signs.offered_at = None;
            entry.signs.sent_at = None;
            entry.signs.is_underpriced = false;
        }
    }

    /// A better offer could not be kept: it must not be sent either.
    pub(super) fn take_offer_back(&mut self, nonce: u64) {
        if let Some(entry) = self.entry_mut(nonce) {
            entry.attempts.pop();
        }
    }

    /// The newest attempt was sent.
    pub(super) fn sent(&mut self, nonce: u64, taken: Taken, now: Duration) {
        let Some(entry) = self.entry_mut(nonce) else { return };
        let signs = &mut entry.signs;
        signs.offered_at.get_or_insert(now);
        signs.may_be_known |= matches!(taken, Taken::Yes | Taken::Maybe | Taken::Used);
        match taken {
            Taken::Yes => {}
            // Soon again, without asking for more each time.
            Taken::Maybe => signs.sent_at = None,
            Taken::Used => signs.is_used = true,
            Taken::Underpriced => signs.is_underpriced = true,
            Taken::No => {}
        }
        if taken != Taken::Maybe {
            signs.sent_at = Some(now);
        }
    }

    /// The nonces whose attempts' receipts are of interest: used, and either not told about or not found.
    pub(super) fn to_look_up(&self, view: &View) -> Vec<u64> {
        let used = self.entries.iter().filter(|entry| entry.nonce < view.nonce || entry.signs.is_used);
        let open = used.filter(|entry| !entry.told || entry.included.is_none());
        open.map(|entry| entry.nonce).collect()
    }

    /// Whether one of the attempts was found in a block.
    pub(super) fn looked_up(&mut self, nonce: u64, found: Option<Inclusion>, now: Duration) {
        let Some(entry) = self.entry_mut(nonce) else { return };
        entry.included = found;
        if found.is_some() {
            entry.signs = Signs { may_be_known: true, ..Signs::default() };
        } else {
            entry.signs.missing_since.get_or_insert(now);
        }
    }

    /// Takes the view in, and says what is to be done.
    pub(super) fn step(&mut self, view: &View) -> Vec<Work> {
        self.forget(view);
        let mut work = self.fillers(view);
        let mut sends = 0;
        let mut is_first_open = true;
        for entry in &mut self.entries {
            if entry.nonce < view.nonce {
                work.extend(entry.used(view, self.timing));
                continue;
            }
            // Not, or no longer, in a block that counts.
            if entry.included.take().is_some() {
                entry.signs = Signs { may_be_known: true, ..Signs::default() };
            }
            let next = entry.open(view, self.timing, is_first_open);
            is_first_open = false;
            if next.is_some() && sends < MOST_RESENT {
                sends += 1;
                work.extend(next);
            }
        }
        work
    }

    fn forget(&mut self, view: &View) {
        let keep = self.timing.keep;
        self.entries.retain(|entry| {
            let is_deep = |at: Inclusion| at.block.saturating_add(keep) <= view.head;
            !(entry.told && entry.nonce < view.nonce && entry.included.is_some_and(is_deep))
        });
    }

    /// Nonces that must be used up before ours can be, once they have been missing for a while: their
    /// transactions were lost, or a node told a wrong number.
    fn fillers(&mut self, view: &View) -> Vec<Work> {
        let missing = self.entries.front().map_or(0, |first| first.nonce.saturating_sub(view.nonce));
        if missing == 0 || missing > MOST_FILLERS {
            self.gap_since = None;
            return Vec::new();
        }
        let since = *self.gap_since.get_or_insert(view.now);
        if view.now.saturating_sub(since) < self.timing.raise {
            return Vec::new();
        }
        self.gap_since = None;
        (view.nonce..view.nonce + missing).map(Work::Fill).collect()
    }

    /// Marks an entry as told.
    pub(super) fn told(&mut self, nonce: u64) {
        if let Some(entry) = self.entry_mut(nonce) {
            entry.told = true;
        }
    }

    /// Replaces an order, whose orderer was told that it failed, by nothing.
    pub(super) fn hollow_out(&mut self, nonce: u64, order: Order, gas: u64, attempt: Attempt) {
        if let Some(entry) = self.entry_mut(nonce) {
            (entry.order, entry.gas, entry.told) = (order, gas, true);
            entry.attempts = vec![attempt];
            entry.signs = Signs::default();
        }
    }
}

impl Entry {
    fn most_wei(&self) -> u128 {
        let price = self.attempts.last().map_or(0, |attempt| attempt.offer.max_wei);
        price.saturating_mul(self.gas.into()).saturating_add(self.order.value_wei)
    }

    /// What is to be done when the nonce is used.
    fn used(&mut self, view: &View, timing: Timing) -> Option<Work> {
        if let Some(at) = self.included {
            let depth = view.head.saturating_add(1).saturating_sub(at.block);
            return (!self.told && depth >= timing.confirmations).then_some(Work::Tell(self.nonce));
        }
        let since = self.signs.missing_since?;
        (view.now.saturating_sub(since) >= timing.resend).then_some(Work::Investigate(self.nonce))
    }

    /// What is to be done when the nonce is not used yet.
    fn open(&self, view: &View, timing: Timing, is_first: bool) -> Option<Work> {
        let (Some(sent_at), offered_at) = (self.signs.sent_at, self.signs.offered_at) else {
            return Some(Work::Send(self.nonce));
        };
        let offer = self.attempts.last()?.offer;
        let waits = offered_at.map_or(Duration::ZERO, |at| view.now.saturating_sub(at));
        let is_outbid = offer.max_wei < view.fees.base_wei;
        // The first may be passed over for its tip; those behind it wait for it, whatever they offer.
        let is_stuck = waits >= timing.raise && (is_first || is_outbid);
        // What another transaction of ours has in its place is offered more at once; who else's, only later.
        let is_refused = self.signs.is_underpriced && (is_outbid || self.attempts.len() > 1);
        if is_stuck || (is_refused && waits >= timing.resend) {
            return Some(Work::Raise(self.nonce));
        }
        (view.now.saturating_sub(sent_at) >= timing.resend).then_some(Work::Send(self.nonce))
    }
}
