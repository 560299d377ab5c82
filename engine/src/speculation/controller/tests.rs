//! The controller against simulated rings, beside plain decoding and beside every fixed choice.

use std::collections::VecDeque;

use super::*;

/// A ring of equal stages: links that take `rtt` in all, and a service time per step and row at each.
#[derive(Clone, Copy, Debug)]
struct Ring {
    rtt: f64,
    stages: usize,
    step: f64,
    row: f64,
}

/// A ring under way: until when each stage is taken. Links are late by up to a fifth.
struct Stages {
    ring: Ring,
    free: Vec<f64>,
    delays: Random,
}

impl Stages {
    /// When a step sent at `now` is answered.
    fn send(&mut self, now: f64, rows: usize) -> f64 {
        let hop = self.ring.rtt / self.ring.stages as f64;
        let service = self.ring.step + self.ring.row * rows as f64;
        self.free.iter_mut().fold(now, |arrives, free| {
            *free = arrives.max(*free) + service;
            *free + hop * (1.0 + 0.2 * self.delays.next())
        })
    }
}

/// Numbers in 0..1, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Who decides.
enum Policy {
    Fixed(Plan),
    Controlled(Box<Controller>, RingClock),
}

impl Policy {
    fn new() -> Self {
        Policy::Controlled(Box::default(), RingClock::new())
    }

    fn plan(&self) -> Plan {
        match self {
            Policy::Fixed(plan) => *plan,
            Policy::Controlled(controller, clock) => controller.plan(clock, Source::Model, 400),
        }
    }
}

struct Flight {
    sent: f64,
    answer: f64,
    /// Place of its first guess among those of the chain.
    first: usize,
    offered: usize,
    chained: bool,
}

impl Flight {
    fn rows(&self) -> usize {
        self.offered + usize::from(!self.chained)
    }
}

/// Seconds until `tokens` tokens are known, where `acceptance` gives the probability that a guess is kept
/// after so many tokens.
fn run(ring: Ring, policy: &mut Policy, tokens: usize, seed: u64, acceptance: &dyn Fn(usize) -> f64) -> f64 {
    let mut random = Random(seed);
    let mut stages = Stages { ring, free: vec![0.0; ring.stages], delays: Random(seed + 100) };
    let (mut now, mut kept, mut last_answer) = (0.0, 0, f64::NEG_INFINITY);
    while kept < tokens {
        // A chain: guesses up to the first that will fail.
        let right = acceptance(kept);
        let good = (0..100_000).take_while(|_| random.next() < right).count();
        let mut flights: VecDeque<Flight> = VecDeque::new();
        let (mut next, mut first) = (0, true);
        loop {
            let plan = policy.plan();
            while flights.len() < plan.windows && (first || !flights.is_empty()) {
                let offered = plan.draft + usize::from(!first);
                let answer = stages.send(now, plan.draft + 1);
                flights.push_back(Flight { sent: now, answer, first: next, offered, chained: !first });
                (next, first) = (next + offered, false);
            }
            let Some(flight) = flights.pop_front() else { break };
            now = flight.answer.max(now);
            let accepted = good.saturating_sub(flight.first).min(flight.offered);
            kept += accepted + usize::from(!flight.chained);
            let together = flight.sent < last_answer;
            policy.observe(&flight, accepted, together.then_some(now - last_answer));
            last_answer = now;
            // What follows the last guess is drawn too, so a chain's end is known before its next window.
            let over = flights.front().is_some_and(|after| after.first >= good);
            if accepted < flight.offered || over {
                if let Some(after) = flights.front().filter(|_| accepted == flight.offered) {
                    policy.observe(after, 0, None);
                }
                break;
            }
        }
    }
    now
}

