//! What no set of pipelines with nodes of their own can pass: the best partition of the nodes, as an integer program.
//!
//! Nodes that are alike are counted, not named. For every number of nodes of each kind there is a bound on what one
//! pipeline of them does: the closed form's round, with the model cut anywhere, even within a layer, over links that
//! take their latency alone. Which pipelines there are, and of how many nodes, is then an integer program over these
//! columns: no more nodes of a kind than there are, and the most tokens per second.

use microlp::{ComparisonOp, OptimizationDirection, SolveOptions, Variable};

use crate::{cluster::Node, priced::most_of_columns, problem::Problem};

/// Most columns that are listed; of more, those are looked at that prices do not pay for, and no more than so many.
const MOST_COLUMNS: usize = 1024;
const MOST_LOOKS: usize = 4000;
/// Most rounds looked at, over all columns, sessions and batches.
const MOST_ROUNDS: usize = 30_000_000;
/// Nodes of the branch and bound, after which its bound is taken as it is.
const MOST_BRANCHES: u64 = 50;
/// Steps in which sessions and batches are counted: each is taken for the best within.
const STEP: f64 = 1.06;

/// The bound in tokens per second.
pub(crate) fn most_of_pipelines(problem: &Problem) -> Option<f64> {
    most_by_columns(problem, MOST_COLUMNS)
}

/// The same, where no more columns are listed than so many.
pub(crate) fn most_by_columns(problem: &Problem, listed: usize) -> Option<f64> {
    let kinds = kinds(problem);
    let count = kinds.iter().try_fold(1usize, |all, kind| all.checked_mul(kind.count + 1));
    let mut pipelines = Pipelines::new(problem, &kinds);
    let room: Vec<usize> = kinds.iter().map(|kind| kind.count).collect();
    // Rounds looked at for a column.
    let rounds = (pipelines.batches.len() * pipelines.steps(&room).len()).max(1);
    let rate = match count.filter(|count| *count <= listed && *count <= MOST_ROUNDS / rounds) {
        Some(count) => of_listed(&pipelines, &room, count)?,
        None => {
            // Then more nodes never do less.
            pipelines.any_batch = true;
            let most = pipelines.most_at_once(&room);
            most_of_columns(&room, most, MOST_LOOKS.min(MOST_ROUNDS / rounds), |counts| {
                pipelines.most(counts)
            })?
        }
    };
    // What the solver's tolerances may hide.
    Some(rate * (1.0 + 1e-6))
}

/// The most of all columns, of which there are so many.
fn of_listed(pipelines: &Pipelines, room: &[usize], count: usize) -> Option<f64> {
    let column = |mut index: usize| -> Vec<usize> {
        let digit = |kind: &Kind| {
            let digit = index % (kind.count + 1);
            index /= kind.count + 1;
            digit
        };
        pipelines.kinds.iter().map(digit).collect()
    };
    let columns = (1..count).map(column).map(|counts| (pipelines.most(&counts), counts));
    let columns: Vec<(f64, Vec<usize>)> = columns.filter(|(rate, _)| *rate > 0.0).collect();
    best_partition(&columns, room)
}

/// Most of the sum of columns' values, each taken as often as `room` has what it counts; a bound on it where the
/// search is cut short.
fn best_partition(columns: &[(f64, Vec<usize>)], room: &[usize]) -> Option<f64> {
    if columns.is_empty() {
        return Some(0.0);
    }
    let largest = columns.iter().map(|(value, _)| *value).fold(0.0, f64::max);
    if !largest.is_finite() {
        return None;
    }
    let mut program = microlp::Problem::new(OptimizationDirection::Maximize);
    let often = |counts: &[usize]| {
        let times =
            counts.iter().zip(room).filter(|(count, _)| **count > 0).map(|(count, room)| room / count);
        i32::try_from(times.min().unwrap_or(0)).unwrap_or(i32::MAX)
    };
    let variables: Vec<Variable> = columns
        .iter()
        .map(|(value, counts)| program.add_integer_var(value / largest, (0, often(counts))))
        .collect();
    for (kind, &room) in room.iter().enumerate() {
        let uses: Vec<(Variable, f64)> = variables
            .iter()
            .zip(columns)
            .map(|(&variable, column)| (variable, column.1[kind] as f64))
            .collect();
        program.add_constraint(uses, ComparisonOp::Le, room as f64);
    }
    let mut options = SolveOptions::default();
    options.node_limit = Some(MOST_BRANCHES);
    let outcome = program.solve_with(options).ok()?;
    let proven = outcome.solution().filter(|_| outcome.is_optimal()).map(|solution| solution.objective());
    proven.or(outcome.stats().best_bound).map(|value| value * largest)
}

