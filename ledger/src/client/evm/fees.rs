//! What a transaction should offer for its gas. ethers' own default never tips less than 3 gwei, which on a
//! layer 2 is hundreds of times too much.

use ethers_core::types::{Block, Bytes, FeeHistory, H160, H256, U256};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    convert::to_u128,
    rpc::{RpcFault, Wire},
};
use crate::client::Error;

/// Blocks to look back for tips.
const BLOCKS: u64 = 10;
/// The tip that half of a block's gas pays less than.
const PERCENTILE: u64 = 50;
/// Where OP-stack chains say what data costs on layer 1.
const GAS_PRICE_ORACLE: H160 = H160([0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0f]);
/// `getL1Fee(bytes)`.
const GET_L1_FEE: [u8; 4] = [0x49, 0x94, 0x8e, 0x0e];

/// What the next block takes for a unit of gas, in wei.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fees {
    /// Burnt.
    pub(super) base_wei: u128,
    /// Usual for whoever makes the block.
    pub(super) tip_wei: u128,
}

/// What a transaction offers for a unit of gas, in wei.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    /// Most that is paid, tip included.
    pub(super) max_wei: u128,
    /// Most of it that is a tip.
    pub(super) tip_wei: u128,
}

impl Fees {
    /// Asks for the fees of the last blocks; where a node does not tell, for what it would suggest.
    pub(super) async fn of_next_block(wire: &Wire) -> Result<Self, RpcFault> {
        let params = json!([format!("0x{BLOCKS:x}"), "latest", [PERCENTILE]]);
        match wire.ask::<FeeHistory>("eth_feeHistory", params).await {
            Ok(history) => match Self::of_history(&history) {
                Some(fees) => Ok(fees),
                None => Self::suggested(wire).await,
            },
            Err(RpcFault::Refused { .. }) => Self::suggested(wire).await,
            Err(fault) => Err(fault),
        }
    }

    fn of_history(history: &FeeHistory) -> Option<Self> {
        let base_wei = to_u128(*history.base_fee_per_gas.last()?);
        // Blocks that nobody filled say nothing about tips.
        let blocks = history.reward.iter().zip(&history.gas_used_ratio);
        let filled = blocks.filter(|(_, used)| **used > 0.0);
        let mut tips: Vec<u128> = filled.filter_map(|(tips, _)| Some(to_u128(*tips.first()?))).collect();
        tips.sort_unstable();
        let tip_wei = *tips.get(tips.len() / 2)?;
        Some(Self { base_wei, tip_wei: tip_wei.max(1) })
    }

    async fn suggested(wire: &Wire) -> Result<Self, RpcFault> {
        let block: Block<H256> = wire.ask("eth_getBlockByNumber", json!(["latest", false])).await?;
        let base = block.base_fee_per_gas;
        let base_wei = to_u128(base.ok_or_else(|| RpcFault::BadAnswer("a block without fees".to_owned()))?);
        let tip = wire.ask::<U256>("eth_maxPriorityFeePerGas", json!([])).await;
        // A tenth of the base fee is more than most pay.
        let tip_wei = tip.map_or(base_wei / 10, to_u128);
        Ok(Self { base_wei, tip_wei: tip_wei.max(1) })
    }

    /// What one unit of gas costs now.
    pub(super) fn now_wei(self) -> u128 {
        self.base_wei.saturating_add(self.tip_wei)
    }

    /// What to offer at first: enough for some doublings of the base fee, and at most the limit.
    pub(super) fn offer(self, limit_wei: u128) -> Result<Offer, Error> {
        if self.now_wei() > limit_wei {
            return Err(Error::FeeLimit { asked_wei: self.now_wei(), limit_wei });
        }
        let max_wei = self.base_wei.saturating_mul(2).saturating_add(self.tip_wei).min(limit_wei);
        Ok(Offer { max_wei, tip_wei: self.tip_wei })
    }
}

impl Offer {
    /// A better offer in place of this one, if the limit leaves room for what nodes take as one: a tenth more
    /// of both.
    pub(super) fn raised(self, fees: Fees, limit_wei: u128) -> Option<Offer> {
        let quarter_more = |wei: u128| wei.saturating_add(wei / 4).saturating_add(1);
        let least = |wei: u128| wei.saturating_add(wei / 10).saturating_add(1);
        let wanted = fees.base_wei.saturating_mul(2).saturating_add(fees.tip_wei);
        let max_wei = quarter_more(self.max_wei).max(wanted).min(limit_wei);
        let tip_wei = quarter_more(self.tip_wei).max(fees.tip_wei).min(max_wei);
        let is_better = max_wei >= least(self.max_wei) && tip_wei >= least(self.tip_wei);
        is_better.then_some(Offer { max_wei, tip_wei })
    }
}

/// What an OP-stack chain charges for a transaction's bytes on layer 1; zero on other chains.
pub(super) async fn l1_fee_wei(wire: &Wire, transaction: &[u8]) -> Result<u128, RpcFault> {
    let code: Bytes = wire.ask("eth_getCode", json!([GAS_PRICE_ORACLE, "latest"])).await?;
    if code.is_empty() {
        return Ok(0);
    }
    let argument = ethers_core::abi::encode(&[ethers_core::abi::Token::Bytes(transaction.to_vec())]);
    let data = Bytes::from([&GET_L1_FEE[..], &argument].concat());
    let fee: U256 = wire.ask("eth_call", json!([{ "to": GAS_PRICE_ORACLE, "data": data }, "latest"])).await?;
    Ok(to_u128(fee))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_l1_fee_is_asked_for_by_its_name() {
        let hash = crate::eip712::keccak(b"getL1Fee(bytes)");
        assert_eq!(hash[..4], GET_L1_FEE);
    }

    #[test]
    fn tips_are_those_of_blocks_that_somebody_filled() {
        let history = FeeHistory {
            base_fee_per_gas: [7, 8, 9, 10].map(U256::from).to_vec(),
            gas_used_ratio: vec![0.5, 0.0, 0.9],
            oldest_block: U256::zero(),
            reward: vec![vec![5.into()], vec![0.into()], vec![3.into()]],
        };
        assert_eq!(Fees::of_history(&history), Some(Fees { base_wei: 10, tip_wei: 5 }));
        let empty = FeeHistory { gas_used_ratio: vec![0.0; 3], ..history };
        assert_eq!(Fees::of_history(&empty), None);
    }

    #[test]
    fn a_limit_holds() {
        let fees = Fees { base_wei: 10, tip_wei: 1 };
        assert_eq!(fees.offer(100).unwrap(), Offer { max_wei: 21, tip_wei: 1 });
        assert_eq!(fees.offer(15).unwrap().max_wei, 15);
        assert!(matches!(fees.offer(10), Err(Error::FeeLimit { asked_wei: 11, limit_wei: 10 })));
    }

    proptest! {
        #[test]
        fn a_raised_offer_is_one_that_nodes_take(
            max: u128, tip: u128, base_wei: u128, tip_wei: u128, limit: u128,
        ) {
            let offer = Offer { max_wei: max.max(tip), tip_wei: tip.min(max) };
            if let Some(raised) = offer.raised(Fees { base_wei, tip_wei }, limit) {
                prop_assert!(raised.max_wei <= limit && raised.tip_wei <= raised.max_wei);
                prop_assert!(raised.max_wei - offer.max_wei >= offer.max_wei / 10);
                prop_assert!(raised.tip_wei - offer.tip_wei >= offer.tip_wei / 10);
            }
        }
    }
}
