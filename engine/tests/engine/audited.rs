//! A node that is audited, as people run it: a chain, a gateway and a node with stake, in processes of their own.

use std::{
    fs::{self, File},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    account::User,
    process::{Dolphin, chat, until_healthy},
};

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_stake_keeps_evidence_of_what_it_computes() {
    let user = User::new();
    let args = ["chain", "--listen", "127.0.0.1:0", "--fund", &user.address, "--with", "20000", "--json"];
    let chain = Dolphin::spawn(user.command(&args));
    assert_eq!(chain.announced["models"].as_array().unwrap().len(), 1, "the demo model");
    let on_chain = |args: &[&str]| {
        let mut command = user.command(args);
        command.env("DOLPHIN_RPC_URL", chain.text("rpc_url"));
        command.env("DOLPHIN_DEPLOYMENT", chain.text("deployment"));
        command
    };
    let bonded = on_chain(&["stake", "bond", "10000", "--yes", "--json"]).output().unwrap();
    assert!(bonded.status.success(), "{}", String::from_utf8_lossy(&bonded.stderr));

    let serve = ["serve", "--listen", "127.0.0.1:0", "--swarm", "127.0.0.1:0", "--json"];
    let gateway = Dolphin::spawn(user.command(&serve));
    let (log, book) = (user.home.path().join("node.log"), user.home.path().join("book"));
    let key = user.home.path().join("dolphin/account.json");
    let (key, directory) = (key.to_str().unwrap(), book.to_str().unwrap());
    let node = ["node", "--join", gateway.text("join"), "--account", key, "--audits", directory, "--json"];
    let mut node = on_chain(&node);
    node.env("DOLPHIN_LOG", "engine=info").stderr(File::create(&log).unwrap());
    let node = Dolphin::spawn(node);
    until_healthy(gateway.text("url")).await;

    let read = || fs::read_to_string(&log).unwrap();
    until("the chain knows the model", || read().contains("what is computed is committed to")).await;
    let response = chat(gateway.text("url"), json!({"max_tokens": 60})).send().await.unwrap();
    assert!(response.status().is_success());
    // A leaf is written when what came in is on disk.
    let leaves = book.join("0.log");
    until("a leaf is in the book", || fs::metadata(&leaves).is_ok_and(|log| log.len() > 0)).await;
    node.stop();
    gateway.stop();
    chain.stop();
    assert!(!read().contains("WARN"), "{}", read());
}
