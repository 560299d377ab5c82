//! A machine that runs PTX on the CPU, warp by warp, and watches it: bounds, races, divergence.

#![forbid(unsafe_code)]
