//! Refusals and failures, by status and shape.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::support::*;
use crate::gateway::{GatewayConfig, PipelineStatus};
use crate::request::{Event, Failure, Generation, Refusal};

fn assert_error(status: u16, reply: &Value, expected: u16, code: &str, param: Option<&str>) {
    assert_eq!(status, expected, "{reply}");
    let error = &reply["error"];
    assert_eq!(error["code"], code, "{reply}");
    assert_eq!(error["param"].as_str(), param, "{reply}");
    assert!(error["message"].is_string() && error["type"].is_string(), "{reply}");
}

#[tokio::test]
async fn parameters_are_checked_by_name() {
    let fixture = start_scripted(config(), |_| Ok(say("a"))).await;
    let tool = json!([{ "type": "function", "function": { "name": "f" } }]);
    for (extra, code, param) in [
        (json!({ "temperature": "hot" }), "invalid_type", "temperature"),
        (json!({ "temperature": 2.1 }), "invalid_value", "temperature"),
        (json!({ "top_p": -0.1 }), "invalid_value", "top_p"),
        (json!({ "top_k": 1.5 }), "invalid_type", "top_k"),
        (json!({ "repetition_penalty": 0 }), "invalid_value", "repetition_penalty"),
        (json!({ "n": 0 }), "invalid_value", "n"),
        (json!({ "n": 1_000_000 }), "invalid_value", "n"),
        (json!({ "max_tokens": 0 }), "invalid_value", "max_tokens"),
        (json!({ "max_tokens": "many" }), "invalid_type", "max_tokens"),
        (json!({ "stream": "yes" }), "invalid_type", "stream"),
        (json!({ "stream_options": 1 }), "invalid_type", "stream_options"),
        (json!({ "stop": 1 }), "invalid_type", "stop"),
        (json!({ "stop": "" }), "invalid_value", "stop"),
        (json!({ "stop": ["a", "b", "c", "d", "e"] }), "invalid_value", "stop"),
        (json!({ "stop": "x".repeat(5000) }), "invalid_value", "stop"),
        (json!({ "logit_bias": { "x": 1 } }), "invalid_value", "logit_bias"),
        (json!({ "logit_bias": { "5": 101 } }), "invalid_value", "logit_bias"),
        (json!({ "logit_bias": { "99999": 1 } }), "invalid_value", "logit_bias"),
        (json!({ "logit_bias": [1] }), "invalid_type", "logit_bias"),
        (json!({ "top_logprobs": 3 }), "invalid_value", "top_logprobs"),
        (json!({ "logprobs": true, "top_logprobs": 21 }), "invalid_value", "top_logprobs"),
        (json!({ "messages": [] }), "invalid_value", "messages"),
        (json!({ "messages": "hi" }), "invalid_type", "messages"),
        (json!({ "messages": null }), "missing_required_parameter", "messages"),
        (json!({ "messages": [1] }), "invalid_type", "messages[0]"),
        (json!({ "messages": [{ "role": "god", "content": "" }] }), "invalid_value", "messages[0].role"),
        (json!({ "messages": [{ "role": "user" }] }), "invalid_type", "messages[0].content"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
            "unsupported_value",
            "messages[0].content[0].type",
        ),
        (json!({ "model": null }), "missing_required_parameter", "model"),
        (json!({ "model": 5 }), "invalid_type", "model"),
        (json!({ "tools": tool }), "unsupported_value", "tools"),
        (json!({ "response_format": { "type": "json_object" } }), "unsupported_value", "response_format"),
        (json!({ "modalities": ["text", "audio"] }), "unsupported_value", "modalities"),
        (json!({ "guided_json": {} }), "unsupported_value", "guided_json"),
    ] {
        let (status, reply) = json_of(fixture.chat(extra).await).await;
        assert_error(status, &reply, 400, code, Some(param));
        assert_eq!(reply["error"]["type"], "invalid_request_error");
    }
    assert_eq!(fixture.chat(json!({ "tools": tool, "tool_choice": "none" })).await.status(), 200);
}

