//! What the chain says of accounts, locks, stake and votes. Times are in seconds since 1970.

use super::{action::Call, amount::Pod};
use crate::eip712::Address;

/// What an account has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balances {
    /// Native tokens, which pay for gas, in their wei.
    pub native_wei: u128,
    /// POD that it holds.
    pub pod: Pod,
    /// POD in the escrow, free to be withdrawn or locked.
    pub escrow: Pod,
    /// All that collectors ever paid it.
    pub earned: Pod,
    /// Its votes now: held POD that was delegated to it, and stake.
    pub votes: Pod,
}

/// Money for one plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    /// What can still be collected.
    pub remaining: Pod,
    /// What was collected so far.
    pub collected: Pod,
    /// From when the payer can have it back, if it thaws.
    pub thaws_at: Option<u64>,
}

impl Lock {
    /// Whether it backs vouchers up to `total`, and does not thaw.
    pub fn backs(&self, total: Pod) -> bool {
        let most = self.collected.checked_add(self.remaining);
        self.thaws_at.is_none() && most.is_none_or(|most| most >= total)
    }
}

/// Someone's part of what stands behind an operator's role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Shares in the pool.
    pub shares: u128,
    /// What they are worth now.
    pub amount: Pod,
}

impl Position {
    /// Fewest of the shares that are worth `amount`; all of them where that is not enough. What is between
    /// them is never worth more than a wei.
    pub fn shares_for(&self, amount: Pod) -> u128 {
        if amount >= self.amount {
            return self.shares;
        }
        // amount * shares / worth, rounded up, in halves so that nothing overflows: shares are fewer than
        // 2^128 and amount is below worth, so the quotient fits.
        mul_div_up(self.shares, amount.0, self.amount.0)
    }
}

/// ceil(a * b / c) for b < c, by long division of the 256-bit product.
fn mul_div_up(a: u128, b: u128, c: u128) -> u128 {
    let (mut quotient, mut rest) = (0u128, 0u128);
    for bit in (0..128).rev() {
        // rest < c, so twice it, and b more, is below 3c: kept in the difference to c where it overflows.
        let mut carry = 0;
        (rest, carry) = add_mod(rest, rest, c, carry);
        if a >> bit & 1 == 1 {
            (rest, carry) = add_mod(rest, b, c, carry);
        }
        quotient = (quotient << 1) + carry;
    }
    if rest == 0 { quotient } else { quotient + 1 }
}

/// (a + b) mod c for a, b < c, and how often c was taken away, added to `carry`.
fn add_mod(a: u128, b: u128, c: u128, carry: u128) -> (u128, u128) {
    if a >= c - b { (a - (c - b), carry + 1) } else { (a + b, carry) }
}

/// Stake of an operator's role, and of one owner in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stake {
    /// The operator's stake behind no role.
    pub idle: Pod,
    /// What stands behind the role, delegations included.
    pub active: Pod,
    /// What is on its way out of the role, and still liable.
    pub thawing: Pod,
    /// Until when nothing is withdrawn from the role; in the past if nothing holds it.
    pub held_until: u64,
    /// The owner's part of `active`.
    pub position: Position,
    /// What the owner has from slashes, to be claimed.
    pub claimable: Pod,
}

/// Stake on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StakeThaw {
    /// Number of the thaw.
    pub id: u64,
    /// The operator behind whose role it stood.
    pub operator: Address,
    /// The role.
    pub role: u32,
    /// What it is worth now.
    pub amount: Pod,
    /// From when it can be withdrawn.
    pub releases_at: u64,
}

/// What an account can claim of the rewards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewards {
    /// What the account was paid so far.
    pub claimed: Pod,
    /// The root that counts now, if any does.
    pub root: Option<[u8; 32]>,
    /// What the emission allows to be made now.
    pub emittable: Pod,
}

/// Where a proposal is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProposalState {
    /// Its vote has not begun.
    Pending,
    /// It is voted on.
    Active,
    /// It was taken back.
    Cancelled,
    /// It did not pass.
    Defeated,
    /// It passed, and can be queued.
    Succeeded,
    /// It waits in the timelock, or can be executed.
    Queued,
    /// It waited too long.
    Expired,
    /// It was carried out.
    Executed,
}

/// A proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Its id.
    pub id: [u8; 32],
    /// Who made it.
    pub proposer: Address,
    /// What the timelock is to do.
    pub calls: Vec<Call>,
    /// Why.
    pub description: String,
    /// Where it is on its way.
    pub state: ProposalState,
    /// When its vote begins; votes count as they stood then.
    pub vote_start: u64,
    /// When its vote ends.
    pub vote_end: u64,
    /// From when a queued one can be executed.
    pub executable_at: Option<u64>,
    /// Votes for it.
    pub in_favour: Pod,
    /// Votes against it.
    pub against: Pod,
    /// Votes for neither.
    pub abstained: Pod,
}

/// The newest block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub block: u64,
    /// Its time, which is what contracts go by.
    pub time: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_lock_backs_what_it_can_still_pay() {
        let lock = Lock { remaining: Pod(5), collected: Pod(7), thaws_at: None };
        assert!(lock.backs(Pod(12)) && !lock.backs(Pod(13)));
        assert!(!Lock { thaws_at: Some(9), ..lock }.backs(Pod(1)));
    }

    proptest! {
        #[test]
        fn division_is_rounded_up(a in 0u128..1 << 64, b in 0u128..1 << 60, more in 1u128..1 << 60) {
            prop_assert_eq!(mul_div_up(a, b, b + more), (a * b).div_ceil(b + more));
        }

        #[test]
        fn shares_are_enough_and_no_more(shares: u128, worth: u128, amount: u128) {
            let position = Position { shares, amount: Pod(worth) };
            let needed = position.shares_for(Pod(amount));
            prop_assert!(needed <= shares);
            prop_assert!(amount < worth || needed == shares);
        }
    }
}
