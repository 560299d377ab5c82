// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IAccessManager} from "@openzeppelin/contracts/access/manager/IAccessManager.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {Checkpoints} from "@openzeppelin/contracts/utils/structs/Checkpoints.sol";
import {Time} from "@openzeppelin/contracts/utils/types/Time.sol";

import {IPastVotes} from "./IPastVotes.sol";
import {SharePool, SharePools} from "./lib/SharePool.sol";
import {TokenIn} from "./lib/TokenIn.sol";

/// @title Stake behind roles
/// @notice An operator stakes tokens and provisions them to roles; anyone may delegate to an operator's role.
/// Whoever the AccessManager has given a role's slasher id may take from what stands behind it, thawing or
/// not, up to a cap per epoch. Leaving takes a thaw.
///
/// All amounts are in the token's smallest unit, all times in seconds since 1970.
///
/// Money: `stake` -> idle -> `provision` -> active -> `thaw` -> thawing -> `withdraw`; `delegate` enters at
/// active. A slash goes to the reporter and the treasury, who fetch it with `claim`.
///
/// Nobody can change a period, a cap or a share once the contract is deployed.
contract StakeManager is IPastVotes, ReentrancyGuardTransient {
    using Checkpoints for Checkpoints.Trace208;
    using SafeCast for uint256;
    using SafeERC20 for IERC20;
    using SharePools for SharePool;
    using TokenIn for IERC20;

    /// @notice What is fixed when the contract is deployed.
    /// @param token What is staked.
    /// @param manager Says who holds a role's slasher id.
    /// @param treasury Gets what the reporter does not.
    /// @param thawPeriod From `thaw` to `withdraw`, in seconds; also the longest single `hold`.
    /// @param slashEpoch Length of an epoch of the slashing cap, in seconds; at most half the thaw period.
    /// @param slashCapBps Most that one epoch may cost an operator's role, in basis points of its stake.
    /// @param reporterBps The reporter's share of a slash, in basis points; at most half.
    struct Config {
        IERC20 token;
        IAccessManager manager;
        address treasury;
        uint40 thawPeriod;
        uint40 slashEpoch;
        uint16 slashCapBps;
        uint16 reporterBps;
    }

    /// @notice What stands behind one operator's role.
    /// @param active Earns and votes.
    /// @param thawing On its way out, and still liable.
    /// @param activeEra Counts how often `active` was slashed to nothing; shares of earlier eras are void.
    /// @param thawingEra The same for `thawing`.
    /// @param epoch The epoch of the latest slash.
    /// @param heldUntil Nothing is withdrawn before.
    /// @param slashedInEpoch Taken in `epoch`.
    struct Pool {
        SharePool active;
        SharePool thawing;
        uint24 activeEra;
        uint24 thawingEra;
        uint40 epoch;
        uint40 heldUntil;
        uint128 slashedInEpoch;
    }

    /// @notice Shares in a pool's active tokens.
    struct Position {
        uint128 shares;
        uint24 era;
    }

    /// @notice Shares in a pool's thawing tokens, which their owner may withdraw in time.
    struct Thaw {
        address owner;
        uint40 releaseAt;
        uint24 era;
        address operator;
        uint32 role;
        uint128 shares;
    }

    /// @notice A role's slasher id in the AccessManager is this plus the role, so it is never an id that
    /// stands for something else there.
    uint64 public constant SLASHER_BASE = 1 << 32;
    uint256 private constant BPS = 10_000;

    /// @notice What is staked.
    IERC20 public immutable token;
    /// @notice Says who may slash.
    IAccessManager public immutable manager;
    /// @notice Gets what a reporter does not.
    address public immutable treasury;
    /// @notice From `thaw` to `withdraw`, in seconds.
    uint40 public immutable thawPeriod;
    /// @notice Length of an epoch of the slashing cap, in seconds.
    uint40 public immutable slashEpoch;
    /// @notice Most that one epoch may cost a pool, in basis points of its stake.
    uint16 public immutable slashCapBps;
    /// @notice The reporter's share of a slash, in basis points.
    uint16 public immutable reporterBps;

    /// @notice Staked and behind no role: free to be unstaked.
    mapping(address operator => uint128) public idle;
    /// @notice Proceeds of slashes, to be claimed.
    mapping(address account => uint256) public claimable;
    /// @notice What thaws, by number.
    mapping(uint256 id => Thaw) public thaws;
    /// @notice Number of the latest thaw.
    uint256 public lastThaw;

    mapping(address operator => mapping(uint32 role => Pool)) private _pools;
    mapping(address operator => mapping(uint32 role => mapping(address owner => Position))) private
        _positions;
    mapping(address operator => Checkpoints.Trace208) private _votes;

    /// @notice Tokens came in, idle.
    event Staked(address indexed operator, uint128 amount);
    /// @notice Idle tokens left.
    event Unstaked(address indexed operator, address indexed to, uint128 amount);
    /// @notice Tokens went behind a role: of the operator's own idle ones, or a delegator's.
    event Provisioned(
        address indexed operator, uint32 indexed role, address indexed owner, uint128 amount, uint128 shares
    );
    /// @notice Shares left the active pool and thaw.
    event ThawStarted(
        address indexed operator,
        uint32 indexed role,
        address indexed owner,
        uint256 id,
        uint128 shares,
        uint128 amount,
        uint40 releaseAt
    );
    /// @notice Thawed tokens left; fewer than began to thaw if there was a slash in between.
    event Withdrawn(uint256 indexed id, address indexed owner, uint128 amount);
    /// @notice Stake was taken.
    event Slashed(
        address indexed operator,
        uint32 indexed role,
        address indexed reporter,
        address slasher,
        uint128 fromActive,
        uint128 fromThawing,
        uint128 reward
    );
    /// @notice Withdrawals from a pool wait.
    event Held(address indexed operator, uint32 indexed role, address slasher, uint40 until);
    /// @notice Proceeds of slashes were paid out.
    event Claimed(address indexed account, uint256 amount);

    /// @notice A parameter of the deployment is out of its bounds.
    error BadConfig();
    /// @notice There is nothing to move.
    error ZeroAmount();
    /// @notice More than there is.
    error TooMuch(uint128 asked, uint128 available);
    /// @notice The shares would be fewer than the caller accepts.
    error TooFewShares(uint128 shares, uint128 wanted);
    /// @notice The thaw belongs to somebody else, or is over.
    error NotOwner(uint256 id);
    /// @notice It is too early to withdraw.
    error NotReleased(uint40 releaseAt);
    /// @notice The caller does not hold the role's slasher id without delay.
    error NotSlasher(uint32 role, address caller);
    /// @notice Nothing is staked, or the epoch's cap is used up.
    error NothingToSlash();
    /// @notice A hold reaches further than the thaw period.
    error HoldTooLong(uint40 until, uint40 latest);
    /// @notice Votes of the present or the future are not final.
    error NotPast(uint256 timepoint, uint48 clock);

    /// @param config Everything that is fixed from now on.
    constructor(Config memory config) {
        if (
            address(config.token) == address(0) || address(config.manager) == address(0)
                || config.treasury == address(0) || config.slashEpoch == 0
                || config.thawPeriod < 2 * uint256(config.slashEpoch) || config.thawPeriod > 365 days
                || config.slashCapBps == 0 || config.slashCapBps > BPS || config.reporterBps > BPS / 2
        ) revert BadConfig();
        token = config.token;
        manager = config.manager;
        treasury = config.treasury;
        thawPeriod = config.thawPeriod;
        slashEpoch = config.slashEpoch;
        slashCapBps = config.slashCapBps;
        reporterBps = config.reporterBps;
    }

    // Moving in

    /// @notice Stakes tokens, behind no role yet.
    /// @param amount How many.
    function stake(uint128 amount) external nonReentrant {
        if (amount == 0) revert ZeroAmount();
        idle[msg.sender] += amount;
        _addVotes(msg.sender, amount);
        emit Staked(msg.sender, amount);
        token.take(msg.sender, amount);
    }

    /// @notice Puts idle tokens behind one of the caller's roles.
    /// @param role The role.
    /// @param amount How many.
    /// @return shares Shares in the pool.
    function provision(uint32 role, uint128 amount) external returns (uint128 shares) {
        uint128 available = idle[msg.sender];
        if (amount > available) revert TooMuch(amount, available);
        idle[msg.sender] = available - amount;
        shares = _join(msg.sender, role, amount);
    }

    /// @notice Puts the caller's tokens behind an operator's role. They share its losses, and the operator
    /// votes with them.
    /// @param operator The operator.
    /// @param role The role.
    /// @param amount How many.
    /// @param minShares Fewest shares that the caller accepts.
    /// @return shares Shares in the pool.
    function delegate(address operator, uint32 role, uint128 amount, uint128 minShares)
        external
        nonReentrant
        returns (uint128 shares)
    {
        shares = _join(operator, role, amount);
        if (shares < minShares) revert TooFewShares(shares, minShares);
        _addVotes(operator, amount);
        token.take(msg.sender, amount);
    }

    // Moving out

    /// @notice Takes idle tokens back, at once.
    /// @param to Who gets them.
    /// @param amount How many.
    function unstake(address to, uint128 amount) external nonReentrant {
        if (amount == 0) revert ZeroAmount();
        uint128 available = idle[msg.sender];
        if (amount > available) revert TooMuch(amount, available);
        idle[msg.sender] = available - amount;
        _removeVotes(msg.sender, amount);
        emit Unstaked(msg.sender, to, amount);
        token.safeTransfer(to, amount);
    }

    /// @notice Begins to take the caller's shares out of a pool. They stay liable until withdrawn.
    /// @param operator The pool's operator; the caller itself, or whom it delegated to.
    /// @param role The pool's role.
    /// @param shares How many shares.
    /// @return id The thaw's number, for `withdraw`.
    function thaw(address operator, uint32 role, uint128 shares) external returns (uint256 id) {
        Pool storage pool = _pools[operator][role];
        Position storage position = _positions[operator][role][msg.sender];
        uint128 available = position.era == pool.activeEra ? position.shares : 0;
        if (shares > available) revert TooMuch(shares, available);
        if (shares == 0) revert ZeroAmount();
        position.shares = available - shares;
        uint128 amount = pool.active.redeem(shares);
        if (amount == 0) revert ZeroAmount();
        uint128 thawingShares = pool.thawing.join(amount);
        uint40 releaseAt = uint40(block.timestamp) + thawPeriod;
        id = ++lastThaw;
        thaws[id] = Thaw({
            owner: msg.sender,
            releaseAt: releaseAt,
            era: pool.thawingEra,
            operator: operator,
            role: role,
            shares: thawingShares
        });
        _removeVotes(operator, amount);
        emit ThawStarted(operator, role, msg.sender, id, shares, amount, releaseAt);
    }

    /// @notice Takes thawed tokens out, less what was slashed in between.
    /// @param id The caller's thaw.
    /// @return amount Tokens paid out.
    function withdraw(uint256 id) external nonReentrant returns (uint128 amount) {
        Thaw memory entry = thaws[id];
        if (entry.owner != msg.sender) revert NotOwner(id);
        Pool storage pool = _pools[entry.operator][entry.role];
        uint40 releaseAt = entry.releaseAt > pool.heldUntil ? entry.releaseAt : pool.heldUntil;
        if (block.timestamp < releaseAt) revert NotReleased(releaseAt);
        delete thaws[id];
        if (entry.era == pool.thawingEra) amount = pool.thawing.redeem(entry.shares);
        emit Withdrawn(id, msg.sender, amount);
        if (amount != 0) token.safeTransfer(msg.sender, amount);
    }

    /// @notice Pays out the caller's proceeds of slashes.
    /// @return amount Tokens paid out.
    function claim() external nonReentrant returns (uint256 amount) {
        amount = claimable[msg.sender];
        if (amount == 0) revert ZeroAmount();
        claimable[msg.sender] = 0;
        emit Claimed(msg.sender, amount);
        token.safeTransfer(msg.sender, amount);
    }

    // Slashing

    /// @notice Takes stake from an operator's role: from active and thawing in proportion, and no more than
    /// there is and the epoch's cap allows. For holders of the role's slasher id.
    /// @param operator The operator.
    /// @param role The role.
    /// @param amount How much at most.
    /// @param reporter Who gets the reporter's share; nobody if zero.
    /// @return taken How much was taken.
    function slash(address operator, uint32 role, uint128 amount, address reporter)
        external
        returns (uint128 taken)
    {
        _onlySlasher(role);
        Pool storage pool = _pools[operator][role];
        (uint128 active, uint128 thawing) = (pool.active.tokens, pool.thawing.tokens);
        taken = _capped(pool, uint256(active) + thawing, amount);
        // Rounded down, so the rest is at most `active`.
        uint128 fromThawing = uint128(uint256(taken) * thawing / (uint256(active) + thawing));
        uint128 fromActive = taken - fromThawing;
        if (fromThawing != 0 && pool.thawing.cut(fromThawing)) ++pool.thawingEra;
        if (fromActive != 0) {
            if (pool.active.cut(fromActive)) ++pool.activeEra;
            _removeVotes(operator, fromActive);
        }
        // Rounded down: the treasury gets what is left.
        uint128 reward = reporter == address(0) ? 0 : uint128(uint256(taken) * reporterBps / BPS);
        if (reward != 0) claimable[reporter] += reward;
        claimable[treasury] += taken - reward;
        emit Slashed(operator, role, reporter, msg.sender, fromActive, fromThawing, reward);
    }

    /// @notice Lets nothing be withdrawn from a pool for a while, so that stake outlasts a dispute. Never
    /// shortens a hold. For holders of the role's slasher id.
    /// @param operator The operator.
    /// @param role The role.
    /// @param until When it ends; at most the thaw period ahead.
    function hold(address operator, uint32 role, uint40 until) external {
        _onlySlasher(role);
        uint40 latest = uint40(block.timestamp) + thawPeriod;
        if (until > latest) revert HoldTooLong(until, latest);
        Pool storage pool = _pools[operator][role];
        if (until > pool.heldUntil) {
            pool.heldUntil = until;
            emit Held(operator, role, msg.sender, until);
        }
    }

    // Reading

    /// @notice What stands behind an operator's role.
    /// @param operator The operator.
    /// @param role The role.
    /// @return The pool.
    function poolOf(address operator, uint32 role) external view returns (Pool memory) {
        return _pools[operator][role];
    }

    /// @notice An owner's part of what stands behind an operator's role, without what thaws.
    /// @param operator The operator.
    /// @param role The role.
    /// @param owner The operator itself or a delegator.
    /// @return shares Shares in the pool.
    /// @return amount Tokens they are worth.
    function positionOf(address operator, uint32 role, address owner)
        external
        view
        returns (uint128 shares, uint128 amount)
    {
        Pool storage pool = _pools[operator][role];
        Position storage position = _positions[operator][role][owner];
        if (position.era == pool.activeEra && position.shares != 0) {
            shares = position.shares;
            amount = pool.active.worth(shares);
        }
    }

    /// @notice An operator's votes now: its idle stake and all active stake behind its roles.
    /// @param operator The operator.
    /// @return Votes, in the token's smallest unit.
    function getVotes(address operator) external view returns (uint256) {
        return _votes[operator].latest();
    }

    /// @inheritdoc IPastVotes
    function getPastVotes(address operator, uint256 timepoint) external view returns (uint256) {
        uint48 present = clock();
        if (timepoint >= present) revert NotPast(timepoint, present);
        return _votes[operator].upperLookupRecent(uint48(timepoint));
    }

    /// @inheritdoc IPastVotes
    function clock() public view returns (uint48) {
        return Time.timestamp();
    }

    /// @notice The id in the AccessManager whose holders may slash a role.
    /// @param role The role.
    /// @return The id.
    function slasherOf(uint32 role) public pure returns (uint64) {
        return SLASHER_BASE + role;
    }

    function _join(address operator, uint32 role, uint128 amount) private returns (uint128 shares) {
        if (amount == 0) revert ZeroAmount();
        Pool storage pool = _pools[operator][role];
        Position storage position = _positions[operator][role][msg.sender];
        shares = pool.active.join(amount);
        if (position.era == pool.activeEra) {
            position.shares += shares;
        } else {
            (position.shares, position.era) = (shares, pool.activeEra);
        }
        emit Provisioned(operator, role, msg.sender, amount, shares);
    }

    /// Cuts `amount` down to what may be taken, and counts it in the epoch.
    function _capped(Pool storage pool, uint256 total, uint128 amount) private returns (uint128 taken) {
        uint40 epoch = uint40(block.timestamp / slashEpoch);
        // Equal numbers of epochs, not balances.
        // slither-disable-next-line incorrect-equality
        uint256 already = pool.epoch == epoch ? pool.slashedInEpoch : 0;
        // Never above `total`, since the cap is at most the whole.
        uint256 allowed = (total + already) * slashCapBps / BPS;
        uint256 left = allowed > already ? allowed - already : 0;
        taken = amount < left ? amount : left.toUint128();
        if (taken == 0) revert NothingToSlash();
        pool.epoch = epoch;
        pool.slashedInEpoch = (already + taken).toUint128();
    }

    function _onlySlasher(uint32 role) private view {
        (bool member, uint32 delay) = manager.hasRole(slasherOf(role), msg.sender);
        if (!member || delay != 0) revert NotSlasher(role, msg.sender);
    }

    function _addVotes(address operator, uint128 amount) private {
        Checkpoints.Trace208 storage votes = _votes[operator];
        // slither-disable-next-line unused-return
        votes.push(clock(), votes.latest() + amount);
    }

    function _removeVotes(address operator, uint128 amount) private {
        Checkpoints.Trace208 storage votes = _votes[operator];
        // slither-disable-next-line unused-return
        votes.push(clock(), votes.latest() - amount);
    }
}
