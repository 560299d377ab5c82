//! What payment asks of a chain.

use futures::future::BoxFuture;
use ledger::{eip712::Address, plan::Plan};
use thiserror::Error;

/// Money locked for one plan, in wei of POD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    /// What can still be collected.
    pub remaining: u128,
    /// What was collected so far.
    pub collected: u128,
    /// Whether the payer is taking it back.
    pub thaws: bool,
    /// From when the payer can have it, if it thaws; in seconds since 1970.
    pub thaws_at: u64,
}

impl Lock {
    /// The highest total that the lock pays for.
    pub fn backs(&self) -> u128 {
        self.remaining.saturating_add(self.collected)
    }
}

/// A voucher to collect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The plan that divides it.
    pub plan: Plan,
    /// The voucher's total.
    pub total: u128,
    /// The payer's signature of the voucher.
    pub signature: Vec<u8>,
}

/// Why the chain did not do something.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ChainError {
    /// It cannot be reached, or gives no proper answer. What was asked may have been done.
    #[error("{0}")]
    Unreachable(String),
    /// It refuses, and nothing was done.
    #[error("{0}")]
    Refused(String),
}

/// The chain as one account sees it.
pub trait Chain: Send + Sync {
    /// A payer's lock for a plan.
    fn lock_of(&self, payer: Address, plan: [u8; 32]) -> BoxFuture<'_, Result<Lock, ChainError>>;
    /// The account's free money in the escrow, in wei of POD.
    fn balance(&self) -> BoxFuture<'_, Result<u128, ChainError>>;
    /// Locks some of it for a plan, and waits until that is sure.
    fn lock(&self, plan: [u8; 32], amount: u128) -> BoxFuture<'_, Result<(), ChainError>>;
    /// Begins to take a lock back.
    fn thaw(&self, plan: [u8; 32]) -> BoxFuture<'_, Result<(), ChainError>>;
    /// Frees what a thawed lock has left.
    fn release(&self, plan: [u8; 32]) -> BoxFuture<'_, Result<(), ChainError>>;
    /// Has the stages of plans paid; those that add nothing are left out. What it cost for gas, in the chain's
    /// own wei.
    fn collect(&self, claims: Vec<Claim>) -> BoxFuture<'_, Result<u128, ChainError>>;
    /// What [`Chain::collect`] would cost.
    fn collect_fee(&self, claims: Vec<Claim>) -> BoxFuture<'_, Result<u128, ChainError>>;
}
