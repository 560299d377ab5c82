// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {vm} from "../script/Vm.sol";
import {Kind, Leaf} from "../src/IReferee.sol";
import {Int8Referee} from "../src/Int8Referee.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {Chunk} from "../src/IDisputeGame.sol";
import {VoucherCollector} from "../src/VoucherCollector.sol";
import {Auditor} from "../src/lib/Draw.sol";
import {AuditBase} from "./AuditBase.sol";
import {Base} from "./Base.sol";
import {DisputeVectors} from "./DisputeVectors.sol";

/// Gas of whole transactions, kept in snapshots/gas.json. Only meaningful with `forge test --isolate`.
contract GasTest is Base {
    function record(string memory name, uint256 most) internal {
        uint256 used = vm.lastCallGas().gasTotalUsed;
        vm.snapshotValue("gas", name, used);
        vm.assertLe(used, most, name);
    }

    function test_vouchers() public {
        VoucherCollector.Plan memory one = plan(keccak256("one"), 1);
        lockFor(one, 1e21);
        s.collector.collect(item(one, 1e18, PAYER_KEY));
        record("voucher, first of a plan, 1 stage never paid", 100_000);
        s.collector.collect(item(one, 2e18, PAYER_KEY));
        record("voucher, later, 1 stage", 65_000);
        VoucherCollector.Plan memory two = plan(keccak256("two"), 3);
        two.stages[0].payee = address(0x111);
        two.stages[1].payee = address(0x112);
        two.stages[2].payee = address(0x113);
        lockFor(two, 1e21);
        s.collector.collect(item(two, 1e18, PAYER_KEY));
        record("voucher, first of a plan, 3 stages never paid", 140_000);
        s.collector.collect(item(two, 2e18, PAYER_KEY));
        record("voucher, later, 3 stages", 95_000);
        two.session = keccak256("three");
        lockFor(two, 1e21);
        s.collector.collect(item(two, 2e18, PAYER_KEY));
        record("voucher, first of a plan, 3 stages paid before", 100_000);
    }

    function test_beacon() public {
        bytes memory signature = hex"06ded8c05af23042a0caf9b404c6140f9ec64adbaf82f04d5c37153e8412ed58"
            hex"0f827c7d5ac7d02ca0bbd989d07594729bdcde7d6dc1001191c59dc9033d31b2";
        s.beacon.submit(513, signature);
        record("submit a round of the beacon", 185_000);
    }

    function test_batch() public {
        VoucherCollector.Item[] memory items = new VoucherCollector.Item[](50);
        for (uint256 i = 0; i < items.length; ++i) {
            VoucherCollector.Plan memory p = plan(keccak256(abi.encode(i)), 3);
            lockFor(p, 1e21);
            items[i] = item(p, 1e18, PAYER_KEY);
        }
        s.collector.collectBatch(items);
        record("batch of 50 vouchers, 3 stages", 50 * 42_000);
        vm.assertEq(balance(items[0].plan.stages[0].payee), 50 * uint256(uint128(1e18) / 6));
    }

    function test_stake() public {
        allowSlasher(NODE);
        address operator = address(0x0123);
        address delegator = address(0xDE1E);
        fund(operator, 1e24, address(s.stake));
        fund(delegator, 1e24, address(s.stake));
        vm.warp(START + 1);
        vm.prank(operator);
        s.stake.stake(1e23);
        record("stake, first", 160_000);
        vm.warp(START + 2);
        vm.prank(operator);
        s.stake.provision(NODE, 1e23);
        record("provision, first", 110_000);
        vm.prank(delegator);
        s.stake.delegate(operator, NODE, 1e23, 0);
        record("delegate, first", 160_000);
        vm.prank(delegator);
        uint256 id = s.stake.thaw(operator, NODE, 1e22);
        record("thaw, first of a pool", 220_000);
        vm.warp(START + 3);
        vm.prank(SLASHER);
        s.stake.slash(operator, NODE, 1e21, REPORTER);
        record("slash, first ever, reporter never paid", 160_000);
        vm.warp(START + 4);
        vm.prank(SLASHER);
        s.stake.slash(operator, NODE, 1e21, REPORTER);
        record("slash of active and thawing stake", 95_000);
        vm.warp(START + 5);
        vm.prank(SLASHER);
        s.stake.slash(operator, NODE, 1e21, address(0x99));
        record("slash of active and thawing stake, reporter never paid", 110_000);
        vm.warp(START + 30 days);
        vm.prank(delegator);
        s.stake.withdraw(id);
        record("withdraw", 80_000);
    }

    /// The longest leaf of each kind, with inputs around 1.
    function test_referee() public {
        Int8Referee referee = new Int8Referee();
        leaf(referee, "Segment, q8", Kind.Segment, 74, [uint32(0), 8, 1, 1], 272);
        leaf(referee, "Segment, q4", Kind.Segment, 74, [uint32(1), 8, 1, 1], 144);
        leaf(referee, "Segment, bf16", Kind.Segment, 258, [uint32(2), 256, 1, 1], 512);
        leaf(referee, "Segment, f32", Kind.Segment, 258, [uint32(3), 256, 1, 1], 1024);
        leaf(referee, "Segment, q4_k", Kind.Segment, 67, [uint32(4), 1, 1, 1], 144);
        leaf(referee, "Segment, q6_k", Kind.Segment, 67, [uint32(5), 1, 1, 1], 210);
        leaf(referee, "Chain", Kind.Chain, 129, [uint32(64), 1, 0, 0], 0);
        leaf(referee, "Tree", Kind.Tree, 64, [uint32(0), 0, 0, 0], 0);
        leaf(referee, "Max", Kind.Max, 64, [uint32(0), 0, 0, 0], 0);
        leaf(referee, "Fold", Kind.Fold, 5, [uint32(0), 0, 0, 0], 0);
        leaf(referee, "Rms", Kind.Rms, 1, [uint32(4096), 0x3586_37bd, 0, 0], 0);
        leaf(referee, "Gate", Kind.Gate, 2, [uint32(0), 0, 0, 0], 0);
        leaf(referee, "Query", Kind.Query, 4, [uint32(0), 0x3db5_04f3, 0, 0], 0);
        leaf(referee, "GroupScale", Kind.GroupScale, 32, [uint32(0), 0, 0, 0], 0);
        leaf(referee, "GroupQuants", Kind.GroupQuants, 5, [uint32(0), 0, 0, 0], 0);
        leaf(referee, "Embed, q8", Kind.Embed, 0, [uint32(0), 255, 1, 0x4280_0000], 272);
    }

    function leaf(
        Int8Referee referee,
        string memory name,
        Kind kind,
        uint256 inputs,
        uint32[4] memory numbers,
        uint256 bytes_
    ) internal {
        Leaf memory made = Leaf(kind, new uint32[](inputs), numbers, new bytes(bytes_));
        for (uint256 i = 0; i < inputs; ++i) {
            uint256 bits = uint256(keccak256(abi.encode(i)));
            made.inputs[i] = uint32(bits & 0x807f_ffff | (125 + (bits >> 32) % 4) << 23);
        }
        for (uint256 i = 0; i < bytes_; ++i) {
            made.weight[i] = bytes1(uint8(uint256(keccak256(abi.encode(i, kind)))) & 0xbf);
        }
        referee.recompute(made);
        record(string.concat("referee, ", name), 1_000_000);
    }
}

