// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";

import {Chunk, IDisputeGame, IDisputeOutcome} from "./IDisputeGame.sol";
import {Gap, ITraceJudge, Opening, Place, Stage, Unit} from "./ITraceJudge.sol";
import {Merkle} from "./lib/Merkle.sol";
import {TraceTree} from "./lib/TraceTree.sol";

/// @title Disputes over what a stage computed
/// @notice The accused commits to every word it says it computed; the accuser descends to one of them, either by
/// the trace or by the rows that were signed as sent, and opens what that word follows from; a judge says what it
/// should be. Each side has a clock that runs while it is its turn; who runs out of time loses. Nobody else has a
/// say. docs/disputes.md has the rules.
contract DisputeGame is IDisputeGame {
    /// @notice What is awaited, and so whose turn it is.
    enum Turn {
        None,
        Commit,
        Choose,
        Reveal,
        Rows,
        Row,
        Pieces,
        ChoosePiece,
        Piece,
        Prove
    }

    /// @notice A dispute.
    /// @param outcome Who is told how it ends.
    /// @param turn What is awaited.
    /// @param moved When the last move was, in seconds since 1970.
    /// @param accused Who commits and reveals.
    /// @param accusedLeft Time that the accused has left, in seconds.
    /// @param accuser Who chooses and proves.
    /// @param accuserLeft Time that the accuser has left, in seconds.
    /// @param caseId The outcome's number for it.
    /// @param plan Hash of the session's plan.
    /// @param sealedRoots Hash of the hash of what the accused committed to.
    /// @param number Number of the stage in the plan.
    /// @param level Level of `node`; of a piece of a row as sent, its number and 2^31.
    /// @param index Number of `node` in its level; of rows as sent, first of the chunk, then the row's position.
    /// @param node Node, row or piece in question.
    struct Game {
        address outcome;
        Turn turn;
        uint40 moved;
        address accused;
        uint40 accusedLeft;
        address accuser;
        uint40 accuserLeft;
        bytes32 caseId;
        bytes32 plan;
        bytes32 sealedRoots;
        uint32 number;
        uint32 level;
        uint64 index;
        bytes32 node;
    }

    /// @notice Levels of the tree that one move reveals.
    uint256 public constant STRIDE = 4;
    /// @notice Longest clock, in seconds.
    uint40 public constant MOST_CLOCK = 7 days;

    uint256 private constant CHUNK = 64;
    uint256 private constant OPERATION_OUT = 46;
    uint32 private constant SENT = 1 << 31;
    bytes private constant ROW_DOMAIN = "dolphin/row/1";

    /// @notice Who says what words should be.
    ITraceJudge public immutable JUDGE;
    /// @notice Time of each side, in seconds.
    uint40 public immutable CLOCK;

    /// Disputes that are not over.
    mapping(bytes32 id => Game) private _games;
    /// What they are about.
    mapping(bytes32 id => Stage) private _stages;

    /// @notice A dispute began.
    event DisputeOpened(
        bytes32 indexed id, address indexed accused, address indexed accuser, address outcome, bytes32 caseId
    );
    /// @notice The accused committed to its trace.
    event TraceCommitted(bytes32 indexed id, Stage stage);
    /// @notice The accused showed what is below the node in question.
    event Revealed(bytes32 indexed id, bytes32[] nodes);
    /// @notice The accused showed the roots of the rows it sent, chunk by chunk.
    event RootsRevealed(bytes32 indexed id, bytes32[] roots);
    /// @notice The accused showed a piece.
    event PieceRevealed(bytes32 indexed id, bytes piece);
    /// @notice The accuser chose a node, row or piece, or a chunk.
    event Chosen(bytes32 indexed id, Turn next, uint256 level, uint256 index, bytes32 node);
    /// @notice A dispute is over.
    event DisputeResolved(bytes32 indexed id, bool accusedWon, bool silence);
    /// @notice A dispute cannot be decided.
    event DisputeAbandoned(bytes32 indexed id);

    /// @notice There is such a dispute already.
    error Exists(bytes32 id);
    /// @notice It is not this sender's turn to do this.
    error NotYourTurn(bytes32 id, Turn turn);
    /// @notice The sender's clock has run out.
    error TooLate(bytes32 id);
    /// @notice The clock of whoever's turn it is has not run out.
    error NotYet(bytes32 id);
    /// @notice What is shown is not what was committed to or signed.
    error Mismatch();
    /// @notice There is no such chunk, row, piece or node.
    error OutOfRange();
    /// @notice Nothing shows that there is no trace.
    error Traceable(bytes32 id);
    /// @notice A clock that is too long or does not run at all.
    error BadClock(uint40 clock);

    /// @param judge Who says what words should be.
    /// @param clock Time of each side, in seconds.
    constructor(ITraceJudge judge, uint40 clock) {
        if (clock == 0 || clock > MOST_CLOCK) revert BadClock(clock);
        JUDGE = judge;
        CLOCK = clock;
    }

    /// @inheritdoc IDisputeGame
    function longest() external view returns (uint40) {
        return 2 * CLOCK;
    }

    /// @notice Number of a dispute.
    /// @param outcome Who opened it.
    /// @param caseId Its number there.
    /// @return The number.
    function idOf(address outcome, bytes32 caseId) public pure returns (bytes32) {
        return keccak256(abi.encode(outcome, caseId));
    }

    /// @notice How a dispute stands.
    /// @param id The dispute.
    /// @return The dispute; nothing of one that is over.
    function gameOf(bytes32 id) external view returns (Game memory) {
        return _games[id];
    }

    /// @notice What a dispute is about.
    /// @param id The dispute.
    /// @return The stage; only what came in, and how much, before the accused has committed.
    function stageOf(bytes32 id) external view returns (Stage memory) {
        return _stages[id];
    }

    /// @inheritdoc IDisputeGame
    function open(bytes32 caseId, address accused, address accuser, bytes32, Chunk calldata chunk) external {
        bytes32 id = idOf(msg.sender, caseId);
        Game storage game = _games[id];
        if (game.turn != Turn.None) revert Exists(id);
        (game.outcome, game.turn, game.moved) = (msg.sender, Turn.Commit, uint40(block.timestamp));
        (game.accused, game.accusedLeft) = (accused, CLOCK);
        (game.accuser, game.accuserLeft) = (accuser, CLOCK);
        (game.caseId, game.plan, game.sealedRoots) = (caseId, chunk.plan, chunk.sealedRoots);
        game.number = chunk.stage;
        Stage storage stage = _stages[id];
        (stage.model, stage.inRoots, stage.to) = (chunk.model, chunk.inRoots, chunk.to);
        emit DisputeOpened(id, accused, accuser, msg.sender, caseId);
    }

    /// @notice Commits to a trace. For the accused.
    /// @param id The dispute.
    /// @param plan The bytes of the session's plan.
    /// @param unit The stage's first layer: it says how deep the tree is.
    /// @param nodes Nodes of the trace's tree `STRIDE` levels below its root.
    /// @param roots Roots of the rows that were sent, chunk by chunk.
    function commit(
        bytes32 id,
        bytes calldata plan,
        Unit calldata unit,
        bytes32[] calldata nodes,
        bytes32[] calldata roots
    ) external {
        Game storage game = _accused(id, Turn.Commit);
        Stage storage stage = _stages[id];
        if (keccak256(plan) != game.plan || !_isSealed(game, roots)) revert Mismatch();
        uint256 chunks = (uint256(stage.to) + CHUNK - 1) / CHUNK;
        if (nodes.length != 1 << STRIDE || roots.length != chunks) revert OutOfRange();
        Stage memory described = JUDGE.describe(plan, game.number, stage.to, unit);
        if (described.model != stage.model) revert Mismatch();
        (described.inRoots, described.root) = (stage.inRoots, TraceTree.top(nodes));
        _stages[id] = described;
        (game.turn, game.node, game.level) = (Turn.Choose, described.root, uint32(TraceTree.depth(described)));
        emit TraceCommitted(id, described);
        emit RootsRevealed(id, roots);
        emit Revealed(id, nodes);
    }

    /// @notice Chooses one of the nodes that were revealed. For the accuser.
    /// @param id The dispute.
    /// @param child Number of the node among them.
    /// @param node The node.
    /// @param path Siblings from the node up to the one in question.
    function choose(bytes32 id, uint256 child, bytes32 node, bytes32[] calldata path) external {
        Game storage game = _accuser(id, Turn.Choose);
        uint256 stride = _stride(game.level);
        if (path.length != stride || child >> stride != 0) revert OutOfRange();
        if (TraceTree.climb(node, child, path) != game.node) revert Mismatch();
        game.level -= uint32(stride);
        game.index = uint64((uint256(game.index) << stride) | child);
        game.node = node;
        game.turn = Turn.Reveal;
        if (game.level == 0) {
            // A piece that is not there cannot be shown.
            game.turn = node == 0 ? Turn.Prove : Turn.Piece;
        }
        emit Chosen(id, game.turn, game.level, game.index, node);
    }

    /// @notice Shows what is below the node in question. For the accused.
    /// @param id The dispute.
    /// @param nodes All nodes `STRIDE` levels below it, or of the pieces if those are nearer.
    function reveal(bytes32 id, bytes32[] calldata nodes) external {
        Game storage game = _accused(id, Turn.Reveal);
        if (nodes.length != 1 << _stride(game.level)) revert OutOfRange();
        if (TraceTree.top(nodes) != game.node) revert Mismatch();
        game.turn = Turn.Choose;
        emit Revealed(id, nodes);
    }

    /// @notice Chooses the rows that were signed as sent, instead of the trace. For the accuser, as its first
    /// choice.
    /// @param id The dispute.
    /// @param chunk Number of the chunk.
    /// @param roots Roots of the rows that were sent, as the accused showed them.
    function chooseRows(bytes32 id, uint256 chunk, bytes32[] calldata roots) external {
        Game storage game = _accuser(id, Turn.Choose);
        if (game.level != TraceTree.depth(_stages[id]) || chunk >= roots.length) revert OutOfRange();
        if (!_isSealed(game, roots)) revert Mismatch();
        (game.turn, game.index, game.node) = (Turn.Rows, uint64(chunk), roots[chunk]);
        emit Chosen(id, Turn.Rows, 0, chunk, roots[chunk]);
    }

    /// @notice Shows the roots of the chunk's rows. For the accused.
    /// @param id The dispute.
    /// @param rows The roots.
    function revealRows(bytes32 id, bytes32[] calldata rows) external {
        Game storage game = _accused(id, Turn.Rows);
        Stage memory stage = _stages[id];
        uint256 from = uint256(game.index) * CHUNK;
        uint256 count = stage.to - from < CHUNK ? stage.to - from : CHUNK;
        if (rows.length != count) revert OutOfRange();
        bytes32[] memory leaves = new bytes32[](count);
        for (uint256 i = 0; i < count; ++i) {
            leaves[i] = _row(stage, from + i, rows[i]);
        }
        if (Merkle.root(leaves) != game.node) revert Mismatch();
        game.turn = Turn.Row;
        emit Revealed(id, rows);
    }

    /// @notice Chooses one of these rows. For the accuser.
    /// @param id The dispute.
    /// @param position Its position.
    /// @param row Its root.
    /// @param inChunk From the row to the chunk's root.
    function chooseRow(bytes32 id, uint256 position, bytes32 row, bytes32[] calldata inChunk) external {
        Game storage game = _accuser(id, Turn.Row);
        Stage memory stage = _stages[id];
        if (position >= stage.to || position / CHUNK != game.index) revert OutOfRange();
        if (!MerkleProof.verifyCalldata(inChunk, game.node, _row(stage, position, row))) revert Mismatch();
        (game.turn, game.index, game.node) = (Turn.Pieces, uint64(position), row);
        emit Chosen(id, Turn.Pieces, 0, position, row);
    }

    /// @notice Shows the leaves of that row's pieces. For the accused.
    /// @param id The dispute.
    /// @param pieces The leaves.
    function revealPieces(bytes32 id, bytes32[] calldata pieces) external {
        Game storage game = _accused(id, Turn.Pieces);
        if (pieces.length != _pieces(_stages[id].hidden)) revert OutOfRange();
        bytes32[] memory leaves = pieces;
        if (Merkle.root(leaves) != game.node) revert Mismatch();
        // What follows is about this list: the root could hide a leaf where none should be.
        (game.turn, game.node) = (Turn.ChoosePiece, keccak256(abi.encodePacked(pieces)));
        emit Revealed(id, pieces);
    }

    /// @notice Chooses one of these pieces. For the accuser.
    /// @param id The dispute.
    /// @param piece Its number.
    function choosePiece(bytes32 id, uint32 piece) external {
        Game storage game = _accuser(id, Turn.ChoosePiece);
        if (piece >= _pieces(_stages[id].hidden)) revert OutOfRange();
        (game.turn, game.level) = (Turn.Piece, SENT + piece);
        emit Chosen(id, Turn.Piece, 0, piece, game.node);
    }

    /// @notice Shows the piece in question. For the accused.
    /// @param id The dispute.
    /// @param piece Its 512 bytes.
    /// @param pieces For rows as sent, the leaves of the row's pieces as they were shown.
    function revealPiece(bytes32 id, bytes calldata piece, bytes32[] calldata pieces) external {
        Game storage game = _accused(id, Turn.Piece);
        if (piece.length != TraceTree.PIECE_BYTES) revert OutOfRange();
        bytes32 hash = keccak256(piece);
        if (game.level >= SENT) {
            if (keccak256(abi.encodePacked(pieces)) != game.node) revert Mismatch();
            uint32 number = game.level - SENT;
            if (keccak256(bytes.concat(bytes4(number), piece)) != pieces[number]) revert Mismatch();
        } else if (hash != game.node) {
            revert Mismatch();
        }
        (game.turn, game.node) = (Turn.Prove, hash);
        emit PieceRevealed(id, piece);
    }

    /// @notice Names the word of the piece that is wrong and opens what it follows from, which decides the
    /// dispute. For the accuser. A piece that should not be there is wrong as a whole, and so is one that should
    /// be there and is not.
    /// @param id The dispute.
    /// @param piece The piece's 512 bytes; none if there is no piece.
    /// @param offset Number of the word, or of the element of a row as sent, in the piece.
    /// @param opening What the word follows from.
    function prove(bytes32 id, bytes calldata piece, uint256 offset, Opening calldata opening) external {
        Game storage game = _accuser(id, Turn.Prove);
        Stage memory stage = _stages[id];
        if (piece.length == 0 ? game.node != 0 : keccak256(piece) != game.node) revert Mismatch();
        (Place memory place, uint32 claimed) = _claimed(game, stage, piece, offset);
        (bool exists, uint32 word) = JUDGE.expected(stage, place, opening);
        // Past the end of a row, there are zeros to the end of its last piece, and no more pieces.
        bool stray = !exists && offset == 0 && game.level < SENT;
        _resolve(id, piece.length == 0 ? !exists : !stray && claimed == word, false);
    }

    /// @notice Ends a dispute whose clock has run out. For anybody.
    /// @param id The dispute.
    function expire(bytes32 id) external {
        Game storage game = _games[id];
        if (game.turn == Turn.None) revert NotYourTurn(id, Turn.None);
        bool accusers = _isAccusers(game.turn);
        uint256 left = accusers ? game.accuserLeft : game.accusedLeft;
        if (block.timestamp - game.moved <= left) revert NotYet(id);
        _resolve(id, accusers, true);
    }

    /// @notice Ends a dispute that nobody can win by its rules, because there is no trace of the stage. For anybody.
    /// @param id The dispute.
    /// @param plan The bytes of the session's plan.
    /// @param gap What shows it.
    function abandon(bytes32 id, bytes calldata plan, Gap calldata gap) external {
        Game storage game = _games[id];
        if (game.turn == Turn.None) revert NotYourTurn(id, Turn.None);
        if (keccak256(plan) != game.plan) revert Mismatch();
        if (!JUDGE.untraceable(plan, game.number, _stages[id].to, gap)) revert Traceable(id);
        (address outcome, bytes32 caseId) = _end(id);
        emit DisputeAbandoned(id);
        IDisputeOutcome(outcome).abandoned(caseId);
    }

    /// The word in question, and what the accused says it is.
    function _claimed(Game storage game, Stage memory stage, bytes calldata piece, uint256 offset)
        private
        view
        returns (Place memory place, uint32 claimed)
    {
        if (game.level >= SENT) {
            if (offset >= 256) revert OutOfRange();
            place = Place(
                uint256(stage.layers) + 1, OPERATION_OUT, game.index, (game.level - SENT) * 256 + offset
            );
            return (place, TraceTree.element(piece, offset));
        }
        if (offset >= TraceTree.PIECE_WORDS) revert OutOfRange();
        place = TraceTree.place(stage, game.index);
        // A slot past the last is no row that was sent.
        if (place.slot > stage.layers) place.slot = type(uint256).max;
        place.word += offset;
        if (piece.length != 0) claimed = TraceTree.word(piece, offset);
    }

    /// Whether roots are those that the accused has sealed.
    function _isSealed(Game storage game, bytes32[] calldata roots) private view returns (bool) {
        return keccak256(bytes.concat(TraceTree.list(roots))) == game.sealedRoots;
    }

    /// The leaf of a row that was sent.
    function _row(Stage memory stage, uint256 position, bytes32 row) private pure returns (bytes32) {
        bytes4 layer = bytes4(stage.first + stage.layers);
        return keccak256(bytes.concat(ROW_DOMAIN, stage.model, layer, bytes4(uint32(position)), row));
    }

    /// Pieces of a row that was sent.
    function _pieces(uint256 hidden) private pure returns (uint256) {
        return (2 * hidden + TraceTree.PIECE_BYTES - 1) / TraceTree.PIECE_BYTES;
    }

    function _stride(uint256 level) private pure returns (uint256) {
        return level < STRIDE ? level : STRIDE;
    }

    function _isAccusers(Turn turn) private pure returns (bool) {
        return turn == Turn.Choose || turn == Turn.Row || turn == Turn.ChoosePiece || turn == Turn.Prove;
    }

    /// The dispute, if it is the sender's turn to do this as the accused; its clock stands.
    function _accused(bytes32 id, Turn turn) private returns (Game storage game) {
        game = _games[id];
        if (game.turn != turn || msg.sender != game.accused) revert NotYourTurn(id, game.turn);
        game.accusedLeft = _left(id, game.accusedLeft, game.moved);
        game.moved = uint40(block.timestamp);
    }

    /// The dispute, if it is the sender's turn to do this as the accuser; its clock stands.
    function _accuser(bytes32 id, Turn turn) private returns (Game storage game) {
        game = _games[id];
        if (game.turn != turn || msg.sender != game.accuser) revert NotYourTurn(id, game.turn);
        game.accuserLeft = _left(id, game.accuserLeft, game.moved);
        game.moved = uint40(block.timestamp);
    }

    function _left(bytes32 id, uint40 left, uint40 moved) private view returns (uint40) {
        uint256 used = block.timestamp - moved;
        if (used > left) revert TooLate(id);
        return uint40(left - used);
    }

    function _resolve(bytes32 id, bool accusedWon, bool silence) private {
        (address outcome, bytes32 caseId) = _end(id);
        emit DisputeResolved(id, accusedWon, silence);
        IDisputeOutcome(outcome).resolved(caseId, accusedWon);
    }

    /// Forgets a dispute; who is told, and its number there.
    function _end(bytes32 id) private returns (address outcome, bytes32 caseId) {
        (outcome, caseId) = (_games[id].outcome, _games[id].caseId);
        delete _games[id];
        delete _stages[id];
    }
}
