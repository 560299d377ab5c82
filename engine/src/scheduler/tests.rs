use std::collections::HashMap;

use transport::NodeId;

use super::*;
use crate::message::{Drafts, Priority, RouteId};

const LIMITS: SchedulerLimits = SchedulerLimits { rows: 8, chunk: 4, in_flight: 2, stages: 1 };

const BOTH: Drafts = Drafts { lookup: true, model: true };

fn id(n: u128) -> SessionId {
    SessionId(n)
}

fn opening(n: u128, prompt: Vec<u32>, max_tokens: u32) -> Opening {
    let blocks = BlockHash::chain(BlockHash::root(b"test"), &prompt);
    Opening {
        session: id(n),
        prompt,
        begun: Vec::new(),
        max_tokens,
        blocks,
        flow: (0, Priority::Normal),
        owner: (NodeId([0; 32]), 0),
        drafts: BOTH,
    }
}

/// A scheduler with sessions `0..` of these prompts, opened.
fn scheduler(limits: SchedulerLimits, prompts: &[Vec<u32>]) -> Scheduler {
    let mut scheduler = Scheduler::new(limits, Arc::default());
    for (n, prompt) in prompts.iter().enumerate() {
        scheduler.open(opening(n as u128, prompt.clone(), 100));
        scheduler.opened(id(n as u128), 0);
    }
    scheduler
}

fn drawn(n: u128, position: u32, tokens: &[u32]) -> Draws {
    Draws { session: id(n), position, tokens: tokens.to_vec(), ended: false }
}

/// Session, first position, rows, rows that draw, drafted rows of each segment.
fn shape(step: &PlannedStep) -> Vec<(u128, u32, u32, usize, u32)> {
    step.segments.iter().map(|s| (s.session.0, s.from, s.rows, s.drawn.len(), s.drafted)).collect()
}

#[test]
fn a_prompt_goes_in_chunks_and_draws_from_its_last_row() {
    let now = Instant::now();
    let mut scheduler = scheduler(SchedulerLimits { rows: 4, ..LIMITS }, &[(0..6).collect()]);
    let first = scheduler.next_step(0, now).unwrap();
    assert_eq!((shape(&first), &first.tokens[..]), (vec![(0, 0, 4, 0, 0)], &[0, 1, 2, 3][..]));
    let second = scheduler.next_step(1, now).unwrap();
    assert_eq!((shape(&second), &second.tokens[..]), (vec![(0, 4, 2, 1, 0)], &[4, 5][..]));
    assert_eq!(second.segments[0].drawn, [5]);
    assert_eq!(scheduler.next_step(2, now), None, "two steps are on their way");
    scheduler.results(0, &[], now);
    assert_eq!(scheduler.next_step(2, now), None, "the token is not known yet");
    scheduler.results(7, &[drawn(0, 6, &[41])], now);
    assert_eq!(scheduler.next_step(2, now), None, "no step 7 is on its way");
    scheduler.results(1, &[drawn(0, 6, &[42])], now);
    let third = scheduler.next_step(2, now).unwrap();
    assert_eq!((shape(&third), &third.tokens[..]), (vec![(0, 6, 1, 1, 0)], &[42][..]));
}

#[test]
fn a_session_begins_after_what_the_stage_holds_already() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(SchedulerLimits { rows: 300, ..LIMITS }, Arc::default());
    scheduler.open(opening(0, (0..130).collect(), 5));
    assert_eq!(scheduler.next_step(0, now), None, "the stage has not said what it holds");
    scheduler.opened(id(0), 128);
    assert_eq!(shape(&scheduler.next_step(0, now).unwrap()), [(0, 128, 2, 1, 0)]);
    let held = Held { route: RouteId(0), number: 0, session: id(0), positions: 64, preempted: false };
    scheduler.held(&held, 1, now);
    assert_eq!(shape(&scheduler.next_step(1, now).unwrap()), [(0, 64, 66, 1, 0)], "a later stage had less");
    scheduler.held(&held, 2, now);
    assert_eq!(scheduler.next_step(2, now), None, "the report speaks of a step before the cut");
}

#[test]
fn replies_go_before_prompts_and_leave_them_the_rest() {
    let now = Instant::now();
    let mut scheduler = scheduler(SchedulerLimits { rows: 4, ..LIMITS }, &[vec![7]]);
    scheduler.next_step(0, now).unwrap();
    scheduler.open(opening(1, (0..9).collect(), 3));
    scheduler.opened(id(1), 0);
    scheduler.results(0, &[drawn(0, 1, &[8])], now);
    assert_eq!(shape(&scheduler.next_step(1, now).unwrap()), [(0, 1, 1, 1, 0), (1, 0, 3, 0, 0)]);
}

