//! The chain over HTTP, for wallets and tools on the same machine.
//!
//! Whoever may connect may read everything and send transactions that somebody signed; no key is held here, so
//! nobody can be made to sign. A page in the user's browser can do neither: its requests are let through to a
//! page's own origin only, for there are no CORS headers; they would need some before they may carry
//! `application/json`, which is asked for; and a name that is pointed at this machine to pass for the page's own
//! origin is refused by the `Host` header.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::{JoinHandle, JoinSet, spawn_blocking},
    time::{sleep, timeout},
};

use super::{Chain, beacon::LocalBeacon, error::RpcError};

/// Longest request body.
const BODY_BYTES: usize = 2 << 20;
/// How long a request may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);
/// Most requests of a batch.
const BATCH: usize = 100;
/// After so many bytes of answers, or so long, the rest of a batch is refused.
const BATCH_ANSWERS: (usize, Duration) = (32 << 20, Duration::from_secs(20));
/// Most connections; later ones wait.
const CONNECTIONS: usize = 64;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(30);
/// After accepting failed, for example because no file descriptors are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Most requests that are computed at once.
const AT_ONCE: usize = 8;

/// A chain that is being served. Dropped, it is no longer, and connections end.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a wallet is given to find it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves `chain` at `address`, which must be of this machine alone. Needs a tokio runtime.
///
/// With `controls`, whoever connects may also move time and return to snapshots: for tests.
pub async fn serve(chain: Chain, address: SocketAddr, controls: bool) -> io::Result<Server> {
    let service = Service { chain, controls, at_once: Arc::new(Semaphore::new(AT_ONCE)) };
    start(Router::new().route("/", post(handle)).with_state(service), address).await
}

/// The same with the rounds of a beacon, at the same address.
pub async fn serve_with_beacon(
    chain: Chain,
    address: SocketAddr,
    controls: bool,
    beacon: LocalBeacon,
) -> io::Result<Server> {
    let rounds = beacon.routes(chain.clone());
    let service = Service { chain, controls, at_once: Arc::new(Semaphore::new(AT_ONCE)) };
    start(Router::new().route("/", post(handle)).with_state(service).merge(rounds), address).await
}

async fn start(router: Router, address: SocketAddr) -> io::Result<Server> {
    if !address.ip().is_loopback() {
        let message = "the embedded chain is served on a loopback address only";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok(Server { address, task: tokio::spawn(accept(listener, router)) })
}

/// Runs until it is aborted, which ends the connections too.
async fn accept(listener: TcpListener, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let _permit = permit;
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(IDLE);
            // What is wrong with a connection is its client's business.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

#[derive(Clone)]
struct Service {
    chain: Chain,
    controls: bool,
    at_once: Arc<Semaphore>,
}

async fn handle(State(service): State<Service>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    if let Err(refusal) = check(&head.headers) {
        return refusal.into_response();
    }
    let body = match timeout(ARRIVAL, to_bytes(body, BODY_BYTES)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        Err(_) => return StatusCode::REQUEST_TIMEOUT.into_response(),
    };
    let Ok(permit) = service.at_once.clone().acquire_owned().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let answer = spawn_blocking(move || {
        let _permit = permit;
        service.answer(&body)
    });
    match answer.await {
        Ok(Some(text)) => ([(header::CONTENT_TYPE, "application/json")], Body::from(text)).into_response(),
        Ok(None) => StatusCode::NO_CONTENT.into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Refuses what only a browser would send on somebody else's behalf.
fn check(headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    if !host.is_some_and(is_here) {
        return Err((StatusCode::FORBIDDEN, "ask for localhost, or for a loopback address\n"));
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "send application/json\n"));
    }
    Ok(())
}

/// Whether a `Host` header names this machine by itself.
pub(super) fn is_here(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host }
    });
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[derive(Deserialize)]
struct Call {
    jsonrpc: String,
    method: String,
    #[serde(default)]
    params: Value,
}

impl Service {
    /// The answer to a body, `None` if nothing in it asks for one.
    fn answer(&self, body: &[u8]) -> Option<String> {
        let Ok(request) = serde_json::from_slice::<Value>(body) else {
            let error = RpcError::new(RpcError::PARSE, "parse error: the body is not JSON");
            return Some(response(&Value::Null, Err(error)));
        };
        let Value::Array(batch) = request else { return self.respond(request) };
        if batch.is_empty() || batch.len() > BATCH {
            let message = format!("a batch has 1 to {BATCH} requests");
            return Some(response(&Value::Null, Err(RpcError::new(RpcError::INVALID_REQUEST, message))));
        }
        let mut answers = String::new();
        let (begun, (most_bytes, longest)) = (Instant::now(), BATCH_ANSWERS);
        for request in batch {
            let answer = if answers.len() > most_bytes || begun.elapsed() > longest {
                let error = RpcError::new(RpcError::LIMIT, "the answers before this one were too much");
                Some(response(request.get("id").unwrap_or(&Value::Null), Err(error)))
            } else {
                self.respond(request)
            };
            if let Some(answer) = answer {
                answers.push(if answers.is_empty() { '[' } else { ',' });
                answers.push_str(&answer);
            }
        }
        if answers.is_empty() {
            return None;
        }
        answers.push(']');
        Some(answers)
    }

    fn respond(&self, mut request: Value) -> Option<String> {
        let id = request.get_mut("id").map(Value::take);
        let is_id = matches!(id, None | Some(Value::Null | Value::String(_) | Value::Number(_)));
        let call = if is_id { serde_json::from_value::<Call>(request).ok() } else { None };
        let Some(call) = call.filter(|call| call.jsonrpc == "2.0") else {
            let error = RpcError::new(RpcError::INVALID_REQUEST, "this is no JSON-RPC 2.0 request");
            return Some(response(&id.filter(|_| is_id).unwrap_or_default(), Err(error)));
        };
        let answer = if self.controls {
            self.chain.request(&call.method, &call.params)
        } else {
            self.chain.answer(&call.method, &call.params)
        };
        id.map(|id| response(&id, answer))
    }
}

fn response(id: &Value, answer: Result<Value, RpcError>) -> String {
    let body = match answer {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(RpcError { code, message, data: None }) => {
            json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
        }
        Err(RpcError { code, message, data }) => {
            json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message, "data": data}})
        }
    };
    body.to_string()
}
