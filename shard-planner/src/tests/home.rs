//! Memory-short clusters at home.

use super::{card, model_70b};
use crate::{
    Cluster, Demand, Node, Objective, PlanError, Report,
    cluster::Link,
    demand::Limits,
    plan,
    plan::{Bottleneck, Proof},
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
    let wifi = |from: &str| Link::new(from, "laptop", 6.0, 120.0);
    let wire = Link::new("card-24", "card-12", 0.6, 940.0);
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
    let cut = |from: &str, to: &str| Link::new(from, to, 1.0, 0.0);
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

#[test]
fn kv_of_its_own_bounds_sessions_and_what_is_missing_is_told() {
    let model = model_70b();
    let both = |kv: u64| {
        let node = |id: &str| Node { kv_memory: Some(kv), ..card(id, 30.0, 900.0) };
        Cluster::new(vec![node("left"), node("right")], &[Link::new("left", "right", 0.5, 1000.0)]).unwrap()
    };
    let demand = Demand { context: 4096, ..Demand::chat("q4", 16, Objective::Throughput(Limits::default())) };
    let session: u64 = model.kv_bytes.iter().sum::<u64>() * 4096;
    let ample = plan(&model, &both(16 * session), &demand).unwrap();
    assert_eq!(ample.shortage, None);
    // One that holds more layers than the other has less room for sessions.
    let scarce = plan(&model, &both(session), &demand).unwrap();
    let shortage = scarce.shortage.clone().unwrap();
    let sessions: u64 = scarce.pipelines.iter().map(|pipeline| pipeline.sessions).sum();
    assert_eq!((shortage.sessions, shortage.wanted, shortage.positions), (sessions, 16, 4096));
    assert!(sessions < 16 && shortage.missing >= shortage.node_missing && shortage.node_missing > 0);
    let shorter = Demand { context: shortage.fitting, ..demand.clone() };
    assert_eq!(plan(&model, &both(session), &shorter).unwrap().shortage, None, "{shortage}");
    let text = Report::new("m", &both(session), &scarce).to_string();
    assert!(text.contains(&shortage.to_string()), "{text}");
    let error = plan(&model, &both(1000), &demand).unwrap_err();
    assert!(matches!(error, PlanError::NoKv { sessions: 1, room: 1000, .. }), "{error}");
}

#[test]
fn relayed_links_share_what_the_relay_carries() {
    let model = model_70b();
    let cluster = |relay: Option<f64>| {
        let nodes = ["a", "b", "c"].map(|id| card(id, 15.0, 900.0)).to_vec();
        let pairs = [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b"), ("a", "c"), ("c", "a")];
        let links = pairs.map(|(from, to)| Link { relayed: true, ..Link::new(from, to, 2.0, 100.0) });
        Cluster::new(nodes, &links).unwrap().relaying(relay).unwrap()
    };
    let demand = Demand { context: 1024, ..Demand::chat("q4", 8, Objective::Throughput(Limits::default())) };
    let rate = |relay| plan(&model, &cluster(relay), &demand).unwrap().figures;
    // Three stages have two links: half of the relay each.
    let narrow = rate(Some(4.0));
    assert_eq!(narrow.bottleneck, Bottleneck::Relay);
    assert!(narrow.tokens_per_s < 0.6 * rate(None).tokens_per_s, "{narrow:?}");
    assert!(cluster(Some(4.0)).relaying(Some(0.0)).is_err());
}
