// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Weights} from "../../src/lib/Weights.sol";
import {Wiring} from "../../src/lib/Wiring.sol";

/// The libraries as a contract's functions, for what has to come as calldata.
contract WiringHarness {
    function parse(bytes calldata description) external pure returns (Wiring.Dims memory) {
        return Wiring.parse(description);
    }

    function parseEmbedding(bytes calldata description) external pure returns (uint32, uint32) {
        return Wiring.parseEmbedding(description);
    }

    function width(Wiring.Dims memory dims, uint256 operation, uint256 position)
        external
        pure
        returns (uint256)
    {
        return Wiring.width(dims, operation, position);
    }

    function widest(Wiring.Dims memory dims, uint256 positions) external pure returns (uint256) {
        return Wiring.widest(dims, positions);
    }

    function wire(Wiring.Dims memory dims, uint256 operation, uint256 position, uint256 word, bool wide)
        external
        pure
        returns (Wiring.Wired memory)
    {
        return Wiring.wire(dims, operation, position, word, wide);
    }

    function hash(Weights.Contents calldata contents) external pure returns (bytes32) {
        return Weights.hash(contents);
    }

    function describedBy(bytes calldata description, bytes32[] calldata inUnit)
        external
        pure
        returns (bytes32)
    {
        return Weights.describedBy(description, inUnit);
    }

    function hasUnit(Weights.Contents calldata contents, uint256 index, bytes32 root, bytes32[] calldata path)
        external
        pure
        returns (bool)
    {
        return Weights.hasUnit(contents, index, root, path);
    }

    function segment(
        bytes32 unit,
        uint256 tensor,
        uint256 row,
        uint256 number,
        Weights.Opened calldata opened
    ) external pure returns (uint32) {
        return Weights.segment(unit, tensor, row, number, opened);
    }

    function value(bytes32 unit, uint256 tensor, uint256 index, Weights.Opened calldata opened)
        external
        pure
        returns (uint32)
    {
        return Weights.value(unit, tensor, index, opened);
    }

    function rotation(
        bytes32 rope,
        uint256 position,
        uint256 pair,
        bytes calldata leaf,
        bytes32[] calldata path
    ) external pure returns (uint32, uint32) {
        return Weights.rotation(rope, position, pair, leaf, path);
    }
}
