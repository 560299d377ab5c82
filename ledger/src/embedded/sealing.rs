//! The chain and the file it is kept in: what is made is written before it is part of the chain.

use std::{path::Path, sync::Arc};

use alloy_eips::eip2718::Encodable2718;

use super::{
    admission,
    block::{Draft, Signed},
    error::RpcError,
    evm::Environment,
    genesis::Genesis,
    journal::{BlockRecord, Journal, OpenError, Record, Replay},
    state::State,
};

/// A chain, in memory alone or with the file that holds it.
pub(super) struct Kept {
    pub(super) state: State,
    journal: Option<Journal>,
}

impl Kept {
    pub(super) fn in_memory(genesis: Genesis, now: u64) -> Self {
        let mut state = State::new(genesis);
        state.catch_up(now);
        Self { state, journal: None }
    }

    /// Makes every block in the file again.
    pub(super) fn open(directory: &Path, genesis: Genesis, now: u64) -> Result<Self, OpenError> {
        let mut replay = Replay::open(directory, &genesis)?;
        let mut state = State::new(genesis);
        while let Some(record) = replay.next()? {
            match record {
                Record::Genesis(_) => return Err(differs(&state, "another genesis follows")),
                Record::Waiting(raw) => {
                    let transaction = decode(&state, &raw)?;
                    state.wait(transaction);
                }
                Record::Block(record) => remake(&mut state, &record)?,
            }
        }
        state.catch_up(now);
        Ok(Self { state, journal: Some(replay.finish()?) })
    }

    pub(super) fn submit(&mut self, raw: &[u8], is_instant: bool, now: u64) -> Result<[u8; 32], RpcError> {
        let transaction = self.state.admit(raw, now)?;
        let (hash, sender) = (*transaction.tx_hash(), transaction.signer());
        if is_instant && self.state.is_next(&transaction) {
            self.seal_one(transaction, now)?;
            while let Some(next) = self.state.follower(sender) {
                // It waits on, or is forgotten if it never can run; the one that was asked for is done.
                if self.seal_one(next, now).is_err() {
                    break;
                }
            }
        } else {
            self.state.check_ahead(&transaction, now)?;
            self.write(|| Record::Waiting(raw.to_vec()))?;
            self.state.wait(transaction);
        }
        Ok(hash.0)
    }

    /// Makes a block of what waits, also of nothing.
    pub(super) fn mine(&mut self, now: u64) -> Result<u64, RpcError> {
        let environment = self.state.next_environment(now);
        let draft = self.state.draft(&environment, self.state.pool.in_order())?;
        self.seal(&environment, draft, now)?;
        Ok(environment.number)
    }

    /// Makes blocks of what waited when the chain was closed and can run, one by one.
    pub(super) fn seal_ready(&mut self, now: u64) {
        for transaction in self.state.pool.in_order() {
            if self.state.is_next(&transaction) {
                // What cannot run now is as it was when the chain was closed.
                let _ = self.seal_one(transaction, now);
            }
        }
    }

    pub(super) fn snapshot(&mut self) -> Result<u64, RpcError> {
        if self.journal.is_some() {
            return Err(RpcError::input("a chain that is kept on disk has no snapshots"));
        }
        self.state.snapshot()
    }

    /// Makes a block of one transaction, or says why it cannot be in one.
    fn seal_one(&mut self, transaction: Arc<Signed>, now: u64) -> Result<(), RpcError> {
        let hash = *transaction.tx_hash();
        let environment = self.state.next_environment(now);
        let mut draft = self.state.draft(&environment, [transaction])?;
        if let Some((_, error)) = draft.refused.pop() {
            self.state.pool.forget(&hash);
            return Err(error);
        }
        if draft.block.transactions.is_empty() {
            return Err(RpcError::rejected("the transaction cannot be part of the next block"));
        }
        self.seal(&environment, draft, now)
    }

    fn seal(&mut self, environment: &Environment, draft: Draft, now: u64) -> Result<(), RpcError> {
        self.write(|| {
            let encoded = |transaction: &Signed| transaction.inner().encoded_2718();
            let transactions = draft.block.transactions.iter();
            Record::Block(BlockRecord {
                number: environment.number,
                timestamp: environment.timestamp,
                base_fee: environment.base_fee,
                gas_limit: environment.gas_limit,
                coinbase: environment.coinbase.into(),
                randomness: environment.randomness.into(),
                transactions: transactions.map(|included| encoded(&included.transaction)).collect(),
                hash: draft.block.hash.into(),
            })
        })?;
        self.state.adopt(draft, now);
        Ok(())
    }

    fn write(&mut self, record: impl FnOnce() -> Record) -> Result<(), RpcError> {
        match &mut self.journal {
            Some(journal) => journal.append(&record()),
            None => Ok(()),
        }
    }
}

fn remake(state: &mut State, record: &BlockRecord) -> Result<(), OpenError> {
    if record.number != state.head().header.number + 1 {
        return Err(differs(state, "the file goes on with another block"));
    }
    let transactions: Vec<Arc<Signed>> =
        record.transactions.iter().map(|raw| decode(state, raw)).collect::<Result<_, _>>()?;
    let draft = state
        .draft(&record.environment(), transactions)
        .map_err(|error| differs(state, &error.to_string()))?;
    if draft.block.hash != record.hash {
        return Err(differs(state, &format!("its hash is {}", draft.block.hash)));
    }
    state.adopt(draft, record.timestamp);
    Ok(())
}

fn decode(state: &State, raw: &[u8]) -> Result<Arc<Signed>, OpenError> {
    let decoded = admission::decode(raw, state.genesis.chain_id);
    decoded.map(Arc::new).map_err(|error| differs(state, &error.to_string()))
}

fn differs(state: &State, reason: &str) -> OpenError {
    OpenError::Differs { number: state.head().header.number + 1, reason: reason.to_owned() }
}
