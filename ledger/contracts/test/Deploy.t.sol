// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Deploy} from "../script/Deploy.s.sol";
import {Deployment} from "../script/Deployment.sol";
import {vm} from "../script/Vm.sol";
import {Roles} from "../src/lib/Roles.sol";
import {Base} from "./Base.sol";
import {Deployer} from "./Deployer.sol";
import {PODToken} from "../src/PODToken.sol";

contract DeployTest is Base {
    Deploy internal script;

    function setUp() public override {
        super.setUp();
        script = Deploy(vm.deployCode("Deploy.s.sol:Deploy"));
    }

    function holds(uint64 role, address account) internal view returns (bool member) {
        (member,) = s.manager.hasRole(role, account);
    }

    function test_theParametersOfTheFileAreRead() public view {
        Deployment.Params memory p = script.read(vm.readFile("script/local.json"));
        Deployment.Params memory expected = params();
        (expected.holder, expected.guardian, expected.poster) = (p.holder, p.guardian, p.poster);
        expected.curator = address(0);
        vm.assertEq(abi.encode(p), abi.encode(expected));
    }

    function test_theScriptDeploysEverything() public {
        s = script.run("script/local.json");
        vm.assertEq(s.collector.settlementWindow(), 1 days);
        vm.assertEq(address(s.collector.escrow()), address(s.escrow));
        vm.assertTrue(holds(0, address(s.timelock)));
        vm.assertFalse(holds(Roles.CURATOR, address(0)));
        vm.assertEq(s.beacon.period(), 3);
        vm.assertEq(address(s.audits.beacon()), address(s.beacon));
        vm.assertEq(s.audits.epochLength(), 1 hours);
        vm.assertEq(address(s.audits.game()), address(s.game));
        vm.assertEq(s.game.longest(), 4 days);
        vm.assertEq(s.audits.replyRate(), uint256(type(uint32).max) * 5 / 100);
    }

    function test_aTokenThatExistsIsUsed() public {
        Deployment.Params memory p = params();
        p.token = address(pod);
        p.emissionRate = 0;
        Deployer deployer = Deployer(vm.deployCode("Deployer.sol:Deployer"));
        s = deployer.deploy(p);
        vm.assertEq(address(s.escrow.token()), address(pod));
        vm.assertEq(address(s.stake.token()), address(pod));
        vm.assertEq(address(s.governor.token()), address(pod));
        vm.assertFalse(holds(Roles.MINTER, address(s.rewards)));
    }

    function test_everyRoleIsWithWhoItShouldBe() public view {
        vm.assertTrue(holds(0, address(s.timelock)));
        vm.assertTrue(holds(Roles.MINTER, address(s.rewards)));
        vm.assertTrue(holds(Roles.CURATOR, address(s.timelock)));
        vm.assertTrue(holds(Roles.CURATOR, CURATOR));
        vm.assertTrue(holds(Roles.POSTER, POSTER));
        vm.assertTrue(holds(Roles.GUARDIAN, GUARDIAN));
        vm.assertFalse(holds(s.stake.slasherOf(NODE), address(s.timelock)));
        vm.assertTrue(holds(s.stake.slasherOf(NODE), address(s.audits)));
        vm.assertTrue(holds(s.stake.slasherOf(Roles.AUDITOR), address(s.audits)));
        vm.assertFalse(holds(s.stake.slasherOf(3), address(s.audits)));
        vm.assertTrue(s.timelock.hasRole(s.timelock.PROPOSER_ROLE(), address(s.governor)));
        vm.assertTrue(s.timelock.hasRole(s.timelock.CANCELLER_ROLE(), address(s.governor)));
        vm.assertTrue(s.timelock.hasRole(s.timelock.EXECUTOR_ROLE(), address(0)));
    }
}
