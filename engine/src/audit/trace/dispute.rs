//! The two sides of a dispute: an accused answers what it is asked about its trace and the rows it signed, an
//! accuser compares with its own trace, descends to a word and opens what that follows from.

use std::collections::BTreeMap;

use kernels::tensor::SEGMENT;
use ledger::{
    dispute::{self as chain, Move, Opening},
    eip712::keccak,
    merkle,
};

use super::{
    Entered, Trace, TraceError, Wiring, op,
    tree::{Depths, Hash, Node, PIECE_WORDS, Place, STRIDE, parent},
    wiring::Part,
};
use crate::{
    audit::{
        plan::Digest,
        rows::{Boundary, CHUNK, chunk_end, chunk_root, piece_leaves, row_root, row_roots, token_leaves},
    },
    model::{ModelHash, OpenUnit},
};

/// Leaves of what came in, position by position.
pub(crate) fn entered_leaves(entered: &Entered, model: Digest, layer: u32) -> Vec<Hash> {
    match entered {
        Entered::Tokens(tokens) => token_leaves(&model, 0, tokens),
        Entered::Rows(rows) => Boundary { model, layer }.rows(0, &row_roots(rows)),
    }
}

pub(crate) fn chunk_roots(leaves: &[Hash]) -> Vec<Hash> {
    leaves.chunks(CHUNK as usize).map(|leaves| chunk_root(leaves).0).collect()
}

/// One side, with its trace.
pub struct Side<'a> {
    trace: Trace<'a>,
    hash: &'a ModelHash,
    /// Rows as they were sent: of the accused those it signed, of the accuser those that are right.
    sent: Vec<Vec<u8>>,
    /// Nodes of the other's tree.
    known: BTreeMap<Node, Hash>,
    /// The piece of the other's trace that is in question.
    shown: Option<(u64, Vec<u8>)>,
    /// The layer, or the embedding, that was opened last.
    opened: Option<(Option<usize>, OpenUnit)>,
}

impl<'a> Side<'a> {
    /// A side that says what its trace says.
    pub fn of(trace: Trace<'a>, hash: &'a ModelHash) -> Self {
        let sent = trace.sent();
        Self::new(trace, hash, sent)
    }

    /// A side with its trace, the model's hash, and the rows that it says were sent.
    pub fn new(trace: Trace<'a>, hash: &'a ModelHash, sent: Vec<Vec<u8>>) -> Self {
        Self { trace, hash, sent, known: BTreeMap::new(), shown: None, opened: None }
    }

