//! A sender against a small chain that does everything chains and nodes do to a sender, under simulated time and
//! from a seed: whatever happens, every order is done once.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use ethers_core::{
    types::{H160, H256, U256, transaction::eip2718::TypedTransaction},
    utils::rlp::Rlp,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};

use super::{chain::Chain, queue::Entry, store::Store, task::Task, *};
use crate::{
    client::evm::rpc::{Rpc, RpcFault},
    eip712::keccak,
};

const CHAIN_ID: u64 = 31_337;
const BLOCK_TIME: Duration = Duration::from_secs(2);
const GWEI: u128 = 1_000_000_000;

/// How bad it gets: chances in 1000, for each request or block.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    /// A request does not arrive.
    lost: u32,
    /// A request arrives, and its answer does not.
    unanswered: u32,
    garbage: u32,
    /// A nonce is told as it was some blocks ago.
    stale: u32,
    /// A node forgets what is not in a block.
    forgets: u32,
    /// Up to five blocks are replaced.
    reorganises: u32,
    /// A replaced block's transactions are lost, and not put into the next.
    drops: u32,
    /// Fees rise a hundredfold for a while.
    spikes: u32,
    /// Somebody else uses a nonce of the account's.
    meddles: u32,
}

const STORM: Weather = Weather {
    lost: 100,
    unanswered: 100,
    garbage: 50,
    stale: 50,
    forgets: 20,
    reorganises: 30,
    drops: 300,
    spikes: 20,
    meddles: 10,
};

#[derive(Clone, Debug)]
struct Sent {
    hash: [u8; 32],
    nonce: u64,
    max_wei: u128,
    tip_wei: u128,
    data: Vec<u8>,
}

#[derive(Debug)]
struct SimBlock {
    hash: [u8; 32],
    sent: Vec<Sent>,
}

#[derive(Debug)]
struct World {
    seed: u64,
    weather: Weather,
    begun: Instant,
    blocks: Vec<SimBlock>,
    pool: BTreeMap<u64, Sent>,
    base_wei: u128,
    spike_ends: usize,
    is_down: bool,
    forged: u64,
}

#[derive(Debug)]
struct Sim(Mutex<World>);

