// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {vm} from "../script/Vm.sol";
import {Beacon} from "../src/Beacon.sol";
import {Chunk} from "../src/IDisputeGame.sol";
import {ModelRegistry} from "../src/ModelRegistry.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {RewardDistributor} from "../src/RewardDistributor.sol";
import {VoucherCollector} from "../src/VoucherCollector.sol";
import {G2} from "../src/lib/Bn254.sol";
import {Auditor, Draw} from "../src/lib/Draw.sol";
import {Merkle} from "../src/lib/Merkle.sol";
import {Payment, Split, Stage} from "../src/lib/Split.sol";
import {Tree} from "../src/lib/Tree.sol";
import {Base} from "./Base.sol";

/// What the crate computed for the same inputs, read from ../vectors.
contract VectorsTest is Base {
    string internal json;

    /// Reads a file, and puts a contract's code where the file's domain has it.
    function load(string memory file, address code) internal returns (uint256 cases, address place) {
        json = vm.readFile(file);
        place = vm.parseJsonAddress(json, ".contract");
        vm.etch(place, code.code);
        vm.chainId(vm.parseJsonUint(json, ".chainId"));
        while (vm.keyExistsJson(json, string.concat(".cases[", vm.toString(cases), "]"))) ++cases;
        vm.assertTrue(cases != 0);
    }

    function key(uint256 index, string memory name) internal pure returns (string memory) {
        return string.concat(".cases[", vm.toString(index), "].", name);
    }

    function word(uint256 index, string memory name) internal view returns (bytes32) {
        return vm.parseJsonBytes32(json, key(index, name));
    }

    function number(uint256 index, string memory name) internal view returns (uint256) {
        return vm.parseJsonUint(json, key(index, name));
    }

    function list(uint256 index, string memory name) internal view returns (uint256[] memory) {
        return vm.parseJsonUintArray(json, key(index, name));
    }

    function stagesOf(address[] memory payees, uint256[] memory weights)
        internal
        pure
        returns (Stage[] memory made)
    {
        made = new Stage[](weights.length);
        for (uint256 i = 0; i < weights.length; ++i) {
            made[i] = Stage(payees[i], uint64(weights[i]));
        }
    }

    function divide(uint128 amount, Stage[] calldata parts) external pure returns (Payment[] memory) {
        return Split.divide(amount, parts);
    }

    function assertShares(uint256 index, uint128 amount, Stage[] memory parts) internal view {
        Payment[] memory payments = this.divide(amount, parts);
        uint256[] memory shares = list(index, "shares");
        vm.assertEq(payments.length, shares.length);
        for (uint256 i = 0; i < shares.length; ++i) {
            vm.assertEq(payments[i].amount, shares[i]);
        }
    }

    function test_vouchers() public {
        (uint256 cases, address place) = load("../vectors/vouchers.json", address(s.collector));
        VoucherCollector collector = VoucherCollector(place);
        vm.assertEq(collector.domainSeparator(), vm.parseJsonBytes32(json, ".domainSeparator"));
        for (uint256 i = 0; i < cases; ++i) {
            VoucherCollector.Plan memory p = VoucherCollector.Plan({
                session: word(i, "session"),
                payer: vm.parseJsonAddress(json, key(i, "payer")),
                terms: word(i, "terms"),
                expiry: uint64(number(i, "expiry")),
                stages: stagesOf(vm.parseJsonAddressArray(json, key(i, "payees")), list(i, "weights"))
            });
            bytes32 hash = collector.hashPlan(p);
            vm.assertEq(hash, word(i, "planHash"));
            vm.assertEq(collector.planDigest(p), word(i, "planDigest"));
            bytes32 digest = collector.voucherDigest(
                p.session,
                hash,
                uint128(number(i, "total")),
                uint64(number(i, "chunk")),
                word(i, "commitments")
            );
            vm.assertEq(digest, word(i, "digest"));
            uint256 secret = uint256(word(i, "key"));
            vm.assertEq(vm.addr(secret), p.payer);
            vm.assertEq(sign(secret, digest), vm.parseJsonBytes(json, key(i, "signature")));
            assertShares(i, uint128(number(i, "total")), p.stages);
        }
    }

    /// The crate's own signature is one that the contract pays for.
    function test_vouchers_areCollected() public {
        (, address place) = load("../vectors/vouchers.json", address(s.collector));
        uint256 i = 3;
        VoucherCollector.Plan memory p = VoucherCollector.Plan({
            session: word(i, "session"),
            payer: vm.parseJsonAddress(json, key(i, "payer")),
            terms: word(i, "terms"),
            expiry: uint64(number(i, "expiry")),
            stages: stagesOf(vm.parseJsonAddressArray(json, key(i, "payees")), list(i, "weights"))
        });
        fund(p.payer, 1e18, address(s.escrow));
        vm.startPrank(p.payer);
        s.escrow.deposit(p.payer, 1e18);
        s.escrow.lock(place, word(i, "planHash"), 1e18);
        vm.stopPrank();
        VoucherCollector.Item memory voucher = VoucherCollector.Item({
            plan: p,
            total: uint128(number(i, "total")),
            chunk: uint64(number(i, "chunk")),
            commitments: word(i, "commitments"),
            signer: p.payer,
            signature: vm.parseJsonBytes(json, key(i, "signature"))
        });
        vm.assertEq(VoucherCollector(place).collect(voucher), 1e18);
    }

    function test_splits() public {
        (uint256 cases,) = load("../vectors/splits.json", address(s.collector));
        for (uint256 i = 0; i < cases; ++i) {
            uint256[] memory weights = list(i, "weights");
            assertShares(i, uint128(number(i, "amount")), stagesOf(new address[](weights.length), weights));
        }
    }

    function test_nodes() public {
        (uint256 cases, address place) = load("../vectors/nodes.json", address(s.nodes));
        NodeRegistry nodes = NodeRegistry(place);
        for (uint256 i = 0; i < cases; ++i) {
            address account = vm.parseJsonAddress(json, key(i, "account"));
            vm.assertEq(nodes.bindingDigest(word(i, "node"), account), word(i, "binding"));
            bytes32 digest = nodes.registrationDigest(
                account,
                word(i, "node"),
                uint32(number(i, "roles")),
                word(i, "metadata"),
                vm.parseJsonString(json, key(i, "endpoint")),
                number(i, "nonce"),
                number(i, "deadline")
            );
            vm.assertEq(digest, word(i, "digest"));
        }
    }

    function test_models() public {
        (uint256 cases,) = load("../vectors/models.json", address(s.models));
        for (uint256 i = 0; i < cases; ++i) {
            ModelRegistry.Model memory model = ModelRegistry.Model({
                numerics: uint32(number(i, "numerics")),
                tokenizer: word(i, "tokenizer"),
                rope: word(i, "rope"),
                layers: vm.parseJsonBytes32Array(json, key(i, "layers"))
            });
            bytes32 hash = word(i, "hash");
            vm.assertEq(s.models.hashModel(model), hash);
            vm.prank(address(s.timelock));
            vm.assertEq(s.models.register(model, "vector"), hash);
            bytes32[] memory proof = vm.parseJsonBytes32Array(json, key(i, "proof"));
            uint256 index = number(i, "index");
            vm.assertTrue(s.models.hasLayer(hash, index, model.layers[index], proof));
            vm.assertFalse(s.models.hasLayer(hash, index + 1, model.layers[index], proof));
            vm.assertFalse(s.models.hasLayer(hash, index, keccak256("other"), proof));
        }
    }

    function test_treesOfRewards() public {
        (uint256 cases, address place) = load("../vectors/rewards.json", address(s.rewards));
        RewardDistributor rewards = RewardDistributor(place);
        for (uint256 i = 0; i < cases; ++i) {
            address[] memory accounts = vm.parseJsonAddressArray(json, key(i, "accounts"));
            uint256[] memory amounts = list(i, "amounts");
            bytes32[] memory leaves = vm.parseJsonBytes32Array(json, key(i, "leaves"));
            for (uint256 k = 0; k < leaves.length; ++k) {
                vm.assertEq(rewards.leafOf(accounts[k], uint128(amounts[k])), leaves[k]);
            }
            vm.assertEq(Merkle.root(leaves), word(i, "root"));
        }
    }

    function chunkOf(uint256 index) internal view returns (Chunk memory) {
        bytes32[] memory words = vm.parseJsonBytes32Array(json, key(index, "words"));
        uint256[] memory numbers = list(index, "numbers");
        return Chunk({
            model: words[0],
            plan: words[1],
            commitment: words[2],
            inRoots: words[3],
            sealedRoots: words[4],
            stage: uint32(numbers[0]),
            from: uint32(numbers[1]),
            to: uint32(numbers[2])
        });
    }

    function holds(bytes32 root, uint256 count, uint256 index, bytes32 leaf, bytes32[] calldata proof)
        external
        pure
        returns (bool)
    {
        return Tree.holds(root, count, index, leaf, proof);
    }

    function test_audits() public {
        (uint256 cases,) = load("../vectors/audits.json", address(s.audits));
        for (uint256 i = 0; i < cases; ++i) {
            address account = vm.parseJsonAddress(json, key(i, "account"));
            bytes32 leaf = s.audits.leafOf(account, chunkOf(i));
            vm.assertEq(leaf, word(i, "leaf"));
            bytes32[] memory proof = vm.parseJsonBytes32Array(json, key(i, "proof"));
            (uint256 count, uint256 index) = (number(i, "count"), number(i, "index"));
            vm.assertTrue(this.holds(word(i, "root"), count, index, leaf, proof));
            vm.assertFalse(this.holds(word(i, "root"), count + 1, index, keccak256("other"), proof));
            address auditor = vm.parseJsonAddress(json, key(i, "auditor"));
            (bytes32 roots, bytes32 salt) = (word(i, "roots"), word(i, "salt"));
            vm.assertEq(keccak256(abi.encode(roots)), word(i, "sealed"));
            vm.assertEq(s.audits.answerOf(word(i, "case"), auditor, roots, salt), word(i, "answer"));
            vm.assertEq(s.audits.plantOf(account, salt), word(i, "planted"));
            bytes32 id = keccak256(
                abi.encode(
                    block.chainid,
                    vm.parseJsonAddress(json, ".contract"),
                    account,
                    number(i, "epoch"),
                    word(i, "root"),
                    index
                )
            );
            vm.assertEq(id, word(i, "case"));
        }
    }

    function test_draws() public {
        (uint256 cases,) = load("../vectors/draws.json", address(s.audits));
        for (uint256 i = 0; i < cases; ++i) {
            uint32 rate = Draw.rateOf(
                uint32(number(i, "fresh")),
                uint32(number(i, "floor")),
                uint32(number(i, "halfLife")),
                uint32(number(i, "passed"))
            );
            vm.assertEq(rate, number(i, "rate"));
            (bytes32 beacon, bytes32 commitment) = (word(i, "beacon"), word(i, "commitment"));
            bool isDrawn = vm.parseJsonBool(json, key(i, "isDrawn"));
            vm.assertEq(Draw.isDrawn(beacon, commitment, rate), isDrawn);
            address[] memory accounts = vm.parseJsonAddressArray(json, key(i, "accounts"));
            address[] memory chosen = vm.parseJsonAddressArray(json, key(i, "chosen"));
            uint256[] memory stakes = list(i, "stakes");
            address involved = vm.parseJsonAddress(json, key(i, "involved"));
            for (uint256 n = 0; n < 6; ++n) {
                Auditor[] memory all = new Auditor[](accounts.length);
                for (uint256 k = 0; k < all.length; ++k) {
                    all[k] = Auditor(accounts[k], uint64(stakes[k]));
                }
                address wanted = n < chosen.length ? chosen[n] : address(0);
                vm.assertEq(Draw.auditorOf(beacon, commitment, all, involved, n), wanted);
            }
        }
    }

    /// Rounds that drand has published, and others that the crate has signed.
    function test_rounds() public {
        (uint256 cases,) = load("../vectors/rounds.json", address(s.beacon));
        vm.warp(type(uint64).max);
        for (uint256 i = 0; i < cases; ++i) {
            G2 memory publicKey = abi.decode(vm.parseJsonBytes(json, key(i, "key")), (G2));
            Beacon beacon = new Beacon(Beacon.Config(publicKey, 1, 1));
            uint64 round = uint64(number(i, "round"));
            bytes memory signature = vm.parseJsonBytes(json, key(i, "signature"));
            vm.assertEq(beacon.submit(round, signature), word(i, "randomness"));
        }
    }
}
