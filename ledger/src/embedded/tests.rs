//! The chain through its methods, in memory and on disk.

use std::{path::Path, thread, time::Duration};

use alloy_consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy_eips::{eip2718::Encodable2718, eip2930::AccessList};
use alloy_primitives::{Address, Bytes, Signature, TxKind, U256, hex};
use k256::ecdsa::SigningKey;
use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};

use super::{
    journal::{BlockRecord, Record, Replay},
    *,
};

const GWEI: u128 = 1_000_000_000;
const ETHER: u128 = GWEI * GWEI;
/// Its code writes a log without topics or data.
const LOGGER: [u8; 18] =
    [0x60, 6, 0x60, 12, 0x60, 0, 0x39, 0x60, 6, 0x60, 0, 0xf3, 0x60, 0, 0x60, 0, 0xa0, 0];
/// Its code reverts with a word that is 7.
const REFUSER: [u8; 22] = [
    0x60, 10, 0x60, 12, 0x60, 0, 0x39, 0x60, 10, 0x60, 0, 0xf3, 0x60, 7, 0x60, 0, 0x52, 0x60, 32, 0x60, 0,
    0xfd,
];

struct Payer(SigningKey);

impl Payer {
    fn new(seed: u8) -> Self {
        Self(SigningKey::from_slice(&[seed; 32]).expect("a small number is a key"))
    }

    fn address(&self) -> Address {
        Address::from_public_key(self.0.verifying_key())
    }

    fn asks(nonce: u64) -> TxEip1559 {
        TxEip1559 {
            chain_id: Genesis::default().chain_id,
            nonce,
            gas_limit: 100_000,
            max_fee_per_gas: 10 * GWEI,
            max_priority_fee_per_gas: GWEI,
            to: TxKind::Call(Address::repeat_byte(9)),
            value: U256::from(1),
            access_list: AccessList::default(),
            input: Bytes::new(),
        }
    }

    fn sign(&self, transaction: TxEip1559) -> Vec<u8> {
        let digest = transaction.signature_hash();
        let (signature, recovery) =
            self.0.sign_prehash_recoverable(digest.as_slice()).expect("a digest can be signed");
        let signature = Signature::from_signature_and_parity(signature, recovery.is_y_odd());
        TxEnvelope::from(transaction.into_signed(signature)).encoded_2718()
    }

    fn pay(&self, nonce: u64) -> Vec<u8> {
        self.sign(Self::asks(nonce))
    }

    fn create(&self, nonce: u64, code: &[u8]) -> Vec<u8> {
        let (to, value) = (TxKind::Create, U256::ZERO);
        self.sign(TxEip1559 { to, value, input: Bytes::copy_from_slice(code), ..Self::asks(nonce) })
    }

    fn call(&self, nonce: u64, to: Address) -> Vec<u8> {
        self.sign(TxEip1559 { to: to.into(), value: U256::ZERO, ..Self::asks(nonce) })
    }
}

fn genesis(payers: &[&Payer]) -> Genesis {
    let fund = |genesis: Genesis, payer: &&Payer| genesis.with_account(payer.address().into(), ETHER);
    payers.iter().fold(Genesis::default(), fund)
}

fn chain(payers: &[&Payer], sealing: Sealing) -> Chain {
    Chain::in_memory(genesis(payers), sealing)
}

fn ask(chain: &Chain, method: &str, params: Value) -> Value {
    chain.request(method, &params).unwrap_or_else(|error| panic!("{method} {params}: {error}"))
}

fn number(chain: &Chain, method: &str, params: Value) -> u64 {
    serde_json::from_value::<U256>(ask(chain, method, params)).expect("a number").to()
}

fn nonce(chain: &Chain, payer: &Payer, block: &str) -> u64 {
    number(chain, "eth_getTransactionCount", json!([payer.address(), block]))
}

fn message(refused: Result<[u8; 32], RpcError>) -> String {
    refused.expect_err("it is refused").message
}

