//! A gateway's tabs: which routes are paid and by which plan, what of them was received, when to sign. Pure:
//! decisions come out as actions, and what they bring comes back as events.

use std::collections::{HashMap, VecDeque};

use ledger::tab::{NoRoom, Tab};
use transport::NodeId;

use super::{admission::Member, state::Action};
use crate::{
    message::{Hop, Join, Message, Paid, SessionId, TabAnswer, TabOffer, Tariff, VoucherNote},
    payment::purse::{Command, Event, NoMoney, Opened, Payer, Seat},
    request::Refusal,
};

/// Tokens of a session that was broken off that may still come.
const MAX_LATE: u64 = 256;
/// Tokens that a running reply brings while a payment is on its way, at most: what is kept of the credit for that
/// decides how many replies run at once.
const MAX_UNDERWAY: u64 = 8;
/// Sessions that are over whose last tokens may still come.
const MAX_ENDED: usize = 1024;

/// How a route's sessions are paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fare {
    /// Hash of the plan.
    pub plan: [u8; 32],
    /// Wei of POD for a token.
    pub price: u64,
}

/// Whether a session can begin, as far as money goes.
#[derive(Debug, PartialEq)]
pub(super) enum Admission {
    /// It can.
    Go(Option<Fare>),
    /// Not yet.
    Wait,
    /// It cannot.
    Refused(Refusal),
}

/// What a stage has said to a tab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    New,
    Asked,
    Taken,
}

#[derive(Debug)]
struct Entry {
    offer: TabOffer,
    tab: Tab,
    stages: Vec<Standing>,
    voucher: Option<VoucherNote>,
    /// The purse is signing.
    signing: bool,
    /// Something is to be signed as soon as it is done with that.
    due: bool,
    /// No further sessions.
    retired: bool,
    /// The purse knows that it is.
    told: bool,
    sessions: usize,
}

/// One session's way through a tab.
#[derive(Debug)]
struct Charge {
    plan: [u8; 32],
    prompt: u64,
    /// Tokens of the reply that may still come.
    left: u64,
    /// The stage that draws it.
    last: NodeId,
    /// The first token came, and with it the prompt.
    answered: bool,
    ended: bool,
}

/// What of a payer the tabs need.
#[derive(Debug)]
struct Wallet {
    payer: Payer,
    model: [u8; 32],
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tabs {
    wallet: Option<Wallet>,
    entries: HashMap<[u8; 32], Entry>,
    /// For whom plans are being made.
    opening: Vec<Vec<Seat>>,
    /// What the next session of these seats is told.
    refused: Option<(Vec<Seat>, Refusal)>,
    charges: HashMap<SessionId, Charge>,
    ended: VecDeque<SessionId>,
    broken: bool,
    actions: Vec<Action>,
}

impl Tabs {
    /// Those of a gateway that can pay, or cannot.
    pub(super) fn new(payer: Option<Payer>, model: [u8; 32]) -> Self {
        Self { wallet: payer.map(|payer| Wallet { payer, model }), ..Self::default() }
    }

    /// What is to be done since the last call, in order.
    pub(super) fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether a node can be used, as far as money goes; why not, in words for its owner.
    pub(super) fn may_join(&self, node: NodeId, join: &Join) -> Result<(), String> {
        let Some(tariff) = &join.tariff else { return Ok(()) };
        let Some(Wallet { payer, .. }) = &self.wallet else {
            return Err("this node asks for pay, and this gateway has no account: start the gateway with \
                        --account, or the node without --price"
                .into());
        };
        let max_price = payer.rules.max_price.unwrap_or(u64::MAX);
        if tariff.collector != payer.collector {
            return Err(
                "this node is paid on another chain or by another contract than this gateway pays".into()
            );
        }
        if !tariff.is_bound(node, &payer.registry) {
            return Err("this node's key did not sign for its account".into());
        }
        if tariff.price > max_price {
            let (asks, pays) = (per_million(tariff.price), per_million(max_price));
            return Err(format!(
                "this node asks {asks} POD for a million tokens, and this gateway pays {pays}"
            ));
        }
        Ok(())
    }

