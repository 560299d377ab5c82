// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {StakeManager} from "./StakeManager.sol";
import {Auditor} from "./lib/Draw.sol";
import {Roles} from "./lib/Roles.sol";

/// @title Who can be asked to audit
/// @notice Auditors enter themselves with enough active stake behind their role. Once in an epoch anybody has
/// their stakes written down, as the hash of a list that the event holds; audits of the next epoch are drawn from it,
/// so that nobody who knows an epoch's beacon can still change whom it draws.
///
/// Nothing here is owned or changes after the deployment.
contract AuditorSet {
    /// @notice Most auditors at a time. Who has more stake takes the place of one who has less.
    uint256 public constant MAX_AUDITORS = 64;
    /// Stakes are told in gwei of the token.
    uint256 private constant STAKE_UNIT = 1e9;

    /// @notice Holds the stakes.
    StakeManager public immutable stake;
    /// @notice Length of an epoch, in seconds; epochs are counted from 1970.
    uint40 public immutable epochLength;
    /// @notice Least active stake of an auditor, in the token's smallest unit.
    uint128 public immutable minAuditorStake;

    /// @notice Hash of the ABI encoding of an epoch's list of auditors; zero if nobody asked for it.
    mapping(uint256 epoch => bytes32) public snapshots;

    address[] private _auditors;
    mapping(address auditor => uint256) private _places;

    /// @notice Somebody can be asked to audit.
    event AuditorJoined(address indexed auditor);
    /// @notice Somebody cannot be asked to audit any more, but for what lists of the past say.
    event AuditorLeft(address indexed auditor);
    /// @notice The auditors and their stakes, from which the next epoch's audits are drawn.
    event AuditorsListed(uint256 indexed epoch, Auditor[] auditors);

    /// @notice A parameter of the deployment is out of its bounds.
    error BadConfig();
    /// @notice The auditor has not enough active stake.
    error TooLittleStake(uint256 stake, uint256 least);
    /// @notice The auditor is in the set.
    error AlreadyIn(address auditor);
    /// @notice The auditor is not in the set.
    error NotIn(address auditor);
    /// @notice The auditor has enough stake to stay.
    error Stays(address auditor);
    /// @notice The epoch's list is there.
    error AlreadyListed(uint256 epoch);

    /// @param stake_ Holds the stakes.
    /// @param epochLength_ Length of an epoch, in seconds; at least a minute.
    /// @param minAuditorStake_ Least active stake of an auditor, in the token's smallest unit.
    constructor(StakeManager stake_, uint40 epochLength_, uint128 minAuditorStake_) {
        if (address(stake_) == address(0) || epochLength_ < 60 || minAuditorStake_ == 0) revert BadConfig();
        stake = stake_;
        epochLength = epochLength_;
        minAuditorStake = minAuditorStake_;
    }

    /// @notice Enters the caller.
    /// @param replaced Where the set is full, an auditor with less stake, who has to go.
    function join(address replaced) external {
        uint256 own = _stakeOf(msg.sender);
        if (own < minAuditorStake) revert TooLittleStake(own, minAuditorStake);
        if (_places[msg.sender] != 0) revert AlreadyIn(msg.sender);
        if (_auditors.length == MAX_AUDITORS) {
            if (_stakeOf(replaced) >= own) revert Stays(replaced);
            _remove(replaced);
        }
        _auditors.push(msg.sender);
        _places[msg.sender] = _auditors.length;
        emit AuditorJoined(msg.sender);
    }

    /// @notice Takes the caller out. What it was drawn for before it still has to do.
    function resign() external {
        _remove(msg.sender);
    }

    /// @notice Takes somebody out who has too little stake by now. Anybody may.
    /// @param auditor The auditor.
    function drop(address auditor) external {
        if (_stakeOf(auditor) >= minAuditorStake) revert Stays(auditor);
        _remove(auditor);
    }

    /// @notice Writes down the stakes for the audits of the next epoch, once in an epoch. Anybody may.
    /// @return list The auditors with enough stake.
    function listAuditors() external returns (Auditor[] memory list) {
        uint256 epoch = currentEpoch();
        if (snapshots[epoch] != 0) revert AlreadyListed(epoch);
        uint256 count = _auditors.length;
        list = new Auditor[](count);
        uint256 able = 0;
        for (uint256 i = 0; i < count; ++i) {
            address auditor = _auditors[i];
            uint256 own = _stakeOf(auditor);
            if (own < minAuditorStake) continue;
            uint256 units = own / STAKE_UNIT;
            // 64 of at most 2^57 are below 2^64; no token has a stake of 2^57 gwei.
            list[able++] = Auditor(auditor, uint64(units < 1 << 57 ? units : 1 << 57));
        }
        assembly ("memory-safe") {
            mstore(list, able)
        }
        snapshots[epoch] = keccak256(abi.encode(list));
        emit AuditorsListed(epoch, list);
    }

    /// @notice Everybody who can be asked now.
    /// @return The auditors.
    function auditors() external view returns (address[] memory) {
        return _auditors;
    }

    /// @notice The epoch that runs.
    /// @return Its number.
    function currentEpoch() public view returns (uint256) {
        return block.timestamp / epochLength;
    }

    function _stakeOf(address auditor) private view returns (uint256) {
        return stake.poolOf(auditor, Roles.AUDITOR).active.tokens;
    }

    function _remove(address auditor) private {
        uint256 place = _places[auditor];
        if (place == 0) revert NotIn(auditor);
        address last = _auditors[_auditors.length - 1];
        _auditors[place - 1] = last;
        _places[last] = place;
        delete _places[auditor];
        _auditors.pop();
        emit AuditorLeft(auditor);
    }
}
