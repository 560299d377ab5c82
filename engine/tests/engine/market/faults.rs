//! Processes that are killed (SIGKILL) at bad moments: what was signed is paid, once, and nobody loses more than the
//! credit that a node was told to give.

use std::{fs, path::PathBuf, time::SystemTime};

use tokio::task::JoinHandle;

use super::{
    Bill, Kind, Market,
    clients::{reply, stream},
    only, until,
};
use crate::process::{Dolphin, until_healthy};

/// In wei for a token, no two alike: enough that few tokens are worth collecting.
const PRICES: [u128; 3] = [310_000_000_000_000, 530_000_000_000_000, 360_000_000_000_000];

/// Where the gateway's nodes reach it, from the line that it prints.
fn swarm(gateway: &Dolphin) -> String {
    gateway.text("join").split_once('@').unwrap().1.to_owned()
}

impl Market {
    /// Three nodes that serve a gateway.
    async fn staffed(&self, gateway: &Dolphin, credit: u64) -> [Dolphin; 3] {
        let nodes = [0, 1, 2].map(|index| self.node(index, gateway.text("join"), credit));
        until_healthy(gateway.text("url")).await;
        nodes
    }

    /// Waits until every node has the newest vouchers on its disk.
    async fn until_held(&self) {
        let newest = |index| {
            let held = self.held(index);
            // A plan that nothing was signed for, no node need know.
            let mut signed = self.signed().into_iter().filter(|(_, (_, total))| *total > 0);
            signed.all(|(plan, (_, total))| held.get(&plan) == Some(&total))
        };
        until("vouchers at the nodes", || (0..3).all(newest)).await;
    }
}

/// The gateway dies three times in the middle of its replies, each time as soon as a voucher is on its disk: the
/// nodes may have it or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_while_it_signs_costs_at_most_the_credit() {
    const CREDIT: u64 = 400;
    const REPLY: u64 = 60;
    let market = Market::open(Kind::Embedded, PRICES).await.unwrap();
    market.deposit("1");
    let mut gateway = market.gateway("127.0.0.1:0");
    let address = swarm(&gateway);
    let nodes = market.staffed(&gateway, CREDIT).await;
    let first = reply(gateway.text("url"), 0, 1).await;
    let prompt = first.tokens - 1;
    let (mut asked, mut received) = (first.tokens, first.tokens);
    for _ in 0..3 {
        let url = gateway.text("url").to_owned();
        until_healthy(&url).await;
        let before = market.spent();
        let streams: Vec<JoinHandle<u64>> =
            (0..4).map(|_| tokio::spawn(stream(url.clone(), REPLY as usize))).collect();
        until("a voucher", || market.spent() > before).await;
        drop(gateway);
        for stream in streams {
            let tokens = stream.await.unwrap();
            asked += prompt + REPLY;
            received += if tokens > 0 { prompt + tokens } else { 0 };
        }
        let signed = market.signed();
        for (plan, total) in (0..3).flat_map(|index| market.held(index)) {
            assert!(total <= signed[&plan].1, "a node holds a voucher that the gateway has forgotten");
        }
        gateway = market.gateway(&address);
    }
    until_healthy(gateway.text("url")).await;
    let last = reply(gateway.text("url"), 0, 20).await;
    market.until_held().await;
    gateway.stop();
    nodes.into_iter().for_each(|node| drop(node.stop()));
    let books = market.books().await;
    assert_eq!(books.paid, market.spent(), "all that was signed is paid");
    let (most, least) = (asked + last.tokens, (received + last.tokens).saturating_sub(3 * CREDIT));
    assert!(books.paid <= market.cost(most), "{books:?}: more than {most} tokens");
    assert!(books.paid >= market.cost(least), "{books:?}: less than {least} tokens");
    let paid = books.paid / market.cost(1);
    println!("{asked} tokens were asked for and {received} came before a kill; {paid} were paid for");
}

/// All nodes die before they have collected. One comes back and collects for all; one comes back and finds nothing
/// to do; one never comes back, and is paid all the same.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_killed_before_they_settle_are_paid_once() {
    let market = Market::open(Kind::Embedded, PRICES).await.unwrap();
    market.deposit("1");
    let gateway = market.gateway("127.0.0.1:0");
    let (url, nodes) = (gateway.text("url").to_owned(), market.staffed(&gateway, 16_384).await);
    let bill = Bill::sum(&futures::future::join_all((0..20).map(|seed| reply(&url, seed, 10))).await);
    until("vouchers for everything", || market.spent() == bill.wei).await;
    market.until_held().await;
    drop(nodes);
    assert_eq!(market.books().await.paid, 0);

    let again = market.node(0, gateway.text("join"), 16_384);
    killed_while_it_collects(&market, again).await;
    market.node(0, gateway.text("join"), 16_384).stop();
    let settled = market.books().await;
    assert_eq!(settled.paid, bill.wei);
    assert_eq!(settled.earned, market.earnings(bill.tokens));

    market.node(1, gateway.text("join"), 16_384).stop();
    gateway.stop();
    assert_eq!(market.books().await.events, settled.events);
}

/// Ends a node, and kills it as soon as its transaction is on its disk: the chain may have it or not.
async fn killed_while_it_collects(market: &Market, node: Dolphin) {
    let pending = only(&market.nodes[0].home.join("dolphin/pending"));
    let written = || -> Option<SystemTime> {
        let files = fs::read_dir(&pending).unwrap().map(|entry| entry.unwrap().path());
        let mut json = files.filter(|path: &PathBuf| path.extension().is_some_and(|end| end == "json"));
        fs::metadata(json.next()?).ok()?.modified().ok()
    };
    let before = written();
    node.interrupt();
    until("a transaction of the node", || written() != before).await;
    drop(node);
}

/// Replies go on while the chain is away, under the plan that is locked for, and are paid when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_is_killed_holds_up_no_reply() {
    let mut market = Market::open(Kind::Embedded, PRICES).await.unwrap();
    // A quarter of it is locked at once, which is more than enough: another lock would need the chain.
    market.deposit("60");
    let gateway = market.gateway("127.0.0.1:0");
    let (url, nodes) = (gateway.text("url").to_owned(), market.staffed(&gateway, 16_384).await);
    let mut bills = vec![reply(&url, 0, 10).await];
    market.net.kill();
    bills.extend(futures::future::join_all((1..20).map(|seed| reply(&url, seed, 10))).await);
    market.until_held().await;
    market.net.revive();
    bills.push(reply(&url, 20, 10).await);
    gateway.stop();
    nodes.into_iter().for_each(|node| drop(node.stop()));
    let (books, bill) = (market.books().await, Bill::sum(&bills));
    assert_eq!((books.paid, books.plans.len()), (bill.wei, 1));
    assert_eq!(books.earned, market.earnings(bill.tokens));
}
