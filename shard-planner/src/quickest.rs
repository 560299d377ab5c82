//! The pipeline of least time per token: a best-first search over node orders and cuts that ends with a
//! proof, or, cut short, with a bound.
//!
//! A state is the set of nodes used, the last of them, and the layers covered. Its cost so far is exact, and
//! two lower bounds stand for the rest: the least when nodes might be used again (a table, by dynamic
//! programming backwards over cuts), and the least when unused nodes fill the layers left in the order of
//! their speed, each once. The first finished state that comes out of the queue is the best there is.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap},
    ops::Range,
};

use crate::{cluster::Node, plan::Stage, predict::step_s, problem::Problem};

/// Most nodes that are searched over; of more, those are taken that a first look favours.
const CANDIDATES: usize = 40;
/// States kept from one number of stages to the next while a first pipeline is sought.
const BEAM: usize = 128;

/// What a search found.
#[derive(Clone, Debug)]
pub(crate) struct Quickest {
    /// The best pipeline found.
    pub(crate) stages: Vec<Stage>,
    /// Its seconds per token.
    pub(crate) seconds: f64,
    /// No pipeline takes less.
    pub(crate) limit: f64,
}

/// Searches until it is proven or `effort` states were made. `None` if no pipeline was found.
pub(crate) fn quickest(problem: &Problem, sessions: u64, effort: usize) -> Option<Quickest> {
    let search = Search::new(problem, sessions);
    let beam = search.beam();
    let most = beam.as_ref().map_or(f64::INFINITY, |(seconds, _)| *seconds);
    let (found, limit) = search.best_first(most, effort);
    let (_, stages) = found.or(beam)?;
    let seconds = step_s(problem, &stages, sessions as f64);
    Some(Quickest { limit: limit.min(seconds), stages, seconds })
}

struct Search<'a> {
    problem: &'a Problem<'a>,
    batch: f64,
    /// Nodes searched over, by their place here below.
    nodes: Vec<usize>,
    /// For each node, an earlier one that it cannot be told from.
    twin: Vec<Option<usize>>,
    /// Furthest layer of each node from each start.
    reach: Vec<Vec<usize>>,
    /// Seconds of a link between each two nodes for a step's rows, from × to.
    hop: Vec<Vec<f64>>,
    /// Least seconds from a cut on, being at a node and having begun at another, if nodes could be used again.
    rest: Vec<Vec<Vec<f64>>>,
    /// Nodes by speed with their least seconds for a layer and most layers.
    fastest: Vec<(usize, f64, usize)>,
    least_hop: f64,
    /// Nothing faster was left out of `nodes`.
    outside: f64,
}

#[derive(Clone, Debug)]
struct State {
    /// Cost so far plus the bound on the rest.
    promise: f64,
    cost: f64,
    used: u64,
    first: usize,
    last: usize,
    cut: usize,
    /// Index in the arena of the state before, and where this stage began.
    before: Option<usize>,
    start: usize,
}

