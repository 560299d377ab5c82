//! Chains to test against.

use std::{
    env,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use ledger::{
    client::{Client, Config, Deployment, Key, Ledger, Parameters, Pod},
    embedded::{Chain, Genesis, Sealing, Server, serve},
};
use serde_json::{Value, json};

const VARIABLE: &str = "DOLPHIN_ANVIL";
const ETHER: u128 = 10u128.pow(18);

/// A chain of one's own, served over HTTP.
pub(crate) struct Net {
    pub(crate) url: String,
    kind: Kind,
    http: reqwest::Client,
    is_mining: AtomicBool,
}

enum Kind {
    Embedded { _server: Server },
    Anvil(Child),
}

/// The same account in every test for the same number.
pub(crate) fn key(number: u8) -> Key {
    Key::from_bytes(&[number; 32]).expect("a small number is a key")
}

pub(crate) fn pod(text: &str) -> Pod {
    text.parse().expect("an amount")
}

impl Net {
    /// The embedded chain; every transaction has a block at once, or only when `mine` is called.
    pub(crate) async fn embedded(sealing: Sealing) -> Self {
        let accounts = (1..=9).map(|number| (key(number).address(), 100 * ETHER));
        let genesis = Genesis { accounts: accounts.collect(), ..Genesis::default() };
        let chain = Chain::in_memory(genesis, sealing);
        let server = serve(chain, ([127, 0, 0, 1], 0).into(), true).await.expect("a free port");
        Self::with(server.url(), Kind::Embedded { _server: server })
    }

    /// Anvil, if it is installed; said aloud if not.
    pub(crate) async fn anvil(sealing: Sealing) -> Option<Self> {
        let named = env::var_os(VARIABLE);
        let mut command = Command::new(named.as_deref().unwrap_or("anvil".as_ref()));
        command.args(["--host", "127.0.0.1", "--port", "0", "--accounts", "1"]);
        if sealing == Sealing::Manual {
            command.arg("--no-mining");
        }
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut process = match spawned {
            Ok(process) => process,
            Err(error) if named.is_some() => panic!("{VARIABLE} cannot be run: {error}"),
            Err(_) => {
                eprintln!("skipped: no anvil; {VARIABLE} says where it is");
                return None;
            }
        };
        let output = process.stdout.take().expect("its output is piped");
        // Ended by `drop`, also if it never says where it listens.
        let mut net = Self::with(String::new(), Kind::Anvil(process));
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let address = lines.find_map(|line| Some(line.strip_prefix("Listening on ")?.trim().to_owned()));
        net.url = format!("http://{}", address.expect("anvil says where it listens"));
        for number in 1..=9 {
            let address = format!("0x{}", hex::encode(key(number).address()));
            net.ask("anvil_setBalance", json!([address, format!("0x{:x}", 100 * ETHER)])).await;
        }
        println!("anvil answers at {}", net.url);
        Some(net)
    }

    fn with(url: String, kind: Kind) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { url, kind, http, is_mining: AtomicBool::new(false) }
    }

    pub(crate) fn is_anvil(&self) -> bool {
        matches!(self.kind, Kind::Anvil(_))
    }

    pub(crate) async fn ask(&self, method: &str, params: Value) -> Value {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let response = self.http.post(&self.url).json(&body).send().await.expect("the chain answers");
        let answer: Value = response.json().await.expect("JSON");
        assert!(answer.get("error").is_none_or(Value::is_null), "{method}: {answer}");
        answer["result"].clone()
    }

    pub(crate) async fn mine(&self) {
        self.ask("evm_mine", json!([])).await;
    }

    /// Lets time pass.
    pub(crate) async fn advance(&self, seconds: u64) {
        self.ask("evm_increaseTime", json!([seconds])).await;
        self.mine().await;
    }

    /// Makes blocks for as long as something is awaited: what waits for confirmations gets them.
    pub(crate) async fn mining<T>(&self, awaited: impl Future<Output = T>) -> T {
        assert!(!self.is_mining.swap(true, Ordering::Relaxed), "blocks are being made already");
        let mut awaited = std::pin::pin!(awaited);
        let result = loop {
            match tokio::time::timeout(Duration::from_millis(60), &mut awaited).await {
                Ok(result) => break result,
                Err(_) => self.mine().await,
            }
        };
        self.is_mining.store(false, Ordering::Relaxed);
        result
    }

    /// Takes a snapshot to return to.
    pub(crate) async fn snapshot(&self) -> Value {
        self.ask("evm_snapshot", json!([])).await
    }

    /// Returns to a snapshot, and makes other blocks in place of those that are gone, and one more.
    pub(crate) async fn reorganise(&self, snapshot: Value) {
        let before = self.head().await;
        assert_eq!(self.ask("evm_revert", json!([snapshot])).await, json!(true));
        // Blocks at other times are other blocks.
        self.ask("evm_increaseTime", json!([7])).await;
        while self.head().await <= before {
            self.mine().await;
        }
    }

    pub(crate) async fn head(&self) -> u64 {
        let head = self.ask("eth_blockNumber", json!([])).await;
        u64::from_str_radix(&head.as_str().expect("a number")[2..], 16).expect("a number")
    }

    pub(crate) fn config(&self) -> Config {
        config(&self.url)
    }

    pub(crate) async fn deploy(&self) -> Deployment {
        self.deploy_with(|_| ()).await
    }

    /// Deploys with other parameters than the example's.
    pub(crate) async fn deploy_with(&self, change: impl FnOnce(&mut Parameters)) -> Deployment {
        let text = include_str!("../../contracts/script/local.json");
        let parameters: Parameters = serde_json::from_str(text).expect("parameters");
        let mut parameters = Parameters {
            holder: key(1).address(),
            guardian: key(1).address(),
            poster: key(1).address(),
            curator: key(1).address(),
            emission_start: 1_700_000_000,
            ..parameters
        };
        change(&mut parameters);
        self.mining(Client::deploy(self.config(), key(1), &parameters)).await.expect("a deployment")
    }

    pub(crate) async fn client(&self, deployment: &Deployment, number: u8) -> Client {
        let client = Client::connect(self.config(), deployment.clone(), Some(key(number))).await;
        let client = client.expect("a client");
        assert_eq!(client.account(), Some(key(number).address()));
        client
    }
}

/// Quick, and with few confirmations.
pub(crate) fn config(url: &str) -> Config {
    Config {
        confirmations: 2,
        timeout: Duration::from_secs(5),
        patience: Duration::from_secs(60),
        poll: Duration::from_millis(40),
        raise_after: Duration::from_millis(800),
        ..Config::new(url)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Kind::Anvil(process) = &mut self.kind {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
