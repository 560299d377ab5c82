//! The CUDA kernels against the scalar reference, bit for bit: the committed PTX runs in the PTX machine, for every
//! compute capability it was compiled for, in several orders of blocks and warps, under its race detector.

mod attention;
mod card;
mod copy;
mod draw;
mod embed;
mod heads;
mod kv;
mod linear;
mod linear_after;
mod linear_rig;
mod mistakes;
mod norm;
#[path = "../exact/rng.rs"]
mod rng;
mod rows;
