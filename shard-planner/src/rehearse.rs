//! Plans chosen by what they do under a trace, where the closed form is too coarse: with long prompts on slow
//! links, or an engine that forms its batches in another way.

use crate::{
    branches::Routes,
    cluster::Cluster,
    demand::{Demand, Objective},
    limit::most_tokens_per_s,
    model::Model,
    plan::{Bound, Plan, PlanError, Proof, Stage, weighted},
    predict::steady_together,
    problem::Problem,
    search::{Effort, kinds},
    shortage::reason,
    simulate::{Engine, Window, rehearse},
    solve::plan_with,
    trace::Arrival,
};

/// What plans are tried under.
#[derive(Clone, Copy, Debug)]
pub struct Rehearsal<'a> {
    /// How the engine works.
    pub engine: Engine,
    /// Requests.
    pub arrivals: &'a [Arrival],
    /// What is measured.
    pub window: Window,
}

/// Parts of the sessions that KV has room for that are tried: where a link is full, fewer wait less.
const PARTS: [f64; 2] = [0.7, 0.4];
/// Plans of each kind that are tried, the best by prediction.
const TRIED: usize = 3;

/// The plan of most tokens per second in rehearsal, among the best of different kinds. For the least time per
/// token or the least price, the plan that [`plan_with`] finds.
pub fn plan_rehearsed(
    model: &Model,
    cluster: &Cluster,
    demand: &Demand,
    effort: Effort,
    rehearsal: Rehearsal,
) -> Result<Plan, PlanError> {
    let Objective::Throughput(_) = demand.objective else { return plan_with(model, cluster, demand, effort) };
    let problem = Problem::new(model, cluster, demand)?;
    let run = |routes: &Routes| {
        let pipelines = weighted(routes.clone());
        rehearse(&problem, &pipelines, rehearsal.engine, rehearsal.arrivals, rehearsal.window).tokens_per_s
    };
    let rate = |routes: &Routes| routes.iter().map(|(.., figures)| figures.tokens_per_s).sum::<f64>();
    let mut tried: Vec<(f64, Routes)> = Vec::new();
    for mut kind in kinds(&problem, effort) {
        kind.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
        kind.truncate(TRIED);
        tried.extend(kind.into_iter().map(|routes| (run(&routes), routes)));
    }
    tried.sort_by(|a, b| b.0.total_cmp(&a.0));
    if let Some((_, best)) = tried.first().cloned() {
        let fewer = PARTS.map(|part| with_part(&problem, &best, part));
        tried.extend(fewer.into_iter().map(|routes| (run(&routes), routes)));
    }
    let best = tried.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
    let (_, routes) = best.ok_or_else(|| reason(&problem, 1))?;
    let reached: f64 = routes.iter().map(|(.., figures)| figures.tokens_per_s).sum();
    let limit = most_tokens_per_s(&problem).max(reached);
    Plan::new(&problem, routes, Bound { reached, limit, proof: Proof::Capacity })
}

/// The same routes with only a part of their sessions.
fn with_part(problem: &Problem, routes: &Routes, part: f64) -> Routes {
    let sessions: Vec<u64> = routes.iter().map(|route| ((route.1 as f64 * part) as u64).max(1)).collect();
    let all: u64 = sessions.iter().sum();
    let shared: Vec<(Vec<Stage>, f64)> = routes
        .iter()
        .zip(&sessions)
        .map(|((stages, ..), sessions)| (stages.clone(), *sessions as f64 / all as f64))
        .collect();
    let figures = steady_together(problem, &shared, all as f64);
    let whole = shared.into_iter().zip(sessions).zip(figures);
    whole.map(|(((stages, _), sessions), figures)| (stages, sessions, figures)).collect()
}
