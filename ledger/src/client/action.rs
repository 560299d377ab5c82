//! What an account can do, and what it costs.

use super::{amount::Pod, audit::AuditAction, event::Event, key::recover};
use crate::{
    eip712::{Address, Domain},
    model::Model,
    plan::Plan,
    voucher::Voucher,
};
use thiserror::Error;

/// Stake role of nodes that serve shards.
pub const NODE_ROLE: u32 = 1;
/// Stake role of auditors.
pub const AUDITOR_ROLE: u32 = 2;

/// Something an account does on the chain. One action is one transaction, but where the token must first be
/// told that a contract may take it: then an approval of exactly that amount goes ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sends native tokens, which pay for gas.
    SendNative {
        /// Who gets them.
        to: Address,
        /// How many, in the native token's wei.
        wei: u128,
    },
    /// Sends POD.
    Transfer {
        /// Who gets it.
        to: Address,
        /// How much.
        amount: Pod,
    },
    /// Lets somebody, or the account itself, vote with the POD that the account holds.
    DelegateVotes {
        /// Who votes.
        to: Address,
    },

    /// Puts POD into the escrow.
    Deposit {
        /// Whose balance there grows.
        to: Address,
        /// How much.
        amount: Pod,
    },
    /// Takes POD out of the account's free balance in the escrow.
    Withdraw {
        /// Who gets it.
        to: Address,
        /// How much.
        amount: Pod,
    },
    /// Locks some of the free balance for a plan, or adds to what is locked.
    Lock {
        /// [`Plan::hash`].
        plan: [u8; 32],
        /// How much.
        amount: Pod,
    },
    /// Begins to take a lock back.
    Thaw {
        /// The lock's plan.
        plan: [u8; 32],
    },
    /// Lets a thawing lock hold again.
    CancelThaw {
        /// The lock's plan.
        plan: [u8; 32],
    },
    /// Frees what a thawed lock has left.
    Release {
        /// The lock's plan.
        plan: [u8; 32],
    },

    /// Has the stages of a plan paid. Refused if the voucher is no good or adds nothing.
    Collect(Box<SignedVoucher>),
    /// Has many plans' stages paid. Vouchers that are no good are left out; [`Event::Skipped`] in the receipt
    /// names them.
    CollectBatch(Vec<SignedVoucher>),
    /// Lets a key sign vouchers for the account.
    AuthoriseSigner(Address),
    /// Ends that, after the settlement window.
    RevokeSigner(Address),

    /// Enters a model. For the curator.
    RegisterModel {
        /// Its contents.
        model: Model,
        /// What people call it.
        name: String,
    },
    /// Enters a node of the account's, or changes its entry.
    RegisterNode(Box<NodeEntry>),
    /// Takes a node of the account's out.
    RemoveNode {
        /// Its ed25519 key.
        node: [u8; 32],
    },

    /// Stakes POD, behind no role yet.
    Stake {
        /// How much.
        amount: Pod,
    },
    /// Takes idle stake back, at once.
    Unstake {
        /// Who gets it.
        to: Address,
        /// How much.
        amount: Pod,
    },
    /// Puts idle stake behind a role of the account's.
    Provision {
        /// The role.
        role: u32,
        /// How much.
        amount: Pod,
    },
    /// Puts POD behind somebody's role.
    Delegate {
        /// The operator.
        operator: Address,
        /// The operator's role.
        role: u32,
        /// How much.
        amount: Pod,
        /// Fewest shares to accept for it; a pool's shares are worth at most a token each.
        min_shares: u128,
    },
    /// Begins to take shares out of a role.
    ThawStake {
        /// Whose role: the account itself, or whom it delegated to.
        operator: Address,
        /// The role.
        role: u32,
        /// How many shares; see [`Position::shares_for`](super::Position::shares_for).
        shares: u128,
    },
    /// Takes thawed stake out, less what was slashed in between.
    WithdrawStake {
        /// [`StakeThaw::id`](super::StakeThaw::id).
        thaw: u64,
    },
    /// Fetches what the account has from slashes.
    ClaimSlashes,

    /// Has an account paid the rewards that it was not paid yet.
    ClaimRewards {
        /// The account.
        account: Address,
        /// All it has earned, as in the root that counts.
        cumulative: Pod,
        /// From its leaf to the root.
        proof: Vec<[u8; 32]>,
    },
    /// Posts a root of rewards. For the poster.
    PostRewards {
        /// Of the tree over all accounts' leaves.
        root: [u8; 32],
        /// Sum of what they say.
        total: Pod,
    },
    /// Stops a root of rewards. For the guardian.
    DisableRewards {
        /// The root.
        root: [u8; 32],
    },
    /// Emits what the emission allows by now.
    Emit,

    /// Does something for audits.
    Audit(Box<AuditAction>),

    /// Puts motions to the vote, to be carried out together.
    Propose {
        /// What the timelock is to do.
        motions: Vec<Motion>,
        /// Why; part of the proposal's id.
        description: String,
    },
    /// Votes.
    Vote {
        /// The proposal's id.
        proposal: [u8; 32],
        /// How.
        support: Support,
        /// Why, if not empty.
        reason: String,
    },
    /// Hands a proposal that passed to the timelock.
    Queue {
        /// The proposal's id.
        proposal: [u8; 32],
    },
    /// Carries a queued proposal out once the timelock's delay is over. Anybody may.
    Execute {
        /// The proposal's id.
        proposal: [u8; 32],
    },
}

