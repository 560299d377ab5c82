//! What happened before what, within a launch.
//!
//! Each warp has a clock that moves on whenever it meets others. An access is remembered as an *event*: who, and at
//! which time. Barriers and collectives pass knowledge of clocks on; between blocks (and wherever else nothing meets)
//! only a fence and an atomic do, to those who see the atomic and fence in turn.

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

use super::registers::{LANES, lanes};

/// Warps of a block.
const WARPS: usize = 32;
/// In place of a lane: several lanes of the warp.
pub(super) const SEVERAL: u8 = 32;
/// How far knowledge is followed from block to block.
const DEPTH: u32 = 8;

/// An access that is remembered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Event {
    pub(super) block: u32,
    pub(super) time: u32,
    pub(super) warp: u8,
    pub(super) lane: u8,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    Plain,
    /// Atomic, or volatile.
    Strong,
    /// An asynchronous copy on its way.
    Flying,
}

/// A thread of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Thread {
    pub(super) warp: usize,
    pub(super) lane: usize,
}

/// What a warp knows of the others' clocks.
#[derive(Clone, Debug)]
struct Known {
    warps: [u32; WARPS],
    /// When all its own lanes met, and the time.
    met: u32,
    time: u32,
}

impl Known {
    /// Whether the thread that knows this knows of an event.
    fn includes(&self, thread: Thread, event: &Event) -> bool {
        if usize::from(event.warp) != thread.warp {
            event.time < self.warps[usize::from(event.warp)]
        } else if usize::from(event.lane) == thread.lane {
            event.time <= self.time
        } else {
            event.time < self.met
        }
    }
}

/// What a thread had fenced when it did an atomic: knowledge for who sees that.
#[derive(Debug)]
struct Release {
    block: u32,
    thread: Thread,
    at_fence: Rc<Known>,
    now: Known,
    /// When each thread of the block last fenced.
    fences: Rc<Vec<[u32; LANES]>>,
    seen: Vec<Seen>,
}

impl Release {
    /// Whether an event of the releasing block is passed on: known to the thread at its fence, or known to it at the
    /// atomic and fenced by who did it.
    fn passes(&self, event: &Event) -> bool {
        let times = &self.fences[usize::from(event.warp)];
        let fenced = match times.get(usize::from(event.lane)) {
            Some(&fence) => event.time < fence,
            None => times.iter().all(|&fence| event.time < fence),
        };
        self.at_fence.includes(self.thread, event) || fenced && self.now.includes(self.thread, event)
    }
}

/// The first `count` releases at an address.
#[derive(Clone, Copy, Debug)]
struct Seen {
    address: u64,
    count: usize,
}

