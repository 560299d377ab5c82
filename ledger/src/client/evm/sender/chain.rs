//! What a sender asks of a chain's node.

use ethers_core::types::{Block, Bytes, H160, H256, Transaction, TransactionReceipt, U256};
use serde_json::{Value, json};

use super::{
    queue::{Inclusion, Taken, View},
    transaction::Attempt,
};
use crate::{
    client::{
        Error,
        evm::{
            calls::Order,
            convert::{to_h256, to_u64, to_u128},
            fees::Fees,
            refusals::call_fault,
            rpc::{RpcFault, Wire},
        },
    },
    eip712::Address,
};

/// Most gas that an order may take: no chain has blocks with more.
const MOST_GAS: u64 = 1 << 32;

/// An account's view of a chain.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub(super) wire: Wire,
    account: H160,
}

/// Who used a nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum User {
    /// The transaction with this hash, in a block.
    Transaction { hash: [u8; 32], block: u64 },
    /// It cannot be found out now.
    Unknown,
}

impl Chain {
    pub(super) fn new(wire: Wire, account: Address) -> Self {
        Self { wire, account: H160(account) }
    }

    /// The newest block, the account's next nonce, and the fees of the next block.
    pub(super) async fn view(&self, now: std::time::Duration) -> Result<View, RpcFault> {
        let head: U256 = self.wire.ask("eth_blockNumber", json!([])).await?;
        let nonce: U256 = self.wire.ask("eth_getTransactionCount", json!([self.account, "latest"])).await?;
        let fees = Fees::of_next_block(&self.wire).await?;
        Ok(View { head: to_u64(head), nonce: to_u64(nonce), fees, now })
    }

    /// The account's next nonce, with everything that the node has heard of.
    pub(super) async fn next_nonce(&self) -> Result<u64, RpcFault> {
        let nonce: U256 = self.wire.ask("eth_getTransactionCount", json!([self.account, "pending"])).await?;
        Ok(to_u64(nonce))
    }

    pub(super) async fn balance_wei(&self) -> Result<u128, RpcFault> {
        let balance: U256 = self.wire.ask("eth_getBalance", json!([self.account, "latest"])).await?;
        Ok(to_u128(balance))
    }

    /// Gas for an order, with a reserve; a refusal if it would be refused now.
    pub(super) async fn gas(&self, order: &Order) -> Result<u64, Error> {
        let call = call_params(self.account, order);
        let gas = self.wire.ask::<U256>("eth_estimateGas", json!([call, "latest"])).await;
        with_reserve(gas.map_err(call_fault)?)
    }

    /// The receipt of one of the attempts, the newest first. One that cannot be asked for does not hide another.
    pub(super) async fn receipt(&self, attempts: &[Attempt]) -> Result<Option<TransactionReceipt>, RpcFault> {
        let mut answer = Ok(None);
        for attempt in attempts.iter().rev() {
            match self.receipt_of(attempt).await {
                Ok(Some(receipt)) => return Ok(Some(receipt)),
                Ok(None) => {}
                Err(fault) if fault.is_passing() => answer = Err(fault),
                Err(fault) => return Err(fault),
            }
        }
        answer
    }

    /// The receipt of an attempt that is in a block.
    async fn receipt_of(&self, attempt: &Attempt) -> Result<Option<TransactionReceipt>, RpcFault> {
        let hash = to_h256(&attempt.hash);
        let receipt: Option<TransactionReceipt> =
            self.wire.ask("eth_getTransactionReceipt", json!([hash])).await?;
        if receipt.as_ref().is_some_and(|receipt| receipt.transaction_hash != hash) {
            return Err(RpcFault::BadAnswer("another transaction's receipt".to_owned()));
        }
        Ok(receipt.filter(|receipt| inclusion(receipt).is_some()))
    }

    /// Hands a transaction to the node.
    pub(super) async fn broadcast(&self, attempt: &Attempt) -> (Taken, Option<RpcFault>) {
        let raw = Bytes::from(attempt.raw.clone());
        match self.wire.once::<Value>("eth_sendRawTransaction", json!([raw])).await {
            Ok(_) => (Taken::Yes, None),
            Err(fault) => (taken(&fault), Some(fault)),
        }
    }

