// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {IMintable} from "./IMintable.sol";
import {Merkle} from "./lib/Merkle.sol";

/// @title Rewards
/// @notice Pays what a Merkle root says each account has earned in all, less what it was paid. A root counts
/// only some time after it was posted, in which a guardian can disable it; a later root repeats what an
/// earlier one said, so nothing is lost by disabling or by claiming late.
///
/// Rewards come from tokens that anyone sends here and, where the contract may mint, from an emission at a
/// fixed rate up to a fixed total.
///
/// All amounts are in the token's smallest unit, all times in seconds since 1970.
contract RewardDistributor is AccessManaged, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @notice What is fixed when the contract is deployed.
    /// @param token What rewards are paid in.
    /// @param activationDelay From posting a root until it counts, in seconds.
    /// @param emissionRate New tokens per second; zero where the contract may not mint.
    /// @param emissionStart When the emission begins.
    /// @param emissionCap Most that is ever emitted.
    struct Config {
        IERC20 token;
        uint64 activationDelay;
        uint128 emissionRate;
        uint64 emissionStart;
        uint128 emissionCap;
    }

    /// @notice A root of what accounts have earned in all.
    /// @param root Of the Merkle tree over accounts and amounts; zero if there is none.
    /// @param total Sum of the amounts: no more is paid by it.
    /// @param activeAt From when it counts.
    struct Root {
        bytes32 root;
        uint128 total;
        uint64 activeAt;
    }

    /// @notice What rewards are paid in.
    IERC20 public immutable token;
    /// @notice From posting a root until it counts, in seconds.
    uint64 public immutable activationDelay;
    /// @notice New tokens per second.
    uint128 public immutable emissionRate;
    /// @notice When the emission begins.
    uint64 public immutable emissionStart;
    /// @notice Most that is ever emitted.
    uint128 public immutable emissionCap;

    /// @notice The root before the latest; it counts until the latest does.
    Root public previous;
    /// @notice The root posted last.
    Root public latest;
    /// @notice What an account was paid so far.
    mapping(address account => uint128) public claimed;
    /// @notice What all accounts were paid so far.
    uint128 public totalClaimed;
    /// @notice What was emitted so far.
    uint128 public emitted;

    /// @notice A root was posted.
    event RootPosted(bytes32 indexed root, uint128 total, uint64 activeAt);
    /// @notice A root pays nothing any more.
    event RootDisabled(bytes32 indexed root);
    /// @notice An account was paid.
    event Claimed(address indexed account, uint128 amount, uint128 cumulative);
    /// @notice New tokens were made for rewards.
    event Emitted(uint128 amount);

    /// @notice A parameter of the deployment is out of its bounds.
    error BadConfig();
    /// @notice A root must not be zero.
    error ZeroRoot();
    /// @notice The root promises more than there is.
    error Unfunded(uint256 total, uint256 funds);
    /// @notice No such root can be disabled.
    error UnknownRoot(bytes32 root);
    /// @notice No root counts.
    error NoActiveRoot();
    /// @notice The proof does not lead to the root that counts.
    error BadProof();
    /// @notice The account was paid that much already.
    error NothingDue(uint128 cumulative, uint128 claimed);
    /// @notice The root's total is used up.
    error TotalExceeded(uint256 claimed, uint128 total);
    /// @notice There is nothing to emit.
    error NothingToEmit();

    /// @param authority The AccessManager; its poster role may call `post`, its guardian role `disable`.
    /// @param config Everything that is fixed from now on.
    constructor(address authority, Config memory config) AccessManaged(authority) {
        if (
            address(config.token) == address(0) || config.activationDelay == 0
                || config.activationDelay > 365 days
        ) revert BadConfig();
        token = config.token;
        activationDelay = config.activationDelay;
        emissionRate = config.emissionRate;
        emissionStart = config.emissionStart;
        emissionCap = config.emissionCap;
    }

    /// @notice Posts a root. One that was posted before and does not count yet is dropped, and the delay runs
    /// anew. For the poster role.
    /// @param root Of the Merkle tree over `leafOf` of every account.
    /// @param total Sum of the amounts.
    function post(bytes32 root, uint128 total) external restricted {
        if (root == 0) revert ZeroRoot();
        uint256 funds = token.balanceOf(address(this)) + totalClaimed;
        if (total > funds) revert Unfunded(total, funds);
        if (_counts(latest)) previous = latest;
        uint64 activeAt = uint64(block.timestamp) + activationDelay;
        latest = Root(root, total, activeAt);
        emit RootPosted(root, total, activeAt);
    }

    /// @notice Stops a root, whether it counts already or not. Until the next one counts, the one before a
    /// waiting root pays; if none is left, nothing is paid. For the guardian role.
    /// @param root The root.
    function disable(bytes32 root) external restricted {
        bool isLatest = root != 0 && latest.root == root;
        bool isPrevious = root != 0 && previous.root == root;
        if (!isLatest && !isPrevious) revert UnknownRoot(root);
        // Once a root has counted, the one before must not come back.
        if (isPrevious || _counts(latest)) delete previous;
        if (isLatest) delete latest;
        emit RootDisabled(root);
    }

    /// @notice Pays an account what it has not been paid yet. Anybody may call this; the account is paid.
    /// @param account The account.
    /// @param cumulative All it has earned, as in the root that counts.
    /// @param proof From the account's leaf to the root.
    /// @return amount What was paid.
    function claim(address account, uint128 cumulative, bytes32[] calldata proof)
        external
        nonReentrant
        returns (uint128 amount)
    {
        Root memory root = current();
        if (root.root == 0) revert NoActiveRoot();
        if (!MerkleProof.verifyCalldata(proof, root.root, leafOf(account, cumulative))) revert BadProof();
        uint128 before = claimed[account];
        if (cumulative <= before) revert NothingDue(cumulative, before);
        amount = cumulative - before;
        uint256 all = uint256(totalClaimed) + amount;
        if (all > root.total) revert TotalExceeded(all, root.total);
        claimed[account] = cumulative;
        totalClaimed = uint128(all);
        emit Claimed(account, amount, cumulative);
        token.safeTransfer(account, amount);
    }

    /// @notice Makes what the emission allows by now. Anybody may call this.
    /// @return amount How much was made.
    function release() external nonReentrant returns (uint128 amount) {
        amount = emittable();
        // Equality with a balance that others could move would be dangerous; this is none.
        // slither-disable-next-line incorrect-equality
        if (amount == 0) revert NothingToEmit();
        emitted += amount;
        emit Emitted(amount);
        IMintable(address(token)).mint(address(this), amount);
    }

    /// @notice The root that counts now.
    /// @return The root; zero if none does.
    function current() public view returns (Root memory) {
        return _counts(latest) ? latest : previous;
    }

    /// @notice What `release` would make now.
    /// @return How much.
    function emittable() public view returns (uint128) {
        if (block.timestamp <= emissionStart) return 0;
        uint256 due = uint256(emissionRate) * (block.timestamp - emissionStart);
        uint256 most = due < emissionCap ? due : emissionCap;
        return uint128(most - emitted);
    }

    /// @notice An account's leaf; good for this contract and chain alone.
    /// @param account The account.
    /// @param cumulative All it has earned.
    /// @return The leaf.
    function leafOf(address account, uint128 cumulative) public view returns (bytes32) {
        return Merkle.leaf(abi.encode(block.chainid, address(this), account, cumulative));
    }

    function _counts(Root storage root) private view returns (bool) {
        return root.root != 0 && block.timestamp >= root.activeAt;
    }
}
