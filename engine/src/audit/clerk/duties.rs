//! What a node has to do in the cases of its leaves.

use std::sync::Arc;

use ledger::{
    client::{Action, AuditAction, AuditTerms, Error, Ledger, Pod},
    eip712::Address,
};
use tokio::task::spawn_blocking;

use super::{
    AGAIN_S, Acting, ClerkConfig, Desk, Done, QUICK, REFUSED_S, SLOW, SelfTestError, Standing, self_test,
};
use crate::audit::{
    court::{Court, play},
    docket::{Duty, Mine, Pace},
    evidence::Evidence,
};

/// What entering the node in the registry is called.
pub(super) const REGISTER: &str = "entering this node in the registry";

impl Desk {
    /// Has the registry say where this node is, if it does not.
    pub(super) fn register(&mut self) {
        let Some(entry) = self.config.entry.clone().filter(|_| !self.registered) else { return };
        self.registered = true;
        let (ledger, account) = (self.config.ledger.clone(), self.config.book.account());
        let doing = async move {
            let entered = match ledger.node(account, entry.node).await {
                Ok(Some(known)) if known == entry => Ok(()),
                Ok(_) => ledger.submit(Action::RegisterNode(Box::new(entry))).await.map(drop),
                Err(error) => Err(error),
            };
            Done::Other(REGISTER, entered)
        };
        self.running.push(Box::pin(doing));
    }

    /// Begins what is due.
    pub(super) async fn act(&mut self, terms: &AuditTerms) {
        let (quick, slow) = (QUICK.saturating_sub(self.quick), SLOW.saturating_sub(self.slow));
        let due = self.docket().due(self.time, quick, slow);
        for (case, mine, duty) in due {
            self.begun(duty.pace(), true);
            let proof = match duty {
                Duty::Open => self.tree(mine.volume).await.and_then(|t| t.proof(mine.leaf.index as usize)),
                _ => None,
            };
            let (config, bond) = (self.config.clone(), terms.dispute_bond);
            let doing = async move {
                let done = perform(&config, case, &mine, duty, proof.unwrap_or_default(), bond).await;
                Done::Acted(case, duty, done)
            };
            self.running.push(Box::pin(doing));
        }
        let (doubted, claims) = {
            let mut docket = self.docket();
            (self.slow < SLOW && docket.take_doubt(), docket.take_claims())
        };
        if doubted {
            self.test_newest();
        }
        if claims {
            let (ledger, me) = (self.config.ledger.clone(), self.config.book.account());
            let doing = async move { Done::Other("fetching bonds", claim(ledger.as_ref(), me).await) };
            self.running.push(Box::pin(doing));
        }
    }

    /// The chain says that the node should test itself.
    fn test_newest(&mut self) {
        let sealed = self.config.book.sealed();
        let Some(volume) = sealed.iter().rev().find(|s| matches!(s.standing, Standing::Posted { .. })) else {
            return;
        };
        let planted =
            |index: &u32| self.config.book.leaf(volume.volume, *index).is_some_and(|h| h.salt.is_some());
        let Some(index) = (0..volume.count).rev().find(|index| !planted(index)) else { return };
        let (config, at) = (self.config.clone(), (volume.volume, index));
        self.begun(Pace::Slow, true);
        tracing::warn!("an audit found another result than this node's: it tests itself");
        let doing = async move {
            let tested = tested(&config, at.0, at.1).await.map(drop);
            Done::Tested(at, tested)
        };
        self.running.push(Box::pin(doing));
    }