pub(super) struct Clock {
    pub(super) events: Vec<Event>,
    block: u32,
    now: [u32; WARPS],
    /// When all lanes of a warp met.
    met: [u32; WARPS],
    /// When lanes of a warp met some others: at [warp][lane][other].
    pairs: HashMap<usize, Box<[[u32; LANES]; LANES]>>,
    known: [[u32; WARPS]; WARPS],
    /// The clock of each warp when it came to each barrier.
    arrived: [[u32; WARPS]; super::barrier::COUNT],
    /// Events of the present time of each warp, by kind and lane.
    recent: Vec<([[u32; LANES + 1]; 3], u32)>,
    fences: Rc<Vec<[u32; LANES]>>,
    fenced: HashMap<Thread, Rc<Known>>,
    releases: HashMap<u64, Vec<Release>>,
    /// What each thread has seen and not yet fenced.
    pending: HashMap<Thread, Vec<Seen>>,
    /// What was seen and fenced: by whom, when.
    seen: Vec<(Thread, u32, Seen)>,
    passed: HashSet<(u32, Thread)>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            events: vec![Event::default()],
            block: 0,
            now: [1; WARPS],
            met: [0; WARPS],
            pairs: HashMap::new(),
            known: [[0; WARPS]; WARPS],
            arrived: [[0; WARPS]; super::barrier::COUNT],
            recent: vec![([[0; LANES + 1]; 3], 0); WARPS],
            fences: Rc::new(vec![[0; LANES]; WARPS]),
            fenced: HashMap::new(),
            releases: HashMap::new(),
            pending: HashMap::new(),
            seen: Vec::new(),
            passed: HashSet::new(),
        }
    }

    pub(super) fn begin_block(&mut self, block: u32) {
        self.block = block;
        self.now = [1; WARPS];
        self.met = [0; WARPS];
        self.pairs.clear();
        self.known = [[0; WARPS]; WARPS];
        self.recent.fill(([[0; LANES + 1]; 3], 0));
        self.fences = Rc::new(vec![[0; LANES]; WARPS]);
        self.fenced.clear();
        self.pending.clear();
        self.seen.clear();
        self.passed.clear();
    }

    /// The event of an access of a thread (or of several lanes) now.
    #[inline(always)]
    pub(super) fn event(&mut self, warp: usize, lane: usize, kind: Kind) -> u32 {
        let (recent, time) = &mut self.recent[warp];
        if *time != self.now[warp] {
            *recent = [[0; LANES + 1]; 3];
            *time = self.now[warp];
        }
        let slot = &mut recent[kind as usize][lane];
        if *slot == 0 {
            *slot = self.events.len() as u32;
            let (block, time) = (self.block, *time);
            self.events.push(Event { block, time, warp: warp as u8, lane: lane as u8, kind });
        }
        *slot
    }

    /// Whether an event of another thread happened before what the thread does now.
    pub(super) fn is_before(&mut self, id: u32, thread: Thread) -> bool {
        let event = self.events[id as usize];
        if event.block == self.block && self.is_known(&event, thread) {
            return true;
        }
        if self.seen.is_empty() {
            return false;
        }
        if self.passed.contains(&(id, thread)) {
            return true;
        }
        let seen = self.seen_by(thread);
        let passed = self.is_passed(&event, &seen, DEPTH);
        if passed {
            self.passed.insert((id, thread));
        }
        passed
    }

    /// Whether barriers and collectives tell the thread of an event of its block.
    #[inline(always)]
    fn is_known(&self, event: &Event, thread: Thread) -> bool {
        let (warp, lane) = (usize::from(event.warp), usize::from(event.lane));
        if warp != thread.warp {
            return event.time < self.known[thread.warp][warp];
        }
        if lane == thread.lane || event.time < self.met[warp] {
            return true;
        }
        let pairs = self.pairs.get(&warp);
        lane < LANES && pairs.is_some_and(|pairs| event.time < pairs[thread.lane][lane])
    }

    fn seen_by(&self, thread: Thread) -> Vec<Seen> {
        let known = self.seen.iter().filter(|(by, time, _)| {
            let (warp, lane) = (by.warp as u8, by.lane as u8);
            let event = Event { block: self.block, time: *time, warp, lane, kind: Kind::Plain };
            self.is_known(&event, thread)
        });
        known.map(|(_, _, seen)| *seen).collect()
    }

    fn is_passed(&self, event: &Event, seen: &[Seen], depth: u32) -> bool {
        seen.iter().any(|seen| {
            let releases = self.releases.get(&seen.address).map_or(&[][..], |list| &list[..seen.count]);
            releases.iter().rev().any(|release| {
                release.block == event.block && release.passes(event)
                    || depth > 0
                        && !release.seen.is_empty()
                        && self.is_passed(event, &release.seen, depth - 1)
            })
        })
    }

    /// Lanes of a warp meet, of which `live` live.
    pub(super) fn join_lanes(&mut self, warp: usize, members: u32, live: u32) {
        self.now[warp] += 1;
        let now = self.now[warp];
        if members == live {
            self.met[warp] = now;
            return;
        }
        let pairs = self.pairs.entry(warp).or_insert_with(|| Box::new([[0; LANES]; LANES]));
        let mut joined = [0; LANES];
        for lane in lanes(members) {
            for (to, from) in joined.iter_mut().zip(pairs[lane]) {
                *to = from.max(*to);
            }
        }
        lanes(members).for_each(|lane| joined[lane] = now);
        lanes(members).for_each(|lane| pairs[lane] = joined);
    }

    /// A warp comes to a barrier.
    pub(super) fn arrive(&mut self, barrier: usize, warp: usize) {
        self.now[warp] += 1;
        self.met[warp] = self.now[warp];
        self.arrived[barrier][warp] = self.now[warp];
    }

    /// Those who wait at a barrier learn of all who came.
    pub(super) fn join_warps(&mut self, barrier: usize, came: u32, waiting: u32) {
        let mut joined = [0; WARPS];
        for warp in lanes(came) {
            for (to, from) in joined.iter_mut().zip(self.known[warp]) {
                *to = from.max(*to);
            }
        }
        lanes(came).for_each(|warp| joined[warp] = joined[warp].max(self.arrived[barrier][warp]));
        lanes(waiting).for_each(|warp| self.known[warp] = joined);
    }

    fn known(&self, warp: usize) -> Known {
        Known { warps: self.known[warp], met: self.met[warp], time: self.now[warp] }
    }

    /// Lanes fence.
    pub(super) fn fence(&mut self, warp: usize, mask: u32) {
        let known = Rc::new(self.known(warp));
        self.now[warp] += 1;
        let fences = Rc::make_mut(&mut self.fences);
        for lane in lanes(mask) {
            let thread = Thread { warp, lane };
            fences[warp][lane] = self.now[warp];
            self.fenced.insert(thread, known.clone());
            for seen in self.pending.remove(&thread).unwrap_or_default() {
                self.seen.push((thread, known.time, seen));
            }
        }
    }

    /// A thread's atomic, or strong read or write, at an address: it sees who released there before, and lets others
    /// see what it has fenced.
    pub(super) fn strong(&mut self, thread: Thread, address: u64, reads: bool, writes: bool) {
        let list = self.releases.entry(address).or_default();
        if reads && !list.is_empty() {
            let seen = Seen { address, count: list.len() };
            let pending = self.pending.entry(thread).or_default();
            pending.retain(|old| old.address != address);
            pending.push(seen);
        }
        if let Some(at_fence) = self.fenced.get(&thread).filter(|_| writes) {
            let (block, at_fence) = (self.block, at_fence.clone());
            let (now, fences, seen) = (self.known(thread.warp), self.fences.clone(), self.seen_by(thread));
            let list = self.releases.entry(address).or_default();
            list.push(Release { block, thread, at_fence, now, fences, seen });
        }
    }
}
