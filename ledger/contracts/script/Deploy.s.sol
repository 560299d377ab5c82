// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {PodGovernor} from "../src/PodGovernor.sol";
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
    }

    function _uint(string memory json, string memory key, uint256 bits) private pure returns (uint256 value) {
        value = vm.parseJsonUint(json, key);
        require(value >> bits == 0, key);
    }
}
