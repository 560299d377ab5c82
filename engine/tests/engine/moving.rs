//! A swarm that is planned anew while it serves: nodes slow, die and cannot load, and every reply stays as it is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use engine::{
    local::{load_stage, shard_bytes},
    message::{KvMemory, Offer},
    model::{Model, Shard},
    node::{Loader, Node, NodeConfig},
    request::{Event, Request},
};
use tokio::{task::JoinSet, time::Instant};
use transport::{Limits, Transport};

use crate::{
    slow::Slow,
    support::Golden,
    swarm::{BUDGET, QUANTISATION, World, expected, identity, request},
};

/// What a layer takes here: much longer than what the tests' own machine adds.
const LAYER_US: u64 = 2000;
const TOKENS: u32 = 8;
const CLIENTS: usize = 4;
const WINDOW: Duration = Duration::from_secs(2);

fn part_of(model: &Model, layers: std::ops::Range<usize>) -> Shard {
    Shard { embedding: layers.start == 0, head: layers.end == model.config().layers, layers }
}

/// A node that may be told to load other layers.
fn movable(world: &World, seed: u8, layers: std::ops::Range<usize>, slow: &Slow) -> Node {
    let count = world.model.config().layers;
    let shard = part_of(&world.model, layers);
    let endpoint = world.network.endpoint(&identity(seed), Limits::default()).unwrap();
    let stage = load_stage(&world.model, &shard, QUANTISATION, &BUDGET, slow.clone(), &|_| {}).unwrap();
    // Room for three layers, wherever they are: no node holds the whole model.
    let part = |from| shard_bytes(&world.model, &part_of(&world.model, from..from + 3), QUANTISATION);
    let weight_bytes = (0..count - 2).map(part).max().unwrap();
    let config = NodeConfig {
        gateways: vec![world.gateway.clone()],
        advertise: endpoint.local_address().to_string(),
        fingerprint: world.model.fingerprint(QUANTISATION),
        chunk: BUDGET.chunk,
        weight_bytes: 1,
        device: "slow".into(),
        offer: Offer {
            weight_bytes,
            kv: KvMemory::default(),
            movable: true,
            load_rate: Some(1 << 30),
            profile: None,
        },
        loader: Some(Loader::new(world.model.clone(), QUANTISATION, BUDGET, slow.clone())),
        audit: None,
        clerk: None,
        weights: None,
        stock: None,
        payee: None,
    };
    Node::start(stage, Arc::new(endpoint), config).unwrap()
}

/// Clients that ask one thing after the other until told to stop.
struct Load {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
    tokens: Arc<AtomicUsize>,
    failures: Arc<AtomicUsize>,
}

