// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {vm} from "../script/Vm.sol";
import {AuditManager} from "../src/AuditManager.sol";
import {AuditorSet} from "../src/AuditorSet.sol";
import {Chunk, IDisputeGame} from "../src/IDisputeGame.sol";
import {StakeManager} from "../src/StakeManager.sol";
import {Auditor, Draw} from "../src/lib/Draw.sol";
import {Roles} from "../src/lib/Roles.sol";
import {Tree} from "../src/lib/Tree.sol";
import {AuditBase} from "./AuditBase.sol";

contract AuditManagerTest is AuditBase {
    function expect(bytes4 selector) internal {
        vm.expectRevert(selector);
    }

    function wrongStage(AuditManager.Stage stage_) internal {
        vm.expectRevert(abi.encodeWithSelector(AuditManager.WrongStage.selector, stage_));
    }

    function notYours(address who) internal {
        vm.expectRevert(abi.encodeWithSelector(AuditManager.NotYours.selector, who));
        vm.prank(who);
    }

    // The way of an audit

    function test_anHonestNodePasses() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(RIGHT));
        address auditor = assigned(id, list);
        commit(id, auditor, RIGHT);
        vm.expectEmit(address(audits));
        emit AuditManager.AnswerRevealed(id, auditor, RIGHT);
        reveal(id, auditor, chunk, RIGHT);
        assertClosed(id, AuditManager.Verdict.Passed);
        (uint32 passed, uint32 strikes,) = audits.histories(ALICE);
        vm.assertEq(passed, 1);
        vm.assertEq(strikes, 0);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE);
        vm.assertEq(behind(auditor, Roles.AUDITOR), STAKE);
        vm.assertEq(audits.openedIn(ALICE, chunk.commitment), id);
    }

    function test_anIsolatedMismatchCostsPayAlone() public {
        bytes32 id = foundFaulty(1);
        vm.expectEmit(address(audits));
        emit AuditManager.PayForfeited(id, ALICE);
        vm.expectEmit(address(audits));
        emit AuditManager.SelfTestDue(ALICE, 1);
        audits.timeOut(id);
        assertClosed(id, AuditManager.Verdict.Faulty);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE);
    }

    /// A chunk that two auditors found wrong; the window of disputes is over.
    function foundFaulty(uint256 number) internal returns (bytes32 id) {
        Chunk memory chunk = chunkOf(number, seal(WRONG));
        Auditor[] memory list;
        (id, list) = opened(ALICE, chunk, bytes32(number));
        judged(id, list, chunk, RIGHT, RIGHT);
        vm.assertEq(uint256(verdict(id)), uint256(AuditManager.Verdict.Faulty));
        pass(1 days + 1);
    }

    function test_repeatedMismatchesAreSlashedMoreAndMore() public {
        audits.timeOut(foundFaulty(1));
        audits.timeOut(foundFaulty(2));
        uint256 left = STAKE - STAKE / 10;
        vm.assertEq(behind(ALICE, Roles.NODE), left);
        audits.timeOut(foundFaulty(3));
        left -= left / 5;
        vm.assertEq(behind(ALICE, Roles.NODE), left);
        (, uint32 strikes,) = audits.histories(ALICE);
        vm.assertEq(strikes, 3);
    }

    function test_mismatchesFarApartAreIsolated() public {
        audits.timeOut(foundFaulty(1));
        pass(31 days);
        audits.timeOut(foundFaulty(2));
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE);
    }

    function test_aNodeThatServesNoRowsIsPunishedMildly() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(WRONG));
        judged(id, list, chunk, 0, 0);
        assertClosed(id, AuditManager.Verdict.Withheld);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE - STAKE / 100);
        vm.assertEq(stake.claimable(TREASURY), STAKE / 100);
        (, uint32 strikes,) = audits.histories(ALICE);
        vm.assertEq(strikes, 0);
    }

    function test_aSilentAuditorIsReplaced() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(RIGHT));
        address first = assigned(id, list);
        runOut(id, 4 hours);
        vm.assertEq(behind(first, Roles.AUDITOR), STAKE - STAKE / 100);
        address second = assigned(id, list);
        vm.assertTrue(second != first);
        commit(id, second, RIGHT);
        runOut(id, 4 hours);
        vm.assertEq(behind(second, Roles.AUDITOR), STAKE - STAKE / 100);
        address third = assigned(id, list);
        commit(id, third, RIGHT);
        reveal(id, third, chunk, RIGHT);
        assertClosed(id, AuditManager.Verdict.Passed);
    }

    function test_aCaseThatNobodyAnswersIsUndecided() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(WRONG));
        for (uint256 i = 0; i < AUDITORS; ++i) {
            assigned(id, list);
            runOut(id, 4 hours);
        }
        audits.assign(id, list);
        assertClosed(id, AuditManager.Verdict.Undecided);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE);
        for (uint256 i = 0; i < AUDITORS; ++i) {
            vm.assertEq(behind(auditors[i], Roles.AUDITOR), STAKE - STAKE / 100);
        }
    }

    function test_noMoreAuditorsAreDrawnThanAllowed() public {
        for (uint160 i = 0; i < 4; ++i) {
            enlist(address(0xAE00 + i));
        }
        (bytes32 id, Auditor[] memory list) = opened(ALICE, chunkOf(1, seal(RIGHT)), "drawn");
        for (uint256 i = 0; i < audits.MAX_DRAWS(); ++i) {
            assigned(id, list);
            runOut(id, 4 hours);
        }
        assertClosed(id, AuditManager.Verdict.Undecided);
    }

    function test_aCaseThatNobodyDrawsForIsUndecided() public {
        (bytes32 id,) = opened(ALICE, chunkOf(1, seal(RIGHT)), "drawn");
        runOut(id, 4 hours);
        assertClosed(id, AuditManager.Verdict.Undecided);
    }

    function test_anAnswerThatIsNotShownIsALapse() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(RIGHT));
        (address first, address second) = answered(id, list, WRONG, RIGHT);
        reveal(id, second, chunk, RIGHT);
        runOut(id, 4 hours);
        assertClosed(id, AuditManager.Verdict.Passed);
        vm.assertEq(behind(first, Roles.AUDITOR), STAKE - STAKE / 100);
        vm.assertEq(behind(second, Roles.AUDITOR), STAKE);
    }

    function test_withoutAGameNobodyIsSlashedForAResult() public {
        AuditManager.Config memory c = config();
        c.game = IDisputeGame(address(0));
        audits = install(c);
        for (uint256 i = 1; i <= 3; ++i) {
            audits.timeOut(foundFaulty(i));
        }
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE);
        Chunk memory chunk = chunkOf(7, seal(WRONG));
        (bytes32 id, Auditor[] memory list) = opened(ALICE, chunk, "drawn");
        judged(id, list, chunk, RIGHT, RIGHT);
        expect(AuditManager.NoDispute.selector);
        vm.prank(ALICE);
        audits.dispute(id);
    }

    // Disputes

    /// A verdict against an honest node, by two who say the same wrong thing.
    function accused() internal returns (bytes32 id, Chunk memory chunk, address first, address second) {
        chunk = chunkOf(1, seal(RIGHT));
        Auditor[] memory list;
        (id, list) = opened(ALICE, chunk, "drawn");
        (first, second) = judged(id, list, chunk, WRONG, WRONG);
    }

    function test_anAccusedNodeWinsItsDispute() public {
        (bytes32 id, Chunk memory chunk, address first, address second) = accused();
        disputed(id, chunk, ALICE, second);
        (address opener, address node, address accuser, bytes32 found, bytes32 hash) = game.opened(id);
        vm.assertEq(opener, address(audits));
        vm.assertEq(node, ALICE);
        vm.assertEq(accuser, second);
        vm.assertEq(found, WRONG);
        vm.assertEq(hash, keccak256(abi.encode(chunk)));
        vm.assertEq(pod.balanceOf(address(audits)), 2 * BOND);
        game.tell(id, true);
        assertClosed(id, AuditManager.Verdict.Passed);
        vm.assertEq(audits.claimable(ALICE), BOND + BOND / 2);
        vm.assertEq(audits.claimable(TREASURY), BOND - BOND / 2);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE);
        vm.assertEq(behind(second, Roles.AUDITOR), STAKE - STAKE / 5);
        vm.assertEq(behind(first, Roles.AUDITOR), STAKE);
        vm.prank(ALICE);
        vm.assertEq(audits.claim(), BOND + BOND / 2);
        expect(AuditManager.NothingToClaim.selector);
        vm.prank(ALICE);
        audits.claim();
    }

    function test_aCheatLosesItsDispute() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(WRONG));
        (address first,) = judged(id, list, chunk, RIGHT, RIGHT);
        disputed(id, chunk, ALICE, first);
        game.tell(id, false);
        assertClosed(id, AuditManager.Verdict.Faulty);
        vm.assertEq(audits.claimable(first), BOND + BOND / 2);
        vm.assertEq(audits.claimable(ALICE), 0);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE - STAKE / 5);
        vm.assertEq(stake.claimable(first), STAKE / 50);
    }

    function test_anAccuserThatDoesNotMatchLoses() public {
        (bytes32 id,, address first, address second) = accused();
        vm.prank(ALICE);
        audits.dispute(id);
        runOut(id, 1 days);
        assertClosed(id, AuditManager.Verdict.Passed);
        vm.assertEq(audits.claimable(ALICE), BOND);
        vm.assertEq(behind(first, Roles.AUDITOR), STAKE - STAKE / 100);
        vm.assertEq(behind(second, Roles.AUDITOR), STAKE - STAKE / 100);
    }

    function test_aLoneAuditorCanProveAColludingOneWrong() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(WRONG));
        (address honest,) = judged(id, list, chunk, RIGHT, WRONG);
        vm.assertEq(uint256(verdict(id)), uint256(AuditManager.Verdict.Passed));
        disputed(id, chunk, honest, ALICE);
        game.tell(id, false);
        assertClosed(id, AuditManager.Verdict.Faulty);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE - STAKE / 5);
        vm.assertEq(audits.claimable(honest), BOND + BOND / 2);
        vm.assertEq(behind(honest, Roles.AUDITOR), STAKE);
    }

    function test_aCheatThatDoesNotMatchLoses() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(WRONG));
        (address honest,) = judged(id, list, chunk, RIGHT, WRONG);
        vm.prank(honest);
        audits.dispute(id);
        runOut(id, 1 days);
        assertClosed(id, AuditManager.Verdict.Faulty);
        vm.assertEq(audits.claimable(honest), BOND);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE - STAKE / 5);
    }

    function test_aGameThatDoesNotEndCostsNobody() public {
        (bytes32 id, Chunk memory chunk, address first,) = accused();
        disputed(id, chunk, ALICE, first);
        pass(4 days);
        vm.expectRevert(abi.encodeWithSelector(AuditManager.TooEarly.selector, block.timestamp));
        audits.timeOut(id);
        pass(1);
        audits.timeOut(id);
        assertClosed(id, AuditManager.Verdict.Undecided);
        vm.assertEq(audits.claimable(ALICE), BOND);
        vm.assertEq(audits.claimable(first), BOND);
        wrongStage(AuditManager.Stage.Closed);
        game.tell(id, true);
    }

    /// The game cannot judge what the case is about: nobody is right, and nobody loses.
    function test_aCaseThatCannotBeTriedCostsNobody() public {
        (bytes32 id, Chunk memory chunk, address first, address second) = accused();
        disputed(id, chunk, ALICE, second);
        game.abandon(id);
        abandonedBetween(id, second, first);
        // Once.
        wrongStage(AuditManager.Stage.Closed);
        game.abandon(id);
        wrongStage(AuditManager.Stage.Closed);
        game.tell(id, true);
        vm.prank(second);
        vm.assertEq(audits.claim(), BOND);
        vm.prank(ALICE);
        vm.assertEq(audits.claim(), BOND);
        vm.assertEq(pod.balanceOf(address(audits)), 0);
    }

    function test_aCaseThatCannotBeTriedCostsNobody_accused() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(WRONG));
        (address second, address first) = judged(id, list, chunk, WRONG, RIGHT);
        disputed(id, chunk, first, ALICE);
        game.abandon(id);
        abandonedBetween(id, first, second);
    }

    function abandonedBetween(bytes32 id, address accuser, address other) internal view {
        assertClosed(id, AuditManager.Verdict.Undecided);
        vm.assertEq(audits.claimable(ALICE), BOND);
        vm.assertEq(audits.claimable(accuser), BOND);
        vm.assertEq(audits.claimable(other) + audits.claimable(TREASURY), 0);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE);
        vm.assertEq(behind(accuser, Roles.AUDITOR), STAKE);
        vm.assertEq(behind(other, Roles.AUDITOR), STAKE);
        (uint32 passed, uint32 strikes,) = audits.histories(ALICE);
        vm.assertEq(passed + strikes, 0);
    }

    function test_onlyThePartiesAndTheGame() public {
        (bytes32 id, Chunk memory chunk, address first,) = accused();
        notYours(BOB);
        audits.dispute(id);
        notYours(first);
        audits.dispute(id);
        vm.prank(ALICE);
        audits.dispute(id);
        notYours(BOB);
        audits.matchBond(id, chunk);
        notYours(ALICE);
        audits.matchBond(id, chunk);
        chunk.to = 100;
        expect(AuditManager.WrongChunk.selector);
        vm.prank(first);
        audits.matchBond(id, chunk);
        notYours(ALICE);
        audits.resolved(id, true);
        vm.prank(address(game));
        wrongStage(AuditManager.Stage.Matching);
        audits.resolved(id, true);
        notYours(ALICE);
        audits.abandoned(id);
        vm.prank(address(game));
        wrongStage(AuditManager.Stage.Matching);
        audits.abandoned(id);
        chunk.to = 128;
        vm.prank(first);
        audits.matchBond(id, chunk);
        notYours(first);
        audits.abandoned(id);
    }

    // Posting and drawing

    function test_aRootNeedsStakeAndLeaves() public {
        vm.expectRevert(abi.encodeWithSelector(AuditManager.TooLittleStake.selector, 0, STAKE / 2));
        vm.prank(ANYBODY);
        audits.post(SALT, 1, 0);
        vm.startPrank(ALICE);
        uint32 most = audits.MAX_LEAVES();
        uint32[2][3] memory odd = [[uint32(0), 0], [uint32(2), 3], [most + 1, 0]];
        for (uint256 i = 0; i < odd.length; ++i) {
            vm.expectRevert(abi.encodeWithSelector(AuditManager.BadCount.selector, odd[i][0], odd[i][1]));
            audits.post(SALT, odd[i][0], odd[i][1]);
        }
    }

    function test_onlyWhatIsDrawnIsOpened() public {
        AuditManager.Config memory c = config();
        (c.promptRate, c.replyRate) = (0, ALWAYS);
        audits = install(c);
        vm.prank(ALICE);
        audits.post(SALT, 4, 3);
        uint32 epoch = uint32(set.currentEpoch());
        vm.expectRevert(abi.encodeWithSelector(AuditManager.NoBeacon.selector, audits.roundOf(epoch)));
        audits.draw(ALICE, epoch, 3);
        drawable(epoch, "drawn");
        (bytes32 id, uint32 rate) = audits.leafCase(ALICE, epoch, 2);
        vm.assertEq(rate, 0);
        vm.expectRevert(abi.encodeWithSelector(AuditManager.NotDrawn.selector, id));
        audits.draw(ALICE, epoch, 2);
        vm.expectRevert(abi.encodeWithSelector(AuditManager.NoSuchLeaf.selector, ALICE, epoch, 4));
        audits.draw(ALICE, epoch, 4);
        id = audits.draw(ALICE, epoch, 3);
        vm.expectRevert(abi.encodeWithSelector(AuditManager.AlreadyDrawn.selector, id));
        audits.draw(ALICE, epoch, 3);
        uint256 last = (uint256(epoch) + 2) * EPOCH;
        vm.warp(last + 1);
        vm.expectRevert(abi.encodeWithSelector(AuditManager.TooLate.selector, last));
        audits.draw(ALICE, epoch, 3);
    }

    function test_aHistoryLowersTheRateOfLaterRoots() public {
        AuditManager.Config memory c = config();
        (c.rateFloor, c.rateHalfLife) = (10, 1);
        audits = install(c);
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(RIGHT));
        address auditor = assigned(id, list);
        commit(id, auditor, RIGHT);
        uint32 epoch = uint32(set.currentEpoch());
        vm.prank(ALICE);
        audits.post(SALT, 1, 0);
        reveal(id, auditor, chunk, RIGHT);
        (, uint32 before) = audits.leafCase(ALICE, epoch, 0);
        vm.assertEq(before, ALWAYS);
        pass(EPOCH);
        vm.prank(ALICE);
        audits.post(SALT, 1, 0);
        (, uint32 rate) = audits.leafCase(ALICE, epoch + 1, 0);
        vm.assertEq(rate, ALWAYS / 10 + (ALWAYS - ALWAYS / 10) / 2);
    }

    function test_stepsComeInTheirOrder() public {
        (bytes32 id, Auditor[] memory list, Chunk memory chunk) = opened(seal(RIGHT));
        AuditManager.Stage drawing = AuditManager.Stage.Drawing;
        wrongStage(drawing);
        audits.commit(id, SALT);
        wrongStage(drawing);
        audits.differ(id);
        wrongStage(drawing);
        audits.dispute(id);
        list[0].stake += 1;
        vm.expectRevert(abi.encodeWithSelector(AuditManager.WrongList.selector, audits.caseOf(id).epoch - 1));
        audits.assign(id, list);
        list[0].stake -= 1;
        address auditor = assigned(id, list);
        wrongStage(AuditManager.Stage.Committing);
        audits.assign(id, list);
        notYours(ALICE);
        audits.commit(id, SALT);
        commit(id, auditor, RIGHT);
        notYours(ALICE);
        audits.differ(id);
        notYours(ALICE);
        audits.reveal(id, chunk, RIGHT, SALT);
        expect(AuditManager.WrongAnswer.selector);
        reveal(id, auditor, chunk, WRONG);
        uint40 deadline = audits.caseOf(id).deadline;
        vm.expectRevert(abi.encodeWithSelector(AuditManager.TooEarly.selector, deadline));
        audits.timeOut(id);
        vm.warp(deadline + 1);
        vm.expectRevert(abi.encodeWithSelector(AuditManager.TooLate.selector, deadline));
        reveal(id, auditor, chunk, RIGHT);
        wrongStage(AuditManager.Stage.None);
        audits.timeOut(bytes32(uint256(9)));
    }

    function test_parametersHaveBounds() public {
        AuditManager.Config[6] memory odd;
        for (uint256 i = 0; i < odd.length; ++i) {
            odd[i] = config();
        }
        odd[0].openWindow = 0;
        odd[1].answerWindow = 1 days;
        odd[2].disputeBond = 0;
        odd[3].silentBps = 10_001;
        odd[4].rateFloor = 0;
        odd[5].drawWindow = odd[5].beaconDelay;
        for (uint256 i = 0; i < odd.length; ++i) {
            expect(AuditManager.BadConfig.selector);
            new AuditManager(odd[i]);
        }
    }

    /// The whole of a case is within what stake is held for.
    function test_stakeIsHeldForTheLongestCase() public {
        Chunk memory chunk = chunkOf(1, seal(RIGHT));
        uint32 epoch = postOne(ALICE, chunk);
        uint256 last = (uint256(epoch) + 2) * EPOCH;
        vm.assertEq(stake.poolOf(ALICE, Roles.NODE).heldUntil, last + audits.longestCase());
    }

    function test_tooLittleGasIsNoEscapeFromASlash() public {
        uint32 epoch = postOne(ALICE, chunkOf(1, seal(RIGHT)));
        drawable(epoch, "drawn");
        bytes32 id = audits.draw(ALICE, epoch, 0);
        pass(12 hours + 1);
        for (uint256 gas_ = 40_000; gas_ < 260_000; gas_ += 2_000) {
            (bool done,) =
                address(audits).call{gas: gas_}(abi.encodeWithSelector(AuditManager.timeOut.selector, id));
            if (done) break;
        }
        assertClosed(id, AuditManager.Verdict.Silent);
        vm.assertEq(behind(ALICE, Roles.NODE), STAKE - STAKE / 10);
    }

    // Auditors

    function test_aFullSetTakesWhoHasMoreStake() public {
        for (uint160 i = 0; i < 59; ++i) {
            address more = address(0xB000 + i);
            enlist(more);
        }
        vm.assertEq(set.auditors().length, 64);
        provide(ANYBODY, Roles.AUDITOR);
        vm.prank(ANYBODY);
        vm.expectRevert(abi.encodeWithSelector(AuditorSet.Stays.selector, auditors[0]));
        set.join(auditors[0]);
        pod.transfer(ANYBODY, 1e18);
        vm.startPrank(ANYBODY);
        stake.stake(1e18);
        stake.provision(Roles.AUDITOR, 1e18);
        set.join(auditors[0]);
        vm.stopPrank();
        vm.assertEq(set.auditors().length, 64);
        vm.assertEq(set.listAuditors().length, 64);
    }

    function test_whoHasTooLittleStakeGoes() public {
        vm.expectRevert(abi.encodeWithSelector(AuditorSet.Stays.selector, auditors[1]));
        set.drop(auditors[1]);
        vm.prank(auditors[1]);
        stake.thaw(auditors[1], Roles.AUDITOR, STAKE * 2 / 3);
        vm.assertEq(set.listAuditors().length, AUDITORS - 1);
        vm.expectRevert(abi.encodeWithSelector(AuditorSet.AlreadyListed.selector, set.currentEpoch()));
        set.listAuditors();
        set.drop(auditors[1]);
        vm.expectRevert(abi.encodeWithSelector(AuditorSet.NotIn.selector, auditors[1]));
        vm.prank(auditors[1]);
        set.resign();
        vm.expectRevert(
            abi.encodeWithSelector(AuditorSet.TooLittleStake.selector, STAKE - STAKE * 2 / 3, STAKE / 2)
        );
        vm.prank(auditors[1]);
        set.join(address(0));
        vm.prank(auditors[0]);
        vm.expectRevert(abi.encodeWithSelector(AuditorSet.AlreadyIn.selector, auditors[0]));
        set.join(address(0));
        vm.prank(auditors[0]);
        set.resign();
        vm.assertEq(set.auditors().length, AUDITORS - 2);
    }

    // Pure parts

    function holds(bytes32 root, uint256 count, uint256 index, bytes32 leaf, bytes32[] calldata proof)
        external
        pure
        returns (bool)
    {
        return Tree.holds(root, count, index, leaf, proof);
    }

    function testFuzz_aTreeHoldsALeafAtOnePlace(uint256 count, uint256 index, uint256 other) public view {
        count = 1 + count % 40;
        (index, other) = (index % count, other % (count + 3));
        bytes32[] memory nodes = new bytes32[](count);
        for (uint256 i = 0; i < count; ++i) {
            nodes[i] = keccak256(abi.encode(i));
        }
        bytes32 leaf = nodes[index];
        bytes32[] memory path = new bytes32[](8);
        uint256 used = 0;
        uint256 place = index;
        for (uint256 width = count; width > 1; width = (width + 1) / 2) {
            if (place ^ 1 < width) path[used++] = nodes[place ^ 1];
            for (uint256 i = 0; i < (width + 1) / 2; ++i) {
                nodes[i] =
                    2 * i + 1 < width ? keccak256(abi.encode(nodes[2 * i], nodes[2 * i + 1])) : nodes[2 * i];
            }
            place /= 2;
        }
        bytes32[] memory proof = new bytes32[](used);
        for (uint256 i = 0; i < used; ++i) {
            proof[i] = path[i];
        }
        vm.assertTrue(this.holds(nodes[0], count, index, leaf, proof));
        vm.assertEq(this.holds(nodes[0], count, other, leaf, proof), other == index);
        vm.assertFalse(this.holds(nodes[0], count, index, SALT, proof));
        vm.assertFalse(this.holds(nodes[0], count, index, leaf, path));
    }

    function testFuzz_auditorsAreOthersAndEachIsAskedOnce(uint64[6] calldata stakes, bytes32 drawn)
        public
        pure
    {
        uint256 able = 0;
        address involved = address(3);
        address[7] memory seen;
        for (uint256 n = 0; n < 7; ++n) {
            Auditor[] memory list = new Auditor[](6);
            able = 0;
            for (uint160 i = 0; i < 6; ++i) {
                list[i] = Auditor(address(i + 1), stakes[i] >> 3);
                if (list[i].stake != 0 && list[i].account != involved) ++able;
            }
            seen[n] = Draw.auditorOf(drawn, SALT, list, involved, n);
            vm.assertEq(seen[n] == address(0), n >= able);
            vm.assertTrue(seen[n] != involved);
            for (uint256 k = 0; k < n; ++k) {
                vm.assertTrue(seen[n] == address(0) || seen[n] != seen[k]);
            }
        }
    }

    function testFuzz_aHistoryOnlyLowersARate(uint32 fresh, uint32 floor, uint32 half, uint32 passed)
        public
        pure
    {
        (floor, half, passed) = (floor == 0 ? 1 : floor, half == 0 ? 1 : half, passed >> 1);
        uint32 rate = Draw.rateOf(fresh, floor, half, passed);
        vm.assertLe(rate, fresh);
        vm.assertGe(rate, fresh / floor);
        vm.assertLe(Draw.rateOf(fresh, floor, half, passed + 1), rate);
    }
}
