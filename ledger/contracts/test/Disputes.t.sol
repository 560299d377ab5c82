// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {vm} from "../script/Vm.sol";
import {DisputeGame} from "../src/DisputeGame.sol";
import {Kind} from "../src/IReferee.sol";
import {Opening, Place, Stage, Unit} from "../src/ITraceJudge.sol";
import {Wiring} from "../src/lib/Wiring.sol";
import {DisputeVectors} from "./DisputeVectors.sol";

/// Takes calls apart.
contract Reader {
    function commit(bytes calldata data) external pure returns (bytes memory plan, Unit memory unit) {
        (, plan, unit,) = abi.decode(data[4:], (bytes32, bytes, Unit, bytes32[]));
    }

    function prove(bytes calldata data) external pure returns (Opening memory opening) {
        (,,, opening) = abi.decode(data[4:], (bytes32, bytes, uint256, Opening));
    }
}

/// Disputes that the crate played between sides of which one lies, and words of every operation that it opened.
contract DisputesTest is DisputeVectors {
    bool public constant IS_TEST = true;

    function setUp() public {
        setUpGame();
        json = vm.readFile("../vectors/disputes.json");
    }

    function test_everyDisputeEndsAsTheCrateSays() public {
        uint256 index = 0;
        for (; vm.keyExistsJson(json, caseKey(index, "name")); ++index) {
            open(index);
            uint256 count = moves(index);
            for (uint256 move = 0; move < count; ++move) {
                vm.assertEq(OUTCOME.told(), index);
                play(index, move);
            }
            string memory name = vm.parseJsonString(json, caseKey(index, "name"));
            vm.assertEq(OUTCOME.told(), index + 1, name);
            vm.assertEq(OUTCOME.caseId(), vm.parseJsonBytes32(json, caseKey(index, "caseId")), name);
            bool won = vm.parseJsonUint(json, caseKey(index, "accusedWon")) == 1;
            vm.assertTrue(OUTCOME.accusedWon() == won, name);
        }
        vm.assertTrue(index > 8);
    }

    function test_wordsOfEveryOperation() public {
        json = vm.readFile("../vectors/cells.json");
        // All but Zero and Embed: the rows of this stage come from another.
        vm.assertEq(judged() | 1, (1 << 20) - 1);
    }

    /// Products in q8, q4, q4_k and q6_k, what they are multiplied with, and an embedding in q6_k.
    function test_wordsOfEveryFormat() public {
        json = vm.readFile("../vectors/formats.json");
        uint256 kinds = 1 << uint256(Kind.GroupScale) | 1 << uint256(Kind.GroupQuants);
        vm.assertEq(judged(), kinds | 1 << uint256(Kind.Segment) | 1 << uint256(Kind.Embed));
    }

    /// A product in super-blocks does not follow from groups of 32, and the other way round, whatever a matrix is
    /// said to be in.
    function test_aMatrixHasOneFormat() public {
        json = vm.readFile("../vectors/formats.json");
        Reader reader = new Reader();
        Stage memory stage = described(reader);
        bytes[4] memory names = [bytes("q8"), "q4", "q4_k", "q6_k"];
        uint256 products = 0;
        for (uint256 i = 0; vm.keyExistsJson(json, cell(i, "word")); ++i) {
            if (vm.parseJsonUint(json, cell(i, "kind")) != uint256(Kind.Segment)) continue;
            ++products;
            uint256[] memory spot = vm.parseJsonUintArray(json, cell(i, "place"));
            Opening memory opening = reader.prove(vm.parseJsonBytes(json, cell(i, "call")));
            bytes32 format = opening.matrix.format;
            for (uint256 other = 0; other < names.length; ++other) {
                if (keccak256(names[other]) == format) continue;
                opening.matrix.format = keccak256(names[other]);
                vm.expectRevert();
                judge.expected(stage, Place(spot[0], spot[1], spot[2], spot[3]), opening);
            }
        }
        vm.assertEq(products, 21);
    }

    /// The stage of a file of words.
    function described(Reader reader) internal view returns (Stage memory stage) {
        (bytes memory plan, Unit memory unit) = reader.commit(vm.parseJsonBytes(json, ".commit"));
        stage = judge.describe(plan, 1, uint32(vm.parseJsonUint(json, ".to")), unit);
        stage.inRoots = vm.parseJsonBytes32(json, ".inRoots");
        stage.root = vm.parseJsonBytes32(json, ".root");
    }

    /// Has the judge say what all words of a file should be; the kinds that were among them.
    function judged() internal returns (uint256 kinds) {
        Reader reader = new Reader();
        Stage memory stage = described(reader);
        for (uint256 i = 0; vm.keyExistsJson(json, cell(i, "word")); ++i) {
            uint256[] memory spot = vm.parseJsonUintArray(json, cell(i, "place"));
            Opening memory opening = reader.prove(vm.parseJsonBytes(json, cell(i, "call")));
            (bool exists, uint32 word) =
                judge.expected(stage, Place(spot[0], spot[1], spot[2], spot[3]), opening);
            string memory name = vm.parseJsonString(json, cell(i, "operation"));
            vm.assertTrue(exists, name);
            vm.assertEq(word, vm.parseJsonUint(json, cell(i, "word")), name);
            kinds |= 1 << vm.parseJsonUint(json, cell(i, "kind"));
        }
    }

    function cell(uint256 index, string memory name) internal pure returns (string memory) {
        return string.concat(".cells[", vm.toString(index), "].", name);
    }

    /// What fills the last piece of a row that was sent is zero, and convicts nobody.
    function test_fillingOfRowsConvictsNobody() public {
        uint256 rows = 8;
        open(rows);
        uint256 last = moves(rows) - 1;
        for (uint256 move = 0; move < last; ++move) {
            play(rows, move);
        }
        (, bytes memory data) = call(rows, last);
        // The element: past the 96 that a row has.
        data[4 + 3 * 32 - 1] = 0x70;
        vm.prank(ACCUSER);
        (bool done,) = address(game).call(data);
        vm.assertTrue(done && OUTCOME.accusedWon());
    }

    /// Clocks run for whoever's turn it is, and end the dispute against it.
    function test_silenceLosesOnEitherSide() public {
        uint256 count = moves(0);
        for (uint256 stop = 0; stop < count; ++stop) {
            setUp();
            bytes32 id = open(0);
            for (uint256 move = 0; move < stop; ++move) {
                play(0, move);
            }
            (address sender, bytes memory data) = call(0, stop);
            uint256 now_ = block.timestamp;
            vm.warp(now_ + CLOCK);
            vm.expectRevert(abi.encodeWithSelector(DisputeGame.NotYet.selector, id));
            game.expire(id);
            vm.warp(now_ + CLOCK + 1);
            vm.prank(sender);
            (bool done,) = address(game).call(data);
            vm.assertFalse(done);
            uint256 told = OUTCOME.told();
            game.expire(id);
            vm.assertEq(OUTCOME.told(), told + 1);
            vm.assertEq(OUTCOME.accusedWon(), sender == ACCUSER);
            vm.expectRevert(
                abi.encodeWithSelector(DisputeGame.NotYourTurn.selector, id, DisputeGame.Turn.None)
            );
            game.expire(id);
        }
    }

    /// Time that a side used is gone.
    function test_clocksAddUp() public {
        bytes32 id = open(0);
        vm.warp(block.timestamp + CLOCK - 10);
        play(0, 0);
        vm.assertEq(game.gameOf(id).accusedLeft, 10);
        vm.warp(block.timestamp + 3);
        play(0, 1);
        vm.assertEq(game.gameOf(id).accuserLeft, CLOCK - 3);
        vm.warp(block.timestamp + 11);
        (address sender, bytes memory data) = call(0, 2);
        vm.prank(sender);
        vm.expectRevert(abi.encodeWithSelector(DisputeGame.TooLate.selector, id));
        (bool done,) = address(game).call(data);
        vm.assertTrue(done);
        game.expire(id);
        vm.assertFalse(OUTCOME.accusedWon());
    }

    /// Every move is one side's alone, in its turn.
    function test_nobodyMovesForAnother() public {
        bytes32 id = open(0);
        uint256 count = moves(0);
        for (uint256 move = 0; move < count; ++move) {
            for (uint256 other = 0; other < count; ++other) {
                (address sender, bytes memory data) = call(0, other);
                if (other == move) {
                    sender = sender == ACCUSED ? ACCUSER : ACCUSED;
                } else if (bytes4(data) == bytes4(callOf(move))) {
                    continue;
                }
                vm.prank(sender);
                (bool done, bytes memory reason) = address(game).call(data);
                vm.assertFalse(done);
                vm.assertEq(
                    reason, abi.encodeWithSelector(DisputeGame.NotYourTurn.selector, id, game.gameOf(id).turn)
                );
            }
            play(0, move);
        }
    }

    function callOf(uint256 move) internal view returns (bytes memory data) {
        (, data) = call(0, move);
    }

    function test_refusesBadClocksAndSecondCases() public {
        vm.expectRevert(abi.encodeWithSelector(DisputeGame.BadClock.selector, 0));
        new DisputeGame(judge, 0);
        vm.expectRevert(abi.encodeWithSelector(DisputeGame.BadClock.selector, 7 days + 1));
        new DisputeGame(judge, 7 days + 1);
        vm.assertEq(game.longest(), 2 * CLOCK);
        bytes32 id = open(0);
        vm.expectRevert(abi.encodeWithSelector(DisputeGame.Exists.selector, id));
        open(0);
    }
}

