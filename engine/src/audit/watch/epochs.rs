//! What is due once in an epoch: that this account is an auditor, that the auditors are written down, that the beacon's
//! round is on the chain, and that drawn leaves are called for.

use std::sync::Arc;

use ledger::{
    audit::LeafId,
    client::{AUDITOR_ROLE, AuditAction, Error, Ledger},
    draw::Rate,
    eip712::{Address, keccak},
};

use super::{Matter, Outcome, Watch, submit};
use crate::audit::{
    drand::Drand,
    duty::lots::{Lots, Posted},
};

/// Most roots of an epoch that leaves are called for of; the beacon says which, differently for each auditor.
const MOST_ROOTS: usize = 1024;
/// Most leaves that are being called for at a time.
const MOST_CALLS: usize = 8;
/// Most auditors there can be, as the contract has it.
const MOST_AUDITORS: usize = 64;

impl Watch {
    pub(super) async fn epochs(&mut self, now: u64) -> Result<(), Error> {
        if self.known.members_changed {
            self.members = self.tools.ledger.auditors().await?;
            self.known.members_changed = false;
        }
        let epoch_s = self.terms.epoch_s.max(1);
        let Ok(current) = u32::try_from(now / epoch_s) else { return Ok(()) };
        let is_member = self.members.contains(&self.me);
        if self.config.join && !is_member && self.is_free(Matter::Join) {
            self.join().await?;
        }
        let listed = self.known.list(current).is_some();
        if !listed && is_member && self.is_free(Matter::List(current)) && self.is_turn(Matter::List(current))
        {
            self.send(Matter::List(current), AuditAction::ListAuditors);
        }
        let last = |epoch: u32| (u64::from(epoch) + 1) * epoch_s + self.terms.draw_window_s;
        let first_open =
            (0..=current).rev().take_while(|epoch| last(*epoch) >= now).last().unwrap_or(current);
        self.known.forget(first_open);
        self.lots.retain(|epoch, _| *epoch >= first_open);
        let old = |matter: &Matter| match matter {
            Matter::List(epoch) => *epoch < current,
            Matter::Round(epoch) | Matter::Lots(epoch) => *epoch < first_open,
            Matter::Leaf(case) => !self.lots.values().flatten().any(|(_, wanted)| wanted == case),
            _ => false,
        };
        self.paces.retain(|matter, _| !old(matter));
        let open: Vec<u32> =
            self.known.roots().map(|(epoch, _)| epoch).filter(|epoch| *epoch < current).collect();
        for epoch in open {
            match self.lots.contains_key(&epoch) {
                true => self.call(epoch),
                false => self.beacon(epoch, now).await?,
            }
        }
        Ok(())
    }

    async fn join(&mut self) -> Result<(), Error> {
        let (ledger, me) = (&self.tools.ledger, self.me);
        if ledger.stake(me, AUDITOR_ROLE, me).await?.active < self.terms.min_auditor_stake {
            let least = self.terms.min_auditor_stake;
            let why = format!(
                "to audit takes {least} POD behind the auditor's role: dolphin stake bond --role auditor"
            );
            self.start_job(Matter::Join, async move { Outcome::Failed(why) });
            return Ok(());
        }
        let mut replaced = None;
        if self.members.len() >= MOST_AUDITORS {
            let mut least = None;
            for member in &self.members {
                let active = ledger.stake(*member, AUDITOR_ROLE, *member).await?.active;
                if least.is_none_or(|(stake, _)| active < stake) {
                    least = Some((active, *member));
                }
            }
            replaced = least.map(|(_, member)| member);
        }
        self.send(Matter::Join, AuditAction::Join { replaced });
        Ok(())
    }

