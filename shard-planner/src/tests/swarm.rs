//! Swarms at work: nodes come, go and slow; and many of them at once.

use super::{card, model_70b};
use crate::{
    Cluster, Demand, Effort, Model, Node, Objective, Plan,
    demand::Limits,
    fleet::plan_fleet,
    plan_with, replan,
    replan::{Standing, Step},
    simulate::{Batching, Engine, Window, simulate},
    trace::{Lengths, flood, poisson},
};

const EFFORT: Effort = Effort { states: 2000, moves: 60 };

fn demand() -> Demand {
    Demand::chat("q4", 32, Objective::Throughput(Limits::default()))
}

fn cluster(names: &[&str]) -> Cluster {
    of(names, 24.0)
}

fn of(names: &[&str], memory_gb: f64) -> Cluster {
    let node = |name: &&str| Node { download_rate: Some(1e8), ..card(name, memory_gb, 800.0) };
    Cluster::new(names.iter().map(node).collect(), &[]).unwrap()
}

fn planned(cluster: &Cluster) -> Plan {
    plan_with(&model_70b(), cluster, &demand(), EFFORT).unwrap()
}

fn names(standing: &Standing) -> Vec<&str> {
    standing.stages.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn nothing_moves_while_nothing_changes() {
    let all = cluster(&["a", "b", "c", "d"]);
    let plan = planned(&all);
    let again = replan(&model_70b(), &all, &demand(), &plan.standing(&all), EFFORT).unwrap();
    assert_eq!((again.step, again.moves.len()), (Step::Nothing, 0));
    assert_eq!(again.kept.len(), plan.pipelines.len());
}

#[test]
fn a_lost_node_is_replaced_by_the_one_that_is_free() {
    let all = cluster(&["a", "b", "c"]);
    let standing = planned(&all).standing(&all);
    let used = names(&standing[0]).iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let left: Vec<&str> = ["a", "b", "c", "spare"].into_iter().filter(|name| *name != used[0]).collect();
    let now = cluster(&left);
    let next = replan(&model_70b(), &now, &demand(), &standing, EFFORT).unwrap();
    assert_eq!(next.step, Step::Mended);
    // One node loads what was lost; nobody else moves.
    assert_eq!(next.moves.len(), 1, "{:?}", next.moves);
    assert_eq!(next.moves[0].layers, standing[0].stages[0].1);
}

#[test]
fn pipelines_that_still_stand_are_not_touched() {
    let all = cluster(&["a", "b", "c", "d", "e", "f"]);
    let plan = planned(&all);
    let standing = plan.standing(&all);
    assert!(standing.len() > 1, "{standing:?}");
    let lost = names(&standing[1])[0];
    let left: Vec<&str> = ["a", "b", "c", "d", "e", "f"].into_iter().filter(|name| *name != lost).collect();
    let now = cluster(&left);
    let next = replan(&model_70b(), &now, &demand(), &standing, EFFORT).unwrap();
    let kept: Vec<Standing> = next.kept.iter().map(|&at| next.plan.standing(&now)[at].clone()).collect();
    assert!(kept.contains(&standing[0]), "{next:?}");
}

#[test]
fn nodes_that_keep_their_layers_are_joined_in_their_order() {
    let pinned = |name: &str, layers: std::ops::Range<usize>| {
        let memory = model_70b().at("q4").unwrap().of(&layers);
        Node { memory, pinned: Some(layers), ..card(name, 1.0, 800.0) }
    };
    // Out of order, and full to the last byte.
    let nodes = vec![pinned("c", 50..80), pinned("a", 0..30), pinned("b", 30..50)];
    let cluster = Cluster::new(nodes, &[]).unwrap();
    let model = Model { kv_bytes: vec![0; 80], ..model_70b() };
    for concurrency in [1, 8, 4000] {
        let demand = Demand { concurrency, ..demand() };
        let plan = plan_with(&model, &cluster, &demand, EFFORT).unwrap();
        assert_eq!(names(&plan.standing(&cluster)[0]), ["a", "b", "c"]);
    }
}

#[test]
fn a_slow_node_gives_up_layers_only_if_that_pays() {
    let all = of(&["a", "b"], 40.0);
    let standing = planned(&all).standing(&all);
    let slow = all.nodes().iter().position(|node| node.id == names(&standing[0])[0]).unwrap();
    let hardly = replan(&model_70b(), &all.slowed(slow, 1.05), &demand(), &standing, EFFORT).unwrap();
    assert_eq!(hardly.step, Step::Nothing);
    let much = replan(&model_70b(), &all.slowed(slow, 6.0), &demand(), &standing, EFFORT).unwrap();
    assert_eq!(much.step, Step::Replaced, "{much:?}");
    assert!(!much.moves.is_empty());
}

#[test]
fn a_gap_that_nobody_can_fill_is_an_error() {
    let all = cluster(&["a", "b", "c"]);
    let standing = planned(&all).standing(&all);
    let error = replan(&model_70b(), &cluster(&["a"]), &demand(), &standing, EFFORT).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn a_simulation_is_the_same_every_time_and_near_the_prediction() {
    let all = cluster(&["a", "b", "c", "d"]);
    let plan = planned(&all);
    let run = |arrivals: &[crate::trace::Arrival]| {
        let window = Window { from_s: 10.0, to_s: 100.0 };
        let engine = Engine { batching: Batching::Merged, ..Engine::default() };
        simulate(&model_70b(), &all, &demand(), &plan, engine, arrivals, window).unwrap()
    };
    let lengths = Lengths { prompt: 512, output: 256, most: Some(4096) };
    let flooded = run(&flood(2000, lengths, 5));
    assert_eq!(flooded, run(&flood(2000, lengths, 5)));
    let ratio = flooded.tokens_per_s / plan.figures.tokens_per_s;
    assert!((0.7..1.5).contains(&ratio), "{ratio} {flooded:?} {:?}", plan.figures);
    // Under a light load all that comes is served, and sooner.
    let rate = 0.3 * plan.figures.tokens_per_s / 256.0;
    let light = run(&poisson(rate, 100.0, lengths, 5));
    assert!(light.tokens_per_s < 0.6 * flooded.tokens_per_s && light.ttft_s < flooded.ttft_s, "{light:?}");
}

#[test]
fn a_fleet_shares_its_nodes_without_overlap() {
    let nodes: Vec<Node> = (0..60)
        .map(|at| Node { site: Some(format!("site{}", at / 20)), ..card(&format!("n{at}"), 24.0, 500.0) })
        .collect();
    let cluster = Cluster::new(nodes, &[]).unwrap();
    let (large, small) =
        (model_70b(), Model { name: "8b".into(), ..Model::uniform("8b", 32, 230 << 20, 4096, 8192) });
    let (long, short) = (demand(), Demand { format: "q8".into(), ..demand() });
    let asked: Vec<(&Model, &Demand)> =
        (0..12).map(|at| if at % 3 == 0 { (&large, &long) } else { (&small, &short) }).collect();
    let plans = plan_fleet(&cluster, &asked);
    assert_eq!(plans.len(), asked.len());
    let mut used: Vec<usize> = plans.iter().flat_map(|plan| plan.as_ref().unwrap().nodes.clone()).collect();
    let count = used.len();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), count);
}