#[test]
fn what_comes_early_waits() {
    let payer = Payer::new(1);
    let chain = chain(&[&payer], Sealing::Instant);
    for early in [3, 1] {
        let hash = chain.submit(&payer.pay(early)).expect("it waits");
        let found = ask(&chain, "eth_getTransactionByHash", json!([hex::encode_prefixed(hash)]));
        assert_eq!(found["blockNumber"], Value::Null);
        assert_eq!(message(chain.submit(&payer.pay(early))), "already known");
    }
    assert_eq!((nonce(&chain, &payer, "latest"), nonce(&chain, &payer, "pending")), (0, 0));
    chain.submit(&payer.pay(0)).expect("it is next");
    assert_eq!(
        number(&chain, "eth_blockNumber", json!([])),
        2,
        "the one that waited follows, the other does not"
    );
    assert_eq!(message(chain.submit(&payer.pay(1))), "nonce too low: next nonce 2, tx nonce 1");
    chain.submit(&payer.pay(2)).expect("it is next");
    assert_eq!(nonce(&chain, &payer, "latest"), 4);
    assert!(message(chain.submit(&payer.pay(69))).starts_with("nonce too high"));
}

#[test]
fn who_pays_more_takes_the_place() {
    let payer = Payer::new(1);
    let chain = chain(&[&payer], Sealing::Manual);
    let bid = |max_fee_per_gas, max_priority_fee_per_gas| {
        payer.sign(TxEip1559 { max_fee_per_gas, max_priority_fee_per_gas, ..Payer::asks(0) })
    };
    chain.submit(&bid(10 * GWEI, 10)).expect("the place is free");
    for (fee, tip) in [(11 * GWEI - 1, 11), (11 * GWEI, 10)] {
        assert_eq!(message(chain.submit(&bid(fee, tip))), "replacement transaction underpriced");
    }
    let best = chain.submit(&bid(11 * GWEI, 11)).expect("it pays a tenth more");
    assert_eq!(nonce(&chain, &payer, "pending"), 1);
    chain.mine().expect("a block is made");
    let block = ask(&chain, "eth_getBlockByNumber", json!(["latest", false]));
    assert_eq!(block["transactions"], json!([hex::encode_prefixed(best)]));
}

#[test]
fn a_block_holds_what_waits() {
    let [first, second] = [Payer::new(1), Payer::new(2)];
    let chain = chain(&[&first, &second], Sealing::Manual);
    let logger = first.address().create(0);
    let calls = [
        first.create(0, &LOGGER),
        second.call(1, logger),
        first.call(1, logger),
        second.pay(0),
        first.call(3, logger),
    ];
    let hashes = calls.map(|raw| chain.submit(&raw).expect("it waits"));
    assert_eq!(chain.mine().expect("a block is made"), 1);
    let block = ask(&chain, "eth_getBlockByNumber", json!(["0x1", true]));
    let order: Vec<&Value> = (0..4).map(|index| &block["transactions"][index]["hash"]).collect();
    let expected = [0, 2, 3, 1].map(|index: usize| json!(hex::encode_prefixed(hashes[index])));
    assert_eq!(order, expected.iter().collect::<Vec<_>>(), "first come first, but nonces in order");
    let receipts = ask(&chain, "eth_getBlockReceipts", json!(["0x1"]));
    let receipts = receipts.as_array().expect("a list");
    let last = &receipts[3];
    assert_eq!((receipts.len(), &last["cumulativeGasUsed"]), (4, &block["gasUsed"]));
    assert_eq!(
        (&receipts[1]["logs"][0]["logIndex"], &last["logs"][0]["logIndex"]),
        (&json!("0x0"), &json!("0x1"))
    );
    assert_eq!(last["transactionIndex"], "0x3");
    assert_eq!(ask(&chain, "eth_getLogs", json!([{"address": logger}])).as_array().map(Vec::len), Some(2));
    assert_eq!(chain.mine().expect("an empty one"), 2);
    assert!(ask(&chain, "eth_getTransactionByHash", json!([hex::encode_prefixed(hashes[4])])).is_object());
}

#[test]
fn what_can_no_longer_run_is_forgotten() {
    let payer = Payer::new(1);
    let chain = chain(&[&payer], Sealing::Manual);
    let most = U256::from(ETHER / 10 * 9);
    let [first, second] = [0, 1].map(|nonce| {
        let raw = payer.sign(TxEip1559 { value: most, ..Payer::asks(nonce) });
        hex::encode_prefixed(chain.submit(&raw).expect("either can be paid"))
    });
    assert_eq!(nonce(&chain, &payer, "pending"), 2);
    chain.mine().expect("a block is made");
    let block = ask(&chain, "eth_getBlockByNumber", json!(["latest", false]));
    assert_eq!(block["transactions"], json!([first]));
    assert_eq!(ask(&chain, "eth_getTransactionByHash", json!([second])), Value::Null);
    assert_eq!(nonce(&chain, &payer, "pending"), 1);
}

