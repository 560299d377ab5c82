//! What contracts are asked.

use std::sync::Arc;

use ethers_contract::{EthCall, EthEvent};
use ethers_core::{
    abi::{AbiDecode, AbiEncode, RawLog},
    types::{Block, Filter, H160, H256, Log, U64, U256},
};
use futures::future::try_join_all;
use serde_json::json;

use super::{
    bindings::{
        model_registry as models, node_registry as nodes, pod_governor as governor, pod_token as token,
        reward_distributor as rewards, session_escrow as escrow, stake_manager as stake,
        voucher_collector as collector,
    },
    convert::{to_bytes, to_h160, to_pod, to_u64, to_u128},
    events::joined,
    refusals::call_fault,
    rpc::{RpcFault, Wire},
};
use crate::{
    client::{
        Balances, Call, Deployment, Error, Head, Lock, NodeEntry, Pod, Position, Proposal, ProposalState,
        Rewards, Stake, StakeThaw,
    },
    eip712::Address,
};

/// Longest answer of a contract that is decoded, in bytes.
const LONGEST: usize = 96 << 10;

/// Asks the contracts of one deployment.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    pub(super) wire: Wire,
    pub(super) deployment: Arc<Deployment>,
    /// Most blocks whose logs are asked for at once.
    pub(super) log_range: u64,
}

impl Reader {
    /// What a contract answers to a call.
    pub(super) async fn call<C: EthCall + AbiEncode, R: AbiDecode>(
        &self,
        to: &Address,
        call: C,
    ) -> Result<R, Error> {
        let data = ethers_core::types::Bytes::from(call.encode());
        let params = json!([{ "to": to_h160(to), "data": data }, "latest"]);
        let answer: ethers_core::types::Bytes =
            self.wire.ask("eth_call", params).await.map_err(call_fault)?;
        let bad = |why: &str| Error::BadAnswer(format!("{} of a contract: {why}", C::function_name()));
        if answer.is_empty() {
            return Err(bad("there is no such contract"));
        }
        if answer.len() > LONGEST {
            return Err(bad("too long"));
        }
        R::decode(&answer).map_err(|error| bad(&error.to_string()))
    }

    pub(super) async fn head(&self) -> Result<Head, Error> {
        let block: Block<H256> = self.wire.ask("eth_getBlockByNumber", json!(["latest", false])).await?;
        let number = block.number.ok_or_else(|| Error::BadAnswer("a block without number".to_owned()))?;
        Ok(Head { block: number.as_u64(), time: to_u64(block.timestamp) })
    }

    pub(super) async fn native_wei(&self, account: Address) -> Result<u128, Error> {
        let balance: U256 = self.wire.ask("eth_getBalance", json!([to_h160(&account), "latest"])).await?;
        Ok(to_u128(balance))
    }

    pub(super) async fn allowance(&self, owner: Address, spender: Address) -> Result<Pod, Error> {
        let call = token::AllowanceCall { owner: to_h160(&owner), spender: to_h160(&spender) };
        self.call(&self.deployment.token, call).await.map(to_pod)
    }

    pub(super) async fn balances(&self, account: Address) -> Result<Balances, Error> {
        let (d, who) = (&*self.deployment, to_h160(&account));
        let (native_wei, pod, (escrow, earned), held, staked): (_, U256, (u128, u128), U256, U256) = tokio::try_join!(
            self.native_wei(account),
            self.call(&d.token, token::BalanceOfCall { account: who }),
            self.call(&d.escrow, escrow::AccountsCall { account: who }),
            self.call(&d.token, token::GetVotesCall { account: who }),
            self.call(&d.stake, stake::GetVotesCall { operator: who }),
        )?;
        let votes = to_u128(held).saturating_add(to_u128(staked));
        let (pod, escrow, earned) = (to_pod(pod), Pod(escrow), Pod(earned));
        Ok(Balances { native_wei, pod, escrow, earned, votes: Pod(votes) })
    }

    pub(super) async fn lock(&self, payer: Address, plan: [u8; 32]) -> Result<Lock, Error> {
        let (payer, collector) = (to_h160(&payer), to_h160(&self.deployment.collector));
        let call = escrow::LockOfCall { payer, collector, plan };
        let escrow::LockOfReturn(lock) = self.call(&self.deployment.escrow, call).await?;
        Ok(Lock {
            remaining: Pod(lock.remaining),
            collected: Pod(lock.collected),
            thaws_at: Some(lock.thaws_at).filter(|&at| at != 0),
        })
    }

    pub(super) async fn is_signer(&self, payer: Address, signer: Address) -> Result<bool, Error> {
        let call = collector::IsSignerCall { payer: to_h160(&payer), signer: to_h160(&signer) };
        self.call(&self.deployment.collector, call).await
    }

    pub(super) async fn is_active_model(&self, model: [u8; 32]) -> Result<bool, Error> {
        self.call(&self.deployment.models, models::IsActiveCall { model }).await
    }

