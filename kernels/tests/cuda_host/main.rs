//! The backend for NVIDIA cards on the stand-in driver: the real host code, the committed PTX, no card.

#[path = "../exact/case.rs"]
mod case;
mod layers;
mod passes;
mod probing;
#[path = "../exact/rng.rs"]
mod rng;
#[path = "../exact/trace.rs"]
mod trace;
