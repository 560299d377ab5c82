// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {vm} from "../script/Vm.sol";
import {DisputeGame} from "../src/DisputeGame.sol";
import {Chunk} from "../src/IDisputeGame.sol";
import {Gap, ITraceJudge, Opening, Place, Stage, Unit} from "../src/ITraceJudge.sol";
import {Merkle} from "../src/lib/Merkle.sol";
import {TraceTree} from "../src/lib/TraceTree.sol";
import {Outcome} from "./DisputeVectors.sol";

/// Says what it was told to say of one word.
contract FixedJudge is ITraceJudge {
    Stage internal stage;
    bytes32 internal judged;
    bool internal exists;
    uint32 internal word;

    constructor(Stage memory described) {
        stage = described;
    }

    function set(Place calldata place, bool exists_, uint32 word_) external {
        (judged, exists, word) = (keccak256(abi.encode(place)), exists_, word_);
    }

    function describe(bytes calldata, uint256, uint32, Unit calldata) external view returns (Stage memory) {
        return stage;
    }

    function untraceable(bytes calldata, uint256, uint32, Gap calldata) external pure returns (bool) {
        return false;
    }

    function expected(Stage calldata, Place calldata place, Opening calldata)
        external
        view
        returns (bool, uint32)
    {
        vm.assertEq(keccak256(abi.encode(place)), judged);
        return (exists, word);
    }
}

