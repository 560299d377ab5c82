//! Disputes that audits have come to, played on a chain by drivers of both sides.

use kernels::backend::Profile;
use ledger::{
    audit::{Chunk, seal},
    client::{CaseVerdict, Client},
};

use super::*;
use crate::{
    audit::{
        plan::{Digest, Plan, PlannedStage, Terms},
        scene::{Scene, pod},
        trace::{
            Entered,
            cheat::Cheat,
            tests::{cheating, open, tokens},
            wiring::op,
        },
    },
    model::Quantisation,
    request::Sampling,
};

const POSITIONS: u32 = 3;
const FLIP: Cheat = Cheat::Flip { slot: 1, operation: op::Q, position: 2, word: 40, bits: 1 << 13 };
const SKIP: Cheat = Cheat::Skip { slot: 1 };

/// A model at a quantisation.
#[derive(Clone)]
struct World {
    model: Arc<Model>,
    hash: Arc<ModelHash>,
    quantisation: Quantisation,
}

impl World {
    fn new(quantisation: Quantisation) -> Self {
        let model = open("llama");
        let hash = model.hash(quantisation, &|_| ()).expect("hashes");
        Self { model: Arc::new(model), hash: Arc::new(hash), quantisation }
    }

    fn evidence(&self, to: usize) -> Evidence {
        let terms = Terms {
            model: Digest(self.hash.hash),
            quantisation: self.quantisation,
            salt: Digest([3; 32]),
            prompt_hash: Digest([4; 32]),
        };
        let stage =
            |from, to, head| PlannedStage { node: Digest([5; 32]), from, to, embedding: from == 0, head };
        let plan = Plan {
            session: "00".repeat(16),
            gateway: Digest([6; 32]),
            terms,
            prompt_length: 1,
            max_tokens: 300,
            stop_tokens: vec![1, 2],
            sampling: Sampling::default(),
            stages: vec![stage(0, to as u32, false), stage(to as u32, 5, true)],
        };
        let tokens = tokens(POSITIONS, self.model.config().vocabulary);
        Evidence { plan, stage: 0, entered: Entered::Tokens(tokens) }
    }

    fn court(&self, ledger: &Arc<Client>) -> Court {
        let (model, hash) = (self.model.clone(), self.hash.clone());
        Court { ledger: ledger.clone(), model, hash, poll: Duration::from_millis(20) }
    }

    /// What a node that makes `make` of its evidence has committed to.
    fn chunk(&self, evidence: &Evidence, make: Option<Make>, number: u8) -> Chunk {
        let rows = match make {
            Some(make) => make(&self.model, &self.hash, evidence).expect("a side").rows().to_vec(),
            None => Vec::new(),
        };
        Chunk {
            model: self.hash.hash,
            plan: evidence.plan.hash().0,
            commitment: [number; 32],
            in_roots: roots(&evidence.in_roots()),
            sealed_roots: seal(&roots(&evidence.out_roots(&rows))),
            stage: evidence.stage,
            from: 0,
            to: evidence.to(),
        }
    }
}

/// One word of a product is another; it may not even be seen in the rows.
fn flipped<'a>(model: &'a Model, hash: &'a ModelHash, evidence: &Evidence) -> Result<Side<'a>, TraceError> {
    Ok(Side::of(cheating(model, part(evidence).layers, evidence.entered.clone(), FLIP), hash))
}

/// A layer is left out.
fn skipping<'a>(model: &'a Model, hash: &'a ModelHash, evidence: &Evidence) -> Result<Side<'a>, TraceError> {
    Ok(Side::of(cheating(model, part(evidence).layers, evidence.entered.clone(), SKIP), hash))
}

/// The trace is right, and the rows that were sent are others.
fn other_rows<'a>(
    model: &'a Model,
    hash: &'a ModelHash,
    evidence: &Evidence,
) -> Result<Side<'a>, TraceError> {
    let part = part(evidence);
    let trace = Trace::new(model, part.quantisation, part.layers, evidence.entered.clone())?;
    let mut rows = trace.sent();
    rows[1][77] ^= 1;
    Ok(Side::new(trace, hash, rows))
}

