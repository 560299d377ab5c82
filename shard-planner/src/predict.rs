//! What a pipeline will do, in closed form.

use std::collections::BTreeMap;

use crate::{
    demand::Limits,
    plan::{Bottleneck, Figures, Stage},
    problem::Problem,
};

/// Seconds of one decoding step of `batch` sequences around an idle pipeline.
pub(crate) fn step_s(problem: &Problem, stages: &[Stage], batch: f64) -> f64 {
    let work: f64 = stages.iter().map(|stage| problem.decode_s(stage.node, &stage.layers, batch)).sum();
    work + hops_s(problem, stages, problem.rows_bytes(batch))
}

/// Seconds that rows of `bytes` take over all links, and the token its way back.
fn hops_s(problem: &Problem, stages: &[Stage], bytes: f64) -> f64 {
    let links = stages.windows(2).map(|pair| problem.cluster.hop(pair[0].node, pair[1].node));
    let back = stages.first().zip(stages.last());
    links.map(|hop| hop.seconds(bytes)).sum::<f64>()
        + back.map_or(0.0, |(first, last)| problem.cluster.back_s(last.node, first.node))
}

/// Seconds from a prompt's arrival to its first token in an idle pipeline.
pub(crate) fn first_token_s(problem: &Problem, stages: &[Stage]) -> f64 {
    let tokens = f64::from(problem.demand.prompt);
    let work: f64 = stages.iter().map(|stage| problem.prefill_s(stage.node, &stage.layers, tokens)).sum();
    work + hops_s(problem, stages, problem.rows_bytes(tokens))
}

/// Least time per token: all sessions in one step, and no prompts between.
pub(crate) fn at_least_tpot(problem: &Problem, stages: &[Stage], sessions: f64) -> Figures {
    let tpot_s = step_s(problem, stages, sessions);
    let slowest = stages
        .iter()
        .map(|stage| (problem.decode_s(stage.node, &stage.layers, sessions), Bottleneck::Node(stage.node)));
    let links = stages.windows(2).map(|pair| {
        let (from, to) = (pair[0].node, pair[1].node);
        (problem.cluster.hop(from, to).seconds(problem.rows_bytes(sessions)), Bottleneck::Link { from, to })
    });
    let (_, bottleneck) = longest(slowest.chain(links));
    Figures {
        ttft_s: first_token_s(problem, stages),
        tpot_s,
        tokens_per_s: sessions / tpot_s,
        batch: sessions,
        bottleneck,
    }
}

/// The long run with `sessions` replies always on their way and prompts between them.
///
/// Replies go around in `G` groups of `b`. A group is around after the work and the way of all stages, `Σ(b)`,
/// if it never waits. Prompts make the times of stages vary much, and a group then waits for each other group
/// about as long as the slowest stage or link takes, `τ(b)`: the closed form for stages alike, each with
/// times that are exponential. So a round takes `Σ(b) + (G-1)·τ(b)`, and the batch is chosen that makes it
/// shortest.
pub(crate) fn steady(problem: &Problem, stages: &[Stage], sessions: f64) -> Figures {
    let most = stages.iter().map(|stage| problem.max_batch(stage.node)).fold(sessions.max(1.0), f64::min);
    let round = |batch: f64| {
        let (busy, bottleneck) = longest(resources(problem, stages, batch));
        let work: f64 = stages.iter().map(|stage| problem.stage_s(stage, batch)).sum();
        let around = work + hops_s(problem, stages, problem.step_bytes(batch));
        (around + (sessions / batch - 1.0).max(0.0) * busy, batch, bottleneck)
    };
    let (tpot_s, batch, bottleneck) =
        batches(most).map(round).fold((f64::INFINITY, 1.0, Bottleneck::Node(0)), |best, next| {
            if next.0 < best.0 { next } else { best }
        });
    // A prompt waits for half of the step that each stage is at.
    let wait: f64 = stages.iter().map(|stage| problem.stage_s(stage, batch) / 2.0).sum();
    let ttft_s = first_token_s(problem, stages) + wait;
    Figures { ttft_s, tpot_s, tokens_per_s: sessions / tpot_s, batch, bottleneck }
}

