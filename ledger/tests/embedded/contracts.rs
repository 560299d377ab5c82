//! The life of a lock on whatever chain is asked: contracts are deployed, money is deposited, locked, collected by
//! vouchers, thawed and released.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use alloy_primitives::{Address, B256, Bytes, TxKind, U256, hex};
use alloy_sol_types::{SolCall, SolEvent, SolValue, sol};
use ledger::{
    eip712::Domain,
    embedded::Genesis,
    plan::{self, Plan},
    voucher::Voucher,
};
use serde_json::{Value, json};

use crate::support::{Account, Client, START, served};

sol! {
    struct Stage { address payee; uint64 weight; }
    struct PlanArgument { bytes32 session; address payer; bytes32 terms; uint64 expiry; Stage[] stages; }
    struct Item {
        PlanArgument plan;
        uint128 total;
        uint64 chunk;
        bytes32 commitments;
        address signer;
        bytes signature;
    }
    event Deposited(address indexed account, address indexed from, uint128 amount);
    function approve(address spender, uint256 value);
    function balanceOf(address account) returns (uint256);
    function deposit(address account, uint128 amount);
    function lock(address collector, bytes32 plan, uint128 amount);
    function collect(Item item);
    function collectBatch(Item[] items);
    function thaw(address collector, bytes32 plan);
    function release(address collector, bytes32 plan);
    function withdraw(address to, uint128 amount);
    function accounts(address account) returns (uint128 balance, uint128 earned);
}

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const SUPPLY: u128 = 1_000_000;

/// Payer and payee of the scenario, both with ether.
pub(crate) fn people() -> [Account; 2] {
    [Account::new(1), Account::new(2)]
}

struct Scenario<'a> {
    client: &'a Client,
    people: [Account; 2],
    nonces: [u64; 2],
    time: u64,
    seen: Vec<(String, Value)>,
}

const PAYER: usize = 0;
const PAYEE: usize = 1;

/// Everything that can be seen of the scenario but hashes of blocks, by step.
pub(crate) fn play(client: &Client) -> Vec<(String, Value)> {
    let mut scenario =
        Scenario { client, people: people(), nonces: [0; 2], time: START + 100, seen: Vec::new() };
    let [token, escrow, collector] = scenario.deploy();
    let plan = scenario.pay_in(token, escrow, collector);
    scenario.collect(collector, &plan);
    scenario.refuse(escrow);
    scenario.pay_out(escrow, collector, &plan);
    scenario.look(&[token, escrow, collector]);
    scenario.seen
}

