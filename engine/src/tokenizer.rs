//! Text to token ids and back, for whole texts and for streams.

use std::ops::Deref;
use std::{
    collections::HashSet,
    panic::{self, AssertUnwindSafe},
};

use thiserror::Error;

use crate::model::ModelConfig;

/// Longest text that is tokenised in one piece.
pub const TEXT_BYTES: usize = 8 << 20;

/// Tokens a stream may hold back while a character is incomplete.
const PENDING: usize = 8;
/// A character has at most four bytes, so at most three tokens can stand for an incomplete one.
const PARTIAL: usize = 3;
/// What decoding gives in the place of bytes that are no character (yet).
const REPLACEMENT: char = '\u{fffd}';

/// A tokenizer is unusable, or a text cannot be tokenised.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The model comes without one.
    #[error("the model has no tokenizer.json")]
    Missing,
    /// The file at fault cannot be used.
    #[error("tokenizer: {0}")]
    Invalid(String),
    /// The tokenizer belongs to another model.
    #[error("the tokenizer has token id {id}, but the model's vocabulary ends at {vocabulary}")]
    Vocabulary {
        /// Largest id of the tokenizer.
        id: u32,
        /// Size of the model's vocabulary.
        vocabulary: usize,
    },
    /// The caller's text is too long.
    #[error("the text has {bytes} bytes; at most {TEXT_BYTES} are tokenised")]
    TooLong {
        /// Length given.
        bytes: usize,
    },
    /// The text could not be tokenised.
    #[error("the text cannot be tokenised: {0}")]
    Encode(String),
    /// The token ids could not be decoded.
    #[error("the tokens cannot be decoded: {0}")]
    Decode(String),
}