impl World {
    fn random(&mut self) -> u64 {
        // SplitMix64.
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn chance(&mut self, of_1000: u32) -> bool {
        self.random() % 1000 < of_1000.into()
    }

    fn count(&self, blocks: usize) -> u64 {
        self.blocks[..blocks.min(self.blocks.len())].iter().map(|block| block.sent.len() as u64).sum()
    }

    fn advance(&mut self) {
        let due = (self.begun.elapsed().as_secs() / BLOCK_TIME.as_secs()) as usize;
        while self.blocks.len() <= due {
            if self.chance(self.weather.reorganises) {
                self.reorganise();
            }
            if self.chance(self.weather.forgets) {
                self.pool.clear();
            }
            if self.chance(self.weather.spikes) {
                self.base_wei = 100 * GWEI;
                self.spike_ends = self.blocks.len() + 30;
            }
            if self.blocks.len() >= self.spike_ends {
                self.base_wei = GWEI;
            }
            if self.chance(self.weather.meddles) {
                let nonce = self.count(self.blocks.len());
                self.forged += 1;
                let hash = keccak(&self.forged.to_be_bytes());
                let meddled = Sent { hash, nonce, max_wei: u128::MAX, tip_wei: 0, data: Vec::new() };
                self.pool.insert(nonce, meddled);
            }
            self.mine();
        }
    }

    fn mine(&mut self) {
        let mut next = self.count(self.blocks.len());
        let mut sent = Vec::new();
        self.pool.retain(|nonce, _| *nonce >= next);
        while let Some(first) = self.pool.get(&next).filter(|first| first.max_wei >= self.base_wei) {
            sent.push(first.clone());
            self.pool.remove(&next);
            next += 1;
        }
        let hash = keccak(&self.random().to_be_bytes());
        self.blocks.push(SimBlock { hash, sent });
    }

    /// Replaces some blocks by as many others; what was in them waits again, or is lost.
    fn reorganise(&mut self) {
        let depth = (1 + self.random() as usize % 5).min(self.blocks.len() - 1);
        let drops = self.chance(self.weather.drops);
        let replaced = self.blocks.split_off(self.blocks.len() - depth);
        for sent in replaced.into_iter().flat_map(|block| block.sent).filter(|_| !drops) {
            self.pool.entry(sent.nonce).or_insert(sent);
        }
        for _ in 0..depth {
            let hash = keccak(&self.random().to_be_bytes());
            self.blocks.push(SimBlock { hash, sent: Vec::new() });
        }
    }

    fn take(&mut self, raw: &Value) -> Result<Value, RpcFault> {
        let refused =
            |message: &str| RpcFault::Refused { code: -32000, message: message.to_owned(), data: None };
        let raw = hex::decode(&raw.as_str().unwrap()[2..]).unwrap();
        let (request, _) = TypedTransaction::decode_signed(&Rlp::new(&raw)).unwrap();
        let TypedTransaction::Eip1559(request) = request else { panic!("of another type") };
        let sent = Sent {
            hash: keccak(&raw),
            nonce: request.nonce.unwrap().as_u64(),
            max_wei: request.max_fee_per_gas.unwrap().as_u128(),
            tip_wei: request.max_priority_fee_per_gas.unwrap().as_u128(),
            data: request.data.unwrap_or_default().to_vec(),
        };
        if sent.nonce < self.count(self.blocks.len()) {
            return Err(refused("nonce too low"));
        }
        if let Some(other) = self.pool.get(&sent.nonce) {
            let more = |new: u128, old: u128| new >= old.saturating_add(old / 10);
            if other.hash == sent.hash {
                return Err(refused("already known"));
            }
            if !more(sent.max_wei, other.max_wei) || !more(sent.tip_wei, other.tip_wei) {
                return Err(refused("replacement transaction underpriced"));
            }
        }
        let hash = H256(sent.hash);
        self.pool.insert(sent.nonce, sent);
        Ok(json!(hash))
    }

    fn answer(&mut self, method: &str, params: &Value) -> Result<Value, RpcFault> {
        let all = self.blocks.len();
        Ok(match method {
            "eth_blockNumber" => json!(U256::from(all - 1)),
            "eth_estimateGas" => json!(U256::from(50_000)),
            "eth_getBalance" => json!(U256::from(10u128.pow(24))),
            "eth_feeHistory" => json!({
                "baseFeePerGas": [U256::from(self.base_wei), U256::from(self.base_wei)],
                "gasUsedRatio": [0.5],
                "oldestBlock": "0x1",
                "reward": [["0xf4240"]],
            }),
            "eth_getTransactionCount" => {
                let mut count = match params[1].as_str().unwrap() {
                    "pending" => {
                        let mut next = self.count(all);
                        while self.pool.contains_key(&next) {
                            next += 1;
                        }
                        next
                    }
                    "latest" => self.count(all),
                    block => self.count(usize::from_str_radix(&block[2..], 16).unwrap() + 1),
                };
                if self.chance(self.weather.stale) {
                    count = count.min(self.count(all.saturating_sub(10)));
                }
                json!(U256::from(count))
            }
            "eth_getBlockByNumber" => self.block(&params[0], params[1] == true),
            "eth_getTransactionReceipt" => self.receipt(&params[0]),
            "eth_sendRawTransaction" => return self.take(&params[0]),
            method => panic!("{method} is not asked by a sender"),
        })
    }

    fn block(&self, number: &Value, full: bool) -> Value {
        let number = usize::from_str_radix(&number.as_str().unwrap()[2..], 16).unwrap();
        let Some(block) = self.blocks.get(number) else { return Value::Null };
        let listed = block.sent.iter().map(|sent| {
            if !full {
                return json!(H256(sent.hash));
            }
            json!({
                "hash": H256(sent.hash), "nonce": U256::from(sent.nonce), "from": H160(key().address()),
                "value": "0x0", "gas": "0x5208", "input": "0x", "v": "0x0", "r": "0x0", "s": "0x0",
            })
        });
        json!({
            "hash": H256(block.hash), "number": U256::from(number), "timestamp": "0x0", "gasLimit": "0x0",
            "gasUsed": "0x0", "parentHash": H256::zero(), "miner": H160::zero(), "difficulty": "0x0",
            "extraData": "0x", "logsBloom": format!("0x{}", "0".repeat(512)), "transactions": listed.collect::<Value>(),
            "sha3Uncles": H256::zero(), "stateRoot": H256::zero(), "transactionsRoot": H256::zero(),
            "receiptsRoot": H256::zero(), "uncles": [], "sealFields": [],
        })
    }

    fn receipt(&self, hash: &Value) -> Value {
        let hash: H256 = serde_json::from_value(hash.clone()).unwrap();
        let is_in = |block: &SimBlock| block.sent.iter().any(|sent| sent.hash == hash.0);
        let Some(number) = self.blocks.iter().position(is_in) else { return Value::Null };
        json!({
            "transactionHash": hash, "transactionIndex": "0x0", "blockNumber": U256::from(number),
            "blockHash": H256(self.blocks[number].hash), "from": H160(key().address()), "to": null,
            "cumulativeGasUsed": "0x5208", "gasUsed": "0x5208", "logs": [], "status": "0x1",
            "logsBloom": format!("0x{}", "0".repeat(512)), "type": "0x2", "effectiveGasPrice": "0x1",
        })
    }
}

impl Sim {
    fn new(seed: u64, weather: Weather) -> Arc<Self> {
        let mut world = World {
            seed,
            weather,
            begun: Instant::now(),
            blocks: Vec::new(),
            pool: BTreeMap::new(),
            base_wei: GWEI,
            spike_ends: 0,
            is_down: false,
            forged: 0,
        };
        world.mine();
        Arc::new(Self(Mutex::new(world)))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        let mut world = self.0.lock().unwrap();
        world.advance();
        world
    }

