//! A payee's side of one plan, in tokens: what it has served, what it was paid for, how far it goes on.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A payee's side of one plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Wei for one token, over all stages.
    price: u64,
    /// Tokens that are served without being paid.
    credit: u64,
    /// Wei locked for the plan: a voucher over more pays no more.
    lock: u128,
    /// Wei of the newest voucher.
    total: u128,
    /// Tokens served.
    served: u64,
}

/// The credit is used up.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
#[error("{unpaid} tokens are unpaid, and the credit is {credit}: a voucher is needed first")]
pub struct Unpaid {
    /// Tokens served and not paid, with those that were asked for.
    pub unpaid: u64,
    /// The credit.
    pub credit: u64,
}

impl Account {
    /// An account with a voucher of `total`; zero without one. What it paid for counts as served.
    pub fn new(price: u64, credit: u64, lock: u128, total: u128) -> Self {
        let mut account = Self { price, credit, lock, total, served: 0 };
        account.served = account.covered();
        account
    }

    /// Tokens that the newest voucher pays for, as far as the lock goes.
    pub fn covered(&self) -> u64 {
        let collectable = self.total.min(self.lock);
        u64::try_from(collectable / u128::from(self.price.max(1))).unwrap_or(u64::MAX)
    }

    /// Tokens served in all.
    pub fn served(&self) -> u64 {
        self.served
    }

    /// Tokens served and not paid.
    pub fn unpaid(&self) -> u64 {
        self.served.saturating_sub(self.covered())
    }

    /// Counts tokens that are about to be served, or refuses to serve them.
    pub fn serve(&mut self, tokens: u64) -> Result<(), Unpaid> {
        let unpaid = self.unpaid().saturating_add(tokens);
        if unpaid > self.credit {
            return Err(Unpaid { unpaid, credit: self.credit });
        }
        self.served = self.served.saturating_add(tokens);
        Ok(())
    }

    /// Whether a session of that prompt could be served now.
    pub fn admits(&self, prompt: u64) -> Result<(), Unpaid> {
        self.clone().serve(prompt)
    }

    /// Takes a voucher that is stored. What it pays for beyond what was counted is served already: the end of
    /// a reply is known to the payer first. Nothing is paid ahead.
    pub fn pay(&mut self, total: u128) {
        self.total = self.total.max(total);
        self.served = self.served.max(self.covered());
    }

    /// The lock as the chain has it now.
    pub fn locked(&mut self, lock: u128) {
        self.lock = lock;
    }
}

/// What of one session was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    prompt: u32,
    verified: u32,
}

impl Meter {
    /// A session of that prompt.
    pub fn new(prompt: u32) -> Self {
        Self { prompt, verified: 0 }
    }

    /// Rows from position `from` up to `to` are to be computed, of which the last `drafted` hold guesses; what
    /// lies before them was right. How many tokens are verified that were not before: rows that are sent again
    /// count once.
    pub fn advance(&mut self, from: u32, to: u32, drafted: u32) -> u64 {
        let known = to.saturating_sub(drafted).max(from).max(to.min(self.prompt));
        let before = self.verified;
        self.verified = before.max(known);
        u64::from(self.verified - before)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn positions_count_once() {
        let mut meter = Meter::new(10);
        assert_eq!(meter.advance(0, 8, 0), 8);
        assert_eq!(meter.advance(0, 8, 0), 0, "sent again");
        assert_eq!(meter.advance(8, 10, 2), 2, "a prompt is no guess");
        assert_eq!(meter.advance(10, 14, 3), 1);
        assert_eq!(meter.advance(12, 13, 0), 2, "one guess was right");
        assert_eq!(meter.advance(6, 13, 0), 0, "pages were lost");
    }

    #[test]
    fn a_voucher_pays_no_more_than_the_lock() {
        let mut account = Account::new(5, 10, 100, 0);
        account.serve(10).unwrap();
        account.pay(1000);
        assert_eq!((account.covered(), account.unpaid(), account.served()), (20, 0, 20));
        assert_eq!(account.serve(11), Err(Unpaid { unpaid: 11, credit: 10 }));
        account.serve(10).unwrap();
        assert_eq!(account.serve(1), Err(Unpaid { unpaid: 11, credit: 10 }));
    }

    proptest! {
        /// Whatever is served and paid, in any order: the unpaid work never passes the credit, and a payment
        /// never buys more than it pays for.
        #[test]
        fn unpaid_work_never_passes_the_credit(
            price in 1u64..1000,
            credit in 0u64..500,
            lock in 0u128..200_000,
            steps in prop::collection::vec((any::<bool>(), 0u64..200), 0..60),
        ) {
            let mut account = Account::new(price, credit, lock, 0);
            let (mut work, mut paid) = (0u64, 0u128);
            for (pays, amount) in steps {
                if pays {
                    paid = paid.max(u128::from(amount) * u128::from(price) * 3);
                    account.pay(paid);
                } else if account.serve(amount).is_ok() {
                    work += amount;
                }
                prop_assert!(account.unpaid() <= credit);
                let bought = (paid.min(lock) / u128::from(price)) as u64;
                prop_assert!(work <= bought + credit, "{work} tokens for {bought} and a credit of {credit}");
                // A restart forgets what is unpaid and no more.
                let restarted = Account::new(price, credit, lock, paid);
                prop_assert!(account.served() - restarted.served() <= credit);
            }
        }
    }
}
