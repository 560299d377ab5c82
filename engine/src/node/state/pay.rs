//! What a node that asks for pay knows of it: the account of each tab, and what of each session was counted.

use std::collections::HashMap;

use ledger::account::{Account, Meter};
use transport::NodeId;

use super::{Action, State};
use crate::{
    message::{Failed, FailedReason, Message, Open, Paid, Segment, SessionId, TabAnswer, TabRefusal},
    payment::till::{Command, Event},
};

/// A tab that the till found good.
#[derive(Debug)]
struct Tab {
    gateway: NodeId,
    account: Account,
    /// Its plan has expired: what is open goes on.
    over: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    tabs: HashMap<[u8; 32], Tab>,
    sessions: HashMap<SessionId, ([u8; 32], Meter)>,
}

impl Accounts {
    /// Whether a session is paid for.
    pub(super) fn check(&self, open: &Open) -> Result<(), FailedReason> {
        let refused = |reason: &str| FailedReason::Refused(reason.to_owned());
        let plan = open.tab.ok_or_else(|| refused("this node serves for pay, and the session has no tab"))?;
        let tab = self.tabs.get(&plan).filter(|tab| tab.gateway.as_bytes() == &open.gateway && !tab.over);
        let tab = tab.ok_or_else(|| refused("this node has taken no such tab of the gateway's"))?;
        Ok(tab.account.admits(open.prompt_length.into())?)
    }

    /// A session begins that was checked.
    pub(super) fn open(&mut self, session: SessionId, open: &Open) {
        let meter = Meter::new(open.prompt_length);
        self.sessions.extend(open.tab.map(|plan| (session, (plan, meter))));
    }

    /// A session is over.
    pub(super) fn close(&mut self, session: SessionId) {
        let Some((plan, _)) = self.sessions.remove(&session) else { return };
        let used = self.sessions.values().any(|(other, _)| *other == plan);
        if !used && self.tabs.get(&plan).is_some_and(|tab| tab.over) {
            self.tabs.remove(&plan);
        }
    }

    /// Counts a segment whose rows are about to be computed.
    fn serve(&mut self, segment: &Segment) -> Result<(), FailedReason> {
        let Some((plan, meter)) = self.sessions.get_mut(&segment.session) else { return Ok(()) };
        let Some(tab) = self.tabs.get_mut(plan) else { return Ok(()) };
        let mut counted = *meter;
        tab.account.serve(counted.advance(segment.from, segment.to(), segment.drafted))?;
        *meter = counted;
        Ok(())
    }

    fn over(&mut self, plan: [u8; 32]) {
        if self.sessions.values().any(|(used, _)| *used == plan) {
            self.tabs.entry(plan).and_modify(|tab| tab.over = true);
        } else {
            self.tabs.remove(&plan);
        }
    }
}

impl State {
    /// A node that serves for pay alone.
    pub fn paid(self) -> Self {
        Self { accounts: Some(Accounts::default()), ..self }
    }

    /// Counts what a step is about to compute; sessions that would pass their credit end instead, and their rows
    /// are dropped before they are computed.
    pub(super) fn count(&mut self, segments: &[Segment]) {
        let Some(accounts) = &mut self.accounts else { return };
        let serve = |segment: &Segment| Some((segment.session, accounts.serve(segment).err()?));
        let unpaid: Vec<_> = segments.iter().filter_map(serve).collect();
        for (session, reason) in unpaid {
            tracing::warn!(?session, ?reason, "a session ends: it is not paid for");
            self.fail(Failed { session, reason });
        }
    }

    /// A gateway speaks of money.
    pub(super) fn money(&mut self, from: NodeId, message: Message) {
        if self.accounts.is_none() || !self.identity.gateways.contains(&from) {
            return self.expel(from, format!("sent a message that is not for a stage: {}", message.name()));
        }
        let gateway = from;
        match message {
            Message::Tab(tab) => self.actions.push(Action::Till(Command::Tab { gateway, tab })),
            Message::Voucher(note) => self.actions.push(Action::Till(Command::Voucher { gateway, note })),
            other => self.expel(from, format!("sent a message that is not for a stage: {}", other.name())),
        }
    }

    /// The till reports.
    pub fn till(&mut self, event: Event) {
        let Some(accounts) = &mut self.accounts else { return };
        let (to, message) = match event {
            Event::Taken { gateway, plan, account, lock } => {
                let tab = accounts.tabs.entry(plan).or_insert(Tab { gateway, account, over: false });
                // One that is known has counted on since the till's newest voucher.
                tab.account.locked(lock);
                tab.gateway = gateway;
                let outcome = Ok(tab.account.served());
                (gateway, Message::TabAnswer(TabAnswer { plan, outcome }))
            }
            Event::Refused { gateway, plan, reason } => {
                let forged = matches!(reason, TabRefusal::Signature | TabRefusal::Regression { .. });
                let outcome = Err(reason.clone());
                self.answer(gateway, Message::TabAnswer(TabAnswer { plan, outcome }));
                if forged {
                    self.expel(gateway, format!("sent a plan or a voucher that is no good: {reason}"));
                }
                return;
            }
            Event::Paid { gateway, plan, total } => {
                let Some(tab) = accounts.tabs.get_mut(&plan) else {
                    return self.answer(gateway, Message::Paid(Paid { plan, total, served: 0 }));
                };
                tab.account.pay(total);
                let served = tab.account.served();
                (gateway, Message::Paid(Paid { plan, total, served }))
            }
            Event::Over(plan) => return accounts.over(plan),
        };
        self.answer(to, message);
    }

    fn answer(&mut self, to: NodeId, message: Message) {
        self.actions.push(Action::Send { to, address: None, message });
    }
}
