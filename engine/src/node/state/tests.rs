use transport::Identity as Key;

use super::*;
use crate::{
    message::{Drafts, Priority, Segment},
    request::Sampling,
};

fn key(seed: u8) -> Key {
    Key::from_secret([seed; 32])
}

/// Node 1 is the first and node 2 the second stage of a model of four layers; 9 is the gateway.
fn node(seed: u8) -> State {
    let (layers, first) = if seed == 1 { (0..2, true) } else { (2..4, false) };
    State::new(Identity {
        id: key(seed).id(),
        fingerprint: [7; 32],
        shard: Shard { layers, embedding: first, head: !first },
        gateways: HashSet::from([key(9).id()]),
        vocabulary: 100,
        row_bytes: 8,
        rows: 16,
        sessions: 2,
        positions: 1000,
        chunk: 16,
    })
}

fn open(session: u128, gateway: u8) -> Open {
    let hop = |seed: u8, layers: std::ops::Range<usize>| Hop {
        node: *key(seed).id().as_bytes(),
        address: "127.0.0.1:1".into(),
        shard: Shard { embedding: layers.start == 0, head: layers.end == 4, layers },
    };
    let mut open = Open {
        session: SessionId(session),
        route: RouteId(5),
        hops: vec![hop(1, 0..2), hop(2, 2..4)],
        gateway: *key(gateway).id().as_bytes(),
        fingerprint: [7; 32],
        prompt: vec![1, 2, 3],
        prompt_length: 3,
        max_tokens: 4,
        stop_tokens: Vec::new(),
        sampling: Sampling::default(),
        rows: 16,
        blocks: Vec::new(),
        tenant: 0,
        priority: Priority::Normal,
        drafts: Drafts::default(),
        tab: None,
        signature: Vec::new(),
    };
    open.signature = key(gateway).sign(&open.signed_bytes()).to_vec();
    open
}

fn give(state: &mut State, from: u8, message: Message) -> Vec<Action> {
    state.receive(key(from).id(), message, Instant::now());
    state.actions()
}

/// Opens a session, and says for the worker that it is open.
fn begin(state: &mut State, from: u8, open: Open) -> Vec<Action> {
    let session = open.session;
    let mut actions = give(state, from, opening(open));
    state.worked(Output::Opened { session, held: 0 }, Instant::now());
    actions.extend(state.actions());
    actions
}

/// Says for the worker that a step has been computed.
fn computed(state: &mut State, actions: &[Action]) -> Vec<Action> {
    for action in actions {
        if let Action::Work(Command::Step { step, .. }) = action {
            state.worked(Output::Rows(step.clone()), Instant::now());
        }
    }
    state.actions()
}

fn expels(actions: &[Action], seed: u8) -> bool {
    actions.iter().any(|action| matches!(action, Action::Expel { peer, .. } if *peer == key(seed).id()))
}

fn draws(session: u128, token: u32) -> Draws {
    Draws { session: SessionId(session), position: 3, tokens: vec![token], ended: false }
}

fn opening(open: Open) -> Message {
    Message::Open(Box::new(open))
}

#[test]
fn a_session_is_passed_on_without_its_prompt_and_runs() {
    let mut first = node(1);
    let actions = begin(&mut first, 9, open(1, 9));
    let passed = actions.iter().find_map(|action| match action {
        Action::Send { to, message: Message::Open(open), .. } => Some((*to, open.clone())),
        _ => None,
    });
    let (to, passed) = passed.expect("the opening goes down the pipeline");
    assert_eq!((to, passed.prompt.len(), passed.prompt_length), (key(2).id(), 0, 3));
    assert!(passed.is_signed(), "the signature does not cover the prompt");
    assert!(actions.iter().any(|action| matches!(action, Action::Work(Command::Step { .. }))));
    let mut second = node(2);
    assert!(!expels(&give(&mut second, 1, Message::Open(passed)), 1));
    assert_eq!(second.sessions(), 1);
}

