//! Blocks, transactions, receipts and logs as JSON-RPC shows them.

use std::sync::Arc;

use alloy_consensus::{BlockBody, Transaction as _, transaction::TransactionInfo};
use alloy_eips::eip4895::Withdrawals;
use alloy_primitives::U256;
use alloy_rpc_types_eth::{
    Block as BlockView, BlockTransactions, FeeHistory, Header, Log, Transaction, TransactionReceipt,
};

use super::block::{Block, Included, Signed};

pub(super) fn block(block: &Block, with_transactions: bool) -> BlockView {
    let transactions = if with_transactions {
        let all = (0..block.transactions.len()).filter_map(|index| transaction(block, index));
        BlockTransactions::Full(all.collect())
    } else {
        let all = block.transactions.iter().map(|included| *included.transaction.tx_hash());
        BlockTransactions::Hashes(all.collect())
    };
    let body = BlockBody {
        transactions: block.transactions.iter().map(|included| included.transaction.inner()).collect(),
        ommers: Vec::new(),
        withdrawals: Some(Withdrawals::default()),
    };
    let size = alloy_consensus::Block::rlp_length_for(&block.header, &body);
    BlockView {
        header: Header {
            hash: block.hash,
            inner: block.header.clone(),
            total_difficulty: Some(U256::ZERO),
            size: Some(U256::from(size)),
        },
        uncles: Vec::new(),
        transactions,
        withdrawals: body.withdrawals,
    }
}

pub(super) fn transaction(block: &Block, index: usize) -> Option<Transaction> {
    let included = block.transactions.get(index)?;
    let info = TransactionInfo {
        hash: Some(*included.transaction.tx_hash()),
        index: Some(index as u64),
        block_hash: Some(block.hash),
        block_number: Some(block.header.number),
        base_fee: block.header.base_fee_per_gas,
        block_timestamp: Some(block.header.timestamp),
    };
    Some(Transaction::from_transaction((*included.transaction).clone(), info))
}

pub(super) fn waiting(transaction: &Arc<Signed>) -> Transaction {
    Transaction::from_transaction((**transaction).clone(), TransactionInfo::default())
}

pub(super) fn receipt(block: &Block, index: usize) -> Option<TransactionReceipt> {
    let included = block.transactions.get(index)?;
    let mut logs = logs(block, index, included).collect::<Vec<_>>().into_iter();
    let inner = included.receipt.clone().map_logs(|log| logs.next().unwrap_or_else(|| bare(log)));
    Some(TransactionReceipt {
        inner,
        transaction_hash: *included.transaction.tx_hash(),
        transaction_index: Some(index as u64),
        block_hash: Some(block.hash),
        block_number: Some(block.header.number),
        gas_used: included.gas_used,
        effective_gas_price: included.transaction.effective_gas_price(block.header.base_fee_per_gas),
        blob_gas_used: None,
        blob_gas_price: None,
        from: included.transaction.signer(),
        to: included.transaction.to(),
        contract_address: included.created,
    })
}

fn bare(inner: alloy_primitives::Log) -> Log {
    Log { inner, ..Log::default() }
}

/// Logs of the transaction at `index`.
pub(super) fn logs(block: &Block, index: usize, included: &Included) -> impl Iterator<Item = Log> {
    included.receipt.logs().iter().zip(included.first_log..).map(move |(log, log_index)| Log {
        inner: log.clone(),
        block_hash: Some(block.hash),
        block_number: Some(block.header.number),
        block_timestamp: Some(block.header.timestamp),
        transaction_hash: Some(*included.transaction.tx_hash()),
        transaction_index: Some(index as u64),
        log_index: Some(log_index),
        removed: false,
    })
}

/// Fees of consecutive blocks, of which `next_base_fee` follows the last. Percentiles are of gas, ascending.
pub(super) fn fee_history(blocks: &[Arc<Block>], next_base_fee: u64, percentiles: &[f64]) -> FeeHistory {
    let fees = blocks.iter().map(|block| u128::from(block.base_fee()));
    let used = |block: &Arc<Block>| block.header.gas_used as f64 / (block.header.gas_limit.max(1)) as f64;
    let reward =
        (!percentiles.is_empty()).then(|| blocks.iter().map(|block| rewards(block, percentiles)).collect());
    FeeHistory {
        base_fee_per_gas: fees.chain([next_base_fee.into()]).collect(),
        gas_used_ratio: blocks.iter().map(used).collect(),
        base_fee_per_blob_gas: vec![1; blocks.len() + 1],
        blob_gas_used_ratio: vec![0.0; blocks.len()],
        oldest_block: blocks.first().map_or(0, |block| block.header.number),
        reward,
    }
}

/// Tip per gas below which each percentile of a block's gas was paid.
fn rewards(block: &Block, percentiles: &[f64]) -> Vec<u128> {
    let tip = |included: &Included| included.transaction.effective_tip_per_gas(block.base_fee());
    let mut paid: Vec<(u128, u64)> = block
        .transactions
        .iter()
        .map(|included| (tip(included).unwrap_or_default(), included.gas_used))
        .collect();
    paid.sort_unstable();
    let at = |percentile: &f64| {
        let threshold = block.header.gas_used as f64 * percentile / 100.0;
        let mut gas = 0;
        let found = paid.iter().find(|(_, used)| {
            gas += used;
            gas as f64 >= threshold
        });
        found.or(paid.last()).map_or(0, |(tip, _)| *tip)
    };
    percentiles.iter().map(at).collect()
}
