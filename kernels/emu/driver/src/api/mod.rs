//! The driver's functions, by subject.

mod context;
mod copy;
mod device;
mod graph;
mod launch;
mod memory;
mod module;
mod steer;
mod stream;
mod unsupported;
