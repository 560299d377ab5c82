// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {AccessManager} from "@openzeppelin/contracts/access/manager/AccessManager.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {vm} from "../script/Vm.sol";
import {AuditManager} from "../src/AuditManager.sol";
import {AuditorSet} from "../src/AuditorSet.sol";
import {Chunk} from "../src/IDisputeGame.sol";
import {PODToken} from "../src/PODToken.sol";
import {StakeManager} from "../src/StakeManager.sol";
import {Auditor} from "../src/lib/Draw.sol";
import {Merkle} from "../src/lib/Merkle.sol";
import {Roles} from "../src/lib/Roles.sol";
import {ToldBeacon, ToldGame} from "./mocks/Audits.sol";

/// An audit manager with nodes and auditors, a beacon and a game that do as they are told.
abstract contract AuditBase {
    bool public constant IS_TEST = true;

    uint256 internal constant START = 1_800_000_000;
    uint40 internal constant EPOCH = 1 days;
    uint128 internal constant STAKE = 1e23;
    uint128 internal constant BOND = 1e21;
    uint256 internal constant AUDITORS = 5;
    uint32 internal constant ALWAYS = type(uint32).max;
    address internal constant ALICE = address(0xA11CE);
    address internal constant BOB = address(0xB0B);
    address internal constant TREASURY = address(0x7EA);
    address internal constant ANYBODY = address(0xA4B);
    bytes32 internal constant SALT = keccak256("salt");
    bytes32 internal constant RIGHT = keccak256("what the model says");
    bytes32 internal constant WRONG = keccak256("what another model says");
    /// What Alice plants.
    bytes32 internal constant PLANTED = keccak256(abi.encodePacked("dolphin/plant/1", ALICE, SALT));

    PODToken internal pod;
    AccessManager internal access;
    StakeManager internal stake;
    ToldBeacon internal beacon;
    ToldGame internal game;
    AuditorSet internal set;
    AuditManager internal audits;
    address[] internal auditors;

    function setUp() public virtual {
        vm.warp(START);
        access = new AccessManager(address(this));
        pod = new PODToken(address(access), 1e27, address(this), 1e27);
        stake = new StakeManager(
            StakeManager.Config({
                token: IERC20(address(pod)),
                manager: access,
                treasury: TREASURY,
                thawPeriod: 21 days,
                slashEpoch: 1 days,
                slashCapBps: 2000,
                reporterBps: 1000
            })
        );
        (beacon, game) = (new ToldBeacon(), new ToldGame());
        set = new AuditorSet(stake, EPOCH, STAKE / 2);
        audits = install(config());
        provide(ALICE, Roles.NODE);
        provide(BOB, Roles.NODE);
        for (uint160 i = 0; i < AUDITORS; ++i) {
            address auditor = address(0xAD00 + i);
            auditors.push(auditor);
            enlist(auditor);
        }
    }

    function config() internal view returns (AuditManager.Config memory) {
        return AuditManager.Config({
            auditors: set,
            beacon: beacon,
            game: game,
            beaconDelay: 60,
            drawWindow: 1 days,
            openWindow: 12 hours,
            answerWindow: 4 hours,
            disputeWindow: 1 days,
            strikeWindow: 30 days,
            promptRate: ALWAYS,
            replyRate: ALWAYS,
            rateFloor: 1,
            rateHalfLife: 20,
            minNodeStake: STAKE / 2,
            disputeBond: BOND,
            silentBps: 1000,
            withheldBps: 100,
            repeatBps: 1000,
            systematicBps: 2000,
            lapseBps: 100,
            missBps: 2000
        });
    }

    /// A manager that may slash.
    function install(AuditManager.Config memory c) internal returns (AuditManager made) {
        made = new AuditManager(c);
        access.grantRole(stake.slasherOf(Roles.NODE), address(made), 0);
        access.grantRole(stake.slasherOf(Roles.AUDITOR), address(made), 0);
    }

    /// Gives somebody a role's stake, and tokens for bonds.
    function provide(address account, uint32 role) internal {
        pod.transfer(account, STAKE + 100 * BOND);
        vm.startPrank(account);
        pod.approve(address(stake), type(uint256).max);
        pod.approve(address(audits), type(uint256).max);
        stake.stake(STAKE);
        stake.provision(role, STAKE);
        vm.stopPrank();
    }

    /// Has somebody offer to audit, with the stake that takes.
    function enlist(address auditor) internal {
        provide(auditor, Roles.AUDITOR);
        vm.prank(auditor);
        set.join(address(0));
    }

    function seal(bytes32 roots) internal pure returns (bytes32) {
        return keccak256(abi.encode(roots));
    }

    /// A chunk of session number `number`, with what the node says came out.
    function chunkOf(uint256 number, bytes32 sealedRoots) internal pure returns (Chunk memory) {
        return Chunk({
            model: keccak256("model"),
            plan: keccak256(abi.encode("plan", number)),
            commitment: keccak256(abi.encode("commitment", number, sealedRoots)),
            inRoots: keccak256(abi.encode("in", number)),
            sealedRoots: sealedRoots,
            stage: 1,
            from: 64,
            to: 128
        });
    }

    /// Posts one chunk for the epoch that runs.
    function postOne(address account, Chunk memory chunk) internal returns (uint32 epoch) {
        epoch = uint32(set.currentEpoch());
        bytes32 leaf = audits.leafOf(account, chunk);
        vm.prank(account);
        audits.post(leaf, 1, 0);
    }

    /// Lists the auditors, and goes on to the next epoch.
    function listAll() internal returns (Auditor[] memory list) {
        list = set.listAuditors();
        vm.warp((set.currentEpoch() + 1) * EPOCH + 1);
    }

    /// Goes on until an epoch can be drawn from.
    function drawable(uint32 epoch, bytes32 drawn) internal {
        vm.warp((uint256(epoch) + 1) * EPOCH + 120);
        beacon.tell(audits.roundOf(epoch), drawn);
    }

    /// Posts, draws and opens a chunk of an account's.
    function opened(address account, Chunk memory chunk, bytes32 drawn)
        internal
        returns (bytes32 id, Auditor[] memory list)
    {
        list = listAll();
        uint32 epoch = postOne(account, chunk);
        drawable(epoch, drawn);
        id = audits.open(account, epoch, 0, chunk, new bytes32[](0));
    }

    /// The same of a chunk of Alice's.
    function opened(bytes32 sealedRoots)
        internal
        returns (bytes32 id, Auditor[] memory list, Chunk memory chunk)
    {
        chunk = chunkOf(1, sealedRoots);
        (id, list) = opened(ALICE, chunk, "drawn");
    }

    /// Draws the next auditor.
    function assigned(bytes32 id, Auditor[] memory list) internal returns (address auditor) {
        AuditManager.Case memory c = audits.caseOf(id);
        uint256 turn = c.answers[0].step == AuditManager.Step.Differs ? 1 : 0;
        audits.assign(id, list);
        auditor = audits.caseOf(id).answers[turn].auditor;
    }

    function commit(bytes32 id, address auditor, bytes32 roots) internal {
        bytes32 answer = audits.answerOf(id, auditor, roots, SALT);
        vm.prank(auditor);
        audits.commit(id, answer);
    }

    function reveal(bytes32 id, address auditor, Chunk memory chunk, bytes32 roots) internal {
        vm.prank(auditor);
        audits.reveal(id, chunk, roots, SALT);
    }

    /// The first auditor, which says that its result is another.
    function differing(bytes32 id, Auditor[] memory list, bytes32 roots) internal returns (address first) {
        first = assigned(id, list);
        commit(id, first, roots);
        vm.prank(first);
        audits.differ(id);
    }

    /// Two auditors that have committed to their results, the first of which differs.
    function answered(bytes32 id, Auditor[] memory list, bytes32 one, bytes32 two)
        internal
        returns (address first, address second)
    {
        first = differing(id, list, one);
        second = assigned(id, list);
        commit(id, second, two);
    }

    /// The same, and both have shown them.
    function judged(bytes32 id, Auditor[] memory list, Chunk memory chunk, bytes32 one, bytes32 two)
        internal
        returns (address first, address second)
    {
        (first, second) = answered(id, list, one, two);
        reveal(id, second, chunk, two);
        reveal(id, first, chunk, one);
    }

    /// Disputes a verdict, with both bonds.
    function disputed(bytes32 id, Chunk memory chunk, address challenger, address other) internal {
        vm.prank(challenger);
        audits.dispute(id);
        vm.prank(other);
        audits.matchBond(id, chunk);
    }

    /// Goes on after a deadline that nobody has met.
    function runOut(bytes32 id, uint256 window) internal {
        pass(window + 1);
        audits.timeOut(id);
    }

    function pass(uint256 seconds_) internal {
        vm.warp(block.timestamp + seconds_);
    }

    function behind(address operator, uint32 role) internal view returns (uint256) {
        StakeManager.Pool memory pool = stake.poolOf(operator, role);
        return uint256(pool.active.tokens) + pool.thawing.tokens;
    }

    function verdict(bytes32 id) internal view returns (AuditManager.Verdict) {
        return audits.caseOf(id).verdict;
    }

    function assertClosed(bytes32 id, AuditManager.Verdict wanted) internal view {
        AuditManager.Case memory c = audits.caseOf(id);
        vm.assertEq(uint256(c.stage), uint256(AuditManager.Stage.Closed));
        vm.assertEq(uint256(c.verdict), uint256(wanted));
    }
}
