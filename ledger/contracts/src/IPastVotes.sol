// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title A source of votes beside the token
/// @notice What PodGovernor asks for an account's staked votes.
interface IPastVotes {
    /// @notice An account's votes at the end of a moment.
    /// @param account The account.
    /// @param timepoint Seconds since 1970, in the past.
    /// @return Votes, in the token's smallest unit.
    function getPastVotes(address account, uint256 timepoint) external view returns (uint256);

    /// @notice The clock of votes: seconds since 1970.
    /// @return The block's timestamp.
    function clock() external view returns (uint48);
}
