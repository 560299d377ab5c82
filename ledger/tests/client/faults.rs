//! What lines, nodes and fees do to a sender: whatever happens, each order is done once.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use ledger::{
    client::{Action, Client, Deployment, Ledger, Pod},
    embedded::Sealing,
};
use serde_json::json;

use crate::{
    net::{Net, config, key, pod},
    proxy::Proxy,
};

/// Locks of one wei each, under one plan: what is locked in the end counts how often that was done.
async fn lock_wei(client: &Client, count: u32) {
    let locks = (0..count).map(|_| client.submit(Action::Lock { plan: [1; 32], amount: Pod(1) }));
    for result in join_all(locks).await {
        result.expect("a lock");
    }
}

/// A chain with the contracts and an account with POD in the escrow.
async fn prepared(net: &Net) -> Deployment {
    let deployment = net.deploy().await;
    let client = net.client(&deployment, 1).await;
    let deposit = Action::Deposit { to: key(1).address(), amount: pod("10") };
    net.mining(client.submit(deposit)).await.expect("a deposit");
    deployment
}

async fn locked(net: &Net, deployment: &Deployment) -> Pod {
    let reader = Client::connect(net.config(), deployment.clone(), None).await.expect("a client");
    reader.lock(key(1).address(), [1; 32]).await.expect("a lock").remaining
}

async fn over_a_bad_line(net: Net) {
    let deployment = prepared(&net).await;
    let proxy = Proxy::before(&net.url).await;
    let client =
        Client::connect(config(&proxy.url), deployment.clone(), Some(key(1))).await.expect("a client");
    proxy.set_bad(true);
    net.mining(lock_wei(&client, 12)).await;
    assert_eq!(locked(&net, &deployment).await, Pod(12));
}

async fn while_the_node_is_down(net: Net) {
    let deployment = prepared(&net).await;
    let proxy = Proxy::before(&net.url).await;
    let client =
        Client::connect(config(&proxy.url), deployment.clone(), Some(key(1))).await.expect("a client");
    let client = Arc::new(client);
    let (before, during) = (client.clone(), client.clone());
    let before = tokio::spawn(async move { lock_wei(&before, 1).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    proxy.set_down(true);
    let during = tokio::spawn(async move { lock_wei(&during, 2).await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    proxy.set_down(false);
    net.mining(async {
        before.await.expect("locks");
        during.await.expect("locks");
    })
    .await;
    assert_eq!(locked(&net, &deployment).await, Pod(3));
}

/// Fees rise a hundredfold while a transaction waits.
async fn when_fees_rise(net: Net) {
    let deployment = prepared(&net).await;
    let client = Arc::new(net.client(&deployment, 1).await);
    let waiting = client.clone();
    let waiting = tokio::spawn(async move { lock_wei(&waiting, 2).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..3 {
        net.ask("anvil_setNextBlockBaseFeePerGas", json!(["0x174876e800"])).await;
        net.mine().await;
    }
    assert_eq!(locked(&net, &deployment).await, Pod(0), "the old offer is too low");
    net.mining(async { waiting.await.expect("locks") }).await;
    assert_eq!(locked(&net, &deployment).await, Pod(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_to_the_embedded_chain_loses_and_repeats_nothing() {
    over_a_bad_line(Net::embedded(Sealing::Manual).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_to_anvil_loses_and_repeats_nothing() {
    if let Some(net) = Net::anvil(Sealing::Manual).await {
        over_a_bad_line(net).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_chain_may_be_down() {
    while_the_node_is_down(Net::embedded(Sealing::Manual).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn anvil_may_be_down() {
    if let Some(net) = Net::anvil(Sealing::Manual).await {
        while_the_node_is_down(net).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fees_of_anvil_may_rise() {
    if let Some(net) = Net::anvil(Sealing::Manual).await {
        assert!(net.is_anvil());
        when_fees_rise(net).await;
    }
}

/// Waits until so many transactions of the account wait for a block.
async fn until_waiting(url: &str, count: u64) {
    let node = reqwest::Client::builder().no_proxy().build().expect("a client");
    let account = format!("0x{}", hex::encode(key(1).address()));
    loop {
        let mut counts = [0; 2];
        for (counted, block) in counts.iter_mut().zip(["latest", "pending"]) {
            let params = json!([account, block]);
            let question =
                json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_getTransactionCount", "params": params });
            let answer = node.post(url).json(&question).send().await.expect("an answer");
            let answer: serde_json::Value = answer.json().await.expect("JSON");
            let number = answer["result"].as_str().expect("a number").trim_start_matches("0x");
            *counted = u64::from_str_radix(number, 16).expect("a number");
        }
        if counts[0] + count == counts[1] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A restart goes on with what has a nonce.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_in_a_directory_is_sent_after_a_restart() {
    let net = Net::embedded(Sealing::Manual).await;
    let deployment = prepared(&net).await;
    let folder = tempfile::tempdir().expect("a folder");
    let config = |url: &str| {
        let directory = Some(folder.path().to_owned());
        ledger::client::Config { directory, ..config(url) }
    };
    // The runtime stands for the process that ends.
    let (url, first, at) = (net.url.clone(), config(&net.url), deployment.clone());
    let ended = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let client = Client::connect(first, at, Some(key(1))).await.expect("a client");
            tokio::select! {
                () = lock_wei(&client, 3) => panic!("there are no blocks"),
                () = until_waiting(&url, 3) => {}
            }
        });
    });
    ended.await.expect("it ends");
    let kept = || Client::connect(config(&net.url), deployment.clone(), Some(key(1)));
    let again = kept().await.expect("nobody else has the directory");
    let twice = kept().await;
    assert!(matches!(twice, Err(ledger::client::Error::Store { .. })), "{twice:?}");
    net.mining(lock_wei(&again, 1)).await;
    assert_eq!(locked(&net, &deployment).await, Pod(4));
}