    /// Who used a nonce: bisects the blocks for the one in which it happened.
    pub(super) async fn user_of(&self, nonce: u64, head: u64) -> Result<User, RpcFault> {
        let (mut before, mut after) = (0, head);
        while after - before > 1 {
            let middle = before + (after - before) / 2;
            let block = format!("0x{middle:x}");
            let count: U256 =
                match self.wire.ask("eth_getTransactionCount", json!([self.account, block])).await {
                    Ok(count) => count,
                    // Blocks that are too old for it are before the one that is looked for.
                    Err(RpcFault::Refused { .. }) => U256::zero(),
                    Err(fault) => return Err(fault),
                };
            if count > nonce.into() { after = middle } else { before = middle }
        }
        let params = json!([format!("0x{after:x}"), true]);
        let block: Option<Block<Transaction>> = self.wire.ask("eth_getBlockByNumber", params).await?;
        let transactions = block.map(|block| block.transactions).unwrap_or_default();
        let of_nonce = |t: &&Transaction| t.from == self.account && t.nonce == nonce.into();
        Ok(match transactions.iter().find(of_nonce) {
            Some(transaction) => User::Transaction { hash: transaction.hash.0, block: after },
            None => User::Unknown,
        })
    }
}

/// Hash of the chain's first block.
pub(super) async fn genesis(wire: &Wire) -> Result<[u8; 32], Error> {
    let block: Block<H256> = wire.ask("eth_getBlockByNumber", json!(["0x0", false])).await?;
    block.hash.map(|hash| hash.0).ok_or_else(|| Error::BadAnswer("a block without hash".to_owned()))
}

/// An order as nodes take calls.
pub(in crate::client::evm) fn call_params(from: H160, order: &Order) -> Value {
    let mut call = json!({
        "from": from,
        "value": format!("0x{:x}", order.value_wei),
        "data": format!("0x{}", hex::encode(&order.data)),
    });
    if let Some(to) = order.to {
        call["to"] = json!(to);
    }
    call
}

/// A quarter more than was estimated: what an order finds may have changed when its turn comes.
pub(in crate::client::evm) fn with_reserve(gas: U256) -> Result<u64, Error> {
    match to_u64(gas) {
        gas @ 21_000..=MOST_GAS => Ok(gas + gas / 4),
        gas => Err(Error::BadAnswer(format!("{gas} as an estimate of gas"))),
    }
}

/// Where a receipt says its transaction is.
pub(super) fn inclusion(receipt: &TransactionReceipt) -> Option<Inclusion> {
    Some(Inclusion { block: receipt.block_number?.as_u64(), hash: receipt.transaction_hash.0 })
}

/// What a node's refusal means. Nodes have no codes for these; the words are those of geth, which others follow.
fn taken(fault: &RpcFault) -> Taken {
    let RpcFault::Refused { message, .. } = fault else {
        return Taken::Maybe;
    };
    let message = message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["already known", "already imported", "known transaction", "already in"]) {
        Taken::Yes
    } else if says(&["nonce too low", "nonce is too low", "oldnonce"]) {
        Taken::Used
    } else if says(&["underpriced", "fee too low", "less than block base fee", "fee cap", "tip above"]) {
        Taken::Underpriced
    } else if fault.is_passing() || says(&["pool", "limit", "timeout", "internal", "insufficient funds"]) {
        Taken::Maybe
    } else {
        Taken::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_understood() {
        let said = |message: &str| {
            taken(&RpcFault::Refused { code: -32000, message: message.to_owned(), data: None })
        };
        assert_eq!(said("already known"), Taken::Yes);
        assert_eq!(said("nonce too low: next nonce 5, tx nonce 4"), Taken::Used);
        assert_eq!(said("replacement transaction underpriced"), Taken::Underpriced);
        assert_eq!(said("max fee per gas less than block base fee: address …"), Taken::Underpriced);
        assert_eq!(said("txpool is full"), Taken::Maybe);
        assert_eq!(said("exceeds maximum size"), Taken::No);
        assert_eq!(taken(&RpcFault::Unreachable(String::new())), Taken::Maybe);
    }

    #[test]
    fn odd_estimates_of_gas_are_refused() {
        assert_eq!(with_reserve(100_000.into()).unwrap(), 125_000);
        assert!(with_reserve(0.into()).is_err());
        assert!(with_reserve(U256::MAX).is_err());
    }
}
