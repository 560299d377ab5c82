//! Everything that a stage computes for a session, word by word, in a tree: what the parties of a dispute
//! commit to, descend and open. `docs/disputes.md` has the definition.
//!
//! [`kind`] says how a word follows from its inputs, [`wiring`] which these are, [`tree`] how all of them are
//! hashed. A [`Trace`] is computed from nothing else, so that what it says and what the contracts say of a word
//! is the same by construction; a test holds it to the rows that stages send. It keeps the roots of rows and
//! what goes from layer to layer, has all rows of one position of one layer at a time, and computes a layer again when
//! its words are asked for.

pub mod dispute;
pub mod gap;
pub mod kind;
pub mod tree;
pub mod wiring;

#[cfg(test)]
pub(super) mod cheat;
#[cfg(test)]
pub(super) mod tests;

use std::ops::Range;

use kernels::{backend::Profile, rope::RopeTable, tensor::Format};
use thiserror::Error;

use crate::model::{Model, ModelError, OpenUnit, Quantisation};
use kind::{Kind, Leaf, number, recompute};
use tree::{Depths, Hash, Node, OPERATION_BITS, PIECE_WORDS, Place, bits, pieces, raise, top};
use wiring::{Dims, OPERATIONS, Part, Wiring, op};

/// Most positions of a trace: those whose rotations are in a model's hash.
pub const MOST_POSITIONS: u32 = 1 << 17;

/// Why there is no trace.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The model's files are at fault.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Traces are of quantised weights alone.
    #[error("no trace of {0}")]
    Unsupported(&'static str),
    /// The input does not have the model's shape.
    #[error("the input is not {0}")]
    Input(&'static str),
}

/// What enters a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entered {
    /// Token ids, at the first stage.
    Tokens(Vec<u32>),
    /// Rows as they travel: bf16, little-endian.
    Rows(Vec<Vec<u8>>),
}

impl Entered {
    /// Positions.
    pub fn positions(&self) -> u32 {
        let positions = match self {
            Self::Tokens(tokens) => tokens.len(),
            Self::Rows(rows) => rows.len(),
        };
        positions as u32
    }
}

/// The rows of a slot, `[operation][position][word]`.
type Rows = Vec<Vec<Vec<u32>>>;

/// A slot at work.
struct Held {
    slot: u32,
    unit: OpenUnit,
    /// Rows that later positions look at, and all rows of one position.
    rows: Rows,
    /// That position.
    full: Option<u32>,
}

impl Held {
    /// Drops the rows of a position that no later one looks at.
    fn drop_rows(&mut self, position: u32) {
        for (operation, rows) in (0..).zip(&mut self.rows) {
            if !is_kept(operation, position) {
                rows[position as usize] = Vec::new();
            }
        }
    }
}

/// Whether later positions look at a row: at keys, at values of their block, at the columns of blocks before it.
fn is_kept(operation: u32, position: u32) -> bool {
    match operation {
        op::KEY | op::VALUE => true,
        op::COLUMNS => position % wiring::BLOCK == wiring::BLOCK - 1,
        _ => false,
    }
}

/// The trace of a stage.
pub struct Trace<'a> {
    model: &'a Model,
    quantisation: Quantisation,
    layers: Range<usize>,
    entered: Entered,
    dims: Vec<Dims>,
    rope: RopeTable,
    depths: Depths,
    /// Last tensor of each slot.
    outs: Vec<Vec<Vec<u32>>>,
    /// Roots of rows, `[slot][operation][position]`.
    roots: Vec<Vec<Vec<Hash>>>,
    /// Nodes over all rows of an operation, `[slot][operation]`.
    tops: Vec<Vec<Hash>>,
    /// The slot that was computed last.
    held: Option<Held>,
    #[cfg(test)]
    cheat: Option<cheat::Cheat>,
}

/// Where two traces first differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Layer of the model; `None` for what enters the stage.
    pub layer: Option<usize>,
    /// Name of the operation.
    pub operation: &'static str,
    /// The word.
    pub place: Place,
}

