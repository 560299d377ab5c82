//! Nodes without the model's files: they fetch their layers from the gateway, serve, and fetch what a new plan adds.

use std::{path::Path, sync::Arc};

use engine::{
    local::{load_stage, shard_bytes},
    message::{KvMemory, Offer},
    model::Shard,
    node::{Loader, Node, NodeConfig},
    request::Finish,
    swarm::SwarmStatus,
    weights::{Fetcher, Stock},
};
use kernels::cpu::{Cpu, Isa};
use transport::{Limits, Transport, sim::Conditions};

use crate::{
    support::{Golden, open},
    swarm::{BUDGET, QUANTISATION, World, expected, identity, reply, request},
};

/// A gateway that gives weights away.
fn giving(name: &str, seed: u64) -> World {
    counted(name, seed).0
}

/// The same, and what it gives.
fn counted(name: &str, seed: u64) -> (World, Stock) {
    let stock = Stock::new(Arc::new(open(name)), Some(8 << 20));
    stock.hash(QUANTISATION).unwrap();
    let given = stock.clone();
    (World::new(name, seed, |config| config.weights = Some(stock)), given)
}

/// A node.
struct Seat {
    seed: u8,
    shard: Shard,
    /// It may be told to hold other layers.
    movable: bool,
}

/// A node of a new process that has nothing but what is in `directory`; and what it fetched.
async fn node(world: &World, seed: u8, shard: Shard, directory: &Path) -> (Node, u64) {
    seated(world, Seat { seed, shard, movable: true }, directory).await
}

async fn seated(world: &World, seat: Seat, directory: &Path) -> (Node, u64) {
    let Seat { seed, shard, movable } = seat;
    let endpoint = world.network.endpoint(&identity(seed), Limits::default()).unwrap();
    let advertise = endpoint.local_address().to_string();
    let endpoint: Arc<dyn Transport> = Arc::new(endpoint);
    let gateways = vec![world.gateway.clone()];
    let mirror = Fetcher::describe(&endpoint, &gateways, directory, QUANTISATION, None).await.unwrap();
    let weights = Fetcher::new(mirror, 1 << 30, None);
    let model = weights.model().clone();
    let fetched = weights.fetch(&endpoint, &gateways, &shard, &|_| ()).await.unwrap();
    let cpu = Cpu::new(1, Isa::detect()).unwrap();
    let stage = load_stage(&model, &shard, QUANTISATION, &BUDGET, cpu.clone(), &|_| {}).unwrap();
    let config = NodeConfig {
        gateways,
        advertise,
        fingerprint: model.fingerprint(QUANTISATION),
        chunk: BUDGET.chunk,
        weight_bytes: shard_bytes(&model, &shard, QUANTISATION),
        device: "a test".into(),
        payee: None,
        offer: Offer {
            weight_bytes: 1 << 30,
            kv: KvMemory::default(),
            movable,
            load_rate: Some(1 << 30),
            profile: None,
        },
        loader: Some(Loader::new(model, QUANTISATION, BUDGET, cpu)),
        audit: None,
        clerk: None,
        stock: Some(weights.stock(8 << 20)),
        weights: Some(weights),
    };
    (Node::start(stage, endpoint, config).unwrap(), fetched)
}

fn part(layers: std::ops::Range<usize>, of: usize) -> Shard {
    Shard { embedding: layers.start == 0, head: layers.end == of, layers }
}

/// Whether all nodes give everything.
fn give_all(status: &SwarmStatus, layers: usize) -> bool {
    !status.nodes.is_empty() && status.nodes.iter().all(|node| node.gives == layers + 2)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_fetched_answer_as_those_that_had_the_files() {
    for (seed, name) in ["llama", "llama_tied", "qwen2"].into_iter().enumerate() {
        let world = giving(name, 60 + seed as u64);
        world.network.set_conditions(Conditions::wide_area());
        let layers = world.model.config().layers;
        let (embedding, stored, _) = world.model.stored_bytes();
        let place = tempfile::tempdir().unwrap();
        let (first, a) = node(&world, 1, part(0..2, layers), &place.path().join("a")).await;
        let (second, b) = node(&world, 2, part(2..layers, layers), &place.path().join("b")).await;
        assert_eq!(a, embedding + stored[0] + stored[1], "its shard and nothing else");
        assert!(b > 0);
        world.ready().await;
        let prompt = Golden::read(name).input;
        let tokens = reply(&world, request(&prompt, 12)).await;
        assert_eq!(tokens, (expected(&world.model, &prompt, 12), Finish::Length), "{name}");
        world.stop(vec![first, second]).await;
    }
}

/// The head's node dies; the other is told to hold the rest as well, and fetches that over its link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_to_hold_more_fetches_that_and_serves() {
    let world = giving("llama", 70);
    let layers = world.model.config().layers;
    let place = tempfile::tempdir().unwrap();
    let (first, _) = node(&world, 1, part(0..3, layers), &place.path().join("a")).await;
    let (second, _) = node(&world, 2, part(3..layers, layers), &place.path().join("b")).await;
    world.ready().await;
    world.network.kill(second.id());
    let status = world.until(|status| status.nodes.len() == 1 && status.ready()).await;
    assert_eq!((status.pipeline[0].from, status.pipeline[0].to), (0, layers));
    let prompt = Golden::read("llama").input;
    let tokens = reply(&world, request(&prompt, 12)).await;
    assert_eq!(tokens, (expected(&world.model, &prompt, 12), Finish::Length));
    world.stop(vec![first]).await;
    // What it has now, a node in its place need not fetch.
    let world = giving("llama", 71);
    let (again, fetched) = node(&world, 1, part(0..layers, layers), &place.path().join("a")).await;
    assert_eq!(fetched, 0);
    world.stop(vec![again]).await;
}

