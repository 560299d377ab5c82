//! Attacks from end to end: sessions over nodes that really cheat, whose books are committed to on a chain, audited by
//! auditors at work, and disputed. The table is that of `docs/attacks.md`.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt};
use kernels::cpu::{Cpu, Isa};
use ledger::{
    audit::{Chunk, LeafId, Tree},
    client::{
        AUDITOR_ROLE, Action, AuditAction, AuditEvent, CaseStage, CaseVerdict, Client, Cursor, Event, Ledger,
        NODE_ROLE, NodeEntry, Pod,
    },
    draw::Rate,
    eip712::Address,
    node::binding_digest,
};
use tokio::task::JoinHandle;
use transport::{Identity, NodeId};

use super::{
    book::{Book, BookConfig},
    clerk::{Clerk, ClerkConfig, Event as Told},
    court::{Court, Outcome, play},
    drand::Drand,
    evidence::Evidence,
    plan::Digest,
    scene::{AUDITORS, NODE, Scene, act, done, key, pod},
    show::FetchError,
    tests::{Ways, World, doctored, open, request},
    watch::{Budget, Desk, EvidenceSource, Host, Tools, Wanted, Watch, WatchConfig, Worker},
};
use crate::{
    device::Device,
    message::Hidden,
    model::{Model, ModelHash, Quantisation, tests::golden},
    node::worker::cheat::Cheat,
};

const EPOCH_S: u64 = 3600;
/// Between two looks at anything.
const POLL: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(180);
/// Accounts of cheats, one after another.
const FIRST: u8 = 6;

/// Looks again and again until something is there.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{what} does not come"))
}

/// Books by account, which hand out what was opened.
#[derive(Default)]
struct Books(Mutex<HashMap<Address, Arc<Book>>>);

impl EvidenceSource for Books {
    fn fetch(&self, wanted: Wanted, _: Host) -> BoxFuture<'_, Result<Evidence, FetchError>> {
        let book = self.0.lock().expect("whole").get(&wanted.account).cloned();
        let found = book.and_then(|book| {
            let places = book
                .sealed()
                .into_iter()
                .flat_map(|sealed| (0..sealed.count).map(move |index| (sealed.volume, index)));
            let is_wanted = |(volume, index): &(u64, u32)| {
                book.leaf(*volume, *index).is_some_and(|held| held.chunk == wanted.chunk)
            };
            let (volume, index) = places.into_iter().find(is_wanted)?;
            book.evidence(volume, index).ok()
        });
        futures::future::ready(found.ok_or(FetchError::Refused(Hidden::NotDrawn))).boxed()
    }
}

/// A node's account, with its book and its clerk.
struct Operator {
    client: Arc<Client>,
    account: Address,
    book: Arc<Book>,
    clerk: Option<(Clerk, tokio::sync::mpsc::Receiver<Told>)>,
}

/// The chain, auditors at work on it, and the model that is served.
struct Arena {
    scene: Scene,
    model: Arc<Model>,
    hash: Arc<ModelHash>,
    books: Arc<Books>,
    folder: tempfile::TempDir,
    working: Vec<JoinHandle<()>>,
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.working.iter().for_each(JoinHandle::abort);
    }
}

impl Arena {
    async fn new() -> Self {
        let scene = Scene::new().await;
        let model = open("llama");
        let hash = Arc::new(model.hash(Quantisation::Q8, &|_| ()).expect("hashes"));
        let folder = tempfile::tempdir().expect("a directory");
        let mut arena = Self { scene, model, hash, books: Arc::default(), folder, working: Vec::new() };
        for number in AUDITORS {
            let client = arena.scene.client(number).await;
            arena.scene.staked(&client, AUDITOR_ROLE, "50000").await;
            let watching = arena.auditor(number).await;
            arena.working.push(watching);
        }
        arena
    }

