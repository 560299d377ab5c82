//! Random weights in the true shape of a known model, for measurements that need no real ones: a
//! directory of safetensors, or a quantised GGUF file ([`crate::gguf`]).

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use kernels::round::bf16_from_f32;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use crate::gguf;

/// Values drawn and written at once.
const PIECE: usize = 1 << 16;
/// A bf16 one.
const ONE: u16 = 0x3f80;

/// Which shape, and where to.
#[derive(Args, Clone, Debug)]
pub struct MakeModelArgs {
    /// Shape of the model
    pub shape: ShapeName,
    /// Directory to write, or FILE.gguf; directories are made if they are missing
    #[arg(value_name = "DIR|FILE.gguf")]
    pub path: PathBuf,
    /// Format of the weights [default: bf16 in a directory, q8_0 in a GGUF]
    #[arg(long)]
    pub format: Option<WeightFormat>,
    /// Decoder layers [default: as many as the shape has]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub layers: Option<u16>,
    /// Seed of the weights
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Formats of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightFormat {
    /// bfloat16, in safetensors
    Bf16,
    /// Q8_0 throughout, in GGUF
    #[value(name = "q8_0")]
    Q8_0,
    /// Q4_0 with a Q6_K head, in GGUF
    #[value(name = "q4_0")]
    Q4_0,
    /// Q4_K, and Q6_K for the head and half of the value and down projections, in GGUF
    #[value(name = "q4_k_m")]
    Q4KM,
}

/// Shapes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShapeName {
    /// 0.6 billion parameters, tied head, 152 thousand tokens
    #[value(name = "qwen3-0.6b")]
    Qwen3,
    /// 1.1 billion parameters, 32 thousand tokens
    #[value(name = "tinyllama-1.1b")]
    TinyLlama,
    /// 8 billion parameters, 128 thousand tokens
    #[value(name = "llama-3-8b")]
    Llama3,
}

/// Shape of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// `model_type` of the configuration.
    pub family: &'static str,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Token ids, at least 256.
    pub vocabulary: usize,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether heads of queries and keys are normed.
    pub qk_norm: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the mean square in norms.
    pub norm_eps: f64,
    /// Longest context.
    pub max_positions: usize,
}

impl ShapeName {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qwen3 => "qwen3-0.6b",
            Self::TinyLlama => "tinyllama-1.1b",
            Self::Llama3 => "llama-3-8b",
        }
    }

    /// The shape of that name.
    pub const fn shape(self) -> Shape {
        match self {
            Self::Qwen3 => Shape {
                family: "qwen3",
                hidden: 1024,
                layers: 28,
                heads: 16,
                kv_heads: 8,
                head_dim: 128,
                intermediate: 3072,
                vocabulary: 151_936,
                tied: true,
                qk_norm: true,
                rope_theta: 1e6,
                norm_eps: 1e-6,
                max_positions: 40_960,
            },
            Self::TinyLlama => Shape {
                family: "llama",
                hidden: 2048,
                layers: 22,
                heads: 32,
                kv_heads: 4,
                head_dim: 64,
                intermediate: 5632,
                vocabulary: 32_000,
                tied: false,
                qk_norm: false,
                rope_theta: 1e4,
                norm_eps: 1e-5,
                max_positions: 2048,
            },
            Self::Llama3 => Shape {
                family: "llama",
                hidden: 4096,
                layers: 32,
                heads: 32,
                kv_heads: 8,
                head_dim: 128,
                intermediate: 14_336,
                vocabulary: 128_256,
                tied: false,
                qk_norm: false,
                rope_theta: 5e5,
                norm_eps: 1e-5,
                max_positions: 8192,
            },
        }
    }
}

impl MakeModelArgs {
    /// Writes the model.
    ///
    /// # Errors
    /// If the format does not go with the path, or a file cannot be written.
    pub fn run(&self) -> anyhow::Result<()> {
        let whole = self.shape.shape();
        let shape = Shape { layers: self.layers.map_or(whole.layers, usize::from), ..whole };
        let in_gguf = self.path.extension().is_some_and(|extension| extension == "gguf");
        let default = if in_gguf { WeightFormat::Q8_0 } else { WeightFormat::Bf16 };
        let format = self.format.unwrap_or(default);
        ensure!(
            in_gguf == (format != WeightFormat::Bf16),
            "bf16 is written into a directory, every other format into a file whose name ends in .gguf"
        );
        let bar = ProgressBar::new(0).with_message("writing");
        let progress = |done: u64, total: u64| {
            bar.set_length(total);
            bar.set_position(done);
        };
        let written = match format {
            WeightFormat::Bf16 => write(&shape, &self.path, self.seed, &progress),
            _ => gguf::write(&shape, self.shape.name(), format, &self.path, self.seed, &progress),
        };
        written.with_context(|| format!("{} cannot be written", self.path.display()))?;
        bar.finish_and_clear();
        eprintln!("{}: {} MB of weights", self.path.display(), bar.length().unwrap_or(0) / 1_000_000);
        Ok(())
    }
}

