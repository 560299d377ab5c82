// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IBeacon} from "../../src/IBeacon.sol";
import {Chunk, IDisputeGame, IDisputeOutcome} from "../../src/IDisputeGame.sol";

/// A round for every second; what it draws is told.
contract ToldBeacon is IBeacon {
    mapping(uint64 round => bytes32) public randomness;

    function tell(uint64 round, bytes32 value) external {
        randomness[round] = value;
    }

    function roundAfter(uint256 time) external pure returns (uint64) {
        return uint64(time + 1);
    }
}

/// A game whose outcome is told.
contract ToldGame is IDisputeGame {
    struct Opened {
        address opener;
        address accused;
        address accuser;
        bytes32 found;
        bytes32 chunk;
    }

    mapping(bytes32 id => Opened) public opened;

    function open(bytes32 id, address accused, address accuser, bytes32 found, Chunk calldata chunk)
        external
    {
        opened[id] = Opened(msg.sender, accused, accuser, found, keccak256(abi.encode(chunk)));
    }

    function longest() external pure returns (uint40) {
        return 3 days;
    }

    function tell(bytes32 id, bool accusedWon) external {
        IDisputeOutcome(opened[id].opener).resolved(id, accusedWon);
    }

    function abandon(bytes32 id) external {
        IDisputeOutcome(opened[id].opener).abandoned(id);
    }
}