/// Least promise first; of equals, what has got further.
struct Queued(f64, usize, usize);

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.total_cmp(&self.0).then(self.1.cmp(&other.1)).then(other.2.cmp(&self.2))
    }
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem<'a>, sessions: u64) -> Self {
        let batch = sessions as f64;
        let layers = problem.layers();
        let usable = |node: usize| (problem.max_batch(node) >= batch).then_some(node);
        let fits = |node: usize, range: &Range<usize>| problem.fits(node, range, sessions);
        let reach = |node: usize| -> Vec<usize> {
            (0..layers).map(|from| problem.reach(from, problem.layers(), |range| fits(node, range))).collect()
        };
        let mut known: Vec<(usize, f64, usize, Vec<usize>)> = (0..problem.cluster.len())
            .filter_map(usable)
            .map(|node| {
                let reach = reach(node);
                let most = reach.iter().enumerate().map(|(from, to)| to - from).max().unwrap_or(0);
                let least = least_layer_s(problem, node, batch);
                (node, least, most, reach)
            })
            .filter(|(_, _, most, _)| *most > 0)
            .collect();
        known.sort_by(|a, b| a.1.total_cmp(&b.1).then(b.2.cmp(&a.2)).then(a.0.cmp(&b.0)));
        let all: Vec<(f64, usize)> = known.iter().map(|(_, least, most, _)| (*least, *most)).collect();
        if known.len() > CANDIDATES {
            known = shortlist(problem, known);
        }
        let nodes: Vec<usize> = known.iter().map(|(node, ..)| *node).collect();
        let outside = match nodes.len() < all.len() {
            true => fill(layers, all.into_iter()).0,
            false => f64::INFINITY,
        };
        let bytes = problem.rows_bytes(batch);
        let link = |from: usize, to: usize| problem.cluster.hop(from, to);
        let hop: Vec<Vec<f64>> = nodes
            .iter()
            .map(|&from| nodes.iter().map(|&to| link(from, to).seconds(bytes)).collect())
            .collect();
        let between =
            (0..nodes.len()).flat_map(|a| (0..nodes.len()).map(move |b| (a, b))).filter(|(a, b)| a != b);
        let least_hop = between.map(|(a, b)| hop[a][b]).fold(f64::INFINITY, f64::min);
        let mut fastest: Vec<(usize, f64, usize)> =
            known.iter().enumerate().map(|(at, (_, least, most, _))| (at, *least, *most)).collect();
        fastest.sort_by(|a, b| a.1.total_cmp(&b.1));
        let twin = twins(problem, &nodes);
        let reach = known.into_iter().map(|(.., reach)| reach).collect();
        let least_hop = if least_hop.is_finite() { least_hop } else { 0.0 };
        let mut search =
            Self { problem, batch, nodes, twin, reach, hop, rest: Vec::new(), fastest, least_hop, outside };
        search.rest = search.rest_table();
        search
    }

    fn work(&self, at: usize, range: &Range<usize>) -> f64 {
        self.problem.decode_s(self.nodes[at], range, self.batch)
    }

    fn back(&self, last: usize, first: usize) -> f64 {
        self.problem.cluster.back_s(self.nodes[last], self.nodes[first])
    }

    /// `rest[first][last][cut]`, backwards over cuts.
    fn rest_table(&self) -> Vec<Vec<Vec<f64>>> {
        let (count, layers) = (self.nodes.len(), self.problem.layers());
        // Least from a cut on when the stage that starts there is `at`: without the hop to it.
        let work: Vec<Vec<Vec<f64>>> = (0..count)
            .map(|at| {
                (0..layers)
                    .map(|from| {
                        (from + 1..=self.reach[at][from]).map(|to| self.work(at, &(from..to))).collect()
                    })
                    .collect()
            })
            .collect();
        (0..count)
            .map(|first| {
                let mut rest = vec![vec![f64::INFINITY; layers + 1]; count];
                for (last, rest) in rest.iter_mut().enumerate() {
                    rest[layers] = self.back(last, first);
                }
                for cut in (1..layers).rev() {
                    let from: Vec<f64> = (0..count)
                        .map(|next| {
                            let ends = work[next][cut].iter().zip(&rest[next][cut + 1..]);
                            ends.map(|(work, rest)| work + rest).fold(f64::INFINITY, f64::min)
                        })
                        .collect();
                    for (last, rest) in rest.iter_mut().enumerate() {
                        let others = (0..count).filter(|&next| next != last);
                        rest[cut] = others
                            .map(|next| self.hop[last][next] + from[next])
                            .fold(f64::INFINITY, f64::min);
                    }
                }
                rest
            })
            .collect()
    }

    /// Least seconds for what is left of `state`, by both bounds.
    fn bound(&self, state: &State) -> f64 {
        let again = self.rest[state.first][state.last][state.cut];
        let left = self.problem.layers() - state.cut;
        if left == 0 || again.is_infinite() {
            return again;
        }
        let unused = self.fastest.iter().filter(|(at, ..)| state.used >> at & 1 == 0);
        let (work, stages) = fill(left, unused.map(|(_, least, most)| (*least, *most)));
        again.max(work + stages as f64 * self.least_hop)
    }

    /// Every state that follows, within `most`.
    fn follow(&self, before: Option<(usize, &State)>, most: f64, mut each: impl FnMut(State)) {
        for at in 0..self.nodes.len() {
            let used = before.map_or(0, |(_, state)| state.used);
            let hidden = self.twin[at].is_some_and(|twin| used >> twin & 1 == 0);
            if used >> at & 1 == 1 || hidden {
                continue;
            }
            let (start, cost) = match before {
                None => (0, 0.0),
                Some((_, state)) => (state.cut, state.cost + self.hop[state.last][at]),
            };
            if !cost.is_finite() {
                continue;
            }
            let first = before.map_or(at, |(_, state)| state.first);
            for cut in (start + 1..=self.reach[at][start]).rev() {
                let mut state = State {
                    promise: 0.0,
                    cost: cost + self.work(at, &(start..cut)),
                    used: used | 1 << at,
                    first,
                    last: at,
                    cut,
                    before: before.map(|(index, _)| index),
                    start,
                };
                state.promise = state.cost + self.bound(&state);
                if state.promise < most {
                    each(state);
                }
            }
        }
    }

    /// A good pipeline soon: the most promising states of one, two, … stages.
    fn beam(&self) -> Option<(f64, Vec<Stage>)> {
        let layers = self.problem.layers();
        let mut arena: Vec<State> = Vec::new();
        let mut level: Vec<Option<usize>> = vec![None];
        let mut best: Option<(f64, Vec<Stage>)> = None;
        while !level.is_empty() {
            let most = best.as_ref().map_or(f64::INFINITY, |(seconds, _)| *seconds);
            let mut next: Vec<State> = Vec::new();
            for index in level {
                let before = index.map(|index| (index, &arena[index]));
                self.follow(before, most, |state| next.push(state));
            }
            next.sort_by(|a, b| a.promise.total_cmp(&b.promise));
            if let Some(done) = next.iter().find(|state| state.cut == layers)
                && best.as_ref().is_none_or(|(seconds, _)| done.promise < *seconds)
            {
                best = Some((done.promise, self.stages(&arena, done)));
            }
            next.retain(|state| state.cut < layers);
            next.truncate(BEAM);
            let from = arena.len();
            arena.extend(next);
            level = (from..arena.len()).map(Some).collect();
        }
        best
    }

    /// The best pipeline below `most`, and the bound: its own cost if the search came to an end.
    fn best_first(&self, most: f64, effort: usize) -> (Option<(f64, Vec<Stage>)>, f64) {
        let layers = self.problem.layers();
        let mut arena: Vec<State> = Vec::new();
        let mut queue = BinaryHeap::new();
        let mut seen: HashMap<(usize, u64, usize, usize), f64> = HashMap::new();
        let mut made = Vec::new();
        // What is as good as the known pipeline is of no use.
        self.follow(None, most, |state| made.push(state));
        loop {
            for state in made.drain(..) {
                let key = (state.first, state.used, state.last, state.cut);
                let known = seen.entry(key).or_insert(f64::INFINITY);
                if state.cost < *known {
                    *known = state.cost;
                    queue.push(Queued(state.promise, state.cut, arena.len()));
                    arena.push(state);
                }
            }
            let Some(Queued(promise, _, index)) = queue.pop() else { return (None, most.min(self.outside)) };
            let state = &arena[index];
            if state.cut == layers {
                return (Some((promise, self.stages(&arena, state))), promise.min(self.outside));
            }
            if arena.len() >= effort {
                return (None, promise.min(self.outside));
            }
            if seen
                .get(&(state.first, state.used, state.last, state.cut))
                .is_some_and(|best| *best < state.cost)
            {
                continue;
            }
            let state = state.clone();
            self.follow(Some((index, &state)), most, |next| made.push(next));
        }
    }

    fn stages(&self, arena: &[State], last: &State) -> Vec<Stage> {
        let mut stages = Vec::new();
        let mut state = Some(last);
        while let Some(at) = state {
            stages.push(Stage { node: self.nodes[at.last], layers: at.start..at.cut });
            state = at.before.map(|before| &arena[before]);
        }
        stages.reverse();
        stages
    }
}

