//! What a gateway pays and a node is paid.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use clap::Args;
use engine::payment::{
    chain::OnChain,
    purse::{Payer, PayerRules},
    settle::SettleRules,
    store::Store,
    till::Payee,
};
use ledger::client::{Key, Ledger, Pod};
use transport::Identity;

use super::ChainArgs;
use crate::cli::file;

/// What a gateway may spend.
#[derive(Args, Debug)]
pub(in crate::cli) struct SpendArgs {
    /// Most POD that the gateway ever signs away, over all its starts [default: what its account has in escrow]
    #[arg(long, env = "DOLPHIN_SPEND_LIMIT", value_name = "POD")]
    pub spend_limit: Option<Pod>,
    /// Take no node that asks for more, in POD for a million tokens
    #[arg(long, env = "DOLPHIN_MAX_PRICE", value_name = "POD")]
    pub max_price: Option<Pod>,
}

/// What a node asks for its work.
#[derive(Args, Debug)]
pub(in crate::cli) struct PriceArgs {
    /// What the node asks for a million tokens that pass it, in POD [default: nothing]
    #[arg(long, env = "DOLPHIN_PRICE", value_name = "POD")]
    pub price: Option<Pod>,
    /// Tokens that it serves before it is paid for them; what it can lose to a gateway
    #[arg(long, env = "DOLPHIN_CREDIT", default_value_t = 131_072, value_name = "TOKENS")]
    pub credit: u64,
}

impl PriceArgs {
    /// What is asked for, if anything is.
    pub(in crate::cli) fn asked(&self) -> Option<Pod> {
        self.price.filter(|price| *price > Pod::ZERO)
    }
}

/// Wei for one token of a price for a million.
pub(in crate::cli) fn per_token(price: Pod) -> anyhow::Result<u64> {
    let wei = price.0 / 1_000_000;
    if wei == 0 {
        bail!("a price is at least 0.000000000001 POD for a million tokens");
    }
    u64::try_from(wei).context("a price is less than 18 POD for each token")
}

impl ChainArgs {
    /// What a gateway with these options pays with; nothing without an account.
    pub(in crate::cli) async fn payer(&self, spend: &SpendArgs) -> anyhow::Result<Option<Payer>> {
        if self.account.account.is_none() {
            return Ok(None);
        }
        let (key, deployment) = (self.account.key()?, self.deployment()?);
        let ledger = self.ledger(key.clone()).await?;
        let store = Store::open(&state_directory("paid", &key.address())?)?;
        let max_price = spend.max_price.map(per_token).transpose()?;
        Ok(Some(Payer {
            collector: deployment.collector_domain(),
            registry: deployment.nodes_domain(),
            chain: Arc::new(OnChain::new(ledger).context("the account has no key")?),
            store: Arc::new(store),
            rules: PayerRules {
                spend_limit: spend.spend_limit.map(|limit| limit.0),
                max_price,
                ..PayerRules::default()
            },
            key,
        }))
    }

    /// The chain for somebody who stays: what is sent is seen through across restarts.
    async fn ledger(&self, key: Key) -> anyhow::Result<Arc<dyn Ledger>> {
        let directory = state_directory("pending", &key.address())?;
        Ok(Arc::new(self.open(Some(key), Some(directory)).await?))
    }

    /// The account of an auditor, the chain for it, and where its answers are kept.
    pub(in crate::cli) async fn auditor(&self) -> anyhow::Result<(Key, Arc<dyn Ledger>, PathBuf)> {
        let key = self.account.key()?;
        let ledger = self.ledger(key.clone()).await?;
        Ok((key.clone(), ledger, state_directory("audited", &key.address())?))
    }

    /// The chain for the account; asks for its passphrase. One account has one of them.
    pub(in crate::cli) async fn of_account(&self) -> anyhow::Result<Arc<dyn Ledger>> {
        self.ledger(self.account.key()?).await
    }

    /// What a node with these options is paid by; nothing without a price.
    pub(in crate::cli) fn payee(
        &self,
        price: &PriceArgs,
        identity: &Identity,
        ledger: Option<&Arc<dyn Ledger>>,
    ) -> anyhow::Result<Option<Payee>> {
        let (Some(asked), Some(ledger)) = (price.asked(), ledger) else { return Ok(None) };
        if price.credit == 0 {
            bail!("--credit must be at least 1");
        }
        let chain = OnChain::new(ledger.clone()).context("the account has no key")?;
        let deployment = ledger.deployment();
        let payee = Payee {
            account: chain.account(),
            price: per_token(asked)?,
            credit: price.credit,
            collector: deployment.collector_domain(),
            registry: deployment.nodes_domain(),
            binding: [0; 64],
            chain: Arc::new(chain),
            store: Arc::new(Store::open(&earned_directory(identity)?)?),
            rules: SettleRules::default(),
        };
        Ok(Some(payee.bind(identity)))
    }
}

/// Where a node keeps its vouchers.
pub(in crate::cli) fn earned_directory(identity: &Identity) -> anyhow::Result<PathBuf> {
    state_directory("earned", identity.id().as_bytes())
}

pub(in crate::cli) fn state_directory(kind: &str, owner: &[u8]) -> anyhow::Result<PathBuf> {
    let base = file::directory().context("there is no home directory for what is owed and earned")?;
    Ok(base.join(kind).join(hex::encode(owner)))
}
