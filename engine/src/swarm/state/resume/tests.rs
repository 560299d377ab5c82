//! A gateway's decisions about replies that break off, with nodes that are only said to be there.

use std::time::Duration;

use tokio::sync::oneshot;
use transport::Identity;

use super::*;
use crate::{
    message::{Failed, FailedReason, FaultOperation, Join, Message, Offer, Open, Priority, TokenReport},
    model::Shard,
    peers::Notice,
    request::{Finish, Generation, Refusal, Request, Sampling, Submission},
    swarm::{SwarmConfig, SwarmStatus, state::Action},
};

/// A gateway.
struct Bench {
    state: State,
}

fn id(seed: u8) -> NodeId {
    NodeId([seed; 32])
}

type Answer = oneshot::Receiver<Result<Generation, Refusal>>;

impl Bench {
    fn new(running: usize, nodes: &[u8]) -> Self {
        let config = SwarmConfig { running, waiting: 8, ..SwarmConfig::of_tests() };
        let mut bench = Self { state: State::new(Identity::from_secret([200; 32]), config, false) };
        nodes.iter().for_each(|&seed| bench.join(seed));
        bench.sent();
        bench
    }

    /// A node with half of the layers: the first for odd seeds.
    fn join(&mut self, seed: u8) {
        let first = seed % 2 == 1;
        let layers = if first { 0..2 } else { 2..4 };
        let join = Join {
            fingerprint: [0; 32],
            shard: Shard { layers, embedding: first, head: !first },
            address: "a:1".into(),
            kv_pages: 64,
            sessions: 8,
            positions: 64,
            rows: 8,
            weight_bytes: 1,
            device: String::new(),
            tariff: None,
            offer: Offer::default(),
        };
        self.hear(seed, Message::Join(Box::new(join)));
    }

    fn hear(&mut self, seed: u8, message: Message) {
        self.state.notice(Notice::Message(id(seed), message), Instant::now());
    }

    fn ask(&mut self) -> Answer {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            prompt: vec![1, 2, 3],
            max_tokens: 10,
            stop_tokens: Vec::new(),
            sampling: Sampling::default(),
            tenant: 0,
            priority: Priority::Normal,
            deadline: Duration::from_secs(600),
        };
        self.state.submit(Submission { request, reply }, Instant::now());
        answer
    }

    /// Sessions that were opened, and those that each node was told to close. Looking is an event's end.
    fn sent(&mut self) -> (Vec<Open>, Vec<(NodeId, SessionId)>) {
        let (mut opened, mut closed) = (Vec::new(), Vec::new());
        for action in self.state.actions() {
            match action {
                Action::Send { message: Message::Open(open), .. } => opened.push(*open),
                Action::Send { to, message: Message::Close(close) } => closed.push((to, close.session)),
                Action::Expel { reason, .. } => panic!("{reason}"),
                _ => {}
            }
        }
        self.state.refresh(&mut SwarmStatus::default());
        (opened, closed)
    }

    /// The one session that was opened.
    fn opened(&mut self) -> Open {
        let (opened, _) = self.sent();
        let [open] = opened.try_into().expect("one session");
        open
    }

    fn draw(&mut self, open: &Open, tokens: &[u32], finish: Option<Finish>) {
        let last = tokens.len() - 1;
        let report = |(index, &token): (usize, &u32)| TokenReport {
            session: open.session,
            token,
            logprobs: None,
            finish: finish.filter(|_| index == last),
        };
        let reports = tokens.iter().enumerate().map(report).collect();
        let seed = open.hops[1].node[0];
        self.hear(seed, Message::Tokens(reports));
    }

    fn fail(&mut self, open: &Open, seed: u8, reason: FailedReason) {
        self.hear(seed, Message::Failed(Failed { session: open.session, reason }));
    }
}

fn route(open: &Open) -> [u8; 2] {
    [open.hops[0].node[0], open.hops[1].node[0]]
}

fn lost(seed: u8) -> FailedReason {
    FailedReason::PeerLost { node: [seed; 32], reason: "silent".into() }
}

fn generation(mut answer: Answer) -> Generation {
    answer.try_recv().expect("an answer").expect("a reply")
}

fn told(generation: &mut Generation) -> Vec<Event> {
    std::iter::from_fn(|| generation.events.try_recv().ok()).collect()
}

fn tokens(tokens: &[u32]) -> Vec<Event> {
    tokens.iter().map(|&token| Event::Token { token, logprobs: None }).collect()
}

#[tokio::test(start_paused = true)]
async fn what_the_client_has_is_drawn_again_and_not_told_again() {
    let mut bench = Bench::new(1, &[1, 2, 4]);
    let mut generation = generation(bench.ask());
    let before = bench.opened();
    let [_, last] = route(&before);
    bench.draw(&before, &[5, 6], None);
    let waiting = bench.ask();
    bench.state.lost(id(last), "killed");
    let (opened, closed) = bench.sent();
    let [after] = opened.try_into().expect("the reply goes on before the request that waits");
    assert_eq!(closed, [(id(1), before.session)]);
    assert_eq!((route(&after), &after.begun[..], after.max_tokens), ([1, 6 - last], &[5, 6][..], 10));
    assert!(after.session != before.session && age_of(after.session) == age_of(before.session));
    assert!(after.route != before.route && after.check().is_ok());
    bench.draw(&after, &[5], None);
    bench.draw(&after, &[6, 7, 8], Some(Finish::Stop));
    let mut right = tokens(&[5, 6, 7, 8]);
    right.push(Event::Finished(Finish::Stop));
    assert_eq!(told(&mut generation), right);
    let next = bench.opened();
    assert_eq!((bench.state.resumed, route(&next), next.begun.len()), (1, [1, 6 - last], 0));
    drop(waiting);
}

