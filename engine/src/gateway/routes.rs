//! The routes, and what every request passes on its way to them.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Path, Request, State as Shared};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use super::cluster::cluster;
use super::error::{ApiError, ErrorCode, shortened};
use super::generate;
use super::openai::Endpoint;
use super::server::{Phase, PipelineStatus, State, Tenant};

/// Names the receipts of a response, one for each choice, separated by commas.
pub(super) const RECEIPT_HEADER: HeaderName = HeaderName::from_static("x-dolphin-receipt");
/// Longest wait for a receipt whose reply has not ended, or is not signed yet.
const RECEIPT_PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn router(state: Arc<State>, origins: &[HeaderValue]) -> Router {
    let api = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/cluster", get(cluster))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/receipts", get(receipts))
        .route("/v1/receipts/{id}", get(receipt))
        .route_layer(from_fn_with_state(state.clone(), authorize));
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .merge(api)
        .fallback(unknown_url)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(cors(origins))
        .layer(from_fn_with_state(state.clone(), measure))
        .with_state(state)
}

fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let any = origins.iter().any(|origin| origin == "*");
    let origins = if any { AllowOrigin::any() } else { AllowOrigin::list(origins.iter().cloned()) };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods(AllowMethods::list([Method::GET, Method::POST, Method::OPTIONS]))
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([HeaderName::from_static("retry-after"), RECEIPT_HEADER, generate::COST])
}

async fn authorize(Shared(state): Shared<Arc<State>>, mut request: Request, next: Next) -> Response {
    match state.tenant(bearer(request.headers())) {
        Some(tenant) => {
            request.extensions_mut().insert(tenant);
            next.run(request).await
        }
        None => ApiError::InvalidApiKey.into_response(),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}

/// Counts the request by its route and status. Labels come from a fixed set, whatever the caller
/// sends.
async fn measure(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = route_label(request.uri().path());
    let response = next.run(request).await;
    state.metrics.request(route, response.status().as_u16(), started.elapsed());
    if let Some(ErrorCode(code)) = response.extensions().get::<ErrorCode>() {
        state.metrics.error(code);
    }
    response
}

fn route_label(path: &str) -> &'static str {
    match path {
        "/health" => "/health",
        "/metrics" => "/metrics",
        "/v1/cluster" => "/v1/cluster",
        "/v1/models" => "/v1/models",
        "/v1/chat/completions" => "/v1/chat/completions",
        "/v1/completions" => "/v1/completions",
        "/v1/receipts" => "/v1/receipts",
        path if path.starts_with("/v1/models/") => "/v1/models/{id}",
        path if path.starts_with("/v1/receipts/") => "/v1/receipts/{id}",
        _ => "other",
    }
}

async fn health(Shared(state): Shared<Arc<State>>) -> Response {
    let phase = *state.phase.borrow();
    let status = state.status.borrow().clone();
    let swarm = state.swarm.borrow().clone();
    let short = |node: &str| node.chars().take(8).collect::<String>();
    let moves: Vec<Value> = (swarm.moves.iter())
        .map(|m| json!({ "node": short(&m.node), "from": m.from, "to": m.to, "loading": m.loading }))
        .collect();
    let (code, body) = match (phase, status) {
        (Phase::Serving, PipelineStatus::Serving { nodes, pipeline, replans }) => {
            let stage = |(node, layers): &(String, Range<usize>)| json!({ "node": node, "from": layers.start, "to": layers.end });
            let pipeline: Vec<Value> = pipeline.iter().map(stage).collect();
            let body = json!({
                "status": "ok", "model": state.model.id, "nodes": nodes,
                "pipeline": pipeline, "replans": replans, "moves": moves, "moved": swarm.moved,
            });
            (StatusCode::OK, body)
        }
        (Phase::Serving, PipelineStatus::Waiting { missing }) => (
            StatusCode::SERVICE_UNAVAILABLE,
            json!({ "status": "no_pipeline", "model": state.model.id, "missing": missing, "moves": moves }),
        ),
        (Phase::Draining | Phase::Closing, _) => {
            (StatusCode::SERVICE_UNAVAILABLE, json!({ "status": "draining", "model": state.model.id }))
        }
    };
    (code, Json(body)).into_response()
}

async fn metrics(Shared(state): Shared<Arc<State>>) -> Response {
    if let Some(nat) = &state.config.nat {
        state.metrics.relay(&nat.relay());
    }
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, content_type)], state.metrics.render()).into_response()
}