    /// Its trace.
    pub fn trace(&mut self) -> &mut Trace<'a> {
        &mut self.trace
    }

    /// Rows as they were sent.
    pub fn rows(&self) -> &[Vec<u8>] {
        &self.sent
    }

    fn model(&self) -> Digest {
        Digest(self.hash.hash)
    }

    /// The boundary that rows leave by.
    fn boundary(&self) -> Boundary {
        Boundary { model: self.model(), layer: self.trace.layers().end as u32 }
    }

    /// Roots of the rows that were sent, chunk by chunk.
    pub fn sent_roots(&self) -> Vec<Hash> {
        // Of those of the last stage, too, without the tokens drawn from them.
        chunk_roots(&self.boundary().rows(0, &row_roots(&self.sent)))
    }

    /// Roots of what came in, chunk by chunk.
    pub fn entered_roots(&self) -> Vec<Hash> {
        let layer = self.trace.layers().start as u32;
        chunk_roots(&entered_leaves(&self.trace.entered, self.model(), layer))
    }

    // What an accused answers.

    /// Commits to the trace.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn commit(&mut self, plan: Vec<u8>) -> Result<Move, TraceError> {
        let layer = self.trace.layers().start;
        let nodes = self.trace.below(self.trace.depths().root())?;
        Ok(Move::Commit { plan, unit: self.unit(Some(layer))?, nodes, roots: self.sent_roots() })
    }

    /// Shows what is below a node.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn reveal(&mut self, node: Node) -> Result<Move, TraceError> {
        Ok(Move::Reveal { nodes: self.trace.below(node)? })
    }

    /// Shows the piece of the trace that a node is.
    ///
    /// # Errors
    /// If weights cannot be read, or there is no such piece.
    pub fn reveal_piece(&mut self, piece: u64) -> Result<Move, TraceError> {
        let place = self.trace.depths().place(piece);
        let piece = self.trace.piece(&place)?.ok_or(TraceError::Input("there"))?;
        Ok(Move::RevealPiece { piece: piece.to_vec(), pieces: Vec::new() })
    }

    /// Shows the rows of a chunk that were sent; `None` if there is no such chunk.
    pub fn reveal_rows(&self, chunk: u32) -> Option<Move> {
        let rows = self.sent.chunks(CHUNK as usize).nth(chunk as usize)?;
        Some(Move::RevealRows { rows: row_roots(rows) })
    }

    /// Shows the leaves of the pieces of a row that was sent; `None` if there is no such row.
    pub fn reveal_row(&self, position: u32) -> Option<Move> {
        Some(Move::RevealPieces { pieces: piece_leaves(self.sent.get(position as usize)?) })
    }

    /// Shows a piece of a row that was sent; `None` if there is no such row.
    pub fn reveal_sent(&self, position: u32, piece: u32) -> Option<Move> {
        let row = self.sent.get(position as usize)?;
        Some(Move::RevealPiece { piece: row_piece(row, piece).0, pieces: piece_leaves(row) })
    }

    // What an accuser does.

    /// Learns the nodes below a node of the accused's tree.
    pub fn learn(&mut self, node: Node, nodes: &[Hash]) {
        let stride = node.level.min(STRIDE);
        let level = node.level - stride;
        let mut row = nodes.to_vec();
        for up in 0..=stride {
            for (index, hash) in (node.index << (stride - up)..).zip(&row) {
                self.known.insert(Node { level: level + up, index }, *hash);
            }
            row = row.chunks_exact(2).map(|pair| parent(&pair[0], &pair[1])).collect();
        }
    }

    /// Learns the nodes below a node of the accused's tree, and chooses the first that differs; `None` if none does.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn choose(&mut self, node: Node, nodes: &[Hash]) -> Result<Option<(Node, Move)>, TraceError> {
        self.learn(node, nodes);
        let stride = node.level.min(STRIDE);
        let level = node.level - stride;
        let mine = self.trace.below(node)?;
        let Some(child) = mine.iter().zip(nodes).position(|(mine, theirs)| mine != theirs) else {
            return Ok(None);
        };
        let chosen = Node { level, index: (node.index << stride) + child as u64 };
        let path = self.path(chosen, node.level)?;
        Ok(Some((chosen, Move::Choose { child: child as u32, node: nodes[child], path })))
    }

    /// Chooses the first chunk whose root, of those that the accused showed, is not as it should be.
    pub fn choose_rows(&self, roots: &[Hash]) -> Option<Move> {
        let chunk = self.sent_roots().iter().zip(roots).position(|(mine, theirs)| mine != theirs)?;
        Some(Move::ChooseRows { chunk: chunk as u32, roots: roots.to_vec() })
    }

    /// Chooses the first row of a chunk that is not as it should be.
    pub fn choose_row(&self, chunk: u32, rows: &[Hash]) -> Option<Move> {
        let from = chunk.checked_mul(CHUNK)?;
        let mine = row_roots(self.sent.get(from as usize..)?);
        let index = mine.iter().zip(rows).position(|(mine, theirs)| mine != theirs)?;
        let in_chunk = merkle::proof(&self.boundary().rows(from, rows), index)?;
        Some(Move::ChooseRow { position: from + index as u32, row: rows[index], in_chunk })
    }

    /// Chooses the first piece of a row that is not as it should be.
    pub fn choose_piece(&self, position: u32, pieces: &[Hash]) -> Option<Move> {
        let mine = piece_leaves(self.sent.get(position as usize)?);
        let piece = mine.iter().zip(pieces).position(|(mine, theirs)| mine != theirs)?;
        Some(Move::ChoosePiece { piece: piece as u32 })
    }

    /// Names the first word of a piece of the accused's trace that is not as it should be, and opens what it
    /// follows from.
    ///
    /// # Errors
    /// If weights cannot be read, or rotations so far on are not part of the model's hash.
    pub fn prove(&mut self, piece: u64, words: Option<&[u8]>) -> Result<Move, TraceError> {
        let mut place = self.trace.depths().place(piece);
        let mine = self.trace.piece(&place)?.unwrap_or([0; 512]);
        let differs = |theirs: &[u8]| mine.chunks(4).zip(theirs.chunks(4)).position(|(a, b)| a != b);
        let at = words.and_then(differs).unwrap_or(0) as u32;
        place.word += at;
        self.shown = words.map(|words| (piece, words.to_vec()));
        let opening = Box::new(self.opening(&place)?);
        Ok(Move::Prove { piece: words.unwrap_or_default().to_vec(), at, opening })
    }

    /// The same of a piece of a row that was sent.
    ///
    /// # Errors
    /// As [`Side::prove`].
    pub fn prove_sent(&mut self, position: u32, piece: u32, bytes: &[u8]) -> Result<Move, TraceError> {
        let row = self.sent.get(position as usize).ok_or(TraceError::Input("there"))?;
        let (mine, _) = row_piece(row, piece);
        let at = mine.chunks(2).zip(bytes.chunks(2)).position(|(a, b)| a != b).unwrap_or(0) as u32;
        let word = piece * SEGMENT as u32 + at;
        let slot = self.trace.layers().len() as u32;
        let mut opening = Opening::default();
        if word < self.trace.dims[0].hidden {
            let place = Place { slot, operation: op::OUT, position, word };
            opening.pieces.push(self.open_piece(&place)?);
        }
        Ok(Move::Prove { piece: bytes.to_vec(), at, opening: Box::new(opening) })
    }

    /// Opens what a word follows from; nothing for a word that is not there.
    ///
    /// # Errors
    /// As [`Side::prove`].
    pub fn opening(&mut self, place: &Place) -> Result<Opening, TraceError> {
        let mut opening = Opening::default();
        let layers = self.trace.layers().len() as u32;
        if place.slot > layers || place.position >= self.trace.entered.positions() {
            return Ok(opening);
        }
        let layer = place.slot.checked_sub(1).map(|layer| self.trace.layers().start + layer as usize);
        if layer.is_some() || matches!(self.trace.entered, Entered::Tokens(_)) {
            opening.unit = Some(self.unit(layer)?);
        }
        if place.word >= self.trace.width(place.slot, place.operation, place.position) {
            return Ok(opening);
        }
        let unit = self.opened.as_ref().map(|(_, unit)| unit);
        let Wiring { parts, segment, .. } = self.trace.wire(unit, place);
        for part in parts {
            self.open_part(place, part, &mut opening)?;
        }
        if let Some(segment) = segment {
            opening.matrix = self.segment(segment.tensor, segment.row, segment.segment)?;
        }
        if place.slot == 0 {
            opening.entered = self.entered(place);
        }
        Ok(opening)
    }

    fn open_part(&mut self, place: &Place, part: Part, opening: &mut Opening) -> Result<(), TraceError> {
        match part {
            Part::Words { operation, position, from, count } => {
                for piece in from / PIECE_WORDS..=(from + count - 1) / PIECE_WORDS {
                    let place = Place { operation, position, word: piece * PIECE_WORDS, ..*place };
                    opening.pieces.push(self.open_piece(&place)?);
                }
            }
            Part::Before(word) => {
                let operation = if place.slot == 1 { 0 } else { op::OUT };
                let place = Place { slot: place.slot - 1, operation, word, ..*place };
                opening.pieces.push(self.open_piece(&place)?);
            }
            Part::Vector(tensor, index) => {
                opening.vector = self.segment(tensor, 0, index / SEGMENT as u32)?;
            }
            Part::Rotation(_) => {
                let opened = self.trace.model.open_rotations(&self.trace.rope, place.position)?;
                let opened = opened.ok_or(TraceError::Unsupported("positions so far on"))?;
                (opening.rotation, opening.in_rope) = (opened.leaf, opened.in_rope);
            }
        }
        Ok(())
    }

    /// A segment of what was opened last.
    fn segment(&mut self, tensor: u32, row: u32, segment: u32) -> Result<chain::Segment, TraceError> {
        let unit = self.opened.as_mut().map(|(_, unit)| unit);
        unit.and_then(|unit| opened_segment(unit, tensor, row, segment)).ok_or(TraceError::Input("there"))
    }

    /// A piece as it is in the accused's trace, where that is like this one's.
    fn open_piece(&mut self, place: &Place) -> Result<chain::Piece, TraceError> {
        let depths: Depths = self.trace.depths();
        let node = depths.piece(place);
        let words = match &self.shown {
            // Its words before the one in question are as in this trace.
            Some((piece, words)) if *piece == node.index => words.clone(),
            _ => self.trace.piece(place)?.ok_or(TraceError::Input("there"))?.to_vec(),
        };
        Ok(chain::Piece { words, path: self.path(node, depths.total())? })
    }

    /// Siblings of a node and of those above it, below `level`: of the accused's tree where they were shown.
    fn path(&mut self, mut node: Node, level: u32) -> Result<Vec<Hash>, TraceError> {
        let mut path = Vec::new();
        while node.level < level {
            let sibling = Node { index: node.index ^ 1, ..node };
            path.push(match self.known.get(&sibling) {
                Some(hash) => *hash,
                None => self.trace.node(sibling)?,
            });
            node = Node { level: node.level + 1, index: node.index / 2 };
        }
        Ok(path)
    }

    /// Opens a layer, or the embedding.
    fn unit(&mut self, layer: Option<usize>) -> Result<chain::Unit, TraceError> {
        if self.opened.as_ref().is_none_or(|(opened, _)| *opened != layer) {
            let unit = self.trace.model.open_unit(layer, self.trace.quantisation)?;
            self.opened = Some((layer, unit));
        }
        let unit = self.opened.as_mut().map(|(_, unit)| unit);
        unit.and_then(|unit| opened_unit(self.hash, layer, unit)).ok_or(TraceError::Input("there"))
    }

    /// Opens what came in at a position.
    fn entered(&self, place: &Place) -> chain::Entered {
        let layer = self.trace.layers().start as u32;
        let leaves = entered_leaves(&self.trace.entered, self.model(), layer);
        let from = place.position / CHUNK * CHUNK;
        let chunk = &leaves[from as usize..chunk_end(from, leaves.len() as u32) as usize];
        let mut entered = chain::Entered {
            roots: self.entered_roots(),
            in_chunk: merkle::proof(chunk, (place.position - from) as usize).unwrap_or_default(),
            ..chain::Entered::default()
        };
        match &self.trace.entered {
            Entered::Tokens(tokens) => entered.token = tokens[place.position as usize],
            Entered::Rows(rows) => {
                let row = &rows[place.position as usize];
                entered.row = row_root(row);
                (entered.piece, entered.in_row) = row_piece(row, place.word / SEGMENT as u32);
            }
        }
        entered
    }
}

