//! `dolphin earn`: what a node has earned.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use engine::payment::{
    now, pod,
    settle::Settlement,
    store::read,
    till::{Kept, Record},
};
use ledger::{
    client::{Balances, Ledger, NODE_ROLE, Stake, show_address},
    eip712::Address,
};
use serde_json::json;
use transport::Identity;

use super::{
    chain::{ChainArgs, earned_directory, when},
    file,
};

/// Show what a node has earned: vouchers that it holds, what they brought, and its account's stake.
///
/// It reads what the node keeps on this machine, also while the node runs, and asks the chain if it knows where the
/// contracts are.
#[derive(Args, Debug)]
pub(super) struct Earn {
    /// The node's key [default: node.key in the configuration directory]
    #[arg(long, env = "DOLPHIN_KEY_FILE", value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(flatten)]
    chain: ChainArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What the node's store says.
#[derive(Default)]
struct Books {
    tabs: Vec<Kept>,
    history: Vec<Settlement>,
}

impl Books {
    fn sum(&self, part: impl Fn(&Kept) -> u128) -> u128 {
        self.tabs.iter().map(part).sum()
    }

    /// Wei of POD in vouchers that are not collected.
    fn claimable(&self) -> u128 {
        self.sum(|kept| kept.due().1)
    }

    fn collected(&self) -> u128 {
        self.history.iter().map(|settlement| settlement.own).sum()
    }
}

impl Earn {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let usual = || file::directory().map(|directory| directory.join("node.key"));
        let key = self.key.clone().or_else(usual).context("there is no home directory: give --key FILE")?;
        if !key.exists() {
            bail!("there is no node's key in {}: --key FILE says where it is", key.display());
        }
        let identity = Identity::load(&key)?;
        let directory = earned_directory(&identity)?;
        let mut books = Books::default();
        if directory.exists() {
            for record in read::<Record>(&directory)?.into_values() {
                match record {
                    Record::Tab(kept) => books.tabs.push(*kept),
                    Record::History(history) => books.history = history,
                }
            }
        }
        let account = books.tabs.first().and_then(|kept| kept.tab.plan.stages.get(kept.stage));
        let account = account.map(|stage| stage.payee);
        let chain = match account {
            Some(account) if self.chain.is_configured() => match self.ask(account).await {
                Ok(answer) => Some(answer),
                Err(error) => {
                    eprintln!("what the chain has is not shown: {error:#}");
                    None
                }
            },
            _ => None,
        };
        let account = account.map(|account| show_address(&account));
        if self.json {
            println!("{}", as_json(&books, account, chain.as_ref()));
        } else {
            print(&books, account, chain.as_ref());
        }
        Ok(())
    }

    async fn ask(&self, account: Address) -> anyhow::Result<(Balances, Stake)> {
        let ledger = self.chain.connect().await?;
        let stake = ledger.stake(account, NODE_ROLE, account).await?;
        Ok((ledger.balances(account).await?, stake))
    }
}

fn as_json(books: &Books, account: Option<String>, chain: Option<&(Balances, Stake)>) -> serde_json::Value {
    let tab = |kept: &Kept| {
        json!({
            "plan": hex::encode(kept.tab.plan.hash()), "expiry": kept.tab.plan.expiry,
            "payer": show_address(&kept.tab.plan.payer), "earned": pod(kept.own(kept.total.min(kept.lock))),
            "claimable": pod(kept.due().1),
        })
    };
    let settled = |settlement: &Settlement| {
        json!({
            "time": settlement.time, "plans": settlement.plans.len(), "pod": pod(settlement.own),
            "fee_wei": settlement.fee.to_string(),
        })
    };
    let on_chain = chain.map(|(balances, stake)| {
        json!({
            "earned": balances.earned.to_string(), "escrow": balances.escrow.to_string(),
            "stake": stake.position.amount.to_string(),
        })
    });
    json!({
        "account": account, "claimable": pod(books.claimable()), "collected": pod(books.collected()),
        "tabs": books.tabs.iter().map(tab).collect::<Vec<_>>(),
        "history": books.history.iter().map(settled).collect::<Vec<_>>(), "chain": on_chain,
    })
}

fn print(books: &Books, account: Option<String>, chain: Option<&(Balances, Stake)>) {
    println!("account    {}", account.unwrap_or_else(|| "none yet".into()));
    let open = books.tabs.iter().filter(|kept| kept.due().1 > 0).count();
    println!("claimable  {} POD in {open} of {} vouchers", pod(books.claimable()), books.tabs.len());
    println!("collected  {} POD by this node", pod(books.collected()));
    if let Some((balances, stake)) = chain {
        println!("earned     {} POD in all", balances.earned);
        println!("escrow     {} POD to be withdrawn", balances.escrow);
        println!("stake      {} POD", stake.position.amount);
    }
    if !books.history.is_empty() {
        println!("\nsettled          plans  POD");
    }
    let now = now();
    for settlement in &books.history {
        let settled = when(settlement.time, now);
        println!("{settled:<15}  {:<5}  {}", settlement.plans.len(), pod(settlement.own));
    }
}