/// Whole disputes, move after move.
contract DisputeGasTest is DisputeVectors {
    bool public constant IS_TEST = true;

    function setUp() public {
        setUpGame();
        json = vm.readFile("../vectors/disputes.json");
    }

    function record(string memory name, uint256 used, uint256 most) internal {
        vm.snapshotValue("gas", name, used);
        vm.assertLe(used, most, name);
    }

    /// Plays a dispute; what all of it took, and the last move.
    function whole(uint256 index) internal returns (uint256 all, uint256 last) {
        open(index);
        all = openGas;
        uint256 count = moves(index);
        for (uint256 move = 0; move < count; ++move) {
            play(index, move);
            last = vm.lastCallGas().gasTotalUsed;
            all += last;
        }
    }

    function test_disputes() public {
        (uint256 all, uint256 last) = whole(0);
        record("dispute over a product, whole", all, 4_000_000);
        record("dispute, prove a segment", last, 1_000_000);
        (all, last) = whole(1);
        record("dispute over a score, whole", all, 4_000_000);
        record("dispute, prove a chain", last, 1_000_000);
        (all,) = whole(8);
        record("dispute over rows as sent, whole", all, 4_000_000);
    }

    function test_disputeMoves() public {
        open(0);
        record("dispute, open", openGas, 400_000);
        play(0, 0);
        record("dispute, commit", vm.lastCallGas().gasTotalUsed, 800_000);
        play(0, 1);
        record("dispute, choose", vm.lastCallGas().gasTotalUsed, 100_000);
        play(0, 2);
        record("dispute, reveal", vm.lastCallGas().gasTotalUsed, 100_000);
    }
}

