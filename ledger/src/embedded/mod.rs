//! A chain of one's own, in this process: the machine that runs contracts, blocks, and the JSON-RPC that
//! clients speak. What `docs/contracts.md` calls the embedded chain.
//!
//! ```text
//! genesis    what a chain begins with
//! admission  what a transaction must be
//! pool       transactions that wait
//! evm        running transactions
//! block      blocks made of them
//! state      all of it together; decides, reads no clock
//! journal    the file that it is kept in
//! sealing    blocks made, written, then part of the chain
//! rpc, views what is asked and answered
//! server     the same over HTTP
//! beacon     rounds of a key of its own beside it
//! ```

mod admission;
mod beacon;
mod block;
mod error;
mod evm;
mod genesis;
mod journal;
mod pool;
mod rpc;
mod sealing;
mod server;
mod state;
#[cfg(test)]
mod tests;
mod views;

use std::{
    path::Path,
    sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak},
    thread,
    time::{Duration, SystemTime},
};

use sealing::Kept;

pub use beacon::LocalBeacon;
pub use error::RpcError;
pub use genesis::{Genesis, Sealing};
pub use journal::OpenError;
pub use server::{Server, serve, serve_with_beacon};

/// A chain. Clones are handles of the same one.
#[derive(Clone)]
pub struct Chain {
    shared: Arc<Shared>,
}

struct Shared {
    chain: RwLock<Kept>,
    sealing: Sealing,
}

impl Chain {
    /// A chain that ends with its last handle.
    pub fn in_memory(genesis: Genesis, sealing: Sealing) -> Self {
        Self::with(Kept::in_memory(genesis, now()), sealing)
    }

    /// The chain in `directory`, or a new one if there is none. Until the last handle is gone, nobody else can
    /// open it. What [`submit`](Chain::submit) and [`mine`](Chain::mine) have answered is on disk.
    pub fn open(directory: &Path, genesis: Genesis, sealing: Sealing) -> Result<Self, OpenError> {
        let mut kept = Kept::open(directory, genesis, now())?;
        if sealing == Sealing::Instant {
            kept.seal_ready(now());
        }
        Ok(Self::with(kept, sealing))
    }

    fn with(kept: Kept, sealing: Sealing) -> Self {
        let shared = Arc::new(Shared { chain: RwLock::new(kept), sealing });
        if let Sealing::Every(interval) = sealing {
            let chain = Arc::downgrade(&shared);
            thread::spawn(move || seal_every(interval, &chain));
        }
        Self { shared }
    }

    /// Takes a signed transaction, encoded, and returns its hash. With [`Sealing::Instant`] it is in a block when
    /// this returns, unless its nonce is ahead of its sender's account.
    pub fn submit(&self, raw: &[u8]) -> Result<[u8; 32], RpcError> {
        let is_instant = self.shared.sealing == Sealing::Instant;
        self.write()?.submit(raw, is_instant, now())
    }

    /// Makes a block of what waits, also of nothing. Returns its number.
    pub fn mine(&self) -> Result<u64, RpcError> {
        self.write()?.mine(now())
    }

    /// The time that the next block would have, in seconds since 1970.
    pub fn time(&self) -> Result<u64, RpcError> {
        Ok(self.read()?.state.next_environment(now()).timestamp)
    }

    /// Moves the time of later blocks ahead; time runs on from there. Returns by how much it is ahead in all,
    /// in seconds.
    pub fn advance_time(&self, seconds: u64) -> Result<u64, RpcError> {
        self.write()?.state.advance(seconds)
    }

    /// Fixes the time of the next block, in seconds since 1970; those after it follow.
    pub fn set_next_time(&self, time: u64) -> Result<(), RpcError> {
        self.write()?.state.set_next_time(time, now())
    }

    /// Remembers how things stand, to [`revert`](Chain::revert) to. Only of a chain in memory.
    pub fn snapshot(&self) -> Result<u64, RpcError> {
        self.write()?.snapshot()
    }

    /// Returns to a snapshot, which is used up with those taken after it. Says whether there was such a one.
    pub fn revert(&self, snapshot: u64) -> Result<bool, RpcError> {
        Ok(self.write()?.state.revert(snapshot))
    }

    fn read(&self) -> Result<RwLockReadGuard<'_, Kept>, RpcError> {
        self.shared.chain.read().map_err(|_| broken())
    }

    fn write(&self) -> Result<RwLockWriteGuard<'_, Kept>, RpcError> {
        self.shared.chain.write().map_err(|_| broken())
    }
}

fn seal_every(interval: Duration, chain: &Weak<Shared>) {
    loop {
        thread::sleep(interval);
        let Some(shared) = chain.upgrade() else { return };
        let chain = Chain { shared };
        if chain.read().is_ok_and(|kept| !kept.state.pool.is_empty()) {
            // What waits stays where it is if this fails, and the next turn tries again.
            let _ = chain.mine();
        }
    }
}

fn broken() -> RpcError {
    RpcError::internal("the chain stopped after a fault of its own")
}

/// The time of day, in seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
