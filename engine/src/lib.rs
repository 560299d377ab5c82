//! Dolphin: a language model cut into stages over many machines, behind an OpenAI-style endpoint.
//!
//! In the order of the flow: a [`gateway`] turns HTTP into a [`request`], tokenised by
//! [`tokenizer`]; the [`swarm`] finds a route over [`node`]s for it; the first stage's [`scheduler`] makes
//! steps of the sessions' rows; each [`stage`] runs its layers of a [`model`]; the last one's [`sampler`]
//! draws the tokens, and [`speculation`] guesses some of them ahead. [`message`] is what they say to one
//! another, [`peers`] the links it travels on, [`device`] what stages compute on. [`audit`] proves what was
//! computed, [`payment`] is how nodes are paid for it, [`weights`] how they come by the model. [`profile`] tells `shard_planner` how fast this machine is.

#![forbid(unsafe_code)]

pub mod audit;
pub mod device;
pub mod doctor;
pub mod front;
pub mod gateway;
pub mod inspect;
pub mod local;
pub mod message;
pub mod model;
pub mod node;
pub mod payment;
pub mod peers;
pub mod profile;
pub mod pull;
pub mod request;
pub mod sampler;
pub mod scheduler;
pub mod speculation;
pub mod stage;
pub mod swarm;
pub mod tokenizer;
pub mod weights;
