//! Recording streams into graphs.
//!
//! A node knows the nodes that it comes after, through its stream and through events. A graph runs in an order that
//! these allow and that is otherwise the least expected: what was issued last goes first.

use std::{
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
    thread::{self, ThreadId},
};

use crate::{
    code::Code,
    state::{Handle, State},
    stream::Recorded,
    work::Work,
};

/// How far a capture reaches for calls that would break it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Calls of every thread.
    Global,
    /// Calls of the thread that began it.
    ThreadLocal,
    /// None.
    Relaxed,
}

/// A recording that is going on.
pub(crate) struct Capture {
    /// The stream that it began on and must end on.
    pub(crate) origin: Handle,
    mode: Mode,
    thread: ThreadId,
    nodes: Vec<Node>,
    /// The last nodes of each stream that takes part.
    fronts: BTreeMap<Handle, Vec<usize>>,
    /// Whether some call broke it.
    broken: bool,
}

/// A piece of work with what it comes after.
pub(crate) struct Node {
    pub(crate) work: Work,
    after: Vec<usize>,
}

/// A finished recording.
pub(crate) struct Graph {
    pub(crate) nodes: Vec<Node>,
}

impl Graph {
    /// The nodes' work in an order in which it may run: the earliest first, or else the latest that can.
    pub(crate) fn order(&self, eager: bool) -> Arc<[Work]> {
        if eager {
            return self.nodes.iter().map(|node| node.work.clone()).collect();
        }
        let mut left: Vec<usize> = self.nodes.iter().map(|node| node.after.len()).collect();
        let mut next: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            node.after.iter().for_each(|&before| next[before].push(index));
        }
        let mut ready: BinaryHeap<usize> = (0..left.len()).filter(|&index| left[index] == 0).collect();
        let mut works = Vec::with_capacity(left.len());
        while let Some(index) = ready.pop() {
            works.push(self.nodes[index].work.clone());
            for &later in &next[index] {
                left[later] -= 1;
                if left[later] == 0 {
                    ready.push(later);
                }
            }
        }
        works.into()
    }
}

impl Capture {
    /// Whether every node comes before the last ones of the stream that it began on.
    fn is_joined(&self) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = self.fronts.get(&self.origin).cloned().unwrap_or_default();
        while let Some(index) = open.pop() {
            if seen.insert(index) {
                open.extend(&self.nodes[index].after);
            }
        }
        let joined = |front: &Vec<usize>| front.iter().all(|index| seen.contains(index));
        seen.len() == self.nodes.len() && self.fronts.values().all(joined)
    }
}

impl State {
    /// Begins to record a stream.
    pub(crate) fn begin_capture(&mut self, stream: Handle, mode: Mode) -> Result<(), Code> {
        let card = self.here()?;
        if self.context(card)?.stream == stream {
            return Err(Code::CaptureUnsupported);
        }
        let handle = self.mint();
        let live = self.streams.get_mut(&stream).ok_or(Code::InvalidHandle)?;
        if live.capture.is_some() {
            return Err(Code::IllegalState);
        }
        live.capture = Some(handle);
        let thread = thread::current().id();
        let fronts = BTreeMap::from([(stream, Vec::new())]);
        self.captures.insert(
            handle,
            Capture { origin: stream, mode, thread, nodes: Vec::new(), fronts, broken: false },
        );
        Ok(())
    }

    /// Ends the recording that began on a stream.
    pub(crate) fn end_capture(&mut self, stream: Handle) -> Result<Graph, Code> {
        let live = self.streams.get(&stream).ok_or(Code::InvalidHandle)?;
        let handle = live.capture.ok_or(Code::IllegalState)?;
        let capture = self.captures.get(&handle).ok_or(Code::IllegalState)?;
        if capture.origin != stream {
            return Err(Code::CaptureUnmatched);
        }
        if capture.mode != Mode::Relaxed && capture.thread != thread::current().id() {
            return Err(Code::CaptureWrongThread);
        }
        self.streams.values_mut().filter(|live| live.capture == Some(handle)).for_each(|live| {
            live.capture = None;
        });
        let capture = self.captures.remove(&handle).ok_or(Code::IllegalState)?;
        if capture.broken {
            return Err(Code::CaptureInvalidated);
        }
        if !capture.is_joined() {
            return Err(Code::CaptureUnjoined);
        }
        Ok(Graph { nodes: capture.nodes })
    }

    /// What a stream is in: no capture, one, or a broken one.
    pub(crate) fn capture_state(&self, stream: Handle) -> Option<bool> {
        let capture = self.streams.get(&stream)?.capture?;
        Some(self.captures.get(&capture).is_some_and(|capture| capture.broken))
    }

    /// Breaks the capture of a stream on which a call is made that no capture takes.
    pub(crate) fn refuse_captured(&mut self, stream: Handle) -> Result<(), Code> {
        let Some(handle) = self.streams.get(&stream).and_then(|live| live.capture) else { return Ok(()) };
        match self.captures.get_mut(&handle) {
            Some(capture) if !capture.broken => {
                capture.broken = true;
                Err(Code::CaptureUnsupported)
            }
            _ => Err(Code::CaptureInvalidated),
        }
    }

    /// Breaks all captures of a context that is synchronised.
    pub(crate) fn refuse_captures(&mut self, context: Handle) -> Result<(), Code> {
        let streams =
            self.streams.iter().filter(|(_, live)| live.context == context && live.capture.is_some());
        let streams: Vec<Handle> = streams.map(|(handle, _)| *handle).collect();
        let outcomes: Vec<Result<(), Code>> =
            streams.into_iter().map(|stream| self.refuse_captured(stream)).collect();
        outcomes.into_iter().collect()
    }