    /// Whether a session over `hops` can begin, of so many tokens that are taken in at once, and those that follow.
    pub(super) fn admit(
        &mut self,
        members: &HashMap<NodeId, Member>,
        hops: &[Hop],
        tokens: (u32, u32),
    ) -> Admission {
        let tariffs: Vec<([u8; 32], &Tariff)> = (hops.iter())
            .filter_map(|hop| Some((hop.node, members.get(&NodeId(hop.node))?.join.tariff.as_ref()?)))
            .collect();
        if tariffs.is_empty() {
            return Admission::Go(None);
        }
        let seat = |(node, tariff): &([u8; 32], &Tariff)| Seat {
            node: *node,
            payee: tariff.account,
            price: tariff.price,
        };
        let credit = tariffs.iter().map(|(_, tariff)| tariff.credit).min().unwrap_or(0);
        self.admit_to(tariffs.iter().map(seat).collect(), credit, tokens)
    }

    fn admit_to(&mut self, seats: Vec<Seat>, credit: u64, tokens: (u32, u32)) -> Admission {
        if let Some((_, refusal)) = self.refused.take_if(|(refused, _)| *refused == seats) {
            return Admission::Refused(refusal);
        }
        let (prompt, reply) = (u64::from(tokens.0), u64::from(tokens.1));
        let current = |(plan, entry): (&[u8; 32], &Entry)| entry.is_for(&seats, credit).then_some(*plan);
        let Some(plan) = self.entries.iter().find_map(current) else {
            return self.open(seats, credit, prompt + reply);
        };
        let Some(entry) = self.entries.get_mut(&plan) else { return Admission::Wait };
        let mut ready = true;
        for (standing, node) in entry.stages.iter_mut().zip(&entry.offer.terms.nodes) {
            ready &= *standing == Standing::Taken;
            if *standing == Standing::New {
                *standing = Standing::Asked;
                let message = Message::Tab(Box::new(entry.offer.clone()));
                self.actions.push(Action::Send { to: NodeId(*node), message });
            }
        }
        if !ready {
            return Admission::Wait;
        }
        let crowded = entry.sessions > 0 && (entry.sessions as u64 + 1) * MAX_UNDERWAY > credit / 4;
        match entry.tab.room(prompt, reply) {
            Ok(()) if crowded => Admission::Wait,
            Ok(()) => Admission::Go(Some(Fare { plan, price: entry.tab.price() })),
            Err(NoRoom::Prompt { limit }) => Admission::Refused(Refusal::Credit { prompt, limit }),
            Err(NoRoom::Credit) => {
                self.sign(plan);
                Admission::Wait
            }
            Err(NoRoom::Lock | NoRoom::Worn) => {
                entry.retired = true;
                self.settle(plan);
                self.open(seats, credit, prompt + reply)
            }
        }
    }

    fn open(&mut self, seats: Vec<Seat>, credit: u64, need: u64) -> Admission {
        let Some(Wallet { model, .. }) = &self.wallet else { return Admission::Wait };
        if self.broken {
            let reason = NoMoney::Store("see the gateway's log".into());
            return Admission::Refused(Refusal::Unpayable(reason.to_string()));
        }
        if !self.opening.contains(&seats) {
            let model = *model;
            self.opening.push(seats.clone());
            self.actions.push(Action::Purse(Command::Open { seats, model, credit, need }));
        }
        Admission::Wait
    }

    /// A session begins.
    pub(super) fn begin(
        &mut self,
        session: SessionId,
        fare: Option<Fare>,
        prompt: u32,
        reply: u32,
        last: NodeId,
    ) {
        let Some(Fare { plan, .. }) = fare else { return };
        let Some(entry) = self.entries.get_mut(&plan) else { return };
        let (prompt, left) = (u64::from(prompt), u64::from(reply));
        entry.tab.open(prompt, left);
        entry.sessions += 1;
        self.charges.insert(session, Charge { plan, prompt, left, last, answered: false, ended: false });
    }

    /// A token came of a session that is not running; it may have been on its way when that ended.
    pub(super) fn late(&mut self, from: NodeId, session: SessionId) {
        if self.charges.get(&session).is_some_and(|charge| charge.ended && charge.last == from) {
            self.token(session);
        }
    }