impl<'a> Trace<'a> {
    /// Computes the trace of `layers` for what entered them.
    ///
    /// # Errors
    /// [`TraceError`] if the weights cannot be read, are in a format without a trace, or do not fit the input.
    pub fn new(
        model: &'a Model,
        quantisation: Quantisation,
        layers: Range<usize>,
        entered: Entered,
    ) -> Result<Self, TraceError> {
        Self::begin(model, quantisation, layers, entered)?.run()
    }

    fn begin(
        model: &'a Model,
        quantisation: Quantisation,
        layers: Range<usize>,
        entered: Entered,
    ) -> Result<Self, TraceError> {
        let config = model.config();
        let positions = entered.positions();
        if quantisation.profile() != Profile::Quantised {
            return Err(TraceError::Unsupported("unquantised weights"));
        }
        if layers.is_empty() || layers.end > config.layers {
            return Err(TraceError::Input("for layers of the model"));
        }
        let fits = match &entered {
            Entered::Tokens(tokens) => tokens.iter().all(|&token| (token as usize) < config.vocabulary),
            Entered::Rows(rows) => rows.iter().all(|row| row.len() == 2 * config.hidden),
        };
        if !fits || positions == 0 || positions > config.max_positions.min(MOST_POSITIONS) {
            return Err(TraceError::Input("one of the model's"));
        }
        let rope = RopeTable::new(&config.rope, positions as usize)
            .map_err(|_| TraceError::Unsupported("this position encoding"))?;
        let dims: Vec<Dims> = layers.clone().map(|layer| dims(model, layer)).collect();
        let depths = depths(&dims[0], layers.len() as u32, positions);
        Ok(Self {
            model,
            quantisation,
            layers,
            entered,
            dims,
            rope,
            depths,
            outs: Vec::new(),
            roots: Vec::new(),
            tops: Vec::new(),
            held: None,
            #[cfg(test)]
            cheat: None,
        })
    }

    fn run(mut self) -> Result<Self, TraceError> {
        for slot in 0..=self.layers.len() as u32 {
            let mut held = self.open(slot)?;
            let operations = held.rows.len();
            let (mut outs, mut roots) = (Vec::new(), vec![Vec::new(); operations]);
            for position in 0..self.entered.positions() {
                for (operation, roots) in roots.iter_mut().enumerate() {
                    self.compute(&mut held, operation as u32, position)?;
                    let row = &held.rows[operation][position as usize];
                    roots.push(top(self.row_nodes(row, 0), self.depths.pieces));
                }
                outs.push(held.rows[operations - 1][position as usize].clone());
                held.drop_rows(position);
            }
            self.tops.push(roots.iter().map(|rows| top(rows.clone(), self.depths.positions)).collect());
            self.roots.push(roots);
            self.outs.push(outs);
            self.held = Some(held);
            tracing::info!(layers = slot, of = self.layers.len(), "traced for a dispute");
        }
        Ok(self)
    }

    /// The rows that the stage sends, as they travel.
    pub fn sent(&self) -> Vec<Vec<u8>> {
        self.outs.last().into_iter().flatten().map(|row| travelling(row)).collect()
    }

    /// Bits of the fields of an index.
    pub fn depths(&self) -> Depths {
        self.depths
    }

    /// The layers it is of.
    pub fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    /// The root of the tree.
    ///
    /// # Errors
    /// As [`Trace::node`].
    pub fn root(&mut self) -> Result<Hash, TraceError> {
        self.node(self.depths.root())
    }

    /// A node of the tree; zero where there is nothing.
    ///
    /// # Errors
    /// If a layer has to be computed again and its weights cannot be read.
    pub fn node(&mut self, node: Node) -> Result<Hash, TraceError> {
        Ok(self.nodes(node, node.level)?.first().copied().unwrap_or_default())
    }

    /// The nodes below a node, [`tree::STRIDE`] levels or as many as there are; all of them, zero where
    /// there is nothing.
    ///
    /// # Errors
    /// As [`Trace::node`].
    pub fn below(&mut self, node: Node) -> Result<Vec<Hash>, TraceError> {
        let stride = node.level.min(tree::STRIDE);
        let below = |i| Node { level: node.level - stride, index: (node.index << stride) + i };
        (0..1_u64 << stride).map(|i| self.node(below(i))).collect()
    }

