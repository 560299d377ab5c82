//! `dolphin node`: lend this machine.

use std::{
    net::SocketAddr,
    ops::Range,
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytesize::ByteSize;
use clap::Args;
use engine::{
    audit::{clerk::ClerkStatus, commitment::Signer, recorder::Audit},
    device::Device,
    local::{load_stage, shard_bytes},
    message::{Ask, KvMemory, Offer},
    model::{Model, Quantisation, Shard, ShardCache, cache_root},
    node::{GatewayAddress, Loader, Node, NodeConfig, NodeStatus, ask, load_rate},
    on_device,
    profile::soonest,
    pull::{Pull, Reference, Repository},
    weights::{Fetcher, Stock},
};
use kernels::backend::Backend;
use tokio::sync::watch;
use transport::{
    NodeId, Transport,
    quic::{
        Endpoint,
        nat::{Filtering, NatView, Reachability},
    },
};

use super::{
    audits::{Audited, AuditsArgs},
    chain::{ChainArgs, PriceArgs},
    interrupted,
    options::{LinkArgs, ModelArgs, StageArgs, byte_bar, follow, identity},
    serve::{reachable, resolve},
    show,
};

/// Lend this machine: hold some layers of a model for a gateway.
///
/// The gateway's `dolphin serve` prints the line to paste. The node reads only its layers' bytes of the
/// model, from files here or with `--fetch` from the gateway, serves until Ctrl-C, and rejoins by itself when the
/// gateway comes back.
#[derive(Args, Debug)]
pub(super) struct NodeCommand {
    #[command(flatten)]
    model: ModelArgs,
    /// Gateway to serve, as it prints itself; may be repeated
    #[arg(long, env = "DOLPHIN_JOIN", value_delimiter = ',', required = true, value_name = "ID@HOST:PORT")]
    join: Vec<GatewayAddress>,
    /// Layers to hold: `A..B` (from A up to, not including, B), or `auto` to be told by the gateway
    #[arg(long, env = "DOLPHIN_LAYERS", default_value = "auto", value_name = "A..B|auto")]
    layers: Layers,
    /// Memory for weights when layers are `auto`
    #[arg(long, env = "DOLPHIN_MEMORY", default_value = "4GiB", value_name = "BYTES")]
    memory: ByteSize,
    /// Where other nodes reach this one (UDP) [default: loopback for a gateway on loopback, else all addresses]
    #[arg(long, env = "DOLPHIN_NODE_LISTEN", value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Address to tell others [default: this machine's on the way to the gateway]
    #[arg(long, env = "DOLPHIN_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// The node's key, made on first use [default: node.key in the configuration directory]
    #[arg(long, env = "DOLPHIN_KEY_FILE", value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(flatten)]
    fetch: FetchArgs,
    #[command(flatten)]
    link: LinkArgs,
    #[command(flatten)]
    stage: StageArgs,
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    price: PriceArgs,
    #[command(flatten)]
    audits: AuditsArgs,
    /// Print one line of JSON once the layers are loaded
    #[arg(long)]
    json: bool,
}

/// How a node comes by a model that it has no files of.
#[derive(Args, Debug)]
struct FetchArgs {
    /// Fetch the layers' weights from the gateways that are joined, each checked against the model hash; what was
    /// fetched is kept
    #[arg(long, env = "DOLPHIN_FETCH", conflicts_with = "model")]
    fetch: bool,
    /// Where it is kept [default: `fetched` in the cache directory]
    #[arg(long, env = "DOLPHIN_FETCH_DIR", value_name = "DIR")]
    fetch_dir: Option<PathBuf>,
    /// Repository (`owner/name` or `owner/name@revision`) on a hub of the Hugging Face kind that has the gateway's
    /// files: the layers' bytes are asked for there first; `HF_ENDPOINT` and `HF_TOKEN` are as for `pull`
    #[arg(long, env = "DOLPHIN_HUB", requires = "fetch", value_name = "REPOSITORY")]
    hub: Option<Reference>,
    /// Most bytes of the files that the layers may have
    #[arg(long, env = "DOLPHIN_FETCH_LIMIT", default_value = "256GiB", value_name = "BYTES")]
    fetch_limit: ByteSize,
    /// Bytes a second that are fetched [default: as many as come]
    #[arg(long, env = "DOLPHIN_FETCH_BANDWIDTH", value_name = "BYTES")]
    fetch_bandwidth: Option<ByteSize>,
    /// Bytes a second of the weights here that other nodes are given when they fetch, over all of them; a quarter of
    /// that while the node serves. 0 gives none
    #[arg(long, env = "DOLPHIN_SHARE_BANDWIDTH", default_value = "8MB", value_name = "BYTES")]
    share_bandwidth: ByteSize,
}

impl FetchArgs {
    fn directory(&self) -> Option<PathBuf> {
        self.fetch_dir.clone().or_else(|| cache_root().map(|root| root.join("fetched")))
    }

    /// Asks the gateways for what they serve, if weights are to be fetched.
    async fn describe(
        &self,
        transport: &Arc<dyn Transport>,
        gateways: &[GatewayAddress],
        quantisation: Quantisation,
    ) -> anyhow::Result<Option<Fetcher>> {
        if !self.fetch {
            return Ok(None);
        }
        let root = self.directory().context("--fetch needs --fetch-dir: there is no cache")?;
        let cache = ShardCache::of_user();
        let mirror = Fetcher::describe(transport, gateways, &root, quantisation, cache)
            .await
            .context("asking the gateway for its model")?;
        let bandwidth = self.fetch_bandwidth.map(|bandwidth| bandwidth.as_u64());
        let fetcher = Fetcher::new(mirror, self.fetch_limit.as_u64(), bandwidth);
        let Some(reference) = &self.hub else { return Ok(Some(fetcher)) };
        let hub = Repository::open(&Pull::new(reference.clone(), Some(root))?).await;
        Ok(Some(fetcher.with_hub(hub.with_context(|| format!("--hub {reference}"))?)))
    }
}

/// Which layers a node holds.
#[derive(Clone, Debug)]
enum Layers {
    Auto,
    Range(Range<usize>),
}

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        parse_layers(text).map(Self::Range)
    }
}

