//! `dolphin stake`: POD behind a node or an auditor.

use clap::{Args, Subcommand, ValueEnum};
use ledger::{
    client::{AUDITOR_ROLE, Action, Ledger, NODE_ROLE, Pod, parse_address, show_address},
    eip712::Address,
};
use serde_json::json;

use super::{ActArgs, ChainArgs, amount_json, when};

/// Put POD behind a node or an auditor, of one's own or somebody else's, and take it back.
///
/// Stake is liable for what its operator does, also while it thaws.
#[derive(Args, Debug)]
pub(in crate::cli) struct StakeCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stake POD behind a role of this account's
    Bond(Bond),
    /// Put POD behind somebody else's role
    Delegate(Delegate),
    /// Begin to take stake back
    Thaw(Thaw),
    /// Take out everything that has thawed, stood behind no role, or came from slashes
    Withdraw(ActArgs),
    /// Show what is staked, what thaws and what can be taken
    Status(Status),
}

/// What the stake stands for.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Role {
    /// Serves shards
    Node,
    /// Checks others
    Auditor,
}

impl Role {
    fn id(self) -> u32 {
        match self {
            Self::Node => NODE_ROLE,
            Self::Auditor => AUDITOR_ROLE,
        }
    }
}

#[derive(Args, Debug)]
struct Bond {
    /// How many POD
    #[arg(value_name = "POD")]
    amount: Pod,
    /// What for
    #[arg(long, default_value = "node", value_name = "ROLE")]
    role: Role,
    #[command(flatten)]
    act: ActArgs,
}

#[derive(Args, Debug)]
struct Delegate {
    /// Whose role
    #[arg(value_name = "OPERATOR", value_parser = parse_address)]
    operator: Address,
    /// How many POD
    #[arg(value_name = "POD")]
    amount: Pod,
    /// Which role
    #[arg(long, default_value = "node", value_name = "ROLE")]
    role: Role,
    #[command(flatten)]
    act: ActArgs,
}

#[derive(Args, Debug)]
struct Thaw {
    /// How many POD, or `all`
    #[arg(value_name = "POD|all", value_parser = parse_part)]
    amount: Part,
    /// Behind whose role [default: the account's own]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    operator: Option<Address>,
    /// Which role
    #[arg(long, default_value = "node", value_name = "ROLE")]
    role: Role,
    #[command(flatten)]
    act: ActArgs,
}

/// Some of it, or all.
#[derive(Clone, Copy, Debug)]
enum Part {
    All,
    Some(Pod),
}

fn parse_part(text: &str) -> Result<Part, ledger::client::AmountError> {
    if text == "all" { Ok(Part::All) } else { text.parse().map(Part::Some) }
}

#[derive(Args, Debug)]
struct Status {
    /// Behind whose role [default: the account's own]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    operator: Option<Address>,
    /// Which role
    #[arg(long, default_value = "node", value_name = "ROLE")]
    role: Role,
    #[command(flatten)]
    chain: ChainArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl StakeCommand {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Bond(command) => command.run().await,
            Command::Delegate(command) => command.run().await,
            Command::Thaw(command) => command.run().await,
            Command::Withdraw(act) => withdraw(act).await,
            Command::Status(command) => command.run().await,
        }
    }
}

impl Bond {
    async fn run(self) -> anyhow::Result<()> {
        let actor = self.act.actor().await?;
        let (role, amount) = (self.role.id(), self.amount);
        let what = format!("stake {amount} POD, to stand behind the role {:?}", self.role).to_lowercase();
        // What an earlier attempt left idle is used before more is taken.
        let stake = actor.client.stake(actor.account, role, actor.account).await.map_err(super::explained)?;
        let missing = amount.saturating_sub(stake.idle);
        let provision = Action::Provision { role, amount };
        if missing == Pod::ZERO {
            return actor.act(&what, provision).await.map(drop);
        }
        actor.act(&what, Action::Stake { amount: missing }).await?;
        actor.submit("put it behind the role", provision).await.map(drop)
    }
}

impl Delegate {
    async fn run(self) -> anyhow::Result<()> {
        let actor = self.act.actor().await?;
        let Self { operator, amount, .. } = self;
        let role = self.role.id();
        let what = format!("delegate {amount} POD to {}", show_address(&operator));
        // A share is worth at most a token, so there are never fewer shares than tokens.
        let action = Action::Delegate { operator, role, amount, min_shares: amount.0 };
        actor.act(&what, action).await.map(drop)
    }
}

