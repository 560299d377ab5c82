// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IAccessManaged} from "@openzeppelin/contracts/access/manager/IAccessManaged.sol";
import {ERC20Capped} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Capped.sol";

import {vm} from "../script/Vm.sol";
import {Base} from "./Base.sol";

contract PODTokenTest is Base {
    function test_startsWithItsSupplyAndTimestamps() public view {
        vm.assertEq(pod.totalSupply(), SUPPLY);
        vm.assertEq(pod.cap(), CAP);
        vm.assertEq(pod.clock(), START);
        vm.assertEq(bytes(pod.CLOCK_MODE()), bytes("mode=timestamp"));
    }

    function testFuzz_onlyTheMinterMints(address caller) public {
        vm.assume(caller != address(s.rewards));
        vm.prank(caller);
        vm.expectRevert(abi.encodeWithSelector(IAccessManaged.AccessManagedUnauthorized.selector, caller));
        pod.mint(caller, 1);
    }

    function testFuzz_mintStopsAtTheCap(uint256 amount) public {
        amount = bound(amount, 1, 2 * CAP);
        vm.prank(address(s.rewards));
        if (SUPPLY + amount > CAP) {
            vm.expectRevert(
                abi.encodeWithSelector(ERC20Capped.ERC20ExceededCap.selector, SUPPLY + amount, CAP)
            );
        }
        pod.mint(address(1), amount);
        vm.assertLe(pod.totalSupply(), CAP);
    }

    function testFuzz_burnLowersTheSupply(uint256 amount) public {
        amount = bound(amount, 0, SUPPLY);
        pod.burn(amount);
        vm.assertEq(pod.totalSupply(), SUPPLY - amount);
    }

    function testFuzz_permit(uint256 secret, uint256 value) public {
        secret = bound(secret, 1, 1 << 250);
        address owner = vm.addr(secret);
        bytes32 kind =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 hash = keccak256(abi.encode(kind, owner, address(this), value, 0, START));
        bytes32 digest = keccak256(abi.encodePacked("\x19\x01", pod.DOMAIN_SEPARATOR(), hash));
        (uint8 v, bytes32 r, bytes32 t) = vm.sign(secret, digest);
        pod.permit(owner, address(this), value, START, v, r, t);
        vm.assertEq(pod.allowance(owner, address(this)), value);
        vm.assertEq(pod.nonces(owner), 1);
        vm.expectRevert();
        pod.permit(owner, address(this), value, START, v, r, t);
    }

    function test_votesFollowTransfersOnceDelegated() public {
        pod.delegate(address(this));
        vm.warp(START + 10);
        pod.transfer(address(7), 1e18);
        vm.warp(START + 20);
        vm.assertEq(pod.getPastVotes(address(this), START + 5), SUPPLY);
        vm.assertEq(pod.getPastVotes(address(this), START + 15), SUPPLY - 1e18);
        vm.assertEq(pod.getVotes(address(7)), 0);
    }
}
