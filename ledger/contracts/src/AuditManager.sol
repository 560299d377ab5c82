// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {AuditorSet} from "./AuditorSet.sol";
import {IBeacon} from "./IBeacon.sol";
import {Chunk, IDisputeGame, IDisputeOutcome} from "./IDisputeGame.sol";
import {StakeManager} from "./StakeManager.sol";
import {Auditor, Draw} from "./lib/Draw.sol";
import {Merkle} from "./lib/Merkle.sol";
import {Roles} from "./lib/Roles.sol";
import {TokenIn} from "./lib/TokenIn.sol";
import {Tree} from "./lib/Tree.sol";

/// @title Audits of what nodes committed to
/// @notice In every epoch a node posts one root over its commitments. A beacon made after the epoch draws some of
/// them; the node opens those, or is slashed. An auditor drawn by stake computes the chunk again and answers
/// blindly: what the node committed to is known to it as a hash of a hash alone, so that "equal" can only be
/// said by who has the result. Different answers bring a second auditor, then a verdict, which the losing side may
/// dispute; both sides then put up a bond, and the game finds out who is right.
///
/// All amounts are in the token's smallest unit, all times in seconds since 1970. Nothing here is owned, paused
/// or changed after the deployment, so no open case changes under anybody.
contract AuditManager is IDisputeOutcome, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;
    using TokenIn for IERC20;

    /// @notice What is fixed when the contract is deployed. Rates are in units of 2^-32, parts of stake in basis
    /// points.
    /// @param auditors Who can be drawn; counts the epochs. This contract is slasher of nodes and auditors in
    /// its StakeManager.
    /// @param beacon Draws.
    /// @param game Settles disputes. Without one nobody can defend itself, so nobody is slashed for what it
    /// computed.
    /// @param beaconDelay An epoch's beacon is the first round made so long after its end.
    /// @param drawWindow How long after an epoch's end its leaves can be drawn.
    /// @param openWindow How long a node has to open a drawn leaf.
    /// @param answerWindow How long each step of an auditor may take.
    /// @param disputeWindow How long a verdict can be disputed, the other side has to match the bond, and a
    /// planted fault can be shown after a case is closed.
    /// @param strikeWindow Mismatches further apart are isolated.
    /// @param promptRate How often a new node's chunks of prompts are drawn.
    /// @param replyRate The same for chunks of replies.
    /// @param rateFloor One part of so many is left of a rate after a long honest history.
    /// @param rateHalfLife Audits passed that halve what is above that.
    /// @param minNodeStake Least active stake of who posts.
    /// @param disputeBond What each side of a dispute puts up.
    /// @param silentBps Taken of a node that does not open a drawn leaf.
    /// @param withheldBps Taken of a node that two auditors got no rows from.
    /// @param repeatBps Taken of a node for the second mismatch within the strike window.
    /// @param systematicBps Taken for further ones, and of a node that loses a dispute.
    /// @param lapseBps Taken of an auditor that is silent, or stands alone and does not defend its answer.
    /// @param missBps Taken of an auditor that confirms a planted fault, or loses a dispute.
    struct Config {
        AuditorSet auditors;
        IBeacon beacon;
        IDisputeGame game;
        uint40 beaconDelay;
        uint40 drawWindow;
        uint40 openWindow;
        uint40 answerWindow;
        uint40 disputeWindow;
        uint40 strikeWindow;
        uint32 promptRate;
        uint32 replyRate;
        uint32 rateFloor;
        uint32 rateHalfLife;
        uint128 minNodeStake;
        uint128 disputeBond;
        uint16 silentBps;
        uint16 withheldBps;
        uint16 repeatBps;
        uint16 systematicBps;
        uint16 lapseBps;
        uint16 missBps;
    }

    /// @notice Where a case is on its way.
    enum Stage {
        None,
        /// The node has to open the leaf.
        Opening,
        /// An auditor is to be drawn.
        Drawing,
        /// It has to commit to its answer.
        Committing,
        /// The first auditor has to say whether the answers are equal.
        Answering,
        /// Both auditors have to show their answers.
        Revealing,
        /// The verdict can be disputed.
        Deciding,
        /// The other side has to match the bond.
        Matching,
        /// The game runs.
        Disputed,
        Closed
    }

    /// @notice What came out, or will if nobody objects.
    enum Verdict {
        None,
        /// The node computed right.
        Passed,
        /// The node did not open the leaf.
        Silent,
        /// Two auditors got no rows.
        Withheld,
        /// The node computed wrong.
        Faulty,
        /// The node had planted a fault, and shown it.
        Planted,
        /// Nobody answered for long enough, or the game could not decide.
        Undecided
    }

    /// @notice How far an auditor is with its answer.
    enum Step {
        None,
        Drawn,
        Committed,
        /// It says that its result is another, and has not shown it yet.
        Differs,
        /// It has shown the node's result.
        Confirmed,
        /// It has shown another.
        Opposed,
        /// It got no rows.
        Unserved
    }

    /// @notice The commitments of one epoch. The rates are fixed with them, before the beacon is known.
    /// @param root Root of the `Tree` over the leaves.
    /// @param count How many leaves.
    /// @param prompts How many of them, the first ones, are of prompts; the rest is of replies.
    /// @param promptRate How often those are drawn.
    /// @param replyRate How often the rest is.
    struct Posted {
        bytes32 root;
        uint32 count;
        uint32 prompts;
        uint32 promptRate;
        uint32 replyRate;
    }

    /// @notice What audits have found of an account.
    /// @param passed Audits passed since the last mismatch.
    /// @param strikes Mismatches, each within the strike window of the one before.
    /// @param lastStrike When the last one was found.
    struct History {
        uint32 passed;
        uint32 strikes;
        uint40 lastStrike;
    }

    /// @notice An auditor's answer.
    /// @param auditor The auditor.
    /// @param step How far it is.
    /// @param value What it committed to, then what it showed.
    struct Answer {
        address auditor;
        Step step;
        bytes32 value;
    }

    /// @notice The audit of one leaf.
    /// @param account Whose leaf.
    /// @param deadline When the stage ends; of a closed case, until when a planted fault can be shown.
    /// @param stage Where it is on its way.
    /// @param verdict What came out, or will if nobody objects.
    /// @param draws How many auditors were drawn.
    /// @param opener Who began it.
    /// @param epoch The leaf's epoch.
    /// @param index The leaf's index.
    /// @param chunk Hash of what the leaf holds.
    /// @param challenger Who disputes the verdict.
    /// @param answers Of the first auditor and of the second.
    struct Case {
        address account;
        uint40 deadline;
        Stage stage;
        Verdict verdict;
        uint8 draws;
        address opener;
        uint32 epoch;
        uint32 index;
        bytes32 chunk;
        address challenger;
        Answer[2] answers;
    }

    /// @notice Most leaves of a root.
    uint32 public constant MAX_LEAVES = 1 << 24;
    /// @notice Most auditors drawn for one case.
    uint8 public constant MAX_DRAWS = 6;
    /// @notice How long after a game's longest time it counts as broken.
    uint40 public constant GAME_MARGIN = 1 days;
    uint256 private constant BPS = 10_000;
    bytes private constant PLANT_DOMAIN = "dolphin/plant/1";

    /// @notice Who can be drawn.
    AuditorSet public immutable auditors;
    /// @notice Holds the stakes.
    StakeManager public immutable stake;
    /// @notice Length of an epoch.
    uint40 public immutable epochLength;
    /// @notice The token of bonds.
    IERC20 public immutable token;
    /// @notice Draws.
    IBeacon public immutable beacon;
    /// @notice Settles disputes, if there is one.
    IDisputeGame public immutable game;
    /// @notice Longest time that a game takes.
    uint40 public immutable longestGame;
    /// @notice Longest time from a case's beginning to its end, if everybody acts as soon as they may.
    uint40 public immutable longestCase;
    /// @notice An epoch's beacon is the first round made so long after its end.
    uint40 public immutable beaconDelay;
    /// @notice How long after an epoch's end its leaves can be drawn.
    uint40 public immutable drawWindow;
    /// @notice How long a node has to open a drawn leaf.
    uint40 public immutable openWindow;
    /// @notice How long each step of an auditor may take.
    uint40 public immutable answerWindow;
    /// @notice How long a verdict can be disputed.
    uint40 public immutable disputeWindow;
    /// @notice Mismatches further apart are isolated.
    uint40 public immutable strikeWindow;
    /// @notice How often a new node's chunks of prompts are drawn, in units of 2^-32.
    uint32 public immutable promptRate;
    /// @notice The same for chunks of replies.
    uint32 public immutable replyRate;
    /// @notice One part of so many is left of a rate after a long honest history.
    uint32 public immutable rateFloor;
    /// @notice Audits passed that halve what is above that.
    uint32 public immutable rateHalfLife;
    /// @notice Least active stake of who posts.
    uint128 public immutable minNodeStake;
    /// @notice What each side of a dispute puts up.
    uint128 public immutable disputeBond;
    /// @notice Part of stake taken of a node that does not open a drawn leaf.
    uint16 public immutable silentBps;
    /// @notice Part taken of a node that two auditors got no rows from.
    uint16 public immutable withheldBps;
    /// @notice Part taken of a node for the second mismatch within the strike window.
    uint16 public immutable repeatBps;
    /// @notice Part taken for further ones, and of a node that loses a dispute.
    uint16 public immutable systematicBps;
    /// @notice Part taken of an auditor that is silent, or does not defend its answer.
    uint16 public immutable lapseBps;
    /// @notice Part taken of an auditor that confirms a planted fault, or loses a dispute.
    uint16 public immutable missBps;

    /// @notice What accounts have posted.
    mapping(address account => mapping(uint256 epoch => Posted)) public posted;
    /// @notice What audits have found.
    mapping(address account => History) public histories;
    /// @notice The case in which an account has opened a commitment; a commitment is opened once.
    mapping(address account => mapping(bytes32 commitment => bytes32)) public openedIn;
    /// @notice Bonds and rewards of disputes, to be claimed.
    mapping(address account => uint256) public claimable;
    mapping(bytes32 id => Case) private _cases;

    /// @notice An account has posted the root of an epoch.
    event CommitmentsPosted(
        address indexed account, uint256 indexed epoch, bytes32 root, uint32 count, uint32 prompts
    );
    /// @notice A leaf was drawn, and its account has to open it.
    event LeafDrawn(bytes32 indexed id, address indexed account, uint32 epoch, uint32 index, uint40 deadline);
    /// @notice A drawn leaf was opened.
    event LeafOpened(bytes32 indexed id, address indexed account, Chunk chunk);
    /// @notice An auditor was drawn, and has to commit to its answer. Zero where nobody is left to draw: then the
    /// first auditor, whose result is another than the node's, has to show it.
    event AuditorDrawn(bytes32 indexed id, address indexed auditor, uint40 deadline);
    /// @notice An auditor has committed to its answer.
    event AnswerCommitted(bytes32 indexed id, address indexed auditor, bytes32 answer);
    /// @notice The first auditor has another result.
    event AnswerDiffers(bytes32 indexed id, address indexed auditor);
    /// @notice An auditor has shown its result; zero if it got no rows.
    event AnswerRevealed(bytes32 indexed id, address indexed auditor, bytes32 roots);
    /// @notice What will come out if nobody objects in time.
    event Decided(bytes32 indexed id, Verdict verdict, uint40 deadline);
    /// @notice Somebody disputes the verdict, and the other side has to match its bond.
    event DisputeAsked(bytes32 indexed id, address indexed challenger, uint40 deadline);
    /// @notice Both sides have put up bonds, and the game runs.
    event DisputeOpened(bytes32 indexed id, address indexed accused, address indexed accuser);
    /// @notice A case is over.
    event CaseClosed(bytes32 indexed id, address indexed account, Verdict verdict);
    /// @notice The chunk is not to be paid.
    event PayForfeited(bytes32 indexed id, address indexed account);
    /// @notice The account should check itself against known results before it serves again.
    event SelfTestDue(address indexed account, uint32 strikes);
    /// @notice Stake was taken, as far as there was any and the cap allowed.
    event Penalised(bytes32 indexed id, address indexed operator, uint32 role, uint128 taken);
    /// @notice Bonds and rewards were paid out.
    event BondsClaimed(address indexed account, uint256 amount);

    /// @notice A parameter of the deployment is out of its bounds.
    error BadConfig();
    /// @notice The root has no leaves, too many, or more of prompts than there are.
    error BadCount(uint32 count, uint32 prompts);
    /// @notice The account has posted this epoch's root.
    error AlreadyPosted(uint256 epoch);
    /// @notice The account has not enough active stake to post.
    error TooLittleStake(uint256 stake, uint256 least);
    /// @notice There is no such leaf.
    error NoSuchLeaf(address account, uint256 epoch, uint256 index);
    /// @notice The epoch's round of the beacon was not submitted, or not made yet.
    error NoBeacon(uint64 round);
    /// @notice The beacon did not draw the leaf.
    error NotDrawn(bytes32 id);
    /// @notice The leaf was drawn before.
    error AlreadyDrawn(bytes32 id);
    /// @notice The window has passed.
    error TooLate(uint256 deadline);
    /// @notice The window has not passed.
    error TooEarly(uint256 deadline);
    /// @notice The proof does not lead from the leaf to the root.
    error BadProof();
    /// @notice The commitment was opened in another case.
    error Replayed(bytes32 id);
    /// @notice The case is not at the stage for this.
    error WrongStage(Stage stage);
    /// @notice The list is not that of the epoch before.
    error WrongList(uint256 epoch);
    /// @notice It is somebody else's turn.
    error NotYours(address caller);
    /// @notice The answer is not what was committed to.
    error WrongAnswer();
    /// @notice The result is another than the node's: say that it differs, and show it later.
    error AnswersDiffer();
    /// @notice What was shown is not what the case is about.
    error WrongChunk();
    /// @notice The fault was not planted.
    error NotPlanted();
    /// @notice There is nothing to dispute, or no game for it.
    error NoDispute();
    /// @notice There is nothing to claim.
    error NothingToClaim();
    /// @notice The transaction has too little gas to tell whether stake can be taken.
    error TooLittleGas();

    /// @param c Everything that is fixed from now on.
    constructor(Config memory c) {
        uint40 longest = address(c.game) == address(0) ? 0 : c.game.longest();
        uint256 whole = c.openWindow + (3 * uint256(MAX_DRAWS) + 1) * c.answerWindow + 2
            * uint256(c.disputeWindow) + longest + GAME_MARGIN;
        stake = c.auditors.stake();
        epochLength = c.auditors.epochLength();
        uint256 thaw = stake.thawPeriod();
        // Stake that is held from the posting of a root on outlasts every case of it, and stake that was listed
        // outlasts whatever it may be drawn for.
        if (
            address(c.beacon) == address(0) || c.openWindow == 0 || c.answerWindow == 0
                || c.disputeWindow == 0 || c.rateFloor == 0 || c.rateHalfLife == 0 || c.disputeBond == 0
                || c.minNodeStake == 0 || 2 * uint256(epochLength) + c.drawWindow + whole > thaw
                || c.drawWindow <= c.beaconDelay || c.silentBps > BPS || c.withheldBps > BPS
                || c.repeatBps > BPS || c.systematicBps > BPS || c.lapseBps > BPS || c.missBps > BPS
        ) revert BadConfig();
        (auditors, token) = (c.auditors, stake.token());
        (beacon, game, longestGame, longestCase) = (c.beacon, c.game, longest, uint40(whole));
        (beaconDelay, drawWindow, openWindow) = (c.beaconDelay, c.drawWindow, c.openWindow);
        (answerWindow, disputeWindow, strikeWindow) = (c.answerWindow, c.disputeWindow, c.strikeWindow);
        (promptRate, replyRate) = (c.promptRate, c.replyRate);
        (rateFloor, rateHalfLife) = (c.rateFloor, c.rateHalfLife);
        (minNodeStake, disputeBond) = (c.minNodeStake, c.disputeBond);
        (silentBps, withheldBps, repeatBps) = (c.silentBps, c.withheldBps, c.repeatBps);
        (systematicBps, lapseBps, missBps) = (c.systematicBps, c.lapseBps, c.missBps);
    }

    // What nodes commit to

    /// @notice Posts the root over the caller's commitments of the epoch that runs, once. Its stake is held
    /// until the last audit of the epoch is over.
    /// @param root Root of the `Tree` over the leaves.
    /// @param count How many leaves.
    /// @param prompts How many of them, the first ones, are of prompts.
    function post(bytes32 root, uint32 count, uint32 prompts) external {
        uint256 epoch = auditors.currentEpoch();
        Posted storage entry = posted[msg.sender][epoch];
        if (entry.count != 0) revert AlreadyPosted(epoch);
        if (count == 0 || count > MAX_LEAVES || prompts > count) revert BadCount(count, prompts);
        uint256 active = stake.poolOf(msg.sender, Roles.NODE).active.tokens;
        if (active < minNodeStake) revert TooLittleStake(active, minNodeStake);
        uint32 passed = histories[msg.sender].passed;
        posted[msg.sender][epoch] = Posted({
            root: root,
            count: count,
            prompts: prompts,
            promptRate: Draw.rateOf(promptRate, rateFloor, rateHalfLife, passed),
            replyRate: Draw.rateOf(replyRate, rateFloor, rateHalfLife, passed)
        });
        emit CommitmentsPosted(msg.sender, epoch, root, count, prompts);
        stake.hold(msg.sender, Roles.NODE, uint40(_lastDraw(epoch)) + longestCase);
    }

    /// @notice Calls for a leaf that the beacon has drawn. Anybody may; if the leaf is not opened, it is the
    /// reporter.
    /// @param account Whose leaf.
    /// @param epoch The leaf's epoch.
    /// @param index The leaf's index.
    /// @return id The case's number.
    function draw(address account, uint32 epoch, uint32 index) public returns (bytes32 id) {
        uint256 last = _lastDraw(epoch);
        if (block.timestamp > last) revert TooLate(last);
        uint32 rate;
        (id, rate) = _leaf(account, epoch, index);
        if (!Draw.isDrawn(_beaconOf(epoch), id, rate)) revert NotDrawn(id);
        Case storage c = _cases[id];
        if (c.stage != Stage.None) revert AlreadyDrawn(id);
        (c.account, c.opener, c.epoch, c.index) = (account, msg.sender, epoch, index);
        _enter(c, Stage.Opening, openWindow);
        emit LeafDrawn(id, account, epoch, index, c.deadline);
    }

    /// @notice Opens a drawn leaf. Anybody may who has it.
    /// @param account Whose leaf.
    /// @param epoch The leaf's epoch.
    /// @param index The leaf's index.
    /// @param chunk What the leaf holds.
    /// @param proof From the leaf to the root.
    /// @return id The case's number.
    function open(address account, uint32 epoch, uint32 index, Chunk calldata chunk, bytes32[] calldata proof)
        external
        returns (bytes32 id)
    {
        (id,) = _leaf(account, epoch, index);
        Case storage c = _cases[id];
        if (c.stage == Stage.None) draw(account, epoch, index);
        _at(c, Stage.Opening);
        Posted storage entry = posted[account][epoch];
        if (!Tree.holds(entry.root, entry.count, index, leafOf(account, chunk), proof)) revert BadProof();
        bytes32 before = openedIn[account][chunk.commitment];
        if (before != 0) revert Replayed(before);
        openedIn[account][chunk.commitment] = id;
        c.chunk = keccak256(abi.encode(chunk));
        _enter(c, Stage.Drawing, answerWindow);
        emit LeafOpened(id, account, chunk);
    }

    // What auditors answer

    /// @notice Draws the next auditor of a case. Anybody may.
    /// @param id The case.
    /// @param list The auditors as listed in the epoch before the leaf's.
    function assign(bytes32 id, Auditor[] calldata list) external {
        Case storage c = _cases[id];
        _at(c, Stage.Drawing);
        if (keccak256(abi.encode(list)) != auditors.snapshots(c.epoch - 1)) revert WrongList(c.epoch - 1);
        address auditor = Draw.auditorOf(_beaconOf(c.epoch), id, list, c.account, c.draws);
        if (auditor == address(0)) return _endDrawing(id, c);
        ++c.draws;
        c.answers[_turn(c)] = Answer(auditor, Step.Drawn, 0);
        _enter(c, Stage.Committing, answerWindow);
        emit AuditorDrawn(id, auditor, c.deadline);
        stake.hold(auditor, Roles.AUDITOR, uint40(block.timestamp) + longestCase);
    }

    /// @notice Commits the caller to its answer, blindly.
    /// @param id The case.
    /// @param answer `answerOf` its result.
    function commit(bytes32 id, bytes32 answer) external {
        Case storage c = _cases[id];
        _at(c, Stage.Committing);
        uint256 turn = _turn(c);
        Answer storage own = c.answers[turn];
        if (own.auditor != msg.sender) revert NotYours(msg.sender);
        (own.step, own.value) = (Step.Committed, answer);
        _enter(c, turn == 0 ? Stage.Answering : Stage.Revealing, answerWindow);
        emit AnswerCommitted(id, msg.sender, answer);
    }

    /// @notice Says that the first auditor's result is not the node's. It stays sealed until the second
    /// auditor has answered, too.
    /// @param id The case.
    function differ(bytes32 id) external {
        Case storage c = _cases[id];
        _at(c, Stage.Answering);
        if (c.answers[0].auditor != msg.sender) revert NotYours(msg.sender);
        c.answers[0].step = Step.Differs;
        _enter(c, Stage.Drawing, answerWindow);
        emit AnswerDiffers(id, msg.sender);
    }

    /// @notice Shows the caller's result: the first auditor's, if it is the node's; both auditors', if the
    /// first one's was not.
    /// @param id The case.
    /// @param chunk What the leaf holds.
    /// @param roots The result, as it was committed to; zero if the node handed no rows over.
    /// @param salt The salt, as it was committed to.
    function reveal(bytes32 id, Chunk calldata chunk, bytes32 roots, bytes32 salt) external {
        Case storage c = _cases[id];
        _check(c, chunk);
        bool isFirst = c.stage == Stage.Answering;
        _at(c, isFirst ? Stage.Answering : Stage.Revealing);
        Answer storage own = c.answers[!isFirst && c.answers[1].auditor == msg.sender ? 1 : 0];
        if (own.auditor != msg.sender || own.step > Step.Differs) revert NotYours(msg.sender);
        if (own.value != answerOf(id, msg.sender, roots, salt)) revert WrongAnswer();
        bool isEqual = roots != 0 && keccak256(abi.encode(roots)) == chunk.sealedRoots;
        if (isFirst && !isEqual) revert AnswersDiffer();
        own.step = isEqual ? Step.Confirmed : roots == 0 ? Step.Unserved : Step.Opposed;
        own.value = roots;
        emit AnswerRevealed(id, msg.sender, roots);
        if (isFirst) _pass(id, c);
        else if (c.answers[0].step > Step.Differs && c.answers[1].step > Step.Differs) _decide(id, c);
    }

    // What comes of silence

    /// @notice Goes on with a case whose deadline has passed. Anybody may.
    /// @param id The case.
    function timeOut(bytes32 id) external {
        Case storage c = _cases[id];
        Stage stage_ = c.stage;
        if (stage_ == Stage.None || stage_ == Stage.Closed) revert WrongStage(stage_);
        if (block.timestamp <= c.deadline) revert TooEarly(c.deadline);
        if (stage_ == Stage.Opening) _silent(id, c);
        else if (stage_ == Stage.Drawing) _close(id, c, Verdict.Undecided);
        else if (stage_ == Stage.Committing || stage_ == Stage.Answering) _lapse(id, c);
        else if (stage_ == Stage.Revealing) _decide(id, c);
        else if (stage_ == Stage.Deciding) _conclude(id, c);
        else if (stage_ == Stage.Matching) _settle(id, c, c.challenger == c.account, false);
        else _abandon(id, c);
    }

    // Planted faults

    /// @notice Shows that a fault was planted: the node's "result" was made of a salt, so that only who did not
    /// compute can have confirmed it. Who confirmed it is slashed, with the node as the reporter; the node is
    /// free.
    /// @param id The case: with a verdict that is not final, or passed a short while ago.
    /// @param chunk What the leaf holds.
    /// @param salt What the fault was made of.
    function showPlant(bytes32 id, Chunk calldata chunk, bytes32 salt) external {
        Case storage c = _cases[id];
        _check(c, chunk);
        if (chunk.sealedRoots != plantOf(c.account, salt)) revert NotPlanted();
        bool isOver = c.stage == Stage.Closed && c.verdict == Verdict.Passed;
        if (!isOver && c.stage != Stage.Deciding && c.stage != Stage.Matching) revert WrongStage(c.stage);
        if (block.timestamp > c.deadline) revert TooLate(c.deadline);
        if (c.stage == Stage.Matching) claimable[c.challenger] += disputeBond;
        // What an audit of a planted fault has passed says nothing.
        if (isOver && histories[c.account].passed != 0) --histories[c.account].passed;
        _close(id, c, Verdict.Planted);
        _slashAuditors(id, c, Step.Confirmed, Step.Confirmed, missBps, c.account);
    }

    // Disputes

    /// @notice Disputes a verdict, with a bond: the node one against it, an auditor one against its answer.
    /// @param id The case.
    function dispute(bytes32 id) external nonReentrant {
        Case storage c = _cases[id];
        _at(c, Stage.Deciding);
        if (address(game) == address(0)) revert NoDispute();
        bool isTheirs = c.verdict == Verdict.Faulty ? msg.sender == c.account : _opposes(c, msg.sender);
        if (!isTheirs) revert NotYours(msg.sender);
        c.challenger = msg.sender;
        _enter(c, Stage.Matching, disputeWindow);
        emit DisputeAsked(id, msg.sender, c.deadline);
        uint40 until = c.deadline + longestGame + GAME_MARGIN;
        stake.hold(c.account, Roles.NODE, until);
        for (uint256 i = 0; i < 2; ++i) {
            address auditor = c.answers[i].auditor;
            if (auditor != address(0)) stake.hold(auditor, Roles.AUDITOR, until);
        }
        token.take(msg.sender, disputeBond);
    }

    /// @notice Matches the bond of who disputes, and begins the game between the node and an auditor with
    /// another result.
    /// @param id The case.
    /// @param chunk What the leaf holds.
    function matchBond(bytes32 id, Chunk calldata chunk) external nonReentrant {
        Case storage c = _cases[id];
        _at(c, Stage.Matching);
        _check(c, chunk);
        bool isAccused = c.challenger == c.account;
        if (isAccused ? !_opposes(c, msg.sender) : msg.sender != c.account) revert NotYours(msg.sender);
        address accuser = isAccused ? msg.sender : c.challenger;
        // From now on the accuser is the first of the two.
        if (c.answers[0].auditor != accuser) {
            Answer memory first = c.answers[0];
            c.answers[0] = c.answers[1];
            c.answers[1] = first;
        }
        _enter(c, Stage.Disputed, longestGame + GAME_MARGIN);
        emit DisputeOpened(id, c.account, accuser);
        token.take(msg.sender, disputeBond);
        game.open(id, c.account, accuser, c.answers[0].value, chunk);
    }

    /// @inheritdoc IDisputeOutcome
    function resolved(bytes32 caseId, bool accusedWon) external {
        _settle(caseId, _ended(caseId), accusedWon, true);
    }

    /// @inheritdoc IDisputeOutcome
    function abandoned(bytes32 caseId) external {
        _abandon(caseId, _ended(caseId));
    }

    /// @notice Pays out the caller's bonds and rewards.
    /// @return amount How much.
    function claim() external nonReentrant returns (uint256 amount) {
        amount = claimable[msg.sender];
        if (amount == 0) revert NothingToClaim();
        claimable[msg.sender] = 0;
        emit BondsClaimed(msg.sender, amount);
        token.safeTransfer(msg.sender, amount);
    }

    // Reading

    /// @notice A case.
    /// @param id Its number.
    /// @return The case; all zero if there is none.
    function caseOf(bytes32 id) external view returns (Case memory) {
        return _cases[id];
    }

    /// @notice The number of a leaf's case, and how likely it is drawn.
    /// @param account Whose leaf.
    /// @param epoch Its epoch.
    /// @param index Its index.
    /// @return id The number; it is also what the beacon draws.
    /// @return rate In units of 2^-32.
    function leafCase(address account, uint32 epoch, uint32 index)
        external
        view
        returns (bytes32 id, uint32 rate)
    {
        return _leaf(account, epoch, index);
    }

    /// @notice The round that draws of an epoch's leaves.
    /// @param epoch The epoch.
    /// @return The round.
    function roundOf(uint256 epoch) public view returns (uint64) {
        return beacon.roundAfter((epoch + 1) * epochLength + beaconDelay);
    }

    /// @notice A leaf of a root.
    /// @param account Who posts the root.
    /// @param chunk What the leaf holds.
    /// @return The leaf.
    function leafOf(address account, Chunk calldata chunk) public pure returns (bytes32) {
        return Merkle.leaf(abi.encode(account, chunk));
    }

    /// @notice What an auditor commits to.
    /// @param id The case.
    /// @param auditor The auditor.
    /// @param roots Its result.
    /// @param salt Something that nobody can guess.
    /// @return The answer.
    function answerOf(bytes32 id, address auditor, bytes32 roots, bytes32 salt)
        public
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(id, roots, auditor, salt));
    }

    /// @notice What a node commits to that plants a fault. No result is hashed like this.
    /// @param account The node's account.
    /// @param salt Something that nobody can guess.
    /// @return The sealed roots.
    function plantOf(address account, bytes32 salt) public pure returns (bytes32) {
        return keccak256(abi.encode(keccak256(abi.encodePacked(PLANT_DOMAIN, account, salt))));
    }

    // Going on

    function _enter(Case storage c, Stage stage_, uint40 window) private {
        (c.stage, c.deadline) = (stage_, uint40(block.timestamp) + window);
    }

    function _close(bytes32 id, Case storage c, Verdict verdict) private {
        c.verdict = verdict;
        _enter(c, Stage.Closed, disputeWindow);
        emit CaseClosed(id, c.account, verdict);
    }

    function _pass(bytes32 id, Case storage c) private {
        ++histories[c.account].passed;
        _close(id, c, Verdict.Passed);
    }

    function _silent(bytes32 id, Case storage c) private {
        histories[c.account].passed = 0;
        _close(id, c, Verdict.Silent);
        _slash(id, c.account, Roles.NODE, silentBps, c.opener);
    }

    /// Another auditor is drawn, if there were not too many.
    function _lapse(bytes32 id, Case storage c) private {
        Answer storage own = c.answers[_turn(c)];
        address auditor = own.auditor;
        (own.auditor, own.step, own.value) = (address(0), Step.None, 0);
        if (c.draws == MAX_DRAWS) _endDrawing(id, c);
        else _enter(c, Stage.Drawing, answerWindow);
        _slash(id, auditor, Roles.AUDITOR, lapseBps, address(0));
    }

    /// Nobody is left to draw. What a first auditor has found is shown all the same: silence of all others does
    /// not make it unsaid.
    function _endDrawing(bytes32 id, Case storage c) private {
        if (c.answers[0].step != Step.Differs) return _close(id, c, Verdict.Undecided);
        _enter(c, Stage.Revealing, answerWindow);
        emit AuditorDrawn(id, address(0), c.deadline);
    }

    /// Both auditors have shown what they have, or their time is over. Another result than the node's stands,
    /// whatever comes of the other auditor.
    function _decide(bytes32 id, Case storage c) private {
        (Step first, Step second) = (c.answers[0].step, c.answers[1].step);
        bool isConfirmed = first == Step.Confirmed || second == Step.Confirmed;
        if (first == Step.Opposed || second == Step.Opposed) {
            c.verdict = isConfirmed ? Verdict.Passed : Verdict.Faulty;
            _enter(c, Stage.Deciding, disputeWindow);
            emit Decided(id, c.verdict, c.deadline);
        } else if (isConfirmed) {
            _pass(id, c);
        } else if (first == Step.Unserved && second == Step.Unserved) {
            histories[c.account].passed = 0;
            _close(id, c, Verdict.Withheld);
            emit PayForfeited(id, c.account);
            // Nobody gains by saying so, since nobody can prove it.
            _slash(id, c.account, Roles.NODE, withheldBps, address(0));
        } else {
            _close(id, c, Verdict.Undecided);
        }
        _slashAuditors(id, c, Step.Committed, Step.Differs, lapseBps, address(0));
    }

    /// Nobody has disputed the verdict.
    function _conclude(bytes32 id, Case storage c) private {
        bool isDisputable = address(game) != address(0);
        if (c.verdict == Verdict.Faulty) {
            uint32 strikes = _fail(id, c);
            uint16 bps = strikes == 1 ? 0 : strikes == 2 ? repeatBps : systematicBps;
            address accuser = c.answers[c.answers[0].step == Step.Opposed ? 0 : 1].auditor;
            if (isDisputable && bps != 0) _slash(id, c.account, Roles.NODE, bps, accuser);
        } else {
            _pass(id, c);
            if (isDisputable) _slashOpposed(id, c);
        }
    }

    /// A dispute is over: played, or one side has not matched the other's bond.
    function _settle(bytes32 id, Case storage c, bool accusedWon, bool isPlayed) private {
        address accuser = c.answers[0].auditor;
        if (isPlayed) {
            uint128 reward = disputeBond / 2;
            claimable[accusedWon ? c.account : accuser] += uint256(disputeBond) + reward;
            claimable[stake.treasury()] += disputeBond - reward;
        } else {
            claimable[c.challenger] += disputeBond;
        }
        if (accusedWon) {
            _pass(id, c);
            if (isPlayed) _slash(id, accuser, Roles.AUDITOR, missBps, c.account);
            else _slashOpposed(id, c);
        } else {
            // slither-disable-next-line unused-return
            _fail(id, c);
            _slash(id, c.account, Roles.NODE, systematicBps, isPlayed ? accuser : c.challenger);
        }
    }

    /// The game cannot decide, or has not when it must have: everybody gets back what they put up.
    function _abandon(bytes32 id, Case storage c) private {
        claimable[c.account] += disputeBond;
        claimable[c.answers[0].auditor] += disputeBond;
        _close(id, c, Verdict.Undecided);
    }

    function _fail(bytes32 id, Case storage c) private returns (uint32 strikes) {
        History storage history = histories[c.account];
        bool isIsolated = block.timestamp > uint256(history.lastStrike) + strikeWindow;
        strikes = isIsolated ? 1 : history.strikes + 1;
        (history.passed, history.strikes, history.lastStrike) = (0, strikes, uint40(block.timestamp));
        _close(id, c, Verdict.Faulty);
        emit PayForfeited(id, c.account);
        emit SelfTestDue(c.account, strikes);
    }

    function _slashOpposed(bytes32 id, Case storage c) private {
        _slashAuditors(id, c, Step.Opposed, Step.Opposed, lapseBps, address(0));
    }

    /// Takes of the auditors that have come so far with their answers, and not further.
    function _slashAuditors(bytes32 id, Case storage c, Step from, Step to, uint16 bps, address reporter)
        private
    {
        for (uint256 i = 0; i < 2; ++i) {
            Answer storage own = c.answers[i];
            if (own.step >= from && own.step <= to) _slash(id, own.auditor, Roles.AUDITOR, bps, reporter);
        }
    }

    /// Takes a part of what stands behind a role, as far as the cap allows: a case goes on without it.
    function _slash(bytes32 id, address operator, uint32 role, uint16 bps, address reporter) private {
        StakeManager.Pool memory pool = stake.poolOf(operator, role);
        uint128 amount = uint128((uint256(pool.active.tokens) + pool.thawing.tokens) * bps / BPS);
        uint128 taken = 0;
        try stake.slash(operator, role, amount, reporter) returns (uint128 done) {
            taken = done;
        } catch (bytes memory reason) {
            if (reason.length == 0) revert TooLittleGas();
        }
        emit Penalised(id, operator, role, taken);
    }

    // Checking

    function _at(Case storage c, Stage stage_) private view {
        if (c.stage != stage_) revert WrongStage(c.stage);
        if (block.timestamp > c.deadline) revert TooLate(c.deadline);
    }

    /// The case whose game says that it is over.
    function _ended(bytes32 id) private view returns (Case storage c) {
        if (msg.sender != address(game)) revert NotYours(msg.sender);
        c = _cases[id];
        if (c.stage != Stage.Disputed) revert WrongStage(c.stage);
    }

    function _check(Case storage c, Chunk calldata chunk) private view {
        if (c.chunk != keccak256(abi.encode(chunk))) revert WrongChunk();
    }

    /// Whose answer is awaited: the second auditor's once the first one differs.
    function _turn(Case storage c) private view returns (uint256) {
        return c.answers[0].step == Step.Differs ? 1 : 0;
    }

    function _opposes(Case storage c, address who) private view returns (bool) {
        for (uint256 i = 0; i < 2; ++i) {
            if (c.answers[i].auditor == who && c.answers[i].step == Step.Opposed) return true;
        }
        return false;
    }

    function _leaf(address account, uint32 epoch, uint32 index)
        private
        view
        returns (bytes32 id, uint32 rate)
    {
        Posted storage entry = posted[account][epoch];
        if (index >= entry.count) revert NoSuchLeaf(account, epoch, index);
        id = keccak256(abi.encode(block.chainid, address(this), account, epoch, entry.root, index));
        rate = index < entry.prompts ? entry.promptRate : entry.replyRate;
    }

    function _beaconOf(uint32 epoch) private view returns (bytes32 drawn) {
        uint64 round = roundOf(epoch);
        drawn = beacon.randomness(round);
        if (drawn == 0) revert NoBeacon(round);
    }

    function _lastDraw(uint256 epoch) private view returns (uint256) {
        return (epoch + 1) * epochLength + drawWindow;
    }
}
