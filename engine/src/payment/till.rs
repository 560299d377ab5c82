//! A node's money: tabs are checked against the chain, vouchers are checked, stored, and collected in batches.
//! A voucher is stored before anything is served on it, and only the newest of each plan matters.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use futures::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use ledger::{
    account::Account,
    client::recover,
    eip712::{Address, Domain},
    node::binding_digest,
    voucher::Voucher,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use transport::{Identity, NodeId};

use super::{
    chain::{Chain, ChainError, Claim, Lock},
    fixed, now,
    settle::{Due, SettleRules, Settlement},
    store::{Store, StoreError},
};
use crate::message::{TabOffer, TabRefusal, Tariff, VoucherNote, clip};

/// Commands that may wait; past it they are dropped, and asked again by whoever means them.
const QUEUE: usize = 256;
/// Most plans at once.
const MAX_TABS: usize = 1024;
/// Longest time to a plan's expiry: so long a voucher is kept.
const LONGEST_S: u64 = 30 * 86400;
/// Most vouchers collected by one transaction.
const BATCH: usize = 50;
/// Settlements that are remembered.
const HISTORY: usize = 256;
/// Longest wait for the chain when the node ends.
const FAREWELL: Duration = Duration::from_secs(30);

/// What a node is paid for, and how.
#[derive(Clone)]
pub struct Payee {
    /// Who is paid.
    pub account: Address,
    /// Wei of POD for a token.
    pub price: u64,
    /// Tokens served before they are paid for.
    pub credit: u64,
    /// The contract whose vouchers it takes.
    pub collector: Domain,
    /// The contract that its binding names.
    pub registry: Domain,
    /// The node's signature that ties it to the account; see [`Payee::bind`].
    pub binding: [u8; 64],
    /// The chain.
    pub chain: Arc<dyn Chain>,
    /// Where vouchers are kept.
    pub store: Arc<Store>,
    /// When it collects.
    pub rules: SettleRules,
}

impl Payee {
    /// Has a node's key sign for the account.
    #[must_use]
    pub fn bind(self, identity: &Identity) -> Self {
        let digest = binding_digest(&self.registry, identity.id().as_bytes(), &self.account);
        Self { binding: identity.sign(&digest), ..self }
    }

    /// What the node tells gateways.
    pub fn tariff(&self) -> Tariff {
        Tariff {
            account: self.account,
            price: self.price,
            credit: self.credit,
            collector: self.collector.clone(),
            binding: self.binding.to_vec(),
        }
    }
}

impl fmt::Debug for Payee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payee")
            .field("account", &hex::encode(self.account))
            .field("price", &self.price)
            .field("credit", &self.credit)
            .finish_non_exhaustive()
    }
}

/// What a node asks of its till.
#[derive(Debug)]
pub enum Command {
    /// A gateway offers a tab.
    Tab {
        /// Which gateway.
        gateway: NodeId,
        /// The tab.
        tab: Box<TabOffer>,
    },
    /// A gateway pays.
    Voucher {
        /// Which gateway.
        gateway: NodeId,
        /// Its voucher.
        note: VoucherNote,
    },
}

/// What a till reports.
#[derive(Debug)]
pub enum Event {
    /// A tab is good.
    Taken {
        /// Whose it is.
        gateway: NodeId,
        /// Hash of the plan.
        plan: [u8; 32],
        /// The account as of the newest stored voucher.
        account: Account,
        /// The highest total that the lock pays for.
        lock: u128,
    },
    /// A tab, or a voucher of one, is not taken.
    Refused {
        /// Whose it is.
        gateway: NodeId,
        /// Hash of the plan.
        plan: [u8; 32],
        /// Why.
        reason: TabRefusal,
    },
    /// A voucher is stored.
    Paid {
        /// Whose it is.
        gateway: NodeId,
        /// Hash of the plan.
        plan: [u8; 32],
        /// Its total.
        total: u128,
    },
    /// A plan has expired: no sessions are opened under it.
    Over([u8; 32]),
}

