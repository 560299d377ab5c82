//! The first stage's scheduler and the last stage's draws, with stages between them that lose what they
//! hold, and links that take their time: whatever happens, a reply is what plain decoding gives.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use transport::NodeId;

use super::*;
use crate::{
    message::{BlockHash, Draft, Drafts, Held, Priority, RouteId},
    request::Sampling,
    scheduler::{Opening, Scheduler, SchedulerLimits},
};

/// Tokens of replies, and one that none has: what rows in a wrong context give.
const TOKENS: u32 = 5;
const WRONG: u32 = 7;

/// The token that stands at `position` of session `n`. Texts are alike, so that lookups find much, and differ.
fn truth(n: usize, position: u32) -> u32 {
    if position % 23 == 22 { (n as u32 + position / 23) % TOKENS } else { position % 11 % TOKENS }
}

fn id(n: usize) -> SessionId {
    SessionId(n as u128)
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }
}

/// A step between two stages: each row with its token, and whether everything it was computed from was right.
#[derive(Clone)]
struct Passing {
    number: u64,
    segments: Vec<Segment>,
    rows: Vec<(u32, bool)>,
}

/// What a stage has of each session: token of each position, and whether its row was right.
#[derive(Default)]
struct Store(HashMap<SessionId, Vec<(u32, bool)>>);

impl Store {
    /// Runs a step: what of it goes on, and what is missing.
    fn run(&mut self, step: Passing, random: &mut Random, rough: bool) -> (Passing, Vec<Held>) {
        let number = step.number;
        let held = |session, positions: usize, preempted| {
            let positions = positions as u32;
            Held { route: RouteId(0), number, session, positions, preempted }
        };
        let (mut reports, mut out) = (Vec::new(), Passing { segments: Vec::new(), rows: Vec::new(), ..step });
        if rough && random.one_in(12) {
            let (session, pages) = (id(random.below(6) as usize), random.below(60) as usize);
            if let Some(content) = self.0.get_mut(&session) {
                content.truncate(pages);
                reports.push(held(session, content.len(), random.one_in(2)));
            }
        }
        let mut rows = &step.rows[..];
        for mut segment in step.segments {
            let (own, rest) = rows.split_at(segment.rows as usize);
            rows = rest;
            let content = self.0.entry(segment.session).or_default();
            if segment.from as usize > content.len() {
                reports.push(held(segment.session, content.len(), false));
                continue;
            }
            content.truncate(segment.from as usize);
            let n = segment.session.0 as usize;
            let mut right = content.iter().all(|(_, right)| *right);
            let from = out.rows.len();
            for (position, &(token, sound)) in (segment.from..).zip(own) {
                right &= sound && token == truth(n, position);
                content.push((token, right));
                out.rows.push((token, right));
            }
            if rough && segment.drafted > 0 && random.one_in(9) {
                // A guessed row does not go through.
                let lost = 1 + random.below(u64::from(segment.drafted)) as u32;
                content.truncate((segment.to() - lost) as usize);
                reports.push(held(segment.session, content.len(), false));
                out.rows.truncate(from + (segment.rows - lost) as usize);
                segment.shorten(lost);
            }
            if segment.rows > 0 {
                out.segments.push(segment);
            }
        }
        (out, reports)
    }
}

/// Draws of a step at the last stage.
fn draw(drawings: &mut HashMap<SessionId, Drawing>, step: &Passing) -> Vec<Draws> {
    let (mut all, mut row) = (Vec::new(), 0);
    for segment in &step.segments {
        let rows = &step.rows[row..row + segment.rows as usize];
        row += segment.rows as usize;
        let Some(drawing) = drawings.get_mut(&segment.session).filter(|drawing| drawing.left > 0) else {
            continue;
        };
        if segment.drawn.is_empty() {
            drawing.pass(segment);
            continue;
        }
        let mut out = Draws {
            session: segment.session,
            position: drawing.position() as u32,
            tokens: Vec::new(),
            ended: false,
        };
        let first = segment.to() as usize - segment.drawn.len();
        for draw in drawing.rows(segment) {
            let position = first + draw;
            if out.ended || !drawing.counts(position, segment.drawn[draw]) {
                continue;
            }
            let (_, right) = rows[position - segment.from as usize];
            let token = if right { truth(segment.session.0 as usize, position as u32 + 1) } else { WRONG };
            let mut logits = [0.0; 8];
            logits[token as usize] = 1.0;
            let report = drawing.next(segment.session, &mut logits);
            out.tokens.push(report.token);
            out.ended = report.finish.is_some();
        }
        all.push(out);
    }
    all
}

