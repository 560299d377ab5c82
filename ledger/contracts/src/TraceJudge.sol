// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";

import {IReferee, Kind, Leaf} from "./IReferee.sol";
import {Entered, Gap, ITraceJudge, Opening, Piece, Place, Stage, Unit} from "./ITraceJudge.sol";
import {PlanBytes} from "./lib/PlanBytes.sol";
import {TraceTree} from "./lib/TraceTree.sol";
import {Weights} from "./lib/Weights.sol";
import {Wiring} from "./lib/Wiring.sol";

/// @title Says what a word of a trace should be
/// @notice Finds which words, weights and rotations a word follows from, checks that what is opened is these, and
/// has a referee compute the word. It has no state. docs/disputes.md defines traces.
contract TraceJudge is ITraceJudge {
    /// @notice Most positions that can be in dispute: those whose rotations are in a model's hash.
    uint256 public constant MOST_POSITIONS = 1 << 17;
    /// @notice Version of the arithmetic.
    uint256 public constant NUMERICS = 1;

    bytes private constant ROW_DOMAIN = "dolphin/row/1";
    bytes private constant TOKEN_DOMAIN = "dolphin/token/1";
    uint256 private constant OPERATION_OUT = 46;
    uint256 private constant CHUNK = 64;
    uint256 private constant FORMAT_BF16 = 2;
    uint256 private constant FORMAT_F32 = 3;

    /// @notice Who computes words.
    IReferee public immutable REFEREE;

    /// @notice What was opened is not what the word follows from.
    error BadOpening();
    /// @notice There are no traces of such a stage.
    error Unsupported();

    /// @param referee Who computes words.
    constructor(IReferee referee) {
        REFEREE = referee;
    }

    /// @inheritdoc ITraceJudge
    function describe(bytes calldata plan, uint256 stage, uint32 to, Unit calldata unit)
        external
        pure
        returns (Stage memory described)
    {
        PlanBytes.Part memory part = PlanBytes.stage(plan, stage);
        if (part.from >= part.to || to == 0 || to > MOST_POSITIONS) revert Unsupported();
        Wiring.Dims memory dims = Wiring.parse(unit.description);
        if (Weights.hash(unit.contents) != part.model) revert BadOpening();
        if (_isForeign(unit.contents, part)) revert Unsupported();
        _unitRoot(unit, uint256(part.from) + 1);
        described.model = part.model;
        described.first = part.from;
        described.layers = part.to - part.from;
        described.to = to;
        described.hidden = uint32(dims.hidden);
        described.slotBits = uint8(TraceTree.bits(uint256(described.layers) + 1));
        described.positionBits = uint8(TraceTree.bits(to));
        described.pieceBits = uint8(TraceTree.bits((Wiring.widest(dims, to) + 127) / 128));
        described.embedding = part.embedding;
    }

    /// @inheritdoc ITraceJudge
    function untraceable(bytes calldata plan, uint256 stage, uint32 to, Gap calldata gap)
        external
        pure
        returns (bool)
    {
        PlanBytes.Part memory part = PlanBytes.stage(plan, stage);
        if (part.from >= part.to || to > MOST_POSITIONS) return true;
        Unit calldata unit = gap.unit;
        if (Weights.hash(unit.contents) != part.model) revert BadOpening();
        if (_isForeign(unit.contents, part)) return true;
        bool isLayer = gap.index > part.from && gap.index <= part.to;
        if (!isLayer && (gap.index != 0 || !part.embedding)) revert BadOpening();
        bytes32 root = _unitRoot(unit, gap.index);
        if (Wiring.profile(unit.description) != 0) return true;
        if (gap.opened.data.length == 0) return false;
        uint32 format = Weights.segment(root, gap.tensor, 0, 0, gap.opened);
        // Norms and biases are vectors of f32, which are one row.
        return format == FORMAT_BF16 || (format == FORMAT_F32 && gap.opened.rows > 1);
    }

    /// @inheritdoc ITraceJudge
    function expected(Stage calldata stage, Place calldata place, Opening calldata opening)
        external
        view
        returns (bool, uint32)
    {
        if (place.position >= stage.to || place.slot > uint256(stage.layers) + 1) return (false, 0);
        if (place.slot == 0 || place.slot > stage.layers) {
            uint256 last = place.slot == 0 ? 0 : OPERATION_OUT;
            if (place.operation != last || place.word >= stage.hidden) return (false, 0);
            if (place.slot > stage.layers) return (true, _sent(stage, place, opening));
            return
                (true, stage.embedding ? _embedded(stage, place, opening) : _entered(stage, place, opening));
        }
        return _computed(stage, place, opening);
    }

    /// An element of a row as it is sent is that of the last slot.
    function _sent(Stage calldata stage, Place calldata place, Opening calldata opening)
        private
        pure
        returns (uint32)
    {
        if (opening.pieces.length != 1) revert BadOpening();
        Place memory spot = Place(stage.layers, OPERATION_OUT, place.position, place.word);
        _check(stage, opening.pieces[0], spot);
        return TraceTree.word(opening.pieces[0].words, place.word);
    }

    /// An element of a row that came in.
    function _entered(Stage calldata stage, Place calldata place, Opening calldata opening)
        private
        pure
        returns (uint32)
    {
        Entered calldata entered = opening.entered;
        bytes32 leaf = keccak256(
            bytes.concat(
                ROW_DOMAIN, stage.model, bytes4(stage.first), bytes4(uint32(place.position)), entered.row
            )
        );
        _came(stage, place, entered, leaf);
        if (entered.piece.length != TraceTree.PIECE_BYTES) revert BadOpening();
        bytes32 piece = keccak256(bytes.concat(bytes4(uint32(place.word / 256)), entered.piece));
        if (!MerkleProof.verifyCalldata(entered.inRow, entered.row, piece)) revert BadOpening();
        return TraceTree.element(entered.piece, place.word);
    }

    /// An element of the embedding's row of the token that came in.
    function _embedded(Stage calldata stage, Place calldata place, Opening calldata opening)
        private
        view
        returns (uint32)
    {
        Entered calldata entered = opening.entered;
        bytes32 token = keccak256(
            bytes.concat(TOKEN_DOMAIN, stage.model, bytes4(uint32(place.position)), bytes4(entered.token))
        );
        _came(stage, place, entered, token);
        return REFEREE.recompute(_embedding(place.word, _model(stage, opening.unit, 0), opening));
    }

    /// What an element of an embedding's row follows from.
    function _embedding(uint256 word, bytes32 root, Opening calldata opening)
        private
        pure
        returns (Leaf memory)
    {
        (uint32 scaled, uint32 scale) = Wiring.parseEmbedding(opening.unit.description);
        uint32 format = Weights.segment(root, 1, opening.entered.token, word / 256, opening.matrix);
        uint32[4] memory numbers = [format, uint32(word % 256), scaled, scale];
        return Leaf(Kind.Embed, new uint32[](0), numbers, opening.matrix.data);
    }

    /// That a leaf is in the root of what came in at a position.
    function _came(Stage calldata stage, Place calldata place, Entered calldata entered, bytes32 leaf)
        private
        pure
    {
        if (TraceTree.list(entered.roots) != stage.inRoots) revert BadOpening();
        bytes32 root = entered.roots[place.position / CHUNK];
        if (!MerkleProof.verifyCalldata(entered.inChunk, root, leaf)) revert BadOpening();
    }

    /// A word of a layer.
    function _computed(Stage calldata stage, Place calldata place, Opening calldata opening)
        private
        view
        returns (bool, uint32)
    {
        bytes32 root = _model(stage, opening.unit, uint256(stage.first) + place.slot);
        Wiring.Dims memory dims = Wiring.parse(opening.unit.description);
        if (place.word >= Wiring.width(dims, place.operation, place.position)) return (false, 0);
        // That a matrix is what it is opened as, `Weights.segment` sees to below.
        bool wide = Weights.isWide(opening.matrix.format);
        Wiring.Wired memory wired = Wiring.wire(dims, place.operation, place.position, place.word, wide);
        uint32[] memory inputs = _inputs(stage, place, opening, wired, root);
        Leaf memory leaf = Leaf(wired.kind, inputs, wired.numbers, "");
        if (wired.weighted) {
            leaf.numbers[0] = Weights.segment(root, wired.tensor, wired.row, wired.segment, opening.matrix);
            leaf.weight = opening.matrix.data;
        }
        return (true, REFEREE.recompute(leaf));
    }

    function _inputs(
        Stage calldata stage,
        Place calldata place,
        Opening calldata opening,
        Wiring.Wired memory wired,
        bytes32 root
    ) private pure returns (uint32[] memory inputs) {
        uint256 count = 0;
        for (uint256 i = 0; i < wired.parts.length; ++i) {
            count += wired.parts[i].count;
        }
        inputs = new uint32[](count);
        uint256 filled = 0;
        uint256 next = 0;
        for (uint256 i = 0; i < wired.parts.length; ++i) {
            Wiring.Part memory part = wired.parts[i];
            if (part.what == Wiring.What.Vector) {
                inputs[filled] = _vector(root, opening, part);
            } else if (part.what == Wiring.What.Rotation) {
                (inputs[filled], inputs[filled + 1]) = _rotation(place, opening, part.from);
            } else {
                next = _words(stage, place, opening.pieces, part, inputs, filled, next);
            }
            filled += part.count;
        }
        if (next != opening.pieces.length) revert BadOpening();
    }

    /// cos and sin of a pair.
    function _rotation(Place calldata place, Opening calldata opening, uint256 pair)
        private
        pure
        returns (uint32, uint32)
    {
        bytes32 rope = opening.unit.contents.rope;
        return Weights.rotation(rope, place.position, pair, opening.rotation, opening.inRope);
    }

    /// A value of a vector of weights.
    function _vector(bytes32 root, Opening calldata opening, Wiring.Part memory part)
        private
        pure
        returns (uint32)
    {
        return Weights.value(root, part.operation, part.from, opening.vector);
    }

    /// Words of the accused's trace, from as many pieces as they are in.
    function _words(
        Stage calldata stage,
        Place calldata place,
        Piece[] calldata pieces,
        Wiring.Part memory part,
        uint32[] memory inputs,
        uint256 filled,
        uint256 next
    ) private pure returns (uint256) {
        Place memory spot = _first(place, part);
        for (uint256 i = 0; i < part.count; ++i) {
            if (i == 0 || spot.word % TraceTree.PIECE_WORDS == 0) {
                if (next == pieces.length) revert BadOpening();
                _check(stage, pieces[next], spot);
                ++next;
            }
            inputs[filled + i] = TraceTree.word(pieces[next - 1].words, spot.word);
            ++spot.word;
        }
        return next;
    }

    /// The first of some words.
    function _first(Place calldata place, Wiring.Part memory part) private pure returns (Place memory) {
        if (part.what == Wiring.What.Words) {
            return Place(place.slot, part.operation, part.position, part.from);
        }
        return Place(place.slot - 1, place.slot == 1 ? 0 : OPERATION_OUT, place.position, part.from);
    }

    /// That a piece is the trace's, and the one that a word is in.
    function _check(Stage calldata stage, Piece calldata piece, Place memory spot) private pure {
        uint256 depth = TraceTree.depth(stage);
        if (piece.words.length != TraceTree.PIECE_BYTES || piece.path.length != depth) revert BadOpening();
        uint256 index = TraceTree.index(stage, spot);
        if (TraceTree.climb(keccak256(piece.words), index, piece.path) != stage.root) revert BadOpening();
    }

    /// Whether a model is of another arithmetic, or has not the layers that a plan names and a head after them.
    function _isForeign(Weights.Contents calldata contents, PlanBytes.Part memory part)
        private
        pure
        returns (bool)
    {
        return contents.numerics != NUMERICS || uint256(part.to) + 2 > contents.layers;
    }

    /// Root of a unit of the stage's model.
    function _model(Stage calldata stage, Unit calldata unit, uint256 index) private pure returns (bytes32) {
        if (Weights.hash(unit.contents) != stage.model) revert BadOpening();
        return _unitRoot(unit, index);
    }

    /// Root of the unit that has a description; `index` counts the embedding and layers.
    function _unitRoot(Unit calldata unit, uint256 index) private pure returns (bytes32 root) {
        root = Weights.describedBy(unit.description, unit.inUnit);
        if (!Weights.hasUnit(unit.contents, index, root, unit.inModel)) revert BadOpening();
    }
}
