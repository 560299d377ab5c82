//! What the machine tells the race detector, and what it hears.

use super::{
    Machine, Outcome,
    access::Bytes,
    clock::{Event, Kind, SEVERAL, Thread},
    race::{Access, Area},
    registers::{Doubles, lanes},
    stop,
    warp::Warp,
};
use crate::{Fault, program::Scope};

impl Machine<'_> {
    /// Notes an access: to which address, at which offset of its area, of how many bytes.
    #[inline(always)]
    pub(super) fn watch(
        &mut self,
        warp: &Warp,
        lane: usize,
        area: Area,
        (address, at, bytes): (u64, usize, usize),
        access: Access,
    ) -> Outcome<()> {
        let Some(race) = &mut self.race else { return Ok(()) };
        let thread = Thread { warp: warp.index as usize, lane };
        let live = &self.memory.live;
        let size = || if let Area::Global(index) = area { live[index].bytes as usize } else { 0 };
        match access {
            Access::Read(Kind::Strong) => race.clock.strong(thread, address, true, false),
            Access::Write(Kind::Strong) => race.clock.strong(thread, address, false, true),
            _ => {}
        }
        match race.access(area, size, (at, bytes), thread, access) {
            Ok(()) => Ok(()),
            Err(earlier) => {
                let event = race.clock.events[earlier as usize];
                self.race_found(lane, area, address, access, event)
            }
        }
    }

    #[inline(never)]
    fn race_found(&self, lane: usize, area: Area, address: u64, access: Access, event: Event) -> Outcome<()> {
        let space = if matches!(area, Area::Shared) { "shared" } else { "global" };
        let [x, y, _] = self.shape.grid;
        let block = [event.block % x, event.block / x % y, event.block / x / y];
        let who = match event.lane {
            SEVERAL => format!("several threads of warp {}", event.warp),
            lane => format!("thread {:?}", self.shape.thread(event.warp.into(), lane.into())),
        };
        let what = match event.kind {
            Kind::Plain => "access",
            Kind::Strong => "atomic or volatile access",
            Kind::Flying => "asynchronous copy, still on its way,",
        };
        let earlier = format!("{what} by {who} of block {block:?}");
        let access = match access {
            Access::Read(_) => "read",
            Access::ReadConstant => "read of constant memory",
            Access::Write(Kind::Flying) => "asynchronous copy",
            Access::Write(_) | Access::Land => "write",
        };
        stop(lane, Fault::Race { space, address, access, earlier })
    }

    /// The lanes of a mask that no lane before them writes to the same place as. If one does, both have to write
    /// the same.
    #[inline(always)]
    pub(super) fn alone<const N: usize>(
        &self,
        space: &'static str,
        addresses: &Doubles,
        values: &Bytes<N>,
        mask: u32,
    ) -> Outcome<u32> {
        if self.race.is_none() {
            return Ok(mask);
        }
        let mut last = None;
        let ascending = lanes(mask).all(|lane| {
            let before = last.replace(addresses[lane]);
            before.is_none_or(|before| before < addresses[lane])
        });
        if ascending { Ok(mask) } else { first_writers(space, addresses, values, mask) }
    }

    /// Lanes fence.
    pub(super) fn fence(&mut self, warp: &Warp, scope: Scope, mask: u32) {
        if let Some(race) = &mut self.race
            && scope == Scope::Device
        {
            race.clock.fence(warp.index as usize, mask);
        }
    }
}

fn first_writers<const N: usize>(
    space: &'static str,
    addresses: &Doubles,
    values: &Bytes<N>,
    mask: u32,
) -> Outcome<u32> {
    let mut alone = 0;
    for lane in lanes(mask) {
        let address = addresses[lane];
        match lanes(alone).find(|&other| addresses[other] == address) {
            None => alone |= 1 << lane,
            Some(other) if values[other] == values[lane] => {}
            Some(other) => {
                let earlier = format!("write of another value by lane {other} of the same warp");
                return stop(lane, Fault::Race { space, address, access: "write", earlier });
            }
        }
    }
    Ok(alone)
}
