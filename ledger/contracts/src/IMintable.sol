// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title A token that can be emitted
/// @notice What RewardDistributor asks of the token where it emits.
interface IMintable {
    /// @notice Makes new tokens.
    /// @param to Who gets them.
    /// @param amount How many, in the token's smallest unit.
    function mint(address to, uint256 amount) external;
}
