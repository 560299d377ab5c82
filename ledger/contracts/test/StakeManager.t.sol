// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IAccessManager} from "@openzeppelin/contracts/access/manager/IAccessManager.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {vm} from "../script/Vm.sol";
import {StakeManager} from "../src/StakeManager.sol";
import {Base} from "./Base.sol";

contract StakeManagerTest is Base {
    address internal constant OPERATOR = address(0x0123);
    address internal constant DELEGATOR = address(0xDE1E);

    StakeManager internal stake;

    function setUp() public override {
        super.setUp();
        stake = s.stake;
        allowSlasher(NODE);
        fund(OPERATOR, 1e25, address(stake));
        fund(DELEGATOR, 1e25, address(stake));
    }

    function provisioned(uint128 amount) internal returns (uint128 shares) {
        vm.startPrank(OPERATOR);
        stake.stake(amount);
        shares = stake.provision(NODE, amount);
        vm.stopPrank();
    }

    function slash(uint128 amount) internal returns (uint128) {
        vm.prank(SLASHER);
        return stake.slash(OPERATOR, NODE, amount, REPORTER);
    }

    function thaw(address owner, uint128 shares) internal returns (uint256) {
        vm.prank(owner);
        return stake.thaw(OPERATOR, NODE, shares);
    }

    function worth(address owner) internal view returns (uint128 amount) {
        (, amount) = stake.positionOf(OPERATOR, NODE, owner);
    }

    function test_theWholeWay() public {
        vm.prank(OPERATOR);
        vm.expectEmit(address(stake));
        emit StakeManager.Staked(OPERATOR, 1e20);
        stake.stake(1e20);
        vm.assertEq(stake.idle(OPERATOR), 1e20);
        vm.prank(OPERATOR);
        vm.expectEmit(address(stake));
        emit StakeManager.Provisioned(OPERATOR, NODE, OPERATOR, 1e20, 1e20);
        stake.provision(NODE, 1e20);
        vm.assertEq(stake.idle(OPERATOR), 0);
        uint256 id = thaw(OPERATOR, 4e19);
        vm.assertEq(stake.poolOf(OPERATOR, NODE).thawing.tokens, 4e19);
        vm.warp(START + 21 days - 1);
        vm.prank(OPERATOR);
        vm.expectRevert(abi.encodeWithSelector(StakeManager.NotReleased.selector, START + 21 days));
        stake.withdraw(id);
        vm.warp(START + 21 days);
        vm.prank(OPERATOR);
        vm.expectEmit(address(stake));
        emit StakeManager.Withdrawn(id, OPERATOR, 4e19);
        vm.assertEq(stake.withdraw(id), 4e19);
        vm.assertEq(pod.balanceOf(OPERATOR), 1e25 - 6e19);
        vm.prank(OPERATOR);
        vm.expectRevert(abi.encodeWithSelector(StakeManager.NotOwner.selector, id));
        stake.withdraw(id);
    }

    function test_idleStakeLeavesAtOnce() public {
        vm.startPrank(OPERATOR);
        stake.stake(1e20);
        stake.unstake(address(5), 3e19);
        vm.assertEq(pod.balanceOf(address(5)), 3e19);
        vm.expectRevert(abi.encodeWithSelector(StakeManager.TooMuch.selector, 8e19, 7e19));
        stake.unstake(address(5), 8e19);
        vm.expectRevert(abi.encodeWithSelector(StakeManager.TooMuch.selector, 8e19, 7e19));
        stake.provision(NODE, 8e19);
    }

    function test_nothingIsNothing() public {
        provisioned(1e20);
        vm.startPrank(OPERATOR);
        vm.expectRevert(StakeManager.ZeroAmount.selector);
        stake.stake(0);
        vm.expectRevert(StakeManager.ZeroAmount.selector);
        stake.unstake(OPERATOR, 0);
        vm.expectRevert(StakeManager.ZeroAmount.selector);
        stake.provision(NODE, 0);
        vm.expectRevert(StakeManager.ZeroAmount.selector);
        stake.delegate(OPERATOR, NODE, 0, 0);
        vm.expectRevert(StakeManager.ZeroAmount.selector);
        stake.thaw(OPERATOR, NODE, 0);
        vm.expectRevert(StakeManager.ZeroAmount.selector);
        stake.claim();
    }

    function testFuzz_delegatorsShareLossesInProportion(uint128 own, uint128 lent, uint128 cut) public {
        own = uint128(bound(own, 1e6, 1e25));
        lent = uint128(bound(lent, 1e6, 1e25));
        provisioned(own);
        vm.prank(DELEGATOR);
        stake.delegate(OPERATOR, NODE, lent, lent);
        uint256 all = uint256(own) + lent;
        cut = uint128(bound(cut, 1, all / 5));
        vm.assertEq(slash(cut), cut);
        uint256 left = all - cut;
        vm.assertLe(worth(OPERATOR) + worth(DELEGATOR), left);
        vm.assertGe(uint256(worth(OPERATOR)) + worth(DELEGATOR) + 2, left);
        uint256 exact = uint256(own) * left / all;
        vm.assertLe(worth(OPERATOR), exact);
        vm.assertGe(uint256(worth(OPERATOR)) + 1, exact);
    }

    function test_delegatorsCanRefuseABadPrice() public {
        provisioned(1e20);
        slash(1e19);
        vm.prank(DELEGATOR);
        vm.expectRevert(
            abi.encodeWithSelector(StakeManager.TooFewShares.selector, uint256(1e19) * 10 / 9, 2e19)
        );
        stake.delegate(OPERATOR, NODE, 1e19, 2e19);
    }

    function testFuzz_nobodyGainsByJoiningAndLeaving(uint128 own, uint128 cut, uint128 lent, uint128 part)
        public
    {
        own = uint128(bound(own, 1e3, 1e25));
        provisioned(own);
        cut = uint128(bound(cut, 1, own / 5));
        slash(cut);
        lent = uint128(bound(lent, 1, 1e25));
        vm.prank(DELEGATOR);
        uint128 shares = stake.delegate(OPERATOR, NODE, lent, 0);
        vm.assertLe(worth(DELEGATOR), lent);
        part = uint128(bound(part, 1, shares));
        vm.prank(DELEGATOR);
        try stake.thaw(OPERATOR, NODE, part) returns (uint256 id) {
            vm.warp(START + 21 days);
            vm.prank(DELEGATOR);
            vm.assertLe(stake.withdraw(id), lent);
        } catch (bytes memory reason) {
            vm.assertEq(reason, abi.encodeWithSelector(StakeManager.ZeroAmount.selector));
        }
        vm.assertGe(worth(OPERATOR), own - cut - 1);
    }

    function testFuzz_slashTakesActiveAndThawingInProportion(uint128 all, uint128 part, uint128 cut) public {
        all = uint128(bound(all, 1e6, 1e25));
        provisioned(all);
        part = uint128(bound(part, 1, all));
        thaw(OPERATOR, part);
        uint256 before = pod.balanceOf(address(stake));
        uint128 most = uint128(uint256(all) * 2000 / 10_000);
        uint128 taken = slash(cut == 0 ? 1 : cut);
        vm.assertEq(taken, cut == 0 ? 1 : cut < most ? cut : most);
        StakeManager.Pool memory pool = stake.poolOf(OPERATOR, NODE);
        vm.assertEq(uint256(pool.active.tokens) + pool.thawing.tokens, all - taken);
        vm.assertEq(part - pool.thawing.tokens, uint256(taken) * part / all);
        vm.assertEq(stake.claimable(REPORTER), taken / 10);
        vm.assertEq(stake.claimable(address(s.timelock)), taken - taken / 10);
        vm.assertEq(pod.balanceOf(address(stake)), before);
    }

    function testFuzz_oneEpochCostsNoMoreThanTheCap(uint128 all, uint128[5] calldata cuts) public {
        all = uint128(bound(all, 1e6, 1e25));
        provisioned(all);
        uint256 taken;
        for (uint256 i = 0; i < cuts.length; ++i) {
            vm.warp(START + i * 1 hours);
            vm.prank(SLASHER);
            try stake.slash(OPERATOR, NODE, cuts[i], address(0)) returns (uint128 amount) {
                taken += amount;
            } catch (bytes memory reason) {
                vm.assertEq(reason, abi.encodeWithSelector(StakeManager.NothingToSlash.selector));
            }
        }
        vm.assertLe(taken, uint256(all) * 2000 / 10_000);
        vm.assertEq(stake.claimable(address(s.timelock)), taken);
    }

    function test_theNextEpochHasACapOfItsOwn() public {
        provisioned(1e20);
        vm.assertEq(slash(1e20), 2e19);
        vm.prank(SLASHER);
        vm.expectRevert(StakeManager.NothingToSlash.selector);
        stake.slash(OPERATOR, NODE, 1e20, REPORTER);
        vm.warp(START + 1 days);
        vm.assertEq(slash(1e20), 16e18);
    }

    function testFuzz_onlyTheRolesSlasher(address caller, uint32 role) public {
        provisioned(1e20);
        vm.assume(caller != SLASHER || role != NODE);
        vm.startPrank(caller);
        vm.expectRevert(abi.encodeWithSelector(StakeManager.NotSlasher.selector, role, caller));
        stake.slash(OPERATOR, role, 1, REPORTER);
        vm.expectRevert(abi.encodeWithSelector(StakeManager.NotSlasher.selector, role, caller));
        stake.hold(OPERATOR, role, uint40(START));
    }

    function test_aSlasherWithADelayIsNone() public {
        provisioned(1e20);
        uint64 id = stake.slasherOf(NODE);
        vm.prank(address(s.timelock));
        s.manager.grantRole(id, address(9), 1 days);
        vm.warp(START + 2 days);
        vm.prank(address(9));
        vm.expectRevert(abi.encodeWithSelector(StakeManager.NotSlasher.selector, NODE, address(9)));
        stake.slash(OPERATOR, NODE, 1, REPORTER);
    }

    function test_proceedsAreFetched() public {
        provisioned(1e20);
        slash(1e19);
        vm.prank(REPORTER);
        vm.assertEq(stake.claim(), 1e18);
        vm.assertEq(pod.balanceOf(REPORTER), 1e18);
        vm.prank(REPORTER);
        vm.expectRevert(StakeManager.ZeroAmount.selector);
        stake.claim();
        vm.prank(address(s.timelock));
        vm.assertEq(stake.claim(), 9e18);
    }

    function test_aHoldOutlastsAThaw() public {
        uint128 shares = provisioned(1e20);
        uint256 id = thaw(OPERATOR, shares);
        vm.warp(START + 20 days);
        vm.startPrank(SLASHER);
        vm.expectRevert(
            abi.encodeWithSelector(StakeManager.HoldTooLong.selector, START + 41 days + 1, START + 41 days)
        );
        stake.hold(OPERATOR, NODE, uint40(START + 41 days + 1));
        stake.hold(OPERATOR, NODE, uint40(START + 30 days));
        stake.hold(OPERATOR, NODE, uint40(START + 25 days));
        vm.stopPrank();
        vm.warp(START + 30 days - 1);
        vm.prank(OPERATOR);
        vm.expectRevert(abi.encodeWithSelector(StakeManager.NotReleased.selector, START + 30 days));
        stake.withdraw(id);
        vm.warp(START + 30 days);
        vm.prank(OPERATOR);
        vm.assertEq(stake.withdraw(id), 1e20);
    }

    function test_votesAreIdleAndActiveStakeWithDelegations() public {
        vm.prank(OPERATOR);
        stake.stake(1e20);
        vm.warp(START + 10);
        vm.prank(OPERATOR);
        uint128 shares = stake.provision(NODE, 1e20);
        vm.prank(DELEGATOR);
        stake.delegate(OPERATOR, NODE, 1e20, 0);
        vm.warp(START + 20);
        slash(1e19);
        vm.warp(START + 30);
        thaw(OPERATOR, shares);
        vm.warp(START + 40);
        vm.assertEq(stake.getPastVotes(OPERATOR, START), 1e20);
        vm.assertEq(stake.getPastVotes(OPERATOR, START + 10), 2e20);
        vm.assertEq(stake.getPastVotes(OPERATOR, START + 20), 19e19);
        vm.assertEq(stake.getVotes(OPERATOR), 95e18);
        vm.assertEq(stake.getVotes(DELEGATOR), 0);
        vm.expectRevert(abi.encodeWithSelector(StakeManager.NotPast.selector, START + 40, START + 40));
        stake.getPastVotes(OPERATOR, START + 40);
    }

    /// With a cap of the whole, a pool can be slashed to nothing; it begins anew, and old shares are void.
    function test_aPoolSlashedToNothingBeginsAnew() public {
        StakeManager.Config memory config = StakeManager.Config({
            token: IERC20(s.token),
            manager: IAccessManager(address(s.manager)),
            treasury: address(1),
            thawPeriod: 2 days,
            slashEpoch: 1 days,
            slashCapBps: 10_000,
            reporterBps: 0
        });
        stake = new StakeManager(config);
        vm.prank(OPERATOR);
        pod.approve(address(stake), type(uint256).max);
        provisioned(1e20);
        uint256 id = thaw(OPERATOR, 3e19);
        vm.assertEq(slash(type(uint128).max), 1e20);
        vm.assertEq(worth(OPERATOR), 0);
        vm.prank(OPERATOR);
        vm.expectRevert(abi.encodeWithSelector(StakeManager.TooMuch.selector, 1, 0));
        stake.thaw(OPERATOR, NODE, 1);
        vm.assertEq(provisioned(5e19), 5e19);
        vm.assertEq(worth(OPERATOR), 5e19);
        uint256 second = thaw(OPERATOR, 5e19);
        vm.warp(START + 2 days);
        vm.startPrank(OPERATOR);
        vm.assertEq(stake.withdraw(id), 0);
        vm.assertEq(stake.withdraw(second), 5e19);
    }

    function test_refusesBadConfigs() public {
        StakeManager.Config memory good = StakeManager.Config({
            token: IERC20(s.token),
            manager: IAccessManager(address(s.manager)),
            treasury: address(1),
            thawPeriod: 2 days,
            slashEpoch: 1 days,
            slashCapBps: 10_000,
            reporterBps: 5000
        });
        new StakeManager(good);
        for (uint256 i = 0; i < 9; ++i) {
            StakeManager.Config memory bad = abi.decode(abi.encode(good), (StakeManager.Config));
            if (i == 0) bad.token = IERC20(address(0));
            if (i == 1) bad.manager = IAccessManager(address(0));
            if (i == 2) bad.treasury = address(0);
            if (i == 3) bad.slashEpoch = 0;
            if (i == 4) bad.thawPeriod = 2 days - 1;
            if (i == 5) bad.thawPeriod = 366 days;
            if (i == 6) bad.slashCapBps = 0;
            if (i == 7) bad.slashCapBps = 10_001;
            if (i == 8) bad.reporterBps = 5001;
            vm.expectRevert(StakeManager.BadConfig.selector);
            new StakeManager(bad);
        }
    }
}
