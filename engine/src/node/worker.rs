//! The thread that computes: it owns the stage, takes commands in order and reports what came of
//! them. The node's task never waits for it.

#[cfg(test)]
pub(crate) mod cheat;
mod draw;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kernels::backend::{Backend, BackendError};
use tokio::sync::{mpsc, watch};
use transport::NodeId;

use crate::{
    audit::{
        commitment::Committed,
        recorder::{Audit, Backlog, Event, Outgoing, Passed, Place, Recorder},
    },
    message::{
        BlockHash, Close, Draws, Failed, FailedReason, Held, RouteId, Segment, SessionId, Step, TokenReport,
        decode_rows, encode_rows,
    },
    model::Shard,
    request::Sampling,
    stage::{ComputeError, Fault, Input, KvUsage, Prompt, Short, Stage, StepError},
};
use draw::Drawing;

/// Most rows of a step whose time says how fast the node is.
const PACE_ROWS: usize = 8;
/// Reports that may wait for the node's task; past it the worker pauses.
const QUEUE: usize = 1024;
/// Commitments of other stages that may wait for the stage's thread.
const MAX_HEARD: usize = 4096;

/// What the node asks of its worker.
#[derive(Debug)]
pub enum Command {
    /// A session begins.
    Open(Opening),
    /// A session is over.
    Close(Close),
    /// What the stage before a session's signed.
    Heard {
        /// Who says so.
        from: NodeId,
        /// What.
        committed: Box<Committed>,
    },
    /// Rows to process as `shard` of the route.
    Step {
        /// The rows.
        step: Step,
        /// What this stage runs on the route.
        shard: Shard,
    },
}

/// A session as a stage sees it.
#[derive(Debug)]
pub struct Opening {
    /// The session.
    pub session: SessionId,
    /// Its route.
    pub route: RouteId,
    /// Positions it can reach.
    pub positions: u32,
    /// Length of its prompt.
    pub prompt_length: u32,
    /// Root and whole blocks of the prompt.
    pub blocks: Vec<BlockHash>,
    /// On the last stage: how to draw.
    pub reply: Option<Reply>,
    /// If what is computed is to be proved: by whom, and of which plan.
    pub place: Option<Box<Place>>,
}

/// What the last stage needs to draw a session's tokens.
#[derive(Debug)]
pub struct Reply {
    /// Sampling parameters.
    pub sampling: Sampling,
    /// The prompt, where a repetition penalty needs it.
    pub prompt: Vec<u32>,
    /// Tokens that end the reply.
    pub stop_tokens: Vec<u32>,
    /// Most tokens to draw.
    pub max_tokens: u32,
}

/// What a worker reports.
#[derive(Debug)]
pub enum Output {
    /// A session is open.
    Opened {
        /// The session.
        session: SessionId,
        /// Positions whose keys and values are there already.
        held: u32,
    },
    /// Rows for the next stage.
    Rows(Step),
    /// The last stage's tokens of a step.
    Drawn {
        /// The step without its body.
        step: Step,
        /// What was drawn for each session that was to draw.
        draws: Vec<Draws>,
        /// The same for the gateway.
        reports: Vec<TokenReport>,
    },
    /// A session has lost positions, and perhaps rows of the step with them.
    Held(Held),
    /// A session cannot go on.
    Failed(Failed),
    /// Rows are hashed and signed.
    Committed(Outgoing),
    /// A step broke the rules; nothing of it was computed.
    Refused {
        /// The step without its body.
        step: Step,
        /// The rule.
        error: StepError,
    },
}

/// What a stage has done and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageLoad {
    /// How its KV is used.
    pub kv: KvUsage,
    /// Rows computed.
    pub rows: u64,
    /// Positions of prompts that were not computed, because an earlier session left them.
    pub reused: u64,
    /// Times that a session lost its pages.
    pub preempted: u64,
    /// Nanoseconds that one layer takes in steps of a few rows, a moving average; 0 before the first.
    pub layer_ns: u64,
}

/// The node's end of a worker.
#[derive(Debug)]
pub struct Worker {
    commands: Sender<Command>,
    thread: JoinHandle<Result<(), BackendError>>,
    /// Commitments of other stages that wait.
    heard: Arc<AtomicUsize>,
    /// Of what is recorded, if anything is.
    backlog: Backlog,
}

