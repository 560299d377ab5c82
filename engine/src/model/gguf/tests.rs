use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::{
    model::{
        Model, ModelError, Quantisation, ShardWeights,
        tests::{golden, load},
    },
    tokenizer::Tokenizer,
};

fn stories() -> PathBuf {
    golden("stories260K").join("stories260K-f32.gguf")
}

/// Writes GGUF files piece by piece, right or wrong.
pub(crate) struct Writer {
    pairs: u64,
    metadata: Vec<u8>,
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    data: Vec<u8>,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self { pairs: 0, metadata: Vec::new(), tensors: Vec::new(), data: Vec::new() }
    }

    fn pair(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.pairs += 1;
        self.metadata.extend(text(key));
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
    }

    pub(crate) fn value(&mut self, key: &str, value: &Value) {
        let list =
            |kind: u32, length: usize| [&kind.to_le_bytes()[..], &(length as u64).to_le_bytes()].concat();
        match value {
            Value::Integer(n) => self.pair(key, 4, &u32::try_from(*n).expect("test value").to_le_bytes()),
            Value::Float(x) => self.pair(key, 6, &(*x as f32).to_le_bytes()),
            Value::Bool(flag) => self.pair(key, 7, &[u8::from(*flag)]),
            Value::Text(value) => self.pair(key, 8, &text(value)),
            Value::Integers(values) => {
                let bytes = values.iter().flat_map(|n| (*n as i32).to_le_bytes());
                self.pair(key, 9, &[list(5, values.len()), bytes.collect()].concat());
            }
            Value::Floats(values) => {
                let bytes = values.iter().flat_map(|x| (*x as f32).to_le_bytes());
                self.pair(key, 9, &[list(6, values.len()), bytes.collect()].concat());
            }
            Value::Texts(values) => {
                let bytes = values.iter().flat_map(|value| text(value));
                self.pair(key, 9, &[list(8, values.len()), bytes.collect()].concat());
            }
        }
    }

    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, bytes: &[u8]) {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        let dimensions = shape.iter().rev().map(|&n| n as u64).collect();
        self.tensors.push((name.to_owned(), dimensions, kind, self.data.len() as u64));
        self.data.extend(bytes);
    }

    pub(crate) fn finish(&self) -> Vec<u8> {
        let mut file = [&b"GGUF"[..], &3_u32.to_le_bytes()].concat();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend(self.pairs.to_le_bytes());
        file.extend(&self.metadata);
        for (name, dimensions, kind, offset) in &self.tensors {
            file.extend(text(name));
            file.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|n| file.extend(n.to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend(offset.to_le_bytes());
        }
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&self.data);
        file
    }
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

fn parsed(bytes: &[u8]) -> Result<Header, ModelError> {
    parse("test.gguf", bytes, bytes.len() as u64)
}

/// The golden file taken apart, so that tests can change it and put it together again.
fn rebuilt(
    change: impl Fn(&str, &TensorInfo, &[u8]) -> Option<(u32, Vec<u8>)>,
    with: &[(&str, Value)],
) -> Vec<u8> {
    let bytes = std::fs::read(stories()).expect("golden file");
    let header = parsed(&bytes).expect("golden file");
    let mut writer = Writer::new();
    for (key, value) in &header.metadata {
        if !with.iter().any(|(other, _)| other == key) {
            writer.value(key, value);
        }
    }
    with.iter().for_each(|(key, value)| writer.value(key, value));
    for (name, info) in &header.tensors {
        let data = &bytes[info.offset as usize..][..info.bytes as usize];
        let (kind, data) = change(name, info, data).unwrap_or((0, data.to_vec()));
        writer.tensor(name, &info.shape, kind, &data);
    }
    writer.finish()
}

fn open_bytes(bytes: &[u8]) -> Result<Model, ModelError> {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("test.gguf");
    std::fs::write(&path, bytes).expect("temporary file");
    Model::open(&path)
}

fn assert_same(a: &ShardWeights, b: &ShardWeights) {
    assert_eq!(a.embedding, b.embedding);
    assert_eq!(a.final_norm, b.final_norm);
    assert_eq!(a.head.is_some(), b.head.is_some());
    for (a, b) in a.layers.iter().zip(&b.layers) {
        assert_eq!(a.qkv.q.weight, b.qkv.q.weight);
        assert_eq!(a.qkv.k.weight, b.qkv.k.weight);
        assert_eq!(a.qkv.v.weight, b.qkv.v.weight);
        assert_eq!(a.output.weight, b.output.weight);
        assert_eq!(a.gate_up.gate.weight, b.gate_up.gate.weight);
        assert_eq!(a.gate_up.up.weight, b.gate_up.up.weight);
        assert_eq!(a.down.weight, b.down.weight);
        assert_eq!((&a.attention_norm, &a.mlp_norm), (&b.attention_norm, &b.mlp_norm));
    }
}

