// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {SoftFloat} from "../../src/lib/SoftFloat.sol";

/// Runs one operation over many operands, for tests that compare them with a processor's.
contract SoftFloatHarness {
    enum Operation {
        Add,
        Sub,
        Mul,
        Fma,
        Div,
        Sqrt,
        Gt,
        FromInt,
        FromHalf,
        ToHalf,
        ToBrain,
        ToInt8,
        ToFixed40,
        Exp,
        Silu
    }

    /// Operands are three big-endian words of 32 bits for each result, which is one of 64.
    function run(Operation operation, bytes calldata operands) external pure returns (bytes memory results) {
        function(uint256, uint256, uint256) pure returns (uint256) f = pick(operation);
        uint256 count = operands.length / 12;
        results = new bytes(8 * count);
        for (uint256 i = 0; i < count; ++i) {
            uint256 word;
            assembly ("memory-safe") {
                word := shr(160, calldataload(add(operands.offset, mul(12, i))))
            }
            uint256 result = f(word >> 64, (word >> 32) & 0xffff_ffff, word & 0xffff_ffff);
            assembly ("memory-safe") {
                // Beyond the last result nothing is allocated yet.
                mstore(add(add(results, 32), mul(8, i)), shl(192, result))
            }
        }
    }

    function pick(Operation o)
        internal
        pure
        returns (function(uint256, uint256, uint256) pure returns (uint256))
    {
        if (o == Operation.Add) return add;
        if (o == Operation.Sub) return sub;
        if (o == Operation.Mul) return mul;
        if (o == Operation.Fma) return SoftFloat.fma;
        if (o == Operation.Div) return div;
        if (o == Operation.Sqrt) return sqrt;
        if (o == Operation.Gt) return gt;
        if (o == Operation.FromInt) return fromInt;
        if (o == Operation.FromHalf) return fromHalf;
        if (o == Operation.ToHalf) return toHalf;
        if (o == Operation.ToBrain) return toBrain;
        if (o == Operation.ToInt8) return toInt8;
        if (o == Operation.ToFixed40) return toFixed40;
        return o == Operation.Exp ? exp : silu;
    }

    function add(uint256 a, uint256 b, uint256) internal pure returns (uint256) {
        return SoftFloat.add(a, b);
    }

    function sub(uint256 a, uint256 b, uint256) internal pure returns (uint256) {
        return SoftFloat.sub(a, b);
    }

    function mul(uint256 a, uint256 b, uint256) internal pure returns (uint256) {
        return SoftFloat.mul(a, b);
    }

    function div(uint256 a, uint256 b, uint256) internal pure returns (uint256) {
        return SoftFloat.div(a, b);
    }

    function sqrt(uint256 a, uint256, uint256) internal pure returns (uint256) {
        return SoftFloat.sqrt(a);
    }

    function gt(uint256 a, uint256 b, uint256) internal pure returns (uint256) {
        return SoftFloat.gt(a, b) ? 1 : 0;
    }

    function fromInt(uint256 a, uint256, uint256) internal pure returns (uint256) {
        return SoftFloat.fromInt(int32(uint32(a)));
    }

    function fromHalf(uint256 a, uint256, uint256) internal pure returns (uint256) {
        return SoftFloat.fromHalf(a & 0xffff);
    }

    function toHalf(uint256 a, uint256, uint256) internal pure returns (uint256) {
        return SoftFloat.toHalf(a);
    }

    function toBrain(uint256 a, uint256, uint256) internal pure returns (uint256) {
        return SoftFloat.toBrain(a);
    }

    function toInt8(uint256 a, uint256, uint256) internal pure returns (uint256) {
        return uint256(SoftFloat.toInt8(a)) & 0xff;
    }

    function toFixed40(uint256 a, uint256, uint256) internal pure returns (uint256) {
        return SoftFloat.toFixed40(a);
    }

    function exp(uint256 a, uint256, uint256) internal pure returns (uint256) {
        return SoftFloat.exp(a);
    }

    function silu(uint256 a, uint256, uint256) internal pure returns (uint256) {
        return SoftFloat.silu(a);
    }
}