/// A second holder of the same layers has them from the first, as has the third; the gateway describes the model.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_has_the_others_get_from_it() {
    let (world, from_gateway) = counted("llama", 72);
    let layers = world.model.config().layers;
    let place = tempfile::tempdir().unwrap();
    let all = || part(0..layers, layers);
    let (first, fetched) = node(&world, 1, all(), &place.path().join("a")).await;
    world.until(|status| status.nodes.len() == 1).await;
    let described = from_gateway.given_bytes() - fetched;
    let mut nodes = vec![first];
    for (seed, directory) in [(2, "b"), (3, "c")] {
        world.until(|status| status.nodes.len() == nodes.len() && give_all(status, layers)).await;
        let before = from_gateway.given_bytes();
        let (next, bytes) = node(&world, seed, all(), &place.path().join(directory)).await;
        assert_eq!(bytes, fetched);
        assert_eq!(from_gateway.given_bytes() - before, described, "no byte of a tensor");
        nodes.push(next);
    }
    world.until(|status| status.nodes.len() == 3 && status.ready()).await;
    let prompt = Golden::read("llama").input;
    let tokens = reply(&world, request(&prompt, 12)).await;
    assert_eq!(tokens, (expected(&world.model, &prompt, 12), Finish::Length));
    world.stop(nodes).await;
}

/// A node is told to hold other layers, which another at work has had: they come from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_to_hold_more_gets_it_from_one_that_had_it() {
    let place = tempfile::tempdir().unwrap();
    let world = giving("llama", 73);
    let layers = world.model.config().layers;
    let (before, _) = node(&world, 1, part(0..layers, layers), &place.path().join("a")).await;
    world.stop(vec![before]).await;
    let (world, from_gateway) = counted("llama", 74);
    // It holds less than it has, and is not told to hold more.
    let fixed = Seat { seed: 1, shard: part(3..layers, layers), movable: false };
    let (first, fetched) = seated(&world, fixed, &place.path().join("a")).await;
    assert_eq!(fetched, 0);
    let (second, _) = node(&world, 2, part(3..layers, layers), &place.path().join("b")).await;
    let (third, _) = node(&world, 3, part(0..3, layers), &place.path().join("c")).await;
    world.until(|status| status.nodes.len() == 3 && status.nodes.iter().all(|node| node.gives > 0)).await;
    let given = from_gateway.given_bytes();
    world.network.kill(third.id());
    let status = world.until(|status| status.nodes.len() == 2 && status.ready()).await;
    assert!(status.moved > 0);
    assert_eq!(from_gateway.given_bytes(), given, "all of it comes from the first");
    let prompt = Golden::read("llama").input;
    let tokens = reply(&world, request(&prompt, 12)).await;
    assert_eq!(tokens, (expected(&world.model, &prompt, 12), Finish::Length));
    world.stop(vec![first, second]).await;
}

/// A node with files of its own gives what it has of them, as far as they are the gateway's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_a_nodes_own_are_given() {
    for (seed, of, is_given) in [(75, "llama", true), (76, "llama_tied", false)] {
        let (world, from_gateway) = counted("llama", seed);
        let place = tempfile::tempdir().unwrap();
        let layers = world.model.config().layers;
        let stock = Stock::own(Arc::new(open(of)), QUANTISATION, place.path().join("own"), 8 << 20);
        let own = world.node_with(1, part(0..layers, layers), Some(stock.clone()));
        // What is in other files may have another form, and then not even be claimed.
        let claims = |status: &SwarmStatus| status.nodes.iter().any(|node| node.gives == layers + 2);
        world.until(|status| status.ready() && (claims(status) || !is_given)).await;
        let (other, fetched) = node(&world, 2, part(0..layers, layers), &place.path().join("b")).await;
        assert!(fetched > 0);
        assert_eq!(stock.given_bytes(), if is_given { fetched } else { 0 });
        assert_eq!(from_gateway.given_bytes() >= fetched, !is_given);
        world.stop(vec![own, other]).await;
    }
}

#[tokio::test]
async fn a_gateway_gives_nothing_to_those_it_does_not_list_or_without_being_told() {
    for given in [false, true] {
        let stock = Stock::new(Arc::new(open("llama")), None);
        stock.hash(QUANTISATION).unwrap();
        let world = World::new("llama", 80, |config| {
            config.weights = given.then_some(stock);
            config.allow = given.then(|| [identity(9).id()].into());
        });
        let endpoint = world.network.endpoint(&identity(1), Limits::default()).unwrap();
        let endpoint: Arc<dyn Transport> = Arc::new(endpoint);
        let place = tempfile::tempdir().unwrap();
        let gateways = [world.gateway.clone()];
        let error =
            Fetcher::describe(&endpoint, &gateways, place.path(), QUANTISATION, None).await.unwrap_err();
        assert!(error.to_string().contains("name its files with --model"), "{error}");
        world.stop(Vec::new()).await;
    }
}
