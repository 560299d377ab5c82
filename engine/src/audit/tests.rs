//! Swarms whose nodes are honest, and such with one that really cheats: what receipts prove of them.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::future::join_all;
use kernels::{
    backend::KvShape,
    cpu::{Cpu, Isa},
};
use ledger::audit::{roots, seal};
use proptest::prelude::*;
use transport::{Identity, Limits, Transport, sim::Network};

use super::{
    book::{Book, BookConfig},
    commitment::Signer,
    draw::Rate,
    evidence::{Evidence, replay},
    plan::Digest,
    receipt::Receipt,
    recorder::Audit,
    store::{ReceiptStore, StoreLimits},
    verify::{Finding, Problem, Verdict, verify},
};
use crate::{
    device::Device,
    front::planned,
    local::{StageBudget, load_stage},
    message::{Offer, Priority},
    model::{Model, Quantisation, Shard, tests::golden},
    node::{
        GatewayAddress, Node, NodeConfig,
        worker::cheat::{self, Cheat},
    },
    on_device,
    request::{Event, Request, Sampling, Submitter},
    swarm::{Receipts, Swarm, SwarmConfig, SwarmStatus},
};

const BUDGET: StageBudget =
    StageBudget { rows: 32, chunk: 16, sessions: 64, context: 256, kv_bytes: 64 << 20 };
const CUTS: [usize; 3] = [0, 2, 4];

/// How a node differs from an honest one on the processor.
#[derive(Default)]
pub(super) struct Ways {
    /// Whose weights it computes with, and how they are held.
    pub(super) weights: Option<(Arc<Model>, Quantisation)>,
    pub(super) cheat: Option<Cheat>,
    /// KV pages, if they are few.
    pub(super) pages: Option<usize>,
    pub(super) device: Option<Device>,
    pub(super) book: Option<Arc<Book>>,
    pub(super) unsigned: bool,
}

pub(super) struct World {
    network: Network,
    model: Arc<Model>,
    hash: Digest,
    store: Arc<ReceiptStore>,
    swarm: Swarm,
    submitter: Submitter,
    gateway: GatewayAddress,
}

fn identity(seed: u8) -> Identity {
    Identity::from_secret([seed; 32])
}

fn cpu() -> Cpu {
    Cpu::new(1, Isa::detect()).expect("a processor")
}

pub(super) fn open(name: &str) -> Arc<Model> {
    Arc::new(Model::open(&golden(name)).expect("opens"))
}

fn hash_of(model: &Model) -> Digest {
    Digest(model.hash(Quantisation::Q8, &|_| ()).expect("hashes").hash)
}

impl World {
    pub(super) fn new(name: &str, speculation: bool) -> Self {
        let model = open(name);
        let (network, hash) = (Network::new(7), hash_of(&model));
        let endpoint = network.endpoint(&identity(200), Limits::default()).expect("an endpoint");
        let gateway = GatewayAddress { id: endpoint.id(), address: endpoint.local_address().to_string() };
        let store = Arc::new(ReceiptStore::new(StoreLimits::default()));
        let receipts = Receipts {
            model_name: name.to_owned(),
            quantisation: Quantisation::Q8,
            model: Arc::new(OnceLock::from(hash)),
            store: store.clone(),
        };
        let config = SwarmConfig {
            fingerprint: model.fingerprint(Quantisation::Q8),
            model: planned(&model, Quantisation::Q8, false).expect("a shape"),
            positions: 256,
            relay_bytes_per_s: None,
            running: 64,
            waiting: 256,
            allow: None,
            private_ends: None,
            speculation,
            payer: None,
            replan: true,
            weights: None,
            receipts: Some(receipts),
        };
        let (submitter, submissions) = Submitter::channel(512);
        let swarm =
            Swarm::start(identity(200), Arc::new(endpoint), config, None, submissions).expect("starts");
        Self { network, model, hash, store, swarm, submitter, gateway }
    }

