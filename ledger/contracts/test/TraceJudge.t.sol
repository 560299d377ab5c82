// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Hashes} from "@openzeppelin/contracts/utils/cryptography/Hashes.sol";

import {vm} from "../script/Vm.sol";
import {DisputeGame} from "../src/DisputeGame.sol";
import {Chunk} from "../src/IDisputeGame.sol";
import {IReferee} from "../src/IReferee.sol";
import {Gap, Unit} from "../src/ITraceJudge.sol";
import {Int8Referee} from "../src/Int8Referee.sol";
import {TraceJudge} from "../src/TraceJudge.sol";
import {Merkle} from "../src/lib/Merkle.sol";
import {Weights} from "../src/lib/Weights.sol";
import {Outcome} from "./DisputeVectors.sol";

/// Stages that have no trace: whoever computes them loses nothing by it.
contract TraceJudgeTest {
    bool public constant IS_TEST = true;

    TraceJudge internal judge = new TraceJudge(IReferee(address(new Int8Referee())));

    /// A model of two layers and a head, all of whose units are one with a single tensor.
    struct Shape {
        uint64 profile;
        uint32 numerics;
        bytes format;
        uint32 rows;
    }

    function plain() internal pure returns (Shape memory) {
        return Shape(0, 1, "q8", 64);
    }

    function gapOf(Shape memory shape) internal pure returns (Gap memory gap, bytes32 model) {
        bytes memory description = bytes.concat("dolphin/unit/1", bytes8(shape.profile), bytes8(uint64(64)));
        description = bytes.concat(description, bytes8(uint64(1)), bytes8(uint64(64)), bytes8(uint64(1)));
        description = bytes.concat(description, bytes8(uint64(1)), bytes8(uint64(64)), new bytes(64));
        gap.opened.data = new bytes(288);
        gap.opened.format = keccak256(shape.format);
        (gap.opened.rows, gap.opened.columns) = (shape.rows, 64);
        (gap.index, gap.tensor) = (1, 1);
        bytes32 segment = keccak256(bytes.concat(bytes1(0), bytes4(0), bytes4(0), gap.opened.data));
        bytes32 tensor = Merkle.leaf(abi.encode(gap.opened.format, uint256(shape.rows), uint256(64), segment));
        bytes32 described = Merkle.leaf(abi.encode(uint256(0), keccak256(description)));
        bytes32 weight = Merkle.leaf(abi.encode(uint256(1), tensor));
        (gap.unit.description, gap.unit.inUnit) = (description, new bytes32[](1));
        gap.unit.inUnit[0] = weight;
        gap.opened.inUnit = new bytes32[](1);
        gap.opened.inUnit[0] = described;
        bytes32 root = Hashes.commutativeKeccak256(described, weight);
        bytes32[] memory leaves = new bytes32[](4);
        for (uint256 i = 0; i < 4; ++i) {
            leaves[i] = Merkle.leaf(abi.encode(i, root));
        }
        gap.unit.inModel = new bytes32[](2);
        gap.unit.inModel[0] = leaves[0];
        gap.unit.inModel[1] = Hashes.commutativeKeccak256(leaves[2], leaves[3]);
        bytes32 layerRoot = Hashes.commutativeKeccak256(
            Hashes.commutativeKeccak256(leaves[0], leaves[1]), gap.unit.inModel[1]
        );
        gap.unit.contents = Weights.Contents(shape.numerics, "tokenizer", "rope", 4, layerRoot);
        model = keccak256(
            abi.encode(
                keccak256(
                    "Model(uint32 numerics,bytes32 tokenizer,bytes32 rope,uint32 layers,bytes32 layerRoot)"
                ),
                gap.unit.contents
            )
        );
    }

    /// A plan with one stage.
    function planOf(bytes32 model, uint32 from, uint32 to) internal pure returns (bytes memory plan) {
        plan = bytes.concat("dolphin/plan/1", bytes4(0), new bytes(32), model, new bytes(1 + 32 + 32 + 8));
        plan = bytes.concat(plan, bytes4(0), new bytes(40), bytes4(0), bytes4(uint32(1)));
        return bytes.concat(plan, new bytes(32), bytes4(from), bytes4(to), bytes2(0));
    }

    function untraceable(Shape memory shape) internal view returns (bool) {
        (Gap memory gap, bytes32 model) = gapOf(shape);
        return judge.untraceable(planOf(model, 0, 2), 0, 10, gap);
    }

    function test_formatsAndProfilesWithoutTensors() public view {
        vm.assertFalse(untraceable(plain()));
        string[4] memory formats = ["q4", "q4_k", "q6_k", "bf16"];
        for (uint256 i = 0; i < 4; ++i) {
            Shape memory shape = plain();
            shape.format = bytes(formats[i]);
            vm.assertEq(untraceable(shape), i == 3);
        }
        Shape memory vector = plain();
        (vector.format, vector.rows) = ("f32", 1);
        vm.assertFalse(untraceable(vector));
        vector.rows = 2;
        vm.assertTrue(untraceable(vector));
        Shape memory float = plain();
        float.profile = 1;
        vm.assertTrue(untraceable(float));
        Shape memory next = plain();
        next.numerics = 2;
        vm.assertTrue(untraceable(next));
    }

    function test_stagesWithoutLayersAndPositionsWithoutRotations() public view {
        (Gap memory gap, bytes32 model) = gapOf(plain());
        Gap memory nothing;
        vm.assertTrue(judge.untraceable(planOf(model, 1, 1), 0, 10, nothing));
        vm.assertTrue(judge.untraceable(planOf(model, 0, 2), 0, (1 << 17) + 1, nothing));
        vm.assertFalse(judge.untraceable(planOf(model, 0, 2), 0, 1 << 17, gap));
        // The third unit is the second layer, the fourth the head.
        vm.assertTrue(judge.untraceable(planOf(model, 0, 3), 0, 10, gap));
    }

    /// What is shown is the model's and the stage's.
    function test_otherUnitsShowNothing() public {
        (Gap memory gap, bytes32 model) = gapOf(plain());
        bytes memory plan = planOf(model, 1, 2);
        vm.expectRevert(TraceJudge.BadOpening.selector);
        judge.untraceable(plan, 0, 10, gap);
        plan = planOf("another model", 0, 2);
        vm.expectRevert(TraceJudge.BadOpening.selector);
        judge.untraceable(plan, 0, 10, gap);
        gap.unit.description[21] = 0x01;
        plan = planOf(model, 0, 2);
        vm.expectRevert(TraceJudge.BadOpening.selector);
        judge.untraceable(plan, 0, 10, gap);
    }

    /// A dispute over such a stage ends without a loser.
    function test_suchDisputesAreAbandoned() public {
        Outcome outcome = new Outcome();
        DisputeGame game = new DisputeGame(judge, 1 days);
        Shape memory shape = plain();
        shape.format = "bf16";
        (Gap memory gap, bytes32 model) = gapOf(shape);
        bytes memory plan = planOf(model, 0, 2);
        Chunk memory chunk;
        (chunk.model, chunk.plan, chunk.to) = (model, keccak256(plan), 10);
        outcome.open(game, "case", address(1), address(2), chunk);
        bytes32 id = game.idOf(address(outcome), "case");
        game.abandon(id, plan, gap);
        vm.assertTrue(outcome.isAbandoned() && outcome.told() == 1 && outcome.caseId() == "case");
        vm.expectRevert(abi.encodeWithSelector(DisputeGame.NotYourTurn.selector, id, DisputeGame.Turn.None));
        game.abandon(id, plan, gap);
    }
}
