//! A gateway that pays and nodes that are paid, over a simulated network.

mod embedded;
mod fake;

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use engine::{
    message::{TabOffer, TabRefusal, VoucherNote},
    model::Shard,
    node::Node,
    payment::{
        purse::{Payer, PayerRules},
        settle::SettleRules,
        store::Store,
        till::{Command, Event, Payee, Till},
    },
    request::{Event as Told, Refusal},
};
use ledger::{
    client::Key,
    eip712::{Address, Domain},
    plan::{Plan, Stage},
    terms::Terms,
    voucher::Voucher,
};
use transport::NodeId;

use self::fake::{Book, Fake};
use crate::{
    support::Golden,
    swarm::{World, collect, expected, identity, reply, request},
};

const POD: u128 = 1_000_000_000_000_000_000;
/// Prices of the nodes of a pipeline, in wei for a token: no two alike, and no round numbers.
const PRICES: [u64; 3] = [1_000_000_000_003, 2_500_000_000_007, 700_000_000_001];

fn collector() -> Domain {
    Domain { chain_id: 31337, contract: [0xc0; 20] }
}

fn registry() -> Domain {
    Domain { chain_id: 31337, contract: [0x4e; 20] }
}

fn gateway_key() -> Key {
    Key::from_bytes(&[0x77; 32]).unwrap()
}

fn payee_account(seed: u8) -> Address {
    [0xa0 + seed; 20]
}

/// A chain on which the gateway's account has `money`.
fn chain(money: u128) -> Arc<Mutex<Book>> {
    let book = Book { balances: [(gateway_key().address(), money)].into(), ..Book::default() };
    Arc::new(Mutex::new(book))
}

fn store(directory: Option<&Path>) -> Arc<Store> {
    Arc::new(directory.map_or_else(Store::in_memory, |directory| Store::open(directory).unwrap()))
}

fn payer(book: &Arc<Mutex<Book>>, directory: Option<&Path>, rules: PayerRules) -> Payer {
    let key = gateway_key();
    Payer {
        chain: Arc::new(Fake { book: book.clone(), account: key.address(), collector: collector() }),
        key,
        collector: collector(),
        registry: registry(),
        store: store(directory),
        rules,
    }
}

fn payee(book: &Arc<Mutex<Book>>, seed: u8, credit: u64, directory: Option<&Path>) -> Payee {
    let account = payee_account(seed);
    let payee = Payee {
        account,
        price: PRICES[usize::from(seed) - 1],
        credit,
        collector: collector(),
        registry: registry(),
        binding: [0; 64],
        chain: Arc::new(Fake { book: book.clone(), account, collector: collector() }),
        store: store(directory),
        rules: SettleRules::default(),
    };
    payee.bind(&identity(seed))
}

/// The gateway's world, with one paid node for each cut.
fn paid_world(book: &Arc<Mutex<Book>>, credit: u64, rules: PayerRules) -> (World, Vec<Node>) {
    let payer = payer(book, None, rules);
    let world = World::new("llama", 1, |config| config.payer = Some(payer));
    let nodes = nodes(&world, book, credit);
    (world, nodes)
}

fn nodes(world: &World, book: &Arc<Mutex<Book>>, credit: u64) -> Vec<Node> {
    let shards = [(0..2, true, false), (2..3, false, false), (3..5, false, true)];
    let node = |(index, (layers, embedding, head))| {
        let (seed, shard) = (index as u8 + 1, Shard { layers, embedding, head });
        world.node_of(seed, shard, world.fingerprint(), Some(payee(book, seed, credit, None)))
    };
    shards.into_iter().enumerate().map(node).collect()
}

fn earned(book: &Arc<Mutex<Book>>) -> [u128; 3] {
    let book = book.lock().unwrap();
    [1, 2, 3].map(|seed| book.balances.get(&payee_account(seed)).copied().unwrap_or(0))
}

fn prices_times(tokens: u64) -> [u128; 3] {
    PRICES.map(|price| u128::from(price) * u128::from(tokens))
}

