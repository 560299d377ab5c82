// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Deployment} from "../script/Deployment.sol";

/// Deploys everything for tests, so that the code of all contracts is compiled into this one alone.
contract Deployer is Deployment {
    function deploy(Params calldata p) external returns (System memory) {
        return _deploy(p, address(this));
    }
}
