// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {vm} from "../script/Vm.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {Base} from "./Base.sol";
import {Wallet} from "./mocks/Wallets.sol";

contract NodeRegistryTest is Base {
    bytes32 internal constant KEY = keccak256("node");
    NodeRegistry.Proof internal proof = NodeRegistry.Proof(keccak256("r"), keccak256("s"));

    function signed(address account, uint256 secret, string memory endpoint, uint256 nonce, uint256 deadline)
        internal
        view
        returns (bytes memory)
    {
        return sign(secret, s.nodes.registrationDigest(account, KEY, 3, "meta", endpoint, nonce, deadline));
    }

    function test_registerUpdateRemove() public {
        vm.expectEmit(address(s.nodes));
        emit NodeRegistry.NodeRegistered(address(this), KEY, 3, "meta", proof, "a:1");
        s.nodes.register(KEY, 3, "meta", "a:1", proof);
        NodeRegistry.Node memory node = s.nodes.nodeOf(address(this), KEY);
        vm.assertEq(node.updatedAt, START);
        vm.assertEq(node.roles, 3);
        vm.assertEq(bytes(node.endpoint), bytes("a:1"));
        vm.warp(START + 1);
        s.nodes.register(KEY, 1, "meta2", "b:2", proof);
        node = s.nodes.nodeOf(address(this), KEY);
        vm.assertEq(node.metadata, "meta2");
        vm.assertEq(node.updatedAt, START + 1);
        vm.expectEmit(address(s.nodes));
        emit NodeRegistry.NodeRemoved(address(this), KEY);
        s.nodes.remove(KEY);
        vm.assertEq(s.nodes.nodeOf(address(this), KEY).updatedAt, 0);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotRegistered.selector, address(this), KEY));
        s.nodes.remove(KEY);
    }

    function test_refusesNoNodeAndLongEndpoints() public {
        vm.expectRevert(NodeRegistry.ZeroNode.selector);
        s.nodes.register(0, 3, "meta", "a:1", proof);
        s.nodes.register(KEY, 3, "meta", string(new bytes(256)), proof);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.EndpointTooLong.selector, 257));
        s.nodes.register(KEY, 3, "meta", string(new bytes(257)), proof);
    }

    function testFuzz_registerForTakesTheAccountsSignatureOnce(uint256 secret, address sender) public {
        secret = bound(secret, 1, 1 << 250);
        address account = vm.addr(secret);
        bytes memory signature = signed(account, secret, "a:1", 0, START);
        vm.prank(sender);
        s.nodes.registerFor(account, KEY, 3, "meta", "a:1", proof, START, signature);
        vm.assertEq(s.nodes.nodeOf(account, KEY).roles, 3);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.BadSignature.selector, account));
        s.nodes.registerFor(account, KEY, 3, "meta", "a:1", proof, START, signature);
    }

    function testFuzz_registerForRefusesOthersSignatures(uint256 secret, address account) public {
        secret = bound(secret, 1, 1 << 250);
        vm.assume(account != vm.addr(secret) && account.code.length == 0);
        bytes memory signature = signed(account, secret, "a:1", 0, START);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.BadSignature.selector, account));
        s.nodes.registerFor(account, KEY, 3, "meta", "a:1", proof, START, signature);
    }

    function test_registerForRefusesChangedEntriesAndLateOnes() public {
        address account = vm.addr(PAYER_KEY);
        bytes memory signature = signed(account, PAYER_KEY, "a:1", 0, START);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.BadSignature.selector, account));
        s.nodes.registerFor(account, KEY, 3, "meta", "b:1", proof, START, signature);
        vm.warp(START + 1);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.Expired.selector, START));
        s.nodes.registerFor(account, KEY, 3, "meta", "a:1", proof, START, signature);
    }

    function test_registerForTakesAContractsSignature() public {
        Wallet wallet = new Wallet(vm.addr(PAYER_KEY));
        bytes memory signature = signed(address(wallet), PAYER_KEY, "a:1", 0, START);
        s.nodes.registerFor(address(wallet), KEY, 3, "meta", "a:1", proof, START, signature);
        vm.assertEq(s.nodes.nodeOf(address(wallet), KEY).roles, 3);
    }

    function test_removalVoidsSignaturesThatWait() public {
        address account = vm.addr(PAYER_KEY);
        vm.startPrank(account);
        s.nodes.register(KEY, 3, "meta", "a:1", proof);
        bytes memory waiting = signed(account, PAYER_KEY, "a:1", 0, START);
        s.nodes.remove(KEY);
        vm.stopPrank();
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.BadSignature.selector, account));
        s.nodes.registerFor(account, KEY, 3, "meta", "a:1", proof, START, waiting);
    }
}
