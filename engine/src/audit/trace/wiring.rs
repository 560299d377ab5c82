//! Which words a word follows from. The tables are those of `docs/disputes.md`; the contract `Wiring.sol` has
//! the same.

use kernels::tensor::{GROUP, SEGMENT};

use super::kind::{CHAIN, Kind};

pub mod op;

/// Operations of a layer.
pub const OPERATIONS: u32 = 47;
/// Positions of a block of attention.
pub(super) const BLOCK: u32 = 64;
/// Lanes of a sum of squares.
const LANES: u32 = 256;

/// What enters the arithmetic of a layer, beside its weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Width of the residual stream.
    pub hidden: u32,
    /// Width of the MLP.
    pub intermediate: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Bits of what norms add to the mean square.
    pub eps: u32,
    /// Bits of the factor on queries.
    pub scale: u32,
    /// Sliding window.
    pub window: Option<u32>,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether o has one.
    pub output_bias: bool,
    /// Whether gate, up and down have.
    pub mlp_bias: bool,
    /// Whether heads of queries and keys have norms.
    pub qk_norm: bool,
}

/// One of the things that a word follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Words in a row of the same slot.
    Words {
        /// Operation.
        operation: u32,
        /// Position.
        position: u32,
        /// First word.
        from: u32,
        /// Number of words, at most 64.
        count: u32,
    },
    /// A word of the last operation of the slot before, at the word's own position.
    Before(u32),
    /// A value of a vector of weights: tensor of the unit, index.
    Vector(u32, u32),
    /// cos and sin of a pair at the word's own position.
    Rotation(u32),
}

/// A segment of a row of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Tensor of the unit.
    pub tensor: u32,
    /// Row.
    pub row: u32,
    /// Segment of the row.
    pub segment: u32,
}

/// What a word follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wiring {
    /// How.
    pub kind: Kind,
    /// Numbers; of [`Kind::Segment`] the first, the format, is filled in with the weights.
    pub numbers: [u32; 4],
    /// Where the inputs are, in order.
    pub parts: Vec<Part>,
    /// The weights.
    pub segment: Option<Segment>,
}

impl Wiring {
    fn new(kind: Kind, parts: Vec<Part>) -> Self {
        Self::with(kind, [0; 4], parts)
    }

    fn with(kind: Kind, numbers: [u32; 4], parts: Vec<Part>) -> Self {
        Self { kind, numbers, parts, segment: None }
    }
}

/// The products of a layer: the operation, its weight as [`Dims::tensor`] counts, outputs, inputs.
struct Product {
    weight: u32,
    inputs: u32,
    scales: u32,
    bias: bool,
}

fn segments(width: u32) -> u32 {
    width.div_ceil(SEGMENT as u32)
}

fn groups(width: u32) -> u32 {
    width.div_ceil(GROUP as u32)
}

/// Lanes of the first level of a tree over `n` values.
fn tree_lanes(n: u32) -> u32 {
    n.next_power_of_two().min(LANES)
}

impl Dims {
    fn queries(&self) -> u32 {
        self.heads * self.head_dim
    }

    fn keys(&self) -> u32 {
        self.kv_heads * self.head_dim
    }

