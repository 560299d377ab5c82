//! The same bytes: any cut, any chunking, any company, any instruction set, any number of threads.

use std::{collections::BTreeMap, path::PathBuf};

use engine::{
    message::SessionId,
    model::{Model, Quantisation},
};
use kernels::{
    backend::Backend,
    cpu::{Cpu, Isa},
    reference::Reference,
};
use sha3::{Digest, Keccak256};

use crate::support::{Golden, MODELS, Pipeline, open};

const SESSION: SessionId = SessionId(1);
const QUANTISATIONS: [Quantisation; 3] = [Quantisation::Q8, Quantisation::Q4, Quantisation::F32];

/// Bits of every hidden row and every row of logits of the golden prompt, in chunks of `chunk`.
fn bits<B: Backend + Clone>(
    model: &Model,
    input: &[u32],
    backend: &B,
    quantisation: Quantisation,
    cuts: &[usize],
    chunk: usize,
) -> Vec<Vec<u32>> {
    let mut pipeline = Pipeline::new(model, backend, quantisation, cuts);
    pipeline.open(SESSION, 256);
    let mut out = Vec::new();
    for tokens in input.chunks(chunk) {
        let outcome = pipeline.step(&[(SESSION, tokens)]);
        out.extend((0..tokens.len()).map(|row| outcome.bits(row..row + 1)));
    }
    out
}

fn cpu() -> Cpu {
    Cpu::new(2, Isa::detect()).unwrap()
}

/// The golden prompt, repeated so that it spans pages.
fn long_prompt(name: &str) -> Vec<u32> {
    Golden::read(name).input.repeat(3)
}

#[test]
fn where_the_model_is_cut_does_not_change_a_bit() {
    let (model, input) = (open("qwen2"), long_prompt("qwen2"));
    for quantisation in QUANTISATIONS {
        let whole = bits(&model, &input, &cpu(), quantisation, &[], 64);
        for cuts in [&[3][..], &[1], &[2, 4], &[1, 2], &[1, 2, 3, 4, 5]] {
            let cut = bits(&model, &input, &cpu(), quantisation, cuts, 64);
            assert!(cut == whole, "{quantisation}, stages beginning at {cuts:?}");
        }
    }
}

#[test]
fn how_the_prompt_is_chunked_does_not_change_a_bit() {
    for name in ["mistral", "qwen3"] {
        let (model, input) = (open(name), long_prompt(name));
        for quantisation in QUANTISATIONS {
            let whole = bits(&model, &input, &cpu(), quantisation, &[2], 64);
            for chunk in [1, 7, 48] {
                let chunked = bits(&model, &input, &cpu(), quantisation, &[2], chunk);
                assert!(chunked == whole, "{name}, {quantisation}, chunks of {chunk}");
            }
        }
    }
}

#[test]
fn instruction_sets_and_threads_do_not_change_a_bit() {
    for name in ["llama", "qwen3"] {
        let (model, input) = (open(name), Golden::read(name).input);
        for quantisation in QUANTISATIONS {
            let reference = bits(&model, &input, &Reference, quantisation, &[], 48);
            for isa in Isa::available() {
                for threads in [1, 2] {
                    let cpu = Cpu::new(threads, isa).unwrap();
                    let fast = bits(&model, &input, &cpu, quantisation, &[], 48);
                    assert!(fast == reference, "{name}, {quantisation}, {isa:?}, {threads} threads");
                }
            }
        }
    }
}

#[test]
fn company_does_not_change_a_bit() {
    let (model, input) = (open("llama3"), Golden::read("llama3").input);
    for quantisation in QUANTISATIONS {
        let alone = bits(&model, &input, &cpu(), quantisation, &[], 1);
        let mut pipeline = Pipeline::new(&model, &cpu(), quantisation, &[2]);
        let others: Vec<SessionId> = (2..18).map(SessionId).collect();
        pipeline.open(SESSION, 64);
        others.iter().for_each(|&other| pipeline.open(other, 128));
        for (position, token) in input.iter().enumerate() {
            // The others run ahead with rows of their own, one to three at a time.
            let company: Vec<Vec<u32>> = (0..others.len())
                .map(|n| {
                    input
                        .iter()
                        .cycle()
                        .skip(n * 5 + position)
                        .take(1 + (n + position) % 3)
                        .copied()
                        .collect()
                })
                .collect();
            let mut batch: Vec<(SessionId, &[u32])> =
                others.iter().zip(&company).map(|(&id, tokens)| (id, tokens.as_slice())).collect();
            let place = position % (others.len() + 1);
            batch.insert(place, (SESSION, std::slice::from_ref(token)));
            let row: usize = batch[..place].iter().map(|(_, tokens)| tokens.len()).sum();
            let outcome = pipeline.step(&batch);
            assert!(outcome.bits(row..row + 1) == alone[position], "{quantisation}, position {position}");
        }
    }
}

/// `hashes.json` holds the keccak of everything above for every model and quantisation. A change here
/// is a change of `exact/1`. With `DOLPHIN_BLESS=1` the file is written anew.
#[test]
fn the_bits_are_the_ones_on_record() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/engine/hashes.json");
    let mut hashes = BTreeMap::new();
    for name in MODELS {
        let (model, input) = (open(name), Golden::read(name).input);
        for quantisation in QUANTISATIONS {
            let mut hash = Keccak256::new();
            for row in bits(&model, &input, &cpu(), quantisation, &[], 48) {
                row.iter().for_each(|word| hash.update(word.to_le_bytes()));
            }
            hashes.insert(format!("{name} {quantisation}"), hex::encode(hash.finalize()));
        }
    }
    if std::env::var_os("DOLPHIN_BLESS").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&hashes).unwrap() + "\n").unwrap();
    }
    let recorded: BTreeMap<String, String> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(hashes, recorded);
}