    /// The nodes of `level` that begin at a node of that level, to the end of its field.
    fn nodes(&mut self, node: Node, level: u32) -> Result<Vec<Hash>, TraceError> {
        let Depths { positions, pieces, .. } = self.depths;
        let operations = pieces + positions;
        let slots = operations + OPERATION_BITS;
        let place = self.depths.place(node.index << level);
        let (nodes, from) = if level >= slots {
            let tops = self.tops.iter().map(|operations| top(operations.clone(), OPERATION_BITS));
            (raise(tops.collect(), level - slots), slots)
        } else if level >= operations {
            let tops = self.tops.get(place.slot as usize).cloned();
            (raise(tops.unwrap_or_default(), level - operations), operations)
        } else if level >= pieces {
            let rows = self.roots.get(place.slot as usize);
            let rows = rows.and_then(|rows| rows.get(place.operation as usize));
            (raise(rows.cloned().unwrap_or_default(), level - pieces), pieces)
        } else {
            let row = self.row(place.slot, place.operation, place.position)?.to_vec();
            (self.row_nodes(&row, level), 0)
        };
        let field = match from {
            0 => pieces,
            from if from == pieces => positions,
            from if from == operations => OPERATION_BITS,
            _ => self.depths.slots,
        };
        let within = node.index & ((1 << (from + field - level)) - 1);
        Ok(nodes.get(within as usize..).unwrap_or_default().to_vec())
    }

    fn row_nodes(&self, row: &[u32], levels: u32) -> Vec<Hash> {
        let pieces: Vec<[u8; 512]> = pieces(row).collect();
        raise(
            ledger::eip712::keccak_each(pieces.len(), |index, bytes| bytes.extend_from_slice(&pieces[index])),
            levels,
        )
    }

    /// The words of a row; none where there is no row.
    ///
    /// # Errors
    /// As [`Trace::node`].
    pub fn row(&mut self, slot: u32, operation: u32, position: u32) -> Result<&[u32], TraceError> {
        let (last, at) = (if slot == 0 { 0 } else { op::OUT }, position as usize);
        if slot as usize > self.layers.len() || operation > last || position >= self.entered.positions() {
            return Ok(&[]);
        }
        if operation == last {
            return Ok(&self.outs[slot as usize][at]);
        }
        self.hold(slot)?;
        let is_there = |held: &Held| !held.rows[operation as usize][at].is_empty();
        if !self.held.as_ref().is_some_and(is_there) {
            self.fill(position)?;
        }
        Ok(self.held.as_ref().map_or(&[], |held| &held.rows[operation as usize][at]))
    }

    /// The bytes of the piece that a word is in; `None` where there is none.
    ///
    /// # Errors
    /// As [`Trace::node`].
    pub fn piece(&mut self, place: &Place) -> Result<Option<[u8; 512]>, TraceError> {
        let row = self.row(place.slot, place.operation, place.position)?;
        Ok(pieces(row).nth((place.word / PIECE_WORDS) as usize))
    }

    /// Where this trace first differs from another of the same stage and input; `None` if nowhere.
    ///
    /// # Errors
    /// As [`Trace::node`].
    pub fn diff(&mut self, other: &mut Trace<'_>) -> Result<Option<Difference>, TraceError> {
        for (slot, (mine, theirs)) in self.roots.iter().zip(&other.roots).enumerate() {
            for (operation, (mine, theirs)) in mine.iter().zip(theirs).enumerate() {
                let Some(position) = mine.iter().zip(theirs).position(|(a, b)| a != b) else { continue };
                let (slot, operation, position) = (slot as u32, operation as u32, position as u32);
                let mine = self.row(slot, operation, position)?;
                let theirs = other.row(slot, operation, position)?;
                let word = mine.iter().zip(theirs).position(|(a, b)| a != b).unwrap_or(0) as u32;
                return Ok(Some(self.difference(Place { slot, operation, position, word })));
            }
        }
        Ok(None)
    }

