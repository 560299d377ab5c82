//! Who holds which layers, and which nodes form a pipeline. Pure and deterministic: no I/O, no clock.
//!
//! A [`Model`] is a line of layers between an embedding and a head, a [`Cluster`] is nodes and the links
//! between them, a [`Demand`] says which requests come and what is to be best. [`plan()`] answers with a
//! [`Plan`]: who holds what, pipelines with their part of the requests, what is predicted of them, and how far
//! from the best that can be.
//!
//! For a swarm at work there are small decisions: [`split`] cuts a model over nodes in order, [`vacancy`]
//! says what one more node should hold, and [`cover`] finds a pipeline among nodes that hold ranges.

#![forbid(unsafe_code)]

mod branches;
pub mod cluster;
mod cover;
pub mod curve;
mod cut;
pub mod demand;
mod draw;
mod estimate;
mod exhaust;
pub mod fleet;
mod limit;
pub mod model;
mod overlap;
pub mod plan;
mod predict;
mod problem;
mod quickest;
pub mod rehearse;
pub mod replan;
mod report;
mod search;
mod shortage;
pub mod simulate;
mod solve;
mod split;
#[cfg(test)]
mod tests;
pub mod trace;

pub use cluster::{Cluster, ClusterFile, Node};
pub use cover::{Gap, Leg, Span, cover};
pub use curve::Curve;
pub use demand::{Demand, Objective};
pub use model::{Model, Weights};
pub use plan::{Plan, PlanError};
pub use rehearse::plan_rehearsed;
pub use replan::replan;
pub use report::Report;
pub use search::Effort;
pub use solve::{assess, assess_routes, plan, plan_with};
pub use split::{Costs, SplitError, split, vacancy};
