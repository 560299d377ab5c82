//! Chains in processes of their own: the embedded one, and anvil where it is installed.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use ledger::{
    EXAMPLE_PARAMETERS,
    client::{Action, Client, Config, Deployment, Key, Ledger, Parameters, Pod, show_address},
    eip712::Address,
};
use serde_json::{Value, json};

use crate::process::{Dolphin, command};

const ANVIL: &str = "DOLPHIN_ANVIL";
/// For gas, in the chain's wei.
const GAS_MONEY: u128 = 1_000_000_000_000_000_000_000;

/// A chain that is served at `url`, and where on it the contracts are.
pub(super) struct Net {
    pub(super) url: String,
    pub(super) deployment: PathBuf,
    kind: Kind,
    http: reqwest::Client,
}

enum Kind {
    Embedded { home: PathBuf, process: Option<Dolphin> },
    Anvil { _process: Process },
}

/// Killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Net {
    /// `dolphin chain`, kept in `home`; every account has gas and `with` POD.
    pub(super) fn embedded(home: &Path, accounts: &[Address], with: Pod) -> Self {
        let fund = accounts.iter().map(show_address).collect::<Vec<_>>().join(",");
        let with = with.to_string();
        let process = chain(home, &["--listen", "127.0.0.1:0", "--fund", &fund, "--with", &with]);
        let (url, deployment) = (process.text("rpc_url").to_owned(), process.text("deployment").into());
        Self::new(url, deployment, Kind::Embedded { home: home.to_owned(), process: Some(process) })
    }

    /// The same of anvil, if it is installed: its path is in `DOLPHIN_ANVIL`, or it is in `PATH`.
    pub(super) async fn anvil(home: &Path, accounts: &[Address], with: Pod) -> Option<Self> {
        let named = env::var_os(ANVIL);
        let mut command = Command::new(named.as_deref().unwrap_or("anvil".as_ref()));
        command.args(["--host", "127.0.0.1", "--port", "0", "--hardfork", "prague", "--accounts", "1"]);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut process = match spawned {
            Ok(process) => Process(process),
            Err(error) if named.is_some() => panic!("{ANVIL} cannot be run: {error}"),
            Err(_) => return None,
        };
        let mut lines = BufReader::new(process.0.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| Some(line.strip_prefix("Listening on ")?.trim().to_owned()));
        // It goes on talking, and should not wait for somebody to listen; that ends with it.
        thread::spawn(move || lines.for_each(drop));
        let url = format!("http://{}", address.expect("anvil says where it listens"));
        fs::create_dir_all(home).unwrap();
        let file = home.join("deployment.json");
        let net = Self::new(url, file, Kind::Anvil { _process: process });
        net.deploy(accounts, with).await;
        Some(net)
    }

    fn new(url: String, deployment: PathBuf, kind: Kind) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { url, deployment, kind, http }
    }

    async fn deploy(&self, accounts: &[Address], with: Pod) {
        let key = Key::from_bytes(&[0x0d; 32]).unwrap();
        let holder = key.address();
        for account in accounts.iter().chain([&holder]) {
            let money = json!([show_address(account), format!("0x{GAS_MONEY:x}")]);
            self.ask("anvil_setBalance", money).await;
        }
        let example: Parameters = serde_json::from_str(EXAMPLE_PARAMETERS).unwrap();
        let parameters = Parameters { holder, guardian: holder, poster: holder, ..example };
        let deployment = Client::deploy(config(&self.url), key.clone(), &parameters).await.unwrap();
        fs::write(&self.deployment, serde_json::to_vec(&deployment).unwrap()).unwrap();
        let holder = Client::connect(config(&self.url), deployment, Some(key)).await.unwrap();
        for to in accounts {
            holder.submit(Action::Transfer { to: *to, amount: with }).await.unwrap();
        }
    }

    /// Somebody who reads the chain.
    pub(super) async fn reader(&self) -> Client {
        let text = fs::read(&self.deployment).unwrap();
        let deployment: Deployment = serde_json::from_slice(&text).unwrap();
        Client::connect(config(&self.url), deployment, None).await.unwrap()
    }

    /// Kills the embedded chain's process.
    pub(super) fn kill(&mut self) {
        let Kind::Embedded { process, .. } = &mut self.kind else { panic!("anvil forgets what it was told") };
        *process = None;
    }

    /// Starts it again where it was.
    pub(super) fn revive(&mut self) {
        let Kind::Embedded { process, home } = &mut self.kind else { panic!("anvil is never killed") };
        let listen = self.url.trim_start_matches("http://").trim_end_matches('/');
        *process = Some(chain(home, &["--listen", listen]));
    }

    /// One question in JSON-RPC.
    pub(super) async fn ask(&self, method: &str, params: Value) -> Value {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answer: Value = self.http.post(&self.url).json(&body).send().await.unwrap().json().await.unwrap();
        assert!(answer.get("error").is_none_or(Value::is_null), "{method}: {answer}");
        answer["result"].clone()
    }

    /// What a transaction took of gas beside what its bytes cost: keys and signatures have more zeros on one day
    /// than on another.
    pub(super) async fn gas_without_bytes(&self, transaction: [u8; 32]) -> u64 {
        let hash = json!([format!("0x{}", hex::encode(transaction))]);
        let receipt = self.ask("eth_getTransactionReceipt", hash.clone()).await;
        let sent = self.ask("eth_getTransactionByHash", hash).await;
        let used = u64::from_str_radix(&receipt["gasUsed"].as_str().unwrap()[2..], 16).unwrap();
        let input = hex::decode(&sent["input"].as_str().unwrap()[2..]).unwrap();
        let bytes: u64 = input.iter().map(|byte| if *byte == 0 { 4 } else { 16 }).sum();
        used - bytes
    }
}

fn chain(home: &Path, args: &[&str]) -> Dolphin {
    Dolphin::spawn(command(home, &[&["chain"], args, &["--json"]].concat()))
}

fn config(url: &str) -> Config {
    Config { confirmations: 1, poll: Duration::from_millis(20), ..Config::new(url) }
}
