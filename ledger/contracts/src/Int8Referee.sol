// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IReferee, Kind, Leaf} from "./IReferee.sol";
import {Products} from "./lib/Products.sol";
import {SoftFloat} from "./lib/SoftFloat.sol";

/// @title The referee of integer weights
/// @notice Computes one word of a trace from its inputs, to the bit as docs/numerics.md defines it and as
/// docs/disputes.md lays it out. It has no state and trusts nobody: whoever calls it makes sure that the inputs are
/// the trace's and the weights the model's.
contract Int8Referee is IReferee {
    using SoftFloat for uint256;

    /// Largest magnitudes below this quantise to zero: 2^-100.
    uint256 private constant QUANTISE_FLOOR = 27 << 23;
    /// 127.
    uint256 private constant QUANTISE_MOST = 0x42fe_0000;
    /// Keys of a block.
    uint256 private constant BLOCK = 64;

    /// @notice A leaf has not the numbers of inputs and bytes that its kind takes.
    error BadShape(Kind kind);

    /// @inheritdoc IReferee
    function recompute(Leaf memory leaf) external pure returns (uint32) {
        return uint32(_word(leaf));
    }

    function _word(Leaf memory leaf) private pure returns (uint256) {
        Kind kind = leaf.kind;
        if (kind == Kind.Segment) return _segment(leaf);
        if (kind == Kind.Embed) return _embed(leaf);
        if (leaf.weight.length != 0) revert BadShape(kind);
        if (kind == Kind.GroupScale) return _groupScale(leaf.inputs);
        if (kind == Kind.GroupQuants) return _groupQuants(leaf.inputs);
        if (kind == Kind.Chain) return _chain(leaf);
        if (kind == Kind.Max) return _max(leaf.inputs);
        if (kind == Kind.Tree) return _tree(leaf);
        if (kind == Kind.Square) return _square(leaf.inputs);
        return _fixed(leaf);
    }

    /// Kinds with a fixed number of inputs.
    function _fixed(Leaf memory leaf) private pure returns (uint256) {
        Kind kind = leaf.kind;
        uint256[5] memory x = _five(leaf);
        if (kind == Kind.Copy) return x[0];
        if (kind == Kind.Add) return x[0].add(x[1]);
        if (kind == Kind.Rms) return _rms(x[0], leaf.numbers);
        if (kind == Kind.Scale) return x[0].mul(x[1]).mul(x[2]);
        if (kind == Kind.Query) return _rotated(x, leaf.numbers[0]).mul(leaf.numbers[1]);
        if (kind == Kind.Key) return _rotated(x, leaf.numbers[0]).toHalf().fromHalf();
        if (kind == Kind.Half) return x[0].toHalf().fromHalf();
        if (kind == Kind.Weight) return x[0].sub(x[1]).exp();
        if (kind == Kind.Fold) return _fold(x);
        if (kind == Kind.Divide) return x[0].div(x[1]);
        if (kind == Kind.Gate) return x[0].silu().mul(x[1]);
        if (kind == Kind.Out) return x[0].add(x[1]).toBrain().fromBrain();
        return 0;
    }

    /// The inputs, of which there have to be as many as the kind takes.
    function _five(Leaf memory leaf) private pure returns (uint256[5] memory x) {
        uint32[] memory inputs = leaf.inputs;
        if (inputs.length != _inputs(leaf.kind)) revert BadShape(leaf.kind);
        for (uint256 i = 0; i < inputs.length; ++i) {
            x[i] = inputs[i];
        }
    }

    function _inputs(Kind kind) private pure returns (uint256) {
        if (kind == Kind.Zero) return 0;
        if (kind == Kind.Copy || kind == Kind.Rms || kind == Kind.Half) return 1;
        if (kind == Kind.Scale) return 3;
        if (kind == Kind.Query || kind == Kind.Key) return 4;
        if (kind == Kind.Fold) return 5;
        return 2;
    }

    function _square(uint32[] memory x) private pure returns (uint256) {
        if (x.length == 0 || x.length > 2) revert BadShape(Kind.Square);
        return uint256(x[0]).fma(x[0], x.length == 2 ? x[1] : 0);
    }

    /// 1 / sqrt(s / n + eps)
    function _rms(uint256 s, uint32[4] memory numbers) private pure returns (uint256) {
        uint256 n = SoftFloat.fromInt(int256(uint256(numbers[0])));
        return SoftFloat.ONE.div(s.div(n).add(numbers[1]).sqrt());
    }

    /// The first or the second of a rotated pair: a * c - b * s or b * c + a * s, each operation rounded.
    function _rotated(uint256[5] memory x, uint256 which) private pure returns (uint256) {
        if (which == 0) return x[0].mul(x[2]).sub(x[1].mul(x[3]));
        return x[1].mul(x[2]).add(x[0].mul(x[3]));
    }

    /// What blocks gave so far (X', relative to M') and what another gave (x, relative to m), relative to M.
    function _fold(uint256[5] memory x) private pure returns (uint256) {
        uint256 before = x[4].mul(x[3].sub(x[2]).exp());
        return x[0].fma(x[1].sub(x[2]).exp(), before);
    }

    function _max(uint32[] memory x) private pure returns (uint256 most) {
        if (x.length == 0 || x.length > BLOCK) revert BadShape(Kind.Max);
        most = x[0];
        for (uint256 i = 1; i < x.length; ++i) {
            most = most.max(x[i]);
        }
    }

    /// The halving tree over a block, what is missing being +0.
    function _tree(Leaf memory leaf) private pure returns (uint256) {
        uint256 first = leaf.numbers[0];
        uint256 count = leaf.inputs.length;
        if (count == 0 || first + count > BLOCK) revert BadShape(Kind.Tree);
        uint256[] memory lanes = new uint256[](BLOCK);
        for (uint256 i = 0; i < count; ++i) {
            lanes[first + i] = leaf.inputs[i];
        }
        for (uint256 width = BLOCK / 2; width > 0; width /= 2) {
            for (uint256 l = 0; l < width; ++l) {
                lanes[l] = lanes[l].add(lanes[l + width]);
            }
        }
        return lanes[0];
    }

    function _chain(Leaf memory leaf) private pure returns (uint256 sum) {
        uint256 n = leaf.numbers[0];
        uint256 from = leaf.numbers[1] == 0 ? 0 : 1;
        uint32[] memory x = leaf.inputs;
        if (n > BLOCK || x.length != from + 2 * n) revert BadShape(Kind.Chain);
        if (from == 1) sum = x[0];
        for (uint256 i = from; i < from + n; ++i) {
            sum = uint256(x[i]).fma(x[i + n], sum);
        }
    }

    /// amax / 127. A group that is all but zero, or that is no numbers (a fault), has none.
    function _groupScale(uint32[] memory x) private pure returns (uint256) {
        if (x.length == 0 || x.length > Products.SEGMENT) revert BadShape(Kind.GroupScale);
        uint256 most = 0;
        for (uint256 i = 0; i < x.length; ++i) {
            uint256 magnitude = uint256(x[i]).abs();
            if (magnitude > most) most = magnitude;
        }
        if (most < QUANTISE_FLOOR || !most.isFinite()) return 0;
        return most.div(QUANTISE_MOST);
    }

    /// Four int8, the first in the lowest byte.
    function _groupQuants(uint32[] memory x) private pure returns (uint256 quants) {
        if (x.length == 0 || x.length > 5) revert BadShape(Kind.GroupQuants);
        uint256 s = x[0];
        if (s.abs() == 0) return 0;
        uint256 inverse = SoftFloat.ONE.div(s);
        for (uint256 i = 1; i < x.length; ++i) {
            // Floats: the definition divides first.
            // slither-disable-next-line divide-before-multiply
            uint256 quant = uint8(int8(uint256(x[i]).mul(inverse).toInt8()));
            quants |= quant << (8 * (i - 1));
        }
    }

    /// A segment's sum, added to the word before it, and the bias to that.
    function _segment(Leaf memory leaf) private pure returns (uint256 sum) {
        (uint256 format, uint256 count) = (leaf.numbers[0], leaf.numbers[1]);
        uint32[] memory x = leaf.inputs;
        (uint256 inputs, uint256 size) = Products.shape(format, count);
        uint256 before = leaf.numbers[2] == 0 ? 0 : 1;
        uint256 bias = leaf.numbers[3] == 0 ? 0 : 1;
        if (inputs == 0 || x.length != inputs + before + bias || leaf.weight.length != size) {
            revert BadShape(Kind.Segment);
        }
        sum = Products.segment(format, count, x, leaf.weight);
        if (before == 1) sum = uint256(x[inputs]).add(sum);
        if (bias == 1) sum = sum.add(x[inputs + before]);
    }

    /// A value of an embedding's row, times the family's constant if it has one, as bfloat16.
    function _embed(Leaf memory leaf) private pure returns (uint256 word) {
        (uint256 format, uint256 index) = (leaf.numbers[0], leaf.numbers[1]);
        uint256 size = leaf.weight.length;
        if (leaf.inputs.length != 0 || !Products.holds(format, size, index)) revert BadShape(Kind.Embed);
        word = Products.decode(format, leaf.weight, index);
        if (leaf.numbers[2] != 0) word = word.mul(leaf.numbers[3]);
        return word.toBrain().fromBrain();
    }
}
