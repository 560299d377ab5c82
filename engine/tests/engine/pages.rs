//! The same bytes with shared, kept, lost and cut-back pages as with pages of one's own.

use engine::{
    message::{BlockHash, RouteId, Segment, SessionId},
    model::{Model, Quantisation, Shard},
    stage::{Fault, Input, Prompt, Short, Stage, StageLimits},
};
use kernels::cpu::{Cpu, Isa};

use crate::support::{argmax, open};

const ROUTE: RouteId = RouteId(1);
const MODELS: [(&str, Quantisation); 3] =
    [("mistral", Quantisation::Q8), ("qwen3", Quantisation::Q8), ("llama", Quantisation::F32)];

/// A greedy reply, and the bits that led to it.
struct Session {
    id: SessionId,
    prompt: usize,
    /// Prompt and reply.
    tokens: Vec<u32>,
    end: usize,
    next: usize,
    /// The hidden row that each position left in the last stage.
    rows: Vec<Option<Vec<u32>>>,
    /// The logits of each drawn token.
    logits: Vec<Vec<u32>>,
}

impl Session {
    fn is_done(&self) -> bool {
        self.tokens.len() == self.end
    }

    /// Tokens of the rows to send now. Where the known tokens end, drafts follow that are wrong.
    fn to_send(&self, rows: usize, drafts: usize) -> Vec<u32> {
        let known = &self.tokens[self.next..self.tokens.len().min(self.next + rows)];
        let at_end = self.next + known.len() == self.tokens.len();
        let drafts = if at_end { drafts.min(self.end - self.tokens.len()) } else { 0 };
        known.iter().copied().chain((0..drafts as u32).map(|n| 7 + n)).collect()
    }
}

/// Two stages, and a first stage's part: what is lost is sent again.
struct Driver {
    stages: [Stage<Cpu>; 2],
    sessions: Vec<Session>,
    closed: Vec<Session>,
    preempted: usize,
}

impl Driver {
    fn new(model: &Model, quantisation: Quantisation, pages: [usize; 2]) -> Self {
        let layers = model.config().layers;
        let stage = |range: std::ops::Range<usize>, pages| {
            let shard = Shard { embedding: range.start == 0, head: range.end == layers, layers: range };
            let weights = model.load(&shard, quantisation, &|_| {}).unwrap();
            let limits = StageLimits { rows: 512, pages, sessions: 8, positions: 256 };
            let cpu = Cpu::new(1, Isa::detect()).unwrap();
            Stage::new(cpu, model.config(), &shard, weights, quantisation.profile(), limits).unwrap()
        };
        let stages = [stage(0..2, pages[0]), stage(2..layers, pages[1])];
        Self { stages, sessions: Vec::new(), closed: Vec::new(), preempted: 0 }
    }

    /// Opens a session; the positions it holds at the first stage.
    fn open(&mut self, id: u128, prompt: &[u32], reply: usize, share: bool) -> u32 {
        let root = BlockHash::root(b"tenant");
        let blocks = if share { BlockHash::chain(root, prompt) } else { Vec::new() };
        let (id, end) = (SessionId(id), prompt.len() + reply);
        let given = Prompt { length: prompt.len() as u32, blocks: &blocks };
        let held = self.stages.each_mut().map(|stage| stage.open(id, ROUTE, end as u32, given).unwrap());
        let (tokens, rows, logits) = (prompt.to_vec(), vec![None; end], Vec::new());
        let next = held[0] as usize;
        self.sessions.push(Session { id, prompt: prompt.len(), tokens, end, next, rows, logits });
        held[0]
    }

    /// Runs everything to its end, `rows` rows of each session in a step. Sessions close as they end if
    /// `close` says so.
    fn run(&mut self, rows: usize, drafts: usize, close: bool) {
        for _ in 0..2000 {
            let running: Vec<usize> =
                (0..self.sessions.len()).filter(|&n| !self.sessions[n].is_done()).collect();
            if running.is_empty() {
                return;
            }
            self.step(&running, rows, drafts);
            while let Some(done) = self.sessions.iter().position(|session| close && session.is_done()) {
                self.close(done);
            }
        }
        panic!("the sessions do not come to their end");
    }

