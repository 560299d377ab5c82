//! Givers that lie, fall silent or die, and takers that ask for too much.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::http::StatusCode;
use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::time::{Duration, Instant};
use transport::{Identity, Limits, Transport, sim::Network};

use super::{give::*, *};
use crate::{
    message::{Denial, Holder, MAX_PIECE_BYTES, Message, Part, Piece, Want},
    model::{
        Model, Progress, Quantisation, Shard,
        tests::{everything, golden},
    },
    node::GatewayAddress,
    pull::{
        Repository,
        tests::{Mood, Server},
    },
};

const QUANTISATION: Quantisation = Quantisation::Q8;
const LIMIT: u64 = 1 << 30;

/// What a giver does to its answers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Honest,
    /// Changes a byte of files.
    Flips,
    Short,
    Long,
    /// Answers what nobody asked.
    Other,
    Silent,
    /// Gives this many pieces of files, and nothing after.
    Stops(u64),
    /// Says so many times that it is busy.
    Busy(u64),
    /// Takes so long for each piece.
    Slow(Duration),
}

/// What a giver has given.
#[derive(Debug, Default)]
struct Given {
    links: AtomicU64,
    bytes: AtomicU64,
}

/// Nodes that gateways tell of.
type Holders = Arc<Mutex<Vec<Holder>>>;

async fn give(
    transport: Arc<dyn Transport>,
    stock: Stock,
    manner: Manner,
    holders: Holders,
    given: Arc<Given>,
) {
    let mut count = 0;
    while let Some(attempt) = transport.accept().await {
        let Ok(mut link) = attempt else { continue };
        given.links.fetch_add(1, Ordering::Relaxed);
        while let Ok(bytes) = link.recv().await {
            let want = match Message::decode(bytes) {
                Ok(Message::Want(want)) => want,
                Ok(Message::Seek(_)) => {
                    let holders = holders.lock().expect("nobody panics").clone();
                    let _ = link.send(Message::Holders(holders).encode()).await;
                    continue;
                }
                _ => break,
            };
            let mut piece = stock.read(want);
            if matches!(want.of, Part::File { .. }) {
                count += 1;
                given.bytes.fetch_add(piece.body.len() as u64, Ordering::Relaxed);
                if let Manner::Slow(wait) = manner {
                    tokio::time::sleep(wait).await;
                }
                spoil(&mut piece, manner, count);
                if manner == Manner::Silent || matches!(manner, Manner::Stops(most) if count > most) {
                    continue;
                }
            }
            let head = Bytes::from(Message::Piece(piece.clone()).encode());
            if link.send(transport::Message::from_parts([head, piece.body])).await.is_err() {
                break;
            }
        }
    }
}

fn spoil(piece: &mut Piece, manner: Manner, count: u64) {
    match manner {
        Manner::Flips => {
            let mut bytes = piece.body.to_vec();
            // A sign, which no rounding hides.
            *bytes.last_mut().expect("pieces are not empty") ^= 0x80;
            piece.body = bytes.into();
        }
        Manner::Short => piece.body = piece.body.slice(1..),
        Manner::Long => piece.body = [piece.body.as_ref(), &[0]].concat().into(),
        Manner::Other => piece.want.offset += 1,
        Manner::Busy(times) if count <= times => *piece = Piece::denied(piece.want, Denial::Busy),
        _ => {}
    }
}

struct World {
    network: Network,
    seeker: Arc<dyn Transport>,
    directory: TempDir,
    model: Arc<Model>,
    stock: Stock,
    holders: Holders,
}

impl World {
    fn new(path: &Path) -> Self {
        Self::of(Model::open(path).expect("opens"))
    }

    fn of(model: Model) -> Self {
        let (network, model) = (Network::new(3), Arc::new(model));
        let identity = Identity::from_secret([1; 32]);
        let seeker: Arc<dyn Transport> =
            Arc::new(network.endpoint(&identity, Limits::default()).expect("limits hold"));
        let stock = Stock::new(model.clone(), None);
        stock.hash(QUANTISATION).expect("hashes");
        let directory = tempfile::tempdir().expect("temporary directory");
        Self { network, seeker, directory, model, stock, holders: Holders::default() }
    }

