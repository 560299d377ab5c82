//! A case as `AuditManager` keeps it, with an honest auditor and others who do what they like.

use ledger::audit::LeafId;
use ledger::{
    audit::plant,
    client::{CaseAnswer, Pod},
};
use proptest::prelude::*;

use super::*;

const ID: [u8; 32] = [1; 32];
const NODE: Address = [9; 20];
const ME: Address = [1; 20];
const LISTED: [(Address, u64); 4] = [(ME, 5), ([2; 20], 5), ([3; 20], 5), ([4; 20], 5)];
const SALT: [u8; 32] = [7; 32];
const RIGHT: [u8; 32] = [21; 32];
const WRONG: [u8; 32] = [22; 32];
const WINDOW: u64 = 100;

fn terms(game: bool) -> AuditTerms {
    AuditTerms {
        epoch_s: 3600,
        draw_window_s: 21_600,
        min_auditor_stake: Pod(1),
        lapse_bps: 100,
        miss_bps: 2000,
        dispute_bond: Pod(1000),
        game: game.then_some([8; 20]),
    }
}

fn chunk(sealed: [u8; 32]) -> Chunk {
    Chunk { sealed_roots: seal(&sealed), from: 0, to: 64, ..Chunk::default() }
}

/// What the contract does, as far as auditors feel it. Everything is refused by an error.
struct Contract {
    case: Case,
    chunk: Chunk,
    game: bool,
    now: u64,
    draws: usize,
    /// Of 1/10000 of stake, each time.
    slashed: Vec<(Address, u32)>,
}

type Done = Result<(), &'static str>;

impl Contract {
    fn new(sealed: [u8; 32], game: bool) -> Self {
        let leaf = LeafId { account: NODE, epoch: 3, index: 0 };
        let case = Case {
            leaf,
            stage: CaseStage::Opening,
            deadline: WINDOW,
            verdict: None,
            challenger: None,
            answers: Vec::new(),
        };
        Self { case, chunk: chunk(sealed), game, now: 0, draws: 0, slashed: Vec::new() }
    }

    fn enter(&mut self, stage: CaseStage) {
        (self.case.stage, self.case.deadline) = (stage, self.now + WINDOW);
    }

    fn close(&mut self, verdict: CaseVerdict) {
        self.case.verdict = Some(verdict);
        self.enter(CaseStage::Closed);
    }

    fn at(&self, stages: &[CaseStage]) -> Done {
        let there = stages.contains(&self.case.stage) && self.now <= self.case.deadline;
        if there { Ok(()) } else { Err("stage or time") }
    }

    fn step(&self, place: usize) -> Option<AnswerStep> {
        self.case.answers.get(place).map(|answer| answer.step)
    }

    fn has(&self, step: AnswerStep) -> bool {
        self.case.answers.iter().any(|answer| answer.step == step)
    }

