//! Actions, as calls of contracts.

use ethers_core::{
    abi::AbiEncode,
    types::{H160, U256},
};
use serde::{Deserialize, Serialize};

use super::{
    audits,
    bindings::{
        access_manager as manager, model_registry as models, node_registry as nodes,
        pod_governor as governor, pod_token as token, reward_distributor as rewards,
        session_escrow as escrow, stake_manager as stake, voucher_collector as collector,
    },
    convert::to_h160,
};
use crate::{
    client::{Action, Call, Deployment, Error, Motion, NodeEntry, Pod, SignedVoucher, Support},
    eip712::Address,
    model::Model,
};

/// A transaction's contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    /// Whom it calls; nobody if it creates a contract.
    pub(super) to: Option<H160>,
    /// Native tokens to send along.
    pub(super) value_wei: u128,
    /// Selector and arguments, or creation code.
    #[serde(with = "hex::serde")]
    pub(super) data: Vec<u8>,
}

/// What an action takes.
pub(super) struct Plan {
    /// Who takes how much POD of the account's, if anybody does.
    pub(super) spends: Option<(Address, Pod)>,
    /// The action itself.
    pub(super) order: Order,
}

impl Order {
    pub(super) fn call(to: &Address, call: impl AbiEncode) -> Self {
        Self { to: Some(to_h160(to)), value_wei: 0, data: call.encode() }
    }
}

/// Lets a contract take POD of the account's.
pub(super) fn approval(d: &Deployment, spender: &Address, amount: Pod) -> Order {
    Order::call(&d.token, token::ApproveCall { spender: to_h160(spender), value: amount.0.into() })
}

/// The call that an action is. Votes on proposals need more than an id to be queued and executed: those are
/// made of the proposal's calls by [`of_proposal`].
pub(super) fn plan(d: &Deployment, action: &Action) -> Result<Plan, Error> {
    let spends = match action {
        Action::Deposit { amount, .. } => Some((d.escrow, *amount)),
        Action::Stake { amount } | Action::Delegate { amount, .. } => Some((d.stake, *amount)),
        _ => None,
    };
    let order = match action {
        Action::SendNative { to, wei } => Order { to: Some(to_h160(to)), value_wei: *wei, data: Vec::new() },
        Action::Transfer { to, amount } => {
            Order::call(&d.token, token::TransferCall { to: to_h160(to), value: amount.0.into() })
        }
        Action::DelegateVotes { to } => Order::call(&d.token, token::DelegateCall { delegatee: to_h160(to) }),
        Action::Deposit { .. }
        | Action::Withdraw { .. }
        | Action::Lock { .. }
        | Action::Thaw { .. }
        | Action::CancelThaw { .. }
        | Action::Release { .. } => of_escrow(d, action)?,
        Action::Collect(_)
        | Action::CollectBatch(_)
        | Action::AuthoriseSigner(_)
        | Action::RevokeSigner(_) => of_collector(d, action)?,
        Action::RegisterModel { model, name } => Order::call(&d.models, register_model(model, name)),
        Action::RegisterNode(entry) => register(d, entry),
        Action::RemoveNode { node } => Order::call(&d.nodes, nodes::RemoveCall { node: *node }),
        Action::Stake { .. }
        | Action::Unstake { .. }
        | Action::Provision { .. }
        | Action::Delegate { .. }
        | Action::ThawStake { .. }
        | Action::WithdrawStake { .. }
        | Action::ClaimSlashes => of_stake(d, action)?,
        Action::ClaimRewards { .. }
        | Action::PostRewards { .. }
        | Action::DisableRewards { .. }
        | Action::Emit => of_rewards(d, action)?,
        Action::Propose { motions, description } => propose(d, motions, description)?,
        Action::Vote { proposal, support, reason } => vote(d, proposal, *support, reason),
        Action::Audit(action) => return audits::plan(d, action),
        Action::Queue { .. } | Action::Execute { .. } => return Err(Error::NoProposal),
    };
    Ok(Plan { spends, order })
}

/// An action handed to the wrong contract's part is our own mistake.
const OTHER: Error = Error::Invalid("the action is another contract's");