    fn giver(&self, seed: u8, manner: Manner) -> GatewayAddress {
        self.counted(seed, manner).0
    }

    /// A giver, and what it gives.
    fn counted(&self, seed: u8, manner: Manner) -> (GatewayAddress, Arc<Given>) {
        let (given, holders) = (Arc::<Given>::default(), self.holders.clone());
        let identity = Identity::from_secret([seed; 32]);
        let endpoint = self.network.endpoint(&identity, Limits::default()).expect("limits hold");
        let address = endpoint.local_address().to_string();
        tokio::spawn(give(Arc::new(endpoint), self.stock.clone(), manner, holders, given.clone()));
        (GatewayAddress { id: identity.id(), address }, given)
    }

    /// A node that gateways say has these parts.
    fn node(&self, seed: u8, manner: Manner, parts: impl IntoIterator<Item = u16>) -> Arc<Given> {
        let (GatewayAddress { id, address }, given) = self.counted(seed, manner);
        let holder = Holder { node: *id.as_bytes(), address, parts: parts.into_iter().collect() };
        self.holders.lock().expect("nobody panics").push(holder);
        given
    }

    /// Parts of the model.
    fn parts(&self) -> std::ops::Range<u16> {
        0..self.model.config().layers as u16 + 2
    }

    async fn describe(&self, gateway: &GatewayAddress) -> Fetcher {
        let gateways = std::slice::from_ref(gateway);
        let mirror =
            Fetcher::describe(&self.seeker, gateways, self.directory.path(), QUANTISATION, None).await;
        Fetcher::new(mirror.expect("a catalogue"), LIMIT, None)
    }

    async fn fetch(
        &self,
        fetcher: &Fetcher,
        from: &[GatewayAddress],
        shard: &Shard,
    ) -> Result<u64, FetchError> {
        fetcher.fetch(&self.seeker, from, shard, &|_| ()).await
    }

    fn all(&self) -> Shard {
        everything(self.model.config())
    }

    fn is_whole(&self, fetcher: &Fetcher) {
        let hash = |model: &Model| model.hash(QUANTISATION, &|_| ()).expect("hashes").contents.layers;
        assert_eq!(hash(fetcher.model()), hash(&self.model));
    }
}

#[tokio::test]
async fn layers_come_once_and_other_layers_bring_only_themselves() {
    let gguf = golden("stories260K").join("stories260K-f32.gguf");
    for path in [golden("llama"), golden("llama_tied"), golden("qwen3"), gguf] {
        let world = World::new(&path);
        let giver = world.giver(2, Manner::Honest);
        let fetcher = world.describe(&giver).await;
        let print = |model: &Model| model.fingerprint(QUANTISATION);
        assert_eq!(print(fetcher.model()), print(&world.model));
        let from = [giver.clone()];
        let (embedding, layers, head) = world.model.stored_bytes();
        let part = |layers| Shard { layers, embedding: false, head: false };
        let first = Shard { embedding: true, ..part(0..2) };
        let fetched = world.fetch(&fetcher, &from, &first).await.expect("fetched");
        assert_eq!(fetched, embedding + layers[0] + layers[1]);
        assert_eq!(world.fetch(&fetcher, &from, &part(1..3)).await.expect("fetched"), layers[2]);
        // A node that starts anew finds what it has.
        let again = world.describe(&giver).await;
        assert_eq!(world.fetch(&again, &from, &first).await.expect("nothing to do"), 0);
        let rest = world.fetch(&again, &from, &world.all()).await.expect("fetched");
        assert_eq!(rest, head + layers[3..].iter().sum::<u64>());
        world.is_whole(&again);
        let directory = std::fs::read_dir(world.directory.path()).expect("listed").next();
        let directory = directory.expect("a mirror").expect("an entry").path();
        assert!(Model::open(&directory).is_err(), "what may have holes is not opened as a model");
    }
}

#[tokio::test]
async fn the_model_of_the_program_is_given_too() {
    let world = World::of(Model::demo().expect("opens"));
    let giver = world.giver(2, Manner::Busy(3));
    let fetcher = world.describe(&giver).await;
    world.fetch(&fetcher, &[giver], &world.all()).await.expect("fetched");
    world.is_whole(&fetcher);
}

