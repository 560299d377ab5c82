//! A gateway's money: plans are made and locked, vouchers signed and stored, locks taken back when a plan is over.
//! What is signed survives a crash before anybody sees it, so no total ever falls.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use futures::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use ledger::{
    client::Key,
    eip712::{Address, Domain},
    plan::{Plan, Stage},
    terms::Terms,
    voucher::Voucher,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    chain::{Chain, ChainError, Lock},
    now, pod,
    store::{Store, StoreError},
};
use crate::message::{TabOffer, VoucherNote};

/// Between two looks at plans that are over or soon will be.
const UPKEEP: Duration = Duration::from_secs(30);
/// Most plans at once, those that are over and not forgotten included.
const MAX_TABS: usize = 1024;

/// What a gateway pays with, and how far it goes.
#[derive(Clone)]
pub struct Payer {
    /// Its account's key.
    pub key: Key,
    /// The contract that vouchers are for.
    pub collector: Domain,
    /// The contract that nodes' bindings name.
    pub registry: Domain,
    /// The chain.
    pub chain: Arc<dyn Chain>,
    /// Where tabs are kept.
    pub store: Arc<Store>,
    /// Bounds.
    pub rules: PayerRules,
}

/// Bounds of what a gateway spends.
#[derive(Clone, Debug)]
pub struct PayerRules {
    /// Most wei of POD that all its vouchers together are worth, over all restarts.
    pub spend_limit: Option<u128>,
    /// Highest price of a node for a token, in wei of POD.
    pub max_price: Option<u64>,
    /// Tokens to lock for at once, if there is enough money.
    pub lock_tokens: u64,
    /// Seconds from making a plan to its expiry.
    pub lifetime_s: u64,
    /// How long after it vouchers are taken; the collector's settlement window.
    pub window_s: u64,
}

impl Default for PayerRules {
    fn default() -> Self {
        let day = 86400;
        Self { spend_limit: None, max_price: None, lock_tokens: 4_000_000, lifetime_s: day, window_s: day }
    }
}

/// The key never reaches a log.
impl fmt::Debug for Payer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payer").field("collector", &self.collector).finish_non_exhaustive()
    }
}

/// A paid stage of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The node.
    pub node: [u8; 32],
    /// Its account.
    pub payee: Address,
    /// Its price for a token.
    pub price: u64,
}

/// What a gateway asks of its purse.
#[derive(Debug)]
pub enum Command {
    /// Make a plan and lock money for it.
    Open {
        /// Its stages in order.
        seats: Vec<Seat>,
        /// Fingerprint of the model.
        model: [u8; 32],
        /// Tokens of credit that all of them give.
        credit: u64,
        /// Tokens that it must pay for at least.
        need: u64,
    },
    /// Sign a voucher.
    Sign {
        /// Hash of the plan.
        plan: [u8; 32],
        /// What its stages have earned so far.
        total: u128,
    },
    /// No sessions will be opened under a plan any more, and its last voucher is signed.
    Retire([u8; 32]),
}

/// What a purse reports.
#[derive(Debug)]
pub enum Event {
    /// A plan is made and its money locked, now or by an earlier process.
    Opened(Box<Opened>),
    /// No plan is made.
    Refused {
        /// For whom it was asked.
        seats: Vec<Seat>,
        /// Why.
        reason: NoMoney,
    },
    /// A voucher is signed and stored.
    Signed(VoucherNote),
    /// A plan's time is nearly over.
    Expiring([u8; 32]),
    /// A plan is over, and nothing can be collected any more.
    Forgotten([u8; 32]),
    /// Nothing can be stored: no voucher is signed any more.
    Broken(String),
}

/// A plan with money behind it.
#[derive(Debug)]
pub struct Opened {
    /// The plan, signed.
    pub tab: TabOffer,
    /// Wei locked.
    pub lock: u128,
    /// The newest voucher.
    pub voucher: Option<VoucherNote>,
    /// Whether it is there for what is owed alone.
    pub retired: bool,
}