    pub(super) async fn acted(&mut self, case: [u8; 32], duty: Duty, outcome: Result<(), Acting>) {
        let (name, now) = (hex::encode(case), self.time);
        match outcome {
            Ok(()) => {
                tracing::info!(case = name, ?duty, "done");
                self.opened += u64::from(duty == Duty::Open);
                // What it did is read from the chain; if that does not come, it is tried again.
                self.docket().tried(&case, now + REFUSED_S);
            }
            Err(Acting::Chain(error @ (Error::Refused(_) | Error::Reverted { .. }))) => {
                tracing::warn!(case = name, ?duty, %error, "the chain refuses");
                let mut docket = self.docket();
                docket.refused(&case);
                docket.tried(&case, now + REFUSED_S);
            }
            Err(Acting::Chain(error)) => {
                tracing::error!(case = name, ?duty, %error, "not done, and tried again");
                self.docket().tried(&case, now + AGAIN_S);
            }
            Err(Acting::Court(error)) => {
                tracing::error!(case = name, error, "the dispute is not played, and tried again");
                self.docket().tried(&case, now + AGAIN_S);
            }
            Err(Acting::SelfTest(error, at)) => {
                tracing::error!(case = name, %error, "the verdict is not disputed");
                self.docket().tried(&case, now + REFUSED_S);
                if matches!(error, SelfTestError::Differs) {
                    self.differs(at).await;
                }
            }
        }
    }
}

async fn tested(config: &ClerkConfig, volume: u64, index: u32) -> Result<Evidence, SelfTestError> {
    let config = config.clone();
    let tested = spawn_blocking(move || self_test(&config, volume, index)).await;
    tested.unwrap_or(Err(SelfTestError::Died))
}

async fn claim(ledger: &dyn Ledger, me: Address) -> Result<(), Error> {
    if ledger.audit_claimable(me).await? == Pod::ZERO {
        return Ok(());
    }
    ledger.submit(Action::Audit(Box::new(AuditAction::ClaimBonds))).await.map(drop)
}

async fn perform(
    config: &ClerkConfig,
    case: [u8; 32],
    mine: &Mine,
    duty: Duty,
    proof: Vec<[u8; 32]>,
    bond: Pod,
) -> Result<(), Acting> {
    let at = (mine.volume, mine.leaf.index);
    let gone = || Acting::SelfTest(crate::audit::book::BookError::NoLeaf.into(), at);
    let held = config.book.leaf(at.0, at.1).ok_or_else(gone)?;
    let action = match duty {
        Duty::Open => AuditAction::Open { leaf: mine.leaf, chunk: held.chunk, proof },
        Duty::ShowPlant => {
            AuditAction::ShowPlant { case, chunk: held.chunk, salt: held.salt.unwrap_or_default() }
        }
        Duty::Dispute | Duty::Match => {
            // Who computed wrong would only lose a bond beside the stake.
            tested(config, at.0, at.1).await.map_err(|error| Acting::SelfTest(error, at))?;
            match duty {
                Duty::Dispute => AuditAction::Dispute { case, bond },
                _ => AuditAction::MatchBond { case, chunk: held.chunk, bond },
            }
        }
        Duty::TimeOut => AuditAction::TimeOut { case },
        Duty::Play => return court(config, case, at).await,
    };
    config.ledger.submit(Action::Audit(Box::new(action))).await.map(drop).map_err(Acting::Chain)
}

/// Plays a dispute to its end.
async fn court(config: &ClerkConfig, case: [u8; 32], (volume, index): (u64, u32)) -> Result<(), Acting> {
    let hash =
        config.hash.get().cloned().ok_or_else(|| Acting::Court("the model is not hashed yet".into()))?;
    let book = config.book.clone();
    let evidence = spawn_blocking(move || book.evidence(volume, index)).await;
    let evidence = evidence.map_err(|error| Acting::Court(error.to_string()))?;
    let evidence = evidence.map_err(|error| Acting::Court(error.to_string()))?;
    let (ledger, model) = (Arc::clone(&config.ledger), config.model.clone());
    let court = Court { ledger, model, hash, poll: config.poll };
    let outcome = play(&court, case, evidence).await;
    outcome.map(drop).map_err(|error| Acting::Court(error.to_string()))
}
