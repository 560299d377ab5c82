//! Nodes die, leave and lose each other in the middle of replies: the replies go on elsewhere, to the same bytes.

use std::{collections::HashSet, sync::Arc, time::Duration};

use engine::{
    local::load_stage,
    message::Priority,
    model::Shard,
    node::Node,
    request::{Event, Failure, Finish, Generation, Refusal, Request, Sampling},
    speculation::drafter::{Drafter, DrafterConfig, Drafting},
};
use kernels::cpu::{Cpu, Isa};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use transport::{NodeId, sim::Conditions};

use crate::{
    support::{Golden, open},
    swarm::{BUDGET, QUANTISATION, World, collect, expected, identity, reply, request},
};

const TOKENS: u32 = 60;
const CUTS: [usize; 3] = [0, 2, 4];

/// Layers of the stages that begin at [`CUTS`].
fn shard(stage: usize) -> Shard {
    let to = CUTS.get(stage + 1).copied().unwrap_or(5);
    Shard { layers: CUTS[stage]..to, embedding: stage == 0, head: to == 5 }
}

/// Requests that use all that a reply depends on.
fn styles() -> Vec<Request> {
    let input = Golden::read("llama").input;
    let sampled = |seed| Sampling { temperature: 0.9, top_p: 0.95, seed, ..Sampling::default() };
    let penalties = Sampling {
        repetition_penalty: 1.1,
        frequency_penalty: 0.4,
        presence_penalty: 0.3,
        logit_bias: vec![(3, 1.5)],
        ..sampled(5)
    };
    let ask = |from: usize, sampling| Request { sampling, ..request(&input[from..from + 9], TOKENS) };
    vec![
        request(&input[..7], TOKENS),
        ask(1, Sampling { logprobs: Some(3), ..sampled(3) }),
        ask(2, penalties.clone()),
        ask(2, Sampling { choice: 1, logprobs: Some(0), ..penalties }),
        ask(4, Sampling { frequency_penalty: 0.4, presence_penalty: 0.3, ..sampled(6) }),
        Request { priority: Priority::High, tenant: 1, ..ask(3, sampled(9)) },
    ]
}

/// All that a client is told.
async fn events(mut generation: Generation) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        events.push(generation.events.recv().await.unwrap());
        if let Some(Event::Finished(_) | Event::Failed(_)) = events.last() {
            return events;
        }
    }
}

/// What clients are told where nothing happens.
async fn undisturbed() -> Vec<Vec<Event>> {
    let world = World::new("llama", 40, |_| {});
    let nodes = world.pipeline(&[0]);
    world.ready().await;
    let mut all = Vec::new();
    for style in styles() {
        all.push(events(world.submitter.submit(style).await.unwrap()).await);
    }
    world.stop(nodes).await;
    all
}

/// How a stage is lost.
#[derive(Clone, Copy, Debug)]
enum End {
    Killed,
    /// As with Ctrl-C.
    Left,
    /// It and the stage before it, or after the first, lose each other.
    Cut,
}

/// How replies are guessed at.
#[derive(Clone, Copy, Debug)]
enum Guesses {
    None,
    Lookup,
    Model,
    /// None, and no node sees a token.
    Private,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    end: End,
    guesses: Guesses,
    stage: usize,
    /// Tokens of the first reply before.
    after: u32,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let end = prop_oneof![2 => Just(End::Killed), 1 => Just(End::Left), 1 => Just(End::Cut)];
    let guesses =
        prop_oneof![Just(Guesses::None), Just(Guesses::Lookup), Just(Guesses::Model), Just(Guesses::Private)];
    // Half of the time while prompts are computed.
    let after = prop_oneof![Just(0), 1..TOKENS / 2];
    (end, guesses, 0usize..3, after, any::<u64>()).prop_map(|(end, guesses, stage, after, seed)| Case {
        end,
        guesses,
        stage,
        after,
        seed,
    })
}

fn drafting(world_model: &engine::model::Model) -> Drafting {
    let whole = Shard { layers: 0..5, embedding: true, head: true };
    let cpu = Cpu::new(1, Isa::detect()).unwrap();
    let stage = load_stage(world_model, &whole, QUANTISATION, &BUDGET, cpu, &|_| {}).unwrap();
    let (drafter, drafts) = Drafter::start(stage, DrafterConfig::default()).unwrap();
    Drafting { drafter, drafts }
}

/// Two nodes for each stage. With private ends the first and the last are there once.
fn start(case: Case) -> (World, Vec<Node>) {
    let model = Arc::new(open("llama"));
    let drafting = matches!(case.guesses, Guesses::Model).then(|| drafting(&model));
    let private = matches!(case.guesses, Guesses::Private);
    let ends: HashSet<NodeId> = [identity(1).id(), identity(2).id()].into();
    let world = World::of(model, drafting, case.seed, |config| {
        config.speculation = !matches!(case.guesses, Guesses::None);
        config.private_ends = private.then_some(ends);
    });
    // Steps that are on their way for long get lost in other ways.
    if case.seed.is_multiple_of(4) {
        world.network.set_conditions(Conditions::wide_area());
    }
    let nodes = if private {
        let first = Shard { layers: 0..0, embedding: true, head: false };
        let last = Shard { layers: 5..5, embedding: false, head: true };
        let mut nodes = vec![world.node(1, first), world.node(2, last)];
        let between = |stage: usize| Shard { embedding: false, head: false, ..shard(stage) };
        nodes.extend((0..6).map(|n| world.node(11 + n as u8, between(n % 3))));
        nodes
    } else {
        (0..6).map(|n| world.node(11 + n as u8, shard(n % 3))).collect()
    };
    (world, nodes)
}