/// A pipeline under way.
struct World {
    random: Random,
    scheduler: Scheduler,
    stores: Vec<Store>,
    drawings: HashMap<SessionId, Drawing>,
    /// Steps on the way into each stage; answers and reports, by sender, on the way to the first.
    links: Vec<VecDeque<Passing>>,
    answers: VecDeque<(u64, Vec<Draws>)>,
    reports: Vec<VecDeque<Held>>,
    /// Chain and next position of the draft model, by session.
    drafter: Vec<(u32, u32)>,
    replies: Vec<Vec<u32>>,
    number: u64,
    now: Instant,
    rough: bool,
    /// Guessed rows that went out.
    guessed: u64,
}

impl World {
    /// Sessions by the lengths of prompt, reply, and what another route has drawn of that.
    fn new(sizes: &[(u32, u32, u32)], limits: SchedulerLimits, drafts: Drafts, seed: u64) -> Self {
        let mut scheduler = Scheduler::new(limits, Arc::default());
        let mut drawings = HashMap::new();
        for (n, &(length, max_tokens, begun)) in sizes.iter().enumerate() {
            let prompt: Vec<u32> = (0..length).map(|position| truth(n, position)).collect();
            let blocks = BlockHash::chain(BlockHash::root(b"test"), &prompt);
            let (flow, owner) = ((0, Priority::Normal), (NodeId([0; 32]), 0));
            let begun = (length..length + begun).map(|position| truth(n, position)).collect();
            scheduler.open(Opening {
                session: id(n),
                prompt,
                begun,
                max_tokens,
                blocks,
                flow,
                owner,
                drafts,
            });
            scheduler.opened(id(n), 0);
            let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
            let reply = Reply { sampling, prompt: Vec::new(), stop_tokens: Vec::new(), max_tokens };
            drawings.insert(id(n), Drawing::new(reply, length));
        }
        let stages = limits.stages;
        Self {
            random: Random(seed | 1),
            scheduler,
            stores: (0..stages).map(|_| Store::default()).collect(),
            drawings,
            links: vec![VecDeque::new(); stages],
            answers: VecDeque::new(),
            reports: vec![VecDeque::new(); stages],
            drafter: vec![(0, 0); sizes.len()],
            replies: vec![Vec::new(); sizes.len()],
            number: 0,
            now: Instant::now(),
            rough: true,
            guessed: 0,
        }
    }

    /// One thing happens, somewhere.
    fn turn(&mut self) {
        self.now += Duration::from_millis(1);
        match self.random.below(4) {
            0 => self.start(),
            1 => self.compute(),
            2 => self.tell(),
            _ => self.draft(),
        }
    }

    fn start(&mut self) {
        if let Some(step) = self.scheduler.next_step(self.number, self.now) {
            self.number += 1;
            self.guessed += step.segments.iter().map(|segment| u64::from(segment.drafted)).sum::<u64>();
            let rows = step.tokens.iter().map(|&token| (token, true)).collect();
            self.links[0].push_back(Passing { number: step.number, segments: step.segments, rows });
        }
    }

    fn compute(&mut self) {
        let stage = self.random.below(self.stores.len() as u64) as usize;
        self.pass(stage);
    }

    /// A stage runs the oldest step on its way there.
    fn pass(&mut self, stage: usize) {
        let Some(step) = self.links[stage].pop_front() else { return };
        let (step, reports) = self.stores[stage].run(step, &mut self.random, self.rough);
        if stage == 0 {
            // The first stage hears itself at once.
            reports.iter().for_each(|held| self.scheduler.held(held, self.number, self.now));
        } else {
            self.reports[stage].extend(reports);
        }
        match self.links.get_mut(stage + 1) {
            Some(next) => next.push_back(step),
            None => {
                let draws = draw(&mut self.drawings, &step);
                self.answers.push_back((step.number, draws));
            }
        }
    }

    /// The first stage hears an answer or a report.
    fn tell(&mut self) {
        let from = self.random.below(self.reports.len() as u64 + 1) as usize;
        if let Some(reports) = self.reports.get_mut(from) {
            if let Some(held) = reports.pop_front() {
                self.scheduler.held(&held, self.number, self.now);
            }
            return;
        }
        let Some((number, draws)) = self.answers.pop_front() else { return };
        assert_eq!(self.scheduler.results(number, &draws, self.now), []);
        for Draws { session, tokens, ended, .. } in draws {
            self.replies[session.0 as usize].extend(tokens);
            if ended {
                self.scheduler.close(session);
                self.drawings.remove(&session);
                self.stores.iter_mut().for_each(|store| drop(store.0.remove(&session)));
            }
        }
    }

