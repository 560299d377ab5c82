//! A hub on the loopback interface, well-behaved and otherwise.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path as Segments, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::model::{Model, Quantisation, Shard, tests::golden};

const COMMIT: &str = "0123456789abcdef";

/// What the hub does with a request for bytes.
#[derive(Clone, Debug)]
pub(crate) enum Mood {
    /// Breaks the connection after so many bytes.
    Cut(usize),
    /// Answers with a status.
    Answer(StatusCode),
    /// Sends the whole file whatever was asked for.
    Whole,
    /// Sends bytes that are not the file's.
    Wrong,
}

#[derive(Default)]
struct Shelf {
    files: BTreeMap<String, Vec<u8>>,
    /// One for each request for bytes; well-behaved when there is none left.
    moods: VecDeque<Mood>,
    token: Option<String>,
    extra_names: Vec<String>,
    /// File and `Range` of the requests for bytes.
    asked: Vec<(String, String)>,
}

type Shared = Arc<Mutex<Shelf>>;

pub(crate) struct Server {
    shelf: Shared,
    endpoint: String,
}

impl Server {
    pub(crate) async fn start(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let shelf = Shared::default();
        shelf.lock().expect("a lock").files.extend(files);
        let router = Router::new()
            .route("/api/models/{owner}/{name}/revision/{revision}", get(list))
            .route("/{owner}/{name}/resolve/{revision}/{file}", get(resolve))
            .route("/cdn/{file}", get(large))
            .with_state(shelf.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a loopback socket");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { shelf, endpoint }
    }

    /// The golden model `name` under `test/model`.
    pub(crate) async fn of_golden(name: &str) -> Self {
        let read =
            |file: &str| (file.to_owned(), std::fs::read(golden(name).join(file)).expect("golden file"));
        let names = ["config.json", "generation_config.json", "model.safetensors"];
        Self::start(names.map(read)).await
    }

    pub(crate) fn request(&self, directory: &TempDir) -> Pull {
        Pull {
            reference: "test/model".parse().expect("a reference"),
            directory: directory.path().join("model"),
            layers: None,
            file: None,
            endpoint: self.endpoint.clone(),
            token: None,
            attempts: 3,
            first_delay: Duration::from_millis(1),
            bandwidth: None,
        }
    }

    pub(crate) fn moods(&self, moods: impl IntoIterator<Item = Mood>) {
        self.shelf.lock().expect("a lock").moods = moods.into_iter().collect();
    }

    pub(crate) fn asked(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.shelf.lock().expect("a lock").asked)
    }
}

fn denied(shelf: &Shelf, headers: &HeaderMap) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    shelf.token.as_ref().is_some_and(|token| given != Some(&format!("Bearer {token}")))
}

