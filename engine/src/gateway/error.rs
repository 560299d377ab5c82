//! Every way a request can fail, who is at fault, and its OpenAI-shaped rendering.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use thiserror::Error;

use super::templates::TemplateError;
use crate::request::{Failure, Refusal};

/// Why a request over HTTP failed.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ApiError {
    /// Caller: no key, or one that is not accepted.
    #[error("Incorrect API key provided. Send an accepted key as 'Authorization: Bearer KEY'.")]
    InvalidApiKey,
    /// Caller: the body is not a JSON object.
    #[error("We could not parse the JSON body of your request: {detail}")]
    InvalidJson {
        /// What the parser met.
        detail: String,
    },
    /// Caller: a required parameter is absent.
    #[error("Missing required parameter: '{param}'.")]
    MissingParameter {
        /// Its name.
        param: &'static str,
    },
    /// Caller: a parameter has the wrong JSON type.
    #[error("Invalid type for '{param}': expected {expected}, but got {found} instead.")]
    InvalidType {
        /// Its path, such as `messages[0].content`.
        param: String,
        /// The types it may have.
        expected: &'static str,
        /// The type it has.
        found: &'static str,
    },
    /// Caller: a parameter is out of its range.
    #[error("Invalid value for '{param}': {reason}.")]
    InvalidValue {
        /// Its path.
        param: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Caller: a parameter that would change the reply and that this gateway does not have.
    #[error("Unsupported value for '{param}': {reason}.")]
    UnsupportedValue {
        /// Its path.
        param: String,
        /// What is not supported.
        reason: String,
    },
    /// Caller: no such model here.
    #[error("The model '{model}' does not exist or you do not have access to it.")]
    ModelNotFound {
        /// The name asked for, shortened.
        model: String,
    },
    /// Caller: the prompt leaves no room for a reply.
    #[error(
        "This model's maximum context length is {limit} tokens, but the prompt and the shortest reply take {requested}. Please shorten '{param}'."
    )]
    ContextLength {
        /// Parameter that carries the prompt.
        param: &'static str,
        /// Tokens of the prompt and one of the reply.
        requested: u64,
        /// Tokens a session may have.
        limit: u64,
    },
    /// Caller: the body is too large.
    #[error("The request body is larger than {limit_bytes} bytes.")]
    BodyTooLarge {
        /// Largest body accepted.
        limit_bytes: usize,
    },
    /// Caller: the body came too slowly or broke off.
    #[error("The request body did not arrive in time.")]
    BodyTimeout,
    /// Caller: no such receipt, not the caller's, or not signed yet.
    #[error("There is no receipt '{id}', or it is not complete yet.")]
    NoReceipt {
        /// The name, shortened.
        id: String,
    },
    /// Caller: unknown path.
    #[error("Unknown request URL: {method} {path}. Please check the URL for typos.")]
    UnknownUrl {
        /// Method of the request.
        method: String,
        /// Path of the request, shortened.
        path: String,
    },
    /// Caller: the path exists, the method does not.
    #[error("Not allowed to {method} on {path}.")]
    MethodNotAllowed {
        /// Method of the request.
        method: String,
        /// Path of the request.
        path: String,
    },
    /// Caller, or the model's template: the messages do not render.
    #[error("The chat template did not accept the messages: {0}")]
    Template(#[from] TemplateError),
    /// Gateway: every slot is taken.
    #[error("Every slot is taken. Please try again later.")]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// Gateway: nobody serves the model.
    #[error("No pipeline serves the model at the moment: {missing}.")]
    NoPipeline {
        /// What is missing.
        missing: String,
    },
    /// Gateway: its account cannot pay for the request.
    #[error("There is not enough money: {reason}.")]
    OutOfFunds {
        /// What is missing, and what to do.
        reason: String,
    },
    /// Gateway or node: the nodes that serve the model cannot be paid.
    #[error("The nodes that serve the model cannot be paid: {reason}.")]
    Unpayable {
        /// Why not.
        reason: String,
    },
    /// Gateway: it is stopping.
    #[error("The gateway is shutting down.")]
    ShuttingDown,
    /// Gateway: the request took longer than it may.
    #[error("The request took longer than its deadline.")]
    Deadline,
    /// Node: the pipeline broke under the reply.
    #[error("The pipeline failed: {reason}.")]
    Pipeline {
        /// What the pipeline reported.
        reason: String,
    },
    /// Gateway: a defect or a refusal of the operating system.
    #[error("The gateway failed: {reason}.")]
    Internal {
        /// What went wrong.
        reason: &'static str,
    },
}

