//! A model of two layers of which the second has matrices in four formats, as files of super-blocks mix them.

use kernels::tensor::WeightMatrix;
use tempfile::TempDir;

use super::*;
use crate::model::gguf::{self, Value, tests::Writer};

const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 512;
/// Tokens of the file whose tokenizer it has.
const VOCABULARY: usize = 512;

/// Writes tensors of pseudo-random values.
struct File {
    writer: Writer,
    seed: u64,
}

impl File {
    /// The next of values from -1 to 1.
    fn value(&mut self) -> f32 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn matrix(&mut self, name: &str, rows: usize, columns: usize, format: Format) {
        let kind = match format {
            Format::Q4 => 2,
            Format::Q8 => 8,
            Format::Q4K => 12,
            Format::Q6K => 14,
            Format::F32 | Format::Bf16 => unreachable!("not among the formats here"),
        };
        let scale = 2.0 / (columns as f32).sqrt();
        let values: Vec<f32> = (0..rows * columns).map(|_| self.value() * scale).collect();
        let matrix = WeightMatrix::quantise(format, rows, columns, &values).expect("quantises");
        self.writer.tensor(&format!("{name}.weight"), &[rows, columns], kind, matrix.bytes());
    }

    fn norm(&mut self, name: &str) {
        let bytes: Vec<u8> = (0..HIDDEN).flat_map(|_| (1.0 + 0.1 * self.value()).to_le_bytes()).collect();
        self.writer.tensor(&format!("{name}.weight"), &[HIDDEN], 0, &bytes);
    }

    fn layer(&mut self, layer: usize, [q, k, v, o, gate, up, down]: [Format; 7]) {
        let name = |part: &str| format!("blk.{layer}.{part}");
        self.norm(&name("attn_norm"));
        self.matrix(&name("attn_q"), HIDDEN, HIDDEN, q);
        self.matrix(&name("attn_k"), HIDDEN / 2, HIDDEN, k);
        self.matrix(&name("attn_v"), HIDDEN / 2, HIDDEN, v);
        self.matrix(&name("attn_output"), HIDDEN, HIDDEN, o);
        self.norm(&name("ffn_norm"));
        self.matrix(&name("ffn_gate"), INTERMEDIATE, HIDDEN, gate);
        self.matrix(&name("ffn_up"), INTERMEDIATE, HIDDEN, up);
        self.matrix(&name("ffn_down"), HIDDEN, INTERMEDIATE, down);
    }
}

/// The model and the directory of its file.
pub(super) struct Mixed {
    pub(super) model: Model,
    _directory: TempDir,
}

pub(super) fn open() -> Mixed {
    let mut file = File { writer: Writer::new(), seed: 5 };
    file.writer.value("general.architecture", &Value::Text("llama".to_owned()));
    for (key, value) in [
        ("embedding_length", HIDDEN),
        ("block_count", 2),
        ("feed_forward_length", INTERMEDIATE),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("context_length", 512),
    ] {
        file.writer.value(&format!("llama.{key}"), &Value::Integer(value as i64));
    }
    file.writer.value("llama.attention.layer_norm_rms_epsilon", &Value::Float(1e-5));
    let other = std::fs::read(golden("stories260K").join("stories260K-f32.gguf")).expect("golden file");
    let header = gguf::parse("stories260K", &other, other.len() as u64).expect("golden file");
    for (key, value) in header.metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
        file.writer.value(key, value);
    }
    file.matrix("token_embd", VOCABULARY, HIDDEN, Format::Q6K);
    let (q8, q4, q4k, q6k) = (Format::Q8, Format::Q4, Format::Q4K, Format::Q6K);
    file.layer(0, [q4k, q4k, q6k, q4k, q4k, q4k, q6k]);
    file.layer(1, [q4k, q8, q6k, q4, q4k, q8, q6k]);
    file.norm("output_norm");
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("mixed.gguf");
    std::fs::write(&path, file.writer.finish()).expect("temporary file");
    Mixed { model: Model::open(&path).expect("opens"), _directory: directory }
}