async fn list(State(shelf): State<Shared>, headers: HeaderMap) -> Response {
    let shelf = shelf.lock().expect("a lock");
    if denied(&shelf, &headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let names = shelf.files.keys().chain(&shelf.extra_names);
    let siblings: Vec<_> = names.map(|name| serde_json::json!({"rfilename": name})).collect();
    Json(serde_json::json!({"sha": COMMIT, "siblings": siblings})).into_response()
}

async fn resolve(
    State(shelf): State<Shared>,
    Segments((_, _, revision, file)): Segments<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let mut shelf = shelf.lock().expect("a lock");
    if denied(&shelf, &headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Some(bytes) = shelf.files.get(&file).filter(|_| revision == COMMIT).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if file.ends_with(".json") {
        return send(&mut shelf, &file, &bytes, &headers);
    }
    let mut response = StatusCode::FOUND.into_response();
    let hash = hex::encode(Sha256::digest(&bytes));
    let entries = [
        ("location", format!("/cdn/{file}")),
        ("x-linked-etag", format!("\"{hash}\"")),
        ("x-linked-size", bytes.len().to_string()),
    ];
    for (name, value) in entries {
        response.headers_mut().insert(name, HeaderValue::from_str(&value).expect("a header"));
    }
    response
}

async fn large(
    State(shelf): State<Shared>,
    Segments(file): Segments<String>,
    headers: HeaderMap,
) -> Response {
    let mut shelf = shelf.lock().expect("a lock");
    let bytes = shelf.files.get(&file).cloned().unwrap_or_default();
    send(&mut shelf, &file, &bytes, &headers)
}

fn send(shelf: &mut Shelf, file: &str, bytes: &[u8], headers: &HeaderMap) -> Response {
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut mood = None;
    if let Some(range) = &range {
        shelf.asked.push((file.to_owned(), range.clone()));
        mood = shelf.moods.pop_front();
    }
    let bounds = range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let bounds = bounds.and_then(|(from, to)| Some((from.parse().ok()?, to.parse::<usize>().ok()? + 1)));
    let (start, end) = bounds.unwrap_or((0, bytes.len()));
    let mut part = bytes[start..end].to_vec();
    let mut status = if bounds.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    match mood {
        Some(Mood::Answer(status)) => return (status, [(header::RETRY_AFTER, "0")]).into_response(),
        Some(Mood::Wrong) => part.iter_mut().for_each(|byte| *byte ^= 1),
        Some(Mood::Whole) => (part, status) = (bytes.to_vec(), StatusCode::OK),
        _ => {}
    }
    let mut out = HeaderMap::new();
    out.insert(header::ETAG, HeaderValue::from_static("\"version-1\""));
    out.insert(header::CONTENT_LENGTH, HeaderValue::from(part.len()));
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {start}-{}/{}", end - 1, bytes.len());
        out.insert(header::CONTENT_RANGE, HeaderValue::from_str(&range).expect("a header"));
    }
    if let Some(Mood::Cut(after)) = mood {
        part.truncate(after);
        // The server sends what it has when the body makes it wait.
        let broken = futures::stream::once(async {
            tokio::task::yield_now().await;
            Err(io::Error::other("the hub stumbles"))
        });
        let chunks = futures::stream::iter([Ok(Bytes::from(part))]).chain(broken);
        return (status, out, Body::from_stream(chunks)).into_response();
    }
    (status, out, part).into_response()
}

async fn quietly(request: &Pull) -> Result<Pulled, PullError> {
    pull(request, &mut |_| ()).await
}

fn same_file(request: &Pull, model: &str, file: &str) -> bool {
    let read = |path: PathBuf| std::fs::read(path).expect(file);
    read(request.directory.join(file)) == read(golden(model).join(file))
}

fn leftovers(request: &Pull) -> Vec<String> {
    let entries = std::fs::read_dir(&request.directory).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains(".part") || name.ends_with(".tmp")).collect()
}

#[tokio::test]
async fn a_model_is_fetched_once() {
    let (server, directory) =
        (Server::of_golden("llama").await, tempfile::tempdir().expect("temporary directory"));
    let request = server.request(&directory);
    let mut finished = Vec::new();
    let pulled = pull(&request, &mut |event| {
        if let Event::Finished { file } = event {
            finished.push(file.to_owned());
        }
    })
    .await
    .expect("fetched");
    assert_eq!(pulled.commit, COMMIT);
    assert_eq!(finished, pulled.files);
    assert!(same_file(&request, "llama", "model.safetensors") && leftovers(&request).is_empty());
    let ours = Model::open(&pulled.path).expect("opens");
    let theirs = Model::open(&golden("llama")).expect("opens");
    assert_eq!(ours.fingerprint(Quantisation::Q8), theirs.fingerprint(Quantisation::Q8));
    server.asked();
    assert_eq!(quietly(&request).await.expect("complete").files, pulled.files);
    assert!(server.asked().is_empty(), "nothing is fetched again");
}

