//! The tokenizer in a GGUF's metadata, rebuilt as the `tokenizer.json` it was made from.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
};

use serde_json::{Map, Value as Json, json};

use super::{Header, Value, describe::Keys};
use crate::{
    model::error::ModelError,
    tokenizer::{Tokenizer, TokenizerError},
};

/// Longest token whose merges are looked for (their number grows with its length).
const TOKEN_BYTES: usize = 1 << 10;

const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is split before byte-level BPE; llama.cpp knows the splits by name.
struct Split {
    names: &'static [&'static str],
    /// Applied one after the other, each inside the pieces of the one before.
    patterns: &'static [&'static str],
    /// Whether text is composed (NFC) first.
    compose: bool,
    /// Whether a word in the vocabulary is taken whole, whatever the merges say.
    whole_words: bool,
    /// Whether texts begin with the begin token if the file does not say.
    bos: bool,
}

const SPLITS: [Split; 6] = [
    Split {
        names: &["llama-bpe", "llama3", "llama-v3"],
        patterns: &[LLAMA3],
        compose: false,
        whole_words: true,
        bos: true,
    },
    Split {
        names: &["qwen2", "deepseek-r1-qwen"],
        patterns: &[QWEN2],
        compose: true,
        whole_words: false,
        bos: false,
    },
    Split { names: &["tekken"], patterns: &[TEKKEN], compose: false, whole_words: true, bos: true },
    Split {
        names: &["gpt-2", "mpt", "olmo"],
        patterns: &[GPT2],
        compose: false,
        whole_words: false,
        bos: false,
    },
    Split {
        names: &["smollm", "starcoder"],
        patterns: &[r"\p{N}", GPT2],
        compose: false,
        whole_words: false,
        bos: false,
    },
    Split {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        compose: false,
        whole_words: false,
        bos: false,
    },
];

/// Builds the tokenizer.
///
/// # Errors
/// [`ModelError::Unsupported`] for a tokenizer model or a split that is not known,
/// [`ModelError::Field`] for metadata that does not fit together, [`ModelError::Tokenizer`].
pub fn tokenizer(file: &str, header: &Header) -> Result<Tokenizer, ModelError> {
    let json = tokenizer_json(file, header)?;
    Ok(Tokenizer::from_json(json.to_string().as_bytes())?)
}

pub(super) fn tokenizer_json(file: &str, header: &Header) -> Result<Json, ModelError> {
    let keys = Keys { file, header };
    let vocabulary = Vocabulary::read(&keys)?;
    match keys.text("tokenizer.ggml.model")? {
        None => Err(TokenizerError::Missing.into()),
        Some("gpt2") => byte_level(&keys, &vocabulary),
        Some("llama") => sentence_piece(&keys, &vocabulary),
        Some(other) => Err(ModelError::unsupported(file, "GGUF tokenizer", other, "gpt2, llama")),
    }
}

/// Tokens in the order of their ids.
struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: Vec<i64>,
}

impl<'a> Vocabulary<'a> {
    fn read(keys: &Keys<'a>) -> Result<Self, ModelError> {
        let key = "tokenizer.ggml.tokens";
        let tokens = match keys.value(key) {
            Some(Value::Texts(tokens)) if !tokens.is_empty() => tokens,
            _ => return Err(ModelError::field(keys.file, key, "must be a list of texts")),
        };
        if let Some(long) = tokens.iter().position(|token| token.len() > TOKEN_BYTES) {
            let reason =
                format!("has {} bytes in token {long}; at most {TOKEN_BYTES} are read", tokens[long].len());
            return Err(ModelError::field(keys.file, key, reason));
        }
        let key = "tokenizer.ggml.token_type";
        let kinds = match keys.value(key) {
            None => vec![NORMAL; tokens.len()],
            Some(Value::Integers(kinds)) if kinds.len() == tokens.len() => kinds.clone(),
            Some(_) => {
                return Err(ModelError::field(keys.file, key, format!("must list {} types", tokens.len())));
            }
        };
        Ok(Self { tokens, kinds })
    }

