//! A bad line to a chain's node: loses, delays and garbles what goes over it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// A bad line; dropped, it is gone.
pub(crate) struct Proxy {
    pub(crate) url: String,
    line: Arc<Line>,
    task: JoinHandle<()>,
}

struct Line {
    upstream: String,
    http: reqwest::Client,
    count: AtomicU64,
    is_bad: AtomicBool,
    is_down: AtomicBool,
}

impl Proxy {
    pub(crate) async fn before(upstream: &str) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let line = Arc::new(Line {
            upstream: upstream.to_owned(),
            http,
            count: AtomicU64::new(0),
            is_bad: AtomicBool::new(false),
            is_down: AtomicBool::new(false),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let router = Router::new().route("/", post(pass)).with_state(line.clone());
        let task = tokio::spawn(async move {
            // It only ends by being aborted.
            let _ = axum::serve(listener, router).await;
        });
        Self { url, line, task }
    }

    pub(crate) fn set_bad(&self, is_bad: bool) {
        self.line.is_bad.store(is_bad, Ordering::Relaxed);
    }

    pub(crate) fn set_down(&self, is_down: bool) {
        self.line.is_down.store(is_down, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(State(line): State<Arc<Line>>, body: Bytes) -> Response {
    if line.is_down.load(Ordering::Relaxed) {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    // Every fault in turn, none of them for the same request each time.
    let fault = match line.is_bad.load(Ordering::Relaxed) {
        true => line.count.fetch_add(1, Ordering::Relaxed) * 7 % 23,
        false => u64::MAX,
    };
    match fault {
        0 => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        1 => return "<html>busy</html>".into_response(),
        2 => return json!({ "jsonrpc": "2.0", "id": 1, "result": "0x7" }).to_string().into_response(),
        3 => return vec![b' '; 17 << 20].into_response(),
        4 => tokio::time::sleep(Duration::from_millis(300)).await,
        5 => {
            return json!({ "error": { "code": -32005, "message": "too often" } })
                .to_string()
                .into_response();
        }
        _ => {}
    }
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let Ok(answer) =
        line.http.post(&line.upstream).header("content-type", "application/json").body(body).send().await
    else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let Ok(text) = answer.bytes().await else { return StatusCode::BAD_GATEWAY.into_response() };
    match fault {
        // The request was heard, and nobody learns of it.
        6 | 7 => StatusCode::GATEWAY_TIMEOUT.into_response(),
        8 => Body::from(text.slice(..text.len() / 2)).into_response(),
        9 if asked["method"] == "eth_getTransactionCount" => stale(&text).into_response(),
        _ => Body::from(text).into_response(),
    }
}

/// An answer of a node that is some transactions behind.
fn stale(text: &[u8]) -> String {
    let mut answer: Value = serde_json::from_slice(text).unwrap_or_default();
    let count = answer["result"].as_str().and_then(|count| u64::from_str_radix(count.get(2..)?, 16).ok());
    answer["result"] = json!(format!("0x{:x}", count.unwrap_or(0).saturating_sub(3)));
    answer.to_string()
}
