//! A reply as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Interval, interval_at, sleep_until};

use super::error::ApiError;
use super::openai::{Shape, usage};
use super::replies::Replies;
use super::server::Phase;

/// A running stream. The body owns it: when the client goes away, it is dropped and cancels.
struct Events {
    shape: Shape,
    replies: Replies,
    prompt_tokens: u64,
    /// Events not sent yet: at most those of one update, or one opening per reply.
    ready: VecDeque<Bytes>,
    deadline: Instant,
    phase: watch::Receiver<Phase>,
    keep_alive: Interval,
    done: bool,
}

pub(super) fn response(
    shape: Shape,
    replies: Replies,
    prompt_tokens: u64,
    deadline: Instant,
    phase: watch::Receiver<Phase>,
    keep_alive: Duration,
) -> Response {
    let ready = (0..replies.len()).filter_map(|index| shape.opening(index)).map(|chunk| event(&chunk));
    let mut keep_alive = interval_at(tokio::time::Instant::now() + keep_alive, keep_alive);
    keep_alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let ready = ready.collect();
    let events = Events { shape, replies, prompt_tokens, ready, deadline, phase, keep_alive, done: false };
    let body = stream::unfold(events, |mut events| async move {
        let bytes = events.next().await?;
        Some((Ok::<_, Infallible>(bytes), events))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Reverse proxies of the nginx family buffer replies unless told not to.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(body)).into_response()
}

impl Events {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.done {
                return None;
            }
            tokio::select! {
                biased;
                () = closing(&mut self.phase) => self.fail(&ApiError::ShuttingDown),
                () = sleep_until(self.deadline.into()) => self.fail(&ApiError::Deadline),
                next = self.replies.next() => {
                    self.keep_alive.reset();
                    match next {
                        Some(Ok((index, update))) => {
                            let chunks = self.shape.chunks(index, &update);
                            self.ready.extend(chunks.iter().map(event));
                        }
                        Some(Err(error)) => self.fail(&error),
                        None => self.finish(),
                    }
                }
                _ = self.keep_alive.tick() => return Some(Bytes::from_static(b": keep-alive\n\n")),
            }
        }
    }

    fn finish(&mut self) {
        let usage = usage(self.prompt_tokens, self.replies.completion_tokens(), self.replies.cost());
        self.ready.extend(self.shape.usage_chunk(usage).as_ref().map(event));
        self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.done = true;
    }

    fn fail(&mut self, error: &ApiError) {
        self.replies.fail(error);
        self.ready.push_back(event(&error.body()));
        self.done = true;
    }
}

/// Resolves when running replies must end.
pub(super) async fn closing(phase: &mut watch::Receiver<Phase>) {
    // A sender that is gone says the server is gone, which closes as well.
    let _ = phase.wait_for(|phase| *phase == Phase::Closing).await;
}

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}
