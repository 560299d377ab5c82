//! What the engine promises, tested from outside: parity with transformers, the same bytes however a
//! model is cut and batched, and a swarm that serves over real links.

mod bits;
mod kquants;
mod parity;
mod process;
mod support;
mod swarm;
