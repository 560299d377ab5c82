// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Beacon} from "../src/Beacon.sol";
import {PodGovernor} from "../src/PodGovernor.sol";
import {G2} from "../src/lib/Bn254.sol";
import {Deployment} from "./Deployment.sol";
import {vm} from "./Vm.sol";

/// @title Deploys everything from a file of parameters
/// @notice forge script script/Deploy.s.sol --sig 'run(string)' script/local.json --rpc-url URL --broadcast
contract Deploy is Deployment {
    /// @notice Marks the contract as a script for forge.
    bool public constant IS_SCRIPT = true;

    /// @notice What was deployed, by name.
    event Deployed(string name, address place);

    /// @notice Deploys and wires everything, as the sender that forge was given.
    /// @param path A file of parameters, as `local.json` beside this one.
    /// @return s What was deployed.
    function run(string calldata path) external returns (System memory s) {
        Params memory p = read(vm.readFile(path));
        vm.startBroadcast(msg.sender);
        s = _deploy(p, msg.sender);
        vm.stopBroadcast();
        emit Deployed("AccessManager", address(s.manager));
        emit Deployed("TimelockController", address(s.timelock));
        emit Deployed("PODToken", s.token);
        emit Deployed("StakeManager", address(s.stake));
        emit Deployed("PodGovernor", address(s.governor));
        emit Deployed("SessionEscrow", address(s.escrow));
        emit Deployed("VoucherCollector", address(s.collector));
        emit Deployed("NodeRegistry", address(s.nodes));
        emit Deployed("ModelRegistry", address(s.models));
        emit Deployed("RewardDistributor", address(s.rewards));
        emit Deployed("Beacon", address(s.beacon));
        emit Deployed("AuditorSet", address(s.auditors));
        emit Deployed("DisputeGame", address(s.game));
        emit Deployed("AuditManager", address(s.audits));
    }

    /// @notice Reads parameters. A missing one fails; one that is too large for its type does too.
    /// @param json The text of the file.
    /// @return p The parameters.
    function read(string memory json) public pure returns (Params memory p) {
        p.token = vm.parseJsonAddress(json, ".token");
        p.tokenCap = vm.parseJsonUint(json, ".tokenCap");
        p.holder = vm.parseJsonAddress(json, ".holder");
        p.supply = vm.parseJsonUint(json, ".supply");
        p.guardian = vm.parseJsonAddress(json, ".guardian");
        p.poster = vm.parseJsonAddress(json, ".poster");
        p.curator = vm.parseJsonAddress(json, ".curator");
        p.timelockDelay = vm.parseJsonUint(json, ".timelockDelay");
        p.stakeThawPeriod = uint40(_uint(json, ".stakeThawPeriod", 40));
        p.slashEpoch = uint40(_uint(json, ".slashEpoch", 40));
        p.slashCapBps = uint16(_uint(json, ".slashCapBps", 16));
        p.reporterBps = uint16(_uint(json, ".reporterBps", 16));
        p.escrowThawPeriod = uint64(_uint(json, ".escrowThawPeriod", 64));
        p.settlementWindow = uint64(_uint(json, ".settlementWindow", 64));
        p.activationDelay = uint64(_uint(json, ".activationDelay", 64));
        p.emissionRate = uint128(_uint(json, ".emissionRate", 128));
        p.emissionStart = uint64(_uint(json, ".emissionStart", 64));
        p.emissionCap = uint128(_uint(json, ".emissionCap", 128));
        p.governor = PodGovernor.Config({
            votingDelay: uint48(_uint(json, ".votingDelay", 48)),
            votingPeriod: uint32(_uint(json, ".votingPeriod", 32)),
            proposalThreshold: vm.parseJsonUint(json, ".proposalThreshold"),
            quorumPercent: vm.parseJsonUint(json, ".quorumPercent"),
            voteExtension: uint48(_uint(json, ".voteExtension", 48))
        });
        p.beacon = Beacon.Config({
            key: abi.decode(vm.parseJsonBytes(json, ".beacon.key"), (G2)),
            genesis: uint64(_uint(json, ".beacon.genesis", 64)),
            period: uint64(_uint(json, ".beacon.period", 64))
        });
        p.audits = _audits(json);
    }

    function _audits(string memory json) private pure returns (Audits memory a) {
        a.epochLength = uint40(_uint(json, ".audits.epochLength", 40));
        a.beaconDelay = uint40(_uint(json, ".audits.beaconDelay", 40));
        a.drawWindow = uint40(_uint(json, ".audits.drawWindow", 40));
        a.openWindow = uint40(_uint(json, ".audits.openWindow", 40));
        a.answerWindow = uint40(_uint(json, ".audits.answerWindow", 40));
        a.disputeWindow = uint40(_uint(json, ".audits.disputeWindow", 40));
        a.strikeWindow = uint40(_uint(json, ".audits.strikeWindow", 40));
        a.promptRate = uint32(_uint(json, ".audits.promptRate", 32));
        a.replyRate = uint32(_uint(json, ".audits.replyRate", 32));
        a.rateFloor = uint32(_uint(json, ".audits.rateFloor", 32));
        a.rateHalfLife = uint32(_uint(json, ".audits.rateHalfLife", 32));
        a.minNodeStake = uint128(_uint(json, ".audits.minNodeStake", 128));
        a.minAuditorStake = uint128(_uint(json, ".audits.minAuditorStake", 128));
        a.disputeBond = uint128(_uint(json, ".audits.disputeBond", 128));
        a.disputeClock = uint40(_uint(json, ".audits.disputeClock", 40));
        a.silentBps = uint16(_uint(json, ".audits.silentBps", 16));
        a.withheldBps = uint16(_uint(json, ".audits.withheldBps", 16));
        a.repeatBps = uint16(_uint(json, ".audits.repeatBps", 16));
        a.systematicBps = uint16(_uint(json, ".audits.systematicBps", 16));
        a.lapseBps = uint16(_uint(json, ".audits.lapseBps", 16));
        a.missBps = uint16(_uint(json, ".audits.missBps", 16));
    }

    function _uint(string memory json, string memory key, uint256 bits) private pure returns (uint256 value) {
        value = vm.parseJsonUint(json, key);
        require(value >> bits == 0, key);
    }
}