#[tokio::test]
async fn liars_are_named_and_another_is_asked() {
    for manner in [Manner::Flips, Manner::Short, Manner::Long, Manner::Other] {
        let world = World::new(&golden("llama"));
        let (liar, honest) = (world.giver(3, manner), world.giver(2, Manner::Honest));
        let fetcher = world.describe(&honest).await;
        let error =
            world.fetch(&fetcher, std::slice::from_ref(&liar), &world.all()).await.expect_err("a liar");
        match (manner, &error) {
            (Manner::Flips, FetchError::Wrong { peer, .. }) => assert_eq!(*peer, liar.id),
            (_, FetchError::Broken { peer, .. }) => assert_eq!(*peer, liar.id),
            _ => panic!("{manner:?}: {error}"),
        }
        world.fetch(&fetcher, &[liar, honest], &world.all()).await.expect("the other is honest");
        world.is_whole(&fetcher);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_giver_is_given_up() {
    let world = World::new(&golden("llama"));
    let (silent, honest) = (world.giver(3, Manner::Silent), world.giver(2, Manner::Honest));
    let fetcher = world.describe(&honest).await;
    let begun = Instant::now();
    world.fetch(&fetcher, &[silent, honest], &world.all()).await.expect("the other speaks");
    assert!(begun.elapsed() < Duration::from_secs(90), "{:?}", begun.elapsed());
    world.is_whole(&fetcher);
}

#[tokio::test]
async fn a_node_killed_in_the_middle_goes_on_where_it_was() {
    let world = World::new(&golden("llama"));
    let (stops, honest) = (world.giver(3, Manner::Stops(12)), world.giver(2, Manner::Honest));
    let fetcher = Arc::new(world.describe(&honest).await);
    let done = Arc::new(AtomicU64::new(0));
    let (embedding, layers, head) = world.model.stored_bytes();
    let total = embedding + layers.iter().sum::<u64>() + head;
    let task = tokio::spawn({
        let (fetcher, seeker, done, all) = (fetcher.clone(), world.seeker.clone(), done.clone(), world.all());
        let progress = move |now: Progress| done.store(now.done, Ordering::Relaxed);
        async move { fetcher.fetch(&seeker, &[stops], &all, &progress).await }
    });
    let before = loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = done.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(200)).await;
        if now > 0 && done.load(Ordering::Relaxed) == now {
            break now;
        }
    };
    task.abort();
    assert!(task.await.is_err(), "it was killed");
    drop(fetcher);
    let fetcher = world.describe(&honest).await;
    let rest = world.fetch(&fetcher, &[honest], &world.all()).await.expect("fetched");
    assert!(rest < total && before + rest >= total, "{before} and then {rest} of {total}");
    world.is_whole(&fetcher);
}

#[tokio::test]
async fn nodes_are_asked_first_and_the_gateway_for_what_no_node_has() {
    let world = World::new(&golden("llama"));
    let (gateway, from_gateway) = world.counted(2, Manner::Honest);
    let (first, rest) = world.parts().partition::<Vec<u16>, _>(|part| *part < 3);
    let (last, rest) = rest.into_iter().partition::<Vec<u16>, _>(|part| *part == world.parts().end - 1);
    let (one, two) = (world.node(3, Manner::Honest, first), world.node(4, Manner::Honest, rest));
    let fetcher = world.describe(&gateway).await;
    world.fetch(&fetcher, &[gateway], &world.all()).await.expect("fetched");
    world.is_whole(&fetcher);
    let (embedding, layers, head) = world.model.stored_bytes();
    let bytes = |given: &Given| given.bytes.load(Ordering::Relaxed);
    assert_eq!(last.len(), 1);
    assert_eq!(bytes(&from_gateway), head);
    assert_eq!(bytes(&one), embedding + layers[0] + layers[1]);
    assert_eq!(bytes(&two), layers[2..].iter().sum::<u64>());
}

