//! `dolphin verify`: whether a finished reply is what the model says.

use std::{fs::File, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::Args;
use engine::{
    audit::{
        plan::Digest,
        receipt::Receipt,
        verify::{Finding, Verdict, verify},
    },
    device::{Device, DeviceChoice},
    front::prompts_of,
    model::Model,
    on_device,
};
use indicatif::{ProgressBar, ProgressStyle};

use super::options::{CpuArgs, byte_bar, follow, open_model};

/// What the process ends with when a receipt does not hold.
pub(super) const UNSOUND: u8 = 3;

/// Check a finished reply from its receipt and the model's files alone.
///
/// The gateway names a reply's receipt in the header `x-dolphin-receipt` and serves it at
/// `/v1/receipts/ID`. Signatures and hashes are checked, the reply is computed again as one prefill, and every
/// stage's part of it is compared. Ends with 0 if all is right, with 3 if something is not, and with 1 if it
/// could not be checked.
#[derive(Args, Debug)]
pub(super) struct Verify {
    /// The receipt; `-` reads it from standard input
    receipt: PathBuf,
    /// Directory with config.json and safetensors, or a .gguf file [default: the embedded demo model]
    #[arg(long, env = "DOLPHIN_MODEL", value_name = "DIR|FILE")]
    model: Option<PathBuf>,
    /// Body of the request, as it was sent: its prompt must be the receipt's
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// What to compute on; every device gives the same bytes
    #[arg(long, env = "DOLPHIN_DEVICE", default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    #[command(flatten)]
    cpu: CpuArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let name = self.receipt.display();
        let receipt = match self.receipt.as_os_str() == "-" {
            true => Receipt::read(std::io::stdin().lock()),
            false => Receipt::read(File::open(&self.receipt).with_context(|| format!("{name}"))?),
        };
        let receipt = receipt.with_context(|| format!("{name} cannot be used"))?;
        let model = open_model(self.model.as_deref())?;
        if let Some(path) = &self.request {
            let body = std::fs::read(path).with_context(|| format!("{}", path.display()))?;
            let prompts = prompts_of(&model, &body).with_context(|| format!("{}", path.display()))?;
            if !prompts.contains(&receipt.prompt) {
                bail!("the receipt's prompt is not that of {}", path.display());
            }
        }
        let hash = self.hash(&receipt, &model)?;
        let bar = ProgressBar::new(0).with_message("replaying");
        let style = ProgressStyle::with_template("{msg} {wide_bar} {percent}% {eta}");
        let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let device = Device::choose(self.device, self.cpu.cpu()?)?;
        let progress = follow(&bar);
        let verdict = on_device!(&device, backend => verify(&receipt, &model, &hash, backend, &progress))?;
        bar.finish_and_clear();
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(&verdict)?),
            false => print(&receipt, &verdict),
        }
        Ok(if verdict.sound { ExitCode::SUCCESS } else { ExitCode::from(UNSOUND) })
    }

    fn hash(&self, receipt: &Receipt, model: &Model) -> anyhow::Result<Digest> {
        let bar = byte_bar("hashing");
        let hash = model.hash(receipt.plan.terms.quantisation, &follow(&bar))?.hash;
        bar.finish_and_clear();
        Ok(Digest(hash))
    }
}

fn print(receipt: &Receipt, verdict: &Verdict) {
    println!("model     {} {}", receipt.model_name, verdict.model);
    println!("session   {}, {} tokens after {}", verdict.session, verdict.tokens, receipt.prompt.len());
    for problem in &verdict.problems {
        println!("gateway   {problem:?} does not hold");
    }
    for stage in &verdict.stages {
        let node = &stage.node.to_string()[..8];
        println!("{node}  layers {}..{}: {}", stage.from_layer, stage.to_layer, words(&stage.finding));
    }
    let sound = "every signature, row and token is right";
    println!("\n{}", if verdict.sound { sound } else { "the receipt does not hold" });
}

fn words(finding: &Finding) -> String {
    match finding {
        Finding::Proved => "proved".into(),
        Finding::Unsigned { from } => format!("not signed from position {from} on"),
        Finding::Forged { from } => format!("a signature that is not its own, from position {from} on"),
        Finding::Input { from, to } => format!("signed for other input than it was given, in {from}..{to}"),
        Finding::Output { from, to } => format!("WRONG: other rows than the model's, in {from}..{to}"),
        Finding::Token { position, told, drawn } => {
            format!("WRONG: told token {told} at position {position}, where {drawn} is drawn")
        }
        Finding::Misled { from } => {
            format!(
                "proved up to position {from}, where the stage before it sent wrong rows or had not signed"
            )
        }
    }
}
