// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {vm} from "../script/Vm.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {RewardDistributor} from "../src/RewardDistributor.sol";
import {SessionEscrow} from "../src/SessionEscrow.sol";
import {StakeManager} from "../src/StakeManager.sol";
import {VoucherCollector} from "../src/VoucherCollector.sol";
import {Stage} from "../src/lib/Split.sol";
import {TokenIn} from "../src/lib/TokenIn.sol";
import {Base} from "./Base.sol";
import {
    BlockingToken,
    FalseToken,
    FeeToken,
    LyingToken,
    PlainToken,
    ReentrantToken
} from "./mocks/Tokens.sol";
import {Wallet} from "./mocks/Wallets.sol";

/// What went wrong elsewhere, each as a test that would fail if it went wrong here.
contract KnownFailuresTest is Base {
    address internal constant OPERATOR = address(0x0123);
    address internal constant THIEF = address(0xBAD);
    uint256 internal constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    function staked() internal returns (uint128 shares) {
        allowSlasher(NODE);
        fund(OPERATOR, 1e20, address(s.stake));
        vm.startPrank(OPERATOR);
        s.stake.stake(1e20);
        shares = s.stake.provision(NODE, 1e20);
        vm.stopPrank();
    }

    function test_stake_slashReachesWhatIsUnbonding() public {
        uint128 shares = staked();
        vm.prank(OPERATOR);
        uint256 id = s.stake.thaw(OPERATOR, NODE, shares);
        vm.prank(SLASHER);
        vm.assertEq(s.stake.slash(OPERATOR, NODE, 1e19, REPORTER), 1e19);
        vm.warp(START + 21 days);
        vm.prank(OPERATOR);
        vm.assertEq(s.stake.withdraw(id), 9e19);
    }

    /// Also after the thaw is over, as long as nothing was withdrawn.
    function test_stake_slashReachesWhatHasThawed() public {
        uint128 shares = staked();
        vm.prank(OPERATOR);
        uint256 id = s.stake.thaw(OPERATOR, NODE, shares);
        vm.warp(START + 30 days);
        vm.prank(SLASHER);
        s.stake.slash(OPERATOR, NODE, 1e19, REPORTER);
        vm.prank(OPERATOR);
        vm.assertEq(s.stake.withdraw(id), 9e19);
    }

    function test_stake_unbondingDoesNotEndBeforeADispute() public {
        uint128 shares = staked();
        vm.prank(OPERATOR);
        uint256 id = s.stake.thaw(OPERATOR, NODE, shares);
        vm.warp(START + 21 days - 1);
        vm.prank(SLASHER);
        s.stake.hold(OPERATOR, NODE, uint40(START + 40 days));
        vm.warp(START + 21 days);
        vm.prank(OPERATOR);
        vm.expectRevert(abi.encodeWithSelector(StakeManager.NotReleased.selector, START + 40 days));
        s.stake.withdraw(id);
    }

    function testFuzz_stake_nobodyTouchesAnothersThaw(address other) public {
        uint128 shares = staked();
        vm.assume(other != OPERATOR && other != address(s.stake) && other != address(0));
        vm.prank(OPERATOR);
        uint256 id = s.stake.thaw(OPERATOR, NODE, shares / 2);
        // Not by delegating to the operator and thawing that,
        pod.transfer(other, 1e18);
        vm.startPrank(other);
        pod.approve(address(s.stake), 1e18);
        uint128 own = s.stake.delegate(OPERATOR, NODE, 1e18, 0);
        s.stake.thaw(OPERATOR, NODE, own);
        // nor by thawing or withdrawing what is the operator's.
        vm.expectRevert(abi.encodeWithSelector(StakeManager.TooMuch.selector, 1, 0));
        s.stake.thaw(OPERATOR, NODE, 1);
        vm.warp(START + 21 days);
        vm.expectRevert(abi.encodeWithSelector(StakeManager.NotOwner.selector, id));
        s.stake.withdraw(id);
        vm.stopPrank();
        vm.prank(OPERATOR);
        vm.assertEq(s.stake.withdraw(id), 5e19);
    }

    /// A second thaw neither delays nor hastens the first.
    function test_stake_aLaterThawDoesNotMoveAnEarlierOne() public {
        uint128 shares = staked();
        vm.startPrank(OPERATOR);
        uint256 first = s.stake.thaw(OPERATOR, NODE, shares / 2);
        vm.warp(START + 20 days);
        uint256 second = s.stake.thaw(OPERATOR, NODE, shares / 2);
        vm.warp(START + 21 days);
        vm.assertEq(s.stake.withdraw(first), 5e19);
        vm.expectRevert(abi.encodeWithSelector(StakeManager.NotReleased.selector, START + 41 days));
        s.stake.withdraw(second);
    }

    function testFuzz_escrow_nobodyTouchesAnothersLock(address other) public {
        VoucherCollector.Plan memory p = plan("session", 1);
        vm.assume(other != p.payer);
        lockFor(p, 100);
        bytes32 hash = s.collector.hashPlan(p);
        vm.prank(p.payer);
        s.escrow.thaw(address(s.collector), hash);
        vm.warp(START + 3 days);
        vm.startPrank(other);
        vm.expectRevert(SessionEscrow.NotThawing.selector);
        s.escrow.cancelThaw(address(s.collector), hash);
        vm.expectRevert(SessionEscrow.NotThawing.selector);
        s.escrow.release(address(s.collector), hash);
        vm.expectRevert(abi.encodeWithSelector(SessionEscrow.TooMuch.selector, 100, balance(other)));
        s.escrow.withdraw(other, 100);
        vm.stopPrank();
    }

    /// The same voucher under (r, n - s), under the compact form, and signed anew pays nothing more.
    function test_vouchers_areKeyedBySessionNotBySignature() public {
        VoucherCollector.Plan memory p = plan("session", 1);
        lockFor(p, 100);
        VoucherCollector.Item memory voucher = item(p, 10, PAYER_KEY);
        s.collector.collect(voucher);
        bytes32 digest = s.collector
            .voucherDigest(
                p.session, s.collector.hashPlan(p), voucher.total, voucher.chunk, voucher.commitments
            );
        (uint8 v, bytes32 r, bytes32 t) = vm.sign(PAYER_KEY, digest);
        bytes memory refusal = abi.encodeWithSelector(VoucherCollector.BadSignature.selector, p.payer);
        voucher.signature = abi.encodePacked(r, bytes32(ORDER - uint256(t)), v == 27 ? uint8(28) : uint8(27));
        vm.expectRevert(refusal);
        s.collector.collect(voucher);
        voucher.signature = abi.encodePacked(r, bytes32(uint256(t) | (uint256(v - 27) << 255)));
        vm.expectRevert(refusal);
        s.collector.collect(voucher);
        // Another signature that is valid: of a wallet, which takes any of its owner's.
        vm.prank(p.payer);
        s.collector.authoriseSigner(vm.addr(77));
        voucher = item(p, 10, 77);
        vm.expectRevert(abi.encodeWithSelector(SessionEscrow.NothingDue.selector, 10, 10));
        s.collector.collect(voucher);
    }

    function testFuzz_vouchers_regressOrReplayForNothing(uint128 first, uint128 second) public {
        VoucherCollector.Plan memory p = plan("session", 1);
        first = uint128(bound(first, 1, 1e24));
        second = uint128(bound(second, 0, first));
        lockFor(p, 1e24);
        s.collector.collect(item(p, first, PAYER_KEY));
        VoucherCollector.Item memory voucher = item(p, second, PAYER_KEY);
        vm.expectRevert(abi.encodeWithSelector(SessionEscrow.NothingDue.selector, second, first));
        s.collector.collect(voucher);
    }

    /// What was collected is remembered when a plan's money is taken back and locked again.
    function test_vouchers_doNotPayAgainAfterALockIsRenewed() public {
        VoucherCollector.Plan memory p = plan("session", 1);
        lockFor(p, 100);
        bytes32 hash = s.collector.hashPlan(p);
        VoucherCollector.Item memory voucher = item(p, 60, PAYER_KEY);
        s.collector.collect(voucher);
        vm.startPrank(p.payer);
        s.escrow.thaw(address(s.collector), hash);
        vm.warp(START + 3 days);
        s.escrow.release(address(s.collector), hash);
        s.escrow.lock(address(s.collector), hash, 40);
        vm.stopPrank();
        vm.warp(START);
        vm.expectRevert(abi.encodeWithSelector(SessionEscrow.NothingDue.selector, 60, 60));
        s.collector.collect(voucher);
    }

    function testFuzz_vouchers_areWorthNothingOnAnotherChain(uint64 chain) public {
        vm.assume(chain != block.chainid && chain != 0);
        VoucherCollector.Plan memory p = plan("session", 1);
        lockFor(p, 100);
        VoucherCollector.Item memory voucher = item(p, 10, PAYER_KEY);
        vm.chainId(chain);
        vm.expectRevert(abi.encodeWithSelector(VoucherCollector.BadSignature.selector, p.payer));
        s.collector.collect(voucher);
    }

    function test_vouchers_areWorthNothingAtAnotherContract() public {
        VoucherCollector.Plan memory p = plan("session", 1);
        lockFor(p, 100);
        VoucherCollector.Item memory voucher = item(p, 10, PAYER_KEY);
        VoucherCollector other = new VoucherCollector(s.escrow, 1 days);
        vm.expectRevert(abi.encodeWithSelector(VoucherCollector.BadSignature.selector, p.payer));
        other.collect(voucher);
        // Nor does its own voucher reach a lock that names the first.
        voucher.signature = sign(
            PAYER_KEY,
            other.voucherDigest(p.session, other.hashPlan(p), 10, voucher.chunk, voucher.commitments)
        );
        vm.expectRevert(SessionEscrow.NothingLocked.selector);
        other.collect(voucher);
    }

    function test_nodes_signaturesAreWorthNothingElsewhere() public {
        NodeRegistry other = new NodeRegistry();
        vm.assertTrue(other.bindingDigest("node", address(1)) != s.nodes.bindingDigest("node", address(1)));
        bytes32 here = s.nodes.bindingDigest("node", address(1));
        vm.chainId(block.chainid + 1);
        vm.assertTrue(s.nodes.bindingDigest("node", address(1)) != here);
    }

    function test_rewards_leavesAreWorthNothingElsewhere() public {
        bytes32 here = s.rewards.leafOf(address(1), 1);
        vm.chainId(block.chainid + 1);
        vm.assertTrue(s.rewards.leafOf(address(1), 1) != here);
    }

    /// An inner node, or a leaf of 64 bytes, is no account's leaf.
    function test_rewards_anInnerNodeIsNoLeaf() public {
        pod.transfer(address(s.rewards), 100);
        bytes32 root = s.rewards.leafOf(THIEF, 100);
        bytes32 unhashed = keccak256(abi.encode(block.chainid, address(s.rewards), THIEF, uint128(100)));
        vm.assertTrue(root != unhashed);
        vm.prank(POSTER);
        s.rewards.post(unhashed, 100);
        vm.warp(START + 1 days);
        vm.expectRevert(RewardDistributor.BadProof.selector);
        s.rewards.claim(THIEF, 100, new bytes32[](0));
    }

    function testFuzz_split_theRestGoesToTheLastStage(uint128 amount) public {
        amount = uint128(bound(amount, 1, 1e24));
        VoucherCollector.Plan memory p = plan("session", 3);
        (p.stages[0].weight, p.stages[1].weight, p.stages[2].weight) = (1, 1, 1);
        lockFor(p, amount);
        s.collector.collect(item(p, amount, PAYER_KEY));
        vm.assertEq(balance(p.stages[0].payee), amount / 3);
        vm.assertEq(balance(p.stages[1].payee), amount / 3);
        vm.assertEq(balance(p.stages[2].payee), amount - 2 * (amount / 3));
    }

    /// A payee that the token refuses to pay harms itself alone.
    function test_pull_aBlockedPayeeHoldsUpNobody() public {
        BlockingToken token = new BlockingToken();
        SessionEscrow escrow = new SessionEscrow(token, 3 days);
        VoucherCollector collector = new VoucherCollector(escrow, 1 days);
        VoucherCollector.Plan memory p = plan("session", 2);
        token.mint(p.payer, 100);
        token.setBlocked(p.stages[0].payee);
        vm.startPrank(p.payer);
        token.approve(address(escrow), 100);
        escrow.deposit(p.payer, 100);
        escrow.lock(address(collector), collector.hashPlan(p), 100);
        vm.stopPrank();
        VoucherCollector.Item memory voucher = item(p, 90, PAYER_KEY);
        voucher.signature = sign(
            PAYER_KEY,
            collector.voucherDigest(p.session, collector.hashPlan(p), 90, voucher.chunk, voucher.commitments)
        );
        vm.assertEq(collector.collect(voucher), 90);
        vm.prank(p.stages[1].payee);
        escrow.withdraw(p.stages[1].payee, 60);
        vm.prank(p.stages[0].payee);
        vm.expectRevert(bytes("blocked"));
        escrow.withdraw(p.stages[0].payee, 30);
        vm.prank(p.stages[0].payee);
        escrow.withdraw(address(9), 30);
    }

    /// A contract that somebody is made to call has none of their power: the caller counts, not the origin.
    function test_origin_aPhishedCallMovesNothing() public {
        VoucherCollector.Plan memory p = plan("session", 1);
        lockFor(p, 100);
        bytes32 hash = s.collector.hashPlan(p);
        Wallet trap = new Wallet(THIEF);
        bytes memory thaw = abi.encodeCall(SessionEscrow.thaw, (address(s.collector), hash));
        vm.prank(p.payer, p.payer);
        vm.expectRevert(bytes("call failed"));
        trap.act(address(s.escrow), thaw);
        bytes memory authorise = abi.encodeCall(VoucherCollector.authoriseSigner, (THIEF));
        vm.prank(p.payer, p.payer);
        trap.act(address(s.collector), authorise);
        vm.assertFalse(s.collector.isSigner(p.payer, THIEF));
    }

    /// What a payee can rely on: from any moment on, a lock lasts longer than vouchers are taken.
    function testFuzz_windows_noLockEndsInsideTheSettlementWindow(uint32 later) public {
        VoucherCollector.Plan memory p = plan("session", 1);
        lockFor(p, 100);
        bytes32 hash = s.collector.hashPlan(p);
        vm.prank(p.payer);
        s.escrow.thaw(address(s.collector), hash);
        vm.warp(START + bound(later, 0, s.collector.settlementWindow()));
        vm.prank(p.payer);
        vm.expectRevert(abi.encodeWithSelector(SessionEscrow.NotThawed.selector, START + 3 days));
        s.escrow.release(address(s.collector), hash);
        vm.assertEq(s.collector.collect(item(p, 100, PAYER_KEY)), 100);
    }

    /// The one who deployed, and anybody else, is no admin; the timelock is, and only by a vote.
    function testFuzz_upgrade_noKeyWithoutTheTimelock(address caller) public {
        vm.assume(caller != address(s.timelock));
        (bool admin,) = s.manager.hasRole(0, caller);
        vm.assertFalse(admin);
        vm.assertFalse(s.timelock.hasRole(s.timelock.DEFAULT_ADMIN_ROLE(), caller));
        uint64 slasher = s.stake.slasherOf(NODE);
        vm.startPrank(caller);
        vm.expectRevert();
        s.manager.grantRole(slasher, caller, 0);
        vm.expectRevert();
        s.models.setAuthority(caller);
        vm.expectRevert();
        pod.setAuthority(caller);
        vm.expectRevert();
        s.rewards.setAuthority(caller);
        vm.stopPrank();
    }

    /// Not even the timelock can change what an open session or a stake relies on: there is nothing to call.
    function test_parameters_nobodyCanChangeThem() public {
        string[7] memory setters = [
            "setThawPeriod(uint64)",
            "setSettlementWindow(uint64)",
            "setSlashCapBps(uint16)",
            "setAuthority(address)",
            "upgradeTo(address)",
            "upgradeToAndCall(address,bytes)",
            "transferOwnership(address)"
        ];
        address[3] memory targets = [address(s.escrow), address(s.collector), address(s.stake)];
        for (uint256 i = 0; i < targets.length; ++i) {
            for (uint256 k = 0; k < setters.length; ++k) {
                vm.prank(address(s.timelock));
                (bool done,) = targets[i].call(abi.encodeWithSignature(setters[k], uint256(1), 0x40, 0));
                vm.assertFalse(done);
            }
            // The slot where proxies (ERC-1967) keep their implementation is empty.
            bytes32 slot = bytes32(uint256(keccak256("eip1967.proxy.implementation")) - 1);
            vm.assertEq(vm.load(targets[i], slot), 0);
        }
    }

    // Hostile tokens

    function hostile(PlainToken token) internal returns (SessionEscrow escrow, StakeManager stake) {
        escrow = new SessionEscrow(token, 3 days);
        stake = new StakeManager(
            StakeManager.Config({
                token: IERC20(address(token)),
                manager: s.manager,
                treasury: address(1),
                thawPeriod: 2 days,
                slashEpoch: 1 days,
                slashCapBps: 1000,
                reporterBps: 0
            })
        );
        token.mint(address(this), 1000);
        token.approve(address(escrow), 1000);
        token.approve(address(stake), 1000);
    }

    function test_tokens_aFeeOnTransferIsRefused() public {
        (SessionEscrow escrow, StakeManager stake) = hostile(new FeeToken());
        bytes memory refusal = abi.encodeWithSelector(TokenIn.ShortTransfer.selector, 1000, 990);
        vm.expectRevert(refusal);
        escrow.deposit(address(this), 1000);
        vm.expectRevert(refusal);
        stake.stake(1000);
        vm.expectRevert(refusal);
        stake.delegate(OPERATOR, NODE, 1000, 0);
    }

    function test_tokens_falseIsAFailure() public {
        FalseToken token = new FalseToken();
        (SessionEscrow escrow, StakeManager stake) = hostile(token);
        bytes memory refusal =
            abi.encodeWithSelector(SafeERC20.SafeERC20FailedOperation.selector, address(token));
        vm.expectRevert(refusal);
        escrow.deposit(address(this), 1000);
        vm.expectRevert(refusal);
        stake.stake(1000);
        vm.expectRevert(refusal);
        stake.delegate(OPERATOR, NODE, 1000, 0);
    }

    function test_tokens_aLieIsFoundOut() public {
        (SessionEscrow escrow, StakeManager stake) = hostile(new LyingToken());
        bytes memory refusal = abi.encodeWithSelector(TokenIn.ShortTransfer.selector, 1000, 0);
        vm.expectRevert(refusal);
        escrow.deposit(address(this), 1000);
        vm.expectRevert(refusal);
        stake.stake(1000);
    }

    function assertGuarded(ReentrantToken token) internal view {
        vm.assertTrue(token.refused());
        vm.assertEq(
            bytes32(token.reason()), bytes32(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector)
        );
    }

    function test_tokens_reentryIsRefused_escrow() public {
        ReentrantToken token = new ReentrantToken();
        (SessionEscrow escrow,) = hostile(token);
        token.arm(address(escrow), abi.encodeCall(SessionEscrow.deposit, (THIEF, 100)));
        escrow.deposit(address(this), 500);
        assertGuarded(token);
        token.arm(address(escrow), abi.encodeCall(SessionEscrow.withdraw, (THIEF, 100)));
        escrow.withdraw(address(this), 200);
        assertGuarded(token);
        (uint128 free,) = escrow.accounts(address(this));
        vm.assertEq(free, 300);
        vm.assertEq(token.balanceOf(address(escrow)), 300);
    }

    function test_tokens_reentryIsRefused_stake() public {
        ReentrantToken token = new ReentrantToken();
        (, StakeManager stake) = hostile(token);
        token.arm(address(stake), abi.encodeCall(StakeManager.stake, (100)));
        stake.stake(500);
        assertGuarded(token);
        token.arm(address(stake), abi.encodeCall(StakeManager.unstake, (THIEF, 100)));
        stake.unstake(address(this), 200);
        assertGuarded(token);
        token.arm(address(stake), abi.encodeCall(StakeManager.delegate, (THIEF, NODE, 100, 0)));
        stake.delegate(OPERATOR, NODE, 100, 0);
        assertGuarded(token);
        uint256 id = stake.thaw(OPERATOR, NODE, 50);
        vm.warp(START + 2 days);
        token.arm(address(stake), abi.encodeCall(StakeManager.withdraw, (id)));
        stake.withdraw(id);
        assertGuarded(token);
        vm.assertEq(token.balanceOf(address(stake)), 350);
    }

    function test_tokens_reentryIsRefused_rewards() public {
        ReentrantToken token = new ReentrantToken();
        RewardDistributor.Config memory config;
        (config.token, config.activationDelay) = (token, 1);
        RewardDistributor rewards = new RewardDistributor(address(this), config);
        token.mint(address(rewards), 100);
        rewards.post(rewards.leafOf(THIEF, 60), 100);
        vm.warp(START + 1);
        token.arm(address(rewards), abi.encodeCall(RewardDistributor.claim, (THIEF, 60, new bytes32[](0))));
        rewards.claim(THIEF, 60, new bytes32[](0));
        assertGuarded(token);
        vm.assertEq(token.balanceOf(THIEF), 60);
    }

    /// The test is the manager of the contract above.
    function canCall(address, address, bytes4) external pure returns (bool, uint32) {
        return (true, 0);
    }

    function test_stages_noneIsLeftUnpaidBecauseOfAnother() public {
        // A payee that is the payer itself, or the escrow, or twice in the list, changes no sum.
        VoucherCollector.Plan memory p = plan("session", 4);
        p.stages[0] = Stage(p.payer, 1);
        p.stages[1] = Stage(address(s.escrow), 1);
        p.stages[2] = Stage(p.stages[3].payee, 1);
        p.stages[3].weight = 1;
        lockFor(p, 100);
        vm.assertEq(s.collector.collect(item(p, 100, PAYER_KEY)), 100);
        vm.assertEq(balance(p.payer), 25);
        vm.assertEq(balance(address(s.escrow)), 25);
        vm.assertEq(balance(p.stages[3].payee), 50);
    }
}