#[tokio::test]
async fn an_unknown_model_is_404() {
    let fixture = start_scripted(config(), |_| Ok(say("a"))).await;
    let (status, reply) = json_of(fixture.chat(json!({ "model": "gpt-x" })).await).await;
    assert_error(status, &reply, 404, "model_not_found", Some("model"));
    let (status, reply) = json_of(fixture.get("/v1/models/gpt-x").await).await;
    assert_error(status, &reply, 404, "model_not_found", Some("model"));
}

#[tokio::test]
async fn unknown_paths_methods_and_bodies() {
    let fixture = start_scripted(config(), |_| Ok(say("a"))).await;
    let (status, reply) = json_of(fixture.get("/v2/nothing").await).await;
    assert_error(status, &reply, 404, "unknown_url", None);
    let (status, reply) = json_of(fixture.get("/v1/chat/completions").await).await;
    assert_error(status, &reply, 405, "method_not_allowed", None);
    let deep = "[".repeat(100_000);
    for body in ["", "{", "[]", "\"a\"", "{\"model\": \"\u{0}\"}", deep.as_str()] {
        let request = fixture.client.post(fixture.url("/v1/chat/completions")).body(body.to_owned());
        let (status, reply) = json_of(request.send().await.unwrap()).await;
        assert_error(status, &reply, 400, "invalid_json", None);
    }
    let bytes = fixture.client.post(fixture.url("/v1/completions")).body(vec![0xff, 0xfe, b'{']);
    assert_eq!(bytes.send().await.unwrap().status(), 400);
}

#[tokio::test]
async fn large_bodies_are_413() {
    let fixture = start_scripted(GatewayConfig { max_body_bytes: 1000, ..config() }, |_| Ok(say("a"))).await;
    for length in [1001, 2000, 4001, 100_000] {
        let request = fixture.client.post(fixture.url("/v1/completions")).body("x".repeat(length));
        let (status, reply) = json_of(request.send().await.unwrap()).await;
        assert_error(status, &reply, 413, "request_too_large", None);
    }
    let pieces = futures::stream::iter((0..30).map(|_| Ok::<_, std::io::Error>("x".repeat(100))));
    let request =
        fixture.client.post(fixture.url("/v1/completions")).body(reqwest::Body::wrap_stream(pieces));
    assert_eq!(request.send().await.unwrap().status(), 413);
}

#[tokio::test]
async fn long_prompts_are_refused_before_the_pipeline() {
    let fixture = start_scripted(config(), |_| panic!("nothing should arrive")).await;
    let long = "x".repeat(1000);
    let (status, reply) = json_of(fixture.chat(json!({ "messages": [user(&long)] })).await).await;
    assert_error(status, &reply, 400, "context_length_exceeded", Some("messages"));
    let (status, reply) = json_of(fixture.complete(json!({ "prompt": long })).await).await;
    assert_error(status, &reply, 400, "context_length_exceeded", Some("prompt"));
}

#[tokio::test]
async fn refusals_of_the_pipeline_have_their_status() {
    for (refusal, expected, code, kind) in [
        (
            Refusal::Busy { retry_after: Duration::from_millis(2500) },
            429,
            "rate_limit_exceeded",
            "rate_limit_error",
        ),
        (Refusal::NoPipeline { missing: "layers 3..5".into() }, 503, "no_pipeline", "server_error"),
        (
            Refusal::TooLong { requested: 9, limit: 8 },
            400,
            "context_length_exceeded",
            "invalid_request_error",
        ),
        (Refusal::Shutdown, 503, "shutting_down", "server_error"),
    ] {
        let answer = refusal.clone();
        let fixture = start_scripted(config(), move |_| Err(answer.clone())).await;
        for stream in [false, true] {
            let response = fixture.chat(json!({ "stream": stream, "n": 2 })).await;
            let retry = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
            let (status, reply) = json_of(response).await;
            let param = (expected == 400).then_some("messages");
            assert_error(status, &reply, expected, code, param);
            assert_eq!(reply["error"]["type"], kind);
            if expected == 429 {
                assert_eq!(retry.as_deref(), Some("3"));
            }
        }
    }
}