/// What a node keeps in its store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Record {
    /// A tab with its newest voucher.
    Tab(Box<Kept>),
    /// The newest settlements, oldest first.
    History(Vec<Settlement>),
}

/// A tab with its newest voucher.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept {
    /// The tab.
    pub tab: TabOffer,
    /// The node's place among its stages.
    pub stage: usize,
    /// The highest total that the lock pays for, when it was last looked at.
    pub lock: u128,
    /// What was collected then.
    pub collected: u128,
    /// Total of the newest voucher.
    pub total: u128,
    /// The payer's signature of it; empty before the first.
    pub signature: Vec<u8>,
}

impl Kept {
    /// What is to be collected for all stages, and of it for this one.
    pub fn due(&self) -> (u128, u128) {
        let all = self.total.min(self.lock).saturating_sub(self.collected);
        (all, self.own(all))
    }

    /// This node's part of what all stages get.
    pub fn own(&self, all: u128) -> u128 {
        self.tab.plan.shares(all).ok().and_then(|shares| shares.get(self.stage).copied()).unwrap_or(0)
    }

    fn account(&self) -> Account {
        let price = self.tab.plan.price().unwrap_or(u64::MAX);
        Account::new(price, self.tab.terms.credit, self.lock, self.total)
    }

    fn voucher(&self, plan: [u8; 32], total: u128) -> Voucher {
        Voucher { session: self.tab.plan.session, plan, total, chunk: 0, commitments: [0; 32] }
    }

    fn saw(&mut self, lock: &Lock) {
        (self.lock, self.collected) = (lock.backs(), lock.collected);
    }
}

/// What a node has earned of the plans that it remembers, in wei of POD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Earnings {
    /// Its part of all vouchers.
    pub vouched: u128,
    /// What of that was paid on the chain, as far as it knows.
    pub collected: u128,
}

/// Asks a till to collect, and how much there is.
#[derive(Clone, Debug)]
pub struct Caller {
    calls: mpsc::Sender<oneshot::Sender<()>>,
    earnings: watch::Receiver<Earnings>,
}

impl Caller {
    /// What was earned, now and later; it ends with the till.
    pub fn earnings(&self) -> watch::Receiver<Earnings> {
        self.earnings.clone()
    }

    /// Has it collect what brings more than it costs, and waits until that is done.
    pub async fn settle(&self) {
        let (done, waiting) = oneshot::channel();
        if self.calls.send(done).await.is_ok() {
            let _ = waiting.await;
        }
    }
}

/// A node's end of its till.
#[derive(Debug)]
pub struct Till {
    commands: mpsc::Sender<Command>,
    caller: Caller,
    task: JoinHandle<()>,
}

impl Till {
    /// Reads what was left by an earlier process and starts. `node` serves the model with `fingerprint`.
    pub fn start(
        payee: Payee,
        node: NodeId,
        fingerprint: [u8; 32],
    ) -> Result<(Self, mpsc::Receiver<Event>), StoreError> {
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (settle, calls) = mpsc::channel(1);
        let (outbox, events) = mpsc::channel(QUEUE);
        let desk = Desk::new(payee, node, fingerprint, outbox)?;
        let (publish, earnings) = watch::channel(desk.earnings());
        let task = tokio::spawn(desk.run(inbox, calls, publish));
        Ok((Self { commands, caller: Caller { calls: settle, earnings }, task }, events))
    }

    /// Hands in a command, unless too many wait.
    pub fn submit(&self, command: Command) {
        if self.commands.try_send(command).is_err() {
            tracing::warn!("gateways send more tabs and vouchers than this node can check");
        }
    }

    /// By which others ask it to collect.
    pub fn caller(&self) -> Caller {
        self.caller.clone()
    }

    /// Collects what is worth it and ends.
    pub async fn stop(self) {
        if tokio::time::timeout(FAREWELL, self.caller.settle()).await.is_err() {
            tracing::warn!("the chain does not answer: vouchers that are kept can be collected later");
        }
        self.task.abort();
        let _ = self.task.await;
    }
}

