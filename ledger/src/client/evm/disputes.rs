//! Moves of a dispute, as calls of `DisputeGame`.

use ethers_core::abi::{Token, encode};

use crate::{
    dispute::{Entered, Move, Opening, Piece, Segment, Unit},
    eip712::keccak,
};

const CONTENTS: &str = "(uint32,bytes32,bytes32,uint32,bytes32)";
const SEGMENT: &str = "(bytes,bytes32,uint32,uint32,bytes32[],bytes32[])";
const ENTERED: &str = "(bytes32[],uint32,bytes32,bytes32[],bytes,bytes32[])";

/// The call of `DisputeGame` that is a move of dispute `id`.
pub fn dispute_call(id: &[u8; 32], step: &Move) -> Vec<u8> {
    let unit_type = format!("({CONTENTS},bytes,bytes32[],bytes32[])");
    let (name, types, arguments) = match step {
        Move::Commit { plan, unit: of, nodes, roots } => {
            let arguments = vec![bytes(plan), unit(Some(of)), words(nodes), words(roots)];
            ("commit", format!("bytes,{unit_type},bytes32[],bytes32[]"), arguments)
        }
        Move::Choose { child, node, path } => {
            ("choose", "uint256,bytes32,bytes32[]".into(), vec![number(*child), word(node), words(path)])
        }
        Move::Reveal { nodes } => ("reveal", "bytes32[]".into(), vec![words(nodes)]),
        Move::ChooseRows { chunk, roots } => {
            ("chooseRows", "uint256,bytes32[]".into(), vec![number(*chunk), words(roots)])
        }
        Move::RevealRows { rows } => ("revealRows", "bytes32[]".into(), vec![words(rows)]),
        Move::ChooseRow { position, row, in_chunk } => {
            let arguments = vec![number(*position), word(row), words(in_chunk)];
            ("chooseRow", "uint256,bytes32,bytes32[]".into(), arguments)
        }
        Move::RevealPieces { pieces } => ("revealPieces", "bytes32[]".into(), vec![words(pieces)]),
        Move::ChoosePiece { piece } => ("choosePiece", "uint32".into(), vec![number(*piece)]),
        Move::RevealPiece { piece, pieces } => {
            ("revealPiece", "bytes,bytes32[]".into(), vec![bytes(piece), words(pieces)])
        }
        Move::Prove { piece, at, opening: what } => {
            let opened =
                format!("({unit_type},(bytes,bytes32[])[],{SEGMENT},{SEGMENT},bytes,bytes32[],{ENTERED})");
            ("prove", format!("bytes,uint256,{opened}"), vec![bytes(piece), number(*at), opening(what)])
        }
    };
    let selector = keccak(format!("{name}(bytes32,{types})").as_bytes());
    let mut call = selector[..4].to_vec();
    call.extend(encode(&[vec![word(id)], arguments].concat()));
    call
}

fn bytes(bytes: &[u8]) -> Token {
    Token::Bytes(bytes.to_vec())
}

fn word(word: &[u8; 32]) -> Token {
    Token::FixedBytes(word.to_vec())
}

fn words(list: &[[u8; 32]]) -> Token {
    Token::Array(list.iter().map(word).collect())
}

fn number(number: u32) -> Token {
    Token::Uint(number.into())
}

fn unit(unit: Option<&Unit>) -> Token {
    let zero = [0; 32];
    let Some(Unit { contents: c, description, in_unit, in_model }) = unit else {
        let contents = Token::Tuple(vec![number(0), word(&zero), word(&zero), number(0), word(&zero)]);
        return Token::Tuple(vec![contents, bytes(&[]), words(&[]), words(&[])]);
    };
    let contents =
        vec![number(c.numerics), word(&c.tokenizer), word(&c.rope), number(c.layers), word(&c.layer_root)];
    Token::Tuple(vec![Token::Tuple(contents), bytes(description), words(in_unit), words(in_model)])
}

fn piece(piece: &Piece) -> Token {
    Token::Tuple(vec![bytes(&piece.words), words(&piece.path)])
}

fn segment(segment: &Segment) -> Token {
    let Segment { data, format, rows, columns, in_tensor, in_unit } = segment;
    let shape = [number(*rows), number(*columns)];
    let paths = [words(in_tensor), words(in_unit)];
    Token::Tuple([vec![bytes(data), word(format)], shape.into(), paths.into()].concat())
}

fn entered(entered: &Entered) -> Token {
    let Entered { roots, token, row, in_chunk, piece, in_row } = entered;
    let chunk = vec![words(roots), number(*token), word(row), words(in_chunk)];
    Token::Tuple([chunk, vec![bytes(piece), words(in_row)]].concat())
}

fn opening(opening: &Opening) -> Token {
    Token::Tuple(vec![
        unit(opening.unit.as_ref()),
        Token::Array(opening.pieces.iter().map(piece).collect()),
        segment(&opening.matrix),
        segment(&opening.vector),
        bytes(&opening.rotation),
        words(&opening.in_rope),
        entered(&opening.entered),
    ])
}