#[test]
fn what_pays_too_little_waits_for_better_times() {
    let [payer, filler] = [Payer::new(1), Payer::new(2)];
    let genesis = Genesis { gas_limit: 42_000, ..genesis(&[&payer, &filler]) };
    let chain = Chain::in_memory(genesis, Sealing::Manual);
    let asks = |nonce| TxEip1559 { gas_limit: 21_000, ..Payer::asks(nonce) };
    for nonce in [0, 1] {
        chain.submit(&filler.sign(asks(nonce))).expect("it waits");
    }
    let most = TxEip1559 { max_fee_per_gas: GWEI, ..asks(0) };
    let hash = hex::encode_prefixed(chain.submit(&payer.sign(most)).expect("it waits"));
    // The first block has no room left for it, and is full, so the fee rises; the second is empty, and it falls.
    for fee in [GWEI, 1_125_000_000, 984_375_000] {
        chain.mine().expect("a block is made");
        let block = ask(&chain, "eth_getBlockByNumber", json!(["latest", false]));
        assert_eq!(block["baseFeePerGas"], json!(format!("0x{fee:x}")));
        let receipt = ask(&chain, "eth_getTransactionReceipt", json!([hash]));
        assert_eq!(receipt.is_null(), fee >= GWEI, "{fee}");
    }
}

#[test]
fn a_revert_says_why() {
    let payer = Payer::new(1);
    let chain = chain(&[&payer], Sealing::Instant);
    chain.submit(&payer.create(0, &REFUSER)).expect("it is taken");
    let refuser = payer.address().create(0);
    let seven = json!(format!("0x{:064x}", 7));
    for method in ["eth_call", "eth_estimateGas"] {
        let error = chain.request(method, &json!([{"to": refuser}])).expect_err("it reverts");
        assert_eq!((error.code, error.data), (3, Some(seven.clone())), "{method}");
    }
    let hash = chain.submit(&payer.call(1, refuser)).expect("it is paid for");
    let receipt = ask(&chain, "eth_getTransactionReceipt", json!([hex::encode_prefixed(hash)]));
    assert_eq!(receipt["status"], "0x0");
}

#[test]
fn an_estimate_is_the_least_that_suffices() {
    let payer = Payer::new(1);
    let chain = chain(&[&payer], Sealing::Instant);
    let create = json!({"from": payer.address(), "input": hex::encode_prefixed(LOGGER)});
    for mut request in [json!({"from": payer.address(), "to": Address::ZERO, "value": "0x1"}), create] {
        let least = number(&chain, "eth_estimateGas", json!([request]));
        request["gas"] = json!(format!("0x{least:x}"));
        ask(&chain, "eth_call", json!([request]));
        request["gas"] = json!(format!("0x{:x}", least - 1));
        chain.request("eth_call", &json!([request])).expect_err("it is too little");
    }
    let poor = json!([{"from": Address::ZERO, "to": Address::ZERO, "value": "0x1", "gasPrice": "0x1"}]);
    let error = chain.request("eth_estimateGas", &poor).expect_err("it cannot be paid");
    assert!(error.message.starts_with("insufficient funds"), "{error}");
}

#[test]
fn time_can_be_moved_ahead() {
    let payer = Payer::new(1);
    let chain = chain(&[&payer], Sealing::Instant);
    let time = |chain: &Chain| {
        let block = ask(chain, "eth_getBlockByNumber", json!(["latest", false]));
        serde_json::from_value::<U256>(block["timestamp"].clone()).expect("a number").to::<u64>()
    };
    chain.mine().expect("a block is made");
    assert!(time(&chain).abs_diff(now()) < 60, "time is the time of day");
    assert_eq!(chain.advance_time(86_400), Ok(86_400));
    chain.mine().expect("a block is made");
    assert!(time(&chain).abs_diff(now() + 86_400) < 60);
    let next = now() + 1_000_000;
    chain.set_next_time(next).expect("it is ahead");
    chain.submit(&payer.pay(0)).expect("it is next");
    assert_eq!(time(&chain), next);
    chain.set_next_time(next - 1).expect_err("time does not run back");
    chain.mine().expect("a block is made");
    assert!((next..next + 60).contains(&time(&chain)), "it goes on from there");
    chain.advance_time(u64::MAX).expect_err("that far there are no dates");
}