#[tokio::test]
async fn every_stage_is_paid_for_every_token_and_for_no_other() {
    let book = chain(1000 * POD);
    let (world, nodes) = paid_world(&book, 10_000, PayerRules::default());
    world.ready().await;
    let prompt = Golden::read("llama").input;
    let replies = (0..40u32).map(|n| {
        let request = request(&prompt[..1 + n as usize % prompt.len()], 1 + n % 7);
        let submitter = world.submitter.clone();
        async move {
            let length = request.prompt.len();
            let generation = submitter.submit(request).await.unwrap();
            assert_eq!(u128::from(generation.price), PRICES.map(u128::from).iter().sum());
            length + collect(generation).await.unwrap().0.len()
        }
    });
    let tokens: usize = futures::future::join_all(replies).await.into_iter().sum();
    world.stop(nodes).await;
    assert_eq!(earned(&book), prices_times(tokens as u64));
    let book = book.lock().unwrap();
    assert_eq!((book.sum(), book.locked), (1000 * POD, 1));
    assert!(book.collections <= 3, "{} transactions", book.collections);
}

/// Credit for little more than one request: vouchers are due all the time, and requests wait for them.
#[tokio::test]
async fn little_credit_slows_and_breaks_nothing() {
    let book = chain(1000 * POD);
    let (world, nodes) = paid_world(&book, 40, PayerRules::default());
    world.ready().await;
    let replies = (0..20).map(|_| reply(&world, request(&[5, 6, 7, 8, 9], 12)));
    let replies = futures::future::join_all(replies).await;
    assert!(replies.iter().all(|(tokens, _)| tokens.len() == 12));
    let long = world.submitter.submit(request(&[1; 31], 5)).await.map(|_| ()).unwrap_err();
    assert_eq!(long, Refusal::Credit { prompt: 31, limit: 30 });
    world.stop(nodes).await;
    assert_eq!(earned(&book), prices_times(20 * 17));
}

#[tokio::test]
async fn without_money_requests_are_refused_and_with_it_they_go_on() {
    let book = chain(0);
    let rules = PayerRules { spend_limit: Some(prices_times(200).iter().sum()), ..PayerRules::default() };
    let (world, nodes) = paid_world(&book, 1000, rules);
    world.ready().await;
    let refusal = |prompt: usize| {
        let answer = world.submitter.submit(request(&vec![3; prompt], 10));
        async move { answer.await.map(|_| ()).unwrap_err().to_string() }
    };
    assert!(refusal(10).await.contains("dolphin account deposit"));
    book.lock().unwrap().balances.insert(gateway_key().address(), POD);
    assert_eq!(reply(&world, request(&[3; 10], 10)).await.0.len(), 10);
    // The lock went as far as the limit; what is left of that is too little now.
    assert_eq!(reply(&world, request(&[3; 100], 10)).await.0.len(), 10);
    assert!(refusal(70).await.contains("--spend-limit"));
    world.stop(nodes).await;
    assert_eq!(earned(&book), prices_times(130));
    assert_eq!(book.lock().unwrap().sum(), POD);
}

/// A paid node dies in the middle of a reply, and a free one takes its place: the client pays for each token once,
/// and the gateway pays all that served for what they computed.
#[tokio::test]
async fn what_is_computed_again_the_gateway_pays() {
    let book = chain(1000 * POD);
    let (world, mut nodes) = paid_world(&book, 1000, PayerRules::default());
    world.ready().await;
    let mut generation = world.submitter.submit(request(&[5, 6, 7, 8], 100)).await.unwrap();
    assert_eq!(u128::from(generation.price), PRICES.map(u128::from).iter().sum());
    let mut tokens = Vec::new();
    while tokens.len() < 30 {
        let Some(Told::Token { token, .. }) = generation.events.recv().await else { panic!("goes on") };
        tokens.push(token);
    }
    world.network.kill(nodes.remove(1).id());
    nodes.push(world.node(9, Shard { layers: 2..3, embedding: false, head: false }));
    tokens.extend(collect(generation).await.unwrap().0);
    assert_eq!(tokens, expected(&world.model, &[5, 6, 7, 8], 100));
    world.stop(nodes).await;
    let earned = earned(&book);
    let before = earned[1] / u128::from(PRICES[1]);
    assert!((4 + 30..4 + 100).contains(&before), "{before} tokens before");
    let all = prices_times(before as u64 + 4 + 100);
    assert_eq!(earned, [all[0], u128::from(PRICES[1]) * before, all[2]]);
    assert_eq!(book.lock().unwrap().sum(), 1000 * POD);
}

