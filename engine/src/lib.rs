//! Dolphin: a language model cut into stages over many machines, behind an OpenAI-style endpoint.
//!
//! In the order of the flow: a [`gateway`] turns HTTP into a [`request`], tokenised by
//! [`tokenizer`]; each stage holds a layer range of a [`model`].

#![forbid(unsafe_code)]

pub mod gateway;
pub mod model;
pub mod request;
pub mod tokenizer;
