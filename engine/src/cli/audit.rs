//! `dolphin audit`: replays some of an endpoint's replies, again and again, or what a chain draws.

use std::{collections::HashSet, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use engine::{
    audit::{
        auditor::Auditor,
        draw::{Rate, Rates},
        plan::Digest,
        receipt::Receipt,
        verify::{Verdict, verify},
    },
    device::{Device, DeviceChoice},
    model::Model,
    on_device,
};
use serde_json::{Value, json};

use super::{
    auditor::{DutyArgs, Machine},
    interrupted,
    options::{CpuArgs, ModelArgs, byte_bar, follow},
};

/// Longest receipt, and list of receipts, that is read.
const MAX_BYTES: usize = 64 << 20;

/// Replay some of what nodes have computed.
///
/// With a URL: some of an endpoint's finished replies, drawn at random after they were signed. It sees the receipts of
/// its own key. Prints a line of JSON for every reply that it replayed. The beacon of each draw is made here, after
/// the receipts were fetched, and printed. Ends with 3 once a reply does not hold, if --once is given; otherwise it
/// goes on until it is stopped.
///
/// With --chain: what the beacon draws of all that nodes have posted on a chain. The account does what an auditor
/// there has to do, until it is stopped: submits rounds, calls for drawn leaves, and for those it is drawn for
/// itself, fetches what came in from the node, computes it again, and answers. Auditors have stake (dolphin stake bond
/// 50000 --role auditor), and lose some of it if they are silent once they are drawn: stop only after `dolphin audit
/// --chain --resign` and when nothing is open.
#[derive(Args, Debug)]
pub(super) struct AuditCommand {
    /// The endpoint, `http://host:port/v1`
    #[arg(required_unless_present = "chain", conflicts_with = "chain")]
    url: Option<String>,
    #[command(flatten)]
    duty: DutyArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Key of the endpoint
    #[arg(long, env = "DOLPHIN_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// How often a chunk of 64 positions of a reply is drawn, in thousandths, at a node without history;
    /// prompts are drawn at 2/5 of it
    #[arg(long, default_value_t = 50, value_name = "PER_MILLE")]
    rate: u32,
    /// Between two looks
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    every_s: u64,
    /// Look once, do what is to be done, and end
    #[arg(long)]
    once: bool,
    /// What to compute on; every device gives the same bytes
    #[arg(long, env = "DOLPHIN_DEVICE", default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    #[command(flatten)]
    cpu: CpuArgs,
}

impl AuditCommand {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        if self.duty.chain && self.duty.resign {
            return self.duty.leave().await;
        }
        let model = Arc::new(self.model.open()?);
        let bar = byte_bar("hashing");
        let (source, quant, progress) = (model.clone(), self.model.quant, follow(&bar));
        let hash = tokio::task::spawn_blocking(move || source.hash(quant, &progress)).await??;
        bar.finish_and_clear();
        let device = Device::choose(self.device, self.cpu.cpu()?)?;
        let Some(url) = self.url.clone() else {
            let machine = Machine { model, quantisation: quant, hash: Arc::new(hash), device };
            return self.duty.run(machine, Duration::from_secs(self.every_s.max(1)), self.once).await;
        };
        let rate = self.rate.min(1000);
        let (prefill, decode) = (Rate::per_mille(rate * 2 / 5), Rate::per_mille(rate));
        let auditor = Auditor::new(Rates { prefill, decode, ..Rates::default() });
        let mut round = Round { model, hash: Digest(hash.hash), device, auditor, seen: HashSet::new() };
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build()?;
        let work = async {
            loop {
                let sound = self.look(&url, &http, &mut round).await?;
                if self.once {
                    return Ok(if sound {
                        ExitCode::SUCCESS
                    } else {
                        ExitCode::from(super::verify::UNSOUND)
                    });
                }
                tokio::time::sleep(Duration::from_secs(self.every_s)).await;
            }
        };
        tokio::select! {
            outcome = work => outcome,
            () = interrupted() => Ok(ExitCode::SUCCESS),
        }
    }

    /// Looks at what was finished since the last time; whether all that was replayed holds.
    async fn look(&self, url: &str, http: &reqwest::Client, round: &mut Round) -> anyhow::Result<bool> {
        let list: Value = serde_json::from_slice(&self.get(url, http, "receipts").await?)?;
        let ids = list["data"].as_array().context("the endpoint lists no receipts")?;
        let ids: Vec<&str> = ids.iter().filter_map(|entry| entry["id"].as_str()).collect();
        let mut receipts = Vec::new();
        for id in ids.iter().filter(|id| !round.seen.contains(**id)) {
            if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                bail!("the endpoint lists a receipt with another name than receipts have");
            }
            let bytes = self.get(url, http, &format!("receipts/{id}")).await?;
            receipts.push(((*id).to_owned(), Receipt::read(&bytes[..])?));
        }
        // What the endpoint does not list any more need not be remembered.
        round.seen = ids.iter().map(|id| (*id).to_owned()).collect();
        // Known to nobody before now, when everything is signed.
        let beacon = Digest(rand::random());
        let mut sound = true;
        for (id, receipt) in receipts {
            if !round.auditor.draws(&beacon, &receipt) {
                continue;
            }
            let verdict = round.replay(receipt).await?;
            round.auditor.learn(&verdict);
            sound &= verdict.sound;
            println!("{}", json!({ "receipt": id, "beacon": beacon, "verdict": verdict }));
        }
        Ok(sound)
    }

    async fn get(&self, url: &str, http: &reqwest::Client, path: &str) -> anyhow::Result<Vec<u8>> {
        let request = http.get(format!("{url}/{path}"));
        let request = match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let mut response = request.send().await?.error_for_status()?;
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > MAX_BYTES {
                bail!("the endpoint sends more than {MAX_BYTES} bytes");
            }
        }
        Ok(bytes)
    }
}

/// What stays from one look to the next.
struct Round {
    model: Arc<Model>,
    hash: Digest,
    device: Device,
    auditor: Auditor,
    /// Receipts that were looked at.
    seen: HashSet<String>,
}

impl Round {
    async fn replay(&self, receipt: Receipt) -> anyhow::Result<Verdict> {
        let (model, hash, device) = (self.model.clone(), self.hash, self.device.clone());
        let replay =
            move || on_device!(&device, backend => verify(&receipt, &model, &hash, backend, &|_| ()));
        Ok(tokio::task::spawn_blocking(replay).await??)
    }
}
