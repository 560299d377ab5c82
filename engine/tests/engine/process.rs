//! The binary as people run it: processes of their own, real QUIC, real HTTP.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use futures::StreamExt;
use serde_json::{Value, json};

/// A running `dolphin`, killed when dropped.
pub(crate) struct Dolphin {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// The line of JSON it printed when it was ready.
    pub(crate) announced: Value,
}

impl Dolphin {
    pub(crate) fn start(home: &Path, args: &[&str]) -> Self {
        Self::spawn(command(home, args))
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let announced =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("{command:?} printed {line:?}"));
        Self { child, stdout, announced }
    }

    pub(crate) fn text(&self, key: &str) -> &str {
        self.announced[key].as_str().unwrap()
    }

    #[cfg(unix)]
    pub(crate) fn interrupt(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    }

    /// Ctrl-C; what it prints until it has ended.
    #[cfg(unix)]
    pub(crate) fn stop(mut self) -> String {
        self.interrupt();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.stdout, &mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "Ctrl-C ends it cleanly");
        rest
    }
}

impl Drop for Dolphin {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `dolphin` with a home of its own, so that no settings or keys of the user are touched.
pub(crate) fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dolphin"));
    command.args(args).env("XDG_CONFIG_HOME", home).env("XDG_CACHE_HOME", home).env("DOLPHIN_LOG", "error");
    command.env("DOLPHIN_THREADS", "1");
    command
}

pub(crate) fn chat(url: &str, body: Value) -> reqwest::RequestBuilder {
    let mut full =
        json!({"model": "dolphin-demo", "messages": [{"role": "user", "content": "What is Dolphin?"}]});
    full.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    reqwest::Client::new()
        .post(format!("{url}/chat/completions"))
        .json(&full)
        .timeout(Duration::from_secs(120))
}

