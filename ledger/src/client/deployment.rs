//! What is deployed, and with which parameters.

use serde::{Deserialize, Serialize};

use super::amount::{Pod, address};
use crate::eip712::{Address, Domain};

/// Parameters of a deployment, as `contracts/script/local.json` has them. `docs/contracts.md` says what each
/// means. Times are in seconds, amounts in wei of POD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Parameters {
    /// POD where it exists; zero to deploy ours.
    #[serde(with = "address")]
    pub token: Address,
    /// Most that may exist of ours.
    pub token_cap: Pod,
    /// Who gets the initial supply of ours.
    #[serde(with = "address")]
    pub holder: Address,
    /// The initial supply of ours.
    pub supply: Pod,
    /// Who may disable a root of rewards.
    #[serde(with = "address")]
    pub guardian: Address,
    /// Who may post one.
    #[serde(with = "address")]
    pub poster: Address,
    /// From a vote that passed to its execution.
    pub timelock_delay: u64,
    /// From thawing stake to withdrawing it; below 2^40.
    pub stake_thaw_period: u64,
    /// Epoch of the slashing cap; below 2^40.
    pub slash_epoch: u64,
    /// Most that an epoch takes of an operator's role, in 1/10000.
    pub slash_cap_bps: u16,
    /// The reporter's share of a slash, in 1/10000.
    pub reporter_bps: u16,
    /// From thawing a lock to releasing it.
    pub escrow_thaw_period: u64,
    /// How long after a plan's expiry its vouchers are taken.
    pub settlement_window: u64,
    /// From posting a root of rewards until it counts.
    pub activation_delay: u64,
    /// New tokens per second for rewards; zero without emission.
    pub emission_rate: Pod,
    /// When the emission begins, in seconds since 1970.
    pub emission_start: u64,
    /// Most that is ever emitted.
    pub emission_cap: Pod,
    /// From a proposal to its vote; below 2^48.
    pub voting_delay: u64,
    /// Length of a vote.
    pub voting_period: u32,
    /// Votes that it takes to propose.
    pub proposal_threshold: Pod,
    /// Part of the supply that must vote for or abstain, in percent.
    pub quorum_percent: u8,
    /// Shortest time from a vote's quorum to its end; below 2^48.
    pub vote_extension: u64,
}

/// Where everything is. Kept in a file (JSON or TOML) that all who use the chain share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    /// EIP-155 id of the chain.
    pub chain_id: u64,
    /// No event is older than this block.
    pub block: u64,
    /// `AccessManager`.
    #[serde(with = "address")]
    pub manager: Address,
    /// `TimelockController`.
    #[serde(with = "address")]
    pub timelock: Address,
    /// POD.
    #[serde(with = "address")]
    pub token: Address,
    /// `StakeManager`.
    #[serde(with = "address")]
    pub stake: Address,
    /// `PodGovernor`.
    #[serde(with = "address")]
    pub governor: Address,
    /// `SessionEscrow`.
    #[serde(with = "address")]
    pub escrow: Address,
    /// `VoucherCollector`.
    #[serde(with = "address")]
    pub collector: Address,
    /// `NodeRegistry`.
    #[serde(with = "address")]
    pub nodes: Address,
    /// `ModelRegistry`.
    #[serde(with = "address")]
    pub models: Address,
    /// `RewardDistributor`.
    #[serde(with = "address")]
    pub rewards: Address,
}

impl Deployment {
    /// What signatures of plans and vouchers are bound to.
    pub fn collector_domain(&self) -> Domain {
        Domain { chain_id: self.chain_id, contract: self.collector }
    }

    /// What signatures of nodes and their accounts are bound to.
    pub fn nodes_domain(&self) -> Domain {
        Domain { chain_id: self.chain_id, contract: self.nodes }
    }

    /// What leaves of rewards are bound to.
    pub fn rewards_domain(&self) -> Domain {
        Domain { chain_id: self.chain_id, contract: self.rewards }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_contracts_is_read() {
        let text = include_str!("../../contracts/script/local.json");
        let parameters: Parameters = serde_json::from_str(text).unwrap();
        assert_eq!(parameters.supply, "100_000_000".parse().unwrap());
        assert_eq!(parameters.vote_extension, 172_800);
        let again = serde_json::to_string(&parameters).unwrap();
        assert_eq!(serde_json::from_str::<Parameters>(&again).unwrap(), parameters);
        assert!(serde_json::from_str::<Parameters>(&again.replace("supply", "suply")).is_err());
    }

    #[test]
    fn a_deployment_is_kept_as_json_and_toml() {
        let deployment = Deployment {
            chain_id: 10,
            block: 7,
            manager: [1; 20],
            timelock: [2; 20],
            token: [3; 20],
            stake: [4; 20],
            governor: [5; 20],
            escrow: [6; 20],
            collector: [7; 20],
            nodes: [8; 20],
            models: [9; 20],
            rewards: [0xab; 20],
        };
        let json = serde_json::to_string(&deployment).unwrap();
        assert_eq!(serde_json::from_str::<Deployment>(&json).unwrap(), deployment);
        let toml = toml::to_string(&deployment).unwrap();
        assert_eq!(toml::from_str::<Deployment>(&toml).unwrap(), deployment);
    }
}
