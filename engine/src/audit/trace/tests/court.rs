//! A model of the game and of the judge: the rules of `DisputeGame` and `TraceJudge`, without a chain. What it
//! plays is written to `ledger/vectors`, for the contracts to play the same.

use ledger::{
    audit::{roots, seal},
    client::{dispute_call, dispute_id},
    dispute::{self as chain, Move, Opening},
    eip712::keccak,
    merkle,
};
use serde_json::{Value, json};

use super::{
    super::{
        dispute::Side,
        tree::{STRIDE, parent},
    },
    *,
};
use crate::{
    audit::{
        plan::{Digest, Plan, PlannedStage, Terms},
        rows::{Boundary, row_root},
    },
    model::ModelHash,
    request::Sampling,
};

/// Whom the game tells the outcome in the vectors.
const OUTCOME: [u8; 20] = [0x0c; 20];

/// What is in dispute.
pub(super) struct Case<'a> {
    pub(super) model: &'a Model,
    pub(super) hash: &'a ModelHash,
    pub(super) layers: Range<usize>,
    pub(super) entered: Entered,
}

/// A dispute that was played.
pub(super) struct Played {
    moves: Vec<(bool, Move)>,
    pub(super) accused_won: bool,
    /// The word that decided it; of rows as sent, its element.
    pub(super) place: Place,
}

impl<'a> Case<'a> {
    pub(super) fn plan(&self) -> Plan {
        let terms = Terms {
            model: Digest(self.hash.hash),
            quantisation: Q8,
            salt: Digest([3; 32]),
            prompt_hash: Digest([4; 32]),
        };
        let embedding = matches!(self.entered, Entered::Tokens(_));
        let (from, to) = (self.layers.start as u32, self.layers.end as u32);
        let stage = |from, to, embedding| PlannedStage {
            node: Digest([5; 32]),
            from,
            to,
            embedding,
            head: to != from,
        };
        Plan {
            session: "00".repeat(16),
            gateway: Digest([6; 32]),
            terms,
            prompt_length: 1,
            max_tokens: 300,
            stop_tokens: vec![1, 2],
            sampling: Sampling { logit_bias: vec![(3, 0.5)], ..Sampling::default() },
            stages: vec![stage(0, from, true), stage(from, to, embedding)],
        }
    }