/// Which words a word follows from, for many shapes.
contract WiringVectorsTest {
    bool public constant IS_TEST = true;

    function number(bytes memory line, uint256 index) internal pure returns (uint32 value) {
        assembly ("memory-safe") {
            value := shr(224, mload(add(add(line, 32), mul(index, 4))))
        }
    }

    function summary(Wiring.Wired memory wired) internal pure returns (bytes32) {
        bytes memory list = abi.encodePacked(uint32(uint8(wired.kind)));
        for (uint256 i = 0; i < 4; ++i) {
            list = bytes.concat(list, bytes4(wired.numbers[i]));
        }
        for (uint256 i = 0; i < wired.parts.length; ++i) {
            Wiring.Part memory part = wired.parts[i];
            bool words = part.what == Wiring.What.Words;
            list = bytes.concat(
                list,
                bytes4(uint32(uint8(part.what))),
                bytes4(uint32(words || part.what == Wiring.What.Vector ? part.operation : 0)),
                bytes4(uint32(words ? part.position : 0)),
                bytes4(uint32(part.from)),
                bytes4(uint32(part.count))
            );
        }
        return keccak256(
            bytes.concat(
                list,
                bytes4(wired.weighted ? uint32(1) : 0),
                bytes4(uint32(wired.tensor)),
                bytes4(uint32(wired.row)),
                bytes4(uint32(wired.segment))
            )
        );
    }

    function dims(bytes memory line) internal pure returns (Wiring.Dims memory d) {
        (d.hidden, d.intermediate) = (number(line, 0), number(line, 1));
        (d.heads, d.kvHeads, d.headDim) = (number(line, 2), number(line, 3), number(line, 4));
        (d.eps, d.scale) = (number(line, 5), number(line, 6));
        uint256 flags = number(line, 8);
        (d.windowed, d.window) = (flags & 1 != 0, number(line, 7));
        (d.qkvBias, d.outputBias) = (flags & 2 != 0, flags & 4 != 0);
        (d.mlpBias, d.qkNorm) = (flags & 8 != 0, flags & 16 != 0);
    }

    function test_wiringsAreThoseOfTheCrate() public view {
        bytes[] memory lines = vm.parseJsonBytesArray(vm.readFile("../vectors/wirings.json"), ".cases");
        vm.assertTrue(lines.length > 300);
        for (uint256 i = 0; i < lines.length; ++i) {
            bytes memory line = lines[i];
            Wiring.Dims memory d = dims(line);
            (uint256 operation, uint256 position, uint256 word) =
                (number(line, 9), number(line, 10), number(line, 11));
            string memory name = vm.toString(operation);
            vm.assertEq(Wiring.width(d, operation, position), number(line, 12), name);
            bytes32 expected;
            assembly ("memory-safe") {
                expected := mload(add(line, 84))
            }
            vm.assertEq(
                summary(Wiring.wire(d, operation, position, word, number(line, 8) & 32 != 0)), expected, name
            );
        }
    }
}