/// Nodes that are alike.
struct Kind {
    count: usize,
    /// One of them.
    node: usize,
    /// Most of the model's bytes that one may hold, as a part of all, whatever its memory.
    most: f64,
}

fn kinds(problem: &Problem) -> Vec<Kind> {
    let nodes = problem.cluster.nodes();
    let layers = &problem.weights.layers;
    let all = layers.iter().sum::<u64>() as f64;
    let largest = layers.iter().copied().max().unwrap_or(0) as f64;
    let mut kinds: Vec<Kind> = Vec::new();
    for (node, own) in nodes.iter().enumerate() {
        let alike = |kind: &&mut Kind| {
            let other = &nodes[kind.node];
            let room = |node: &Node| (node.memory, node.kv_memory, node.max_weights, node.max_sessions);
            (room(own), own.max_layers, own.max_batch) == (room(other), other.max_layers, other.max_batch)
                && (&own.pinned, &own.profiles, own.rates) == (&other.pinned, &other.profiles, other.rates)
        };
        if let Some(kind) = kinds.iter_mut().find(alike) {
            kind.count += 1;
            continue;
        }
        let pinned = own.pinned.clone().map_or(all, |range| layers[range].iter().sum::<u64>() as f64);
        let counted = own.max_layers.map_or(all, |most| most as f64 * largest);
        kinds.push(Kind { count: 1, node, most: (pinned.min(counted) / all).min(1.0) });
    }
    kinds
}

/// Batches from `from` to `to`, with the least seconds of each kind for the whole model.
struct Batches {
    from: f64,
    to: f64,
    seconds: Vec<f64>,
    /// Kinds, the fastest first.
    fastest: Vec<usize>,
}

/// One kind's part in a pipeline: nodes, seconds for the whole model, and most of the model that each holds.
type Part = (f64, f64, f64);

struct Pipelines<'a> {
    problem: &'a Problem<'a>,
    kinds: &'a [Kind],
    batches: Vec<Batches>,
    /// Shortest link and shortest way back.
    hop_s: f64,
    back_s: f64,
    /// Steps may be larger than the nodes take.
    any_batch: bool,
}

impl<'a> Pipelines<'a> {
    fn new(problem: &'a Problem<'a>, kinds: &'a [Kind]) -> Self {
        let cluster = problem.cluster;
        let all = 0..cluster.len();
        let pairs = || all.clone().flat_map(|from| all.clone().map(move |to| (from, to)));
        let hops = pairs().filter(|(from, to)| from != to).map(|(from, to)| cluster.hop(from, to));
        let hop_s = hops.filter(|hop| hop.is_up()).map(|hop| hop.latency_s).fold(f64::INFINITY, f64::min);
        let back_s = pairs().map(|(from, to)| cluster.back_s(from, to)).fold(f64::INFINITY, f64::min);
        let most = kinds.iter().map(|kind| problem.max_batch(kind.node)).fold(1.0, f64::max);
        let most = most.min(f64::from(problem.demand.concurrency));
        let next = |from: &f64| (*from < most).then_some(from * STEP);
        let batches = std::iter::successors(Some(1.0), next).map(|from| {
            let to = from * STEP;
            let seconds: Vec<f64> = kinds.iter().map(|kind| least_s(problem, kind.node, from, to)).collect();
            let mut fastest: Vec<usize> = (0..kinds.len()).collect();
            fastest.sort_by(|&a, &b| seconds[a].total_cmp(&seconds[b]).then(a.cmp(&b)));
            Batches { from, to, seconds, fastest }
        });
        Self { problem, kinds, batches: batches.collect(), hop_s, back_s, any_batch: false }
    }

    /// Numbers of sessions that these nodes can hold, and how much of the model each kind then holds.
    fn steps(&self, counts: &[usize]) -> Vec<(f64, Vec<f64>)> {
        let asked = f64::from(self.problem.demand.concurrency);
        let next = |sessions: &f64| Some(after(*sessions)).filter(|next| *next <= asked);
        let holds = |sessions: f64| -> Vec<f64> {
            self.kinds.iter().map(|kind| self.holds(kind, sessions)).collect()
        };
        // Nodes may be full to the last byte.
        let whole = |holds: &[f64]| {
            counts.iter().zip(holds).map(|(&count, held)| count as f64 * held).sum::<f64>() >= 1.0 - 1e-9
        };
        let steps = std::iter::successors(Some(1.0), next).map(|sessions| (sessions, holds(sessions)));
        steps.take_while(|(_, holds)| whole(holds)).collect()
    }

