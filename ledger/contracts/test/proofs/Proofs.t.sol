// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IAccessManager} from "@openzeppelin/contracts/access/manager/IAccessManager.sol";

import {vm} from "../../script/Vm.sol";
import {SessionEscrow} from "../../src/SessionEscrow.sol";
import {StakeManager} from "../../src/StakeManager.sol";
import {SharePool, SharePools} from "../../src/lib/SharePool.sol";
import {Payment, Split, Stage} from "../../src/lib/Split.sol";
import {PlainToken} from "../mocks/Tokens.sol";

// Products and quotients of unknowns are beyond the solvers at full width. What follows from any quotient is
// shown for all 128 bits; what needs its value, for this many.
uint256 constant SMALL = 4;

/// What halmos shows for all inputs at once, not for some: run with `halmos --function check_`.
contract PoolProofs {
    using SharePools for SharePool;

    SharePool internal pool;

    /// Any state that the contract's own invariants allow, with numbers below 2^`bits`.
    function any(uint128 tokens, uint128 shares, uint256 bits) internal {
        vm.assume(tokens >> bits == 0 && shares >> bits == 0);
        vm.assume(tokens <= shares && (tokens == 0) == (shares == 0));
        (pool.tokens, pool.shares) = (tokens, shares);
    }

    function assertSound() internal view {
        assert(pool.tokens <= pool.shares);
        assert((pool.tokens == 0) == (pool.shares == 0));
    }

    /// A cut takes exactly what it says, and touches no share unless nothing is left.
    function check_cutConserves(uint128 tokens, uint128 shares, uint128 amount) public {
        any(tokens, shares, 128);
        vm.assume(amount <= tokens);
        bool wiped = pool.cut(amount);
        assert(pool.tokens == tokens - amount);
        assert(wiped ? pool.tokens == 0 : pool.shares == shares);
        assertSound();
    }

    /// Joining adds exactly the tokens and the shares that it says.
    function check_joinConserves(uint128 tokens, uint128 shares, uint128 amount) public {
        any(tokens, shares, 128);
        vm.assume(amount != 0);
        uint128 minted = pool.join(amount);
        assert(pool.tokens == tokens + amount);
        assert(pool.shares == shares + minted);
    }

    /// A share costs at most a token, before and after.
    function check_joinIsFair(uint128 tokens, uint128 shares, uint128 amount) public {
        any(tokens, shares, SMALL);
        vm.assume(amount != 0 && amount >> SMALL == 0);
        assert(pool.join(amount) >= amount);
        assertSound();
    }

    /// Leaving takes exactly the tokens and the shares that it says.
    function check_redeemConserves(uint128 tokens, uint128 shares, uint128 burned) public {
        any(tokens, shares, 128);
        vm.assume(burned != 0 && burned <= shares);
        uint128 amount = pool.redeem(burned);
        assert(pool.tokens == tokens - amount);
        assert(pool.shares == shares - burned);
    }

    /// Nobody gets more tokens than it gives up shares, and what stays is as sound as before.
    function check_redeemIsFair(uint128 tokens, uint128 shares, uint128 burned) public {
        any(tokens, shares, SMALL);
        vm.assume(burned != 0 && burned <= shares);
        assert(pool.redeem(burned) <= burned);
        assertSound();
    }
}

contract SplitProofs {
    function divide(uint128 amount, Stage[] calldata stages) external pure returns (Payment[] memory) {
        return Split.divide(amount, stages);
    }

    /// Three stages' payments add up to the whole.
    /// @custom:halmos --loop 4
    function check_sharesAddUpToTheWhole(uint128 amount, uint64 a, uint64 b, uint64 c) public view {
        vm.assume(a != 0 || b != 0 || c != 0);
        Stage[] memory stages = new Stage[](3);
        (stages[0].weight, stages[1].weight, stages[2].weight) = (a, b, c);
        Payment[] memory payments = this.divide(amount, stages);
        assert(uint256(payments[0].amount) + payments[1].amount + payments[2].amount == amount);
    }
}

