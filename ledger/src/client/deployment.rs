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
    /// Who may enter and retire models beside the votes; zero for nobody.
    #[serde(with = "address")]
    pub curator: Address,
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
    /// What draws.
    pub beacon: BeaconParameters,
    /// What audits go by.
    pub audits: AuditParameters,
}

/// A network of drand's scheme `bls-bn254-unchained-on-g1`, or one key of one's own
/// ([`Secret`](crate::beacon::Secret)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BeaconParameters {
    /// The network's public key.
    #[serde(with = "key")]
    pub key: [u8; 128],
    /// When round 1 is made, in seconds since 1970.
    pub genesis: u64,
    /// From round to round.
    pub period: u64,
}

/// Parameters of audits; times are below 2^40. Rates are in units of 2^-32, parts of stake in 1/10000.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuditParameters {
    /// Length of an epoch.
    pub epoch_length: u64,
    /// An epoch's beacon is the first round made so long after its end.
    pub beacon_delay: u64,
    /// How long after an epoch's end its leaves can be drawn.
    pub draw_window: u64,
    /// How long a node has to open a drawn leaf.
    pub open_window: u64,
    /// How long each step of an auditor may take.
    pub answer_window: u64,
    /// How long a verdict can be disputed.
    pub dispute_window: u64,
    /// Mismatches further apart are isolated.
    pub strike_window: u64,
    /// How often a new node's chunks of prompts are drawn.
    pub prompt_rate: u32,
    /// The same for chunks of replies.
    pub reply_rate: u32,
    /// One part of so many is left of a rate after a long honest history.
    pub rate_floor: u32,
    /// Audits passed that halve what is above that.
    pub rate_half_life: u32,
    /// Least active stake of a node that posts.
    pub min_node_stake: Pod,
    /// Least active stake of an auditor.
    pub min_auditor_stake: Pod,
    /// What each side of a dispute puts up.
    pub dispute_bond: Pod,
    /// Time that each side of a dispute has for all of its moves.
    pub dispute_clock: u64,
    /// Taken of a node that does not open a drawn leaf.
    pub silent_bps: u16,
    /// Taken of a node that two auditors got no rows from.
    pub withheld_bps: u16,
    /// Taken of a node for the second mismatch within the strike window.
    pub repeat_bps: u16,
    /// Taken for further ones, and of a node that loses a dispute.
    pub systematic_bps: u16,
    /// Taken of an auditor that is silent, or does not defend its answer.
    pub lapse_bps: u16,
    /// Taken of an auditor that confirms a planted fault, or loses a dispute.
    pub miss_bps: u16,
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
    /// `Beacon`; zero, as the next three, in files of deployments that have no audits.
    #[serde(with = "address", default)]
    pub beacon: Address,
    /// `AuditorSet`.
    #[serde(with = "address", default)]
    pub auditors: Address,
    /// `DisputeGame`.
    #[serde(with = "address", default)]
    pub game: Address,
    /// `AuditManager`.
    #[serde(with = "address", default)]
    pub audits: Address,
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

/// 128 bytes in files, for `#[serde(with = "key")]`.
mod key {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(key: &[u8; 128], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("0x{}", hex::encode(key)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 128], D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut key = [0; 128];
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        hex::decode_to_slice(digits, &mut key).map_err(de::Error::custom)?;
        Ok(key)
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
        assert_eq!((parameters.beacon.period, parameters.beacon.key[0]), (3, 7));
        assert_eq!(parameters.audits.min_node_stake, "10_000".parse().unwrap());
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
            beacon: [11; 20],
            auditors: [12; 20],
            game: [14; 20],
            audits: [13; 20],
        };
        let json = serde_json::to_string(&deployment).unwrap();
        assert_eq!(serde_json::from_str::<Deployment>(&json).unwrap(), deployment);
        let mut older: serde_json::Value = serde_json::from_str(&json).unwrap();
        for name in ["beacon", "auditors", "game", "audits"] {
            older.as_object_mut().unwrap().remove(name);
        }
        let older: Deployment = serde_json::from_value(older).unwrap();
        assert_eq!((older.rewards, older.audits), ([0xab; 20], [0; 20]));
        let toml = toml::to_string(&deployment).unwrap();
        assert_eq!(toml::from_str::<Deployment>(&toml).unwrap(), deployment);
    }
}
