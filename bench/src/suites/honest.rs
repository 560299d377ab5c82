//! Honest nodes, audited: short sessions over a swarm in this process whose nodes compute in different ways,
//! lose keys and values, die, come back and are told to hold other layers. Every chunk of every receipt is
//! replayed, and nobody may be blamed.

mod swarm;
mod tally;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;
use engine::{
    audit::{receipt::Receipt, verify::verify},
    device::{Device, DeviceChoice},
    message::Priority,
    model::Quantisation,
    request::{Event, Request, Sampling},
};
use kernels::cpu::{Cpu, Isa};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use tokio::task::{JoinSet, spawn_blocking};

use crate::{
    report::Report,
    rig::{open_model, positions},
};
use swarm::{Seat, World};
use tally::Tally;

/// Longest beginning that sessions have in common, and longest end of their own.
const SHARED_TOKENS: usize = 150;
const OWN_TOKENS: usize = 20;
/// Longest reply.
const REPLY_TOKENS: u32 = 120;
/// Beginnings that sessions choose from.
const FAMILIES: u64 = 6;
/// Longest time of a request.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How often the nodes are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// What a promised receipt gets to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Args, Clone, Debug)]
pub struct HonestArgs {
    /// Model [default: the embedded demo model]
    #[arg(long, value_name = "DIR|FILE")]
    pub model: Option<PathBuf>,
    /// How its weights are held; a quantised GGUF's as they are
    #[arg(long, default_value = "q8", value_name = "q8|q4|f32")]
    pub quant: Quantisation,
    /// Chunks to audit
    #[arg(long, default_value_t = 10_000)]
    pub chunks: u64,
    /// Nodes; each has room for half of the layers
    #[arg(long, default_value_t = 4)]
    pub nodes: usize,
    /// KV pages of a node that holds as many layers as it can
    #[arg(long, default_value_t = 16)]
    pub pages: usize,
    /// Sessions at once
    #[arg(long, default_value_t = 12)]
    pub clients: usize,
    /// Sessions between a node's end and its return, and to the next one's end
    #[arg(long, default_value_t = 12)]
    pub every: u64,
    /// Let nodes compute on a card too: the machine's, or one of the stand-in driver
    #[arg(long)]
    pub card: bool,
    /// Seed of prompts, lengths and ends
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What the clients and the driver share.
struct Shared {
    world: World,
    /// What replays run on, in turn.
    replays: Vec<Cpu>,
    seed: u64,
    next: AtomicU64,
    stop: AtomicBool,
    tally: Mutex<Tally>,
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HonestArgs {
    /// Runs everything. Stages that are blamed are counted; see [`Honest::verdict`].
    ///
    /// # Errors
    /// If the swarm cannot start, stops to serve, or a receipt cannot be checked.
    pub async fn run(&self) -> anyhow::Result<Honest> {
        ensure!(self.nodes > 2, "--nodes must be at least 3: one of them is away at times");
        ensure!(self.clients > 0 && self.every > 0, "--clients and --every must be at least 1");
        let replays = processors()?;
        let mut devices: Vec<Device> = replays.iter().cloned().map(Device::Cpu).collect();
        if self.card {
            devices.push(Device::choose(DeviceChoice::Cuda(None), replays[0].clone())?);
        }
        let context = positions(SHARED_TOKENS + OWN_TOKENS + REPLY_TOKENS as usize)?;
        let model = Arc::new(open_model(self.model.as_deref())?);
        let world = World::start(model, self.quant, context, self.pages, self.seed).await?;
        let shared = Arc::new(Shared {
            world,
            replays,
            seed: self.seed,
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            tally: Mutex::default(),
        });
        let mut seats = Vec::new();
        for index in 0..self.nodes {
            let mut seat = Seat::new(index, devices.clone());
            seat.start(&shared.world, shared.world.cut(index, self.nodes)).await?;
            seats.push(seat);
        }
        shared.world.ready().await?;
        let started = Instant::now();
        let mut clients = JoinSet::new();
        for _ in 0..self.clients {
            clients.spawn(client(shared.clone()));
        }
        let driven = self.drive(&shared, &mut seats, &mut clients).await;
        shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = clients.join_next().await {
            ended.context("a client died")??;
        }
        driven?;
        let mut tally = std::mem::take(&mut *shared.tally());
        for seat in &mut seats {
            tally.watch(seat);
            seat.stop().await;
        }
        tally.elapsed_s = started.elapsed().as_secs_f64();
        let status = shared.world.stop().await;
        (tally.replans, tally.moved) = (status.replans, status.moved);
        Ok(Honest { tally, devices: devices.iter().map(Device::describe).collect() })
    }

    /// Takes nodes away and brings them back, until enough chunks are audited.
    async fn drive(
        &self,
        shared: &Shared,
        seats: &mut [Seat],
        clients: &mut JoinSet<anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let (mut due, mut away) = (self.every, None);
        let mut progress = (Instant::now(), 0);
        loop {
            tokio::time::sleep(LOOK).await;
            let (chunks, sessions) = {
                let mut tally = shared.tally();
                seats.iter_mut().for_each(|seat| tally.watch(seat));
                (tally.chunks, tally.sessions + tally.broken)
            };
            if sessions > progress.1 {
                progress = (Instant::now(), sessions);
            }
            ensure!(progress.0.elapsed() < 2 * TIMEOUT, "no session ended for long");
            if let Some(ended) = clients.try_join_next() {
                return ended.context("a client died")?;
            }
            if chunks >= self.chunks {
                return Ok(());
            }
            if sessions < due {
                continue;
            }
            due = sessions + self.every;
            match away.take() {
                None => {
                    let index = random.random_range(0..seats.len());
                    let killed = random.random_bool(0.5);
                    shared.tally().taken(&seats[index], killed);
                    if killed {
                        seats[index].kill(&shared.world);
                    }
                    seats[index].stop().await;
                    away = Some(index);
                }
                Some(index) => {
                    seats[index].start(&shared.world, shared.world.any_part(&mut random)).await?;
                    shared.tally().restarts += 1;
                }
            }
        }
    }
}

/// The processor, in every way that it can compute.
fn processors() -> anyhow::Result<Vec<Cpu>> {
    let able = [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter_map(|isa| Cpu::new(1, isa).ok());
    let able: Vec<Cpu> = able.collect();
    ensure!(!able.is_empty(), "this processor cannot compute");
    Ok(able)
}

/// What session number `n` asks for. Every third is very short, so that the gateway expects little and admits
/// more than there is room for.
fn request(seed: u64, n: u64, vocabulary: u32) -> Request {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ n << 20);
    let family = random.random_range(0..FAMILIES);
    let short = n.is_multiple_of(3);
    let shared = if short { 3 } else { random.random_range(10..=SHARED_TOKENS) };
    let own = if short { 0 } else { random.random_range(0..=OWN_TOKENS) };
    let max_tokens = if short { random.random_range(1..4) } else { random.random_range(4..=REPLY_TOKENS) };
    let mut beginning = ChaCha8Rng::seed_from_u64(family);
    let mut prompt: Vec<u32> = (0..shared).map(|_| beginning.random_range(0..vocabulary)).collect();
    prompt.extend((0..own).map(|_| random.random_range(0..vocabulary)));
    // Greedy replies repeat themselves and are guessed well.
    let temperature = *[0.0, 0.0, 0.8].choose(&mut random).expect("there are three");
    Request {
        prompt,
        max_tokens,
        stop_tokens: Vec::new(),
        sampling: Sampling { temperature, seed: n, ..Sampling::default() },
        tenant: 0,
        priority: Priority::Normal,
        deadline: TIMEOUT,
    }
}

/// One session after the other, each audited as soon as its receipt is there.
async fn client(shared: Arc<Shared>) -> anyhow::Result<()> {
    let vocabulary = u32::try_from(shared.world.model.config().vocabulary)?;
    while !shared.stop.load(Ordering::Relaxed) {
        let n = shared.next.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let Some(id) = session(&shared, request(shared.seed, n, vocabulary)).await else { continue };
        let Some(text) = shared.world.receipts.get(&id, 0, PATIENCE).await else {
            shared.tally().missing += 1;
            continue;
        };
        let receipt = Receipt::read(text.as_bytes())?;
        let replaying = shared.clone();
        let verdict = spawn_blocking(move || {
            let (world, backend) =
                (&replaying.world, &replaying.replays[n as usize % replaying.replays.len()]);
            let verdict = verify(&receipt, &world.model, &world.hash, backend, &|_| ());
            verdict.map(|verdict| (verdict, receipt))
        });
        let (verdict, receipt) = verdict.await.context("a replay died")??;
        shared.tally().audited(&verdict, &receipt, begun);
    }
    Ok(())
}

/// The name of the receipt of a session that ended well.
async fn session(shared: &Shared, request: Request) -> Option<String> {
    let mut generation = match shared.world.submitter.submit(request).await {
        Ok(generation) => generation,
        Err(_) => {
            shared.tally().refused += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
            return None;
        }
    };
    let mut tokens = 0;
    loop {
        match generation.events.recv().await {
            Some(Event::Token { .. }) => tokens += 1,
            Some(Event::Finished(_)) => break,
            Some(Event::Failed(_)) | None => {
                shared.tally().broken += 1;
                return None;
            }
        }
    }
    let mut tally = shared.tally();
    tally.tokens += tokens;
    if generation.receipt.is_none() {
        tally.missing += 1;
    }
    generation.receipt.map(|id| id.to_string())
}

/// What happened.
#[derive(Debug)]
pub struct Honest {
    tally: Tally,
    devices: Vec<String>,
}

impl Honest {
    /// As a report.
    pub fn report(&self, args: &HonestArgs) -> Report {
        self.tally.report(args, &self.devices)
    }

    /// Whether honest nodes came away clean.
    ///
    /// # Errors
    /// If a stage is blamed, a gateway is, or too little was audited.
    pub fn verdict(&self, args: &HonestArgs) -> anyhow::Result<()> {
        let tally = &self.tally;
        ensure!(tally.blamed.is_empty(), "honest nodes are blamed: {}", tally.blamed.join("; "));
        ensure!(tally.missing == 0, "{} replies have no receipt", tally.missing);
        ensure!(tally.chunks >= args.chunks, "only {} chunks were audited", tally.chunks);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::{Cli, Suite};

    #[tokio::test(flavor = "multi_thread")]
    async fn honest_nodes_come_away_clean() {
        let command = ["bench", "honest", "--chunks", "200", "--every", "6", "--clients", "6"];
        let cli = Cli::try_parse_from(command).expect("parses");
        let Suite::Honest(args) = cli.suite else { panic!("another suite") };
        let honest = args.run().await.expect("runs");
        honest.verdict(&args).expect("nobody is blamed");
        assert!(honest.tally.restarts > 0 && honest.tally.replans > 0, "{:?}", honest.tally);
    }
}