    pub(super) fn trace(&self, cheat: Option<Cheat>) -> Trace<'a> {
        let (layers, entered) = (self.layers.clone(), self.entered.clone());
        match cheat {
            None => Trace::new(self.model, Q8, layers, entered).expect("a trace"),
            Some(cheat) => cheating(self.model, layers, entered, cheat),
        }
    }

    pub(super) fn side(&self, cheat: Option<Cheat>) -> Side<'a> {
        self.signed(self.trace(cheat))
    }

    /// A side that says it sent what its trace says.
    pub(super) fn signed(&self, trace: Trace<'a>) -> Side<'a> {
        let mut rows = trace.sent();
        rows.iter_mut().for_each(|row| row.resize(2 * self.model.config().hidden, 0));
        self.with(trace, rows)
    }

    pub(super) fn with(&self, trace: Trace<'a>, rows: Vec<Vec<u8>>) -> Side<'a> {
        Side::new(trace, self.hash, rows)
    }

    /// Plays to the end.
    pub(super) fn play(&self, accused: &mut Side<'_>, accuser: &mut Side<'_>) -> Played {
        let depths = accused.trace().depths();
        let mut moves = vec![(true, accused.commit(self.plan().bytes()).expect("commits"))];
        let root = accused.trace().root().expect("a root");
        let (mut node, mut hash) = (depths.root(), root);
        let piece = loop {
            let (Move::Commit { nodes, .. } | Move::Reveal { nodes }) = &moves[moves.len() - 1].1 else {
                unreachable!("nodes were shown");
            };
            assert_eq!(raise(nodes.clone(), node.level.min(STRIDE)), [hash]);
            let Some((chosen, step)) = accuser.choose(node, nodes).expect("chooses") else {
                return self.play_rows(accused, accuser, root, moves);
            };
            let Move::Choose { child, node: named, path } = &step else { unreachable!("a choice") };
            assert_eq!(climb(*named, u64::from(*child), path), hash);
            (node, hash) = (chosen, *named);
            moves.push((false, step));
            if node.level == 0 {
                break node.index;
            }
            moves.push((true, accused.reveal(node).expect("reveals")));
        };
        let mut words = None;
        if hash != [0; 32] {
            let step = accused.reveal_piece(piece).expect("a piece");
            let Move::RevealPiece { piece, .. } = &step else { unreachable!("a piece") };
            assert_eq!(keccak(piece), hash);
            words = Some(piece.clone());
            moves.push((true, step));
        }
        let step = accuser.prove(piece, words.as_deref()).expect("proves");
        let Move::Prove { at, opening, .. } = &step else { unreachable!("a proof") };
        let mut place = depths.place(piece);
        place.word += at;
        let expected = self.expected(accuser, &root, &place, opening);
        let claimed = words
            .as_ref()
            .map(|words| u32::from_be_bytes(words[4 * *at as usize..][..4].try_into().expect("a word")));
        let accused_won = match (claimed, expected) {
            (None, expected) => expected.is_none(),
            (Some(_), None) if *at == 0 => false,
            (Some(claimed), expected) => claimed == expected.unwrap_or(0),
        };
        moves.push((false, step));
        Played { moves, accused_won, place }
    }

    fn play_rows(
        &self,
        accused: &mut Side<'_>,
        accuser: &mut Side<'_>,
        root: tree::Hash,
        mut moves: Vec<(bool, Move)>,
    ) -> Played {
        let Move::Commit { roots, .. } = &moves[0].1 else { unreachable!("roots were shown") };
        let step = accuser.choose_rows(roots).expect("a chunk");
        let Move::ChooseRows { chunk, ref roots } = step else { unreachable!("a chunk") };
        let shown = accused.reveal_rows(chunk).expect("a chunk");
        let Move::RevealRows { rows } = &shown else { unreachable!("rows") };
        let chosen = accuser.choose_row(chunk, rows).expect("a row");
        let Move::ChooseRow { position, row, in_chunk } = &chosen else { unreachable!("a row") };
        let at = Boundary { model: Digest(self.hash.hash), layer: self.layers.end as u32 };
        assert!(merkle::leads(at.rows(*position, &[*row])[0], in_chunk, roots[chunk as usize]));
        let (position, row) = (*position, *row);
        moves.extend([(false, step), (true, shown), (false, chosen)]);
        let step = accused.reveal_row(position).expect("a row");
        let Move::RevealPieces { pieces: listed } = &step else { unreachable!("pieces") };
        assert_eq!(merkle::root(listed), Some(row));
        let chosen = accuser.choose_piece(position, listed).expect("a piece");
        let Move::ChoosePiece { piece } = chosen else { unreachable!("a piece") };
        let shown = accused.reveal_sent(position, piece).expect("a row");
        let Move::RevealPiece { piece: bytes, pieces } = &shown else { unreachable!("a piece") };
        assert_eq!(pieces, listed);
        assert_eq!(keccak(&[&piece.to_be_bytes()[..], bytes].concat()), pieces[piece as usize]);
        let proof = accuser.prove_sent(position, piece, bytes).expect("proves");
        let Move::Prove { at, opening, .. } = &proof else { unreachable!("a proof") };
        let place =
            Place { slot: self.layers.len() as u32, operation: op::OUT, position, word: piece * 256 + at };
        let expected = opening.pieces.first().map_or(0, |piece| {
            assert_eq!(leads(accuser, &place, piece), root);
            value(piece, place.word)
        });
        let accused_won = element(bytes, *at) == expected;
        moves.extend([(true, step), (false, chosen), (true, shown), (false, proof)]);
        Played { moves, accused_won, place }
    }

    /// What a word should be, from nothing but what was opened.
    fn expected(
        &self,
        accuser: &mut Side<'_>,
        root: &tree::Hash,
        place: &Place,
        opening: &Opening,
    ) -> Option<u32> {
        let trace = accuser.trace();
        let inside = place.slot as usize <= self.layers.len() && place.position < self.entered.positions();
        if !inside || place.word >= trace.width(place.slot, place.operation, place.position) {
            return None;
        }
        let format =
            Format::ALL.iter().position(|format| keccak(format.name().as_bytes()) == opening.matrix.format);
        let wide = format.is_some_and(|format| Format::ALL[format].is_wide());
        let wiring = match place.slot.checked_sub(1) {
            None => trace.wire(None, place),
            Some(layer) => trace.dims[layer as usize].wire(place.operation, place.position, place.word, wide),
        };
        let Wiring { kind, mut numbers, parts, segment } = wiring;
        let unit = opening.unit.as_ref().map(|unit| self.unit_root(unit, place.slot));
        let mut opened = Opened { depths: trace.depths(), root, place, pieces: opening.pieces.iter() };
        let mut inputs: Vec<u32> =
            parts.into_iter().flat_map(|part| self.part(part, &mut opened, opening, unit)).collect();
        assert_eq!(opened.pieces.next(), None);
        let mut weight = Vec::new();
        if let Some(at) = segment {
            segment_leads(&opening.matrix, at.tensor, at.row, at.segment, unit.expect("a unit"));
            numbers[0] = format.expect("a format") as u32;
            weight.clone_from(&opening.matrix.data);
        }
        if let (0, Entered::Rows(rows)) = (place.slot, &self.entered) {
            assert_eq!(opening.entered.row, row_root(&rows[place.position as usize]));
            inputs.push(element(&opening.entered.piece, place.word % 256));
        }
        recompute(&Leaf { kind, inputs, numbers, weight })
    }

    fn part(
        &self,
        part: Part,
        opened: &mut Opened<'_>,
        opening: &Opening,
        unit: Option<tree::Hash>,
    ) -> Vec<u32> {
        let place = opened.place;
        match part {
            Part::Words { operation, position, from, count } => {
                opened.words(Place { operation, position, word: from, ..*place }, count)
            }
            Part::Before(word) => {
                let operation = if place.slot == 1 { 0 } else { op::OUT };
                opened.words(Place { slot: place.slot - 1, operation, word, ..*place }, 1)
            }
            Part::Vector(tensor, index) => {
                segment_leads(&opening.vector, tensor, 0, index / 256, unit.expect("a unit"));
                vec![little_endian(&opening.vector.data, 4 * (index as usize % 256))]
            }
            Part::Rotation(pair) => {
                let leaf = &opening.rotation;
                assert!(merkle::leads(keccak(leaf), &opening.in_rope, self.hash.contents.rope));
                assert_eq!(leaf[1..5], place.position.to_be_bytes());
                let pairs = (leaf.len() - 5) / 8;
                [0, pairs].map(|from| little_endian(leaf, 5 + 4 * (from + pair as usize))).into()
            }
        }
    }

    fn unit_root(&self, unit: &chain::Unit, slot: u32) -> tree::Hash {
        let leaf = merkle::leaf(&[[0; 32], keccak(&unit.description)]);
        let root = unit.in_unit.iter().fold(leaf, |node, sibling| joined(node, *sibling));
        let index = if slot == 0 { 0 } else { self.layers.start + slot as usize };
        assert_eq!(self.hash.contents.layers[index], root);
        let leaf = merkle::leaf(&[word(index as u128), root]);
        assert!(merkle::leads(leaf, &unit.in_model, unit.contents.layer_root));
        root
    }

    /// What the contracts are asked to play again.
    pub(super) fn vector(&self, name: &str, played: &Played) -> Value {
        let case_id = keccak(name.as_bytes());
        let id = dispute_id(&OUTCOME, &case_id);
        let (mut entered, mut sent) = ([0; 32], [0; 32]);
        for (_, step) in &played.moves {
            if let Move::Commit { roots: list, .. } = step {
                sent = seal(&roots(list));
            }
            if let Move::Prove { opening, .. } = step
                && !opening.entered.roots.is_empty()
            {
                entered = roots(&opening.entered.roots);
            }
        }
        let moves = played.moves.iter().map(|(accused, step)| {
            json!({ "accused": u8::from(*accused), "call": format!("0x{}", hex::encode(dispute_call(&id, step))) })
        });
        let hex = |hash: &[u8]| format!("0x{}", hex::encode(hash));
        json!({
            "name": name,
            "caseId": hex(&case_id),
            "model": hex(&self.hash.hash),
            "plan": hex(&self.plan().hash().0),
            "inRoots": hex(&entered),
            "sealedRoots": hex(&sent),
            "to": self.entered.positions(),
            "accusedWon": u8::from(played.accused_won),
            "moves": moves.collect::<Vec<_>>(),
        })
    }

    /// A word with what it follows from, opened in an honest trace.
    pub(super) fn cell(&self, side: &mut Side<'_>, place: Place) -> Value {
        let opening = side.opening(&place).expect("opens");
        let leaf = side.trace().inputs(&place).expect("inputs");
        let root = side.trace().root().expect("a root");
        let word = recompute(&leaf).expect("a word");
        assert_eq!(self.expected(side, &root, &place, &opening), Some(word));
        let step = Move::Prove { piece: Vec::new(), at: 0, opening: Box::new(opening) };
        json!({
            "operation": side.trace().difference(place).operation,
            "kind": leaf.kind as u32,
            "place": [place.slot, place.operation, place.position, place.word],
            "word": word,
            "call": format!("0x{}", hex::encode(dispute_call(&[0; 32], &step))),
        })
    }

    /// What cells of a side are to be judged with.
    pub(super) fn cells(&self, side: &mut Side<'_>, places: &[Place]) -> Value {
        let commit = side.commit(self.plan().bytes()).expect("commits");
        let root = side.trace().root().expect("a root");
        let hex = |hash: &[u8]| format!("0x{}", hex::encode(hash));
        json!({
            "commit": hex(&dispute_call(&[0; 32], &commit)),
            "inRoots": hex(&roots(&side.entered_roots())),
            "root": hex(&root),
            "to": self.entered.positions(),
            "cells": places.iter().map(|place| self.cell(side, *place)).collect::<Vec<_>>(),
        })
    }
}

/// Pieces of the accused's trace, one after the other.
struct Opened<'a> {
    depths: Depths,
    root: &'a tree::Hash,
    place: &'a Place,
    pieces: std::slice::Iter<'a, chain::Piece>,
}

