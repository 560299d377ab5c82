//! `dolphin chain`: a chain of one's own.

use std::{
    fs, iter,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use engine::{
    model::{ModelHash, Quantisation},
    payment::embedded::Embedded,
};
use ledger::{
    client::{Pod, parse_address, show_address},
    eip712::Address,
};
use serde_json::json;

use super::options::{AccountArgs, in_configuration};
use crate::cli::{
    interrupted,
    options::{hashed, open_model},
};

/// Run a chain of your own with the contracts on it, to try payment out.
///
/// It answers JSON-RPC on loopback as any chain does, keeps what it was told when it is killed, and tells the other
/// commands where the contracts are. `dolphin up` has one of its own.
#[derive(Args, Debug)]
pub(in crate::cli) struct ChainCommand {
    /// Where it answers; loopback only
    #[arg(long, env = "DOLPHIN_CHAIN_LISTEN", default_value = "127.0.0.1:8545", value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Where it is kept [default: chain/ in the configuration directory]
    #[arg(long, env = "DOLPHIN_CHAIN_DIR", value_name = "DIR")]
    chain_dir: Option<PathBuf>,
    /// Account to see to: gas, and POD; may be repeated [default: the one in the configuration directory]
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS", value_parser = parse_address)]
    fund: Vec<Address>,
    /// POD that each of them holds at least when the chain starts
    #[arg(long, default_value = "1000", value_name = "POD")]
    with: Pod,
    /// Model to enter in the registry beside the demo model, so that nodes commit to what they compute of it: a
    /// directory with config.json and safetensors, or a .gguf file; may be repeated
    #[arg(long, value_name = "DIR|FILE")]
    model: Vec<PathBuf>,
    /// How nodes hold the models' weights
    #[arg(long, env = "DOLPHIN_QUANT", default_value = "q8", value_name = "q8|q4|f32")]
    quant: Quantisation,
    #[command(flatten)]
    account: AccountArgs,
    /// Print one line of JSON once it answers
    #[arg(long)]
    json: bool,
}

impl ChainCommand {
    pub(in crate::cli) async fn run(mut self) -> anyhow::Result<()> {
        if !self.listen.ip().is_loopback() {
            bail!(
                "--listen {}: the chain is for this machine alone and answers on loopback only",
                self.listen
            );
        }
        if self.fund.is_empty() && self.account.path()?.exists() {
            self.fund.push(self.account.address()?);
        }
        let directory = in_configuration(self.chain_dir.as_deref(), "chain", "--chain-dir")?;
        let models = self.models()?;
        let chain = Embedded::start(Some(&directory), self.listen).await?;
        for account in &self.fund {
            chain.fund(*account, self.with).await?;
        }
        for (hash, name) in &models {
            let entered = chain.register(&hash.contents, name).await;
            entered.with_context(|| format!("{name} cannot be entered in {}", directory.display()))?;
        }
        let known = self.tell(&directory)?;
        let stop = interrupted();
        if self.json {
            let funded: Vec<String> = self.fund.iter().map(show_address).collect();
            let line = json!({
                "rpc_url": chain.url(), "chain_id": chain.deployment().chain_id, "deployment": known, "funded": funded,
                "models": models.iter().map(|(hash, _)| hex::encode(hash.hash)).collect::<Vec<_>>(),
            });
            println!("{line}");
        } else {
            println!("chain      {} (id {})", chain.url(), chain.deployment().chain_id);
            println!("contracts  {}", known.display());
            for account in &self.fund {
                println!("account    {} holds {} POD or more", show_address(account), self.with);
            }
            for (hash, name) in &models {
                println!("model      {name} in {}, {}", self.quant, hex::encode(hash.hash));
            }
            if self.fund.is_empty() {
                println!(
                    "account    none yet: `dolphin account new` makes one, and the next start sees to it"
                );
            }
            println!("\nCtrl-C stops; what it was told is kept in {}", directory.display());
        }
        stop.await;
        Ok(())
    }

    /// The models that are to be entered, with their names.
    fn models(&self) -> anyhow::Result<Vec<(ModelHash, String)>> {
        let paths = iter::once(None).chain(self.model.iter().map(|path| Some(path.as_path())));
        let model = |path| {
            let model = open_model(path)?;
            Ok((hashed(&model, self.quant)?, model.name().to_owned()))
        };
        paths.map(model).collect()
    }

    /// Says where the contracts are, where the other commands look; an older answer is not overwritten.
    fn tell(&self, directory: &Path) -> anyhow::Result<PathBuf> {
        let own = directory.join("deployment.json");
        let usual = in_configuration(None, "deployment.json", "--chain-dir")?;
        let text = fs::read(&own).with_context(|| format!("{}", own.display()))?;
        match fs::read(&usual) {
            Ok(known) if known == text => Ok(usual),
            Ok(_) => {
                eprintln!(
                    "{} is of another chain and stays as it is: give --deployment {} to use this one",
                    usual.display(),
                    own.display()
                );
                Ok(own)
            }
            Err(_) => {
                let place = usual.parent().unwrap_or(Path::new("."));
                fs::create_dir_all(place).with_context(|| format!("{}", place.display()))?;
                fs::write(&usual, text).with_context(|| format!("{}", usual.display()))?;
                Ok(usual)
            }
        }
    }
}