/// A dispute that was played up to one move, which is then made with any byte changed.
abstract contract ChangedMove is DisputeVectors {
    bool public constant IS_TEST = true;

    bytes internal data;
    address internal sender;

    function playTo(uint256 index, uint256 last) internal {
        setUpGame();
        json = vm.readFile("../vectors/disputes.json");
        open(index);
        for (uint256 move = 0; move < last; ++move) {
            play(index, move);
        }
        (sender, data) = call(index, last);
    }

    function change(uint256 where, uint8 what) internal returns (bool done) {
        vm.assume(what != 0);
        bytes memory changed = data;
        // Behind the selector and the dispute's id.
        where = 36 + where % (changed.length - 36);
        changed[where] ^= bytes1(what);
        vm.prank(sender);
        (done,) = address(game).call(changed);
    }
}

contract ChangedProofTest is ChangedMove {
    uint256 internal constant FALSE_ACCUSATION = 7;

    function setUp() public {
        json = vm.readFile("../vectors/disputes.json");
        playTo(FALSE_ACCUSATION, moves(FALSE_ACCUSATION) - 1);
    }

    /// Whatever a false accuser opens, the accused does not lose by it.
    /// forge-config: default.fuzz.runs = 200
    function testFuzz_noOpeningConvictsTheHonest(uint256 where, uint8 what) public {
        vm.assertTrue(!change(where, what) || OUTCOME.accusedWon());
    }
}

contract ChangedSuperBlockTest is ChangedMove {
    uint256 internal constant FALSE_ACCUSATION = 12;

    function setUp() public {
        json = vm.readFile("../vectors/disputes.json");
        playTo(FALSE_ACCUSATION, moves(FALSE_ACCUSATION) - 1);
    }

    /// The same where matrices have super-blocks.
    /// forge-config: default.fuzz.runs = 200
    function testFuzz_noOpeningConvictsTheHonest(uint256 where, uint8 what) public {
        vm.assertTrue(!change(where, what) || OUTCOME.accusedWon());
    }
}

contract ChangedRevealTest is ChangedMove {
    function setUp() public {
        playTo(0, 2);
    }

    /// What is shown is what was committed to.
    /// forge-config: default.fuzz.runs = 200
    function testFuzz_otherRevealsAreRefused(uint256 where, uint8 what) public {
        vm.assertFalse(change(where, what));
    }
}
