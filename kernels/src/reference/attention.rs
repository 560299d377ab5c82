//! Attention of one query head, block by block (section 7).

use super::math::{exp, max};
use crate::backend::PAGE;

/// What is known after some blocks: the running maximum, the weight sum and the weighted values.
#[derive(Clone, Debug, PartialEq)]
pub struct Fold {
    /// Largest score.
    pub max: f32,
    /// Sum of weights relative to `max`.
    pub sum: f32,
    /// Weighted values, `[head_dim]`.
    pub values: Vec<f32>,
}

impl Fold {
    /// Takes in the next block.
    pub fn add(&mut self, block: &Fold) {
        let m = max(self.max, block.max);
        let a = exp(self.max - m);
        let c = exp(block.max - m);
        self.sum = block.sum.mul_add(c, self.sum * a);
        for (o, b) in self.values.iter_mut().zip(&block.values) {
            *o = b.mul_add(c, *o * a);
        }
        self.max = m;
    }

    /// The output, once every block is in.
    pub fn finish(mut self) -> Vec<f32> {
        self.values.iter_mut().for_each(|o| *o /= self.sum);
        self.values
    }
}

/// One block: `q` already carries the scale; `keys` and `values` are the visible ones, `[n][head_dim]`,
/// the first at offset `first` of the block.
///
/// # Panics
/// If no key is visible or they reach past the block.
pub fn attend_block(q: &[f32], first: usize, keys: &[&[f32]], values: &[&[f32]]) -> Fold {
    assert!(!keys.is_empty() && first + keys.len() <= PAGE, "the visible keys lie in the block");
    let score = |key: &[f32]| q.iter().zip(key).fold(0.0f32, |s, (q, k)| q.mul_add(*k, s));
    let scores: Vec<f32> = keys.iter().map(|key| score(key)).collect();
    let m = scores[1..].iter().fold(scores[0], |m, &s| max(m, s));
    let mut weights = [0.0f32; PAGE];
    for (p, s) in weights[first..].iter_mut().zip(&scores) {
        *p = exp(s - m);
    }
    let mut out = vec![0.0f32; q.len()];
    for (p, value) in weights[first..].iter().zip(values) {
        for (o, v) in out.iter_mut().zip(*value) {
            *o = p.mul_add(*v, *o);
        }
    }
    let mut width = PAGE / 2;
    while width > 0 {
        for l in 0..width {
            weights[l] += weights[l + width];
        }
        width /= 2;
    }
    Fold { max: m, sum: weights[0], values: out }
}
