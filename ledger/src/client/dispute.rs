//! How disputes stand, and what was shown in them. `docs/disputes.md` has the rules.

use crate::eip712::Address;

/// A side of a dispute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Party {
    /// Who commits to what it computed, and shows it.
    Accused,
    /// Who chooses what is shown, and proves.
    Accuser,
}

impl Party {
    /// The other side.
    pub fn other(self) -> Self {
        match self {
            Self::Accused => Self::Accuser,
            Self::Accuser => Self::Accused,
        }
    }
}

/// What is awaited in a dispute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DisputeTurn {
    /// The accused commits to its trace.
    Commit,
    /// The accuser chooses a node, or the rows that were sent.
    Choose,
    /// The accused shows what is below the node.
    Reveal,
    /// The accused shows the roots of a chunk's rows.
    Rows,
    /// The accuser chooses one of them.
    Row,
    /// The accused shows the leaves of the row's pieces.
    Pieces,
    /// The accuser chooses one of them.
    ChoosePiece,
    /// The accused shows the piece in question.
    Piece,
    /// The accuser names a word and opens what it follows from.
    Prove,
}

impl DisputeTurn {
    /// Whose turn it is.
    pub fn party(self) -> Party {
        match self {
            Self::Commit | Self::Reveal | Self::Rows | Self::Pieces | Self::Piece => Party::Accused,
            Self::Choose | Self::Row | Self::ChoosePiece | Self::Prove => Party::Accuser,
        }
    }
}

/// How a dispute stands that is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispute {
    /// Who has to show what it computed.
    pub accused: Address,
    /// Who says that it is wrong.
    pub accuser: Address,
    /// What is awaited.
    pub turn: DisputeTurn,
    /// When the last move was, in seconds since 1970.
    pub moved: u64,
    /// Time that the accused had left then, in seconds.
    pub accused_left: u64,
    /// Time that the accuser had left then, in seconds.
    pub accuser_left: u64,
    /// Hash of the session's plan.
    pub plan: [u8; 32],
    /// Hash of the model.
    pub model: [u8; 32],
    /// [`roots`](crate::audit::roots) of what came in.
    pub in_roots: [u8; 32],
    /// [`seal`](crate::audit::seal) of the roots of what went out, as the accused has committed to them.
    pub sealed_roots: [u8; 32],
    /// Number of the stage in the plan.
    pub stage: u32,
    /// Positions.
    pub to: u32,
    /// Level of the node in question; of a piece of a row as sent, its number and [`Dispute::SENT`].
    pub level: u32,
    /// Number of the node in its level; of rows as sent, first of the chunk, then the row's position.
    pub index: u64,
    /// Node, row or piece in question.
    pub node: [u8; 32],
}

impl Dispute {
    /// Added to the number of a piece of a row as sent.
    pub const SENT: u32 = 1 << 31;

    /// Which side an account is.
    pub fn party(&self, account: &Address) -> Option<Party> {
        match *account {
            account if account == self.accused => Some(Party::Accused),
            account if account == self.accuser => Some(Party::Accuser),
            _ => None,
        }
    }

    /// The last second in which whoever's turn it is can move.
    pub fn deadline(&self) -> u64 {
        let left = match self.turn.party() {
            Party::Accused => self.accused_left,
            Party::Accuser => self.accuser_left,
        };
        self.moved.saturating_add(left)
    }
}

/// What happened in a dispute.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are called what they are, and the same as in the moves")]
pub enum DisputeEvent {
    /// It began.
    Opened { accused: Address, accuser: Address },
    /// The accused has committed to its trace.
    Committed { root: [u8; 32] },
    /// It has shown the roots of the rows it sent, chunk by chunk.
    RootsRevealed { roots: Vec<[u8; 32]> },
    /// It has shown nodes, rows or leaves, whichever were in question.
    Revealed { nodes: Vec<[u8; 32]> },
    /// It has shown a piece.
    PieceRevealed { piece: Vec<u8> },
    /// The accuser has chosen.
    Chosen { next: DisputeTurn, level: u32, index: u64, node: [u8; 32] },
    /// It is over; by the clock, if by silence.
    Resolved { accused_won: bool, silence: bool },
    /// It cannot be tried.
    Abandoned,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_of_whoever_has_to_move() {
        let mut dispute = Dispute {
            accused: [1; 20],
            accuser: [2; 20],
            turn: DisputeTurn::Commit,
            moved: 100,
            accused_left: 10,
            accuser_left: 20,
            plan: [0; 32],
            model: [0; 32],
            in_roots: [0; 32],
            sealed_roots: [0; 32],
            stage: 0,
            to: 1,
            level: 0,
            index: 0,
            node: [0; 32],
        };
        assert_eq!((dispute.turn.party(), dispute.deadline()), (Party::Accused, 110));
        dispute.turn = DisputeTurn::Prove;
        assert_eq!((dispute.turn.party(), dispute.deadline()), (Party::Accuser, 120));
        assert_eq!(dispute.party(&[2; 20]), Some(Party::Accuser));
        assert_eq!(dispute.party(&[3; 20]), None);
        assert_eq!(Party::Accused.other().other(), Party::Accused);
    }
}