impl Load {
    fn start(world: &World) -> Self {
        let input = Golden::read("llama").input;
        let mut load = Self {
            tasks: JoinSet::new(),
            stop: Arc::default(),
            tokens: Arc::default(),
            failures: Arc::default(),
        };
        for client in 0..CLIENTS {
            let prompt = input[client..client + 8].to_vec();
            let right = expected(&world.model, &prompt, TOKENS as usize);
            let submitter = world.submitter.clone();
            let (stop, tokens, failures) = (load.stop.clone(), load.tokens.clone(), load.failures.clone());
            load.tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let ask = Request { deadline: Duration::from_secs(30), ..request(&prompt, TOKENS) };
                    let mut generation = match submitter.submit(ask).await {
                        Ok(generation) => generation,
                        Err(refusal) => {
                            eprintln!("refused: {refusal}");
                            failures.fetch_add(1, Ordering::Relaxed);
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            continue;
                        }
                    };
                    let mut reply = Vec::new();
                    loop {
                        match generation.events.recv().await.expect("a reply ends with an event") {
                            Event::Token { token, .. } => {
                                tokens.fetch_add(1, Ordering::Relaxed);
                                reply.push(token);
                            }
                            Event::Finished(_) => break assert_eq!(reply, right),
                            Event::Failed(failure) => {
                                eprintln!("failed: {failure}");
                                failures.fetch_add(1, Ordering::Relaxed);
                                assert_eq!(reply, right[..reply.len()]);
                                break;
                            }
                        }
                    }
                }
            });
        }
        load
    }

    /// Tokens per second over the next while.
    async fn rate(&self, window: Duration) -> f64 {
        let (begun, before) = (Instant::now(), self.tokens.load(Ordering::Relaxed));
        tokio::time::sleep(window).await;
        (self.tokens.load(Ordering::Relaxed) - before) as f64 / begun.elapsed().as_secs_f64()
    }

    fn failures(&self) -> usize {
        self.failures.load(Ordering::Relaxed)
    }

    async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(outcome) = self.tasks.join_next().await {
            outcome.expect("every reply has the right bytes");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_killed_nodes_are_planned_around_and_nothing_else_changes() {
    let world = World::new("llama", 31, |config| (config.speculation, config.running) = (false, CLIENTS));
    let slow = [(); 3].map(|()| Slow::new(LAYER_US));
    let cuts = [0..2, 2..4, 4..5];
    let mut nodes: Vec<Node> = cuts
        .into_iter()
        .zip(&slow)
        .enumerate()
        .map(|(n, (layers, slow))| movable(&world, n as u8 + 1, layers, slow))
        .collect();
    world.until(|status| status.ready() && status.nodes.len() == 3).await;
    let load = Load::start(&world);
    // Paces are told, and what follows from them done, before anything is measured.
    world.until(|status| status.nodes.iter().filter(|node| node.layer_ns.is_some()).count() > 1).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.until(|status| status.moves.is_empty() && status.ready()).await;
    let before = load.rate(WINDOW).await;
    let status = world.until(|_| true).await;
    eprintln!("{} moves: {:?}", status.moved, status.pipeline);
    let moved = status.moved;
    // One that serves slows.
    let seat = status.pipeline[0].node.clone();
    let slows = nodes.iter().position(|node| node.id().to_string() == seat).unwrap();
    slow[slows].set_layer_us(LAYER_US * 15);
    // Before the gateway has done anything about it.
    let slowed = load.rate(WINDOW / 4).await;
    let status = world
        .until(|status| {
            let relieved = status.pipeline.iter().all(|other| other.node != seat);
            relieved && status.moved > moved && status.moves.is_empty() && status.ready()
        })
        .await;
    let relieved = load.rate(WINDOW).await;
    assert_eq!(load.failures(), 0, "moves lose no reply");
    eprintln!(
        "tokens/s: {before:.0} before, {slowed:.0} slowed, {relieved:.0} replanned: {:?}",
        status.pipeline
    );

    let serving = world.until(|status| status.pipeline.len() > 1 || status.nodes.len() == 3).await.pipeline;
    let victim = serving.last().expect("a pipeline stands").node.clone();
    let moved = status.moved;
    let at = nodes.iter().position(|node| node.id().to_string() == victim).unwrap();
    world.network.kill(nodes.remove(at).id());
    let status = world.until(|status| status.nodes.len() == 2 && status.ready()).await;
    let failures = load.failures();
    let mended = load.rate(WINDOW).await;
    eprintln!(
        "tokens/s: {mended:.0} after a node was killed, {failures} requests failed: {:?}",
        status.pipeline
    );
    assert!(mended > 0.0 && status.moved > moved);
    assert!(status.pipeline.iter().all(|seat| seat.node != victim));
    load.stop().await;
    world.stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_load_goes_on_as_before_and_is_left_alone() {
    let world = World::new("llama", 32, |config| (config.speculation, config.running) = (false, CLIENTS));
    let slow = [(); 2].map(|()| Slow::new(LAYER_US));
    let nodes = vec![movable(&world, 1, 0..3, &slow[0]), movable(&world, 2, 3..5, &slow[1])];
    world.until(|status| status.ready() && status.nodes.len() == 2).await;
    slow[0].set_room(3);
    slow[1].set_room(2);
    slow[0].set_layer_us(LAYER_US * 10);
    let load = Load::start(&world);
    let failed =
        world.until(|status| status.moves_failed > 0 && status.moves.is_empty() && status.ready()).await;
    assert_eq!(failed.moved, 0);
    // Either node may be asked once; then neither is, for a while.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let later = world.until(|status| status.ready()).await;
    assert!(later.moves_failed <= 2 && later.moves.is_empty(), "{later:?}");
    assert!(load.rate(WINDOW).await > 0.0);
    assert_eq!(load.failures(), 0);
    load.stop().await;
    world.stop(nodes).await;
}
