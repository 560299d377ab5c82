//! What is paid in `dolphin up`, over a chain of its own.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::bail;
use clap::Args;
use engine::{
    local::Local,
    payment::{
        embedded::Embedded,
        pod,
        purse::Payer,
        till::{Caller, Payee},
    },
    swarm::SwarmStatus,
};
use ledger::{
    client::{Pod, show_address},
    eip712::Address,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::chain::{PriceArgs, per_token};

/// A node's short id, and how it is asked to collect.
type Seller = (String, Caller);

/// How nodes of this process are paid.
#[derive(Args, Debug)]
pub(super) struct MoneyArgs {
    /// Start no chain and pay nobody
    #[arg(long, env = "DOLPHIN_FREE")]
    free: bool,
    /// Keep the chain, its accounts and what they owe in a directory [default: they end with the process]
    #[arg(long, env = "DOLPHIN_CHAIN_DIR", value_name = "DIR")]
    chain_dir: Option<PathBuf>,
    #[command(flatten)]
    price: PriceArgs,
}

/// The chain and the accounts of a swarm in one process.
pub(super) struct Money {
    embedded: Embedded,
    payees: Vec<Address>,
    price: Pod,
    /// Where the contracts' addresses are written, if the chain is kept.
    deployment: Option<PathBuf>,
}

impl MoneyArgs {
    /// Starts the chain and makes accounts for a gateway and its nodes.
    pub(super) async fn start(&self, nodes: usize) -> anyhow::Result<Option<(Money, Payer, Vec<Payee>)>> {
        if self.free {
            return Ok(None);
        }
        let price = self.price.price.unwrap_or(Pod(engine::payment::ONE_POD));
        let embedded =
            Embedded::start(self.chain_dir.as_deref(), SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
        let payer = embedded.payer(Default::default()).await?;
        let mut payees = Vec::new();
        for index in 0..nodes {
            payees.push(embedded.payee(index, per_token(price)?, self.price.credit).await?);
        }
        let accounts = payees.iter().map(|payee| payee.account).collect();
        let deployment = self.chain_dir.as_ref().map(|directory| directory.join("deployment.json"));
        Ok(Some((Money { embedded, payees: accounts, price, deployment }, payer, payees)))
    }
}

impl Money {
    /// Where the chain is reached, and by which contracts.
    pub(super) fn announce(&self) -> Value {
        json!({ "rpc_url": self.embedded.url(), "deployment": self.embedded.deployment() })
    }

    /// The same for people.
    pub(super) fn print(&self) {
        println!(
            "chain     {} (id {}), {} POD for a million tokens to each node",
            self.embedded.url(),
            self.embedded.deployment().chain_id,
            self.price
        );
        if let Some(file) = &self.deployment {
            let url = self.embedded.url();
            println!("look in   dolphin gov list --rpc-url {url} --deployment {}", file.display());
        }
    }

    /// Waits for the first reply, settles it on the chain and prints who got what. Never ends.
    pub(super) fn settle_first<'a>(
        money: Option<&'a Self>,
        local: &Local,
        as_json: bool,
    ) -> impl Future<Output = ()> + use<'a> {
        let status = local.front().status();
        let nodes: Vec<Seller> =
            (local.nodes().iter()).filter_map(|node| Some((node.id().short(), node.settler()?))).collect();
        async move {
            if let Some(money) = money
                && let Err(error) = money.settle(status, &nodes, as_json).await
            {
                tracing::warn!(%error, "the first reply could not be settled");
            }
            std::future::pending().await
        }
    }

    async fn settle(
        &self,
        mut status: watch::Receiver<SwarmStatus>,
        nodes: &[Seller],
        as_json: bool,
    ) -> anyhow::Result<()> {
        let spent = status.wait_for(|status| status.spent > 0 && status.running == 0).await?.spent;
        let mut earned = self.earned().await?;
        // The last voucher is on its way to the nodes.
        for _ in 0..100 {
            if earned.iter().map(|(_, earned)| earned.0).sum::<u128>() >= spent {
                break;
            }
            for (_, settler) in nodes {
                settler.settle().await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            earned = self.earned().await?;
        }
        if earned.iter().map(|(_, earned)| earned.0).sum::<u128>() < spent {
            bail!("its nodes have not collected {} POD yet", pod(spent));
        }
        let tokens = spent / (u128::from(per_token(self.price)?) * earned.len().max(1) as u128);
        if as_json {
            let one = |(account, earned): &(Address, Pod)| json!({ "account": show_address(account), "pod": earned.to_string() });
            let paid: Vec<Value> = earned.iter().map(one).collect();
            println!(
                "{}",
                json!({ "settled": { "tokens": tokens.to_string(), "pod": pod(spent), "paid": paid } })
            );
            return Ok(());
        }
        println!("\nsettled on the chain: {tokens} tokens, {} POD", pod(spent));
        for ((account, earned), (node, _)) in earned.iter().zip(nodes) {
            println!("  node {node}  {}  {earned} POD", show_address(account));
        }
        Ok(())
    }

    async fn earned(&self) -> anyhow::Result<Vec<(Address, Pod)>> {
        let mut earned = Vec::new();
        for account in &self.payees {
            earned.push((*account, self.embedded.ledger().balances(*account).await?.earned));
        }
        Ok(earned)
    }
}
