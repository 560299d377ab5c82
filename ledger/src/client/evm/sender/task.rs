//! The task: looks at the chain, asks the queue what to do, and does it.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use ethers_core::types::TransactionReceipt;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use super::{
    Manner, Request, Until, WAITING,
    chain::{Chain, User, inclusion},
    queue::{Inclusion, Queue, Taken, Timing, View, Work},
    store::Store,
    transaction::{Attempt, sign},
};
use crate::client::{
    Error, Key,
    evm::{
        calls::Order,
        fees::{Fees, Offer},
        rpc::RpcFault,
    },
    show_address,
};

/// Blocks on top of an order until it is forgotten: deeper than any reorganisation that chains go through.
const KEEP: u64 = 64;
/// Looks at the chain until something is sent again.
const LOOKS_UNTIL_RESENT: u32 = 5;
/// Looks after something was sent until they come as usual; the first after a sixteenth of the usual time, each
/// wait twice the one before.
const EAGER: u32 = 4;
/// Longest wait between two looks when a node is down.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Gas of a transaction that does nothing.
const EMPTY_GAS: u64 = 21_000;

pub(super) struct Task {
    chain: Chain,
    key: Key,
    chain_id: u64,
    manner: Manner,
    store: Store,
    queue: Queue,
    waiting: VecDeque<(Instant, Request)>,
    /// Who waits for which nonce.
    replies: HashMap<u64, Reply>,
    begun: Instant,
    /// Since when the node has kept the first of those that wait from a nonce: what stands before it does not count.
    hindered: Option<Instant>,
    /// As of the last look.
    fees: Fees,
    /// Looks that failed in a row.
    failed: u32,
    /// Looks that come sooner than usual, since something was just sent: some chains make blocks at once.
    eager: u32,
}

struct Reply {
    until: Until,
    to: oneshot::Sender<Result<TransactionReceipt, Error>>,
}

impl Task {
    pub(super) fn new(
        chain: Chain,
        key: Key,
        chain_id: u64,
        manner: Manner,
        store: Store,
        entries: Vec<super::queue::Entry>,
    ) -> Self {
        let timing = Timing {
            confirmations: manner.confirmations.max(1),
            keep: KEEP.max(2 * manner.confirmations),
            resend: manner.poll * LOOKS_UNTIL_RESENT,
            raise: manner.raise_after,
        };
        Self {
            chain,
            key,
            chain_id,
            manner,
            store,
            queue: Queue::new(timing, entries),
            waiting: VecDeque::new(),
            replies: HashMap::new(),
            begun: Instant::now(),
            hindered: None,
            fees: Fees { base_wei: 0, tip_wei: 0 },
            failed: 0,
            eager: 0,
        }
    }

