//! The referee against an independent computation of every kind of word, by equality. A few of the words stand in
//! `vectors/referee.json`, for the contracts' tests and for whoever computes them otherwise.

use std::{env, fs, path::Path, time::Instant};

use alloy_primitives::hex;
use alloy_sol_types::{SolCall, sol};
use serde_json::{Value, json};

use crate::{
    exact::{bits, exp, from_half, silu, to_brain, to_half, to_int8},
    machine::{Machine, Numbers},
};

sol! {
    struct Leaf { uint8 kind; uint32[] inputs; uint32[4] numbers; bytes weight; }
    function recompute(Leaf leaf) returns (uint32 word);
}

/// Names of the kinds, in their order.
const KINDS: [&str; 21] = [
    "Zero",
    "Copy",
    "Square",
    "Add",
    "Rms",
    "Scale",
    "GroupScale",
    "GroupQuants",
    "Segment",
    "Query",
    "Key",
    "Half",
    "Chain",
    "Max",
    "Weight",
    "Tree",
    "Fold",
    "Divide",
    "Gate",
    "Out",
    "Embed",
];
/// Words of each kind, and of each format of those that have weights.
const ROUNDS: usize = 120;
/// Of these, those that are written down.
const KEPT: usize = 3;
const FORMATS: u32 = 6;

/// How weights are stored: `q8`, `q4`, `bf16`, `f32`, `q4_k`, `q6_k`.
fn unit(format: u32) -> (usize, usize) {
    [(32, 34), (32, 18), (1, 2), (1, 4), (256, 144), (256, 210)][format as usize]
}

/// Draws what a word follows from.
struct Drawn {
    numbers: Numbers,
    /// Whether any bits may come, or only numbers as models have them.
    wild: bool,
}

impl Drawn {
    fn word(&mut self) -> u32 {
        let word = self.numbers.bits();
        match self.wild {
            true if self.numbers.below(8) == 0 => word & 0xff80_0000,
            true => word,
            false => word & 0x807f_ffff | (115 + self.numbers.below(16) as u32) << 23,
        }
    }

    fn words(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.word()).collect()
    }

    /// Sums that are not negative.
    fn positives(&mut self, count: usize) -> Vec<u32> {
        self.words(count).into_iter().map(|word| word & 0x7fff_ffff).collect()
    }

    /// Canonical bytes of `count` units.
    fn weight(&mut self, format: u32, count: usize) -> Vec<u8> {
        let (_, size) = unit(format);
        let mut weight = vec![0; size * count];
        weight.iter_mut().for_each(|byte| *byte = self.numbers.bits() as u8);
        if !self.wild {
            let scales: [&[usize]; 6] = [&[1], &[1], &[1], &[3], &[1, 3], &[209]];
            for unit in weight.chunks_mut(size) {
                // The exponent's upper bits: small scales, and floats around 1.
                let mask = if format == 2 || format == 3 { 0x3f } else { 0x17 };
                scales[format as usize].iter().for_each(|&upper| unit[upper] &= 0x80 | mask);
            }
        }
        weight
    }

    fn leaf(&mut self, kind: u8, format: u32) -> Leaf {
        let (mut inputs, mut numbers, mut weight) = (Vec::new(), [0; 4], Vec::new());
        match KINDS[kind as usize] {
            "Zero" => {}
            "Copy" | "Half" => inputs = self.words(1),
            "Add" | "Weight" | "Divide" | "Gate" | "Out" => inputs = self.words(2),
            "Scale" => inputs = self.words(3),
            "Fold" => inputs = self.words(5),
            "Square" => {
                let count = 1 + self.numbers.below(2);
                inputs = self.words(count);
            }
            "Rms" => {
                inputs = self.positives(1);
                numbers[..2].copy_from_slice(&[1 + self.numbers.below(9000) as u32, 0x3586_37bd]);
            }
            "GroupScale" => {
                let count = 1 + self.numbers.below(32);
                inputs = self.words(count);
            }
            "GroupQuants" => {
                let count = self.numbers.below(5);
                inputs = self.positives(1);
                inputs.extend(self.words(count));
            }
            "Query" | "Key" => {
                inputs = self.words(4);
                numbers[..2].copy_from_slice(&[self.numbers.below(2) as u32, self.word()]);
            }
            "Chain" => {
                let (n, before) = (self.numbers.below(65), self.numbers.below(2));
                inputs = self.words(before + 2 * n);
                numbers[..2].copy_from_slice(&[n as u32, before as u32]);
            }
            "Max" => {
                let count = 1 + self.numbers.below(64);
                inputs = self.words(count);
            }
            "Tree" => {
                let count = 1 + self.numbers.below(64);
                inputs = self.positives(count);
                numbers[0] = self.numbers.below(65 - count) as u32;
            }
            "Segment" => {
                let (values, _) = unit(format);
                let count = 1 + self.numbers.below(256 / values);
                let (before, biased) = (self.numbers.below(2), self.numbers.below(2));
                if values == 1 {
                    inputs = self.words(count);
                } else {
                    inputs.extend((0..count * values / 4).map(|_| self.numbers.bits()));
                    inputs.extend(self.positives(count));
                }
                inputs.extend(self.words(before + biased));
                numbers = [format, count as u32, before as u32, biased as u32];
                weight = self.weight(format, count);
            }
            "Embed" => {
                let (values, _) = unit(format);
                let count = 1 + self.numbers.below(256 / values);
                let index = self.numbers.below(count * values) as u32;
                numbers = [format, index, self.numbers.below(2) as u32, self.word()];
                weight = self.weight(format, count);
            }
            other => panic!("{other} is no kind"),
        }
        Leaf { kind, inputs, numbers, weight: weight.into() }
    }
}