    /// How often each order is on the chain.
    fn done(&self) -> HashMap<Vec<u8>, usize> {
        let mut done = HashMap::new();
        for sent in self.world().blocks.iter().flat_map(|block| &block.sent) {
            *done.entry(sent.data.clone()).or_default() += 1;
        }
        done
    }
}

#[async_trait]
impl Rpc for Sim {
    async fn request(&self, method: &str, params: Value) -> Result<Value, RpcFault> {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut world = self.world();
        let Weather { lost: loses, unanswered, garbage, .. } = world.weather;
        let lost = || Err(RpcFault::Unreachable("lost".to_owned()));
        if world.is_down || world.chance(loses) {
            return lost();
        }
        if world.chance(garbage) {
            return Ok(json!({ "odd": [1, "x", null] }));
        }
        let answer = world.answer(method, &params);
        if world.chance(unanswered) { lost() } else { answer }
    }
}

fn key() -> Key {
    Key::from_bytes(&[7; 32]).unwrap()
}

fn manner() -> Manner {
    Manner {
        confirmations: 3,
        poll: Duration::from_secs(1),
        raise_after: Duration::from_secs(20),
        patience: Duration::from_secs(600),
        max_fee_wei: 1000 * GWEI,
    }
}

fn order(number: u32) -> Order {
    Order { to: Some(H160([9; 20])), value_wei: 0, data: number.to_be_bytes().to_vec() }
}

/// A sender whose task can be ended at any moment, as by a crash.
struct Mortal {
    sender: Sender,
    task: JoinHandle<()>,
}

fn start(sim: &Arc<Sim>, directory: Option<&Path>) -> Mortal {
    let chain = Chain::new(Wire::new(sim.clone(), Duration::ZERO), key().address());
    let (store, entries): (Store, Vec<Entry>) = Store::open(directory, "test", [1; 32]).unwrap();
    let (requests, received) = mpsc::channel(WAITING);
    let task = tokio::spawn(Task::new(chain, key(), CHAIN_ID, manner(), store, entries).run(received));
    Mortal { sender: Sender { requests }, task }
}

impl Mortal {
    fn order(&self, number: u32) -> oneshot::Receiver<Result<TransactionReceipt, Error>> {
        let (reply, answer) = oneshot::channel();
        let request = Request { order: order(number), until: Until::Confirmed, reply };
        self.requests().try_send(request).unwrap();
        answer
    }

    fn requests(&self) -> &mpsc::Sender<Request> {
        &self.sender.requests
    }

    async fn die(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Orders `count` things and waits for all of them.
async fn all_done(mortal: &Mortal, count: u32) {
    let answers: Vec<_> = (0..count).map(|number| mortal.order(number)).collect();
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
}

fn assert_each_once(sim: &Sim, count: u32) {
    let done = sim.done();
    for number in 0..count {
        assert_eq!(done.get(&order(number).data), Some(&1), "order {number}: {done:?}");
    }
}

/// Lets a chain go on in good weather, so that what was dropped last is back.
async fn settle(sim: &Sim) {
    sim.world().weather = Weather::default();
    tokio::time::sleep(Duration::from_secs(300)).await;
}

fn simulate<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.unwrap().block_on(future)
}

#[test]
fn in_good_weather_everything_is_sent_once_and_in_order() {
    simulate(async {
        let sim = Sim::new(1, Weather::default());
        let mortal = start(&sim, None);
        all_done(&mortal, 20).await;
        let world = sim.world();
        let on_chain: Vec<Vec<u8>> =
            world.blocks.iter().flat_map(|block| &block.sent).map(|sent| sent.data.clone()).collect();
        assert_eq!(on_chain, (0..20).map(|number| order(number).data).collect::<Vec<_>>());
    });
}

#[test]
fn a_node_that_is_down_for_a_minute_is_waited_for() {
    simulate(async {
        let sim = Sim::new(2, Weather::default());
        let mortal = start(&sim, None);
        let before = mortal.order(0);
        tokio::time::sleep(Duration::from_secs(2)).await;
        sim.world().is_down = true;
        let during = mortal.order(1);
        tokio::time::sleep(Duration::from_secs(60)).await;
        {
            let mut world = sim.world();
            world.is_down = false;
            world.pool.clear();
        }
        before.await.unwrap().unwrap();
        during.await.unwrap().unwrap();
        assert_each_once(&sim, 2);
    });
}

#[test]
fn an_order_does_not_wait_for_ever_for_a_node() {
    simulate(async {
        let sim = Sim::new(3, Weather::default());
        sim.world().is_down = true;
        let mortal = start(&sim, None);
        let error = mortal.order(0).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Unreachable(_)), "{error}");
    });
}