/// Gas of audits, with as many auditors as there can be.
contract AuditGasTest is AuditBase {
    function record(string memory name, uint256 most) internal {
        uint256 used = vm.lastCallGas().gasTotalUsed;
        vm.snapshotValue("gas", name, used);
        vm.assertLe(used, most, name);
    }

    function setUp() public override {
        super.setUp();
        for (uint160 i = 0; i < 59; ++i) {
            enlist(address(0xB000 + i));
        }
        // Histories and epochs are not those of the first second.
        vm.warp(START + 10 * EPOCH);
    }

    function test_anAuditThatPasses() public {
        Auditor[] memory list = set.listAuditors();
        record("list 64 auditors", 950_000);
        vm.warp((set.currentEpoch() + 1) * EPOCH + 1);
        Chunk memory chunk = chunkOf(1, seal(RIGHT));
        uint32 epoch = postOne(ALICE, chunk);
        record("post commitments", 125_000);
        drawable(epoch, "drawn");
        bytes32 id = audits.open(ALICE, epoch, 0, chunk, new bytes32[](0));
        record("draw and open a leaf", 145_000);
        address auditor = assigned(id, list);
        commit(id, auditor, RIGHT);
        record("commit to an answer", 62_000);
        reveal(id, auditor, chunk, RIGHT);
        record("reveal an equal answer, node passes", 78_000);
    }

    function test_anAuditThatFails() public {
        Chunk memory chunk = chunkOf(1, seal(WRONG));
        (bytes32 id, Auditor[] memory list) = opened(ALICE, chunk, "drawn");
        audits.assign(id, list);
        record("draw an auditor of 64", 210_000);
        address first = audits.caseOf(id).answers[0].auditor;
        commit(id, first, RIGHT);
        vm.prank(first);
        audits.differ(id);
        record("say that the answer differs", 37_000);
        address second = assigned(id, list);
        commit(id, second, RIGHT);
        reveal(id, second, chunk, RIGHT);
        reveal(id, first, chunk, RIGHT);
        record("reveal the second of two answers", 57_000);
        vm.prank(ALICE);
        audits.dispute(id);
        record("dispute a verdict", 135_000);
        vm.prank(first);
        audits.matchBond(id, chunk);
        game.tell(id, false);
        record("a dispute lost, with slash", 230_000);
    }

    function test_silence() public {
        uint32 epoch = postOne(ALICE, chunkOf(1, seal(WRONG)));
        drawable(epoch, "drawn");
        vm.prank(ANYBODY);
        bytes32 id = audits.draw(ALICE, epoch, 0);
        record("draw a leaf", 88_000);
        pass(12 hours + 1);
        audits.timeOut(id);
        record("time out a silent node, with slash", 152_000);
    }
}
