// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @notice What two parties say of the same computation: one stage's part of a session, from position 0 to the
/// end of one chunk.
/// @param model The model's hash, as in `ModelRegistry`.
/// @param plan Hash of the session's plan; it names the stage's layers.
/// @param commitment What the stage signed for the chunk.
/// @param inRoots Over the roots of all that came in, chunk by chunk: both parties agree on it.
/// @param sealedRoots keccak256 of the root list hash that the accused committed to before the beacon.
/// @param stage Number of the stage in the plan.
/// @param from First position of the drawn chunk.
/// @param to One past its last position.
struct Chunk {
    bytes32 model;
    bytes32 plan;
    bytes32 commitment;
    bytes32 inRoots;
    bytes32 sealedRoots;
    uint32 stage;
    uint32 from;
    uint32 to;
}

/// @title Finds out who computed a chunk wrong
/// @notice Both parties have put up bonds with the caller of `open`, who pays them out when it is told the
/// outcome; the game holds no money. Its clocks end it in bounded time, whatever the parties do.
interface IDisputeGame {
    /// @notice Begins a dispute. The caller is told the outcome, once, by `IDisputeOutcome.resolved` or
    /// `abandoned`; a case is the caller's, so the same number from two callers is two disputes.
    /// @param caseId The caller's number for it.
    /// @param accused Who committed to `chunk.sealedRoots`. Its side shows `roots` with
    /// keccak256(roots) == chunk.sealedRoots, or loses by silence.
    /// @param accuser Who says that other roots are right.
    /// @param found The accuser's `roots`.
    /// @param chunk What was computed.
    function open(bytes32 caseId, address accused, address accuser, bytes32 found, Chunk calldata chunk)
        external;

    /// @notice Longest time from `open` to the outcome, in seconds, with every clock run down.
    /// @return The time.
    function longest() external view returns (uint40);
}

/// @title Is told how a dispute ended
interface IDisputeOutcome {
    /// @notice A dispute is over. Only from the game that it was opened in.
    /// @param caseId As in `IDisputeGame.open`.
    /// @param accusedWon Whether the accused computed right, or the accuser fell silent.
    function resolved(bytes32 caseId, bool accusedWon) external;

    /// @notice A dispute cannot be tried: what it is over is outside what the game can judge, so neither party is
    /// right or wrong. Only from the game that it was opened in, once, in place of `resolved`.
    /// @param caseId As in `IDisputeGame.open`.
    function abandoned(bytes32 caseId) external;
}
