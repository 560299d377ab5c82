//! JSON-RPC over HTTP and HTTPS.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use reqwest::{Client, Response, Url, redirect::Policy};
use serde::Deserialize;
use serde_json::{Value, json};

use super::rpc::{Rpc, RpcFault};
use crate::client::Error;

/// Longest part of a stranger's message that is passed on, in characters.
const LONGEST_MESSAGE: usize = 300;

/// A chain's node behind a URL.
pub(super) struct Http {
    client: Client,
    url: Url,
    longest: usize,
    id: AtomicU64,
}

/// What a node answers; strict about nothing that does not matter.
#[derive(Deserialize)]
struct Answer {
    id: Option<Value>,
    #[serde(default)]
    result: Value,
    error: Option<AnswerError>,
}

#[derive(Deserialize)]
struct AnswerError {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
    data: Option<Value>,
}

impl Http {
    /// Requests are given up after `timeout`, answers of more than `longest` bytes are not read.
    pub(super) fn new(url: &str, timeout: Duration, longest: usize) -> Result<Self, Error> {
        let url = Url::parse(url).map_err(|_| Error::Invalid("the chain's URL is none"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Error::Invalid("the chain's URL must begin with http:// or https://"));
        }
        // A node does not send its callers elsewhere, and what it is asked is nobody else's business.
        let client = Client::builder().timeout(timeout).connect_timeout(timeout).redirect(Policy::none());
        let is_here = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let client = if is_here { client.no_proxy() } else { client };
        let client = client.build().map_err(|error| Error::Unreachable(error.to_string()))?;
        Ok(Self { client, url, longest, id: AtomicU64::new(1) })
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, RpcFault> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > self.longest {
                return Err(RpcFault::TooLong(self.longest));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

#[async_trait]
impl Rpc for Http {
    async fn request(&self, method: &str, params: Value) -> Result<Value, RpcFault> {
        let id = self.id.fetch_add(1, Ordering::Relaxed);
        let question = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let response =
            self.client.post(self.url.clone()).json(&question).send().await.map_err(unreachable)?;
        let status = response.status();
        let body = self.body(response).await?;
        // Some say with a status what others say in an answer, so a proper answer counts whatever the status.
        let answer = match serde_json::from_slice::<Answer>(&body) {
            Ok(answer) => answer,
            Err(_) if !status.is_success() => {
                return Err(RpcFault::Unreachable(format!("status {status} for {method}")));
            }
            Err(error) => return Err(RpcFault::BadAnswer(format!("to {method}: {error}"))),
        };
        if let Some(AnswerError { code, message, data }) = answer.error {
            let message = message.chars().take(LONGEST_MESSAGE).collect();
            return Err(RpcFault::Refused { code, message, data });
        }
        if !status.is_success() {
            return Err(RpcFault::Unreachable(format!("status {status} for {method}")));
        }
        if answer.id != Some(json!(id)) {
            return Err(RpcFault::BadAnswer(format!("to another question than {method}")));
        }
        Ok(answer.result)
    }
}

/// Without the URL: many hold a key.
fn unreachable(error: reqwest::Error) -> RpcFault {
    let error = error.without_url();
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
    RpcFault::Unreachable(format!("{error}{cause}"))
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Http({})", host(&self.url))
    }
}

/// As much of a URL as may be shown.
fn host(url: &Url) -> String {
    format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// A node that answers one request with these bytes.
    async fn node(answer: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://user:word@{}/key", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await.unwrap();
            let _ = stream.write_all(&answer).await;
        });
        url
    }

    async fn ask(status: &str, body: &str) -> Result<Value, RpcFault> {
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let url = node(answer.into_bytes()).await;
        let http = Http::new(&url, Duration::from_secs(5), 1000).unwrap();
        http.request("eth_x", json!([])).await
    }

    #[tokio::test]
    async fn answers_are_told_apart() {
        let good = ask("200 OK", r#"{"jsonrpc":"2.0","id":1,"result":"0x7"}"#).await;
        assert_eq!(good.unwrap(), json!("0x7"));
        let null = ask("200 OK", r#"{"jsonrpc":"2.0","id":1,"result":null}"#).await;
        assert_eq!(null.unwrap(), Value::Null);
        for status in ["200 OK", "400 Bad Request"] {
            let refused = ask(status, r#"{"id":1,"error":{"code":3,"message":"no","data":"0x01"}}"#).await;
            assert!(matches!(refused, Err(RpcFault::Refused { code: 3, .. })), "{refused:?}");
        }
        for body in ["<html>", "", "[]", "{", r#"{"id":2,"result":"0x7"}"#] {
            let bad = ask("200 OK", body).await;
            assert!(matches!(bad, Err(RpcFault::BadAnswer(_))), "{bad:?}");
        }
        let down = ask("503 Service Unavailable", "busy").await;
        assert!(matches!(down, Err(RpcFault::Unreachable(_))), "{down:?}");
        let long = ask("200 OK", &"x".repeat(1001)).await;
        assert!(matches!(long, Err(RpcFault::TooLong(1000))), "{long:?}");
    }

    #[tokio::test]
    async fn no_error_shows_the_key_in_a_url() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://user:word@{}/key", listener.local_addr().unwrap());
        drop(listener);
        let http = Http::new(&url, Duration::from_secs(5), 1000).unwrap();
        let fault = http.request("eth_x", json!([])).await.unwrap_err();
        for text in [format!("{fault:?}"), format!("{http:?}")] {
            assert!(!text.contains("key") && !text.contains("word"), "{text}");
        }
        assert!(Http::new("ftp://127.0.0.1", Duration::from_secs(5), 1000).is_err());
        assert!(Http::new("127.0.0.1:8545", Duration::from_secs(5), 1000).is_err());
    }
}
