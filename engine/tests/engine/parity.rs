//! Profile `f32` against transformers, and how far the quantised profiles are from it.

use engine::{
    message::SessionId,
    model::{Model, Quantisation},
};
use kernels::{
    backend::Backend,
    cpu::{Cpu, Isa},
    reference::Reference,
};

use crate::support::{Golden, MODELS, Pipeline, argmax, folder, open};

const SESSION: SessionId = SessionId(1);

fn check<B: Backend + Clone>(name: &str, model: &Model, backend: &B) {
    let golden = Golden::read(name);
    let mut pipeline = Pipeline::new(model, backend, Quantisation::F32, &[]);
    pipeline.open(SESSION, 128);
    let rows = golden.input.len();
    let outcome = pipeline.step(&[(SESSION, &golden.input)]);

    let ours = outcome.logits(0..rows);
    let (low, high) = golden.logits.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    let worst = ours.iter().zip(&golden.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let relative = worst / (high - low);
    println!("{name}: largest logit error {relative:.1e} of the range");
    assert!(relative <= 2e-4, "{name}: logits are off by {relative:.1e} of their range");

    let mut token = argmax(outcome.logits(rows - 1..rows));
    let mut reply = vec![token];
    while reply.len() < golden.greedy.len() {
        token = argmax(pipeline.step(&[(SESSION, &[token])]).logits(0..1));
        reply.push(token);
    }
    assert_eq!(reply, golden.greedy, "{name}: greedy continuation");
}

#[test]
fn every_family_computes_what_transformers_computes() {
    for name in MODELS {
        check(name, &open(name), &Cpu::new(2, Isa::detect()).unwrap());
    }
}

#[test]
fn the_scalar_reference_computes_what_transformers_computes() {
    for name in ["llama3", "mistral", "qwen2", "qwen3"] {
        check(name, &open(name), &Reference);
    }
}

#[test]
fn published_configurations_mean_the_same_model() {
    for name in MODELS {
        let directory = tempfile::tempdir().unwrap();
        for file in ["model.safetensors", "generation_config.json"] {
            std::fs::copy(folder(name).join(file), directory.path().join(file)).unwrap();
        }
        std::fs::copy(folder(name).join("config.v4.json"), directory.path().join("config.json")).unwrap();
        let published = Model::open(directory.path()).unwrap();
        assert_eq!(published.config(), open(name).config(), "{name}");
    }
}

/// Greedy text of the trained stories260K, from its checkpoint.
#[test]
fn stories260k_tells_its_story() {
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder("stories260K/golden.json")).unwrap()).unwrap();
    let ids = |key: &str| -> Vec<u32> { serde_json::from_value(golden[key].clone()).unwrap() };
    let model = open("stories260K");
    let tokenizer = model.tokenizer().unwrap();
    let prompt = tokenizer.encode(golden["prompt"].as_str().unwrap(), true).unwrap();
    assert_eq!(prompt, ids("input_ids"));

    let mut pipeline = Pipeline::new(&model, &Cpu::new(2, Isa::detect()).unwrap(), Quantisation::F32, &[2]);
    pipeline.open(SESSION, 200);
    let outcome = pipeline.step(&[(SESSION, &prompt)]);
    let mut token = argmax(outcome.logits(prompt.len() - 1..prompt.len()));
    let mut reply = vec![token];
    let expected = ids("greedy_ids");
    while reply.len() < expected.len() {
        token = argmax(pipeline.step(&[(SESSION, &[token])]).logits(0..1));
        reply.push(token);
    }
    assert_eq!(reply, expected);
    println!("{}", tokenizer.decode(&reply, true).unwrap());
}

/// Reported, with bounds wide enough that only a broken quantiser fails them: random weights are the
/// hardest case there is.
#[test]
fn quantised_profiles_stay_near_the_unquantised_model() {
    for (quantisation, least_agreement) in [(Quantisation::Q8, 0.85), (Quantisation::Q4, 0.25)] {
        for name in ["llama", "mistral", "qwen2", "qwen3", "stories260K"] {
            let (agreement, divergence) = distance(&open(name), name, quantisation);
            println!("{name} {quantisation}: top-1 agreement {agreement:.3}, KL divergence {divergence:.5}");
            assert!(agreement >= least_agreement, "{name} {quantisation}: {agreement}");
            assert!(divergence.is_finite());
        }
    }
}

fn distance(model: &Model, name: &str, quantisation: Quantisation) -> (f64, f64) {
    let backend = Cpu::new(2, Isa::detect()).unwrap();
    let input: Vec<u32> = match name {
        "stories260K" => model
            .tokenizer()
            .unwrap()
            .encode(
                "Once upon a time, there was a little girl named Lily. She loved to play outside in the sun.",
                true,
            )
            .unwrap(),
        _ => Golden::read(name).input,
    };
    let logits = |quantisation| {
        let mut pipeline = Pipeline::new(model, &backend, quantisation, &[]);
        pipeline.open(SESSION, 64);
        pipeline.step(&[(SESSION, &input)]).logits(0..input.len()).to_vec()
    };
    let (exact, rounded) = (logits(Quantisation::F32), logits(quantisation));
    let width = exact.len() / input.len();
    let (mut agree, mut divergence) = (0, 0.0);
    for (p, q) in exact.chunks(width).zip(rounded.chunks(width)) {
        agree += usize::from(argmax(p) == argmax(q));
        let (p, q) = (log_softmax(p), log_softmax(q));
        divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    }
    (agree as f64 / input.len() as f64, divergence / input.len() as f64)
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f64::MIN, |m, &l| m.max(f64::from(l)));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    logits.iter().map(|&l| f64::from(l) - max - sum.ln()).collect()
}
