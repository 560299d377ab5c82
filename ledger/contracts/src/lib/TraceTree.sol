// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Place, Stage} from "../ITraceJudge.sol";

/// @title The tree over a trace
/// @notice Binary over all indices; a node without anything below it is zero. docs/disputes.md defines it.
library TraceTree {
    /// @notice Bytes of a piece.
    uint256 internal constant PIECE_BYTES = 512;
    /// @notice Words of a piece.
    uint256 internal constant PIECE_WORDS = 128;
    /// @notice Bits of an operation's number.
    uint256 internal constant OPERATION_BITS = 6;

    bytes private constant ROOTS_DOMAIN = "dolphin/roots/1";

    /// @notice Levels above the pieces.
    /// @param stage What is in dispute.
    /// @return The number.
    function depth(Stage memory stage) internal pure returns (uint256) {
        return OPERATION_BITS + stage.slotBits + stage.positionBits + stage.pieceBits;
    }

    /// @notice Number of the piece that a word is in.
    /// @param stage What is in dispute.
    /// @param spot The word.
    /// @return The number.
    function index(Stage memory stage, Place memory spot) internal pure returns (uint256) {
        uint256 row = (((spot.slot << OPERATION_BITS) | spot.operation) << stage.positionBits) | spot.position;
        return (row << stage.pieceBits) | (spot.word / PIECE_WORDS);
    }

    /// @notice The first word of a piece.
    /// @param stage What is in dispute.
    /// @param piece Number of the piece.
    /// @return spot The word.
    function place(Stage memory stage, uint256 piece) internal pure returns (Place memory spot) {
        spot.word = (piece & ((1 << stage.pieceBits) - 1)) * PIECE_WORDS;
        piece >>= stage.pieceBits;
        spot.position = piece & ((1 << stage.positionBits) - 1);
        piece >>= stage.positionBits;
        spot.operation = piece & ((1 << OPERATION_BITS) - 1);
        spot.slot = piece >> OPERATION_BITS;
    }

    /// @notice The node above two.
    /// @param left The left one.
    /// @param right The right one.
    /// @return node The node.
    function parent(bytes32 left, bytes32 right) internal pure returns (bytes32 node) {
        if (left | right == 0) return 0;
        assembly ("memory-safe") {
            mstore(0, left)
            mstore(32, right)
            node := keccak256(0, 64)
        }
    }

    /// @notice The node that a path leads to.
    /// @param node Where it begins.
    /// @param number Number of that node in its level.
    /// @param path Siblings, from the lowest up.
    /// @return The node.
    function climb(bytes32 node, uint256 number, bytes32[] calldata path) internal pure returns (bytes32) {
        for (uint256 i = 0; i < path.length; ++i) {
            node = number & 1 == 0 ? parent(node, path[i]) : parent(path[i], node);
            number >>= 1;
        }
        return node;
    }

    /// @notice The node above a whole level.
    /// @param nodes The level, as many as a power of two.
    /// @return The node.
    function top(bytes32[] calldata nodes) internal pure returns (bytes32) {
        bytes32[] memory level = nodes;
        for (uint256 count = level.length / 2; count > 0; count /= 2) {
            for (uint256 i = 0; i < count; ++i) {
                level[i] = parent(level[2 * i], level[2 * i + 1]);
            }
        }
        return level[0];
    }

    /// @notice A word of a piece.
    /// @param piece The piece.
    /// @param spot Word of the row.
    /// @return The word.
    function word(bytes calldata piece, uint256 spot) internal pure returns (uint32) {
        uint256 from = (spot % PIECE_WORDS) * 4;
        return uint32(bytes4(piece[from:from + 4]));
    }

    /// @notice An element (bf16) of a piece of a row as it travels, as binary32.
    /// @param piece The piece.
    /// @param spot Element of the row.
    /// @return Its bits.
    function element(bytes calldata piece, uint256 spot) internal pure returns (uint32) {
        uint256 from = (spot % 256) * 2;
        return (uint32(uint8(piece[from + 1])) << 24) | (uint32(uint8(piece[from])) << 16);
    }

    /// @notice Hash of a list of roots.
    /// @param roots The list.
    /// @return The hash.
    function list(bytes32[] calldata roots) internal pure returns (bytes32) {
        return keccak256(bytes.concat(ROOTS_DOMAIN, abi.encodePacked(roots)));
    }

    /// @notice The least number of bits that number so many things.
    /// @param count How many, at least one.
    /// @return result The number of bits.
    function bits(uint256 count) internal pure returns (uint256 result) {
        while (uint256(1) << result < count) ++result;
    }
}
