//! The OpenAI-style HTTP endpoint.
