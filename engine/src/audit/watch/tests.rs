//! Auditors on an embedded chain, with nodes that are right, wrong, silent, or hand nothing over.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt};
use kernels::cpu::{Cpu, Isa};
use ledger::{
    EXAMPLE_PARAMETERS,
    audit::{Chunk, LeafId, Tree, plant, roots, seal},
    beacon::{Clock, Secret},
    client::{
        AUDITOR_ROLE, Action, AuditAction, Case, CaseStage, CaseVerdict, Client, Config, Deployment, Key,
        Ledger, NODE_ROLE, NodeEntry, Parameters, Pod,
    },
    embedded::{Chain, Genesis, LocalBeacon, Sealing, Server, serve_with_beacon},
    node::binding_digest,
};
use tokio::{sync::mpsc, time::sleep};
use transport::Identity;

use super::{
    Budget, Desk, EvidenceSource, Finding, Host, Report, Tools, Wanted, Watch, WatchConfig, WorkError,
    Worker, work::Task,
};
use crate::{
    audit::{
        drand::Drand,
        duty::NO_ROWS,
        evidence::{Evidence, replay},
        plan::{Digest, Plan, PlannedStage, Terms, prompt_hash},
        show::FetchError,
        trace::Entered,
    },
    device::Device,
    model::{Model, ModelHash, Quantisation, tests::golden},
    request::Sampling,
};

const ETHER: u128 = 1_000_000_000_000_000_000;
const POSITIONS: u32 = 70;
const HOLDER: u8 = 1;
const NODE: u8 = 3;
const SALT: [u8; 32] = [5; 32];

fn key(number: u8) -> Key {
    Key::from_bytes(&[number; 32]).expect("a small number is a key")
}

fn pod(text: &str) -> Pod {
    text.parse().expect("an amount")
}

fn cpu() -> Cpu {
    Cpu::new(1, Isa::detect()).expect("a processor")
}

/// A model, and its hash.
fn model() -> (Arc<Model>, Arc<ModelHash>) {
    static MODEL: OnceLock<(Arc<Model>, Arc<ModelHash>)> = OnceLock::new();
    let model = MODEL.get_or_init(|| {
        let model = Model::open(&golden("llama")).expect("opens");
        let hash = model.hash(Quantisation::Q8, &|_| ()).expect("hashes");
        (Arc::new(model), Arc::new(hash))
    });
    model.clone()
}

/// What entered the first of two stages in a session of its own.
fn evidence(session: u8) -> Evidence {
    let (salt, prompt) = (Digest([3; 32]), [5, 6, 7]);
    let node = Digest(*identity().id().as_bytes());
    let stage = |from, to, embedding, head| PlannedStage { node, from, to, embedding, head };
    let plan = Plan {
        session: format!("{session:032x}"),
        gateway: Digest([1; 32]),
        terms: Terms {
            model: Digest(model().1.hash),
            quantisation: Quantisation::Q8,
            salt,
            prompt_hash: prompt_hash(&salt, &prompt),
        },
        prompt_length: 3,
        max_tokens: 200,
        stop_tokens: vec![1, 2],
        sampling: Sampling::default(),
        stages: vec![stage(0, 2, true, false), stage(2, 5, false, true)],
    };
    let tokens = prompt.into_iter().chain((3..POSITIONS).map(|n| (n * 7 + u32::from(session)) % 60));
    Evidence { plan, stage: 0, entered: Entered::Tokens(tokens.collect()) }
}

/// The leaf of that, with what should have come out.
fn right(evidence: &Evidence) -> Chunk {
    let (model, hash) = model();
    let rows = replay(evidence, &model, &Digest(hash.hash), &cpu(), &|_| ()).expect("computes");
    Chunk {
        model: hash.hash,
        plan: evidence.plan.hash().0,
        commitment: evidence.plan.hash().0,
        in_roots: roots(&evidence.in_roots()),
        sealed_roots: seal(&roots(&evidence.out_roots(&rows))),
        stage: 0,
        from: 64,
        to: POSITIONS,
    }
}

