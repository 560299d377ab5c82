// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {vm} from "../script/Vm.sol";
import {Kind, Leaf} from "../src/IReferee.sol";
import {Int8Referee} from "../src/Int8Referee.sol";
import {Wiring} from "../src/lib/Wiring.sol";
import {WiringHarness} from "./mocks/WiringHarness.sol";

contract WiringTest {
    bool public constant IS_TEST = true;

    uint256 internal constant FIELDS = 15;
    Int8Referee internal referee = new Int8Referee();
    WiringHarness internal harness = new WiringHarness();

    /// A model of 8 billion weights.
    function large() internal pure returns (Wiring.Dims memory d) {
        (d.hidden, d.intermediate, d.heads, d.kvHeads, d.headDim) = (4096, 12_288, 32, 8, 128);
        (d.eps, d.scale, d.qkNorm) = (0x3586_37bd, 0x3db5_04f3, true);
    }

    /// Any layer that there could be.
    function drawn(uint256 seed) internal pure returns (Wiring.Dims memory d) {
        d.hidden = 1 + seed % 700;
        d.intermediate = 1 + (seed >> 16) % 900;
        d.kvHeads = 1 + (seed >> 32) % 3;
        d.heads = d.kvHeads * (1 + (seed >> 40) % 3);
        d.headDim = 2 * (1 + (seed >> 48) % 160);
        (d.windowed, d.window) = ((seed >> 64) & 1 == 1, 1 + (seed >> 72) % 200);
        (d.qkvBias, d.outputBias) = ((seed >> 96) & 1 == 1, (seed >> 97) & 1 == 1);
        (d.mlpBias, d.qkNorm) = ((seed >> 98) & 1 == 1, (seed >> 99) & 1 == 1);
    }

    function tensors(Wiring.Dims memory d) internal pure returns (uint256) {
        return 9 + (d.qkNorm ? 2 : 0) + (d.qkvBias ? 3 : 0) + (d.outputBias ? 1 : 0) + (d.mlpBias ? 3 : 0);
    }

    /// Every word follows from words before it that exist, and the referee takes what it follows from.
    function testFuzz_wordsFollowFromEarlierOnes(uint256 seed, uint16 place, uint256 which) public view {
        Wiring.Dims memory d = drawn(seed);
        uint256 position = place % 400;
        bool wide = seed >> 100 & 1 == 1;
        for (uint256 operation = 0; operation < Wiring.OPERATIONS; ++operation) {
            uint256 width = Wiring.width(d, operation, position);
            // One past the end, too.
            uint256 word = uint256(keccak256(abi.encode(which, operation))) % (width + 1);
            Wiring.Wired memory wired = Wiring.wire(d, operation, position, word, wide);
            if (word == width) vm.assertTrue(wired.kind == Kind.Zero);
            uint256 inputs = 0;
            for (uint256 i = 0; i < wired.parts.length; ++i) {
                assertEarlier(d, wired.parts[i], operation, position, word);
                inputs += wired.parts[i].count;
            }
            assertTaken(d, wired, inputs, wide);
        }
    }

    function assertEarlier(
        Wiring.Dims memory d,
        Wiring.Part memory part,
        uint256 operation,
        uint256 position,
        uint256 word
    ) internal pure {
        if (part.what == Wiring.What.Before) {
            vm.assertTrue(part.from < d.hidden && part.count == 1);
        } else if (part.what == Wiring.What.Vector) {
            vm.assertTrue(part.operation != 0 && part.operation <= tensors(d) && part.count == 1);
        } else if (part.what == Wiring.What.Rotation) {
            vm.assertTrue(part.from < d.headDim / 2 && part.count == 2);
        } else {
            uint256 end = part.from + part.count;
            vm.assertTrue(part.count != 0 && part.count <= 256);
            vm.assertLe(part.position, position);
            vm.assertLe(part.operation, operation);
            vm.assertLe(end, Wiring.width(d, part.operation, part.position));
            if (part.operation == operation) vm.assertTrue(part.position == position && end <= word);
        }
    }

    function assertTaken(Wiring.Dims memory d, Wiring.Wired memory wired, uint256 inputs, bool wide)
        internal
        view
    {
        Leaf memory leaf = Leaf(wired.kind, new uint32[](inputs), wired.numbers, "");
        if (wired.weighted) {
            vm.assertTrue(wired.tensor != 0 && wired.tensor <= tensors(d));
            leaf.weight = new bytes(wide ? 144 : 34 * wired.numbers[1]);
            leaf.numbers[0] = wide ? 4 : 0;
        }
        referee.recompute(leaf);
    }

    function test_widthsOfALargeLayer() public pure {
        Wiring.Dims memory d = large();
        vm.assertEq(Wiring.width(d, 0, 9), 4096);
        vm.assertEq(Wiring.width(d, 1, 9), 255);
        vm.assertEq(Wiring.width(d, 2, 9), 1);
        vm.assertEq(Wiring.width(d, 4, 9), 128 + 16);
        vm.assertEq(Wiring.width(d, 5, 9), 2 * 1024);
        vm.assertEq(Wiring.width(d, 6, 9), 4096 * 16);
        vm.assertEq(Wiring.width(d, 10, 9), 32 * 127);
        vm.assertEq(Wiring.width(d, 21, 9), 32 * 10 * 2);
        vm.assertEq(Wiring.width(d, 25, 64), 32 * 2 * 128);
        vm.assertEq(Wiring.width(d, 45, 9), 4096 * 48);
        vm.assertEq(Wiring.width(d, 47, 9), 0);
        // gate and up, until scores are longer.
        vm.assertEq(Wiring.widest(d, 64), 12_288 * 16);
        vm.assertEq(Wiring.widest(d, 4096), 4096 * 32 * 2);
        (d.windowed, d.window) = (true, 100);
        vm.assertEq(Wiring.width(d, 23, 4095), 32 * 100);
        vm.assertEq(Wiring.width(d, 22, 4095), 32 * 2);
        vm.assertEq(Wiring.widest(d, 4096), 4096 * 32 * 2);
        vm.assertTrue(d.windowed);
    }

    /// The last segment of the last output of `down`, in a layer with a bias.
    function test_aSegmentOfALargeLayer() public pure {
        Wiring.Dims memory d = large();
        d.mlpBias = true;
        Wiring.Wired memory wired = Wiring.wire(d, 45, 3, 4096 * 48 - 1, false);
        vm.assertTrue(wired.kind == Kind.Segment && wired.weighted);
        vm.assertEq(wired.tensor, 13);
        vm.assertEq(wired.row, 4095);
        vm.assertEq(wired.segment, 47);
        vm.assertEq(wired.parts.length, 4);
        vm.assertEq(wired.parts[0].operation, 44);
        vm.assertEq(wired.parts[0].from, 47 * 64);
        vm.assertEq(wired.parts[1].from, 47 * 8);
        vm.assertEq(wired.parts[2].from, 4096 * 48 - 2);
        vm.assertEq(wired.parts[3].operation, 14);
        vm.assertEq(wired.parts[3].from, 4095);
    }

    /// The same where the matrix has super-blocks: what it is multiplied with stands after the groups of 32.
    function test_aSuperBlockOfALargeLayer() public pure {
        Wiring.Wired memory wired = Wiring.wire(large(), 45, 3, 4096 * 48 - 1, true);
        vm.assertEq(wired.numbers[1], 1);
        vm.assertEq(wired.parts.length, 3);
        vm.assertEq(wired.parts[0].from, 12_288 / 4 + 47 * 64);
        vm.assertEq(wired.parts[0].count, 64);
        vm.assertEq(wired.parts[1].from, 12_288 / 32 + 47);
        vm.assertEq(wired.parts[1].count, 1);
        vm.assertEq(wired.parts[2].from, 4096 * 48 - 2);
        // The last scale there and the last quants.
        wired = Wiring.wire(large(), 43, 3, 12_288 / 32 + 47, false);
        vm.assertEq(wired.parts[0].from, 47 * 256);
        vm.assertEq(wired.parts[0].count, 256);
        wired = Wiring.wire(large(), 44, 3, 2 * 12_288 / 4 - 1, false);
        vm.assertEq(wired.parts[0].from, 12_288 / 32 + 47);
        vm.assertEq(wired.parts[1].from, 12_288 - 4);
    }

    function description(uint64[] memory fields) internal pure returns (bytes memory made) {
        made = "dolphin/unit/1";
        for (uint256 i = 0; i < fields.length; ++i) {
            made = abi.encodePacked(made, fields[i]);
        }
    }

    function layer() internal pure returns (uint64[] memory fields) {
        fields = new uint64[](FIELDS);
        (fields[1], fields[2], fields[3], fields[4], fields[5]) = (4096, 1, 12_288, 32, 8);
        (fields[6], fields[7], fields[8], fields[9], fields[10]) = (128, 0x3586_37bd, 0x3db5_04f3, 1, 77);
        (fields[11], fields[14]) = (1, 1);
    }

    function test_descriptions() public view {
        Wiring.Dims memory d = harness.parse(description(layer()));
        Wiring.Dims memory wanted = large();
        (wanted.windowed, wanted.window, wanted.qkvBias) = (true, 77, true);
        vm.assertEq(abi.encode(d), abi.encode(wanted));
        uint64[] memory fields = new uint64[](6);
        (fields[1], fields[3], fields[4], fields[5]) = (4096, 1000, 1, 0x4280_0000);
        (uint32 present, uint32 scale) = harness.parseEmbedding(description(fields));
        vm.assertEq(present, 1);
        vm.assertEq(scale, 0x4280_0000);
    }

    /// Another profile, another part, another length, another beginning.
    function test_otherDescriptionsAreRefused() public {
        uint64[] memory fields = layer();
        fields[0] = 1;
        refused(description(fields));
        fields = layer();
        fields[2] = 2;
        refused(description(fields));
        refused(bytes.concat(description(layer()), bytes1(0)));
        bytes memory other = description(layer());
        other[0] = "D";
        refused(other);
        vm.expectRevert(Wiring.BadDescription.selector);
        harness.parseEmbedding(description(layer()));
    }

    function refused(bytes memory made) internal {
        vm.expectRevert(Wiring.BadDescription.selector);
        harness.parse(made);
    }
}
