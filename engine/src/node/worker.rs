//! The thread that computes: it owns the stage, takes commands in order and reports what came of
//! them. The node's task never waits for it.

use std::{
    collections::HashMap,
    sync::mpsc::{Receiver, Sender, channel},
    thread::JoinHandle,
};

use bytes::Bytes;
use kernels::backend::Backend;
use tokio::sync::mpsc;

use crate::{
    message::{
        Failed, FailedReason, RouteId, Segment, SessionId, Step, TokenReport, decode_rows, encode_rows,
    },
    model::Shard,
    request::{Finish, Sampling},
    sampler::Sampler,
    stage::{Fault, Input, Prompt, Stage, StepError},
};

/// Reports that may wait for the node's task; past it the worker pauses.
const QUEUE: usize = 1024;

/// What the node asks of its worker.
#[derive(Debug)]
pub enum Command {
    /// A session begins.
    Open {
        /// The session.
        session: SessionId,
        /// Positions it can reach.
        positions: u32,
        /// On the last stage: how to draw.
        draws: Option<Draws>,
    },
    /// A session is over.
    Close(SessionId),
    /// Rows to process as `shard` of the route.
    Step {
        /// The rows.
        step: Step,
        /// What this stage runs on the route.
        shard: Shard,
    },
}

/// What the last stage needs to draw a session's tokens.
#[derive(Debug)]
pub struct Draws {
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
    /// Rows for the next stage.
    Rows(Step),
    /// The last stage's tokens of a step.
    Drawn {
        /// The step without its body.
        step: Step,
        /// The tokens.
        tokens: Vec<TokenReport>,
    },
    /// A session cannot go on.
    Failed(Failed),
    /// A step broke the rules; nothing of it was computed.
    Refused {
        /// The step without its body.
        step: Step,
        /// The rule.
        error: StepError,
    },
}

/// The node's end of a worker.
#[derive(Debug)]
pub struct Worker {
    commands: Sender<Command>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts the thread; reports come through the returned receiver.
    pub fn start<B: Backend>(stage: Stage<B>) -> std::io::Result<(Self, mpsc::Receiver<Output>)> {
        let (commands, inbox) = channel();
        let (outbox, outputs) = mpsc::channel(QUEUE);
        let mut desk = Desk::new(stage, outbox);
        let thread = std::thread::Builder::new().name("stage".into()).spawn(move || desk.run(&inbox))?;
        Ok((Self { commands, thread }, outputs))
    }

    /// Hands in a command. What may wait is bounded by the node's state: its sessions, and its steps
    /// in waiting.
    pub fn submit(&self, command: Command) {
        // A worker that died shows in the end of its outputs.
        let _ = self.commands.send(command);
    }

    /// Ends the thread after what it has been given.
    pub fn stop(self) {
        drop(self.commands);
        // A panic in the thread has been printed; there is nothing left to save.
        let _ = self.thread.join();
    }
}

/// The thread's state.
struct Desk<B: Backend> {
    stage: Stage<B>,
    drawing: HashMap<SessionId, Drawing>,
    outbox: mpsc::Sender<Output>,
    tokens: Vec<u32>,
    rows: Vec<f32>,
    logits: Vec<f32>,
    faults: Vec<Fault>,
}

struct Drawing {
    sampler: Sampler,
    stop_tokens: Vec<u32>,
    left: u32,
}

impl<B: Backend> Desk<B> {
    fn new(stage: Stage<B>, outbox: mpsc::Sender<Output>) -> Self {
        let (tokens, rows, logits, faults) = Default::default();
        Self { stage, drawing: HashMap::new(), outbox, tokens, rows, logits, faults }
    }

    fn run(&mut self, inbox: &Receiver<Command>) {
        while let Ok(command) = inbox.recv() {
            match command {
                Command::Open { session, positions, draws } => self.open(session, positions, draws),
                Command::Close(session) => self.close(session),
                Command::Step { step, shard } => self.step(step, &shard),
            }
        }
    }

    fn report(&self, output: Output) {
        // The node's task is gone only when the node is stopping.
        let _ = self.outbox.blocking_send(output);
    }

    fn open(&mut self, session: SessionId, positions: u32, draws: Option<Draws>) {
        if let Err(error) = self.stage.open(session, RouteId(0), positions, Prompt::default()) {
            let reason = FailedReason::Refused(error.to_string());
            return self.report(Output::Failed(Failed { session, reason }));
        }
        if let Some(draws) = draws {
            let sampler = Sampler::new(draws.sampling, &draws.prompt);
            let drawing = Drawing { sampler, stop_tokens: draws.stop_tokens, left: draws.max_tokens };
            self.drawing.insert(session, drawing);
        }
    }

    fn close(&mut self, session: SessionId) {
        self.stage.close(session, &[]);
        self.drawing.remove(&session);
    }

    fn step(&mut self, step: Step, shard: &Shard) {
        let (mut step, body) = split(step);
        let mut faults = std::mem::take(&mut self.faults);
        match self.compute(&mut step, &body, shard, &mut faults) {
            Ok(()) if shard.head => {
                let tokens = self.draw(&step.segments, &mut faults);
                self.report_faults(&step, &faults);
                self.report(Output::Drawn { step, tokens });
            }
            Ok(()) => {
                self.report_faults(&step, &faults);
                self.drop_faulty(&mut step, &faults);
                self.report(Output::Rows(step));
            }
            Err(error) => self.report(Output::Refused { step, error }),
        }
        self.faults = faults;
    }

