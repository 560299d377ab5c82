//! Laws of whole plans, against trying everything.

use proptest::prelude::*;

use crate::{
    cluster::{Cluster, Hop, Node, Profile},
    curve::Curve,
    demand::{Demand, Limits, Objective},
    limit::most_tokens_per_s,
    model::{Model, Weights},
    partition::{most_by_columns, most_of_pipelines},
    plan::{PlanError, Proof, Stage},
    predict::{at_least_tpot, keeps, steady, step_s},
    problem::Problem,
    search::{Effort, best_lines},
    solve::plan,
};

/// A random small cluster: nodes of few layers' memory, any links, some cut.
#[derive(Clone, Debug)]
struct Small {
    model: Model,
    cluster: Cluster,
}

fn small() -> impl Strategy<Value = Small> {
    let node = (10u64..60, 1.0f64..20.0, 0.0f64..1.0, 0.1f64..5.0, 1.0f64..30.0);
    let nodes = prop::collection::vec(node, 1..5);
    let layers = prop::collection::vec((5u64..12, 1u64..3), 1..6);
    let hops = prop::collection::vec((0.0f64..0.05, prop_oneof![1 => Just(0.0), 6 => 1e2f64..1e5]), 16);
    (nodes, layers, hops, 0u64..8, 0u64..8).prop_map(|(nodes, layers, hops, embedding, head)| {
        let node = |(index, (memory, base, slope, price, prompt)): (usize, (u64, f64, f64, f64, f64))| {
            let decode = Curve::new(vec![(1.0, base / 1e3), (9.0, (base + 8.0 * slope) / 1e3)]).unwrap();
            let prefill = Curve::new(vec![(0.0, 0.0), (10.0, prompt / 1e3)]).unwrap();
            let profile = Profile { format: "q8".to_owned(), layer_bytes: 8, decode, prefill };
            Node { price, ..Node::new(&format!("n{index}"), memory).with_profile(profile) }
        };
        let nodes: Vec<Node> = nodes.into_iter().enumerate().map(node).collect();
        let count = nodes.len();
        let hop = |(latency_s, rate): (f64, f64)| Hop::new(latency_s, rate);
        let hops = hops.into_iter().cycle().take(count * count).map(hop).collect();
        let weights = Weights {
            format: "q8".to_owned(),
            embedding,
            layers: layers.iter().map(|(bytes, _)| *bytes).collect(),
            head,
        };
        let model = Model {
            kv_bytes: layers.iter().map(|(_, kv)| *kv).collect(),
            weights: vec![weights],
            ..Model::uniform("small", 1, 1, 1, 64)
        };
        Small { model, cluster: Cluster::with_hops(nodes, hops, None).unwrap() }
    })
}

fn demand(concurrency: u32, objective: Objective) -> Demand {
    Demand { format: "q8".to_owned(), prompt: 6, output: 3, context: 1, concurrency, objective }
}

/// Every way to lay the layers from `at` on over nodes that are not used yet.
fn every(problem: &Problem, stages: &mut Vec<Stage>, at: usize, each: &mut impl FnMut(&[Stage])) {
    if at == problem.layers() {
        return each(stages);
    }
    for node in 0..problem.cluster.len() {
        let reached = stages.last().is_none_or(|last| problem.cluster.hop(last.node, node).is_up());
        if reached && stages.iter().all(|stage| stage.node != node) {
            for to in at + 1..=problem.layers() {
                stages.push(Stage { node, layers: at..to });
                every(problem, stages, to, each);
                stages.pop();
            }
        }
    }
}

fn holds(problem: &Problem, stages: &[Stage], sessions: u64) -> bool {
    stages.iter().all(|stage| {
        let kv: u64 = problem.model.kv_bytes[stage.layers.clone()].iter().sum();
        let memory = problem.cluster.nodes()[stage.node].memory;
        problem.weights.of(&stage.layers) + kv * u64::from(problem.demand.context) * sessions <= memory
    })
}

