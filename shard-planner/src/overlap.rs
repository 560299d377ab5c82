//! Placements in which ranges overlap as they will, and many routes through them: every node takes what its
//! memory holds where the model is served least, and each route goes on to what is used least so far. Many
//! slow links side by side carry what one cannot.

use std::{collections::HashMap, ops::Range};

use crate::{
    branches::Routes,
    draw::Draw,
    estimate::Estimates,
    plan::Stage,
    predict::{keeps, steady_together},
    problem::Problem,
    solve::shared_sessions,
};

/// Routes that requests are dealt to.
const ROUTES: usize = 32;
/// Sessions that memory is kept for, as parts of all that there could be: fewer leave room for more layers.
const PARTS: [f64; 3] = [0.15, 0.3, 0.6];
/// The batch at which nodes and links are compared.
const BATCH: f64 = 12.0;

/// Placements for a few numbers of sessions, bettered by `moves` changes each.
pub(crate) fn overlapping(problem: &Problem, tour: &[usize], moves: usize) -> Vec<Routes> {
    let mesh = Mesh::new(problem, tour);
    let mut found: Vec<(f64, Vec<Option<Range<usize>>>)> = Vec::new();
    let kv = problem.session_bytes(&(0..problem.layers())) as f64;
    let memory: f64 = problem.cluster.nodes().iter().map(|node| node.all_memory() as f64).sum();
    let all = (memory / kv.max(1.0)).min(f64::from(problem.demand.concurrency));
    let mut by_speed = tour.to_vec();
    by_speed.sort_by(|&a, &b| mesh.layer_s[a].total_cmp(&mesh.layer_s[b]).then(a.cmp(&b)));
    for (part, order) in PARTS.iter().flat_map(|part| [(part, tour), (part, &by_speed)]) {
        let spans = mesh.place(order, (all * part).max(1.0));
        found.push((mesh.rate(&spans), spans));
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.truncate(2);
    let better = found.into_iter().filter(|(rate, _)| *rate > 0.0).map(|(_, spans)| mesh.climb(spans, moves));
    better.filter_map(|spans| mesh.routes(&spans)).collect()
}

/// What each node holds, if anything.
type Spans = [Option<Range<usize>>];

struct Mesh<'a> {
    problem: &'a Problem<'a>,
    estimates: Estimates<'a>,
    /// Seconds of a mean layer for a step.
    layer_s: Vec<f64>,
    nodes: usize,
}

impl<'a> Mesh<'a> {
    fn new(problem: &'a Problem<'a>, tour: &[usize]) -> Self {
        let whole = 0..problem.layers();
        let layer_s = |node| {
            let stage = Stage { node, layers: whole.clone() };
            problem.stage_s(&stage, BATCH) / problem.layers() as f64
        };
        let nodes = tour.len();
        Self {
            layer_s: (0..nodes).map(layer_s).collect(),
            estimates: Estimates::new(problem, 1.0),
            nodes,
            problem,
        }
    }

    /// One node after the other where the speed that serves its layers is least.
    fn place(&self, order: &[usize], sessions: f64) -> Vec<Option<Range<usize>>> {
        let layers = self.problem.layers();
        let mut speed = vec![0.0; layers];
        let mut spans = vec![None; self.nodes];
        for &node in order {
            let most = (self.estimates.room(node, sessions) as usize).min(layers);
            if most == 0 {
                continue;
            }
            let lowest =
                |start: usize| speed[start..start + most].iter().copied().fold(f64::INFINITY, f64::min);
            let sum = |start: usize| speed[start..start + most].iter().sum::<f64>();
            let better = |a: &usize, b: &usize| {
                lowest(*a).total_cmp(&lowest(*b)).then(sum(*a).total_cmp(&sum(*b))).then(a.cmp(b))
            };
            let Some(start) = (0..=layers - most).min_by(better) else { continue };
            speed[start..start + most].iter_mut().for_each(|speed| *speed += 1.0 / self.layer_s[node]);
            spans[node] = Some(start..start + most);
        }
        spans
    }

