// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {vm} from "../script/Vm.sol";
import {AuditManager} from "../src/AuditManager.sol";
import {AuditorSet} from "../src/AuditorSet.sol";
import {Chunk} from "../src/IDisputeGame.sol";
import {PODToken} from "../src/PODToken.sol";
import {StakeManager} from "../src/StakeManager.sol";
import {Auditor} from "../src/lib/Draw.sol";
import {Roles} from "../src/lib/Roles.sol";
import {AuditBase} from "./AuditBase.sol";
import {ToldBeacon, ToldGame} from "./mocks/Audits.sol";

/// Takes cases at random through their stages. Honest parties do their duty in time and tell the truth; the
/// others do as the numbers say. The game finds the truth.
contract AuditHandler {
    bytes32 internal constant SALT = keccak256("salt");
    uint40 internal constant EPOCH = 1 days;

    AuditManager internal immutable audits;
    AuditorSet internal immutable set;
    ToldBeacon internal immutable beacon;
    ToldGame internal immutable game;
    address internal immutable honestNode;
    address internal immutable cheat;
    mapping(address auditor => bool) public isLiar;
    /// One of the liars also says that it got no rows. Two that do could cost an honest node a little.
    address internal unserved;

    bytes32[] public ids;
    /// Those that were not over when last looked at.
    bytes32[] internal running;
    uint256 internal most = 12;
    mapping(bytes32 id => Chunk) internal chunks;
    mapping(bytes32 id => bytes32) internal truth;
    mapping(bytes32 id => bytes32) internal claimed;
    mapping(bytes32 id => mapping(address auditor => bytes32)) internal results;
    mapping(uint256 epoch => bytes) internal lists;
    uint256 internal number;
    /// How often each verdict came out.
    mapping(AuditManager.Verdict => uint256) public outcomes;
    uint256 public disputes;

    constructor(
        AuditManager audits_,
        AuditorSet set_,
        ToldBeacon beacon_,
        ToldGame game_,
        address honestNode_,
        address cheat_
    ) {
        (audits, set, beacon, game) = (audits_, set_, beacon_, game_);
        (honestNode, cheat) = (honestNode_, cheat_);
    }

    function lie(address auditor) external {
        isLiar[auditor] = true;
        unserved = auditor;
    }

    function allow(uint256 cases) external {
        most = cases;
    }

    function count() external view returns (uint256) {
        return ids.length;
    }

    /// A new epoch with a chunk of both nodes, drawn and opened; the cheat's may be wrong, or stay closed.
    function begin(uint256 seed) external {
        if (ids.length > most) return;
        Auditor[] memory list = set.listAuditors();
        lists[set.currentEpoch()] = abi.encode(list);
        skip((set.currentEpoch() + 1) * EPOCH + 1 - block.timestamp);
        uint32 epoch = uint32(set.currentEpoch());
        bool posted = post(honestNode, epoch, true);
        bool cheatPosted = post(cheat, epoch, seed % 3 == 0);
        skip((uint256(epoch) + 1) * EPOCH + 120 - block.timestamp);
        beacon.tell(audits.roundOf(epoch), keccak256(abi.encode(seed)));
        if (posted) opened(honestNode, epoch, true);
        if (cheatPosted) opened(cheat, epoch, seed % 5 != 1);
    }

    mapping(address node => mapping(uint32 epoch => Chunk)) internal made;
    mapping(address node => mapping(uint32 epoch => bytes32)) internal madeTruth;

    function post(address node, uint32 epoch, bool isRight) internal returns (bool) {
        bytes32 right = keccak256(abi.encode("right", ++number));
        bytes32 said = isRight ? right : keccak256(abi.encode("wrong", number));
        Chunk memory chunk;
        chunk.commitment = bytes32(number);
        chunk.sealedRoots = keccak256(abi.encode(said));
        made[node][epoch] = chunk;
        madeTruth[node][epoch] = right;
        bytes32 leaf = audits.leafOf(node, chunk);
        vm.prank(node);
        try audits.post(leaf, 1, 0) {
            return true;
        } catch {
            // Only who was slashed too often has too little stake.
            vm.assertEq(node, cheat);
            return false;
        }
    }

    function opened(address node, uint32 epoch, bool isShown) internal {
        Chunk memory chunk = made[node][epoch];
        bytes32 id = audits.draw(node, epoch, 0);
        if (isShown) audits.open(node, epoch, 0, chunk, new bytes32[](0));
        ids.push(id);
        running.push(id);
        (chunks[id], truth[id]) = (chunk, madeTruth[node][epoch]);
        bool isRight = chunk.sealedRoots == keccak256(abi.encode(truth[id]));
        claimed[id] = isRight ? truth[id] : keccak256(abi.encode("wrong", uint256(chunk.commitment)));
    }

    /// Time passes; before, whoever is honest has done what it must.
    function elapse(uint256 seconds_) external {
        skip(seconds_ % 8 hours);
    }

    function skip(uint256 seconds_) internal {
        uint256 end = block.timestamp + seconds_;
        while (block.timestamp < end) {
            duties();
            uint256 step = end - block.timestamp;
            vm.warp(block.timestamp + (step < 3 hours ? step : 3 hours));
        }
    }

    function duties() internal {
        for (uint256 i = running.length; i > 0; --i) {
            bytes32 id = running[i - 1];
            // A duty may bring the next one.
            for (uint256 k = 0; k < 4; ++k) {
                if (!duty(id)) break;
            }
            if (audits.caseOf(id).stage == AuditManager.Stage.Closed) {
                running[i - 1] = running[running.length - 1];
                running.pop();
            }
        }
    }

    /// What an honest party has to do in a case, if anything.
    function duty(bytes32 id) internal returns (bool) {
        AuditManager.Case memory c = audits.caseOf(id);
        if (c.stage == AuditManager.Stage.Closed || block.timestamp > c.deadline) return false;
        for (uint256 i = 0; i < 2; ++i) {
            address auditor = c.answers[i].auditor;
            if (auditor != address(0) && !isLiar[auditor] && answer(id, c, i, truth[id])) return true;
        }
        bool isRight = claimed[id] == truth[id];
        if (c.stage == AuditManager.Stage.Deciding) {
            if (c.account == honestNode && c.verdict == AuditManager.Verdict.Faulty) {
                return ask(id, honestNode);
            }
            for (uint256 i = 0; i < 2; ++i) {
                address auditor = c.answers[i].auditor;
                bool opposes = c.answers[i].step == AuditManager.Step.Opposed;
                if (c.verdict == AuditManager.Verdict.Passed && opposes && !isLiar[auditor] && !isRight) {
                    return ask(id, auditor);
                }
            }
        } else if (c.stage == AuditManager.Stage.Matching) {
            if (c.challenger != c.account && c.account == honestNode) return meet(id, honestNode);
            for (uint256 i = 0; i < 2; ++i) {
                address auditor = c.answers[i].auditor;
                bool opposes = c.answers[i].step == AuditManager.Step.Opposed;
                if (c.challenger == c.account && opposes && !isLiar[auditor]) return meet(id, auditor);
            }
        }
        return false;
    }

    function ask(bytes32 id, address who) internal returns (bool) {
        vm.prank(who);
        audits.dispute(id);
        return true;
    }

    function meet(bytes32 id, address who) internal returns (bool) {
        Chunk memory chunk = chunks[id];
        vm.prank(who);
        audits.matchBond(id, chunk);
        ++disputes;
        return true;
    }

    /// One step of an auditor whose turn it is.
    function answer(bytes32 id, AuditManager.Case memory c, uint256 i, bytes32 result)
        internal
        returns (bool)
    {
        address auditor = c.answers[i].auditor;
        AuditManager.Step step = c.answers[i].step;
        if (c.stage == AuditManager.Stage.Committing && step == AuditManager.Step.Drawn) {
            results[id][auditor] = result;
            bytes32 sealedAnswer = audits.answerOf(id, auditor, result, SALT);
            vm.prank(auditor);
            audits.commit(id, sealedAnswer);
            return true;
        }
        bytes32 own = results[id][auditor];
        if (c.stage == AuditManager.Stage.Answering && own != claimed[id]) {
            vm.prank(auditor);
            audits.differ(id);
            return true;
        }
        bool isShown = c.stage == AuditManager.Stage.Answering
            || (c.stage == AuditManager.Stage.Revealing && step <= AuditManager.Step.Differs);
        if (!isShown) return false;
        Chunk memory chunk = chunks[id];
        vm.prank(auditor);
        audits.reveal(id, chunk, own, SALT);
        return true;
    }

    /// Somebody goes on with a case: who is not honest, whoever draws, the clock, or the game.
    function act(uint256 which, uint256 seed) external {
        if (ids.length == 0) return;
        bytes32 id = ids[which % ids.length];
        AuditManager.Case memory c = audits.caseOf(id);
        if (c.stage == AuditManager.Stage.Closed) return;
        if (block.timestamp > c.deadline) {
            audits.timeOut(id);
        } else if (c.stage == AuditManager.Stage.Drawing) {
            audits.assign(id, abi.decode(lists[c.epoch - 1], (Auditor[])));
        } else if (c.stage == AuditManager.Stage.Disputed) {
            (, address accused,, bytes32 found,) = game.opened(id);
            vm.assertEq(accused, c.account);
            if (seed % 3 == 0) game.abandon(id);
            // Neither may be right; then the accuser has nothing to show for it.
            else game.tell(id, claimed[id] == truth[id] || found != truth[id]);
        } else if (c.stage == AuditManager.Stage.Deciding) {
            if (c.verdict == AuditManager.Verdict.Faulty && c.account == cheat && seed % 2 == 0) {
                ask(id, cheat);
            }
            for (uint256 i = 0; i < 2 && c.verdict == AuditManager.Verdict.Passed; ++i) {
                bool opposes = c.answers[i].step == AuditManager.Step.Opposed;
                if (opposes && isLiar[c.answers[i].auditor] && seed % 2 == 0) {
                    ask(id, c.answers[i].auditor);
                    break;
                }
            }
        } else if (c.stage == AuditManager.Stage.Matching) {
            if (c.challenger != c.account && c.account == cheat && seed % 2 == 0) meet(id, cheat);
            for (uint256 i = 0; i < 2 && c.challenger == c.account; ++i) {
                bool opposes = c.answers[i].step == AuditManager.Step.Opposed;
                if (opposes && isLiar[c.answers[i].auditor] && seed % 3 == 0) {
                    meet(id, c.answers[i].auditor);
                    break;
                }
            }
        } else {
            for (uint256 i = 0; i < 2; ++i) {
                if (!isLiar[c.answers[i].auditor] || seed % 4 == 0) continue;
                // Either what the node says, which it was told, or something else.
                bytes32 result = seed % 3 == 0 ? claimed[id] : keccak256(abi.encode("lie", seed % 2));
                if (seed % 5 == 0 && c.answers[i].auditor == unserved) result = 0;
                if (answer(id, c, i, result)) break;
            }
        }
        c = audits.caseOf(id);
        if (c.stage == AuditManager.Stage.Closed) ++outcomes[c.verdict];
    }
}

