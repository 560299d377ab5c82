//! A machine that runs PTX on the CPU, warp by warp, and watches it: bounds, races, divergence.
//!
//! It stands in for an NVIDIA card where there is none: [`Module::parse`] reads what the compiler made, [`Memory`] is
//! the card's, and [`run`] executes a launch to its end, to the bit as a card would, or says in a [`Trap`] what is
//! wrong with it. What a card would let pass by luck is an error here.

#![deny(unsafe_code)]

mod counts;
mod decode;
mod function;
mod launch;
mod lex;
mod machine;
mod memory;
mod module;
mod operand;
mod program;
mod trap;

pub use counts::{Banks, Counts, Tally, Traffic};
pub use launch::{Copies, Launch, Options, Order, run, run_blocks};
pub use memory::{Memory, MemoryError};
pub use module::{Module, ParseError};
pub use trap::{Fault, Place, Trap};
