//! One reply as it grows: tokens in, safe text with its log-probabilities out.

use std::collections::VecDeque;
use std::sync::Arc;

use super::error::ApiError;
use super::stops::{Scan, StopScanner};
use crate::request::{Finish, Logprobs};
use crate::tokenizer::{StreamDecoder, Tokenizer, TokenizerError};

/// Why a reply ended, in OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FinishReason {
    Stop,
    Length,
}

impl FinishReason {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// A token with its log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scored {
    pub(super) token: u32,
    pub(super) logprobs: Logprobs,
    /// Where its text begins, in characters of the reply.
    pub(super) offset_chars: usize,
}

/// Text that may be shown, and how the reply ended if it did.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Update {
    pub(super) text: String,
    pub(super) scored: Vec<Scored>,
    pub(super) finish: Option<FinishReason>,
}

impl Update {
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.scored.is_empty() && self.finish.is_none()
    }

    /// Appends what came later.
    pub(super) fn extend(&mut self, later: Update) {
        self.text.push_str(&later.text);
        self.scored.extend(later.scored);
        self.finish = later.finish.or(self.finish);
    }
}

/// Decodes one reply and cuts it at its stop strings.
#[derive(Debug)]
pub(super) struct Reply {
    /// `None` once the reply is complete.
    decoder: Option<StreamDecoder<Arc<Tokenizer>>>,
    scanner: StopScanner,
    stop_tokens: Vec<u32>,
    decoded_chars: usize,
    released_chars: usize,
    /// Tokens whose text is not released yet.
    waiting: VecDeque<Scored>,
    /// Tokens drawn, the one that stopped the reply included.
    pub(super) tokens: u64,
}

impl Reply {
    pub(super) fn new(tokenizer: Arc<Tokenizer>, stops: Vec<String>, stop_tokens: Vec<u32>) -> Self {
        Self {
            decoder: Some(StreamDecoder::new(tokenizer, true)),
            scanner: StopScanner::new(stops),
            stop_tokens,
            decoded_chars: 0,
            released_chars: 0,
            waiting: VecDeque::new(),
            tokens: 0,
        }
    }

    pub(super) fn token(&mut self, token: u32, logprobs: Option<Logprobs>) -> Result<Update, ApiError> {
        self.tokens += 1;
        if self.stop_tokens.contains(&token) {
            return Ok(Update::default());
        }
        if let Some(logprobs) = logprobs {
            self.waiting.push_back(Scored { token, logprobs, offset_chars: self.decoded_chars });
        }
        let text = match &mut self.decoder {
            Some(decoder) => decoder.push(token).map_err(undecodable)?,
            None => None,
        };
        Ok(self.scan(&text.unwrap_or_default()))
    }

    pub(super) fn finished(&mut self, finish: Finish) -> Result<Update, ApiError> {
        let rest = match self.decoder.take() {
            Some(decoder) => decoder.finish().map_err(undecodable)?,
            None => None,
        };
        let mut update = self.scan(&rest.unwrap_or_default());
        if update.finish.is_none() {
            update.text.push_str(&self.scanner.finish());
            update.scored.extend(self.waiting.drain(..));
            update.finish = Some(match finish {
                Finish::Stop => FinishReason::Stop,
                Finish::Length => FinishReason::Length,
            });
        }
        Ok(update)
    }

    fn scan(&mut self, text: &str) -> Update {
        self.decoded_chars += text.chars().count();
        let (text, finish) = match self.scanner.push(text) {
            Scan::Open(text) => (text, None),
            Scan::Cut(text) => (text, Some(FinishReason::Stop)),
        };
        self.released_chars += text.chars().count();
        let shown = self.waiting.partition_point(|scored| scored.offset_chars < self.released_chars);
        Update { text, scored: self.waiting.drain(..shown).collect(), finish }
    }
}

fn undecodable(_: TokenizerError) -> ApiError {
    ApiError::Internal { reason: "the tokenizer could not decode the reply" }
}
