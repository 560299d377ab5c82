//! From a model, a cluster and a demand to a plan.

use std::collections::HashMap;

use crate::{
    cluster::Cluster,
    cut::{Line, cut, filled},
    demand::{Demand, Limits, Objective},
    exhaust::best_set,
    limit::most_tokens_per_s,
    model::Model,
    partition::most_of_pipelines,
    plan::{Bound, Plan, PlanError, Proof, Stage},
    predict::{at_least_tpot, steady_together},
    problem::Problem,
    quickest::quickest,
    search::{Effort, best_lines, deal_sessions},
    shortage::reason,
};

/// The best plan for a demand.
pub fn plan(model: &Model, cluster: &Cluster, demand: &Demand) -> Result<Plan, PlanError> {
    plan_with(model, cluster, demand, Effort::default())
}

/// The best plan that so much effort finds.
pub fn plan_with(
    model: &Model,
    cluster: &Cluster,
    demand: &Demand,
    effort: Effort,
) -> Result<Plan, PlanError> {
    let problem = Problem::new(model, cluster, demand)?;
    match demand.objective {
        Objective::Latency => least_tpot(&problem, effort),
        Objective::Throughput(_) | Objective::Cost(_) => most_tokens(&problem, effort),
    }
}

/// Checks pipelines that somebody else has laid, with as many sessions as fit, and predicts what they do.
pub fn assess(
    model: &Model,
    cluster: &Cluster,
    demand: &Demand,
    pipelines: Vec<Vec<Stage>>,
) -> Result<Plan, PlanError> {
    let problem = Problem::new(model, cluster, demand)?;
    let asked = u64::from(demand.concurrency);
    let line = |(pipeline, stages): (usize, Vec<Stage>)| {
        let reason = "its nodes have not the memory, or it breaks the bounds on time".to_owned();
        filled(&problem, stages, asked).ok_or(PlanError::Invalid { pipeline, reason })
    };
    let lines = pipelines.into_iter().enumerate().map(line).collect::<Result<Vec<Line>, _>>()?;
    let limit = (most_tokens_per_s(&problem), Proof::Capacity);
    let bound = bound(&problem, &lines, limit, matches!(demand.objective, Objective::Cost(_)));
    let lines = lines.into_iter().map(|line| (line.stages, line.sessions, line.figures)).collect();
    Plan::new(&problem, lines, bound)
}

/// Checks routes that somebody else has laid and that may share nodes, each with its part of the requests, and
/// predicts what they do with as many sessions as fit.
pub fn assess_routes(
    model: &Model,
    cluster: &Cluster,
    demand: &Demand,
    routes: Vec<(Vec<Stage>, f64)>,
) -> Result<Plan, PlanError> {
    let problem = Problem::new(model, cluster, demand)?;
    let sessions = shared_sessions(&problem, &routes);
    if sessions < routes.len() as f64 {
        let reason = "their nodes have not the memory".to_owned();
        return Err(PlanError::Invalid { pipeline: 0, reason });
    }
    let figures = steady_together(&problem, &routes, sessions);
    let reached: f64 = figures.iter().map(|figures| figures.tokens_per_s).sum();
    let limit = most_tokens_per_s(&problem).max(reached);
    let bound = Bound { reached, limit, proof: Proof::Capacity };
    let whole = routes.into_iter().zip(figures);
    let routes = whole.map(|((stages, part), figures)| (stages, (sessions * part) as u64, figures)).collect();
    Plan::new(&problem, routes, bound)
}

/// Sessions over all routes for which every node has KV.
pub(crate) fn shared_sessions(problem: &Problem, routes: &[(Vec<Stage>, f64)]) -> f64 {
    let mut held: HashMap<usize, (std::ops::Range<usize>, f64, f64)> = HashMap::new();
    for (stage, part) in
        routes.iter().flat_map(|(stages, part)| stages.iter().map(move |stage| (stage, part)))
    {
        let kv = problem.session_bytes(&stage.layers) as f64 * part;
        let known = held.entry(stage.node).or_insert((stage.layers.clone(), 0.0, 0.0));
        known.0 = known.0.start.min(stage.layers.start)..known.0.end.max(stage.layers.end);
        known.1 += kv;
        known.2 += part;
    }
    let room = held.iter().map(|(&node, (layers, each, part))| {
        let kv = problem.kv_room(node, layers).unwrap_or(0) as f64 / each;
        kv.min(problem.max_sessions(node) as f64 / part)
    });
    room.fold(f64::from(problem.demand.concurrency), f64::min)
}

