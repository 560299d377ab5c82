//! Receipts as people get and check them: over HTTP from a running gateway, with `dolphin verify`.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    process::{Dolphin, chat, command},
    support::folder,
};

fn verify(home: &Path, args: &[&str]) -> (Option<i32>, Value) {
    let mut command: Command = command(home, &["verify"]);
    let Output { status, stdout, stderr } = command.args(args).arg("--json").output().unwrap();
    let text = String::from_utf8_lossy(&stderr).into_owned();
    (status.code(), serde_json::from_slice(&stdout).unwrap_or(Value::String(text)))
}

/// A response with a receipt; the first ones come before the model is hashed.
async fn with_receipt(url: &str, body: Value) -> (Vec<String>, String) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let response = chat(url, body.clone()).bearer_auth("one").send().await.unwrap();
        let ids = response.headers().get("x-dolphin-receipt").map(|ids| ids.to_str().unwrap().to_owned());
        let text = response.text().await.unwrap();
        if let Some(ids) = ids {
            return (ids.split(", ").map(str::to_owned).collect(), text);
        }
        assert!(Instant::now() < deadline, "no receipt: {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_client_checks_its_replies() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let args = ["up", "--json", "--listen", "127.0.0.1:0", "--api-key", "one", "--api-key", "two"];
    let up = Dolphin::start(home.path(), &args);
    let url = up.text("url");
    let body = json!({"max_tokens": 80, "temperature": 0.7, "seed": 5, "n": 2, "ignore_eos": true});
    let (ids, text) = with_receipt(url, body).await;
    let (streamed, _) = with_receipt(url, json!({"max_tokens": 9, "stream": true, "temperature": 0})).await;
    assert_eq!((ids.len(), streamed.len()), (2, 1));

    let get = async |id: &str, key: &str| {
        let request = reqwest::Client::new().get(format!("{url}/receipts/{id}")).bearer_auth(key);
        let response = request.timeout(Duration::from_secs(60)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let (file, request) = (path("receipt.json"), path("request.json"));
    let asked =
        json!({"model": "dolphin-demo", "messages": [{"role": "user", "content": "What is Dolphin?"}]});
    fs::write(&request, asked.to_string()).unwrap();
    for id in ids.iter().chain(&streamed) {
        let (status, receipt) = get(id, "one").await;
        assert_eq!(status, 200, "{receipt}");
        fs::write(&file, receipt).unwrap();
        let (code, verdict) = verify(home.path(), &[&file, "--request", &request]);
        assert_eq!((code, &verdict["sound"]), (Some(0), &json!(true)), "{verdict}");
        assert_eq!(verdict["stages"].as_array().unwrap().len(), 3);
    }
    assert_eq!(get(&ids[0], "two").await.0, 404, "another client's");
    assert_eq!(get("nothing", "one").await.0, 404);

    let mut audit = command(home.path(), &["audit", url, "--api-key", "one", "--rate", "1000", "--once"]);
    let audited = audit.output().unwrap();
    let lines = String::from_utf8(audited.stdout).unwrap();
    assert_eq!(audited.status.code(), Some(0), "{lines}{}", String::from_utf8_lossy(&audited.stderr));
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() >= 3 && lines.iter().all(|line| line["verdict"]["sound"] == true), "{lines:?}");

    let mut receipt: Value = serde_json::from_str(&get(&ids[0], "one").await.1).unwrap();
    let reply: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(receipt["reply"].as_array().unwrap().len(), 80, "{reply}");
    fs::write(&request, json!({"model": "m", "prompt": "Something else"}).to_string()).unwrap();
    fs::write(&file, receipt.to_string()).unwrap();
    assert_eq!(verify(home.path(), &[&file, "--request", &request]).0, Some(1), "of another request");
    let other = folder("stories260K");
    let (code, error) = verify(home.path(), &[&file, "--model", other.to_str().unwrap()]);
    assert!(code == Some(1) && error.to_string().contains("these files are"), "{error}");
    receipt["reply"][40] = json!(receipt["reply"][40].as_u64().unwrap() ^ 1);
    fs::write(&file, receipt.to_string()).unwrap();
    let (code, verdict) = verify(home.path(), &[&file]);
    assert_eq!((code, &verdict["sound"]), (Some(3), &json!(false)), "{verdict}");
    fs::write(&file, "{}").unwrap();
    assert_eq!(verify(home.path(), &[&file]).0, Some(1));
}

#[test]
fn the_model_hash_is_printed() {
    let home = tempfile::tempdir().unwrap();
    let output = command(home.path(), &["inspect", "--hash", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["hash"], "ac476aa7a61662b12c3f131bb3aa8a69c334a30b06239b587b42009a72f7f9f3");
    let text = command(home.path(), &["inspect", "--hash"]).output().unwrap();
    assert!(String::from_utf8(text.stdout).unwrap().contains("norm, head"));
}
