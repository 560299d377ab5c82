//! Measurements of Dolphin. Every rate stands beside a share of a hardware limit or a ratio.
//!
//! [`cli`] leads to a suite ([`suites::serve`], [`suites::decode`], [`suites::transport`]) or to
//! [`checkpoint`], which writes random-weight models of true shapes. A suite gives a [`report`]; what it
//! is made of: [`stats`], [`machine`], [`limits`] (of the machine), [`meter`] (time per
//! operation of a backend), `rig` (a stage without its node), [`workload`] (prompts), [`client`] and
//! [`sse`] (one streamed reply).

#![forbid(unsafe_code)]

pub mod cards;
pub mod checkpoint;
pub mod cli;
pub mod client;
pub mod counted;
pub mod gguf;
pub mod helix;
pub mod limits;
pub mod llamacpp;
pub mod machine;
pub mod meter;
pub mod report;
mod rig;
pub mod sse;
pub mod stats;
pub mod suites;
mod swarm;
pub mod workload;