#[tokio::test]
async fn failures_of_the_pipeline_have_their_status_or_end_the_stream() {
    let lost = Failure::NodeLost { node: "n7".into(), reason: "timeout".into() };
    for (failure, expected, code) in [
        (Some(lost), 502, "pipeline_failed"),
        (Some(Failure::Deadline), 504, "deadline_exceeded"),
        (Some(Failure::Shutdown), 503, "shutting_down"),
        (None, 502, "pipeline_failed"),
    ] {
        let last = failure.map(Event::Failed);
        let fixture = start_scripted(config(), move |_| {
            Ok([Some(token(b'a'.into())), last.clone()].into_iter().flatten().collect())
        })
        .await;
        let (status, reply) = json_of(fixture.chat(json!({})).await).await;
        assert_error(status, &reply, expected, code, None);
        let events = events_of(fixture.chat(json!({ "stream": true })).await).await;
        let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
        assert_eq!(last, reply);
        assert!(!events.iter().any(|event| event == "[DONE]"));
    }
}

#[tokio::test]
async fn the_gateway_keeps_the_deadline_itself() {
    let config = GatewayConfig { request_deadline: Duration::from_millis(50), ..config() };
    let (fixture, mut submissions) = start(config).await;
    let pipeline = async {
        let unanswered = submissions.recv().await.unwrap();
        let silent = submissions.recv().await.unwrap();
        let (sender, events) = mpsc::channel(1);
        silent.reply.send(Ok(Generation { events, receipt: None, price: 0 })).unwrap();
        sender.closed().await;
        drop(unanswered);
    };
    let client = async {
        let (status, reply) = json_of(fixture.chat(json!({})).await).await;
        assert_error(status, &reply, 504, "deadline_exceeded", None);
        let events = events_of(fixture.chat(json!({ "stream": true })).await).await;
        assert!(events.last().unwrap().contains("deadline_exceeded"));
    };
    tokio::join!(pipeline, client);
}

#[tokio::test]
async fn keys_are_checked_on_the_api_only() {
    let keys = vec!["sk-one".to_owned(), "sk-two".to_owned()];
    let fixture = start_scripted(GatewayConfig { api_keys: keys, ..config() }, |_| Ok(say("a"))).await;
    let models = |key: Option<&str>| {
        let request = fixture.client.get(fixture.url("/v1/models"));
        let request = match key {
            Some(key) => request.header("authorization", key),
            None => request,
        };
        async move { request.send().await.unwrap() }
    };
    assert_eq!(models(Some("Bearer sk-one")).await.status(), 200);
    assert_eq!(models(Some("bearer sk-two")).await.status(), 200);
    for wrong in [None, Some("Bearer sk-three"), Some("Bearer "), Some("sk-one"), Some("Basic sk-one")] {
        let (status, reply) = json_of(models(wrong).await).await;
        assert_error(status, &reply, 401, "invalid_api_key", None);
    }
    let (status, reply) = json_of(fixture.chat(json!({})).await).await;
    assert_error(status, &reply, 401, "invalid_api_key", None);
    assert_eq!(fixture.get("/health").await.status(), 200);
}

#[tokio::test]
async fn health_follows_the_pipeline() {
    let fixture = start_scripted(config(), |_| Ok(say("a"))).await;
    let (status, reply) = json_of(fixture.get("/health").await).await;
    assert_eq!((status, &reply["status"]), (200, &json!("ok")));
    fixture.status.send_replace(PipelineStatus::Waiting { missing: "layers 0..4".into() });
    let (status, reply) = json_of(fixture.get("/health").await).await;
    assert_eq!((status, &reply["missing"]), (503, &json!("layers 0..4")));
}

#[tokio::test]
async fn a_template_that_refuses_is_the_caller_s_error() {
    let fixture = start_scripted(config(), |_| Ok(say("a"))).await;
    let extra = json!({ "messages": [{ "role": "user", "content": [] }], "chat_template_kwargs": 3 });
    let (status, reply) = json_of(fixture.chat(extra).await).await;
    assert_error(status, &reply, 400, "invalid_type", Some("chat_template_kwargs"));
}
