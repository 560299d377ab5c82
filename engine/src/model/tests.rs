//! Models of the golden folder, opened and loaded in every way.

use std::path::PathBuf;

use kernels::{
    rope::RopeScaling,
    tensor::{Format, WeightMatrix},
};

use super::*;

const FOLDERS: [&str; 11] = [
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
    "stories260K",
];

pub(crate) fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

pub(crate) fn everything(config: &ModelConfig) -> Shard {
    Shard { layers: 0..config.layers, embedding: true, head: true }
}

pub(crate) fn load(model: &Model, quantisation: Quantisation) -> ShardWeights {
    model.load(&everything(model.config()), quantisation, &|_| ()).expect("the model loads")
}

fn bytes_of(layer: &LayerWeights) -> u64 {
    let linears = [
        &layer.qkv.q,
        &layer.qkv.k,
        &layer.qkv.v,
        &layer.output,
        &layer.gate_up.gate,
        &layer.gate_up.up,
        &layer.down,
    ];
    let linear: usize =
        linears.iter().map(|l| l.weight.bytes().len() + l.bias.as_ref().map_or(0, |b| b.len() * 4)).sum();
    let norms = [
        Some(&layer.attention_norm),
        Some(&layer.mlp_norm),
        layer.qkv.q_norm.as_ref(),
        layer.qkv.k_norm.as_ref(),
    ];
    let norm: usize = norms.into_iter().flatten().map(|norm| norm.weight.len() * 4).sum();
    (linear + norm) as u64
}

#[test]
fn every_golden_model_loads_in_every_quantisation() {
    for name in FOLDERS {
        let model = Model::open(&golden(name)).expect(name);
        assert_eq!(model.name(), name);
        for quantisation in [Quantisation::Q8, Quantisation::Q4, Quantisation::F32] {
            let weights = load(&model, quantisation);
            let embedding = weights.embedding.expect("asked for");
            assert_eq!(embedding.format(), quantisation.ends());
            assert_eq!(embedding.bytes().len() as u64, model.embedding_bytes(quantisation));
            assert_eq!(weights.head.is_none(), model.config().tied, "{name}");
            assert_eq!(weights.layers.len(), model.config().layers);
            for (layer, bytes) in weights.layers.iter().zip(model.layer_bytes(quantisation)) {
                assert_eq!(bytes_of(layer), bytes, "{name}");
                assert_eq!(layer.qkv.q.weight.format(), quantisation.layers());
                assert_eq!(layer.qkv.q.bias.is_some(), name.starts_with("qwen2"));
                assert_eq!(layer.qkv.q_norm.is_some(), name == "qwen3");
            }
        }
    }
}

#[test]
fn both_generations_of_config_mean_the_same() {
    for name in &FOLDERS[..10] {
        let read = |file: &str| config::parse(&std::fs::read(golden(name).join(file)).expect("golden file"));
        let (five, four) = (read("config.json").expect(name), read("config.v4.json").expect(name));
        assert_eq!(five, four, "{name}");
    }
}

#[test]
fn configurations_are_read_as_meant() {
    let open = |name: &str| Model::open(&golden(name)).expect(name).config().clone();
    assert_eq!(open("mistral").windows, [Some(16); 4]);
    assert_eq!(open("mistral_nowin").windows, [None; 4]);
    assert_eq!(open("qwen2").windows, [None; 6]);
    let llama = open("llama");
    assert_eq!((llama.head_dim, llama.heads, llama.kv_heads), (16, 6, 2));
    assert_eq!(llama.attention_scale, 0.25);
    assert_eq!((llama.bos, llama.eos), (Some(1), vec![2]));
    assert_eq!(open("llama_linear").rope.scaling, RopeScaling::Linear { factor: 4.0 });
    assert!(matches!(open("llama3").rope.scaling, RopeScaling::Llama3 { original_max_positions: 64, .. }));
    assert!(matches!(
        open("qwen2_yarn").rope.scaling,
        RopeScaling::Yarn {
            factor: 4.0,
            original_max_positions: 64,
            attention_factor: None,
            truncate: true,
            ..
        }
    ));
}

#[test]
fn a_shard_is_the_same_alone_as_in_the_whole() {
    for name in ["llama", "qwen3"] {
        let model = Model::open(&golden(name)).expect(name);
        let whole = load(&model, Quantisation::Q8);
        let shard = Shard { layers: 1..3, embedding: false, head: true };
        let part = model.load(&shard, Quantisation::Q8, &|_| ()).expect("loads");
        assert!(part.embedding.is_none());
        assert_eq!(part.layers.len(), 2);
        assert_eq!(part.layers[0].down.weight, whole.layers[1].down.weight);
        let head = part.head.expect("a head on its own is stored even if tied").weight;
        assert_eq!(Some(head), whole.head.map(|head| head.weight).or(whole.embedding));
        assert_eq!(part.final_norm, whole.final_norm);
    }
}

#[test]
fn f32_weights_are_the_files_bytes() {
    let model = Model::open(&golden("llama")).expect("opens");
    let weights = load(&model, Quantisation::F32);
    let file = std::fs::read(golden("llama").join("model.safetensors")).expect("golden file");
    let tensors = ::safetensors::SafeTensors::deserialize(&file).expect("golden file");
    let bytes = |name: &str| tensors.tensor(name).expect(name).data();
    assert_eq!(weights.layers[3].down.weight.bytes(), bytes("model.layers.3.mlp.down_proj.weight"));
    let quantised = load(&model, Quantisation::Q4);
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(bytes("model.layers.3.mlp.down_proj.weight"));
    let expected = WeightMatrix::quantise(Format::Q4, 96, 192, &values).expect("finite");
    assert_eq!(quantised.layers[3].down.weight, expected);
}

#[test]
fn progress_ends_at_the_total() {
    let model = Model::open(&golden("stories260K")).expect("opens");
    let last = std::cell::Cell::new(Progress { done: 0, total: 1 });
    let report = |progress: Progress| {
        assert!(progress.done > last.get().done);
        last.set(progress);
    };
    model.load(&everything(model.config()), Quantisation::Q8, &report).expect("loads");
    assert_eq!(last.get().done, last.get().total);
}

#[test]
fn fingerprints_tell_models_and_quantisations_apart() {
    let mut seen = std::collections::HashSet::new();
    for name in FOLDERS {
        let model = Model::open(&golden(name)).expect(name);
        for quantisation in [Quantisation::Q8, Quantisation::Q4, Quantisation::F32] {
            assert!(seen.insert(model.fingerprint(quantisation)), "{name}");
            assert_eq!(model.fingerprint(quantisation), model.fingerprint(quantisation));
        }
    }
}

#[test]
fn layers_the_model_does_not_have_are_refused() {
    let model = Model::open(&golden("llama")).expect("opens");
    let shard = Shard { layers: 4..6, embedding: false, head: false };
    let refused = model.load(&shard, Quantisation::Q8, &|_| ()).expect_err("five layers");
    assert!(matches!(refused, ModelError::Layers { start: 4, end: 6, layers: 5 }));
}

#[test]
fn the_embedded_model_is_whole() {
    let model = Model::demo().expect("opens");
    assert!(model.path().is_none() && model.chat_template().is_some());
    load(&model, Quantisation::Q4);
    let tokenizer = model.tokenizer().expect("has one");
    let text = "<|im_start|>user\nWhat is a dolphin?<|im_end|>\n";
    let tokens = tokenizer.encode(text, false).expect("encodes");
    assert_eq!(tokenizer.decode(&tokens, false).expect("decodes"), text);
}