fn wrong(evidence: &Evidence) -> Chunk {
    Chunk { sealed_roots: seal(&[7; 32]), ..right(evidence) }
}

fn identity() -> Identity {
    Identity::from_secret([33; 32])
}

/// Nodes' evidence by plan, handed over by who knows it.
#[derive(Default)]
struct Shelf(Mutex<HashMap<[u8; 32], Evidence>>);

impl EvidenceSource for Shelf {
    fn fetch(&self, wanted: Wanted, host: Host) -> BoxFuture<'_, Result<Evidence, FetchError>> {
        assert_eq!(host.endpoint, "here");
        let found = self.0.lock().expect("whole").get(&wanted.chunk.plan).cloned();
        futures::future::ready(found.ok_or(FetchError::Answer("nothing"))).boxed()
    }
}

/// A chain with a beacon, a node with stake, and two auditors' accounts with stake.
struct World {
    chain: Chain,
    server: Server,
    deployment: Deployment,
    holder: Client,
    node: Client,
    shelf: Arc<Shelf>,
}

fn config(chain: &Chain) -> Config {
    Config { poll: Duration::from_millis(5), ..Config::over(Arc::new(chain.clone())) }
}

async fn act(client: &Client, action: Action) {
    let text = format!("{action:?}");
    client.submit(action).await.unwrap_or_else(|error| panic!("{text}: {error}"));
}

async fn audit(client: &Client, action: AuditAction) {
    act(client, Action::Audit(Box::new(action))).await;
}

impl World {
    async fn new() -> Self {
        let accounts = (1..=9).map(|number| (key(number).address(), 100 * ETHER));
        let genesis = Genesis { accounts: accounts.collect(), ..Genesis::default() };
        let chain = Chain::in_memory(genesis, Sealing::Instant);
        let clock = Clock { genesis: chain.time().expect("a time") - 1000, period: 3 };
        let beacon = LocalBeacon { secret: Secret::from_seed(&[9; 32]), clock };
        let mut parameters: Parameters = serde_json::from_str(EXAMPLE_PARAMETERS).expect("parameters");
        (parameters.holder, parameters.beacon) = (key(HOLDER).address(), beacon.parameters());
        (parameters.audits.reply_rate, parameters.audits.prompt_rate) = (u32::MAX, u32::MAX);
        let server = serve_with_beacon(chain.clone(), ([127, 0, 0, 1], 0).into(), false, beacon).await;
        let server = server.expect("a free port");
        let deployment = Client::deploy(config(&chain), key(HOLDER), &parameters).await.expect("deploys");
        let connect = async |number: u8| {
            Client::connect(config(&chain), deployment.clone(), Some(key(number))).await.expect("connects")
        };
        let (holder, node) = (connect(HOLDER).await, connect(NODE).await);
        let world = Self { chain: chain.clone(), server, deployment, holder, node, shelf: Arc::default() };
        world.stake(&world.node, NODE_ROLE, "10000").await;
        for number in [4, 5] {
            world.stake(&world.client(number).await, AUDITOR_ROLE, "51000").await;
        }
        let (me, id) = (key(NODE).address(), *identity().id().as_bytes());
        let proof = identity().sign(&binding_digest(&world.deployment.nodes_domain(), &id, &me));
        let entry = NodeEntry { node: id, roles: 1, metadata: [0; 32], endpoint: "here".into(), proof };
        act(&world.node, Action::RegisterNode(Box::new(entry))).await;
        world
    }

    async fn client(&self, number: u8) -> Client {
        let client = Client::connect(config(&self.chain), self.deployment.clone(), Some(key(number))).await;
        client.expect("connects")
    }