#[tokio::test(start_paused = true)]
async fn of_two_that_lose_each_other_either_may_be_to_blame() {
    for spare in [3, 4] {
        let mut bench = Bench::new(1, &[1, 2]);
        let mut generation = generation(bench.ask());
        let before = bench.opened();
        bench.join(spare);
        bench.fail(&before, 1, lost(2));
        let wanted = if spare == 3 { [3, 2] } else { [1, 4] };
        assert_eq!(route(&bench.opened()), wanted);
        // What was on its way comes late, and for nothing.
        bench.draw(&before, &[5], None);
        assert_eq!((told(&mut generation), bench.sent().0), (Vec::new(), Vec::new()));
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_that_lose_a_reply_again_and_again_are_not_tried_for_ever() {
    let mut bench = Bench::new(1, &[1, 2]);
    let mut generation = generation(bench.ask());
    let mut times = 0;
    let begun = Instant::now();
    let failure = loop {
        let open = bench.opened();
        times += 1;
        bench.fail(&open, 1, lost(2));
        if let Some(Event::Failed(failure)) = told(&mut generation).pop() {
            break failure;
        }
        assert_eq!(bench.sent().0, [], "it rests first");
        let next = bench.state.next_deadline().expect("it is tried again");
        tokio::time::sleep_until(next).await;
        bench.state.expire(Instant::now());
    };
    assert!(matches!(failure, Failure::NodeLost { .. }));
    assert_eq!((times, bench.state.under_way()), (1 + MAX_LOSSES, 0));
    assert!(begun.elapsed() < PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn what_would_fail_anywhere_is_not_tried_elsewhere() {
    let operation = FaultOperation::Logits;
    let fault = FailedReason::Fault { position: 3, layer: 1, operation };
    for (drawn, reason) in [
        (&[5][..], fault),
        (&[5], FailedReason::Contradicted { position: 4 }),
        (&[], FailedReason::Refused("no".into())),
    ] {
        let mut bench = Bench::new(1, &[1, 2, 3, 4]);
        let mut generation = generation(bench.ask());
        let open = bench.opened();
        if !drawn.is_empty() {
            bench.draw(&open, drawn, None);
        }
        bench.fail(&open, open.hops[0].node[0], reason);
        assert!(matches!(told(&mut generation).pop(), Some(Event::Failed(_))));
        assert_eq!((bench.sent().0, bench.state.under_way()), (Vec::new(), 0));
    }
    // One that has drawn serves it no longer.
    let mut bench = Bench::new(1, &[1, 2, 3, 4]);
    let _generation = generation(bench.ask());
    let open = bench.opened();
    bench.draw(&open, &[5], None);
    let [first, last] = route(&open);
    bench.fail(&open, first, FailedReason::Refused("the node loads other layers".into()));
    let after = route(&bench.opened());
    assert!(after[0] != first && [2, 4].contains(&last), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn another_token_than_the_client_has_ends_the_reply() {
    for (drawn, finish) in [(&[5, 9][..], None), (&[5][..], Some(Finish::Stop))] {
        let mut bench = Bench::new(1, &[1, 2, 4]);
        let mut generation = generation(bench.ask());
        let before = bench.opened();
        bench.draw(&before, &[5, 6], None);
        bench.state.lost(id(route(&before)[1]), "killed");
        let after = bench.opened();
        bench.draw(&after, drawn, finish);
        let mut right = tokens(&[5, 6]);
        right.push(Event::Failed(Failure::Contradicted { position: 2 + drawn.len() as u32 }));
        assert_eq!((told(&mut generation), bench.state.under_way()), (right, 0));
        let (opened, closed) = bench.sent();
        assert_eq!((opened.len(), closed.len()), (0, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn replies_that_wait_keep_their_slots_and_go_when_their_clients_do() {
    let mut bench = Bench::new(2, &[1, 2]);
    let mut patient = generation(bench.ask());
    let leaver = generation(bench.ask());
    let (opened, _) = bench.sent();
    bench.state.lost(id(2), "killed");
    assert_eq!((bench.sent().0, bench.state.under_way()), (Vec::new(), 2));
    let refused = bench.ask().try_recv().expect("an answer").map(|_| ());
    assert_eq!(refused, Err(Refusal::NoPipeline { missing: "layers 2..4".into() }));
    drop(leaver);
    bench.state.cancelled(opened[1].session);
    assert_eq!(bench.state.under_way(), 1);
    tokio::time::advance(PATIENCE).await;
    bench.state.expire(Instant::now());
    assert!(matches!(told(&mut patient)[..], [Event::Failed(Failure::NodeLost { .. })]));
    assert_eq!(bench.state.under_way(), 0);

    let mut last = bench.ask();
    bench.join(2);
    assert!(last.try_recv().expect("an answer").is_err(), "it came before the node");
    let mut last = generation(bench.ask());
    bench.opened();
    bench.state.lost(id(1), "killed");
    bench.state.shutdown();
    assert!(matches!(told(&mut last)[..], [Event::Failed(Failure::Shutdown)]));
}
