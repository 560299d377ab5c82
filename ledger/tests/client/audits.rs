//! Audits from the stakes to the verdicts, with a beacon of one's own key.

use ledger::{
    audit::{self, Chunk, LeafId, Tree},
    beacon::{Clock, Secret},
    client::{
        AUDITOR_ROLE, Action, AnswerStep, AuditAction, AuditEvent, BeaconParameters, CaseStage, CaseVerdict,
        Client, Event, Ledger, NODE_ROLE, Receipt,
    },
    embedded::Sealing,
};

use crate::net::{Net, key, pod};

const PERIOD: u64 = 30;
const GENESIS: u64 = 1_700_000_000;
const SALT: [u8; 32] = [5; 32];
const RIGHT: [u8; 32] = [6; 32];
const WRONG: [u8; 32] = [7; 32];

async fn done(net: &Net, client: &Client, action: AuditAction) -> Vec<AuditEvent> {
    let receipt = act(net, client, Action::Audit(Box::new(action))).await;
    let events = receipt.events.into_iter();
    let events = events.filter_map(|event| match event {
        Event::Audit(event) => Some(event),
        _ => None,
    });
    events.collect()
}

async fn act(net: &Net, client: &Client, action: Action) -> Receipt {
    let text = format!("{action:?}");
    net.mining(client.submit(action)).await.unwrap_or_else(|error| panic!("{text}: {error}"))
}

async fn refused(client: &Client, action: AuditAction, name: &str) {
    let error = client.submit(Action::Audit(Box::new(action))).await.expect_err(name);
    assert!(error.is(name), "{error}");
}

fn chunk(number: u8) -> Chunk {
    let sealed_roots = audit::seal(&RIGHT);
    Chunk { commitment: [number; 32], sealed_roots, from: 64, to: 128, ..Chunk::default() }
}

/// Goes on to the next epoch.
async fn next_epoch(net: &Net, client: &Client, epoch_s: u64) -> u32 {
    let now = client.head().await.expect("a head").time;
    net.advance(epoch_s - now % epoch_s + 1).await;
    (client.head().await.expect("a head").time / epoch_s) as u32
}

async fn staked(net: &Net, holder: &Client, client: &Client, role: u32, amount: &str) {
    let to = client.account().expect("a key");
    act(net, holder, Action::Transfer { to, amount: pod(amount) }).await;
    act(net, client, Action::Stake { amount: pod(amount) }).await;
    act(net, client, Action::Provision { role, amount: pod(amount) }).await;
}

struct Court<'a> {
    net: &'a Net,
    auditors: [&'a Client; 2],
    listed: Vec<(ledger::eip712::Address, u64)>,
}

impl Court<'_> {
    /// Draws the next auditor, who commits to a result.
    async fn answered(&self, case: [u8; 32], roots: [u8; 32]) -> &Client {
        let auditors = self.listed.clone();
        let events = done(self.net, self.auditors[0], AuditAction::Assign { case, auditors }).await;
        let [AuditEvent::AuditorDrawn { auditor: Some(auditor), .. }] = events[..] else {
            panic!("{events:?}")
        };
        let client = self.auditors.iter().find(|client| client.account() == Some(auditor));
        let client = client.expect("one of the two");
        let answer = audit::answer(&case, &auditor, &roots, &SALT);
        done(self.net, client, AuditAction::Commit { case, answer }).await;
        client
    }

    async fn revealed(
        &self,
        client: &Client,
        case: [u8; 32],
        chunk: Chunk,
        roots: [u8; 32],
    ) -> Vec<AuditEvent> {
        done(self.net, client, AuditAction::Reveal { case, chunk, roots, salt: SALT }).await
    }
}

