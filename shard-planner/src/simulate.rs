//! A plan under a trace of requests, event by event.
//!
//! A node works on one batch at a time, a link passes one message after the other and each arrives a latency
//! later. A session is admitted to the pipeline that is emptiest for its weight and has KV left, and
//! takes it until its last token. Nothing is drawn at random: the trace holds all chance.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap, VecDeque},
};

use crate::{
    cluster::Cluster,
    demand::Demand,
    model::Model,
    plan::{Pipeline, Plan, PlanError, Stage},
    problem::Problem,
    trace::Arrival,
};

/// How nodes form batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// Every node takes all that waits for it into its next batch, from whatever pipeline.
    Merged,
    /// Only the first stage of a pipeline makes batches, of its own sessions; they stay together to its last.
    Steps {
        /// Batches of a pipeline that may be on their way at once for each of its stages.
        per_stage: usize,
    },
}

/// What of the engine is simulated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Engine {
    /// How batches are formed.
    pub batching: Batching,
    /// Most tokens of a prompt in one batch; `None` takes prompts whole.
    pub chunk: Option<u32>,
    /// Most prompts in one batch.
    pub prompts: usize,
    /// Seconds that every batch takes on a node beside its work.
    pub overhead_s: f64,
    /// A batch takes no more replies of a pipeline than the plan foresees for a step, so that groups of replies
    /// stay apart and every node has one to work on.
    pub dealt: bool,
    /// What measured times are multiplied with.
    pub slowness: f64,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            batching: Batching::Steps { per_stage: 4 },
            chunk: Some(256),
            prompts: usize::MAX,
            overhead_s: 0.0,
            dealt: true,
            slowness: 1.0,
        }
    }
}

/// Time over which is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Measurement begins.
    pub from_s: f64,
    /// The simulation ends, unless all requests are done before.
    pub to_s: f64,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Reply tokens per second within the window.
    pub tokens_per_s: f64,
    /// Mean seconds from a request's arrival to its first token.
    pub ttft_s: f64,
    /// Mean seconds per further token of one reply.
    pub tpot_s: f64,
    /// Replies that were finished.
    pub finished: usize,
    /// Part of the window for which each node worked.
    pub busy: Vec<f64>,
    /// Sequences in a decoding batch of each node, on average.
    pub batch: Vec<f64>,
}

/// Runs `plan` under `arrivals`, which come in the order of their times.
pub fn simulate(
    model: &Model,
    cluster: &Cluster,
    demand: &Demand,
    plan: &Plan,
    engine: Engine,
    arrivals: &[Arrival],
    window: Window,
) -> Result<Outcome, PlanError> {
    let problem = Problem::new(model, cluster, demand)?;
    Ok(Simulation::new(&problem, &plan.pipelines, engine, window).run(arrivals))
}

/// The same for pipelines that are not a plan yet.
pub(crate) fn rehearse(
    problem: &Problem,
    pipelines: &[Pipeline],
    engine: Engine,
    arrivals: &[Arrival],
    window: Window,
) -> Outcome {
    Simulation::new(problem, pipelines, engine, window).run(arrivals)
}

#[derive(Clone, Debug)]
struct Session {
    line: usize,
    arrived_s: f64,
    first_s: Option<f64>,
    prompt: u32,
    /// Tokens of the prompt that were sent to the first stage.
    sent: u32,
    output: u32,
    done: u32,
}

/// Rows of one session in a batch.
#[derive(Clone, Copy, Debug)]
struct Item {
    session: usize,
    tokens: u32,
    /// The last of them draws a token.
    draws: bool,
    prompt: bool,
}

/// What travels and is worked on together.
#[derive(Clone, Debug)]
struct Batch {
    line: usize,
    stage: usize,
    items: Vec<Item>,
}

#[derive(Clone, Debug)]
enum Happening {
    /// A batch has come to the node of its stage.
    Arrived(Batch),
    /// A node has done its work.
    Worked(usize, Vec<Batch>),
    /// The first stage knows of tokens drawn.
    Drawn(usize, Vec<Item>),
}

struct Event {
    at_s: f64,
    order: u64,
    what: Happening,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    /// The earliest is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at_s.total_cmp(&self.at_s).then(other.order.cmp(&self.order))
    }
}

#[derive(Clone, Debug, Default)]
struct Worker {
    queue: VecDeque<Batch>,
    busy: bool,
    worked_s: f64,
    batches: u64,
    sequences: u64,
}