    fn book(&self, directory: &Path) -> Arc<Book> {
        let config = BookConfig {
            directory: directory.to_owned(),
            limit_bytes: 1 << 30,
            account: [7; 20],
            model: Arc::new(OnceLock::from(self.hash)),
            quantisation: Quantisation::Q8,
            layers: self.model.config().layers,
            plants: Rate::from_bits(0),
        };
        Arc::new(Book::open(config).expect("opens"))
    }

    fn node(&self, seed: u8, shard: Shard, ways: Ways) -> Node {
        let endpoint = self.network.endpoint(&identity(seed), Limits::default()).expect("an endpoint");
        let (weights, quantisation) = ways.weights.unwrap_or_else(|| (self.model.clone(), Quantisation::Q8));
        let config = self.model.config();
        let (layers, kv_heads, head_dim) = (shard.layers.len(), config.kv_heads, config.head_dim);
        let shape = KvShape { layers, pages: 1, kv_heads, head_dim, profile: quantisation.profile() };
        let kv_bytes = ways.pages.map_or(BUDGET.kv_bytes, |pages| (pages * shape.page_bytes()) as u64);
        let budget = StageBudget { kv_bytes, ..BUDGET };
        let audit = Audit { signer: Signer::new(identity(seed)), book: ways.book };
        let node = NodeConfig {
            gateways: vec![self.gateway.clone()],
            advertise: endpoint.local_address().to_string(),
            // A cheat says what it should have loaded.
            fingerprint: self.model.fingerprint(Quantisation::Q8),
            chunk: BUDGET.chunk,
            weight_bytes: 1,
            device: "a test".into(),
            offer: Offer::default(),
            loader: None,
            audit: (!ways.unsigned).then_some(audit),
            clerk: None,
            weights: None,
            stock: None,
            payee: None,
        };
        cheat::next(ways.cheat);
        on_device!(ways.device.unwrap_or(Device::Cpu(cpu())), backend => {
            let stage = load_stage(&weights, &shard, quantisation, &budget, backend, &|_| ()).expect("loads");
            Node::start(stage, Arc::new(endpoint), node).expect("starts")
        })
    }

    /// Three nodes, one of which is different.
    async fn pipeline(&self, different: usize, ways: Ways) -> Vec<Node> {
        let mut all = [Ways::default(), Ways::default(), Ways::default()];
        if let Some(place) = all.get_mut(different) {
            *place = ways;
        }
        self.nodes(all).await
    }

    /// Three nodes, with the ways of each.
    pub(super) async fn nodes(&self, ways: [Ways; 3]) -> Vec<Node> {
        let layers = self.model.config().layers;
        let nodes = ways.into_iter().zip(CUTS).enumerate().map(|(index, (ways, from))| {
            let to = CUTS.get(index + 1).copied().unwrap_or(layers);
            let shard = Shard { layers: from..to, embedding: index == 0, head: to == layers };
            self.node(index as u8 + 1, shard, ways)
        });
        let nodes = nodes.collect();
        self.swarm.status().wait_for(SwarmStatus::ready).await.expect("serves");
        nodes
    }

    pub(super) async fn receipt(&self, request: Request) -> (Vec<u32>, Receipt) {
        let mut generation = self.submitter.submit(request).await.expect("is taken");
        let id = generation.receipt.take().expect("a receipt is promised");
        let mut tokens = Vec::new();
        while let Some(event) = generation.events.recv().await {
            match event {
                Event::Token { token, .. } => tokens.push(token),
                Event::Finished(_) => break,
                Event::Failed(failure) => panic!("{failure}"),
            }
        }
        let patience = Duration::from_secs(60);
        let text = self.store.get(&id.to_string(), 0, patience).await.expect("the receipt comes");
        (tokens, Receipt::read(text.as_bytes()).expect("a receipt"))
    }

    fn verify(&self, receipt: &Receipt) -> Verdict {
        verify(receipt, &self.model, &self.hash, &cpu(), &|_| ()).expect("can be checked")
    }

    pub(super) async fn stop(self, nodes: Vec<Node>) {
        self.swarm.stop().await;
        for node in nodes {
            node.stop().await;
        }
    }
}

