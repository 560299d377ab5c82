//! `bench plan`: the planner on the published clusters of Helix, beside their own results, and its cost by
//! the size of the cluster.

use std::{fmt::Write, fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use shard_planner::{
    Cluster, Demand, Effort, Model, Node, Objective, Plan, assess, assess_routes,
    cluster::Rates,
    demand::Limits,
    fleet::plan_fleet,
    plan::Stage,
    plan_rehearsed,
    rehearse::Rehearsal,
    simulate::{Batching, Engine, Outcome, Window, simulate},
    trace::{Lengths, flood, poisson},
};

use crate::{
    helix::{Case, OUTPUT, PLACEMENTS, PROMPT, ROWS, Row},
    machine::processor_s,
    report::{Figure, Report},
};

/// Published lengths: means, and the longest prompt.
const LENGTHS: Lengths = Lengths { prompt: PROMPT, output: OUTPUT, most: Some(2048) };
/// What is measured: ten minutes after one.
const WINDOW: Window = Window { from_s: 60.0, to_s: 660.0 };
/// Under a light load the first replies are long under way before their tokens are as many as come: so later.
const ONLINE: Window = Window { from_s: 600.0, to_s: 1200.0 };
/// More requests than any cluster serves in that time.
const REQUESTS: usize = 20_000;
/// Rehearsals are shorter, and of other requests than those that are measured with.
const REHEARSED: Window = Window { from_s: 50.0, to_s: 200.0 };
const EFFORT: Effort = Effort { states: 1000, moves: 1600 };

/// What to plan.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// Largest cluster of the scaling curve
    #[arg(long, default_value_t = 1000, value_name = "NODES")]
    largest: usize,
    /// Write the scaling curve as a picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Constants of the simulator that the publication does not give.
#[derive(Clone, Copy, Debug)]
struct Calibration {
    /// What their times are multiplied with.
    slowness: f64,
    /// What the memory that their KV counts imply is multiplied with, for separate pipelines, whose nodes hold
    /// more layers than was measured.
    memory: f64,
    /// Part of the offline rate that comes as requests online; more where Helix carried more.
    online: f64,
    /// Root of the mean square of the logarithms of simulated over published.
    error: f64,
}

/// Their engine: whole prompts, and batches of all that waits.
fn theirs(case: &Case, calibration: Calibration) -> Engine {
    Engine {
        batching: Batching::Merged,
        chunk: None,
        prompts: case.prompts,
        overhead_s: 0.0,
        dealt: false,
        slowness: calibration.slowness,
    }
}

/// Ours: prompts in chunks, and replies dealt into groups.
fn ours(case: &Case, calibration: Calibration) -> Engine {
    Engine { chunk: Some(256), dealt: true, ..theirs(case, calibration) }
}

impl PlanArgs {
    /// Runs it.
    ///
    /// # Errors
    /// A published case that cannot be read, or a picture that cannot be written.
    pub fn run(&self) -> Result<Report> {
        let (calibration, separate) = calibrate()?;
        let mut figures = separate;
        let mut details = Vec::new();
        for row in ROWS {
            let (row_figures, row_details) = one(row, calibration)?;
            figures.extend(row_figures);
            details.push(row_details);
        }
        let mut points = Vec::new();
        figures.extend(self.scaling(&mut points)?);
        if let Some(path) = &self.svg {
            fs::write(path, curve(&points)).with_context(|| format!("{}", path.display()))?;
        }
        let Calibration { slowness, memory, online, error } = calibration;
        let parameters = json!({
            "slowness": slowness, "separate_memory": memory, "online_share": online, "calibration_error": error,
            "largest": self.largest, "rehearsed_s": [REHEARSED.from_s, REHEARSED.to_s],
            "measured_s": [WINDOW.from_s, WINDOW.to_s], "online_s": [ONLINE.from_s, ONLINE.to_s],
        });
        let details = json!({ "rows": details, "scaling": points });
        Ok(Report::new("plan", parameters, figures, details))
    }

    /// Seconds for a model and a demand for every five nodes, over clusters of growing size; `points` are of nodes
    /// and seconds.
    fn scaling(&self, points: &mut Vec<(usize, f64)>) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for eighths in [1, 2, 3, 4, 6, 8] {
            let nodes = (self.largest * eighths / 8).max(8);
            let demands = nodes.div_ceil(5);
            let (planned, seconds) = fleet(nodes, demands)?;
            points.push((nodes, seconds));
            let name = format!("{nodes} nodes, {demands} models and demands: time");
            let whole = Some(planned as f64 / demands as f64);
            figures.push(Figure::new(name, Some(seconds), "s CPU", 1).against("demands planned for", whole));
        }
        Ok(figures)
    }
}