/// Whatever nodes do that claim to have everything, the weights come, and who lied is not asked again.
#[tokio::test(start_paused = true)]
async fn nodes_that_lie_stall_or_die_are_left_and_others_asked() {
    let slow = Manner::Slow(Duration::from_secs(9));
    let lies = [Manner::Flips, Manner::Short, Manner::Long, Manner::Other];
    let fails = [Manner::Silent, Manner::Stops(4), Manner::Busy(u64::MAX), slow];
    for manner in lies.into_iter().chain(fails) {
        let world = World::new(&golden("llama"));
        let gateway = world.giver(2, Manner::Honest);
        let bad = world.node(3, manner, world.parts());
        let fetcher = world.describe(&gateway).await;
        let (begun, from) = (Instant::now(), [gateway]);
        world.fetch(&fetcher, &from, &world.all()).await.expect("the gateway is honest");
        assert!(begun.elapsed() < Duration::from_secs(60), "{manner:?}: {:?}", begun.elapsed());
        assert_eq!(bad.links.load(Ordering::Relaxed), 1);
        world.is_whole(&fetcher);
        // The same model in another directory, with what is known of the node.
        let place = tempfile::tempdir().expect("temporary directory");
        let mirror = Fetcher::describe(&world.seeker, &from, place.path(), QUANTISATION, None).await;
        let again = fetcher.clone().elsewhere(mirror.expect("a catalogue"));
        world.fetch(&again, &from, &world.all()).await.expect("the gateway is honest");
        let asked = bad.links.load(Ordering::Relaxed);
        assert_eq!(asked, if lies.contains(&manner) { 1 } else { 2 }, "{manner:?}");
    }
}

/// Two nodes that have everything, of which one lies: whatever was begun with it comes from the other.
#[tokio::test]
async fn what_a_liar_was_asked_for_comes_from_another_node() {
    let world = World::new(&golden("llama"));
    let (gateway, from_gateway) = world.counted(2, Manner::Honest);
    world.node(3, Manner::Flips, world.parts());
    world.node(4, Manner::Honest, world.parts());
    let fetcher = world.describe(&gateway).await;
    world.fetch(&fetcher, &[gateway], &world.all()).await.expect("fetched");
    world.is_whole(&fetcher);
    assert_eq!(from_gateway.bytes.load(Ordering::Relaxed), 0);
}

/// A hub with the gateway's files is asked for the layers' bytes and for nothing else; what it has wrong, or has
/// not, comes from the gateway.
#[tokio::test]
async fn a_hub_that_has_the_files_is_asked_first() {
    let world = World::new(&golden("llama"));
    let (gateway, from_gateway) = world.counted(2, Manner::Honest);
    let part = Shard { layers: 1..3, embedding: false, head: false };
    let (_, layers, _) = world.model.stored_bytes();
    let bytes = layers[1] + layers[2];
    let cases = [
        ("llama", Vec::new(), true),
        ("llama", vec![Mood::Cut(1000), Mood::Answer(StatusCode::BAD_GATEWAY), Mood::Cut(70)], true),
        ("llama", vec![Mood::Wrong; 20], false),
        ("llama", vec![Mood::Whole; 20], false),
        ("llama", vec![Mood::Answer(StatusCode::FORBIDDEN); 20], false),
        // Another model of the same shape, and one of another.
        ("llama_tied", Vec::new(), false),
        ("qwen3", Vec::new(), false),
    ];
    for (name, moods, is_used) in cases {
        let server = Server::of_golden(name).await;
        server.moods(moods.clone());
        let place = tempfile::tempdir().expect("temporary directory");
        let request = server.request(&place);
        let from = [gateway.clone()];
        let mirror = Fetcher::describe(&world.seeker, &from, place.path(), QUANTISATION, None).await;
        let hub = Repository::open(&request).await.expect("a repository");
        let fetcher = Fetcher::new(mirror.expect("a catalogue"), LIMIT, None).with_hub(hub);
        let before = from_gateway.bytes.load(Ordering::Relaxed);
        world.fetch(&fetcher, &from, &part).await.expect("fetched");
        let given = from_gateway.bytes.load(Ordering::Relaxed) - before;
        assert_eq!(given, if is_used { 0 } else { bytes }, "{name} {moods:?}");
        assert_eq!(fetcher.stock(1).parts().expect("described").parts, [2, 3]);
        let asked = server.asked();
        assert!(!is_used || asked.iter().all(|(_, range)| range.starts_with("bytes=")), "{asked:?}");
    }
}