/// Most tokens per second (or least price per token) of any set of pipelines with nodes of their own.
fn best_of_all(problem: &Problem, cost: bool) -> f64 {
    let nodes = problem.cluster.len();
    let mut alone = vec![0.0f64; 1 << nodes];
    every(problem, &mut Vec::new(), 0, &mut |stages| {
        let set = stages.iter().fold(0, |set, stage| set | 1usize << stage.node);
        let most = (1..=60).rev().find(|&sessions| holds(problem, stages, sessions));
        for sessions in 1..=most.unwrap_or(0) {
            let figures = steady(problem, stages, sessions as f64);
            if keeps(&figures, problem.demand.limits()) {
                alone[set] = alone[set].max(figures.tokens_per_s);
            }
        }
    });
    let price = |set: usize| {
        let used = (0..nodes).filter(|node| set >> node & 1 == 1);
        used.map(|node| problem.cluster.nodes()[node].price).sum::<f64>()
    };
    if cost {
        let each =
            (0..1 << nodes).filter(|&set| alone[set] > 0.0).map(|set| price(set) / 3600.0 / alone[set]);
        return each.fold(f64::INFINITY, f64::min);
    }
    // Sets of sets: best of each set is its own or that of two parts.
    let mut best = alone.clone();
    for set in 0..1usize << nodes {
        for part in 0..set {
            if part & set == part {
                best[set] = best[set].max(best[part] + best[set ^ part]);
            }
        }
    }
    best[(1 << nodes) - 1]
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn least_tpot_is_as_low_as_trying_everything(small in small(), sessions in 1u32..4) {
        let demand = demand(sessions, Objective::Latency);
        let problem = Problem::new(&small.model, &small.cluster, &demand).unwrap();
        let mut best = f64::INFINITY;
        every(&problem, &mut Vec::new(), 0, &mut |stages| {
            if holds(&problem, stages, u64::from(sessions)) {
                best = best.min(step_s(&problem, stages, f64::from(sessions)));
            }
        });
        match plan(&small.model, &small.cluster, &demand) {
            Ok(plan) => {
                prop_assert!(close(plan.figures.tpot_s, best), "{} {best}", plan.figures.tpot_s);
                prop_assert_eq!(plan.bound.proof, Proof::Exhausted);
                prop_assert!(close(plan.bound.limit, best));
                let alone = at_least_tpot(&problem, &plan.pipelines[0].stages, f64::from(sessions));
                prop_assert_eq!(alone, plan.pipelines[0].figures);
            }
            Err(error) => {
                prop_assert!(best.is_infinite(), "{error}");
                let invalid = matches!(error, PlanError::Invalid { .. });
                prop_assert!(!invalid, "{error}");
            }
        }
    }

    #[test]
    fn most_tokens_are_as_many_as_trying_everything(
        small in small(),
        tpot_s in prop::option::of(0.01f64..1.0),
        cost in any::<bool>(),
    ) {
        let limits = Limits { tpot_s, ttft_s: None };
        let objective = if cost { Objective::Cost(limits) } else { Objective::Throughput(limits) };
        let demand = demand(1000, objective);
        let problem = Problem::new(&small.model, &small.cluster, &demand).unwrap();
        let best = best_of_all(&problem, cost);
        match plan(&small.model, &small.cluster, &demand) {
            Ok(plan) => {
                prop_assert_eq!(plan.bound.proof, Proof::Exhausted);
                prop_assert!(close(plan.bound.reached, best), "{} {best}", plan.bound.reached);
                prop_assert!(most_tokens_per_s(&problem) >= plan.figures.tokens_per_s * (1.0 - 1e-9));
                prop_assert!(plan.flow_tokens_per_s >= plan.figures.tokens_per_s * (1.0 - 1e-6));
            }
            Err(error) => prop_assert!(best == if cost { f64::INFINITY } else { 0.0 }, "{best} {error}"),
        }
    }

    #[test]
    fn no_set_of_pipelines_passes_the_partition(small in small(), alike in any::<bool>()) {
        let mut nodes = small.cluster.nodes().to_vec();
        for at in 2..if alike { nodes.len() } else { 0 } {
            nodes[at] = Node { id: nodes[at].id.clone(), price: nodes[at].price, ..nodes[at % 2].clone() };
        }
        let hop = |at: usize| small.cluster.hop(at / nodes.len(), at % nodes.len());
        let hops = (0..nodes.len() * nodes.len()).map(hop).collect();
        let cluster = Cluster::with_hops(nodes, hops, None).unwrap();
        let demand = demand(1000, Objective::Throughput(Limits::default()));
        let problem = Problem::new(&small.model, &cluster, &demand).unwrap();
        let (best, bound) = (best_of_all(&problem, false), most_of_pipelines(&problem).unwrap());
        prop_assert!(best <= bound, "{best} {bound}");
    }

    #[test]
    fn searching_finds_nearly_what_trying_everything_does(small in small()) {
        let demand = demand(1000, Objective::Throughput(Limits::default()));
        let problem = Problem::new(&small.model, &small.cluster, &demand).unwrap();
        let best = best_of_all(&problem, false);
        let lines = best_lines(&problem, Effort { states: 0, moves: 30 });
        let found: f64 = lines.iter().map(|line| line.figures.tokens_per_s).sum();
        prop_assert!(found <= best * (1.0 + 1e-9));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn nor_what_prices_say_without_a_list(small in small()) {
        let demand = demand(1000, Objective::Throughput(Limits::default()));
        let problem = Problem::new(&small.model, &small.cluster, &demand).unwrap();
        let (best, bound) = (best_of_all(&problem, false), most_by_columns(&problem, 0).unwrap());
        prop_assert!(best <= bound, "{best} {bound}");
    }
}
