//! Golden models, and a pipeline of stages without links between them.

use std::{collections::HashMap, ops::Range, path::PathBuf};

use engine::{
    message::{RouteId, Segment, SessionId, decode_rows, encode_rows},
    model::{Model, Quantisation, Shard},
    stage::{Fault, Input, Prompt, Stage, StageLimits},
};
use kernels::backend::Backend;
use safetensors::SafeTensors;

/// Every golden model that transformers computed.
pub(crate) const MODELS: [&str; 10] = [
    "llama",
    "llama3",
    "llama_linear",
    "llama_tied",
    "llama_yarn",
    "mistral",
    "mistral_nowin",
    "qwen2",
    "qwen2_yarn",
    "qwen3",
];

pub(crate) fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

pub(crate) fn open(name: &str) -> Model {
    Model::open(&folder(name)).unwrap()
}

/// What transformers computed for a golden model.
pub(crate) struct Golden {
    pub(crate) input: Vec<u32>,
    /// `[input][vocabulary]`.
    pub(crate) logits: Vec<f32>,
    pub(crate) greedy: Vec<u32>,
}

impl Golden {
    pub(crate) fn read(name: &str) -> Self {
        let bytes = std::fs::read(folder(name).join("golden.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let ids = |name: &str| {
            let data = tensors.tensor(name).unwrap().data().as_chunks::<8>().0;
            data.iter().map(|&word| u64::from_le_bytes(word) as u32).collect()
        };
        let words = tensors.tensor("logits").unwrap();
        let logits = words.data().as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word)).collect();
        Self { input: ids("input_ids"), logits, greedy: ids("greedy_ids") }
    }
}

pub(crate) const LIMITS: StageLimits = StageLimits { rows: 64, pages: 128, sessions: 64, positions: 256 };

/// Stages in a row; rows travel between them as they would over a link.
pub(crate) struct Pipeline<B: Backend> {
    stages: Vec<Stage<B>>,
    held: HashMap<SessionId, u32>,
}

impl<B: Backend + Clone> Pipeline<B> {
    /// `cuts` are the layers at which a new stage begins.
    pub(crate) fn new(model: &Model, backend: &B, quantisation: Quantisation, cuts: &[usize]) -> Self {
        let layers = model.config().layers;
        let bounds: Vec<usize> = [0].into_iter().chain(cuts.iter().copied()).chain([layers]).collect();
        let stage = |pair: &[usize]| {
            let shard = Shard { layers: pair[0]..pair[1], embedding: pair[0] == 0, head: pair[1] == layers };
            let weights = model.load(&shard, quantisation, &|_| {}).unwrap();
            Stage::new(backend.clone(), model.config(), &shard, weights, quantisation.profile(), LIMITS)
                .unwrap()
        };
        Self { stages: bounds.windows(2).map(stage).collect(), held: HashMap::new() }
    }

    pub(crate) fn open(&mut self, session: SessionId, positions: u32) {
        for stage in &mut self.stages {
            stage.open(session, RouteId(1), positions, Prompt::default()).unwrap();
        }
        self.held.insert(session, 0);
    }

    /// Runs the rows of several sessions as one step; the logits of every row, and the hidden rows
    /// at the end of the last layer.
    pub(crate) fn step(&mut self, batch: &[(SessionId, &[u32])]) -> Outcome {
        let mut segments = Vec::new();
        for (session, tokens) in batch {
            let held = self.held.get_mut(session).unwrap();
            let rows = tokens.len() as u32;
            segments.push(Segment {
                session: *session,
                from: *held,
                rows,
                drawn: tokens.to_vec(),
                drafted: 0,
            });
            *held += tokens.len() as u32;
        }
        let tokens: Vec<u32> = batch.iter().flat_map(|(_, tokens)| tokens.iter().copied()).collect();
        let mut rows = Vec::new();
        let mut faults = Vec::new();
        for (index, stage) in self.stages.iter_mut().enumerate() {
            let layers = stage.shard().layers.clone();
            let received = rows.clone();
            let input = if index == 0 { Input::Tokens(&tokens) } else { Input::Rows(&received) };
            let mut short = Vec::new();
            stage.reserve(&segments, &mut short);
            assert_eq!(short, []);
            stage.step(layers, &segments, input, &mut faults).unwrap();
            assert_eq!(faults, Vec::<Fault>::new());
            let mut out = Vec::new();
            stage.read_rows(0..tokens.len(), &mut out).unwrap();
            let wire = encode_rows(&out, stage.profile());
            decode_rows(&wire, stage.profile(), &mut rows).unwrap();
            assert_eq!(rows, out, "what crosses a boundary is what goes on inside a stage");
        }
        let mut logits = Vec::new();
        let all: Vec<u32> = (0..tokens.len() as u32).collect();
        let last = self.stages.last_mut().unwrap();
        last.logits(&segments, &all, &mut logits, &mut faults).unwrap();
        assert_eq!(faults, Vec::<Fault>::new());
        Outcome { hidden: rows, logits, rows: tokens.len() }
    }
}

/// What a step left.
pub(crate) struct Outcome {
    hidden: Vec<f32>,
    logits: Vec<f32>,
    rows: usize,
}

impl Outcome {
    pub(crate) fn logits(&self, rows: Range<usize>) -> &[f32] {
        let width = self.logits.len() / self.rows;
        &self.logits[rows.start * width..rows.end * width]
    }

    /// The bits of hidden rows and logits of some rows.
    pub(crate) fn bits(&self, rows: Range<usize>) -> Vec<u32> {
        let width = self.hidden.len() / self.rows;
        let hidden = &self.hidden[rows.start * width..rows.end * width];
        hidden.iter().chain(self.logits(rows)).map(|value| value.to_bits()).collect()
    }
}

pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, value) in logits.iter().enumerate() {
        if *value > logits[best] {
            best = index;
        }
    }
    best as u32
}
