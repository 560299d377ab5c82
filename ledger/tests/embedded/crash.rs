//! A process that keeps a chain is killed while it takes transactions.

use std::{
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use alloy_primitives::{Address, B256, U256};
use ledger::embedded::{Chain, OpenError, Sealing};
use serde_json::{Value, json};

use crate::support::{Account, genesis};

const DIRECTORY: &str = "DOLPHIN_TEST_CHAIN";
const PAYEE: Address = Address::repeat_byte(7);

fn payer() -> Account {
    Account::new(3)
}

fn open(directory: &Path) -> Result<Chain, OpenError> {
    Chain::open(directory, genesis(&[&payer()]), Sealing::Instant)
}

fn number(chain: &Chain, method: &str, params: Value) -> U256 {
    let answer = chain.request(method, &params).expect("it is answered");
    serde_json::from_value(answer).expect("with a number")
}

/// The child's half of [`what_was_acknowledged_outlives_a_kill`]: pays forever, and says what was acknowledged.
/// Run by itself it has nothing to do.
#[test]
fn a_child_pays_until_it_is_killed() {
    let Some(directory) = env::var_os(DIRECTORY) else { return };
    let chain = open(Path::new(&directory)).expect("the chain opens");
    let payer = payer();
    let first = number(&chain, "eth_getTransactionCount", json!([payer.address, "latest"])).to::<u64>();
    for nonce in (first..).step_by(2) {
        // The later one comes first and waits, perhaps since before an earlier kill.
        for nonce in [nonce + 1, nonce] {
            match chain.submit(&payer.pay(nonce, PAYEE, 1)) {
                Ok(hash) => println!("acknowledged {}", B256::from(hash)),
                Err(error) => assert_eq!(error.message, "already known"),
            }
        }
    }
}

/// A child process that is killed when this is dropped.
struct Payer(Child);

impl Payer {
    fn start(directory: &Path) -> Self {
        let program = env::current_exe().expect("this program has a path");
        let child = Command::new(program)
            .args(["--exact", "crash::a_child_pays_until_it_is_killed", "--nocapture"])
            .env(DIRECTORY, directory)
            .stdout(Stdio::piped())
            .spawn();
        Self(child.expect("this program can be run again"))
    }

    /// Kills it once it has acknowledged `count` payments, and returns the hashes of all it acknowledged.
    fn kill_after(mut self, count: usize) -> Vec<B256> {
        let output = self.0.stdout.take().expect("its output is piped");
        let mut acknowledged = Vec::new();
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let Some((_, hash)) = line.split_once("acknowledged ") else { continue };
            // The kill may cut the last line short.
            acknowledged.extend(hash.parse::<B256>());
            if acknowledged.len() == count {
                self.0.kill().expect("it still runs");
            }
        }
        assert!(acknowledged.len() >= count, "it ended by itself after {} payments", acknowledged.len());
        acknowledged
    }
}

impl Drop for Payer {
    fn drop(&mut self) {
        // It may be killed already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_was_acknowledged_outlives_a_kill() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path: PathBuf = directory.path().join("chain");
    let mut acknowledged = Vec::new();
    for count in [1, 5, 16, 41] {
        acknowledged.extend(Payer::start(&path).kill_after(count));
        let chain = open(&path).expect("the chain opens after a kill");
        for hash in &acknowledged {
            let found = chain.request("eth_getTransactionByHash", &json!([hash])).expect("it is answered");
            assert!(found.is_object(), "{hash} is lost");
        }
        let paid = number(&chain, "eth_getTransactionCount", json!([payer().address, "latest"]));
        let held = number(&chain, "eth_getBalance", json!([PAYEE, "latest"]));
        assert_eq!(held, paid, "every payment was made once");
        assert!(paid + U256::from(1) >= U256::from(acknowledged.len()), "at most one waits for another");
    }
}

#[test]
fn a_directory_has_one_owner() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let first = open(directory.path()).expect("it opens");
    assert!(matches!(open(directory.path()), Err(OpenError::InUse { .. })));
    drop(first);
    open(directory.path()).map(drop).expect("it opens again");
    let other = Chain::open(directory.path(), genesis(&[]), Sealing::Instant);
    assert!(matches!(other, Err(OpenError::OtherGenesis { .. })));
}