/// A gateway's tab that the chain was asked about.
struct Asked {
    gateway: NodeId,
    tab: Box<TabOffer>,
    stage: usize,
    lock: Result<Lock, ChainError>,
}

struct Desk {
    payee: Payee,
    node: NodeId,
    fingerprint: [u8; 32],
    tabs: HashMap<[u8; 32], Kept>,
    history: Vec<Settlement>,
    asked: FuturesUnordered<BoxFuture<'static, Asked>>,
    outbox: mpsc::Sender<Event>,
}

impl Desk {
    fn new(
        payee: Payee,
        node: NodeId,
        fingerprint: [u8; 32],
        outbox: mpsc::Sender<Event>,
    ) -> Result<Self, StoreError> {
        let (mut tabs, mut history) = (HashMap::new(), Vec::new());
        for (_, record) in payee.store.read::<Record>()? {
            match record {
                Record::Tab(kept) => _ = tabs.insert(kept.tab.plan.hash(), *kept),
                Record::History(settlements) => history = settlements,
            }
        }
        Ok(Self { payee, node, fingerprint, tabs, history, asked: FuturesUnordered::new(), outbox })
    }

    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Command>,
        mut calls: mpsc::Receiver<oneshot::Sender<()>>,
        publish: watch::Sender<Earnings>,
    ) {
        let every = Duration::from_secs(self.payee.rules.every_s.max(1));
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                command = inbox.recv() => match command {
                    Some(Command::Tab { gateway, tab }) => self.offered(gateway, tab).await,
                    Some(Command::Voucher { gateway, note }) => self.paid(gateway, note).await,
                    None => return,
                },
                Some(asked) = self.asked.next() => self.found(asked).await,
                Some(done) = calls.recv() => {
                    self.settle(true).await;
                    let _ = done.send(());
                }
                _ = tick.tick() => {
                    self.settle(false).await;
                    self.forget().await;
                }
            }
            publish.send_replace(self.earnings());
        }
    }

    fn earnings(&self) -> Earnings {
        let mut earnings = Earnings::default();
        for kept in self.tabs.values() {
            earnings.vouched += kept.own(kept.total.min(kept.lock));
            earnings.collected += kept.own(kept.collected);
        }
        earnings
    }

    async fn tell(&mut self, event: Event) {
        // The node's task is gone only when it is stopping.
        let _ = self.outbox.send(event).await;
    }

    async fn refuse(&mut self, gateway: NodeId, plan: [u8; 32], reason: TabRefusal) {
        tracing::warn!(gateway = %gateway.short(), %reason, "a tab or a voucher is refused");
        self.tell(Event::Refused { gateway, plan, reason }).await;
    }

    async fn offered(&mut self, gateway: NodeId, tab: Box<TabOffer>) {
        let plan = tab.plan.hash();
        let stage = match self.check(&tab) {
            Ok(_) if self.asked.len() >= QUEUE => return self.refuse(gateway, plan, TabRefusal::Full).await,
            Ok(stage) => stage,
            Err(reason) => return self.refuse(gateway, plan, reason).await,
        };
        let (chain, payer) = (self.payee.chain.clone(), tab.plan.payer);
        let ask = async move { Asked { gateway, stage, lock: chain.lock_of(payer, plan).await, tab } };
        self.asked.push(ask.boxed());
    }

    /// This node's place on the tab, if that is as it should be.
    fn check(&self, tab: &TabOffer) -> Result<usize, TabRefusal> {
        let TabOffer { plan, terms, signature } = tab;
        let sound = terms.hash() == plan.terms
            && terms.model == self.fingerprint
            && terms.credit > 0
            && terms.credit <= self.payee.credit;
        if !sound {
            return Err(TabRefusal::Terms);
        }
        let mut places = terms.nodes.iter().enumerate().filter(|(_, node)| **node == *self.node.as_bytes());
        let (Some((stage, _)), None) = (places.next(), places.next()) else { return Err(TabRefusal::Stage) };
        let named = plan.stages.get(stage).filter(|named| named.payee == self.payee.account);
        if named.is_none_or(|named| named.weight < self.payee.price) {
            return Err(TabRefusal::Stage);
        }
        let (now, expiry) = (now(), plan.expiry);
        if expiry <= now || expiry > now + LONGEST_S {
            return Err(TabRefusal::Expiry { expiry });
        }
        let digest = plan.digest(&self.payee.collector);
        let signer = fixed(signature).and_then(|signature| recover(&digest, signature));
        if signer != Some(plan.payer) {
            return Err(TabRefusal::Signature);
        }
        Ok(stage)
    }

    async fn found(&mut self, Asked { gateway, tab, stage, lock }: Asked) {
        let plan = tab.plan.hash();
        let lock = match lock {
            Ok(lock) if lock.remaining > 0 && !lock.thaws => lock,
            Ok(_) => return self.refuse(gateway, plan, TabRefusal::Lock).await,
            Err(error) => {
                return self.refuse(gateway, plan, TabRefusal::Chain(clip(&error.to_string()))).await;
            }
        };
        if !self.tabs.contains_key(&plan) {
            if self.tabs.len() >= MAX_TABS {
                return self.refuse(gateway, plan, TabRefusal::Full).await;
            }
            let kept = Kept { tab: *tab, stage, lock: 0, collected: 0, total: 0, signature: Vec::new() };
            self.tabs.insert(plan, kept);
        }
        let Some(kept) = self.tabs.get_mut(&plan) else { return };
        kept.saw(&lock);
        let (account, record) = (kept.account(), Record::Tab(Box::new(kept.clone())));
        let stored = self.put(hex::encode(plan), record).await;
        match stored {
            Ok(()) => self.tell(Event::Taken { gateway, plan, account, lock: lock.backs() }).await,
            Err(reason) => self.refuse(gateway, plan, reason).await,
        }
    }

    async fn paid(&mut self, gateway: NodeId, note: VoucherNote) {
        let (plan, total) = (note.plan, note.total);
        let outcome = match self.check_voucher(&note) {
            Ok(Some(kept)) => {
                // Stored before it counts: what was paid for is never forgotten.
                let stored = self.put(hex::encode(plan), Record::Tab(Box::new(kept.clone()))).await;
                stored.map(|()| _ = self.tabs.insert(plan, kept))
            }
            Ok(None) => Ok(()),
            Err(reason) => Err(reason),
        };
        match outcome {
            Ok(()) => self.tell(Event::Paid { gateway, plan, total }).await,
            Err(reason) => self.refuse(gateway, plan, reason).await,
        }
    }

    /// What the voucher makes of its tab; `None` for one that is held already.
    fn check_voucher(&self, note: &VoucherNote) -> Result<Option<Kept>, TabRefusal> {
        let kept = self.tabs.get(&note.plan).ok_or(TabRefusal::Unknown)?;
        let expiry = kept.tab.plan.expiry;
        if now() > expiry + self.payee.rules.window_s {
            return Err(TabRefusal::Expiry { expiry });
        }
        let next = kept.voucher(note.plan, note.total);
        let digest = next.digest(&self.payee.collector);
        let signer = fixed(&note.signature).and_then(|signature| recover(&digest, signature));
        if signer != Some(kept.tab.plan.payer) {
            return Err(TabRefusal::Signature);
        }
        let held = kept.voucher(note.plan, kept.total);
        if held.check_next(&next).is_err() {
            return Err(TabRefusal::Regression { before: kept.total, after: note.total });
        }
        let changed = Kept { total: note.total, signature: note.signature.clone(), ..kept.clone() };
        Ok((note.total > kept.total).then_some(changed))
    }

    async fn put(&mut self, name: String, record: Record) -> Result<(), TabRefusal> {
        let store = self.payee.store.clone();
        let work = tokio::task::spawn_blocking(move || store.put(&name, &record));
        let outcome = work.await.map_err(|error| error.to_string());
        let outcome = outcome.and_then(|stored| stored.map_err(|error| error.to_string()));
        outcome.map_err(|reason| TabRefusal::Store(clip(&reason)))
    }

    /// Collects what is worth it; with `last`, all that brings more than it costs.
    async fn settle(&mut self, last: bool) {
        let owed = self.tabs.iter().filter(|(_, kept)| kept.due().0 > 0);
        let plans: Vec<[u8; 32]> = owed.map(|(plan, _)| *plan).collect();
        for batch in plans.chunks(BATCH) {
            if let Err(error) = self.settle_batch(batch, last).await {
                tracing::warn!(%error, "vouchers could not be collected; they are kept");
                return;
            }
        }
    }

    async fn settle_batch(&mut self, plans: &[[u8; 32]], last: bool) -> Result<(), ChainError> {
        // Another stage may have collected for all.
        self.look(plans).await?;
        let chain = self.payee.chain.clone();
        let mut chosen = Vec::new();
        for plan in plans {
            let Some(kept) = self.tabs.get(plan) else { continue };
            let due = Due { own: kept.due().1, expiry: kept.tab.plan.expiry };
            if due.own > 0 {
                chosen.push((*plan, due, kept.clone()));
            }
        }
        if chosen.is_empty() {
            return Ok(());
        }
        let claim = |kept: &Kept| Claim {
            plan: kept.tab.plan.clone(),
            total: kept.total,
            signature: kept.signature.clone(),
        };
        let fee = chain.collect_fee(chosen.iter().map(|(.., kept)| claim(kept)).collect()).await?;
        let (each, now) = (fee / chosen.len() as u128, now());
        chosen.retain(|(_, due, _)| self.payee.rules.is_worth(*due, each, now, last));
        if chosen.is_empty() {
            return Ok(());
        }
        let fee = chain.collect(chosen.iter().map(|(.., kept)| claim(kept)).collect()).await?;
        let plans: Vec<[u8; 32]> = chosen.iter().map(|(plan, ..)| *plan).collect();
        self.look(&plans).await?;
        let (mut own, mut all) = (0, 0);
        for (plan, _, before) in &chosen {
            let after = self.tabs.get(plan).map_or(before.collected, |kept| kept.collected);
            let paid = after.saturating_sub(before.collected);
            (own, all) = (own + before.own(paid), all + paid);
        }
        tracing::info!(plans = plans.len(), own, all, fee, "vouchers were collected");
        self.history.push(Settlement { time: now, plans, own, all, fee });
        let old = self.history.len().saturating_sub(HISTORY);
        self.history.drain(..old);
        if let Err(reason) = self.put("history".into(), Record::History(self.history.clone())).await {
            tracing::warn!(%reason, "a settlement is not written down");
        }
        Ok(())
    }

    /// Looks at the locks of plans anew.
    async fn look(&mut self, plans: &[[u8; 32]]) -> Result<(), ChainError> {
        for plan in plans {
            let Some(payer) = self.tabs.get(plan).map(|kept| kept.tab.plan.payer) else { continue };
            let lock = self.payee.chain.lock_of(payer, *plan).await?;
            let Some(kept) = self.tabs.get_mut(plan) else { continue };
            if (kept.lock, kept.collected) != (lock.backs(), lock.collected) {
                kept.saw(&lock);
                let record = Record::Tab(Box::new(kept.clone()));
                if let Err(reason) = self.put(hex::encode(plan), record).await {
                    tracing::warn!(%reason, "what was collected is not written down");
                }
            }
        }
        Ok(())
    }

    /// Ends plans that are over, and forgets those whose vouchers nobody takes any more.
    async fn forget(&mut self) {
        let (now, window) = (now(), self.payee.rules.window_s);
        let over: Vec<([u8; 32], bool)> = (self.tabs.iter())
            .filter(|(_, kept)| now >= kept.tab.plan.expiry)
            .map(|(plan, kept)| (*plan, now > kept.tab.plan.expiry + window))
            .collect();
        for (plan, gone) in over {
            self.tell(Event::Over(plan)).await;
            if gone {
                self.tabs.remove(&plan);
                if let Err(error) = self.payee.store.remove(&hex::encode(plan)) {
                    tracing::warn!(%error, "a plan that is over stays on disk");
                }
            }
        }
    }
}
