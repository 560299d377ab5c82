//! Running a launch.

use std::ops::Range;

mod access;
mod arith;
mod atomic;
mod barrier;
mod clock;
mod collective;
mod convert;
mod copies;
mod float;
mod race;
mod rare;
mod registers;
mod tensor;
mod traffic;
mod warp;
mod watch;
mod wide;

use barrier::Arrivals;
use race::Race;
use registers::lanes;
use warp::{Shape, State, Warp};
use wide::Isa;

use crate::{
    Counts, Fault, Launch, Memory, Module, Options, Order, Place, Tally, Trap,
    program::{Class, Inst, Kernel, Op},
};

/// Generic addresses of shared memory begin here.
pub(crate) const SHARED_WINDOW: u64 = 0x7c00_0000_0000;
/// Those of local memory.
pub(crate) const LOCAL_WINDOW: u64 = 0x7d00_0000_0000;

/// Those of parameters.
pub(crate) const PARAM_WINDOW: u64 = 0x7b00_0000_0000;

/// Most shared memory of a block on any card.
const MAX_SHARED: u32 = 227 << 10;
/// Most threads of a block.
const MAX_THREADS: u32 = 1024;
/// Instructions after which another warp gets its turn: some wait for others in a loop.
const SLICE: u32 = 1 << 16;

/// What stops a launch, and in which lane.
struct Stop {
    fault: Fault,
    lane: usize,
}

type Outcome<T> = Result<T, Box<Stop>>;

fn stop<T>(lane: usize, fault: Fault) -> Outcome<T> {
    Err(Box::new(Stop { fault, lane }))
}

/// Where a warp goes after an instruction.
enum Flow {
    Next,
    /// To where it was put.
    Put,
    /// Nowhere for now.
    Wait,
}

/// What the warps of a launch share.
struct Machine<'a> {
    module: &'a Module,
    kernel: &'a Kernel,
    memory: &'a mut Memory,
    params: &'a [u8],
    options: &'a Options,
    shape: Shape,
    shared: Vec<u8>,
    /// A bit for each byte of shared memory: whether it was written.
    shared_written: Vec<u64>,
    barriers: [Arrivals; barrier::COUNT],
    isa: Isa,
    race: Option<Box<Race>>,
    /// The allocation that was last used.
    recent: usize,
    counts: Counts,
    tallies: [Tally; Class::COUNT],
    left: u64,
}

/// Runs some blocks of a launch to their end; none for all of them.
pub(crate) fn run(
    module: &Module,
    memory: &mut Memory,
    launch: &Launch<'_>,
    options: &Options,
    part: Option<Range<u64>>,
) -> Result<Counts, Trap> {
    let failed = |fault| Trap { fault, kernel: launch.kernel.to_owned(), place: None };
    let kernel = module.kernels.iter().find(|kernel| kernel.name == launch.kernel);
    let kernel = kernel.ok_or_else(|| failed(Fault::UnknownKernel))?;
    let shape = shape(kernel, launch).map_err(|reason| failed(Fault::BadLaunch(reason)))?;
    let bytes = (shape.total_shared as usize).next_multiple_of(64);
    let mut machine = Machine {
        module,
        kernel,
        memory,
        params: launch.params,
        options,
        shape,
        shared: vec![u8::MAX; bytes],
        shared_written: vec![0; bytes / 64],
        barriers: Default::default(),
        isa: Isa::detect(),
        race: options.races.then(|| Box::new(Race::new(bytes))),
        recent: 0,
        counts: Counts::default(),
        tallies: Default::default(),
        left: options.budget.unwrap_or(u64::MAX),
    };
    let mut warps: Vec<Warp> =
        (0..shape.warps()).map(|index| Warp::new(kernel, index, shape.count())).collect();
    let blocks: u64 = shape.grid.iter().map(|&size| u64::from(size)).product();
    let part = part.unwrap_or(0..blocks);
    if part.end > blocks {
        return Err(failed(Fault::BadLaunch(format!("blocks {part:?} of {blocks}"))));
    }
    let mut turns = Turns::new(options.order);
    for turn in 0..part.end.saturating_sub(part.start) {
        machine.begin_block(part.start + turns.block(turn, part.end - part.start), &mut warps);
        machine.run_block(&mut warps, &mut turns)?;
    }
    Ok(machine.counts())
}