    pub(super) async fn node(&self, account: Address, node: [u8; 32]) -> Result<Option<NodeEntry>, Error> {
        let call = nodes::NodeOfCall { account: to_h160(&account), node };
        let nodes::NodeOfReturn(entry) = self.call(&self.deployment.nodes, call).await?;
        Ok((entry.updated_at != 0).then(|| NodeEntry {
            node,
            roles: entry.roles,
            metadata: entry.metadata,
            endpoint: entry.endpoint,
            proof: joined(entry.proof.r, entry.proof.s),
        }))
    }

    pub(super) async fn stake(&self, operator: Address, role: u32, owner: Address) -> Result<Stake, Error> {
        let (at, operator, owner) = (&self.deployment.stake, to_h160(&operator), to_h160(&owner));
        let (idle, pool, position, claimable): (u128, stake::PoolOfReturn, (u128, u128), U256) = tokio::try_join!(
            self.call(at, stake::IdleCall { operator }),
            self.call(at, stake::PoolOfCall { operator, role }),
            self.call(at, stake::PositionOfCall { operator, role, owner }),
            self.call(at, stake::ClaimableCall { account: owner }),
        )?;
        Ok(Stake {
            idle: Pod(idle),
            active: Pod(pool.0.active.tokens),
            thawing: Pod(pool.0.thawing.tokens),
            held_until: pool.0.held_until,
            position: Position { shares: position.0, amount: Pod(position.1) },
            claimable: to_pod(claimable),
        })
    }

    /// An owner's thaws: those that the events name and the contract still has.
    pub(super) async fn thaws(&self, owner: Address) -> Result<Vec<StakeThaw>, Error> {
        let topics = Filter::new()
            .address(to_h160(&self.deployment.stake))
            .topic0(stake::ThawStartedFilter::signature())
            .topic3(H256::from(to_h160(&owner)));
        let begun = self.logs(topics).await?;
        let begun = begun.into_iter().filter_map(decoded::<stake::ThawStartedFilter>);
        let thaws = try_join_all(begun.map(|begun| self.thaw(begun.id, to_h160(&owner)))).await?;
        Ok(thaws.into_iter().flatten().collect())
    }

    async fn thaw(&self, id: U256, of: H160) -> Result<Option<StakeThaw>, Error> {
        let at = &self.deployment.stake;
        let entry: (H160, u64, u32, H160, u32, u128) = self.call(at, stake::ThawsCall { id }).await?;
        let (owner, releases_at, era, operator, role, shares) = entry;
        if owner != of {
            return Ok(None);
        }
        let stake::PoolOfReturn(pool) = self.call(at, stake::PoolOfCall { operator, role }).await?;
        // Shares of an era that was slashed to nothing are worth nothing.
        let amount = if era == pool.thawing_era && pool.thawing.shares != 0 {
            let worth =
                U256::from(shares) * U256::from(pool.thawing.tokens) / U256::from(pool.thawing.shares);
            to_u128(worth)
        } else {
            0
        };
        let releases_at = releases_at.max(pool.held_until);
        Ok(Some(StakeThaw { id: to_u64(id), operator: operator.0, role, amount: Pod(amount), releases_at }))
    }

    pub(super) async fn rewards(&self, account: Address) -> Result<Rewards, Error> {
        let (at, account) = (&self.deployment.rewards, to_h160(&account));
        let (claimed, rewards::CurrentReturn(root), emittable): (u128, _, u128) = tokio::try_join!(
            self.call(at, rewards::ClaimedCall { account }),
            self.call(at, rewards::CurrentCall),
            self.call(at, rewards::EmittableCall),
        )?;
        let root = Some(root.root).filter(|root| *root != [0; 32]);
        Ok(Rewards { claimed: Pod(claimed), root, emittable: Pod(emittable) })
    }

    pub(super) async fn proposals(&self) -> Result<Vec<Proposal>, Error> {
        let mut proposals = Vec::new();
        for made in self.proposals_made().await? {
            proposals.push(self.proposal(made).await?);
        }
        Ok(proposals)
    }

    /// The calls of a proposal, and its description.
    pub(super) async fn contents(&self, proposal: &[u8; 32]) -> Result<(Vec<Call>, String), Error> {
        let made = self.proposals_made().await?;
        let made = made.into_iter().find(|made| to_bytes(made.proposal_id) == *proposal);
        made.map(contents).ok_or(Error::NoProposal)
    }

    async fn proposals_made(&self) -> Result<Vec<governor::ProposalCreatedFilter>, Error> {
        let topics = Filter::new()
            .address(to_h160(&self.deployment.governor))
            .topic0(governor::ProposalCreatedFilter::signature());
        Ok(self.logs(topics).await?.into_iter().filter_map(decoded).collect())
    }