/// Reads `A..B`.
pub(super) fn parse_layers(text: &str) -> Result<Range<usize>, String> {
    let bounds =
        text.split_once("..").and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    match bounds {
        Some((from, to)) if from < to => Ok(from..to),
        _ => Err("expected A..B with A below B, such as 0..8".into()),
    }
}

/// Where a node is, for people.
struct Place<'a> {
    id: NodeId,
    address: &'a str,
    /// What its links run over.
    carriers: &'a str,
    device: &'a str,
    weight_bytes: u64,
    /// Bytes of files fetched for them.
    fetched: u64,
}

impl NodeCommand {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let gateway = resolve(&self.join[0].address).await?;
        let listen = self.listen.unwrap_or_else(|| match gateway.ip().is_loopback() {
            true => SocketAddr::new(gateway.ip(), 0),
            false if gateway.is_ipv6() => SocketAddr::from(([0u16; 8], 0)),
            false => SocketAddr::from(([0, 0, 0, 0], 0)),
        });
        let key = identity(self.key.as_deref(), "node")?;
        let endpoint = Endpoint::bind_with_rdma(&key.identity, listen, self.link.limits())
            .with_context(|| format!("--listen {listen}"))?;
        endpoint.meet_through(self.join.iter().map(|gateway| gateway.id));
        let (id, carriers, nat) = (endpoint.id(), endpoint.carriers(), endpoint.nat());
        let advertise = self
            .advertise
            .clone()
            .unwrap_or_else(|| reachable(endpoint.local_address(), Some(gateway)).to_string());
        let endpoint: Arc<dyn Transport> = Arc::new(endpoint);
        let quantisation = self.model.quant;
        let weights = self.fetch.describe(&endpoint, &self.join, quantisation).await?;
        let model = match &weights {
            Some(weights) => weights.model().clone(),
            None => Arc::new(self.model.open()?),
        };
        let chosen = self.stage.device()?;
        let device = chosen.describe();
        let offer = self.offer(&model, &chosen).await?;
        let shard = self.shard(&model, endpoint.as_ref(), model.fingerprint(quantisation), &offer).await?;
        let fetched = self.fetched(&endpoint, weights.as_ref(), &shard).await?;
        let weight_bytes = shard_bytes(&model, &shard, quantisation);
        let ledger = self.audits.ledger(&self.chain, &self.price).await?;
        let audited = Audited {
            identity: &key.identity,
            endpoint: &advertise,
            model: &model,
            quantisation,
            known: weights.as_ref().map(Fetcher::hash),
        };
        let clerk = self.audits.clerk(ledger.as_ref(), &audited).await?;
        let (signer, book) =
            (Signer::new(key.identity.clone()), clerk.as_ref().map(|clerk| clerk.book.clone()));
        let config = NodeConfig {
            gateways: self.join.clone(),
            advertise: advertise.clone(),
            fingerprint: model.fingerprint(quantisation),
            chunk: self.stage.whole_budget(&chosen)?.chunk,
            weight_bytes,
            device: device.clone(),
            payee: self.chain.payee(&self.price, &key.identity, ledger.as_ref())?,
            offer,
            loader: None,
            audit: Some(Audit { signer, book }),
            clerk,
            stock: self.stock(&model, weights.as_ref()),
            weights,
        };
        let mut node = self.start(&model, chosen, &shard, endpoint, config).await?;
        let address = advertise.as_str();
        let place = Place { id, address, carriers: &carriers, device: &device, weight_bytes, fetched };
        let stop = interrupted();
        self.announce(&place, &shard, &model);
        let (status, audits) = (node.status(), node.audits());
        tokio::select! {
            () = stop => {}
            () = self.report(status, audits, &nat) => {}
            outcome = node.finished() => return Ok(outcome?),
        }
        node.stop().await;
        Ok(())
    }

    /// What other nodes are given of the model.
    fn stock(&self, model: &Arc<Model>, weights: Option<&Fetcher>) -> Option<Stock> {
        let bandwidth = Some(self.fetch.share_bandwidth.as_u64()).filter(|&bandwidth| bandwidth > 0)?;
        match weights {
            Some(weights) => Some(weights.stock(bandwidth)),
            // The embedded model is in every node.
            None => {
                self.model.model.as_ref()?;
                Some(Stock::own(model.clone(), self.model.quant, self.fetch.directory()?, bandwidth))
            }
        }
    }

    /// Fetches what is missing of a shard, and says how many bytes that was.
    async fn fetched(
        &self,
        endpoint: &Arc<dyn Transport>,
        weights: Option<&Fetcher>,
        shard: &Shard,
    ) -> anyhow::Result<u64> {
        let Some(weights) = weights else { return Ok(0) };
        let bar = byte_bar("fetching");
        let fetched = weights.fetch(endpoint, &self.join, shard, &follow(&bar)).await;
        bar.finish_and_clear();
        fetched.with_context(|| format!("fetching the weights of layers {:?}", shard.layers))
    }

    /// Loads a shard and starts to serve it.
    async fn start(
        &self,
        model: &Arc<Model>,
        device: Device,
        shard: &Shard,
        endpoint: Arc<dyn Transport>,
        mut config: NodeConfig,
    ) -> anyhow::Result<Node> {
        let quantisation = self.model.quant;
        let bar = byte_bar("loading");
        let (budget, progress) = (self.stage.whole_budget(&device)?, follow(&bar));
        let (source, part) = (model.clone(), shard.clone());
        let node = on_device!(device, backend => {
            config.loader = Some(Loader::new(model.clone(), quantisation, budget, backend.clone()));
            let begun = Instant::now();
            let load = move || load_stage(&source, &part, quantisation, &budget, backend, &progress);
            let stage = tokio::task::spawn_blocking(load).await??;
            config.offer.load_rate = Some(load_rate(config.weight_bytes, begun.elapsed()));
            Node::start(stage, endpoint, config)
        })?;
        bar.finish_and_clear();
        Ok(node)
    }

    fn announce(&self, place: &Place, shard: &Shard, model: &Model) {
        let Place { id, address, carriers, device, weight_bytes, fetched } = place;
        if self.json {
            let line = serde_json::json!({
                "id": id.to_string(), "address": address, "from": shard.layers.start, "to": shard.layers.end,
                "weight_bytes": weight_bytes, "fetched_bytes": fetched, "device": device, "links": carriers,
            });
            println!("{line}");
        } else {
            println!(
                "node {id}\n  layers   {}..{} of {}",
                shard.layers.start,
                shard.layers.end,
                model.name()
            );
            println!(
                "  weights  {}{}\n  device   {device}\n  address  {address} ({carriers})\n\nCtrl-C stops.",
                ByteSize(*weight_bytes),
                if *fetched > 0 { format!(", {} fetched", ByteSize(*fetched)) } else { String::new() },
            );
        }
    }

    /// Prints where the node is seen, and each link to another node and by what way it goes, once that is known or
    /// changes.
    async fn report(
        &self,
        mut status: watch::Receiver<NodeStatus>,
        audits: Option<watch::Receiver<ClerkStatus>>,
        nat: &NatView,
    ) {
        let (mut place, mut shown) = (Reachability::default(), Vec::new());
        let (mut model_known, mut posted) = (None, None);
        let mut look = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = look.tick() => {}
                // Its end is told elsewhere.
                changed = status.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
            }
            let (now, links) = (nat.reachability(), status.borrow_and_update().links.clone());
            if self.json {
                continue;
            }
            if let Some(audits) = audits.as_ref().map(|audits| audits.borrow().clone())
                && (audits.posted > posted || audits.model_known != model_known)
            {
                (model_known, posted) = (audits.model_known, audits.posted);
                println!("{}", show::audits(&audits));
            }
            if now != place && now.filtering != Filtering::Unknown {
                place = now;
                show::place(&now).into_iter().for_each(|line| println!("{line}"));
            }
            for (peer, path) in links.iter().filter(|link| !shown.contains(*link)) {
                println!("  link     {}: {}", peer.short(), path);
            }
            shown = links;
        }
    }

    /// What it lends, and how fast that is.
    async fn offer(&self, model: &Arc<Model>, device: &Device) -> anyhow::Result<Offer> {
        let (source, quantisation, device) = (model.clone(), self.model.quant, device.clone());
        let lent = self.memory.as_u64();
        let budget = self.stage.whole_budget(&device)?;
        let free = on_device!(&device, backend => backend.free_bytes())?.map(|free| free as u64);
        // What a card has is what weights and KV share; a processor's is for the asking.
        let (weight_bytes, kv) = match (free, budget.kv_bytes) {
            (Some(free), u64::MAX) => (lent, KvMemory::Shared(free)),
            (Some(free), own) => (lent.min(free.saturating_sub(own)), KvMemory::Own(own)),
            (None, own) => (lent, KvMemory::Own(own)),
        };
        let measuring = move || on_device!(device, backend => soonest(&source, quantisation, backend));
        Ok(Offer {
            weight_bytes,
            kv,
            movable: matches!(self.layers, Layers::Auto) && self.join.len() == 1,
            load_rate: None,
            profile: Some(Box::new(tokio::task::spawn_blocking(measuring).await??)),
        })
    }

    async fn shard(
        &self,
        model: &Model,
        endpoint: &dyn Transport,
        fingerprint: [u8; 32],
        offer: &Offer,
    ) -> anyhow::Result<Shard> {
        let layers = model.config().layers;
        match &self.layers {
            Layers::Range(range) if range.end > layers => {
                bail!("--layers {}..{}: the model has {layers} layers", range.start, range.end)
            }
            Layers::Range(range) => {
                Ok(Shard { layers: range.clone(), embedding: range.start == 0, head: range.end == layers })
            }
            Layers::Auto => {
                let question = Ask { fingerprint, offer: offer.clone() };
                let shard =
                    ask(endpoint, &self.join[0], question).await.context("asking the gateway for layers")?;
                if shard.layers.end > layers || shard.layers.is_empty() {
                    bail!("the gateway assigned layers {:?} of {layers}", shard.layers);
                }
                Ok(shard)
            }
        }
    }
}