struct Line {
    stages: Vec<Stage>,
    weight: f64,
    /// KV positions in all, and those taken.
    room: u64,
    taken: u64,
    /// Most replies of a batch.
    batch: usize,
    /// Batches on their way, where they are counted.
    under_way: usize,
    /// What the first stage may take next, where batches stay together.
    ready: VecDeque<Item>,
}

struct Simulation<'a> {
    problem: &'a Problem<'a>,
    engine: Engine,
    window: Window,
    lines: Vec<Line>,
    workers: Vec<Worker>,
    /// When each link that was used is free again.
    free_s: BTreeMap<(usize, usize), f64>,
    sessions: Vec<Session>,
    waiting: VecDeque<usize>,
    events: BinaryHeap<Event>,
    order: u64,
    now_s: f64,
    tokens: u64,
    outcome: Outcome,
    ttft: (f64, usize),
    tpot: (f64, usize),
}

impl<'a> Simulation<'a> {
    fn new(problem: &'a Problem<'a>, pipelines: &[Pipeline], engine: Engine, window: Window) -> Self {
        let context = u64::from(problem.demand.context);
        let line = |pipeline: &Pipeline| Line {
            stages: pipeline.stages.clone(),
            weight: pipeline.weight,
            room: pipeline.sessions.saturating_mul(context),
            batch: if engine.dealt { pipeline.figures.batch.ceil() as usize } else { usize::MAX },
            taken: 0,
            under_way: 0,
            ready: VecDeque::new(),
        };
        Self {
            engine,
            window,
            lines: pipelines.iter().map(line).collect(),
            workers: vec![Worker::default(); problem.cluster.len()],
            free_s: BTreeMap::new(),
            sessions: Vec::new(),
            waiting: VecDeque::new(),
            events: BinaryHeap::new(),
            order: 0,
            now_s: 0.0,
            tokens: 0,
            outcome: Outcome::default(),
            ttft: (0.0, 0),
            tpot: (0.0, 0),
            problem,
        }
    }

    fn run(mut self, arrivals: &[Arrival]) -> Outcome {
        let mut arrivals = arrivals.iter().peekable();
        loop {
            let event_s = self.events.peek().map_or(f64::INFINITY, |event| event.at_s);
            let arrival_s = arrivals.peek().map_or(f64::INFINITY, |arrival| arrival.at_s);
            let next_s = event_s.min(arrival_s);
            if next_s.is_infinite() || next_s >= self.window.to_s {
                break;
            }
            self.now_s = next_s;
            if arrival_s <= event_s {
                while let Some(arrival) = arrivals.next_if(|arrival| arrival.at_s <= next_s) {
                    self.arrive(arrival);
                }
                self.admit();
            } else if let Some(event) = self.events.pop() {
                self.happen(event.what);
            }
        }
        self.result(arrivals.peek().is_none())
    }

    fn result(mut self, all_came: bool) -> Outcome {
        let ended = all_came && self.events.is_empty();
        let to_s = if ended { self.now_s } else { self.window.to_s };
        let length_s = (to_s - self.window.from_s).max(1e-9);
        let mean = |(sum, count): (f64, usize)| if count > 0 { sum / count as f64 } else { 0.0 };
        self.outcome.tokens_per_s = self.tokens as f64 / length_s;
        self.outcome.ttft_s = mean(self.ttft);
        self.outcome.tpot_s = mean(self.tpot);
        self.outcome.busy = self.workers.iter().map(|worker| worker.worked_s / length_s).collect();
        let batch = |worker: &Worker| worker.sequences as f64 / worker.batches.max(1) as f64;
        self.outcome.batch = self.workers.iter().map(batch).collect();
        self.outcome
    }

    fn arrive(&mut self, arrival: &Arrival) {
        self.waiting.push_back(self.sessions.len());
        self.sessions.push(Session {
            line: 0,
            arrived_s: arrival.at_s,
            first_s: None,
            prompt: arrival.prompt.max(1),
            sent: 0,
            output: arrival.output.max(1),
            done: 0,
        });
    }

    /// Lets sessions in, first come first served, while a pipeline has KV for the next.
    fn admit(&mut self) {
        while let Some(&session) = self.waiting.front() {
            let need = self.need(session);
            let open = self.lines.iter().enumerate();
            // A session larger than a whole pipeline's KV has it to itself.
            let open = open.filter(|(_, line)| line.taken + need <= line.room || line.taken == 0);
            let fill = |line: &Line| (line.taken + need) as f64 / line.weight.max(1e-9);
            let best = open.min_by(|a, b| fill(a.1).total_cmp(&fill(b.1)).then(a.0.cmp(&b.0)));
            let Some((line, _)) = best else { return };
            self.waiting.pop_front();
            self.lines[line].taken += need;
            self.sessions[session].line = line;
            self.send_prompt(session);
        }
    }

