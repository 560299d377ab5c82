//! The command line: which suite, and where its report goes.

use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::{
    checkpoint::MakeModelArgs,
    report::Report,
    suites::{
        compare::CompareArgs, decode::DecodeArgs, honest::HonestArgs, hops::HopsArgs, kernels::KernelsArgs,
        plan::PlanArgs, serve::ServeArgs, soak::SoakArgs, speculation::SpeculationArgs,
        transport::TransportArgs, verify::VerifyArgs,
    },
};

/// Measure Dolphin.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
pub struct Cli {
    /// What to measure
    #[command(subcommand)]
    pub suite: Suite,
    /// Write the report as JSON; `-` is standard output, in place of the table
    #[arg(long, global = true, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Append the report as a Markdown section
    #[arg(long, global = true, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
}

/// What can be measured, and what it needs.
#[derive(Debug, Subcommand)]
pub enum Suite {
    /// Streamed requests of a closed loop of clients over HTTP
    Serve(ServeArgs),
    /// Prefill and decoding of one stage that holds the whole model, without HTTP
    Decode(DecodeArgs),
    /// Prefill and decoding beside llama.cpp's, on the same GGUF files
    CompareLlamacpp(CompareArgs),
    /// Honest nodes that compute in different ways and come and go, every chunk of theirs audited
    Honest(HonestArgs),
    /// Time of a token over several stages on loopback, beside one
    Hops(HopsArgs),
    /// What the CUDA kernels do in a decoder layer, counted by running them without a card
    Kernels(KernelsArgs),
    /// Plans for the published clusters of Helix, beside its own, and the planner's cost by size
    Plan(PlanArgs),
    /// Many short requests, to find what is lost or left open
    Soak(SoakArgs),
    /// Replies with guesses ahead, beside plain ones, over a simulated wide-area network
    Speculation(SpeculationArgs),
    /// Round trips and bulk rate of a QUIC link on loopback, beside TCP
    Transport(TransportArgs),
    /// What receipts cost where they are made, and what it takes to check one
    Verify(VerifyArgs),
    /// Write a random-weight checkpoint in the shape of a known model
    MakeModel(MakeModelArgs),
}

impl Cli {
    /// Runs the suite and writes its report.
    ///
    /// # Errors
    /// Whatever keeps the suite from running or the report from being written. Failed requests are
    /// part of a report, not an error.
    pub fn run(self) -> anyhow::Result<()> {
        let report = match &self.suite {
            Suite::Serve(args) if !args.rtt.is_empty() => runtime()?.block_on(args.run_simulated())?,
            Suite::Serve(args) => runtime()?.block_on(args.run())?.report(args),
            Suite::Decode(args) => args.run()?,
            Suite::CompareLlamacpp(args) => runtime()?.block_on(unless_interrupted(args.clone().run()))?,
            Suite::Honest(args) => {
                let honest = runtime()?.block_on(args.run())?;
                self.write(&honest.report(args))?;
                return honest.verdict(args);
            }
            Suite::Hops(args) => runtime()?.block_on(args.run())?,
            Suite::Kernels(args) => args.run()?,
            Suite::Plan(args) => args.run()?,
            Suite::Soak(args) => {
                let soak = runtime()?.block_on(args.run())?;
                self.write(&soak.report(args))?;
                return soak.verdict(args);
            }
            Suite::Speculation(args) => runtime()?.block_on(args.run())?,
            Suite::Transport(args) => runtime()?.block_on(args.run())?,
            Suite::Verify(args) => runtime()?.block_on(args.run())?,
            Suite::MakeModel(args) => return args.run(),
        };
        self.write(&report)
    }

    fn write(&self, report: &Report) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(report)?;
        match self.json.as_deref() {
            Some(path) if path == Path::new("-") => println!("{json}"),
            other => {
                print!("{}", report.table());
                if let Some(path) = other {
                    let written = std::fs::write(path, json + "\n");
                    written.with_context(|| format!("{} cannot be written", path.display()))?;
                }
            }
        }
        if let Some(path) = &self.markdown {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let written = file.and_then(|mut file| file.write_all(report.markdown().as_bytes()));
            written.with_context(|| format!("{} cannot be written", path.display()))?;
        }
        Ok(())
    }
}

/// Runs a suite that has child processes, which end with it when this one is told to.
async fn unless_interrupted(
    suite: impl Future<Output = anyhow::Result<Report>> + Send + 'static,
) -> anyhow::Result<Report> {
    let suite = tokio::spawn(suite);
    let stop = suite.abort_handle();
    tokio::select! {
        report = suite => report.context("the suite died")?,
        () = interrupted() => {
            stop.abort();
            anyhow::bail!("interrupted")
        }
    }
}

/// Waits for Ctrl-C or a request to end; for ever where the system cannot tell.
async fn interrupted() {
    #[cfg(unix)]
    let ended = async {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let ended = std::future::pending::<()>();
    tokio::select! {
        Ok(()) = tokio::signal::ctrl_c() => {}
        () = ended => {}
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
