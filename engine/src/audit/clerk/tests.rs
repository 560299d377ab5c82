//! A clerk on a chain of its own, under its time.

use std::net::SocketAddr;

use bytes::Bytes;
use ledger::{
    EXAMPLE_PARAMETERS,
    audit::{self, LeafId},
    beacon::Secret,
    client::{
        AUDITOR_ROLE, Action, AuditAction, BeaconParameters, CaseStage, CaseVerdict, Client, Config,
        Deployment, Key, NODE_ROLE, Parameters, Party, Pod,
    },
    draw::Rate,
    eip712::Address,
    embedded::{Chain, Genesis, Sealing, Server, serve},
};
use serde_json::json;

use super::*;
use crate::{
    audit::{
        book::{BookConfig, Entry, Signed},
        evidence::replay,
        plan::{Plan, PlannedStage, Terms, prompt_hash},
        rows::{chunk_root, token_leaves},
        trace::Entered,
    },
    model::{Quantisation, tests::golden},
    request::Sampling,
};

const EPOCH_S: u64 = 3600;
const SALT: [u8; 32] = [5; 32];
/// What lying auditors say came out.
const FOUND: [u8; 32] = [7; 32];
const NODE: NodeId = NodeId([8; 32]);
const TOKENS: [u32; 3] = [5, 6, 7];
const NEVER: Rate = Rate::from_bits(0);
const ALWAYS: Rate = Rate::from_bits(u32::MAX);

struct Scene {
    chain: Chain,
    deployment: Deployment,
    secret: Secret,
    holder: Arc<Client>,
    node: Arc<Client>,
    auditors: [Arc<Client>; 2],
    listed: Vec<(Address, u64)>,
    model: Arc<Model>,
    hash: Arc<ModelHash>,
    folder: tempfile::TempDir,
}

fn pod(text: &str) -> Pod {
    text.parse().expect("an amount")
}

fn key(number: u8) -> Key {
    Key::from_bytes(&[number; 32]).expect("a small number is a key")
}

fn quick(config: Config) -> Config {
    Config { poll: Duration::from_millis(10), ..config }
}

async fn act(client: &Client, action: Action) -> Vec<AuditEvent> {
    let text = format!("{action:?}");
    let receipt = client.submit(action).await.unwrap_or_else(|error| panic!("{text}: {error}"));
    let events = receipt.events.into_iter().filter_map(|event| match event {
        Happened::Audit(event) => Some(event),
        _ => None,
    });
    events.collect()
}

async fn done(client: &Client, action: AuditAction) -> Vec<AuditEvent> {
    act(client, Action::Audit(Box::new(action))).await
}

/// Looks again and again, for as long as a test may take.
async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), looking).await.expect("it comes in time")
}

impl Scene {
    /// A chain with a node and two auditors that can be drawn in the epoch that begins.
    async fn new() -> Self {
        let accounts = (1..=9).map(|number| (key(number).address(), 100 * 10u128.pow(18)));
        let genesis = Genesis { accounts: accounts.collect(), ..Genesis::default() };
        let chain = Chain::in_memory(genesis, Sealing::Instant);
        let secret = Secret::from_seed(&[9; 32]);
        let mut parameters: Parameters = serde_json::from_str(EXAMPLE_PARAMETERS).expect("parameters");
        let holder = key(1).address();
        (parameters.holder, parameters.guardian, parameters.poster) = (holder, holder, holder);
        parameters.emission_start = 1_700_000_000;
        parameters.beacon = BeaconParameters { key: secret.public_key(), genesis: 1_700_000_000, period: 30 };
        (parameters.audits.reply_rate, parameters.audits.prompt_rate) = (u32::MAX, u32::MAX);
        let config = || quick(Config::over(Arc::new(chain.clone())));
        let deployment = Client::deploy(config(), key(1), &parameters).await.expect("a deployment");
        let client = async |number| {
            let client = Client::connect(config(), deployment.clone(), Some(key(number))).await;
            Arc::new(client.expect("a client"))
        };
        let (holder, node) = (client(1).await, client(3).await);
        let auditors = [client(4).await, client(5).await];
        let model = Arc::new(Model::open(&golden("llama")).expect("opens"));
        let hash = Arc::new(model.hash(Quantisation::Q8, &|_| ()).expect("hashes"));
        let folder = tempfile::tempdir().expect("a directory");
        let listed = Vec::new();
        let mut scene =
            Self { chain, deployment, secret, holder, node, auditors, listed, model, hash, folder };
        scene.prepare().await;
        scene
    }

