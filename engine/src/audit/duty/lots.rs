//! Which leaves an auditor calls for, of those that the beacon draws. Pure.
//!
//! A root says how many leaves it has, and nobody knows whether they exist, so time must not go by that count. At most
//! [`MOST_LOOKS`] leaves of a root are looked at, which is more than a node computes in an hour: at the rates of
//! `docs/incentives.md` that many hold a hundred that are drawn or more, each of which costs a node that cannot open
//! it a tenth of its stake. They are taken in turn from all roots, so that one that claims many does not use up what
//! an auditor would call for of others. Which part of a root is looked at, and in which order roots have their turns,
//! is each auditor's own and follows from the beacon: nobody could have arranged leaves for it.

use ledger::{
    audit::LeafId,
    draw::{Rate, is_drawn},
    eip712::{Address, keccak},
};

const LOT_DOMAIN: &[u8] = b"dolphin/lot/1";
/// Most leaves of one root that are looked at.
pub const MOST_LOOKS: u32 = 1 << 16;
/// Most leaves of all roots of an epoch that are looked at: about two seconds of one core.
pub const MOST_LOOKS_IN_ALL: u32 = 1 << 20;

/// The root of one account's leaves of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posted {
    /// Who posted it.
    pub account: Address,
    /// In which epoch.
    pub epoch: u32,
    /// The root.
    pub root: [u8; 32],
    /// How many leaves it says it has.
    pub count: u32,
    /// How many of them, the first ones, are of prompts.
    pub prompts: u32,
    /// How often leaves of prompts are drawn, and others.
    pub rates: [Rate; 2],
}

/// Where leaves are drawn, by which beacon, and for whom.
#[derive(Clone, Copy, Debug)]
pub struct Lots<'a> {
    /// The chain.
    pub chain_id: u64,
    /// `AuditManager`.
    pub manager: &'a Address,
    /// What the epoch's round has drawn.
    pub beacon: &'a [u8; 32],
    /// The auditor.
    pub me: &'a Address,
}

/// Most leaves that a root's turn looks at.
const TURN: u32 = 1 << 8;

/// A root on the way through its leaves.
struct Walk {
    posted: Posted,
    begin: u32,
    looked: u32,
}

impl Lots<'_> {
    /// Drawn leaves of an epoch's roots with their cases, at most `most`. It blocks for as long as
    /// [`MOST_LOOKS_IN_ALL`] says, whatever the roots claim.
    pub fn drawn(&self, roots: &[Posted], most: usize) -> Vec<(LeafId, [u8; 32])> {
        let (mut found, mut looks) = (Vec::new(), MOST_LOOKS_IN_ALL);
        let place = |posted: &Posted| self.lot(&posted.account);
        let mut turns: Vec<(u64, Walk)> = (roots.iter())
            .filter(|posted| posted.count > 0)
            .map(|posted| {
                let lot = place(posted);
                let begin = (lot % u64::from(posted.count)) as u32;
                (lot, Walk { posted: *posted, begin, looked: 0 })
            })
            .collect();
        turns.sort_unstable_by_key(|(lot, _)| *lot);
        while !turns.is_empty() && found.len() < most && looks > 0 {
            turns.retain_mut(|(_, walk)| {
                let turn = TURN.min(looks);
                let next = if found.len() < most { self.next(walk, turn, &mut looks) } else { None };
                found.extend(next);
                walk.looked < walk.posted.count.min(MOST_LOOKS)
            });
        }
        found
    }

    /// The next leaf of a root that is drawn, if it is among so many.
    fn next(&self, walk: &mut Walk, turn: u32, looks: &mut u32) -> Option<(LeafId, [u8; 32])> {
        let Posted { account, epoch, root, count, prompts, rates } = walk.posted;
        for _ in 0..turn.min(count.min(MOST_LOOKS) - walk.looked) {
            *looks -= 1;
            let index = ((u64::from(walk.begin) + u64::from(walk.looked)) % u64::from(count)) as u32;
            walk.looked += 1;
            let leaf = LeafId { account, epoch, index };
            let case = leaf.case(self.chain_id, self.manager, &root);
            if is_drawn(self.beacon, &case, rates[usize::from(index >= prompts)], 1) {
                return Some((leaf, case));
            }
        }
        None
    }

    fn lot(&self, account: &Address) -> u64 {
        let hash = keccak(&[LOT_DOMAIN, self.beacon, self.me, account].concat());
        hash.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const LOTS: Lots<'static> = Lots { chain_id: 7, manager: &[1; 20], beacon: &[2; 32], me: &[3; 20] };

    fn posted(account: u8, count: u32, per_mille: u32) -> Posted {
        let rates = [Rate::per_mille(0), Rate::per_mille(per_mille)];
        Posted { account: [account; 20], epoch: 5, root: [account; 32], count, prompts: count / 4, rates }
    }

    #[test]
    fn every_drawn_leaf_is_found_once_where_there_are_few() {
        let roots = [posted(1, 3000, 50), posted(2, 10, 1000), posted(3, 0, 1000)];
        let found = LOTS.drawn(&roots, usize::MAX);
        let mut wanted = HashSet::new();
        for posted in &roots {
            for index in posted.prompts..posted.count {
                let leaf = LeafId { account: posted.account, epoch: 5, index };
                let case = leaf.case(7, &[1; 20], &posted.root);
                if is_drawn(&[2; 32], &case, posted.rates[1], 1) {
                    wanted.insert((leaf, case));
                }
            }
        }
        assert!(wanted.len() > 50);
        assert_eq!(found.len(), wanted.len());
        assert_eq!(found.into_iter().collect::<HashSet<_>>(), wanted);
    }

    /// A hundred roots that claim sixteen million leaves each, and one that has ten; also where none is drawn of
    /// theirs.
    #[test]
    fn claims_cost_neither_time_nor_others_their_turn() {
        let claims = |per_mille| {
            let claim = |account| Posted { prompts: 0, ..posted(account, 1 << 24, per_mille) };
            (1..=100).map(claim).chain([Posted { prompts: 0, ..posted(101, 10, 1000) }]).collect::<Vec<_>>()
        };
        let found = LOTS.drawn(&claims(5), 150);
        assert_eq!(found.len(), 150);
        let of = |account: u8| found.iter().filter(|(leaf, _)| leaf.account == [account; 20]).count();
        assert!((1..=101).all(|account| of(account) <= 3) && of(101) > 1, "{}", of(101));
        let found = LOTS.drawn(&claims(0), 6);
        assert!(found.len() == 6 && found.iter().all(|(leaf, _)| leaf.account == [101; 20]));
    }

    #[test]
    fn auditors_look_at_different_parts_of_a_root_that_is_too_large() {
        let roots = [posted(1, 1 << 24, 2)];
        let other = Lots { me: &[4; 20], ..LOTS };
        let [one, two] = [LOTS, other].map(|lots| lots.drawn(&roots, 20).into_iter().collect::<HashSet<_>>());
        assert!(one.len() == 20 && two.len() == 20 && one.is_disjoint(&two));
    }
}