    /// Runs until nobody can order anything any more and everything is confirmed.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut is_open = true;
        while is_open || !self.waiting.is_empty() || !self.queue.is_settled() {
            let is_idle = self.queue.is_empty() && self.waiting.is_empty();
            let next = Instant::now() + self.wait();
            tokio::select! {
                request = requests.recv(), if is_open && self.waiting.len() < WAITING => match request {
                    Some(request) => self.waiting.push_back((Instant::now(), request)),
                    None => is_open = false,
                },
                () = sleep_until(next), if !is_idle => {}
            }
            if let Err(fault) = self.look().await {
                self.failed = self.failed.saturating_add(1);
                debug!(%fault, "the chain's node did not answer, {} times in a row", self.failed);
                self.expire(fault);
            } else {
                self.failed = 0;
            }
        }
    }

    /// Until the next look: longer while a node is down, and when nothing but a reorganisation can happen.
    fn wait(&self) -> Duration {
        let is_quiet = self.queue.is_settled() && self.waiting.is_empty();
        let usual = if is_quiet { self.manner.poll * LOOKS_UNTIL_RESENT } else { self.manner.poll };
        (usual / (1 << self.eager) * (1 << self.failed.min(10))).min(LONGEST_WAIT.max(usual))
    }

    async fn look(&mut self) -> Result<(), RpcFault> {
        let view = self.chain.view(self.begun.elapsed()).await?;
        self.fees = view.fees;
        self.eager = self.eager.saturating_sub(1);
        let receipts = self.look_up(&view).await?;
        let before = self.marks();
        for work in self.queue.step(&view) {
            self.carry_out(work, &view, &receipts).await?;
        }
        if self.marks() != before {
            self.save_soon();
        }
        self.prepare(&view).await
    }

    /// What changes in the file but does not have to be there at once.
    fn marks(&self) -> (usize, usize) {
        (self.queue.entries().count(), self.queue.entries().filter(|entry| entry.told).count())
    }

    /// Saves what is only repeated if it is lost.
    fn save_soon(&self) {
        if let Err(error) = self.store.save(self.queue.entries()) {
            warn!(%error, "the sender will look at old transactions again after a restart");
        }
    }

    async fn look_up(&mut self, view: &View) -> Result<HashMap<u64, TransactionReceipt>, RpcFault> {
        let mut receipts = HashMap::new();
        for nonce in self.queue.to_look_up(view) {
            let Some(entry) = self.queue.entry(nonce) else { continue };
            let receipt = match self.chain.receipt(&entry.attempts).await {
                Ok(receipt) => receipt,
                // One of many questions: the others are not to wait for it.
                Err(fault) if fault.is_passing() => {
                    debug!(nonce, %fault, "a transaction is looked up later");
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            self.queue.looked_up(nonce, receipt.as_ref().and_then(inclusion), view.now);
            let Some(receipt) = receipt else { continue };
            if self.replies.get(&nonce).is_some_and(|reply| reply.until == Until::Included) {
                self.reply(nonce, Ok(receipt.clone()));
            }
            receipts.insert(nonce, receipt);
        }
        Ok(receipts)
    }

    async fn carry_out(
        &mut self,
        work: Work,
        view: &View,
        receipts: &HashMap<u64, TransactionReceipt>,
    ) -> Result<(), RpcFault> {
        match work {
            Work::Send(nonce) => self.send(nonce, view.now).await,
            Work::Raise(nonce) => self.raise(nonce, view).await,
            Work::Investigate(nonce) => self.investigate(nonce, view).await?,
            Work::Fill(nonce) => {
                warn!("nonce {nonce} of {} is missing, and is filled", show_address(&self.key.address()));
                let (order, attempt) = self.nothing(nonce);
                self.queue.push(nonce, order, EMPTY_GAS, attempt);
                self.queue.told(nonce);
                self.save_soon();
                self.send(nonce, view.now).await;
            }
            Work::Tell(nonce) => {
                if let Some(receipt) = receipts.get(&nonce) {
                    info!(nonce, block = ?receipt.block_number, "transaction confirmed");
                    self.queue.told(nonce);
                    self.reply(nonce, Ok(receipt.clone()));
                }
            }
        }
        Ok(())
    }

    /// A transaction that uses a nonce up.
    fn nothing(&self, nonce: u64) -> (Order, Attempt) {
        let to = Some(ethers_core::types::H160(self.key.address()));
        let order = Order { to, value_wei: 0, data: Vec::new() };
        let attempt = sign(&self.key, self.chain_id, nonce, &order, EMPTY_GAS, self.offer());
        (order, attempt)
    }

    /// What to offer for what cannot wait for lower fees.
    fn offer(&self) -> Offer {
        let limit = self.manner.max_fee_wei;
        let most = Offer { max_wei: limit, tip_wei: self.fees.tip_wei.min(limit) };
        self.fees.offer(limit).unwrap_or(most)
    }

    async fn send(&mut self, nonce: u64, now: Duration) {
        let Some(attempt) = self.queue.entry(nonce).and_then(|entry| entry.attempts.last()) else { return };
        let (taken, fault) = self.chain.broadcast(attempt).await;
        debug!(nonce, hash = %hex::encode(attempt.hash), ?taken, "transaction sent");
        self.queue.sent(nonce, taken, now);
        let Some(fault) = fault.filter(|_| taken == Taken::No) else { return };
        warn!(nonce, %fault, "the chain's node does not take a transaction");
        // Only what no node can have is given up; its orderer may try something else.
        if !self.queue.is_unknown(nonce) {
            return;
        }
        if self.queue.is_last(nonce) {
            self.queue.remove(nonce);
        } else {
            let (order, attempt) = self.nothing(nonce);
            self.queue.hollow_out(nonce, order, EMPTY_GAS, attempt);
        }
        self.save_soon();
        self.reply(nonce, Err(fault.into()));
    }

    async fn raise(&mut self, nonce: u64, view: &View) {
        let Some(entry) = self.queue.entry(nonce) else { return };
        let offer = entry.attempts.last().map(|attempt| attempt.offer);
        let raised = offer.and_then(|offer| offer.raised(view.fees, self.manner.max_fee_wei));
        if let Some(offer) = raised {
            info!(nonce, max_wei = offer.max_wei, tip_wei = offer.tip_wei, "a stuck transaction offers more");
            let attempt = sign(&self.key, self.chain_id, nonce, &entry.order, entry.gas, offer);
            self.queue.offered(nonce, attempt);
            if let Err(error) = self.store.save(self.queue.entries()) {
                warn!(%error, "a better offer is not made");
                self.queue.take_offer_back(nonce);
            }
        }
        self.send(nonce, view.now).await;
    }

    /// Finds out who used the nonce of an order; if it was somebody else, the order gets another nonce.
    async fn investigate(&mut self, nonce: u64, view: &View) -> Result<(), RpcFault> {
        let Some(entry) = self.queue.entry(nonce) else { return Ok(()) };
        let User::Transaction { hash, block } = self.chain.user_of(nonce, view.head).await? else {
            return Ok(());
        };
        if entry.attempts.iter().any(|attempt| attempt.hash == hash) {
            // Its receipt will be there in time.
            self.queue.looked_up(nonce, Some(Inclusion { block, hash }), view.now);
            return Ok(());
        }
        if view.head.saturating_add(1).saturating_sub(block) < self.manner.confirmations {
            return Ok(());
        }
        warn!(nonce, "somebody else used a nonce of {}", show_address(&self.key.address()));
        let next = self.queue.next_nonce(self.chain.next_nonce().await?);
        let Some(entry) = self.queue.remove(nonce) else { return Ok(()) };
        // What only used the nonce up has nothing left to do. What was told is owed all the more: it was on the
        // chain, and a reorganisation dropped it.
        let is_owed = !(entry.told && entry.order == self.nothing(nonce).0);
        if is_owed {
            let attempt = sign(&self.key, self.chain_id, next, &entry.order, entry.gas, self.offer());
            self.queue.push(next, entry.order, entry.gas, attempt);
            if entry.told {
                self.queue.told(next);
            }
            if let Some(reply) = self.replies.remove(&nonce) {
                self.replies.insert(next, reply);
            }
        }
        // Neither nonce can be used twice, so what is in the file is right before and after.
        self.save_soon();
        if is_owed {
            self.send(next, view.now).await;
        }
        Ok(())
    }

    /// Gives nonces to the orders that wait, in turn.
    async fn prepare(&mut self, view: &View) -> Result<(), RpcFault> {
        while let Some((since, request)) = self.waiting.front() {
            let since = *since;
            if request.reply.is_closed() {
                self.waiting.pop_front();
                continue;
            }
            match self.check(&request.order, view).await {
                Ok((gas, offer)) => {
                    let by_node = self.chain.next_nonce().await?;
                    let Some((_, request)) = self.waiting.pop_front() else { break };
                    self.begin(request, gas, offer, by_node, view.now).await;
                    self.hindered = None;
                }
                // It may be what is to be included first that makes it possible.
                Err(Error::Refused(_) | Error::Node { .. }) if self.queue.has_open() => {
                    self.hindered = None;
                    break;
                }
                Err(error) if error.is_passing() && self.may_wait(since) => break,
                Err(error) => {
                    self.hindered = None;
                    if let Some((_, request)) = self.waiting.pop_front() {
                        // Whoever ordered it may have gone away.
                        let _ = request.reply.send(Err(error));
                    }
                }
            }
        }
        Ok(())
    }

    /// Gas and offer of an order, if it would be done and can be paid.
    async fn check(&self, order: &Order, view: &View) -> Result<(u64, Offer), Error> {
        let gas = self.chain.gas(order).await?;
        let offer = view.fees.offer(self.manner.max_fee_wei)?;
        let most_wei = offer.max_wei.saturating_mul(gas.into()).saturating_add(order.value_wei);
        let needed_wei = self.queue.reserved_wei().saturating_add(most_wei);
        let available_wei = self.chain.balance_wei().await?;
        if available_wei < needed_wei {
            return Err(Error::Funds { account: self.key.address(), needed_wei, available_wei });
        }
        Ok((gas, offer))
    }

    async fn begin(&mut self, request: Request, gas: u64, offer: Offer, by_node: u64, now: Duration) {
        let nonce = self.queue.next_nonce(by_node);
        let attempt = sign(&self.key, self.chain_id, nonce, &request.order, gas, offer);
        self.queue.push(nonce, request.order, gas, attempt);
        // What is not in the file must not be sent: a restart would give its nonce to another order.
        if let Err(error) = self.store.save(self.queue.entries()) {
            self.queue.remove(nonce);
            // Whoever ordered it may have gone away.
            let _ = request.reply.send(Err(error));
            return;
        }
        self.replies.insert(nonce, Reply { until: request.until, to: request.reply });
        self.eager = EAGER;
        self.send(nonce, now).await;
    }

    fn reply(&mut self, nonce: u64, answer: Result<TransactionReceipt, Error>) {
        if let Some(reply) = self.replies.remove(&nonce) {
            // Whoever ordered it may have gone away.
            let _ = reply.to.send(answer);
        }
    }

    /// Whether an order that came at `since` goes on waiting for the node, which just failed it.
    fn may_wait(&mut self, since: Instant) -> bool {
        let hindered = *self.hindered.get_or_insert_with(Instant::now);
        hindered.max(since).elapsed() < self.manner.patience
    }

    /// Gives up orders that have waited too long for a node and have no nonce yet.
    fn expire(&mut self, fault: RpcFault) {
        while let Some(&(since, _)) = self.waiting.front() {
            if self.may_wait(since) {
                break;
            }
            if let Some((_, request)) = self.waiting.pop_front() {
                // Whoever ordered it may have gone away.
                let _ = request.reply.send(Err(fault.clone().into()));
            }
        }
    }
}