    fn of(&mut self, who: Address, steps: &[AnswerStep]) -> Result<&mut CaseAnswer, &'static str> {
        let mut answers = self.case.answers.iter_mut();
        answers.find(|answer| answer.auditor == who && steps.contains(&answer.step)).ok_or("not yours")
    }

    fn act(&mut self, who: Address, action: &AuditAction) -> Done {
        match action {
            AuditAction::Assign { auditors, .. } => self.assign(auditors)?,
            AuditAction::Commit { answer, .. } => {
                self.at(&[CaseStage::Committing])?;
                let own = self.of(who, &[AnswerStep::Drawn])?;
                (own.step, own.value) = (AnswerStep::Committed, *answer);
                let first = self.case.answers.len() == 1;
                self.enter(if first { CaseStage::Answering } else { CaseStage::Revealing });
            }
            AuditAction::Differ { .. } => {
                self.at(&[CaseStage::Answering])?;
                self.of(who, &[AnswerStep::Committed])?.step = AnswerStep::Differs;
                self.enter(CaseStage::Drawing);
            }
            AuditAction::Reveal { chunk, roots, salt, .. } => self.reveal(who, chunk, roots, salt)?,
            AuditAction::Dispute { .. } => {
                self.at(&[CaseStage::Deciding])?;
                let node = self.case.verdict == Some(CaseVerdict::Faulty);
                let opposes = self.of(who, &[AnswerStep::Opposed]).is_ok();
                if !self.game || (node && who != NODE) || (!node && !opposes) {
                    return Err("not yours");
                }
                self.case.challenger = Some(who);
                self.enter(CaseStage::Matching);
            }
            AuditAction::MatchBond { .. } => {
                self.at(&[CaseStage::Matching])?;
                let accused = self.case.challenger == Some(NODE);
                if accused {
                    self.of(who, &[AnswerStep::Opposed]).map(|_| ())?
                } else if who != NODE {
                    return Err("not yours");
                }
                let accuser = if accused { who } else { self.case.challenger.unwrap_or_default() };
                self.case.answers.sort_by_key(|answer| answer.auditor != accuser);
                self.enter(CaseStage::Disputed);
            }
            AuditAction::TimeOut { .. } => self.time_out()?,
            _ => return Err("nothing of a case"),
        }
        Ok(())
    }

    fn assign(&mut self, auditors: &[(Address, u64)]) -> Done {
        self.at(&[CaseStage::Drawing])?;
        let taken = |who: &Address| self.case.answers.iter().any(|answer| answer.auditor == *who);
        let left: Vec<Address> =
            auditors.iter().map(|(account, _)| *account).filter(|who| !taken(who)).collect();
        if left.is_empty() {
            return Err("nobody");
        }
        if self.draws == 3 {
            self.end_drawing();
            return Ok(());
        }
        let auditor = left[self.draws % left.len()];
        self.draws += 1;
        self.case.answers.push(CaseAnswer { auditor, step: AnswerStep::Drawn, value: [0; 32] });
        self.enter(CaseStage::Committing);
        Ok(())
    }

    fn reveal(&mut self, who: Address, chunk: &Chunk, roots: &[u8; 32], salt: &[u8; 32]) -> Done {
        use AnswerStep::*;
        self.at(&[CaseStage::Answering, CaseStage::Revealing])?;
        let sealed = self.chunk.sealed_roots;
        let equal = *roots != NO_ROWS && seal(roots) == sealed;
        let first = self.case.stage == CaseStage::Answering;
        let own = self.of(who, &[Committed, Differs])?;
        if own.value != answer(&ID, &who, roots, salt) || chunk.sealed_roots != sealed {
            return Err("wrong answer");
        }
        if first && !equal {
            return Err("answers differ");
        }
        own.step = match (equal, *roots == NO_ROWS) {
            (true, _) => Confirmed,
            (_, true) => Unserved,
            _ => Opposed,
        };
        own.value = *roots;
        if first {
            self.close(CaseVerdict::Passed);
        } else if !self.has(Committed) && !self.has(Differs) {
            self.decide();
        }
        Ok(())
    }

    fn end_drawing(&mut self) {
        match self.step(0) {
            Some(AnswerStep::Differs) => self.enter(CaseStage::Revealing),
            _ => self.close(CaseVerdict::Undecided),
        }
    }

    fn decide(&mut self) {
        use AnswerStep::*;
        let verdict = match (self.has(Opposed), self.has(Confirmed)) {
            (true, false) => Some(CaseVerdict::Faulty),
            (true, true) => Some(CaseVerdict::Passed),
            _ => None,
        };
        self.slash(&[Committed, Differs], 100);
        match verdict {
            Some(_) => {
                self.case.verdict = verdict;
                self.enter(CaseStage::Deciding);
            }
            None => self.close(if self.has(Confirmed) { CaseVerdict::Passed } else { CaseVerdict::Withheld }),
        }
    }

    fn time_out(&mut self) -> Done {
        use AnswerStep::*;
        if self.now <= self.case.deadline || self.case.stage == CaseStage::Closed {
            return Err("too early");
        }
        match self.case.stage {
            CaseStage::Opening => self.close(CaseVerdict::Silent),
            CaseStage::Drawing => self.close(CaseVerdict::Undecided),
            CaseStage::Committing | CaseStage::Answering => {
                let gone = self.case.answers.pop().ok_or("nobody")?;
                self.slashed.push((gone.auditor, 100));
                self.enter(CaseStage::Drawing);
            }
            CaseStage::Revealing => self.decide(),
            CaseStage::Deciding => {
                if self.case.verdict == Some(CaseVerdict::Passed) && self.game {
                    self.slash(&[Opposed], 100);
                }
                self.close(self.case.verdict.unwrap_or(CaseVerdict::Undecided));
            }
            CaseStage::Matching if self.case.challenger == Some(NODE) => {
                self.slash(&[Opposed], 100);
                self.close(CaseVerdict::Passed);
            }
            CaseStage::Matching => self.close(CaseVerdict::Faulty),
            _ => self.close(CaseVerdict::Undecided),
        }
        Ok(())
    }

    fn slash(&mut self, steps: &[AnswerStep], bps: u32) {
        let whose = self.case.answers.iter().filter(|answer| steps.contains(&answer.step));
        self.slashed.extend(whose.map(|answer| (answer.auditor, bps)));
    }

    /// The game is played by its rules: who is right wins.
    fn played(&mut self) {
        if self.case.stage == CaseStage::Disputed {
            let right = self.case.answers[0].value == RIGHT && self.chunk.sealed_roots != seal(&RIGHT);
            if !right {
                self.slashed.push((self.case.answers[0].auditor, 2000));
            }
            self.close(if right { CaseVerdict::Faulty } else { CaseVerdict::Passed });
        }
    }
}

