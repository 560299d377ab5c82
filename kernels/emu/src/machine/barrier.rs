//! Barriers of a block.

use super::{
    Flow, Machine, Outcome,
    registers::{LANES, lanes},
    stop,
    warp::{State, Warp},
};
use crate::{
    Fault,
    program::{Barrier, BarrierMode, Guard, W},
};

/// Barriers of a block.
pub(super) const COUNT: usize = 16;

/// Who has come to a barrier.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Arrivals {
    /// Warps, as a set.
    pub(super) warps: u32,
    /// How many are to come; 0 while nobody has.
    expected: u32,
    /// Threads whose predicate holds, and threads that brought one.
    votes: u32,
    voters: u32,
}

impl Machine<'_> {
    pub(super) fn barrier(&mut self, warp: &mut Warp, barrier: &Barrier, mask: u32) -> Outcome<Flow> {
        let first = lanes(mask).next().unwrap_or(0);
        if mask != warp.live {
            warp.park(mask);
            return Ok(Flow::Put);
        }
        if warp.live != warp.threads {
            let reason = format!("lanes {:#x} have ended before this barrier", warp.threads & !warp.live);
            return stop(first, Fault::Deadlock(reason));
        }
        let id = self.uniform(warp, barrier.id, mask)?;
        let warps = self.shape.warps();
        let expected = match barrier.count {
            None => warps,
            Some(count) => self.uniform(warp, count, mask)? / LANES as u32,
        };
        let Some(arrivals) = self.barriers.get_mut(id as usize) else {
            return stop(first, Fault::Collective(format!("barrier {id} of {COUNT}")));
        };
        if expected == 0 || expected > warps {
            return stop(first, Fault::Collective(format!("{expected} of {warps} warps at barrier {id}")));
        }
        if arrivals.expected != 0 && arrivals.expected != expected {
            let reason = format!("{expected} warps at barrier {id}, {} by others", arrivals.expected);
            return stop(first, Fault::Collective(reason));
        }
        if arrivals.warps >> warp.index & 1 == 1 {
            return stop(first, Fault::Collective(format!("the warp is at barrier {id} already")));
        }
        arrivals.expected = expected;
        arrivals.warps |= 1 << warp.index;
        if let BarrierMode::Popc(_, guard) | BarrierMode::And(_, guard) | BarrierMode::Or(_, guard) =
            barrier.mode
        {
            let holds: Guard = guard;
            arrivals.votes += (warp.registers.guard(holds) & mask).count_ones();
            arrivals.voters += mask.count_ones();
        }
        if let Some(race) = &mut self.race {
            race.clock.arrive(id as usize, warp.index as usize);
        }
        warp.pc += 1;
        if matches!(barrier.mode, BarrierMode::Arrive) {
            return Ok(Flow::Put);
        }
        warp.state = State::Waiting { barrier: id as usize, mode: barrier.mode };
        Ok(Flow::Wait)
    }

    fn uniform(&self, warp: &Warp, value: W, mask: u32) -> Outcome<u32> {
        let values = warp.registers.w(value);
        let first = lanes(mask).next().unwrap_or(0);
        match lanes(mask).find(|&lane| values[lane] != values[first]) {
            None => Ok(values[first]),
            Some(lane) => {
                let reason = format!("barrier operands {} and {} in one warp", values[first], values[lane]);
                stop(lane, Fault::Collective(reason))
            }
        }
    }

    /// Lets those go on who wait at barriers to which all have come.
    pub(super) fn release(&mut self, warps: &mut [Warp]) {
        for id in 0..COUNT {
            let arrivals = self.barriers[id];
            if arrivals.expected == 0 || arrivals.warps.count_ones() < arrivals.expected {
                continue;
            }
            self.barriers[id] = Arrivals::default();
            let waits = |warp: &&Warp| matches!(warp.state, State::Waiting { barrier, .. } if barrier == id);
            let waiting = warps.iter().filter(waits).fold(0, |set, warp| set | 1_u32 << warp.index);
            if let Some(race) = &mut self.race {
                race.clock.join_warps(id, arrivals.warps, waiting);
            }
            for warp in &mut *warps {
                let State::Waiting { barrier, mode } = warp.state else { continue };
                if barrier != id {
                    continue;
                }
                warp.state = State::Ready;
                let all = u32::MAX;
                let bit = |holds: bool| if holds { all } else { 0 };
                match mode {
                    BarrierMode::Sync | BarrierMode::Arrive => {}
                    BarrierMode::Popc(d, _) => warp.registers.set_w(d, &[arrivals.votes; LANES], all),
                    BarrierMode::And(d, _) => {
                        warp.registers.set_p(d, bit(arrivals.votes == arrivals.voters), all);
                    }
                    BarrierMode::Or(d, _) => warp.registers.set_p(d, bit(arrivals.votes != 0), all),
                }
            }
        }
    }
}
