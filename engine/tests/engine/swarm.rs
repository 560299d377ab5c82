//! A swarm of nodes over the simulated network: what it answers, and what it survives. Stages compute on
//! threads of their own, so these tests run in real time.

use std::{collections::HashSet, sync::Arc, time::Duration};

use engine::{
    device::Device,
    front::planned,
    local::{StageBudget, load_stage},
    message::{Offer, Path, Priority},
    model::{Model, Quantisation, Shard},
    node::{GatewayAddress, Node, NodeConfig, NodeError},
    on_device,
    payment::till::Payee,
    request::{Event, Failure, Finish, Generation, Refusal, Request, Sampling, Submitter},
    speculation::drafter::Drafting,
    swarm::{Swarm, SwarmConfig, SwarmStatus},
    weights::Stock,
};
use kernels::{
    backend::KvShape,
    cpu::{Cpu, Isa},
};
use transport::{Identity, Limits, NodeId, PathKind, Transport, sim::Conditions, sim::Network};

use crate::support::{Golden, Pipeline, argmax, open};

pub(crate) const QUANTISATION: Quantisation = Quantisation::Q8;
pub(crate) const BUDGET: StageBudget =
    StageBudget { rows: 32, chunk: 16, sessions: 64, context: 256, kv_bytes: 64 << 20 };

/// A gateway on a simulated network, and what is needed to add nodes.
pub(crate) struct World {
    pub(crate) network: Network,
    pub(crate) model: Arc<Model>,
    /// What nodes compute on.
    pub(crate) device: Device,
    pub(crate) swarm: Swarm,
    pub(crate) submitter: Submitter,
    pub(crate) gateway: GatewayAddress,
    /// KV pages of each node; as many as its budget has if `None`.
    pub(crate) pages: Option<usize>,
}

pub(crate) fn identity(seed: u8) -> Identity {
    Identity::from_secret([seed; 32])
}

impl World {
    pub(crate) fn new(name: &str, seed: u64, change: impl FnOnce(&mut SwarmConfig)) -> Self {
        Self::of(Arc::new(open(name)), None, seed, change)
    }

    /// A gateway that serves `model`, with a draft model perhaps.
    pub(crate) fn of(
        model: Arc<Model>,
        drafting: Option<Drafting>,
        seed: u64,
        change: impl FnOnce(&mut SwarmConfig),
    ) -> Self {
        let network = Network::new(seed);
        let endpoint = network.endpoint(&identity(200), Limits::default()).unwrap();
        let gateway = GatewayAddress { id: endpoint.id(), address: endpoint.local_address().to_string() };
        let mut config = SwarmConfig {
            fingerprint: model.fingerprint(QUANTISATION),
            model: planned(&model, QUANTISATION, false).unwrap(),
            positions: 256,
            relay_bytes_per_s: None,
            running: 64,
            waiting: 256,
            allow: None,
            private_ends: None,
            speculation: true,
            payer: None,
            replan: true,
            receipts: None,
            weights: None,
        };
        change(&mut config);
        let (submitter, submissions) = Submitter::channel(512);
        let swarm = Swarm::start(identity(200), Arc::new(endpoint), config, drafting, submissions).unwrap();
        let device = Device::Cpu(Cpu::new(1, Isa::detect()).unwrap());
        Self { network, model, device, swarm, submitter, gateway, pages: None }
    }