    async fn proposal(&self, made: governor::ProposalCreatedFilter) -> Result<Proposal, Error> {
        let (at, proposal_id) = (&self.deployment.governor, made.proposal_id);
        let (state, votes, end, eta): (u8, (U256, U256, U256), U256, U256) = tokio::try_join!(
            self.call(at, governor::StateCall { proposal_id }),
            self.call(at, governor::ProposalVotesCall { proposal_id }),
            self.call(at, governor::ProposalDeadlineCall { proposal_id }),
            self.call(at, governor::ProposalEtaCall { proposal_id }),
        )?;
        let (proposer, vote_start) = (made.proposer.0, to_u64(made.vote_start));
        let (calls, description) = contents(made);
        Ok(Proposal {
            id: to_bytes(proposal_id),
            proposer,
            calls,
            description,
            state: state_of(state)?,
            vote_start,
            vote_end: to_u64(end),
            executable_at: Some(to_u64(eta)).filter(|&eta| eta != 0),
            against: to_pod(votes.0),
            in_favour: to_pod(votes.1),
            abstained: to_pod(votes.2),
        })
    }

    /// All logs since the deployment, a range at a time.
    async fn logs(&self, filter: Filter) -> Result<Vec<Log>, Error> {
        let last = self.head().await?.block;
        let (mut from, mut logs) = (self.deployment.block, Vec::new());
        while from <= last {
            let range = self.logs_up_to(&filter, from, last).await?;
            logs.extend(range.logs);
            from = range.last.saturating_add(1);
        }
        Ok(logs)
    }

    /// Logs from the newest block back to the first that is looked for, or to the deployment, in their order.
    pub(super) async fn logs_back_to(
        &self,
        filter: &Filter,
        is_first: impl Fn(&Log) -> bool,
    ) -> Result<Vec<Log>, Error> {
        let (mut end, mut found) = (self.head().await?.block.saturating_add(1), Vec::new());
        while end > self.deployment.block && !found.iter().any(&is_first) {
            let from = end.saturating_sub(self.log_range).max(self.deployment.block);
            let (mut next, mut logs) = (from, Vec::new());
            while next < end {
                let range = self.logs_up_to(filter, next, end - 1).await?;
                logs.extend(range.logs);
                next = range.last.saturating_add(1);
            }
            logs.append(&mut found);
            (found, end) = (logs, from);
        }
        Ok(found)
    }

    /// Logs from a block on, at most up to another: of fewer blocks where that is a large range, or more than a
    /// node gives at once.
    pub(super) async fn logs_up_to(&self, filter: &Filter, first: u64, last: u64) -> Result<Range, Error> {
        let mut last = last.min(first.saturating_add(self.log_range - 1));
        loop {
            let hash = self.block_hash(last).await?;
            match self.logs_between(filter, first, last).await {
                Ok(logs) => return Ok(Range { logs, last, hash }),
                Err(RpcFault::Refused { .. } | RpcFault::TooLong(_)) if last > first => {
                    last = first + (last - first) / 2;
                }
                Err(fault) => return Err(fault.into()),
            }
        }
    }

    /// The logs of some blocks, in their order.
    async fn logs_between(&self, filter: &Filter, from: u64, to: u64) -> Result<Vec<Log>, RpcFault> {
        let filter = filter.clone().from_block(from).to_block(to);
        let mut logs: Vec<Log> = self.wire.ask("eth_getLogs", json!([filter])).await?;
        logs.retain(|log| log.removed != Some(true));
        if logs.iter().any(|log| !(from..=to).contains(&log.block_number.map_or(u64::MAX, |n| n.as_u64()))) {
            return Err(RpcFault::BadAnswer("logs of blocks that were not asked for".to_owned()));
        }
        logs.sort_by_key(|log| (log.block_number.unwrap_or(U64::MAX), log.log_index.unwrap_or(U256::MAX)));
        Ok(logs)
    }

    pub(super) async fn block_hash(&self, number: u64) -> Result<Option<[u8; 32]>, Error> {
        let params = json!([format!("0x{number:x}"), false]);
        let block: Option<Block<H256>> = self.wire.ask("eth_getBlockByNumber", params).await?;
        Ok(block.and_then(|block| block.hash).map(|hash| hash.0))
    }
}

/// Logs of some blocks.
pub(super) struct Range {
    pub(super) logs: Vec<Log>,
    /// The last of the blocks.
    pub(super) last: u64,
    /// Its hash, from before the logs were asked for.
    pub(super) hash: Option<[u8; 32]>,
}

fn decoded<E: EthEvent>(log: Log) -> Option<E> {
    if log.data.len() > LONGEST {
        return None;
    }
    E::decode_log(&RawLog { topics: log.topics, data: log.data.to_vec() }).ok()
}

fn contents(made: governor::ProposalCreatedFilter) -> (Vec<Call>, String) {
    let calls = made.targets.into_iter().zip(made.values).zip(made.calldatas);
    let calls = calls.map(|((target, value), data)| Call {
        target: target.0,
        value_wei: to_u128(value),
        data: data.to_vec(),
    });
    (calls.collect(), made.description)
}

fn state_of(number: u8) -> Result<ProposalState, Error> {
    use ProposalState as S;
    let states =
        [S::Pending, S::Active, S::Cancelled, S::Defeated, S::Succeeded, S::Queued, S::Expired, S::Executed];
    let state = states.get(usize::from(number)).copied();
    state.ok_or_else(|| Error::BadAnswer(format!("a proposal in state {number}")))
}
