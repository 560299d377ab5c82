//! What the contracts compute too, in `ledger/vectors`.

use std::{env, fs, path::Path};

use ledger::eip712::keccak;
use serde_json::{Value, json};

use super::*;

/// Compares with a file of vectors; with `WRITE_VECTORS=1` in the environment it is written anew.
pub(super) fn check(name: &str, contents: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ledger/vectors").join(name);
    let text = format!("{}\n", serde_json::to_string_pretty(contents).expect("JSON"));
    if env::var_os("WRITE_VECTORS").is_some() {
        fs::write(&path, &text).expect("written");
    }
    let written = fs::read_to_string(&path).expect("vectors");
    assert!(written == text, "{name} is not what this computes; WRITE_VECTORS=1 writes it anew");
}

/// Numbers that are the same on every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 += 1;
        let hash = keccak(&self.0.to_be_bytes());
        u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]) % bound
    }
}

/// A hash over everything that a wiring says.
fn summary(wiring: &Wiring) -> [u8; 32] {
    let mut list = vec![wiring.kind as u32];
    list.extend(wiring.numbers);
    for part in &wiring.parts {
        list.extend(match *part {
            Part::Words { operation, position, from, count } => [0, operation, position, from, count],
            Part::Before(word) => [1, 0, 0, word, 1],
            Part::Vector(tensor, index) => [2, tensor, 0, index, 1],
            Part::Rotation(pair) => [3, 0, 0, pair, 2],
        });
    }
    let segment = wiring.segment.map_or([0; 4], |at| [1, at.tensor, at.row, at.segment]);
    list.extend(segment);
    keccak(&list.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<u8>>())
}

/// Words of many shapes, with windows, biases, head norms, odd widths and several blocks of positions.
#[test]
fn wirings_are_those_of_the_contract() {
    let mut numbers = Numbers(0);
    let mut cases = Vec::new();
    for index in 0..8 * OPERATIONS {
        let window = 1 + numbers.below(150);
        let flags = numbers.below(64);
        let kv_heads = 1 + numbers.below(3);
        let dims = Dims {
            hidden: 1 + numbers.below(700),
            intermediate: 1 + numbers.below(700),
            heads: kv_heads * (1 + numbers.below(3)),
            kv_heads,
            head_dim: 2 + 2 * numbers.below(150),
            eps: numbers.below(1000),
            scale: numbers.below(1000),
            window: (flags & 1 == 1).then_some(window),
            qkv_bias: flags & 2 != 0,
            output_bias: flags & 4 != 0,
            mlp_bias: flags & 8 != 0,
            qk_norm: flags & 16 != 0,
        };
        let (operation, position) = (index % OPERATIONS, numbers.below(300));
        let width = dims.width(operation, position);
        let word = numbers.below(width.max(1));
        let shape = [dims.hidden, dims.intermediate, dims.heads, dims.kv_heads, dims.head_dim];
        let rest = [dims.eps, dims.scale, window, flags, operation, position, word, width];
        let wired = summary(&dims.wire(operation, position, word, flags & 32 != 0));
        // As one text of 32-bit numbers, so that a case is a line.
        let case: Vec<u8> = shape.into_iter().chain(rest).flat_map(u32::to_be_bytes).collect();
        cases.push(format!("0x{}{}", hex::encode(case), hex::encode(wired)));
    }
    check("wirings.json", &json!({ "cases": cases }));
}