pub(super) fn request(seed: u64, prompt: usize, max_tokens: u32) -> Request {
    let sampling = Sampling { temperature: 0.9, seed, ..Sampling::default() };
    Request {
        prompt: (0..prompt as u32).map(|n| (n * 7 + seed as u32) % 60).collect(),
        max_tokens,
        stop_tokens: Vec::new(),
        sampling,
        tenant: 0,
        priority: Priority::Normal,
        deadline: Duration::from_secs(120),
    }
}

fn findings(verdict: &Verdict) -> Vec<Finding> {
    verdict.stages.iter().map(|stage| stage.finding).collect()
}

/// Replies with a cheat at one place of three: what is found there, and that nobody else is blamed.
async fn caught(different: usize, ways: Ways, request: Request) -> Finding {
    let world = World::new("llama", false);
    let nodes = world.pipeline(different, ways).await;
    let (_, receipt) = world.receipt(request).await;
    let verdict = world.verify(&receipt);
    assert!(!verdict.sound);
    assert_eq!(verdict.problems, []);
    let found = findings(&verdict);
    assert!(found[..different].iter().all(|finding| *finding == Finding::Proved), "{found:?}");
    assert!(found[different].blames(), "{found:?}");
    assert!(!found[different + 1..].iter().any(Finding::blames), "{found:?}");
    world.stop(nodes).await;
    found[different]
}

/// A copy of a golden model in which tensors are changed.
pub(super) fn doctored(name: &str, folder: &Path, change: impl Fn(&str, &mut [f32])) -> Arc<Model> {
    fs::copy(golden(name).join("config.json"), folder.join("config.json")).expect("copied");
    let mut bytes = fs::read(golden(name).join("model.safetensors")).expect("read");
    let places: Vec<(String, usize, usize)> = {
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("golden");
        let start = bytes.as_ptr() as usize;
        let place = |(name, tensor): (&str, safetensors::tensor::TensorView<'_>)| {
            (name.to_owned(), tensor.data().as_ptr() as usize - start, tensor.data().len())
        };
        tensors.iter().map(place).collect()
    };
    for (name, at, length) in places {
        let mut values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes[at..at + length]);
        change(&name, &mut values);
        bytes[at..at + length].copy_from_slice(bytemuck::cast_slice(&values));
    }
    fs::write(folder.join("model.safetensors"), bytes).expect("written");
    Arc::new(Model::open(folder).expect("opens"))
}

#[tokio::test]
async fn a_substituted_model_is_found() {
    let folder = tempfile::tempdir().expect("a directory");
    let other = doctored("llama", folder.path(), |name, values| {
        if name == "model.layers.3.mlp.down_proj.weight" {
            values.iter_mut().for_each(|value| *value *= 1.05);
        }
    });
    let ways = Ways { weights: Some((other, Quantisation::Q8)), ..Ways::default() };
    assert_eq!(caught(1, ways, request(1, 100, 40)).await, Finding::Output { from: 0, to: 64 });
}

#[tokio::test]
async fn fewer_bits_are_found() {
    for different in 0..3 {
        let ways = Ways { weights: Some((open("llama"), Quantisation::Q4)), ..Ways::default() };
        let found = caught(different, ways, request(2, 70, 10)).await;
        assert_eq!(found, Finding::Output { from: 0, to: 64 });
    }
}

/// A layer whose projections are zero is one that is not there.
#[tokio::test]
async fn a_skipped_layer_is_found() {
    let folder = tempfile::tempdir().expect("a directory");
    let without = doctored("llama", folder.path(), |name, values| {
        if name.starts_with("model.layers.2.") && (name.contains("o_proj") || name.contains("down_proj")) {
            values.fill(0.0);
        }
    });
    let ways = Ways { weights: Some((without, Quantisation::Q8)), ..Ways::default() };
    assert_eq!(caught(1, ways, request(3, 30, 50)).await, Finding::Output { from: 0, to: 64 });
}

