// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @notice How a word of a trace follows from its inputs; docs/disputes.md has inputs, numbers and formula of each.
enum Kind {
    Zero,
    Copy,
    Square,
    Add,
    Rms,
    Scale,
    GroupScale,
    GroupQuants,
    Segment,
    Query,
    Key,
    Half,
    Chain,
    Max,
    Weight,
    Tree,
    Fold,
    Divide,
    Gate,
    Out,
    Embed
}

/// @notice One word of a trace with everything that it follows from.
/// @param kind How it follows.
/// @param inputs Words of the trace, of vectors of weights and of rotations, in the kind's order.
/// @param numbers The kind's numbers, in order; floats as their bits.
/// @param weight Canonical bytes of a segment of a matrix, for the kinds that have one.
struct Leaf {
    Kind kind;
    uint32[] inputs;
    uint32[4] numbers;
    bytes weight;
}

/// @title Computes one word of a trace
interface IReferee {
    /// @notice The word that follows. It never reverts for a leaf of its kind's shape, whatever the bits are.
    /// @param leaf The word's inputs.
    /// @return The word.
    function recompute(Leaf memory leaf) external view returns (uint32);
}