    /// Stakes 1000 POD less than this behind the role where there is that much: they are for bonds.
    async fn stake(&self, client: &Client, role: u32, amount: &str) {
        let to = client.account().expect("a key");
        act(&self.holder, Action::Transfer { to, amount: pod(amount) }).await;
        let bond = if role == AUDITOR_ROLE { pod("1000") } else { Pod::ZERO };
        let amount = pod(amount).saturating_sub(bond);
        act(client, Action::Stake { amount }).await;
        act(client, Action::Provision { role, amount }).await;
    }

    async fn auditor(&self, number: u8, directory: &Path) -> Auditor {
        let ledger: Arc<dyn Ledger> = Arc::new(self.client(number).await);
        let network = ledger.beacon().await.expect("a beacon");
        let (model, hash) = model();
        let budget = Budget { at_once: 1, positions: 256, memory: 64 << 20 };
        let tools = Tools {
            ledger,
            key: key(number),
            drand: Arc::new(Drand::new(&[self.server.url()], network).expect("a beacon")),
            source: self.shelf.clone(),
            worker: Arc::new(Worker::new(model, Quantisation::Q8, hash, Device::Cpu(cpu()), budget)),
            desk: Desk::open(directory).expect("a directory"),
        };
        let config = WatchConfig {
            every: Duration::from_millis(20),
            stagger: Duration::ZERO,
            join: true,
            ..WatchConfig::default()
        };
        let (watch, reports) = Watch::start(tools, config).await.expect("starts");
        Auditor { watch, reports, seen: Vec::new() }
    }

    fn pass(&self, seconds: u64) {
        self.chain.advance_time(seconds).expect("advances");
        self.chain.mine().expect("mines");
    }

    async fn epoch(&self) -> u32 {
        (self.node.head().await.expect("a head").time / 3600) as u32
    }

    /// Posts leaves in an epoch whose auditors are listed, and goes on to the next epoch. Their cases.
    async fn posted(&self, auditors: &mut [Auditor], leaves: &[Chunk]) -> (Tree, Vec<(LeafId, [u8; 32])>) {
        let me = key(NODE).address();
        turns(auditors, 3).await;
        self.pass(3600);
        let epoch = self.epoch().await;
        let tree = Tree::new(leaves.iter().map(|chunk| chunk.leaf(&me)).collect()).expect("leaves");
        let count = leaves.len() as u32;
        audit(&self.node, AuditAction::Post { root: tree.root(), count, prompts: 1 }).await;
        self.pass(3700);
        let leaf = |index| LeafId { account: me, epoch, index };
        let case = |leaf: LeafId| leaf.case(self.deployment.chain_id, &self.deployment.audits, &tree.root());
        let cases = (0..count).map(|index| (leaf(index), case(leaf(index)))).collect();
        (tree, cases)
    }

    async fn open(&self, tree: &Tree, (leaf, _): (LeafId, [u8; 32]), chunk: Chunk) {
        let proof = tree.proof(leaf.index as usize).expect("such a leaf");
        audit(&self.node, AuditAction::Open { leaf, chunk, proof }).await;
    }

    async fn case(&self, id: [u8; 32]) -> Case {
        self.node.audit_case(id).await.expect("an answer").expect("a case")
    }

    async fn active(&self, number: u8, role: u32) -> Pod {
        let account = key(number).address();
        self.node.stake(account, role, account).await.expect("a stake").active
    }

    /// That the auditors have what they staked.
    async fn auditors_are_whole(&self) {
        for number in [4, 5] {
            assert_eq!(self.active(number, AUDITOR_ROLE).await, pod("50000"));
        }
    }
}

struct Auditor {
    watch: Watch,
    reports: mpsc::Receiver<Report>,
    seen: Vec<Report>,
}

impl Auditor {
    /// One look, and everything that follows from it.
    async fn turn(&mut self) {
        while self.watch.look().await.expect("the chain answers") {}
        while let Some(done) = self.watch.jobs.join_next().await {
            self.watch.done(done);
        }
        // What failed is tried again at once.
        self.watch.paces.clear();
        while let Ok(report) = self.reports.try_recv() {
            self.seen.push(report);
        }
    }