    /// Runs the layers. Rows of sessions that are not open any more are dropped first.
    fn compute(
        &mut self,
        step: &mut Step,
        body: &[u8],
        shard: &Shard,
        faults: &mut Vec<Fault>,
    ) -> Result<(), StepError> {
        let total = step.rows();
        if shard.embedding {
            let (words, rest) = body.as_chunks::<4>();
            if words.len() != total || !rest.is_empty() {
                return Err(StepError::Input);
            }
            self.tokens.clear();
            self.tokens.extend(words.iter().map(|&word| u32::from_le_bytes(word)));
            let lost = keep_open(&mut self.stage, &mut step.segments, &mut self.tokens, 1);
            self.report_lost(lost);
            self.stage.step(shard.layers.clone(), &step.segments, Input::Tokens(&self.tokens), faults)
        } else {
            decode_rows(body, self.stage.profile(), &mut self.rows).map_err(|_| StepError::Input)?;
            if self.rows.len() != total * self.stage.hidden() {
                return Err(StepError::Input);
            }
            let width = self.stage.hidden();
            let lost = keep_open(&mut self.stage, &mut step.segments, &mut self.rows, width);
            self.report_lost(lost);
            self.stage.step(shard.layers.clone(), &step.segments, Input::Rows(&self.rows), faults)
        }
    }

    fn report_lost(&self, sessions: Vec<SessionId>) {
        for session in sessions {
            let reason = FailedReason::Refused("the stage has no KV pages left for it".into());
            self.report(Output::Failed(Failed { session, reason }));
        }
    }

    fn report_faults(&self, step: &Step, faults: &[Fault]) {
        for fault in faults {
            let reason = FailedReason::Fault {
                position: fault.position,
                layer: fault.layer as u32,
                operation: fault.operation,
            };
            let session = step.segments[fault.segment].session;
            self.report(Output::Failed(Failed { session, reason }));
        }
    }

    /// Leaves the rows of sound sessions as the step's body.
    fn drop_faulty(&mut self, step: &mut Step, faults: &[Fault]) {
        let rows = step.rows();
        self.stage.read_rows(0..rows, &mut self.rows);
        if !faults.is_empty() {
            let faulty: Vec<SessionId> = faults.iter().map(|f| step.segments[f.segment].session).collect();
            let sound = |segment: &Segment| !faulty.contains(&segment.session);
            retain_rows(&mut step.segments, &mut self.rows, self.stage.hidden(), sound);
        }
        step.body = encode_rows(&self.rows, self.stage.profile()).into();
    }

    /// Draws a token for every sound segment that wants one.
    fn draw(&mut self, segments: &[Segment], faults: &mut Vec<Fault>) -> Vec<TokenReport> {
        let mut wanted = Vec::new();
        let mut last_rows = Vec::new();
        let mut end = 0;
        for (index, segment) in segments.iter().enumerate() {
            end += segment.rows;
            let sound = !faults.iter().any(|fault| fault.segment == index);
            let alive = self.drawing.get(&segment.session).is_some_and(|drawing| drawing.left > 0);
            if segment.draw && sound && alive {
                wanted.push(index);
                last_rows.push(end - 1);
            }
        }
        if wanted.is_empty() {
            return Vec::new();
        }
        let (mut some, mut all) = (std::mem::take(&mut self.logits), Vec::new());
        for rows in last_rows.chunks(self.stage.draw_rows()) {
            self.stage.logits(segments, rows, &mut some, faults);
            all.extend_from_slice(&some);
        }
        self.logits = all;
        let width = self.logits.len() / last_rows.len();
        let mut tokens = Vec::with_capacity(wanted.len());
        for (index, logits) in wanted.into_iter().zip(self.logits.chunks_exact_mut(width)) {
            if faults.iter().any(|fault| fault.segment == index) {
                continue;
            }
            let segment = &segments[index];
            if let Some(drawing) = self.drawing.get_mut(&segment.session) {
                tokens.push(drawing.next(segment.session, logits, segment.from + segment.rows));
            }
        }
        tokens
    }
}

impl Drawing {
    fn next(&mut self, session: SessionId, logits: &mut [f32], position: u32) -> TokenReport {
        let draw = self.sampler.draw(logits, position);
        self.left -= 1;
        let finish = if self.stop_tokens.contains(&draw.token) {
            self.left = 0;
            Some(Finish::Stop)
        } else {
            (self.left == 0).then_some(Finish::Length)
        };
        TokenReport { session, token: draw.token, logprobs: draw.logprobs, finish }
    }
}

fn split(mut step: Step) -> (Step, Bytes) {
    let body = std::mem::take(&mut step.body);
    (step, body)
}

/// Drops the rows of sessions that are closed or have no pages; returns the latter.
fn keep_open<B: Backend, T: Copy>(
    stage: &mut Stage<B>,
    segments: &mut Vec<Segment>,
    values: &mut Vec<T>,
    width: usize,
) -> Vec<SessionId> {
    let mut short = Vec::new();
    stage.reserve(segments, &mut short);
    let lost: Vec<SessionId> = short.iter().map(|short| short.session).collect();
    let sound = |segment: &Segment| stage.is_open(segment.session) && !lost.contains(&segment.session);
    if !segments.iter().all(sound) {
        retain_rows(segments, values, width, sound);
    }
    lost
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