    async fn prepare(&mut self) {
        self.staked(&self.node, NODE_ROLE, "10000").await;
        for auditor in &self.auditors {
            self.staked(auditor, AUDITOR_ROLE, "50000").await;
            done(auditor, AuditAction::Join { replaced: None }).await;
        }
        self.next_epoch().await;
        let events = done(&self.holder, AuditAction::ListAuditors).await;
        let [AuditEvent::AuditorsListed { auditors, .. }] = &events[..] else { panic!("{events:?}") };
        self.listed.clone_from(auditors);
        self.next_epoch().await;
    }

    async fn staked(&self, client: &Client, role: u32, amount: &str) {
        let (to, amount) = (client.account().expect("a key"), pod(amount));
        act(&self.holder, Action::Transfer { to, amount }).await;
        act(client, Action::Stake { amount }).await;
        act(client, Action::Provision { role, amount }).await;
        // For bonds.
        act(&self.holder, Action::Transfer { to, amount: pod("5000") }).await;
    }

    fn advance(&self, seconds: u64) {
        self.chain.advance_time(seconds).expect("time passes");
        self.chain.mine().expect("a block");
    }

    async fn now(&self) -> u64 {
        self.holder.head().await.expect("a head").time
    }

    async fn epoch(&self) -> u32 {
        (self.now().await / EPOCH_S) as u32
    }

    async fn next_epoch(&self) {
        self.advance(EPOCH_S - self.now().await % EPOCH_S + 1);
    }

    /// Goes on to when the node posts in this epoch, or in the next if that is past.
    async fn to_window(&self) -> u32 {
        let window = posting::window(EPOCH_S, &self.me());
        let now = self.now().await % EPOCH_S;
        let wait = window.start + 60 + if now > window.start { EPOCH_S } else { 0 };
        self.advance(wait - now);
        self.epoch().await
    }

    fn me(&self) -> Address {
        key(3).address()
    }

    fn book(&self, plants: Rate) -> Arc<Book> {
        self.book_of(plants, OnceLock::from(Digest(self.hash.hash)))
    }

    fn book_of(&self, plants: Rate, model: OnceLock<Digest>) -> Arc<Book> {
        let config = BookConfig {
            directory: self.folder.path().join("book"),
            limit_bytes: 1 << 20,
            account: self.me(),
            model: Arc::new(model),
            quantisation: Quantisation::Q8,
            layers: 5,
            plants,
        };
        Arc::new(Book::open(config).expect("opens"))
    }

    fn config(&self, book: &Arc<Book>, ledger: &Arc<Client>) -> ClerkConfig {
        ClerkConfig {
            ledger: ledger.clone(),
            book: book.clone(),
            model: self.model.clone(),
            hash: Arc::new(OnceLock::from(self.hash.clone())),
            entry: None,
            threads: 1,
            poll: Duration::from_millis(20),
        }
    }

    fn start(&self, book: &Arc<Book>) -> (Clerk, mpsc::Receiver<Event>) {
        Clerk::start(self.config(book, &self.node), NODE)
    }