/// What a vote says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// No.
    Against,
    /// Yes.
    For,
    /// Neither, but counted for the quorum.
    Abstain,
}

/// Something that a vote can decide. The timelock does it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Motion {
    /// Sends POD of the treasury.
    Transfer {
        /// Who gets it.
        to: Address,
        /// How much.
        amount: Pod,
    },
    /// Gives somebody a role in the access manager.
    GrantRole {
        /// Id of the role.
        role: u64,
        /// Who gets it.
        account: Address,
    },
    /// Takes a role from somebody.
    RevokeRole {
        /// Id of the role.
        role: u64,
        /// Who loses it.
        account: Address,
    },
    /// Enters a model.
    RegisterModel {
        /// Its contents.
        model: Model,
        /// What people call it.
        name: String,
    },
    /// Asks for no new plans with a model.
    RetireModel {
        /// [`Model::hash`].
        model: [u8; 32],
    },
    /// Any other call.
    Call(Call),
}

/// A call of a contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The contract.
    pub target: Address,
    /// Native tokens to send along, in their wei.
    pub value_wei: u128,
    /// Selector and arguments, ABI-encoded.
    pub data: Vec<u8>,
}

/// A voucher, with all it takes to collect it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedVoucher {
    /// The plan that divides it.
    pub plan: Plan,
    /// What was signed.
    pub voucher: Voucher,
    /// The payer, or a signer that it authorised.
    pub signer: Address,
    /// Over the voucher's digest: 65 bytes of a key, or whatever the signer's contract takes (ERC-1271).
    pub signature: Vec<u8>,
}

/// Why a signed voucher is no good, whatever the chain says.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadVoucher {
    /// The voucher is for another plan than the one beside it.
    #[error("the voucher is for another plan")]
    OtherPlan,
    /// The key that is named did not sign it.
    #[error("the voucher is not signed by whom it names")]
    BadSignature,
}

impl SignedVoucher {
    /// Checks what can be checked without the chain, for signers that are keys. Whether the signer speaks for
    /// the payer, [`Ledger::is_signer`](super::Ledger::is_signer) says.
    pub fn check(&self, collector: &Domain) -> Result<(), BadVoucher> {
        if (self.voucher.session, self.voucher.plan) != (self.plan.session, self.plan.hash()) {
            return Err(BadVoucher::OtherPlan);
        }
        let signature = self.signature.as_slice().try_into().map_err(|_| BadVoucher::BadSignature)?;
        match recover(&self.voucher.digest(collector), &signature) {
            Some(signer) if signer == self.signer => Ok(()),
            _ => Err(BadVoucher::BadSignature),
        }
    }
}

/// What an account says of a node of its.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    /// The node's ed25519 key.
    pub node: [u8; 32],
    /// Bit set of the roles that it offers.
    pub roles: u32,
    /// Hash of a description that is kept elsewhere.
    pub metadata: [u8; 32],
    /// Where it is reached, at most 256 bytes.
    pub endpoint: String,
    /// The node's ed25519 signature of [`binding_digest`](crate::node::binding_digest). The chain does not
    /// check it: whoever reads an entry does.
    pub proof: [u8; 64],
}

/// What came of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Hash of the (last) transaction.
    pub transaction: [u8; 32],
    /// The block that it is in.
    pub block: u64,
    /// Gas of all transactions of the action.
    pub gas: u64,
    /// What they cost in all, in the native token's wei.
    pub fee_wei: u128,
    /// The part of it that a layer 2 charged for data on layer 1.
    pub l1_fee_wei: u128,
    /// What the last transaction did, in order.
    pub events: Vec<Event>,
}

impl Receipt {
    /// The vouchers of a batch that were left out: their places in it, and why.
    pub fn skipped(&self) -> impl Iterator<Item = (usize, &str)> {
        self.events.iter().filter_map(|event| match event {
            Event::Skipped { index, reason, .. } => Some((*index as usize, reason.as_str())),
            _ => None,
        })
    }

    /// What a collection paid in all.
    pub fn paid(&self) -> Pod {
        let paid = self.events.iter().filter_map(|event| match event {
            Event::VoucherCollected { paid, .. } => Some(*paid),
            _ => None,
        });
        paid.sum()
    }
}

/// What an action would cost now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// How many transactions it takes.
    pub transactions: u32,
    /// Gas of all of them.
    pub gas: u64,
    /// What they would cost at the fees of the moment, `l1_fee_wei` included; in the native token's wei.
    pub fee_wei: u128,
    /// What they can cost at most before a fee is raised.
    pub most_wei: u128,
    /// The part that a layer 2 charges for data on layer 1; zero elsewhere.
    pub l1_fee_wei: u128,
}
