//! `dolphin gov`: votes.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use engine::model::Quantisation;
use ledger::{
    client::{Action, Call, Ledger, Motion, Proposal, ProposalState, Support, parse_address, show_address},
    eip712::Address,
};
use serde_json::{Value, json};

use super::{ActArgs, Actor, ChainArgs, account::parse_hash, amount_json, when};
use crate::cli::options::{hashed, open_model};

/// Propose, vote, and carry out what was decided.
///
/// Votes are POD that is held (once `dolphin gov delegate` says who votes with it) and POD that is staked.
#[derive(Args, Debug)]
pub(in crate::cli) struct GovCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what is and was put to the vote
    List(List),
    /// Say who votes with the POD that this account holds
    Delegate(Delegate),
    /// Put something to the vote
    Propose(Propose),
    /// Vote
    Vote(Vote),
    /// Carry out what passed: hand it to the timelock, and do it once its delay is over
    Execute(Execute),
}

#[derive(Args, Debug)]
struct List {
    #[command(flatten)]
    chain: ChainArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Delegate {
    /// Who votes [default: the account itself]
    #[arg(value_name = "ADDRESS", value_parser = parse_address)]
    to: Option<Address>,
    #[command(flatten)]
    act: ActArgs,
}

#[derive(Args, Debug)]
struct Propose {
    /// Why, for those who vote
    #[arg(long, value_name = "TEXT")]
    description: String,
    /// Send POD of the treasury
    #[arg(long, num_args = 2, value_names = ["ADDRESS", "POD"], action = clap::ArgAction::Append)]
    transfer: Vec<String>,
    /// Give somebody a role in the access manager
    #[arg(long, num_args = 2, value_names = ["ROLE", "ADDRESS"], action = clap::ArgAction::Append)]
    grant: Vec<String>,
    /// Take a role from somebody
    #[arg(long, num_args = 2, value_names = ["ROLE", "ADDRESS"], action = clap::ArgAction::Append)]
    revoke: Vec<String>,
    /// Enter a model: a directory with config.json and safetensors, or a .gguf file
    #[arg(long, value_name = "DIR|FILE")]
    register_model: Vec<PathBuf>,
    /// How the weights of the models that are entered are held
    #[arg(long, env = "DOLPHIN_QUANT", default_value = "q8", value_name = "q8|q4|f32")]
    quant: Quantisation,
    /// Ask for no new plans with a model
    #[arg(long, value_name = "HASH", value_parser = parse_hash)]
    retire_model: Vec<[u8; 32]>,
    /// Call a contract with ABI-encoded data
    #[arg(long, num_args = 2, value_names = ["ADDRESS", "DATA"], action = clap::ArgAction::Append)]
    call: Vec<String>,
    #[command(flatten)]
    act: ActArgs,
}

#[derive(Args, Debug)]
struct Vote {
    /// The proposal's id, or how it begins
    #[arg(value_name = "PROPOSAL")]
    proposal: String,
    /// What this account says
    #[arg(value_name = "VOTE")]
    vote: VoteChoice,
    /// Why
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    act: ActArgs,
}

/// What a vote says.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum VoteChoice {
    For,
    Against,
    Abstain,
}

#[derive(Args, Debug)]
struct Execute {
    /// The proposal's id, or how it begins
    #[arg(value_name = "PROPOSAL")]
    proposal: String,
    #[command(flatten)]
    act: ActArgs,
}

impl GovCommand {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::List(command) => command.run().await,
            Command::Delegate(Delegate { to, act }) => {
                let actor = act.actor().await?;
                let to = to.unwrap_or(actor.account);
                let what = format!("let {} vote with the POD held", show_address(&to));
                actor.act(&what, Action::DelegateVotes { to }).await.map(drop)
            }
            Command::Propose(command) => command.run().await,
            Command::Vote(command) => command.run().await,
            Command::Execute(command) => command.run().await,
        }
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let client = self.chain.connect().await?;
        let now = client.head().await.map_err(super::explained)?.time;
        let proposals = client.proposals().await.map_err(super::explained)?;
        if self.json {
            let rows: Vec<Value> = proposals.iter().map(proposal_json).collect();
            println!("{}", serde_json::to_string_pretty(&rows)?);
            return Ok(());
        }
        if proposals.is_empty() {
            println!("nothing was ever put to the vote");
        }
        for proposal in proposals.iter().rev() {
            println!("{}  {}", hex::encode(proposal.id), state(proposal, now));
            println!("  {}", proposal.description.lines().next().unwrap_or_default());
            println!(
                "  for {}, against {}, abstained {} POD; {} call{} by {}",
                proposal.in_favour,
                proposal.against,
                proposal.abstained,
                proposal.calls.len(),
                if proposal.calls.len() == 1 { "" } else { "s" },
                show_address(&proposal.proposer),
            );
        }
        Ok(())
    }
}

/// Where a proposal is, and what comes next.
fn state(proposal: &Proposal, now: u64) -> String {
    match proposal.state {
        ProposalState::Pending => format!("vote begins {}", when(proposal.vote_start, now)),
        ProposalState::Active => format!("vote ends {}", when(proposal.vote_end, now)),
        ProposalState::Cancelled => "cancelled".to_owned(),
        ProposalState::Defeated => "defeated".to_owned(),
        ProposalState::Succeeded => "passed: `dolphin gov execute` hands it to the timelock".to_owned(),
        ProposalState::Queued => match proposal.executable_at {
            Some(at) if at > now => format!("passed: can be executed {}", when(at, now)),
            _ => "passed: can be executed".to_owned(),
        },
        ProposalState::Expired => "expired".to_owned(),
        ProposalState::Executed => "executed".to_owned(),
    }
}