impl Thaw {
    async fn run(self) -> anyhow::Result<()> {
        let actor = self.act.actor().await?;
        let (role, operator) = (self.role.id(), self.operator.unwrap_or(actor.account));
        let stake = actor.client.stake(operator, role, actor.account).await.map_err(super::explained)?;
        let (shares, amount) = match self.amount {
            Part::All => (stake.position.shares, stake.position.amount),
            Part::Some(amount) if amount > stake.position.amount => {
                anyhow::bail!("only {} POD of this account stand there", stake.position.amount)
            }
            Part::Some(amount) => (stake.position.shares_for(amount), amount),
        };
        if shares == 0 {
            anyhow::bail!(
                "nothing of this account stands behind that role: `dolphin stake status` shows what does"
            );
        }
        let what = format!("begin to take back {amount} POD from behind {}", show_address(&operator));
        actor.act(&what, Action::ThawStake { operator, role, shares }).await.map(drop)
    }
}

async fn withdraw(act: ActArgs) -> anyhow::Result<()> {
    let actor = act.actor().await?;
    let (client, account) = (&actor.client, actor.account);
    let now = client.head().await.map_err(super::explained)?.time;
    let mut actions = Vec::new();
    for thaw in client.thaws(account).await.map_err(super::explained)? {
        let held =
            client.stake(thaw.operator, thaw.role, account).await.map_err(super::explained)?.held_until;
        if thaw.releases_at.max(held) <= now {
            let what = format!("withdraw {} POD that have thawed", thaw.amount);
            actions.push((what, Action::WithdrawStake { thaw: thaw.id }));
        }
    }
    let stake = client.stake(account, NODE_ROLE, account).await.map_err(super::explained)?;
    if stake.idle > Pod::ZERO {
        let what = format!("withdraw {} POD that stand behind no role", stake.idle);
        actions.push((what, Action::Unstake { to: account, amount: stake.idle }));
    }
    if stake.claimable > Pod::ZERO {
        actions.push((format!("claim {} POD from slashes", stake.claimable), Action::ClaimSlashes));
    }
    if actions.is_empty() {
        anyhow::bail!("nothing can be withdrawn now: `dolphin stake status` says what thaws, and until when");
    }
    for (what, action) in actions {
        actor.act(&what, action).await?;
    }
    Ok(())
}

impl Status {
    async fn run(self) -> anyhow::Result<()> {
        // Anybody's stake can be looked at without an account of one's own.
        let account = match self.operator {
            Some(operator) if !self.chain.account.path()?.exists() => operator,
            _ => self.chain.account.address()?,
        };
        let operator = self.operator.unwrap_or(account);
        let client = self.chain.connect().await?;
        let now = client.head().await.map_err(super::explained)?.time;
        let stake = client.stake(operator, self.role.id(), account).await.map_err(super::explained)?;
        let thaws = client.thaws(account).await.map_err(super::explained)?;
        if self.json {
            let thaws: Vec<_> = thaws
                .iter()
                .map(|thaw| {
                    json!({
                        "id": thaw.id,
                        "operator": show_address(&thaw.operator),
                        "role": thaw.role,
                        "amount": amount_json(thaw.amount),
                        "releases_at": thaw.releases_at,
                    })
                })
                .collect();
            let value = json!({
                "account": show_address(&account),
                "operator": show_address(&operator),
                "active": amount_json(stake.active),
                "thawing": amount_json(stake.thawing),
                "held_until": stake.held_until,
                "own": amount_json(stake.position.amount),
                "idle": amount_json(stake.idle),
                "claimable": amount_json(stake.claimable),
                "thaws": thaws,
            });
            println!("{}", serde_json::to_string_pretty(&value)?);
            return Ok(());
        }
        println!("operator   {}", show_address(&operator));
        println!("active     {} POD, {} of them this account's", stake.active, stake.position.amount);
        println!("thawing    {} POD, still liable", stake.thawing);
        println!("idle       {} POD behind no role", stake.idle);
        println!("claimable  {} POD from slashes", stake.claimable);
        if stake.held_until > now {
            println!("held       withdrawals wait; that ends {}", when(stake.held_until, now));
        }
        for thaw in thaws {
            let state = match thaw.releases_at {
                at if at <= now => "can be withdrawn".to_owned(),
                at => format!("thaws, ends {}", when(at, now)),
            };
            println!(
                "thaw {:<5} {} POD from behind {}: {state}",
                thaw.id,
                thaw.amount,
                show_address(&thaw.operator)
            );
        }
        Ok(())
    }
}
