//! Audits: actions, answers and logs in the contracts' terms.

use ethers_contract::{EthEvent, EthLogDecode};
use ethers_core::{
    abi::RawLog,
    types::{H160, Log},
};

use super::{
    bindings::{
        audit_manager::{self as manager, AuditManagerEvents as Manager},
        auditor_set::{self as set, AuditorSetEvents as Set},
        beacon,
    },
    calls::{Order, Plan},
    convert::{to_h160, to_pod, to_u64},
    disputes,
    reads::Reader,
};
use crate::{
    audit::{Chunk, LeafId},
    client::{
        AnswerStep, AuditAction, AuditEvent, AuditLeaf, AuditRound, AuditTerms, BeaconParameters, Case,
        CaseAnswer, CaseStage, CaseVerdict, Deployment, Error, Pod,
    },
    draw::Rate,
    eip712::Address,
};

/// Deployments that were made before there were audits have nothing in their places.
fn require(d: &Deployment) -> Result<(), Error> {
    match [d.beacon, d.auditors, d.audits].contains(&[0; 20]) {
        true => Err(Error::Invalid("this deployment has no audits")),
        false => Ok(()),
    }
}

/// The call that an action is.
pub(super) fn plan(d: &Deployment, action: &AuditAction) -> Result<Plan, Error> {
    require(d)?;
    let spends = match action {
        AuditAction::Dispute { bond, .. } | AuditAction::MatchBond { bond, .. } => Some((d.audits, *bond)),
        _ => None,
    };
    let order = match action {
        AuditAction::SubmitRound { round, signature } => {
            let signature = signature.to_vec().into();
            Order::call(&d.beacon, beacon::SubmitCall { round: *round, signature })
        }
        AuditAction::Join { replaced } => {
            let replaced = to_h160(&replaced.unwrap_or_default());
            Order::call(&d.auditors, set::JoinCall { replaced })
        }
        AuditAction::Resign => Order::call(&d.auditors, set::ResignCall),
        AuditAction::Drop(auditor) => Order::call(&d.auditors, set::DropCall { auditor: to_h160(auditor) }),
        AuditAction::Play { case, step } => disputes::order(d, case, step)?,
        AuditAction::ListAuditors => Order::call(&d.auditors, set::ListAuditorsCall),
        _ => of_manager(&d.audits, action)?,
    };
    Ok(Plan { spends, order })
}

fn of_manager(at: &Address, action: &AuditAction) -> Result<Order, Error> {
    Ok(match action {
        AuditAction::Post { root, count, prompts } => {
            Order::call(at, manager::PostCall { root: *root, count: *count, prompts: *prompts })
        }
        AuditAction::Draw(LeafId { account, epoch, index }) => {
            let account = to_h160(account);
            Order::call(at, manager::DrawCall { account, epoch: *epoch, index: *index })
        }
        AuditAction::Open { leaf: LeafId { account, epoch, index }, chunk, proof } => {
            let (account, proof) = (to_h160(account), proof.clone());
            let call =
                manager::OpenCall { account, epoch: *epoch, index: *index, chunk: to_chunk(chunk), proof };
            Order::call(at, call)
        }
        AuditAction::Assign { case, auditors } => {
            let list = auditors.iter();
            let list =
                list.map(|(account, stake)| manager::Auditor { account: to_h160(account), stake: *stake });
            Order::call(at, manager::AssignCall { id: *case, list: list.collect() })
        }
        AuditAction::Commit { case, answer } => {
            Order::call(at, manager::CommitCall { id: *case, answer: *answer })
        }
        AuditAction::Differ { case } => Order::call(at, manager::DifferCall { id: *case }),
        AuditAction::Reveal { case, chunk, roots, salt } => {
            let chunk = to_chunk(chunk);
            Order::call(at, manager::RevealCall { id: *case, chunk, roots: *roots, salt: *salt })
        }
        AuditAction::TimeOut { case } => Order::call(at, manager::TimeOutCall { id: *case }),
        AuditAction::ShowPlant { case, chunk, salt } => {
            Order::call(at, manager::ShowPlantCall { id: *case, chunk: to_chunk(chunk), salt: *salt })
        }
        AuditAction::Dispute { case, .. } => Order::call(at, manager::DisputeCall { id: *case }),
        AuditAction::MatchBond { case, chunk, .. } => {
            Order::call(at, manager::MatchBondCall { id: *case, chunk: to_chunk(chunk) })
        }
        AuditAction::ClaimBonds => Order::call(at, manager::ClaimCall),
        _ => return Err(Error::Invalid("the action is another contract's")),
    })
}