fn proposal_json(proposal: &Proposal) -> Value {
    json!({
        "id": hex::encode(proposal.id),
        "state": format!("{:?}", proposal.state).to_lowercase(),
        "proposer": show_address(&proposal.proposer),
        "description": proposal.description,
        "calls": proposal.calls.iter().map(|call| json!({
            "target": show_address(&call.target),
            "value_wei": call.value_wei.to_string(),
            "data": format!("0x{}", hex::encode(&call.data)),
        })).collect::<Vec<_>>(),
        "vote_start": proposal.vote_start,
        "vote_end": proposal.vote_end,
        "executable_at": proposal.executable_at,
        "for": amount_json(proposal.in_favour),
        "against": amount_json(proposal.against),
        "abstained": amount_json(proposal.abstained),
    })
}

impl Propose {
    async fn run(self) -> anyhow::Result<()> {
        let motions = self.motions()?;
        let count = motions.len();
        let what =
            format!("propose {count} motion{}: {}", if count == 1 { "" } else { "s" }, self.description);
        let actor = self.act.actor().await?;
        let action = Action::Propose { motions, description: self.description };
        let receipt = actor.act(&what, action).await?;
        let made = receipt.events.iter().find_map(|event| match event {
            ledger::client::Event::Proposed { proposal, .. } => Some(proposal),
            _ => None,
        });
        if let (Some(id), false) = (made, actor.json) {
            println!("proposal {}", hex::encode(id));
        }
        Ok(())
    }

    fn motions(&self) -> anyhow::Result<Vec<Motion>> {
        let mut motions = Vec::new();
        for (to, amount) in pairs(&self.transfer) {
            motions
                .push(Motion::Transfer { to: address(to)?, amount: amount.parse().context("--transfer")? });
        }
        for (role, account) in pairs(&self.grant) {
            let role = role.parse().with_context(|| format!("role {role}"))?;
            motions.push(Motion::GrantRole { role, account: address(account)? });
        }
        for (role, account) in pairs(&self.revoke) {
            let role = role.parse().with_context(|| format!("role {role}"))?;
            motions.push(Motion::RevokeRole { role, account: address(account)? });
        }
        for path in &self.register_model {
            let model = open_model(Some(path))?;
            let contents = hashed(&model, self.quant)?.contents;
            motions.push(Motion::RegisterModel { model: contents, name: model.name().to_owned() });
        }
        motions.extend(self.retire_model.iter().map(|&model| Motion::RetireModel { model }));
        for (target, data) in pairs(&self.call) {
            let data = hex::decode(data.strip_prefix("0x").unwrap_or(data)).context("--call")?;
            motions.push(Motion::Call(Call { target: address(target)?, value_wei: 0, data }));
        }
        if motions.is_empty() {
            bail!(
                "nothing to decide: give --transfer, --grant, --revoke, --register-model, --retire-model or --call"
            );
        }
        Ok(motions)
    }
}

/// Values of an option that takes two, as often as it was given.
fn pairs(values: &[String]) -> impl Iterator<Item = (&str, &str)> {
    values.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str()))
}

fn address(text: &str) -> anyhow::Result<Address> {
    parse_address(text).with_context(|| format!("`{text}`"))
}

impl Vote {
    async fn run(self) -> anyhow::Result<()> {
        let actor = self.act.actor().await?;
        let proposal = find(&actor, &self.proposal).await?;
        let (support, word) = match self.vote {
            VoteChoice::For => (Support::For, "for"),
            VoteChoice::Against => (Support::Against, "against"),
            VoteChoice::Abstain => (Support::Abstain, "as abstaining"),
        };
        let title = proposal.description.lines().next().unwrap_or_default();
        let what = format!("vote {word}: {title}");
        actor.act(&what, Action::Vote { proposal: proposal.id, support, reason: self.reason }).await.map(drop)
    }
}

impl Execute {
    async fn run(self) -> anyhow::Result<()> {
        let actor = self.act.actor().await?;
        let proposal = find(&actor, &self.proposal).await?;
        let now = actor.client.head().await.map_err(super::explained)?.time;
        let title = proposal.description.lines().next().unwrap_or_default().to_owned();
        let id = proposal.id;
        match proposal.state {
            ProposalState::Succeeded => {
                actor.act(&format!("hand to the timelock: {title}"), Action::Queue { proposal: id }).await?;
                let at = find(&actor, &self.proposal).await?.executable_at;
                if let (Some(at), false) = (at, actor.json) {
                    println!("it can be executed {}", when(at, now));
                }
                Ok(())
            }
            ProposalState::Queued if proposal.executable_at.is_none_or(|at| at <= now) => {
                actor.act(&format!("carry out: {title}"), Action::Execute { proposal: id }).await.map(drop)
            }
            _ => bail!("the proposal cannot be carried out now: {}", state(&proposal, now)),
        }
    }
}

/// The proposal whose id begins so.
async fn find(actor: &Actor, id: &str) -> anyhow::Result<Proposal> {
    let prefix = id.strip_prefix("0x").unwrap_or(id).to_lowercase();
    let mut proposals = actor.client.proposals().await.map_err(super::explained)?;
    proposals.retain(|proposal| hex::encode(proposal.id).starts_with(&prefix));
    match proposals.len() {
        0 => bail!("no proposal begins with {id}: `dolphin gov list` shows them"),
        1 => Ok(proposals.remove(0)),
        count => bail!("{count} proposals begin with {id}: give more of it"),
    }
}
