//! `dolphin inspect` and `dolphin pull`: models on disk.

use std::{ops::Range, path::PathBuf};

use bytesize::ByteSize;
use clap::Args;
use engine::{
    inspect::Inspection,
    model::{Model, Quantisation},
    pull::{Event, Pull, Reference, pull},
};

use super::{
    node::parse_layers,
    options::{byte_bar, hashed, open_model},
};

/// Show what a model is made of, and what each layer weighs at each quantisation.
///
/// Only headers are read, so it takes a moment whatever the model's size; with --hash every weight is.
#[derive(Args, Debug)]
pub(super) struct Inspect {
    /// Directory with config.json and safetensors, or a .gguf file [default: the embedded demo model]
    model: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Hash every weight: print the model hash, by which receipts name the model
    #[arg(long)]
    hash: bool,
    /// How the weights that are hashed are held
    #[arg(long, env = "DOLPHIN_QUANT", default_value = "q8", value_name = "q8|q4|f32")]
    quant: Quantisation,
}

impl Inspect {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let model = open_model(self.model.as_deref())?;
        if self.hash {
            return self.print_hash(&model);
        }
        let inspection = Inspection::of(&model)?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&inspection)?);
        } else {
            print!("{inspection}");
        }
        Ok(())
    }

    fn print_hash(&self, model: &Model) -> anyhow::Result<()> {
        let report = hashed(model, self.quant)?.report(self.quant);
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
            return Ok(());
        }
        println!("{}  {} ({})", report.hash, model.name(), report.quantisation);
        println!("\ntokenizer     {}\nrope          {}", report.tokenizer, report.rope);
        for (index, root) in report.layers.iter().enumerate() {
            let part = match index {
                0 => "embedding".to_owned(),
                last if last + 1 == report.layers.len() => "norm, head".to_owned(),
                layer => format!("layer {}", layer - 1),
            };
            println!("{part:<14}{root}");
        }
        Ok(())
    }
}

/// Download a model from a hub.
///
/// An interrupted download continues where it stopped; every file is checked. `HF_ENDPOINT` and
/// `HF_TOKEN` are used as the hub's own tools use them.
#[derive(Args, Debug)]
pub(super) struct PullCommand {
    /// `OWNER/NAME`, or `OWNER/NAME@REVISION` for a branch, tag or commit
    #[arg(value_name = "REPO[@REV]")]
    reference: Reference,
    /// Directory for the files [default: models/ in Dolphin's cache]
    #[arg(long, env = "DOLPHIN_PULL_TO", value_name = "DIR")]
    to: Option<PathBuf>,
    /// Only the tensors of these layers: A..B
    #[arg(long, value_name = "A..B", value_parser = parse_layers)]
    layers: Option<Range<usize>>,
    /// Which GGUF file, if the repository has several
    #[arg(long, value_name = "NAME")]
    file: Option<String>,
    /// Bytes a second [default: as many as come]
    #[arg(long, env = "DOLPHIN_PULL_BANDWIDTH", value_name = "BYTES")]
    bandwidth: Option<ByteSize>,
    /// Print one line of JSON when done
    #[arg(long)]
    json: bool,
}

impl PullCommand {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut request = Pull::new(self.reference, self.to)?;
        request.layers = self.layers;
        request.file = self.file;
        request.bandwidth = self.bandwidth.map(|bandwidth| bandwidth.as_u64());
        let bar = byte_bar("");
        let show = bar.clone();
        let mut report = move |event: Event<'_>| match event {
            Event::Started { file, bytes, present } => {
                show.set_message(file.to_owned());
                show.set_length(bytes);
                show.set_position(present);
                show.reset_eta();
            }
            Event::Advanced { done, .. } => show.set_position(done),
            Event::Waiting { file, delay, error } => {
                show.println(format!("{file}: {error}; trying again in {:.0} s", delay.as_secs_f64().ceil()));
            }
            Event::Finished { .. } => {}
        };
        let pulled = tokio::select! {
            outcome = pull(&request, &mut report) => outcome?,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted; the same command continues where this stopped"),
        };
        bar.finish_and_clear();
        if self.json {
            let line = serde_json::json!({
                "path": pulled.path, "commit": pulled.commit, "files": pulled.files,
            });
            println!("{line}");
        } else {
            println!(
                "{} at {}\n\n  dolphin up --model {}",
                request.reference,
                pulled.commit,
                pulled.path.display()
            );
        }
        Ok(())
    }
}