impl Policy {
    fn observe(&mut self, flight: &Flight, accepted: usize, gap: Option<f64>) {
        let Policy::Controlled(controller, clock) = self else { return };
        if !flight.chained {
            clock.observe(flight.rows() as u32, 1, Duration::from_secs_f64(flight.answer - flight.sent));
        }
        if let Some(gap) = gap {
            clock.observe_gap(flight.rows() as u32, Duration::from_secs_f64(gap));
        }
        let (offered, chained) = (flight.offered, flight.chained);
        let outcome = Outcome { source: Source::Model, offered, accepted, chained, waited: Duration::ZERO };
        controller.observe(clock, &outcome);
    }
}

const TOKENS: usize = 600;

fn mean(ring: Ring, tokens: usize, acceptance: &dyn Fn(usize) -> f64, policy: impl Fn() -> Policy) -> f64 {
    (0..4).map(|seed| run(ring, &mut policy(), tokens, seed, acceptance)).sum::<f64>() / 4.0
}

fn plain(ring: Ring, tokens: usize) -> f64 {
    mean(ring, tokens, &|_| 0.0, || Policy::Fixed(Plan::PLAIN))
}

/// The least mean time of any fixed choice.
fn best_fixed(ring: Ring, acceptance: f64) -> f64 {
    let drafts = [0, 1, 2, 4, 8, 16, 32, 63];
    let plans = drafts.iter().flat_map(|&draft| [1, 2, 3, 4, 8].map(|windows| Plan { draft, windows }));
    plans
        .map(|plan| mean(ring, TOKENS, &|_| acceptance, || Policy::Fixed(plan)))
        .fold(f64::INFINITY, f64::min)
}

/// Rings near and far, with cheap rows (a card) and dear ones (a processor).
fn rings() -> impl Iterator<Item = Ring> {
    let costs = [(0.004, 0.00005), (0.002, 0.0005), (0.0002, 0.002)];
    [0.0, 0.020, 0.100]
        .into_iter()
        .flat_map(move |rtt| costs.map(move |(step, row)| Ring { rtt, stages: 3, step, row }))
}

#[test]
fn guesses_that_never_hold_cost_less_than_a_twentieth() {
    for ring in rings() {
        for tokens in [60, 200, 1000] {
            let slower = mean(ring, tokens, &|_| 0.0, Policy::new) / plain(ring, tokens);
            assert!(slower < 1.05, "{slower:.3} times the time for {tokens} tokens at {ring:?}");
        }
    }
}

#[test]
fn no_acceptance_makes_a_request_slower() {
    for ring in rings() {
        for acceptance in [0.1, 0.3, 0.6, 0.8, 0.95] {
            let slower = mean(ring, 200, &|_| acceptance, Policy::new) / plain(ring, 200);
            assert!(slower < 1.05, "{slower:.3} times the time at {acceptance} and {ring:?}");
        }
    }
}

#[test]
fn the_choice_is_near_the_best_fixed_one() {
    for ring in rings() {
        for acceptance in [0.3, 0.6, 0.8, 0.95] {
            let time = mean(ring, TOKENS, &|_| acceptance, Policy::new);
            let share = best_fixed(ring, acceptance) / time;
            let faster = plain(ring, TOKENS) / time;
            println!("{share:.2} of the best rate, {faster:.2} times plain, at {acceptance} and {ring:?}");
            assert!(share > 0.8, "{share:.2} of the best rate at {acceptance} and {ring:?}");
        }
    }
}

#[test]
fn far_nodes_and_good_guesses_are_five_times_as_fast() {
    let ring = Ring { rtt: 0.100, stages: 3, step: 0.004, row: 0.0002 };
    let faster = plain(ring, TOKENS) / mean(ring, TOKENS, &|_| 0.97, Policy::new);
    assert!(faster > 5.0, "{faster:.2} times");
}

