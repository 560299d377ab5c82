//! `dolphin serve`: the gateway alone.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use anyhow::Context;
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use engine::{
    front::Front,
    local::{PrivateEnds, start_drafter},
    model::Model,
    node::GatewayAddress,
    on_device,
};
use transport::{NodeId, Transport, quic::Endpoint};

use super::{
    chain::{ChainArgs, SpendArgs},
    interrupted,
    options::{GatewayArgs, LinkArgs, ModelArgs, StageArgs, allow_list, byte_bar, follow, identity},
    show,
};

/// Run a gateway: the HTTP endpoint, and the swarm that nodes join.
///
/// It needs the model's configuration and tokenizer, not its weights (unless --private). It prints the
/// address that `dolphin node --join` takes, and serves as soon as the nodes that joined cover the model.
#[derive(Args, Debug)]
pub(super) struct Serve {
    #[command(flatten)]
    model: ModelArgs,
    /// Where nodes join (UDP); at the next port, if it is free, nodes find out what their routers do
    #[arg(long, env = "DOLPHIN_SWARM", default_value = "0.0.0.0:7700", value_name = "ADDR:PORT")]
    swarm: SocketAddr,
    /// Address that the printed join line names [default: this machine's]
    #[arg(long, env = "DOLPHIN_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// The gateway's key, made on first use [default: gateway.key in the configuration directory]
    #[arg(long, env = "DOLPHIN_KEY_FILE", value_name = "FILE")]
    key: Option<PathBuf>,
    /// Take only this node; may be repeated [default: every node that knows the join line]
    #[arg(long, env = "DOLPHIN_ALLOW", value_delimiter = ',', value_name = "NODE_ID")]
    allow: Vec<NodeId>,
    /// Keep embedding, head and sampler on the gateway, so that no node sees a token
    #[arg(long, env = "DOLPHIN_PRIVATE")]
    private: bool,
    /// Whether nodes at work are told to load other layers when that pays; those that were given theirs with
    /// `--layers A..B` never are
    #[arg(long, env = "DOLPHIN_REPLAN", default_value = "on", value_name = "on|off")]
    replan: Switch,
    /// Bytes a second that are relayed between nodes whose routers let them find no other way; 0 relays nothing
    #[arg(long, env = "DOLPHIN_RELAY_BANDWIDTH", default_value = "4MB", value_name = "BYTES")]
    relay_bandwidth: ByteSize,
    /// Bytes a second of the model's files that nodes with `--fetch` are given, over all nodes; 0 gives none. What
    /// one node has, others get from there
    #[arg(long, env = "DOLPHIN_WEIGHTS_BANDWIDTH", default_value = "32MB", value_name = "BYTES")]
    weights_bandwidth: ByteSize,
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    link: LinkArgs,
    #[command(flatten)]
    stage: StageArgs,
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    spend: SpendArgs,
    /// Print one line of JSON once it listens
    #[arg(long)]
    json: bool,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl Serve {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let model = Arc::new(self.model.open()?);
        let mut config = self.gateway.front(self.model.quant, self.stage.context)?;
        config.allow = allow_list(&self.allow);
        config.payer = self.chain.payer(&self.spend).await?;
        config.replan = self.replan == Switch::On;
        config.weights = Some(self.weights_bandwidth.as_u64()).filter(|_| self.gives(&model));
        let key = identity(self.key.as_deref(), "gateway")?;
        let endpoint = Endpoint::bind_with_rdma(&key.identity, self.swarm, self.link.limits())
            .with_context(|| format!("--swarm {}", self.swarm))?;
        config.gateway.nat = Some(endpoint.nat());
        let bound = endpoint.local_address();
        let address = self.advertise.clone().unwrap_or_else(|| reachable(bound, None).to_string());
        let join = GatewayAddress { id: endpoint.id(), address };
        let ends = if self.private { Some(PrivateEnds::generate(model.config().layers)?) } else { None };
        if let Some(ends) = &ends {
            config.private_ends = Some(ends.ids());
            config.allow = config.allow.map(|allow| allow.into_iter().chain(ends.ids()).collect());
        }
        endpoint
            .introduce_peers(self.relay_bandwidth.as_u64(), config.allow.clone())
            .with_context(|| format!("--swarm {}: no second port", self.swarm))?;
        let draft = self.gateway.draft()?;
        // Once for both: a card compiles its kernels when it is opened.
        let device = (draft.is_some() || ends.is_some()).then(|| self.stage.device()).transpose()?;
        let drafting = match draft.zip(device.clone()) {
            Some((draft, device)) => {
                let (context, target) = (self.stage.context, model.clone());
                Some(on_device!(device, backend => start_drafter(target, draft, backend, context).await)?)
            }
            None => None,
        };
        let front = Front::start(&model, key.identity.clone(), Arc::new(endpoint), drafting, config).await?;
        let mut nodes = Vec::new();
        if let Some((ends, device)) = ends.zip(device) {
            let inside = (join.id, reachable(bound, None));
            let bar = byte_bar("loading embedding and head");
            let budget = self.stage.budget()?;
            let (quantisation, source) = (self.model.quant, model.clone());
            nodes = on_device!(device, backend => {
                ends.start(source, quantisation, budget, backend, inside, follow(&bar)).await
            })?;
            bar.finish_and_clear();
        }
        let stop = interrupted();
        self.announce(&front, &join, &model);
        tokio::select! {
            () = stop => {}
            () = self.report(&front) => {}
        }
        front.stop(nodes).await;
        Ok(())
    }

