// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title Stages of a session's plan
/// @notice Reads what a plan's hash is taken over, field after field: every length is fixed or told.
library PlanBytes {
    /// @notice What a plan says of a stage.
    /// @param model The model's hash.
    /// @param from First layer.
    /// @param to One past the last layer.
    /// @param embedding Whether tokens go in.
    struct Part {
        bytes32 model;
        uint32 from;
        uint32 to;
        bool embedding;
    }

    bytes private constant DOMAIN = "dolphin/plan/1";
    /// Temperature and five other reals, top-k, seed, choice.
    uint256 private constant SAMPLING = 40;
    /// Node, layers, ends.
    uint256 private constant STAGE = 42;

    /// @notice A plan without such a stage, or no plan at all.
    error BadPlan();

    /// @notice A stage of a plan.
    /// @param plan The plan's bytes.
    /// @param number Number of the stage.
    /// @return part The stage.
    function stage(bytes calldata plan, uint256 number) internal pure returns (Part memory part) {
        uint256 offset = DOMAIN.length;
        if (plan.length < offset || keccak256(plan[:offset]) != keccak256(DOMAIN)) revert BadPlan();
        // Session, gateway.
        offset += 4 + _u32(plan, offset) + 32;
        if (offset + 32 > plan.length) revert BadPlan();
        part.model = bytes32(plan[offset:offset + 32]);
        // Model, quantisation, salt, prompt, its length, most tokens.
        offset += 32 + 1 + 32 + 32 + 4 + 4;
        offset += 4 + 4 * _u32(plan, offset) + SAMPLING;
        offset += 4 + 8 * _u32(plan, offset);
        if (number >= _u32(plan, offset)) revert BadPlan();
        offset += 4 + number * STAGE + 32;
        part.from = uint32(_u32(plan, offset));
        part.to = uint32(_u32(plan, offset + 4));
        if (offset + 10 > plan.length) revert BadPlan();
        part.embedding = plan[offset + 8] != 0;
    }

    function _u32(bytes calldata plan, uint256 offset) private pure returns (uint256) {
        if (offset + 4 > plan.length) revert BadPlan();
        return uint32(bytes4(plan[offset:offset + 4]));
    }
}
