//! What the body of a request comes to in tokens, without serving it.

use super::error::ApiError;
use super::params::{Bounds, ChatCall, CompletionCall, Prompt, SamplingDefaults, parse_object};
use super::templates::ChatTemplate;
use crate::tokenizer::{Tokenizer, TokenizerError};

/// The prompts of a body to `/v1/chat/completions` or `/v1/completions`, as token ids.
///
/// # Errors
/// [`ApiError`], as the endpoint would answer.
pub fn prompts_of(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    body: &[u8],
) -> Result<Vec<Vec<u32>>, ApiError> {
    let body = parse_object(body)?;
    let vocabulary = u32::try_from(tokenizer.size()).unwrap_or(u32::MAX);
    let bounds = Bounds { vocabulary, max_choices: u32::MAX, defaults: SamplingDefaults::default() };
    if body.contains_key("messages") {
        let text = template.render(&ChatCall::parse(&body, &bounds)?)?;
        return Ok(vec![encode(tokenizer, &text, false, "messages")?]);
    }
    let prompt = |prompt: Prompt| match prompt {
        Prompt::Text(text) => encode(tokenizer, &text, true, "prompt"),
        Prompt::Tokens(tokens) => Ok(tokens),
    };
    CompletionCall::parse(&body, &bounds)?.prompts.into_iter().map(prompt).collect()
}

pub(super) fn encode(
    tokenizer: &Tokenizer,
    text: &str,
    add_special: bool,
    param: &str,
) -> Result<Vec<u32>, ApiError> {
    tokenizer.encode(text, add_special).map_err(|error| match error {
        TokenizerError::TooLong { .. } => {
            ApiError::InvalidValue { param: param.to_owned(), reason: error.to_string() }
        }
        _ => ApiError::Internal { reason: "the tokenizer could not encode the prompt" },
    })
}
