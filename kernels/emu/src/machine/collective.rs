//! What the lanes of a warp do together. Each waits until all members are there.

use super::{
    Flow, Machine, Outcome,
    atomic::update_word,
    registers::{LANES, Words, lanes},
    stop,
    warp::Warp,
};
use crate::{
    Fault,
    program::{Match, Redux, Shuffle, ShuffleMode, Vote, VoteMode, W},
};

impl Machine<'_> {
    /// The members that each lane names, if all of them are here; otherwise the lanes wait.
    fn members(&mut self, warp: &mut Warp, members: W, mask: u32) -> Outcome<Option<Words>> {
        let members = *warp.registers.w(members);
        if mask == u32::MAX && members == [u32::MAX; LANES] {
            if let Some(race) = &mut self.race {
                race.clock.join_lanes(warp.index as usize, mask, mask);
            }
            return Ok(Some(members));
        }
        let ended = !warp.live;
        let mut complete = true;
        for lane in lanes(mask) {
            let named = members[lane];
            if named >> lane & 1 == 0 {
                let reason = format!("the lane is not among the members {named:#x} that it names");
                return stop(lane, Fault::Collective(reason));
            }
            if named & ended != 0 {
                let reason = format!("of the members {named:#x}, {:#x} have ended", named & ended);
                return stop(lane, Fault::Collective(reason));
            }
            complete &= named & !mask == 0;
        }
        if !complete {
            warp.park(mask);
            return Ok(None);
        }
        if let Some(lane) =
            lanes(mask).find(|&lane| lanes(members[lane]).any(|other| members[other] != members[lane]))
        {
            let reason = format!("the members {:#x} name others", members[lane]);
            return stop(lane, Fault::Collective(reason));
        }
        if let Some(race) = &mut self.race {
            let mut left = mask;
            while let Some(lane) = lanes(left).next() {
                race.clock.join_lanes(warp.index as usize, members[lane], warp.live);
                left &= !members[lane];
            }
        }
        Ok(Some(members))
    }

    pub(super) fn sync_warp(&mut self, warp: &mut Warp, members: W, mask: u32) -> Outcome<Flow> {
        Ok(if self.members(warp, members, mask)?.is_some() { Flow::Next } else { Flow::Put })
    }

    pub(super) fn shuffle(&mut self, warp: &mut Warp, shuffle: &Shuffle, mask: u32) -> Outcome<Flow> {
        let Some(members) = self.members(warp, shuffle.members, mask)? else { return Ok(Flow::Put) };
        let registers = &mut warp.registers;
        let (a, b, c) = (*registers.w(shuffle.a), *registers.w(shuffle.b), *registers.w(shuffle.c));
        let (mut values, mut in_range) = (a, 0);
        for lane in lanes(mask) {
            let (from, good) = source(shuffle.mode, lane as u32, b[lane], c[lane]);
            if good && members[lane] >> from & 1 == 0 {
                let reason =
                    format!("lane {from} is read, but is not among the members {:#x}", members[lane]);
                return stop(lane, Fault::Collective(reason));
            }
            values[lane] = a[from as usize];
            in_range |= u32::from(good) << lane;
        }
        if let Some(d) = shuffle.d {
            registers.set_w(d, &values, mask);
        }
        if let Some(p) = shuffle.p {
            registers.set_p(p, in_range, mask);
        }
        Ok(Flow::Next)
    }

    pub(super) fn vote(&mut self, warp: &mut Warp, vote: &Vote, mask: u32) -> Outcome<Flow> {
        let Some(members) = self.members(warp, vote.members, mask)? else { return Ok(Flow::Put) };
        let registers = &mut warp.registers;
        let holds = registers.p(vote.a) ^ if vote.negate { u32::MAX } else { 0 };
        let votes = members.map(|members| holds & members);
        let among = |f: &dyn Fn(u32, u32) -> bool| {
            lanes(mask).fold(0, |p, lane| p | u32::from(f(votes[lane], members[lane])) << lane)
        };
        match vote.mode {
            VoteMode::All(d) => {
                let value = among(&|votes, members| votes == members);
                registers.set_p(d, value, mask);
            }
            VoteMode::Any(d) => {
                let value = among(&|votes, _| votes != 0);
                registers.set_p(d, value, mask);
            }
            VoteMode::Uniform(d) => {
                let value = among(&|votes, members| votes == members || votes == 0);
                registers.set_p(d, value, mask);
            }
            VoteMode::Ballot(d) => registers.set_w(d, &votes, mask),
        }
        Ok(Flow::Next)
    }

    pub(super) fn match_values(&mut self, warp: &mut Warp, op: &Match, mask: u32) -> Outcome<Flow> {
        let Some(members) = self.members(warp, op.members, mask)? else { return Ok(Flow::Put) };
        let registers = &mut warp.registers;
        let values: [u64; LANES] = std::array::from_fn(|lane| registers.lane(op.a, lane));
        let (mut result, mut all) = ([0; LANES], 0);
        for lane in lanes(mask) {
            let same = lanes(members[lane]).filter(|&other| values[other] == values[lane]);
            let same = same.fold(0, |same, other| same | 1_u32 << other);
            let agree = same == members[lane];
            result[lane] = if op.all && !agree { 0 } else { same };
            all |= u32::from(agree) << lane;
        }
        registers.set_w(op.d, &result, mask);
        if let Some(p) = op.p {
            registers.set_p(p, all, mask);
        }
        Ok(Flow::Next)
    }

    pub(super) fn redux(&mut self, warp: &mut Warp, redux: &Redux, mask: u32) -> Outcome<Flow> {
        let Some(members) = self.members(warp, redux.members, mask)? else { return Ok(Flow::Put) };
        let a = *warp.registers.w(redux.a);
        let mut values = a;
        for lane in lanes(mask) {
            let others = lanes(members[lane]).map(|other| u64::from(a[other]));
            let reduced = others.reduce(|x, y| update_word(redux.op, x, y, 0));
            values[lane] = reduced.unwrap_or_default() as u32;
        }
        warp.registers.set_w(redux.d, &values, mask);
        Ok(Flow::Next)
    }

    /// Whether all lanes of a warp are here, as an instruction of the whole warp wants it; otherwise they wait.
    pub(super) fn whole_warp(&mut self, warp: &mut Warp, mask: u32) -> Outcome<bool> {
        if mask == u32::MAX {
            if let Some(race) = &mut self.race {
                race.clock.join_lanes(warp.index as usize, mask, mask);
            }
            return Ok(true);
        }
        if warp.live != u32::MAX {
            let lane = lanes(mask).next().unwrap_or(0);
            let reason = format!("an instruction of a whole warp, of which only lanes {:#x} live", warp.live);
            return stop(lane, Fault::Collective(reason));
        }
        warp.park(mask);
        Ok(false)
    }
}

/// The lane that a lane reads, and whether it is in range.
fn source(mode: ShuffleMode, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let limit = lane & segment | clamp & !segment;
    let (from, good) = match mode {
        ShuffleMode::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= limit as i32),
        ShuffleMode::Down => (lane + b, lane + b <= limit),
        ShuffleMode::Butterfly => (lane ^ b, lane ^ b <= limit),
        ShuffleMode::Index => {
            let from = lane & segment | b & !segment;
            (from, from <= limit)
        }
    };
    if good { (from, true) } else { (lane, false) }
}