contract AuditInvariantsTest is AuditBase {
    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    AuditHandler internal handler;
    address[] internal honest;

    function setUp() public override {
        super.setUp();
        handler = new AuditHandler(audits, set, beacon, game, ALICE, BOB);
        handler.lie(auditors[1]);
        handler.lie(auditors[3]);
        handler.lie(auditors[4]);
        honest = [ALICE, auditors[0], auditors[2]];
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        targets = new FuzzSelector[](1);
        bytes4[] memory selectors = new bytes4[](6);
        selectors[0] = AuditHandler.begin.selector;
        selectors[1] = AuditHandler.elapse.selector;
        for (uint256 i = 2; i < 6; ++i) {
            selectors[i] = AuditHandler.act.selector;
        }
        targets[0] = FuzzSelector(address(handler), selectors);
    }

    /// What the contract holds is what is bound in open cases and what can be claimed.
    function invariant_bondsAreConserved() public view {
        uint256 sum = audits.claimable(TREASURY) + audits.claimable(ALICE) + audits.claimable(BOB);
        for (uint256 i = 0; i < AUDITORS; ++i) {
            sum += audits.claimable(auditors[i]);
        }
        for (uint256 i = 0; i < handler.count(); ++i) {
            AuditManager.Stage stage_ = audits.caseOf(handler.ids(i)).stage;
            if (stage_ == AuditManager.Stage.Matching) sum += BOND;
            if (stage_ == AuditManager.Stage.Disputed) sum += 2 * BOND;
        }
        vm.assertEq(pod.balanceOf(address(audits)), sum);
    }

    /// Whoever computes right and answers in time loses neither stake nor a bond, whatever three liars of five
    /// auditors and a cheating node do.
    function invariant_theHonestLoseNothing() public view {
        for (uint256 i = 0; i < honest.length; ++i) {
            address who = honest[i];
            vm.assertEq(behind(who, i == 0 ? Roles.NODE : Roles.AUDITOR), STAKE);
            uint256 bound;
            for (uint256 k = 0; k < handler.count(); ++k) {
                AuditManager.Case memory c = audits.caseOf(handler.ids(k));
                bool isParty = c.account == who || c.answers[0].auditor == who;
                if (c.stage == AuditManager.Stage.Matching && c.challenger == who) bound += BOND;
                if (c.stage == AuditManager.Stage.Disputed && isParty) bound += BOND;
            }
            vm.assertGe(pod.balanceOf(who) + audits.claimable(who) + bound, 100 * BOND);
        }
    }

    /// What was slashed is what is missing from the stakes.
    function invariant_slashedIsWhatIsMissing() public view {
        uint256 left = behind(ALICE, Roles.NODE) + behind(BOB, Roles.NODE);
        uint256 taken = stake.claimable(TREASURY) + stake.claimable(ALICE) + stake.claimable(BOB);
        for (uint256 i = 0; i < AUDITORS; ++i) {
            left += behind(auditors[i], Roles.AUDITOR);
            taken += stake.claimable(auditors[i]);
        }
        taken += stake.claimable(address(handler));
        vm.assertEq(left + taken, (2 + AUDITORS) * STAKE);
    }

    /// An honest node never fails an audit.
    function invariant_anHonestNodeIsNeverFaulty() public view {
        (, uint32 strikes,) = audits.histories(ALICE);
        vm.assertEq(strikes, 0);
    }

    /// The handler gets to every kind of end.
    function test_theHandlerReachesDisputes() public {
        handler.allow(40);
        for (uint256 seed = 1; seed < 20; ++seed) {
            handler.begin(seed);
            for (uint256 k = 0; k < 60; ++k) {
                for (uint256 i = 0; i < handler.count(); ++i) {
                    handler.act(i, uint256(keccak256(abi.encode(seed, k, i))));
                }
                handler.elapse(2 hours);
            }
        }
        vm.assertTrue(handler.disputes() != 0);
        for (uint256 v = 1; v <= uint256(type(AuditManager.Verdict).max); ++v) {
            AuditManager.Verdict kind = AuditManager.Verdict(v);
            if (kind == AuditManager.Verdict.Withheld || kind == AuditManager.Verdict.Planted) continue;
            vm.assertTrue(handler.outcomes(kind) != 0, vm.toString(v));
        }
        invariant_bondsAreConserved();
        invariant_theHonestLoseNothing();
        invariant_slashedIsWhatIsMissing();
    }
}
