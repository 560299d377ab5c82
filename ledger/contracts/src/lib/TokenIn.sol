// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

/// @title Taking in exactly what was asked for
/// @notice A token that keeps a fee, or lies about a transfer, is refused instead of being counted in full.
library TokenIn {
    using SafeERC20 for IERC20;

    /// @notice The token moved `received` where `expected` was asked for.
    error ShortTransfer(uint256 expected, uint256 received);

    /// @notice Moves `amount` from `from` to this contract, or reverts.
    /// @dev Two balances are compared, so the caller must be guarded against re-entry.
    /// @param token The token.
    /// @param from Whose tokens; only ever the caller of the contract that uses this.
    /// @param amount How many, in the token's smallest unit.
    function take(IERC20 token, address from, uint256 amount) internal {
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(from, address(this), amount);
        uint256 received = token.balanceOf(address(this)) - before;
        if (received != amount) revert ShortTransfer(amount, received);
    }
}
