//! Connections, cancellation, limits, draining and measurements.

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::support::*;
use crate::gateway::GatewayConfig;
use crate::request::{Generation, Submission};

/// Admits a submission and hands out the sending end of its events.
fn admit(submission: Submission) -> mpsc::Sender<crate::request::Event> {
    let (sender, events) = mpsc::channel(16);
    submission.reply.send(Ok(Generation { events, receipt: None, price: 0 })).unwrap();
    sender
}

#[tokio::test]
async fn models_are_listed_with_their_aliases() {
    let fixture =
        start_scripted(GatewayConfig { aliases: vec!["org/alias".into()], ..config() }, |_| Ok(say("a")))
            .await;
    let (_, list) = json_of(fixture.get("/v1/models").await).await;
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], MODEL);
    assert_eq!(list["data"][1]["id"], "org/alias");
    for id in [MODEL, "org/alias", "org%2Falias"] {
        let (status, model) = json_of(fixture.get(&format!("/v1/models/{id}")).await).await;
        assert_eq!((status, &model["object"]), (200, &json!("model")));
        assert_eq!(model["created"], 1_700_000_000);
    }
    let (status, reply) = json_of(fixture.chat(json!({ "model": "org/alias" })).await).await;
    assert_eq!((status, &reply["model"]), (200, &json!(MODEL)));
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_cancels_every_choice() {
    let (fixture, mut submissions) = start(config()).await;
    let pipeline = async {
        let first = admit(submissions.recv().await.unwrap());
        let second = admit(submissions.recv().await.unwrap());
        first.send(token(b'a'.into())).await.unwrap();
        first.closed().await;
        second.closed().await;
    };
    let client = async {
        let response = fixture.chat(json!({ "stream": true, "n": 2 })).await;
        let (events, rest) = first_events(response, 3).await;
        assert!(events[2].contains("\"a\""));
        drop(rest);
    };
    tokio::join!(pipeline, client);
}

/// Sends a request by hand, so that the test decides when the connection goes.
async fn send_raw(fixture: &Fixture, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(fixture.gateway.local_addr).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn a_client_that_leaves_before_admission_or_a_whole_reply_cancels() {
    let (fixture, mut submissions) = start(config()).await;
    let body = json!({ "model": MODEL, "messages": [user("hi")] }).to_string();

    let stream = send_raw(&fixture, &body).await;
    let mut waiting = submissions.recv().await.unwrap();
    drop(stream);
    waiting.reply.closed().await;

    let stream = send_raw(&fixture, &body).await;
    let events = admit(submissions.recv().await.unwrap());
    events.send(token(b'a'.into())).await.unwrap();
    drop(stream);
    events.closed().await;
}

#[tokio::test]
async fn two_hundred_clients_lose_nothing() {
    let fixture = start_scripted(config(), |request| {
        let bytes: Vec<u8> = request.prompt.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
        Ok(say(std::str::from_utf8(&bytes).unwrap()))
    })
    .await;
    let client = |index: usize| {
        let fixture = &fixture;
        async move {
            let content = format!("client {index} 🐬");
            let extra = json!({ "messages": [user(&content)], "stream": index.is_multiple_of(2) });
            let response = fixture.chat(extra).await;
            let text = if index.is_multiple_of(2) {
                texts(&chunks_of(response).await)[&0].clone()
            } else {
                let (_, reply) = json_of(response).await;
                reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
            };
            assert_eq!(text, format!("[user]{content}[assistant]"));
        }
    };
    join_all((0..200).map(client)).await;
    let metrics = fixture.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("dolphin_gateway_requests_in_flight 0"), "{metrics}");
}

