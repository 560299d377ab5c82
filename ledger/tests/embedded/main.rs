//! The embedded chain from outside: over HTTP, beside anvil, killed, and computing floats.

mod anvil;
mod arithmetic;
mod contracts;
mod crash;
mod exact;
mod http;
mod leaves;
mod machine;
mod support;
