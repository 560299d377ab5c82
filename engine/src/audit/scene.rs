//! A chain with the contracts and a beacon, accounts with stake on it, and cases that have come to a dispute: what the
//! tests of audits play on.

use std::{sync::Arc, time::Duration};

use ledger::{
    EXAMPLE_PARAMETERS,
    audit::{self, Chunk, LeafId, Tree},
    beacon::{Clock, Secret},
    client::{
        AUDITOR_ROLE, Action, AuditAction, AuditEvent, Client, Config, Deployment, Event, Key, Ledger,
        NODE_ROLE, Parameters, Pod,
    },
    eip712::Address,
    embedded::{Chain, Genesis, LocalBeacon, Sealing, Server, serve_with_beacon},
};
use serde_json::json;

/// Numbers of accounts.
pub(in crate::audit) const NODE: u8 = 3;
pub(in crate::audit) const AUDITORS: [u8; 2] = [4, 5];

const SALT: [u8; 32] = [5; 32];
/// What the auditors say came out.
const FOUND: [u8; 32] = [7; 32];

pub(in crate::audit) struct Scene {
    chain: Chain,
    server: Server,
    secret: Secret,
    pub(in crate::audit) deployment: Deployment,
    pub(in crate::audit) holder: Arc<Client>,
    pub(in crate::audit) node: Arc<Client>,
    /// The first of them takes up disputes.
    pub(in crate::audit) auditors: [Arc<Client>; 2],
}

pub(in crate::audit) fn pod(text: &str) -> Pod {
    text.parse().expect("an amount")
}

pub(in crate::audit) fn key(number: u8) -> Key {
    Key::from_bytes(&[number; 32]).expect("a small number is a key")
}

fn config(chain: &Chain) -> Config {
    // Events of a dispute are in several ranges.
    Config { poll: Duration::from_millis(10), log_range: 5, ..Config::over(Arc::new(chain.clone())) }
}

async fn connected(chain: &Chain, deployment: &Deployment, number: u8) -> Arc<Client> {
    let client = Client::connect(config(chain), deployment.clone(), Some(key(number))).await;
    Arc::new(client.expect("a client"))
}

pub(in crate::audit) async fn act(client: &Client, action: Action) -> Vec<Event> {
    let text = format!("{action:?}");
    client.submit(action).await.unwrap_or_else(|error| panic!("{text}: {error}")).events
}

pub(in crate::audit) async fn done(client: &Client, action: AuditAction) -> Vec<AuditEvent> {
    let events = act(client, Action::Audit(Box::new(action))).await.into_iter();
    let events = events.filter_map(|event| match event {
        Event::Audit(event) => Some(event),
        _ => None,
    });
    events.collect()
}

impl Scene {
    pub(in crate::audit) async fn new() -> Self {
        let accounts = (1..=20).map(|number| (key(number).address(), 100 * 10u128.pow(18)));
        let genesis = Genesis { accounts: accounts.collect(), ..Genesis::default() };
        let chain = Chain::in_memory(genesis, Sealing::Instant);
        let clock = Clock { genesis: chain.time().expect("a time") - 1000, period: 30 };
        let secret = || Secret::from_seed(&[9; 32]);
        let beacon = LocalBeacon { secret: secret(), clock };
        let mut parameters: Parameters = serde_json::from_str(EXAMPLE_PARAMETERS).expect("parameters");
        let holder = key(1).address();
        (parameters.holder, parameters.guardian, parameters.poster) = (holder, holder, holder);
        parameters.emission_start = 1_700_000_000;
        parameters.beacon = beacon.parameters();
        // Every leaf is drawn.
        (parameters.audits.reply_rate, parameters.audits.prompt_rate) = (u32::MAX, u32::MAX);
        // Several cases of one day are to be told apart by what they cost.
        parameters.slash_cap_bps = 10_000;
        let server = serve_with_beacon(chain.clone(), ([127, 0, 0, 1], 0).into(), false, beacon).await;
        let server = server.expect("a free port");
        let deployment = Client::deploy(config(&chain), key(1), &parameters).await.expect("a deployment");
        let client = async |number| connected(&chain, &deployment, number).await;
        let (holder, node) = (client(1).await, client(NODE).await);
        let auditors = [client(AUDITORS[0]).await, client(AUDITORS[1]).await];
        Self { chain, server, secret: secret(), deployment, holder, node, auditors }
    }

    /// A client of account `number`, of 1 to 20.
    pub(in crate::audit) async fn client(&self, number: u8) -> Arc<Client> {
        connected(&self.chain, &self.deployment, number).await
    }

    /// Where rounds of the beacon are.
    pub(in crate::audit) fn url(&self) -> String {
        self.server.url()
    }

    pub(in crate::audit) fn advance(&self, seconds: u64) {
        self.chain.advance_time(seconds).expect("time passes");
        self.chain.mine().expect("a block");
    }

    /// Goes on to the next epoch, which this is.
    pub(in crate::audit) async fn next_epoch(&self, epoch_s: u64) -> u32 {
        let now = self.holder.head().await.expect("a head").time;
        self.advance(epoch_s - now % epoch_s + 1);
        (self.holder.head().await.expect("a head").time / epoch_s) as u32
    }

    /// Has an account stand behind a role, with some POD more for bonds.
    pub(in crate::audit) async fn staked(&self, client: &Client, role: u32, amount: &str) {
        let to = client.account().expect("a key");
        let amount = pod(amount);
        act(&self.holder, Action::Transfer { to, amount }).await;
        act(client, Action::Stake { amount }).await;
        act(client, Action::Provision { role, amount }).await;
        act(&self.holder, Action::Transfer { to, amount: pod("10000") }).await;
    }

