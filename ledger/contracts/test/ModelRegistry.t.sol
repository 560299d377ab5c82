// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IAccessManaged} from "@openzeppelin/contracts/access/manager/IAccessManaged.sol";

import {vm} from "../script/Vm.sol";
import {ModelRegistry} from "../src/ModelRegistry.sol";
import {Base} from "./Base.sol";

contract ModelRegistryTest is Base {
    function model(uint256 layers) internal pure returns (ModelRegistry.Model memory m) {
        m = ModelRegistry.Model(1, "tokenizer", "rope", new bytes32[](layers));
        for (uint256 i = 0; i < layers; ++i) {
            m.layers[i] = keccak256(abi.encode(i));
        }
    }

    function test_registerAndRetire() public {
        bytes32 hash = s.models.hashModel(model(5));
        vm.startPrank(address(s.timelock));
        vm.assertEq(s.models.register(model(5), "five"), hash);
        vm.assertTrue(s.models.isActive(hash));
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.AlreadyRegistered.selector, hash));
        s.models.register(model(5), "again");
        vm.expectEmit(address(s.models));
        emit ModelRegistry.ModelRetired(hash);
        s.models.retire(hash);
        vm.assertFalse(s.models.isActive(hash));
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.NotActive.selector, hash));
        s.models.retire(hash);
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.AlreadyRegistered.selector, hash));
        s.models.register(model(5), "back");
        (,, uint64 registeredAt, uint64 retiredAt,) = s.models.entries(hash);
        vm.assertEq(registeredAt, START);
        vm.assertEq(retiredAt, START);
    }

    function testFuzz_onlyTheCurator(address caller) public {
        vm.assume(caller != address(s.timelock));
        vm.startPrank(caller);
        vm.expectRevert(abi.encodeWithSelector(IAccessManaged.AccessManagedUnauthorized.selector, caller));
        s.models.register(model(1), "mine");
        vm.expectRevert(abi.encodeWithSelector(IAccessManaged.AccessManagedUnauthorized.selector, caller));
        s.models.retire(0);
    }

    function test_refusesNoLayersAndTooMany() public {
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.BadLayers.selector, 0));
        s.models.hashModel(model(0));
        s.models.hashModel(model(1024));
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.BadLayers.selector, 1025));
        s.models.hashModel(model(1025));
    }

    function testFuzz_everyFieldMakesTheHash(uint32 numerics, bytes32 other, uint8 which) public view {
        vm.assume(numerics != 1 && other != "tokenizer" && other != "rope");
        bytes32 hash = s.models.hashModel(model(4));
        ModelRegistry.Model memory m = model(4);
        m.numerics = numerics;
        vm.assertTrue(s.models.hashModel(m) != hash);
        m = model(4);
        m.tokenizer = other;
        vm.assertTrue(s.models.hashModel(m) != hash);
        m = model(4);
        m.rope = other;
        vm.assertTrue(s.models.hashModel(m) != hash);
        m = model(4);
        vm.assume(other != m.layers[which % 4]);
        m.layers[which % 4] = other;
        vm.assertTrue(s.models.hashModel(m) != hash);
    }

    /// Equal sets of layers in another order are another model, though siblings are hashed in order of size.
    function test_theOrderOfLayersMakesTheHash() public view {
        ModelRegistry.Model memory m = model(4);
        (m.layers[0], m.layers[1]) = (m.layers[1], m.layers[0]);
        vm.assertTrue(s.models.hashModel(m) != s.models.hashModel(model(4)));
    }
}
