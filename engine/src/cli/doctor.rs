//! `dolphin doctor`: what this machine can compute on.

use clap::Args;
use engine::doctor::examine;

use super::options::CpuArgs;

/// Look for cards, and test and measure what this machine computes on.
///
/// Every device computes the embedded model and has to agree with the CPU to the bit.
#[derive(Args, Debug)]
pub(super) struct Doctor {
    #[command(flatten)]
    cpu: CpuArgs,
    /// Only look and test, measure nothing
    #[arg(long)]
    quick: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let report = examine(&self.cpu.cpu()?, !self.quick)?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{report}");
        }
        Ok(())
    }
}
