//! The swarm: a gateway on a simulated network, and seats for nodes that come and go.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use anyhow::Context;
use engine::{
    audit::{
        commitment::Signer,
        plan::Digest,
        recorder::Audit,
        store::{ReceiptStore, StoreLimits},
    },
    device::Device,
    front::planned,
    local::{StageBudget, load_stage, shard_bytes},
    message::{KvMemory, Offer},
    model::{Model, Quantisation, Shard},
    node::{GatewayAddress, Loader, Node, NodeConfig, StageLoad},
    on_device,
    request::Submitter,
    swarm::{Receipts, Swarm, SwarmConfig, SwarmStatus},
};
use kernels::backend::KvShape;
use rand::Rng;
use tokio::{sync::Mutex, task::spawn_blocking};
use transport::{Identity, Limits, NodeId, Transport, sim::Network};

/// Most rows of one step, and most of a prompt: little, so that prompts take several.
const STEP_ROWS: usize = 32;
const CHUNK_ROWS: usize = 16;
const SESSIONS: usize = 64;
/// Requests that may wait.
const WAITING: usize = 256;

pub(super) struct World {
    network: Network,
    pub(super) model: Arc<Model>,
    pub(super) hash: Digest,
    quantisation: Quantisation,
    budget: StageBudget,
    pub(super) receipts: Arc<ReceiptStore>,
    pub(super) submitter: Submitter,
    gateway: GatewayAddress,
    swarm: Mutex<Option<Swarm>>,
}

fn identity(index: usize) -> Identity {
    let mut secret = [0x5d; 32];
    secret[..8].copy_from_slice(&(index as u64).to_le_bytes());
    Identity::from_secret(secret)
}

impl World {
    /// A gateway that serves `model` to sessions of up to `context` positions, to nodes with `pages` pages.
    pub(super) async fn start(
        model: Arc<Model>,
        quantisation: Quantisation,
        context: u32,
        pages: usize,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let hashing = model.clone();
        let hash = spawn_blocking(move || hashing.hash(quantisation, &|_| ())).await??;
        let hash = Digest(hash.hash);
        let (network, own) = (Network::new(seed), identity(usize::MAX));
        let endpoint = network.endpoint(&own, Limits::default())?;
        let gateway = GatewayAddress { id: endpoint.id(), address: endpoint.local_address().to_string() };
        let receipts = Arc::new(ReceiptStore::new(StoreLimits::default()));
        let config = SwarmConfig {
            fingerprint: model.fingerprint(quantisation),
            model: planned(&model, quantisation, false)?,
            positions: context,
            running: SESSIONS,
            waiting: WAITING,
            allow: None,
            private_ends: None,
            speculation: true,
            payer: None,
            relay_bytes_per_s: None,
            replan: true,
            receipts: Some(Receipts {
                model_name: model.name().to_owned(),
                quantisation,
                model: Arc::new(OnceLock::from(hash)),
                store: receipts.clone(),
            }),
            weights: None,
        };
        let (submitter, submissions) = Submitter::channel(2 * WAITING);
        let swarm = Swarm::start(own, Arc::new(endpoint), config, None, submissions)?;
        let shape = model.config();
        let page = KvShape {
            layers: shape.layers.div_ceil(2),
            pages: 1,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            profile: quantisation.profile(),
        };
        let kv_bytes = (pages * page.page_bytes()) as u64;
        let budget =
            StageBudget { rows: STEP_ROWS, chunk: CHUNK_ROWS, sessions: SESSIONS, context, kv_bytes };
        let swarm = Mutex::new(Some(swarm));
        Ok(Self { network, model, hash, quantisation, budget, receipts, submitter, gateway, swarm })
    }

    /// Waits until a pipeline covers the model.
    pub(super) async fn ready(&self) -> anyhow::Result<()> {
        let mut status = self.swarm.lock().await.as_ref().context("the swarm has stopped")?.status();
        status.wait_for(SwarmStatus::ready).await.context("the swarm has stopped")?;
        Ok(())
    }

    /// Stops the gateway; how it was doing.
    pub(super) async fn stop(&self) -> SwarmStatus {
        let Some(swarm) = self.swarm.lock().await.take() else { return SwarmStatus::default() };
        let status = swarm.status().borrow().clone();
        swarm.stop().await;
        status
    }