impl Scenario<'_> {
    fn deploy(&mut self) -> [Address; 3] {
        let payer = self.people[PAYER].address;
        let supply = U256::from(SUPPLY);
        let token = self.create("PODToken", (payer, supply, payer, supply).abi_encode_params());
        let escrow = self.create("SessionEscrow", (token, 3 * DAY).abi_encode_params());
        let collector = self.create("VoucherCollector", (escrow, DAY).abi_encode_params());
        [token, escrow, collector]
    }

    /// Deposits and locks, by transactions of all kinds.
    fn pay_in(&mut self, token: Address, escrow: Address, collector: Address) -> Plan {
        let payer = self.people[PAYER].clone();
        let stage = |payee: &Account, weight| plan::Stage { payee: payee.address.0.0, weight };
        let plan = Plan {
            session: [5; 32],
            payer: payer.address.0.0,
            terms: [6; 32],
            expiry: START + 30 * DAY,
            stages: vec![stage(&self.people[PAYEE], 2), stage(&Account::new(9), 1)],
        };
        let approve = approveCall { spender: escrow, value: U256::MAX }.abi_encode();
        self.send("approve", PAYER, |nonce| payer.encode(payer.legacy(nonce, token.into(), approve)));
        let deposit = depositCall { account: payer.address, amount: 9_000 }.abi_encode();
        self.send("deposit", PAYER, |nonce| payer.encode(payer.with_list(nonce, escrow, deposit)));
        let lock = lockCall { collector, plan: plan.hash().into(), amount: 5_000 };
        self.call("lock", PAYER, escrow, &lock);
        plan
    }

    fn collect(&mut self, collector: Address, plan: &Plan) {
        let first = self.item(collector, plan, 1_000, 1);
        self.call("first voucher", PAYEE, collector, &collectCall { item: first.clone() });
        let later = self.item(collector, plan, 1_700, 2);
        self.call("later voucher", PAYEE, collector, &collectCall { item: later.clone() });
        self.call("old voucher", PAYEE, collector, &collectCall { item: first.clone() });
        let mut forged = self.item(collector, plan, 4_000, 3);
        forged.total += 1;
        let last = self.item(collector, plan, 2_500, 4);
        self.call("batch", PAYEE, collector, &collectBatchCall { items: vec![first, forged, last] });
    }

    /// What is not possible, whether sent, called or estimated.
    fn refuse(&mut self, escrow: Address) {
        let payee = self.people[PAYEE].clone();
        let too_much = withdrawCall { to: payee.address, amount: 1_000_000 };
        self.call("withdraw too much", PAYEE, escrow, &too_much);
        let request =
            json!({"from": payee.address, "to": escrow, "data": Bytes::from(too_much.abi_encode())});
        for method in ["eth_call", "eth_estimateGas"] {
            let error = self.client.ask(method, json!([request, "latest"])).expect_err("it reverts");
            assert_eq!(error["code"], 3, "{error}");
            self.note("reverts with", error["data"].clone());
        }
        let nonce = self.nonces[PAYEE];
        let refused = |raw: Vec<u8>| {
            let error = self.client.send(&raw).expect_err("it is refused");
            let message = error["message"].as_str().unwrap_or_default().to_lowercase();
            (error["code"].clone(), message)
        };
        let (_, used) = refused(payee.pay(nonce - 1, Address::ZERO, 1));
        assert!(used.contains("nonce too low"), "{used}");
        let (_, poor) = refused(payee.pay(nonce, Address::ZERO, u128::MAX));
        assert!(poor.contains("insufficient funds"), "{poor}");
        let mut stingy = payee.transaction(nonce, Address::ZERO.into(), Bytes::new());
        (stingy.max_fee_per_gas, stingy.max_priority_fee_per_gas) = (1, 1);
        let (_, stingy) = refused(payee.encode(stingy));
        assert!(stingy.contains("max fee per gas less than block base fee"), "{stingy}");
        let mut starved = payee.transaction(nonce, Address::ZERO.into(), Bytes::new());
        starved.gas_limit = 20_999;
        let (_, starved) = refused(payee.encode(starved));
        assert!(starved.contains("intrinsic gas too low"), "{starved}");
    }

    fn pay_out(&mut self, escrow: Address, collector: Address, plan: &Plan) {
        let payee = self.people[PAYEE].address;
        self.call("withdraw", PAYEE, escrow, &withdrawCall { to: payee, amount: 1_000 });
        let hash = B256::from(plan.hash());
        self.call("thaw", PAYER, escrow, &thawCall { collector, plan: hash });
        self.call("release too early", PAYER, escrow, &releaseCall { collector, plan: hash });
        self.time += 3 * DAY;
        self.call("release", PAYER, escrow, &releaseCall { collector, plan: hash });
    }

    fn look(&mut self, contracts: &[Address; 3]) {
        let [token, escrow, _] = *contracts;
        let everybody = [self.people[PAYER].address, self.people[PAYEE].address, Address::ZERO];
        for address in everybody {
            self.ask("eth_getBalance", json!([address, "latest"]));
            self.ask("eth_getTransactionCount", json!([address, "pending"]));
            let held = balanceOfCall { account: address }.abi_encode();
            self.ask("eth_call", json!([{"to": token, "input": Bytes::from(held)}, "latest"]));
            let account = accountsCall { account: address }.abi_encode();
            self.ask("eth_call", json!([{"to": escrow, "input": Bytes::from(account)}, "latest"]));
        }
        for contract in contracts {
            self.ask("eth_getCode", json!([contract, "latest"]));
            for slot in 0..4 {
                self.ask("eth_getStorageAt", json!([contract, U256::from(slot), "latest"]));
            }
        }
        let deposited = Deposited::SIGNATURE_HASH;
        for filter in [
            json!({"fromBlock": "earliest"}),
            json!({"fromBlock": "0x1", "toBlock": "0x5", "address": escrow}),
            json!({"fromBlock": "0x0", "address": [token, escrow], "topics": [null, null]}),
            json!({"fromBlock": "0x0", "topics": [[deposited], everybody.map(|one| one.into_word())]}),
        ] {
            let mut logs = self.client.get("eth_getLogs", json!([filter]));
            forget_hashes(&mut logs);
            self.note("eth_getLogs", logs);
        }
        self.ask("eth_gasPrice", json!([]));
        self.ask("eth_feeHistory", json!(["0x8", "latest", [10.0, 50.0, 100.0]]));
        self.ask("eth_chainId", json!([]));
        self.ask("net_version", json!([]));
    }

    fn item(&self, collector: Address, plan: &Plan, total: u128, chunk: u64) -> Item {
        let voucher =
            Voucher { session: plan.session, plan: plan.hash(), total, chunk, commitments: [7; 32] };
        let domain = Domain { chain_id: Genesis::default().chain_id, contract: collector.0.0 };
        let signature = self.people[PAYER].sign(&voucher.digest(&domain).into());
        let stages = plan.stages.iter();
        Item {
            plan: PlanArgument {
                session: plan.session.into(),
                payer: plan.payer.into(),
                terms: plan.terms.into(),
                expiry: plan.expiry,
                stages: stages
                    .map(|stage| Stage { payee: stage.payee.into(), weight: stage.weight })
                    .collect(),
            },
            total,
            chunk,
            commitments: voucher.commitments.into(),
            signer: plan.payer.into(),
            signature: signature.as_bytes().to_vec().into(),
        }
    }

    fn create(&mut self, name: &str, arguments: Vec<u8>) -> Address {
        let payer = self.people[PAYER].clone();
        let code = [creation_code(name), arguments].concat();
        let address = payer.address.create(self.nonces[PAYER]);
        self.send(name, PAYER, |nonce| payer.encode(payer.transaction(nonce, TxKind::Create, code)));
        address
    }

    fn call(&mut self, name: &str, from: usize, to: Address, call: &impl SolCall) {
        let account = self.people[from].clone();
        let input = Bytes::from(call.abi_encode());
        self.send(name, from, |nonce| account.encode(account.transaction(nonce, to.into(), input)));
    }

    /// Sends a transaction a minute after the one before, and notes what came of it.
    fn send(&mut self, name: &str, from: usize, encode: impl FnOnce(u64) -> Vec<u8>) {
        self.time += 60;
        self.client.get("evm_setNextBlockTimestamp", json!([self.time]));
        let raw = encode(self.nonces[from]);
        self.nonces[from] += 1;
        let hash = self.client.send(&raw).unwrap_or_else(|error| panic!("{name}: {error}"));
        let [mut transaction, mut receipt] = self.mined(&hash);
        let number = receipt["blockNumber"].clone();
        let mut block = self.client.get("eth_getBlockByNumber", json!([number, false]));
        for seen in [&mut receipt, &mut transaction, &mut block] {
            forget_hashes(seen);
        }
        self.note(&format!("{name}: receipt"), receipt);
        self.note(&format!("{name}: transaction"), transaction);
        self.note(&format!("{name}: block"), block);
    }

    /// A transaction in its block, and its receipt. Anvil acknowledges it a moment before both are to be seen.
    fn mined(&self, hash: &Value) -> [Value; 2] {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let seen = ["eth_getTransactionByHash", "eth_getTransactionReceipt"]
                .map(|method| self.client.get(method, json!([hash])));
            if seen.iter().all(|seen| !seen["blockNumber"].is_null()) {
                return seen;
            }
            assert!(Instant::now() < deadline, "{hash} is in no block");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn ask(&mut self, method: &str, params: Value) {
        let asked = format!("{method} {params}");
        let answer = self.client.get(method, params);
        self.note(&asked, answer);
    }

    fn note(&mut self, what: &str, value: Value) {
        self.seen.push((what.to_owned(), value));
    }

    fn status(&self, name: &str) -> &Value {
        let name = format!("{name}: receipt");
        let found = self.seen.iter().find(|(seen, _)| *seen == name);
        &found.expect("the step was played").1["status"]
    }
}

