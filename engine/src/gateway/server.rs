//! Listening, connections, and stopping without cutting replies short.

use std::future::Future;
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::InvalidHeaderValue;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{interval, timeout};

use super::config::{GatewayConfig, ServedModel};
use super::metrics::Metrics;
use super::params::Bounds;
use super::patience::Patient;
use super::routes;
use crate::request::Submitter;
use crate::swarm::SwarmStatus;

const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Bodies of the largest size that may be in memory at once; small ones take little of that room.
const LARGEST_BODIES: usize = 64;
/// After replies were told to end: how long their last events may take to leave.
const FAREWELL: Duration = Duration::from_secs(2);
/// After accepting failed, for example because no file descriptors are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Whether the model can be served, as `/health` reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PipelineStatus {
    /// A set of nodes covers the model.
    Serving {
        /// Nodes in use.
        nodes: usize,
        /// Node and layers of each stage of the pipeline that serves.
        pipeline: Vec<(String, Range<usize>)>,
        /// How often the pipeline had to change.
        replans: u64,
    },
    /// Nobody holds some part.
    Waiting {
        /// What is missing.
        missing: String,
    },
}

/// Where the gateway is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    /// No new connections; running replies go on.
    Draining,
    /// Running replies end with an error.
    Closing,
}

/// Why the gateway did not start: the configuration or the machine is at fault.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} (--listen chooses another address): {source}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// An origin is not a legal header value.
    #[error("the CORS origin '{origin}' is not a legal header value")]
    Origin {
        /// The configured origin.
        origin: String,
        /// What is wrong with it.
        source: InvalidHeaderValue,
    },
}

/// What the routes share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) config: GatewayConfig,
    pub(super) model: ServedModel,
    pub(super) bounds: Bounds,
    pub(super) submitter: Submitter,
    pub(super) status: watch::Receiver<PipelineStatus>,
    pub(super) swarm: watch::Receiver<SwarmStatus>,
    pub(super) metrics: Metrics,
    pub(super) phase: watch::Receiver<Phase>,
    /// One permit per request between its body and its last token.
    pub(super) slots: Arc<Semaphore>,
    /// One permit per prompt that is being rendered and encoded.
    pub(super) encoders: Arc<Semaphore>,
    /// One permit per KiB of request bodies in memory.
    pub(super) body_room_kib: Arc<Semaphore>,
    keys: Vec<blake3::Hash>,
}

/// Whose request it is: one for each accepted key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tenant(pub(super) u64);

impl State {
    /// Whose key it is, if it is accepted. Compares hashes, in constant time: neither a prefix nor the
    /// length of a key leaks.
    pub(super) fn tenant(&self, key: Option<&[u8]>) -> Option<Tenant> {
        if self.keys.is_empty() {
            return Some(Tenant(0));
        }
        let given = blake3::hash(key?);
        let accepted = self.keys.iter().fold(false, |accepted, known| accepted | (*known == given));
        let name = given.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        accepted.then_some(Tenant(name))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.model.id.as_str()).chain(self.config.aliases.iter().map(String::as_str))
    }

    pub(super) fn serves(&self, model: &str) -> bool {
        self.names().any(|name| name == model)
    }
}

/// A gateway that listens. Dropping it stops it at once; see [`Gateway::stopped`].
#[derive(Debug)]
pub struct Gateway {
    /// The bound address, with the port that was chosen if 0 was configured.
    pub local_addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Gateway {
    /// Waits until the gateway has stopped after its shutdown signal.
    pub async fn stopped(mut self) {
        // The task is never aborted while `self` lives; a panic in it has been reported already.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts to serve `model`; requests go to `submitter`.
///
/// Once `shutdown` resolves, no connection is accepted, running replies have the configured drain
/// time to finish, and those that do not end with an error event.
pub async fn serve(
    config: GatewayConfig,
    model: ServedModel,
    submitter: Submitter,
    status: watch::Receiver<PipelineStatus>,
    swarm: watch::Receiver<SwarmStatus>,
    metrics: Metrics,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Gateway, ServeError> {
    let origins = origins(&config)?;
    let listen_error = |source| ServeError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
    let local_addr = listener.local_addr().map_err(listen_error)?;
    let (announce, phase) = watch::channel(Phase::Serving);
    let bounds = Bounds {
        vocabulary: u32::try_from(model.tokenizer.size()).unwrap_or(u32::MAX),
        max_choices: config.max_choices,
        defaults: model.sampling_defaults,
    };
    let encoders = std::thread::available_parallelism().map_or(1, usize::from);
    let state = Arc::new(State {
        keys: config.api_keys.iter().map(|key| blake3::hash(key.as_bytes())).collect(),
        slots: Arc::new(Semaphore::new(config.max_concurrent)),
        body_room_kib: Arc::new(Semaphore::new(LARGEST_BODIES * (config.max_body_bytes / 1024 + 1))),
        encoders: Arc::new(Semaphore::new(encoders)),
        config,
        model,
        bounds,
        submitter,
        status,
        swarm,
        metrics,
        phase,
    });
    let app = routes::router(state.clone(), &origins);
    Ok(Gateway { local_addr, task: tokio::spawn(run(listener, app, state, announce, shutdown)) })
}

fn origins(config: &GatewayConfig) -> Result<Vec<HeaderValue>, ServeError> {
    let parse = |origin: &String| {
        HeaderValue::from_str(origin).map_err(|source| ServeError::Origin { origin: origin.clone(), source })
    };
    config.cors_origins.iter().map(parse).collect()
}

async fn run(
    listener: TcpListener,
    app: Router,
    state: Arc<State>,
    announce: watch::Sender<Phase>,
    shutdown: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(state.config.max_connections));
    let mut connections = JoinSet::new();
    let mut upkeep = interval(UPKEEP_INTERVAL);
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            _ = upkeep.tick() => state.metrics.upkeep(),
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener, &places) => {
                let Some((stream, place)) = accepted else { continue };
                connections.spawn(connection(stream, place, app.clone(), state.clone()));
            }
        }
    }
    drop(listener);
    announce.send_replace(Phase::Draining);
    let drain = async { while connections.join_next().await.is_some() {} };
    if timeout(state.config.drain_timeout, drain).await.is_err() {
        announce.send_replace(Phase::Closing);
        let farewell = async { while connections.join_next().await.is_some() {} };
        let _ = timeout(FAREWELL, farewell).await;
        connections.shutdown().await;
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn connection(stream: TcpStream, _place: OwnedSemaphorePermit, app: Router, state: Arc<State>) {
    // Tokens are small and should leave at once.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Patient::new(stream, state.config.write_timeout));
    let service = TowerToHyperService::new(app);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(state.config.header_timeout);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut phase = state.phase.clone();
    let draining = async {
        let _ = phase.wait_for(|phase| *phase != Phase::Serving).await;
    };
    tokio::select! {
        _ = connection.as_mut() => return,
        () = draining => connection.as_mut().graceful_shutdown(),
    }
    // Errors of a connection are the client's affair.
    let _ = connection.await;
}
