//! What gateways and nodes say of money. Amounts are in wei of POD.

use ledger::{
    account::Unpaid,
    eip712::{Address, Domain},
    plan::Plan,
    terms::Terms,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use transport::NodeId;

use super::{FailedReason, MAX_TEXT_BYTES, MessageError, check::ensure};

/// Most stages of a tab: what the collector's contract pays.
pub(super) const MAX_PAID_STAGES: usize = 64;

/// What a node asks for its work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tariff {
    /// Who is paid.
    pub account: Address,
    /// For each token that passes the node, whatever part of its shard a route uses.
    pub price: u64,
    /// Tokens that it serves before it is paid for them.
    pub credit: u64,
    /// The contract whose vouchers it takes.
    pub collector: Domain,
    /// The node's ed25519 signature of [`ledger::node::binding_digest`]: it wants this account to be paid.
    pub binding: Vec<u8>,
}

impl Tariff {
    /// Whether `node` named the account.
    pub fn is_bound(&self, node: NodeId, registry: &Domain) -> bool {
        let digest = ledger::node::binding_digest(registry, node.as_bytes(), &self.account);
        let signature = <&[u8; 64]>::try_from(self.binding.as_slice());
        signature.is_ok_and(|signature| node.verify(&digest, signature))
    }
}

/// A tab: sessions that name its plan are paid by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TabOffer {
    /// Who is paid, by whom, in which proportion. Weights are prices for a token.
    pub plan: Plan,
    /// What the plan's terms stand for.
    pub terms: Terms,
    /// The payer's signature of the plan.
    pub signature: Vec<u8>,
}

/// A node's word on a tab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TabAnswer {
    /// Hash of the plan.
    pub plan: [u8; 32],
    /// Tokens that the node has served under it in all, or why it does not serve.
    pub outcome: Result<u64, TabRefusal>,
}

/// Everything that a tab's stages have earned so far, signed: [`ledger::voucher::Voucher`] without what the
/// plan says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoucherNote {
    /// Hash of the plan.
    pub plan: [u8; 32],
    /// The total.
    pub total: u128,
    /// The payer's signature.
    pub signature: Vec<u8>,
}

/// A node has stored a voucher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paid {
    /// Hash of the plan.
    pub plan: [u8; 32],
    /// The voucher's total.
    pub total: u128,
    /// Tokens that the node has served under the plan in all.
    pub served: u64,
}

/// Why a node does not serve under a tab, or does not take a voucher.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum TabRefusal {
    /// The plan does not name the node, or not as it asked.
    #[error("the plan does not pay this node what it asks")]
    Stage,
    /// The terms are not the plan's, or give more credit than the node does, or are for another model.
    #[error("the terms are not those that this node offers")]
    Terms,
    /// The payer did not sign it for this chain and contract.
    #[error("the payer did not sign it for this chain and contract")]
    Signature,
    /// It is over, or will be too soon or too late.
    #[error("the plan expires at {expiry}, which is past, too soon or too far away")]
    Expiry {
        /// In seconds since 1970.
        expiry: u64,
    },
    /// There is no money behind it, or it is being taken back.
    #[error("nothing is locked for the plan, or the lock thaws")]
    Lock,
    /// The node does not reach the chain.
    #[error("this node cannot ask the chain: {0}")]
    Chain(String),
    /// The node has no room for further tabs.
    #[error("this node keeps as many tabs as it can")]
    Full,
    /// The node knows no such tab.
    #[error("this node knows no such plan")]
    Unknown,
    /// The total is lower than one that was signed before.
    #[error("the total falls from {before} to {after}")]
    Regression {
        /// Of the voucher that the node holds.
        before: u128,
        /// Of this one.
        after: u128,
    },
    /// The node cannot store it.
    #[error("this node cannot store it: {0}")]
    Store(String),
}

impl From<Unpaid> for FailedReason {
    fn from(unpaid: Unpaid) -> Self {
        Self::Unpaid(unpaid)
    }
}

impl Tariff {
    pub(super) fn check(&self) -> Result<(), MessageError> {
        ensure(self.price > 0 && self.credit > 0, "a tariff without a price or credit")?;
        ensure(self.account != [0; 20], "a tariff without an account")?;
        ensure(self.binding.len() == 64, "a binding that is no signature")
    }
}

impl TabOffer {
    pub(super) fn check(&self) -> Result<(), MessageError> {
        let stages = self.plan.stages.len();
        ensure((1..=MAX_PAID_STAGES).contains(&stages), "a plan without stages or with too many")?;
        ensure(self.terms.nodes.len() == stages, "a plan with other stages than its terms")?;
        ensure(self.plan.stages.iter().all(|stage| stage.weight > 0), "a stage that is not paid")?;
        ensure(self.plan.price().is_ok(), "prices beyond all bounds")?;
        ensure(self.signature.len() == 65, "a plan without a signature")
    }
}

impl VoucherNote {
    pub(super) fn check(&self) -> Result<(), MessageError> {
        ensure(self.signature.len() == 65, "a voucher without a signature")
    }
}

impl TabAnswer {
    pub(super) fn check(&self) -> Result<(), MessageError> {
        match &self.outcome {
            Err(TabRefusal::Chain(text) | TabRefusal::Store(text)) => {
                let sound = text.len() <= MAX_TEXT_BYTES && !text.chars().any(char::is_control);
                ensure(sound, "a text that is too long or has control characters")
            }
            _ => Ok(()),
        }
    }
}
