//! Blocks, and how transactions become one.

use std::sync::Arc;

use alloy_consensus::{
    Header, Receipt, ReceiptEnvelope, Transaction, TxEnvelope, TxReceipt,
    proofs::{calculate_receipt_root, calculate_transaction_root},
    transaction::Recovered,
};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, B256, Bloom, Log, TxHash};
use revm::{
    DatabaseCommit,
    context_interface::result::{ExecutionResult, InvalidTransaction, ResultAndState},
    database::CacheDB,
    state::EvmState,
};

use super::{
    error::RpcError,
    evm::{self, Accounts, Checks, Environment, Failure},
    genesis::empty_header,
};

/// Most that the transactions of a block may take, encoded.
const BLOCK_BYTES: usize = 8 << 20;

/// A transaction whose signature was checked, with who signed it.
pub(super) type Signed = Recovered<TxEnvelope>;

/// A block of the chain.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) header: Header,
    pub(super) hash: B256,
    pub(super) transactions: Vec<Included>,
}

/// A transaction in a block, and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Included {
    pub(super) transaction: Arc<Signed>,
    pub(super) receipt: ReceiptEnvelope<Log>,
    pub(super) gas_used: u64,
    pub(super) created: Option<Address>,
    /// How many logs of the block come before those of this transaction.
    pub(super) first_log: u64,
}

/// A block and what it changes, not yet part of the chain.
pub(super) struct Draft {
    pub(super) block: Block,
    pub(super) changes: Vec<EvmState>,
    /// Transactions that can never be part of a later block either, and why.
    pub(super) refused: Vec<(TxHash, RpcError)>,
}

impl Block {
    pub(super) fn new(header: Header, transactions: Vec<Included>) -> Self {
        let hash = header.hash_slow();
        Self { header, hash, transactions }
    }

    pub(super) fn base_fee(&self) -> u64 {
        self.header.base_fee_per_gas.unwrap_or_default()
    }
}

/// Runs `candidates` in order on top of `accounts`; those that cannot run now are left out.
pub(super) fn draft(
    accounts: &Accounts,
    chain_id: u64,
    parent: B256,
    environment: &Environment,
    candidates: impl IntoIterator<Item = Arc<Signed>>,
) -> Result<Draft, RpcError> {
    let mut changed = CacheDB::new(accounts);
    let mut body = Body::default();
    let (mut changes, mut refused) = (Vec::new(), Vec::new());
    for transaction in candidates {
        if !body.has_room(&transaction, environment) {
            continue;
        }
        let asked = evm::signed(&transaction);
        match evm::run(&mut changed, chain_id, environment, asked, Checks::All) {
            Ok(ResultAndState { result, state }) => {
                changed.commit(state.clone());
                changes.push(state);
                body.include(transaction, result);
            }
            Err(Failure::Invalid(InvalidTransaction::NonceTooHigh { .. })) => {}
            Err(Failure::Invalid(InvalidTransaction::GasPriceLessThanBasefee)) => {}
            Err(Failure::Invalid(invalid)) => refused.push((*transaction.tx_hash(), invalid.into())),
            Err(machine) => return Err(machine.into()),
        }
    }
    Ok(Draft { block: body.seal(parent, environment), changes, refused })
}

#[derive(Default)]
struct Body {
    transactions: Vec<Included>,
    gas_used: u64,
    bytes: usize,
    logs: u64,
    bloom: Bloom,
}

impl Body {
    fn has_room(&self, transaction: &Signed, environment: &Environment) -> bool {
        let gas = self.gas_used.saturating_add(transaction.gas_limit());
        let bytes = self.bytes + transaction.inner().encode_2718_len();
        gas <= environment.gas_limit && bytes <= BLOCK_BYTES
    }

    fn include(&mut self, transaction: Arc<Signed>, result: ExecutionResult) {
        let gas_used = result.tx_gas_used();
        let created = result.created_address();
        let succeeded = result.is_success();
        let logs = if succeeded { result.into_logs() } else { Vec::new() };
        self.gas_used += gas_used;
        self.bytes += transaction.inner().encode_2718_len();
        let first_log = self.logs;
        self.logs += logs.len() as u64;
        let receipt = Receipt { status: succeeded.into(), cumulative_gas_used: self.gas_used, logs };
        let receipt = ReceiptEnvelope::from_typed(transaction.tx_type(), receipt);
        self.bloom |= receipt.bloom();
        self.transactions.push(Included { transaction, receipt, gas_used, created, first_log });
    }

    fn seal(self, parent: B256, environment: &Environment) -> Block {
        let transactions: Vec<&TxEnvelope> =
            self.transactions.iter().map(|included| included.transaction.inner()).collect();
        let receipts: Vec<&ReceiptEnvelope<Log>> =
            self.transactions.iter().map(|included| &included.receipt).collect();
        let header = Header {
            parent_hash: parent,
            beneficiary: environment.coinbase,
            transactions_root: calculate_transaction_root(&transactions),
            receipts_root: calculate_receipt_root(&receipts),
            logs_bloom: self.bloom,
            number: environment.number,
            gas_limit: environment.gas_limit,
            gas_used: self.gas_used,
            timestamp: environment.timestamp,
            mix_hash: environment.randomness,
            base_fee_per_gas: Some(environment.base_fee),
            ..empty_header()
        };
        Block::new(header, self.transactions)
    }
}
