//! A warp: its registers, and where its lanes are.

use super::{
    copies::Copies,
    registers::{LANES, Registers},
};
use crate::program::{BarrierMode, Kernel, Special, W};

/// Lanes at one instruction. While groups differ, the one at the smallest instruction runs, so that lanes come
/// together again where the paths of structured code do.
#[derive(Clone, Copy, Debug)]
struct Group {
    pc: u32,
    lanes: u32,
    /// Waits for other lanes at this instruction.
    parked: bool,
}

/// What a warp does next.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    Ready,
    /// Waits at a barrier, which then gives a result.
    Waiting {
        barrier: usize,
        mode: BarrierMode,
    },
    Done,
}

pub(super) struct Warp {
    pub(super) index: u32,
    pub(super) registers: Registers,
    /// Lanes that have a thread.
    pub(super) threads: u32,
    /// Those that have not ended.
    pub(super) live: u32,
    /// Those of the group that runs, and where it is.
    pub(super) active: u32,
    pub(super) pc: u32,
    /// Where the running group next meets another.
    meeting: u32,
    others: Vec<Group>,
    pub(super) state: State,
    /// Each lane's local memory, one after the other.
    pub(super) local: Vec<u8>,
    pub(super) copies: Copies,
}

impl Warp {
    /// A warp of blocks of `threads` threads.
    pub(super) fn new(kernel: &Kernel, index: u32, threads: u32) -> Self {
        let count = (threads - index * LANES as u32).min(LANES as u32);
        let mut warp = Self {
            index,
            registers: Registers::new(kernel),
            threads: u32::MAX >> (LANES as u32 - count),
            live: 0,
            active: 0,
            pc: 0,
            meeting: u32::MAX,
            others: Vec::new(),
            state: State::Ready,
            local: vec![u8::MAX; kernel.local as usize * LANES],
            copies: Copies::default(),
        };
        warp.restart();
        warp
    }

    /// Begins a block.
    pub(super) fn restart(&mut self) {
        self.live = self.threads;
        self.active = self.threads;
        self.pc = 0;
        self.meeting = u32::MAX;
        self.others.clear();
        self.state = State::Ready;
        self.local.fill(u8::MAX);
        self.copies = Copies::default();
    }

    /// Sets a special register.
    pub(super) fn set_special(&mut self, slot: W, special: Special, shape: &Shape) {
        let thread = |lane: usize| shape.thread(self.index, lane);
        let mut values = [0; LANES];
        for (lane, value) in values.iter_mut().enumerate() {
            let bit = 1_u32 << lane;
            *value = match special {
                Special::Tid(d) => thread(lane)[usize::from(d)],
                Special::Ntid(d) => shape.threads[usize::from(d)],
                Special::Ctaid(d) => shape.block[usize::from(d)],
                Special::Nctaid(d) => shape.grid[usize::from(d)],
                Special::LaneId => lane as u32,
                Special::WarpId => self.index,
                Special::WarpCount => shape.warps(),
                Special::MaskEqual => bit,
                Special::MaskLess => bit - 1,
                Special::MaskLessEqual => bit | (bit - 1),
                Special::MaskGreater => !(bit | (bit - 1)),
                Special::MaskGreaterEqual => !(bit - 1),
                Special::DynamicShared => shape.dynamic_shared,
                Special::TotalShared => shape.total_shared,
            };
        }
        self.registers.set_w(slot, &values, u32::MAX);
    }

    /// Meets the groups that wait at the running group's instruction.
    pub(super) fn meet(&mut self) {
        self.yield_to_least();
    }

    /// Whether the running group is where another one is.
    #[inline(always)]
    pub(super) fn is_meeting(&self) -> bool {
        self.pc == self.meeting
    }

    /// Goes to `target` in the lanes of `taken`, and on in the others.
    #[inline(always)]
    pub(super) fn branch(&mut self, taken: u32, target: u32) {
        if taken == self.active {
            self.pc = target;
            if !self.others.is_empty() {
                self.yield_to_least();
            }
        } else if taken == 0 {
            self.pc += 1;
        } else {
            self.others.push(Group { pc: target, lanes: taken, parked: false });
            self.active &= !taken;
            self.pc += 1;
            self.yield_to_least();
        }
    }

    /// Goes to a different place in each lane of the running group.
    pub(super) fn scatter(&mut self, targets: impl Iterator<Item = (usize, u32)>) {
        for (lane, pc) in targets {
            self.active &= !(1 << lane);
            self.others.push(Group { pc, lanes: 1 << lane, parked: false });
        }
        self.pc += 1;
        self.yield_to_least();
    }

    /// Ends the lanes of a mask.
    pub(super) fn end(&mut self, lanes: u32) {
        self.live &= !lanes;
        self.active &= !lanes;
        self.pc += 1;
        if self.live == 0 {
            self.state = State::Done;
        } else if self.active == 0 {
            self.yield_to_least();
        }
    }

    /// Lets the lanes of a mask wait where they are until others come; the rest of the group goes on.
    pub(super) fn park(&mut self, lanes: u32) {
        self.others.push(Group { pc: self.pc, lanes, parked: true });
        self.active &= !lanes;
        self.pc += 1;
        self.yield_to_least();
    }

    /// Makes the group at the smallest instruction the running one, with all who are there. What is parked runs
    /// only once somebody else joins it; if all are parked, none runs.
    fn yield_to_least(&mut self) {
        if self.active != 0 {
            self.others.push(Group { pc: self.pc, lanes: self.active, parked: false });
        }
        let least = self.others.iter().filter(|group| !group.parked).map(|group| group.pc).min();
        let Some(pc) = least else {
            self.active = 0;
            return;
        };
        (self.pc, self.active) = (pc, 0);
        self.others.retain(|group| {
            if group.pc == pc {
                self.active |= group.lanes;
            }
            group.pc != pc
        });
        let ahead = self.others.iter().map(|group| group.pc).filter(|&other| other > pc);
        self.meeting = ahead.min().unwrap_or(u32::MAX);
    }

    /// Which lanes wait where.
    pub(super) fn groups(&self) -> Vec<(u32, u32)> {
        self.others.iter().map(|group| (group.pc, group.lanes)).collect()
    }
}

/// The launch, and which of its blocks runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) grid: [u32; 3],
    pub(super) threads: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) dynamic_shared: u32,
    pub(super) total_shared: u32,
}

impl Shape {
    /// Threads of a block.
    pub(super) fn count(&self) -> u32 {
        self.threads.iter().product()
    }

    pub(super) fn warps(&self) -> u32 {
        self.count().div_ceil(LANES as u32)
    }

    /// `%tid` of a warp's lane.
    pub(super) fn thread(&self, warp: u32, lane: usize) -> [u32; 3] {
        let index = warp * LANES as u32 + lane as u32;
        let [x, y, _] = self.threads;
        [index % x, index / x % y, index / x / y]
    }
}