    /// Signs a short session of the first stage, whose rows are right or not.
    fn sign(&self, book: &Book, number: u64, right: bool) {
        let (model, salt) = (Digest(self.hash.hash), Digest([3; 32]));
        let stage =
            |from, to, embedding, head| PlannedStage { node: Digest([4; 32]), from, to, embedding, head };
        let prompt_hash = prompt_hash(&salt, &TOKENS[..1]);
        let plan = Plan {
            session: format!("{:016x}{number:016x}", now() * 1000 + 1000),
            gateway: Digest([1; 32]),
            terms: Terms { model, quantisation: Quantisation::Q8, salt, prompt_hash },
            prompt_length: 1,
            max_tokens: 10,
            stop_tokens: Vec::new(),
            sampling: Sampling::default(),
            stages: vec![stage(0, 2, true, false), stage(2, 5, false, true)],
        };
        let evidence = Evidence { plan: plan.clone(), stage: 0, entered: Entered::Tokens(TOKENS.to_vec()) };
        let cpu = Cpu::new(1, Isa::detect()).expect("a processor");
        let mut rows = replay(&evidence, &self.model, &model, &cpu, &|_| ()).expect("computes");
        if !right {
            rows[2][7] ^= 1;
        }
        let root = chunk_root(&token_leaves(&model, 0, &TOKENS));
        let tokens = TOKENS.iter().map(|token| Bytes::copy_from_slice(&token.to_le_bytes())).collect();
        book.note(Entry::Rows { model, root, rows: tokens });
        book.note(Entry::Signed(Box::new(Signed {
            hash: plan.hash(),
            stage: 0,
            tokens: true,
            to: 3,
            in_root: root,
            out_root: Digest(evidence.out_roots(&rows)[0]),
            commitment: plan.hash(),
            plan,
        })));
        book.flush();
    }

    async fn posted(&self, clerk: &Clerk, epoch: u32) {
        let mut status = clerk.status();
        let posted = status.wait_for(|status| status.posted == Some(epoch));
        tokio::time::timeout(Duration::from_secs(60), posted).await.expect("in time").expect("it runs");
    }

    async fn is_posted(&self, epoch: u32) -> bool {
        self.holder.audit_leaf(LeafId { account: self.me(), epoch, index: 0 }).await.is_ok()
    }

    /// Submits the round of an epoch, and has somebody call for a leaf of it.
    async fn draw(&self, epoch: u32, index: u32) -> [u8; 32] {
        let round = self.holder.audit_round(epoch).await.expect("a round");
        if round.randomness.is_none() {
            let due = u64::from(epoch + 1) * EPOCH_S + 120;
            self.advance(due.saturating_sub(self.now().await));
            let signature = self.secret.sign(round.round);
            done(&self.holder, AuditAction::SubmitRound { round: round.round, signature }).await;
        }
        let leaf = LeafId { account: self.me(), epoch, index };
        let events = done(&self.holder, AuditAction::Draw(leaf)).await;
        let [AuditEvent::LeafDrawn { case, .. }] = events[..] else { panic!("{events:?}") };
        case
    }

    async fn stage(&self, case: [u8; 32]) -> CaseStage {
        self.holder.audit_case(case).await.expect("an answer").expect("a case").stage
    }

    async fn reaches(&self, case: [u8; 32], stage: CaseStage) {
        until(async || (self.stage(case).await == stage).then_some(())).await;
    }

    /// Both auditors say that something else came out.
    async fn found_faulty(&self, book: &Book, case: [u8; 32], volume: u64, index: u32) {
        let chunk = book.leaf(volume, index).expect("a leaf").chunk;
        for turn in 0..2 {
            let assign = AuditAction::Assign { case, auditors: self.listed.clone() };
            let events = done(&self.holder, assign).await;
            let [AuditEvent::AuditorDrawn { auditor: Some(auditor), .. }] = events[..] else {
                panic!("{events:?}")
            };
            let client = self.auditors.iter().find(|client| client.account() == Some(auditor));
            let client = client.expect("one of the two");
            let answer = audit::answer(&case, &auditor, &FOUND, &SALT);
            done(client, AuditAction::Commit { case, answer }).await;
            if turn == 0 {
                done(client, AuditAction::Differ { case }).await;
            }
        }
        for client in &self.auditors {
            done(client, AuditAction::Reveal { case, chunk, roots: FOUND, salt: SALT }).await;
        }
    }