    /// The layers of node `index` of `count` that begin together: an even cut.
    pub(super) fn cut(&self, index: usize, count: usize) -> Range<usize> {
        let layers = self.model.config().layers;
        index * layers / count..(index + 1) * layers / count
    }

    /// Some layers that a node has room for.
    pub(super) fn any_part(&self, random: &mut impl Rng) -> Range<usize> {
        let layers = self.model.config().layers;
        let count = random.random_range(1..=layers.div_ceil(2));
        let from = random.random_range(0..=layers - count);
        from..from + count
    }

    fn shard(&self, layers: Range<usize>) -> Shard {
        Shard { embedding: layers.start == 0, head: layers.end == self.model.config().layers, layers }
    }

    /// Bytes of the largest half of the layers.
    fn room(&self) -> u64 {
        let layers = self.model.config().layers;
        let half = layers.div_ceil(2);
        let parts = (0..=layers - half).map(|from| self.shard(from..from + half));
        parts.map(|shard| shard_bytes(&self.model, &shard, self.quantisation)).max().unwrap_or(0)
    }
}

/// A place for a node, which has the same key whenever it comes back and another device.
pub(super) struct Seat {
    identity: Identity,
    devices: Vec<Device>,
    turn: usize,
    node: Option<Node>,
    /// What was counted of the node at the last look.
    pub(super) seen: Seen,
}

/// What a node has done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) preempted: u64,
    pub(super) reused: u64,
    pub(super) drafted: u64,
    pub(super) accepted: u64,
}

impl Seat {
    pub(super) fn new(index: usize, devices: Vec<Device>) -> Self {
        Self { identity: identity(index), devices, turn: index, node: None, seen: Seen::default() }
    }

    pub(super) fn id(&self) -> NodeId {
        self.identity.id()
    }

    /// What its node has done since it was started; `None` while there is none.
    pub(super) fn now(&self) -> Option<Seen> {
        let node = self.node.as_ref()?;
        let StageLoad { preempted, reused, .. } = *node.load().borrow();
        let status = node.status();
        let (drafted, accepted) = (status.borrow().drafted, status.borrow().accepted);
        Some(Seen { preempted, reused, drafted, accepted })
    }

    /// Starts a node on the next device.
    pub(super) async fn start(&mut self, world: &World, layers: Range<usize>) -> anyhow::Result<()> {
        let device = self.devices[self.turn % self.devices.len()].clone();
        self.turn += 1;
        let endpoint = world.network.endpoint(&self.identity, Limits::default())?;
        let (model, quantisation, budget) = (world.model.clone(), world.quantisation, world.budget);
        let config = NodeConfig {
            gateways: vec![world.gateway.clone()],
            advertise: endpoint.local_address().to_string(),
            fingerprint: model.fingerprint(quantisation),
            chunk: budget.chunk,
            weight_bytes: world.room(),
            device: device.describe(),
            payee: None,
            offer: Offer {
                weight_bytes: world.room(),
                kv: KvMemory::default(),
                movable: true,
                load_rate: Some(1 << 30),
                profile: None,
            },
            loader: None,
            audit: Some(Audit { signer: Signer::new(self.identity.clone()), book: None }),
            clerk: None,
            weights: None,
            stock: None,
        };
        let shard = world.shard(layers);
        self.seen = Seen::default();
        self.node = Some(on_device!(device, backend => {
            let loader = Loader::new(model.clone(), quantisation, budget, backend.clone());
            let load = move || load_stage(&model, &shard, quantisation, &budget, backend, &|_| ());
            let stage = spawn_blocking(load).await??;
            Node::start(stage, Arc::new(endpoint), NodeConfig { loader: Some(loader), ..config })?
        }));
        Ok(())
    }

    /// Cuts its power: others find out by its silence.
    pub(super) fn kill(&self, world: &World) {
        world.network.kill(self.identity.id());
    }

    /// Ends its node, which says goodbye if it still can.
    pub(super) async fn stop(&mut self) {
        if let Some(node) = self.node.take() {
            node.stop().await;
        }
    }
}
