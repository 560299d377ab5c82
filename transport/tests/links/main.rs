//! One conformance suite for every transport, then what is particular to each.

mod conformance;
mod over_quic;
mod over_sim;
mod world;
