//! The OpenAI-style HTTP endpoint: from a request's JSON to token ids, and from tokens back to
//! the bytes a client of OpenAI's API expects.
//!
//! In the order of the flow: `server` accepts connections, `routes` leads to a handler,
//! `params` reads the JSON, `templates` renders messages, `generate` submits to the
//! pipeline, `replies` merges what comes back, `reply` and `stops` turn it to text, and
//! `openai` and `stream` shape the response.

mod cluster;
mod config;
mod error;
mod fields;
#[cfg(fuzzing)]
pub mod fuzzing;
mod generate;
mod messages;
mod metrics;
mod openai;
mod params;
mod patience;
mod prompts;
mod replies;
mod reply;
mod routes;
mod server;
mod stops;
mod stream;
mod templates;
#[cfg(test)]
mod tests;

pub use config::{GatewayConfig, ServedModel};
pub use error::ApiError;
pub use metrics::Metrics;
pub use params::SamplingDefaults;
pub use prompts::prompts_of;
pub use server::{Gateway, PipelineStatus, ServeError, serve};
pub use templates::{ChatTemplate, TemplateError};