    async fn stake(&self) -> Pod {
        self.holder.stake(self.me(), NODE_ROLE, self.me()).await.expect("a stake").active
    }
}

/// Waits until a clerk that was stopped has let go of its book.
async fn closed(clerk: Clerk, book: Arc<Book>) {
    drop(clerk);
    let mut book = Some(book);
    until(async || match Arc::try_unwrap(book.take()?) {
        Ok(_) => Some(()),
        Err(held) => {
            book = Some(held);
            None
        }
    })
    .await;
}

/// The operator restarts after each step.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_signed_is_posted_and_opened() {
    let scene = Scene::new().await;
    let book = scene.book(NEVER);
    let (clerk, _events) = scene.start(&book);
    // Nothing is posted while there is nothing.
    let empty = scene.to_window().await;
    scene.next_epoch().await;
    (1..4).for_each(|number| scene.sign(&book, number, true));
    assert!(!scene.is_posted(empty).await);
    let epoch = scene.to_window().await;
    scene.posted(&clerk, epoch).await;
    assert_eq!(clerk.status().borrow().committed, 3);
    closed(clerk, book).await;

    // What another process posted is opened by the next, and what comes later is posted in the next epoch.
    let case = scene.draw(epoch, 1).await;
    let book = scene.book(NEVER);
    scene.sign(&book, 4, true);
    let (clerk, _events) = scene.start(&book);
    scene.reaches(case, CaseStage::Drawing).await;
    let next = scene.to_window().await;
    scene.posted(&clerk, next).await;
    let all = [scene.draw(epoch, 0).await, scene.draw(epoch, 2).await, scene.draw(next, 0).await];
    for case in all {
        scene.reaches(case, CaseStage::Drawing).await;
    }
    // What is over goes: once nothing can be drawn any more, and every case has come to its end.
    for case in all.into_iter().chain([case]) {
        scene.advance(5 * EPOCH_S);
        done(&scene.holder, AuditAction::TimeOut { case }).await;
    }
    let mut status = clerk.status();
    status.wait_for(|status| status.committed == 0).await.expect("it runs");
    until(async || (book.sealed().len() == 1).then_some(())).await;
    assert_eq!(scene.stake().await, pod("10000"));
    closed(clerk, book).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_that_nobody_heard_of_are_found_and_never_posted_twice() {
    let scene = Scene::new().await;
    let book = scene.book(NEVER);
    // Ended after the root was handed over, and before anything was heard of it: once it arrived, once not.
    let mut sealed = Vec::new();
    for number in 1..3 {
        scene.sign(&book, number, true);
        let volume = book.seal().expect("is written").expect("has a leaf");
        let cursor = Some(Cursor::from_block(scene.holder.head().await.expect("a head").block));
        book.set(Sealed { standing: Standing::Sent, cursor, ..volume.clone() }).expect("is written");
        sealed.push(volume);
    }
    let epoch = scene.epoch().await;
    let Sealed { root, count, prompts, .. } = sealed[0].clone();
    done(&scene.node, AuditAction::Post { root: root.0, count, prompts }).await;
    scene.sign(&book, 3, true);
    let (clerk, _events) = scene.start(&book);
    scene.posted(&clerk, epoch).await;
    scene.next_epoch().await;
    let later = scene.to_window().await;
    scene.posted(&clerk, later).await;
    let lost = sealed[1].volume;
    assert!(book.sealed().iter().any(|sealed| (sealed.volume, sealed.standing) == (lost, Standing::Sent)));
    assert_eq!(clerk.status().borrow().committed, 2);
    for epoch in [epoch, later] {
        let case = scene.draw(epoch, 0).await;
        scene.reaches(case, CaseStage::Drawing).await;
    }
    closed(clerk, book).await;
}