/// One of the others does something, or tries to.
fn foreign(contract: &mut Contract, choice: u8) {
    let who = [[2; 20], [3; 20], [4; 20], NODE][usize::from(choice % 4)];
    let roots = [RIGHT, WRONG, NO_ROWS][usize::from(choice / 4 % 3)];
    let opened = contract.chunk;
    let action = match choice / 12 % 8 {
        0 => AuditAction::Assign { case: ID, auditors: LISTED.to_vec() },
        1 => AuditAction::Commit { case: ID, answer: answer(&ID, &who, &roots, &SALT) },
        2 => AuditAction::Differ { case: ID },
        3 | 4 => AuditAction::Reveal { case: ID, chunk: opened, roots, salt: SALT },
        5 => AuditAction::Dispute { case: ID, bond: Pod(0) },
        6 => AuditAction::MatchBond { case: ID, chunk: opened, bond: Pod(0) },
        _ => AuditAction::TimeOut { case: ID },
    };
    // Most of it is refused.
    let _ = contract.act(who, &action);
}

/// What the honest auditor's machine knows; survives crashes.
fn honest(contract: &mut Contract, own: &mut Option<Own>, served: bool) -> Duty {
    let terms = terms(contract.game);
    let seen = Seen {
        id: ID,
        case: &contract.case.clone(),
        chunk: Some(&contract.chunk.clone()),
        listed: Some(&LISTED),
        own: *own,
    };
    let duty = due(Asker { me: ME, now: contract.now, terms: &terms }, seen);
    match &duty {
        Duty::Compute { .. } => {
            *own = Some(Own { roots: if served { RIGHT } else { NO_ROWS }, salt: SALT });
            return honest(contract, own, served);
        }
        Duty::Send(action) => contract.act(ME, action).expect("what it alone sends is taken"),
        Duty::Offer(action) => contract.act(ME, action).expect("nobody was faster"),
        Duty::Play => contract.played(),
        Duty::None | Duty::Stranger => {}
    }
    duty
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever others do and however the node computed, an auditor that does in time what is due loses nothing,
    /// and every case comes to an end.
    #[test]
    fn an_honest_auditor_is_never_slashed(
        steps in prop::collection::vec((any::<u8>(), 1u64..60), 0..80),
        node in 0usize..3, game: bool, served: bool, lost: bool,
    ) {
        let sealed = [RIGHT, WRONG, plant(&NODE, &SALT)][node];
        let mut contract = Contract::new(sealed, game);
        contract.enter(CaseStage::Drawing);
        let mut own = None;
        for (choice, passes) in steps {
            foreign(&mut contract, choice);
            // Twice: the second is for nothing, or for what the first has led to.
            honest(&mut contract, &mut own, served);
            if lost && choice % 5 == 0 {
                // Its files are gone, and the salt is the account's.
                own = None;
            }
            let duty = honest(&mut contract, &mut own, served);
            prop_assert_ne!(duty, Duty::Stranger);
            contract.now += passes;
        }
        while contract.case.stage != CaseStage::Closed {
            let before = contract.case.clone();
            honest(&mut contract, &mut own, served);
            if contract.case == before {
                // The others are silent, or only they can go on.
                contract.now += WINDOW / 2;
                if contract.now > contract.case.deadline + WINDOW {
                    contract.act([2; 20], &AuditAction::TimeOut { case: ID }).expect("somebody else does it");
                }
            }
        }
        let mine = contract.slashed.iter().filter(|(who, _)| *who == ME).count();
        prop_assert!(mine == 0, "{:?} {:?}", contract.slashed, contract.case);
    }
}