    /// Pipelines that there may be at once: each holds the model.
    fn most_at_once(&self, room: &[usize]) -> f64 {
        let holds = self.kinds.iter().zip(room).map(|(kind, &count)| count as f64 * self.holds(kind, 1.0));
        (holds.sum::<f64>() + 1e-9).floor()
    }

    /// More tokens per second than one pipeline of so many nodes of each kind does.
    fn most(&self, counts: &[usize]) -> f64 {
        let asked = f64::from(self.problem.demand.concurrency);
        // From the most sessions down, since these mostly are best.
        self.steps(counts).iter().rev().fold(0.0, |best, (sessions, holds)| {
            let most = (after(*sessions) - 1.0).min(asked);
            best.max(self.most_with(counts, holds, most, best))
        })
    }

    /// The same with `sessions` at most, where nodes hold so much of the model; anything less than `known` where that
    /// is not passed.
    fn most_with(&self, counts: &[usize], holds: &[f64], sessions: f64, known: f64) -> f64 {
        let used = counts.iter().zip(self.kinds).filter(|(count, _)| **count > 0);
        let own = used.map(|(_, kind)| self.problem.max_batch(kind.node)).fold(sessions, f64::min);
        let batch = if self.any_batch { sessions } else { own };
        let way_s = self.way_s(counts, holds);
        let mut best = known;
        for batches in self.batches.iter().take_while(|batches| batches.from <= batch) {
            let groups = (sessions / batches.to - 1.0).max(0.0);
            let fastest = || batches.fastest.iter().filter(|kind| counts[**kind] > 0);
            let rate: f64 = fastest().map(|&kind| counts[kind] as f64 / batches.seconds[kind]).sum();
            let first_s = fastest().next().map_or(0.0, |&kind| batches.seconds[kind]);
            // With memory without end.
            if sessions <= best * (first_s + groups / rate + way_s) {
                continue;
            }
            let part = |&kind: &usize| (counts[kind] as f64, batches.seconds[kind], holds[kind]);
            let parts: Vec<Part> = fastest().map(part).collect();
            best = best.max(sessions / (least_round_s(&parts, groups) + way_s));
        }
        best
    }

    /// Most of the model that a node holds beside KV for `sessions`, wherever its range lies.
    fn holds(&self, kind: &Kind, sessions: f64) -> f64 {
        let layers = &self.problem.weights.layers;
        let kv =
            layers.iter().zip(&self.problem.model.kv_bytes).map(|(&bytes, &kv)| kv as f64 / bytes as f64);
        let each = sessions * f64::from(self.problem.demand.context) * kv.fold(f64::INFINITY, f64::min);
        let all = layers.iter().sum::<u64>() as f64;
        (self.problem.cluster.nodes()[kind.node].all_memory() as f64 / (all * (1.0 + each))).min(kind.most)
    }

    /// Latency around as few stages as can be.
    fn way_s(&self, counts: &[usize], holds: &[f64]) -> f64 {
        let mut largest: Vec<(f64, usize)> = holds.iter().copied().zip(counts.iter().copied()).collect();
        largest.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (mut left, mut stages) = (1.0, 0.0);
        for (held, count) in largest.into_iter().filter(|(held, _)| *held > 0.0) {
            let nodes = (left / held - 1e-9).ceil().clamp(0.0, count as f64);
            left -= nodes * held;
            stages += nodes;
        }
        self.back_s + if stages > 1.0 { (stages - 1.0) * self.hop_s } else { 0.0 }
    }
}

/// The next number of sessions that is looked at.
fn after(sessions: f64) -> f64 {
    (sessions * STEP).ceil().max(sessions + 1.0)
}

/// Least seconds of a step of the whole model on a node, for a batch in between.
fn least_s(problem: &Problem, node: usize, from: f64, to: f64) -> f64 {
    let share = problem.prefill_weight(node, &(0..problem.layers()));
    let seconds = |batch: f64| {
        let (decode, prefill) = problem.unit_s(node, batch);
        share * (decode + prefill)
    };
    let inside = problem.batches(node).filter(|&batch| batch > from && batch < to);
    inside.chain([from, to]).map(seconds).fold(f64::INFINITY, f64::min)
}

