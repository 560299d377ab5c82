//! A gateway and three nodes of four people, each in a process and a home of its own, and a chain in another. What
//! clients were told they pay, what was signed, and what the chain has moved, must be the same money.

mod clients;
mod faults;
mod net;
mod paid;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use engine::{
    message::TabOffer,
    payment::{store, till},
};
use ledger::{
    client::{Client, Cursor, Event, Key, Ledger, Logged, Passphrase, Pod, Work, write_key},
    eip712::Address,
    plan::Plan,
};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use self::net::Net;
use crate::process::{Dolphin, command};

/// What everybody has at first.
const MONEY: Pod = Pod(100_000_000_000_000_000_000);
const LAYERS: [&str; 3] = ["0..2", "2..4", "4..6"];

/// Somebody with an account, and a home in which it is.
struct Person {
    home: PathBuf,
    account: Address,
}

impl Person {
    fn new(base: &Path, name: &str, secret: u8) -> Self {
        let home = base.join(name);
        fs::create_dir_all(home.join("dolphin")).unwrap();
        fs::write(home.join("passphrase"), "correct horse\n").unwrap();
        let key = Key::from_bytes(&[secret; 32]).unwrap();
        let passphrase = Passphrase::from_file(&home.join("passphrase")).unwrap();
        write_key(&home.join("dolphin/account.json"), &key, &passphrase, Work::LIGHT).unwrap();
        Self { home, account: key.address() }
    }
}

/// Which chain is used.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Embedded,
    Anvil,
}

struct Market {
    net: Net,
    reader: Client,
    payer: Person,
    nodes: [Person; 3],
    /// What they ask for a token, in wei.
    prices: [u128; 3],
    // Last, for it is removed when everything in it has ended.
    _home: TempDir,
}

/// What the payer keeps of a plan.
#[derive(Debug, Deserialize)]
struct Signed {
    tab: TabOffer,
    total: u128,
}

/// The payer's records.
#[derive(Debug, Deserialize)]
enum Record {
    Tab(Box<Signed>),
    Spent(u128),
}

/// What came of everything.
#[derive(Debug)]
struct Books {
    /// What happened, in order.
    events: Vec<Logged>,
    /// Hashes of the plans that were locked for, in order.
    plans: Vec<[u8; 32]>,
    /// What all vouchers were paid.
    paid: u128,
    /// What each node has earned of it.
    earned: [u128; 3],
    /// What the payer has free.
    left: u128,
}

impl Market {
    /// Nodes with prices in wei for a token. `None` if there is no such chain.
    async fn open(kind: Kind, prices: [u128; 3]) -> Option<Self> {
        let base = TempDir::new().unwrap();
        let person = |name, secret| Person::new(base.path(), name, secret);
        let payer = person("payer", 0x71);
        let nodes = [person("first", 0x81), person("second", 0x82), person("third", 0x83)];
        let accounts = [payer.account, nodes[0].account, nodes[1].account, nodes[2].account];
        let bank = base.path().join("bank");
        let net = match kind {
            Kind::Embedded => Net::embedded(&bank, &accounts, MONEY),
            Kind::Anvil => Net::anvil(&bank, &accounts, MONEY).await?,
        };
        let reader = net.reader().await;
        Some(Self { net, reader, payer, nodes, prices, _home: base })
    }

    /// What each node earns by so many tokens.
    fn earnings(&self, tokens: u64) -> [u128; 3] {
        self.prices.map(|price| price * u128::from(tokens))
    }

    /// What they cost.
    fn cost(&self, tokens: u64) -> u128 {
        self.earnings(tokens).into_iter().sum()
    }

    fn command(&self, person: &Person, args: &[&str]) -> Command {
        let mut command = command(&person.home, args);
        command.env("DOLPHIN_PASSPHRASE_FILE", person.home.join("passphrase"));
        command.env("DOLPHIN_ACCOUNT", person.home.join("dolphin/account.json"));
        command.env("DOLPHIN_RPC_URL", &self.net.url).env("DOLPHIN_DEPLOYMENT", &self.net.deployment);
        command
    }

