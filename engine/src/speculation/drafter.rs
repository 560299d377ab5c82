//! A small draft model beside the gateway. A thread owns a stage that holds the whole model; it follows
//! the replies, and goes ahead of each by a bounded number of tokens.
//!
//! Its draws are the reply's own: same parameters, seed, choice and position, from the draft model's logits.
//! Where both models agree about a token's probability they then draw the same token, so sampled replies
//! are guessed nearly as well as greedy ones.

mod sequence;
#[cfg(test)]
mod tests;

use std::{
    io,
    ops::Range,
    sync::mpsc::{Receiver, Sender, TryRecvError, channel},
    thread::JoinHandle,
};

use kernels::backend::Backend;
use thiserror::Error;
use tokio::sync::mpsc;

use self::sequence::Sequence;
use crate::{
    message::{Draft, RouteId, Segment, SessionId},
    model::{Model, ModelError},
    request::{Request, Sampling},
    stage::{ComputeError, Fault, Input, Prompt, Short, Stage},
};

/// Drafts that may wait to be read; past it the thread pauses.
const QUEUE: usize = 1024;

/// How far a drafter goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrafterConfig {
    /// Most tokens beyond a session's known ones.
    pub ahead: usize,
    /// Tokens that are reported together, unless fewer are left to draft.
    pub burst: usize,
}

impl Default for DrafterConfig {
    fn default() -> Self {
        Self { ahead: 32, burst: 4 }
    }
}

/// What the gateway tells its drafter.
#[derive(Debug)]
pub enum Command {
    /// A reply begins.
    Open {
        /// Its session.
        session: SessionId,
        /// Token ids, at least one.
        prompt: Vec<u32>,
        /// Most tokens of the reply.
        max_tokens: u32,
        /// Tokens that end it.
        stop_tokens: Vec<u32>,
        /// How its tokens are drawn.
        sampling: Sampling,
    },
    /// The next tokens of a reply are known.
    Accepted {
        /// Its session.
        session: SessionId,
        /// The tokens in order.
        tokens: Vec<u32>,
    },
    /// A reply is over.
    Close(SessionId),
}

impl Command {
    /// A reply to `request` begins.
    pub fn open(session: SessionId, request: &Request) -> Self {
        Self::Open {
            session,
            prompt: request.prompt.clone(),
            max_tokens: request.max_tokens,
            stop_tokens: request.stop_tokens.clone(),
            sampling: request.sampling.clone(),
        }
    }
}

/// Why there is no drafter.
#[derive(Debug, Error)]
pub enum DrafterError {
    /// The stage has only a part of a model.
    #[error("a draft model is run whole, and the stage holds a part")]
    Part,
    /// The operating system has no thread to give.
    #[error("no thread for the draft model")]
    Thread(#[from] io::Error),
}

/// Why a draft model does not go with a model.
#[derive(Debug, Error)]
pub enum DraftModelError {
    /// A tokenizer cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Token ids mean different things.
    #[error(
        "the draft model's token {id} is {draft:?} and the model's {target:?}: their vocabularies differ"
    )]
    Vocabulary {
        /// The first id that differs.
        id: u32,
        /// What it stands for in the draft model.
        draft: Option<String>,
        /// What it stands for in the model.
        target: Option<String>,
    },
}

/// A running drafter and what it says.
#[derive(Debug)]
pub struct Drafting {
    /// Takes the replies.
    pub drafter: Drafter,
    /// Gives the drafts.
    pub drafts: mpsc::Receiver<Draft>,
}

/// Checks that every token id means the same to both models. Vocabularies may be padded differently past
/// the tokenizer's last id.
///
/// # Errors
/// [`DraftModelError`] naming the first id that differs.
pub fn check_vocabulary(target: &Model, draft: &Model) -> Result<(), DraftModelError> {
    let (target, draft) = (target.tokenizer()?, draft.tokenizer()?);
    for id in 0..target.size().max(draft.size()) as u32 {
        let (target, draft) = (target.token_text(id), draft.token_text(id));
        if target != draft {
            return Err(DraftModelError::Vocabulary { id, draft, target });
        }
    }
    Ok(())
}

