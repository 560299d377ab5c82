//! GGUF files that mix quantised formats, run as they are: the same bytes wherever the model is cut, however
//! its rows are batched and on every instruction set, and near to the model that the bytes stand for.

use std::path::{Path, PathBuf};

use engine::{
    message::SessionId,
    model::{Model, Quantisation, Shard, ShardWeights},
};
use kernels::{
    backend::Backend,
    cpu::{Cpu, Isa},
    reference::Reference,
    tensor::{Format, WeightMatrix},
};

use crate::support::Pipeline;

const SESSION: SessionId = SessionId(1);
const HIDDEN: usize = 256;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const INTERMEDIATE: usize = 512;
const LAYERS: usize = 3;
const VOCABULARY: usize = 90;

/// Which formats a file has.
#[derive(Clone, Copy, Debug)]
struct Mixture {
    embedding: Format,
    /// `None` for a tied head.
    head: Option<Format>,
    most: Format,
    /// Of the values and the down projection of the first and the last layer.
    some: Format,
}

const MIXTURES: [Mixture; 4] = [
    // Q4_K_M, tied and not.
    Mixture { embedding: Format::Q6K, head: None, most: Format::Q4K, some: Format::Q6K },
    Mixture { embedding: Format::Q4K, head: Some(Format::Q6K), most: Format::Q4K, some: Format::Q6K },
    // Q4_0 as published, its head in Q6_K.
    Mixture { embedding: Format::Q4, head: Some(Format::Q6K), most: Format::Q4, some: Format::Q4 },
    // All four side by side.
    Mixture { embedding: Format::Q8, head: Some(Format::Q4K), most: Format::Q6K, some: Format::Q8 },
];

/// A GGUF file under construction.
#[derive(Default)]
struct File {
    seed: u64,
    pairs: u64,
    metadata: Vec<u8>,
    tensors: u64,
    directory: Vec<u8>,
    data: Vec<u8>,
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

impl File {
    fn pair(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.pairs += 1;
        self.metadata.extend([&text(key)[..], &kind.to_le_bytes(), value].concat());
    }

    fn integer(&mut self, key: &str, value: usize) {
        self.pair(&format!("llama.{key}"), 4, &(value as u32).to_le_bytes());
    }

    fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, bytes: &[u8]) {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.tensors += 1;
        self.directory.extend(text(name));
        self.directory.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&n| self.directory.extend((n as u64).to_le_bytes()));
        self.directory.extend(kind.to_le_bytes());
        self.directory.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
    }

    /// The next of random values from -1 to 1.
    fn value(&mut self) -> f32 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn matrix(&mut self, name: &str, rows: usize, columns: usize, format: Format) {
        let kind = match format {
            Format::F32 => 0,
            Format::Q4 => 2,
            Format::Q8 => 8,
            Format::Q4K => 12,
            Format::Q6K => 14,
            Format::Bf16 => 30,
        };
        let scale = 2.0 / (columns as f32).sqrt();
        let values: Vec<f32> = (0..rows * columns).map(|_| self.value() * scale).collect();
        let matrix = WeightMatrix::quantise(format, rows, columns, &values).unwrap();
        self.tensor(&format!("{name}.weight"), &[rows, columns], kind, matrix.bytes());
    }

    fn norm(&mut self, name: &str) {
        let bytes: Vec<u8> = (0..HIDDEN).flat_map(|_| (1.0 + 0.1 * self.value()).to_le_bytes()).collect();
        self.tensor(&format!("{name}.weight"), &[HIDDEN], 0, &bytes);
    }

    fn finish(self) -> Vec<u8> {
        let mut file = [&b"GGUF"[..], &3_u32.to_le_bytes()].concat();
        file.extend([self.tensors.to_le_bytes(), self.pairs.to_le_bytes()].concat());
        file.extend([self.metadata, self.directory].concat());
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(self.data);
        file
    }
}