/// The word that follows, by this processor's arithmetic.
fn expected(leaf: &Leaf) -> u32 {
    let x: Vec<f32> = leaf.inputs.iter().map(|&word| f32::from_bits(word)).collect();
    let float = |index: usize| f32::from_bits(leaf.numbers[index]);
    let is_first = leaf.numbers[0] == 0;
    let rotated = || if is_first { x[0] * x[2] - x[1] * x[3] } else { x[1] * x[2] + x[0] * x[3] };
    bits(match KINDS[leaf.kind as usize] {
        "Zero" => 0.0,
        "Copy" => return leaf.inputs[0],
        "Max" => return largest(&x).to_bits(),
        "GroupQuants" => return quants(&x),
        "Square" => x[0].mul_add(x[0], x.get(1).copied().unwrap_or(0.0)),
        "Add" => x[0] + x[1],
        "Rms" => 1.0 / (x[0] / leaf.numbers[0] as f32 + float(1)).sqrt(),
        "Scale" => x[0] * x[1] * x[2],
        "GroupScale" => group_scale(&leaf.inputs),
        "Segment" => segment(leaf, &x),
        "Query" => rotated() * float(1),
        "Key" => from_half(to_half(rotated())),
        "Half" => from_half(to_half(x[0])),
        "Chain" => {
            let (before, n) = (leaf.numbers[1] as usize, leaf.numbers[0] as usize);
            let first = if before == 1 { x[0] } else { 0.0 };
            let pairs = x[before..before + n].iter().zip(&x[before + n..]);
            pairs.fold(first, |sum, (u, v)| u.mul_add(*v, sum))
        }
        "Weight" => exp(x[0] - x[1]),
        "Tree" => {
            let mut lanes = [0.0; 64];
            lanes[leaf.numbers[0] as usize..][..x.len()].copy_from_slice(&x);
            halved(&lanes)
        }
        "Fold" => x[0].mul_add(exp(x[1] - x[2]), x[4] * exp(x[3] - x[2])),
        "Divide" => x[0] / x[1],
        "Gate" => silu(x[0]) * x[1],
        "Out" => to_brain(x[0] + x[1]),
        "Embed" => {
            let value = weights(leaf)[leaf.numbers[1] as usize];
            to_brain(if leaf.numbers[2] == 0 { value } else { value * float(3) })
        }
        other => panic!("{other} is no kind"),
    })
}

