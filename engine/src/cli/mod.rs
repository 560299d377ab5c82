//! Commands and their options. Every option can stand on the command line, in the environment
//! (`DOLPHIN_…`) or in one TOML file, in that order of precedence.

mod audit;
mod auditor;
mod audits;
mod chain;
mod doctor;
mod earn;
mod file;
mod money;
mod node;
mod options;
mod plan;
mod run;
mod serve;
mod show;
mod tools;
mod up;
mod verify;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Serve a language model over many machines, behind an OpenAI-style endpoint.
///
/// Start with `dolphin up`: it serves a small embedded model over three nodes on this machine and prints
/// what to paste. Then give it a model of yours, or put the parts on machines of their own with
/// `dolphin serve` and `dolphin node`.
#[derive(Debug, Parser)]
#[command(name = "dolphin", version, max_term_width = 100)]
struct Cli {
    /// TOML file with options by their long names; `[up]`, `[node]`, … hold those of one command
    #[arg(long, global = true, env = "DOLPHIN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// What to log to stderr: error, warn, info, debug, or a filter such as `engine=debug`
    #[arg(long, global = true, env = "DOLPHIN_LOG", default_value = "warn", value_name = "FILTER")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model from this machine: a gateway and its nodes in one process
    Up(up::Up),
    /// Run a gateway: the HTTP endpoint, and the swarm that nodes join
    Serve(serve::Serve),
    /// Lend this machine: hold some layers of a model for a gateway
    Node(node::NodeCommand),
    /// Show what a node has earned
    Earn(earn::Earn),
    /// Chat in the terminal, with a local model or a running endpoint
    Run(run::Run),
    /// Show what a model is made of, and what each layer weighs at each quantisation
    Inspect(tools::Inspect),
    /// Say which machine should hold which layers, and what that would reach
    Plan(plan::PlanCommand),
    /// Measure how fast this machine is at a layer of a model
    Profile(plan::ProfileCommand),
    /// Download a model from a hub
    Pull(tools::PullCommand),
    /// Check a finished reply from its receipt and the model's files
    Verify(verify::Verify),
    /// Replay some of what nodes have computed: replies of an endpoint, or what a chain draws
    Audit(audit::AuditCommand),
    /// Look for cards, and test and measure what this machine computes on
    Doctor(doctor::Doctor),
    /// Run a chain of your own with the contracts on it, to try payment out
    Chain(chain::serve::ChainCommand),
    /// Make an account on the chain, fill it, look into it, empty it
    Account(chain::account::AccountCommand),
    /// Put POD behind a node or an auditor, and take it back
    Stake(chain::stake::StakeCommand),
    /// Look at the dispute over an audit, or play it by hand
    Dispute(chain::dispute::DisputeCommand),
    /// Propose, vote, and carry out what was decided
    Gov(chain::gov::GovCommand),
}

/// Parses the command line and does what it says.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let command = file::apply(Cli::command(), std::env::args_os())?;
    let cli = Cli::from_arg_matches(&command.get_matches())?;
    let filter = EnvFilter::try_new(&cli.log).with_context(|| format!("--log {}", cli.log))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match cli.command {
            Command::Up(command) => command.run().await,
            Command::Serve(command) => command.run().await,
            Command::Node(command) => command.run().await,
            Command::Earn(command) => command.run().await,
            Command::Run(command) => command.run().await,
            Command::Inspect(command) => command.run(),
            Command::Plan(command) => command.run().await,
            Command::Profile(command) => command.run(),
            Command::Pull(command) => command.run().await,
            Command::Doctor(command) => command.run(),
            Command::Verify(command) => return command.run(),
            Command::Audit(command) => return command.run().await,
            Command::Dispute(command) => return command.run().await,
            Command::Chain(command) => command.run().await,
            Command::Account(command) => command.run().await,
            Command::Stake(command) => command.run().await,
            Command::Gov(command) => command.run().await,
        }?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Resolves at the first Ctrl-C or SIGTERM after the call; the next one ends the process at once.
fn interrupted() -> impl Future<Output = ()> {
    let mut signals = Signals::listen();
    async move {
        signals.next().await;
        eprintln!("stopping; once more to stop at once");
        tokio::spawn(async move {
            signals.next().await;
            std::process::exit(130);
        });
    }
}

/// Ctrl-C and SIGTERM.
struct Signals {
    #[cfg(unix)]
    streams: [Option<tokio::signal::unix::Signal>; 2],
}

impl Signals {
    /// From now on, where the system allows it.
    fn listen() -> Self {
        #[cfg(unix)]
        use tokio::signal::unix::{SignalKind, signal};
        Self {
            #[cfg(unix)]
            streams: [SignalKind::interrupt(), SignalKind::terminate()].map(|kind| signal(kind).ok()),
        }
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        if let [Some(interrupt), Some(terminate)] = &mut self.streams {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
        let _ = tokio::signal::ctrl_c().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
