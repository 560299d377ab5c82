//! The gateway over real loopback HTTP, with a scripted pipeline behind it.

mod chat;
mod clients;
mod completions;
mod errors;
mod server;
mod support;