/// Why a gateway cannot pay.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NoMoney {
    /// The escrow holds too little.
    #[error(
        "this request may cost up to {} POD and the gateway's account has {} POD left to spend: \
         add to it with `dolphin account deposit`", pod(*.needed), pod(*.available)
    )]
    Funds {
        /// What the request may cost.
        needed: u128,
        /// What there is.
        available: u128,
    },
    /// The gateway may spend no more.
    #[error(
        "this request may cost up to {} POD and {} POD are left of the gateway's --spend-limit: raise it",
        pod(*.needed), pod(*.available)
    )]
    Limit {
        /// What the request may cost.
        needed: u128,
        /// What is left.
        available: u128,
    },
    /// The chain does not do it.
    #[error("the chain does not lock money: {0}")]
    Chain(#[from] ChainError),
    /// The gateway cannot keep what it signs.
    #[error("the gateway cannot store what it owes: {0}")]
    Store(String),
}

/// A gateway's end of its purse.
#[derive(Debug)]
pub struct Purse {
    commands: mpsc::UnboundedSender<Command>,
    task: JoinHandle<()>,
}

impl Purse {
    /// Reads what was left by an earlier process and starts.
    pub fn start(payer: Payer) -> Result<(Self, mpsc::Receiver<Event>), StoreError> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (outbox, events) = mpsc::channel(64);
        let desk = Desk::new(payer, outbox)?;
        Ok((Self { commands, task: tokio::spawn(desk.run(inbox)) }, events))
    }

    /// Hands in a command. Their number is bounded by that of the gateway's tabs.
    pub fn submit(&self, command: Command) {
        // One that is gone has said so.
        let _ = self.commands.send(command);
    }

    /// Ends it after what it has been given.
    pub async fn stop(self) {
        drop(self.commands);
        let _ = self.task.await;
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Record {
    Tab(Box<Kept>),
    /// Total of the vouchers of plans that are forgotten.
    Spent(u128),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    tab: TabOffer,
    lock: u128,
    total: u128,
    voucher: Option<Vec<u8>>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// The lock is on its way, or an earlier process died while it was.
    Locking,
    Open,
    /// Over; the lock may hold money.
    Retired,
}

impl Kept {
    fn note(&self, plan: [u8; 32]) -> Option<VoucherNote> {
        let signature = self.voucher.clone()?;
        Some(VoucherNote { plan, total: self.total, signature })
    }

    /// What it may still come to cost, or has.
    fn costs(&self) -> u128 {
        if self.phase == Phase::Retired { self.total } else { self.lock }
    }
}

/// What came of a question to the chain.
enum Answer {
    Balance { seats: Vec<Seat>, model: [u8; 32], credit: u64, need: u64, balance: Result<u128, ChainError> },
    Locked { plan: [u8; 32], outcome: Result<(), ChainError> },
    Found { plan: [u8; 32], lock: Result<Lock, ChainError> },
    Moved,
}

struct Desk {
    payer: Payer,
    tabs: HashMap<[u8; 32], Kept>,
    spent: u128,
    asked: FuturesUnordered<BoxFuture<'static, Answer>>,
    outbox: mpsc::Sender<Event>,
    broken: bool,
}

const SPENT: &str = "spent";

impl Desk {
    fn new(payer: Payer, outbox: mpsc::Sender<Event>) -> Result<Self, StoreError> {
        let (mut tabs, mut spent) = (HashMap::new(), 0);
        for (_, record) in payer.store.read::<Record>()? {
            match record {
                Record::Spent(wei) => spent = wei,
                Record::Tab(mut kept) => {
                    if kept.phase == Phase::Locking || kept.tab.plan.payer != payer.key.address() {
                        kept.phase = Phase::Retired;
                    }
                    tabs.insert(kept.tab.plan.hash(), *kept);
                }
            }
        }
        Ok(Self { payer, tabs, spent, asked: FuturesUnordered::new(), outbox, broken: false })
    }

    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        self.restore().await;
        let mut upkeep = tokio::time::interval(UPKEEP);
        upkeep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => return,
                },
                Some(answer) = self.asked.next() => self.answered(answer).await,
                _ = upkeep.tick() => self.upkeep().await,
            }
        }
    }

    async fn tell(&mut self, event: Event) {
        // The gateway's task is gone only when it is stopping.
        let _ = self.outbox.send(event).await;
    }

    async fn restore(&mut self) {
        let opened = |(plan, kept): (&[u8; 32], &Kept)| {
            let (tab, voucher, retired) = (kept.tab.clone(), kept.note(*plan), kept.phase == Phase::Retired);
            Opened { tab, lock: kept.lock, voucher, retired }
        };
        let all: Vec<Opened> = self.tabs.iter().map(opened).collect();
        for opened in all {
            self.tell(Event::Opened(Box::new(opened))).await;
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Open { seats, model, credit, need } => {
                let chain = self.payer.chain.clone();
                let ask = async move {
                    let balance = chain.balance().await;
                    Answer::Balance { seats, model, credit, need, balance }
                };
                self.asked.push(ask.boxed());
            }
            Command::Sign { plan, total } => self.sign(plan, total).await,
            Command::Retire(plan) => {
                if let Some(kept) = self.tabs.get_mut(&plan) {
                    kept.phase = Phase::Retired;
                    self.keep(plan).await;
                }
            }
        }
    }

    async fn sign(&mut self, plan: [u8; 32], total: u128) {
        let Some(kept) = self.tabs.get_mut(&plan).filter(|_| !self.broken) else { return };
        // What the lock does not pay for is never signed, and no total falls.
        kept.total = total.min(kept.lock).max(kept.total);
        let voucher = Voucher {
            session: kept.tab.plan.session,
            plan,
            total: kept.total,
            chunk: 0,
            commitments: [0; 32],
        };
        let digest = voucher.digest(&self.payer.collector);
        kept.voucher = Some(self.payer.key.sign(&digest).to_vec());
        let note = kept.note(plan);
        if self.keep(plan).await
            && let Some(note) = note
        {
            self.tell(Event::Signed(note)).await;
        }
    }

    /// Writes a tab down. Without that nothing is signed any more.
    async fn keep(&mut self, plan: [u8; 32]) -> bool {
        let Some(kept) = self.tabs.get(&plan).cloned() else { return false };
        self.put(hex::encode(plan), Record::Tab(Box::new(kept))).await
    }

    async fn put(&mut self, name: String, record: Record) -> bool {
        let store = self.payer.store.clone();
        let work = tokio::task::spawn_blocking(move || store.put(&name, &record));
        let reason = match work.await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(reason, "what is owed cannot be stored: no further vouchers are signed");
        self.broken = true;
        self.tell(Event::Broken(reason)).await;
        false
    }

    async fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Balance { seats, model, credit, need, balance } => {
                if let Err(reason) = self.open(&seats, model, credit, need, balance).await {
                    self.tell(Event::Refused { seats, reason }).await;
                }
            }
            Answer::Locked { plan, outcome } => self.locked(plan, outcome).await,
            Answer::Found { plan, lock: Ok(lock) } => self.found(plan, lock).await,
            Answer::Found { lock: Err(error), .. } => {
                tracing::warn!(%error, "the chain does not say what is locked");
            }
            Answer::Moved => {}
        }
    }

    /// Makes a plan, and has its money locked.
    async fn open(
        &mut self,
        seats: &[Seat],
        model: [u8; 32],
        credit: u64,
        need: u64,
        balance: Result<u128, ChainError>,
    ) -> Result<(), NoMoney> {
        let available = balance?;
        if self.broken || self.tabs.len() >= MAX_TABS {
            return Err(NoMoney::Store("there is no room for another tab".into()));
        }
        let price: u128 = seats.iter().map(|seat| u128::from(seat.price)).sum();
        let needed = price * u128::from(need);
        let rules = &self.payer.rules;
        let used = self.tabs.values().map(Kept::costs).fold(self.spent, u128::saturating_add);
        let left = rules.spend_limit.map_or(u128::MAX, |limit| limit.saturating_sub(used));
        if needed > available {
            return Err(NoMoney::Funds { needed, available });
        }
        if needed > left {
            return Err(NoMoney::Limit { needed, available: left });
        }
        // What is locked is bound to these nodes for days; others may have to be paid tomorrow.
        let part = (available / 4).max(needed);
        let lock = (price * u128::from(rules.lock_tokens.max(need))).min(part).min(left);
        let terms = Terms { model, credit, nodes: seats.iter().map(|seat| seat.node).collect() };
        let stage = |seat: &Seat| Stage { payee: seat.payee, weight: seat.price };
        let plan = Plan {
            session: rand::random(),
            payer: self.payer.key.address(),
            terms: terms.hash(),
            expiry: now() + rules.lifetime_s,
            stages: seats.iter().map(stage).collect(),
        };
        let (hash, signature) = (plan.hash(), self.payer.key.sign(&plan.digest(&self.payer.collector)));
        let tab = TabOffer { plan, terms, signature: signature.to_vec() };
        self.tabs.insert(hash, Kept { tab, lock, total: 0, voucher: None, phase: Phase::Locking });
        // Known before the money moves: a process that finds it takes the lock back.
        if !self.keep(hash).await {
            return Err(NoMoney::Store("see the gateway's log".into()));
        }
        let chain = self.payer.chain.clone();
        let lock = async move { Answer::Locked { plan: hash, outcome: chain.lock(hash, lock).await } };
        self.asked.push(lock.boxed());
        Ok(())
    }

    async fn locked(&mut self, plan: [u8; 32], outcome: Result<(), ChainError>) {
        let Some(kept) = self.tabs.get_mut(&plan) else { return };
        kept.phase = if outcome.is_ok() { Phase::Open } else { Phase::Retired };
        let kept = kept.clone();
        self.keep(plan).await;
        let event = match outcome {
            Ok(()) => {
                let retired = false;
                Event::Opened(Box::new(Opened { tab: kept.tab, lock: kept.lock, voucher: None, retired }))
            }
            Err(error) => {
                let seats = kept.tab.plan.stages.iter().zip(&kept.tab.terms.nodes);
                let seat = |(stage, node): (&Stage, &[u8; 32])| Seat {
                    node: *node,
                    payee: stage.payee,
                    price: stage.weight,
                };
                Event::Refused { seats: seats.map(seat).collect(), reason: error.into() }
            }
        };
        self.tell(event).await;
    }

    /// Sees to plans that are nearly over, and to the money of those that are.
    async fn upkeep(&mut self) {
        let (now, rules) = (now(), self.payer.rules.clone());
        let mut expiring = Vec::new();
        for (plan, kept) in &self.tabs {
            let expiry = kept.tab.plan.expiry;
            match kept.phase {
                Phase::Locking => {}
                Phase::Open if now + rules.lifetime_s / 16 >= expiry => expiring.push(*plan),
                Phase::Open => {}
                Phase::Retired => {
                    let (chain, payer, plan) = (self.payer.chain.clone(), kept.tab.plan.payer, *plan);
                    let look = async move { Answer::Found { plan, lock: chain.lock_of(payer, plan).await } };
                    self.asked.push(look.boxed());
                }
            }
        }
        for plan in expiring {
            self.tell(Event::Expiring(plan)).await;
        }
    }

    /// Takes back what the lock of a plan that is over has left, and forgets the plan once that is nothing.
    async fn found(&mut self, plan: [u8; 32], lock: Lock) {
        let Some(kept) = self.tabs.get(&plan) else { return };
        let chain = self.payer.chain.clone();
        let over = now() > kept.tab.plan.expiry + self.payer.rules.window_s;
        if lock.remaining == 0 {
            if over {
                self.forget(plan).await;
            }
            return;
        }
        if lock.thaws && now() < lock.thaws_at {
            return;
        }
        let take = async move {
            let outcome = if lock.thaws { chain.release(plan).await } else { chain.thaw(plan).await };
            if let Err(error) = outcome {
                tracing::warn!(%error, "a lock is not given back yet");
            }
            Answer::Moved
        };
        self.asked.push(take.boxed());
    }

    async fn forget(&mut self, plan: [u8; 32]) {
        let Some(kept) = self.tabs.get(&plan) else { return };
        self.spent = self.spent.saturating_add(kept.total);
        // Written first: what is counted twice after a crash only makes the limit stricter.
        if self.put(SPENT.to_owned(), Record::Spent(self.spent)).await {
            self.tabs.remove(&plan);
            if let Err(error) = self.payer.store.remove(&hex::encode(plan)) {
                tracing::warn!(%error, "a plan that is over comes back with the next start");
            }
            self.tell(Event::Forgotten(plan)).await;
        }
    }
}
