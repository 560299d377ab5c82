//! Many pipelines at once: which nodes work together, found by annealing over the estimate, then cut exactly.

use std::collections::HashMap;

use crate::{
    branches::{Routes, branched},
    cut::{Line, cut, filled},
    demand::Objective,
    draw::Draw,
    estimate::{Estimate, Estimates},
    overlap::overlapping,
    problem::Problem,
};

/// Rounds of the search for each number of pipelines, at least, and what each node adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// States of the exact search.
    pub states: usize,
    /// Moves tried by the annealing for each number of pipelines.
    pub moves: usize,
}

impl Default for Effort {
    fn default() -> Self {
        Self { states: 100_000, moves: 4000 }
    }
}

/// The best pipelines found; empty if none was.
pub(crate) fn best_lines(problem: &Problem, effort: Effort) -> Vec<Line> {
    let search = Search::new(problem, 1.0);
    let rate = |lines: &[Line]| search.score(lines.iter().map(|line| search.worth(line)));
    let sets = search.sets(effort).into_iter();
    sets.max_by(|a, b| rate(a).total_cmp(&rate(b))).unwrap_or_default()
}

/// Good sets of pipelines, by kind: of nodes of their own, sharing nodes, and over ranges that overlap. The
/// first two are also sought for links taken to be slower than they are.
pub(crate) fn kinds(problem: &Problem, effort: Effort) -> [Vec<Routes>; 3] {
    const CAUTIONS: [f64; 2] = [1.0, 3.0];
    let all: Vec<usize> = (0..problem.cluster.len()).collect();
    let cautions = if is_uniform(problem, &all) { &CAUTIONS[..1] } else { &CAUTIONS[..] };
    let (mut apart, mut shared) = (Vec::new(), Vec::new());
    for &caution in cautions {
        let search = Search::new(problem, caution);
        apart.extend(search.sets(effort).into_iter().map(routes));
        shared.extend(branched(problem, &search.tour, caution, effort.moves / 2));
    }
    [apart, shared, overlapping(problem, &tour(problem), effort.moves / 16)]
}

pub(crate) fn routes(lines: Vec<Line>) -> Routes {
    lines.into_iter().map(|line| (line.stages, line.sessions, line.figures)).collect()
}