impl Worker {
    /// Starts the thread; reports come through the returned receiver, and `publish` says what the stage has done
    /// and holds. Rows are hashed and signed if `audit` says with what.
    pub fn start<B: Backend>(
        stage: Stage<B>,
        audit: Option<Audit>,
        publish: watch::Sender<StageLoad>,
    ) -> std::io::Result<(Self, mpsc::Receiver<Output>)> {
        let (commands, inbox) = channel();
        let (outbox, outputs) = mpsc::channel(QUEUE);
        let emit = |outbox: mpsc::Sender<Output>| {
            move |outgoing| drop(outbox.blocking_send(Output::Committed(outgoing)))
        };
        let pages = stage.limits().pages;
        let recorder = audit.map(|audit| Recorder::start(audit, pages, emit(outbox.clone()))).transpose()?;
        let backlog = recorder.as_ref().map(Recorder::backlog).unwrap_or_default();
        publish.send_replace(StageLoad { kv: stage.usage(), ..StageLoad::default() });
        let heard = Arc::new(AtomicUsize::new(0));
        let mut desk = Desk::new(stage, outbox, publish, recorder);
        desk.heard = heard.clone();
        let thread = std::thread::Builder::new().name("stage".into()).spawn(move || desk.run(&inbox))?;
        Ok((Self { commands, thread, heard, backlog }, outputs))
    }

    /// Hands in a command. What may wait is bounded by the node's state: its sessions, and its steps
    /// in waiting; commitments of other stages past a bound are dropped, and with them the proof of what
    /// they are for.
    pub fn submit(&self, command: Command) {
        if matches!(command, Command::Heard { .. }) && self.heard.fetch_add(1, Ordering::Relaxed) >= MAX_HEARD
        {
            self.heard.fetch_sub(1, Ordering::Relaxed);
            return tracing::warn!("a stage signs faster than this one works");
        }
        // A worker that died shows in the end of its outputs.
        let _ = self.commands.send(command);
    }

    /// Whether sessions that are over wait to be signed.
    pub fn is_signing(&self) -> bool {
        self.heard.load(Ordering::SeqCst) > 0 || !self.backlog.is_empty()
    }

    /// Ends the thread after what it has been given, or hears why it ended before.
    ///
    /// # Errors
    /// If the device failed.
    pub fn stop(self) -> Result<(), BackendError> {
        drop(self.commands);
        // A panic in the thread has been printed; there is nothing left to save.
        self.thread.join().unwrap_or(Ok(()))
    }
}

/// The thread's state.
struct Desk<B: Backend> {
    stage: Stage<B>,
    drawing: HashMap<SessionId, Drawing>,
    outbox: mpsc::Sender<Output>,
    load: StageLoad,
    publish: watch::Sender<StageLoad>,
    tokens: Vec<u32>,
    rows: Vec<f32>,
    logits: Vec<f32>,
    faults: Vec<Fault>,
    short: Vec<Short>,
    recorder: Option<Recorder>,
    /// Sessions whose rows it is told.
    recorded: HashSet<SessionId>,
    heard: Arc<AtomicUsize>,
    #[cfg(test)]
    cheat: Option<cheat::Cheat>,
}

impl<B: Backend> Desk<B> {
    fn new(
        stage: Stage<B>,
        outbox: mpsc::Sender<Output>,
        publish: watch::Sender<StageLoad>,
        recorder: Option<Recorder>,
    ) -> Self {
        let load = *publish.borrow();
        Self {
            stage,
            drawing: HashMap::new(),
            outbox,
            load,
            publish,
            tokens: Vec::new(),
            rows: Vec::new(),
            logits: Vec::new(),
            faults: Vec::new(),
            short: Vec::new(),
            recorder,
            recorded: HashSet::new(),
            heard: Arc::default(),
            #[cfg(test)]
            cheat: cheat::taken(),
        }
    }

    /// Runs until nobody hands in commands any more, or the device fails.
    fn run(&mut self, inbox: &Receiver<Command>) -> Result<(), BackendError> {
        while let Ok(command) = inbox.recv() {
            match command {
                Command::Open(opening) => self.open(opening),
                Command::Close(close) => self.close(close),
                Command::Heard { from, committed } => {
                    self.tell(Event::Heard { from, committed });
                    self.heard.fetch_sub(1, Ordering::SeqCst);
                }
                Command::Step { step, shard } => self.step(step, &shard)?,
            }
            self.load.kv = self.stage.usage();
            self.publish.send_if_modified(|load| std::mem::replace(load, self.load) != self.load);
        }
        Ok(())
    }

    fn report(&self, output: Output) {
        // The node's task is gone only when the node is stopping.
        let _ = self.outbox.blocking_send(output);
    }

