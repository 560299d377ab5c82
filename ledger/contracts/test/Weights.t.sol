// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {vm} from "../script/Vm.sol";
import {ModelRegistry} from "../src/ModelRegistry.sol";
import {Merkle} from "../src/lib/Merkle.sol";
import {Weights} from "../src/lib/Weights.sol";
import {Base} from "./Base.sol";
import {WiringHarness} from "./mocks/WiringHarness.sol";

/// A model of two units, the first of which has a matrix of two rows of two segments and a vector.
contract WeightsTest is Base {
    WiringHarness internal harness;
    bytes internal constant DESCRIPTION = "a unit";
    bytes internal constant FIRST = hex"0001020304050607";
    bytes internal constant VECTOR = hex"0000803f00000040";
    bytes internal constant ROTATIONS = hex"0000000001000000110000002200000033000000440000005500000066";
    Weights.Opened internal matrix;
    Weights.Opened internal vector;
    Weights.Contents internal contents;
    bytes32 internal unit;
    bytes32 internal described;
    bytes32[] internal path;

    function setUp() public override {
        super.setUp();
        harness = new WiringHarness();
        bytes32 sibling = keccak256("the row's other segment");
        bytes32 other = keccak256("the other row");
        bytes32 root = pair(pair(part(1, 0, FIRST), sibling), other);
        bytes32 first = Merkle.leaf(
            abi.encode(uint256(1), Merkle.leaf(abi.encode(keccak256("q8"), uint256(2), uint256(512), root)))
        );
        matrix.data = FIRST;
        (matrix.format, matrix.rows, matrix.columns) = (keccak256("q8"), 2, 512);
        (matrix.inTensor, matrix.inUnit) = (two(sibling, other), new bytes32[](0));
        vector.data = VECTOR;
        (vector.format, vector.rows, vector.columns) = (keccak256("f32"), 1, 2);
        bytes32 second = part(0, 0, VECTOR);
        second = Merkle.leaf(abi.encode(keccak256("f32"), uint256(1), uint256(2), second));
        second = Merkle.leaf(abi.encode(uint256(2), second));
        described = Merkle.leaf(abi.encode(uint256(0), keccak256(DESCRIPTION)));
        unit = pair(pair(described, first), second);
        matrix.inUnit = two(described, second);
        vector.inUnit.push(pair(described, first));
        path = two(first, second);
        bytes32 head = Merkle.leaf(abi.encode(uint256(1), keccak256("the head")));
        contents.layerRoot = pair(Merkle.leaf(abi.encode(uint256(0), unit)), head);
        (contents.numerics, contents.tokenizer, contents.layers) = (1, keccak256("tokens"), 2);
        contents.rope = pair(keccak256(ROTATIONS), keccak256("another position"));
    }

    function part(uint32 row, uint32 number, bytes memory data) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(bytes1(0), row, number, data));
    }

    function pair(bytes32 a, bytes32 b) internal pure returns (bytes32) {
        return a < b ? keccak256(abi.encode(a, b)) : keccak256(abi.encode(b, a));
    }

    function one(bytes32 a) internal pure returns (bytes32[] memory list) {
        list = new bytes32[](1);
        list[0] = a;
    }

    function two(bytes32 a, bytes32 b) internal pure returns (bytes32[] memory list) {
        list = new bytes32[](2);
        (list[0], list[1]) = (a, b);
    }

    /// The hash is the registry's, and the unit is the model's under its number alone.
    function test_units() public view {
        bytes32[] memory roots = new bytes32[](2);
        (roots[0], roots[1]) = (unit, keccak256("the head"));
        ModelRegistry.Model memory model =
            ModelRegistry.Model(contents.numerics, contents.tokenizer, contents.rope, roots);
        vm.assertEq(harness.hash(contents), s.models.hashModel(model));
        bytes32[] memory inModel = one(Merkle.leaf(abi.encode(uint256(1), roots[1])));
        vm.assertTrue(harness.hasUnit(contents, 0, unit, inModel));
        vm.assertFalse(harness.hasUnit(contents, 1, unit, inModel));
        vm.assertFalse(harness.hasUnit(contents, 0, roots[1], inModel));
        Weights.Contents memory none = contents;
        none.layers = 0;
        vm.assertFalse(harness.hasUnit(none, 0, unit, inModel));
    }

    function test_descriptions() public view {
        vm.assertEq(harness.describedBy(DESCRIPTION, path), unit);
        vm.assertTrue(harness.describedBy("another", path) != unit);
    }

    function test_segments() public view {
        vm.assertEq(harness.segment(unit, 1, 1, 0, matrix), 0);
        vm.assertEq(harness.segment(unit, 2, 0, 0, vector), 3);
    }

    /// Another unit, tensor, row or segment; other bytes; another format or size of the tensor; an odd length.
    function test_otherSegmentsAreRefused() public {
        refused(keccak256("another"), 1, 1, 0, matrix);
        refused(unit, 2, 1, 0, matrix);
        refused(unit, 1, 0, 0, matrix);
        refused(unit, 1, 1, 1, matrix);
        refused(unit, 1, 1 + (1 << 32), 0, matrix);
        refused(unit, 1, 1, 1 << 32, matrix);
        Weights.Opened memory other = matrix;
        other.data[3] = 0xff;
        refused(unit, 1, 1, 0, other);
        other = matrix;
        other.format = keccak256("q4");
        refused(unit, 1, 1, 0, other);
        other = matrix;
        other.columns = 1024;
        refused(unit, 1, 1, 0, other);
        other = matrix;
        other.data = bytes.concat(FIRST, bytes1(0));
        refused(unit, 1, 1, 0, other);
    }

    function refused(bytes32 root, uint256 tensor, uint256 row, uint256 number, Weights.Opened memory opened)
        internal
    {
        vm.expectRevert(Weights.BadWeights.selector);
        harness.segment(root, tensor, row, number, opened);
    }

    function test_values() public {
        vm.assertEq(harness.value(unit, 2, 0, vector), 0x3f80_0000);
        vm.assertEq(harness.value(unit, 2, 1, vector), 0x4000_0000);
        vm.expectRevert(Weights.BadWeights.selector);
        harness.value(unit, 2, 2, vector);
        vm.expectRevert(Weights.BadWeights.selector);
        harness.value(unit, 2, 256, vector);
    }

    function test_rotations() public {
        bytes32[] memory inRope = one(keccak256("another position"));
        (uint32 cos, uint32 sin) = harness.rotation(contents.rope, 1, 2, ROTATIONS, inRope);
        vm.assertEq(cos, 0x3300_0000);
        vm.assertEq(sin, 0x6600_0000);
        (cos, sin) = harness.rotation(contents.rope, 1, 0, ROTATIONS, inRope);
        vm.assertEq(cos, 0x1100_0000);
        vm.assertEq(sin, 0x4400_0000);
        bytes memory longer = bytes.concat(ROTATIONS, bytes1(0));
        noRotation(1, 3, ROTATIONS, inRope);
        noRotation(2, 0, ROTATIONS, inRope);
        noRotation(1, 0, longer, inRope);
        noRotation(1, 0, ROTATIONS, new bytes32[](0));
    }

    function noRotation(uint256 position, uint256 which, bytes memory leaf, bytes32[] memory inRope)
        internal
    {
        vm.expectRevert(Weights.BadWeights.selector);
        harness.rotation(contents.rope, position, which, leaf, inRope);
    }

    function test_everyFormatHasANumber() public view {
        string[6] memory names = ["q8", "q4", "bf16", "f32", "q4_k", "q6_k"];
        Weights.Opened memory other = matrix;
        for (uint32 i = 0; i < names.length; ++i) {
            other.format = keccak256(bytes(names[i]));
            bytes32 root = pair(pair(part(1, 0, FIRST), other.inTensor[0]), other.inTensor[1]);
            root = Merkle.leaf(abi.encode(other.format, uint256(2), uint256(512), root));
            root = Merkle.leaf(abi.encode(uint256(1), root));
            root = pair(pair(root, other.inUnit[0]), other.inUnit[1]);
            vm.assertEq(harness.segment(root, 1, 1, 0, other), i);
        }
    }
}
