//! What the gateway needs of a tokenizer, in one place.

use std::sync::Arc;

use tokenizers::Tokenizer;

use super::error::ApiError;

/// Encodes prompts and names tokens.
#[derive(Clone, Debug)]
pub(super) struct Text {
    tokenizer: Arc<Tokenizer>,
}

impl Text {
    pub(super) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer }
    }

    pub(super) fn vocabulary(&self) -> u32 {
        u32::try_from(self.tokenizer.get_vocab_size(true)).unwrap_or(u32::MAX)
    }

    pub(super) fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, ApiError> {
        let encoding = self.tokenizer.encode_fast(text, add_special);
        let failed = |_| ApiError::Internal { reason: "the tokenizer failed on the prompt" };
        Ok(encoding.map_err(failed)?.get_ids().to_vec())
    }

    /// The bytes a token stands for.
    pub(super) fn bytes(&self, token: u32) -> Vec<u8> {
        self.tokenizer.decode(&[token], false).unwrap_or_default().into_bytes()
    }

    pub(super) fn decoder(&self) -> Decoder {
        Decoder { tokenizer: self.tokenizer.clone(), ids: Vec::new(), shown: String::new() }
    }
}

/// Turns tokens to text as they come, never splitting a character.
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    tokenizer: Arc<Tokenizer>,
    ids: Vec<u32>,
    shown: String,
}

impl Decoder {
    pub(super) fn push(&mut self, token: u32) -> String {
        self.ids.push(token);
        let text = self.tokenizer.decode(&self.ids, true).unwrap_or_default();
        if text.ends_with('\u{fffd}') {
            return String::new();
        }
        let new = text.strip_prefix(&self.shown).unwrap_or_default().to_owned();
        self.ids.drain(..self.ids.len() - 1);
        self.shown = self.tokenizer.decode(&self.ids, true).unwrap_or_default();
        new
    }

    pub(super) fn finish(&mut self) -> String {
        let text = self.tokenizer.decode(&self.ids, true).unwrap_or_default();
        text.strip_prefix(&self.shown).unwrap_or_default().to_owned()
    }
}
