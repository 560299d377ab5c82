// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

import {SessionEscrow} from "./SessionEscrow.sol";
import {Stage} from "./lib/Split.sol";

/// @title Payment by cumulative vouchers
/// @notice A payer's voucher says what all stages of a plan have earned together so far. This contract checks
/// it, takes what was not paid yet from the plan's lock in the escrow, and divides it by the plan's weights.
/// Each voucher replaces the one before, so an old one, or the same one under another signature, pays
/// nothing. Anybody may hand a voucher in; the money goes where the plan says.
///
/// What was paid is kept per payer and plan hash, which holds the session: a revised plan is another lock.
///
/// All amounts are in the token's smallest unit, all times in seconds since 1970. Nothing here is owned,
/// paused or changed after the deployment.
contract VoucherCollector is EIP712 {
    /// @notice What payment needs of a session's plan.
    /// @param session The session.
    /// @param payer Whose lock pays.
    /// @param terms Hash of the rest: model, prompt, sampling, limits, what it supersedes.
    /// @param expiry When the session ends at the latest.
    /// @param stages In order; the last also gets what rounding leaves.
    struct Plan {
        bytes32 session;
        address payer;
        bytes32 terms;
        uint64 expiry;
        Stage[] stages;
    }

    /// @notice A voucher, with all it takes to check it.
    /// @param plan The plan; the voucher names its session and its hash.
    /// @param total Everything owed so far.
    /// @param chunk Number of the last chunk it covers.
    /// @param commitments Root of the commitments it covers.
    /// @param signer The payer, or a signer of its.
    /// @param signature Over the voucher's digest: 65 bytes, or whatever the signer's contract takes (ERC-1271).
    struct Item {
        Plan plan;
        uint128 total;
        uint64 chunk;
        bytes32 commitments;
        address signer;
        bytes signature;
    }

    /// @notice EIP-712 type of a stage.
    bytes32 public constant STAGE_TYPEHASH = keccak256("Stage(address payee,uint64 weight)");
    /// @notice EIP-712 type of a plan.
    bytes32 public constant PLAN_TYPEHASH = keccak256(
        "Plan(bytes32 session,address payer,bytes32 terms,uint64 expiry,Stage[] stages)"
        "Stage(address payee,uint64 weight)"
    );
    /// @notice EIP-712 type of a voucher.
    bytes32 public constant VOUCHER_TYPEHASH =
        keccak256("Voucher(bytes32 session,bytes32 plan,uint256 total,uint64 chunk,bytes32 commitments)");
    /// @notice Most stages of a plan that can be paid.
    uint256 public constant MAX_STAGES = 64;
    /// @notice Gas that a contract may use to check a signature: enough for one that computes a curve of its
    /// own, too little to starve the items of a batch behind it.
    uint256 public constant SIGNATURE_GAS = 400_000;
    uint256 private constant NEVER = type(uint64).max;

    /// @notice Holds the money.
    SessionEscrow public immutable escrow;
    /// @notice How long after a plan's expiry its vouchers are taken, and how long a revoked signer's are.
    uint64 public immutable settlementWindow;

    /// @notice Until when a signer speaks for a payer: 2^64 - 1 while authorised, zero if it never was.
    mapping(address payer => mapping(address signer => uint64)) public signerUntil;

    /// @notice A signer speaks for a payer from now on.
    event SignerAuthorised(address indexed payer, address indexed signer);
    /// @notice A signer's vouchers are taken until then, and no longer.
    event SignerRevoked(address indexed payer, address indexed signer, uint64 until);
    /// @notice A voucher was collected. Who got what is in the escrow's events.
    event VoucherCollected(
        bytes32 indexed plan,
        bytes32 indexed session,
        address indexed payer,
        uint128 total,
        uint128 paid,
        uint64 chunk,
        bytes32 commitments
    );
    /// @notice An item of a batch was left out, and why.
    event Skipped(uint256 index, bytes32 indexed session, address indexed payer, bytes reason);

    /// @notice A parameter of the deployment is out of its bounds.
    error BadConfig();
    /// @notice The plan's vouchers are no longer taken.
    error Expired(uint256 since);
    /// @notice The signer does not speak for the payer.
    error NotSigner(address payer, address signer);
    /// @notice The signer did not sign this voucher for this contract and chain.
    error BadSignature(address signer);
    /// @notice The plan has no stages, or too many.
    error BadStages(uint256 count);
    /// @notice The transaction has too little gas to tell whether a voucher is good.
    error TooLittleGas();

    /// @param escrow_ Holds the money; its thaw must be longer than the window.
    /// @param settlementWindow_ How long after a plan's expiry, and after a signer was revoked, vouchers are
    /// taken, in seconds.
    constructor(SessionEscrow escrow_, uint64 settlementWindow_) EIP712("Dolphin", "1") {
        if (settlementWindow_ == 0 || escrow_.thawPeriod() <= settlementWindow_) revert BadConfig();
        escrow = escrow_;
        settlementWindow = settlementWindow_;
    }

    // Signers

    /// @notice Lets a key, or a contract, sign vouchers for the caller. Takes a revocation back.
    /// @param signer The signer.
    function authoriseSigner(address signer) external {
        signerUntil[msg.sender][signer] = uint64(NEVER);
        emit SignerAuthorised(msg.sender, signer);
    }

    /// @notice Ends a signer's authority after a settlement window, in which what it signed can be collected.
    /// Revoking again changes nothing.
    /// @param signer The signer.
    function revokeSigner(address signer) external {
        if (signerUntil[msg.sender][signer] != NEVER) revert NotSigner(msg.sender, signer);
        uint64 until = uint64(block.timestamp) + settlementWindow;
        signerUntil[msg.sender][signer] = until;
        emit SignerRevoked(msg.sender, signer, until);
    }

    // Collecting

    /// @notice Pays a plan's stages what a voucher adds to what was collected, as far as the lock goes.
    /// @param item The voucher.
    /// @return paid How much all stages got together.
    function collect(Item calldata item) external returns (uint128 paid) {
        bytes memory failure;
        (paid, failure) = _collect(item);
        if (failure.length != 0) {
            assembly ("memory-safe") {
                revert(add(failure, 0x20), mload(failure))
            }
        }
    }

    /// @notice Collects many vouchers and leaves out those that cannot be, each with an event that says why.
    /// @param items The vouchers.
    /// @return paid How much was paid in all.
    function collectBatch(Item[] calldata items) external returns (uint256 paid) {
        for (uint256 i = 0; i < items.length; ++i) {
            Item calldata item = items[i];
            (uint128 amount, bytes memory failure) = _collect(item);
            paid += amount;
            if (failure.length != 0) emit Skipped(i, item.plan.session, item.plan.payer, failure);
        }
    }

    /// @notice Whether a contract takes a signature for its own (ERC-1271). Called by this contract, so that
    /// it can bound the gas; harmless for everybody else.
    /// @param signer The contract.
    /// @param digest What was signed.
    /// @param signature The signature.
    /// @return Whether it does.
    function checkContractSignature(address signer, bytes32 digest, bytes calldata signature)
        external
        view
        returns (bool)
    {
        return SignatureChecker.isValidERC1271SignatureNowCalldata(signer, digest, signature);
    }

    // Reading

    /// @notice Whether a signer speaks for a payer now. Every payer does for itself.
    /// @param payer The payer.
    /// @param signer The signer.
    /// @return Whether it does.
    function isSigner(address payer, address signer) public view returns (bool) {
        return signer == payer || block.timestamp < signerUntil[payer][signer];
    }

    /// @notice A plan's hash: the EIP-712 hash of the struct, and what its lock is for.
    /// @param plan The plan.
    /// @return Its hash.
    function hashPlan(Plan calldata plan) public pure returns (bytes32) {
        uint256 count = plan.stages.length;
        if (count == 0 || count > MAX_STAGES) revert BadStages(count);
        return _hashPlan(plan);
    }

    /// @notice What a payer signs to agree to a plan.
    /// @param plan The plan.
    /// @return The EIP-712 digest.
    function planDigest(Plan calldata plan) external view returns (bytes32) {
        return _hashTypedDataV4(hashPlan(plan));
    }

    /// @notice What a payer or its signer signs as a voucher.
    /// @param session The session.
    /// @param plan Hash of the plan.
    /// @param total Everything owed so far.
    /// @param chunk Number of the last chunk it covers.
    /// @param commitments Root of the commitments it covers.
    /// @return The EIP-712 digest.
    function voucherDigest(bytes32 session, bytes32 plan, uint128 total, uint64 chunk, bytes32 commitments)
        external
        view
        returns (bytes32)
    {
        return _digest(session, plan, total, chunk, commitments);
    }

    /// @notice What signatures are bound to.
    /// @return The EIP-712 domain separator.
    function domainSeparator() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    function _digest(bytes32 session, bytes32 plan, uint128 total, uint64 chunk, bytes32 commitments)
        private
        view
        returns (bytes32)
    {
        return _hashTypedDataV4(
            keccak256(abi.encode(VOUCHER_TYPEHASH, session, plan, total, chunk, commitments))
        );
    }

    /// Checks and pays one voucher. A failure is an encoded error; then nothing was paid.
    function _collect(Item calldata item) private returns (uint128 paid, bytes memory failure) {
        Plan calldata plan = item.plan;
        bytes32 hash;
        (hash, failure) = _check(item);
        if (failure.length != 0) return (0, failure);
        try escrow.collect(plan.payer, hash, item.total, plan.stages) returns (uint128 amount) {
            paid = amount;
            emit VoucherCollected(
                hash, plan.session, plan.payer, item.total, paid, item.chunk, item.commitments
            );
        } catch (bytes memory reason) {
            // The escrow says why, unless it ran out of gas: that is no fault of the voucher.
            if (reason.length == 0) revert TooLittleGas();
            failure = reason;
        }
    }

    /// All that must hold of a voucher by itself.
    function _check(Item calldata item) private view returns (bytes32 hash, bytes memory failure) {
        Plan calldata plan = item.plan;
        uint256 end = uint256(plan.expiry) + settlementWindow;
        if (block.timestamp > end) return (0, abi.encodeWithSelector(Expired.selector, end));
        uint256 count = plan.stages.length;
        if (count == 0 || count > MAX_STAGES) {
            return (0, abi.encodeWithSelector(BadStages.selector, count));
        }
        if (!isSigner(plan.payer, item.signer)) {
            return (0, abi.encodeWithSelector(NotSigner.selector, plan.payer, item.signer));
        }
        hash = _hashPlan(plan);
        bytes32 digest = _digest(plan.session, hash, item.total, item.chunk, item.commitments);
        if (!_signed(item.signer, digest, item.signature)) {
            failure = abi.encodeWithSelector(BadSignature.selector, item.signer);
        }
    }

    /// A key's signature, or, where the signer has code and it is none, whatever that takes for one.
    function _signed(address signer, bytes32 digest, bytes calldata signature) private view returns (bool) {
        // slither-disable-next-line unused-return
        (address recovered, ECDSA.RecoverError problem,) = ECDSA.tryRecoverCalldata(digest, signature);
        if (problem == ECDSA.RecoverError.NoError && recovered == signer) return true;
        if (signer.code.length == 0) return false;
        // A call gets at most 63/64 of what is left; with less than it may use, it could fail for want of gas.
        if (gasleft() < SIGNATURE_GAS + SIGNATURE_GAS / 32) revert TooLittleGas();
        try this.checkContractSignature{gas: SIGNATURE_GAS}(signer, digest, signature) returns (bool valid) {
            return valid;
        } catch {
            return false;
        }
    }

    function _hashPlan(Plan calldata plan) private pure returns (bytes32) {
        uint256 count = plan.stages.length;
        bytes32[] memory stages = new bytes32[](count);
        for (uint256 i = 0; i < count; ++i) {
            Stage calldata stage = plan.stages[i];
            stages[i] = keccak256(abi.encode(STAGE_TYPEHASH, stage.payee, stage.weight));
        }
        bytes32 all;
        assembly ("memory-safe") {
            all := keccak256(add(stages, 0x20), mul(count, 0x20))
        }
        return keccak256(abi.encode(PLAN_TYPEHASH, plan.session, plan.payer, plan.terms, plan.expiry, all));
    }
}
