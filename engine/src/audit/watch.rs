//! An auditor at work: follows a chain's events, does what [`duty`] says is due, fetches rounds of the
//! beacon and nodes' evidence, and replays. Whatever fails is tried again later; whatever must not be lost is on the
//! [`Desk`] before it is relied on.
//!
//! ```text
//! known     what events have told
//! epochs    what is due once in an epoch: membership, the list, the beacon, draws
//! cases     what is due in cases
//! work      computing answers; machine, on a device
//! desk      what survives a crash
//! source    where evidence comes from
//! ```

mod cases;
mod desk;
mod epochs;
mod known;
mod machine;
mod source;
mod work;

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use ledger::{
    audit::LeafId,
    client::{
        Action, AuditAction, AuditEvent, AuditTerms, CaseVerdict, Cursor, Error, Event, Key, Ledger, Receipt,
    },
    eip712::{Address, keccak},
};
use serde::Serialize;
use thiserror::Error as ThisError;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};

pub use self::{
    desk::Desk,
    known::Host,
    source::{EvidenceSource, Nodes, Wanted},
    work::{Budget, WorkError, Worker},
};
use self::{
    known::{Known, Saved},
    work::Answer,
};
use super::{court, drand::Drand, duty, plan::Digest};
use crate::payment::{now, store::StoreError};

const SALT_DOMAIN: &[u8] = b"dolphin/answer salt/1";
/// Most looks for events in one turn.
const MOST_LOOKS: usize = 64;
/// Waits after something failed, doubled each time.
const AGAIN: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(300)];
/// How often what was read is saved.
const SAVE_EVERY: Duration = Duration::from_secs(600);
/// Reports that may wait for whoever shows them; more are dropped.
pub const REPORTS: usize = 256;

/// How an auditor goes about it.
#[derive(Clone, Copy, Debug)]
pub struct WatchConfig {
    /// Between two looks at the chain.
    pub every: Duration,
    /// How long each auditor waits for each that is before it, in what all can send.
    pub stagger: Duration,
    /// Most leaves of an epoch that it calls for.
    pub draws: usize,
    /// Whether to enter the account as an auditor.
    pub join: bool,
    /// Whether to end when nothing is left to do.
    pub once: bool,
}

impl Default for WatchConfig {
    fn default() -> Self {
        let (every, stagger) = (Duration::from_secs(10), Duration::from_secs(20));
        Self { every, stagger, draws: 64, join: false, once: false }
    }
}

/// What an auditor works with.
pub struct Tools {
    /// The chain, with the auditor's key.
    pub ledger: Arc<dyn Ledger>,
    /// The same key, which makes salts.
    pub key: Key,
    /// The beacon.
    pub drand: Arc<Drand>,
    /// Nodes.
    pub source: Arc<dyn EvidenceSource>,
    /// What computes.
    pub worker: Arc<Worker>,
    /// What survives.
    pub desk: Desk,
}