    /// The first visible position.
    fn first(&self, position: u32) -> u32 {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn visible(&self, position: u32) -> u32 {
        position + 1 - self.first(position)
    }

    fn blocks(&self, position: u32) -> u32 {
        position / BLOCK - self.first(position) / BLOCK + 1
    }

    /// Number of a weight in its unit: of attention norm, q, k, v, query norm, key norm, o, mlp norm, gate, up,
    /// down (0 to 10). A bias is the one after its matrix. The unit's description is number 0.
    fn tensor(&self, weight: u32) -> u32 {
        let qkv = 1 + u32::from(self.qkv_bias);
        let mlp = 1 + u32::from(self.mlp_bias);
        let o = 2 + 3 * qkv + 2 * u32::from(self.qk_norm);
        let mlp_norm = o + 1 + u32::from(self.output_bias);
        match weight {
            0 => 1,
            1..=3 => 2 + (weight - 1) * qkv,
            4 | 5 => 2 + 3 * qkv + (weight - 4),
            6 => o,
            7 => mlp_norm,
            _ => mlp_norm + 1 + (weight - 8) * mlp,
        }
    }

    fn product(&self, operation: u32) -> Option<Product> {
        let product = |weight, inputs, scales, bias| Some(Product { weight, inputs, scales, bias });
        match operation {
            op::Q | op::K | op::V => {
                product(operation - op::Q + 1, self.hidden, op::INPUT_SCALES, self.qkv_bias)
            }
            op::O => product(6, self.queries(), op::ATTENDED_SCALES, self.output_bias),
            op::GATE | op::UP => {
                product(operation - op::GATE + 8, self.hidden, op::MLP_SCALES, self.mlp_bias)
            }
            op::DOWN => product(10, self.intermediate, op::GATED_SCALES, self.mlp_bias),
            _ => None,
        }
    }

    /// Words of a row.
    pub fn width(&self, operation: u32, position: u32) -> u32 {
        let (hidden, queries, keys) = (self.hidden, self.queries(), self.keys());
        let norm = |part: u32, groups: u32, n: u32| match part {
            0 | 3 => groups * n,
            1 => groups * (tree_lanes(n) - 1),
            _ => groups,
        };
        let quantised = |part: u32, n: u32| match part {
            0 => groups(n) + segments(n),
            _ => 8 * groups(n) + 64 * segments(n),
        };
        match operation {
            0..=3 => norm(operation, 1, hidden),
            4..=5 => quantised(operation - op::INPUT_SCALES, hidden),
            op::Q => queries * segments(hidden),
            op::K | op::V => keys * segments(hidden),
            9..=16 if !self.qk_norm => 0,
            9..=12 => norm(operation - op::Q_SQUARES, self.heads, self.head_dim),
            13..=16 => norm(operation - op::K_SQUARES, self.kv_heads, self.head_dim),
            op::QUERY | op::ATTENDED => queries,
            op::KEY | op::VALUE => keys,
            op::COLUMNS => keys * BLOCK,
            op::SCORES => self.heads * self.visible(position) * self.head_dim.div_ceil(CHAIN),
            op::WEIGHTS => self.heads * self.visible(position),
            op::MAXIMA | op::SUMS | op::PEAKS | op::TOTALS => self.heads * self.blocks(position),
            op::OUTPUTS | op::FOLDED => queries * self.blocks(position),
            30..=31 => quantised(operation - op::ATTENDED_SCALES, queries),
            op::O => hidden * segments(queries),
            op::RESIDUAL | op::OUT => hidden,
            34..=37 => norm(operation - op::MLP_SQUARES, 1, hidden),
            38..=39 => quantised(operation - op::MLP_SCALES, hidden),
            op::GATE | op::UP => self.intermediate * segments(hidden),
            op::GATED => self.intermediate,
            43..=44 => quantised(operation - op::GATED_SCALES, self.intermediate),
            op::DOWN => hidden * segments(self.intermediate),
            _ => 0,
        }
    }

    /// The matrix of a product, as a tensor of the unit.
    pub fn matrix(&self, operation: u32) -> Option<u32> {
        self.product(operation).map(|product| self.tensor(product.weight))
    }

    /// What a word of a layer follows from; `wide` says whether a product's matrix has super-blocks.
    pub fn wire(&self, operation: u32, position: u32, word: u32, wide: bool) -> Wiring {
        if word >= self.width(operation, position) {
            return Wiring::new(Kind::Zero, Vec::new());
        }
        let at = At { dims: self, operation, position, word };
        match operation {
            0..=3 => at.norm(operation, 0, None, self.hidden, 0),
            4..=5 => at.quantised(op::INPUT_SCALES, op::NORMED, self.hidden),
            9..=12 => at.norm(operation - op::Q_SQUARES, op::Q_SQUARES, Some(op::Q), self.head_dim, 4),
            13..=16 => at.norm(operation - op::K_SQUARES, op::K_SQUARES, Some(op::K), self.head_dim, 5),
            17..=20 => at.projected(),
            21..=25 => at.attention(),
            26..=29 => at.folding(),
            30..=31 => at.quantised(op::ATTENDED_SCALES, op::ATTENDED, self.queries()),
            op::RESIDUAL => Wiring::new(Kind::Add, vec![Part::Before(word), at.value(op::O, word)]),
            34..=37 => {
                at.norm(operation - op::MLP_SQUARES, op::MLP_SQUARES, Some(op::RESIDUAL), self.hidden, 7)
            }
            38..=39 => at.quantised(op::MLP_SCALES, op::MLP_NORMED, self.hidden),
            op::GATED => Wiring::new(Kind::Gate, vec![at.value(op::GATE, word), at.value(op::UP, word)]),
            43..=44 => at.quantised(op::GATED_SCALES, op::GATED, self.intermediate),
            op::OUT => Wiring::new(Kind::Out, vec![at.value(op::RESIDUAL, word), at.value(op::DOWN, word)]),
            _ => at.product(wide),
        }
    }
}

/// A word that is wired.
struct At<'a> {
    dims: &'a Dims,
    operation: u32,
    position: u32,
    word: u32,
}

