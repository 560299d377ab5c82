// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IAccessManaged} from "@openzeppelin/contracts/access/manager/IAccessManaged.sol";
import {Hashes} from "@openzeppelin/contracts/utils/cryptography/Hashes.sol";

import {vm} from "../script/Vm.sol";
import {RewardDistributor} from "../src/RewardDistributor.sol";
import {Base} from "./Base.sol";

contract RewardDistributorTest is Base {
    address internal constant ALICE = address(0xA1);
    address internal constant BOB = address(0xB0);
    RewardDistributor internal rewards;

    function setUp() public override {
        super.setUp();
        rewards = s.rewards;
        pod.transfer(address(rewards), 1e24);
    }

    /// Posts what both have earned; the proofs are one leaf each.
    function post(uint128 alice, uint128 bob, uint128 total) internal returns (bytes32 root) {
        root = Hashes.commutativeKeccak256(rewards.leafOf(ALICE, alice), rewards.leafOf(BOB, bob));
        vm.prank(POSTER);
        rewards.post(root, total);
    }

    function proof(address other, uint128 amount) internal view returns (bytes32[] memory list) {
        list = new bytes32[](1);
        list[0] = rewards.leafOf(other, amount);
    }

    function test_paysTheDifferenceAfterTheDelay() public {
        post(100, 50, 150);
        vm.warp(START + 1 days - 1);
        bytes32[] memory path = proof(BOB, 50);
        vm.expectRevert(RewardDistributor.NoActiveRoot.selector);
        rewards.claim(ALICE, 100, path);
        vm.warp(START + 1 days);
        vm.expectEmit(address(rewards));
        emit RewardDistributor.Claimed(ALICE, 100, 100);
        vm.assertEq(rewards.claim(ALICE, 100, path), 100);
        vm.expectRevert(abi.encodeWithSelector(RewardDistributor.NothingDue.selector, 100, 100));
        rewards.claim(ALICE, 100, path);
        post(130, 50, 180);
        vm.warp(START + 2 days);
        vm.assertEq(rewards.claim(ALICE, 130, proof(BOB, 50)), 30);
        vm.assertEq(rewards.claim(BOB, 50, proof(ALICE, 130)), 50);
        vm.assertEq(pod.balanceOf(ALICE), 130);
        vm.assertEq(rewards.totalClaimed(), 180);
    }

    function testFuzz_refusesOtherProofs(address account, uint128 amount, bytes32 sibling) public {
        vm.assume(account != ALICE || amount != 100);
        post(100, 50, 150);
        vm.warp(START + 1 days);
        bytes32[] memory path = proof(BOB, 50);
        vm.expectRevert(RewardDistributor.BadProof.selector);
        rewards.claim(account, amount, path);
        path[0] = sibling;
        vm.assume(sibling != rewards.leafOf(BOB, 50));
        vm.expectRevert(RewardDistributor.BadProof.selector);
        rewards.claim(ALICE, 100, path);
    }

    function test_aRootIsBoundByItsTotalAndByWhatThereIs() public {
        vm.prank(POSTER);
        vm.expectRevert(abi.encodeWithSelector(RewardDistributor.Unfunded.selector, 1e24 + 1, 1e24));
        rewards.post("root", 1e24 + 1);
        vm.prank(POSTER);
        vm.expectRevert(RewardDistributor.ZeroRoot.selector);
        rewards.post(0, 1);
        post(100, 50, 149);
        vm.warp(START + 1 days);
        rewards.claim(ALICE, 100, proof(BOB, 50));
        bytes32[] memory path = proof(ALICE, 100);
        vm.expectRevert(abi.encodeWithSelector(RewardDistributor.TotalExceeded.selector, 150, 149));
        rewards.claim(BOB, 50, path);
    }

    function test_replacingAWaitingRootBeginsTheDelayAnew() public {
        post(100, 50, 150);
        vm.warp(START + 1 days - 1);
        post(1e20, 50, 1e21);
        vm.warp(START + 1 days);
        bytes32[] memory path = proof(BOB, 50);
        vm.expectRevert(RewardDistributor.NoActiveRoot.selector);
        rewards.claim(ALICE, 1e20, path);
        vm.warp(START + 2 days - 1);
        vm.assertEq(rewards.claim(ALICE, 1e20, path), 1e20);
    }

    function test_theRootThatCountsPaysWhileTheNextWaits() public {
        post(100, 50, 150);
        vm.warp(START + 1 days);
        bytes32 second = post(200, 50, 250);
        vm.assertEq(rewards.claim(ALICE, 100, proof(BOB, 50)), 100);
        vm.prank(GUARDIAN);
        rewards.disable(second);
        vm.warp(START + 3 days);
        vm.assertEq(rewards.claim(BOB, 50, proof(ALICE, 100)), 50);
    }

    function test_aDisabledRootPaysNothingAndNoOlderComesBack() public {
        post(100, 50, 150);
        vm.warp(START + 1 days);
        bytes32 second = post(200, 50, 250);
        vm.warp(START + 2 days);
        vm.prank(GUARDIAN);
        vm.expectEmit(address(rewards));
        emit RewardDistributor.RootDisabled(second);
        rewards.disable(second);
        bytes32[] memory path = proof(BOB, 50);
        vm.expectRevert(RewardDistributor.NoActiveRoot.selector);
        rewards.claim(ALICE, 200, path);
        vm.expectRevert(RewardDistributor.NoActiveRoot.selector);
        rewards.claim(ALICE, 100, path);
        vm.prank(GUARDIAN);
        vm.expectRevert(abi.encodeWithSelector(RewardDistributor.UnknownRoot.selector, second));
        rewards.disable(second);
        // What was lost is in the next root.
        post(200, 50, 250);
        vm.warp(START + 3 days);
        vm.assertEq(rewards.claim(ALICE, 200, path), 200);
    }

    function test_theRootThatCountsCanBeDisabledWhileTheNextWaits() public {
        bytes32 first = post(100, 50, 150);
        vm.warp(START + 1 days);
        post(200, 50, 250);
        vm.prank(GUARDIAN);
        rewards.disable(first);
        bytes32[] memory path = proof(BOB, 50);
        vm.expectRevert(RewardDistributor.NoActiveRoot.selector);
        rewards.claim(ALICE, 100, path);
        vm.warp(START + 2 days);
        vm.assertEq(rewards.claim(ALICE, 200, path), 200);
    }

    function testFuzz_onlyPosterAndGuardian(address caller) public {
        vm.assume(caller != POSTER && caller != GUARDIAN);
        vm.startPrank(caller);
        vm.expectRevert(abi.encodeWithSelector(IAccessManaged.AccessManagedUnauthorized.selector, caller));
        rewards.post("root", 1);
        vm.expectRevert(abi.encodeWithSelector(IAccessManaged.AccessManagedUnauthorized.selector, caller));
        rewards.disable("root");
    }

    function testFuzz_theEmissionFollowsTheClockUpToItsCap(uint32[4] calldata steps) public {
        uint256 time = START;
        uint256 supply = pod.totalSupply();
        for (uint256 i = 0; i < steps.length; ++i) {
            time += steps[i];
            vm.warp(time);
            uint256 due = (time - START) * 1e18;
            due = due < 5e26 ? due : 5e26;
            if (due == rewards.emitted()) {
                vm.expectRevert(RewardDistributor.NothingToEmit.selector);
            }
            rewards.release();
            vm.assertEq(rewards.emitted(), due);
            vm.assertEq(pod.totalSupply(), supply + due);
        }
    }

    function test_nothingIsEmittedBeforeTheStart() public {
        vm.warp(START - 1);
        vm.assertEq(rewards.emittable(), 0);
    }

    function test_refusesBadConfigs() public {
        RewardDistributor.Config memory config;
        config.activationDelay = 1;
        vm.expectRevert(RewardDistributor.BadConfig.selector);
        new RewardDistributor(address(1), config);
        config.token = pod;
        new RewardDistributor(address(1), config);
        config.activationDelay = 0;
        vm.expectRevert(RewardDistributor.BadConfig.selector);
        new RewardDistributor(address(1), config);
        config.activationDelay = 366 days;
        vm.expectRevert(RewardDistributor.BadConfig.selector);
        new RewardDistributor(address(1), config);
    }
}
