//! Merkle trees whose proofs the contracts check: the two children of a node are hashed in ascending order,
//! and a node without a sibling moves up as it is.

use crate::eip712::keccak;

/// A leaf over ABI words: hashed twice, so that it cannot be taken for an inner node.
pub fn leaf(words: &[[u8; 32]]) -> [u8; 32] {
    keccak(&keccak(words.as_flattened()))
}

/// The root over leaves; `None` without any.
pub fn root(leaves: &[[u8; 32]]) -> Option<[u8; 32]> {
    let mut nodes = leaves.to_vec();
    while nodes.len() > 1 {
        nodes = parents(&nodes);
    }
    nodes.first().copied()
}

/// What leads from leaf number `index` to the root; `None` if there is no such leaf.
pub fn proof(leaves: &[[u8; 32]], mut index: usize) -> Option<Vec<[u8; 32]>> {
    leaves.get(index)?;
    let (mut nodes, mut path) = (leaves.to_vec(), Vec::new());
    while nodes.len() > 1 {
        path.extend(nodes.get(index ^ 1));
        nodes = parents(&nodes);
        index /= 2;
    }
    Some(path)
}

/// Whether a proof leads from a leaf to a root.
pub fn leads(leaf: [u8; 32], proof: &[[u8; 32]], root: [u8; 32]) -> bool {
    proof.iter().fold(leaf, |node, sibling| parent(&[node, *sibling])) == root
}

fn parents(nodes: &[[u8; 32]]) -> Vec<[u8; 32]> {
    nodes.chunks(2).map(parent).collect()
}

fn parent(children: &[[u8; 32]]) -> [u8; 32] {
    match children {
        [left, right] => keccak([*left.min(right), *left.max(right)].as_flattened()),
        alone => alone[0],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_leaves_have_no_root() {
        assert_eq!(root(&[]), None);
        assert_eq!(proof(&[[1; 32]], 1), None);
    }

    proptest! {
        #[test]
        fn every_leaf_and_no_other_has_a_proof(leaves in prop::collection::vec(any::<[u8; 32]>(), 1..40)) {
            let root = root(&leaves).unwrap();
            for (index, &leaf) in leaves.iter().enumerate() {
                let proof = proof(&leaves, index).unwrap();
                prop_assert!(leads(leaf, &proof, root));
                prop_assert!(!leads([0xee; 32], &proof, root));
            }
        }
    }
}
