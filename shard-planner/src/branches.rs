//! Pipelines that share nodes: the model in two parts, each held by one or more chains of nodes, and a route
//! for every pair of chains. A few fast nodes serve many slow ones this way, and a slow link between sites
//! becomes several side by side.

use crate::{
    cut::{by_speed, quickest_slowest, spread},
    draw::Draw,
    estimate::{BATCHES, Estimates, SLACKS},
    plan::{Figures, Stage},
    predict::{keeps, steady_together},
    problem::Problem,
};

/// Chains of the first and of the second part.
const SHAPES: [[usize; 2]; 8] = [[1, 2], [2, 1], [1, 3], [3, 1], [2, 3], [3, 2], [1, 4], [4, 1]];

/// Most sites of which each is tried as the part in common.
const MOST_SITES: usize = 5;

/// Nodes that are much nearer to each other than the furthest are, in tour order.
fn sites(problem: &Problem, tour: &[usize]) -> Vec<Vec<usize>> {
    let bytes = problem.step_bytes(8.0);
    let way_s = |a: usize, b: usize| problem.cluster.hop(a, b).seconds(bytes);
    let steps: Vec<f64> = tour.windows(2).map(|pair| way_s(pair[0], pair[1])).collect();
    let (least, most) =
        steps.iter().fold((f64::INFINITY, 0.0f64), |(a, b), &step| (a.min(step), b.max(step)));
    let mut sites = vec![Vec::new()];
    for (at, &node) in tour.iter().enumerate() {
        if at > 0 && most > 3.0 * least && steps[at - 1] > (least * most).sqrt() {
            sites.push(Vec::new());
        }
        if let Some(site) = sites.last_mut() {
            site.push(node);
        }
    }
    sites
}

/// Routes with their sessions and what is predicted of each.
pub(crate) type Routes = Vec<(Vec<Stage>, u64, Figures)>;

/// The best routes of each shape; nodes are near each other in `tour`.
pub(crate) fn branched(problem: &Problem, tour: &[usize], caution: f64, moves: usize) -> Vec<Routes> {
    if problem.layers() < 2 {
        return Vec::new();
    }
    let forks = Forks { problem, estimates: Estimates::new(problem, caution), tour };
    let possible = SHAPES.iter().filter(|shape| shape.iter().sum::<usize>() <= tour.len());
    let by_speed = possible.map(|&shape| forks.by_speed(shape));
    let starts = by_speed.chain(forks.by_site());
    starts.filter_map(|fork| forks.routes(&forks.anneal(fork, moves)?)).collect()
}

struct Forks<'a> {
    problem: &'a Problem<'a>,
    estimates: Estimates<'a>,
    tour: &'a [usize],
}

/// Which chain holds what.
#[derive(Clone, Debug)]
struct Fork {
    shape: [usize; 2],
    /// Layers of the first part.
    first: usize,
    /// The chains of the first part, of the second, and the nodes that are not used, each in tour order.
    chains: Vec<Vec<usize>>,
}

/// What is reckoned of a fork.
#[derive(Clone, Copy, Debug, Default)]
struct Reckoned {
    tokens_per_s: f64,
    sessions: f64,
    batch: f64,
}

impl Fork {
    /// Layers of the part that a chain is of, and the part of the sessions that come through it.
    fn part(&self, chain: usize, layers: usize) -> (std::ops::Range<usize>, f64) {
        match chain < self.shape[0] {
            true => (0..self.first, 1.0 / self.shape[0] as f64),
            false => (self.first..layers, 1.0 / self.shape[1] as f64),
        }
    }

    fn used(&self) -> usize {
        self.shape[0] + self.shape[1]
    }
}

