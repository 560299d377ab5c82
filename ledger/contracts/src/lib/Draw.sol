// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @notice Somebody who may be asked to audit.
/// @param account The account.
/// @param stake In gwei of the token, so that no sum of stakes reaches 2^64.
struct Auditor {
    address account;
    uint64 stake;
}

/// @title Which commitments are audited, and by whom
/// @notice Pure functions of a commitment and of a beacon that came after it, as `ledger::draw` has them.
library Draw {
    bytes private constant DRAW_DOMAIN = "dolphin/draw/1";
    bytes private constant AUDITOR_DOMAIN = "dolphin/auditor/1";

    /// @notice The rate for whoever has passed so many audits since it last failed one.
    /// @param fresh The rate without history, in units of 2^-32.
    /// @param floor The share of it that is left after a long history: one part of so many, at least 1.
    /// @param halfLife Audits passed that halve what is above that, at least 1.
    /// @param passed Audits passed.
    /// @return The rate, in units of 2^-32.
    function rateOf(uint32 fresh, uint32 floor, uint32 halfLife, uint32 passed)
        internal
        pure
        returns (uint32)
    {
        uint32 least = fresh / floor;
        uint32 halvings = passed / halfLife;
        return least + ((fresh - least) >> (halvings < 31 ? halvings : 31));
    }

    /// @notice Whether the beacon draws a commitment.
    /// @param beacon The beacon.
    /// @param commitment The commitment.
    /// @param rate The probability, in units of 2^-32.
    /// @return Whether it does.
    function isDrawn(bytes32 beacon, bytes32 commitment, uint32 rate) internal pure returns (bool) {
        return uint32(bytes4(keccak256(abi.encodePacked(DRAW_DOMAIN, beacon, commitment)))) < rate;
    }

    /// @notice One of those that the beacon draws in turn for a commitment, by stake and without repetition.
    /// @param beacon The beacon.
    /// @param commitment The commitment.
    /// @param list Who can be drawn; its stakes are overwritten.
    /// @param involved Who is left out.
    /// @param number Whom of them, from 0 on.
    /// @return chosen The account; zero if there are not so many.
    function auditorOf(
        bytes32 beacon,
        bytes32 commitment,
        Auditor[] memory list,
        address involved,
        uint256 number
    ) internal pure returns (address chosen) {
        uint256 total = 0;
        for (uint256 i = 0; i < list.length; ++i) {
            if (list[i].account == involved) list[i].stake = 0;
            total += list[i].stake;
        }
        for (uint256 n = 0; n <= number; ++n) {
            if (total == 0) return address(0);
            bytes32 hash = keccak256(abi.encodePacked(AUDITOR_DOMAIN, beacon, commitment, uint32(n)));
            uint256 place = (uint256(uint64(bytes8(hash))) * total) >> 64;
            uint256 i = 0;
            // Below the total, so it is within the list.
            for (; place >= list[i].stake; ++i) {
                place -= list[i].stake;
            }
            chosen = list[i].account;
            total -= list[i].stake;
            list[i].stake = 0;
        }
    }
}