    /// A token of a session came.
    pub(super) fn token(&mut self, session: SessionId) {
        let Some(charge) = self.charges.get_mut(&session).filter(|charge| charge.left > 0) else { return };
        let Some(entry) = self.entries.get_mut(&charge.plan) else { return };
        let (first, plan) = (!std::mem::replace(&mut charge.answered, true), charge.plan);
        charge.left -= 1;
        match (charge.ended, first) {
            (false, true) => entry.tab.answered(charge.prompt),
            (false, false) => {}
            (true, first) => {
                entry.tab.late(if first { charge.prompt } else { 0 });
                return self.sign(plan);
            }
        }
        entry.tab.token();
        if entry.tab.presses() {
            self.sign(plan);
        }
    }

    /// A session is over. After one that was broken off, tokens may still come, and are received.
    pub(super) fn end(&mut self, session: SessionId, broken_off: bool) {
        let Some(charge) = self.charges.get_mut(&session).filter(|charge| !charge.ended) else { return };
        let Some(entry) = self.entries.get_mut(&charge.plan) else { return };
        let plan = charge.plan;
        if charge.answered {
            entry.tab.close(charge.left);
        } else {
            entry.tab.abandoned(charge.prompt);
            entry.tab.close(charge.prompt + charge.left);
        }
        charge.ended = true;
        charge.left = charge.left.min(if broken_off { MAX_LATE } else { 0 });
        entry.sessions -= 1;
        if charge.left == 0 {
            self.charges.remove(&session);
        } else {
            self.ended.push_back(session);
        }
        while self.ended.len() > MAX_ENDED {
            self.ended.pop_front().map(|old| self.charges.remove(&old));
        }
        self.sign(plan);
        self.settle(plan);
    }

    /// Has what was received signed for, once the purse is done with the voucher before.
    fn sign(&mut self, plan: [u8; 32]) {
        let Some(entry) = self.entries.get_mut(&plan).filter(|_| !self.broken) else { return };
        if entry.signing {
            entry.due = true;
        } else if let Some(total) = entry.tab.sign() {
            entry.signing = true;
            self.actions.push(Action::Purse(Command::Sign { plan, total }));
        }
    }

    /// Tells the purse of a plan that is over and signed for.
    fn settle(&mut self, plan: [u8; 32]) {
        let Some(entry) = self.entries.get_mut(&plan) else { return };
        if entry.retired && !entry.told && entry.sessions == 0 && !entry.signing {
            entry.told = true;
            self.actions.push(Action::Purse(Command::Retire(plan)));
        }
    }

    /// The purse reports.
    pub(super) fn purse(&mut self, event: Event) {
        match event {
            Event::Opened(opened) => self.opened(*opened),
            Event::Refused { seats, reason } => {
                tracing::warn!(%reason, "a route cannot be paid");
                self.opening.retain(|opening| *opening != seats);
                let refusal = match reason {
                    NoMoney::Funds { .. } | NoMoney::Limit { .. } => Refusal::NoMoney(reason.to_string()),
                    NoMoney::Chain(_) | NoMoney::Store(_) => Refusal::Unpayable(reason.to_string()),
                };
                self.refused = Some((seats, refusal));
            }
            Event::Signed(note) => self.signed(note),
            Event::Expiring(plan) => {
                if let Some(entry) = self.entries.get_mut(&plan) {
                    entry.retired = true;
                    self.settle(plan);
                }
            }
            Event::Forgotten(plan) => _ = self.entries.remove(&plan),
            Event::Broken(_) => self.broken = true,
        }
    }

    fn opened(&mut self, opened: Opened) {
        let Opened { tab: offer, lock, voucher, retired } = opened;
        let signed = voucher.as_ref().map_or(0, |voucher| voucher.total);
        let price = offer.plan.price().unwrap_or(u64::MAX);
        let stages = offer.plan.stages.len();
        let entry = Entry {
            tab: Tab::new(price, offer.terms.credit, lock, stages, signed),
            stages: vec![Standing::New; stages],
            voucher,
            signing: false,
            due: false,
            retired,
            told: retired,
            sessions: 0,
            offer,
        };
        let (seats, plan) = (entry.seats(), entry.offer.plan.hash());
        self.opening.retain(|opening| *opening != seats);
        self.entries.insert(plan, entry);
    }

