//! A whole swarm in one process: a gateway and its nodes, joined by real links on loopback
//! (`dolphin up`) or by a simulated network (measurements).

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    ops::Range,
    sync::Arc,
};

use futures::future::select_all;
use kernels::backend::{Backend, KvShape, PAGE, Profile};
use shard_planner::{
    Cluster, Demand, Objective, PlanError, Report,
    cluster::{Link, Profile as Speed},
    model::ModelError as ShapeError,
    plan_line,
    report::StageReport,
};
use thiserror::Error;
use transport::{
    Identity, Limits, NodeId, Transport,
    peer::IdentityError,
    quic::{BindError, Endpoint},
    sim,
};

use crate::{
    audit::{commitment::Signer, recorder::Audit},
    front::{Front, FrontConfig, FrontError, planned},
    message::{KvMemory, Offer, row_bytes},
    model::{Model, ModelConfig, ModelError, Progress, Quantisation, Shard},
    node::{GatewayAddress, Node, NodeConfig, NodeError},
    payment::till::Payee,
    profile::{ProfileError, soonest},
    speculation::drafter::{
        DraftModelError, Drafter, DrafterConfig, DrafterError, Drafting, check_vocabulary,
    },
    stage::{Stage, StageError, StageLimits},
};

/// Largest body of a step: half of what a link takes as one message.
const MAX_STEP_BYTES: usize = 8 << 20;

/// What a stage may use, as the user says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageBudget {
    /// Most rows of one step.
    pub rows: usize,
    /// Most prompt rows of one session in one step.
    pub chunk: usize,
    /// Most sessions at once.
    pub sessions: usize,
    /// Longest session in positions.
    pub context: u32,
    /// Bytes for KV.
    pub kv_bytes: u64,
}

impl StageBudget {
    /// The limits of a stage of `layers` layers: all the pages its sessions could fill, or as many as
    /// the KV budget holds.
    pub fn limits(&self, config: &ModelConfig, layers: usize, profile: Profile) -> StageLimits {
        let context = self.context.min(config.max_positions);
        let shape =
            KvShape { layers, pages: 0, kv_heads: config.kv_heads, head_dim: config.head_dim, profile };
        let wanted = self.sessions.saturating_mul((context as usize).div_ceil(PAGE));
        let affordable =
            usize::try_from(self.kv_bytes / shape.page_bytes().max(1) as u64).unwrap_or(usize::MAX);
        // A step must fit a message, with room for what travels beside its rows.
        let rows = self.rows.min(MAX_STEP_BYTES / row_bytes(config.hidden, profile).max(1)).max(1);
        StageLimits { rows, pages: wanted.min(affordable), sessions: self.sessions, positions: context }
    }
}

/// Why a stage could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The model's files are at fault.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The device or the description is.
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// Reads a shard and puts it on a device. It blocks; `progress` is called from this thread.
pub fn load_stage<B: Backend>(
    model: &Model,
    shard: &Shard,
    quantisation: Quantisation,
    budget: &StageBudget,
    backend: B,
    progress: &dyn Fn(Progress),
) -> Result<Stage<B>, LoadError> {
    let weights = model.load(shard, quantisation, progress)?;
    let profile = quantisation.profile();
    let limits = budget.limits(model.config(), shard.layers.len(), profile);
    Ok(Stage::new(backend, model.config(), shard, weights, profile, limits)?)
}