    /// A place by its names.
    pub fn difference(&self, place: Place) -> Difference {
        let layer = place.slot.checked_sub(1).map(|layer| self.layers.start + layer as usize);
        let operation = match layer {
            Some(_) => op::NAMES.get(place.operation as usize).copied().unwrap_or("nothing"),
            None => "in",
        };
        Difference { layer, operation, place }
    }

    /// Begins with a slot.
    fn open(&self, slot: u32) -> Result<Held, TraceError> {
        let unit = self.weights(slot.checked_sub(1).map(|layer| self.layers.start + layer as usize))?;
        let operations = if slot == 0 { 1 } else { OPERATIONS as usize };
        let rows = vec![vec![Vec::new(); self.entered.positions() as usize]; operations];
        Ok(Held { slot, unit, rows, full: None })
    }

    /// Computes what positions look at of others, if it is of another slot that this is held.
    fn hold(&mut self, slot: u32) -> Result<(), TraceError> {
        if self.held.as_ref().is_some_and(|held| held.slot == slot) {
            return Ok(());
        }
        let mut held = self.open(slot)?;
        if slot > 0 {
            for position in 0..self.entered.positions() {
                for operation in 0..=op::COLUMNS {
                    if operation < op::COLUMNS || is_kept(operation, position) {
                        self.compute(&mut held, operation, position)?;
                    }
                }
                held.drop_rows(position);
            }
        }
        self.held = Some(held);
        Ok(())
    }

    /// Computes all rows of a position in the slot that is held.
    fn fill(&mut self, position: u32) -> Result<(), TraceError> {
        let Some(mut held) = self.held.take_if(|held| held.full != Some(position)) else { return Ok(()) };
        if let Some(before) = held.full.replace(position) {
            held.drop_rows(before);
        }
        for operation in 0..held.rows.len() as u32 {
            if !is_kept(operation, position) {
                self.compute(&mut held, operation, position)?;
            }
        }
        self.held = Some(held);
        Ok(())
    }

    /// Computes a row from those before it.
    fn compute(&self, held: &mut Held, operation: u32, position: u32) -> Result<(), TraceError> {
        let Held { slot, unit, rows, .. } = held;
        let (slot, at) = (*slot, position as usize);
        let width = self.width(slot, operation, position);
        rows[operation as usize][at] = Vec::with_capacity(width as usize);
        for word in 0..width {
            let leaf = self.leaf(rows, unit, &Place { slot, operation, position, word })?;
            let value = recompute(&leaf).ok_or(TraceError::Unsupported("such weights"))?;
            rows[operation as usize][at].push(value);
        }
        #[cfg(test)]
        if let Some(cheat) = &self.cheat {
            let before = slot.checked_sub(1).map(|slot| &self.outs[slot as usize][at]);
            cheat.spoil(slot, operation, position, before, &mut rows[operation as usize][at]);
        }
        Ok(())
    }

    fn weights(&self, layer: Option<usize>) -> Result<OpenUnit, TraceError> {
        #[cfg(test)]
        let layer = self.cheat.as_ref().map_or(layer, |cheat| cheat.weights(layer));
        Ok(self.model.open_unit(layer, self.quantisation)?)
    }

    fn width(&self, slot: u32, operation: u32, position: u32) -> u32 {
        match slot.checked_sub(1) {
            None => self.dims[0].hidden,
            Some(layer) => self.dims[layer as usize].width(operation, position),
        }
    }

    /// What a word follows from; `unit` is the layer that it is in.
    fn wire(&self, unit: Option<&OpenUnit>, place: &Place) -> Wiring {
        match (place.slot.checked_sub(1), &self.entered) {
            (Some(layer), _) => {
                let dims = &self.dims[layer as usize];
                let format = unit.zip(dims.matrix(place.operation)).and_then(|(unit, at)| unit.format(at));
                let wide = format.is_some_and(Format::is_wide);
                dims.wire(place.operation, place.position, place.word, wide)
            }
            (None, Entered::Tokens(tokens)) => {
                let token = tokens.get(place.position as usize).copied().unwrap_or(0);
                wiring::embedded(token, place.word, self.model.config().embedding_scale)
            }
            (None, Entered::Rows(_)) => wiring::entered(),
        }
    }