/// The same for routes that share nodes, each with its part of the steps. A group waits for another as long as
/// that takes the node or link that most of all steps take longest.
pub(crate) fn steady_together(
    problem: &Problem,
    routes: &[(Vec<Stage>, f64)],
    sessions: f64,
) -> Vec<Figures> {
    let nodes = routes.iter().flat_map(|(stages, _)| stages).map(|stage| problem.max_batch(stage.node));
    let most = nodes.fold(sessions.max(1.0), f64::min);
    let busiest = |batch: f64| {
        let mut taken: BTreeMap<Bottleneck, f64> = BTreeMap::new();
        for (stages, part) in routes {
            for (seconds, what) in resources(problem, stages, batch) {
                *taken.entry(what).or_insert(0.0) += part * seconds;
            }
        }
        longest(taken.into_iter().map(|(what, seconds)| (seconds, what)))
    };
    let around = |stages: &[Stage], batch: f64| {
        let work: f64 = stages.iter().map(|stage| problem.stage_s(stage, batch)).sum();
        work + hops_s(problem, stages, problem.step_bytes(batch))
    };
    let mean = |batch: f64| {
        let (busy, bottleneck) = busiest(batch);
        let own: f64 = routes.iter().map(|(stages, part)| part * around(stages, batch)).sum();
        (own + (sessions / batch - 1.0).max(0.0) * busy, batch, busy, bottleneck)
    };
    let start = (f64::INFINITY, 1.0, 0.0, Bottleneck::Node(0));
    let (_, batch, busy, bottleneck) =
        batches(most).map(mean).fold(start, |best, next| if next.0 < best.0 { next } else { best });
    let figures = |(stages, part): &(Vec<Stage>, f64)| {
        let tpot_s = around(stages, batch) + (sessions / batch - 1.0).max(0.0) * busy;
        let wait: f64 = stages.iter().map(|stage| problem.stage_s(stage, batch) / 2.0).sum();
        let ttft_s = first_token_s(problem, stages) + wait;
        Figures { ttft_s, tpot_s, tokens_per_s: part * sessions / tpot_s, batch, bottleneck }
    };
    routes.iter().map(figures).collect()
}

/// Whether replies come at all (nothing may pass on the way back), and in time.
pub(crate) fn keeps(figures: &Figures, limits: Limits) -> bool {
    figures.tpot_s.is_finite()
        && limits.tpot_s.is_none_or(|most| figures.tpot_s <= most)
        && limits.ttft_s.is_none_or(|most| figures.ttft_s <= most)
}

/// Batches to choose from: 1 up to `most`, an eighth more each time.
fn batches(most: f64) -> impl Iterator<Item = f64> {
    let next = move |batch: &f64| (*batch < most).then(|| (batch * 1.125).ceil().min(most));
    std::iter::successors(Some(1.0), next)
}

/// Seconds for which each stage and each link is taken by a step of `batch` sequences.
fn resources<'a>(
    problem: &'a Problem,
    stages: &'a [Stage],
    batch: f64,
) -> impl Iterator<Item = (f64, Bottleneck)> + 'a {
    let nodes = stages.iter().map(move |stage| (problem.stage_s(stage, batch), Bottleneck::Node(stage.node)));
    let bytes = problem.step_bytes(batch);
    let links = stages.windows(2).map(move |pair| {
        let (from, to) = (pair[0].node, pair[1].node);
        (bytes / problem.cluster.hop(from, to).rate, Bottleneck::Link { from, to })
    });
    let relay = problem.cluster.relay_rate().is_finite().then(|| {
        let is_relayed = |pair: &&[Stage]| problem.cluster.hop(pair[0].node, pair[1].node).relayed;
        let hops = stages.windows(2).filter(is_relayed).count();
        (hops as f64 * bytes / problem.cluster.relay_rate(), Bottleneck::Relay)
    });
    nodes.chain(links).chain(relay)
}

fn longest(taken: impl Iterator<Item = (f64, Bottleneck)>) -> (f64, Bottleneck) {
    taken.fold((0.0, Bottleneck::Node(0)), |most, next| if next.0 > most.0 { next } else { most })
}
