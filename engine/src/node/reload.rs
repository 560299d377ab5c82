//! A node that is told to hold other layers: it ends what it serves, gives up its stage, loads another and joins
//! with that. Process, id and links stay.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use kernels::backend::Backend;
use tokio::{sync::mpsc, sync::watch, task::JoinHandle};
use transport::NodeId;

use super::{
    Desk, NodeError,
    worker::{Output, StageLoad, Worker},
};
use crate::{
    audit::recorder::Audit,
    local::{LoadError, StageBudget, load_stage, shard_bytes},
    message::{Assign, Cannot, LoadRefusal, Message, clip},
    model::{Model, Quantisation, Shard},
    stage::StageLimits,
};

/// Longest time that what is over gets to be signed before the stage is given up: as long as gateways wait.
const SIGNING: Duration = Duration::from_secs(5);
/// How often it is looked whether it is.
pub(super) const SIGNING_LOOK: Duration = Duration::from_millis(5);

/// Loads layers of the model that a node serves.
#[derive(Clone)]
pub struct Loader(Arc<dyn Load>);

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").finish_non_exhaustive()
    }
}

/// Hides what stages compute on.
trait Load: Send + Sync {
    /// Bytes of a shard's weights; `None` for layers that the model has not.
    fn bytes(&self, shard: &Shard) -> Option<u64>;
    /// Loads a shard into a worker that signs with `audit`, if with anything, and reports to `report`.
    fn load(
        &self,
        shard: &Shard,
        audit: Option<Audit>,
        report: watch::Sender<StageLoad>,
    ) -> Result<Loaded, LoadRefusal>;
}

/// Where weights come from, and where they go.
struct Source<B> {
    model: Arc<Model>,
    quantisation: Quantisation,
    budget: StageBudget,
    backend: B,
}

impl<B: Backend + Clone> Load for Source<B> {
    fn bytes(&self, shard: &Shard) -> Option<u64> {
        let known = !shard.layers.is_empty() && shard.layers.end <= self.model.config().layers;
        known.then(|| shard_bytes(&self.model, shard, self.quantisation))
    }

    fn load(
        &self,
        shard: &Shard,
        audit: Option<Audit>,
        report: watch::Sender<StageLoad>,
    ) -> Result<Loaded, LoadRefusal> {
        let begun = Instant::now();
        let backend = self.backend.clone();
        let stage = load_stage(&self.model, shard, self.quantisation, &self.budget, backend, &|_| ())?;
        let weight_bytes = shard_bytes(&self.model, shard, self.quantisation);
        let limits = *stage.limits();
        let (worker, outputs) = Worker::start(stage, audit, report)
            .map_err(|error| LoadRefusal::Device(clip(&error.to_string())))?;
        let rate = load_rate(weight_bytes, begun.elapsed());
        Ok(Loaded { worker, outputs, shard: shard.clone(), limits, weight_bytes, rate })
    }
}

/// A stage at work.
pub(super) struct Loaded {
    pub(super) worker: Worker,
    pub(super) outputs: mpsc::Receiver<Output>,
    pub(super) shard: Shard,
    pub(super) limits: StageLimits,
    weight_bytes: u64,
    /// Bytes of weights loaded in a second.
    rate: u64,
}

/// What came of a load: the stage there is now, and why it is not the one that was assigned.
pub(super) struct Outcome {
    gateway: NodeId,
    assigned: Shard,
    loaded: Result<Loaded, LoadRefusal>,
    refusal: Option<LoadRefusal>,
}

/// The layers a gateway has assigned.
#[derive(Debug)]
pub(super) struct Assigned {
    pub(super) gateway: NodeId,
    pub(super) shard: Shard,
}

impl Loader {
    /// Loads from `model`, onto devices like `backend`.
    pub fn new<B: Backend + Clone>(
        model: Arc<Model>,
        quantisation: Quantisation,
        budget: StageBudget,
        backend: B,
    ) -> Self {
        Self(Arc::new(Source { model, quantisation, budget, backend }))
    }
}

/// Bytes in a second, at least one.
pub fn load_rate(bytes: u64, took: std::time::Duration) -> u64 {
    ((bytes as f64 / took.as_secs_f64().max(1e-6)) as u64).max(1)
}

impl From<LoadError> for LoadRefusal {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Model(error) => Self::Files(clip(&error.to_string())),
            LoadError::Stage(error) => Self::Device(clip(&error.to_string())),
        }
    }
}

/// Waits for a load that is under way.
pub(super) async fn finished(task: &mut Option<JoinHandle<Outcome>>) -> Option<Outcome> {
    match task {
        Some(task) => task.await.ok(),
        None => std::future::pending().await,
    }
}

/// Waits for what the stage reports.
pub(super) async fn reported(outputs: &mut Option<mpsc::Receiver<Output>>) -> Option<Output> {
    match outputs {
        Some(outputs) => outputs.recv().await,
        None => std::future::pending().await,
    }
}

