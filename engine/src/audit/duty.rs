//! What an auditor owes: from where a case stands on the chain to what is to be done about it now. Pure. It looks at
//! the chain's state and at what this machine computed, never at what it remembers having sent, so that asking
//! twice, or after a crash, gives the same.
//!
//! An honest auditor whose answers are [`Own`] is never slashed for what [`due`] tells it, if that is done in time; a
//! test plays it against everybody else.

pub mod lots;
#[cfg(test)]
mod tests;

use ledger::{
    audit::{Chunk, answer, seal},
    client::{AnswerStep, AuditAction, AuditTerms, Case, CaseStage, CaseVerdict},
    eip712::{Address, keccak},
};

const RANK_DOMAIN: &[u8] = b"dolphin/rank/1";
/// What is shown by who got no rows.
pub const NO_ROWS: [u8; 32] = [0; 32];

/// What this auditor has computed for a case, or that it could not get what to compute it from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// [`roots`](ledger::audit::roots) of what should have gone out; [`NO_ROWS`] without rows.
    pub roots: [u8; 32],
    /// What its commitment is made with: the same for a case whenever it is asked for, and known to nobody else.
    pub salt: [u8; 32],
}

/// Who asks, and when.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// The auditor's account.
    pub me: Address,
    /// Seconds since 1970, as the chain's next block would have it.
    pub now: u64,
    /// What audits go by.
    pub terms: &'a AuditTerms,
}

/// A case, and what is known about it here.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Its number.
    pub id: [u8; 32],
    /// How it stands on the chain.
    pub case: &'a Case,
    /// What the leaf holds, once it was opened.
    pub chunk: Option<&'a Chunk>,
    /// The auditors as listed in the epoch before the leaf's, if they were.
    pub listed: Option<&'a [(Address, u64)]>,
    /// What this auditor has computed.
    pub own: Option<Own>,
}

/// What is to be done about a case now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Nothing.
    None,
    /// What the node says should be computed, by a time.
    Compute {
        /// When the auditor must have answered.
        until: u64,
    },
    /// Something that this auditor alone can send.
    Send(AuditAction),
    /// Something that anybody can send; see [`rank`].
    Offer(AuditAction),
    /// The game runs, and this auditor is the accuser.
    Play,
    /// It stands committed to something that is neither what was computed here nor the lack of it: another machine
    /// answers for this account, or answered wrongly. Nothing that is sent from here helps.
    Stranger,
}

/// See [`Duty`].
pub fn due(asker: Asker<'_>, seen: Seen<'_>) -> Duty {
    let Asker { me, now, .. } = asker;
    let (case, id) = (seen.case, seen.id);
    let late = now > case.deadline;
    let time_out = || Duty::Offer(AuditAction::TimeOut { case: id });
    let mine = case.answers.iter().find(|answer| answer.auditor == me).map(|answer| answer.step);
    match case.stage {
        CaseStage::Opening => pick(late, time_out),
        CaseStage::Drawing if late => time_out(),
        CaseStage::Drawing => match seen.listed {
            Some(listed) => Duty::Offer(AuditAction::Assign { case: id, auditors: listed.to_vec() }),
            None => Duty::None,
        },
        CaseStage::Committing => match (mine == Some(AnswerStep::Drawn), late, seen.own) {
            (false, ..) => pick(late, time_out),
            (true, true, _) => Duty::None,
            (true, false, None) => Duty::Compute { until: case.deadline },
            (true, false, Some(Own { roots, salt })) => {
                Duty::Send(AuditAction::Commit { case: id, answer: answer(&id, &me, &roots, &salt) })
            }
        },
        CaseStage::Answering | CaseStage::Revealing => match mine {
            Some(AnswerStep::Committed | AnswerStep::Differs) => pick(!late, || show(asker, seen)),
            _ => pick(late, time_out),
        },
        CaseStage::Deciding | CaseStage::Matching => judge(asker, seen, late),
        CaseStage::Disputed if late => time_out(),
        CaseStage::Disputed => {
            pick(case.answers.first().is_some_and(|first| first.auditor == me), || Duty::Play)
        }
        CaseStage::Closed => Duty::None,
    }
}

fn pick(holds: bool, duty: impl FnOnce() -> Duty) -> Duty {
    if holds { duty() } else { Duty::None }
}

/// It has committed, and has to show its answer or to say that it differs.
fn show(asker: Asker<'_>, seen: Seen<'_>) -> Duty {
    let (id, me) = (seen.id, asker.me);
    let (Some(own), Some(chunk)) = (seen.own, seen.chunk) else {
        return Duty::Compute { until: seen.case.deadline };
    };
    let value = seen.case.answers.iter().find(|answer| answer.auditor == me).map(|answer| answer.value);
    // What was committed to before this machine lost its files can be the lack of rows.
    let meant = |roots: &[u8; 32]| value == Some(answer(&id, &me, roots, &own.salt));
    let Some(roots) = [own.roots, NO_ROWS].into_iter().find(meant) else { return Duty::Stranger };
    let equal = roots != NO_ROWS && seal(&roots) == chunk.sealed_roots;
    match seen.case.stage {
        CaseStage::Answering if !equal => Duty::Send(AuditAction::Differ { case: id }),
        _ => Duty::Send(AuditAction::Reveal { case: id, chunk: *chunk, roots, salt: own.salt }),
    }
}

/// There is a verdict, or somebody disputes it.
fn judge(asker: Asker<'_>, seen: Seen<'_>, late: bool) -> Duty {
    let (case, id, me) = (seen.case, seen.id, asker.me);
    let opposed =
        case.answers.iter().find(|answer| answer.auditor == me && answer.step == AnswerStep::Opposed);
    // To let it pass would be to give in.
    let against_me = opposed.is_some()
        && match case.stage {
            CaseStage::Deciding => case.verdict == Some(CaseVerdict::Passed),
            _ => case.challenger == Some(case.leaf.account),
        };
    let Some(opposed) = opposed.filter(|_| against_me) else {
        return pick(late, || Duty::Offer(AuditAction::TimeOut { case: id }));
    };
    if late || asker.terms.game.is_none() {
        return Duty::None;
    }
    let (Some(own), Some(chunk)) = (seen.own, seen.chunk) else {
        return Duty::Compute { until: case.deadline };
    };
    // What does not stand here is not defended: that would cost a fifth of the stake instead of a hundredth.
    if own.roots != opposed.value {
        return Duty::Stranger;
    }
    let bond = asker.terms.dispute_bond;
    Duty::Send(match case.stage {
        CaseStage::Deciding => AuditAction::Dispute { case: id, bond },
        _ => AuditAction::MatchBond { case: id, chunk: *chunk, bond },
    })
}

/// How many others go first in something that anybody can send, of those who could: everybody waits a little for each,
/// so that not all pay for gas. `about` names what is sent.
pub fn rank(about: &[u8; 32], me: &Address, others: &[Address]) -> usize {
    let place = |account: &Address| keccak(&[RANK_DOMAIN, about, account].concat());
    let own = place(me);
    others.iter().filter(|account| *account != me && place(account) < own).count()
}