#[test]
fn gguf_and_safetensors_of_a_model_give_the_same_weights() {
    let gguf = Model::open(&stories()).expect("opens");
    let checkpoint = Model::open(&golden("stories260K")).expect("opens");
    assert_eq!(gguf.config(), checkpoint.config());
    assert_eq!(gguf.name(), "stories260K");
    for quantisation in [Quantisation::F32, Quantisation::Q8, Quantisation::Q4] {
        assert_same(&load(&gguf, quantisation), &load(&checkpoint, quantisation));
    }
}

#[test]
fn gguf_and_json_tokenizers_agree() {
    let gguf = Model::open(&stories()).expect("opens").tokenizer().expect("has one");
    let json = Model::open(&golden("stories260K")).expect("opens").tokenizer().expect("has one");
    assert_eq!((gguf.bos(), gguf.eos(), gguf.size()), (json.bos(), json.eos(), json.size()));
    let mut texts: Vec<String> = [
        "",
        " ",
        "  ",
        "a",
        "Once upon a time, there was a little girl named Lily.",
        " leading",
        "trailing ",
        "double  spaces",
        "\n\n\t",
        "<s>not a token</s>",
        "naïve café",
        "日本語 🐬",
        "1234567890",
        "▁▁",
        "<0x41>",
        "He said: \"no!\" — and left…",
    ]
    .map(str::to_owned)
    .to_vec();
    let words = ["the", "dog", "Lily", "wanted", "to", "play", "!", ",", " ", "zebra", "\u{e9}", "upon"];
    texts.extend(
        (0..200_usize)
            .map(|n| (0..n % 17).map(|i| words[(n * 7 + i * 5) % 12]).collect::<Vec<_>>().join(" ")),
    );
    for text in &texts {
        for special in [false, true] {
            let tokens = gguf.encode(text, special).expect("encodes");
            assert_eq!(tokens, json.encode(text, special).expect("encodes"), "{text:?}");
            assert_eq!(
                gguf.decode(&tokens, true).expect("decodes"),
                json.decode(&tokens, true).expect("decodes")
            );
        }
    }
}

#[test]
fn merges_are_those_of_the_published_tokenizer() {
    let bytes = std::fs::read(stories()).expect("golden file");
    let ours = tokenizer::tokenizer_json("test", &parsed(&bytes).expect("golden file")).expect("converts");
    let theirs = std::fs::read(golden("stories260K").join("tokenizer.json")).expect("golden file");
    let theirs: serde_json::Value = serde_json::from_slice(&theirs).expect("golden file");
    for part in ["model", "normalizer", "decoder"] {
        for (key, value) in theirs[part].as_object().expect("an object") {
            assert_eq!(&ours[part][key], value, "{part}.{key}");
        }
    }
}

#[test]
fn grouped_tensors_are_taken_as_they_are() {
    let quantise = |format, info: &TensorInfo, data: &[u8]| {
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(data);
        let matrix = kernels::tensor::WeightMatrix::quantise(format, info.shape[0], info.shape[1], &values);
        matrix.expect("finite").bytes().to_vec()
    };
    use kernels::tensor::Format::{Q4, Q8};
    for (quantisation, format, kind) in [(Quantisation::Q8, Q8, 8), (Quantisation::Q4, Q4, 2)] {
        // Rows of 172 are no whole groups, so GGUF leaves ffn_down in f32.
        let grouped = |name: &str, info: &TensorInfo, data: &[u8]| {
            let fits =
                info.shape.len() == 2 && info.shape[1].is_multiple_of(32) && name != "token_embd.weight";
            fits.then(|| (kind, quantise(format, info, data)))
        };
        let directory = tempfile::tempdir().expect("temporary directory");
        std::fs::write(directory.path().join("only.gguf"), rebuilt(grouped, &[])).expect("temporary file");
        let model = Model::open(directory.path()).expect("opens");
        let checkpoint = Model::open(&golden("stories260K")).expect("opens");
        assert_same(&load(&model, quantisation), &load(&checkpoint, quantisation));
        load(&model, Quantisation::F32);
    }
}

