// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Hashes} from "@openzeppelin/contracts/utils/cryptography/Hashes.sol";

/// @title Roots of Merkle trees
/// @notice The trees whose proofs OpenZeppelin's MerkleProof checks: the two children of a node are hashed in
/// ascending order, and a node without a sibling moves up as it is.
library Merkle {
    /// @notice A leaf: hashed twice, so that it cannot be taken for an inner node.
    /// @param content What the leaf stands for, ABI-encoded.
    /// @return The leaf.
    function leaf(bytes memory content) internal pure returns (bytes32) {
        return keccak256(bytes.concat(keccak256(content)));
    }

    /// @notice The root over leaves.
    /// @param nodes The leaves, at least one; overwritten.
    /// @return The root.
    function root(bytes32[] memory nodes) internal pure returns (bytes32) {
        uint256 count = nodes.length;
        while (count > 1) {
            uint256 pairs = count / 2;
            for (uint256 i = 0; i < pairs; ++i) {
                nodes[i] = Hashes.commutativeKeccak256(nodes[2 * i], nodes[2 * i + 1]);
            }
            if (count % 2 == 1) nodes[pairs] = nodes[count - 1];
            count = pairs + count % 2;
        }
        return nodes[0];
    }
}
