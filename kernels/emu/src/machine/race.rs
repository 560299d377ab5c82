//! Finding accesses that nothing orders.

use std::collections::HashMap;

use super::{
    clock::{Clock, Kind, SEVERAL, Thread},
    registers::LANES,
};

/// In place of an event: an index among the cells of single bytes.
const SPLIT: u32 = 1 << 31;
/// In place of an event: an index among the sets of readers.
const SET: u32 = 1 << 31;

/// Who last wrote a word, and who read it since; 0 for nobody.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    write: u32,
    read: u32,
}

/// A range of memory, by words of four bytes; by bytes where narrower accesses were made.
#[derive(Default)]
struct Table {
    cells: Vec<Cell>,
    split: Vec<[Cell; 4]>,
}

impl Table {
    fn new(bytes: usize) -> Self {
        Self { cells: vec![Cell::default(); bytes.div_ceil(4)], split: Vec::new() }
    }

    /// Visits the cells of some bytes.
    #[inline(always)]
    fn visit<E>(
        &mut self,
        at: usize,
        bytes: usize,
        mut visit: impl FnMut(&mut Cell) -> Result<(), E>,
    ) -> Result<(), E> {
        for word in at / 4..(at + bytes).div_ceil(4) {
            let cell = &mut self.cells[word];
            if bytes >= 4 && cell.write & SPLIT == 0 {
                visit(cell)?;
                continue;
            }
            if cell.write & SPLIT == 0 {
                self.split.push([*cell; 4]);
                cell.write = SPLIT | (self.split.len() - 1) as u32;
            }
            let split = &mut self.split[(cell.write & !SPLIT) as usize];
            let from = at.saturating_sub(4 * word);
            let to = (at + bytes - 4 * word).min(4);
            split[from..to].iter_mut().try_for_each(&mut visit)?;
        }
        Ok(())
    }
}

/// Readers that nothing orders: a list.
#[derive(Clone, Copy)]
struct Reader {
    /// The rest of the list: an event, or a set.
    others: u32,
    event: u32,
}

/// The memory that an access is to.
#[derive(Clone, Copy)]
pub(super) enum Area {
    Shared,
    /// An allocation.
    Global(usize),
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read(Kind),
    /// By a way that need not see writes of the same launch.
    ReadConstant,
    Write(Kind),
    /// What an asynchronous copy wrote is there.
    Land,
}

/// Accesses so far.
pub(super) struct Race {
    pub(super) clock: Clock,
    shared: Table,
    global: HashMap<usize, Table>,
    sets: Sets,
}

#[derive(Default)]
struct Sets {
    readers: Vec<Reader>,
    known: HashMap<(u32, u32), u32>,
}

impl Race {
    pub(super) fn new(shared: usize) -> Self {
        let (clock, sets) = (Clock::new(), Sets::default());
        Self { clock, shared: Table::new(shared), global: HashMap::new(), sets }
    }

    pub(super) fn begin_block(&mut self, block: u32) {
        self.clock.begin_block(block);
        self.shared.cells.fill(Cell::default());
        self.shared.split.clear();
    }

    /// Notes an access of a thread; fails with the event that nothing orders before it.
    #[inline(always)]
    pub(super) fn access(
        &mut self,
        area: Area,
        size: impl FnOnce() -> usize,
        (at, bytes): (usize, usize),
        thread: Thread,
        access: Access,
    ) -> Result<(), u32> {
        let table = match area {
            Area::Shared => &mut self.shared,
            Area::Global(index) => self.global.entry(index).or_insert_with(|| Table::new(size())),
        };
        let (clock, sets) = (&mut self.clock, &mut self.sets);
        match access {
            Access::Read(kind) => {
                let event = clock.event(thread.warp, thread.lane, kind);
                table.visit(at, bytes, |cell| {
                    check(clock, cell.write, thread, kind)?;
                    cell.read = sets.add(clock, cell.read, event, thread, kind);
                    Ok(())
                })
            }
            Access::ReadConstant => {
                let event = clock.event(thread.warp, thread.lane, Kind::Plain);
                table.visit(at, bytes, |cell| {
                    if cell.write != 0 {
                        return Err(cell.write);
                    }
                    cell.read = sets.add(clock, cell.read, event, thread, Kind::Plain);
                    Ok(())
                })
            }
            Access::Write(kind) => {
                let event = clock.event(thread.warp, thread.lane, kind);
                table.visit(at, bytes, |cell| {
                    check(clock, cell.write, thread, kind)?;
                    sets.check(clock, cell.read, thread, kind)?;
                    *cell = Cell { write: event, read: 0 };
                    Ok(())
                })
            }
            Access::Land => {
                let event = clock.event(thread.warp, thread.lane, Kind::Plain);
                table.visit(at, bytes, |cell| {
                    *cell = Cell { write: event, read: 0 };
                    Ok(())
                })
            }
        }
    }
}

/// Fails unless an event is ordered before what the thread does, or both are atomic.
#[inline(always)]
fn check(clock: &mut Clock, earlier: u32, thread: Thread, kind: Kind) -> Result<(), u32> {
    if earlier == 0 {
        return Ok(());
    }
    let event = clock.events[earlier as usize];
    let atomic = event.kind == Kind::Strong && kind == Kind::Strong;
    if atomic || event.kind != Kind::Flying && clock.is_before(earlier, thread) {
        Ok(())
    } else {
        Err(earlier)
    }
}

impl Sets {
    /// The readers of a cell with one more.
    #[inline(always)]
    fn add(&mut self, clock: &mut Clock, readers: u32, event: u32, thread: Thread, kind: Kind) -> u32 {
        if readers == event || readers == 0 {
            return event;
        }
        let last = if readers & SET == 0 { readers } else { self.readers[(readers & !SET) as usize].event };
        if last == event {
            return readers;
        }
        let [before, now] = [last, event].map(|id| clock.events[id as usize]);
        let mut event = event;
        let mut others = readers;
        if (before.block, before.warp, before.time, before.kind) == (now.block, now.warp, now.time, now.kind)
        {
            if before.lane == SEVERAL {
                return readers;
            }
            event = clock.event(thread.warp, LANES, kind);
            if readers & SET == 0 {
                return event;
            }
            others = self.readers[(readers & !SET) as usize].others;
        } else if readers & SET == 0 && before.kind == now.kind && clock.is_before(last, thread) {
            return event;
        }
        *self.known.entry((others, event)).or_insert_with(|| {
            self.readers.push(Reader { others, event });
            SET | (self.readers.len() - 1) as u32
        })
    }

    /// Fails unless all readers are ordered before what the thread does.
    #[inline(always)]
    fn check(&self, clock: &mut Clock, mut readers: u32, thread: Thread, kind: Kind) -> Result<(), u32> {
        while readers & SET != 0 {
            let Reader { others, event } = self.readers[(readers & !SET) as usize];
            check(clock, event, thread, kind)?;
            readers = others;
        }
        check(clock, readers, thread, kind)
    }
}