/// Why there is no draft model.
#[derive(Debug, Error)]
pub enum DraftError {
    /// It does not go with the model.
    #[error(transparent)]
    Model(#[from] DraftModelError),
    /// It cannot be loaded.
    #[error("the draft model cannot be loaded")]
    Load(#[from] LoadError),
    /// It cannot be run.
    #[error(transparent)]
    Drafter(#[from] DrafterError),
    /// The loading thread is gone: a bug of ours, printed where it happened.
    #[error("the draft model could not be loaded: its thread died")]
    Died,
}

/// Bounds of a draft model: it follows so many replies at once, and gives up on the others.
const DRAFT_SESSIONS: usize = 32;
const DRAFT_ROWS: usize = 128;
const DRAFT_KV_BYTES: u64 = 256 << 20;

/// Loads a draft model for `target` and starts it. Drafts only have to be quick, so its weights are `q8`.
pub async fn start_drafter<B: Backend>(
    target: Arc<Model>,
    draft: Arc<Model>,
    backend: B,
    context: u32,
) -> Result<Drafting, DraftError> {
    let loading = tokio::task::spawn_blocking(move || {
        check_vocabulary(&target, &draft)?;
        let layers = draft.config().layers;
        let shard = Shard { layers: 0..layers, embedding: true, head: true };
        let (rows, kv_bytes) = (DRAFT_ROWS, DRAFT_KV_BYTES);
        let budget = StageBudget { rows, chunk: rows, sessions: DRAFT_SESSIONS, context, kv_bytes };
        let stage = load_stage(&draft, &shard, Quantisation::Q8, &budget, backend, &|_| ())?;
        let (drafter, drafts) = Drafter::start(stage, DrafterConfig::default())?;
        Ok(Drafting { drafter, drafts })
    });
    loading.await.unwrap_or(Err(DraftError::Died))
}

/// Bytes of a shard's weights.
pub fn shard_bytes(model: &Model, shard: &Shard, quantisation: Quantisation) -> u64 {
    let layers: u64 = model.layer_bytes(quantisation)[shard.layers.clone()].iter().sum();
    let embedding = if shard.embedding { model.embedding_bytes(quantisation) } else { 0 };
    let head = if shard.head { model.head_bytes(quantisation) } else { 0 };
    layers + embedding + head
}

/// What links run over.
#[derive(Clone, Debug)]
pub enum Links {
    /// QUIC, on sockets bound here; port 0 lets the system choose.
    Quic(SocketAddr),
    /// A simulated network.
    Simulated(sim::Network),
}

impl Links {
    /// QUIC on loopback.
    pub fn loopback() -> Self {
        Self::Quic(loopback())
    }

    /// `guide` introduces the endpoint to those that cannot be dialled.
    fn bind(&self, identity: &Identity, guide: Option<NodeId>) -> Result<Arc<dyn Transport>, BindError> {
        let limits = Limits::default();
        Ok(match self {
            Self::Quic(address) => {
                let endpoint = Endpoint::bind(identity, *address, limits)?;
                endpoint.meet_through(guide);
                Arc::new(endpoint)
            }
            Self::Simulated(network) => Arc::new(network.endpoint(identity, limits)?),
        })
    }
}

/// What a local swarm is made of.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// Nodes to start.
    pub nodes: usize,
    /// Whether embedding, head and sampler stay on the gateway.
    pub private: bool,
    /// What its links run over.
    pub links: Links,
    /// The front.
    pub front: FrontConfig,
    /// Each node's share.
    pub budget: StageBudget,
    /// A small model that guesses what the large one will say.
    pub draft: Option<Arc<Model>>,
    /// What the nodes that are not private ends are paid for, in their order; free if there are no more. The
    /// front pays.
    pub payees: Vec<Payee>,
}

/// Why a local swarm could not start.
#[derive(Debug, Error)]
pub enum LocalError {
    /// The model cannot be planned with.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The model cannot be cut as asked.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The machine cannot be measured.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A stage cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No key could be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No socket could be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The front cannot start.
    #[error(transparent)]
    Front(#[from] FrontError),
    /// The draft model cannot be used.
    #[error(transparent)]
    Draft(#[from] DraftError),
    /// A node cannot start.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The loading thread is gone: a bug of ours, printed where it happened.
    #[error("a stage could not be loaded: its thread died")]
    Died,
}

/// A gateway and its nodes in this process.
#[derive(Debug)]
pub struct Local {
    front: Front,
    nodes: Vec<Node>,
    join: GatewayAddress,
    plan: Report,
}

impl Local {
    /// Starts everything and waits until requests can be served.
    pub async fn start<B: Backend + Clone>(
        model: Arc<Model>,
        backend: B,
        mut config: LocalConfig,
        progress: impl Fn(Progress) + Clone + Send + 'static,
    ) -> Result<Self, LocalError> {
        let quantisation = config.front.quantisation;
        let (source, device) = (model.clone(), backend.clone());
        let measuring = move || soonest(&source, quantisation, device);
        let profile = tokio::task::spawn_blocking(measuring).await.map_err(|_| LocalError::Died)??;
        let (plan, mut seats) = seats(&model, &config, &profile)?;
        for (seat, payee) in seats.iter_mut().zip(std::mem::take(&mut config.payees)) {
            seat.payee = Some(payee.bind(&seat.identity));
        }
        if config.private {
            let ends = PrivateEnds::generate(model.config().layers)?;
            config.front.private_ends = Some(ends.ids());
            seats.extend(ends.seats);
        }
        let identity = Identity::generate()?;
        let endpoint = config.links.bind(&identity, None)?;
        let join = GatewayAddress { id: endpoint.id(), address: endpoint.local_address().to_string() };
        let drafting = match config.draft {
            Some(draft) => {
                let context = config.front.context;
                Some(start_drafter(model.clone(), draft, backend.clone(), context).await?)
            }
            None => None,
        };
        let front = Front::start(&model, identity, endpoint, drafting, config.front).await?;
        let mut local = Self { front, nodes: Vec::new(), join, plan };
        let room = Room {
            model,
            quantisation,
            budget: config.budget,
            gateway: local.join.clone(),
            links: config.links,
            profile: Some(Box::new(profile)),
        };
        for seat in seats {
            let node = room.seat(seat, backend.clone(), progress.clone()).await?;
            if let Some(till) = node.settler() {
                local.front.show_earnings(node.id().short(), till.earnings());
            }
            local.nodes.push(node);
        }
        local.front.ready().await;
        Ok(local)
    }

    /// The gateway's side.
    pub fn front(&self) -> &Front {
        &self.front
    }

    /// Its nodes, in the order of their layers; private ends come last.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The cut, and what is predicted of it: for one reply at a time, and without the private ends.
    pub fn plan(&self) -> &Report {
        &self.plan
    }

    /// Where further nodes may join.
    pub fn join(&self) -> &GatewayAddress {
        &self.join
    }

    /// Waits until one of its nodes fails, and says how; for ever if none does.
    pub async fn failed(&mut self) -> NodeError {
        let nodes = self.nodes.iter_mut().map(|node| Box::pin(node.finished()));
        match select_all(nodes).await {
            (Err(error), ..) => error,
            // A node that ends by itself has nothing to say.
            (Ok(()), ..) => std::future::pending().await,
        }
    }

    /// Lets running replies finish, then stops everything.
    pub async fn stop(self) {
        self.front.stop(self.nodes).await;
    }
}

/// Loopback with a port of the system's choice.
pub fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// Round trip and bandwidth taken for links within a process: a hop over QUIC on loopback costs 0.12 ms.
const WITHIN: (f64, f64) = (0.24, 10_000.0);

/// The model cut over nodes of this machine for one reply at a time, since they share it.
fn seats(model: &Model, config: &LocalConfig, profile: &Speed) -> Result<(Report, Vec<Seat>), LocalError> {
    let identities: Vec<Identity> =
        (0..config.nodes).map(|_| Identity::generate()).collect::<Result<_, _>>()?;
    let quantisation = config.front.quantisation;
    let shape = planned(model, quantisation, config.private)?;
    // What the machine has is shared by all: only the evenness of the cut matters.
    let memory = 1 << 50;
    let node = |identity: &Identity| {
        shard_planner::Node::new(&identity.id().short(), memory).with_profile(profile.clone())
    };
    let nodes: Vec<_> = identities.iter().map(node).collect();
    let (rtt_ms, mbit) = WITHIN;
    let link = |pair: &[shard_planner::Node]| Link {
        estimated: true,
        ..Link::new(&pair[0].id, &pair[1].id, rtt_ms, mbit)
    };
    let links: Vec<Link> = nodes.windows(2).map(link).collect();
    let cluster = Cluster::new(nodes, &links).map_err(PlanError::from)?;
    let plan = plan_line(&shape, &cluster, &Demand::chat(&quantisation.to_string(), 1, Objective::Latency))?;
    let report = Report::new(model.name(), &cluster, &plan);
    let shard = |stage: &StageReport| Shard {
        embedding: !config.private && stage.from == 0,
        head: !config.private && stage.to == report.layers,
        layers: stage.from..stage.to,
    };
    let shards = report.pipelines.iter().flat_map(|pipeline| &pipeline.stages).map(shard);
    let seats =
        identities.into_iter().zip(shards).map(|(identity, shard)| Seat { identity, shard, payee: None });
    let seats = seats.collect();
    Ok((report, seats))
}

/// A node to start: who it is and what it holds.
#[derive(Debug)]
struct Seat {
    identity: Identity,
    shard: Shard,
    payee: Option<Payee>,
}

/// What the nodes of one process have in common.
struct Room {
    model: Arc<Model>,
    quantisation: Quantisation,
    budget: StageBudget,
    gateway: GatewayAddress,
    links: Links,
    profile: Option<Box<Speed>>,
}

impl Room {
    async fn seat<B: Backend>(
        &self,
        seat: Seat,
        backend: B,
        progress: impl Fn(Progress) + Send + 'static,
    ) -> Result<Node, LocalError> {
        let Seat { identity, shard, payee } = seat;
        let (device, weight_bytes) =
            (backend.describe(), shard_bytes(&self.model, &shard, self.quantisation));
        let (model, quantisation, budget) = (self.model.clone(), self.quantisation, self.budget);
        let loading = tokio::task::spawn_blocking(move || {
            load_stage(&model, &shard, quantisation, &budget, backend, &progress)
        });
        let stage = loading.await.map_err(|_| LocalError::Died)??;
        let endpoint = self.links.bind(&identity, Some(self.gateway.id))?;
        let config = NodeConfig {
            gateways: vec![self.gateway.clone()],
            advertise: endpoint.local_address().to_string(),
            fingerprint: self.model.fingerprint(self.quantisation),
            chunk: self.budget.chunk,
            weight_bytes,
            device,
            payee,
            offer: Offer {
                kv: KvMemory::Own(self.budget.kv_bytes),
                profile: self.profile.clone(),
                ..Offer::default()
            },
            loader: None,
            audit: Some(Audit { signer: Signer::new(identity), book: None }),
            clerk: None,
            weights: None,
            stock: None,
        };
        Ok(Node::start(stage, endpoint, config)?)
    }
}

/// Two nodes in the gateway's own process, one with the embedding, one with the head and sampler, so
/// that no other node sees a token.
#[derive(Debug)]
pub struct PrivateEnds {
    seats: Vec<Seat>,
}

impl PrivateEnds {
    /// Ends of a model of `layers` layers, with keys of their own.
    pub fn generate(layers: usize) -> Result<Self, IdentityError> {
        let ends = [(0..0, true), (layers..layers, false)];
        let seat = |(layers, first): (Range<usize>, bool)| {
            let shard = Shard { layers, embedding: first, head: !first };
            Ok(Seat { identity: Identity::generate()?, shard, payee: None })
        };
        Ok(Self { seats: ends.map(seat).into_iter().collect::<Result<_, _>>()? })
    }

    /// Their node ids.
    pub fn ids(&self) -> HashSet<NodeId> {
        self.seats.iter().map(|seat| seat.identity.id()).collect()
    }

    /// Loads both and joins them to the gateway of this process, at its address.
    pub async fn start<B: Backend + Clone>(
        self,
        model: Arc<Model>,
        quantisation: Quantisation,
        budget: StageBudget,
        backend: B,
        (gateway, gateway_address): (NodeId, SocketAddr),
        progress: impl Fn(Progress) + Clone + Send + 'static,
    ) -> Result<Vec<Node>, LocalError> {
        // Other nodes dial the head's where they can reach the gateway.
        let links = Links::Quic(SocketAddr::new(gateway_address.ip(), 0));
        let gateway = GatewayAddress { id: gateway, address: gateway_address.to_string() };
        let room = Room { model, quantisation, budget, gateway, links, profile: None };
        let mut nodes = Vec::new();
        for seat in self.seats {
            nodes.push(room.seat(seat, backend.clone(), progress.clone()).await?);
        }
        Ok(nodes)
    }
}
