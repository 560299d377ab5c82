//! Transactions that are accepted and in no block yet.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use alloy_consensus::Transaction;
use alloy_primitives::{Address, TxHash};

use super::{block::Signed, error::RpcError};

/// How far ahead of its sender's account a transaction's nonce may be.
pub(super) const NONCES_AHEAD: u64 = 64;
/// Most transactions that wait, of all senders.
const WAITING: usize = 4096;
/// By how much, in percent, fees must rise for a transaction to take another's place.
const REPLACEMENT_PERCENT: u128 = 10;

/// Transactions that wait, at most one for each sender and nonce.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    senders: HashMap<Address, BTreeMap<u64, Waiting>>,
    places: HashMap<TxHash, (Address, u64)>,
    arrivals: u64,
}

#[derive(Clone, Debug)]
struct Waiting {
    transaction: Arc<Signed>,
    arrival: u64,
}

impl Pool {
    pub(super) fn find(&self, hash: &TxHash) -> Option<&Arc<Signed>> {
        let (sender, nonce) = self.places.get(hash)?;
        self.get(sender, *nonce)
    }

    pub(super) fn get(&self, sender: &Address, nonce: u64) -> Option<&Arc<Signed>> {
        Some(&self.senders.get(sender)?.get(&nonce)?.transaction)
    }

    /// Nonce after the last that waits without a gap after `nonce`.
    pub(super) fn next_nonce(&self, sender: &Address, nonce: u64) -> u64 {
        let Some(waiting) = self.senders.get(sender) else { return nonce };
        let run = waiting.range(nonce..).zip(nonce..).take_while(|((have, _), want)| *have == want);
        nonce + run.count() as u64
    }

    /// Whether `transaction` may be [added](Pool::add): there is room, and it pays more than the one it replaces.
    pub(super) fn check(&self, transaction: &Signed) -> Result<(), RpcError> {
        let waiting = self.senders.get(&transaction.signer());
        let Some(held) = waiting.and_then(|waiting| waiting.get(&transaction.nonce())) else {
            let full = self.places.len() >= WAITING;
            return if full { Err(RpcError::rejected("txpool is full")) } else { Ok(()) };
        };
        let outbids = |new: u128, old: u128| {
            new >= old.saturating_add(old.saturating_mul(REPLACEMENT_PERCENT).div_ceil(100))
        };
        let held = &held.transaction;
        let pays_more = outbids(transaction.max_fee_per_gas(), held.max_fee_per_gas())
            && outbids(transaction.priority_fee_or_price(), held.priority_fee_or_price());
        if pays_more { Ok(()) } else { Err(RpcError::rejected("replacement transaction underpriced")) }
    }

    pub(super) fn add(&mut self, transaction: Arc<Signed>) {
        let (sender, nonce) = (transaction.signer(), transaction.nonce());
        self.places.insert(*transaction.tx_hash(), (sender, nonce));
        let waiting = Waiting { transaction, arrival: self.arrivals };
        self.arrivals += 1;
        if let Some(replaced) = self.senders.entry(sender).or_default().insert(nonce, waiting) {
            self.places.remove(replaced.transaction.tx_hash());
        }
    }

    /// Forgets a transaction and any other of the same sender and nonce, of which only one can be in a block.
    pub(super) fn remove(&mut self, sender: Address, nonce: u64) {
        let Some(waiting) = self.senders.get_mut(&sender) else { return };
        if let Some(removed) = waiting.remove(&nonce) {
            self.places.remove(removed.transaction.tx_hash());
        }
        if waiting.is_empty() {
            self.senders.remove(&sender);
        }
    }

    pub(super) fn forget(&mut self, hash: &TxHash) {
        if let Some((sender, nonce)) = self.places.get(hash).copied() {
            self.remove(sender, nonce);
        }
    }

    /// Everything, first come first, but each sender's in the order of nonces.
    pub(super) fn in_order(&self) -> Vec<Arc<Signed>> {
        let mut ordered = Vec::with_capacity(self.places.len());
        for waiting in self.senders.values() {
            let mut latest = 0;
            for entry in waiting.values() {
                latest = entry.arrival.max(latest);
                ordered.push((latest, entry.transaction.nonce(), entry.transaction.clone()));
            }
        }
        ordered.sort_by_key(|(arrival, nonce, _)| (*arrival, *nonce));
        ordered.into_iter().map(|(_, _, transaction)| transaction).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}