    fn need(&self, session: usize) -> u64 {
        let session = &self.sessions[session];
        u64::from(session.prompt) + u64::from(session.output)
    }

    /// Puts the next rows of a prompt before the first stage.
    fn send_prompt(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        let left = session.prompt - session.sent;
        let tokens = self.engine.chunk.map_or(left, |chunk| left.min(chunk.max(1)));
        session.sent += tokens;
        let item = Item { session: index, tokens, draws: session.sent == session.prompt, prompt: true };
        let line = session.line;
        self.offer(line, item);
    }

    /// Puts rows before the first stage of a pipeline.
    fn offer(&mut self, line: usize, item: Item) {
        match self.engine.batching {
            Batching::Merged => self.arrived(Batch { line, stage: 0, items: vec![item] }),
            Batching::Steps { .. } => {
                self.lines[line].ready.push_back(item);
                self.start(self.lines[line].stages[0].node);
            }
        }
    }

    fn schedule(&mut self, after_s: f64, what: Happening) {
        self.order += 1;
        self.events.push(Event { at_s: self.now_s + after_s, order: self.order, what });
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Arrived(batch) => self.arrived(batch),
            Happening::Worked(node, batches) => {
                self.workers[node].busy = false;
                for batch in batches {
                    self.leave(batch);
                }
                self.start(node);
            }
            Happening::Drawn(line, items) => self.drawn(line, items),
        }
    }

    fn arrived(&mut self, batch: Batch) {
        let node = self.lines[batch.line].stages[batch.stage].node;
        self.workers[node].queue.push_back(batch);
        self.start(node);
    }

    /// Begins the node's next batch if it is free.
    fn start(&mut self, node: usize) {
        if self.workers[node].busy {
            return;
        }
        let batches = match self.engine.batching {
            Batching::Merged => self.take_all(node),
            Batching::Steps { per_stage } => match self.workers[node].queue.pop_front() {
                Some(batch) => vec![batch],
                None => self.make_step(node, per_stage).into_iter().collect(),
            },
        };
        if batches.is_empty() {
            return;
        }
        let seconds = self.work_s(node, &batches);
        let worker = &mut self.workers[node];
        worker.busy = true;
        if self.now_s >= self.window.from_s {
            worker.worked_s += seconds.min(self.window.to_s - self.now_s);
            let decoding = batches.iter().flat_map(|batch| &batch.items).filter(|item| !item.prompt).count();
            worker.sequences += decoding as u64;
            worker.batches += u64::from(decoding > 0);
        }
        self.schedule(seconds, Happening::Worked(node, batches));
    }

    /// All that waits, up to the node's most sequences and prompts.
    fn take_all(&mut self, node: usize) -> Vec<Batch> {
        let most = self.problem.max_batch(node);
        let (mut sequences, mut prompts) = (0.0, 0);
        let mut dealt = vec![0; self.lines.len()];
        let mut taken: Vec<Batch> = Vec::new();
        let mut left = VecDeque::new();
        for batch in std::mem::take(&mut self.workers[node].queue) {
            let Batch { line, stage, items } = batch;
            let (now, later): (Vec<Item>, Vec<Item>) =
                items.into_iter().partition(|item| match item.prompt {
                    true => {
                        prompts += 1;
                        prompts <= self.engine.prompts
                    }
                    false => {
                        sequences += 1.0;
                        dealt[line] += 1;
                        sequences <= most && dealt[line] <= self.lines[line].batch
                    }
                });
            if !later.is_empty() {
                left.push_back(Batch { line, stage, items: later });
            }
            if now.is_empty() {
                continue;
            }
            match taken.iter_mut().find(|batch| batch.line == line && batch.stage == stage) {
                Some(batch) => batch.items.extend(now),
                None => taken.push(Batch { line, stage, items: now }),
            }
        }
        self.workers[node].queue = left;
        taken
    }

    /// A step of a pipeline that begins at `node`, if it may have one more on its way.
    fn make_step(&mut self, node: usize, per_stage: usize) -> Option<Batch> {
        let (index, line) = self.lines.iter_mut().enumerate().find(|(_, line)| {
            line.stages[0].node == node
                && !line.ready.is_empty()
                && line.under_way < per_stage * line.stages.len()
        })?;
        let (mut prompts, mut replies) = (0, 0);
        let most = self.engine.chunk.unwrap_or(u32::MAX);
        let (items, left): (Vec<Item>, Vec<Item>) =
            line.ready.drain(..).partition(|item| match item.prompt {
                true => {
                    prompts += item.tokens;
                    prompts == item.tokens || prompts <= most
                }
                false => {
                    replies += 1;
                    replies <= line.batch
                }
            });
        line.ready = left.into();
        line.under_way += 1;
        Some(Batch { line: index, stage: 0, items })
    }

    fn work_s(&self, node: usize, batches: &[Batch]) -> f64 {
        let (mut seconds, mut decoding, mut tokens) = (0.0, 0usize, 0.0);
        let (mut decode_weight, mut prefill_weight) = (0.0, 0.0);
        for batch in batches {
            let range = &self.lines[batch.line].stages[batch.stage].layers;
            let decodes = batch.items.iter().filter(|item| !item.prompt).count();
            let prompts: u32 = batch.items.iter().filter(|item| item.prompt).map(|item| item.tokens).sum();
            decoding += decodes;
            tokens += f64::from(prompts);
            decode_weight += self.problem.decode_weight(node, range) * decodes as f64;
            prefill_weight += self.problem.prefill_weight(node, range) * f64::from(prompts);
        }
        let whole = 0..self.problem.layers();
        if decoding > 0 {
            let unit = self.problem.decode_s(node, &whole, decoding as f64)
                / self.problem.decode_weight(node, &whole);
            seconds += decode_weight / decoding as f64 * unit;
        }
        if tokens > 0.0 {
            let unit =
                self.problem.prefill_s(node, &whole, tokens) / self.problem.prefill_weight(node, &whole);
            seconds += prefill_weight / tokens * unit;
        }
        seconds * self.engine.slowness + self.engine.overhead_s
    }

    /// Passes a batch on, or its tokens back.
    fn leave(&mut self, batch: Batch) {
        let line = &self.lines[batch.line];
        let from = line.stages[batch.stage].node;
        if batch.stage == 0 {
            let unsent: Vec<usize> = batch
                .items
                .iter()
                .filter(|item| item.prompt && !item.draws)
                .map(|item| item.session)
                .collect();
            for session in unsent {
                self.send_prompt(session);
            }
        }
        let line = &self.lines[batch.line];
        if batch.stage + 1 == line.stages.len() {
            let back_s = self.problem.cluster.back_s(from, line.stages[0].node);
            self.schedule(back_s, Happening::Drawn(batch.line, batch.items));
            return;
        }
        let to = line.stages[batch.stage + 1].node;
        let hop = self.problem.cluster.hop(from, to);
        let rows: f64 = batch.items.iter().map(|item| f64::from(item.tokens)).sum();
        let free_s = self.free_s.entry((from, to)).or_insert(0.0);
        *free_s = free_s.max(self.now_s) + self.problem.rows_bytes(rows) / hop.rate;
        let after_s = *free_s - self.now_s + hop.latency_s;
        self.schedule(after_s, Happening::Arrived(Batch { stage: batch.stage + 1, ..batch }));
    }

    fn drawn(&mut self, line: usize, items: Vec<Item>) {
        self.lines[line].under_way = self.lines[line].under_way.saturating_sub(1);
        let mut next = Vec::new();
        let mut freed = false;
        for item in items.into_iter().filter(|item| item.draws) {
            let now_s = self.now_s;
            let need = self.need(item.session);
            let session = &mut self.sessions[item.session];
            session.done += 1;
            self.tokens += u64::from(now_s >= self.window.from_s);
            let first_s = *session.first_s.get_or_insert(now_s);
            if session.done == 1 {
                self.ttft = (self.ttft.0 + now_s - session.arrived_s, self.ttft.1 + 1);
            }
            if session.done < session.output {
                next.push(Item { session: item.session, tokens: 1, draws: true, prompt: false });
                continue;
            }
            if session.output > 1 {
                let each_s = (now_s - first_s) / f64::from(session.output - 1);
                self.tpot = (self.tpot.0 + each_s, self.tpot.1 + 1);
            }
            self.outcome.finished += 1;
            self.lines[line].taken -= need;
            freed = true;
        }
        match self.engine.batching {
            Batching::Merged if !next.is_empty() => self.arrived(Batch { line, stage: 0, items: next }),
            Batching::Merged => {}
            Batching::Steps { .. } => {
                self.lines[line].ready.extend(next);
                self.start(self.lines[line].stages[0].node);
            }
        }
        if freed {
            self.admit();
        }
    }
}
