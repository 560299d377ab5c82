//! Many models on one large cluster: each demand gets nodes of its own, near each other.

use crate::{
    cluster::Cluster,
    demand::Demand,
    model::Model,
    plan::{Plan, PlanError},
    problem::Problem,
    search::{Effort, tour},
    solve::plan_with,
};

/// The nodes of one demand and the plan over them, whose indices are into `nodes`.
#[derive(Clone, Debug)]
pub struct Allotment {
    /// Its nodes, by their index in the cluster.
    pub nodes: Vec<usize>,
    /// The plan.
    pub plan: Plan,
}

/// Effort for each demand: their number is what costs.
const EFFORT: Effort = Effort { states: 2000, moves: 100 };
/// Nodes that a demand may get beside its share before it is given up.
const EXTRA: usize = 8;

/// A plan for each of `asked`, or why there is none, in their order. Nodes go round in an order in which
/// neighbours are near; every demand gets the next of them, as much memory as its part of what all need.
pub fn plan_fleet(cluster: &Cluster, asked: &[(&Model, &Demand)]) -> Vec<Result<Allotment, PlanError>> {
    let Some((model, demand)) = asked.first() else { return Vec::new() };
    let order = match Problem::new(model, cluster, demand) {
        Ok(problem) => tour(&problem),
        Err(_) => (0..cluster.len()).collect(),
    };
    let needs: Vec<f64> = asked.iter().map(|(model, demand)| need(model, demand)).collect();
    let all: f64 = needs.iter().sum();
    let memory: f64 = cluster.nodes().iter().map(|node| node.memory as f64).sum();
    let ample = (memory / all.max(1.0)).max(1.0);
    // Those that need most first: nodes are plentiful while they look.
    let mut turns: Vec<usize> = (0..asked.len()).collect();
    turns.sort_by(|&a, &b| needs[b].total_cmp(&needs[a]).then(a.cmp(&b)));
    let mut left = order.into_iter().peekable();
    let mut plans: Vec<Option<Result<Allotment, PlanError>>> = asked.iter().map(|_| None).collect();
    // What was given out in all, and what should have been: who got more than its share leaves less to the next.
    let (mut given, mut due) = (0.0, 0.0);
    for turn in turns {
        let (model, demand) = asked[turn];
        let mut nodes = Vec::new();
        let mut held = 0.0;
        due += needs[turn] * ample;
        while let Some(node) = left.next_if(|_| held < needs[turn] || given < due) {
            held += cluster.nodes()[node].memory as f64;
            given += cluster.nodes()[node].memory as f64;
            nodes.push(node);
        }
        let mut result = over(cluster, model, demand, &nodes);
        let mut extra = 0;
        while result.is_err() && extra < EXTRA && left.peek().is_some() {
            let more = left.next();
            given += more.map_or(0.0, |node| cluster.nodes()[node].memory as f64);
            nodes.extend(more);
            result = over(cluster, model, demand, &nodes);
            extra += 1;
        }
        plans[turn] = Some(result.map(|plan| Allotment { nodes, plan }));
    }
    plans.into_iter().flatten().collect()
}

/// Bytes of the weights and of KV for one session.
fn need(model: &Model, demand: &Demand) -> f64 {
    let weights = model.at(&demand.format).map_or(0, crate::model::Weights::total);
    let kv: u64 = model.kv_bytes.iter().sum();
    weights as f64 + kv as f64 * f64::from(demand.context)
}

fn over(cluster: &Cluster, model: &Model, demand: &Demand, nodes: &[usize]) -> Result<Plan, PlanError> {
    if nodes.is_empty() {
        return Err(PlanError::Cluster(crate::cluster::ClusterError::NoNodes));
    }
    plan_with(model, &cluster.subset(nodes), demand, EFFORT)
}