/// Takes out what depends on the root of the state, which the embedded chain does not compute, fields that either
/// chain adds to the standard ones, and a block's size, of which anvil leaves out the empty list of withdrawals.
fn forget_hashes(value: &mut Value) {
    const OF_STATE: [&str; 5] = ["hash", "parentHash", "blockHash", "stateRoot", "mixHash"];
    const ADDED: [&str; 4] = ["blockTimestamp", "blobGasPrice", "blobGasUsed", "size"];
    match value {
        Value::Array(values) => values.iter_mut().for_each(forget_hashes),
        Value::Object(fields) => {
            let is_block = fields.contains_key("stateRoot");
            fields.retain(|name, _| {
                let name = name.as_str();
                (name == "hash" && !is_block) || !(OF_STATE.contains(&name) || ADDED.contains(&name))
            });
            fields.values_mut().for_each(forget_hashes);
        }
        _ => {}
    }
}

pub(crate) fn creation_code(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("artifacts/{name}.json"));
    let text = fs::read_to_string(path).expect("the artefacts are there");
    let artefact: Value = serde_json::from_str(&text).expect("they are JSON");
    hex::decode(artefact["bytecode"].as_str().expect("with code")).expect("in hexadecimal")
}

#[test]
fn a_lock_lives_on_the_embedded_chain() {
    let people = people();
    let served = served(&[&people[0], &people[1]], true);
    let seen = play(&served.client);
    let scenario = Scenario { client: &served.client, people, nonces: [0; 2], time: 0, seen };
    for step in
        ["PODToken", "deposit", "lock", "first voucher", "later voucher", "batch", "withdraw", "release"]
    {
        assert_eq!(scenario.status(step), "0x1", "{step}");
    }
    for step in ["old voucher", "withdraw too much", "release too early"] {
        assert_eq!(scenario.status(step), "0x0", "{step}");
    }
}
