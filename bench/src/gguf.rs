//! Quantised GGUF files of random weights, as llama.cpp and Dolphin both read them.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    ops::Range,
    path::Path,
    thread,
};

use kernels::tensor::{Format, WeightMatrix};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    checkpoint::{Shape, Tensor, WeightFormat, bound, tokens, uniform},
    machine::cores,
};

/// Every tensor begins at a multiple of this many bytes.
const ALIGNMENT: usize = 32;
/// Values drawn and quantised at once, rounded to whole rows.
const PIECE: usize = 1 << 20;

/// How a tensor is stored: its type in the file, and the format of the same bytes in `kernels`.
#[derive(Clone, Copy)]
struct Stored {
    kind: u32,
    format: Format,
}

const F32: Stored = Stored { kind: 0, format: Format::F32 };
const Q4_0: Stored = Stored { kind: 2, format: Format::Q4 };
const Q8_0: Stored = Stored { kind: 8, format: Format::Q8 };
const Q4_K: Stored = Stored { kind: 12, format: Format::Q4K };
const Q6_K: Stored = Stored { kind: 14, format: Format::Q6K };

impl WeightFormat {
    /// The `general.file_type` of such files.
    fn file_type(self) -> u32 {
        match self {
            Self::Bf16 => 32,
            Self::Q8_0 => 7,
            Self::Q4_0 => 2,
            Self::Q4KM => 15,
        }
    }

    /// How a tensor of `shape` is stored, as llama.cpp's converter would. Norms stay as they are.
    fn of(self, shape: &Shape, tensor: &Tensor) -> Stored {
        if tensor.shape.len() == 1 {
            return F32;
        }
        let head = tensor.gguf == "output.weight" || shape.tied && tensor.layer.is_none();
        let finer = tensor.layer.is_some_and(|layer| finer(layer, shape.layers))
            && (tensor.gguf.ends_with(".attn_v.weight") || tensor.gguf.ends_with(".ffn_down.weight"));
        match self {
            Self::Bf16 | Self::Q8_0 => Q8_0,
            _ if head => Q6_K,
            Self::Q4_0 => Q4_0,
            Self::Q4KM if finer => Q6_K,
            Self::Q4KM => Q4_K,
        }
    }
}

/// Whether Q4_K_M gives the sensitive matrices of a layer more bits: in the first and the last eighth of
/// the layers, and in every third between.
fn finer(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// Writes `shape` as a GGUF named `name`; `progress` is told of the bytes of weights that are written, and
/// of all. The same seed gives the same bytes.
///
/// # Errors
/// Of the file system.
pub fn write(
    shape: &Shape,
    name: &str,
    format: WeightFormat,
    path: &Path,
    seed: u64,
    progress: &dyn Fn(u64, u64),
) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let tensors = shape.tensors();
    let stored: Vec<Stored> = tensors.iter().map(|tensor| format.of(shape, tensor)).collect();
    // The name a reader looks for is there only once the file is whole.
    let partial = path.with_extension("gguf.part");
    let mut out = BufWriter::new(File::create(&partial)?);
    out.write_all(&header(&metadata(shape, name, format), &tensors, &stored))?;
    let total = tensors.iter().zip(&stored).map(|(tensor, stored)| bytes(tensor, *stored) as u64).sum();
    let mut done = 0;
    for (index, (tensor, stored)) in tensors.iter().zip(&stored).enumerate() {
        write_tensor(tensor, *stored, seed, index, &mut |bytes| {
            done += bytes.len() as u64;
            progress(done, total);
            out.write_all(bytes)
        })?;
        let size = bytes(tensor, *stored);
        out.write_all(&vec![0; size.next_multiple_of(ALIGNMENT) - size])?;
    }
    out.into_inner()?.sync_all()?;
    std::fs::rename(partial, path)
}

fn bytes(tensor: &Tensor, stored: Stored) -> usize {
    let (rows, columns) = matrix(tensor);
    rows * stored.format.row_bytes(columns)
}

/// Rows and columns; a vector is one row.
fn matrix(tensor: &Tensor) -> (usize, usize) {
    match *tensor.shape {
        [rows, columns] => (rows, columns),
        _ => (1, tensor.shape.iter().product()),
    }
}