/// Plays as one who crashes after every move and begins anew.
async fn crashing(court: Court, case: [u8; 32], evidence: Evidence, make: Make) -> Outcome {
    let account = court.ledger.account().expect("a key");
    let is_mine = async || {
        let dispute = court.ledger.dispute(case).await.expect("an answer");
        dispute.is_some_and(|dispute| dispute.party(&account) == Some(dispute.turn.party()))
    };
    loop {
        let mut seat = Seat::new(&court, case, evidence.clone(), make).expect("a seat");
        loop {
            let before = is_mine().await;
            if let Some(outcome) = seat.look().await.expect("goes on") {
                return outcome;
            }
            if before && !is_mine().await {
                break;
            }
            tokio::time::sleep(court.poll).await;
        }
    }
}

/// Every way in which a dispute ends, and what it costs whom.
#[tokio::test(flavor = "multi_thread")]
async fn disputes_are_played_to_their_ends() {
    let scene = Scene::new().await;
    let (world, plain) = (World::new(Quantisation::Q8), World::new(Quantisation::F32));
    assert_eq!(plain.quantisation.profile(), Profile::F32);
    let evidence = world.evidence(2);
    let untraced = plain.evidence(2);
    let chunks = [
        world.chunk(&evidence, Some(skipping), 0),
        world.chunk(&evidence, Some(other_rows), 1),
        world.chunk(&evidence, Some(honest), 2),
        plain.chunk(&untraced, None, 3),
        world.chunk(&evidence, Some(honest), 4),
        world.chunk(&evidence, Some(skipping), 5),
    ];
    let cases = scene.disputed(&chunks).await;
    let (node, auditor) = (world.court(&scene.node), world.court(&scene.auditors[0]));
    let both = async |index: usize, accused: Make, accuser: Make| {
        let case = cases[index];
        let before = scene.gas();
        let outcomes = tokio::join!(
            play_as(&node, case, evidence.clone(), accused),
            play_as(&auditor, case, evidence.clone(), accuser),
        );
        println!("case {index}: {} gas", scene.gas() - before);
        (outcomes.0.expect("is played"), outcomes.1.expect("is played"))
    };
    let (won, lost) = (Outcome::Won { silence: false }, Outcome::Lost { silence: false });
    assert_eq!(scene.stakes().await, [pod("10000"), pod("50000")]);
    assert_eq!(scene.held().await, [pod("4000"), pod("4000")], "six bonds are out");

    // A node that computes something else loses a fifth of its stake, and its bond.
    assert_eq!(both(0, skipping, honest).await, (lost, won));
    assert_eq!(scene.stakes().await, [pod("8000"), pod("50000")]);
    assert_eq!(scene.held().await, [pod("4000"), pod("5500")]);
    // So does one that sent something else than it computes; both sides crash after every move.
    let outcomes = tokio::join!(
        crashing(node.clone(), cases[1], evidence.clone(), other_rows),
        crashing(auditor.clone(), cases[1], evidence.clone(), honest),
    );
    assert_eq!(outcomes, (lost, won));
    assert_eq!(scene.stakes().await, [pod("6400"), pod("50000")]);
    // An auditor that accuses falsely loses.
    assert_eq!(both(2, honest, flipped).await, (won, lost));
    assert_eq!(scene.stakes().await, [pod("6400"), pod("40000")]);
    assert_eq!(scene.held().await, [pod("5500"), pod("7000")], "with what the crashing auditor had won");
    untriable(&scene, &plain, cases[3], &untraced).await;
    silences(&scene, [&node, &auditor], &cases, &evidence).await;
}

/// Of floats there is no trace: bonds go back, also to a side that would have been silent.
async fn untriable(scene: &Scene, plain: &World, case: [u8; 32], evidence: &Evidence) {
    let (node, auditor) = (plain.court(&scene.node), plain.court(&scene.auditors[0]));
    assert_eq!(play(&node, case, evidence.clone()).await.expect("ends"), Outcome::Abandoned);
    // Whoever comes late finds it over.
    assert_eq!(play(&auditor, case, evidence.clone()).await.expect("ends"), Outcome::Abandoned);
    let found = scene.node.audit_case(case).await.expect("an answer").expect("a case");
    assert_eq!((found.stage, found.verdict), (CaseStage::Closed, Some(CaseVerdict::Undecided)));
    assert_eq!(scene.stakes().await, [pod("6400"), pod("40000")]);
    assert_eq!(scene.held().await, [pod("6500"), pod("8000")]);
}