fn least_layer_s(problem: &Problem, node: usize, batch: f64) -> f64 {
    let lightest = (0..problem.layers()).min_by_key(|&layer| problem.weights.layers[layer]).unwrap_or(0);
    let weight = problem.weights.layers[lightest] as f64 / problem.weights.total() as f64;
    // The whole model's time without its head would do for equal layers; the lightest is a bound for all.
    let whole = problem.decode_s(node, &(0..problem.layers()), batch);
    let head = (problem.weights.total() - problem.weights.embedding) as f64 / problem.weights.total() as f64;
    whole * weight / head
}

/// Least seconds and stages to fill `layers` with nodes in the order of their speed.
fn fill(mut layers: usize, nodes: impl Iterator<Item = (f64, usize)>) -> (f64, usize) {
    let mut seconds = 0.0;
    let (mut stages, mut largest) = (0, 0);
    let left = layers;
    for (least, most) in nodes {
        largest = largest.max(most);
        if layers > 0 {
            let taken = layers.min(most);
            seconds += taken as f64 * least;
            layers -= taken;
        }
    }
    if largest > 0 {
        stages = left.div_ceil(largest);
    }
    match layers {
        0 => (seconds, stages),
        _ => (f64::INFINITY, stages),
    }
}

/// Of many nodes, the fastest, the largest, and those nearest to the fastest.
fn shortlist(
    problem: &Problem,
    mut known: Vec<(usize, f64, usize, Vec<usize>)>,
) -> Vec<(usize, f64, usize, Vec<usize>)> {
    let fastest = known.first().map_or(0, |(node, ..)| *node);
    let bytes = problem.rows_bytes(1.0);
    let value = |entry: &(usize, f64, usize, Vec<usize>)| {
        let layers = entry.2 as f64;
        let hop = problem.cluster.hop(fastest, entry.0).seconds(bytes);
        // Seconds per layer when full, with its share of the link.
        entry.1 + if entry.0 == fastest { 0.0 } else { hop / layers }
    };
    known.sort_by(|a, b| value(a).total_cmp(&value(b)).then(a.0.cmp(&b.0)));
    known.truncate(CANDIDATES);
    known
}