/// Checks a launch against the kernel and the limits of cards.
fn shape(kernel: &Kernel, launch: &Launch<'_>) -> Result<Shape, String> {
    let [x, y, z] = launch.grid;
    if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65535 || z > 65535 {
        return Err(format!("a grid of {:?} blocks", launch.grid));
    }
    let threads = launch.block.iter().fold(1_u32, |a, &b| a.saturating_mul(b));
    let most = kernel.max_threads.unwrap_or(MAX_THREADS).min(MAX_THREADS);
    if threads == 0 || threads > most || launch.block[2] > 64 {
        return Err(format!("{:?} threads a block, at most {most}", launch.block));
    }
    if kernel.required_block.is_some_and(|block| block != launch.block) {
        return Err(format!("{:?} threads a block, exactly {:?}", launch.block, kernel.required_block));
    }
    if launch.params.len() != kernel.params as usize {
        return Err(format!("{} bytes of parameters, not {}", launch.params.len(), kernel.params));
    }
    let total = kernel.shared.saturating_add(launch.shared);
    if total > MAX_SHARED {
        return Err(format!("{total} bytes of shared memory, at most {MAX_SHARED}"));
    }
    Ok(Shape {
        grid: launch.grid,
        threads: launch.block,
        block: [0; 3],
        dynamic_shared: launch.shared,
        total_shared: total,
    })
}

/// Who goes first.
struct Turns {
    order: Order,
    state: u64,
}

impl Turns {
    fn new(order: Order) -> Self {
        let state = if let Order::Shuffled(seed) = order { seed } else { 0 };
        Self { order, state }
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The block whose turn it is.
    fn block(&self, turn: u64, blocks: u64) -> u64 {
        match self.order {
            Order::Ascending => turn,
            Order::Descending => blocks - 1 - turn,
            Order::Shuffled(seed) => {
                // Steps of a number that has no factor in common with theirs meet every block once.
                let mut step = (seed | 1) % blocks.max(2);
                while greatest_divisor(step, blocks) != 1 {
                    step += 1;
                }
                (seed % blocks + turn * step) % blocks
            }
        }
    }

    /// The order of warps until they all wait.
    fn warps(&mut self, to: &mut [usize]) {
        for (index, warp) in to.iter_mut().enumerate() {
            *warp = index;
        }
        match self.order {
            Order::Ascending => {}
            Order::Descending => to.reverse(),
            Order::Shuffled(_) => {
                for last in (1..to.len()).rev() {
                    to.swap(last, (self.random() % (last as u64 + 1)) as usize);
                }
            }
        }
    }
}

fn greatest_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}