impl Forks<'_> {
    /// The fastest nodes for the part with fewer chains, stretches of the tour for the others.
    fn by_speed(&self, shape: [usize; 2]) -> Fork {
        let count = self.tour.len();
        let used = shape[0] + shape[1];
        let fastest = self.estimates.by_speed(self.tour);
        let few = usize::from(shape[0] > shape[1]);
        let trunk = (count * shape[few] / used).clamp(shape[few], count - shape[1 - few]);
        let mut chains = vec![Vec::new(); used + 1];
        let offset = |part: usize| if part == 0 { 0 } else { shape[0] };
        for (at, &node) in fastest[..trunk].iter().enumerate() {
            chains[offset(few) + at % shape[few]].push(node);
        }
        let rest: Vec<usize> =
            self.tour.iter().copied().filter(|node| !fastest[..trunk].contains(node)).collect();
        for (at, &node) in rest.iter().enumerate() {
            chains[offset(1 - few) + at * shape[1 - few] / rest.len()].push(node);
        }
        self.fork(shape, chains)
    }

    /// One site with what all others have in common, before and after them.
    fn by_site(&self) -> Vec<Fork> {
        let sites = sites(self.problem, self.tour);
        let several = if sites.len() > 1 && sites.len() <= MOST_SITES { sites.len() } else { 0 };
        let trunks = (0..several).map(|trunk| {
            let others =
                sites.iter().enumerate().filter(move |(at, _)| *at != trunk).map(|(_, site)| site.clone());
            (sites[trunk].clone(), others.collect::<Vec<_>>())
        });
        let both = trunks.flat_map(|(trunk, others)| {
            let head = std::iter::once(trunk.clone()).chain(others.clone()).chain([Vec::new()]).collect();
            let tail = others.iter().cloned().chain([trunk, Vec::new()]).collect();
            [([1, others.len()], head), ([others.len(), 1], tail)]
        });
        both.map(|(shape, chains)| self.fork(shape, chains)).collect()
    }

    /// Parts of the model as the memory of the chains of each is.
    fn fork(&self, shape: [usize; 2], chains: Vec<Vec<usize>>) -> Fork {
        let used = shape[0] + shape[1];
        let room = |range: std::ops::Range<usize>| -> f64 {
            chains[range].iter().flatten().map(|&node| self.estimates.room(node, 1.0)).sum()
        };
        let (a, b) = (room(0..shape[0]) / shape[0] as f64, room(shape[0]..used) / shape[1] as f64);
        let layers = self.problem.layers();
        let first = ((a / (a + b).max(1.0) * layers as f64) as usize).clamp(1, layers - 1);
        Fork { shape, first, chains }
    }

    fn anneal(&self, mut fork: Fork, moves: usize) -> Option<(Fork, Reckoned)> {
        let mut draw = Draw::new(0xf0 + (fork.shape[0] * 8 + fork.shape[1]) as u64);
        let place: Vec<usize> = {
            let mut place = vec![0; self.tour.len()];
            self.tour.iter().enumerate().for_each(|(at, &node)| place[node] = at);
            place
        };
        let mut now = self.reckon(&fork, 0.0);
        let mut best = (fork.clone(), now);
        for step in 0..moves {
            let temperature = 0.03 * (1.0 - step as f64 / moves as f64) + 1e-9;
            let mut next = fork.clone();
            self.change(&mut next, &place, &mut draw);
            let then = self.reckon(&next, now.sessions);
            let gain = then.tokens_per_s / now.tokens_per_s.max(1e-12) - 1.0;
            if gain >= 0.0 || draw.unit() < (gain / temperature).exp() || now.tokens_per_s == 0.0 {
                (fork, now) = (next, then);
                if now.tokens_per_s > best.1.tokens_per_s {
                    best = (fork.clone(), now);
                }
            }
        }
        (best.1.tokens_per_s > 0.0).then_some(best)
    }

    /// Moves the place of the fork, or a node to another chain, or exchanges two.
    fn change(&self, fork: &mut Fork, place: &[usize], draw: &mut Draw) {
        let layers = self.problem.layers();
        if draw.unit() < 0.15 {
            let by = 1 + draw.below(4);
            let first = if draw.unit() < 0.5 { fork.first.saturating_sub(by) } else { fork.first + by };
            fork.first = first.clamp(1, layers - 1);
            return;
        }
        let node = self.tour[draw.below(self.tour.len())];
        let Some(from) = fork.chains.iter().position(|chain| chain.contains(&node)) else { return };
        let to = draw.below(fork.chains.len());
        if from == to {
            return;
        }
        let other = match draw.unit() < 0.5 && !fork.chains[to].is_empty() {
            true => Some(fork.chains[to][draw.below(fork.chains[to].len())]),
            false => None,
        };
        fork.chains[from].retain(|&member| member != node);
        fork.chains[to].retain(|&member| Some(member) != other);
        fork.chains[to].push(node);
        fork.chains[from].extend(other);
        for chain in [from, to] {
            fork.chains[chain].sort_by_key(|&member| place[member]);
        }
    }

    fn reckon(&self, fork: &Fork, near: f64) -> Reckoned {
        let layers = self.problem.layers();
        let used = fork.used();
        let holds = |sessions: f64| {
            (0..used).all(|chain| {
                let (span, part) = fork.part(chain, layers);
                let room = fork.chains[chain].iter().map(|&node| self.estimates.room(node, sessions * part));
                room.sum::<f64>() >= span.len() as f64
            })
        };
        if !holds(1.0) {
            return Reckoned::default();
        }
        let most = f64::from(self.problem.demand.concurrency);
        let (mut low, mut high) = (1.0, most);
        if holds(high) {
            low = high;
        }
        while high - low > 0.03 * low {
            let middle = (low * high).sqrt();
            if holds(middle) { low = middle } else { high = middle }
        }
        let fastest: Vec<Vec<usize>> =
            fork.chains[..used].iter().map(|chain| self.estimates.by_speed(chain)).collect();
        let way = self.way(fork);
        let mut best = Reckoned::default();
        let mut sessions = if near > 0.0 { low.min(near * 1.4) } else { low };
        let mut worse = 0;
        while sessions >= 1.0 && worse < 2 {
            let (round_s, batch) = self.round(fork, &fastest, sessions, way);
            match sessions / round_s > best.tokens_per_s {
                true => (best, worse) = (Reckoned { tokens_per_s: sessions / round_s, sessions, batch }, 0),
                false => worse += 1,
            }
            sessions *= 0.72;
        }
        best
    }

    /// Shortest round for so many sessions, and its batch.
    fn round(
        &self,
        fork: &Fork,
        fastest: &[Vec<usize>],
        sessions: f64,
        (latency_s, each_s, narrowest_s): (f64, f64, f64),
    ) -> (f64, f64) {
        let layers = self.problem.layers();
        let mut shortest = (f64::INFINITY, 1.0);
        let mut worse = 0;
        for (at, &batch) in BATCHES.iter().enumerate() {
            if batch > sessions || worse > 1 {
                break;
            }
            let others = (sessions / batch - 1.0).max(0.0);
            let least: Option<Vec<f64>> = (0..fork.used())
                .map(|chain| {
                    let (span, part) = fork.part(chain, layers);
                    self.estimates.balance(&fastest[chain], span.len() as f64, at, sessions * part)
                })
                .collect();
            let Some(least) = least else { break };
            let with = |slack: f64| {
                let (mut work, mut slowest) = (0.0, batch * narrowest_s);
                for chain in 0..fork.used() {
                    let (span, part) = fork.part(chain, layers);
                    let limit = least[chain] * slack;
                    let own =
                        self.estimates.spread(&fastest[chain], span.len() as f64, at, sessions * part, limit);
                    work += part * own.0;
                    slowest = slowest.max(part * own.1);
                }
                work + latency_s + batch * each_s + others * slowest
            };
            let here = [1.0, 1.5, 3.0].map(with).into_iter().fold(f64::INFINITY, f64::min);
            match here < shortest.0 {
                true => (shortest, worse) = ((here, batch), 0),
                false => worse += 1,
            }
        }
        shortest
    }

    /// Mean latency around, and seconds per sequence on all links and on the busiest.
    fn way(&self, fork: &Fork) -> (f64, f64, f64) {
        let (mut latency, mut each, mut narrowest) = (0.0, 0.0, 0.0f64);
        let mut add = |from: usize, to: usize, part: f64| {
            let (seconds, latency_s) = self.estimates.hop(from, to);
            latency += part * latency_s;
            each += part * seconds;
            narrowest = narrowest.max(part * seconds);
        };
        for (index, chain) in fork.chains[..fork.used()].iter().enumerate() {
            let (_, part) = fork.part(index, self.problem.layers());
            chain.windows(2).for_each(|pair| add(pair[0], pair[1], part));
        }
        let (first, second) = fork.chains[..fork.used()].split_at(fork.shape[0]);
        let part = 1.0 / (fork.shape[0] * fork.shape[1]) as f64;
        let mut back = 0.0;
        for (a, b) in first.iter().flat_map(|a| second.iter().map(move |b| (a, b))) {
            if let (Some(&begin), Some(&end), Some(&next), Some(&last)) =
                (a.first(), a.last(), b.first(), b.last())
            {
                add(end, next, part);
                back += part * self.problem.cluster.back_s(last, begin);
            }
        }
        (latency + back, each, narrowest)
    }

    /// The chains cut exactly, with a route for every pair.
    fn routes(&self, (fork, reckoned): &(Fork, Reckoned)) -> Option<Routes> {
        let slacks = SLACKS.iter().filter_map(|&slack| self.cut(fork, reckoned, slack));
        let rate = |routes: &Routes| routes.iter().map(|(.., figures)| figures.tokens_per_s).sum::<f64>();
        slacks.max_by(|a, b| rate(a).total_cmp(&rate(b)))
    }

    fn cut(&self, fork: &Fork, reckoned: &Reckoned, slack: f64) -> Option<Routes> {
        let problem = self.problem;
        let chain = |index: usize| -> Option<(Vec<Stage>, f64)> {
            let (span, part) = fork.part(index, problem.layers());
            let order = &fork.chains[index];
            let sessions = (reckoned.sessions * part).floor().max(1.0) as u64;
            let (balanced, least_s) = quickest_slowest(problem, order, &span, sessions, reckoned.batch)?;
            let fastest = by_speed(problem, order, reckoned.batch);
            let stages =
                spread(problem, order, &span, &fastest, sessions, least_s * slack).unwrap_or(balanced);
            let slowest =
                stages.iter().map(|stage| problem.stage_s(stage, reckoned.batch)).fold(0.0, f64::max);
            Some((stages, 1.0 / slowest))
        };
        let chains: Vec<(Vec<Stage>, f64)> = (0..fork.used()).map(chain).collect::<Option<_>>()?;
        let (first, second) = chains.split_at(fork.shape[0]);
        // Steps go to chains as their slowest stages let them through.
        let parts = |chains: &[(Vec<Stage>, f64)]| -> Vec<f64> {
            let sum: f64 = chains.iter().map(|(_, rate)| rate).sum();
            chains.iter().map(|(_, rate)| rate / sum).collect()
        };
        let (a, b) = (parts(first), parts(second));
        let holds = |chain: &[Stage], part: f64| {
            let most = chain.iter().map(|stage| problem.sessions(stage.node, &stage.layers)).min()??;
            Some(most as f64 / part)
        };
        let rooms = first.iter().zip(&a).chain(second.iter().zip(&b));
        let room = rooms.map(|((chain, _), part)| holds(chain, *part)).collect::<Option<Vec<f64>>>()?;
        let sessions = room.into_iter().fold(f64::from(problem.demand.concurrency), f64::min);
        let mut routes = Vec::new();
        for (head, x) in first.iter().zip(&a) {
            for (tail, y) in second.iter().zip(&b) {
                let up = problem.cluster.hop(head.0.last()?.node, tail.0.first()?.node).is_up();
                let stages = head.0.iter().chain(&tail.0).cloned().collect();
                routes.push((up.then_some(stages)?, x * y));
            }
        }
        let figures = steady_together(problem, &routes, sessions);
        let limits = problem.demand.limits();
        if sessions < routes.len() as f64 || !figures.iter().all(|figures| keeps(figures, limits)) {
            return None;
        }
        let whole = routes.into_iter().zip(figures);
        Some(whole.map(|((stages, part), figures)| (stages, (sessions * part) as u64, figures)).collect())
    }
}