fn of_escrow(d: &Deployment, action: &Action) -> Result<Order, Error> {
    let collector = to_h160(&d.collector);
    Ok(match action {
        Action::Deposit { to, amount } => {
            Order::call(&d.escrow, escrow::DepositCall { account: to_h160(to), amount: amount.0 })
        }
        Action::Withdraw { to, amount } => {
            Order::call(&d.escrow, escrow::WithdrawCall { to: to_h160(to), amount: amount.0 })
        }
        Action::Lock { plan, amount } => {
            Order::call(&d.escrow, escrow::LockCall { collector, plan: *plan, amount: amount.0 })
        }
        Action::Thaw { plan } => Order::call(&d.escrow, escrow::ThawCall { collector, plan: *plan }),
        Action::CancelThaw { plan } => {
            Order::call(&d.escrow, escrow::CancelThawCall { collector, plan: *plan })
        }
        Action::Release { plan } => Order::call(&d.escrow, escrow::ReleaseCall { collector, plan: *plan }),
        _ => return Err(OTHER),
    })
}

fn of_collector(d: &Deployment, action: &Action) -> Result<Order, Error> {
    Ok(match action {
        Action::Collect(voucher) => Order::call(&d.collector, collector::CollectCall { item: item(voucher) }),
        Action::CollectBatch(vouchers) => {
            let items = vouchers.iter().map(item).collect();
            Order::call(&d.collector, collector::CollectBatchCall { items })
        }
        Action::AuthoriseSigner(signer) => {
            Order::call(&d.collector, collector::AuthoriseSignerCall { signer: to_h160(signer) })
        }
        Action::RevokeSigner(signer) => {
            Order::call(&d.collector, collector::RevokeSignerCall { signer: to_h160(signer) })
        }
        _ => return Err(OTHER),
    })
}

fn item(signed: &SignedVoucher) -> collector::Item {
    let SignedVoucher { plan, voucher, signer, signature } = signed;
    let stages = plan.stages.iter();
    collector::Item {
        plan: collector::Plan {
            session: plan.session,
            payer: to_h160(&plan.payer),
            terms: plan.terms,
            expiry: plan.expiry,
            stages: stages
                .map(|stage| collector::Stage { payee: to_h160(&stage.payee), weight: stage.weight })
                .collect(),
        },
        total: voucher.total,
        chunk: voucher.chunk,
        commitments: voucher.commitments,
        signer: to_h160(signer),
        signature: signature.clone().into(),
    }
}

fn register(d: &Deployment, entry: &NodeEntry) -> Order {
    let (r, s) = entry.proof.split_at(32);
    let half = |bytes: &[u8]| *bytes.first_chunk::<32>().expect("64 bytes are twice 32");
    let call = nodes::RegisterCall {
        node: entry.node,
        roles: entry.roles,
        metadata: entry.metadata,
        endpoint: entry.endpoint.clone(),
        proof: nodes::Proof { r: half(r), s: half(s) },
    };
    Order::call(&d.nodes, call)
}

fn of_stake(d: &Deployment, action: &Action) -> Result<Order, Error> {
    let at = &d.stake;
    Ok(match action {
        Action::Stake { amount } => Order::call(at, stake::StakeCall { amount: amount.0 }),
        Action::Unstake { to, amount } => {
            Order::call(at, stake::UnstakeCall { to: to_h160(to), amount: amount.0 })
        }
        Action::Provision { role, amount } => {
            Order::call(at, stake::ProvisionCall { role: *role, amount: amount.0 })
        }
        Action::Delegate { operator, role, amount, min_shares } => {
            let operator = to_h160(operator);
            let call =
                stake::DelegateCall { operator, role: *role, amount: amount.0, min_shares: *min_shares };
            Order::call(at, call)
        }
        Action::ThawStake { operator, role, shares } => {
            let operator = to_h160(operator);
            Order::call(at, stake::ThawCall { operator, role: *role, shares: *shares })
        }
        Action::WithdrawStake { thaw } => Order::call(at, stake::WithdrawCall { id: (*thaw).into() }),
        Action::ClaimSlashes => Order::call(at, stake::ClaimCall),
        _ => return Err(OTHER),
    })
}

