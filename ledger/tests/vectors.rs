//! `vectors/` holds what this crate computes for digests, divisions and trees; the contracts' tests read the same
//! files. With `WRITE_VECTORS=1` in the environment they are written anew.

use std::{env, fs, path::Path};

use k256::ecdsa::SigningKey;
use ledger::{
    audit::{self, Chunk, LeafId, Tree},
    beacon::{Secret, is_round},
    draw::{self, Rate, Rates, Work},
    eip712::{Address, Domain},
    merkle,
    model::Model,
    node::{Registration, binding_digest},
    plan::{Plan, Stage},
    rewards,
    voucher::{Voucher, shares},
};
use serde_json::{Value, json};
use sha2::Sha256;
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

#[test]
fn audits() {
    let cases = [1, 2, 3, 5, 8, 21].map(|count| {
        let account = address("node", count);
        let chunk = |number: u64| Chunk {
            model: bytes("model", number),
            plan: bytes("plan", number),
            commitment: bytes("commitment", number),
            in_roots: audit::roots([&bytes("in", number)]),
            sealed_roots: audit::seal(&audit::roots([&bytes("out", number), &bytes("out", number + 1)])),
            stage: number as u32 % 7,
            from: 64 * number as u32,
            to: 64 * number as u32 + 64,
        };
        let leaves: Vec<_> = (0..count).map(|leaf| chunk(100 * count + leaf).leaf(&account)).collect();
        let tree = Tree::new(leaves).expect("there are leaves");
        let index = count - 1 - count / 4;
        let (opened, auditor) = (chunk(100 * count + index), address("auditor", count));
        let leaf = LeafId { account, epoch: 500_000 + count as u32, index: index as u32 };
        let case = leaf.case(domain().chain_id, &domain().contract, &tree.root());
        let (roots, salt) = (bytes("roots", count), bytes("salt", count));
        json!({
            "account": hex(account),
            "words": hexes([
                opened.model, opened.plan, opened.commitment, opened.in_roots, opened.sealed_roots,
            ]),
            "numbers": texts([opened.stage, opened.from, opened.to]),
            "leaf": hex(opened.leaf(&account)),
            "root": hex(tree.root()),
            "count": count,
            "index": index,
            "proof": hexes(tree.proof(index as usize).expect("there is such a leaf")),
            "epoch": leaf.epoch,
            "case": hex(case),
            "auditor": hex(auditor),
            "roots": hex(roots),
            "sealed": hex(audit::seal(&roots)),
            "salt": hex(salt),
            "answer": hex(audit::answer(&case, &auditor, &roots, &salt)),
            "planted": hex(audit::seal(&audit::plant(&account, &salt))),
        })
    });
    check("audits.json", cases.into());
}

#[test]
fn draws() {
    let cases = (0..24).map(|case| {
        let (beacon, commitment) = (bytes("beacon", case), bytes("drawn", case));
        let rates = Rates {
            prefill: Rate::from_bits(number("prefill", case) as u32),
            decode: Rate::from_bits(number("decode", case) as u32),
            floor: 1 + case as u32 % 11,
            half_life: 1 + case as u32 % 5,
        };
        let passed = if case % 2 == 0 { 0 } else { (number("passed", case) >> (30 + case)) as u32 };
        let rate = rates.of(Work::Decode, passed);
        let auditors: Vec<(Address, u64)> = (0..case % 9)
            .map(|n| {
                (address("auditor", 100 * case + n), number("stake", 100 * case + n) >> (4 + 5 * (n % 12)))
            })
            .collect();
        let involved = address("auditor", 100 * case + 1);
        let chosen = draw::auditors(&beacon, &commitment, &auditors, &[involved], 6);
        json!({
            "beacon": hex(beacon),
            "commitment": hex(commitment),
            "fresh": rates.decode.bits(),
            "floor": rates.floor,
            "halfLife": rates.half_life,
            "passed": passed,
            "rate": rate.bits(),
            "isDrawn": draw::is_drawn(&beacon, &commitment, rate, 1),
            "accounts": hexes(auditors.iter().map(|(account, _)| account)),
            "stakes": texts(auditors.iter().map(|(_, stake)| stake)),
            "involved": hex(involved),
            "chosen": hexes(&chosen),
        })
    });
    let cases: Vec<Value> = cases.collect();
    let drawn = cases.iter().filter(|case| case["isDrawn"] == json!(true)).count();
    assert!((4..20).contains(&drawn), "{drawn} are drawn");
    check("draws.json", cases);
}