/// Least `Σ w·s + groups·max(w·s)` over parts `w` of the model, 1 in all, on nodes that take `s` for the whole and
/// hold no more than they may. With a bound on the slowest, the fastest nodes take what they can; the sum is convex
/// in the bound and linear between the bounds at which a kind is full or the slower kinds are left with nothing.
fn least_round_s(parts: &[Part], groups: f64) -> f64 {
    let round = |slowest: f64| {
        let (mut left, mut work) = (1.0, 0.0);
        for &(count, seconds, most) in parts {
            let taken = (count * (slowest / seconds).min(most)).min(left);
            left -= taken;
            work += taken * seconds;
        }
        if left > 1e-9 { f64::INFINITY } else { work + groups * slowest }
    };
    let full = parts.iter().map(|(_, seconds, most)| seconds * most);
    let enough = (1..=parts.len()).filter_map(|first| least_slowest_s(&parts[..first]));
    full.chain(enough).map(round).fold(f64::INFINITY, f64::min)
}

/// Least time of the slowest at which these nodes take the whole model.
fn least_slowest_s(parts: &[Part]) -> Option<f64> {
    let mut full: Vec<&Part> = parts.iter().collect();
    full.sort_by(|a, b| (a.1 * a.2).total_cmp(&(b.1 * b.2)));
    let mut left = 1.0;
    let mut rate: f64 = parts.iter().map(|(count, seconds, _)| count / seconds).sum();
    for &&(count, seconds, most) in &full {
        let slowest = left / rate;
        if slowest <= seconds * most {
            return Some(slowest);
        }
        left -= count * most;
        rate -= count / seconds;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The best of every number of times that each column can be taken.
    fn of_all(columns: &[(f64, Vec<usize>)], room: &[usize]) -> f64 {
        let Some(((value, counts), others)) = columns.split_first() else { return 0.0 };
        let without = of_all(others, room);
        let left: Option<Vec<usize>> =
            room.iter().zip(counts).map(|(room, count)| room.checked_sub(*count)).collect();
        match left {
            Some(left) => without.max(value + of_all(columns, &left)),
            None => without,
        }
    }

    /// The least of a fine grid of bounds on the slowest.
    fn of_grid(parts: &[Part], groups: f64) -> f64 {
        let longest = parts.iter().map(|(_, seconds, _)| *seconds).fold(0.0, f64::max);
        let round = |slowest: f64| {
            let (mut left, mut work) = (1.0, 0.0);
            for &(count, seconds, most) in parts {
                let taken = (count * (slowest / seconds).min(most)).min(left);
                (left, work) = (left - taken, work + taken * seconds);
            }
            if left > 1e-12 { f64::INFINITY } else { work + groups * slowest }
        };
        (1..=2000).map(|step| round(longest * f64::from(step) / 2000.0)).fold(f64::INFINITY, f64::min)
    }

    proptest! {
        #[test]
        fn the_best_partition_is_as_good_as_trying_everything(
            room in prop::collection::vec(1usize..4, 3),
            columns in prop::collection::vec((0.1f64..9.0, prop::collection::vec(0usize..4, 3)), 0..7),
        ) {
            let columns: Vec<_> = columns.into_iter().filter(|(_, counts)| counts.iter().sum::<usize>() > 0).collect();
            let (found, best) = (best_partition(&columns, &room).unwrap(), of_all(&columns, &room));
            prop_assert!((found - best).abs() <= 1e-6 * best.max(1.0), "{found} {best}");
        }

        #[test]
        fn the_least_round_is_below_every_bound_on_the_slowest_and_near_one(
            parts in prop::collection::vec((1u32..5, 1.0f64..9.0, 0.05f64..1.0), 1..5),
            groups in 0.0f64..20.0,
        ) {
            let mut parts: Vec<Part> =
                parts.into_iter().map(|(count, seconds, most)| (f64::from(count), seconds, most)).collect();
            parts.sort_by(|a, b| a.1.total_cmp(&b.1));
            let (least, grid) = (least_round_s(&parts, groups), of_grid(&parts, groups));
            let room: f64 = parts.iter().map(|(count, _, most)| count * most).sum();
            prop_assume!((room - 1.0).abs() > 1e-3);
            prop_assert_eq!(least.is_finite(), room > 1.0);
            prop_assert!(room < 1.0 || (least <= grid * (1.0 + 1e-9) && grid <= least + 0.01 * (groups + 20.0)));
        }
    }
}
