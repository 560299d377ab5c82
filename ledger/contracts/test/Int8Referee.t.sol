// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {vm} from "../script/Vm.sol";
import {Kind, Leaf} from "../src/IReferee.sol";
import {Int8Referee} from "../src/Int8Referee.sol";

contract Int8RefereeTest {
    bool public constant IS_TEST = true;

    uint256 internal constant KINDS = 21;
    uint32 internal constant ONE = 0x3f80_0000;
    uint32 internal constant NAN = 0x7fc0_0000;
    Int8Referee internal referee = new Int8Referee();
    string internal json;

    function leaf(Kind kind, uint256 inputs) internal pure returns (Leaf memory made) {
        (made.kind, made.inputs) = (kind, new uint32[](inputs));
    }

    function key(uint256 index, string memory name) internal pure returns (string memory) {
        return string.concat(".cases[", vm.toString(index), "].", name);
    }

    /// What the crate's tests computed for the same leaves.
    function test_vectors() public {
        json = vm.readFile("../vectors/referee.json");
        uint256 index = 0;
        for (; vm.keyExistsJson(json, string.concat(".cases[", vm.toString(index), "]")); ++index) {
            Leaf memory made;
            made.kind = Kind(vm.parseJsonUint(json, key(index, "kind")));
            uint256[] memory inputs = vm.parseJsonUintArray(json, key(index, "inputs"));
            made.inputs = new uint32[](inputs.length);
            for (uint256 i = 0; i < inputs.length; ++i) {
                made.inputs[i] = uint32(inputs[i]);
            }
            uint256[] memory numbers = vm.parseJsonUintArray(json, key(index, "numbers"));
            for (uint256 i = 0; i < 4; ++i) {
                made.numbers[i] = uint32(numbers[i]);
            }
            made.weight = vm.parseJsonBytes(json, key(index, "weight"));
            uint256 word = vm.parseJsonUint(json, key(index, "word"));
            vm.assertEq(referee.recompute(made), word, vm.toString(index));
        }
        vm.assertGe(index, KINDS);
    }

    /// A leaf of the shape that a kind takes.
    function shaped(Kind kind, uint256 seed) internal pure returns (Leaf memory made) {
        uint8[21] memory inputs = [0, 1, 2, 2, 1, 3, 32, 5, 72, 4, 4, 1, 128, 64, 2, 64, 5, 2, 2, 2, 0];
        made = leaf(kind, inputs[uint256(kind)]);
        for (uint256 i = 0; i < made.inputs.length; ++i) {
            made.inputs[i] = uint32(uint256(keccak256(abi.encode(seed, i))));
        }
        if (kind == Kind.Chain) made.numbers[0] = 64;
        if (kind == Kind.Segment) (made.numbers[1], made.weight) = (8, bytesOf(seed, 8 * 34));
        if (kind == Kind.Embed) (made.numbers[1], made.weight) = (255, bytesOf(seed, 8 * 34));
    }

    function bytesOf(uint256 seed, uint256 count) internal pure returns (bytes memory made) {
        made = new bytes(count);
        for (uint256 i = 0; i < count; ++i) {
            made[i] = bytes1(uint8(uint256(keccak256(abi.encode(seed, count, i)))));
        }
    }

    /// Whoever committed to the inputs cannot choose bits that stop it.
    function testFuzz_noBitsAreRefused(uint256 seed) public view {
        for (uint256 kind = 0; kind < KINDS; ++kind) {
            referee.recompute(shaped(Kind(kind), seed));
        }
    }

    function refused(Leaf memory made) internal view {
        (bool done, bytes memory answer) =
            address(referee).staticcall(abi.encodeCall(Int8Referee.recompute, (made)));
        vm.assertFalse(done);
        vm.assertEq(answer, abi.encodeWithSelector(Int8Referee.BadShape.selector, made.kind));
    }

    /// An input more than a kind ever has, and weights where there are none.
    function test_otherShapesAreRefused() public view {
        for (uint256 kind = 0; kind < KINDS; ++kind) {
            Leaf memory made = leaf(Kind(kind), 300);
            refused(made);
            made = shaped(Kind(kind), 0);
            made.weight = bytes.concat(made.weight, bytes1(0));
            refused(made);
            // Nothing follows from nothing, and so does a chain without steps.
            bool takesNone = kind == uint256(Kind.Zero) || kind == uint256(Kind.Chain);
            if (!takesNone) refused(leaf(Kind(kind), 0));
        }
    }

    function test_weightsOfOtherShapesAreRefused() public view {
        Leaf memory made = shaped(Kind.Segment, 0);
        made.numbers[0] = 1;
        refused(made);
        made.numbers[0] = 6;
        refused(made);
        made = shaped(Kind.Segment, 0);
        made.numbers[1] = 9;
        refused(made);
        made.numbers[1] = 0;
        refused(made);
        made = shaped(Kind.Segment, 0);
        made.numbers[3] = 1;
        refused(made);
        made = shaped(Kind.Embed, 0);
        made.numbers[1] = 256;
        refused(made);
        made = leaf(Kind.Tree, 2);
        made.numbers[0] = 63;
        refused(made);
        made = leaf(Kind.Chain, 130);
        made.numbers[0] = 65;
        refused(made);
    }

    function test_quantiserAtItsEdges() public view {
        Leaf memory group = leaf(Kind.GroupScale, 2);
        (group.inputs[0], group.inputs[1]) = (ONE, NAN);
        vm.assertEq(referee.recompute(group), 0);
        group.inputs[1] = 0xff80_0000;
        vm.assertEq(referee.recompute(group), 0);
        // Just below 2^-100, and that.
        (group.inputs[0], group.inputs[1]) = (0x8000_0000, 0x0d7f_ffff);
        vm.assertEq(referee.recompute(group), 0);
        group.inputs[1] = 0x8d80_0000;
        vm.assertEq(referee.recompute(group), 0x0a01_0204);
        Leaf memory quants = leaf(Kind.GroupQuants, 5);
        (quants.inputs[0], quants.inputs[1], quants.inputs[2]) = (ONE, 0x42fe_0000, 0x4020_0000);
        (quants.inputs[3], quants.inputs[4]) = (0x4060_0000, 0xc2fe_0000);
        vm.assertEq(referee.recompute(quants), 0x8104_027f);
        quants.inputs[0] = 0;
        vm.assertEq(referee.recompute(quants), 0);
    }

    /// The sum is kept from +0: a product of -0 does not show.
    function test_chainsBeginAtZero() public view {
        Leaf memory chain = leaf(Kind.Chain, 2);
        chain.numbers[0] = 1;
        (chain.inputs[0], chain.inputs[1]) = (0x8000_0000, ONE);
        vm.assertEq(referee.recompute(chain), 0);
    }

    /// One group of ones, with a scale of 1, twice: as such, and after a word and before a bias.
    function test_segmentByHand() public view {
        Leaf memory made = leaf(Kind.Segment, 9);
        made.numbers[1] = 1;
        made.weight = new bytes(34);
        made.weight[1] = 0x3c;
        for (uint256 i = 0; i < 32; ++i) {
            made.weight[2 + i] = 0xff;
            made.inputs[i / 4] = 0x0101_0101;
        }
        made.inputs[8] = ONE;
        vm.assertEq(referee.recompute(made), 0xc200_0000);
        uint32[] memory inputs = new uint32[](11);
        for (uint256 i = 0; i < 9; ++i) {
            inputs[i] = made.inputs[i];
        }
        (inputs[9], inputs[10]) = (0x4200_0000, ONE);
        (made.inputs, made.numbers[2], made.numbers[3]) = (inputs, 1, 1);
        vm.assertEq(referee.recompute(made), ONE);
    }
}
