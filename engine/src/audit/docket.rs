//! The cases of a node's leaves: what the chain has said of each, and what the node has to do next. Pure.

use std::collections::BTreeMap;

use ledger::{
    audit::LeafId,
    client::{AuditEvent, CaseVerdict},
    eip712::Address,
};

/// Cases that are followed at once.
const MAX_CASES: usize = 1 << 16;

/// What a node has to do in a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// To open the leaf.
    Open,
    /// To show that it planted the fault.
    ShowPlant,
    /// To dispute a verdict that is against it, if that is wrong.
    Dispute,
    /// To take up a dispute of somebody who says that it computed wrong, if it did not.
    Match,
    /// To end a case in which the other side let its time run out.
    TimeOut,
    /// To play the dispute.
    Play,
}

/// How long a duty takes, which says how many are done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// One transaction.
    Quick,
    /// A self-test comes first.
    Slow,
    /// Days, of which most is waiting.
    Long,
}

impl Duty {
    /// How long it takes.
    pub fn pace(self) -> Pace {
        match self {
            Self::Open | Self::ShowPlant | Self::TimeOut => Pace::Quick,
            Self::Dispute | Self::Match => Pace::Slow,
            Self::Play => Pace::Long,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Opening,
    Answering,
    Decided(Option<CaseVerdict>),
    Matching { challenger: Address, deadline: u64 },
    Disputed,
    Closed(Option<CaseVerdict>),
}

/// A case of a leaf of one's own.
#[derive(Clone, Debug)]
pub struct Mine {
    /// The leaf's place on the chain.
    pub leaf: LeafId,
    /// The volume of the book that it is in.
    pub volume: u64,
    planted: bool,
    at: At,
    auditors: Vec<Address>,
    /// Something is being done in it.
    busy: bool,
    /// When to try again, in seconds since 1970.
    not_before: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Docket {
    me: Address,
    cases: BTreeMap<[u8; 32], Mine>,
    /// Whether bonds may have to be fetched.
    claims: bool,
    /// Whether the node was told to test itself.
    doubted: bool,
}

impl Mine {
    fn duty(&self, me: &Address, now: u64) -> Option<Duty> {
        let (faulty, passed) = (Some(CaseVerdict::Faulty), Some(CaseVerdict::Passed));
        match self.at {
            At::Opening => Some(Duty::Open),
            At::Decided(_) | At::Matching { .. } if self.planted => Some(Duty::ShowPlant),
            At::Decided(verdict) if verdict == faulty => Some(Duty::Dispute),
            At::Matching { challenger, .. } if challenger != *me => Some(Duty::Match),
            At::Matching { deadline, .. } => (now > deadline).then_some(Duty::TimeOut),
            At::Disputed => Some(Duty::Play),
            // Who confirmed a planted fault did not compute.
            At::Closed(verdict) if self.planted && verdict == passed => Some(Duty::ShowPlant),
            At::Answering | At::Decided(_) | At::Closed(_) => None,
        }
    }
}

impl Docket {
    /// Of an account; nothing is known.
    pub fn new(me: Address) -> Self {
        Self { me, cases: BTreeMap::new(), claims: false, doubted: false }
    }

    /// A leaf of the account's own was drawn that is in this volume.
    pub fn drawn(&mut self, case: [u8; 32], leaf: LeafId, volume: u64, planted: bool) {
        if self.cases.len() >= MAX_CASES {
            tracing::error!("more leaves were drawn than a node can follow");
            return;
        }
        let (at, auditors) = (At::Opening, Vec::new());
        let mine = Mine { leaf, volume, planted, at, auditors, busy: false, not_before: 0 };
        self.cases.entry(case).or_insert(mine);
    }

    /// Something happened in a case, if it is one of these.
    pub fn heard(&mut self, event: &AuditEvent) {
        if let AuditEvent::SelfTestDue { account, .. } = event {
            self.doubted |= *account == self.me;
        }
        let Some((case, at)) = self.after(event) else { return };
        let Some(mine) = self.cases.get_mut(&case) else { return };
        if let AuditEvent::AuditorDrawn { auditor: Some(auditor), .. } = event {
            mine.auditors.push(*auditor);
        }
        // Bonds are paid out at the end of a case that was disputed.
        if matches!(at, At::Closed(_)) && matches!(mine.at, At::Matching { .. } | At::Disputed) {
            self.claims = true;
        }
        if mine.at != at {
            (mine.at, mine.not_before) = (at, 0);
        }
        let ended = matches!(mine.at, At::Closed(_)) && mine.duty(&self.me, 0).is_none();
        if ended {
            self.cases.remove(&case);
        }
    }

    fn after(&self, event: &AuditEvent) -> Option<([u8; 32], At)> {
        Some(match *event {
            AuditEvent::LeafOpened { case, .. }
            | AuditEvent::AuditorDrawn { case, .. }
            | AuditEvent::AnswerCommitted { case, .. }
            | AuditEvent::AnswerDiffers { case, .. } => (case, At::Answering),
            AuditEvent::Decided { case, verdict, .. } => (case, At::Decided(verdict)),
            AuditEvent::DisputeAsked { case, challenger, deadline } => {
                (case, At::Matching { challenger, deadline })
            }
            AuditEvent::DisputeOpened { case, .. } => (case, At::Disputed),
            AuditEvent::Closed { case, verdict, .. } => (case, At::Closed(verdict)),
            _ => return None,
        })
    }

    /// What is to be done at `now`, in seconds since 1970, and not being done: so many that are quick, and that are
    /// slow. One never waits for the other.
    pub fn due(&mut self, now: u64, mut quick: usize, mut slow: usize) -> Vec<([u8; 32], Mine, Duty)> {
        let mut due = Vec::new();
        for (case, mine) in &mut self.cases {
            if mine.busy || mine.not_before > now {
                continue;
            }
            let Some(duty) = mine.duty(&self.me, now) else { continue };
            let room = match duty.pace() {
                Pace::Quick => &mut quick,
                Pace::Slow => &mut slow,
                Pace::Long => &mut 1,
            };
            if *room > 0 {
                *room -= 1;
                mine.busy = true;
                due.push((*case, mine.clone(), duty));
            }
        }
        due
    }

    /// What was due was tried; it is looked at again at `again`.
    pub fn tried(&mut self, case: &[u8; 32], again: u64) {
        if let Some(mine) = self.cases.get_mut(case) {
            (mine.busy, mine.not_before) = (false, again);
        }
    }

    /// Nothing more can be done in a case that is over.
    pub fn refused(&mut self, case: &[u8; 32]) {
        if self.cases.get(case).is_some_and(|mine| matches!(mine.at, At::Closed(_))) {
            self.cases.remove(case);
        }
    }

    /// Where the leaf is whose evidence an auditor may see, if it was drawn for the case.
    pub fn shown_to(&self, case: &[u8; 32], auditor: &Address) -> Option<(u64, u32)> {
        let mine = self.cases.get(case).filter(|mine| mine.auditors.contains(auditor))?;
        Some((mine.volume, mine.leaf.index))
    }

    /// Cases of a volume's leaves that are not over.
    pub fn cases_of(&self, volume: u64) -> usize {
        self.cases.values().filter(|mine| mine.volume == volume).count()
    }

    /// All cases that are not over.
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// Whether bonds may have to be fetched; asked once.
    pub fn take_claims(&mut self) -> bool {
        std::mem::take(&mut self.claims)
    }

    /// Whether the node was told to test itself; asked once.
    pub fn take_doubt(&mut self) -> bool {
        std::mem::take(&mut self.doubted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Address = [1; 20];
    const OTHER: Address = [2; 20];
    const CASE: [u8; 32] = [3; 32];

    fn drawn(planted: bool) -> Docket {
        let mut docket = Docket::new(ME);
        docket.drawn(CASE, LeafId { account: ME, epoch: 5, index: 7 }, 2, planted);
        docket
    }

    fn duty(docket: &mut Docket, now: u64) -> Option<Duty> {
        let due = docket.due(now, 10, 10);
        assert!(docket.due(now, 10, 10).is_empty(), "it is being done");
        due.iter().for_each(|(case, ..)| docket.tried(case, 0));
        due.first().map(|(.., duty)| *duty)
    }

    fn opened(docket: &mut Docket) {
        docket.heard(&AuditEvent::LeafOpened { case: CASE, account: ME, chunk: Box::default() });
        assert_eq!(duty(docket, 0), None);
    }

    fn decided(verdict: CaseVerdict) -> AuditEvent {
        AuditEvent::Decided { case: CASE, verdict: Some(verdict), deadline: 100 }
    }

    fn closed(verdict: CaseVerdict) -> AuditEvent {
        AuditEvent::Closed { case: CASE, account: ME, verdict: Some(verdict) }
    }

    #[test]
    fn a_leaf_is_opened_shown_and_done_with() {
        let mut docket = drawn(false);
        assert_eq!(duty(&mut docket, 0), Some(Duty::Open));
        docket.tried(&CASE, 50);
        assert_eq!(duty(&mut docket, 49), None);
        assert_eq!(duty(&mut docket, 50), Some(Duty::Open));
        opened(&mut docket);
        assert_eq!(docket.shown_to(&CASE, &OTHER), None);
        docket.heard(&AuditEvent::AuditorDrawn { case: CASE, auditor: Some(OTHER), deadline: 9 });
        assert_eq!(docket.shown_to(&CASE, &OTHER), Some((2, 7)));
        assert_eq!((docket.shown_to(&CASE, &ME), docket.shown_to(&[0; 32], &OTHER)), (None, None));
        docket.heard(&AuditEvent::AnswerDiffers { case: CASE, auditor: OTHER });
        assert_eq!((docket.cases_of(2), docket.cases_of(3)), (1, 0));
        docket.heard(&closed(CaseVerdict::Passed));
        assert!(docket.is_empty() && !docket.take_claims());
    }

    #[test]
    fn a_verdict_against_it_is_disputed_and_the_bond_fetched() {
        let mut docket = drawn(false);
        opened(&mut docket);
        docket.heard(&decided(CaseVerdict::Passed));
        assert_eq!(duty(&mut docket, 0), None);
        docket.heard(&decided(CaseVerdict::Faulty));
        assert_eq!(duty(&mut docket, 0), Some(Duty::Dispute));
        docket.heard(&AuditEvent::DisputeAsked { case: CASE, challenger: ME, deadline: 200 });
        assert_eq!((duty(&mut docket, 200), duty(&mut docket, 201)), (None, Some(Duty::TimeOut)));
        docket.heard(&AuditEvent::DisputeOpened { case: CASE, accused: ME, accuser: OTHER });
        assert_eq!(duty(&mut docket, 0), Some(Duty::Play));
        docket.heard(&closed(CaseVerdict::Faulty));
        assert!(docket.take_claims() && !docket.take_claims() && docket.is_empty());
    }

    #[test]
    fn a_dispute_of_another_is_taken_up() {
        let mut docket = drawn(false);
        opened(&mut docket);
        docket.heard(&decided(CaseVerdict::Passed));
        docket.heard(&AuditEvent::DisputeAsked { case: CASE, challenger: OTHER, deadline: 200 });
        assert_eq!(duty(&mut docket, 0), Some(Duty::Match));
    }

    #[test]
    fn a_planted_fault_is_shown_wherever_that_is_possible() {
        for event in [
            decided(CaseVerdict::Faulty),
            decided(CaseVerdict::Passed),
            AuditEvent::DisputeAsked { case: CASE, challenger: OTHER, deadline: 200 },
            closed(CaseVerdict::Passed),
        ] {
            let mut docket = drawn(true);
            opened(&mut docket);
            docket.heard(&event);
            assert_eq!(duty(&mut docket, 0), Some(Duty::ShowPlant), "{event:?}");
            docket.heard(&closed(CaseVerdict::Planted));
            assert!(docket.is_empty());
        }
        let mut docket = drawn(true);
        docket.refused(&CASE);
        assert_eq!(docket.len(), 1);
        docket.heard(&closed(CaseVerdict::Passed));
        docket.refused(&CASE);
        assert!(docket.is_empty());
    }

    /// Somebody who has many verdicts found wrong does not keep a node from opening what is drawn.
    #[test]
    fn what_takes_long_keeps_nothing_waiting() {
        let mut docket = Docket::new(ME);
        for number in 0..40 {
            let case = [number; 32];
            docket.drawn(case, LeafId { account: ME, epoch: 5, index: number.into() }, 2, false);
            match number {
                0..15 => docket.heard(&AuditEvent::DisputeOpened { case, accused: ME, accuser: OTHER }),
                15..30 => {
                    let verdict = Some(CaseVerdict::Faulty);
                    docket.heard(&AuditEvent::Decided { case, verdict, deadline: 100 });
                }
                _ => {}
            }
        }
        let due = docket.due(0, 4, 1);
        let of = |pace| due.iter().filter(|(.., duty)| duty.pace() == pace).count();
        assert_eq!([of(Pace::Quick), of(Pace::Slow), of(Pace::Long)], [4, 1, 15]);
    }

    #[test]
    fn only_its_own_doubts_count() {
        let mut docket = drawn(false);
        docket.heard(&AuditEvent::SelfTestDue { account: OTHER, strikes: 1 });
        assert!(!docket.take_doubt());
        docket.heard(&AuditEvent::SelfTestDue { account: ME, strikes: 1 });
        assert!(docket.take_doubt() && !docket.take_doubt());
        assert!(docket.due(0, 0, 0).is_empty());
    }
}
