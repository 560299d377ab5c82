//! Disputes: moves as calls of `DisputeGame`, how one stands, and what was shown in it.

use ethers_contract::EthLogDecode;
use ethers_core::{
    abi::{AbiEncode, RawLog},
    types::{Filter, H256, Log, U256},
};

use super::{
    bindings::dispute_game::{self as game, DisputeGameEvents as Game},
    calls::Order,
    convert::{to_h160, to_h256, to_u64},
    events::LONGEST,
    reads::Reader,
};
use crate::{
    client::{Deployment, Dispute, DisputeEvent, DisputeTurn, Error},
    dispute::{Entered, Gap, Move, Opening, Piece, Segment, Unit},
    eip712::{Address, keccak, padded},
};

/// The number that `DisputeGame` has for a case of `outcome`'s.
pub fn dispute_id(outcome: &Address, case: &[u8; 32]) -> [u8; 32] {
    keccak([padded(outcome), *case].as_flattened())
}

/// The call of `DisputeGame` that is a move of dispute `id`.
pub fn dispute_call(id: &[u8; 32], step: &Move) -> Vec<u8> {
    let id = *id;
    match step.clone() {
        Move::Commit { plan, unit: of, nodes, roots } => {
            game::CommitCall { id, plan: plan.into(), unit: unit(of), nodes, roots }.encode()
        }
        Move::Choose { child, node, path } => {
            game::ChooseCall { id, child: child.into(), node, path }.encode()
        }
        Move::Reveal { nodes } => game::RevealCall { id, nodes }.encode(),
        Move::ChooseRows { chunk, roots } => game::ChooseRowsCall { id, chunk: chunk.into(), roots }.encode(),
        Move::RevealRows { rows } => game::RevealRowsCall { id, rows }.encode(),
        Move::ChooseRow { position, row, in_chunk } => {
            game::ChooseRowCall { id, position: position.into(), row, in_chunk }.encode()
        }
        Move::RevealPieces { pieces } => game::RevealPiecesCall { id, pieces }.encode(),
        Move::ChoosePiece { piece } => game::ChoosePieceCall { id, piece }.encode(),
        Move::RevealPiece { piece, pieces } => {
            game::RevealPieceCall { id, piece: piece.into(), pieces }.encode()
        }
        Move::Prove { piece, at, opening: what } => {
            let opening = opening(*what);
            game::ProveCall { id, piece: piece.into(), offset: at.into(), opening }.encode()
        }
        Move::Expire => game::ExpireCall { id }.encode(),
        Move::Abandon { plan, gap: what } => {
            game::AbandonCall { id, plan: plan.into(), gap: gap(*what) }.encode()
        }
    }
}

/// The order for a move of a case's dispute.
pub(super) fn order(d: &Deployment, case: &[u8; 32], step: &Move) -> Result<Order, Error> {
    let data = dispute_call(&dispute_id(&d.audits, case), step);
    Ok(Order { to: Some(to_h160(place(d)?)), value_wei: 0, data })
}

/// Where disputes are settled.
fn place(d: &Deployment) -> Result<&Address, Error> {
    match d.game {
        game if game == [0; 20] => Err(Error::Invalid("this deployment settles no disputes")),
        _ => Ok(&d.game),
    }
}

fn unit(Unit { contents: c, description, in_unit, in_model }: Unit) -> game::Unit {
    let contents = game::Contents {
        numerics: c.numerics,
        tokenizer: c.tokenizer,
        rope: c.rope,
        layers: c.layers,
        layer_root: c.layer_root,
    };
    game::Unit { contents, description: description.into(), in_unit, in_model }
}

fn piece(Piece { words, path }: Piece) -> game::Piece {
    game::Piece { words: words.into(), path }
}

fn segment(segment: Segment) -> game::Opened {
    let Segment { data, format, rows, columns, in_tensor, in_unit } = segment;
    game::Opened { data: data.into(), format, rows, columns, in_tensor, in_unit }
}

fn entered(Entered { roots, token, row, in_chunk, piece, in_row }: Entered) -> game::Entered {
    game::Entered { roots, token, row, in_chunk, piece: piece.into(), in_row }
}