    /// Routes over a placement: at each layer on to the node, over the link, that will be busy least.
    fn deal(&self, spans: &Spans) -> Option<Vec<(Vec<Stage>, f64)>> {
        let layers = self.problem.layers();
        let bytes = self.problem.step_bytes(BATCH);
        let mut busy = vec![0.0; self.nodes];
        let mut taken: HashMap<(usize, usize), f64> = HashMap::new();
        let mut routes: Vec<(Vec<Stage>, f64)> = Vec::new();
        for _ in 0..ROUTES {
            let (mut at, mut stages): (usize, Vec<Stage>) = (0, Vec::new());
            while at < layers {
                let last = stages.last().map(|stage| stage.node);
                let next = (0..self.nodes).filter_map(|node| {
                    let span = spans[node].as_ref().filter(|span| span.contains(&at))?;
                    if stages.iter().any(|stage| stage.node == node) {
                        return None;
                    }
                    let work = (span.end - at) as f64 * self.layer_s[node];
                    let (link, way) = match last {
                        None => (0.0, 0.0),
                        Some(last) => {
                            let hop = self.problem.cluster.hop(last, node);
                            let link = taken.get(&(last, node)).copied().unwrap_or(0.0) + bytes / hop.rate;
                            (link, hop.seconds(bytes))
                        }
                    };
                    // Per layer, so that far-reaching nodes are not shunned.
                    let reach = (span.end - at) as f64;
                    let cost = (busy[node] + work).max(link) + (work + way) / reach;
                    cost.is_finite().then_some((cost, node, span.end))
                });
                let (_, node, end) = next.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))?;
                busy[node] += (end - at) as f64 * self.layer_s[node];
                if let Some(last) = last {
                    *taken.entry((last, node)).or_insert(0.0) +=
                        bytes / self.problem.cluster.hop(last, node).rate;
                }
                stages.push(Stage { node, layers: at..end });
                at = end;
            }
            match routes.iter_mut().find(|(known, _)| *known == stages) {
                Some((_, part)) => *part += 1.0 / ROUTES as f64,
                None => routes.push((stages, 1.0 / ROUTES as f64)),
            }
        }
        Some(routes)
    }

    fn routes(&self, spans: &Spans) -> Option<Routes> {
        let routes = self.deal(spans)?;
        let sessions = shared_sessions(self.problem, &routes);
        if sessions < routes.len() as f64 {
            return None;
        }
        let figures = steady_together(self.problem, &routes, sessions);
        let limits = self.problem.demand.limits();
        if !figures.iter().all(|figures| keeps(figures, limits)) {
            return None;
        }
        let whole = routes.into_iter().zip(figures);
        Some(whole.map(|((stages, part), figures)| (stages, (sessions * part) as u64, figures)).collect())
    }

    fn rate(&self, spans: &Spans) -> f64 {
        self.routes(spans).map_or(0.0, |routes| routes.iter().map(|route| route.2.tokens_per_s).sum())
    }

    /// Shifts, lengthens and shortens ranges as long as that makes the prediction better.
    fn climb(&self, mut spans: Vec<Option<Range<usize>>>, moves: usize) -> Vec<Option<Range<usize>>> {
        let mut draw = Draw::new(0x0e5);
        let layers = self.problem.layers();
        let mut rate = self.rate(&spans);
        for _ in 0..moves {
            let node = draw.below(self.nodes);
            let Some(old) = spans[node].clone() else { continue };
            let by = 1 + draw.below(3);
            let new = match draw.below(4) {
                0 => old.start.saturating_sub(by)..old.end.saturating_sub(by.min(old.start)),
                1 => (old.start + by.min(layers - old.end))..(old.end + by).min(layers),
                2 => old.start..old.end.saturating_sub(1),
                _ => old.start..(old.end + 1).min(layers),
            };
            if new.is_empty() || new == old || !self.problem.fits(node, &new, 1) {
                continue;
            }
            spans[node] = Some(new);
            let then = self.rate(&spans);
            match then > rate {
                true => rate = then,
                false => spans[node] = Some(old),
            }
        }
        spans
    }
}
