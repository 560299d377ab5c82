// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {vm} from "../script/Vm.sol";
import {Beacon} from "../src/Beacon.sol";
import {Bn254, G1, G2} from "../src/lib/Bn254.sol";

contract BeaconTest {
    bool public constant IS_TEST = true;

    bytes internal constant SIGNATURE = hex"06ded8c05af23042a0caf9b404c6140f9ec64adbaf82f04d5c37153e8412ed58"
        hex"0f827c7d5ac7d02ca0bbd989d07594729bdcde7d6dc1001191c59dc9033d31b2";

    Beacon internal beacon;

    /// The public network `evmnet`, as drand publishes it.
    function setUp() public {
        beacon = new Beacon(
            Beacon.Config({
                key: G2({
                    x1: 0x07e1d1d335df83fa98462005690372c643340060d205306a9aa8106b6bd0b382,
                    x0: 0x0557ec32c2ad488e4d4f6008f89a346f18492092ccc0d594610de2732c8b808f,
                    y1: 0x0095685ae3a85ba243747b1b2f426049010f6b73a0cf1d389351d5aaaa1047f6,
                    y0: 0x297d3a4f9749b33eb2d904c9d9ebf17224150ddd7abd7567a9bec6c74480ee0b
                }),
                genesis: 1_727_521_075,
                period: 3
            })
        );
        vm.warp(1_800_000_000);
    }

    function test_aPublishedRoundIsTaken() public {
        vm.expectEmit(address(beacon));
        emit Beacon.RoundSubmitted(513, sha256(SIGNATURE), address(this));
        vm.assertEq(beacon.submit(513, SIGNATURE), sha256(SIGNATURE));
        vm.assertEq(beacon.randomness(513), sha256(SIGNATURE));
        vm.assertEq(beacon.randomness(514), bytes32(0));
    }

    function test_aRoundIsSubmittedOnce() public {
        beacon.submit(513, SIGNATURE);
        vm.expectRevert(abi.encodeWithSelector(Beacon.AlreadyKnown.selector, 513));
        beacon.submit(513, SIGNATURE);
    }

    function test_aSignatureIsOfOneRound() public {
        vm.expectRevert(abi.encodeWithSelector(Beacon.BadRound.selector, 514));
        beacon.submit(514, SIGNATURE);
    }

    function testFuzz_noOtherSignatureIsTaken(uint256 index, uint8 flip) public {
        bytes memory other = SIGNATURE;
        other[index % 64] ^= bytes1(flip == 0 ? 1 : flip);
        vm.expectRevert(abi.encodeWithSelector(Beacon.BadRound.selector, 513));
        beacon.submit(513, other);
    }

    function test_whatIsNoPointIsNoSignature() public {
        bytes32 modulus = 0x30644e72e131a029b85045b68181585d97816a916871ca8d3c208c16d87cfd47;
        bytes[5] memory odd = [
            bytes(hex""),
            abi.encodePacked(SIGNATURE, uint8(0)),
            abi.encode(uint256(0), uint256(0)),
            abi.encode(modulus, modulus),
            abi.encode(uint256(1), uint256(2))
        ];
        for (uint256 i = 0; i < odd.length; ++i) {
            vm.expectRevert(abi.encodeWithSelector(Beacon.BadRound.selector, 513));
            beacon.submit(513, odd[i]);
        }
        // The same point with the field's modulus added: drand would not write it so.
        uint256 x = uint256(0x06ded8c05af23042a0caf9b404c6140f9ec64adbaf82f04d5c37153e8412ed58);
        uint256 y = uint256(0x0f827c7d5ac7d02ca0bbd989d07594729bdcde7d6dc1001191c59dc9033d31b2);
        vm.expectRevert(abi.encodeWithSelector(Beacon.BadRound.selector, 513));
        beacon.submit(513, abi.encode(x + uint256(modulus), y));
    }

    function test_noRoundComesBeforeItsTime() public {
        vm.warp(beacon.timeOf(513) - 1);
        vm.expectRevert(abi.encodeWithSelector(Beacon.NotYet.selector, 513));
        beacon.submit(513, SIGNATURE);
        vm.expectRevert(abi.encodeWithSelector(Beacon.NotYet.selector, 0));
        beacon.submit(0, SIGNATURE);
        vm.warp(beacon.timeOf(513));
        beacon.submit(513, SIGNATURE);
    }

    function testFuzz_roundAfterIsTheFirstAfter(uint64 time) public view {
        time >>= 2;
        uint64 round = beacon.roundAfter(time);
        vm.assertTrue(beacon.timeOf(round) > time);
        vm.assertTrue(round == 1 || beacon.timeOf(round - 1) <= time);
    }

    function test_aKeyMustBeAPoint() public {
        G2 memory key = beacon.key();
        key.y0 ^= 1;
        vm.expectRevert(Beacon.BadConfig.selector);
        new Beacon(Beacon.Config(key, 1, 1));
        vm.expectRevert(Beacon.BadConfig.selector);
        new Beacon(Beacon.Config(G2(0, 0, 0, 0), 1, 1));
        key.y0 ^= 1;
        vm.expectRevert(Beacon.BadConfig.selector);
        new Beacon(Beacon.Config(key, 1, 0));
    }

    /// What is mapped is on the curve, whatever it is.
    function testFuzz_mapsToTheCurve(uint256 u) public view {
        uint256 p = 0x30644e72e131a029b85045b68181585d97816a916871ca8d3c208c16d87cfd47;
        G1 memory point = Bn254.mapToCurve(u % p);
        vm.assertEq(
            mulmod(point.y, point.y, p), addmod(mulmod(mulmod(point.x, point.x, p), point.x, p), 3, p)
        );
        vm.assertEq(point.y % 2, (u % p) % 2);
    }
}