#[tokio::test]
async fn a_node_gives_what_it_has_verified_and_only_to_those_it_may() {
    let world = World::new(&golden("llama"));
    let giver = world.giver(2, Manner::Honest);
    let fetcher = world.describe(&giver).await;
    let stock = fetcher.stock(1 << 30);
    let parts = |stock: &Stock| stock.parts().expect("it is described").parts;
    assert!(parts(&stock).is_empty());
    let part = Shard { layers: 1..3, embedding: false, head: false };
    world.fetch(&fetcher, &[giver], &part).await.expect("fetched");
    assert_eq!(parts(&stock), [2, 3], "layers after the embedding");
    let place = |layers| {
        let shard = Shard { layers, ..part.clone() };
        world.model.places(&shard, QUANTISATION).expect("places").remove(0)
    };
    let catalogue = stock.parts().expect("it is described").catalogue;
    let want = |(file, offset, bytes): (usize, u64, u64)| Want {
        of: Part::File { catalogue, file: file as u32 },
        offset,
        length: bytes as u32,
    };
    let (here, absent) = (place(1..2).range(), place(0..1).range());
    assert_eq!(stock.read(want(here)).body, world.stock.read(want(here)).body);
    assert_eq!(stock.read(want(absent)).answer, Err(Denial::Missing));
    let over = (here.0, here.1, here.2 + 1);
    assert_eq!(stock.read(want(over)).answer, Err(Denial::Missing), "a piece is of one tensor");
    let (mut giver, mut pieces) = Giver::beside(stock);
    let (peer, now) = (Identity::from_secret([9; 32]).id(), Instant::now());
    let denied = Taking::Denied(Piece::denied(want(here), Denial::NoLeave));
    assert_eq!(giver.wanted(peer, want(here), now), denied);
    giver.lend(peer, now);
    assert_eq!(giver.wanted(peer, want(here), now), Taking::Taken);
    assert_eq!(pieces.recv().await.expect("an answer").1.body.len() as u64, here.2);
    assert_eq!(giver.wanted(peer, want(here), now + Duration::from_secs(3600)), denied);
}

/// A crash may leave a note about bytes that never came to the disk.
#[tokio::test]
async fn bytes_of_before_that_are_wrong_are_fetched_again() {
    let world = World::of(Model::demo().expect("opens"));
    let giver = world.giver(2, Manner::Honest);
    drop(world.describe(&giver).await);
    let directory = std::fs::read_dir(world.directory.path()).expect("listed").next();
    let note = directory.expect("a mirror").expect("an entry").path().join(crate::model::FETCHED);
    let places = world.model.places(&world.all(), QUANTISATION).expect("places");
    let longest = places.iter().max_by_key(|place| place.range().2).expect("tensors");
    assert!(longest.range().2 > u64::from(MAX_PIECE_BYTES), "it takes several pieces");
    let begun = serde_json::json!({ "verified": [], "unfinished": { longest.name(): longest.range().2 } });
    std::fs::write(&note, begun.to_string()).expect("written");
    let fetcher = world.describe(&giver).await;
    world.fetch(&fetcher, &[giver], &world.all()).await.expect("fetched in the end");
    world.is_whole(&fetcher);
}

#[tokio::test]
async fn layers_that_are_too_long_and_other_quantisations_are_refused() {
    let world = World::new(&golden("llama"));
    let giver = world.giver(2, Manner::Honest);
    let from = [giver];
    let open =
        |quantisation| Fetcher::describe(&world.seeker, &from, world.directory.path(), quantisation, None);
    let error = open(Quantisation::Q4).await.expect_err("hashed as q8");
    assert!(
        matches!(&error, FetchError::Described { error, .. } if matches!(**error, MirrorError::Quantisation { .. })),
        "{error}"
    );
    let small = Fetcher::new(open(QUANTISATION).await.expect("a catalogue"), 1000, None);
    let error = world.fetch(&small, &from, &world.all()).await.expect_err("too long");
    assert!(matches!(error, FetchError::Mirror(MirrorError::TooLarge { .. })), "{error}");
}

