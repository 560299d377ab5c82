//! `vectors/` holds what this crate computes for digests, divisions and trees; the contracts' tests read the same
//! files. With `WRITE_VECTORS=1` in the environment they are written anew.

use std::{env, fs, path::Path};

use k256::ecdsa::SigningKey;
use ledger::{
    eip712::{Address, Domain},
    merkle,
    model::Model,
    node::{Registration, binding_digest},
    plan::{Plan, Stage},
    rewards,
    voucher::{Voucher, shares},
};
use serde_json::{Value, json};
use sha3::{Digest, Keccak256};

/// The same bytes on every run, and different ones for every name and number.
fn bytes(name: &str, number: u64) -> [u8; 32] {
    Keccak256::digest(format!("dolphin vector {name} {number}")).into()
}

fn address(name: &str, number: u64) -> Address {
    *bytes(name, number).last_chunk().expect("32 bytes end with 20")
}

fn number(name: &str, number: u64) -> u64 {
    u64::from_be_bytes(*bytes(name, number).first_chunk().expect("32 bytes begin with 8"))
}

fn domain() -> Domain {
    Domain { chain_id: 10, contract: [0x11; 20] }
}

fn hex(bytes: impl AsRef<[u8]>) -> Value {
    json!(format!("0x{}", hex::encode(bytes)))
}

fn hexes<T: AsRef<[u8]>>(list: impl IntoIterator<Item = T>) -> Value {
    list.into_iter().map(hex).collect()
}

/// Numbers above 2^53 do not survive every reader of JSON; as text they all do.
fn texts(list: impl IntoIterator<Item: ToString>) -> Value {
    list.into_iter().map(|number| json!(number.to_string())).collect()
}

fn sign(key: &SigningKey, digest: &[u8; 32]) -> Vec<u8> {
    let (signature, recovery) = key.sign_prehash_recoverable(digest).expect("a digest can be signed");
    let mut bytes = signature.to_bytes().to_vec();
    bytes.push(27 + recovery.to_byte());
    bytes
}

fn account(key: &SigningKey) -> Address {
    let point = key.verifying_key().to_encoded_point(false);
    *Keccak256::digest(&point.as_bytes()[1..]).last_chunk::<20>().expect("32 bytes end with 20")
}

