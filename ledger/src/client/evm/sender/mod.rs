//! One task per account that owns its nonces.
//!
//! It prepares orders one after another (gas, fees, funds), gives each the next nonce, keeps it in a file, sends
//! it, and watches until it is confirmed: it sends again what nodes forget, offers more for what is stuck, and
//! waits for nodes that are down. [`queue`] decides what to do.

mod chain;
mod queue;
mod store;
mod task;
#[cfg(test)]
mod tests;
mod transaction;

use std::{io::ErrorKind, path::Path, time::Duration};

use ethers_core::types::TransactionReceipt;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};

use self::{chain::Chain, store::Store, task::Task};
pub(super) use self::{chain::call_params, transaction::unsigned};
use super::{calls::Order, rpc::Wire};
use crate::client::{Error, Key, show_address};

/// Orders that wait to be prepared; more must wait outside.
const WAITING: usize = 256;
/// How long a sender that has ended may hold its file.
const LETTING_GO: Duration = Duration::from_secs(2);

/// How a sender goes about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// Blocks, its own included, until an order is confirmed.
    pub(super) confirmations: u64,
    /// How often the chain is looked at.
    pub(super) poll: Duration,
    /// How long an order is stuck until more is offered.
    pub(super) raise_after: Duration,
    /// How long an order may wait for a node or for lower fees before it has a nonce.
    pub(super) patience: Duration,
    /// Most wei for a unit of gas.
    pub(super) max_fee_wei: u128,
}

/// A sender's front.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    requests: mpsc::Sender<Request>,
}

/// Until when somebody waits for an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// It is in a block.
    Included,
    /// It is confirmed.
    Confirmed,
}

#[derive(Debug)]
struct Request {
    order: Order,
    until: Until,
    reply: oneshot::Sender<Result<TransactionReceipt, Error>>,
}

/// Opens the file, once whoever had it before and is about to end has let go of it.
async fn open(
    directory: Option<&Path>,
    name: &str,
    genesis: [u8; 32],
) -> Result<(Store, Vec<queue::Entry>), Error> {
    let begun = Instant::now();
    loop {
        match Store::open(directory, name, genesis) {
            Err(Error::Store { error, .. })
                if error.kind() == ErrorKind::WouldBlock && begun.elapsed() < LETTING_GO =>
            {
                sleep(Duration::from_millis(50)).await;
            }
            opened => return opened,
        }
    }
}

impl Sender {
    /// Starts the task, with what an earlier one left in `directory`. It ends once all fronts are gone and
    /// everything is confirmed.
    pub(super) async fn start(
        wire: Wire,
        key: Key,
        chain_id: u64,
        manner: Manner,
        directory: Option<&Path>,
    ) -> Result<Self, Error> {
        let genesis = chain::genesis(&wire).await?;
        let chain = Chain::new(wire.brief(), key.address());
        let name = format!("{}-{chain_id}", show_address(&key.address()));
        let (store, entries) = open(directory, &name, genesis).await?;
        let (requests, received) = mpsc::channel(WAITING);
        tokio::spawn(Task::new(chain, key, chain_id, manner, store, entries).run(received));
        Ok(Self { requests })
    }

    /// Has an order done. Its receipt also comes if it did nothing ([`Error::Reverted`] is for callers to say).
    pub(super) async fn send(&self, order: Order, until: Until) -> Result<TransactionReceipt, Error> {
        let (reply, answer) = oneshot::channel();
        let request = Request { order, until, reply };
        self.requests.send(request).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }
}