    /// An auditor at work.
    async fn auditor(&self, number: u8) -> JoinHandle<()> {
        let ledger: Arc<dyn Ledger> = self.scene.client(number).await;
        let network = ledger.beacon().await.expect("a beacon");
        let budget = Budget { at_once: 1, positions: 256, memory: 64 << 20 };
        let device = Device::Cpu(Cpu::new(1, Isa::detect()).expect("a processor"));
        let worker = Worker::new(self.model.clone(), Quantisation::Q8, self.hash.clone(), device, budget);
        let tools = Tools {
            ledger,
            key: key(number),
            drand: Arc::new(Drand::new(&[self.scene.url()], network).expect("a beacon")),
            source: self.books.clone(),
            worker: Arc::new(worker),
            desk: Desk::open(&self.folder.path().join(format!("auditor{number}"))).expect("a directory"),
        };
        let config =
            WatchConfig { every: POLL, stagger: Duration::ZERO, join: true, ..WatchConfig::default() };
        let (mut watch, mut reports) = Watch::start(tools, config).await.expect("starts");
        tokio::spawn(async move {
            let printing = async { while reports.recv().await.is_some() {} };
            tokio::join!(watch.run(), printing);
        })
    }

    /// An operator with stake and an empty book.
    async fn operator(&self, number: u8) -> Operator {
        let client = self.scene.client(number).await;
        self.scene.staked(&client, NODE_ROLE, "10000").await;
        let account = key(number).address();
        let config = BookConfig {
            directory: self.folder.path().join(format!("node{number}")),
            limit_bytes: 64 << 20,
            account,
            model: Arc::new(OnceLock::from(Digest(self.hash.hash))),
            quantisation: Quantisation::Q8,
            layers: self.model.config().layers,
            plants: Rate::from_bits(0),
        };
        let book = Arc::new(Book::open(config).expect("opens"));
        self.books.0.lock().expect("whole").insert(account, book.clone());
        let identity = Identity::from_secret([100 + number; 32]);
        let id = *identity.id().as_bytes();
        let proof = identity.sign(&binding_digest(&self.scene.deployment.nodes_domain(), &id, &account));
        let entry = NodeEntry { node: id, roles: 1, metadata: [0; 32], endpoint: "here".into(), proof };
        act(&client, Action::RegisterNode(Box::new(entry))).await;
        Operator { client, account, book, clerk: None }
    }

    fn employ(&self, operator: &mut Operator) {
        let config = ClerkConfig {
            ledger: operator.client.clone(),
            book: operator.book.clone(),
            model: self.model.clone(),
            hash: Arc::new(OnceLock::from(self.hash.clone())),
            entry: None,
            threads: 1,
            poll: POLL,
        };
        operator.clerk = Some(Clerk::start(config, NodeId([9; 32])));
    }

