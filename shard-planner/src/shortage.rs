//! Why nothing fits, in numbers.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    cluster::Cluster,
    demand::Demand,
    model::Model,
    plan::{Plan, PlanError, Stage},
    problem::Problem,
};

/// A plan has KV for fewer sessions than were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvShortage {
    /// Sessions that there is KV for.
    pub sessions: u64,
    /// Sessions asked for.
    pub wanted: u64,
    /// Positions of each.
    pub positions: u32,
    /// Bytes that are missing for the others, over all nodes.
    pub missing: u64,
    /// The node that lacks most.
    pub node: String,
    /// Bytes that it lacks.
    pub node_missing: u64,
    /// Positions of each session with which as many as were asked for would fit.
    pub fitting: u32,
}

impl KvShortage {
    /// What a plan lacks for all sessions of its demand, dealt to its pipelines by their parts.
    pub(crate) fn of(problem: &Problem, plan: &Plan) -> Option<Self> {
        let wanted = u64::from(problem.demand.concurrency);
        let mut needed: BTreeMap<usize, f64> = BTreeMap::new();
        for pipeline in &plan.pipelines {
            for stage in &pipeline.stages {
                let kv = problem.session_bytes(&stage.layers) as f64 * pipeline.weight * wanted as f64;
                *needed.entry(stage.node).or_insert(0.0) += kv;
            }
        }
        let room = |stage: &Stage| problem.kv_room(stage.node, &stage.layers).unwrap_or(0) as f64;
        let lacking = plan.held.iter().map(|stage| {
            let needed = needed.get(&stage.node).copied().unwrap_or(0.0);
            ((needed - room(stage)).max(0.0), room(stage) / needed, stage.node)
        });
        let lacking: Vec<(f64, f64, usize)> = lacking.collect();
        let missing = lacking.iter().map(|(bytes, ..)| bytes).sum::<f64>();
        let &(most, _, node) = lacking.iter().max_by(|a, b| a.0.total_cmp(&b.0))?;
        let part = lacking.iter().map(|(_, part, _)| *part).fold(1.0, f64::min);
        let sessions = plan.pipelines.iter().map(|pipeline| pipeline.sessions).sum::<u64>();
        // Parts of a session are rounded down in every pipeline.
        let whole = sessions + plan.pipelines.len() as u64 > wanted;
        (missing >= 1.0 && !whole).then(|| Self {
            sessions,
            wanted,
            positions: problem.demand.context,
            missing: missing as u64,
            node: problem.cluster.nodes()[node].id.clone(),
            node_missing: most as u64,
            fitting: (part * f64::from(problem.demand.context)) as u32,
        })
    }
}

impl fmt::Display for KvShortage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sessions, wanted, positions, missing, node, node_missing, fitting } = self;
        write!(
            out,
            "KV for {sessions} of {wanted} sessions of {positions} positions: {missing} bytes are missing, {node_missing} of \
             them on {node}; {wanted} sessions of {fitting} positions would fit"
        )
    }
}

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
    let kv = |layer: usize| problem.session_bytes(&(layer..layer + 1)).saturating_mul(sessions);
    let own = nodes.iter().map(|node| node.kv_memory.map(|room| (room, node)));
    let roomiest =
        own.collect::<Option<Vec<_>>>().and_then(|own| own.into_iter().max_by_key(|(room, _)| *room));
    if let Some((room, node)) = roomiest
        && let Some(needed) = (0..problem.layers()).map(kv).find(|needed| *needed > room)
    {
        return Some(PlanError::NoKv { sessions, needed, node: node.id.clone(), room });
    }
    let largest = nodes.iter().max_by_key(|node| node.all_memory())?;
    let needed = |layer: usize| {
        let range = layer..layer + 1;
        problem.bytes(&range).saturating_add(kv(layer))
    };
    let layer = (0..problem.layers()).find(|&layer| needed(layer) > largest.all_memory())?;
    let (node, memory) = (largest.id.clone(), largest.all_memory());
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
            cluster.nodes().iter().fold(0u64, |sum, node| sum.saturating_add(node.all_memory())),
        ),
    }
}

fn all_held(model: &Model, cluster: &Cluster, demand: &Demand, sessions: u64) -> bool {
    Problem::new(model, cluster, demand).is_ok_and(|problem| held(&problem, sessions) == problem.layers())
}
