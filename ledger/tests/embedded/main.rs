//! The embedded chain from outside: over HTTP, beside anvil, and killed.

mod anvil;
mod contracts;
mod crash;
mod http;
mod support;