#[tokio::test]
async fn a_full_gateway_answers_429_and_recovers() {
    let (fixture, mut submissions) = start(GatewayConfig { max_concurrent: 1, ..config() }).await;
    let running = fixture.chat(json!({ "stream": true }));
    let (running, events) = tokio::join!(running, async { admit(submissions.recv().await.unwrap()) });
    let response = fixture.chat(json!({})).await;
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(response.status(), 429);
    drop(running);
    events.closed().await;
    let pipeline = async {
        let events = admit(submissions.recv().await.unwrap());
        for event in say("b") {
            events.send(event).await.unwrap();
        }
    };
    let ((), response) = tokio::join!(pipeline, fixture.chat(json!({})));
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn silent_streams_carry_comments() {
    let config = GatewayConfig { keep_alive: Duration::from_millis(5), ..config() };
    let (fixture, mut submissions) = start(config).await;
    let (mut response, events) = tokio::join!(fixture.chat(json!({ "stream": true })), async {
        admit(submissions.recv().await.unwrap())
    });
    let mut text = String::new();
    while text.matches(": keep-alive\n\n").count() < 2 {
        text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    for event in say("ok") {
        events.send(event).await.unwrap();
    }
    assert!(response.text().await.unwrap().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn draining_lets_replies_finish() {
    let (stop, stopped) = oneshot::channel::<()>();
    let (fixture, mut submissions) = start_until(config(), async { drop(stopped.await) }).await;
    let (response, events) = tokio::join!(fixture.chat(json!({ "stream": true })), async {
        admit(submissions.recv().await.unwrap())
    });
    drop(stop);
    let address = fixture.gateway.local_addr;
    let finish = async {
        // The listener goes before the drain begins, and a refused connection says so.
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        for event in say("late") {
            events.send(event).await.unwrap();
        }
        assert_eq!(texts(&chunks_of(response).await)[&0], "late");
    };
    tokio::join!(finish, fixture.gateway.stopped());
}

#[tokio::test]
async fn after_the_drain_replies_end_with_an_error() {
    let (stop, stopped) = oneshot::channel::<()>();
    let config = GatewayConfig { drain_timeout: Duration::from_millis(20), ..config() };
    let (fixture, mut submissions) = start_until(config, async { drop(stopped.await) }).await;
    let whole = fixture.chat(json!({}));
    let stream = async { events_of(fixture.chat(json!({ "stream": true })).await).await };
    let pipeline = async {
        let first = admit(submissions.recv().await.unwrap());
        let second = admit(submissions.recv().await.unwrap());
        drop(stop);
        first.closed().await;
        second.closed().await;
    };
    let (whole, events, ()) = tokio::join!(whole, stream, pipeline);
    assert_eq!(whole.status(), 503);
    assert!(events.last().unwrap().contains("shutting_down"));
    fixture.gateway.stopped().await;
}

#[tokio::test]
async fn slow_heads_and_bodies_are_cut() {
    let config = GatewayConfig {
        header_timeout: Duration::from_millis(50),
        body_timeout: Duration::from_millis(50),
        ..config()
    };
    let (fixture, _submissions) = start(config).await;
    let mut stream = TcpStream::connect(fixture.gateway.local_addr).await.unwrap();
    stream.write_all(b"POST /v1/completions HTTP/1.1\r\nhost:").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;

    let mut stream = TcpStream::connect(fixture.gateway.local_addr).await.unwrap();
    stream
        .write_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn a_client_that_stops_reading_is_dropped() {
    let config = GatewayConfig { write_timeout: Duration::from_millis(50), ..config() };
    let (fixture, mut submissions) = start(config).await;
    let body = json!({ "model": MODEL, "messages": [user("hi")], "stream": true }).to_string();
    let stream = send_raw(&fixture, &body).await;
    let events = admit(submissions.recv().await.unwrap());
    while events.send(token(b'a'.into())).await.is_ok() {}
    drop(stream);
}

#[tokio::test]
async fn pages_of_allowed_origins_may_call() {
    let config = GatewayConfig { cors_origins: vec!["https://app.example".into()], ..config() };
    let fixture =
        start_scripted(GatewayConfig { api_keys: vec!["k".into()], ..config }, |_| Ok(say("a"))).await;
    let preflight = |origin: &'static str| {
        fixture
            .client
            .request(reqwest::Method::OPTIONS, fixture.url("/v1/chat/completions"))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .send()
    };
    let allowed = preflight("https://app.example").await.unwrap();
    assert_eq!(allowed.status(), 200);
    assert_eq!(allowed.headers()["access-control-allow-origin"], "https://app.example");
    assert_eq!(allowed.headers()["access-control-allow-headers"], "authorization,content-type");
    let other = preflight("https://evil.example").await.unwrap();
    assert!(other.headers().get("access-control-allow-origin").is_none());
}

#[tokio::test]
async fn measurements_count_by_route_status_and_code() {
    let fixture = start_scripted(config(), |_| Ok(say("abc"))).await;
    assert_eq!(fixture.chat(json!({})).await.status(), 200);
    assert_eq!(fixture.chat(json!({ "n": 0 })).await.status(), 400);
    fixture.get("/nowhere/at/all").await;
    let text = fixture.get("/metrics").await.text().await.unwrap();
    for line in [
        "dolphin_gateway_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
        "dolphin_gateway_requests_total{route=\"/v1/chat/completions\",status=\"400\"} 1",
        "dolphin_gateway_requests_total{route=\"other\",status=\"404\"} 1",
        "dolphin_gateway_errors_total{code=\"invalid_value\"} 1",
        "dolphin_gateway_prompt_tokens_total 20",
        "dolphin_gateway_completion_tokens_total 4",
        "dolphin_gateway_time_to_first_token_seconds_count 1",
        "dolphin_gateway_inter_token_seconds_count 3",
        "dolphin_gateway_requests_in_flight 0",
    ] {
        assert!(text.contains(line), "{line} is missing from\n{text}");
    }
    assert!(fixture.metrics.render().contains("route=\"/metrics\""));
}
