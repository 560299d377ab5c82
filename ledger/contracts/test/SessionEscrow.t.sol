// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {vm} from "../script/Vm.sol";
import {SessionEscrow} from "../src/SessionEscrow.sol";
import {Payment, Split, Stage} from "../src/lib/Split.sol";
import {Base} from "./Base.sol";

/// The test itself is the collector.
contract SessionEscrowTest is Base {
    bytes32 internal constant PLAN = keccak256("plan");
    address internal payer;
    SessionEscrow internal escrow;

    function setUp() public override {
        super.setUp();
        escrow = s.escrow;
        payer = vm.addr(PAYER_KEY);
        fund(payer, 1e25, address(escrow));
    }

    function locked(uint128 amount) internal {
        vm.startPrank(payer);
        escrow.deposit(payer, amount);
        escrow.lock(address(this), PLAN, amount);
        vm.stopPrank();
    }

    function lockOf() internal view returns (SessionEscrow.Lock memory) {
        return escrow.lockOf(payer, address(this), PLAN);
    }

    function test_depositsForOthersAndWithdraws() public {
        vm.prank(payer);
        vm.expectEmit(address(escrow));
        emit SessionEscrow.Deposited(address(8), payer, 1e18);
        escrow.deposit(address(8), 1e18);
        vm.assertEq(balance(address(8)), 1e18);
        vm.prank(address(8));
        escrow.withdraw(address(9), 4e17);
        vm.assertEq(pod.balanceOf(address(9)), 4e17);
        vm.prank(address(8));
        vm.expectRevert(abi.encodeWithSelector(SessionEscrow.TooMuch.selector, 7e17, 6e17));
        escrow.withdraw(address(9), 7e17);
    }

    function test_nothingAndNobody() public {
        vm.startPrank(payer);
        vm.expectRevert(SessionEscrow.ZeroAmount.selector);
        escrow.deposit(payer, 0);
        vm.expectRevert(SessionEscrow.ZeroAddress.selector);
        escrow.deposit(address(0), 1);
        vm.expectRevert(SessionEscrow.ZeroAmount.selector);
        escrow.withdraw(payer, 0);
        vm.expectRevert(SessionEscrow.ZeroAmount.selector);
        escrow.lock(address(this), PLAN, 0);
        vm.expectRevert(SessionEscrow.ZeroAmount.selector);
        escrow.thaw(address(this), PLAN);
        vm.expectRevert(SessionEscrow.NotThawing.selector);
        escrow.cancelThaw(address(this), PLAN);
        vm.expectRevert(SessionEscrow.NotThawing.selector);
        escrow.release(address(this), PLAN);
    }

    function testFuzz_lockThawRelease(uint128 amount, uint128 part) public {
        amount = uint128(bound(amount, 1, 1e25));
        part = uint128(bound(part, 1, amount));
        vm.startPrank(payer);
        escrow.deposit(payer, amount);
        escrow.lock(address(this), PLAN, part);
        vm.assertEq(balance(payer), amount - part);
        escrow.thaw(address(this), PLAN);
        vm.expectRevert(abi.encodeWithSelector(SessionEscrow.Thawing.selector, START + 3 days));
        escrow.lock(address(this), PLAN, 1);
        vm.expectRevert(abi.encodeWithSelector(SessionEscrow.Thawing.selector, START + 3 days));
        escrow.thaw(address(this), PLAN);
        vm.warp(START + 3 days - 1);
        vm.expectRevert(abi.encodeWithSelector(SessionEscrow.NotThawed.selector, START + 3 days));
        escrow.release(address(this), PLAN);
        vm.warp(START + 3 days);
        vm.assertEq(escrow.release(address(this), PLAN), part);
        vm.assertEq(balance(payer), amount);
        vm.assertEq(lockOf().remaining, 0);
    }

    function test_aCancelledThawTakesItsWholeTimeAgain() public {
        locked(1e18);
        vm.startPrank(payer);
        escrow.thaw(address(this), PLAN);
        vm.warp(START + 2 days);
        escrow.cancelThaw(address(this), PLAN);
        escrow.thaw(address(this), PLAN);
        vm.warp(START + 3 days);
        vm.expectRevert(abi.encodeWithSelector(SessionEscrow.NotThawed.selector, START + 5 days));
        escrow.release(address(this), PLAN);
    }

    function test_aThawingLockPaysUntilItIsReleased() public {
        locked(1e18);
        vm.prank(payer);
        escrow.thaw(address(this), PLAN);
        vm.warp(START + 3 days);
        vm.assertEq(escrow.collect(payer, PLAN, 4e17, stages(1)), 4e17);
        vm.prank(payer);
        vm.assertEq(escrow.release(address(this), PLAN), 6e17);
        vm.expectRevert(SessionEscrow.NothingLocked.selector);
        escrow.collect(payer, PLAN, 5e17, stages(1));
    }

    function testFuzz_collectPaysTheDifferenceOnce(uint128 amount, uint128[6] calldata totals) public {
        amount = uint128(bound(amount, 1, 1e25));
        locked(amount);
        uint256 high;
        for (uint256 i = 0; i < totals.length; ++i) {
            uint128 total = uint128(bound(totals[i], 0, 2 * uint256(amount)));
            uint256 due = total > high ? total - high : 0;
            uint256 most = amount - high;
            if (due == 0) {
                vm.expectRevert(
                    abi.encodeWithSelector(SessionEscrow.NothingDue.selector, total, uint128(high))
                );
            } else if (most == 0) {
                vm.expectRevert(SessionEscrow.NothingLocked.selector);
            }
            uint256 paid = escrow.collect(payer, PLAN, total, stages(3));
            if (due != 0 && most != 0) vm.assertEq(paid, due < most ? due : most);
            high += due < most ? due : most;
            vm.assertEq(lockOf().collected, high);
            vm.assertEq(lockOf().remaining, amount - high);
        }
    }

    function testFuzz_sharesAddUpToTheWhole(uint128 amount, uint64[8] calldata weights, uint8 count) public {
        amount = uint128(bound(amount, 1, 1e25));
        Stage[] memory parts = new Stage[](1 + count % 8);
        uint256 sum;
        for (uint256 i = 0; i < parts.length; ++i) {
            parts[i] = Stage(address(uint160(0x100 + i)), weights[i] >> 3);
            sum += weights[i] >> 3;
        }
        vm.assume(sum != 0);
        locked(amount);
        escrow.collect(payer, PLAN, amount, parts);
        uint256 all;
        for (uint256 i = 0; i < parts.length; ++i) {
            uint256 got = balance(parts[i].payee);
            if (i != parts.length - 1) vm.assertEq(got, uint256(amount) * parts[i].weight / sum);
            all += got;
        }
        vm.assertEq(all, amount);
    }

    function test_earnedCountsOn() public {
        locked(1e18);
        Stage[] memory parts = stages(1);
        escrow.collect(payer, PLAN, 3e17, parts);
        vm.prank(parts[0].payee);
        escrow.withdraw(address(9), 3e17);
        Payment[] memory expected = new Payment[](1);
        expected[0] = Payment(parts[0].payee, 1e17);
        vm.expectEmit(address(escrow));
        emit SessionEscrow.Collected(payer, address(this), PLAN, expected);
        escrow.collect(payer, PLAN, 4e17, parts);
        (uint128 free, uint128 earned) = escrow.accounts(parts[0].payee);
        vm.assertEq(free, 1e17);
        vm.assertEq(earned, 4e17);
    }

    function test_collectRefusesBadStages() public {
        locked(1e18);
        vm.expectRevert(Split.NoWeights.selector);
        escrow.collect(payer, PLAN, 1, new Stage[](0));
        Stage[] memory parts = stages(2);
        (parts[0].weight, parts[1].weight) = (0, 0);
        vm.expectRevert(Split.NoWeights.selector);
        escrow.collect(payer, PLAN, 1, parts);
        (parts[0].weight, parts[1].weight) = (type(uint64).max, 1);
        vm.expectRevert(Split.NoWeights.selector);
        escrow.collect(payer, PLAN, 1, parts);
        parts = stages(2);
        parts[0].payee = address(0);
        vm.expectRevert(SessionEscrow.ZeroAddress.selector);
        escrow.collect(payer, PLAN, 10, parts);
    }

    function testFuzz_onlyTheNamedCollectorCollects(address other) public {
        vm.assume(other != address(this));
        locked(1e18);
        vm.prank(other);
        vm.expectRevert(SessionEscrow.NothingLocked.selector);
        escrow.collect(payer, PLAN, 1, stages(1));
    }

    function permit(uint128 amount) internal view returns (uint8 v, bytes32 r, bytes32 t) {
        bytes32 kind =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 hash = keccak256(abi.encode(kind, payer, address(escrow), amount, 0, START));
        return vm.sign(PAYER_KEY, keccak256(abi.encodePacked("\x19\x01", pod.DOMAIN_SEPARATOR(), hash)));
    }

    /// Somebody who sees a permit can use it first; the deposit goes through all the same.
    function test_depositWithPermit_survivesFrontRunning() public {
        vm.prank(payer);
        pod.approve(address(escrow), 0);
        (uint8 v, bytes32 r, bytes32 t) = permit(1e18);
        vm.prank(address(0xBAD));
        pod.permit(payer, address(escrow), 1e18, START, v, r, t);
        vm.prank(payer);
        escrow.depositWithPermit(1e18, START, v, r, t);
        vm.assertEq(balance(payer), 1e18);
        vm.prank(payer);
        vm.expectRevert();
        escrow.depositWithPermit(1e18, START, v, r, t);
    }

    function test_depositWithPermit() public {
        vm.prank(payer);
        pod.approve(address(escrow), 0);
        (uint8 v, bytes32 r, bytes32 t) = permit(1e18);
        vm.prank(payer);
        escrow.depositWithPermit(1e18, START, v, r, t);
        vm.assertEq(balance(payer), 1e18);
    }

    function test_refusesBadConfigs() public {
        vm.expectRevert(SessionEscrow.BadConfig.selector);
        new SessionEscrow(IERC20(address(0)), 1);
        vm.expectRevert(SessionEscrow.BadConfig.selector);
        new SessionEscrow(IERC20(s.token), 0);
        vm.expectRevert(SessionEscrow.BadConfig.selector);
        new SessionEscrow(IERC20(s.token), 366 days);
    }
}