    fn open(&mut self, opening: Opening) {
        let Opening { session, route, positions, prompt_length, blocks, reply, place } = opening;
        match self.stage.open(session, route, positions, Prompt { length: prompt_length, blocks: &blocks }) {
            Ok(held) => {
                self.load.reused += u64::from(held);
                let drawing = reply.map(|reply| self.drawing_of(reply, prompt_length));
                self.drawing.extend(drawing.map(|drawing| (session, drawing)));
                self.report(Output::Opened { session, held });
                if let Some(place) = place.filter(|_| self.recorder.is_some()) {
                    self.recorded.insert(session);
                    self.tell(Event::Open { session, route, place, blocks });
                }
            }
            Err(error) => {
                let reason = FailedReason::Refused(error.to_string());
                self.report(Output::Failed(Failed { session, reason }));
            }
        }
    }

    #[cfg(not(test))]
    fn drawing_of(&self, reply: Reply, prompt_length: u32) -> Drawing {
        Drawing::new(reply, prompt_length)
    }

    #[cfg(test)]
    fn drawing_of(&self, mut reply: Reply, prompt_length: u32) -> Drawing {
        if let Some(cheat) = &self.cheat {
            cheat.reply(&mut reply);
        }
        let mut drawing = Drawing::new(reply, prompt_length);
        drawing.forged = self.cheat.and_then(|cheat| cheat.forged());
        drawing
    }

    fn close(&mut self, close: Close) {
        self.stage.close(close.session, &close.keep);
        self.drawing.remove(&close.session);
        if self.recorded.remove(&close.session) {
            self.tell(Event::Close(close));
        }
    }

    fn step(&mut self, step: Step, shard: &Shard) -> Result<(), BackendError> {
        let (mut step, body) = split(step);
        let mut faults = std::mem::take(&mut self.faults);
        let segments = &step.segments;
        let recorded = segments.iter().any(|segment| self.recorded.contains(&segment.session));
        let given = recorded.then(|| (step.segments.clone(), body.clone()));
        let begun = Instant::now();
        match self.compute(&mut step, &body, shard, &mut faults) {
            Ok(()) => {
                self.load.rows += step.rows() as u64;
                self.time(begun.elapsed(), step.rows(), shard.layers.len());
                let cut = self.settle_faults(&mut step, &faults);
                if shard.head {
                    let (draws, reports) = self.draw(&step, &cut)?;
                    if given.is_some() {
                        let mut passed = step.clone();
                        self.pass_on(&mut passed, &cut)?;
                        self.record(given, &passed, draws.clone());
                    }
                    self.report(Output::Drawn { step, draws, reports });
                } else {
                    self.pass_on(&mut step, &cut)?;
                    self.record(given, &step, Vec::new());
                    self.report(Output::Rows(step));
                }
            }
            Err(ComputeError::Refused(error)) => self.report(Output::Refused { step, error }),
            Err(ComputeError::Device(error)) => return Err(error),
        }
        self.faults = faults;
        Ok(())
    }

    /// Tells the recorder what was sent here, what came of it, and what was drawn.
    fn record(&self, given: Option<(Vec<Segment>, Bytes)>, passed: &Step, draws: Vec<Draws>) {
        let Some((given, input)) = given else { return };
        let (kept, output) = (passed.segments.clone(), passed.body.clone());
        self.tell(Event::Passed(Passed { given, input, kept, output, draws }));
    }

    fn tell(&self, event: Event) {
        if let Some(recorder) = &self.recorder {
            recorder.tell(event);
        }
    }

    /// Keeps the pace of small steps, which is that of reading the weights.
    fn time(&mut self, took: Duration, rows: usize, layers: usize) {
        if rows == 0 || rows > PACE_ROWS || layers == 0 {
            return;
        }
        let now = (took.as_nanos() as u64 / layers as u64).max(1);
        let before = self.load.layer_ns;
        self.load.layer_ns = if before == 0 { now } else { (before * 7 + now).div_ceil(8) };
    }

    /// Runs the layers. Rows of sessions that are not open any more, or that miss positions before them,
    /// are dropped first.
    fn compute(
        &mut self,
        step: &mut Step,
        body: &[u8],
        shard: &Shard,
        faults: &mut Vec<Fault>,
    ) -> Result<(), ComputeError> {
        #[cfg(test)]
        self.spoil(step, shard);
        let total = step.rows();
        if shard.embedding {
            let (words, rest) = body.as_chunks::<4>();
            if words.len() != total || !rest.is_empty() {
                return Err(StepError::Input.into());
            }
            self.tokens.clear();
            self.tokens.extend(words.iter().map(|&word| u32::from_le_bytes(word)));
            let mut tokens = std::mem::take(&mut self.tokens);
            self.admit(step, &mut tokens, 1);
            #[cfg(test)]
            if let Some(cheat) = &self.cheat {
                cheat.tokens(&step.segments, &mut tokens);
            }
            self.tokens = tokens;
            self.stage.step(shard.layers.clone(), &step.segments, Input::Tokens(&self.tokens), faults)
        } else {
            decode_rows(body, self.stage.profile(), &mut self.rows).map_err(|_| StepError::Input)?;
            if self.rows.len() != total * self.stage.hidden() {
                return Err(StepError::Input.into());
            }
            let mut rows = std::mem::take(&mut self.rows);
            self.admit(step, &mut rows, self.stage.hidden());
            self.rows = rows;
            self.stage.step(shard.layers.clone(), &step.segments, Input::Rows(&self.rows), faults)
        }
    }