fn to_chunk(chunk: &Chunk) -> manager::Chunk {
    manager::Chunk {
        model: chunk.model,
        plan: chunk.plan,
        commitment: chunk.commitment,
        in_roots: chunk.in_roots,
        sealed_roots: chunk.sealed_roots,
        stage: chunk.stage,
        from: chunk.from,
        to: chunk.to,
    }
}

fn of_chunk(chunk: manager::Chunk) -> Chunk {
    Chunk {
        model: chunk.model,
        plan: chunk.plan,
        commitment: chunk.commitment,
        in_roots: chunk.in_roots,
        sealed_roots: chunk.sealed_roots,
        stage: chunk.stage,
        from: chunk.from,
        to: chunk.to,
    }
}

impl Reader {
    pub(super) async fn audit_terms(&self) -> Result<AuditTerms, Error> {
        require(&self.deployment)?;
        let at = &self.deployment.audits;
        let (epoch_s, draw_window_s, bond, game): (u64, u64, u128, H160) = tokio::try_join!(
            self.call(at, manager::EpochLengthCall),
            self.call(at, manager::DrawWindowCall),
            self.call(at, manager::DisputeBondCall),
            self.call(at, manager::GameCall),
        )?;
        let (least, lapse_bps, miss_bps): (u128, u16, u16) = tokio::try_join!(
            self.call(&self.deployment.auditors, set::MinAuditorStakeCall),
            self.call(at, manager::LapseBpsCall),
            self.call(at, manager::MissBpsCall),
        )?;
        let game = Some(game.0).filter(|game| *game != [0; 20]);
        let (min_auditor_stake, dispute_bond) = (Pod(least), Pod(bond));
        Ok(AuditTerms { epoch_s, draw_window_s, min_auditor_stake, lapse_bps, miss_bps, dispute_bond, game })
    }

    pub(super) async fn beacon(&self) -> Result<BeaconParameters, Error> {
        require(&self.deployment)?;
        let at = &self.deployment.beacon;
        let (point, genesis, period): (beacon::KeyReturn, u64, u64) = tokio::try_join!(
            self.call(at, beacon::KeyCall),
            self.call(at, beacon::GenesisCall),
            self.call(at, beacon::PeriodCall),
        )?;
        let beacon::G2 { x_1, x_0, y_1, y_0 } = point.0;
        let mut key = [0; 128];
        for (part, number) in key.chunks_exact_mut(32).zip([x_1, x_0, y_1, y_0]) {
            number.to_big_endian(part);
        }
        Ok(BeaconParameters { key, genesis, period })
    }

    pub(super) async fn auditors(&self) -> Result<Vec<Address>, Error> {
        require(&self.deployment)?;
        let found: Vec<H160> = self.call(&self.deployment.auditors, set::AuditorsCall).await?;
        Ok(found.into_iter().map(|auditor| auditor.0).collect())
    }

    pub(super) async fn audit_round(&self, epoch: u32) -> Result<AuditRound, Error> {
        require(&self.deployment)?;
        let call = manager::RoundOfCall { epoch: epoch.into() };
        let round: u64 = self.call(&self.deployment.audits, call).await?;
        let call = beacon::RandomnessCall { round };
        let drawn: [u8; 32] = self.call(&self.deployment.beacon, call).await?;
        Ok(AuditRound { round, randomness: Some(drawn).filter(|drawn| *drawn != [0; 32]) })
    }

    pub(super) async fn audit_leaf(&self, leaf: LeafId) -> Result<AuditLeaf, Error> {
        require(&self.deployment)?;
        let LeafId { account, epoch, index } = leaf;
        let call = manager::LeafCaseCall { account: to_h160(&account), epoch, index };
        let (case, rate): ([u8; 32], u32) = self.call(&self.deployment.audits, call).await?;
        Ok(AuditLeaf { case, rate: Rate::from_bits(rate) })
    }

    pub(super) async fn audit_case(&self, case: [u8; 32]) -> Result<Option<Case>, Error> {
        require(&self.deployment)?;
        let call = manager::CaseOfCall { id: case };
        let manager::CaseOfReturn(found) = self.call(&self.deployment.audits, call).await?;
        let Some(stage) = stage(found.stage) else { return Ok(None) };
        let leaf = LeafId { account: found.account.0, epoch: found.epoch, index: found.index };
        let answers = found.answers.into_iter();
        let answers = answers.filter_map(|answer| {
            Some(CaseAnswer { auditor: answer.auditor.0, step: step(answer.step)?, value: answer.value })
        });
        Ok(Some(Case {
            leaf,
            stage,
            deadline: found.deadline,
            verdict: verdict(found.verdict),
            challenger: (!found.challenger.is_zero()).then_some(found.challenger.0),
            answers: answers.collect(),
        }))
    }

    pub(super) async fn audit_claimable(&self, account: Address) -> Result<Pod, Error> {
        require(&self.deployment)?;
        let call = manager::ClaimableCall { account: to_h160(&account) };
        self.call(&self.deployment.audits, call).await.map(to_pod)
    }
}