    fn signed(&mut self, note: VoucherNote) {
        let plan = note.plan;
        let Some(entry) = self.entries.get_mut(&plan) else { return };
        for (standing, node) in entry.stages.iter().zip(&entry.offer.terms.nodes) {
            if *standing == Standing::Taken {
                let message = Message::Voucher(note.clone());
                self.actions.push(Action::Send { to: NodeId(*node), message });
            }
        }
        entry.voucher = Some(note);
        entry.signing = false;
        if std::mem::take(&mut entry.due) {
            self.sign(plan);
        }
        self.settle(plan);
    }

    /// A node has joined: it is asked anew, and given the vouchers that it may have missed.
    pub(super) fn joined(&mut self, node: NodeId) {
        self.lost(node);
        for entry in self.entries.values() {
            let Some(stage) = entry.stage(node) else { continue };
            let missed = entry.voucher.clone().filter(|_| entry.tab.lacks(stage));
            self.actions
                .extend(missed.map(|note| Action::Send { to: node, message: Message::Voucher(note) }));
        }
    }

    /// A node is gone.
    pub(super) fn lost(&mut self, node: NodeId) {
        for entry in self.entries.values_mut() {
            if let Some(stage) = entry.stage(node) {
                entry.stages[stage] = Standing::New;
            }
        }
    }

    /// A node says that it is not paid: it has counted otherwise, and is asked how.
    pub(super) fn recount(&mut self, node: NodeId) {
        self.lost(node);
    }

    /// A node says whether it serves under a tab.
    pub(super) fn answered(&mut self, node: NodeId, answer: &TabAnswer) {
        let Some(entry) = self.entries.get_mut(&answer.plan) else { return };
        let Some(stage) = entry.stage(node) else { return };
        match &answer.outcome {
            Ok(served) if entry.stages[stage] == Standing::Asked => {
                entry.stages[stage] = Standing::Taken;
                entry.tab.recounted(stage, *served);
                let message = entry.voucher.clone().map(Message::Voucher);
                self.actions.extend(message.map(|message| Action::Send { to: node, message }));
            }
            Ok(_) => {}
            Err(reason) => {
                // Otherwise it is a voucher that it does not take: of a plan that it has forgotten.
                let asked = std::mem::replace(&mut entry.stages[stage], Standing::New) == Standing::Asked;
                if asked && !entry.retired {
                    let text =
                        format!("node {} does not serve for this gateway's money: {reason}", node.short());
                    tracing::warn!(text);
                    self.refused = Some((entry.seats(), Refusal::Unpayable(text)));
                }
            }
        }
    }

    /// A node holds a voucher.
    pub(super) fn paid(&mut self, node: NodeId, paid: Paid) {
        let Some(entry) = self.entries.get_mut(&paid.plan) else { return };
        if let Some(stage) = entry.stage(node) {
            entry.tab.confirmed(stage, paid.total, paid.served);
        }
    }

    /// Whether a voucher is being signed, or a node that is there has not confirmed it.
    pub(super) fn owes(&self) -> bool {
        let lacks = |entry: &Entry| {
            let stages = entry.stages.iter().enumerate();
            stages
                .filter(|(_, standing)| **standing == Standing::Taken)
                .any(|(stage, _)| entry.tab.lacks(stage))
        };
        !self.broken && self.entries.values().any(|entry| entry.signing || lacks(entry))
    }

    /// Wei of POD that vouchers were signed for, over all plans that are remembered.
    pub(super) fn spent(&self) -> u128 {
        self.entries.values().map(|entry| entry.tab.total()).sum()
    }
}

impl Entry {
    fn seats(&self) -> Vec<Seat> {
        let seat = |(stage, node): (&ledger::plan::Stage, &[u8; 32])| Seat {
            node: *node,
            payee: stage.payee,
            price: stage.weight,
        };
        self.offer.plan.stages.iter().zip(&self.offer.terms.nodes).map(seat).collect()
    }

    fn is_for(&self, seats: &[Seat], credit: u64) -> bool {
        !self.retired && self.offer.terms.credit == credit && self.seats() == seats
    }

    fn stage(&self, node: NodeId) -> Option<usize> {
        self.offer.terms.nodes.iter().position(|known| known == node.as_bytes())
    }
}

/// POD for a million tokens.
fn per_million(price: u64) -> String {
    crate::payment::pod(u128::from(price) * 1_000_000)
}
