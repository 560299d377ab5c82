//! One session of a drafter: its tokens, how many of them are known and how many processed. Pure.

use std::ops::Range;

use crate::{
    message::{Draft, SessionId},
    request::Sampling,
    sampler::Sampler,
};

/// See the module.
pub(super) struct Sequence {
    pub(super) session: SessionId,
    /// Prompt, reply as far as it is known, guesses.
    tokens: Vec<u32>,
    /// Tokens that are no guesses.
    known: usize,
    /// Tokens whose rows the model has processed; always fewer than there are when a guess is wanted.
    held: usize,
    /// Tokens that are known or that a draft has reported.
    told: usize,
    /// Positions that the session can have.
    positions: usize,
    chain: u32,
    stop_tokens: Vec<u32>,
    /// Counts the guesses as seen, as the reply's own draws will if they are right.
    sampler: Sampler,
}

impl Sequence {
    pub(super) fn new(
        session: SessionId,
        prompt: Vec<u32>,
        positions: u32,
        stop_tokens: Vec<u32>,
        sampling: Sampling,
    ) -> Self {
        let sampler = Sampler::new(sampling, &prompt);
        let known = prompt.len();
        Self {
            session,
            tokens: prompt,
            known,
            held: 0,
            told: known,
            positions: positions as usize,
            chain: 0,
            stop_tokens,
            sampler,
        }
    }

    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whether another guess is due, `ahead` being the most.
    pub(super) fn wants(&self, ahead: usize) -> bool {
        let guesses = &self.tokens[self.known..];
        let ended = guesses.last().is_some_and(|guess| self.stop_tokens.contains(guess));
        guesses.len() < ahead && self.tokens.len() < self.positions && !ended
    }

    /// Rows to process before the next guess.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.held
    }

    /// Takes up to `room` rows to be processed: the position of the first, and which tokens they are.
    pub(super) fn send(&mut self, room: usize) -> (u32, Range<usize>) {
        let rows = self.held..self.tokens.len().min(self.held + room);
        self.held = rows.end;
        (rows.start as u32, rows)
    }

    /// Rows from position `from` on were not processed after all.
    pub(super) fn take_back(&mut self, from: u32) {
        self.held = self.held.min(from as usize);
    }

    /// Guesses the next token from the logits of the last one's row.
    pub(super) fn guess(&mut self, logits: &mut [f32]) {
        let token = self.sampler.peek(logits, self.tokens.len() as u32);
        self.sampler.accept(token);
        self.tokens.push(token);
    }

    /// Takes the reply's next tokens. From the first wrong guess on, guesses are forgotten and their rows
    /// cut off.
    pub(super) fn accept(&mut self, tokens: &[u32]) {
        let mut broken = false;
        for &token in tokens {
            if self.tokens.get(self.known) != Some(&token) {
                let sampler = &mut self.sampler;
                self.tokens.drain(self.known..).for_each(|guess| sampler.retract(guess));
                self.sampler.accept(token);
                self.tokens.push(token);
                self.held = self.held.min(self.known);
                broken = true;
            }
            self.known += 1;
        }
        // What is known need not be reported, and a chain has no gap.
        if broken || self.told < self.known {
            self.told = self.known;
            self.chain = self.chain.wrapping_add(1);
        }
    }

    /// The guesses that were not reported yet, if there are `burst` of them or no more to come.
    pub(super) fn report(&mut self, ahead: usize, burst: usize) -> Option<Draft> {
        let fresh = self.tokens.len() - self.told;
        if fresh == 0 || (fresh < burst && self.wants(ahead)) {
            return None;
        }
        let position = self.told as u32;
        let tokens = self.tokens[self.told..].to_vec();
        self.told = self.tokens.len();
        Some(Draft { session: self.session, chain: self.chain, position, tokens })
    }
}
