//! `dolphin`: the command line.

fn main() {}