#[test]
fn a_snapshot_is_returned_to() {
    let payer = Payer::new(1);
    let chain = chain(&[&payer], Sealing::Instant);
    chain.submit(&payer.pay(0)).expect("it is next");
    let before = ask(&chain, "eth_getBlockByNumber", json!(["latest", true]));
    let snapshot = chain.snapshot().expect("there is room");
    let later = chain.snapshot().expect("there is room");
    let hash = chain.submit(&payer.pay(1)).expect("it is next");
    assert_eq!(chain.revert(snapshot), Ok(true));
    assert_eq!(ask(&chain, "eth_getBlockByNumber", json!(["latest", true])), before);
    assert_eq!(ask(&chain, "eth_getTransactionByHash", json!([hex::encode_prefixed(hash)])), Value::Null);
    assert_eq!(
        (chain.revert(later), chain.revert(snapshot), chain.revert(0)),
        (Ok(false), Ok(false), Ok(false))
    );
    chain.submit(&payer.pay(1)).expect("it is next again");
}

#[test]
fn blocks_come_by_themselves() {
    let payer = Payer::new(1);
    let chain = chain(&[&payer], Sealing::Every(Duration::from_millis(5)));
    chain.submit(&payer.pay(0)).expect("it waits");
    while nonce(&chain, &payer, "latest") == 0 {
        thread::yield_now();
    }
    assert_eq!(number(&chain, "eth_blockNumber", json!([])), 1);
}

#[test]
fn only_the_newest_state_is_kept() {
    let payer = Payer::new(1);
    let chain = chain(&[&payer], Sealing::Instant);
    chain.submit(&payer.pay(0)).expect("it is next");
    for block in
        [json!("latest"), json!("pending"), json!("finalized"), json!("0x1"), json!({"blockNumber": "0x1"})]
    {
        ask(&chain, "eth_getBalance", json!([payer.address(), block]));
    }
    for block in [json!("earliest"), json!("0x0"), json!("0x2")] {
        let error =
            chain.request("eth_getBalance", &json!([payer.address(), block])).expect_err("it is gone");
        assert_eq!(error.code, RpcError::INVALID_INPUT);
    }
}

#[test]
fn what_cannot_run_is_refused() {
    let [payer, stranger] = [Payer::new(1), Payer::new(2)];
    let chain = chain(&[&payer], Sealing::Manual);
    let refuse = |change: fn(&mut TxEip1559)| {
        let mut transaction = Payer::asks(0);
        change(&mut transaction);
        message(chain.submit(&payer.sign(transaction)))
    };
    assert!(refuse(|asked| asked.chain_id += 1).starts_with("invalid chain id for signer"));
    assert!(refuse(|asked| asked.gas_limit = 20_999).starts_with("intrinsic gas too low"));
    assert_eq!(refuse(|asked| asked.gas_limit = 30_000_001), "exceeds block gas limit");
    assert!(
        refuse(|asked| asked.max_fee_per_gas = GWEI - 1)
            .starts_with("max fee per gas less than block base fee")
    );
    assert!(refuse(|asked| asked.value = U256::MAX).starts_with("insufficient funds"));
    assert!(message(chain.submit(&stranger.pay(0))).starts_with("insufficient funds"));
    let long = payer.sign(TxEip1559 { input: vec![0; 128 << 10].into(), ..Payer::asks(0) });
    assert!(message(chain.submit(&long)).starts_with("oversized data"));
    let mut trailing = payer.pay(0);
    trailing.push(0);
    assert!(message(chain.submit(&trailing)).contains("other bytes would say the same"));
    assert_eq!(nonce(&chain, &payer, "pending"), 0);
}

fn open(directory: &Path, sealing: Sealing) -> Result<Chain, OpenError> {
    Chain::open(directory, genesis(&[&Payer::new(1)]), sealing)
}

