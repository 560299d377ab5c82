//! What people do on the chain: their accounts, their stake, their votes.

pub(super) mod account;
pub(super) mod dispute;
pub(super) mod gov;
mod options;
mod pay;
pub(super) mod serve;
pub(super) mod stake;

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, bail};
use clap::Args;
use ledger::client::{Action, Client, Estimate, Ledger, Pod, Receipt, show_address};
use serde_json::{Value, json};

pub(in crate::cli) use options::ChainArgs;
pub(in crate::cli) use pay::{PriceArgs, SpendArgs, earned_directory, per_token, state_directory};

/// How something irreversible is asked for and told.
#[derive(Args, Debug)]
struct ActArgs {
    #[command(flatten)]
    chain: ChainArgs,
    /// Do it without asking
    #[arg(long, short)]
    yes: bool,
    /// Print one line of JSON for each transaction
    #[arg(long)]
    json: bool,
}

/// Someone about to act on the chain.
struct Actor {
    client: Client,
    account: [u8; 20],
    yes: bool,
    json: bool,
}

impl ActArgs {
    async fn actor(self) -> anyhow::Result<Actor> {
        let client = self.chain.connect_with_key().await?;
        let account = client.account().context("the client has no key")?;
        Ok(Actor { client, account, yes: self.yes, json: self.json })
    }
}

impl Actor {
    /// Says what is about to happen and what it costs, asks, and does it.
    async fn act(&self, what: &str, action: Action) -> anyhow::Result<Receipt> {
        let estimate = self.client.estimate(&action).await.map_err(explained)?;
        self.confirm(what, &estimate)?;
        self.submit(what, action).await
    }

    /// Does something that was agreed to with what came before it.
    async fn submit(&self, what: &str, action: Action) -> anyhow::Result<Receipt> {
        if !self.json {
            eprintln!("waiting for the chain …");
        }
        let receipt = self.client.submit(action).await.map_err(explained)?;
        if self.json {
            println!("{}", receipt_json(what, &receipt));
        } else {
            println!(
                "done: {what}, in block {} (transaction 0x{}, {} gas, {} of the native token)",
                receipt.block,
                hex::encode(receipt.transaction),
                receipt.gas,
                Pod(receipt.fee_wei),
            );
        }
        Ok(receipt)
    }

    fn confirm(&self, what: &str, estimate: &Estimate) -> anyhow::Result<()> {
        if self.yes {
            return Ok(());
        }
        let mut cost = format!("about {} gas, {} of the native token", estimate.gas, Pod(estimate.fee_wei));
        if estimate.l1_fee_wei > 0 {
            cost += &format!(" ({} of it for layer 1)", Pod(estimate.l1_fee_wei));
        }
        eprintln!(
            "{what}\n  from {}\n  {cost}, at most {}",
            show_address(&self.account),
            Pod(estimate.most_wei)
        );
        if !std::io::stdin().is_terminal() {
            bail!("nobody is there to agree: give --yes to do it without asking");
        }
        eprint!("go on? [y/N] ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            bail!("nothing was done");
        }
        Ok(())
    }
}

fn receipt_json(what: &str, receipt: &Receipt) -> Value {
    json!({
        "action": what,
        "transaction": format!("0x{}", hex::encode(receipt.transaction)),
        "block": receipt.block,
        "gas": receipt.gas,
        "fee_wei": receipt.fee_wei.to_string(),
        "l1_fee_wei": receipt.l1_fee_wei.to_string(),
    })
}

/// An amount for scripts: in POD for people, in wei for sums.
fn amount_json(amount: Pod) -> Value {
    json!({"pod": amount.to_string(), "wei": amount.0.to_string()})
}

/// The refusals that people meet, with what to do about them.
fn explained(error: ledger::client::Error) -> anyhow::Error {
    use ledger::client::Error;
    let advice = match &error {
        Error::Unreachable(_) => "is the chain running? --rpc-url says where it is",
        Error::WrongChain { .. } => "--deployment or --rpc-url is of another chain",
        Error::Funds { .. } => "gas is paid in the chain's native token: send some to this account",
        Error::FeeLimit { .. } => "wait until fees fall",
        Error::Refused(refusal) => match refusal.name.as_str() {
            "ERC20InsufficientBalance" => "the account holds less POD: `dolphin account balance` shows it",
            "TooMuch" => {
                "there is less than that: `dolphin account balance` and `dolphin stake status` show it"
            }
            "NotReleased" => "it still thaws: `dolphin stake status` says until when",
            "GovernorInsufficientProposerVotes" => {
                "votes must be delegated and a block old: `dolphin gov delegate` votes with held POD"
            }
            "GovernorUnexpectedProposalState" => "`dolphin gov list` says where the proposal is",
            _ => return error.into(),
        },
        _ => return error.into(),
    };
    anyhow::Error::new(error).context(advice)
}

/// A time of the chain, seen from `now`: both in seconds since 1970.
pub(in crate::cli) fn when(time: u64, now: u64) -> String {
    let (length, past) = (time.abs_diff(now), time <= now);
    let text = match length {
        0..120 => format!("{length} s"),
        120..7200 => format!("{} min", length / 60),
        7200..172_800 => format!("{} h", length / 3600),
        _ => format!("{} days", length / 86_400),
    };
    if past { format!("{text} ago") } else { format!("in {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_from_now() {
        assert_eq!(when(100, 100), "0 s ago");
        assert_eq!(when(221, 100), "in 2 min");
        assert_eq!(when(0, 7200), "2 h ago");
        assert_eq!(when(20 * 86_400, 0), "in 20 days");
    }
}