async fn answer(url: &str) -> String {
    let reply: Value = chat(url, json!({"temperature": 0})).send().await.unwrap().json().await.unwrap();
    reply["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned()
}

async fn healthy(url: &str) -> bool {
    let health = url.trim_end_matches("/v1").to_owned() + "/health";
    reqwest::get(health).await.unwrap().status().is_success()
}

pub(crate) async fn until_healthy(url: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !healthy(url).await {
        assert!(Instant::now() < deadline, "the swarm did not become ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What came of a stream.
struct Streamed {
    text: String,
    usage: Value,
    /// The longest times without anything, from the beginning and from each disturbance on.
    pauses: Vec<Duration>,
}

/// Reads a stream to its end; after so many pieces `disturb` is called.
async fn streamed(url: &str, body: &Value, after: &[usize], mut disturb: impl AsyncFnMut(usize)) -> Streamed {
    let mut stream = chat(url, body.clone()).send().await.unwrap().bytes_stream();
    let (mut received, mut last, mut pauses) = (Vec::new(), Instant::now(), vec![Duration::ZERO]);
    let mut pieces = 0;
    while let Some(piece) = stream.next().await {
        received.extend_from_slice(&piece.unwrap());
        let pause = pauses.last_mut().unwrap();
        *pause = last.elapsed().max(*pause);
        pieces += 1;
        if let Some(which) = after.iter().position(|&after| after == pieces) {
            disturb(which).await;
            pauses.push(Duration::ZERO);
        }
        last = Instant::now();
    }
    let received = String::from_utf8(received).unwrap();
    let mut events = received.lines().filter_map(|line| line.strip_prefix("data: {"));
    let event: Value = serde_json::from_str(&format!("{{{}", events.next_back().unwrap())).unwrap();
    assert!(event["error"].is_null(), "{event}");
    Streamed { text: text_of(&received, true), usage: event["usage"].clone(), pauses }
}

/// Nodes in processes of their own, told their layers by the gateway. In the middle of a reply one is killed while
/// another has joined that holds the same layers; then that one is told to leave, and a third comes for it. The
/// client sees two pauses.
#[tokio::test]
async fn a_stream_goes_on_when_processes_die() {
    let home = tempfile::tempdir().unwrap();
    // The third keeps the layers it is told.
    let args = ["serve", "--listen", "127.0.0.1:0", "--swarm", "127.0.0.1:0", "--replan", "off", "--json"];
    let gateway = Dolphin::start(home.path(), &args);
    let (url, join) = (gateway.text("url"), gateway.text("join"));
    assert!(!healthy(url).await);
    let node = |layers: &str, memory: &str| {
        let args = ["node", "--join", join, "--layers", layers, "--memory", memory, "--json"];
        Dolphin::start(home.path(), &args)
    };
    // Room for two layers, with the head and without.
    let first = node("0..2", "4MiB");
    let mut second = Some(node("2..4", "4MiB"));
    let third = node("auto", "1240KiB");
    assert_eq!((&third.announced["from"], &third.announced["to"]), (&json!(4), &json!(6)));
    until_healthy(url).await;
    let greeting = answer(url).await;
    assert!(greeting.starts_with("Dolphin is an open network"), "{greeting}");

    let long = json!({
        "stream": true, "stream_options": {"include_usage": true}, "ignore_eos": true, "max_tokens": 900,
        "temperature": 0.8, "seed": 7, "frequency_penalty": 0.2,
    });
    let plain = streamed(url, &long, &[], async |_| ()).await;
    assert_eq!(plain.usage["completion_tokens"], 900);
    let mut refused = 0;
    let disturbed = streamed(url, &long, &[20, 60], async |which| match which {
        0 => drop(second.replace(node("2..4", "4MiB"))),
        _ => {
            assert!(second.take().unwrap().stop().is_empty());
            while healthy(url).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            refused = chat(url, json!({})).send().await.unwrap().status().as_u16();
            second = Some(node("auto", "1000KiB"));
        }
    });
    let disturbed = disturbed.await;
    eprintln!("longest time without a token: {:?}, undisturbed {:?}", disturbed.pauses, plain.pauses);
    assert_eq!((&disturbed.text, &disturbed.usage), (&plain.text, &plain.usage));
    let again = second.unwrap();
    assert_eq!((&again.announced["from"], &again.announced["to"]), (&json!(2), &json!(4)));
    assert_eq!(refused, 503, "the gateway says what is missing while the reply waits");
    let metrics = reqwest::get(url.replace("/v1", "/metrics")).await.unwrap().text().await.unwrap();
    let resumed = metrics.lines().find_map(|line| line.strip_prefix("dolphin_gateway_resumed_total "));
    assert!(resumed.unwrap().parse::<f64>().unwrap() >= 2.0, "{metrics}");
    assert_eq!(answer(url).await, greeting);
    drop((first, third, again));
}

#[tokio::test]
async fn two_hundred_clients_at_once_lose_nothing() {
    let home = tempfile::tempdir().unwrap();
    let up = Dolphin::start(home.path(), &["up", "--listen", "127.0.0.1:0", "--json"]);
    let url = up.text("url").to_owned();
    let request = |n: u64| {
        let url = url.clone();
        async move {
            let body =
                json!({"stream": n.is_multiple_of(2), "seed": n % 5, "max_tokens": 16, "ignore_eos": true});
            let response = chat(&url, body).send().await.unwrap();
            assert_eq!(response.status(), 200);
            (n, response.text().await.unwrap())
        }
    };
    let replies = futures::future::join_all((0..200).map(request)).await;
    let mut by_seed: std::collections::HashMap<u64, Vec<String>> = std::collections::HashMap::new();
    for (n, reply) in &replies {
        by_seed.entry(n % 5).or_default().push(text_of(reply, n.is_multiple_of(2)));
    }
    for (seed, texts) in by_seed {
        assert_eq!(texts.len(), 40);
        assert!(!texts[0].is_empty());
        assert!(texts.iter().all(|text| *text == texts[0]), "seed {seed} gave different replies: {texts:?}");
    }
    #[cfg(unix)]
    {
        up.stop();
    }
}

/// A gateway says what its planner sees, as a file that can be planned with.
#[tokio::test]
async fn a_running_gateway_shows_its_plan() {
    let home = tempfile::tempdir().unwrap();
    let up = Dolphin::start(home.path(), &["up", "--listen", "127.0.0.1:0", "--json"]);
    assert!(up.announced["predicted"]["tokens_per_s"].as_f64().unwrap() > 0.0);
    let url = up.text("url").to_owned();
    let file = home.path().join("swarm.toml");
    let plan = |args: &[&str]| {
        let output = command(home.path(), &[&["plan"], args].concat()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap() + &error)
    };
    let saved = file.to_str().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let report: Value = loop {
        let (done, text) = plan(&["--gateway", &url, "--save", saved, "--json"]);
        let report = done.then(|| serde_json::from_str::<Value>(&text).unwrap());
        // The first plans see fewer nodes.
        match report.filter(|report| report["pipelines"][0]["stages"].as_array().unwrap().len() == 3) {
            Some(report) => break report,
            None => assert!(Instant::now() < deadline, "{text}"),
        }
    };
    assert_eq!(report["pipelines"][0]["stages"][2]["to"], 6);
    assert!(report["flow_tokens_per_s"].as_f64() >= report["tokens_per_s"].as_f64(), "{report}");
    let (done, text) = plan(&[saved, "--objective", "throughput", "--concurrency", "8"]);
    assert!(done && text.contains("tokens/s"), "{text}");
    let health: Value = reqwest::get(url.replace("/v1", "/health")).await.unwrap().json().await.unwrap();
    assert_eq!((health["moved"].as_u64(), health["moves"].as_array().map(Vec::len)), (Some(0), Some(0)));
}

fn text_of(reply: &str, streamed: bool) -> String {
    if !streamed {
        let reply: Value = serde_json::from_str(reply).unwrap();
        return reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    }
    assert!(reply.trim_end().ends_with("data: [DONE]"), "{reply}");
    let events =
        reply.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    events
        .map(|data| serde_json::from_str::<Value>(data).unwrap())
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn run_prints_a_reply_and_inspect_describes_the_model() {
    let home = tempfile::tempdir().unwrap();
    let output =
        command(home.path(), &["run", "What is the capital of France?", "--temperature", "0"]).output();
    assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), "The capital of France is Paris.\n");
    let output = command(home.path(), &["inspect", "--json"]).output().unwrap();
    let inspection: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(inspection["layers"], 6);
    let output = command(home.path(), &["inspect", "no-such-model"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("no-such-model"));
}

#[test]
fn mistakes_on_the_command_line_say_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let complaint = |args: &[&str]| {
        let output = command(home.path(), args).output().unwrap();
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(complaint(&["up", "--nodes", "7"]).contains("6 layers cannot be cut over 7 nodes"));
    assert!(complaint(&["up", "--quant", "q3"]).contains("q8, q4 or f32"));
    assert!(complaint(&["node", "--join", "nonsense"]).contains("id@host:port"));
    assert!(complaint(&["node"]).contains("--join"));
    let file = home.path().join("config.toml");
    std::fs::write(&file, "nods = 4\n").unwrap();
    assert!(complaint(&["--config", file.to_str().unwrap(), "up"]).contains("nods"));
}

/// The first reply is paid on the chain that `up` started, to the wei.
#[tokio::test]
async fn up_pays_its_nodes_and_says_who_got_what() {
    let home = tempfile::tempdir().unwrap();
    let mut up = Dolphin::start(home.path(), &["up", "--listen", "127.0.0.1:0", "--price", "0.5", "--json"]);
    let url = up.text("url").to_owned();
    assert!(up.announced["chain"]["rpc_url"].as_str().unwrap().starts_with("http://127.0.0.1:"));
    let response = chat(&url, json!({"temperature": 0})).send().await.unwrap();
    let header = response.headers()["x-dolphin-cost"].to_str().unwrap().to_owned();
    let reply: Value = response.json().await.unwrap();
    let usage = &reply["usage"];
    let wei = usage["total_tokens"].as_u64().unwrap() * 3 * 500_000_000_000;
    assert_eq!((&usage["cost"]["wei"], &usage["cost"]["pod"]), (&json!(wei.to_string()), &json!(header)));
    let mut line = String::new();
    up.stdout.read_line(&mut line).unwrap();
    let settled: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(settled["settled"]["pod"], json!(header), "{line}");
    let paid = settled["settled"]["paid"].as_array().unwrap();
    let share = ledger::client::Pod(u128::from(wei / 3)).to_string();
    assert!(paid.len() == 3 && paid.iter().all(|one| one["pod"] == json!(share)), "{line}");
    let metrics = reqwest::get(url.replace("/v1", "/metrics")).await.unwrap().text().await.unwrap();
    let gauges = |name: &str| -> Vec<f64> {
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap()).collect()
    };
    let pod = (wei / 3) as f64 / 1e18;
    assert_eq!(gauges("dolphin_node_earned_pod{"), [pod; 3], "{metrics}");
    // Whoever has not collected learns of it when it looks at the chain.
    assert!(gauges("dolphin_node_collected_pod{").contains(&pod), "{metrics}");
    drop(up);
    let free = Dolphin::start(home.path(), &["up", "--listen", "127.0.0.1:0", "--free", "--json"]);
    assert_eq!(free.announced["chain"], Value::Null);
    let reply: Value = chat(free.text("url"), json!({})).send().await.unwrap().json().await.unwrap();
    assert_eq!(reply["usage"]["cost"], Value::Null);
}
