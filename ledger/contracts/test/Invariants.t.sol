// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {vm} from "../script/Vm.sol";
import {SessionEscrow} from "../src/SessionEscrow.sol";
import {StakeManager} from "../src/StakeManager.sol";
import {VoucherCollector} from "../src/VoucherCollector.sol";
import {Stage} from "../src/lib/Split.sol";
import {Base} from "./Base.sol";

/// Does at random what payers, signers and stages can do, and keeps its own books.
contract EscrowHandler {
    uint256 internal constant PLANS = 5;
    SessionEscrow public immutable escrow;
    VoucherCollector public immutable collector;
    IERC20 public immutable token;
    address[] public accounts;
    uint256[] internal keys;

    mapping(uint256 plan => uint256) public highest;
    mapping(uint256 plan => uint256) public paid;

    constructor(SessionEscrow escrow_, VoucherCollector collector_) {
        (escrow, collector, token) = (escrow_, collector_, escrow_.token());
        for (uint256 i = 1; i <= 3; ++i) {
            keys.push(i);
            accounts.push(vm.addr(i));
        }
        accounts.push(address(0x57A6E000));
        accounts.push(address(0x57A6E001));
        for (uint256 i = 0; i < 3; ++i) {
            vm.prank(accounts[i]);
            token.approve(address(escrow), type(uint256).max);
        }
    }

    function deposit(uint256 who, uint256 whose, uint128 amount) external {
        (address from, address to) = (accounts[who % 3], accounts[whose % accounts.length]);
        uint256 most = token.balanceOf(from);
        if (most == 0) return;
        vm.prank(from);
        escrow.deposit(to, uint128(1 + amount % most));
    }

    function withdraw(uint256 who, uint128 amount) external {
        address from = accounts[who % accounts.length];
        (uint128 most,) = escrow.accounts(from);
        if (most == 0) return;
        vm.prank(from);
        escrow.withdraw(accounts[who % 3], 1 + amount % most);
    }

    function lock(uint256 number, uint128 amount) external {
        number %= PLANS;
        address payer = plan(number).payer;
        (uint128 most,) = escrow.accounts(payer);
        if (most == 0 || lockOf(number).thawsAt != 0) return;
        bytes32 hashed = hash(number);
        vm.prank(payer);
        escrow.lock(address(collector), hashed, 1 + amount % most);
    }

    function thaw(uint256 number, bool cancel) external {
        number %= PLANS;
        SessionEscrow.Lock memory entry = lockOf(number);
        bytes32 hashed = hash(number);
        vm.startPrank(plan(number).payer);
        if (entry.thawsAt == 0 && entry.remaining != 0) escrow.thaw(address(collector), hashed);
        else if (entry.thawsAt != 0 && cancel) escrow.cancelThaw(address(collector), hashed);
        vm.stopPrank();
    }

    function release(uint256 number, uint32 later) external {
        number %= PLANS;
        SessionEscrow.Lock memory entry = lockOf(number);
        vm.warp(block.timestamp + later % 2 days);
        if (entry.thawsAt == 0 || block.timestamp < entry.thawsAt) return;
        (address payer, bytes32 hashed) = (plan(number).payer, hash(number));
        vm.prank(payer);
        escrow.release(address(collector), hashed);
    }

    function collect(uint256 number, uint128 total, bool twice) external {
        number %= PLANS;
        VoucherCollector.Plan memory p = plan(number);
        total %= 1e22;
        uint256 count = twice ? 2 : 1;
        VoucherCollector.Item[] memory items = new VoucherCollector.Item[](count);
        bytes32 digest = collector.voucherDigest(p.session, hash(number), total, 0, 0);
        (uint8 v, bytes32 r, bytes32 t) = vm.sign(keys[number % 3], digest);
        for (uint256 i = 0; i < count; ++i) {
            items[i] = VoucherCollector.Item(p, total, 0, 0, p.payer, abi.encodePacked(r, t, v));
        }
        uint256 got = collector.collectBatch(items);
        if (total > highest[number]) highest[number] = total;
        paid[number] += got;
    }

    function plan(uint256 number) public view returns (VoucherCollector.Plan memory p) {
        p.session = bytes32(number);
        p.payer = accounts[number % 3];
        p.expiry = type(uint64).max;
        p.stages = new Stage[](2 + number % 2);
        for (uint256 i = 0; i < p.stages.length; ++i) {
            p.stages[i] = Stage(accounts[(number + i + 2) % accounts.length], uint64(1 + i * 7));
        }
    }

    function hash(uint256 number) public view returns (bytes32) {
        return collector.hashPlan(plan(number));
    }

    function lockOf(uint256 number) public view returns (SessionEscrow.Lock memory) {
        return escrow.lockOf(plan(number).payer, address(collector), hash(number));
    }

    function held() external view returns (uint256 sum) {
        for (uint256 i = 0; i < accounts.length; ++i) {
            (uint128 free,) = escrow.accounts(accounts[i]);
            sum += free;
        }
        for (uint256 i = 0; i < PLANS; ++i) {
            sum += lockOf(i).remaining;
        }
    }

    function wealth() external view returns (uint256 sum) {
        for (uint256 i = 0; i < accounts.length; ++i) {
            sum += token.balanceOf(accounts[i]);
        }
    }

    function plans() external pure returns (uint256) {
        return PLANS;
    }
}

