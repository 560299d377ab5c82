// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {vm} from "../script/Vm.sol";
import {AuditManager} from "../src/AuditManager.sol";
import {Chunk} from "../src/IDisputeGame.sol";
import {StakeManager} from "../src/StakeManager.sol";
import {Auditor} from "../src/lib/Draw.sol";
import {Roles} from "../src/lib/Roles.sol";
import {AuditBase} from "./AuditBase.sol";

/// What must be refused or survived, each by its name.
contract AuditAttacksTest is AuditBase {
    function test_replayedCommitment() public {
        Chunk memory chunk = chunkOf(1, seal(RIGHT));
        (bytes32 id,) = opened(ALICE, chunk, "drawn");
        // Again in a later epoch, where another, wrong chunk should stand: it cannot be opened in its place.
        uint32 epoch = postOne(ALICE, chunk);
        drawable(epoch, "again");
        vm.expectRevert(abi.encodeWithSelector(AuditManager.Replayed.selector, id));
        audits.open(ALICE, epoch, 0, chunk, new bytes32[](0));
        bytes32 second = audits.draw(ALICE, epoch, 0);
        runOut(second, 12 hours);
        assertClosed(second, AuditManager.Verdict.Silent);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE - STAKE / 10);
    }

    function test_replayedCommitment_ofAnotherAccountOrContract() public {
        AuditManager other = install(config());
        Chunk memory chunk = chunkOf(1, seal(RIGHT));
        bytes32 leaf = audits.leafOf(ALICE, chunk);
        vm.startPrank(BOB);
        audits.post(leaf, 1, 0);
        other.post(leaf, 1, 0);
        vm.stopPrank();
        uint32 epoch = uint32(set.currentEpoch());
        (bytes32 here,) = audits.leafCase(BOB, epoch, 0);
        drawable(epoch, "drawn");
        vm.expectRevert(AuditManager.BadProof.selector);
        audits.open(BOB, epoch, 0, chunk, new bytes32[](0));
        // What is drawn, and what auditors commit to, is of one contract on one chain.
        (bytes32 there,) = other.leafCase(BOB, epoch, 0);
        vm.assertTrue(here != there);
        vm.chainId(99);
        (bytes32 elsewhere,) = audits.leafCase(BOB, epoch, 0);
        vm.assertTrue(here != elsewhere);
    }

    function test_grinding_rootAfterTheBeacon() public {
        uint32 epoch = postOne(ALICE, chunkOf(1, seal(RIGHT)));
        // Not a second root for the epoch, to choose from later ...
        vm.prank(ALICE);
        vm.expectRevert(abi.encodeWithSelector(AuditManager.AlreadyPosted.selector, epoch));
        audits.post(SALT, 1, 0);
        // ... and none for an epoch that is over: a root is always the running epoch's.
        drawable(epoch, "drawn");
        vm.prank(BOB);
        audits.post(SALT, 1, 0);
        (, uint32 count,,,) = audits.posted(BOB, epoch);
        vm.assertEq(count, 0);
        vm.expectRevert(abi.encodeWithSelector(AuditManager.NoSuchLeaf.selector, BOB, epoch, 0));
        audits.draw(BOB, epoch, 0);
        // The round that draws is made after the epoch's end, whenever one looks.
        vm.assertTrue(audits.roundOf(epoch) > (uint256(epoch) + 1) * EPOCH);
    }

    function test_grinding_twoLeavesAtOnePlace() public {
        Chunk memory right = chunkOf(1, seal(RIGHT));
        Chunk memory wrong = chunkOf(2, seal(WRONG));
        (bytes32 a, bytes32 b) = (audits.leafOf(ALICE, right), audits.leafOf(ALICE, wrong));
        bytes32 root = keccak256(abi.encode(a, b));
        vm.prank(ALICE);
        audits.post(root, 2, 0);
        uint32 epoch = uint32(set.currentEpoch());
        drawable(epoch, "drawn");
        bytes32[] memory proof = new bytes32[](1);
        proof[0] = b;
        vm.expectRevert(AuditManager.BadProof.selector);
        audits.open(ALICE, epoch, 1, right, proof);
        audits.open(ALICE, epoch, 0, right, proof);
    }

    function test_grinding_auditorsAfterTheBeacon() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(RIGHT));
        enlist(ANYBODY);
        Auditor[] memory later = set.listAuditors();
        vm.assertEq(later.length, list.length + 1);
        vm.expectRevert(abi.encodeWithSelector(AuditManager.WrongList.selector, audits.caseOf(id).epoch - 1));
        audits.assign(id, later);
    }

    function test_silenceAfterTheDraw() public {
        uint32 epoch = postOne(ALICE, chunkOf(1, seal(WRONG)));
        drawable(epoch, "drawn");
        vm.prank(ANYBODY);
        bytes32 id = audits.draw(ALICE, epoch, 0);
        pass(12 hours);
        vm.expectRevert(abi.encodeWithSelector(AuditManager.TooEarly.selector, block.timestamp));
        audits.timeOut(id);
        pass(1);
        vm.expectRevert(abi.encodeWithSelector(AuditManager.TooLate.selector, block.timestamp - 1));
        audits.open(ALICE, epoch, 0, chunkOf(1, seal(WRONG)), new bytes32[](0));
        audits.timeOut(id);
        assertClosed(id, AuditManager.Verdict.Silent);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE - STAKE / 10);
        vm.assertEq(stake.claimable(ANYBODY), STAKE / 100);
    }

    /// Whoever has not computed has nothing to say "equal" with.
    function test_lazyAuditor_cannotGuess() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(RIGHT));
        address lazy = assigned(id, list);
        commit(id, lazy, chunk.sealedRoots);
        vm.expectRevert(AuditManager.AnswersDiffer.selector);
        reveal(id, lazy, chunk, chunk.sealedRoots);
    }

    /// Who asks the node for its result instead of computing is caught by one that was planted.
    function test_lazyAuditor_isCaughtByAPlant() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(audits.plantOf(ALICE, SALT));
        address lazy = assigned(id, list);
        commit(id, lazy, PLANTED);
        reveal(id, lazy, chunk, PLANTED);
        assertClosed(id, AuditManager.Verdict.Passed);
        vm.expectRevert(AuditManager.NotPlanted.selector);
        audits.showPlant(id, chunk, "another salt");
        audits.showPlant(id, chunk, SALT);
        assertClosed(id, AuditManager.Verdict.Planted);
        vm.assertEq(behind(lazy, Roles.AUDITOR), STAKE - STAKE / 5);
        vm.assertEq(stake.claimable(ALICE), STAKE / 50);
        (uint32 passed,,) = audits.histories(ALICE);
        vm.assertEq(passed, 0);
        vm.expectRevert(abi.encodeWithSelector(AuditManager.WrongStage.selector, AuditManager.Stage.Closed));
        audits.showPlant(id, chunk, SALT);
    }

    function test_lazyAuditor_aPlantFoundCostsNobody() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(audits.plantOf(ALICE, SALT));
        (address first, address second) = judged(id, list, chunk, RIGHT, RIGHT);
        audits.showPlant(id, chunk, SALT);
        assertClosed(id, AuditManager.Verdict.Planted);
        vm.assertEq(behind(first, Roles.AUDITOR), STAKE);
        vm.assertEq(behind(second, Roles.AUDITOR), STAKE);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE);
    }

    /// The honest one of two may have gone to dispute before the plant is shown: its bond comes back.
    function test_lazyAuditor_aPlantEndsADispute() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(audits.plantOf(ALICE, SALT));
        (address honest, address lazy) = judged(id, list, chunk, RIGHT, PLANTED);
        vm.prank(honest);
        audits.dispute(id);
        audits.showPlant(id, chunk, SALT);
        vm.assertEq(audits.claimable(honest), BOND);
        vm.assertEq(behind(honest, Roles.AUDITOR), STAKE);
        vm.assertEq(behind(lazy, Roles.AUDITOR), STAKE - STAKE / 5);
    }

    /// A plant is late once its window has passed, so that it does not hang over an auditor forever.
    function test_lazyAuditor_aPlantIsShownInTime() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(audits.plantOf(ALICE, SALT));
        address lazy = assigned(id, list);
        commit(id, lazy, PLANTED);
        reveal(id, lazy, chunk, PLANTED);
        uint40 deadline = audits.caseOf(id).deadline;
        vm.warp(deadline + 1);
        vm.expectRevert(abi.encodeWithSelector(AuditManager.TooLate.selector, deadline));
        audits.showPlant(id, chunk, SALT);
    }

    /// Two auditors that say the same of an honest node gain nothing, and one of them pays.
    function test_colludingAuditor_againstAnHonestNode() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(RIGHT));
        (address first, address second) = judged(id, list, chunk, WRONG, WRONG);
        disputed(id, chunk, ALICE, first);
        game.tell(id, true);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE);
        vm.assertEq(audits.claimable(ALICE), BOND + BOND / 2);
        vm.assertEq(audits.claimable(first), 0);
        vm.assertEq(audits.claimable(second), 0);
        vm.assertEq(behind(first, Roles.AUDITOR), STAKE - STAKE / 5);
    }

    /// The second auditor does not see what the first one has.
    function test_colludingAuditor_nothingToCopy() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(RIGHT));
        address first = assigned(id, list);
        commit(id, first, WRONG);
        vm.expectRevert(AuditManager.AnswersDiffer.selector);
        reveal(id, first, chunk, WRONG);
        vm.prank(first);
        audits.differ(id);
        address second = assigned(id, list);
        bytes32 sealedAnswer = audits.caseOf(id).answers[0].value;
        vm.prank(second);
        audits.commit(id, sealedAnswer);
        // The copy holds the first one's address.
        vm.expectRevert(AuditManager.WrongAnswer.selector);
        reveal(id, second, chunk, WRONG);
    }

    /// What one auditor has found stands until it is disputed, though the other does nothing but stand by the
    /// node. `isFirst`: which of the two is honest.
    function found(bool isFirst) internal returns (bytes32 id, Chunk memory chunk, address honest) {
        chunk = chunkOf(1, seal(WRONG));
        Auditor[] memory list;
        (id, list) = opened(ALICE, chunk, "drawn");
        (address first, address second) =
            answered(id, list, isFirst ? RIGHT : bytes32(0), isFirst ? bytes32(0) : RIGHT);
        honest = isFirst ? first : second;
        reveal(id, honest, chunk, RIGHT);
    }

    function stands(bytes32 id) internal view {
        AuditManager.Case memory c = audits.caseOf(id);
        vm.assertEq(uint256(c.stage), uint256(AuditManager.Stage.Deciding));
        vm.assertEq(uint256(c.verdict), uint256(AuditManager.Verdict.Faulty));
        vm.assertEq(c.deadline, block.timestamp + 1 days);
    }

    function otherOf(bytes32 id, address honest) internal view returns (address) {
        AuditManager.Case memory c = audits.caseOf(id);
        return c.answers[c.answers[0].auditor == honest ? 1 : 0].auditor;
    }

    /// The other one never shows its answer.
    function test_erasure_bySilence_ofTheSecond() public {
        silence(true);
    }

    function test_erasure_bySilence_ofTheFirst() public {
        silence(false);
    }

    function silence(bool isFirst) internal {
        (bytes32 id,, address honest) = found(isFirst);
        address silent = otherOf(id, honest);
        runOut(id, 4 hours);
        stands(id);
        vm.assertEq(behind(silent, Roles.AUDITOR), STAKE - STAKE / 100);
        vm.assertEq(behind(honest, Roles.AUDITOR), STAKE);
        runOut(id, 1 days);
        assertClosed(id, AuditManager.Verdict.Faulty);
        (, uint32 strikes,) = audits.histories(ALICE);
        vm.assertEq(strikes, 1);
        vm.assertEq(behind(silent, Roles.AUDITOR), STAKE - STAKE / 100);
    }

    /// The other one says that it got no rows, which would cost the node 1% and no strike.
    function test_erasure_bySayingThatNothingWasServed_ofTheSecond() public {
        unserved(true);
    }

    function test_erasure_bySayingThatNothingWasServed_ofTheFirst() public {
        unserved(false);
    }

    function unserved(bool isFirst) internal {
        (bytes32 id, Chunk memory chunk, address honest) = found(isFirst);
        reveal(id, otherOf(id, honest), chunk, 0);
        stands(id);
        runOut(id, 1 days);
        assertClosed(id, AuditManager.Verdict.Faulty);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE);
    }

    /// None of those that are drawn after it commits to anything, until nobody is left.
    function test_erasure_bySilenceOfAllOthers() public {
        (bytes32 id, Chunk memory chunk, address honest) = alone();
        reveal(id, honest, chunk, RIGHT);
        notYet(id);
        runOut(id, 4 hours);
        stands(id);
        // The node may still dispute that.
        disputed(id, chunk, ALICE, honest);
        game.tell(id, false);
        assertClosed(id, AuditManager.Verdict.Faulty);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE - STAKE / 5);
        vm.assertEq(behind(honest, Roles.AUDITOR), STAKE);
    }

    function test_erasure_whoIsAloneAndSilentLapses() public {
        (bytes32 id,, address alone_) = alone();
        runOut(id, 4 hours);
        assertClosed(id, AuditManager.Verdict.Undecided);
        vm.assertEq(behind(alone_, Roles.AUDITOR), STAKE - STAKE / 100);
    }

    function notYet(bytes32 id) internal {
        vm.expectRevert(abi.encodeWithSelector(AuditManager.TooEarly.selector, audits.caseOf(id).deadline));
        audits.timeOut(id);
    }

    /// The first of all auditors says that its result is another; the others say nothing.
    function alone() internal returns (bytes32 id, Chunk memory chunk, address first) {
        chunk = chunkOf(1, seal(WRONG));
        Auditor[] memory list;
        (id, list) = opened(ALICE, chunk, "drawn");
        first = differing(id, list, RIGHT);
        for (uint256 i = 1; i < AUDITORS; ++i) {
            assigned(id, list);
            runOut(id, 4 hours);
        }
        uint40 deadline = uint40(block.timestamp + 4 hours);
        vm.expectEmit(address(audits));
        emit AuditManager.AuditorDrawn(id, address(0), deadline);
        audits.assign(id, list);
        AuditManager.Case memory c = audits.caseOf(id);
        vm.assertEq(uint256(c.stage), uint256(AuditManager.Stage.Revealing));
        vm.assertEq(c.answers[0].auditor, first);
    }

    /// As often as auditors are drawn at all.
    function test_erasure_bySilenceOfAllThatMayBeDrawn() public {
        for (uint160 i = 0; i < 4; ++i) {
            enlist(address(0xAE00 + i));
        }
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(WRONG));
        address first = differing(id, list, RIGHT);
        for (uint256 i = 1; i < audits.MAX_DRAWS(); ++i) {
            assigned(id, list);
            runOut(id, 4 hours);
        }
        reveal(id, first, chunk, RIGHT);
        runOut(id, 4 hours);
        stands(id);
    }

    /// The reward goes to who has found the fault, in whichever seat, not to who was silent about it.
    function test_erasure_rewardsWhoHasFoundIt_first() public {
        rewards(true);
    }

    function test_erasure_rewardsWhoHasFoundIt_second() public {
        rewards(false);
    }

    function rewards(bool isFirst) internal {
        (bytes32 strike,,) = found(true);
        runOut(strike, 4 hours);
        runOut(strike, 1 days);
        Chunk memory chunk = chunkOf(2, seal(WRONG));
        (bytes32 id, Auditor[] memory list) = opened(ALICE, chunk, "again");
        (address first, address second) = answered(id, list, RIGHT, RIGHT);
        (address finder, address silent) = isFirst ? (first, second) : (second, first);
        reveal(id, finder, chunk, RIGHT);
        runOut(id, 4 hours);
        runOut(id, 1 days);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE - STAKE / 10);
        vm.assertEq(stake.claimable(finder), STAKE / 100);
        vm.assertEq(stake.claimable(silent), 0);
    }

    /// A liar beside a silent auditor gains nothing against a node that disputes.
    function test_falseAccuser_besideASilentOne() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(RIGHT));
        (address liar, address silent) = answered(id, list, WRONG, RIGHT);
        reveal(id, liar, chunk, WRONG);
        runOut(id, 4 hours);
        stands(id);
        vm.prank(ALICE);
        audits.dispute(id);
        runOut(id, 1 days);
        assertClosed(id, AuditManager.Verdict.Passed);
        vm.assertEq(audits.claimable(ALICE), BOND);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE);
        vm.assertEq(behind(liar, Roles.AUDITOR), STAKE - STAKE / 100);
        // Each of the two lapsed, once.
        vm.assertEq(behind(silent, Roles.AUDITOR), STAKE - STAKE / 100);
    }

    /// "I got no rows" of one alone says nothing.
    function test_falseAccuser_ofRowsThatWereServed_besideASilentOne() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(RIGHT));
        (address liar, address silent) = answered(id, list, 0, RIGHT);
        reveal(id, liar, chunk, 0);
        runOut(id, 4 hours);
        assertClosed(id, AuditManager.Verdict.Undecided);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE);
        vm.assertEq(behind(silent, Roles.AUDITOR), STAKE - STAKE / 100);
    }

    function test_falseAccuser() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(RIGHT));
        (address liar, address honest) = judged(id, list, chunk, WRONG, RIGHT);
        runOut(id, 1 days);
        assertClosed(id, AuditManager.Verdict.Passed);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE);
        vm.assertEq(behind(honest, Roles.AUDITOR), STAKE);
        vm.assertEq(behind(liar, Roles.AUDITOR), STAKE - STAKE / 100);
    }

    function test_falseAccuser_whoInsistsLosesItsBond() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(RIGHT));
        (address liar,) = judged(id, list, chunk, WRONG, RIGHT);
        disputed(id, chunk, liar, ALICE);
        game.tell(id, true);
        vm.assertEq(audits.claimable(liar), 0);
        vm.assertEq(audits.claimable(ALICE), BOND + BOND / 2);
        vm.assertEq(behind(liar, Roles.AUDITOR), STAKE - STAKE / 5);
    }

    /// What two liars can do at most to a node whose rows nobody can show they got.
    function test_falseAccuser_ofRowsThatWereServed() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(RIGHT));
        (address first, address second) = judged(id, list, chunk, 0, 0);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE - STAKE / 100);
        vm.assertEq(stake.claimable(first), 0);
        vm.assertEq(stake.claimable(second), 0);
    }

    /// A neighbour posts, opens and fails with what it likes: that is its own.
    function test_neighbourFraming() public {
        listAll();
        Chunk memory chunk = chunkOf(1, seal(RIGHT));
        uint32 epoch = postOne(ALICE, chunk);
        // Bob enters Alice's commitment as his, with other rows.
        Chunk memory framed = chunkOf(1, seal(WRONG));
        framed.commitment = chunk.commitment;
        postOne(BOB, framed);
        drawable(epoch, "drawn");
        bytes32 his = audits.open(BOB, epoch, 0, framed, new bytes32[](0));
        vm.assertEq(audits.caseOf(his).account, BOB);
        // Nobody can open anything of Alice's but what she posted, and her commitment is not used up.
        vm.expectRevert(AuditManager.BadProof.selector);
        audits.open(ALICE, epoch, 0, framed, new bytes32[](0));
        bytes32 hers = audits.open(ALICE, epoch, 0, chunk, new bytes32[](0));
        vm.assertTrue(hers != his);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE);
    }

    function test_withdrawalDuringADispute() public {
        // Everything thaws before the node posts, so that it is free as early as can be.
        listAll();
        vm.startPrank(ALICE);
        uint256 thaw = stake.thaw(ALICE, Roles.NODE, STAKE / 2);
        vm.stopPrank();
        pass(20 days);
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(WRONG));
        vm.prank(ALICE);
        try stake.withdraw(thaw) {
            revert("withdrawn while a case is open");
        } catch (bytes memory reason) {
            vm.assertEq(bytes32(bytes4(reason)), bytes32(StakeManager.NotReleased.selector));
        }
        (address first,) = judged(id, list, chunk, RIGHT, RIGHT);
        disputed(id, chunk, ALICE, first);
        pass(3 days);
        vm.prank(ALICE);
        try stake.withdraw(thaw) {
            revert("withdrawn during a dispute");
        } catch (bytes memory reason) {
            vm.assertEq(bytes32(bytes4(reason)), bytes32(StakeManager.NotReleased.selector));
        }
        game.tell(id, false);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE - STAKE / 5);
    }

    /// An auditor's stake is held from when it is drawn.
    function test_withdrawalDuringADispute_ofAnAuditor() public {
        (bytes32 id, Auditor[] memory list) = opened(ALICE, chunkOf(1, seal(RIGHT)), "drawn");
        address auditor = assigned(id, list);
        vm.assertEq(stake.poolOf(auditor, Roles.AUDITOR).heldUntil, block.timestamp + audits.longestCase());
    }

    /// Leaving once the beacon is known is silence.
    function test_selectiveAbortAfterTheBeacon() public {
        uint32 epoch = postOne(ALICE, chunkOf(1, seal(WRONG)));
        drawable(epoch, "drawn");
        vm.prank(ALICE);
        stake.thaw(ALICE, Roles.NODE, STAKE);
        bytes32 id = audits.draw(ALICE, epoch, 0);
        runOut(id, 12 hours);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE - STAKE / 10);
    }

    /// One epoch of slashing takes no more than the cap, however many cases end in it.
    function test_manySilentCasesTakeNoMoreThanTheCap() public {
        vm.prank(ALICE);
        audits.post(SALT, 10, 0);
        uint32 epoch = uint32(set.currentEpoch());
        drawable(epoch, "drawn");
        bytes32[10] memory ids;
        for (uint32 i = 0; i < 10; ++i) {
            ids[i] = audits.draw(ALICE, epoch, i);
        }
        pass(12 hours + 1);
        for (uint256 i = 0; i < 10; ++i) {
            audits.timeOut(ids[i]);
        }
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE - STAKE / 5);
    }
}