impl ApiError {
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::InvalidApiKey => StatusCode::UNAUTHORIZED,
            Self::ModelNotFound { .. } | Self::NoReceipt { .. } | Self::UnknownUrl { .. } => {
                StatusCode::NOT_FOUND
            }
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::OutOfFunds { .. } => StatusCode::PAYMENT_REQUIRED,
            Self::NoPipeline { .. } | Self::Unpayable { .. } | Self::ShuttingDown => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Self::Pipeline { .. } => StatusCode::BAD_GATEWAY,
            Self::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Busy { .. } => "rate_limit_error",
            Self::OutOfFunds { .. } => "insufficient_quota",
            error if error.status().is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The machine-readable reason, also a label of the metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidApiKey => "invalid_api_key",
            Self::InvalidJson { .. } => "invalid_json",
            Self::MissingParameter { .. } => "missing_required_parameter",
            Self::InvalidType { .. } => "invalid_type",
            Self::InvalidValue { .. } => "invalid_value",
            Self::UnsupportedValue { .. } => "unsupported_value",
            Self::ModelNotFound { .. } => "model_not_found",
            Self::NoReceipt { .. } => "receipt_not_found",
            Self::ContextLength { .. } => "context_length_exceeded",
            Self::BodyTooLarge { .. } => "request_too_large",
            Self::BodyTimeout => "request_timeout",
            Self::UnknownUrl { .. } => "unknown_url",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::Template(_) => "invalid_messages",
            Self::Busy { .. } => "rate_limit_exceeded",
            Self::NoPipeline { .. } => "no_pipeline",
            Self::OutOfFunds { .. } => "insufficient_funds",
            Self::Unpayable { .. } => "cannot_pay",
            Self::ShuttingDown => "shutting_down",
            Self::Deadline => "deadline_exceeded",
            Self::Pipeline { .. } => "pipeline_failed",
            Self::Internal { .. } => "internal_error",
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::InvalidType { param, .. }
            | Self::InvalidValue { param, .. }
            | Self::UnsupportedValue { param, .. } => Some(param),
            Self::MissingParameter { param } | Self::ContextLength { param, .. } => Some(param),
            Self::ModelNotFound { .. } => Some("model"),
            Self::Template(_) => Some("messages"),
            _ => None,
        }
    }

    /// The body of the answer, and of the last event of a stream that failed.
    pub fn body(&self) -> Value {
        json!({ "error": {
            "message": self.to_string(),
            "type": self.kind(),
            "param": self.param(),
            "code": self.code(),
        }})
    }

    /// What a refusal means for the caller whose prompt came in `param`.
    pub(super) fn refused(refusal: Refusal, param: &'static str) -> Self {
        match refusal {
            Refusal::Busy { retry_after } => Self::Busy { retry_after },
            Refusal::NoPipeline { missing } => Self::NoPipeline { missing },
            Refusal::TooLong { requested, limit } => {
                Self::ContextLength { param, requested: requested.into(), limit: limit.into() }
            }
            Refusal::Unsupported { parameter, reason } => {
                Self::UnsupportedValue { param: parameter.to_owned(), reason: reason.to_owned() }
            }
            Refusal::NoMoney(reason) => Self::OutOfFunds { reason },
            Refusal::Unpayable(reason) => Self::Unpayable { reason },
            Refusal::Credit { prompt, limit } => Self::ContextLength { param, requested: prompt, limit },
            Refusal::Shutdown => Self::ShuttingDown,
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Deadline => Self::Deadline,
            Failure::Shutdown => Self::ShuttingDown,
            failure @ (Failure::NodeLost { .. }
            | Failure::Fault { .. }
            | Failure::Unpaid { .. }
            | Failure::Contradicted { .. }
            | Failure::Refused { .. }) => Self::Pipeline { reason: failure.to_string() },
        }
    }
}

/// Lets the middleware count refusals and failures by code.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorCode(pub(super) &'static str);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        match &self {
            Self::Busy { retry_after } => {
                let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
                headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
            }
            Self::NoPipeline { .. } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(5_u64));
            }
            Self::InvalidApiKey => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response.extensions_mut().insert(ErrorCode(self.code()));
        response
    }
}

/// The name OpenAI's messages use for the type of a JSON value.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The first characters of text from the caller, so that it can stand in a message.
pub(super) fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 100;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
