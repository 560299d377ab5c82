//! `libcuda.so.1` over the PTX machine, so that host code runs without a card.