    fn step(&mut self, running: &[usize], rows: usize, drafts: usize) {
        let mut batch: Vec<(usize, Segment, Vec<u32>)> = Vec::new();
        for &index in running {
            let session = &self.sessions[index];
            let tokens = session.to_send(rows, drafts);
            let (from, rows) = (session.next as u32, tokens.len() as u32);
            let segment = Segment { session: session.id, from, rows, drawn: Vec::new(), drafted: 0 };
            batch.push((index, segment, tokens));
        }
        self.admit(0, &mut batch);
        let segments: Vec<Segment> = batch.iter().map(|(_, segment, _)| segment.clone()).collect();
        let tokens: Vec<u32> = batch.iter().flat_map(|(.., tokens)| tokens.iter().copied()).collect();
        let sent = self.compute(0, &segments, Input::Tokens(&tokens));

        let width = self.stages[0].hidden();
        let mut parts = Vec::new();
        let mut at = 0;
        for (index, segment, _) in batch {
            let length = segment.rows as usize * width;
            parts.push((index, segment, sent[at..at + length].to_vec()));
            at += length;
        }
        self.admit(1, &mut parts);
        let segments: Vec<Segment> = parts.iter().map(|(_, segment, _)| segment.clone()).collect();
        let received: Vec<f32> = parts.into_iter().flat_map(|(.., rows)| rows).collect();
        let hidden = self.compute(1, &segments, Input::Rows(&received));
        self.settle(&segments, &hidden);
    }

    /// Takes out what cannot run, and has it sent again.
    fn admit<T>(&mut self, stage: usize, batch: &mut Vec<(usize, Segment, T)>) {
        let segments: Vec<Segment> = batch.iter().map(|(_, segment, _)| segment.clone()).collect();
        let mut shorts = Vec::new();
        self.stages[stage].reserve(&segments, &mut shorts);
        for &Short { session, held, preempted, .. } in &shorts {
            let session = self.sessions.iter_mut().find(|known| known.id == session).unwrap();
            session.next = session.next.min(held as usize);
            self.preempted += usize::from(preempted);
        }
        batch.retain(|(_, segment, _)| shorts.iter().all(|short| short.session != segment.session));
    }

    fn compute(&mut self, stage: usize, segments: &[Segment], input: Input<'_>) -> Vec<f32> {
        let rows = segments.iter().map(|segment| segment.rows as usize).sum();
        let (mut faults, mut out) = (Vec::new(), Vec::new());
        let stage = &mut self.stages[stage];
        stage.step(stage.shard().layers.clone(), segments, input, &mut faults).unwrap();
        assert_eq!(faults, Vec::<Fault>::new());
        stage.read_rows(0..rows, &mut out).unwrap();
        out
    }

    /// Draws where the known tokens end, forgets what followed, and notes the bits.
    fn settle(&mut self, segments: &[Segment], hidden: &[f32]) {
        let width = self.stages[1].hidden();
        let mut at = 0;
        for segment in segments {
            let session = self.sessions.iter_mut().find(|known| known.id == segment.session).unwrap();
            let (from, known) = (segment.from as usize, session.tokens.len());
            let to = (segment.from + segment.rows) as usize;
            for position in from..to.min(known) {
                let row = &hidden[(at + position - from) * width..][..width];
                let row = bits(row);
                let before = session.rows[position].replace(row.clone());
                assert!(before.is_none_or(|before| before == row), "position {position}, computed again");
                if position + 1 == known {
                    let (mut logits, mut faults) = (Vec::new(), Vec::new());
                    let row = (at + position - from) as u32;
                    self.stages[1].logits(segments, &[row], &mut logits, &mut faults).unwrap();
                    assert_eq!(faults, Vec::<Fault>::new());
                    session.logits.push(bits(&logits));
                    session.tokens.push(argmax(&logits));
                }
            }
            session.next = to.min(known);
            at += segment.rows as usize;
        }
    }

    fn close(&mut self, index: usize) {
        let session = self.sessions.remove(index);
        let verified = &session.tokens[..session.tokens.len() - 1];
        let keep = BlockHash::chain(BlockHash::root(b"tenant"), verified);
        self.stages.iter_mut().for_each(|stage| stage.close(session.id, &keep));
        self.closed.push(session);
    }

