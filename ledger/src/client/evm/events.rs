//! What contracts log, as our events.

use ethers_contract::EthLogDecode;
use ethers_core::{
    abi::RawLog,
    types::{H160, Log},
};

use super::{
    audits,
    bindings::{
        model_registry::ModelRegistryEvents as Models, node_registry::NodeRegistryEvents as Nodes,
        pod_governor::PodGovernorEvents as Governor, reward_distributor::RewardDistributorEvents as Rewards,
        session_escrow::SessionEscrowEvents as Escrow, stake_manager::StakeManagerEvents as Stake,
        voucher_collector::VoucherCollectorEvents as Collector,
    },
    convert::{to_bytes, to_pod, to_u64},
    refusals::refusal,
};
use crate::client::{Deployment, Event, Pod, Support};

/// Longest data of a log that is decoded, in bytes. Offsets in it may point to the same bytes again and again,
/// so that what is decoded can be much longer.
pub(super) const LONGEST: usize = 96 << 10;

/// The contracts whose events are read.
pub(super) fn sources(deployment: &Deployment) -> Vec<H160> {
    let Deployment { stake, governor, escrow, collector, nodes, models, rewards, .. } = deployment;
    let Deployment { beacon, auditors, audits, .. } = deployment;
    let all = [stake, governor, escrow, collector, nodes, models, rewards, beacon, auditors, audits];
    all.into_iter().filter(|address| **address != [0; 20]).map(|address| H160(*address)).collect()
}

/// The event of a log; `None` if it is none of ours, or one that says nothing to us.
pub(super) fn decode(deployment: &Deployment, log: &Log) -> Option<Event> {
    if log.data.len() > LONGEST {
        return None;
    }
    let raw = RawLog { topics: log.topics.clone(), data: log.data.to_vec() };
    match log.address.0 {
        source if source == deployment.escrow => escrow(Escrow::decode_log(&raw).ok()?),
        source if source == deployment.collector => collector(Collector::decode_log(&raw).ok()?),
        source if source == deployment.stake => Some(stake(Stake::decode_log(&raw).ok()?)),
        source if source == deployment.nodes => nodes(Nodes::decode_log(&raw).ok()?),
        source if source == deployment.models => models(Models::decode_log(&raw).ok()?),
        source if source == deployment.rewards => rewards(Rewards::decode_log(&raw).ok()?),
        source if source == deployment.governor => governor(Governor::decode_log(&raw).ok()?),
        _ => audits::decode(deployment, log, &raw).map(Event::Audit),
    }
}

fn escrow(event: Escrow) -> Option<Event> {
    Some(match event {
        Escrow::DepositedFilter(e) => {
            Event::Deposited { account: e.account.0, from: e.from.0, amount: Pod(e.amount) }
        }
        Escrow::WithdrawnFilter(e) => {
            Event::Withdrawn { account: e.account.0, to: e.to.0, amount: Pod(e.amount) }
        }
        Escrow::LockedFilter(e) => {
            Event::Locked { payer: e.payer.0, collector: e.collector.0, plan: e.plan, amount: Pod(e.amount) }
        }
        Escrow::ThawStartedFilter(e) => Event::LockThawing {
            payer: e.payer.0,
            collector: e.collector.0,
            plan: e.plan,
            thaws_at: e.thaws_at,
        },
        Escrow::ThawCancelledFilter(e) => {
            Event::ThawCancelled { payer: e.payer.0, collector: e.collector.0, plan: e.plan }
        }
        Escrow::ReleasedFilter(e) => Event::Released {
            payer: e.payer.0,
            collector: e.collector.0,
            plan: e.plan,
            amount: Pod(e.amount),
        },
        Escrow::CollectedFilter(e) => Event::Collected {
            payer: e.payer.0,
            collector: e.collector.0,
            plan: e.plan,
            payments: e.payments.into_iter().map(|paid| (paid.payee.0, Pod(paid.amount))).collect(),
        },
    })
}

fn collector(event: Collector) -> Option<Event> {
    Some(match event {
        Collector::SignerAuthorisedFilter(e) => {
            Event::SignerAuthorised { payer: e.payer.0, signer: e.signer.0 }
        }
        Collector::SignerRevokedFilter(e) => {
            Event::SignerRevoked { payer: e.payer.0, signer: e.signer.0, until: e.until }
        }
        Collector::SkippedFilter(e) => Event::Skipped {
            index: to_u64(e.index),
            session: e.session,
            payer: e.payer.0,
            reason: refusal(&e.reason).text,
        },
        Collector::VoucherCollectedFilter(e) => Event::VoucherCollected {
            plan: e.plan,
            session: e.session,
            payer: e.payer.0,
            total: Pod(e.total),
            paid: Pod(e.paid),
            chunk: e.chunk,
            commitments: e.commitments,
        },
        Collector::Eip712DomainChangedFilter(_) => return None,
    })
}