#[test]
fn when_fees_rise_more_is_offered() {
    simulate(async {
        let sim = Sim::new(4, Weather::default());
        let mortal = start(&sim, None);
        all_done(&mortal, 1).await;
        let answer = mortal.order(1);
        tokio::time::sleep(Duration::from_millis(200)).await;
        {
            let mut world = sim.world();
            world.base_wei = 100 * GWEI;
            world.spike_ends = usize::MAX;
        }
        answer.await.unwrap().unwrap();
        assert_each_once(&sim, 2);
        let world = sim.world();
        let last = world.blocks.iter().rev().find_map(|block| block.sent.last()).unwrap();
        assert!(last.max_wei >= 100 * GWEI && last.max_wei <= manner().max_fee_wei);
    });
}

#[test]
fn a_nonce_that_somebody_else_used_is_given_up() {
    simulate(async {
        let sim = Sim::new(5, Weather::default());
        let mortal = start(&sim, None);
        all_done(&mortal, 1).await;
        let answer = mortal.order(1);
        tokio::time::sleep(Duration::from_millis(500)).await;
        {
            let mut world = sim.world();
            let nonce = world.count(usize::MAX);
            let meddled = Sent { hash: [3; 32], nonce, max_wei: u128::MAX, tip_wei: 0, data: Vec::new() };
            world.pool.insert(nonce, meddled);
        }
        answer.await.unwrap().unwrap();
        assert_each_once(&sim, 2);
    });
}

#[test]
fn a_nonce_that_a_node_made_up_is_filled_in() {
    simulate(async {
        let sim = Sim::new(6, Weather::default());
        let mortal = start(&sim, None);
        // A node that counts what it then forgets.
        for nonce in 0..3 {
            let lost = Sent { hash: [4; 32], nonce, max_wei: 0, tip_wei: 0, data: Vec::new() };
            sim.world().pool.insert(nonce, lost);
        }
        let answer = mortal.order(0);
        tokio::time::sleep(Duration::from_secs(1)).await;
        sim.world().pool.retain(|_, sent| sent.max_wei != 0);
        answer.await.unwrap().unwrap();
        assert_each_once(&sim, 1);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn in_a_storm_every_order_is_done_once(seed: u64) {
        simulate(async move {
            let sim = Sim::new(seed, STORM);
            let mortal = start(&sim, None);
            all_done(&mortal, 12).await;
            settle(&sim).await;
            assert_each_once(&sim, 12);
        });
    }

    #[test]
    fn a_crash_at_any_moment_loses_and_repeats_nothing(seed: u64, crashes in prop::collection::vec(0u64..20_000, 1..6)) {
        simulate(async move {
            let folder = tempfile::tempdir().unwrap();
            let sim = Sim::new(seed, Weather { meddles: 0, ..STORM });
            let mut mortal = start(&sim, Some(folder.path()));
            let answers: Vec<_> = (0..8).map(|number| mortal.order(number)).collect();
            for after in crashes {
                tokio::time::sleep(Duration::from_millis(after)).await;
                mortal.die().await;
                mortal = start(&sim, Some(folder.path()));
            }
            settle(&sim).await;
            // What had no nonce when the first sender died is gone, and whoever ordered it knows.
            let done = sim.done();
            for (number, mut answer) in (0u32..).zip(answers) {
                let times = done.get(&order(number).data).copied().unwrap_or(0);
                prop_assert!(times <= 1);
                prop_assert!(times == 1 || !matches!(answer.try_recv(), Ok(Ok(_))));
            }
            Ok(())
        })?;
    }
}
