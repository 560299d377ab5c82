//! Finds the moves of one side of a dispute, from its own trace and from what the chain shows of the other's. It
//! keeps nothing between two moves that it would miss after a restart.

use ledger::{
    audit::{roots, seal},
    client::{Dispute, DisputeEvent, DisputeTurn, Party},
    dispute::Move,
};

use crate::audit::trace::{
    TraceError,
    dispute::Side,
    tree::{Depths, Hash, Node, STRIDE},
};

/// What a side does when it is its turn.
#[derive(Debug)]
pub(super) enum Answer {
    /// Makes a move.
    Move(Box<Move>),
    /// Has none, and says why.
    Nothing(&'static str),
}

/// One side of a dispute.
pub(super) struct Counsel<'a> {
    side: Side<'a>,
    /// Bytes of the session's plan.
    plan: Vec<u8>,
}

/// What the accused has shown.
#[derive(Debug, Default)]
struct Shown<'e> {
    /// Roots of the rows it sent, chunk by chunk.
    roots: &'e [Hash],
    /// Nodes of its tree, each with all that are below it.
    nodes: Vec<(Node, &'e [Hash])>,
    /// What it showed last.
    list: &'e [Hash],
    /// The piece it showed.
    piece: &'e [u8],
}

const INCOMPLETE: &str = "what the chain shows does not fit together yet";
const AGREED: &str = "nothing that the other side shows differs from what this one has computed";
const OTHERS: &str = "what was sealed is not what follows from what came in";

impl<'a> Counsel<'a> {
    pub(super) fn new(side: Side<'a>, plan: Vec<u8>) -> Self {
        Self { side, plan }
    }

    /// The move of the side whose turn it is.
    pub(super) fn answer(
        &mut self,
        dispute: &Dispute,
        events: &[DisputeEvent],
    ) -> Result<Answer, TraceError> {
        let depths = self.side.trace().depths();
        let step = match dispute.turn {
            DisputeTurn::Commit if seal(&roots(&self.side.sent_roots())) != dispute.sealed_roots => {
                return Ok(Answer::Nothing(OTHERS));
            }
            turn if turn.party() == Party::Accused => self.shows(dispute, depths)?,
            turn => {
                let shown = Shown::of(events, depths);
                if turn == DisputeTurn::Choose && self.agrees(dispute, &shown)? {
                    return Ok(Answer::Nothing(AGREED));
                }
                self.asks(dispute, &shown)?
            }
        };
        Ok(step.map_or(Answer::Nothing(INCOMPLETE), |step| Answer::Move(Box::new(step))))
    }

    /// What the accused shows.
    fn shows(&mut self, dispute: &Dispute, depths: Depths) -> Result<Option<Move>, TraceError> {
        let row = u32::try_from(dispute.index).ok();
        let piece = dispute.level.checked_sub(Dispute::SENT);
        Ok(match (dispute.turn, piece, node(dispute, depths)) {
            (DisputeTurn::Commit, ..) => Some(self.side.commit(self.plan.clone())?),
            (DisputeTurn::Rows, ..) => row.and_then(|chunk| self.side.reveal_rows(chunk)),
            (DisputeTurn::Pieces, ..) => row.and_then(|position| self.side.reveal_row(position)),
            (DisputeTurn::Piece, Some(piece), _) => {
                row.and_then(|position| self.side.reveal_sent(position, piece))
            }
            (DisputeTurn::Piece, None, Some(Node { level: 0, index })) => {
                Some(self.side.reveal_piece(index)?)
            }
            (DisputeTurn::Reveal, None, Some(node)) => Some(self.side.reveal(node)?),
            _ => None,
        })
    }

    /// What the accuser chooses and proves.
    fn asks(&mut self, dispute: &Dispute, shown: &Shown<'_>) -> Result<Option<Move>, TraceError> {
        // A restart has forgotten them.
        for (node, nodes) in &shown.nodes {
            self.side.learn(*node, nodes);
        }
        let row = u32::try_from(dispute.index).ok();
        Ok(match dispute.turn {
            DisputeTurn::Choose => self.choose(dispute, shown)?,
            DisputeTurn::Row => row.and_then(|chunk| self.side.choose_row(chunk, shown.list)),
            DisputeTurn::ChoosePiece => row.and_then(|position| self.side.choose_piece(position, shown.list)),
            DisputeTurn::Prove => self.prove(dispute, shown)?,
            _ => None,
        })
    }

    fn choose(&mut self, dispute: &Dispute, shown: &Shown<'_>) -> Result<Option<Move>, TraceError> {
        let depths = self.side.trace().depths();
        let Some(&(last, nodes)) =
            shown.nodes.last().filter(|(last, _)| node(dispute, depths) == Some(*last))
        else {
            return Ok(None);
        };
        match self.side.choose(last, nodes)? {
            Some((_, step)) => Ok(Some(step)),
            // Rows are chosen in place of the tree, not within it.
            None if last == depths.root() => Ok(self.side.choose_rows(shown.roots)),
            None => Ok(None),
        }
    }

    /// Whether the accused has shown, with its trace, nothing to accuse it of.
    fn agrees(&mut self, dispute: &Dispute, shown: &Shown<'_>) -> Result<bool, TraceError> {
        let root = self.side.trace().depths().root();
        match shown.nodes[..] {
            [(node, nodes)] if node == root && dispute.level == root.level => {
                Ok(self.side.trace().below(root)? == nodes && self.side.sent_roots() == shown.roots)
            }
            _ => Ok(false),
        }
    }

    fn prove(&mut self, dispute: &Dispute, shown: &Shown<'_>) -> Result<Option<Move>, TraceError> {
        let words = Some(shown.piece).filter(|piece| piece.len() == 512);
        if let Some(number) = dispute.level.checked_sub(Dispute::SENT) {
            let (Ok(position), Some(piece)) = (u32::try_from(dispute.index), words) else { return Ok(None) };
            return self.side.prove_sent(position, number, piece).map(Some);
        }
        let is_there = dispute.node != [0; 32];
        match node(dispute, self.side.trace().depths()) {
            Some(Node { level: 0, index }) if !is_there => self.side.prove(index, None).map(Some),
            Some(Node { level: 0, index }) if words.is_some() => self.side.prove(index, words).map(Some),
            _ => Ok(None),
        }
    }
}

/// The node in question, if the tree has it.
fn node(dispute: &Dispute, depths: Depths) -> Option<Node> {
    let node = Node { level: dispute.level, index: dispute.index };
    is_inside(node, depths).then_some(node)
}

fn is_inside(node: Node, depths: Depths) -> bool {
    node.level <= depths.total() && node.index >> (depths.total() - node.level) == 0
}

impl<'e> Shown<'e> {
    fn of(events: &'e [DisputeEvent], depths: Depths) -> Self {
        let (mut shown, mut above) = (Self::default(), Some(depths.root()));
        for event in events {
            match event {
                DisputeEvent::RootsRevealed { roots } => shown.roots = roots,
                DisputeEvent::PieceRevealed { piece } => shown.piece = piece,
                DisputeEvent::Revealed { nodes } => {
                    shown.list = nodes;
                    if let Some(node) = above.take()
                        && nodes.len() == 1 << node.level.min(STRIDE)
                    {
                        shown.nodes.push((node, nodes));
                    }
                }
                DisputeEvent::Chosen { next, level, index, .. } => {
                    let node = Node { level: *level, index: *index };
                    let is_node = *next == DisputeTurn::Reveal && is_inside(node, depths);
                    above = is_node.then_some(node);
                }
                _ => {}
            }
        }
        shown
    }
}
