use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{cache::Block, *};

/// What stands where a faulty row was written.
const POISON: u64 = u64::MAX;

fn limits(pages: usize) -> StageLimits {
    StageLimits { rows: 256, pages, sessions: 16, positions: 320 }
}

fn id(n: usize) -> SessionId {
    SessionId(n as u128)
}

fn segment(session: SessionId, from: u32, rows: u32) -> Segment {
    Segment { session, from, rows, drawn: Vec::new(), drafted: 0 }
}

fn hash(value: u64) -> BlockHash {
    BlockHash(u128::from(value).to_le_bytes())
}

/// Root and blocks of a prompt whose `n`th block is `blocks[n]`; equal beginnings have equal hashes.
fn chain(blocks: &[u64]) -> Vec<BlockHash> {
    let mut so_far = 0;
    let mut next = |block: &u64| {
        so_far = mix(so_far, *block);
        hash(so_far)
    };
    [hash(0)].into_iter().chain(blocks.iter().map(&mut next)).collect()
}

fn mix(so_far: u64, value: u64) -> u64 {
    let x = (so_far.rotate_left(7) ^ (value + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 29)
}

/// The route of sessions that [`Pager::begin`] opens.
const ROUTE: RouteId = RouteId(1);

impl Pager {
    /// Runs rows without a model; `Err` has the sessions that are short.
    fn run(&mut self, segments: &[Segment]) -> Result<(), Vec<Short>> {
        let mut short = Vec::new();
        self.reserve(segments, &mut short);
        let runs = |segment: &&Segment| short.iter().all(|short| short.session != segment.session);
        for segment in segments.iter().filter(runs) {
            self.check(segment).unwrap();
            self.advance(segment.session, segment.from + segment.rows);
        }
        self.hold_invariants();
        if short.is_empty() { Ok(()) } else { Err(short) }
    }

    fn begin(&mut self, session: usize, length: u32, blocks: &[u64]) -> u32 {
        let prompt = Prompt { length, blocks: &chain(blocks) };
        self.open(id(session), ROUTE, 256, prompt).unwrap()
    }

    /// What the module promises, counted from scratch.
    fn hold_invariants(&self) {
        let cache = &self.store.cache;
        let mut seen = vec![0; self.limits.pages];
        let private = self.sessions.values().flat_map(|s| &s.holding.table[s.holding.shared.len()..]);
        let cached = cache.blocks.values().map(|block| &block.page);
        self.store.free.iter().chain(private).chain(cached).for_each(|&page| seen[page as usize] += 1);
        assert!(seen.iter().all(|&times| times == 1), "each page has one place: {seen:?}");

        let mut users: HashMap<Key, u32> = HashMap::new();
        for Session { holding, positions, .. } in self.sessions.values() {
            for (index, &hash) in holding.shared.iter().enumerate() {
                let key = Key { route: holding.route, hash };
                assert_eq!(cache.blocks[&key].page, holding.table[index]);
                *users.entry(key).or_default() += 1;
            }
            assert!(holding.shared_positions() <= holding.held && holding.held <= *positions);
            assert!(pages_for(holding.held) <= holding.table.len());
        }
        let mut children: HashMap<Key, u32> = HashMap::new();
        for (key, block) in &cache.blocks {
            assert_eq!(block.users, users.get(key).copied().unwrap_or(0));
            if let Some(parent) = block.parent {
                assert_eq!(parent.route, key.route);
                assert!(cache.blocks[&parent].users >= block.users);
                *children.entry(parent).or_default() += 1;
            }
        }
        let idle = |block: &Block| block.users == 0;
        let mut leaves = BTreeSet::new();
        for (key, block) in &cache.blocks {
            assert_eq!(block.children, children.get(key).copied().unwrap_or(0));
            if idle(block) && block.children == 0 {
                leaves.insert((block.left, *key));
            }
        }
        assert_eq!(cache.leaves, leaves);
        assert_eq!(cache.idle(), cache.blocks.values().filter(|block| idle(block)).count());
    }
}

#[test]
fn a_session_finds_what_an_earlier_one_left_and_computes_its_last_row() {
    let mut pager = Pager::new(limits(8));
    assert_eq!(pager.begin(1, 192, &[1, 2, 3]), 0);
    pager.run(&[segment(id(1), 0, 192)]).unwrap();
    assert_eq!(pager.begin(2, 192, &[1, 2, 3]), 128, "the third block has the last token");
    assert_eq!(pager.begin(3, 200, &[1, 2, 3]), 192);
    assert_eq!(pager.begin(4, 192, &[1, 7, 3]), 64);
    assert_eq!(pager.begin(5, 192, &[7, 2, 3]), 0);
    let prompt = Prompt { length: 192, blocks: &chain(&[1, 2, 3]) };
    assert_eq!(pager.open(id(6), RouteId(2), 256, prompt), Ok(0), "another route shares nothing");
    assert_eq!(pager.open(id(7), RouteId(1), 256, Prompt::default()), Ok(0));
    (1..=7).for_each(|n| pager.close(id(n), &[]));
    assert_eq!(pager.usage(), KvUsage { pages: 8, free: 5, cached: 3, sessions: 0 });
    assert_eq!(pager.begin(8, 193, &[1, 2, 3]), 192, "also after all of them are closed");
    pager.hold_invariants();
}

#[test]
fn a_reply_is_found_by_the_next_turn() {
    let mut pager = Pager::new(limits(8));
    pager.begin(1, 70, &[1]);
    pager.run(&[segment(id(1), 0, 150)]).unwrap();
    pager.close(id(1), &chain(&[1, 2, 3]));
    assert_eq!(pager.begin(2, 200, &[1, 2, 3]), 128, "the third block was never full");
    assert_eq!(pager.usage(), KvUsage { pages: 8, free: 6, cached: 0, sessions: 1 });
    pager.close(id(2), &chain(&[9, 9]));
    assert_eq!(pager.begin(3, 200, &[9, 9]), 0, "what was not the session's is not believed");
}

#[test]
fn a_block_computed_twice_is_held_once() {
    let mut pager = Pager::new(limits(4));
    pager.begin(1, 65, &[1]);
    pager.begin(2, 65, &[1]);
    pager.run(&[segment(id(1), 0, 65), segment(id(2), 0, 65)]).unwrap();
    assert_eq!(pager.table(id(1))[0], pager.table(id(2))[0]);
    assert_ne!(pager.table(id(1))[1], pager.table(id(2))[1]);
    assert_eq!(pager.usage().free, 1);
}

#[test]
fn blocks_go_longest_unused_first_and_tails_before_heads() {
    let mut pager = Pager::new(limits(4));
    for (session, blocks) in [(1, [1, 2]), (2, [3, 4])] {
        pager.begin(session, 128, &blocks);
        pager.run(&[segment(id(session), 0, 128)]).unwrap();
    }
    pager.close(id(2), &[]);
    pager.close(id(1), &[]);
    let cached = |pager: &Pager| {
        let has = |blocks: &[u64]| {
            pager.store.cache.blocks.keys().any(|key| Some(&key.hash) == chain(blocks).last())
        };
        [has(&[1]), has(&[1, 2]), has(&[3]), has(&[3, 4])]
    };
    pager.begin(3, 256, &[]);
    for (to, expected) in [
        (64, [true, true, true, false]),
        (128, [true, true, false, false]),
        (192, [true, false, false, false]),
        (256, [false; 4]),
    ] {
        pager.run(&[segment(id(3), to - 64, 64)]).unwrap();
        assert_eq!(cached(&pager), expected, "after {to} positions");
    }
}

#[test]
fn the_youngest_gives_way_and_nobody_does_in_vain() {
    let mut pager = Pager::new(limits(4));
    (1..=3).for_each(|n| {
        pager.begin(n, 100, &[n as u64]);
    });
    pager.run(&[segment(id(1), 0, 64), segment(id(2), 0, 64), segment(id(3), 0, 100)]).unwrap();
    let waits = Short { session: id(2), route: ROUTE, held: 64, preempted: false };
    assert_eq!(pager.run(&[segment(id(2), 64, 192)]), Err(vec![waits]), "five pages are needed");
    assert_eq!(pager.table(id(3)).len(), 2);
    let waits = Short { session: id(3), route: ROUTE, held: 100, preempted: false };
    assert_eq!(pager.run(&[segment(id(3), 100, 40)]), Err(vec![waits]), "the youngest waits");
    let gone = Short { session: id(3), route: ROUTE, held: 0, preempted: true };
    let step = [segment(id(3), 100, 1), segment(id(2), 64, 64)];
    assert_eq!(pager.run(&step), Err(vec![gone]), "the youngest gives way, within the step too");
    let step = [segment(id(3), 64, 36)];
    let waits = Short { session: id(3), route: ROUTE, held: 64, preempted: false };
    assert_eq!(pager.run(&step), Err(vec![waits]), "its first block was not needed yet, and is found again");
    pager.close(id(1), &[]);
    assert_eq!(pager.run(&step), Ok(()));
}

#[test]
fn the_oldest_is_served_first() {
    let mut pager = Pager::new(limits(4));
    pager.begin(1, 100, &[]);
    pager.begin(2, 100, &[]);
    let waits = Short { session: id(2), route: ROUTE, held: 0, preempted: false };
    assert_eq!(pager.run(&[segment(id(2), 0, 64), segment(id(1), 0, 256)]), Err(vec![waits]));
}

#[test]
fn shared_blocks_are_never_written() {
    let mut pager = Pager::new(limits(8));
    pager.begin(1, 128, &[1, 2]);
    pager.begin(2, 128, &[1, 2]);
    pager.run(&[segment(id(1), 0, 128), segment(id(2), 0, 128)]).unwrap();
    let shared = pager.table(id(1)).to_vec();
    let short = Short { session: id(2), route: ROUTE, held: 64, preempted: false };
    assert_eq!(pager.run(&[segment(id(2), 100, 10)]), Err(vec![short]), "the block begins at 64");
    assert_eq!(pager.run(&[segment(id(2), 64, 10)]), Ok(()));
    assert_eq!(pager.table(id(2))[0], shared[0]);
    assert_ne!(pager.table(id(2))[1], shared[1]);
    assert_eq!(pager.run(&[segment(id(2), 74, 54)]), Ok(()));
    assert_eq!(pager.table(id(2)), shared, "full again, it is the same block");
    pager.truncate(id(1), 100);
    assert_eq!(pager.table(id(1)), &shared[..1], "a shared block is forgotten as a whole");
    pager.hold_invariants();
}

#[test]
fn what_can_never_fit_is_refused() {
    let mut pager = Pager::new(limits(2));
    let refused = OpenError::TooLong { requested: 129, limit: 128 };
    assert_eq!(pager.open(id(1), RouteId(1), 129, Prompt::default()), Err(refused));
    assert_eq!(pager.open(id(1), RouteId(1), 128, Prompt::default()), Ok(0));
    assert_eq!(pager.open(id(1), RouteId(1), 128, Prompt::default()), Err(OpenError::Exists));
    let past = segment(id(1), 0, 129);
    pager.reserve(std::slice::from_ref(&past), &mut Vec::new());
    assert_eq!(pager.check(&past), Err(StepError::Positions { from: 0, to: 129, held: 0 }));
    assert_eq!(pager.check(&segment(id(2), 0, 1)), Err(StepError::Unknown));
}

/// A session as its first stage knows it.
#[derive(Debug)]
struct Actor {
    id: SessionId,
    route: RouteId,
    prompt: usize,
    reach: usize,
    /// What is known of it: prompt, reply and drafts.
    tokens: Vec<u64>,
    /// Position of the next row.
    next: usize,
    /// Positions the stage should have.
    held: usize,
}

impl Actor {
    /// What the KV of each position depends on: the route and every token up to it.
    fn content(&self) -> Vec<u64> {
        let seed = self.route.0 as u64;
        self.tokens
            .iter()
            .scan(seed, |so_far, &token| {
                *so_far = mix(*so_far, token);
                Some(*so_far)
            })
            .collect()
    }

    fn hashes(&self, positions: usize) -> Vec<BlockHash> {
        let content = self.content();
        let full = content[..positions].chunks_exact(PAGE).filter_map(|block| block.last());
        [hash(0)].into_iter().chain(full.map(|&value| hash(value))).collect()
    }

    fn is_done(&self) -> bool {
        self.next == self.reach
    }
}

/// What one session of a step does.
#[derive(Clone, Debug)]
struct Turn {
    actor: usize,
    rows: usize,
    /// Drafted rows that turn out wrong.
    rejected: usize,
    /// The row at which a value is not finite.
    fault: Option<usize>,
}

#[derive(Clone, Debug)]
enum Event {
    Open {
        route: u128,
        family: u64,
        alike: usize,
        prompt: usize,
        reply: usize,
    },
    Step(Vec<Turn>),
    /// Another stage lacks positions.
    Rewind {
        actor: usize,
        back: usize,
    },
    Truncate {
        actor: usize,
        back: usize,
    },
    Close {
        actor: usize,
        keep: bool,
    },
}

/// A pager, and pages that hold what a model's KV would depend on.
struct World {
    pager: Pager,
    pages: Vec<[u64; PAGE]>,
    actors: Vec<Actor>,
    opened: usize,
}

impl World {
    fn new(pages: usize) -> Self {
        Self {
            pager: Pager::new(limits(pages)),
            pages: vec![[0; PAGE]; pages],
            actors: Vec::new(),
            opened: 0,
        }
    }

    fn apply(&mut self, event: Event) {
        let count = self.actors.len().max(1);
        match event {
            Event::Open { route, family, alike, prompt, reply } => {
                self.open(route, family, alike, prompt, reply)
            }
            Event::Step(turns) => self.step(&turns),
            Event::Rewind { actor, back } => {
                let Some(actor) = self.actors.get_mut(actor % count) else { return };
                actor.next = actor.next.saturating_sub(back);
            }
            Event::Truncate { actor, back } => {
                let Some(actor) = self.actors.get_mut(actor % count) else { return };
                let to = actor.held.saturating_sub(back);
                self.pager.truncate(actor.id, to as u32);
                let held = self.pager.sessions[&actor.id].holding.held as usize;
                assert!(held <= to && to - held < PAGE);
                actor.held = held;
                actor.next = actor.next.min(held);
            }
            Event::Close { actor, keep } => {
                if actor % count < self.actors.len() {
                    self.close(actor % count, keep);
                }
            }
        }
        self.pager.hold_invariants();
    }

    fn open(&mut self, route: u128, family: u64, alike: usize, prompt: usize, reply: usize) {
        let own = 1000 + self.opened as u64;
        let tokens = (0..prompt).map(|position| if position < alike { family } else { own }).collect();
        let (session, route, reach) = (id(self.opened), RouteId(route), prompt + reply);
        self.opened += 1;
        let mut actor = Actor { id: session, route, prompt, reach, tokens, next: 0, held: 0 };
        let given = Prompt { length: prompt as u32, blocks: &actor.hashes(prompt) };
        match self.pager.open(session, route, reach as u32, given) {
            Ok(held) => {
                assert!(held.is_multiple_of(BLOCK) && (held as usize) < prompt);
                (actor.held, actor.next) = (held as usize, held as usize);
                self.actors.push(actor);
                self.verify(self.actors.len() - 1);
            }
            Err(OpenError::TooLong { .. }) => assert!(reach.div_ceil(PAGE) > self.pages.len()),
            Err(error) => assert_eq!(error, OpenError::TooManySessions { limit: 16 }),
        }
    }

    fn close(&mut self, index: usize, keep: bool) {
        let actor = self.actors.remove(index);
        let keep = if keep { actor.hashes(actor.tokens.len()) } else { Vec::new() };
        self.pager.close(actor.id, &keep);
    }

    /// The session's pages have what its tokens make.
    fn verify(&self, index: usize) {
        let actor = &self.actors[index];
        let table = self.pager.table(actor.id);
        for (position, value) in actor.content()[..actor.held].iter().enumerate() {
            let page = table[position / PAGE] as usize;
            assert_eq!(self.pages[page][position % PAGE], *value, "{actor:?} at {position}");
        }
    }

    /// Rejects drafts, draws a token where none is known, and says what to run.
    fn plan(&mut self, turn: &Turn) -> Option<Segment> {
        let actor = &mut self.actors[turn.actor];
        if actor.next == actor.tokens.len() {
            let rejected = turn.rejected.min(actor.next.saturating_sub(actor.prompt));
            actor.next -= rejected;
            actor.tokens.truncate(actor.next);
            let drawn = turn.rows.min(5).min(actor.reach - actor.next);
            let salt = (turn.rows * 7 + turn.rejected) as u64;
            actor.tokens.extend((0..drawn as u64).map(|n| 5000 + salt * 8 + n));
        }
        let rows = turn.rows.min(actor.tokens.len() - actor.next);
        (rows > 0).then(|| segment(actor.id, actor.next as u32, rows as u32))
    }

    fn step(&mut self, turns: &[Turn]) {
        let mut planned: Vec<(Turn, Segment)> = Vec::new();
        for turn in turns {
            let Some(actor) = turn.actor.checked_rem(self.actors.len()) else { return };
            let turn = Turn { actor, ..turn.clone() };
            if planned.iter().all(|(other, _)| other.actor != actor) {
                planned.extend(self.plan(&turn).map(|segment| (turn, segment)));
            }
        }
        let segments: Vec<Segment> = planned.iter().map(|(_, segment)| segment.clone()).collect();
        let mut short = Vec::new();
        self.pager.reserve(&segments, &mut short);
        self.pager.hold_invariants();
        let oldest = segments.iter().map(|segment| segment.session).min();
        for short in &short {
            self.take_short(short, &segments, oldest);
        }
        planned.retain(|(_, segment)| short.iter().all(|short| short.session != segment.session));
        for (turn, segment) in &planned {
            self.write(turn, segment);
        }
        for (turn, segment) in &planned {
            let rows = turn.fault.map_or(segment.rows, |fault| segment.rows.min(fault as u32));
            self.pager.advance(segment.session, segment.from + rows);
            let actor = &mut self.actors[turn.actor];
            actor.held = (segment.from + rows) as usize;
            actor.next = actor.held;
        }
        (0..self.actors.len())
            .filter(|&index| self.actors[index].next == self.actors[index].held)
            .for_each(|n| self.verify(n));
    }

    fn take_short(&mut self, short: &Short, segments: &[Segment], oldest_asking: Option<SessionId>) {
        let oldest = self.pager.sessions.keys().copied().min();
        let actor = self.actors.iter_mut().find(|actor| actor.id == short.session).unwrap();
        let asked = segments.iter().find(|segment| segment.session == short.session);
        if short.preempted {
            assert_eq!(short.held, 0);
            assert!(Some(short.session) > oldest_asking, "only for an older one");
        } else {
            let missing = asked.unwrap().from > short.held;
            assert!(missing || Some(short.session) != oldest, "the oldest finds pages");
            let within =
                short.held.is_multiple_of(BLOCK) && short.held / BLOCK == asked.unwrap().from / BLOCK;
            assert!(
                !missing || within || asked.unwrap().from as usize > actor.held,
                "nothing is lost unsaid"
            );
        }
        actor.held = short.held as usize;
        actor.next = actor.next.min(actor.held);
    }

    fn write(&mut self, turn: &Turn, segment: &Segment) {
        self.pager.check(segment).unwrap();
        let content = self.actors[turn.actor].content();
        for row in 0..segment.rows as usize {
            let position = segment.from as usize + row;
            let page = self.pager.table(segment.session)[position / PAGE];
            let users = self.pager.sessions.values().filter(|session| session.holding.table.contains(&page));
            assert_eq!(users.count(), 1);
            assert!(self.pager.store.cache.blocks.values().all(|block| block.page != page));
            let faulty = turn.fault.is_some_and(|fault| row >= fault);
            self.pages[page as usize][position % PAGE] = if faulty { POISON } else { content[position] };
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let turn = (any::<usize>(), 1usize..130, 0usize..4, prop::option::weighted(0.1, 0usize..100))
        .prop_map(|(actor, rows, rejected, fault)| Turn { actor, rows, rejected, fault });
    let open = (0u128..2, 0u64..2, 0usize..200, 1usize..200, 1usize..100).prop_map(
        |(route, family, alike, prompt, reply)| Event::Open { route, family, alike, prompt, reply },
    );
    prop_oneof![
        2 => open,
        6 => prop::collection::vec(turn, 1..5).prop_map(Event::Step),
        1 => (any::<usize>(), 0usize..200).prop_map(|(actor, back)| Event::Rewind { actor, back }),
        1 => (any::<usize>(), 0usize..80).prop_map(|(actor, back)| Event::Truncate { actor, back }),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(actor, keep)| Event::Close { actor, keep }),
    ]
}

proptest! {
    /// Whatever comes, every page has one place, a session reads what its own tokens wrote, nothing is
    /// written while others have it, and nothing leaks.
    #[test]
    fn sessions_read_their_own_tokens(pages in 2usize..10, events in prop::collection::vec(event(), 1..60)) {
        let mut world = World::new(pages);
        events.into_iter().for_each(|event| world.apply(event));
        while !world.actors.is_empty() {
            world.close(0, true);
            world.pager.hold_invariants();
        }
        let KvUsage { free, cached, sessions, .. } = world.pager.usage();
        prop_assert_eq!((free + cached, sessions), (pages, 0));
    }

    /// However few the pages, all sessions come to their end: the oldest always gets on.
    #[test]
    fn every_session_comes_to_its_end(
        pages in 2usize..8, rows in 1usize..80,
        lengths in prop::collection::vec((0usize..200, 1usize..200, 1usize..56), 1..7),
    ) {
        let mut world = World::new(pages);
        for (alike, prompt, reply) in lengths {
            world.open(1, 0, alike, prompt.min(pages * PAGE - reply), reply);
        }
        let bound: usize = world.actors.iter().map(|actor| actor.reach).sum();
        for _ in 0..bound {
            let turn = |actor| Turn { actor, rows, rejected: 0, fault: None };
            world.step(&(0..world.actors.len()).map(turn).collect::<Vec<_>>());
            while let Some(done) = world.actors.iter().position(Actor::is_done) {
                world.close(done, true);
            }
        }
        prop_assert_eq!(world.actors.len(), 0);
        world.pager.hold_invariants();
    }

    /// Hashes, positions and orders that no honest peer would send break nothing.
    #[test]
    fn nonsense_breaks_nothing(
        pages in 1usize..6,
        words in prop::collection::vec((0usize..4, 0u8..4, any::<[u8; 4]>(), 0u32..200, 0u32..200), 1..80),
    ) {
        let mut pager = Pager::new(limits(pages));
        for (session, what, hashes, a, b) in words {
            let hashes = hashes.map(|byte| hash(u64::from(byte % 3)));
            let hashes = &hashes[..a as usize % 5];
            match what {
                0 => {
                    let prompt = Prompt { length: b, blocks: hashes };
                    let _ = pager.open(id(session), RouteId(u128::from(a % 2)), a, prompt);
                }
                1 => pager.close(id(session), hashes),
                2 => pager.truncate(id(session), b),
                _ => {
                    let step = [segment(id(session), a / 64 * 64, b), segment(id((session + b as usize) % 4), b, a)];
                    let mut short = Vec::new();
                    pager.reserve(&step, &mut short);
                    for segment in &step {
                        if pager.check(segment).is_ok() {
                            pager.advance(segment.session, segment.from + segment.rows);
                        }
                    }
                }
            }
            pager.hold_invariants();
        }
    }
}