#[test]
fn an_opening_that_no_gateway_of_the_node_signed_is_not_followed() {
    let mut forged = open(1, 9);
    forged.max_tokens = 1000;
    for (name, from, message) in [
        ("changed on the way", 9, forged),
        ("signed by a stranger", 8, open(1, 8)),
        ("handed in by a stranger", 8, open(1, 9)),
        ("a stranger's, in the gateway's name", 8, Open { gateway: *key(9).id().as_bytes(), ..open(1, 8) }),
    ] {
        let mut first = node(1);
        let actions = give(&mut first, from, opening(message));
        assert!(expels(&actions, from), "{name}: {actions:?}");
        assert_eq!((first.sessions(), actions.len()), (0, 1), "{name}: nobody else is told");
    }
}

#[test]
fn strangers_cannot_close_feed_or_answer_a_session() {
    let mut second = node(2);
    give(&mut second, 1, opening(open(1, 9)));
    assert!(give(&mut second, 8, Message::Close(Close::abrupt(SessionId(1)))).is_empty());
    let segment = Segment { session: SessionId(1), from: 0, rows: 2, drawn: Vec::new(), drafted: 0 };
    let step = |bytes: usize| Step {
        route: RouteId(5),
        number: 0,
        segments: vec![segment.clone()],
        body: Bytes::from(vec![0; bytes]),
    };
    assert!(expels(&give(&mut second, 8, Message::Step(step(16))), 8));
    assert!(expels(&give(&mut second, 1, Message::Step(step(15))), 1), "of the wrong size");
    assert!(matches!(give(&mut second, 1, Message::Step(step(16)))[..], [Action::Work(_)]));
    let mut first = node(1);
    let actions = begin(&mut first, 9, open(1, 9));
    computed(&mut first, &actions);
    let results =
        |token| Message::Results(Results { route: RouteId(5), number: 0, draws: vec![draws(1, token)] });
    assert!(expels(&give(&mut first, 8, results(3)), 8));
    assert!(expels(&give(&mut first, 2, results(100)), 2), "outside the vocabulary");
    assert!(matches!(give(&mut first, 2, results(3))[..], [Action::Work(Command::Step { .. })]));
}

/// A route outlives its sessions, so steps on their way are still counted when they come back.
#[test]
fn steps_on_their_way_come_back_after_their_session_is_closed() {
    let mut first = node(1);
    let actions = begin(&mut first, 9, open(1, 9));
    computed(&mut first, &actions);
    give(&mut first, 9, Message::Close(Close::abrupt(SessionId(1))));
    let again = begin(&mut first, 9, open(2, 9));
    computed(&mut first, &again);
    assert!(again.iter().any(|action| matches!(action, Action::Work(Command::Step { .. }))));
    let late = Results { route: RouteId(5), number: 0, draws: vec![draws(1, 3)] };
    assert!(!expels(&give(&mut first, 2, Message::Results(late)), 2));
    let next = Results { route: RouteId(5), number: 1, draws: vec![draws(2, 3)] };
    assert!(matches!(give(&mut first, 2, Message::Results(next))[..], [Action::Work(Command::Step { .. })]));
}

#[test]
fn a_lost_peer_ends_the_sessions_that_need_it() {
    let mut second = node(2);
    give(&mut second, 1, opening(open(1, 9)));
    second.lost(key(1).id(), "silent");
    let told = second.actions().iter().any(
        |action| matches!(action, Action::Send { to, message: Message::Failed(_), .. } if *to == key(9).id()),
    );
    assert!(told);
    assert_eq!(second.sessions(), 0);
}

#[test]
fn a_full_node_tells_the_gateway() {
    let mut first = node(1);
    give(&mut first, 9, opening(open(1, 9)));
    give(&mut first, 9, opening(open(2, 9)));
    let actions = give(&mut first, 9, opening(open(3, 9)));
    assert!(matches!(&actions[..], [Action::Send { message: Message::Failed(_), .. }]), "{actions:?}");
}