/// The line is down over the whole of an epoch's time to post.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_was_away_is_caught_up_with() {
    let scene = Scene::new().await;
    let book = scene.book(NEVER);
    scene.sign(&book, 1, true);
    let open = async |at: SocketAddr| -> Server {
        until(async || serve(scene.chain.clone(), at, false).await.ok()).await
    };
    let server = open(([127, 0, 0, 1], 0).into()).await;
    let url = server.url();
    let at: SocketAddr = url.trim_start_matches("http://").parse().expect("an address");
    let config = Config {
        timeout: Duration::from_secs(2),
        patience: Duration::from_millis(200),
        confirmations: 1,
        ..quick(Config::new(url))
    };
    let client = Client::connect(config, scene.deployment.clone(), Some(key(3))).await.expect("a client");
    let (clerk, _events) = Clerk::start(scene.config(&book, &Arc::new(client)), NODE);
    until(async || (clerk.status().borrow().waiting == 1).then_some(())).await;
    drop(server);
    let away = scene.to_window().await;
    scene.next_epoch().await;
    assert!(!scene.is_posted(away).await);
    let _server = open(at).await;
    let epoch = scene.to_window().await;
    scene.posted(&clerk, epoch).await;
    let case = scene.draw(epoch, 0).await;
    scene.reaches(case, CaseStage::Drawing).await;
    closed(clerk, book).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_changes_the_epoch_and_nothing_else() {
    let scene = Scene::new().await;
    let book = scene.book(NEVER);
    scene.sign(&book, 1, true);
    let (clerk, _events) = scene.start(&book);
    let snapshot = scene.chain.request("evm_snapshot", &json!([])).expect("a snapshot");
    let epoch = scene.to_window().await;
    scene.posted(&clerk, epoch).await;
    scene.chain.request("evm_revert", &json!([snapshot])).expect("goes back");
    assert!(!scene.is_posted(epoch).await);
    scene.advance(2 * EPOCH_S);
    // The sender sees that it is gone, and sends it again.
    let again = until(async || {
        scene.chain.mine().expect("a block");
        let epoch = scene.epoch().await;
        for epoch in epoch - 2..=epoch {
            if scene.is_posted(epoch).await {
                return Some(epoch);
            }
        }
        None
    })
    .await;
    scene.posted(&clerk, again).await;
    let case = scene.draw(again, 0).await;
    scene.reaches(case, CaseStage::Drawing).await;
    closed(clerk, book).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_verdict_is_disputed_and_the_stake_is_kept() {
    let scene = Scene::new().await;
    let book = scene.book(NEVER);
    scene.sign(&book, 1, true);
    let (clerk, _events) = scene.start(&book);
    let epoch = scene.to_window().await;
    scene.posted(&clerk, epoch).await;
    let case = scene.draw(epoch, 0).await;
    scene.reaches(case, CaseStage::Drawing).await;
    scene.found_faulty(&book, case, 0, 0).await;
    scene.reaches(case, CaseStage::Matching).await;
    let bond = scene.node.audit_terms().await.expect("terms").dispute_bond;
    let chunk = book.leaf(0, 0).expect("a leaf").chunk;
    done(&scene.auditors[0], AuditAction::MatchBond { case, chunk, bond }).await;
    // The clerk commits to its trace; the auditor has nothing to say to that.
    until(async || {
        let dispute = scene.holder.dispute(case).await.expect("an answer");
        dispute.filter(|dispute| dispute.turn.party() == Party::Accuser)
    })
    .await;
    scene.advance(8 * 86_400);
    scene.reaches(case, CaseStage::Closed).await;
    let verdict = scene.holder.audit_case(case).await.expect("an answer").expect("a case").verdict;
    assert_eq!(verdict, Some(CaseVerdict::Passed));
    assert_eq!(scene.stake().await, pod("10000"));
    let held = until(async || {
        let held = scene.holder.balances(scene.me()).await.expect("balances").pod;
        (held >= pod("5000")).then_some(held)
    })
    .await;
    assert_eq!(held, pod("5500"), "its bond and half of the other");
    closed(clerk, book).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_computed_wrong_disputes_nothing_and_stops() {
    let scene = Scene::new().await;
    let book = scene.book(NEVER);
    scene.sign(&book, 1, false);
    scene.sign(&book, 2, true);
    let (clerk, mut events) = scene.start(&book);
    let epoch = scene.to_window().await;
    scene.posted(&clerk, epoch).await;
    let case = scene.draw(epoch, 0).await;
    scene.reaches(case, CaseStage::Drawing).await;
    scene.found_faulty(&book, case, 0, 0).await;
    let event = tokio::time::timeout(Duration::from_secs(60), events.recv()).await.expect("in time");
    assert!(matches!(event, Some(Event::Faulty(_))), "{event:?}");
    assert_eq!(scene.stage(case).await, CaseStage::Deciding);
    // It goes on to open what is drawn.
    let other = scene.draw(epoch, 1).await;
    scene.reaches(other, CaseStage::Drawing).await;
    let config = scene.config(&book, &scene.node);
    assert_eq!(book.suspect(), Some((0, 0)));
    assert!(matches!(cleared(&config).await, Err(SelfTestError::Differs)));
    drop(config);
    closed(clerk, book).await;
    // Once it computes the same right, it may serve again.
    let book = scene.book(NEVER);
    assert_eq!(book.suspect(), Some((0, 0)));
    book.set_suspect(Some((0, 1))).expect("is written");
    cleared(&scene.config(&book, &scene.node)).await.expect("passes");
    assert_eq!(book.suspect(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planted_fault_is_shown() {
    let scene = Scene::new().await;
    let book = scene.book(ALWAYS);
    scene.sign(&book, 1, true);
    let (clerk, _events) = scene.start(&book);
    let epoch = scene.to_window().await;
    scene.posted(&clerk, epoch).await;
    let case = scene.draw(epoch, 0).await;
    scene.reaches(case, CaseStage::Drawing).await;
    scene.found_faulty(&book, case, 0, 0).await;
    scene.reaches(case, CaseStage::Closed).await;
    let found = scene.holder.audit_case(case).await.expect("an answer").expect("a case");
    assert_eq!(found.verdict, Some(CaseVerdict::Planted));
    assert_eq!(scene.stake().await, pod("10000"));
    closed(clerk, book).await;
}

/// Auditors have nothing to compute with, and would say that they got nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_the_chain_does_not_know_is_not_committed_to() {
    let scene = Scene::new().await;
    let before = scene.book(NEVER);
    scene.sign(&before, 1, true);
    drop(before);
    let book = scene.book_of(NEVER, OnceLock::new());
    let (clerk, _events) = scene.start(&book);
    // What is in the book is posted; by then the chain was asked.
    let epoch = scene.to_window().await;
    scene.posted(&clerk, epoch).await;
    scene.sign(&book, 2, true);
    assert_eq!((book.model(), book.waiting()), (None, 0));
    closed(clerk, book).await;
}

#[test]
fn roots_are_posted_late_and_well_before_the_end() {
    for epoch_s in [60, 3600, 86_400] {
        for first in [0, 1, 77, 255] {
            let window = window_of(epoch_s, first);
            assert!(window.start >= epoch_s / 2 && window.start < epoch_s * 3 / 4);
            assert!(window.end > window.start && window.end < epoch_s);
        }
    }
}

fn window_of(epoch_s: u64, first: u8) -> std::ops::Range<u64> {
    posting::window(epoch_s, &[first; 20])
}
