//! Who may write which slot when: counting only, no device.
//!
//! The receiver's slots are written in turn. A writer keeps count of what it wrote, the receiver of what
//! it copied out; the receiver tells its count, and the difference never exceeds the number of slots.

use crate::Violation;

/// The writer's side.
#[derive(Debug)]
pub(super) struct Credit {
    /// Slots of the peer.
    slots: u64,
    /// Pieces of staging memory here.
    staged: u64,
    written: u64,
    /// Of those, how many the device has sent.
    sent: u64,
    /// Of those, how many the peer says that it took.
    taken: u64,
}

/// Which memory the next write uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// Count of writes before it.
    pub(super) number: u64,
    /// Piece of staging memory.
    pub(super) piece: usize,
    /// Slot of the peer.
    pub(super) slot: u64,
}

impl Credit {
    pub(super) fn new(slots: u64, staged: u64) -> Self {
        Self { slots, staged, written: 0, sent: 0, taken: 0 }
    }

    /// The next write, if the peer has a free slot and there is staging memory.
    pub(super) fn next(&mut self) -> Option<Turn> {
        let number = self.written;
        if number - self.taken >= self.slots || number - self.sent >= self.staged {
            return None;
        }
        self.written += 1;
        let piece = (number % self.staged) as usize;
        Some(Turn { number, piece, slot: number % self.slots })
    }

    /// The device has sent the oldest write that it had not.
    pub(super) fn sent(&mut self) {
        self.sent += 1;
        assert!(self.sent <= self.written, "the device sent more than it was given");
    }

    /// The peer says how many writes it has taken since the link began.
    pub(super) fn taken(&mut self, total: u64) -> Result<(), Violation> {
        if total < self.taken || total > self.written {
            return Err(Violation::Carrier(format!("{total} slots freed of {} written", self.written)));
        }
        self.taken = total;
        Ok(())
    }
}

/// The receiver's side.
#[derive(Debug)]
pub(super) struct Arrivals {
    slots: u64,
    slot_bytes: usize,
    taken: u64,
    told: u64,
}

impl Arrivals {
    pub(super) fn new(slots: u64, slot_bytes: usize) -> Self {
        Self { slots, slot_bytes, taken: 0, told: 0 }
    }

    /// Checks a write of `bytes` that names itself `number`, the low bits of its count, and says which
    /// slot to copy. It counts as taken.
    pub(super) fn take(&mut self, number: u32, bytes: usize) -> Result<usize, Violation> {
        if number != self.taken as u32 {
            return Err(Violation::Carrier(format!("write {number} where {} was due", self.taken as u32)));
        }
        if bytes > self.slot_bytes {
            let slot_bytes = self.slot_bytes;
            return Err(Violation::Carrier(format!("{bytes} bytes in a slot of {slot_bytes}")));
        }
        let slot = (self.taken % self.slots) as usize;
        self.taken += 1;
        Ok(slot)
    }

    /// The count to tell the peer, once it is a quarter of the slots further than the last one told.
    pub(super) fn due(&mut self) -> Option<u64> {
        let due = 4 * (self.taken - self.told) >= self.slots;
        due.then(|| {
            self.told = self.taken;
            self.told
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever order things happen in, no slot is written before it was taken, no staging memory is
        /// used before it was sent, everything arrives in order, and nothing stands still for ever.
        #[test]
        fn slots_and_staging_are_never_overwritten(
            slots in 1u64..9,
            staged in 1u64..9,
            choices in proptest::collection::vec(0u8..4, 1..300),
        ) {
            let mut credit = Credit::new(slots, staged);
            let mut arrivals = Arrivals::new(slots, 10);
            let mut slot_holds = vec![None; slots as usize];
            let mut piece_holds = vec![None; staged as usize];
            let (mut under_way, mut unsent, mut told) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
            let everything = [0, 1, 2, 3].repeat(50);
            for choice in choices.into_iter().chain(everything) {
                match choice {
                    0 => if let Some(turn) = credit.next() {
                        prop_assert_eq!(slot_holds[turn.slot as usize].replace(turn.number), None);
                        prop_assert_eq!(piece_holds[turn.piece].replace(turn.number), None);
                        under_way.push_back(turn);
                        unsent.push_back(turn);
                    },
                    1 => if let Some(turn) = unsent.pop_front() {
                        piece_holds[turn.piece] = None;
                        credit.sent();
                    },
                    2 => if let Some(turn) = under_way.pop_front() {
                        let slot = arrivals.take(turn.number as u32, 10).unwrap();
                        prop_assert_eq!(slot_holds[slot].take(), Some(turn.number));
                        told.extend(arrivals.due());
                    },
                    _ => if let Some(total) = told.pop_front() {
                        credit.taken(total).unwrap();
                    },
                }
            }
            prop_assert!(credit.written >= 40, "stood still after {} writes", credit.written);
        }
    }

    #[test]
    fn claims_beyond_what_was_agreed_are_violations() {
        let mut credit = Credit::new(4, 4);
        credit.next().unwrap();
        assert!(credit.taken(2).is_err());
        credit.taken(1).unwrap();
        assert!(credit.taken(0).is_err());
        let mut arrivals = Arrivals::new(4, 100);
        assert!(arrivals.take(1, 5).is_err());
        assert!(arrivals.take(0, 101).is_err());
        assert_eq!(arrivals.take(0, 100), Ok(0));
        assert!(arrivals.take(0, 5).is_err());
    }
}