    /// A session over three nodes, each with the ways that are given.
    async fn session(&self, prompt: usize, reply: u32, ways: [Ways; 3]) {
        let session = async move {
            let world = World::new("llama", false);
            let nodes = world.nodes(ways).await;
            world.receipt(request(1, prompt, reply)).await;
            world.stop(nodes).await;
        };
        // How a node cheats is told to the thread that starts it.
        let alone = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(session);
        };
        tokio::task::spawn_blocking(alone).await.expect("answers");
    }

    async fn time(&self) -> u64 {
        self.scene.holder.head().await.expect("a head").time
    }

    /// Goes on to an epoch whose auditors were listed in the one before.
    async fn listed(&self) {
        let mut cursor = Cursor::from_block(self.scene.deployment.block);
        self.scene.next_epoch(EPOCH_S).await;
        let now = self.time().await / EPOCH_S;
        until("a list of both", async || {
            let news = self.scene.holder.events(&cursor).await.expect("events");
            cursor = news.cursor;
            let is_listed = |event: &Event| {
                matches!(event, Event::Audit(AuditEvent::AuditorsListed { epoch, auditors })
                    if *epoch == now && auditors.len() == AUDITORS.len())
            };
            news.events.iter().any(|logged| is_listed(&logged.event)).then_some(())
        })
        .await;
        self.scene.next_epoch(EPOCH_S).await;
    }

    /// Lets the epoch pass in which all clerks post, and has its leaves drawn. The cases of each operator.
    async fn drawn(&self, operators: &[Operator]) -> Vec<Vec<[u8; 32]>> {
        let epoch = (self.time().await / EPOCH_S) as u32;
        let is_posted = |operator: &Operator| {
            operator.clerk.as_ref().is_none_or(|(clerk, _)| clerk.status().borrow().posted == Some(epoch))
        };
        until("all roots", async || {
            if self.time().await % EPOCH_S < 3200 {
                self.scene.advance(60);
            }
            operators.iter().all(is_posted).then_some(())
        })
        .await;
        self.scene.next_epoch(EPOCH_S).await;
        self.scene.advance(120);
        let mut cases = Vec::new();
        for operator in operators {
            let count = operator.book.sealed().iter().map(|sealed| sealed.count).sum();
            let mut own = Vec::new();
            for index in 0..count {
                let leaf = LeafId { account: operator.account, epoch, index };
                own.push(self.scene.holder.audit_leaf(leaf).await.expect("a leaf").case);
            }
            cases.push(own);
        }
        cases
    }

    async fn verdict(&self, case: [u8; 32], stages: &[CaseStage]) -> CaseVerdict {
        until("a verdict", async || {
            let found = self.scene.holder.audit_case(case).await.expect("an answer")?;
            found.verdict.filter(|_| stages.contains(&found.stage))
        })
        .await
    }

    /// Verdicts of cases, once they are final or can be disputed.
    async fn verdicts(&self, cases: &[[u8; 32]]) -> Vec<CaseVerdict> {
        let mut verdicts = Vec::new();
        for case in cases {
            verdicts.push(self.verdict(*case, &[CaseStage::Deciding, CaseStage::Closed]).await);
        }
        verdicts
    }

    async fn stake(&self, account: Address, role: u32) -> Pod {
        let stake = self.scene.holder.stake(account, role, account).await.expect("a stake");
        Pod(stake.active.0 + stake.thawing.0)
    }
}

/// A model that lacks what one layer adds.
fn without(layer: usize, folder: &Path) -> Arc<Model> {
    let name = format!("model.layers.{layer}.");
    doctored("llama", folder, |tensor, values| {
        if tensor.starts_with(&name) && (tensor.contains("o_proj") || tensor.contains("down_proj")) {
            values.fill(0.0);
        }
    })
}

/// A model that looks back no further than sixteen positions.
fn shortsighted(folder: &Path) -> Arc<Model> {
    let from = golden("llama");
    fs::copy(from.join("model.safetensors"), folder.join("model.safetensors")).expect("copied");
    let text = fs::read_to_string(from.join("config.json")).expect("read");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    config["model_type"] = "mistral".into();
    config["architectures"] = serde_json::json!(["MistralForCausalLM"]);
    config["sliding_window"] = 16.into();
    fs::write(folder.join("config.json"), config.to_string()).expect("written");
    Arc::new(Model::open(folder).expect("opens"))
}

/// What a node does wrong, at which stage, and how many of its three leaves show it.
fn wrongs(folder: &Path) -> Vec<(&'static str, usize, usize, Ways)> {
    let place = |name: &str| {
        let path = folder.join(name);
        fs::create_dir(&path).expect("a directory");
        path
    };
    let other = doctored("llama", &place("other"), |name, values| {
        if name == "model.layers.3.mlp.down_proj.weight" {
            values.iter_mut().for_each(|value| *value *= 1.05);
        }
    });
    let held = |model, quantisation| Ways { weights: Some((model, quantisation)), ..Ways::default() };
    let cheat = |cheat| Ways { cheat: Some(cheat), ..Ways::default() };
    vec![
        ("other weights", 1, 3, held(other, Quantisation::Q8)),
        ("q4 for q8", 1, 3, held(open("llama"), Quantisation::Q4)),
        ("a layer left out", 1, 3, held(without(2, &place("skip")), Quantisation::Q8)),
        ("early exit", 1, 3, held(without(3, &place("exit")), Quantisation::Q8)),
        ("keys and values cut short", 1, 3, held(shortsighted(&place("short")), Quantisation::Q8)),
        ("stale keys and values", 1, 2, cheat(Cheat::Stale { position: 70 })),
        ("an edited prompt", 0, 2, cheat(Cheat::Edit { position: 80, token: 3 })),
        ("one fault", 1, 1, cheat(Cheat::Stale { position: 133 })),
    ]
}

