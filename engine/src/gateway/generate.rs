//! From a parsed request to its replies: render, encode, submit, then stream or collect.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout_at;

use super::error::{ApiError, shortened};
use super::openai::{Endpoint, Shape, usage};
use super::params::{ChatCall, Common, CompletionCall, Prompt, parse_object};
use super::prompts::encode;
use super::replies::{Replies, Source};
use super::reply::{Reply, Update};
use super::routes::{Payload, RECEIPT_HEADER};
use super::server::{State, Tenant};
use super::stream::{self, closing};
use crate::payment::pod;
use crate::request::Request;

/// What a reply cost, in POD.
pub(super) const COST: HeaderName = HeaderName::from_static("x-dolphin-cost");

/// A request whose prompts are tokens.
struct Prepared {
    endpoint: Endpoint,
    tenant: Tenant,
    common: Common,
    prompts: Vec<Vec<u32>>,
}

/// Answers a request to one of the two generating endpoints.
pub(super) async fn answer(
    state: Arc<State>,
    endpoint: Endpoint,
    body: Payload,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let deadline = started + state.config.request_deadline;
    let slot = state.slots.clone().try_acquire_owned().map_err(|_| busy())?;
    let work = run(state.clone(), endpoint, body, slot, started, deadline);
    match timeout_at(deadline.into(), work).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::Deadline),
    }
}

async fn run(
    state: Arc<State>,
    endpoint: Endpoint,
    body: Payload,
    slot: OwnedSemaphorePermit,
    started: Instant,
    deadline: Instant,
) -> Result<Response, ApiError> {
    let prepared = prepare(&state, endpoint, body).await?;
    let prompt_tokens = prepared.prompts.iter().map(|prompt| prompt.len() as u64).sum();
    let shape = shape(&state, &prepared)?;
    let stream = prepared.common.stream;
    let sources = submit(&state, prepared, deadline).await?;
    state.metrics.prompt(prompt_tokens);
    let receipts = receipts(&sources);
    let replies = Replies::new(sources, started, state.metrics.clone(), slot);
    let mut phase = state.phase.clone();
    let mut response = if stream {
        let keep_alive = state.config.keep_alive;
        stream::response(shape, replies, prompt_tokens, deadline, phase, keep_alive)
    } else {
        tokio::select! {
            biased;
            () = closing(&mut phase) => return Err(ApiError::ShuttingDown),
            response = collect(shape, replies, prompt_tokens) => response?,
        }
    };
    response.headers_mut().extend(receipts.map(|receipts| (RECEIPT_HEADER, receipts)));
    Ok(response)
}

/// The names of the replies' receipts, if they all have one.
fn receipts(sources: &[Source]) -> Option<HeaderValue> {
    let names: Option<Vec<String>> =
        sources.iter().map(|source| Some(source.receipt()?.to_string())).collect();
    HeaderValue::from_str(&names?.join(", ")).ok()
}

async fn collect(shape: Shape, mut replies: Replies, prompt_tokens: u64) -> Result<Response, ApiError> {
    let mut whole = vec![Update::default(); replies.len()];
    while let Some(next) = replies.next().await {
        match next {
            Ok((index, update)) => whole[index].extend(update),
            Err(error) => {
                replies.fail(&error);
                return Err(error);
            }
        }
    }
    let cost = replies.cost();
    let usage = usage(prompt_tokens, replies.completion_tokens(), cost);
    let mut response = Json(shape.response(whole, usage)).into_response();
    if let Some(header) = cost.and_then(|wei| HeaderValue::from_str(&pod(wei)).ok()) {
        response.headers_mut().insert(COST, header);
    }
    Ok(response)
}

/// Parses, renders and encodes away from the threads that serve sockets: long prompts take long.
async fn prepare(state: &Arc<State>, endpoint: Endpoint, body: Payload) -> Result<Prepared, ApiError> {
    let closed = |_| ApiError::ShuttingDown;
    let permit = state.encoders.clone().acquire_owned().await.map_err(closed)?;
    let state = state.clone();
    let work = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        match endpoint {
            Endpoint::Chat => prepare_chat(&state, &body),
            Endpoint::Completions => prepare_completions(&state, &body),
        }
    });
    work.await.map_err(|_| ApiError::Internal { reason: "preparing the prompt failed" })?
}

fn prepare_chat(state: &State, payload: &Payload) -> Result<Prepared, ApiError> {
    let body = parse_object(&payload.bytes)?;
    let call = ChatCall::parse(&body, &state.bounds)?;
    known_model(state, &call.common.model)?;
    let text = state.model.template.render(&call)?;
    // The template has written the special tokens already.
    let prompt = checked(state, encode(&state.model.tokenizer, &text, false, "messages")?, "messages")?;
    let (endpoint, tenant) = (Endpoint::Chat, payload.tenant);
    Ok(Prepared { endpoint, tenant, common: call.common, prompts: vec![prompt] })
}

