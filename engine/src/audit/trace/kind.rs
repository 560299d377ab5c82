//! How a word of a trace follows from its inputs: what the referee's contract computes, with the scalar
//! operations that define the arithmetic.

use kernels::{
    reference::{dot, dot_wide, exp, max, quantise_group, silu},
    round::{bf16_from_f32, f16_from_f32, f32_from_bf16, f32_from_f16},
    tensor::{Format, GROUP, SEGMENT, WeightMatrix},
};

/// Values of a chain, a maximum or a tree at most.
pub const CHAIN: u32 = 64;
/// What a result that is not a number counts as.
const NAN: u32 = 0x7fc0_0000;

/// How a word follows; inputs, numbers and formula of each are in `docs/disputes.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the table in docs/disputes.md says what each is")]
pub enum Kind {
    Zero,
    Copy,
    Square,
    Add,
    Rms,
    Scale,
    GroupScale,
    GroupQuants,
    Segment,
    Query,
    Key,
    Half,
    Chain,
    Max,
    Weight,
    Tree,
    Fold,
    Divide,
    Gate,
    Out,
    Embed,
}

/// One word of a trace with everything that it follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// How it follows.
    pub kind: Kind,
    /// Words of the trace, of vectors of weights and of rotations, in the kind's order.
    pub inputs: Vec<u32>,
    /// The kind's numbers; floats as their bits.
    pub numbers: [u32; 4],
    /// Canonical bytes of a segment of a matrix, for the kinds that have one.
    pub weight: Vec<u8>,
}

/// The word that follows; `None` for a leaf that is not of its kind's shape.
pub fn recompute(leaf: &Leaf) -> Option<u32> {
    let numbers = leaf.numbers;
    let x: Vec<f32> = leaf.inputs.iter().map(|&bits| f32::from_bits(bits)).collect();
    let value = match (leaf.kind, &x[..]) {
        (Kind::Zero, []) => return Some(0),
        (Kind::Copy, [_]) => return leaf.inputs.first().copied(),
        (Kind::GroupQuants, [scale, values @ ..]) if values.len() <= 4 => {
            return Some(quants(*scale, values));
        }
        (Kind::Square, &[x]) => x.mul_add(x, 0.0),
        (Kind::Square, &[x, sum]) => x.mul_add(x, sum),
        (Kind::Add, [a, b]) => a + b,
        (Kind::Rms, [sum]) => 1.0 / (sum / numbers[0] as f32 + f32::from_bits(numbers[1])).sqrt(),
        (Kind::Scale, [x, r, w]) => (x * r) * w,
        (Kind::GroupScale, values) if (1..=SEGMENT).contains(&values.len()) => {
            quantise_group(values, &mut [0; SEGMENT]).unwrap_or(0.0)
        }
        (Kind::Segment, _) => segment(leaf, &x)?,
        (Kind::Query, &[a, b, c, s]) => rotated(numbers[0], a, b, c, s) * f32::from_bits(numbers[1]),
        (Kind::Key, &[a, b, c, s]) => half(rotated(numbers[0], a, b, c, s)),
        (Kind::Half, &[value]) => half(value),
        (Kind::Chain, _) => chain(numbers, &x)?,
        (Kind::Max, [first, rest @ ..]) if rest.len() < 64 => rest.iter().fold(*first, |m, &x| max(m, x)),
        (Kind::Weight, [score, m]) => exp(score - m),
        (Kind::Tree, values) => tree(numbers[0], values)?,
        (Kind::Fold, &[x, m, peak, m_before, x_before]) => {
            x.mul_add(exp(m - peak), x_before * exp(m_before - peak))
        }
        (Kind::Divide, [o, l]) => o / l,
        (Kind::Gate, &[g, u]) => silu(g) * u,
        (Kind::Out, [h, y]) => f32_from_bf16(bf16_from_f32(h + y)),
        (Kind::Embed, []) => embedded(leaf)?,
        _ => return None,
    };
    Some(if value.is_nan() { NAN } else { value.to_bits() })
}