#[test]
fn half_precision_tensors_are_read() {
    let half = |kind: u32, round: fn(f32) -> [u8; 2]| {
        move |_: &str, info: &TensorInfo, data: &[u8]| {
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(data);
            (info.shape.len() == 2).then(|| (kind, values.into_iter().flat_map(round).collect()))
        }
    };
    let f16 = rebuilt(half(1, |x| half::f16::from_f32(x).to_le_bytes()), &[]);
    let bf16 = rebuilt(half(30, |x| half::bf16::from_f32(x).to_le_bytes()), &[]);
    for file in [f16, bf16] {
        let directory = tempfile::tempdir().expect("temporary directory");
        std::fs::write(directory.path().join("only.gguf"), file).expect("temporary file");
        load(&Model::open(directory.path()).expect("opens"), Quantisation::Q8);
    }
}

#[test]
fn what_is_not_supported_is_named() {
    let refused = |bytes: Vec<u8>| open_bytes(&bytes).expect_err("not supported").to_string();
    let plain = |_: &str, _: &TensorInfo, _: &[u8]| None;
    let with = |key, value| refused(rebuilt(plain, &[(key, value)]));
    let message = with("general.architecture", Value::Text("falcon".to_owned()));
    assert!(message.contains("falcon") && message.contains("qwen3"), "{message}");
    assert!(with("llama.expert_count", Value::Integer(8)).contains("several experts"));
    assert!(with("llama.rope.scaling.type", Value::Text("longrope".to_owned())).contains("longrope"));
    assert!(with("llama.rope.dimension_count", Value::Integer(4)).contains("4 dimensions"));
    assert!(with("llama.attention.head_count", Value::Integer(0)).contains("head_count"));
    assert!(with("llama.block_count", Value::Integer(6)).contains("blk.5.attn_norm.weight"));
    let five = refused(rebuilt(|name, _, _| (name == "blk.1.ffn_up.weight").then(|| (13, vec![0; 64])), &[]));
    assert!(
        five.contains("blk.1.ffn_up.weight") && five.contains("Q5_K") && five.contains("Q4_K_M"),
        "{five}"
    );
    // Rows of 64 have no super-blocks.
    let six = refused(rebuilt(|name, _, _| (name == "blk.1.ffn_up.weight").then(|| (14, vec![0; 64])), &[]));
    assert!(six.contains("blk.1.ffn_up.weight") && six.contains("no whole blocks of 256"), "{six}");
}

#[test]
fn metadata_changes_the_configuration() {
    let plain = |_: &str, _: &TensorInfo, _: &[u8]| None;
    let open = |with: &[(&str, Value)]| open_bytes(&rebuilt(plain, with)).expect("opens").config().clone();
    let windowed = open(&[("llama.attention.sliding_window", Value::Integer(64))]);
    assert_eq!(windowed.windows, [Some(64); 5]);
    let yarn = open(&[
        ("llama.rope.scaling.type", Value::Text("yarn".to_owned())),
        ("llama.rope.scaling.factor", Value::Float(4.0)),
        ("llama.rope.scaling.original_context_length", Value::Integer(512)),
    ]);
    assert_eq!(yarn.max_positions, 2048);
    let uniform = open(&[("llama.attention.head_count_kv", Value::Integers(vec![4; 5]))]);
    assert_eq!(uniform.kv_heads, 4);
}

#[test]
fn rotary_divisors_are_read_from_their_tensor() {
    let bytes = std::fs::read(stories()).expect("golden file");
    let header = parsed(&bytes).expect("golden file");
    let mut writer = Writer::new();
    header.metadata.iter().for_each(|(key, value)| writer.value(key, value));
    for (name, info) in &header.tensors {
        writer.tensor(name, &info.shape, 0, &bytes[info.offset as usize..][..info.bytes as usize]);
    }
    let divisors = [1.0_f32, 2.0, 4.0, 8.0];
    writer.tensor("rope_freqs.weight", &[4], 0, bytemuck::cast_slice(&divisors));
    let model = open_bytes(&writer.finish()).expect("opens");
    assert_eq!(model.config().rope.scaling, kernels::rope::RopeScaling::Divisors(divisors.to_vec()));
}

