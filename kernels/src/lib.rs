//! Exact arithmetic (`exact/1`): the operations a transformer stage is made of, each defined to
//! the bit by `docs/numerics.md`.
//!
//! Read in this order: [`tensor`] (stored formats), [`round`] (their roundings), [`rope`] (rotary
//! tables), [`backend`] (the seam: what an engine may ask of a device), [`mod@reference`] (the scalar
//! definition), [`cpu`] (the same bytes, fast), [`cuda`] (the same bytes, on NVIDIA cards).

pub mod backend;
pub mod cpu;
pub mod cuda;
pub mod reference;
pub mod rope;
pub mod round;
pub mod tensor;