    fn answers(&self) -> Vec<Finding> {
        let answers = self.seen.iter().filter_map(|report| match report {
            Report::Answer { result, .. } => Some(*result),
            _ => None,
        });
        answers.collect()
    }
}

async fn turns(auditors: &mut [Auditor], count: usize) {
    for _ in 0..count {
        for auditor in &mut *auditors {
            auditor.turn().await;
        }
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// One leaf is right, two are not. The first mismatch costs its pay, the second a tenth of the stake.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_compute_wrong_are_found_and_those_that_do_not_pass() {
    let world = World::new().await;
    let (one, two) = (directory(), directory());
    let mut auditors = [world.auditor(4, one.path()).await, world.auditor(5, two.path()).await];
    let shown: Vec<Evidence> = (1..=3).map(evidence).collect();
    let leaves = [right(&shown[0]), wrong(&shown[1]), wrong(&shown[2])];
    let (tree, cases) = world.posted(&mut auditors, &leaves).await;
    for evidence in shown {
        world.shelf.0.lock().expect("whole").insert(evidence.plan.hash().0, evidence);
    }
    turns(&mut auditors, 3).await;
    for (place, chunk) in cases.iter().zip(leaves) {
        assert_eq!(world.case(place.1).await.stage, CaseStage::Opening);
        world.open(&tree, *place, chunk).await;
    }
    turns(&mut auditors, 12).await;
    let verdicts = async || {
        let mut found = Vec::new();
        for (_, id) in &cases {
            let case = world.case(*id).await;
            found.push((case.stage, case.verdict));
        }
        found
    };
    let (passed, faulty) = (Some(CaseVerdict::Passed), Some(CaseVerdict::Faulty));
    let decided = (CaseStage::Deciding, faulty);
    assert_eq!(verdicts().await, [(CaseStage::Closed, passed), decided, decided]);
    world.pass(86_401);
    turns(&mut auditors, 3).await;
    let closed = (CaseStage::Closed, faulty);
    assert_eq!(verdicts().await, [(CaseStage::Closed, passed), closed, closed]);
    assert_eq!(world.active(NODE, NODE_ROLE).await, pod("9000"));
    world.auditors_are_whole().await;
    let mut answers = [auditors[0].answers(), auditors[1].answers()].concat();
    answers.sort_by_key(|finding| *finding != Finding::Equal);
    assert_eq!(answers, [vec![Finding::Equal], vec![Finding::Differs; 4]].concat());
    // Nothing is kept of what is over.
    for (auditor, directory) in auditors.iter().zip([&one, &two]) {
        assert!(auditor.watch.answers.is_empty() && auditor.watch.known.cases.is_empty());
        assert_eq!(std::fs::read_dir(directory.path().join("evidence")).expect("a folder").count(), 0);
    }
}

/// It is stopped after each of its turns; then after every second one, and its files are gone as well.
#[tokio::test(flavor = "multi_thread")]
async fn answers_are_shown_after_any_crash() {
    for lost in [false, true] {
        let world = World::new().await;
        let (one, two) = (directory(), directory());
        let mut auditors = [world.auditor(4, one.path()).await, world.auditor(5, two.path()).await];
        let shown = evidence(1);
        let chunk = wrong(&shown);
        let (tree, cases) = world.posted(&mut auditors, &[chunk]).await;
        world.shelf.0.lock().expect("whole").insert(chunk.plan, shown);
        turns(&mut auditors, 3).await;
        world.open(&tree, cases[0], chunk).await;
        drop(auditors);
        let mut committed = false;
        for turn in 0..30 {
            let (number, place) = if turn % 2 == 0 { (4, &one) } else { (5, &two) };
            if lost && turn > 0 {
                for name in ["answers", "evidence"] {
                    std::fs::remove_dir_all(place.path().join(name)).expect("is removed");
                }
            }
            turns(&mut [world.auditor(number, place.path()).await], 1 + usize::from(lost)).await;
            let case = world.case(cases[0].1).await;
            committed |= case.stage == CaseStage::Revealing;
        }
        let case = world.case(cases[0].1).await;
        assert!(committed);
        assert_eq!((case.stage, case.verdict), (CaseStage::Deciding, Some(CaseVerdict::Faulty)), "{lost}");
        world.auditors_are_whole().await;
    }
}

/// Both act for both accounts, from different directories.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_with_one_account_do_each_other_no_harm() {
    let world = World::new().await;
    let directories = [directory(), directory(), directory(), directory()];
    let mut auditors = Vec::new();
    for (number, directory) in [4, 5, 4, 5].into_iter().zip(&directories) {
        auditors.push(world.auditor(number, directory.path()).await);
    }
    let shown = [evidence(1), evidence(2)];
    let leaves = [right(&shown[0]), wrong(&shown[1])];
    let (tree, cases) = world.posted(&mut auditors, &leaves).await;
    for evidence in shown {
        world.shelf.0.lock().expect("whole").insert(evidence.plan.hash().0, evidence);
    }
    turns(&mut auditors, 3).await;
    for (place, chunk) in cases.iter().zip(leaves) {
        world.open(&tree, *place, chunk).await;
    }
    turns(&mut auditors, 12).await;
    assert_eq!(world.case(cases[0].1).await.verdict, Some(CaseVerdict::Passed));
    assert_eq!(world.case(cases[1].1).await.verdict, Some(CaseVerdict::Faulty));
    world.auditors_are_whole().await;
}