    /// Whether nodes without files can have the model's weights from here.
    fn gives(&self, model: &Model) -> bool {
        self.weights_bandwidth.as_u64() > 0 && model.is_whole()
    }

    fn announce(&self, front: &Front, join: &GatewayAddress, model: &Model) {
        let url = front.url();
        if self.json {
            let line = serde_json::json!({
                "url": format!("{url}/v1"), "model": front.model_name(), "join": join.to_string(),
            });
            println!("{line}");
            return;
        }
        println!("{} ({}), {} layers", front.model_name(), self.model.quant, model.config().layers);
        println!("\nendpoint  {url}/v1\n\nlend a machine with:\n");
        // The embedded model is in every node.
        let weights = match &self.model.model {
            Some(_) if self.gives(model) => " --fetch".to_owned(),
            Some(path) => format!(" --model {}", path.display()),
            None => String::new(),
        };
        println!("  dolphin node{weights} --quant {} --join {join}\n\nCtrl-C stops.", self.model.quant);
    }

    /// Prints the pipeline each time it changes.
    async fn report(&self, front: &Front) {
        let mut status = front.status();
        let (mut shown, mut moves) = (Vec::new(), Vec::new());
        while status.changed().await.is_ok() {
            let now = status.borrow_and_update().clone();
            if self.json {
                continue;
            }
            for step in now.moves.iter().filter(|step| !moves.contains(*step)) {
                let doing = if step.loading { "loads" } else { "ends its sessions, then loads" };
                println!("replanned: node {} {doing} {}..{}", &step.node[..8], step.from, step.to);
            }
            moves.clone_from(&now.moves);
            if now.nodes == shown {
                continue;
            }
            println!("\n{}", show::pipeline(&now));
            match &now.missing {
                Some(missing) => println!("waiting for a node with {missing}"),
                None => println!("serving{}", show::predicted(&now)),
            }
            shown = now.nodes;
        }
    }
}

/// The address under which others reach a socket bound to `bound`: itself, or for an unspecified
/// address the local one of the route to `towards`.
pub(super) fn reachable(bound: SocketAddr, towards: Option<SocketAddr>) -> SocketAddr {
    if !bound.ip().is_unspecified() {
        return bound;
    }
    // Connecting a UDP socket sends nothing; it only asks for the route. 192.0.2.1 is reserved for
    // documentation, so it stands for "the rest of the world".
    let towards = towards.unwrap_or(SocketAddr::from(([192, 0, 2, 1], 9)));
    let local = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.connect(towards).and_then(|()| socket.local_addr()));
    match local {
        Ok(local) => SocketAddr::new(local.ip(), bound.port()),
        Err(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, bound.port())),
    }
}

/// Resolves `host:port` of a gateway.
pub(super) async fn resolve(address: &str) -> anyhow::Result<SocketAddr> {
    let mut found =
        tokio::net::lookup_host(address).await.with_context(|| format!("cannot resolve {address}"))?;
    found.next().with_context(|| format!("{address} has no address"))
}