#[tokio::test]
async fn stale_keys_and_values_are_found() {
    let ways = |position| Ways { cheat: Some(Cheat::Stale { position }), ..Ways::default() };
    assert_eq!(caught(1, ways(70), request(4, 20, 130)).await, Finding::Output { from: 64, to: 128 });
    assert_eq!(caught(0, ways(140), request(4, 20, 130)).await, Finding::Output { from: 128, to: 149 });
}

#[tokio::test]
async fn an_edited_prompt_is_found() {
    let ways = Ways { cheat: Some(Cheat::Edit { position: 80, token: 3 }), ..Ways::default() };
    assert_eq!(caught(0, ways, request(5, 100, 40)).await, Finding::Output { from: 64, to: 128 });
}

#[tokio::test]
async fn a_forged_token_is_found() {
    let ways = Ways { cheat: Some(Cheat::Forge { position: 91, token: 59 }), ..Ways::default() };
    let found = caught(2, ways, request(6, 60, 60)).await;
    assert!(matches!(found, Finding::Token { position: 91, told: 59, .. }), "{found:?}");
}

#[tokio::test]
async fn a_biased_sampler_is_found() {
    let ways = Ways { cheat: Some(Cheat::Bias { token: 11 }), ..Ways::default() };
    let found = caught(2, ways, request(7, 40, 60)).await;
    assert!(matches!(found, Finding::Token { .. }), "{found:?}");
}

/// A node that does not sign is not blamed for its rows, and not believed either.
#[tokio::test]
async fn a_node_that_does_not_sign_is_named() {
    let world = World::new("llama", false);
    let nodes = world.pipeline(1, Ways { unsigned: true, ..Ways::default() }).await;
    let (_, receipt) = world.receipt(request(8, 70, 10)).await;
    let found = findings(&world.verify(&receipt));
    let (unsigned, misled) = (Finding::Unsigned { from: 0 }, Finding::Misled { from: 0 });
    assert_eq!(found, [Finding::Proved, unsigned, misled], "those after it have nothing to countersign");
    world.stop(nodes).await;
}

/// What clients and gateways may do to a receipt.
#[tokio::test]
async fn receipts_cannot_be_altered() {
    let world = World::new("llama", false);
    let nodes = world.pipeline(3, Ways::default()).await;
    let (tokens, receipt) = world.receipt(request(9, 100, 40)).await;
    assert_eq!(receipt.reply, tokens);
    assert!(world.verify(&receipt).sound);
    let altered = |change: &dyn Fn(&mut Receipt)| {
        let mut altered = receipt.clone();
        change(&mut altered);
        world.verify(&altered)
    };
    let token = altered(&|receipt| receipt.reply[20] ^= 1);
    assert!(token.problems.contains(&Problem::GatewaySignature) && !token.sound);
    let prompt = altered(&|receipt| receipt.prompt[5] ^= 1);
    assert!(prompt.problems.contains(&Problem::Prompt) && !prompt.sound);
    let seed = altered(&|receipt| receipt.plan.sampling.seed += 1);
    assert_eq!(findings(&seed)[0], Finding::Forged { from: 0 });
    let root = altered(&|receipt| receipt.stages[1][1].out_root = Digest([1; 32]));
    assert_eq!(findings(&root)[1], Finding::Forged { from: 64 });
    let missing = altered(&|receipt| receipt.stages[2].truncate(2));
    assert_eq!(findings(&missing)[2], Finding::Unsigned { from: 128 });
    let mut swapped = receipt.clone();
    swapped.plan.stages.swap(1, 2);
    let swapped = serde_json::to_vec(&swapped).expect("serialises");
    assert!(Receipt::read(&swapped[..]).is_err(), "stages out of their order");
    // As when a stage told the next one what it told no gateway.
    let withheld = altered(&|receipt| receipt.stages[1].truncate(1));
    assert_eq!(findings(&withheld)[1..], [Finding::Unsigned { from: 64 }, Finding::Misled { from: 64 }]);
    let finish = altered(&|receipt| receipt.reply.truncate(39));
    assert!(!finish.sound);
    world.stop(nodes).await;
}