/// The gateway's end of a drafter.
#[derive(Debug)]
pub struct Drafter {
    commands: Sender<Command>,
    thread: JoinHandle<()>,
}

impl Drafter {
    /// Starts the thread on a stage that holds a whole model; drafts come through the returned receiver.
    ///
    /// # Errors
    /// [`DrafterError`].
    pub fn start<B: Backend>(
        stage: Stage<B>,
        config: DrafterConfig,
    ) -> Result<(Self, mpsc::Receiver<Draft>), DrafterError> {
        let shard = stage.shard();
        if !shard.embedding || !shard.head {
            return Err(DrafterError::Part);
        }
        let (commands, inbox) = channel();
        let (outbox, drafts) = mpsc::channel(QUEUE);
        let mut desk = Desk { host: Host::new(stage), config, sequences: Vec::new(), outbox };
        let thread = std::thread::Builder::new().name("drafter".into()).spawn(move || desk.run(&inbox))?;
        Ok((Self { commands, thread }, drafts))
    }

    /// Hands in a command; never waits. What may wait is bounded by the gateway's requests. A session that
    /// the stage has no room for, or that is longer than it serves, is simply not drafted for.
    pub fn submit(&self, command: Command) {
        // A drafter that died shows in the end of its drafts.
        let _ = self.commands.send(command);
    }

    /// Ends the thread. The receiver of drafts must be dropped or be read meanwhile.
    pub fn stop(self) {
        drop(self.commands);
        // A panic in the thread has been printed; there is nothing left to save.
        let _ = self.thread.join();
    }
}

/// The thread's state.
struct Desk<B: Backend> {
    host: Host<B>,
    config: DrafterConfig,
    sequences: Vec<Sequence>,
    outbox: mpsc::Sender<Draft>,
}