/// The sum of the first half and the second, lane by lane, until one is left.
fn halved(lanes: &[f32]) -> f32 {
    if lanes.len() == 1 {
        return lanes[0];
    }
    let (low, high) = lanes.split_at(lanes.len() / 2);
    halved(&low.iter().zip(high).map(|(a, b)| a + b).collect::<Vec<_>>())
}

fn largest(x: &[f32]) -> f32 {
    x[1..].iter().fold(x[0], |most, &value| if value > most { value } else { most })
}

fn group_scale(words: &[u32]) -> f32 {
    let most = words.iter().map(|word| word & 0x7fff_ffff).max().map_or(0.0, f32::from_bits);
    if most.is_finite() && most >= 2f32.powi(-100) { most / 127.0 } else { 0.0 }
}

fn quants(x: &[f32]) -> u32 {
    let quant = |value: &f32| if x[0] == 0.0 { 0 } else { to_int8(value * (1.0 / x[0])) as u8 };
    let quants = x[1..].iter().map(quant).zip([0, 8, 16, 24]);
    quants.fold(0, |word, (quant, place)| word | u32::from(quant) << place)
}

fn half_of(bytes: &[u8]) -> f32 {
    from_half(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// Scale, minimum of a sub-block of `q4_k`.
fn q4k_part(block: &[u8], j: usize) -> (i32, i32) {
    let packed: Vec<i32> = block[4..16].iter().map(|&byte| byte.into()).collect();
    if j < 4 {
        (packed[j] % 64, packed[j + 4] % 64)
    } else {
        (packed[j + 4] % 16 + packed[j - 4] / 64 * 16, packed[j + 4] / 16 + packed[j] / 64 * 16)
    }
}

/// Integers of the weights as they are stored, in order.
fn integers(format: u32, weight: &[u8]) -> Vec<i32> {
    let nibble = |byte: u8, upper: bool| i32::from(if upper { byte >> 4 } else { byte & 15 });
    let of_unit = |unit: &[u8]| -> Vec<i32> {
        match format {
            0 => unit[2..].iter().map(|&byte| (byte as i8).into()).collect(),
            1 => (0..32).map(|i| nibble(unit[2 + i % 16], i >= 16) - 8).collect(),
            4 => (0..256).map(|k| nibble(unit[16 + k / 64 * 32 + k % 32], k % 64 >= 32)).collect(),
            _ => (0..256)
                .map(|k| {
                    let (half, within) = (k / 128, k % 128);
                    let low = nibble(unit[64 * half + within % 64], within >= 64);
                    let high = i32::from(unit[128 + 32 * half + within % 32] >> (2 * (within / 32)) & 3);
                    low + 16 * high - 32
                })
                .collect(),
        }
    };
    weight.chunks(unit(format).1).flat_map(of_unit).collect()
}

/// The values that weights stand for.
fn weights(leaf: &Leaf) -> Vec<f32> {
    let (format, weight) = (leaf.numbers[0], &leaf.weight);
    if format == 2 {
        let float = |bytes: &[u8]| f32::from_bits(u32::from_le_bytes([0, 0, bytes[0], bytes[1]]));
        return weight.chunks(2).map(float).collect();
    }
    if format == 3 {
        return weight.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    }
    let (values, size) = unit(format);
    let integers = integers(format, weight);
    let value = |(k, q): (usize, &i32)| {
        let (unit, within, q) = (&weight[k / values * size..][..size], k % values, *q as f32);
        match format {
            0 | 1 => q * half_of(unit),
            4 => {
                let (part, min) = q4k_part(unit, within / 32);
                half_of(unit) * part as f32 * q - half_of(&unit[2..]) * min as f32
            }
            _ => half_of(&unit[208..]) * f32::from(unit[192 + within / 16] as i8) * q,
        }
    };
    integers.iter().enumerate().map(value).collect()
}

fn segment(leaf: &Leaf, x: &[f32]) -> f32 {
    let [format, count, before, biased] = leaf.numbers;
    let (values, size) = unit(format);
    let (count, units) = (count as usize, leaf.weight.chunks(size));
    let words = if values == 1 { 0 } else { count * values / 4 };
    let q: Vec<i32> =
        leaf.inputs[..words].iter().flat_map(|word| word.to_le_bytes().map(|b| i32::from(b as i8))).collect();
    let integers = if values == 1 { Vec::new() } else { integers(format, &leaf.weight) };
    let dot = |from: usize, n: usize| -> i32 { (from..from + n).map(|k| integers[k] * q[k]).sum() };
    let sum = match format {
        0 | 1 => units.enumerate().fold(0.0, |sum: f32, (g, unit)| {
            (half_of(unit) * x[words + g]).mul_add(dot(32 * g, 32) as f32, sum)
        }),
        2 | 3 => weights(leaf).iter().zip(x).fold(0.0, |sum: f32, (w, x)| w.mul_add(*x, sum)),
        4 => {
            let part = |j| q4k_part(&leaf.weight, j);
            let products: i32 = (0..8).map(|j| part(j).0 * dot(32 * j, 32)).sum();
            let minima: i32 = (0..8).map(|j| part(j).1 * q[32 * j..][..32].iter().sum::<i32>()).sum();
            let offset = half_of(&leaf.weight[2..]) * x[words] * minima as f32;
            (half_of(&leaf.weight) * x[words]).mul_add(products as f32, -offset)
        }
        _ => {
            let scale = |j: usize| i32::from(leaf.weight[192 + j] as i8);
            let products: i32 = (0..16).map(|j| scale(j) * dot(16 * j, 16)).sum();
            half_of(&leaf.weight[208..]) * x[words] * products as f32
        }
    };
    let own = if values == 1 { count } else { words + count };
    let sum = if before == 1 { x[own] + sum } else { sum };
    if biased == 1 { sum + x[own + before as usize] } else { sum }
}

/// Compares the file with what was computed, or writes it.
fn check(cases: &[Value]) {
    let text = format!("{:#}\n", json!({ "cases": cases }));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/referee.json");
    if env::var_os("WRITE_VECTORS").is_some() {
        fs::write(&path, &text).expect("the vectors can be written");
    }
    assert_eq!(fs::read_to_string(&path).expect("the vectors are there"), text, "referee.json is stale");
}

/// Words of every kind, a quarter of them from any bits: none is refused, and all are equal.
#[test]
fn the_referee_computes_as_this_processor_does() {
    let machine = Machine::new("Int8Referee");
    let (begun, mut compared, mut cases) = (Instant::now(), 0, Vec::new());
    for (kind, name) in (0..).zip(KINDS) {
        let has_weights = name == "Segment" || name == "Embed";
        for format in 0..if has_weights { FORMATS } else { 1 } {
            let seed = u64::from(kind) << 8 | u64::from(format);
            let mut drawn = Drawn { numbers: Numbers(seed), wild: false };
            for round in 0..ROUNDS {
                drawn.wild = round % 4 == 3;
                let leaf = drawn.leaf(kind, format);
                let word = expected(&leaf);
                if round < KEPT {
                    cases.push(json!({
                        "kind": kind,
                        "inputs": leaf.inputs,
                        "numbers": leaf.numbers,
                        "weight": hex::encode_prefixed(&leaf.weight),
                        "word": word,
                    }));
                }
                let answer = machine.call(&recomputeCall { leaf: leaf.clone() }.abi_encode());
                let answer = answer.unwrap_or_else(|error| panic!("{name} {format}: {error:?}"));
                let answer = recomputeCall::abi_decode_returns(&answer).expect("a word is returned");
                assert_eq!(answer, word, "{name} {format} {round}: {:08x?}", leaf.inputs);
                compared += 1;
            }
        }
    }
    println!("{compared} words are equal, in {:.1?}", begun.elapsed());
    check(&cases);
}