/// Descents of trees that are nobody's trace.
contract DisputeGameTest {
    bool public constant IS_TEST = true;

    address internal constant ACCUSED = address(0xACC);
    address internal constant ACCUSER = address(0xCA11);
    uint256 internal constant DEPTH = 9;
    bytes internal constant PLAN = "a plan";

    Outcome internal outcome;
    FixedJudge internal judge;
    DisputeGame internal game;
    Stage internal stage;
    bytes32 internal id;

    function setUp() public {
        (stage.model, stage.layers, stage.to, stage.hidden) = ("model", 1, 2, 300);
        (stage.slotBits, stage.positionBits, stage.pieceBits) = (1, 1, 1);
        outcome = new Outcome();
        judge = new FixedJudge(stage);
        game = new DisputeGame(judge, 1 days);
        Chunk memory chunk;
        (chunk.model, chunk.plan, chunk.to) = (stage.model, keccak256(PLAN), 2);
        chunk.sealedRoots = keccak256(bytes.concat(keccak256(bytes.concat("dolphin/roots/1", chunkRoot()))));
        outcome.open(game, "case", ACCUSED, ACCUSER, chunk);
        id = game.idOf(address(outcome), "case");
    }

    /// Leaves of the pieces of a row of 600 bytes; the first is hidden one level deeper.
    function hidden() internal pure returns (bytes32[] memory pieces, bytes32 sibling) {
        pieces = new bytes32[](2);
        sibling = "anything";
        bytes32 first = keccak256(bytes.concat(bytes4(0), new bytes(512)));
        pieces[0] = first < sibling
            ? keccak256(bytes.concat(first, sibling))
            : keccak256(bytes.concat(sibling, first));
        pieces[1] = keccak256(bytes.concat(bytes4(uint32(1)), new bytes(512)));
    }

    function rowLeaf(uint256 position, bytes32 row) internal view returns (bytes32) {
        return keccak256(
            bytes.concat("dolphin/row/1", stage.model, bytes4(uint32(1)), bytes4(uint32(position)), row)
        );
    }

    /// Roots of the two rows that were sent.
    function rows() internal pure returns (bytes32[] memory list) {
        list = new bytes32[](2);
        (bytes32[] memory pieces,) = hidden();
        list[0] = Merkle.root(pieces);
        list[1] = "another row";
    }

    function chunkRoot() internal view returns (bytes32) {
        bytes32[] memory leaves = new bytes32[](2);
        (leaves[0], leaves[1]) = (rowLeaf(0, rows()[0]), rowLeaf(1, rows()[1]));
        return Merkle.root(leaves);
    }

    function roots() internal view returns (bytes32[] memory list) {
        list = new bytes32[](1);
        list[0] = chunkRoot();
    }

    /// A tree as a heap: the root is 1, the children of n are 2n and 2n + 1.
    function tree(uint256 seed, uint256 target, bytes32 hash) internal pure returns (bytes32[] memory nodes) {
        nodes = new bytes32[](2 << DEPTH);
        for (uint256 i = 0; i < 1 << DEPTH; ++i) {
            bytes32 leaf = keccak256(abi.encode(seed, i));
            // A third of the pieces is not there.
            nodes[(1 << DEPTH) + i] = i == target ? hash : uint256(leaf) % 3 == 0 ? bytes32(0) : leaf;
        }
        for (uint256 i = (1 << DEPTH) - 1; i > 0; --i) {
            nodes[i] = TraceTree.parent(nodes[2 * i], nodes[2 * i + 1]);
        }
    }

    /// All nodes `levels` below one.
    function below(bytes32[] memory nodes, uint256 node, uint256 levels)
        internal
        pure
        returns (bytes32[] memory list)
    {
        list = new bytes32[](1 << levels);
        for (uint256 i = 0; i < list.length; ++i) {
            list[i] = nodes[(node << levels) + i];
        }
    }

    function path(bytes32[] memory nodes, uint256 node, uint256 levels)
        internal
        pure
        returns (bytes32[] memory list)
    {
        list = new bytes32[](levels);
        for (uint256 i = 0; i < levels; ++i) {
            list[i] = nodes[(node >> i) ^ 1];
        }
    }

    /// Descends to a piece.
    function descend(bytes32[] memory nodes, uint256 target) internal {
        Unit memory unit;
        vm.prank(ACCUSED);
        game.commit(id, PLAN, unit, below(nodes, 1, 4), roots());
        uint256 leaf = (1 << DEPTH) + target;
        choose(nodes, leaf >> 5, 4);
        vm.prank(ACCUSED);
        game.reveal(id, below(nodes, leaf >> 5, 4));
        choose(nodes, leaf >> 1, 4);
        vm.prank(ACCUSED);
        game.reveal(id, below(nodes, leaf >> 1, 1));
        choose(nodes, leaf, 1);
    }

    function choose(bytes32[] memory nodes, uint256 node, uint256 levels) internal {
        vm.prank(ACCUSER);
        game.choose(id, node & ((1 << levels) - 1), nodes[node], path(nodes, node, levels));
    }

    function piece(uint256 seed) internal pure returns (bytes memory words) {
        words = new bytes(512);
        for (uint256 i = 0; i < 512; ++i) {
            words[i] = bytes1(keccak256(abi.encode(seed, i / 32))[i % 32]);
        }
    }

    function place(uint256 target, uint256 offset) internal pure returns (Place memory) {
        return Place(target >> 8, (target >> 2) & 63, (target >> 1) & 1, (target & 1) * 128 + offset);
    }

    /// Wherever the descent goes, the judge is asked about that word, and its answer decides.
    /// forge-config: default.fuzz.runs = 64
    function testFuzz_theWordDecides(uint256 seed, uint256 target, uint256 offset, bool same) public {
        (target, offset) = (target % (1 << DEPTH), offset % 128);
        bytes memory words = piece(seed);
        bytes32[] memory nodes = tree(seed, target, keccak256(words));
        descend(nodes, target);
        vm.prank(ACCUSED);
        game.revealPiece(id, words, new bytes32[](0));
        uint32 claimed = 0;
        for (uint256 i = 0; i < 4; ++i) {
            claimed = (claimed << 8) | uint8(words[offset * 4 + i]);
        }
        judge.set(place(target, offset), true, same ? claimed : claimed ^ 1);
        Opening memory opening;
        vm.prank(ACCUSER);
        game.prove(id, words, offset, opening);
        vm.assertEq(outcome.told(), 1);
        vm.assertEq(outcome.accusedWon(), same);
    }

    /// A piece that is not there loses where there should be one, and so does one where there should be none.
    /// forge-config: default.fuzz.runs = 64
    function testFuzz_piecesAreWhereTheyShouldBe(uint256 seed, uint256 target, bool there, bool should)
        public
    {
        target %= 1 << DEPTH;
        bytes memory words = there ? new bytes(512) : bytes("");
        bytes32[] memory nodes = tree(seed, target, there ? keccak256(words) : bytes32(0));
        descend(nodes, target);
        if (there) {
            vm.prank(ACCUSED);
            game.revealPiece(id, words, new bytes32[](0));
        }
        judge.set(place(target, 0), should, 0);
        Opening memory opening;
        vm.prank(ACCUSER);
        game.prove(id, words, 0, opening);
        vm.assertEq(outcome.accusedWon(), there == should);
    }

    /// Zeros fill a row's last piece.
    function test_fillingIsNoWord() public {
        bytes memory words = new bytes(512);
        bytes32[] memory nodes = tree(1, 5, keccak256(words));
        descend(nodes, 5);
        vm.prank(ACCUSED);
        game.revealPiece(id, words, new bytes32[](0));
        judge.set(place(5, 100), false, 0);
        Opening memory opening;
        vm.prank(ACCUSER);
        game.prove(id, words, 100, opening);
        vm.assertTrue(outcome.accusedWon());
    }

    /// forge-config: default.fuzz.runs = 64
    function testFuzz_choicesLeadToTheNode(uint256 seed, uint256 child, bytes32 node, uint256 length) public {
        bytes32[] memory nodes = tree(seed, 0, "piece");
        Unit memory unit;
        vm.prank(ACCUSED);
        game.commit(id, PLAN, unit, below(nodes, 1, 4), roots());
        child %= 16;
        vm.assume(node != nodes[16 + child]);
        vm.startPrank(ACCUSER);
        vm.expectRevert(DisputeGame.Mismatch.selector);
        game.choose(id, child, node, path(nodes, 16 + child, 4));
        vm.expectRevert(DisputeGame.OutOfRange.selector);
        game.choose(id, child + 16, nodes[16 + child], path(nodes, 16 + child, 4));
        length %= 9;
        if (length == 4) return;
        vm.expectRevert(DisputeGame.OutOfRange.selector);
        game.choose(id, 0, nodes[16 + child], new bytes32[](length));
    }

    function test_refusesOtherPlansRowsAndPieces() public {
        bytes32[] memory nodes = tree(3, 4, "piece");
        Unit memory unit;
        vm.startPrank(ACCUSED);
        vm.expectRevert(DisputeGame.Mismatch.selector);
        game.commit(id, "another plan", unit, below(nodes, 1, 4), roots());
        vm.expectRevert(DisputeGame.OutOfRange.selector);
        game.commit(id, PLAN, unit, below(nodes, 1, 3), roots());
        game.commit(id, PLAN, unit, below(nodes, 1, 4), roots());
        vm.stopPrank();
        vm.prank(ACCUSER);
        vm.expectRevert(DisputeGame.OutOfRange.selector);
        game.chooseRows(id, 1, roots());
        vm.prank(ACCUSER);
        vm.expectRevert(DisputeGame.Mismatch.selector);
        game.chooseRows(id, 0, new bytes32[](1));
        vm.prank(ACCUSER);
        game.chooseRows(id, 0, roots());
        vm.prank(ACCUSED);
        vm.expectRevert(DisputeGame.Mismatch.selector);
        game.revealRows(id, new bytes32[](2));
        vm.prank(ACCUSED);
        vm.expectRevert(DisputeGame.OutOfRange.selector);
        game.revealRows(id, new bytes32[](1));
    }

    /// Rows can be chosen first, and not in the middle of a descent.
    function test_rowsAreTheFirstChoice() public {
        bytes32[] memory nodes = tree(3, 4, "piece");
        Unit memory unit;
        vm.prank(ACCUSED);
        game.commit(id, PLAN, unit, below(nodes, 1, 4), roots());
        choose(nodes, 16, 4);
        vm.prank(ACCUSED);
        game.reveal(id, below(nodes, 16, 4));
        vm.prank(ACCUSER);
        vm.expectRevert(DisputeGame.OutOfRange.selector);
        game.chooseRows(id, 0, roots());
    }

    /// Descends to the first row that was sent.
    function toRow() internal {
        bytes32[] memory nodes = tree(3, 4, "piece");
        Unit memory unit;
        vm.prank(ACCUSED);
        game.commit(id, PLAN, unit, below(nodes, 1, 4), roots());
        vm.prank(ACCUSER);
        game.chooseRows(id, 0, roots());
        vm.prank(ACCUSED);
        game.revealRows(id, rows());
    }

    function inChunk() internal view returns (bytes32[] memory list) {
        list = new bytes32[](1);
        list[0] = rowLeaf(1, rows()[1]);
    }

    /// Roots that the accused has sealed are as many as there are chunks: one more, which nobody could find, is
    /// none that an accuser has to find.
    function test_rootsAreAsManyAsChunks() public {
        bytes32[] memory more = new bytes32[](2);
        (more[0], more[1]) = (chunkRoot(), "junk");
        Chunk memory chunk;
        (chunk.model, chunk.plan, chunk.to) = (stage.model, keccak256(PLAN), 2);
        chunk.sealedRoots =
            keccak256(bytes.concat(keccak256(bytes.concat("dolphin/roots/1", more[0], more[1]))));
        outcome.open(game, "more", ACCUSED, ACCUSER, chunk);
        bytes32 other = game.idOf(address(outcome), "more");
        bytes32[] memory nodes = tree(3, 4, "piece");
        Unit memory unit;
        vm.startPrank(ACCUSED);
        vm.expectRevert(DisputeGame.OutOfRange.selector);
        game.commit(other, PLAN, unit, below(nodes, 1, 4), more);
        vm.expectRevert(DisputeGame.Mismatch.selector);
        game.commit(other, PLAN, unit, below(nodes, 1, 4), roots());
        vm.expectRevert(DisputeGame.Mismatch.selector);
        game.commit(id, PLAN, unit, below(nodes, 1, 4), more);
        vm.stopPrank();
        vm.warp(block.timestamp + 1 days + 1);
        game.expire(other);
        vm.assertFalse(outcome.accusedWon());
    }

    /// A position is not one that only its last 32 bits are of.
    /// forge-config: default.fuzz.runs = 64
    function testFuzz_positionsAreOfTheChunk(uint256 above) public {
        toRow();
        above = 1 + above % type(uint224).max;
        vm.startPrank(ACCUSER);
        vm.expectRevert(DisputeGame.OutOfRange.selector);
        game.chooseRow(id, above << 32, rows()[0], inChunk());
        vm.expectRevert(DisputeGame.OutOfRange.selector);
        game.chooseRow(id, 2, rows()[0], inChunk());
        game.chooseRow(id, 0, rows()[0], inChunk());
    }

    /// A right piece that the row's root hides deeper down is not the one that was shown.
    function test_noPieceIsHidden() public {
        toRow();
        vm.prank(ACCUSER);
        game.chooseRow(id, 0, rows()[0], inChunk());
        (bytes32[] memory pieces, bytes32 sibling) = hidden();
        vm.prank(ACCUSED);
        game.revealPieces(id, pieces);
        vm.prank(ACCUSER);
        game.choosePiece(id, 0);
        bytes32[] memory siblings = new bytes32[](2);
        (siblings[0], siblings[1]) = (sibling, pieces[1]);
        vm.startPrank(ACCUSED);
        vm.expectRevert(DisputeGame.Mismatch.selector);
        game.revealPiece(id, new bytes(512), siblings);
        vm.expectRevert(DisputeGame.Mismatch.selector);
        game.revealPiece(id, new bytes(512), pieces);
        vm.stopPrank();
        vm.warp(block.timestamp + 1 days + 1);
        game.expire(id);
        vm.assertFalse(outcome.accusedWon());
    }

    function test_whatHasATraceIsNotAbandoned() public {
        Gap memory gap;
        vm.expectRevert(abi.encodeWithSelector(DisputeGame.Traceable.selector, id));
        game.abandon(id, PLAN, gap);
        vm.expectRevert(DisputeGame.Mismatch.selector);
        game.abandon(id, "another plan", gap);
    }
}