#[tokio::test]
async fn interruptions_are_survived_without_fetching_twice() {
    let (server, directory) =
        (Server::of_golden("llama").await, tempfile::tempdir().expect("temporary directory"));
    let request = server.request(&directory);
    let well = Mood::Cut(usize::MAX);
    let stumbles = (0..10).map(|_| Mood::Cut(100_000));
    server.moods([Mood::Cut(10), well.clone(), well].into_iter().chain(stumbles));
    quietly(&request).await.expect("fetched");
    assert!(same_file(&request, "llama", "model.safetensors"));
    let starts: Vec<_> = server.asked().into_iter().filter(|(file, _)| file == "model.safetensors").collect();
    assert!(starts.len() >= 10 && starts.windows(2).all(|pair| pair[0].1 != pair[1].1), "{starts:?}");
}

#[tokio::test]
async fn a_pull_given_up_is_taken_up_by_the_next() {
    let (server, directory) =
        (Server::of_golden("llama").await, tempfile::tempdir().expect("temporary directory"));
    let request = server.request(&directory);
    let fine = || Mood::Cut(usize::MAX);
    let down = || Mood::Answer(StatusCode::BAD_GATEWAY);
    server.moods([fine(), fine(), Mood::Cut(500_000), down(), down(), down()]);
    let error = quietly(&request).await.expect_err("the hub is down");
    assert!(matches!(error, PullError::Status { status: StatusCode::BAD_GATEWAY, .. }), "{error}");
    assert_eq!(leftovers(&request).len(), 1);
    server.asked();
    let mut present = 0;
    pull(&request, &mut |event| {
        if let Event::Started { file: "model.safetensors", present: here, .. } = event {
            present = here;
        }
    })
    .await
    .expect("fetched");
    assert!(present > 0, "the next pull goes on where this one ended");
    assert!(same_file(&request, "llama", "model.safetensors") && leftovers(&request).is_empty());
}

#[tokio::test]
async fn a_server_without_ranges_costs_a_fresh_start() {
    let (server, directory) =
        (Server::of_golden("llama").await, tempfile::tempdir().expect("temporary directory"));
    let request = server.request(&directory);
    let fine = || Mood::Cut(usize::MAX);
    server.moods([fine(), fine(), Mood::Cut(300_000), Mood::Whole]);
    quietly(&request).await.expect("fetched");
    assert!(same_file(&request, "llama", "model.safetensors"));
}

#[tokio::test]
async fn wrong_bytes_are_thrown_away() {
    let (server, directory) =
        (Server::of_golden("llama").await, tempfile::tempdir().expect("temporary directory"));
    let request = server.request(&directory);
    let fine = || Mood::Cut(usize::MAX);
    server.moods([fine(), fine(), Mood::Wrong]);
    let error = quietly(&request).await.expect_err("not the file");
    assert!(matches!(error, PullError::Hash { ref file, .. } if file == "model.safetensors"), "{error}");
    assert!(leftovers(&request).is_empty() && !request.directory.join("model.safetensors").exists());
    quietly(&request).await.expect("fetched");
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let (server, directory) =
        (Server::of_golden("llama").await, tempfile::tempdir().expect("temporary directory"));
    let mut request = server.request(&directory);
    server.shelf.lock().expect("a lock").token = Some("secret".to_owned());
    let error = quietly(&request).await.expect_err("no token");
    assert!(matches!(error, PullError::Denied { .. }) && error.to_string().contains("HF_TOKEN"), "{error}");
    request.token = Some("secret".to_owned());
    quietly(&request).await.expect("fetched");
    request.reference.repository = "test/model/deeper".to_owned();
    assert!(matches!(quietly(&request).await, Err(PullError::NotFound { .. })));
    let busy = server.request(&directory);
    let other = Pull { token: Some("secret".to_owned()), directory: directory.path().join("other"), ..busy };
    let limited = || Mood::Answer(StatusCode::TOO_MANY_REQUESTS);
    server.moods([limited(), limited()]);
    let mut waits = 0;
    let counted = pull(&other, &mut |event| waits += u32::from(matches!(event, Event::Waiting { .. }))).await;
    counted.expect("patience helps");
    assert_eq!(waits, 2);
    server.moods([limited(), limited(), limited()]);
    std::fs::remove_dir_all(&other.directory).expect("a directory");
    assert!(matches!(quietly(&other).await, Err(PullError::RateLimited { .. })));
}