fn model_object(state: &State, id: &str) -> Value {
    json!({
        "id": id,
        "object": "model",
        "created": state.model.created,
        "owned_by": "dolphin",
        "max_model_len": state.model.context,
    })
}

async fn models(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    let data: Vec<Value> = state.names().map(|id| model_object(&state, id)).collect();
    Json(json!({ "object": "list", "data": data }))
}

async fn model(Shared(state): Shared<Arc<State>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    if !state.serves(&id) {
        return Err(ApiError::ModelNotFound { model: shortened(&id) });
    }
    Ok(Json(model_object(&state, &id)))
}

async fn receipts(Shared(state): Shared<Arc<State>>, Extension(tenant): Extension<Tenant>) -> Json<Value> {
    let names = state.config.receipts.as_ref().map_or_else(Vec::new, |store| store.list(tenant.0));
    let data: Vec<Value> = names.iter().map(|id| json!({ "id": id, "object": "receipt" })).collect();
    Json(json!({ "object": "list", "data": data }))
}

async fn receipt(
    Shared(state): Shared<Arc<State>>,
    Extension(tenant): Extension<Tenant>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let found = match &state.config.receipts {
        Some(store) => store.get(&id, tenant.0, RECEIPT_PATIENCE).await,
        None => None,
    };
    let receipt = found.ok_or_else(|| ApiError::NoReceipt { id: shortened(&id) })?;
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json)], receipt.to_string()).into_response())
}

async fn chat(Shared(state): Shared<Arc<State>>, request: Request) -> Result<Response, ApiError> {
    let body = read_body(&state, request).await?;
    generate::answer(state, Endpoint::Chat, body).await
}

async fn completions(Shared(state): Shared<Arc<State>>, request: Request) -> Result<Response, ApiError> {
    let body = read_body(&state, request).await?;
    generate::answer(state, Endpoint::Completions, body).await
}

/// A request body, whose it is, and the room in memory that it takes.
pub(super) struct Payload {
    pub(super) bytes: Bytes,
    pub(super) tenant: Tenant,
    _room: OwnedSemaphorePermit,
}

async fn read_body(state: &State, request: Request) -> Result<Payload, ApiError> {
    let limit_bytes = state.config.max_body_bytes;
    let tenant = request.extensions().get().copied().ok_or(ApiError::InvalidApiKey)?;
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > limit_bytes.saturating_mul(DISCARD_FACTOR)) {
        return Err(ApiError::BodyTooLarge { limit_bytes });
    }
    let most_kib = announced.unwrap_or(limit_bytes).min(limit_bytes) / 1024 + 1;
    let most_kib = u32::try_from(most_kib).unwrap_or(u32::MAX);
    let read = async {
        let room = state.body_room_kib.clone().acquire_many_owned(most_kib).await;
        let room = room.map_err(|_| ApiError::ShuttingDown)?;
        let bytes = collect_body(request.into_body(), limit_bytes).await?;
        Ok(Payload { bytes, tenant, _room: room })
    };
    timeout(state.config.body_timeout, read).await.map_err(|_| ApiError::BodyTimeout)?
}

/// How many times the limit is read and thrown away before the connection is cut: a client that
/// is still writing would see the reset and never the answer.
const DISCARD_FACTOR: usize = 4;

async fn collect_body(body: Body, limit_bytes: usize) -> Result<Bytes, ApiError> {
    let mut stream = body.into_data_stream();
    let mut whole = BytesMut::new();
    let mut seen_bytes = 0_usize;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| ApiError::BodyTimeout)?;
        seen_bytes = seen_bytes.saturating_add(chunk.len());
        if seen_bytes <= limit_bytes {
            whole.extend_from_slice(&chunk);
        } else if seen_bytes > limit_bytes.saturating_mul(DISCARD_FACTOR) {
            break;
        }
    }
    if seen_bytes > limit_bytes {
        return Err(ApiError::BodyTooLarge { limit_bytes });
    }
    Ok(whole.freeze())
}

async fn unknown_url(method: Method, uri: Uri) -> ApiError {
    ApiError::UnknownUrl { method: shortened(method.as_str()), path: shortened(uri.path()) }
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::MethodNotAllowed { method: shortened(method.as_str()), path: shortened(uri.path()) }
}
