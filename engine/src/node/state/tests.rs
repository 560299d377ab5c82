use transport::Identity as Key;

use super::*;
use crate::{
    audit::{
        commitment::{Chunk, Signer},
        plan::Digest,
    },
    message::{Drafts, Hop, Priority, Segment, TabRefusal},
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
        begun: Vec::new(),
        max_tokens: 4,
        stop_tokens: Vec::new(),
        sampling: Sampling::default(),
        rows: 16,
        blocks: Vec::new(),
        tenant: 0,
        priority: Priority::Normal,
        drafts: Drafts::default(),
        terms: None,
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

/// A node that serves for pay has taken the gateway's tab, with credit for five tokens.
fn paid() -> State {
    let mut state = node(2).paid();
    let account = ledger::account::Account::new(1, 5, 100, 0);
    state.till(till::Event::Taken { gateway: key(9).id(), plan: [1; 32], account, lock: 100 });
    let actions = state.actions();
    assert!(matches!(&actions[..], [Action::Send { message: Message::TabAnswer(_), .. }]), "{actions:?}");
    state
}

fn on_tab(session: u128, plan: [u8; 32]) -> Open {
    let mut open = Open { tab: Some(plan), signature: Vec::new(), ..open(session, 9) };
    open.signature = key(9).sign(&open.signed_bytes()).to_vec();
    open
}

fn rows(session: u128, from: u32, rows: u32) -> Message {
    let segment = Segment { session: SessionId(session), from, rows, drawn: Vec::new(), drafted: 0 };
    let body = Bytes::from(vec![0; 8 * rows as usize]);
    Message::Step(Step { route: RouteId(5), number: 0, segments: vec![segment], body })
}

fn failed(actions: &[Action]) -> Option<FailedReason> {
    actions.iter().find_map(|action| match action {
        Action::Send { message: Message::Failed(failed), .. } => Some(failed.reason.clone()),
        _ => None,
    })
}

#[test]
fn a_paid_node_serves_as_far_as_its_credit_and_goes_on_once_it_is_paid() {
    let mut second = paid();
    assert!(matches!(failed(&give(&mut second, 1, opening(open(1, 9)))), Some(FailedReason::Refused(_))));
    let unknown = give(&mut second, 1, opening(on_tab(1, [2; 32])));
    assert!(matches!(failed(&unknown), Some(FailedReason::Refused(_))));

    assert_eq!(failed(&give(&mut second, 1, opening(on_tab(1, [1; 32])))), None);
    assert_eq!(failed(&give(&mut second, 1, rows(1, 0, 3))), None);
    assert_eq!(failed(&give(&mut second, 1, rows(1, 0, 3))), None, "sent again, counted once");
    assert_eq!(failed(&give(&mut second, 1, rows(1, 3, 2))), None);
    let unpaid = ledger::account::Unpaid { unpaid: 6, credit: 5 };
    let actions = give(&mut second, 1, rows(1, 5, 1));
    assert_eq!(failed(&actions), Some(FailedReason::Unpaid(unpaid)));
    // The session is closed before its rows are looked at, so they are dropped.
    let order: Vec<bool> = (actions.iter())
        .filter_map(|action| match action {
            Action::Work(command) => Some(matches!(command, Command::Close(_))),
            _ => None,
        })
        .collect();
    assert_eq!((order, second.sessions()), (vec![true, false], 0));
    let refused = give(&mut second, 1, opening(on_tab(2, [1; 32])));
    assert!(matches!(failed(&refused), Some(FailedReason::Unpaid(_))));

    second.till(till::Event::Paid { gateway: key(9).id(), plan: [1; 32], total: 5 });
    let told = second.actions();
    assert!(matches!(
        &told[..],
        [Action::Send { message: Message::Paid(paid), .. }] if (paid.total, paid.served) == (5, 5)
    ));
    assert_eq!(failed(&give(&mut second, 1, opening(on_tab(3, [1; 32])))), None);
    second.till(till::Event::Over([1; 32]));
    let over = give(&mut second, 1, opening(on_tab(4, [1; 32])));
    assert!(matches!(failed(&over), Some(FailedReason::Refused(_))), "{over:?}");
    assert_eq!(failed(&give(&mut second, 1, rows(3, 0, 3))), None, "what is open goes on");
}

/// The session may be over and the route forgotten before what the stage before signed is here.
#[test]
fn a_late_commitment_does_no_harm() {
    let signature = Signer::new(key(1)).sign(&Digest::default());
    let zero = Digest::default();
    let chunk = Chunk { from: 0, to: 1, in_root: zero, out_root: zero, signature };
    let committed = Box::new(Committed { session: SessionId(1), before: zero, chunk });
    let mut second = node(2);
    assert!(give(&mut second, 1, Message::Committed(committed)).is_empty());
}

#[test]
fn a_forged_voucher_ends_the_link() {
    let mut second = paid();
    let refused = |reason| till::Event::Refused { gateway: key(9).id(), plan: [1; 32], reason };
    second.till(refused(TabRefusal::Lock));
    assert!(!expels(&second.actions(), 9));
    for reason in [TabRefusal::Signature, TabRefusal::Regression { before: 2, after: 1 }] {
        second.till(refused(reason.clone()));
        let actions = second.actions();
        let told = actions.iter().any(|action| match action {
            Action::Send { message: Message::TabAnswer(answer), .. } => answer.outcome == Err(reason.clone()),
            _ => false,
        });
        assert!(told && expels(&actions, 9), "{actions:?}");
    }
    let tab = Message::Paid(crate::message::Paid { plan: [1; 32], total: 1, served: 1 });
    assert!(expels(&give(&mut second, 9, tab), 9), "not for a node");
    let stranger = crate::message::VoucherNote { plan: [1; 32], total: 1, signature: vec![0; 65] };
    assert!(expels(&give(&mut second, 8, Message::Voucher(stranger)), 8));
}
