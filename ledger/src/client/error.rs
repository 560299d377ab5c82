//! What can go wrong between us and a chain.

use std::io;

use thiserror::Error;

use super::amount::show_address;
use crate::eip712::Address;

/// Why nothing came of a question or an action.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The chain's node cannot be reached, or does not answer in time, also after several attempts.
    #[error("the chain's node cannot be reached: {0}")]
    Unreachable(String),
    /// The chain's node answers with something that is no answer.
    #[error("the chain's node gives no proper answer: {0}")]
    BadAnswer(String),
    /// The chain's node refuses.
    #[error("the chain's node refuses: {message} (code {code})")]
    Node {
        /// JSON-RPC error code.
        code: i64,
        /// What it says.
        message: String,
    },
    /// A contract refuses, and nothing was sent.
    #[error("the contract refuses: {0}")]
    Refused(Refusal),
    /// A transaction was included and did nothing, since what it needed had changed in between.
    #[error("transaction 0x{} was refused in block {block}", hex::encode(transaction))]
    Reverted {
        /// Hash of the transaction.
        transaction: [u8; 32],
        /// The block that it is in.
        block: u64,
    },
    /// The account cannot pay for the gas.
    #[error("{} has {available_wei} wei and needs {needed_wei} to pay for gas", show_address(account))]
    Funds {
        /// The account.
        account: Address,
        /// What it takes, in the native token's wei.
        needed_wei: u128,
        /// What there is.
        available_wei: u128,
    },
    /// The chain asks for more than the configuration allows.
    #[error("the chain asks for {asked_wei} wei per gas and the limit is {limit_wei}")]
    FeeLimit {
        /// Fee per gas, in the native token's wei.
        asked_wei: u128,
        /// [`Config::max_fee_wei`](super::Config::max_fee_wei).
        limit_wei: u128,
    },
    /// The configuration names another chain than the one that answers.
    #[error("the chain that answers is number {found}, not {expected}")]
    WrongChain {
        /// As configured.
        expected: u64,
        /// As answered.
        found: u64,
    },
    /// The client was opened without a key.
    #[error("there is no key to sign with")]
    NoKey,
    /// There is no such proposal.
    #[error("there is no such proposal")]
    NoProposal,
    /// What was asked for cannot be, whatever the chain says.
    #[error("{0}")]
    Invalid(&'static str),
    /// The files of pending transactions cannot be read or written.
    #[error("cannot keep pending transactions in {path}: {error}")]
    Store {
        /// The file or directory.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The sender was stopped. What has a nonce is still in its files, if it has any.
    #[error("the sender was stopped")]
    Stopped,
}

/// A contract's error.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{text}")]
pub struct Refusal {
    /// Its name, as in the contract (`NothingDue`); empty if it is not known.
    pub name: String,
    /// Name and arguments, or what the chain's node says.
    pub text: String,
}

impl Error {
    /// Whether a contract refuses with the error of this name.
    pub fn is(&self, name: &str) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.name == name)
    }

    /// Whether it may work later as it is.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::BadAnswer(_) | Self::FeeLimit { .. })
    }
}
