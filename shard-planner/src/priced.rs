//! A bound on every choice of columns where they are too many to be listed: the dual of the linear program, with the
//! columns that it is found to break, one after the other.
//!
//! A column is a number of things of each kind, and its value never falls when there are more of any. Prices of the
//! kinds pay for a choice of columns if they pay for each. Prices that pay for the columns known so far, and leave no
//! other short by more than `d`, bound the value of all that fits by the price of all there is and `d` for each column
//! that may be taken. How short the others can be is searched by blocks of columns: none in a block is worth more
//! than its largest, nor costs less than its smallest.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap},
};

use microlp::{ComparisonOp, OptimizationDirection, Problem, Variable};

/// Rounds of prices.
const ROUNDS: usize = 60;
/// Columns added in a round.
const ADDED: usize = 8;
/// A bound is good enough that is so much above what prices say.
const ENOUGH: f64 = 0.01;

/// Columns whose counts lie between two, both included.
struct Block {
    /// More than any of them is short by.
    short: f64,
    from: Vec<usize>,
    to: Vec<usize>,
}

impl PartialEq for Block {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Block {}
impl PartialOrd for Block {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Block {
    fn cmp(&self, other: &Self) -> Ordering {
        self.short.total_cmp(&other.short).then_with(|| (&self.from, &self.to).cmp(&(&other.from, &other.to)))
    }
}

/// Columns with their values, each looked at once.
struct Values<F> {
    value: F,
    known: HashMap<Vec<usize>, f64>,
    /// How many more may be looked at.
    left: usize,
}

impl<F: FnMut(&[usize]) -> f64> Values<F> {
    /// `None` once too many were looked at.
    fn of(&mut self, counts: &[usize]) -> Option<f64> {
        if let Some(value) = self.known.get(counts) {
            return Some(*value);
        }
        self.left = self.left.checked_sub(1)?;
        let value = (self.value)(counts);
        self.known.insert(counts.to_vec(), value);
        Some(value)
    }
}

/// A bound on the sum of the values of up to `most` columns that together count no more than `room`, where a column's
/// `value` is no less than that of any within it. No more than `looks` of them are looked at.
pub(crate) fn most_of_columns(
    room: &[usize],
    most: f64,
    looks: usize,
    value: impl FnMut(&[usize]) -> f64,
) -> Option<f64> {
    let mut values = Values { value, known: HashMap::new(), left: looks };
    let largest = values.of(room).filter(|largest| largest.is_finite())?;
    let mut columns = vec![(room.to_vec(), largest)];
    let mut bound = most * largest;
    for _ in 0..ROUNDS {
        let (prices, all) = prices(room, &columns)?;
        let enough = ENOUGH * all / most.max(1.0);
        let (short, found) = shortest(room, &prices, enough, &mut values);
        bound = bound.min(all + most * short.max(0.0));
        if short <= enough || found.is_empty() {
            break;
        }
        columns.extend(found);
    }
    Some(bound)
}

/// The least price of all there is at which each of these columns is paid for, by kind, and that price.
fn prices(room: &[usize], columns: &[(Vec<usize>, f64)]) -> Option<(Vec<f64>, f64)> {
    let scale = columns.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let mut program = Problem::new(OptimizationDirection::Minimize);
    let kinds: Vec<Variable> =
        room.iter().map(|&count| program.add_var(count as f64, (0.0, f64::INFINITY))).collect();
    for (counts, value) in columns {
        let paid: Vec<(Variable, f64)> =
            kinds.iter().zip(counts).map(|(&kind, &count)| (kind, count as f64)).collect();
        program.add_constraint(paid, ComparisonOp::Ge, value / scale);
    }
    let solved = program.solve().ok()?;
    let solution = solved.solution()?;
    let prices: Vec<f64> = kinds.iter().map(|&kind| solution[kind].max(0.0) * scale).collect();
    let all = prices.iter().zip(room).map(|(price, &count)| price * count as f64).sum();
    Some((prices, all))
}

/// A bound on what any column is short by at these prices, and columns that are short by much. The search ends where
/// nothing is left that is short by more than `enough`, or too much was looked at.
fn shortest(
    room: &[usize],
    prices: &[f64],
    enough: f64,
    values: &mut Values<impl FnMut(&[usize]) -> f64>,
) -> (f64, Vec<(Vec<usize>, f64)>) {
    let cost = |counts: &[usize]| -> f64 {
        counts.iter().zip(prices).map(|(&count, price)| count as f64 * price).sum()
    };
    let mut blocks = BinaryHeap::new();
    let whole = values.of(room).unwrap_or(f64::INFINITY);
    blocks.push(Block { short: whole, from: vec![0; room.len()], to: room.to_vec() });
    let mut found: Vec<(Vec<usize>, f64)> = Vec::new();
    // The first that is found is the shortest of all, since the shortest blocks are cut first.
    let mut worst = 0.0f64;
    while let Some(top) = blocks.pop() {
        let Block { short, from, to } = top;
        if short <= enough || found.len() == ADDED {
            return (worst.max(short), found);
        }
        // The kind that leaves most open.
        let width = |kind: usize| (to[kind] - from[kind]) as f64 * (prices[kind] + f64::MIN_POSITIVE);
        let widest = (0..room.len()).max_by(|&a, &b| width(a).total_cmp(&width(b)));
        let Some(kind) = widest.filter(|&kind| to[kind] > from[kind]) else {
            // A column alone: it is short by that.
            worst = worst.max(short);
            found.push((to.clone(), short + cost(&to)));
            continue;
        };
        let middle = usize::midpoint(from[kind], to[kind]);
        let mut lower = to.clone();
        lower[kind] = middle;
        let mut upper = from.clone();
        upper[kind] = middle + 1;
        let Some(value) = values.of(&lower) else {
            return (worst.max(short), found);
        };
        blocks.push(Block { short: value - cost(&from), from, to: lower });
        // Its largest column is that of the block that was cut.
        let value = values.of(&to).unwrap_or(f64::INFINITY);
        blocks.push(Block { short: value - cost(&upper), from: upper, to });
    }
    (worst, found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Values that never fall with more: so much for each, with less for each the more there are, once there is enough
    /// to begin with.
    fn value(rates: &[f64], least: f64, counts: &[usize]) -> f64 {
        let sum: f64 = rates.iter().zip(counts).map(|(rate, &count)| rate * count as f64).sum();
        if sum < least { 0.0 } else { sum.sqrt() }
    }

    /// The most of every choice of columns.
    fn of_all(columns: &[Vec<usize>], room: &[usize], value: &impl Fn(&[usize]) -> f64) -> f64 {
        let Some((counts, others)) = columns.split_first() else { return 0.0 };
        let without = of_all(others, room, value);
        let left: Option<Vec<usize>> =
            room.iter().zip(counts).map(|(room, count)| room.checked_sub(*count)).collect();
        left.map_or(without, |left| without.max(value(counts) + of_all(columns, &left, value)))
    }

    proptest! {
        #[test]
        fn no_choice_of_columns_passes_the_bound(
            room in prop::collection::vec(1usize..4, 1..3),
            rates in prop::collection::vec(0.5f64..5.0, 3),
            least in 1.5f64..6.0,
            looks in 2usize..200,
        ) {
            let value = |counts: &[usize]| value(&rates, least, counts);
            let all: f64 = rates.iter().zip(&room).map(|(rate, &count)| rate * count as f64).sum();
            let bound = most_of_columns(&room, (all / least).floor().max(1.0), looks, value).unwrap();
            let sizes = room.iter().map(|count| count + 1);
            let columns: Vec<Vec<usize>> = (1..sizes.clone().product::<usize>())
                .map(|mut index| {
                    let digit = |size: usize| { let digit = index % size; index /= size; digit };
                    sizes.clone().map(digit).collect()
                })
                .filter(|counts: &Vec<usize>| value(counts) > 0.0)
                .collect();
            let best = of_all(&columns, &room, &value);
            prop_assert!(best <= bound * (1.0 + 1e-6) + 1e-9, "{best} {bound}");
        }
    }

    #[test]
    fn it_is_near_the_best_where_that_is_even() {
        // Three alike of each kind make a column of value 3; there is room for four.
        let value = |counts: &[usize]| (counts.iter().sum::<usize>().min(3) / 3 * 3) as f64;
        let bound = most_of_columns(&[6, 6], 4.0, 1000, value).unwrap();
        assert!((12.0..12.2).contains(&bound), "{bound}");
    }
}