    /// Sees to it that an epoch's round is on the chain, and then which leaves it draws.
    async fn beacon(&mut self, epoch: u32, now: u64) -> Result<(), Error> {
        let (round, lots) = (Matter::Round(epoch), Matter::Lots(epoch));
        if !self.is_free(round) || !self.is_free(lots) {
            return Ok(());
        }
        let known = self.tools.ledger.audit_round(epoch).await?;
        match known.randomness {
            None if self.tools.drand.clock().time_of(known.round) > now => {}
            None if !self.is_turn(round) => {}
            None => {
                let (ledger, drand) = (self.tools.ledger.clone(), self.tools.drand.clone());
                self.start_job(round, submit_round(ledger, drand, known.round));
            }
            Some(beacon) => {
                let roots: Vec<Posted> = self
                    .known
                    .roots()
                    .filter(|(of, _)| *of == epoch)
                    .flat_map(|(_, roots)| roots.iter().copied())
                    // Nobody audits itself.
                    .filter(|posted| posted.account != self.me)
                    .collect();
                let (ledger, me, most) = (self.tools.ledger.clone(), self.me, self.config.draws);
                self.start_job(lots, async move {
                    match lots_of(ledger, me, beacon, roots, most).await {
                        Ok(leaves) => Outcome::Lots(leaves),
                        Err(error) => Outcome::Failed(error.to_string()),
                    }
                });
            }
        }
        Ok(())
    }

    /// Calls for leaves that nobody has called for.
    fn call(&mut self, epoch: u32) {
        let Some(leaves) = self.lots.get_mut(&epoch) else { return };
        leaves.retain(|(_, case)| !self.known.cases.contains_key(case));
        for (leaf, case) in leaves.clone() {
            let calls = self.busy.iter().filter(|matter| matches!(matter, Matter::Leaf(_))).count();
            let matter = Matter::Leaf(case);
            if calls >= MOST_CALLS {
                return;
            }
            if self.is_free(matter) && self.is_turn(matter) {
                let ledger = self.tools.ledger.clone();
                self.start_job(matter, draw(ledger, leaf, case));
            }
        }
    }
}

async fn submit_round(ledger: Arc<dyn Ledger>, drand: Arc<Drand>, round: u64) -> Outcome {
    match drand.round(round).await {
        Ok(signature) => submit(&*ledger, AuditAction::SubmitRound { round, signature }).await,
        Err(error) => Outcome::Failed(format!("the beacon's round {round}: {error}")),
    }
}

async fn draw(ledger: Arc<dyn Ledger>, leaf: LeafId, case: [u8; 32]) -> Outcome {
    match ledger.audit_case(case).await {
        Ok(None) => submit(&*ledger, AuditAction::Draw(leaf)).await,
        Ok(Some(_)) => Outcome::Nothing,
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// The leaves of these roots that an auditor calls for.
async fn lots_of(
    ledger: Arc<dyn Ledger>,
    me: Address,
    beacon: [u8; 32],
    mut roots: Vec<Posted>,
    most: usize,
) -> Result<Vec<(LeafId, [u8; 32])>, Error> {
    roots.sort_by_cached_key(|posted| keccak(&[&beacon[..], &me, &posted.account].concat()));
    roots.truncate(MOST_ROOTS);
    let (chain_id, manager) = (ledger.deployment().chain_id, ledger.deployment().audits);
    let mut sure = Vec::with_capacity(roots.len());
    for mut posted in roots {
        let Posted { account, epoch, root, count, prompts, .. } = posted;
        let rate = async |index: u32| -> Result<Option<Rate>, Error> {
            let leaf = LeafId { account, epoch, index };
            let known = match ledger.audit_leaf(leaf).await {
                Err(Error::Refused(_)) => return Ok(None),
                known => known?,
            };
            // What an event told can have been replaced since.
            Ok((known.case == leaf.case(chain_id, &manager, &root)).then_some(known.rate))
        };
        let first = if prompts > 0 { rate(0).await? } else { Some(Rate::from_bits(0)) };
        let last = if count > prompts { rate(count - 1).await? } else { Some(Rate::from_bits(0)) };
        if let (Some(first), Some(last)) = (first, last) {
            posted.rates = [first, last];
            sure.push(posted);
        }
    }
    let drawn = move || Lots { chain_id, manager: &manager, beacon: &beacon, me: &me }.drawn(&sure, most);
    Ok(tokio::task::spawn_blocking(drawn).await.unwrap_or_default())
}
