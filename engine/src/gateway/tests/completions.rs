//! `/v1/completions`, streamed and not.

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::support::*;
use crate::request::{Event, Finish, Generation, Refusal, Request, Submission};

fn prompt_text(request: &Request) -> String {
    let bytes: Vec<u8> = request.prompt.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_completion_has_openai_s_shape() {
    let fixture = start_scripted(config(), |request| {
        assert_eq!((request.prompt.as_slice(), request.max_tokens), ([BOS, 104, 105].as_slice(), 16));
        Ok(say("abc"))
    })
    .await;
    let (status, reply) = json_of(fixture.complete(json!({})).await).await;
    assert_eq!(status, 200);
    assert!(reply["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(reply["object"], "text_completion");
    assert_eq!(
        reply["choices"],
        json!([{ "text": "abc", "index": 0, "logprobs": null, "finish_reason": "stop" }])
    );
    assert_eq!(reply["usage"], json!({ "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7 }));
}

#[tokio::test]
async fn prompts_come_in_four_forms() {
    let fixture = start_scripted(config(), |request| Ok(say(&prompt_text(request)))).await;
    for (prompt, expected) in [
        (json!("ab"), vec!["ab"]),
        (json!(["ab", "c"]), vec!["ab", "c"]),
        (json!([97, 98]), vec!["ab"]),
        (json!([[97], [98, 99]]), vec!["a", "bc"]),
    ] {
        let (_, reply) = json_of(fixture.complete(json!({ "prompt": prompt })).await).await;
        let choices = reply["choices"].as_array().unwrap();
        let texts: Vec<&str> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(texts, expected);
    }
}

#[tokio::test]
async fn a_stream_interleaves_prompts_and_choices_by_index() {
    let fixture = start_scripted(config(), |request| {
        Ok(say(&format!("{}{}", prompt_text(request), request.sampling.choice)))
    })
    .await;
    let extra = json!({ "prompt": ["x", "y"], "n": 2, "stream": true });
    let chunks = chunks_of(fixture.complete(extra).await).await;
    assert!(chunks.iter().all(|chunk| chunk["object"] == "text_completion"));
    let texts = texts(&chunks);
    assert_eq!([&texts[&0], &texts[&1], &texts[&2], &texts[&3]], ["x0", "x1", "y0", "y1"]);
}

#[tokio::test]
async fn logprobs_have_the_older_form() {
    let fixture = start_scripted(config(), |_| Ok(say_scored("é!"))).await;
    let (_, reply) = json_of(fixture.complete(json!({ "logprobs": 2 })).await).await;
    let logprobs = &reply["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["bytes:\\xc3", "bytes:\\xa9", "!"]));
    assert_eq!(logprobs["token_logprobs"], json!([-0.5, -0.5, -0.5]));
    assert_eq!(logprobs["text_offset"], json!([0, 0, 1]));
    assert_eq!(logprobs["top_logprobs"][2], json!({ "!": -0.5, "\"": -1.5 }));
}

#[tokio::test]
async fn what_would_change_the_text_is_refused() {
    let fixture = start_scripted(config(), |_| Ok(say("a"))).await;
    for (extra, param) in [
        (json!({ "echo": true }), "echo"),
        (json!({ "suffix": "s" }), "suffix"),
        (json!({ "best_of": 2 }), "best_of"),
    ] {
        let (status, reply) = json_of(fixture.complete(extra).await).await;
        assert_eq!(status, 400);
        assert_eq!(reply["error"]["param"], param);
        assert_eq!(reply["error"]["code"], "unsupported_value");
    }
    let extra = json!({ "echo": false, "suffix": null, "best_of": 1 });
    assert_eq!(fixture.complete(extra).await.status(), 200);
}

#[tokio::test]
async fn wrong_prompts_are_named() {
    let fixture = start_scripted(config(), |_| Ok(say("a"))).await;
    for prompt in
        [json!([]), json!([[]]), json!([999]), json!([1, "a"]), json!({}), json!([-1]), json!([1.5])]
    {
        let (status, reply) = json_of(fixture.complete(json!({ "prompt": prompt })).await).await;
        assert_eq!((status, &reply["error"]["param"]), (400, &json!("prompt")), "{prompt}");
    }
    let many = Value::from(vec!["a"; 100]);
    let (status, reply) = json_of(fixture.complete(json!({ "prompt": many })).await).await;
    assert_eq!((status, &reply["error"]["param"]), (400, &json!("prompt")));
}

/// A paid reply says what it cost: in the usage, streamed or not, and in a header.
#[tokio::test]
async fn what_a_reply_costs_is_told() {
    let (fixture, mut submissions) = start(config()).await;
    tokio::spawn(async move {
        while let Some(Submission { reply, .. }) = submissions.recv().await {
            let (sender, events) = mpsc::channel(4);
            let token = |token| Event::Token { token, logprobs: None };
            for event in [token(u32::from(b'a')), token(u32::from(b'b')), Event::Finished(Finish::Length)] {
                sender.send(event).await.unwrap();
            }
            reply.send(Ok(Generation { events, receipt: None, price: 250_000_000_000_000 })).unwrap();
        }
    });
    let body = json!({ "model": MODEL, "prompt": [1, 2], "max_tokens": 2 });
    let response = fixture.post("/v1/completions", &body).await;
    assert_eq!(response.headers()["x-dolphin-cost"], "0.001");
    let whole: Value = response.json().await.unwrap();
    let cost = json!({ "pod": "0.001", "wei": "1000000000000000" });
    assert_eq!(whole["usage"]["cost"], cost);
    let streamed = json!({
        "model": MODEL, "prompt": [1, 2], "max_tokens": 2, "stream": true,
        "stream_options": { "include_usage": true },
    });
    let text = fixture.post("/v1/completions", &streamed).await.text().await.unwrap();
    assert!(text.contains(&format!("\"cost\":{cost}")), "{text}");
}

#[tokio::test]
async fn without_money_a_request_is_402_and_says_what_to_do() {
    let reason = "add to it with `dolphin account deposit`";
    let script = move |_: &Request| Err(Refusal::NoMoney(reason.into()));
    let fixture = start_scripted(config(), script).await;
    let response = fixture.post("/v1/completions", &json!({ "model": MODEL, "prompt": "a" })).await;
    assert_eq!(response.status(), 402);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], "insufficient_funds");
    assert!(body["error"]["message"].as_str().unwrap().contains(reason), "{body}");
}