// drand's network `evmnet`, and one that it tested the scheme with.
const EVMNET: &str = "07e1d1d335df83fa98462005690372c643340060d205306a9aa8106b6bd0b382\
                      0557ec32c2ad488e4d4f6008f89a346f18492092ccc0d594610de2732c8b808f\
                      0095685ae3a85ba243747b1b2f426049010f6b73a0cf1d389351d5aaaa1047f6\
                      297d3a4f9749b33eb2d904c9d9ebf17224150ddd7abd7567a9bec6c74480ee0b";
const TESTED: &str = "14018a8127d0cd185f0d0cd168bec330c584581d46f77f41e8ee33ad600588e1\
                      04961f20efbcec8ce5e176aa182bf141f7059cfb467e3b508bc6f36f227d5cf3\
                      1c7baa2a010677e813ffca24b4ff5faf3348b2750201c85b126a480118b149f5\
                      14d3e7aba46a99f40aac6507a2c6d6f3c7a6b38038786831e3e6b5b0adf5894b";

/// Network, round, signature, and randomness where it was published with it.
const PUBLISHED: [(&str, u64, &str, Option<&str>); 6] = [
    (
        EVMNET,
        513,
        "06ded8c05af23042a0caf9b404c6140f9ec64adbaf82f04d5c37153e8412ed58\
                   0f827c7d5ac7d02ca0bbd989d07594729bdcde7d6dc1001191c59dc9033d31b2",
        None,
    ),
    (
        TESTED,
        1,
        "0d2cdded373210583d66d973f28b68adc4a5d52a39304a38343ee9d2e785f335\
                 098a1d16660304ceeabac9ddb80ec00916dcbe32ac8597b6295baac935f84648",
        Some("9ddf8ee8ff3f375f33c8f8fd142b648e1f3c134284423362e8796770ac43c1a6"),
    ),
    (
        TESTED,
        2,
        "2b481ec543a44225ba184d09c83068f7e74b4d78d076cca67a1647418391e3fd\
                 1e739096fed5d0315e81beeec64058d5d31161f3e2e9df14d4af86a7c2fa1e92",
        Some("315b39f5df1b038c5f548d1c96e0ee816f70a09b0bdaccc4f40cb2e6bb7b3c5f"),
    ),
    (
        TESTED,
        3,
        "2b71c198edfb7271be885f02227930d86e88884fc6870219898904748d37f49f\
                 03f4e39b955198e6638cd55c785d1e0f6da236539f9d18b84ab95eb2e92f691a",
        Some("f4f91abe0819ab72e97e08658fef52f395bcfb270dccfb33b9286720083085f2"),
    ),
    (
        TESTED,
        10,
        "0fd919ec1490bf01935f348837bd20f49f539c5adfd60ce29648fe16f8dbed88\
                  03bf3e8fb4c3cbce5dcb642333d81260a811cc432b2f7a687b9b7c2305ad01ee",
        Some("a62a0e81920b40fb361f9106efb34199af1fbdb0c53db51f7acbad73e0d9d0bf"),
    ),
    (
        TESTED,
        40,
        "23f7e78888e0bb376e9f70ded2d49546e300c913a401c1b59cc63626c5a6f375\
                  0cc5ef66ad1430b82a57aa94aa866dccd68213e66d5f35ff53b19c60dc008429",
        Some("f6e126339b1aba7c12aec53a76b6a790dd649c8cdbeeb41d2a47024fb3d57fd4"),
    ),
];

/// Rounds that drand has published, and others that are signed here.
#[test]
fn rounds() {
    let published = PUBLISHED.map(|(key, round, signature, randomness)| {
        let read = |text| hex::decode(text).expect("hexadecimal");
        let key: [u8; 128] = read(key).try_into().expect("128 bytes");
        let signature: [u8; 64] = read(signature).try_into().expect("64 bytes");
        let drawn = Sha256::digest(signature);
        assert!(randomness.is_none_or(|told| read(told) == drawn[..]), "round {round}");
        (key, round, signature)
    });
    let own = (0..6).map(|case| {
        let secret = Secret::from_seed(&bytes("seed", case));
        let round = number("round", case) >> (10 * case);
        (secret.public_key(), round, secret.sign(round))
    });
    let cases = published.into_iter().chain(own).map(|(key, round, signature)| {
        assert!(is_round(&key, round, &signature), "round {round}");
        json!({
            "key": hex(key),
            "round": round.to_string(),
            "signature": hex(signature),
            "randomness": hex(Sha256::digest(signature)),
        })
    });
    check("rounds.json", cases.collect());
}
