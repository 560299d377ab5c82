//! `dolphin up`: everything in one process.

use std::sync::Arc;

use anyhow::bail;
use clap::Args;
use engine::{
    local::{Links, Local, LocalConfig},
    on_device,
};

use super::{
    interrupted,
    money::{Money, MoneyArgs},
    options::{GatewayArgs, ModelArgs, StageArgs, byte_bar, follow},
    show,
};

/// Serve a model from this machine: a gateway and its nodes in one process.
///
/// Without options it serves the embedded demo model over three nodes, linked by QUIC on loopback.
#[derive(Args, Debug)]
pub(super) struct Up {
    #[command(flatten)]
    model: ModelArgs,
    /// Nodes to cut the model over
    #[arg(long, env = "DOLPHIN_NODES", default_value_t = 3, value_name = "N")]
    nodes: usize,
    /// Keep embedding, head and sampler on the gateway, so that no node sees a token
    #[arg(long, env = "DOLPHIN_PRIVATE")]
    private: bool,
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    stage: StageArgs,
    #[command(flatten)]
    money: MoneyArgs,
    /// Print one line of JSON once it serves
    #[arg(long)]
    json: bool,
}

impl Up {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        if self.nodes == 0 {
            bail!("--nodes must be at least 1");
        }
        let model = Arc::new(self.model.open()?);
        let budget = self.stage.budget()?;
        let mut front = self.gateway.front(self.model.quant, self.stage.context)?;
        let (money, payees) = match self.money.start(self.nodes).await? {
            Some((money, payer, payees)) => {
                front.payer = Some(payer);
                (Some(money), payees)
            }
            None => (None, Vec::new()),
        };
        let config = LocalConfig {
            nodes: self.nodes,
            private: self.private,
            links: Links::loopback(),
            front,
            budget,
            draft: self.gateway.draft()?,
            payees,
        };
        let bar = byte_bar("loading");
        let device = self.stage.device()?;
        let mut local =
            on_device!(device, backend => Local::start(model, backend, config, follow(&bar)).await)?;
        bar.finish_and_clear();
        let stop = interrupted();
        self.announce(&local, money.as_ref());
        let settled = Money::settle_first(money.as_ref(), &local, self.json);
        let outcome = tokio::select! {
            () = stop => Ok(()),
            error = local.failed() => Err(error.into()),
            () = settled => Ok(()),
        };
        local.stop().await;
        outcome
    }

    fn announce(&self, local: &Local, money: Option<&Money>) {
        let front = local.front();
        let status = front.status().borrow().clone();
        let (url, model) = (front.url(), front.model_name());
        if self.json {
            let plan = local.plan();
            let line = serde_json::json!({
                "url": format!("{url}/v1"), "model": model, "quantisation": self.model.quant,
                "join": local.join().to_string(), "nodes": status.nodes, "predicted": {
                    "tpot_ms": plan.tpot_s * 1e3, "tokens_per_s": plan.tokens_per_s, "bottleneck": plan.bottleneck,
                },
                "chain": money.map(Money::announce),
            });
            println!("{line}");
            return;
        }
        println!(
            "{model} ({}) over {} nodes\n\n{}",
            self.model.quant,
            status.nodes.len(),
            show::pipeline(&status)
        );
        let plan = local.plan();
        let (tpot_ms, rate, slowest) = (plan.tpot_s * 1e3, plan.tokens_per_s, &plan.bottleneck);
        let ends = if self.private { ", the private ends not counted" } else { "" };
        println!(
            "predicted for one reply{ends}: {tpot_ms:.2} ms per token, {rate:.1} tokens/s; limited by {slowest}\n"
        );
        println!("endpoint  {url}/v1\njoin      {}", local.join());
        if let Some(money) = money {
            money.print();
        }
        println!("\ntry it:\n");
        println!("{}\n\nCtrl-C stops.", show::curl(&url, model, !self.gateway.api_keys.is_empty()));
    }
}