fn of_rewards(d: &Deployment, action: &Action) -> Result<Order, Error> {
    let at = &d.rewards;
    Ok(match action {
        Action::ClaimRewards { account, cumulative, proof } => {
            let call = rewards::ClaimCall {
                account: to_h160(account),
                cumulative: cumulative.0,
                proof: proof.clone(),
            };
            Order::call(at, call)
        }
        Action::PostRewards { root, total } => {
            Order::call(at, rewards::PostCall { root: *root, total: total.0 })
        }
        Action::DisableRewards { root } => Order::call(at, rewards::DisableCall { root: *root }),
        Action::Emit => Order::call(at, rewards::ReleaseCall),
        _ => return Err(OTHER),
    })
}

fn propose(d: &Deployment, motions: &[Motion], description: &str) -> Result<Order, Error> {
    if motions.is_empty() {
        return Err(Error::Invalid("a proposal needs something to be done"));
    }
    let calls: Vec<Call> = motions.iter().map(|motion| call_of(d, motion)).collect();
    let (targets, values, calldatas) = columns(&calls);
    let call = governor::ProposeCall { targets, values, calldatas, description: description.to_owned() };
    Ok(Order::call(&d.governor, call))
}

fn vote(d: &Deployment, proposal: &[u8; 32], support: Support, reason: &str) -> Order {
    let support = match support {
        Support::Against => 0,
        Support::For => 1,
        Support::Abstain => 2,
    };
    let proposal_id = U256::from_big_endian(proposal);
    if reason.is_empty() {
        return Order::call(&d.governor, governor::CastVoteCall { proposal_id, support });
    }
    let reason = reason.to_owned();
    Order::call(&d.governor, governor::CastVoteWithReasonCall { proposal_id, support, reason })
}

/// What is done with a proposal that is known by its calls and the hash of its description.
pub(super) fn of_proposal(d: &Deployment, calls: &[Call], description: &str, execute: bool) -> Order {
    let (targets, values, calldatas) = columns(calls);
    let description_hash = crate::eip712::keccak(description.as_bytes());
    if execute {
        let call = governor::ExecuteCall { targets, values, calldatas, description_hash };
        return Order::call(&d.governor, call);
    }
    Order::call(&d.governor, governor::QueueCall { targets, values, calldatas, description_hash })
}

type Columns = (Vec<H160>, Vec<U256>, Vec<ethers_core::types::Bytes>);

fn columns(calls: &[Call]) -> Columns {
    let targets = calls.iter().map(|call| to_h160(&call.target)).collect();
    let values = calls.iter().map(|call| call.value_wei.into()).collect();
    (targets, values, calls.iter().map(|call| call.data.clone().into()).collect())
}

fn register_model(model: &Model, name: &str) -> models::RegisterCall {
    let contents = models::Model {
        numerics: model.numerics,
        tokenizer: model.tokenizer,
        rope: model.rope,
        layers: model.layers.clone(),
    };
    models::RegisterCall { model: contents, name: name.to_owned() }
}

/// What the timelock does for a motion.
fn call_of(d: &Deployment, motion: &Motion) -> Call {
    let call = |target: &Address, data: Vec<u8>| Call { target: *target, value_wei: 0, data };
    match motion {
        Motion::Transfer { to, amount } => {
            let transfer = token::TransferCall { to: to_h160(to), value: amount.0.into() };
            call(&d.token, transfer.encode())
        }
        Motion::GrantRole { role, account } => {
            let account = to_h160(account);
            let grant = manager::GrantRoleCall { role_id: *role, account, execution_delay: 0 };
            call(&d.manager, grant.encode())
        }
        Motion::RevokeRole { role, account } => {
            let revoke = manager::RevokeRoleCall { role_id: *role, account: to_h160(account) };
            call(&d.manager, revoke.encode())
        }
        Motion::RegisterModel { model, name } => call(&d.models, register_model(model, name).encode()),
        Motion::RetireModel { model } => call(&d.models, models::RetireCall { model: *model }.encode()),
        Motion::Call(call) => call.clone(),
    }
}
