//! Drawing a token from the logits of one row (section 10).

use std::cmp::Reverse;

use super::exp;

/// Temperatures below this are greedy: logits divided by less would leave f32's range.
pub const LEAST_TEMPERATURE: f32 = 1.0 / 1024.0;

/// Fixed-point one of the integer weights.
const ONE: f32 = (1u64 << 40) as f32;

/// What is asked of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Random bits, which the seed, the choice and the position decide.
    pub random: u64,
    /// Divisor of the logits; below [`LEAST_TEMPERATURE`] the largest logit is drawn.
    pub temperature: f32,
    /// Tokens that are kept; 0: all.
    pub top_k: u32,
    /// Least weight relative to the largest ([`fixed`]); 0: no bound.
    pub min_p: u64,
    /// Share of the weight that is kept ([`fixed`]); from 2^32 on: all.
    pub top_p: u64,
}

/// One change of one logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edit {
    /// Which; one that is no token of the vocabulary is ignored.
    pub token: u32,
    /// How.
    pub change: Change,
}

/// How a logit changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// `l + value`: frequency, presence (both negative), bias.
    Add(f32),
    /// `l > 0 ? l / value : l * value`: the repetition penalty.
    Repeat(f32),
}

/// `p` in [0, 1] in units of 2^-32, ties to even.
pub fn fixed(p: f32) -> u64 {
    (f64::from(p) * 4_294_967_296.0).round_ties_even() as u64
}

/// Applies edits in their order.
pub fn edit(logits: &mut [f32], edits: &[Edit]) {
    for edit in edits {
        if let Some(l) = logits.get_mut(edit.token as usize) {
            *l = match edit.change {
                Change::Add(value) => *l + value,
                Change::Repeat(value) if *l > 0.0 => *l / value,
                Change::Repeat(value) => *l * value,
            };
        }
    }
}

/// The token drawn from edited logits.
pub fn draw(logits: &[f32], choice: &Choice) -> u32 {
    draw_in(logits, choice, &mut Vec::new())
}

/// As [`draw`]; `kept` is memory to work in, for who draws often.
pub fn draw_in(logits: &[f32], choice: &Choice, kept: &mut Vec<(u64, u32)>) -> u32 {
    if choice.temperature < LEAST_TEMPERATURE {
        return argmax(logits);
    }
    weigh(logits, choice.temperature, kept);
    truncate(kept, choice);
    // Logits beyond f32's range at this temperature leave no weight: the largest is then the only choice.
    pick(kept, choice.random).unwrap_or_else(|| argmax(logits))
}

/// Index of the largest value, the lowest on ties.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &l) in logits.iter().enumerate() {
        if l > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// Integer weights of every token that has one, in vocabulary order.
fn weigh(logits: &[f32], t: f32, kept: &mut Vec<(u64, u32)>) {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &l| if l / t > m { l / t } else { m });
    let weight = |l: f32| (exp(l / t - max) * ONE) as u64;
    kept.clear();
    kept.extend(logits.iter().zip(0..).map(|(&l, id)| (weight(l), id)).filter(|&(weight, _)| weight > 0));
}

/// Keeps top-k, then min-p, then top-p; leaves the survivors in vocabulary order. Nothing is sorted that is not
/// truncated.
fn truncate(kept: &mut Vec<(u64, u32)>, choice: &Choice) {
    let heavier = |&(weight, id): &(u64, u32)| (Reverse(weight), id);
    let k = choice.top_k as usize;
    if k > 0 && k < kept.len() {
        kept.select_nth_unstable_by_key(k - 1, heavier);
        kept.truncate(k);
    }
    if choice.min_p > 0 {
        let max = kept.iter().map(|&(weight, _)| weight).max().unwrap_or(0);
        let floor = (u128::from(max) * u128::from(choice.min_p)) >> 32;
        kept.retain(|&(weight, _)| u128::from(weight) >= floor);
    }
    if choice.top_p < 1 << 32 {
        kept.sort_unstable_by_key(heavier);
        let total: u128 = kept.iter().map(|&(weight, _)| u128::from(weight)).sum();
        let bound = u128::from(choice.top_p) * total;
        let mut sum = 0u128;
        let last = kept.iter().position(|&(weight, _)| {
            sum += u128::from(weight);
            sum << 32 >= bound
        });
        kept.truncate(last.map_or(kept.len(), |last| last + 1));
    }
    kept.sort_unstable_by_key(|&(_, id)| id);
}

fn pick(kept: &[(u64, u32)], random: u64) -> Option<u32> {
    let total: u64 = kept.iter().map(|&(weight, _)| weight).sum();
    let threshold = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    let mut sum = 0u64;
    kept.iter().find_map(|&(weight, id)| {
        sum += weight;
        (sum > threshold).then_some(id)
    })
}