/// The constants for which separate pipelines come nearest to what was published of them, and only they.
fn calibrate() -> Result<(Calibration, Vec<Figure>)> {
    let mut best: Option<(Calibration, Vec<f64>)> = None;
    for memory in [1.0, 1.02, 1.03, 1.04, 1.05, 1.06, 1.08] {
        for slowness in [1.2, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.2, 2.5] {
            let tried = Calibration { slowness, memory, online: 0.0, error: 0.0 };
            let ratios: Vec<f64> = ROWS.iter().map(|row| separate(*row, tried)).collect::<Result<_>>()?;
            let square: f64 = ratios.iter().map(|ratio| ratio.ln().powi(2)).sum();
            let error = (square / ratios.len() as f64).sqrt();
            if best.as_ref().is_none_or(|(known, _)| error < known.error) {
                best = Some((Calibration { error, ..tried }, ratios));
            }
        }
    }
    let (calibration, ratios) = best.context("nothing was tried")?;
    let shares: f64 = ROWS.iter().map(|row| (row.separate[1] / row.separate[0]).ln()).sum();
    let online = (shares / ROWS.len() as f64).exp();
    let figure = |(row, ratio): (&Row, f64)| {
        let name = format!("{} {}: separate pipelines, offline, simulated", row.cluster, row.model);
        Figure::new(name, Some(ratio * row.separate[0]), "tokens/s", 1).against("published", Some(ratio))
    };
    let figures = ROWS.iter().zip(ratios).map(figure).collect();
    Ok((Calibration { online, ..calibration }, figures))
}

/// Simulated over published rate of a row's separate pipelines.
fn separate(row: Row, calibration: Calibration) -> Result<f64> {
    let case = Case::read(row.cluster, row.model, Some(calibration.memory))?;
    let demand = case.demand();
    let plan = assess(&case.model, &case.cluster, &demand, case.separate_pipelines())?;
    let engine = theirs(&case, calibration);
    Ok(flooded(&case, &demand, &plan, engine)?.tokens_per_s / row.separate[0])
}

fn flooded(case: &Case, demand: &Demand, plan: &Plan, engine: Engine) -> Result<Outcome> {
    let requests = flood(REQUESTS, LENGTHS, 1);
    Ok(simulate(&case.model, &case.cluster, demand, plan, engine, &requests, WINDOW)?)
}

/// Our plan on a row, under our engine and under theirs, with the placements of Petals and SWARM.
fn one(row: Row, calibration: Calibration) -> Result<(Vec<Figure>, Value)> {
    let case = Case::read(row.cluster, row.model, None)?;
    let demand = case.demand();
    let name = format!("{} {}", row.cluster, row.model);
    let mut figures = Vec::new();
    let mut details = json!({ "row": name, "published": { "helix": row.helix, "swarm": row.swarm } });
    for (label, engine) in
        [("our engine", ours(&case, calibration)), ("their engine", theirs(&case, calibration))]
    {
        let requests = flood(8000, LENGTHS, 7);
        let rehearsal = Rehearsal { engine, arrivals: &requests, window: REHEARSED };
        let (before, begun) = (processor_s(), Instant::now());
        let plan = plan_rehearsed(&case.model, &case.cluster, &demand, EFFORT, rehearsal)?;
        let (seconds, elapsed) = (processor_s() - before, begun.elapsed().as_secs_f64());
        let offline = flooded(&case, &demand, &plan, engine)?;
        let offered = (offline.tokens_per_s * calibration.online).max(row.helix[1]);
        let online = online(&case, &demand, &plan, engine, offered)?;
        let beside = |rate: f64, published: f64| Some(rate / published);
        let figure = |what: &str, rate: f64| {
            Figure::new(format!("{name}: {what}, {label}"), Some(rate), "tokens/s", 1)
        };
        figures.extend([
            figure("planned, offline", offline.tokens_per_s)
                .against("Helix", beside(offline.tokens_per_s, row.helix[0])),
            figure("planned, online", online.tokens_per_s)
                .against("Helix", beside(online.tokens_per_s, row.helix[1])),
            figure("bound", plan.bound.limit / calibration.slowness)
                .against("planned", beside(plan.bound.limit / calibration.slowness, offline.tokens_per_s)),
            Figure::new(format!("{name}: time to plan, {label}"), Some(seconds), "s CPU", 1),
        ]);
        let others = [("swarm", case.swarm()), ("petals", case.petals())];
        for (whose, routes) in others {
            let rate = placed(&case, &demand, routes, engine)?;
            figures.push(
                figure(&format!("placed as {whose}"), rate)
                    .against("planned", beside(rate, offline.tokens_per_s)),
            );
        }
        details[label] = json!({
            "pipelines": plan.pipelines.len(), "nodes": plan.held.len(), "seconds_elapsed": elapsed,
            "offered_online": offered, "ttft_online_s": online.ttft_s, "tpot_online_s": online.tpot_s, "tpot_offline_s": offline.tpot_s,
        });
    }
    if row.cluster == "3cluster24" && row.model == "llama2_70b" {
        details["published"]["placements"] = json!(PLACEMENTS);
    }
    Ok((figures, details))
}

