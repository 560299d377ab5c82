//! What the fuzz targets reach of the gateway; compiled for them alone.

use super::error::ApiError;
use super::params::{Bounds, ChatCall, CompletionCall, SamplingDefaults, parse_object};
use super::templates::ChatTemplate;

const BOUNDS: Bounds = Bounds {
    vocabulary: 512,
    max_choices: 8,
    defaults: SamplingDefaults { temperature: 1.0, top_p: 1.0, top_k: 0 },
};

/// Reads the body of a request to `/v1/chat/completions`.
///
/// # Errors
/// [`ApiError`], with the caller at fault.
pub fn parse_chat(body: &[u8]) -> Result<(), ApiError> {
    ChatCall::parse(&parse_object(body)?, &BOUNDS).map(drop)
}

/// Reads the body of a request to `/v1/completions`.
///
/// # Errors
/// [`ApiError`], with the caller at fault.
pub fn parse_completion(body: &[u8]) -> Result<(), ApiError> {
    CompletionCall::parse(&parse_object(body)?, &BOUNDS).map(drop)
}

/// Renders the body of a chat request.
///
/// # Errors
/// [`ApiError`] of the body or of the template.
pub fn render(template: &ChatTemplate, body: &[u8]) -> Result<String, ApiError> {
    Ok(template.render(&ChatCall::parse(&parse_object(body)?, &BOUNDS)?)?)
}