impl<B: Backend> Desk<B> {
    /// Runs until nobody hands in commands or reads drafts any more.
    fn run(&mut self, inbox: &Receiver<Command>) {
        loop {
            if !self.sequences.iter().any(|sequence| sequence.wants(self.config.ahead)) {
                let Ok(command) = inbox.recv() else { return };
                self.apply(command);
            }
            loop {
                match inbox.try_recv() {
                    Ok(command) => self.apply(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.step();
            if !self.report() {
                return;
            }
        }
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Open { session, prompt, max_tokens, stop_tokens, sampling } => {
                let positions = (prompt.len() as u32).saturating_add(max_tokens);
                let sound = !prompt.is_empty() && self.host.knows(&prompt);
                let positions = positions.min(self.host.longest());
                if sound && prompt.len() < positions as usize && self.host.open(session, positions) {
                    self.sequences.push(Sequence::new(session, prompt, positions, stop_tokens, sampling));
                }
            }
            Command::Accepted { session, tokens } => {
                let known = self.host.knows(&tokens);
                match self.sequences.iter_mut().find(|sequence| sequence.session == session) {
                    Some(sequence) if known => sequence.accept(&tokens),
                    Some(_) => self.close(session),
                    None => {}
                }
            }
            Command::Close(session) => self.close(session),
        }
    }

    fn close(&mut self, session: SessionId) {
        self.host.close(session);
        self.sequences.retain(|sequence| sequence.session != session);
    }

    /// One batch: what each session lacks up to its next guess, those that lack least first.
    fn step(&mut self) {
        let mut batch = Batch::default();
        self.sequences.sort_by_key(Sequence::pending);
        let mut drawing = Vec::new();
        for (place, sequence) in self.sequences.iter_mut().enumerate() {
            let room = self.host.rows() - batch.tokens.len();
            if room == 0 {
                break;
            }
            if !sequence.wants(self.config.ahead) {
                continue;
            }
            let (from, rows) = sequence.send(room);
            batch.segments.push(Segment {
                session: sequence.session,
                from,
                rows: rows.len() as u32,
                drawn: Vec::new(),
                drafted: 0,
            });
            batch.tokens.extend_from_slice(&sequence.tokens()[rows]);
            if sequence.pending() == 0 {
                batch.last_rows.push(batch.tokens.len() as u32 - 1);
                drawing.push(place);
            }
        }
        if batch.segments.is_empty() {
            return;
        }
        let short = self.host.reserve(&batch);
        if !short.is_empty() {
            // Drafts are not worth a queue for pages. The others are sent again without these.
            for segment in &batch.segments {
                let sequence = self.sequences.iter_mut().find(|one| one.session == segment.session);
                sequence.into_iter().for_each(|sequence| sequence.take_back(segment.from));
            }
            return short.into_iter().for_each(|session| self.close(session));
        }
        let lost = self.host.run(&batch);
        for (place, logits) in drawing.into_iter().zip(self.host.logits()) {
            let sequence = &mut self.sequences[place];
            if !lost.contains(&sequence.session) {
                sequence.guess(logits);
            }
        }
        lost.into_iter().for_each(|session| self.close(session));
    }

    /// Sends what has gathered; `false` if nobody reads.
    fn report(&mut self) -> bool {
        let DrafterConfig { ahead, burst } = self.config;
        self.sequences
            .iter_mut()
            .filter_map(|sequence| sequence.report(ahead, burst))
            .all(|draft| self.outbox.blocking_send(draft).is_ok())
    }
}

/// Rows of one step.
#[derive(Default)]
struct Batch {
    segments: Vec<Segment>,
    tokens: Vec<u32>,
    /// The rows after which a token is drawn.
    last_rows: Vec<u32>,
}

/// The stage, as the drafter uses it.
struct Host<B: Backend> {
    stage: Stage<B>,
    layers: Range<usize>,
    logits: Vec<f32>,
    faults: Vec<Fault>,
    short: Vec<Short>,
}

impl<B: Backend> Host<B> {
    fn new(stage: Stage<B>) -> Self {
        Self {
            layers: stage.shard().layers.clone(),
            stage,
            logits: Vec::new(),
            faults: Vec::new(),
            short: Vec::new(),
        }
    }

    /// Most rows of a step.
    fn rows(&self) -> usize {
        self.stage.limits().rows
    }

    /// Most positions of a session.
    fn longest(&self) -> u32 {
        self.stage.limits().positions
    }

    /// Whether the draft model has an embedding for each of `tokens`.
    fn knows(&self, tokens: &[u32]) -> bool {
        tokens.iter().all(|&token| (token as usize) < self.stage.vocabulary())
    }

    /// Whether there was room for a session of so many positions.
    fn open(&mut self, session: SessionId, positions: u32) -> bool {
        self.stage.open(session, RouteId(0), positions, Prompt::default()).is_ok()
    }

    fn close(&mut self, session: SessionId) {
        self.stage.close(session, &[]);
    }

    /// Finds the pages of a batch; returns the sessions that there are none for.
    fn reserve(&mut self, batch: &Batch) -> Vec<SessionId> {
        self.stage.reserve(&batch.segments, &mut self.short);
        self.short.iter().map(|short| short.session).collect()
    }

    /// Runs a batch; returns the sessions that cannot go on.
    fn run(&mut self, batch: &Batch) -> Vec<SessionId> {
        let (segments, input) = (&batch.segments, Input::Tokens(&batch.tokens));
        self.logits.clear();
        if let Err(error) = self.compute(segments, input, &batch.last_rows) {
            tracing::warn!(%error, "the draft model's stage failed a step");
            return segments.iter().map(|segment| segment.session).collect();
        }
        self.faults.iter().map(|fault| segments[fault.segment].session).collect()
    }

    fn compute(&mut self, segments: &[Segment], input: Input<'_>, drawn: &[u32]) -> Result<(), ComputeError> {
        self.stage.step(self.layers.clone(), segments, input, &mut self.faults)?;
        if !drawn.is_empty() {
            self.stage.logits(segments, drawn, &mut self.logits, &mut self.faults)?;
        }
        Ok(())
    }

    /// Logits of the last batch's drawing rows.
    fn logits(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.logits.chunks_exact_mut(self.stage.vocabulary())
    }
}
