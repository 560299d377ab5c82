//! Memory-short clusters at home.

use super::{card, model_70b};
use crate::{
    Cluster, Demand, Node, Objective, PlanError, Report,
    cluster::Link,
    demand::Limits,
    plan,
    plan::Proof,
    simulate::{Batching, Engine, Window, simulate},
    trace::{Lengths, flood},
};

fn home(laptop_gb: f64) -> Cluster {
    let nodes: Vec<Node> = vec![
        card("card-24", 22.5, 900.0),
        card("card-12", 11.2, 350.0),
        card("card-8", 7.2, 250.0),
        card("laptop", laptop_gb, 60.0),
    ];
    let wifi = |from: &str| Link {
        from: from.into(),
        to: "laptop".into(),
        rtt_ms: 6.0,
        mbit: 120.0,
        estimated: false,
    };
    let wire =
        Link { from: "card-24".into(), to: "card-12".into(), rtt_ms: 0.6, mbit: 940.0, estimated: false };
    Cluster::new(nodes, &[wire, wifi("card-24"), wifi("card-12"), wifi("card-8")]).unwrap()
}

fn chat(format: &str) -> Demand {
    Demand { prompt: 1024, output: 256, context: 8192, ..Demand::chat(format, 1, Objective::Latency) }
}

#[test]
fn a_70b_at_q4_goes_over_three_cards_and_a_laptop() {
    let (model, cluster) = (model_70b(), home(12.0));
    let plan = plan(&model, &cluster, &chat("q4")).unwrap();
    assert_eq!(plan.bound.proof, Proof::Exhausted);
    // The cards are filled first; the laptop gets what is left.
    let held = |name: &str| {
        let node = cluster.nodes().iter().position(|node| node.id == name).unwrap();
        plan.held.iter().find(|stage| stage.node == node).map_or(0, |stage| stage.layers.len())
    };
    assert!(held("card-24") > 40 && held("laptop") < 12, "{:?}", plan.held);
    let text = Report::new("70b", &cluster, &plan).to_string();
    assert!(text.contains("card-24") && text.contains("(estimated)") && text.contains("optimal"), "{text}");
    let svg = Report::new("70b", &cluster, &plan).svg();
    assert!(svg.starts_with("<svg") && svg.contains("#c0392b") && svg.contains("stroke-dasharray"), "{svg}");
}

#[test]
fn what_is_missing_is_said_with_what_would_fit() {
    let model = model_70b();
    let error = plan(&model, &home(12.0), &chat("q8")).unwrap_err();
    let PlanError::TooLarge { missing, advice, .. } = &error else { panic!("{error}") };
    assert!(*missing > 10 << 30, "{error}");
    assert_eq!(advice, "q4 would fit");
    let error = plan(&model, &home(0.3), &chat("q4")).unwrap_err();
    let PlanError::TooLarge { missing, .. } = &error else { panic!("{error}") };
    assert!((1 << 28..4u64 << 30).contains(missing), "{error}");
    let many = Demand { concurrency: 64, ..chat("q4") };
    let error = plan(&model, &home(12.0), &many).unwrap_err().to_string();
    assert!(error.contains("sessions of 8192 positions would fit"), "{error}");
}

#[test]
fn a_layer_that_fits_nowhere_is_named() {
    let cluster = Cluster::new(vec![card("small", 0.3, 10.0)], &[]).unwrap();
    let error = plan(&model_70b(), &cluster, &chat("q8")).unwrap_err();
    assert!(
        matches!(&error, PlanError::LayerFitsNowhere { layer: 0, node, .. } if node == "small"),
        "{error}"
    );
}

#[test]
fn disconnected_nodes_are_named() {
    let cut = |from: &str, to: &str| Link {
        from: from.into(),
        to: to.into(),
        rtt_ms: 1.0,
        mbit: 0.0,
        estimated: false,
    };
    let nodes = vec![card("left", 30.0, 100.0), card("right", 30.0, 100.0)];
    let cluster = Cluster::new(nodes, &[cut("left", "right"), cut("right", "left")]).unwrap();
    let error = plan(&model_70b(), &cluster, &chat("q4")).unwrap_err();
    assert_eq!(error.to_string(), "no pipeline can be joined: nothing passes from left to right");
}

#[test]
fn bounds_on_time_are_kept_or_refused() {
    let (model, cluster) = (model_70b(), home(16.0));
    let throughput = |tpot_s| Demand {
        concurrency: 8,
        objective: Objective::Throughput(Limits { tpot_s: Some(tpot_s), ttft_s: None }),
        ..chat("q4")
    };
    let plan_at = |tpot_s| plan(&model, &cluster, &throughput(tpot_s));
    assert!(plan_at(0.4).unwrap().figures.tpot_s <= 0.4);
    assert!(matches!(plan_at(0.01), Err(PlanError::TooSlow { .. })));
}

#[test]
fn a_single_reply_takes_in_simulation_what_was_predicted() {
    let (model, cluster, demand) = (model_70b(), home(12.0), chat("q4"));
    let plan = plan(&model, &cluster, &demand).unwrap();
    let engine = Engine { batching: Batching::Steps { per_stage: 4 }, chunk: None, ..Engine::default() };
    let one = flood(1, Lengths { prompt: 1024, output: 256, most: None }, 0);
    let window = Window { from_s: 0.0, to_s: 1e6 };
    let outcome = simulate(&model, &cluster, &demand, &plan, engine, &one, window).unwrap();
    assert_eq!(outcome.finished, 1);
    assert!((outcome.tpot_s / plan.figures.tpot_s - 1.0).abs() < 1e-6, "{outcome:?} {:?}", plan.figures);
    assert!((outcome.ttft_s / plan.figures.ttft_s - 1.0).abs() < 0.01, "{outcome:?} {:?}", plan.figures);
}