fn stage(number: u8) -> Option<CaseStage> {
    use CaseStage::*;
    let all = [Opening, Drawing, Committing, Answering, Revealing, Deciding, Matching, Disputed, Closed];
    all.get(usize::from(number).checked_sub(1)?).copied()
}

fn verdict(number: u8) -> Option<CaseVerdict> {
    use CaseVerdict::*;
    let all = [Passed, Silent, Withheld, Faulty, Planted, Undecided];
    all.get(usize::from(number).checked_sub(1)?).copied()
}

fn step(number: u8) -> Option<AnswerStep> {
    use AnswerStep::*;
    let all = [Drawn, Committed, Differs, Confirmed, Opposed, Unserved];
    all.get(usize::from(number).checked_sub(1)?).copied()
}

/// The event of a log of one of the three contracts; `None` if it is none of theirs.
pub(super) fn decode(d: &Deployment, log: &Log, raw: &RawLog) -> Option<AuditEvent> {
    match log.address.0 {
        source if source == d.audits => Some(of_case(Manager::decode_log(raw).ok()?)),
        source if source == d.auditors => Some(match Set::decode_log(raw).ok()? {
            Set::AuditorJoinedFilter(e) => AuditEvent::AuditorJoined { auditor: e.auditor.0 },
            Set::AuditorLeftFilter(e) => AuditEvent::AuditorLeft { auditor: e.auditor.0 },
            Set::AuditorsListedFilter(e) => {
                let auditors = e.auditors.into_iter();
                let auditors = auditors.map(|auditor| (auditor.account.0, auditor.stake)).collect();
                AuditEvent::AuditorsListed { epoch: to_u64(e.epoch), auditors }
            }
        }),
        source if source == d.beacon => {
            let e = <beacon::RoundSubmittedFilter as EthEvent>::decode_log(raw).ok()?;
            Some(AuditEvent::RoundSubmitted { round: e.round, randomness: e.randomness })
        }
        _ => None,
    }
}

fn of_case(event: Manager) -> AuditEvent {
    match event {
        Manager::CommitmentsPostedFilter(e) => AuditEvent::Posted {
            account: e.account.0,
            epoch: to_u64(e.epoch),
            root: e.root,
            count: e.count,
            prompts: e.prompts,
        },
        Manager::LeafDrawnFilter(e) => AuditEvent::LeafDrawn {
            case: e.id,
            leaf: LeafId { account: e.account.0, epoch: e.epoch, index: e.index },
            deadline: e.deadline,
        },
        Manager::LeafOpenedFilter(e) => {
            let chunk = Box::new(of_chunk(e.chunk));
            AuditEvent::LeafOpened { case: e.id, account: e.account.0, chunk }
        }
        Manager::AuditorDrawnFilter(e) => {
            let auditor = (!e.auditor.is_zero()).then_some(e.auditor.0);
            AuditEvent::AuditorDrawn { case: e.id, auditor, deadline: e.deadline }
        }
        Manager::AnswerCommittedFilter(e) => AuditEvent::AnswerCommitted { case: e.id, auditor: e.auditor.0 },
        Manager::AnswerDiffersFilter(e) => AuditEvent::AnswerDiffers { case: e.id, auditor: e.auditor.0 },
        Manager::AnswerRevealedFilter(e) => {
            AuditEvent::AnswerRevealed { case: e.id, auditor: e.auditor.0, roots: e.roots }
        }
        Manager::DecidedFilter(e) => {
            AuditEvent::Decided { case: e.id, verdict: verdict(e.verdict), deadline: e.deadline }
        }
        Manager::DisputeAskedFilter(e) => {
            AuditEvent::DisputeAsked { case: e.id, challenger: e.challenger.0, deadline: e.deadline }
        }
        Manager::DisputeOpenedFilter(e) => {
            AuditEvent::DisputeOpened { case: e.id, accused: e.accused.0, accuser: e.accuser.0 }
        }
        Manager::CaseClosedFilter(e) => {
            AuditEvent::Closed { case: e.id, account: e.account.0, verdict: verdict(e.verdict) }
        }
        Manager::PayForfeitedFilter(e) => AuditEvent::PayForfeited { case: e.id, account: e.account.0 },
        Manager::SelfTestDueFilter(e) => AuditEvent::SelfTestDue { account: e.account.0, strikes: e.strikes },
        Manager::PenalisedFilter(e) => {
            AuditEvent::Penalised { case: e.id, operator: e.operator.0, role: e.role, taken: Pod(e.taken) }
        }
        Manager::BondsClaimedFilter(e) => {
            AuditEvent::BondsClaimed { account: e.account.0, amount: to_pod(e.amount) }
        }
    }
}