/// The lock pays for 60 tokens at a time, so one plan follows another, and every one is paid.
#[tokio::test]
async fn a_new_plan_follows_when_the_lock_runs_out() {
    let book = chain(POD);
    let rules = PayerRules { lock_tokens: 60, ..PayerRules::default() };
    let (world, nodes) = paid_world(&book, 1000, rules);
    world.ready().await;
    for _ in 0..10 {
        assert_eq!(reply(&world, request(&[3; 10], 10)).await.0.len(), 10);
    }
    world.stop(nodes).await;
    assert_eq!(earned(&book), prices_times(200));
    let book = book.lock().unwrap();
    assert_eq!((book.locked, book.sum()), (4, POD));
}

#[tokio::test]
async fn a_gateway_without_an_account_takes_no_paid_nodes() {
    let book = chain(POD);
    let world = World::new("llama", 2, |_| {});
    let whole = Shard { layers: 0..5, embedding: true, head: true };
    let mut node = world.node_of(1, whole, world.fingerprint(), Some(payee(&book, 1, 100, None)));
    let error = node.finished().await.unwrap_err().to_string();
    assert!(error.contains("this gateway has no account: start the gateway with --account"), "{error}");
    world.stop(Vec::new()).await;
}

#[tokio::test]
async fn a_price_or_an_account_that_is_not_the_node_s_is_refused() {
    let book = chain(POD);
    let rules = PayerRules { max_price: Some(PRICES[0]), ..PayerRules::default() };
    let payer = payer(&book, None, rules);
    let world = World::new("llama", 3, |config| config.payer = Some(payer));
    let whole = || Shard { layers: 0..5, embedding: true, head: true };
    let foreign = Payee { binding: payee(&book, 3, 9, None).binding, ..payee(&book, 1, 9, None) };
    let elsewhere = Payee { collector: registry(), ..payee(&book, 1, 9, None) };
    let cases = [
        (2, payee(&book, 2, 9, None), "2.500000000007 POD"),
        (1, foreign, "did not sign"),
        (1, elsewhere, "another chain"),
    ];
    for (seed, payee, reason) in cases {
        let mut node = world.node_of(seed, whole(), world.fingerprint(), Some(payee));
        let error = node.finished().await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        node.stop().await;
    }
    world.stop(Vec::new()).await;
}

/// A gateway and its nodes, whose stores are in a directory.
fn kept_world(book: &Arc<Mutex<Book>>, directory: &Path, credit: u64) -> (World, Vec<Node>) {
    let payer = payer(book, Some(&directory.join("gateway")), PayerRules::default());
    let world = World::new("llama", 4, |config| config.payer = Some(payer));
    let shards = [(0..2, true, false), (2..3, false, false), (3..5, false, true)];
    let node = |(index, (layers, embedding, head))| {
        let seed = index as u8 + 1;
        let payee = payee(book, seed, credit, Some(&directory.join(format!("node{seed}"))));
        world.node_of(seed, Shard { layers, embedding, head }, world.fingerprint(), Some(payee))
    };
    let nodes = shards.into_iter().enumerate().map(node).collect();
    (world, nodes)
}