/// Either side falls silent: the other one ends it.
async fn silences(scene: &Scene, [node, auditor]: [&Court; 2], cases: &[[u8; 32]], evidence: &Evidence) {
    let turn = async |case| {
        let dispute = node.ledger.dispute(case).await.expect("an answer");
        dispute.map(|dispute| dispute.turn)
    };
    let alone = play(node, cases[4], evidence.clone());
    let patient = async {
        while turn(cases[4]).await != Some(DisputeTurn::Choose) {
            tokio::time::sleep(node.poll).await;
        }
        assert_eq!(turn(cases[5]).await, Some(DisputeTurn::Commit));
        scene.advance(172_801);
    };
    let (outcome, ()) = tokio::join!(alone, patient);
    assert_eq!(outcome.expect("ends"), Outcome::Won { silence: true });
    assert_eq!(scene.stakes().await, [pod("6400"), pod("32000")]);
    // What thaws is liable, too.
    scene.flees().await;
    let outcome = play(auditor, cases[5], evidence.clone()).await.expect("ends");
    assert_eq!(outcome, Outcome::Won { silence: true });
    assert_eq!(scene.stakes().await, [pod("5120"), pod("32000")]);
    assert_eq!(scene.held().await, [pod("8000"), pod("9500")]);
    // Whoever was silent hears of it.
    let outcome = play(node, cases[5], evidence.clone()).await.expect("ends");
    assert_eq!(outcome, Outcome::Lost { silence: true });
}

/// Nothing is played that is not the account's, not of the evidence, or not there.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_played_is_said() {
    let scene = Scene::new().await;
    let world = World::new(Quantisation::Q8);
    let evidence = world.evidence(2);
    let empty = world.evidence(0);
    let chunks = [world.chunk(&evidence, Some(honest), 0), world.chunk(&empty, None, 1)];
    let cases = scene.disputed(&chunks).await;
    let (case, node) = (cases[0], world.court(&scene.node));
    let auditor = world.court(&scene.auditors[0]);
    let outcome = play(&auditor, cases[1], empty).await.expect("ends");
    assert_eq!(outcome, Outcome::Abandoned, "a stage of no layers computes nothing");
    let other = world.court(&scene.auditors[1]);
    assert!(matches!(play(&other, case, evidence.clone()).await, Err(CourtError::NotOurs)));
    assert!(matches!(play(&node, [1; 32], evidence.clone()).await, Err(CourtError::NoDispute)));
    let shorter = Evidence { entered: Entered::Tokens(vec![1, 2]), ..evidence.clone() };
    assert!(matches!(play(&node, case, shorter).await, Err(CourtError::OtherEvidence("length"))));
    let another = Evidence { entered: Entered::Tokens(vec![1, 2, 3]), ..evidence.clone() };
    assert!(matches!(play(&node, case, another).await, Err(CourtError::OtherEvidence("input"))));
    let elsewhere = world.evidence(3);
    assert!(matches!(play(&node, case, elsewhere).await, Err(CourtError::OtherEvidence("session"))));

    // What was sealed is not what this side computes: it makes no move, and asks less and less often.
    let mut seat = Seat::new(&node, case, evidence.clone(), skipping).expect("a seat");
    while seat.failed.is_none_or(|(_, times, _)| times < 2) {
        assert_eq!(seat.look().await.expect("goes on"), None);
        tokio::time::sleep(node.poll).await;
    }
    let dispute = node.ledger.dispute(case).await.expect("an answer").expect("a dispute");
    assert_eq!(dispute.turn, DisputeTurn::Commit);
    seat.failed = Some((state(&dispute), 99, Instant::now()));
    assert!(seat.may_try(&dispute));
    seat.fail(&dispute, "a test");
    let (_, times, next) = seat.failed.expect("remembered");
    assert!(times == 100 && next <= Instant::now() + node.poll * 256, "there is a longest pause");
    assert!(!seat.may_try(&dispute));
    assert!(seat.may_try(&Dispute { moved: dispute.moved + 1, ..dispute }), "something has moved");
}