#[test]
fn replies_are_dealt_to_the_stages_and_stay_together() {
    let now = Instant::now();
    let limits = SchedulerLimits { in_flight: 8, stages: 2, ..LIMITS };
    let mut scheduler = scheduler(limits, &[vec![1], vec![2], vec![3], vec![4]]);
    let first = shape(&scheduler.next_step(0, now).unwrap());
    let second = shape(&scheduler.next_step(1, now).unwrap());
    assert_eq!((first.len(), second.len()), (2, 2));
    scheduler.results(0, &[drawn(first[0].0, 1, &[9])], now);
    assert_eq!(scheduler.next_step(2, now), None, "its half is not back");
    scheduler.results(1, &[drawn(second[0].0, 1, &[9]), drawn(second[1].0, 1, &[9])], now);
    assert_eq!(shape(&scheduler.next_step(2, now).unwrap()).len(), 2);
}

#[test]
fn tenants_get_equal_shares_of_prompt_rows() {
    let now = Instant::now();
    let mut scheduler =
        Scheduler::new(SchedulerLimits { rows: 32, in_flight: 100, ..LIMITS }, Arc::default());
    let long = |n: u128, tenant| Opening { flow: (tenant, Priority::Normal), ..opening(n, vec![1; 640], 1) };
    for (n, tenant) in [(0, 1), (1, 1), (2, 1), (3, 2)] {
        scheduler.open(long(n, tenant));
        scheduler.opened(id(n), 0);
    }
    let mut rows = HashMap::new();
    for number in 0..20 {
        for (n, _, count, ..) in shape(&scheduler.next_step(number, now).unwrap()) {
            *rows.entry(n == 3).or_insert(0) += count;
        }
    }
    assert_eq!((rows[&true], rows[&false]), (320, 320));
}

/// How long a session's reply takes over a ring of 100 ms with 1 ms for each row, and in how many steps;
/// `guess` says what the draft model says of a position, in pieces of eight.
fn generate(tokens: u32, guess: impl Fn(u32) -> u32) -> (Duration, u64) {
    let begin = Instant::now();
    let (mut now, mut number) = (begin, 0);
    let mut scheduler = Scheduler::new(SchedulerLimits { rows: 64, in_flight: 16, ..LIMITS }, Arc::default());
    scheduler.open(Opening { max_tokens: tokens, ..opening(0, vec![truth(0, 0)], tokens) });
    scheduler.opened(id(0), 0);
    let mut route = Route::default();
    route.sessions.insert(id(0), (0, 1));
    let mut due = VecDeque::new();
    let (mut heard, mut chain) = (0, 0);
    while !scheduler.is_empty() {
        let known = route.sessions[&id(0)].1;
        if heard < known + 16 {
            heard = heard.max(known);
            let tokens = (heard..heard + 8).map(&guess).collect();
            scheduler.draft(&Draft { session: id(0), chain, position: heard, tokens }, now);
            heard += 8;
        }
        if let Some(step) = scheduler.next_step(number, now) {
            let rows = step.tokens.len() as u32;
            // A stage takes one step after another.
            let free = due.back().map_or(now, |&at: &Instant| {
                at.max(now + Duration::from_millis(100)) - Duration::from_millis(100)
            });
            due.push_back(free.max(now) + Duration::from_millis(100) + rows * Duration::from_millis(1));
            route.steps.push_back(step);
            number += 1;
            continue;
        }
        now = due.pop_front().or(scheduler.wake()).expect("something is on its way").max(now);
        let (done, draws, _) = route.run(None, &[1 + tokens]);
        scheduler.results(done, &draws, now);
        if draws.iter().any(|draws| draws.ended) {
            scheduler.close(id(0));
        }
        if draws.iter().any(|draws| draws.tokens.len() < 8) {
            heard = 0;
            chain += 1;
        }
    }
    (now - begin, number)
}

#[test]
fn good_guesses_save_rounds_and_bad_ones_cost_little() {
    let plain = Duration::from_millis(101) * 200;
    let (time, steps) = generate(200, |position| truth(0, position));
    assert!(time < plain / 5, "{time:?} in {steps} steps");
    let (time, steps) = generate(200, |position| truth(0, position) + 1);
    assert!(time < plain.mul_f64(1.05), "{time:?} in {steps} steps");
}