fn write(mixture: Mixture, path: &Path) {
    let mut file = File { seed: 5, ..File::default() };
    file.pair("general.architecture", 8, &text("llama"));
    for (key, value) in [
        ("embedding_length", HIDDEN),
        ("block_count", LAYERS),
        ("feed_forward_length", INTERMEDIATE),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("context_length", 512),
    ] {
        file.integer(key, value);
    }
    file.pair("llama.attention.layer_norm_rms_epsilon", 6, &1e-5_f32.to_le_bytes());
    file.matrix("token_embd", VOCABULARY, HIDDEN, mixture.embedding);
    for layer in 0..LAYERS {
        let some = if layer == 1 { mixture.most } else { mixture.some };
        let name = |part: &str| format!("blk.{layer}.{part}");
        let keys = HIDDEN / HEADS * KV_HEADS;
        file.norm(&name("attn_norm"));
        file.matrix(&name("attn_q"), HIDDEN, HIDDEN, mixture.most);
        file.matrix(&name("attn_k"), keys, HIDDEN, mixture.most);
        file.matrix(&name("attn_v"), keys, HIDDEN, some);
        file.matrix(&name("attn_output"), HIDDEN, HIDDEN, mixture.most);
        file.norm(&name("ffn_norm"));
        file.matrix(&name("ffn_gate"), INTERMEDIATE, HIDDEN, mixture.most);
        file.matrix(&name("ffn_up"), INTERMEDIATE, HIDDEN, mixture.most);
        file.matrix(&name("ffn_down"), HIDDEN, INTERMEDIATE, some);
    }
    file.norm("output_norm");
    if let Some(format) = mixture.head {
        file.matrix("output", VOCABULARY, HIDDEN, format);
    }
    std::fs::write(path, file.finish()).unwrap();
}

/// Calls `check` with a model of each mixture.
fn each(check: impl Fn(&Model, Mixture)) {
    let directory = tempfile::tempdir().unwrap();
    for (index, mixture) in MIXTURES.into_iter().enumerate() {
        let path: PathBuf = directory.path().join(format!("{index}.gguf"));
        write(mixture, &path);
        check(&Model::open(&path).unwrap(), mixture);
    }
}

fn prompt() -> Vec<u32> {
    (0..70).map(|i| i * i * 31 % VOCABULARY as u32).collect()
}

fn cpu() -> Cpu {
    Cpu::new(2, Isa::detect()).unwrap()
}

/// Bits of every hidden row and of the logits, in chunks of `chunk`.
fn bits<B: Backend + Clone>(model: &Model, backend: &B, cuts: &[usize], chunk: usize) -> Vec<Vec<u32>> {
    let mut pipeline = Pipeline::new(model, backend, Quantisation::Q8, cuts);
    pipeline.open(SESSION, 128);
    let mut out = Vec::new();
    for tokens in prompt().chunks(chunk) {
        let outcome = pipeline.step(&[(SESSION, tokens)]);
        out.extend((0..tokens.len()).map(|row| outcome.bits(row..row + 1)));
    }
    out
}

#[test]
fn mixed_files_give_the_same_bytes_everywhere() {
    each(|model, mixture| {
        let reference = bits(model, &Reference, &[], 35);
        for isa in Isa::available() {
            for (threads, cuts, chunk) in [(1, &[][..], 35), (2, &[1], 1), (2, &[1, 2], 7), (1, &[2], 64)] {
                let cpu = Cpu::new(threads, isa).unwrap();
                let fast = bits(model, &cpu, cuts, chunk);
                assert!(
                    fast == reference,
                    "{mixture:?}, {isa}, {threads} threads, {cuts:?}, chunks of {chunk}"
                );
            }
        }
    });
}

