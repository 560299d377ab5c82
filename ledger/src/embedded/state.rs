//! The chain's state and its decisions. Nothing here reads a clock.

use std::{collections::HashMap, sync::Arc};

use alloy_consensus::Transaction;
use alloy_eips::{eip1559::BaseFeeParams, eip2718::Encodable2718};
use alloy_primitives::{Address, B256, TxHash, U256, keccak256};
use revm::{DatabaseCommit, state::AccountInfo};

use super::{
    admission,
    block::{self, Block, Draft, Included, Signed},
    error::RpcError,
    evm::{self, Accounts, Checks, Environment},
    genesis::Genesis,
    pool::{NONCES_AHEAD, Pool},
};

/// How many blocks back a contract can ask for a hash.
const BLOCK_HASHES: u64 = 256;
/// Most states that can be returned to at a time.
const SNAPSHOTS: usize = 16;
/// Furthest that time can be moved ahead, in seconds: a thousand years.
const FURTHEST_TIME: u64 = 1000 * 365 * 86_400;
/// What the chain's history and state, and all that ever waited, may take, about, in bytes.
const CHAIN_BYTES: u64 = 2 << 30;

/// Everything there is to know about a chain.
pub(super) struct State {
    pub(super) genesis: Genesis,
    pub(super) accounts: Accounts,
    pub(super) blocks: Vec<Arc<Block>>,
    pub(super) pool: Pool,
    numbers: HashMap<B256, u64>,
    places: HashMap<TxHash, (u64, usize)>,
    clock: Clock,
    bytes: u64,
    snapshots: Vec<Snapshot>,
}

/// Where block times differ from the time of day.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    ahead: u64,
    next: Option<u64>,
}

struct Snapshot {
    accounts: Accounts,
    blocks: usize,
    pool: Pool,
    clock: Clock,
    bytes: u64,
}

impl State {
    pub(super) fn new(genesis: Genesis) -> Self {
        let mut accounts = Accounts::default();
        for (address, balance) in genesis.balances() {
            accounts.insert_account_info(address, AccountInfo { balance, ..AccountInfo::default() });
        }
        let mut state = Self {
            accounts,
            blocks: Vec::new(),
            pool: Pool::default(),
            numbers: HashMap::new(),
            places: HashMap::new(),
            clock: Clock::default(),
            bytes: 0,
            snapshots: Vec::new(),
            genesis,
        };
        let first = Block::new(state.genesis.header(), Vec::new());
        state.append(first);
        state
    }

    pub(super) fn head(&self) -> &Arc<Block> {
        self.blocks.last().expect("there is a first block from the beginning, and none is taken away")
    }

    pub(super) fn block(&self, number: u64) -> Option<&Arc<Block>> {
        self.blocks.get(usize::try_from(number).ok()?)
    }

    pub(super) fn number_of(&self, hash: &B256) -> Option<u64> {
        self.numbers.get(hash).copied()
    }

    /// The block that holds a transaction, and the transaction's index in it.
    pub(super) fn place_of(&self, hash: &TxHash) -> Option<(&Arc<Block>, usize)> {
        let (number, index) = *self.places.get(hash)?;
        Some((self.block(number)?, index))
    }

    /// What a block would say if it were made `now`, in seconds since 1970.
    pub(super) fn next_environment(&self, now: u64) -> Environment {
        let head = self.head();
        let time = self.clock.next.unwrap_or_else(|| now.saturating_add(self.clock.ahead));
        Environment {
            number: head.header.number + 1,
            timestamp: time.max(head.header.timestamp),
            base_fee: self.next_base_fee(),
            gas_limit: self.genesis.gas_limit,
            coinbase: self.genesis.coinbase.into(),
            randomness: keccak256(head.hash),
        }
    }

    /// Fee per gas of the next block, by EIP-1559 but for the first, which has the genesis block's.
    pub(super) fn next_base_fee(&self) -> u64 {
        let header = &self.head().header;
        if header.number == 0 {
            return self.genesis.base_fee;
        }
        header.next_block_base_fee(BaseFeeParams::ethereum()).unwrap_or_default()
    }

    /// Decides whether a transaction may wait for a block that is made `now` or later.
    pub(super) fn admit(&self, raw: &[u8], now: u64) -> Result<Arc<Signed>, RpcError> {
        let transaction = admission::decode(raw, self.genesis.chain_id)?;
        let hash = transaction.tx_hash();
        if self.pool.find(hash).is_some() {
            return Err(RpcError::rejected("already known"));
        }
        if self.bytes > CHAIN_BYTES {
            return Err(RpcError::new(RpcError::LIMIT, "the chain is full"));
        }
        let sender = self.account(transaction.signer());
        let nonce = transaction.nonce();
        if nonce < sender.nonce {
            return Err(RpcError::nonce_too_low(sender.nonce, nonce));
        }
        if nonce - sender.nonce > NONCES_AHEAD {
            let message = format!("nonce too high: next nonce {}, tx nonce {nonce}", sender.nonce);
            return Err(RpcError::rejected(message));
        }
        if transaction.gas_limit() > self.genesis.gas_limit {
            return Err(RpcError::rejected("exceeds block gas limit"));
        }
        let environment = self.next_environment(now);
        if transaction.max_fee_per_gas() < environment.base_fee.into() {
            return Err(RpcError::fee_too_low(transaction.max_fee_per_gas(), environment.base_fee));
        }
        let cost = admission::highest_cost(&transaction).unwrap_or(U256::MAX);
        if sender.balance < cost {
            return Err(RpcError::insufficient_funds(sender.balance, cost));
        }
        self.pool.check(&transaction)?;
        Ok(Arc::new(transaction))
    }

