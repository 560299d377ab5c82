//! What a chain begins with. It never changes afterwards.

use std::time::Duration;

use alloy_consensus::{EMPTY_ROOT_HASH, Header, constants::EMPTY_WITHDRAWALS};
use alloy_eips::eip7685::EMPTY_REQUESTS_HASH;
use alloy_primitives::{Address, B256, U256};
use serde::{Deserialize, Serialize};

/// What a chain begins with. Two chains with the same genesis and transactions under the same times are equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// Chain id, part of what every transaction signs.
    pub chain_id: u64,
    /// Time of block 0, in seconds since 1970.
    pub timestamp: u64,
    /// Fee per gas of blocks 0 and 1, in wei; from then on it follows EIP-1559.
    pub base_fee: u64,
    /// Most gas that a block holds.
    pub gas_limit: u64,
    /// Whom the part of fees above the base fee is paid to.
    pub coinbase: [u8; 20],
    /// Accounts and what they hold, in wei.
    pub accounts: Vec<([u8; 20], u128)>,
}

impl Default for Genesis {
    /// Chain id, fee and gas limit that development tools expect; no account holds anything.
    fn default() -> Self {
        Self {
            chain_id: 31_337,
            timestamp: 0,
            base_fee: 1_000_000_000,
            gas_limit: 30_000_000,
            coinbase: [0; 20],
            accounts: Vec::new(),
        }
    }
}

impl Genesis {
    /// With another account that holds `balance` wei at the beginning.
    #[must_use]
    pub fn with_account(mut self, account: [u8; 20], balance: u128) -> Self {
        self.accounts.push((account, balance));
        self
    }

    pub(super) fn header(&self) -> Header {
        Header {
            beneficiary: self.coinbase.into(),
            gas_limit: self.gas_limit,
            timestamp: self.timestamp,
            base_fee_per_gas: Some(self.base_fee),
            ..empty_header()
        }
    }

    /// Later entries of an account replace earlier ones.
    pub(super) fn balances(&self) -> impl Iterator<Item = (Address, U256)> {
        self.accounts.iter().map(|(account, balance)| (Address::from(*account), U256::from(*balance)))
    }
}

/// When blocks are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sealing {
    /// One for each transaction, before it is acknowledged.
    #[default]
    Instant,
    /// Only by [`Chain::mine`](super::Chain::mine).
    Manual,
    /// At this interval, while transactions wait.
    Every(Duration),
}

/// Header of a block without transactions. There is no state root: the chain keeps no tree of its state.
pub(super) fn empty_header() -> Header {
    Header {
        state_root: B256::ZERO,
        transactions_root: EMPTY_ROOT_HASH,
        receipts_root: EMPTY_ROOT_HASH,
        withdrawals_root: Some(EMPTY_WITHDRAWALS),
        blob_gas_used: Some(0),
        excess_blob_gas: Some(0),
        parent_beacon_block_root: Some(B256::ZERO),
        requests_hash: Some(EMPTY_REQUESTS_HASH),
        ..Header::default()
    }
}