/// A tensor of a checkpoint.
pub(crate) struct Tensor {
    /// Name in safetensors.
    name: String,
    /// Name in GGUF.
    pub(crate) gguf: String,
    /// Rows and columns, or the length of a vector.
    pub(crate) shape: Vec<usize>,
    /// The decoder layer it belongs to.
    pub(crate) layer: Option<usize>,
}

impl Tensor {
    fn values(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> u64 {
        2 * self.values() as u64
    }
}

impl Shape {
    /// Bytes of the weights.
    pub fn bytes(&self) -> u64 {
        self.tensors().iter().map(Tensor::bytes).sum()
    }

    /// All tensors in the order of a step.
    pub(crate) fn tensors(&self) -> Vec<Tensor> {
        let (hidden, q, kv) = (self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = Vec::new();
        let mut add = |layer, name: String, gguf: String, shape: &[usize]| {
            let [name, gguf] = [name, gguf].map(|name| format!("{name}.weight"));
            tensors.push(Tensor { name, gguf, shape: shape.to_vec(), layer });
        };
        add(None, "model.embed_tokens".into(), "token_embd".into(), &[self.vocabulary, hidden]);
        for layer in 0..self.layers {
            let mut part = |name: &str, gguf: &str, shape: &[usize]| {
                add(
                    Some(layer),
                    format!("model.layers.{layer}.{name}"),
                    format!("blk.{layer}.{gguf}"),
                    shape,
                );
            };
            part("input_layernorm", "attn_norm", &[hidden]);
            part("self_attn.q_proj", "attn_q", &[q, hidden]);
            part("self_attn.k_proj", "attn_k", &[kv, hidden]);
            part("self_attn.v_proj", "attn_v", &[kv, hidden]);
            part("self_attn.o_proj", "attn_output", &[hidden, q]);
            if self.qk_norm {
                part("self_attn.q_norm", "attn_q_norm", &[self.head_dim]);
                part("self_attn.k_norm", "attn_k_norm", &[self.head_dim]);
            }
            part("post_attention_layernorm", "ffn_norm", &[hidden]);
            part("mlp.gate_proj", "ffn_gate", &[self.intermediate, hidden]);
            part("mlp.up_proj", "ffn_up", &[self.intermediate, hidden]);
            part("mlp.down_proj", "ffn_down", &[hidden, self.intermediate]);
        }
        add(None, "model.norm".into(), "output_norm".into(), &[hidden]);
        if !self.tied {
            add(None, "lm_head".into(), "output".into(), &[self.vocabulary, hidden]);
        }
        tensors
    }

    fn config(&self) -> Value {
        json!({
            "model_type": self.family, "hidden_size": self.hidden, "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocabulary, "rms_norm_eps": self.norm_eps, "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_positions, "hidden_act": "silu",
            "tie_word_embeddings": self.tied, "attention_bias": false, "torch_dtype": "bfloat16",
        })
    }
}

/// Writes weights, configuration and tokenizer of `shape` into `directory`; `progress` is told of the
/// bytes of weights that are written, and of all. The same seed gives the same bytes. The configuration comes last, so that a
/// directory that has one is whole.
///
/// # Errors
/// Of the file system.
pub fn write(shape: &Shape, directory: &Path, seed: u64, progress: &dyn Fn(u64, u64)) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut out = BufWriter::new(File::create(directory.join("model.safetensors"))?);
    let tensors = shape.tensors();
    let header = header(&tensors);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut done, total) = (0, shape.bytes());
    for tensor in &tensors {
        write_tensor(tensor, &mut rng, &mut out, &mut |bytes| {
            done += bytes;
            progress(done, total);
        })?;
    }
    out.into_inner()?.sync_all()?;
    std::fs::write(directory.join("tokenizer.json"), tokenizer(shape.vocabulary).to_string())?;
    std::fs::write(directory.join("config.json"), shape.config().to_string())
}

