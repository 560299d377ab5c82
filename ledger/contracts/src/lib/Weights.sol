// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";

import {Merkle} from "./Merkle.sol";
import {Products} from "./Products.sol";

/// @title Openings of a model hash
/// @notice What a model hash was taken over, from the top: contents, units (embedding, each layer, head), tensors,
/// rows, segments of 256 values; and the rotations of positions. What does not lead to its root is refused.
library Weights {
    /// @notice A model's contents, as `ModelRegistry` hashes them.
    /// @param numerics Version of the arithmetic.
    /// @param tokenizer Hash of the tokenizer.
    /// @param rope Root over the rotations of positions.
    /// @param layers Number of units.
    /// @param layerRoot Root over the units' roots.
    struct Contents {
        uint32 numerics;
        bytes32 tokenizer;
        bytes32 rope;
        uint32 layers;
        bytes32 layerRoot;
    }

    /// @notice A segment of a tensor's row, with what leads from it to its unit's root.
    /// @param data Canonical bytes.
    /// @param format Hash of the format's name.
    /// @param rows Rows of the tensor.
    /// @param columns Columns of the tensor.
    /// @param inTensor From the segment to the tensor's root.
    /// @param inUnit From the tensor to the unit's root.
    struct Opened {
        bytes data;
        bytes32 format;
        uint32 rows;
        uint32 columns;
        bytes32[] inTensor;
        bytes32[] inUnit;
    }

    bytes32 private constant MODEL_TYPEHASH =
        keccak256("Model(uint32 numerics,bytes32 tokenizer,bytes32 rope,uint32 layers,bytes32 layerRoot)");
    bytes32 private constant Q8 = keccak256("q8");
    bytes32 private constant Q4 = keccak256("q4");
    bytes32 private constant BF16 = keccak256("bf16");
    bytes32 private constant F32 = keccak256("f32");
    bytes32 private constant Q4K = keccak256("q4_k");
    bytes32 private constant Q6K = keccak256("q6_k");

    /// Bytes of a value of a vector, and of a position's leaf before its rotations.
    uint256 private constant F32_BYTES = 4;
    uint256 private constant ROTATIONS_FROM = 5;

    /// @notice The bytes are not what the root was taken over, or not there.
    error BadWeights();

    /// @notice The model hash.
    /// @param contents What it is of.
    function hash(Contents calldata contents) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                MODEL_TYPEHASH,
                contents.numerics,
                contents.tokenizer,
                contents.rope,
                contents.layers,
                contents.layerRoot
            )
        );
    }

    /// @notice The root of the unit that a description is of.
    /// @param description Its bytes.
    /// @param inUnit From the description to the root.
    function describedBy(bytes calldata description, bytes32[] calldata inUnit)
        internal
        pure
        returns (bytes32)
    {
        bytes32 leaf = Merkle.leaf(abi.encode(uint256(0), keccak256(description)));
        return MerkleProof.processProofCalldata(inUnit, leaf);
    }

    /// @notice Whether a unit is a model's.
    /// @param contents The model.
    /// @param index Which of its units: 0 is the embedding.
    /// @param root The unit's root.
    /// @param inModel From the unit to the root over all.
    function hasUnit(Contents calldata contents, uint256 index, bytes32 root, bytes32[] calldata inModel)
        internal
        pure
        returns (bool)
    {
        if (index >= contents.layers) return false;
        return MerkleProof.verifyCalldata(inModel, contents.layerRoot, Merkle.leaf(abi.encode(index, root)));
    }

    /// @notice The number of a segment's format, once it is known to be the unit's.
    /// @param unit The unit's root.
    /// @param tensor Number of the tensor in the unit, from 1.
    /// @param row Row of the tensor.
    /// @param number Segment of the row.
    /// @param opened The segment.
    function segment(bytes32 unit, uint256 tensor, uint256 row, uint256 number, Opened calldata opened)
        internal
        pure
        returns (uint32)
    {
        // With the nine bytes before it no segment is as long as two nodes: its length is even.
        if (opened.data.length % 2 != 0 || row > type(uint32).max || number > type(uint32).max) {
            revert BadWeights();
        }
        bytes32 leaf = keccak256(abi.encodePacked(bytes1(0), uint32(row), uint32(number), opened.data));
        bytes32 root = MerkleProof.processProofCalldata(opened.inTensor, leaf);
        root = Merkle.leaf(abi.encode(opened.format, opened.rows, opened.columns, root));
        leaf = Merkle.leaf(abi.encode(tensor, root));
        if (!MerkleProof.verifyCalldata(opened.inUnit, unit, leaf)) revert BadWeights();
        return formatOf(opened.format);
    }

    /// @notice A value of a vector, as its bits.
    /// @param unit The unit's root.
    /// @param tensor Number of the vector in the unit, from 1.
    /// @param index Which value.
    /// @param opened The segment that it is in.
    function value(bytes32 unit, uint256 tensor, uint256 index, Opened calldata opened)
        internal
        pure
        returns (uint32)
    {
        uint32 format = segment(unit, tensor, 0, index / Products.SEGMENT, opened);
        if (format != Products.F32) revert BadWeights();
        return _little32(opened.data, index % Products.SEGMENT * F32_BYTES);
    }

    /// @notice Cosine and sine of a pair at a position, as their bits.
    /// @param rope The root over the rotations.
    /// @param position The position.
    /// @param pair Which pair.
    /// @param leaf The position's rotations: a zero, the position, all cosines, all sines.
    /// @param inRope From the leaf to the root.
    function rotation(
        bytes32 rope,
        uint256 position,
        uint256 pair,
        bytes calldata leaf,
        bytes32[] calldata inRope
    ) internal pure returns (uint32 cos, uint32 sin) {
        uint256 pairs = leaf.length / (2 * F32_BYTES);
        // No such length is that of two nodes, or of the hash that another leaf is taken over.
        if (leaf.length != ROTATIONS_FROM + pairs * 2 * F32_BYTES || pair >= pairs) revert BadWeights();
        if (uint40(bytes5(leaf)) != position) revert BadWeights();
        if (!MerkleProof.verifyCalldata(inRope, rope, keccak256(leaf))) revert BadWeights();
        cos = _little32(leaf, ROTATIONS_FROM + pair * F32_BYTES);
        sin = _little32(leaf, ROTATIONS_FROM + (pairs + pair) * F32_BYTES);
    }

    /// @notice A format's number.
    /// @param name Hash of its name.
    function formatOf(bytes32 name) internal pure returns (uint32) {
        if (name == Q8) return uint32(Products.Q8);
        if (name == Q4) return uint32(Products.Q4);
        if (name == BF16) return uint32(Products.BF16);
        if (name == F32) return uint32(Products.F32);
        if (name == Q4K) return uint32(Products.Q4K);
        if (name == Q6K) return uint32(Products.Q6K);
        revert BadWeights();
    }

    /// @notice Whether a format has super-blocks.
    /// @param name Hash of its name.
    function isWide(bytes32 name) internal pure returns (bool) {
        return name == Q4K || name == Q6K;
    }

    function _little32(bytes calldata data, uint256 from) private pure returns (uint32) {
        if (data.length < from + F32_BYTES) revert BadWeights();
        uint32 big = uint32(bytes4(data[from:from + F32_BYTES]));
        big = (big & 0x00ff_00ff) << 8 | (big >> 8) & 0x00ff_00ff;
        return big << 16 | big >> 16;
    }
}
