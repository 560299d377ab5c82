// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @notice A place in a pipeline, as payment sees it.
/// @param payee Whose balance in the escrow grows.
/// @param weight Its part of every payment, in proportion to the others'.
struct Stage {
    address payee;
    uint64 weight;
}

/// @notice What a stage is paid.
/// @param payee Whose balance in the escrow grows.
/// @param amount By how much, in the token's smallest unit.
struct Payment {
    address payee;
    uint128 amount;
}

/// @title Division of a payment among stages
library Split {
    /// @notice The weights add up to nothing, or to 2^64 or more.
    error NoWeights();

    /// @notice Divides an amount in proportion to the stages' weights. Shares are rounded down and what that
    /// leaves goes to the last stage, so that they add up to the whole.
    /// @param amount What to divide, in the token's smallest unit.
    /// @param stages The stages, in order.
    /// @return payments One for each stage; their sum is `amount`.
    function divide(uint128 amount, Stage[] calldata stages)
        internal
        pure
        returns (Payment[] memory payments)
    {
        uint256 weights;
        for (uint256 i = 0; i < stages.length; ++i) {
            weights += stages[i].weight;
        }
        if (weights == 0 || weights > type(uint64).max) revert NoWeights();

        payments = new Payment[](stages.length);
        uint128 rest = amount;
        for (uint256 i = 0; i < payments.length; ++i) {
            // At most `amount`, since a weight is a part of their sum.
            uint128 share = uint128(uint256(amount) * stages[i].weight / weights);
            payments[i] = Payment(stages[i].payee, share);
            rest -= share;
        }
        payments[payments.length - 1].amount += rest;
    }
}
