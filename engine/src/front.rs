//! The front of the product: a gateway with its swarm, as `dolphin serve` and `dolphin up` run it.

use std::{collections::HashSet, sync::Arc};

use futures::future::join_all;
use kernels::backend::{KvShape, PAGE};
use shard_planner::model::ModelError as ShapeError;
use thiserror::Error;
use tokio::{sync::watch, task::JoinHandle};
use transport::{Identity, NodeId, Transport};

use crate::{
    audit::{
        plan::Digest,
        store::{ReceiptStore, StoreLimits},
    },
    gateway::{
        self, ApiError, ChatTemplate, Gateway, GatewayConfig, Metrics, PipelineStatus, SamplingDefaults,
        ServeError, ServedModel, TemplateError, serve,
    },
    model::{Model, ModelError, Quantisation},
    node::Node,
    payment::{purse::Payer, store::StoreError, till::Earnings},
    profile::shape,
    request::Submitter,
    speculation::drafter::Drafting,
    swarm::{Receipts, Swarm, SwarmConfig, SwarmStatus},
    tokenizer::Tokenizer,
    weights::Stock,
};

/// Submissions between the HTTP side and the swarm's task.
const SUBMISSIONS: usize = 1024;

/// Limits and rules of a front.
#[derive(Clone, Debug)]
pub struct FrontConfig {
    /// The HTTP side.
    pub gateway: GatewayConfig,
    /// Name under which the model is served; the model's own if `None`.
    pub model_name: Option<String>,
    /// How every node must hold the weights.
    pub quantisation: Quantisation,
    /// Longest session in positions.
    pub context: u32,
    /// Most replies generated at once.
    pub running: usize,
    /// Most requests that wait for their turn.
    pub waiting: usize,
    /// Nodes that may join; everybody if `None`.
    pub allow: Option<HashSet<NodeId>>,
    /// Nodes that alone may hold the embedding and the head.
    pub private_ends: Option<HashSet<NodeId>>,
    /// Whether replies may be speculated with.
    pub speculation: bool,
    /// What nodes that ask for it are paid with; without it they are refused.
    pub payer: Option<Payer>,
    /// Whether nodes at work may be told to load other layers.
    pub replan: bool,
    /// Whether replies have receipts.
    pub receipts: bool,
    /// Bytes of weights that nodes without files are given in a second; `None` gives none.
    pub weights: Option<u64>,
}

