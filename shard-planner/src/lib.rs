//! Who holds which layers, and which nodes form a pipeline. Pure and deterministic: no I/O, no clock.
//!
//! A [`Model`] is a line of layers between an embedding and a head, a [`Cluster`] is nodes and the links
//! between them, a [`Demand`] says which requests come and what is to be best. [`plan()`] answers with a
//! [`Plan`]: who holds what, pipelines with their part of the requests, what is predicted of them, and how far
//! from the best that can be.
//!
//! For a swarm at work, [`arrange()`] says what each node should serve next, [`routes()`] which pipelines its
//! placement makes and [`flow()`] how much it lets through. There are smaller questions: [`plan_line`] cuts a model over nodes in order, [`vacancy`]
//! says what one more node should hold, and [`cover`] finds a pipeline among nodes that hold ranges.

#![forbid(unsafe_code)]

mod arrange;
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
mod flow;
mod limit;
mod line;
pub mod model;
mod overlap;
mod partition;
pub mod plan;
mod predict;
mod priced;
mod problem;
mod quickest;
pub mod rehearse;
pub mod replan;
pub mod report;
mod search;
mod shortage;
pub mod simulate;
mod solve;
#[cfg(test)]
mod tests;
pub mod trace;
mod vacancy;

pub use arrange::{Arrangement, Load, arrange, routes};
pub use cluster::{Cluster, ClusterFile, Node};
pub use cover::{Gap, Leg, Span, cover};
pub use curve::Curve;
pub use demand::{Demand, Objective};
pub use flow::{Flow, flow};
pub use line::plan_line;
pub use model::{Model, Weights};
pub use plan::{Plan, PlanError};
pub use rehearse::plan_rehearsed;
pub use replan::replan;
pub use report::Report;
pub use search::Effort;
pub use shortage::KvShortage;
pub use solve::{assess, assess_routes, plan, plan_with};
pub use vacancy::vacancy;
