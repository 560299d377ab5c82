//! What payment asks of a chain.

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use ledger::{
    client::{Action, Error, Ledger, Pod, SignedVoucher},
    eip712::Address,
    plan::Plan,
    voucher::Voucher,
};
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

/// The account of a [`Ledger`] that has a key.
#[derive(Clone)]
pub struct OnChain {
    ledger: Arc<dyn Ledger>,
    account: Address,
}

impl OnChain {
    /// `None` for a ledger without a key.
    pub fn new(ledger: Arc<dyn Ledger>) -> Option<Self> {
        let account = ledger.account()?;
        Some(Self { ledger, account })
    }

    /// The account.
    pub fn account(&self) -> Address {
        self.account
    }

    fn submit(&self, action: Action) -> BoxFuture<'_, Result<(), ChainError>> {
        async move { Ok(self.ledger.submit(action).await.map(|_| ())?) }.boxed()
    }
}

impl From<Error> for ChainError {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(_) | Error::Funds { .. } | Error::Reverted { .. } | Error::NoKey => {
                Self::Refused(error.to_string())
            }
            error => Self::Unreachable(error.to_string()),
        }
    }
}

impl From<Claim> for SignedVoucher {
    fn from(claim: Claim) -> Self {
        let Claim { plan, total, signature } = claim;
        let (session, hash) = (plan.session, plan.hash());
        let voucher = Voucher { session, plan: hash, total, chunk: 0, commitments: [0; 32] };
        Self { signer: plan.payer, voucher, plan, signature }
    }
}

fn batch(claims: Vec<Claim>) -> Action {
    Action::CollectBatch(claims.into_iter().map(SignedVoucher::from).collect())
}

impl Chain for OnChain {
    fn lock_of(&self, payer: Address, plan: [u8; 32]) -> BoxFuture<'_, Result<Lock, ChainError>> {
        let read = async move {
            let lock = self.ledger.lock(payer, plan).await?;
            Ok(Lock {
                remaining: lock.remaining.0,
                collected: lock.collected.0,
                thaws: lock.thaws_at.is_some(),
                thaws_at: lock.thaws_at.unwrap_or(0),
            })
        };
        read.boxed()
    }

    fn balance(&self) -> BoxFuture<'_, Result<u128, ChainError>> {
        async move { Ok(self.ledger.balances(self.account).await?.escrow.0) }.boxed()
    }

    fn lock(&self, plan: [u8; 32], amount: u128) -> BoxFuture<'_, Result<(), ChainError>> {
        self.submit(Action::Lock { plan, amount: Pod(amount) })
    }

    fn thaw(&self, plan: [u8; 32]) -> BoxFuture<'_, Result<(), ChainError>> {
        self.submit(Action::Thaw { plan })
    }

    fn release(&self, plan: [u8; 32]) -> BoxFuture<'_, Result<(), ChainError>> {
        self.submit(Action::Release { plan })
    }

    fn collect(&self, claims: Vec<Claim>) -> BoxFuture<'_, Result<u128, ChainError>> {
        async move { Ok(self.ledger.submit(batch(claims)).await?.fee_wei) }.boxed()
    }

    fn collect_fee(&self, claims: Vec<Claim>) -> BoxFuture<'_, Result<u128, ChainError>> {
        async move { Ok(self.ledger.estimate(&batch(claims)).await?.fee_wei) }.boxed()
    }
}
