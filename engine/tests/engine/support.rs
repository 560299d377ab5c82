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

/// A stage on any device.
pub(crate) trait AnyStage {
    fn open(&mut self, session: SessionId, positions: u32);
    /// Takes rows through all layers; the rows that come out.
    fn run(&mut self, segments: &[Segment], input: Input<'_>) -> Vec<f32>;
    fn logits(&mut self, segments: &[Segment], rows: &[u32]) -> Vec<f32>;
}

impl<B: Backend> AnyStage for Stage<B> {
    fn open(&mut self, session: SessionId, positions: u32) {
        Stage::open(self, session, RouteId(1), positions, Prompt::default()).unwrap();
    }

    fn run(&mut self, segments: &[Segment], input: Input<'_>) -> Vec<f32> {
        let (mut short, mut faults, mut out) = (Vec::new(), Vec::new(), Vec::new());
        self.reserve(segments, &mut short);
        assert_eq!(short, []);
        self.step(self.shard().layers.clone(), segments, input, &mut faults).unwrap();
        assert_eq!(faults, Vec::<Fault>::new());
        let rows = segments.iter().map(|segment| segment.rows as usize).sum();
        self.read_rows(0..rows, &mut out).unwrap();
        let (wire, mut received) = (encode_rows(&out, self.profile()), Vec::new());
        decode_rows(&wire, self.profile(), &mut received).unwrap();
        assert_eq!(received, out, "what crosses a boundary is what goes on inside a stage");
        received
    }

    fn logits(&mut self, segments: &[Segment], rows: &[u32]) -> Vec<f32> {
        let (mut faults, mut logits) = (Vec::new(), Vec::new());
        Stage::logits(self, segments, rows, &mut logits, &mut faults).unwrap();
        assert_eq!(faults, Vec::<Fault>::new());
        logits
    }
}

/// Part `index` of a model that is cut at the layers `cuts`, at which new stages begin.
pub(crate) fn part<B: Backend>(
    model: &Model,
    backend: B,
    quantisation: Quantisation,
    cuts: &[usize],
    index: usize,
) -> Box<dyn AnyStage> {
    let layers = model.config().layers;
    let bounds: Vec<usize> = [0].into_iter().chain(cuts.iter().copied()).chain([layers]).collect();
    let range = bounds[index]..bounds[index + 1];
    let shard = Shard { embedding: range.start == 0, head: range.end == layers, layers: range };
    let weights = model.load(&shard, quantisation, &|_| {}).unwrap();
    let profile = quantisation.profile();
    Box::new(Stage::new(backend, model.config(), &shard, weights, profile, LIMITS).unwrap())
}

/// Stages in a row; rows travel between them as they would over a link.
pub(crate) struct Pipeline {
    stages: Vec<Box<dyn AnyStage>>,
    held: HashMap<SessionId, u32>,
}

impl Pipeline {
    /// `cuts` are the layers at which a new stage begins.
    pub(crate) fn new<B: Backend + Clone>(
        model: &Model,
        backend: &B,
        quantisation: Quantisation,
        cuts: &[usize],
    ) -> Self {
        let stage = |index| part(model, backend.clone(), quantisation, cuts, index);
        Self::of((0..=cuts.len()).map(stage).collect())
    }

    pub(crate) fn of(stages: Vec<Box<dyn AnyStage>>) -> Self {
        Self { stages, held: HashMap::new() }
    }

    pub(crate) fn open(&mut self, session: SessionId, positions: u32) {
        self.stages.iter_mut().for_each(|stage| stage.open(session, positions));
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
        for (index, stage) in self.stages.iter_mut().enumerate() {
            rows = stage.run(&segments, if index == 0 { Input::Tokens(&tokens) } else { Input::Rows(&rows) });
        }
        let all: Vec<u32> = (0..tokens.len() as u32).collect();
        let logits = self.stages.last_mut().unwrap().logits(&segments, &all);
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
