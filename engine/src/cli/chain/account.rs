//! `dolphin account`: a developer's money.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use ledger::{
    client::{
        Action, Cursor, Event, Key, Ledger, Passphrase, Pod, Work, parse_address, show_address, write_key,
    },
    eip712::Address,
};
use serde_json::json;

use super::{ActArgs, ChainArgs, amount_json, options::AccountArgs, when};

/// Make an account, fill it, look into it, empty it.
///
/// A gateway with `--account` pays the nodes of its routes from what the account has in the escrow. Amounts are
/// in POD.
#[derive(Args, Debug)]
pub(in crate::cli) struct AccountCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key and encrypt it with a passphrase
    New(New),
    /// Show what an account has
    Balance(Balance),
    /// Put POD into the escrow, to pay for requests
    Deposit(Amount),
    /// Take POD out of the escrow
    Withdraw(Amount),
    /// Send POD to somebody
    Send(Send),
    /// Show the money that is locked for plans
    Locks(Locks),
    /// Begin to take a lock back
    Thaw(OfPlan),
    /// Free what a thawed lock has left
    Release(OfPlan),
}

#[derive(Args, Debug)]
struct New {
    #[command(flatten)]
    account: AccountArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Balance {
    /// Whose [default: the account's own]
    #[arg(value_name = "ADDRESS", value_parser = parse_address)]
    of: Option<Address>,
    #[command(flatten)]
    chain: ChainArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Amount {
    /// How many POD
    #[arg(value_name = "POD")]
    amount: Pod,
    /// Who gets them [default: the account itself]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    to: Option<Address>,
    #[command(flatten)]
    act: ActArgs,
}

#[derive(Args, Debug)]
struct Send {
    /// Who gets it
    #[arg(value_name = "ADDRESS", value_parser = parse_address)]
    to: Address,
    /// How many POD
    #[arg(value_name = "POD")]
    amount: Pod,
    #[command(flatten)]
    act: ActArgs,
}

#[derive(Args, Debug)]
struct Locks {
    #[command(flatten)]
    chain: ChainArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct OfPlan {
    /// The plan's hash, as `dolphin account locks` shows it
    #[arg(value_name = "PLAN", value_parser = parse_hash)]
    plan: [u8; 32],
    #[command(flatten)]
    act: ActArgs,
}

impl AccountCommand {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::New(command) => command.run(),
            Command::Balance(command) => command.run().await,
            Command::Locks(command) => command.run().await,
            Command::Deposit(Amount { amount, to, act }) => {
                let actor = act.actor().await?;
                let to = to.unwrap_or(actor.account);
                let what = format!("deposit {amount} POD into the escrow for {}", show_address(&to));
                actor.act(&what, Action::Deposit { to, amount }).await.map(drop)
            }
            Command::Withdraw(Amount { amount, to, act }) => {
                let actor = act.actor().await?;
                let to = to.unwrap_or(actor.account);
                let what = format!("withdraw {amount} POD from the escrow to {}", show_address(&to));
                actor.act(&what, Action::Withdraw { to, amount }).await.map(drop)
            }
            Command::Send(Send { to, amount, act }) => {
                let what = format!("send {amount} POD to {}", show_address(&to));
                act.actor().await?.act(&what, Action::Transfer { to, amount }).await.map(drop)
            }
            Command::Thaw(OfPlan { plan, act }) => {
                let what = format!("begin to take back the lock for plan {}", hex::encode(plan));
                act.actor().await?.act(&what, Action::Thaw { plan }).await.map(drop)
            }
            Command::Release(OfPlan { plan, act }) => {
                let what = format!("free what is left of the lock for plan {}", hex::encode(plan));
                act.actor().await?.act(&what, Action::Release { plan }).await.map(drop)
            }
        }
    }
}

impl New {
    fn run(self) -> anyhow::Result<()> {
        let path = self.account.path()?;
        if path.exists() {
            bail!("{} exists and is not overwritten: give another --account FILE", path.display());
        }
        let passphrase = match &self.account.passphrase_file {
            Some(file) => Passphrase::from_file(file)?,
            None => Passphrase::prompt_new("Passphrase for the new account: ")?,
        };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).with_context(|| format!("{}", directory.display()))?;
        }
        let key = Key::generate().context("no random numbers")?;
        write_key(&path, &key, &passphrase, Work::STANDARD)?;
        let address = show_address(&key.address());
        if self.json {
            println!("{}", json!({"address": address, "file": path}));
        } else {
            println!("{address}\n");
            println!("The key is in {}, encrypted. Keep a copy of the file", path.display());
            println!("and the passphrase: without either, what the account has is lost.");
        }
        Ok(())
    }
}

