//! Merkle trees whose proofs the contracts check: the two children of a node are hashed in ascending order,
//! and a node without a sibling moves up as it is.

use crate::eip712::{keccak, keccak_each};

/// A leaf over ABI words: hashed twice, so that it cannot be taken for an inner node.
pub fn leaf(words: &[[u8; 32]]) -> [u8; 32] {
    keccak(&keccak(words.as_flattened()))
}

/// The root over leaves; `None` without any.
pub fn root(leaves: &[[u8; 32]]) -> Option<[u8; 32]> {
    roots(leaves, leaves.len()).first().copied()
}

/// The roots of trees that have `width` leaves each, which lie one after another; the last may have fewer.
pub fn roots(leaves: &[[u8; 32]], mut width: usize) -> Vec<[u8; 32]> {
    let mut nodes = leaves.to_vec();
    while width > 1 {
        nodes = parents(&nodes, width);
        width = width.div_ceil(2);
    }
    nodes
}

/// What leads from leaf number `index` to the root; `None` if there is no such leaf.
pub fn proof(leaves: &[[u8; 32]], mut index: usize) -> Option<Vec<[u8; 32]>> {
    leaves.get(index)?;
    let (mut nodes, mut path) = (leaves.to_vec(), Vec::new());
    while nodes.len() > 1 {
        path.extend(nodes.get(index ^ 1));
        nodes = parents(&nodes, nodes.len());
        index /= 2;
    }
    Some(path)
}

/// Whether a proof leads from a leaf to a root.
pub fn leads(leaf: [u8; 32], proof: &[[u8; 32]], root: [u8; 32]) -> bool {
    let above = |node, sibling: &[u8; 32]| keccak(sorted(&[node, *sibling]).as_flattened());
    proof.iter().fold(leaf, above) == root
}

/// The level above, of trees that have `width` nodes each.
fn parents(nodes: &[[u8; 32]], width: usize) -> Vec<[u8; 32]> {
    let pairs: Vec<&[[u8; 32]; 2]> = nodes.chunks(width).flat_map(|tree| tree.as_chunks().0).collect();
    let mut hashed = keccak_each(pairs.len(), |index, bytes| {
        bytes.extend_from_slice(sorted(pairs[index]).as_flattened());
    })
    .into_iter();
    let above = nodes.chunks(width).flat_map(|tree| tree.chunks(2));
    above.filter_map(|children| if let [alone] = children { Some(*alone) } else { hashed.next() }).collect()
}

fn sorted([left, right]: &[[u8; 32]; 2]) -> [[u8; 32]; 2] {
    [*left.min(right), *left.max(right)]
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
        fn trees_side_by_side_have_their_own_roots(
            leaves in prop::collection::vec(any::<[u8; 32]>(), 0..60),
            width in 1usize..20,
        ) {
            let apart: Vec<_> = leaves.chunks(width).filter_map(root).collect();
            prop_assert_eq!(roots(&leaves, width), apart);
        }

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
