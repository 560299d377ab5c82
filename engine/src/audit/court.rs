//! Plays one side of a dispute to its end. Everything that the game needs is read from the chain at each move, so
//! that whoever plays can stop at any time and begin anew; the trace is computed on a thread of its own, beside
//! whatever else the process does. `docs/disputes.md` has the rules.

mod counsel;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use ledger::{
    audit::roots,
    client::{Action, AuditAction, CaseStage, Dispute, DisputeEvent, DisputeTurn, Error, Ledger, Party, Pod},
    dispute::{Gap, Move},
    eip712::Address,
};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use self::counsel::{Answer, Counsel};
use super::{
    evidence::Evidence,
    trace::{
        Trace, TraceError,
        dispute::Side,
        gap::{Part, gap},
    },
};
use crate::model::{Model, ModelHash};

/// One trace is computed at a time, however many disputes a process plays: the rest of it needs cores, too.
static TRACING: Mutex<()> = Mutex::new(());
/// How often the pause doubles after which something is tried again that the chain refuses.
const DOUBLINGS: u32 = 8;
/// Looks at a chain that shows no end of a dispute that is over.
const LOOKS: u32 = 10;

/// What disputes are played with.
#[derive(Clone)]
pub struct Court {
    /// The chain, with the key of the side that is played.
    pub ledger: Arc<dyn Ledger>,
    /// The model.
    pub model: Arc<Model>,
    /// Its hash at the quantisation of the plan.
    pub hash: Arc<ModelHash>,
    /// Between two looks at the chain.
    pub poll: Duration,
}

/// How a dispute ended for the side that was played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was right, or the other side fell silent.
    Won {
        /// By the clock.
        silence: bool,
    },
    /// It was wrong, or fell silent.
    Lost {
        /// By the clock.
        silence: bool,
    },
    /// It cannot be tried, and bonds went back.
    Abandoned,
    /// It did not end in its time, and bonds went back.
    Undecided,
}

