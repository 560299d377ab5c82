//! `dolphin audit --chain`: an auditor of a chain.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use bytesize::ByteSize;
use clap::Args;
use engine::{
    audit::{
        drand::{Drand, EVMNET},
        plan::Digest,
        watch::{Budget, Desk, Finding, Nodes, Report, Tools, Watch, WatchConfig, Worker},
    },
    device::Device,
    model::{Model, ModelHash, Quantisation},
};
use ledger::{
    EXAMPLE_PARAMETERS,
    client::{AUDITOR_ROLE, Action, AuditAction, BeaconParameters, Ledger, Parameters, Pod, show_address},
};
use tokio::sync::mpsc;
use transport::{Identity, Limits, Transport, quic::Endpoint};

use super::{chain::ChainArgs, interrupted};

/// What an auditor of a chain goes by.
#[derive(Args, Debug)]
pub(super) struct DutyArgs {
    /// Audit for a chain, with the account's stake
    #[arg(long)]
    pub chain: bool,
    #[command(flatten)]
    at: ChainArgs,
    /// Enter the account as an auditor, if it is none yet: from the next epoch on it can be drawn
    #[arg(long, requires = "chain")]
    join: bool,
    /// Take the account out of the auditors, and end; what it was drawn for before it still has to answer
    #[arg(long, requires = "chain", conflicts_with = "join")]
    pub resign: bool,
    /// Where the beacon's rounds are, as drand serves them; may be repeated [default: drand's public servers, or the
    /// chain's own URL for a chain with a beacon of its own]
    #[arg(long, env = "DOLPHIN_BEACON", value_delimiter = ',', value_name = "URL")]
    beacon: Vec<String>,
    /// Most drawn leaves of an epoch that this auditor calls for; each costs gas
    #[arg(long, default_value_t = 64, value_name = "N")]
    draws: usize,
    /// Replays at once
    #[arg(long, default_value_t = 1, value_name = "N")]
    at_once: usize,
    /// Longest session that is computed; longer ones are left unanswered, which costs stake [default: the model's own
    /// limit]
    #[arg(long, value_name = "TOKENS")]
    most_positions: Option<u32>,
    /// Memory for what nodes hand over
    #[arg(long, default_value = "4GiB", value_name = "BYTES")]
    evidence_memory: ByteSize,
    /// Print a line of JSON for everything that is done
    #[arg(long, requires = "chain")]
    json: bool,
}

/// What computes.
pub(super) struct Machine {
    pub(super) model: Arc<Model>,
    pub(super) quantisation: Quantisation,
    pub(super) hash: Arc<ModelHash>,
    pub(super) device: Device,
}

impl DutyArgs {
    /// Audits until it is stopped, or with `once` until nothing is left to do.
    pub(super) async fn run(
        &self,
        machine: Machine,
        every: Duration,
        once: bool,
    ) -> anyhow::Result<ExitCode> {
        let (key, ledger, directory) = self.at.auditor().await?;
        let network = ledger.beacon().await?;
        let drand = Arc::new(Drand::new(&self.servers(&network)?, network)?);
        let checked = drand.check().await;
        checked
            .iter()
            .filter_map(|server| server.as_ref().err())
            .for_each(|error| eprintln!("beacon: {error}"));
        if checked.iter().all(Result::is_err) {
            bail!("none of the beacon's servers can be used: --beacon names others");
        }
        let limit = machine.model.config().max_positions;
        let positions = self.most_positions.unwrap_or(limit).min(limit);
        let budget = Budget { at_once: self.at_once, positions, memory: self.evidence_memory.as_u64() };
        // Nodes are told who asks by the account's signature: the links' own key is nobody's.
        let anywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let transport = Endpoint::bind(&Identity::generate()?, anywhere, Limits::default())?;
        let transport: Arc<dyn Transport> = Arc::new(transport);
        let Machine { model, quantisation, hash, device } = machine;
        let model_hash = hash.hash;
        let tools = Tools {
            ledger: ledger.clone(),
            key: key.clone(),
            drand,
            source: Arc::new(Nodes { transport, key: key.clone() }),
            worker: Arc::new(Worker::new(model, quantisation, hash, device, budget)),
            desk: Desk::open(&directory)?,
        };
        let config =
            WatchConfig { every, draws: self.draws, join: self.join, once, ..WatchConfig::default() };
        let (mut watch, reports) = Watch::start(tools, config).await?;
        self.say_terms(&watch, &*ledger, model_hash).await?;
        let shown = tokio::spawn(show(reports, self.json));
        tokio::select! {
            () = watch.run() => {}
            () = interrupted() => {}
        }
        watch.save().await;
        drop(watch);
        shown.await?;
        Ok(ExitCode::SUCCESS)
    }