contract EscrowInvariants is Base {
    EscrowHandler internal handler;

    function setUp() public override {
        super.setUp();
        handler = new EscrowHandler(s.escrow, s.collector);
        for (uint256 i = 0; i < 3; ++i) {
            pod.transfer(handler.accounts(i), 1e22);
        }
    }

    function targetContracts() public view returns (address[] memory list) {
        list = new address[](1);
        list[0] = address(handler);
    }

    function invariant_theEscrowHoldsWhatItOwes() public view {
        vm.assertEq(handler.held(), pod.balanceOf(address(s.escrow)));
    }

    function invariant_noTokenIsMadeOrLost() public view {
        vm.assertEq(handler.wealth() + pod.balanceOf(address(s.escrow)), 3e22);
    }

    function invariant_noVoucherPaysTwice() public view {
        for (uint256 i = 0; i < handler.plans(); ++i) {
            SessionEscrow.Lock memory entry = handler.lockOf(i);
            vm.assertEq(entry.collected, handler.paid(i));
            vm.assertLe(entry.collected, handler.highest(i));
        }
    }
}

/// Does at random what operators, delegators and a slasher can do, and keeps its own books.
contract StakeHandler {
    uint32 internal constant ROLE = 1;
    StakeManager public immutable stake;
    IERC20 public immutable token;
    address public immutable slasher;
    address[] public accounts;
    uint256[] internal open;

    uint256 public slashed;
    bool public overslashed;
    bool public early;

    constructor(StakeManager stake_, address slasher_) {
        (stake, token, slasher) = (stake_, stake_.token(), slasher_);
        for (uint160 i = 1; i <= 4; ++i) {
            accounts.push(address(0xAC0000 + i));
            vm.prank(accounts[i - 1]);
            token.approve(address(stake), type(uint256).max);
        }
    }

    /// Half of the accounts are operators, who also delegate.
    function operator(uint256 who) internal view returns (address) {
        return accounts[who % 2];
    }

    function put(uint256 who, uint128 amount) external {
        address from = operator(who);
        uint256 most = token.balanceOf(from);
        if (most == 0) return;
        vm.prank(from);
        stake.stake(uint128(1 + amount % most));
    }

    function provision(uint256 who, uint128 amount) external {
        address from = operator(who);
        uint128 most = stake.idle(from);
        if (most == 0) return;
        vm.prank(from);
        stake.provision(ROLE, 1 + amount % most);
    }

    function unstake(uint256 who, uint128 amount) external {
        address from = operator(who);
        uint128 most = stake.idle(from);
        if (most == 0) return;
        vm.prank(from);
        stake.unstake(from, 1 + amount % most);
    }

    function delegate(uint256 who, uint256 to, uint128 amount) external {
        address from = accounts[who % accounts.length];
        uint256 most = token.balanceOf(from);
        if (most == 0) return;
        vm.prank(from);
        stake.delegate(operator(to), ROLE, uint128(1 + amount % most), 0);
    }

    function thaw(uint256 who, uint256 of_, uint128 amount) external {
        address from = accounts[who % accounts.length];
        (uint128 most,) = stake.positionOf(operator(of_), ROLE, from);
        if (most == 0) return;
        vm.prank(from);
        try stake.thaw(operator(of_), ROLE, 1 + amount % most) returns (uint256 id) {
            open.push(id);
        } catch (bytes memory reason) {
            // Shares that are worth nothing do not thaw.
            require(bytes4(reason) == StakeManager.ZeroAmount.selector, "unexpected");
        }
    }

    function withdraw(uint256 which, uint32 later) external {
        vm.warp(block.timestamp + later % 15 days);
        if (open.length == 0) return;
        uint256 id = open[which % open.length];
        (address owner, uint40 releaseAt,,,,) = stake.thaws(id);
        vm.prank(owner);
        try stake.withdraw(id) {
            if (block.timestamp < releaseAt) early = true;
            open[which % open.length] = open[open.length - 1];
            open.pop();
        } catch (bytes memory reason) {
            require(bytes4(reason) == StakeManager.NotReleased.selector, "unexpected");
        }
    }

    function slash(uint256 who, uint128 amount, bool rewarded) external {
        StakeManager.Pool memory pool = stake.poolOf(operator(who), ROLE);
        uint256 bond = uint256(pool.active.tokens) + pool.thawing.tokens;
        vm.prank(slasher);
        try stake.slash(operator(who), ROLE, amount % 2e22, rewarded ? accounts[3] : address(0)) returns (
            uint128 taken
        ) {
            if (taken > bond) overslashed = true;
            slashed += taken;
        } catch (bytes memory reason) {
            require(bytes4(reason) == StakeManager.NothingToSlash.selector, "unexpected");
        }
    }

    function hold(uint256 who, uint32 time) external {
        vm.prank(slasher);
        stake.hold(operator(who), ROLE, uint40(block.timestamp + time % 21 days));
    }

    function owed() external view returns (uint256 sum) {
        sum = stake.claimable(accounts[3]) + stake.claimable(stake.treasury());
        for (uint256 i = 0; i < 2; ++i) {
            StakeManager.Pool memory pool = stake.poolOf(accounts[i], ROLE);
            sum += uint256(stake.idle(accounts[i])) + pool.active.tokens + pool.thawing.tokens;
        }
    }

    function wealth() external view returns (uint256 sum) {
        for (uint256 i = 0; i < accounts.length; ++i) {
            sum += token.balanceOf(accounts[i]);
        }
    }

    /// Active shares and their worth over all owners, and thawing shares over all open thaws.
    function sums(address of_) external view returns (uint256 shares, uint256 worth, uint256 thawing) {
        for (uint256 i = 0; i < accounts.length; ++i) {
            (uint128 part, uint128 amount) = stake.positionOf(of_, ROLE, accounts[i]);
            shares += part;
            worth += amount;
        }
        uint24 era = stake.poolOf(of_, ROLE).thawingEra;
        for (uint256 i = 0; i < open.length; ++i) {
            (,, uint24 entered, address of2,, uint128 part) = stake.thaws(open[i]);
            if (of2 == of_ && entered == era) thawing += part;
        }
    }
}

