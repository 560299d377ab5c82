//! The same transactions on anvil, where it is installed: its path is in `DOLPHIN_ANVIL`, or it is in `PATH`.
//! `ledger/contracts/check anvil` runs this with a pinned one.

use std::{
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    thread,
};

use alloy_primitives::U256;
use serde_json::{Value, json};

use crate::{
    contracts::{people, play},
    support::{Account, Client, ETHER, START, served},
};

const VARIABLE: &str = "DOLPHIN_ANVIL";

struct Anvil {
    process: Child,
    client: Client,
}

impl Anvil {
    /// `None` where there is none and none was asked for.
    fn start() -> Option<Self> {
        let named = env::var_os(VARIABLE);
        let mut command = Command::new(named.as_deref().unwrap_or("anvil".as_ref()));
        command.args(["--host", "127.0.0.1", "--port", "0", "--hardfork", "prague", "--accounts", "1"]);
        command.args(["--timestamp", &START.to_string()]);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut process = match spawned {
            Ok(process) => process,
            Err(error) if named.is_some() => panic!("{VARIABLE} cannot be run: {error}"),
            Err(_) => return None,
        };
        let output = process.stdout.take().expect("its output is piped");
        // Ended by `drop`, also if it never says where it listens.
        let mut anvil = Self { process, client: Client { address: SocketAddr::from(([127, 0, 0, 1], 0)) } };
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("Listening on ")?.trim().parse().ok());
        anvil.client.address = address.expect("anvil says where it listens");
        // It goes on talking, and should not wait for somebody to listen; that ends with it.
        thread::spawn(move || lines.for_each(drop));
        Some(anvil)
    }

    fn fund(&self, account: &Account) {
        self.client.get("anvil_setBalance", json!([account.address, U256::from(100 * ETHER)]));
    }
}

impl Drop for Anvil {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Balances, receipts, logs, gas, fees, and what contracts return and keep.
#[test]
fn the_embedded_chain_does_as_anvil_does() {
    let Some(anvil) = Anvil::start() else {
        println!("skipped: no anvil in PATH, and {VARIABLE} is not set");
        return;
    };
    let people = people();
    people.iter().for_each(|account| anvil.fund(account));
    let theirs = play(&anvil.client);
    let served = served(&[&people[0], &people[1]], true);
    let ours = play(&served.client);
    assert_eq!(ours.len(), theirs.len());
    for ((what, ours), (their_what, theirs)) in ours.iter().zip(&theirs) {
        assert_eq!(what, their_what);
        assert_eq!(ours, theirs, "{what}:\n{}", differences(ours, theirs));
    }
    println!("{} answers are equal", ours.len());
}

fn differences(ours: &Value, theirs: &Value) -> String {
    let (Value::Object(ours), Value::Object(theirs)) = (ours, theirs) else { return String::new() };
    let names = ours.keys().chain(theirs.keys().filter(|name| !ours.contains_key(*name)));
    names
        .filter(|name| ours.get(*name) != theirs.get(*name))
        .map(|name| format!("  {name}: {:?}, anvil {:?}\n", ours.get(name), theirs.get(name)))
        .collect()
}
