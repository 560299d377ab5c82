//! Streams: queues of work, and what orders them.
//!
//! Work of one stream runs in its order. Between streams an event orders, and the default stream: it waits for the
//! streams that are not created non-blocking, and they for it. Nothing else does, and nothing runs before
//! somebody waits for it, or asks whether it is done.

use std::{collections::VecDeque, time::Instant};

use crate::{
    code::Code,
    state::{Handle, Session, State},
    work::{Strike, Work},
};

/// A queue of work.
pub(crate) struct Stream {
    pub(crate) card: usize,
    pub(crate) context: Handle,
    /// Whether the default stream and this one wait for each other.
    pub(crate) blocking: bool,
    pub(crate) priority: i32,
    /// The capture that takes its work at present.
    pub(crate) capture: Option<Handle>,
    /// Destroyed by the host; what is queued still runs.
    pub(crate) gone: bool,
    queue: VecDeque<Work>,
    /// Work that was ever queued; `issued - done` stands in the queue.
    issued: u64,
    done: u64,
}

/// A point in a stream: when this much work of it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    stream: Handle,
    number: u64,
}

impl Mark {
    pub(crate) fn stream(self) -> Handle {
        self.stream
    }
}

/// An event.
pub(crate) struct Event {
    pub(crate) context: Handle,
    pub(crate) timing: bool,
    pub(crate) recorded: Recorded,
    /// When the last record was reached.
    pub(crate) at: Option<Instant>,
}

/// What an event stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// Nothing yet.
    Never,
    /// A point in a stream.
    Queued(Mark),
    /// The nodes of a capture that were the stream's last.
    Captured(Handle, Vec<usize>),
}

/// How far a step came.
enum Step {
    /// A piece of work is done.
    Done,
    /// The next piece waits for this point.
    Needs(Mark),
    /// The next piece hangs.
    Hangs,
    /// There is nothing to do.
    Empty,
}

impl Stream {
    pub(crate) fn new(card: usize, context: Handle, blocking: bool, priority: i32) -> Self {
        let queue = VecDeque::new();
        Self { card, context, blocking, priority, capture: None, gone: false, queue, issued: 0, done: 0 }
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Work that is queued and not done.
    pub(crate) fn pending(&self) -> usize {
        self.queue.len()
    }

    /// Lets launches that hang go on.
    pub(crate) fn resume(&mut self) {
        for work in &mut self.queue {
            if let Work::Launch(launch) = work {
                launch.strike.take_if(|strike| *strike == Strike::Hang);
            }
        }
    }

    fn push(&mut self, work: Work) {
        self.queue.push_back(work);
        self.issued += 1;
    }
}

impl State {
    /// The stream that the caller names, in the current context.
    pub(crate) fn stream(&self, handle: Handle) -> Result<Handle, Code> {
        const DEFAULT: [Handle; 2] = [Handle::NULL, Handle(1)];
        const PER_THREAD: Handle = Handle(2);
        let card = self.here()?;
        let context = self.context(card)?;
        if DEFAULT.contains(&handle) {
            return Ok(context.stream);
        }
        if handle == PER_THREAD {
            return Err(Code::NotSupported);
        }
        let live = |stream: &&Stream| stream.context == context.handle && !stream.gone;
        self.streams.get(&handle).filter(live).map(|_| handle).ok_or(Code::InvalidHandle)
    }

    /// The stream that the caller names, of whichever context: for calls that name their contexts.
    pub(crate) fn stream_anywhere(&self, handle: Handle) -> Result<Handle, Code> {
        match self.streams.get(&handle).filter(|stream| !stream.gone) {
            Some(stream) => match self.context(stream.card)?.error {
                Some(error) => Err(error),
                None => Ok(handle),
            },
            None => self.stream(handle),
        }
    }

    /// The end of what is queued in a stream now.
    pub(crate) fn tail(&self, stream: Handle) -> Mark {
        Mark { stream, number: self.streams.get(&stream).map_or(0, |live| live.issued) }
    }

    /// The point at which work that is queued now in a stream will be done.
    pub(crate) fn next_mark(&self, stream: Handle) -> Mark {
        let before = self.implied(stream).len() as u64;
        Mark { stream, number: self.tail(stream).number + before + 1 }
    }

    /// Whether a point is reached. Streams that are no more were run to their end.
    pub(crate) fn reached(&self, mark: Mark) -> bool {
        self.streams.get(&mark.stream).is_none_or(|stream| stream.done >= mark.number)
    }

