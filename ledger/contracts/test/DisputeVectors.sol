// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {vm} from "../script/Vm.sol";
import {DisputeGame} from "../src/DisputeGame.sol";
import {Chunk, IDisputeOutcome} from "../src/IDisputeGame.sol";
import {IReferee} from "../src/IReferee.sol";
import {Int8Referee} from "../src/Int8Referee.sol";
import {TraceJudge} from "../src/TraceJudge.sol";

/// Remembers what it is told.
contract Outcome is IDisputeOutcome {
    uint256 public told;
    bytes32 public caseId;
    bool public accusedWon;
    bool public isAbandoned;

    function open(DisputeGame game, bytes32 id, address accused, address accuser, Chunk calldata chunk)
        external
    {
        game.open(id, accused, accuser, 0, chunk);
    }

    function resolved(bytes32 id, bool won) external {
        ++told;
        (caseId, accusedWon) = (id, won);
    }

    function abandoned(bytes32 id) external {
        ++told;
        (caseId, isAbandoned) = (id, true);
    }
}

/// Disputes that the crate played, read from ../vectors and played with the contracts.
abstract contract DisputeVectors {
    address internal constant ACCUSED = address(0xACC);
    address internal constant ACCUSER = address(0xCA11);
    /// Where the vectors have it.
    Outcome internal constant OUTCOME = Outcome(0x0C0c0C0c0c0c0c0c0c0c0C0C0C0c0c0C0c0c0c0c);
    uint40 internal constant CLOCK = 2 days;

    DisputeGame internal game;
    TraceJudge internal judge;
    string internal json;
    /// What the last `open` took, where calls are transactions.
    uint256 internal openGas;

    function setUpGame() internal {
        vm.etch(address(OUTCOME), type(Outcome).runtimeCode);
        judge = new TraceJudge(IReferee(address(new Int8Referee())));
        game = new DisputeGame(judge, CLOCK);
    }

    function caseKey(uint256 index, string memory name) internal pure returns (string memory) {
        return string.concat("[", vm.toString(index), "].", name);
    }

    function moveKey(uint256 index, uint256 move, string memory name) internal pure returns (string memory) {
        return string.concat(caseKey(index, "moves["), vm.toString(move), "].", name);
    }

    /// Opens a dispute; its id.
    function open(uint256 index) internal returns (bytes32) {
        Chunk memory chunk;
        chunk.model = vm.parseJsonBytes32(json, caseKey(index, "model"));
        chunk.plan = vm.parseJsonBytes32(json, caseKey(index, "plan"));
        chunk.inRoots = vm.parseJsonBytes32(json, caseKey(index, "inRoots"));
        chunk.sealedRoots = vm.parseJsonBytes32(json, caseKey(index, "sealedRoots"));
        chunk.stage = 1;
        chunk.to = uint32(vm.parseJsonUint(json, caseKey(index, "to")));
        bytes32 caseId = vm.parseJsonBytes32(json, caseKey(index, "caseId"));
        OUTCOME.open(game, caseId, ACCUSED, ACCUSER, chunk);
        openGas = vm.lastCallGas().gasTotalUsed;
        return game.idOf(address(OUTCOME), caseId);
    }

    function moves(uint256 index) internal view returns (uint256 count) {
        while (vm.keyExistsJson(json, moveKey(index, count, "call"))) ++count;
    }

    /// What a side sends.
    function call(uint256 index, uint256 move) internal view returns (address sender, bytes memory data) {
        sender = vm.parseJsonUint(json, moveKey(index, move, "accused")) == 1 ? ACCUSED : ACCUSER;
        data = vm.parseJsonBytes(json, moveKey(index, move, "call"));
    }

    /// Makes a move.
    function play(uint256 index, uint256 move) internal {
        (address sender, bytes memory data) = call(index, move);
        vm.prank(sender);
        (bool done, bytes memory reason) = address(game).call(data);
        if (!done) {
            assembly ("memory-safe") {
                revert(add(reason, 32), mload(reason))
            }
        }
    }
}