/// Why an auditor ends.
#[derive(Debug, ThisError)]
pub enum WatchError {
    /// The chain says that this cannot work.
    #[error("the chain: {0}")]
    Chain(#[from] Error),
    /// Answers that were given before cannot be read.
    #[error("the answers given so far: {0}")]
    Store(#[from] StoreError),
}

/// What an auditor has done or seen, for people and programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are called what they are")]
pub enum Report {
    /// A transaction is confirmed.
    Sent { action: &'static str, case: Option<Digest>, transaction: Digest, gas: u64 },
    /// A case was computed. Without rows there was nothing to replay.
    Answer { case: Digest, result: Finding, replay_s: Option<f64> },
    /// A case of this auditor's is over.
    Closed { case: Digest, account: String, verdict: &'static str },
    /// Stake of this account was taken.
    Slashed { case: Digest, wei: String },
    /// Something cannot be done now.
    Trouble { case: Option<Digest>, why: String },
    /// The game of a case runs, and this auditor plays it.
    Game { case: Digest },
    /// It is over.
    Played { case: Digest, outcome: &'static str },
}

/// What came of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// The node's result.
    Equal,
    /// Another.
    Differs,
    /// The node gave nothing to compute it from.
    NoRows,
}

/// Something that is done once at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Matter {
    Case([u8; 32]),
    /// Calling for a leaf that is no case yet, by the case's number.
    Leaf([u8; 32]),
    Join,
    Claim,
    /// Of an epoch: the list of auditors, the beacon's round, which leaves are drawn.
    List(u32),
    Round(u32),
    Lots(u32),
}

impl Matter {
    fn case(self) -> Option<[u8; 32]> {
        match self {
            Self::Case(case) | Self::Leaf(case) => Some(case),
            _ => None,
        }
    }

    /// What auditors' ranks are made of.
    fn about(self) -> [u8; 32] {
        match self {
            Self::Case(case) | Self::Leaf(case) => case,
            Self::List(epoch) => keccak(&[&b"list"[..], &epoch.to_be_bytes()].concat()),
            Self::Round(epoch) => keccak(&[&b"round"[..], &epoch.to_be_bytes()].concat()),
            _ => [0; 32],
        }
    }
}

/// What became of it.
enum Outcome {
    Sent(&'static str, Result<Receipt, Error>),
    Answered(Result<Answer, WorkError>),
    Lots(Vec<(LeafId, [u8; 32])>),
    Played(court::Outcome),
    /// Nothing was to be done after all.
    Nothing,
    Failed(String),
}

/// When something is done next.
#[derive(Default)]
struct Pace {
    /// Since when others could have sent it.
    offered: Option<Instant>,
    /// Not before then, after it failed so often.
    again: Option<Instant>,
    failures: u32,
}

/// See the module.
pub struct Watch {
    tools: Tools,
    config: WatchConfig,
    me: Address,
    terms: AuditTerms,
    known: Known,
    cursor: Cursor,
    members: Vec<Address>,
    /// What was computed, by case.
    answers: HashMap<[u8; 32], [u8; 32]>,
    /// Drawn leaves that are to be called for, by epoch.
    lots: HashMap<u32, Vec<(LeafId, [u8; 32])>>,
    jobs: JoinSet<(Matter, Outcome)>,
    busy: HashSet<Matter>,
    paces: HashMap<Matter, Pace>,
    /// Told once.
    told: HashSet<([u8; 32], &'static str)>,
    reports: mpsc::Sender<Report>,
    saved: Instant,
    /// Bonds and rewards may have come in.
    claimable: bool,
    /// The chain did not answer the last time.
    away: bool,
}

impl Watch {
    /// Reads what an earlier process left, and what audits go by. Reports are to be read from the receiver.
    ///
    /// # Errors
    /// [`WatchError`] if the chain has no audits or does not answer, or if answers cannot be read.
    pub async fn start(
        tools: Tools,
        config: WatchConfig,
    ) -> Result<(Self, mpsc::Receiver<Report>), WatchError> {
        let me = tools.ledger.account().ok_or(Error::NoKey)?;
        let terms = tools.ledger.audit_terms().await?;
        let answers = tools.desk.answers()?;
        let (reports, receiver) = mpsc::channel(REPORTS);
        let mut watch = Self {
            me,
            terms,
            known: Known::default(),
            cursor: Cursor::from_block(0),
            members: Vec::new(),
            answers,
            lots: HashMap::new(),
            jobs: JoinSet::new(),
            busy: HashSet::new(),
            paces: HashMap::new(),
            told: HashSet::new(),
            reports,
            saved: Instant::now(),
            claimable: true,
            away: false,
            tools,
            config,
        };
        watch.begin();
        Ok((watch, receiver))
    }

    /// What audits go by.
    pub fn terms(&self) -> &AuditTerms {
        &self.terms
    }

    /// Goes on from what was saved.
    fn begin(&mut self) {
        let first = self.tools.ledger.deployment().block;
        let fresh = || Saved { block: first, ..Saved::default() };
        let saved = self.tools.desk.saved().filter(|saved| saved.block >= first).unwrap_or_else(fresh);
        self.cursor = Cursor::from_block(saved.block);
        let block = saved.block;
        self.known = Known::from_saved(saved, self.me);
        self.answers.keys().for_each(|case| self.known.follow(case, block));
        self.lots.clear();
    }

    /// Works until it is dropped; with [`WatchConfig::once`] until nothing is left to do. A chain that is away is
    /// waited for.
    pub async fn run(&mut self) {
        loop {
            let busy_before = self.busy.len();
            let wait = match self.look().await {
                Ok(behind) => {
                    self.away = false;
                    let started = self.busy.len() > busy_before;
                    if self.config.once && !behind && !started && self.jobs.is_empty() {
                        break;
                    }
                    if behind { Duration::ZERO } else { self.config.every }
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.away, true) {
                        self.trouble(None, format!("the chain: {error}"));
                    }
                    self.config.every
                }
            };
            tokio::select! {
                Some(done) = self.jobs.join_next() => self.done(done),
                () = sleep(wait) => {}
            }
            while let Some(done) = self.jobs.try_join_next() {
                self.done(done);
            }
        }
        self.save().await;
    }

    /// One look at the chain, and what follows. Whether there is more to read at once.
    async fn look(&mut self) -> Result<bool, Error> {
        if !self.read().await? {
            return Ok(true);
        }
        let head = self.tools.ledger.head().await?;
        // The next block's time: a chain without transactions may make none for a long while.
        let now = head.time.max(now());
        self.epochs(now).await?;
        self.cases(now).await?;
        if self.saved.elapsed() > SAVE_EVERY {
            self.save().await;
        }
        Ok(false)
    }

    /// Reads events. Whether all there are were read.
    async fn read(&mut self) -> Result<bool, Error> {
        for _ in 0..MOST_LOOKS {
            let news = self.tools.ledger.events(&self.cursor).await?;
            if !news.undone.is_empty() {
                tracing::warn!(events = news.undone.len(), "events were undone: reading anew");
                self.begin();
                return Ok(false);
            }
            for logged in &news.events {
                self.known.take(logged);
                if let Event::Audit(AuditEvent::Penalised { case, operator, taken, .. }) = &logged.event
                    && *operator == self.me
                {
                    self.report(Report::Slashed { case: Digest(*case), wei: taken.0.to_string() });
                }
            }
            self.cursor = news.cursor;
            if !news.more {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes down how far the chain was read, so that the next process need not read all of it again.
    pub async fn save(&mut self) {
        self.saved = Instant::now();
        let (desk, saved) = (self.tools.desk.clone(), self.known.to_saved(self.cursor.block()));
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || desk.save(&saved)).await {
            tracing::warn!(%error, "what was read of the chain is not saved");
        }
    }

    /// The same whenever it is asked for, so that losing files loses no answer; and nobody's to guess, since it
    /// takes the key.
    fn salt(&self, case: &[u8; 32]) -> [u8; 32] {
        keccak(&self.tools.key.sign(&keccak(&[SALT_DOMAIN, case].concat())))
    }

    fn own(&self, case: &[u8; 32]) -> Option<duty::Own> {
        let roots = *self.answers.get(case)?;
        Some(duty::Own { roots, salt: self.salt(case) })
    }

    /// Whether nothing holds a matter up.
    fn is_free(&self, matter: Matter) -> bool {
        let waits =
            self.paces.get(&matter).and_then(|pace| pace.again).is_some_and(|again| Instant::now() < again);
        !waits && !self.busy.contains(&matter)
    }

    /// Whether it is this auditor's turn with what anybody can send.
    fn is_turn(&mut self, matter: Matter) -> bool {
        let rank = duty::rank(&matter.about(), &self.me, &self.members) as u32;
        let pace = self.paces.entry(matter).or_default();
        let since = *pace.offered.get_or_insert_with(Instant::now);
        self.config.once || since.elapsed() >= self.config.stagger * rank
    }

    /// There is nothing to send any more.
    fn withdraw(&mut self, matter: Matter) {
        if let Some(pace) = self.paces.get_mut(&matter) {
            pace.offered = None;
        }
    }

    fn start_job(&mut self, matter: Matter, job: impl Future<Output = Outcome> + Send + 'static) {
        self.busy.insert(matter);
        self.jobs.spawn(async move { (matter, job.await) });
    }

    fn send(&mut self, matter: Matter, action: AuditAction) {
        let ledger = self.tools.ledger.clone();
        self.start_job(matter, async move { submit(&*ledger, action).await });
    }

    fn done(&mut self, done: Result<(Matter, Outcome), tokio::task::JoinError>) {
        let (matter, outcome) = match done {
            Ok(done) => done,
            Err(error) => {
                // Which it was is not known any more, so all are looked at anew.
                self.busy.clear();
                return self.trouble(None, format!("a task of the auditor's died: {error}"));
            }
        };
        self.busy.remove(&matter);
        let case = matter.case().map(Digest);
        let failed = match outcome {
            Outcome::Sent(action, Ok(receipt)) => {
                let (transaction, gas) = (Digest(receipt.transaction), receipt.gas);
                self.report(Report::Sent { action, case, transaction, gas });
                None
            }
            // Somebody was faster, or it was done before: the chain's state says what is next.
            Outcome::Sent(action, Err(error @ (Error::Refused(_) | Error::Reverted { .. }))) => {
                tracing::debug!(?matter, action, %error, "not taken");
                let is_money = error.is("ERC20InsufficientBalance") || error.is("ERC20InsufficientAllowance");
                Some(if is_money { format!("{action}: {error}") } else { String::new() })
            }
            Outcome::Sent(action, Err(error)) => Some(format!("{action}: {error}")),
            Outcome::Answered(Ok(answer)) => {
                self.answered(answer);
                None
            }
            Outcome::Answered(Err(error)) => {
                let why = format!("{error}; silence costs {} of 10000 of the stake", self.terms.lapse_bps);
                let report = Report::Trouble { case, why };
                self.tell_once(matter.about(), "unanswered", report);
                Some(String::new())
            }
            Outcome::Lots(leaves) => {
                if let Matter::Lots(epoch) = matter {
                    self.lots.insert(epoch, leaves);
                }
                None
            }
            Outcome::Played(outcome) => {
                let (case, outcome) = (Digest(matter.about()), outcome_name(outcome));
                self.report(Report::Played { case, outcome });
                None
            }
            Outcome::Nothing => None,
            Outcome::Failed(why) => Some(why),
        };
        if let Some(id) = matter.case()
            && let Some(tracked) = self.known.cases.get_mut(&id)
        {
            tracked.stale = true;
        }
        match failed {
            None => _ = self.paces.remove(&matter),
            Some(why) => {
                let pace = self.paces.entry(matter).or_default();
                let wait = (AGAIN[0] * 2u32.saturating_pow(pace.failures)).min(AGAIN[1]);
                (pace.again, pace.failures) = (Some(Instant::now() + wait), (pace.failures + 1).min(10));
                if !why.is_empty() {
                    self.trouble(matter.case(), why);
                }
            }
        }
    }

    fn answered(&mut self, answer: Answer) {
        let (case, roots) = (answer.kept.case, answer.kept.roots);
        self.answers.insert(case.0, roots.0);
        let result = match (answer.equal, roots.0 == duty::NO_ROWS) {
            (true, _) => Finding::Equal,
            (_, true) => Finding::NoRows,
            _ => Finding::Differs,
        };
        let replay_s = answer.replay.map(|replay| replay.as_secs_f64());
        self.report(Report::Answer { case, result, replay_s });
    }

    fn trouble(&mut self, case: Option<[u8; 32]>, why: String) {
        self.report(Report::Trouble { case: case.map(Digest), why });
    }

    fn tell_once(&mut self, case: [u8; 32], kind: &'static str, report: Report) {
        if self.told.insert((case, kind)) {
            self.report(report);
        }
    }

    fn report(&mut self, report: Report) {
        match &report {
            Report::Trouble { why, .. } => tracing::warn!(%why, "an audit"),
            Report::Slashed { .. } => tracing::error!(?report, "stake was taken"),
            _ => tracing::info!(?report, "an audit"),
        }
        // Whoever shows them may be slow; the log has them.
        let _ = self.reports.try_send(report);
    }
}

async fn submit(ledger: &dyn Ledger, action: AuditAction) -> Outcome {
    let name = name_of(&action);
    Outcome::Sent(name, ledger.submit(Action::Audit(Box::new(action))).await)
}

/// What people call an action.
fn name_of(action: &AuditAction) -> &'static str {
    match action {
        AuditAction::SubmitRound { .. } => "beacon",
        AuditAction::Post { .. } => "post",
        AuditAction::Join { .. } => "join",
        AuditAction::Resign => "resign",
        AuditAction::Drop(_) => "drop",
        AuditAction::ListAuditors => "list",
        AuditAction::Draw(_) => "draw",
        AuditAction::Open { .. } => "open",
        AuditAction::Assign { .. } => "assign",
        AuditAction::Commit { .. } => "commit",
        AuditAction::Differ { .. } => "differ",
        AuditAction::Reveal { .. } => "reveal",
        AuditAction::TimeOut { .. } => "time out",
        AuditAction::ShowPlant { .. } => "show plant",
        AuditAction::Dispute { .. } => "dispute",
        AuditAction::MatchBond { .. } => "match bond",
        AuditAction::Play { .. } => "play",
        AuditAction::ClaimBonds => "claim",
    }
}

/// What people call a verdict.
fn verdict_name(verdict: Option<CaseVerdict>) -> &'static str {
    match verdict {
        Some(CaseVerdict::Passed) => "passed",
        Some(CaseVerdict::Silent) => "silent",
        Some(CaseVerdict::Withheld) => "withheld",
        Some(CaseVerdict::Faulty) => "faulty",
        Some(CaseVerdict::Planted) => "planted",
        Some(CaseVerdict::Undecided) | None => "undecided",
    }
}

/// What people call the end of a game.
fn outcome_name(outcome: court::Outcome) -> &'static str {
    match outcome {
        court::Outcome::Won { .. } => "won",
        court::Outcome::Lost { .. } => "lost",
        court::Outcome::Abandoned => "abandoned",
        court::Outcome::Undecided => "undecided",
    }
}
