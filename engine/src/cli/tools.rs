//! `dolphin inspect` and `dolphin pull`: models on disk.

use std::path::PathBuf;

use clap::Args;
use engine::inspect::Inspection;

use super::options::open_model;

/// Show what a model is made of, and what each layer weighs at each quantisation.
///
/// Only headers are read, so it takes a moment whatever the model's size.
#[derive(Args, Debug)]
pub(super) struct Inspect {
    /// Directory with config.json and safetensors, or a .gguf file [default: the embedded demo model]
    model: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let inspection = Inspection::of(&open_model(self.model.as_deref())?)?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&inspection)?);
        } else {
            print!("{inspection}");
        }
        Ok(())
    }
}