async fn disturb(case: Case, right: &[Vec<Event>]) {
    let (world, mut nodes) = start(case);
    let count = nodes.len();
    let status = world.until(|status| status.ready() && status.nodes.len() == count).await;
    let mut running = Vec::new();
    // Some of it would show tokens to the nodes in between.
    let private = matches!(case.guesses, Guesses::Private);
    let asked = styles().into_iter().zip(right).filter(|(style, _)| {
        !private || (style.sampling.repetition_penalty == 1.0 && style.sampling.logit_bias.is_empty())
    });
    let (styles, right): (Vec<Request>, Vec<&Vec<Event>>) = asked.unzip();
    for style in styles {
        running.push(world.submitter.submit(style).await.unwrap());
    }
    let mut seen = Vec::new();
    for _ in 0..case.after {
        seen.push(running[0].events.recv().await.unwrap());
    }
    let layers = shard(case.stage).layers;
    let holds = |seat: &engine::swarm::Seat| (seat.from, seat.to) == (layers.start, layers.end);
    let at = status.pipeline.iter().position(holds).unwrap();
    let node = |seat: usize| {
        nodes.iter().position(|node| node.id().to_string() == status.pipeline[seat].node).unwrap()
    };
    let victim = node(at);
    match case.end {
        End::Killed => world.network.kill(nodes.remove(victim).id()),
        End::Left => nodes.remove(victim).stop().await,
        End::Cut => {
            let other = node(if at > 0 { at - 1 } else { 1 });
            world.network.partition(nodes[victim].id(), nodes[other].id());
        }
    }
    for (index, (generation, right)) in running.into_iter().zip(right).enumerate() {
        let before = if index == 0 { std::mem::take(&mut seen) } else { Vec::new() };
        let told: Vec<Event> = before.into_iter().chain(events(generation).await).collect();
        assert_eq!(&told, right, "reply {index} of {case:?}");
    }
    let status = world.until(|status| status.running == 0).await;
    // All that used the victim were under way, unless the first was all but over.
    assert!(status.resumed > 0 || case.after > 0, "{status:?}");
    for node in &nodes {
        node.status().wait_for(|status| status.sessions == 0).await.unwrap();
    }
    world.stop(nodes).await;
}

/// Whichever stage is lost, at whatever moment and in whatever way: clients are told what they would have been.
#[test]
fn a_reply_goes_on_to_the_same_bytes() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let right = runtime.block_on(undisturbed());
    let mut runner = TestRunner::new(Config {
        cases: 4,
        max_shrink_iters: 0,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&case(), |case| {
        runtime.block_on(disturb(case, &right));
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// Every node of a pipeline dies, one after the other, each while the reply goes on.
#[tokio::test]
async fn several_nodes_die_one_after_the_other() {
    let world = World::new("llama", 41, |_| {});
    let mut nodes: Vec<Node> = (0..6).map(|n| world.node(11 + n as u8, shard(n % 3))).collect();
    world.until(|status| status.ready() && status.nodes.len() == 6).await;
    let prompt = Golden::read("llama").input;
    let mut generation = world.submitter.submit(request(&prompt, 120)).await.unwrap();
    let mut tokens = Vec::new();
    for stage in [1, 2, 0] {
        for _ in 0..20 {
            let Some(Event::Token { token, .. }) = generation.events.recv().await else { panic!("goes on") };
            tokens.push(token);
        }
        let layers = shard(stage).layers;
        let seats = world.swarm.status().borrow().pipeline.clone();
        let seat = seats.iter().find(|seat| seat.from == layers.start).unwrap();
        let victim = nodes.iter().position(|node| node.id().to_string() == seat.node).unwrap();
        world.network.kill(nodes.remove(victim).id());
    }
    let (rest, finish) = collect(generation).await.unwrap();
    tokens.extend(rest);
    assert_eq!((tokens, finish), (expected(&world.model, &prompt, 120), Finish::Length));
    world.stop(nodes).await;
}

/// Nobody else holds the layers: the reply waits for a node that does, and new requests are told what is missing.
#[tokio::test]
async fn a_reply_waits_for_a_node_until_its_deadline() {
    let world = World::new("llama", 42, |config| config.running = 2);
    let mut nodes: Vec<Node> = (0..3).map(|n| world.node(11 + n as u8, shard(n))).collect();
    world.ready().await;
    let prompt = Golden::read("llama").input;
    let ask =
        |tokens, seconds| Request { deadline: Duration::from_secs(seconds), ..request(&prompt, tokens) };
    let mut patient = world.submitter.submit(ask(100, 60)).await.unwrap();
    let Some(Event::Token { token, .. }) = patient.events.recv().await else { panic!("begins") };
    let hasty = world.submitter.submit(ask(200, 3)).await.unwrap();
    world.network.kill(nodes.remove(1).id());
    world.until(|status| status.nodes.len() == 2).await;
    let refusal = world.submitter.submit(request(&prompt, 5)).await.map(|_| ()).unwrap_err();
    assert_eq!(refusal, Refusal::NoPipeline { missing: "layers 2..4".into() });
    let failure = collect(hasty).await.unwrap_err();
    assert!(matches!(&failure, Failure::NodeLost { .. }), "{failure}");
    nodes.push(world.node(9, shard(1)));
    let (rest, finish) = collect(patient).await.unwrap();
    let all: Vec<u32> = std::iter::once(token).chain(rest).collect();
    assert_eq!((all, finish), (expected(&world.model, &prompt, 100), Finish::Length));
    assert_eq!(reply(&world, request(&prompt, 5)).await.0.len(), 5);
    assert!(world.swarm.status().borrow().resumed > 0);
    world.stop(nodes).await;
}