struct Search<'a> {
    problem: &'a Problem<'a>,
    estimates: Estimates<'a>,
    /// All nodes in an order in which neighbours are near.
    tour: Vec<usize>,
    /// Place of each node in the tour.
    place: Vec<usize>,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem<'a>, caution: f64) -> Self {
        let tour = tour(problem);
        let mut place = vec![0; tour.len()];
        for (at, &node) in tour.iter().enumerate() {
            place[node] = at;
        }
        Self { problem, estimates: Estimates::new(problem, caution), tour, place }
    }

    /// Sets of one pipeline, two, …, while more are not clearly worse.
    fn sets(&self, effort: Effort) -> Vec<Vec<Line>> {
        let mut sets: Vec<Vec<Line>> = Vec::new();
        let mut best = 0.0f64;
        let mut worse = 0;
        for count in 1..=self.most_pipelines() {
            let moves = effort.moves / 2;
            // From stretches of neighbours, and from nodes that are alike.
            let by_speed = self.estimates.by_speed(&self.tour);
            let starts =
                [&self.tour, &by_speed].map(|order| self.anneal(self.first_groups(order, count), moves));
            let groups =
                starts.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).map_or(Vec::new(), |best| best.1);
            let lines = self.lines(&groups);
            let score = self.score(lines.iter().map(|line| self.worth(line)));
            worse = if score > best { 0 } else { worse + 1 };
            best = best.max(score);
            if !lines.is_empty() {
                sets.push(lines);
            }
            if worse > 2 || self.is_cost() {
                break;
            }
        }
        sets
    }

    fn is_cost(&self) -> bool {
        matches!(self.problem.demand.objective, Objective::Cost(_))
    }

    /// Tokens per second, or tokens per price where that is the objective.
    fn score(&self, worth: impl Iterator<Item = (f64, f64)>) -> f64 {
        let (rate, price) = worth.fold((0.0, 0.0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
        match self.is_cost() && price > 0.0 {
            true => rate / price,
            false => rate,
        }
    }

    fn worth(&self, line: &Line) -> (f64, f64) {
        let nodes = self.problem.cluster.nodes();
        (line.figures.tokens_per_s, line.stages.iter().map(|stage| nodes[stage.node].price).sum())
    }

    /// Pipelines that all memory could hold at most.
    fn most_pipelines(&self) -> usize {
        let memory: f64 = self.problem.cluster.nodes().iter().map(|node| node.memory as f64).sum();
        ((memory / self.problem.weights.total() as f64) as usize).clamp(1, self.tour.len())
    }

    fn most_sessions(&self, count: usize) -> f64 {
        (f64::from(self.problem.demand.concurrency) / count as f64).max(1.0)
    }

    /// Members in the order of the tour, turned so that the worst link is the way back.
    fn ordered(&self, members: &[usize]) -> Vec<usize> {
        let mut order = members.to_vec();
        order.sort_by_key(|&node| self.place[node]);
        let bytes = self.problem.step_bytes(8.0);
        let cost =
            |at: usize| self.problem.cluster.hop(order[at], order[(at + 1) % order.len()]).seconds(bytes);
        if let Some(worst) = (0..order.len()).max_by(|&a, &b| cost(a).total_cmp(&cost(b)).then(a.cmp(&b))) {
            let turn = (worst + 1) % order.len();
            order.rotate_left(turn);
        }
        order
    }

    /// Better groups of nodes, by simulated annealing: a node changes its group, or two change places. The last
    /// group is of the nodes that are not used. Returns their score and the groups without the last.
    fn anneal(&self, mut groups: Vec<Vec<usize>>, moves: usize) -> (f64, Vec<Vec<usize>>) {
        let count = groups.len() - 1;
        let mut draw = Draw::new(0x5eed + count as u64);
        let nodes = self.tour.len();
        let most = self.most_sessions(count);
        let estimate = |members: &[usize], near: f64| self.estimates.of(&self.ordered(members), most, near);
        let mut known: Vec<Estimate> = groups[..count].iter().map(|members| estimate(members, 0.0)).collect();
        let total = |known: &[Estimate]| self.score(known.iter().map(|e| (e.tokens_per_s, e.price)));
        let mut score = total(&known);
        let mut best = (score, groups.clone());
        for step in 0..moves {
            let temperature = 0.03 * (1.0 - step as f64 / moves as f64);
            let node = draw.below(nodes);
            let Some(from) = groups.iter().position(|group| group.contains(&node)) else { continue };
            let to = draw.below(count + 1);
            if to == from {
                continue;
            }
            let swapped = match draw.unit() < 0.5 && !groups[to].is_empty() {
                true => Some(groups[to][draw.below(groups[to].len())]),
                false => None,
            };
            exchange(&mut groups, from, to, node, swapped);
            let old = known.clone();
            for group in [from, to] {
                if group < count {
                    known[group] = estimate(&groups[group], old[group].sessions);
                }
            }
            let next = total(&known);
            let accepted =
                next >= score || draw.unit() < ((next / score - 1.0) / temperature.max(1e-9)).exp();
            if !accepted {
                known = old;
                undo(&mut groups, from, to, node, swapped);
                continue;
            }
            score = next;
            if score > best.0 {
                best = (score, groups.clone());
            }
        }
        best.1.truncate(count);
        best
    }

    /// Nodes in an order, in stretches of equal memory, and an empty group for those that are not used.
    fn first_groups(&self, order: &[usize], count: usize) -> Vec<Vec<usize>> {
        let nodes = self.problem.cluster.nodes();
        let memory: f64 = nodes.iter().map(|node| node.memory as f64).sum();
        let mut groups = vec![Vec::new(); count + 1];
        let mut before = 0.0;
        for &node in order {
            let own = nodes[node].memory as f64;
            let group = ((before + own / 2.0) / memory * count as f64) as usize;
            groups[group.min(count - 1)].push(node);
            before += own;
        }
        groups
    }

    /// The groups as pipelines, each cut as well as can be in a few orders of its nodes.
    fn lines(&self, groups: &[Vec<usize>]) -> Vec<Line> {
        let most = self.most_sessions(groups.len()) as u64;
        groups.iter().filter_map(|members| self.line(members, most)).collect()
    }

    /// The pipeline of these nodes, in the order of the tour bettered by exchanges of two.
    fn line(&self, members: &[usize], most: u64) -> Option<Line> {
        let mut order = self.ordered(members);
        for _ in 0..4 {
            let before = self.way_s(&order);
            for a in 0..order.len() {
                for b in a + 1..order.len() {
                    let now = self.way_s(&order);
                    order.swap(a, b);
                    if self.way_s(&order) >= now * (1.0 - 1e-9) {
                        order.swap(a, b);
                    }
                }
            }
            if self.way_s(&order) >= before * 0.999 {
                break;
            }
        }
        let straight = cut(self.problem, &order, most);
        order.reverse();
        let reverse = if is_uniform(self.problem, &order) { None } else { cut(self.problem, &order, most) };
        let rate = |line: &Option<Line>| line.as_ref().map_or(0.0, |line| line.figures.tokens_per_s);
        if rate(&reverse) > rate(&straight) { reverse } else { straight }
    }

    /// Seconds on all links of an order for a step of some size; the narrowest counts for the groups that wait.
    fn way_s(&self, order: &[usize]) -> f64 {
        const BATCH: f64 = 8.0;
        let bytes = self.problem.step_bytes(BATCH);
        let cluster = self.problem.cluster;
        let hops = || order.windows(2).map(|pair| cluster.hop(pair[0], pair[1]));
        let back = order.first().zip(order.last()).map_or(0.0, |(&first, &last)| cluster.back_s(last, first));
        let narrowest = hops().map(|hop| bytes / hop.rate).fold(0.0, f64::max);
        hops().map(|hop| hop.seconds(bytes)).sum::<f64>() + back + narrowest * order.len() as f64
    }
}

/// Whether every link between these nodes is the same.
fn is_uniform(problem: &Problem, members: &[usize]) -> bool {
    let cluster = problem.cluster;
    let mut hops = members.windows(2).flat_map(|pair| [(pair[0], pair[1]), (pair[1], pair[0])]);
    hops.next().is_none_or(|(a, b)| hops.all(|(c, d)| cluster.hop(a, b) == cluster.hop(c, d)))
}

fn exchange(groups: &mut [Vec<usize>], from: usize, to: usize, node: usize, swapped: Option<usize>) {
    groups[from].retain(|&member| member != node);
    groups[to].push(node);
    if let Some(other) = swapped {
        groups[to].retain(|&member| member != other);
        groups[from].push(other);
    }
}

fn undo(groups: &mut [Vec<usize>], from: usize, to: usize, node: usize, swapped: Option<usize>) {
    groups[to].retain(|&member| member != node);
    groups[from].push(node);
    if let Some(other) = swapped {
        groups[from].retain(|&member| member != other);
        groups[to].push(other);
    }
}

/// All nodes in an order in which neighbours are near: always on to the nearest that is left.
pub(crate) fn tour(problem: &Problem) -> Vec<usize> {
    let cluster = problem.cluster;
    let bytes = problem.step_bytes(8.0);
    let near = |from: usize, to: usize| cluster.hop(from, to).seconds(bytes);
    let mut left: Vec<usize> = (0..cluster.len()).collect();
    let mut tour = vec![left.remove(0)];
    while let Some(next) = {
        let last = tour[tour.len() - 1];
        (0..left.len()).min_by(|&a, &b| near(last, left[a]).total_cmp(&near(last, left[b])).then(a.cmp(&b)))
    } {
        tour.push(left.remove(next));
    }
    tour
}

/// Gives the replies that are asked for to the pipelines, a few at a time, each where it adds most.
pub(crate) fn deal_sessions(problem: &Problem, lines: Vec<Line>) -> Vec<Line> {
    let asked = u64::from(problem.demand.concurrency);
    let room: u64 = lines.iter().map(|line| line.sessions).sum();
    let limits_hold = |lines: &[Line]| lines.iter().map(|line| line.sessions).sum::<u64>() <= asked;
    if limits_hold(&lines) && room >= asked {
        return lines;
    }
    let whole: Vec<Line> = lines.into_iter().filter_map(|line| filled(problem, line.stages, asked)).collect();
    if limits_hold(&whole) {
        return whole;
    }
    let portion = (asked / 64).max(1);
    let mut dealt: Vec<(u64, Option<Line>)> = whole.iter().map(|_| (0, None)).collect();
    let mut memo: HashMap<(usize, u64), Option<Line>> = HashMap::new();
    let mut left = asked;
    while left > 0 {
        let more = portion.min(left);
        let mut best: Option<(f64, usize, Line)> = None;
        for (index, line) in whole.iter().enumerate() {
            let sessions = dealt[index].0 + more;
            if sessions > line.sessions {
                continue;
            }
            let next = memo
                .entry((index, sessions))
                .or_insert_with(|| filled(problem, line.stages.clone(), sessions));
            let Some(next) = next else { continue };
            let now = dealt[index].1.as_ref().map_or(0.0, |line| line.figures.tokens_per_s);
            let gain = next.figures.tokens_per_s - now;
            if best.as_ref().is_none_or(|(most, ..)| gain > *most) {
                best = Some((gain, index, next.clone()));
            }
        }
        let Some((_, index, line)) = best else { break };
        dealt[index] = (dealt[index].0 + more, Some(line));
        left -= more;
    }
    dealt.into_iter().filter_map(|(_, line)| line).collect()
}
