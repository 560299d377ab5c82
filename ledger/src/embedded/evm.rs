//! Running transactions: the one place that knows revm.

use std::convert::Infallible;

use alloy_consensus::{Transaction, TxEnvelope, Typed2718, transaction::Recovered};
use alloy_primitives::{Address, B256, Bytes, TxKind, U256};
use alloy_rpc_types_eth::TransactionRequest;
use revm::{
    Context, Database, DatabaseRef, ExecuteEvm, MainBuilder, MainContext,
    context::{BlockEnv, CfgEnv, TxEnv},
    context_interface::result::{
        EVMError, ExecutionResult, HaltReason, InvalidTransaction, OutOfGasError, ResultAndState,
    },
    database::{CacheDB, EmptyDB},
    primitives::hardfork::SpecId,
    state::AccountInfo,
};

use super::error::RpcError;

/// Balances, nonces, code and storage.
pub(super) type Accounts = CacheDB<EmptyDB>;

/// The rules of blocks from the first on.
const RULES: SpecId = SpecId::PRAGUE;

/// What a block says to the transactions in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Environment {
    pub(super) number: u64,
    pub(super) timestamp: u64,
    pub(super) base_fee: u64,
    pub(super) gas_limit: u64,
    pub(super) coinbase: Address,
    pub(super) randomness: B256,
}

impl Environment {
    fn block(&self) -> BlockEnv {
        BlockEnv {
            number: U256::from(self.number),
            beneficiary: self.coinbase,
            timestamp: U256::from(self.timestamp),
            gas_limit: self.gas_limit,
            basefee: self.base_fee,
            prevrandao: Some(self.randomness),
            ..BlockEnv::default()
        }
    }
}

/// How strictly a transaction is looked at before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checks {
    /// As for a block.
    All,
    /// As for a block, but that its nonce may be ahead.
    AllButNonce,
    /// As for a call: nobody signed it, and no fee has to be paid.
    Call,
}

/// Why a transaction could not run at all.
#[derive(Debug)]
pub(super) enum Failure {
    /// It breaks a rule.
    Invalid(InvalidTransaction),
    /// The machine failed.
    Machine(String),
}

impl From<Failure> for RpcError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Invalid(invalid) => invalid.into(),
            Failure::Machine(message) => Self::internal(message),
        }
    }
}

/// Runs a transaction and says what it would change; changes nothing.
pub(super) fn run<D: Database<Error = Infallible>>(
    accounts: D,
    chain_id: u64,
    environment: &Environment,
    transaction: TxEnv,
    checks: Checks,
) -> Result<ResultAndState, Failure> {
    let mut rules = CfgEnv::new_with_spec(RULES);
    rules.chain_id = chain_id;
    rules.disable_nonce_check = checks != Checks::All;
    rules.disable_base_fee = checks == Checks::Call;
    rules.disable_eip3607 = checks == Checks::Call;
    let context = Context::mainnet().with_db(accounts).with_cfg(rules).with_block(environment.block());
    context.build_mainnet().transact(transaction).map_err(|error| match error {
        EVMError::Transaction(invalid) => Failure::Invalid(invalid),
        other => Failure::Machine(other.to_string()),
    })
}

/// What a signed transaction asks for.
pub(super) fn signed(transaction: &Recovered<TxEnvelope>) -> TxEnv {
    TxEnv {
        tx_type: transaction.ty(),
        caller: transaction.signer(),
        gas_limit: transaction.gas_limit(),
        gas_price: transaction.max_fee_per_gas(),
        gas_priority_fee: transaction.max_priority_fee_per_gas(),
        kind: transaction.kind(),
        value: transaction.value(),
        data: transaction.input().clone(),
        nonce: transaction.nonce(),
        chain_id: transaction.chain_id(),
        access_list: transaction.access_list().cloned().unwrap_or_default(),
        ..TxEnv::default()
    }
}

/// What a call asks for that nobody signed, with at most `gas`.
pub(super) fn unsigned(request: &TransactionRequest, chain_id: u64, gas: u64) -> Result<TxEnv, RpcError> {
    let is_plain = request.blob_versioned_hashes.is_none() && request.authorization_list.is_none();
    if !is_plain {
        return Err(RpcError::params("calls with blobs or authorizations are not supported"));
    }
    let price = request.max_fee_per_gas.or(request.gas_price).unwrap_or_default();
    let tip = request.max_priority_fee_per_gas;
    if tip.is_some_and(|tip| tip > price) {
        return Err(RpcError::params("max priority fee per gas higher than max fee per gas"));
    }
    let data = match (&request.input.input, &request.input.data) {
        (Some(input), Some(data)) if input != data => {
            return Err(RpcError::params("`data` and `input` are both given and differ"));
        }
        (Some(data), _) | (None, Some(data)) => data.clone(),
        (None, None) => Bytes::new(),
    };
    Ok(TxEnv {
        tx_type: if request.max_fee_per_gas.is_some() { 2 } else { 1 },
        caller: request.from.unwrap_or_default(),
        gas_limit: gas,
        gas_price: price,
        gas_priority_fee: if request.max_fee_per_gas.is_some() {
            Some(tip.unwrap_or_default())
        } else {
            None
        },
        kind: request.to.unwrap_or(TxKind::Create),
        value: request.value.unwrap_or_default(),
        data,
        nonce: request.nonce.unwrap_or_default(),
        chain_id: request.chain_id.or(Some(chain_id)),
        access_list: request.access_list.clone().unwrap_or_default(),
        ..TxEnv::default()
    })
}

/// What a call returned, or why it did not.
pub(super) fn output(result: ExecutionResult) -> Result<Bytes, RpcError> {
    match result {
        ExecutionResult::Success { output, .. } => Ok(output.into_data()),
        ExecutionResult::Revert { output, .. } => Err(RpcError::reverted(&output)),
        ExecutionResult::Halt { reason, .. } => Err(RpcError::input(halt(&reason))),
    }
}

/// Whether more gas could have helped.
pub(super) fn ran_out(result: &ExecutionResult) -> bool {
    matches!(result, ExecutionResult::Halt { reason: HaltReason::OutOfGas(_), .. })
}

fn halt(reason: &HaltReason) -> String {
    match reason {
        HaltReason::OutOfGas(OutOfGasError::Basic | OutOfGasError::Memory) => "out of gas".to_owned(),
        HaltReason::OutOfGas(reason) => format!("out of gas: {reason:?}"),
        other => format!("execution halted: {other:?}"),
    }
}

/// An account as it stands; one that does not exist is empty.
pub(super) fn account(accounts: &Accounts, address: Address) -> AccountInfo {
    let Ok(found) = accounts.basic_ref(address);
    found.unwrap_or_default()
}

/// Code of an account.
pub(super) fn code(accounts: &Accounts, address: Address) -> Bytes {
    let info = account(accounts, address);
    let Ok(code) = accounts.code_by_hash_ref(info.code_hash);
    code.original_bytes()
}

/// One word of an account's storage.
pub(super) fn storage(accounts: &Accounts, address: Address, slot: U256) -> U256 {
    let Ok(word) = accounts.storage_ref(address, slot);
    word
}