/// What was opened, and whom it was given to, is undone.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_undone_is_read_anew() {
    let world = World::new().await;
    let (one, two) = (directory(), directory());
    let mut auditors = [world.auditor(4, one.path()).await, world.auditor(5, two.path()).await];
    let shown = evidence(1);
    let chunk = right(&shown);
    let (tree, cases) = world.posted(&mut auditors, &[chunk]).await;
    turns(&mut auditors, 3).await;
    let before = world.chain.snapshot().expect("a snapshot");
    let newest = world.chain.mine().expect("mines");
    world.open(&tree, cases[0], chunk).await;
    auditors[0].turn().await;
    assert_eq!(world.case(cases[0].1).await.stage, CaseStage::Committing);
    assert!(world.chain.revert(before).expect("a snapshot"));
    world.pass(7);
    while world.chain.mine().expect("mines") < newest + 9 {}
    world.shelf.0.lock().expect("whole").insert(chunk.plan, shown);
    // Whose transactions are gone sends them again.
    for _ in 0..200 {
        turns(&mut auditors, 1).await;
        if world.case(cases[0].1).await.stage == CaseStage::Closed {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.case(cases[0].1).await.verdict, Some(CaseVerdict::Passed));
    world.auditors_are_whole().await;
}

/// A leaf that is not opened, and a fault that was planted.
#[tokio::test(flavor = "multi_thread")]
async fn silence_is_reported_and_planted_faults_cost_nobody() {
    let world = World::new().await;
    let (one, two) = (directory(), directory());
    let mut auditors = [world.auditor(4, one.path()).await, world.auditor(5, two.path()).await];
    let shown = evidence(1);
    let planted = Chunk { sealed_roots: seal(&plant(&key(NODE).address(), &SALT)), ..right(&shown) };
    let (tree, cases) = world.posted(&mut auditors, &[planted, wrong(&evidence(2))]).await;
    world.shelf.0.lock().expect("whole").insert(planted.plan, shown);
    turns(&mut auditors, 3).await;
    world.open(&tree, cases[0], planted).await;
    turns(&mut auditors, 10).await;
    assert_eq!(world.case(cases[0].1).await.stage, CaseStage::Deciding);
    let show = AuditAction::ShowPlant { case: cases[0].1, chunk: planted, salt: SALT };
    audit(&world.node, show).await;
    world.pass(21_600);
    turns(&mut auditors, 3).await;
    assert_eq!(world.case(cases[0].1).await.verdict, Some(CaseVerdict::Planted));
    assert_eq!(world.case(cases[1].1).await.verdict, Some(CaseVerdict::Silent));
    assert_eq!(world.active(NODE, NODE_ROLE).await, pod("9000"));
    world.auditors_are_whole().await;
}