/// A piece of a row that travels, filled with zeros, and what leads from it to the row's root.
fn row_piece(row: &[u8], piece: u32) -> (Vec<u8>, Vec<Hash>) {
    let mut bytes: Vec<u8> = row.chunks(512).nth(piece as usize).unwrap_or_default().to_vec();
    bytes.resize(512, 0);
    (bytes, merkle::proof(&piece_leaves(row), piece as usize).unwrap_or_default())
}

/// A layer, or the embedding, with what leads from it to the model's hash.
pub(super) fn opened_unit(
    hash: &ModelHash,
    layer: Option<usize>,
    unit: &mut OpenUnit,
) -> Option<chain::Unit> {
    let contents = &hash.contents;
    let leaves = contents.layer_leaves();
    let (description, in_unit) = unit.description();
    Some(chain::Unit {
        contents: chain::Contents {
            numerics: contents.numerics,
            tokenizer: contents.tokenizer,
            rope: contents.rope,
            layers: contents.layers.len() as u32,
            layer_root: merkle::root(&leaves)?,
        },
        description,
        in_unit,
        in_model: merkle::proof(&leaves, layer.map_or(0, |layer| layer + 1))?,
    })
}

/// A segment of a unit's tensor, with what leads from it to the unit's root.
fn opened_segment(unit: &mut OpenUnit, tensor: u32, row: u32, segment: u32) -> Option<chain::Segment> {
    let opened = unit.open(tensor, row, segment)?;
    Some(chain::Segment {
        data: opened.bytes,
        format: keccak(opened.format.as_bytes()),
        rows: opened.rows as u32,
        columns: opened.columns as u32,
        in_tensor: opened.in_tensor,
        in_unit: opened.in_unit,
    })
}