/// The header of a safetensors file, padded with spaces to whole words.
fn header(tensors: &[Tensor]) -> String {
    let (mut entries, mut start) = (Map::new(), 0);
    for tensor in tensors {
        let end = start + tensor.bytes();
        let entry = json!({ "dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end] });
        entries.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut header = Value::Object(entries).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    header
}

/// Largest value of a matrix of `inputs` columns: values are uniform with a variance of one over their
/// inputs, so that activations keep their size through the layers.
pub(crate) fn bound(inputs: usize) -> f32 {
    (3.0 / inputs as f32).sqrt()
}

/// A value in [-1, 1) from random bytes.
pub(crate) fn uniform(bytes: [u8; 2]) -> f32 {
    f32::from(i16::from_le_bytes(bytes)) / 32_768.0
}

/// Norms are one.
fn write_tensor(
    tensor: &Tensor,
    rng: &mut ChaCha8Rng,
    out: &mut impl Write,
    progress: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let [_, inputs] = *tensor.shape else {
        let ones = ONE.to_le_bytes().repeat(tensor.values());
        progress(tensor.bytes());
        return out.write_all(&ones);
    };
    let bound = bound(inputs);
    let mut bytes = vec![0; 2 * PIECE];
    let mut left = tensor.values();
    while left > 0 {
        let piece = &mut bytes[..2 * left.min(PIECE)];
        rng.fill_bytes(piece);
        for pair in piece.as_chunks_mut::<2>().0 {
            *pair = bf16_from_f32(uniform(*pair) * bound).to_le_bytes();
        }
        out.write_all(piece)?;
        progress(piece.len() as u64);
        left -= piece.len() / 2;
    }
    Ok(())
}

/// The tokens of a byte-level vocabulary: one for each byte, then a word for each id, so that every
/// token of a random reply is text. No text is tokenised to the words, because nothing is merged.
pub(crate) fn tokens(vocabulary: usize) -> impl Iterator<Item = String> {
    let bytes = (0..=255_u8).map(byte_letter).map(String::from);
    bytes.chain((0..vocabulary.saturating_sub(256)).map(word))
}

fn tokenizer(vocabulary: usize) -> Value {
    let vocab: Map<String, Value> = tokens(vocabulary).zip((0..).map(Value::from)).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false
        },
        "post_processor": null,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": []
        },
    })
}

/// The letter of the byte-level alphabet that stands for `byte`: printable Latin-1 stands for itself,
/// the rest counts up from U+0100.
fn byte_letter(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&byte| !printable(byte)).count() as u32;
    char::from_u32(0x100 + before).expect("68 bytes are not printable, and U+0100 to U+0143 are letters")
}

/// A space and `number` in letters.
fn word(mut number: usize) -> String {
    let mut word = vec![byte_letter(b' ')];
    loop {
        word.push(char::from(b'a' + (number % 26) as u8));
        number /= 26;
        if number == 0 {
            return word.into_iter().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::model::{Model, Quantisation, Shard};

    use super::*;

    const SMALL: Shape = Shape {
        hidden: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        intermediate: 96,
        vocabulary: 300,
        ..ShapeName::Qwen3.shape()
    };

    #[test]
    fn a_checkpoint_opens_and_loads() {
        for shape in [SMALL, Shape { family: "llama", tied: false, qk_norm: false, ..SMALL }] {
            let directory = tempfile::tempdir().expect("temporary directory");
            write(&shape, directory.path(), 1, &|_, _| {}).expect("written");
            let model = Model::open(directory.path()).expect("opens");
            assert_eq!((model.config().vocabulary, model.config().tied), (300, shape.tied));
            let shard = Shard { layers: 0..2, embedding: true, head: true };
            let weights = model.load(&shard, Quantisation::Q8, &|_| {}).expect("loads");
            assert_eq!(weights.layers.len(), 2);
        }
    }

    #[test]
    fn every_id_is_text_and_every_text_is_bytes() {
        let directory = tempfile::tempdir().expect("temporary directory");
        write(&SMALL, directory.path(), 1, &|_, _| {}).expect("written");
        let tokenizer = Model::open(directory.path()).and_then(|model| model.tokenizer()).expect("opens");
        let ids = tokenizer.encode("Ünïcode\n", false).expect("encodes");
        assert_eq!(ids, "Ünïcode\n".bytes().map(u32::from).collect::<Vec<_>>());
        assert!((256..300).all(|id| !tokenizer.decode(&[id], true).expect("decodes").trim().is_empty()));
    }

    #[test]
    fn the_seed_decides_the_bytes() {
        let bytes = |seed| {
            let directory = tempfile::tempdir().expect("temporary directory");
            write(&SMALL, directory.path(), seed, &|_, _| {}).expect("written");
            std::fs::read(directory.path().join("model.safetensors")).expect("there")
        };
        assert!(bytes(1) == bytes(1) && bytes(1) != bytes(2));
    }

    #[test]
    fn shapes_have_the_size_of_their_models() {
        assert_eq!(ShapeName::Qwen3.shape().bytes() / 2, 596_049_920);
        assert_eq!(ShapeName::TinyLlama.shape().bytes() / 2, 1_100_048_384);
        assert_eq!(ShapeName::Llama3.shape().bytes() / 2, 8_030_261_248);
    }
}