fn quants(scale: f32, values: &[f32]) -> u32 {
    let mut bytes = [0; 4];
    if scale != 0.0 {
        let inverse = 1.0 / scale;
        for (byte, value) in bytes.iter_mut().zip(values) {
            *byte = (value * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
        }
    }
    u32::from_le_bytes(bytes)
}

fn rotated(which: u32, a: f32, b: f32, c: f32, s: f32) -> f32 {
    if which == 0 { a * c - b * s } else { b * c + a * s }
}

fn half(value: f32) -> f32 {
    f32_from_f16(f16_from_f32(value))
}

/// The number of a format that matrices of a trace have.
pub fn number(format: Format) -> Option<u32> {
    let number = Format::ALL.iter().position(|other| *other == format)?;
    (!format.is_float()).then_some(number as u32)
}

fn format(number: u32) -> Option<Format> {
    Format::ALL.get(number as usize).copied().filter(|format| !format.is_float())
}

/// Values that share a scale in activations.
fn group(format: Format) -> usize {
    if format.is_wide() { SEGMENT } else { GROUP }
}

/// Groups, or super-blocks, of weights; `None` if the bytes are no such.
fn groups(format: Format, count: usize, bytes: &[u8]) -> Option<WeightMatrix> {
    WeightMatrix::from_bytes(format, 1, count * group(format), bytes.to_vec()).ok()
}

fn segment(leaf: &Leaf, x: &[f32]) -> Option<f32> {
    let [number, count, before, bias] = leaf.numbers;
    let (format, count) = (format(number)?, count as usize);
    let words = group(format) / 4;
    let extra = usize::from(before != 0) + usize::from(bias != 0);
    if !(1..=SEGMENT / group(format)).contains(&count) || x.len() != (words + 1) * count + extra {
        return None;
    }
    let (quants, scales) = (&leaf.inputs[..words * count], &x[words * count..(words + 1) * count]);
    let quants: Vec<i8> = quants.iter().flat_map(|word| word.to_le_bytes()).map(|byte| byte as i8).collect();
    let weights = groups(format, count, &leaf.weight)?;
    let mut y = match format.is_wide() {
        true => dot_wide(&weights, 0, &quants, scales),
        false => dot(&weights, 0, &quants, scales),
    };
    let mut rest = x[(words + 1) * count..].iter();
    if before != 0 {
        y += rest.next()?;
    }
    if bias != 0 {
        y += rest.next()?;
    }
    Some(y)
}

fn chain(numbers: [u32; 4], x: &[f32]) -> Option<f32> {
    let (count, before) = (numbers[0] as usize, usize::from(numbers[1] != 0));
    if count > CHAIN as usize || x.len() != 2 * count + before {
        return None;
    }
    let first = if before == 1 { x[0] } else { 0.0 };
    let (u, v) = x[before..].split_at(count);
    Some(u.iter().zip(v).fold(first, |sum, (u, v)| u.mul_add(*v, sum)))
}

/// The halving tree over a block of which `values` are there, the first at `offset`.
fn tree(offset: u32, values: &[f32]) -> Option<f32> {
    let mut lanes = [0.0f32; 64];
    let offset = offset as usize;
    lanes.get_mut(offset..offset.checked_add(values.len())?)?.copy_from_slice(values);
    for width in [32, 16, 8, 4, 2, 1] {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
    }
    Some(lanes[0])
}

fn embedded(leaf: &Leaf) -> Option<f32> {
    let [number, index, scaled, scale] = leaf.numbers;
    let format = format(number)?;
    let count = leaf.weight.len() / format.row_bytes(group(format));
    let mut values = vec![0.0; count * group(format)];
    groups(format, count, &leaf.weight)?.decode_row(0, &mut values);
    let mut value = *values.get(index as usize)?;
    if scaled != 0 {
        value *= f32::from_bits(scale);
    }
    Some(f32_from_bf16(bf16_from_f32(value)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS: [Kind; 21] = [
        Kind::Zero,
        Kind::Copy,
        Kind::Square,
        Kind::Add,
        Kind::Rms,
        Kind::Scale,
        Kind::GroupScale,
        Kind::GroupQuants,
        Kind::Segment,
        Kind::Query,
        Kind::Key,
        Kind::Half,
        Kind::Chain,
        Kind::Max,
        Kind::Weight,
        Kind::Tree,
        Kind::Fold,
        Kind::Divide,
        Kind::Gate,
        Kind::Out,
        Kind::Embed,
    ];

    /// The contract and another computation of every kind have the same words.
    #[test]
    fn words_are_those_of_the_contract() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../ledger/vectors/referee.json");
        let text = std::fs::read_to_string(path).expect("vectors");
        let vectors: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let number = |value: &serde_json::Value| value.as_u64().expect("a number") as u32;
        let mut seen = 0;
        for case in vectors["cases"].as_array().expect("cases") {
            let kind = KINDS[number(&case["kind"]) as usize];
            let list = |name: &str| -> Vec<u32> {
                case[name].as_array().expect("a list").iter().map(number).collect()
            };
            let numbers = list("numbers").try_into().expect("four numbers");
            let hex = case["weight"].as_str().expect("bytes").trim_start_matches("0x");
            let leaf = Leaf { kind, inputs: list("inputs"), numbers, weight: hex::decode(hex).expect("hex") };
            match recompute(&leaf) {
                Some(word) => assert_eq!(word, number(&case["word"]), "{leaf:?}"),
                // Formats without a trace, and bytes that no matrix has.
                None => {
                    assert!(!leaf.weight.is_empty(), "{leaf:?}");
                    continue;
                }
            }
            seen += 1;
        }
        assert!(seen > 50);
    }

    proptest! {
        /// Inputs are another's, so no bits may panic, nor leave more than one result that is not a number.
        #[test]
        fn every_leaf_has_a_word_or_none(
            kind in 0_usize..21,
            inputs in prop::collection::vec(any::<u32>(), 0..80),
            numbers in prop::array::uniform4(prop_oneof![0_u32..9, any::<u32>()]),
            weight in prop::collection::vec(any::<u8>(), 0..280),
        ) {
            let kind = KINDS[kind];
            prop_assert_eq!(kind as usize, KINDS.iter().position(|other| *other == kind).unwrap());
            let word = recompute(&Leaf { kind, inputs, numbers, weight });
            let float = !matches!(kind, Kind::Copy | Kind::GroupQuants);
            prop_assert!(word.is_none_or(|word| !float || !f32::from_bits(word).is_nan() || word == NAN));
        }
    }
}