fn opening(opening: Opening) -> game::Opening {
    game::Opening {
        unit: unit(opening.unit.unwrap_or_default()),
        pieces: opening.pieces.into_iter().map(piece).collect(),
        matrix: segment(opening.matrix),
        vector: segment(opening.vector),
        rotation: opening.rotation.into(),
        in_rope: opening.in_rope,
        entered: entered(opening.entered),
    }
}

fn gap(Gap { unit: of, index, tensor, opened }: Gap) -> game::Gap {
    game::Gap { unit: unit(of), index: index.into(), tensor: tensor.into(), opened: segment(opened) }
}

impl Reader {
    pub(super) async fn dispute(&self, case: [u8; 32]) -> Result<Option<Dispute>, Error> {
        let at = place(&self.deployment)?;
        let id = dispute_id(&self.deployment.audits, &case);
        let (found, about): (game::GameOfReturn, game::StageOfReturn) = tokio::try_join!(
            self.call(at, game::GameOfCall { id }),
            self.call(at, game::StageOfCall { id })
        )?;
        let (game::GameOfReturn(found), game::StageOfReturn(about)) = (found, about);
        let Some(turn) = turn(found.turn) else { return Ok(None) };
        Ok(Some(Dispute {
            accused: found.accused.0,
            accuser: found.accuser.0,
            turn,
            moved: found.moved,
            accused_left: found.accused_left,
            accuser_left: found.accuser_left,
            plan: found.plan,
            model: about.model,
            in_roots: about.in_roots,
            sealed_roots: found.sealed_roots,
            stage: found.number,
            to: about.to,
            level: found.level,
            index: found.index,
            node: found.node,
        }))
    }

    /// What was shown and chosen in a dispute, in order, and how it ended.
    pub(super) async fn dispute_events(&self, case: [u8; 32]) -> Result<Vec<DisputeEvent>, Error> {
        let at = place(&self.deployment)?;
        let id = dispute_id(&self.deployment.audits, &case);
        let filter = Filter::new().address(to_h160(at)).topic1(to_h256(&id));
        let opens = |log: &Log| matches!(decode(log), Some(DisputeEvent::Opened { .. }));
        let logs = self.logs_back_to(&filter, opens).await?;
        let is_of_game = |log: &&Log| log.address.0 == *at && log.topics.get(1) == Some(&H256(id));
        Ok(logs.iter().filter(is_of_game).filter_map(decode).collect())
    }
}

fn turn(number: u8) -> Option<DisputeTurn> {
    use DisputeTurn::*;
    let all = [Commit, Choose, Reveal, Rows, Row, Pieces, ChoosePiece, Piece, Prove];
    all.get(usize::from(number).checked_sub(1)?).copied()
}

/// The event of a log of the game; `None` of one that nobody needs.
fn decode(log: &Log) -> Option<DisputeEvent> {
    if log.data.len() > LONGEST {
        return None;
    }
    let raw = RawLog { topics: log.topics.clone(), data: log.data.to_vec() };
    Some(match Game::decode_log(&raw).ok()? {
        Game::DisputeOpenedFilter(e) => DisputeEvent::Opened { accused: e.accused.0, accuser: e.accuser.0 },
        Game::TraceCommittedFilter(e) => DisputeEvent::Committed { root: e.stage.root },
        Game::RevealedFilter(e) => DisputeEvent::Revealed { nodes: e.nodes },
        Game::RootsRevealedFilter(e) => DisputeEvent::RootsRevealed { roots: e.roots },
        Game::PieceRevealedFilter(e) => DisputeEvent::PieceRevealed { piece: e.piece.to_vec() },
        Game::ChosenFilter(e) => DisputeEvent::Chosen {
            next: turn(e.next)?,
            level: number(e.level)?,
            index: to_u64(e.index),
            node: e.node,
        },
        Game::DisputeResolvedFilter(e) => {
            DisputeEvent::Resolved { accused_won: e.accused_won, silence: e.silence }
        }
        Game::DisputeAbandonedFilter(_) => DisputeEvent::Abandoned,
    })
}

fn number(number: U256) -> Option<u32> {
    u32::try_from(number).ok()
}