/// Why a dispute is not played any further. Nothing is lost by it but time: it can be played again from where it is.
#[derive(Debug, Error)]
pub enum CourtError {
    /// The chain cannot be used as it is configured.
    #[error(transparent)]
    Chain(#[from] Error),
    /// There is no such dispute.
    #[error("the chain has no dispute over this case")]
    NoDispute,
    /// The dispute is between others.
    #[error("the dispute is between others than this account")]
    NotOurs,
    /// The evidence is not of what is in dispute.
    #[error("the evidence is of another {0} than the dispute")]
    OtherEvidence(&'static str),
    /// There is no trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The thread that finds the moves has ended.
    #[error("the thread that finds the moves has ended")]
    Stopped,
}

/// Plays the side of the ledger's account in the dispute over a case to its end, and claims what it is then owed.
/// Whatever passes is waited for; what the chain refuses is tried again less and less often.
///
/// # Errors
/// [`CourtError`]. It may be called again at any time, also from another process.
pub async fn play(court: &Court, case: [u8; 32], evidence: Evidence) -> Result<Outcome, CourtError> {
    play_as(court, case, evidence, honest).await
}

/// Makes the side that is played.
type Make = for<'a> fn(&'a Model, &'a ModelHash, &Evidence) -> Result<Side<'a>, TraceError>;

fn honest<'a>(model: &'a Model, hash: &'a ModelHash, evidence: &Evidence) -> Result<Side<'a>, TraceError> {
    let part = part(evidence);
    let trace = Trace::new(model, part.quantisation, part.layers, evidence.entered.clone())?;
    Ok(Side::of(trace, hash))
}

fn part(evidence: &Evidence) -> Part {
    let planned = evidence.planned();
    let layers = planned.map_or(0..0, |stage| stage.from as usize..stage.to as usize);
    Part { quantisation: evidence.plan.terms.quantisation, layers, to: evidence.to() }
}

async fn play_as(
    court: &Court,
    case: [u8; 32],
    evidence: Evidence,
    make: Make,
) -> Result<Outcome, CourtError> {
    let mut seat = Seat::new(court, case, evidence, make)?;
    loop {
        match seat.look().await {
            Ok(Some(outcome)) => {
                tracing::info!(case = seat.name, ?outcome, "the dispute is over");
                seat.claim().await;
                return Ok(outcome);
            }
            Ok(None) => {}
            Err(CourtError::Chain(error)) if !is_final(&error) => {
                tracing::warn!(case = seat.name, %error, "the dispute waits for the chain");
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(court.poll).await;
    }
}

/// Whether asking the chain again is of no use.
fn is_final(error: &Error) -> bool {
    matches!(
        error,
        Error::NoKey | Error::Invalid(_) | Error::WrongChain { .. } | Error::Stopped | Error::Store { .. }
    )
}

/// The state of a game, at which a move is tried: whose clock stood at what.
type State = (DisputeTurn, u32, u64, u64);

/// A place in a dispute.
struct Seat<'c> {
    court: &'c Court,
    case: [u8; 32],
    /// The case, for logs.
    name: String,
    account: Address,
    evidence: Evidence,
    make: Make,
    bench: Bench,
    /// Where something was tried in vain, how often, and when to try again.
    failed: Option<(State, u32, Instant)>,
    /// Looks at a dispute that is gone without an end.
    gone: u32,
}

/// Who finds the moves.
enum Bench {
    /// Nobody yet.
    Empty,
    /// It computes the trace.
    Preparing(mpsc::Sender<Ask>, Brief),
    /// It can be asked.
    Ready(mpsc::Sender<Ask>),
    /// There is no trace, which this shows.
    Untraceable(Box<Gap>),
}

/// A question for the next move.
struct Ask {
    dispute: Dispute,
    events: Vec<DisputeEvent>,
    reply: oneshot::Sender<Result<Answer, TraceError>>,
}

impl<'c> Seat<'c> {
    fn new(court: &'c Court, case: [u8; 32], evidence: Evidence, make: Make) -> Result<Self, CourtError> {
        let account = court.ledger.account().ok_or(Error::NoKey)?;
        let name = hex::encode(&case[..4]);
        let bench = Bench::Empty;
        Ok(Self { court, case, name, account, evidence, make, bench, failed: None, gone: 0 })
    }

    /// Looks how the dispute stands and does what is to be done; how it ended if it is over.
    async fn look(&mut self) -> Result<Option<Outcome>, CourtError> {
        let ledger = &self.court.ledger;
        // In this order: a case that is over and has a dispute has run out of time.
        let stage = ledger.audit_case(self.case).await?.map(|case| case.stage);
        let Some(dispute) = ledger.dispute(self.case).await? else { return self.ended().await };
        if stage == Some(CaseStage::Closed) {
            return Ok(Some(Outcome::Undecided));
        }
        let party = dispute.party(&self.account).ok_or(CourtError::NotOurs)?;
        self.prepare(&dispute)?;
        if let Bench::Untraceable(gap) = &self.bench {
            let step = Move::Abandon { plan: self.evidence.plan.bytes(), gap: gap.clone() };
            self.submit(&dispute, step).await?;
            return Ok(None);
        }
        let is_late = ledger.head().await?.time > dispute.deadline();
        match dispute.turn.party() == party {
            false if is_late => self.submit(&dispute, Move::Expire).await?,
            true if is_late => self.fail(&dispute, "this side's time is up"),
            true => self.answer(&dispute).await?,
            false => {}
        }
        Ok(None)
    }

    /// Begins to compute the trace, and sees whether that is done.
    fn prepare(&mut self, dispute: &Dispute) -> Result<(), CourtError> {
        if let Bench::Empty = self.bench {
            fits(&self.evidence, dispute, &self.court.hash)?;
            let (asks, brief) = hear(self.court, self.evidence.clone(), self.make)?;
            tracing::info!(case = self.name, positions = dispute.to, "a dispute is played");
            self.bench = Bench::Preparing(asks, brief);
        }
        let Bench::Preparing(asks, brief) = &mut self.bench else { return Ok(()) };
        self.bench = match brief.try_recv() {
            Ok(found) => match found? {
                Some(gap) => Bench::Untraceable(gap),
                None => Bench::Ready(asks.clone()),
            },
            Err(oneshot::error::TryRecvError::Empty) => return Ok(()),
            Err(oneshot::error::TryRecvError::Closed) => return Err(CourtError::Stopped),
        };
        Ok(())
    }

    /// Makes this side's move, if it is known by now.
    async fn answer(&mut self, dispute: &Dispute) -> Result<(), CourtError> {
        let Bench::Ready(asks) = &self.bench else { return Ok(()) };
        if !self.may_try(dispute) {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        let events = self.court.ledger.dispute_events(self.case).await?;
        let ask = Ask { dispute: dispute.clone(), events, reply };
        asks.send(ask).await.map_err(|_| CourtError::Stopped)?;
        match answer.await.map_err(|_| CourtError::Stopped)?? {
            Answer::Move(step) => self.submit(dispute, *step).await,
            Answer::Nothing(reason) => {
                self.fail(dispute, reason);
                Ok(())
            }
        }
    }

    async fn submit(&mut self, dispute: &Dispute, step: Move) -> Result<(), CourtError> {
        if !self.may_try(dispute) {
            return Ok(());
        }
        let name = step.name();
        let action = AuditAction::Play { case: self.case, step: Box::new(step) };
        match self.court.ledger.submit(Action::Audit(Box::new(action))).await {
            Ok(receipt) => {
                let gas = receipt.gas;
                tracing::info!(case = self.name, step = name, gas, "a move in a dispute");
            }
            // The other side may have moved, or the node that answers is behind.
            Err(error @ (Error::Refused(_) | Error::Reverted { .. })) => {
                self.fail(dispute, &format!("{name}: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Whether something is to be tried where the dispute stands: not too soon after it was in vain.
    fn may_try(&self, dispute: &Dispute) -> bool {
        match self.failed {
            Some((at, _, next)) if at == state(dispute) => Instant::now() >= next,
            _ => true,
        }
    }

    /// Remembers that there was nothing to do, or that it did not work.
    fn fail(&mut self, dispute: &Dispute, reason: &str) {
        if !self.may_try(dispute) {
            return;
        }
        let at = state(dispute);
        let times = self.failed.filter(|(before, ..)| *before == at).map_or(1, |(_, times, _)| times + 1);
        let pause = self.court.poll.saturating_mul(1 << times.min(DOUBLINGS));
        self.failed = Some((at, times, Instant::now() + pause));
        let (case, turn) = (&self.name, dispute.turn);
        tracing::warn!(case, ?turn, reason, times, ?pause, "no move in a dispute");
    }

    /// How a dispute ended that is gone.
    async fn ended(&mut self) -> Result<Option<Outcome>, CourtError> {
        let events = self.court.ledger.dispute_events(self.case).await?;
        let accused = events.iter().find_map(|event| match event {
            DisputeEvent::Opened { accused, accuser } => Some((*accused, *accuser)),
            _ => None,
        });
        let party = match accused {
            Some((accused, _)) if accused == self.account => Some(Party::Accused),
            Some((_, accuser)) if accuser == self.account => Some(Party::Accuser),
            Some(_) => return Err(CourtError::NotOurs),
            None => None,
        };
        match events.last() {
            Some(&DisputeEvent::Resolved { accused_won, silence }) => {
                let has_won = accused_won == (party == Some(Party::Accused));
                Ok(Some(if has_won { Outcome::Won { silence } } else { Outcome::Lost { silence } }))
            }
            Some(DisputeEvent::Abandoned) => Ok(Some(Outcome::Abandoned)),
            // The node that answers may be behind.
            _ if self.gone < LOOKS => {
                self.gone += 1;
                Ok(None)
            }
            _ => Err(CourtError::NoDispute),
        }
    }

    /// Fetches what the account has from disputes. Somebody else may be about it, too.
    async fn claim(&self) {
        let ledger = &self.court.ledger;
        match ledger.audit_claimable(self.account).await {
            Ok(amount) if amount > Pod::ZERO => {
                let claimed = ledger.submit(Action::Audit(Box::new(AuditAction::ClaimBonds))).await;
                match claimed {
                    Ok(_) => tracing::info!(case = self.name, %amount, "POD claimed after a dispute"),
                    Err(error) => tracing::warn!(case = self.name, %error, "nothing claimed after a dispute"),
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(case = self.name, %error, "nothing claimed after a dispute"),
        }
    }
}

fn state(dispute: &Dispute) -> State {
    (dispute.turn, dispute.level, dispute.index, dispute.moved)
}

/// Whether evidence is of what is in dispute.
fn fits(evidence: &Evidence, dispute: &Dispute, hash: &ModelHash) -> Result<(), CourtError> {
    let ensure = |holds: bool, what| if holds { Ok(()) } else { Err(CourtError::OtherEvidence(what)) };
    ensure(evidence.plan.hash().0 == dispute.plan, "session")?;
    ensure(evidence.plan.terms.model.0 == dispute.model && hash.hash == dispute.model, "model")?;
    ensure(evidence.stage == dispute.stage, "stage")?;
    ensure(evidence.to() == dispute.to, "length")?;
    ensure(roots(&evidence.in_roots()) == dispute.in_roots, "input")
}

/// Comes when the trace is computed: what shows that there is none, if there is none.
type Brief = oneshot::Receiver<Result<Option<Box<Gap>>, TraceError>>;

/// Starts the thread that finds the moves. It ends when nobody can ask any more, or there is no trace.
fn hear(court: &Court, evidence: Evidence, make: Make) -> Result<(mpsc::Sender<Ask>, Brief), CourtError> {
    let (model, hash) = (court.model.clone(), court.hash.clone());
    let (asks, mut asked) = mpsc::channel::<Ask>(1);
    let (report, brief) = oneshot::channel();
    let work = move || {
        let side = match gap(&model, &hash, &part(&evidence)) {
            Ok(None) => {
                let _alone = TRACING.lock().unwrap_or_else(PoisonError::into_inner);
                make(&model, &hash, &evidence)
            }
            Ok(Some(gap)) => return drop(report.send(Ok(Some(Box::new(gap))))),
            Err(error) => Err(error),
        };
        let mut counsel = match side {
            Ok(side) => Counsel::new(side, evidence.plan.bytes()),
            Err(error) => return drop(report.send(Err(error))),
        };
        if report.send(Ok(None)).is_err() {
            return;
        }
        while let Some(Ask { dispute, events, reply }) = asked.blocking_recv() {
            // Who asked may be gone.
            let _ = reply.send(counsel.answer(&dispute, &events));
        }
    };
    thread::Builder::new().name("dispute".into()).spawn(work).map_err(|_| CourtError::Stopped)?;
    Ok((asks, brief))
}