fn placed(case: &Case, demand: &Demand, routes: Vec<(Vec<Stage>, f64)>, engine: Engine) -> Result<f64> {
    let plan = assess_routes(&case.model, &case.cluster, demand, routes)?;
    Ok(flooded(case, demand, &plan, engine)?.tokens_per_s)
}

/// Requests come as many as make `rate` tokens per second.
fn online(case: &Case, demand: &Demand, plan: &Plan, engine: Engine, rate: f64) -> Result<Outcome> {
    let requests = poisson(rate / f64::from(OUTPUT), ONLINE.to_s, LENGTHS, 2);
    Ok(simulate(&case.model, &case.cluster, demand, plan, engine, &requests, ONLINE)?)
}

/// Plans for `demands` models on `nodes` nodes of three kinds at sites of fifty: how many, in what CPU time.
fn fleet(nodes: usize, demands: usize) -> Result<(usize, f64)> {
    let kinds = [(24e9, 900e9), (12e9, 350e9), (48e9, 850e9)];
    let node = |at: usize| {
        let (memory, rate) = kinds[at * 7 % kinds.len()];
        let rates = Rates { memory_rate: rate, flops: rate * 50.0 };
        let site = Some(format!("site{}", at / 50));
        Node { rates: Some(rates), site, ..Node::new(&format!("n{at}"), memory as u64) }
    };
    let cluster = Cluster::new((0..nodes).map(node).collect(), &[])?;
    let models = [
        Model::uniform("8b", 32, 230 << 20, 4096, 8192),
        Model::uniform("32b", 64, 500 << 20, 4096, 10_240),
        Model::uniform("70b", 80, 480 << 20, 4096, 16_384),
    ];
    let throughput = Demand::chat("q8", 64, Objective::Throughput(Limits::default()));
    let latency = Demand::chat("q8", 1, Objective::Latency);
    let asked: Vec<(&Model, &Demand)> = (0..demands)
        .map(|at| (&models[at % models.len()], if at % 2 == 0 { &throughput } else { &latency }))
        .collect();
    let before = processor_s();
    let plans = plan_fleet(&cluster, &asked);
    Ok((plans.iter().filter(|plan| plan.is_ok()).count(), processor_s() - before))
}

/// Time by nodes as a picture.
fn curve(points: &[(usize, f64)]) -> String {
    const WIDTH: f64 = 640.0;
    const HEIGHT: f64 = 360.0;
    let most = points.iter().fold((1.0f64, 1e-9f64), |most, p| (most.0.max(p.0 as f64), most.1.max(p.1)));
    let place = |&(nodes, seconds): &(usize, f64)| {
        (60.0 + (WIDTH - 90.0) * nodes as f64 / most.0, HEIGHT - 50.0 - (HEIGHT - 90.0) * seconds / most.1)
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"60\" y=\"24\" font-size=\"14\">CPU seconds to plan, one model and demand for every five nodes</text>\n\
         <path d=\"M60 {0} H{1} M60 {0} V40\" stroke=\"#555\" fill=\"none\"/>\n",
        HEIGHT - 50.0,
        WIDTH - 30.0
    );
    let line: Vec<String> = points.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    // Writing to a String does not fail.
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#2c6fad\" stroke-width=\"2\"/>",
        line.join(" ")
    );
    for point in points {
        let (x, y) = place(point);
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#2c6fad\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.2}</text><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{}</text>",
            y - 8.0,
            point.1,
            HEIGHT - 34.0,
            point.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">nodes</text>\n</svg>",
        WIDTH / 2.0,
        HEIGHT - 12.0
    );
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_cases_are_whole() {
        for row in ROWS {
            let case = Case::read(row.cluster, row.model, None).expect("it is in the figures");
            assert_eq!(case.cluster.len(), case.gpus.len());
            for routes in [case.swarm(), case.petals()] {
                let plan =
                    assess_routes(&case.model, &case.cluster, &case.demand(), routes).expect("it fits");
                assert!((plan.pipelines.iter().map(|p| p.weight).sum::<f64>() - 1.0).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn separate_pipelines_need_more_than_the_published_layers() {
        let case = Case::read("single24", "llama2_70b", Some(1.03)).expect("it is in the figures");
        let pipelines = case.separate_pipelines();
        assert!(!pipelines.is_empty());
        assert!(pipelines.iter().flatten().all(|stage| stage.layers.len() >= 6));
    }

    #[test]
    fn a_curve_has_its_points() {
        let svg = curve(&[(10, 0.5), (20, 1.0)]);
        assert!(svg.starts_with("<svg") && svg.matches("<circle").count() == 2);
    }
}
