//! Drawing a token from logits: section 10 of the numerics. Pure; the random number depends on seed,
//! choice and position alone, so the same request draws the same tokens on every pipeline.

use std::collections::{HashMap, hash_map::Entry};

use kernels::{
    backend::Question,
    reference::{self, Change, Choice, Edit, exp},
};
use ledger::eip712::keccak;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::request::{Logprobs, Sampling};

/// Separates the draws from every other use of keccak in the product.
const DRAW_DOMAIN: &[u8] = b"dolphin/exact/1/draw";

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Token id.
    pub token: u32,
    /// Present if the request asked for them.
    pub logprobs: Option<Logprobs>,
}

/// The sampling state of one session: its parameters and what it has seen so far.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    key: [u8; 32],
    in_prompt: Vec<u32>,
    in_reply: HashMap<u32, u32>,
    candidates: Vec<(u64, u32)>,
}

impl Sampler {
    /// A sampler for one reply. `prompt` matters only under a repetition penalty.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let (seed, choice) = (sampling.seed.to_le_bytes(), sampling.choice.to_le_bytes());
        let key = keccak(&[DRAW_DOMAIN, &seed, &choice].concat());
        let mut in_prompt = Vec::new();
        if sampling.repetition_penalty != 1.0 {
            in_prompt.extend_from_slice(prompt);
            in_prompt.sort_unstable();
            in_prompt.dedup();
        }
        Self { sampling, key, in_prompt, in_reply: HashMap::new(), candidates: Vec::new() }
    }

    /// Draws the token that will stand at `position` from the logits of the row before it, and counts it
    /// as seen. The logits are penalised in place.
    pub fn draw(&mut self, logits: &mut [f32], position: u32) -> Draw {
        let unmodified = self.sampling.logprobs.map(|_| logits.to_vec());
        let token = self.peek(logits, position);
        self.accept(token);
        let logprobs = unmodified.map(|logits| report(&logits, token, self.sampling.logprobs.unwrap_or(0)));
        Draw { token, logprobs }
    }

    /// The token that [`Sampler::draw`] would draw, which is not counted yet. The logits are penalised in
    /// place.
    pub fn peek(&mut self, logits: &mut [f32], position: u32) -> u32 {
        reference::edit(logits, &self.edits());
        let choice = self.choice(position);
        reference::draw_in(logits, &choice, &mut self.candidates)
    }

    /// What a device is asked that is to draw the token at `position`, `ahead` being the tokens between those
    /// counted as seen and it. None if the request wants what only the logits tell.
    pub fn question(&mut self, ahead: &[u32], position: u32) -> Option<Question> {
        if self.sampling.logprobs.is_some() {
            return None;
        }
        ahead.iter().for_each(|&token| self.accept(token));
        let mut edits = self.edits();
        ahead.iter().for_each(|&token| self.retract(token));
        // Stable: the edits of a token stay in their order.
        edits.sort_by_key(|edit| edit.token);
        Some(Question { choice: self.choice(position), edits })
    }

    /// How the token at `position` is drawn.
    fn choice(&self, position: u32) -> Choice {
        let &Sampling { temperature, top_k, min_p, top_p, .. } = &self.sampling;
        let (min_p, top_p) = (reference::fixed(min_p), reference::fixed(top_p));
        Choice { random: self.random(position), temperature, top_k, min_p, top_p }
    }

    /// Penalties and bias; those of a token in the order in which they apply.
    fn edits(&self) -> Vec<Edit> {
        let p = &self.sampling;
        let mut edits = Vec::new();
        if p.repetition_penalty != 1.0 {
            let fresh = self.in_reply.keys().filter(|id| self.in_prompt.binary_search(id).is_err());
            let change = Change::Repeat(p.repetition_penalty);
            edits.extend(self.in_prompt.iter().chain(fresh).map(|&token| Edit { token, change }));
        }
        if p.frequency_penalty != 0.0 || p.presence_penalty != 0.0 {
            edits.extend(self.in_reply.iter().flat_map(|(&token, &count)| {
                let changes = [p.frequency_penalty * count as f32, p.presence_penalty];
                changes.map(|change| Edit { token, change: Change::Add(-change) })
            }));
        }
        edits.extend(p.logit_bias.iter().map(|&(token, bias)| Edit { token, change: Change::Add(bias) }));
        edits
    }

    /// Counts a token of the reply as seen, whoever drew it.
    pub fn accept(&mut self, token: u32) {
        *self.in_reply.entry(token).or_default() += 1;
    }

    /// Takes back an [`Sampler::accept`] of the same token.
    pub fn retract(&mut self, token: u32) {
        if let Entry::Occupied(mut entry) = self.in_reply.entry(token) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    /// First eight bytes of the ChaCha8 block numbered `position`.
    fn random(&self, position: u32) -> u64 {
        let mut rng = ChaCha8Rng::from_seed(self.key);
        rng.set_word_pos(u128::from(position) * 16);
        rng.next_u64()
    }
}

