//! Plans, as payment sees them: who is paid for a session, and in which proportion.

use serde::{Deserialize, Serialize};

use crate::{
    eip712::{Address, Domain, keccak, padded, word},
    voucher::{NoWeights, shares},
};

/// A place in a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Whose balance in the escrow is credited.
    pub payee: Address,
    /// Its part of every payment, in proportion to the others'.
    pub weight: u64,
}

/// What payment needs of a session's plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The session.
    pub session: [u8; 32],
    /// Whose lock in the escrow pays.
    pub payer: Address,
    /// Hash of the rest: model, prompt, sampling, limits, what it supersedes.
    pub terms: [u8; 32],
    /// When the session ends at the latest, in seconds since 1970.
    pub expiry: u64,
    /// In order; the last also gets what rounding leaves. The collector pays 1 to 64 of them.
    pub stages: Vec<Stage>,
}

const STAGE_TYPE: &str = "Stage(address payee,uint64 weight)";
const PLAN_TYPE: &str = "Plan(bytes32 session,address payer,bytes32 terms,uint64 expiry,Stage[] stages)\
                         Stage(address payee,uint64 weight)";

impl Plan {
    /// The hash that vouchers name and that the escrow locks for: EIP-712's of the struct.
    pub fn hash(&self) -> [u8; 32] {
        let stages: Vec<[u8; 32]> = self.stages.iter().map(Stage::hash).collect();
        let parts = [
            keccak(PLAN_TYPE.as_bytes()),
            self.session,
            padded(&self.payer),
            self.terms,
            word(self.expiry.into()),
            keccak(stages.as_flattened()),
        ];
        keccak(parts.as_flattened())
    }

    /// What the payer signs to agree to the plan.
    pub fn digest(&self, collector: &Domain) -> [u8; 32] {
        collector.digest(&self.hash())
    }

    /// What all stages together get for one unit of work, if the weights are prices.
    ///
    /// # Errors
    /// If nobody is paid, or too much.
    pub fn price(&self) -> Result<u64, NoWeights> {
        let sum = self.stages.iter().try_fold(0u64, |sum, stage| sum.checked_add(stage.weight));
        sum.filter(|&sum| sum > 0).ok_or(NoWeights)
    }

    /// Divides a payment among the stages.
    pub fn shares(&self, amount: u128) -> Result<Vec<u128>, NoWeights> {
        let weights: Vec<u64> = self.stages.iter().map(|stage| stage.weight).collect();
        shares(amount, &weights)
    }
}

impl Stage {
    fn hash(&self) -> [u8; 32] {
        let parts = [keccak(STAGE_TYPE.as_bytes()), padded(&self.payee), word(self.weight.into())];
        keccak(parts.as_flattened())
    }
}