/// What is left of a node's stake after so many mismatches of one month.
fn left(strikes: usize) -> Pod {
    let taken = [0, 10, 20];
    let stake = (0..strikes).fold(10_000, |stake: u128, strike| stake - stake * taken[strike.min(2)] / 100);
    Pod(stake * 10u128.pow(18))
}

/// Nodes that compute something else are found by whoever is drawn, and lose what they staked; a single fault costs
/// its pay, and honest nodes and auditors lose nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_computes_something_else_is_found() {
    let arena = Arena::new().await;
    let folder = tempfile::tempdir().expect("a directory");
    let mut operators = Vec::new();
    let mut expected = Vec::new();
    let (honest, wrongs) = (arena.operator(NODE).await, wrongs(folder.path()));
    for (number, (name, place, found, way)) in (FIRST..).zip(wrongs) {
        let operator = arena.operator(number).await;
        let mut ways = [Ways::default(), Ways::default(), Ways::default()];
        ways[place] = Ways { book: Some(operator.book.clone()), ..way };
        if expected.is_empty() {
            ways[2].book = Some(honest.book.clone());
        }
        // What is left stale is seen in replies, what is edited is a prompt.
        let prompt = if name.contains("prompt") { 100 } else { 20 };
        arena.session(prompt, 140 - prompt as u32, ways).await;
        operator.book.flush();
        assert_eq!(operator.book.waiting(), 3, "{name}");
        operators.push(operator);
        expected.push((name, found));
    }
    honest.book.flush();
    operators.push(honest);
    expected.push(("nothing", 0));
    arena.listed().await;
    operators.iter_mut().for_each(|operator| arena.employ(operator));
    let cases = arena.drawn(&operators).await;
    for ((name, found), cases) in expected.iter().zip(&cases) {
        let mut verdicts = arena.verdicts(cases).await;
        verdicts.sort_by_key(|verdict| *verdict == CaseVerdict::Faulty);
        let right = vec![CaseVerdict::Passed; cases.len() - found];
        assert_eq!(verdicts, [right, vec![CaseVerdict::Faulty; *found]].concat(), "{name}");
    }
    // None of them can say that it was right: what it finds when it tests itself ends its service.
    for ((name, found), operator) in expected.iter().zip(&mut operators) {
        let (_, told) = operator.clerk.as_mut().expect("at work");
        if *found > 0 {
            let event = tokio::time::timeout(PATIENCE, told.recv()).await.expect("in time");
            assert!(matches!(event, Some(Told::Faulty(_))), "{name}: {event:?}");
        }
    }
    arena.scene.advance(86_401);
    for ((name, found), (operator, cases)) in expected.iter().zip(operators.iter().zip(&cases)) {
        for case in cases {
            arena.verdict(*case, &[CaseStage::Closed]).await;
        }
        let stake = arena.stake(operator.account, NODE_ROLE).await;
        println!("{name:<26} {found} of {} leaves faulty, {stake} POD of 10000 left", cases.len());
        assert_eq!(stake, left(*found), "{name}");
    }
    for number in AUDITORS {
        assert_eq!(arena.stake(key(number).address(), AUDITOR_ROLE).await, pod("50000"));
    }
}

