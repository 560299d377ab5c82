//! The same with the contracts, on the chain that `dolphin up` starts.

use engine::{
    model::Shard,
    payment::{embedded::Embedded, purse::PayerRules, till::Payee},
};
use ledger::eip712::Address;

use super::PRICES;
use crate::swarm::{World, collect, identity, request};

async fn balances(embedded: &Embedded, accounts: &[Address]) -> Vec<u128> {
    let mut balances = Vec::new();
    for account in accounts {
        balances.push(embedded.ledger().balances(*account).await.unwrap().escrow.0);
    }
    balances
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_requests_are_paid_to_the_wei_by_the_contracts() {
    let embedded = Embedded::start(None, std::net::SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let payer = embedded.payer(PayerRules::default()).await.unwrap();
    let account = payer.key.address();
    let mut payees: Vec<Payee> = Vec::new();
    for (index, price) in PRICES.into_iter().enumerate() {
        payees.push(embedded.payee(index, price, 100_000).await.unwrap());
    }
    let accounts: Vec<Address> = payees.iter().map(|payee| payee.account).chain([account]).collect();
    let before = balances(&embedded, &accounts).await;

    let world = World::new("llama", 11, |config| config.payer = Some(payer));
    let shards = [(0..2, true, false), (2..3, false, false), (3..5, false, true)];
    let node = |((index, payee), (layers, embedding, head)): ((usize, Payee), _)| {
        let (seed, shard) = (index as u8 + 1, Shard { layers, embedding, head });
        world.node_of(seed, shard, world.fingerprint(), Some(payee.bind(&identity(seed))))
    };
    let nodes: Vec<_> = payees.into_iter().enumerate().zip(shards).map(node).collect();
    world.ready().await;
    let replies = (0..200u32).map(|n| {
        let request = request(&[3, 4, 5, 6, 7][..1 + n as usize % 5], 1 + n % 4);
        let submitter = world.submitter.clone();
        async move {
            let prompt = request.prompt.len();
            prompt + collect(submitter.submit(request).await.unwrap()).await.unwrap().0.len()
        }
    });
    let tokens = futures::future::join_all(replies).await.into_iter().sum::<usize>() as u128;
    world.stop(nodes).await;

    let after = balances(&embedded, &accounts).await;
    for (index, price) in PRICES.into_iter().enumerate() {
        assert_eq!(after[index] - before[index], u128::from(price) * tokens, "stage {index}");
    }
    // Nothing came into the escrow and nothing left it; what was paid, the payer's lock lost.
    assert_eq!(held(&embedded).await, before.iter().sum::<u128>());
    let paid: u128 = after[..3].iter().sum();
    assert!(before[3] - after[3] >= paid && paid == tokens * PRICES.map(u128::from).iter().sum::<u128>());
}

/// POD in the escrow's hands.
async fn held(embedded: &Embedded) -> u128 {
    embedded.ledger().balances(embedded.deployment().escrow).await.unwrap().pod.0
}