#[test]
fn byte_level_vocabularies_are_rebuilt() {
    let mut writer = Writer::new();
    let mut tokens: Vec<String> = ('!'..='~').map(|c| c.to_string()).collect();
    tokens.extend(["Ġ", "he", "ll", "hell", "hello", "Ġhello", "<|end|>", "Ċ"].map(str::to_owned));
    let mut kinds = vec![1; tokens.len()];
    kinds[tokens.len() - 2] = 3;
    writer.value("tokenizer.ggml.model", &Value::Text("gpt2".to_owned()));
    writer.value("tokenizer.ggml.tokens", &Value::Texts(tokens));
    writer.value("tokenizer.ggml.token_type", &Value::Integers(kinds));
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ hello"].map(str::to_owned);
    writer.value("tokenizer.ggml.merges", &Value::Texts(merges.to_vec()));
    for name in SPLIT_NAMES {
        let mut writer =
            Writer { metadata: writer.metadata.clone(), ..Writer { pairs: writer.pairs, ..Writer::new() } };
        writer.value("tokenizer.ggml.pre", &Value::Text(name.to_owned()));
        let header = parsed(&writer.finish()).expect("valid");
        let tokenizer: Tokenizer = tokenizer::tokenizer("test.gguf", &header).expect(name);
        let id = |text: &str| tokenizer.token_id(text).expect(text);
        let expected = [id("hello"), id("Ġhello"), id("!"), id("<|end|>"), id("1"), id("2"), id("Ċ")];
        assert_eq!(tokenizer.encode("hello hello!<|end|>12\n", false).expect("encodes"), expected, "{name}");
        assert_eq!(tokenizer.decode(&expected, true).expect("decodes"), "hello hello!12\n");
        assert!(tokenizer.is_special(id("<|end|>")));
    }
}

const SPLIT_NAMES: [&str; 6] = ["llama-bpe", "qwen2", "tekken", "gpt-2", "smollm", "default"];

#[test]
fn structures_that_lie_are_refused() {
    let bytes = std::fs::read(stories()).expect("golden file");
    let at = |offset: usize, value: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[offset..offset + value.len()].copy_from_slice(value);
        parsed(&bytes).expect_err("refused").to_string()
    };
    assert!(at(0, b"GGML").contains("not a GGUF"));
    assert!(at(4, &1_u32.to_le_bytes()).contains("version"));
    assert!(at(8, &u64::MAX.to_le_bytes()).contains("tensors"));
    assert!(at(16, &u64::MAX.to_le_bytes()).contains("pairs"));
    assert!(at(24, &u64::MAX.to_le_bytes()).contains("bytes of text"));
    assert!(at(16, &60_000_u64.to_le_bytes()).len() < 400);
    let mut list = Writer::new();
    list.pair("list", 9, &[&4_u32.to_le_bytes()[..], &(1_u64 << 26).to_le_bytes()].concat());
    assert!(parsed(&list.finish()).is_err(), "a list longer than the file");
    let mut nested = Writer::new();
    nested.pair("list", 9, &[&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat());
    assert!(parsed(&nested.finish()).expect_err("nested").to_string().contains("list of type 9"));
}

#[test]
fn misplaced_tensors_are_named() {
    let file = |offset: u64, shape: &[usize], kind| {
        let mut writer = Writer::new();
        writer.tensor("first", &[64], 0, &[0; 256]);
        writer.tensor("second", shape, kind, &[0; 256]);
        writer.tensors[1].3 = offset;
        parsed(&writer.finish()).expect_err("refused").to_string()
    };
    assert!(file(128, &[64], 0).contains("`second`") && file(128, &[64], 0).contains("inside `first`"));
    assert!(file(512, &[64], 0).contains("past the end"));
    assert!(file(u64::MAX - 3, &[64], 0).contains("past the end"));
    assert!(file(256, &[usize::MAX, 8], 0).contains("`second`"));
    assert!(file(256, &[33], 8).contains("33 values, which are no whole blocks of 32"));
    assert!(file(256, &[2, 128], 12).contains("128 values, which are no whole blocks of 256"));
    assert!(file(256, &[300], 14).contains("300 values, which are no whole blocks of 256"));
    assert!(file(256, &[2, 256], 14).contains("past the end"));
    let mut writer = Writer::new();
    writer.tensor("twice", &[8], 0, &[0; 32]);
    writer.tensor("twice", &[8], 0, &[0; 32]);
    assert!(parsed(&writer.finish()).expect_err("refused").to_string().contains("twice"));
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let bytes = std::fs::read(stories()).expect("golden file");
    let header = 20_000.min(bytes.len());
    for length in (0..header).step_by(7).chain([bytes.len() - 1]) {
        assert!(parsed(&bytes[..length]).is_err(), "{length} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = parsed(&tail);
        let file = [&b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0"[..], &tail].concat();
        let _ = parsed(&file);
    }

    #[test]
    fn flipped_bits_never_panic(at in 0_usize..16_000, bit in 0_u8..8) {
        let mut bytes = std::fs::read(stories()).expect("golden file");
        bytes[at] ^= 1 << bit;
        if let Ok(header) = parsed(&bytes) {
            let _ = tokenizer::tokenizer("test.gguf", &header);
            let _ = open_bytes(&bytes);
        }
    }
}