#[test]
fn company_of_other_sessions_does_not_change_mixed_files() {
    each(|model, mixture| {
        let input = prompt();
        let alone = bits(model, &cpu(), &[], 1);
        let mut pipeline = Pipeline::new(model, &cpu(), Quantisation::Q8, &[1]);
        pipeline.open(SESSION, 128);
        let others: Vec<SessionId> = (2..9).map(SessionId).collect();
        others.iter().for_each(|&other| pipeline.open(other, 256));
        for position in 0..20 {
            let mut batch: Vec<(SessionId, &[u32])> = others
                .iter()
                .enumerate()
                .map(|(n, &id)| (id, &input[n + position..][..1 + (n + position) % 3]))
                .collect();
            let place = position % (others.len() + 1);
            batch.insert(place, (SESSION, &input[position..][..1]));
            let row: usize = batch[..place].iter().map(|(_, tokens)| tokens.len()).sum();
            let outcome = pipeline.step(&batch);
            assert!(outcome.bits(row..row + 1) == alone[position], "{mixture:?}, position {position}");
        }
    });
}

fn load(model: &Model, quantisation: Quantisation) -> ShardWeights {
    let shard = Shard { layers: 0..LAYERS, embedding: true, head: true };
    model.load(&shard, quantisation, &|_| {}).unwrap()
}

#[test]
fn stored_formats_are_kept() {
    each(|model, mixture| {
        for quantisation in [Quantisation::Q8, Quantisation::Q4] {
            let kept = |format, narrow| match format {
                Format::Q8 if quantisation == Quantisation::Q4 => narrow,
                format => format,
            };
            let weights = load(model, quantisation);
            assert_eq!(weights.embedding.as_ref().unwrap().format(), mixture.embedding);
            assert_eq!(weights.head.map(|head| head.weight.format()), mixture.head);
            for (index, layer) in weights.layers.iter().enumerate() {
                let some = kept(if index == 1 { mixture.most } else { mixture.some }, Format::Q4);
                assert_eq!(layer.qkv.q.weight.format(), mixture.most);
                assert_eq!(layer.qkv.v.weight.format(), some);
                assert_eq!(layer.gate_up.up.weight.format(), mixture.most);
                assert_eq!(layer.down.weight.format(), some);
            }
            let bytes = weights.embedding.unwrap().bytes().len() as u64;
            assert_eq!(model.embedding_bytes(quantisation), bytes);
        }
    });
}

/// Unquantised weights are the decoded ones, and what the quantised activations add to their logits is small.
#[test]
fn mixed_files_are_near_their_unquantised_model() {
    each(|model, mixture| {
        let (stored, plain) = (load(model, Quantisation::Q8), load(model, Quantisation::F32));
        let (stored, plain) = (&stored.layers[2].down.weight, &plain.layers[2].down.weight);
        let (mut expected, mut actual) = ([0.0; INTERMEDIATE], [0.0; INTERMEDIATE]);
        for row in 0..HIDDEN {
            stored.decode_row(row, &mut expected);
            plain.decode_row(row, &mut actual);
            assert_eq!(expected, actual, "{mixture:?}");
        }
        let logits = |quantisation| {
            let mut pipeline = Pipeline::new(model, &cpu(), quantisation, &[]);
            pipeline.open(SESSION, 128);
            pipeline.step(&[(SESSION, &prompt()[..60])]).logits(0..60).to_vec()
        };
        let (plain, quantised) = (logits(Quantisation::F32), logits(Quantisation::Q8));
        let power: f64 = plain.iter().map(|x| f64::from(*x).powi(2)).sum();
        let error: f64 = plain.iter().zip(&quantised).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let relative = (error / power).sqrt();
        assert!(relative > 0.0 && relative < 0.05, "{mixture:?}: {relative}");
    });
}

#[test]
fn fingerprints_tell_mixtures_apart() {
    let seen = std::cell::RefCell::new(std::collections::HashSet::new());
    each(|model, mixture| {
        for quantisation in [Quantisation::Q8, Quantisation::Q4, Quantisation::F32] {
            assert!(seen.borrow_mut().insert(model.fingerprint(quantisation)), "{mixture:?}, {quantisation}");
        }
    });
}