    /// Gives work to a stream: to its queue, or to the capture that takes it.
    pub(crate) fn issue(&mut self, stream: Handle, work: Work) -> Result<(), Code> {
        if self.streams.get(&stream).is_some_and(|live| live.capture.is_some()) {
            return self.capture_work(stream, work);
        }
        self.check_implicit(stream)?;
        self.enqueue(stream, work);
        Ok(())
    }

    /// Queues work behind whatever the default stream's rule puts before it.
    pub(crate) fn enqueue(&mut self, stream: Handle, mut work: Work) {
        if let Work::Launch(launch) = &mut work {
            launch.strike = self.strike();
        }
        for mark in self.implied(stream) {
            self.push(stream, Work::Wait(mark));
        }
        self.push(stream, work);
        if self.settings.eager {
            while self.advance(stream) {}
        }
    }

    fn push(&mut self, stream: Handle, work: Work) {
        if let Some(live) = self.streams.get_mut(&stream) {
            live.push(work);
        }
    }

    /// What a stream's next work waits for by the default stream's rule.
    fn implied(&self, stream: Handle) -> Vec<Mark> {
        let Some(live) = self.streams.get(&stream).filter(|live| live.blocking) else { return Vec::new() };
        let Ok(context) = self.context(live.card) else { return Vec::new() };
        let default = context.stream;
        let busy = |(handle, other): &(&Handle, &Stream)| {
            let concerned = stream == default || **handle == default;
            **handle != stream
                && concerned
                && other.context == live.context
                && other.blocking
                && !other.is_idle()
        };
        let streams = self.streams.iter().filter(busy);
        streams.map(|(handle, other)| Mark { stream: *handle, number: other.issued }).collect()
    }

    /// What a launch that is queued now will meet.
    fn strike(&mut self) -> Option<Strike> {
        self.tally.launches += 1;
        let fault = strikes(&mut self.coming.fault_at).then_some(Strike::Fault);
        let hang = strikes(&mut self.coming.hang_at).then_some(Strike::Hang);
        fault.or(hang)
    }

    /// Does one piece of work that brings a stream on, or says that there is none that can be done.
    pub(crate) fn advance(&mut self, mut stream: Handle) -> bool {
        loop {
            match self.step(stream) {
                Step::Done => return true,
                Step::Needs(mark) => stream = mark.stream,
                Step::Hangs | Step::Empty => return false,
            }
        }
    }

    fn step(&mut self, stream: Handle) -> Step {
        let Some(live) = self.streams.get(&stream) else { return Step::Empty };
        let card = live.card;
        let broken = self.context(card).map_or(true, |context| context.error.is_some());
        match live.queue.front() {
            None => return Step::Empty,
            Some(Work::Wait(mark)) if !self.reached(*mark) => return Step::Needs(*mark),
            Some(Work::Launch(launch)) if launch.strike == Some(Strike::Hang) && !broken => {
                return Step::Hangs;
            }
            Some(_) => {}
        }
        let work = self.streams.get_mut(&stream).and_then(|live| live.queue.pop_front());
        if let Some(work) = work.filter(|_| !broken)
            && let Err(code) = self.perform(card, &work)
        {
            self.fail(card, code);
        }
        if let Some(live) = self.streams.get_mut(&stream) {
            live.done += 1;
            if live.gone && live.is_idle() {
                self.streams.remove(&stream);
            }
        }
        Step::Done
    }
}

impl Session {
    /// Runs what a point needs, and waits where something hangs.
    pub(crate) fn finish(&mut self, mark: Mark) {
        let mut wanted = vec![mark];
        while let Some(&mark) = wanted.last() {
            if self.reached(mark) {
                wanted.pop();
                continue;
            }
            match self.step(mark.stream) {
                Step::Done => {}
                Step::Needs(before) => wanted.push(before),
                Step::Hangs => self.wait(),
                Step::Empty => {
                    wanted.pop();
                }
            }
        }
    }

    /// Runs everything that a card has to do.
    pub(crate) fn finish_card(&mut self, card: usize) {
        let streams = self.streams.iter().filter(|(_, stream)| stream.card == card);
        let marks: Vec<Mark> =
            streams.map(|(handle, stream)| Mark { stream: *handle, number: stream.issued }).collect();
        for mark in marks {
            self.finish(mark);
        }
    }
}

/// Counts a countdown down and says whether it ends now.
pub(crate) fn strikes(countdown: &mut Option<u64>) -> bool {
    match countdown {
        Some(1) => countdown.take().is_some(),
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}