    /// Ids by token; of equal tokens the first counts.
    fn ids(&self) -> HashMap<&'a str, u32> {
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            ids.entry(token.as_str()).or_insert(id as u32);
        }
        ids
    }

    fn json(&self) -> Json {
        let ids = self.ids();
        let in_order = self.tokens.iter().enumerate().filter(|(id, token)| ids[token.as_str()] == *id as u32);
        Json::Object(in_order.map(|(id, token)| (token.clone(), id.into())).collect::<Map<_, _>>())
    }

    /// Tokens that are found in a text before anything else is.
    fn added(&self) -> Json {
        let ids = self.ids();
        let listed = self.tokens.iter().zip(&self.kinds).enumerate();
        let added = listed.filter(|(id, (token, kind))| {
            matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED)
                && !token.is_empty()
                && ids[token.as_str()] == *id as u32
        });
        let entry = |(id, (token, kind)): (usize, (&String, &i64))| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind != USER_DEFINED,
            })
        };
        Json::Array(added.map(entry).collect())
    }

    fn token(&self, keys: &Keys<'_>, key: &str) -> Result<Option<(u32, &'a str)>, ModelError> {
        let Some(id) = keys.token(key)? else { return Ok(None) };
        match self.tokens.get(id as usize) {
            Some(token) => Ok(Some((id, token))),
            None => Err(ModelError::field(keys.file, key, format!("{id} is beyond the vocabulary"))),
        }
    }

    /// The template that puts begin and end tokens around a text.
    fn template(&self, keys: &Keys<'_>, bos: bool) -> Result<Json, ModelError> {
        let ends = [
            ("tokenizer.ggml.bos_token_id", keys.flag("tokenizer.ggml.add_bos_token", bos)?),
            ("tokenizer.ggml.eos_token_id", keys.flag("tokenizer.ggml.add_eos_token", false)?),
        ];
        let mut around = [None, None];
        let mut special = Map::new();
        for (slot, (key, wanted)) in around.iter_mut().zip(ends) {
            if let Some((id, token)) = self.token(keys, key)?.filter(|_| wanted) {
                *slot = Some(json!({"SpecialToken": {"id": token, "type_id": 0}}));
                special.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
            }
        }
        if special.is_empty() {
            return Ok(Json::Null);
        }
        let [before, after] = &around;
        let wrap = |name: &str, type_id: u32| {
            let text = json!({"Sequence": {"id": name, "type_id": type_id}});
            before.iter().cloned().chain([text]).chain(after.iter().cloned()).collect::<Vec<_>>()
        };
        let pair = [wrap("A", 0), wrap("B", 1)].concat();
        Ok(json!({
            "type": "TemplateProcessing", "single": wrap("A", 0), "pair": pair, "special_tokens": special,
        }))
    }
}

fn byte_level(keys: &Keys<'_>, vocabulary: &Vocabulary<'_>) -> Result<Json, ModelError> {
    let name = keys.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let split = SPLITS.iter().find(|split| split.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = SPLITS.iter().flat_map(|split| split.names).copied().collect();
        ModelError::unsupported(keys.file, "GGUF pre-tokenizer", name, known.join(", "))
    })?;
    let key = "tokenizer.ggml.merges";
    let merges = match keys.value(key) {
        Some(Value::Texts(merges)) => merges,
        _ => return Err(ModelError::field(keys.file, key, "must be a list of texts")),
    };
    let merges = merges.iter().map(|merge| {
        let pair = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        pair.ok_or_else(|| ModelError::field(keys.file, key, format!("has `{merge:.100}`, which is no pair")))
    });
    let merges: Vec<(&str, &str)> = merges.collect::<Result<_, _>>()?;
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let patterns = split.patterns.iter().map(|pattern| {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
    });
    let steps: Vec<Json> = patterns.chain([bytes.clone()]).collect();
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": split.compose.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": vocabulary.template(keys, split.bos)?,
        "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": split.whole_words, "vocab": vocabulary.json(), "merges": merges,
        },
    }))
}

fn sentence_piece(keys: &Keys<'_>, vocabulary: &Vocabulary<'_>) -> Result<Json, ModelError> {
    let key = "tokenizer.ggml.scores";
    let scores = match keys.value(key) {
        Some(Value::Floats(scores)) if scores.len() == vocabulary.tokens.len() => scores,
        _ => {
            let reason = format!("must list {} scores", vocabulary.tokens.len());
            return Err(ModelError::field(keys.file, key, reason));
        }
    };
    if scores.iter().any(|score| !score.is_finite()) {
        return Err(ModelError::field(keys.file, key, "has a score that is not finite"));
    }
    let prefix = keys.flag("tokenizer.ggml.add_space_prefix", true)?;
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend = prefix.then(|| json!({"type": "Prepend", "prepend": "▁"}));
    let normalizers: Vec<Json> = prepend.into_iter().chain([space]).collect();
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = vocabulary.token(keys, "tokenizer.ggml.unknown_token_id")?.map(|(_, token)| token);
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": vocabulary.template(keys, true)?,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": vocabulary.kinds.contains(&BYTE),
            "ignore_merges": false, "vocab": vocabulary.json(), "merges": merges(vocabulary, scores),
        },
    }))
}

/// The merges that scores stand for: every way to cut a token into two tokens, best score first, then in
/// the order of the ids. (The order of the cuts of one token is without effect: where one of them
/// applies, the others do not.)
fn merges<'a>(vocabulary: &Vocabulary<'a>, scores: &[f64]) -> Vec<(&'a str, &'a str)> {
    let ids = vocabulary.ids();
    let whole: HashSet<&str> = vocabulary
        .tokens
        .iter()
        .zip(&vocabulary.kinds)
        .filter(|(_, kind)| **kind != NORMAL)
        .map(|(token, _)| token.as_str())
        .collect();
    let part = |text: &'a str| ids.get(text).copied().filter(|_| !whole.contains(text));
    let mut found = Vec::new();
    for (id, (token, &score)) in vocabulary.tokens.iter().zip(scores).enumerate() {
        if whole.contains(token.as_str()) || ids[token.as_str()] as usize != id {
            continue;
        }
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(left_id), Some(right_id)) = (part(left), part(right)) {
                found.push((score, (id, left_id, right_id), (left, right)));
            }
        }
    }
    // Scores are finite, and zero has no sign here.
    found.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then_with(|| a.1.cmp(&b.1)));
    found.into_iter().map(|(.., pair)| pair).collect()
}