/// A model's tokenizer.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Whether a token's bytes are spelled in the byte-level alphabet.
    byte_level: bool,
    /// Whether `<0xAB>` stands for a byte.
    byte_fallback: bool,
    special: HashSet<u32>,
    largest: u32,
    bos: Option<u32>,
    eos: Vec<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Invalid`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let mut inner =
            guarded(|| tokenizers::Tokenizer::from_bytes(bytes)).map_err(TokenizerError::Invalid)?;
        // Truncation and padding are settings of training; a prompt is taken as it is.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| TokenizerError::Invalid(error.to_string()))?;
        let vocabulary = inner.get_vocab(true);
        let largest = vocabulary.values().copied().max();
        let largest = largest.ok_or_else(|| TokenizerError::Invalid("the vocabulary is empty".to_owned()))?;
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let decoder = inner.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok());
        let decodes = |kind: &str| decoder.as_ref().is_some_and(|decoder| decoder.contains(kind));
        Ok(Self {
            byte_level: decodes("\"ByteLevel\""),
            byte_fallback: decodes("\"ByteFallback\""),
            special,
            largest,
            inner,
            bos: None,
            eos: Vec::new(),
        })
    }

    /// Takes over the model's tokens for begin and end.
    ///
    /// # Errors
    /// [`TokenizerError::Vocabulary`] if there is an id that the model has no embedding for. A model
    /// may have more embeddings than the tokenizer has ids (they pad it).
    pub fn for_model(mut self, config: &ModelConfig) -> Result<Self, TokenizerError> {
        if self.largest as usize >= config.vocabulary {
            return Err(TokenizerError::Vocabulary { id: self.largest, vocabulary: config.vocabulary });
        }
        self.bos = config.bos;
        self.eos.clone_from(&config.eos);
        Ok(self)
    }

    /// Token ids of `text`. `add_special` puts the tokens around it that the model expects around
    /// plain text (a chat template brings its own).
    ///
    /// # Errors
    /// [`TokenizerError::TooLong`], [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        if text.len() > TEXT_BYTES {
            return Err(TokenizerError::TooLong { bytes: text.len() });
        }
        let encoding = guarded(|| self.inner.encode_fast(text, add_special));
        encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(TokenizerError::Encode)
    }

    /// Text of `tokens`; ids that the tokenizer does not know are left out.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        guarded(|| self.inner.decode(tokens, skip_special)).map_err(TokenizerError::Decode)
    }

    /// Bytes that `token` adds to a text, which need not be whole characters. Empty for an id that the
    /// tokenizer does not know.
    pub fn token_bytes(&self, token: u32) -> Vec<u8> {
        let Some(spelling) = self.inner.id_to_token(token) else { return Vec::new() };
        if self.inner.get_added_vocabulary().simple_id_to_token(token).is_some() {
            return spelling.into_bytes();
        }
        if self.byte_level {
            let bytes: Option<Vec<u8>> = spelling.chars().map(byte_level).collect();
            return bytes.unwrap_or_else(|| spelling.into_bytes());
        }
        if self.byte_fallback
            && let Some(byte) = fallback_byte(&spelling)
        {
            return vec![byte];
        }
        spelling.replace('\u{2581}', " ").into_bytes()
    }

    /// Spelling of `token` in the vocabulary.
    pub fn token_text(&self, token: u32) -> Option<String> {
        self.inner.id_to_token(token)
    }

    /// Id of the token spelled `text`.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// Whether `token` marks structure rather than being text.
    pub fn is_special(&self, token: u32) -> bool {
        self.special.contains(&token)
    }

    /// Number of ids up to the largest.
    pub fn size(&self) -> usize {
        self.largest as usize + 1
    }

    /// Token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Tokens that end a reply.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// The underlying tokenizer, for constrained decoding.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// Decodes a reply token by token.
    pub fn stream(&self, skip_special: bool) -> StreamDecoder<&Self> {
        StreamDecoder::new(self, skip_special)
    }
}

/// Calls the tokenizers library, which panics on some files that are JSON but no tokenizer (its
/// `DecoderWrapper`, for one). The file is not ours, so that must not take the caller down.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizer's file is beyond the tokenizers library".to_owned()),
    }
}

/// The byte that a character of the byte-level alphabet stands for: printable Latin-1 for itself, the
/// rest counted up from U+0100.
fn byte_level(c: char) -> Option<u8> {
    match c as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121) as u8 + 0x7f),
        0x143 => Some(0xad),
        _ => None,
    }
}

fn fallback_byte(spelling: &str) -> Option<u8> {
    let digits = spelling.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Text of a growing reply. Only whole characters are given out, and a space before a word comes with
/// its word, as in the decoding of the whole.
///
/// Each token is decoded together with those of the last piece given out, because decoders treat the
/// start of a text differently; the window is bounded, so the time is linear in the reply.
///
/// `T` is a reference or an `Arc`, for replies that outlive the caller's stack.
#[derive(Debug)]
pub struct StreamDecoder<T> {
    tokenizer: T,
    skip_special: bool,
    /// The tokens of the last piece, then those not yet given out.
    window: Vec<u32>,
    /// How many of `window` are given out.
    emitted: usize,
    /// Decoding of those.
    prefix: String,
}

impl<T: Deref<Target = Tokenizer>> StreamDecoder<T> {
    /// A decoder at the start of a reply.
    pub fn new(tokenizer: T, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, window: Vec::new(), emitted: 0, prefix: String::new() }
    }

    /// Takes the next token; the text that is certain now, if any.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn push(&mut self, token: u32) -> Result<Option<String>, TokenizerError> {
        // Ids without a token decode to nothing, wherever they stand.
        let silent = self.skip_special && self.tokenizer.is_special(token);
        if silent || self.tokenizer.token_text(token).is_none() {
            return Ok(None);
        }
        self.window.push(token);
        let text = self.decode(&self.window)?;
        let held = self.window.len() - self.emitted > PENDING;
        if text.ends_with(REPLACEMENT) && !self.ends_with_true_replacement() {
            return if held { self.emit(self.window.len() - PARTIAL) } else { Ok(None) };
        }
        if text.len() <= self.prefix.len() && !held { Ok(None) } else { self.emit(self.window.len()) }
    }

    /// The rest of the reply, with a replacement character for what is still incomplete.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn finish(mut self) -> Result<Option<String>, TokenizerError> {
        if self.emitted == self.window.len() { Ok(None) } else { self.emit(self.window.len()) }
    }

    /// Whether the text has a replacement character at its end, rather than bytes that are none yet.
    fn ends_with_true_replacement(&self) -> bool {
        let mut encoded = [0; 4];
        let encoded = REPLACEMENT.encode_utf8(&mut encoded).as_bytes();
        let last = &self.window[self.window.len().saturating_sub(encoded.len())..];
        let bytes: Vec<u8> = last.iter().flat_map(|&token| self.tokenizer.token_bytes(token)).collect();
        bytes.ends_with(encoded)
    }

    /// Gives out the window up to `end`.
    fn emit(&mut self, end: usize) -> Result<Option<String>, TokenizerError> {
        let text = self.decode(&self.window[..end])?;
        // Byte tokens that turn out not to be characters change the decoding of those before them.
        let piece = match text.strip_prefix(&self.prefix) {
            Some(piece) => piece.to_owned(),
            None => self.decode(&self.window[self.emitted..end])?,
        };
        self.window.drain(..self.emitted);
        self.emitted = end - self.emitted;
        self.prefix = self.decode(&self.window[..self.emitted])?;
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        self.tokenizer.decode(tokens, self.skip_special)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stories() -> Tokenizer {
        let path =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stories260K/tokenizer.json");
        Tokenizer::from_json(&std::fs::read(path).expect("golden file")).expect("golden tokenizer")
    }

    fn streamed(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
        let mut stream = tokenizer.stream(true);
        let mut text = String::new();
        for &token in tokens {
            text.extend(stream.push(token).expect("decodes"));
            assert!(stream.window.len() <= 3 * PENDING, "the window is bounded");
        }
        text.extend(stream.finish().expect("decodes"));
        text
    }

    /// A byte-level tokenizer with a token for each byte and none longer.
    fn bytes_only() -> Tokenizer {
        let alphabet = (0..=0x143_u32).filter_map(char::from_u32);
        let vocab: serde_json::Map<String, serde_json::Value> = alphabet
            .filter_map(|c| byte_level(c).map(|byte| (c.to_string(), u32::from(byte).into())))
            .collect();
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}
        });
        Tokenizer::from_json(json.to_string().as_bytes()).expect("valid")
    }

    #[test]
    fn text_survives_the_round_trip_and_the_stream() {
        for tokenizer in [stories(), bytes_only()] {
            for text in ["Once upon a time", " two  spaces", "naïve café – 日本語 🐬!\n", "", "\n", "a"]
            {
                let tokens = tokenizer.encode(text, true).expect("encodes");
                assert_eq!(tokenizer.decode(&tokens, true).expect("decodes"), text);
                assert_eq!(streamed(&tokenizer, &tokens), text);
            }
        }
    }

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let tokenizer = bytes_only();
        assert_eq!(tokenizer.size(), 256);
        for byte in 0..=255_u8 {
            assert_eq!(tokenizer.token_bytes(u32::from(byte)), [byte]);
        }
    }

    #[test]
    fn token_bytes_are_what_the_token_adds() {
        let tokenizer = stories();
        let bytes = |text: &str| tokenizer.token_bytes(tokenizer.token_id(text).expect(text));
        assert_eq!(bytes("▁the"), b" the");
        assert_eq!(bytes("<0xE4>"), [0xe4]);
        assert_eq!(bytes("<s>"), b"<s>");
        assert!(tokenizer.is_special(1) && !tokenizer.is_special(300));
        assert!(tokenizer.token_bytes(u32::MAX).is_empty());
    }

    #[test]
    fn special_tokens_do_not_disturb_the_spaces_around_them() {
        let tokenizer = stories();
        let the = tokenizer.token_id("▁the").expect("in the vocabulary");
        assert_eq!(streamed(&tokenizer, &[the, 1, the, 2, the]), "the the the");
    }

    #[test]
    fn a_text_that_is_too_long_is_refused() {
        let text = "a".repeat(TEXT_BYTES + 1);
        assert!(matches!(stories().encode(&text, true), Err(TokenizerError::TooLong { .. })));
    }

    #[test]
    fn a_tokenizer_of_a_larger_model_is_refused() {
        let mut config = crate::model::Model::open(&crate::model::tests::golden("stories260K"))
            .expect("opens")
            .config()
            .clone();
        assert!(stories().for_model(&config).is_ok());
        config.vocabulary = 511;
        let refused = stories().for_model(&config).expect_err("id 511");
        assert!(matches!(refused, TokenizerError::Vocabulary { id: 511, vocabulary: 511 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn streams_give_the_text_of_the_whole(text in "\\PC{0,40}") {
            for tokenizer in [stories(), bytes_only()] {
                let tokens = tokenizer.encode(&text, true).expect("encodes");
                prop_assert_eq!(streamed(&tokenizer, &tokens), tokenizer.decode(&tokens, true).expect("decodes"));
            }
        }

        #[test]
        fn broken_files_never_panic(at in 0_usize..19_000, byte in any::<u8>(), text in "\\PC{0,10}") {
            let path = crate::model::tests::golden("stories260K").join("tokenizer.json");
            let mut json = std::fs::read(path).expect("golden file");
            json[at] = byte;
            if let Ok(tokenizer) = Tokenizer::from_json(&json) {
                let _ = tokenizer.encode(&text, true);
            }
        }

        #[test]
        fn any_tokens_can_be_streamed(tokens in prop::collection::vec(0_u32..600, 0..60)) {
            for tokenizer in [stories(), bytes_only()] {
                let whole = tokenizer.decode(&tokens, true).expect("decodes");
                let text = streamed(&tokenizer, &tokens);
                if !whole.contains(REPLACEMENT) {
                    prop_assert_eq!(text, whole);
                }
            }
        }
    }
}