    /// What is at stake, before anything is.
    async fn say_terms(&self, watch: &Watch, ledger: &dyn Ledger, hash: [u8; 32]) -> anyhow::Result<()> {
        let me = ledger.account().context("the account has no key")?;
        let (terms, stake) = (watch.terms(), ledger.stake(me, AUDITOR_ROLE, me).await?);
        let held = ledger.balances(me).await?.pod;
        let part = |bps: u16| Pod(stake.active.0 / 10_000 * u128::from(bps));
        eprintln!("auditor  {} with {} POD behind it", show_address(&me), stake.active);
        eprintln!("model    {}", hex::encode(hash));
        eprintln!(
            "         a case of another model, or one that this machine cannot compute in time, costs {} POD",
            part(terms.lapse_bps)
        );
        if terms.game.is_some() && held < terms.dispute_bond {
            eprintln!(
                "bond     a dispute takes {} POD and the account holds {held}: what it finds it could not defend",
                terms.dispute_bond
            );
        }
        if self.join && stake.active < terms.min_auditor_stake {
            bail!(
                "to audit takes {} POD behind the auditor's role: `dolphin stake bond {} --role auditor`",
                terms.min_auditor_stake,
                terms.min_auditor_stake
            );
        }
        Ok(())
    }

    fn servers(&self, network: &BeaconParameters) -> anyhow::Result<Vec<String>> {
        if !self.beacon.is_empty() {
            return Ok(self.beacon.clone());
        }
        let public: Parameters =
            serde_json::from_str(EXAMPLE_PARAMETERS).context("the example parameters")?;
        Ok(match public.beacon.key == network.key {
            true => EVMNET.map(str::to_owned).to_vec(),
            false => vec![self.at.rpc_url.clone()],
        })
    }

    /// Takes the account out of the auditors.
    pub(super) async fn leave(&self) -> anyhow::Result<ExitCode> {
        let (_, ledger, _) = self.at.auditor().await?;
        ledger.submit(Action::Audit(Box::new(AuditAction::Resign))).await?;
        println!(
            "resigned: what the account was drawn for, or listed for in this epoch and the next, it still has to answer"
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// Tells people, or programs, what is done.
async fn show(mut reports: mpsc::Receiver<Report>, json: bool) {
    while let Some(report) = reports.recv().await {
        if json {
            println!("{}", serde_json::json!(report));
        } else {
            println!("{}", line(&report));
        }
    }
}

fn line(report: &Report) -> String {
    let short = |case: &Digest| hex::encode(&case.0[..4]);
    match report {
        Report::Sent { action, case: Some(case), gas, .. } => {
            format!("{}  {action} ({gas} gas)", short(case))
        }
        Report::Sent { action, case: None, gas, .. } => format!("--------  {action} ({gas} gas)"),
        Report::Answer { case, result, replay_s } => {
            let found = match result {
                Finding::Equal => "the node is right",
                Finding::Differs => "the node's result is another",
                Finding::NoRows => "the node hands nothing over that could be computed",
            };
            let took = replay_s.map(|took| format!(" (replayed in {took:.1} s)")).unwrap_or_default();
            format!("{}  {found}{took}", short(case))
        }
        Report::Closed { case, account, verdict } => format!("{}  over: {account} {verdict}", short(case)),
        Report::Slashed { case, wei } => {
            let taken = wei.parse().map_or_else(|_| wei.clone(), |wei| Pod(wei).to_string());
            format!("{}  {taken} POD OF THIS ACCOUNT'S STAKE WERE TAKEN", short(case))
        }
        Report::Trouble { case, why } => {
            format!("{}  {why}", case.as_ref().map_or_else(|| "--------".to_owned(), short))
        }
        Report::Game { case } => format!("{}  the dispute is on, and is played", short(case)),
        Report::Played { case, outcome } => format!("{}  the dispute is {outcome}", short(case)),
    }
}
