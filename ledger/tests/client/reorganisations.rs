//! Blocks that are replaced by others: nothing is lost and nothing is done or told twice.

use std::time::Duration;

use ledger::{
    client::{Action, Client, Cursor, Deployment, Event, EventId, Ledger, Pod},
    embedded::Sealing,
};

use crate::net::{Net, key, pod};

/// Reads all that is new, and keeps account of it.
async fn follow(client: &Client, cursor: &mut Cursor, held: &mut Vec<(EventId, Event)>) {
    loop {
        let news = client.events(cursor).await.expect("news");
        held.retain(|(id, _)| !news.undone.contains(id));
        for logged in news.events {
            assert!(held.iter().all(|(id, _)| *id != logged.id), "told twice: {logged:?}");
            held.push((logged.id, logged.event));
        }
        // As a consumer that was started anew.
        let kept = serde_json::to_string(&news.cursor).expect("JSON");
        *cursor = serde_json::from_str(&kept).expect("what was written");
        if !news.more {
            return;
        }
    }
}

fn locks(held: &[(EventId, Event)]) -> Vec<Pod> {
    let locks = held.iter().filter_map(|(_, event)| match event {
        Event::Locked { amount, .. } => Some(*amount),
        _ => None,
    });
    locks.collect()
}

async fn lock(client: &Client, wei: u128) {
    let lock = Action::Lock { plan: [1; 32], amount: Pod(wei) };
    client.submit(lock).await.expect("a lock");
}

async fn remaining(client: &Client) -> Pod {
    client.lock(key(1).address(), [1; 32]).await.expect("a lock").remaining
}

/// Waits, making blocks, until the locks add up.
async fn until_locked(net: &Net, client: &Client, sum: Pod) {
    for _ in 0..400 {
        if remaining(client).await == sum {
            return;
        }
        net.mine().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} is locked, not {sum}", remaining(client).await);
}

async fn replaced(net: Net) {
    let deployment: Deployment = net.deploy().await;
    let client = net.client(&deployment, 1).await;
    let deposit = Action::Deposit { to: key(1).address(), amount: pod("10") };
    net.mining(client.submit(deposit)).await.expect("a deposit");
    net.mining(lock(&client, 1)).await;
    let (mut cursor, mut held) = (Cursor::from_block(deployment.block), Vec::new());
    follow(&client, &mut cursor, &mut held).await;
    assert_eq!(locks(&held), [Pod(1)]);

    // Two that are confirmed, and then replaced: five blocks, deeper than the confirmations.
    let snapshot = net.snapshot().await;
    let before = net.head().await;
    net.mining(async {
        lock(&client, 10).await;
        lock(&client, 100).await;
    })
    .await;
    while net.head().await < before + 5 {
        net.mine().await;
    }
    follow(&client, &mut cursor, &mut held).await;
    assert_eq!(locks(&held), [Pod(1), Pod(10), Pod(100)]);
    net.reorganise(snapshot).await;
    until_locked(&net, &client, Pod(111)).await;
    for _ in 0..3 {
        net.mine().await;
    }
    follow(&client, &mut cursor, &mut held).await;
    assert_eq!(locks(&held), [Pod(1), Pod(10), Pod(100)], "each once");

    // The account goes on where it was.
    net.mining(lock(&client, 1000)).await;
    assert_eq!(remaining(&client).await, Pod(1111));
    follow(&client, &mut cursor, &mut held).await;
    assert_eq!(locks(&held), [Pod(1), Pod(10), Pod(100), Pod(1000)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_the_embedded_chain_may_be_replaced() {
    replaced(Net::embedded(Sealing::Manual).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_anvil_may_be_replaced() {
    if let Some(net) = Net::anvil(Sealing::Manual).await {
        replaced(net).await;
    }
}