#[test]
fn a_closed_session_is_sent_no_more_and_leaves_its_blocks() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(SchedulerLimits { rows: 300, ..LIMITS }, Arc::default());
    let prompt: Vec<u32> = (0..127).collect();
    scheduler.open(opening(0, prompt.clone(), 5));
    scheduler.opened(id(0), 0);
    scheduler.next_step(0, now).unwrap();
    scheduler.results(0, &[drawn(0, 127, &[127])], now);
    scheduler.next_step(1, now).unwrap();
    scheduler.results(1, &[drawn(0, 128, &[128])], now);
    let all: Vec<u32> = (0..128).collect();
    assert_eq!(scheduler.close(id(0)), BlockHash::chain(BlockHash::root(b"test"), &all));
    scheduler.results(1, &[drawn(0, 128, &[8])], now);
    assert!(scheduler.is_empty());
    assert_eq!(scheduler.next_step(2, now), None);
    assert_eq!(scheduler.close(id(0)), []);
}

#[test]
fn a_preempted_session_waits_for_another_to_end_or_a_while() {
    let now = Instant::now();
    let mut scheduler = scheduler(LIMITS, &[vec![1], vec![2]]);
    scheduler.next_step(0, now).unwrap();
    let held = |n| Held { route: RouteId(0), number: 0, session: id(n), positions: 0, preempted: true };
    scheduler.held(&held(1), 1, now);
    scheduler.results(0, &[drawn(0, 1, &[5])], now);
    assert_eq!(shape(&scheduler.next_step(1, now).unwrap()), [(0, 1, 1, 1, 0)]);
    scheduler.close(id(0));
    assert_eq!(shape(&scheduler.next_step(2, now).unwrap()), [(1, 0, 1, 1, 0)]);
    scheduler.held(&Held { number: 2, ..held(1) }, 3, now);
    scheduler.results(1, &[], now);
    scheduler.results(2, &[], now);
    assert_eq!(scheduler.next_step(3, now), None);
    let later = scheduler.wake().unwrap();
    assert_eq!(shape(&scheduler.next_step(3, later).unwrap()), [(1, 0, 1, 1, 0)]);
}

/// The token that stands at `position` of session `n`, whatever the pipeline does.
fn truth(n: u128, position: u32) -> u32 {
    (n as u32 * 31 + position * position * 7) % 5
}

/// A last stage, and stages before it that lose what they hold now and then.
#[derive(Default)]
struct Route {
    /// Of each session: positions held, next position to draw.
    sessions: HashMap<SessionId, (u32, u32)>,
    steps: VecDeque<PlannedStep>,
}

impl Route {
    /// Runs the oldest step; `lose` picks a session that loses positions before it.
    fn run(&mut self, lose: Option<(SessionId, u32, bool)>, ends: &[u32]) -> (u64, Vec<Draws>, Vec<Held>) {
        let Some(step) = self.steps.pop_front() else { return (u64::MAX, Vec::new(), Vec::new()) };
        let (mut draws, mut reports) = (Vec::new(), Vec::new());
        let report = |session, positions, preempted| {
            let number = step.number;
            Held { route: RouteId(0), number, session, positions, preempted }
        };
        if let Some((session, left, preempted)) = lose
            && let Some((held, _)) = self.sessions.get_mut(&session)
        {
            *held = left.min(*held);
            reports.push(report(session, *held, preempted));
        }
        let mut row = 0;
        for segment in &step.segments {
            let tokens = &step.tokens[row..row + segment.rows as usize];
            row += segment.rows as usize;
            let (held, next) = self.sessions.get_mut(&segment.session).unwrap();
            if segment.from > *held {
                reports.push(report(segment.session, *held, false));
                continue;
            }
            *held = segment.to();
            if segment.drawn.is_empty() {
                continue;
            }
            assert_eq!(&tokens[tokens.len() - segment.drawn.len()..], segment.drawn);
            let n = segment.session.0;
            let mut out = Draws { session: segment.session, position: *next, tokens: vec![], ended: false };
            for (at, &token) in (segment.from..).zip(tokens) {
                if at + 1 == *next && token == truth(n, at) && !out.ended {
                    out.tokens.push(truth(n, *next));
                    *next += 1;
                    out.ended = *next == ends[n as usize];
                }
            }
            draws.push(out);
        }
        (step.number, draws, reports)
    }
}
