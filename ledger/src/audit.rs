//! What nodes and auditors commit to on the chain, as `contracts/src/AuditManager.sol` checks it.
//!
//! A node posts the root of a [`Tree`] over the leaves of an epoch's chunks. What it computed stands in a leaf as
//! [`seal`] of the hash over all of its rows' roots ([`roots`]): a hash of a hash, so that only who has computed the
//! same can show the hash in between.

use crate::{
    eip712::{Address, keccak, padded, word},
    merkle,
};

const ROOTS_DOMAIN: &[u8] = b"dolphin/roots/1";
const PLANT_DOMAIN: &[u8] = b"dolphin/plant/1";

/// A drawn chunk: one stage's part of a session, from position 0 to the chunk's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Hash of the model.
    pub model: [u8; 32],
    /// Hash of the session's plan.
    pub plan: [u8; 32],
    /// What the stage signed for the chunk.
    pub commitment: [u8; 32],
    /// [`roots`] of what came in.
    pub in_roots: [u8; 32],
    /// [`seal`] of the [`roots`] of what went out.
    pub sealed_roots: [u8; 32],
    /// Number of the stage in the plan.
    pub stage: u32,
    /// First position of the chunk.
    pub from: u32,
    /// One past its last position.
    pub to: u32,
}

impl Chunk {
    /// Its leaf in a tree that `account` posts.
    pub fn leaf(&self, account: &Address) -> [u8; 32] {
        merkle::leaf(&[
            padded(account),
            self.model,
            self.plan,
            self.commitment,
            self.in_roots,
            self.sealed_roots,
            word(self.stage.into()),
            word(self.from.into()),
            word(self.to.into()),
        ])
    }
}

/// Hash over the roots of a stage's rows, chunk by chunk from position 0 on.
pub fn roots<'a>(chunks: impl IntoIterator<Item = &'a [u8; 32]>) -> [u8; 32] {
    let mut message = ROOTS_DOMAIN.to_vec();
    for root in chunks {
        message.extend_from_slice(root);
    }
    keccak(&message)
}

/// What stands in a leaf for `roots`.
pub fn seal(roots: &[u8; 32]) -> [u8; 32] {
    keccak(roots)
}

/// What a node enters in place of [`roots`] to plant a fault: no rows give it, and the salt shows so.
pub fn plant(account: &Address, salt: &[u8; 32]) -> [u8; 32] {
    keccak(&[PLANT_DOMAIN, account, salt].concat())
}

/// What an auditor commits to: the `roots` that it has computed, zeros if it got no rows. The salt must be one
/// that nobody can guess.
pub fn answer(case: &[u8; 32], auditor: &Address, roots: &[u8; 32], salt: &[u8; 32]) -> [u8; 32] {
    keccak([*case, *roots, padded(auditor), *salt].as_flattened())
}

/// A leaf by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeafId {
    /// Who posted the root.
    pub account: Address,
    /// In which epoch.
    pub epoch: u32,
    /// Which leaf of it.
    pub index: u32,
}

impl LeafId {
    /// The number of the leaf's case, which is what the beacon draws.
    pub fn case(&self, chain_id: u64, manager: &Address, root: &[u8; 32]) -> [u8; 32] {
        let words = [
            word(chain_id.into()),
            padded(manager),
            padded(&self.account),
            word(self.epoch.into()),
            *root,
            word(self.index.into()),
        ];
        keccak(words.as_flattened())
    }
}

/// A Merkle tree whose proofs say where a leaf is: children are hashed in their order, and a node without a
/// sibling moves up as it is.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The leaves, then what is above them, up to the root.
    levels: Vec<Vec<[u8; 32]>>,
}

impl Tree {
    /// Over leaves; `None` without any.
    pub fn new(leaves: Vec<[u8; 32]>) -> Option<Self> {
        let mut levels = vec![leaves];
        while let Some(nodes) = levels.last().filter(|nodes| nodes.len() > 1) {
            let parents = nodes.chunks(2).map(|pair| match pair {
                [alone] => *alone,
                pair => keccak(pair.as_flattened()),
            });
            let parents = parents.collect();
            levels.push(parents);
        }
        levels.last().is_some_and(|top| top.len() == 1).then_some(Self { levels })
    }

    /// The root.
    pub fn root(&self) -> [u8; 32] {
        self.levels.last().and_then(|top| top.first()).copied().unwrap_or_default()
    }

    /// What leads from leaf number `index` to the root; `None` if there is no such leaf.
    pub fn proof(&self, mut index: usize) -> Option<Vec<[u8; 32]>> {
        self.levels.first()?.get(index)?;
        let mut path = Vec::new();
        for nodes in self.levels.split_last()?.1 {
            path.extend(nodes.get(index ^ 1));
            index /= 2;
        }
        Some(path)
    }
}

/// Whether a leaf is number `index` of `count` below a root.
pub fn holds(
    root: &[u8; 32],
    mut count: usize,
    mut index: usize,
    leaf: [u8; 32],
    proof: &[[u8; 32]],
) -> bool {
    if index >= count {
        return false;
    }
    let (mut node, mut path) = (leaf, proof.iter());
    while count > 1 {
        if index % 2 == 1 || index + 1 < count {
            let Some(sibling) = path.next() else { return false };
            let pair = if index % 2 == 1 { [*sibling, node] } else { [node, *sibling] };
            node = keccak(pair.as_flattened());
        }
        (index, count) = (index / 2, count.div_ceil(2));
    }
    path.next().is_none() && node == *root
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_leaves_have_no_tree() {
        assert!(Tree::new(Vec::new()).is_none());
        assert_eq!(Tree::new(vec![[1; 32]]).unwrap().proof(1), None);
        assert!(!holds(&[1; 32], 0, 0, [1; 32], &[]));
    }

    #[test]
    fn a_plant_is_no_result() {
        let planted = plant(&[1; 20], &[2; 32]);
        assert_ne!(planted, plant(&[2; 20], &[2; 32]));
        assert_ne!(planted, roots([&[2; 32]]));
        assert_ne!(roots([]), roots([&[0; 32]]));
    }

    proptest! {
        #[test]
        fn a_leaf_is_at_one_place(count in 1usize..40, index: usize, other: usize) {
            let leaves: Vec<_> = (0..count).map(|n| keccak(&n.to_be_bytes())).collect();
            let (index, other) = (index % count, other % (count + 3));
            let tree = Tree::new(leaves.clone()).unwrap();
            let proof = tree.proof(index).unwrap();
            prop_assert!(holds(&tree.root(), count, index, leaves[index], &proof));
            prop_assert_eq!(holds(&tree.root(), count, other, leaves[index], &proof), other == index);
            prop_assert!(!holds(&tree.root(), count, index, [0xee; 32], &proof));
            let longer = [&proof[..], &[[0; 32]]].concat();
            prop_assert!(!holds(&tree.root(), count, index, leaves[index], &longer));
        }
    }
}
