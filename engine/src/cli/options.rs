//! Options that several commands share.

use std::{
    fs::{File, TryLockError},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use engine::{
    device::{Device, DeviceChoice},
    front::FrontConfig,
    gateway::GatewayConfig,
    local::StageBudget,
    model::{Model, ModelHash, Progress, Quantisation, ShardCache},
};
use indicatif::{ProgressBar, ProgressStyle};
use kernels::cpu::{Cpu, Isa};
use transport::{Identity, Limits, NodeId, limits::Congestion};

use super::file;

/// Which model, and how its weights are held.
#[derive(Args, Debug)]
pub(super) struct ModelArgs {
    /// Directory with config.json and safetensors, or a .gguf file [default: the embedded demo model]
    #[arg(long, env = "DOLPHIN_MODEL", value_name = "DIR|FILE")]
    pub model: Option<PathBuf>,
    /// How weights are held: q8 (near lossless), q4 (half the memory), f32 (unquantised); what a GGUF file
    /// has as Q4_0, Q4_K or Q6_K stays so under q8 and q4
    #[arg(long, env = "DOLPHIN_QUANT", default_value = "q8", value_name = "q8|q4|f32")]
    pub quant: Quantisation,
}

impl ModelArgs {
    /// Opens the model; only headers are read.
    pub(super) fn open(&self) -> anyhow::Result<Model> {
        open_model(self.model.as_deref())
    }
}

/// Opens a model, or the embedded one.
pub(super) fn open_model(path: Option<&Path>) -> anyhow::Result<Model> {
    let Some(path) = path else { return Ok(Model::demo()?) };
    let model = Model::open(path).with_context(|| format!("{} cannot be used", path.display()))?;
    Ok(model.with_cache(ShardCache::of_user()))
}

/// How links to other machines behave.
#[derive(Args, Debug)]
pub(super) struct LinkArgs {
    /// How links adapt their rate: cubic, or bbr for paths that lose packets at random
    #[arg(long, env = "DOLPHIN_CONGESTION", default_value = "cubic", value_name = "cubic|bbr")]
    pub congestion: Congestion,
}

impl LinkArgs {
    /// The limits of links with these options.
    pub(super) fn limits(&self) -> Limits {
        Limits { congestion: self.congestion, ..Limits::default() }
    }
}

/// How the CPU computes.
#[derive(Args, Debug)]
pub(super) struct CpuArgs {
    /// Threads that compute [default: one per core]
    #[arg(long, env = "DOLPHIN_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// Instruction set; every one gives the same bytes
    #[arg(long, env = "DOLPHIN_ISA", default_value = "auto", value_name = "SET")]
    pub isa: IsaChoice,
}

/// What a stage computes on, and how much it takes.
#[derive(Args, Debug)]
pub(super) struct StageArgs {
    /// What stages compute on: auto (the first card that can be used, else the CPU), cpu, cuda, or cuda:N for
    /// card N; every one gives the same bytes
    #[arg(long, env = "DOLPHIN_DEVICE", default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,
    #[command(flatten)]
    pub cpu: CpuArgs,
    /// Longest session in tokens, prompt and reply together; at most the model's own limit
    #[arg(long, env = "DOLPHIN_CONTEXT", default_value_t = 8192, value_name = "TOKENS")]
    pub context: u32,
    /// Most sessions a stage serves at once
    #[arg(long, env = "DOLPHIN_SESSIONS", default_value_t = 64, value_name = "N")]
    pub sessions: usize,
    /// Memory a stage may use for the KV cache [default: 1GiB; for a node on a card, what is free]
    #[arg(long, env = "DOLPHIN_KV_MEMORY", value_name = "BYTES")]
    pub kv_memory: Option<ByteSize>,
    /// Memory of a card that stays free
    #[arg(long, env = "DOLPHIN_LEAVE_MEMORY", default_value = "512MiB", value_name = "BYTES")]
    pub leave_memory: ByteSize,
    /// Most rows of one step: larger prefills faster, smaller lets replies wait less
    #[arg(long, env = "DOLPHIN_ROWS", default_value_t = 256, value_name = "N")]
    pub rows: usize,
}

/// Instruction sets of the CPU backend.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum IsaChoice {
    /// The fastest this machine has
    Auto,
    Portable,
    Avx2,
    AvxVnni,
    Avx512,
    Amx,
}

