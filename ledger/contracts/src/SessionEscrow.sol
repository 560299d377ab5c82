// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {Payment, Split, Stage} from "./lib/Split.sol";
import {TokenIn} from "./lib/TokenIn.sol";

/// @title Money for sessions
/// @notice A payer deposits, and locks a part for each plan of a session. What is locked pays that plan's
/// stages and nothing else, and comes back only after a thaw, during which it can still be collected. The
/// payer names the collector of a lock, and only that contract collects from it: there is no owner, no role
/// and no parameter that changes.
///
/// Whoever is paid has a balance here and withdraws it; a payee that refuses tokens holds up nobody.
///
/// All amounts are in the token's smallest unit, all times in seconds since 1970.
contract SessionEscrow is ReentrancyGuardTransient {
    using SafeERC20 for IERC20;
    using TokenIn for IERC20;

    /// @notice An account's money.
    /// @param balance Free to be withdrawn or locked.
    /// @param earned All it was ever paid by collectors.
    struct Account {
        uint128 balance;
        uint128 earned;
    }

    /// @notice Money for one plan.
    /// @param remaining What can still be collected.
    /// @param collected What was collected so far. Never falls, also when the plan is locked anew.
    /// @param thawsAt From when the payer can have it back; zero unless it thaws.
    struct Lock {
        uint128 remaining;
        uint128 collected;
        uint64 thawsAt;
    }

    /// @notice What is paid with.
    IERC20 public immutable token;
    /// @notice From `thaw` to `release`, in seconds.
    uint64 public immutable thawPeriod;

    /// @notice Accounts of payers and payees.
    mapping(address account => Account) public accounts;

    mapping(address payer => mapping(address collector => mapping(bytes32 plan => Lock))) private _locks;

    /// @notice Tokens came in.
    event Deposited(address indexed account, address indexed from, uint128 amount);
    /// @notice Tokens went out.
    event Withdrawn(address indexed account, address indexed to, uint128 amount);
    /// @notice Money was locked, or more of it.
    event Locked(address indexed payer, address indexed collector, bytes32 indexed plan, uint128 amount);
    /// @notice A lock began to thaw.
    event ThawStarted(address indexed payer, address indexed collector, bytes32 indexed plan, uint64 thawsAt);
    /// @notice A lock holds again.
    event ThawCancelled(address indexed payer, address indexed collector, bytes32 indexed plan);
    /// @notice What a lock had left is free.
    event Released(address indexed payer, address indexed collector, bytes32 indexed plan, uint128 amount);
    /// @notice Stages were paid from a lock.
    event Collected(
        address indexed payer, address indexed collector, bytes32 indexed plan, Payment[] payments
    );

    /// @notice A parameter of the deployment is out of its bounds.
    error BadConfig();
    /// @notice There is nothing to move.
    error ZeroAmount();
    /// @notice Nobody would be paid.
    error ZeroAddress();
    /// @notice More than there is.
    error TooMuch(uint256 asked, uint256 available);
    /// @notice No more is owed than was collected.
    error NothingDue(uint128 total, uint128 collected);
    /// @notice The lock is empty.
    error NothingLocked();
    /// @notice The lock thaws already.
    error Thawing(uint64 thawsAt);
    /// @notice The lock does not thaw.
    error NotThawing();
    /// @notice It is too early to release.
    error NotThawed(uint64 thawsAt);

    /// @param token_ What is paid with.
    /// @param thawPeriod_ From `thaw` to `release`, in seconds; at most a year. A collector refuses an escrow
    /// whose thaw is not longer than its settlement window.
    constructor(IERC20 token_, uint64 thawPeriod_) {
        if (address(token_) == address(0) || thawPeriod_ == 0 || thawPeriod_ > 365 days) revert BadConfig();
        token = token_;
        thawPeriod = thawPeriod_;
    }

    // Moving in and out

    /// @notice Deposits the caller's tokens to an account.
    /// @param account Whose balance grows.
    /// @param amount How many.
    function deposit(address account, uint128 amount) external nonReentrant {
        _deposit(account, amount);
    }

    /// @notice Deposits to the caller's account with a permit (ERC-2612). A permit that somebody else has used
    /// already does no harm: the allowance is what counts.
    /// @param amount How many; the permit's value too.
    /// @param deadline The permit's deadline.
    /// @param v Of the permit's signature.
    /// @param r Of the permit's signature.
    /// @param s Of the permit's signature.
    function depositWithPermit(uint128 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        external
        nonReentrant
    {
        // The token is called before anything is written, and re-entry is refused.
        // slither-disable-next-line reentrancy-benign
        try IERC20Permit(address(token)).permit(msg.sender, address(this), amount, deadline, v, r, s) {}
            catch {}
        _deposit(msg.sender, amount);
    }

    /// @notice Takes tokens out of the caller's free balance.
    /// @param to Who gets them.
    /// @param amount How many.
    function withdraw(address to, uint128 amount) external nonReentrant {
        _debit(amount);
        emit Withdrawn(msg.sender, to, amount);
        token.safeTransfer(to, amount);
    }

    // Locks

    /// @notice Locks some of the caller's free balance for a plan, or adds to what is locked.
    /// @param collector The contract that may collect.
    /// @param plan Hash of the plan, as the collector defines it.
    /// @param amount How much.
    function lock(address collector, bytes32 plan, uint128 amount) external {
        Lock storage entry = _locks[msg.sender][collector][plan];
        if (entry.thawsAt != 0) revert Thawing(entry.thawsAt);
        _debit(amount);
        entry.remaining += amount;
        emit Locked(msg.sender, collector, plan, amount);
    }

    /// @notice Begins to take a lock's money back. It can be collected from until it is released.
    /// @param collector The lock's collector.
    /// @param plan The lock's plan.
    function thaw(address collector, bytes32 plan) external {
        Lock storage entry = _locks[msg.sender][collector][plan];
        if (entry.thawsAt != 0) revert Thawing(entry.thawsAt);
        if (entry.remaining == 0) revert ZeroAmount();
        entry.thawsAt = uint64(block.timestamp) + thawPeriod;
        emit ThawStarted(msg.sender, collector, plan, entry.thawsAt);
    }

    /// @notice Lets a lock hold again. A later thaw takes its whole time.
    /// @param collector The lock's collector.
    /// @param plan The lock's plan.
    function cancelThaw(address collector, bytes32 plan) external {
        Lock storage entry = _locks[msg.sender][collector][plan];
        if (entry.thawsAt == 0) revert NotThawing();
        entry.thawsAt = 0;
        emit ThawCancelled(msg.sender, collector, plan);
    }

    /// @notice Moves what a thawed lock has left to the caller's free balance.
    /// @param collector The lock's collector.
    /// @param plan The lock's plan.
    /// @return amount How much it was.
    function release(address collector, bytes32 plan) external returns (uint128 amount) {
        Lock storage entry = _locks[msg.sender][collector][plan];
        if (entry.thawsAt == 0) revert NotThawing();
        if (block.timestamp < entry.thawsAt) revert NotThawed(entry.thawsAt);
        amount = entry.remaining;
        entry.remaining = 0;
        entry.thawsAt = 0;
        accounts[msg.sender].balance += amount;
        emit Released(msg.sender, collector, plan, amount);
    }

    /// @notice Pays stages from a lock whose collector the caller is: what a cumulative total adds to what was
    /// collected, as far as the lock goes.
    /// @param payer The lock's payer.
    /// @param plan The lock's plan.
    /// @param total All that the plan's stages have earned so far.
    /// @param stages Who is paid, and in which proportion; the collector bounds how many.
    /// @return paid How much all stages got together.
    function collect(address payer, bytes32 plan, uint128 total, Stage[] calldata stages)
        external
        returns (uint128 paid)
    {
        Lock storage entry = _locks[payer][msg.sender][plan];
        (uint128 remaining, uint128 collected) = (entry.remaining, entry.collected);
        if (total <= collected) revert NothingDue(total, collected);
        if (remaining == 0) revert NothingLocked();
        paid = total - collected < remaining ? total - collected : remaining;
        (entry.remaining, entry.collected) = (remaining - paid, collected + paid);

        Payment[] memory payments = Split.divide(paid, stages);
        for (uint256 i = 0; i < payments.length; ++i) {
            (address payee, uint128 amount) = (payments[i].payee, payments[i].amount);
            if (payee == address(0)) revert ZeroAddress();
            if (amount == 0) continue;
            Account memory account = accounts[payee];
            accounts[payee] = Account(account.balance + amount, account.earned + amount);
        }
        emit Collected(payer, msg.sender, plan, payments);
    }

    // Reading

    /// @notice A lock's state.
    /// @param payer Its payer.
    /// @param collector Its collector.
    /// @param plan Its plan.
    /// @return The lock; all zero if there never was one.
    function lockOf(address payer, address collector, bytes32 plan) external view returns (Lock memory) {
        return _locks[payer][collector][plan];
    }

    function _deposit(address account, uint128 amount) private {
        if (amount == 0) revert ZeroAmount();
        if (account == address(0)) revert ZeroAddress();
        accounts[account].balance += amount;
        emit Deposited(account, msg.sender, amount);
        token.take(msg.sender, amount);
    }

    function _debit(uint128 amount) private {
        if (amount == 0) revert ZeroAmount();
        uint128 available = accounts[msg.sender].balance;
        if (amount > available) revert TooMuch(amount, available);
        accounts[msg.sender].balance = available - amount;
    }
}
