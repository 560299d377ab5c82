// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title Public randomness in numbered rounds
interface IBeacon {
    /// @notice What a round has drawn.
    /// @param round The round.
    /// @return Its randomness; zero until the round was submitted.
    function randomness(uint64 round) external view returns (bytes32);

    /// @notice The first round that is made after a time.
    /// @param time In seconds since 1970.
    /// @return The round.
    function roundAfter(uint256 time) external view returns (uint64);
}
