//! What can go wrong, in the words and codes that clients of nodes know.

use alloy_primitives::{Bytes, U256, hex};
use revm::context_interface::result::InvalidTransaction;
use serde_json::{Value, json};
use thiserror::Error;

/// An error of a JSON-RPC request.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{message} (code {code})")]
pub struct RpcError {
    /// Code of JSON-RPC 2.0 or EIP-1474; 3 for a call that reverted.
    pub code: i64,
    /// What is wrong.
    pub message: String,
    /// What a reverted call returned, as a hexadecimal string.
    pub data: Option<Value>,
}

impl RpcError {
    /// The text is not JSON.
    pub const PARSE: i64 = -32700;
    /// The JSON is no request.
    pub const INVALID_REQUEST: i64 = -32600;
    /// No such method.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// Parameters are missing or of the wrong form.
    pub const INVALID_PARAMS: i64 = -32602;
    /// A fault of the chain itself: its disk, or a bug.
    pub const INTERNAL: i64 = -32603;
    /// The request cannot be served in the state the chain is in.
    pub const INVALID_INPUT: i64 = -32000;
    /// A transaction was refused.
    pub const REJECTED: i64 = -32003;
    /// A limit of the chain is reached.
    pub const LIMIT: i64 = -32005;
    /// A call reverted.
    pub const REVERTED: i64 = 3;

    pub(super) fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    pub(super) fn params(message: impl Into<String>) -> Self {
        Self::new(Self::INVALID_PARAMS, message)
    }

    pub(super) fn input(message: impl Into<String>) -> Self {
        Self::new(Self::INVALID_INPUT, message)
    }

    pub(super) fn rejected(message: impl Into<String>) -> Self {
        Self::new(Self::REJECTED, message)
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(Self::INTERNAL, message)
    }

    pub(super) fn reverted(output: &Bytes) -> Self {
        let data = Some(json!(hex::encode_prefixed(output)));
        Self { code: Self::REVERTED, message: "execution reverted".to_owned(), data }
    }

    pub(super) fn nonce_too_low(next: u64, nonce: u64) -> Self {
        Self::rejected(format!("nonce too low: next nonce {next}, tx nonce {nonce}"))
    }

    pub(super) fn insufficient_funds(balance: U256, cost: U256) -> Self {
        let message = "insufficient funds for gas * price + value";
        Self::rejected(format!("{message}: balance {balance}, tx cost {cost}"))
    }

    pub(super) fn fee_too_low(max_fee: u128, base_fee: u64) -> Self {
        let message = "max fee per gas less than block base fee";
        Self::rejected(format!("{message}: maxFeePerGas: {max_fee}, baseFee: {base_fee}"))
    }
}

impl From<InvalidTransaction> for RpcError {
    fn from(error: InvalidTransaction) -> Self {
        use InvalidTransaction::{
            CallGasCostMoreThanGasLimit, CallerGasLimitMoreThanBlock, GasFloorMoreThanGasLimit,
            LackOfFundForMaxFee, NonceTooLow,
        };
        match error {
            NonceTooLow { tx, state } => Self::nonce_too_low(state, tx),
            LackOfFundForMaxFee { fee, balance } => Self::insufficient_funds(*balance, *fee),
            CallerGasLimitMoreThanBlock => Self::rejected("exceeds block gas limit"),
            CallGasCostMoreThanGasLimit { initial_gas: want, gas_limit: have }
            | GasFloorMoreThanGasLimit { gas_floor: want, gas_limit: have } => {
                Self::rejected(format!("intrinsic gas too low: have {have}, want {want}"))
            }
            other => Self::rejected(other.to_string()),
        }
    }
}