    pub(crate) fn node(&self, seed: u8, shard: Shard) -> Node {
        self.node_of(seed, shard, self.fingerprint(), None)
    }

    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        self.model.fingerprint(QUANTISATION)
    }

    pub(crate) fn node_of(
        &self,
        seed: u8,
        shard: Shard,
        fingerprint: [u8; 32],
        payee: Option<Payee>,
    ) -> Node {
        self.started(seed, shard, fingerprint, payee, None)
    }

    /// A node that gives weights away.
    pub(crate) fn node_with(&self, seed: u8, shard: Shard, stock: Option<Stock>) -> Node {
        self.started(seed, shard, self.fingerprint(), None, stock)
    }

    fn started(
        &self,
        seed: u8,
        shard: Shard,
        fingerprint: [u8; 32],
        payee: Option<Payee>,
        stock: Option<Stock>,
    ) -> Node {
        let endpoint = self.network.endpoint(&identity(seed), Limits::default()).unwrap();
        let model = self.model.config();
        let shape = KvShape {
            layers: shard.layers.len(),
            pages: 1,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
            profile: QUANTISATION.profile(),
        };
        let kv_bytes = self.pages.map_or(BUDGET.kv_bytes, |pages| (pages * shape.page_bytes()) as u64);
        let budget = StageBudget { kv_bytes, ..BUDGET };
        let config = NodeConfig {
            gateways: vec![self.gateway.clone()],
            advertise: endpoint.local_address().to_string(),
            fingerprint,
            chunk: BUDGET.chunk,
            weight_bytes: 1,
            device: self.device.describe(),
            payee,
            offer: Offer::default(),
            loader: None,
            audit: None,
            clerk: None,
            weights: None,
            stock,
        };
        on_device!(self.device.clone(), backend => {
            let stage = load_stage(&self.model, &shard, QUANTISATION, &budget, backend, &|_| {}).unwrap();
            Node::start(stage, Arc::new(endpoint), config).unwrap()
        })
    }

    /// Nodes that begin at `cuts`, the first at layer 0.
    pub(crate) fn pipeline(&self, cuts: &[usize]) -> Vec<Node> {
        let layers = self.model.config().layers;
        let ends = cuts.iter().skip(1).copied().chain([layers]);
        let shard = |(&from, to): (&usize, usize)| Shard {
            layers: from..to,
            embedding: from == 0,
            head: to == layers,
        };
        cuts.iter().zip(ends).enumerate().map(|(n, bounds)| self.node(n as u8 + 1, shard(bounds))).collect()
    }

    pub(crate) async fn until(&self, holds: impl FnMut(&SwarmStatus) -> bool) -> SwarmStatus {
        self.swarm.status().wait_for(holds).await.unwrap().clone()
    }

    pub(crate) async fn ready(&self) {
        self.until(SwarmStatus::ready).await;
    }

    pub(crate) async fn stop(self, nodes: Vec<Node>) {
        self.swarm.stop().await;
        for node in nodes {
            node.stop().await;
        }
    }
}

pub(crate) fn request(prompt: &[u32], max_tokens: u32) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_tokens,
        stop_tokens: Vec::new(),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        tenant: 0,
        priority: Priority::Normal,
        deadline: Duration::from_secs(60),
    }
}

pub(crate) async fn collect(mut generation: Generation) -> Result<(Vec<u32>, Finish), Failure> {
    let mut tokens = Vec::new();
    loop {
        match generation.events.recv().await.expect("a reply ends with an event that says so") {
            Event::Token { token, .. } => tokens.push(token),
            Event::Finished(finish) => return Ok((tokens, finish)),
            Event::Failed(failure) => return Err(failure),
        }
    }
}

pub(crate) async fn reply(world: &World, request: Request) -> (Vec<u32>, Finish) {
    collect(world.submitter.submit(request).await.unwrap()).await.unwrap()
}

/// Greedy tokens without any swarm.
pub(crate) fn expected(model: &Model, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut pipeline = Pipeline::new(model, &Cpu::new(1, Isa::detect()).unwrap(), QUANTISATION, &[]);
    let session = engine::message::SessionId(1);
    pipeline.open(session, 256);
    let mut tokens = Vec::new();
    for chunk in prompt.chunks(64) {
        tokens = vec![argmax(pipeline.step(&[(session, chunk)]).logits(chunk.len() - 1..chunk.len()))];
    }
    while tokens.len() < n {
        let token = *tokens.last().unwrap();
        tokens.push(argmax(pipeline.step(&[(session, &[token])]).logits(0..1)));
    }
    tokens
}

#[tokio::test]
async fn every_cut_over_a_lossy_network_gives_the_same_reply() {
    let prompt = Golden::read("qwen2").input;
    let sampled = |seed| Request {
        sampling: Sampling {
            temperature: 0.9,
            top_p: 0.95,
            seed,
            repetition_penalty: 1.1,
            ..Sampling::default()
        },
        ..request(&prompt, 12)
    };
    let mut replies = Vec::new();
    for (seed, cuts) in [&[0][..], &[0, 3], &[0, 2, 4], &[0, 1, 2, 3, 4, 5]].into_iter().enumerate() {
        let world = World::new("qwen2", seed as u64, |_| {});
        world.network.set_conditions(Conditions::wide_area());
        let nodes = world.pipeline(cuts);
        world.ready().await;
        let greedy = reply(&world, request(&prompt, 12)).await;
        assert_eq!(greedy, (expected(&world.model, &prompt, 12), Finish::Length), "cuts {cuts:?}");
        replies.push((reply(&world, sampled(7)).await, reply(&world, sampled(8)).await));
        world.stop(nodes).await;
    }
    assert!(replies.windows(2).all(|pair| pair[0] == pair[1]));
    assert_ne!(replies[0].0, replies[0].1, "another seed draws other tokens");
}