#[tokio::test]
async fn one_who_asks_for_too_much_gets_no_more() {
    let world = World::new(&golden("llama"));
    let peer = |n: u8| Identity::from_secret([n; 32]).id();
    // Few enough bytes that as many as may be asked for at once are a part of the model.
    let want = Want { of: Part::Catalogue, offset: 0, length: MAX_PIECE_BYTES / 4 };
    let (mut giver, mut pieces) = Giver::start(world.stock.clone());
    let now = Instant::now();
    for _ in 0..OUTSTANDING {
        assert_eq!(giver.wanted(peer(1), want, now), Taking::Taken);
    }
    assert_eq!(giver.wanted(peer(1), want, now), Taking::Broken, "more at once than it may");
    for n in 2..=TAKERS as u8 {
        assert_eq!(giver.wanted(peer(n), want, now), Taking::Taken);
    }
    let busy = |taking| matches!(taking, Taking::Denied(Piece { answer: Err(Denial::Busy), .. }));
    assert!(busy(giver.wanted(peer(100), want, now)));
    // Over and over the same: twice the model, and no more that day.
    let mut given = 0;
    let spent = loop {
        let (to, piece) = pieces.recv().await.expect("an answer");
        giver.given(to);
        given += u64::from(to == peer(1)) * u64::from(piece.want.length);
        if to == peer(1)
            && let Taking::Denied(piece) = giver.wanted(peer(1), want, now)
        {
            break piece;
        }
    };
    assert_eq!(spent.answer, Err(Denial::Spent));
    let bytes = std::fs::metadata(golden("llama").join("model.safetensors")).expect("a file").len();
    assert!(given < 3 * bytes, "{given} of {bytes}");
    let later = now + Duration::from_secs(24 * 3600);
    assert_eq!(giver.wanted(peer(1), want, later), Taking::Taken);
}

#[test]
fn bytes_outside_of_the_files_are_not_given() {
    let stock = Stock::new(Arc::new(Model::demo().expect("opens")), None);
    let ask = |of, offset, length| stock.read(Want { of, offset, length }).answer;
    assert_eq!(ask(Part::Catalogue, 0, 1), Err(Denial::NotYet));
    stock.hash(QUANTISATION).expect("hashes");
    let whole = stock.read(Want { of: Part::Catalogue, offset: 0, length: MAX_PIECE_BYTES });
    let catalogue = *blake3::hash(&whole.body).as_bytes();
    assert_eq!(whole.answer, Ok(whole.body.len() as u64), "it fits one piece");
    let file = |file| Part::File { catalogue, file };
    assert_eq!(ask(file(0), 0, 0), Err(Denial::Range));
    assert_eq!(ask(file(0), 0, MAX_PIECE_BYTES + 1), Err(Denial::Range));
    assert_eq!(ask(file(0), 1 << 40, 1), Err(Denial::Range));
    assert_eq!(ask(file(0), u64::MAX, u32::MAX), Err(Denial::Range));
    assert_eq!(ask(file(1), 0, 1), Err(Denial::Range));
    assert_eq!(ask(Part::File { catalogue: [0; 32], file: 0 }, 0, 1), Err(Denial::Unknown));
    let end = stock.read(Want { of: file(0), offset: ask(file(0), 0, 1).expect("a file") - 1, length: 100 });
    assert_eq!(end.body.len(), 1, "the end of a file is a shorter piece");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever a giver describes, it is refused or kept, and never anything outside of the directory.
    #[test]
    fn descriptions_that_lie_never_panic(at in any::<prop::sample::Index>(), bit in 0_u8..8, cut in prop::option::of(any::<prop::sample::Index>())) {
        static CATALOGUE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            let stock = Stock::new(Arc::new(Model::open(&golden("llama_tied")).expect("opens")), None);
            stock.hash(QUANTISATION).expect("hashes");
            stock.read(Want { of: Part::Catalogue, offset: 0, length: MAX_PIECE_BYTES }).body.to_vec()
        });
        let mut bytes = CATALOGUE.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let directory = tempfile::tempdir().expect("temporary directory");
        let root = directory.path().join("mirrors");
        let _ = Mirror::open(&root, &bytes, QUANTISATION, None);
        let outside = std::fs::read_dir(directory.path()).expect("listed").count();
        prop_assert!(outside <= 1);
    }
}