fn stake(event: Stake) -> Event {
    match event {
        Stake::StakedFilter(e) => Event::Staked { operator: e.operator.0, amount: Pod(e.amount) },
        Stake::UnstakedFilter(e) => {
            Event::Unstaked { operator: e.operator.0, to: e.to.0, amount: Pod(e.amount) }
        }
        Stake::ProvisionedFilter(e) => Event::Provisioned {
            operator: e.operator.0,
            role: e.role,
            owner: e.owner.0,
            amount: Pod(e.amount),
            shares: e.shares,
        },
        Stake::ThawStartedFilter(e) => Event::StakeThawing {
            operator: e.operator.0,
            role: e.role,
            owner: e.owner.0,
            thaw: to_u64(e.id),
            amount: Pod(e.amount),
            releases_at: e.release_at,
        },
        Stake::WithdrawnFilter(e) => {
            Event::StakeWithdrawn { thaw: to_u64(e.id), owner: e.owner.0, amount: Pod(e.amount) }
        }
        Stake::SlashedFilter(e) => Event::Slashed {
            operator: e.operator.0,
            role: e.role,
            reporter: e.reporter.0,
            active: Pod(e.from_active),
            thawing: Pod(e.from_thawing),
            reward: Pod(e.reward),
        },
        Stake::HeldFilter(e) => Event::StakeHeld { operator: e.operator.0, role: e.role, until: e.until },
        Stake::ClaimedFilter(e) => Event::SlashesClaimed { account: e.account.0, amount: to_pod(e.amount) },
    }
}

fn nodes(event: Nodes) -> Option<Event> {
    Some(match event {
        Nodes::NodeRegisteredFilter(e) => Event::NodeRegistered {
            account: e.account.0,
            node: e.node,
            roles: e.roles,
            metadata: e.metadata,
            endpoint: e.endpoint,
            proof: joined(e.proof.r, e.proof.s),
        },
        Nodes::NodeRemovedFilter(e) => Event::NodeRemoved { account: e.account.0, node: e.node },
        Nodes::Eip712DomainChangedFilter(_) => return None,
    })
}

/// The two halves of an ed25519 signature.
pub(super) fn joined(r: [u8; 32], s: [u8; 32]) -> [u8; 64] {
    let mut proof = [0; 64];
    proof[..32].copy_from_slice(&r);
    proof[32..].copy_from_slice(&s);
    proof
}

fn models(event: Models) -> Option<Event> {
    Some(match event {
        Models::ModelRegisteredFilter(e) => {
            Event::ModelRegistered { model: e.model, numerics: e.numerics, layers: e.layers, name: e.name }
        }
        Models::ModelRetiredFilter(e) => Event::ModelRetired { model: e.model },
        Models::AuthorityUpdatedFilter(_) => return None,
    })
}

fn rewards(event: Rewards) -> Option<Event> {
    Some(match event {
        Rewards::RootPostedFilter(e) => {
            Event::RewardsPosted { root: e.root, total: Pod(e.total), active_at: e.active_at }
        }
        Rewards::RootDisabledFilter(e) => Event::RewardsDisabled { root: e.root },
        Rewards::ClaimedFilter(e) => Event::RewardsClaimed {
            account: e.account.0,
            amount: Pod(e.amount),
            cumulative: Pod(e.cumulative),
        },
        Rewards::EmittedFilter(e) => Event::Emitted { amount: Pod(e.amount) },
        Rewards::AuthorityUpdatedFilter(_) => return None,
    })
}

fn governor(event: Governor) -> Option<Event> {
    Some(match event {
        Governor::ProposalCreatedFilter(e) => Event::Proposed {
            proposal: to_bytes(e.proposal_id),
            proposer: e.proposer.0,
            description: e.description,
            vote_start: to_u64(e.vote_start),
            vote_end: to_u64(e.vote_end),
        },
        Governor::ProposalExtendedFilter(e) => {
            Event::VoteExtended { proposal: to_bytes(e.proposal_id), vote_end: e.extended_deadline }
        }
        Governor::VoteCastFilter(e) => Event::Voted {
            proposal: to_bytes(e.proposal_id),
            voter: e.voter.0,
            support: support(e.support)?,
            votes: to_pod(e.weight),
            reason: e.reason,
        },
        Governor::VoteCastWithParamsFilter(e) => Event::Voted {
            proposal: to_bytes(e.proposal_id),
            voter: e.voter.0,
            support: support(e.support)?,
            votes: to_pod(e.weight),
            reason: e.reason,
        },
        Governor::ProposalQueuedFilter(e) => {
            Event::Queued { proposal: to_bytes(e.proposal_id), executable_at: to_u64(e.eta_seconds) }
        }
        Governor::ProposalExecutedFilter(e) => Event::Executed { proposal: to_bytes(e.proposal_id) },
        Governor::ProposalCanceledFilter(e) => Event::Cancelled { proposal: to_bytes(e.proposal_id) },
        _ => return None,
    })
}

fn support(number: u8) -> Option<Support> {
    [Support::Against, Support::For, Support::Abstain].get(usize::from(number)).copied()
}
