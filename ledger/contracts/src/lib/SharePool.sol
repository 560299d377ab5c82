// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

/// @notice Tokens held in common, and the shares in them.
/// @param tokens What there is, in the token's smallest unit.
/// @param shares All shares given out. Zero exactly when `tokens` is zero.
struct SharePool {
    uint128 tokens;
    uint128 shares;
}

/// @title Pools that can lose, and never gain
/// @notice A loss is spread over all shares by one subtraction, however many hold them. Since nothing but
/// joining adds tokens, a share is never worth more than one token; every rounding is in favour of those who
/// stay in.
library SharePools {
    using SafeCast for uint256;

    /// @notice Adds tokens for new shares, rounded down.
    /// @param pool The pool.
    /// @param amount Tokens to add.
    /// @return minted The shares they are worth, at least `amount`.
    function join(SharePool storage pool, uint128 amount) internal returns (uint128 minted) {
        (uint128 tokens, uint128 shares) = (pool.tokens, pool.shares);
        minted = tokens == 0 ? amount : (uint256(amount) * shares / tokens).toUint128();
        pool.tokens = tokens + amount;
        pool.shares = shares + minted;
    }

    /// @notice Takes out what shares are worth, rounded down. The last to leave takes all.
    /// @param pool The pool.
    /// @param burned Shares to give up, at most all there are.
    /// @return amount Tokens they are worth, at most `burned`.
    function redeem(SharePool storage pool, uint128 burned) internal returns (uint128 amount) {
        (uint128 tokens, uint128 shares) = (pool.tokens, pool.shares);
        amount = worth(pool, burned);
        pool.tokens = tokens - amount;
        pool.shares = shares - burned;
    }

    /// @notice Takes tokens from all shares alike.
    /// @param pool The pool.
    /// @param amount Tokens to take, at most all there are.
    /// @return wiped Whether nothing is left; all shares are void then, and the pool begins anew.
    function cut(SharePool storage pool, uint128 amount) internal returns (bool wiped) {
        (uint128 tokens, uint128 shares) = (pool.tokens, pool.shares);
        wiped = tokens == amount && shares != 0;
        pool.tokens = tokens - amount;
        if (wiped) pool.shares = 0;
    }

    /// @notice What shares are worth, rounded down.
    /// @param pool The pool.
    /// @param shares Some or all of its shares.
    /// @return amount Tokens.
    function worth(SharePool storage pool, uint128 shares) internal view returns (uint128 amount) {
        // At most `tokens`, since `shares` is a part of the pool's.
        return uint128(uint256(pool.tokens) * shares / pool.shares);
    }
}
