// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Weights} from "./lib/Weights.sol";

/// @notice What is in dispute: the trace of one stage of a session.
/// @param model The model's hash.
/// @param inRoots Over the roots of all that came in, chunk by chunk.
/// @param root Root of the accused's trace.
/// @param first First layer.
/// @param layers Number of layers.
/// @param to Number of positions.
/// @param hidden Width of a row that comes in or goes out.
/// @param slotBits Bits of a slot's number in an index.
/// @param positionBits Bits of a position.
/// @param pieceBits Bits of a piece's number.
/// @param embedding Whether tokens come in.
struct Stage {
    bytes32 model;
    bytes32 inRoots;
    bytes32 root;
    uint32 first;
    uint32 layers;
    uint32 to;
    uint32 hidden;
    uint8 slotBits;
    uint8 positionBits;
    uint8 pieceBits;
    bool embedding;
}

/// @notice A word of a trace.
/// @param slot 0 for what enters the stage, then its layers; one past the last for rows as they are sent.
/// @param operation Operation.
/// @param position Position.
/// @param word Word of the row; of rows as they are sent, element.
struct Place {
    uint256 slot;
    uint256 operation;
    uint256 position;
    uint256 word;
}

/// @notice A piece of the accused's trace.
/// @param words Its 512 bytes.
/// @param path Its siblings, from the lowest up.
struct Piece {
    bytes words;
    bytes32[] path;
}

/// @notice What a layer, or the embedding, is.
/// @param contents The model's.
/// @param description Everything that enters the arithmetic.
/// @param inUnit From the description to the unit's root.
/// @param inModel From the unit's root to the model's.
struct Unit {
    Weights.Contents contents;
    bytes description;
    bytes32[] inUnit;
    bytes32[] inModel;
}

/// @notice What shows that there is no trace of a stage.
/// @param unit A layer of the stage, or its embedding.
/// @param index Number of that unit in the model; the embedding is 0.
/// @param tensor Number of a matrix in the unit.
/// @param opened The first segment of its first row; nothing if the unit's description shows enough.
struct Gap {
    Unit unit;
    uint256 index;
    uint256 tensor;
    Weights.Opened opened;
}

/// @notice A row, or a token, that was signed to have come in.
/// @param roots Roots of all that came in, chunk by chunk.
/// @param token The token, where tokens come in.
/// @param row Root of the row, where rows do.
/// @param inChunk From the row or token to its chunk's root.
/// @param piece 512 bytes of the row.
/// @param inRow From the piece to the row's root.
struct Entered {
    bytes32[] roots;
    uint32 token;
    bytes32 row;
    bytes32[] inChunk;
    bytes piece;
    bytes32[] inRow;
}

/// @notice Everything that a word follows from, opened.
/// @param unit The place's layer, or the embedding. Not for rows as they are sent, nor for rows that came in.
/// @param pieces Pieces of the accused's trace, in the order of the inputs.
/// @param matrix A segment of a matrix, for the kinds that have one.
/// @param vector A segment of a vector, for the kinds that have a value of one.
/// @param rotation The leaf of a position's rotations, for the kinds that have one.
/// @param inRope From that leaf to the position encoding's root.
/// @param entered What came in, for slot 0.
struct Opening {
    Unit unit;
    Piece[] pieces;
    Weights.Opened matrix;
    Weights.Opened vector;
    bytes rotation;
    bytes32[] inRope;
    Entered entered;
}

/// @title Says what a word of a trace should be
interface ITraceJudge {
    /// @notice The stage that a plan names.
    /// @param plan The plan's bytes.
    /// @param stage Number of the stage.
    /// @param to Number of positions.
    /// @param unit Any of the stage's layers.
    /// @return What is in dispute, but for roots; the plan's hash is for the caller to check.
    function describe(bytes calldata plan, uint256 stage, uint32 to, Unit calldata unit)
        external
        view
        returns (Stage memory);

    /// @notice Whether there can be no trace of a stage: it has no layers or too many positions, its arithmetic is of
    /// another version or not quantised, or a matrix of it is of floats.
    /// @param plan The plan's bytes.
    /// @param stage Number of the stage.
    /// @param to Number of positions.
    /// @param gap What shows it. Of a stage without layers, or with too many positions, nothing.
    /// @return Whether it is so; what is wrong with what is shown reverts.
    function untraceable(bytes calldata plan, uint256 stage, uint32 to, Gap calldata gap)
        external
        view
        returns (bool);

    /// @notice What a word should be, given the other words of the trace.
    /// @param stage What is in dispute.
    /// @param place The word.
    /// @param opening What it follows from. What is wrong with it reverts.
    /// @return exists Whether there is such a word; what follows is zero if not.
    /// @return word The word.
    function expected(Stage calldata stage, Place calldata place, Opening calldata opening)
        external
        view
        returns (bool exists, uint32 word);
}