impl Desk {
    /// A gateway tells the node to hold other layers.
    pub(super) fn assigned(&mut self, gateway: NodeId, Assign { shard }: Assign) {
        match self.may_load(&shard) {
            Ok(()) if self.weights.is_some() => self.fetch(gateway, shard),
            Ok(()) => self.assigned = Some(Assigned { gateway, shard }),
            Err(reason) => self.cannot(gateway, shard, reason),
        }
        self.reload();
    }

    fn may_load(&self, shard: &Shard) -> Result<(), LoadRefusal> {
        let offer = &self.join.offer;
        let loader = self.loader.as_ref().filter(|_| offer.movable && self.gateways.len() == 1);
        let loader = loader.ok_or(LoadRefusal::Fixed)?;
        let fetches = self.weights.is_some() && self.fetching.is_some();
        if self.assigned.is_some() || self.loading.is_some() || fetches {
            return Err(LoadRefusal::Busy);
        }
        let needed = loader.0.bytes(shard).ok_or(LoadRefusal::Unknown)?;
        let lent = offer.weight_bytes;
        if needed > lent { Err(LoadRefusal::TooLarge { needed, lent }) } else { Ok(()) }
    }

    pub(super) fn cannot(&mut self, gateway: NodeId, shard: Shard, reason: LoadRefusal) {
        tracing::warn!(layers = ?shard.layers, %reason, "not loading what the gateway assigned");
        self.peers.send(gateway, None, Message::Cannot(Cannot { shard, reason }));
    }

    /// Begins to load what was assigned once the last session is over and signed.
    pub(super) fn reload(&mut self) {
        if self.state.sessions() > 0 || self.loading.is_some() || self.assigned.is_none() {
            self.signing_since = None;
            return;
        }
        if self.worker.as_ref().is_some_and(Worker::is_signing) {
            // The stage before may be gone, and then what it should have signed does not come.
            let since = *self.signing_since.get_or_insert_with(Instant::now);
            if since.elapsed() < SIGNING {
                return;
            }
        }
        self.signing_since = None;
        // What was signed last may not be sent yet.
        while let Some(output) = self.outputs.as_mut().and_then(|outputs| outputs.try_recv().ok()) {
            self.state.worked(output, Instant::now());
        }
        self.act();
        let (Some(Assigned { gateway, shard }), Some(loader)) = (self.assigned.take(), self.loader.clone())
        else {
            return;
        };
        tracing::info!(layers = ?shard.layers, before = ?self.join.shard.layers, "loading other layers");
        let (worker, before, report) = (self.worker.take(), self.join.shard.clone(), self.load.clone());
        let audit = self.audit.clone();
        self.outputs = None;
        let nothing = Shard { layers: 0..0, embedding: false, head: false };
        self.state.holds(nothing, &self.limits);
        self.loading = Some(tokio::task::spawn_blocking(move || {
            // Its weights go before others come: what is lent is not lent twice.
            let ended = worker.map_or(Ok(()), Worker::stop);
            let assigned = shard.clone();
            let loaded = match ended {
                Ok(()) => loader.0.load(&shard, audit.clone(), report.clone()),
                Err(error) => Err(LoadRefusal::Device(clip(&error.to_string()))),
            };
            let Err(refusal) = loaded else { return Outcome { gateway, assigned, loaded, refusal: None } };
            let loaded = loader.0.load(&before, audit, report);
            Outcome { gateway, assigned, loaded, refusal: Some(refusal) }
        }));
    }

    /// Goes on with the stage that was loaded.
    pub(super) fn reloaded(&mut self, outcome: Option<Outcome>) -> Result<(), NodeError> {
        self.loading = None;
        let Outcome { gateway, assigned, loaded, refusal } = outcome.ok_or(NodeError::StageDied)?;
        let Loaded { worker, outputs, shard, limits, weight_bytes, rate } =
            loaded.map_err(NodeError::Reload)?;
        tracing::info!(layers = ?shard.layers, "loaded");
        (self.worker, self.outputs, self.limits) = (Some(worker), Some(outputs), limits);
        self.state.holds(shard.clone(), &limits);
        self.join.shard = shard;
        self.join.limit(&limits);
        self.join.weight_bytes = weight_bytes;
        self.join.offer.load_rate = Some(rate);
        self.told_ns = 0;
        let up: Vec<NodeId> =
            self.gateways.iter().filter(|(_, gateway)| gateway.up).map(|(id, _)| *id).collect();
        up.into_iter().for_each(|id| self.say_join(id));
        // After the stage is there: joining anew ends whatever the gateway sent before.
        if let Some(reason) = refusal {
            self.cannot(gateway, assigned, reason);
        }
        Ok(())
    }
}