fn least_tpot(problem: &Problem, effort: Effort) -> Result<Plan, PlanError> {
    let sessions = u64::from(problem.demand.concurrency);
    let found = quickest(problem, sessions, effort.states).ok_or_else(|| reason(problem, sessions))?;
    let proven = found.limit >= found.seconds * (1.0 - 1e-9);
    let bound = Bound {
        reached: found.seconds,
        limit: found.limit,
        proof: if proven { Proof::Exhausted } else { Proof::SearchBound },
    };
    let figures = at_least_tpot(problem, &found.stages, sessions as f64);
    Plan::new(problem, vec![(found.stages, sessions, figures)], bound)
}

fn most_tokens(problem: &Problem, effort: Effort) -> Result<Plan, PlanError> {
    let cost = matches!(problem.demand.objective, Objective::Cost(_));
    let score = |rate: f64, price: f64| if cost && price > 0.0 { rate / price } else { rate };
    let (lines, proven) = match best_set(problem, score) {
        Some(lines) => (lines, true),
        None => (deal_sessions(problem, best_lines(problem, effort)), false),
    };
    if lines.is_empty() {
        return Err(too_slow(problem).unwrap_or_else(|| reason(problem, 1)));
    }
    let limit = if proven { (0.0, Proof::Exhausted) } else { limit(problem) };
    let bound = bound(problem, &lines, limit, cost);
    let lines = lines.into_iter().map(|line| (line.stages, line.sessions, line.figures)).collect();
    Plan::new(problem, lines, bound)
}

/// The bound of these pipelines, where no plan passes so many tokens per second, or they are known to be the best.
fn bound(problem: &Problem, lines: &[Line], (limit, proof): (f64, Proof), cost: bool) -> Bound {
    let nodes = problem.cluster.nodes();
    let rate: f64 = lines.iter().map(|line| line.figures.tokens_per_s).sum();
    let used = lines.iter().flat_map(|line| &line.stages).map(|stage| stage.node);
    let price: f64 = used.map(|node| nodes[node].price).sum();
    let limit = limit.max(rate);
    if !cost || price == 0.0 {
        return Bound { reached: rate, limit, proof };
    }
    // Price of a token: the cheapest node's hour over what all could do is below every plan's.
    let least = nodes.iter().map(|node| node.price).fold(f64::INFINITY, f64::min);
    let reached = price / 3600.0 / rate;
    let proven = proof == Proof::Exhausted;
    let limit = if proven { reached } else { (least / 3600.0 / limit).min(reached) };
    Bound { reached, limit, proof }
}

/// The lower of what all nodes can do together and what a partition of them can.
fn limit(problem: &Problem) -> (f64, Proof) {
    let capacity = most_tokens_per_s(problem);
    match most_of_pipelines(problem).filter(|partition| *partition < capacity) {
        Some(partition) => (partition, Proof::Partition),
        None => (capacity, Proof::Capacity),
    }
}

/// Whether a plan exists that only breaks the bounds on time, and what it would take.
fn too_slow(problem: &Problem) -> Option<PlanError> {
    let unbounded = match problem.demand.objective {
        Objective::Latency => return None,
        Objective::Throughput(_) => Objective::Throughput(Limits::default()),
        Objective::Cost(_) => Objective::Cost(Limits::default()),
    };
    let demand = Demand { objective: unbounded, ..problem.demand.clone() };
    let free = Problem::new(problem.model, problem.cluster, &demand).ok()?;
    let order: Vec<usize> = (0..problem.cluster.len()).collect();
    let found = quickest(&free, 1, 10_000)
        .map(|found| at_least_tpot(&free, &found.stages, 1.0))
        .or_else(|| cut(&free, &order, 1).map(|line| line.figures))?;
    (problem.demand.limits() != Limits::default())
        .then_some(PlanError::TooSlow { tpot_s: found.tpot_s, ttft_s: found.ttft_s })
}
