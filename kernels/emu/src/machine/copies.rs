//! Asynchronous copies.

use super::{
    Machine, Outcome,
    clock::Kind,
    race::{Access, Area},
    registers::{LANES, lanes},
    stop,
    warp::Warp,
};
use crate::{
    Copies as When, Fault,
    program::{AsyncCopy, Space},
};

/// The copies of a warp that are on their way.
#[derive(Debug, Default)]
pub(super) struct Copies {
    pending: Vec<Pending>,
    /// Groups that each lane has closed.
    closed: [u32; LANES],
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    lane: usize,
    /// Group of the lane, from 0.
    group: u32,
    to: usize,
    bytes: [u8; 16],
    count: usize,
}

impl Copies {
    /// Closes the groups of the lanes of a mask.
    pub(super) fn commit(&mut self, mask: u32) {
        lanes(mask).for_each(|lane| self.closed[lane] += 1);
    }
}

impl Machine<'_> {
    pub(super) fn copy(&mut self, warp: &mut Warp, copy: &AsyncCopy, mask: u32) -> Outcome<()> {
        match copy.bytes {
            4 => self.copy_bytes::<4>(warp, copy, mask),
            8 => self.copy_bytes::<8>(warp, copy, mask),
            _ => self.copy_bytes::<16>(warp, copy, mask),
        }
    }

    fn copy_bytes<const N: usize>(&mut self, warp: &mut Warp, copy: &AsyncCopy, mask: u32) -> Outcome<()> {
        let from = warp.registers.addresses(&copy.from);
        let to = warp.registers.addresses(&copy.to);
        let mut sizes = copy.size.map_or([N as u32; LANES], |size| *warp.registers.w(size));
        if let Some(p) = copy.ignore {
            lanes(warp.registers.p(p)).for_each(|lane| sizes[lane] = 0);
        }
        if let Some(lane) =
            lanes(mask).find(|&lane| !matches!(sizes[lane] as usize, 0) && sizes[lane] as usize != N)
        {
            // Part of a run is allowed by the hardware, but nobody needs it.
            let reason = format!("an asynchronous copy of {} of {N} bytes", sizes[lane]);
            return stop(lane, Fault::Collective(reason));
        }
        let reading = lanes(mask).filter(|&lane| sizes[lane] != 0).fold(0, |mask, lane| mask | 1_u32 << lane);
        let mut values = [[0; N]; LANES];
        if reading != 0 {
            let read = self.read::<N>(warp, Space::Global, &from, reading, Access::Read(Kind::Plain))?;
            lanes(reading).for_each(|lane| values[lane] = read[lane]);
        }
        self.counts.shared_written.add::<N>(&to, mask);
        for lane in lanes(mask) {
            let at = self.shared_place(to[lane], N, lane)?;
            let mut bytes = [0; 16];
            bytes[..N].copy_from_slice(&values[lane]);
            let group = warp.copies.closed[lane];
            warp.copies.pending.push(Pending { lane, group, to: at, bytes, count: N });
            self.watch(warp, lane, Area::Shared, (to[lane], at, N), Access::Write(Kind::Flying))?;
            if self.options.copies == When::Eager {
                self.put_shared(at, &values[lane]);
            }
        }
        Ok(())
    }

    /// Lands the copies of all but the last `pending` groups; without a number all, of open groups as well.
    pub(super) fn wait_copies(&mut self, warp: &mut Warp, pending: Option<u32>, mask: u32) -> Outcome<()> {
        let closed = warp.copies.closed;
        let lands = |copy: &Pending| {
            let done = pending.is_none_or(|pending| copy.group < closed[copy.lane].saturating_sub(pending));
            done && mask >> copy.lane & 1 == 1
        };
        let landing: Vec<Pending> = warp.copies.pending.iter().copied().filter(lands).collect();
        warp.copies.pending.retain(|copy| !lands(copy));
        for copy in landing {
            self.put_shared(copy.to, &copy.bytes[..copy.count]);
            let range = (copy.to as u64, copy.to, copy.count);
            self.watch(warp, copy.lane, Area::Shared, range, Access::Land)?;
        }
        Ok(())
    }
}