/// Many sessions that begin alike, with few pages, guesses on, and devices of every kind side by side: nobody
/// is blamed for anything.
async fn honest(devices: [Device; 3], few: Option<usize>, sessions: u64) -> usize {
    let world = World::new("llama", true);
    let layers = world.model.config().layers;
    let (mut nodes, mut books) = (Vec::new(), Vec::new());
    let folder = tempfile::tempdir().expect("a directory");
    for (index, (device, from)) in devices.into_iter().zip(CUTS).enumerate() {
        let to = CUTS.get(index + 1).copied().unwrap_or(layers);
        let shard = Shard { layers: from..to, embedding: index == 0, head: to == layers };
        let book = world.book(&folder.path().join(index.to_string()));
        books.push(book.clone());
        let ways = Ways { device: Some(device), pages: few, book: Some(book), ..Ways::default() };
        nodes.push(world.node(index as u8 + 1, shard, ways));
    }
    world.swarm.status().wait_for(SwarmStatus::ready).await.expect("serves");
    let mut chunks = 0;
    // Short replies make the gateway expect more of them, and admit more sessions than have room.
    let mut short = 0;
    for _ in 0..few.map_or(0, |_| 40) {
        short += world.receipt(request(0, 3, 1)).await.1.stages.iter().map(Vec::len).sum::<usize>();
    }
    for round in 0..2 {
        let running = (0..sessions).map(|n| {
            // The same beginnings in both rounds; greedy replies repeat themselves and are guessed well.
            let temperature = if n % 2 == 0 { 0.0 } else { 0.8 };
            let asked = request(n, 66 + n as usize, if few.is_some() { 180 } else { 60 });
            let sampling = Sampling { temperature, seed: n + round, ..Sampling::default() };
            world.receipt(Request { sampling, ..asked })
        });
        for (_, receipt) in join_all(running).await {
            let verdict = world.verify(&receipt);
            assert!(verdict.sound, "{verdict:?}");
            chunks += receipt.stages.iter().map(Vec::len).sum::<usize>();
        }
    }
    let drafted: u64 = nodes.iter().map(|node| node.status().borrow().drafted).sum();
    let load = nodes.iter().map(|node| *node.load().borrow()).collect::<Vec<_>>();
    assert!(drafted > 0, "guesses went out");
    match few {
        Some(_) => assert!(load.iter().any(|load| load.preempted > 0), "{load:?}"),
        None => assert!(load[0].reused > 0, "{load:?}"),
    }
    let (model, hash) = (world.model.clone(), world.hash);
    world.stop(nodes).await;
    let committed: usize = books.iter().map(|book| proved(book, &model, &hash)).sum();
    assert_eq!(committed, chunks + short, "every chunk is committed to");
    chunks
}

/// Computes again what a book's leaves are of, and says how many there are.
fn proved(book: &Book, model: &Model, hash: &Digest) -> usize {
    book.flush();
    let sealed = book.seal().expect("is written").expect("something was signed");
    let mut sessions: HashMap<Digest, (Evidence, Vec<[u8; 32]>)> = HashMap::new();
    // The longest part of each session says what came out of all of it.
    for index in (0..sealed.count).rev() {
        let held = book.leaf(sealed.volume, index).expect("a leaf").chunk;
        let evidence = book.evidence(sealed.volume, index).expect("is there");
        let longest = sessions.get(&Digest(held.plan)).is_none_or(|(known, _)| known.to() < held.to);
        if longest {
            let rows = replay(&evidence, model, hash, &cpu(), &|_| ()).expect("computes");
            let roots = evidence.out_roots(&rows);
            sessions.insert(Digest(held.plan), (evidence, roots));
        }
    }
    for index in 0..sealed.count {
        let held = book.leaf(sealed.volume, index).expect("a leaf").chunk;
        let (_, out) = &sessions[&Digest(held.plan)];
        let out = &out[..held.to.div_ceil(super::rows::CHUNK) as usize];
        assert_eq!(seal(&roots(out)), held.sealed_roots, "{held:?}");
    }
    sealed.count as usize
}

