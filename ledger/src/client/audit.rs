//! Audits: what accounts do in them, how they stand, and what happened. `docs/contracts.md` has the way of a case.

use super::amount::Pod;
use crate::{
    audit::{Chunk, LeafId},
    dispute::Move,
    draw::Rate,
    eip712::Address,
};

/// Something an account does for audits. Cases are named by [`LeafId::case`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditAction {
    /// Enters a round of the beacon.
    SubmitRound {
        /// Its number.
        round: u64,
        /// The network's signature.
        signature: [u8; 64],
    },
    /// Posts the root over the account's commitments of the epoch that runs.
    Post {
        /// Root of the [`Tree`](crate::audit::Tree).
        root: [u8; 32],
        /// How many leaves.
        count: u32,
        /// How many of them, the first ones, are of prompts.
        prompts: u32,
    },
    /// Offers the account as an auditor.
    Join {
        /// Who has to go where the set is full.
        replaced: Option<Address>,
    },
    /// Takes that back.
    Resign,
    /// Takes an auditor out who has too little stake.
    Drop(Address),
    /// Writes down the auditors' stakes for the audits of the next epoch.
    ListAuditors,

    /// Calls for a leaf that was drawn.
    Draw(LeafId),
    /// Opens a leaf that was drawn.
    Open {
        /// The leaf's place.
        leaf: LeafId,
        /// What it holds.
        chunk: Chunk,
        /// From the leaf to the root.
        proof: Vec<[u8; 32]>,
    },
    /// Draws a case's next auditor.
    Assign {
        /// The case.
        case: [u8; 32],
        /// [`AuditEvent::AuditorsListed`] of the epoch before the leaf's.
        auditors: Vec<(Address, u64)>,
    },
    /// Commits the account to its answer.
    Commit {
        /// The case.
        case: [u8; 32],
        /// [`answer`](crate::audit::answer).
        answer: [u8; 32],
    },
    /// Says that the account, the first auditor, has another result than the node.
    Differ {
        /// The case.
        case: [u8; 32],
    },
    /// Shows the account's result.
    Reveal {
        /// The case.
        case: [u8; 32],
        /// What the leaf holds.
        chunk: Chunk,
        /// [`roots`](crate::audit::roots) of what came out; zeros if there were no rows to compute it from.
        roots: [u8; 32],
        /// The salt that it was committed to with.
        salt: [u8; 32],
    },
    /// Goes on with a case after a deadline.
    TimeOut {
        /// The case.
        case: [u8; 32],
    },
    /// Shows that a fault was planted.
    ShowPlant {
        /// The case.
        case: [u8; 32],
        /// What the leaf holds.
        chunk: Chunk,
        /// What the fault was made of.
        salt: [u8; 32],
    },

    /// Disputes a verdict.
    Dispute {
        /// The case.
        case: [u8; 32],
        /// [`AuditTerms::dispute_bond`].
        bond: Pod,
    },
    /// Takes up a dispute.
    MatchBond {
        /// The case.
        case: [u8; 32],
        /// What the leaf holds.
        chunk: Chunk,
        /// [`AuditTerms::dispute_bond`].
        bond: Pod,
    },
    /// Makes a move in the dispute over a case.
    Play {
        /// The case.
        case: [u8; 32],
        /// The move.
        step: Box<Move>,
    },
    /// Fetches what the account has from disputes.
    ClaimBonds,
}

/// What audits go by on a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditTerms {
    /// Length of an epoch, in seconds; epochs are counted from 1970.
    pub epoch_s: u64,
    /// How long after an epoch's end its leaves can be drawn, in seconds.
    pub draw_window_s: u64,
    /// Least active stake of an auditor.
    pub min_auditor_stake: Pod,
    /// Taken of an auditor that is silent or does not defend its answer, in 1/10000.
    pub lapse_bps: u16,
    /// Taken of an auditor that confirms a planted fault or loses a dispute, in 1/10000.
    pub miss_bps: u16,
    /// What each side of a dispute puts up.
    pub dispute_bond: Pod,
    /// What settles disputes, if anything does.
    pub game: Option<Address>,
}

/// A round that draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditRound {
    /// Its number.
    pub round: u64,
    /// What it has drawn, once it was submitted.
    pub randomness: Option<[u8; 32]>,
}

/// A leaf that was posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditLeaf {
    /// The number of its case, which is what the beacon draws.
    pub case: [u8; 32],
    /// How often such a leaf is drawn.
    pub rate: Rate,
}