    /// Drops what cannot run of a step with `values` of `width` a row, and reports what it lacks.
    fn admit<T: Copy>(&mut self, step: &mut Step, values: &mut Vec<T>, width: usize) {
        if step.segments.iter().any(|segment| !self.stage.is_open(segment.session)) {
            let open = |segment: &Segment| self.stage.is_open(segment.session);
            retain_rows(&mut step.segments, values, width, open);
        }
        self.short.clear();
        self.stage.reserve(&step.segments, &mut self.short);
        if self.short.is_empty() {
            return;
        }
        let short = |segment: &Segment| self.short.iter().find(|short| short.session == segment.session);
        // One that begins where it should lacked pages.
        let crowded: Vec<SessionId> = (step.segments.iter())
            .filter(|segment| short(segment).is_some_and(|short| segment.from <= short.held))
            .map(|segment| segment.session)
            .collect();
        retain_rows(&mut step.segments, values, width, |segment| short(segment).is_none());
        self.load.preempted += self.short.iter().filter(|short| short.preempted).count() as u64;
        for &Short { session, route, held, preempted } in &self.short {
            // The first stage of another route learns of it at its next step.
            if route != step.route {
                continue;
            }
            self.report_held(step, session, held, preempted || crowded.contains(&session));
        }
    }

    fn report_held(&self, step: &Step, session: SessionId, positions: u32, preempted: bool) {
        let (route, number) = (step.route, step.number);
        self.report(Output::Held(Held { route, number, session, positions, preempted }));
    }

    /// Rows that each segment has lost to a fault. One in a row whose token is certain ends the session; a
    /// drafted row may only be wrong, so it and those after it are as if they had not been sent.
    fn settle_faults(&mut self, step: &mut Step, faults: &[Fault]) -> Vec<u32> {
        let mut cut = vec![0; step.segments.len()];
        for fault in faults {
            let segment = &step.segments[fault.segment];
            if fault.position < segment.to() - segment.drafted {
                cut[fault.segment] = segment.rows;
                self.report(Output::Failed(fault_of(segment.session, fault)));
            } else {
                cut[fault.segment] = segment.to() - fault.position;
                self.stage.truncate(segment.session, fault.position);
                self.report_held(step, segment.session, fault.position, false);
            }
        }
        cut
    }

    /// Makes the rows that are left the step's body.
    fn pass_on(&mut self, step: &mut Step, cut: &[u32]) -> Result<(), BackendError> {
        self.stage.read_rows(0..step.rows(), &mut self.rows)?;
        if cut.iter().any(|&rows| rows > 0) {
            let width = self.stage.hidden();
            let (mut read, mut write) = (0, 0);
            for (segment, &cut) in step.segments.iter_mut().zip(cut) {
                let (whole, kept) = (segment.rows as usize * width, (segment.rows - cut) as usize * width);
                self.rows.copy_within(read..read + kept, write);
                read += whole;
                write += kept;
                segment.shorten(cut);
            }
            self.rows.truncate(write);
            step.segments.retain(|segment| segment.rows > 0);
        }
        step.body = encode_rows(&self.rows, self.stage.profile()).into();
        Ok(())
    }
}

fn fault_of(session: SessionId, fault: &Fault) -> Failed {
    let (position, layer, operation) = (fault.position, fault.layer as u32, fault.operation);
    Failed { session, reason: FailedReason::Fault { position, layer, operation } }
}

fn split(mut step: Step) -> (Step, Bytes) {
    let body = std::mem::take(&mut step.body);
    (step, body)
}

/// Keeps the segments that `keep` holds for, and their rows of `width` values.
fn retain_rows<T: Copy>(
    segments: &mut Vec<Segment>,
    values: &mut Vec<T>,
    width: usize,
    keep: impl Fn(&Segment) -> bool,
) {
    let (mut read, mut write) = (0, 0);
    segments.retain(|segment| {
        let length = segment.rows as usize * width;
        let kept = keep(segment);
        if kept {
            values.copy_within(read..read + length, write);
            write += length;
        }
        read += length;
        kept
    });
    values.truncate(write);
}
