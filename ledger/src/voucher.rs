//! Cumulative vouchers: one signature over the total so far pays every stage of a session. Amounts are
//! in the token's smallest unit.

use thiserror::Error;

use crate::eip712::{Domain, keccak, word};

/// What a payer signs. Each voucher of a session replaces the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voucher {
    /// The session.
    pub session: [u8; 32],
    /// Hash of the plan that names stages and prices.
    pub plan: [u8; 32],
    /// Everything owed so far.
    pub total: u128,
    /// Number of the last chunk it covers.
    pub chunk: u64,
    /// Root of the commitments it covers.
    pub commitments: [u8; 32],
}

const VOUCHER_TYPE: &str =
    "Voucher(bytes32 session,bytes32 plan,uint256 total,uint64 chunk,bytes32 commitments)";

/// Why a voucher does not follow another.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Regression {
    /// It is for another session or plan.
    #[error("the voucher is for another session or plan")]
    Other,
    /// It takes back what was owed.
    #[error("the total falls from {before} to {after}")]
    Total {
        /// Total of the voucher held.
        before: u128,
        /// Total of the new one.
        after: u128,
    },
    /// It covers less than before.
    #[error("the last chunk falls from {before} to {after}")]
    Chunk {
        /// Chunk of the voucher held.
        before: u64,
        /// Chunk of the new one.
        after: u64,
    },
}

impl Voucher {
    /// The digest to sign.
    pub fn digest(&self, collector: &Domain) -> [u8; 32] {
        let parts = [
            keccak(VOUCHER_TYPE.as_bytes()),
            self.session,
            self.plan,
            word(self.total),
            word(self.chunk.into()),
            self.commitments,
        ];
        collector.digest(&keccak(parts.as_flattened()))
    }

    /// Whether `next` may replace this voucher.
    pub fn check_next(&self, next: &Voucher) -> Result<(), Regression> {
        if (next.session, next.plan) != (self.session, self.plan) {
            return Err(Regression::Other);
        }
        if next.total < self.total {
            return Err(Regression::Total { before: self.total, after: next.total });
        }
        if next.chunk < self.chunk {
            return Err(Regression::Chunk { before: self.chunk, after: next.chunk });
        }
        Ok(())
    }
}

/// Stages' weights that share nothing out.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the weights of the stages add up to nothing, or to more than 2^64")]
pub struct NoWeights;

/// Divides `amount` by the stages' weights, rounded down; what the rounding leaves goes to the last
/// stage, so the shares add up to the whole.
pub fn shares(amount: u128, weights: &[u64]) -> Result<Vec<u128>, NoWeights> {
    let total = weights.iter().try_fold(0u64, |sum, &weight| sum.checked_add(weight)).ok_or(NoWeights)?;
    if total == 0 {
        return Err(NoWeights);
    }
    let mut shares: Vec<u128> = weights.iter().map(|&weight| scaled(amount, weight, total)).collect();
    let rest = amount - shares.iter().sum::<u128>();
    if let Some(last) = shares.last_mut() {
        *last += rest;
    }
    Ok(shares)
}

/// floor(amount * weight / total) for weight <= total, without overflow: the product is taken in two
/// halves of `amount`'s quotient and remainder by `total`.
fn scaled(amount: u128, weight: u64, total: u64) -> u128 {
    let (weight, total) = (u128::from(weight), u128::from(total));
    amount / total * weight + amount % total * weight / total
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn voucher() -> Voucher {
        Voucher {
            session: [1; 32],
            plan: [2; 32],
            total: 1_000_000_000_000_000_000,
            chunk: 7,
            commitments: [3; 32],
        }
    }

    fn domain() -> Domain {
        Domain { chain_id: 10, contract: [0x11; 20] }
    }

    /// The digest that the Python package eth-account computes for the same typed data.
    #[test]
    fn the_digest_is_the_one_wallets_compute() {
        let expected = "3af48dc7e56b12dcf24f320184cfe66e867fc886366d81a7605cd40ea6d0b4f9";
        assert_eq!(hex::encode(voucher().digest(&domain())), expected);
    }

    #[test]
    fn a_digest_depends_on_every_field_and_on_the_domain() {
        let base = voucher().digest(&domain());
        let others = [
            Voucher { session: [9; 32], ..voucher() }.digest(&domain()),
            Voucher { plan: [9; 32], ..voucher() }.digest(&domain()),
            Voucher { total: 1, ..voucher() }.digest(&domain()),
            Voucher { chunk: 8, ..voucher() }.digest(&domain()),
            Voucher { commitments: [9; 32], ..voucher() }.digest(&domain()),
            voucher().digest(&Domain { chain_id: 11, ..domain() }),
            voucher().digest(&Domain { contract: [0x12; 20], ..domain() }),
        ];
        let mut all: Vec<_> = others.into_iter().chain([base]).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8);
    }

    #[test]
    fn a_voucher_may_only_grow() {
        let held = voucher();
        let more = Voucher { total: held.total + 1, chunk: 8, ..held.clone() };
        assert_eq!(held.check_next(&more), Ok(()));
        assert_eq!(
            more.check_next(&held),
            Err(Regression::Total { before: held.total + 1, after: held.total })
        );
        let other = Voucher { session: [9; 32], ..more };
        assert_eq!(held.check_next(&other), Err(Regression::Other));
        let earlier = Voucher { chunk: 6, ..held.clone() };
        assert_eq!(held.check_next(&earlier), Err(Regression::Chunk { before: 7, after: 6 }));
    }

    #[test]
    fn the_last_stage_gets_what_rounding_leaves() {
        assert_eq!(shares(10, &[1, 1, 1]), Ok(vec![3, 3, 4]));
        assert_eq!(shares(10, &[0, 0]), Err(NoWeights));
        assert_eq!(shares(10, &[]), Err(NoWeights));
        assert_eq!(shares(10, &[u64::MAX, 1]), Err(NoWeights));
    }

    proptest! {
        #[test]
        fn shares_add_up_to_the_whole(amount: u128, weights in prop::collection::vec(0u64..1 << 40, 1..9)) {
            if let Ok(shares) = shares(amount, &weights) {
                prop_assert_eq!(shares.iter().sum::<u128>(), amount);
                let total: u64 = weights.iter().sum();
                for (share, &weight) in shares.iter().zip(&weights).take(weights.len() - 1) {
                    let exact = amount as f64 * weight as f64 / total as f64;
                    prop_assert!((*share as f64 - exact).abs() <= exact * 1e-9 + 1.0);
                }
            }
        }
    }
}