    /// Whether a transaction that waits for others could run at all, the nonce apart.
    pub(super) fn check_ahead(&self, transaction: &Signed, now: u64) -> Result<(), RpcError> {
        let environment = self.next_environment(now);
        let asked = evm::signed(transaction);
        let chain_id = self.genesis.chain_id;
        let mut accounts = revm::database::CacheDB::new(&self.accounts);
        evm::run(&mut accounts, chain_id, &environment, asked, Checks::AllButNonce)?;
        Ok(())
    }

    /// Lets an admitted transaction wait.
    pub(super) fn wait(&mut self, transaction: Arc<Signed>) {
        self.bytes += transaction.inner().encode_2718_len() as u64;
        self.pool.add(transaction);
    }

    /// Whether nothing has to come before `transaction`.
    pub(super) fn is_next(&self, transaction: &Signed) -> bool {
        self.account(transaction.signer()).nonce == transaction.nonce()
    }

    /// The waiting transaction of `sender` that can run next.
    pub(super) fn follower(&self, sender: Address) -> Option<Arc<Signed>> {
        let nonce = self.account(sender).nonce;
        self.pool.get(&sender, nonce).cloned()
    }

    pub(super) fn account(&self, address: Address) -> AccountInfo {
        evm::account(&self.accounts, address)
    }

    /// The next block, made of what can run of `candidates`.
    pub(super) fn draft(
        &self,
        environment: &Environment,
        candidates: impl IntoIterator<Item = Arc<Signed>>,
    ) -> Result<Draft, RpcError> {
        let head = self.head();
        block::draft(&self.accounts, self.genesis.chain_id, head.hash, environment, candidates)
    }

    /// Makes a draft the chain's newest block.
    pub(super) fn adopt(&mut self, draft: Draft, now: u64) {
        for changes in draft.changes {
            self.accounts.commit(changes);
        }
        for included in &draft.block.transactions {
            self.pool.remove(included.transaction.signer(), included.transaction.nonce());
        }
        for (hash, _) in &draft.refused {
            self.pool.forget(hash);
        }
        if let Some(next) = self.clock.next.take() {
            self.clock.ahead = next.saturating_sub(now);
        }
        self.append(draft.block);
    }

    /// Lets time go on from the newest block where that is later than `now`.
    pub(super) fn catch_up(&mut self, now: u64) {
        self.clock.ahead = self.head().header.timestamp.saturating_sub(now);
    }

    /// Moves the time of later blocks ahead. Returns by how many seconds it is ahead in all.
    pub(super) fn advance(&mut self, seconds: u64) -> Result<u64, RpcError> {
        let ahead = self.clock.ahead.saturating_add(seconds);
        if ahead > FURTHEST_TIME {
            return Err(RpcError::params("time cannot be moved so far"));
        }
        self.clock.ahead = ahead;
        Ok(ahead)
    }

    /// Fixes the time of the next block; those after it follow.
    pub(super) fn set_next_time(&mut self, time: u64, now: u64) -> Result<(), RpcError> {
        let earliest = self.head().header.timestamp;
        if time < earliest || time.saturating_sub(now) > FURTHEST_TIME {
            return Err(RpcError::params(format!("time {time} is before {earliest}, or too far ahead")));
        }
        self.clock.next = Some(time);
        Ok(())
    }

    pub(super) fn snapshot(&mut self) -> Result<u64, RpcError> {
        if self.snapshots.len() >= SNAPSHOTS {
            return Err(RpcError::new(RpcError::LIMIT, "too many snapshots"));
        }
        self.snapshots.push(Snapshot {
            accounts: self.accounts.clone(),
            blocks: self.blocks.len(),
            pool: self.pool.clone(),
            clock: self.clock,
            bytes: self.bytes,
        });
        Ok(self.snapshots.len() as u64)
    }

    /// Returns to a snapshot, which is used up with those after it. Says whether it existed.
    pub(super) fn revert(&mut self, id: u64) -> bool {
        let index = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
        let Some(index) = index.filter(|index| *index < self.snapshots.len()) else { return false };
        let Some(snapshot) = self.snapshots.drain(index..).next() else { return false };
        for block in self.blocks.drain(snapshot.blocks..) {
            self.numbers.remove(&block.hash);
            for included in &block.transactions {
                self.places.remove(included.transaction.tx_hash());
            }
        }
        self.accounts = snapshot.accounts;
        self.pool = snapshot.pool;
        self.clock = snapshot.clock;
        self.bytes = snapshot.bytes;
        true
    }

    fn append(&mut self, block: Block) {
        let number = block.header.number;
        for (index, included) in block.transactions.iter().enumerate() {
            self.places.insert(*included.transaction.tx_hash(), (number, index));
        }
        self.numbers.insert(block.hash, number);
        let hashes = &mut self.accounts.cache.block_hashes;
        hashes.insert(U256::from(number), block.hash);
        if let Some(oldest) = number.checked_sub(BLOCK_HASHES) {
            hashes.remove(&U256::from(oldest));
        }
        self.bytes += 1024 + block.transactions.iter().map(weight).sum::<u64>();
        self.blocks.push(Arc::new(block));
    }
}

/// What a transaction takes, about, in bytes: itself, its logs, and the state that its gas can have paid for.
fn weight(included: &Included) -> u64 {
    let transaction = included.transaction.inner().encode_2718_len();
    let logs: usize = included.receipt.logs().iter().map(|log| 256 + log.data.data.len()).sum();
    1024 + (transaction + logs) as u64 + included.gas_used / 100
}