/// With only honest auditors a right result passes, and a wrong one is faulty.
#[test]
fn honest_auditors_find_the_truth() {
    for (sealed, verdict) in [(RIGHT, CaseVerdict::Passed), (WRONG, CaseVerdict::Faulty)] {
        let mut contract = Contract::new(sealed, true);
        contract.enter(CaseStage::Drawing);
        let terms = terms(true);
        while contract.case.stage != CaseStage::Closed {
            let mut acted = false;
            for (me, _) in LISTED {
                let (case, opened) = (contract.case.clone(), contract.chunk);
                let own = Some(Own { roots: RIGHT, salt: SALT });
                let seen = Seen { id: ID, case: &case, chunk: Some(&opened), listed: Some(&LISTED), own };
                match due(Asker { me, now: contract.now, terms: &terms }, seen) {
                    Duty::Send(action) | Duty::Offer(action) => {
                        acted |= contract.act(me, &action).is_ok();
                    }
                    duty => assert_eq!(duty, Duty::None),
                }
            }
            contract.now += if acted { 1 } else { WINDOW };
        }
        assert_eq!(contract.case.verdict, Some(verdict));
        assert_eq!(contract.slashed, []);
    }
}

/// A case at a stage, with this auditor so far, and what is due before and after the deadline.
fn stage(stage: CaseStage, step: Option<AnswerStep>, value: [u8; 32], own: Option<[u8; 32]>) -> [Duty; 2] {
    let mut case = Contract::new(WRONG, true).case;
    (case.stage, case.verdict) = (stage, Some(CaseVerdict::Passed));
    case.answers.extend(step.map(|step| CaseAnswer { auditor: ME, step, value }));
    let own = own.map(|roots| Own { roots, salt: SALT });
    let opened = chunk(WRONG);
    [WINDOW, WINDOW + 1].map(|now| {
        let seen = Seen { id: ID, case: &case, chunk: Some(&opened), listed: Some(&LISTED), own };
        due(Asker { me: ME, now, terms: &terms(true) }, seen)
    })
}