#[tokio::test]
async fn some_layers_are_a_model_with_the_fingerprint_of_the_whole() {
    for (name, layers, ends) in
        [("llama", 1..3, (false, false)), ("qwen3", 2..4, (false, true)), ("llama", 0..2, (true, false))]
    {
        let (server, directory) =
            (Server::of_golden(name).await, tempfile::tempdir().expect("temporary directory"));
        let request = Pull { layers: Some(layers.clone()), ..server.request(&directory) };
        server.moods((0..3).map(|_| Mood::Cut(usize::MAX)).chain((0..20).map(|_| Mood::Cut(50_000))));
        let pulled = quietly(&request).await.expect("fetched");
        let part = Model::open(&pulled.path).expect("opens");
        let whole = Model::open(&golden(name)).expect("opens");
        let size = |model: &Model| {
            std::fs::metadata(model.path().expect("on disk").join(SINGLE)).expect("a file").len()
        };
        assert!(size(&part) < size(&whole) * 3 / 4);
        assert_eq!(part.fingerprint(Quantisation::Q4), whole.fingerprint(Quantisation::Q4));
        let shard = Shard { layers: layers.clone(), embedding: ends.0, head: ends.1 };
        let load = |model: &Model| model.load(&shard, Quantisation::Q8, &|_| ()).expect("loads");
        let (ours, theirs) = (load(&part), load(&whole));
        assert_eq!(ours.layers[1].down.weight, theirs.layers[1].down.weight);
        assert_eq!(ours.embedding, theirs.embedding);
        assert_eq!(ours.final_norm, theirs.final_norm);
        let beyond = Shard { layers: 0..4, embedding: false, head: false };
        let error = part.load(&beyond, Quantisation::Q8, &|_| ()).expect_err("not here").to_string();
        assert!(error.contains("is missing") && error.contains("test/model"), "{error}");
    }
}

#[tokio::test]
async fn checkpoints_in_several_files_are_followed() {
    let bytes = std::fs::read(golden("llama").join("model.safetensors")).expect("golden file");
    let whole = ::safetensors::SafeTensors::deserialize(&bytes).expect("golden file");
    let (mut first, mut second, mut map) = (Vec::new(), Vec::new(), serde_json::Map::new());
    for (name, view) in whole.tensors() {
        let early = name.contains("layers.0.") || name.contains("layers.1.") || name.contains("embed");
        let (list, file) = if early {
            (&mut first, "model-00001-of-00002.safetensors")
        } else {
            (&mut second, "model-00002-of-00002.safetensors")
        };
        map.insert(name.clone(), file.into());
        list.push((name, view));
    }
    let pack = |list: Vec<_>| ::safetensors::serialize(list, None).expect("serialises");
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    let config = std::fs::read(golden("llama").join("config.json")).expect("golden file");
    let files = [
        ("config.json", config),
        (INDEX, index.into_bytes()),
        ("model-00001-of-00002.safetensors", pack(first)),
        ("model-00002-of-00002.safetensors", pack(second)),
    ];
    let server = Server::start(files.map(|(name, bytes)| (name.to_owned(), bytes))).await;
    let directory = tempfile::tempdir().expect("temporary directory");
    let request = server.request(&directory);
    let pulled = quietly(&request).await.expect("fetched");
    let ours = Model::open(&pulled.path).expect("opens");
    let theirs = Model::open(&golden("llama")).expect("opens");
    assert_eq!(ours.fingerprint(Quantisation::Q8), theirs.fingerprint(Quantisation::Q8));
    let part = Pull { layers: Some(1..3), directory: directory.path().join("part"), ..request.clone() };
    let pulled = quietly(&part).await.expect("fetched");
    let shard = Shard { layers: 1..3, embedding: false, head: false };
    let load = |model: &Model| model.load(&shard, Quantisation::Q8, &|_| ()).expect("loads");
    let part = Model::open(&pulled.path).expect("opens");
    assert_eq!(load(&part).layers[1].down.weight, load(&theirs).layers[1].down.weight);
    assert_eq!(part.fingerprint(Quantisation::Q8), theirs.fingerprint(Quantisation::Q8));
    std::fs::remove_file(request.directory.join("model-00002-of-00002.safetensors")).expect("a file");
    let half = Model::open(&request.directory).expect("opens");
    let error = half.load(&shard, Quantisation::Q8, &|_| ()).expect_err("not here").to_string();
    assert!(error.contains("model-00002-of-00002.safetensors"), "{error}");
}