impl CpuArgs {
    /// The CPU as asked for.
    pub(super) fn cpu(&self) -> anyhow::Result<Cpu> {
        let isa = match self.isa {
            IsaChoice::Auto => Isa::detect(),
            IsaChoice::Portable => Isa::Portable,
            IsaChoice::Avx2 => Isa::Avx2,
            IsaChoice::AvxVnni => Isa::AvxVnni,
            IsaChoice::Avx512 => Isa::Avx512,
            IsaChoice::Amx => Isa::Amx,
        };
        let threads =
            self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        Ok(Cpu::new(threads, isa)?)
    }
}

impl StageArgs {
    /// The device as asked for.
    pub(super) fn device(&self) -> anyhow::Result<Device> {
        let device = Device::choose(self.device, self.cpu.cpu()?)
            .with_context(|| format!("--device {}", self.device))?;
        tracing::info!(device = device.describe(), "computing");
        Ok(device.leaving(self.leave_memory.as_u64()))
    }

    /// Bounds of a stage.
    pub(super) fn budget(&self) -> anyhow::Result<StageBudget> {
        if self.rows == 0 || self.sessions == 0 || self.context == 0 {
            bail!("--rows, --sessions and --context must be at least 1");
        }
        Ok(StageBudget {
            rows: self.rows,
            chunk: self.rows,
            sessions: self.sessions,
            context: self.context,
            kv_bytes: self.kv_memory.unwrap_or(ByteSize::gib(1)).as_u64(),
        })
    }

    /// Bounds of a stage that has `device` for itself.
    pub(super) fn whole_budget(&self, device: &Device) -> anyhow::Result<StageBudget> {
        let budget = self.budget()?;
        let all = device.is_card() && self.kv_memory.is_none();
        Ok(if all { StageBudget { kv_bytes: u64::MAX, ..budget } } else { budget })
    }
}

/// When replies are speculated with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum SpeculationChoice {
    Auto,
    Off,
}

/// Whether replies have receipts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ReceiptsChoice {
    On,
    Off,
}

/// The HTTP endpoint and its limits.
#[derive(Args, Debug)]
pub(super) struct GatewayArgs {
    /// Where clients reach the endpoint
    #[arg(long, env = "DOLPHIN_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Key that clients must send as `Authorization: Bearer …`; may be repeated [default: none needed]
    #[arg(
        long = "api-key",
        env = "DOLPHIN_API_KEY",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "KEY"
    )]
    pub api_keys: Vec<String>,
    /// Origin whose web pages may call the endpoint, `*` for all; may be repeated
    #[arg(long = "cors-origin", env = "DOLPHIN_CORS_ORIGIN", value_delimiter = ',', value_name = "ORIGIN")]
    pub cors_origins: Vec<String>,
    /// Name under which the model is served [default: the model's own]
    #[arg(long, env = "DOLPHIN_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// Most replies generated at once; others wait
    #[arg(long, env = "DOLPHIN_RUNNING", default_value_t = 32, value_name = "N")]
    pub running: usize,
    /// Most requests that wait or run; others are told to come back (429)
    #[arg(long, env = "DOLPHIN_MAX_REQUESTS", default_value_t = 512, value_name = "N")]
    pub max_requests: usize,
    /// Largest request body
    #[arg(long, env = "DOLPHIN_MAX_BODY", default_value = "4MiB", value_name = "BYTES")]
    pub max_body: ByteSize,
    /// Longest time a request may take, in seconds
    #[arg(long, env = "DOLPHIN_DEADLINE_S", default_value_t = 600, value_name = "SECONDS")]
    pub deadline_s: u64,
    /// Whether replies are sped up by drafts, which changes no byte of them; `auto` drafts where it pays
    #[arg(long, env = "DOLPHIN_SPECULATION", default_value = "auto", value_name = "WHEN")]
    pub speculation: SpeculationChoice,
    /// Small model with the same vocabulary, run here, that guesses what the served one will say; `demo`
    /// for the embedded demo model's own
    #[arg(long, env = "DOLPHIN_DRAFT", value_name = "DIR|FILE")]
    pub draft: Option<PathBuf>,
    /// Whether replies have receipts, which `dolphin verify` checks; the model is hashed at the start for it
    #[arg(long, env = "DOLPHIN_RECEIPTS", default_value = "on", value_name = "WHEN")]
    pub receipts: ReceiptsChoice,
    /// Time running replies get to finish at Ctrl-C, in seconds
    #[arg(long, env = "DOLPHIN_DRAIN_S", default_value_t = 30, value_name = "SECONDS")]
    pub drain_s: u64,
}

