//! What sessions share, lose and guess at changes no token of any reply.

use std::{sync::Arc, time::Duration};

use engine::{
    local::start_drafter,
    model::Model,
    node::{Node, StageLoad},
    request::{Request, Sampling},
};
use futures::future::join_all;
use kernels::cpu::{Cpu, Isa};
use transport::sim::Conditions;

use crate::{
    support::Golden,
    swarm::{World, expected, reply, request},
};

/// A prompt of `length` tokens; different `n` differ from the start.
fn prompt(n: u32, length: u32) -> Vec<u32> {
    let input = Golden::read("llama").input;
    (0..length).map(|i| input[((i * (n + 3) + n) % input.len() as u32) as usize]).collect()
}

/// What each node has done, once no session is left on any.
async fn loads(world: &World, nodes: &[Node]) -> Vec<StageLoad> {
    world.until(|status| status.running == 0).await;
    let mut loads = Vec::new();
    for node in nodes {
        loads.push(*node.load().wait_for(|load| load.kv.sessions == 0).await.unwrap());
    }
    for StageLoad { kv, .. } in &loads {
        assert_eq!(kv.free + kv.cached, kv.pages, "every page is free or kept for later: {kv:?}");
    }
    loads
}

#[tokio::test]
async fn sessions_that_begin_alike_compute_their_prompt_once() {
    let world = World::new("llama", 30, |_| {});
    let nodes = world.pipeline(&[0, 2, 4]);
    world.ready().await;
    let common = prompt(0, 128);
    let asked = |n: u32| [common.clone(), prompt(n, 7 + n)].concat();
    let first = reply(&world, request(&asked(1), 70)).await;
    assert_eq!(first.0, expected(&world.model, &asked(1), 70));
    let before = loads(&world, &nodes).await;
    let replies = join_all((2..8).map(|n| {
        let asked = asked(n);
        let world = &world;
        async move { (reply(world, request(&asked, 9)).await.0, expected(&world.model, &asked, 9)) }
    }))
    .await;
    assert!(replies.iter().all(|(got, wanted)| got == wanted));
    // A second turn: the whole first one is there, its reply included.
    let turn = [asked(1), first.0.clone(), prompt(9, 5)].concat();
    assert_eq!(reply(&world, request(&turn, 9)).await.0, expected(&world.model, &turn, 9));
    for (before, after) in before.iter().zip(loads(&world, &nodes).await) {
        assert_eq!((before.reused, before.kv.cached), (0, 3), "the prompt and the first reply fill 3 blocks");
        assert_eq!(after.reused, 6 * 128 + 192);
    }
    let other = Request { tenant: 1, ..request(&turn, 9) };
    assert_eq!(reply(&world, other).await.0, expected(&world.model, &turn, 9));
    assert_eq!(loads(&world, &nodes).await[0].reused, 6 * 128 + 192, "tenants share nothing");
    world.stop(nodes).await;
}

#[tokio::test]
async fn sessions_that_lose_their_pages_go_on_where_they_were() {
    let mut world = World::new("llama", 31, |_| {});
    world.pages = Some(6);
    let nodes = world.pipeline(&[0, 2, 4]);
    world.ready().await;
    // Short replies make the gateway expect more of them.
    for _ in 0..40 {
        reply(&world, request(&prompt(0, 3), 1)).await;
    }
    let replies = join_all((0..6).map(|n| {
        let asked = prompt(n, 40 + n);
        let world = &world;
        async move { (reply(world, request(&asked, 200)).await.0, expected(&world.model, &asked, 200)) }
    }))
    .await;
    assert!(replies.iter().all(|(got, wanted)| got == wanted));
    let preempted: u64 = loads(&world, &nodes).await.iter().map(|load| load.preempted).sum();
    assert!(preempted > 0, "two sessions of four pages do not fit into six");
    world.stop(nodes).await;
}

/// The demo model and the draft model made for it, over a ring of 60 ms.
#[tokio::test]
async fn a_draft_model_changes_nothing_either() {
    let model = Arc::new(Model::demo().unwrap());
    let tokenizer = model.tokenizer().unwrap();
    let ask = |text: &str| {
        let text = format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n");
        tokenizer.encode(&text, false).unwrap()
    };
    let prompts = ["Tell me a joke.", "What is Dolphin?", "Write a poem about the sea."].map(ask);
    let mut runs = Vec::new();
    for drafted in [false, true] {
        let mut drafting = None;
        if drafted {
            let (draft, cpu) = (Arc::new(Model::demo_draft().unwrap()), Cpu::new(1, Isa::detect()).unwrap());
            drafting = Some(start_drafter(model.clone(), draft, cpu, 256).await.unwrap());
        }
        let world = World::of(model.clone(), drafting, 33, |config| config.speculation = drafted);
        world.network.set_conditions(Conditions { delay: Duration::from_millis(20), ..Conditions::local() });
        let nodes = world.pipeline(&[0, 1, 3]);
        world.ready().await;
        let mut replies = Vec::new();
        for (seed, prompt) in (0..).zip(&prompts) {
            let sampling = Sampling { temperature: 0.8, top_p: 0.95, seed, ..Sampling::default() };
            replies.push(reply(&world, Request { sampling, ..request(prompt, 40) }).await);
            replies.push(reply(&world, request(prompt, 40)).await);
        }
        let waiting = prompts.iter().map(|prompt| reply(&world, request(prompt, 20)));
        replies.extend(join_all(waiting).await);
        let status = nodes[0].status().borrow().clone();
        assert_eq!(drafted, status.accepted > 100, "{status:?}");
        loads(&world, &nodes).await;
        world.stop(nodes).await;
        runs.push(replies);
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn guesses_save_rounds_and_change_nothing() {
    let mut runs = Vec::new();
    for speculation in [false, true] {
        let world = World::new("llama", 32, |config| config.speculation = speculation);
        world.network.set_conditions(Conditions { delay: Duration::from_millis(10), ..Conditions::local() });
        let nodes = world.pipeline(&[0, 2, 4]);
        world.ready().await;
        let asked = prompt(1, 20);
        let sampled = Request {
            sampling: Sampling {
                temperature: 0.7,
                top_p: 0.9,
                seed: 5,
                frequency_penalty: 0.3,
                ..Sampling::default()
            },
            ..request(&asked, 60)
        };
        let mut replies = vec![reply(&world, request(&asked, 120)).await, reply(&world, sampled).await];
        replies.extend(
            join_all((2..6).map(|n| {
                let (world, asked) = (&world, prompt(n, 10));
                async move { reply(world, request(&asked, 60)).await }
            }))
            .await,
        );
        let status = nodes[0].status().borrow().clone();
        let steps = nodes[2].load().borrow().rows;
        assert_eq!(speculation, status.accepted > 0, "{status:?}");
        assert!(status.accepted <= status.drafted);
        loads(&world, &nodes).await;
        world.stop(nodes).await;
        runs.push((replies, steps));
    }
    assert_eq!(runs[0].0, runs[1].0);
}
