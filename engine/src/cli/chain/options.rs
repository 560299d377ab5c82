//! Which chain, and whose account.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use ledger::{
    client::{Client, Config, Deployment, Key, Passphrase, read_address, read_key},
    eip712::Address,
};

use crate::cli::file;

/// How long somebody at a terminal waits for a chain that does not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The chain, the contracts on it, and the account that acts.
#[derive(Args, Debug)]
pub(in crate::cli) struct ChainArgs {
    /// Where the chain answers JSON-RPC
    #[arg(
        long,
        env = "DOLPHIN_RPC_URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8545",
        value_name = "URL"
    )]
    pub rpc_url: String,
    /// Addresses of the contracts, as JSON or TOML [default: deployment.json in the configuration directory]
    #[arg(long, env = "DOLPHIN_DEPLOYMENT", value_name = "FILE")]
    pub deployment: Option<PathBuf>,
    /// Blocks until something counts as done [default: 1 for a chain on this machine, else 3]
    #[arg(long, env = "DOLPHIN_CONFIRMATIONS", value_name = "BLOCKS")]
    pub confirmations: Option<u64>,
    #[command(flatten)]
    pub account: AccountArgs,
}

/// The account's encrypted key.
#[derive(Args, Debug)]
pub(in crate::cli) struct AccountArgs {
    /// Keystore of the account that acts, pays or is paid [default: account.json in the configuration directory;
    /// gateways and nodes pay and are paid only if it is given]
    #[arg(long, env = "DOLPHIN_ACCOUNT", value_name = "FILE")]
    pub account: Option<PathBuf>,
    /// File whose first line is the keystore's passphrase [default: asked for]
    #[arg(long, env = "DOLPHIN_PASSPHRASE_FILE", value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

impl AccountArgs {
    /// Where the key is or will be.
    pub(super) fn path(&self) -> anyhow::Result<PathBuf> {
        in_configuration(self.account.as_deref(), "account.json", "--account")
    }

    /// The address, which needs no passphrase.
    pub(super) fn address(&self) -> anyhow::Result<Address> {
        let path = self.existing()?;
        read_address(&path)?
            .with_context(|| format!("{} does not say whose key it is: give the address", path.display()))
    }

    /// The key; asks for the passphrase where no file has it.
    pub(super) fn key(&self) -> anyhow::Result<Key> {
        let path = self.existing()?;
        let passphrase = match &self.passphrase_file {
            Some(file) => Passphrase::from_file(file)?,
            None => Passphrase::prompt(&format!("Passphrase of {}: ", path.display()))?,
        };
        read_key(&path, &passphrase).with_context(|| format!("{}", path.display()))
    }

    fn existing(&self) -> anyhow::Result<PathBuf> {
        let path = self.path()?;
        if !path.exists() {
            bail!("there is no account in {}: `dolphin account new` makes one", path.display());
        }
        Ok(path)
    }
}

impl ChainArgs {
    /// A client that reads.
    pub(in crate::cli) async fn connect(&self) -> anyhow::Result<Client> {
        self.open(None, None).await
    }

    /// A client that acts for the account.
    pub(in crate::cli) async fn connect_with_key(&self) -> anyhow::Result<Client> {
        // Before anything is asked on the network: the passphrase may be wrong.
        self.open(Some(self.account.key()?), None).await
    }

    /// `directory` keeps what is sent until it is confirmed; it is for somebody who stays, and is more patient.
    pub(super) async fn open(&self, key: Option<Key>, directory: Option<PathBuf>) -> anyhow::Result<Client> {
        let deployment = self.deployment()?;
        let confirmations = self.confirmations.unwrap_or(if self.is_local() { 1 } else { 3 });
        let usual = Config::new(&self.rpc_url);
        let patience = if directory.is_some() { usual.patience } else { PATIENCE };
        let config = Config { confirmations, directory, patience, ..usual };
        Client::connect(config, deployment, key).await.map_err(super::explained)
    }

    /// Whether it is known where the contracts are.
    pub(in crate::cli) fn is_configured(&self) -> bool {
        self.deployment_path().is_ok_and(|path| path.exists())
    }

    fn deployment_path(&self) -> anyhow::Result<PathBuf> {
        in_configuration(self.deployment.as_deref(), "deployment.json", "--deployment")
    }

    /// Whether the chain is on this machine: it makes a block for a transaction and no other after it.
    fn is_local(&self) -> bool {
        let host = reqwest::Url::parse(&self.rpc_url).ok().and_then(|url| url.host_str().map(str::to_owned));
        host.is_some_and(|host| {
            let host = host.trim_matches(['[', ']']);
            host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
        })
    }

    /// Where the contracts are.
    pub(in crate::cli) fn deployment(&self) -> anyhow::Result<Deployment> {
        let path = self.deployment_path()?;
        let text = fs::read_to_string(&path).with_context(|| {
            format!(
                "the contracts' addresses: {} (`dolphin chain` writes them for a chain of your own)",
                path.display()
            )
        })?;
        let toml = path.extension().is_some_and(|extension| extension == "toml");
        let read = if toml {
            toml::from_str(&text).map_err(Into::into)
        } else {
            serde_json::from_str(&text).map_err(Into::into)
        };
        read.map_err(|error: anyhow::Error| error.context(format!("{} is no deployment", path.display())))
    }
}

/// The path given, or a file's usual place.
pub(super) fn in_configuration(path: Option<&Path>, name: &str, option: &str) -> anyhow::Result<PathBuf> {
    match path {
        Some(path) => Ok(path.to_owned()),
        None => match file::directory() {
            Some(directory) => Ok(directory.join(name)),
            None => bail!("there is no home directory: give {option} FILE"),
        },
    }
}