contract StakeInvariants is Base {
    StakeHandler internal handler;

    function setUp() public override {
        super.setUp();
        allowSlasher(NODE);
        handler = new StakeHandler(s.stake, SLASHER);
        for (uint256 i = 0; i < 4; ++i) {
            pod.transfer(handler.accounts(i), 1e22);
        }
    }

    function targetContracts() public view returns (address[] memory list) {
        list = new address[](1);
        list[0] = address(handler);
    }

    function invariant_theManagerHoldsWhatItOwes() public view {
        vm.assertEq(handler.owed(), pod.balanceOf(address(s.stake)));
    }

    function invariant_noTokenIsMadeOrLost() public view {
        vm.assertEq(handler.wealth() + pod.balanceOf(address(s.stake)), 4e22);
    }

    function invariant_sharesAddUp() public view {
        for (uint256 i = 0; i < 2; ++i) {
            StakeManager.Pool memory pool = s.stake.poolOf(handler.accounts(i), NODE);
            (uint256 shares, uint256 worth, uint256 thawing) = handler.sums(handler.accounts(i));
            vm.assertEq(shares, pool.active.shares);
            vm.assertEq(thawing, pool.thawing.shares);
            vm.assertLe(worth, pool.active.tokens);
            vm.assertLe(pool.active.tokens, pool.active.shares);
            vm.assertLe(pool.thawing.tokens, pool.thawing.shares);
            vm.assertEq(pool.active.tokens == 0, pool.active.shares == 0);
            vm.assertEq(pool.thawing.tokens == 0, pool.thawing.shares == 0);
        }
    }

    function invariant_aSlashNeverExceedsTheBond() public view {
        vm.assertFalse(handler.overslashed());
        vm.assertEq(
            handler.slashed(), s.stake.claimable(handler.accounts(3)) + s.stake.claimable(address(s.timelock))
        );
    }

    function invariant_nothingLeavesInsideAThaw() public view {
        vm.assertFalse(handler.early());
    }

    function invariant_votesAreIdleAndActiveStake() public view {
        for (uint256 i = 0; i < 2; ++i) {
            address operator = handler.accounts(i);
            uint256 active = s.stake.poolOf(operator, NODE).active.tokens;
            vm.assertEq(s.stake.getVotes(operator), active + s.stake.idle(operator));
        }
    }
}
