//! `dolphin account`, `stake` and `gov`, as people run them, against a chain that is served over HTTP.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, SystemTime},
};

use engine::model::{Model, Quantisation};
use ledger::{
    EXAMPLE_PARAMETERS,
    client::{
        Action, Client, Config, Deployment, Key, Ledger, Parameters, Passphrase, Pod, parse_address, read_key,
    },
    embedded::{Chain, Genesis, Sealing, Server, serve},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Dolphin, chat, command, until_healthy};

const DAY: u64 = 86_400;

/// A chain with the contracts, the account that holds all POD, and the home of a user.
struct Scene {
    chain: Chain,
    server: Server,
    deployment: Deployment,
    holder: Client,
    home: TempDir,
}

impl Scene {
    async fn new() -> Self {
        let key = Key::from_bytes(&[7; 32]).unwrap();
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let genesis =
            Genesis { timestamp: time, ..Genesis::default().with_account(key.address(), 10u128.pow(24)) };
        let chain = Chain::in_memory(genesis, Sealing::Instant);
        let server = serve(chain.clone(), SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), false).await.unwrap();
        let example: Parameters = serde_json::from_str(EXAMPLE_PARAMETERS).unwrap();
        let holder = key.address();
        let parameters = Parameters { holder, guardian: holder, poster: holder, ..example };
        let deployment = Client::deploy(config(&chain), key.clone(), &parameters).await.unwrap();
        let holder = Client::connect(config(&chain), deployment.clone(), Some(key)).await.unwrap();
        let home = TempDir::new().unwrap();
        let directory = home.path().join("dolphin");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("deployment.json"), serde_json::to_vec(&deployment).unwrap()).unwrap();
        fs::write(home.path().join("passphrase"), "correct horse\n").unwrap();
        Self { chain, server, deployment, holder, home }
    }

    async fn dolphin(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dolphin"));
        command.args(args).stdin(Stdio::null());
        command.env("XDG_CONFIG_HOME", self.home.path()).env("DOLPHIN_LOG", "error");
        command.env("DOLPHIN_RPC_URL", self.server.url());
        command.env("DOLPHIN_PASSPHRASE_FILE", self.home.path().join("passphrase"));
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// The lines of JSON that a command prints.
    async fn ask(&self, args: &[&str]) -> Vec<Value> {
        let output = self.dolphin(args).await;
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::Deserializer::from_slice(&output.stdout).into_iter().map(Result::unwrap).collect()
    }

    /// What a command that fails says.
    async fn refused(&self, args: &[&str]) -> String {
        let output = self.dolphin(args).await;
        assert!(!output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    /// Makes the user's account and gives it gas and POD.
    async fn account(&self, pod: &str) -> [u8; 20] {
        let made = self.ask(&["account", "new", "--json"]).await;
        let address = parse_address(made[0]["address"].as_str().unwrap()).unwrap();
        let wei = 10u128.pow(21);
        self.holder.submit(Action::SendNative { to: address, wei }).await.unwrap();
        self.holder.submit(Action::Transfer { to: address, amount: pod.parse().unwrap() }).await.unwrap();
        address
    }

    fn key_file(&self) -> std::path::PathBuf {
        self.home.path().join("dolphin/account.json")
    }

    fn pass(&self, days: u64) {
        self.chain.advance_time(days * DAY).unwrap();
        self.chain.mine().unwrap();
    }
}

fn config(chain: &Chain) -> Config {
    Config {
        confirmations: 1,
        poll: Duration::from_millis(20),
        ..Config::over(std::sync::Arc::new(chain.clone()))
    }
}

fn pod(value: &Value) -> &str {
    value["pod"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_made_filled_and_emptied() {
    let scene = Scene::new().await;
    let missing = scene.refused(&["account", "balance"]).await;
    assert!(missing.contains("dolphin account new"), "{missing}");
    let address = scene.account("1000").await;

    let again = scene.refused(&["account", "new"]).await;
    assert!(again.contains("not overwritten"), "{again}");
    let unasked = scene.refused(&["account", "deposit", "100"]).await;
    assert!(unasked.contains("--yes") && unasked.contains("gas"), "{unasked}");

    scene.ask(&["account", "deposit", "100.5", "--yes", "--json"]).await;
    scene.ask(&["account", "withdraw", "40", "--yes", "--json"]).await;
    let balance = &scene.ask(&["account", "balance", "--json"]).await[0];
    assert_eq!((pod(&balance["held"]), pod(&balance["escrow"])), ("939.5", "60.5"));
    assert_eq!(scene.holder.balances(address).await.unwrap().escrow, "60.5".parse().unwrap());

    let too_much = scene.refused(&["account", "withdraw", "61", "--yes"]).await;
    assert!(too_much.contains("dolphin account balance"), "{too_much}");
    let nonsense = scene.refused(&["account", "deposit", "much", "--yes"]).await;
    assert!(nonsense.contains("decimal number"), "{nonsense}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_kept_from_others() {
    let scene = Scene::new().await;
    scene.account("1").await;
    let other = scene.home.path().join("other");
    fs::write(&other, "wrong\n").unwrap();
    let wrong = ["account", "deposit", "1", "--yes", "--passphrase-file", other.to_str().unwrap()];
    let wrong = scene.refused(&wrong).await;
    assert!(wrong.contains("passphrase is wrong"), "{wrong}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(scene.key_file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_listed_and_taken_back() {
    let scene = Scene::new().await;
    scene.account("10").await;
    scene.ask(&["account", "deposit", "10", "--yes", "--json"]).await;
    let passphrase = Passphrase::from_file(&scene.home.path().join("passphrase")).unwrap();
    let key = read_key(&scene.key_file(), &passphrase).unwrap();
    let client = Client::connect(config(&scene.chain), scene.deployment.clone(), Some(key)).await.unwrap();
    client.submit(Action::Lock { plan: [5; 32], amount: "4".parse().unwrap() }).await.unwrap();

    let plan = hex::encode([5; 32]);
    let locks = &scene.ask(&["account", "locks", "--json"]).await[0];
    assert_eq!((locks[0]["plan"].as_str(), pod(&locks[0]["remaining"])), (Some(plan.as_str()), "4"));
    scene.ask(&["account", "thaw", &plan, "--yes", "--json"]).await;
    scene.refused(&["account", "release", &plan, "--yes"]).await;
    scene.pass(3);
    scene.ask(&["account", "release", &plan, "--yes", "--json"]).await;
    assert_eq!(scene.ask(&["account", "locks", "--json"]).await[0], Value::Array(Vec::new()));
    assert_eq!(pod(&scene.ask(&["account", "balance", "--json"]).await[0]["escrow"]), "10");
}

#[tokio::test(flavor = "multi_thread")]
async fn stake_is_bonded_delegated_thawed_and_withdrawn() {
    let scene = Scene::new().await;
    let me = scene.account("100").await;
    assert_eq!(scene.ask(&["stake", "bond", "50", "--yes", "--json"]).await.len(), 2);
    let operator = ledger::client::show_address(&scene.holder.account().unwrap());
    scene.ask(&["stake", "delegate", &operator, "10", "--yes", "--json"]).await;
    scene.ask(&["stake", "thaw", "20", "--yes", "--json"]).await;

    let status = &scene.ask(&["stake", "status", "--json"]).await[0];
    assert_eq!((pod(&status["own"]), pod(&status["thawing"])), ("30", "20"));
    assert_eq!(status["thaws"].as_array().unwrap().len(), 1);
    let there = &scene.ask(&["stake", "status", "--operator", &operator, "--json"]).await[0];
    assert_eq!((pod(&there["own"]), pod(&there["active"])), ("10", "10"));

    let early = scene.refused(&["stake", "withdraw", "--yes"]).await;
    assert!(early.contains("nothing can be withdrawn now"), "{early}");
    let more = scene.refused(&["stake", "thaw", "31", "--yes"]).await;
    assert!(more.contains("only 30 POD"), "{more}");
    scene.pass(21);
    scene.ask(&["stake", "withdraw", "--yes", "--json"]).await;
    scene.ask(&["stake", "thaw", "all", "--operator", &operator, "--yes", "--json"]).await;
    assert_eq!(scene.holder.balances(me).await.unwrap().pod, "60".parse::<Pod>().unwrap());
    assert_eq!(pod(&scene.ask(&["stake", "status", "--json"]).await[0]["own"]), "30");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_is_made_voted_on_and_carried_out() {
    let scene = Scene::new().await;
    scene.account("5000000").await;
    let treasury = scene.deployment.timelock;
    scene.holder.submit(Action::Transfer { to: treasury, amount: "7".parse().unwrap() }).await.unwrap();
    let poor = "0x000000000000000000000000000000000000dEaD";
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/stories260K");
    let propose = "gov propose --description Gifts --yes --json --transfer";
    let propose: Vec<&str> = propose.split(' ').chain([poor, "7", "--register-model", model]).collect();
    let voteless = scene.refused(&propose).await;
    assert!(voteless.contains("dolphin gov delegate"), "{voteless}");

    scene.ask(&["gov", "delegate", "--yes", "--json"]).await;
    scene.pass(1);
    scene.ask(&propose).await;
    let listed = &scene.ask(&["gov", "list", "--json"]).await[0][0];
    let id = listed["id"].as_str().unwrap()[..12].to_owned();
    assert_eq!((listed["state"].as_str(), listed["calls"].as_array().unwrap().len()), (Some("pending"), 2));

    // A day is the delay, after which the vote begins.
    scene.pass(2);
    scene.ask(&["gov", "vote", &id, "for", "--reason", "why not", "--yes", "--json"]).await;
    let early = scene.refused(&["gov", "execute", &id, "--yes"]).await;
    assert!(early.contains("vote ends in"), "{early}");
    scene.pass(8);
    scene.ask(&["gov", "execute", &id, "--yes", "--json"]).await;
    scene.refused(&["gov", "execute", &id, "--yes"]).await;
    scene.pass(3);
    scene.ask(&["gov", "execute", &id, "--yes", "--json"]).await;
    let listed = &scene.ask(&["gov", "list", "--json"]).await[0][0];
    assert_eq!((listed["state"].as_str(), pod(&listed["for"])), (Some("executed"), "5000000"));
    let paid = scene.holder.balances(parse_address(poor).unwrap()).await.unwrap().pod;
    assert_eq!(paid, "7".parse().unwrap());
    let model = Model::open(Path::new(model)).unwrap().hash(Quantisation::Q8, &|_| ()).unwrap();
    assert!(scene.holder.is_active_model(model.hash).await.unwrap());
}

/// A user of the program: a home with an account in it.
#[cfg(unix)]
pub(crate) struct User {
    pub(crate) home: TempDir,
    pub(crate) address: String,
}

#[cfg(unix)]
impl User {
    pub(crate) fn new() -> Self {
        let home = TempDir::new().unwrap();
        fs::write(home.path().join("passphrase"), "correct horse\n").unwrap();
        let user = Self { home, address: String::new() };
        let made = user.ask(&["account", "new", "--json"]);
        Self { address: made["address"].as_str().unwrap().to_owned(), ..user }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = command(self.home.path(), args);
        command.env("DOLPHIN_PASSPHRASE_FILE", self.home.path().join("passphrase"));
        command
    }

    fn ask(&self, args: &[&str]) -> Value {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// A gateway and a node of two people, each in a process of its own, on a third's chain.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_node_earns_what_a_gateway_pays() {
    let (payer, earner) = (User::new(), User::new());
    let fund = [payer.address.as_str(), &earner.address].join(",");
    let chain = ["chain", "--listen", "127.0.0.1:0", "--fund", &fund, "--with", "100", "--json"];
    let chain = Dolphin::spawn(payer.command(&chain));
    let (url, deployment) = (chain.text("rpc_url"), chain.text("deployment"));
    let on_chain = |user: &User, args: &[&str]| {
        let mut command = user.command(args);
        command.env("DOLPHIN_RPC_URL", url).env("DOLPHIN_DEPLOYMENT", deployment);
        command
    };
    let ask = |user: &User, args: &[&str]| -> Value {
        let output = on_chain(user, args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    ask(&payer, &["account", "deposit", "50", "--yes", "--json"]);

    let account = |user: &User| user.home.path().join("dolphin/account.json").display().to_string();
    let key = account(&payer);
    let serve = ["serve", "--listen", "127.0.0.1:0", "--swarm", "127.0.0.1:0", "--account", &key, "--json"];
    let gateway = Dolphin::spawn(on_chain(&payer, &serve));
    let key = account(&earner);
    let node = ["node", "--join", gateway.text("join"), "--price", "2000", "--account", &key, "--json"];
    let node = Dolphin::spawn(on_chain(&earner, &node));
    until_healthy(gateway.text("url")).await;

    let response = chat(gateway.text("url"), json!({"max_tokens": 20})).send().await.unwrap();
    let cost = response.headers()["x-dolphin-cost"].to_str().unwrap().to_owned();
    let reply: Value = response.json().await.unwrap();
    let tokens = reply["usage"]["total_tokens"].as_u64().unwrap();
    assert_eq!(reply["usage"]["cost"]["wei"], json!((u128::from(tokens) * 2 * 10u128.pow(15)).to_string()));

    // Both go: the gateway leaves the last voucher, the node has it paid out.
    gateway.stop();
    node.stop();
    let earned = ask(&earner, &["earn", "--json"]);
    assert_eq!(earned["chain"]["earned"], json!(cost), "{earned}");
    assert_eq!((&earned["collected"], &earned["claimable"]), (&json!(cost), &json!("0")), "{earned}");
    let balance = ask(&earner, &["account", "balance", "--json"]);
    assert_eq!((pod(&balance["escrow"]), pod(&balance["held"])), (cost.as_str(), "100"));
    ask(&earner, &["account", "withdraw", &cost, "--yes", "--json"]);
    chain.stop();
}