/// Enters two auditors, and has their stakes written down in one epoch for the next.
async fn listed(
    net: &Net,
    holder: &Client,
    auditors: [&Client; 2],
    epoch_s: u64,
) -> Vec<(ledger::eip712::Address, u64)> {
    for auditor in auditors {
        refused(auditor, AuditAction::Join { replaced: None }, "TooLittleStake").await;
        staked(net, holder, auditor, AUDITOR_ROLE, "50000").await;
        done(net, auditor, AuditAction::Join { replaced: None }).await;
    }
    next_epoch(net, holder, epoch_s).await;
    let events = done(net, auditors[0], AuditAction::ListAuditors).await;
    let [AuditEvent::AuditorsListed { auditors: listed, .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!(listed[..], [4, 5].map(|number| (key(number).address(), 50_000 * 10u64.pow(9))));
    listed.clone()
}

/// Has the beacon's round for an epoch submitted, once its time has come.
async fn drawn(net: &Net, node: &Client, other: &Client, epoch: u32, secret: &Secret) {
    let terms = node.audit_terms().await.expect("terms");
    let round = node.audit_round(epoch).await.expect("a round");
    let end = (u64::from(epoch) + 1) * terms.epoch_s;
    let clock = Clock { genesis: GENESIS, period: PERIOD };
    assert_eq!((round.round, round.randomness), (clock.round_after(end + 60), None));
    let submit = |number| AuditAction::SubmitRound { round: number, signature: secret.sign(round.round) };
    refused(node, submit(round.round), "NotYet").await;
    let leaf = LeafId { account: node.account().expect("a key"), epoch, index: 0 };
    refused(node, AuditAction::Draw(leaf), "NoBeacon").await;
    next_epoch(net, node, terms.epoch_s).await;
    net.advance(120).await;
    refused(node, submit(round.round + 1), "BadRound").await;
    done(net, other, submit(round.round)).await;
    refused(other, submit(round.round), "AlreadyKnown").await;
    assert!(node.audit_round(epoch).await.expect("a round").randomness.is_some());
}

async fn audited(net: Net) {
    let secret = Secret::from_seed(&[9; 32]);
    let deployment = net
        .deploy_with(|parameters| {
            let key = secret.public_key();
            parameters.beacon = BeaconParameters { key, genesis: GENESIS, period: PERIOD };
            parameters.audits.reply_rate = u32::MAX;
        })
        .await;
    let holder = net.client(&deployment, 1).await;
    let node = net.client(&deployment, 3).await;
    let (one, two) = (net.client(&deployment, 4).await, net.client(&deployment, 5).await);
    let me = key(3).address();
    staked(&net, &holder, &node, NODE_ROLE, "10000").await;
    let terms = node.audit_terms().await.expect("terms");
    assert_eq!((terms.epoch_s, terms.dispute_bond, terms.game), (3600, pod("1000"), Some(deployment.game)));

    let beacon = BeaconParameters { key: secret.public_key(), genesis: GENESIS, period: PERIOD };
    assert_eq!((node.beacon().await.expect("a beacon"), terms.lapse_bps), (beacon, 100));
    assert!(node.auditors().await.expect("a list").is_empty());

    // The stakes of one epoch, the commitments of the next, the beacon after it.
    let listed = listed(&net, &holder, [&one, &two], terms.epoch_s).await;
    let court = Court { net: &net, auditors: [&one, &two], listed };
    let epoch = next_epoch(&net, &node, terms.epoch_s).await;
    let leaves = (0..3).map(|number| chunk(number).leaf(&me));
    let tree = Tree::new(leaves.collect()).expect("there are leaves");
    let post = AuditAction::Post { root: tree.root(), count: 3, prompts: 0 };
    done(&net, &node, post.clone()).await;
    refused(&node, post, "AlreadyPosted").await;
    let leaf = |index| LeafId { account: me, epoch, index };
    let known = node.audit_leaf(leaf(0)).await.expect("a leaf");
    assert_eq!(known.case, leaf(0).case(deployment.chain_id, &deployment.audits, &tree.root()));
    assert_eq!(known.rate.bits(), u32::MAX);
    drawn(&net, &node, &two, epoch, &secret).await;

    let opened = |index: u32| AuditAction::Open {
        leaf: leaf(index),
        chunk: chunk(index as u8),
        proof: tree.proof(index as usize).expect("there is such a leaf"),
    };
    passes(&net, &node, &court, opened(0), known.case).await;
    let faulty = fails(&net, &node, &court, opened(1)).await;
    silent(&net, &node, &two, leaf(2), opened(2)).await;
    net.advance(86_400).await;
    let events = done(&net, &one, AuditAction::TimeOut { case: faulty }).await;
    assert!(events.contains(&AuditEvent::PayForfeited { case: faulty, account: me }), "{events:?}");
    let case = node.audit_case(faulty).await.expect("an answer").expect("a case");
    assert_eq!((case.stage, case.verdict), (CaseStage::Closed, Some(CaseVerdict::Faulty)));
    assert_eq!(node.audit_case([1; 32]).await.expect("an answer"), None);
    assert_eq!(node.audit_claimable(me).await.expect("an amount"), pod("0"));
    assert_eq!(case.answers[0].value, WRONG);
    refused(&node, AuditAction::ClaimBonds, "NothingToClaim").await;
    done(&net, &one, AuditAction::Resign).await;
    refused(&node, AuditAction::Drop(key(5).address()), "Stays").await;
}

/// A leaf is drawn and not opened.
async fn silent(net: &Net, node: &Client, other: &Client, leaf: LeafId, opened: AuditAction) {
    let events = done(net, other, AuditAction::Draw(leaf)).await;
    let [AuditEvent::LeafDrawn { case, .. }] = events[..] else { panic!("{events:?}") };
    net.advance(21_601).await;
    refused(node, opened, "TooLate").await;
    let events = done(net, other, AuditAction::TimeOut { case }).await;
    let (operator, role) = (leaf.account, NODE_ROLE);
    let taken = AuditEvent::Penalised { case, operator, role, taken: pod("1000") };
    assert!(events.contains(&taken), "{events:?}");
    assert_eq!(node.stake(operator, role, operator).await.expect("a stake").active, pod("9000"));
}

async fn passes(net: &Net, node: &Client, court: &Court<'_>, opened: AuditAction, case: [u8; 32]) {
    let events = done(net, node, opened).await;
    assert!(
        matches!(events[..], [AuditEvent::LeafDrawn { .. }, AuditEvent::LeafOpened { .. }]),
        "{events:?}"
    );
    let auditor = court.answered(case, RIGHT).await;
    let events = court.revealed(auditor, case, chunk(0), RIGHT).await;
    let closed = AuditEvent::Closed {
        case,
        account: node.account().expect("a key"),
        verdict: Some(CaseVerdict::Passed),
    };
    assert_eq!(events.last(), Some(&closed));
    let answers = node.audit_case(case).await.expect("an answer").expect("a case").answers;
    assert_eq!((answers.len(), answers[0].step), (1, AnswerStep::Confirmed));
}

/// Two auditors find another result than the node's.
async fn fails(net: &Net, node: &Client, court: &Court<'_>, opened: AuditAction) -> [u8; 32] {
    let events = done(net, node, opened).await;
    let [AuditEvent::LeafDrawn { case, .. }, AuditEvent::LeafOpened { .. }] = events[..] else {
        panic!("{events:?}")
    };
    let first = court.answered(case, WRONG).await;
    let show = AuditAction::Reveal { case, chunk: chunk(1), roots: WRONG, salt: SALT };
    refused(first, show, "AnswersDiffer").await;
    done(net, first, AuditAction::Differ { case }).await;
    let second = court.answered(case, WRONG).await;
    court.revealed(second, case, chunk(1), WRONG).await;
    let events = court.revealed(first, case, chunk(1), WRONG).await;
    let verdict = Some(CaseVerdict::Faulty);
    assert!(matches!(&events[..], [_, AuditEvent::Decided { verdict: found, .. }] if *found == verdict));
    let bond = pod("1000");
    refused(first, AuditAction::Dispute { case, bond: pod("0") }, "NotYours").await;
    refused(first, AuditAction::MatchBond { case, chunk: chunk(1), bond: pod("0") }, "WrongStage").await;
    assert_eq!(bond, node.audit_terms().await.expect("terms").dispute_bond);
    case
}

#[tokio::test(flavor = "multi_thread")]
async fn audits_work_on_the_embedded_chain() {
    audited(Net::embedded(Sealing::Instant).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audits_work_on_anvil() {
    if let Some(net) = Net::anvil(Sealing::Instant).await {
        audited(net).await;
    }
}
