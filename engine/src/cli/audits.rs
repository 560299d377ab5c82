//! A node's part in the audits of a chain, as its options say it.

use std::{
    path::PathBuf,
    str::FromStr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, bail};
use bytesize::ByteSize;
use clap::Args;
use engine::{
    audit::{
        book::{Book, BookConfig},
        clerk::{Clerk, ClerkConfig, cleared},
        draw::Rate,
    },
    model::{Model, ModelHash, Quantisation},
};
use ledger::{
    client::{Ledger, NODE_ROLE, NodeEntry, Pod, show_address},
    node::binding_digest,
};
use transport::Identity;

use super::{
    chain::{ChainArgs, PriceArgs, state_directory},
    interrupted,
};

/// Between two looks at the chain.
const POLL: Duration = Duration::from_secs(5);

/// Whether and how a node takes part in audits.
#[derive(Args, Debug)]
pub(super) struct AuditsArgs {
    /// Commit on the chain to what is computed and defend it in audits; what proves it is kept in this directory.
    /// Never begin with a copy of it: what was committed to twice can be taken for silence [default: on if --account
    /// has stake as a node, in `audits` of the configuration directory]
    #[arg(long, env = "DOLPHIN_AUDITS", value_name = "DIR|off")]
    audits: Option<Audits>,
    /// Most bytes kept as evidence, on disk; what does not fit is not committed to
    #[arg(long, env = "DOLPHIN_AUDIT_BYTES", default_value = "64GiB", value_name = "BYTES")]
    audit_bytes: ByteSize,
    /// Of a thousand chunks, how many get a planted fault: auditors that confirm without computing are found by it
    #[arg(long, env = "DOLPHIN_PLANTS", default_value_t = 10, value_name = "N",
          value_parser = clap::value_parser!(u32).range(0..=1000))]
    plants: u32,
}

/// Where evidence is kept, if it is.
#[derive(Clone, Debug)]
enum Audits {
    Off,
    Directory(PathBuf),
}

impl FromStr for Audits {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "off" { Self::Off } else { Self::Directory(text.into()) })
    }
}

/// The node that is audited.
pub(super) struct Audited<'a> {
    pub(super) identity: &'a Identity,
    /// Where it is reached.
    pub(super) endpoint: &'a str,
    pub(super) model: &'a Arc<Model>,
    pub(super) quantisation: Quantisation,
    /// The model's hash, if it is known without hashing.
    pub(super) known: Option<ModelHash>,
}

impl AuditsArgs {
    /// The chain, if the node is paid or may be audited: one client for both, since an account has one.
    pub(super) async fn ledger(
        &self,
        chain: &ChainArgs,
        price: &PriceArgs,
    ) -> anyhow::Result<Option<Arc<dyn Ledger>>> {
        let audited = match &self.audits {
            Some(Audits::Off) => false,
            Some(Audits::Directory(_)) => true,
            None => chain.account.account.is_some() && chain.is_configured(),
        };
        match audited || price.asked().is_some() {
            true => Ok(Some(chain.of_account().await?)),
            false => Ok(None),
        }
    }

    /// What the node's clerk works with; nothing if it takes no part in audits. A node that a self-test found wrong
    /// does not come back from here before it is right.
    pub(super) async fn clerk(
        &self,
        ledger: Option<&Arc<dyn Ledger>>,
        audited: &Audited<'_>,
    ) -> anyhow::Result<Option<ClerkConfig>> {
        let Some((ledger, directory)) = self.place(ledger).await? else { return Ok(None) };
        let account = ledger.account().context("the account has no key")?;
        let hash = Arc::new(OnceLock::new());
        let book = Book::open(BookConfig {
            directory: directory.clone(),
            limit_bytes: self.audit_bytes.as_u64(),
            account,
            model: Arc::default(),
            quantisation: audited.quantisation,
            layers: audited.model.config().layers,
            plants: Rate::per_mille(self.plants),
        });
        let book = book.with_context(|| format!("--audits {}", directory.display()))?;
        let node = *audited.identity.id().as_bytes();
        let binding = binding_digest(&ledger.deployment().nodes_domain(), &node, &account);
        let config = ClerkConfig {
            ledger: ledger.clone(),
            book: Arc::new(book),
            model: audited.model.clone(),
            hash: hash.clone(),
            entry: Some(NodeEntry {
                node,
                roles: 1 << NODE_ROLE,
                metadata: [0; 32],
                endpoint: audited.endpoint.to_owned(),
                proof: audited.identity.sign(&binding),
            }),
            threads: std::thread::available_parallelism().map_or(1, usize::from).div_ceil(2),
            poll: POLL,
        };
        tracing::info!(account = show_address(&account), book = %directory.display(), "audits are on");
        let hashing = hashing(audited, hash);
        if config.book.suspect().is_some() {
            hashing.await.context("hashing the model")??;
            self_tested(&config, audited.identity).await?;
        }
        Ok(Some(config))
    }

    async fn place(
        &self,
        ledger: Option<&Arc<dyn Ledger>>,
    ) -> anyhow::Result<Option<(Arc<dyn Ledger>, PathBuf)>> {
        let Some(ledger) = ledger else { return Ok(None) };
        let account = ledger.account().context("the account has no key")?;
        match &self.audits {
            Some(Audits::Off) => Ok(None),
            Some(Audits::Directory(directory)) => Ok(Some((ledger.clone(), directory.clone()))),
            None => {
                let directory = state_directory("audits", &account)?;
                // What was committed to has to be defended, whatever the stake is now.
                let begun = directory.exists();
                let has_audits = ledger.deployment().audits != [0; 20];
                if !has_audits {
                    return Ok(None);
                }
                let stake = ledger.stake(account, NODE_ROLE, account).await.context("the account's stake")?;
                let on = begun || stake.active > Pod::ZERO;
                Ok(on.then(|| (ledger.clone(), directory)))
            }
        }
    }
}

/// Makes the hash known: at once, or once the model is hashed beside serving.
fn hashing(
    audited: &Audited<'_>,
    hash: Arc<OnceLock<Arc<ModelHash>>>,
) -> tokio::task::JoinHandle<anyhow::Result<()>> {
    let (model, quantisation, known) = (audited.model.clone(), audited.quantisation, audited.known.clone());
    tokio::task::spawn_blocking(move || {
        let found = match known {
            Some(known) => Ok(known),
            None => model.hash(quantisation, &|_| ()),
        };
        let found = found.inspect_err(|error| {
            tracing::warn!(%error, "nothing is committed to: the model cannot be hashed");
        })?;
        hash.get_or_init(|| Arc::new(found));
        Ok(())
    })
}

/// Waits, without serving, where a self-test fails: leaves that are drawn are opened all the same.
async fn self_tested(config: &ClerkConfig, identity: &Identity) -> anyhow::Result<()> {
    let Err(error) = cleared(config).await else { return Ok(()) };
    eprintln!(
        "{error}\nNothing is served. Leaves that are drawn are opened until Ctrl-C; start again once it is repaired."
    );
    let (clerk, _events) = Clerk::start(config.clone(), identity.id());
    interrupted().await;
    drop(clerk);
    bail!(error)
}