    /// Breaks the captures in whose reach a call is made that may wait for the card: allocations, copies
    /// that are not asynchronous, queries.
    pub(crate) fn refuse_within_reach(&mut self) -> Result<(), Code> {
        let thread = thread::current().id();
        let mut within = self.captures.values_mut().filter(|capture| match capture.mode {
            Mode::Global => !capture.broken,
            Mode::ThreadLocal => !capture.broken && capture.thread == thread,
            Mode::Relaxed => false,
        });
        let any = within.by_ref().map(|capture| capture.broken = true).count() > 0;
        if any { Err(Code::CaptureUnsupported) } else { Ok(()) }
    }

    /// Work on the default stream would wait for blocking streams, which a capture cannot take.
    pub(crate) fn check_implicit(&mut self, stream: Handle) -> Result<(), Code> {
        let Some(live) = self.streams.get(&stream) else { return Err(Code::InvalidHandle) };
        let (card, context) = (live.card, live.context);
        if self.context(card)?.stream != stream {
            return Ok(());
        }
        let captured = self.streams.values().filter(|other| other.context == context && other.blocking);
        let handles: Vec<Handle> = captured.filter_map(|other| other.capture).collect();
        let mut outcome = Ok(());
        for handle in handles {
            if let Some(capture) = self.captures.get_mut(&handle) {
                capture.broken = true;
                outcome = Err(Code::CaptureImplicit);
            }
        }
        outcome
    }

    /// Records work of a stream that is captured.
    pub(crate) fn capture_work(&mut self, stream: Handle, work: Work) -> Result<(), Code> {
        let handle = self.streams.get(&stream).and_then(|live| live.capture).ok_or(Code::IllegalState)?;
        let capture = self.captures.get_mut(&handle).filter(|capture| !capture.broken);
        let capture = capture.ok_or(Code::CaptureInvalidated)?;
        let node = capture.nodes.len();
        let after = capture.fronts.insert(stream, vec![node]).unwrap_or_default();
        capture.nodes.push(Node { work, after });
        Ok(())
    }

    /// What an event stands for that is recorded now on a stream that is captured; none if it is not.
    pub(crate) fn capture_record(&self, stream: Handle) -> Result<Option<Recorded>, Code> {
        let Some(handle) = self.streams.get(&stream).and_then(|live| live.capture) else { return Ok(None) };
        let capture = self.captures.get(&handle).filter(|capture| !capture.broken);
        let capture = capture.ok_or(Code::CaptureInvalidated)?;
        Ok(Some(Recorded::Captured(handle, capture.fronts.get(&stream).cloned().unwrap_or_default())))
    }

    /// Lets a stream wait for an event where a capture is concerned; whether one was.
    pub(crate) fn capture_wait(&mut self, stream: Handle, recorded: &Recorded) -> Result<bool, Code> {
        let own = self.streams.get(&stream).and_then(|live| live.capture);
        let (capture, front) = match (own, recorded) {
            (None, Recorded::Captured(capture, front)) => (*capture, front),
            (Some(own), Recorded::Captured(capture, front)) if own == *capture => (own, front),
            (None, _) => return Ok(false),
            (Some(_), Recorded::Never) => return Ok(true),
            (Some(own), other) => {
                let merge = matches!(other, Recorded::Captured(..));
                self.captures.get_mut(&own).into_iter().for_each(|capture| capture.broken = true);
                return Err(if merge { Code::CaptureMerge } else { Code::CaptureIsolation });
            }
        };
        let live = self.captures.get_mut(&capture).ok_or(Code::CapturedEvent)?;
        if live.broken {
            return Err(Code::CaptureInvalidated);
        }
        let ours = live.fronts.entry(stream).or_default();
        ours.extend(front);
        ours.sort_unstable();
        ours.dedup();
        if let Some(live) = self.streams.get_mut(&stream) {
            live.capture = Some(capture);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A graph whose node `i` frees address `i`, after the earlier nodes that the bits of `masks[i]` name.
    fn graph(masks: &[u64]) -> Graph {
        let node = |(index, mask): (usize, &u64)| {
            let after = (0..index).filter(|before| mask >> before & 1 == 1).collect();
            Node { work: Work::Free(index as u64), after }
        };
        Graph { nodes: masks.iter().enumerate().map(node).collect() }
    }

    fn numbers(works: &[Work]) -> Vec<usize> {
        let number = |work: &Work| if let Work::Free(number) = work { *number as usize } else { usize::MAX };
        works.iter().map(number).collect()
    }

    proptest! {
        #[test]
        fn an_order_has_every_node_once_and_after_those_before_it(masks in prop::collection::vec(any::<u64>(), 0..40)) {
            let graph = graph(&masks);
            for eager in [false, true] {
                let order = numbers(&graph.order(eager));
                let mut places = vec![usize::MAX; masks.len()];
                order.iter().enumerate().for_each(|(place, &index)| places[index] = place);
                prop_assert_eq!(order.len(), masks.len());
                prop_assert!(places.iter().all(|&place| place < masks.len()));
                for (index, node) in graph.nodes.iter().enumerate() {
                    prop_assert!(node.after.iter().all(|&before| places[before] < places[index]));
                }
            }
        }
    }

    #[test]
    fn branches_that_nothing_orders_go_backwards() {
        assert_eq!(numbers(&graph(&[0, 1, 1, 0b110]).order(false)), [0, 2, 1, 3]);
        assert_eq!(numbers(&graph(&[0, 1, 1, 0b110]).order(true)), [0, 1, 2, 3]);
    }
}
