// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

/// @title binary32 in integers
/// @notice IEEE 754 arithmetic, rounded to nearest even with subnormals kept, as the arithmetic that model hashes
/// name defines it. A number is its 32 bits, in the low bits of a word whose others are zero. Every NaN that an
/// operation gives is the quiet one without a sign; every NaN that it takes is a NaN.
/// @dev Nothing here overflows: magnitudes that are rounded stay below 2^128, and what is shifted is bounded before.
library SoftFloat {
    /// @notice 1.
    uint256 internal constant ONE = 0x3f80_0000;
    /// @notice The one infinity.
    uint256 internal constant INFINITY = 0x7f80_0000;
    /// @notice What operations give for no number.
    uint256 internal constant NAN = 0x7fc0_0000;
    /// @notice The sign's bit.
    uint256 internal constant SIGN = 0x8000_0000;

    uint256 private constant MAGNITUDE = 0x7fff_ffff;
    uint256 private constant FRACTION = 0x007f_ffff;
    uint256 private constant HIDDEN = 0x0080_0000;
    /// How far apart two addends are at most aligned: what lies further below is less than a quarter of the last
    /// place of the other (48 bits are a product's), so that one bit stands for all of it.
    uint256 private constant REACH = 52;

    /// Below this exp is +0: -87.
    uint256 private constant EXP_FLOOR = 0xc2ae_0000;
    /// 1 / ln 2.
    uint256 private constant EXP_SCALE = 0x3fb8_aa3b;
    /// 1.5 * 2^23: added and subtracted, it rounds to an integer and leaves it in the low bits.
    uint256 private constant EXP_SHIFT = 0x4b40_0000;
    /// -ln 2 in two parts.
    uint256 private constant EXP_LN2_HIGH = 0xbf31_7200;
    uint256 private constant EXP_LN2_LOW = 0xb5bf_be8e;

    /// @notice a + b.
    function add(uint256 a, uint256 b) internal pure returns (uint256) {
        return fma(a, ONE, b);
    }

    /// @notice a - b.
    function sub(uint256 a, uint256 b) internal pure returns (uint256) {
        return fma(a, ONE, b ^ SIGN);
    }

    /// @notice a * b.
    function mul(uint256 a, uint256 b) internal pure returns (uint256) {
        unchecked {
            uint256 sign = (a ^ b) & SIGN;
            if (_isSpecial(a) || _isSpecial(b)) return _productOfSpecials(a, b);
            (uint256 m, int256 e) = _parts(a);
            (uint256 n, int256 f) = _parts(b);
            return _round(sign, m * n, e + f);
        }
    }

    /// @notice a * b + c, rounded once.
    function fma(uint256 a, uint256 b, uint256 c) internal pure returns (uint256) {
        unchecked {
            if (_isSpecial(a) || _isSpecial(b) || _isSpecial(c)) return _fmaOfSpecials(a, b, c);
            uint256 sign = (a ^ b) & SIGN;
            (uint256 m, int256 e) = _parts(a);
            {
                (uint256 n, int256 f) = _parts(b);
                (m, e) = (m * n, e + f);
            }
            (uint256 l, int256 g) = _parts(c);
            if (m == 0) return l == 0 && sign != c & SIGN ? 0 : c;
            if (l == 0) return _round(sign, m, e);
            (m, l, e) = _align(m, e, l, g);
            if (sign == c & SIGN) return _round(sign, m + l, e);
            if (m == l) return 0;
            return m > l ? _round(sign, m - l, e) : _round(sign ^ SIGN, l - m, e);
        }
    }

    /// @notice a / b.
    function div(uint256 a, uint256 b) internal pure returns (uint256) {
        unchecked {
            uint256 sign = (a ^ b) & SIGN;
            if (isNan(a) || isNan(b)) return NAN;
            if (a & MAGNITUDE == INFINITY) return b & MAGNITUDE == INFINITY ? NAN : sign | INFINITY;
            if (b & MAGNITUDE == INFINITY) return sign;
            if (b & MAGNITUDE == 0) return a & MAGNITUDE == 0 ? NAN : sign | INFINITY;
            (uint256 m, int256 e) = _parts(a);
            (uint256 n, int256 f) = _parts(b);
            m <<= 64;
            // The last bit says whether there is a remainder.
            uint256 quotient = (m / n) << 1;
            if (m % n != 0) quotient |= 1;
            return _round(sign, quotient, e - f - 65);
        }
    }

    /// @notice The square root.
    function sqrt(uint256 a) internal pure returns (uint256) {
        unchecked {
            if (a & MAGNITUDE == 0 || a == INFINITY) return a;
            if (isNan(a) || a & SIGN != 0) return NAN;
            (uint256 m, int256 e) = _parts(a);
            if (e & 1 != 0) (m, e) = (m << 1, e - 1);
            m <<= 64;
            uint256 root = Math.sqrt(m);
            uint256 rest = root * root == m ? 0 : 1;
            return _round(0, root << 1 | rest, (e - 64) / 2 - 1);
        }
    }

    /// @notice Whether a > b; never for a NaN.
    function gt(uint256 a, uint256 b) internal pure returns (bool) {
        if (isNan(a) || isNan(b)) return false;
        if ((a | b) & MAGNITUDE == 0) return false;
        if ((a ^ b) & SIGN != 0) return b & SIGN != 0;
        return a & SIGN == 0 ? a > b : a < b;
    }

    /// @notice b if it is larger, else a.
    function max(uint256 a, uint256 b) internal pure returns (uint256) {
        return gt(b, a) ? b : a;
    }

    /// @notice Whether a is a NaN.
    function isNan(uint256 a) internal pure returns (bool) {
        return a & MAGNITUDE > INFINITY;
    }

    /// @notice Whether a is neither an infinity nor a NaN.
    function isFinite(uint256 a) internal pure returns (bool) {
        return !_isSpecial(a);
    }

    /// @notice The number without its sign.
    function abs(uint256 a) internal pure returns (uint256) {
        return a & MAGNITUDE;
    }

    /// @notice The nearest number to an integer of less than 2^127.
    function fromInt(int256 i) internal pure returns (uint256) {
        unchecked {
            return i < 0 ? _round(SIGN, uint256(-i), 0) : _round(0, uint256(i), 0);
        }
    }

    /// @notice The value of binary16's bits.
    function fromHalf(uint256 half) internal pure returns (uint256) {
        unchecked {
            uint256 sign = (half & 0x8000) << 16;
            uint256 magnitude = half & 0x7fff;
            if (magnitude > 0x7c00) return NAN;
            if (magnitude == 0x7c00) return sign | INFINITY;
            if (magnitude < 0x0400) return _round(sign, magnitude, -24);
            // The exponent's bias is 127 instead of 15.
            return sign | (magnitude << 13) + (112 << 23);
        }
    }

    /// @notice The nearest binary16, as bits.
    function toHalf(uint256 a) internal pure returns (uint256) {
        unchecked {
            uint256 sign = (a & SIGN) >> 16;
            uint256 magnitude = a & MAGNITUDE;
            if (magnitude > INFINITY) return 0x7e00;
            // 65520 lies between the largest number and 65536, and goes to even: infinity.
            if (magnitude >= 0x477f_f000) return sign | 0x7c00;
            if (magnitude >= 0x3880_0000) return sign | _shiftRounded(magnitude - (112 << 23), 13);
            (uint256 m, int256 e) = _parts(magnitude);
            // Multiples of 2^-24; a shift of more than 26 leaves nothing.
            uint256 down = uint256(-24 - e);
            return down > 26 ? sign : sign | _shiftRounded(m, down);
        }
    }

    /// @notice The value of bfloat16's bits.
    function fromBrain(uint256 brain) internal pure returns (uint256) {
        return brain << 16;
    }

    /// @notice The nearest bfloat16, as bits; 0x7fc0 for a NaN.
    function toBrain(uint256 a) internal pure returns (uint256) {
        return isNan(a) ? 0x7fc0 : _shiftRounded(a, 16);
    }

    /// @notice The nearest integer, ties to even, between -127 and 127; 0 for a NaN.
    function toInt8(uint256 a) internal pure returns (int256) {
        unchecked {
            uint256 magnitude = a & MAGNITUDE;
            if (magnitude > INFINITY) return 0;
            uint256 rounded = 127;
            // Below 127.5.
            if (magnitude < 0x42ff_0000) {
                (uint256 m, int256 e) = _parts(magnitude);
                rounded = e < -26 ? 0 : _shiftRounded(m, uint256(-e));
            }
            return a & SIGN == 0 ? int256(rounded) : -int256(rounded);
        }
    }

    /// @notice a * 2^40 without its fraction, for a in [0, 1]; 0 for what is not positive, or a NaN.
    function toFixed40(uint256 a) internal pure returns (uint256) {
        unchecked {
            if (!gt(a, 0)) return 0;
            if (a > ONE) a = ONE;
            (uint256 m, int256 e) = _parts(a);
            int256 up = e + 40;
            return up >= 0 ? m << uint256(up) : m >> uint256(-up);
        }
    }

    /// @notice e^x in the steps of the definition, for x up to 88; +0 below -87.
    function exp(uint256 x) internal pure returns (uint256) {
        unchecked {
            if (isNan(x)) return NAN;
            if (gt(EXP_FLOOR, x)) return 0;
            uint256 t = fma(x, EXP_SCALE, EXP_SHIFT);
            uint256 n = sub(t, EXP_SHIFT);
            uint256 r = fma(n, EXP_LN2_LOW, fma(n, EXP_LN2_HIGH, x));
            uint256 p = fma(0x3ab5_11e8, r, 0x3c09_1d10);
            p = fma(p, r, 0x3d2a_ac79);
            p = fma(p, r, 0x3e2a_aa49);
            p = fma(p, r, 0x3eff_fffe);
            p = fma(p, r, ONE);
            p = fma(p, r, ONE);
            uint256 result = (p + ((t - EXP_SHIFT) << 23)) & 0xffff_ffff;
            return isNan(result) ? NAN : result;
        }
    }

    /// @notice 1 / (1 + e^-x).
    function sigmoid(uint256 x) internal pure returns (uint256) {
        uint256 e = exp(abs(x) | SIGN);
        uint256 d = add(ONE, e);
        return gt(0, x) ? div(e, d) : div(ONE, d);
    }

    /// @notice x * sigmoid(x).
    function silu(uint256 x) internal pure returns (uint256) {
        return mul(x, sigmoid(x));
    }

    /// An infinity or a NaN.
    function _isSpecial(uint256 a) private pure returns (bool) {
        return a & INFINITY == INFINITY;
    }

    /// A finite number's magnitude: m * 2^e.
    function _parts(uint256 a) private pure returns (uint256 m, int256 e) {
        unchecked {
            m = a & FRACTION;
            e = int256((a >> 23) & 0xff);
            if (e == 0) return (m, -149);
            return (m | HIDDEN, e - 150);
        }
    }

    /// Two magnitudes that are not zero, m * 2^e of a product and l * 2^g of a number, on one exponent. If they lie
    /// further apart than `REACH`, the smaller becomes 1.
    function _align(uint256 m, int256 e, uint256 l, int256 g)
        private
        pure
        returns (uint256, uint256, int256)
    {
        unchecked {
            if (e > g) {
                uint256 up = uint256(e - g);
                return up > REACH ? (m << REACH, 1, e - int256(REACH)) : (m << up, l, g);
            }
            uint256 down = uint256(g - e);
            return down > REACH ? (1, l << REACH, g - int256(REACH)) : (m, l << down, e);
        }
    }

    /// The number nearest to m * 2^e with a sign, for m below 2^128 and e of -400 at least.
    function _round(uint256 sign, uint256 m, int256 e) private pure returns (uint256) {
        unchecked {
            if (m == 0) return sign;
            // 24 bits stay, or fewer where the last place would fall below 2^-149.
            int256 down = int256(Math.log2(m)) - 23;
            if (down < -149 - e) down = -149 - e;
            uint256 fraction = down > 0 ? _shiftRounded(m, uint256(down)) : m << uint256(-down);
            // The hidden bit, and a carry out of the fraction, add to the exponent as they should.
            uint256 magnitude = (uint256(e + down + 149) << 23) + fraction;
            return sign | (magnitude < INFINITY ? magnitude : INFINITY);
        }
    }

    /// m / 2^down to the nearest integer, ties to even, for `down` from 1 to 254.
    function _shiftRounded(uint256 m, uint256 down) private pure returns (uint256) {
        unchecked {
            return (m + (1 << (down - 1)) - 1 + ((m >> down) & 1)) >> down;
        }
    }

    function _productOfSpecials(uint256 a, uint256 b) private pure returns (uint256) {
        if (isNan(a) || isNan(b) || a & MAGNITUDE == 0 || b & MAGNITUDE == 0) return NAN;
        return (a ^ b) & SIGN | INFINITY;
    }

    function _fmaOfSpecials(uint256 a, uint256 b, uint256 c) private pure returns (uint256) {
        if (isNan(c)) return NAN;
        if (!_isSpecial(a) && !_isSpecial(b)) return c;
        uint256 product = _productOfSpecials(a, b);
        return product != NAN && _isSpecial(c) && product != c ? NAN : product;
    }
}
