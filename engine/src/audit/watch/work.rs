//! Computing answers: evidence is fetched from the node, checked, and replayed. How much of it at once, and how long
//! one server is waited for, is bounded by what is configured, whatever nodes send.

use std::{sync::Arc, time::Duration};

use ledger::{
    audit::{Chunk, seal},
    eip712::Domain,
    node::binding_digest,
};
use thiserror::Error;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, sleep, timeout},
};
use transport::NodeId;

use super::{
    desk::{Desk, Kept},
    known::Host,
    machine::{Machine, machine},
    source::{EvidenceSource, Wanted},
};
use crate::{
    audit::{
        duty::NO_ROWS, evidence::Evidence, plan::Digest, rows::CHUNK, show::FetchError, verify::VerifyError,
    },
    device::Device,
    message::row_bytes,
    model::{Model, ModelHash, Quantisation},
    payment::store::StoreError,
};

/// What is read beside the rows: a plan, as long as one may be, and the header.
const PLAN_BYTES: usize = (1 << 20) + 64;
/// Evidence is in memory three times for a moment: as it came, as it is read, and what follows from it.
const COPIES: usize = 3;
/// Slowest node that is waited for, in bytes per second, beside a while for its answer to begin.
const SLOWEST: usize = 256 << 10;
const BEGINNING: Duration = Duration::from_secs(20);
/// Waits between two attempts to get a case's evidence.
const PAUSES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(60)];
/// Longest time that is kept for the replay, once the node has had its time to answer.
const RESERVE: Duration = Duration::from_secs(1800);

/// Why there is no answer of this machine.
#[derive(Debug, Error)]
pub enum WorkError {
    /// The leaf is of a model that this machine does not have.
    #[error("it is of model {0}, which this machine does not have")]
    OtherModel(Digest),
    /// The session is too long for what is configured.
    #[error("it has {0} positions, more than this machine computes")]
    TooLong(u32),
    /// The model's files or the device are at fault.
    #[error("it cannot be computed here: {0}")]
    Compute(#[from] VerifyError),
    /// Two replays gave different rows, and neither the node's.
    #[error("this device computes differently each time")]
    Unstable,
    /// The answer cannot be kept, so it is not given either.
    #[error("the answer cannot be kept: {0}")]
    Store(#[from] StoreError),
    /// A thread of ours died.
    #[error("the replay's thread died")]
    Died,
}

/// Most that is computed at once.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Replays at once.
    pub at_once: usize,
    /// Longest session, in positions.
    pub positions: u32,
    /// Memory for evidence, in bytes; one piece of evidence always has room.
    pub memory: u64,
}

/// What computes.
#[derive(Debug)]
pub struct Worker {
    model: Arc<Model>,
    quantisation: Quantisation,
    hash: Arc<ModelHash>,
    machine: Box<dyn Machine>,
    budget: Budget,
    replays: Semaphore,
    /// In MiB.
    memory: Semaphore,
    room_mib: u32,
}

/// What an answer is wanted for.
pub(super) struct Task {
    pub(super) wanted: Wanted,
    /// The account's nodes.
    pub(super) hosts: Vec<Host>,
    /// The registry that their proofs are for.
    pub(super) registry: Domain,
    /// How long until the answer must be sent.
    pub(super) left: Duration,
    /// Whether the chain knows the leaf's model.
    pub(super) known_model: bool,
}

/// An answer, and how it came about.
pub(super) struct Answer {
    pub(super) kept: Kept,
    /// Whether it is the node's.
    pub(super) equal: bool,
    /// Time that the replay took; none without rows.
    pub(super) replay: Option<Duration>,
}

impl Worker {
    /// `hash` is the hash of `model` at `quantisation`.
    pub fn new(
        model: Arc<Model>,
        quantisation: Quantisation,
        hash: Arc<ModelHash>,
        device: Device,
        budget: Budget,
    ) -> Self {
        let room_mib = (budget.memory >> 20).clamp(1, 1 << 20) as u32;
        let (replays, memory) = (Semaphore::new(budget.at_once.max(1)), Semaphore::new(room_mib as usize));
        let machine = machine(model.clone(), hash.clone(), device, budget.at_once.max(1), budget.positions);
        Self { model, quantisation, hash, machine, budget, replays, memory, room_mib }
    }

    /// The model that it has, with its hash.
    pub(super) fn model(&self) -> (Arc<Model>, Arc<ModelHash>) {
        (self.model.clone(), self.hash.clone())
    }

    /// Most bytes that evidence of so many positions has.
    fn most_bytes(&self, to: u32) -> usize {
        let wide = row_bytes(self.model.config().hidden, self.quantisation.profile());
        wide.max(4).saturating_mul(to as usize).saturating_add(PLAN_BYTES)
    }

    /// Computes an answer, and writes it down. It gives up on a node that hands nothing over when the time that
    /// is left is what a replay may need.
    pub(super) async fn answer(
        self: Arc<Self>,
        task: Task,
        source: Arc<dyn EvidenceSource>,
        desk: Desk,
    ) -> Result<Answer, WorkError> {
        let (case, chunk) = (Digest(task.wanted.case), task.wanted.chunk);
        let found = match self.worth(&chunk, task.known_model)? {
            false => None,
            true => self.found(&task, source).await?,
        };
        let (result, replay, shown) = match found {
            Some((result, evidence, took)) => (result, Some(took), Some(evidence)),
            None => (NO_ROWS, None, None),
        };
        let equal = result != NO_ROWS && seal(&result) == chunk.sealed_roots;
        let kept = Kept { case, roots: Digest(result) };
        let evidence = shown.filter(|_| !equal);
        let put = tokio::task::spawn_blocking(move || desk.put(&kept, evidence.as_deref()));
        put.await.map_err(|_| WorkError::Died)??;
        Ok(Answer { kept, equal, replay })
    }