#[tokio::test]
async fn many_sessions_at_once_are_served_as_if_alone() {
    let world = World::new("llama", 1, |config| config.running = 24);
    let nodes = world.pipeline(&[0, 2]);
    world.ready().await;
    let input = Golden::read("llama").input;
    let prompts: Vec<&[u32]> = (0..60).map(|n| &input[n % 7..8 + n % 40]).collect();
    let running = prompts.iter().map(|prompt| reply(&world, request(prompt, 10)));
    let replies = futures::future::join_all(running).await;
    for (prompt, (tokens, _)) in prompts.iter().zip(replies) {
        assert_eq!(tokens, expected(&world.model, prompt, 10), "prompt {prompt:?}");
    }
    let status = world.until(|status| status.running == 0).await;
    assert_eq!(status.waiting, 0);
    world.stop(nodes).await;
}

#[tokio::test]
async fn a_stop_token_ends_the_reply_and_is_reported() {
    let world = World::new("llama", 2, |_| {});
    let nodes = world.pipeline(&[0, 2]);
    world.ready().await;
    let prompt = Golden::read("llama").input;
    let tokens = expected(&world.model, &prompt, 8);
    let stop = tokens[4];
    let first = tokens.iter().position(|&token| token == stop).unwrap();
    let ended = reply(&world, Request { stop_tokens: vec![stop], ..request(&prompt, 50) }).await;
    assert_eq!(ended, (tokens[..=first].to_vec(), Finish::Stop));
    world.stop(nodes).await;
}

#[tokio::test]
async fn a_client_that_goes_away_frees_everything() {
    let world = World::new("llama", 3, |_| {});
    let nodes = world.pipeline(&[0, 2, 4]);
    world.ready().await;
    let prompt = Golden::read("llama").input;
    let mut generation = world.submitter.submit(request(&prompt, 200)).await.unwrap();
    assert!(matches!(generation.events.recv().await, Some(Event::Token { .. })));
    drop(generation);
    world.until(|status| status.running == 0).await;
    for node in &nodes {
        node.status().wait_for(|status| status.sessions == 0).await.unwrap();
    }
    assert_eq!(reply(&world, request(&prompt, 5)).await.0.len(), 5);
    world.stop(nodes).await;
}

#[tokio::test]
async fn a_killed_node_is_planned_around() {
    let world = World::new("llama", 7, |_| {});
    let mut nodes = world.pipeline(&[0, 2]);
    nodes.push(world.node(9, Shard { layers: 2..5, embedding: false, head: true }));
    let status = world.until(|status| status.ready() && status.nodes.len() == 3).await;
    let prompt = Golden::read("llama").input;
    assert_eq!(reply(&world, request(&prompt, 5)).await.0, expected(&world.model, &prompt, 5));
    let serving = status.pipeline[1].node.clone();
    let victim = nodes.iter().position(|node| node.id().to_string() == serving).unwrap();
    world.network.kill(nodes.remove(victim).id());
    let after = world.until(|after| after.replans > status.replans && after.nodes.len() == 2).await;
    assert!(after.missing.is_none() && after.pipeline[1].node != serving, "{after:?}");
    assert_eq!(reply(&world, request(&prompt, 5)).await.0, expected(&world.model, &prompt, 5));
    world.stop(nodes).await;
}

/// Nobody else could take the reply on: it goes on as soon as they have found each other.
#[tokio::test]
async fn two_stages_that_lose_each_other_try_again() {
    let world = World::new("llama", 5, |_| {});
    let nodes = world.pipeline(&[0, 2]);
    world.ready().await;
    let prompt = Golden::read("llama").input;
    let mut generation = world.submitter.submit(request(&prompt, 200)).await.unwrap();
    let Some(Event::Token { token, .. }) = generation.events.recv().await else { panic!("begins") };
    world.network.partition(nodes[0].id(), nodes[1].id());
    for node in &nodes {
        node.status().wait_for(|status| status.sessions == 0).await.unwrap();
    }
    world.network.heal(nodes[0].id(), nodes[1].id());
    let (rest, finish) = collect(generation).await.unwrap();
    let tokens: Vec<u32> = std::iter::once(token).chain(rest).collect();
    assert_eq!((tokens, finish), (expected(&world.model, &prompt, 200), Finish::Length));
    world.stop(nodes).await;
}

