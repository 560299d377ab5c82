// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IBeacon} from "./IBeacon.sol";
import {Bn254, G1, G2} from "./lib/Bn254.sol";

/// @title Verified rounds of a beacon
/// @notice Takes the rounds of one drand network with the scheme `bls-bn254-unchained-on-g1`: a round is the
/// network's BLS signature of its number, made at a time that the number says. The signature is unique, so
/// whoever submits it chooses nothing. A network of one key made locally has the same form.
///
/// Nothing here is owned or changes after the deployment.
contract Beacon is IBeacon {
    /// @notice What is fixed when the contract is deployed.
    /// @param key The network's public key.
    /// @param genesis When round 1 was made, in seconds since 1970.
    /// @param period From round to round, in seconds.
    struct Config {
        G2 key;
        uint64 genesis;
        uint64 period;
    }

    /// @notice Domain separation tag of the scheme.
    bytes public constant DST = "BLS_SIG_BN254G1_XMD:KECCAK-256_SVDW_RO_NUL_";

    /// @notice When round 1 was made.
    uint64 public immutable genesis;
    /// @notice From round to round, in seconds.
    uint64 public immutable period;
    uint256 private immutable _x1;
    uint256 private immutable _x0;
    uint256 private immutable _y1;
    uint256 private immutable _y0;

    /// @inheritdoc IBeacon
    mapping(uint64 round => bytes32) public randomness;

    /// @notice A round was submitted.
    event RoundSubmitted(uint64 indexed round, bytes32 randomness, address indexed submitter);

    /// @notice A parameter of the deployment is out of its bounds.
    error BadConfig();
    /// @notice The round was submitted before.
    error AlreadyKnown(uint64 round);
    /// @notice There is no such round yet.
    error NotYet(uint64 round);
    /// @notice The network did not sign this round so.
    error BadRound(uint64 round);

    /// @param config Everything that is fixed from now on.
    constructor(Config memory config) {
        if (config.genesis == 0 || config.period == 0 || !Bn254.isPoint2(config.key)) revert BadConfig();
        (genesis, period) = (config.genesis, config.period);
        (_x1, _x0) = (config.key.x1, config.key.x0);
        (_y1, _y0) = (config.key.y1, config.key.y0);
    }

    /// @notice Enters a round. Anybody may.
    /// @param round Its number, from 1 on.
    /// @param signature The network's signature, as drand publishes it: a point of G1, 64 bytes.
    /// @return drawn The round's randomness: sha256 of the signature, which drand publishes, too.
    function submit(uint64 round, bytes calldata signature) external returns (bytes32 drawn) {
        if (randomness[round] != 0) revert AlreadyKnown(round);
        if (round == 0 || timeOf(round) > block.timestamp) revert NotYet(round);
        if (signature.length != 64) revert BadRound(round);
        G1 memory point = abi.decode(signature, (G1));
        bytes32 message = keccak256(abi.encodePacked(round));
        if (!Bn254.verify(point, message, DST, G2(_x1, _x0, _y1, _y0))) revert BadRound(round);
        drawn = sha256(signature);
        randomness[round] = drawn;
        emit RoundSubmitted(round, drawn, msg.sender);
    }

    /// @notice When a round is made.
    /// @param round Its number, from 1 on.
    /// @return In seconds since 1970.
    function timeOf(uint64 round) public view returns (uint256) {
        return uint256(genesis) + (uint256(round) - 1) * period;
    }

    /// @inheritdoc IBeacon
    function roundAfter(uint256 time) external view returns (uint64) {
        if (time < genesis) return 1;
        // Rounds are fewer than seconds, and those fit for as long as anybody counts them.
        return uint64((time - genesis) / period + 2);
    }

    /// @notice The network's public key.
    /// @return The point of G2.
    function key() external view returns (G2 memory) {
        return G2(_x1, _x0, _y1, _y0);
    }
}