/// What a crash leaves of the stores: the nodes' first, since a gateway writes down what it sends.
fn crash(from: &Path, to: &Path) {
    for name in ["node1", "node2", "node3", "gateway"] {
        std::fs::create_dir_all(to.join(name)).unwrap();
        for entry in std::fs::read_dir(from.join(name)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "json") {
                std::fs::copy(&path, to.join(name).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
}

/// Everybody dies in the middle of replies, with nothing settled, and comes back from what is on disk: the tab
/// goes on, nothing is paid twice, and no payee is out by more than its credit.
#[tokio::test]
async fn after_a_crash_the_tab_goes_on_and_at_most_the_credit_is_lost() {
    let book = chain(1000 * POD);
    let (before, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let credit = 150;
    let (world, nodes) = kept_world(&book, before.path(), credit);
    world.ready().await;
    let mut tokens = 0;
    for _ in 0..12 {
        tokens += 4 + reply(&world, request(&[3, 4, 5, 6], 8)).await.0.len();
    }
    let mut running = world.submitter.submit(request(&[3, 4, 5, 6], 100)).await.unwrap();
    running.events.recv().await.unwrap();
    crash(before.path(), after.path());
    // What the dead would have done on their way out reaches no chain.
    book.lock().unwrap().down = true;
    world.stop(nodes).await;
    book.lock().unwrap().down = false;
    assert_eq!(earned(&book), [0; 3]);

    let (world, nodes) = kept_world(&book, after.path(), credit);
    world.ready().await;
    let mut later = 0;
    for _ in 0..12 {
        later += 4 + reply(&world, request(&[3, 4, 5, 6], 8)).await.0.len();
    }
    world.stop(nodes).await;
    let (most, least) = (tokens + 104 + later, tokens + later - credit as usize);
    for ((earned, most), least) in
        earned(&book).into_iter().zip(prices_times(most as u64)).zip(prices_times(least as u64))
    {
        assert!(earned <= most && earned >= least, "{least} <= {earned} <= {most}");
    }
    let book = book.lock().unwrap();
    assert_eq!((book.locked, book.sum()), (1, 1000 * POD));
}

/// A till that is asked as a hostile gateway would.
struct Bench {
    till: Till,
    events: tokio::sync::mpsc::Receiver<Event>,
    tab: TabOffer,
}

const GATEWAY: NodeId = NodeId([9; 32]);

fn tab(key: &Key, change: impl FnOnce(&mut Plan, &mut Terms)) -> TabOffer {
    let nodes = [1, 2].map(|seed| *identity(seed).id().as_bytes()).to_vec();
    let mut terms = Terms { model: [5; 32], credit: 50, nodes };
    let stage = |seed: u8| Stage { payee: payee_account(seed), weight: PRICES[usize::from(seed) - 1] };
    let expiry = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() + 3600;
    let mut plan = Plan {
        session: [1; 32],
        payer: key.address(),
        terms: [0; 32],
        expiry,
        stages: vec![stage(1), stage(2)],
    };
    change(&mut plan, &mut terms);
    plan.terms = terms.hash();
    let signature = key.sign(&plan.digest(&collector())).to_vec();
    TabOffer { plan, terms, signature }
}

fn voucher(tab: &TabOffer, key: &Key, total: u128, domain: &Domain) -> VoucherNote {
    let plan = tab.plan.hash();
    let voucher = Voucher { session: tab.plan.session, plan, total, chunk: 0, commitments: [0; 32] };
    VoucherNote { plan, total, signature: key.sign(&voucher.digest(domain)).to_vec() }
}

impl Bench {
    /// The till of node 1, with a tab that has money behind it.
    async fn new(directory: Option<&Path>) -> (Self, Arc<Mutex<Book>>) {
        let book = chain(1000 * POD);
        let tab = tab(&gateway_key(), |_, _| {});
        payer(&book, None, PayerRules::default()).chain.lock(tab.plan.hash(), POD).await.unwrap();
        let (till, events) = Till::start(payee(&book, 1, 50, directory), identity(1).id(), [5; 32]).unwrap();
        (Self { till, events, tab }, book)
    }

    async fn offer(&mut self, tab: TabOffer) -> Result<(), TabRefusal> {
        self.till.submit(Command::Tab { gateway: GATEWAY, tab: Box::new(tab) });
        self.outcome().await
    }

    async fn pay(&mut self, note: VoucherNote) -> Result<(), TabRefusal> {
        self.till.submit(Command::Voucher { gateway: GATEWAY, note });
        self.outcome().await
    }

    async fn outcome(&mut self) -> Result<(), TabRefusal> {
        match self.events.recv().await.unwrap() {
            Event::Refused { reason, .. } => Err(reason),
            _ => Ok(()),
        }
    }
}

#[tokio::test]
async fn tabs_that_do_not_pay_the_node_are_refused() {
    let (mut bench, book) = Bench::new(None).await;
    let key = gateway_key();
    let offer = |change: fn(&mut Plan, &mut Terms)| tab(&key, change);
    let cases: [(TabOffer, TabRefusal); 9] = [
        (offer(|plan, _| plan.stages[0].weight -= 1), TabRefusal::Stage),
        (offer(|plan, _| plan.stages[0].payee = payee_account(2)), TabRefusal::Stage),
        // Another node claims the slice: this one is not in the plan.
        (offer(|_, terms| terms.nodes[0] = *identity(3).id().as_bytes()), TabRefusal::Stage),
        (offer(|_, terms| terms.nodes[1] = terms.nodes[0]), TabRefusal::Stage),
        (offer(|_, terms| terms.credit = 51), TabRefusal::Terms),
        (offer(|_, terms| terms.model = [6; 32]), TabRefusal::Terms),
        (offer(|plan, _| plan.expiry = 1000), TabRefusal::Expiry { expiry: 1000 }),
        (offer(|plan, _| plan.expiry = u64::MAX), TabRefusal::Expiry { expiry: u64::MAX }),
        // Signed, and nothing is locked for it.
        (offer(|plan, _| plan.session = [2; 32]), TabRefusal::Lock),
    ];
    for (tab, refusal) in cases {
        assert_eq!(bench.offer(tab).await, Err(refusal));
    }
    let stranger = Key::from_bytes(&[1; 32]).unwrap();
    let good = bench.tab.clone();
    let forged =
        TabOffer { signature: stranger.sign(&good.plan.digest(&collector())).to_vec(), ..good.clone() };
    assert_eq!(bench.offer(forged).await, Err(TabRefusal::Signature));
    let elsewhere = Domain { chain_id: 1, ..collector() };
    let foreign = TabOffer { signature: key.sign(&good.plan.digest(&elsewhere)).to_vec(), ..good.clone() };
    assert_eq!(bench.offer(foreign).await, Err(TabRefusal::Signature));
    book.lock().unwrap().down = true;
    assert!(matches!(bench.offer(good.clone()).await, Err(TabRefusal::Chain(_))));
    book.lock().unwrap().down = false;
    assert_eq!(bench.offer(good).await, Ok(()));
}

#[tokio::test]
async fn vouchers_that_are_forged_replayed_or_fall_are_refused_and_the_newest_survives() {
    let directory = tempfile::tempdir().unwrap();
    let (mut bench, book) = Bench::new(Some(directory.path())).await;
    let (key, domain, tab) = (gateway_key(), collector(), bench.tab.clone());
    let price = tab.plan.price().unwrap();
    let note = |tokens: u64| voucher(&tab, &key, u128::from(tokens * price), &domain);
    assert_eq!(bench.pay(note(1)).await, Err(TabRefusal::Unknown));
    bench.offer(tab.clone()).await.unwrap();
    bench.pay(note(10)).await.unwrap();
    bench.pay(note(10)).await.unwrap();
    let (before, after) = (u128::from(10 * price), u128::from(9 * price));
    assert_eq!(bench.pay(note(9)).await, Err(TabRefusal::Regression { before, after }));
    let stranger = Key::from_bytes(&[1; 32]).unwrap();
    assert_eq!(bench.pay(voucher(&tab, &stranger, 1 << 70, &domain)).await, Err(TabRefusal::Signature));
    let elsewhere = Domain { chain_id: 1, ..collector() };
    assert_eq!(bench.pay(voucher(&tab, &key, 1 << 70, &elsewhere)).await, Err(TabRefusal::Signature));
    let raised = VoucherNote { total: 1 << 70, ..note(20) };
    assert_eq!(bench.pay(raised).await, Err(TabRefusal::Signature));
    bench.pay(note(20)).await.unwrap();

    // Killed before it settles; the next process has the newest voucher and collects it, once.
    drop(bench);
    tokio::task::yield_now().await;
    let payee = reopened(&book, directory.path()).await;
    let (till, mut events) = Till::start(payee, identity(1).id(), [5; 32]).unwrap();
    till.caller().settle().await;
    till.caller().settle().await;
    let paid = [PRICES[0], PRICES[1], 0].map(|price| u128::from(20 * price));
    assert_eq!(earned(&book), paid);
    assert_eq!(book.lock().unwrap().collections, 1);
    till.submit(Command::Tab { gateway: GATEWAY, tab: Box::new(tab) });
    let Event::Taken { account, .. } = events.recv().await.unwrap() else { panic!("the tab is still good") };
    assert_eq!((account.served(), account.unpaid()), (20, 0));
    till.stop().await;
}

/// A store that a task which was dropped has let go of.
async fn reopened(book: &Arc<Mutex<Book>>, directory: &Path) -> Payee {
    for _ in 0..200 {
        if let Ok(store) = Store::open(directory) {
            return Payee { store: Arc::new(store), ..payee(book, 1, 50, None) };
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the store is in use")
}