/// Gives out the bytes of a tensor in pieces, made on all cores. Norms are one.
fn write_tensor(
    tensor: &Tensor,
    stored: Stored,
    seed: u64,
    index: usize,
    out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let (rows, columns) = matrix(tensor);
    if tensor.shape.len() == 1 {
        return out(&1.0_f32.to_le_bytes().repeat(columns));
    }
    let step = (PIECE / columns).max(1);
    let pieces: Vec<Range<usize>> = (0..rows).step_by(step).map(|row| row..(row + step).min(rows)).collect();
    for (round, batch) in pieces.chunks(cores()).enumerate() {
        let made: Vec<io::Result<Vec<u8>>> = thread::scope(|scope| {
            let job = |(at, rows): (usize, &Range<usize>)| {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream((index as u64) << 32 | (round * cores() + at) as u64);
                let rows = rows.len();
                scope.spawn(move || piece(rng, rows, columns, stored.format))
            };
            let jobs: Vec<_> = batch.iter().enumerate().map(job).collect();
            let died = |_| Err(io::Error::other("a thread that draws weights died"));
            jobs.into_iter().map(|job| job.join().unwrap_or_else(died)).collect()
        });
        for bytes in made {
            out(&bytes?)?;
        }
    }
    Ok(())
}

fn piece(mut rng: ChaCha8Rng, rows: usize, columns: usize, format: Format) -> io::Result<Vec<u8>> {
    let mut random = vec![0; 2 * rows * columns];
    rng.fill_bytes(&mut random);
    let bound = bound(columns);
    let values: Vec<f32> = random.as_chunks::<2>().0.iter().map(|&pair| uniform(pair) * bound).collect();
    let matrix = WeightMatrix::quantise(format, rows, columns, &values);
    matrix.map(|matrix| matrix.bytes().to_vec()).map_err(io::Error::other)
}

/// Keys and values in the bytes of the file.
#[derive(Default)]
struct Metadata {
    pairs: u64,
    bytes: Vec<u8>,
}

impl Metadata {
    fn pair(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.pairs += 1;
        self.bytes.extend(text(key));
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
    }

    fn integer(&mut self, key: &str, value: usize) {
        // Sizes of the shapes here are far below.
        self.pair(key, 4, &(value as u32).to_le_bytes());
    }

    fn float(&mut self, key: &str, value: f64) {
        self.pair(key, 6, &(value as f32).to_le_bytes());
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.pair(key, 7, &[u8::from(value)]);
    }

    fn text(&mut self, key: &str, value: &str) {
        self.pair(key, 8, &text(value));
    }