    /// What a word follows from, its inputs taken from `rows` of its slot.
    fn leaf(&self, rows: &Rows, unit: &OpenUnit, place: &Place) -> Result<Leaf, TraceError> {
        let misses = || TraceError::Unsupported("such weights");
        let Wiring { kind, mut numbers, parts, segment } = self.wire(Some(unit), place);
        let mut inputs = Vec::with_capacity(parts.len());
        for part in parts {
            match part {
                Part::Words { operation, position, from, count } => {
                    let row = &rows[operation as usize][position as usize];
                    inputs.extend_from_slice(&row[from as usize..][..count as usize]);
                }
                Part::Before(word) => {
                    let before = &self.outs[place.slot as usize - 1];
                    inputs.push(before[place.position as usize][word as usize]);
                }
                Part::Vector(tensor, index) => {
                    inputs.push(unit.vector(tensor, index).ok_or_else(misses)?.to_bits());
                }
                Part::Rotation(pair) => {
                    let (cos, sin) = self.rope.at(place.position as usize);
                    inputs.extend([cos[pair as usize].to_bits(), sin[pair as usize].to_bits()]);
                }
            }
        }
        if let (Entered::Rows(entered), 0) = (&self.entered, place.slot) {
            inputs.push(element(&entered[place.position as usize], place.word));
        }
        let mut weight = Vec::new();
        if let Some(segment) = segment {
            let found = unit.segment(segment.tensor, segment.row, segment.segment);
            let (format, bytes) = found.ok_or_else(misses)?;
            numbers[0] = number(format).ok_or_else(misses)?;
            weight = bytes.to_vec();
        }
        Ok(Leaf { kind, inputs, numbers, weight })
    }

    /// What a word of this trace follows from.
    ///
    /// # Errors
    /// As [`Trace::node`].
    pub fn inputs(&mut self, place: &Place) -> Result<Leaf, TraceError> {
        if place.word >= self.width(place.slot, place.operation, place.position) {
            return Ok(Leaf { kind: Kind::Zero, inputs: Vec::new(), numbers: [0; 4], weight: Vec::new() });
        }
        self.hold(place.slot)?;
        self.fill(place.position)?;
        let Some(Held { unit, rows, .. }) = &self.held else { return Err(TraceError::Input("there")) };
        self.leaf(rows, unit, place)
    }
}

/// An element of a row as it travels, as binary32.
fn element(row: &[u8], index: u32) -> u32 {
    let at = 2 * index as usize;
    u32::from(u16::from_le_bytes([row[at], row[at + 1]])) << 16
}

/// A row of the last slot, as it travels.
pub fn travelling(row: &[u32]) -> Vec<u8> {
    row.iter().flat_map(|word| ((word >> 16) as u16).to_le_bytes()).collect()
}

fn dims(model: &Model, layer: usize) -> Dims {
    let config = model.config();
    let (qk_norm, [qkv_bias, output_bias, mlp_bias]) = model.parts();
    Dims {
        hidden: config.hidden as u32,
        intermediate: config.intermediate as u32,
        heads: config.heads as u32,
        kv_heads: config.kv_heads as u32,
        head_dim: config.head_dim as u32,
        eps: config.norm_eps.to_bits(),
        scale: config.attention_scale.to_bits(),
        window: config.windows[layer],
        qkv_bias,
        output_bias,
        mlp_bias,
        qk_norm,
    }
}

/// The depths of the tree, for rows as wide as they can get without a window.
fn depths(dims: &Dims, layers: u32, positions: u32) -> Depths {
    let open = Dims { window: None, ..dims.clone() };
    let widest = (0..OPERATIONS).map(|operation| open.width(operation, positions - 1)).max();
    Depths {
        slots: bits(layers + 1),
        positions: bits(positions),
        pieces: bits(widest.unwrap_or(1).div_ceil(PIECE_WORDS)),
    }
}

const _: () = assert!(op::OUT + 1 == OPERATIONS && OPERATIONS <= 1 << OPERATION_BITS);