fn prepare_completions(state: &State, payload: &Payload) -> Result<Prepared, ApiError> {
    let body = parse_object(&payload.bytes)?;
    let call = CompletionCall::parse(&body, &state.bounds)?;
    known_model(state, &call.common.model)?;
    let tokens = |prompt: Prompt| match prompt {
        Prompt::Text(text) => {
            checked(state, encode(&state.model.tokenizer, &text, true, "prompt")?, "prompt")
        }
        Prompt::Tokens(tokens) => checked(state, tokens, "prompt"),
    };
    let prompts = call.prompts.into_iter().map(tokens).collect::<Result<_, _>>()?;
    let (endpoint, tenant) = (Endpoint::Completions, payload.tenant);
    Ok(Prepared { endpoint, tenant, common: call.common, prompts })
}

fn known_model(state: &State, model: &str) -> Result<(), ApiError> {
    if state.serves(model) { Ok(()) } else { Err(ApiError::ModelNotFound { model: shortened(model) }) }
}

fn checked(state: &State, prompt: Vec<u32>, param: &'static str) -> Result<Vec<u32>, ApiError> {
    if prompt.is_empty() {
        let reason = "it has no tokens".to_owned();
        return Err(ApiError::InvalidValue { param: param.to_owned(), reason });
    }
    let limit = u64::from(state.config.max_prompt_tokens.saturating_add(1).min(state.model.context));
    let requested = prompt.len() as u64 + 1;
    if requested > limit {
        return Err(ApiError::ContextLength { param, requested, limit });
    }
    Ok(prompt)
}

fn shape(state: &State, prepared: &Prepared) -> Result<Shape, ApiError> {
    let prefix = match prepared.endpoint {
        Endpoint::Chat => "chatcmpl",
        Endpoint::Completions => "cmpl",
    };
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(no_randomness)?;
    // A clock before 1970 is not worth failing a request for.
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(Shape {
        endpoint: prepared.endpoint,
        id: format!("{prefix}-{}", hex::encode(id)),
        created,
        model: state.model.id.clone(),
        fingerprint: state.model.fingerprint.clone(),
        tokenizer: state.model.tokenizer.clone(),
        logprobs: prepared.common.sampling.logprobs.is_some(),
        include_usage: prepared.common.include_usage,
    })
}

/// Hands in `n` requests per prompt; if one is refused, the others are dropped and so cancelled.
async fn submit(state: &State, prepared: Prepared, deadline: Instant) -> Result<Vec<Source>, ApiError> {
    let Prepared { endpoint, tenant, common, prompts } = prepared;
    let param = match endpoint {
        Endpoint::Chat => "messages",
        Endpoint::Completions => "prompt",
    };
    let seed = match common.seed {
        Some(seed) => seed,
        None => getrandom::u64().map_err(no_randomness)?,
    };
    let mut stop_tokens = common.stop_tokens.clone();
    if !common.ignore_eos {
        stop_tokens.extend(&state.model.eos_ids);
    }
    let max_tokens = common.max_tokens.unwrap_or(state.config.default_max_tokens);
    let requests = prompts.iter().flat_map(|prompt| (0..common.n).map(move |choice| (prompt, choice)));
    let pending = requests.map(|(prompt, choice)| {
        let mut sampling = common.sampling.clone();
        (sampling.seed, sampling.choice) = (seed, choice);
        let room = usize::try_from(state.model.context).unwrap_or(usize::MAX) - prompt.len();
        let request = Request {
            prompt: prompt.clone(),
            max_tokens: max_tokens.min(u32::try_from(room).unwrap_or(u32::MAX)),
            stop_tokens: stop_tokens.clone(),
            sampling,
            tenant: tenant.0,
            priority: common.priority,
            deadline: deadline.saturating_duration_since(Instant::now()),
        };
        let reply = Reply::new(state.model.tokenizer.clone(), common.stops.clone(), stop_tokens.clone());
        async move {
            let generation = state.submitter.submit(request).await;
            let generation = generation.map_err(|refusal| ApiError::refused(refusal, param))?;
            Ok::<_, ApiError>(Source::new(reply, prompt.len() as u64, generation))
        }
    });
    try_join_all(pending).await
}

fn busy() -> ApiError {
    ApiError::Busy { retry_after: Duration::from_secs(1) }
}

fn no_randomness(_: getrandom::Error) -> ApiError {
    ApiError::Internal { reason: "the operating system gave no random numbers" }
}