impl GatewayArgs {
    /// The draft model, if one is asked for.
    pub(super) fn draft(&self) -> anyhow::Result<Option<Arc<Model>>> {
        let Some(path) = &self.draft else { return Ok(None) };
        if self.speculation == SpeculationChoice::Off {
            bail!("--draft is of no use with --speculation off");
        }
        let model = if path.as_os_str() == "demo" { Model::demo_draft() } else { Model::open(path) };
        Ok(Some(Arc::new(model.with_context(|| format!("--draft {}", path.display()))?)))
    }

    /// The front as asked for; joins are open and ends are shared unless the command says otherwise.
    pub(super) fn front(&self, quantisation: Quantisation, context: u32) -> anyhow::Result<FrontConfig> {
        if self.running == 0 || self.max_requests == 0 {
            bail!("--running and --max-requests must be at least 1");
        }
        if self.api_keys.iter().any(String::is_empty) {
            bail!("an --api-key is empty");
        }
        Ok(FrontConfig {
            gateway: GatewayConfig {
                listen: self.listen,
                api_keys: self.api_keys.clone(),
                cors_origins: self.cors_origins.clone(),
                max_body_bytes: usize::try_from(self.max_body.as_u64()).unwrap_or(usize::MAX),
                max_concurrent: self.max_requests,
                request_deadline: Duration::from_secs(self.deadline_s),
                drain_timeout: Duration::from_secs(self.drain_s),
                ..GatewayConfig::default()
            },
            model_name: self.name.clone(),
            quantisation,
            context,
            running: self.running,
            waiting: self.max_requests.saturating_mul(4),
            allow: None,
            private_ends: None,
            speculation: self.speculation == SpeculationChoice::Auto,
            payer: None,
            replan: true,
            receipts: self.receipts == ReceiptsChoice::On,
            weights: None,
        })
    }
}

/// Nodes that may join, from their ids.
pub(super) fn allow_list(ids: &[NodeId]) -> Option<std::collections::HashSet<NodeId>> {
    (!ids.is_empty()).then(|| ids.iter().copied().collect())
}

/// A node's key, and the lock that keeps another process from using the same one.
pub(super) struct Key {
    pub identity: Identity,
    _lock: File,
}

/// Keys of one kind that processes on one machine may take in turn.
const KEYS: usize = 64;

/// The key in `path`, made on first use. Without a path: `NAME.key` in the configuration directory, or
/// the first of `NAME-2.key`, `NAME-3.key`, … that no running process uses.
pub(super) fn identity(path: Option<&Path>, name: &str) -> anyhow::Result<Key> {
    if let Some(path) = path {
        return take_key(path)?.with_context(|| format!("another process uses the key {}", path.display()));
    }
    let directory = file::directory().context("there is no home directory for the key: give --key FILE")?;
    std::fs::create_dir_all(&directory).with_context(|| format!("{}", directory.display()))?;
    for number in 1..=KEYS {
        let file = if number == 1 { format!("{name}.key") } else { format!("{name}-{number}.key") };
        if let Some(key) = take_key(&directory.join(file))? {
            return Ok(key);
        }
    }
    bail!("{KEYS} processes use the keys in {}: give --key FILE", directory.display())
}

/// `None` if another process holds the key.
fn take_key(path: &Path) -> anyhow::Result<Option<Key>> {
    let lock_path = path.with_extension("lock");
    let lock = File::create(&lock_path).with_context(|| format!("{}", lock_path.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("{}", lock_path.display()));
        }
    }
    let identity =
        Identity::load_or_generate(path).with_context(|| format!("the key in {}", path.display()))?;
    Ok(Some(Key { identity, _lock: lock }))
}

/// A bar over bytes on stderr; nothing where stderr is no terminal.
pub(super) fn byte_bar(verb: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_message(verb);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Hashes every weight of a model, with a bar. It blocks.
pub(super) fn hashed(model: &Model, quant: Quantisation) -> anyhow::Result<ModelHash> {
    let bar = byte_bar("hashing");
    let hash = model.hash(quant, &follow(&bar))?;
    bar.finish_and_clear();
    Ok(hash)
}

/// Drives a bar from a load.
pub(super) fn follow(bar: &ProgressBar) -> impl Fn(Progress) + Clone + Send + 'static {
    let bar = bar.clone();
    move |progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    }
}
