//! Requests that are paid: through OpenAI's own clients where they are installed, else as plain HTTP.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

use ledger::client::Pod;
use serde_json::{Value, json};

use super::Bill;
use crate::process::chat;

/// The directory that `tests/clients/run.sh` has installed the clients in.
const CLIENTS: &str = "DOLPHIN_CLIENTS";
/// Requests through the client for Python, and tokens of each reply.
const PYTHON: (usize, usize) = (160, 8);
/// The same for JavaScript.
const JAVASCRIPT: (usize, usize) = (40, 12);

/// Two hundred replies. Those of one size are over before those of another begin, so that it is always the same
/// plan that pays for a reply.
pub(super) async fn two_hundred(url: &str) -> Vec<Bill> {
    let Some(directory) = env::var_os(CLIENTS).map(PathBuf::from) else {
        println!("skipped: OpenAI's clients; {CLIENTS} says where `tests/clients/run.sh` has installed them");
        return [plain(url, PYTHON).await, plain(url, JAVASCRIPT).await].concat();
    };
    let mut python = Command::new(directory.join("venv/bin/python"));
    python.arg(directory.join("paid.py")).env("PYTHONDONTWRITEBYTECODE", "1");
    let mut javascript = Command::new("node");
    javascript.arg(directory.join("js/paid.mjs"));
    [official(python, url, PYTHON).await, official(javascript, url, JAVASCRIPT).await].concat()
}

/// The bills that a script prints, one in a line.
async fn official(mut command: Command, url: &str, (count, tokens): (usize, usize)) -> Vec<Bill> {
    command.args([url, &count.to_string(), &tokens.to_string()]).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let bill = |line: &str| {
        let reply: Value = serde_json::from_str(line).unwrap();
        let bill = Bill::of(&reply["usage"]);
        if let Some(header) = reply["header"].as_str() {
            assert_eq!(header, Pod(bill.wei).to_string());
        }
        bill
    };
    let bills: Vec<Bill> = lines.lines().map(bill).collect();
    assert_eq!(bills.len(), count);
    bills
}

async fn plain(url: &str, (count, tokens): (usize, usize)) -> Vec<Bill> {
    futures::future::join_all((0..count).map(|seed| reply(url, seed, tokens))).await
}

/// One whole reply of so many tokens.
pub(super) async fn reply(url: &str, seed: usize, tokens: usize) -> Bill {
    let body = json!({ "seed": seed, "max_tokens": tokens, "ignore_eos": true });
    let response = chat(url, body).send().await.unwrap();
    let header = response.headers().get("x-dolphin-cost").map(|cost| cost.to_str().unwrap().to_owned());
    let reply: Value = response.json().await.unwrap();
    let bill = Bill::of(&reply["usage"]);
    assert_eq!(header, Some(Pod(bill.wei).to_string()));
    bill
}

/// A reply as it comes, which may break off: how many of its tokens came.
pub(super) async fn stream(url: String, tokens: usize) -> u64 {
    let body = json!({ "stream": true, "logprobs": true, "max_tokens": tokens, "ignore_eos": true });
    let Ok(mut response) = chat(&url, body).send().await else { return 0 };
    let mut received = Vec::new();
    while let Ok(Some(bytes)) = response.chunk().await {
        received.extend_from_slice(&bytes);
    }
    let text = String::from_utf8_lossy(&received);
    let events = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let chunks = events.filter_map(|event| serde_json::from_str::<Value>(event).ok());
    chunks.map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array().map_or(0, Vec::len) as u64).sum()
}