#[tokio::test]
async fn gguf_files_are_fetched_alone() {
    let gguf = std::fs::read(golden("stories260K").join("stories260K-f32.gguf")).expect("golden file");
    let files = [("config.json", b"{}".to_vec()), ("a.gguf", gguf)];
    let server = Server::start(files.map(|(name, bytes)| (name.to_owned(), bytes))).await;
    let directory = tempfile::tempdir().expect("temporary directory");
    let request = server.request(&directory);
    let pulled = quietly(&request).await.expect("fetched");
    assert_eq!(pulled.files, ["a.gguf"]);
    Model::open(&pulled.path).expect("opens");
    Model::open(&request.directory).expect("opens");
    let part = Pull { layers: Some(0..1), ..request.clone() };
    assert!(matches!(quietly(&part).await, Err(PullError::PartialGguf)));
    server.shelf.lock().expect("a lock").files.insert("b.gguf".to_owned(), Vec::new());
    assert!(matches!(quietly(&request).await, Err(PullError::SeveralFiles { files }) if files.len() == 2));
    let chosen = Pull { file: Some("a.gguf".to_owned()), ..request.clone() };
    quietly(&chosen).await.expect("here already");
    let missing = Pull { file: Some("../a.gguf".to_owned()), ..request };
    assert!(matches!(quietly(&missing).await, Err(PullError::NoFile { .. })));
}

#[tokio::test]
async fn names_from_the_hub_cannot_lead_out_of_the_directory() {
    let server = Server::start([]).await;
    let directory = tempfile::tempdir().expect("temporary directory");
    let request = server.request(&directory);
    let names = ["../evil.gguf", "/etc/evil.gguf", "a/b.gguf", "..\\evil.gguf"];
    server.shelf.lock().expect("a lock").extra_names = names.map(str::to_owned).to_vec();
    assert!(matches!(quietly(&request).await, Err(PullError::NoWeights)));
    let map = serde_json::json!({"weight_map": {"a": "../evil.safetensors"}}).to_string();
    server.shelf.lock().expect("a lock").files.insert(INDEX.to_owned(), map.into_bytes());
    let error = quietly(&request).await.expect_err("an index that leads out");
    assert!(matches!(error, PullError::Model(_)), "{error}");
    assert!(!directory.path().join("evil.safetensors").exists());
}

#[test]
fn references_are_checked() {
    let parse = |text: &str| text.parse::<Reference>();
    let reference = parse("Qwen/Qwen3-0.6B@refs/pr/1").expect("valid");
    assert_eq!((&*reference.repository, &*reference.revision), ("Qwen/Qwen3-0.6B", "refs/pr/1"));
    assert_eq!(parse("gpt2").expect("valid").revision, "main");
    for wrong in ["", "a/b/c", "../b", "a/..", "a b/c", "a/b@", "a/b@../../x", "a//b", "a/b?x"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}
