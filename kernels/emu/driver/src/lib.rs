//! A stand-in for the NVIDIA driver over the PTX machine, so that the real host code runs without a card.
//!
//! The shared library of this package answers to the names of `libcuda.so.1`. Tests load it into their process
//! with [`StandIn::fresh`] before the host code asks for the driver. Other programs find it with [`folder`] at the head
//! of `LD_LIBRARY_PATH`, or with any folder in which `libcuda.so` and `libcuda.so.1` are links to
//! `target/debug/deps/libstand_in_driver.so`. [`StandIn`] also sets faults and asks what is left alive; the variable
//! `DOLPHIN_STANDIN` sets them from outside; [`mod@settings`] has the list.
//!
//! It is as strict as a driver may be. Work on a stream waits until something synchronises with it, the
//! contents of fresh memory are loud, streams are ordered by events alone, and what is not supported
//! says so and never succeeds.
//!
//! ```no_run
//! let stand_in = stand_in_driver::StandIn::fresh("cards=8.9; memory=64m");
//! // .. whatever asks for the driver now finds this one ..
//! stand_in.set("fault-at=3");
//! assert_eq!(stand_in.alive(), stand_in_driver::Alive::default());
//! ```
//!
//! - `boundary`: what C sees; `api`: the functions by subject
//! - `state`: everything that lives; `stream`: queues and their order; `capture`: recording them into graphs
//! - `work`: what stands in a queue, and doing it; `ptx`: what a module declares
//! - `card`: the cards; [`mod@settings`]: what they are and when they fail; [`control`]: for tests, from outside

pub mod control;
pub mod settings;

mod api;
mod boundary;
mod capture;
mod card;
mod code;
mod ptx;
mod state;
mod stream;
mod work;

pub use control::{Alive, StandIn, Tally, folder};