contract EscrowProofs {
    bytes32 internal constant PLAN = keccak256("plan");
    address internal constant STAGE = address(0x57A6E);
    PlainToken internal token = new PlainToken();
    SessionEscrow internal escrow = new SessionEscrow(token, 3 days);

    function locked(uint128 amount) internal {
        vm.assume(amount != 0);
        token.mint(address(this), amount);
        token.approve(address(escrow), amount);
        escrow.deposit(address(this), amount);
        escrow.lock(address(this), PLAN, amount);
    }

    function collect(uint128 total) internal returns (uint128) {
        Stage[] memory stages = new Stage[](1);
        stages[0] = Stage(STAGE, 1);
        (bool done, bytes memory answer) =
            address(escrow).call(abi.encodeCall(SessionEscrow.collect, (address(this), PLAN, total, stages)));
        return done ? abi.decode(answer, (uint128)) : 0;
    }

    /// However two vouchers follow each other: what was paid is the larger total, as far as the lock goes;
    /// what was collected never falls; nothing is paid that was not locked.
    function check_vouchersAreMonotonous(uint128 amount, uint128 first, uint128 second) public {
        locked(amount);
        uint128 paid = collect(first);
        SessionEscrow.Lock memory between = escrow.lockOf(address(this), address(this), PLAN);
        assert(between.collected == paid && paid == (first < amount ? first : amount));
        uint256 all = uint256(paid) + collect(second);
        SessionEscrow.Lock memory end = escrow.lockOf(address(this), address(this), PLAN);
        uint128 high = first > second ? first : second;
        assert(all == (high < amount ? high : amount));
        assert(end.collected == all && end.collected >= between.collected);
        assert(end.remaining == amount - all);
        (uint128 free,) = escrow.accounts(STAGE);
        assert(free == all);
    }

    /// Before a thaw is over, nothing that was locked becomes free.
    function check_noReleaseInsideAThaw(uint128 amount, uint64 later) public {
        locked(amount);
        escrow.thaw(address(this), PLAN);
        vm.assume(later < 3 days);
        vm.warp(block.timestamp + later);
        (bool done,) = address(escrow).call(abi.encodeCall(SessionEscrow.release, (address(this), PLAN)));
        assert(!done);
    }
}

contract StakeProofs {
    uint32 internal constant ROLE = 1;
    address internal constant REPORTER = address(0x4E9);
    address internal constant TREASURY = address(0x7EA5);
    PlainToken internal token = new PlainToken();
    StakeManager internal stake;

    constructor() {
        StakeManager.Config memory config;
        (config.token, config.manager, config.treasury) = (token, IAccessManager(address(this)), TREASURY);
        (config.thawPeriod, config.slashEpoch) = (21 days, 1 days);
        (config.slashCapBps, config.reporterBps) = (2000, 1000);
        stake = new StakeManager(config);
    }

    /// The contract is its own AccessManager, in which it may slash.
    function hasRole(uint64, address account) external view returns (bool, uint32) {
        return (account == address(this), 0);
    }

    function bonded(uint128 bond) internal {
        token.mint(address(this), bond);
        token.approve(address(stake), bond);
        stake.stake(bond);
        stake.provision(ROLE, bond);
    }

    function slash(uint128 amount) internal returns (bool, bytes memory) {
        return
            address(stake).call(abi.encodeCall(StakeManager.slash, (address(this), ROLE, amount, REPORTER)));
    }

    /// For every slash of one bond of which a part thaws: no more is taken than asked, than there is and than the
    /// cap allows, and the contract still holds exactly what it owes.
    function check_aSlashIsSolvent(uint128 amount) public {
        (uint128 bond, uint128 part) = (57, 22);
        bonded(bond);
        stake.thaw(address(this), ROLE, part);
        (bool done, bytes memory answer) = slash(amount);
        assert(done || bytes4(answer) == StakeManager.NothingToSlash.selector);
        uint128 taken = done ? abi.decode(answer, (uint128)) : 0;
        StakeManager.Pool memory pool = stake.poolOf(address(this), ROLE);
        assert(taken <= amount && uint256(taken) * 10_000 <= uint256(bond) * 2000);
        assert(uint256(pool.active.tokens) + pool.thawing.tokens + taken == bond);
        assert(stake.claimable(REPORTER) + stake.claimable(TREASURY) == taken);
        assert(token.balanceOf(address(stake)) == bond);
        assert(stake.getVotes(address(this)) == pool.active.tokens);
    }
}
