// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {SoftFloat} from "./SoftFloat.sol";

/// @title Segments of dot products
/// @notice What one segment of a row of weights (256 values at most) adds to an output, for every format that
/// weights are stored in. Sums of integers are exact, those of floats in the order of the definition.
library Products {
    using SoftFloat for uint256;

    /// @notice Groups of 32: an f16 scale, 32 int8.
    uint256 internal constant Q8 = 0;
    /// @notice Groups of 32: an f16 scale, 16 bytes of two 4-bit values.
    uint256 internal constant Q4 = 1;
    /// @notice Plain bfloat16, before which activations are floats.
    uint256 internal constant BF16 = 2;
    /// @notice Plain binary32, before which activations are floats.
    uint256 internal constant F32 = 3;
    /// @notice Super-blocks of 256: 4-bit values, a scale and a minimum of 6 bits for each 32.
    uint256 internal constant Q4K = 4;
    /// @notice Super-blocks of 256: 6-bit values, an int8 scale for each 16.
    uint256 internal constant Q6K = 5;

    /// @notice Most values of a segment.
    uint256 internal constant SEGMENT = 256;
    /// @notice Values that share a scale.
    uint256 internal constant GROUP = 32;
    /// @notice Words of four int8 that hold a group of activations.
    uint256 internal constant GROUP_WORDS = 8;
    uint256 private constant BLOCK_WORDS = 64;

    /// @notice The segment's sum, from +0.
    /// @param format How the weights are stored.
    /// @param count Groups of 32; 1 for a super-block; values for floats.
    /// @param x Words of four int8 (the first in the lowest byte), then a scale for each group or super-block; or
    /// floats. More may follow.
    /// @param weight The weights' bytes.
    function segment(uint256 format, uint256 count, uint32[] memory x, bytes memory weight)
        internal
        pure
        returns (uint256)
    {
        if (format == Q8 || format == Q4) return _groups(format, count, x, weight);
        if (format == Q4K) return _superBlock4(x, weight);
        if (format == Q6K) return _superBlock6(x, weight);
        return _floats(format, count, x, weight);
    }

    /// @notice Inputs that a segment takes, and bytes of its weights; zeros if there is no such segment.
    /// @param format How the weights are stored.
    /// @param count Groups of 32; 1 for a super-block; values for floats.
    function shape(uint256 format, uint256 count) internal pure returns (uint256 inputs, uint256 bytes_) {
        bool isFloat = format == BF16 || format == F32;
        if (count == 0 || count > (isFloat ? SEGMENT : SEGMENT / GROUP)) return (0, 0);
        if (format == Q8) return (count * (GROUP_WORDS + 1), count * 34);
        if (format == Q4) return (count * (GROUP_WORDS + 1), count * 18);
        if (isFloat) return (count, format == BF16 ? count * 2 : count * 4);
        if (count != 1 || format > Q6K) return (0, 0);
        return (BLOCK_WORDS + 1, format == Q4K ? 144 : 210);
    }

    /// @notice Whether so many bytes are whole groups of one segment that hold a value `index`.
    /// @param format How the weights are stored.
    /// @param size Bytes.
    /// @param index Which value of the segment.
    function holds(uint256 format, uint256 size, uint256 index) internal pure returns (bool) {
        uint256 values = format == BF16 || format == F32 ? 1 : format == Q8 || format == Q4 ? GROUP : SEGMENT;
        (, uint256 unit) = shape(format, 1);
        return unit != 0 && size % unit == 0 && index < size / unit * values && index < SEGMENT;
    }

    /// @notice Value `index` of a segment that holds it.
    /// @param format How the weights are stored.
    /// @param weight The weights' bytes.
    /// @param index Which value of the segment.
    function decode(uint256 format, bytes memory weight, uint256 index) internal pure returns (uint256) {
        unchecked {
            if (format == BF16 || format == F32) return _float(format, weight, index);
            if (format == Q8 || format == Q4) {
                uint256 offset = index / GROUP * _groupSize(format);
                return
                    SoftFloat.fromInt(_value(format, weight, offset, index % GROUP))
                        .mul(_half(weight, offset));
            }
            if (format == Q4K) {
                (uint256 part, uint256 min) = _scaleAndMin(weight, index / GROUP);
                uint256 product = _half(weight, 0).mul(SoftFloat.fromInt(int256(part)));
                product = product.mul(SoftFloat.fromInt(int256(_nibble4(weight, index))));
                return product.sub(_half(weight, 2).mul(SoftFloat.fromInt(int256(min))));
            }
            uint256 d = _half(weight, 208).mul(SoftFloat.fromInt(_scale6(weight, index / 16)));
            return d.mul(SoftFloat.fromInt(_value6(weight, index)));
        }
    }

    function _groups(uint256 format, uint256 count, uint32[] memory x, bytes memory weight)
        private
        pure
        returns (uint256 sum)
    {
        unchecked {
            uint256 size = _groupSize(format);
            for (uint256 g = 0; g < count; ++g) {
                int256 dot = 0;
                for (uint256 i = 0; i < GROUP; ++i) {
                    dot += _value(format, weight, g * size, i) * _int8(x, g * GROUP + i);
                }
                uint256 product = _half(weight, g * size).mul(x[count * GROUP_WORDS + g]);
                sum = product.fma(SoftFloat.fromInt(dot), sum);
            }
        }
    }

    function _floats(uint256 format, uint256 count, uint32[] memory x, bytes memory weight)
        private
        pure
        returns (uint256 sum)
    {
        unchecked {
            for (uint256 k = 0; k < count; ++k) {
                sum = _float(format, weight, k).fma(x[k], sum);
            }
        }
    }

    /// `q4_k`: f16 d and dmin, 12 bytes of scales and minima, 128 bytes of pairs of values.
    function _superBlock4(uint32[] memory x, bytes memory weight) private pure returns (uint256) {
        unchecked {
            int256 products = 0;
            int256 minima = 0;
            for (uint256 j = 0; j < SEGMENT / GROUP; ++j) {
                int256 dot = 0;
                int256 sum = 0;
                for (uint256 k = j * GROUP; k < (j + 1) * GROUP; ++k) {
                    int256 q = _int8(x, k);
                    dot += int256(_nibble4(weight, k)) * q;
                    sum += q;
                }
                (uint256 part, uint256 min) = _scaleAndMin(weight, j);
                products += int256(part) * dot;
                minima += int256(min) * sum;
            }
            uint256 s = x[BLOCK_WORDS];
            uint256 offset = _half(weight, 2).mul(s).mul(SoftFloat.fromInt(minima));
            return _half(weight, 0).mul(s).fma(SoftFloat.fromInt(products), offset ^ SoftFloat.SIGN);
        }
    }

    /// `q6_k`: 128 bytes of low nibbles, 64 of upper two bits, 16 int8 scales, f16 d.
    function _superBlock6(uint32[] memory x, bytes memory weight) private pure returns (uint256) {
        unchecked {
            int256 products = 0;
            for (uint256 j = 0; j < 16; ++j) {
                int256 dot = 0;
                for (uint256 k = 16 * j; k < 16 * (j + 1); ++k) {
                    dot += _value6(weight, k) * _int8(x, k);
                }
                products += _scale6(weight, j) * dot;
            }
            return _half(weight, 208).mul(x[BLOCK_WORDS]).mul(SoftFloat.fromInt(products));
        }
    }

    function _groupSize(uint256 format) private pure returns (uint256) {
        return format == Q8 ? 34 : 18;
    }

    /// Value `i` of the group of `q8` or `q4` at byte `offset`.
    function _value(uint256 format, bytes memory weight, uint256 offset, uint256 i)
        private
        pure
        returns (int256)
    {
        unchecked {
            if (format == Q8) return int8(uint8(weight[offset + 2 + i]));
            uint256 pair = uint8(weight[offset + 2 + i % 16]);
            return int256(i < 16 ? pair & 15 : pair >> 4) - 8;
        }
    }

    function _float(uint256 format, bytes memory weight, uint256 k) private pure returns (uint256) {
        unchecked {
            if (format == BF16) return _little16(weight, 2 * k).fromBrain();
            return _little16(weight, 4 * k) | _little16(weight, 4 * k + 2) << 16;
        }
    }

    /// Value `k` of a `q4_k` super-block. 32 bytes hold two sub-blocks, the first in the low nibbles.
    function _nibble4(bytes memory weight, uint256 k) private pure returns (uint256) {
        unchecked {
            uint256 pair = uint8(weight[16 + k / 64 * 32 + k % 32]);
            return k % 64 < 32 ? pair & 15 : pair >> 4;
        }
    }

    /// Scale and minimum of a `q4_k` sub-block: bytes 4 to 7 hold the first four scales and 8 to 11 the first four
    /// minima in six bits; bytes 12 to 15 the low nibbles of the others, whose upper bits are the top ones of those.
    function _scaleAndMin(bytes memory weight, uint256 j) private pure returns (uint256 part, uint256 min) {
        unchecked {
            uint256 first = uint8(weight[4 + j % 4]);
            uint256 second = uint8(weight[8 + j % 4]);
            if (j < 4) return (first & 63, second & 63);
            uint256 low = uint8(weight[8 + j]);
            return (low & 15 | first >> 6 << 4, low >> 4 | second >> 6 << 4);
        }
    }

    /// Value `k` of a `q6_k` super-block. Its halves have 64 bytes of nibbles and 32 of upper bits each.
    function _value6(bytes memory weight, uint256 k) private pure returns (int256) {
        unchecked {
            uint256 half = k / 128;
            uint256 within = k % 128;
            uint256 low = uint8(weight[64 * half + within % 64]) >> within / 64 * 4 & 15;
            uint256 high = uint8(weight[128 + 32 * half + within % 32]) >> within / 32 * 2 & 3;
            return int256(low | high << 4) - 32;
        }
    }

    /// Scale of a `q6_k` sub-block.
    function _scale6(bytes memory weight, uint256 j) private pure returns (int256) {
        unchecked {
            return int8(uint8(weight[192 + j]));
        }
    }

    /// Activation `i` of words of four int8.
    function _int8(uint32[] memory x, uint256 i) private pure returns (int256) {
        return int8(uint8(x[i / 4] >> (i % 4 * 8)));
    }

    /// The value of the f16 at byte `offset`.
    function _half(bytes memory weight, uint256 offset) private pure returns (uint256) {
        return _little16(weight, offset).fromHalf();
    }

    function _little16(bytes memory weight, uint256 offset) private pure returns (uint256) {
        unchecked {
            return uint256(uint8(weight[offset])) | uint256(uint8(weight[offset + 1])) << 8;
        }
    }
}