/// Compares the file with what was computed, or writes it.
fn check(name: &str, cases: Vec<Value>) {
    let contents = json!({
        "chainId": domain().chain_id,
        "contract": hex(domain().contract),
        "domainSeparator": hex(domain().separator()),
        "cases": cases,
    });
    let text = format!("{contents:#}\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name);
    if env::var_os("WRITE_VECTORS").is_some() {
        fs::write(&path, &text).expect("the vectors can be written");
    }
    assert_eq!(fs::read_to_string(&path).expect("the vectors are there"), text, "{name} is stale");
}

#[test]
fn vouchers() {
    let cases = (0..8).map(|case| {
        let key = SigningKey::from_slice(&bytes("key", case)).expect("a hash is a key");
        let stages = (0..=case).map(|stage| Stage {
            payee: address("payee", 100 * case + stage),
            weight: number("weight", 100 * case + stage) >> 8,
        });
        let plan = Plan {
            session: bytes("session", case),
            payer: account(&key),
            terms: bytes("terms", case),
            expiry: 1_800_000_000 + case,
            stages: stages.collect(),
        };
        let voucher = Voucher {
            session: plan.session,
            plan: plan.hash(),
            total: if case == 7 { u128::MAX } else { 1_000_000_007_u128.pow(case as u32 % 4 + 1) },
            chunk: if case == 7 { u64::MAX } else { case },
            commitments: bytes("commitments", case),
        };
        let digest = voucher.digest(&domain());
        json!({
            "key": hex(bytes("key", case)),
            "session": hex(plan.session),
            "payer": hex(plan.payer),
            "terms": hex(plan.terms),
            "expiry": plan.expiry,
            "payees": hexes(plan.stages.iter().map(|stage| stage.payee)),
            "weights": texts(plan.stages.iter().map(|stage| stage.weight)),
            "planHash": hex(plan.hash()),
            "planDigest": hex(plan.digest(&domain())),
            "total": voucher.total.to_string(),
            "chunk": voucher.chunk.to_string(),
            "commitments": hex(voucher.commitments),
            "digest": hex(digest),
            "signature": hex(sign(&key, &digest)),
            "shares": texts(plan.shares(voucher.total).expect("weights are not all zero")),
        })
    });
    check("vouchers.json", cases.collect());
}

#[test]
fn splits() {
    let edges: [(u128, &[u64]); 9] = [
        (10, &[1, 1, 1]),
        (10, &[1]),
        (0, &[3, 4]),
        (1, &[1, 1]),
        (7, &[0, 5, 0]),
        (u128::MAX, &[u64::MAX]),
        (u128::MAX, &[u64::MAX - 1, 1]),
        (u128::MAX, &[1, u64::MAX / 3, u64::MAX / 3]),
        (1 << 100, &[1, 2, 3, 4, 5, 6, 7, 8]),
    ];
    let edges = edges.map(|(amount, weights)| (amount, weights.to_vec()));
    let drawn = (0..16).map(|case| {
        let amount = u128::from(number("amount", case)) << (case * 4);
        let weights = (0..=case % 5).map(|stage| number("split", 100 * case + stage) >> (8 + case % 40));
        (amount, weights.collect())
    });
    let cases = edges.into_iter().chain(drawn).map(|(amount, weights)| {
        let shares = shares(amount, &weights).expect("weights are not all zero");
        json!({ "amount": amount.to_string(), "weights": texts(weights), "shares": texts(shares) })
    });
    check("splits.json", cases.collect());
}

#[test]
fn nodes() {
    let longest = "ü".repeat(128);
    let endpoints = ["", "192.0.2.10:7700", "[2001:db8::1]:7700", "node.example:7700", &longest];
    let cases = (0..).zip(endpoints).map(|(case, endpoint)| {
        let registration = Registration {
            account: address("account", case),
            node: bytes("node", case),
            roles: number("roles", case) as u32,
            metadata: bytes("metadata", case),
            endpoint: endpoint.to_owned(),
            nonce: case,
            deadline: 1_900_000_000 + case,
        };
        json!({
            "account": hex(registration.account),
            "node": hex(registration.node),
            "roles": registration.roles,
            "metadata": hex(registration.metadata),
            "endpoint": registration.endpoint,
            "nonce": registration.nonce,
            "deadline": registration.deadline,
            "binding": hex(binding_digest(&domain(), &registration.node, &registration.account)),
            "digest": hex(registration.digest(&domain())),
        })
    });
    check("nodes.json", cases.collect());
}

#[test]
fn models() {
    let cases = [1, 2, 3, 5, 38].map(|count| {
        let model = Model {
            numerics: 1,
            tokenizer: bytes("tokenizer", count),
            rope: bytes("rope", count),
            layers: (0..count).map(|layer| bytes("layer", 100 * count + layer)).collect(),
        };
        let index = count as usize / 2;
        json!({
            "numerics": model.numerics,
            "tokenizer": hex(model.tokenizer),
            "rope": hex(model.rope),
            "layers": hexes(&model.layers),
            "hash": hex(model.hash().expect("there are layers")),
            "index": index,
            "proof": hexes(model.layer_proof(index).expect("there is such a layer")),
        })
    });
    check("models.json", cases.into());
}

#[test]
fn trees_of_rewards() {
    let cases = [1, 2, 3, 4, 7, 16, 21].map(|count| {
        let accounts: Vec<Address> = (0..count).map(|entry| address("earner", 100 * count + entry)).collect();
        let amounts: Vec<u128> =
            (0..count).map(|entry| number("reward", 100 * count + entry).into()).collect();
        let earned = accounts.iter().zip(&amounts);
        let leaves: Vec<_> =
            earned.map(|(account, &amount)| rewards::leaf(&domain(), account, amount)).collect();
        let index = count as usize - 1;
        let (root, proof) = (merkle::root(&leaves), merkle::proof(&leaves, index));
        json!({
            "accounts": hexes(&accounts),
            "amounts": texts(&amounts),
            "leaves": hexes(&leaves),
            "root": hex(root.expect("there are leaves")),
            "index": index,
            "proof": hexes(proof.expect("there is such a leaf")),
        })
    });
    check("rewards.json", cases.into());
}
