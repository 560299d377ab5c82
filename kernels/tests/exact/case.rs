//! A random layer with its batches.

use kernels::{
    backend::{
        AttentionShape, Backend, Gate, GateUp, Grouping, Linear, PAGE, Profile, Qkv, RmsNorm, Row, StepShape,
    },
    rope::{RopeScaling, RopeSpec, RopeTable},
    tensor::{Format, WeightMatrix},
};

use crate::rng::{Flavour, Rng};

/// Shapes and kinds of a layer.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) seed: u64,
    pub(crate) flavour: Flavour,
    pub(crate) profile: Profile,
    pub(crate) format: Format,
    /// Of the values, the down projection and the head, if it is another one.
    pub(crate) second: Option<Format>,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) rotated: usize,
    pub(crate) intermediate: usize,
    pub(crate) vocabulary: usize,
    pub(crate) window: Option<u32>,
    pub(crate) bias: bool,
    pub(crate) qk_norm: bool,
    /// A session whose last row of the first batch starts with this value instead of its embedding's.
    pub(crate) poison: Option<(usize, f32)>,
    /// Of each batch, the rows of each session.
    pub(crate) batches: Vec<Vec<usize>>,
}

/// A layer, its neighbours and its input.
pub(crate) struct Layer<B: Backend> {
    pub(crate) embedding: B::Linear,
    pub(crate) norms: [B::Norm; 3],
    pub(crate) qkv: B::Qkv,
    pub(crate) output: B::Linear,
    pub(crate) gate_up: B::GateUp,
    pub(crate) down: B::Linear,
    pub(crate) head: B::Linear,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            seed: 1,
            flavour: Flavour::Plain,
            profile: Profile::Quantised,
            format: Format::Q8,
            second: None,
            hidden: 64,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            rotated: 16,
            intermediate: 96,
            vocabulary: 50,
            window: None,
            bias: false,
            qk_norm: false,
            poison: None,
            batches: vec![vec![1]],
        }
    }
}

impl Case {
    pub(crate) fn shape(&self) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: self.window,
        }
    }

    /// Groups that any matrix of the layer reads.
    pub(crate) fn grouping(&self) -> Grouping {
        Grouping::of([self.format].into_iter().chain(self.second))
    }

    pub(crate) fn rope(&self) -> RopeTable {
        let spec = RopeSpec { theta: 10000.0, dimensions: self.rotated, scaling: RopeScaling::Default };
        RopeTable::new(&spec, self.positions()).unwrap()
    }

    /// Positions the longest session reaches.
    pub(crate) fn positions(&self) -> usize {
        let sessions = self.batches.iter().map(Vec::len).max().unwrap();
        (0..sessions)
            .map(|session| self.batches.iter().filter_map(|batch| batch.get(session)).sum())
            .max()
            .unwrap()
    }

    pub(crate) fn sessions(&self) -> usize {
        self.batches.iter().map(Vec::len).max().unwrap()
    }

    /// Pages a session may use.
    pub(crate) fn session_pages(&self) -> usize {
        self.positions().div_ceil(PAGE)
    }

    pub(crate) fn max_rows(&self) -> usize {
        self.batches.iter().map(|batch| batch.iter().sum()).max().unwrap()
    }

    pub(crate) fn step_shape(&self) -> StepShape {
        StepShape {
            rows: self.max_rows(),
            pages: self.sessions() * self.session_pages(),
            positions: self.positions(),
            profile: self.profile,
            attention: Some(self.shape()),
            vocabulary: 0,
        }
    }

    /// Page tables of all sessions: their pages are dealt in turn, from the last page down.
    pub(crate) fn pages(&self) -> Vec<u32> {
        let (sessions, each) = (self.sessions(), self.session_pages());
        let total = (sessions * each) as u32;
        (0..sessions * each).map(|i| total - 1 - ((i % each) * sessions + i / each) as u32).collect()
    }

    /// Rows of batch `index`.
    pub(crate) fn rows(&self, index: usize) -> Vec<Row> {
        let each = self.session_pages();
        let mut rows = Vec::new();
        for (session, &count) in self.batches[index].iter().enumerate() {
            let done: usize = self.batches[..index].iter().filter_map(|batch| batch.get(session)).sum();
            rows.extend((done..done + count).map(|position| Row {
                position: position as u32,
                pages: session * each..(session + 1) * each,
            }));
        }
        rows
    }

    /// The row that [`Self::poison`] strikes in batch `index`.
    pub(crate) fn poisoned_row(&self, index: usize) -> Option<(usize, f32)> {
        let (session, value) = self.poison.filter(|_| index == 0)?;
        Some((self.batches[0][..=session].iter().sum::<usize>() - 1, value))
    }

    pub(crate) fn layer<B: Backend>(&self, backend: &B) -> Layer<B> {
        let mut rng = Rng(self.seed);
        let Case { hidden, heads, kv_heads, head_dim, intermediate, vocabulary, .. } = *self;
        let second = self.second.unwrap_or(self.format);
        let mut matrix = |rows: usize, columns: usize, format: Format| {
            let values = rng.values(rows * columns, self.flavour);
            let weight = WeightMatrix::quantise(format, rows, columns, &values).unwrap();
            let bias = self.bias.then(|| rng.values(rows, self.flavour));
            Linear { weight, bias }
        };
        let linear = |weights: Linear<WeightMatrix>| backend.load_linear(weights).unwrap();
        let embedding = matrix(vocabulary, hidden, self.format).weight;
        let embedding = backend.load_embedding(embedding, false).unwrap();
        let (q, k, v) = (
            matrix(heads * head_dim, hidden, self.format),
            matrix(kv_heads * head_dim, hidden, self.format),
            matrix(kv_heads * head_dim, hidden, second),
        );
        let output = linear(matrix(hidden, heads * head_dim, self.format));
        let gate_up = GateUp {
            gate: matrix(intermediate, hidden, self.format),
            up: matrix(intermediate, hidden, self.format),
            activation: Gate::Silu,
        };
        let down = linear(matrix(hidden, intermediate, second));
        let head = linear(matrix(vocabulary, hidden, second));
        let mut norm = |width| RmsNorm { weight: rng.values(width, self.flavour), eps: 1e-6 };
        let norms = [norm(hidden), norm(hidden), norm(hidden)];
        let mut head_norm = || self.qk_norm.then(|| norm(head_dim));
        let qkv = Qkv { q, k, v, q_norm: head_norm(), k_norm: head_norm() };
        Layer {
            embedding,
            norms: norms.map(|norm| backend.load_norm(norm).unwrap()),
            qkv: backend.load_qkv(qkv).unwrap(),
            output,
            gate_up: backend.load_gate_up(gate_up).unwrap(),
            down,
            head,
        }
    }
}