    fn deposit(&self, pod: &str) {
        let output = self.command(&self.payer, &["account", "deposit", pod, "--yes"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A gateway that nodes reach at `swarm`.
    fn gateway(&self, swarm: &str) -> Dolphin {
        let args = ["serve", "--listen", "127.0.0.1:0", "--swarm", swarm, "--replan", "off", "--json"];
        Dolphin::spawn(self.command(&self.payer, &args))
    }

    fn node(&self, index: usize, join: &str, credit: u64) -> Dolphin {
        let (price, credit) = (Pod(self.prices[index] * 1_000_000).to_string(), credit.to_string());
        let args = ["node", "--join", join, "--layers", LAYERS[index], "--price", &price];
        let args = [&args[..], &["--credit", &credit, "--json"]].concat();
        Dolphin::spawn(self.command(&self.nodes[index], &args))
    }

    /// What the payer has signed for each plan, as its disk has it.
    fn signed(&self) -> BTreeMap<[u8; 32], (Plan, u128)> {
        let records = store::read::<Record>(&only(&self.payer.home.join("dolphin/paid"))).unwrap();
        let tab = |record| match record {
            Record::Tab(kept) => (kept.tab.plan.hash(), (kept.tab.plan, kept.total)),
            Record::Spent(wei) => panic!("{wei} wei for plans that are over: no plan is, for a day"),
        };
        records.into_values().map(tab).collect()
    }

    /// What the payer has signed in all.
    fn spent(&self) -> u128 {
        self.signed().values().map(|(_, total)| total).sum()
    }

    /// Vouchers that a node holds, as its disk has them: totals by plan.
    fn held(&self, index: usize) -> BTreeMap<[u8; 32], u128> {
        let directory = only(&self.nodes[index].home.join("dolphin/earned"));
        let records = store::read::<till::Record>(&directory).unwrap();
        let tab = |record| match record {
            till::Record::Tab(kept) => Some((kept.tab.plan.hash(), kept.total)),
            till::Record::History(_) => None,
        };
        records.into_values().filter_map(tab).collect()
    }

    /// Everything that the chain says, once it is certain that no money was made, lost or paid out twice.
    async fn books(&self) -> Books {
        let events = self.events().await;
        let signed = self.signed();
        let (mut plans, mut paid, mut earned) = (Vec::new(), BTreeMap::new(), [0; 3]);
        for Logged { event, .. } in &events {
            match event {
                Event::Locked { plan, .. } => plans.push(*plan),
                Event::Collected { plan, payments, .. } => {
                    let all: u128 = payments.iter().map(|(_, amount)| amount.0).sum();
                    let shares = signed[plan].0.shares(all).unwrap();
                    for (index, (payee, amount)) in payments.iter().enumerate() {
                        assert_eq!((*payee, amount.0), (self.nodes[index].account, shares[index]));
                        earned[index] += amount.0;
                    }
                    *paid.entry(*plan).or_insert(0) += all;
                }
                Event::VoucherCollected { plan, total, .. } => {
                    assert_eq!(paid.get(plan), Some(&total.0), "a plan is paid its highest total, once");
                    assert!(total.0 <= signed[plan].1, "more is paid than was signed");
                }
                Event::Skipped { reason, .. } => {
                    assert!(reason.starts_with("NothingDue"), "a voucher was left out: {reason}");
                }
                _ => {}
            }
        }
        let left = self.conserved(&plans, earned).await;
        Books { events, plans, paid: paid.values().sum(), earned, left }
    }

    /// All that everybody has, and is locked, is what there was at first. What the payer has free.
    async fn conserved(&self, plans: &[[u8; 32]], earned: [u128; 3]) -> u128 {
        let mut locked = 0;
        for plan in plans {
            locked += self.reader.lock(self.payer.account, *plan).await.unwrap().remaining.0;
        }
        let payer = self.reader.balances(self.payer.account).await.unwrap();
        let (mut held, mut escrow) = (payer.pod.0, payer.escrow.0 + locked);
        for (person, earned) in self.nodes.iter().zip(earned) {
            let has = self.reader.balances(person.account).await.unwrap();
            assert_eq!((has.earned.0, has.escrow.0), (earned, earned));
            (held, escrow) = (held + has.pod.0, escrow + has.escrow.0);
        }
        let contract = self.reader.deployment().escrow;
        assert_eq!(self.reader.balances(contract).await.unwrap().pod.0, escrow);
        assert_eq!(held + escrow, 4 * MONEY.0);
        payer.escrow.0
    }

    /// What happened, but for locks that thaw: a gateway takes them back when it comes to it.
    async fn events(&self) -> Vec<Logged> {
        let mut cursor = Cursor::from_block(self.reader.deployment().block);
        let mut events = Vec::new();
        loop {
            let news = self.reader.events(&cursor).await.unwrap();
            events.extend(news.events);
            cursor = news.cursor;
            if !news.more {
                events.retain(|logged| !matches!(logged.event, Event::LockThawing { .. }));
                return events;
            }
        }
    }
}

/// The only directory in another: of the only account, or the only node, of a home.
fn only(directory: &Path) -> PathBuf {
    let entries: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0].clone()
}

/// Waits for something that is looked at again and again.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within a minute");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What a reply cost, and for how many tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bill {
    tokens: u64,
    wei: u128,
}

impl Bill {
    /// Of a reply's `usage`.
    fn of(usage: &Value) -> Self {
        let cost = &usage["cost"];
        let wei = cost["wei"].as_str().unwrap_or_else(|| panic!("{usage}")).parse().unwrap();
        assert_eq!(cost["pod"], Pod(wei).to_string());
        Self { tokens: usage["total_tokens"].as_u64().unwrap(), wei }
    }

    fn sum(bills: &[Self]) -> Self {
        bills.iter().fold(Self { tokens: 0, wei: 0 }, |sum, bill| Self {
            tokens: sum.tokens + bill.tokens,
            wei: sum.wei + bill.wei,
        })
    }
}