/// A cheat stands by what it sent: it puts up a bond and plays, and the auditor that takes it up shows the word
/// that does not follow.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_insists_loses_the_dispute() {
    let arena = Arena::new().await;
    let folder = tempfile::tempdir().expect("a directory");
    let operator = arena.operator(NODE).await;
    let model = without(3, folder.path());
    let weights = Some((model.clone(), Quantisation::Q8));
    let ways = Ways { weights, book: Some(operator.book.clone()), ..Ways::default() };
    arena.session(5, 3, [Ways::default(), ways, Ways::default()]).await;
    operator.book.flush();
    arena.listed().await;
    let (tree, chunk) = sealed(&operator.book);
    let epoch = (arena.time().await / EPOCH_S) as u32;
    let post = AuditAction::Post { root: tree.root(), count: 1, prompts: 1 };
    done(&operator.client, post).await;
    let operators = [operator];
    let case = arena.drawn(&operators).await[0][0];
    let [operator] = operators;
    let is_drawn = async || arena.scene.holder.audit_case(case).await.expect("an answer").map(drop);
    until("the draw", is_drawn).await;
    opens(&operator, &tree, LeafId { account: operator.account, epoch, index: 0 }, chunk).await;
    assert_eq!(arena.verdict(case, &[CaseStage::Deciding]).await, CaseVerdict::Faulty);
    let bond = operator.client.audit_terms().await.expect("terms").dispute_bond;
    done(&operator.client, AuditAction::Dispute { case, bond }).await;
    until("who takes it up", async || arena.scene.holder.dispute(case).await.expect("an answer").map(drop))
        .await;
    let evidence = operator.book.evidence(operator.book.sealed()[0].volume, 0).expect("kept");
    let court = Court { ledger: operator.client.clone(), model, hash: arena.hash.clone(), poll: POLL };
    let outcome = play(&court, case, evidence).await.expect("is played");
    assert_eq!(outcome, Outcome::Lost { silence: false });
    assert_eq!(arena.verdict(case, &[CaseStage::Closed]).await, CaseVerdict::Faulty);
    assert_eq!(arena.stake(operator.account, NODE_ROLE).await, pod("8000"));
    let held = arena.scene.holder.balances(operator.account).await.expect("balances").pod;
    assert_eq!(held, pod("9000"), "its bond is gone");
    for number in AUDITORS {
        assert_eq!(arena.stake(key(number).address(), AUDITOR_ROLE).await, pod("50000"));
    }
}

/// One commitment stands for two chunks, of which the second cannot be opened: that is silence after the draw.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_commits_twice_to_one_chunk_cannot_open_it_twice() {
    let arena = Arena::new().await;
    let operator = arena.operator(NODE).await;
    let ways = Ways { book: Some(operator.book.clone()), ..Ways::default() };
    arena.session(5, 3, [Ways::default(), ways, Ways::default()]).await;
    operator.book.flush();
    arena.listed().await;
    let (_, chunk) = sealed(&operator.book);
    let tree = Tree::new(vec![chunk.leaf(&operator.account); 2]).expect("leaves");
    let epoch = (arena.time().await / EPOCH_S) as u32;
    done(&operator.client, AuditAction::Post { root: tree.root(), count: 2, prompts: 2 }).await;
    arena.scene.next_epoch(EPOCH_S).await;
    arena.scene.advance(120);
    let leaf = |index| LeafId { account: operator.account, epoch, index };
    let case = async |index| arena.scene.holder.audit_leaf(leaf(index)).await.expect("a leaf").case;
    let (once, twice) = (case(0).await, case(1).await);
    until("both draws", async || arena.scene.holder.audit_case(twice).await.expect("an answer").map(drop))
        .await;
    opens(&operator, &tree, leaf(0), chunk).await;
    assert_eq!(arena.verdict(once, &[CaseStage::Closed]).await, CaseVerdict::Passed);
    let proof = tree.proof(1).expect("a leaf");
    let again = Action::Audit(Box::new(AuditAction::Open { leaf: leaf(1), chunk, proof }));
    let error = operator.client.submit(again).await.expect_err("is refused");
    assert!(error.is("Replayed"), "{error}");
    arena.scene.advance(21_601);
    assert_eq!(arena.verdict(twice, &[CaseStage::Closed]).await, CaseVerdict::Silent);
    assert_eq!(arena.stake(operator.account, NODE_ROLE).await, pod("9000"));
}

/// Seals a book of one leaf.
fn sealed(book: &Book) -> (Tree, Chunk) {
    let volume = book.seal().expect("is sealed").expect("something").volume;
    (book.tree(volume).expect("leaves"), book.leaf(volume, 0).expect("a leaf").chunk)
}

async fn opens(operator: &Operator, tree: &Tree, leaf: LeafId, chunk: Chunk) {
    let proof = tree.proof(leaf.index as usize).expect("a leaf");
    done(&operator.client, AuditAction::Open { leaf, chunk, proof }).await;
}