impl At<'_> {
    fn words(&self, operation: u32, from: u32, count: u32) -> Part {
        Part::Words { operation, position: self.position, from, count }
    }

    fn word(&self, operation: u32, word: u32) -> Part {
        self.words(operation, word, 1)
    }

    /// Value `index` of an operation: of a product the sum after the last segment.
    fn value(&self, operation: u32, index: u32) -> Part {
        let word = match self.dims.product(operation) {
            Some(product) => (index + 1) * segments(product.inputs) - 1,
            None => index,
        };
        self.word(operation, word)
    }

    /// A norm of groups of `n` values of `source`, or of the slot before.
    fn norm(&self, part: u32, base: u32, source: Option<u32>, n: u32, weight: u32) -> Wiring {
        let word = self.word;
        let x = |index| source.map_or(Part::Before(index), |source| self.value(source, index));
        match part {
            0 => {
                let mut parts = vec![x(word)];
                if word % n >= LANES {
                    parts.push(self.word(base, word - LANES));
                }
                Wiring::new(Kind::Square, parts)
            }
            1 => self.halving(base, n),
            2 => {
                let last = match tree_lanes(n) {
                    1 => self.word(base, word),
                    lanes => self.word(base + 1, (word + 1) * (lanes - 1) - 1),
                };
                Wiring::with(Kind::Rms, [n, self.dims.eps, 0, 0], vec![last])
            }
            _ => {
                let weight = Part::Vector(self.dims.tensor(weight), word % n);
                Wiring::new(Kind::Scale, vec![x(word), self.word(base + 2, word / n), weight])
            }
        }
    }

    /// A word of the halving tree over the lanes of squares of `n` values.
    fn halving(&self, base: u32, n: u32) -> Wiring {
        let lanes = tree_lanes(n);
        let (group, mut lane) = (self.word / (lanes - 1), self.word % (lanes - 1));
        let (mut width, mut below) = (lanes / 2, 0);
        while lane >= width {
            below = group * (lanes - 1) + lanes - 2 * width;
            lane -= width;
            width /= 2;
        }
        if width < lanes / 2 {
            let part = |lane| self.word(base + 1, below + lane);
            return Wiring::new(Kind::Add, vec![part(lane), part(lane + width)]);
        }
        // The last square of a lane.
        let square = |lane| self.word(base, group * n + lane + (n - 1 - lane) / LANES * LANES);
        if lane + width < n {
            Wiring::new(Kind::Add, vec![square(lane), square(lane + width)])
        } else {
            Wiring::new(Kind::Copy, vec![square(lane)])
        }
    }

    /// A word of a row that is quantised twice: by groups of 32, then by segments.
    fn quantised(&self, scales: u32, source: u32, n: u32) -> Wiring {
        let (mut word, narrow) = (self.word, groups(n));
        if self.operation == scales {
            let (from, size) = match word.checked_sub(narrow) {
                None => (word * GROUP as u32, GROUP as u32),
                Some(word) => (word * SEGMENT as u32, SEGMENT as u32),
            };
            return Wiring::new(Kind::GroupScale, vec![self.words(source, from, size.min(n - from))]);
        }
        let mut scale = word / 8;
        if scale >= narrow {
            word -= 8 * narrow;
            scale = narrow + word / 64;
        }
        let mut parts = vec![self.word(scales, scale)];
        if 4 * word < n {
            parts.push(self.words(source, 4 * word, 4.min(n - 4 * word)));
        }
        Wiring::new(Kind::GroupQuants, parts)
    }

    fn product(&self, wide: bool) -> Wiring {
        let Some(product) = self.dims.product(self.operation) else {
            return Wiring::new(Kind::Zero, Vec::new());
        };
        let in_row = segments(product.inputs);
        let (row, segment) = (self.word / in_row, self.word % in_row);
        let narrow = groups(product.inputs);
        let count = (narrow - 8 * segment).min((SEGMENT / GROUP) as u32);
        let (count, quants, scales) = match wide {
            false => (count, (64 * segment, 8 * count), (8 * segment, count)),
            true => (1, (8 * narrow + 64 * segment, 64), (narrow + segment, 1)),
        };
        let mut parts = vec![
            self.words(product.scales + 1, quants.0, quants.1),
            self.words(product.scales, scales.0, scales.1),
        ];
        let bias = product.bias && segment + 1 == in_row;
        if segment > 0 {
            parts.push(self.word(self.operation, self.word - 1));
        }
        let tensor = self.dims.tensor(product.weight);
        if bias {
            parts.push(Part::Vector(tensor + 1, row));
        }
        let numbers = [0, count, u32::from(segment > 0), u32::from(bias)];
        let segment = Some(Segment { tensor, row, segment });
        Wiring { segment, ..Wiring::with(Kind::Segment, numbers, parts) }
    }

    /// Queries, keys and values, ready for attention.
    fn projected(&self) -> Wiring {
        let (dims, word) = (self.dims, self.word);
        match self.operation {
            op::VALUE => Wiring::new(Kind::Half, vec![self.value(op::V, word)]),
            op::COLUMNS => {
                let position = self.position / BLOCK * BLOCK + word % BLOCK;
                if position > self.position {
                    return Wiring::new(Kind::Zero, Vec::new());
                }
                let part = Part::Words { operation: op::VALUE, position, from: word / BLOCK, count: 1 };
                Wiring::new(Kind::Copy, vec![part])
            }
            _ => {
                let (kind, source, normed) = match self.operation {
                    op::QUERY => (Kind::Query, op::Q, op::Q_SQUARES + 3),
                    _ => (Kind::Key, op::K, op::K_SQUARES + 3),
                };
                let source = if dims.qk_norm { normed } else { source };
                let pairs = dims.head_dim / 2;
                let (which, pair) = (word % dims.head_dim / pairs, word % pairs);
                let first = word - which * pairs;
                let pair_parts =
                    vec![self.value(source, first), self.value(source, first + pairs), Part::Rotation(pair)];
                Wiring::with(kind, [which, dims.scale, 0, 0], pair_parts)
            }
        }
    }

    /// First visible key of block number `block`, counted among the visible ones, and how many there are.
    fn block(&self, block: u32) -> (u32, u32) {
        let first = self.dims.first(self.position);
        let start = first.max((first / BLOCK + block) * BLOCK);
        let end = (start / BLOCK + 1) * BLOCK;
        (start - first, end.min(self.position + 1) - start)
    }

    fn attention(&self) -> Wiring {
        let (dims, word) = (self.dims, self.word);
        let (visible, blocks) = (dims.visible(self.position), dims.blocks(self.position));
        let chains = dims.head_dim.div_ceil(CHAIN);
        // The scores of a head, which are in its last part.
        let scores = |head: u32| (head * chains + chains - 1) * visible;
        match self.operation {
            op::SCORES => self.score(visible, chains),
            op::MAXIMA => {
                let (from, count) = self.block(word % blocks);
                let part = self.words(op::SCORES, scores(word / blocks) + from, count);
                Wiring::new(Kind::Max, vec![part])
            }
            op::WEIGHTS => {
                let (head, key) = (word / visible, word % visible);
                let first = dims.first(self.position);
                let block = (first + key) / BLOCK - first / BLOCK;
                let parts = vec![
                    self.word(op::SCORES, scores(head) + key),
                    self.word(op::MAXIMA, head * blocks + block),
                ];
                Wiring::new(Kind::Weight, parts)
            }
            op::SUMS => {
                let (from, count) = self.block(word % blocks);
                let offset = (dims.first(self.position) + from) % BLOCK;
                let part = self.words(op::WEIGHTS, word / blocks * visible + from, count);
                Wiring::with(Kind::Tree, [offset, 0, 0, 0], vec![part])
            }
            _ => {
                let (head, i) = (word / dims.head_dim / blocks, word % dims.head_dim);
                let (from, count) = self.block(word / dims.head_dim % blocks);
                let start = dims.first(self.position) + from;
                let kv_head = head / (dims.heads / dims.kv_heads);
                let column = (kv_head * dims.head_dim + i) * BLOCK + start % BLOCK;
                let position = self.position.min(start / BLOCK * BLOCK + BLOCK - 1);
                let parts = vec![
                    self.words(op::WEIGHTS, head * visible + from, count),
                    Part::Words { operation: op::COLUMNS, position, from: column, count },
                ];
                Wiring::with(Kind::Chain, [count, 0, 0, 0], parts)
            }
        }
    }

    /// Part of a score: 64 dimensions of a head.
    fn score(&self, visible: u32, chains: u32) -> Wiring {
        let dims = self.dims;
        let (head, chain, key) =
            (self.word / visible / chains, self.word / visible % chains, self.word % visible);
        let from = chain * CHAIN;
        let count = CHAIN.min(dims.head_dim - from);
        let mut parts = Vec::new();
        if chain > 0 {
            parts.push(self.word(op::SCORES, self.word - visible));
        }
        parts.push(self.words(op::QUERY, head * dims.head_dim + from, count));
        let kv_head = head / (dims.heads / dims.kv_heads);
        let position = dims.first(self.position) + key;
        let from = kv_head * dims.head_dim + from;
        parts.push(Part::Words { operation: op::KEY, position, from, count });
        Wiring::with(Kind::Chain, [count, u32::from(chain > 0), 0, 0], parts)
    }

    /// What is known after some blocks, and the output.
    fn folding(&self) -> Wiring {
        let (dims, word) = (self.dims, self.word);
        let blocks = dims.blocks(self.position);
        if self.operation == op::ATTENDED {
            let (head, i) = (word / dims.head_dim, word % dims.head_dim);
            let last = (head + 1) * blocks - 1;
            let parts = vec![self.word(op::FOLDED, last * dims.head_dim + i), self.word(op::TOTALS, last)];
            return Wiring::new(Kind::Divide, parts);
        }
        let (source, step) = match self.operation {
            op::PEAKS => (op::MAXIMA, 1),
            op::TOTALS => (op::SUMS, 1),
            _ => (op::OUTPUTS, dims.head_dim),
        };
        // Of all heads.
        let block = word / step;
        if block % blocks == 0 {
            return Wiring::new(Kind::Copy, vec![self.word(source, word)]);
        }
        if self.operation == op::PEAKS {
            return Wiring::new(Kind::Max, vec![self.word(op::PEAKS, word - 1), self.word(source, word)]);
        }
        let parts = vec![
            self.word(source, word),
            self.word(op::MAXIMA, block),
            self.word(op::PEAKS, block),
            self.word(op::PEAKS, block - 1),
            self.word(self.operation, word - step),
        ];
        Wiring::new(Kind::Fold, parts)
    }
}

/// What a word of an embedding row follows from; its weight is the embedding's only tensor.
pub fn embedded(token: u32, word: u32, scale: Option<f32>) -> Wiring {
    let (segment, index) = (word / SEGMENT as u32, word % SEGMENT as u32);
    let numbers = [0, index, u32::from(scale.is_some()), scale.map_or(0, f32::to_bits)];
    let segment = Some(Segment { tensor: 1, row: token, segment });
    Wiring { segment, ..Wiring::with(Kind::Embed, numbers, Vec::new()) }
}

/// What a word of a row that came in follows from: the row's element, which comes as the only input.
pub fn entered() -> Wiring {
    Wiring::new(Kind::Copy, Vec::new())
}