impl Opened<'_> {
    fn words(&mut self, mut at: Place, count: u32) -> Vec<u32> {
        let mut piece = None;
        let word = |i| {
            if i == 0 || at.word.is_multiple_of(PIECE_WORDS) {
                piece = self.pieces.next();
                let climbed = climb_place(self.depths, &at, piece.expect("a piece"));
                assert_eq!(climbed, *self.root, "a piece is not the accused's");
            }
            let word = value(piece.expect("a piece"), at.word);
            at.word += 1;
            word
        };
        (0..count).map(word).collect()
    }
}

fn little_endian(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a word"))
}

fn value(piece: &chain::Piece, word: u32) -> u32 {
    let at = 4 * (word % PIECE_WORDS) as usize;
    u32::from_be_bytes(piece.words[at..at + 4].try_into().expect("a word"))
}

fn climb(node: tree::Hash, index: u64, path: &[tree::Hash]) -> tree::Hash {
    path.iter().enumerate().fold(node, |node, (level, sibling)| {
        if index >> level & 1 == 0 { parent(&node, sibling) } else { parent(sibling, &node) }
    })
}

fn climb_place(depths: Depths, place: &Place, piece: &chain::Piece) -> tree::Hash {
    assert_eq!((piece.words.len(), piece.path.len()), (512, depths.total() as usize));
    climb(keccak(&piece.words), depths.piece(place).index, &piece.path)
}

fn leads(side: &mut Side<'_>, place: &Place, piece: &chain::Piece) -> tree::Hash {
    climb_place(side.trace().depths(), place, piece)
}

fn joined(a: tree::Hash, b: tree::Hash) -> tree::Hash {
    keccak([a.min(b), a.max(b)].as_flattened())
}

fn segment_leads(opened: &chain::Segment, tensor: u32, row: u32, segment: u32, unit: tree::Hash) {
    let numbers = [&[0][..], &row.to_be_bytes(), &segment.to_be_bytes()].concat();
    let leaf = keccak(&[&numbers[..], &opened.data].concat());
    let root = opened.in_tensor.iter().fold(leaf, |node, sibling| joined(node, *sibling));
    let shape = [word(opened.rows.into()), word(opened.columns.into())];
    let tensor_leaf = merkle::leaf(&[opened.format, shape[0], shape[1], root]);
    let leaf = merkle::leaf(&[word(tensor.into()), tensor_leaf]);
    assert!(merkle::leads(leaf, &opened.in_unit, unit), "a segment is not the model's");
}

/// A number as an ABI word.
fn word(value: u128) -> tree::Hash {
    let mut word = [0; 32];
    word[16..].copy_from_slice(&value.to_be_bytes());
    word
}