/// Why a front could not start.
#[derive(Debug, Error)]
pub enum FrontError {
    /// The model's tokenizer is missing or broken.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model cannot be planned with.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The model's chat template cannot be used.
    #[error("the model's chat template: {0}")]
    Template(#[from] TemplateError),
    /// The endpoint cannot listen as configured.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A request is none.
    #[error(transparent)]
    Request(#[from] ApiError),
    /// What was paid cannot be kept.
    #[error("the vouchers: {0}")]
    Store(#[from] StoreError),
    /// The metrics cannot be set up.
    #[error("metrics: {0}")]
    Metrics(String),
}

/// A running gateway and swarm.
#[derive(Debug)]
pub struct Front {
    gateway: Gateway,
    swarm: Swarm,
    model_name: String,
    stop: watch::Sender<bool>,
    bridge: JoinHandle<()>,
    metrics: Metrics,
    paying: bool,
}

impl Front {
    /// Listens for clients as configured, and for nodes over `transport`.
    ///
    /// `identity` is the one of `transport`. `drafting` speeds replies up, if there is a draft model.
    pub async fn start(
        model: &Arc<Model>,
        identity: Identity,
        transport: Arc<dyn Transport>,
        drafting: Option<Drafting>,
        mut config: FrontConfig,
    ) -> Result<Self, FrontError> {
        let served = served_model(model, &config)?;
        let model_name = served.id.clone();
        let metrics = Metrics::new().map_err(|error| FrontError::Metrics(error.to_string()))?;
        let (submitter, submissions) = Submitter::channel(SUBMISSIONS);
        let mut rules = swarm_config(model, &config)?;
        if config.receipts {
            let store = Arc::new(ReceiptStore::new(StoreLimits::default()));
            config.gateway.receipts = Some(store.clone());
            let (model_name, quantisation) = (model_name.clone(), config.quantisation);
            rules.receipts = Some(Receipts { model_name, quantisation, model: Arc::default(), store });
        }
        rules.weights = config.weights.map(|bandwidth| Stock::new(model.clone(), Some(bandwidth)));
        hash(model, config.quantisation, &rules);
        let swarm = Swarm::start(identity, transport, rules, drafting, submissions)?;
        let (status, bridge) = bridge(swarm.status(), metrics.clone());
        let (stop, mut stopping) = watch::channel(false);
        let shutdown = async move {
            let _ = stopping.changed().await;
        };
        let paying = config.payer.is_some();
        let seen = swarm.status();
        let measured = metrics.clone();
        let gateway = serve(config.gateway, served, submitter, status, seen, measured, shutdown).await?;
        Ok(Self { gateway, swarm, model_name, stop, bridge, metrics, paying })
    }

    /// Where clients reach it, `http://host:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.gateway.local_addr)
    }

    /// Name of the served model.
    pub fn model_name(&self) -> &str {
        &self.model_name
    }

    /// Who serves, now and later.
    pub fn status(&self) -> watch::Receiver<SwarmStatus> {
        self.swarm.status()
    }

    /// Shows what a node of this process earns among its own measurements, for as long as the node runs.
    pub fn show_earnings(&self, node: String, mut earnings: watch::Receiver<Earnings>) {
        let metrics = self.metrics.clone();
        tokio::spawn(async move {
            loop {
                let Earnings { vouched, collected } = *earnings.borrow_and_update();
                metrics.earned(&node, vouched, collected);
                if earnings.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// Waits until a pipeline covers the model. Ends early, with `false`, if the swarm stops.
    pub async fn ready(&self) -> bool {
        self.status().wait_for(SwarmStatus::ready).await.is_ok()
    }

    /// Lets running replies finish within the drain time, then stops together with the nodes of this
    /// process, so that neither takes the other's end for a loss.
    pub async fn stop(self, nodes: Vec<Node>) {
        let _ = self.stop.send(true);
        self.gateway.stopped().await;
        self.bridge.abort();
        let stop_nodes = join_all(nodes.into_iter().map(Node::stop));
        if self.paying {
            // Nodes collect when they end: they need the last vouchers before.
            self.swarm.stop().await;
            stop_nodes.await;
        } else {
            tokio::join!(self.swarm.stop(), stop_nodes);
        }
    }
}

/// The chat template that the model is served with.
fn template(model: &Model, tokenizer: &Tokenizer) -> Result<ChatTemplate, TemplateError> {
    let text = |token: Option<u32>| token.and_then(|token| tokenizer.token_text(token)).unwrap_or_default();
    let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos().first().copied()));
    let special = [("bos_token", bos.as_str()), ("eos_token", eos.as_str())];
    match model.chat_template() {
        Some(source) => ChatTemplate::new(source, special),
        None => ChatTemplate::plain(special),
    }
}

/// What the body of a request comes to in token ids, one prompt or several.
///
/// # Errors
/// If the model has no tokenizer, or the body is none that an endpoint takes.
pub fn prompts_of(model: &Model, body: &[u8]) -> Result<Vec<Vec<u32>>, FrontError> {
    let tokenizer = model.tokenizer()?;
    Ok(gateway::prompts_of(&template(model, &tokenizer)?, &tokenizer, body)?)
}

fn served_model(model: &Model, config: &FrontConfig) -> Result<ServedModel, FrontError> {
    let tokenizer = Arc::new(model.tokenizer()?);
    let template = template(model, &tokenizer)?;
    let mut eos_ids: Vec<u32> =
        tokenizer.eos().iter().chain(&model.config().eos).chain(&model.generation().eos).copied().collect();
    eos_ids.sort_unstable();
    eos_ids.dedup();
    let suggested = model.generation();
    let defaults = SamplingDefaults::default();
    let greedy = suggested.sample == Some(false);
    Ok(ServedModel {
        id: config.model_name.clone().unwrap_or_else(|| model.name().to_owned()),
        created: std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs()),
        fingerprint: format!("fp_{}", &hex::encode(model.fingerprint(config.quantisation))[..12]),
        context: config.context.min(model.config().max_positions),
        tokenizer,
        template,
        eos_ids,
        sampling_defaults: SamplingDefaults {
            temperature: if greedy { 0.0 } else { suggested.temperature.unwrap_or(defaults.temperature) },
            top_p: suggested.top_p.unwrap_or(defaults.top_p),
            top_k: suggested.top_k.unwrap_or(defaults.top_k),
        },
    })
}

fn swarm_config(model: &Model, config: &FrontConfig) -> Result<SwarmConfig, ShapeError> {
    let private = config.private_ends.is_some();
    Ok(SwarmConfig {
        fingerprint: model.fingerprint(config.quantisation),
        model: planned(model, config.quantisation, private)?,
        positions: config.context.min(model.config().max_positions),
        relay_bytes_per_s: config.gateway.nat.as_ref().map(|nat| nat.relay().bytes_per_s),
        running: config.running,
        waiting: config.waiting,
        allow: config.allow.clone(),
        private_ends: config.private_ends.clone(),
        speculation: config.speculation,
        payer: config.payer.clone(),
        replan: config.replan,
        receipts: None,
        weights: None,
    })
}

/// Hashes the model on a thread of its own, where something needs it: replies that begin before the hash is known
/// have no receipts, weights are given from then on, and serving waits for nothing.
fn hash(model: &Arc<Model>, quantisation: Quantisation, rules: &SwarmConfig) {
    let known = rules.receipts.as_ref().map(|receipts| receipts.model.clone());
    let (model, stock) = (model.clone(), rules.weights.clone());
    if known.is_none() && stock.is_none() {
        return;
    }
    tokio::task::spawn_blocking(move || {
        let found = match stock {
            Some(stock) => stock.hash(quantisation),
            None => model.hash(quantisation, &|_| ()).map(|found| found.hash),
        };
        match (found, known) {
            (Ok(found), Some(known)) => {
                let hash = known.get_or_init(|| Digest(found));
                tracing::info!(%hash, "replies have receipts");
            }
            (Ok(_), None) => {}
            (Err(error), _) => {
                tracing::warn!(%error, "no receipts, and no weights for nodes: the model cannot be hashed");
            }
        }
    });
}

/// The model as the planner takes it, in the one format that is served; with private ends no node is asked to
/// hold embedding or head.
pub fn planned(
    model: &Model,
    quantisation: Quantisation,
    private: bool,
) -> Result<shard_planner::Model, ShapeError> {
    let mut shape = shape(model)?;
    let config = model.config();
    let page = KvShape {
        layers: 1,
        pages: 1,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        profile: quantisation.profile(),
    };
    shape.kv_bytes.fill((page.page_bytes() / PAGE) as u64);
    shape.weights.retain(|weights| weights.format == quantisation.to_string());
    for weights in shape.weights.iter_mut().filter(|_| private) {
        (weights.embedding, weights.head) = (0, 0);
    }
    Ok(shape)
}

/// Tells the HTTP side of the swarm's state.
fn bridge(
    mut swarm: watch::Receiver<SwarmStatus>,
    metrics: Metrics,
) -> (watch::Receiver<PipelineStatus>, JoinHandle<()>) {
    let translate = |status: &SwarmStatus| match (&status.missing, status.nodes.len()) {
        (None, nodes) if nodes > 0 => PipelineStatus::Serving {
            nodes,
            // Enough to tell nodes apart; the whole id is nobody's business.
            pipeline: status
                .pipeline
                .iter()
                .map(|s| (s.node.chars().take(8).collect(), s.from..s.to))
                .collect(),
            replans: status.replans,
        },
        (missing, _) => {
            PipelineStatus::Waiting { missing: missing.clone().unwrap_or_else(|| "any layer".into()) }
        }
    };
    let mut counted = [0; 4];
    let first = translate(&swarm.borrow_and_update());
    let (publish, status) = watch::channel(first);
    let task = tokio::spawn(async move {
        while swarm.changed().await.is_ok() {
            let status = swarm.borrow_and_update().clone();
            metrics.replanned(status.replans - counted[0]);
            metrics.moved(status.moved - counted[1], status.moves_failed - counted[2]);
            metrics.resumed(status.resumed - counted[3]);
            counted = [status.replans, status.moved, status.moves_failed, status.resumed];
            metrics.spent(status.spent);
            let next = translate(&status);
            publish.send_if_modified(|old| std::mem::replace(old, next.clone()) != next);
        }
    });
    (status, task)
}