    fn list(&mut self, key: &str, kind: u32, elements: impl Iterator<Item = Vec<u8>>) {
        let (mut count, mut bytes) = (0_u64, Vec::new());
        for element in elements {
            count += 1;
            bytes.extend(element);
        }
        self.pair(key, 9, &[&kind.to_le_bytes(), &count.to_le_bytes()[..], &bytes].concat());
    }
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

fn metadata(shape: &Shape, name: &str, format: WeightFormat) -> Metadata {
    let mut out = Metadata::default();
    let key = |suffix: &str| format!("{}.{suffix}", shape.family);
    out.text("general.architecture", shape.family);
    out.text("general.name", name);
    out.integer("general.file_type", format.file_type() as usize);
    out.integer("general.quantization_version", 2);
    out.integer(&key("block_count"), shape.layers);
    out.integer(&key("context_length"), shape.max_positions);
    out.integer(&key("embedding_length"), shape.hidden);
    out.integer(&key("feed_forward_length"), shape.intermediate);
    out.integer(&key("attention.head_count"), shape.heads);
    out.integer(&key("attention.head_count_kv"), shape.kv_heads);
    out.integer(&key("attention.key_length"), shape.head_dim);
    out.integer(&key("attention.value_length"), shape.head_dim);
    out.integer(&key("rope.dimension_count"), shape.head_dim);
    out.integer(&key("vocab_size"), shape.vocabulary);
    out.float(&key("attention.layer_norm_rms_epsilon"), shape.norm_eps);
    out.float(&key("rope.freq_base"), shape.rope_theta);
    out.text("tokenizer.ggml.model", "gpt2");
    out.text("tokenizer.ggml.pre", "gpt-2");
    out.flag("tokenizer.ggml.add_bos_token", false);
    out.list("tokenizer.ggml.tokens", 8, tokens(shape.vocabulary).map(|token| text(&token)));
    // Every token is a normal one.
    out.list("tokenizer.ggml.token_type", 5, (0..shape.vocabulary).map(|_| 1_i32.to_le_bytes().to_vec()));
    out.list("tokenizer.ggml.merges", 8, std::iter::empty());
    out
}

/// All that precedes the tensors.
fn header(metadata: &Metadata, tensors: &[Tensor], stored: &[Stored]) -> Vec<u8> {
    let mut out = [&b"GGUF"[..], &3_u32.to_le_bytes()].concat();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(metadata.pairs.to_le_bytes());
    out.extend(&metadata.bytes);
    let mut offset = 0;
    for (tensor, stored) in tensors.iter().zip(stored) {
        out.extend(text(&tensor.gguf));
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        // The innermost dimension comes first.
        out.extend(tensor.shape.iter().rev().flat_map(|&length| (length as u64).to_le_bytes()));
        out.extend(stored.kind.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset = (offset + bytes(tensor, *stored)).next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

#[cfg(test)]
mod tests {
    use engine::model::{Model, Quantisation, Shard};

    use super::*;
    use crate::{checkpoint::ShapeName, rig::stored_as_run};

    const SMALL: Shape = Shape {
        hidden: 256,
        layers: 2,
        heads: 8,
        kv_heads: 2,
        head_dim: 32,
        intermediate: 512,
        vocabulary: 300,
        ..ShapeName::Qwen3.shape()
    };

    fn written(shape: &Shape, format: WeightFormat, seed: u64) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("new/model.gguf");
        write(shape, "small", format, &path, seed, &|done, total| assert!(done <= total)).expect("written");
        (directory, path)
    }

    #[test]
    fn every_format_opens_loads_and_has_a_tokenizer() {
        let llama = Shape { family: "llama", tied: false, qk_norm: false, ..SMALL };
        for format in [WeightFormat::Q8_0, WeightFormat::Q4_0, WeightFormat::Q4KM] {
            for shape in [SMALL, llama] {
                let (_directory, path) = written(&shape, format, 1);
                let model = Model::open(&path).expect("opens");
                assert_eq!((model.config().vocabulary, model.config().tied), (300, shape.tied));
                assert!(stored_as_run(&model), "{format:?}");
                let shard = Shard { layers: 0..2, embedding: true, head: true };
                let weights = model.load(&shard, Quantisation::Q8, &|_| {}).expect("loads");
                assert_eq!(weights.layers.len(), 2);
                let tokenizer = model.tokenizer().expect("a tokenizer");
                let ids = tokenizer.encode("Ünïcode\n", false).expect("encodes");
                assert_eq!(ids, "Ünïcode\n".bytes().map(u32::from).collect::<Vec<_>>());
            }
        }
    }

    /// The sizes of files that llama.cpp quantised.
    #[test]
    fn mixtures_have_the_size_of_real_ones() {
        for (name, format, megabytes) in [
            (ShapeName::Qwen3, WeightFormat::Q8_0, 633),
            (ShapeName::Qwen3, WeightFormat::Q4_0, 376),
            (ShapeName::Qwen3, WeightFormat::Q4KM, 391),
            (ShapeName::TinyLlama, WeightFormat::Q8_0, 1169),
            (ShapeName::TinyLlama, WeightFormat::Q4_0, 636),
            (ShapeName::TinyLlama, WeightFormat::Q4KM, 667),
        ] {
            let shape = name.shape();
            let size: usize =
                shape.tensors().iter().map(|tensor| bytes(tensor, format.of(&shape, tensor))).sum();
            assert_eq!((size + 500_000) / 1_000_000, megabytes, "{} as {format:?}", name.name());
        }
    }

    #[test]
    fn the_seed_decides_the_bytes() {
        let bytes = |seed| std::fs::read(written(&SMALL, WeightFormat::Q8_0, seed).1).expect("there");
        assert!(bytes(1) == bytes(1) && bytes(1) != bytes(2));
    }
}