    /// Whether there can be anything to compute. A leaf of a model that the chain does not know, or of
    /// positions that no session has, comes without anything that an honest node could show.
    fn worth(&self, chunk: &Chunk, known_model: bool) -> Result<bool, WorkError> {
        if chunk.model != self.hash.hash {
            return if known_model { Err(WorkError::OtherModel(Digest(chunk.model))) } else { Ok(false) };
        }
        let begins = chunk.to.saturating_sub(1) / CHUNK * CHUNK;
        if chunk.to == 0 || chunk.to > self.model.config().max_positions || chunk.from != begins {
            return Ok(false);
        }
        if chunk.to > self.budget.positions { Err(WorkError::TooLong(chunk.to)) } else { Ok(true) }
    }

    /// What should have gone out; `None` if there is nothing to compute it from.
    async fn found(
        self: &Arc<Self>,
        task: &Task,
        source: Arc<dyn EvidenceSource>,
    ) -> Result<Option<([u8; 32], Arc<Evidence>, Duration)>, WorkError> {
        let Some((evidence, _room)) = self.obtained(task, source).await else { return Ok(None) };
        match self.computed(Arc::new(evidence), task.wanted.chunk).await {
            // It fits its leaf, and no model.
            Err(WorkError::Compute(VerifyError::OtherShape(what))) => {
                tracing::warn!(case = %Digest(task.wanted.case), what, "a leaf that no session has");
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    /// The evidence, if a node of the account hands it over before it is too late for a replay.
    pub(super) async fn obtained(
        &self,
        task: &Task,
        source: Arc<dyn EvidenceSource>,
    ) -> Option<(Evidence, SemaphorePermit<'_>)> {
        let mut wanted = task.wanted.clone();
        wanted.most_bytes = self.most_bytes(wanted.chunk.to);
        let hosts: Vec<&Host> = task.hosts.iter().filter(|host| is_bound(task, host)).collect();
        let give_up = Instant::now() + task.left.saturating_sub(RESERVE.min(task.left / 3));
        let mib = (wanted.most_bytes.saturating_mul(COPIES) >> 20).saturating_add(1);
        let mib = u32::try_from(mib).unwrap_or(u32::MAX).min(self.room_mib);
        let mut pause = PAUSES[0];
        loop {
            let room = self.memory.acquire_many(mib).await.ok()?;
            for host in &hosts {
                if let Some(evidence) = fetch(&wanted, host, &*source).await {
                    return Some((evidence, room));
                }
            }
            drop(room);
            if Instant::now() + pause >= give_up {
                return None;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES[1]);
        }
    }

    /// What should have gone out. A result that is not the node's is computed twice, since a card may err once.
    async fn computed(
        self: &Arc<Self>,
        evidence: Arc<Evidence>,
        chunk: Chunk,
    ) -> Result<([u8; 32], Arc<Evidence>, Duration), WorkError> {
        let _turn = self.replays.acquire().await.map_err(|_| WorkError::Died)?;
        let begun = Instant::now();
        let first = self.replay(evidence.clone()).await?;
        let took = begun.elapsed();
        if seal(&first) == chunk.sealed_roots {
            return Ok((first, evidence, took));
        }
        let second = self.replay(evidence.clone()).await?;
        if seal(&second) == chunk.sealed_roots {
            tracing::error!("this device computed wrong once: it should be tested (dolphin doctor)");
            return Ok((second, evidence, took));
        }
        if first == second { Ok((first, evidence, took)) } else { Err(WorkError::Unstable) }
    }

    /// The hash over what should have gone out, as a leaf has it.
    ///
    /// # Errors
    /// [`WorkError::Compute`] if it cannot be computed with this model and device.
    pub async fn replay(self: &Arc<Self>, evidence: Arc<Evidence>) -> Result<[u8; 32], WorkError> {
        let worker = self.clone();
        let replay = move || worker.machine.roots(&evidence);
        Ok(tokio::task::spawn_blocking(replay).await.map_err(|_| WorkError::Died)??)
    }
}

/// Whether a node says that it is the account's.
fn is_bound(task: &Task, host: &Host) -> bool {
    let digest = binding_digest(&task.registry, &host.node, &task.wanted.account);
    let proof = host.proof.as_slice().try_into();
    proof.is_ok_and(|proof| NodeId(host.node).verify(&digest, proof))
}

/// Evidence from one node that fits what was opened.
async fn fetch(wanted: &Wanted, host: &Host, source: &dyn EvidenceSource) -> Option<Evidence> {
    let longest = BEGINNING + Duration::from_secs((wanted.most_bytes / SLOWEST) as u64);
    let fetched = timeout(longest, source.fetch(wanted.clone(), host.clone())).await;
    let checked = match fetched {
        Ok(Ok(evidence)) => {
            let chunk = wanted.chunk;
            // All of it is hashed.
            let check = move || evidence.check(&chunk).map(|()| evidence).map_err(FetchError::from);
            let checked = tokio::task::spawn_blocking(check).await;
            checked.unwrap_or_else(|error| Err(FetchError::Unreachable(error.to_string())))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(FetchError::Unreachable(format!("it sends nothing whole in {} s", longest.as_secs()))),
    };
    match checked {
        Ok(evidence) => Some(evidence),
        Err(error) => {
            let (case, node) = (Digest(wanted.case), NodeId(host.node));
            tracing::info!(%case, node = %node.short(), %error, "no evidence yet");
            None
        }
    }
}