#[tokio::test]
async fn honest_nodes_are_never_blamed() {
    let isas = [Isa::Portable, Isa::Avx2, Isa::Avx512];
    let device = |isa| Cpu::new(1, isa).map(Device::Cpu);
    let able: Vec<Device> = isas.into_iter().filter_map(|isa| device(isa).ok()).collect();
    let devices = [0, 1, 2].map(|index| able[index % able.len()].clone());
    let chunks = honest(devices.clone(), None, 5).await + honest(devices, Some(6), 5).await;
    assert!(chunks > 100, "{chunks}");
}

#[cfg(feature = "cuda")]
#[tokio::test]
async fn honest_cards_are_never_blamed() {
    let _stand_in = stand_in_driver::StandIn::fresh("");
    let card = Device::Cuda(kernels::cuda::Cuda::open(0).expect("the stand-in has a card"));
    honest([Device::Cpu(cpu()), card.clone(), card], None, 1).await;
}

const SEED: &[u8] = include_bytes!("../../fuzz/seeds/receipt/short");

proptest! {
    /// Whatever is done to a receipt's text, it is refused, or reads as what it says.
    #[test]
    fn mutilated_receipts_do_no_harm(at: prop::sample::Index, with: u8, cut: prop::sample::Index, is_cut: bool) {
        let mut bytes = SEED.to_vec();
        bytes[at.index(SEED.len())] = with;
        if is_cut {
            bytes.truncate(cut.index(SEED.len()));
        }
        if let Ok(receipt) = Receipt::read(&bytes[..]) {
            let written = serde_json::to_vec(&receipt).expect("serialises");
            let again = Receipt::read(&written[..]).expect("what was written is read");
            prop_assert_eq!(again.digest(), receipt.digest());
        }
    }
}

#[test]
fn receipts_that_could_write_on_a_terminal_are_refused() {
    let receipt = Receipt::read(SEED).expect("a receipt");
    let mut named = receipt.clone();
    named.model_name = "\u{1b}[2J".into();
    let mut session = receipt;
    session.plan.session = "\u{1b}".repeat(32);
    for hostile in [named, session] {
        let text = serde_json::to_vec(&hostile).expect("serialises");
        assert!(Receipt::read(&text[..]).is_err());
    }
}

#[test]
fn hostile_receipts_are_refused() {
    for text in ["", "{}", "[]", "null", "{\"version\":1}"] {
        assert!(Receipt::read(text.as_bytes()).is_err(), "{text}");
    }
}

/// What another route began is drawn again: the receipt is of the nodes that finished the reply, and of all of it.
#[tokio::test]
async fn a_reply_that_went_on_elsewhere_is_proved_by_those_that_finished_it() {
    for speculation in [false, true] {
        let world = World::new("llama", speculation);
        let mut nodes = world.pipeline(3, Ways::default()).await;
        let (right, _) = world.receipt(request(6, 40, 150)).await;
        let mut generation = world.submitter.submit(request(6, 40, 150)).await.expect("is taken");
        let id = generation.receipt.take().expect("a receipt is promised");
        for _ in 0..70 {
            assert!(matches!(generation.events.recv().await, Some(Event::Token { .. })));
        }
        let lost = nodes.remove(1).id();
        world.network.kill(lost);
        let spare = Shard { layers: 2..4, embedding: false, head: false };
        nodes.push(world.node(9, spare, Ways::default()));
        while !matches!(generation.events.recv().await, Some(Event::Finished(_) | Event::Failed(_))) {}
        let text = world.store.get(&id.to_string(), 0, Duration::from_secs(60)).await.expect("a receipt");
        let receipt = Receipt::read(text.as_bytes()).expect("a receipt");
        assert_eq!((receipt.prompt.len(), &receipt.reply), (40, &right));
        assert!(receipt.plan.stages.iter().all(|stage| stage.node.0 != lost.0));
        let verdict = world.verify(&receipt);
        assert!(verdict.sound, "{verdict:?}");
        assert_eq!(world.swarm.status().borrow().resumed, 1);
        world.stop(nodes).await;
    }
}
