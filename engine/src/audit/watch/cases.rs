//! What is due in cases. A case is asked for again when something has happened in it, when its time is over, and
//! before anything is sent.

use std::time::Duration;

use ledger::client::{AuditAction, CaseStage, Error, Pod, show_address};
use tokio::time::Instant;

use super::{Matter, Outcome, Report, Tools, Watch, verdict_name, work::Task};
use crate::audit::{
    court::{Court, play},
    duty::{Asker, Duty, Seen, due},
    plan::Digest,
    watch::source::Wanted,
};

/// Most cases that are asked for in one look: its own come first.
const MOST_READS: usize = 64;
/// When a case is asked for again that the chain does not know.
const UNKNOWN: Duration = Duration::from_secs(30);
/// How long evidence for a game is asked for, where it is not on disk.
const GAME_S: u64 = 3600;

impl Watch {
    pub(super) async fn cases(&mut self, now: u64) -> Result<(), Error> {
        let order = |id: &[u8; 32]| {
            let tracked = self.known.cases.get(id);
            let deadline = tracked.and_then(|tracked| tracked.case.as_ref()).map_or(0, |case| case.deadline);
            (!tracked.is_some_and(|tracked| tracked.mine), deadline, *id)
        };
        let mut ids: Vec<[u8; 32]> = self.known.cases.keys().copied().collect();
        ids.sort_unstable_by_key(order);
        let mut reads = MOST_READS;
        for id in ids {
            if self.is_free(Matter::Case(id)) {
                self.case(id, now, &mut reads).await?;
            }
        }
        if self.claimable && self.is_free(Matter::Claim) {
            if self.tools.ledger.audit_claimable(self.me).await? > Pod::ZERO {
                self.send(Matter::Claim, AuditAction::ClaimBonds);
            }
            self.claimable = false;
        }
        Ok(())
    }

    async fn case(&mut self, id: [u8; 32], now: u64, reads: &mut usize) -> Result<(), Error> {
        let matter = Matter::Case(id);
        let unread = |watch: &Self| {
            watch.known.cases.get(&id).is_none_or(|tracked| tracked.stale || tracked.case.is_none())
        };
        let mut fresh = false;
        if unread(self) {
            if *reads == 0 {
                return Ok(());
            }
            (*reads, fresh) = (*reads - 1, true);
            self.refresh(id).await?;
        }
        let duty = self.duty(id, now);
        let acts = match duty {
            Duty::None => {
                self.withdraw(matter);
                return Ok(());
            }
            Duty::Offer(_) => self.is_turn(matter) && *reads > 0,
            _ => *reads > 0,
        };
        if !acts {
            return Ok(());
        }
        if !fresh {
            *reads -= 1;
            self.refresh(id).await?;
        }
        match self.duty(id, now) {
            Duty::None => self.withdraw(matter),
            Duty::Offer(action) | Duty::Send(action) => self.send(matter, action),
            Duty::Compute { until } => self.compute(id, until.saturating_sub(now)),
            Duty::Play => {
                self.tell_once(id, "game", Report::Game { case: Digest(id) });
                self.play(id);
            }
            Duty::Stranger => {
                let why =
                    "this account stands by an answer that is not this machine's: does another audit for it?";
                self.tell_once(id, "stranger", Report::Trouble { case: Some(Digest(id)), why: why.into() });
            }
        }
        Ok(())
    }

    fn duty(&self, id: [u8; 32], now: u64) -> Duty {
        let Some(tracked) = self.known.cases.get(&id) else { return Duty::None };
        let Some(case) = &tracked.case else { return Duty::None };
        let listed = case.leaf.epoch.checked_sub(1).and_then(|epoch| self.known.list(epoch));
        let seen = Seen { id, case, chunk: tracked.chunk.as_deref(), listed, own: self.own(&id) };
        due(Asker { me: self.me, now, terms: &self.terms }, seen)
    }

    /// Asks the chain how a case stands. One that is over is forgotten.
    async fn refresh(&mut self, id: [u8; 32]) -> Result<(), Error> {
        let Some(case) = self.tools.ledger.audit_case(id).await? else {
            // The chain's node is behind the one that told of it, or the case was undone, which will be told.
            self.paces.entry(Matter::Case(id)).or_default().again = Some(Instant::now() + UNKNOWN);
            return Ok(());
        };
        let Some(tracked) = self.known.cases.get_mut(&id) else { return Ok(()) };
        tracked.mine |= case.answers.iter().any(|answer| answer.auditor == self.me);
        tracked.stale = false;
        if case.stage != CaseStage::Closed {
            tracked.case = Some(case);
            return Ok(());
        }
        let mine = tracked.mine;
        self.known.cases.remove(&id);
        self.paces.remove(&Matter::Case(id));
        self.told.retain(|(told, _)| *told != id);
        if mine {
            self.claimable = true;
            let (account, verdict) = (show_address(&case.leaf.account), verdict_name(case.verdict));
            self.report(Report::Closed { case: Digest(id), account, verdict });
        }
        if self.answers.remove(&id).is_some() {
            let desk = self.tools.desk.clone();
            let forgotten = tokio::task::spawn_blocking(move || desk.forget(&id)).await;
            forgotten.unwrap_or_else(|error| tracing::warn!(%error, "an answer stays on disk"));
        }
        Ok(())
    }

    /// What an answer is computed from.
    fn task(&self, id: [u8; 32], left_s: u64) -> Option<Task> {
        let tracked = self.known.cases.get(&id)?;
        let (case, chunk) = (tracked.case.as_ref()?, tracked.chunk.as_ref()?);
        let account = case.leaf.account;
        Some(Task {
            wanted: Wanted { case: id, chunk: **chunk, account, most_bytes: 0 },
            hosts: self.known.nodes(&account),
            registry: self.tools.ledger.deployment().nodes_domain(),
            left: Duration::from_secs(left_s),
            known_model: self.known.models().contains(&chunk.model),
        })
    }

    fn compute(&mut self, id: [u8; 32], left_s: u64) {
        let Some(task) = self.task(id, left_s) else { return };
        let Tools { worker, source, desk, .. } = &self.tools;
        let (worker, source, desk) = (worker.clone(), source.clone(), desk.clone());
        let answer = async move { Outcome::Answered(worker.answer(task, source, desk).await) };
        self.start_job(Matter::Case(id), answer);
    }

    /// Plays the game of a case to its end.
    fn play(&mut self, id: [u8; 32]) {
        let Some(task) = self.task(id, GAME_S) else { return };
        let Tools { worker, source, desk, ledger, .. } = &self.tools;
        let (worker, source, desk, ledger) = (worker.clone(), source.clone(), desk.clone(), ledger.clone());
        let poll = self.config.every;
        let play = async move {
            let kept = tokio::task::spawn_blocking(move || desk.evidence(&id)).await;
            let evidence = match kept.ok().flatten() {
                Some(evidence) => evidence,
                None => match worker.obtained(&task, source).await {
                    Some((evidence, _)) => evidence,
                    None => return Outcome::Failed("the evidence for its dispute is lost".into()),
                },
            };
            let (model, hash) = worker.model();
            match play(&Court { ledger, model, hash, poll }, id, evidence).await {
                Ok(outcome) => Outcome::Played(outcome),
                Err(error) => Outcome::Failed(format!("its dispute: {error}")),
            }
        };
        self.start_job(Matter::Case(id), play);
    }
}
