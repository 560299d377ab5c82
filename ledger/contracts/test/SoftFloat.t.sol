// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {vm} from "../script/Vm.sol";
import {SoftFloat} from "../src/lib/SoftFloat.sol";

/// Points where binary32 changes its ways, and laws; `ledger/tests/embedded/arithmetic.rs` compares a million results
/// with a processor's.
contract SoftFloatTest {
    bool public constant IS_TEST = true;

    uint256 internal constant ONE = SoftFloat.ONE;
    uint256 internal constant TWO = 0x4000_0000;
    uint256 internal constant INFINITY = SoftFloat.INFINITY;
    uint256 internal constant NAN = SoftFloat.NAN;
    uint256 internal constant SIGN = SoftFloat.SIGN;
    uint256 internal constant LEAST = 1;
    uint256 internal constant LEAST_NORMAL = 0x0080_0000;
    uint256 internal constant MOST = 0x7f7f_ffff;

    function eq(uint256 actual, uint256 expected) internal pure {
        vm.assertEq(bytes32(actual), bytes32(expected));
    }

    function test_sums() public pure {
        eq(SoftFloat.add(ONE, ONE), TWO);
        eq(SoftFloat.add(0x3dcc_cccd, 0x3e4c_cccd), 0x3e99_999a);
        // A tie goes to even, down and up; one bit more than a tie goes up.
        eq(SoftFloat.add(0x4b80_0000, ONE), 0x4b80_0000);
        eq(SoftFloat.add(0x4b80_0001, ONE), 0x4b80_0002);
        eq(SoftFloat.add(0x4b80_0000, 0x3f80_0001), 0x4b80_0001);
        // Far below the last place, and just below a power of two.
        eq(SoftFloat.add(ONE, LEAST), ONE);
        eq(SoftFloat.sub(ONE, LEAST), ONE);
        eq(SoftFloat.sub(ONE, 0x3300_0000), ONE);
        eq(SoftFloat.sub(ONE, 0x3300_0001), 0x3f7f_ffff);
        eq(SoftFloat.sub(0x4b80_0000, 0x4b7f_ffff), ONE);
        eq(SoftFloat.sub(LEAST_NORMAL, LEAST), 0x007f_ffff);
        eq(SoftFloat.add(MOST, MOST), INFINITY);
        eq(SoftFloat.add(MOST, 0x7300_0000), INFINITY);
        eq(SoftFloat.add(MOST, 0x72ff_ffff), MOST);
    }

    function test_zeros() public pure {
        eq(SoftFloat.add(0, SIGN), 0);
        eq(SoftFloat.add(SIGN, SIGN), SIGN);
        eq(SoftFloat.sub(ONE, ONE), 0);
        eq(SoftFloat.sub(SIGN, 0), SIGN);
        eq(SoftFloat.mul(SIGN, ONE), SIGN);
        eq(SoftFloat.mul(SIGN, SIGN | ONE), 0);
        eq(SoftFloat.fma(0, ONE, SIGN), 0);
        eq(SoftFloat.fma(SIGN, ONE, SIGN), SIGN);
        eq(SoftFloat.fma(0, ONE, SIGN | LEAST), SIGN | LEAST);
        eq(SoftFloat.div(SIGN, ONE), SIGN);
        eq(SoftFloat.sqrt(SIGN), SIGN);
        vm.assertFalse(SoftFloat.gt(0, SIGN));
        vm.assertFalse(SoftFloat.gt(SIGN, 0));
    }

    function test_productsAndQuotients() public pure {
        eq(SoftFloat.mul(0x3f80_0001, 0x3f80_0001), 0x3f80_0002);
        eq(SoftFloat.mul(LEAST, 0x3f00_0000), 0);
        eq(SoftFloat.mul(LEAST, 0x3f00_0001), LEAST);
        eq(SoftFloat.mul(3, 0x3f00_0000), 2);
        eq(SoftFloat.mul(MOST, TWO), INFINITY);
        eq(SoftFloat.mul(LEAST_NORMAL, SIGN | LEAST_NORMAL), SIGN);
        eq(SoftFloat.div(ONE, 0x4040_0000), 0x3eaa_aaab);
        eq(SoftFloat.div(LEAST, MOST), 0);
        eq(SoftFloat.div(MOST, LEAST), INFINITY);
        eq(SoftFloat.div(LEAST_NORMAL, TWO), 0x0040_0000);
        eq(SoftFloat.div(ONE, SIGN), SIGN | INFINITY);
    }

    /// The product is not rounded before the addition.
    function test_fmaRoundsOnce() public pure {
        uint256 above = 0x3f80_0001;
        eq(SoftFloat.fma(above, above, SIGN | 0x3f80_0002), 0x2880_0000);
        eq(SoftFloat.sub(SoftFloat.mul(above, above), 0x3f80_0002), 0);
        // Half of the last place, and a little that only the product has.
        eq(SoftFloat.fma(0x3380_0000, 0x3f80_0001, 0x3f80_0000), 0x3f80_0001);
        eq(SoftFloat.fma(MOST, MOST, SIGN | INFINITY), SIGN | INFINITY);
        eq(SoftFloat.fma(LEAST, LEAST, ONE), ONE);
        eq(SoftFloat.fma(LEAST, SIGN | LEAST, LEAST_NORMAL), LEAST_NORMAL);
        eq(SoftFloat.fma(MOST, MOST, SIGN | MOST), INFINITY);
    }

    function test_noNumbers() public pure {
        uint256[4] memory nans = [NAN, SIGN | NAN, 0x7f80_0001, 0xffff_ffff];
        for (uint256 i = 0; i < nans.length; ++i) {
            eq(SoftFloat.add(nans[i], ONE), NAN);
            eq(SoftFloat.mul(ONE, nans[i]), NAN);
            eq(SoftFloat.fma(0, ONE, nans[i]), NAN);
            eq(SoftFloat.div(nans[i], 0), NAN);
            eq(SoftFloat.sqrt(nans[i]), NAN);
            eq(SoftFloat.exp(nans[i]), NAN);
            eq(SoftFloat.silu(nans[i]), NAN);
            eq(SoftFloat.fromHalf(SoftFloat.toHalf(nans[i])), NAN);
            eq(SoftFloat.fromBrain(SoftFloat.toBrain(nans[i])), NAN);
            vm.assertEq(uint256(SoftFloat.toInt8(nans[i])), 0);
            vm.assertFalse(SoftFloat.gt(nans[i], ONE));
            vm.assertFalse(SoftFloat.gt(ONE, nans[i]));
        }
        eq(SoftFloat.sub(INFINITY, INFINITY), NAN);
        eq(SoftFloat.mul(INFINITY, SIGN), NAN);
        eq(SoftFloat.div(0, 0), NAN);
        eq(SoftFloat.div(INFINITY, INFINITY), NAN);
        eq(SoftFloat.sqrt(SIGN | LEAST), NAN);
        eq(SoftFloat.fma(INFINITY, ONE, SIGN | INFINITY), NAN);
        eq(SoftFloat.fma(MOST, TWO, SIGN | INFINITY), SIGN | INFINITY);
        eq(SoftFloat.div(ONE, SIGN | INFINITY), SIGN);
        eq(SoftFloat.sqrt(INFINITY), INFINITY);
    }

    function test_roots() public pure {
        eq(SoftFloat.sqrt(0x4080_0000), TWO);
        eq(SoftFloat.sqrt(TWO), 0x3fb5_04f3);
        eq(SoftFloat.sqrt(LEAST), 0x1a35_04f3);
        eq(SoftFloat.sqrt(MOST), 0x5f7f_ffff);
    }

    function test_conversions() public pure {
        eq(SoftFloat.fromInt(16_777_217), 0x4b80_0000);
        eq(SoftFloat.fromInt(16_777_219), 0x4b80_0002);
        eq(SoftFloat.fromInt(-133_169_152), 0xccfe_0000);
        eq(SoftFloat.toHalf(0x477f_efff), 0x7bff);
        eq(SoftFloat.toHalf(0x477f_f000), 0x7c00);
        eq(SoftFloat.toHalf(0x3300_0000), 0);
        eq(SoftFloat.toHalf(0x3300_0001), 1);
        eq(SoftFloat.toHalf(0xb3c0_0000), 0x8002);
        eq(SoftFloat.toHalf(0x387f_f000), 0x0400);
        eq(SoftFloat.toBrain(0x3f80_8000), 0x3f80);
        eq(SoftFloat.toBrain(0x3f81_8000), 0x3f82);
        eq(SoftFloat.toBrain(0x7f7f_8000), 0x7f80);
    }

    function test_quantising() public pure {
        // 2.5, 3.5, -0.5, 127.49999, 127.5, -1000, 0.50000006
        uint256[7] memory values = [
            uint256(0x4020_0000), 0x4060_0000, 0xbf00_0000, 0x42fe_ffff, 0x42ff_0000, 0xc47a_0000, 0x3f00_0001
        ];
        int256[7] memory wanted = [int256(2), 4, 0, 127, 127, -127, 1];
        for (uint256 i = 0; i < values.length; ++i) {
            vm.assertTrue(SoftFloat.toInt8(values[i]) == wanted[i]);
        }
        vm.assertTrue(SoftFloat.toInt8(SIGN | INFINITY) == -127);
    }

    function test_exponentials() public pure {
        eq(SoftFloat.exp(0), ONE);
        eq(SoftFloat.exp(SIGN), ONE);
        eq(SoftFloat.exp(0xc2ae_0001), 0);
        eq(SoftFloat.exp(SIGN | INFINITY), 0);
        vm.assertTrue(SoftFloat.exp(0xc2ae_0000) != 0);
        eq(SoftFloat.sigmoid(0), 0x3f00_0000);
        eq(SoftFloat.sigmoid(MOST), ONE);
        eq(SoftFloat.silu(0xc2c8_0000), SIGN);
        vm.assertEq(SoftFloat.toFixed40(ONE), 1 << 40);
        vm.assertEq(SoftFloat.toFixed40(0x3f7f_ffff), 0xff_ffff << 16);
        vm.assertEq(SoftFloat.toFixed40(0x2b7f_ffff), 0);
    }

    /// Whole numbers up to 2^24 are exact, and so is all that keeps to them.
    function testFuzz_wholeNumbers(int24 a, int24 b) public pure {
        (uint256 x, uint256 y) = (SoftFloat.fromInt(a), SoftFloat.fromInt(b));
        int256 c = int256(a) / 4096;
        int256 d = int256(b) / 4096;
        eq(SoftFloat.add(x, y), SoftFloat.fromInt(int256(a) + b));
        vm.assertEq(SoftFloat.gt(x, y), a > b);
        eq(SoftFloat.mul(SoftFloat.fromInt(c), SoftFloat.fromInt(d)), sign(c, d) | SoftFloat.fromInt(c * d));
        if (c != 0) eq(SoftFloat.sqrt(SoftFloat.fromInt(c * c)), SoftFloat.fromInt(c < 0 ? -c : c));
        if (c * d != 0) {
            eq(SoftFloat.div(SoftFloat.fromInt(c * d), SoftFloat.fromInt(d)), SoftFloat.fromInt(c));
        }
    }

    /// Of a product that is zero, which whole numbers do not tell.
    function sign(int256 c, int256 d) internal pure returns (uint256) {
        return c * d == 0 && (c < 0 || d < 0) ? SIGN : 0;
    }

    function testFuzz_orderDoesNotMatter(uint32 a, uint32 b, uint32 c) public pure {
        eq(SoftFloat.add(a, b), SoftFloat.add(b, a));
        eq(SoftFloat.mul(a, b), SoftFloat.mul(b, a));
        eq(SoftFloat.fma(a, b, c), SoftFloat.fma(b, a, c));
        vm.assertFalse(SoftFloat.gt(a, b) && SoftFloat.gt(b, a));
    }

    /// A rounded product is what fma gives with the zero that changes no sign.
    function testFuzz_productsAreFmas(uint32 a, uint32 b) public pure {
        eq(SoftFloat.mul(a, b), SoftFloat.fma(a, b, (a ^ b) & SIGN));
        eq(SoftFloat.div(a, ONE), SoftFloat.mul(a, ONE));
    }

    /// Numbers of 16 bits survive, whichever they are.
    function testFuzz_shortNumbersSurvive(uint16 bits) public pure {
        uint256 wide = SoftFloat.fromHalf(bits);
        if (!SoftFloat.isNan(wide)) eq(SoftFloat.toHalf(wide), bits);
        wide = SoftFloat.fromBrain(bits);
        if (!SoftFloat.isNan(wide)) eq(SoftFloat.toBrain(wide), bits);
    }

    /// Results are within half of their last place of the exact ones, which integers of 256 bits hold here.
    function testFuzz_fmaIsTheNearest(uint32 a, uint32 b, uint32 c) public pure {
        (a, b, c) = (middle(a), middle(b), middle(c));
        // In units of 2^-60.
        int256 exact = exactly(a) * exactly(b) + exactly(c) * 2 ** 30;
        uint256 result = SoftFloat.fma(a, b, c);
        if (exact == 0) {
            eq(result, 0);
            return;
        }
        vm.assertEq(result & SIGN != 0, exact < 0);
        uint256 size = uint256(exact < 0 ? -exact : exact);
        uint256 fraction = result & 0x7f_ffff | 0x80_0000;
        uint256 exponent = (result >> 23) & 0xff;
        if (exponent <= 90) {
            vm.assertEq(size << (90 - exponent), fraction);
            return;
        }
        uint256 place = 1 << (exponent - 90);
        uint256 apart = size > fraction * place ? size - fraction * place : fraction * place - size;
        vm.assertLe(2 * apart, place);
        if (2 * apart == place) vm.assertEq(fraction % 2, 0);
    }

    /// Between 2^-7 and 2^9.
    function middle(uint32 a) internal pure returns (uint32) {
        return a & 0x807f_ffff | (120 + (a >> 23) % 16) << 23;
    }

    /// In units of 2^-30.
    function exactly(uint256 a) internal pure returns (int256) {
        int256 size = int256((a & 0x7f_ffff | 0x80_0000) << (((a >> 23) & 0xff) - 120));
        return a & SIGN == 0 ? size : -size;
    }
}