    /// Closes everything, and finds every page again. All sessions in the order of their ids.
    fn finish(mut self) -> Vec<Session> {
        (0..self.sessions.len()).for_each(|_| self.close(0));
        for stage in &self.stages {
            let usage = stage.usage();
            assert_eq!((usage.free + usage.cached, usage.sessions), (usage.pages, 0));
        }
        self.closed.sort_by_key(|session| session.id);
        self.closed
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The reply without company, drafts or anything to share.
fn alone(model: &Model, quantisation: Quantisation, prompt: &[u32], reply: usize) -> Session {
    let mut driver = Driver::new(model, quantisation, [4, 4]);
    driver.open(1, prompt, reply, false);
    driver.run(64, 0, false);
    driver.finish().remove(0)
}

/// The same tokens, and the same bits of all that was computed, which is at least `computed` positions.
fn assert_same(session: &Session, alone: &Session, computed: usize) {
    assert_eq!(session.tokens[session.prompt..], alone.tokens[alone.prompt..]);
    assert!(session.logits == alone.logits, "session {:?}", session.id);
    let both = || session.rows.iter().zip(&alone.rows).enumerate().filter(|(_, (row, _))| row.is_some());
    assert!(both().count() >= computed);
    for (position, (row, expected)) in both() {
        assert!(row == expected, "session {:?}, position {position}", session.id);
    }
}

fn tokens(seed: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|n| (seed * 97 + n * n * 31 + n * 7) % 300).collect()
}

#[test]
fn a_shared_beginning_does_not_change_a_bit() {
    for (name, quantisation) in MODELS {
        let model = open(name);
        let prompt = |seed| [tokens(1, 150), tokens(seed, 20)].concat();
        let mut driver = Driver::new(&model, quantisation, [12, 12]);
        // Three begin at once and compute the beginning together; two find it.
        for seed in 2..5 {
            assert_eq!(driver.open(seed.into(), &prompt(seed), 20, true), 0);
        }
        driver.step(&[0, 1, 2], 170, 0);
        for seed in 5..7 {
            assert_eq!(driver.open(seed.into(), &prompt(seed), 20, true), 128);
        }
        driver.run(64, 0, false);
        let used: Vec<usize> = driver.stages.iter().map(|s| s.usage().pages - s.usage().free).collect();
        assert_eq!(used, [2 + 5, 2 + 5], "{name}: two pages are shared, one is each session's own");
        // The next turn finds the first one's reply.
        driver.close(0);
        let turn = [&driver.closed[0].tokens[..], &tokens(9, 20)].concat();
        let held = driver.open(9, &turn, 10, true);
        assert_eq!(held, 128, "{name}: position 189 is not computed, so the third block is not full");
        driver.run(7, 0, false);
        for (session, seed) in driver.finish().iter().zip([2, 3, 4, 5, 6, 9]) {
            let (prompt, reply) = if seed == 9 { (turn.clone(), 10) } else { (prompt(seed), 20) };
            assert_same(session, &alone(&model, quantisation, &prompt, reply), session.end - 129);
        }
    }
}

#[test]
fn lost_and_rejected_positions_do_not_change_a_bit() {
    for (name, quantisation) in MODELS {
        let model = open(name);
        let prompts: Vec<Vec<u32>> = (0..4).map(|seed| [tokens(1, 70), tokens(seed, 50)].concat()).collect();
        for (pages, rows, drafts) in [([5, 8], 40, 0), ([9, 5], 33, 3), ([5, 4], 64, 2)] {
            let mut driver = Driver::new(&model, quantisation, pages);
            for (id, prompt) in (1..).zip(&prompts) {
                driver.open(id, prompt, 60, true);
            }
            driver.run(rows, drafts, true);
            assert!(driver.preempted > 0, "{name}: {pages:?} pages are too few for all");
            for (session, prompt) in driver.finish().iter().zip(&prompts) {
                assert_same(session, &alone(&model, quantisation, prompt, 60), session.end - 1);
            }
        }
    }
}
