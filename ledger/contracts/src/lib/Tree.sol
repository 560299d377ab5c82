// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title Merkle trees whose proofs say where a leaf is
/// @notice The children of a node are hashed in their order, and a node without a sibling moves up as it is. For
/// a root and a count of leaves there is one leaf at each index, so that whoever posts both cannot choose later.
library Tree {
    /// @notice Whether a leaf is at an index.
    /// @param root The root.
    /// @param count How many leaves the tree has, at least one.
    /// @param index The leaf's index.
    /// @param leaf The leaf; no hash of 64 bytes, so that it cannot be taken for an inner node.
    /// @param proof The siblings on the way to the root, as far as there are any.
    /// @return Whether it is.
    function holds(bytes32 root, uint256 count, uint256 index, bytes32 leaf, bytes32[] calldata proof)
        internal
        pure
        returns (bool)
    {
        if (index >= count) return false;
        uint256 used = 0;
        for (; count > 1; (index, count) = (index / 2, (count + 1) / 2)) {
            if (index % 2 == 0 && index + 1 == count) continue;
            if (used == proof.length) return false;
            bytes32 sibling = proof[used++];
            leaf = index % 2 == 0 ? _hash(leaf, sibling) : _hash(sibling, leaf);
        }
        return used == proof.length && leaf == root;
    }

    function _hash(bytes32 left, bytes32 right) private pure returns (bytes32) {
        return keccak256(abi.encode(left, right));
    }
}