#[test]
fn many_sessions_make_rows_dear() {
    let mut alone = RingClock::new();
    let mut shared = RingClock::new();
    for round in 0..64u32 {
        let rows = 1 + round % 4;
        let time = |rows: u32| Duration::from_secs_f64(0.010 + 0.001 * f64::from(rows));
        alone.observe(rows, 1, time(rows));
        shared.observe(32 * rows, 32, time(32 * rows));
    }
    let controller = Controller::new();
    let source = Source::Own { matched: 12 };
    assert!(controller.plan(&alone, source, 16).draft >= 4);
    assert_eq!(controller.plan(&shared, source, 16), Plan::PLAIN, "32 rows more take longer than the gain");
}

#[test]
fn the_better_source_is_taken() {
    let clock = card();
    let mut controller = Controller::new();
    let offers = [(Source::Own { matched: 2 }, 8), (Source::Model, 8), (Source::Shared { matched: 2 }, 8)];
    assert_eq!(controller.choose(&clock, &offers).map(|(place, _)| place), Some(1));
    for _ in 0..10 {
        let failed = Outcome {
            source: Source::Model,
            offered: 4,
            accepted: 0,
            chained: false,
            waited: Duration::ZERO,
        };
        controller.observe(&clock, &failed);
    }
    assert_eq!(controller.choose(&clock, &offers).map(|(place, _)| place), Some(0));
    assert_eq!(controller.choose(&clock, &[]), None);
    assert_eq!(controller.choose(&clock, &[(Source::Model, 0)]), None, "nothing to send");
}

#[test]
fn the_next_request_expects_what_this_one_saw() {
    let clock = card();
    let mut controller = Controller::new();
    assert_ne!(controller.plan(&clock, Source::Model, 8), Plan::PLAIN);
    let waited = Duration::ZERO;
    for _ in 0..40 {
        let failed = Outcome { source: Source::Model, offered: 2, accepted: 0, chained: false, waited };
        controller.observe(&clock, &failed);
    }
    let mut next = controller.successor();
    assert!(
        next.plan(&clock, Source::Model, 8).draft < Controller::new().plan(&clock, Source::Model, 8).draft
    );
    for _ in 0..10 {
        let kept = Outcome { source: Source::Model, offered: 2, accepted: 2, chained: false, waited };
        next.observe(&clock, &kept);
    }
    assert!(next.plan(&clock, Source::Model, 8).draft >= 4, "and learns otherwise");
}

#[test]
fn waiting_for_a_draft_pays_where_answers_take_long() {
    let mut controller = Controller::new();
    let near = card();
    assert_eq!(controller.wait(&near, 4), Duration::ZERO, "the delay is not known");
    controller.observe_delay(Duration::from_millis(12));
    assert_eq!(controller.wait(&near, 4), Duration::ZERO, "as long as a round");
    let mut far = RingClock::new();
    for round in 0..64 {
        far.observe(1 + round % 4, 1, Duration::from_micros(u64::from(100_000 + 50 * round % 4)));
    }
    let wait = controller.wait(&far, 4);
    assert!(wait > Duration::from_millis(12) && wait < Duration::from_millis(50), "{wait:?}");
}

/// A near route on which rows cost next to nothing.
fn card() -> RingClock {
    let mut clock = RingClock::new();
    for round in 0..64u32 {
        clock.observe(1 + round % 4, 1, Duration::from_micros(u64::from(10_000 + 20 * (round % 4))));
    }
    clock
}

#[test]
fn a_text_that_changes_is_followed() {
    // Novel, then copied, then novel again.
    let changing = |kept: usize| if (200..400).contains(&kept) { 0.95 } else { 0.0 };
    for ring in rings() {
        let time = mean(ring, TOKENS, &changing, Policy::new);
        let novel = plain(ring, 400);
        let copied = best_fixed(ring, 0.95) * 200.0 / TOKENS as f64;
        let share = (novel + copied) / time;
        println!("{share:.2} of the rate of a choice that knows, at {ring:?}");
        assert!(share > 0.8, "{share:.2} of the rate of a choice that knows, at {ring:?}");
        assert!(time < plain(ring, TOKENS) * 1.02, "{ring:?}");
    }
}
