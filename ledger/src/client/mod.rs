//! The chain, as the rest of the product sees it: [`Ledger`] is the one seam.
//!
//! [`Client`] implements it over JSON-RPC, for any EVM chain that has the contracts; nothing outside of `evm/`
//! knows how. A client without a key reads. With one it also acts: a [`sender`](Client) task owns the account's
//! nonces, and sees everything through that has one, whatever happens to fees, connections and blocks.
//!
//! ```no_run
//! use ledger::client::{Action, Client, Config, Key, Ledger};
//!
//! # async fn example(deployment: ledger::client::Deployment, key: Key) -> Result<(), ledger::client::Error> {
//! let client = Client::connect(Config::new("http://127.0.0.1:8545"), deployment, Some(key)).await?;
//! let me = client.account().expect("there is a key");
//! let amount = "12.5".parse().expect("an amount");
//! let receipt = client.submit(Action::Deposit { to: me, amount }).await?;
//! println!("{} wei for gas, {} POD in the escrow", receipt.fee_wei, client.balances(me).await?.escrow);
//! # Ok(())
//! # }
//! ```

mod action;
mod amount;
mod audit;
mod deployment;
mod dispute;
mod error;
mod event;
mod evm;
mod key;
mod keystore;
mod state;

use async_trait::async_trait;

pub use self::{
    action::{
        AUDITOR_ROLE, Action, BadVoucher, Call, Estimate, Motion, NODE_ROLE, NodeEntry, Receipt,
        SignedVoucher, Support,
    },
    amount::{AddressError, AmountError, Pod, parse_address, show_address},
    audit::{
        AnswerStep, AuditAction, AuditEvent, AuditLeaf, AuditRound, AuditTerms, Case, CaseAnswer, CaseStage,
        CaseVerdict,
    },
    deployment::{AuditParameters, BeaconParameters, Deployment, Parameters},
    dispute::{Dispute, DisputeEvent, DisputeTurn, Party},
    error::{Error, Refusal},
    event::{Cursor, Event, EventId, Logged, News},
    evm::{Client, Config, Node, Rpc, RpcFault, dispute_call, dispute_id},
    key::{BadKey, Key, recover},
    keystore::{KeystoreError, Passphrase, Work, read_address, read_key, write_key},
    state::{Balances, Head, Lock, Position, Proposal, ProposalState, Rewards, Stake, StakeThaw},
};
use crate::{audit::LeafId, eip712::Address};

/// What the product asks of a chain. Reading goes by the newest block; a read that fails for reasons that pass
/// is tried again for a while before it gives [`Error::Unreachable`].
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Where everything is.
    fn deployment(&self) -> &Deployment;

    /// The account that acts, if there is a key.
    fn account(&self) -> Option<Address>;

    /// Does something, and waits until it is confirmed. Actions of one account happen in the order in which they
    /// are submitted.
    ///
    /// [`Error::Refused`] and [`Error::Funds`] mean that nothing was sent. An action that was sent is seen
    /// through even if nobody waits for this any more.
    async fn submit(&self, action: Action) -> Result<Receipt, Error>;

    /// What an action would cost now. [`Error::Refused`] if it would be.
    async fn estimate(&self, action: &Action) -> Result<Estimate, Error>;

    /// The newest block.
    async fn head(&self) -> Result<Head, Error>;

    /// What an account has.
    async fn balances(&self, account: Address) -> Result<Balances, Error>;

    /// A payer's lock for a plan, with this deployment's collector.
    async fn lock(&self, payer: Address, plan: [u8; 32]) -> Result<Lock, Error>;

    /// Whether a signer's vouchers are taken for a payer's now.
    async fn is_signer(&self, payer: Address, signer: Address) -> Result<bool, Error>;

    /// What an account says of a node; `None` if it is not entered.
    async fn node(&self, account: Address, node: [u8; 32]) -> Result<Option<NodeEntry>, Error>;

    /// Whether a model is known and not retired.
    async fn is_active_model(&self, model: [u8; 32]) -> Result<bool, Error>;

    /// What stands behind an operator's role, and an owner's part of it: the operator itself or a delegator.
    async fn stake(&self, operator: Address, role: u32, owner: Address) -> Result<Stake, Error>;

    /// An owner's stake on its way out.
    async fn thaws(&self, owner: Address) -> Result<Vec<StakeThaw>, Error>;

    /// What an account can claim of the rewards.
    async fn rewards(&self, account: Address) -> Result<Rewards, Error>;

    /// What audits go by here.
    async fn audit_terms(&self) -> Result<AuditTerms, Error>;

    /// The network whose rounds draw.
    async fn beacon(&self) -> Result<BeaconParameters, Error>;

    /// Who can be asked to audit now.
    async fn auditors(&self) -> Result<Vec<Address>, Error>;

    /// The round of the beacon that draws of an epoch's leaves.
    async fn audit_round(&self, epoch: u32) -> Result<AuditRound, Error>;

    /// The case of a leaf that was posted. [`Error::Refused`] if it was not.
    async fn audit_leaf(&self, leaf: LeafId) -> Result<AuditLeaf, Error>;

    /// A case; `None` if it was not begun.
    async fn audit_case(&self, case: [u8; 32]) -> Result<Option<Case>, Error>;

    /// What an account has from disputes, to be claimed.
    async fn audit_claimable(&self, account: Address) -> Result<Pod, Error>;

    /// How the dispute over a case stands; `None` if there is none, or none any more.
    async fn dispute(&self, case: [u8; 32]) -> Result<Option<Dispute>, Error>;

    /// What was shown and chosen in the dispute over a case, in order, and how it ended. Looks back to where it
    /// was opened.
    async fn dispute_events(&self, case: [u8; 32]) -> Result<Vec<DisputeEvent>, Error>;

    /// All proposals, oldest first.
    async fn proposals(&self) -> Result<Vec<Proposal>, Error>;

    /// The confirmed events after a cursor: none twice, none left out, also across reorganisations, as long as
    /// each look begins with the cursor that the one before gave. One look reads a bounded range.
    async fn events(&self, after: &Cursor) -> Result<News, Error>;
}
