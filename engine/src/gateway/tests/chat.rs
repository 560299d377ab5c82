//! `/v1/chat/completions`, streamed and not.

use serde_json::{Value, json};

use super::support::*;
use crate::request::{Event, Finish};

#[tokio::test]
async fn a_reply_has_openai_s_shape() {
    let fixture = start_scripted(config(), |request| {
        assert_eq!(request.prompt[0], BOS);
        let text: Vec<u8> = request.prompt[1..].iter().map(|id| *id as u8).collect();
        assert_eq!(text, b"[user]hi[assistant]");
        assert_eq!(request.stop_tokens, [EOS]);
        assert_eq!((request.sampling.temperature, request.sampling.top_k), (0.7, 40));
        Ok(say("héllo"))
    })
    .await;
    let (status, reply) = json_of(fixture.chat(json!({})).await).await;
    assert_eq!(status, 200);
    assert!(reply["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(reply["object"], "chat.completion");
    assert_eq!(reply["model"], MODEL);
    assert_eq!(reply["system_fingerprint"], "fp_test");
    assert_eq!(
        reply["choices"],
        json!([{
            "index": 0,
            "message": { "role": "assistant", "content": "héllo", "refusal": null },
            "logprobs": null,
            "finish_reason": "stop",
        }])
    );
    assert_eq!(reply["usage"], json!({ "prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27 }));
}

#[tokio::test]
async fn a_stream_has_openai_s_chunks() {
    let fixture = start_scripted(config(), |_| Ok(say("ab"))).await;
    let options = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let response = fixture.chat(options).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-cache");
    let chunks = chunks_of(response).await;
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"]).collect();
    let choice = |delta: Value, finish: Value| json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]);
    assert_eq!(
        deltas,
        [
            &choice(json!({ "role": "assistant", "content": "", "refusal": null }), Value::Null),
            &choice(json!({ "content": "a" }), Value::Null),
            &choice(json!({ "content": "b" }), Value::Null),
            &choice(json!({}), json!("stop")),
            &json!([]),
        ]
    );
    let (last, rest) = chunks.split_last().unwrap();
    assert_eq!(last["usage"], json!({ "prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23 }));
    for chunk in rest {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["usage"], Value::Null);
        assert_eq!(chunk["id"], last["id"]);
    }
}

#[tokio::test]
async fn without_include_usage_no_chunk_mentions_it() {
    let fixture = start_scripted(config(), |_| Ok(say("ab"))).await;
    let chunks = chunks_of(fixture.chat(json!({ "stream": true })).await).await;
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn characters_are_never_split_over_chunks() {
    let text = "aé日🐬\u{1f469}\u{200d}\u{1f680}!";
    let fixture = start_scripted(config(), move |_| Ok(say(text))).await;
    let chunks = chunks_of(fixture.chat(json!({ "stream": true })).await).await;
    assert_eq!(texts(&chunks)[&0], text);
    assert!(!chunks.iter().any(|chunk| chunk.to_string().contains('\u{fffd}')));
}

#[tokio::test]
async fn a_character_cut_off_by_the_limit_shows_as_replacement() {
    let fixture = start_scripted(config(), |_| {
        Ok(vec![token(b'a'.into()), token(0xf0), token(0x9f), Event::Finished(Finish::Length)])
    })
    .await;
    let (_, reply) = json_of(fixture.chat(json!({ "max_tokens": 3 })).await).await;
    let content = reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(content.starts_with("a\u{fffd}"), "{content:?}");
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn stop_strings_cut_and_never_leak() {
    let fixture = start_scripted(config(), |_| Ok(say("one 日本 two STO STOP three"))).await;
    for (stop, expected) in [
        (json!("STOP"), "one 日本 two STO "),
        (json!(["本 t", "zzz"]), "one 日"),
        (json!(["three!"]), "one 日本 two STO STOP three"),
        (json!("o"), ""),
    ] {
        let (_, whole) = json_of(fixture.chat(json!({ "stop": stop })).await).await;
        assert_eq!(whole["choices"][0]["message"]["content"], expected);
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
        let chunks = chunks_of(fixture.chat(json!({ "stop": stop, "stream": true })).await).await;
        assert_eq!(texts(&chunks)[&0], expected);
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn a_stop_string_frees_the_slot() {
    let (fixture, mut submissions) = start(config()).await;
    let pipeline = async {
        let submission = submissions.recv().await.unwrap();
        let (sender, events) = tokio::sync::mpsc::channel(8);
        submission.reply.send(Ok(crate::request::Generation { events, receipt: None, price: 0 })).unwrap();
        for byte in b"ab" {
            sender.send(token((*byte).into())).await.unwrap();
        }
        sender.closed().await;
    };
    let ((), response) = tokio::join!(pipeline, fixture.chat(json!({ "stop": "b" })));
    let (_, reply) = json_of(response).await;
    assert_eq!(reply["choices"][0]["message"]["content"], "a");
}

#[tokio::test]
async fn choices_share_the_seed_and_differ_in_their_index() {
    let fixture = start_scripted(config(), |request| {
        Ok(say(&format!("seed {} choice {}", request.sampling.seed, request.sampling.choice)))
    })
    .await;
    let (_, reply) = json_of(fixture.chat(json!({ "n": 3, "seed": 9 })).await).await;
    for (index, choice) in reply["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["message"]["content"], format!("seed 9 choice {index}"));
    }
    assert_eq!(reply["usage"]["prompt_tokens"], 20);
    let chunks = chunks_of(fixture.chat(json!({ "n": 3, "seed": 9, "stream": true })).await).await;
    let texts = texts(&chunks);
    for index in 0..3 {
        assert_eq!(texts[&index], format!("seed 9 choice {index}"));
    }
}

#[tokio::test]
async fn a_missing_seed_is_drawn() {
    let fixture = start_scripted(config(), |request| Ok(say(&request.sampling.seed.to_string()))).await;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..4 {
        let (_, reply) = json_of(fixture.chat(json!({})).await).await;
        seen.insert(reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen.len(), 4);
}

#[tokio::test]
async fn sampling_parameters_reach_the_pipeline() {
    let fixture = start_scripted(config(), |request| {
        Ok(say(&format!("{:?} {} {:?}", request.sampling, request.max_tokens, request.stop_tokens)))
    })
    .await;
    let extra = json!({
        "temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.25,
        "frequency_penalty": -0.5, "presence_penalty": 2, "logit_bias": { "7": -100, "8": 1.5 },
        "seed": -1, "max_completion_tokens": 5, "max_tokens": 9, "stop_token_ids": [65],
        "logprobs": true, "top_logprobs": 3,
        "user": "u", "metadata": {}, "store": false, "parallel_tool_calls": true, "tools": [],
        "response_format": { "type": "text" }, "tool_choice": null,
    });
    let (status, reply) = json_of(fixture.chat(extra).await).await;
    assert_eq!(status, 200, "{reply}");
    assert_eq!(
        reply["choices"][0]["message"]["content"],
        "Sampling { temperature: 0.0, top_k: 0, top_p: 0.5, min_p: 0.1, repetition_penalty: 1.25, \
         frequency_penalty: -0.5, presence_penalty: 2.0, logit_bias: [(7, -100.0), (8, 1.5)], \
         seed: 18446744073709551615, choice: 0, logprobs: Some(3) } 5 [65, 257]"
    );
}

#[tokio::test]
async fn logprobs_follow_the_text_they_belong_to() {
    let fixture = start_scripted(config(), |_| Ok(say_scored("aé#END"))).await;
    let extra = json!({ "logprobs": true, "top_logprobs": 2, "stop": "#END" });
    let (_, reply) = json_of(fixture.chat(extra.clone()).await).await;
    let content = reply["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    let tokens: Vec<&Value> = content.iter().map(|entry| &entry["bytes"]).collect();
    assert_eq!(tokens, [&json!([97]), &json!([0xc3]), &json!([0xa9])]);
    assert_eq!(content[0]["token"], "a");
    assert_eq!(content[0]["logprob"], -0.5);
    assert_eq!(
        content[0]["top_logprobs"],
        json!([
            { "token": "a", "logprob": -0.5, "bytes": [97] },
            { "token": "b", "logprob": -1.5, "bytes": [98] },
        ])
    );
    let mut streamed = extra;
    streamed["stream"] = true.into();
    let chunks = chunks_of(fixture.chat(streamed).await).await;
    let entries = chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(entries.flatten().cloned().collect::<Vec<_>>(), content);
}

#[tokio::test]
async fn messages_may_have_parts_and_every_role() {
    let fixture = start_scripted(config(), |request| {
        let text: Vec<u8> = request.prompt[1..].iter().map(|id| *id as u8).collect();
        Ok(say(std::str::from_utf8(&text).unwrap()))
    })
    .await;
    let messages = json!([
        { "role": "developer", "content": "d" },
        { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }], "name": "n" },
        { "role": "assistant", "content": null, "tool_calls": [
            { "id": "1", "type": "function", "function": { "name": "f", "arguments": "{}" } } ] },
        { "role": "tool", "tool_call_id": "1", "content": "t" },
    ]);
    let (_, reply) = json_of(fixture.chat(json!({ "messages": messages })).await).await;
    assert_eq!(
        reply["choices"][0]["message"]["content"],
        "[system]d[user]a\nb[assistant]None[tool]t[assistant]"
    );
}

#[tokio::test]
async fn the_reply_is_limited_by_what_the_context_leaves() {
    let fixture = start_scripted(config(), |request| Ok(say(&request.max_tokens.to_string()))).await;
    let (_, reply) = json_of(fixture.chat(json!({ "max_tokens": 100_000 })).await).await;
    assert_eq!(reply["choices"][0]["message"]["content"], "980");
}
