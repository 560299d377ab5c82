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
        uint256 count = operands.length / 12;
        results = new bytes(8 * count);
        for (uint256 i = 0; i < count; ++i) {
            uint256 word = uint96(bytes12(operands[12 * i:12 * i + 12]));
            uint256 result = one(operation, word >> 64, (word >> 32) & 0xffff_ffff, word & 0xffff_ffff);
            assembly ("memory-safe") {
                // What is written past the last result is unused: memory after it is not allocated yet.
                mstore(add(add(results, 32), mul(8, i)), shl(192, result))
            }
        }
    }

    function one(Operation operation, uint256 a, uint256 b, uint256 c) internal pure returns (uint256) {
        if (operation == Operation.Add) return SoftFloat.add(a, b);
        if (operation == Operation.Sub) return SoftFloat.sub(a, b);
        if (operation == Operation.Mul) return SoftFloat.mul(a, b);
        if (operation == Operation.Fma) return SoftFloat.fma(a, b, c);
        if (operation == Operation.Div) return SoftFloat.div(a, b);
        if (operation == Operation.Sqrt) return SoftFloat.sqrt(a);
        if (operation == Operation.Gt) return SoftFloat.gt(a, b) ? 1 : 0;
        if (operation == Operation.FromInt) return SoftFloat.fromInt(int32(uint32(a)));
        if (operation == Operation.FromHalf) return SoftFloat.fromHalf(a & 0xffff);
        if (operation == Operation.ToHalf) return SoftFloat.toHalf(a);
        if (operation == Operation.ToBrain) return SoftFloat.toBrain(a);
        if (operation == Operation.ToInt8) return uint256(SoftFloat.toInt8(a)) & 0xff;
        if (operation == Operation.ToFixed40) return SoftFloat.toFixed40(a);
        return operation == Operation.Exp ? SoftFloat.exp(a) : SoftFloat.silu(a);
    }
}