/// The `n` most likely tokens, heaviest first, lowest index on ties.
fn heaviest(logits: &[f32], n: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let n = n.min(ids.len());
    if n > 0 && n < ids.len() {
        ids.select_nth_unstable_by(n - 1, order);
    }
    ids.truncate(n);
    ids.sort_unstable_by(order);
    ids
}

/// Log-probabilities of the unmodified distribution, in f64. They are reported, never fed back, so
/// they are outside `exact/1`.
fn report(logits: &[f32], token: u32, n: u8) -> Logprobs {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &l| m.max(l));
    let sum: f64 = logits.iter().map(|&l| f64::from(exp(l - max))).sum();
    let offset = f64::from(max) + sum.ln();
    let log = |id: u32| (f64::from(logits[id as usize]) - offset) as f32;
    Logprobs {
        chosen: log(token),
        top: heaviest(logits, usize::from(n)).into_iter().map(|id| (id, log(id))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draw(sampling: Sampling, logits: &[f32], position: u32) -> u32 {
        Sampler::new(sampling, &[]).draw(&mut logits.to_vec(), position).token
    }

    #[test]
    fn greedy_takes_the_lowest_index_on_ties() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        assert_eq!(draw(greedy, &[1.0, 3.0, 3.0, -1.0], 0), 1);
    }

    #[test]
    fn a_draw_depends_on_seed_choice_and_position_alone() {
        let logits: Vec<f32> = (0..64).map(|i| (i % 7) as f32 * 0.3).collect();
        let at = |seed, choice, position| {
            draw(Sampling { seed, choice, ..Sampling::default() }, &logits, position)
        };
        assert_eq!(at(7, 0, 5), at(7, 0, 5));
        let spread = |f: &dyn Fn(u32) -> u32| (0..64).map(f).collect::<std::collections::BTreeSet<_>>().len();
        assert!(spread(&|i| at(u64::from(i), 0, 5)) > 16);
        assert!(spread(&|i| at(7, i, 5)) > 16);
        assert!(spread(&|i| at(7, 0, i)) > 16);
    }

    #[test]
    fn frequencies_follow_the_distribution() {
        let logits = [0.0f32, 1.0, 2.0, -3.0];
        let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut counts = [0u32; 4];
        let draws = 20_000;
        let mut sampler = Sampler::new(Sampling { seed: 3, ..Sampling::default() }, &[]);
        for position in 0..draws {
            counts[sampler.draw(&mut logits.to_vec(), position).token as usize] += 1;
        }
        for (count, weight) in counts.iter().zip(&weights) {
            let expected = weight / total * f64::from(draws);
            let five_sigma = 5.0 * expected.sqrt() + 1.0;
            assert!((f64::from(*count) - expected).abs() < five_sigma, "{counts:?} against {weights:?}");
        }
    }

    #[test]
    fn truncations_keep_what_they_say() {
        let logits = [0.0f32, 3.0, 2.0, 1.0, -9.0];
        let support = |sampling: Sampling| {
            let mut seen = std::collections::BTreeSet::new();
            for position in 0..4000 {
                seen.insert(draw(sampling.clone(), &logits, position));
            }
            seen.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(support(Sampling { top_k: 2, ..Sampling::default() }), [1, 2]);
        assert_eq!(support(Sampling { top_p: 0.6, ..Sampling::default() }), [1]);
        assert_eq!(support(Sampling { top_p: 0.7, ..Sampling::default() }), [1, 2]);
        assert_eq!(support(Sampling { min_p: 0.3, ..Sampling::default() }), [1, 2]);
        assert_eq!(support(Sampling { min_p: 1.0, ..Sampling::default() }), [1]);
    }

    #[test]
    fn penalties_and_bias_move_single_tokens() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let logits = [2.0f32, 1.9, -1.0];
        let mut repeated = Sampler::new(Sampling { repetition_penalty: 1.2, ..greedy.clone() }, &[0]);
        assert_eq!(repeated.draw(&mut logits.to_vec(), 1).token, 1);
        let mut present = Sampler::new(Sampling { presence_penalty: 0.2, ..greedy.clone() }, &[0]);
        assert_eq!(present.draw(&mut logits.to_vec(), 1).token, 0, "the prompt does not count");
        assert_eq!(present.draw(&mut logits.to_vec(), 2).token, 1);
        let biased = Sampling { logit_bias: vec![(2, 100.0), (77, 1.0)], ..greedy };
        assert_eq!(draw(biased, &logits, 1), 2);
    }

    #[test]
    fn a_token_taken_back_was_never_seen() {
        let sampling = Sampling { temperature: 0.0, frequency_penalty: 0.3, ..Sampling::default() };
        let logits = [2.0f32, 1.5, -1.0];
        let mut sampler = Sampler::new(sampling, &[]);
        let peek = |sampler: &mut Sampler| sampler.peek(&mut logits.to_vec(), 1);
        assert_eq!((peek(&mut sampler), peek(&mut sampler)), (0, 0), "a look counts nothing");
        sampler.accept(0);
        sampler.accept(0);
        assert_eq!(peek(&mut sampler), 1);
        sampler.retract(0);
        assert_eq!(peek(&mut sampler), 0);
        sampler.retract(0);
        sampler.retract(0);
        assert_eq!(sampler.in_reply.len(), 0);
    }

    #[test]
    fn logprobs_describe_the_unmodified_distribution() {
        let sampling = Sampling {
            temperature: 0.0,
            logprobs: Some(2),
            logit_bias: vec![(2, 100.0)],
            ..Sampling::default()
        };
        let drawn = Sampler::new(sampling, &[]).draw(&mut [0.0, 0.0, 0.0, 0.0], 0);
        let quarter = 0.25f32.ln();
        let logprobs = drawn.logprobs.unwrap();
        assert_eq!(drawn.token, 2);
        assert!((logprobs.chosen - quarter).abs() < 1e-6);
        assert_eq!(logprobs.top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
    }

    proptest! {
        #[test]
        fn a_device_is_asked_for_the_same_token(
            logits in prop::collection::vec(-9f32..9.0, 1..60),
            temperature in 0.0f32..2.0, top_k in 0u32..20, top_p in 0.0f32..=1.0, min_p in 0.0f32..=1.0,
            repetition_penalty in prop::sample::select(vec![1.0f32, 1.3]),
            penalties in prop::sample::select(vec![(0.0f32, 0.0f32), (0.5, -0.25)]),
            bias in prop::collection::vec((0u32..70, -2f32..2.0), 0..5),
            seen in prop::collection::vec(0u32..60, 0..9), ahead in 0usize..4, seed: u64, position: u32,
        ) {
            let sampling = Sampling {
                temperature, top_k, top_p, min_p, seed, repetition_penalty, logit_bias: bias,
                frequency_penalty: penalties.0, presence_penalty: penalties.1, ..Sampling::default()
            };
            let (prompt, reply) = seen.split_at(seen.len() / 3);
            let (known, ahead) = reply.split_at(reply.len().saturating_sub(ahead));
            let mut sampler = Sampler::new(sampling, prompt);
            known.iter().for_each(|&token| sampler.accept(token));
            let Question { choice, edits } = sampler.question(ahead, position).unwrap();
            ahead.iter().for_each(|&token| sampler.accept(token));
            let mut edited = logits.clone();
            reference::edit(&mut edited, &edits);
            prop_assert!(edits.is_sorted_by_key(|edit| edit.token));
            prop_assert_eq!(reference::draw(&edited, &choice), sampler.peek(&mut logits.clone(), position));
        }

        #[test]
        fn any_finite_logits_and_parameters_draw_a_token(
            logits in prop::collection::vec(-1e30f32..1e30, 1..200),
            temperature in 0.0f32..2.0, top_k in 0u32..50, top_p in 0.0f32..=1.0, min_p in 0.0f32..=1.0,
            seed: u64, position: u32,
        ) {
            let sampling = Sampling { temperature, top_k, top_p, min_p, seed, ..Sampling::default() };
            let token = draw(sampling, &logits, position);
            prop_assert!((token as usize) < logits.len());
        }
    }
}