#[tokio::test]
async fn a_gateway_that_comes_back_gets_its_nodes_back() {
    let world = World::new("llama", 6, |_| {});
    let nodes = world.pipeline(&[0]);
    world.ready().await;
    world.network.partition(nodes[0].id(), world.gateway.id);
    world.until(|status| status.nodes.is_empty()).await;
    world.network.heal(nodes[0].id(), world.gateway.id);
    world.ready().await;
    assert_eq!(reply(&world, request(&[5, 6, 7], 5)).await.0.len(), 5);
    world.stop(nodes).await;
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_with_its_reason() {
    let world = World::new("llama", 7, |config| {
        config.running = 1;
        config.waiting = 1;
    });
    let empty = world.submitter.submit(request(&[1], 5)).await.map(|_| ()).unwrap_err();
    assert_eq!(empty, Refusal::NoPipeline { missing: "the embedding".into() });
    let nodes = world.pipeline(&[0]);
    world.ready().await;
    let long = world.submitter.submit(request(&[1; 100], 200)).await.map(|_| ()).unwrap_err();
    assert_eq!(long, Refusal::TooLong { requested: 300, limit: 256 });

    let running = world.submitter.submit(request(&[1], 200)).await.unwrap();
    let waiting = tokio::spawn({
        let submitter = world.submitter.clone();
        async move { submitter.submit(request(&[1], 5)).await.map(|_| ()) }
    });
    world.until(|status| status.waiting == 1).await;
    let busy = world.submitter.submit(request(&[1], 5)).await.map(|_| ()).unwrap_err();
    assert!(matches!(busy, Refusal::Busy { .. }));
    drop(running);
    assert_eq!(waiting.await.unwrap(), Ok(()), "the waiting request gets the freed slot");

    let late = Request { deadline: Duration::from_millis(1), ..request(&[1], 200) };
    let outcome = collect(world.submitter.submit(late).await.unwrap()).await;
    assert_eq!(outcome, Err(Failure::Deadline));
    world.stop(nodes).await;
}

#[tokio::test]
async fn strangers_are_refused() {
    let listed = identity(1).id();
    let world = World::new("llama", 8, |config| config.allow = Some(HashSet::from([listed])));
    let whole = || Shard { layers: 0..5, embedding: true, head: true };
    let mut stranger = world.node(2, whole());
    assert!(matches!(stranger.finished().await, Err(NodeError::Refused { .. })));
    let mut other_model = world.node_of(1, whole(), [9; 32], None);
    let NodeError::Refused { reason, .. } = other_model.finished().await.unwrap_err() else {
        panic!("refused")
    };
    assert!(reason.contains("another model"), "{reason}");
    assert!(world.swarm.status().borrow().nodes.is_empty());
    world.stop(Vec::new()).await;
}

/// With private ends, a node that offers embedding and head is not given them.
#[tokio::test]
async fn private_ends_keep_tokens_from_other_nodes() {
    let ends: HashSet<NodeId> = [identity(1).id(), identity(2).id()].into();
    let world = World::new("llama", 9, |config| config.private_ends = Some(ends));
    let mut nodes = vec![world.node(3, Shard { layers: 0..5, embedding: true, head: true })];
    world.until(|status| status.nodes.len() == 1).await;
    let refusal = world.submitter.submit(request(&[1], 5)).await.map(|_| ()).unwrap_err();
    assert_eq!(refusal, Refusal::NoPipeline { missing: "the embedding".into() });
    nodes.push(world.node(1, Shard { layers: 0..0, embedding: true, head: false }));
    nodes.push(world.node(2, Shard { layers: 5..5, embedding: false, head: true }));
    world.ready().await;
    let prompt = Golden::read("llama").input;
    assert_eq!(reply(&world, request(&prompt, 8)).await.0, expected(&world.model, &prompt, 8));
    world.stop(nodes).await;
}

/// Each end of a link tells the gateway how near the other is, and by what way.
#[tokio::test]
async fn a_gateway_knows_by_what_ways_its_nodes_reach_each_other() {
    let world = World::new("llama", 9, |_| {});
    let nodes = world.pipeline(&[0, 2]);
    world.ready().await;
    reply(&world, request(&Golden::read("llama").input, 2)).await;
    let ids = [nodes[0].id(), nodes[1].id()];
    let status = world.until(|status| status.links.len() == 2).await;
    for link in &status.links {
        assert!(ids.iter().all(|id| [&link.from, &link.to].contains(&&id.to_string())), "{link:?}");
        assert_eq!(link.path, Path::Direct);
        assert!(link.rtt_ms >= 0.0);
    }
    let seen = nodes[0].status().wait_for(|status| !status.links.is_empty()).await.unwrap().links.clone();
    assert_eq!(seen, [(ids[1], PathKind::Direct)]);
    world.stop(nodes).await;
}