impl Balance {
    async fn run(self) -> anyhow::Result<()> {
        let account = match self.of {
            Some(account) => account,
            None => self.chain.account.address()?,
        };
        let client = self.chain.connect().await?;
        let balances = client.balances(account).await.map_err(super::explained)?;
        if self.json {
            let value = json!({
                "account": show_address(&account),
                "native_wei": balances.native_wei.to_string(),
                "held": amount_json(balances.pod),
                "escrow": amount_json(balances.escrow),
                "earned": amount_json(balances.earned),
                "votes": amount_json(balances.votes),
            });
            println!("{}", serde_json::to_string_pretty(&value)?);
            return Ok(());
        }
        println!("account  {}", show_address(&account));
        println!("held     {} POD", balances.pod);
        println!("escrow   {} POD free to pay for requests or to withdraw", balances.escrow);
        println!("earned   {} POD in all", balances.earned);
        println!("votes    {} POD", balances.votes);
        println!("native   {} for gas", Pod(balances.native_wei));
        Ok(())
    }
}

impl Locks {
    async fn run(self) -> anyhow::Result<()> {
        let account = self.chain.account.address()?;
        let client = self.chain.connect().await?;
        let now = client.head().await.map_err(super::explained)?.time;
        let mut open = Vec::new();
        for plan in locked_plans(&client, account).await? {
            let lock = client.lock(account, plan).await.map_err(super::explained)?;
            if lock.remaining > Pod::ZERO {
                open.push((plan, lock));
            }
        }
        if self.json {
            let rows: Vec<_> = open
                .iter()
                .map(|(plan, lock)| {
                    json!({
                        "plan": hex::encode(plan),
                        "remaining": amount_json(lock.remaining),
                        "collected": amount_json(lock.collected),
                        "thaws_at": lock.thaws_at,
                    })
                })
                .collect();
            println!("{}", serde_json::to_string_pretty(&rows)?);
            return Ok(());
        }
        if open.is_empty() {
            println!("nothing is locked for {}", show_address(&account));
        }
        for (plan, lock) in open {
            let thaw = match lock.thaws_at {
                None => "holds".to_owned(),
                Some(at) if at <= now => "can be released".to_owned(),
                Some(at) => format!("thaws {}", when(at, now)),
            };
            println!("{}", hex::encode(plan));
            println!("  {} POD left, {} collected, {thaw}", lock.remaining, lock.collected);
        }
        Ok(())
    }
}

/// Every plan that a payer ever locked money for, oldest first.
async fn locked_plans(ledger: &dyn Ledger, payer: Address) -> anyhow::Result<Vec<[u8; 32]>> {
    let mut cursor = Cursor::from_block(ledger.deployment().block);
    let mut plans = BTreeMap::new();
    loop {
        let news = ledger.events(&cursor).await.map_err(super::explained)?;
        for logged in news.events {
            if let Event::Locked { payer: whose, plan, .. } = logged.event
                && whose == payer
            {
                plans.entry(plan).or_insert(logged.block);
            }
        }
        cursor = news.cursor;
        if !news.more {
            break;
        }
    }
    let mut plans: Vec<_> = plans.into_iter().collect();
    plans.sort_by_key(|&(_, block)| block);
    Ok(plans.into_iter().map(|(plan, _)| plan).collect())
}

/// 32 bytes in hexadecimal, with or without `0x`.
pub(super) fn parse_hash(text: &str) -> Result<[u8; 32], hex::FromHexError> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text.strip_prefix("0x").unwrap_or(text), &mut hash)?;
    Ok(hash)
}
