// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {IGovernor} from "@openzeppelin/contracts/governance/IGovernor.sol";
import {IVotes} from "@openzeppelin/contracts/governance/utils/IVotes.sol";

import {vm} from "../script/Vm.sol";
import {IPastVotes} from "../src/IPastVotes.sol";
import {PodGovernor} from "../src/PodGovernor.sol";
import {Base} from "./Base.sol";

contract BlockClock {
    function clock() external view returns (uint48) {
        return uint48(block.number);
    }
}

contract PodGovernorTest is Base {
    address internal constant HOLDER = address(0x401D);
    address internal constant STAKER = address(0x57A4);
    PodGovernor internal governor;

    function setUp() public override {
        super.setUp();
        governor = s.governor;
        pod.transfer(HOLDER, 1e24);
        vm.prank(HOLDER);
        pod.delegate(HOLDER);
        fund(STAKER, 5e24, address(s.stake));
        vm.startPrank(STAKER);
        s.stake.stake(5e24);
        s.stake.provision(NODE, 2e24);
        vm.stopPrank();
        vm.warp(START + 1);
    }

    /// A proposal that makes `SLASHER` a slasher of nodes.
    function proposal()
        internal
        view
        returns (address[] memory to, uint256[] memory values, bytes[] memory data)
    {
        (to, values, data) = (new address[](1), new uint256[](1), new bytes[](1));
        to[0] = address(s.manager);
        data[0] = abi.encodeCall(s.manager.grantRole, (s.stake.slasherOf(NODE), SLASHER, 0));
    }

    function propose(address who) internal returns (uint256) {
        (address[] memory to, uint256[] memory values, bytes[] memory data) = proposal();
        vm.prank(who);
        return governor.propose(to, values, data, "slasher");
    }

    function vote(uint256 id, address who) internal returns (uint256) {
        vm.prank(who);
        return governor.castVote(id, 1);
    }

    function state(uint256 id) internal view returns (uint256) {
        return uint256(governor.state(id));
    }

    function test_fromProposalToExecution() public {
        uint256 id = propose(STAKER);
        vm.warp(START + 1 + 1 days);
        vm.expectRevert();
        governor.castVote(id, 1);
        vm.warp(START + 2 + 1 days);
        vm.assertEq(vote(id, STAKER), 5e24);
        vm.warp(START + 2 + 8 days);
        vm.assertEq(state(id), uint256(IGovernor.ProposalState.Succeeded));
        (address[] memory to, uint256[] memory values, bytes[] memory data) = proposal();
        governor.queue(to, values, data, keccak256("slasher"));
        vm.warp(START + 1 + 10 days);
        vm.expectRevert();
        governor.execute(to, values, data, keccak256("slasher"));
        vm.warp(START + 2 + 10 days);
        governor.execute(to, values, data, keccak256("slasher"));
        (bool member,) = s.manager.hasRole(s.stake.slasherOf(NODE), SLASHER);
        vm.assertTrue(member);
    }

    function test_heldAndStakedPodVote() public view {
        vm.assertEq(governor.getVotes(HOLDER, START), 1e24);
        vm.assertEq(governor.getVotes(STAKER, START), 5e24);
        vm.assertEq(governor.quorum(START), SUPPLY * 4 / 100);
        vm.assertEq(governor.clock(), START + 1);
    }

    function test_aVoteWithoutQuorumFails() public {
        uint256 id = propose(STAKER);
        vm.warp(START + 2 + 1 days);
        vote(id, HOLDER);
        vm.warp(START + 2 + 8 days);
        vm.assertEq(state(id), uint256(IGovernor.ProposalState.Defeated));
    }

    function test_aLateQuorumExtendsTheVote() public {
        uint256 id = propose(STAKER);
        vm.warp(START + 1 + 8 days);
        vote(id, STAKER);
        vm.warp(START + 10 + 8 days);
        vm.assertEq(state(id), uint256(IGovernor.ProposalState.Active));
        vm.assertEq(governor.proposalDeadline(id), START + 1 + 10 days);
    }

    function test_proposingTakesVotes() public {
        (address[] memory to, uint256[] memory values, bytes[] memory data) = proposal();
        vm.prank(address(3));
        vm.expectRevert(
            abi.encodeWithSelector(IGovernor.GovernorInsufficientProposerVotes.selector, address(3), 0, 1e23)
        );
        governor.propose(to, values, data, "slasher");
    }

    /// Tokens that arrive after the vote's snapshot, or only for one block, do not vote.
    function test_borrowedTokensDoNotVote() public {
        uint256 id = propose(STAKER);
        vm.warp(START + 2 + 1 days);
        fund(address(8), 1e25, address(s.stake));
        vm.startPrank(address(8));
        pod.delegate(address(8));
        s.stake.stake(1e24);
        vm.assertEq(governor.castVote(id, 1), 0);
        s.stake.unstake(address(8), 1e24);
        vm.stopPrank();
        vm.warp(START + 3 + 1 days);
        vm.assertEq(s.stake.getPastVotes(address(8), START + 2 + 1 days), 0);
    }

    function test_noTokenVotesTwice() public {
        vm.prank(HOLDER);
        pod.approve(address(s.stake), 1e24);
        vm.prank(HOLDER);
        s.stake.stake(4e23);
        vm.warp(START + 2);
        vm.assertEq(governor.getVotes(HOLDER, START + 1), 1e24);
        vm.assertEq(governor.getVotes(address(s.stake), START + 1), 0);
    }

    function test_refusesOtherClocks() public {
        PodGovernor.Config memory config = params().governor;
        address other = address(new BlockClock());
        vm.expectRevert(PodGovernor.NotOnTimestamps.selector);
        new PodGovernor(IVotes(other), s.stake, s.timelock, config);
        vm.expectRevert(PodGovernor.NotOnTimestamps.selector);
        new PodGovernor(pod, IPastVotes(other), s.timelock, config);
    }

    function test_onlyTheGovernorChangesHowVotesRun() public {
        vm.expectRevert();
        governor.setVotingPeriod(1);
        vm.expectRevert();
        governor.updateQuorumNumerator(1);
        vm.expectRevert();
        governor.setLateQuorumVoteExtension(1);
        vm.prank(address(s.timelock));
        vm.expectRevert();
        governor.relay(address(pod), 0, "");
    }

    function test_theTimelockDelaysItself() public {
        vm.expectRevert(
            abi.encodeWithSelector(TimelockController.TimelockUnauthorizedCaller.selector, address(this))
        );
        s.timelock.updateDelay(0);
    }
}