#[test]
fn each_stage_has_its_duty() {
    use CaseStage::*;
    let time_out = Duty::Offer(AuditAction::TimeOut { case: ID });
    let compute = Duty::Compute { until: WINDOW };
    let committed = |roots: &[u8; 32]| answer(&ID, &ME, roots, &SALT);
    let reveal = |roots| Duty::Send(AuditAction::Reveal { case: ID, chunk: chunk(WRONG), roots, salt: SALT });
    let differ = Duty::Send(AuditAction::Differ { case: ID });
    let nothing = [Duty::None, time_out.clone()];

    assert_eq!(stage(Opening, None, [0; 32], None), nothing);
    let assign = Duty::Offer(AuditAction::Assign { case: ID, auditors: LISTED.to_vec() });
    assert_eq!(stage(Drawing, None, [0; 32], None), [assign, time_out.clone()]);
    // Its own silence is not for it to report.
    assert_eq!(stage(Committing, Some(AnswerStep::Drawn), [0; 32], None), [compute.clone(), Duty::None]);
    let commit = Duty::Send(AuditAction::Commit { case: ID, answer: committed(&RIGHT) });
    let drawn = stage(Committing, Some(AnswerStep::Drawn), [0; 32], Some(RIGHT));
    assert_eq!(drawn, [commit, Duty::None]);
    assert_eq!(stage(Committing, Some(AnswerStep::Differs), [0; 32], Some(RIGHT)), nothing);

    let has = Some(AnswerStep::Committed);
    assert_eq!(stage(Answering, has, committed(&RIGHT), Some(RIGHT)), [differ.clone(), Duty::None]);
    assert_eq!(stage(Answering, has, committed(&WRONG), Some(WRONG)), [reveal(WRONG), Duty::None]);
    assert_eq!(stage(Answering, has, committed(&NO_ROWS), Some(RIGHT)), [differ, Duty::None]);
    assert_eq!(stage(Answering, has, committed(&RIGHT), None), [compute.clone(), Duty::None]);
    assert_eq!(stage(Answering, has, committed(&WRONG), Some(RIGHT)), [Duty::Stranger, Duty::None]);
    assert_eq!(stage(Revealing, has, committed(&RIGHT), Some(RIGHT)), [reveal(RIGHT), Duty::None]);
    assert_eq!(stage(Revealing, has, committed(&NO_ROWS), Some(NO_ROWS)), [reveal(NO_ROWS), Duty::None]);
    assert_eq!(stage(Revealing, Some(AnswerStep::Opposed), RIGHT, Some(RIGHT)), nothing);

    // Passed against what it found.
    let dispute = Duty::Send(AuditAction::Dispute { case: ID, bond: Pod(1000) });
    let opposed = Some(AnswerStep::Opposed);
    assert_eq!(stage(Deciding, opposed, RIGHT, Some(RIGHT)), [dispute, Duty::None]);
    assert_eq!(stage(Deciding, opposed, RIGHT, Some(WRONG)), [Duty::Stranger, Duty::None]);
    assert_eq!(stage(Deciding, opposed, RIGHT, None), [compute, Duty::None]);
    assert_eq!(stage(Deciding, Some(AnswerStep::Confirmed), WRONG, Some(WRONG)), nothing);
    assert_eq!(stage(Matching, opposed, RIGHT, Some(RIGHT)), nothing);
    assert_eq!(stage(Disputed, opposed, RIGHT, Some(RIGHT)), [Duty::Play, time_out]);
    assert_eq!(stage(Closed, opposed, RIGHT, Some(RIGHT)), [Duty::None, Duty::None]);
}

#[test]
fn ranks_are_an_order() {
    let all: Vec<Address> = (0..20).map(|n| [n; 20]).collect();
    let mut ranks: Vec<usize> = all.iter().map(|me| rank(&ID, me, &all)).collect();
    ranks.sort_unstable();
    assert_eq!(ranks, (0..20).collect::<Vec<_>>());
    assert_eq!(rank(&ID, &[99; 20], &[[99; 20]]), 0);
}