impl Machine<'_> {
    fn counts(&self) -> Counts {
        let tally = |class: Class| self.tallies[class as usize];
        Counts {
            integer: tally(Class::Integer),
            float: tally(Class::Float),
            division: tally(Class::Division),
            conversion: tally(Class::Conversion),
            movement: tally(Class::Movement),
            memory: tally(Class::Memory),
            copy: tally(Class::Copy),
            mma: tally(Class::Mma),
            shuffle: tally(Class::Shuffle),
            barrier: tally(Class::Barrier),
            control: tally(Class::Control),
            other: tally(Class::Other),
            ..self.counts
        }
    }

    fn begin_block(&mut self, block: u64, warps: &mut [Warp]) {
        let [x, y, _] = self.shape.grid.map(u64::from);
        self.shape.block = [(block % x) as u32, (block / x % y) as u32, (block / x / y) as u32];
        self.shared.fill(u8::MAX);
        self.shared_written.fill(0);
        self.barriers = Default::default();
        if let Some(race) = &mut self.race {
            race.begin_block(block as u32);
        }
        for warp in warps {
            warp.restart();
            for &(slot, special) in &self.kernel.specials {
                warp.set_special(slot, special, &self.shape);
            }
        }
    }

    fn run_block(&mut self, warps: &mut [Warp], turns: &mut Turns) -> Result<(), Trap> {
        let mut order = vec![0; warps.len()];
        loop {
            turns.warps(&mut order);
            let mut moved = false;
            for &index in &order {
                let warp = &mut warps[index];
                if matches!(warp.state, State::Ready) {
                    moved = true;
                    self.run_warp(warp).map_err(|stop| self.trap(warp, *stop))?;
                }
                self.release(warps);
            }
            if warps.iter().all(|warp| matches!(warp.state, State::Done)) {
                return Ok(());
            }
            if !moved {
                return Err(self.deadlock(warps));
            }
        }
    }

    /// A fault in a warp as the caller sees it.
    fn trap(&self, warp: &Warp, stop: Stop) -> Trap {
        let line = self.kernel.code.get(warp.pc as usize).map_or(0, |inst| inst.line);
        let place = Place {
            block: self.shape.block,
            thread: self.shape.thread(warp.index, stop.lane),
            line,
            text: self.module.line(line).to_owned(),
        };
        Trap { fault: stop.fault, kernel: self.kernel.name.clone(), place: Some(Box::new(place)) }
    }

    fn deadlock(&self, warps: &[Warp]) -> Trap {
        let waits = |warp: &Warp| match warp.state {
            State::Waiting { barrier, .. } => format!("warp {} at barrier {barrier}", warp.index),
            State::Ready => format!("warp {} goes on", warp.index),
            State::Done => format!("warp {} has ended", warp.index),
        };
        let list: Vec<String> = warps.iter().map(waits).collect();
        let waiting = warps.iter().find(|warp| !matches!(warp.state, State::Done));
        let fault = Fault::Deadlock(list.join(", "));
        self.trap(waiting.unwrap_or(&warps[0]), Stop { fault, lane: 0 })
    }

    /// Runs a warp until it ends or waits, or its time is up.
    fn run_warp(&mut self, warp: &mut Warp) -> Outcome<()> {
        let code = &self.kernel.code[..];
        let isa = self.isa;
        for _ in 0..SLICE {
            if warp.is_meeting() {
                warp.meet();
            }
            let inst = &code[warp.pc as usize];
            let mask = match inst.guard {
                None => warp.active,
                Some(guard) => warp.active & warp.registers.guard(guard),
            };
            self.tally(inst, mask)?;
            match &inst.op {
                Op::Arith(op) => {
                    isa.execute(&mut warp.registers, op, mask);
                    warp.pc += 1;
                }
                Op::Branch(target) => warp.branch(mask, *target),
                _ if mask == 0 => warp.pc += 1,
                op => match self.execute(warp, op, mask)? {
                    Flow::Next => warp.pc += 1,
                    Flow::Put => {
                        if warp.active == 0 {
                            return self.after_all_wait(warp);
                        }
                    }
                    Flow::Wait => return Ok(()),
                },
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn tally(&mut self, inst: &Inst, mask: u32) -> Outcome<()> {
        let tally = &mut self.tallies[inst.class as usize];
        tally.warps += 1;
        tally.lanes += u64::from(mask.count_ones());
        if self.left == 0 {
            return stop(0, Fault::Budget(self.options.budget.unwrap_or_default()));
        }
        self.left -= 1;
        Ok(())
    }

    /// No lane of the warp can go on: it has ended, or its lanes wait for each other at different places.
    fn after_all_wait(&self, warp: &mut Warp) -> Outcome<()> {
        if warp.live == 0 {
            return Ok(());
        }
        let groups = warp.groups();
        let list: Vec<String> = groups
            .iter()
            .map(|&(pc, lanes)| format!("lanes {lanes:#x} at line {}", self.kernel.code[pc as usize].line))
            .collect();
        let ended = warp.threads & !warp.live;
        let ended = if ended == 0 { String::new() } else { format!("; lanes {ended:#x} have ended") };
        let (pc, lanes_there) = groups.first().copied().unwrap_or((0, 1));
        warp.pc = pc;
        let lane = lanes(lanes_there).next().unwrap_or(0);
        stop(lane, Fault::Deadlock(format!("{}{ended}", list.join(", "))))
    }

    fn execute(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Outcome<Flow> {
        match op {
            Op::Load(load) => self.load(warp, load, mask)?,
            Op::Store(store) => self.store(warp, store, mask)?,
            Op::Copy(copy) => self.copy(warp, copy, mask)?,
            Op::CopyCommit => warp.copies.commit(mask),
            Op::CopyWait(pending) => self.wait_copies(warp, Some(*pending), mask)?,
            Op::CopyWaitAll => self.wait_copies(warp, None, mask)?,
            Op::Atomic(atomic) => self.atomic(warp, atomic, mask)?,
            Op::Shuffle(shuffle) => return self.shuffle(warp, shuffle, mask),
            Op::Vote(vote) => return self.vote(warp, vote, mask),
            Op::Match(op) => return self.match_values(warp, op, mask),
            Op::Redux(redux) => return self.redux(warp, redux, mask),
            Op::ActiveMask(d) => warp.registers.set_w(*d, &[warp.active; registers::LANES], mask),
            Op::SyncWarp(members) => return self.sync_warp(warp, *members, mask),
            Op::Mma(mma) => return self.mma(warp, mma, mask),
            Op::LoadMatrix(load) => return self.load_matrix(warp, load, mask),
            Op::MoveMatrix { d, a } => return self.move_matrix(warp, *d, *a, mask),
            Op::Barrier(barrier) => return self.barrier(warp, barrier, mask),
            Op::Fence(scope) => self.fence(warp, *scope, mask),
            Op::Nothing | Op::Arith(_) | Op::Branch(_) => {}
            Op::BranchIndexed(targets, index) => {
                let index = *warp.registers.w(*index);
                if let Some(lane) = lanes(mask).find(|&lane| index[lane] as usize >= targets.len()) {
                    let reason = format!("no target {} among {}", index[lane], targets.len());
                    return stop(lane, Fault::Collective(reason));
                }
                warp.scatter(lanes(mask).map(|lane| (lane, targets[index[lane] as usize])));
                return Ok(Flow::Put);
            }
            Op::Exit => {
                warp.end(mask);
                return Ok(Flow::Put);
            }
            Op::Trap => return stop(lanes(mask).next().unwrap_or(0), Fault::Explicit),
        }
        Ok(Flow::Next)
    }
}
