//! Why nothing fits, in numbers.

use crate::{cluster::Cluster, demand::Demand, model::Model, plan::PlanError, problem::Problem};

/// The reason why no pipeline was found, with what would fit if memory is short.
pub(crate) fn reason(problem: &Problem, sessions: u64) -> PlanError {
    if let Some(error) = layer_that_fits_nowhere(problem, sessions) {
        return error;
    }
    let held = held(problem, sessions);
    if held < problem.layers() {
        let missing = missing_bytes(problem, sessions, held);
        let advice = advice(problem, sessions);
        let layers = problem.layers();
        return PlanError::TooLarge { held, layers, sessions, missing, advice };
    }
    let count = problem.cluster.len();
    let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
    match pairs.into_iter().find(|&(from, to)| from != to && !problem.cluster.hop(from, to).is_up()) {
        Some((from, to)) => {
            let name = |node: usize| problem.cluster.nodes()[node].id.clone();
            PlanError::Disconnected { from: name(from), to: name(to) }
        }
        // Whole layers do not pack: the ends or unequal layers leave gaps.
        None => PlanError::TooLarge {
            held: problem.layers() - 1,
            layers: problem.layers(),
            sessions,
            missing: missing_bytes(problem, sessions, problem.layers() - 1),
            advice: advice(problem, sessions),
        },
    }
}

fn layer_that_fits_nowhere(problem: &Problem, sessions: u64) -> Option<PlanError> {
    let nodes = problem.cluster.nodes();
    let largest = nodes.iter().max_by_key(|node| node.memory)?;
    let needed = |layer: usize| {
        let range = layer..layer + 1;
        problem.bytes(&range).saturating_add(problem.session_bytes(&range).saturating_mul(sessions))
    };
    let layer = (0..problem.layers()).find(|&layer| needed(layer) > largest.memory)?;
    let (node, memory) = (largest.id.clone(), largest.memory);
    Some(PlanError::LayerFitsNowhere { layer, needed: needed(layer), node, memory })
}

/// Layers that the nodes hold, each as many as it can; ends are set against the largest nodes.
fn held(problem: &Problem, sessions: u64) -> usize {
    let most = |node: usize| {
        (0..problem.layers())
            .map(|from| {
                problem.reach(from, problem.layers(), |range| problem.fits(node, range, sessions)) - from
            })
            .max()
            .unwrap_or(0)
    };
    (0..problem.cluster.len()).map(most).sum::<usize>().min(problem.layers())
}

fn missing_bytes(problem: &Problem, sessions: u64, held: usize) -> u64 {
    let rest = held.min(problem.layers() - 1)..problem.layers();
    problem.bytes(&rest).saturating_add(problem.session_bytes(&rest).saturating_mul(sessions))
}

/// What would fit: another format, or fewer and shorter sessions.
fn advice(problem: &Problem, sessions: u64) -> String {
    let (model, cluster, demand) = (problem.model, problem.cluster, problem.demand);
    let smaller = model.weights.iter().filter(|weights| weights.total() < problem.weights.total());
    let mut formats: Vec<_> = smaller.collect();
    formats.sort_by_key(|weights| std::cmp::Reverse(weights.total()));
    let format = formats.iter().find(|weights| {
        let other = Demand { format: weights.format.clone(), ..demand.clone() };
        all_held(model, cluster, &other, sessions)
    });
    if let Some(weights) = format {
        return format!("{} would fit", weights.format);
    }
    let fewer = (0..63)
        .map(|power| sessions >> power)
        .find(|&fewer| fewer > 0 && all_held(model, cluster, demand, fewer));
    if let Some(fewer) = fewer {
        return format!("{fewer} sessions of {} positions would fit", demand.context);
    }
    let shorter = (0..31)
        .map(|power| demand.context >> power)
        .find(|&context| context > 0 && all_held(model, cluster, &Demand { context, ..demand.clone() }, 1));
    match shorter {
        Some(context) => format!("one session of {context} positions would fit"),
        None => format!(
            "the weights alone are {} bytes at {}, the nodes' memory is {}",
            problem.weights.total(),
            demand.format,
            cluster.nodes().iter().fold(0u64, |sum, node| sum.saturating_add(node.memory)),
        ),
    }
}

fn all_held(model: &Model, cluster: &Cluster, demand: &Demand, sessions: u64) -> bool {
    Problem::new(model, cluster, demand).is_ok_and(|problem| held(&problem, sessions) == problem.layers())
}
