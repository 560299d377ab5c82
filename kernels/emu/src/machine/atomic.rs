//! Atomics.

use super::{
    Machine, Outcome,
    access::by_space,
    clock::Kind,
    race::Access,
    registers::{Doubles, lanes},
    warp::Warp,
};
use crate::program::{Atomic, AtomicOp, Space};

impl Machine<'_> {
    pub(super) fn atomic(&mut self, warp: &mut Warp, atomic: &Atomic, mask: u32) -> Outcome<()> {
        let addresses = warp.registers.addresses(&atomic.address);
        if atomic.space != Space::Generic {
            return self.atomic_in(warp, atomic, atomic.space, &addresses, mask);
        }
        for (space, addresses, mask) in by_space(&addresses, mask) {
            self.atomic_in(warp, atomic, space, &addresses, mask)?;
        }
        Ok(())
    }

    fn atomic_in(
        &mut self,
        warp: &mut Warp,
        atomic: &Atomic,
        space: Space,
        addresses: &Doubles,
        mask: u32,
    ) -> Outcome<()> {
        if atomic.long {
            self.atomic_bytes::<8>(warp, atomic, space, addresses, mask)
        } else {
            self.atomic_bytes::<4>(warp, atomic, space, addresses, mask)
        }
    }

    fn atomic_bytes<const N: usize>(
        &mut self,
        warp: &mut Warp,
        atomic: &Atomic,
        space: Space,
        addresses: &Doubles,
        mask: u32,
    ) -> Outcome<()> {
        if atomic.release {
            self.fence(warp, atomic.scope, mask);
        }
        // Lane by lane: each sees what the one before it left.
        for lane in lanes(mask) {
            let one = 1 << lane;
            let old = self.read::<N>(warp, space, addresses, one, Access::Read(Kind::Strong))?[lane];
            let mut wide = [0; 8];
            wide[..N].copy_from_slice(&old);
            let old = u64::from_le_bytes(wide);
            let a = warp.registers.lane(atomic.a, lane);
            let b = atomic.b.map_or(0, |b| warp.registers.lane(b, lane));
            let new = if N == 8 { update(atomic.op, old, a, b) } else { update_word(atomic.op, old, a, b) };
            let mut values = [[0; N]; 32];
            values[lane].copy_from_slice(&new.to_le_bytes()[..N]);
            self.write(warp, space, addresses, &values, one, Kind::Strong)?;
            if let Some(d) = atomic.d {
                warp.registers.set_lane(d, lane, old);
            }
        }
        if atomic.acquire {
            self.fence(warp, atomic.scope, mask);
        }
        Ok(())
    }
}

/// What an atomic leaves in 64 bits of memory.
pub(super) fn update(op: AtomicOp, old: u64, a: u64, b: u64) -> u64 {
    match op {
        AtomicOp::Add => old.wrapping_add(a),
        AtomicOp::MinSigned => (old as i64).min(a as i64) as u64,
        AtomicOp::MinUnsigned => old.min(a),
        AtomicOp::MaxSigned => (old as i64).max(a as i64) as u64,
        AtomicOp::MaxUnsigned => old.max(a),
        AtomicOp::Increment => {
            if old >= a {
                0
            } else {
                old + 1
            }
        }
        AtomicOp::Decrement => {
            if old == 0 || old > a {
                a
            } else {
                old - 1
            }
        }
        AtomicOp::And => old & a,
        AtomicOp::Or => old | a,
        AtomicOp::Xor => old ^ a,
        AtomicOp::Exchange => a,
        AtomicOp::CompareExchange => {
            if old == a {
                b
            } else {
                old
            }
        }
    }
}

/// The same of 32 bits.
pub(super) fn update_word(op: AtomicOp, old: u64, a: u64, b: u64) -> u64 {
    match op {
        AtomicOp::MinSigned | AtomicOp::MaxSigned => {
            let signed = |x: u64| i64::from(x as u32 as i32) as u64;
            u64::from(update(op, signed(old), signed(a), b) as u32)
        }
        _ => u64::from(update(op, old, a, b) as u32),
    }
}
