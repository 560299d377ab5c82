//! Moves of a dispute over what a stage computed: what its sides send to `DisputeGame`, and what they open
//! of a trace, of weights and of rows. `docs/disputes.md` has the rules.

/// A hash.
type Hash = [u8; 32];

/// A model's contents, its roots of weights as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Version of the arithmetic.
    pub numerics: u32,
    /// Hash of the tokenizer.
    pub tokenizer: Hash,
    /// Root of the position encoding.
    pub rope: Hash,
    /// Number of roots of weights.
    pub layers: u32,
    /// Root over the roots of weights.
    pub layer_root: Hash,
}

/// A layer, or the embedding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// The model's contents.
    pub contents: Contents,
    /// Everything that enters the arithmetic.
    pub description: Vec<u8>,
    /// From the description to the unit's root.
    pub in_unit: Vec<Hash>,
    /// From the unit's root to the model's.
    pub in_model: Vec<Hash>,
}

/// A piece of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its 512 bytes.
    pub words: Vec<u8>,
    /// Its siblings, from the lowest up.
    pub path: Vec<Hash>,
}

/// A segment of a row of weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Canonical bytes.
    pub data: Vec<u8>,
    /// Hash of the format's name.
    pub format: Hash,
    /// Rows of the tensor.
    pub rows: u32,
    /// Columns of the tensor.
    pub columns: u32,
    /// From the segment to the tensor's root.
    pub in_tensor: Vec<Hash>,
    /// From the tensor to the unit's root.
    pub in_unit: Vec<Hash>,
}

/// A row, or a token, that was signed to have come in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entered {
    /// Roots of all that came in, chunk by chunk.
    pub roots: Vec<Hash>,
    /// The token, where tokens come in.
    pub token: u32,
    /// Root of the row, where rows do.
    pub row: Hash,
    /// From the row or token to its chunk's root.
    pub in_chunk: Vec<Hash>,
    /// 512 bytes of the row.
    pub piece: Vec<u8>,
    /// From the piece to the row's root.
    pub in_row: Vec<Hash>,
}

/// Everything that a word follows from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// The word's layer, or the embedding; of neither, nothing.
    pub unit: Option<Unit>,
    /// Pieces of the accused's trace, in the order of the inputs.
    pub pieces: Vec<Piece>,
    /// A segment of a matrix.
    pub matrix: Segment,
    /// A segment of a vector.
    pub vector: Segment,
    /// The leaf of a position's rotations.
    pub rotation: Vec<u8>,
    /// From that leaf to the position encoding's root.
    pub in_rope: Vec<Hash>,
    /// What came in.
    pub entered: Entered,
}

/// What shows that there is no trace of a stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// A layer of the stage, or its embedding; of a stage without layers, nothing.
    pub unit: Unit,
    /// Number of that unit in the model; the embedding is 0.
    pub index: u32,
    /// Number of a matrix in the unit.
    pub tensor: u32,
    /// The first segment of its first row; nothing if the description shows enough.
    pub opened: Segment,
}

/// A move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// The accused commits to its trace.
    Commit {
        /// Bytes of the session's plan.
        plan: Vec<u8>,
        /// The stage's first layer.
        unit: Unit,
        /// Nodes below the root.
        nodes: Vec<Hash>,
        /// Roots of the rows that were sent, chunk by chunk.
        roots: Vec<Hash>,
    },
    /// The accuser chooses one of the nodes that were revealed.
    Choose {
        /// Its number among them.
        child: u32,
        /// The node.
        node: Hash,
        /// From it up to the one in question.
        path: Vec<Hash>,
    },
    /// The accused shows what is below the node in question.
    Reveal {
        /// The nodes.
        nodes: Vec<Hash>,
    },
    /// The accuser chooses the rows that were sent.
    ChooseRows {
        /// Number of the chunk.
        chunk: u32,
        /// Roots of all chunks, as the accused showed them.
        roots: Vec<Hash>,
    },
    /// The accused shows the roots of the chunk's rows.
    RevealRows {
        /// The roots.
        rows: Vec<Hash>,
    },
    /// The accuser chooses one of them.
    ChooseRow {
        /// Its position.
        position: u32,
        /// Its root.
        row: Hash,
        /// From the row to the chunk's root.
        in_chunk: Vec<Hash>,
    },
    /// The accused shows the leaves of the row's pieces.
    RevealPieces {
        /// The leaves.
        pieces: Vec<Hash>,
    },
    /// The accuser chooses one of them.
    ChoosePiece {
        /// Its number.
        piece: u32,
    },
    /// The accused shows the piece in question.
    RevealPiece {
        /// Its 512 bytes.
        piece: Vec<u8>,
        /// Of a row that was sent, the leaves of its pieces as they were shown.
        pieces: Vec<Hash>,
    },
    /// The accuser names the word and opens what it follows from.
    Prove {
        /// The piece; nothing if there is none.
        piece: Vec<u8>,
        /// The word.
        at: u32,
        /// What it follows from.
        opening: Box<Opening>,
    },
    /// Anybody ends a dispute in which the clock of whoever has to move has run out.
    Expire,
    /// Anybody ends a dispute over a stage of which there is no trace.
    Abandon {
        /// Bytes of the session's plan.
        plan: Vec<u8>,
        /// What shows it.
        gap: Box<Gap>,
    },
}

impl Move {
    /// What the contract calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Commit { .. } => "commit",
            Self::Choose { .. } => "choose",
            Self::Reveal { .. } => "reveal",
            Self::ChooseRows { .. } => "chooseRows",
            Self::RevealRows { .. } => "revealRows",
            Self::ChooseRow { .. } => "chooseRow",
            Self::RevealPieces { .. } => "revealPieces",
            Self::ChoosePiece { .. } => "choosePiece",
            Self::RevealPiece { .. } => "revealPiece",
            Self::Prove { .. } => "prove",
            Self::Expire => "expire",
            Self::Abandon { .. } => "abandon",
        }
    }
}