/// Hands over what is not asked for, or nothing for ever.
struct Hostile(Option<Evidence>);

impl EvidenceSource for Hostile {
    fn fetch(&self, _: Wanted, _: Host) -> BoxFuture<'_, Result<Evidence, FetchError>> {
        match self.0.clone() {
            Some(evidence) => futures::future::ready(Ok(evidence)).boxed(),
            None => sleep(Duration::from_secs(1 << 30)).map(|()| Err(FetchError::Answer("late"))).boxed(),
        }
    }
}

async fn answered(source: Hostile, chunk: Chunk, known_model: bool) -> Result<[u8; 32], WorkError> {
    let (model, hash) = model();
    let budget = Budget { at_once: 1, positions: 128, memory: 1 << 20 };
    let worker = Arc::new(Worker::new(model, Quantisation::Q8, hash, Device::Cpu(cpu()), budget));
    let registry = ledger::eip712::Domain { chain_id: 1, contract: [1; 20] };
    let (node, account) = (*identity().id().as_bytes(), [2; 20]);
    let proof = identity().sign(&binding_digest(&registry, &node, &account)).to_vec();
    let task = Task {
        wanted: Wanted { case: [1; 32], chunk, account, most_bytes: 0 },
        hosts: vec![Host { node, endpoint: "here".into(), proof }],
        registry,
        left: Duration::from_secs(3600),
        known_model,
    };
    let place = directory();
    let desk = Desk::open(place.path()).expect("a directory");
    let answer = worker.answer(task, Arc::new(source), desk.clone()).await?;
    assert_eq!(desk.answers().expect("are read")[&[1; 32]], answer.kept.roots.0);
    Ok(answer.kept.roots.0)
}

/// Time is simulated: an hour's window passes at once.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_computed_is_told_as_it_is() {
    let shown = evidence(1);
    let chunk = right(&shown);
    let found = answered(Hostile(Some(shown.clone())), chunk, true).await.expect("an answer");
    assert_eq!(seal(&found), chunk.sealed_roots);
    // Nothing, something else, or what does not hash to what was opened, however often it is asked for.
    for source in [None, Some(evidence(2))] {
        assert_eq!(answered(Hostile(source), chunk, true).await.expect("an answer"), NO_ROWS);
    }
    let inputs = Chunk { in_roots: [9; 32], ..chunk };
    assert_eq!(answered(Hostile(Some(shown.clone())), inputs, true).await.expect("an answer"), NO_ROWS);
    // A leaf that no session has is nobody's model's, and nobody waits for its evidence.
    for chunk in
        [Chunk { model: [9; 32], ..chunk }, Chunk { to: u32::MAX, ..chunk }, Chunk { to: 0, ..chunk }]
    {
        assert_eq!(answered(Hostile(None), chunk, false).await.expect("an answer"), NO_ROWS);
    }
    // What others can compute is left to them.
    let other = answered(Hostile(None), Chunk { model: [9; 32], ..chunk }, true).await;
    assert!(matches!(other, Err(WorkError::OtherModel(_))), "{other:?}");
    let long = answered(Hostile(None), Chunk { from: 128, to: 129, ..chunk }, true).await;
    assert!(matches!(long, Err(WorkError::TooLong(129))), "{long:?}");
}