    /// The draft model goes on where it was, or anew where it was wrong.
    fn draft(&mut self) {
        let n = self.random.below(self.drafter.len() as u64) as usize;
        let Some(known) = self.drawings.get(&id(n)).map(|drawing| drawing.position() as u32) else { return };
        let (chain, from) = &mut self.drafter[n];
        if *from < known || self.random.one_in(20) {
            (*chain, *from) = (*chain + 1, known);
        }
        if *from < known + 24 {
            let random = &mut self.random;
            let mut guess = |at| if random.one_in(9) { 0 } else { truth(n, at) };
            let tokens = (*from..*from + 6).map(&mut guess).collect();
            let draft = Draft { session: id(n), chain: *chain, position: *from, tokens };
            self.scheduler.draft(&draft, self.now);
            *from += 6;
        }
    }
}

fn check(sizes: &[(u32, u32, u32)], limits: SchedulerLimits, drafts: Drafts, seed: u64) -> u64 {
    let mut world = World::new(sizes, limits, drafts, seed);
    for turn in 0..2_000_000 {
        // In the end nothing is lost any more, and everything must come to its end.
        world.rough = turn < 20_000;
        world.turn();
        if world.scheduler.is_empty() {
            break;
        }
    }
    assert!(world.scheduler.is_empty(), "{:?}", world.scheduler);
    for (n, &(prompt, reply, _)) in sizes.iter().enumerate() {
        let wanted: Vec<u32> = (prompt..prompt + reply).map(|position| truth(n, position)).collect();
        assert_eq!(world.replies[n], wanted, "session {n}");
    }
    world.guessed
}

proptest! {
    #[test]
    fn every_token_is_drawn_once_in_order(
        sizes in prop::collection::vec((1u32..90, 1u32..150, 0u32..150), 1..7),
        rows in 1usize..40, chunk in 1usize..20, in_flight in 1usize..9, stages in 1usize..5,
        lookup: bool, model: bool, seed: u64,
    ) {
        let limits = SchedulerLimits { rows, chunk, in_flight, stages };
        // Some replies were begun on another route.
        let begun = |(prompt, reply, begun)| (prompt, reply, if begun % 2 == 0 { 0 } else { begun % reply });
        let sizes: Vec<_> = sizes.into_iter().map(begun).collect();
        check(&sizes, limits, Drafts { lookup, model }, seed);
    }
}

#[test]
fn guesses_go_out() {
    let limits = SchedulerLimits { rows: 32, chunk: 16, in_flight: 8, stages: 3 };
    let sizes = [(20, 140, 0), (40, 140, 0)];
    let guessed = |lookup, model| check(&sizes, limits, Drafts { lookup, model }, 5);
    assert_eq!(guessed(false, false), 0);
    assert!(guessed(true, false) > 20 && guessed(false, true) > 20);
}

/// What another route drew goes out as a prompt does, told or not, and whatever is wrong with it is seen.
#[test]
fn a_reply_that_was_begun_is_drawn_again_in_few_steps() {
    let limits = SchedulerLimits { rows: 64, chunk: 16, in_flight: 8, stages: 2 };
    for told in [false, true] {
        let run = |forged: Option<u32>| {
            let mut world = World::new(&[], limits, Drafts::default(), 1);
            let right = |position: &u32| truth(0, *position) + u32::from(Some(*position) == forged);
            let (session, flow, owner) = (id(0), (0, Priority::Normal), (NodeId([0; 32]), 0));
            world.scheduler.open(Opening {
                session,
                prompt: (0..10).map(|position| truth(0, position)).collect(),
                begun: (10..210).map(|position| right(&position)).collect(),
                max_tokens: 201,
                blocks: Vec::new(),
                flow,
                owner,
                drafts: Drafts { lookup: told, model: false },
            });
            world.scheduler.opened(session, 0);
            let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
            let reply = Reply { sampling, prompt: Vec::new(), stop_tokens: Vec::new(), max_tokens: 201 };
            world.drawings.insert(session, Drawing::new(reply, 10));
            world.rough = false;
            let (mut steps, mut reply) = (0, Vec::new());
            loop {
                world.start();
                (0..2).for_each(|stage| world.pass(stage));
                let Some((number, draws)) = world.answers.pop_front() else { continue };
                steps += 1;
                let contradicted = world.scheduler.results(number, &draws, world.now);
                reply.extend(draws.iter().flat_map(|draws| draws.tokens.clone()));
                if let Some(&(of, position)) = contradicted.first() {
                    assert_eq!(of, session);
                    return (steps, Err(position));
                }
                if draws.iter().any(|draws| draws.ended) {
                    return (steps, Ok(reply));
                }
            }
        };
        let (steps, reply) = run(None);
        assert_eq!(reply, Ok((10..211).map(|position| truth(0, position)).collect()));
        assert!(steps <= 8, "{steps} steps");
        assert_eq!(run(Some(100)).1, Err(100));
        assert_eq!(run(Some(10)).1, Err(10));
    }
}
