//! Hashes of every operation's output on fixed inputs. They change only with a new version of the
//! arithmetic.

use kernels::{
    backend::{Backend, Profile},
    reference::{self, Reference},
    rope::{RopeScaling, RopeSpec, RopeTable},
    round::{bf16_from_f32, f16_from_f32},
    tensor::{Format, GROUP, SEGMENT, WeightMatrix},
};
use sha3::{Digest, Keccak256};

use crate::{
    case::Case,
    cpus,
    rng::{Flavour, Rng},
    trace::trace,
};

/// First eight bytes of Keccak-256 over little-endian words.
fn hash(words: impl IntoIterator<Item = u32>) -> String {
    let mut hasher = Keccak256::new();
    words.into_iter().for_each(|word| hasher.update(word.to_le_bytes()));
    hasher.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn floats(values: impl IntoIterator<Item = f32>) -> String {
    hash(values.into_iter().map(f32::to_bits))
}

/// Compares `actual` with the lines of `expected`, `name hash` each.
fn compare(expected: &str, actual: &[(String, String)]) {
    let actual: String = actual.iter().map(|(name, hash)| format!("{name} {hash}\n")).collect();
    assert!(expected == actual, "golden hashes differ; now they are\n{actual}");
}

const FUNCTIONS: &str = include_str!("golden/functions.txt");
const LAYERS: &str = include_str!("golden/layers.txt");

#[test]
fn functions() {
    let mut rng = Rng(42);
    let wide = rng.values(4096, Flavour::Wide);
    let range: Vec<f32> = (0..4096).map(|i| -88.0 + i as f32 / 4096.0 * 176.0).collect();
    let mut actual = vec![
        ("exp", floats(range.iter().map(|&x| reference::exp(x)))),
        ("sigmoid", floats(range.iter().map(|&x| reference::sigmoid(x)))),
        ("silu", floats(range.iter().map(|&x| reference::silu(x)))),
        ("bf16", hash(wide.iter().map(|&x| u32::from(bf16_from_f32(x))))),
        ("f16", hash(wide.iter().map(|&x| u32::from(f16_from_f32(x))))),
    ];
    let quantised = wide.chunks(GROUP).flat_map(|chunk| {
        let mut q = [0; GROUP];
        let scale = reference::quantise_group(chunk, &mut q).unwrap();
        q.map(|q| i32::from(q).cast_unsigned()).into_iter().chain([scale.to_bits()])
    });
    actual.push(("quantiser", hash(quantised)));
    let quantised = wide.chunks(SEGMENT).flat_map(|chunk| {
        let mut q = [0; SEGMENT];
        let scale = reference::quantise_group(chunk, &mut q).unwrap();
        q.map(|q| i32::from(q).cast_unsigned()).into_iter().chain([scale.to_bits()])
    });
    actual.push(("quantiser-256", hash(quantised)));
    let mut normed = wide[..1000].to_vec();
    reference::rms_norm(&mut normed, &wide[1000..2000], 1e-6);
    actual.push(("rms-norm", floats(normed)));
    for format in Format::ALL {
        let weights = WeightMatrix::quantise(format, 4, 1024, &wide).unwrap();
        actual.push((format.name(), hash(weights.bytes().iter().map(|&byte| u32::from(byte)))));
    }
    let scalings = [
        ("rope-default", RopeScaling::Default),
        ("rope-linear", RopeScaling::Linear { factor: 3.0 }),
        (
            "rope-llama3",
            RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_positions: 8192,
            },
        ),
        (
            "rope-yarn",
            RopeScaling::Yarn {
                factor: 4.0,
                original_max_positions: 4096,
                beta_fast: 32.0,
                beta_slow: 1.0,
                attention_factor: None,
                truncate: true,
            },
        ),
    ];
    for (name, scaling) in scalings {
        let table = RopeTable::new(&RopeSpec { theta: 1e6, dimensions: 128, scaling }, 300).unwrap();
        actual.push((name, floats(table.cos.into_iter().chain(table.sin))));
    }
    let actual: Vec<_> = actual.into_iter().map(|(name, hash)| (name.to_owned(), hash)).collect();
    compare(FUNCTIONS, &actual);
}

fn layers<B: Backend>(backend: &B) -> Vec<(String, String)> {
    let mut hashes = Vec::new();
    let odd = Case {
        seed: 99,
        hidden: 320,
        head_dim: 40,
        rotated: 32,
        window: Some(90),
        intermediate: 600,
        bias: true,
        qk_norm: true,
        batches: vec![vec![70, 2], vec![40, 1]],
        ..Case::default()
    };
    let whole = Case { hidden: 512, head_dim: 64, rotated: 64, intermediate: 768, ..odd.clone() };
    for (name, case) in [
        ("q8", Case { format: Format::Q8, ..odd.clone() }),
        ("q4", Case { format: Format::Q4, ..odd.clone() }),
        ("bf16", Case { format: Format::Bf16, ..odd.clone() }),
        ("f32", Case { format: Format::F32, profile: Profile::F32, ..odd }),
        ("q4_k", Case { format: Format::Q4K, ..whole.clone() }),
        ("q6_k", Case { format: Format::Q6K, ..whole.clone() }),
        ("q4_k_m", Case { format: Format::Q4K, second: Some(Format::Q6K), ..whole }),
    ] {
        for stage in trace(backend, &case) {
            hashes.push((format!("{name}-{}-{}", stage.batch, stage.name), hash(stage.bits)));
        }
    }
    hashes
}

#[test]
fn layers_of_the_reference() {
    compare(LAYERS, &layers(&Reference));
}

#[test]
fn layers_of_the_cpu() {
    cpus().iter().for_each(|cpu| compare(LAYERS, &layers(cpu)));
}