#[test]
fn a_chain_comes_back_as_it_was() {
    let payer = Payer::new(1);
    let directory = tempfile::tempdir().expect("a directory can be made");
    let look = |chain: &Chain| {
        let head = ask(chain, "eth_getBlockByNumber", json!(["latest", true]));
        let balance = ask(chain, "eth_getBalance", json!([payer.address(), "latest"]));
        (
            head,
            balance,
            ask(chain, "eth_getLogs", json!([{"fromBlock": "0x0"}])),
            nonce(chain, &payer, "pending"),
        )
    };
    let chain = open(directory.path(), Sealing::Manual).expect("it is new");
    chain.submit(&payer.create(0, &LOGGER)).expect("it waits");
    chain.submit(&payer.call(1, payer.address().create(0))).expect("it waits");
    chain.mine().expect("a block is made");
    chain.advance_time(1_000_000).expect("it is not far");
    chain.mine().expect("a block is made");
    chain.submit(&payer.pay(2)).expect("it waits");
    chain.snapshot().expect_err("a file only grows");
    let before = look(&chain);
    drop(chain);
    let chain = open(directory.path(), Sealing::Manual).expect("it is whole");
    assert_eq!(look(&chain), before);
    chain.mine().expect("a block is made");
    let block = ask(&chain, "eth_getBlockByNumber", json!(["latest", false]));
    assert!(block["timestamp"].as_str() >= before.0["timestamp"].as_str(), "time goes on from where it was");
    chain.submit(&payer.pay(3)).expect("it waits");
    drop(chain);
    let chain = open(directory.path(), Sealing::Instant).expect("it is whole");
    assert_eq!(nonce(&chain, &payer, "latest"), 4, "what waited needs to wait no longer");
}

#[test]
fn a_block_that_differs_is_an_error() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let genesis = genesis(&[&Payer::new(1)]);
    let mut replay = Replay::open(directory.path(), &genesis).expect("it is new");
    assert!(replay.next().expect("it is whole").is_none());
    let mut journal = replay.finish().expect("it is whole");
    let block = BlockRecord {
        number: 1,
        timestamp: 1,
        base_fee: 1,
        gas_limit: 30_000_000,
        coinbase: [0; 20],
        randomness: [0; 32],
        transactions: Vec::new(),
        hash: [0; 32],
    };
    journal.append(&Record::Block(block)).expect("it is written");
    drop(journal);
    let opened = open(directory.path(), Sealing::Instant).map(drop);
    assert!(matches!(opened, Err(OpenError::Differs { number: 1, .. })), "{opened:?}");
}

fn json_value() -> impl Strategy<Value = Value> {
    let texts = prop_oneof![
        Just("latest".to_owned()),
        Just("0x0".to_owned()),
        Just("0xffffffffffffffff".to_owned()),
        Just(format!("0x{:040x}", 4)),
        Just(format!("0x{:064x}", 4)),
        "0x[0-9a-f]{0,70}",
        ".{0,12}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        texts.prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        let names = "to|from|data|input|gas|value|gasPrice|fromBlock|toBlock|address|topics|blockHash|nonce";
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((names, inner), 0..4).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_a_transaction_or_an_error(bytes in vec(any::<u8>(), 0..300), flips in vec(any::<(usize, u8)>(), 0..3)) {
        let payer = Payer::new(1);
        let chain = chain(&[&payer], Sealing::Instant);
        chain.submit(&bytes).expect_err("nobody signed it");
        let mut raw = payer.pay(0);
        for (place, flip) in flips {
            let place = place % raw.len();
            raw[place] ^= flip;
        }
        let changed = raw != payer.pay(0);
        prop_assert_eq!(chain.submit(&raw).is_err(), changed);
    }

    #[test]
    fn any_parameters_are_answered(params in vec(json_value(), 0..4)) {
        const METHODS: [&str; 23] = [
            "eth_call", "eth_estimateGas", "eth_getBalance", "eth_getTransactionCount", "eth_getCode",
            "eth_getStorageAt", "eth_feeHistory", "eth_getLogs", "eth_getBlockByNumber", "eth_getBlockByHash",
            "eth_getBlockTransactionCountByNumber", "eth_getBlockReceipts", "eth_getTransactionByHash",
            "eth_getTransactionReceipt", "eth_sendRawTransaction", "eth_chainId", "eth_gasPrice", "net_version",
            "evm_increaseTime", "evm_setNextBlockTimestamp", "evm_snapshot", "evm_revert", "evm_mine",
        ];
        let payer = Payer::new(1);
        let chain = chain(&[&payer], Sealing::Instant);
        chain.submit(&payer.pay(0)).expect("it is next");
        for method in METHODS {
            if let Err(error) = chain.request(method, &Value::from(params.clone())) {
                prop_assert_ne!(error.code, RpcError::INTERNAL, "{}", error);
            }
        }
    }
}