/// Where a case is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaseStage {
    /// The node has to open the leaf.
    Opening,
    /// An auditor is to be drawn.
    Drawing,
    /// It has to commit to its answer.
    Committing,
    /// The first auditor has to show its answer, or to say that it differs.
    Answering,
    /// Both auditors have to show their answers.
    Revealing,
    /// The verdict can be disputed.
    Deciding,
    /// The other side has to match the bond.
    Matching,
    /// The game runs.
    Disputed,
    /// It is over.
    Closed,
}

/// What came of a case, or will if nobody objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaseVerdict {
    /// The node computed right.
    Passed,
    /// The node did not open the leaf.
    Silent,
    /// Two auditors got no rows from it.
    Withheld,
    /// The node computed wrong.
    Faulty,
    /// The node had planted a fault, and shown it.
    Planted,
    /// Nobody answered for long enough, or the game could not decide.
    Undecided,
}

/// How far an auditor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerStep {
    /// It has to answer.
    Drawn,
    /// It has committed to an answer.
    Committed,
    /// It says that its result is another, and has not shown it yet.
    Differs,
    /// It has shown the node's result.
    Confirmed,
    /// It has shown another.
    Opposed,
    /// It got no rows.
    Unserved,
}

/// An auditor of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaseAnswer {
    /// Who.
    pub auditor: Address,
    /// How far it is.
    pub step: AnswerStep,
    /// What it committed to, then what it showed; zeros before.
    pub value: [u8; 32],
}

/// The audit of one leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The leaf's place.
    pub leaf: LeafId,
    /// Where it is on its way.
    pub stage: CaseStage,
    /// When the stage ends; of a closed case, until when a planted fault can be shown.
    pub deadline: u64,
    /// What came out, or will if nobody objects.
    pub verdict: Option<CaseVerdict>,
    /// Who disputes it.
    pub challenger: Option<Address>,
    /// The auditors that were drawn and not replaced: two at most.
    pub answers: Vec<CaseAnswer>,
}

/// What a contract said of an audit. Times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are called what they are, and the same in all events")]
pub enum AuditEvent {
    /// A round of the beacon was entered.
    RoundSubmitted { round: u64, randomness: [u8; 32] },
    /// An account has posted the root of an epoch.
    Posted { account: Address, epoch: u64, root: [u8; 32], count: u32, prompts: u32 },
    /// Somebody can be asked to audit.
    AuditorJoined { auditor: Address },
    /// Somebody cannot be asked any more.
    AuditorLeft { auditor: Address },
    /// Of whom the next epoch's audits are drawn, with their stakes in gwei of POD.
    AuditorsListed { epoch: u64, auditors: Vec<(Address, u64)> },
    /// A leaf was drawn, and has to be opened.
    LeafDrawn { case: [u8; 32], leaf: LeafId, deadline: u64 },
    /// A drawn leaf was opened.
    LeafOpened { case: [u8; 32], account: Address, chunk: Box<Chunk> },
    /// An auditor was drawn, and has to commit to its answer. `None` where nobody is left: then the first one,
    /// whose result is another than the node's, has to show it.
    AuditorDrawn { case: [u8; 32], auditor: Option<Address>, deadline: u64 },
    /// An auditor has committed to its answer.
    AnswerCommitted { case: [u8; 32], auditor: Address },
    /// The first auditor has another result.
    AnswerDiffers { case: [u8; 32], auditor: Address },
    /// An auditor has shown its result.
    AnswerRevealed { case: [u8; 32], auditor: Address, roots: [u8; 32] },
    /// What will come out if nobody objects.
    Decided { case: [u8; 32], verdict: Option<CaseVerdict>, deadline: u64 },
    /// Somebody disputes the verdict.
    DisputeAsked { case: [u8; 32], challenger: Address, deadline: u64 },
    /// The game runs.
    DisputeOpened { case: [u8; 32], accused: Address, accuser: Address },
    /// A case is over.
    Closed { case: [u8; 32], account: Address, verdict: Option<CaseVerdict> },
    /// The chunk of a case is not to be paid.
    PayForfeited { case: [u8; 32], account: Address },
    /// An account should check itself before it serves again.
    SelfTestDue { account: Address, strikes: u32 },
    /// Stake was taken, as far as there was any and the cap allowed.
    Penalised { case: [u8; 32], operator: Address, role: u32, taken: Pod },
    /// Bonds and rewards of disputes were paid out.
    BondsClaimed { account: Address, amount: Pod },
}