/// For each node the nearest earlier one that is the same in every respect, so that only one of them has to
/// be tried next.
fn twins(problem: &Problem, nodes: &[usize]) -> Vec<Option<usize>> {
    let cluster = problem.cluster;
    let same = |a: usize, b: usize| {
        let (one, other) = (&cluster.nodes()[a], &cluster.nodes()[b]);
        let room = |node: &Node| (node.memory, node.kv_memory, node.max_weights, node.max_sessions);
        let alike = room(one) == room(other)
            && one.max_layers == other.max_layers
            && one.pinned == other.pinned
            && one.max_batch == other.max_batch
            && one.rates == other.rates
            && one.profiles == other.profiles;
        let links = || {
            cluster.hop(a, b) == cluster.hop(b, a)
                && nodes.iter().filter(|&&c| c != a && c != b).all(|&c| {
                    cluster.hop(a, c) == cluster.hop(b, c) && cluster.hop(c, a) == cluster.hop(c, b)
                })
        };
        let back = || cluster.coordinator().is_none_or(|c| c.to[a] == c.to[b] && c.from[a] == c.from[b]);
        alike && back() && links()
    };
    (0..nodes.len()).map(|at| (0..at).rev().find(|&earlier| same(nodes[earlier], nodes[at]))).collect()
}
