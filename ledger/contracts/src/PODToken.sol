// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";
import {ERC20Capped} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Capped.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ERC20Votes} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Votes.sol";
import {Nonces} from "@openzeppelin/contracts/utils/Nonces.sol";
import {Time} from "@openzeppelin/contracts/utils/types/Time.sol";

import {IMintable} from "./IMintable.sol";

/// @title POD
/// @notice The token that pays for inference, backs nodes and votes. Capped, burnable, with permits (ERC-2612)
/// and votes (ERC-5805) that run on timestamps. Where POD exists already this contract is not deployed.
/// @dev Burning lowers the supply, and with it makes room under the cap.
contract PODToken is ERC20Permit, ERC20Votes, ERC20Burnable, ERC20Capped, AccessManaged, IMintable {
    /// @param authority The AccessManager; its minter role may call `mint`.
    /// @param cap Most that may ever exist at once, in wei of POD; below 2^208.
    /// @param holder Who gets the initial supply.
    /// @param supply The initial supply, in wei of POD.
    constructor(address authority, uint256 cap, address holder, uint256 supply)
        ERC20("POD", "POD")
        ERC20Permit("POD")
        ERC20Capped(cap)
        AccessManaged(authority)
    {
        if (supply != 0) _mint(holder, supply);
    }

    /// @inheritdoc IMintable
    /// @dev Up to the cap. For the minter role.
    function mint(address to, uint256 amount) external restricted {
        _mint(to, amount);
    }

    /// @notice The clock of votes: seconds since 1970 (ERC-6372).
    /// @return The block's timestamp.
    function clock() public view override returns (uint48) {
        return Time.timestamp();
    }

    /// @notice Names the clock (ERC-6372).
    /// @return The mode.
    function CLOCK_MODE() public pure override returns (string memory) {
        return "mode=timestamp";
    }

    /// @inheritdoc ERC20Permit
    function nonces(address owner) public view override(ERC20Permit, Nonces) returns (uint256) {
        return super.nonces(owner);
    }

    function _update(address from, address to, uint256 value)
        internal
        override(ERC20, ERC20Capped, ERC20Votes)
    {
        super._update(from, to, value);
    }
}
