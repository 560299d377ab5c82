// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title Ids of roles
/// @notice In the AccessManager; its admin is the timelock. A stake role's slasher has an id of its own,
/// `StakeManager.slasherOf`.
library Roles {
    /// @notice May mint POD: the RewardDistributor, where it emits.
    uint64 internal constant MINTER = 1;
    /// @notice May enter and retire models.
    uint64 internal constant CURATOR = 2;
    /// @notice May post roots of rewards.
    uint64 internal constant POSTER = 3;
    /// @notice May disable a root of rewards.
    uint64 internal constant GUARDIAN = 4;

    /// @notice Stake role of an operator whose nodes serve shards.
    uint32 internal constant NODE = 1;
    /// @notice Stake role of an operator that audits.
    uint32 internal constant AUDITOR = 2;
}
