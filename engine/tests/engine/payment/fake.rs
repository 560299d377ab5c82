//! A chain in memory that does what the contracts do, without their code.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use engine::payment::chain::{Chain, ChainError, Claim, Lock};
use futures::future::{BoxFuture, FutureExt, ready};
use ledger::{
    client::recover,
    eip712::{Address, Domain},
    voucher::Voucher,
};

/// Gas of one voucher, in the chain's wei.
pub(crate) const FEE: u128 = 1000;

#[derive(Debug, Default)]
pub(crate) struct Book {
    /// Free money by account.
    pub(crate) balances: HashMap<Address, u128>,
    pub(crate) locks: HashMap<(Address, [u8; 32]), Lock>,
    /// Transactions that locked.
    pub(crate) locked: usize,
    /// Transactions that collected.
    pub(crate) collections: usize,
    /// Whether it answers.
    pub(crate) down: bool,
}

impl Book {
    /// All the money there is.
    pub(crate) fn sum(&self) -> u128 {
        let locked: u128 = self.locks.values().map(|lock| lock.remaining).sum();
        self.balances.values().sum::<u128>() + locked
    }

    fn collect(&mut self, collector: &Domain, claim: &Claim) {
        let Claim { plan, total, signature } = claim;
        let hash = plan.hash();
        let voucher =
            Voucher { session: plan.session, plan: hash, total: *total, chunk: 0, commitments: [0; 32] };
        let signer = recover(&voucher.digest(collector), signature.as_slice().try_into().unwrap());
        assert_eq!(signer, Some(plan.payer), "a voucher that the contract would not take");
        let Some(lock) = self.locks.get_mut(&(plan.payer, hash)) else { return };
        let paid = total.saturating_sub(lock.collected).min(lock.remaining);
        (lock.remaining, lock.collected) = (lock.remaining - paid, lock.collected + paid);
        for (stage, share) in plan.stages.iter().zip(plan.shares(paid).unwrap()) {
            *self.balances.entry(stage.payee).or_default() += share;
        }
    }
}

/// The chain as one account sees it.
#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) book: Arc<Mutex<Book>>,
    pub(crate) account: Address,
    pub(crate) collector: Domain,
}

impl Fake {
    fn answer<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Book) -> Result<T, ChainError>,
    ) -> BoxFuture<'_, Result<T, ChainError>> {
        let mut book = self.book.lock().unwrap();
        let answer = match book.down {
            true => Err(ChainError::Unreachable("the chain is down".into())),
            false => act(&mut book),
        };
        ready(answer).boxed()
    }
}

impl Chain for Fake {
    fn lock_of(&self, payer: Address, plan: [u8; 32]) -> BoxFuture<'_, Result<Lock, ChainError>> {
        self.answer(|book| Ok(book.locks.get(&(payer, plan)).copied().unwrap_or_default()))
    }

    fn balance(&self) -> BoxFuture<'_, Result<u128, ChainError>> {
        self.answer(|book| Ok(book.balances.get(&self.account).copied().unwrap_or(0)))
    }

    fn lock(&self, plan: [u8; 32], amount: u128) -> BoxFuture<'_, Result<(), ChainError>> {
        self.answer(|book| {
            let balance = book.balances.entry(self.account).or_default();
            *balance = balance.checked_sub(amount).ok_or(ChainError::Refused("TooMuch".into()))?;
            book.locks.entry((self.account, plan)).or_default().remaining += amount;
            book.locked += 1;
            Ok(())
        })
    }

    fn thaw(&self, plan: [u8; 32]) -> BoxFuture<'_, Result<(), ChainError>> {
        self.answer(|book| {
            book.locks.entry((self.account, plan)).or_default().thaws = true;
            Ok(())
        })
    }

    fn release(&self, plan: [u8; 32]) -> BoxFuture<'_, Result<(), ChainError>> {
        self.answer(|book| {
            let lock = book.locks.entry((self.account, plan)).or_default();
            let left = std::mem::take(&mut lock.remaining);
            *book.balances.entry(self.account).or_default() += left;
            Ok(())
        })
    }

    fn collect(&self, claims: Vec<Claim>) -> BoxFuture<'_, Result<u128, ChainError>> {
        let collector = self.collector.clone();
        self.answer(|book| {
            claims.iter().for_each(|claim| book.collect(&collector, claim));
            book.collections += 1;
            Ok(FEE * claims.len() as u128)
        })
    }

    fn collect_fee(&self, claims: Vec<Claim>) -> BoxFuture<'_, Result<u128, ChainError>> {
        self.answer(|_| Ok(FEE * claims.len() as u128))
    }
}