    /// Brings what the node has committed to into disputes: both auditors find something else, the node
    /// disputes that, and the first auditor takes it up.
    pub(in crate::audit) async fn disputed(&self, chunks: &[Chunk]) -> Vec<[u8; 32]> {
        let epoch_s = self.node.audit_terms().await.expect("terms").epoch_s;
        self.staked(&self.node, NODE_ROLE, "10000").await;
        for auditor in &self.auditors {
            self.staked(auditor, AUDITOR_ROLE, "50000").await;
            done(auditor, AuditAction::Join { replaced: None }).await;
        }
        self.next_epoch(epoch_s).await;
        let events = done(&self.holder, AuditAction::ListAuditors).await;
        let [AuditEvent::AuditorsListed { auditors, .. }] = &events[..] else { panic!("{events:?}") };
        let epoch = self.next_epoch(epoch_s).await;
        let account = self.node.account().expect("a key");
        let tree = Tree::new(chunks.iter().map(|chunk| chunk.leaf(&account)).collect()).expect("leaves");
        let post = AuditAction::Post { root: tree.root(), count: chunks.len() as u32, prompts: 0 };
        done(&self.node, post).await;
        self.next_epoch(epoch_s).await;
        self.advance(120);
        let round = self.node.audit_round(epoch).await.expect("a round").round;
        let signature = self.secret.sign(round);
        done(&self.holder, AuditAction::SubmitRound { round, signature }).await;
        let mut cases = Vec::new();
        for (index, chunk) in (0..).zip(chunks) {
            let leaf = LeafId { account, epoch, index };
            let proof = tree.proof(index as usize).expect("a leaf");
            let events = done(&self.node, AuditAction::Open { leaf, chunk: *chunk, proof }).await;
            let Some(AuditEvent::LeafOpened { case, .. }) = events.last() else { panic!("{events:?}") };
            self.faulty(*case, chunk, auditors).await;
            cases.push(*case);
        }
        cases
    }

    async fn faulty(&self, case: [u8; 32], chunk: &Chunk, listed: &[(Address, u64)]) {
        for turn in 0..2 {
            let events = done(&self.holder, AuditAction::Assign { case, auditors: listed.to_vec() }).await;
            let [AuditEvent::AuditorDrawn { auditor: Some(auditor), .. }] = events[..] else {
                panic!("{events:?}")
            };
            let client = self.auditors.iter().find(|client| client.account() == Some(auditor));
            let client = client.expect("one of the two");
            let answer = audit::answer(&case, &auditor, &FOUND, &SALT);
            done(client, AuditAction::Commit { case, answer }).await;
            if turn == 0 {
                done(client, AuditAction::Differ { case }).await;
            }
        }
        for client in &self.auditors {
            done(client, AuditAction::Reveal { case, chunk: *chunk, roots: FOUND, salt: SALT }).await;
        }
        let bond = self.node.audit_terms().await.expect("terms").dispute_bond;
        done(&self.node, AuditAction::Dispute { case, bond }).await;
        done(&self.auditors[0], AuditAction::MatchBond { case, chunk: *chunk, bond }).await;
    }

    /// What stands behind the node and behind the first auditor.
    pub(in crate::audit) async fn stakes(&self) -> [Pod; 2] {
        let stake = async |client: &Client, role| {
            let account = client.account().expect("a key");
            let stake = self.holder.stake(account, role, account).await.expect("a stake");
            Pod(stake.active.0 + stake.thawing.0)
        };
        [stake(&self.node, NODE_ROLE).await, stake(&self.auditors[0], AUDITOR_ROLE).await]
    }

    /// The node tries to get away with its stake.
    pub(in crate::audit) async fn flees(&self) {
        let operator = self.node.account().expect("a key");
        let stake = async || self.node.stake(operator, NODE_ROLE, operator).await.expect("a stake");
        let shares = stake().await.position.shares;
        act(&self.node, Action::ThawStake { operator, role: NODE_ROLE, shares }).await;
        assert_eq!(stake().await.active, Pod::ZERO);
        let thaw = self.node.thaws(operator).await.expect("thaws")[0].id;
        let error = self.node.submit(Action::WithdrawStake { thaw }).await.expect_err("too early");
        assert!(error.is("NotReleased"), "{error}");
    }

    /// What the node and the first auditor hold.
    pub(in crate::audit) async fn held(&self) -> [Pod; 2] {
        let held = async |client: &Client| {
            self.holder.balances(client.account().expect("a key")).await.expect("balances").pod
        };
        [held(&self.node).await, held(&self.auditors[0]).await]
    }

    /// Gas of all transactions so far.
    pub(in crate::audit) fn gas(&self) -> u64 {
        let ask = |method: &str, params| self.chain.request(method, &params).expect("an answer");
        let number = |value: &serde_json::Value| {
            let digits = value.as_str().and_then(|text| text.strip_prefix("0x")).expect("a number");
            u64::from_str_radix(digits, 16).expect("a number")
        };
        let last = number(&ask("eth_blockNumber", json!([])));
        let used = |block: u64| {
            number(&ask("eth_getBlockByNumber", json!([format!("0x{block:x}"), false]))["gasUsed"])
        };
        (1..=last).map(used).sum()
    }
}
