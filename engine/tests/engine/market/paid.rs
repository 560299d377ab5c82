//! Two hundred replies on the embedded chain and on anvil: every wei, and the same figures on both.

use std::{collections::BTreeMap, time::Instant};

use ledger::{
    client::{Event, Pod},
    eip712::Address,
};

use super::{Bill, Books, Kind, Market, clients::two_hundred};
use crate::process::until_healthy;

/// In wei for a token, no two alike. Little enough that nodes do not collect before they end.
const PRICES: [u128; 3] = [310_000_000_000, 530_000_000_000, 360_000_000_000];
/// Half of it is not enough, as only a quarter of what is left is locked at once: it takes three plans.
const DEPOSIT: &str = "0.0104";
const CREDIT: u64 = 16_384;

/// What happened, in words that do not change with keys, addresses and times; gas without what bytes cost.
#[derive(Debug, PartialEq, Eq)]
struct Figures {
    bill: Bill,
    earned: [u128; 3],
    left: u128,
    events: Vec<String>,
    gas: BTreeMap<&'static str, Vec<u64>>,
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_replies_are_paid_to_the_wei_and_alike_on_anvil() {
    let embedded = Market::open(Kind::Embedded, PRICES).await.unwrap();
    let ours = play(embedded).await;
    println!("{ours:#?}");
    let Some(anvil) = Market::open(Kind::Anvil, PRICES).await else {
        println!("skipped: anvil; DOLPHIN_ANVIL says where it is");
        return;
    };
    assert_eq!(ours, play(anvil).await);
    println!("the same on anvil");
}

async fn play(market: Market) -> Figures {
    let begun = Instant::now();
    market.deposit(DEPOSIT);
    let gateway = market.gateway("127.0.0.1:0");
    let (url, join) = (gateway.text("url").to_owned(), gateway.text("join"));
    let nodes = [0, 1, 2].map(|index| market.node(index, join, CREDIT));
    until_healthy(&url).await;
    println!("a swarm after {:.1?}", begun.elapsed());
    let bills = two_hundred(&url).await;
    println!("{} replies after {:.1?}", bills.len(), begun.elapsed());
    assert!(bills.iter().all(|bill| bill.wei == market.cost(bill.tokens)));
    let bill = Bill::sum(&bills);
    gateway.stop();
    // The first collects for all; the others find nothing left to do.
    for node in nodes {
        node.stop();
    }
    let books = market.books().await;
    println!("settled after {:.1?}", begun.elapsed());
    assert_eq!((bills.len(), books.plans.len()), (200, 3));
    assert_eq!((books.paid, market.spent()), (bill.wei, bill.wei));
    assert_eq!(books.earned, market.earnings(bill.tokens));
    let (events, gas) = (told(&market, &books), gas(&market, &books).await);
    assert_eq!(gas["batch"].len(), 1, "one transaction pays for everything");
    Figures { bill, earned: books.earned, left: books.left, events, gas }
}

/// The events of payment. Items of a batch have no order.
fn told(market: &Market, books: &Books) -> Vec<String> {
    let number = |plan| books.plans.iter().position(|known| known == plan).unwrap();
    let who = |account: &Address| market.nodes.iter().position(|node| node.account == *account).unwrap();
    let mut told: Vec<String> = (books.events.iter())
        .filter_map(|logged| match &logged.event {
            Event::Deposited { amount, .. } => Some(format!("deposited {amount}")),
            Event::Locked { plan, amount, .. } => Some(format!("plan {} locked {amount}", number(plan))),
            Event::VoucherCollected { plan, total, paid, .. } => {
                Some(format!("plan {} voucher of {total} paid {paid}", number(plan)))
            }
            Event::Collected { plan, payments, .. } => {
                let to = |(payee, amount): &(_, Pod)| format!("{amount} to node {}", who(payee));
                let payments: Vec<String> = payments.iter().map(to).collect();
                Some(format!("plan {} paid {}", number(plan), payments.join(", ")))
            }
            _ => None,
        })
        .collect();
    told.sort();
    told
}

async fn gas(market: &Market, books: &Books) -> BTreeMap<&'static str, Vec<u64>> {
    let mut transactions = Vec::new();
    for logged in &books.events {
        let kind = match &logged.event {
            Event::Deposited { .. } => "deposit",
            Event::Locked { .. } => "lock",
            Event::VoucherCollected { .. } => "batch",
            _ => continue,
        };
        if !transactions.contains(&(kind, logged.id.transaction)) {
            transactions.push((kind, logged.id.transaction));
        }
    }
    let mut gas = BTreeMap::<_, Vec<u64>>::new();
    for (kind, transaction) in transactions {
        gas.entry(kind).or_default().push(market.net.gas_without_bytes(transaction).await);
    }
    gas
}
